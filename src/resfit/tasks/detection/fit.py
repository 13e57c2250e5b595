"""Fits a detector to pictures with boxes, or says what that would take."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import inspect
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resfit import artifact, dependencies, devices, engines
from resfit.data.box_statistics import box_statistics
from resfit.data.box_views import BoxViews
from resfit.data.boxes import BoxSet, SkippedBoxesError, scan_boxes, skipped_table
from resfit.devices import on_device
from resfit.engines.speed import FOLDER as SPEED_FOLDER
from resfit.errors import ArgumentError, DataError, closest
from resfit.evaluation import fitted_images
from resfit.features.progress import Progress
from resfit.networks.detection.kinds import QueryDetectorSpec
from resfit.quality.checking import leaks_between
from resfit.storage.atomic import write_text
from resfit.storage.locks import USERS, folder_of, is_writable, keep, scratch
from resfit.tasks.base import FitRun
from resfit.tasks.detection import calibration, network, pretrained, validation
from resfit.tasks.detection.detector import Detector
from resfit.tasks.detection.feeds import PictureChanges, PictureFeed, StoredMapFeed
from resfit.tasks.detection.fit_plan import DetectionPlan, make_plan
from resfit.tasks.detection.material import Material, prepare, stored_views
from resfit.tasks.detection.objectives import DetectionObjective, objective_of
from resfit.tasks.detection.phases import PhaseSettings
from resfit.tasks.detection.results import DetectorRecipe
from resfit.tasks.detection.tiles import Tiling, cut_set, sides_of
from resfit.tasks.detection.training import DetectorTrainer, History, Phase
from resfit.tasks.preparation import package_versions
from resfit.tasks.timings import Timings
from resfit.training import loop
from resfit.training.callbacks import check as check_callbacks
from resfit.training.recipes import parse_minutes
from resfit.weights.detectors import DetectorSource
from resfit.wording import counted

if TYPE_CHECKING:
    import keras

#: What is trained on where nothing else is asked for.
DEFAULT_MODEL = "resnet10_tiny"
_MOST_VALIDATED = 500  # validation pictures that are looked at while it trains
_MOST_TEST_FILES = 1000  # whose names are kept for the verification of exports


@on_device
def fit(
    source: Any,
    *,
    model: str | keras.Model = DEFAULT_MODEL,
    out: str | os.PathLike[str] | None = None,
    force: bool = False,
    strategy: str = "auto",
    budget: str | float | None = None,
    size: int | tuple[int, int] | None = None,
    views: int | None = None,
    tiles: int | tuple[int, int] | None = None,
    tuning: Mapping[str, Any] | None = None,
    head: Mapping[str, Any] | None = None,
    seed: int = 0,
    engine: str = "auto",
    device: str = "auto",
    deterministic: bool = False,
    cache: bool | str | Path = True,
    storage: int | None = None,
    max_skipped: float = 0.10,
    test_share: float = 0.15,
    val_share: float = 0.15,
    channels: int | None = None,
    batch_size: int | None = None,
    check: bool = True,
    allow_leakage: bool = False,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
    clock: Callable[[], float] = time.monotonic,
    stop: Callable[[int], bool] | None = None,
    **scan_options: Any,
) -> Detector:
    """Fits a detector to pictures with boxes.

    The frozen body of a residual network runs once over each view of the pictures, and its maps at strides 8, 16 and 32
    are stored. Pyramid and head learn from them. Then, as the budget allows, the last stages learn on freshly changed
    pictures, or the whole network. What is kept are the weights with the best AP on validation pictures, so that no
    phase makes it worse. A call that was killed is resumed by the same call.

    Args:
        source: As :func:`resfit.data.boxes.scan_boxes` takes it, or a :class:`resfit.data.boxes.BoxSet`.
        model: A name of the zoo or a source that :func:`resfit.load` takes, or a model of its. It is not changed. Of a
            published detector all is kept but the class layer, which is fresh, unless the classes are its own; of a
            residual network a pyramid and head are made.
        out: Folder to write the detector to; ``None`` keeps it in memory.
        force: As :func:`resfit.artifact.check_target` takes it.
        strategy: What learns: ``"head"``, pyramid and head alone; ``"last"``, the last stages as well; ``"full"``, the
            whole network as well; ``"auto"`` as much as budget and data allow.
        budget: Time for everything, such as ``"10m"``, ``"90s"`` or a number of minutes; ``None`` is no limit.
        size: Height and width of the input in pixels, or one number for both; ``None`` chooses by the boxes' sizes.
        views: Stored views of each picture, the plain one included; ``None`` chooses by data, room and budget.
        tiles: Height and width in pixels of overlapping tiles that pictures are cut into, for training and for all
            predictions of the detector; one number for both. ``None`` takes each picture as a whole.
        tuning: Settings that overrule those of the phases: fields of
            :class:`resfit.tasks.detection.phases.PhaseSettings`.
        head: Fields of the pyramid and head that overrule those chosen, such as ``{"head_width": 128}``
            (:class:`resfit.networks.detection.spec.DetectorSpec`). ``{"pretrained": False}`` begins with fresh weights
            where there are pretrained ones: those in the package for ``resnet10_tiny``, trained on drawn scenes, and
            those of a published detector, of which it takes the residual network alone.
        seed: Seed of the split, the fresh weights and all changes.
        engine: As :func:`resfit.engines.create` takes it, for the frozen body.
        device: What computes, as :func:`resfit.devices.find` takes it.
        deterministic: Whether a GPU gives the same bits each time, too.
        cache: Where maps and checkpoints are kept: ``True`` for resfit's own cache, ``False`` for nowhere, or a folder.
        storage: Bytes that stored maps may take up; ``None`` is 20 GB, and in any case no more than half of what is
            free. Above that the body runs in every epoch.
        max_skipped: Largest share of boxes, and of pictures, that may be unusable.
        test_share: Share of the pictures that measures, where the data states no split.
        val_share: Share that choices are made on, likewise.
        channels: 1 or 3; ``None`` is what the network was trained on.
        batch_size: Pictures a training step; ``None`` chooses 2 to 8 by the time there is.
        check: Whether the data is looked at for duplicates and leaks.
        allow_leakage: Whether to go on although test pictures are in the training set too.
        callbacks: Keras' callbacks, told of each step, and of each validation as the end of an epoch, with ``loss``,
            ``val_ap`` and ``val_ap50``; ``EarlyStopping`` and its kind may end the training.
        progress: Called as pictures get done.
        say: Called with lines for people.
        clock: Seconds for the budget.
        stop: Called after each training step; where it returns True the run ends as if it had been killed.
        **scan_options: Of :func:`resfit.data.boxes.scan_boxes`.

    Returns:
        The detector; its ``run`` says what was done, ``metrics["test"]`` how good it is on pictures that nothing was
        chosen on.

    Raises:
        ArgumentError: An argument breaks its rule.
        DataError: The pictures cannot be trained on.

    Example:
        >>> detector = resfit.fit("cells/", budget="10m")  # doctest: +SKIP
        >>> detector.metrics["test"]["metrics"]["ap50"]  # doctest: +SKIP
        0.91
    """
    dependencies.require_tensorflow_backend("fitting a detector")
    began = clock()
    timings = Timings(say)
    target = None if out is None else Path(out)
    if target is not None and (replaced := artifact.check_target(target, force=force)):
        timings.note(replaced)
    boxes = _scanned(source, target, max_skipped, scan_options)
    for warning in boxes.warnings:
        timings.note(warning)
    if boxes.skipped_counts:
        listed = ", ".join(f"{count} {reason}" for reason, count in boxes.skipped_counts.items())
        timings.note(f"left out of boxes and pictures: {listed}; all are listed in {artifact.SKIPPED}")
    check_callbacks(callbacks)
    tiling = None if tiles is None else Tiling(sides_of(tiles))
    stack = contextlib.ExitStack()
    pictures, owners = boxes, np.arange(len(boxes))
    if tiling is not None:
        boxes, owners = cut_set(pictures, tiling, stack.enter_context(scratch()))
        size = tiling.side if size is None else size
        timings.note(
            f"{len(pictures)} pictures are cut into {len(boxes)} tiles of {tiling.side[1]}x{tiling.side[0]} pixels"
        )
    published = None if (head or {}).get("pretrained") is False else pretrained.source_of(model)
    base = model if published is not None else network.opened(model, channels)
    plan = make_plan(
        boxes,
        network.architecture_of(base) if published is None else published.spec,
        strategy=strategy,
        minutes=parse_minutes(budget),
        size=size,
        views=views,
        head=dict(head or {}),
        batch_size=batch_size,
        storage=storage,
        folder=folder_of(cache),
        packaged=model == network.PACKAGED_HEAD,
        measured=_measured_in(target, cache),
    )
    for reason in plan.reasons:
        timings.note(reason)
    if cards := devices.current().cards:
        timings.note(f"the detector trains on the first of {len(cards)} cards; all compute what is frozen")
    timings.lap("scan")
    with stack:
        if published is not None:
            whole = pretrained.with_classes(published, boxes.classes, channels, seed)
            made = network.of_detector(whole, plan.size, **plan.head)
            timings.note(_kept(published, boxes.classes))
        else:
            made = network.build(
                base,
                len(boxes.classes),
                plan.size,
                channels=channels,
                seed=seed,
                pretrained_head=plan.pretrained_head,
                **plan.head,
            )
        if made.pretrained_head:
            timings.note(
                "pyramid and head begin with the weights in the package, which were trained on drawn scenes "
                "(head={'pretrained': False} begins afresh)"
            )
        rows_of, shapes = network.row_model(made)
        timings.lap("network")
        options: dict[str, Any] = {"engine": engine, "cache": cache, "progress": progress, "dtype": "float16"}
        material = prepare(boxes, rows_of, val=val_share, test=test_share, seed=seed, **options)
        if check:
            _look(material, timings, allow_leakage=allow_leakage)
        timings.lap("maps")
        objective = objective_of(made.spec, plan.size)
        work = _Work(made, rows_of, shapes, objective, material, plan, timings, clock, began)
        history = work.train(
            model,
            options,
            seed=seed,
            tuning=dict(tuning or {}),
            target=target,
            cache=cache,
            stop=stop,
            callbacks=callbacks,
        )
        timings.lap("training")
        detector = work.calibrated(history, model, seed)
        detector.metrics["machine"]["deterministic"] = deterministic
        tested = np.unique(owners[material.indices[material.parts.test]])
        if tiling is not None:
            detector.recipe = dataclasses.replace(detector.recipe, tiles=tiling.side)
        detector = work.measured(detector, history, pictures.subset(tested), pictures)
        detector._attachments |= fitted_images.listed(pictures.paths, tested, cache)
        timings.lap("measurement")
    if target is not None:
        detector.save(target, force=force)
        work.forget()
    timings.lap("saving")
    return detector


def _kept(source: DetectorSource, classes: tuple[str, ...]) -> str:
    """What of a published detector is kept, as a sentence."""
    if tuple(source.class_names or ()) == classes:
        return f"{source.name} learns further, with its own classes"
    fresh = counted(len(classes), "class", "classes")
    return (
        f"of {source.name} all is kept but the class layer, which is fresh for {fresh} "
        "(head={'pretrained': False} takes its residual network alone)"
    )


def _look(material: Material, timings: Timings, *, allow_leakage: bool) -> None:
    """Says what is odd about the pictures, and stops where test pictures are learned from."""
    leaks = leaks_between(material.same, material.boxes.splits)
    copies = [(test, other) for test, other, kind in leaks if kind == "exact"]
    if copies and not allow_leakage:
        names = [material.boxes.paths[position].name for position in copies[0]]
        raise DataError(
            f"{counted(len(copies), 'test picture')} must not be in the training set too. Received: {names[0]}, an "
            f"exact copy of {names[1]}. `resfit check` lists them: remove them, or pass "
            "--allow-leakage (allow_leakage=True)."
        )
    if leaks:
        timings.warn(
            f"in both training and test set: {counted(len({test for test, *_ in leaks}), 'test picture')}, such as "
            f"{material.boxes.paths[leaks[0][0]].name}: the figures are too good. `resfit check` lists them."
        )
    numbers = box_statistics(material.boxes, (320, 320))
    if numbers.contradiction_count:
        timings.note(
            f"{counted(numbers.contradiction_count, 'pair')} of boxes cover each other with different classes: "
            "`resfit check` lists them"
        )
    if numbers.missing_in_training:
        timings.warn(f"no training picture has a box of {', '.join(map(repr, numbers.missing_in_training))}.")


@on_device
def plan(source: Any, *, model: str | keras.Model = DEFAULT_MODEL, **options: Any) -> DetectionPlan:
    """Says what :func:`fit` would do, without doing it.

    Args:
        source: As :func:`fit` takes it.
        model: As :func:`fit` takes it.
        **options: As :func:`fit` takes them.
    """
    scan_options = {key: value for key, value in options.items() if key not in _FIT_OPTIONS}
    boxes = _scanned(source, None, options.get("max_skipped", 0.10), scan_options)
    detector = None if (options.get("head") or {}).get("pretrained") is False else pretrained.spec_of(model)
    return make_plan(
        boxes,
        network.architecture_of(model) if detector is None else detector,
        strategy=options.get("strategy", "auto"),
        minutes=parse_minutes(options.get("budget")),
        size=options.get("size") or options.get("tiles"),
        views=options.get("views"),
        head=dict(options.get("head") or {}),
        batch_size=options.get("batch_size"),
        storage=options.get("storage"),
        folder=folder_of(options.get("cache", True)),
        packaged=model == network.PACKAGED_HEAD,
        measured=options.get("cache", True),
    )


def _scanned(source: Any, target: Path | None, max_skipped: float, options: dict[str, Any]) -> BoxSet:
    """The pictures with boxes; what was left out is listed beside the output, also where it stops the run."""
    if isinstance(source, BoxSet):
        return source
    try:
        boxes = scan_boxes(source, max_skipped=max_skipped, **options)
    except SkippedBoxesError as error:
        if target is not None:
            target.mkdir(parents=True, exist_ok=True)
            write_text(target / artifact.SKIPPED, skipped_table(error.skipped))
        raise
    if not len(boxes.boxes):
        raise DataError(f"at least one picture must have a box. Received: {len(boxes)} pictures without any.")
    return boxes


@dataclasses.dataclass(eq=False)
class _Work:
    """A fit once its plain maps are there."""

    made: network.DetectorNetwork
    rows_of: Any
    shapes: network.MapShapes
    objective: DetectionObjective
    material: Material
    plan: DetectionPlan
    timings: Timings
    clock: Callable[[], float]
    began: float
    folder: Path | None = None
    views: int = 1

    def train(
        self,
        model: Any,
        options: dict[str, Any],
        *,
        seed: int,
        tuning: dict[str, Any],
        target: Path | None,
        cache: bool | str | Path,
        stop: Callable[[int], bool] | None,
        callbacks: Sequence[keras.callbacks.Callback] = (),
    ) -> History:
        """Runs the phases of the plan."""
        import tensorflow as tf

        made, material, plan, places = self.made, self.material, self.plan, self.objective.places
        size = made.contract.size
        unpack = lambda rows: self.shapes.maps(tf.cast(rows, tf.float32))  # noqa: E731
        plain = lambda images: tf.cast(images, tf.float32)  # noqa: E731
        learning_head = network.learning_model(made, network.taps_of(made))
        pictures = material.pictures(material.parts.train)
        head_layers = frozenset(layer.name for layer in learning_head.layers if layer.trainable_variables) - frozenset(
            layer.name for layer in made.body.layers
        )
        phases = []
        if plan.views:
            views = BoxViews(plan.views - 1, seed, zoom=plan.zoom, colour=plan.colour) if plan.views > 1 else None
            stored = stored_views(material, self.rows_of, made.contract, places, views, **options)
            self.views = plan.views
            feed: Any = StoredMapFeed(stored.maps, stored.targets)
        else:
            frozen = engines.create(self.rows_of, options["engine"], images=len(pictures) * 10)
            changes = PictureChanges(zoom=plan.zoom, colour=plan.colour)
            feed = PictureFeed(pictures, made.contract, places, changes, pictures.most, seed=seed, frozen=frozen)
            self.views = 0
        self.timings.lap("views")
        left = self._left()
        settings = self._settings("head", seed, tuning, left)
        phases.append(Phase(settings, network.called(learning_head), unpack, feed, head_layers))
        learning = network.learning_layers(made, plan.strategy)
        if learning:
            changes = PictureChanges(zoom=plan.zoom, colour=plan.colour, mosaic=plan.mosaic)
            most = pictures.most * (4 if plan.mosaic else 1)
            body_settings = self._settings("body", seed, tuning, left)
            running: engines.Engine | None = None
            forward, taken = network.forward_of(made, learning_head), plain
            if plan.strategy == "last":
                before, own = network.row_model(made, network.frozen_stages(made.spec))
                running = engines.create(before, options["engine"])
                forward = network.called(network.suffix_of(made))
                taken = lambda rows: own.maps(tf.cast(rows, tf.float32))  # noqa: E731
            again = PictureFeed(pictures, made.contract, places, changes, most, seed=seed + 1, frozen=running)
            phases.append(Phase(body_settings, forward, taken, again, head_layers | learning))
        key = self._key(model, seed, tuning)
        self.folder = _run_folder(target, key, cache)
        trainer = DetectorTrainer(
            made.whole,
            self.objective,
            phases,
            self._validator(unpack, plain, size),
            folder=self.folder,
            key=key,
            say=self.timings.note,
            clock=self.clock,
            stop=stop,
            callbacks=callbacks,
        )
        return trainer.run()

    @property
    def _head(self) -> str:
        """What learns on maps of the body."""
        return "encoder and decoder" if isinstance(self.made.spec, QueryDetectorSpec) else "head"

    def _left(self) -> float | None:
        """Seconds for training, once what comes after it is set aside; ``None`` for no limit."""
        if self.plan.minutes is None:
            return None
        total = self.plan.minutes * 60
        after = (
            0.03 * total + 3.0 + self.plan.seconds_each * (len(self.material.parts.val) + len(self.material.parts.test))
        )
        return max(1.0, total - after - (self.clock() - self.began))

    def _settings(self, phase: str, seed: int, tuning: dict[str, Any], left: float | None) -> PhaseSettings:
        """The settings of a phase."""
        plan = self.plan
        share = plan.head_share if phase == "head" else 1 - plan.head_share
        known = {field.name for field in dataclasses.fields(PhaseSettings)} - {"name"}
        unknown = (set(tuning) | set(tuning.get("head", {})) | set(tuning.get("body", {}))) - known - {"head", "body"}
        if unknown:
            name = sorted(unknown)[0]
            raise ArgumentError(
                f"tuning must have fields of {sorted(known)}, or those by phase under 'head' and 'body'. "
                f"Received: {name!r}.{closest(name, known)}"
            )
        base = PhaseSettings(
            name=phase,
            epochs=None if left is not None else plan.epochs[0 if phase == "head" else 1],
            seconds=None if left is None else left * share,
            batch_size=plan.batch_size if phase == "head" else plan.body_batch_size,
            learning_rate=plan.learning_rate if phase == "head" else plan.body_learning_rate,
            seed=seed,
        )
        own = tuning.get(phase, {})
        shared = {key: value for key, value in tuning.items() if key not in ("head", "body")}
        return dataclasses.replace(base, **{**shared, **own})

    def _validator(self, unpack: Any, plain: Any, size: tuple[int, int]) -> Callable[[], tuple[float, float]]:
        """AP and AP50 on the validation pictures, of the head on stored maps while the body is frozen."""
        made, material = self.made, self.material
        val = material.parts.val
        if len(val) > _MOST_VALIDATED:  # the choice of an epoch needs no more; thresholds are from all
            val = np.sort(np.random.default_rng(0).permutation(val)[:_MOST_VALIDATED])
        if not len(val):
            raise DataError(
                "validation pictures choose the weights that are kept. Received: none. Raise val_share, or add a part "
                "'val' to the data."
            )
        some = material.boxes.subset(val)
        spec, counts = made.spec, self.objective.counts
        on_maps = validation.scorer(network.called(made.head), unpack, self.objective)
        on_pictures = validation.scorer(network.forward_of(made, made.head), plain, self.objective)
        images: dict[int, np.ndarray] = {}

        def validate() -> tuple[float, float]:
            if any(layer.trainable and layer.trainable_variables for layer in made.body.layers):
                if not images:
                    images.update(enumerate(_decoded(some, made.contract)))
                found = validation.predicted(on_pictures, images, some, counts, spec, size)
            else:
                found = validation.predicted(on_maps, _picked(material.rows, val), some, counts, spec, size)
            figures = validation.matching_of(some, found).figures()
            return tuple(0.0 if np.isnan(figures[name]) else figures[name] for name in ("ap", "ap50"))  # type: ignore[return-value]

        return validate

    def _key(self, model: Any, seed: int, tuning: dict[str, Any]) -> str:
        """What decides the run."""
        decisive = {
            "data": self.material.boxes.fingerprint,
            "network": engines.fingerprint(self.rows_of),
            "head": self.made.spec.to_dict(),
            "plan": {
                key: value
                for key, value in self.plan.to_dict().items()
                if key not in ("seconds", "seconds_each", "reasons", "hardware")
            },
            "tuning": {key: value for key, value in tuning.items()},
            "seed": seed,
        }
        return hashlib.sha256(json.dumps(decisive, sort_keys=True, default=str).encode()).hexdigest()

    def calibrated(self, history: History, model: Any, seed: int) -> Detector:
        """The detector, with scores and thresholds from validation pictures."""
        made, material = self.made, self.material
        phases = ("head", "body") if self.plan.strategy != "head" else ("head",)
        recipe = DetectorRecipe(
            model=str(model) if isinstance(model, str | os.PathLike) else model.name,
            trained={"head": self._head, "last": f"{self._head} and last stages", "full": "whole network"}[
                self.plan.strategy
            ],
            epochs=tuple(max([0, *(r["pass"] for r in history.rows if r["phase"] == name)]) for name in phases),
            best_epoch=history.best_epoch,
            views=self.views,
            seed=seed,
        )
        detector = Detector(made.detector(), material.boxes.classes, made.contract, made.spec, recipe)
        some = material.boxes.subset(material.parts.val)
        found = detector.predict(list(some.paths), threshold=0.0)
        matching = calibration.calibrate(detector, some, found)
        detector.metrics = {
            "images": {part: len(getattr(material.parts, part)) for part in ("train", "val", "test")},
            # a detector computes in float32, whatever the device has units for
            "machine": {**devices.current().to_dict(), "precision": {"features": "float32", "training": "float32"}},
            "plan": {"hardware": self.plan.hardware},
            "validation": matching.figures(),
            "training": {
                "epoch": history.best_epoch,
                "epochs": len(history.rows) - 1,
                "passes": history.passes,
                "history": [dict(row) for row in history.rows],
            },
        }
        return detector

    def measured(self, detector: Detector, history: History, test: BoxSet, pictures: BoxSet) -> Detector:
        """The detector with its measurement and what the fit did."""
        material = self.material
        found = None
        if len(test):
            found = detector.evaluate(test)
            detector.metrics["test"] = found.to_dict()
            detector.metrics["test_files"] = [str(path) for path in test.paths[:_MOST_TEST_FILES]]
        detector.fingerprint = pictures.fingerprint
        detector.versions = package_versions()
        detector._attachments = {artifact.SKIPPED: pictures.skipped_csv().encode()}
        detector.run = FitRun(
            test=found,
            skipped=material.skipped,
            warnings=pictures.warnings,
            seconds=self.timings.laps,
            computed=material.computed,
            reused=material.reused,
            engine=material.engine,
            device=devices.current().to_dict(),
            history=history.rows,
            notes=tuple(self.timings.notes),
        )
        return detector

    def forget(self) -> None:
        """Removes the checkpoints of a run that has ended."""
        if self.folder is not None:
            loop.forget_checkpoints(self.folder)
            shutil.rmtree(self.folder / SPEED_FOLDER, ignore_errors=True)
            (self.folder / USERS).unlink(missing_ok=True)
            if self.folder.exists() and not any(self.folder.iterdir()):
                self.folder.rmdir()


class _picked:
    """Some rows of an array, each read when it is asked for."""

    def __init__(self, array: np.ndarray, rows: np.ndarray):
        self._array, self._rows = array, rows

    def __getitem__(self, place: int) -> np.ndarray:
        return np.asarray(self._array[self._rows[place]])


def _decoded(boxes: BoxSet, contract: Any) -> Any:
    """The pictures as inputs."""
    from resfit.data import decode

    for path in boxes.paths:
        yield decode.decode_image(path, contract)


def _measured_in(target: Path | None, cache: bool | str | Path) -> bool | str | Path:
    """Where a GPU's speed is kept: in the cache, else beside the output, so that a fit that goes on takes the same."""
    return cache if target is None or folder_of(cache) is not None else target.with_name(f"{target.name}.run")


def _run_folder(target: Path | None, key: str, cache: bool | str | Path) -> Path | None:
    """Where checkpoints are: beside the output, else in the cache; ``None`` for neither."""
    if target is not None:
        return target.with_name(f"{target.name}.run")
    root = folder_of(cache)
    if root is None or not is_writable(root):
        return None
    folder = root / "runs" / key[:24]
    keep(folder / USERS)
    return folder


_FIT_OPTIONS = frozenset(
    name for name, one in inspect.signature(fit).parameters.items() if one.kind is inspect.Parameter.KEYWORD_ONLY
)
