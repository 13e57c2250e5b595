"""Out-of-distribution detection: three scores, and thresholds from held-out images."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from resfit.errors import ArtifactError
from resfit.evaluation.reference_images import References, read_arrays, unit

#: How unlikeness is measured: by the logits, by class means with a shared covariance, by the nearest references.
METHODS = ("energy", "mahalanobis", "knn")
#: Share of images like the training images that is not flagged.
KEPT = 0.99
_NEIGHBOURS = 5
_DIRECTIONS = 64
_FOLDS = 3
_MOST = 4000  # images that the covariance is estimated on
_ARRAYS = ("centre", "basis", "means", "precision", "noise", "thresholds")


@dataclasses.dataclass(frozen=True, eq=False)
class Density:
    """Class means with a shared covariance, of features of length one.

    The covariance is full along the directions of most variance and the same in all others.

    Attributes:
        centre: Mean of the features ``(features,)``.
        basis: Directions ``(features, r)``.
        means: Class means along them ``(classes, r)``; NaN for a class without images.
        precision: Inverse covariance along them ``(r, r)``.
        noise: Variance along each of the others.
    """

    centre: np.ndarray
    basis: np.ndarray
    means: np.ndarray
    precision: np.ndarray
    noise: float

    def score(self, rows: np.ndarray) -> np.ndarray:
        """Returns the squared Mahalanobis distance to the nearest class mean, over the number of features."""
        away = unit(rows).astype(np.float64) - self.centre
        along = away @ self.basis
        rest = np.maximum((away**2).sum(axis=1) - (along**2).sum(axis=1), 0) / self.noise
        distances = []
        for mean in self.means[np.isfinite(self.means).all(axis=1)]:
            gap = along - mean
            distances.append(((gap @ self.precision) * gap).sum(axis=1))
        return (np.min(distances, axis=0) + rest) / len(self.centre)


@dataclasses.dataclass(frozen=True, eq=False)
class OODDetector:
    """Detects out-of-distribution images.

    Attributes:
        density: For the Mahalanobis distance.
        thresholds: By method, the score above which an image is flagged; one that was not measured is missing.
        method: What :meth:`resfit.Classifier.predict` goes by.
    """

    density: Density
    thresholds: Mapping[str, float]
    method: str

    def to_bytes(self) -> bytes:
        """Returns it as the content of an ``.npz`` file."""
        target = io.BytesIO()
        density = self.density
        np.savez_compressed(
            target,
            centre=density.centre.astype(np.float32),
            basis=density.basis.astype(np.float32),
            means=density.means.astype(np.float32),
            precision=density.precision.astype(np.float64),
            noise=np.float64(density.noise),
            thresholds=np.array([self.thresholds.get(name, np.nan) for name in METHODS]),
        )
        return target.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes, *, references: bool) -> OODDetector:
        """Restores what :meth:`to_bytes` returned.

        Args:
            data: The content.
            references: Whether the classifier has references, which its nearest neighbours need.

        Raises:
            ArtifactError: It is damaged, or something else.
        """
        arrays = read_arrays(data, _ARRAYS)
        centre, basis, means, precision, noise, limits = (arrays[name] for name in _ARRAYS)
        r = basis.shape[-1] if basis.ndim == 2 else -1
        right = centre.ndim == 1 and basis.shape == (len(centre), r) and precision.shape == (r, r)
        right = right and means.ndim == 2 and means.shape[1] == r and limits.shape == (len(METHODS),)
        if not right or noise.shape != () or not noise > 0 or any(array.dtype.kind != "f" for array in arrays.values()):
            raise ArtifactError("the out-of-distribution detector is damaged. Fit the classifier again.")
        thresholds = {name: float(limit) for name, limit in zip(METHODS, limits, strict=True) if np.isfinite(limit)}
        if not references:
            thresholds.pop("knn", None)
        density = Density(centre, basis.astype(np.float64), means.astype(np.float64), precision, float(noise))
        return cls(density, thresholds, "knn" if "knn" in thresholds else "mahalanobis")

    def scores(
        self, rows: np.ndarray, logits: np.ndarray | None, references: References | None, *, multilabel: bool = False
    ) -> dict[str, np.ndarray]:
        """Returns by method how unlike images are; the higher, the more.

        Args:
            rows: Features ``(n, features)``.
            logits: Logits of the head; ``None`` leaves the energy out.
            references: Of the classifier; ``None`` leaves the nearest neighbours out.
            multilabel: Whether an image may have several labels.
        """
        found = {"mahalanobis": self.density.score(rows)}
        if logits is not None:
            found["energy"] = energy(logits, multilabel=multilabel)
        if references is not None:
            found["knn"] = neighbour_distance(rows, references.features)
        return found


def energy(logits: np.ndarray, *, multilabel: bool = False) -> np.ndarray:
    """Returns the energy of logits ``(n, classes)``: low where a class stands out.

    Source:
        Liu et al. 2020, arXiv:2010.03759; for several labels Wang et al. 2021, arXiv:2111.12797.
    """
    values = np.asarray(logits, np.float64)
    if multilabel:
        return -np.logaddexp(0, values).sum(axis=1)
    top = values.max(axis=1)
    return -(top + np.log(np.exp(values - top[:, None]).sum(axis=1)))


def neighbour_distance(rows: np.ndarray, bank: np.ndarray, *, own: bool = False) -> np.ndarray:
    """Returns one minus the cosine to the fifth nearest of a bank of features.

    Args:
        rows: Features ``(n, features)``.
        bank: Features of training images.
        own: Whether the rows are the bank, so that the nearest is the image itself and does not count.

    Source:
        Sun et al. 2022, arXiv:2204.06507.
    """
    cosines = unit(rows) @ unit(bank).T
    if own:
        np.fill_diagonal(cosines, -1)
    count = min(_NEIGHBOURS, max(1, cosines.shape[1] - own))
    return 1 - np.partition(cosines, -count, axis=1)[:, -count]


def fit_density(rows: np.ndarray, labels: np.ndarray, classes: int, *, seed: int = 0) -> Density:
    """Fits class means and a shared covariance.

    Args:
        rows: Features ``(n, features)``, at least two.
        labels: ``n`` integers; -1, several labels, counts as one class of its own.
        classes: Number of classes.
        seed: Of the search for directions.

    Source:
        Lee et al. 2018, arXiv:1807.03888.
    """
    from sklearn.covariance import ledoit_wolf
    from sklearn.utils.extmath import randomized_svd

    values = unit(rows).astype(np.float64)
    centre = values.mean(axis=0)
    away = values - centre
    width = min(_DIRECTIONS, away.shape[1], max(1, len(away) // 2))
    _, _, directions = randomized_svd(away, width, random_state=seed)
    along = away @ directions.T
    whole = np.maximum(labels, 0) if labels.min(initial=0) >= 0 else np.zeros(len(labels), np.int64)
    counts = np.bincount(whole, minlength=classes)
    sums = np.zeros((classes, width))
    np.add.at(sums, whole, along)
    means = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], np.nan)
    covariance, _ = ledoit_wolf(along - means[whole], assume_centered=True)
    scale = np.trace(covariance) / width
    precision = np.linalg.inv(covariance + 1e-6 * max(scale, 1e-12) * np.eye(width))
    rest = np.maximum((away**2).sum(axis=1) - (along**2).sum(axis=1), 0)
    noise = rest.mean() / max(away.shape[1] - width, 1)
    return Density(centre, directions.T, means, precision, float(max(noise, 1e-4 * scale, 1e-12)))


def fit_unlike(
    rows: np.ndarray,
    labels: np.ndarray,
    classes: int,
    *,
    references: References | None,
    logits: np.ndarray | None = None,
    held_out: np.ndarray | None = None,
    multilabel: bool = False,
    seed: int = 0,
) -> OODDetector:
    """Returns an out-of-distribution detector whose thresholds flag one in a hundred held-out images.

    Args:
        rows: Features of training images ``(n, features)``.
        labels: Their classes; -1 for several labels.
        classes: Number of classes.
        references: Those that are kept.
        logits: Of images that the head has not learned from, for the energy.
        held_out: Features of images that the network has not learned from. Without them, each training image is held
            against the others.
        multilabel: Whether an image may have several labels.
        seed: Of all that is random.
    """
    some = np.sort(np.random.default_rng(seed).permutation(len(rows))[:_MOST])
    values, own = np.asarray(rows[some], np.float32), labels[some]
    found: dict[str, Any] = {}
    if logits is not None and len(logits):
        found["energy"] = energy(logits, multilabel=multilabel)
    if held_out is not None and len(held_out):
        found["mahalanobis"] = fit_density(values, own, classes, seed=seed).score(held_out)
        if references is not None:
            found["knn"] = neighbour_distance(held_out, references.features)
    else:
        folds = np.random.default_rng(seed + 1).permutation(len(values)) % _FOLDS
        if len(values) >= 2 * _FOLDS:
            parts = [
                fit_density(values[folds != part], own[folds != part], classes, seed=seed).score(values[folds == part])
                for part in range(_FOLDS)
            ]
            found["mahalanobis"] = np.concatenate(parts)
        if references is not None and len(references.features) > 1:
            found["knn"] = neighbour_distance(references.features, references.features, own=True)
    thresholds = {name: _quantile(scores) for name, scores in found.items()}
    density = fit_density(values, own, classes, seed=seed)
    return OODDetector(density, thresholds, "knn" if "knn" in thresholds else "mahalanobis")


def _quantile(scores: np.ndarray) -> float:
    """Returns the score that a like image exceeds once in a hundred; of fewer images, the largest."""
    rank = min(len(scores), int(np.ceil(KEPT * (len(scores) + 1))))
    return float(np.sort(scores)[rank - 1])
