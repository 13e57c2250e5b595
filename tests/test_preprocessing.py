"""The input contract: the same numbers in numpy, in a model, and in keras.applications."""

from __future__ import annotations

import dataclasses
import json

import keras
import numpy as np
import pytest

from resfit import preprocessing
from resfit.errors import ArgumentError
from resfit.networks import catalog
from resfit.networks.build import build
from resfit.preprocessing import InputSpec
from tests.numeric import images, relative_error

MODES = {
    "CAFFE": keras.applications.resnet.preprocess_input,
    "TF": keras.applications.resnet_v2.preprocess_input,
    "TORCH": lambda x: keras.src.applications.imagenet_utils.preprocess_input(x, mode="torch"),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64", "int32"])
def test_the_modes_of_keras_applications(mode, dtype):
    batch = images(2, 5, 7, 3)
    expected = MODES[mode](batch.astype("float64"))  # a float copy: theirs changes it in place
    given = batch.astype(dtype)
    received = getattr(preprocessing, mode).normalize(given)
    assert received.dtype == np.float32
    assert relative_error(received, expected) < 1e-6
    np.testing.assert_array_equal(given, batch.astype(dtype))


@pytest.mark.parametrize("mode", ["CAFFE", "TF", "TORCH", "UNIT"])
def test_inside_a_model_it_is_the_same_to_the_last_bit(mode):
    contract = getattr(preprocessing, mode)
    inputs = keras.Input((None, None, 3))
    from resfit.networks.build import preprocessing as as_layers

    model = keras.Model(inputs, as_layers(inputs, contract))
    batch = images(2, 9, 6, 3)
    np.testing.assert_array_equal(model(batch.astype("float32")), contract.normalize(batch))


def test_a_network_takes_bytes_as_their_float_copy():
    spec = catalog.get("resnet10_tiny").spec
    model = build(spec, input_spec=preprocessing.CAFFE, preprocess=True)
    bare = build(spec)
    bare.set_weights(model.get_weights())
    batch = images(2, 40, 56, 3)
    expected = bare(preprocessing.CAFFE.normalize(batch), training=False).numpy()
    for dtype in ("uint8", "int64", "float16", "float32", "float64"):
        np.testing.assert_array_equal(model(batch.astype(dtype), training=False), expected)
    import tensorflow as tf

    np.testing.assert_array_equal(model(tf.constant(batch), training=False), expected)
    inputs = keras.Input((40, 56, 3), dtype="uint8")
    nested = keras.Model(inputs, model(inputs))
    np.testing.assert_array_equal(nested(batch, training=False), expected)
    assert model.input_spec == preprocessing.CAFFE
    assert model.architecture == spec


def test_it_survives_mixed_precision_and_saving(tmp_path):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = build(catalog.get("resnet10_tiny").spec, input_spec=preprocessing.CAFFE, preprocess=True)
    finally:
        keras.config.set_dtype_policy(before)
    layer = model.get_layer("normalization")
    assert layer.compute_dtype == "float32"
    model.save(tmp_path / "model.keras")
    batch = images(1, 32, 32, 3)
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(batch), model(batch))


def test_the_boxes_of_resizing():
    assert InputSpec(size=(224, 224), crop_fraction=0.875).resize_size == (256, 256)
    assert InputSpec(size=(288, 288), crop_fraction=0.95).resize_size == (303, 303)
    assert InputSpec(size=(64, 48), resize_mode="squash", crop_fraction=0.5).resize_size == (64, 48)


def test_other_numbers_of_channels():
    grey = preprocessing.CAFFE.with_channels(1)
    assert grey.channel_order == "rgb"
    assert grey.mean == pytest.approx((np.mean([103.939, 116.779, 123.68]),))
    assert preprocessing.TORCH.with_channels(3) is preprocessing.TORCH
    np.testing.assert_allclose(
        preprocessing.UNIT.with_channels(5).normalize(np.full((1, 1, 5), 51, np.uint8)),
        np.full((1, 1, 5), 0.2),
        rtol=1e-6,
    )


def test_json_and_back():
    for contract in (preprocessing.CAFFE, preprocessing.TORCH, InputSpec(size=(8, 9), interpolation="bicubic")):
        assert InputSpec.from_dict(json.loads(json.dumps(contract.to_dict()))) == contract
    with pytest.raises(ArgumentError, match="colour"):
        InputSpec.from_dict({"colour": "red"})


@pytest.mark.parametrize(
    "wrong",
    [
        {"channel_order": "grb"},
        {"mean": (1.0,)},
        {"size": (0, 3)},
        {"crop_fraction": 0.0},
        {"std": (1.0, 0.0, 1.0)},
        {"scale": -1.0},
        {"interpolation": "magic"},
    ],
)
def test_fields_out_of_range(wrong):
    with pytest.raises(ArgumentError, match="Received"):
        dataclasses.replace(preprocessing.TORCH, **wrong)


def test_images_of_other_channels_are_refused():
    with pytest.raises(ArgumentError, match=r"\(\.\.\., height, width, 3\)"):
        preprocessing.TORCH.normalize(np.zeros((4, 4, 1)))
