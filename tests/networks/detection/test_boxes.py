"""Codes, overlaps and anchors of boxes."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import ops

from resfit.networks import catalog as networks
from resfit.networks.detection import anchors, boxes, catalog
from resfit.networks.detection.layers import DecodeBoxes
from tests.networks.detection import peers


def some(count: int, seed: int = 0) -> np.ndarray:
    """Boxes of positive size."""
    generator = np.random.default_rng(seed)
    corners = generator.uniform(-20, 300, (count, 2))
    return np.concatenate([corners, corners + generator.uniform(2, 200, (count, 2))], axis=1).astype(np.float32)


def test_sizes_of_anchors_are_torchvisions():
    assert anchors.octave_sizes((32, 64, 128, 256, 512)) == (
        (32, 40, 50),
        (64, 80, 101),
        (128, 161, 203),
        (256, 322, 406),
        (512, 645, 812),
    )
    assert anchors.octave_sizes((8,), 2, truncated=False)[0] == pytest.approx((8, 11.3137085))


def test_anchors_of_one_place():
    found = anchors.cell_anchors((32,), (0.5, 1.0, 2.0))
    # heights of 32 / sqrt(2) = 22.63 and widths of 45.25, halved and rounded
    assert found.tolist() == [[-23, -11, 23, 11], [-16, -16, 16, 16], [-11, -23, 11, 23]]
    exact = anchors.cell_anchors((32,), (0.5,), rounding=False)
    assert (exact[0, 2] - exact[0, 0]) * (exact[0, 3] - exact[0, 1]) == pytest.approx(32 * 32)


@pytest.mark.parametrize("size", [(320, 416), (600, 600), (800, 1333), (97, 130), (33, 1)])
@pytest.mark.parametrize("name", ["retinanet_resnet50", "fcos_resnet50"])
def test_anchors_are_torchvisions(name, size):
    peers.torchvision()
    import torch
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.image_list import ImageList

    spec = catalog.get(name).spec
    generator = AnchorGenerator(spec.anchor_sizes, (spec.anchor_ratios,) * len(spec.levels))
    maps = [torch.zeros(1, 1, rows, columns) for rows, columns in anchors.grid_sizes(spec, size)]
    expected = generator(ImageList(torch.zeros(1, 3, *size), [size]), maps)[0].numpy()
    assert np.array_equal(np.concatenate(anchors.anchors(spec, size)), expected)


@pytest.mark.parametrize(
    "spec",
    [
        catalog.get("retinanet_resnet50").spec,
        catalog.light(networks.get("resnet18").spec),
        catalog.get("fcos_resnet50").spec.replace(anchor_offset=0.5, anchor_ratios=(0.5, 2.0), anchor_rounding=False),
    ],
    ids=["corners", "middles", "two ratios"],
)
def test_anchors_of_the_graph_are_those_of_numpy(spec):
    from resfit.networks.detection.build import _DECODING

    layer = DecodeBoxes(**{field: getattr(spec, field) for field in _DECODING})
    again = DecodeBoxes.from_config(layer.get_config())
    for size in ((97, 130), (64, 64)):
        maps = [np.zeros((1, *grid, 1), np.float32) for grid in anchors.grid_sizes(spec, size)]
        for number, expected in enumerate(anchors.anchors(spec, size)):
            assert np.array_equal(np.asarray(again.anchors_of_level(number, *size, maps[number])), expected)


def test_points_lie_in_the_middle_of_their_cells():
    spec = catalog.light(networks.get("resnet18").spec)
    first = anchors.anchors(spec, (64, 64))[0]
    assert first[0].tolist() == [0, 0, 8, 8]
    assert first[-1].tolist() == [56, 56, 64, 64]
    assert len(first) == 64


def test_deltas_are_decoded_as_torchvision_does():
    peers.torchvision()
    import torch
    from torchvision.models.detection._utils import BoxCoder, BoxLinearCoder

    own, codes = some(200), np.random.default_rng(1).normal(0, 3, (200, 4)).astype(np.float32)
    expected = BoxCoder((1.0, 1.0, 1.0, 1.0)).decode_single(torch.tensor(codes), torch.tensor(own)).numpy()
    assert np.abs(expected).max() > 5000  # some are cut at log(1000 / 16)
    np.testing.assert_allclose(np.asarray(boxes.decode_deltas(codes, own)), expected, rtol=2e-6, atol=1e-3)
    expected = BoxLinearCoder().decode(torch.tensor(codes), torch.tensor(own)).numpy()
    np.testing.assert_allclose(np.asarray(boxes.decode_distances(codes, own)), expected, rtol=1e-6, atol=1e-4)


def test_codes_come_back():
    own, target = some(100), some(100, 1)
    stds = (0.1, 0.1, 0.2, 0.2)
    codes = boxes.encode_deltas(target, own, stds)
    np.testing.assert_allclose(np.asarray(boxes.decode_deltas(codes, own, stds)), target, atol=1e-3)
    points = np.concatenate([target[:, :2] + 1, target[:, :2] + 9], axis=1)
    distances = np.asarray(boxes.encode_distances(target, points))
    np.testing.assert_allclose(np.asarray(boxes.decode_distances(distances, points)), target, atol=1e-3)
    assert boxes.encode_deltas(np.array([[2.0, 0, 6, 4]]), np.array([[0.0, 0, 4, 8]])).numpy()[0] == pytest.approx(
        [0.5, -0.25, 0, np.log(0.5)]
    )


def test_the_mean_of_a_distribution():
    logits = np.full((1, 1, 8), -50, np.float32)
    logits[0, 0, [1, 2]] = 50  # left is sure of 1, top of 0
    found = np.asarray(boxes.expected_distances(logits, 2))[0, 0]
    assert found == pytest.approx([1, 0, 0.5, 0.5])
    peaked = np.full((1, 1, 68), 0, np.float32)
    peaked[0, 0, 5] = 100
    assert np.asarray(boxes.expected_distances(peaked, 17))[0, 0] == pytest.approx([5, 8, 8, 8])


def test_distances_are_positive_and_finite():
    codes = np.array([-3, 0, 2, 1e9], np.float32)
    assert np.asarray(boxes.activate_distances(codes, "relu")).tolist() == [0, 0, 2, 1e9]
    assert np.asarray(boxes.activate_distances(codes, "exp")) == pytest.approx([np.exp(-3), 1, np.exp(2), 1000])


def test_overlaps_of_known_boxes():
    first = np.array([[0, 0, 10, 10]], np.float32)
    second = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [10, 0, 20, 10], [20, 0, 30, 10], [4, 4, 4, 4]], np.float32)
    assert np.asarray(boxes.iou_matrix(first, second))[0] == pytest.approx([1, 1 / 3, 0, 0, 0])
    found = np.asarray(boxes.giou(np.repeat(first, 5, axis=0), second))
    assert found == pytest.approx([1, 1 / 3, 0, -1 / 3, 0])
    assert np.asarray(boxes.iou(np.repeat(first, 5, axis=0), second)) == pytest.approx([1, 1 / 3, 0, 0, 0])


def test_overlaps_are_torchvisions():
    library = peers.torchvision()
    import torch

    first, second = some(40), some(50, 1)
    expected = library.ops.box_iou(torch.tensor(first), torch.tensor(second)).numpy()
    np.testing.assert_allclose(np.asarray(boxes.iou_matrix(first, second)), expected, atol=1e-6)
    expected = np.diagonal(library.ops.generalized_box_iou(torch.tensor(first), torch.tensor(second[:40])).numpy())
    np.testing.assert_allclose(np.asarray(boxes.giou(first, second[:40])), expected, atol=1e-6)


def test_gradients_of_giou_are_finite_for_boxes_without_area():
    tf = pytest.importorskip("tensorflow")
    own = tf.Variable([[0.0, 0, 0, 0], [0, 0, 8, 8], [30, 30, 20, 20]])
    with tf.GradientTape() as tape:
        value = ops.sum(boxes.giou(own, ops.convert_to_tensor([[0.0, 0, 0, 0], [2, 2, 6, 6], [0, 0, 4, 4]])))
    assert np.isfinite(value.numpy())
    assert np.isfinite(tape.gradient(value, own).numpy()).all()


def test_boxes_are_cut_to_the_image():
    found = boxes.clip_boxes(keras.ops.convert_to_tensor([[-5.0, -5, 500, 500], [3, 4, 5, 6]]), 100, 200)
    assert np.asarray(found).tolist() == [[0, 0, 200, 100], [3, 4, 5, 6]]
