"""From a folder with drawn boxes to a detector: it learns, is saved and loaded, resumes, and says what it measured."""

from __future__ import annotations

import csv
import functools
import json
import pickle

import numpy as np
import pytest
from PIL import Image

import resfit
from resfit import processors
from resfit.data.boxes import SkippedBoxesError, scan_boxes
from resfit.engines.openvino import OpenVinoEngine
from resfit.errors import ArgumentError, ArtifactError, DataError
from resfit.tasks import dispatch
from resfit.tasks.detection.checks import check
from resfit.tasks.detection.fit import fit, plan
from resfit.tasks.detection.network import detector_spec
from tests.cards import AMPERE, cards
from tests.tasks.apart import said_apart, spoil
from tests.tasks.detection.drawn import scene, write_set

FAST = {
    "size": (96, 128),
    "strategy": "head",
    "views": 1,
    "batch_size": 4,
    "head": {"head_width": 32, "pyramid_width": 32, "norm_groups": 8, "head_depth": 1},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("boxes") / "set", {"train": 40, "val": 12, "test": 12})


@pytest.fixture(scope="module")
def detector(folder, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    said = []
    found = resfit.fit(folder, cache=cache, tuning={"epochs": 8, "learning_rate": 4e-3}, say=said.append, **FAST)
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
    assert not any("used to fit" in note for note in found.notes)
    assert any(note.startswith("52 of 64 images were used to fit") for note in detector.evaluate(folder).notes)
    assert [table.title for table in found.tables()][1:] == [
        "classes",
        "by size of the boxes",
        "mistakes at the thresholds",
    ]
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


def test_a_saved_detector_predicts_and_serves_without_keras(detector, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("RESFIT_CACHE", str(tmp_path / "cache"))
    out, pictures = tmp_path / "found.resfit", sorted(folder.glob("test-*.png"))[:3]
    detector.save(out)
    loaded = resfit.Detector.load(out)
    assert "model" in vars(loaded)
    loaded.predict(pictures[0])  # which keeps the network
    said = said_apart(out, pictures)
    assert said["imported"] == []
    expected = loaded.arrays(loaded.predict(pictures, threshold=0.0, engine="keras"))
    assert expected["scores"].max() > 0.5
    assert expected["count"].min() > 1
    for found in (said["predicted"], said["served"]):
        np.testing.assert_array_equal(found["count"], expected["count"])
        np.testing.assert_array_equal(found["classes"], expected["classes"])
        np.testing.assert_allclose(found["scores"], expected["scores"], atol=1e-4)
        np.testing.assert_allclose(found["boxes"], expected["boxes"], atol=0.05)
    images = np.stack([np.asarray(Image.open(path)) for path in pictures])
    np.testing.assert_allclose(said["features"], np.asarray(loaded.body()(images)), rtol=1e-4, atol=1e-4)
    again = resfit.Detector.load(out)
    assert "model" not in vars(again)
    copied = pickle.loads(pickle.dumps(again)).predict(pictures, threshold=0.0, engine="keras")
    np.testing.assert_allclose(loaded.arrays(copied)["boxes"], expected["boxes"], atol=1e-4)
    # another threshold is another detector, and a damaged network is none
    again.thresholds = {"disc": 0.9, "square": 0.9}
    again.save(tmp_path / "other.resfit")
    assert "model" in vars(resfit.Detector.load(tmp_path / "other.resfit"))
    spoil(tmp_path / "cache", resfit.Detector.load(out)._origin.record)
    again = resfit.Detector.load(out)
    assert "model" in vars(again)
    found = again.arrays(again.predict(pictures, threshold=0.0))
    np.testing.assert_allclose(found["boxes"], expected["boxes"], atol=0.05)
    assert "model" not in vars(resfit.Detector.load(out))  # it was made again


def test_a_detector_that_disagrees_is_not_kept(detector, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("RESFIT_CACHE", str(tmp_path / "cache"))
    picture = sorted(folder.glob("test-*.png"))[0]
    expected = detector.predict(picture, threshold=0.0, engine="keras")
    detector.save(tmp_path / "found.resfit")
    # boxes that agree in the cosine of a row, and lie a pixel away
    convert = OpenVinoEngine.run
    monkeypatch.setattr(OpenVinoEngine, "run", lambda self, images: convert(self, images) + np.float32(0.2))
    resfit.Detector.load(tmp_path / "found.resfit").predict(picture)
    monkeypatch.undo()
    monkeypatch.setenv("RESFIT_CACHE", str(tmp_path / "cache"))
    again = resfit.Detector.load(tmp_path / "found.resfit")
    assert "model" in vars(again)
    assert not again._can_keep  # tried once
    np.testing.assert_allclose(again.predict(picture, threshold=0.0).boxes, expected.boxes, atol=1e-3)


def test_scores_are_calibrated_without_a_change_of_their_order(detector):
    found = detector.run.test
    assert detector.recipe.score_scale > 0
    matching = found.matching
    counted = ~matching.ignored[:, 0, 0]
    scores, right = matching.score[counted], matching.hit[counted, 0, 0]
    assert abs(scores.mean() - right.mean()) < 0.1


def test_batches_without_a_readable_picture_keep_the_order(detector, folder, tmp_path):
    damaged = [tmp_path / f"{number}.png" for number in range(5)]
    for path in damaged:
        path.write_bytes(b"nothing")
    good = sorted(folder.glob("test-*.png"))[:3]
    mixed = [*damaged[:2], good[0], damaged[2], *damaged[3:], good[1], good[2]]
    found = detector.predict(mixed, batch_size=2, engine="openvino", threshold=0.05)
    assert [one.path for one in found] == mixed
    assert [bool(one.error) for one in found] == [True, True, False, True, True, True, False, False]
    for one, alone in zip((found[2], found[6], found[7]), detector.predict(good, threshold=0.05), strict=True):
        assert len(one) == len(alone) > 0
        assert np.abs(one.boxes - alone.boxes).max() < 0.1
    assert all(one.error for one in detector.predict(damaged, batch_size=2))


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
    alone = detector.predict(tmp_path / "turned.png")
    assert np.abs(alone.boxes - turned.boxes).max(initial=0) < 1e-3
    assert alone.labels == turned.labels
    assert alone.draw().size == (128, 96)
    several = detector.predict([tmp_path / "plain.png", tmp_path / "turned.png"])
    assert len(several.to_dataframe()) == len(plain) + len(turned) == len(several.to_coco())
    with pytest.raises(ArgumentError, match=r"take found\[0\]\.boxes"):
        _ = several.boxes
    for row, box in zip(turned.to_coco(7), turned.boxes, strict=True):
        assert row["image_id"] == 7
        assert row["bbox"][2] == pytest.approx(box[2] - box[0])
    with pytest.raises(ArgumentError, match="threshold must name classes"):
        detector.predict(image, threshold={"cat": 0.5})


class Killed(BaseException):
    pass


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """Enough pictures for two steps an epoch."""
    return write_set(tmp_path_factory.mktemp("boxes") / "few", {"train": 16, "val": 4, "test": 4}, seed=3)


def test_a_killed_run_ends_with_the_weights_of_one_that_was_not(few, tmp_path):
    when = 5  # in the second phase: two epochs of two steps come before it
    tuning = {"epochs": 2, "batch_size": 8, "head": {"epochs": 2}}
    options = {**FAST, "strategy": "last", "tuning": tuning, "cache": tmp_path / "cache"}
    whole = fit(few, out=tmp_path / "whole", **options)
    last = whole.run.history[-1]
    assert last["phase"] == "body"
    assert last["step"] > when
    with pytest.raises(KeyboardInterrupt):
        fit(few, out=tmp_path / "killed", stop=lambda step: step == when, **options)
    assert not (tmp_path / "killed").exists()
    said = []
    again = fit(few, out=tmp_path / "killed", say=said.append, stop=lambda step: False, **options)
    assert any("interrupted" in line for line in said)
    assert again.metrics["validation"]["ap"] == whole.metrics["validation"]["ap"]
    for one, other in zip(again.model.get_weights(), whole.model.get_weights(), strict=True):
        assert np.array_equal(one, other)
    assert not (tmp_path / "killed.run").exists()


def test_callbacks_see_every_validation_and_end_the_training(few):
    """Of maps that are not stored, too."""
    import keras

    class Told(keras.callbacks.Callback):
        def __init__(self):
            super().__init__()
            self.calls = []

        def on_train_batch_end(self, batch, logs=None):
            self.calls.append(("batch", batch))

        def on_epoch_end(self, epoch, logs=None):
            self.calls.append(("end", epoch, logs))
            self.model.stop_training = True

        def on_train_end(self, logs=None):
            self.calls.append(("over", [float(v.numpy().sum()) for v in self.model.trainable_variables]))

    told = Told()
    tuning = {"epochs": 4, "batch_size": 8}
    options = {**FAST, "strategy": "last", "tuning": tuning, "cache": False, "views": 0}
    found = fit(few, **{**options, "callbacks": [told]})
    assert found.recipe.views == 0
    rows = found.run.history
    assert [(row["epoch"], row["phase"]) for row in rows] == [(0, "head"), (1, "head")]  # the body's did not begin
    batches = [call[1] for call in told.calls if call[0] == "batch"]
    assert batches == list(range(rows[1]["step"]))  # how many epochs pass before a validation is the clock's choice
    assert [call[1] for call in told.calls if call[0] == "end"] == [0]
    (logs,) = (call[2] for call in told.calls if call[0] == "end")
    assert (logs["loss"], logs["val_ap"]) == (rows[1]["train_loss"], rows[1]["val_ap"])
    assert told.calls[-1][0] == "over"
    with pytest.raises(ArgumentError, match="callbacks must be keras"):
        fit(few, **{**FAST, "callbacks": [print]})


def test_the_budget_is_kept_and_what_was_better_before_is_kept(few, tmp_path):
    ticks = iter(range(10**9))
    found = fit(
        few,
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


def test_pictures_without_boxes_bad_boxes_and_a_set_of_one_class(tmp_path):
    folder = write_set(tmp_path / "set", {"train": 12, "val": 3}, seed=4, shapes=("disc",))
    with open(folder / "labels.csv", "a", newline="") as file:
        rows = csv.writer(file)
        for number in range(6):
            name = f"empty-{number}.png"
            Image.new("RGB", (40, 160), (100, 100, 100)).save(folder / name)
            rows.writerow([name, "", "", "", "", "", "train" if number < 5 else "val"])
        rows.writerow(["train-0.png", "disc", 5, 5, 5, 20, "train"])
    options = {**FAST, "cache": tmp_path / "cache", "test_share": 0.0, "tuning": {"epochs": 1, "batch_size": 2}}
    found = fit(folder, out=tmp_path / "out", **options)
    assert all(np.isfinite(row["train_loss"]) for row in found.run.history)
    assert found.classes == ("disc",)
    assert found.run.test is None
    assert "test" not in found.metrics
    assert "degenerate" in (tmp_path / "out" / "skipped.csv").read_text()
    assert any("degenerate" in note for note in found.run.notes)
    with open(folder / "labels.csv", "a", newline="") as file:
        for number in range(12):
            csv.writer(file).writerow([f"train-{number}.png", "disc", 500, 500, 600, 600, "train"])
    with pytest.raises(SkippedBoxesError):
        fit(folder, out=tmp_path / "new", **options)
    assert "outside" in (tmp_path / "new" / "skipped.csv").read_text()
    assert not (tmp_path / "new" / "model.json").exists()


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


def test_the_size_follows_the_smallest_class(tmp_path):
    from resfit.networks import catalog
    from resfit.tasks.detection.fit_plan import make_plan

    folder = write_set(tmp_path / "set", {"train": 6})
    found = scan_boxes(folder)
    plain = {"strategy": "auto", "minutes": None, "views": None, "head": {}, "batch_size": None, "storage": None}
    spec = catalog.get("resnet10_tiny").spec
    assert make_plan(found, spec, size=None, folder=tmp_path, **plain).size == (256, 256)
    import dataclasses

    sizes = found.sizes * 8  # the same boxes in larger pictures: 30 of 1024 pixels
    small = dataclasses.replace(found, sizes=sizes)
    assert make_plan(small, spec, size=None, folder=tmp_path, **plain).size == (640, 640)
    assert make_plan(found, spec, size=(96, 160), folder=tmp_path, **plain).size == (96, 160)
    # a budget that allows few passes takes a smaller input, at which the boxes are still seen
    larger = dataclasses.replace(found, sizes=found.sizes * 6)
    hasty, patient = (
        make_plan(larger, spec, size=None, folder=tmp_path, **{**plain, "minutes": minutes}) for minutes in (0.02, 60)
    )
    (text,) = [reason for reason in hasty.reasons if reason.startswith("input of")]
    narrow = float(text.split("smallest one, is ")[1].split()[0])
    assert hasty.size < patient.size
    assert 14 <= narrow <= 18
    assert f"{patient.size[0]} would be better and take longer than the budget" in text


def test_the_body_learns_once_the_head_has_had_its_passes(tmp_path):
    from resfit.networks import catalog
    from resfit.tasks.detection import fit_plan

    found = scan_boxes(write_set(tmp_path / "set", {"train": 60}))
    spec = catalog.get("resnet10_tiny").spec
    given = {"strategy": "auto", "views": None, "head": {}, "batch_size": None, "storage": None, "size": 320}
    plans = {
        minutes: fit_plan.make_plan(found, spec, folder=tmp_path, packaged=True, minutes=minutes, **given)
        for minutes in (0.5, 1, 2, 4, 8, 16, 32)
    }
    shares = {minutes: one.head_share for minutes, one in plans.items() if one.strategy != "head"}
    assert plans[0.5].strategy == "head"
    assert plans[0.5].head_share == 1.0
    assert plans[32].strategy == "full"
    assert plans[32].head_share == pytest.approx(0.3)
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    assert {one.head["head_width"] for one in plans.values()} == {64}  # what the package has weights of
    assert plans[32].pretrained_head
    fresh = fit_plan.make_plan(found, spec, folder=tmp_path, minutes=32, **given)
    assert (fresh.head["head_width"], fresh.pretrained_head) == (96, False)


def test_on_a_card_the_plan_is_made_of_what_was_measured(tmp_path, monkeypatch):
    from resfit.engines.speed import ForwardSpeed
    from resfit.networks import arithmetic, catalog
    from resfit.tasks.detection import fit_plan, speed
    from resfit.training import recipes

    folder = write_set(tmp_path / "set", {"train": 60})
    found, spec = scan_boxes(folder), catalog.get("resnet10_tiny").spec
    options = {"minutes": 0.5, "strategy": "auto", "views": 1, "head": {}, "batch_size": None, "storage": None}
    made = functools.partial(fit_plan.make_plan, found, spec, size=320, folder=tmp_path, packaged=True, **options)
    on_processor = made()
    cards(monkeypatch, AMPERE)
    asked = {"budget": "1m", "views": 1}
    first = plan(folder, device="gpu", cache=tmp_path / "cache", **asked)
    assert any(reason.startswith("measured on gpu:0: ") for reason in first.reasons)
    assert len(list((tmp_path / "cache" / "speed").glob("*.json"))) == 2
    again = plan(folder, device="gpu", cache=tmp_path / "cache", **asked)
    assert again == first
    macs = arithmetic.count(spec, input_size=spec.input_size, include_top=False).macs
    seconds = {"forward": 1e-7, "step": 1e-6}
    monkeypatch.setattr(speed.engine_speed, "forward", lambda *_: ForwardSpeed(seconds["forward"], 32, False))
    monkeypatch.setattr(speed.training_speed, "step_seconds", lambda body, precision, *_: seconds["step"])
    fast = made()
    size = np.mean([path.stat().st_size for path in found.paths])
    decoding = recipes.decoding_seconds(size, processors.available())
    assert fast.hardware == pytest.approx(
        {"training": 3 * macs / 1e-6, "forward": macs / 1e-7, "predicting": macs / 1e-7, "decoding": decoding,
         "device": "gpu:0"}
    )  # fmt: skip
    assert fast.seconds["features"] == pytest.approx(60 * decoding)  # which is what takes longer
    assert (on_processor.strategy, fast.strategy) == ("head", "full")
    passes = float(fast.reasons[-1].split("about ")[1].split()[0])
    assert passes == pytest.approx(0.75 * 30 * (1 - fast.head_share) / (0.7 * 60 * decoding), rel=0.01)
    seconds["forward"] = 1.0
    body = fit_plan._Costs.of(detector_spec(spec, len(found.classes), (320, 320), **fast.head), (320, 320)).body
    assert made().seconds["features"] == pytest.approx(60 * body / macs)


def test_grad_cam_of_a_box_is_warm_on_it(detector, folder):
    (picture, *_) = sorted(folder.glob("test-*.png"))
    (found,) = detector.predict(picture, threshold=0.0)
    (shown,) = detector.explain(picture, box=0)
    assert not shown.error
    assert shown.label == found.labels[0]
    assert shown.probability == pytest.approx(float(found.scores[0]), abs=1e-4)
    assert shown.map.shape == (96, 128)
    x1, y1, x2, y2 = np.round(found.boxes[0]).astype(int)
    inside = shown.map[max(y1 - 8, 0) : y2 + 8, max(x1 - 8, 0) : x2 + 8]
    assert inside.mean() > 1.5 * shown.map.mean()
    assert shown.picture().shape == (96, 128, 3)
    (none,) = detector.explain(picture, box=10_000)
    assert "no box number 10000" in none.error
    for wrong in ({"target": "cat"}, {"stage": "stage1"}, {"box": -1}):
        with pytest.raises(ArgumentError):
            detector.explain(picture, **wrong)


def test_a_large_picture_in_tiles_has_the_boxes_of_its_parts(detector, tmp_path):
    random = np.random.default_rng(8)
    large = Image.new("RGB", (384, 288), (110, 110, 110))
    truth = []
    for row in range(3):
        for column in range(3):
            part, boxes = scene(random)
            large.paste(part, (column * 128, row * 96))
            truth += [
                (label, x1 + column * 128, y1 + row * 96, x2 + column * 128, y2 + row * 96)
                for label, x1, y1, x2, y2 in boxes
            ]
    large.save(tmp_path / "large.png")

    def recall(found):
        near = [
            any(
                lab == label and np.abs(box - np.array(true)).max() < 8
                for lab, box in zip(found.labels, found.boxes, strict=True)
            )
            for label, *true in truth
        ]
        return np.mean(near)

    (whole,) = detector.predict(tmp_path / "large.png")
    (tiled,) = detector.predict(tmp_path / "large.png", tiles=(96, 128), overlap=0.25)
    assert tiled.size == (288, 384)
    assert recall(tiled) > max(0.5, recall(whole))
    assert len(tiled) < 2 * len(truth)  # what two tiles show is one object
    with pytest.raises(ArgumentError, match="tiles must have sides"):
        detector.predict(tmp_path / "large.png", tiles=8)
    (failed,) = detector.predict([tmp_path / "none.png"], tiles=96)
    assert failed.error


def test_tiles_cover_the_picture_and_bound_their_number():
    from resfit.tasks.detection.tiles import Tiling, merged

    tiles = Tiling((100, 120), 0.2).of((250, 300))
    assert tiles[0] == (0, 0, 120, 100)
    assert tiles[-1] == (180, 150, 300, 250)
    covered = np.zeros((250, 300), int)
    for left, top, right, bottom in tiles:
        assert (right - left, bottom - top) == (120, 100)
        covered[top:bottom, left:right] += 1
    assert covered.min() >= 1
    assert Tiling((100, 120)).of((40, 50)) == [(0, 0, 50, 40)]
    with pytest.raises(ArgumentError, match="at most 2500 tiles"):
        Tiling((32, 32)).of((20_000, 20_000))
    # a box that an edge cut gives way to the whole one, though its score is higher
    boxes = np.array([[0, 0, 10, 5], [0, 0, 10, 10], [50, 50, 60, 60], [0, 0, 10, 9]], float)
    kept = merged(boxes, np.array([0.9, 0.6, 0.5, 0.4]), np.array([0, 0, 0, 1]), np.array([1, 0, 0, 0], bool), most=9)
    assert kept.tolist() == [1, 2, 3]


def test_fitting_in_tiles_measures_whole_pictures(tmp_path):
    folder = write_set(tmp_path / "set", {"train": 6, "val": 3, "test": 2}, seed=4, size=(160, 200))
    found = resfit.fit(folder, cache=tmp_path / "cache", tiles=(96, 128), tuning={"epochs": 1}, **FAST)
    assert found.recipe.tiles == (96, 128)
    assert found.run.test.images == 2
    assert any("11 pictures are cut into 44 tiles" in note for note in found.run.notes)
    (one,) = found.predict(folder / "test-0.png", threshold=0.0)
    assert one.size == (160, 200)
    found.save(tmp_path / "out")
    assert resfit.Detector.load(tmp_path / "out").recipe == found.recipe


def test_checks_find_what_was_planted(detector, tmp_path):
    folder = write_set(tmp_path / "set", {"train": 12, "test": 6}, seed=21)
    rows = list(csv.reader((folder / "labels.csv").read_text().splitlines()))
    (folder / "test-copy.png").write_bytes((folder / "train-0.png").read_bytes())
    first = next(row for row in rows[1:] if row[0] == "train-0.png")
    rows += [["test-copy.png", *first[1:6], "test"]]
    other = "square" if first[1] == "disc" else "disc"
    rows += [["train-0.png", other, *first[2:6], "train"]]  # two classes at one place
    gone = next(row for row in rows[1:] if row[0] == "test-1.png")
    rows.remove(gone)
    if not any(row[0] == "test-1.png" for row in rows):
        rows.append(["test-1.png", "", "", "", "", "", "test"])
    swapped = next(row for row in rows[1:] if row[0] == "test-2.png")
    swapped[1] = "square" if swapped[1] == "disc" else "disc"
    with open(folder / "labels.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    found = check(folder, detector=detector, cache=tmp_path / "cache", size=(96, 128))
    text = " | ".join(found.findings())
    assert "1 exact copy of another picture" in text
    assert "1 picture in both training and test set" in text
    assert "1 pair of boxes that cover each other, of different classes" in text
    kinds = {(found.name(one.image), one.kind) for one in found.doubtful}
    missing = [one for one in found.doubtful if found.name(one.image) == "test-1.png" and one.kind == "missing"]
    assert missing, kinds
    assert np.abs(np.array(missing[0].box) - np.array(gone[2:6], float)).max() < 8
    assert ("test-2.png", "class") in kinds
    json.dumps(resfit_json(found.to_dict()))
    assert any("covers" in table.title or "cover" in table.title for table in found.tables())
    plain = check(folder, cache=tmp_path / "cache", size=32)
    assert plain.doubtful is None
    assert plain.to_dict()["doubtful"] is None  # not computed, and not reported as zero
    median = plain.statistics.side_quantiles((0.5,))[0.5]
    assert 5 < median < 10
    assert f"the median box is {median:.0f} px at 32x32: use --size 96" in plain.findings()


def test_the_drawn_set_of_the_demo_has_boxes_to_the_pixel(tmp_path):
    from resfit.data import drawn_boxes

    drawn_boxes.write_set(tmp_path, {"train": 3, "test": 2}, size=(120, 160))
    found = scan_boxes(tmp_path)
    assert sorted(found.splits) == ["test", "test", "train", "train", "train"]
    image, boxes = drawn_boxes.scene(np.random.default_rng(3), (240, 320))
    plain, _ = drawn_boxes.scene(np.random.default_rng(3), (240, 320), most=0)
    changed = (np.asarray(image) != np.asarray(plain)).any(axis=2)
    inside = np.zeros_like(changed)
    for _, x1, y1, x2, y2 in boxes:
        inside[y1:y2, x1:x2] = True
        part = changed[y1:y2, x1:x2]
        assert part[0].any() and part[-1].any() and part[:, 0].any() and part[:, -1].any()  # noqa: PT018
    assert boxes
    assert not changed[~inside].any()


@pytest.mark.slow
def test_detectors_of_parts_find_a_box_that_nobody_marked(tmp_path):
    folder = write_set(tmp_path / "set", {"train": 60})
    rows = (folder / "labels.csv").read_text().splitlines()
    gone = next(row for row in rows if row.startswith("train-7.png"))
    kept = [row for row in rows if row != gone]
    if not any(row.startswith("train-7.png") for row in kept):
        kept.append("train-7.png,,,,,,train")
    (folder / "labels.csv").write_text("\n".join(kept) + "\n")
    label, *box = gone.split(",")[1:6]
    found = check(folder, held_out="40s", size=96, cache=False)
    first = [one for one in found.doubtful if one.kind == "missing"][:3]
    mine = [one for one in first if found.name(one.image) == "train-7.png" and one.suggested == label]
    assert len(mine) == 1
    np.testing.assert_allclose(mine[0].box, [float(edge) for edge in box], atol=6)


def test_detectors_of_parts_and_a_given_one_exclude_each_other(detector, tmp_path):
    with pytest.raises(ArgumentError, match="detector and held_out must not both be given"):
        check(write_set(tmp_path / "set", {"train": 4}), detector=detector, held_out="1m")


def test_pyramid_and_head_begin_with_the_weights_in_the_package_where_they_fit():
    from importlib.resources import files

    from safetensors.numpy import load_file

    from resfit.tasks.detection import network

    narrow = {"pyramid_width": 64, "head_width": 64, "norm_groups": 16, "quality": None}
    values = load_file(str(files("resfit") / "weights" / "resnet10_tiny_detector_head.safetensors"))
    made = network.build("resnet10_tiny", 3, (320, 320), **narrow)
    assert made.pretrained_head
    for layer in made.head.layers:
        for variable in layer.weights:
            if (name := f"{layer.name}/{variable.name}") in values:
                np.testing.assert_array_equal(variable.numpy(), values.pop(name).astype(np.float32))
    assert not values  # all of the file is used
    assert made.head.get_layer("class_logits_conv").kernel.shape[-1] == 3
    fresh = network.build("resnet10_tiny", 3, (320, 320), pretrained_head=False, **narrow)
    assert not fresh.pretrained_head
    assert not np.array_equal(fresh.head.get_layer("box_1_conv").kernel, made.head.get_layer("box_1_conv").kernel)
    assert not network.build("resnet10_tiny", 3, (320, 320), **{**narrow, "head_width": 96}).pretrained_head
    assert network.build("resnet10_tiny", 3, (96, 96), **narrow).pretrained_head  # with a level less
