"""Graphs of TensorFlow: what they state is computed, or they are refused by the first operation that does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from resfit.errors import CheckpointError
from resfit.networks import catalog
from resfit.networks.build import build
from resfit.weights import load
from resfit.weights.formats import graph_def
from tests import fuzzing
from tests.numeric import relative_error
from tests.weights.keras_networks import cifar, images, randomize, small
from tests.weights.test_identify import BOTTLENECK

LIMIT = 1e-4
layers = keras.layers


def exported(model: Any, path: Path) -> Path:
    """Keras' own way to a SavedModel."""
    model.export(path, verbose=False)
    return path


def saved(model: Any, path: Path) -> Path:
    """A module without signatures, whose call is a function."""
    module = tf.Module()
    module.network = model
    shape = tf.TensorSpec(model.input_shape, tf.float32)
    module.__call__ = tf.function(lambda x: model(x, training=False), input_signature=[shape])
    tf.saved_model.save(module, str(path))
    return path


def frozen(model: Any, path: Path) -> Path:
    """A graph whose variables became constants."""
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    function = tf.function(lambda x: model(x, training=False)).get_concrete_function(
        tf.TensorSpec(model.input_shape, tf.float32)
    )
    path = path.with_suffix(".pb")
    path.write_bytes(convert_variables_to_constants_v2(function).graph.as_graph_def().SerializeToString())
    return path


WAYS = {"exported": exported, "saved": saved, "frozen": frozen}


def compared(model: Any, path: Path, x: np.ndarray, *, first: bool = False, **options: Any) -> keras.Model:
    """Loads a network and compares what it makes of images with what TensorFlow makes of them."""
    found = load.load_source(path, **{"preprocess": False, "include_top": True, **options})
    received = found(x.transpose(0, 2, 3, 1) if first else x, training=False)
    assert relative_error(np.asarray(received), np.asarray(model(x, training=False))) < LIMIT
    return found


@pytest.mark.parametrize(("version", "way"), [(1, "exported"), (2, "saved"), (2, "frozen")])
def test_networks_whose_layers_are_only_numbered(version, way, tmp_path):
    model = cifar(keras, version)
    found = compared(model, WAYS[way](model, tmp_path / "net"), images())
    spec = found.architecture
    assert (spec.depths, spec.preactivation, spec.conv_bias) == ((1, 1, 1), version == 2, "all")
    assert spec.norm == "batch"
    assert found.layers[-1].activation.__name__ == "softmax"


def head(last):
    return lambda x: layers.Dense(3, last)(layers.GlobalAveragePooling2D()(x))


KINDS: dict[str, tuple[Any, int | None, dict[str, Any]]] = {
    "sigmoid": ({"head": head("sigmoid")}, 16, {}),
    "logits of any size": ({"side": None}, 16, {"padding": "same"}),
    "padding by a layer": ({"pad": "explicit", "side": 15}, 15, {"padding": "symmetric"}),
    "odd maps": ({"side": 15}, 15, {"padding": "same"}),
    "relu6": ({"act": lambda: layers.ReLU(6.0)}, 16, {"activation": "relu6"}),
    "leaky": ({"act": lambda: layers.LeakyReLU(negative_slope=0.1)}, 16, {"activation_slope": 0.1}),
    "swish": ({"act": lambda: layers.Activation("swish")}, 16, {"activation": "silu"}),
    "elu": ({"act": lambda: layers.ELU()}, 16, {"activation": "elu"}),
    "max pooling": ({"stem": lambda x: layers.MaxPooling2D(3, 2, padding="same")(x)}, 16, {"stem_pool": "max"}),
    "padded max pooling": (
        {"stem": lambda x: layers.MaxPooling2D(3, 2)(layers.ZeroPadding2D()(x))},
        16,
        {"stem_pool_padding": "zero"},
    ),
    "average pooling": ({"stem": lambda x: layers.AveragePooling2D(2)(x)}, 16, {"stem_pool": "avg"}),
    "no norms": ({"norm": lambda: layers.Identity(), "conv": {"use_bias": True}}, 16, {"norm": "none"}),
    "norms without scale": ({"norm": lambda: layers.BatchNormalization(scale=False)}, 16, {"norm": "batch"}),
    "norms without centre": ({"norm": lambda: layers.BatchNormalization(center=False)}, 16, {"norm": "batch"}),
    "bare norms": ({"norm": lambda: layers.BatchNormalization(center=False, scale=False)}, 16, {"norm": "batch"}),
    "flattened": ({"head": lambda x: layers.Dense(3)(layers.Flatten()(layers.AveragePooling2D(8)(x)))}, 16, {}),
    "mean as an operation": ({"head": lambda x: layers.Dense(3)(keras.ops.mean(x, (1, 2)))}, 16, {}),
}


