"""Training a residual network from scratch on a folder or archive of images.

Every image is decoded once, to a memory-mapped store of bytes. A run can be killed at any moment; the same command
goes on at the last checkpoint, with the batches, the learning rates and the random crops that an undisturbed run
would have had from there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resfit.data.pixel_store import PixelStore, open_store
from resfit.errors import ArgumentError, DataError, ResfitError
from resfit.networks import catalog
from resfit.networks.spec import ArchitectureSpec
from resfit.preprocessing import TORCH, InputSpec
from resfit.storage.atomic import atomic_path, write_json
from resfit.training import augment as augmentation
from resfit.training import loop
from resfit.training.augment import check_rand_augment, crop_and_flip, crop_at
from resfit.training.loop import decays
from resfit.training.soft_targets import SoftTargets


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
        schedule: ``"cosine"`` or ``"one_cycle"`` (a rise over 30 %, a fall to a thousandth).
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
        if self.schedule not in ("cosine", "one_cycle"):
            raise ArgumentError(f"schedule must be 'cosine' or 'one_cycle'. Received: {self.schedule!r}.")
        if self.precision not in ("float32", "mixed_bfloat16"):
            raise ArgumentError(f"precision must be 'float32' or 'mixed_bfloat16'. Received: {self.precision!r}.")
        if min(self.epochs, self.batch_size, self.size) < 1 or self.learning_rate <= 0:
            raise ArgumentError(f"epochs, batch_size, size and learning_rate must be positive. Received: {self}.")
        if not 0 < self.crop_scale <= 1 or not 0 <= self.label_smoothing < 1 or not 0 <= self.ema_decay < 1:
            raise ArgumentError(
                "crop_scale must lie in (0, 1], label_smoothing and ema_decay in [0, 1). "
                f"Received: {self.crop_scale}, {self.label_smoothing}, {self.ema_decay}."
            )
        if not 0 <= self.warmup < 1 or not 0 <= self.momentum < 1 or not self.weight_decay >= 0:
            raise ArgumentError(
                "warmup and momentum must lie in [0, 1), weight_decay must not be negative. "
                f"Received: {self.warmup}, {self.momentum}, {self.weight_decay}."
            )
        if min(self.colour, self.mixup, self.cutmix) < 0 or not 0 <= self.erasing <= 1:
            raise ArgumentError(
                "colour, mixup and cutmix must not be negative, erasing must lie in [0, 1]. "
                f"Received: {self.colour}, {self.mixup}, {self.cutmix}, {self.erasing}."
            )
        if not 0 <= self.distillation <= 1 or not self.temperature > 0 or self.teacher_views < 1:
            raise ArgumentError(
                "distillation must lie in [0, 1], temperature must be positive and teacher_views at least 1. "
                f"Received: {self.distillation}, {self.temperature}, {self.teacher_views}."
            )
        if self.rand_augment is not None:
            check_rand_augment(*self.rand_augment)
        if self.repeats < 1 or self.batch_size % self.repeats:
            raise ArgumentError(
                f"batch_size must be a multiple of repeats. Received: {self.batch_size}, {self.repeats}."
            )
        if self.minutes is not None and not self.minutes > 0:
            raise ArgumentError(f"minutes must be positive, or None. Received: {self.minutes!r}.")
        if any(not 0 <= start <= 1 or pixels < 1 for start, pixels in self.sizes):
            raise ArgumentError(
                "sizes must be pairs of a share of the run in [0, 1] and a size of at least 1 pixel. "
                f"Received: {self.sizes!r}."
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
    """

    output: Path
    steps: int
    epochs: int
    seconds: float
    top1: float | None
    top5: float | None
    loss: float | None

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

    Returns:
        The result of the finished run, or of the point at which ``stop`` ended it.

    Raises:
        DataError: The sources have no images, or their classes or the teacher's differ.
        ArgumentError: ``settings.distillation`` is set without a teacher, or a teacher given without it.
        ResfitError: The folder holds a run with other settings or images, or the loss is no longer a number.

    Example:
        >>> pretrain("images/", "run/", settings=Settings(epochs=5))  # doctest: +SKIP
    """
    settings = settings or PretrainSettings()
    if (settings.distillation > 0) != (teacher is not None):
        raise ArgumentError(
            "distillation needs a teacher and a share of the loss above 0. "
            f"Received: teacher={teacher!r}, distillation={settings.distillation}."
        )
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
    trainer = _Trainer(settings, store, soft)
    log = loop.Log(output, tensorboard)
    resumed = trainer.restore(output)
    log.cut(trainer.epoch)
    if resumed:
        loop.say(f"resumed at step {trainer.step}, epoch {trainer.epoch + 1}")
    result = _run(trainer, log, output, held_out, checkpoint_minutes, stop)
    if trainer.finished:
        facts = {"val_top1": result.top1, "val_top5": result.top5, "val_loss": result.loss, "steps": result.steps}
        trainer.write_weights(output / "model.safetensors", facts, names)
        if soft is not None:
            soft.remove()
    return result


def _run(
    trainer: _Trainer,
    log: loop.Log,
    output: Path,
    held_out: PixelStore | None,
    checkpoint_minutes: float,
    stop: Callable[[int], bool] | None,
) -> PretrainResult:
    scores: dict[str, float] = {}
    saved = time.monotonic()
    stopped = False
    while not trainer.finished and not stopped:
        for report in trainer.epoch_steps():
            log.progress(trainer.progress, trainer.epoch + 1, trainer.seconds, report)
            if stop is not None and stop(trainer.step):
                stopped = True
                break
            if time.monotonic() - saved > checkpoint_minutes * 60:
                trainer.save(output)
                saved = time.monotonic()
        else:
            row = trainer.close_epoch()
            if held_out is not None:
                scores = trainer.validate(held_out)
            log.write({**row, **scores})
            trainer.save(output)
            saved = time.monotonic()
    if held_out is not None and not scores and not stopped:
        scores = trainer.validate(held_out)
    return PretrainResult(
        output=output,
        steps=trainer.step,
        epochs=trainer.epoch,
        seconds=trainer.seconds,
        top1=scores.get("val_top1"),
        top5=scores.get("val_top5"),
        loss=scores.get("val_loss"),
    )


class _Trainer:
    """The state of a run: network, average, optimiser, and where in the images it stands."""

    def __init__(self, settings: PretrainSettings, store: PixelStore, soft: SoftTargets | None = None):
        import keras
        import tensorflow as tf

        from resfit.networks.build import build

        self.settings, self.store, self.soft = settings, store, soft
        self.step, self.epoch, self.position, self.seconds = 0, 0, 0, 0.0
        self._sums = np.zeros(4)
        self._epoch_seconds, self._last_size = 0.0, settings.size
        keras.utils.set_random_seed(settings.seed)
        self.spec = spec_of(settings, len(store.classes))
        policy = keras.config.dtype_policy()
        keras.config.set_dtype_policy(settings.precision)
        try:
            self.model = build(self.spec, classifier_activation=None, input_shape=(None, None, 3), name=settings.model)
        finally:
            keras.config.set_dtype_policy(policy)
        self.average = [tf.Variable(v.numpy(), trainable=False) for v in self.model.variables]
        self.velocity = [tf.Variable(tf.zeros_like(v.value)) for v in self.model.trainable_variables]
        self._step_functions: dict[int, Any] = {}

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in a pass; the rest of the images waits for the next order."""
        return max(1, len(self.store) // self.images_per_step)

    @property
    def images_per_step(self) -> int:
        """Different images in a batch; each is there ``repeats`` times."""
        return min(self.settings.batch_size // self.settings.repeats, len(self.store))

    @property
    def progress(self) -> float:
        """Share of the run that is done, in [0, 1]."""
        if self.settings.minutes is not None:
            return min(1.0, self.seconds / (60 * self.settings.minutes))
        return min(1.0, self.step / (self.settings.epochs * self.steps_per_epoch))

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return self.progress >= 1.0 and self.position == 0

    def epoch_steps(self) -> Iterator[dict[str, float]]:
        """Trains from where the run stands to the end of the epoch, a step at a time."""
        order = np.random.default_rng([self.settings.seed, self.epoch]).permutation(len(self.store))
        first, size, repeats = self.position, self.images_per_step, self.settings.repeats

        def batches() -> Iterator[tuple[np.ndarray, ...]]:
            for index in range(first, self.steps_per_epoch):
                rows = np.sort(order[index * size : (index + 1) * size])
                images, labels = self.store.images[rows], self.store.labels[rows]
                if repeats > 1:
                    images, labels = np.concatenate([images] * repeats), np.tile(labels, repeats)
                yield (images, labels, *self._taught(rows))

        with loop.prefetch(batches(), 4) as ready:
            started = time.perf_counter()  # waiting for images is training time, too
            for images, labels, draw, probabilities in ready:
                progress = self.progress
                if progress >= 1.0:  # the time is up inside an epoch
                    break
                side = self._last_size = self.settings.image_size(progress)
                rate = self.settings.rate(progress)
                loss, hits = self._train_step(side)(images, labels, draw, probabilities, np.float32(rate), self.step)
                if not math.isfinite(float(loss)):
                    raise ResfitError(
                        f"the loss must stay finite. Received: {float(loss)} at step {self.step + 1}, learning rate "
                        f"{rate:.4g}. Start in a new folder with a lower learning rate; nothing was saved since."
                    )
                right = float((probabilities.argmax(axis=1) == labels).sum()) if self.soft else 0.0
                self._sums += (float(loss) * len(labels), float(hits), len(labels), right)
                self.step += 1
                self.position += 1
                elapsed = time.perf_counter() - started
                self.seconds += elapsed
                self._epoch_seconds += elapsed
                yield {"loss": self._sums[0] / self._sums[2], "accuracy": self._sums[1] / self._sums[2]}
                started = time.perf_counter()

    def close_epoch(self) -> dict[str, Any]:
        """Ends the epoch and returns its row of the log."""
        count = max(self._sums[2], 1.0)
        self.epoch += 1
        row = {
            "epoch": self.epoch,
            "step": self.step,
            "size": self._last_size,
            "learning_rate": round(self.settings.rate(self.progress), 6),
            "train_loss": round(self._sums[0] / count, 5),
            "train_top1": round(self._sums[1] / count, 5),
            **({"teacher_top1": round(self._sums[3] / count, 5)} if self.soft else {}),
            "images_per_second": round(count / max(self._epoch_seconds, 1e-9), 1),
            "seconds": round(self.seconds, 1),
        }
        self.position, self._epoch_seconds = 0, 0.0
        self._sums = np.zeros(4)
        return row

    def _taught(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the numbers of a batch's crops and the teacher's probabilities for them; empty without a teacher."""
        if self.soft is None:
            return np.empty((5, 0), np.float32), np.empty((0, 0), np.float32)
        repeats = self.settings.repeats
        views = range(self.epoch * repeats, (self.epoch + 1) * repeats)
        return (
            np.concatenate([self.soft.crops(rows, view) for view in views], axis=1),
            np.concatenate([self.soft.probabilities(rows, view) for view in views]),
        )

    def _train_step(self, side: int) -> Any:
        if side not in self._step_functions:
            self._step_functions[side] = self._make_step(side)
        return self._step_functions[side]

    def _make_step(self, side: int) -> Any:
        import tensorflow as tf

        settings, model, classes = self.settings, self.model, self.spec.classes
        learned = model.trainable_variables
        pairs = list(zip(self.average, model.variables, strict=True))
        smoothing, share, warm = settings.label_smoothing, settings.distillation, settings.temperature

        @tf.function(reduce_retracing=True, autograph=False)
        def step(images: Any, labels: Any, draw: Any, probabilities: Any, rate: Any, number: Any) -> Any:
            targets = tf.one_hot(labels, classes) * (1 - smoothing) + smoothing / classes
            if share:  # both kinds of targets are mixed alike
                targets = tf.concat([targets, probabilities], axis=1)
            crops, targets = change(images, targets, (side, side), settings, number, draw if share else None)
            crops = normalized(crops)
            with tf.GradientTape() as tape:
                logits = tf.cast(model(crops, training=True), tf.float32)
                loss = tf.nn.softmax_cross_entropy_with_logits(targets[:, :classes], logits)
                if share:
                    loss = (1 - share) * loss + share * warm**2 * divergence(targets[:, classes:], logits / warm)
                loss = tf.reduce_mean(loss)
            gradients = tape.gradient(loss, [v.value for v in learned])
            for variable, gradient, velocity in zip(learned, gradients, self.velocity, strict=True):
                if decays(variable):
                    gradient += settings.weight_decay * variable.value
                velocity.assign(settings.momentum * velocity + gradient)
                variable.value.assign_sub(rate * (gradient + settings.momentum * velocity))
            done = tf.cast(number, tf.float32)
            keep = tf.minimum(settings.ema_decay, (1 + done) / (10 + done))
            for mean, variable in pairs:
                mean.assign(keep * mean + (1 - keep) * variable.value)
            hits = tf.reduce_sum(tf.cast(tf.equal(tf.argmax(logits, 1), labels), tf.float32))
            return loss, hits

        return lambda *batch: step(*map(tf.constant, batch[:-1]), tf.constant(batch[-1], tf.int32))

    def validate(self, held_out: PixelStore) -> dict[str, float]:
        """Measures the averaged weights on whole images of the full size."""
        import tensorflow as tf

        position = {name: index for index, name in enumerate(self.store.classes)}
        translate = np.array([position[name] for name in held_out.classes])
        with self._averaged():

            @tf.function(reduce_retracing=True, autograph=False)
            def logits_of(images: Any) -> Any:
                return tf.cast(self.model(normalized(tf.cast(images, tf.float32)), training=False), tf.float32)

            loss = top1 = top5 = 0.0
            for start in range(0, len(held_out), 250):
                labels = translate[held_out.labels[start : start + 250]]
                logits = logits_of(tf.constant(held_out.images[start : start + 250])).numpy()
                shifted = logits - logits.max(axis=1, keepdims=True)
                logs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
                own = logits[np.arange(len(labels)), labels]
                # ties count against the network, and so does what is no number
                rank = logits.shape[1] - 1 - (logits < own[:, None]).sum(axis=1)
                loss -= float(logs[np.arange(len(labels)), labels].sum())
                top1 += float((rank < 1).sum())
                top5 += float((rank < 5).sum())
        count = len(held_out)
        return {
            "val_loss": round(loss / count, 5),
            "val_top1": round(top1 / count, 5),
            "val_top5": round(top5 / count, 5),
        }

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[None]:
        """Puts the moving average into the network for a while."""
        own = [v.numpy() for v in self.model.variables]
        for variable, mean in zip(self.model.variables, self.average, strict=True):
            variable.assign(mean)
        try:
            yield
        finally:
            for variable, value in zip(self.model.variables, own, strict=True):
                variable.assign(value)

    def _arrays(self) -> dict[str, Any]:
        groups = {"weight": self.model.variables, "average": self.average, "velocity": self.velocity}
        return {f"{name}/{i}": v for name, group in groups.items() for i, v in enumerate(group)}

    def save(self, output: Path) -> None:
        """Writes a checkpoint; the one before it stays until the new one is whole."""
        state = {
            "step": self.step,
            "epoch": self.epoch,
            "position": self.position,
            "seconds": self.seconds,
            "epoch_seconds": self._epoch_seconds,
            "sums": self._sums.tolist(),
        }
        loop.save_checkpoint(output, state, self._arrays())

    def restore(self, output: Path) -> bool:
        """Goes back to the newest checkpoint that can be read. Returns whether there was one."""
        variables = self._arrays()
        found = loop.load_checkpoint(output, {name: tuple(v.shape) for name, v in variables.items()})
        if found is None:
            return False
        for name, variable in variables.items():
            variable.assign(found.arrays[name])
        state = found.state
        self.step, self.epoch, self.position = state["step"], state["epoch"], state["position"]
        self.seconds, self._epoch_seconds = state["seconds"], state["epoch_seconds"]
        self._sums[:] = 0
        self._sums[: len(state["sums"])] = state["sums"]  # three in a checkpoint from before there were teachers
        return True

    def write_weights(self, path: Path, scores: dict[str, Any], names: Sequence[str] = ()) -> None:
        """Writes the averaged weights in float16 with the facts that belong to them."""
        from safetensors.numpy import save

        arrays = {
            variable.path: mean.numpy().astype(np.float16)
            for variable, mean in zip(self.model.variables, self.average, strict=True)
        }
        metadata = {
            "format": "resfit-1",
            "architecture": json.dumps(self.spec.to_dict()),
            "input_spec": json.dumps(input_contract(self.settings).to_dict()),
            "classes": json.dumps(self.store.classes),
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
