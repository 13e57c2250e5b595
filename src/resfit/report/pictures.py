"""Images in a report: behind the cells of the confusion matrix, and those that the classifier is most wrong about."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from resfit.data.thumbnails import jpeg, thumbnails
from resfit.errors import ResfitError
from resfit.report.findings import Findings
from resfit.report.templates import address, plain

#: Images behind a cell of the confusion matrix, behind one of its diagonal, and behind all of them.
EACH_WRONG, EACH_RIGHT, ALTOGETHER = 16, 4, 600
#: Most confident mistakes, and least confident correct predictions, that are shown.
SHOWN = 12
#: Longest side of a photo under a map, in pixels: a report is one file.
LONGEST = 640


@dataclasses.dataclass(frozen=True)
class ReportPicture:
    """One image.

    Attributes:
        name: The file; a number where names are not to be shown.
        source: The image, as a ``data:`` address; empty where it could not be read.
        truth: Its class, or its labels.
        said: What the classifier said.
        probability: How sure it was.
        overlay: What it looked at, as a ``data:`` address; empty where that was not computed.
    """

    name: str
    source: str
    truth: str
    said: str
    probability: float
    overlay: str = ""


@dataclasses.dataclass(frozen=True)
class Cell:
    """The images of one cell of the confusion matrix.

    Attributes:
        row: Number of the true class.
        column: Number of the predicted class.
        count: Number of images.
        shown: Some of them, the most confident first.
    """

    row: int
    column: int
    count: int
    shown: tuple[ReportPicture, ...]


@dataclasses.dataclass(frozen=True)
class Gallery:
    """All images of a report.

    Attributes:
        cells: By row and column.
        mistakes: The most confident ones.
        doubts: The least confident correct predictions.
        explained: How the overlays were made; empty where there are none.
        note: Why there are none.
    """

    cells: dict[tuple[int, int], Cell]
    mistakes: tuple[ReportPicture, ...]
    doubts: tuple[ReportPicture, ...]
    explained: str = ""
    note: str = ""


def gallery(findings: Findings, *, names: bool = True, explain: bool = True) -> Gallery:
    """Chooses and reads the images of a report.

    Args:
        findings: What was measured.
        names: Whether file names may be shown.
        explain: Whether to show what the classifier looked at.
    """
    judged = findings.judged
    shares = judged.probabilities
    if judged.multilabel:
        said = shares > 0.5
        right = (said == judged.targets.astype(bool)).all(axis=1)
        sure = np.maximum(shares, 1 - shares).mean(axis=1)
        cells: dict[tuple[int, int], list[int]] = {}
    else:
        guess, truth = shares.argmax(axis=1), judged.truth
        right, sure = guess == truth, shares.max(axis=1)
        cells = _cells(truth, guess, sure)
    mistakes = _first(np.flatnonzero(~right), -sure, SHOWN)
    doubts = _first(np.flatnonzero(right), sure, SHOWN)
    wanted = sorted({*mistakes, *doubts, *(position for some in cells.values() for position in some)})
    paths = [judged.images.paths[position] for position in wanted]
    small = dict(zip(wanted, thumbnails(paths), strict=True))
    overlays, explained, note = _overlays(findings, [*mistakes, *doubts]) if explain else ({}, "", "not asked for")

    def picture(position: int, overlay: bytes = b"") -> ReportPicture:
        name = _name(judged.images.paths[position], judged.images.root) if names else f"image {position + 1}"
        if judged.multilabel:
            known, called = (
                ", ".join(judged.classes[i] for i in np.flatnonzero(row)) or "none"
                for row in (judged.targets[position], said[position])
            )
        else:
            known, called = judged.classes[truth[position]], judged.classes[guess[position]]
        return ReportPicture(name, address(small[position]), known, called, float(sure[position]), address(overlay))

    counts = {} if judged.multilabel else _counts(judged.truth, shares.argmax(axis=1))
    return Gallery(
        cells={
            key: Cell(*key, counts[key], tuple(picture(position) for position in some)) for key, some in cells.items()
        },
        mistakes=tuple(picture(position, overlays.get(position, b"")) for position in mistakes),
        doubts=tuple(picture(position, overlays.get(position, b"")) for position in doubts),
        explained=explained,
        note=note,
    )


def _cells(truth: np.ndarray, guess: np.ndarray, sure: np.ndarray) -> dict[tuple[int, int], list[int]]:
    """Returns which images are shown behind which cell; wrong ones before right ones, as far as there is room."""
    counts = _counts(truth, guess)
    order = sorted(counts, key=lambda key: (key[0] == key[1], -counts[key], key))
    found: dict[tuple[int, int], list[int]] = {}
    room = ALTOGETHER
    for key in order:
        most = min(room, EACH_RIGHT if key[0] == key[1] else EACH_WRONG)
        found[key] = _first(np.flatnonzero((truth == key[0]) & (guess == key[1])), -sure, most)
        room -= len(found[key])
    return found


def _counts(truth: np.ndarray, guess: np.ndarray) -> dict[tuple[int, int], int]:
    pairs, counts = np.unique(np.stack([truth, guess], axis=1), axis=0, return_counts=True)
    return {(int(row), int(column)): int(count) for (row, column), count in zip(pairs, counts, strict=True)}


def _first(positions: np.ndarray, keys: np.ndarray, most: int) -> list[int]:
    return positions[np.argsort(keys[positions], kind="stable")[:most]].tolist()


def _overlays(findings: Findings, positions: Sequence[int]) -> tuple[dict[int, bytes], str, str]:
    """Returns pictures of what the classifier looked at, as far as this resfit can explain."""
    explain = getattr(findings.classifier, "explain", None)
    if explain is None:
        return {}, "", "this version of resfit does not explain predictions"
    if not positions:
        return {}, "", ""
    try:
        paths = [findings.judged.images.paths[position] for position in positions]
        found = explain(paths, method="grad-cam")
    except ResfitError as error:
        return {}, "", f"the network could not be explained: {error}"
    made = {
        position: jpeg(item.picture(LONGEST)) for position, item in zip(positions, found, strict=True) if not item.error
    }
    replaced = sum(item.method != "grad-cam" for item in found if not item.error)
    against = sum(item.evidence == "negative" for item in found if not item.error)
    how = "Grad-CAM"
    if replaced:
        how += f" (HiResCAM for the {replaced} of {len(made)} where it finds nothing for the class)"
    if against:
        how += f" (violet for the {against} of {len(made)} where it shows what speaks against the class)"
    return made, how, ""


def _name(path: Path, root: Path) -> str:
    return plain(Path(os.path.relpath(path, root)))
