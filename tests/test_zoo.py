"""Finding, describing and loading networks."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import subprocess
import sys

import h5py
import keras
import numpy as np
import pytest
from keras.src.legacy.saving import legacy_h5_format

from resfit import zoo
from resfit.errors import ArgumentError, CheckpointError, DownloadError, UnknownNameError
from resfit.networks import arithmetic, catalog
from resfit.preprocessing import CAFFE, TF, InputSpec
from resfit.weights import canonical, fetch, load, registry
from resfit.weights.formats import keras_h5, safetensors
from tests.numeric import images, randomize, relative_error

NAME = "resnet10_tiny"


@pytest.fixture(scope="module")
def trained():
    """The small network with weights that are all different from their initial values."""
    return randomize(zoo.load(NAME, weights=None, preprocess=False))


@pytest.fixture(scope="module")
def file(trained, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "tiny.h5"
    keras_h5.write_layers(path, canonical.to_layers(trained))
    return path


def normalized(model, pictures):
    return model.input_spec.normalize(pictures)


# finding


def test_list_has_every_row_and_patterns_choose():
    assert [info.name for info in zoo.list_models()] == list(catalog.rows())
    assert [info.name for info in zoo.list_models("resnet*v2")] == ["resnet50v2", "resnet101v2", "resnet152v2"]
    assert [info.name for info in zoo.list_models("resnet50.tv_in1k")] == ["resnet50v1.5"]
    assert zoo.list_models("nothing*") == []
    assert {info.name for info in zoo.list_models(loadable=True)} >= {"resnet50", "resnext101"}
    assert all(not info.loadable for info in zoo.list_models(loadable=False))


def test_a_line_of_the_list():
    (info,) = zoo.list_models("resnet50")
    assert (info.parameters, info.input_size, info.classes) == (25_636_712, (224, 224), 1000)
    assert info.gmacs == pytest.approx(3.86, abs=0.005)
    assert (info.weights, info.loadable, info.licence, info.top1, info.top5) == (
        "resnet50",
        True,
        "apache-2.0",
        74.9,
        92.1,
    )
    (info,) = zoo.list_models("resnet50v1.5")
    assert info.checkpoints == len(registry.of_architecture("resnet50v1.5")) > 10
    assert info.loadable
    (info,) = zoo.list_models("preact_resnet20")
    assert (info.weights, info.loadable, info.checkpoints) == ("", False, 0)


def test_description():
    found = zoo.describe("resnet50.a1_in1k")
    assert found.info.name == "resnet50v1.5"
    assert found.input_spec.crop_fraction == 0.95
    assert [stage.name for stage in found.stages] == [f"stage{n}" for n in range(1, 6)] + ["head"]
    assert sum(stage.parameters for stage in found.stages) == found.info.parameters
    assert zoo.describe("resnet50").input_spec == CAFFE
    assert zoo.describe("resnet56").input_spec.size == (32, 32)
    assert found.to_dict()["stages"][0]["shape"] == [56, 56, 64]


@pytest.mark.parametrize("call", [zoo.describe, zoo.load])
def test_unknown_names_suggest(call):
    with pytest.raises(UnknownNameError, match="Did you mean 'resnext50_32x4d'"):
        call("resnext50_32x4")
    with pytest.raises(UnknownNameError, match=r"not a module alone.*resfit\.hub\.KerasLayer"):
        call("remote_sensing_eurosat_resnet50.tfhub_features")


def test_finding_loads_no_tensorflow():
    code = (
        "import sys, resfit; resfit.list_models('resnet5*'); resfit.describe('resnet50');"
        "print([m for m in ('tensorflow', 'keras', 'h5py', 'pandas', 'sklearn') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


# what a loaded network is


@pytest.mark.parametrize(("name", "contract"), [("resnet50", CAFFE), ("resnet50v2", TF)])
def test_fresh_networks_of_keras_give_keras_outputs(name, contract):
    theirs = getattr(keras.applications, name.replace("resnet", "ResNet").replace("v2", "V2"))(
        weights=None, include_top=False, pooling="avg"
    )
    randomize(theirs)
    ours = zoo.load(name, weights=None, include_top=False, pooling="avg")
    ours.set_weights(theirs.get_weights())
    assert ours.architecture == catalog.get(name).spec
    assert ours.input_spec == contract
    pictures = images(2, 64, 48, 3)
    preprocess = keras.applications.resnet if name == "resnet50" else keras.applications.resnet_v2
    expected = theirs(preprocess.preprocess_input(pictures.astype("float32")), training=False)
    assert relative_error(ours(pictures, training=False), expected) <= 1e-5
    np.testing.assert_array_equal(ours(pictures), ours(pictures.astype("float32")))


@pytest.mark.parametrize("dtype", ["uint8", "int32", "float32"])
def test_preprocessing_inside_equals_outside(trained, dtype):
    inside = zoo.load(NAME, weights=None)
    inside.set_weights(trained.get_weights())
    pictures = images(3, 64, 64, 3)
    before = pictures.copy()
    expected = trained(normalized(trained, pictures), training=False)
    assert relative_error(inside(pictures.astype(dtype), training=False), expected) <= 1e-6
    np.testing.assert_array_equal(pictures, before)
    assert trained.layers[1].name == "conv1_pad"
    assert inside(images(1, 50, 90, 3)).shape == (1, 200)


def test_seed_makes_fresh_weights_the_same_and_leaves_the_callers_randomness():
    random.seed(3)
    expected = random.random()
    random.seed(3)
    first = zoo.load(NAME, weights=None, seed=5)
    assert random.random() == expected
    second, other = (zoo.load(NAME, weights=None, seed=seed) for seed in (5, 6))
    for a, b in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert any(not np.array_equal(a, b) for a, b in zip(first.get_weights(), other.get_weights(), strict=True))


def test_dtype_policy_is_the_models_alone():
    model = zoo.load(NAME, weights=None, dtype="mixed_bfloat16")
    assert model.get_layer("conv1_conv").compute_dtype == "bfloat16"
    assert model.get_layer("conv1_conv").kernel.dtype == "float32"
    assert keras.config.dtype_policy().name == "float32"


def test_taps_and_pooling():
    model = zoo.load(NAME, weights=None, taps=("stage2", "stage5"), input_shape=(64, 32, 3))
    assert {tap: value.shape[1:] for tap, value in model.output.items()} == {
        "stage2": (32, 16, 32),
        "stage5": (4, 2, 320),
    }
    assert zoo.load(NAME, weights=None, include_top=False, pooling="avg").output_shape == (None, 320)


def test_saved_network_loads_again(trained, tmp_path):
    model = zoo.load(NAME, weights=None, classes=4)
    randomize(model, seed=2)
    model.save(tmp_path / "net.keras")
    again = zoo.load(tmp_path / "net.keras")
    assert again.architecture == model.architecture
    assert again.input_spec == model.input_spec
    pictures = images(2, 64, 64, 3)
    np.testing.assert_array_equal(again(pictures), model(pictures))
    anew = zoo.load(tmp_path / "net.keras", include_top=False, pooling="avg")
    assert load.is_like(anew.architecture, model.architecture)
    expected = keras.Model(model.input, model.layers[-2].output)(pictures)
    assert relative_error(anew(pictures), expected) <= 1e-6
    assert zoo.load(tmp_path / "net.keras", classes=3).output_shape == (None, 3)
    (tmp_path / "bad.keras").write_bytes(b"none")
    with pytest.raises(CheckpointError, match=r"must be a \.keras model"):
        zoo.load(tmp_path / "bad.keras")


# weights from files


def test_weights_from_a_legacy_file(trained, file):
    model = zoo.load(NAME, weights=file, preprocess=False)
    for expected, received in zip(trained.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(received, expected)


@pytest.mark.parametrize("suffix", [".weights.h5", ".keras"])
def test_weights_from_keras_other_formats(trained, tmp_path, suffix):
    path = tmp_path / f"tiny{suffix}"
    trained.save(path) if suffix == ".keras" else trained.save_weights(path)
    model = zoo.load(NAME, weights=path, preprocess=False)
    for expected, received in zip(trained.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(received, expected)
    with pytest.raises(CheckpointError, match=r"must fit the network|must be those of 'resnet18'"):
        zoo.load("resnet18", weights=path)


def test_new_classes_replace_the_head_and_keep_the_rest(trained, file):
    model = zoo.load(NAME, weights=file, classes=5, seed=1)
    values, kept = canonical.arrays(model), canonical.arrays(trained)
    assert values["predictions/kernel"].shape == (320, 5)
    for name, array in values.items():
        if not name.startswith("predictions/"):
            np.testing.assert_array_equal(array, kept[name], err_msg=name)
    again = zoo.load(NAME, weights=file, classes=5, seed=1)
    np.testing.assert_array_equal(canonical.arrays(again)["predictions/kernel"], values["predictions/kernel"])


def test_the_files_own_classes_are_taken(tmp_path):
    model = randomize(zoo.load(NAME, weights=None, classes=3))
    keras_h5.write_layers(tmp_path / "three.h5", canonical.to_layers(model))
    assert zoo.load(NAME, weights=str(tmp_path / "three.h5")).output_shape == (None, 3)


def test_a_body_without_classifier(trained, tmp_path):
    body = zoo.load(NAME, weights=None, include_top=False, pooling="avg", preprocess=False)
    randomize(body)
    keras_h5.write_layers(tmp_path / "body.h5", canonical.to_layers(body))
    again = zoo.load(NAME, weights=tmp_path / "body.h5", include_top=False, pooling="avg", preprocess=False)
    x = images(1, 64, 64, 3).astype("float32") / 255
    np.testing.assert_array_equal(again(x), body(x))
    with pytest.raises(CheckpointError, match="Pass include_top=False"):
        zoo.load(NAME, weights=tmp_path / "body.h5")
    assert zoo.load(NAME, weights=tmp_path / "body.h5", classes=6).output_shape == (None, 6)


def test_taps_take_what_they_need_of_a_whole_file(trained, file):
    model = zoo.load(NAME, weights=file, taps=("stage2", "stage3"), preprocess=False)
    x = normalized(trained, images(1, 64, 64, 3))
    expected = keras.Model(trained.input, trained.get_layer("conv3_block1_out").output)(x)
    np.testing.assert_array_equal(model(x)["stage3"], expected)


def test_a_file_of_another_network_is_refused(file):
    with pytest.raises(CheckpointError, match=r"tiny\.h5: .*must have 4 weights"):
        zoo.load("resnet18", weights=file)


def test_safetensors_name_their_network(trained, tmp_path):
    path = tmp_path / "mine.safetensors"
    contract = InputSpec(size=(48, 48), scale=1 / 255, mean=(0.5,) * 3, std=(0.25,) * 3)
    metadata = {
        "architecture": keras.saving.serialize_keras_object(trained.architecture.to_dict()),
        "input_spec": contract.to_dict(),
        "classes": [f"class {n}" for n in range(200)],
    }
    texts = {key: json.dumps(value) for key, value in metadata.items()}
    arrays = {name: array.astype(np.float16) for name, array in canonical.arrays(trained).items()}
    safetensors.write_arrays(path, arrays, texts)
    model = zoo.load(path)
    assert (model.name, model.architecture, model.input_spec) == (NAME, trained.architecture, contract)
    assert model.class_names[3] == "class 3"
    kernel = model.get_layer("conv1_conv").kernel
    assert kernel.dtype == "float32"
    np.testing.assert_array_equal(np.asarray(kernel), arrays["conv1_conv/kernel"].astype(np.float32))
    assert zoo.load(path, classes=3).class_names is None
    assert zoo.load(path, weights=None).input_spec == contract

    safetensors.write_arrays(path, arrays, {})
    with pytest.raises(CheckpointError, match="must say the architecture"):
        zoo.load(path)
    safetensors.write_arrays(path, arrays, {**texts, "architecture": json.dumps({"depths": [1]})})
    with pytest.raises(CheckpointError, match="must be what resfit writes"):
        zoo.load(path)


def test_legacy_files_of_keras_applications_both_ways(tmp_path):
    """Whole model, weights alone, by name and by order, from theirs to ours and back."""
    options = {"include_top": False, "pooling": "avg"}
    theirs = randomize(keras.applications.ResNet50(weights=None, input_shape=(32, 32, 3), **options))
    x = np.random.default_rng(0).normal(0, 60, (1, 32, 32, 3)).astype("float32")
    expected = np.asarray(theirs(x, training=False))

    theirs.save(tmp_path / "whole.h5")
    with h5py.File(tmp_path / "alone.h5", "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, theirs)
    layers = keras_h5.read_layers(tmp_path / "alone.h5")
    keras_h5.write_layers(
        tmp_path / "renamed.h5", [dataclasses.replace(layer, name=f"l_{n}") for n, layer in enumerate(layers)]
    )
    ours = None
    for name in ("whole.h5", "alone.h5", "renamed.h5"):
        ours = zoo.load("resnet50", weights=tmp_path / name, preprocess=False, **options)
        assert relative_error(ours(x, training=False), expected) <= 1e-5, name

    keras_h5.write_layers(tmp_path / "ours.h5", canonical.to_layers(ours))
    for by_name in ({}, {"by_name": True}):
        randomize(theirs, seed=9)
        theirs.load_weights(tmp_path / "ours.h5", **by_name)
        np.testing.assert_array_equal(theirs(x, training=False), expected)


# other channels


def test_one_channel_equals_grey_colours(trained, file):
    """On a grey picture the summed filters see what the three saw, up to the contract's mean statistics."""
    grey = zoo.load(NAME, weights=file, in_channels=1, preprocess=False)
    assert grey.input_shape == (None, None, None, 1)
    assert grey.input_spec.channels == 1
    x = np.random.default_rng(0).normal(size=(2, 64, 64, 1)).astype("float32")
    expected = trained(np.repeat(x, 3, axis=-1), training=False)
    assert relative_error(grey(x, training=False), expected) <= 1e-5


