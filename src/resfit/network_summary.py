"""What ``model.summary()`` leaves out: what learns, what it costs, what goes in, and how long one call
takes."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import re
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TextIO

from resfit.errors import ArgumentError
from resfit.networks.detection.spec import is_of_detector

if TYPE_CHECKING:
    import keras

    from resfit.preprocessing import InputSpec

_STAGE = re.compile(r"^(?:(conv1|pool1)|conv([2-9])_block|(post|avg_pool|max_pool|predictions)(?:_|$))")


@dataclasses.dataclass(frozen=True)
class StageSummary:
    """One stage of a network, or one layer of what stands around it.

    Attributes:
        name: ``"stage1"`` (the stem) to ``"stage5"``, ``"head"``, or a layer's own name; inside a nested
            network with its name before it (``"resnet50/stage2"``).
        layers: Number of layers that do something (an input does not count).
        parameters: All weights.
        learning: Weights that learn.
        frozen: Weights that would learn, if they were not frozen.
        statistics: The rest: moving statistics of batch norms.
        macs: Multiply-accumulates of convolutions and dense layers for one image; None if no call was
            possible.
        batch_norm: How its batch norms work in training: ``"inference"``, ``"batch statistics"``,
            ``"mixed"``, or ``""`` where it has none.
    """

    name: str
    layers: int
    parameters: int
    learning: int
    frozen: int
    statistics: int
    macs: int | None
    batch_norm: str

    @property
    def state(self) -> str:
        """``"learns"``, ``"frozen"``, ``"partly"``, or ``""`` where there is nothing to learn."""
        if self.learning and self.frozen:
            return "partly"
        return "learns" if self.learning else "frozen" if self.frozen else ""


@dataclasses.dataclass(frozen=True, repr=False)
class Summary:
    """What :func:`summary` found. Prints as a table.

    Attributes:
        name: Of the model.
        stages: In the order of the forward pass.
        input_contract: What goes in, in words.
        preprocesses: Whether the model normalises its input itself.
        input_shape: Of the dummy call, or None if none was possible.
        output_shape: What came out; a dict of shapes for several outputs.
        seconds: Wall time of the second dummy call, one image, on this machine.
        reason: Why no call was possible, or ``""``.
    """

    name: str
    stages: tuple[StageSummary, ...]
    input_contract: str
    preprocesses: bool
    input_shape: tuple[int, ...] | None
    output_shape: Any
    seconds: float | None
    reason: str = ""

    @property
    def parameters(self) -> int:
        """All weights."""
        return sum(stage.parameters for stage in self.stages)

    @property
    def learning(self) -> int:
        """Weights that learn."""
        return sum(stage.learning for stage in self.stages)

    @property
    def frozen(self) -> int:
        """Weights that are frozen."""
        return sum(stage.frozen for stage in self.stages)

    @property
    def macs(self) -> int | None:
        """Multiply-accumulates for one image."""
        known = [stage.macs for stage in self.stages if stage.macs is not None]
        return sum(known) if known else None

    @property
    def batch_norm(self) -> str:
        """How the batch norms work in training."""
        return _together(stage.batch_norm for stage in self.stages)

    def __str__(self) -> str:
        """Returns the table as plain text."""
        from rich.console import Console

        text = io.StringIO()
        Console(file=text, width=110, color_system=None).print(self)
        return text.getvalue().rstrip()

    __repr__ = __str__

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        """Lets rich print it."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(title=self.name, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
        table.add_column("stage")
        for column in ("layers", "parameters", "learn", "frozen", "MACs"):
            table.add_column(column, justify="right")
        table.add_column("state")
        table.add_column("BN in training")
        rows = [(s.name, s.layers, s, s.state, s.batch_norm) for s in self.stages]
        for name, layers, stage, state, norm in rows:
            table.add_row(name, str(layers), *_figures(stage), state, norm, end_section=stage is self.stages[-1])
        table.add_row("total", str(sum(s.layers for s in self.stages)), *_figures(self), "", self.batch_norm)
        yield table
        called = f"One call: {self.input_shape} -> {self.output_shape} in {1000 * (self.seconds or 0):.1f} ms"
        for line in (f"Input: {self.input_contract}", called if self.reason == "" else f"No call: {self.reason}"):
            yield Text(line, overflow="ignore", no_wrap=True)


