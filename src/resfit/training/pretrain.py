"""Training a residual network from scratch on a folder or archive of images.

Every image is decoded once, to a memory-mapped store of bytes. A run can be killed at any moment; the same command
goes on at the last checkpoint, with the batches, the learning rates and the random crops that an undisturbed run
would have had from there.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resfit import dependencies, devices
from resfit.data.pixel_store import PixelStore, open_store
from resfit.errors import ArgumentError, DataError, ResfitError
from resfit.networks import catalog
from resfit.networks.spec import ArchitectureSpec
from resfit.preprocessing import TORCH, InputSpec
from resfit.storage.atomic import atomic_path, write_json
from resfit.training import augment as augmentation
from resfit.training import loop
from resfit.training import trainer as training
from resfit.training.augment import check_rand_augment, crop_and_flip, crop_at
from resfit.training.objective import Objective
from resfit.training.replicas import Replicas
from resfit.training.settings import Tuning
from resfit.training.soft_targets import SoftTargets

# epochs of a run that the clock ends
_BY_THE_CLOCK = 10**9


@dataclasses.dataclass(frozen=True)
class PretrainSettings:
    """Everything that decides the result of a run.

    Attributes:
        model: Name of the catalog.
        size: Height and width of the images that validation sees, in pixels.
        sizes: Pairs ``(progress, pixels)``: from which share of the run the training crops have which size.
        epochs: Passes over the training images.
        minutes: Length of the run in minutes of training time; where set, the schedule follows the clock, not the
            epochs, and ends when the time is up.
        batch_size: Images a step.
        learning_rate: Peak of the schedule.
        warmup: Share of the run in which the rate rises from zero.
        schedule: ``"cosine"``, ``"one_cycle"`` (a rise over 30 %, a fall to a thousandth) or ``"constant"``.
        momentum: Of the Nesterov steps.
        weight_decay: On kernels alone.
        label_smoothing: Share of the target spread over all classes.
        ema_decay: Of the moving average of the weights, which is what the run returns.
        crop_scale: Share of the area that a training crop has at least.
        flip: Whether half of the crops are mirrored left to right.
        colour: Largest change of brightness, contrast and saturation; 0 is none.
        rand_augment: Number of changes and their magnitude (0..10) before the crop; None is none.
        erasing: Share of the crops with a rectangle of noise.
        mixup: Parameter of mixup; 0 is none.
        cutmix: Parameter of CutMix; 0 is none. With both, batches take turns.
        repeats: Crops of the same image in a batch (repeated augmentation, Hoffer et al. 2019, arXiv:1901.09335). An
            epoch still sees each image once, so often cropped, and has so many times as many steps.
        distillation: Share of the loss that a teacher's predictions make up, in [0, 1]; needs a teacher above 0.
        temperature: Of the distillation (Hinton et al. 2015, arXiv:1503.02531).
        teacher_views: Crops of each image for which the teacher is asked; epochs take them in turn, so that only the
            first so many ask it (Shen and Xing 2021, arXiv:2112.01528). The student's crops are then these, too.
        precision: ``"float32"``, or ``"mixed_bfloat16"`` with weights, norms and loss in float32.
        seed: Of weights, order and crops.
    """

    model: str = "resnet10_tiny"
    size: int = 64
    sizes: tuple[tuple[float, int], ...] = ()
    epochs: int = 30
    minutes: float | None = None
    batch_size: int = 128
    learning_rate: float = 0.2
    warmup: float = 0.05
    schedule: str = "cosine"
    momentum: float = 0.9
    weight_decay: float = 1e-4
    label_smoothing: float = 0.1
    ema_decay: float = 0.999
    crop_scale: float = 0.35
    flip: bool = True
    colour: float = 0.0
    rand_augment: tuple[int, float] | None = None
    erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    repeats: int = 1
    distillation: float = 0.0
    temperature: float = 2.0
    teacher_views: int = 8
    precision: str = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            ArgumentError: A setting is outside its range.
        """
        loop.check_choice("precision", self.precision, ("float32", "mixed_bfloat16"))
        if min(self.epochs, self.size, self.teacher_views) < 1:
            raise ArgumentError(
                "epochs, size and teacher_views must be at least 1. "
                f"Received: {self.epochs}, {self.size}, {self.teacher_views}."
            )
        if self.repeats < 1 or self.batch_size % self.repeats:
            raise ArgumentError(
                f"batch_size must be a multiple of repeats. Received: {self.batch_size}, {self.repeats}."
            )
        if self.rand_augment is not None:
            check_rand_augment(*self.rand_augment)
        _ = self.tuning  # checks the rest

    @property
    def tuning(self) -> Tuning:
        """The settings as the trainer takes them."""
        shared = {field.name for field in dataclasses.fields(Tuning)} & {f.name for f in dataclasses.fields(self)}
        return Tuning(
            **{
                **{name: getattr(self, name) for name in shared},
                "optimizer": "sgd",
                "batch_norm": "batch",
                "batch_size": self.batch_size // self.repeats,
                "epochs": self.epochs if self.minutes is None else _BY_THE_CLOCK,
            }
        )

    def image_size(self, progress: float) -> int:
        """Returns the side of the training crops in pixels at a share of the run."""
        size = self.size
        for start, pixels in sorted(self.sizes):
            if progress >= start:
                size = pixels
        return size

    def rate(self, progress: float) -> float:
        """Returns the learning rate at a share of the run."""
        return loop.rate(self.schedule, self.learning_rate, self.warmup, progress)


