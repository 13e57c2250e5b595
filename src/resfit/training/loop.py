"""What every training loop here shares: batches ahead of time, checkpoints, the log, schedules and optimisers.

A run is resumable because everything random in it is a function of the seed, the epoch and the step, and because a
checkpoint holds all that is not.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import importlib.util
import io
import json
import math
import os
import queue
import sys
import threading
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resfit.devices import Device
from resfit.errors import ArgumentError, ResfitWarning, closest
from resfit.storage.atomic import atomic_path, write_text

SCHEDULES = ("constant", "cosine", "one_cycle")
OPTIMIZERS = ("sgd", "adam", "adamw")

_NEWEST, _BEFORE = "checkpoint.npz", "checkpoint-before.npz"


def rate(schedule: str, peak: float, warmup: float, progress: float) -> float:
    """Returns the learning rate at a share of the run.

    Args:
        schedule: ``"constant"`` or ``"cosine"``, both after a linear warm-up; or ``"one_cycle"``, a rise over 30 % and
            a fall to a thousandth (Smith and Topin 2017, arXiv:1708.07120).
        peak: The highest rate.
        warmup: Share of the run in which the rate rises from zero.
        progress: Share of the run that is done, in [0, 1].
    """
    rise = 0.3 if schedule == "one_cycle" else warmup
    floor = 1e-3 if schedule == "one_cycle" else 0.0
    if progress < rise:
        share = progress / rise
        return peak * (0.5 - 0.5 * math.cos(math.pi * share) if schedule == "one_cycle" else share)
    if schedule == "constant":
        return peak
    share = min(1.0, (progress - rise) / (1 - rise))
    return peak * (floor + (1 - floor) * (0.5 + 0.5 * math.cos(math.pi * share)))


def smaller_parts(device: Device, count: int, parts: int, least: int = 1) -> int | None:
    """Returns in how many parts a batch goes on for which memory ran out, and says so.

    Args:
        device: Whose memory it was.
        count: Images of the batch.
        parts: In which it went through.
        least: Images that a part must have.

    Returns:
        Twice as many; ``None`` where it cannot be divided further.
    """
    if 2 * parts * least > count:
        return None
    warnings.warn(
        f"{device.label} has not enough memory for {count // parts} images a step at once: going on with "
        f"{count // (2 * parts)}, whose gradients are added up to the same step.",
        ResfitWarning,
        stacklevel=4,
    )
    return 2 * parts


def decays(variable: Any) -> bool:
    """Whether weight decay applies: to kernels, not to norms and biases."""
    return str(variable.path).endswith("kernel")


class Optimizer:
    """Gradient descent with a rate and a decay of its own for each variable.

    The updates are those of ``keras.optimizers.SGD`` (Nesterov), ``Adam`` and ``AdamW``, each in one pass over memory.

    Args:
        variables: Keras variables that learn.
        name: ``"sgd"``, ``"adam"`` or ``"adamw"``. Weight decay is decoupled from the gradient in all three (Loshchilov
            and Hutter 2017, arXiv:1711.05101).
        momentum: Of ``"sgd"``.
        scales: For each variable what the learning rate is multiplied by; ``None`` is 1 everywhere.
        weight_decay: Pulls on kernels alone, in proportion to the rate.

    Attributes:
        slots: The state, as TensorFlow variables.
    """

    def __init__(
        self,
        variables: Sequence[Any],
        name: str = "adamw",
        *,
        momentum: float = 0.9,
        scales: Sequence[float] | None = None,
        weight_decay: float = 0.0,
    ):
        import tensorflow as tf

        check_choice("optimizer", name, OPTIMIZERS)
        self.variables = list(variables)
        self._name, self._momentum = name, momentum
        self._scales = list(scales) if scales is not None else [1.0] * len(self.variables)
        self._decay = weight_decay
        each = 1 if name == "sgd" else 2
        self.slots = [tf.Variable(tf.zeros_like(v.value), trainable=False) for v in self.variables for _ in range(each)]

    def apply(self, gradients: Sequence[Any], rate: Any, number: Any) -> None:
        """Takes one step, inside or outside a graph.

        Args:
            gradients: One tensor a variable; ``None`` leaves the variable and its state as they are.
            rate: Learning rate before the scales, a float32 scalar.
            number: Steps taken before this one, an integer scalar.
        """
        import tensorflow as tf

        rate = tf.cast(rate, tf.float32)
        done = tf.cast(number, tf.float32) + 1.0
        first, second = tf.constant(0.9), tf.constant(0.999)
        corrections = first**done, second**done
        for index, (variable, gradient) in enumerate(zip(self.variables, gradients, strict=True)):
            if gradient is None:
                continue
            own = rate * self._scales[index]
            value = variable.value
            if self._decay and decays(variable):
                value.assign_sub(own * self._decay * value)
            if self._name == "sgd":
                tf.raw_ops.ResourceApplyKerasMomentum(
                    var=value.handle,
                    accum=self.slots[index].handle,
                    lr=own,
                    grad=gradient,
                    momentum=self._momentum,
                    use_nesterov=True,
                )
            else:
                tf.raw_ops.ResourceApplyAdam(
                    var=value.handle,
                    m=self.slots[2 * index].handle,
                    v=self.slots[2 * index + 1].handle,
                    beta1_power=corrections[0],
                    beta2_power=corrections[1],
                    lr=own,
                    beta1=first,
                    beta2=second,
                    epsilon=1e-7,
                    grad=gradient,
                )


class CoupledSGD(Optimizer):
    """Nesterov's steps as they were published for networks from scratch.

    Weight decay is part of the gradient, and the rate stands outside the velocity, so that a rate that falls does not
    leave larger steps behind. Keras' SGD has neither.
    """

    def apply(self, gradients: Sequence[Any], rate: Any, number: Any) -> None:
        """Takes one step; see :meth:`Optimizer.apply`."""
        for variable, velocity, scale, gradient in zip(
            self.variables, self.slots, self._scales, gradients, strict=True
        ):
            if gradient is None:
                continue
            if decays(variable):
                gradient += self._decay * variable.value
            velocity.assign(self._momentum * velocity + gradient)
            variable.value.assign_sub(rate * scale * (gradient + self._momentum * velocity))


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Makes sure that a value is one of a few.

    Raises:
        ArgumentError: It is not.
    """
    if value not in choices:
        raise ArgumentError(f"{name} must be one of {tuple(choices)}. Received: {value!r}.{closest(value, choices)}")


