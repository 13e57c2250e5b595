"""Keras on several cards of one machine: each has a copy of the network, and batches are dealt out in turn."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from resfit.devices import Device
from resfit.engines.keras import IN_FLIGHT, KerasEngine

if TYPE_CHECKING:
    import keras

_Tag = TypeVar("_Tag")
# images for each card from which one batch is divided among them
_WORTH_DIVIDING = 16


class KerasCardsEngine:
    """Runs a Keras model in inference mode on several cards. Several threads may use it.

    Args:
        model: A network with one input and one output.
        precision: As :class:`resfit.engines.keras.KerasEngine` takes it.
        device: The cards, as ``device="gpu:all"`` finds them.
        compiled: Whether XLA compiles it.

    Attributes:
        precision: As the argument.
        device: As the argument.
    """

    name = "keras"

    def __init__(self, model: keras.Model, precision: str, device: Device, *, compiled: bool = False):
        self.precision, self.device = precision, device
        self._engines = [KerasEngine(model, precision, card, compiled=compiled) for card in device.each]

    def run(self, images: Any) -> np.ndarray:
        """Runs one batch, a large one on all cards at once; see :class:`resfit.engines.Engine`."""
        images = np.asarray(images)
        cards = len(self._engines)
        if len(images) < cards * _WORTH_DIVIDING:
            return self._engines[0].run(images)
        edges = np.linspace(0, len(images), cards + 1).round().astype(int).tolist()
        parts = ((None, images[begin:end]) for begin, end in itertools.pairwise(edges))
        return np.concatenate([rows for _, rows in self.stream(parts)])

    def stream(self, batches: Iterable[tuple[_Tag, np.ndarray]]) -> Iterator[tuple[_Tag, np.ndarray]]:
        """Runs batches as they come, each on the next card; in order. See :func:`resfit.engines.stream`."""
        pending: deque[tuple[_Tag, np.ndarray, KerasEngine, Any]] = deque()

        def finish() -> tuple[_Tag, np.ndarray]:
            tag, images, engine, outputs = pending.popleft()
            return tag, engine.finish(images, outputs)

        for (tag, images), engine in zip(batches, itertools.cycle(self._engines), strict=False):
            pending.append((tag, images, engine, engine.begin(images)))
            while len(pending) >= IN_FLIGHT * len(self._engines):
                yield finish()
        while pending:
            yield finish()
