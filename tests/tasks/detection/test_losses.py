"""Losses against values computed by hand; finite without boxes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from resfit.tasks.detection import losses


def test_focal_loss_by_hand():
    # p = sigmoid(0) = 0.5: alpha * 0.5**2 * ln 2 for an object, 0.75 of it for background
    found = np.asarray(losses.focal(np.zeros(2, np.float32), np.array([1.0, 0.0], np.float32)))
    assert found == pytest.approx([0.25 * 0.25 * math.log(2), 0.75 * 0.25 * math.log(2)])
    assert np.asarray(losses.focal(np.float32(2.0), np.float32(1.0), alpha=1, gamma=0)) == pytest.approx(
        -math.log(1 / (1 + math.exp(-2))), rel=1e-6
    )


def test_quality_focal_loss_by_hand():
    # |0.8 - 0.5|**2 times the cross-entropy of 0.8 against 0.5
    found = float(losses.quality_focal(np.float32(0.0), np.float32(0.8)))
    assert found == pytest.approx(0.09 * math.log(2), rel=1e-5)
    logit = math.log(0.8 / 0.2)
    assert float(losses.quality_focal(np.float32(logit), np.float32(0.8))) == pytest.approx(0, abs=1e-6)


def test_centerness_by_hand():
    found = np.asarray(losses.centerness(np.array([[1, 2, 3, 2], [2, 2, 2, 2], [0, 1, 5, 1]], np.float32)))
    assert found == pytest.approx([math.sqrt(1 / 3), 1.0, 0.0], abs=1e-5)


@pytest.fixture
def places():
    centres = np.array([[4, 4], [12, 4], [4, 12], [12, 12]], np.float32)
    return np.concatenate([centres - 4, centres + 4], axis=1)


def outputs(logits, codes, quality=None):
    found = {"class_logits": np.asarray(logits, np.float32), "box_codes": np.asarray(codes, np.float32)}
    return found if quality is None else {**found, "quality": np.asarray(quality, np.float32)}


@pytest.mark.parametrize("kind", ["focal", "quality_focal"])
def test_loss_of_a_perfect_prediction_is_none_but_for_the_classes(places, kind):
    boxes = np.array([[[0, 0, 8, 8]]], np.float32)
    rows = np.array([[0, -1, -1, -2]], np.int32)
    logits = np.full((1, 4, 2), -20.0)
    logits[0, 0, 1] = 20.0
    logits[0, 3] = 20.0  # where nothing is known, nothing is learned
    codes = np.full((1, 4, 4), 0.5)  # half a unit to each side: the unit box itself, which is the true box
    found = losses.detection_loss(
        outputs(logits, codes, np.full((1, 4, 1), 20.0)), places, rows, boxes, np.array([[1]], np.int32), kind=kind
    )
    assert float(found["total"]) == pytest.approx(0, abs=1e-4)


def test_box_loss_is_one_minus_giou_twice(places):
    # predicted (0, 0, 8, 8), true (0, 0, 16, 8): IoU 0.5, hull equal to the union
    rows = np.array([[0, -1, -1, -1]], np.int32)
    found = losses.detection_loss(
        outputs(np.zeros((1, 4, 1)), np.full((1, 4, 4), 0.5)),
        places,
        rows,
        np.array([[[0, 0, 16, 8]]], np.float32),
        np.array([[0]], np.int32),
        kind="focal",
    )
    assert float(found["box"]) == pytest.approx(2 * 0.5 * math.sqrt(1 / 3) / 1.0, rel=1e-5)  # weight: centre-ness
    # one object at p = 0.5, three of background
    expected = (0.25 + 3 * 0.75) * 0.25 * math.log(2)
    assert float(found["class"]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["focal", "quality_focal"])
@pytest.mark.parametrize("quality", [True, False])
def test_batches_without_boxes_have_finite_losses_and_gradients(places, kind, quality):
    import tensorflow as tf

    for rows in (np.full((2, 4), -1, np.int32), np.full((2, 4), -2, np.int32)):
        values = [tf.Variable(np.random.default_rng(0).normal(size=(2, 4, 3)), dtype=tf.float32)]
        values.append(tf.Variable(tf.zeros((2, 4, 4))))  # predicted boxes without any extent
        values += [tf.Variable(tf.zeros((2, 4, 1)))] if quality else []
        with tf.GradientTape() as tape:
            named = dict(zip(("class_logits", "box_codes", "quality"), values, strict=False))
            named = {name: tf.convert_to_tensor(value) for name, value in named.items()}
            boxes, labels = np.zeros((2, 1, 4), np.float32), np.zeros((2, 1), np.int32)
            found = losses.detection_loss(named, tf.constant(places), tf.constant(rows), boxes, labels, kind=kind)
        assert all(np.isfinite(float(value)) for value in found.values())
        gradients = tape.gradient(found["total"], values)
        assert all(np.isfinite(one.numpy()).all() for one in gradients if one is not None)
        assert float(found["box"]) == 0
        assert (float(found["class"]) > 0) == bool((rows == -1).any())
