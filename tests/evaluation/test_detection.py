"""Detection figures: equal to COCO's two programs, and to numbers found by hand."""

from __future__ import annotations

import contextlib
import dataclasses
import io

import numpy as np
import pytest

from resfit.errors import ArgumentError
from resfit.evaluation import intervals
from resfit.evaluation.detection import FIGURES, PredictedBoxes, TrueBoxes, compare, match
from resfit.evaluation.detection_errors import CORRECT, KINDS, NOT_COUNTED, detection_errors

SQUARE = [10, 10, 50, 50]


def drawn(seed, images, classes, *, whole=True, ties=True, dense=False, reach=350):
    """Random true boxes, some crowds, some with other areas; and detections near them, beside them and anywhere."""
    random = np.random.default_rng(seed)

    def rounded(boxes):
        return np.round(boxes) if whole else boxes.astype(np.float32).astype(float)

    def anywhere(count):
        corner, side = random.uniform(0, reach, (count, 2)), np.exp(random.uniform(1.4, 5.5, (count, 2)))
        return rounded(np.concatenate([corner, corner + side], axis=1))

    numbers = random.poisson(6, images) * (random.random(images) > 0.15)
    owners = np.repeat(np.arange(images), numbers)
    boxes, labels = anywhere(len(owners)), random.integers(0, classes, len(owners))
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) * random.choice([1, 0.6], len(owners))
    truth = TrueBoxes(owners, boxes, labels, random.random(len(owners)) < 0.1, area)
    found = []
    for _ in range(3):
        some = random.random(len(owners)) < 0.7
        side = np.tile(boxes[some, 2:] - boxes[some, :2], 2)
        near = rounded(
            boxes[some] + random.normal(0, 0.12, side.shape) * side * random.choice([0, 0.3, 1], (len(side), 1))
        )
        near = np.concatenate([np.minimum(near[:, :2], near[:, 2:]), np.maximum(near[:, :2], near[:, 2:])], axis=1)
        other = random.integers(0, classes, len(near))
        found.append((owners[some], near, np.where(random.random(len(near)) < 0.85, labels[some], other)))
    numbers = random.poisson(15, images) * (random.random(images) > 0.1)
    if dense:  # more than 100 of an image and class
        numbers[0] = 130 * classes
    owners = np.repeat(np.arange(images), numbers)
    found.append((owners, anywhere(len(owners)), random.integers(0, classes, len(owners))))
    owners, boxes, labels = (np.concatenate(column) for column in zip(*found, strict=True))
    scores = random.random(len(owners))
    order = random.permutation(len(owners))
    predicted = PredictedBoxes(owners, boxes, np.round(scores, 1) if ties else scores, labels)
    return truth, PredictedBoxes(**{name: value[order] for name, value in vars(predicted).items()})


