"""Weights of tensorpack, transformers for TensorFlow, Paddle, and torch's names in other containers."""

from __future__ import annotations

import pickle
import re

import numpy as np
import pytest

from resfit.errors import CheckpointError
from resfit.networks.build import build
from resfit.networks.spec import ArchitectureSpec, StemConv
from resfit.weights import canonical
from resfit.weights.conventions import pytorch
from resfit.weights.formats import keras_h5
from resfit.weights.load import load_source, read_source
from tests.numeric import randomize, relative_error
from tests.weights import pickles

SPEC = ArchitectureSpec(
    depths=(2, 1),
    widths=(16, 24),
    inner_widths=(4, 6),
    block="bottleneck",
    stem=(StemConv(8, 7, 2),),
    stage_strides=(1, 2),
    classes=24,  # as wide as the features, so that only the convention tells how the classifier's kernel lies
)


@pytest.fixture(scope="module")
def network():
    return randomize(build(SPEC))


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).normal(size=(1, 57, 64, 3)).astype(np.float32)


def renamed(network, layer, leaves):
    found = {}
    for name, array in canonical.arrays(network).items():
        own, _, leaf = name.partition("/")
        found[f"{layer(own)}{leaves[leaf]}"] = array
    return found


def outputs(path, image, **reading):
    return load_source(path, preprocess=False, **reading)(image, training=False)


def tensorpack_layer(name: str) -> str:
    plain = {"conv1_conv": "conv0/", "conv1_bn": "conv0/bn/", "predictions": "linear/"}
    if name in plain:
        return plain[name]
    stage, block, number, kind = re.fullmatch(r"conv(\d)_block(\d)_(\d)_(conv|bn)", name).groups()
    part = "shortcut" if number == "0" else number
    return f"group{int(stage) - 2}/block{int(block) - 1}/conv{part}/{'bn/' if kind == 'bn' else ''}"


PACK = {"kernel": "W", "bias": "b", "gamma": "gamma", "beta": "beta"}
PACK |= {"moving_mean": "mean/EMA", "moving_variance": "variance/EMA"}


@pytest.mark.parametrize("ending", ["", ":0"])
def test_tensorpack(network, image, ending, tmp_path):
    """The same weights with TensorFlow's padding, and a contract in BGR."""
    arrays = renamed(network, tensorpack_layer, PACK)
    of_training = {"global_step": np.int64(9), "learning_rate": np.float32(0.1), "EMA/cost/biased": np.float32(1)}
    np.savez(tmp_path / "a.npz", **{f"{name}{ending}": array for name, array in {**arrays, **of_training}.items()})
    read = read_source(tmp_path / "a.npz")
    assert read.convention == "tensorpack"
    assert read.input_spec.channel_order == "bgr"
    assert read.input_spec.mean == (0.406, 0.456, 0.485)
    assert read.input_spec.interpolation == "bicubic"  # ResizeShortestEdge(256, cv2.INTER_CUBIC)
    assert any("tensorpack's" in text and "input_spec= changes it" in text for text in read.assumptions)
    assert any("padding='same'" in text and "as tensorpack does" in text for text in read.assumptions)
    same = build(SPEC.replace(padding="same", stem_pool_padding="same"))
    canonical.fill(same, canonical.arrays(network))
    assert relative_error(outputs(tmp_path / "a.npz", image), same(image, training=False)) < 1e-5


def hugging_layer(name: str) -> str:
    top = "tf_res_net_for_image_classification/"
    plain = {
        "conv1_conv": f"{top}resnet/embedder/embedder/convolution/",
        "conv1_bn": f"{top}resnet/embedder/embedder/normalization/",
        "predictions": f"{top}classifier.1/",
    }
    if name in plain:
        return plain[name]
    stage, block, number, kind = re.fullmatch(r"conv(\d)_block(\d)_(\d)_(conv|bn)", name).groups()
    part = "shortcut" if number == "0" else f"layer.{int(number) - 1}"
    where = f"{top}resnet/encoder/stages.{int(stage) - 2}/layers.{int(block) - 1}/{part}/"
    return where + ("convolution/" if kind == "conv" else "normalization/")


