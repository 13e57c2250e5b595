"""The summary: what learns, what it costs, and that looking changes nothing."""

from __future__ import annotations

import io

import keras
import numpy as np
import pytest

import resfit
from resfit.errors import ArgumentError
from resfit.networks import arithmetic, catalog
from tests.numeric import randomize

NAME = "resnet10_tiny"


def body(**options):
    return resfit.load(NAME, weights=None, include_top=False, pooling="avg", **options)


def by_name(summary):
    return {stage.name: stage for stage in summary.stages}


def test_figures_are_those_of_the_arithmetic():
    found = resfit.summary(resfit.load(NAME, weights=None, input_shape=(64, 48, 3), preprocess=False))
    counted = arithmetic.count(catalog.get(NAME).spec, input_size=(64, 48))
    assert (found.parameters, found.macs) == (counted.parameters, counted.macs)
    assert found.learning == counted.trainable_parameters
    assert found.frozen == 0
    stages = by_name(found)
    assert list(stages) == ["stage1", "stage2", "stage3", "stage4", "stage5", "head"]
    for expected in counted.stages:
        stage = stages[expected.name]
        assert (stage.parameters, stage.macs) == (expected.parameters, expected.macs)
        assert (stage.state, stage.batch_norm) == ("learns", "" if expected.name == "head" else "batch statistics")
    assert (found.input_shape, found.output_shape) == ((1, 64, 48, 3), (1, 200))
    assert found.seconds > 0


@pytest.mark.parametrize("name", ["preact_resnet20", "seresnext26d_32x4d", "resnetv2_50x1_bit"])
def test_macs_of_other_kinds(name):
    spec = catalog.get(name).spec
    found = resfit.summary(resfit.load(name, weights=None, input_shape=(32, 32, 3), preprocess=False))
    counted = arithmetic.count(spec, input_size=(32, 32))
    assert (found.parameters, found.macs) == (counted.parameters, counted.macs)


def test_frozen_partly_frozen_and_statistics():
    model = body()
    for layer in model.layers:
        if layer.name.startswith(("conv1", "conv2", "conv3")):
            layer.trainable = False
    model.get_layer("conv4_block1_1_bn").trainable = False
    stages = by_name(resfit.summary(model))
    assert [stages[f"stage{n}"].state for n in range(1, 6)] == ["frozen", "frozen", "frozen", "partly", "learns"]
    assert stages["stage2"].batch_norm == "inference"
    assert stages["stage4"].batch_norm == "mixed"
    assert (stages["stage1"].frozen, stages["stage1"].statistics) == (3 * 3 * 3 * 32 + 64, 64)
    assert stages["stage4"].frozen == 2 * 160
    for stage in stages.values():
        assert stage.parameters == stage.learning + stage.frozen + stage.statistics
    model.trainable = False
    found = resfit.summary(model)
    assert (found.learning, found.batch_norm) == (0, "inference")


def around(kind, inner):
    if kind == "sequential":
        return keras.Sequential([keras.Input((64, 64, 3)), inner, keras.layers.Dense(5, name="mine")])
    if kind == "nested":
        inputs = keras.Input((64, 64, 3))
        x = inner(keras.layers.RandomFlip(name="flip")(inputs))
        return keras.Model(inputs, keras.layers.Dense(5, name="mine")(x))
    if kind == "flat":
        return keras.Model(inner.input, keras.layers.Dense(5, name="mine")(inner.output))

    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner = inner
            self.mine = keras.layers.Dense(5, name="mine")

        def call(self, images, training=None):
            return self.mine(self.inner(images, training=training))

    return Subclassed()


@pytest.mark.parametrize("kind", ["sequential", "nested", "flat", "subclassed"])
def test_networks_built_around_ours(kind):
    inner = body()
    inner.trainable = False
    model = around(kind, inner)
    found = resfit.summary(model, input_shape=(64, 64, 3))
    stages = by_name(found)
    prefix = "" if kind == "flat" else f"{NAME}/"
    counted = arithmetic.count(catalog.get(NAME).spec, include_top=False)
    assert stages[f"{prefix}stage5"].state == "frozen"
    assert stages[f"{prefix}stage3"].macs == counted.stages[2].macs
    assert (stages["mine"].learning, stages["mine"].macs) == (320 * 5 + 5, 320 * 5)
    assert found.macs == counted.macs + 320 * 5
    assert found.parameters == model.count_params()
    assert found.output_shape == (1, 5)
    assert "images 0..255 of any dtype" in found.input_contract
    assert found.preprocesses


def test_looking_changes_nothing():
    model = randomize(body())
    before = model.get_weights()
    calls = [layer.__dict__.get("call") for layer in model._flatten_layers()]
    resfit.summary(model)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert [layer.__dict__.get("call") for layer in model._flatten_layers()] == calls


def test_a_shared_network_counts_its_weights_once_and_its_work_twice():
    inner = body(preprocess=False)
    left, right = keras.Input((64, 64, 3)), keras.Input((64, 64, 3))
    model = keras.Model([left, right], keras.layers.Subtract()([inner(left), inner(right)]))
    found = resfit.summary(model)
    assert found.parameters == inner.count_params()
    assert (found.seconds, found.macs) == (None, None)
    assert "pass input_shape" in found.reason


def test_printing():
    stream = io.StringIO()
    model = body(preprocess=False)
    found = resfit.summary(model, print_to=stream)
    text = stream.getvalue()
    assert text.strip() == str(found).strip() == repr(found).strip()
    for part in ("stage5", f"{found.parameters:,}", f"{found.macs:,}", "batch statistics", "One call: (1, 64, 64, 3)"):
        assert part in text
    assert "RGB, (x / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]" in text
    assert "64x64" in text


def test_models_that_are_not_ours():
    model = keras.Sequential([keras.layers.Dense(3, name="a")])
    found = resfit.summary(model)
    assert found.reason.startswith("the input shape is not known")
    assert "not known" in found.input_contract
    assert "No call" in str(found)
    model = keras.Sequential([keras.Input((7,)), keras.layers.Dense(3, name="a")])
    assert by_name(resfit.summary(model))["a"].macs == 21
    with pytest.raises(ArgumentError, match=r"keras\.Model"):
        resfit.summary("resnet50")


def test_a_model_that_fails_says_why():
    class Failing(keras.Model):
        def call(self, images):
            raise RuntimeError("no such thing")

    found = resfit.summary(Failing(), input_shape=(8, 8, 3))
    assert (found.seconds, found.macs) == (None, None)
    assert "no such thing" in found.reason