@dataclasses.dataclass(frozen=True)
class PretrainResult:
    """What a run came to.

    Attributes:
        output: Its folder, with ``model.safetensors``, ``config.json`` and ``log.csv``.
        steps: Optimiser steps.
        epochs: Passes over the images, begun ones included.
        seconds: Training time, interruptions excluded.
        top1: Share of validation images whose class is the first guess, None without validation.
        top5: The same for the first five.
        loss: Mean cross-entropy on the validation images.
        device: What has computed, as :meth:`resfit.devices.Device.to_dict` tells it, and the precision.
    """

    output: Path
    steps: int
    epochs: int
    seconds: float
    top1: float | None
    top5: float | None
    loss: float | None
    device: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON-ready values."""
        return {**dataclasses.asdict(self), "output": str(self.output)}


def parse_sizes(text: str) -> tuple[tuple[float, int], ...]:
    """Reads a schedule of image sizes.

    Args:
        text: Such as ``"0:32,0.5:48"``; empty for none.

    Raises:
        ArgumentError: It is written in another way.
    """
    try:
        pairs = [item.split(":") for item in text.split(",") if item.strip()]
        return tuple((float(start), int(pixels)) for start, pixels in pairs)
    except ValueError:
        raise ArgumentError(f"sizes must be written as 0:32,0.5:48. Received: {text!r}.") from None


def parse_rand_augment(text: str) -> tuple[int, float] | None:
    """Reads the parameters of RandAugment.

    Args:
        text: Number of changes and magnitude, such as ``"2,9"``; empty for none.

    Raises:
        ArgumentError: It is written in another way.
    """
    if not text.strip():
        return None
    try:
        count, magnitude = text.split(",")
        return int(count), float(magnitude)
    except ValueError:
        raise ArgumentError(f"rand_augment must be written as 2,9. Received: {text!r}.") from None


def pretrain(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    validation: str | os.PathLike[str] | None = None,
    settings: PretrainSettings | None = None,
    labels: str | os.PathLike[str] | None = None,
    teacher: str | os.PathLike[str] | None = None,
    checkpoint_minutes: float = 3.0,
    tensorboard: bool = True,
    stop: Callable[[int], bool] | None = None,
    replicas: Replicas | None = None,
    deterministic: bool = False,
) -> PretrainResult:
    """Trains a network from scratch, or goes on with a run that was interrupted.

    The weights that are kept and validated are the moving average over the steps. Validation images choose
    nothing: the result is the last state, whatever they say.

    Args:
        source: Folder of class folders, or a tar archive of one.
        output: Folder of the run. A run that is found there with the same settings goes on.
        validation: Folder or archive with the same classes; read after each epoch.
        settings: What decides the result.
        labels: JSON file of ``{class folder: name}``; the names are written beside the weights for people.
        teacher: A trained classifier of the same classes, of which ``settings.distillation`` makes the student learn:
            whatever :func:`resfit.load` takes. Its predictions are kept in ``soft_targets.npy`` until the run is over,
            ``2 * teacher_views * images * (classes + 1)`` bytes. The log's ``teacher_top1`` is its accuracy on the
            training crops.
        checkpoint_minutes: Longest time between two checkpoints.
        tensorboard: Whether to write TensorBoard's files beside the CSV.
        stop: Called after each step with its number; the run ends early, resumable, where it returns True.
        replicas: The workers of which this process is one (:mod:`resfit.training.replicas`); each calls this alike.
        deterministic: Whether a GPU gives the same bits each time, too, for the rest of the process.

    Returns:
        The result of the finished run, or of the point at which ``stop`` ended it.

    Raises:
        DataError: The sources have no images, or their classes or the teacher's differ.
        ArgumentError: ``settings.distillation`` is set without a teacher, or a teacher given without it.
        ResfitError: The folder holds a run with other settings or images, or the loss is no longer a number.

    Example:
        >>> pretrain("images/", "run/", settings=Settings(epochs=5))  # doctest: +SKIP
    """
    dependencies.require_tensorflow_backend("pre-training")
    settings = settings or PretrainSettings()
    if deterministic:
        devices.be_deterministic(settings.seed)
    if (settings.distillation > 0) != (teacher is not None):
        raise ArgumentError(
            "distillation needs a teacher and a share of the loss above 0. "
            f"Received: teacher={teacher!r}, distillation={settings.distillation}."
        )
    if replicas is not None and settings.minutes is not None:
        raise ArgumentError("several workers train by epochs: their clocks differ. Received: minutes.")
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    store = open_store(source, settings.size)
    held_out = open_store(validation, settings.size) if validation is not None else None
    if held_out is not None and not set(held_out.classes) <= set(store.classes):
        foreign = sorted(set(held_out.classes) - set(store.classes))
        raise DataError(f"validation must have the training classes. Received, besides them: {foreign[:5]}.")
    names = _names(labels, store.classes)
    soft = _soft_targets(teacher, settings, store, names, output) if teacher is not None else None
    sources = {"source": Path(source).name, "validation": validation and Path(validation).name}
    _remember(output, settings, store, sources, soft.fingerprint if soft else None)
    _check_version(output)
    trainer = trainer_of(settings, store, soft, held_out, replicas)
    writes = replicas is None or replicas.writes
    log = loop.Log(output if writes else Path(tempfile.mkdtemp(prefix="resfit-log-")), tensorboard and writes)

    def report(trainer: training.Trainer, figures: dict[str, float]) -> None:
        shown = {"loss": figures["loss"], "accuracy": figures["top1"]}
        log.progress(trainer.progress, trainer.epoch + 1, trainer.seconds, shown)

    learned = training.train(trainer, output, log, checkpoint_seconds=60 * checkpoint_minutes, report=report, stop=stop)
    if learned.ending == "diverged":
        raise ResfitError(
            f"the loss must stay finite. Received: one that is no number after step {trainer.step}, peak learning rate "
            f"{settings.learning_rate:.4g}. Start in a new folder with a lower learning rate; nothing was saved since."
        )
    scores = {name: value for name, value in (learned.history or ({},))[-1].items() if name.startswith("val_")}
    if held_out is not None and not scores and trainer.finished:
        scores = trainer.figures()
    result = PretrainResult(
        output=output,
        steps=trainer.step,
        epochs=trainer.epoch,
        seconds=trainer.seconds,
        top1=scores.get("val_top1"),
        top5=scores.get("val_top5"),
        loss=scores.get("val_loss"),
        device={**trainer.device.to_dict(), "precision": settings.precision},
    )
    if trainer.finished and writes:
        facts = {"val_top1": result.top1, "val_top5": result.top5, "val_loss": result.loss, "steps": result.steps}
        _write_weights(output / "model.safetensors", trainer, facts, names)
        if soft is not None:
            soft.remove()
    return result


class CropFeed:
    """Changed crops of stored images with their targets, and what a teacher says of the same crops.

    Args:
        settings: Which changes, and their strength.
        store: The images.
        soft: A teacher's predictions, if there is one.
    """

    def __init__(self, settings: PretrainSettings, store: PixelStore, soft: SoftTargets | None = None):
        import tensorflow as tf

        self.store, self.soft = store, soft
        self.settings = settings
        share, smoothing, classes = settings.distillation, settings.label_smoothing, len(store.classes)

        @tf.function(autograph=False)
        def changed(images: Any, labels: Any, draw: Any, probabilities: Any, number: Any, side: int) -> Any:
            targets = tf.one_hot(labels, classes) * (1 - smoothing) + smoothing / classes
            if share:  # both kinds of targets are mixed alike
                targets = tf.concat([targets, probabilities], axis=1)
            crops, targets = change(images, targets, (side, side), settings, number, draw if share else None)
            return normalized(crops), targets

        self._changed = changed

    def __len__(self) -> int:
        """Number of images."""
        return len(self.store)

    def batch(self, rows: np.ndarray, targets: Any, epoch: int, step: int, side: int | None) -> tuple[Any, Any]:
        """Returns crops, and their targets with the labels; see :class:`resfit.training.feeds.Feed`."""
        import tensorflow as tf

        repeats = self.settings.repeats
        images, labels = self.store.images[rows], self.store.labels[rows]
        if repeats > 1:
            images, labels = np.concatenate([images] * repeats), np.tile(labels, repeats)
        taught = self.taught(rows, epoch)
        number = tf.constant(step, tf.int32)
        crops, mixed = self._changed(*map(tf.constant, (images, labels, *taught)), number, side or self.settings.size)
        return crops, {"mixed": mixed, "labels": labels}

    def plain(self, rows: np.ndarray) -> np.ndarray:
        """Returns whole images of the full size."""
        return normalized(np.asarray(self.store.images[rows], np.float32))

    def taught(self, rows: np.ndarray, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the numbers of a batch's crops and the teacher's probabilities for them; empty without a teacher.

        Args:
            rows: Positions of the images.
            epoch: From 0.
        """
        if self.soft is None:
            return np.empty((5, 0), np.float32), np.empty((0, 0), np.float32)
        repeats = self.settings.repeats
        views = range(epoch * repeats, (epoch + 1) * repeats)
        return (
            np.concatenate([self.soft.crops(rows, view) for view in views], axis=1),
            np.concatenate([self.soft.probabilities(rows, view) for view in views]),
        )


