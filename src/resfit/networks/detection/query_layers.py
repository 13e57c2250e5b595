"""What builders of detectors that decode queries share: layers by their names in a plan, attention, heads of boxes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from keras import layers

from resfit.networks.detection import transformer
from resfit.networks.detection.query_plan import PlannedLayer


class PlannedLayers:
    """The layers of a plan. Each is made on first use, and is the same in every later one.

    Args:
        spec: The detector.
        plan: Its layers.
    """

    def __init__(self, spec: Any, plan: Iterable[PlannedLayer]):
        self.spec = spec
        self.plan = {layer.name: layer for layer in plan}
        self.layers: dict[str, Any] = {}

    def _attention(
        self, x: Any, placed: Any, name: str, heads: int, mask: Sequence[Any] = (), seen: Sequence[Any] = ()
    ) -> Any:
        """Attention of vectors to themselves, or to others (``seen``, with positions and without). Positions enter
        queries and keys alone."""
        others, plain = seen or (placed, x)
        queries, keys = self._dense(placed, f"{name}_query"), self._dense(others, f"{name}_key")
        values = self._dense(plain, f"{name}_value")
        attention = self._layer(f"{name}_attention", lambda name: transformer.DotProductAttention(heads, name=name))
        found = self._dense(attention([queries, keys, values, *mask]), f"{name}_attended")
        return self._normed(self._added(x, found, f"{name}_attended_add"), f"{name}_attended_norm")

    def _feed_forward(self, x: Any, name: str, activation: str) -> Any:
        hidden = self._activation(self._dense(x, f"{name}_hidden"), activation, f"{name}_hidden_act")
        found = self._dense(hidden, f"{name}_output")
        return self._normed(self._added(x, found, f"{name}_output_add"), f"{name}_output_norm")

    def _boxes(self, x: Any, name: str) -> Any:
        for number in (1, 2):
            x = self._activation(self._dense(x, f"{name}_box_{number}"), "relu", f"{name}_box_{number}_relu")
        return self._dense(x, f"{name}_box_3")

    def _layer(self, name: str, make: Any) -> Any:
        """A layer by its name, made on first use."""
        if name not in self.layers:
            self.layers[name] = make(name)
        return self.layers[name]

    def _conv(self, x: Any, name: str, activation: str | None = "own") -> Any:
        """A convolution and its batch norm, and the encoder's activation where there is one."""
        planned, spec = self.plan[name], self.spec
        if planned.kernel > 1:
            pad = (planned.kernel - 1) // 2
            x = self._layer(f"{name}_pad", lambda name: layers.ZeroPadding2D(pad, name=name))(x)
        x = self._layer(
            f"{name}_conv",
            lambda name: layers.Conv2D(
                planned.outputs, planned.kernel, strides=planned.stride, use_bias=False, name=name
            ),
        )(x)
        x = self._layer(
            f"{name}_bn",
            lambda name: layers.BatchNormalization(momentum=spec.norm_momentum, epsilon=spec.norm_epsilon, name=name),
        )(x)
        return x if activation is None else self._activation(x, spec.activation, f"{name}_act")

    def _dense(self, x: Any, name: str) -> Any:
        planned = self.plan[name]
        return self._layer(name, lambda name: layers.Dense(planned.outputs, name=name, **self._start(name)))(x)

    def _normed(self, x: Any, name: str) -> Any:
        return self._layer(name, lambda name: layers.LayerNormalization(epsilon=self.spec.norm_epsilon, name=name))(x)

    def _activation(self, x: Any, activation: str, name: str) -> Any:
        if activation == "gelu":
            return self._layer(name, lambda name: transformer.Gelu(name=name))(x)
        return self._layer(name, lambda name: layers.Activation(activation, name=name))(x)

    def _sigmoid(self, x: Any, name: str) -> Any:
        return self._layer(name, lambda name: layers.Activation("sigmoid", dtype="float32", name=name))(x)

    def _added(self, x: Any, other: Any, name: str) -> Any:
        return self._layer(name, lambda name: layers.Add(name=name))([x, other])

    def _stopped(self, x: Any, name: str) -> Any:
        return self._layer(name, lambda name: transformer.StopGradient(name=name))(x)

    def _start(self, name: str) -> dict[str, Any]:
        """How a dense layer begins where that matters."""
        return {}
