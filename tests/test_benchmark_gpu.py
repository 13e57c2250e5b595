"""benchmarks/gpu.py: what it says holds, and that it runs where there is no card."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks import gpu

ROOT = Path(__file__).parents[1]


def measured(**changes):
    batches = {"32": {"engine": 2000.0, "keras": 1500.0, "ratio": 4 / 3}, "128": {"engine": 3000.0, "ratio": 1.1}}
    found = {
        "decoding": {"images_per_second": 1000.0},
        "extraction": {"images_per_second": 950.0},
        "frozen_float32": {"batches": batches},
        "frozen_half": {"left_out": "no units"},
        "steps": {"batches": {"32": {"ratio": 0.95}}},
        "prediction": {"ratio": 1.9},
        "correctness": {
            "cosine_with_the_processor": {"float32": 0.99995},
            "weights_after_20_steps": {"largest_difference": 5e-4},
        },
    }
    return {**found, **changes}


def test_what_holds_is_said():
    assert set(gpu.held(measured()).values()) == {True}
    slow = gpu.held(
        measured(
            extraction={"images_per_second": 890.0},
            frozen_half={"batches": {"32": {"ratio": 0.9}}},
            steps={"batches": {"32": {"ratio": 0.95}, "128": {"ratio": 0.8}}},
            prediction={"ratio": 0.4},
            correctness={
                "cosine_with_the_processor": {"float32": 0.9998},
                "weights_after_20_steps": {"largest_difference": 2e-3},
            },
        )
    )
    assert set(slow.values()) == {False}
    # an engine that is slower than decoding bounds the extraction
    bound = measured(decoding={"images_per_second": 9e4}, extraction={"images_per_second": 1850.0})
    assert gpu.held(bound)["extraction at least 0.9 of decoding and engine"]
    assert set(gpu.held({name: {"failed": "no time was left"} for name in measured()}).values()) == {None}


@pytest.mark.slow
def test_it_runs_without_a_card(tmp_path):
    target = tmp_path / "gpu.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--device", "cpu", "--quick", "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(target.read_text("utf-8"))
    assert found["machine"]["device"] == "cpu"
    parts = found["parts"]
    assert {name: part["failed"] for name, part in parts.items() if "failed" in part} == {}
    assert "left_out" in parts["memory"]
    assert parts["correctness"]["overflow"] == {"skipped": True, "weights_kept": True, "scale": 2.0**14}
    assert parts["correctness"]["stopped_and_gone_on"]["largest_difference"] == 0.0
    assert parts["beside"]["answers"] > 0
    assert found["held"]["float32 agrees with the processor"] is True
