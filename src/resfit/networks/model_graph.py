"""Functional models as graphs: who reads whom, copies, and batch norms that become part of their convolutions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from resfit.errors import ArgumentError

if TYPE_CHECKING:
    import keras


def parents(model: keras.Model) -> dict[str, tuple[str, ...]]:
    """Returns for each operation of a functional network those whose output it reads, in an order that runs.

    Args:
        model: A network of which each layer is called once.

    Raises:
        ArgumentError: A layer is called more than once.
    """
    import keras

    # a graph of its own, in which only the calls that lead from its input to its output are nodes
    graph = keras.Model(list(model.inputs), list(model.outputs))
    found: dict[str, tuple[str, ...]] = {}
    for entry in graph.get_config()["layers"]:
        calls = entry["inbound_nodes"]
        if len(calls) > 1:
            raise ArgumentError(
                f"each layer must be called once. Received: {entry['name']!r}, called {len(calls)} times."
            )
        found[entry["name"]] = tuple(dict.fromkeys(_histories(calls)))
    return found


def copy(
    model: keras.Model, *, size: tuple[int, int] | None = None, dtype: Any = None, also: tuple[type, ...] = ()
) -> keras.Model:
    """Returns a network of the same layers and weights that shares nothing with the first.

    Args:
        model: A functional network.
        size: Height and width in pixels that the copy's input is fixed to; ``None`` leaves it as it is.
        dtype: Dtype policy of the copy's layers that have weights; ``None`` keeps that of each.
        also: Classes of layers without weights that get it too, behind the first that has some.
    """
    import keras

    inputs = None
    if size is not None:
        inputs = keras.Input((*size, model.inputs[0].shape[-1]), dtype=model.inputs[0].dtype)

    layers: Any = model.layers
    weighted = next((place for place, layer in enumerate(layers) if layer.weights), 0)
    bare = {layer.name for layer in layers[:weighted]}

    def cloned(operation: Any) -> Any:
        config = operation.get_config()
        takes = operation.weights or (operation.name not in bare and isinstance(operation, also))
        if dtype is not None and takes and "dtype" in config:
            config["dtype"] = keras.dtype_policies.get(dtype)
        return operation.__class__.from_config(config)

    def plain(operation: Any) -> Any:
        return operation.__class__.from_config(operation.get_config())

    twin = keras.models.clone_model(
        model,
        input_tensors=inputs,
        clone_function=lambda layer: cloned(layer) if isinstance(layer, keras.layers.Layer) else plain(layer),
    )
    twin.set_weights(model.get_weights())
    for layer, original in zip(twin.layers, model.layers, strict=True):
        layer.trainable = original.trainable
    for attribute in ("architecture", "input_spec", "class_names"):
        if hasattr(model, attribute):
            setattr(twin, attribute, getattr(model, attribute))
    return twin


def fold(model: keras.Model, fixed: Callable[[Any], bool], make: Callable[[Any, Any, bool], Any]) -> keras.Model:
    """Returns a model in which batch norms are part of their convolutions.

    ``conv(x, k) * s + t`` is ``conv(x, k * s) + t``, which touches the feature maps once instead of three times.

    Args:
        model: A functional network of which each layer is called once.
        fixed: Whether a batch norm uses its moving statistics.
        make: Returns the layer that stands for a convolution, the norm that alone reads it, and, where its third
            argument says so, the ReLU behind them.

    Returns:
        A model that computes the same; its layers are those of ``model`` wherever nothing was folded.
    """
    import keras

    layers = {layer.name: layer for layer in model.layers}
    above = parents(model)
    readers = Counter(parent for names in above.values() for parent in names)
    ends = {tensor._keras_history.operation.name for tensor in model.outputs}
    pairs: dict[str, str] = {}  # norm -> convolution
    for name, names in above.items():
        norm = layers.get(name)
        if not isinstance(norm, keras.layers.BatchNormalization) or len(names) != 1 or not fixed(norm):
            continue
        source = layers.get(names[0])
        if _is_plain(source) and readers[names[0]] == 1 and names[0] not in ends and norm.axis in (-1, 3):
            pairs[name] = names[0]
    relus: dict[str, str] = {}  # activation -> norm
    for name, names in above.items():
        if len(names) == 1 and names[0] in pairs and readers[names[0]] == 1 and names[0] not in ends:
            layer = layers.get(name)
            if isinstance(layer, keras.layers.Activation) and layer.activation is keras.activations.relu:
                relus[name] = names[0]
    absorbed = set(relus.values()) | set(pairs.values())

    def call(operation: Any, *arguments: Any, **options: Any) -> Any:
        name = operation.name
        if name in absorbed:  # the layer that absorbs it gets its input
            return arguments[0]
        norm = relus.get(name, name)
        if norm in pairs:
            return make(layers[pairs[norm]], layers[norm], name in relus)(arguments[0])
        return operation(*arguments, **options)

    return keras.models.clone_model(model, clone_function=lambda layer: layer, call_function=call)


def folded_weights(convolution: Any, norm: Any) -> tuple[Any, Any]:
    """Returns the kernel and the bias of a convolution and the batch norm behind it together, in float32.

    Args:
        convolution: A ``Conv2D`` without an activation.
        norm: The ``BatchNormalization`` that alone reads it, with fixed statistics.
    """
    from keras import ops

    from resfit.networks.layers import StandardizedConv2D

    scale = ops.rsqrt(ops.cast(norm.moving_variance, "float32") + norm.epsilon)
    if norm.scale:
        scale = scale * ops.cast(norm.gamma, "float32")
    shift = -ops.cast(norm.moving_mean, "float32")
    if convolution.use_bias:
        shift = shift + ops.cast(convolution.bias, "float32")
    shift = shift * scale
    if norm.center:
        shift = shift + ops.cast(norm.beta, "float32")
    kernel = convolution.standardized_kernel if isinstance(convolution, StandardizedConv2D) else convolution.kernel
    return ops.cast(kernel, "float32") * scale, shift


def _is_plain(layer: Any) -> bool:
    import keras

    from resfit.networks.layers import StandardizedConv2D

    return (
        type(layer) in (keras.layers.Conv2D, StandardizedConv2D)
        and layer.activation is keras.activations.linear
        and layer.data_format == "channels_last"
    )


def _histories(value: Any) -> Iterator[str]:
    """Yields the operations whose outputs stand in a serialised call."""
    if isinstance(value, dict):
        history = (
            value.get("config", {}).get("keras_history") if value.get("class_name") == "__keras_tensor__" else None
        )
        if history:
            yield str(history[0])
            return
        for inner in value.values():
            yield from _histories(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _histories(inner)
