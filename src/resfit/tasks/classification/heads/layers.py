"""The one layer that a head needs and Keras does not have. It is registered under the package name ``resfit``."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="resfit")
class NeighbourVotes(keras.layers.Layer):
    """Lets the nearest of some stored directions vote for their classes.

    Args:
        size: Number of stored directions.
        classes: Number of classes.
        count: How many of the nearest vote.
        temperature: A vote is ``exp(cosine / temperature)``.
        **kwargs: As ``keras.layers.Layer`` takes them.
    """

    def __init__(self, size: int, classes: int, count: int, temperature: float, **kwargs: Any):
        super().__init__(**kwargs)
        self.size, self.classes, self.count, self.temperature = size, classes, count, temperature

    def build(self, input_shape: Any) -> None:
        """Makes room for the directions and their classes, for inputs ``(batch, features)``."""
        self.bank = self.add_weight(shape=(self.size, input_shape[-1]), trainable=False, name="bank")
        self.labels = self.add_weight(shape=(self.size, self.classes), trainable=False, name="labels")

    def call(self, inputs: Any) -> Any:
        """Returns the logarithm of each class' share of the votes, for directions ``(batch, features)``."""
        cosines = ops.matmul(inputs, ops.transpose(self.bank))
        nearest, places = ops.top_k(cosines, self.count)
        weights = ops.exp((nearest - 1) / self.temperature)
        votes = ops.sum(weights[..., None] * ops.take(self.labels, places, axis=0), axis=1)
        return ops.log(votes / ops.maximum(ops.sum(votes, axis=1, keepdims=True), 1e-30) + 1e-6)

    def compute_output_shape(self, input_shape: Any) -> tuple[Any, ...]:
        """Returns ``(batch, classes)``."""
        return (input_shape[0], self.classes)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        own = {"size": self.size, "classes": self.classes, "count": self.count, "temperature": self.temperature}
        return {**super().get_config(), **own}
