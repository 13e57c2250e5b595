"""Detectors in ``resfit models``, ``info``, ``suggest`` and ``convert``."""

from __future__ import annotations

import json

import pytest
import typer
from typer.testing import CliRunner

from resfit.cli import models, suggest


@pytest.fixture
def run():
    """Runs a command; returns its exit status, its output and what it says beside."""
    app = typer.Typer()
    models.register(app)
    suggest.register(app)

    def call(*arguments: str) -> tuple[int, str, str]:
        done = CliRunner().invoke(app, list(arguments))
        return done.exit_code, done.stdout, done.stderr

    return call


def test_models(run):
    status, output, said = run("models", "--task", "detection", "--sort", "ap")
    lines = output.splitlines()
    assert status == 0
    assert [line.split()[0] for line in lines[2:5]] == ["retinanet_resnet50_v2", "fcos_resnet50", "retinanet_resnet50"]
    assert "41.5  800x1333  COCO val2017  none stated" in lines[2]
    assert "4 detectors, 3 with weights" in said
    _, output, _ = run("models", "fcos_*", "--task", "detection", "--json")
    assert [row["ap"] for row in json.loads(output)] == [39.2, None]


def test_suggest(run):
    status, output, _ = run("suggest", "--task", "detection", "--min-ap", "38", "--json")
    assert (status, [row["name"] for row in json.loads(output)]) == (0, ["retinanet_resnet50_v2", "fcos_resnet50"])
    status, _, said = run("suggest", "--task", "detection", "--max-gmacs", "30")
    assert status == 1
    assert "The one of least cost is fcos_resnet50: 128.2 GMACs, 39.2 AP" in said
    assert run("suggest", "--task", "detection", "--measure")[0] == 2
    assert run("suggest", "--min-ap", "30")[0] == 2


def test_info_of_a_name(run):
    status, output, _ = run("info", "fcos_resnet50")
    assert status == 0
    assert "fcos_resnet50_fpn_coco-99b0c9b7.pth (sha256 99b0c9b7…, 123.608 MB)" in output
    assert "box AP           39.2 on COCO val2017 at 800x1333 (torchvision)" in output
    assert "licence          none is stated for the weights" in output
