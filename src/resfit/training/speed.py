"""The machine as a recipe sees it: on a GPU real batches are timed, forward and training step."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resfit import devices, engines
from resfit.devices import Device
from resfit.engines import speed
from resfit.networks import model_graph
from resfit.training import recipes
from resfit.training.objective import Objective
from resfit.training.settings import Tuning
from resfit.training.trainer import Trainer

if TYPE_CHECKING:
    import keras

_CLASSES = 10


def hardware(
    body: keras.Model | None, precision: str = "float32", cache: bool | str | Path = True, device: Device | None = None
) -> recipes.Hardware:
    """Returns this machine, for :func:`resfit.training.recipes.recipe`.

    Args:
        body: The network, one vector an image; ``None`` where it is not known.
        precision: In which its features are computed, as :func:`resfit.engines.create` takes it.
        cache: Where measurements are kept, as :func:`resfit.engines.speed.forward` takes it.
        device: What computes; ``None`` is :func:`resfit.devices.current`.
    """
    device = device or devices.current()
    machine = recipes.measure_hardware()
    if device.kind == "cpu":
        return machine
    policy = training_precision(device)
    found = dataclasses.replace(
        machine, gpu=True, device=device.label, bfloat16=False, training_precision=policy, memory=machine.memory
    )
    if body is None:
        return found
    resolved = engines.resolve("auto", precision, device)
    forward = 0.0
    if resolved.device.kind == "gpu":
        forward = speed.forward(body, resolved, cache).seconds
    return dataclasses.replace(found, forward=forward, training=step_seconds(body, policy, device, cache))


def training_precision(device: Device) -> str:
    """Returns the dtype policy in which a card trains fastest: bfloat16 where it has units for it, else float16.

    bfloat16 has the range of float32, so that no gradient overflows.

    Args:
        device: The card.
    """
    fits = (name for name in ("bfloat16", "float16") if device.capability is not None and device.computes(name))
    return next((f"mixed_{name}" for name in fits), "float32")


def step_seconds(body: keras.Model, precision: str, device: Device, cache: bool | str | Path = True) -> float:
    """Returns the seconds that a training step of the whole network takes for an image, measured once and kept.

    Args:
        body: The network, one vector an image. It is not changed.
        precision: Dtype policy of its layers.
        device: What computes.
        cache: As :func:`resfit.engines.speed.forward` takes it.
    """
    size = speed.input_size(body)
    batch = min(recipes.BATCH, device.batch_size(size))

    def measure() -> dict[str, Any]:
        with devices.using(device):
            return {"seconds": _measured(body, precision, batch, size), "batch": batch}

    about = {"precision": precision, "size": list(size), **device.to_dict()}
    return float(speed.kept("training step", body, about, measure, cache)["seconds"])


def _measured(body: keras.Model, precision: str, batch: int, size: tuple[int, int]) -> float:
    import keras

    tuning = Tuning(precision=precision, batch_size=batch, clip=1.0, ema_decay=0.99, batch_norm="frozen")
    twin = model_graph.copy(body, dtype=tuning.policy)
    head = keras.layers.Dense(_CLASSES, name="speed_head", dtype=tuning.policy)
    model = keras.Model(twin.inputs[0], head(twin.outputs[0]))
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (batch, *size, body.inputs[0].shape[-1])).astype(np.float32)
    targets = np.eye(_CLASSES, dtype=np.float32)[random.integers(0, _CLASSES, batch)]
    rows = np.arange(batch)
    trainer = Trainer(model, [head], tuning, _Images(images), _CrossEntropy(), targets, rows, rows[:0])
    trainer.learn(images, targets)  # what it takes to begin is no part of it
    begin = time.perf_counter()
    for _ in range(speed.BATCHES):
        last = trainer.take(images, targets)
    last.numpy()
    return (time.perf_counter() - begin) / (speed.BATCHES * batch)


class _Images:
    """A feed of the same images."""

    def __init__(self, images: np.ndarray):
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def batch(self, rows: np.ndarray, targets: Any, epoch: int, step: int, side: int | None) -> tuple[Any, Any]:
        return self._images[rows], targets

    def plain(self, rows: np.ndarray) -> np.ndarray:
        return self._images[rows]


class _CrossEntropy(Objective):
    """What a classifier's loss costs."""

    metric = "accuracy"

    def loss(self, outputs: Any, targets: Any, teacher: Any) -> Any:
        import tensorflow as tf

        return tf.nn.softmax_cross_entropy_with_logits(targets, outputs)

    def score(self, outputs: Any, targets: Any) -> Any:
        import tensorflow as tf

        right = tf.equal(tf.argmax(outputs, axis=1), tf.argmax(targets, axis=1))
        return tf.reduce_sum(tf.cast(right, tf.float32))

    def measure(self, outputs: Iterator[tuple[np.ndarray, Any]]) -> tuple[float, float]:
        raise NotImplementedError("nothing is validated")
