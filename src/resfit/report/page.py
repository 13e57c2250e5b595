"""The report as one HTML file: no network, nothing beside it, every name escaped."""

from __future__ import annotations

import base64
import hashlib
import os
from typing import Any

import numpy as np

from resfit.report import cards, checklists, plots
from resfit.report.findings import Findings
from resfit.report.pictures import gallery
from resfit.report.templates import plain, template, text_of
from resfit.storage.atomic import write_text

#: Classes up to which the confusion matrix is a table.
MATRIX = 25
_PAIRS = 40

_NAMES = {
    "accuracy": "accuracy",
    "exact_match_accuracy": "exact-match accuracy (all labels of an image right)",
    "label_accuracy": "label accuracy (share of single labels)",
    "balanced_accuracy": "balanced accuracy",
    "top_2": "top-2 accuracy",
    "top_3": "top-3 accuracy",
    "top_5": "top-5 accuracy",
    "f1_macro": "macro F1",
    "f1_micro": "micro F1",
    "mcc": "Matthews correlation coefficient",
    "auroc_macro": "macro AUROC",
    "auroc_micro": "micro AUROC",
    "auprc_macro": "macro average precision (mAP)",
    "auprc_micro": "micro average precision",
    "log_loss": "log-loss (nats)",
    "brier": "Brier score, sum over classes (0 to 2)",
    "ece": "expected calibration error (ECE, bins of equal mass)",
}
_MULTILABEL_NAMES = {
    "log_loss": "log-loss, mean over labels (nats)",
    "brier": "Brier score, mean over labels (0 to 1)",
}
_CLASS_COLUMNS = (
    ("precision", "precision"),
    ("recall", "recall (sensitivity)"),
    ("specificity", "specificity"),
    ("f1", "F1"),
    ("auroc", "AUROC"),
    ("auprc", "average precision"),
    ("sensitivity_at_specificity", "sensitivity at fixed specificity"),
)


def write(findings: Findings, path: str | os.PathLike[str], **options: Any) -> None:
    """Writes a report.

    Args:
        findings: What was measured.
        path: File to write; an earlier one is replaced.
        **options: As :func:`render` takes them.

    Raises:
        MissingDependencyError: jinja2 is not installed.
        OSError: The file cannot be written.

    Example:
        >>> write(measure(clf, "photos/test"), "report.html")  # doctest: +SKIP
    """
    write_text(path, render(findings, **options))


def render(findings: Findings, *, names: bool | None = None, explain: bool = True) -> str:
    """Returns a report as HTML.

    Args:
        findings: What was measured.
        names: Whether file names may stand in it; ``None`` leaves them out of scans, and where images belong to
            groups, such as patients, whose names files often bear.
        explain: Whether to show what the classifier looked at.

    Raises:
        MissingDependencyError: jinja2 is not installed.
    """
    page = template("page.html.j2", percent=cards.percent, figure=_figure, figure_row=_row)
    judged = findings.judged
    nameless = judged.groups is not None or judged.images.medical
    shown = gallery(findings, names=not nameless if names is None else names, explain=explain)
    facts = cards.facts(findings, shown.explained)
    script = text_of("page.js")
    classes = [plain(name) for name in judged.classes]
    return page.render(
        title=f"How good is {plain(findings.classifier.recipe.model)} on {plain(findings.source)}?",
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        style=text_of("page.css"),
        findings=findings,
        figures=findings.figures,
        accuracy_name="exact_match_accuracy" if judged.multilabel else "accuracy",
        overall=[(figure_name(name, judged.multilabel), figure) for name, figure in findings.figures.overall.items()],
        class_columns=_CLASS_COLUMNS,
        classes=classes,
        supports=judged.targets.sum(axis=0).astype(int).tolist(),
        matrix=_matrix(findings),
        pairs=_pairs(findings, classes),
        gallery=shown,
        svgs=_svgs(findings),
        subgroups=_subgroups(findings),
        data_card=cards.data_card(findings),
        model_card=cards.model_card(findings),
        run_card=cards.run_card(findings),
        guidelines=[
            ("TRIPOD+AI", checklists.fill(checklists.TRIPOD_AI, facts)),
            ("CLAIM", checklists.fill(checklists.CLAIM, facts)),
        ],
        open_item=checklists.OPEN,
    )


def figure_name(figure: str, multilabel: bool) -> str:
    """Returns what a figure is called, with what it is a sum or mean of.

    Args:
        figure: Its name among :class:`~resfit.evaluation.figures.Figures`.
        multilabel: Whether images have several labels.
    """
    return _MULTILABEL_NAMES.get(figure, _NAMES[figure]) if multilabel else _NAMES[figure]


def _figure(value: Any) -> str:
    """Returns a figure with its interval, or a dash."""
    if value is None or not np.isfinite(value.value):
        return "-"
    if not np.isfinite(value.low):
        return f"{value.value:.3f}"
    return f"{value.value:.3f} ({value.low:.3f} to {value.high:.3f})"


def _row(row: Any) -> str:
    return f"{row.accuracy:.3f} ({row.low:.3f} to {row.high:.3f})"


def _svgs(findings: Findings) -> dict[str, str]:
    wanted = {"roc": plots.roc, "precision_recall": plots.precision_recall, "reliability": plots.reliability}
    if findings.sets:
        wanted["coverage"] = plots.coverage
    if findings.robustness is not None:
        wanted["robustness"] = plots.robustness
    made = plots.unique([draw(findings) for draw in wanted.values()])
    return dict(zip(wanted, made, strict=True))


def _matrix(findings: Findings) -> list[list[tuple[int, float]]] | None:
    """Returns counts and shares of their row; ``None`` for several labels or too many classes."""
    judged = findings.judged
    if judged.multilabel or len(judged.classes) > MATRIX:
        return None
    counts = findings.evaluation.confusion  # type: ignore[union-attr]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return [
        [(int(count), float(share)) for count, share in zip(*rows, strict=True)]
        for rows in zip(counts, shares, strict=True)
    ]


def _pairs(findings: Findings, classes: list[str]) -> list[tuple[str, str, int, int, int]]:
    """Returns the classes that are mixed up most, where there are too many for a table."""
    judged = findings.judged
    if judged.multilabel or len(classes) <= MATRIX:
        return []
    counts = np.array(findings.evaluation.confusion)  # type: ignore[union-attr]
    np.fill_diagonal(counts, 0)
    order = np.argsort(-counts, axis=None, kind="stable")[:_PAIRS]
    places = [divmod(int(flat), len(classes)) for flat in order]
    return [(classes[i], classes[j], int(counts[i, j]), i, j) for i, j in places if counts[i, j]]


def _subgroups(findings: Findings) -> list[tuple[str, list[str], list[tuple[str, int, list[Any]]]]]:
    """Returns by column the headings and the rows of its table."""
    wanted = ["accuracy", "exact_match_accuracy", "balanced_accuracy", "auroc_macro", "auprc_macro", "f1_macro", "ece"]
    shown = [name for name in wanted if name in findings.figures.overall]
    tables = []
    for column, parts in findings.subgroups.items():
        rows = [
            (
                plain(part.value) or "(not stated)",
                part.count,
                [None if part.figures is None else part.figures.overall.get(name) for name in shown],
            )
            for part in parts
        ]
        tables.append((plain(column), [figure_name(name, findings.judged.multilabel) for name in shown], rows))
    return tables
