"""Networks of keras.applications, of resfit and of users in every format of Keras, and KerasHub's presets."""

from __future__ import annotations

import contextlib
import io
import json
import random
import shutil
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest

import resfit
from resfit import zoo
from resfit.errors import CheckpointError, ResfitError
from resfit.networks import catalog
from resfit.networks.build import build
from resfit.networks.detection.anchors import anchors as place_anchors
from resfit.networks.detection.build import build as build_detector
from resfit.networks.spec import ArchitectureSpec, StemConv
from resfit.preprocessing import CAFFE, TF
from resfit.weights import canonical, load, registry
from resfit.weights.formats import keras_archive, keras_h5, keras_weights, kerashub
from tests import fuzzing
from tests.numeric import randomize, relative_error

LIMIT = 1e-4
NAMES = ("ResNet50", "ResNet101", "ResNet152", "ResNet50V2", "ResNet101V2", "ResNet152V2")
FORMATS = ("whole.h5", "weights only.h5", "new.weights.h5", "archive.keras")
SMALL = ArchitectureSpec(
    depths=(1, 2), widths=(32, 48), inner_widths=(16, 16), stage_strides=(1, 2), stem=(StemConv(16, 5, 2),), classes=3
)


def pictures(side: int = 64, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 40, (2, side, side, channels)).astype("float32")


def write(model: keras.Model, path: Path) -> Path:
    if path.name == "weights only.h5":
        keras.src.legacy.saving.legacy_h5_format.save_weights_to_hdf5_group(file := h5py.File(path, "w"), model)
        file.close()
    elif path.name.endswith(".weights.h5"):
        model.save_weights(path)
    else:
        model.save(path)
    return path


def agree(received: keras.Model, expected: keras.Model, x: np.ndarray) -> None:
    ours, theirs = (np.asarray(model(x, training=False)) for model in (received, expected))
    assert relative_error(ours, theirs) <= LIMIT
    np.testing.assert_array_equal(ours.argmax(-1), theirs.argmax(-1))


# keras.applications


@pytest.mark.parametrize(
    "name", [name if name == "ResNet50" else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)
def test_keras_applications_in_every_format(name, tmp_path):
    model = randomize(getattr(keras.applications, name)(weights=None, classes=7, classifier_activation=None))
    x = pictures(224)
    expected = np.asarray(model(x, training=False))
    for form in FORMATS:
        found = load.load_source(write(model, tmp_path / form), preprocess=False, classifier_activation=None)
        assert found.name == catalog.get(name.lower()).name
        assert found.input_spec == (TF if name.endswith("V2") else CAFFE), form
        received = np.asarray(found(x, training=False))
        assert relative_error(received, expected) <= LIMIT, form
        np.testing.assert_array_equal(received.argmax(-1), expected.argmax(-1))


@pytest.mark.parametrize("form", FORMATS)
def test_a_network_inside_another_model(form, tmp_path):
    """The tutorial's model: scaling, a body, pooling, a classifier."""
    body = keras.applications.ResNet50V2(weights=None, include_top=False, input_shape=(64, 64, 3))
    layers = keras.layers
    model = randomize(
        keras.Sequential(
            [
                keras.Input((64, 64, 3)),
                layers.RandomFlip(),
                layers.Rescaling(1 / 100, offset=-0.5),
                body,
                layers.GlobalAveragePooling2D(),
                layers.Dropout(0.2),
                layers.Dense(5, name="mine"),
            ]
        )
    )
    model.compile("adam")
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3)).astype("float32")
    found = resfit.load(write(model, tmp_path / form), classifier_activation=None, include_top=True)
    told = any("'mine/kernel' is the classifier" in text for text in found.assumptions)
    assert told == (form not in ("whole.h5", "archive.keras"))  # these say how their layers are connected
    if form in ("whole.h5", "archive.keras"):  # what is in front is told by the configuration
        assert (found.input_spec.size, found.input_spec.mean) == ((64, 64), (0.5, 0.5, 0.5))
        agree(found, model, images)
    else:
        assert found.input_spec == TF
        bare = resfit.load(tmp_path / form, classifier_activation=None, preprocess=False, include_top=True)
        expected = model.layers[-1](model.layers[3](body(images / 100 - 0.5, training=False)))
        assert relative_error(bare(images / 100 - 0.5, training=False), expected) <= LIMIT


