"""A report of any task as one HTML file: the tables, plots and pictures that its evaluation brings."""

from __future__ import annotations

import base64
import io
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from resfit.drawing import new_figure
from resfit.report.templates import template, text_of
from resfit.storage.atomic import write_text

if TYPE_CHECKING:
    from resfit.tasks.base import EvaluationResult, FittedModel, Picture, Plot

_PAGE = "task_page.html.j2"


def write(
    path: str | os.PathLike[str],
    fitted: FittedModel,
    result: EvaluationResult,
    *,
    source: str,
    names: bool | None = None,
) -> None:
    """Writes a report.

    Args:
        path: The file; an earlier one is replaced.
        fitted: The fitted model.
        result: The measurement.
        source: Name of the folder or table.
        names: Whether names of files may stand in it; ``None`` is yes unless the model is of medical images.

    Raises:
        MissingDependencyError: jinja2 is not installed.
        OSError: It cannot be written.
    """
    shown = not fitted.metrics.get("notice") if names is None else names
    groups: dict[str, list[dict[str, str]]] = {}
    for picture in result.pictures():
        caption = f"{picture.file}: {picture.caption}" if shown and picture.file else picture.caption
        groups.setdefault(picture.group, []).append({"source": _address(picture), "caption": caption})
    page = template(_PAGE).render(
        title=f"How good is this model for {fitted.task} on {source}?",
        style=text_of("page.css"),
        notice=fitted.metrics.get("notice", ""),
        tables=result.tables(),
        plots=[_drawn(plot) for plot in result.plots()],
        pictures=groups,
        card=fitted.card(),
        skipped=[(item.path if shown else "", item.reason) for item in result.skipped],
    )
    write_text(path, page)


def _address(picture: Picture) -> str:
    """Returns a picture as a ``data:`` address."""
    data = picture.image
    if isinstance(data, np.ndarray):
        from PIL import Image

        file = io.BytesIO()
        Image.fromarray(data).save(file, "JPEG", quality=85)
        data = file.getvalue()
    kind = "png" if data.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _drawn(plot: Plot) -> dict[str, Any]:
    """Returns a plot as a PNG in a ``data:`` address, with its title."""
    figure = new_figure((4.6, 3.8))
    axis = figure.subplots()
    axis.plot(plot.x, plot.y, "-" if plot.joined else "o", color="#1f5fa8", markersize=3, alpha=0.8)
    if plot.diagonal and len(plot.x):
        ends = [float(min(np.min(plot.x), np.min(plot.y))), float(max(np.max(plot.x), np.max(plot.y)))]
        axis.plot(ends, ends, ":", color="#1a7f37")
    axis.set_xlabel(plot.x_label)
    axis.set_ylabel(plot.y_label)
    axis.grid(alpha=0.3)
    file = io.BytesIO()
    figure.savefig(file, dpi=110, format="png", bbox_inches="tight")
    return {"title": plot.title, "source": f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"}