@dataclasses.dataclass(frozen=True, eq=False)
class TrainingCheckpoint:
    """Where a run stood.

    Attributes:
        state: JSON-ready values: step, epoch and what else the run counts.
        arrays: Everything that is an array, by name.
    """

    state: dict[str, Any]
    arrays: dict[str, np.ndarray]


def save_checkpoint(folder: Path, state: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
    """Writes a checkpoint; the one before it stays until the new one is whole.

    Args:
        folder: Of the run.
        state: JSON-ready values.
        arrays: TensorFlow variables or arrays, by name.
    """
    newest = folder / _NEWEST
    if newest.exists():
        os.replace(newest, folder / _BEFORE)
    with atomic_path(newest) as temporary:
        values = {
            name: np.asarray(value.numpy() if hasattr(value, "numpy") else value) for name, value in arrays.items()
        }
        np.savez(temporary, state=np.array(json.dumps(dict(state))), **values)  # type: ignore[arg-type]


def load_checkpoint(folder: Path, arrays: Mapping[str, tuple[int, ...]] | None = None) -> TrainingCheckpoint | None:
    """Returns the newest checkpoint that can be read, or ``None``.

    Args:
        folder: Of the run.
        arrays: Shapes that must be there, by name; a checkpoint without them is passed over.
    """
    for name in (_NEWEST, _BEFORE):
        try:
            with np.load(folder / name, allow_pickle=False) as saved:
                found = {key: saved[key] for key in saved.files}
            state = json.loads(str(found.pop("state")))
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
            continue
        if arrays is None or all(key in found and found[key].shape == tuple(shape) for key, shape in arrays.items()):
            return TrainingCheckpoint(state, found)
    return None


def forget_checkpoints(folder: Path) -> None:
    """Removes the checkpoints of a run, if there are any."""
    for name in (_NEWEST, _BEFORE):
        (folder / name).unlink(missing_ok=True)


@contextlib.contextmanager
def prefetch(items: Iterator[Any], depth: int) -> Iterator[Iterator[Any]]:
    """Runs an iterator in a thread of its own, at most ``depth`` items ahead.

    Args:
        items: What to run through; an exception in it is raised where its item would have come.
        depth: Length of the queue.
    """
    line: queue.Queue[Any] = queue.Queue(depth)
    closed = threading.Event()
    end = object()

    def fill() -> None:
        last: Any = end
        try:
            for item in items:
                while not closed.is_set():
                    try:
                        line.put(item, timeout=0.1)
                        break
                    except queue.Full:
                        continue
                if closed.is_set():
                    return
        except BaseException as error:
            last = error
        while not closed.is_set():
            try:
                line.put(last, timeout=0.1)
                return
            except queue.Full:
                continue

    def drain() -> Iterator[Any]:
        while (item := line.get()) is not end:
            if isinstance(item, BaseException):
                raise item
            yield item

    thread = threading.Thread(target=fill, daemon=True)
    thread.start()
    try:
        yield drain()
    finally:
        closed.set()
        thread.join()


class Log:
    """A row for each epoch in a CSV file and in TensorBoard's, and a line or a bar on stderr.

    Args:
        output: Folder of the run.
        tensorboard: Whether to write TensorBoard's files; they need the package ``tensorboard``.
        name: Of the CSV file.
        speak: Whether each row is printed as well.
    """

    def __init__(self, output: Path, tensorboard: bool, *, name: str = "log.csv", speak: bool = True):
        self.path = output / name
        self._speaks = speak
        self._shown = 0.0
        self.writer = None
        if tensorboard and importlib.util.find_spec("tensorboard") is None:
            if speak:
                say('no TensorBoard files: tensorboard is not installed (pip install "resfit[pretrain]")')
        elif tensorboard:
            import tensorflow as tf

            self.writer = tf.summary.create_file_writer(str(output / "tensorboard"))

    def rows(self) -> list[dict[str, str]]:
        """Returns what has been written so far."""
        if not self.path.exists():
            return []
        return list(csv.DictReader(io.StringIO(self.path.read_text("utf-8"))))

    def cut(self, epochs: int) -> None:
        """Drops rows of epochs that the checkpoint does not know, which will be run again."""
        rows = self.rows()
        kept = [row for row in rows if int(row["epoch"]) <= epochs]
        if len(kept) != len(rows):
            self._store(kept)

    def write(self, row: dict[str, Any]) -> None:
        """Appends the row of an epoch."""
        self._store([*self.rows(), row])
        if self.writer is not None:
            import tensorflow as tf

            with self.writer.as_default(step=int(row["step"])):
                for key, value in row.items():
                    if key not in ("epoch", "step"):
                        tf.summary.scalar(key, float(value))
            self.writer.flush()
        if self._speaks:
            say("  ".join(f"{key} {value}" for key, value in row.items()))

    def close(self) -> None:
        """Closes TensorBoard's file."""
        if self.writer is not None:
            self.writer.close()

    def _store(self, rows: Sequence[dict[str, Any]]) -> None:
        text = io.StringIO()
        if rows:
            columns = dict.fromkeys(column for row in rows for column in row)
            writer = csv.DictWriter(text, list(columns), restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        write_text(self.path, text.getvalue())

    def progress(self, done: float, epoch: int, seconds: float, report: Mapping[str, float]) -> None:
        """Shows where the run stands, at most twice a second and only on a terminal.

        Args:
            done: Share of the run, in [0, 1].
            epoch: The epoch that runs, from 1.
            seconds: Of training so far.
            report: ``loss`` and ``accuracy`` (0..1) of the epoch so far.
        """
        now = time.monotonic()
        if not sys.stderr.isatty() or now - self._shown < 0.5:
            return
        self._shown = now
        left = seconds / done * (1 - done) if done else 0.0
        sys.stderr.write(
            f"\r{100 * done:5.1f} %  epoch {epoch}  loss {report['loss']:.3f}  "
            f"accuracy {100 * report['accuracy']:.1f} %  {left / 60:.0f} min left \x1b[K"
        )
        sys.stderr.flush()


def say(text: str) -> None:
    """Prints a line on stderr, over a bar if there is one."""
    end = "\x1b[K\n" if sys.stderr.isatty() else "\n"
    sys.stderr.write(("\r" if sys.stderr.isatty() else "") + text + end)
    sys.stderr.flush()


#: Called with a line for people; :func:`say` is one.
Saying = Callable[[str], None]
