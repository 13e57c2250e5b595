"""Several labels an image, from the table to the answers: each label is decided, counted and measured by itself."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from resfit import report
from resfit.cli import main
from resfit.data import image_statistics
from resfit.data.dataset import scan
from resfit.errors import DataError
from resfit.quality import checking
from resfit.tasks.classification import Classifier, fit
from tests.pictures import tiny_body, write_folder
from tests.tasks.apart import said_apart

LABELS = {"red": ["red", "warm"], "green": ["green"], "blue": []}  # blue pictures are negatives


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Pictures, and the same labels in three tables: in one cell, a row for each, in columns of 0 and 1."""
    root = tmp_path_factory.mktemp("tags")
    folder = write_folder(root / "images", each=20)
    rows = [(path.relative_to(root), LABELS[path.parent.name]) for path in sorted(folder.glob("*/*.png"))]
    cells = [f"{path},{'|'.join(labels[:: 1 - 2 * (n % 2)])}" for n, (path, labels) in enumerate(rows)]
    (root / "cells.csv").write_text("\n".join(["path,label", *cells]))
    long = [f"{path},{label}" for path, labels in rows for label in labels or [""]]
    (root / "long.csv").write_text("\n".join(["path,label", *long]))
    names = ("green", "red", "warm")
    flags = [f"{path}," + ",".join(str(int(name in labels)) for name in names) for path, labels in rows]
    (root / "flags.csv").write_text("\n".join([f"filename,{','.join(names)}", *flags]))
    (root / "images" / "red" / "notes.txt").write_text("no image")
    return root


@pytest.fixture(scope="module")
def fitted(data):
    return fit(data / "cells.csv", model=tiny_body(), label_separator="|", out=data / "tags.resfit")


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        main.run([str(argument) for argument in arguments])
    out, errors = capsys.readouterr()
    assert not stopped.value.code, errors
    return out, errors


def test_figures_of_a_fit(fitted, data):
    assert fitted.classes == ("green", "red", "warm")
    assert fitted.metrics["images"] == {"found": 60, "skipped": 0, "train": 48, "test": 12, "ignored": 0}
    rows = list(csv.DictReader(io.StringIO(fitted.attachment("test_predictions.csv").decode())))
    truth = np.array([[name in row["label"].split("|") for name in fitted.classes] for row in rows])
    assert truth.sum(axis=0).tolist() == [4, 4, 4]
    assert (~truth.any(axis=1)).sum() == 4
    shares = np.array([[float(row[f"probability of {name}"]) for name in fitted.classes] for row in rows])
    for row, values in zip(rows, shares, strict=True):
        decided = [name for name, value in zip(fitted.classes, values, strict=True) if value > 0.5]
        assert row["predicted"] == "|".join(decided)
        assert [float(text) for text in row["probability"].split(";") if text] == values[values > 0.5].tolist()
    found = fitted.metrics["test"]
    assert "accuracy" not in found
    assert found["exact_match_accuracy"] == ((shares > 0.5) == truth).all(axis=1).mean()
    each = [average_precision_score(truth[:, i], shares[:, i]) for i in range(3)]
    assert [row["average_precision"] for row in found["per_class"]] == pytest.approx(each)
    assert found["mean_average_precision"] == pytest.approx(np.mean(each))
    assert found["mean_average_precision"] > 0.95


def test_the_form_of_the_table_changes_nothing(fitted, data):
    """Fit and measurement are the same to the last digit, whatever the order of labels and the form of the table."""
    for name, options in (("long.csv", {"multilabel": True}), ("flags.csv", {})):
        other = fit(data / name, model=tiny_body(), **options)
        assert other.metrics["test"] == fitted.metrics["test"]
        assert fitted.evaluate(data / name).to_dict() == fitted.evaluate(data / "cells.csv").to_dict()
    loaded = Classifier.load(data / "tags.resfit")
    assert loaded.recipe.separator == "|"
    assert loaded.evaluate(data / "flags.csv").exact_match_accuracy == fitted.evaluate(data / "flags.csv").accuracy
    single = fit(data / "images", model=tiny_body())
    with pytest.raises(DataError, match="one class each"):
        single.evaluate(data / "flags.csv")


def test_labels_are_counted_singly_in_checks(fitted, data, capsys):
    found = fitted.metrics["checks"]
    assert found["classes"] == {"green": 20, "red": 20, "warm": 20}
    assert found["imbalance"] == 1.0
    assert found["shortcuts_of_labels"] == ["green", "red", "warm"]
    assert any("the mean colour alone tells the label 'green'" in text for text in found["findings"])
    text, _ = run(capsys, "check", data / "cells.csv", "--label-separator", "|", "--json")
    assert json.loads(text)["classes"] == found["classes"]
    text, _ = run(capsys, "check", data / "flags.csv", "--label-column", "green", "--json")
    assert json.loads(text)["classes"] == {"0": 40, "1": 20}


