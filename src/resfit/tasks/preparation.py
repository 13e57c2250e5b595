"""What fitted models of every task keep: lists of files that were left out, versions, files tested on."""

from __future__ import annotations

import contextlib
import csv
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from resfit.data import csv_cells
from resfit.data.dataset import Skipped


def skipped_table(skipped: Sequence[Skipped], ignored: Sequence[Skipped] = (), *, medical: bool = False) -> bytes:
    """Returns as CSV the images that could not be used, and the files that a rule left out.

    Args:
        skipped: Images that could not be used.
        ignored: Files that a rule left out. Of a medical set their names stay out, a row for each.
        medical: Whether the set is one.
    """
    rows: list[tuple[Path | str, str]] = [(item.path, item.reason) for item in skipped]
    rows += [("" if medical else item.path, f"ignored: {item.reason}") for item in ignored]
    return csv_cells.table(("path", "reason"), rows)


def by_rule(ignored: Sequence[Skipped]) -> dict[str, int]:
    """Returns how many files each rule left out, the most frequent rule first."""
    return dict(Counter(item.reason for item in ignored).most_common())


def package_versions() -> dict[str, str]:
    """Returns the versions of the packages that have a part in a fitted model."""
    import importlib.metadata as metadata
    import platform

    import keras

    import resfit

    found = {"resfit": resfit.__version__, "python": platform.python_version(), "keras": keras.__version__}
    for package in (
        "tensorflow",
        "tensorflow-cpu",
        "numpy",
        "scikit-learn",
        "openvino",
        "pillow",
        "pydicom",
        "nibabel",
    ):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def tested(table: bytes) -> tuple[tuple[Path, str], ...]:
    """Returns the files that a fitted model was tested on, with the text of their labels.

    Args:
        table: ``test_predictions.csv``; what is no such table gives none.
    """
    try:
        text = io.StringIO(table.decode("utf-8", "surrogateescape"), newline="")
        rows = [row for row in csv.DictReader(text) if row.get("path") and row.get("label")]
    except csv.Error:
        return ()
    return tuple((Path(csv_cells.unescaped(row["path"])), csv_cells.unescaped(row["label"])) for row in rows)
