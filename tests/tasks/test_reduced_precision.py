"""Features in few bits: what a classifier of them is measured on, and when they are given up."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from resfit import engines, processors
from resfit.data.split import Split
from resfit.embedding import embed_images
from resfit.engines import auto_precision, speed
from resfit.errors import ArgumentError, DataError
from resfit.features import extract as feature_store
from resfit.networks import catalog
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


# --precision auto


FAST = {"avx512_vnni", "avx512_bf16"}


@pytest.fixture
def machine(monkeypatch):
    """A processor with instructions for both formats, on which ResNet-50 has these rates."""

    def having(instructions, **seconds):
        monkeypatch.setattr(processors, "instructions", lambda: frozenset(instructions))
        monkeypatch.setattr(engines, "has_precision", lambda engine, precision, device=None: True)
        asked = []

        def rate(model, precision, samples, cache):
            asked.append(precision)
            return seconds.get(precision)

        monkeypatch.setattr(auto_precision, "_rate", rate)
        return asked

    return having


@pytest.fixture(scope="module")
def resnet50():
    class Spec:
        architecture, inputs, input_spec = catalog.get("resnet50").spec, [np.zeros((0, 224, 224, 3))], None

    return Spec()


def no_samples():
    raise AssertionError("nothing is decoded where nothing is timed")


@pytest.mark.parametrize(
    ("images", "instructions", "rates", "expected"),
    [
        (50, FAST, {"float32": 0.022, "bfloat16": 0.005, "int8": 0.007}, "float32"),
        (500, FAST, {"float32": 0.022, "bfloat16": 0.005, "int8": 0.007}, "float32"),
        (5000, FAST, {"float32": 0.022, "bfloat16": 0.005, "int8": 0.007}, "bfloat16"),
        (5000, FAST, {"float32": 0.022, "bfloat16": 0.020, "int8": 0.007}, "int8"),
        (5000, FAST, {"float32": 0.022, "bfloat16": 0.021, "int8": 0.020}, "float32"),  # as fast is no reason
        (5000, {"avx512_vnni"}, {"float32": 0.022, "bfloat16": 0.005, "int8": 0.007}, "int8"),
        (5000, {"avx2"}, {"float32": 0.022, "bfloat16": 0.005, "int8": 0.007}, "float32"),
        (5000, FAST, {"float32": 0.004, "bfloat16": 0.001, "int8": 0.001}, "float32"),  # 20 s in float32
    ],
)
def test_auto_takes_what_ends_soonest(machine, resnet50, images, instructions, rates, expected):
    machine(instructions, **rates)
    found = auto_precision.choose(resnet50, images, no_samples)
    assert found.precision == expected
    if found.precision != "float32":
        exact = images * rates["float32"]
        whole = found.seconds[expected]
        assert whole * 1.15 < exact
        assert found.most_checked * rates["float32"] <= max(0.05 * whole, 32 * rates["float32"])
        assert f"{images:,} images are expected to take {expected} {whole:.0f} s" in found.line
        assert "--precision float32 changes it" in found.line
        assert auto_precision.PrecisionChoice.from_dict(json.loads(json.dumps(found.to_dict()))) == found
    if images == 5000 and expected == "bfloat16":
        assert exact / whole > 1.6


def test_auto_costs_nothing_where_there_is_nothing_to_choose(machine, resnet50):
    asked = machine({"avx2"}, float32=0.1)
    assert auto_precision.choose(resnet50, 50_000, no_samples).line == ""
    assert auto_precision.choose(resnet50, 50_000, no_samples, engine="keras").line == ""
    machine(FAST, float32=0.1)
    assert auto_precision.choose(resnet50, 500, no_samples).line == ""
    assert asked == []


def test_int8_is_assumed_to_be_faster_until_a_run_has_shown_it(machine, resnet50):
    machine({"avx512_vnni"}, float32=0.022)
    assert auto_precision.choose(resnet50, 5000, no_samples).precision == "int8"
    machine({"avx512_vnni"}, float32=0.022, int8=0.021)
    assert auto_precision.choose(resnet50, 5000, no_samples).precision == "float32"


def test_a_rate_that_a_run_has_shown_is_kept(body, tmp_path):
    cache = tmp_path / "cache"
    auto_precision.note(body, "int8", 0.25, 64, cache)
    auto_precision.note(body, "int8", 9.0, 8, cache)  # too short to say anything
    speed._known.clear()
    assert auto_precision._rate(body, "int8", no_samples, cache) == 0.25
    speed._known.clear()
    assert auto_precision._rate(body, "int8", no_samples, tmp_path / "other") is None
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    assert 0 < auto_precision._rate(body, "float32", lambda: images, cache) < 10


def test_int8_is_timed_when_it_is_calibrated_and_given_up_where_it_is_no_faster(folder, body, tmp_path, monkeypatch):
    pytest.importorskip("nncf")
    seconds, timed = {"fast": 0.08, "slow": 0.4}, []
    choice = auto_precision.decide(5000, 0.022, {"int8": 0.011})
    assert (choice.precision, choice.images) == ("int8", 5000)
    for name, precision in (("fast", "int8"), ("slow", "float32")):
        speed._known.clear()

        def batch(running, images, name=name):
            timed.append((running.precision, images.shape))
            return seconds[name]

        monkeypatch.setattr(speed, "fastest_batch", batch)
        for expected in ([("int8", (8, 32, 32, 3))], []):  # a second run knows
            timed.clear()
            said: list[str] = []
            worth = auto_precision.worth(body, choice, said.append, tmp_path / name)
            options = {"precision": "int8", "engine": "openvino", "cache": tmp_path / name}
            found = feature_store.extract(body, sorted(folder.rglob("*.png")), worth=worth, **options)
            assert (timed, found.precision) == (expected, precision)
            line = "features in float32: int8 takes 50.0 ms an image here, float32 22.0 (--precision int8 changes it)"
            assert said == ([] if precision == "int8" else [line])
        speed._known.clear()
        assert auto_precision._rate(body, "int8", no_samples, tmp_path / name) == seconds[name] / 8
    exact = feature_store.extract(body, sorted(folder.rglob("*.png")), cache=False, engine="openvino")
    np.testing.assert_array_equal(found.rows, exact.rows)


@pytest.fixture
def chosen_int8(machine, monkeypatch):
    """A machine on which int8 is worth it for the 300 images of the tests below."""
    pytest.importorskip("nncf")
    machine({"avx512_vnni"}, float32=1.0)
    monkeypatch.setattr(speed, "fastest_batch", lambda running, images: 0.5 * len(images))
    monkeypatch.setattr(auto_precision, "_SHORT", 0.0)
    monkeypatch.setattr(reduced_precision, "FEWEST", 200)
    speed._known.clear()
    yield
    speed._known.clear()


@pytest.fixture(scope="module")
def tested(body, tmp_path_factory):
    """A classifier that was tested on 72 images, and these and the others."""
    source = write_folder(tmp_path_factory.mktemp("data") / "images", each=48)
    asked = {"strategy": "probe", "engine": "openvino", "test_share": 0.5, "cache": False, "precision": "float32"}
    return fit(source, model=body, **asked), sorted(source.rglob("*.png"))


def test_predictions_are_in_int8_where_tested_images_get_the_same_answers(chosen_int8, tested, tmp_path, monkeypatch):
    monkeypatch.setenv("RESFIT_CACHE", str(tmp_path))
    classifier, paths = tested
    asked, said = paths * 3, []
    exact = classifier.predict(asked)
    found = classifier.predict(asked, precision="auto", say=said.append)
    assert [item.label for item in found] == [item.label for item in exact]
    differences = [abs(one.probability - other.probability) for one, other in zip(found, exact, strict=True)]
    assert 1e-6 < max(differences) < 0.2
    (line,) = said
    assert line.startswith("predictions in int8: 432 images are expected to take int8 ")
    assert line.endswith("; the same answers on 32 images that it was tested on (--precision float32 changes it)")
    # what is asked for by name is the same network, on other images of which it is calibrated
    named = classifier.predict(asked, precision="int8")
    assert max(abs(one.probability - other.probability) for one, other in zip(named, found, strict=True)) < 0.2
    few = classifier.predict(paths[:20], precision="auto", say=said.append)
    assert [item.probability for item in few] == pytest.approx([item.probability for item in exact[:20]], abs=1e-6)
    monkeypatch.setattr(reduced_precision, "LEAST_TESTED", 73)  # too few to compare on
    exactly = classifier.predict(asked, precision="auto", say=said.append)
    assert [item.probability for item in exactly] == pytest.approx([item.probability for item in exact], abs=1e-6)
    assert len(said) == 1


@pytest.mark.parametrize(("wrong", "fine"), [(0, True), (3, False), (32, False)])
def test_answers_that_change_are_seen(tested, wrong, fine):
    """Of each 32 images a few have the features of others."""
    classifier, paths = tested
    exact, looked = engines.create(classifier.body(), "keras"), []

    class Narrow:
        def run(self, images):
            looked.append(len(images))
            rows = exact.run(images) * 1.001
            rows[:wrong] = exact.run(np.roll(images[::-1], 1, axis=0))[:wrong]
            return rows

    random = np.random.default_rng(0).permutation(len(paths))
    found, text = reduced_precision.same_answers(classifier, exact, Narrow(), [paths[at] for at in random], 64)
    assert found is fine
    assert ("the same answers on 32 images" in text) is fine
    assert sum(looked) <= 64


def test_features_are_in_float32_unless_auto_is_asked_for(chosen_int8, tested, body, tmp_path):
    paths, said = tested[1], []
    exact = embed_images(body, paths, cache=tmp_path, engine="openvino", say=said.append)
    assert (exact.machine["precision"], said) == ("float32", [])
    more = write_folder(tmp_path / "more", each=100)
    found = embed_images(body, more, cache=tmp_path, engine="openvino", precision="auto", say=said.append)
    assert found.machine["precision"] == "int8"
    assert "features in int8: 300 images are expected to take int8 " in said[0]
    plain = embed_images(body, more, cache=tmp_path, engine="openvino")
    assert 0.99 < engines.agreement(found.features, plain.features) < 0.9999999
    again = embed_images(body, more, cache=tmp_path, engine="openvino", precision="auto")  # none is missing now
    np.testing.assert_array_equal(again.features, plain.features)


class Logits:
    """A head whose logits are its features."""

    def logits(self, features):
        return np.asarray(features)


@pytest.mark.parametrize(("shift", "kept"), [(0.004, True), (0.6, False)])
def test_as_few_images_as_decide_it_are_looked_at(shift, kept):
    """2,000 held-out images with margins of normal distribution, and features that are off by a known amount."""
    random = np.random.default_rng(0)
    data = material(4000, range(2000, 4000))
    signs = np.where(data.targets[:, :1] > 0.5, 1, -1)
    margins = np.abs(random.normal(1, 0.5, (4000, 1)))
    rows = np.hstack([signs * margins / 2, -signs * margins / 2]).astype(np.float32)
    wrong = np.hstack([signs, -signs]) * (random.normal(-shift, shift, (4000, 1)) / 2)
    asked = []

    def exact_of(positions):
        asked.append(len(positions))
        found = rows[positions] + wrong[positions].astype(np.float32)
        return feature_store.Features(found, positions, (), (), len(positions), 0, "keras")

    found = reduced_precision.judge_briefly(data, Logits(), rows, "int8", exact_of, 200)
    assert found.kept is kept
    test = data.parts.test
    right = float(((rows + wrong)[test].argmax(1) == data.targets[test].argmax(1)).mean())
    assert found.exact == pytest.approx(right, abs=0.01 if kept else 0.05)
    assert found.narrow == 1.0
    assert asked[0] == 32
    assert sum(asked) <= (200 if kept else 4000 + 200)
    got = np.asarray(found.rows[np.arange(4000)])
    off = (got != rows).any(axis=1).sum()
    assert off == (sum(asked) if kept else 4000)


def test_a_fit_whose_precision_is_left_open_says_what_it_takes(folder, body, tmp_path, monkeypatch):
    small = fit(folder, model=body, strategy="probe", cache=tmp_path / "a", out=tmp_path / "small")
    assert small.recipe.precision == "float32"
    assert small.metrics["plan"]["precision"]["precision"] == "float32"
    assert not any("precision" in text for text in small.run.notes)
    asked = []

    def choose(model, images, samples, **options):
        asked.append((images, len(samples())))
        return auto_precision.decide(images, 10.0, {"int8": 0.1})

    monkeypatch.setattr(auto_precision, "choose", choose)
    told = []
    found = fit(folder, model=body, strategy="probe", cache=tmp_path / "b", out=tmp_path / "out", say=told.append)
    assert asked == [(45, 8)]
    assert found.metrics["plan"]["precision"]["precision"] == "int8"
    assert found.metrics["machine"]["precision"]["features"] == "int8"
    assert found.recipe.precision in ("int8", "float32")  # the second where the head lost by it
    assert sum("features in int8: 45 images are expected to take int8" in text for text in told) == 1
    assert sum("held-out images" in text for text in found.run.notes) == 1
    # features in float32 are there: nothing is left to choose
    fit(folder, model=body, strategy="probe", cache=tmp_path / "a")
    assert asked[-1][0] == 0


def test_a_fit_that_was_killed_takes_the_precision_that_it_had_chosen(folder, body, tmp_path, monkeypatch):
    chosen = iter(["int8", "float32"])

    def choose(model, images, samples, **options):
        precision = next(chosen)
        return auto_precision.PrecisionChoice(precision, "why", {"float32": 9.0, "int8": 8.0}, 32)

    def killed(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(auto_precision, "choose", choose)
    options = {"model": body, "strategy": "probe", "cache": tmp_path / "cache", "out": tmp_path / "out"}
    with monkeypatch.context() as patch:
        patch.setattr("resfit.tasks.steps.decode", killed)
        with pytest.raises(KeyboardInterrupt):
            fit(folder, **options)
    found = fit(folder, **options)
    assert found.metrics["plan"]["precision"]["precision"] == "int8"
    assert next(chosen, None) is None
