"""Figures of matplotlib for files, without a window."""

from __future__ import annotations

from typing import Any


def new_figure(size: tuple[float, float], **options: Any) -> Any:
    """Returns an empty ``matplotlib.figure.Figure`` that can be saved.

    Args:
        size: Width and height in inches.
        **options: Further options of the figure.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, **{"layout": "constrained", **options})
    FigureCanvasAgg(figure)
    return figure
