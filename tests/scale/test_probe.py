"""The probe on features of a run: what one machine fits on the same rows."""

import numpy as np
import pytest

import resfit
from resfit import scale
from resfit.errors import ArgumentError, DataError
from resfit.scale import probe
from resfit.scale.unit import Unit
from resfit.tasks.classification.heads import linear, solver
from tests.pictures import write_folder
from tests.scale.common import photos, rows_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures, of which each fourth is called another colour."""
    place = photos(tmp_path_factory.mktemp("probe") / "photos", each=24)
    for number in range(0, 24, 4):
        (place / "blue" / f"{number:03}.png").rename(place / "green" / f"b{number:03}.png")
    return place


@pytest.fixture(scope="module", params=["float32", "float16"])
def plan(request, folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("probe") / "run"
    found = scale.plan(folder, out, dtype=request.param, shard_images=20)
    unit = Unit(found, threads=1)
    assert {unit.run(number).state for number in range(found.shards)} == {"done"}
    return found


def test_the_head_is_that_of_one_machine(plan, tmp_path):
    said = []
    fitted = scale.fit_features(plan, out=tmp_path / "out.resfit", say=said.append)
    rows = rows_of(plan.url)
    rows = rows[rows.error.isna()]
    tested = np.array([probe._is_for_tests(path, 0.2, 0) for path in rows.path])
    images = fitted.metrics["images"]
    assert (images["found"], images["skipped"], images["test"]) == (73, 1, tested.sum())
    assert 2 < tested.sum() < 32
    values = np.stack(rows.features).astype(np.float32)
    labels = np.array([fitted.classes.index(name) for name in rows.label])
    alone = linear.fit_linear(values[~tested], labels[~tested], classes=3)
    head = fitted.head()
    assert fitted.recipe.C == alone.C
    ours, theirs = head.logits(values) * fitted.temperature, alone.logits(values)
    apart = (ours - ours.mean(1, keepdims=True)) - (theirs - theirs.mean(1, keepdims=True))
    assert np.abs(apart).max() < 1e-2 * np.abs(theirs).max()  # which rows are for tests follows from their paths
    np.testing.assert_array_equal(ours.argmax(1), theirs.argmax(1))
    assert fitted.metrics["test"]["accuracy"] == (theirs.argmax(1) == labels)[tested].mean()
    assert "held by 1 workers, read" in said[0]
    again = resfit.Classifier.load(tmp_path / "out.resfit")
    found = again.predict(rows.path.iloc[0])[0]
    expected = head.probabilities(values[:1])[0]
    assert found.probability == pytest.approx(expected.max(), abs=2e-3)


def test_sums_over_holders_are_those_of_all_rows(plan):
    classes = ["blue", "green", "red"]
    whole = probe.RowHolder(plan.url, range(plan.shards), 0.2, 3)
    parts = [probe.RowHolder(plan.url, some, 0.2, 3) for some in ([0], [1, 2], [3])]
    mean = whole.known().total / sum(whole.known().labels.values())
    np.testing.assert_allclose(sum(part.known().total for part in parts), whole.known().total, rtol=1e-9)
    scale_ = linear.scale_of(np.sqrt(whole.squares(mean) / sum(whole.known().labels.values())))
    matrix = np.random.default_rng(0).normal(0, 0.1, (3, len(mean) + 1))
    loss, gradient = whole.sums(matrix, classes, mean, scale_)
    losses, gradients = zip(*(part.sums(matrix, classes, mean, scale_) for part in parts), strict=True)
    assert sum(losses) == pytest.approx(loss, rel=1e-6)
    np.testing.assert_allclose(np.sum(gradients, axis=0), gradient, atol=2e-3)
    sample = whole.sample(10**6, 0, classes)
    hot = np.eye(3, dtype=np.float32)[sample.classes]
    assert solver.sums(matrix, sample.rows, hot, mean=mean, scale=scale_)[0] == pytest.approx(loss, rel=1e-6)


def test_the_choice_of_test_images_keeps_groups_together_and_shares():
    chosen = np.array([probe._is_for_tests(f"{n}.jpg", 0.2, 0) for n in range(20_000)])
    assert chosen.mean() == pytest.approx(0.2, abs=0.01)
    other = np.array([probe._is_for_tests(f"{n}.jpg", 0.2, 1) for n in range(20_000)])
    assert (chosen & other).mean() == pytest.approx(0.04, abs=0.005)


def test_several_labels_an_image_are_fitted_as_on_one_machine(tmp_path):
    place = photos(tmp_path / "photos", each=16)
    files = sorted(path for path in place.rglob("*.png") if path.name != "broken.png")
    rows = ["path,label,split"]
    for number, path in enumerate(files):
        labels = [path.parent.name, *(["even"] if number % 2 == 0 else []), *(["cold"] if "blue" in str(path) else [])]
        labels = [] if number % 11 == 5 else labels
        rows.append(f"{path.relative_to(place)},{';'.join(labels)},{'test' if number % 4 == 1 else 'train'}")
    (place / "labels.csv").write_text("\n".join(rows) + "\n")
    plan = scale.plan(place / "labels.csv", tmp_path / "run", shard_images=13, label_separator=";")
    unit = Unit(plan, threads=1)
    assert {unit.run(number).state for number in range(plan.shards)} == {"done"}
    fitted = scale.fit_features(plan, out=tmp_path / "out.resfit")
    assert fitted.classes == ("blue", "cold", "even", "green", "red")
    frame = rows_of(plan.url)
    values = np.stack(frame.features)
    hot = np.array([[int(name in label.split(";")) for name in fitted.classes] for label in frame.label.fillna("")])
    assert hot.sum(axis=1).min() == 0
    tested = (frame.split == "test").to_numpy()
    alone = linear.fit_linear(values[~tested], hot[~tested])
    head = fitted.head()
    assert (fitted.recipe.C, fitted.recipe.separator, head.activation) == (alone.C, ";", "sigmoid")
    np.testing.assert_allclose(head.logits(values) * fitted.temperature, alone.logits(values), atol=5e-3)
    assert fitted.metrics["images"]["test"] == fitted.metrics["test"]["n"] == tested.sum() == 12
    whole = probe.RowHolder(plan.url, range(plan.shards), 0.2, 0)
    parts = [probe.RowHolder(plan.url, some, 0.2, 0) for some in ([0, 3], [1, 2])]
    known, scale_ = whole.known(), np.ones(values.shape[1])
    assert known.labels == {name: n for name, n in zip(fitted.classes, hot[~tested].sum(axis=0), strict=True)}
    matrix, mean = np.random.default_rng(0).normal(0, 0.1, (5, values.shape[1] + 1)), known.total / known.learned
    loss, gradient = whole.sums(matrix, fitted.classes, mean, scale_)
    losses, gradients = zip(*(part.sums(matrix, fitted.classes, mean, scale_) for part in parts), strict=True)
    assert sum(losses) == pytest.approx(loss, rel=1e-6)
    np.testing.assert_allclose(np.sum(gradients, axis=0), gradient, atol=2e-3)
    again = resfit.Classifier.load(tmp_path / "out.resfit").predict(files[0])[0]
    expected = head.probabilities(values[:1])[0]
    assert set(again.labels) == {name for name, share in zip(fitted.classes, expected, strict=True) if share > 0.5}


def test_what_cannot_be_fitted_says_why(tmp_path):
    place = write_folder(tmp_path / "photos", 4, ("red",))
    plan = scale.plan(place, tmp_path / "run")
    with pytest.raises(DataError, match=r"1 missing, such as 0"):
        scale.fit_features(plan)
    Unit(plan, threads=1).run(0)
    with pytest.raises(DataError, match=r"at least two classes\. Received: 1"):
        scale.fit_features(plan)
    with pytest.raises(ArgumentError, match="are of on='ray'"):
        scale.fit_features(plan, workers=2)
    check = scale.plan(place, tmp_path / "check", task="check")
    with pytest.raises(ArgumentError, match="must be of task='embed'"):
        scale.fit_features(check)