def test_a_keras_file_alone_stays_as_it_was_saved(tmp_path):
    inputs = keras.Input((32, 32, 3))
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.GlobalMaxPooling2D()(inputs)))
    model.save(tmp_path / "mine.keras")
    x = pictures(32)
    np.testing.assert_array_equal(resfit.load(tmp_path / "mine.keras")(x), model(x))
    with pytest.raises(CheckpointError, match=r"The first operation that does not fit is layer '.*' \(GlobalMax"):
        resfit.load(tmp_path / "mine.keras", include_top=True)


@pytest.mark.parametrize("form", FORMATS)
def test_networks_of_resfit_come_back(form, tmp_path):
    spec = SMALL.replace(in_channels=1, activation="gelu", norm_epsilon=1e-3)
    model = randomize(build(spec, input_shape=(None, None, 1), classifier_activation=None))
    hints = (
        {} if form in ("whole.h5", "archive.keras") else {"activation": "gelu", "norm_epsilon": 1e-3, "stem": spec.stem}
    )
    found = load.load_source(write(model, tmp_path / form), preprocess=False, classifier_activation=None, **hints)
    assert load.is_like(found.architecture, spec)
    agree(found, model, pictures(33, 1))


def test_hidden_layers_are_kept_or_left_out(tmp_path):
    inputs = keras.Input((32, 32, 3))
    body = build(SMALL, input_shape=(32, 32, 3), include_top=False, pooling="avg")
    hidden = keras.layers.Dense(11, name="hidden")(body(inputs))
    model = keras.Model(inputs, keras.layers.Dense(2, name="last")(hidden))
    model.save(tmp_path / "two.keras")
    found = load.load_source(tmp_path / "two.keras", preprocess=False)
    assert relative_error(found(pictures(32)), model(pictures(32))) <= LIMIT
    read = load.read_source(tmp_path / "two.keras", ignore=("hidden/*", "last/*"))
    assert (read.has_top, read.spec.widths) == (False, (32, 48))
    assert any("hidden/kernel" in text for text in read.assumptions)
    model.save_weights(tmp_path / "two.weights.h5")  # which do not say how they are connected
    with pytest.raises(CheckpointError, match=r"4 tensors left over: .*hidden/kernel \(48, 11\)"):
        load.read_source(tmp_path / "two.weights.h5")


def test_half_precision(tmp_path):
    """bfloat16, which Keras writes as the bits of another type."""
    keras.config.set_dtype_policy("bfloat16")
    try:
        model = randomize(build(SMALL, input_shape=(32, 32, 3)))
    finally:
        keras.config.set_dtype_policy("float32")
    model.save_weights(tmp_path / "half.weights.h5")
    found = keras_weights.read(tmp_path / "half.weights.h5").arrays["conv2_block1_1_conv/kernel"]
    kernel = model.get_layer("conv2_block1_1_conv").kernel
    assert kernel.dtype == "bfloat16"
    np.testing.assert_array_equal(found, np.asarray(keras.ops.cast(kernel, "float32")))


# KerasHub

DEPTHS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 12, 48, 3),
}
# `test_shards_of_a_preset` has the bottlenecks of the others
SHOWN = ("resnet_18_imagenet", "resnet_v2_50_imagenet", "resnet_vd_18_imagenet")


def presets() -> list:
    """Rows of the registry, one for each network: several presets have the same."""
    rows = {info.architecture: info for info in reversed(registry.find(source="kerashub"))}
    return [
        pytest.param(info, id=info.name, marks=() if info.name in SHOWN else pytest.mark.slow) for info in rows.values()
    ]


