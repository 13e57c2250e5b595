"""All figures of a classifier on a set of images, each with its 95 % interval."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from resfit.errors import ArgumentError
from resfit.evaluation import calibration
from resfit.evaluation.intervals import (
    RESAMPLES,
    Figure,
    Statistic,
    bootstrap,
    group_numbers,
    interval,
    mean_of,
    share_interval,
)
from resfit.evaluation.ranking import Ranking

_TOPS = (2, 3, 5)
_SHARES = (
    *("accuracy", "exact_match_accuracy", "label_accuracy", "precision", "recall", "specificity"),
    *(f"top_{k}" for k in _TOPS),
)
#: Shares of images, of which each is right or wrong.
_OVER_IMAGES = ("accuracy", "exact_match_accuracy", *(f"top_{k}" for k in _TOPS))
_MEANS_OVER_CLASSES = ("balanced_accuracy", "f1_macro", "auroc_macro", "auprc_macro")
_AREAS = ("auroc", "auprc", "sensitivity_at_specificity")


@dataclasses.dataclass(frozen=True, eq=False)
class Figures:
    """What a classifier does on a set of images.

    Attributes:
        overall: By name, figures over all images: ``accuracy`` (with several labels an image ``exact_match_accuracy``
            and ``label_accuracy``), ``balanced_accuracy``, ``f1_macro``, ``mcc``,
            ``auroc_macro``, ``auprc_micro``, ``log_loss``, ``brier``, ``ece`` and so on.
        per_class: By class and name, one against the rest; a class that no image has, has none that need one.
        thresholds: By class, the lowest score that is called positive at the specificity.
        specificity: At which ``sensitivity_at_specificity`` stands.
        resamples: Resamples behind each interval.
        units: What was drawn: images, or groups of them.
        grouped: Whether groups were drawn.
        seed: Of the resamples.
    """

    overall: dict[str, Figure]
    per_class: dict[str, dict[str, Figure]]
    thresholds: dict[str, float]
    specificity: float
    resamples: int
    units: int
    grouped: bool
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON-ready values."""
        return {
            "overall": {name: figure.to_dict() for name, figure in self.overall.items()},
            "per_class": {
                name: {key: figure.to_dict() for key, figure in row.items()} for name, row in self.per_class.items()
            },
            "thresholds": {name: value if np.isfinite(value) else None for name, value in self.thresholds.items()},
            "specificity": self.specificity,
            "resamples": self.resamples,
            "resampled": "groups" if self.grouped else "images",
            "units": self.units,
            "seed": self.seed,
        }


