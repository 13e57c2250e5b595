"""Layers of detectors that decode queries: attention, positions, the choice of queries, sampling, boxes.

None but those for training has weights; projections are dense layers beside them. All are registered under the package
name ``resfit``. Sampling is written as gathers, since runtimes differ in what a grid sampler does, or have none.
"""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
from keras import ops

_register = keras.saving.register_keras_serializable(package="resfit")

#: Boxes closer to 0 or 1 than this are moved there before their logit is taken.
LOGIT_EPSILON = 1e-5
# The logit of the box of a place that is not used: its sigmoid is 1 (transformers takes the largest float, of which not
# every runtime has a sigmoid).
_UNUSED = 1e4


def inverse_sigmoid(x: Any) -> Any:
    """Returns logits of numbers in [0, 1], which are cut a little before both ends.

    Args:
        x: A tensor.
    """
    x = ops.clip(x, 0.0, 1.0)
    return ops.log(ops.maximum(x, LOGIT_EPSILON) / ops.maximum(1.0 - x, LOGIT_EPSILON))


def rows_of(x: Any, indices: Any) -> Any:
    """Gathers rows ``(batch, k, values)`` of ``(batch, n, values)``.

    Args:
        x: The tensor.
        indices: int32 ``(batch, k)``.
    """
    count = ops.shape(x)[1]
    start = ops.expand_dims(ops.arange(ops.shape(x)[0], dtype="int32") * count, -1)
    return ops.take(ops.reshape(x, (-1, x.shape[-1])), indices + start, axis=0)


