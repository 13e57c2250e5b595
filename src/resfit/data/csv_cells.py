"""Cells of CSV files that people open in a spreadsheet, which takes text that begins like a formula for one.

Such text is written with an apostrophe before it, as spreadsheets mark text, and read back without it. Numbers are
written as they are.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any

# Full-width forms, too, which some spreadsheets take for the plain ones; and blanks before the sign are no help.
_FORMULA = re.compile(r"'*[ ]*[=+\-@\t\r\n＝＋－＠]")
_ESCAPED = re.compile(r"'+[ ]*[=+\-@\t\r\n＝＋－＠]")


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> bytes:
    """Returns a table as CSV in UTF-8. Names of files that are no UTF-8 keep their bytes.

    Args:
        header: Names of the columns.
        rows: Cells: text and paths, which are escaped where they begin like a formula, and numbers, which are not.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([escaped(cell) for cell in row] for row in rows)
    return text.getvalue().encode("utf-8", "surrogateescape")


def escaped(cell: Any) -> Any:
    """Returns a cell as it is written: text that begins like a formula with an apostrophe before it.

    Args:
        cell: Text, a path, or something else, which stays as it is.
    """
    if isinstance(cell, os.PathLike):
        cell = os.fspath(cell)
    return f"'{cell}" if isinstance(cell, str) and _FORMULA.match(cell) else cell


def unescaped(cell: str) -> str:
    """Returns the text that :func:`escaped` was given.

    Args:
        cell: What stands in the file.
    """
    return cell[1:] if _ESCAPED.match(cell) else cell