OFTEN = ("sigmoid", "padded max pooling", "norms without centre", "logits of any size")


@pytest.mark.parametrize(
    "name", [name if name in OFTEN else pytest.param(name, marks=pytest.mark.slow) for name in KINDS]
)
def test_what_a_saved_model_states_is_computed(name, tmp_path):
    options, side, told = KINDS[name]
    model = small(keras, **options)
    found = compared(model, exported(model, tmp_path / "net"), images(side))
    assert {field: getattr(found.architecture, field) for field in told} == told


@pytest.mark.parametrize("name", ["leaky", "swish", "odd maps", "mean as an operation", "max pooling", "no norms"])
def test_what_a_frozen_graph_states_is_computed(name, tmp_path):
    options, side, told = KINDS[name]
    model = small(keras, **options)
    found = compared(model, frozen(model, tmp_path / "net"), images(side))
    assert {field: getattr(found.architecture, field) for field in told} == told


@pytest.mark.parametrize("way", ["saved", "frozen"])
def test_images_that_the_graph_normalises(way, tmp_path):
    model = small(keras, before=lambda x: layers.Rescaling(2.0, -1.0)(x[..., ::-1]))
    path = WAYS[way](model, tmp_path / "net")
    found = load.load_source(path)
    contract = found.input_spec
    assert (contract.channel_order, contract.mean) == ("bgr", (1.0, 1.0, 1.0))
    assert contract.scale == pytest.approx(1 / 127.5)
    raw = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3)).astype("float32")
    assert relative_error(found(raw), model(raw / 255)) < LIMIT
    assert any("from values of 0..1" in text and "input_spec= changes it" in text for text in found.assumptions)


REFUSED = {
    "global maximum": ({"head": lambda x: layers.Dense(3)(layers.GlobalMaxPooling2D()(x))}, "a global maximum"),
    "hidden layer": (
        {"head": lambda x: layers.Dense(3)(layers.Dense(5, "relu")(layers.GlobalAveragePooling2D()(x)))},
        "behind the last block there is a global average, a classifier and nothing else",
    ),
    "two outputs": ({"head": lambda x: [head("softmax")(x), head("sigmoid")(x)]}, "the head does not fit"),
    "layer norm": (
        {"head": lambda x: layers.Dense(3)(layers.LayerNormalization()(layers.GlobalAveragePooling2D()(x)))},
        "must go over height and width",
    ),
    "sum of vectors": ({"head": lambda x: summed(layers.GlobalAveragePooling2D()(x))}, "the head does not fit"),
}


def summed(x):
    """A block of a transformer's kind, on vectors."""
    return layers.Dense(3)(x + layers.Dense(x.shape[-1])(layers.LayerNormalization()(x)))


@pytest.mark.parametrize(
    ("name", "way"),
    [
        *(("global maximum", "frozen"), ("hidden layer", "saved"), ("two outputs", "exported")),
        *(("two outputs", "frozen"), ("layer norm", "frozen"), ("sum of vectors", "exported")),
    ],
)
def test_a_head_that_does_not_fit_is_refused_by_name_and_the_body_is_read(name, way, tmp_path):
    options, reason = REFUSED[name]
    model = small(keras, **options)
    path = WAYS[way](model, tmp_path / "net")
    with pytest.raises(CheckpointError, match=reason):
        load.load_source(path)
    body = load.load_source(path, include_top=False, preprocess=False)
    last = keras.Model(model.inputs, next(one for one in reversed(model.layers) if len(one.output.shape) == 4).output)
    assert relative_error(body(images()), last(images())) < LIMIT