def test_channels_of_a_bgr_network_are_adapted_as_rgb(tmp_path):
    spec = catalog.get("resnet50").spec
    model = zoo.load("resnet50", weights=None, include_top=False, preprocess=False)
    kernel = np.random.default_rng(0).normal(size=(7, 7, 3, 64)).astype("float32")
    model.get_layer("conv1_conv").kernel.assign(kernel)
    keras_h5.write_layers(tmp_path / "bgr.h5", canonical.to_layers(model))
    six = zoo.load("resnet50", weights=tmp_path / "bgr.h5", include_top=False, input_shape=(32, 32, 6))
    assert (spec.in_channels, six.architecture.in_channels, six.input_spec.channel_order) == (3, 6, "rgb")
    adapted = np.asarray(six.get_layer("conv1_conv").kernel)
    np.testing.assert_allclose(adapted[:, :, :3], kernel[:, :, ::-1] / 2, rtol=1e-6)
    np.testing.assert_array_equal(adapted[:, :, 3:], adapted[:, :, :3])


def test_a_file_of_other_channels_says_so(tmp_path):
    model = randomize(zoo.load(NAME, weights=None, in_channels=4))
    keras_h5.write_layers(tmp_path / "four.h5", canonical.to_layers(model))
    again = zoo.load(NAME, weights=tmp_path / "four.h5")
    assert (again.input_shape[-1], again.input_spec.channels) == (4, 4)
    x = images(1, 64, 64, 4)
    np.testing.assert_array_equal(again(x), model(x))
    with pytest.raises(CheckpointError, match="conv1_conv/kernel"):
        zoo.load(NAME, weights=tmp_path / "four.h5", in_channels=2)


