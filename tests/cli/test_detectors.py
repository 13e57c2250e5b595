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
    assert [line.split()[0] for line in lines[2:4]] == ["rtdetr_r101vd_o365", "rtdetr_r50vd_o365"]
    own = next(line for line in lines if line.startswith("retinanet_resnet50_v2 "))
    assert "41.5  800x1333  COCO val2017  none stated" in own
    assert "56.2   640x640  COCO val2017  apache-2.0" in lines[2]
    assert "39 detectors, 25 with weights" in said
    _, output, _ = run("models", "fcos_*", "--task", "detection", "--json")
    assert [row["ap"] for row in json.loads(output)] == [39.2, None, 36.6]


def test_suggest(run):
    status, output, _ = run("suggest", "--task", "detection", "--min-ap", "55", "--json")
    assert (status, [row["name"] for row in json.loads(output)]) == (0, ["rtdetr_r101vd_o365", "rtdetr_r50vd_o365"])
    status, _, said = run("suggest", "--task", "detection", "--max-gmacs", "20")
    assert status == 1
    assert "Of least cost are rtdetr_r18vd_o365 (30.8 GMACs at 640x640, 49 AP), rtdetrv2_r18vd" in said
    assert "rtdetr_r18vd_o365 --size 480: 17.8 GMACs (49 AP at 640x640)" in said
    assert "fcos_light_resnet18 (22.1 GMACs at 640x640)" in said
    assert run("suggest", "--task", "detection", "--measure")[0] == 2
    assert run("suggest", "--min-ap", "30")[0] == 2


def test_info_of_a_name(run):
    status, output, _ = run("info", "fcos_resnet50")
    assert status == 0
    assert "fcos_resnet50_fpn_coco-99b0c9b7.pth (sha256 99b0c9b7…, 123.608 MB)" in output
    assert "box AP           39.2 on COCO val2017 at 800x1333 (torchvision)" in output
    assert "licence          none is stated for the weights" in output
    _, output, _ = run("info", "rtdetrv2_r18vd")
    assert "input            RGB, stretched to 640x640, (x * 0.00392157 - [0.0, 0.0, 0.0])" in output
    assert "weights          hf://PekingU/rtdetr_v2_r18vd\n" in output
    assert "4,020,912" in output