class CropObjective(Objective):
    """Cross-entropy of mixed targets, and the divergence from a teacher's prediction of the same crop.

    Args:
        settings: The share of the teacher, and its temperature.
        store: The training images.
    """

    metric = "top1"

    def __init__(self, settings: PretrainSettings, store: PixelStore):
        self._settings, self._labels, self._classes = settings, store.labels, len(store.classes)

    def loss(self, outputs: Any, targets: Any, teacher: Any) -> Any:
        """Returns the loss of each crop; see :class:`resfit.training.objective.Objective`."""
        import tensorflow as tf

        share, warm, goal = self._settings.distillation, self._settings.temperature, targets["mixed"]
        loss = tf.nn.softmax_cross_entropy_with_logits(goal[:, : self._classes], outputs)
        if share:
            loss = (1 - share) * loss + share * warm**2 * divergence(goal[:, self._classes :], outputs / warm)
        return loss

    def score(self, outputs: Any, targets: Any) -> Any:
        """Returns how many images are told right, a crop counting as its share of an image."""
        import tensorflow as tf

        right = tf.equal(tf.argmax(outputs, 1), tf.cast(targets["labels"], tf.int64))
        return tf.reduce_sum(tf.cast(right, tf.float32)) / self._settings.repeats

    def measure(self, outputs: Iterator[tuple[np.ndarray, Any]]) -> tuple[float, float]:
        """Returns mean loss and accuracy of training images; see :class:`resfit.training.objective.Objective`."""
        found = figures(outputs, self._labels)
        return found["val_loss"], found["val_top1"]


