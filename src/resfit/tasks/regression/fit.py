"""Fits a regressor to images whose numbers are known: the same five steps as for classes."""

from __future__ import annotations

import dataclasses
import functools
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resfit import artifact, engines
from resfit.data import csv_cells
from resfit.data import dataset as image_sets
from resfit.data.dataset import ImageSet
from resfit.data.inputs import takes_numbers
from resfit.data.medical import privacy, scans
from resfit.data.split import Split
from resfit.errors import DataError
from resfit.features import extract as feature_store
from resfit.features.progress import Progress
from resfit.preprocessing import Reading
from resfit.tasks import backbone, preparation
from resfit.tasks.base import FitRun
from resfit.tasks.decoding import DecodedData, look
from resfit.tasks.fit_plan import FitPlan, check_arguments, facts, scan_options_for, subsample_to_budget
from resfit.tasks.regression.objective import LOSSES, NumberObjective
from resfit.tasks.regression.regressor import COVERAGE, RegressionRecipe, Regressor, measured
from resfit.tasks.regression.results import ResidualIntervals
from resfit.tasks.regression.ridge import RidgeHead, fit_ridge
from resfit.tasks.timings import Timings
from resfit.training import callbacks as callback_list
from resfit.training import finetuning, frozen, recipes, runs
from resfit.training.loop import check_choice
from resfit.training.settings import Tuning

if TYPE_CHECKING:
    import keras

# a crop at random changes sizes and positions, which the numbers may be
_SETTINGS = {"crop_scale": 1.0, "label_smoothing": 0.0}
_FEWEST = 10


@dataclasses.dataclass(frozen=True, eq=False)
class LearnedNumbers:
    """What goes into the regressor.

    Attributes:
        body: Images to features.
        head: The head on them.
        predicted: For the test images, float64 ``(n, numbers)``.
        residuals: Errors on images that were not learned from.
        train: Positions of the images that were learned from.
        tuned: The fine-tuning, where it is kept.
    """

    body: keras.Model
    head: RidgeHead
    predicted: np.ndarray
    residuals: ResidualIntervals
    train: np.ndarray
    tuned: finetuning.TunedBody | None = None


