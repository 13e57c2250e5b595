"""Options of a fit: from a file, a mapping and the command line; checked once, with the way out."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest

import resfit
from resfit.errors import ArgumentError
from resfit.tasks.config import (
    DataOptions,
    FitConfig,
    FitOptions,
    MachineOptions,
    ModelOptions,
    TrainingOptions,
    assigned,
    merged,
)

YAML = """
task: regression
data: {label_column: [radius, area], test_share: 0.3}
model: {trainable_from: stage4}
training: {strategy: finetune, budget: 20m, seed: 3}
machine: {cache: false}
tuning: {epochs: 12, mixup: 0.2, sizes: [[0.0, 32], [0.5, 64]]}
"""
TOML = """
task = "regression"
[data]
label_column = ["radius", "area"]
test_share = 0.3
[model]
trainable_from = "stage4"
[training]
strategy = "finetune"
budget = "20m"
seed = 3
[machine]
cache = false
[tuning]
epochs = 12
mixup = 0.2
sizes = [[0.0, 32], [0.5, 64]]
"""


# a few lines that would be 9 ** 11 values, each list nine times the one before
BOMB = "l0: &a [1, 1]\n" + "".join(
    f"l{n}: &{chr(97 + n)} [{','.join(['*' + chr(96 + n)] * 9)}]\n" for n in range(1, 12)
)


def test_every_format_states_the_same(tmp_path):
    (tmp_path / "a.yaml").write_text(YAML)
    (tmp_path / "a.toml").write_text(TOML)
    found = FitConfig.from_file(tmp_path / "a.yaml")
    (tmp_path / "a.json").write_text(json.dumps(found.to_dict()))
    assert found == FitConfig.from_file(tmp_path / "a.toml") == FitConfig.from_file(tmp_path / "a.json")
    assert found.keywords() == {
        "label_column": ["radius", "area"],
        "test_share": 0.3,
        "trainable_from": "stage4",
        "strategy": "finetune",
        "budget": "20m",
        "seed": 3,
        "cache": False,
        "tuning": {"epochs": 12, "mixup": 0.2, "sizes": [[0.0, 32], [0.5, 64]]},
    }
    assert FitConfig().keywords() == {}
    assert FitConfig.from_dict({"data": {"test_share": 0.0}}).keywords() == {"test_share": 0.0}  # of a detector


def test_assignments_and_what_overrules_what():
    found = assigned(["training.budget=10m", "epochs=20", "data.multilabel=true", "tuning.learning_rate=3e-4"])
    assert found == {
        "training": {"budget": "10m"},
        "tuning": {"epochs": 20, "learning_rate": 3e-4},
        "data": {"multilabel": True},
    }
    assert merged({"tuning": {"epochs": 5, "mixup": 0.1}}, found)["tuning"] == {
        "epochs": 20,
        "mixup": 0.1,
        "learning_rate": 3e-4,
    }


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"trainng": {}}, r"groups of options are task, data.*Received: 'trainng'\. Did you mean 'training'\?"),
        ({"training": {"budgt": "10m"}}, r"training has the options .*Received: 'budgt'\. Did you mean 'budget'\?"),
        ({"tuning": {"epoch": 3}}, r"tuning has the options .*Received: 'epoch'\. Did you mean 'epochs'\?"),
        ({"data": {"test_share": "much"}}, r"Expected 'float \| null', got 'str' - at '\$\.data\.test_share'"),
        ({"tuning": {"epochs": {"a": 1}}}, "number, a text or a short list"),
        ([1], "groups of options. Received: list"),
        ({"data": {"test_share": 1.5}}, r"test_share must lie in \[0, 1\)\. Received: 1\.5"),
        ({"data": {"max_skipped": -0.1}}, r"max_skipped must lie in \[0, 1\]\. Received: -0\.1"),
        ({"training": {"label_smoothing": 1.0}}, r"label_smoothing must lie in \[0, 1\)\. Received: 1\.0"),
        ({"training": {"focal": -1.0}}, "focal must be at least 0"),
        ({"machine": {"batch_size": 0}}, "batch_size must be at least 1"),
    ],
)
def test_what_is_wrong_is_said(value, message):
    with pytest.raises(ArgumentError, match=message):
        FitConfig.from_dict(value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yaml", "a: [1", "a.yaml must be a YAML file"),
        ("a.toml", "a = ", "a.toml must be a TOML file"),
        ("a.json", "{", "a.json must be a JSON file"),
        ("a.ini", "", r"ends in \.yaml, \.yml, \.toml or \.json. Received: 'a.ini'"),
        ("a.yaml", "x: !!python/object/apply:os.system ['touch pwned']", "must be a YAML file"),
        ("a.yaml", BOMB, "groups of options are"),
    ],
)
def test_files_that_are_none(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ArgumentError, match=message):
        FitConfig.from_file(tmp_path / name)
    with pytest.raises(ArgumentError, match="No such file"):
        FitConfig.from_file(tmp_path / "missing.yaml")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_share": 0.0}, r"val_share must lie in \(0, 1\)"),
        ({"batch_size": -1}, "batch_size must be at least 1"),
        ({"storage": -5}, "storage must be at least 0"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"test_share": "a lot"}, r"test_share must lie in \[0, 1\)\. Received: 'a lot'"),
    ],
)
def test_keywords_are_checked_as_files_are(options, message, tmp_path):
    """One table of ranges, before anything is read."""
    for task in ("classification", "regression"):
        with pytest.raises(ArgumentError, match=message):
            resfit.fit(tmp_path / "missing", task=task, **options)


def test_each_option_of_a_fit_is_documented_once():
    """The groups document what a file can state, and :class:`FitOptions` the rest, without a repetition."""
    groups = [DataOptions, ModelOptions, TrainingOptions, MachineOptions]
    documented = [name for group in groups for name in _documented(group)]
    assert len(set(documented)) == len(documented)
    assert documented == [field.name for group in groups for field in dataclasses.fields(group)]
    own = _documented(FitOptions)
    assert not set(own) & set(documented)
    assert {field.name for field in dataclasses.fields(FitOptions)} <= {*documented, *own}


def _documented(kind):
    return re.findall(
        r"^        (\w+): ", kind.__doc__.partition("Attributes:")[2].partition("Raises:")[0], re.MULTILINE
    )


def test_a_bomb_as_a_setting_is_refused_at_once(tmp_path):
    (tmp_path / "a.yaml").write_text("task: " + BOMB.replace("l11:", "tuning:").replace("l0", "l0", 1))
    with pytest.raises(ArgumentError):
        FitConfig.from_file(tmp_path / "a.yaml")
    value = [1]
    for _ in range(40):
        value = [value] * 9
    with pytest.raises(ArgumentError, match="number, a text or a short list"):
        FitConfig(tuning={"sizes": value})


def test_a_fit_that_was_killed_decides_as_it_did_before(tmp_path):
    from resfit.tasks.fit_plan import PlanRecord

    described = {"data": "abc", "minutes": 5.0, "shares": (0.0, 1)}
    first = PlanRecord()
    first.open(tmp_path / "out.run", described)
    assert first.decide("training reads pixels", lambda: True)
    again = PlanRecord()
    again.open(tmp_path / "out.run", described)
    assert again.decide("training reads pixels", lambda: False)  # as it was decided, not as the clock says now
    other = PlanRecord()
    other.open(tmp_path / "out.run", {**described, "data": "abd"})
    assert not other.decide("training reads pixels", lambda: False)
    other.close()
    assert not (tmp_path / "out.run").exists()
    (tmp_path / "out.run").mkdir()
    (tmp_path / "out.run" / "plan.json").write_text("[")
    damaged = PlanRecord()
    damaged.open(tmp_path / "out.run", described)
    assert damaged.decisions == {}
