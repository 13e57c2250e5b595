"""The task protocol: a task from outside goes through everything, data finds its task, folders find theirs."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from PIL import Image

import resfit
from resfit.cli.main import build
from resfit.errors import ArgumentError, ArtifactError
from resfit.serving.adapter import Served
from resfit.tasks import base, dispatch
from tests.serving.light import light_server


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Plain photos from dark to bright; in the table, `light` is their brightness and `kind` a class."""
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    rows = []
    for number, light in enumerate(np.linspace(20, 230, 40).round(1)):
        Image.fromarray(np.clip(generator.normal(light, 5, (64, 64, 3)), 0, 255).astype(np.uint8)).save(
            folder / f"{number}.png"
        )
        rows.append((f"{number}.png", light, "bright" if light > 125 else "dark"))
    with open(folder / "photos.csv", "w", newline="") as file:
        csv.writer(file).writerows([("path", "light", "kind"), *rows])
    return folder


@pytest.fixture
def toy():
    from tests.tasks import toy_task

    base._TASKS["brightness"] = toy_task.BrightnessTask()  # registered anew for each test
    yield toy_task
    del base._TASKS["brightness"]


def test_a_task_from_outside_goes_through_everything(toy, photos, tmp_path, capsys):
    out = tmp_path / "light.resfit"
    fitted = resfit.fit(photos / "photos.csv", task="brightness", label_column="light", out=out)
    assert fitted.predict(photos / "20.png")[0].value == pytest.approx(127, abs=12)
    assert fitted.evaluate(photos / "photos.csv", label_column="light").error < 8
    loaded = dispatch.load(out)
    assert type(loaded) is toy.LightMeter

    app = build(["predict"])
    with pytest.raises(SystemExit) as ended:
        app(["predict", str(out), str(photos / "20.png"), "--json"])
    assert ended.value.code == 0
    (said,) = json.loads(capsys.readouterr().out)
    assert said["value"] == pytest.approx(fitted.predict(photos / "20.png")[0].value, rel=1e-4)

    export = loaded.export(tmp_path / "export", format="onnx")
    assert export.verification.problems == ()

    data = (photos / "20.png").read_bytes()
    with light_server(tmp_path / "served", lambda folder, engine: Served.load(out, "keras")) as server:
        httpx = pytest.importorskip("httpx")
        kind = {"content-type": "image/png"}
        one = httpx.post(f"{server.url}/predict", content=data, headers=kind, timeout=60).json()
        assert one["predictions"][0]["value"] == pytest.approx(said["value"], rel=1e-3)
        pixels = np.asarray(Image.open(photos / "20.png")).tolist()
        rows = httpx.post(f"{server.url}/v1/models/mean:predict", json={"instances": [pixels]}, timeout=60).json()
        assert rows["predictions"][0][0] == pytest.approx(said["value"], rel=1e-3)
        described = httpx.get(f"{server.url}/v2/models/mean", timeout=60).json()
        assert described["outputs"][0] == {"name": "values", "datatype": "FP32", "shape": [-1, 1]}
        refused = httpx.post(f"{server.url}/v1/models/mean:classify", json={"examples": []}, timeout=60)
        assert (refused.status_code, "for classes" in refused.text) == (400, True)


def test_a_folder_of_an_unknown_task_is_named(toy, photos, tmp_path):
    resfit.fit(photos / "photos.csv", task="brightness", label_column="light", out=tmp_path / "a.resfit")
    del base._TASKS["brightness"]
    with pytest.raises(ArtifactError, match=r"kinds resfit classifier, .*Received: 'resfit light meter'"):
        dispatch.load(tmp_path / "a.resfit")
    with pytest.raises(ArgumentError, match=r"task must be one of .*'classification'.*Received: 'brightness'"):
        resfit.fit(photos / "photos.csv", task="brightness")
    base._TASKS["brightness"] = toy.BrightnessTask()


def test_a_fitted_model_of_another_task_is_replaced_but_no_folder_of_yours(toy, photos, tmp_path):
    out = tmp_path / "a.resfit"
    options = {"task": "brightness", "label_column": "light", "out": out}
    resfit.fit(photos / "photos.csv", **options)
    assert {path.name for path in out.iterdir()} == {"SHA256SUMS", "model.json", "model.keras", "notes.txt"}
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(ArgumentError, match=r"earlier light meter is replaced with its folder.*thesis.txt"):
        resfit.fit(photos / "photos.csv", **options)
    (out / "thesis.txt").unlink()
    resfit.fit(photos / "photos.csv", label_column="kind", out=out, check=False)
    assert resfit.Classifier.load(out).classes == ("bright", "dark")
    (out / "notes.txt").write_text("changed")


def test_tasks_recognise_their_data(toy, photos):
    sure = base.Recognition(base.Strength.CERTAIN, "the table has a column named light")
    toy.BrightnessTask.recognises, before = (lambda *_: sure), toy.BrightnessTask.recognises
    try:
        task, reason = base.task_for(photos / "photos.csv", {})
        assert task.name == "brightness"
        assert reason == (
            "task: brightness (the table has a column named light; task='classification' (--task classification) "
            "takes it otherwise)"
        )
        toy.BrightnessTask.recognises = lambda *_: base.Recognition(base.Strength.POSSIBLE, "it may be")
        with pytest.raises(
            ArgumentError, match=r"several tasks: classification, since .*; brightness, since it may be"
        ):
            base.task_for(photos / "photos.csv", {})
    finally:
        toy.BrightnessTask.recognises = before


def test_an_option_of_another_task_is_refused(photos, toy, tmp_path, capsys):
    out = tmp_path / "light.resfit"
    resfit.fit(photos / "photos.csv", task="brightness", label_column="light", out=out)
    with pytest.raises(ArgumentError, match=r"for brightness has no such option. Received: --top, --coverage"):
        build(["predict"])(["predict", str(out), str(photos / "0.png"), "--top", "3", "--coverage", "0.9"],
                           standalone_mode=False)  # fmt: skip