def test_every_preset_is_of_a_network_that_is_compared():
    rows = registry.find(source="kerashub")
    assert len(rows) == 16
    assert {info.architecture for info in rows} == {param.values[0].architecture for param in presets()}
    assert set(SHOWN) <= {param.id for param in presets()}


def preset(info, folder: Path) -> tuple[keras.Model, int]:
    """Writes a preset of a row as KerasHub does, with random weights and seven classes."""
    hub = pytest.importorskip("keras_hub")
    name = info.name.removesuffix("_imagenet").split("_ssld")[0]
    depth = int(name.rpartition("_")[2])
    deep = "_vd_" in name
    backbone = hub.models.ResNetBackbone(
        input_conv_filters=[32, 32, 64] if deep else [64],
        input_conv_kernel_sizes=[3, 3, 3] if deep else [7],
        stackwise_num_filters=[64, 128, 256, 512],
        stackwise_num_blocks=list(DEPTHS[depth]),
        stackwise_num_strides=[1, 2, 2, 2],
        block_type=("basic_block" if depth < 50 else "bottleneck_block") + ("_vd" if deep else ""),
        use_pre_activation="_v2_" in name,
    )
    contract = info.input_spec
    converter = hub.layers.ResNetImageConverter(
        image_size=(96, 96),
        scale=[1 / 255 / value for value in contract.std],
        offset=[-mean / std for mean, std in zip(contract.mean, contract.std, strict=True)],
        interpolation="bicubic",
    )
    task = hub.models.ResNetImageClassifier(
        backbone, 7, hub.models.ResNetImageClassifierPreprocessor(image_converter=converter)
    )
    randomize(task).save_to_preset(folder)
    return task, depth


