"""What several commands print in the same way."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from resfit.cli import console

if TYPE_CHECKING:
    from resfit.data.dataset import Skipped
    from resfit.evaluation.labels import LabelEvaluation
    from resfit.evaluation.metrics import Evaluation

_SHOWN_SKIPPED = 5


def accuracy(result: Evaluation | LabelEvaluation) -> str:
    """Returns an accuracy, of several labels an image that of all of them, with its interval, in words.

    Args:
        result: What was measured.
    """
    low, high = result.interval
    return f"{result.accuracy:.1%} (95 % interval {low:.1%} to {high:.1%}) on {result.n} images"


def mean_average_precision(result: Evaluation | LabelEvaluation | None) -> str:
    """Returns the mean average precision over labels, in words.

    Args:
        result: What was measured; ``None`` for no images.
    """
    value = getattr(result, "mean_average_precision", float("nan"))
    return f"{value:.3f}" if math.isfinite(value) else "not measured: no label that only some of the images have"


def report_notes(notes: Sequence[str]) -> None:
    """Says what was assumed of a source.

    Args:
        notes: One sentence each.
    """
    for note in notes:
        console.message(console.printable(note))


def ignored_text(rules: Mapping[str, int]) -> str:
    """Returns how many files were left out by which rule.

    Args:
        rules: Number of files by rule.
    """
    return ", ".join(f"{count} {rule}" for rule, count in rules.items())


def report_ignored(rules: Mapping[str, int]) -> None:
    """Says how many files below a source were left out by a rule.

    Args:
        rules: Number of files by rule.
    """
    if rules:
        console.message(console.printable(f"Ignored {ignored_text(rules)}"))


def report_skipped(skipped: tuple[Skipped, ...], where: str = "") -> None:
    """Says which images could not be used.

    Args:
        skipped: These.
        where: End of the sentence, such as where all are listed.
    """
    if not skipped:
        return
    some = "; ".join(f"{item.path}: {item.reason}" for item in skipped[:_SHOWN_SKIPPED])
    more = ", …" if len(skipped) > _SHOWN_SKIPPED else ""
    console.message(console.printable(f"Skipped {len(skipped)} unusable images ({some}{more}){where}"))


def skipped_json(skipped: tuple[Skipped, ...]) -> list[dict[str, str]]:
    """Returns images that could not be used, with their reasons, for JSON.

    Args:
        skipped: These.
    """
    return [{"path": str(item.path), "reason": item.reason} for item in skipped]
