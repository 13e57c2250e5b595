"""Fits a classifier to a folder of images, or says what that would take."""

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
from resfit.data import class_names
from resfit.data import dataset as image_sets
from resfit.data import rare as rare_classes
from resfit.data.inputs import takes_arrays
from resfit.data.medical import privacy, scans
from resfit.errors import ArgumentError, DataError
from resfit.evaluation import reference_images
from resfit.evaluation import reference_selection as kept_images
from resfit.evaluation.calibrated import calibrate
from resfit.evaluation.inference import measured, right
from resfit.features import extract as feature_store
from resfit.features.progress import Progress
from resfit.numerics import activated
from resfit.preprocessing import Reading
from resfit.tasks import backbone, preparation
from resfit.tasks.base import FitRun
from resfit.tasks.classification import fit_report
from resfit.tasks.classification.classifier import Classifier
from resfit.tasks.classification.data_preparation import material_of
from resfit.tasks.classification.fit_pipeline import FitPipeline
from resfit.tasks.classification.heads import base
from resfit.tasks.decoding import look
from resfit.tasks.fit_plan import FitPlan, check_arguments, facts, scan_options_for, subsample_to_budget
from resfit.tasks.preparation import DataChecker, check_skipped, likely_references, split
from resfit.tasks.timings import Timings
from resfit.training import callbacks as callback_list
from resfit.training import recipes, runs
from resfit.training.loop import check_choice
from resfit.training.settings import Tuning

if TYPE_CHECKING:
    import keras


