"""Fits a classifier to a folder of images, or says what that would take."""

from __future__ import annotations

import dataclasses
import inspect
import os
from typing import Any

import numpy as np

from resfit import artifact
from resfit.data import class_names, dataset
from resfit.data import rare as rare_classes
from resfit.data.dataset import ImageSet
from resfit.data.inputs import takes_arrays
from resfit.devices import on_device
from resfit.engines.auto_precision import AUTO
from resfit.errors import ArgumentError
from resfit.evaluation import fitted_images, reference_images
from resfit.evaluation import reference_selection as kept_images
from resfit.evaluation.calibrated import calibrate
from resfit.evaluation.inference import measured, right
from resfit.numerics import activated
from resfit.tasks import preparation, steps
from resfit.tasks.classification import fit_report
from resfit.tasks.classification.classifier import Classifier
from resfit.tasks.classification.data_preparation import TrainingData, material_of
from resfit.tasks.classification.fit_pipeline import FitPipeline
from resfit.tasks.classification.heads import base
from resfit.tasks.config import FitOptions, check_ranges
from resfit.tasks.steps import CheckedData
from resfit.training import recipes
from resfit.training.loop import check_choice


@takes_arrays
@on_device
def fit(
    source: Any,
    *,
    head: str = "linear",
    balance: bool = False,
    label_smoothing: float | None = None,
    focal: float = 0.0,
    teacher: str | os.PathLike[str] | None = None,
    references: bool | None = None,
    rare: str = "drop",
    **options: Any,
) -> Classifier:
    """Fits a classifier to a folder of images.

    A **probe** runs the images through the frozen network once, keeps their features on disk, and fits a linear head,
    whose regularisation is chosen by cross-validation on the training images. **Fine-tuning** starts there: what stays
    frozen is computed once, the rest is trained, and the epoch that is best on validation images is kept; epoch 0 is
    the probe. Both are measured on test images that nothing was chosen on.

    A call that was killed is resumed by the same call: features, outputs of the frozen part and checkpoints of the
    training are on disk, the last ones beside ``out``, or in the cache without it.

    Args:
        source: A folder of class folders, one with ``train``, ``val`` and ``test`` in it, or a CSV file of
            ``path,label[,split,group]``; files that hold images (tar, zip, Parquet, Arrow, TFRecord), also in clouds
            (``s3://…``); or a pair ``(images, labels)``, images as :meth:`Classifier.predict` takes them and for each a
            label, text or a whole number; or a DataFrame or data set (:mod:`resfit.data.objects`).
        head: As :class:`resfit.tasks.config.ModelOptions` has it.
        balance: As :class:`resfit.tasks.config.TrainingOptions` has it.
        label_smoothing: As :class:`resfit.tasks.config.TrainingOptions` has it.
        focal: As :class:`resfit.tasks.config.TrainingOptions` has it.
        teacher: As :class:`resfit.tasks.config.ModelOptions` has it.
        references: As :class:`resfit.tasks.config.ModelOptions` has it.
        rare: As :class:`resfit.tasks.config.DataOptions` has it.
        **options: The fields of :class:`resfit.tasks.config.FitOptions`, and options of
            :func:`resfit.data.dataset.scan`, such as the columns of a CSV file, ``label_from``, ``train`` and ``test``.

    Returns:
        The classifier.

    Raises:
        ArgumentError: An argument breaks its rule, or ``out`` holds something else.
        DataError: The images cannot be trained on, or too many are unusable; these are listed in ``skipped.csv``. Or
            the data states images in both training and test set.

    Example:
        >>> clf = resfit.fit("photos/", model="resnet50", out="photos.resfit", budget="10m")
        >>> clf.metrics["test"]["accuracy"]
        0.93
    """
    check_choice("head", head, tuple(base.HEADS))
    check_ranges({"focal": focal, "label_smoothing": label_smoothing})
    asked, scan_options = FitOptions.taken(options)
    own = {"balance": balance, "focal": focal, "label_smoothing": label_smoothing}
    job = steps.scan(source, _task(rare), asked, scan_options, head=head, head_options=own, teaches=teacher is not None)
    if job.plan.tunes and head not in ("linear", "mlp"):
        raise ArgumentError(f"heads that are trained with the network are 'linear' and 'mlp'. Received: {head!r}.")
    if asked.precision not in ("float32", AUTO) and not job.plan.probes:
        raise ArgumentError(
            f"precision is of a probe's features. Received: {asked.precision!r} for strategy={asked.strategy!r}."
        )
    wants_references = (not job.images.medical) if references is None else references
    sampling_order = reference_images.sampling_order(len(job.images), asked.seed)
    pictured: list[int] = []
    if wants_references and asked.cache:
        pictured = steps.likely_references(job.images, job.plan.body.output_shape[-1], sampling_order)

    decoded = steps.decode(job, pictured)
    checked = steps.split_and_check(job, decoded)
    data = material_of(checked.images, checked.parts)

    pipeline = FitPipeline(job, decoded, checked, data)
    pipeline.begin()
    checked = _without_leaks(checked, data, pipeline, allowed=asked.allow_leakage)
    pipeline.tune(teacher)
    learned, tuned = pipeline.keep(), pipeline.tuned

    spared, activation = learned.spared, learned.head.activation
    calibration = calibrate(spared.logits, data.targets[spared.positions], activation, learned.source)
    probabilities = activated(learned.logits / np.float32(calibration.temperature), activation)
    result = None
    if len(data.parts.test):
        groups = data.images.subset(data.parts.test).groups
        result = measured(
            data.targets[data.parts.test],
            probabilities,
            data.classes,
            data.multilabel,
            checked.skipped,
            groups=groups,
            seed=asked.seed,
        )
    job.journal.lap("measure")
    files = kept_images.attachments(
        learned.features,
        data.targets,
        data.images.paths,
        learned.train,
        held_out=learned.held_out,
        logits=spared.logits / np.float32(calibration.temperature),
        multilabel=data.multilabel,
        references=wants_references,
        cache=asked.cache,
        sampling_order=sampling_order[decoded.used.indices],
        seed=asked.seed,
    )
    job.journal.lap("references")
    classifier = Classifier(
        model=base.attach(learned.network, learned.head)[0],
        classes=data.classes,
        input_spec=job.plan.body.input_spec,
        recipe=fit_report.recipe_of(
            data,
            learned,
            model=job.name,
            seed=asked.seed,
            test_share=asked.test_share,
            asked=asked.strategy,
            head=head,
            precision=pipeline.precision if learned.tuned is None else "float32",
        ),
        metrics=steps.metrics(
            job,
            checked,
            train=learned.train,
            held_out=learned.held_out,
            test=result,
            tuned=tuned,
            metric="accuracy",
            cross_validation=fit_report.cross_validation(learned),
        ),
        fingerprint=data.images.fingerprint,
        versions=preparation.package_versions(),
        attachments={
            artifact.SKIPPED: checked.skipped_table,
            artifact.TEST_PREDICTIONS: fit_report.test_table(data, probabilities),
            **fitted_images.listed(data.images.paths, data.parts.test, asked.cache),
            **files,
            **({} if tuned is None else tuned.files),
        },
        calibration=calibration,
    )
    classifier.metrics["machine"]["precision"]["features"] = pipeline.precision  # not what was given up
    if job.changed_classes:
        classifier.metrics["rare"] = {"choice": rare, "classes": list(job.changed_classes)}
    packaged = steps.package(classifier, job, checked, decoded.used, test=result, tuned=tuned)
    if job.options.folder is not None and decoded.used.engine == "openvino":  # which has been converted already
        packaged.keep_network(job.options.folder, checked.images.paths)
    return packaged


