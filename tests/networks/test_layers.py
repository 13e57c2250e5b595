"""The layers that Keras does not have, against their definitions; and networks inside other models."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from resfit.errors import ArgumentError
from resfit.networks import catalog
from resfit.networks.build import build
from resfit.networks.layers import BlurPool2D, LowestPadding2D, PaddedShortcut, StandardizedConv2D, StochasticDepth
from resfit.weights.keras_models import shapes_alone
from tests.numeric import randomize

RANDOM = np.random.default_rng(0)


def test_standardized_convolution_is_a_convolution_with_a_standardized_kernel():
    images = RANDOM.normal(size=(2, 8, 7, 6)).astype("float32")
    layer = StandardizedConv2D(5, 3, padding="same", standardization_epsilon=1e-5)
    layer.build(images.shape)
    randomize(layer)
    kernel = layer.kernel.numpy().astype(np.float64)
    mean = kernel.mean(axis=(0, 1, 2))
    variance = ((kernel - mean) ** 2).mean(axis=(0, 1, 2))
    plain = keras.layers.Conv2D(5, 3, padding="same")
    plain.build(images.shape)
    plain.set_weights([(kernel - mean) / np.sqrt(variance + 1e-5), layer.bias.numpy()])
    np.testing.assert_allclose(layer(images), plain(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
def test_blur_is_the_binomial_filter_over_reflected_borders(stride):
    images = RANDOM.normal(size=(2, 7, 8, 3)).astype("float32")
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="reflect")
    weights = np.outer([1, 2, 1], [1, 2, 1]) / 16
    expected = sum(weights[i, j] * padded[:, i : i + 7, j : j + 8] for i in range(3) for j in range(3))
    received = BlurPool2D(stride)(images)
    np.testing.assert_allclose(received, expected[:, ::stride, ::stride], rtol=1e-5, atol=1e-6)


def test_padded_shortcut_puts_zeros_on_both_sides():
    images = RANDOM.normal(size=(1, 5, 6, 4)).astype("float32")
    received = PaddedShortcut(9, 2)(images).numpy()
    assert received.shape == (1, 3, 3, 9)
    np.testing.assert_array_equal(received[..., 2:6], images[:, ::2, ::2])
    assert not received[..., :2].any()
    assert not received[..., 6:].any()


def test_lowest_padding_never_wins_a_maximum():
    images = -np.abs(RANDOM.normal(size=(1, 4, 4, 2))).astype("float32")
    pooled = keras.layers.MaxPooling2D(3, strides=1)(LowestPadding2D(1)(images)).numpy()
    assert pooled.max() < 0
    assert pooled[0, 0, 0, 0] == images[0, :2, :2, 0].max()


def test_stochastic_depth_drops_whole_images_and_keeps_the_mean():
    layer = StochasticDepth(0.3, seed=1)
    images = np.ones((4000, 2, 2, 1), "float32")
    np.testing.assert_array_equal(layer(images, training=False), images)
    kept = layer(images, training=True).numpy()
    np.testing.assert_allclose(np.unique(kept), [0, 1 / 0.7], rtol=1e-6)
    assert (kept == kept[:, :1, :1]).all()
    assert abs(kept.mean() - 1) < 0.05


def test_drop_rates_rise_to_the_last_block():
    spec = catalog.get("resnet18").spec.replace(drop_path_rate=0.7)
    with shapes_alone():
        model = build(spec)
    rates = [layer.rate for layer in model.layers if isinstance(layer, StochasticDepth)]
    np.testing.assert_allclose(rates, [0.1 * block for block in range(1, 8)])


def test_zero_init_makes_blocks_identities():
    spec = catalog.get("resnet10_tiny").spec.replace(zero_init_last=True)
    model = build(spec)
    assert not model.get_layer("conv3_block1_2_bn").gamma.numpy().any()
    assert model.get_layer("conv3_block1_1_bn").gamma.numpy().all()


BODY = catalog.get("resnet10_tiny").spec


def nest(kind, body):
    if kind == "Sequential":
        return keras.Sequential([keras.Input((32, 48, 3)), body, keras.layers.Dense(4)])
    if kind == "functional":
        inputs = keras.Input((32, 48, 3))
        return keras.Model(inputs, keras.layers.Dense(4)(body(inputs * 2.0) + 1.0))

    @keras.saving.register_keras_serializable(package="tests")
    class Around(keras.Model):
        def __init__(self, inner=None, **options):
            super().__init__(**options)
            self.inner = inner or build(BODY, include_top=False, pooling="avg")
            self.dense = keras.layers.Dense(4)

        def call(self, images):
            return self.dense(self.inner(images))

    return Around(body)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("kind", ["Sequential", "functional", "subclassed"])
def test_a_body_works_inside_any_model_and_is_saved_with_it(kind, policy, tmp_path):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = nest(kind, randomize(build(BODY, include_top=False, pooling="avg")))
        images = RANDOM.normal(size=(2, 32, 48, 3)).astype("float32")
        expected = np.asarray(model(images), np.float32)
        model.compile("sgd", "mse")
        model.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        np.testing.assert_allclose(np.asarray(loaded(images), np.float32), expected, rtol=1e-5, atol=1e-6)
        model.fit(images, np.zeros((2, 4), "float32"), verbose=0)
    finally:
        keras.config.set_dtype_policy(before)
    assert np.abs(np.asarray(model(images), np.float32) - expected).max() > 1e-4


def test_a_network_of_the_usual_kinds_loads_without_resfit(tmp_path):
    import subprocess
    import sys

    from resfit.preprocessing import CAFFE

    model = randomize(build(catalog.get("resnet18").spec, include_top=False, input_spec=CAFFE, preprocess=True))
    images = RANDOM.uniform(0, 255, size=(1, 32, 32, 3)).astype("float32")
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "images.npy", images)
    code = (
        "import sys, keras, numpy as np; folder = sys.argv[1];"
        "model = keras.models.load_model(folder + '/model.keras');"
        "np.save(folder + '/out.npy', model(np.load(folder + '/images.npy'), training=False));"
        "assert not any(name.split('.')[0] == 'resfit' for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), model(images, training=False), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": "mean"}, "pooling must be"),
        ({"taps": ("stage6",)}, "taps must be among"),
        ({"preprocess": True}, "needs an input_spec"),
    ],
)
def test_wrong_arguments_of_build(options, message):
    with pytest.raises(ArgumentError, match=message):
        build(BODY, **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block": "bottle"}, "block must be one of"),
        ({"depths": (1, 1)}, "one value for each of the 2 stages"),
        ({"groups": 2}, "groups need"),
        ({"attention": "se"}, "go together"),
        ({"drop_path_rate": 1.0}, "drop_path_rate"),
        ({"stem": ()}, "at least one convolution"),
        ({"classes": 0}, "at least 1"),
    ],
)
def test_specs_that_contradict_themselves(change, message):
    with pytest.raises(ArgumentError, match=message):
        BODY.replace(**change)
