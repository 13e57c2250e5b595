"""Tables for spreadsheets: text that begins like a formula is escaped, numbers are not, and the text is read back."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resfit.data import csv_cells, dataset

FORMULAS = [
    "=1+1",
    "+1",
    "-1",
    "@SUM(A1)",
    "\tx",
    "\rx",
    "\nx",
    " =1",
    "＝1",
    "-cat",
    "'=1",
    "''-1",
    "=cmd|' /C calc'!A0",
]
PLAIN = ["cat", "a=b", "1-2", "'cat", "", "é-", "0.5", " x"]


@pytest.mark.parametrize("text", FORMULAS + PLAIN)
def test_text_is_read_back_and_formulas_begin_with_an_apostrophe(text):
    written = csv_cells.escaped(text)
    assert csv_cells.unescaped(written) == text
    assert (written != text) == (text in FORMULAS)
    assert written[:1] not in ("=", "+", "-", "@", "\t", "\r", "\n")


def test_numbers_stay_numbers_and_paths_are_text():
    rows = [(Path("-rf.png"), -0.25, -3, "-0.25", np.float64(-1.5))]
    (cells,) = csv.reader(io.StringIO(csv_cells.table(("a", "b", "c", "d", "e"), rows).decode().partition("\n")[2]))
    assert cells == ["'-rf.png", "-0.25", "-3", "'-0.25", "-1.5"]


def test_a_table_that_resfit_wrote_is_read_with_the_true_names(tmp_path):
    labels = ["=1+1", "'@x", "-cat"]
    for number in range(3):
        Image.new("L", (8, 8), number).save(tmp_path / f"-{number}.png")
    rows = [(f"-{number}.png", label) for number, label in enumerate(labels)]
    (tmp_path / "table.csv").write_bytes(csv_cells.table(("path", "label"), rows))
    found = dataset.scan(tmp_path / "table.csv")
    assert [path.name for path in found.paths] == ["-0.png", "-1.png", "-2.png"]
    assert [found.classes[label] for label in found.labels] == labels
