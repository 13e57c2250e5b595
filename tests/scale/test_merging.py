"""What all shards say together is what one machine says."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

import resfit
from resfit import scale
from resfit.errors import ArgumentError
from resfit.scale import duplicates, merging
from resfit.scale.unit import Unit
from tests.pictures import write_folder
from tests.scale.common import photos
from tests.tasks.detection.drawn import write_set
from tests.tasks.test_regression import disc


def done(plan):
    unit = Unit(plan, threads=1)
    results = [unit.run(number) for number in range(plan.shards)]
    assert {found.state for found in results} == {"done"}
    return plan


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures, a few of them in the folder of another class."""
    place = photos(tmp_path_factory.mktemp("merging") / "photos", each=9)
    for number in range(3):
        shutil.move(place / "blue" / f"00{number}.png", place / "green" / f"1{number}.png")
    return place


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    place = tmp_path_factory.mktemp("merging")
    out = place / "colours.resfit"
    resfit.fit(write_folder(place / "train", 8), out=out, check=False)
    return out


def assert_same(found, expected, within=1e-6):
    """Compares what JSON can hold."""
    assert type(found) is type(expected) or {type(found), type(expected)} <= {int, float}
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        for key, value in expected.items():
            assert_same(found[key], value, within)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other, within)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, abs=within, nan_ok=True)
    else:
        assert found == expected


def test_figures_with_their_intervals_are_those_of_one_machine(folder, classifier, tmp_path, monkeypatch):
    plan = done(scale.plan(folder, tmp_path / "run", task="evaluate", model=classifier, shard_images=7))
    assert plan.shards == 4
    expected = resfit.Classifier.load(classifier).evaluate(folder, cache=False).to_dict()
    assert 0.5 < expected["accuracy"] < 1
    found = scale.finish(plan)
    assert_same(found.result, expected)
    assert (found.errors, found.notes) == (1, ())
    monkeypatch.setattr(merging, "MOST_BYTES", 0)  # more than fits in memory: by sums alone
    by_sums = scale.finish(plan)
    del expected["figures"]
    assert_same(by_sums.result, expected)
    assert "areas under curves and resampled intervals are not computed" in by_sums.notes[0]


@pytest.fixture(scope="module")
def discs(tmp_path_factory):
    """Discs with their radius and area, in groups of three; one is cut off."""
    place = tmp_path_factory.mktemp("discs")
    generator = np.random.default_rng(5)
    rows = ["path,radius,area,group"]
    for number in range(42):
        radius = generator.uniform(5, 22)
        Image.fromarray(disc(radius, *generator.uniform(24, 40, 2))).save(place / f"{number}.png")
        rows.append(f"{number}.png,{radius!r},{np.pi * radius**2!r},g{number // 3}")
    (place / "3.png").write_bytes((place / "3.png").read_bytes()[:60])
    (place / "discs.csv").write_text("\n".join(rows) + "\n")
    return place / "discs.csv"


def test_figures_of_a_regressor_are_those_of_one_machine(discs, tmp_path, monkeypatch):
    columns = {"label_column": "radius,area", "group_column": "group"}
    resfit.fit(discs, task="regression", out=tmp_path / "discs.resfit", check=False, **columns)
    options = {"task": "evaluate", "model": tmp_path / "discs.resfit", "shard_images": 9}
    plan = done(scale.plan(discs, tmp_path / "run", **options, **columns))
    assert plan.shards == 5
    expected = resfit.Regressor.load(tmp_path / "discs.resfit").evaluate(discs, cache=False, **columns).to_dict()
    radius = expected["numbers"][0]
    assert radius["r2"]["low"] < radius["r2"]["value"] < radius["r2"]["high"]
    assert radius["interval_width"] > 0
    finished = scale.finish(plan)
    assert_same(finished.result, expected, within=1e-4)  # areas of 1,000
    assert (finished.result["n"], finished.errors, finished.notes) == (41, 1, plan.notes)
    monkeypatch.setattr(merging, "MOST_BYTES", 0)
    by_sums = scale.finish(plan)
    for found, whole in zip(by_sums.result["numbers"], expected["numbers"], strict=True):
        assert found["interval_coverage"] == whole["interval_coverage"]
        for name in ("mae", "rmse", "r2"):
            assert found[name]["value"] == pytest.approx(whole[name]["value"], rel=1e-5)
            assert found[name]["low"] is None
    assert "resampled intervals are not computed" in by_sums.notes[0]


