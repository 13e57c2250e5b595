"""Maps of classes for which nothing speaks: what is shown instead of nothing, and that it is said."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from resfit.data.decode import DecodedBatch
from resfit.explain import attribute, explain_batches
from resfit.explain.overlays import overlay

CLASSES = ("spot", "dark", "same")


@pytest.fixture(scope="module")
def network():
    """Scores that are weighted sums over the places of a map of 8x8, which is the image itself.

    The first class has the weight 1 at the place (2, 5) and -1 at all others, the second -1 everywhere, the third 0.
    """
    image = keras.Input((8, 8, 1))
    one = keras.layers.Conv2D(1, 1, use_bias=False, name="map")
    head = keras.layers.Dense(3, use_bias=False, activation="softmax")
    model = keras.Model(image, head(keras.layers.Flatten()(one(image))))
    one.set_weights([np.ones((1, 1, 1, 1))])
    weights = -np.ones((8, 8, 3))
    weights[2, 5, 0], weights[..., 2] = 1, 0
    head.set_weights([weights.reshape(64, 3)])
    return model


@pytest.fixture(scope="module")
def images():
    found = np.ones((2, 8, 8, 1), np.float32)
    found[:, 2, 5] = 200
    found[1, 6, 1] = 40
    return found


def test_grad_cam_gives_way_where_it_finds_nothing(network, images):
    """The mean slope of the map is -62/64: Grad-CAM is negative everywhere, though one place speaks for the class."""
    for one, image in zip(attribute(network, images, target=0), images, strict=True):
        assert (one.method, one.empty, one.evidence) == ("hires-cam", True, "positive")
        expected = np.where(np.arange(64).reshape(8, 8) == 2 * 8 + 5, 1, -1) * image[..., 0]
        np.testing.assert_allclose(one.raw, expected)
        assert one.map[2, 5] == 1
        assert one.map.sum() == 1


def test_hires_cam_sums_up_to_the_score(network, images):
    for one in attribute(network, images, method="hires-cam", target=0):
        assert one.raw.sum() == pytest.approx(one.scores[0], rel=1e-5)
        assert (one.method, one.empty) == ("hires-cam", False)


def test_negative_evidence_is_shown_as_such(network, images):
    (_, one) = attribute(network, images, target=1)
    assert (one.method, one.empty, one.evidence) == ("grad-cam", True, "negative")
    np.testing.assert_allclose(one.raw, -images[1, ..., 0])
    np.testing.assert_allclose(one.map, images[1, ..., 0] / 200)
    (_, other) = attribute(network, images, method="occlusion", target=1, fill=0, patch=1)
    assert (other.empty, other.evidence) == (True, "negative")
    np.testing.assert_allclose(other.map, images[1, ..., 0] / 200, rtol=1e-5)
    # the weights of Grad-CAM++ are those of positive slopes, and there are none
    (_, other) = attribute(network, images, method="grad-cam++", target=1)
    assert (other.empty, other.evidence, other.map.max()) == (True, "none", 0)


def test_a_class_that_depends_on_nothing(network, images):
    one = attribute(network, images, target=2)[0]
    assert (one.empty, one.evidence) == (True, "none")
    assert not one.map.any()


def test_batches_keep_their_order(network, images):
    """Some images of a batch have a map of the method that was asked for, and some of the one in its place."""
    mixed = np.concatenate([images, np.zeros((1, 8, 8, 1), np.float32), images])
    found = attribute(network, mixed, batch_size=2, target=[0, 1, 2, 2, 0])
    assert [one.evidence for one in found] == ["positive", "negative", "none", "none", "positive"]
    assert [one.method for one in found] == ["hires-cam", "grad-cam", "grad-cam", "grad-cam", "hires-cam"]


def test_an_explanation_says_what_is_unusual(network, images):
    batch = DecodedBatch(np.arange(2), images, [])
    found = [explain_batches(network, [batch], CLASSES, target=name)[1] for name in CLASSES]
    assert [one.empty for one in found] == [True] * 3
    assert [one.note for one in found] == [
        "grad-cam finds nothing that speaks for spot in map; the map is that of hires-cam",
        "grad-cam finds nothing that speaks for dark in map; the map shows what speaks against it",
        "grad-cam finds nothing that speaks for same in map, nor against it",
    ]
    assert [one.to_dict()["evidence"] for one in found] == ["positive", "negative", "none"]
    # evidence against is violet and nowhere red
    red, violet = (one.overlay[2, 5].astype(int) for one in found[:2])
    assert red[0] > red[2]
    assert violet[2] > violet[0]
    np.testing.assert_array_equal(found[2].overlay, overlay(images[1], np.zeros((8, 8))))