@takes_numbers
def fit(
    source: Any,
    *,
    model: str | keras.Model = backbone.DEFAULT_MODEL,
    out: str | os.PathLike[str] | None = None,
    force: bool = False,
    strategy: str = "auto",
    loss: str = "huber",
    budget: str | float | None = None,
    trainable_from: int | float | str | None = None,
    tuning: Tuning | Mapping[str, Any] | None = None,
    lr_find: bool = False,
    storage: int | None = None,
    tensorboard: bool = True,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    seed: int = 0,
    engine: str = "auto",
    cache: bool | str | Path = True,
    max_skipped: float = 0.10,
    test_share: float = 0.2,
    val_share: float = 0.15,
    check: bool = True,
    allow_leakage: bool = False,
    batch_size: int | None = None,
    channels: int | None = None,
    reading: Reading | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
    **scan_options: Any,
) -> Regressor:
    """Fits a regressor: ridge regression on the features of a frozen network, fine-tuning where there is time.

    Arguments that :func:`resfit.tasks.classification.fit.fit` has too mean the same.

    Args:
        source: A table with the column of the number, or several; a folder whose folders or files say the number
            (``label_from``); or a pair ``(images, numbers)``.
        model: The network.
        out: Folder to write the regressor to; ``None`` keeps it in memory.
        force: Whether files of yours in an earlier fitted model's folder may be deleted with it.
        strategy: ``"probe"``, ``"finetune"``, ``"full"`` or ``"auto"``.
        loss: Of the fine-tuning: ``"huber"``, which a few wrong numbers do not decide, or ``"mse"``.
        budget: Time for everything.
        trainable_from: First layer that learns.
        tuning: Settings of the fine-tuning. By default images are not cropped at random, since that changes sizes.
        lr_find: Whether a range test chooses the learning rate.
        storage: Bytes that outputs of the frozen part may take up on disk.
        tensorboard: Whether the training writes TensorBoard's files.
        callbacks: Keras' callbacks, told of each epoch and step of fine-tuning; ``EarlyStopping`` and its kind may end
            it. A probe has no epochs. Their model's weights are those that learn, not their moving average.
        seed: Seed of the split, of the cross-validation and of the training.
        engine: As :func:`resfit.engines.create` takes it.
        cache: ``True`` for resfit's own cache folder, ``False`` for none, or a folder.
        max_skipped: Largest fraction of unreadable images.
        test_share: Share of the images set aside for the measurement.
        val_share: Share of the other images set aside to choose the epoch on, where something is fine-tuned.
        check: Whether duplicates are looked for, and kept on one side of the split.
        allow_leakage: Whether to continue although images are in both training and test set.
        batch_size: Images in one pass of the frozen network.
        channels: 1 for grey images, 3 for colour.
        reading: How scans become pictures.
        progress: Called as images get done.
        say: Called with lines for people.
        **scan_options: Further options of :func:`resfit.data.dataset.scan`: ``label_column`` names the number, or
            several with commas between them.

    Returns:
        The regressor.

    Raises:
        ArgumentError: An argument breaks its rule.
        DataError: The images cannot be trained on.

    Example:
        >>> ages = resfit.fit("bones.csv", task="regression", label_column="age", budget="10m")
        >>> ages.predict("a.png")[0].value  # doctest: +SKIP
        127.4
    """
    callback_list.check(callbacks)
    journal = Timings(say)
    minutes = check_arguments(strategy, budget, max_skipped, test_share, val_share, out, force, journal.warn)
    check_choice("loss", loss, LOSSES)
    engines.check_installed(engine, "float32")
    images = image_sets.scan(source, numbers=True, **scan_options_for(fit, reading, scan_options))
    _check_trainable(images)
    for assumed in images.notes:
        journal.note(assumed)
    journal.lap("scan")
    body, name = backbone.body_of(model, channels, reading)
    journal.lap("load network")
    unusable, ignored, listed = images.skipped, images.ignored, len(images)
    images, left_out = subsample_to_budget(
        images, getattr(body, "architecture", None), body.input_spec.size, minutes, seed
    )
    for text in (left_out, scans.NOTICE if images.medical else ""):
        if text:
            journal.note(text)
    plan = FitPlan(body, strategy, minutes, trainable_from, tuning, seed, "ridge", lr_find, {}, False, _SETTINGS)
    plan.open_record(images, out, cache)
    running = runs.RunOptions(
        folder=Path(),
        cache=cache,
        engine=engine,
        storage=storage,
        lr_find=lr_find,
        tensorboard=tensorboard,
        callbacks=callbacks,
        progress=progress,
        say=journal.note,
        records=check,
    )
    extract = functools.partial(
        feature_store.extract, body, engine=engine, cache=cache, batch_size=batch_size, progress=progress
    )
    count = len(preparation.split(images, val_share, test_share, seed).train) if plan.tunes else 0
    decoded = look(images, extract, plan, running, journal, count=count, precision="float32", pictured=(), out=out)
    used = decoded.used
    skipped = privacy.shown_skipped(images, (*unusable, *used.skipped))
    skipped_csv = preparation.skipped_table(skipped, ignored, medical=images.medical)
    found = len(images) + len(unusable)
    preparation.check_skipped(skipped, found, max_skipped, skipped_csv, None if out is None else Path(out))

    kept = images.subset(used.indices)
    checker = preparation.DataChecker(kept, used) if check else None
    parts = preparation.split(checker.together if checker else kept, val_share if plan.tunes else 0.0, test_share, seed)
    if plan.tunes and not len(parts.val):
        raise DataError("fine-tuning needs validation images, and the data is too small to set some aside.")
    checked = None
    if checker is not None:
        checked = dataclasses.replace(checker.examine(seed, skipped), ignored=preparation.by_rule(ignored))
        if not allow_leakage:
            checked.require_no_leaks()
    journal.lap("checks")

    assert kept.values is not None
    rows = np.asarray(used.rows)
    if not rows.shape[1]:  # pixels or outputs of the frozen part: nothing went through the whole network yet
        rows = (
            frozen.features(decoded.prepared, np.arange(len(kept)), running)
            if decoded.prepared is not None
            else extract(list(kept.paths), pixels=decoded.pixels.at(np.arange(len(kept)))).rows  # type: ignore[union-attr]
        )
        journal.lap("features")
    learned, tuned, folder = _learn(kept, parts, np.asarray(rows), decoded, plan, running, journal, loss=loss, out=out)

    result = None
    if len(parts.test):
        tested = kept.subset(parts.test)
        enough = learned.residuals.count >= 9
        result = measured(
            kept.values[parts.test],
            learned.predicted,
            kept.value_names,
            halves=learned.residuals.half_widths(COVERAGE) if enough else (),
            coverage=COVERAGE,
            groups=tested.groups,
            paths=tested.paths,
            skipped=skipped,
            seed=seed,
        )
    journal.lap("measure")
    whole, features = _whole(learned.body, learned.head)
    regressor = Regressor(
        model=whole,
        columns=kept.value_names,
        input_spec=body.input_spec,
        recipe=RegressionRecipe(
            model=name,
            strategy="probe" if learned.tuned is None else learned.tuned.strategy,
            asked=strategy,
            seed=seed,
            test_share=test_share,
            penalty=learned.head.penalty,
            folds=learned.head.folds,
            grouped=any(group is not None for group in kept.groups),
            features=features,
            loss=loss,
            tuning=None if learned.tuned is None else learned.tuned.tuning.to_dict(),
        ),
        residuals=learned.residuals,
        metrics={
            "images": {
                "found": listed + len(unusable) + len(ignored),
                "skipped": len(skipped),
                "train": len(learned.train),
                **({"val": len(parts.val)} if learned.tuned is not None else {}),
                "test": len(parts.test),
                "ignored": len(ignored),
                **({"left_out": listed - len(images)} if listed > len(images) else {}),
            },
            "ranges": {
                column: [float(values.min()), float(values.max())]
                for column, values in zip(kept.value_names, kept.values[learned.train].T, strict=True)
            },
            **({} if tuned is None else {"training": _training(tuned)}),
            **({} if checked is None else {"checks": checked.to_dict()}),
            "plan": plan.to_dict(),
            "test": None if result is None else result.to_dict(),
            **({"notice": scans.NOTICE} if images.medical else {}),
        },
        fingerprint=kept.fingerprint,
        versions=preparation.package_versions(),
        attachments={
            artifact.SKIPPED: skipped_csv,
            artifact.TEST_PREDICTIONS: _test_table(kept, parts.test, learned.predicted),
            **({} if tuned is None else tuned.files),
        },
    )
    if out is not None:
        regressor.save(out, force=force)
    if folder is not None:  # the run is in the regressor now
        shutil.rmtree(folder, ignore_errors=True)
    plan.record.close()
    journal.lap("save")
    regressor.run = FitRun(
        test=result,
        skipped=skipped,
        warnings=images.warnings,
        seconds=journal.laps,
        computed=used.computed,
        reused=used.reused,
        engine=used.engine,
        history=() if tuned is None else tuned.learned.history,
        notes=tuple(journal.notes),
    )
    return regressor


