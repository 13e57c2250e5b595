import csv
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from benchmarks.planted import plant

from resfit.cli import main
from resfit.data import image_statistics, samples
from resfit.data.dataset import scan
from resfit.errors import ArgumentError, DataError, MissingDependencyError
from resfit.features import extract as feature_store
from resfit.features import pixels as storage
from resfit.quality import checking
from resfit.report import cards
from resfit.tasks import classification
from resfit.wording import counted
from tests.pictures import tiny_body, write_folder


@pytest.fixture(scope="module")
def body():
    import resfit

    return resfit.load("resnet10_tiny", include_top=False, pooling="avg")


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory):
    """A part of the sample with defects in it, and which they are."""
    whole = samples.unpack(tmp_path_factory.mktemp("sample") / "whole")
    folder = tmp_path_factory.mktemp("spoiled") / "images"
    for part, each in (("train", 50), ("test", 20)):
        for name in sorted(path.name for path in (whole / part).iterdir()):
            for path in sorted((whole / part / name).iterdir())[:each]:
                target = folder / part / name / path.name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
    return folder, plant(folder, copies=20, exact=5, blurred=5)


@pytest.fixture(scope="module")
def found(body, spoiled):
    return checking.check(body, scan(spoiled[0]))


def paths_of(found, positions):
    return {found.images.paths[position] for position in positions}


# planted defects


def test_flipped_labels_are_found(found, spoiled):
    errors = paths_of(found, [item.position for item in found.label_errors])
    planted = set(spoiled[1].flipped)
    assert len(errors & planted) >= 0.5 * len(planted)
    assert len(errors & planted) >= checking.LABEL_PRECISION[1] * len(errors)  # what the findings state
    assert "37% to 81% of these are" in checking.label_precision()
    for item in found.label_errors:
        assert item.suggested != item.label == found.images.labels[item.position]
        assert item.probability < 0.1


def test_copies_are_found_and_leak(found, spoiled):
    done = spoiled[1]
    exact = {frozenset(found.images.paths[place] for place in group) for group in found.exact}
    assert exact == {frozenset(pair) for pair in done.exact}
    near = {frozenset(found.images.paths[place] for place in pair) for pair in found.near.tolist()}
    planted = {frozenset(pair) for pair in done.copies}
    assert len(near & planted) >= 0.5 * len(planted)
    assert len(near - planted) <= 2
    leaked = {found.images.paths[test]: kind for test, _, kind in found.leaks}
    assert {path for path, kind in leaked.items() if kind == "exact"} == {copy for copy, _ in done.exact}
    assert len({copy for copy, _ in done.copies} & set(leaked)) >= 10
    assert found.stops


def test_the_watermark_and_the_blurred_are_found(found, spoiled):
    done = spoiled[1]
    (mark,) = found.marks
    assert found.images.classes[mark.label] == done.marked_class
    marked = paths_of(found, mark.positions)
    assert len(marked & set(done.marked)) >= 0.85 * len(done.marked)
    assert len(marked - set(done.marked)) <= 3
    assert set(done.blurred) <= paths_of(found, found.looks.blurred) | {done.flipped[0]}
    assert len(found.looks.blurred) <= 8


def test_findings_and_json(found, spoiled):
    text = " ".join(found.findings())
    for part in ("5 exact copies", "pairs of near duplicates", "labels worth a look (if 5 % of all", "mark is on",
                 "blurred images"):  # fmt: skip
        assert part in text
    whole = json.loads(json.dumps(found.to_dict(most=None)))
    assert whole["exact_duplicates"]["count"] == len(whole["exact_duplicates"]["items"]) == 5
    assert len(json.dumps(found.to_dict(most=3))) < len(json.dumps(whole))
    assert all(not Path(item["path"]).is_absolute() for item in whole["label_errors"]["items"])


def test_a_second_check_computes_nothing(found, body, spoiled, monkeypatch):
    def never(*_, **__):
        raise AssertionError("an image was decoded again")

    monkeypatch.setattr(feature_store.decode, "decode_renderings", never)
    again = checking.check(body, scan(spoiled[0]))
    assert again.to_dict() == found.to_dict()