def test_transformers_for_tensorflow(network, image, tmp_path):
    """``tf_model.h5``: layers of a subclassed model, in two groups of Keras' legacy format."""
    arrays = renamed(network, hugging_layer, {leaf: f"{leaf}:0" for leaf in PACK})
    layers = [
        keras_h5.H5Layer(group, tuple(names), tuple(arrays[name] for name in names))
        for group in ("resnet", "classifier")
        for names in [[name for name in arrays if ("/resnet/" in name) == (group == "resnet")]]
    ]
    keras_h5.write_layers(tmp_path / "tf_model.h5", layers)
    assert relative_error(outputs(tmp_path / "tf_model.h5", image), network(image, training=False)) < 1e-5
    told = read_source(tmp_path / "tf_model.h5").assumptions
    assert any("first version for TensorFlow padded with 'same'" in text and "padding= or" in text for text in told)
    same = build(SPEC.replace(padding="same", stem_pool_padding="same"))
    canonical.fill(same, canonical.arrays(network))
    older = outputs(tmp_path / "tf_model.h5", image, padding="same", stem_pool_padding="same")
    assert relative_error(older, same(image, training=False)) < 1e-5


@pytest.mark.parametrize("ending", ["npz", "pkl"])
def test_names_of_torch_in_other_containers(network, image, ending, tmp_path):
    arrays = {f"model.{name}": array for name, array in pytorch.to_torch(network).items()}
    path = tmp_path / f"weights.{ending}"
    if ending == "npz":
        counters = sum(array.dtype == np.int64 for array in arrays.values())
        assert counters > 0
        np.savez(path, **arrays, epoch=3, classes=np.array(["cat", "dog"]))
        told = f"left out what is no floating-point number: {counters + 2} arrays"
        assert any(told in text for text in read_source(path).assumptions)
    else:
        path.write_bytes(pickle.dumps({"state_dict": arrays, "epoch": 3}))
    assert relative_error(outputs(path, image), network(image, training=False)) < 1e-5


def test_paddle(network, image, tmp_path):
    """Paddle's statistics have names of their own, and its dense layers lie the other way round than torch's."""
    arrays = {}
    for name, array in pytorch.to_torch(network).items():
        if "num_batches" in name:
            continue
        own = name.replace("running_mean", "_mean").replace("running_var", "_variance")
        arrays[own] = array.T if name == "fc.weight" else array
    content = {**arrays, "StructuredToParameterName@@": {name: f"p_{number}" for number, name in enumerate(arrays)}}
    (tmp_path / "a.pdparams").write_bytes(pickle.dumps(content, protocol=4))
    assert relative_error(outputs(tmp_path / "a.pdparams", image), network(image, training=False)) < 1e-5


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("stage1_unit1_conv1/kernel", r"classification_models \(qubvel\)"),
        ("params/BottleneckResNetBlock_0/Conv_0/kernel", "Flax's examples"),
        ("res2_0_branch2a_w", "Caffe2"),
    ],
)
def test_known_networks_that_are_not_read_are_named(name, told, tmp_path):
    np.savez(tmp_path / "a.npz", **{name: np.ones((3, 3, 4, 4), np.float32)})
    with pytest.raises(CheckpointError, match=told):
        read_source(tmp_path / "a.npz")


def test_msgpack_is_named(tmp_path):
    (tmp_path / "flax_model.msgpack").write_bytes(b"\x81")
    with pytest.raises(CheckpointError, match=r"Flax \(JAX\).*save_pretrained"):
        read_source(tmp_path / "flax_model.msgpack")


# several networks in one file, in every format


