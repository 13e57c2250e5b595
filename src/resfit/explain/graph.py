"""A network that is run step by step: its feature maps on the way, and its scores before the last activation.

Models inside models are walked through, so that a feature map is found at any depth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from resfit.engines.prefix import taps
from resfit.errors import ArgumentError, closest

if TYPE_CHECKING:
    import keras

#: Cells on the shorter side that a feature map must have to say where something is.
LEAST_CELLS = 7

_ACTIVATIONS = ("softmax", "sigmoid")


class ExplainableGraph:
    """A network as its explanations see it.

    Args:
        model: A functional or sequential network with one input ``(batch, height, width, channels)`` and one output
            ``(batch, classes)``, probabilities or logits.

    Attributes:
        activation: What makes the scores probabilities: ``"softmax"``, ``"sigmoid"``, or empty where the output has no
            such activation; its values are then the scores.

    Raises:
        ArgumentError: The model has another form.
    """

    def __init__(self, model: keras.Model):
        root = _functional(model)
        if root is None or len(root.inputs) != 1 or len(root.outputs) != 1 or len(root.outputs[0].shape) != 2:
            raise ArgumentError(
                "explanations are for functional or sequential models with one image input and one output "
                f"(batch, classes). Received: {type(model).__name__} {model.name!r}."
            )
        self._model = model
        self._root = root
        self._last = _last_operation(root)
        self.activation = _activation_name(self._last)

    def maps(self, size: tuple[int, int], channels: int) -> dict[str, tuple[int, int]]:
        """Returns the feature maps of the network, in their order: name of the layer, height and width.

        Args:
            size: Height and width of the image.
            channels: Its channels.
        """
        import keras

        found: dict[str, tuple[int, int]] = {}

        def step(operation: Any) -> Callable[..., Any]:
            inner = _functional(operation)

            def call(*arguments: Any, **options: Any) -> Any:
                if inner is not None:
                    return inner._run_through_graph([arguments[0]], operation_fn=step)
                output = operation.compute_output_spec(*arguments, **options)
                shape: Any = getattr(output, "shape", ())
                if len(shape) == 4 and None not in shape[1:3]:
                    found[operation.name] = (int(shape[1]), int(shape[2]))
                return output

            return call

        start = keras.KerasTensor((1, *size, channels), dtype=self._root.inputs[0].dtype)
        self._root._run_through_graph([start], operation_fn=step)
        return found

    def layer_of(self, stage: str | None, size: tuple[int, int], channels: int) -> str:
        """Returns the layer whose output is the feature map of a stage.

        Args:
            stage: ``"stage1"`` to ``"stage5"``, the name of a layer, or ``None``: the last map, or where that has fewer
                than 7 cells on a side, that of the last stage that has as many.
            size: Height and width of the image.
            channels: Its channels.

        Raises:
            ArgumentError: There is no such map.
        """
        maps = self.maps(size, channels)
        if not maps:
            raise ArgumentError("the network has no feature maps to look at. Use method='integrated-gradients'.")
        stages = self._stages(maps)
        if stage is None:
            last = list(maps)[-1]
            deepest = [last, *(name for name in reversed(maps) if name in stages.values())]
            return next((name for name in deepest if min(maps[name]) >= LEAST_CELLS), last)
        name = stages.get(stage, stage)
        if name not in maps:
            raise ArgumentError(
                "stage must be a stage or a layer that gives a feature map. "
                f"Received: {stage!r}.{closest(stage, [*stages, *maps])}"
            )
        return name

    def scores(self, images: Any, *, watch: str = "", tape: Any = None) -> tuple[Any, Any]:
        """Runs the network on images.

        Args:
            images: Tensor ``(batch, height, width, channels)``, RGB 0..255.
            watch: Name of the layer whose feature map is wanted.
            tape: A gradient tape that watches the map from there on.

        Returns:
            The scores ``(batch, classes)``, float32, before the last activation; and the map, or ``None``.
        """
        import keras

        seen: list[Any] = []

        def step(operation: Any) -> Callable[..., Any]:
            inner = _functional(operation)

            def call(*arguments: Any, **options: Any) -> Any:
                if inner is not None:
                    return inner._run_through_graph([arguments[0]], operation_fn=step)
                if operation is self._last and self.activation:
                    return _without_activation(operation, arguments[0])
                if getattr(operation, "_call_has_training_arg", False):
                    options["training"] = False
                output = operation(*arguments, **options)
                if operation.name == watch:
                    if tape is not None:
                        tape.watch(output)
                    seen[:] = [output]
                return output

            return call

        result = self._root._run_through_graph([images], operation_fn=step)
        if isinstance(result, list | tuple):
            result = result[0]
        return keras.ops.cast(result, "float32"), seen[0] if seen else None

    def probabilities(self, scores: np.ndarray) -> np.ndarray:
        """Returns what the network gives for scores ``(n, classes)``."""
        from scipy.special import expit, softmax

        table: dict[str, Callable[[np.ndarray], np.ndarray]] = {
            "softmax": lambda values: softmax(values, axis=1),
            "sigmoid": expit,
            "": lambda values: values,
        }
        return table[self.activation](np.asarray(scores, np.float32))

    def _stages(self, maps: dict[str, tuple[int, int]]) -> dict[str, str]:
        """Returns for each stage the layer whose output it is: as the architecture says, or else by the names."""
        found: dict[str, str] = {}
        for name in maps:
            digit = name.removeprefix("conv")[:1]
            if name.startswith("conv") and digit.isdigit() and (digit == "1" or "_block" in name):
                found[f"stage{digit}"] = name
        for model in _models(self._model):
            known = taps(model)
            found.update({stage: name for stage, name in known.items() if name in maps})
        return found


def _functional(operation: Any) -> Any:
    """Returns the graph of a model; ``None`` for a layer."""
    from keras.src.models.functional import Functional

    if isinstance(operation, Functional):
        return operation
    inner = getattr(operation, "_functional", None)  # of a sequential model
    return inner if isinstance(inner, Functional) else None


def _models(model: Any) -> Iterator[Any]:
    yield model
    for layer in getattr(model, "layers", ()):
        if _functional(layer) is not None:
            yield from _models(layer)


def _last_operation(root: Any) -> Any:
    operation = root.outputs[0]._keras_history.operation
    inner = _functional(operation)
    return operation if inner is None else _last_operation(inner)


def _activation_name(operation: Any) -> str:
    import keras

    if isinstance(operation, keras.layers.Softmax):
        return "softmax"
    if isinstance(operation, keras.layers.Dense | keras.layers.Activation):
        name = getattr(operation.activation, "__name__", "")
        return name if name in _ACTIVATIONS else ""
    return ""


def _without_activation(operation: Any, inputs: Any) -> Any:
    import keras

    if not isinstance(operation, keras.layers.Dense):
        return inputs
    ops = keras.ops
    outputs = ops.matmul(ops.cast(inputs, "float32"), ops.cast(operation.kernel, "float32"))
    return outputs + ops.cast(operation.bias, "float32") if operation.use_bias else outputs
