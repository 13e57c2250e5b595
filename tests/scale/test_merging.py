"""What all shards say together is what one machine says."""

import shutil

import numpy as np
import pytest

import resfit
from resfit import scale
from resfit.errors import ArgumentError
from resfit.scale import duplicates, merging
from resfit.scale.unit import Unit
from tests.pictures import write_folder
from tests.scale.common import photos


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


def test_only_classifiers_are_evaluated(folder, tmp_path):
    with pytest.raises(ArgumentError, match="needs the folder of a classifier"):
        scale.plan(folder, tmp_path / "run", task="evaluate")
    with pytest.raises(ArgumentError, match="Did you mean 'predict'"):
        scale.plan(folder, tmp_path / "run", task="predct")
    with pytest.raises(ArgumentError, match="part is of task='evaluate'"):
        scale.plan(folder, tmp_path / "run", part="test")


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    """Training and test images with copies in other shards, one of another class."""
    from PIL import Image

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
