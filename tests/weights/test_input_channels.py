"""Networks of colours on images of other numbers of channels, and heads under mixed precision."""

from __future__ import annotations

import dataclasses

import keras
import numpy as np
import pytest

import resfit
from resfit import engines, preprocessing, zoo
from resfit.errors import ArgumentError
from resfit.weights import canonical, load, write
from tests.numeric import images, relative_error

NAME = "resnet10_tiny"
CONTRACTS = {
    "torch": preprocessing.TORCH,
    "bgr": preprocessing.CAFFE,
    "equal": preprocessing.TF,
}


def network(channels=None, **options):
    return resfit.load(NAME, include_top=False, pooling="avg", in_channels=channels, **options)


@pytest.fixture(scope="module")
def colours():
    model = network()
    picture = images(3, 48, 40, 3)
    return picture, np.asarray(model(picture, training=False)), model


def test_a_picture_twice_equals_it_once(colours):
    """(RGB, RGB) sums to RGB: filters are halved, and means and deviations repeat as they do."""
    picture, expected, _ = colours
    received = network(6)(np.concatenate([picture, picture], axis=-1), training=False)
    assert relative_error(received, expected) < 1e-5


def test_a_grey_picture_equals_the_same_in_three_channels(colours):
    _, _, model = colours
    grey = images(3, 48, 40, 1)
    one = network(1)
    assert one.input_shape[-1] == 1
    assert one.input_spec.channels == 1
    expected = model(np.repeat(grey, 3, axis=-1), training=False)
    assert relative_error(one(grey, training=False), expected) < 1e-6


@pytest.mark.parametrize("channels", [2, 4, 5, 7])
def test_other_numbers_take_the_colours_in_turn(channels, colours):
    """Every channel has the filters, mean and deviation of red, green or blue, times 3 / channels."""
    _, _, model = colours
    kernel = np.asarray(model.get_layer("conv1_conv").kernel)
    adapted = network(channels)
    found = np.asarray(adapted.get_layer("conv1_conv").kernel)
    for channel in range(channels):
        np.testing.assert_allclose(found[:, :, channel], kernel[:, :, channel % 3] * 3 / channels, rtol=1e-6)
    assert adapted.input_spec.mean == tuple(model.input_spec.mean[n % 3] for n in range(channels))
    assert adapted.input_spec.std == tuple(model.input_spec.std[n % 3] for n in range(channels))
    picture = images(1, 32, 32, channels)
    bare = network(channels, preprocess=False)
    expected = bare(adapted.input_spec.normalize(picture), training=False)
    assert relative_error(adapted(picture, training=False), expected) < 1e-5


@pytest.mark.parametrize("contract", CONTRACTS)
def test_contracts_of_every_kind(contract):
    """Grey and doubled pictures under BGR too, whose filters are brought to RGB."""
    spec = CONTRACTS[contract]
    source = zoo.read(NAME)
    source = dataclasses.replace(source, input_spec=spec)
    options = {"include_top": False, "pooling": "avg"}
    model = load.load_source(source, **options)
    picture, grey = images(2, 40, 40, 3), images(2, 40, 40, 1)
    expected = model(picture, training=False)
    six = load.load_source(source, in_channels=6, **options)
    assert relative_error(six(np.concatenate([picture] * 2, -1), training=False), expected) < 1e-5
    one = load.load_source(source, in_channels=1, **options)
    expected = model(np.repeat(grey, 3, -1), training=False)
    assert relative_error(one(grey, training=False), expected) < 1e-5


def test_a_grey_contract_goes_to_text_and_back_and_to_colours():
    grey = preprocessing.CAFFE.for_grey()
    assert preprocessing.InputSpec.from_dict(grey.to_dict()) == grey
    assert grey.with_channels(1) is grey
    assert grey.for_grey() is grey
    assert grey.with_channels(3).mean == preprocessing.CAFFE.mean[::-1]
    picture = images(2, 5, 4, 1)
    np.testing.assert_array_equal(
        grey.normalize(picture), grey.with_channels(3).normalize(np.repeat(picture, 3, axis=-1))
    )
    with pytest.raises(ArgumentError, match="mean must have one value"):
        preprocessing.InputSpec(channels=2, mean=(0.0,) * 3, std=(1.0,) * 3)


def test_a_network_for_grey_is_written_and_read(colours, tmp_path):
    grey = images(2, 48, 40, 1)
    one = network(1)
    expected = np.asarray(one(grey, training=False))
    one.save(tmp_path / "plain.keras")
    assert relative_error(keras.models.load_model(tmp_path / "plain.keras")(grey, training=False), expected) == 0
    write.write(one, tmp_path / "a.keras")
    again = zoo.load(tmp_path / "a.keras")
    assert again.input_spec == one.input_spec
    assert relative_error(again(grey, training=False), expected) == 0
    write.write(one, tmp_path / "a.safetensors", naming="resfit")  # weights of colours, and their contract
    again = zoo.load(tmp_path / "a.safetensors", include_top=False, pooling="avg", in_channels=1)
    assert relative_error(again(grey, training=False), expected) < 1e-6


@pytest.mark.parametrize("engine", ["openvino", "keras"])
def test_engines_run_a_network_for_grey(engine, colours):
    one = network(1)
    grey = images(4, 48, 40, 1)
    runs = engines.create(one, engine)
    assert relative_error(runs.run(grey), one(grey, training=False)) < 1e-4


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_heads_compute_in_float32_under_any_policy(policy):
    picture = images(2, 64, 64, 3)
    exact = np.asarray(resfit.load(NAME)(picture, training=False))
    model = resfit.load(NAME, dtype=policy)
    received = np.asarray(model(picture, training=False))
    assert received.dtype == np.float32
    assert model.get_layer("conv1_conv").compute_dtype == policy.removeprefix("mixed_")
    assert {model.get_layer(name).compute_dtype for name in ("avg_pool", "predictions")} == {"float32"}
    np.testing.assert_allclose(received.sum(axis=-1), 1, atol=1e-6)
    assert relative_error(received, exact) < 0.1
    logits = resfit.load(NAME, dtype=policy, classifier_activation=None, classes=5)(picture, training=False)
    assert np.asarray(logits).dtype == np.float32


def test_the_order_of_colours_of_a_kernel():
    kernel = np.random.default_rng(0).normal(size=(3, 3, 3, 2)).astype(np.float32)
    np.testing.assert_allclose(canonical.adapt_input(kernel, 4, "bgr")[:, :, 3], kernel[:, :, 2] * 0.75, rtol=1e-6)