def of_coco(truth, predicted, images, classes, program):
    """COCO's twelve figures by one of its programs; NaN where it writes -1."""
    pytest.importorskip(program.replace("-", "_"))
    if program == "pycocotools":
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval as Evaluation
    else:
        from faster_coco_eval import COCO
        from faster_coco_eval import COCOeval_faster as Evaluation

    def bbox(box):
        return [float(box[0]), float(box[1]), float(box[2] - box[0]), float(box[3] - box[1])]

    annotations = [
        {
            "id": row + 1,
            "image_id": int(owner),
            "category_id": int(label) + 1,
            "iscrowd": int(crowd),
            "area": float(area),
        }
        | {"bbox": bbox(box)}
        for row, (owner, box, label, crowd, area) in enumerate(zip(*vars(truth).values(), strict=True))
    ]
    results = [
        {"image_id": int(owner), "bbox": bbox(box), "score": float(score), "category_id": int(label) + 1}
        for owner, box, score, label in zip(*vars(predicted).values(), strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO()
        known.dataset = {
            "info": {},
            "images": [{"id": image, "width": 600, "height": 600, "file_name": str(image)} for image in range(images)],
            "categories": [{"id": label + 1, "name": str(label)} for label in range(classes)],
            "annotations": annotations,
        }
        known.createIndex()
        evaluation = Evaluation(known, known.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    stats = np.array(evaluation.stats[:12], float)
    return np.where(stats == -1, np.nan, stats)


def values(matching):
    return np.array([matching.figures()[name] for name in FIGURES])


@pytest.mark.parametrize("program", ["pycocotools", "faster-coco-eval"])
@pytest.mark.parametrize(
    ("seed", "images", "classes", "options"),
    [
        (0, 1, 1, {}),
        (1, 25, 3, {"dense": True}),
        (2, 40, 7, {"whole": False}),
        (3, 12, 2, {"ties": False, "dense": True}),
        (4, 30, 20, {"whole": False, "ties": False}),
        (5, 30, 2, {"reach": 40}),  # boxes cover each other and crowds
    ],
)
def test_the_twelve_figures_are_cocos(seed, images, classes, options, program):
    truth, predicted = drawn(seed, images, classes, **options)
    found = values(match(truth, predicted, images=images, classes=classes))
    np.testing.assert_allclose(found, of_coco(truth, predicted, images, classes, program), rtol=0, atol=1e-9)


@pytest.mark.parametrize("program", ["pycocotools", "faster-coco-eval"])
def test_of_two_boxes_that_overlap_alike_the_later_is_taken_as_coco_does(program):
    truth = TrueBoxes(*map(np.array, ([0, 0], [[0, 0, 40, 40], [20, 0, 60, 40]], [0, 0], [0, 0], [1600, 1600])))
    for second, ap50 in (([0, 0, 40, 40], 1.0), ([20, 0, 60, 40], 51 / 101)):
        boxes = np.array([[10, 0, 50, 40], second])  # the first lies between both
        predicted = PredictedBoxes(np.zeros(2, int), boxes, np.array([0.9, 0.8]), np.zeros(2, int))
        matching = match(truth, predicted, images=1, classes=1)
        assert matching.figures()["ap50"] == pytest.approx(ap50)
        np.testing.assert_allclose(values(matching), of_coco(truth, predicted, 1, 1, program), atol=1e-9)


def test_a_hand_computed_average_precision():
    # by falling score: hit, false alarm, hit, of three true boxes: precision 1 up to recall 1/3, 2/3 up to 2/3
    truth = TrueBoxes([0, 0, 1], [SQUARE, [100, 100, 140, 140], SQUARE], [0, 0, 0])
    boxes = [SQUARE, [200, 200, 240, 240], SQUARE]
    matching = match(truth, PredictedBoxes([0, 0, 1], boxes, [0.9, 0.8, 0.7], [0, 0, 0]), images=2, classes=["cat"])
    expected = (34 * 1 + 33 * 2 / 3) / 101  # recalls 0 .. 0.33, 0.34 .. 0.66
    assert matching.figures()["ap50"] == pytest.approx(expected, abs=1e-12)
    assert matching.figures()["ar1"] == pytest.approx(2 / 3)
    assert np.isnan(matching.figures()["ap_small"])
    assert matching.per_class()["cat"]["boxes"] == 3
    assert matching.per_class()["cat"]["detections"] == 3


def test_nothing_found_is_zero_and_nothing_there_is_unknown():
    nothing = PredictedBoxes([], [], [], [])
    found = match(TrueBoxes([0], [SQUARE], [1]), nothing, images=3, classes=2)
    assert found.figures()["ap"] == 0.0
    assert np.isnan(found.per_class()["0"]["ap"])
    assert all(
        np.isnan(value) for value in match(TrueBoxes([], [], []), nothing, images=3, classes=2).figures().values()
    )
    overall, by_class = match(TrueBoxes([], [], []), nothing, images=2, classes=2).intervals(resamples=5)
    assert np.isnan(overall["ap"].value)
    assert np.isnan(by_class["1"]["ap"].low)
    assert (
        match(TrueBoxes([], [], []), nothing, images=0, classes=1).intervals(resamples=5)[0]["ap"].to_dict()["value"]
        is None
    )


def test_a_resample_is_what_an_evaluation_of_its_images_gives():
    truth, predicted = drawn(5, 14, 3, whole=False, ties=False)
    matching = match(truth, predicted, images=14, classes=3)
    groups = np.arange(14)
    drawn_figures = matching._resampled(groups, 4, 7)
    weights = np.concatenate(list(intervals.weights(groups, resamples=4, seed=7)), axis=1)
    for column in range(4):
        copies = np.repeat(np.arange(14), weights[:, column].astype(int))

        def again(table, copies=copies):
            rows = [np.flatnonzero(table.images == image) for image in copies]
            fields = {name: np.concatenate([value[row] for row in rows]) for name, value in vars(table).items()}
            return dataclasses.replace(
                table, **fields | {"images": np.repeat(np.arange(14), [len(row) for row in rows])}
            )

        expected = match(again(truth), again(predicted), images=14, classes=3)._class_figures()
        np.testing.assert_allclose(drawn_figures[:, :, column], expected, atol=1e-6)


def test_intervals_hold_the_value_keep_groups_together_and_tell_what_is_missing():
    truth, predicted = drawn(6, 40, 3)
    matching = match(truth, predicted, images=40, classes=["a", "b", "c"])
    overall, by_class = matching.intervals(resamples=200, seed=1)
    assert overall["ap50"].low < overall["ap50"].value < overall["ap50"].high
    assert overall["ap50"].value == matching.figures()["ap50"]
    assert by_class["b"]["ap"].value == matching.per_class()["b"]["ap"]
    again, _ = matching.intervals(resamples=200, seed=1)
    assert again == overall
    grouped, _ = matching.intervals(groups=["one"] * 40, resamples=20)
    assert grouped["ap"].low == pytest.approx(grouped["ap"].high)
    rare = match(
        TrueBoxes([0, 1, 1], [SQUARE] * 3, [0, 1, 1]),
        PredictedBoxes([0], [SQUARE], [1], [0]),
        images=5,
        classes=["r", "s"],
    )
    assert "resamples left out" in rare.intervals(resamples=100)[1]["r"]["ap"].note


def test_a_precision_recall_curve_and_its_best_f1():
    truth = TrueBoxes([0, 0, 1, 2], [SQUARE, [100, 100, 140, 140], SQUARE, SQUARE], [0] * 4)
    boxes = [SQUARE, [100, 100, 140, 140], [200, 200, 240, 240], SQUARE, [300, 300, 340, 340]]
    matching = match(
        truth,
        PredictedBoxes([0, 0, 0, 1, 1], boxes, [0.9, 0.8, 0.7, 0.6, 0.6], [0] * 5),
        images=3,
        classes=["cat", "dog"],
    )
    curve = matching.curve("cat")
    assert curve.scores.tolist() == [0.9, 0.8, 0.7, 0.6]
    np.testing.assert_allclose(curve.precision, [1, 1, 2 / 3, 3 / 5])  # equal scores come together
    np.testing.assert_allclose(curve.recall, [0.25, 0.5, 0.5, 0.75])
    assert curve.interpolated.mean() == pytest.approx(curve.average_precision) == matching.per_class()["cat"]["ap50"]
    point = matching.operating_points()["cat"]
    assert (point.threshold, point.precision, point.recall) == (
        0.8,
        1.0,
        0.5,
    )  # F1 2/3 there and at 0.6: the higher score
    assert point.f1 == pytest.approx(2 / 3)
    assert matching.operating_points()["dog"] is None
    with pytest.raises(ArgumentError, match=r"0\.50, 0\.55"):
        matching.curve("cat", iou=0.42)
    with pytest.raises(ArgumentError, match="bird"):
        matching.curve("bird")


def test_mistakes_by_kind():
    truth = TrueBoxes(
        [0, 0, 1, 1, 2],
        [SQUARE, [100, 100, 140, 140], SQUARE, [200, 200, 300, 300], SQUARE],
        [0, 0, 1, 0, 0],
        crowd=[0, 0, 0, 1, 0],
    )
    found = [
        (0, SQUARE, 0.95, 0, CORRECT),
        (0, [11, 10, 51, 50], 0.9, 0, KINDS.index("duplicate")),
        (0, [100, 100, 140, 115], 0.85, 0, KINDS.index("localisation")),  # overlap 0.375
        (0, [400, 400, 440, 440], 0.8, 0, KINDS.index("background")),
        (1, SQUARE, 0.75, 0, KINDS.index("class")),
        (1, [10, 10, 50, 25], 0.7, 0, KINDS.index("both")),
        (1, [210, 210, 240, 240], 0.65, 0, NOT_COUNTED),  # in a crowd
    ]
    images, boxes, scores, labels, kinds = map(list, zip(*found, strict=True))
    matching = match(truth, PredictedBoxes(images, boxes, scores, labels), images=3, classes=["cat", "dog"])
    errors = detection_errors(matching)
    assert errors.kinds[np.argsort(matching.order)].tolist() == kinds
    assert errors.counts == dict.fromkeys(KINDS, 1)
    assert errors.missed.tolist() == [False, False, False, False, True]
    assert errors.worst("localisation") == [(0, 2, 1)]
    assert errors.worst("class") == [(1, 4, 2)]
    assert errors.worst("missed") == [(2, -1, 4)]
    assert errors.ap50 == pytest.approx(matching.figures()["ap50"])
    # cat: one of three boxes, found first: 34 of 101 recalls; dog: none. With the class put right, dog has all
    assert errors.ap50 == pytest.approx(34 / 101 / 2)
    assert errors.gains["class"] == pytest.approx(0.5)
    assert errors.gains["localisation"] == pytest.approx(33 * (2 / 3) / 101 / 2)
    assert errors.gains["missed"] == pytest.approx(17 / 101 / 2)  # one of two boxes: 51 recalls
    assert errors.gains["background"] == errors.gains["both"] == 0.0  # they come after the only hit
    shown = detection_errors(matching, thresholds={"cat": 0.88})
    assert shown.counts == {**dict.fromkeys(KINDS, 0), "duplicate": 1, "missed": 3}
    with pytest.raises(ArgumentError, match="bird"):
        detection_errors(matching, thresholds={"bird": 0.5})
    with pytest.raises(ArgumentError, match="localisation"):
        errors.worst("blur")


def test_two_detectors_on_the_same_images():
    truth, predicted = drawn(8, 30, 2, ties=False)
    first = match(truth, predicted, images=30, classes=["a", "b"])
    worse = dataclasses.replace(predicted, scores=np.random.default_rng(0).random(len(predicted.scores)))
    second = match(truth, worse, images=30, classes=["a", "b"])
    found = compare(first, second, resamples=100)
    assert found.differences["ap"].value == pytest.approx(first.figures()["ap"] - second.figures()["ap"])
    assert found.per_class["a"].low <= found.per_class["a"].value <= found.per_class["a"].high
    same = compare(first, first, resamples=50)
    assert (same.differences["ap"].low, same.differences["ap"].high) == (0, 0)
    with pytest.raises(ArgumentError, match="same true boxes"):
        compare(first, match(TrueBoxes([0], [SQUARE], [0]), predicted, images=30, classes=["a", "b"]))


@pytest.mark.parametrize(
    ("truth", "predicted", "words"),
    [
        (([0], [SQUARE], [2]), ([0], [SQUARE], [1], [0]), "labels of true boxes must be whole numbers from 0 to 1"),
        (([0], [SQUARE], [0]), ([5], [SQUARE], [1], [0]), "images of detections"),
        (([0], [SQUARE], [0]), ([0], [SQUARE], [np.nan], [0]), "scores must be one finite number"),
        (([0], [SQUARE], [0]), ([0], [[50, 10, 10, 50]], [1], [0]), "x1 <= x2"),
        (([0], [[0, 0, np.inf, 1]], [0]), ([0], [SQUARE], [1], [0]), "true boxes must be finite"),
        (([0, 0], [SQUARE], [0, 0]), ([0], [SQUARE], [1], [0]), "as many images and labels"),
        (([0.5], [SQUARE], [0]), ([0], [SQUARE], [1], [0]), "whole numbers"),
    ],
)
def test_tables_that_do_not_fit_are_refused(truth, predicted, words):
    with pytest.raises(ArgumentError, match=words):
        match(TrueBoxes(*truth), PredictedBoxes(*predicted), images=2, classes=2)
