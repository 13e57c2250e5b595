"""The device on the command line: chosen, told, and without a fault of resfit where its memory runs out."""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest

from resfit import devices
from resfit.cli import main
from tests.cards import AMPERE, cards
from tests.pictures import write_folder


@pytest.fixture(autouse=True)
def _own_default(monkeypatch):
    monkeypatch.setattr(devices, "_default", "auto")


def called(capsys, *arguments):
    """Returns exit code, stdout and stderr of a command."""
    with pytest.raises(SystemExit) as end:
        main.run([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return end.value.code, out, err


def test_the_machine_is_described(capsys, monkeypatch):
    code, out, _ = called(capsys, "info", "--json")
    found = json.loads(out)
    assert (code, found["device"], found["cards"]) == (0, "cpu", [])
    assert found["engines"]["keras"] == ["float32", "bfloat16"]
    cards(monkeypatch, AMPERE)
    found = json.loads(called(capsys, "info", "--json")[1])
    assert (found["device"], found["driver"]) == ("gpu:0", "550.54.15, CUDA 12.5.1, cuDNN 9")
    assert found["engines"]["keras"] == ["float32", "tf32", "bfloat16", "float16"]
    assert "gpu:0 (Ampere, 550.54.15, CUDA 12.5.1, cuDNN 9)" in called(capsys, "info")[1]


def test_a_device_that_is_none_is_wrong_usage(capsys, tmp_path, monkeypatch):
    source = write_folder(tmp_path / "images", each=2)
    code, _, err = called(capsys, "fit", source, "-o", tmp_path / "out", "--device", "cuda:0")
    assert (code, "device must be auto, cpu, gpu" in err) == (2, True)
    cards(monkeypatch)
    code, _, err = called(capsys, "fit", source, "-o", tmp_path / "out", "--device", "gpu")
    assert (code, "there is no card that TensorFlow can use" in err) == (2, True)
    assert "CUDA_VISIBLE_DEVICES" in err


@pytest.mark.parametrize("command", ["predict", "evaluate", "explain", "embed", "check", "serve", "pretrain"])
def test_every_command_that_computes_takes_a_device(command, capsys):
    code, _, err = called(capsys, command, "--device", "cuda:0")
    assert (code, "device must be auto, cpu, gpu" in err) == (2, True), err


def test_memory_that_runs_out_is_no_fault_of_resfit(capsys, tmp_path, monkeypatch):
    import tensorflow as tf

    from resfit.tasks import dispatch

    def full(*_, **__):
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor with shape[256,64,112,112]")

    monkeypatch.setattr(dispatch, "fit", full)
    source = write_folder(tmp_path / "images", each=2)
    code, _, err = called(capsys, "fit", source, "-o", tmp_path / "out")
    assert (code, "fault of resfit" in err) == (1, False)
    assert err.startswith(
        "Error: the device has not enough memory: OOM when allocating tensor with shape[256,64,112,112]"
    )
    assert "--batch-size" in err
    assert "--device cpu" in err


def test_deterministic_reaches_tensorflow_before_anything_is_drawn(tmp_path, monkeypatch, capsys):
    import keras
    import tensorflow as tf

    told = []
    monkeypatch.setattr(tf.config.experimental, "enable_op_determinism", lambda: told.append("deterministic"))
    monkeypatch.setattr(keras.utils, "set_random_seed", lambda seed: told.append(seed))
    source = write_folder(tmp_path / "images", each=6)
    code, out, _ = called(
        capsys, "fit", source, "-o", tmp_path / "out", "--deterministic", "--seed", 3, "--device", "cpu", "--json",
        "--no-check",
    )  # fmt: skip
    assert code == 0
    assert told == [3, "deterministic"]
    machine = json.loads(out)["machine"]
    assert machine["deterministic"] is True
    assert machine["device"] == "cpu"
    # what is fitted there is used on a card, and says so
    picture, table = source / "red" / "000.png", tmp_path / "features.parquet"
    code, _, err = called(capsys, "predict", tmp_path / "out", picture)
    assert (code, "computed on" in err) == (0, False)
    cards(monkeypatch, AMPERE)
    monkeypatch.setattr(devices, "_default", "auto")
    code, _, err = called(capsys, "predict", tmp_path / "out", picture)
    assert code == 0
    assert "computed on gpu:0 (Ampere, 550.54.15, CUDA 12.5.1, cuDNN 9) in float32" in err
    code, out, _ = called(capsys, "embed", source, "-o", table, "--model", tmp_path / "out", "--no-cache", "--json")
    written = json.loads(pq.read_schema(table).metadata[b"resfit.machine"])
    assert (code, json.loads(out)["machine"]) == (0, written)
    assert (written["engine"], written["precision"], written["device"]) == ("keras", "float32", "gpu:0")
    assert written["driver"] == AMPERE.driver
