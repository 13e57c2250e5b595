"""Overlaps, the letterbox and the numbers of a set."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resfit.data.box_geometry import letterbox, overlap_matrix, overlapping_pairs, turn_boxes
from resfit.data.box_statistics import box_statistics
from resfit.data.boxes import BoxSet
from resfit.errors import ArgumentError


def test_overlaps_of_boxes_and_crowds():
    first = [[0, 0, 10, 10], [5, 5, 15, 15], [10, 0, 20, 10], [3, 3, 3, 9]]
    second = [[0, 0, 10, 10], [0, 0, 40, 40]]
    np.testing.assert_allclose(overlap_matrix(first, second), [[1, 1 / 16], [25 / 175, 1 / 16], [0, 1 / 16], [0, 0]])
    np.testing.assert_allclose(overlap_matrix(first, second, [False, True])[:, 1], [1, 1, 1, 0])


def test_pairs_of_the_same_image_are_those_of_the_matrix(monkeypatch):
    random = np.random.default_rng(0)
    corner = random.uniform(0, 60, (80, 2))
    boxes = np.concatenate([corner, corner + random.uniform(5, 40, (80, 2))], axis=1)
    owners = np.sort(random.integers(0, 6, 80))
    table = np.where(owners[:, None] == owners, overlap_matrix(boxes, boxes), 0)
    expected = [(i, j, table[i, j]) for i, j in zip(*np.nonzero(table >= 0.2), strict=True)]
    for at_once in (10**6, 7):  # some millions of candidates, or hardly any, at a time
        monkeypatch.setattr("resfit.data.box_geometry._PAIRS_AT_ONCE", at_once)
        parts = list(overlapping_pairs(boxes, owners, boxes, owners, least=0.2))
        found = [row for part in parts for row in zip(*part, strict=True)]
        assert found == expected


@pytest.mark.parametrize("image", [(480, 640), (640, 480), (1, 5000), (3, 3), (8001, 6007), (607, 801)])
@pytest.mark.parametrize("size", [(600, 600), (320, 416), (800, 1333), (33, 31)])
def test_boxes_go_to_the_input_and_back(image, size):
    for options in ({}, {"centred": False}, {"enlarge": False}):
        fitted = letterbox(image, size, **options)
        corner = np.random.default_rng(0).uniform(0, 1, (50, 4)) * ([image[1], image[0]] * 2)
        there = fitted.to_input(corner)
        np.testing.assert_allclose(fitted.to_image(there), corner, rtol=0, atol=1e-6)
        top, bottom, left, right = fitted.padding
        assert min(fitted.padding) >= 0
        assert (top + fitted.resized[0] + bottom, left + fitted.resized[1] + right) == size
        whole = fitted.to_input([[0, 0, image[1], image[0]]])[0]
        np.testing.assert_allclose(whole, [left, top, size[1] - right, size[0] - bottom], atol=1e-9)
        # its own proportions, to half a pixel of rounding
        factor = min(size[0] / image[0], size[1] / image[1])
        if options.get("enlarge", True):
            assert fitted.resized[0] == size[0] or fitted.resized[1] == size[1]
            assert abs(fitted.resized[0] - max(1, image[0] * factor)) <= 0.5
            assert abs(fitted.resized[1] - max(1, image[1] * factor)) <= 0.5
        else:
            assert fitted.resized[0] <= image[0]
            assert fitted.resized[1] <= image[1]


def test_the_letterbox_is_where_pixels_are():
    pixels = np.zeros((90, 150), np.uint8)
    pixels[30:60, 50:100] = 255
    fitted = letterbox((90, 150), (96, 64))
    assert (fitted.resized, fitted.offset) == ((38, 64), (29, 0))
    small = np.asarray(Image.fromarray(pixels).resize(fitted.resized[::-1], Image.Resampling.BOX))
    canvas = np.full((96, 64), 114, np.uint8)
    canvas[29 : 29 + 38] = small
    x1, y1, x2, y2 = fitted.to_input([[50, 30, 100, 60]])[0]
    rows, columns = np.nonzero(canvas > 200)
    assert abs(rows.min() - y1) < 1
    assert abs(rows.max() + 1 - y2) < 1
    assert abs(columns.min() - x1) < 1
    assert abs(columns.max() + 1 - x2) < 1
    np.testing.assert_allclose(fitted.to_image([[-5, 0, 70, 96]], clip=True), [[0, 0, 150, 90]])
    for wrong in ((0, 10), (10.5, 10)):
        with pytest.raises(ArgumentError, match="image_size must be height and width"):
            letterbox(wrong, (10, 10))


def test_turning_four_times_is_no_turn():
    boxes = np.array([[1, 2, 5, 9], [0, 0, 30, 20]], float)
    once = turn_boxes(boxes, 6, (20, 30))
    assert once.tolist() == [[11, 1, 18, 5], [0, 0, 20, 30]]
    twice = turn_boxes(once, 6, (30, 20))
    np.testing.assert_array_equal(twice, turn_boxes(boxes, 3, (20, 30)))
    np.testing.assert_array_equal(turn_boxes(once, 8, (30, 20)), boxes)


def box_set(rows, sizes, splits=None, classes=("cat", "dog")):
    rows = sorted(rows, key=lambda row: row[0])
    counts = np.bincount([row[0] for row in rows], minlength=len(sizes))
    return BoxSet(
        root=Path("."),
        paths=tuple(Path(f"{i}.jpg") for i in range(len(sizes))),
        splits=tuple(splits or [None] * len(sizes)),
        groups=(None,) * len(sizes),
        sizes=np.array(sizes, np.int32),
        offsets=np.append(0, np.cumsum(counts)),
        boxes=np.array([row[2] for row in rows], np.float32).reshape(-1, 4),
        labels=np.array([row[1] for row in rows], np.int64),
        crowd=np.array([len(row) > 3 for row in rows], bool),
        classes=classes,
    )


def test_the_numbers_of_a_set():
    rows = [
        (0, 0, [100, 100, 140, 140]),
        (0, 0, [101, 100, 141, 140]),  # the same object again: overlap 39 / 41
        (0, 1, [100, 100, 140, 138]),  # overlap 0.95 with another class
        (1, 0, [0, 0, 80, 20]),
        (3, 1, [0, 0, 40, 40]),
        (3, 1, [0, 0, 40, 41], "crowd"),
    ]
    found = box_set(rows, [(400, 400), (800, 400), (50, 50), (400, 400)], ["train", "train", "train", "test"])
    numbers = box_statistics(found, (200, 200))
    assert (numbers.images, numbers.boxes, numbers.crowds, numbers.negatives, numbers.most_boxes) == (4, 5, 1, 1, 3)
    assert numbers.boxes_by_class == {"cat": 3, "dog": 2}
    assert numbers.images_by_class == {"cat": 2, "dog": 2}
    assert numbers.images_by_split == {"train": 3, "test": 1}
    assert numbers.boxes_by_split == {"train": {"cat": 3, "dog": 1}, "test": {"cat": 0, "dog": 1}}
    assert numbers.missing_in_training == ()
    np.testing.assert_allclose(numbers.sides, [20, 20, np.sqrt(20 * 19), 10, 20])
    assert numbers.small == 0.2
    assert numbers.side_quantiles((0.0, 1.0)) == {0.0: pytest.approx(10), 1.0: pytest.approx(20)}
    assert [(pair.image, pair.first, pair.second) for pair in numbers.duplicates] == [(0, 0, 1)]
    assert numbers.duplicates[0].overlap == pytest.approx(39 / 41)
    assert [(pair.first, pair.second) for pair in numbers.contradictions] == [(0, 2), (1, 2)]
    assert (numbers.duplicate_count, numbers.contradiction_count) == (1, 2)
    assert json.loads(json.dumps(numbers.to_dict()))["side_quantiles"]["0.5"] == pytest.approx(20)
    assert numbers.size_needed() == (200, 200)
    assert numbers.size_needed(share=1.0) == (320, 320)  # 10 pixels become 16
    split = dataclasses.replace(found, splits=("test", "train", "train", "test"))
    assert box_statistics(split, (200, 200)).missing_in_training == ("dog",)


def test_a_set_without_boxes_has_no_sizes():
    numbers = box_statistics(box_set([], [(10, 10)], classes=()), (64, 64))
    assert numbers.negatives == 1
    assert numbers.to_dict()["small"] is None
    assert numbers.size_needed() == (64, 64)
    with pytest.raises(ArgumentError, match="input_size"):
        box_statistics(box_set([], [(10, 10)]), (0, 64))


def test_pairs_are_found_among_many(monkeypatch):
    random = np.random.default_rng(1)
    rows = []
    for image in range(3):
        corner = random.uniform(0, 300, (150, 2))
        boxes = np.concatenate([corner, corner + random.uniform(20, 90, (150, 2))], axis=1)
        boxes[75:] = boxes[:75] + random.uniform(-4, 4, (75, 4))
        rows += [(image, int(random.integers(0, 2)), box) for box in boxes]
    found = box_set(rows, [(400, 400)] * 3)
    numbers = box_statistics(found, (320, 320))
    table = np.where(found.owners[:, None] == found.owners, overlap_matrix(found.boxes, found.boxes), 0)
    alike = found.labels[:, None] == found.labels
    upper = np.triu(np.ones_like(alike), 1)
    assert numbers.duplicate_count == (upper & alike & (table >= 0.9)).sum() > 10
    assert numbers.contradiction_count == (upper & ~alike & (table >= 0.8)).sum() > 10
    assert numbers.all_compared
    monkeypatch.setattr("resfit.data.box_statistics.MOST_COMPARED", 500)
    assert not box_statistics(found, (320, 320)).all_compared
