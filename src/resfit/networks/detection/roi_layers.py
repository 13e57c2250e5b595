"""Layers of detectors of two stages: which boxes are proposed, what the pyramid holds in each, and their classes.

None has weights. Sampling is written as gathers, which every runtime has. All are registered under the package name
``resfit``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from resfit.networks.detection import boxes as box_rules
from resfit.networks.detection.nms import best_pairs, keep_greedily
from resfit.networks.detection.transformer import rows_of

_register = keras.saving.register_keras_serializable(package="resfit")

# Sides in pixels under which a proposal, and a detection, is none (torchvision).
_LEAST_PROPOSAL, _LEAST_BOX = 1e-3, 1e-2
# A box of this side is pooled from the level of stride 16 (Lin et al. 2016, arXiv:1612.03144, equation 1).
_CANONICAL_SIDE, _CANONICAL_LEVEL = 224.0, 4


@_register
class ChooseProposals(keras.layers.Layer):
    """The best proposals of an image: of each level the best anchors, suppressed level by level.

    Args:
        candidates: Anchors of each level that enter the suppression.
        proposals: How many are kept.
        threshold: Of two proposals of a level that overlap by more than this, the better stays.
        anchors_per_cell: Anchors at each place of a map.
        rounds: As :func:`resfit.networks.detection.nms.keep_greedily` takes it.
        **kwargs: As ``keras.layers.Layer`` takes them.
    """

    def __init__(
        self,
        candidates: int,
        proposals: int,
        threshold: float,
        anchors_per_cell: int,
        rounds: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(**{"dtype": "float32", "autocast": False, **kwargs})
        self.options: dict[str, Any] = {
            "candidates": candidates,
            "proposals": proposals,
            "threshold": threshold,
            "anchors_per_cell": anchors_per_cell,
            "rounds": rounds,
        }

    def call(self, inputs: Any) -> Any:
        """Chooses.

        Args:
            inputs: Logits ``(batch, n, 1)``, boxes ``(batch, n, 4)``, and for each level a map, of which only height
                and width matter.

        Returns:
            Boxes ``(batch, proposals, 4)``, the best first, and 1 for each that is one, 0 for those that fill up.
        """
        logits, boxes, *maps = inputs
        own = self.options
        boxes, logits = ops.stop_gradient(boxes), ops.stop_gradient(ops.cast(logits, "float32"))
        scores, found, start = ops.sigmoid(logits), [], 0
        for level in maps:
            shape = ops.shape(level)
            end = start + shape[1] * shape[2] * own["anchors_per_cell"]
            found.append(self._of_level(boxes[:, start:end], scores[:, start:end]))
            start = end
        boxes, scores = (ops.concatenate(list(parts), axis=1) for parts in zip(*found, strict=True))
        missing = own["proposals"] - own["candidates"] * len(maps)
        if missing > 0:
            boxes = ops.pad(boxes, ((0, 0), (0, missing), (0, 0)))
            scores = ops.pad(scores, ((0, 0), (0, missing)), constant_values=-1.0)
        scores, order = ops.top_k(scores, own["proposals"])
        there = ops.cast(scores >= 0.0, "float32")
        return [rows_of(boxes, ops.cast(order, "int32")) * ops.expand_dims(there, -1), there]

    def _of_level(self, boxes: Any, scores: Any) -> tuple[Any, Any]:
        own = self.options
        boxes, scores, classes = best_pairs(boxes, scores, own["candidates"])
        sides = boxes[..., 2:] - boxes[..., :2]
        alive = ops.cast(ops.logical_and(ops.all(sides >= _LEAST_PROPOSAL, axis=-1), scores >= 0.0), "float32")
        keep = keep_greedily(boxes, classes, own["threshold"], alive=alive, rounds=own["rounds"])
        return boxes, scores * keep - (1.0 - keep)

    def compute_output_shape(self, input_shape: Any) -> list[tuple[Any, ...]]:
        """Returns the shapes of boxes and flags."""
        batch, count = input_shape[0][0], self.options["proposals"]
        return [(batch, count, 4), (batch, count)]

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {**super().get_config(), **self.options}


@_register
class RoIAlign(keras.layers.Layer):
    """What the maps of a pyramid hold in boxes, interpolated (He et al. 2017, arXiv:1703.06870).

    Each box is taken from the level that suits its size.

    Args:
        levels: Levels of the maps: strides are powers of 2.
        size: Height and width of the result.
        samples: Points along each side of a cell of it.
        aligned: Whether pixels are points in the middle of their cells, or at their corners.
        **kwargs: As ``keras.layers.Layer`` takes them.
    """

    def __init__(self, levels: Sequence[int], size: int = 7, samples: int = 2, aligned: bool = False, **kwargs: Any):
        super().__init__(**{"autocast": False, **kwargs})
        self.options: dict[str, Any] = {
            "levels": [int(level) for level in levels],
            "size": size,
            "samples": samples,
            "aligned": aligned,
        }

    def call(self, inputs: Any) -> Any:
        """Takes what boxes hold.

        Args:
            inputs: Boxes ``(batch, n, 4)``, xyxy in pixels of the image, and the map of each level.

        Returns:
            ``(batch * n, size, size, channels)``, image by image.
        """
        boxes, *maps = inputs
        own, channels = self.options, maps[0].shape[-1]
        size, samples = own["size"], own["samples"]
        shapes = [ops.shape(one) for one in maps]
        batch, starts, total = shapes[0][0], [], 0
        for shape in shapes:
            starts.append(total)
            total = total + shape[1] * shape[2]
        areas = [shape[1] * shape[2] for shape in shapes]
        flat = [ops.reshape(one, (-1, area, channels)) for one, area in zip(maps, areas, strict=True)]
        flat = ops.reshape(ops.concatenate(flat, axis=1), (-1, channels))
        level = self._level_of(boxes)
        rows, columns, first = (
            ops.take(ops.stack([ops.cast(one, "int32") for one in each]), level)
            for each in ([shape[1] for shape in shapes], [shape[2] for shape in shapes], starts)
        )
        image = ops.reshape(ops.arange(batch, dtype="int32"), (-1, 1)) * total
        first = ops.reshape(first + image, (-1, 1, 1))
        scale = ops.take(ops.convert_to_tensor(np.array([2.0**-one for one in own["levels"]], np.float32)), level)
        corners = boxes * ops.expand_dims(scale, -1) - (0.5 if own["aligned"] else 0.0)
        low, sides = corners[..., :2], corners[..., 2:] - corners[..., :2]
        if not own["aligned"]:
            sides = ops.maximum(sides, 1.0)
        found: Any = 0.0
        cells = np.arange(size, dtype=np.float32)
        for down in range(samples):
            y = self._places(low[..., 1], sides[..., 1], cells + (down + 0.5) / samples)
            top, bottom, y_share = _neighbours(y, ops.reshape(rows, (-1, 1)))
            for across in range(samples):
                x = self._places(low[..., 0], sides[..., 0], cells + (across + 0.5) / samples)
                left, right, x_share = _neighbours(x, ops.reshape(columns, (-1, 1)))
                for row, row_share in ((top, y_share[0]), (bottom, y_share[1])):
                    line = first + ops.expand_dims(row * ops.reshape(columns, (-1, 1)), 2)
                    for column, share in ((left, x_share[0]), (right, x_share[1])):
                        weight = ops.expand_dims(row_share, 2) * ops.expand_dims(share, 1) / samples**2
                        values = ops.take(flat, line + ops.expand_dims(column, 1), axis=0)
                        found = found + values * ops.cast(ops.expand_dims(weight, -1), values.dtype)
        return found

    def _places(self, low: Any, side: Any, cells: np.ndarray) -> Any:
        """Where samples lie along one side of each box, ``(batch * n, size)``."""
        low, side = ops.reshape(low, (-1, 1)), ops.reshape(side, (-1, 1))
        return low + side / self.options["size"] * ops.convert_to_tensor(cells.astype(np.float32)[None])

    def _level_of(self, boxes: Any) -> Any:
        """The position of each box's level, int32 ``(batch, n)``."""
        levels = self.options["levels"]
        area = ops.maximum((boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1]), 1e-12)
        octave = ops.log(ops.sqrt(area) / _CANONICAL_SIDE) / math.log(2.0)
        level = ops.clip(ops.floor(_CANONICAL_LEVEL + octave + 1e-6), levels[0], levels[-1])
        return ops.cast(level, "int32") - levels[0]

    def compute_output_shape(self, input_shape: Any) -> tuple[Any, ...]:
        """Returns the shape of the result, of boxes of any number."""
        size = self.options["size"]
        return (None, size, size, input_shape[1][-1])

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {**super().get_config(), **self.options}


