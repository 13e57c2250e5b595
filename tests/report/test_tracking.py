"""Records of a fit: parameters, every epoch, figures with intervals, report and model."""

import os

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
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "runs").as_uri())
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


def test_wandb_offline(fitted, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", os.fspath(tmp_path))
    model, out = fitted
    tracking.log_fit(model, "wandb", out, {"seed": 3})
    assert list(tmp_path.rglob("*.wandb"))


def test_unknown_and_missing_ones_are_named():
    with pytest.raises(ArgumentError, match="Did you mean 'mlflow'"):
        tracking.check("mlfow")
    if not tracking.dependencies.is_installed("wandb"):
        with pytest.raises(MissingDependencyError, match=r"resfit\[wandb\]"):
            tracking.check("wandb")
