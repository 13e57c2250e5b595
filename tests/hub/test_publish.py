"""Networks in the form that TensorFlow Hub publishes."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

import resfit
from resfit import hub
from resfit.errors import ArgumentError


@pytest.fixture(scope="module")
def network():
    return resfit.load("resnet10_tiny", weights=None, include_top=False, pooling="avg", seed=0)


def test_a_published_network_is_the_network(network, tmp_path):
    folder = hub.publish(network, tmp_path / "m", value_range=(0.0, 1.0))
    layer = hub.KerasLayer(folder, trainable=True)
    images = np.random.default_rng(0).integers(0, 256, (3, 40, 32, 3)).astype("float32")
    np.testing.assert_allclose(layer(images / 255), network(images), rtol=1e-4, atol=1e-5)
    trained, expected = layer(images / 255, training=True), network(images, training=True)
    np.testing.assert_allclose(trained, expected, rtol=1e-4, atol=1e-4)
    assert len(layer.trainable_weights) == len(network.trainable_weights)
    assert len(layer.weights) == len(network.weights)
    assert layer.compute_output_shape((None, 64, 64, 3)) == network.output_shape
    served = hub.load(str(folder)).signatures["serving_default"](inputs=tf.constant(images / 255))["outputs"]
    np.testing.assert_allclose(served, hub.KerasLayer(folder)(images / 255), rtol=1e-5)


def test_each_weight_is_written_once(network, tmp_path):
    folder = hub.publish(network, tmp_path / "m")
    data = sum(path.stat().st_size for path in (folder / "variables").glob("*.data-*"))
    assert data < 4 * network.count_params() * 1.02 + 100_000
    # a hub layer and its head, published again: no larger than the original and the head
    model = keras.Sequential([keras.Input((32, 32, 3)), hub.KerasLayer(folder, trainable=True), keras.layers.Dense(5)])
    again = hub.publish(model, tmp_path / "again")
    twice = sum(path.stat().st_size for path in (again / "variables").glob("*.data-*"))
    assert twice < data + 4 * model.layers[-1].count_params() + 50_000
    # Keras' own export writes its own layers twice, but not a hub layer, even after training and in another function
    model.compile("sgd", "mse")
    model.fit(tf.ones((2, 32, 32, 3)), tf.ones((2, 5)), verbose=0)
    model.export(tmp_path / "exported", verbose=False)
    exported = sum(path.stat().st_size for path in (tmp_path / "exported" / "variables").glob("*.data-*"))
    assert exported < data + 2 * 4 * model.layers[-1].count_params() + 50_000
    loaded = tf.saved_model.load(tmp_path / "exported")
    for mine, theirs in zip(loaded.variables, model.variables, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    again = hub.publish(model, tmp_path / "later")
    images = tf.random.uniform((2, 32, 32, 3), seed=1)
    np.testing.assert_allclose(loaded.serve(images), model(images), rtol=1e-5)
    np.testing.assert_allclose(hub.KerasLayer(again)(images), model(images), rtol=1e-5)
    assert len(hub.KerasLayer(again, trainable=True).trainable_weights) == len(model.trainable_weights)


def test_what_is_frozen_is_published_so(network, tmp_path):
    half = keras.models.clone_model(network)
    for layer in half.layers[:10]:
        layer.trainable = False
    found = hub.KerasLayer(hub.publish(half, tmp_path / "half"), trainable=True)
    assert len(found.trainable_weights) == len(half.trainable_weights) < len(network.trainable_weights)
    none = hub.KerasLayer(hub.publish(half, tmp_path / "none", trainable=False), trainable=False)
    assert none.trainable_weights == []


def test_nests_and_regularization(tmp_path):
    a, b = keras.Input((2,), name="a"), keras.Input((3,), name="b")
    dense = keras.layers.Dense(4, kernel_regularizer=keras.regularizers.L2(0.5))
    model = keras.Model({"a": a, "b": b}, {"x": dense(a), "y": b})
    layer = hub.KerasLayer(hub.publish(model, tmp_path / "m"), trainable=True)
    given = {"a": tf.ones((1, 2)), "b": tf.ones((1, 3))}
    np.testing.assert_allclose(layer(given)["x"], model(given)["x"], rtol=1e-6)
    assert float(sum(layer.losses)) == pytest.approx(0.5 * float(tf.reduce_sum(dense.kernel.value**2)), rel=1e-5)
    signed = hub.KerasLayer(str(tmp_path / "m"), signature="serving_default", output_key="x")
    np.testing.assert_allclose(signed(given), model(given)["x"], rtol=1e-6)


def test_half_precision_gives_floats(tmp_path):
    network = resfit.load(
        "resnet10_tiny", weights=None, include_top=False, pooling="avg", dtype="mixed_float16", seed=0
    )
    layer = hub.KerasLayer(hub.publish(network, tmp_path / "m"))
    images = np.full((1, 32, 32, 3), 100.0, "float32")
    assert layer(images).dtype == tf.float32
    np.testing.assert_allclose(layer(images), tf.cast(network(images), tf.float32), rtol=1e-2, atol=1e-2)


def test_refusals(network, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(ArgumentError, match="new or empty"):
        hub.publish(network, tmp_path / "full")
    assert (tmp_path / "full" / "mine.txt").read_text() == "mine"
    with pytest.raises(ArgumentError, match="built"):
        hub.publish(keras.Sequential([keras.layers.Dense(1)]), tmp_path / "m")
    with pytest.raises(ArgumentError, match="low < high"):
        hub.publish(network, tmp_path / "m", value_range=(1.0, 0.0))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]