class PretrainTrainer(training.Trainer):
    """The trainer of a run from scratch: no epoch is chosen, and validation images are those of another store.

    Attributes:
        held_out: Validation images; ``None`` for none.
    """

    measures_first = False
    feed: CropFeed
    held_out: PixelStore | None = None

    def share(self, number: int) -> float:
        """Returns the share of the run at a step: by the clock where that ends the run."""
        return super().share(number) if self.tuning.minutes is None else self.progress

    def close_epoch(self) -> dict[str, Any]:
        """Ends the epoch and returns its row of the log."""
        epoch, steps, before = self.epoch, self.position, self.closed_at
        order = np.random.default_rng([self.tuning.seed, epoch]).permutation(len(self.train))
        rows = np.sort(self.train[order[: steps * self.size]])
        last = self.share(max(0, self.step - 1))
        row = super().close_epoch()
        found = {
            "epoch": row.pop("epoch"),
            "step": row.pop("step"),
            "size": self.tuning.image_size(last) or self.feed.store.images.shape[1],
            "learning_rate": row.pop("learning_rate"),
            "train_loss": row.pop("train_loss"),
            "train_top1": row.pop("train_top1"),
        }
        if self.feed.soft is not None:
            _, probabilities = self.feed.taught(rows, epoch)
            labels = np.resize(self.feed.store.labels[rows], len(probabilities))
            found["teacher_top1"] = round(float((probabilities.argmax(axis=1) == labels).mean()), 5)
        found["images_per_second"] = round(len(rows) * self.feed.settings.repeats / max(self.seconds - before, 1e-9), 1)
        return {**found, "seconds": row.pop("seconds"), **self.figures()}

    def judge(self) -> dict[str, float]:
        """Keeps the averaged weights, whatever they are worth."""
        with self._averaged():
            self.best = [v.numpy() for v in self.state]
        self.score = {"epoch": self.epoch, "score": None, "loss": None}
        return {}

    def figures(self) -> dict[str, float]:
        """Returns loss and accuracy of the averaged weights on whole validation images; empty without any."""
        if self.held_out is None:
            return {}
        with self._averaged():
            return self._measured(self.held_out)

    def _measured(self, held_out: PixelStore) -> dict[str, float]:
        if self._forward is None:
            self._forward = training.forward_of(self.second)
        position = {name: index for index, name in enumerate(self.feed.store.classes)}
        translate = np.array([position[name] for name in held_out.classes])
        feed = CropFeed(self.feed.settings, held_out)
        outputs = training.outputs_of(self._forward, feed, np.arange(len(held_out)), batch=250)
        return figures(outputs, translate[held_out.labels])