def test_images_are_decoded_once_for_features_and_records(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "d", each=8)
    (folder / "red" / "bad.png").write_bytes(b"nothing")
    decoded = []
    original = feature_store.decode.decode_renderings

    def counting(data, *arguments, **options):
        decoded.append(data)
        return original(data, *arguments, **options)

    monkeypatch.setattr(feature_store.decode, "decode_renderings", counting)
    found = feature_store.extract(tiny_body(), scan(folder), records=True, cache=tmp_path / "cache")
    assert len(decoded) == 25
    assert len(found.records) == len(found.rows) == 24
    pixels = storage.decoded(scan(folder).paths, tiny_body().input_spec, tmp_path / "other", records=True)
    np.testing.assert_array_equal(pixels.records, found.records)
    np.testing.assert_array_equal(pixels.indices, found.indices)
    assert pixels.digests == found.digests
    assert len(decoded) == 50
    decoded.clear()  # features that are there already, and no records
    feature_store.extract(tiny_body(), scan(folder), cache=tmp_path / "third")
    late = feature_store.extract(tiny_body(), scan(folder), records=True, cache=tmp_path / "third")
    assert (late.computed, late.reused) == (0, 24)
    np.testing.assert_array_equal(late.records, found.records)


# in a fit


def test_a_fit_stops_at_leaks_and_says_what_they_do(body, spoiled, tmp_path):
    with pytest.raises(
        DataError,
        match=r"of 225 test images are in the training set too.*an exact copy of.*with them a probe is right on \d",
    ):
        classification.fit(spoiled[0], model=body)
    fitted = classification.fit(spoiled[0], model=body, allow_leakage=True, out=tmp_path / "out")
    stated = fitted.metrics["checks"]
    assert stated["leaks"]["count"] >= 15
    whole, clean = stated["leak_effect"]
    with open(tmp_path / "out" / "test_predictions.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    leaked = {
        found["test"] for found in classification.Classifier.load(tmp_path / "out").metrics["checks"]["leaks"]["items"]
    }
    assert whole == pytest.approx(fitted.metrics["test"]["accuracy"])
    right = [row["label"] == row["predicted"] for row in rows]
    assert whole == pytest.approx(np.mean(right))
    assert clean < whole
    assert len(leaked) <= 20
    assert "checks" not in classification.fit(spoiled[0], model=body, check=False).metrics


def test_duplicates_stay_on_one_side_of_a_split_of_resfits_own(tmp_path):
    folder = write_folder(tmp_path / "d", each=20)
    for colour in ("red", "green", "blue"):
        for number in range(10):
            shutil.copyfile(folder / colour / f"{number:03}.png", folder / colour / f"copy {number:03}.png")
    fitted = classification.fit(folder, model=tiny_body(), out=tmp_path / "out", test_share=0.4)
    with open(tmp_path / "out" / "test_predictions.csv", encoding="utf-8") as file:
        tested = {(path.parent.name, path.name) for path in (Path(row["path"]) for row in csv.DictReader(file))}
    copies = {(colour, name) for colour, name in tested if name.startswith("copy")}
    assert copies
    assert all((colour, name.removeprefix("copy ")) in tested for colour, name in copies)
    others = {(colour, name) for colour, name in tested - copies if int(name[:3]) < 10}
    assert all((colour, f"copy {name}") in tested for colour, name in others)
    assert fitted.metrics["checks"]["exact_duplicates"]["count"] == 30
    assert not fitted.recipe.grouped


# the parts