@takes_numbers
def plan(
    source: Any,
    *,
    model: str | keras.Model = backbone.DEFAULT_MODEL,
    strategy: str = "auto",
    budget: str | float | None = None,
    seed: int = 0,
    test_share: float = 0.2,
    val_share: float = 0.15,
    hardware: recipes.Hardware | None = None,
    reading: Reading | None = None,
    **scan_options: Any,
) -> recipes.Recipe:
    """Says what :func:`fit` would do and how long it would take; see :func:`resfit.tasks.classification.fit.plan`."""
    minutes = check_arguments(strategy, budget, 0.0, test_share, val_share, None)
    images = image_sets.scan(source, numbers=True, **scan_options_for(fit, reading, scan_options))
    _check_trainable(images)
    spec, size = backbone.described(model)
    images, left_out = subsample_to_budget(images, spec, size, minutes, seed)
    parts = preparation.split(images, val_share, test_share, seed)
    known = facts(images, len(parts.train), spec, size)
    found = recipes.recipe(known, hardware or recipes.measure_hardware(), strategy=strategy, minutes=minutes, seed=seed)
    said = [*images.notes, *([left_out] if left_out else [])]
    tuning = None if found.tuning is None else runs.tuning_from({**found.tuning.to_dict(), **_SETTINGS})
    return dataclasses.replace(found, tuning=tuning, reasons=(*said, *found.reasons))


