"""Records of a fit: parameters, every epoch, figures with intervals, report and model."""

import json
import os
import struct
import time

import numpy as np
import pytest

import resfit
from resfit.errors import ArgumentError, MissingDependencyError
from resfit.report import tracking
from tests.pictures import COLOURS, picture

X = np.stack([picture(name, seed) for name in sorted(COLOURS) for seed in range(10)])
Y = np.repeat(sorted(COLOURS), 10)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    out = tmp_path_factory.mktemp("fit") / "colours.resfit"
    found = resfit.fit(
        (X, Y), out=out, cache=False, strategy="finetune", tuning={"epochs": 2, "batch_size": 8}, tensorboard=False
    )
    return found, out


def test_figures_carry_their_intervals():
    found = {
        "accuracy": 0.9,
        "interval": [0.8, 1.0],
        "name": "x",
        "confusion": [[1, 2], [3, 4]],
        "overall": {"mcc": {"value": 0.5, "low": 0.25, "high": 0.75}},
        "per_class": [{"label": "a & b", "recall": 0.5}],
    }
    assert dict(tracking._numbers(found, "test")) == {
        "test/accuracy": 0.9,
        "test/accuracy.low": 0.8,
        "test/accuracy.high": 1.0,
        "test/overall/mcc": 0.5,
        "test/overall/mcc.low": 0.25,
        "test/overall/mcc.high": 0.75,
        "test/per_class/a _ b/recall": 0.5,
    }


def test_tensorboard_has_every_epoch_and_figure(fitted):
    import tensorflow as tf
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model, out = fitted
    figures = tracking.log_fit(model, "tensorboard", out, {"seed": 3}, source="colours")
    assert figures["test/accuracy"] == model.metrics["test"]["accuracy"]
    assert any(name.endswith(".low") for name in figures)
    events = EventAccumulator(str(out.with_name(f"{out.name}.tensorboard")))
    events.Reload()
    losses = {event.step: float(tf.make_ndarray(event.tensor_proto)) for event in events.Tensors("epoch/val_loss")}
    assert losses == pytest.approx({row["epoch"]: row["val_loss"] for row in model.run.history})
    texts = tf.make_ndarray(events.Tensors("parameters")[0].tensor_proto).ravel()[0]
    assert b"| seed | 3 |" in texts


def test_mlflow_has_parameters_epochs_figures_report_and_model(fitted, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(None)  # its own choice: a file of SQLite where it runs
    model, out = fitted
    figures = tracking.log_fit(model, "mlflow", out, {"seed": 3}, source="colours")
    (run,) = mlflow.MlflowClient().search_runs(["0"])
    assert run.data.params["seed"] == "3"
    assert run.data.params["task"] == "classification"
    assert run.data.metrics["test/accuracy.low"] == figures["test/accuracy.low"]
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "epoch/val_loss")
    assert [point.step for point in history] == [row["epoch"] for row in model.run.history]
    names = {item.path for item in mlflow.MlflowClient().list_artifacts(run.info.run_id)}
    assert names == {"model", "report.html"}


def records_of(data, block=32768):
    """Yields the records of a run's file: LevelDB's log, behind a header of 7 bytes."""
    at, parts = 7, []
    while at + 7 <= len(data):
        if block - at % block < 7:
            at += block - at % block
            continue
        length, kind = struct.unpack("<HB", data[at + 4 : at + 7])
        parts.append(data[at + 7 : at + 7 + length])
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield b"".join(parts)
            parts = []


def test_wandb_has_parameters_epochs_and_figures(fitted, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DIR", os.fspath(tmp_path))
    model, out = fitted
    figures = tracking.log_fit(model, "wandb", out, {"seed": 3})
    (file,) = tmp_path.rglob("*.wandb")
    losses, told, artifacts = {}, {}, 0
    for _ in range(600):  # a process of its own writes the file
        records = [wandb_internal_pb2.Record.FromString(data) for data in records_of(file.read_bytes())]
        if any(record.HasField("exit") for record in records):
            break
        time.sleep(0.1)
    for record in records:
        row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        told |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        told |= {item.key: json.loads(item.value_json) for item in record.config.update} | row
        artifacts += record.request.HasField("log_artifact") or record.HasField("artifact")
        if "epoch/val_loss" in row:
            losses[row["epoch"]] = row["epoch/val_loss"]
    assert losses == pytest.approx({row["epoch"]: row["val_loss"] for row in model.run.history})
    assert str(told["seed"]) == "3"
    assert told["test/accuracy.low"] == pytest.approx(figures["test/accuracy.low"])
    assert artifacts >= 1


def test_unknown_and_missing_ones_are_named():
    with pytest.raises(ArgumentError, match="Did you mean 'mlflow'"):
        tracking.check("mlfow")
    if not tracking.dependencies.is_installed("wandb"):
        with pytest.raises(MissingDependencyError, match=r"resfit\[wandb\]"):
            tracking.check("wandb")
