"""One training on several workers: the only module that uses a distribution strategy of TensorFlow.

Each worker holds the whole network, and takes its share of every batch. Gradients are summed over the workers before
they are clipped and applied, so that all hold the same weights after each step; the loss is divided by the size of the
whole batch, which stays the same however many workers there are. Batch norms that learn take their statistics over the
whole batch. The first worker alone writes checkpoints, log and weights; a training that lost a worker begins again from
the checkpoint, on as many workers as there are then.

A worker is a process, with a GPU of its own where there is one: on one machine as on many.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from resfit.errors import ArgumentError


class Replicas:
    """This worker's place among all.

    Made before TensorFlow has computed anything: TensorFlow joins the others then, which ``TF_CONFIG`` names.

    Attributes:
        rank: Of this worker, from 0.
        count: Number of workers.
        size: Of the batch that was last shared out.

    Raises:
        ArgumentError: ``TF_CONFIG`` names no workers.
    """

    def __init__(self) -> None:
        try:
            stated = json.loads(os.environ.get("TF_CONFIG", "{}"))
            self.rank, self.count = int(stated["task"]["index"]), len(stated["cluster"]["worker"])
        except (ValueError, KeyError, TypeError) as error:
            raise ArgumentError(f"TF_CONFIG must name the workers of a training. Received: {error!r}.") from error
        import tensorflow as tf

        self.size = 0
        self._strategy = tf.distribute.MultiWorkerMirroredStrategy()

    def agreed(self, value: Any) -> Any:
        """Returns what the first worker says, so that all go the same way; every worker calls this.

        Args:
            value: What can be written as JSON; of the other workers it is not looked at.
        """
        text = json.dumps(value).encode() if self.writes else b""
        length = int(self._summed([np.array([len(text)], np.int32)])[0][0])
        found = np.zeros(length, np.int32)
        if self.writes:
            found[:] = np.frombuffer(text, np.uint8)
        return json.loads(self._summed([found])[0].astype(np.uint8).tobytes())

    def copy_first(self, variables: Sequence[Any]) -> None:
        """Sets variables to those of the first worker; every worker calls this.

        Args:
            variables: Of the same shapes on all.
        """
        values = [variable.numpy() for variable in variables]
        found = self._summed([value if self.writes else np.zeros_like(value) for value in values])
        for variable, value in zip(variables, found, strict=True):
            variable.assign(value)

    def _summed(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Returns arrays summed over the workers."""
        import tensorflow as tf

        def summed(*tensors: Any) -> Any:
            return self.total([tf.identity(tensor) for tensor in tensors])  # which have a device, as inputs have not

        found = self.step(summed)(*map(tf.constant, arrays))
        return [value.numpy() for value in found]

    @property
    def writes(self) -> bool:
        """Whether this worker is the one that writes."""
        return self.rank == 0

    def synchronise(self, model: Any) -> None:
        """Synchronises the trainable batch norms of a network over the batches of all workers.

        Args:
            model: The network.
        """
        import keras

        for layer in model.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.synchronized = True

    def share(self, values: Any) -> Any:
        """Returns this worker's part of a global batch, which is equal on all workers.

        Args:
            values: Arrays or tensors ``(size, ...)``, however they are nested; ``None`` stays.

        Raises:
            ArgumentError: There are fewer images than workers.
        """
        import tensorflow as tf

        self.size = next(len(value) for value in tf.nest.flatten(values) if value is not None)
        if self.size < self.count:
            raise ArgumentError(
                f"a batch must have an image for each worker. Received: {self.size} for {self.count} workers."
            )
        edges = np.linspace(0, self.size, self.count + 1).round().astype(int)
        mine = slice(int(edges[self.rank]), int(edges[self.rank + 1]))
        return tf.nest.map_structure(lambda value: None if value is None else value[mine], values)

    def total(self, tensors: Any) -> Any:
        """Returns tensors summed over the workers; called inside a step.

        Args:
            tensors: However they are nested.
        """
        import tensorflow as tf

        context = tf.distribute.get_replica_context()
        flat = context.all_reduce(tf.distribute.ReduceOp.SUM, tf.nest.flatten(tensors))
        return tf.nest.pack_sequence_as(tensors, flat)

    def step(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Returns a graph that runs a step on this worker, where :meth:`total` waits for the others.

        Args:
            function: Of tensors.
        """
        import tensorflow as tf

        return tf.function(lambda *tensors: self._strategy.run(function, args=tensors), autograph=False)


_joined: list[Replicas] = []


def join() -> Replicas:
    """Makes this process one of the workers that ``TF_CONFIG`` names, for all that it trains from now on.

    Raises:
        ArgumentError: ``TF_CONFIG`` names no workers.
    """
    _joined[:] = [Replicas()]
    return _joined[0]


def joined() -> Replicas | None:
    """Returns the workers of which this process is one; ``None`` where it trains alone."""
    return _joined[0] if _joined else None
