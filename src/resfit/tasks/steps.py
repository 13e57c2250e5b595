"""The five steps of a fit to images, whatever the task.

Scan, decode and run what is frozen, split and check, train, evaluate and package: each is a function over
:class:`FitJob` and what the step before it returned. A task brings what is particular to it: what of the data it
refuses, the head and the loss that :func:`prepare_training` makes ready for, and the fitted model.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from resfit import artifact, dependencies, devices, engines
from resfit.data import dataset
from resfit.data import decode as decoding
from resfit.data import split as splits
from resfit.data.dataset import ImageSet, Skipped
from resfit.data.medical import privacy, scans
from resfit.data.split import Split
from resfit.engines import auto_precision
from resfit.engines.auto_precision import AUTO, PrecisionChoice
from resfit.errors import DataError
from resfit.evaluation import reference_images
from resfit.features import extract as feature_store
from resfit.features.pixels import DecodedPixels, decoded
from resfit.quality import checking
from resfit.storage.atomic import atomic_open
from resfit.tasks import backbone, preparation
from resfit.tasks.base import FitRun, FittedModel
from resfit.tasks.config import FitOptions
from resfit.tasks.fit_plan import FitPlan, check_scan_options, facts, subsample_to_budget
from resfit.tasks.timings import Timings
from resfit.training import callbacks, frozen, recipes, replicas, runs, speed
from resfit.training.loop import check_choice
from resfit.training.settings import Tuning

if TYPE_CHECKING:
    from resfit.training.finetuning import TunedBody
    from resfit.training.trainer import TrainingHistory

#: Name of the decision in the record of a fit.
AUTO_DECISION = "precision"
_TIMED = 8  # images that a network is timed on

_Fitted = TypeVar("_Fitted", bound=FittedModel)


@dataclasses.dataclass(frozen=True)
class ImageTask:
    """What a task says of its data and its training.

    Attributes:
        arguments: Names of the keywords that its fit has besides :class:`resfit.tasks.config.FitOptions`.
        check: Refuses images that it cannot be trained on.
        numbers: Whether labels are numbers.
        defaults: Settings of the fine-tuning in place of the recipe's.
        settle: Changes the images before they are checked: returns them, and what was done, empty for nothing.
        reduces: Whether features may be computed in fewer bits, where that is left open.
    """

    arguments: tuple[str, ...]
    check: Callable[[ImageSet], None]
    numbers: bool = False
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    settle: Callable[[ImageSet], tuple[ImageSet, str]] | None = None
    reduces: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class FitJob:
    """A fit whose images are found: what all its steps read.

    Attributes:
        options: What was asked for.
        images: The images that there is time to look at.
        left_out: Number of those that there is no time for.
        unusable: Files that the scan could not use, with the reason.
        ignored: Files that a rule left out.
        name: Of the network.
        plan: What decides on the settings; has the network.
        running: How it is run.
        journal: Takes the reasons and the time.
        changed_classes: Classes of the source that the task settled otherwise.
        choice: Of the precision, where it was left open and fewer bits were chosen.
    """

    options: FitOptions
    images: ImageSet
    left_out: int
    unusable: tuple[Skipped, ...]
    ignored: tuple[Skipped, ...]
    name: str
    plan: FitPlan
    running: runs.RunOptions
    journal: Timings
    changed_classes: tuple[str, ...] = ()
    choice: PrecisionChoice | None = None

    def extract(self, images: Any, **options: Any) -> feature_store.Features:
        """Computes features of the frozen network, as :func:`resfit.features.extract.extract` does.

        Args:
            images: Images of this job, or some of their paths.
            **options: Further ones of it.
        """
        asked = self.options
        return feature_store.extract(
            self.plan.body,
            images,
            engine=asked.engine,
            cache=asked.cache,
            batch_size=asked.batch_size,
            progress=asked.progress,
            **options,
        )


class UsableImages:
    """Which files could be used, what was measured of them, and what became of the others.

    Attributes:
        rows: Features of the images ``(n, features)``; without columns where there are none.
    """

    def __init__(
        self,
        found: feature_store.Features | frozen.FrozenOutputs | DecodedPixels,
        rows: np.ndarray | None = None,
    ):
        self.indices, self.skipped = found.indices, found.skipped
        self.digests, self.records = found.digests, found.records
        self.computed, self.reused, self.engine = 0, 0, "none"
        if not isinstance(found, DecodedPixels):
            self.add(found)
        self.rows = np.zeros((len(found.indices), 0), np.float32) if rows is None else rows

    def add(self, found: feature_store.Features | frozen.FrozenOutputs) -> None:
        """Counts what went through the network.

        Args:
            found: Images of which some may have been there before.
        """
        self.reused = max(self.reused, found.reused - self.computed)  # not what this very fit computed
        self.computed += found.computed
        self.engine = found.engine


@dataclasses.dataclass(frozen=True, eq=False)
class DecodedData:
    """Images after the one pass in which they are decoded.

    Attributes:
        used: Which of them can be used, and their features where they went through the network.
        precision: What the features are computed in.
        pixels: The images themselves, where a training will read them.
        prepared: Outputs of the frozen part, where nothing is probed first.
        settings: Of the fine-tuning, where they had to be chosen before the pass.
        folder: Of its run.
    """

    used: UsableImages
    precision: str
    pixels: DecodedPixels | None = None
    prepared: frozen.FrozenOutputs | None = None
    settings: Tuning | None = None
    folder: Path | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class CheckedData:
    """The images that can be used, split and checked.

    Attributes:
        images: Those; positions in ``parts`` are theirs.
        parts: How they are split.
        skipped: Images that could not be used.
        skipped_table: The same, and what a rule left out, as a CSV file.
        checks: What is wrong with them; ``None`` where that was not looked for.
    """

    images: ImageSet
    parts: Split
    skipped: tuple[Skipped, ...]
    skipped_table: bytes
    checks: checking.Checks | None


@dataclasses.dataclass(frozen=True, eq=False)
class ReadyTraining:
    """A fine-tuning that is worth while, ready to begin.

    Attributes:
        prepared: The images as the part that learns reads them.
        settings: Of the training.
        running: How it is run.
        folder: Of its run; ``None`` is one that goes away.
    """

    prepared: frozen.FrozenOutputs
    settings: Tuning
    running: runs.RunOptions
    folder: Path | None


def scan(
    source: Any,
    task: ImageTask,
    options: FitOptions,
    scan_options: Mapping[str, Any],
    *,
    head: str,
    head_options: Mapping[str, Any] | None = None,
    teaches: bool = False,
) -> FitJob:
    """Finds the images and the network, and what there is time for. Nothing is decoded yet.

    Args:
        source: As the task's fit takes it.
        task: The task.
        options: What was asked for.
        scan_options: Further options, of :func:`resfit.data.dataset.scan`.
        head: Kind of the head.
        head_options: Settings of the fine-tuning that the task's fit takes as arguments of their own.
        teaches: Whether there is a teacher.

    Raises:
        ArgumentError: An option breaks its rule, or ``out`` holds something else.
        DataError: The images cannot be trained on.
    """
    journal = Timings(options.say)
    minutes = _checked(options)
    engines.check_name(options.engine)
    left_open = options.precision == AUTO
    if left_open:
        options = dataclasses.replace(options, precision="float32")
    engines.check_precision(options.precision)
    engines.check_installed(options.engine, options.precision)
    resolved = engines.resolve(options.engine, options.precision)
    if resolved.note:
        journal.warn(resolved.note)
    options = dataclasses.replace(options, precision=resolved.precision)
    if options.folder is not None and (replaced := artifact.check_target(options.folder, force=options.force)):
        journal.warn(replaced)
    images, settled, changed = _scanned(source, task, options, scan_options)
    if settled:
        journal.warn(settled)
    for assumed in images.notes:
        journal.note(assumed)
    journal.lap("scan")
    body, name = backbone.body_of(options.model, options.channels, options.reading)
    journal.lap("load network")
    plan = FitPlan(
        body=body,
        strategy=options.strategy,
        minutes=minutes,
        trainable_from=options.trainable_from,
        tuning=options.tuning,
        seed=options.seed,
        head=head,
        lr_find=options.lr_find,
        options=dict(head_options or {}),
        taught=teaches,
        defaults=task.defaults,
        precision=options.precision,
        cache=options.cache,
    )
    if plan.tunes:
        dependencies.require_tensorflow_backend(f"strategy={options.strategy!r}")
    plan.open_record(images, options.out, options.cache)
    hardware = plan.hardware if minutes is not None and devices.current().kind == "gpu" else None
    some, left_out = subsample_to_budget(
        images, getattr(body, "architecture", None), body.input_spec.size, minutes, options.seed, hardware
    )
    for text in (left_out, scans.NOTICE if images.medical else ""):
        if text:
            journal.note(text)
    running = runs.RunOptions(
        folder=Path(),
        cache=options.cache,
        engine=options.engine,
        storage=options.storage,
        lr_find=options.lr_find,
        tensorboard=options.tensorboard,
        callbacks=options.callbacks,
        progress=options.progress,
        say=journal.note,
        records=options.check,
    )
    left = len(images) - len(some)
    choice = None
    if left_open and task.reduces and plan.probes and not plan.tunes:
        found = _precision(plan, some, images, options)
        if found.line:
            journal.note(found.line)
        if found.precision != "float32":
            choice = found
            options = dataclasses.replace(options, precision=found.precision)
            plan = dataclasses.replace(plan, precision=found.precision)
    return FitJob(options, some, left, images.skipped, images.ignored, name, plan, running, journal, changed, choice)


def _precision(plan: FitPlan, images: ImageSet, everything: ImageSet, options: FitOptions) -> PrecisionChoice:
    """Chooses the number format of the features, as a fit that was killed had chosen it."""
    contract = plan.body.input_spec

    def samples() -> np.ndarray:
        batches = list(decoding.decode_many(images.paths[:_TIMED], contract, batch_size=_TIMED))
        return batches[0].images if batches else np.zeros((0, *contract.size, contract.channels), np.uint8)

    def choose() -> dict[str, Any]:
        missing = feature_store.missing(plan.body, images.paths, options.cache)
        return auto_precision.choose(plan.body, missing, samples, engine=options.engine, cache=options.cache).to_dict()

    found = choose()
    if found["seconds"]:  # a choice; what is settled without one need not be looked up and kept
        plan.open_record(everything, options.out, options.cache, always=True)
        found = plan.record.decide(AUTO_DECISION, lambda: found)
    plan.record.decisions[AUTO_DECISION] = found
    return PrecisionChoice.from_dict(found)


def planned(
    source: Any,
    task: ImageTask,
    options: FitOptions,
    scan_options: Mapping[str, Any],
    hardware: recipes.Hardware | None,
) -> recipes.Recipe:
    """Says what a fit would do. The images are counted, not decoded, and the network is not loaded.

    Args:
        source: As :func:`scan` takes it.
        task: As :func:`scan` takes it.
        options: As :func:`scan` takes them.
        scan_options: As :func:`scan` takes them.
        hardware: The machine; ``None`` measures this one.
    """
    minutes = _checked(options)
    images, settled, _ = _scanned(source, task, options, scan_options)
    spec, size = backbone.described(options.model)
    if hardware is None:
        body = None if spec is None or devices.current().kind == "cpu" else backbone.untrained(spec, size)
        precision = "float32" if options.precision == AUTO else options.precision
        hardware = speed.hardware(body, precision, options.cache)
    images, left_out = subsample_to_budget(images, spec, size, minutes, options.seed, hardware)
    parts = split(images, options.val_share, options.test_share, options.seed)
    known = facts(images, len(parts.train), spec, size)
    found = recipes.recipe(
        known,
        hardware,
        strategy=options.strategy,
        minutes=minutes,
        seed=options.seed,
    )
    said = (*images.notes, *filter(None, (settled, left_out)))
    tuning = found.tuning and runs.tuning_from({**found.tuning.to_dict(), **task.defaults})
    return dataclasses.replace(found, tuning=tuning, reasons=(*said, *found.reasons))


def decode(job: FitJob, pictured: Sequence[int] = ()) -> DecodedData:
    """Decodes the images, and runs them through as much of the network as is sure to be needed.

    Args:
        job: The fit.
        pictured: Positions of the images of which a thumbnail is kept.
    """
    options, plan, running, journal, images = job.options, job.plan, job.running, job.journal, job.images
    count = 0
    if plan.tunes:
        count = len(split(images, options.val_share, options.test_share, options.seed).train)
    if not plan.probes:
        settings, folder = plan.settings(images, count, options.out, running.cache, journal)
        assert settings is not None
        running = dataclasses.replace(running, thumbnails=pictured)
        prepared = frozen.prepare(plan.body, images.paths, settings, running)
        journal.lap("frozen part")
        return DecodedData(UsableImages(prepared), "float32", None, prepared, settings, folder)
    shared: dict[str, Any] = {"records": running.records, "thumbnails": pictured}
    if plan.reads_pixels(images, count, journal):
        pixels = decoded(images.paths, plan.body.input_spec, running.cache, progress=running.progress, **shared)
        journal.lap("pixels")
        if options.precision != "float32":
            journal.note(f"features are computed in float32, not {options.precision}: the training reads the images")
        return DecodedData(UsableImages(pixels), "float32", pixels)
    if job.choice is not None and options.precision == "int8":
        shared["worth"] = auto_precision.worth(plan.body, job.choice, journal.note, options.cache)
    extracted = job.extract(images, precision=options.precision, **shared)
    if extracted.engine == "openvino":
        auto_precision.note(
            plan.body, extracted.precision, extracted.seconds_an_image, extracted.computed, options.cache
        )
    journal.lap("features")
    return DecodedData(UsableImages(extracted, extracted.rows), extracted.precision)


def split_and_check(job: FitJob, data: DecodedData) -> CheckedData:
    """Splits the images that can be used, duplicates on one side, and looks for what is wrong with them.

    Args:
        job: The fit.
        data: The images, decoded.

    Raises:
        DataError: Too many cannot be used, or none is left to validate a fine-tuning on.
    """
    options, medical = job.options, job.images.medical
    skipped = privacy.shown_skipped(job.images, (*job.unusable, *data.used.skipped))
    table = preparation.skipped_table(skipped, job.ignored, medical=medical)
    found = len(job.images) + len(job.unusable)
    check_skipped(skipped, found, options.max_skipped, table, options.folder)
    images = job.images.subset(data.used.indices)
    checker = DataChecker(images, data.used) if options.check else None
    val = options.val_share if job.plan.tunes else 0.0
    parts = split(checker.together if checker else images, val, options.test_share, options.seed)
    if job.plan.tunes and not len(parts.val):
        raise DataError("fine-tuning needs validation images, and the data is too small to set some aside.")
    checks = None
    if checker is not None:
        checks = dataclasses.replace(checker.examine(options.seed, skipped), ignored=preparation.by_rule(job.ignored))
        job.journal.lap("checks")
    return CheckedData(images, parts, skipped, table, checks)


def prepare_training(job: FitJob, decoded: DecodedData, data: CheckedData) -> ReadyTraining | None:
    """Makes a fine-tuning ready, where one is asked for and there is time; says so where there is none.

    Args:
        job: The fit.
        decoded: The images, decoded.
        data: The same, split.
    """
    plan, journal, images, count = job.plan, job.journal, data.images, len(data.parts.train)
    if not plan.tunes:
        return None
    prepared, settings, folder = decoded.prepared, decoded.settings, decoded.folder
    if plan.probes:
        settings, folder = plan.settings(images, count, job.options.out, job.running.cache, journal)
        if settings is None:
            return None
        prepared = frozen.prepare(plan.body, images.paths, settings, job.running, decoded.pixels)
        journal.lap("frozen part")
        if plan.too_late(images, count, folder, journal):
            journal.note("no time is left for fine-tuning: the probe is kept")
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
            return None
    assert prepared is not None
    assert settings is not None
    return ReadyTraining(prepared, settings, job.running, folder)


def in_time_left(ready: ReadyTraining, job: FitJob, data: CheckedData, closing: int = 0) -> ReadyTraining:
    """Returns a fine-tuning that ends when the time is up; called when it begins.

    Args:
        ready: The fine-tuning.
        job: The fit.
        data: The images, split.
        closing: Images beside those for validation and test that are measured when it is over.
    """
    plan, parts = job.plan, data.parts
    if plan.minutes is None or plan.sets_time:
        return ready
    settings = runs.with_time_left(ready.folder, ready.settings, plan.minutes_left(job.journal))
    running = dataclasses.replace(ready.running, closing=len(parts.test) + len(parts.val) + closing)
    return dataclasses.replace(ready, settings=settings, running=running)


def metrics(
    job: FitJob,
    data: CheckedData,
    *,
    train: np.ndarray,
    held_out: np.ndarray | None,
    test: Any,
    tuned: TunedBody | None,
    metric: str,
    **own: Any,
) -> dict[str, Any]:
    """Returns the figures of a fit, JSON-ready.

    Args:
        job: The fit.
        data: The images.
        train: Positions of those that were learned from.
        held_out: Positions of those that chose the epoch; ``None`` for none.
        test: The measurement; ``None`` without test images.
        tuned: The fine-tuning, kept or not, if there was one.
        metric: That it was chosen by, such as ``"accuracy"``.
        **own: Further figures of the task.
    """
    parts = {
        "train": len(train),
        **({} if held_out is None else {"val": len(held_out)}),
        "test": len(data.parts.test),
    }
    left_out = job.left_out + len(data.images) - sum(parts.values())
    rules = preparation.by_rule(job.ignored)
    return {
        "images": {
            "found": len(job.images) + len(job.unusable) + job.left_out + len(job.ignored),
            "skipped": len(data.skipped),
            **parts,
            **({"left_out": left_out} if left_out else {}),
            "ignored": len(job.ignored),
        },
        **({"ignored": rules} if rules else {}),
        "machine": machine(job, tuned),
        **own,
        **({} if tuned is None else {"training": _trained(tuned.learned, metric)}),
        **({} if data.checks is None else {"checks": data.checks.to_dict()}),
        "plan": job.plan.to_dict(),
        "test": None if test is None else test.to_dict(),
        **({"notice": scans.NOTICE} if data.images.medical else {}),
    }


def machine(job: FitJob, tuned: TunedBody | None) -> dict[str, Any]:
    """Returns what computed a fit and in which number formats, JSON-ready.

    Args:
        job: The fit.
        tuned: The fine-tuning, if there was one.
    """
    precisions = {"features": job.options.precision, **({} if tuned is None else {"training": tuned.tuning.precision})}
    return {**devices.current().to_dict(), "precision": precisions, "deterministic": job.options.deterministic}


def package(
    fitted: _Fitted,
    job: FitJob,
    data: CheckedData,
    used: UsableImages,
    *,
    test: Any,
    tuned: TunedBody | None,
) -> _Fitted:
    """Writes the fitted model, ends the run that it came from, and says what the fit did.

    Args:
        fitted: The model.
        job: The fit.
        data: The images.
        used: What went through the network.
        test: The measurement; ``None`` without test images.
        tuned: The fine-tuning, if there was one.
    """
    together = replicas.joined()
    writes = together is None or together.writes
    if job.options.out is not None and writes:
        fitted.save(job.options.out, force=job.options.force)
    if tuned is not None and tuned.folder is not None and writes:  # the run is in the fitted model now
        shutil.rmtree(tuned.folder, ignore_errors=True)
    job.plan.record.close()
    job.journal.lap("save")
    fitted.run = FitRun(
        test=test,
        skipped=data.skipped,
        warnings=job.images.warnings,
        seconds=job.journal.laps,
        computed=used.computed,
        reused=used.reused,
        engine=used.engine,
        device=devices.current().to_dict(),
        history=() if tuned is None else tuned.learned.history,
        notes=tuple(job.journal.notes),
    )
    return fitted


def split(images: ImageSet, val: float, test: float, seed: int) -> splits.Split:
    """Splits a set.

    Args:
        images: The set.
        val: Share of what is not for testing to choose on.
        test: Share to measure on, where the set does not state it.
        seed: Of the split.
    """
    labelled = np.flatnonzero(images.labelled)
    stated = sum(images.splits[position] == "test" for position in labelled) / max(1, len(labelled))
    return splits.split(images, val=val * (1 - (stated or test)), test=test, seed=seed)


def likely_references(images: ImageSet, width: int, sampling_order: np.ndarray) -> list[int]:
    """Returns positions of images that the classifier will probably keep: a thumbnail is made when they are decoded.

    Args:
        images: All of them.
        width: Number of features.
        sampling_order: When the turn of each comes.
    """
    tested = np.array([part == "test" for part in images.splits], bool)
    learned = np.flatnonzero(~tested & images.labelled)
    return learned[reference_images.likely(images.labels[learned], width, sampling_order[learned])].tolist()


def check_skipped(skipped: Sequence[Skipped], found: int, most: float, table: bytes, out: Path | None) -> None:
    """Stops where too many images are unusable, and leaves the list of them behind.

    Args:
        skipped: Those that cannot be used.
        found: How many there are, with these.
        most: Largest fraction of them.
        table: The list, as a file.
        out: Where the fitted model would go.

    Raises:
        DataError: There are too many.
    """
    if len(skipped) <= most * found:
        return
    where = f"such as {skipped[0].path}: {skipped[0].reason}"
    if out is not None:
        # an earlier fitted model stays as it is
        target = (
            out.with_name(f"{out.name}.{artifact.SKIPPED}") if artifact.is_artifact(out) else out / artifact.SKIPPED
        )
        with atomic_open(target) as file:
            file.write(table)
        where += f"; all are listed in {target}"
    raise DataError(
        f"at most {most:.0%} of the images may be unusable. Received: {len(skipped)} of {found} "
        f"({len(skipped) / max(found, 1):.1%}), {where}. Repair or remove them, or raise max_skipped."
    )


class DataChecker:
    """The data checks of a fit: duplicates first, for the split needs them, and the rest when there is a head.

    Attributes:
        together: The images, with those that are alike in one group.

    Args:
        images: Those that can be used.
        used: What was measured of them.
    """

    def __init__(self, images: ImageSet, used: UsableImages):
        self._images, self._records, self._rows = images, used.records, np.asarray(used.rows)
        self._same = checking.duplicates(used.digests, used.records, used.rows if used.rows.shape[1] else None)
        self.together = checking.group_duplicates(images, self._same)

    def examine(self, seed: int, skipped: Sequence[Skipped]) -> checking.Checks:
        """Looks for everything.

        Args:
            seed: Of the folds.
            skipped: Images that cannot be used.
        """
        return checking.examine(self._images, self._rows, self._records, self._same, seed=seed, skipped=skipped)


def _checked(options: FitOptions) -> float | None:
    """Checks the strategy, and returns the budget in minutes."""
    callbacks.check(options.callbacks)
    check_choice("strategy", options.strategy, recipes.STRATEGIES)
    return recipes.parse_minutes(options.budget)


def _scanned(
    source: Any, task: ImageTask, options: FitOptions, scan_options: Mapping[str, Any]
) -> tuple[ImageSet, str, tuple[str, ...]]:
    """Returns the images of a source, where they can be trained on; what was settled, and for which classes."""
    check_scan_options(scan_options, task.arguments)
    given: dict[str, Any] = dict(scan_options)
    if options.reading is not None:
        given["reading"] = options.reading
    images = dataset.scan(source, numbers=task.numbers, **given)
    every, settled = images.classes, ""
    if task.settle is not None:
        images, settled = task.settle(images)
    task.check(images)
    return images, settled, tuple(sorted({*every} - {*images.classes})) if settled else ()


def _trained(history: TrainingHistory, metric: str) -> dict[str, Any]:
    """Returns what a fine-tuning came to, JSON-ready."""
    return {
        "epoch": history.epoch,
        "epochs": history.history[-1]["epoch"],
        "steps": history.steps,
        "ending": history.ending,
        f"val_{metric}": history.score,
        "val_loss": history.loss,
        f"val_{metric}_before": history.history[0].get(f"val_{metric}"),
    }