@pytest.mark.parametrize("second", [pytest.param(False, marks=pytest.mark.slow), True])
def test_retinanet_presets_compute_what_kerashub_computes(second, tmp_path):
    hub = pytest.importorskip("keras_hub")
    encoder = hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 128, 256, 512],
        stackwise_num_blocks=[1, 1, 1, 1],
        stackwise_num_strides=[1, 2, 2, 2],
        block_type="basic_block",
        image_shape=(None, None, 3),
    )
    backbone = hub.models.RetinaNetBackbone(encoder, 3, 7, use_p5=second)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    converter = hub.layers.RetinaNetImageConverter(
        image_size=(160, 160),
        scale=[1 / 255 / value for value in std],
        offset=[-one / value for one, value in zip(mean, std, strict=True)],
    )
    task = hub.models.RetinaNetObjectDetector(
        backbone,
        5,
        bounding_box_format="xyxy",
        use_prediction_head_norm=second,
        preprocessor=hub.models.RetinaNetObjectDetectorPreprocessor(image_converter=converter),
    )
    randomize(task).save_to_preset(tmp_path / "preset")
    # sides for which KerasHub's padding of the extra levels is torchvision's, and epsilons that are KerasHub's
    x = np.random.default_rng(0).normal(size=(1, 160, 160, 3)).astype("float32")
    expected = {name: np.asarray(value) for name, value in task(x).items()}
    source = zoo.read_any(tmp_path / "preset", reading={"norm_epsilon": 1e-3, "backbone.norm_epsilon": 1e-5})
    assert (source.spec.extra_input, source.spec.classes) == ("c5" if second else "p5", 5)
    own = build_detector(source.spec, outputs="raw")
    canonical.fill(own, source.arrays)
    found = {name: np.asarray(value) for name, value in own(x).items()}
    np.testing.assert_allclose(found["class_logits"], expected["cls_logits"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(found["box_codes"], expected["bbox_regression"], rtol=0, atol=1e-5)
    assert np.abs(expected["cls_logits"]).mean() > 0.1
    anchors = np.concatenate(list(task.anchor_generator(x).values()))
    np.testing.assert_allclose(np.concatenate(place_anchors(source.spec, (160, 160))), anchors, atol=1e-4)
    usual = zoo.read_any(tmp_path / "preset")
    assert usual.spec.norm_epsilon == 1e-5
    assert (usual.input_spec.size, usual.input_spec.resize_mode) == ((160, 160), "letterbox")
    assert usual.input_spec.mean == pytest.approx(mean, abs=1e-6)
    assert any("run as torchvision's do" in text for text in usual.assumptions)
    (tmp_path / "preset/task.weights.h5").unlink()
    with pytest.raises(CheckpointError, match="its backbone alone"):
        zoo.read_any(tmp_path / "preset")


@pytest.mark.parametrize("info", presets())
def test_presets_compute_what_kerashub_computes(info, tmp_path):
    task, _ = preset(info, tmp_path / "preset")
    x = np.random.default_rng(0).normal(size=(2, 96, 96, 3)).astype("float32")
    found = load.load_source(tmp_path / "preset", preprocess=False, classifier_activation=None)
    assert found.name == info.architecture
    assert found.architecture == catalog.get(info.architecture).spec.replace(classes=7)
    contract = found.input_spec
    assert (contract.size, contract.interpolation, contract.crop_fraction) == ((96, 96), "bicubic", 1.0)
    np.testing.assert_allclose((contract.mean, contract.std), (info.input_spec.mean, info.input_spec.std), rtol=1e-8)
    agree(found, task, x)
    # the image converter against the layer that stands for it here
    images = np.random.default_rng(1).integers(0, 256, (2, 96, 96, 3)).astype("float32")
    whole = resfit.load(tmp_path / "preset", classifier_activation=None)
    assert relative_error(whole(images), task(task.preprocessor(images), training=False)) <= LIMIT
    # without the task, a body
    (tmp_path / "preset/task.weights.h5").unlink()
    body = load.load_source(tmp_path / "preset", preprocess=False, pooling="avg")
    pooled = np.asarray(task.backbone(x, training=False)).mean((1, 2))
    assert relative_error(body(x, training=False), pooled) <= LIMIT


@pytest.mark.parametrize(
    ("kind", "before", "stem"),
    [
        ("basic_block", False, [64]),
        ("basic_block", True, [64]),
        ("basic_block_vd", False, [16, 16, 64]),
        ("bottleneck_block", False, [16]),
        ("bottleneck_block", True, [16, 32]),
        ("bottleneck_block_vd", False, [16, 16, 32]),
    ],
)
def test_shards_of_a_preset(kind, before, stem, tmp_path):
    """Keras leaves the names of layers out of them."""
    hub = pytest.importorskip("keras_hub")
    kernels = [5, 3, 3][: len(stem)]
    backbone = randomize(
        hub.models.ResNetBackbone(stem, kernels, [64, 64], [2, 2], [1, 2], kind, use_pre_activation=before)
    )
    backbone.save_to_preset(tmp_path / "preset", max_shard_size=0.0005)
    assert len(list((tmp_path / "preset").glob("model_0*.weights.h5"))) > 1
    found = load.load_source(tmp_path / "preset", preprocess=False)
    x = pictures(48) / 40
    assert relative_error(found(x, training=False), backbone(x, training=False)) <= LIMIT
    index = json.loads((tmp_path / "preset/model.weights.json").read_text())
    name = next(iter(index["weight_map"]))
    for shard, text in (
        ("../model_00000.weights.h5", "same folder"),
        ("gone.weights.h5", "must exist"),
        (7, "same folder"),
    ):
        changed = {**index, "weight_map": {**index["weight_map"], name: shard}}
        (tmp_path / "preset/model.weights.json").write_text(json.dumps(changed))
        with pytest.raises(CheckpointError, match=text):
            kerashub.read(tmp_path / "preset")


# What is not trusted.


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    """A small network in every format, and as a preset."""
    folder = tmp_path_factory.mktemp("small")
    keras.utils.set_random_seed(0)
    model = build(SMALL, input_shape=(32, 32, 3))
    for form in FORMATS:
        write(model, folder / form)
    (folder / "preset").mkdir()
    names = {}
    for name, array in keras_weights.read(folder / "new.weights.h5").arrays.items():
        layer, _, leaf = name.rpartition("/")
        match = layer.split("_")
        stacked = layer.startswith(("conv2_block", "conv3_block"))
        if stacked:
            layer = f"stack{int(match[0][4:]) - 2}_block{int(match[1][5:]) - 1}_{match[2]}_{match[3]}"
        names.setdefault(layer, {})[leaf] = array
    for file, layers in (("model", names.keys() - {"predictions"}), ("task", {"predictions"})):
        with h5py.File(folder / f"preset/{file}.weights.h5", "w") as written:
            for number, layer in enumerate(sorted(layers)):
                kind = {"conv": "conv2d", "bn": "batch_normalization"}.get(layer.rpartition("_")[2], "dense")
                group = written.create_group(f"layers/{kind}_{number}/vars")
                group.attrs["name"] = layer
                for index, array in enumerate(names[layer].values()):
                    group.create_dataset(str(index), data=array)
    config = {
        "input_conv_filters": [16],
        "input_conv_kernel_sizes": [5],
        "stackwise_num_strides": [1, 2],
        "block_type": "bottleneck_block",
    }
    (folder / "preset/config.json").write_text(json.dumps({"class_name": "ResNetBackbone", "config": config}))
    return folder


def test_the_small_files_are_whole(small):
    model = keras.saving.load_model(small / "archive.keras")
    for form in (*FORMATS, "preset"):
        found = load.load_source(small / form, preprocess=False, stem=SMALL.stem)
        agree(found, model, pictures(32) / 40)


FUZZED = (
    ("keras_weights", "new.weights.h5"),
    ("keras_archive", "archive.keras"),
    ("keras_h5", "whole.h5"),
    ("keras_h5", "weights only.h5"),
    ("kerashub", "preset"),
)


@pytest.mark.parametrize(("reader", "form"), FUZZED)
def test_damaged_files_are_refused_or_read(reader, form, small, tmp_path):
    # `test_many_damaged_files` takes 50,000
    count = fuzzing.FEW // sum(other == reader for other, _ in FUZZED)
    result = fuzzing.survive(f"resfit.weights.formats.{reader}:read", [small / form], tmp_path, count)
    assert result["refused"] > count / 10


@pytest.mark.slow
@pytest.mark.parametrize(("reader", "form"), FUZZED)
def test_many_damaged_files(reader, form, small, tmp_path):
    print(fuzzing.survive(f"resfit.weights.formats.{reader}:read", [small / form], tmp_path, 50_000, seed=1))


def test_damaged_configurations_of_a_preset(small, tmp_path):
    """Every cut and many changed bytes of the two files that are no HDF5."""
    whole = (small / "preset/config.json").read_bytes()
    chance = random.Random(0)
    for _ in range(400):
        folder = tmp_path / "preset"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(small / "preset", folder)
        damaged = fuzzing.damage(whole, chance, None)
        (folder / "config.json").write_bytes(damaged)
        with contextlib.suppress(ResfitError):
            load.read_source(folder)


def altered(small: Path, tmp_path: Path, change) -> Path:
    path = Path(shutil.copy(small / "new.weights.h5", tmp_path / "bad.weights.h5"))
    with h5py.File(path, "a") as file:
        change(file["layers/conv2d/vars"])
    return path


def _external_link(group):
    del group["0"]
    group["0"] = h5py.ExternalLink("other.h5", "/secret")


def _soft_link(group):
    del group["0"]
    group["0"] = h5py.SoftLink("/layers/conv2d_1/vars/0")


def _external_data(group):
    shape = group["0"].shape
    del group["0"]
    group.create_dataset("0", shape, "f4", external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)])