@_register
class DotProductAttention(keras.layers.Layer):
    """Attention of several heads on queries, keys and values that were projected before.

    Args:
        heads: Number of heads.
        **kwargs: As ``keras.layers.Layer`` takes them.
    """

    def __init__(self, heads: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.heads = heads

    def call(self, inputs: Any) -> Any:
        """Attends.

        Args:
            inputs: Queries ``(batch, q, width)``, keys and values ``(batch, k, width)``, and perhaps a mask ``(q, k)``
                that is added to the logits.
        """
        queries, keys, values, *mask = inputs
        width = queries.shape[-1]
        side = width // self.heads
        queries, keys, values = (
            ops.transpose(ops.reshape(x, (-1, ops.shape(x)[1], self.heads, side)), (0, 2, 1, 3))
            for x in (queries * (1 / math.sqrt(side)), keys, values)
        )
        logits = ops.matmul(queries, ops.transpose(keys, (0, 1, 3, 2)))
        if mask:
            logits = logits + ops.cast(mask[0], logits.dtype)
        found = ops.matmul(ops.softmax(logits, axis=-1), values)
        return ops.reshape(ops.transpose(found, (0, 2, 1, 3)), (-1, ops.shape(found)[2], width))

    def compute_output_shape(self, input_shape: Any) -> tuple[Any, ...]:
        """Returns the shape of the queries."""
        return tuple(input_shape[0])

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {**super().get_config(), "heads": self.heads}


@_register
class Gelu(keras.layers.Layer):
    """The exact GELU by the error function, which more runtimes have than its complement in TensorFlow's own.

    Args:
        **kwargs: As ``keras.layers.Layer`` takes them.
    """

    def call(self, inputs: Any) -> Any:
        """Activates a tensor of any shape."""
        return 0.5 * inputs * (1.0 + ops.erf(inputs * math.sqrt(0.5)))

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Returns the shape unchanged."""
        return input_shape


@_register
class AddSinePositions(keras.layers.Layer):
    """Adds sines and cosines of their positions to the places of a map, one behind another.

    Args:
        temperature: Longest period, in places, over two pi.
        **kwargs: As ``keras.layers.Layer`` takes them.
    """

    def __init__(self, temperature: float = 10000.0, **kwargs: Any):
        super().__init__(**kwargs)
        self.temperature = temperature

    def call(self, inputs: Any) -> Any:
        """Adds to ``(batch, height * width, channels)``; the second input is the map, of which only its size matters.

        Channels are the sines and the cosines of the row, then those of the column.
        """
        tokens, model = inputs
        height, width, channels = ops.shape(model)[1], ops.shape(model)[2], tokens.shape[-1]
        rates = 1.0 / self.temperature ** (np.arange(channels // 4, dtype=np.float64) / (channels // 4))
        rates = ops.convert_to_tensor(rates.astype(np.float32)[None])
        parts = []
        for side, axis in ((height, 1), (width, 0)):
            angles = ops.expand_dims(ops.cast(ops.arange(side), "float32"), -1) * rates
            waves = ops.concatenate([ops.sin(angles), ops.cos(angles)], axis=-1)
            other = (1, width, 1) if axis else (height, 1, 1)
            parts.append(ops.tile(ops.expand_dims(waves, axis), other))
        positions = ops.reshape(ops.concatenate(parts, axis=-1), (1, -1, channels))
        return tokens + ops.cast(positions, tokens.dtype)

    def compute_output_shape(self, input_shape: Any) -> tuple[Any, ...]:
        """Returns the shape unchanged."""
        return tuple(input_shape[0])

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {**super().get_config(), "temperature": self.temperature}


@_register
class AddScaledPositions(AddSinePositions):
    """Adds sines and cosines of positions that run from 0 to two pi over a map, whatever its size (DETR).

    Args:
        temperature: Ratio of the longest period to the shortest.
        **kwargs: As ``keras.layers.Layer`` takes them.
    """

    def call(self, inputs: Any) -> Any:
        """Adds to ``(batch, height * width, channels)``; the second input is the map, of which only its size matters.

        Half of the channels are for the row, half for the column; sines and cosines take turns.
        """
        tokens, model = inputs
        return tokens + ops.cast(_scaled_waves(model, tokens.shape[-1], self.temperature, 0.0), tokens.dtype)


def _scaled_waves(model: Any, channels: int, temperature: float, shift: float) -> Any:
    """Sines and cosines ``(1, height * width, channels)`` of positions that run from 0 to two pi over a map.

    Args:
        model: The map, of which only its size matters.
        channels: Half of them for the row, half for the column; sines and cosines take turns.
        temperature: Ratio of the longest period to the shortest.
        shift: What positions, counted from 1, are moved back by, in places.
    """
    height, width = ops.shape(model)[1], ops.shape(model)[2]
    rates = ops.convert_to_tensor(_rates(channels // 4, temperature)[None])
    parts = []
    for side, axis in ((height, 1), (width, 0)):
        place = ops.cast(ops.arange(side), "float32") + (1.0 - shift)
        place = place / (ops.cast(side, "float32") + 1e-6) * (2 * math.pi)
        angles = ops.expand_dims(place, -1) / rates
        waves = ops.reshape(ops.stack([ops.sin(angles), ops.cos(angles)], axis=-1), (-1, channels // 2))
        other = (1, width, 1) if axis else (height, 1, 1)
        parts.append(ops.tile(ops.expand_dims(waves, axis), other))
    return ops.reshape(ops.concatenate(parts, axis=-1), (1, -1, channels))


def _rates(count: int, temperature: float) -> np.ndarray:
    """Periods of sines, over two pi."""
    return (temperature ** (np.arange(count, dtype=np.float32) / np.float32(count))).astype(np.float32)


@_register
class LevelPositions(keras.layers.Layer):
    """Positions of the places of several maps, with what is learned of each map, and where places stand.

    Args:
        count: Maps.
        width: Channels.
        temperature: Ratio of the longest period of the sines to the shortest.
        **kwargs: As ``keras.layers.Layer`` takes them.
    """

    def __init__(self, count: int, width: int, temperature: float = 10000.0, **kwargs: Any):
        super().__init__(**kwargs)
        self.count, self.width, self.temperature = count, width, temperature

    def build(self, input_shape: Any) -> None:
        """Makes the table."""
        self.embeddings = self.add_weight((self.count, self.width), "random_normal", name="embeddings")

    def call(self, inputs: Any) -> Any:
        """Returns positions ``(batch, places, width)`` and centres ``(batch, places, 2)`` in shares of the image.

        Args:
            inputs: Vectors of all places ``(batch, places, width)`` and the maps, of which only sizes matter.
        """
        tokens, *maps = inputs
        table = ops.cast(self.embeddings, "float32")
        waves = [
            _scaled_waves(one, self.width, self.temperature, 0.5) + ops.reshape(table[number], (1, 1, -1))
            for number, one in enumerate(maps)
        ]
        positions = ops.zeros_like(tokens) + ops.cast(ops.concatenate(waves, axis=1), tokens.dtype)
        centres = ops.expand_dims(_places(maps)[:, :2], 0)
        return [positions, ops.cast(ops.zeros_like(tokens[..., :2]), "float32") + centres]

    def compute_output_spec(self, inputs: Any) -> Any:
        """Returns what is to come."""
        shape = inputs[0].shape
        return [
            keras.KerasTensor(shape, self.compute_dtype),
            keras.KerasTensor((*shape[:-1], 2), "float32"),
        ]

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        own = {"count": self.count, "width": self.width, "temperature": self.temperature}
        return {**super().get_config(), **own}


@_register
class BoxPositions(keras.layers.Layer):
    """Sines and cosines of the four numbers of boxes.

    Args:
        channels: Of each number.
        temperature: Ratio of the longest period to the shortest.
        **kwargs: As ``keras.layers.Layer`` takes them.
    """

    def __init__(self, channels: int, temperature: float = 10000.0, **kwargs: Any):
        super().__init__(**{"dtype": "float32", **kwargs})
        self.channels, self.temperature = channels, temperature

    def call(self, inputs: Any) -> Any:
        """Returns ``(batch, n, 4 * channels)`` of boxes ``(batch, n, 4)`` in shares of the image."""
        rates = ops.convert_to_tensor(_rates(self.channels // 2, self.temperature))
        angles = ops.expand_dims(inputs * (2 * math.pi), -1) / rates
        waves = ops.stack([ops.sin(angles), ops.cos(angles)], axis=-1)
        return ops.reshape(waves, (-1, ops.shape(inputs)[1], 4 * self.channels))

    def compute_output_shape(self, input_shape: Any) -> tuple[Any, ...]:
        """Returns the shape of the waves."""
        return (*input_shape[:-1], 4 * self.channels)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {**super().get_config(), "channels": self.channels, "temperature": self.temperature}


@_register
class Halves(keras.layers.Layer):
    """The first and the second half of the channels.

    Args:
        **kwargs: As ``keras.layers.Layer`` takes them.
    """

    def call(self, inputs: Any) -> Any:
        """Returns two tensors of ``(batch, n, channels)``."""
        half = inputs.shape[-1] // 2
        return [inputs[..., :half], inputs[..., half:]]

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Returns both shapes."""
        return [(*input_shape[:-1], input_shape[-1] // 2)] * 2


@_register
class LearnedQueries(keras.layers.Layer):
    """What is learned of each query, for every image, and the zeros that queries begin with.

    Args:
        count: Queries.
        width: Channels.
        **kwargs: As ``keras.layers.Layer`` takes them.
    """

    def __init__(self, count: int, width: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.count, self.width = count, width

    def build(self, input_shape: Any) -> None:
        """Makes the table."""
        self.embeddings = self.add_weight((self.count, self.width), "random_normal", name="embeddings")

    def call(self, inputs: Any) -> Any:
        """Returns two tensors ``(batch, count, width)`` for as many images as the input has."""
        table = ops.expand_dims(ops.cast(self.embeddings, self.compute_dtype), 0)
        found = ops.tile(table, (ops.shape(inputs)[0], 1, 1))
        return [found, ops.zeros_like(found)]

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Returns both shapes."""
        return [(input_shape[0], self.count, self.width)] * 2

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {**super().get_config(), "count": self.count, "width": self.width}


@_register
class ReportedScores(keras.layers.Layer):
    """Probabilities of the classes that are reported, of logits whose last one stands for no object.

    Args:
        reported: Numbers of the outputs.
        **kwargs: As ``keras.layers.Layer`` takes them.
    """

    def __init__(self, reported: Any, **kwargs: Any):
        super().__init__(**{"dtype": "float32", **kwargs})
        self.reported = [int(number) for number in reported]

    def call(self, inputs: Any) -> Any:
        """Returns ``(batch, n, reported)`` of ``(batch, n, outputs)``."""
        found = ops.softmax(inputs, axis=-1)
        if self.reported == list(range(len(self.reported))):
            return found[..., : len(self.reported)]
        return ops.take(found, ops.convert_to_tensor(np.array(self.reported, np.int32)), axis=-1)

    def compute_output_shape(self, input_shape: Any) -> tuple[Any, ...]:
        """Returns the shape with the classes that are reported."""
        return (*input_shape[:-1], len(self.reported))

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {**super().get_config(), "reported": self.reported}


@_register
class PlacesToMap(keras.layers.Layer):
    """Brings places that stand one behind another back to the shape of a map.

    Args:
        **kwargs: As ``keras.layers.Layer`` takes them.
    """

    def call(self, inputs: Any) -> Any:
        """Reshapes the first of ``[(batch, height * width, channels), (batch, height, width, any)]``."""
        tokens, model = inputs
        shape = ops.shape(model)
        return ops.reshape(tokens, (-1, shape[1], shape[2], tokens.shape[-1]))

    def compute_output_shape(self, input_shape: Any) -> tuple[Any, ...]:
        """Returns the shape of the map."""
        tokens, model = input_shape
        return (tokens[0], model[1], model[2], tokens[-1])


def _places(maps: Any) -> Any:
    """Boxes ``(places, 4)`` in shares of the image that stand at the places of maps: centres and sides."""
    found = []
    for number, level in enumerate(maps):
        height, width = ops.shape(level)[1], ops.shape(level)[2]
        y, x = ((ops.cast(ops.arange(side), "float32") + 0.5) / ops.cast(side, "float32") for side in (height, width))
        side = ops.ones((height, width), "float32")
        y, x = ops.expand_dims(y, 1) * side, ops.expand_dims(x, 0) * side
        size = side * (0.05 * 2.0**number)
        found.append(ops.reshape(ops.stack([x, y, size, size], axis=-1), (-1, 4)))
    return ops.concatenate(found, axis=0)


def _is_used(places: Any) -> Any:
    """Whether places are ones that boxes are proposed at: none beside the border, none that fills the image."""
    inside = ops.logical_and(places > 0.01, places < 0.99)
    return ops.all(inside, axis=-1, keepdims=True)


@_register
class UsedPlaces(keras.layers.Layer):
    """Sets places at which no box is proposed to 0.

    Args:
        **kwargs: As ``keras.layers.Layer`` takes them.
    """

    def call(self, inputs: Any) -> Any:
        """Masks ``(batch, places, channels)``; the other inputs are the maps that the places are of."""
        memory, *maps = inputs
        return memory * ops.cast(ops.expand_dims(_is_used(_places(maps)), 0), memory.dtype)

    def compute_output_shape(self, input_shape: Any) -> tuple[Any, ...]:
        """Returns the shape unchanged."""
        return tuple(input_shape[0])


@_register
class ProposedBoxes(keras.layers.Layer):
    """Adds the logits of the boxes that stand at places to what the head says of them.

    Args:
        **kwargs: As ``keras.layers.Layer`` takes them.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**{"dtype": "float32", **kwargs})

    def call(self, inputs: Any) -> Any:
        """Adds to ``(batch, places, 4)``; the other inputs are the maps that the places are of."""
        codes, *maps = inputs
        places = _places(maps)
        logits = ops.log(places / (1.0 - places))
        logits = ops.where(_is_used(places), logits, _UNUSED)
        return codes + ops.expand_dims(logits, 0)

    def compute_output_shape(self, input_shape: Any) -> tuple[Any, ...]:
        """Returns the shape unchanged."""
        return tuple(input_shape[0])


@_register
class BestPlaces(keras.layers.Layer):
    """Takes the places with the best score of any class, the best first.

    Args:
        queries: How many. An image must have as many places.
        first_class: Whether the score of the first class alone counts (Deformable DETR).
        **kwargs: As ``keras.layers.Layer`` takes them.
    """

    def __init__(self, queries: int, first_class: bool = False, **kwargs: Any):
        super().__init__(**{"autocast": False, **kwargs})
        self.queries, self.first_class = queries, first_class

    def call(self, inputs: Any) -> Any:
        """Gathers ``(batch, queries, values)`` of each input ``(batch, places, values)``; the first holds the logits of
        the classes."""
        best = inputs[0][..., 0] if self.first_class else ops.max(inputs[0], axis=-1)
        _, indices = ops.top_k(best, self.queries, sorted=True)
        return [rows_of(x, ops.cast(indices, "int32")) for x in inputs]

    def compute_output_shape(self, input_shape: Any) -> list[tuple[Any, ...]]:
        """Returns the shapes with as many places as there are queries."""
        return [(shape[0], self.queries, shape[-1]) for shape in input_shape]

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {**super().get_config(), "queries": self.queries, "first_class": self.first_class}


@_register
class StopGradient(keras.layers.Layer):
    """Hands on what it gets; no gradient goes back through it.

    Args:
        **kwargs: As ``keras.layers.Layer`` takes them.
    """

    def call(self, inputs: Any) -> Any:
        """Hands on a tensor."""
        return ops.stop_gradient(inputs)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Returns the shape unchanged."""
        return input_shape


@_register
class RefineBoxes(keras.layers.Layer):
    """Moves boxes by what the head says, in logits. In float32 whatever the dtype policy.

    Args:
        **kwargs: As ``keras.layers.Layer`` takes them.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**{"dtype": "float32", **kwargs})

    def call(self, inputs: Any) -> Any:
        """Returns boxes of ``[codes (batch, n, 4), boxes (batch, n, 4) in shares of the image]``.

        Of boxes there may be the centres alone, ``(batch, n, 2)``: sides are those of the codes then.
        """
        codes, boxes = inputs
        logits = inverse_sigmoid(boxes)
        if boxes.shape[-1] == 2:
            logits = ops.concatenate([logits, ops.zeros_like(logits)], axis=-1)
        return ops.sigmoid(codes + logits)

    def compute_output_shape(self, input_shape: Any) -> tuple[Any, ...]:
        """Returns the shape of the codes."""
        return tuple(input_shape[0])


@_register
class DeformableSampling(keras.layers.Layer):
    """What queries see at places of several maps that they choose beside their boxes.

    Args:
        heads: Number of heads.
        points: Places for each head and level.
        sampling: ``"bilinear"``: zeros lie beyond the border; or ``"discrete"``: the nearest pixel.
        offset_scale: What offsets are multiplied by, in sides of the box.
        **kwargs: As ``keras.layers.Layer`` takes them.
    """

    def __init__(self, heads: int, points: int, sampling: str = "bilinear", offset_scale: float = 0.5, **kwargs: Any):
        super().__init__(**{"autocast": False, **kwargs})
        self.options: dict[str, Any] = {
            "heads": heads,
            "points": points,
            "sampling": sampling,
            "offset_scale": offset_scale,
        }

    def call(self, inputs: Any) -> Any:
        """Samples.

        Args:
            inputs: Values ``(batch, places, width)`` of all maps, offsets ``(batch, q, heads * levels * points * 2)``,
                logits of weights ``(batch, q, heads * levels * points)``, boxes ``(batch, q, 4)`` as centres and sides
                in shares of the image, or centres alone ``(batch, q, 2)``, whose offsets are in pixels of each map;
                and the maps, of which only the sizes matter.

        Returns:
            ``(batch, q, width)``.
        """
        values, offsets, weights, boxes, *maps = inputs
        heads, points, levels = self.options["heads"], self.options["points"], len(maps)
        batch, queries, width = ops.shape(values)[0], ops.shape(offsets)[1], values.shape[-1]
        weights = ops.reshape(weights, (-1, queries, heads, levels * points))
        weights = ops.reshape(ops.softmax(weights, axis=-1), (-1, queries, heads, levels, points))
        offsets = ops.cast(ops.reshape(offsets, (-1, queries, heads, levels, points, 2)), "float32")
        boxes = ops.reshape(ops.cast(boxes, "float32"), (-1, queries, 1, 1, 1, boxes.shape[-1]))
        sizes = [(ops.shape(level)[1], ops.shape(level)[2]) for level in maps]
        starts, total = [], 0
        for height, across in sizes:
            starts.append(total)
            total = total + height * across
        rows, columns, first = (
            ops.reshape(ops.stack([ops.cast(one, "int32") for one in each]), (1, 1, 1, levels, 1))
            for each in ([height for height, _ in sizes], [across for _, across in sizes], starts)
        )
        if boxes.shape[-1] == 2:
            sides = ops.cast(ops.concatenate([columns, rows], axis=-1), "float32")
            places = boxes + offsets / ops.reshape(sides, (1, 1, 1, levels, 1, 2))
        else:
            # the order of the factors is transformers'
            places = boxes[..., :2] + offsets * (1 / points) * boxes[..., 2:] * self.options["offset_scale"]
        # each head of each image has its own block of rows, one for each place
        flat = ops.reshape(
            ops.transpose(ops.reshape(values, (-1, total, heads, width // heads)), (0, 2, 1, 3)), (-1, width // heads)
        )
        block = ops.reshape(ops.arange(batch, dtype="int32") * heads, (-1, 1, 1, 1, 1))
        block = (block + ops.reshape(ops.arange(heads, dtype="int32"), (1, 1, heads, 1, 1))) * total + first
        sample = self._interpolated if self.options["sampling"] == "bilinear" else self._nearest
        found = sample(flat, places, weights, block, rows, columns)
        return ops.reshape(found, (-1, queries, width))

    def _interpolated(self, flat: Any, places: Any, weights: Any, block: Any, rows: Any, columns: Any) -> Any:
        """The weighted sum of what lies between four pixels each."""
        found: Any = 0.0
        x, y = (places[..., axis] * ops.cast(side, "float32") - 0.5 for axis, side in ((0, columns), (1, rows)))
        left, top = ops.floor(x), ops.floor(y)
        for down in (0, 1):
            for right in (0, 1):
                share = (x - left if right else 1 - (x - left)) * (y - top if down else 1 - (y - top))
                column, row = left + right, top + down
                inside = ops.logical_and(
                    ops.logical_and(column >= 0, column < ops.cast(columns, "float32")),
                    ops.logical_and(row >= 0, row < ops.cast(rows, "float32")),
                )
                share = ops.cast(share * ops.cast(inside, "float32"), weights.dtype) * weights
                found = found + _sum_over_points(share, self._gathered(flat, column, row, block, rows, columns))
        return found

    def _nearest(self, flat: Any, places: Any, weights: Any, block: Any, rows: Any, columns: Any) -> Any:
        """The weighted sum of the pixels that places lie in, those at the border for places beyond it."""
        column, row = (
            _truncated(places[..., axis] * ops.cast(side, "float32") + 0.5) for axis, side in ((0, columns), (1, rows))
        )
        return _sum_over_points(weights, self._gathered(flat, column, row, block, rows, columns))

    def _gathered(self, flat: Any, column: Any, row: Any, block: Any, rows: Any, columns: Any) -> Any:
        column = ops.cast(ops.clip(column, 0.0, ops.cast(columns - 1, "float32")), "int32")
        row = ops.cast(ops.clip(row, 0.0, ops.cast(rows - 1, "float32")), "int32")
        return ops.take(flat, block + row * columns + column, axis=0)

    def compute_output_shape(self, input_shape: Any) -> tuple[Any, ...]:
        """Returns the shape of the queries."""
        values, offsets = input_shape[:2]
        return (values[0], offsets[1], values[-1])

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {**super().get_config(), **self.options}


def _truncated(x: Any) -> Any:
    """Numbers without their fractions, as a cast to integers leaves them."""
    return ops.sign(x) * ops.floor(ops.abs(x))


def _sum_over_points(weights: Any, values: Any) -> Any:
    """Sums ``(batch, q, heads, levels, points, values)`` over levels and points."""
    return ops.sum(ops.expand_dims(weights, -1) * values, axis=(3, 4))


@_register
class BoxesInPixels(keras.layers.Layer):
    """Boxes xyxy in pixels, cut to the image, of centres and sides in shares of it. In float32.

    Args:
        **kwargs: As ``keras.layers.Layer`` takes them.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**{"dtype": "float32", "autocast": False, **kwargs})

    def call(self, inputs: Any) -> Any:
        """Converts ``(batch, n, 4)``; the second input is the images, of which only the size matters."""
        boxes, images = inputs
        boxes = ops.cast(boxes, "float32")
        height, width = (ops.cast(ops.shape(images)[axis], "float32") for axis in (1, 2))
        centres, sides = boxes[..., :2], boxes[..., 2:]
        corners = ops.clip(ops.concatenate([centres - 0.5 * sides, centres + 0.5 * sides], axis=-1), 0.0, 1.0)
        return corners * ops.stack([width, height, width, height])

    def compute_output_shape(self, input_shape: Any) -> tuple[Any, ...]:
        """Returns the shape unchanged."""
        return tuple(input_shape[0])


@_register
class BestPairs(keras.layers.Layer):
    """The pairs of a box and a class with the best scores.

    Args:
        max_detections: How many are kept at most.
        score_threshold: They must have more than this score.
        best_class: Whether only the best class of a box counts; otherwise several may share a box.
        **kwargs: As ``keras.layers.Layer`` takes them.
    """

    def __init__(self, max_detections: int, score_threshold: float = 0.0, best_class: bool = False, **kwargs: Any):
        super().__init__(**{"dtype": "float32", "autocast": False, **kwargs})
        self.max_detections, self.score_threshold, self.best_class = max_detections, score_threshold, best_class

    def call(self, inputs: Any) -> dict[str, Any]:
        """Chooses.

        Args:
            inputs: ``{"boxes": (batch, n, 4), "scores": (batch, n, classes)}``.

        Returns:
            ``"boxes"`` ``(batch, k, 4)``, ``"scores"`` ``(batch, k)``, ``"classes"`` int32 ``(batch, k)`` and
            ``"count"`` int32 ``(batch,)``; behind the count zeros, and -1 for classes.
        """
        boxes, scores = inputs["boxes"], inputs["scores"]
        classes = scores.shape[-1]
        if self.best_class:
            _, number = ops.top_k(scores, 1)  # Keras' argmax looks at bits, which no other runtime does
            scores = scores * ops.one_hot(ops.cast(number[..., 0], "int32"), classes, dtype="float32")
        flat = ops.reshape(scores, (-1, scores.shape[1] * classes))
        best, indices = ops.top_k(flat, min(self.max_detections, flat.shape[-1]), sorted=True)
        indices = ops.cast(indices, "int32")
        kept = best > self.score_threshold
        places = ops.cast(kept, "float32")
        return {
            "boxes": rows_of(boxes, indices // classes) * ops.expand_dims(places, -1),
            "scores": best * places,
            "classes": ops.where(kept, indices % classes, -1),
            "count": ops.sum(ops.cast(kept, "int32"), axis=-1),
        }

    def compute_output_spec(self, inputs: Any) -> dict[str, Any]:
        """Returns what is to come."""
        batch, count, classes = inputs["scores"].shape
        most = min(self.max_detections, count * classes)
        return {
            "boxes": keras.KerasTensor((batch, most, 4), "float32"),
            "scores": keras.KerasTensor((batch, most), "float32"),
            "classes": keras.KerasTensor((batch, most), "int32"),
            "count": keras.KerasTensor((batch,), "int32"),
        }

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        own = {"max_detections": self.max_detections, "score_threshold": self.score_threshold}
        return {**super().get_config(), **own, "best_class": self.best_class}


@_register
class AuxiliaryDense(keras.layers.Dense):
    """A dense layer whose outputs only training needs; elsewhere it hands on its input and holds the weights.

    Args:
        units: Outputs.
        **kwargs: As ``keras.layers.Dense`` takes them.
    """

    def call(self, inputs: Any, applied: bool = False) -> Any:
        """Hands on ``(batch, n, width)``; with ``applied``, returns ``(batch, n, units)``."""
        return super().call(inputs) if applied else inputs

    def compute_output_spec(self, inputs: Any, applied: bool = False) -> Any:
        """Returns what is to come."""
        shape = (*inputs.shape[:-1], self.units) if applied else inputs.shape
        return keras.KerasTensor(shape, self.compute_dtype)


@_register
class AuxiliaryEmbedding(keras.layers.Layer):
    """Vectors of classes that only training needs; elsewhere it hands on its input and holds them.

    Args:
        count: How many.
        width: Their length.
        **kwargs: As ``keras.layers.Layer`` takes them.
    """

    def __init__(self, count: int, width: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.count, self.width = count, width

    def build(self, input_shape: Any) -> None:
        """Makes the vectors."""
        self.embeddings = self.add_weight((self.count, self.width), "glorot_uniform", name="embeddings")

    def call(self, inputs: Any, applied: bool = False) -> Any:
        """Hands on a tensor; with ``applied``, returns the vectors ``(batch, n, width)`` of numbers ``(batch, n)``."""
        return ops.take(ops.cast(self.embeddings, self.compute_dtype), inputs, axis=0) if applied else inputs

    def compute_output_spec(self, inputs: Any, applied: bool = False) -> Any:
        """Returns what is to come."""
        return keras.KerasTensor((*inputs.shape, self.width) if applied else inputs.shape, self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {**super().get_config(), "count": self.count, "width": self.width}
