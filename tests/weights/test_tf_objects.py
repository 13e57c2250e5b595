"""Sources that Keras wrote: keras.applications' networks, and those of TensorFlow's Model Garden, object by object."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from resfit.errors import CheckpointError, ResfitError
from resfit.networks import catalog
from resfit.weights import identify, load
from resfit.weights.conventions import tensorflow
from resfit.weights.formats.base import Tensors
from resfit.weights.formats.saved_model import Objects
from tests.numeric import randomize, relative_error
from tests.weights import tf_sources
from tests.weights.test_saved_model import TOLERANCE, logits, pixels


def save(model: Any, how: str, folder: Path) -> Path:
    """Writes a Keras 3 model in one of the ways there are."""
    path = folder / how
    if how == "export":
        model.export(path, verbose=False)
    elif how == "saved_model":
        tf.saved_model.save(model, os.fspath(path))
    elif how == "checkpoint":
        tf.train.Checkpoint(model=model).write(os.fspath(path))
    return path


@pytest.mark.parametrize(
    ("version", "how", "channels"),
    [(1, "export", 3), (2, "saved_model", 3), (1, "checkpoint", 1), (2, "checkpoint", 3)],
)
def test_keras_network_computes_the_same(version, how, channels, tmp_path):
    images = pixels(64, 57, channels)
    model = randomize(tf_sources.keras_network(version, width=57, channels=channels))
    received, found = logits(save(model, how, tmp_path), images)
    assert relative_error(received, model(images)) < TOLERANCE
    assert found.architecture.stride_in_block == ("first" if version == 1 else "spatial")
    assert found.input_spec.channel_order == ("bgr" if version == 1 and channels == 3 else "rgb")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ResNet50", "ResNet50V2"])
def test_keras_network_of_real_size_as_keras_2_saved_it(name, tmp_path):
    tf_keras = pytest.importorskip("tf_keras")
    model = getattr(tf_keras.applications, name)(weights=None, classifier_activation=None)
    random = np.random.default_rng(0)
    for variable in model.variables:
        spread = 0.02 if variable.shape.rank > 1 else 0.2
        variable.assign_add(random.normal(0, spread, variable.shape).clip(-0.5, 0.5))
    images = pixels(224, 224)
    expected = np.asarray(model(images))
    model.save(tmp_path / "model", save_format="tf")
    received, found = logits(tmp_path / "model", images)
    assert relative_error(received, expected) < TOLERANCE
    assert found.name == name.lower()
    assert found.architecture == catalog.get(name.lower()).spec


def test_a_classifier_of_another_name_is_found(tmp_path):
    import keras

    body = tf_sources.keras_network(1)
    features = body.get_layer("avg_pool").output
    model = randomize(keras.Model(body.input, keras.layers.Dense(4, name="flowers")(features)))
    images = pixels()
    received, found = logits(save(model, "checkpoint", tmp_path), images)
    assert relative_error(received, model(images)) < TOLERANCE
    assert any("'flowers/kernel' is the classifier (it is the only dense layer;" in text for text in found.assumptions)


def test_two_dense_layers_are_no_classifier(tmp_path):
    import keras

    body = tf_sources.keras_network(1)
    x = keras.layers.Dense(16, name="hidden")(body.get_layer("avg_pool").output)
    model = keras.Model(body.input, keras.layers.Dense(4, name="flowers")(x))
    with pytest.raises(CheckpointError, match=r"tensors left over: hidden/kernel \(160, 16\), hidden/bias"):
        load.read_source(save(model, "checkpoint", tmp_path))
    source = load.read_source(save(model, "checkpoint", tmp_path), ignore=["hidden/*", "flowers/*"])
    assert not source.has_top


# Model Garden.


def garden(tmp_path: Path, *, slots: bool = False, **options: Any) -> tuple[Path, Any]:
    tf_keras = pytest.importorskip("tf_keras")
    backbone, model = tf_sources.garden_network(**options)
    parts = {"backbone": backbone, "model": model}
    if slots:
        parts["optimizer"] = tf_keras.optimizers.legacy.SGD(0.1, momentum=0.9)
        for variable in model.trainable_variables:
            parts["optimizer"].add_slot(variable, "momentum")
    path = tf.train.Checkpoint(**parts).save(os.fspath(tmp_path / "ckpt"))
    return Path(path), model


@pytest.mark.parametrize(
    ("size", "options"),
    [
        ((64, 64), {"slots": True}),
        ((63, 49), {"channels": 1, "depths": (1, 3), "filters": (16, 32)}),
        ((64, 64), {"bottleneck": False}),
        ((64, 64), {"bottleneck": False, "first_projects": False}),
        ((64, 64), {"rs": True}),
    ],
)
def test_garden_checkpoint_computes_the_same(size, options, tmp_path):
    path, model = garden(tmp_path, **options)
    images = pixels(*size, options.get("channels", 3))
    received, found = logits(path, images)
    assert relative_error(received, model(images)) < TOLERANCE
    assert found.architecture.padding == "same"
    told = " ".join(found.assumptions)
    assert ("slots of an optimiser" in told) == options.get("slots", False)
    assert f"activation='{'silu' if options.get('rs') else 'relu'}' (the default of model-garden" in told
    assert "norm_epsilon=1e-05 (the default of model-garden" in told


@pytest.mark.parametrize("options", [{}, {"bottleneck": False}])
def test_garden_saved_model_without_its_objects_computes_the_same(options, tmp_path):
    """Lists of variables, as the Hub has them: only the numbers of the layers are left."""
    pytest.importorskip("tf_keras").backend.clear_session()
    _, model = tf_sources.garden_network(**options)
    published = tf.train.Checkpoint(variables=list(model.variables))
    published.__call__ = tf.function(model.call, input_signature=[tf.TensorSpec((None, None, None, 3))])
    tf.saved_model.save(published, os.fspath(tmp_path / "hub"))
    images = pixels()
    received, found = logits(tmp_path / "hub", images)
    assert relative_error(received, model(images)) < TOLERANCE
    assert found.architecture.padding == "same"


def test_garden_resnet_rs_with_pooled_shortcuts(tmp_path):
    path, model = garden(tmp_path, rs=True, pooled=True)
    images = pixels(62, 57)
    assert relative_error(logits(path, images)[0], model(images)) < TOLERANCE


# Names of 2015.


def test_keras_network_of_before_2019_computes_the_same(tmp_path):
    arrays, images = tf_sources.legacy_arrays(garden=False), pixels()
    path = tf_sources.write_checkpoint(tmp_path / "old", arrays)
    received, model = logits(path, images)
    assert relative_error(received, tf_sources.legacy_forward(images, arrays, garden=False)) < TOLERANCE
    assert model.input_spec.channel_order == "bgr"


@pytest.mark.parametrize("size", [(64, 64), (63, 49)])
def test_gardens_first_network(size, tmp_path):
    arrays, images = tf_sources.legacy_arrays(garden=True), pixels(*size)

    def forward(x: Any, weights: Any) -> Any:
        return tf_sources.legacy_forward(x, weights, garden=True)

    expected = tf_sources.write_saved_model(tmp_path / "resnet_50", arrays, forward, images)
    received, model = logits(tmp_path / "resnet_50", images)
    assert relative_error(received, expected) < TOLERANCE
    assert (model.input_spec.channel_order, model.input_spec.mean) == ("rgb", (123.68, 116.779, 103.939))


# Whatever names and shapes there are.


def test_tensors_of_any_names_and_shapes_are_refused_or_read():
    """Translation and identification of mutilated sources: a network that fits, or a clear error."""
    numbered = tf_sources.Numbered()
    tf_sources.official_forward(pixels(32, 32), numbered, 2, depths=(1, 2))
    kinds = [
        *(tf_sources.slim_arrays(version, (1, 2), (8, 16)) for version in (1, 2)),
        tf_sources.bit_arrays((1, 1), filters=(32, 64)),
        tf_sources.legacy_arrays(garden=False),
        _garden_arrays(),
        numbered.make.arrays,
    ]
    outcomes = {"read": 0, "refused": 0}
    for number in range(1200):
        random = np.random.default_rng(number)
        arrays = dict(kinds[number % len(kinds)])
        for _ in range(random.integers(0, 4)):
            name, other = random.choice(list(arrays), 2)
            action = random.integers(4)
            if action == 0:
                del arrays[name]
            elif action == 1:
                shape = tuple(int(side) for side in random.choice([0, 1, 2, 3, 7, 8, 64, 1000], random.integers(0, 5)))
                arrays[name] = np.broadcast_to(np.float32(1), shape)
            elif action == 2:
                arrays[name] = arrays[other]
            else:
                arrays[str(name).replace("1", str(random.integers(0, 99_999)), 1)] = arrays.pop(name)
        try:
            translation = tensorflow.translate(
                Tensors(Path("x"), arrays, graph=Objects({name: name for name in arrays}, False, ()))
            )
            found = identify.identify(translation.arrays, convention=translation.convention, facts=translation.facts)
            load._check(translation, found)
            outcomes["read"] += 1
        except ResfitError:
            outcomes["refused"] += 1
    assert outcomes["read"] > 200
    assert outcomes["refused"] > 400


def _garden_arrays() -> dict[str, np.ndarray]:
    """A network of Model Garden by the ways to its variables."""
    make = tf_sources.Weights()
    make.kernel("b/layer_with_weights-0/kernel", 7, 7, 3, 8)
    make.norm("b/layer_with_weights-1", 8)
    for block, width in ((2, 8), (3, 32)):
        base = f"b/layer_with_weights-{block}"
        if block == 2:
            make.kernel(f"{base}/_shortcut/kernel", 1, 1, 8, 32)
            make.norm(f"{base}/_norm0", 32)
        for number, (side, before, after) in enumerate(((1, width, 8), (3, 8, 8), (1, 8, 32)), start=1):
            make.kernel(f"{base}/_conv{number}/kernel", side, side, before, after)
            make.norm(f"{base}/_norm{number}", after)
    return make.arrays
