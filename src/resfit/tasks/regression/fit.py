"""Fits a regressor to images whose numbers are known: the same five steps as for classes."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from resfit import artifact
from resfit.data import csv_cells
from resfit.data.dataset import ImageSet
from resfit.data.inputs import takes_numbers
from resfit.data.medical import privacy
from resfit.data.split import Split
from resfit.devices import on_device
from resfit.engines.auto_precision import AUTO
from resfit.errors import ArgumentError, DataError
from resfit.evaluation import fitted_images
from resfit.tasks import preparation, steps
from resfit.tasks.config import FitOptions
from resfit.tasks.regression.objective import LOSSES, NumberObjective
from resfit.tasks.regression.regressor import COVERAGE, RegressionRecipe, Regressor, measured
from resfit.tasks.regression.results import ResidualIntervals
from resfit.tasks.regression.ridge import RidgeHead, fit_ridge
from resfit.tasks.steps import CheckedData, DecodedData, FitJob, ReadyTraining
from resfit.training import finetuning, frozen, recipes
from resfit.training.loop import check_choice

if TYPE_CHECKING:
    import keras

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
@on_device
def fit(source: Any, *, loss: str = "huber", **options: Any) -> Regressor:
    """Fits a regressor: ridge regression on the features of a frozen network, fine-tuning where there is time.

    Args:
        source: A table with the column of the number, or several; a folder whose folders or files say the number
            (``label_from``); or a pair ``(images, numbers)``.
        loss: As :class:`resfit.tasks.config.TrainingOptions` has it.
        **options: The fields of :class:`resfit.tasks.config.FitOptions`, and options of
            :func:`resfit.data.dataset.scan`: ``label_column`` names the number, or several with commas between them. By
            default images are not cropped at random in fine-tuning, since that changes sizes.

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
    check_choice("loss", loss, LOSSES)
    asked, scan_options = FitOptions.taken(options)
    if asked.precision not in ("float32", AUTO):
        raise ArgumentError(f"precision must be 'float32' for numbers. Received: {asked.precision!r}.")
    job = steps.scan(source, _TASK, asked, scan_options, head="ridge")
    decoded = steps.decode(job)
    data = steps.split_and_check(job, decoded)
    if data.checks is not None and not asked.allow_leakage:
        data.checks.require_no_leaks()
    learned, tuned = _learn(job, decoded, data, loss)

    images, test = data.images, data.parts.test
    assert images.values is not None
    result = None
    if len(test):
        tested = images.subset(test)
        enough = learned.residuals.count >= 9
        result = measured(
            images.values[test],
            learned.predicted,
            images.value_names,
            halves=learned.residuals.half_widths(COVERAGE) if enough else (),
            coverage=COVERAGE,
            groups=tested.groups,
            paths=tested.paths,
            skipped=data.skipped,
            seed=asked.seed,
        )
    job.journal.lap("measure")
    whole, features = _whole(learned.body, learned.head)
    regressor = Regressor(
        model=whole,
        columns=images.value_names,
        input_spec=job.plan.body.input_spec,
        recipe=RegressionRecipe(
            model=job.name,
            strategy="probe" if learned.tuned is None else learned.tuned.strategy,
            asked=asked.strategy,
            seed=asked.seed,
            test_share=asked.test_share,
            penalty=learned.head.penalty,
            folds=learned.head.folds,
            grouped=any(group is not None for group in images.groups),
            features=features,
            loss=loss,
            tuning=None if learned.tuned is None else learned.tuned.tuning.to_dict(),
        ),
        residuals=learned.residuals,
        metrics=steps.metrics(
            job,
            data,
            train=learned.train,
            held_out=None if learned.tuned is None else data.parts.val,
            test=result,
            tuned=tuned,
            metric="r2",
            ranges={
                column: [float(values.min()), float(values.max())]
                for column, values in zip(images.value_names, images.values[learned.train].T, strict=True)
            },
        ),
        fingerprint=images.fingerprint,
        versions=preparation.package_versions(),
        attachments={
            artifact.SKIPPED: data.skipped_table,
            artifact.TEST_PREDICTIONS: _test_table(images, test, learned.predicted),
            **fitted_images.listed(images.paths, test, asked.cache),
            **({} if tuned is None else tuned.files),
        },
    )
    packaged = steps.package(regressor, job, data, decoded.used, test=result, tuned=tuned)
    if job.options.folder is not None and decoded.used.engine == "openvino":  # which has been converted already
        packaged.keep_network(job.options.folder, images.paths)
    return packaged


