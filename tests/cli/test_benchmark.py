"""``resfit benchmark``: figures that fit together, engines that are missing, errors."""

from __future__ import annotations

import json

import pytest
import typer
from typer.testing import CliRunner

from resfit import devices
from resfit.cli.benchmark import register
from resfit.engines import benchmark
from resfit.networks import arithmetic, catalog
from tests.cards import AMPERE, cards


@pytest.fixture
def run():
    app = typer.Typer()
    register(app)
    return lambda *arguments: CliRunner().invoke(app, list(arguments))


def test_figures_fit_together(run, monkeypatch):
    monkeypatch.setattr(benchmark, "peak_gflops", lambda threads: 50.0)
    result = run("resnet20", "--engine", "openvino", "--precision", "float32", "--seconds", "0.2", "--batch", "2",
                 "--batch", "5", "--size", "40", "--json")  # fmt: skip
    assert result.exit_code == 0, result.output
    small, large = json.loads(result.stdout)
    assert (small["model"], small["engine"], small["precision"], small["size"]) == (
        "resnet20", "openvino", "float32", [40, 40],
    )  # fmt: skip
    assert (small["batch"], large["batch"]) == (2, 5)
    macs = arithmetic.count(catalog.get("resnet20").spec, input_size=(40, 40), include_top=False).macs
    for row in (small, large):
        assert row["problem"] == ""
        assert 0 < row["p50"] <= row["p99"]
        assert row["gflops"] == pytest.approx(2 * macs * row["throughput"] / 1e9)
        assert row["peak_share"] == benchmark.peak_share(row["gflops"], "float32", 50)
        assert row["start"] > 0
        assert row["memory"] is None or row["memory"] < 2000


def test_keras_is_measured_on_the_device_that_is_named(run, monkeypatch):
    monkeypatch.setattr(devices, "_default", "auto")
    cards(monkeypatch, AMPERE)
    monkeypatch.setattr(benchmark, "peak_gflops", lambda threads: 1e6)
    monkeypatch.setattr(benchmark, "_in_a_process", benchmark._measure_here)  # another process has no such card
    arguments = ["resnet20", "--engine", "keras", "--engine", "openvino", "--seconds", "0.02", "--batch", "2",
                 "--size", "32", "--json", "--precision", "float32", "--precision", "float16"]  # fmt: skip
    found = {device: json.loads(run(*arguments, "--device", device).stdout) for device in ("gpu", "cpu")}
    told = {
        device: [(row["engine"], row["precision"], row["device"], row["peak_share"] is not None) for row in rows]
        for device, rows in found.items()
    }
    openvino = ("openvino", "float32", "cpu", True)
    assert told["gpu"] == [("keras", "float32", "gpu:0", False), ("keras", "float16", "gpu:0", False), openvino]
    assert told["cpu"] == [("keras", "float32", "cpu", True), openvino]
    assert "device must be auto, cpu, gpu" in str(run(*arguments, "--device", "cuda").exception)


def test_table_says_what_could_not_be_measured(run, tmp_path):
    result = run(str(tmp_path / "none.keras"), "--engine", "keras", "--seconds", "0.1", "--batch", "1")
    assert result.exit_code == 1
    (row,) = [line for line in result.stdout.splitlines() if line.strip().startswith("keras")]
    assert "none.keras" in row


def test_wrong_usage(run):
    from resfit.errors import ArgumentError

    result = run("resnet20", "--engine", "openvin")
    assert isinstance(result.exception, ArgumentError)
    assert "Did you mean 'openvino'" in str(result.exception)
    assert isinstance(run("resnet20", "--precision", "int4").exception, ArgumentError)
    assert isinstance(run("resnet20", "--batch", "0").exception, ArgumentError)
    assert isinstance(run("resnet20", "--seconds", "-1").exception, ArgumentError)


def test_cases_are_those_that_exist():
    assert benchmark.cases(("keras", "openvino"), ("float32", "int8")) == [
        ("keras", "float32"),
        ("openvino", "float32"),
        ("openvino", "int8"),
    ]
    assert "keras" in benchmark.available()


def test_a_share_is_of_a_peak_that_was_measured():
    assert benchmark.peak_share(30.0, "float32", 60.0) == 0.5
    assert benchmark.peak_share(60.0, "float32", 60.0) == 1.0
    assert benchmark.peak_share(None, "float32", 60.0) is None
    # units for short numbers are several times as fast as those for float32
    assert benchmark.peak_share(30.0, "int8", 60.0) is None
    assert benchmark.peak_share(399.6, "bfloat16", 60.0) is None
    # nothing is faster than the peak: it was measured while other programs ran
    assert benchmark.peak_share(399.6, "float32", 60.0) is None


def test_peak_is_that_of_a_matrix_product():
    one = benchmark.peak_gflops(threads=1)
    assert 1 < one < 5000  # any processor of the last twenty years, one core