def _bomb(group):
    del group["0"]
    group.create_dataset("0", (30_000, 30_000), "f4", chunks=(1000, 1000), compression="gzip")


def _integers(group):
    del group["0"]
    group["0"] = np.zeros((5, 5, 3, 16), "int32")


def _nameless(group):
    del group.attrs["name"]


def _twice(group):
    group.attrs["name"] = group.parent.parent["conv2d_1/vars"].attrs["name"]


def _cycle(group):
    group.parent["layers"] = group.parent.parent


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (_external_link, "in the file itself"),
        (_soft_link, "in the file itself"),
        (_external_data, "in another file"),
        (_bomb, "hold all it declares"),
        (_integers, "floating-point"),
        (_nameless, "name its layers"),
        (_twice, "name of its own"),
        (_cycle, "or a cycle"),
    ],
)
def test_hostile_weights(change, text, small, tmp_path):
    with pytest.raises(CheckpointError, match=text):
        keras_weights.read(altered(small, tmp_path, change))


def archive(small: Path, target: Path, **members: bytes) -> Path:
    """A copy of the archive with other members."""
    with zipfile.ZipFile(small / "archive.keras") as source:
        contents = {name: source.read(name) for name in source.namelist()} | {
            name.replace("__", "."): content for name, content in members.items()
        }
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as written:
        for name, content in contents.items():
            written.writestr(name, content)
    return target


