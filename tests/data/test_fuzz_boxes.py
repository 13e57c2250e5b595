"""Damaged annotations in every layout give boxes that fit, a list of what was left out, or a clear error."""

from __future__ import annotations

import pytest

from resfit.data.boxes import scan_boxes
from tests.data.test_boxes import WRITERS
from tests.fuzzing import survive


def read(folder):
    found = scan_boxes(folder, max_skipped=1)
    assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
    assert (found.boxes >= 0).all()
    assert ((found.labels >= 0) & (found.labels < len(found.classes))).all()
    assert found.offsets[-1] == len(found.boxes) == len(found.labels) == len(found.crowd)
    assert found.skipped_csv().count("\n") == sum(found.skipped_counts.values()) + 1


@pytest.mark.parametrize("count", [60, pytest.param(10_000, marks=pytest.mark.slow)])
def test_damaged_annotations(tmp_path, count):
    folders = []
    for name, writers in WRITERS.items():
        for writer in writers:
            folder = tmp_path / "whole" / f"{name}-{writer.__name__}"
            folder.mkdir(parents=True)
            writer(folder)
            folders.append(folder)
    (tmp_path / "copies").mkdir()
    totals = survive("tests.data.test_fuzz_boxes:read", folders, tmp_path / "copies", count=count)
    assert totals["read"] > count / 5
    assert totals["refused"] > count / 30
