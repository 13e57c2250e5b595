"""From a folder with drawn boxes to a detector: it learns, is saved and loaded, resumes, and says what it measured."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from PIL import Image

import resfit
from resfit.data.boxes import SkippedBoxesError, scan_boxes
from resfit.errors import ArgumentError, ArtifactError, DataError
from resfit.tasks import dispatch
from resfit.tasks.detection.fit import fit, plan
from tests.tasks.detection.drawn import scene, write_set

FAST = {
    "size": (96, 128),
    "strategy": "head",
    "views": 1,
    "head": {"head_width": 32, "pyramid_width": 32, "norm_groups": 8, "head_depth": 1},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("boxes") / "set", {"train": 40, "val": 12, "test": 12})


@pytest.fixture(scope="module")
def detector(folder, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    said = []
    found = resfit.fit(folder, cache=cache, tuning={"epochs": 12, "learning_rate": 4e-3}, say=said.append, **FAST)
    assert said[0].startswith("task: detection (the data has boxes: ")
    return found


def test_it_learns_to_find_discs_and_squares(detector):
    assert isinstance(detector, resfit.Detector)
    test = detector.metrics["test"]["metrics"]
    assert test["ap50"] > 0.7, test
    assert detector.run.test.metrics["ap50"] == test["ap50"]
    assert detector.run.history[detector.recipe.best_epoch]["val_ap"] == max(r["val_ap"] for r in detector.run.history)
    random = np.random.default_rng(99)
    right = total = 0
    for _ in range(8):
        image, boxes = scene(random)
        (found,) = detector.predict(image)
        assert found.boxes.dtype == np.float32
        assert found.size == (96, 128)
        total += len(boxes)
        for label, *box in boxes:
            near = np.abs(found.boxes - np.array(box)).max(axis=1) < 6
            right += any(near[i] and found.labels[i] == label for i in range(len(found)))
    assert right / total > 0.6


def test_figures_come_by_class_with_intervals_and_mistakes_by_kind(detector, folder):
    found = detector.evaluate(folder, part="test")
    assert found.metrics["ap50"] == pytest.approx(detector.metrics["test"]["metrics"]["ap50"])
    assert set(found.per_class) == {"disc", "square"} == set(found.class_intervals)
    assert found.intervals["ap"].low <= found.metrics["ap"] <= found.intervals["ap"].high
    truth = scan_boxes(folder)
    part = truth.subset([i for i, split in enumerate(truth.splits) if split == "test"])
    assert found.boxes == len(part.boxes)
    shown = sum(len(one) for one in detector.predict(list(part.paths)))
    kinds = found.errors.counts
    hits = int((found.errors.kinds == -1).sum())
    assert shown == hits + sum(count for kind, count in kinds.items() if kind != "missed")
    json.dumps(resfit_json(found.to_dict()))
    assert [table.title for table in found.tables()][1:] == ["classes", "mistakes at the thresholds"]
    assert len(found.plots()) == 2
    assert all(picture.image.shape == (96, 128, 3) for picture in found.pictures())


def resfit_json(value):
    from resfit.storage import bounded_json

    return bounded_json.without_nan(value)


def test_saved_and_loaded_it_says_the_same(detector, folder, tmp_path):
    out = tmp_path / "found.resfit"
    detector.save(out)
    again = resfit.Detector.load(out)
    pictures = sorted(folder.glob("test-*.png"))
    before, after = detector.predict(pictures, threshold=0.0), again.predict(pictures, threshold=0.0)
    for one, other in zip(before, after, strict=True):
        assert np.abs(one.boxes - other.boxes).max(initial=0) < 1e-3
        assert np.abs(one.scores - other.scores).max(initial=0) < 1e-5
        assert one.labels == other.labels
    assert again.thresholds == detector.thresholds
    assert again.recipe == detector.recipe
    assert type(dispatch.load(out)) is resfit.Detector
    with pytest.raises(ArtifactError, match="must hold a classifier"):
        resfit.Classifier.load(out)
    description = json.loads((out / "model.json").read_text())
    for entry, wrong in (("thresholds", {"disc": 2.0, "square": 0.5}), ("classes", ["disc"]), ("input", {"size": 3})):
        broken = tmp_path / "broken"
        broken.mkdir(exist_ok=True)
        from resfit.tasks.detection import schema

        with pytest.raises(ArtifactError, match=entry if entry != "classes" else "classes"):
            schema.read({**description, entry: wrong})


def test_the_engine_and_the_suppressed_model_agree_with_keras(detector, folder):
    pictures = sorted(folder.glob("test-*.png"))[:4]
    plain = detector.predict(pictures, threshold=0.05, engine="keras")
    fast = detector.predict(pictures, threshold=0.05, engine="openvino")
    images = np.stack([np.asarray(Image.open(path)) for path in pictures])
    whole = {name: np.asarray(value) for name, value in detector.suppressed()(images).items()}
    for row, (one, other) in enumerate(zip(plain, fast, strict=True)):
        assert len(one) == len(other)
        assert np.abs(one.boxes - other.boxes).max(initial=0) < 0.1
        assert np.abs(one.scores - other.scores).max(initial=0) < 1e-3
        count = int((whole["scores"][row] >= 0.05).sum())
        assert count == len(one)
        assert np.abs(whole["boxes"][row, :count] - one.boxes).max(initial=0) < 0.05


def test_scores_are_calibrated_without_a_change_of_their_order(detector):
    found = detector.run.test
    assert detector.recipe.score_scale > 0
    matching = found.matching
    counted = ~matching.ignored[:, 0, 0]
    scores, right = matching.score[counted], matching.hit[counted, 0, 0]
    assert abs(scores.mean() - right.mean()) < 0.1


def test_turned_photos_and_what_is_no_picture(detector, tmp_path):
    random = np.random.default_rng(5)
    image, _ = scene(random)
    image.save(tmp_path / "plain.png")
    exif = Image.Exif()
    exif[274] = 6
    image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    (tmp_path / "none.png").write_bytes(b"nothing")
    plain, turned, none = detector.predict([tmp_path / name for name in ("plain.png", "turned.png", "none.png")])
    assert turned.size == plain.size == (96, 128)
    assert np.abs(turned.boxes - plain.boxes).max(initial=0) < 1e-3
    assert len(none) == 0
    assert none.error
    drawn = np.asarray(turned.draw())
    assert drawn.shape == (96, 128, 3)
    assert (drawn != np.asarray(image)).any()
    table = turned.to_dataframe()
    assert list(table.columns) == ["path", "label", "score", "xmin", "ymin", "xmax", "ymax"]
    for row, box in zip(turned.to_coco(7), turned.boxes, strict=True):
        assert row["image_id"] == 7
        assert row["bbox"][2] == pytest.approx(box[2] - box[0])
    with pytest.raises(ArgumentError, match="threshold must name classes"):
        detector.predict(image, threshold={"cat": 0.5})


class Killed(BaseException):
    pass


@pytest.mark.parametrize("when", [3, 13])
def test_a_killed_run_ends_with_the_weights_of_one_that_was_not(folder, tmp_path, when):
    options = {**FAST, "strategy": "full", "tuning": {"epochs": 1, "head": {"epochs": 2}}, "cache": tmp_path / "cache"}
    whole = fit(folder, out=tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        fit(folder, out=tmp_path / "killed", stop=lambda step: step == when, **options)
    assert not (tmp_path / "killed").exists()
    said = []
    again = fit(folder, out=tmp_path / "killed", say=said.append, stop=lambda step: False, **options)
    assert any("interrupted" in line for line in said) == (when > 5)
    assert again.metrics["validation"]["ap"] == whole.metrics["validation"]["ap"]
    for one, other in zip(again.model.get_weights(), whole.model.get_weights(), strict=True):
        assert np.array_equal(one, other)
    assert not (tmp_path / "killed.run").exists()


def test_the_budget_is_kept_and_what_was_better_before_is_kept(folder, tmp_path):
    ticks = iter(range(10**9))
    found = fit(
        folder,
        cache=tmp_path,
        budget=1,
        clock=lambda: next(ticks) * 0.5,
        tuning={"body": {"learning_rate": 100.0}},
        **{**FAST, "strategy": "full"},
    )
    assert found.run.history[-1]["seconds"] <= 60
    assert all(np.isfinite(weight).all() for weight in found.model.get_weights())
    best = max(row["val_ap"] for row in found.run.history)
    assert found.run.history[found.recipe.best_epoch]["val_ap"] == best


def test_pictures_without_boxes_and_a_set_of_one_class(tmp_path):
    folder = write_set(tmp_path / "set", {"train": 6, "val": 3}, seed=4, shapes=("disc",))
    with open(folder / "labels.csv", "a", newline="") as file:
        for number in range(6):
            name = f"empty-{number}.png"
            Image.new("RGB", (40, 160), (100, 100, 100)).save(folder / name)
            csv.writer(file).writerow([name, "", "", "", "", "", "train" if number < 5 else "val"])
    found = fit(folder, cache=tmp_path / "cache", test_share=0.0, tuning={"epochs": 1, "batch_size": 2}, **FAST)
    assert all(np.isfinite(row["loss"]) for row in found.run.history)
    assert found.classes == ("disc",)
    assert found.run.test is None
    assert "test" not in found.metrics


def test_bad_boxes_are_listed_and_too_many_stop_the_run(tmp_path):
    folder = write_set(tmp_path / "set", {"train": 12, "val": 4, "test": 2}, seed=4)
    with open(folder / "labels.csv", "a", newline="") as file:
        csv.writer(file).writerow(["train-0.png", "disc", 5, 5, 5, 20, "train"])
    found = fit(folder, cache=tmp_path / "cache", out=tmp_path / "out", tuning={"epochs": 1}, **FAST)
    assert "degenerate" in (tmp_path / "out" / "skipped.csv").read_text()
    assert any("degenerate" in note for note in found.run.notes)
    with open(folder / "labels.csv", "a", newline="") as file:
        for number in range(12):
            csv.writer(file).writerow([f"train-{number}.png", "disc", 500, 500, 600, 600, "train"])
    with pytest.raises(SkippedBoxesError):
        fit(folder, cache=tmp_path / "cache", out=tmp_path / "new", **FAST)
    assert "outside" in (tmp_path / "new" / "skipped.csv").read_text()
    assert not (tmp_path / "new" / "model.json").exists()


def test_maps_that_are_not_stored_give_a_run_as_well(folder, tmp_path):
    found = fit(folder, cache=False, tuning={"epochs": 1}, **{**FAST, "views": 0})
    assert found.recipe.views == 0
    assert len(found.run.history) == 2


def test_the_plan_says_what_is_chosen_and_why(folder):
    found = plan(folder, budget="5m")
    assert found.strategy == "full"
    assert any("pixels" in reason for reason in found.reasons)
    assert plan(folder, storage=1000).views == 0
    for wrong in ({"strategy": "most"}, {"size": 8}, {"views": -1}, {"batch_size": 0}, {"budget": "soon"}):
        with pytest.raises(ArgumentError):
            plan(folder, **wrong)
    with pytest.raises(DataError):
        plan(folder / "train-0.png")