def test_wrong_labels_are_found_by_label():
    """One image of each kind has the label that the others of its kind have not, or lacks theirs."""
    random = np.random.default_rng(0)
    truth = np.zeros((120, 2), bool)
    truth[:60, 0] = truth[30:90, 1] = True
    features = (truth @ random.normal(0, 4, (2, 8)) + random.normal(0, 0.3, (120, 8))).astype(np.float32)
    stated = truth.copy()
    stated[5, 0] = False
    stated[100, 1] = True
    found = checking.label_errors(features, stated)
    assert {(error.position, error.texts(("a", "b"))) for error in found} == {
        (5, ("not a", "a")),
        (100, ("b", "not b")),
    }


def test_imbalance_is_of_labels(data):
    rows = ["path,label"] + [f"{n}.png,{'a;b' if n < 2 else 'a' if n < 18 else ''}" for n in range(20)]
    for n in range(20):
        (data / f"{n}.png").write_bytes((data / "images" / "red" / f"{n:03}.png").read_bytes())
    (data / "rare.csv").write_text("\n".join(rows))
    images = scan(data / "rare.csv", label_separator=";")
    records = np.zeros(20, image_statistics.RECORD)
    records["width"] = records["height"] = 8
    found = checking.examine(images, np.zeros((20, 0)), records, checking.Duplicates((), np.zeros((0, 2), np.int64)))
    assert found.imbalance == 9.0
    assert "the most frequent label has 9 times as many images as the rarest" in found.findings()
    assert images.warnings == ("labels of fewer than 3 images are hardly learned or measured: b (2)",)


def test_copies_with_other_labels_are_conflicts(data):
    images = scan(data / "cells.csv", label_separator="|")
    same = checking.Duplicates(((0, 1), (0, 20)), np.zeros((0, 2), np.int64))  # blue and blue, blue and green
    records = np.zeros(len(images), image_statistics.RECORD)
    records["width"] = records["height"] = 8
    found = checking.examine(images, np.zeros((len(images), 0), np.float32), records, same)
    assert found.conflicts == ((0, 20),)


def test_a_prediction_has_all_labels_decided_on(fitted, data, capsys):
    images = [data / "images" / name / "003.png" for name in ("red", "green", "blue")]
    for top in (1, None):
        predictions = fitted.predict(images, top=top)
        assert [set(one.labels) for one in predictions] == [{"red", "warm"}, {"green"}, set()]
        assert set(predictions[0].label.split("|")) == {"red", "warm"}
        assert predictions[2].label == ""
        assert predictions[0].probability == min(predictions[0].probabilities[name] for name in ("red", "warm"))
        assert predictions[2].probability == pytest.approx(1 - max(fitted.predict_proba(images[2])[0]), abs=1e-6)
    text, _ = run(capsys, "predict", data / "tags.resfit", *images, "--json")
    assert [set(one["labels"]) for one in json.loads(text)] == [{"red", "warm"}, {"green"}, set()]
    text, _ = run(capsys, "predict", data / "tags.resfit", *images)
    assert "no label" in text
    run(capsys, "predict", data / "tags.resfit", *images, "--csv", data / "out.csv")
    rows = list(csv.DictReader((data / "out.csv").open()))
    assert [set(filter(None, row["label"].split("|"))) for row in rows] == [{"red", "warm"}, {"green"}, set()]


def test_evaluation_and_report_name_the_figures(fitted, data, capsys):
    text, _ = run(capsys, "evaluate", data / "tags.resfit", data / "long.csv", "--multilabel")
    assert "exact-match accuracy (all labels right)" in " ".join(text.split())
    assert "mean average precision (mAP)" in " ".join(text.split())
    found = report.measure(fitted, data / "cells.csv")
    assert "accuracy" not in found.figures.overall
    assert found.figures.overall["auprc_macro"].value == pytest.approx(found.evaluation.mean_average_precision)
    page = report.render(found, explain=False)
    assert "exact-match accuracy (all labels right)" in page
    assert "Any of: green, red, warm" in page


