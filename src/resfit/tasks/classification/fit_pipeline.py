"""The fit pipeline after the data scan: one pass over the images, a head, a training, and what is kept of it."""

from __future__ import annotations

import dataclasses
import os
import shutil
from typing import Any

import numpy as np

from resfit.evaluation import reference_images
from resfit.tasks.classification import finetuning, fit_report, reduced_precision
from resfit.tasks.classification.data_preparation import TrainingData
from resfit.tasks.classification.heads import base
from resfit.tasks.classification.heads.linear import DEFAULT_C
from resfit.tasks.classification.reduced_precision import Rows
from resfit.tasks.decoding import DecodedData, Extract
from resfit.tasks.fit_plan import FitPlan
from resfit.tasks.timings import Timings
from resfit.training import frozen, runs
from resfit.training.settings import Tuning


class FitPipeline:
    """Learns from images that were looked at.

    Attributes:
        rows: Features of the images by position; without columns where they were not computed.
        precision: What they were computed in.
        head: That of the probe, where it is fitted before anything is trained.
        tuned: What was fine-tuned, whether it is kept or not.
        files: What the training leaves in the classifier.
        folder: Of the training's run.

    Args:
        data: What there is to learn from.
        looked: The same images, looked at.
        extract: Computes features.
        choice: What decides on the settings.
        running: How it is run.
        journal: Takes the reasons and the time.
    """

    def __init__(
        self,
        data: TrainingData,
        looked: DecodedData,
        extract: Extract,
        choice: FitPlan,
        running: runs.RunOptions,
        journal: Timings,
    ):
        self._data, self._looked, self._extract = data, looked, extract
        self._choice, self._running, self._journal = choice, running, journal
        self.rows: Rows = looked.used.rows
        self.precision = looked.precision
        self.head: base.Head | None = None
        self.tuned: finetuning.FineTuned | None = None
        self.files: dict[str, bytes] = {}
        self.folder = looked.folder
        # what a training begins with; its strength does not matter for long
        self._beginning = data.some(data.parts.train, choice.seed)
        self._start: base.Head | None = None
        self._strength = DEFAULT_C if choice.minutes is not None else None
        self._seconds_of_all = 0.0

    def begin(self) -> None:
        """Fits the probe's head, or where a training will read the images, one to begin with."""
        pixels = self._looked.pixels
        if pixels is not None:
            rows = self._features(self._beginning)
            self._start = self._head(rows, self._beginning, self._strength)
        elif self._choice.probes:
            self.head = self._start = self._head_of(self.rows, self._learned_from)
        self._journal.lap("head")
        # a probe of all images, whose strength is searched for
        share = len(self._data.images) / max(1, len(self._beginning))
        self._seconds_of_all = 3 * self._journal.laps["head"] * share
        if self.head is not None and self.precision != "float32":
            self._judge(self.head)
            self._journal.lap("float32")

    def tune(self, teacher: str | os.PathLike[str] | None, out: str | os.PathLike[str] | None) -> None:
        """Fine-tunes the network, where that is asked for and there is time.

        Args:
            teacher: As :func:`resfit.fit` takes it.
            out: As :func:`resfit.fit` takes it.
        """
        data, choice, running, journal = self._data, self._choice, self._running, self._journal
        prepared, settings = self._looked.prepared, self._looked.settings
        if choice.tunes and choice.probes:
            prepared, settings = self._prepare(out)
        if prepared is None or settings is None:
            return
        taught = finetuning.teach(teacher, data, running.engine, running.cache)
        if self._start is None:
            rows = frozen.features(prepared, self._beginning, running)
            self._start = self._head(rows, self._beginning, self._strength)
            journal.lap("head")
        if choice.minutes is not None and not choice.sets_time:
            settings = runs.with_time_left(self.folder, settings, choice.minutes_left(journal))
            closing = len(data.parts.test) + len(data.parts.val) + reference_images.MAX_ROWS
            running = dataclasses.replace(running, closing=closing)
        self.tuned, self.files = finetuning.tune(data, prepared, self._start, taught, settings, running, self.folder)
        journal.note(fit_report.verdict(self.tuned, choice.strategy))
        journal.lap("fine-tuning")

    def keep(self) -> finetuning.FitResult:
        """Returns what goes into the classifier: the fine-tuning where it brought something, otherwise a probe."""
        data, choice, journal = self._data, self._choice, self._journal
        pixels = self._looked.pixels
        late = pixels is not None and not choice.leaves(self._seconds_of_all, journal)
        if self.tuned is not None and (self.tuned.learned.epoch > 0 or not choice.probes or late):
            return finetuning.keep_tuned(data, self.tuned)
        if pixels is not None:
            self.rows = rows = self._features(np.arange(len(data.images)))
            journal.lap("features")
            if self._start is not None and not choice.leaves(self._seconds_of_all, journal, "the head of it"):
                return finetuning.keep_beginning(data, choice.body, self._start, rows, self._beginning)
        if choice.tunes or self.head is None:
            self.head = self._head_of(self.rows, data.everything)
        return finetuning.keep_probe(data, choice.body, self.head, self.rows, self._head_of, choice.seed)

    @property
    def _learned_from(self) -> np.ndarray:
        return self._data.parts.train if self._choice.tunes else self._data.everything

    def _features(self, positions: np.ndarray) -> np.ndarray:
        """Returns features of images whose pixels are there."""
        pixels = self._looked.pixels
        assert pixels is not None
        found = self._extract([self._data.images.paths[at] for at in positions], pixels=pixels.at(positions))
        self._looked.used.add(found)
        return found.rows

    def _head_of(self, rows: Rows, positions: np.ndarray) -> base.Head:
        return self._head(rows[positions], positions)

    def _head(self, some: np.ndarray, positions: np.ndarray, strength: float | None = None) -> base.Head:
        data, choice = self._data, self._choice
        return base.fit_head(
            choice.head,
            some,
            data.labels(positions),
            len(data.classes),
            seed=choice.seed,
            sample_groups=data.groups(positions),
            strength=strength,
            **_head_options(choice),
        )

    def _judge(self, head: base.Head) -> None:
        """Goes on in float32 where the head loses by features in few bits."""
        paths = self._data.images.paths
        verdict = reduced_precision.judge(
            self._data,
            head,
            self._looked.used.rows,
            self.precision,
            lambda places: self._extract([paths[at] for at in places]),
        )
        self._journal.note(verdict.text)
        self.rows = verdict.rows
        if not verdict.kept:
            self.precision = "float32"
            self.head = self._start = self._head_of(self.rows, self._learned_from)

    def _prepare(self, out: str | os.PathLike[str] | None) -> tuple[frozen.FrozenOutputs | None, Tuning | None]:
        """Returns the images as the part that learns reads them, and the settings, if a training is worth while."""
        data, choice, journal = self._data, self._choice, self._journal
        count = len(data.parts.train)
        settings, self.folder = choice.settings(data.images, count, out, self._running.cache, journal)
        if settings is None:
            return None, None
        prepared = frozen.prepare(choice.body, data.images.paths, settings, self._running, self._looked.pixels)
        journal.lap("frozen part")
        if not choice.too_late(data.images, count, self.folder, journal):
            return prepared, settings
        journal.note("no time is left for fine-tuning: the probe is kept")
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
        return None, None


def _head_options(choice: FitPlan) -> dict[str, Any]:
    """Returns what :func:`base.fit_head` is told besides the data, the kind and the seed."""
    given = {} if isinstance(choice.tuning, Tuning) else dict(choice.tuning or {})
    return {
        "balance": choice.options["balance"],
        "label_smoothing": choice.options["label_smoothing"] or 0.0,
        "focal": choice.options["focal"] if choice.head == "mlp" else 0.0,
        "settings": given if choice.strategy == "probe" else {},
    }