def _check_trainable(images: ImageSet) -> None:
    """Makes sure that a regressor can be trained and measured on a set.

    Raises:
        DataError: There are too few images with numbers, or all numbers are the same.
    """
    assert images.values is not None
    known = images.values[images.labelled]
    if len(known) < _FEWEST:
        raise DataError(
            f"at least {_FEWEST} images with numbers are needed. Received: {len(known)}, and {len(images.skipped)} "
            "files that cannot be used."
        )
    if not np.isfinite(known).all():
        raise DataError("each image must have all of its numbers. Received: an image without some of them.")
    same = [name for name, column in zip(images.value_names, known.T, strict=True) if np.ptp(column) == 0]
    if same:
        raise DataError(f"the numbers must differ between images. Received: the same {same[0]!r} for all.")
    if not any(part in (None, "train") for part in images.splits):
        raise DataError("training images are needed. Received: images of other parts of the split alone.")


def _learn(
    images: ImageSet,
    parts: Split,
    rows: np.ndarray,
    decoded: DecodedData,
    plan: FitPlan,
    running: runs.RunOptions,
    journal: Timings,
    *,
    loss: str,
    out: str | os.PathLike[str] | None,
) -> tuple[LearnedNumbers, finetuning.TunedBody | None, Path | None]:
    """Fits the head and, where that is asked for and there is time, fine-tunes; returns what is better."""
    assert images.values is not None
    values = images.values
    everything = np.sort(np.concatenate([parts.train, parts.val]))

    def ridge(positions: np.ndarray) -> RidgeHead:
        groups = [images.groups[position] for position in positions]
        return fit_ridge(rows[positions], values[positions], groups=groups, seed=plan.seed)

    tuned, folder = None, decoded.folder
    if plan.tunes:
        start = ridge(parts.train)
        journal.lap("head")
        prepared, settings = decoded.prepared, decoded.settings
        if plan.probes:
            prepared = None
            settings, folder = plan.settings(images, len(parts.train), out, running.cache, journal)
            if settings is not None:
                prepared = frozen.prepare(plan.body, images.paths, settings, running, decoded.pixels)
                journal.lap("frozen part")
                if plan.too_late(images, len(parts.train), folder, journal):
                    journal.note("no time is left for fine-tuning: the probe is kept")
                    prepared = None
        if prepared is not None and settings is not None:
            if plan.minutes is not None and not plan.sets_time:
                settings = runs.with_time_left(folder, settings, plan.minutes_left(journal))
                running = dataclasses.replace(running, closing=len(parts.test) + len(parts.val))
            head, tuned = _tuned(start, prepared, values, parts, settings, running, folder, loss)
            first = tuned.learned.history[0].get("val_r2", 0.0)
            kept = tuned.learned.epoch > 0
            journal.note(
                f"validation R2 {first:.3f} before, {tuned.learned.score or 0.0:.3f} after: "
                + (f"epoch {tuned.learned.epoch} is kept" if kept else "no epoch was better than the probe")
            )
            journal.lap("fine-tuning")
            if kept or not plan.probes:
                said = head(tuned.features(np.concatenate([parts.test, parts.val]))).astype(np.float64)
                residuals = ResidualIntervals.of(values[parts.val], said[len(parts.test) :], "validation")
                predicted = said[: len(parts.test)]
                return LearnedNumbers(tuned.body, head, predicted, residuals, parts.train, tuned), tuned, folder
    head = ridge(everything)
    journal.lap("head")
    predicted = head(rows[parts.test]).astype(np.float64)
    truth = values[everything] if len(head.held_out) else np.zeros((0, values.shape[1]))
    residuals = ResidualIntervals.of(truth, head.held_out.reshape(truth.shape), "cross-validation")
    return LearnedNumbers(plan.body, head, predicted, residuals, everything), tuned, folder