# published weights


@pytest.fixture
def published(trained, tmp_path, monkeypatch):
    """A row for the small network whose files lie in Keras' cache, as if Keras had downloaded them."""
    cache = tmp_path / "keras/models"
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setenv(fetch.OFFLINE, "1")
    body = [layer for layer in canonical.to_layers(trained) if layer.name != "predictions"]
    digests = {}
    for name, layers in {"tiny.h5": canonical.to_layers(trained), "tiny_notop.h5": body}.items():
        keras_h5.write_layers(cache / name, layers)
        digests[name] = hashlib.md5((cache / name).read_bytes()).hexdigest()
    row = dataclasses.replace(
        registry.get(NAME),
        source=registry.KERAS,
        url="https://example.org/tiny.h5",
        md5=digests["tiny.h5"],
        url_notop="https://example.org/tiny_notop.h5",
        md5_notop=digests["tiny_notop.h5"],
    )
    monkeypatch.setattr(registry, "rows", lambda: {NAME: row})
    monkeypatch.setattr(registry, "of_architecture", lambda name: (row,) if name == NAME else ())
    return cache


@pytest.mark.parametrize("removed", ["tiny.h5", "tiny_notop.h5"])
def test_published_weights_by_name(trained, published, removed):
    (published / removed).unlink()
    body = zoo.load(NAME, include_top=False)
    np.testing.assert_array_equal(
        np.asarray(body.get_layer("conv5_block1_2_conv").kernel),
        np.asarray(trained.get_layer("conv5_block1_2_conv").kernel),
    )
    assert zoo.load(NAME, classes=9).output_shape == (None, 9)
    if removed == "tiny.h5":
        with pytest.raises(DownloadError, match=r"tiny\.h5 must be at .*keras/models/tiny\.h5"):
            zoo.load(NAME)
    else:
        x = images(1, 64, 64, 3)
        expected = trained(normalized(trained, x), training=False)
        assert relative_error(zoo.load(NAME)(x, training=False), expected) <= 1e-6


