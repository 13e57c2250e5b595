"""``resfit export``: table, JSON, places, exit codes."""

from __future__ import annotations

import json

import pytest
import typer
from typer.testing import CliRunner

from resfit.cli import main
from resfit.cli.export import register
from tests.pictures import write_folder
from tests.training.networks import small_body


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    from resfit.tasks.classification import fit

    folder = tmp_path_factory.mktemp("cli-export")
    fit(
        write_folder(folder / "photos"),
        model=small_body(),
        out=folder / "colours.resfit",
        strategy="probe",
        cache=False,
    )
    return folder / "colours.resfit"


@pytest.fixture
def run():
    app = typer.Typer()
    register(app)
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_one_format_as_a_table(run, fitted):
    result = run(fitted, "--format", "onnx")
    assert result.exit_code == 0, result.output
    (row,) = [line for line in result.stdout.splitlines() if line.strip().startswith("onnx")]
    assert row.split()[1] == "float32"
    assert row.split()[-2:] == ["100.0%", "100.0%"]
    assert "images it was tested on" in result.stdout
    assert (fitted.parent / "colours-onnx" / "model.onnx").is_file()
    assert json.loads((fitted.parent / "colours-onnx" / "contract.json").read_text("utf-8"))["name"] == "colours"


def test_json_and_all(run, fitted, tmp_path):
    result = run(fitted, "--all", "--format", "openvino", "--format", "torch", "--precision", "float32",
                 "-o", tmp_path / "out", "--json")  # fmt: skip
    assert result.exit_code == 0, result.output
    first, second = json.loads(result.stdout)
    assert (first["format"], first["problem"], first["failed"]) == ("openvino", None, False)
    assert first["verification"]["passed"]
    assert second["format"] == "torch"
    assert "timm" in second["problem"]
    assert (tmp_path / "out" / "exports.png").is_file()
    assert "openvino float32: largest difference" in result.stderr


def test_wrong_usage(run, fitted, tmp_path):
    assert run(fitted).exit_code == 2
    assert run(fitted, "--format", "onnx", "--format", "keras").exit_code == 2
    result = run(fitted, "--format", "onx", "-o", tmp_path / "out")
    assert "Did you mean 'onnx'" in str(result.exception)
    assert not any(tmp_path.iterdir())


def test_failure_is_one_line_and_exit_code_one(fitted, tmp_path, capsys):
    with pytest.raises(SystemExit) as ending:
        main.run(["export", str(fitted), "--format", "tfjs", "-o", str(tmp_path / "out")])
    assert ending.value.code == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "no maintained converter" in error
