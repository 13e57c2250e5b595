"""Heads as plain numbers: read off the layers of a Keras model, kept as arrays, computed by numpy without Keras."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from resfit.numerics import activated, logits_of, tempered

if TYPE_CHECKING:
    import keras

_ACTIVATIONS = ("linear", "relu", "softmax", "sigmoid")


@dataclasses.dataclass(frozen=True, eq=False)
class StoredHead:
    """A head of any kind, as steps.

    Attributes:
        steps: What :func:`taken` returned.
        arrays: The numbers that go with them.
        activation: ``"softmax"`` or ``"sigmoid"``.
        temperature: What logits are divided by before that.
    """

    steps: Sequence[Mapping[str, Any]]
    arrays: Mapping[str, np.ndarray]
    activation: str
    temperature: float = 1.0

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """Returns probabilities ``(n, classes)`` of features ``(n, features)``."""
        return tempered(self._shares(features), self.temperature, self.activation)

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Returns logits with these probabilities, shape ``(n, classes)``."""
        return logits_of(self._shares(features), self.activation) / np.float32(self.temperature)

    def layers(self) -> list[Any]:
        """Raises an error: layers are those of the Keras model.

        Raises:
            TypeError: Always.
        """
        raise TypeError("a stored head has no Keras layers; those of the classifier's model are in its `model`.")

    def _shares(self, features: np.ndarray) -> np.ndarray:
        x = np.asarray(features, np.float32)
        for number, step in enumerate(self.steps):
            own = {
                name.partition("/")[2]: array
                for name, array in self.arrays.items()
                if name.partition("/")[0] == str(number)
            }
            x = _STEPS[step["kind"]](x, step, own)
        return x


def taken(head: keras.Model) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]] | None:
    """Returns the layers of a head as steps and arrays; ``None`` where it has a layer that is not known here.

    Args:
        head: Features in, probabilities out: a chain of layers.
    """
    steps: list[dict[str, Any]] = []
    arrays: dict[str, np.ndarray] = {}
    for layer in head.layers:
        kind = type(layer).__name__
        if kind in ("InputLayer", "Dropout"):
            continue
        config = layer.get_config()
        step: dict[str, Any] = {"kind": kind}
        if kind in ("Dense", "Activation"):
            step["activation"] = config["activation"]
            if step["activation"] not in _ACTIVATIONS or config.get("use_bias") is False:
                return None
        elif kind == "NeighbourVotes":
            step |= {name: config[name] for name in ("classes", "count", "temperature")}
        elif kind == "BatchNormalization":
            if config["center"] or config["scale"]:
                return None
            step["epsilon"] = config["epsilon"]
        elif kind != "UnitNormalization":
            return None
        for place, weight in enumerate(layer.get_weights()):
            arrays[f"{len(steps)}/{place}"] = np.asarray(weight, np.float32)
        steps.append(step)
    return steps, arrays


def _dense(x: np.ndarray, step: Mapping[str, Any], own: Mapping[str, np.ndarray]) -> np.ndarray:
    return _activate(x @ own["0"] + own["1"], step, own)


def _activate(x: np.ndarray, step: Mapping[str, Any], own: Mapping[str, np.ndarray]) -> np.ndarray:
    name = step["activation"]
    return x if name == "linear" else np.maximum(x, 0) if name == "relu" else activated(x, name)


def _centre(x: np.ndarray, step: Mapping[str, Any], own: Mapping[str, np.ndarray]) -> np.ndarray:
    return (x - own["0"]) / np.sqrt(own["1"] + np.float32(step["epsilon"]))


def _unit(x: np.ndarray, step: Mapping[str, Any], own: Mapping[str, np.ndarray]) -> np.ndarray:
    return x / np.sqrt(np.maximum((x * x).sum(axis=-1, keepdims=True), np.float32(1e-12)))


def _votes(x: np.ndarray, step: Mapping[str, Any], own: Mapping[str, np.ndarray]) -> np.ndarray:
    from resfit.numerics import TINY

    cosines = x @ own["0"].T
    places = np.argsort(-cosines, axis=1, kind="stable")[:, : int(step["count"])]
    weights = np.exp((np.take_along_axis(cosines, places, axis=1) - 1) / np.float32(step["temperature"]))
    votes = (weights[..., None] * own["1"][places]).sum(axis=1)
    shares = votes / np.maximum(votes.sum(axis=1, keepdims=True), 1e-30)
    return np.log(shares + np.float32(TINY))


_STEPS = {
    "Dense": _dense,
    "Activation": _activate,
    "BatchNormalization": _centre,
    "UnitNormalization": _unit,
    "NeighbourVotes": _votes,
}
