"""Everything that a report says, measured once."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resfit import artifact
from resfit.errors import ArgumentError
from resfit.evaluation import calibration, conformal, fitted_images
from resfit.evaluation.figures import Figures, figures
from resfit.evaluation.inference import LabelledPredictions, judge, measured
from resfit.evaluation.intervals import Figure
from resfit.evaluation.labels import LabelEvaluation
from resfit.evaluation.metrics import Evaluation
from resfit.evaluation.ood_evaluation import OODEvaluation, measure_foreign
from resfit.evaluation.ranking import OperatingPoint, delong_interval, operating_point
from resfit.evaluation.robustness import Robustness, robustness
from resfit.evaluation.subgroups import Subgroup, by_column
from resfit.features.progress import Progress
from resfit.tasks.classification import Classifier

#: Coverages that prediction sets are measured at.
COVERAGES = (0.8, 0.9, 0.95)


@dataclasses.dataclass(frozen=True, eq=False)
class SetRow:
    """Prediction sets of one kind.

    Attributes:
        method: How they are made.
        asked: The coverage that was asked for.
        figures: ``coverage``, ``size`` and ``single`` (the share of sets of one class), as measured.
    """

    method: str
    asked: float
    figures: dict[str, Figure]


@dataclasses.dataclass(frozen=True, eq=False)
class Findings:
    """What a classifier does on labelled images.

    Attributes:
        classifier: The classifier.
        judged: The images, and what it said about them.
        evaluation: The main figures.
        figures: Every figure with its interval.
        reliability: Bins of the reliability diagram.
        sets: Prediction sets; empty where the classifier cannot make them.
        subgroups: Figures by column and value.
        robustness: On corrupted images; ``None`` where it was not asked for.
        foreign: On foreign images; ``None`` where there were none.
        delong: With two classes, the AUROC of the second with DeLong's interval.
        operating: With two classes, the threshold of least cost.
        flagged: Share of the images that are flagged as out-of-distribution; ``None`` if it cannot tell.
        familiar: How many of the images were used to fit the classifier, by the content of their files.
        source: Name of the folder or table.
        part: Which part of a split was measured.
        seed: Of all that is random.
        seconds: Time of each step.
    """

    classifier: Classifier
    judged: LabelledPredictions
    evaluation: Evaluation | LabelEvaluation
    figures: Figures
    reliability: tuple[calibration.ReliabilityBin, ...]
    sets: tuple[SetRow, ...]
    subgroups: dict[str, tuple[Subgroup, ...]]
    robustness: Robustness | None
    foreign: OODEvaluation | None
    delong: Figure | None
    operating: OperatingPoint | None
    flagged: float | None
    familiar: int
    source: str
    part: str | None
    seed: int
    seconds: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Returns the figures as JSON-ready values."""
        return {
            **self.evaluation.to_dict(),
            "reliability": [dataclasses.asdict(row) for row in self.reliability],
            "prediction_sets": [
                {
                    "method": row.method,
                    "asked": row.asked,
                    **{name: figure.to_dict() for name, figure in row.figures.items()},
                }
                for row in self.sets
            ],
            "subgroups": {name: [part.to_dict() for part in parts] for name, parts in self.subgroups.items()},
            "robustness": None if self.robustness is None else self.robustness.to_dict(),
            "foreign": None if self.foreign is None else self.foreign.to_dict(),
            "delong": None if self.delong is None else self.delong.to_dict(),
            "operating_point": None if self.operating is None else self.operating.to_dict(),
            "unlike_training": self.flagged,
            "among_training_images": self.familiar,
            "seconds": self.seconds,
        }


