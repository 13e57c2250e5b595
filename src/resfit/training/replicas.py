"""One training on several workers or cards: the only module that uses a distribution strategy of TensorFlow.

Each takes its share of every batch. Gradients are summed over the shares before they are clipped and applied; the loss
is divided by the size of the whole batch, which stays the same however many shares there are. Batch norms that learn
take their statistics over the whole batch.

A worker (:class:`Replicas`) is a process, with a GPU of its own where there is one. It holds the whole network, equal
in all workers after each step. The first worker alone writes checkpoints, log and weights; a training that lost a
worker begins again from the checkpoint, on as many workers as there are then. Cards of one machine
(:class:`CardReplicas`) are in one process, which holds the network once, and takes one step for all.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
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
        alone: Whether this process holds all shares of a batch, so that it need not wait for others.

    Raises:
        ArgumentError: ``TF_CONFIG`` names no workers.
    """

    alone = False
    rank: int
    count: int
    size: int
    _strategy: Any

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

        graph = tf.function(lambda *tensors: self._strategy.run(summed, args=tensors), autograph=False)
        return [value.numpy() for value in graph(*map(tf.constant, arrays))]

    @property
    def writes(self) -> bool:
        """Whether this worker is the one that writes."""
        return self.rank == 0

    def share(self, values: Any) -> Any:
        """Returns this worker's part of a global batch, which is equal on all workers, as :meth:`run` takes it.

        Args:
            values: Arrays or tensors ``(size, ...)``, however they are nested; those of one row are for all.

        Raises:
            ArgumentError: There are fewer images than workers.
        """
        return _tensors(self._parts(values)[self.rank])

    def run(self, function: Callable[..., Any], shares: Any, *others: Any, model: Any) -> Any:
        """Runs a function on each share, where :meth:`total` waits for the others; called inside a graph.

        Args:
            function: Of a share, and of the others; it changes no variables.
            shares: What :meth:`share` returned.
            others: Tensors that all get.
            model: The network, whose trainable batch norms take their statistics over all shares meanwhile.

        Returns:
            What it returned for the first share of this process.
        """
        import tensorflow as tf

        with _synchronised(model):
            found = self._strategy.run(function, args=(shares, *others))
        first = [self._strategy.experimental_local_results(value)[0] for value in tf.nest.flatten(found)]
        return tf.nest.pack_sequence_as(found, first)

    def total(self, tensors: Any) -> Any:
        """Returns tensors summed over all shares; called inside the function of :meth:`run`.

        Args:
            tensors: However they are nested.
        """
        import tensorflow as tf

        context = tf.distribute.get_replica_context()
        flat = context.all_reduce(tf.distribute.ReduceOp.SUM, tf.nest.flatten(tensors))
        return tf.nest.pack_sequence_as(tensors, flat)

    def _parts(self, values: Any) -> list[Any]:
        """Divides a batch."""
        import tensorflow as tf

        self.size = max(len(value) for value in tf.nest.flatten(values))
        if self.size < self.count:
            raise ArgumentError(
                f"a batch must have an image for each worker. Received: {self.size} for {self.count} workers."
            )
        edges = np.linspace(0, self.size, self.count + 1).round().astype(int).tolist()

        def part(begin: int, end: int) -> Any:
            return tf.nest.map_structure(lambda value: value[begin:end] if len(value) > 1 else value, values)

        return list(itertools.starmap(part, itertools.pairwise(edges)))


class CardReplicas(Replicas):
    """Several cards of this machine, all in this process. The variables are on the first; the others read copies.

    Args:
        places: What TensorFlow calls the cards.
    """

    alone = True

    def __init__(self, places: Sequence[str]):
        import tensorflow as tf

        self.rank, self.count, self.size = 0, len(places), 0
        self._places = list(places)
        # the sum is needed where the variables are; what sums everywhere fails for good once memory has run out
        self._strategy = tf.distribute.MirroredStrategy(self._places, tf.distribute.ReductionToOneDevice())

    def agreed(self, value: Any) -> Any:
        """Returns the value: one process has one.

        Args:
            value: Anything.
        """
        return value

    def copy_first(self, variables: Sequence[Any]) -> None:
        """Leaves variables as they are: there is one set of them.

        Args:
            variables: Of the network.
        """

    def share(self, values: Any) -> Any:
        """Returns all parts of a batch, each on its card, as :meth:`run` takes them.

        Args:
            values: As :meth:`Replicas.share` takes them.

        Raises:
            ArgumentError: There are fewer images than cards.
        """
        import tensorflow as tf

        parts = self._parts(values)

        def part(context: Any) -> Any:
            number = context.replica_id_in_sync_group
            with tf.device(self._places[number]):
                return _tensors(parts[number])

        return self._strategy.experimental_distribute_values_from_function(part)


@contextlib.contextmanager
def _synchronised(model: Any) -> Iterator[None]:
    """Has the trainable batch norms of a network take their statistics over all shares of a batch."""
    import keras

    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    before = [norm.synchronized for norm in norms]
    try:
        for norm in norms:
            norm.synchronized = True
        yield
    finally:
        for norm, own in zip(norms, before, strict=True):
            norm.synchronized = own


def _tensors(values: Any) -> Any:
    """Returns arrays, however they are nested, as float32 tensors."""
    import tensorflow as tf

    return tf.nest.map_structure(lambda value: tf.constant(value, tf.float32), values)


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