def test_hostile_archives(small, tmp_path):
    expected = keras_archive.read(small / "archive.keras")
    for name, array in keras_archive.read(archive(small, tmp_path / "deflated.keras")).arrays.items():
        np.testing.assert_array_equal(array, expected.arrays[name])
    bomb = io.BytesIO(b"\0" * 600_000_000)
    with pytest.raises(CheckpointError, match="must unpack to at most"):
        keras_archive.read(archive(small, tmp_path / "bomb.keras", **{"config__json": bomb.getvalue()}))
    with pytest.raises(CheckpointError, match="whole"):
        keras_archive.read(archive(small, tmp_path / "text.keras", **{"model__weights__h5": b"none"}))
    with zipfile.ZipFile(tmp_path / "empty.keras", "w") as written:
        written.writestr("metadata.json", "{}")
    with pytest.raises(CheckpointError, match=r"must hold config\.json"):
        keras_archive.read(tmp_path / "empty.keras")


def test_a_configuration_runs_nothing(small, tmp_path):
    """A Lambda of pickled code and a class of another module: read as data, like everything else."""
    with zipfile.ZipFile(small / "archive.keras") as source:
        config = json.loads(source.read("config.json"))
    config["config"]["layers"].append(
        {
            "module": "os",
            "class_name": "system",
            "config": {"name": "evil", "function": {"class_name": "__lambda__", "config": {"code": "4wEAAAA="}}},
            "registered_name": "os>system",
        }
    )
    path = archive(small, tmp_path / "evil.keras", **{"config__json": json.dumps(config).encode()})
    found = load.load_source(path, preprocess=False)
    agree(found, keras.saving.load_model(small / "archive.keras"), pictures(32) / 40)
    with pytest.raises(CheckpointError):
        resfit.load(path)  # as it was saved, which Keras' safe mode refuses


def test_missing_files(tmp_path):
    for reader, name in (
        (keras_h5, "a.h5"),
        (keras_weights, "a.weights.h5"),
        (keras_archive, "a.keras"),
        (kerashub, "a"),
    ):
        with pytest.raises(CheckpointError):
            reader.read(tmp_path / name)
        assert not (tmp_path / name).exists()


def test_what_a_refused_file_asks_for_is_not_allocated_later(tmp_path):
    """Keras gives values to all variables that were made in a scope without values, at the end of the next scope."""
    from keras.src.backend.common import global_state

    from resfit.weights import keras_models

    with keras_models.shapes_alone():
        layer = keras.layers.Dense(10**7)
        layer.build((None, 10**7))
    assert not global_state.get_global_attribute("uninitialized_variables")
    assert keras.layers.Lambda(lambda y: y + 1)(keras.Input((2,))).shape == (None, 2)
