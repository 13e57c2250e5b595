"""Shapes and dtypes of nests of tensors, between Keras, TensorFlow and JSON; and what Keras is doing just now."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import tensorflow as tf
from keras import tree
from tensorflow.python.ops import control_flow_util

from resfit.errors import ArgumentError, CheckpointError

_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class ShapeTypeError(ArgumentError, TypeError):
    """No shape and no nest of shapes. Also a ``TypeError``, as the original raises."""


@dataclasses.dataclass(frozen=True)
class Function:
    """What a layer calls, and what it takes.

    Attributes:
        call: It.
        takes_training: Whether it has an argument ``training``.
        input_dtypes: Of the tensors of its inputs in order, where it tells.
        floats: Those of them that are floats.
    """

    call: Callable[..., Any]
    takes_training: bool
    input_dtypes: tuple[str, ...]
    floats: frozenset[str]

    @classmethod
    def of(cls, function: Any) -> Function:
        """Looks at a callable: a restored object, a signature of a SavedModel, or any Python callable."""
        restored = getattr(function, "__call__", None)  # noqa: B004  # the attribute, not whether there is one
        traced = getattr(function, "concrete_functions", None) or getattr(restored, "concrete_functions", None) or ()
        is_signature = hasattr(function, "structured_input_signature")
        dtypes: tuple[str, ...] = ()
        for concrete in (function,) if is_signature else traced:
            args, kwargs = concrete.structured_input_signature
            leaves = tf.nest.flatten(args[:1] or kwargs)
            dtypes += tuple(leaf.dtype.name for leaf in leaves if isinstance(leaf, tf.TypeSpec))
        floats = frozenset(name for name in dtypes if tf.as_dtype(name).is_floating)
        forms = () if is_signature else (restored, function)
        takes_training = isinstance(function, keras.Layer) or any("training" in _parameters(form) for form in forms)
        return cls(function, takes_training, dtypes, floats)

    def cast(self, inputs: Any, default: str) -> Any:
        """Casts floats among the inputs to the one float dtype that the function takes.

        Args:
            inputs: A nest of tensors.
            default: The dtype for a function that does not tell.
        """
        wanted = self.floats if self.input_dtypes else {name for name in (default,) if "float" in name}
        if len(wanted) != 1:
            return inputs
        (dtype,) = wanted

        def one(leaf: Any) -> Any:
            own = getattr(leaf, "dtype", None)
            return tf.cast(leaf, dtype) if isinstance(own, tf.DType) and own.is_floating and own != dtype else leaf

        return tree.map_structure(one, inputs)


def _parameters(function: Any) -> tuple[str, ...]:
    try:
        found = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return ()
    return tuple(parameter.name for parameter in found if parameter.kind not in _VARIADIC)


# ---- output_shape


def shape_nest(value: Any) -> Any:
    """Reads a shape without the batch, or a nest of such shapes.

    Args:
        value: A tuple or list of integers and None, an integer, a ``tf.TensorShape``, or a dict, list or tuple of them.

    Returns:
        The same with every shape as a ``tf.TensorShape``.

    Raises:
        ShapeTypeError: It is neither.
    """
    if isinstance(value, dict):
        return {key: shape_nest(one) for key, one in value.items()}
    if isinstance(value, tf.TensorShape) and value.rank is not None:
        return value
    sizes = value if isinstance(value, (list, tuple)) else [value]
    if all(one is None or (isinstance(one, int) and not isinstance(one, bool)) for one in sizes) and value is not None:
        return tf.TensorShape(sizes)
    if isinstance(value, (list, tuple)):
        return type(value)([shape_nest(one) for one in value])
    raise ShapeTypeError(
        "output_shape must be a shape without the batch, or a dict, list or tuple of shapes. "
        f"Received: {value!r}. A vector of 20 numbers an example is (20,), one number is ()."
    )


def with_batch(nest: Any, batch: int | None) -> Any:
    """Returns a nest of shapes with the batch before each, as tuples."""
    return tree.map_structure(lambda shape: (batch, *shape.as_list()), nest)


def as_json(nest: Any) -> Any:
    """Returns a nest of shapes as lists and dicts."""
    if isinstance(nest, dict):
        return {key: as_json(one) for key, one in nest.items()}
    return None if nest is None else nest.as_list() if isinstance(nest, tf.TensorShape) else [*map(as_json, nest)]


def set_shapes(outputs: Any, nest: Any, batch: int | None) -> None:
    """Writes the shapes of a nest on outputs, as far as these have a shape to set.

    Raises:
        ArgumentError: The nest has another number of shapes.
    """
    tensors, shapes = tf.nest.flatten(outputs), tf.nest.flatten(nest)
    if len(tensors) != len(shapes):
        raise ArgumentError(
            f"output_shape must have a shape for each of the {len(tensors)} outputs. Received: {as_json(nest)!r}."
        )
    for tensor, shape in zip(tensors, shapes, strict=True):
        if hasattr(tensor, "set_shape"):
            tensor.set_shape((batch, *shape))


def batch_of(inputs: Any) -> int | None:
    """Returns the batch of the first of a nest of tensors, as far as it is known."""
    shape = tf.TensorShape(tree.flatten(inputs)[0].shape)
    return shape[0] if shape.rank else None


# ---- tensors that are not there yet


def to_tf(nest: Any) -> Any:
    """Returns Keras tensors as specifications of TensorFlow."""

    def one(leaf: Any) -> Any:
        if getattr(leaf, "ragged", False):
            return tf.RaggedTensorSpec(leaf.shape, leaf.dtype, ragged_rank=getattr(leaf, "ragged_rank", None) or 1)
        if getattr(leaf, "sparse", False):
            return tf.SparseTensorSpec(leaf.shape, leaf.dtype)
        return tf.TensorSpec(leaf.shape, leaf.dtype) if isinstance(leaf, keras.KerasTensor) else leaf

    return tree.map_structure(one, nest)


def to_keras(nest: Any) -> Any:
    """Returns what a trace returned as Keras tensors.

    Raises:
        ArgumentError: The rank of one is not known.
    """

    def one(leaf: Any) -> Any:
        if leaf.shape.rank is None:
            raise ArgumentError(
                "the SavedModel does not tell the shape of its outputs, so it must be given. Received: output_shape="
                "None. Pass output_shape, without the batch."
            )
        kinds: dict[str, Any] = {}
        if isinstance(leaf, (tf.RaggedTensor, tf.RaggedTensorSpec)):
            kinds = {"ragged": True, "ragged_rank": leaf.ragged_rank}
        elif isinstance(leaf, (tf.SparseTensor, tf.SparseTensorSpec)):
            kinds = {"sparse": True}
        return keras.KerasTensor(leaf.shape, dtype=leaf.dtype.name, **kinds)

    return tree.map_structure(one, nest)


class Seen:
    """What a layer returned for which inputs, so that it can be said again without its SavedModel."""

    def __init__(self) -> None:
        self._calls: dict[str, Any] = {}

    def add(self, inputs: Any, outputs: Any) -> None:
        """Notes one call."""
        self._calls[json.dumps(_stated(inputs))] = _stated(outputs)

    def outputs(self, inputs: Any) -> Any:
        """Returns the outputs that were noted for inputs of these shapes and dtypes.

        Raises:
            CheckpointError: None were.
        """
        key = json.dumps(_stated(inputs))
        if key not in self._calls:
            raise CheckpointError(
                "a layer of an archive is called with inputs that it was saved with, until its SavedModel is there. "
                f"Received: {key}, known are {list(self._calls)}."
            )
        return _restored(self._calls[key])

    def to_config(self) -> list[Any]:
        """Returns the calls as JSON."""
        return [[json.loads(inputs), outputs] for inputs, outputs in self._calls.items()]

    @classmethod
    def from_config(cls, config: Sequence[Any]) -> Seen:
        """Reads what :meth:`to_config` returned."""
        seen = cls()
        seen._calls = {json.dumps(inputs): outputs for inputs, outputs in config}
        return seen


def _stated(nest: Any) -> Any:
    if isinstance(nest, dict):
        return {"dict": {key: _stated(nest[key]) for key in sorted(nest)}}
    if isinstance(nest, (list, tuple)) and not hasattr(nest, "shape"):
        return {"tuple" if isinstance(nest, tuple) else "list": [_stated(one) for one in nest]}
    kinds = {kind: getattr(nest, kind) for kind in ("sparse", "ragged", "ragged_rank") if getattr(nest, kind, None)}
    return {"shape": list(nest.shape), "dtype": keras.backend.standardize_dtype(nest.dtype), "kinds": kinds}


def _restored(stated: Any) -> Any:
    if "shape" in stated:
        return keras.KerasTensor(tuple(stated["shape"]), dtype=stated["dtype"], **stated["kinds"])
    if "dict" in stated:
        return {key: _restored(one) for key, one in stated["dict"].items()}
    kind = tuple if "tuple" in stated else list
    return kind(_restored(one) for one in next(iter(stated.values())))


# ---- what Keras is doing


def is_archiving() -> bool:
    """Whether Keras is writing a ``.keras`` archive, and not just a configuration.

    Keras says so nowhere; what tells is its record of shared objects, which it keeps for an archive only.
    """
    return _keras_state("shared_objects/id_to_config_map") is not None


def in_safe_mode() -> bool | None:
    """Whether Keras is reading an archive in safe mode; None where it is reading none."""
    return _keras_state("safe_mode_saving")


def is_looping() -> bool:
    """Whether what is being traced is ``fit``, ``evaluate`` or ``predict``, in a form that can look at values.

    Keras says so nowhere; what tells is the name of its function, which is never exported. Not where XLA compiles it
    (for GPUs, unless asked for), nor in a strategy, which may run it elsewhere.
    """
    graphs = _graphs()
    if not graphs or tf.distribute.has_strategy() or control_flow_util.GraphOrParentsInXlaContext(graphs[0]):
        return False
    return graphs[-1].name.startswith(("one_step_on_data", "multi_step_on_data", "multi_step_on_iterator"))


def forget_watched(variables: Iterable[Any]) -> None:
    """Takes variables that a layer tracks off the lists of variables that the functions being traced have used.

    Keras exports its own variables and, beside them, those on these lists: each of ours would be written twice. The
    lists serve nothing else here; a gradient tape has its own.
    """
    watching = [watched for graph in _graphs() if (watched := getattr(graph, "_watched_variables", None)) is not None]
    for variable in variables if watching else ():
        for watched in watching:
            watched.discard(variable)


def _graphs() -> list[Any]:
    """Returns the graphs of the functions being traced, from the inmost out."""
    graph, found = tf.compat.v1.get_default_graph(), []
    while graph is not None and hasattr(graph, "outer_graph"):
        found.append(graph)
        graph = graph.outer_graph
    return found


def _keras_state(name: str) -> Any:
    try:
        from keras.src.backend.common import global_state
    except ImportError:  # another Keras: nothing travels, and what asks for trust gets none
        return True if name.startswith("safe") else None
    return global_state.get_global_attribute(name)
