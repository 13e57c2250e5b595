"""How well a classifier detects out-of-distribution images."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from resfit.data import dataset as image_sets
from resfit.errors import ArgumentError, DataError
from resfit.evaluation.inference import LabelledPredictions
from resfit.evaluation.intervals import Figure, bootstrap, interval
from resfit.evaluation.ranking import Ranking
from resfit.features import extract as feature_store
from resfit.features.progress import Progress


@dataclasses.dataclass(frozen=True)
class OODEvaluation:
    """How unlike foreign images are.

    Attributes:
        count: Number of foreign images.
        areas: By method, the AUROC of the score, foreign images being the positives.
        flagged: By method, the share of them above the threshold.
        false: By method, the share of the classifier's own kind of images above it.
        method: What :meth:`resfit.Classifier.predict` goes by.
    """

    count: int
    areas: dict[str, Figure]
    flagged: dict[str, float]
    false: dict[str, float]
    method: str

    def to_dict(self) -> dict[str, Any]:
        """Returns JSON-ready values."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {**fields, "areas": {name: figure.to_dict() for name, figure in self.areas.items()}}


def measure_foreign(
    classifier: Any,
    judged: LabelledPredictions,
    source: Any,
    *,
    engine: str = "auto",
    cache: bool | str | Path = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> OODEvaluation:
    """Measures how well a classifier detects out-of-distribution images.

    Args:
        classifier: A :class:`resfit.Classifier`.
        judged: Images of its own kind.
        source: A folder of other images, at any depth.
        engine: As :func:`resfit.engines.create` takes it.
        cache: As :func:`resfit.fit` takes it.
        seed: Of the resamples.
        progress: Called as images get done.

    Raises:
        ArgumentError: The classifier was made before it could tell.
        DataError: No foreign image can be used.
    """
    if classifier.unlike is None:
        raise ArgumentError("only a classifier that knows its training images can tell others. Fit it again.")
    images = image_sets.scan_images([source])
    found = feature_store.extract(
        classifier.body(), images, input_spec=classifier.input_spec, engine=engine, cache=cache, progress=progress
    )
    if not len(found.indices):
        raise DataError(f"at least one foreign image must be usable. Received: none in {str(source)!r}.")
    head, unlike = classifier.head(), classifier.unlike
    parts = []
    for rows in (judged.rows, np.asarray(found.rows)):
        logits = head.logits(rows)
        parts.append(unlike.scores(rows, logits, classifier.references, multilabel=judged.multilabel))
    own, other = parts
    areas, flagged, false = {}, {}, {}
    for name, scores in own.items():
        positive = np.repeat([False, True], [len(scores), len(other[name])])
        ranking = Ranking(positive, np.concatenate([scores, other[name]]))
        drawn = bootstrap({"area": ranking.measure}, np.arange(len(positive)), seed=seed)["area"][0]
        areas[name] = interval(float(ranking.measure()[0, 0]), drawn)
        if name in unlike.thresholds:
            flagged[name] = float((other[name] > unlike.thresholds[name]).mean())
            false[name] = float((scores > unlike.thresholds[name]).mean())
    return OODEvaluation(len(found.indices), areas, flagged, false, unlike.method)
