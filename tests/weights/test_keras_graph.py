"""Whole Keras models: what they state is computed, or they are refused by the first layer that does not fit."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import resfit
from resfit.errors import ArgumentError, CheckpointError, ResfitError
from resfit.networks import catalog
from resfit.networks.build import build
from resfit.weights import load
from resfit.weights.conventions import keras as keras_namings
from tests.contract.test_catalog import reduced
from tests.numeric import relative_error
from tests.weights.keras_networks import cifar, images, randomize, small

LIMIT = 1e-4
layers = keras.layers


def compared(model: Any, path: Path, x: np.ndarray, *, first: bool = False, **options: Any) -> keras.Model:
    """Writes a model, loads it anew and compares what both make of images."""
    model.save(path)
    found = resfit.load(path, **{"preprocess": False, "include_top": True, **options})
    expected = model(x, training=False)
    received = found(x.transpose(0, 2, 3, 1) if first else x, training=False)
    expected, received = (value if isinstance(value, (list, tuple)) else [value] for value in (expected, received))
    assert len(expected) == len(received)
    for ours, theirs in zip(received, expected, strict=True):
        assert relative_error(np.asarray(ours), np.asarray(theirs)) < LIMIT
    return found


@pytest.mark.parametrize("form", ["net.keras", "net.h5"])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("library", ["keras", "tf_keras"])
def test_networks_of_three_stages_whose_layers_are_only_numbered(library, version, form, tmp_path):
    written_by = pytest.importorskip(library)
    model = compared(cifar(written_by, version, blocks=2), tmp_path / form, images())
    spec = model.architecture
    assert (spec.depths, spec.preactivation, spec.conv_bias) == ((2, 2, 2), version == 2, "all")
    assert (spec.shortcut_norm, spec.shortcut_input) == ((False, "preactivated") if version == 1 else (True, "raw"))
    assert (spec.stem_activation, spec.first_preactivation) == (version == 2, version == 1)


@pytest.mark.parametrize("version", [1, 2])
def test_weights_alone_of_numbered_layers_say_to_save_the_model(version, tmp_path):
    cifar(keras, version, blocks=2).save_weights(tmp_path / "net.weights.h5")
    with pytest.raises(CheckpointError, match=r"do not state how layers .* are connected\. Save the whole model"):
        resfit.load(tmp_path / "net.weights.h5")


POOLS = {
    "max 3 same": (lambda: layers.MaxPooling2D(3, 2, padding="same"), 16, {"stem_pool_padding": "same"}),
    "max 3 valid": (lambda: layers.MaxPooling2D(3, 2), 15, {"stem_pool_padding": "valid"}),
    "max 2": (lambda: layers.MaxPooling2D(), 16, {"stem_pool_size": 2}),
    "max 2 same, odd": (
        lambda: layers.MaxPooling2D(padding="same"),
        15,
        {"stem_pool_size": 2, "stem_pool_padding": "same"},
    ),
    "average 2": (lambda: layers.AveragePooling2D(2), 16, {"stem_pool": "avg", "stem_pool_size": None}),
    "average 3": (lambda: layers.AveragePooling2D(3, 2), 16, {"stem_pool": "avg", "stem_pool_size": 3}),
    "average 3 same": (
        lambda: layers.AveragePooling2D(3, 2, padding="same"),
        16,
        {"stem_pool": "avg", "stem_pool_padding": "same"},
    ),
    "average 2 same, any size": (lambda: layers.AveragePooling2D(2, padding="same"), None, {"stem_pool": "avg"}),
}


@pytest.mark.parametrize("name", POOLS)
def test_the_pooling_of_the_stem(name, tmp_path):
    make, side, told = POOLS[name]
    model = compared(small(keras, side=side, stem=lambda x: make()(x)), tmp_path / "net.keras", images(side or 15))
    assert {field: getattr(model.architecture, field) for field in told} == told


ACTIVATIONS = {
    "relu6": lambda: layers.ReLU(6.0),
    "relu6 by name": lambda: layers.Activation("relu6"),
    "swish": lambda: layers.Activation("swish"),
    "leaky": lambda: layers.LeakyReLU(),
    "leaky 0.1": lambda: layers.LeakyReLU(negative_slope=0.1),
    "leaky by relu": lambda: layers.ReLU(negative_slope=0.05),
    "leaky by name": lambda: layers.Activation("leaky_relu"),
    "elu": lambda: layers.ELU(),
    "tanh": lambda: layers.Activation("tanh"),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_and_their_slopes(name, tmp_path):
    compared(
        small(keras, act=ACTIVATIONS[name], stem=lambda x: layers.MaxPooling2D(3, 2, padding="same")(x)),
        tmp_path / "net.keras",
        images(),
    )


def test_activations_inside_layers(tmp_path):
    model = small(
        keras, conv={"use_bias": True}, head=lambda x: layers.Dense(3, "sigmoid")(layers.GlobalAveragePooling2D()(x))
    )
    assert compared(model, tmp_path / "net.h5", images()).layers[-1].activation.__name__ == "sigmoid"


NORMS = {
    "center alone": (lambda: layers.BatchNormalization(scale=False), {}),
    "scale alone": (lambda: layers.BatchNormalization(center=False, epsilon=0.02), {"norm_epsilon": 0.02}),
    "neither": (lambda: layers.BatchNormalization(center=False, scale=False), {}),
    "groups": (lambda: layers.GroupNormalization(4, epsilon=1e-4), {"norm": "group", "norm_groups": 4}),
    "none": (lambda: layers.Identity(), {"norm": "none"}),
}


@pytest.mark.parametrize("name", NORMS)
def test_norms(name, tmp_path):
    make, told = NORMS[name]
    model = compared(small(keras, norm=make, conv={"use_bias": True}), tmp_path / "net.h5", images())
    assert {field: getattr(model.architecture, field) for field in told} == told


def test_epsilons_that_differ_go_into_the_statistics(tmp_path):
    epsilons = iter([1e-3, 1e-3, 1e-5, 1e-3, 1e-3, 0.1, 1e-3, 1e-3])
    compared(small(keras, norm=lambda: layers.BatchNormalization(epsilon=next(epsilons))), tmp_path / "n.h5", images())


@pytest.mark.parametrize("side", [16, 15, None])
@pytest.mark.parametrize("pad", ["same", "explicit"])
def test_padding_is_as_it_is_stated(pad, side, tmp_path):
    model = compared(small(keras, side=side, pad=pad), tmp_path / "net.keras", images(side or 18))
    assert model.architecture.padding == ("same" if pad == "same" else "symmetric")
    other = images(20)  # and for images of another size
    if side is None:
        assert relative_error(model(other), keras.models.load_model(tmp_path / "net.keras")(other)) < LIMIT


def test_channels_first(tmp_path):
    """Which Keras on a CPU cannot run; the same weights with the channels last say what is right."""
    model, expected = small(keras, first=True), small(keras)
    expected.set_weights(model.get_weights())
    model.save(tmp_path / "net.keras")
    found = resfit.load(tmp_path / "net.keras", preprocess=False, include_top=True)
    assert relative_error(found(images()), expected(images())) < LIMIT


REFUSED = {
    "dilation": ({"conv": {"dilation_rate": 2}}, r"layer 'conv2d\w*' \(Conv2D\): dilation 2"),
    "padding twice": ({"before": lambda x: layers.ZeroPadding2D(2)(x)}, r"layer 'zero_padding2d\w*' \(ZeroPadding2D\)"),
    "PReLU": ({"act": layers.PReLU}, r"layer 'p_re_lu\w*' \(PReLU\): no residual network has it"),
    "two slopes": (None, r"a slope of 0.2 below zero, where the first has 0.3"),
    "layer norm": ({"norm": layers.LayerNormalization}, r"\(LayerNormalization\): no residual network has it"),
    "pool of 8": ({"stem": lambda x: layers.MaxPooling2D(8, 2, padding="same")(x)}, "square window of 2 to 7"),
    "pool of stride 3": ({"stem": lambda x: layers.MaxPooling2D(3, 3, padding="same")(x)}, r"max_pooling2d"),
    "resizing": (
        {"before": lambda x: layers.Resizing(12, 12)(x), "side": 20},
        r"\(Resizing\): it makes images of 12x12",
    ),
    "lambda": (
        {"before": lambda x: layers.Lambda(lambda y: y * 2, output_shape=lambda shape: shape)(x)},
        r"\(Lambda\): code of the file, which is never run",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_named(name, tmp_path):
    options, text = REFUSED[name]
    if options is None:
        slopes = iter([0.3, 0.3, 0.3, 0.2, 0.2])
        options = {"act": lambda: layers.LeakyReLU(negative_slope=next(slopes))}
    small(keras, **options).save(tmp_path / "net.keras")
    for include_top in (True, False):
        with pytest.raises(CheckpointError, match=text):
            resfit.load(tmp_path / "net.keras", include_top=include_top)


def test_a_use_as_in_training_is_refused(tmp_path):
    inputs = keras.Input((16, 16, 3))
    model = small(keras, before=lambda x: layers.BatchNormalization()(x, training=True))
    model.save(tmp_path / "net.keras")
    with pytest.raises(CheckpointError, match="it is used as in training"):
        resfit.load(tmp_path / "net.keras", include_top=True)
    assert inputs is not None


# What images go through first.


BEFORE = {
    "rescaling": (lambda x: layers.Rescaling(1 / 127.5, offset=-1)(x), 255),
    "three offsets": (lambda x: layers.Rescaling([0.01, 0.02, 0.03], offset=[-1.0, 0.0, 0.5])(x), 255),
    "normalization": (lambda x: layers.Normalization(mean=[100.0, 110.0, 120.0], variance=[30.0**2] * 3)(x), 255),
    "augmented": (lambda x: layers.Rescaling(1 / 255)(layers.RandomRotation(0.1)(layers.RandomFlip()(x))), 255),
    "operations": (lambda x: (x[..., ::-1] - np.array([103.9, 116.8, 123.7], "float32")) / 58.0, 255),
    "applications": (lambda x: keras.applications.resnet.preprocess_input(x), 255),
    "0 to 1": (lambda x: layers.Normalization(mean=[0.4, 0.5, 0.6], variance=[0.04] * 3)(x), 1),
}


@pytest.mark.parametrize("name", BEFORE)
def test_what_images_go_through_first(name, tmp_path):
    before, most = BEFORE[name]
    model = small(keras, before=before)
    model.save(tmp_path / "net.keras")
    pictures = np.random.default_rng(1).integers(0, 256, (2, 16, 16, 3)).astype("float32")
    found = resfit.load(tmp_path / "net.keras", include_top=True)
    assert relative_error(found(pictures), model(pictures * (most / 255), training=False)) < LIMIT


# Models inside models.


@pytest.mark.parametrize("form", ["net.keras", "net.h5"])
@pytest.mark.parametrize("library", ["keras", "tf_keras"])
def test_a_network_inside_models_inside_models(library, form, tmp_path):
    written_by = pytest.importorskip(library)
    theirs = written_by.layers
    base = small(written_by, head=lambda x: x)
    base.trainable = False
    inner = written_by.Sequential([theirs.Input((16, 16, 3)), theirs.Rescaling(0.01, offset=0.1), base])
    inputs = theirs.Input((16, 16, 3))
    x = theirs.Dropout(0.3)(theirs.GlobalAveragePooling2D()(inner(inputs, training=False)))
    model = written_by.Model(inputs, theirs.Dense(3, activation="softmax", name="mine")(x))
    model.compile("adam", "categorical_crossentropy")
    model.save(tmp_path / form)
    x = images() * 100
    found = resfit.load(tmp_path / form, include_top=True)
    contract = found.input_spec
    assert (contract.scale, *contract.mean) == pytest.approx((0.01, -0.1, -0.1, -0.1))
    assert relative_error(found(x), model(x, training=False)) < LIMIT
    assert any("left out dropout" in text for text in found.assumptions)


def test_layers_that_are_used_twice(tmp_path):
    shared = layers.Conv2D(8, 3, padding="same")
    inputs = keras.Input((16, 16, 3))
    x = layers.ReLU()(layers.Conv2D(8, 3, padding="same")(inputs))
    for _ in range(2):
        y = layers.Conv2D(8, 3, padding="same")(layers.ReLU()(shared(x)))
        x = layers.ReLU()(layers.Add()([x, y]))
    model = keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))
    found = compared(model, tmp_path / "net.keras", images())
    assert any("several times have a copy for each use: 'conv2d" in text for text in found.assumptions)


def test_an_identity_that_passes_on_what_was_activated_is_refused(tmp_path):
    """With pre-activation, blocks here pass on their input as it is."""
    inputs = keras.Input((16, 16, 3))
    x = layers.Conv2D(8, 3, padding="same")(inputs)
    for _ in range(3):
        x = layers.ReLU()(layers.BatchNormalization()(x))
        y = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same")(x)))
        x = layers.Add()([x, layers.Conv2D(8, 3, padding="same")(y)])
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(layers.BatchNormalization()(x)))
    keras.Model(inputs, layers.Dense(3)(x)).save(tmp_path / "net.keras")
    with pytest.raises(CheckpointError, match="an identity must pass the block's input on"):
        resfit.load(tmp_path / "net.keras", include_top=True)


@pytest.mark.parametrize("first", ["pooled", "own norm", "neither"])
def test_an_activated_stem_before_pre_activated_blocks(first, tmp_path):
    inputs = keras.Input((16, 16, 3))
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same")(inputs)))
    x = x if first == "own norm" else layers.MaxPooling2D(3, 2, padding="same")(x)
    for number in range(2):
        y = x if first == "neither" and not number else layers.ReLU()(layers.BatchNormalization()(x))
        y = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same", use_bias=False)(y)))
        x = layers.Add()([x, layers.Conv2D(8, 3, padding="same", use_bias=False)(y)])
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(layers.BatchNormalization()(x)))
    model = compared(randomize(keras.Model(inputs, layers.Dense(3)(x))), tmp_path / "net.keras", images())
    spec = model.architecture
    assert spec.stem_activation
    assert spec.first_preactivation == (first != "neither")


# Heads.


def _hidden(x):
    x = layers.Dropout(0.5)(layers.BatchNormalization()(layers.Dense(6, activation="relu")(layers.Flatten()(x))))
    return layers.Dense(3, activation="softmax", name="predictions")(x)


def _two(x):
    x = layers.GlobalAveragePooling2D()(x)
    return [layers.Dense(2, activation="sigmoid", name="tags")(x), layers.Dense(3, name="kind")(x)]


def _both_poolings(x):
    x = layers.Concatenate()([layers.GlobalAveragePooling2D()(x), layers.GlobalMaxPooling2D()(x)])
    return layers.Softmax()(layers.Dense(3)(layers.LayerNormalization()(x)))


def _maximum(x):
    return layers.Dense(3)(layers.GlobalMaxPooling2D()(x))


def _features_too(x):
    x = layers.GlobalAveragePooling2D()(x)
    return [layers.Dense(3)(x), x]


HEADS = {"hidden": _hidden, "two": _two, "both": _both_poolings, "maximum": _maximum, "features": _features_too}


@pytest.mark.parametrize("name", HEADS)
def test_heads_are_kept(name, tmp_path):
    model = small(keras, head=HEADS[name])
    found = compared(model, tmp_path / "net.h5", images())
    assert any("the head is kept as it is" in text for text in found.assumptions)
    if name == "hidden":
        body = resfit.load(tmp_path / "net.h5", include_top=False, preprocess=False)
        relu = keras.Model(model.input, model.layers[-6].output)
        assert relative_error(body(images()), relu(images())) < LIMIT
        assert resfit.load(tmp_path / "net.h5", classes=7).output_shape == (None, 7)
        with pytest.raises(ArgumentError, match="keeps its activations"):
            resfit.load(tmp_path / "net.h5", classifier_activation=None)


@pytest.mark.parametrize("activation", ["sigmoid", "softmax", None, "relu"])
def test_the_activation_of_the_classifier(activation, tmp_path):
    model = small(keras, head=lambda x: layers.Dense(3, activation=activation)(layers.GlobalAveragePooling2D()(x)))
    compared(model, tmp_path / "net.keras", images())


def test_heads_of_other_packages_are_refused_by_name(tmp_path):
    @keras.saving.register_keras_serializable("somebody")
    class Gate(layers.Layer):
        def call(self, x):
            return x * 2

        def compute_output_shape(self, shape):
            return shape

    model = small(keras, head=lambda x: layers.Dense(3)(Gate(name="gate")(layers.GlobalAveragePooling2D()(x))))
    model.save(tmp_path / "net.keras")
    with pytest.raises(CheckpointError, match=r"layer 'gate' \(somebody>Gate\)"):
        resfit.load(tmp_path / "net.keras", include_top=True)
    body = resfit.load(tmp_path / "net.keras", include_top=False, preprocess=False)
    expected = keras.Model(model.input, model.layers[-4].output)
    assert relative_error(body(images()), expected(images())) < LIMIT
    assert resfit.load(tmp_path / "net.keras", classes=2).output_shape == (None, 2)


def test_what_is_read_is_what_convert_reads(tmp_path):
    small(keras).save(tmp_path / "net.keras")
    assert load.read_source(tmp_path / "net.keras").convention == "keras-graph"


# Configurations of others.


JUNK = (
    None,
    True,
    -1,
    0,
    10**12,
    1e400,
    float("nan"),
    "",
    "Lambda",
    "Functional",
    [],
    {},
    [[]],
    [["a", 0, 0]],
    "same",
    "same\0",
)


def damaged(value: Any, chance: Any) -> Any:
    """A copy of a configuration in which one to three places hold something else."""
    value = json.loads(json.dumps(value))
    for _ in range(chance.randint(1, 3)):
        at, key, parent = value, None, None
        while isinstance(at, (dict, list)) and at and (parent is None or chance.random() < 0.9):
            parent, key = at, chance.choice(list(at) if isinstance(at, dict) else range(len(at)))
            at = at[key]
        if parent is None:
            return chance.choice(JUNK)
        kind = chance.randrange(4)
        if kind == 0:
            del parent[key]
        elif kind == 1 and type(at) is int:
            parent[key] = at + chance.choice((-1, 1, 7, 2**31))
        elif kind == 2 and isinstance(parent, list):
            parent.insert(key, at)
        else:
            parent[key] = chance.choice((*JUNK, at, value))
    return json.loads(json.dumps(value)) if len(json.dumps(value)) < 10**6 else None


def survive(path: Path, count: int, seed: int) -> int:
    """Reads as many damaged configurations; returns how many were refused. Nothing but resfit's errors may come out."""
    chance = random.Random(seed)
    whole = load.find_format(path).read(path)
    refused = 0
    for _ in range(count):
        with contextlib.suppress(ValueError):  # circular, or too long
            config = damaged(whole.graph.config, chance)
            graph = dataclasses.replace(whole.graph, config=config)
            try:
                keras_namings.translate(dataclasses.replace(whole, graph=graph))
            except ResfitError:
                refused += 1
    return refused