def figures(outputs: Iterator[tuple[np.ndarray, Any]], labels: np.ndarray) -> dict[str, float]:
    """Returns mean cross-entropy, and the shares of images whose class is the first guess and among the first five.

    Args:
        outputs: Positions of images, and logits for them, some images at a time.
        labels: Their classes by position.
    """
    loss = top1 = top5 = 0.0
    count = 0
    for rows, logits in outputs:
        own_labels = labels[rows]
        shifted = logits - logits.max(axis=1, keepdims=True)
        logs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        own = logits[np.arange(len(rows)), own_labels]
        # ties count against the network, and so does what is no number
        rank = logits.shape[1] - 1 - (logits < own[:, None]).sum(axis=1)
        loss -= float(logs[np.arange(len(rows)), own_labels].sum())
        top1 += float((rank < 1).sum())
        top5 += float((rank < 5).sum())
        count += len(rows)
    return {
        "val_loss": round(loss / count, 5),
        "val_top1": round(top1 / count, 5),
        "val_top5": round(top5 / count, 5),
    }


def trainer_of(
    settings: PretrainSettings,
    store: PixelStore,
    soft: SoftTargets | None = None,
    held_out: PixelStore | None = None,
    replicas: Replicas | None = None,
) -> PretrainTrainer:
    """Returns the trainer of a run: the network, its loss and its crops.

    Args:
        settings: What decides the result.
        store: The training images.
        soft: A teacher's predictions, if there is one.
        held_out: Validation images, if there are some.
        replicas: As :func:`pretrain` takes it.
    """
    import keras

    from resfit.networks.build import build

    keras.utils.set_random_seed(settings.seed)
    spec = spec_of(settings, len(store.classes))
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(settings.precision)
    try:
        model = build(spec, classifier_activation=None, input_shape=(None, None, 3), name=settings.model)
    finally:
        keras.config.set_dtype_policy(policy)
    rows = np.arange(len(store))
    trainer = PretrainTrainer(
        model,
        [model.get_layer("predictions")],
        settings.tuning,
        CropFeed(settings, store, soft),
        CropObjective(settings, store),
        store.labels,
        rows,
        rows[:0],
        optimizer=loop.CoupledSGD,
        replicas=replicas,
    )
    trainer.held_out = held_out
    return trainer


