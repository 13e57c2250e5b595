"""Features in few bits: what a classifier of them is measured on, and when they are given up."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from resfit import engines
from resfit.data.split import Split
from resfit.errors import ArgumentError, DataError
from resfit.features import extract as feature_store
from resfit.tasks.classification import fit, reduced_precision
from resfit.tasks.classification.data_preparation import TrainingData
from tests.pictures import write_folder
from tests.training.networks import small_body

having_bfloat16 = pytest.mark.skipif(
    not engines.has_precision("openvino", "bfloat16"), reason="this processor does not compute in bfloat16"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("data") / "images", each=15)


@pytest.fixture(scope="module")
def body():
    return small_body()


@having_bfloat16
def test_a_probe_in_bfloat16_is_measured_in_float32(folder, body, tmp_path):
    options = {"model": body, "strategy": "probe", "engine": "openvino", "cache": tmp_path}
    exact = fit(folder, **options)
    found = fit(folder, **options, precision="bfloat16", out=tmp_path / "fast.resfit")
    assert (found.recipe.precision, exact.recipe.precision) == ("bfloat16", "float32")
    assert found.run.computed == found.metrics["images"]["found"]  # features of their own
    (told,) = (text for text in found.run.notes if "bfloat16" in text)
    assert "held-out images" in told
    one, two = (clf.model.layers[-1].get_weights()[0] for clf in (found, exact))
    assert 1e-6 < np.linalg.norm(one - two) / np.linalg.norm(two) < 0.1
    # what is stored of the test images is what the network says in float32
    with open(tmp_path / "fast.resfit" / "test_predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == found.metrics["images"]["test"]
    said = found.predict([folder / row["path"] for row in rows], engine="keras")
    for row, prediction in zip(rows, said, strict=True):
        assert row["predicted"] == prediction.label
        assert float(row["probability"]) == pytest.approx(prediction.probability, abs=5e-6)


@having_bfloat16
def test_features_that_cost_accuracy_are_given_up(folder, body, tmp_path, monkeypatch):
    """An engine whose features in bfloat16 are turned round: the head that learned from them is wrong in float32."""
    options = {"model": body, "strategy": "probe", "engine": "openvino", "cache": tmp_path}
    exact = fit(folder, **options)
    original = feature_store.extract

    def turned(*arguments, **more):
        found = original(*arguments, **more)
        if more.get("precision") == "bfloat16":
            object.__setattr__(found, "rows", -np.asarray(found.rows))
        return found

    monkeypatch.setattr(feature_store, "extract", turned)
    found = fit(folder, **options, precision="bfloat16")
    assert found.recipe.precision == "float32"
    assert any("it may cost at most 0.5%" in text for text in found.run.notes)
    for one, two in zip(found.model.layers[-1].get_weights(), exact.model.layers[-1].get_weights(), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)


def test_precision_belongs_to_a_probe(folder, body):
    with pytest.raises(ArgumentError, match="precision is of a probe's features"):
        fit(folder, model=body, strategy="full", precision="int8")
    with pytest.raises(ArgumentError, match="precision must be one of"):
        fit(folder, model=body, strategy="probe", precision="int4")


def material(count, test):
    targets = np.eye(2, dtype=np.float32)[np.arange(count) % 2]
    everything = np.setdiff1d(np.arange(count), test)
    return TrainingData(None, Split(everything, np.array([], int), np.asarray(test, int)), ("a", "b"), targets, "")


def test_a_training_begins_with_something_of_each_class(monkeypatch):
    monkeypatch.setattr("resfit.tasks.classification.data_preparation._MOST_TO_BEGIN_WITH", 100)
    targets = np.zeros((5000, 3), np.float32)
    targets[:, 0] = 1
    targets[[17, 400, 4999]] = [0, 1, 0]
    targets[1000:1050] = [0, 0, 1]
    data = TrainingData(
        None, Split(np.arange(5000), np.array([], int), np.array([], int)), ("a", "b", "c"), targets, ""
    )
    train = np.arange(5, 5000)
    found = data.some(train, seed=2)
    assert np.array_equal(found, np.unique(found))
    assert np.isin(found, train).all()
    assert 100 <= len(found) <= 120
    assert targets[found].sum(axis=0)[1] == 3
    assert targets[found].sum(axis=0)[2] >= 10
    assert not np.array_equal(found, data.some(train, seed=3))
    np.testing.assert_array_equal(data.some(train[:100], seed=2), train[:100])


class Head:
    """Says the first class where the first feature is positive."""

    def logits(self, rows):
        return np.stack([rows[:, 0], -rows[:, 0]], axis=1)


@pytest.mark.parametrize(("wrong", "kept"), [(0, True), (1, True), (2, False)])
def test_half_a_point_may_be_lost(wrong, kept):
    count = 300
    test = np.arange(0, 300)[:200] if wrong < 2 else np.arange(200)
    data = material(count, test)
    rows = np.where(np.arange(count) % 2 == 0, 1.0, -1.0)[:, None].astype(np.float32)
    exact = rows.copy()
    exact[:wrong] *= -1
    seen = []

    def exact_of(places):
        seen.append(places)
        return feature_store.Features(exact[places], np.arange(len(places)), (), (), 0, 0, "keras")

    verdict = reduced_precision.judge(data, Head(), rows, "int8", exact_of)
    np.testing.assert_array_equal(seen[0], test)
    assert (verdict.kept, verdict.narrow, verdict.exact) == (kept, 1.0, 1 - wrong / 200)
    np.testing.assert_array_equal(verdict.rows[np.array([0, 250, 1])], [exact[0], rows[250], exact[1]])


@pytest.mark.parametrize(("wrong", "kept"), [(1, True), (2, False)])
def test_one_image_of_a_few_may_be_lost(wrong, kept):
    data = material(40, np.arange(10))
    rows = np.where(np.arange(40) % 2 == 0, 1.0, -1.0)[:, None].astype(np.float32)
    exact = rows.copy()
    exact[:wrong] *= -1

    def exact_of(places):
        return feature_store.Features(exact[places], np.arange(len(places)), (), (), 0, 0, "keras")

    verdict = reduced_precision.judge(data, Head(), rows, "int8", exact_of)
    assert (verdict.kept, verdict.exact) == (kept, 1 - wrong / 10)
    assert ("or a single image" in verdict.text) == (not kept)


def test_images_that_vanish_are_told():
    data = material(10, [])

    def exact_of(places):
        gone = (feature_store.Skipped("a.png", "no such file"),)
        return feature_store.Features(np.zeros((9, 1)), np.arange(9), (), gone, 0, 0, "keras")

    with pytest.raises(DataError, match=r"changed while they were read, such as a\.png"):
        reduced_precision.judge(data, Head(), np.zeros((10, 1), np.float32), "int8", exact_of)


def test_images_that_vanish_before_all_are_computed_again_are_told():
    data, calls = material(10, np.arange(4)), []

    def exact_of(places):
        calls.append(len(places))
        gone = (feature_store.Skipped("b.png", "no such file"),) if len(calls) == 2 else ()
        rows = np.where(places % 2 == 0, -1.0, 1.0)[: len(places) - len(gone), None]  # the other way round
        return feature_store.Features(rows, np.arange(len(rows)), (), gone, 0, 0, "keras")

    rows = np.where(np.arange(10) % 2 == 0, 1.0, -1.0)[:, None]
    with pytest.raises(DataError, match=r"changed while they were read, such as b\.png"):
        reduced_precision.judge(data, Head(), rows, "int8", exact_of)
    assert calls == [4, 10]