def _tuned(
    start: RidgeHead,
    prepared: frozen.FrozenOutputs,
    values: np.ndarray,
    parts: Split,
    settings: Tuning,
    running: runs.RunOptions,
    folder: Path | None,
    loss: str,
) -> tuple[RidgeHead, finetuning.TunedBody]:
    """Fine-tunes a network on standardised numbers, and returns the head in the numbers' own units."""
    import keras

    mean, spread = values[parts.train].mean(axis=0), values[parts.train].std(axis=0)
    spread = np.where(spread > 0, spread, 1.0)
    targets = ((values - mean) / spread).astype(np.float32)
    layers: list[keras.layers.Dense] = []

    def attach(body: keras.Model) -> tuple[keras.Model, list[Any]]:
        dense = keras.layers.Dense(len(mean), dtype="float32", name=_free("values", body))
        whole = keras.Model(body.inputs, dense(body.outputs[0]), name=body.name)
        dense.set_weights([start.kernel / spread, (start.bias - mean) / spread])
        layers.append(dense)
        return whole, [dense]

    found = finetuning.finetune(
        prepared, attach, NumberObjective(targets, loss), targets, parts, settings, running, folder=folder
    )
    kernel, bias = (np.asarray(weight, np.float64) for weight in layers[0].get_weights())
    head = RidgeHead(
        (kernel * spread).astype(np.float32), (bias * spread + mean).astype(np.float32), start.penalty, start.folds
    )
    return head, found


def _whole(body: keras.Model, head: RidgeHead) -> tuple[keras.Model, str]:
    """Returns a network with its head as one Keras model, and the name of the layer that the head reads."""
    import keras

    dense = keras.layers.Dense(len(head.bias), dtype="float32", name=_free("values", body))
    whole = keras.Model(body.inputs, dense(body.outputs[0]), name=body.name)
    dense.set_weights([head.kernel, head.bias])
    for attribute in ("architecture", "input_spec"):
        if hasattr(body, attribute):
            setattr(whole, attribute, getattr(body, attribute))
    return whole, body.layers[-1].name


def _free(name: str, body: keras.Model) -> str:
    return name if name not in {layer.name for layer in body.layers} else f"{name}_{len(body.layers)}"


def _training(tuned: finetuning.TunedBody) -> dict[str, Any]:
    learned = tuned.learned
    return {
        "epoch": learned.epoch,
        "epochs": learned.history[-1]["epoch"],
        "steps": learned.steps,
        "ending": learned.ending,
        "val_r2": learned.score,
        "val_loss": learned.loss,
        "val_r2_before": learned.history[0].get("val_r2"),
    }


def _test_table(images: ImageSet, test: np.ndarray, predicted: np.ndarray) -> bytes:
    """Returns what was said about the test images as CSV; ``label`` has the numbers with ``;`` between them."""
    rows = [
        (
            privacy.shown(images, images.paths[position]),
            images.label_text(int(position)),
            *(f"{value:.9g}" for value in values),
        )
        for position, values in zip(test, predicted, strict=True)
    ]
    return csv_cells.table(("path", "label", *(f"predicted {name}" for name in images.value_names)), rows)
