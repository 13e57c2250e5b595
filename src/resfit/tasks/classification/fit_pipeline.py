"""The training step of a classifier's fit: a head, a fine-tuning, and what is kept of them."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from resfit.evaluation import reference_images
from resfit.features.extract import Features
from resfit.tasks import steps
from resfit.tasks.classification import finetuning, fit_report, reduced_precision
from resfit.tasks.classification.data_preparation import TrainingData
from resfit.tasks.classification.heads import base
from resfit.tasks.classification.heads.linear import DEFAULT_C
from resfit.tasks.classification.reduced_precision import Rows
from resfit.tasks.fit_plan import FitPlan
from resfit.tasks.steps import CheckedData, DecodedData, FitJob
from resfit.training import frozen
from resfit.training.settings import Tuning


class FitPipeline:
    """Learns from images that were decoded.

    Attributes:
        rows: Features of the images by position; without columns where they were not computed.
        precision: What they were computed in.
        head: That of the probe, where it is fitted before anything is trained.
        tuned: What was fine-tuned, whether it is kept or not.

    Args:
        job: The fit.
        decoded: The images, decoded.
        checked: The same, split.
        data: The same, with what they show.
    """

    def __init__(self, job: FitJob, decoded: DecodedData, checked: CheckedData, data: TrainingData):
        self._job, self._decoded, self._checked, self._data = job, decoded, checked, data
        self._plan, self._journal = job.plan, job.journal
        self.rows: Rows = decoded.used.rows
        self.precision = decoded.precision
        self.head: base.Head | None = None
        self.tuned: finetuning.FineTuned | None = None
        # what a training begins with; its strength does not matter for long
        self._beginning = data.some(data.parts.train, self._plan.seed)
        self._start: base.Head | None = None
        self._strength = DEFAULT_C if self._plan.minutes is not None else None
        self._seconds_of_all = 0.0

    def begin(self) -> None:
        """Fits the probe's head, or where a training will read the images, one to begin with."""
        pixels = self._decoded.pixels
        if pixels is not None:
            rows = self._features(self._beginning)
            self._start = self._head(rows, self._beginning, self._strength)
        elif self._plan.probes:
            self.head = self._start = self._head_of(self.rows, self._learned_from)
        self._journal.lap("head")
        # a probe of all images, whose strength is searched for
        share = len(self._data.images) / max(1, len(self._beginning))
        self._seconds_of_all = 3 * self._journal.laps["head"] * share
        if self.head is not None and self.precision != "float32":
            self._judge(self.head)
            self._journal.lap("float32")

    def tune(self, teacher: str | os.PathLike[str] | None) -> None:
        """Fine-tunes the network, where that is asked for and there is time.

        Args:
            teacher: As :func:`resfit.fit` takes it.
        """
        data, running = self._data, self._job.running
        ready = steps.prepare_training(self._job, self._decoded, self._checked)
        if ready is None:
            return
        taught = finetuning.teach(teacher, data, running.engine, running.cache)
        if self._start is None:
            rows = frozen.features(ready.prepared, self._beginning, running)
            self._start = self._head(rows, self._beginning, self._strength)
            self._journal.lap("head")
        ready = steps.in_time_left(ready, self._job, self._checked, reference_images.MAX_ROWS)
        self.tuned = finetuning.tune(data, ready, self._start, taught)
        self._journal.note(fit_report.verdict(self.tuned, self._plan.strategy))
        self._journal.lap("fine-tuning")

    def keep(self) -> finetuning.FitResult:
        """Returns what goes into the classifier: the fine-tuning where it brought something, otherwise a probe."""
        data, plan, journal = self._data, self._plan, self._journal
        pixels = self._decoded.pixels
        late = pixels is not None and not plan.leaves(self._seconds_of_all, journal)
        if self.tuned is not None and (self.tuned.learned.epoch > 0 or not plan.probes or late):
            return finetuning.keep_tuned(data, self.tuned)
        if pixels is not None:
            self.rows = rows = self._features(np.arange(len(data.images)))
            journal.lap("features")
            if self._start is not None and not plan.leaves(self._seconds_of_all, journal, "the head of it"):
                return finetuning.keep_beginning(data, plan.body, self._start, rows, self._beginning)
        if plan.tunes or self.head is None:
            self.head = self._head_of(self.rows, data.everything)
        return finetuning.keep_probe(data, plan.body, self.head, self.rows, self._head_of, plan.seed)

    @property
    def _learned_from(self) -> np.ndarray:
        return self._data.parts.train if self._plan.tunes else self._data.everything

    def _features(self, positions: np.ndarray) -> np.ndarray:
        """Returns features of images whose pixels are there."""
        pixels = self._decoded.pixels
        assert pixels is not None
        found = self._job.extract([self._data.images.paths[at] for at in positions], pixels=pixels.at(positions))
        self._decoded.used.add(found)
        return found.rows

    def _head_of(self, rows: Rows, positions: np.ndarray) -> base.Head:
        return self._head(rows[positions], positions)

    def _head(self, some: np.ndarray, positions: np.ndarray, strength: float | None = None) -> base.Head:
        data, plan = self._data, self._plan
        return base.fit_head(
            plan.head,
            some,
            data.labels(positions),
            len(data.classes),
            seed=plan.seed,
            sample_groups=data.groups(positions),
            strength=strength,
            **_head_options(plan),
        )

    def _judge(self, head: base.Head) -> None:
        """Goes on in float32 where the head loses by features in few bits."""
        paths = self._data.images.paths
        asked = (self._data, head, self._decoded.used.rows, self.precision)
        choice = self._job.choice

        def exact_of(places: np.ndarray) -> Features:
            return self._job.extract([paths[at] for at in places])

        if choice is None:
            verdict = reduced_precision.judge(*asked, exact_of)
        else:
            verdict = reduced_precision.judge_briefly(*asked, exact_of, choice.most_checked, self._plan.seed)
        self._journal.note(verdict.text)
        self.rows = verdict.rows
        if not verdict.kept:
            self.precision = "float32"
            self.head = self._start = self._head_of(self.rows, self._learned_from)


def _head_options(plan: FitPlan) -> dict[str, Any]:
    """Returns what :func:`base.fit_head` is told besides the data, the kind and the seed."""
    given = {} if isinstance(plan.tuning, Tuning) else dict(plan.tuning or {})
    return {
        "balance": plan.options["balance"],
        "label_smoothing": plan.options["label_smoothing"] or 0.0,
        "focal": plan.options["focal"] if plan.head == "mlp" else 0.0,
        "settings": given if plan.strategy == "probe" else {},
    }