@takes_arrays
@on_device
def plan(
    source: Any, *, rare: str = "drop", hardware: recipes.Hardware | None = None, **options: Any
) -> recipes.Recipe:
    """Says what :func:`fit` would do and how long it would take, without doing it.

    The images are counted, not decoded, and the network is not loaded.

    Args:
        source: As :func:`fit` takes it.
        rare: As :func:`fit` takes it.
        hardware: The machine; ``None`` measures this one.
        **options: As :func:`fit` takes them.
    """
    return steps.planned(source, _task(rare), *FitOptions.taken(options), hardware)


def _check_images(images: ImageSet) -> None:
    """Refuses images that no classifier can be trained on."""
    dataset.check_trainable(images)
    class_names.check(images.classes)


def _task(rare: str) -> steps.ImageTask:
    """What this task says of its data."""
    return steps.ImageTask(
        tuple(inspect.signature(fit).parameters),
        _check_images,
        settle=lambda images: rare_classes.settled(images, rare),
        reduces=True,
    )


def _without_leaks(checked: CheckedData, data: TrainingData, pipeline: FitPipeline, *, allowed: bool) -> CheckedData:
    """Says how well test images are classified that are in the training set too, and stops where there are some."""
    checks, parts, head = checked.checks, checked.parts, pipeline.head
    if checks is None:
        return checked
    if head is not None and checks.leaks:
        guesses = np.asarray(head.probabilities(pipeline.rows[parts.test]))
        checks = checks.measured_leaks(parts.test, right(guesses, data.targets[parts.test], data.multilabel))
    if not allowed:
        checks.require_no_leaks()
    return dataclasses.replace(checked, checks=checks)