def _neighbours(places: Any, count: Any) -> tuple[Any, Any, tuple[Any, Any]]:
    """The pixels before and behind places along a side of ``count`` pixels, and how much each counts.

    What lies more than a pixel outside counts nothing.
    """
    side = ops.cast(count, "float32")
    inside = ops.cast(ops.logical_and(places >= -1.0, places <= side), "float32")
    places = ops.minimum(ops.maximum(places, 0.0), side - 1.0)
    before = ops.floor(places)
    share = places - before
    behind = ops.minimum(before + 1.0, side - 1.0)
    return ops.cast(before, "int32"), ops.cast(behind, "int32"), ((1.0 - share) * inside, share * inside)


@_register
class RowsOfImages(keras.layers.Layer):
    """Brings what was computed for each proposal back to its image.

    Args:
        **kwargs: As ``keras.layers.Layer`` takes them.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**{"dtype": "float32", **kwargs})

    def call(self, inputs: Any) -> Any:
        """Reshapes ``(batch * n, values)`` to ``(batch, n, values)``; the second input is ``(batch, n, any)``."""
        values, model = inputs
        return ops.reshape(values, (-1, model.shape[1], values.shape[-1]))

    def compute_output_shape(self, input_shape: Any) -> tuple[Any, ...]:
        """Returns the shape with images."""
        values, model = input_shape
        return (model[0], model[1], values[-1])


@_register
class BoxesOfClasses(keras.layers.Layer):
    """The best pairs of a proposal and a class, each with the box that the head gives this class. In float32.

    Args:
        reported: Numbers of the class outputs that are reported.
        candidates: How many pairs.
        delta_stds: What deltas are multiplied by.
        **kwargs: As ``keras.layers.Layer`` takes them.
    """

    def __init__(self, reported: Sequence[int], candidates: int, delta_stds: Sequence[float], **kwargs: Any):
        super().__init__(**{"dtype": "float32", "autocast": False, **kwargs})
        self.options: dict[str, Any] = {
            "reported": [int(number) for number in reported],
            "candidates": candidates,
            "delta_stds": [float(std) for std in delta_stds],
        }

    def call(self, inputs: Any) -> dict[str, Any]:
        """Decodes.

        Args:
            inputs: Logits ``(batch, n, outputs)``, codes ``(batch, n, 4 * outputs)``, proposals ``(batch, n, 4)``, 1 or
                0 for each, and images, of which only height and width matter.

        Returns:
            ``"boxes"`` ``(batch, candidates, 4)``, xyxy in pixels, and ``"scores"`` ``(batch, candidates, reported)``,
            of which each box has one that is not 0.
        """
        logits, codes, proposals, there, images = inputs
        own = self.options
        outputs, count, classes = logits.shape[-1], logits.shape[1], len(own["reported"])
        reported = ops.convert_to_tensor(np.array(own["reported"], np.int32))
        scores = ops.take(ops.softmax(logits, axis=-1), reported, axis=-1) * ops.expand_dims(there, -1)
        flat = ops.reshape(scores, (-1, count * classes))
        kept = min(own["candidates"], count * classes)
        best, pairs = ops.top_k(flat, kept)
        pairs = ops.cast(pairs, "int32")
        row, number = pairs // classes, pairs % classes
        codes = ops.reshape(codes, (-1, count * outputs, 4))
        codes = rows_of(codes, row * outputs + ops.take(reported, number))
        boxes = box_rules.decode_deltas(codes, rows_of(proposals, row), own["delta_stds"])
        boxes = box_rules.clip_boxes(boxes, ops.shape(images)[1], ops.shape(images)[2])
        large = ops.all(boxes[..., 2:] - boxes[..., :2] >= _LEAST_BOX, axis=-1)
        best = best * ops.cast(large, "float32")
        return {"boxes": boxes, "scores": ops.one_hot(number, classes, dtype="float32") * ops.expand_dims(best, -1)}

    def compute_output_spec(self, inputs: Any) -> dict[str, Any]:
        """Returns what is to come."""
        own = self.options
        batch, count, _ = inputs[0].shape
        kept = min(own["candidates"], count * len(own["reported"]))
        return {
            "boxes": keras.KerasTensor((batch, kept, 4), "float32"),
            "scores": keras.KerasTensor((batch, kept, len(own["reported"])), "float32"),
        }

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {**super().get_config(), **self.options}
