"""``resfit suggest``: tables, JSON, units, errors, and nothing heavy loaded unless it measures."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from resfit.cli.suggest import register


@pytest.fixture
def run():
    app = typer.Typer()
    register(app)
    return lambda *arguments: CliRunner().invoke(app, list(arguments))


def test_table_with_the_front_marked(run):
    result = run(
        "--max-params", "30M", "--max-gmacs", "5", "--min-top1", "78", "--licence", "permissive", "--limit", "3"
    )
    assert result.exit_code == 0
    rows = [line.split() for line in result.stdout.splitlines()[2:]]
    front = [row for row in rows if row[0] == "*"]
    assert front[0][1:6] == ["resnet_vd_50_ssld_v2_imagenet", "83.0", "25.6", "4.33", "224"]
    assert len(rows) - len(front) == 3
    assert "checkpoints, the best" in result.stderr
    assert "checkpoints, the best" not in result.stdout


def test_json_has_all_of_them(run):
    rows = json.loads(run("--max-params", "1e6", "--evaluated-on", "CIFAR-10", "--json").stdout)
    assert rows[0]["name"] == "resnet56b.chenyaofo_cifar10"
    assert rows[0]["pareto"] is True
    assert {row["latency"] for row in rows} == {None}
    assert len(rows) == 8


@pytest.mark.parametrize("text", ["1M", "1m", "1000K", "1e6", "1000000"])
def test_units_of_parameters(run, text):
    assert len(json.loads(run("--max-params", text, "--evaluated-on", "CIFAR-10", "--json").stdout)) == 8


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--max-params", "many"), "such as 30M"),
        (("--max-params", "-1M"), "such as 30M"),
        (("--latency", "50"), "such as 50ms"),
        (("--latency", "inf ms"), "such as 50ms"),
    ],
)
def test_wrong_numbers_are_wrong_usage(run, arguments, text):
    result = run(*arguments)
    assert result.exit_code == 2
    assert text in " ".join(result.stderr.replace("│", " ").split())


def test_nothing_within_the_limits(run):
    result = run("--max-params", "1M", "--min-top1", "90")
    assert result.exit_code == 1
    assert "Widen one of them" in result.stderr
    assert json.loads(run("--max-params", "1M", "--min-top1", "90", "--json").stdout) == []


def test_latency_is_measured(run, tmp_path, monkeypatch):
    monkeypatch.setenv("RESFIT_CACHE", str(tmp_path))
    picture = tmp_path / "choice.png"
    result = run("--evaluated-on", "CIFAR-10", "--max-params", "0.3M", "--latency", "60s", "--plot", str(picture))
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[0].split()[4] == "ms"
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert "for its latency" in result.stderr


def test_no_tensorflow_is_loaded():
    code = (
        "import sys, typer\n"
        "from resfit.cli.suggest import register\n"
        "app = typer.Typer(); register(app)\n"
        "app(['--max-gmacs', '2'], standalone_mode=False)\n"
        "heavy = ('tensorflow', 'keras', 'numpy', 'h5py', 'pandas', 'sklearn', 'matplotlib', 'openvino')\n"
        "print([name for name in heavy if name in sys.modules], file=sys.stderr)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stderr.splitlines()[-1] == "[]"
    assert found.stdout
