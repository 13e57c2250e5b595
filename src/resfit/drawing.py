"""Figures of matplotlib for files: without a window, and without files in the user's home."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from resfit.cache import cache_root


def new_figure(size: tuple[float, float], **options: Any) -> Any:
    """Returns an empty ``matplotlib.figure.Figure`` that can be saved.

    Args:
        size: Width and height in inches.
        **options: Further options of the figure.
    """
    if "matplotlib" not in sys.modules:
        _keep_fonts_in_the_cache()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, **{"layout": "constrained", **options})
    FigureCanvasAgg(figure)
    return figure


def _keep_fonts_in_the_cache() -> None:
    """Moves matplotlib's list of fonts to resfit's cache, where the user has no folder for matplotlib."""
    home = Path.home()
    own = (home / ".matplotlib", Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config") / "matplotlib")
    if not any(folder.exists() for folder in own):
        os.environ.setdefault("MPLCONFIGDIR", str(cache_root() / "matplotlib"))
