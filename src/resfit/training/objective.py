"""What a training run learns: the loss of a batch, and the metric that the best epoch is chosen by."""

from __future__ import annotations

import abc
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np


class Objective(abc.ABC):
    """A loss and a metric. A task brings one; the trainer knows nothing else of the task.

    Outputs and targets are what the network gives and the feed yields: arrays with the batch first, or any nesting of
    such in lists and dictionaries.

    Attributes:
        metric: Name of the metric in the log, such as ``"accuracy"``; larger is better.
    """

    metric: ClassVar[str]

    @abc.abstractmethod
    def loss(self, outputs: Any, targets: Any, teacher: Any) -> Any:
        """Returns the loss of each image ``(batch,)``, inside the graph.

        Args:
            outputs: Of the network, in float32.
            targets: Of the batch.
            teacher: Outputs of a teacher for the batch; of shape ``(1, 1)`` without one.
        """

    @abc.abstractmethod
    def score(self, outputs: Any, targets: Any) -> Any:
        """Returns the sum over the batch of what the metric of the training images averages, inside the graph.

        Args:
            outputs: Of the network, in float32.
            targets: Of the batch.
        """

    @abc.abstractmethod
    def measure(self, outputs: Iterator[tuple[np.ndarray, Any]]) -> tuple[float, float]:
        """Returns mean loss and metric of validation images.

        Args:
            outputs: Positions in the feed, and what the network gives for them, some images at a time.
        """
