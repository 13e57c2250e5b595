"""Residual networks of TensorFlow Hub as native Keras networks: each kind equals its SavedModel's own call.

The SavedModels are small ones under the names of the programs that wrote the published ones, in the cache under the
published handles.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import tensorflow as tf

import resfit
from resfit import hub
from resfit.errors import UnknownNameError
from tests.numeric import images as random_images
from tests.numeric import relative_error
from tests.weights import tf_sources

HUB = "https://tfhub.dev"
KAGGLE = "https://www.kaggle.com/models"
MEAN = (123.68, 116.779, 103.939)


def _slim(version, classes):
    arrays = tf_sources.slim_arrays(version, (1, 1, 1, 1), classes=classes)
    return arrays, lambda images, weights: tf_sources.slim_forward(images * 2 - 1, weights)


def _bit(classes):
    arrays = tf_sources.bit_arrays((1, 1, 1, 1), 1, classes=classes)
    return arrays, lambda images, weights: tf_sources.bit_forward(images * 2 - 1, weights)


def _garden(softmax):
    def forward(images, weights):
        logits = tf_sources.legacy_forward(images * 255 - tf.constant(MEAN), weights, garden=True)
        return tf.nn.softmax(logits) if softmax else logits

    return tf_sources.legacy_arrays(garden=True, classes=1001), forward


KINDS = {
    f"{HUB}/google/imagenet/resnet_v1_50/classification/5": lambda: _slim(1, 1001),
    f"{HUB}/google/imagenet/resnet_v1_152/feature_vector/5": lambda: _slim(1, 0),
    f"{KAGGLE}/google/resnet-v2/tensorFlow2/101-classification/2": lambda: _slim(2, 1001),
    f"{KAGGLE}/google/resnet-v2/frameworks/tensorFlow2/variations/50-feature-vector/versions/2": lambda: _slim(2, 0),
    f"{HUB}/tensorflow/resnet_50/classification/1": lambda: _garden(softmax=False),
    f"{HUB}/tensorflow/resnet_50/classification/1?with=softmax": lambda: _garden(softmax=True),
    f"{HUB}/google/bit/m-r50x1/1": lambda: _bit(0),
    f"{HUB}/google/bit/s-r50x1/ilsvrc2012_classification/1": lambda: _bit(1000),
    f"{HUB}/google/experts/bit/r50x1/in21k/bird/1": lambda: _bit(0),
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Returns where a handle lies in the cache."""
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("RESFIT_OFFLINE", "1")
    return lambda handle: tmp_path / hashlib.sha1(handle.encode()).hexdigest()


def _some_slow():
    quick = ("resnet_v1_50/", "softmax", "bit/m-r50x1")
    return [h if any(q in h for q in quick) else pytest.param(h, marks=pytest.mark.slow) for h in KINDS]


@pytest.mark.parametrize("handle", _some_slow())
def test_a_native_network_is_its_saved_model(place, handle):
    images = random_images(2, 64, 64, 3).astype(np.float32)
    arrays, forward = KINDS[handle]()
    tf_sources.write_saved_model(place(handle), arrays, forward, images / 255)
    expected = hub.KerasLayer(handle)(images / 255)
    native = hub.to_keras(handle)
    assert relative_error(native(images), expected) < 1e-4
    assert native.get_layer("conv2_block1_1_conv").trainable


def test_load_by_handle_is_the_same_network(place):
    handle = [*KINDS][3]
    images = random_images(2, 64, 64, 3).astype(np.float32)
    arrays, forward = KINDS[handle]()
    tf_sources.write_saved_model(place(handle), arrays, forward, images / 255)
    loaded = resfit.load(handle, pooling="avg", classifier_activation=None)
    assert relative_error(loaded(images), hub.KerasLayer(handle)(images / 255)) < 1e-4


def test_names_that_are_not_known_are_no_obstacle_where_the_graph_is_read(place):
    """Networks whose programs are not published with names of variables that are known here."""
    handle = f"{HUB}/google/remote_sensing/eurosat-resnet50/1"
    arrays, forward = _slim(2, 0)
    hidden = {f"net/part_{number}": array for number, array in enumerate(arrays.values())}
    names = dict(zip(arrays, hidden, strict=True))
    images = random_images(2, 64, 64, 3).astype(np.float32) / 255

    def renamed(x, weights):
        return forward(x, {name: weights[names[name]] for name in arrays})

    expected = tf_sources.write_saved_model(place(handle), hidden, renamed, images)
    native = resfit.load(handle, include_top=False, pooling="avg")  # the graph scales 0..1 to -1..1
    assert relative_error(native(images * 255), expected) < 1e-4
    np.testing.assert_allclose(hub.KerasLayer(handle)(images), expected, rtol=1e-5)
    for name, reason in {
        "remote_sensing_eurosat_resnet50.tfhub_features": "how its variables are named has not been published",
        "supcon_resnet_v1_50.tfhub": "its classifier takes features that are scaled to length 1",
    }.items():
        found = hub.describe(name)
        assert (found.native, found.reason[: len(reason)]) == (False, reason)
        with pytest.raises(UnknownNameError, match=rf"{reason}.*resfit\.hub\.KerasLayer\('{found.handle}'\)"):
            resfit.load(name)
