"""Exports side by side: accuracy over latency."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from resfit.drawing import new_figure
from resfit.storage.atomic import atomic_path

if TYPE_CHECKING:
    from resfit.export.results import Export

_COLOURS = {"float32": "#1565c0", "float16": "#6a1b9a", "int8": "#2e7d32"}


def accuracy_over_latency(path: str | os.PathLike[str], rows: Sequence[Export], title: str) -> None:
    """Draws a dot for each export; without labels, agreement with Keras takes the place of accuracy.

    Args:
        path: PNG file to write.
        rows: The exports; those that failed are left out.
        title: Printed above.
    """
    good = [row for row in rows if row.verification is not None and not row.problem]
    labelled = all(row.verification and row.verification.accuracy is not None for row in good)
    figure = new_figure((8, 5))
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

    axes = figure.subplots()
    points = []
    for row in good:
        found = row.verification
        assert found is not None
        share = found.accuracy if labelled and found.accuracy is not None else found.agreement
        points.append((found.latency, 100 * share, row))
    for latency, share, row in points:
        axes.scatter(
            [latency], [share], s=20 + 4 * (row.size / 1e6) ** 0.5 * 10, color=_COLOURS[row.precision], alpha=0.7
        )
    # labels of dots that lie close together are stacked
    for number, (latency, share, row) in enumerate(sorted(points, key=lambda point: point[0])):
        axes.annotate(
            f"{row.format} {row.precision}" if row.precision != "float32" else row.format,
            (latency, share),
            xytext=(0, 12 + 11 * (number % 4)),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            arrowprops={"arrowstyle": "-", "color": "#999999", "lw": 0.5},
        )
    if points:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        lowest, highest = min(share for _, share, _ in points), max(share for _, share, _ in points)
        room = max(4.0, highest - lowest)
        axes.set_ylim(lowest - 0.3 * room, highest + 0.6 * room)
        axes.margins(x=0.15)
    axes.set_xlabel("latency of one image here, ms (the dot's area grows with the size of the files)")
    axes.set_ylabel("accuracy, %" if labelled else "first class as in Keras, %")
    axes.set_title(title, fontsize=11)
    axes.grid(alpha=0.3)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