def _check_version(output: Path) -> None:
    """Makes sure that a run is not begun afresh over the checkpoints of an earlier version."""
    found = loop.load_checkpoint(output)
    if found is not None and "velocity/0" in found.arrays:
        raise ResfitError(
            f"{output} must hold a run of this version. Received: one that an earlier version of resfit began. Finish "
            "it with that version, or give another folder."
        )


def _write_weights(path: Path, trainer: PretrainTrainer, scores: dict[str, Any], names: Sequence[str]) -> None:
    """Writes the averaged weights in float16 with the facts that belong to them."""
    from safetensors.numpy import save

    settings, classes = trainer.feed.settings, trainer.feed.store.classes
    arrays = {v.path: value.astype(np.float16) for v, value in zip(trainer.state, trainer.best, strict=True)}
    metadata = {
        "format": "resfit-1",
        "architecture": json.dumps(spec_of(settings, len(classes)).to_dict()),
        "input_spec": json.dumps(input_contract(settings).to_dict()),
        "classes": json.dumps(classes),
        "scores": json.dumps(scores),
        **({"labels": json.dumps(names)} if names else {}),
    }
    with atomic_path(path) as temporary:
        temporary.write_bytes(save(arrays, metadata))


def spec_of(settings: PretrainSettings, classes: int) -> ArchitectureSpec:
    """Returns the network of a run: the catalog's, with as many outputs as there are classes."""
    return catalog.get(settings.model).spec.replace(classes=classes)


def input_contract(settings: PretrainSettings) -> InputSpec:
    """Returns the contract of a run's network: ImageNet's mean and deviation, whole images squashed to its size."""
    return dataclasses.replace(
        TORCH,
        size=(settings.size, settings.size),
        resize_mode="squash",
        interpolation="bicubic",
        crop_fraction=1.0,
    )


def normalized(images: Any) -> Any:
    """Applies the input contract of :func:`input_contract` to float images 0..255 as a TensorFlow graph."""
    return images * np.array(TORCH.multiplier, np.float32) + np.array(TORCH.offset, np.float32)


def augment(images: Any, side: int, smallest: float, seed: Any) -> Any:
    """Cuts a random rectangle out of each image, flips half of them, resizes and normalises.

    The random-resized crop of Szegedy et al. 2014 (arXiv:1409.4842): area uniform in ``[smallest, 1]``, ratio of the
    sides log-uniform in [3/4, 4/3].

    Args:
        images: uint8 tensor ``(batch, height, width, 3)``, RGB.
        side: Height and width of the crops in pixels.
        smallest: Least share of the area.
        seed: Tensor of two integers; equal seeds give equal crops.

    Returns:
        float32 tensor ``(batch, side, side, 3)``, normalised.
    """
    return normalized(crop_and_flip(images, (side, side), smallest, seed))


def divergence(targets: Any, logits: Any) -> Any:
    """Returns the Kullback-Leibler divergence of each image's prediction from its target, a tensor ``(batch,)``.

    Args:
        targets: Tensor ``(batch, classes)`` of probabilities.
        logits: Tensor ``(batch, classes)``.
    """
    import tensorflow as tf

    entropy = -tf.reduce_sum(tf.math.xlogy(targets, targets), axis=1)
    return tf.nn.softmax_cross_entropy_with_logits(targets, logits) - entropy


