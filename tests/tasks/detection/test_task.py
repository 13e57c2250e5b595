"""Detection as the command line and the other tasks know it: fast, without a network."""

from __future__ import annotations

import pandas as pd
import pytest

from resfit.errors import ArgumentError
from resfit.tasks import base, dispatch
from resfit.tasks.base import Strength
from resfit.tasks.detection.task import own_options
from tests.tasks.detection.drawn import write_set


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("boxes") / "set", {"train": 3, "test": 1})


def test_boxes_are_recognised_and_labels_are_not(folder, tmp_path):
    detection = base.task_named("detection")
    assert dispatch.chosen(folder)[0] is detection
    assert "boxes" in dispatch.chosen(folder)[1]
    assert dispatch.chosen(folder / "labels.csv")[0] is detection
    table = pd.read_csv(folder / "labels.csv")
    assert detection.recognises(table, {}).strength == Strength.CERTAIN
    assert detection.recognises(table[["path", "label"]], {}).strength == Strength.NONE
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes((folder / "train-0.png").read_bytes())
    assert dispatch.chosen(tmp_path)[0].name == "classification"
    assert dispatch.chosen(folder, "classification")[0].name == "classification"


def test_options_of_every_task_are_read_and_those_of_others_refused():
    given = {
        "strategy": "finetune",
        "path_column": "file",
        "split_column": None,
        "image_root": None,
        "trainable_from": None,
        "lr_find": False,
        "reading": None,
        "budget": "1m",
        "size": 320,
    }
    assert own_options(given) == {"strategy": "last", "budget": "1m", "size": 320, "columns": {"path": "file"}}
    assert own_options({"image_root": "a", "head": {"head_width": 8}}) == {"images": "a", "head": {"head_width": 8}}
    for name, value in (("teacher", "resnet50"), ("precision", "int8"), ("train", "a/"), ("head", "mlp")):
        with pytest.raises(ArgumentError, match=f"{name} is no option of detection"):
            own_options({name: value})


def test_the_plan_of_the_command_line_says_what_and_why(folder):
    found = dispatch.plan(folder, budget="5m", strategy="auto", seed=0, test_share=0.2)
    assert found.reasons[0].startswith("task: detection")
    assert found.strategy in ("head", "last", "full")
    assert found.total > 0
    assert dispatch.plan(folder, strategy="probe").strategy == "head"
    assert dispatch.plan(folder, tiles=64).size == (64, 64)