def figures(
    truth: Any,
    probabilities: Any,
    classes: Sequence[str],
    *,
    groups: Sequence[Any] | None = None,
    specificity: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Figures:
    """Measures predicted probabilities.

    The values are scikit-learn's. The intervals are percentiles over resamples of the images, or of whole groups where
    there are some; the accuracy of images without groups, and a share of 0 or 1, whose resamples are all alike, get
    Wilson's. A figure that is undefined on these images is NaN: with one class, the Matthews correlation.

    Args:
        truth: ``n`` integers in ``0..classes-1``; or an array ``(n, classes)`` of 0 and 1, where an image may have
            several labels.
        probabilities: Array ``(n, classes)``.
        classes: Names.
        groups: For each image the group it belongs to (a patient, a scene), or ``None``.
        specificity: For the sensitivity at a fixed specificity.
        resamples: How many.
        seed: Of the resamples.

    Raises:
        ArgumentError: The arrays do not fit together.

    Example:
        >>> found = figures([0, 1, 1], [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], ("cat", "dog"))
        >>> round(found.overall["accuracy"].value, 3)
        0.667
    """
    task = _Task(truth, probabilities, classes)
    numbers = group_numbers(groups, task.count)
    rankings = {
        name: Ranking(task.known[:, i], task.scores[:, i])
        for i, name in enumerate(task.classes)
        if 0 < task.known[:, i].sum() < task.count
    }
    statistics: dict[str, Statistic] = {f"rank {name}": _at(found, specificity) for name, found in rankings.items()}
    owners = np.repeat(np.arange(task.count), len(task.classes))
    statistics["rank"] = _at(Ranking(task.known.ravel(), task.scores.ravel(), owners), specificity)
    statistics["counts"] = task.count_statistic()
    statistics["means"] = mean_of(np.stack(list(task.per_image.values()), axis=1))
    statistics["ece"] = calibration.ece_statistic(*task.confidence(), owners=task.confidence_owners())
    resampled = bootstrap(statistics, numbers, resamples=resamples, seed=seed)

    drawn: dict[str, np.ndarray] = dict(zip(task.per_image, resampled["means"], strict=True))
    drawn["ece"] = resampled["ece"][0]
    tables = _class_tables(resampled["counts"], len(task.classes))
    drawn |= _from_counts(tables, task.used, task.multilabel)
    areas = {name: resampled[f"rank {name}"] for name in rankings}
    for position, name in enumerate(_AREAS[:2]):
        drawn[f"{name}_micro"] = resampled["rank"][position]
        if areas:
            drawn[f"{name}_macro"] = mean_over_known(np.stack([rows[position] for rows in areas.values()]))

    values = task.values(rankings)
    units = int(numbers.max()) + 1
    overall = {
        name: _figure(name, value, drawn[name], units, independent=name in _OVER_IMAGES and units == task.count)
        for name, value in values.items()
    }
    _note_missing_classes(overall, tables["has"][task.known.any(axis=0)])
    per_class: dict[str, dict[str, Figure]] = {}
    for i, name in enumerate(task.classes):
        row: dict[str, Figure] = {}
        for key, value in task.class_values(i).items():
            row[key] = _figure(key, value, tables[key][i], len(np.unique(numbers[task.trials(i, key)])))
        if name in rankings:
            point = rankings[name].measure(specificity=specificity)[:, 0]
            members = len(np.unique(numbers[task.known[:, i]]))
            row |= {key: _figure(key, point[j], areas[name][j], members) for j, key in enumerate(_AREAS)}
        per_class[name] = row
    return Figures(
        overall=overall,
        per_class=per_class,
        thresholds={name: found.threshold(specificity) for name, found in rankings.items()},
        specificity=specificity,
        resamples=resamples,
        units=units,
        grouped=units < task.count,
        seed=seed,
    )


def _at(ranking: Ranking, specificity: float) -> Statistic:
    return lambda weights: ranking.measure(weights, specificity)


def _figure(name: str, value: float, drawn: np.ndarray, trials: int, *, independent: bool = False) -> Figure:
    if name == "ece":
        return interval(value, drawn, basic=True)
    return share_interval(value, drawn, trials, independent=independent) if name in _SHARES else interval(value, drawn)


def _note_missing_classes(overall: dict[str, Figure], drawn: np.ndarray) -> None:
    """Says of means over classes in how many resamples a class had no image, and was left out of the mean."""
    lacking = int((drawn == 0).any(axis=0).sum())
    if not lacking:
        return
    note = f"a class has no image in {lacking} of {drawn.shape[1]} resamples, where the mean is over the others"
    for name in _MEANS_OVER_CLASSES:
        if name in overall:
            overall[name] = dataclasses.replace(overall[name], note=note)


class _Task:
    """Truth and predictions, with one label an image or several."""

    def __init__(self, truth: Any, probabilities: Any, classes: Sequence[str]):
        given = np.asarray(truth)
        self.multilabel = given.ndim == 2
        self.scores = np.asarray(probabilities, np.float64)
        self.classes = tuple(classes)
        self.count = len(given)
        shape = (self.count, len(self.classes))
        if not self.count or self.scores.shape != shape or (self.multilabel and given.shape != shape):
            raise ArgumentError(
                f"truth must have n >= 1 entries and probabilities shape (n, {len(self.classes)}). "
                f"Received: {given.shape} and {self.scores.shape}."
            )
        if not np.isfinite(self.scores).all():
            raise ArgumentError("probabilities must be finite. Received: undefined ones.")
        if self.multilabel:
            self.known = given.astype(bool)
            self.guessed = self.scores > 0.5
        else:
            if given.min() < 0 or given.max() >= len(self.classes):
                raise ArgumentError(
                    f"truth must lie in 0..{len(self.classes) - 1}. Received: {given.min()}..{given.max()}."
                )
            self.labels = given.astype(np.int64)
            self.guess = self.scores.argmax(axis=1)
            self.known, self.guessed = (np.eye(shape[1], dtype=bool)[rows] for rows in (self.labels, self.guess))
        #: Classes that some image has or is called.
        self.used: np.ndarray = np.logical_or(self.known, self.guessed).any(axis=0)
        self.per_image = self._per_image()

    def _per_image(self) -> dict[str, np.ndarray]:
        """Returns what is averaged over images, by name."""
        losses = calibration.losses(self.known if self.multilabel else self.labels, self.scores)
        if self.multilabel:
            right = self.known == self.guessed
            return {"exact_match_accuracy": right.all(axis=1), "label_accuracy": right.mean(axis=1), **losses}
        own = self.scores[np.arange(self.count), self.labels]
        above = (self.scores > own[:, None]).sum(axis=1)
        tied = (self.scores == own[:, None]) & (np.arange(len(self.classes)) < self.labels[:, None])
        rank = above + tied.sum(axis=1)  # of equals the first counts as the higher, as argmax takes them
        tops = {f"top_{k}": rank < k for k in _TOPS if k < len(self.classes)}
        return {"accuracy": self.guess == self.labels, **tops, **losses}

    def confidence(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns what is compared for the calibration: confidences and whether they were right."""
        if self.multilabel:
            return self.scores.ravel(), self.known.ravel()
        return self.scores.max(axis=1), self.guess == self.labels

    def confidence_owners(self) -> np.ndarray | None:
        return np.repeat(np.arange(self.count), len(self.classes)) if self.multilabel else None

    def count_statistic(self) -> Statistic:
        """Returns for each class what it has, what is called it, and both, and the number of images."""
        from scipy import sparse

        tables = [sparse.csr_matrix(part.T.astype(np.float32)) for part in (self.known, self.guessed)]
        tables.append(sparse.csr_matrix((self.known & self.guessed).T.astype(np.float32)))
        stacked = sparse.vstack([*tables, sparse.csr_matrix(np.ones((1, self.count), np.float32))]).tocsr()
        return lambda weights: stacked @ weights

    def trials(self, index: int, name: str) -> np.ndarray:
        """Returns of which images a figure of a class is a share."""
        if name == "precision":
            return self.guessed[:, index]
        return ~self.known[:, index] if name == "specificity" else self.known[:, index]

    def values(self, rankings: Mapping[str, Ranking]) -> dict[str, float]:
        """Returns the figures over all images, by scikit-learn where it has them."""
        from sklearn import metrics

        found = {name: float(np.mean(column)) for name, column in self.per_image.items()}
        if self.multilabel:
            for average in ("micro", "macro"):
                score = metrics.f1_score(self.known, self.guessed, average=average, zero_division=0.0)
                found[f"f1_{average}"] = float(score)
            found["f1_macro"] = _macro_f1(self.known, self.guessed, self.used)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # classes that no image has
                found["balanced_accuracy"] = float(metrics.balanced_accuracy_score(self.labels, self.guess))
                one_class = self.known.any(axis=0).sum() < 2
                found["mcc"] = float("nan" if one_class else metrics.matthews_corrcoef(self.labels, self.guess))
            found["f1_macro"] = float(metrics.f1_score(self.labels, self.guess, average="macro", zero_division=0.0))
        scores = {"auroc": metrics.roc_auc_score, "auprc": metrics.average_precision_score}
        for name, score in scores.items():
            columns = [i for i, label in enumerate(self.classes) if label in rankings]
            if columns:
                each = [score(self.known[:, i], self.scores[:, i]) for i in columns]
                found[f"{name}_macro"] = float(np.mean(each))
            if 0 < self.known.sum() < self.known.size:
                found[f"{name}_micro"] = float(score(self.known.ravel(), self.scores.ravel()))
        found["ece"] = calibration.expected_error(*self.confidence())
        return found

    def class_values(self, index: int) -> dict[str, float]:
        """Returns the figures of one class; one whose denominator is empty is left out."""
        known, guessed = self.known[:, index], self.guessed[:, index]
        hits, has, called = (float(part.sum()) for part in (known & guessed, known, guessed))
        negatives = self.count - has
        shares = {
            "precision": (hits, called),
            "recall": (hits, has),
            "specificity": (negatives - (called - hits), negatives),
            "f1": (2 * hits, has + called),
        }
        return {name: top / bottom for name, (top, bottom) in shares.items() if bottom}


def _macro_f1(known: np.ndarray, guessed: np.ndarray, used: np.ndarray) -> float:
    from sklearn.metrics import f1_score

    if not used.any():
        return 0.0
    each = f1_score(known[:, used], guessed[:, used], average=None, zero_division=0.0)
    return float(np.mean(each))


def _class_tables(counts: np.ndarray, classes: int) -> dict[str, np.ndarray]:
    """Returns arrays ``(classes, resamples)`` by name."""
    has, called, hits = (counts[i * classes : (i + 1) * classes] for i in range(3))
    total = counts[3 * classes]
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "has": has,
            "called": called,
            "hits": hits,
            "total": total[None],
            "precision": hits / called,
            "recall": hits / has,
            "specificity": 1 - (called - hits) / (total - has),
            "f1": 2 * hits / (has + called),
        }


def _from_counts(tables: Mapping[str, np.ndarray], used: np.ndarray, multilabel: bool) -> dict[str, np.ndarray]:
    has, called, hits, total = (tables[name] for name in ("has", "called", "hits", "total"))
    found = {"f1_macro": np.nan_to_num(tables["f1"][used]).mean(axis=0) if used.any() else np.zeros(has.shape[1])}
    with np.errstate(invalid="ignore", divide="ignore"):
        found["f1_micro"] = np.nan_to_num(2 * hits.sum(axis=0) / (has + called).sum(axis=0))
        if not multilabel:
            found["balanced_accuracy"] = mean_over_known(tables["recall"])
            n = total[0]
            spread = (n**2 - (called**2).sum(axis=0)) * (n**2 - (has**2).sum(axis=0))
            top = hits.sum(axis=0) * n - (has * called).sum(axis=0)
            # undefined with one true class; 0 by convention where all images are predicted as one class
            predicted_as_one = np.where((has > 0).sum(axis=0) > 1, 0.0, np.nan)
            found["mcc"] = np.where(spread > 0, top / np.sqrt(np.maximum(spread, 1e-30)), predicted_as_one)
    return found


def mean_over_known(table: np.ndarray) -> np.ndarray:
    """Returns the mean of each column over what is defined there; NaN where nothing is."""
    known = np.isfinite(table)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(known, table, 0).sum(axis=0) / known.sum(axis=0)