def change(
    images: Any, targets: Any, side: tuple[int, int], settings: PretrainSettings, number: Any, draw: Any = None
) -> tuple[Any, Any]:
    """Applies all random changes of a run to a batch.

    Args:
        images: uint8 or float32 tensor ``(batch, height, width, 3)``, RGB, values 0..255.
        targets: Tensor ``(batch, classes)``.
        side: Height and width of the crops in pixels.
        settings: Which changes, and their strength.
        number: Step of the run, an integer scalar; equal steps give equal changes.
        draw: Numbers of the crops, as :func:`resfit.training.augment.crop_at` takes them; None draws them.

    Returns:
        The crops, a float32 tensor ``(batch, *side, 3)`` with values 0..255, and their targets.
    """
    import tensorflow as tf

    seed = tf.stack([settings.seed, number])
    seeds = tf.random.split(seed, 4)
    if settings.rand_augment is not None:
        images = augmentation.rand_augment(images, *settings.rand_augment, seeds[0])
    if draw is None:
        crops = crop_and_flip(images, side, settings.crop_scale, seed, flip=settings.flip)
    else:
        crops = crop_at(images, side, settings.crop_scale, draw, flip=settings.flip)
    if settings.colour:
        crops = augmentation.colour(crops, settings.colour, seeds[1])
    if settings.erasing:
        crops = augmentation.random_erasing(crops, settings.erasing, seeds[2])
    return augmentation.mixup_or_cutmix(crops, targets, (settings.mixup, settings.cutmix), number, seeds[3])


def _names(labels: str | os.PathLike[str] | None, classes: Sequence[str]) -> list[str]:
    """Reads the names of the classes; none without a file."""
    if labels is None:
        return []
    try:
        found = json.loads(Path(labels).read_text("utf-8"))
        return [str(found[name]) for name in classes]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"labels must be a JSON file of {{class folder: name}} for every class. Received: {error!r}."
        ) from error


def _soft_targets(
    teacher: str | os.PathLike[str], settings: PretrainSettings, store: PixelStore, names: Sequence[str], output: Path
) -> SoftTargets:
    """Loads a teacher and opens what it said of the crops."""
    from resfit import zoo

    soft = SoftTargets(
        zoo.load(teacher, classifier_activation=None),
        store.images,
        store.classes,
        names,
        output,
        views=settings.teacher_views,
        temperature=settings.temperature,
        crop_scale=settings.crop_scale,
        flip=settings.flip,
        seed=settings.seed,
    )
    if soft.assumption:
        loop.say(soft.assumption)
    return soft


def _remember(
    output: Path, settings: PretrainSettings, store: PixelStore, data: dict[str, Any], teacher: str | None = None
) -> None:
    """Writes ``config.json``, or checks that the run in the folder has the same settings."""
    import keras
    import tensorflow as tf

    import resfit

    fields = json.loads(json.dumps(dataclasses.asdict(settings)))
    path = output / "config.json"
    if path.exists():
        found = json.loads(path.read_text("utf-8"))
        # a run that was begun before a setting existed has its default
        known = json.loads(json.dumps(dataclasses.asdict(PretrainSettings())))
        before = {**known, **found["settings"], **{key: found.get(key) for key in ("images", "classes", "teacher")}}
        fields = {**fields, "images": len(store), "classes": len(store.classes), "teacher": teacher}
        other = sorted(key for key in {*fields, *before} if before.get(key) != fields.get(key))
        if other:
            changes = ", ".join(f"{key}: {before.get(key)!r} there, {fields.get(key)!r} now" for key in other)
            raise ResfitError(
                f"{output} holds a run with other settings ({changes}). Give its settings, or another folder."
            )
        return
    write_json(
        path,
        {
            "settings": fields,
            **data,
            "teacher": teacher,
            "images": len(store),
            "classes": len(store.classes),
            "skipped": len(store.skipped),
            "versions": {
                "resfit": resfit.__version__,
                "tensorflow": tf.__version__,
                "keras": keras.__version__,
                "numpy": np.__version__,
                "python": platform.python_version(),
            },
        },
    )