@pytest.mark.slow
def test_figures_of_a_detector_are_those_of_one_machine(tmp_path, monkeypatch):
    folder = write_set(tmp_path / "boxes", {"train": 8, "val": 4, "test": 9}, seed=4)
    head = {"head_width": 16, "pyramid_width": 16, "norm_groups": 4, "head_depth": 1}
    learning = {"strategy": "head", "views": 1, "batch_size": 4, "tuning": {"epochs": 3, "learning_rate": 1e-2}}
    out = tmp_path / "boxes.resfit"
    resfit.fit(folder, out=out, check=False, size=(96, 128), head=head, cache=False, **learning)
    (folder / "test-3.png").write_bytes(b"no picture")
    options = {"task": "evaluate", "model": out, "shard_images": 4, "max_skipped": 1.0, "engine": "keras"}
    plan = done(scale.plan(folder, tmp_path / "run", **options))
    expected = resfit.Detector.load(out).evaluate(folder, engine="keras", max_skipped=1.0).to_dict()
    assert 0 < expected["metrics"]["ap50"] < 1
    finished = scale.finish(plan)
    assert_same(finished.result, json.loads(json.dumps(expected)), within=1e-5)
    assert finished.notes == plan.notes
    monkeypatch.setattr(merging, "MOST_BYTES", merging._OF_DETECTION * 300)
    some = scale.finish(plan)
    assert 0 < some.result["images"] < expected["images"]
    assert f"figures are of {some.result['images']} of {plan.images} pictures" in some.notes[-1]


def test_only_fitted_models_are_evaluated(folder, tmp_path):
    with pytest.raises(ArgumentError, match="needs the folder of a fitted model"):
        scale.plan(folder, tmp_path / "run", task="evaluate")
    with pytest.raises(ArgumentError, match="Did you mean 'predict'"):
        scale.plan(folder, tmp_path / "run", task="predct")
    with pytest.raises(ArgumentError, match="part is of task='evaluate'"):
        scale.plan(folder, tmp_path / "run", part="test")


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    """Training and test images with copies in other shards, one of another class."""
    place = tmp_path_factory.mktemp("copies") / "photos"
    for part, seed in (("train", 0), ("test", 50)):
        for colour in ("blue", "green", "red"):
            for number in range(8):
                random = np.random.default_rng([seed, number, ord(colour[0])])
                coarse = random.integers(0, 256, (6, 6, 3)).astype(np.uint8)
                target = place / part / colour / f"{number}.png"
                target.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(coarse).resize((48, 48), Image.Resampling.BICUBIC).save(target)
    shutil.copy(place / "train/blue/1.png", place / "test/blue/leaked.png")
    shutil.copy(place / "train/blue/2.png", place / "train/red/copied.png")
    Image.open(place / "train/green/3.png").resize((40, 40)).save(place / "train/green/near.png")
    return place


def test_checks_are_those_of_one_machine(copies, tmp_path):
    plan = done(scale.plan(copies, tmp_path / "run", task="check", shard_images=11))
    assert plan.shards == 5
    expected = resfit.check(copies, engine=plan.options["engine"], cache=False).to_dict()
    found = scale.finish(plan).result
    assert found["exact_duplicates"]["count"] == 2
    assert found["leaks"]["count"] >= 1
    for result in (found, expected):  # copies are as doubtful as each other
        result["label_errors"]["items"].sort(key=lambda item: item["path"])
    assert_same(found, expected, within=2e-3)  # what is left out and predicted again multiplies the last digits


def test_duplicates_of_more_images_than_fit_in_memory_are_found_in_buckets(copies, tmp_path, monkeypatch):
    plan = done(scale.plan(copies, tmp_path / "run", task="check", shard_images=11))
    one = scale.finish(plan).result
    monkeypatch.setattr(merging, "MOST_CHECKED", 10)
    monkeypatch.setattr(duplicates, "IN_BUCKET", 7)
    finished = scale.finish(plan)
    found = finished.result
    for name in ("exact_duplicates", "leaks"):
        assert found[name]["count"] == sum(1 for _ in one[name]["items"] if name != "leaks" or _["kind"] == "exact")
    pairs = {frozenset(path.rpartition("photos/")[2] for path in group) for group in found["exact_duplicates"]["items"]}
    assert pairs == {
        frozenset({"train/blue/1.png", "test/blue/leaked.png"}),
        frozenset({"train/blue/2.png", "train/red/copied.png"}),
    }
    assert found["conflicting_labels"]["count"] == 1
    near = [{path.rpartition("photos/")[2] for path in pair} for pair in found["near_duplicates"]["items"]]
    assert {"train/green/3.png", "train/green/near.png"} in near
    assert found["classes"] == {"blue": 17, "green": 17, "red": 17}
    assert "label errors, shortcuts, marks and odd images are not looked for" in finished.notes[-1]