@takes_arrays
def fit(
    source: Any,
    *,
    model: str | keras.Model = backbone.DEFAULT_MODEL,
    out: str | os.PathLike[str] | None = None,
    force: bool = False,
    strategy: str = "auto",
    head: str = "linear",
    budget: str | float | None = None,
    trainable_from: int | float | str | None = None,
    tuning: Tuning | Mapping[str, Any] | None = None,
    balance: bool = False,
    label_smoothing: float | None = None,
    focal: float = 0.0,
    label_separator: str | None = None,
    teacher: str | os.PathLike[str] | None = None,
    lr_find: bool = False,
    storage: int | None = None,
    tensorboard: bool = True,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    references: bool | None = None,
    seed: int = 0,
    engine: str = "auto",
    precision: str = "float32",
    cache: bool | str | Path = True,
    max_skipped: float = 0.10,
    test_share: float = 0.2,
    val_share: float = 0.15,
    rare: str = "drop",
    check: bool = True,
    allow_leakage: bool = False,
    batch_size: int | None = None,
    channels: int | None = None,
    reading: Reading | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
    **scan_options: Any,
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
        model: A name of the zoo or a source that :func:`resfit.load` takes, or a Keras model that gives one vector an
            image and has an ``input_spec``. It is not changed.
        out: Folder to write the classifier to; ``None`` keeps it in memory. An earlier classifier there is replaced,
            which is said in ``run.notes``; anything else is refused.
        force: Whether files of yours that lie in an earlier classifier's folder may be deleted with it.
        strategy: ``"probe"``; ``"finetune"``, the last stages or those from ``trainable_from`` on; ``"full"``, the
            whole network; or ``"auto"``: the probe first (of up to 10,000 images where the whole network is to follow),
            then, given a ``budget``, fine-tuning within it, and the one that is better on the validation images.
        head: ``"linear"``, multinomial logistic regression; ``"mlp"``, one hidden layer of 1024; for a few images a
            class ``"nearest_mean"`` or ``"knn"``, with a probe alone.
        budget: Time for everything, such as ``"10m"``, ``"90s"`` or a number of minutes; ``None`` is no limit, and
            ``"auto"`` then stays with the probe. Where there are more images than can be looked at in this time, a
            part of each class is learned from, and ``metrics["images"]["left_out"]`` says how many are not.
        trainable_from: First layer that learns, as :func:`resfit.training.boundary.resolve` takes it; ``None`` leaves
            it to the recipe.
        tuning: Settings of the fine-tuning; a mapping overrules single ones of the recipe
            (:func:`resfit.training.recipes.recipe`), or in a probe those of the mlp head.
        balance: Whether each class counts the same in the loss, however many images it has.
        label_smoothing: Share of the target that is spread over all classes; ``None`` is none for a probe, and the
            recipe's in fine-tuning.
        focal: gamma of the focal loss, for the mlp head and for fine-tuning.
        label_separator: Where an image may have several labels, what stands between them in the label column or in the
            folder's name, such as ``";"``. Columns of 0 and 1 need none.
        teacher: A larger network, or the folder of a classifier of the same classes, whose predictions are learned as
            well in fine-tuning (distillation).
        lr_find: Whether a range test chooses the learning rate before the fine-tuning; its curve is kept as a picture.
        storage: Bytes that outputs of the frozen part may take up on disk; ``None`` is 20 GB, and in any case no more
            than half of what is free. Above that they are computed in every epoch.
        tensorboard: Whether the training writes TensorBoard's files, if that is installed.
        callbacks: Keras' callbacks, told of each epoch and step of fine-tuning; ``EarlyStopping`` and its kind may end
            it. A probe has no epochs. Their model's weights are those that learn, not their moving average.
        references: Whether up to 1,000 training images, as features and thumbnails without names, are kept in the
            classifier: nearest examples come from them, and the better way to tell images that are unlike them.
            ``None`` keeps them unless they are medical.
        seed: Seed of the split, of the cross-validation and of the training.
        engine: As :func:`resfit.engines.create` takes it.
        precision: Of the arithmetic of a probe's features, ``"float32"``, ``"bfloat16"`` or ``"int8"``, as
            :func:`resfit.engines.create` takes it. The classifier computes in float32 and is measured so: test images
            get features in float32 too, and where the head loses more than half a point of accuracy and more than one
            image by the change, all images do.
        cache: ``True`` for resfit's own cache folder, ``False`` for none, or a folder.
        max_skipped: Largest fraction of unreadable images, in [0, 1].
        test_share: Share of the images set aside for the measurement, in [0, 1), where the data has no test split;
            0 measures nothing.
        val_share: Share of the other images set aside to choose the epoch on, in (0, 1), where the data has no such
            split and something is fine-tuned. A probe chooses by cross-validation and learns from them as well.
        rare: What becomes of classes of one or two images: ``"drop"`` leaves them out, ``"other"`` makes one class of
            them, ``"error"`` refuses the data. What was done is a warning.
        check: Whether the images are checked in the same pass (:mod:`resfit.quality.checking`); what is found stands in
            ``metrics["checks"]``. Duplicates are then kept on one side of a split that the data does not state.
        allow_leakage: Whether to continue although images, or near duplicates of them, are in both training and test
            set.
        batch_size: Images in one pass of the frozen network; ``None`` chooses by their size.
        channels: 1 for grey images, 3 for colour; ``None`` is what the network was trained on. Grey is repeated for a
            network of three channels.
        reading: How scans (DICOM, NIfTI) become pictures: frame, window, plane, spacing; ``None`` is the usual way.
        progress: Called as images get done.
        say: Called with lines for people, such as where the outputs of the frozen part go.
        **scan_options: Further options of :func:`resfit.data.dataset.scan`, such as the columns of a CSV file,
            ``label_from``, ``train`` and ``test``.

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
    callback_list.check(callbacks)
    journal = Timings(say)
    minutes = check_arguments(strategy, budget, max_skipped, test_share, val_share, out, force, journal.warn)
    check_choice("head", head, tuple(base.HEADS))
    engines.check_name(engine)
    engines.check_precision(precision)
    engines.check_installed(engine, precision)
    images = image_sets.scan(source, label_separator=label_separator, **scan_options_for(fit, reading, scan_options))
    every = images.classes
    images, said = rare_classes.settled(images, rare)
    few = {"choice": rare, "classes": sorted({*every} - {*images.classes})} if said else None
    if said:
        journal.warn(said)
    image_sets.check_trainable(images)
    class_names.check(images.classes)
    for assumed in images.notes:
        journal.note(assumed)
    journal.lap("scan")
    body, name = backbone.body_of(model, channels, reading)
    journal.lap("load network")
    unusable, ignored, listed = images.skipped, images.ignored, len(images)
    images, left_out = subsample_to_budget(
        images, getattr(body, "architecture", None), body.input_spec.size, minutes, seed
    )
    if left_out:
        journal.note(left_out)
    if images.medical:
        journal.note(scans.NOTICE)
    options = {"balance": balance, "focal": focal, "label_smoothing": label_smoothing}
    choice = FitPlan(body, strategy, minutes, trainable_from, tuning, seed, head, lr_find, options, teacher is not None)
    choice.open_record(images, out, cache)
    if choice.tunes and head not in ("linear", "mlp"):
        raise ArgumentError(f"heads that are trained with the network are 'linear' and 'mlp'. Received: {head!r}.")
    if precision != "float32" and not choice.probes:
        raise ArgumentError(f"precision is of a probe's features. Received: {precision!r} for strategy={strategy!r}.")
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
    wants_references = (not images.medical) if references is None else references
    sampling_order = reference_images.sampling_order(len(images), seed)
    pictured: list[int] = []
    if wants_references and cache:
        pictured = likely_references(images, body.output_shape[-1], sampling_order)
    count = len(split(images, val_share, test_share, seed).train) if choice.tunes else 0
    looked = look(
        images, extract, choice, running, journal, count=count, precision=precision, pictured=pictured, out=out
    )
    used = looked.used
    found = len(images) + len(unusable)
    skipped = privacy.shown_skipped(images, (*unusable, *used.skipped))
    skipped_csv = preparation.skipped_table(skipped, ignored, medical=images.medical)
    check_skipped(skipped, found, max_skipped, skipped_csv, None if out is None else Path(out))

    kept = images.subset(used.indices)
    checker = DataChecker(kept, used) if check else None
    parts = split(checker.together if checker else kept, val_share if choice.tunes else 0.0, test_share, seed)
    if choice.tunes and not len(parts.val):
        raise DataError("fine-tuning needs validation images, and the data is too small to set some aside.")
    data = material_of(kept, parts)

    learner = FitPipeline(data, looked, extract, choice, running, journal)
    learner.begin()
    checked = None
    if checker is not None:
        checked = dataclasses.replace(checker.examine(seed, skipped), ignored=preparation.by_rule(ignored))
        if learner.head is not None and checked.leaks:
            guesses = np.asarray(learner.head.probabilities(learner.rows[parts.test]))
            checked = checked.measured_leaks(parts.test, right(guesses, data.targets[parts.test], data.multilabel))
        if not allow_leakage:
            checked.require_no_leaks()
        journal.lap("checks")
    learner.tune(teacher, out)
    learned, tuned = learner.keep(), learner.tuned

    spared, activation = learned.spared, learned.head.activation
    calibration = calibrate(spared.logits, data.targets[spared.positions], activation, learned.source)
    probabilities = activated(learned.logits / np.float32(calibration.temperature), activation)
    result = None
    if len(parts.test):
        groups = data.images.subset(parts.test).groups
        result = measured(
            data.targets[parts.test], probabilities, data.classes, data.multilabel, skipped, groups=groups, seed=seed
        )
    journal.lap("measure")
    files = kept_images.attachments(
        learned.features,
        data.targets,
        kept.paths,
        learned.train,
        held_out=learned.held_out,
        logits=spared.logits / np.float32(calibration.temperature),
        multilabel=data.multilabel,
        references=wants_references,
        cache=cache,
        sampling_order=sampling_order[used.indices],
        seed=seed,
    )
    journal.lap("references")

    classifier = Classifier(
        model=base.attach(learned.network, learned.head)[0],
        classes=data.classes,
        input_spec=body.input_spec,
        recipe=fit_report.recipe_of(
            data,
            learned,
            model=name,
            seed=seed,
            test_share=test_share,
            asked=strategy,
            head=head,
            precision=learner.precision if learned.tuned is None else "float32",
        ),
        metrics=fit_report.metrics(
            data,
            learned,
            found,
            skipped,
            tuned,
            checked,
            result,
            listed - len(images),
            preparation.by_rule(ignored),
            choice.to_dict(),
        ),
        fingerprint=kept.fingerprint,
        versions=preparation.package_versions(),
        attachments={
            artifact.SKIPPED: skipped_csv,
            artifact.TEST_PREDICTIONS: fit_report.test_table(data, probabilities),
            **files,
            **learner.files,
        },
        calibration=calibration,
    )
    if few is not None:
        classifier.metrics["rare"] = few
    if out is not None:
        classifier.save(out, force=force)
    if tuned is not None and learner.folder is not None:  # the run is in the classifier now
        shutil.rmtree(learner.folder, ignore_errors=True)
    choice.record.close()
    journal.lap("save")
    classifier.run = FitRun(
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
    return classifier


@takes_arrays
def plan(
    source: Any,
    *,
    model: str | keras.Model = backbone.DEFAULT_MODEL,
    strategy: str = "auto",
    budget: str | float | None = None,
    seed: int = 0,
    test_share: float = 0.2,
    val_share: float = 0.15,
    rare: str = "drop",
    hardware: recipes.Hardware | None = None,
    reading: Reading | None = None,
    **scan_options: Any,
) -> recipes.Recipe:
    """Says what :func:`fit` would do and how long it would take, without doing it.

    The images are counted, not decoded, and the network is not loaded.

    Args:
        source: As :func:`fit` takes it.
        model: As :func:`fit` takes it.
        strategy: As :func:`fit` takes it.
        budget: As :func:`fit` takes it.
        seed: As :func:`fit` takes it.
        test_share: As :func:`fit` takes it.
        val_share: As :func:`fit` takes it.
        rare: As :func:`fit` takes it.
        hardware: The machine; ``None`` measures this one.
        reading: As :func:`fit` takes it.
        **scan_options: As :func:`fit` takes them.
    """
    minutes = check_arguments(strategy, budget, 0.0, test_share, val_share, None)
    images = image_sets.scan(source, **scan_options_for(fit, reading, scan_options))
    images, few = rare_classes.settled(images, rare)
    image_sets.check_trainable(images)
    spec, size = backbone.described(model)
    images, left_out = subsample_to_budget(images, spec, size, minutes, seed)
    parts = split(images, val_share, test_share, seed)
    known = facts(images, len(parts.train), spec, size)
    found = recipes.recipe(known, hardware or recipes.measure_hardware(), strategy=strategy, minutes=minutes, seed=seed)
    said = [*images.notes, *filter(None, (few, left_out))]
    return dataclasses.replace(found, reasons=(*said, *found.reasons)) if said else found
