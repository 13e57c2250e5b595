"""One step of a detector's training, in as many parts as the device's memory asks for."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from resfit import devices
from resfit.tasks.detection.feeds import Batch
from resfit.tasks.detection.phases import PhaseSettings, StepTargets
from resfit.training import loop

if TYPE_CHECKING:
    from resfit.tasks.detection.objectives import DetectionObjective

#: Of the moving average of the weights, which is what is validated and kept.
EMA_DECAY = 0.998


class TrainingStep:
    """Takes steps on batches. Memory that runs out divides them in parts, whose gradients add up to the same step.

    Args:
        objective: What is learned.
        model: From inputs to raw outputs.
        unpack: From a batch's inputs, a tensor, to the model's.
        settings: Of the phase.
        variables: What learns.
        optimizer: Of these.
        averages: A moving average of each.
        parts: Parts of a batch, where a run that goes on had found out.

    Attributes:
        parts: Parts in which a batch goes through.
    """

    def __init__(
        self,
        objective: DetectionObjective,
        model: Callable[..., Any],
        unpack: Callable[[Any], Any],
        settings: PhaseSettings,
        variables: Sequence[Any],
        optimizer: loop.Optimizer,
        averages: Sequence[Any],
        parts: int = 1,
    ):
        self._objective, self._model, self._unpack, self._settings = objective, model, unpack, settings
        self._variables, self._optimizer, self._averages = list(variables), optimizer, averages
        self.parts = parts
        self._sums: list[Any] = []
        self._graphs: dict[str, Any] = {}
        self._unconnected: set[int] = set()

    def __call__(self, batch: Batch, rate: float, number: int) -> float:
        """Takes a step.

        Args:
            batch: The pictures.
            rate: Learning rate.
            number: Of the step, from 0.

        Returns:
            The loss before it.
        """
        while True:
            try:
                return self._taken(batch, np.float32(rate), np.int64(number))
            except Exception as error:
                if not devices.is_out_of_memory(error):
                    raise
                parts = loop.smaller_parts(devices.current(), len(batch.inputs), self.parts)
                if parts is None:
                    raise
            self.parts = parts

    def _taken(self, batch: Batch, rate: Any, number: Any) -> float:
        import tensorflow as tf

        count = len(batch.inputs)
        parts = min(self.parts, count)
        targets = tuple(tf.constant(value) for value in (batch.rows, batch.boxes, batch.labels))
        if parts == 1:
            return float(self._graph("whole", self._whole)(tf.constant(batch.inputs), *targets, rate, number))
        if not self._sums:
            self._sums = [tf.Variable(tf.zeros_like(v.value), trainable=False) for v in self._variables]
        for total in self._sums:  # of a step that was not finished
            total.assign(tf.zeros_like(total))
        edges = np.linspace(0, count, parts + 1).astype(int).tolist()
        shares = [(tf.constant(batch.inputs[b:e]), tf.constant([b, e])) for b, e in itertools.pairwise(edges)]
        # what the losses are divided by is of the whole batch, and may depend on what the network says
        weigh, add = self._graph("weigh", self._weighed), self._graph("add", self._added)
        weight = tf.add_n([weigh(inputs, edge, *targets, number) for inputs, edge in shares])
        loss = tf.add_n([add(inputs, edge, weight, *targets, number) for inputs, edge in shares])
        self._graph("flush", self._flushed)(rate, number)
        return float(loss)

    def _graph(self, name: str, function: Callable[..., Any]) -> Any:
        import tensorflow as tf

        if name not in self._graphs:
            self._graphs[name] = tf.function(function, autograph=False, reduce_retracing=True)
        return self._graphs[name]

    def _whole(self, inputs: Any, rows: Any, boxes: Any, labels: Any, rate: Any, number: Any) -> Any:
        loss, gradients = self._gradients(inputs, StepTargets(rows, boxes, labels, number, self._settings))
        self._apply(gradients, rate, number)
        return loss

    def _weighed(self, inputs: Any, edges: Any, rows: Any, boxes: Any, labels: Any, number: Any) -> Any:
        part = StepTargets(rows, boxes, labels, number, self._settings, edges)
        return self._objective.weight(self._model, self._unpack(inputs), part)

    def _added(self, inputs: Any, edges: Any, weight: Any, rows: Any, boxes: Any, labels: Any, number: Any) -> Any:
        import tensorflow as tf

        part = StepTargets(rows, boxes, labels, number, self._settings, edges, weight)
        loss, gradients = self._gradients(inputs, part)
        self._unconnected = {place for place, gradient in enumerate(gradients) if gradient is None}
        with tf.control_dependencies([gradient for gradient in gradients if gradient is not None]):
            for total, gradient in zip(self._sums, gradients, strict=True):
                if gradient is not None:
                    total.assign_add(gradient)
        return loss

    def _flushed(self, rate: Any, number: Any) -> None:
        sums = enumerate(self._sums)
        self._apply([None if place in self._unconnected else total.read_value() for place, total in sums], rate, number)

    def _gradients(self, inputs: Any, targets: StepTargets) -> tuple[Any, list[Any]]:
        import tensorflow as tf

        with tf.GradientTape(watch_accessed_variables=False) as tape:
            for variable in self._variables:
                tape.watch(variable.value)
            # norms keep the statistics of the checkpoint
            loss = self._objective.loss(self._model, self._unpack(inputs), targets)
        gradients = tape.gradient(loss, [variable.value for variable in self._variables])
        # rows of a table come as slices
        return loss, [None if one is None else tf.convert_to_tensor(one) for one in gradients]

    def _apply(self, gradients: list[Any], rate: Any, number: Any) -> None:
        import tensorflow as tf

        gradients, _ = tf.clip_by_global_norm(gradients, self._objective.clip)
        # memory that runs out leaves all variables as they were
        with tf.control_dependencies([gradient for gradient in gradients if gradient is not None]):
            self._optimizer.apply(gradients, rate, number)
        done = tf.cast(number, tf.float32) + 1.0
        decay = tf.minimum(EMA_DECAY, done / (done + 10.0))
        for average, variable in zip(self._averages, self._variables, strict=True):
            average.assign_add((1.0 - decay) * (variable.value - average))