def test_the_command_accounts_for_every_file(data, tmp_path, capsys):
    text, errors = run(capsys, "fit", data / "images", "-o", tmp_path / "out", "--json")
    counted = json.loads(text)["images"]
    assert counted == {"found": 61, "skipped": 0, "train": 48, "test": 12, "ignored": 1}
    rows = list(csv.DictReader((tmp_path / "out" / "skipped.csv").open()))
    assert [row["reason"] for row in rows] == ["ignored: no image by its content"]
    assert "Ignored 1 no image by its content" in errors
    text, errors = run(capsys, "fit", data / "flags.csv", "-o", tmp_path / "tags")
    assert "60 found = 60 images used + 0 skipped + 0 ignored" in text
    assert "a label each from the columns of 0 and 1, green, red, warm" in errors


def test_columns_for_embed(data, tmp_path, capsys):
    run(capsys, "embed", data / "cells.csv", "-o", tmp_path / "f.npz", "--label-separator", "|")
    labels = np.load(tmp_path / "f.npz")["label"].tolist()
    assert (labels[0], labels[20], labels[40]) == ("", "green", "red|warm")
    run(capsys, "embed", data / "flags.csv", "-o", tmp_path / "g.npz", "--label-column", "green")
    assert set(np.load(tmp_path / "g.npz")["label"].tolist()) == {"0", "1"}


def test_labels_are_predicted_without_keras(data, fitted, tmp_path, monkeypatch):
    monkeypatch.setenv("RESFIT_CACHE", str(tmp_path))
    loaded = Classifier.load(data / "tags.resfit")
    paths = [data / "images" / name / "003.png" for name in ("red", "blue", "green")]
    expected = loaded.predict_proba(paths, engine="keras")
    loaded.predict(paths)  # which keeps the network
    said = said_apart(data / "tags.resfit", paths)
    assert said["imported"] == []
    assert expected.sum(axis=1).max() > 1.5  # labels, not classes
    for what in ("predicted", "served"):
        np.testing.assert_allclose(said[what]["scores"], expected, atol=1e-5)


def test_the_server_answers_with_all_labels(fitted, data):
    testclient = pytest.importorskip("starlette.testclient")
    from resfit.serving.app import create_app
    from resfit.serving.context import Context
    from resfit.serving.metrics import Metrics
    from resfit.serving.pipeline import Pipeline
    from resfit.serving.repository import Repository
    from resfit.serving.settings import ServerSettings
    from tests.serving.conftest import wait_until

    settings, metrics = ServerSettings(engine="keras"), Metrics()
    repository = Repository(data / "tags.resfit", settings, metrics)
    context = Context(settings, repository, Pipeline(settings, metrics), metrics)
    context.repository.start()
    try:
        wait_until(lambda: context.is_ready, 60)
        client = testclient.TestClient(create_app(context), base_url="http://127.0.0.1")
        (model,) = context.repository.models
        files = [data / "images" / name / "003.png" for name in ("red", "blue")]
        form = [("file", (path.name, path.read_bytes())) for path in files]
        answer = client.post("/predict?top=1", files=form).json()
        assert [set(one["labels"]) for one in answer["predictions"]] == [{"red", "warm"}, set()]
        outputs = client.get(f"/v2/models/{model}").json()["outputs"]
        assert outputs[1]["parameters"] == {"label_separator": "|"}
        from PIL import Image

        pixels = [np.asarray(Image.open(path).resize((16, 16))).tolist() for path in files]
        body = {"inputs": [{"name": "images", "shape": [2, 16, 16, 3], "datatype": "UINT8", "data": pixels}]}
        found = {
            row["name"]: row["data"] for row in client.post(f"/v2/models/{model}/infer", json=body).json()["outputs"]
        }
        assert [set(filter(None, text.split("|"))) for text in found["label"]] == [{"red", "warm"}, set()]
        assert len(found["scores"]) == 6
    finally:
        context.pipeline.close()
        context.repository.close()


def test_few_images_of_many_combinations_are_measured(tmp_path):
    """36 images, nearly all of a combination of their own, leave some to measure with."""
    folder = write_folder(tmp_path / "images", each=12)
    random = np.random.default_rng(0)
    rows = ["path,label"]
    for path in sorted(folder.glob("*/*.png")):
        more = [f"t{n}" for n in np.flatnonzero(random.random(5) < 0.5)]
        rows.append(f"{path},{';'.join([path.parent.name, *more])}")
    (tmp_path / "table.csv").write_text("\n".join(rows))
    found = fit(tmp_path / "table.csv", model=tiny_body(), label_separator=";", check=False)
    assert 6 <= found.metrics["images"]["test"] <= 9
    assert found.metrics["test"]["n"] == found.metrics["images"]["test"]
    assert all(row["support"] for row in found.metrics["test"]["per_class"])