@pytest.mark.parametrize(("count", "seed"), [(300, 0), pytest.param(50_000, 1, marks=pytest.mark.slow)])
def test_damaged_configurations_are_refused_or_read(count, seed, tmp_path):
    base = small(keras, head=lambda x: x)
    inputs = keras.Input((16, 16, 3))
    x = layers.GlobalMaxPooling2D()(base(layers.Rescaling(0.5)(inputs[..., ::-1] - 1.0)))
    keras.Model(inputs, [layers.Dense(3)(x), layers.Dense(2, "sigmoid")(x)]).save(tmp_path / "net.keras")
    assert survive(tmp_path / "net.keras", count, seed) > count / 10


# Networks of resfit's own, written by Keras without a note of what they are.


KINDS = ("seresnet50", "ecaresnet50d", "resnetblur50", "resnet20", "resnext50_32x4d", "resnetv2_50x1_bit")


@pytest.mark.parametrize(
    "name", [name if name == "seresnet50" else pytest.param(name, marks=pytest.mark.slow) for name in KINDS]
)
def test_networks_of_every_kind_come_back(name, tmp_path):
    spec = reduced(catalog.get(name).spec)
    model = randomize(build(spec, input_shape=(None, None, 3)))
    compared(model, tmp_path / "net.h5", images(72))


