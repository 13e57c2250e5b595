"""``resfit fit``, ``check`` and ``demo --detection`` on drawn pictures."""

from __future__ import annotations

import json

from PIL import Image
from typer.testing import CliRunner

from resfit.cli import demo
from resfit.cli.main import build
from tests.tasks.detection.drawn import write_set


def run(*arguments):
    found = CliRunner().invoke(build([arguments[0]]), [str(argument) for argument in arguments])
    assert found.exit_code == 0, found.output + repr(found.exception)
    return found


def test_fit_says_the_task_and_writes_a_detector(tmp_path):
    folder = write_set(tmp_path / "set", {"train": 8, "val": 4, "test": 3})
    out = tmp_path / "out.resfit"
    settings = ("--strategy", "probe", "--budget", "2s", "--size", "64", "--no-cache")
    found = run("fit", folder, "-o", out, *settings, "--json")
    assert "task: detection (the data has boxes: " in found.stderr
    said = json.loads(found.stdout)
    assert said["task"] == "detection"
    assert said["labels"] == ["disc", "square"]
    assert 0 <= said["test"]["metrics"]["ap50"] <= 1
    assert json.loads((out / "model.json").read_text())["kind"] == "resfit detector"
    checked = run("check", folder, "--no-cache")
    assert "15 pictures" in checked.stdout
    picture = next(folder.rglob("*.png"), None) or next(folder.rglob("*.jpg"))
    shown = json.loads(run("explain", out, picture, "-o", tmp_path / "why", "--box", "0", "--json").stdout)
    assert shown[0]["method"] == "grad-cam"
    assert shown[0]["target"] in ("disc", "square")
    with Image.open(shown[0]["picture"]) as drawn:
        assert drawn.size == (64, 64)  # the network's input
    refused = CliRunner().invoke(
        build(["explain"]), ["explain", str(out), str(picture), "-o", str(tmp_path), "--examples", "2"]
    )
    assert "explain of a model for detection has no such option. Received: --examples" in str(refused.exception)
    planned = run("fit", folder, "--dry-run", "--budget", "5m")
    assert "letterbox" in planned.stdout or "pixels" in planned.stdout


def test_check_refuses_options_of_boxes_for_classes(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "set" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "set" / name / "1.png")
    refused = CliRunner().invoke(build(["check"]), ["check", str(tmp_path / "set"), "--held-out", "1m"])
    assert "--held-out must come with pictures with boxes. Received: task classification." in str(refused.exception)


def test_the_demo_ends_in_a_picture_with_boxes(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "_SHAPES", {"train": 8, "val": 4, "test": 6})
    monkeypatch.setattr(demo, "_DETECTION_BUDGET", "2s")
    found = run("demo", "--detection", "-o", tmp_path / "demo")
    assert "AP50" in found.stdout
    with Image.open(tmp_path / "demo" / "shapes.png") as picture:
        assert picture.size == (960, 480)