def test_names_without_weights_say_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    with pytest.raises(CheckpointError, match="weights=None"):
        zoo.load("preact_resnet20")
    with pytest.raises(CheckpointError, match="by hand"):
        fetch.fetch(registry.get("resnet50.radimagenet"))
    with pytest.raises(CheckpointError, match="Tiny ImageNet"):
        zoo.load(NAME, weights="imagenet")
    with pytest.raises(ArgumentError, match="Did you mean 'imagenet'"):
        zoo.load("resnet50", weights="imagnet")
    with pytest.raises(CheckpointError, match="must exist"):
        zoo.load("resnet50", weights="none.h5")


def test_embedded_weights_if_they_are_there():
    info = registry.get(NAME)
    if not info.loadable:
        with pytest.raises(CheckpointError, match="not in this installation"):
            zoo.load(NAME)
        return
    model = zoo.load(NAME)
    assert model.output_shape == (None, 200)
    assert len(model.class_names) == 200
    assert np.sum(model(images(1, 64, 64, 3))) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"in_channels": 1, "input_shape": (64, 64, 3)}, "must agree"),
        ({"input_shape": (64, 64)}, "input_shape must be"),
        ({"classes": 0}, "classes must be at least 1"),
        ({"in_channels": 0}, "in_channels must be at least 1"),
        ({"include_top": False, "pooling": "sum"}, "pooling"),
        ({"taps": ("stage9",)}, "taps"),
    ],
)
def test_arguments_out_of_range(arguments, text):
    with pytest.raises(ArgumentError, match=text):
        zoo.load(NAME, weights=None, **arguments)


def test_arithmetic_and_list_agree():
    for info in zoo.list_models("resnetv2_*"):
        counted = arithmetic.count(catalog.get(info.name).spec)
        assert (info.parameters, info.gmacs) == (counted.parameters, round(counted.macs / 1e9, 4))
