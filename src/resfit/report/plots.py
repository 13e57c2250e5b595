"""Curves of a report as SVG that takes the colour of the text around it."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from resfit.drawing import new_figure
from resfit.report.findings import Findings

_INK = "#010203"  # becomes the colour of the text
_COLOURS = (
    *("#3d85c6", "#d9722b", "#3f9a52", "#c94f4f", "#8a6cc2", "#a0704a", "#cf6fae", "#7f7f7f", "#a3a32b", "#2fa7b5"),
)
_MOST = 10  # curves in one picture


def roc(findings: Findings) -> str:
    """Returns the ROC curves, one against the rest."""
    from sklearn.metrics import roc_curve

    figure, axes = _axes("false positive rate (1 - specificity)", "true positive rate (sensitivity)")
    axes.plot([0, 1], [0, 1], color=_INK, linewidth=0.8, linestyle=":", alpha=0.6)
    for number, (name, known, scores) in enumerate(_curves(findings)):
        false, true, _ = roc_curve(known, scores)
        _line(axes, false, true, number, name)
    return _finish(figure, axes, "lower right")


def precision_recall(findings: Findings) -> str:
    """Returns the precision-recall curves, one against the rest."""
    from sklearn.metrics import precision_recall_curve

    figure, axes = _axes("recall (sensitivity)", "precision")
    for number, (name, known, scores) in enumerate(_curves(findings)):
        precision, recall, _ = precision_recall_curve(known, scores)
        _line(axes, recall, precision, number, name, drawstyle="steps-post")
    return _finish(figure, axes, "lower left")


def reliability(findings: Findings) -> str:
    """Returns the reliability diagram."""
    figure, axes = _axes("confidence", "accuracy")
    rows = findings.reliability
    axes.plot([0, 1], [0, 1], color=_INK, linewidth=0.8, linestyle=":", alpha=0.6)
    x, y = ([getattr(row, name) for row in rows] for name in ("confidence", "accuracy"))
    below = [max(0.0, row.accuracy - row.low) for row in rows]
    above = [max(0.0, row.high - row.accuracy) for row in rows]
    axes.errorbar(x, y, [below, above], color=_COLOURS[0], marker="o", markersize=4, linewidth=1.2, elinewidth=0.9)
    return _finish(figure, axes, None)


def coverage(findings: Findings) -> str:
    """Returns the measured coverage of prediction sets against the one that was asked for."""
    figure, axes = _axes("target coverage", "coverage measured")
    asked = np.linspace(0.5, 0.99, 50)
    fitted = findings.classifier.calibration.conformal
    assert fitted is not None
    truth = findings.judged.truth
    axes.plot([0.5, 1], [0.5, 1], color=_INK, linewidth=0.8, linestyle=":", alpha=0.6)
    for number, method in enumerate(fitted.scores):
        found = [
            fitted.sets(findings.judged.probabilities, value, method)[np.arange(len(truth)), truth].mean()
            for value in asked
        ]
        _line(axes, asked, found, number, method.upper())
    axes.set_xlim(0.5, 1)
    axes.set_ylim(0.5, 1.01)
    return _finish(figure, axes, "lower right")


def robustness(findings: Findings) -> str:
    """Returns the accuracy by strength of corruption."""
    assert findings.robustness is not None
    rows = findings.robustness.rows
    figure, axes = _axes("strength", "accuracy", size=(6.4, 4.0))
    names = list(dict.fromkeys(row.corruption for row in rows[1:]))
    for number, name in enumerate(names):
        values = [rows[0].accuracy, *(row.accuracy for row in rows if row.corruption == name)]
        style = "-" if number < len(_COLOURS) else "--"
        _line(axes, range(len(values)), values, number, name, linestyle=style, marker=".", markersize=4)
    axes.set_xlim(0, max(row.strength for row in rows))
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=7, frameon=False, labelcolor=_INK)
    return _finish(figure, axes, None)


def _curves(findings: Findings) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Returns name, truth and score of the classes that get a curve: those with most images; with two, the second."""
    judged = findings.judged
    known = judged.targets.astype(bool)
    usable = [i for i in range(known.shape[1]) if 0 < known[:, i].sum() < len(known)]
    if len(judged.classes) == 2 and not judged.multilabel:
        usable = usable[-1:]
    chosen = sorted(sorted(usable, key=lambda i: -int(known[:, i].sum()))[:_MOST])
    found = [(judged.classes[i], known[:, i], judged.probabilities[:, i]) for i in chosen]
    if len(usable) > 1:
        found.append(("micro average", known.ravel(), judged.probabilities.ravel()))
    return found


def _axes(x: str, y: str, size: tuple[float, float] = (4.4, 4.0)) -> tuple[Any, Any]:
    figure = new_figure(size)
    axes = figure.subplots()
    axes.set_xlabel(x, color=_INK, fontsize=9)
    axes.set_ylabel(y, color=_INK, fontsize=9)
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.01)
    axes.grid(color=_INK, alpha=0.12, linewidth=0.6)
    axes.tick_params(colors=_INK, labelsize=8)
    for spine in axes.spines.values():
        spine.set_color(_INK)
        spine.set_alpha(0.5)
    return figure, axes


def _line(axes: Any, x: Any, y: Any, number: int, name: str, **style: Any) -> None:
    thick = 2.0 if name == "micro average" else 1.3
    colour = _INK if name == "micro average" else _COLOURS[number % len(_COLOURS)]
    x, y = _thinned(np.asarray(x, float), np.asarray(y, float))
    short = name if len(name) <= 28 else f"{name[:27]}…"
    axes.plot(x, y, color=colour, linewidth=thick, label=f" {short}", **style)


def _thinned(x: np.ndarray, y: np.ndarray, most: int = 400) -> tuple[np.ndarray, np.ndarray]:
    if len(x) <= most:
        return x, y
    kept = np.unique(np.linspace(0, len(x) - 1, most).round().astype(int))
    return x[kept], y[kept]


def _finish(figure: Any, axes: Any, legend: str | None) -> str:
    """Returns the figure as an ``<svg>`` element, its names as text and never as mathematics."""
    from matplotlib import rc_context
    from matplotlib.text import Text

    if legend is not None and axes.get_legend_handles_labels()[0]:
        axes.legend(loc=legend, fontsize=7, frameon=False, labelcolor=_INK)
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    figure.patch.set_alpha(0)
    axes.patch.set_alpha(0)
    target = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "resfit"}):
        figure.savefig(target, format="svg", metadata={"Date": None, "Creator": None})
    text = target.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    return text.replace(_INK, "currentColor")


def unique(svgs: Sequence[str]) -> list[str]:
    """Returns SVG elements whose identifiers differ from those of the others in the same page."""
    found = []
    for number, svg in enumerate(svgs):
        names = re.findall(r'\bid="([^"]+)"', svg)
        changed = svg
        for name in sorted(set(names), key=len, reverse=True):
            changed = changed.replace(f'id="{name}"', f'id="p{number}-{name}"').replace(
                f"#{name})", f"#p{number}-{name})"
            )
            changed = changed.replace(f'href="#{name}"', f'href="#p{number}-{name}"')
        found.append(changed)
    return found