@pytest.mark.parametrize("way", [pytest.param("exported", marks=pytest.mark.slow), "frozen"])
@pytest.mark.parametrize(
    "field", [{"output_stride": 16}, {"attention": "se", "attention_sizes": (3, 4, 5)}, {"groups": 4}]
)
def test_networks_of_other_kinds(field, way, tmp_path):
    spec = BOTTLENECK.replace(depths=(1, 1, 1), in_channels=3, stem_pool_padding="same", padding="same", **field)
    if "output_stride" in field:
        spec = spec.replace(
            depths=(1, 1, 1, 2), widths=(8, 12, 16, 20), inner_widths=(4, 4, 4, 4), stage_strides=(1, 2, 2, 2)
        )
    model = randomize(build(spec, input_shape=(64, 64, 3), preprocess=False))
    found = compared(model, WAYS[way](model, tmp_path / "net"), images(64))
    assert {key: getattr(found.architecture, key) for key in field} == field


def test_a_body_that_does_not_fit_is_refused_by_its_first_operation(tmp_path):
    def odd(x):
        y = layers.Conv2D(8, 3, padding="same")(x)
        return layers.Add()([x, layers.Activation("relu")(y), y])

    model = small(keras, stem=odd)
    with pytest.raises(CheckpointError, match=r"first operation that does not fit is Relu '"):
        load.read_source(exported(model, tmp_path / "net"))


def test_a_training_norm_is_refused(tmp_path):
    model = small(keras)
    module = tf.Module()
    module.network = model
    shape = tf.TensorSpec(model.input_shape, tf.float32)
    module.__call__ = tf.function(lambda x: model(x, training=True), input_signature=[shape])
    tf.saved_model.save(module, str(tmp_path / "net"))
    with pytest.raises(CheckpointError, match=r"does not fit|as it is used"):
        load.read_source(tmp_path / "net")


def test_outputs_on_the_way_to_the_last_are_listed(tmp_path):
    model = small(keras)
    pooled = next(one for one in model.layers if "pooling" in one.name).output
    both = keras.Model(model.inputs, {"features": pooled, "logits": model.output})
    found = compared(model, exported(both, tmp_path / "net"), images())
    assert any("of 2 outputs the last is read" in text for text in found.assumptions)


def test_a_model_inside_another_and_tf_keras(tmp_path):
    library = pytest.importorskip("tf_keras")
    inner = small(library, head=lambda x: library.layers.GlobalAveragePooling2D()(x))
    inputs = library.Input((16, 16, 3))
    model = library.Model(inputs, library.layers.Dense(3, "softmax")(inner(inputs)))
    model.save(tmp_path / "net", save_format="tf")
    found = compared(model, tmp_path / "net", images())
    assert found.architecture.norm == "batch"


def test_a_graph_whose_names_are_known_agrees_with_them(tmp_path):
    model = build(catalog.get("resnet50").spec.replace(depths=(1, 1, 1, 1), classes=5), input_shape=(64, 64, 3))
    x = np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype("float32")
    found = compared(model, exported(model, tmp_path / "net"), x)
    assert found.architecture.norm_epsilon == pytest.approx(1.001e-5)
    assert found.architecture.stride_in_block == "first"


# Damaged files.


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("graphs")
    model = small(keras, side=16)
    return [exported(model, folder / "net"), frozen(model, folder / "net")]


@pytest.mark.parametrize(("count", "seed"), [(150, 0), pytest.param(50_000, 1, marks=pytest.mark.slow)])
def test_damaged_graphs_are_refused_or_read(count, seed, sources, tmp_path):
    # the variables' own files are damaged elsewhere; here it is the graph alone
    result = fuzzing.survive("tests.weights.reading:graph", sources, tmp_path, count=count, seed=seed)
    assert result["read"] + result["refused"] == count
    assert result["refused"] > count / 5


def test_a_constant_that_claims_much_is_refused():
    reader = graph_def._Reader()
    dimension = b"\x12\x06\x12\x04\x08\x80\x80\x40"  # one axis of 2**20
    with pytest.raises(ValueError, match="a constant of shape"):
        reader.tensor(memoryview(b"\x08\x01" + b"\x12\x0c" + b"\x12\x04\x08\x80\x80\x40" * 2 + dimension[:0]))


def test_functions_that_call_each_other_are_refused():
    def text(number, value):
        return bytes([number << 3 | 2, len(value)]) + value

    call = text(1, b"n") + text(2, b"f")
    function = (
        text(1, text(1, b"f") + text(3, text(1, b"o"))) + text(3, call) + text(4, text(1, b"o") + text(2, b"n:o:0"))
    )
    graph = text(1, text(1, b"n") + text(2, b"f")) + text(2, text(1, function))
    with pytest.raises(ValueError, match="deep"):
        graph_def._Reader().frozen(memoryview(graph))
