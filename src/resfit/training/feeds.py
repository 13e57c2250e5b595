"""Where the inputs of a fine-tuning run come from: stored outputs of the frozen part, or pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from resfit import devices
from resfit.training import augment

if TYPE_CHECKING:
    from resfit.engines import Engine
    from resfit.training.settings import Tuning


class Feed(Protocol):
    """Where a run's inputs come from."""

    def __len__(self) -> int:
        """Number of images."""
        ...

    def batch(self, rows: np.ndarray, targets: Any, epoch: int, step: int, side: int | None) -> tuple[Any, Any]:
        """Returns inputs and targets of a training step.

        Args:
            rows: Positions of the images.
            targets: Array ``(batch, classes)``.
            epoch: From 0.
            step: From 0, over all epochs.
            side: Height and width in pixels; ``None`` is the network's own.
        """
        ...

    def plain(self, rows: np.ndarray) -> np.ndarray:
        """Returns inputs as they are measured on, unchanged."""
        ...


class MapFeed:
    """Stored outputs of the frozen part.

    Args:
        maps: One array ``(n, ...)`` for each view of the images, the plain one first; memory-mapped will do.
        tuning: What mixes a batch.
    """

    def __init__(self, maps: Sequence[np.ndarray], tuning: Tuning):
        self._maps, self._tuning = list(maps), tuning

    def __len__(self) -> int:
        """Number of images."""
        return len(self._maps[0])

    def batch(self, rows: np.ndarray, targets: Any, epoch: int, step: int, side: int | None) -> tuple[Any, Any]:
        """Returns stored maps, each of the view whose turn it is; see :class:`Feed`."""
        views = (rows + epoch) % len(self._maps)
        values = np.stack([self._maps[view][row] for view, row in zip(views, rows, strict=True)])
        return mixed(values.astype(np.float32, copy=False), targets, self._tuning, step)

    def plain(self, rows: np.ndarray) -> np.ndarray:
        """Returns the maps of the plain images."""
        return np.asarray(self._maps[0][rows], np.float32)


class PixelFeed:
    """Pixels, changed at random, and through the frozen part if there is one.

    Args:
        pixels: uint8 or float32 array ``(n, height, width, channels)``; memory-mapped will do.
        tuning: What changes and mixes them.
        frozen: The frozen part, ready to run.
    """

    def __init__(self, pixels: np.ndarray, tuning: Tuning, frozen: Engine | None = None):
        self._pixels, self._tuning, self._frozen = pixels, tuning, frozen
        self._change = changer(tuning)

    def __len__(self) -> int:
        """Number of images."""
        return len(self._pixels)

    def batch(self, rows: np.ndarray, targets: Any, epoch: int, step: int, side: int | None) -> tuple[Any, Any]:
        """Returns changed images, or the frozen part's outputs for them; see :class:`Feed`."""
        images = self._pixels[rows]
        size = (side, side) if side else images.shape[1:3]
        if self._tuning.changes_images or size != images.shape[1:3]:
            images = self._change(images, size, (self._tuning.seed, step))
        images, targets = mixed(images, targets, self._tuning, step)
        return self._through(images), targets

    def plain(self, rows: np.ndarray) -> np.ndarray:
        """Returns the images, or the frozen part's outputs for them."""
        return self._through(self._pixels[rows])

    def _through(self, images: Any) -> np.ndarray:
        if self._frozen is None:
            return np.asarray(images, np.float32)
        return self._frozen.run(np.asarray(images))


def changer(tuning: Tuning) -> Callable[[np.ndarray, tuple[int, int], tuple[int, int]], Any]:
    """Returns the function that changes a batch of images at random: images, size, two integers as a seed."""
    import tensorflow as tf

    @tf.function(autograph=False, reduce_retracing=True)
    def change(images: Any, seed: Any, height: int, width: int) -> Any:
        seeds = tf.random.split(seed, 4)
        values = tf.cast(images, tf.float32)
        if tuning.rand_augment is not None:
            count, magnitude = tuning.rand_augment
            values = augment.rand_augment(values, int(count), float(magnitude), seeds[0])
        values = augment.crop_and_flip(values, (height, width), tuning.crop_scale, seeds[1], flip=tuning.flip)
        if tuning.colour:
            values = augment.colour(values, tuning.colour, seeds[2])
        if tuning.erasing:
            values = augment.random_erasing(values, tuning.erasing, seeds[3])
        return values

    def on_host(images: np.ndarray, size: tuple[int, int], seed: tuple[int, int]) -> Any:
        with devices.on_host():  # a card would send them down again, only to get them back in the step
            return change(tf.constant(images), tf.constant(seed, tf.int32), *size)

    return on_host


def mixed(values: Any, targets: Any, tuning: Tuning, step: int) -> tuple[Any, Any]:
    """Applies mixup and CutMix to a batch; with both, they take turns.

    Args:
        values: Array ``(batch, ...)``.
        targets: Array ``(batch, classes)``.
        tuning: Their parameters.
        step: Of the run.
    """
    kinds = [(name, value) for name, value in (("mixup", tuning.mixup), ("cutmix", tuning.cutmix)) if value > 0]
    if not kinds:
        return values, targets
    name, alpha = kinds[step % len(kinds)]
    blend = augment.mixup if name == "mixup" or np.ndim(values) != 4 else augment.cutmix
    with devices.on_host():
        values, targets = blend(values, targets, alpha, (tuning.seed + 1, step))
    return np.asarray(values), np.asarray(targets)
