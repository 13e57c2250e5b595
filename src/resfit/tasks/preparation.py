"""The images of a fit, whatever the task: which can be used, how they are split, and what is wrong with them."""

from __future__ import annotations

import contextlib
import csv
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from resfit import artifact
from resfit.data import csv_cells
from resfit.data import split as splits
from resfit.data.dataset import ImageSet, Skipped
from resfit.errors import DataError
from resfit.evaluation import reference_images
from resfit.features import extract as feature_store
from resfit.features import pixels
from resfit.quality import checking
from resfit.storage.atomic import atomic_open
from resfit.training import frozen


class UsableImages:
    """Which files could be used, what was measured of them, and what became of the others.

    Attributes:
        rows: Features of the images ``(n, features)``; without columns where there are none.
    """

    def __init__(
        self,
        found: feature_store.Features | frozen.FrozenOutputs | pixels.DecodedPixels,
        rows: np.ndarray | None = None,
    ):
        self.indices, self.skipped = found.indices, found.skipped
        self.digests, self.records = found.digests, found.records
        self.computed, self.reused, self.engine = 0, 0, "none"
        if not isinstance(found, pixels.DecodedPixels):
            self.add(found)
        self.rows = np.zeros((len(found.indices), 0), np.float32) if rows is None else rows

    def add(self, found: feature_store.Features | frozen.FrozenOutputs) -> None:
        """Counts what went through the network.

        Args:
            found: Images of which some may have been there before.
        """
        self.reused = max(self.reused, found.reused - self.computed)  # not what this very fit computed
        self.computed += found.computed
        self.engine = found.engine


def split(images: ImageSet, val: float, test: float, seed: int) -> splits.Split:
    """Splits a set.

    Args:
        images: The set.
        val: Share of what is not for testing to choose on.
        test: Share to measure on, where the set does not state it.
        seed: Of the split.
    """
    labelled = np.flatnonzero(images.labelled)
    stated = sum(images.splits[position] == "test" for position in labelled) / max(1, len(labelled))
    return splits.split(images, val=val * (1 - (stated or test)), test=test, seed=seed)


def likely_references(images: ImageSet, width: int, sampling_order: np.ndarray) -> list[int]:
    """Returns positions of images that the classifier will probably keep: a thumbnail is made when they are decoded.

    Args:
        images: All of them.
        width: Number of features.
        sampling_order: When the turn of each comes.
    """
    tested = np.array([part == "test" for part in images.splits], bool)
    learned = np.flatnonzero(~tested & images.labelled)
    return learned[reference_images.likely(images.labels[learned], width, sampling_order[learned])].tolist()


def check_skipped(skipped: Sequence[Skipped], found: int, most: float, table: bytes, out: Path | None) -> None:
    """Stops where too many images are unusable, and leaves the list of them behind.

    Args:
        skipped: Those that cannot be used.
        found: How many there are, with these.
        most: Largest fraction of them.
        table: The list, as a file.
        out: Where the fitted model would go.

    Raises:
        DataError: There are too many.
    """
    if len(skipped) <= most * found:
        return
    where = f"such as {skipped[0].path}: {skipped[0].reason}"
    if out is not None:
        # an earlier fitted model stays as it is
        target = (
            out.with_name(f"{out.name}.{artifact.SKIPPED}") if artifact.is_artifact(out) else out / artifact.SKIPPED
        )
        with atomic_open(target) as file:
            file.write(table)
        where += f"; all are listed in {target}"
    raise DataError(
        f"at most {most:.0%} of the images may be unusable. Received: {len(skipped)} of {found} "
        f"({len(skipped) / max(found, 1):.1%}), {where}. Repair or remove them, or raise max_skipped."
    )


class DataChecker:
    """The data checks of a fit: duplicates first, for the split needs them, and the rest when there is a head.

    Attributes:
        together: The images, with those that are alike in one group.

    Args:
        images: Those that can be used.
        used: What was measured of them.
    """

    def __init__(self, images: ImageSet, used: UsableImages):
        self._images, self._records, self._rows = images, used.records, np.asarray(used.rows)
        self._same = checking.duplicates(used.digests, used.records, used.rows if used.rows.shape[1] else None)
        self.together = checking.group_duplicates(images, self._same)

    def examine(self, seed: int, skipped: Sequence[Skipped]) -> checking.Checks:
        """Looks for everything.

        Args:
            seed: Of the folds.
            skipped: Images that cannot be used.
        """
        return checking.examine(self._images, self._rows, self._records, self._same, seed=seed, skipped=skipped)


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