def summary(
    model: keras.Model,
    *,
    input_shape: tuple[int, int, int] | None = None,
    print_to: TextIO | None = None,
) -> Summary:
    """Sums up a network of resfit, or one that was built around it.

    Args:
        model: Any Keras model: one of ours, a Sequential or functional one with ours inside, or a subclassed
            one that holds one. Its weights stay as they are; one that is not built yet is built by the dummy
            call.
        input_shape: ``(height, width, channels)`` of the dummy image. Default: the model's own, and where it
            is open, the size of the input contract.
        print_to: Stream to print the table to, such as ``sys.stdout``.

    Returns:
        The figures; ``print`` shows them as a table.

    Raises:
        ArgumentError: The model is no Keras model.

    Example:
        >>> import resfit
        >>> body = resfit.load("resnet18", weights=None, include_top=False, pooling="avg")
        >>> body.trainable = False
        >>> summary(body, input_shape=(64, 64, 3)).learning
        0
    """
    import keras

    if not isinstance(model, keras.Model):
        raise ArgumentError(f"model must be a keras.Model. Received: {type(model).__name__}.")
    contract = _contract_of(model)
    call = _dummy_call(model, contract, input_shape)
    stages: dict[str, list[Any]] = {}
    for name, layer in _leaves(model, ""):
        stages.setdefault(name, []).append(layer)
    found = Summary(
        name=model.name,
        stages=tuple(_sum_up(name, layers, call.shapes) for name, layers in stages.items()),
        input_contract=_in_words(contract, _preprocesses(model)),
        preprocesses=_preprocesses(model),
        input_shape=call.input_shape,
        output_shape=call.output_shape,
        seconds=call.seconds,
        reason=call.reason,
    )
    if print_to is not None:
        print(found, file=print_to)
    return found


@dataclasses.dataclass(frozen=True)
class _Call:
    input_shape: tuple[int, ...] | None = None
    output_shape: Any = None
    seconds: float | None = None
    shapes: dict[int, list[tuple[int, ...]]] | None = None
    reason: str = ""


