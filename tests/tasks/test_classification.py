import collections
import concurrent.futures
import csv
import dataclasses
import functools
import gc
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import numpy as np
import pytest

from resfit import artifact, engines, processors
from resfit.data import dataset, decode
from resfit.data.medical import privacy
from resfit.errors import ArgumentError, ArtifactError, DataError, InputWarning
from resfit.features.extract import extract
from resfit.storage.locks import keep
from resfit.tasks import classification as classifier
from resfit.tasks import fit_plan, timings
from resfit.tasks.classification import Classifier, fit
from resfit.tasks.classification.heads.stored import StoredHead, taken
from resfit.training import runs
from tests.pictures import picture, tiny_body, write_folder, write_picture
from tests.training.networks import small_body

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def body():
    return tiny_body()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("data") / "images", each=15)


@pytest.fixture(scope="module")
def fitted(body, folder, tmp_path_factory):
    return fit(folder, model=body, out=tmp_path_factory.mktemp("fitted") / "colours.resfit", seed=1)


@pytest.fixture(scope="module")
def out(fitted, tmp_path_factory):
    path = tmp_path_factory.mktemp("out") / "colours.resfit"
    fitted.save(path)
    return path


def rows_of(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def tempered(classifier, probabilities):
    """What the network says, with the temperature that the classifier applies."""
    powers = probabilities.astype(float) ** (1 / classifier.temperature)
    return powers / powers.sum(axis=-1, keepdims=True)


# fit


def test_fit_tells_colours_apart(fitted):
    assert fitted.classes == ("blue", "green", "red")
    assert fitted.metrics["images"] == {"found": 45, "skipped": 0, "train": 36, "test": 9, "ignored": 0}
    assert fitted.run.test.accuracy == fitted.metrics["test"]["accuracy"] == 1.0
    assert fitted.metrics["test"]["interval"] == pytest.approx([0.7009, 1.0], abs=1e-4)
    assert fitted.recipe.strategy == "probe"
    assert fitted.recipe.C in [score["C"] for score in fitted.metrics["cross_validation"]]


def test_test_images_are_no_training_images_and_measured_as_the_model_predicts(fitted, out):
    rows = rows_of(out / "test_predictions.csv")
    assert len(rows) == 9
    predictions = fitted.predict([row["path"] for row in rows])
    for row, prediction in zip(rows, predictions, strict=True):
        assert (row["label"], row["predicted"]) == (Path(row["path"]).parent.name, prediction.label)
        assert float(row["probability"]) == pytest.approx(prediction.probability, abs=1e-4)


def test_equal_seeds_give_equal_classifiers(body, folder, fitted):
    again = fit(folder, model=body, seed=1)
    np.testing.assert_array_equal(again.head().kernel, fitted.head().kernel)
    assert again.metrics == fitted.metrics
    assert again.run.computed == 0
    assert fit(folder, model=body, seed=2).metrics != fitted.metrics


def test_groups_are_not_split(body, tmp_path):
    rows = ["path,label,patient"]
    for number in range(24):
        colour = ("blue", "red")[number % 2]
        path = write_picture(tmp_path / f"{number}.png", colour, number)
        rows.append(f"{path.name},{colour},p{number // 4}")
    table = tmp_path / "table.csv"
    table.write_text("\n".join(rows))
    found = fit(table, model=body, group_column="patient", out=tmp_path / "out", test_share=0.3)
    assert found.recipe.grouped
    names = {privacy.pseudonym(tmp_path / f"{number}.png"): number for number in range(24)}
    tested = {names[Path(row["path"])] for row in rows_of(tmp_path / "out" / "test_predictions.csv")}
    assert tested
    for group in {number // 4 for number in tested}:
        assert set(range(4 * group, 4 * group + 4)) <= tested


def test_strength_is_chosen_across_groups(body, tmp_path):
    """Near copies of plain colours, a random label for each: only folds through the groups seem to predict it."""
    from PIL import Image

    random = np.random.default_rng(0)
    rows = ["path,label,group"]
    labels = random.permutation(np.arange(24) % 2)
    for group in range(24):
        colour = random.integers(0, 256, 3)
        for copy in range(6):
            image = np.clip(colour + random.normal(0, 1, (16, 16, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(image).save(tmp_path / f"{group}-{copy}.png")
            rows.append(f"{group}-{copy}.png,class {labels[group]},{group}")
    (tmp_path / "table.csv").write_text("\n".join(rows))

    def best(**options):
        found = fit(tmp_path / "table.csv", model=body, **options)
        return max(score["accuracy"] for score in found.metrics["cross_validation"])

    assert best() < 0.75 < best(group_column="none")


def test_splits_of_the_data_are_kept(body, tmp_path):
    write_folder(tmp_path / "d" / "train", each=6)
    write_folder(tmp_path / "d" / "test", each=3, colours=("blue", "red"))
    found = fit(tmp_path / "d", model=body, out=tmp_path / "out", allow_leakage=True)  # the same pictures
    assert found.metrics["images"]["train"] == 18
    assert {Path(row["path"]).parts[-3] for row in rows_of(tmp_path / "out" / "test_predictions.csv")} == {"test"}


def test_unusable_images_are_listed(body, tmp_path):
    folder = write_folder(tmp_path / "d", each=12)
    (folder / "red" / "003.png").write_bytes(b"")
    (folder / "red" / "name, with\nnewline.png").write_bytes(b"nothing")
    found = fit(folder, model=body, out=tmp_path / "out")
    rows = rows_of(tmp_path / "out" / "skipped.csv")
    assert {(Path(row["path"]).name, row["reason"]) for row in rows} == {
        ("003.png", "empty file"),
        ("name, with\nnewline.png", "not an image of a known format"),
    }
    assert found.metrics["images"]["skipped"] == 2
    assert len(found.run.skipped) == 2


def test_too_many_unusable_images_stop_the_fit(body, tmp_path):
    folder = write_folder(tmp_path / "d", each=10)
    for number in range(4):
        (folder / "red" / f"{number:03}.png").write_bytes(b"")
    out = tmp_path / "out"
    with pytest.raises(DataError, match=r"at most 10%.*4 of 30 \(13.3%\).*listed in .*skipped.csv"):
        fit(folder, model=body, out=out)
    assert len(rows_of(out / "skipped.csv")) == 4
    assert [path.name for path in out.iterdir()] == ["skipped.csv"]
    assert fit(folder, model=body, out=out, max_skipped=0.2).metrics["images"]["skipped"] == 4  # same OUT again
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(DataError, match=r"out\.skipped\.csv"):
        fit(folder, model=body, out=out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_class_without_a_usable_image(body, tmp_path):
    folder = write_folder(tmp_path / "d", each=20)
    write_folder(folder, each=3, colours=("blue",))
    for number in range(3):
        path = folder / "grey" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"nothing")
    with pytest.raises(DataError, match="grey"):
        fit(folder, model=body)


def test_arguments_of_fit(body, folder, tmp_path):
    with pytest.raises(ArgumentError, match=r"strategy must be one of .*'probe'.*Received: 'finetun'"):
        fit(folder, model=body, strategy="finetun")
    with pytest.raises(ArgumentError, match="engine must be"):
        fit(folder, model=body, engine="fast")
    with pytest.raises(ArgumentError, match="max_skipped"):
        fit(folder, model=body, max_skipped=1.5)
    with pytest.raises(ArgumentError, match="test_share"):
        fit(folder, model=body, test_share=1)
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ArgumentError, match="holds something else"):
        fit(folder, model=body, out=tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "precious"


# fine-tuning


PATTERNS = {"left": 0, "right": 1, "both": 2}
QUICK = {"epochs": 4, "batch_size": 12, "learning_rate": 3e-3, "layer_decay": 1.0, "views": 1}


def write_patterns(folder, each=36, seed=0):
    """Images whose class a frozen random network tells only in part."""
    from PIL import Image

    random = np.random.default_rng(seed)
    for name, number in PATTERNS.items():
        (folder / name).mkdir(parents=True)
        for index in range(each):
            image = random.normal(110, 40, (32, 32, 3))
            for side in (0, 1):
                if number in (side, 2):
                    row = random.integers(2, 26)
                    image[row : row + 5, 3 + 16 * side : 12 + 16 * side] += (90, -60, 30)
            Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(folder / name / f"{index:03}.png")
    return folder


@pytest.fixture(scope="module")
def patterns(tmp_path_factory):
    return write_patterns(tmp_path_factory.mktemp("patterns") / "images")


@pytest.fixture(scope="module")
def network():
    return small_body(4)


@pytest.fixture(scope="module")
def tuned(network, patterns, tmp_path_factory):
    before = [w.copy() for w in network.get_weights()]
    out = tmp_path_factory.mktemp("tuned") / "patterns.resfit"
    said = []
    found = fit(
        patterns,
        model=network,
        out=out,
        strategy="finetune",
        trainable_from="stage3",
        tuning=QUICK,
        say=said.append,
        val_share=0.2,
    )
    for one, two in zip(network.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, two)  # the network that was given is not touched
    return found, out, said


def test_finetuning_makes_one_model_that_says_what_was_measured(tuned, patterns):
    found, out, said = tuned
    assert found.recipe.strategy == "finetune"
    assert found.recipe.tuning["trainable_from"] == "stage3"
    assert found.metrics["images"] == {"found": 108, "skipped": 0, "train": 69, "val": 18, "test": 21, "ignored": 0}
    assert any("outputs take" in text for text in said)
    rows = rows_of(out / "test_predictions.csv")
    loaded = Classifier.load(out)
    predictions = loaded.predict([row["path"] for row in rows])
    for row, prediction in zip(rows, predictions, strict=True):
        assert row["predicted"] == prediction.label
        assert float(row["probability"]) == pytest.approx(prediction.probability, abs=1e-4)
    assert loaded.evaluate(patterns).n == 108
    np.testing.assert_allclose(
        loaded.head().probabilities(loaded.embed(patterns).features), loaded.predict_proba(patterns), atol=1e-4
    )


def test_what_the_training_leaves_behind(tuned):
    found, out, _ = tuned
    rows = rows_of(out / "training.csv")
    assert [int(row["epoch"]) for row in rows] == [0, 1, 2, 3, 4]
    assert [row["epoch"] for row in found.run.history] == [0, 1, 2, 3, 4]
    assert (out / "training.png").read_bytes().startswith(b"\x89PNG")
    assert list((out / "tensorboard").iterdir())
    assert not out.with_name(f"{out.name}.run").exists()  # the run is in the classifier
    kept = found.metrics["training"]
    assert kept["val_accuracy"] == pytest.approx(max(float(row["val_accuracy"]) for row in rows), abs=1e-4)
    assert kept["val_accuracy_before"] == float(rows[0]["val_accuracy"])
    Classifier.load(out).save(out.with_name("copy"))
    assert {path.name for path in out.with_name("copy").iterdir()} == {path.name for path in out.iterdir()}


def test_layers_before_the_boundary_are_those_of_the_network(tuned, network):
    found, _, _ = tuned
    assert found.metrics["training"]["epoch"] > 0
    for layer in network.layers:
        one = layer.get_weights()
        two = found.model.get_layer(layer.name).get_weights() if one else []
        same = all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
        if one and layer.name.startswith(("conv1", "conv2")):
            assert same, layer.name
        elif layer.name.endswith("_conv"):
            assert not same, layer.name


@pytest.mark.parametrize("start", ["stage4", 0])
def test_auto_never_returns_what_is_worse_than_the_probe(network, patterns, start):
    probe = fit(patterns, model=network, strategy="probe")
    hopeless = {**QUICK, "learning_rate": 1e-12, "epochs": 1}
    kept = fit(patterns, model=network, strategy="auto", budget="5m", tuning=hopeless, trainable_from=start)
    assert kept.recipe.strategy == "probe"
    assert kept.recipe.tuning is None
    np.testing.assert_array_equal(kept.head().kernel, probe.head().kernel)  # fitted on validation images as well
    assert kept.metrics["test"] == probe.metrics["test"]
    assert any("the probe is kept" in note for note in kept.run.notes)


def test_without_time_for_a_whole_probe_what_the_training_began_with_is_kept(network, patterns, tmp_path, monkeypatch):
    """One head for both, of some of the training images, and calibrated on the validation images."""
    from resfit.tasks.classification import data_preparation

    monkeypatch.setattr(data_preparation, "_MOST_TO_BEGIN_WITH", 40)
    monkeypatch.setattr(fit_plan.FitPlan, "leaves", lambda *_: False)
    options = {"model": network, "strategy": "auto", "budget": "60m", "trainable_from": 0}
    untrained = fit(patterns, **options, tuning={**QUICK, "learning_rate": 1e-12, "epochs": 1})
    assert untrained.metrics["training"]["epoch"] == 0
    monkeypatch.setattr(fit_plan.FitPlan, "too_late", lambda *_: True)
    late = fit(patterns, **options, tuning=QUICK, cache=tmp_path)
    assert (late.recipe.strategy, "training" in late.metrics) == ("probe", False)
    np.testing.assert_allclose(late.head().kernel, untrained.head().kernel, rtol=1e-3, atol=1e-4)
    assert late.calibration.count == untrained.calibration.count == untrained.metrics["images"]["val"]
    assert late.metrics["test"]["accuracy"] == pytest.approx(untrained.metrics["test"]["accuracy"], abs=0.02)
    assert (late.run.computed, late.run.reused) == (late.metrics["images"]["found"], 0)


def test_auto_keeps_what_is_better(network, patterns):
    better = fit(
        patterns, model=network, strategy="auto", budget="5m", tuning={**QUICK, "epochs": 8}, trainable_from="stage2"
    )
    figures = better.metrics["training"]
    assert figures["val_accuracy"] >= figures["val_accuracy_before"]
    assert (better.recipe.strategy == "finetune") == (figures["epoch"] > 0)


def test_auto_without_a_budget_is_the_probe(network, patterns):
    found = fit(patterns, model=network)
    assert (found.recipe.asked, found.recipe.strategy) == ("auto", "probe")
    assert "training" not in found.metrics


@pytest.mark.parametrize("options", [{"storage": 0}, {"tuning": {**QUICK, "views": 0, "flip": True}}])
def test_what_may_not_be_stored_is_computed_as_it_goes(network, patterns, options):
    said = []
    found = fit(
        patterns,
        model=network,
        strategy="finetune",
        trainable_from="stage4",
        say=said.append,
        **{"tuning": QUICK, **options},
    )
    assert found.metrics["training"]["steps"] > 0
    assert any("every epoch" in text for text in said)


def test_stored_and_computed_parts_learn_the_same(network, patterns, tmp_path):
    options = {"model": network, "strategy": "finetune", "trainable_from": "stage4", "engine": "keras"}
    tuning = {**QUICK, "flip": False, "crop_scale": 1.0, "precision": "float32"}
    stored = fit(patterns, **options, tuning=tuning, cache=tmp_path)
    computed = fit(patterns, **options, tuning=tuning, cache=tmp_path, storage=0)
    one, two = ([row["train_loss"] for row in found.run.history if "train_loss" in row] for found in (stored, computed))
    np.testing.assert_allclose(one[:2], two[:2], rtol=1e-3)
    np.testing.assert_allclose(one, two, rtol=1e-2)  # roundings grow


def test_full_trains_every_layer(network, patterns, monkeypatch):
    decoded = collections.Counter()
    original = decode.decode_renderings

    def counting(source, *arguments, **options):
        decoded[source if isinstance(source, bytes) else str(source)] += 1
        return original(source, *arguments, **options)

    monkeypatch.setattr(decode, "decode_renderings", counting)
    found = fit(patterns, model=network, strategy="full", tuning=QUICK, cache=False, references=False)
    assert found.recipe.strategy in ("full", "probe")
    assert found.metrics["training"]["steps"] > 0
    assert "checks" in found.metrics  # of the same pass over the images
    assert list(decoded.values()) == [1] * found.metrics["images"]["found"]
    if found.metrics["training"]["epoch"]:
        moved = [
            layer.name
            for layer in network.layers
            if layer.name.endswith("_conv")
            and not np.array_equal(layer.get_weights()[0], found.model.get_layer(layer.name).get_weights()[0])
        ]
        assert "conv1_conv" in moved


class EveryStep(runs.RunOptions):
    """A checkpoint after every step."""

    def __init__(self, **fields):
        super().__init__(**{**fields, "checkpoint_seconds": 0.0})


def test_a_stopped_fit_goes_on_where_it_stood(network, patterns, tmp_path):
    options = {"model": network, "strategy": "finetune", "trainable_from": "stage4", "tuning": {**QUICK, "epochs": 6}}
    whole = fit(patterns, out=tmp_path / "whole", **options)
    said: list[str] = []

    def interrupt(what, done, total):
        if what.startswith("training") and done > 500:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "RunOptions", EveryStep)
        with pytest.raises(KeyboardInterrupt):
            fit(patterns, out=tmp_path / "parts", progress=interrupt, **options)
    assert (tmp_path / "parts.run" / "checkpoint.npz").exists()
    found = fit(patterns, out=tmp_path / "parts", say=said.append, **options)
    assert any("goes on at epoch" in text for text in said)
    assert found.metrics["training"] == whole.metrics["training"]
    np.testing.assert_array_equal(found.head().kernel, whole.head().kernel)
    assert not (tmp_path / "parts.run").exists()


def test_a_killed_fit_under_a_budget_goes_the_way_that_it_had_decided(network, patterns, tmp_path, monkeypatch):
    """The clock says something else when it is called again; the decisions that were recorded count."""
    options = {"model": network, "strategy": "auto", "budget": "30m", "tuning": {"epochs": 2, "batch_size": 12}}

    def interrupt(what, done, total):
        if what.startswith("training") and done > 500:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "RunOptions", EveryStep)
        with pytest.raises(KeyboardInterrupt):
            fit(patterns, out=tmp_path / "out", progress=interrupt, **options)
    decided = json.loads((tmp_path / "out.run" / "plan.json").read_text())["decisions"]
    settings = json.loads((tmp_path / "out.run" / "run.json").read_text())["tuning"]
    assert decided.keys() == {"hardware", "training reads pixels"}

    monkeypatch.setattr(fit_plan.FitPlan, "minutes_left", lambda *_: 0.01)
    fresh = fit(patterns, out=tmp_path / "fresh", **options).metrics["plan"]
    found = fit(patterns, out=tmp_path / "out", **options)
    plan = json.loads(json.dumps(found.metrics["plan"]))
    assert {name: plan[name] for name in decided} == decided
    assert plan["tuning"] == settings
    assert (fresh["training reads pixels"], fresh["tuning"]) != (plan["training reads pixels"], plan["tuning"])
    assert found.metrics["training"]["epochs"] == 2
    assert not (tmp_path / "out.run").exists()


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_same_accuracy(patterns, tmp_path):
    """kill -9, ten times; the same command ends where an undisturbed run does."""
    program = textwrap.dedent(
        """
        import sys
        from tests.training.networks import small_body
        from resfit.tasks.classification import fit
        found = fit(sys.argv[1], model=small_body(4), out=sys.argv[2], strategy="finetune", trainable_from="stage2",
                    tuning={"epochs": 60, "batch_size": 12, "learning_rate": 1e-3, "views": 2}, cache=sys.argv[3])
        print(found.metrics["training"]["val_accuracy"], found.metrics["training"]["steps"])
        """
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")])}

    def start(name):
        arguments = [sys.executable, "-c", program, patterns, tmp_path / name, tmp_path / f"{name} cache"]
        return subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    import time

    begin = time.monotonic()
    expected, errors = start("whole").communicate()
    length = time.monotonic() - begin
    assert expected, errors.decode()
    random = np.random.default_rng(0)
    kills = 0
    for _ in range(10):
        process = start("parts")
        try:
            process.wait(random.uniform(0.2, 0.8) * length)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.communicate()
    received, errors = start("parts").communicate()
    assert kills >= 3
    assert received, errors.decode()
    one, two = (float(text.split()[0]) for text in (received, expected))
    assert abs(one - two) <= 0.005


def test_other_settings_start_afresh(network, patterns, tmp_path):
    out = tmp_path / "out"
    run = tmp_path / "out.run"
    run.mkdir()
    (run / "run.json").write_text('{"run": {"data": "other"}, "tuning": {}}')
    (run / "checkpoint.npz").write_bytes(b"nothing")
    said: list[str] = []
    fit(patterns, model=network, out=out, strategy="finetune", trainable_from="stage4", tuning=QUICK, say=said.append)
    assert any("starts afresh" in text for text in said)


def test_a_range_test_chooses_the_rate(network, patterns, tmp_path):
    found = fit(
        patterns, model=network, out=tmp_path / "out", strategy="finetune", trainable_from="stage4",
        tuning=QUICK, lr_find=True,
    )  # fmt: skip
    assert (tmp_path / "out" / "learning_rates.png").read_bytes().startswith(b"\x89PNG")
    assert any("the loss falls fastest" in note for note in found.run.notes)


@pytest.mark.parametrize("kind", ["mlp", "nearest_mean", "knn"])
def test_heads_are_part_of_the_one_model(body, folder, tmp_path, kind):
    found = fit(folder, model=body, out=tmp_path / "out", head=kind, seed=1)
    assert found.run.test.accuracy == 1.0
    loaded = Classifier.load(tmp_path / "out")
    assert loaded.recipe.head == kind
    paths = [row["path"] for row in rows_of(tmp_path / "out" / "test_predictions.csv")]
    np.testing.assert_allclose(loaded.predict_proba(paths), found.predict_proba(paths), atol=1e-6)
    embedded = loaded.embed(paths)
    assert embedded.features.shape == (9, 16)
    np.testing.assert_allclose(loaded.head().probabilities(embedded.features), loaded.predict_proba(paths), atol=1e-4)
    plain = StoredHead(*taken(loaded.head_model()), "softmax", loaded.temperature)
    rows = np.random.default_rng(0).normal(size=(40, 16)).astype(np.float32) + embedded.features.mean(axis=0)
    np.testing.assert_allclose(plain.probabilities(rows), loaded.head().probabilities(rows), atol=1e-5)
    np.testing.assert_allclose(plain.logits(rows), loaded.head().logits(rows), rtol=1e-3, atol=1e-3)
    assert loaded.evaluate(folder).accuracy > 0.95


def test_an_mlp_head_is_trained_with_the_network(network, patterns, tmp_path):
    found = fit(
        patterns, model=network, out=tmp_path / "out", strategy="finetune", head="mlp", trainable_from="stage4",
        tuning=QUICK, focal=1.0, balance=True,
    )  # fmt: skip
    assert found.recipe.tuning["focal"] == 1.0
    assert found.recipe.tuning["balance"] is True
    assert [layer.name for layer in Classifier.load(tmp_path / "out").model.layers[-2:]] == ["hidden", "predictions"]


@pytest.mark.parametrize("strategy", ["probe", "finetune"])
def test_several_labels_an_image(network, patterns, tmp_path, strategy):
    rows = ["path,label"]
    names = {"left": "left", "right": "right", "both": "left; right"}
    for path in sorted(patterns.glob("*/*.png")):
        rows.append(f"{path},{names[path.parent.name]}")
    table = tmp_path / "table.csv"
    table.write_text("\n".join(rows))
    found = fit(
        table, model=network, out=tmp_path / "out", strategy=strategy, label_separator=";",
        **({"tuning": QUICK, "trainable_from": "stage3"} if strategy == "finetune" else {}),
    )  # fmt: skip
    assert found.classes == ("left", "right")
    loaded = Classifier.load(tmp_path / "out")
    predictions = loaded.predict(patterns / "both")
    for prediction in predictions:
        chosen = {name for name, value in prediction.probabilities.items() if value > 0.5}
        assert set(prediction.labels) == chosen
    assert any(set(prediction.labels) == {"left", "right"} for prediction in predictions)
    measured = loaded.evaluate(table)
    assert measured.n == 108
    assert measured.accuracy > 0.3
    assert 0.7 < measured.mean_average_precision <= 1
    assert found.metrics["test"]["mean_average_precision"] == found.run.test.mean_average_precision


def test_learning_from_a_larger_network(network, patterns, tmp_path):
    fit(patterns, model=small_body(7), out=tmp_path / "teacher")
    found = fit(
        patterns,
        model=network,
        strategy="finetune",
        trainable_from="stage4",
        tuning=QUICK,
        teacher=tmp_path / "teacher",
    )
    assert found.recipe.tuning["distillation"] == 0.5
    with pytest.raises(ArgumentError, match="classes of the data"):
        fit(write_folder(tmp_path / "colours"), model=network, strategy="full", teacher=tmp_path / "teacher")


def test_arguments_of_finetuning(body, folder):
    for options, message in (
        ({"strategy": "finetune", "head": "knn"}, "heads that are trained with the network"),
        ({"strategy": "finetune", "tuning": {"optimizer": "lion"}}, "optimizer must be one of"),
        ({"strategy": "finetune", "trainable_from": "stage9"}, "trainable_from must be"),
        ({"budget": "soon"}, "budget must be"),
        ({"head": "svm"}, "head must be one of"),
        ({"val_share": 0.0}, "val_share"),
    ):
        with pytest.raises(ArgumentError, match=message):
            fit(folder, model=body, **options)


def test_statistics_of_a_new_network_move(patterns):
    import resfit
    from resfit.tasks import backbone

    small = {"include_top": False, "pooling": "avg"}
    new, trained = resfit.load("resnet10_tiny", weights=None, **small), resfit.load("resnet10_tiny", **small)
    assert (backbone.has_statistics(new), backbone.has_statistics(trained)) == (False, True)
    trained.trainable = False
    assert backbone.has_statistics(trained)
    images = dataset.scan(patterns)
    for body, batch_norm in ((new, "auto"), (trained, "frozen")):
        journal = timings.Timings()
        choice = fit_plan.FitPlan(body, "full", 5.0, None, None, 0, "linear", False, {}, False)
        settings, _ = choice.settings(images, 60, None, False, journal)
        assert settings.batch_norm == batch_norm
        assert any("statistics move" in note for note in journal.notes) == (body is new)


def test_where_the_time_has_run_out_the_probe_is_kept(patterns, network, tmp_path, monkeypatch):
    from resfit.training import frozen, recipes

    monkeypatch.setattr(recipes, "FEW", 1)
    prepare, out = frozen.prepare, tmp_path / "out"

    def slowly(*arguments):
        assert out.with_name("out.run").is_dir()
        monkeypatch.setattr(timings.Timings, "minutes", 4.99)
        return prepare(*arguments)

    monkeypatch.setattr(frozen, "prepare", slowly)
    found = fit(patterns, model=network, out=out, strategy="auto", budget="5m")
    assert found.recipe.strategy == "probe"
    assert "no time is left for fine-tuning: the probe is kept" in found.run.notes
    assert "training" not in found.metrics
    assert not out.with_name("out.run").exists()


def test_a_plan_needs_no_network(patterns):
    from resfit.training.recipes import Hardware

    found = classifier.plan(
        patterns, model="resnet50", strategy="auto", budget="20m", hardware=Hardware(2, 190, 1 << 34)
    )
    assert found.strategy == "finetune"
    assert found.tuning.epochs >= 3
    assert 0 < found.total <= 1220


def test_a_short_time_leaves_images_out(body, folder, tmp_path, monkeypatch):
    """Of each class the same share, and of what is set aside for testing nothing."""
    from resfit.training import recipes

    for path in sorted(folder.rglob("*.png")):
        part = "test" if path.stem < "003" else "train"
        target = tmp_path / "images" / part / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    monkeypatch.setattr(recipes, "_LEAST_IMAGES", 4)
    monkeypatch.setattr(recipes, "_FILES", 10 / processors.available())  # a tenth of a second for each
    classes = sum(1 for _ in (tmp_path / "images" / "train").iterdir())
    budgets = [f"{1.4 * classes}s", f"{1.5 * classes}s"]  # room for 11 and 12 of 15 images a class
    one, other = (fit(tmp_path / "images", model=body, budget=some, seed=3, check=False) for some in budgets)
    counted = one.metrics["images"]
    assert (counted["test"], counted["left_out"]) == (3 * classes, 6 * classes)  # 12 a class, of which a half is 6
    assert counted["train"] + counted.get("val", 0) == 6 * classes
    assert counted["found"] == 15 * classes
    assert any(f"{6 * classes} of {12 * classes} images" in note for note in one.run.notes)
    assert one.fingerprint == other.fingerprint
    every = fit(tmp_path / "images", model=body, seed=3, check=False)
    assert "left_out" not in every.metrics["images"]
    assert every.metrics["images"]["train"] == 12 * classes
    plan = classifier.plan(tmp_path / "images", model=body, budget=budgets[0])
    assert plan.reasons[0].startswith(f"{6 * classes} of")


# predict


def test_file_array_and_model_say_the_same(fitted, folder):
    path = folder / "red" / "000.png"
    array = picture("red", 0)
    from_file = fitted.predict_proba(path)
    np.testing.assert_array_equal(from_file, fitted.predict_proba(array))
    np.testing.assert_array_equal(from_file, fitted.predict_proba(array[None]))
    np.testing.assert_allclose(from_file, fitted.predict_proba(array.astype(np.float32)), atol=1e-6)
    from resfit.data.decode import decode_image

    image = decode_image(path, fitted.input_spec)
    np.testing.assert_allclose(from_file, tempered(fitted, fitted.model.predict(image[None], verbose=0)), atol=1e-6)
    np.testing.assert_allclose(from_file, fitted.predict_proba(image), atol=1e-6)
    np.testing.assert_allclose(from_file, fitted.predict_proba(path, engine="openvino"), atol=1e-5)


def test_views_are_averaged(fitted, folder):
    array = picture("red", 0, (16, 16))
    plain, mirrored = fitted.predict_proba(array)[0], fitted.predict_proba(array[:, ::-1])[0]
    assert np.abs(plain - mirrored).max() > 1e-4
    np.testing.assert_allclose(fitted.predict_proba(array, views=2)[0], (plain + mirrored) / 2, atol=1e-6)
    assert fitted.predict(folder / "red" / "000.png", views=10)[0].label == "red"
    with pytest.raises(ArgumentError, match=r"1\.\.10"):
        fitted.predict(array, views=0)


def test_predictions_are_in_order_with_their_classes(fitted, folder):
    paths = [folder / colour / "004.png" for colour in ("red", "blue", "green")]
    predictions = fitted.predict(paths, top=2, batch_size=2)
    assert [item.label for item in predictions] == ["red", "blue", "green"]
    assert [item.path for item in predictions] == paths
    for item in predictions:
        assert len(item.probabilities) == 2
        assert next(iter(item.probabilities.items())) == (item.label, item.probability)
    assert len(fitted.predict(folder)) == 45
    everything = fitted.predict(paths[0])[0].probabilities
    assert sum(everything.values()) == pytest.approx(1, abs=1e-5)


def test_unusable_image_among_others(fitted, folder, tmp_path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"nothing")
    good = folder / "red" / "001.png"
    predictions = fitted.predict([bad, good])
    assert [item.label for item in predictions] == [None, "red"]
    assert predictions[0].error == "not an image of a known format"
    with pytest.raises(DataError, match=r"bad\.jpg: not an image"):
        fitted.predict_proba([bad, good])
    with pytest.raises(DataError, match="does not exist"):
        fitted.predict(tmp_path / "typo.jpg")


def test_arrays_that_are_no_images(fitted):
    for array in (np.zeros((4, 4)), np.zeros((4, 4, 4)), np.full((4, 4, 3), "x"), np.zeros((0, 4, 3))):
        with pytest.raises(ArgumentError, match="images must be"):
            fitted.predict(array)
    assert fitted.predict([]) == []


def test_arrays_in_other_forms_say_what_the_file_says_everywhere(fitted, folder):
    import io

    from PIL import Image

    path = folder / "red" / "000.png"
    array = picture("red", 0)
    forms = [path, array, Image.open(path), path.read_bytes(), io.BytesIO(path.read_bytes()), folder / "none.png"]
    predictions = fitted.predict(forms)
    assert [item.path for item in predictions] == [path, None, None, None, None, folder / "none.png"]
    assert {item.probability for item in predictions[:5]} == {predictions[0].probability}
    assert (predictions[5].label, predictions[5].error) == (None, "no such file")
    with pytest.warns(InputWarning, match="multiplied by 255"):
        assert fitted.predict(array / 255)[0].probability == predictions[0].probability
    deep = array.astype(np.uint16) * 257
    for said in (lambda: fitted.predict(deep), lambda: fitted.explain(deep), lambda: fitted.embed([deep, path])):
        with pytest.warns(InputWarning, match="divided by 257"):
            assert len(said()) if not hasattr(said(), "features") else said().paths == (None, path)
    for bad in (np.where(array > 50, np.nan, array), array / 127.5 - 1, array.astype(object)):
        for ask in (fitted.predict, fitted.explain, fitted.embed):
            with pytest.raises(ArgumentError, match="images must"):
                ask(bad)
    embedded = fitted.embed([array, path])
    np.testing.assert_allclose(embedded.features[0], embedded.features[1], atol=1e-6)
    missing = fitted.embed([path, folder / "none.png"])
    assert missing.paths == (path,)
    assert [(item.path, item.reason) for item in missing.skipped] == [(folder / "none.png", "no such file")]
    assert [item.error for item in fitted.explain([array, folder / "none.png"])] == ["", "no such file"]


def test_fit_and_evaluate_take_images_with_labels(body, fitted, folder):
    paths = sorted(folder.glob("*/*.png"))
    labels = [path.parent.name for path in paths]
    arrays = np.stack([picture(path.parent.name, int(path.stem)) for path in paths])
    from_arrays = fit((arrays, labels), model=body, seed=1, cache=False)
    np.testing.assert_allclose(from_arrays.head().kernel, fitted.head().kernel, rtol=1e-4, atol=1e-4)
    mixed = [*paths[:20], *arrays[20:]]
    expected = fitted.evaluate(folder)
    found = fitted.evaluate((mixed, np.array(labels)))
    assert found.confusion.tolist() == expected.confusion.tolist()
    assert found.log_loss == pytest.approx(expected.log_loss, abs=1e-5)
    numbers = fit((arrays.transpose(0, 3, 1, 2)[:, :, :24], [0] * 15 + [1] * 30), model=body, cache=False, check=False)
    assert numbers.classes == ("0", "1")
    with pytest.raises(ArgumentError, match="45 images and 44 labels"):
        fit((arrays, labels[1:]), model=body)
    with pytest.raises(ArgumentError, match="text or whole numbers"):
        fitted.evaluate((arrays, [*labels[1:], None]))


# evaluate and embed


def test_evaluation_counts_by_hand(fitted, tmp_path):
    folder = write_folder(tmp_path / "d", each=4, colours=("green", "red"))
    write_picture(folder / "green" / "wrong.png", "red", 50)
    (folder / "red" / "bad.png").write_bytes(b"")
    result = fitted.evaluate(folder)
    assert result.confusion.tolist() == [[0, 0, 0], [0, 4, 1], [0, 0, 4]]
    assert result.accuracy == pytest.approx(8 / 9)
    assert [item.reason for item in result.skipped] == ["empty file"]
    predicted = [item.label for item in fitted.predict(sorted((folder / "green").glob("*.png")))]
    assert predicted == ["green"] * 4 + ["red"]


def test_evaluation_of_unknown_class(fitted, tmp_path):
    (write_folder(tmp_path / "d", each=3) / "red").rename(tmp_path / "d" / "reds")
    with pytest.raises(DataError, match=r"Received: 'reds'\. Did you mean 'red'"):
        fitted.evaluate(tmp_path / "d")


def test_embedding_is_what_the_head_reads(fitted, folder, tmp_path):
    found = fitted.embed(folder)
    assert found.computed == 0  # the fit has computed them: body and classifier share the cache
    assert found.features.shape == (45, 16)
    assert found.labels[::15] == ("blue", "green", "red")
    np.testing.assert_allclose(
        fitted.head().probabilities(found.features), fitted.predict_proba(list(found.paths)), atol=1e-5
    )
    found.save(tmp_path / "f.parquet")
    found.save(tmp_path / "f.npz")
    import pandas as pd

    table = pd.read_parquet(tmp_path / "f.parquet")
    assert table["path"].tolist() == [str(path) for path in found.paths]
    assert table["label"].tolist() == list(found.labels)
    np.testing.assert_array_equal(np.stack(table["features"].to_list()), found.features)
    with np.load(tmp_path / "f.npz") as arrays:
        np.testing.assert_array_equal(arrays["features"], found.features)
        assert arrays["label"].tolist() == list(found.labels)
    with pytest.raises(ArgumentError, match=r"\.parquet or \.npz"):
        found.save(tmp_path / "f.xlsx")


def test_embedding_without_classes(body, tmp_path):
    write_picture(tmp_path / "d" / "a.png", "red", 0)
    write_picture(tmp_path / "d" / "b.png", "red", 1)
    found = classifier.embed(tmp_path / "d", model=body)
    assert found.labels == (None, None)
    np.testing.assert_array_equal(classifier.embed(tmp_path / "d" / "b.png", model=body).features, found.features[1:])


# the artifact


def test_round_trip_is_exact(fitted, out, folder):
    loaded = Classifier.load(out)
    images = np.stack([picture("red", n) for n in range(3)])
    np.testing.assert_array_equal(loaded.predict_proba(images), fitted.predict_proba(images))
    for attribute in ("classes", "input_spec", "recipe", "metrics", "fingerprint", "versions", "temperature"):
        assert getattr(loaded, attribute) == getattr(fitted, attribute), attribute
    assert loaded.model.architecture == fitted.model.architecture
    assert loaded.embed(folder).computed == 0  # the network is known to be the same


def test_saved_again_it_is_the_same(out, tmp_path):
    Classifier.load(out).save(tmp_path / "copy")
    assert {path.name for path in (tmp_path / "copy").iterdir()} == {
        "model.keras",
        "classifier.json",
        "references.npz",
        "unlike.npz",
        "fitted_images.bin",
        "skipped.csv",
        "test_predictions.csv",
        "SHA256SUMS",
    }
    one, two = (json.loads((path / "classifier.json").read_text()) for path in (out, tmp_path / "copy"))
    assert one == two
    assert (tmp_path / "copy" / "test_predictions.csv").read_bytes() == (out / "test_predictions.csv").read_bytes()


def test_a_pickled_classifier_gives_the_same_answers_in_another_process(fitted, folder):
    paths = sorted(folder.rglob("*.png"))[:6]
    expected = fitted.predict_proba(paths, engine="keras")
    again = pickle.loads(pickle.dumps(fitted))
    assert (again.classes, again.metrics, again.input_spec) == (fitted.classes, fitted.metrics, fitted.input_spec)
    assert (again.recipe, again.temperature) == (fitted.recipe, fitted.temperature)
    assert again.attachment("test_predictions.csv") == fitted.attachment("test_predictions.csv")
    np.testing.assert_array_equal(again.references.features, fitted.references.features)
    # bound methods are what process pools are given
    ask = functools.partial(fitted.predict_proba, engine="keras")
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        found = pool.submit(ask, paths).result(300)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


WITHOUT_KERAS = """
import json, sys
import numpy as np
from resfit.cli.main import build
from resfit.serving.adapter import Served
from resfit.tasks import dispatch
folder, *paths = sys.argv[1:]
loaded = dispatch.load(folder)
build(["predict"])(["predict", folder, paths[0], "--json"], standalone_mode=False)
found = {"predicted": loaded.predict_proba(paths).tolist(), "features": loaded.embed(paths).features.tolist()}
from pathlib import Path
served = Served.load(Path(folder), "auto")
served.warm_up(4)
images = [served.decode(Path(path).read_bytes(), 10**6) for path in paths]
found["served"] = [served.arrays([one])["scores"][0].tolist() for one in served.predict(images)]
found["imported"] = sorted({"keras", "tensorflow", "scipy", "sklearn", "pandas", "matplotlib"} & set(sys.modules))
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def kept(out, folder):
    """A classifier whose network the cache holds, and the files that it was asked about."""
    paths = sorted(map(str, folder.rglob("*.png")))[::5]
    Classifier.load(out).predict(paths)
    return out, paths


def test_a_fitted_classifier_predicts_embeds_and_serves_without_keras(kept):
    out, paths = kept
    done = subprocess.run([sys.executable, "-c", WITHOUT_KERAS, out, *paths], capture_output=True, text=True)
    shown, _, told = done.stdout.rstrip().rpartition("\n")
    found = json.loads(told)
    assert found["imported"] == [], done.stderr
    loaded = Classifier.load(out)
    expected = loaded.predict_proba(paths, engine="keras")
    assert np.ptp(expected, axis=0).min() > 0.1
    np.testing.assert_allclose(found["predicted"], expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(found["served"], expected, rtol=0, atol=1e-5)
    assert json.loads(shown)[0]["probability"] == pytest.approx(expected[0].max(), abs=1e-5)
    features = np.asarray(loaded.body()(np.stack([picture_of(path, loaded) for path in paths])))
    np.testing.assert_allclose(found["features"], features, rtol=1e-5, atol=1e-5)


def picture_of(path, loaded):
    return decode.decode_image(Path(path).read_bytes(), loaded.input_spec).astype(np.float32)


def needs_keras(folder):
    return "model" in vars(Classifier.load(folder))


def test_what_is_kept_of_a_network_is_that_of_this_folder_whole_and_of_no_other(kept, tmp_path, monkeypatch):
    out, paths = kept
    assert not needs_keras(out)
    expected = Classifier.load(out).predict_proba(paths, engine="keras")
    record = Classifier.load(out)._origin.record
    cache = Path(os.environ["RESFIT_CACHE"])
    monkeypatch.setenv("RESFIT_CACHE", str(tmp_path / "cache"))
    shutil.copytree(cache / "engines", tmp_path / "cache" / "engines")
    assert not needs_keras(out)
    # another classifier: its description alone says otherwise
    other = tmp_path / "other.resfit"
    changed = Classifier.load(out)
    changed.calibration = dataclasses.replace(changed.calibration, temperature=changed.temperature * 2)
    changed.save(other)
    assert needs_keras(other)
    # a bit of the converted weights
    weights = tmp_path / "cache" / "engines" / record.network["folder"] / "network.bin"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 64
    weights.write_bytes(data)
    loaded = Classifier.load(out)
    assert "model" in vars(loaded)
    assert not weights.exists()
    np.testing.assert_allclose(loaded.predict_proba(paths), expected, atol=1e-5)
    assert not needs_keras(out)  # it was made again
    shutil.rmtree(weights.parent)
    assert needs_keras(out)


def test_a_network_that_disagrees_is_not_kept(fitted, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("RESFIT_CACHE", str(tmp_path / "cache"))
    fitted.save(tmp_path / "out")
    monkeypatch.setattr(engines, "agreement", lambda rows, expected: 0.9)
    path = sorted(folder.rglob("*.png"))[0]
    Classifier.load(tmp_path / "out").predict(path)
    assert needs_keras(tmp_path / "out")
    loaded = Classifier.load(tmp_path / "out")
    assert not loaded._can_keep  # tried once
    np.testing.assert_allclose(loaded.predict_proba(path), fitted.predict_proba(path, engine="keras"), atol=1e-6)


def test_a_model_that_was_replaced_meanwhile_is_not_taken_for_the_old_one(kept, tmp_path):
    out, paths = kept
    mine = shutil.copytree(out, tmp_path / "mine")
    loaded = Classifier.load(mine)
    before = loaded.predict_proba(paths)
    (mine / "model.keras").write_bytes(b"another")
    np.testing.assert_array_equal(loaded.predict_proba(paths), before)
    with pytest.raises(ArtifactError, match="must be the model that was there when the classifier was loaded"):
        loaded.explain(paths[0])


def test_locks_of_the_cache_are_closed(body, folder, tmp_path):
    paths = sorted(folder.rglob("*.png"))[:3]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        for cache in (False, tmp_path):
            extract(body, paths, cache=cache)
        keep(tmp_path / "entry" / "users.lock")
        shutil.rmtree(tmp_path / "entry")
        keep(tmp_path / "entry" / "users.lock")  # another one now
        gc.collect()
    assert [str(warning.message) for warning in caught if warning.category is ResourceWarning] == []


def test_model_loads_in_plain_keras(fitted, out):
    import keras

    model = keras.models.load_model(out / "model.keras")
    images = np.stack([picture("red", n, (16, 16)) for n in range(3)])
    said = tempered(fitted, model.predict(images, verbose=0))
    np.testing.assert_allclose(said, fitted.predict_proba(images), atol=1e-6)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("model.keras", lambda content: None, "model.keras cannot be read"),
        ("model.keras", lambda content: content[:-100], "damaged or was changed"),
        ("model.keras", lambda content: content[:-1] + bytes([content[-1] ^ 1]), "damaged or was changed"),
        ("classifier.json", lambda content: None, "which has none"),
        ("classifier.json", lambda content: content[:300], "classifier.json cannot be read"),
        ("classifier.json", lambda content: b"[]", "does not describe"),
        ("classifier.json", lambda content: content.replace(b'"format": 2', b'"format": 99'), "format 99"),
        ("classifier.json", lambda content: content.replace(b'"format": 2', b'"format": 1'), "damaged or was changed"),
        ("classifier.json", lambda content: content.replace(b'"recipe"', b'"other"'), "damaged or was changed"),
        ("classifier.json", lambda content: content.replace(b'"red"', b'"rot"'), "json is damaged or was changed"),
        ("test_predictions.csv", lambda content: content.replace(b"red", b"rot"), "csv is damaged or was changed"),
        ("references.npz", lambda content: None, "references.npz cannot be read"),
        ("SHA256SUMS", lambda content: None, "SHA256SUMS cannot be read"),
        ("SHA256SUMS", lambda content: content[:70], "a line of SHA-256"),
        ("SHA256SUMS", lambda content: content.replace(b"skipped", b"../../x"), "a line of SHA-256"),
    ],
)
def test_damaged_artifact(out, tmp_path, file, change, message):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    content = change((copy / file).read_bytes())
    (copy / file).unlink()
    if content is not None:
        (copy / file).write_bytes(content)
    with pytest.raises(ArtifactError, match=message):
        Classifier.load(copy)


def test_missing_artifact(tmp_path):
    with pytest.raises(ArtifactError, match="no folder"):
        Classifier.load(tmp_path / "none")


def test_artifact_replaces_an_artifact_and_nothing_else(tmp_path):
    out = tmp_path / "out"
    artifact.write(out, lambda path: path.write_bytes(b"one"), {}, {"skipped.csv": b"a"})
    artifact.write(out, lambda path: path.write_bytes(b"two"), {}, {})
    assert (out / "model.keras").read_bytes() == b"two"
    assert sorted(path.name for path in out.iterdir()) == ["SHA256SUMS", "classifier.json", "model.keras"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArgumentError, match="something else"):
        artifact.write(tmp_path / "file", lambda path: None, {}, {})


def test_failure_while_saving_leaves_the_old_one(tmp_path):
    out = tmp_path / "out"
    artifact.write(out, lambda path: path.write_bytes(b"one"), {}, {})

    def full(path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="the disk is full"):
        artifact.write(out, full, {}, {})
    assert (out / "model.keras").read_bytes() == b"one"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("exists", [False, True])
def test_kill_while_saving_leaves_no_half_artifact(tmp_path, exists):
    out = tmp_path / "out"
    if exists:
        artifact.write(out, lambda path: path.write_bytes(b"old"), {}, {})
    program = textwrap.dedent(
        """
        import os, signal, sys
        from pathlib import Path
        from resfit import artifact

        def die(path):
            path.write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)

        artifact.write(Path(sys.argv[1]), die, {}, {})
        """
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", program, out], env=environment, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert out.exists() == exists
    if exists:
        assert (out / "model.keras").read_bytes() == b"old"
    artifact.write(out, lambda path: path.write_bytes(b"new"), {}, {})
    assert (out / "model.keras").read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]  # what the killed one left is gone