def test_probabilities_left_out_are_those_of_leaving_out():
    random = np.random.default_rng(0)
    labels = np.arange(40) % 2
    rows = random.normal(0, 1, (40, 5)) + labels[:, None]
    found = checking.left_out(rows, labels, 2)
    guesses = found.argmax(axis=1)
    scale = (rows - rows.mean(axis=0)) / rows.std(axis=0)
    goal = np.eye(2)[labels]
    best = None
    for ridge in checking._RIDGES:  # by leaving out one after the other, with the penalty that agrees best
        scores = []
        for place in range(40):
            rest = np.arange(40) != place
            centre, offset = scale[rest].mean(axis=0), goal[rest].mean(axis=0)
            x, y = scale[rest] - centre, goal[rest] - offset
            weights = np.linalg.solve(x.T @ x + 40 * ridge * np.eye(5), x.T @ y)
            scores.append((scale[place] - centre) @ weights + offset)
        agreement = np.corrcoef(np.array(scores)[:, 1], np.log(found[:, 1] / found[:, 0]))[0, 1]
        best = max(best or 0, agreement)
    assert best > 0.9999
    assert (guesses == labels).mean() > 0.8
    np.testing.assert_allclose(found.sum(axis=1), 1)


def test_more_features_than_images_give_the_same_as_their_span():
    random = np.random.default_rng(0)
    labels = np.arange(60) % 3
    rows = random.normal(0, 1, (60, 8)) + np.eye(3)[labels] @ random.normal(0, 1, (3, 8))
    rows = (rows - rows.mean(axis=0)) / rows.std(axis=0)
    wide = np.repeat(rows, 10, axis=1)  # the same, ten times: a penalty ten times as weak
    few, many = checking.left_out(rows, labels, 3), checking.left_out(wide, labels, 3)
    assert (few.argmax(axis=1) == many.argmax(axis=1)).mean() > 0.95


def records_of(count, **columns):
    table = np.zeros(count, image_statistics.RECORD)
    random = np.random.default_rng(0)
    table["width"] = table["height"] = 64
    table["bytes"] = random.integers(2000, 4000, count)
    table["thumbnail"] = random.integers(0, 256, table["thumbnail"].shape)
    for name, values in columns.items():
        table[name] = values
    return table


def test_shortcuts_that_are_there_and_those_that_are_not():
    labels = np.arange(400) % 4
    found = {item.cue: item for item in checking.shortcuts(records_of(400), labels, np.arange(400))}
    assert set(found) == {"file size", "mean colour", "border"}  # the rest is the same for all
    assert not any(item.strong for item in found.values())
    assert sum(item.above_chance for item in found.values()) <= 1
    planted = records_of(400, width=np.where(labels == 2, 80, 64), bytes=1000 + 500 * labels)
    found = {item.cue: item for item in checking.shortcuts(planted, labels, np.arange(400))}
    assert found["file size"].accuracy == 1
    assert found["file size"].strong
    assert found["image size"].given_away == (2,)
    assert found["image size"].accuracy == pytest.approx(0.5, abs=0.02)
    assert found["image size"].interval[0] > found["image size"].chance == 0.25
    assert checking.shortcuts(planted[:40], labels[:40], np.arange(40)) == []


def test_groups_join_those_of_the_data(tmp_path):
    folder = write_folder(tmp_path / "d", each=6)
    images = scan(folder)
    same = checking.Duplicates(((0, 7),), np.array([[7, 9], [12, 13]]))
    groups = ["p" if place in (1, 9) else None for place in range(18)]
    found = checking.group_duplicates(checking.dataclasses.replace(images, groups=tuple(groups)), same).groups
    joined = {place for place in range(18) if found[place] == found[0]}
    assert joined == {0, 1, 7, 9}
    assert found[12] == found[13] != found[0]
    assert found[2] is None
    nothing = checking.Duplicates((), np.zeros((0, 2), np.int64))
    assert checking.group_duplicates(images, nothing) is images


def test_cleanlab_where_it_is_installed_and_where_not(monkeypatch):
    random = np.random.default_rng(0)
    labels = np.arange(200) % 4
    rows = np.eye(4)[labels] * 8 + random.normal(0, 1, (200, 4))
    wrong = labels.copy()
    wrong[:6] = (wrong[:6] + 1) % 4
    for method in ("ridge", pytest.importorskip("cleanlab") and "cleanlab"):
        assert {item.position for item in checking.label_errors(rows, wrong, method=method)} == set(range(6))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"resfit\[checks\]"):
        checking.label_errors(rows, wrong, method="cleanlab")
    with pytest.raises(ArgumentError, match="label_method must be one of"):
        checking.label_errors(rows, wrong, method="cleanlabs")