def measure(
    classifier: Classifier,
    source: Any,
    *,
    part: str | None = None,
    columns: Sequence[str] = (),
    corruptions: bool = False,
    foreign: Any = None,
    cost_ratio: float = 1.0,
    specificity: float = 0.95,
    seed: int = 0,
    engine: str = "auto",
    cache: bool | str | Path = True,
    batch_size: int | None = None,
    progress: Progress | None = None,
    **scan_options: Any,
) -> Findings:
    """Measures a classifier in every way that a report tells of.

    Args:
        classifier: The classifier.
        source: A folder of class folders or a CSV file, as :func:`resfit.fit` takes them.
        part: ``"train"``, ``"val"`` or ``"test"`` for one part of a split that the source states; ``None`` is all.
        columns: Columns of the CSV file whose values get figures of their own.
        corruptions: Whether to measure on corrupted images as well, which runs up to 500 images 71 times.
        foreign: A folder of out-of-distribution images, to measure how well they are detected.
        cost_ratio: What a missed positive costs, a false alarm being 1; with two classes, of which the second is the
            positive one.
        specificity: At which sensitivities are stated.
        seed: Of the resamples and corruptions.
        engine: As :func:`resfit.engines.create` takes it.
        cache: As :func:`resfit.fit` takes it.
        batch_size: Images in one pass; ``None`` chooses by their size.
        progress: Called as images get done.
        **scan_options: Further options of :func:`resfit.data.dataset.scan`.

    Raises:
        ArgumentError: An argument is out of range.
        DataError: No image can be used, or a class or column is unknown.
    """
    if not 0 < specificity < 1:
        raise ArgumentError(f"specificity must lie in (0, 1). Received: {specificity}.")
    seconds: dict[str, float] = {}
    last = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal last
        now = time.perf_counter()
        seconds[name], last = now - last, now

    judged = judge(
        classifier,
        source,
        part=part,
        engine=engine,
        cache=cache,
        batch_size=batch_size,
        progress=progress,
        **scan_options,
    )
    lap("images and network")
    groups, truth = judged.groups, judged.truth
    found = figures(truth, judged.probabilities, judged.classes, groups=groups, specificity=specificity, seed=seed)
    main = measured(
        judged.targets,
        judged.probabilities,
        judged.classes,
        judged.multilabel,
        judged.skipped,
        groups=groups,
        seed=seed,
    )
    lap("figures and intervals")
    sets: list[SetRow] = []
    fitted = classifier.calibration.conformal
    if fitted is not None and not judged.multilabel:
        for method in conformal.METHODS:
            for asked in COVERAGES:
                chosen = fitted.sets(judged.probabilities, asked, method)
                sets.append(SetRow(method, asked, conformal.measure_sets(chosen, truth, groups=groups, seed=seed)))
        lap("prediction sets")
    subgroups = {
        name: by_column(judged, source, name, scan_options=scan_options, specificity=specificity, seed=seed)
        for name in columns
    }
    binary = not judged.multilabel and len(judged.classes) == 2 and 0 < truth.sum() < len(truth)
    scores = judged.probabilities[:, 1] if binary else None
    delong = delong_interval(truth, scores) if binary else None
    point = operating_point(truth, scores, cost_ratio=cost_ratio, groups=groups, seed=seed) if binary else None
    lap("subgroups and thresholds")
    spoiled = None
    if corruptions:
        spoiled = robustness(classifier, judged, engine=engine, seed=seed, progress=progress)
        lap("corruptions")
    strange = None
    if foreign is not None:
        strange = measure_foreign(classifier, judged, foreign, engine=engine, cache=cache, seed=seed, progress=progress)
        lap("foreign images")
    if judged.multilabel:
        pair = judged.probabilities.ravel(), truth.ravel()
    else:
        pair = judged.probabilities.max(axis=1), judged.probabilities.argmax(axis=1) == truth
    return Findings(
        classifier=classifier,
        judged=judged,
        evaluation=dataclasses.replace(main, figures=found),
        figures=found,
        reliability=calibration.reliability(*pair),
        sets=tuple(sets),
        subgroups=subgroups,
        robustness=spoiled,
        foreign=strange,
        delong=delong,
        operating=point,
        flagged=_flagged(classifier, judged),
        familiar=fitted_images.count(classifier.attachment(artifact.FITTED_IMAGES), judged.images.paths, cache),
        source=Path(source).name,
        part=part,
        seed=seed,
        seconds=seconds,
    )


def _flagged(classifier: Classifier, judged: LabelledPredictions) -> float | None:
    unlike = classifier.unlike
    if unlike is None or unlike.method not in unlike.thresholds:
        return None
    scores = unlike.scores(judged.rows, None, classifier.references)[unlike.method]
    return float(np.mean(scores > unlike.thresholds[unlike.method]))