def _leaves(model: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Yields every innermost layer with the name of its stage."""
    import keras

    for layer in model.layers if isinstance(model, keras.Model) else model._layers:
        if isinstance(layer, keras.layers.InputLayer):
            continue
        inner = isinstance(layer, keras.Model) or (_sublayers(layer) and not layer._trainable_variables)
        if inner:
            yield from _leaves(layer, f"{prefix}{layer.name}/")
        else:
            yield prefix + _stage_of(model, layer), layer


def _sublayers(layer: Any) -> list[Any]:
    return list(getattr(layer, "_layers", []))


def _stage_of(model: Any, layer: Any) -> str:
    """Returns the stage of a layer inside one of our networks, otherwise the layer's own name."""
    ours = getattr(model, "architecture", None) is not None
    ours = ours or any(own.name in ("conv1_conv", "conv1_1_conv") for own in model._layers)
    if not ours:
        return layer.name
    if is_of_detector(layer.name):
        part = layer.name.partition("_")[0]
        return part if part in ("encoder", "decoder") else "pyramid" if part.startswith("p") else "head"
    match = _STAGE.match(layer.name)
    if match is None:
        return "input" if layer.name == "normalization" or type(layer).__name__ in ("Flip", "Repeat") else layer.name
    stem, number, _ = match.groups()
    return "stage1" if stem else f"stage{number}" if number else "head"


def _sum_up(name: str, layers: list[Any], shapes: dict[int, list[tuple[int, ...]]] | None) -> StageSummary:
    import keras

    weights = {id(v): v for layer in layers for v in layer.weights}
    learning = {id(v) for layer in layers for v in layer.trainable_weights}
    # a weight that could learn keeps its own flag when its layer is frozen; moving statistics never have it
    able = {id(v) for layer in layers for v in layer._trainable_variables}
    able |= {id(v) for layer in layers for sub in layer._flatten_layers() for v in sub._trainable_variables}
    sizes = {key: math.prod(variable.shape) for key, variable in weights.items()}
    norms = [layer for layer in layers if isinstance(layer, keras.layers.BatchNormalization)]
    return StageSummary(
        name=name,
        layers=len(layers),
        parameters=sum(sizes.values()),
        learning=sum(size for key, size in sizes.items() if key in learning),
        frozen=sum(size for key, size in sizes.items() if key in able and key not in learning),
        statistics=sum(size for key, size in sizes.items() if key not in able),
        macs=None if shapes is None else sum(_macs(layer, shapes) for layer in layers),
        batch_norm=_together("batch statistics" if norm.trainable else "inference" for norm in norms),
    )


def _macs(layer: Any, shapes: dict[int, list[tuple[int, ...]]]) -> int:
    """Multiply-accumulates of one layer over all its calls, for one image."""
    kernel = getattr(layer, "kernel", None)
    if kernel is None or len(getattr(kernel, "shape", ())) < 2:
        return 0
    each = math.prod(kernel.shape)
    # a kernel is used at every place of the output, whose last axis is that of its filters
    return sum(each * math.prod(shape[1:-1]) for shape in shapes.get(id(layer), []))


def _dummy_call(model: Any, contract: InputSpec | None, input_shape: tuple[int, int, int] | None) -> _Call:
    import keras
    import numpy as np

    shape = _shape_of(model, contract, input_shape)
    if shape is None:
        return _Call(reason="the input shape is not known; pass input_shape=(height, width, channels)")
    dtype = "float32"
    with contextlib.suppress(AttributeError, IndexError, ValueError, TypeError):
        dtype = keras.backend.standardize_dtype(model.inputs[0].dtype)
    image = np.zeros(shape, dtype)
    try:
        if not all(layer.built for layer in model._flatten_layers()):
            model(image, training=False)
        with _watched(model) as shapes:
            output = model(image, training=False)
        start = time.perf_counter()
        output = model(image, training=False)
        seconds = time.perf_counter() - start
    except Exception as error:  # a model of the user's may raise anything
        lines = [line for line in re.sub(r"\x1b\[\d*m", "", str(error)).splitlines() if line.strip()]
        # Keras puts a line of its own before the text
        told = lines[1:2] if lines and lines[0].startswith("Exception encountered") else lines[:1]
        return _Call(reason=": ".join([type(error).__name__, *told]))
    outputs = keras.tree.map_structure(lambda tensor: tuple(tensor.shape), output)
    return _Call(shape, outputs, seconds, shapes)


def _shape_of(
    model: Any, contract: InputSpec | None, input_shape: tuple[int, int, int] | None
) -> tuple[int, ...] | None:
    if input_shape is not None:
        return (1, *input_shape)
    size = (*contract.size, contract.channels) if contract else (224, 224, 3)
    with contextlib.suppress(AttributeError, ValueError):
        shape = model.input_shape
        if isinstance(shape, tuple) and shape and not isinstance(shape[0], tuple):
            filled = size if len(shape) == 4 else (0,) * (len(shape) - 1)
            sides = tuple(side or other for side, other in zip(shape[1:], filled, strict=True))
            return (1, *sides) if all(sides) else None
        return None
    return (1, *size) if contract else None


@contextlib.contextmanager
def _watched(model: Any) -> Iterator[dict[int, list[tuple[int, ...]]]]:
    """Notes the shapes that leave each layer with a kernel while the block runs."""
    shapes: dict[int, list[tuple[int, ...]]] = {}
    watched = [layer for layer in model._flatten_layers(include_self=False) if hasattr(layer, "kernel")]

    def watch(layer: Any) -> Any:
        call = layer.call

        def noting(*args: Any, **kwargs: Any) -> Any:
            output = call(*args, **kwargs)
            shapes.setdefault(id(layer), []).append(tuple(output.shape))
            return output

        return noting

    try:
        for layer in watched:
            layer.__dict__["call"] = watch(layer)
        yield shapes
    finally:
        for layer in watched:
            layer.__dict__.pop("call", None)


def _contract_of(model: Any) -> InputSpec | None:
    from resfit.preprocessing import InputSpec

    for layer in [model, *model._flatten_layers(include_self=False)]:
        with contextlib.suppress(AttributeError, ValueError):
            if isinstance(layer.input_spec, InputSpec):
                return layer.input_spec
    return None


def _preprocesses(model: Any) -> bool:
    """Whether one of our networks inside normalises its input, by a layer of that name."""
    import keras

    return any(
        isinstance(layer, keras.layers.Rescaling) and layer.name == "normalization"
        for layer in model._flatten_layers(include_self=False)
    )


def _in_words(contract: InputSpec | None, preprocesses: bool) -> str:
    if contract is None:
        inside = "images 0..255 of any dtype; normalised inside the model"
        return inside if preprocesses else "not known; the model carries no InputSpec"
    height, width = contract.size
    colours = {1: "grey", 3: "RGB"}.get(contract.channels, f"{contract.channels} channels")
    meant = f"meant for {height}x{width}"
    if preprocesses:
        return f"{colours} images 0..255 of any dtype, {meant}; normalised inside the model"
    order = contract.channel_order.upper() if contract.channels == 3 else colours
    mean = ", ".join(f"{value:g}" for value in contract.mean)
    std = ", ".join(f"{value:g}" for value in contract.std)
    scaled = "x" if contract.scale == 1 else f"x / {round(1 / contract.scale, 6):g}"
    return f"{order}, ({scaled} - [{mean}]) / [{std}], {meant}; use input_spec.normalize(images)"


def _together(modes: Any) -> str:
    found = {mode for mode in modes if mode}
    return found.pop() if len(found) == 1 else "mixed" if found else ""


def _figures(item: StageSummary | Summary) -> tuple[str, str, str, str]:
    macs = "" if item.macs is None else f"{item.macs:,}"
    return f"{item.parameters:,}", f"{item.learning:,}", f"{item.frozen:,}", macs