# the command and its page


def test_the_command_prints_and_writes_a_page(spoiled, tmp_path, capsys):
    def run(*arguments):
        with pytest.raises(SystemExit) as stopped:
            main.run([str(argument) for argument in arguments])
        return stopped.value.code or 0, *capsys.readouterr()

    page = tmp_path / "checks.html"
    code, text, errors = run("check", spoiled[0], "--report", page)
    assert code == 0
    assert "5 exact copies of other images" in text
    assert "labels worth a look (if 5 %" in text
    assert str(page) in errors
    html = page.read_text("utf-8")
    for part in ("Labels worth a look (if 5 %", "The same mark", "Exact copies: 5", "data:image/jpeg;base64,"):
        assert part in html
    assert "http:" not in html
    assert "https:" not in html
    code, text, _ = run("check", spoiled[0], "--json")
    assert json.loads(text)["exact_duplicates"]["count"] == 5
    code, _, errors = run("check", spoiled[0], "--report", tmp_path / "checks.txt")
    assert code == 2
    assert "must end in .html" in errors
    code, _, errors = run("fit", spoiled[0], "-o", tmp_path / "out")
    assert code == 1
    assert "--allow-leakage" in errors


def test_names_in_the_page_do_no_harm(tmp_path):
    from resfit.report.checks import render

    folder = write_folder(tmp_path / "d", each=6)
    evil = folder / "red" / "<script>alert(1)<script>.png"
    shutil.copyfile(folder / "red" / "001.png", evil)
    html = render(checking.check(tiny_body(), scan(folder), cache=False))
    assert "<script>" not in html
    assert "&lt;script&gt;" in html


def rows_of_report(checks):
    """Returns what the data card of a report prints of the checks that a fit left."""
    return {name.removeprefix("data check: "): text for name, text in cards._checks({"checks": checks.to_dict()})}


def test_a_report_prints_the_counts_that_were_computed(found):
    rows = rows_of_report(found)
    computed = found.to_dict(most=None)
    assert rows["groups of exact copies"] == str(len(found.exact)) == str(computed["exact_duplicates"]["count"])
    assert rows["images in both training and test set"] == str(len(found.leaks)) == str(len(computed["leaks"]["items"]))
    assert rows["labels worth a look"] == str(len(found.label_errors))
    assert rows["blurred images"] == str(len(found.looks.blurred))
    assert rows["blank images"] == str(len(found.looks.blank)) == "0"
    assert found.not_run == {}
    strong = [item.cue for item in found.shortcuts if item.strong]
    assert rows["shortcuts"] == (", ".join(strong) or "none")


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (np.zeros(40, np.int64), "fewer than two classes"),
        (np.array([0] * 38 + [1] * 2), "a class has fewer than 3 images"),
        (np.arange(40) % 2, "no features were computed"),
    ],
)
def test_what_was_not_checked_is_not_reported_as_zero(tmp_path, labels, reason):
    features = np.zeros((40, 0 if reason.startswith("no features") else 3), np.float32)
    images = scan(write_folder(tmp_path / "d", each=20))
    images = dataclasses.replace(images.subset(range(40)), labels=labels)
    same = checking.Duplicates((), np.zeros((0, 2), np.int64))
    checks = checking.examine(images, features, records_of(40), same)
    assert checks.not_run["label_errors"] == reason
    told = checks.to_dict()
    assert told["label_errors"] == {"count": None, "items": []}
    assert told["leaks"]["count"] is None  # no test set is stated
    assert told["shortcuts"] is None  # too few images to probe
    assert told["near_duplicates"]["count"] == 0  # looked for, and there are none
    rows = rows_of_report(checks)
    assert rows["labels worth a look"] == f"not checked: {reason}"
    assert rows["images in both training and test set"] == "not checked: the data states no test set"
    assert rows["pairs of near duplicates"] == "0"


def test_one_is_singular():
    assert [counted(number, "pair") for number in (0, 1, 2)] == ["0 pairs", "1 pair", "2 pairs"]
    assert counted(1, "exact copy", "exact copies") == "1 exact copy"