def test_two_networks_in_tensorpacks_npz(network, image, tmp_path):
    arrays = renamed(network, tensorpack_layer, PACK)
    both = {
        f"{place}/{name}": array * scale for place, scale in (("rgb", 1), ("flow", 2)) for name, array in arrays.items()
    }
    np.savez(tmp_path / "a.npz", **both)
    with pytest.raises(CheckpointError, match=r"networks under \('flow/', 'rgb/'\)\. Pass prefix="):
        read_source(tmp_path / "a.npz")
    for place, scale in (("rgb", 1), ("flow/", 2)):
        read = read_source(tmp_path / "a.npz", prefix=place)
        np.testing.assert_array_equal(read.arrays["conv1_conv/kernel"], arrays["conv0/W"] * scale)
        assert any("left out what stands elsewhere" in text for text in read.assumptions)
    with pytest.raises(CheckpointError, match=r"prefix must be one of \('flow/', 'rgb/'\)"):
        read_source(tmp_path / "a.npz", prefix="depth")


def test_two_networks_in_a_legacy_keras_file(network, tmp_path):
    layers = [
        keras_h5.H5Layer(
            place,
            tuple(f"{name}:0" for name in canonical.arrays(network)),
            tuple(array * scale for array in canonical.arrays(network).values()),
        )
        for place, scale in (("left", 1), ("right", 2))
    ]
    keras_h5.write_layers(tmp_path / "a.h5", layers)
    with pytest.raises(CheckpointError, match=r"networks under \('left/', 'right/'\)\. Pass prefix="):
        read_source(tmp_path / "a.h5")
    read = read_source(tmp_path / "a.h5", prefix="right")
    np.testing.assert_array_equal(read.arrays["conv1_conv/kernel"], canonical.arrays(network)["conv1_conv/kernel"] * 2)


def test_running_averages_of_tensorflow_and_haiku(network, tmp_path):
    plain = renamed(network, tensorpack_layer, PACK)
    averages = {f"{name}/ExponentialMovingAverage": array + 1 for name, array in plain.items() if name.endswith("/W")}
    np.savez(tmp_path / "a.npz", **plain, **averages)
    taken = read_source(tmp_path / "a.npz", averaged=True).arrays["conv1_conv/kernel"]
    np.testing.assert_array_equal(taken, plain["conv0/W"] + 1)
    np.testing.assert_array_equal(read_source(tmp_path / "a.npz").arrays["conv1_conv/kernel"], plain["conv0/W"])

    params, state = pickles.haiku_state((1,), (16,), bottleneck=False, classes=0)
    other = {name: {leaf: array + 1 for leaf, array in leaves.items()} for name, leaves in params.items()}
    content = {"online_params": params, "target_params": other, "online_state": state, "target_state": state}
    (tmp_path / "byol.pkl").write_bytes(pickle.dumps({"experiment_state": content}))
    first = params[f"{pickles.NET}/~/initial_conv"]["w"]
    for averaged, expected in ((False, first), (True, first + 1)):
        read = read_source(tmp_path / "byol.pkl", averaged=averaged)
        np.testing.assert_array_equal(read.arrays["conv1_conv/kernel"], expected)


def test_two_networks_of_haiku(tmp_path):
    params, state = pickles.haiku_state((1,), (16,), bottleneck=False, classes=0)
    content = {
        name: {"params": {k: {leaf: a * scale for leaf, a in v.items()} for k, v in params.items()}, "state": state}
        for name, scale in (("left", 1), ("right", 2))
    }
    (tmp_path / "two.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(CheckpointError, match=r"left/params/res_net50, right/params/res_net50"):
        read_source(tmp_path / "two.pkl")
    read = read_source(tmp_path / "two.pkl", prefix="right/params/res_net50", ignore=("left/*",))
    expected = params[f"{pickles.NET}/~/initial_conv"]["w"] * 2
    np.testing.assert_array_equal(read.arrays["conv1_conv/kernel"], expected)
