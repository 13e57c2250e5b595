"""The curves of a training run as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resfit.drawing import new_figure
from resfit.storage.atomic import atomic_path

if TYPE_CHECKING:
    from resfit.training.trainer import RateCurve


def draw_training(
    path: Path, history: Sequence[Mapping[str, Any]], *, kept: int | None = None, title: str = ""
) -> None:
    """Draws loss and metric of each epoch.

    Args:
        path: PNG file to write.
        history: Rows of the log.
        kept: The epoch whose weights were kept.
        title: Printed above.
    """
    figure = new_figure((9.0, 3.6))
    known = [name.partition("_") for row in history for name in row]
    metric = next((name for side, _, name in known if side in ("train", "val") and name != "loss"), "accuracy")
    for axis, name in zip(figure.subplots(1, 2), ("loss", metric), strict=True):
        for side, colour in (("train", "#8a8a8a"), ("val", "#1f5fa8")):
            rows = [row for row in history if f"{side}_{name}" in row]
            if rows:
                values = [row[f"{side}_{name}"] for row in rows]
                axis.plot([row["epoch"] for row in rows], values, "o-", color=colour, label=side, markersize=3)
        if kept is not None:
            axis.axvline(kept, color="#1a7f37", linewidth=1, linestyle=":", label=f"kept: epoch {kept}")
        axis.set_xlabel("epoch")
        axis.set_title(name, fontsize=10)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.suptitle(title, fontsize=11)
    _save(figure, path)


def draw_rates(path: Path, curve: RateCurve) -> None:
    """Draws the loss against the learning rate.

    Args:
        path: PNG file to write.
        curve: What was measured.
    """
    figure = new_figure((6.0, 3.6))
    axis = figure.subplots()
    axis.plot(curve.rates, curve.losses, color="#1f5fa8")
    axis.axvline(curve.suggestion, color="#1a7f37", linestyle=":", label=f"steepest: {curve.suggestion:.1e}")
    axis.set_xscale("log")
    axis.set_xlabel("learning rate")
    axis.set_ylabel("loss")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