@takes_numbers
@on_device
def plan(source: Any, *, hardware: recipes.Hardware | None = None, **options: Any) -> recipes.Recipe:
    """Says what :func:`fit` would do and how long it would take; see :func:`resfit.tasks.classification.fit.plan`."""
    return steps.planned(source, _TASK, *FitOptions.taken(options), hardware)


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


# a crop at random changes sizes and positions, which the numbers may be
_TASK = steps.ImageTask(("loss",), _check_trainable, numbers=True, defaults={"crop_scale": 1.0, "label_smoothing": 0.0})


def _learn(
    job: FitJob, decoded: DecodedData, data: CheckedData, loss: str
) -> tuple[LearnedNumbers, finetuning.TunedBody | None]:
    """Fits the head and, where that is asked for and there is time, fine-tunes; returns what is better."""
    plan, journal, values, parts = job.plan, job.journal, data.images.values, data.parts
    assert values is not None
    rows = _features(job, decoded, data.images)
    everything = np.sort(np.concatenate([parts.train, parts.val]))

    def ridge(positions: np.ndarray) -> RidgeHead:
        groups = [data.images.groups[position] for position in positions]
        return fit_ridge(rows[positions], values[positions], groups=groups, seed=plan.seed)

    tuned = None
    if plan.tunes:
        start = ridge(parts.train)
        journal.lap("head")
        ready = steps.prepare_training(job, decoded, data)
        if ready is not None:
            head, tuned = _tuned(start, steps.in_time_left(ready, job, data), values, parts, loss)
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
                return LearnedNumbers(tuned.body, head, predicted, residuals, parts.train, tuned), tuned
    head = ridge(everything)
    journal.lap("head")
    predicted = head(rows[parts.test]).astype(np.float64)
    truth = values[everything] if len(head.held_out) else np.zeros((0, values.shape[1]))
    residuals = ResidualIntervals.of(truth, head.held_out.reshape(truth.shape), "cross-validation")
    return LearnedNumbers(plan.body, head, predicted, residuals, everything), tuned


def _features(job: FitJob, decoded: DecodedData, images: ImageSet) -> np.ndarray:
    """Returns features of all images, computed now where they have not been through the whole network yet."""
    rows = np.asarray(decoded.used.rows)
    if rows.shape[1]:
        return rows
    positions = np.arange(len(images))
    if decoded.prepared is not None:
        rows = frozen.features(decoded.prepared, positions, job.running)
    else:
        assert decoded.pixels is not None
        rows = job.extract(list(images.paths), pixels=decoded.pixels.at(positions)).rows
    job.journal.lap("features")
    return np.asarray(rows)


def _tuned(
    start: RidgeHead, ready: ReadyTraining, values: np.ndarray, parts: Split, loss: str
) -> tuple[RidgeHead, finetuning.TunedBody]:
    """Fine-tunes a network on standardised numbers, and returns the head in the numbers' own units."""

    mean, spread = values[parts.train].mean(axis=0), values[parts.train].std(axis=0)
    spread = np.where(spread > 0, spread, 1.0)
    targets = ((values - mean) / spread).astype(np.float32)
    layers: list[keras.layers.Dense] = []

    def attach(body: keras.Model) -> tuple[keras.Model, list[Any]]:
        whole, dense = _with_head(body, start.kernel / spread, (start.bias - mean) / spread)
        layers.append(dense)
        return whole, [dense]

    objective = NumberObjective(targets, loss)
    found = finetuning.finetune(
        ready.prepared, attach, objective, targets, parts, ready.settings, ready.running, folder=ready.folder
    )
    kernel, bias = (np.asarray(weight, np.float64) for weight in layers[0].get_weights())
    head = RidgeHead(
        (kernel * spread).astype(np.float32), (bias * spread + mean).astype(np.float32), start.penalty, start.folds
    )
    return head, found


def _with_head(body: keras.Model, kernel: np.ndarray, bias: np.ndarray) -> tuple[keras.Model, keras.layers.Dense]:
    """Returns a network with a linear head as one Keras model, and the head."""
    import keras

    taken = {layer.name for layer in body.layers}
    name = "values" if "values" not in taken else f"values_{len(body.layers)}"
    dense = keras.layers.Dense(len(bias), dtype="float32", name=name)
    whole = keras.Model(body.inputs, dense(body.outputs[0]), name=body.name)
    dense.set_weights([kernel, bias])
    return whole, dense


def _whole(body: keras.Model, head: RidgeHead) -> tuple[keras.Model, str]:
    """Returns a network with its head as one Keras model, and the name of the layer that the head reads."""
    whole, _ = _with_head(body, head.kernel, head.bias)
    for attribute in ("architecture", "input_spec"):
        if hasattr(body, attribute):
            setattr(whole, attribute, getattr(body, attribute))
    return whole, body.layers[-1].name


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