# Files of Keras 2.


@pytest.fixture(scope="module")
def nested(tmp_path_factory) -> tuple[Path, Any, np.ndarray]:
    """A network of keras.applications inside a model of Keras 2 with a classifier of its own, in every format."""
    theirs = pytest.importorskip("tf_keras")
    folder = tmp_path_factory.mktemp("nested")
    base = theirs.applications.ResNet50(weights=None, include_top=False, input_shape=(64, 64, 3))
    inputs = theirs.layers.Input((64, 64, 3))
    x = theirs.layers.GlobalAveragePooling2D()(base(inputs, training=False))
    model = randomize(theirs.Model(inputs, theirs.layers.Dense(5, activation="softmax")(x)))
    for name in ("nested.keras", "nested.h5", "nested.weights.h5"):
        model.save_weights(folder / name) if "weights" in name else model.save(folder / name)
    base.save_weights(folder / "bare.weights.h5")
    return folder, model, images(64)


@pytest.mark.parametrize("form", ["nested.keras", "nested.h5", "nested.weights.h5"])
def test_a_nested_network_of_keras_2_by_its_name(form, nested):
    folder, model, x = nested
    expected = model(x, training=False)
    for classes in (5, None):
        found = resfit.load("resnet50", weights=folder / form, classes=classes, preprocess=False)
        assert relative_error(found(x, training=False), expected) < LIMIT
        assert found.name == "resnet50"
    assert resfit.load("resnet50", weights=folder / form, classes=7).output_shape == (None, 7)


def test_bare_weights_of_keras_2_by_their_network(nested):
    folder, model, x = nested
    found = resfit.load("resnet50", weights=folder / "bare.weights.h5", include_top=False, preprocess=False)
    assert relative_error(found(x, training=False), model.layers[1](x, training=False)) < LIMIT


def test_a_whole_file_of_keras_2_alone(nested):
    """Which Keras 3 cannot load: it is built anew, and takes what it took."""
    folder, model, x = nested
    found = resfit.load(folder / "nested.keras")
    assert relative_error(found(x, training=False), model(x, training=False)) < LIMIT


def test_a_file_of_another_network_than_the_name(nested):
    with pytest.raises(CheckpointError, match="the weights must be those of 'resnet18'"):
        resfit.load("resnet18", weights=nested[0] / "nested.h5")
    with pytest.raises(CheckpointError, match="must have the layers of 'resnet18'"):
        resfit.load("resnet18", weights=nested[0] / "nested.weights.h5", classes=5)
