"""Layers of detectors of two stages: which boxes are proposed, what the pyramid holds in each, and their classes.

None has weights. Sampling is written as gathers, which every runtime has. All are registered under the package name
``resfit``.
"""

from __future__ import annotations

import itertools
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


def drawn(positive: Any, negative: Any, noise: Any, count: int, share: float) -> Any:
    """Returns keys by which the largest ``count`` are a random sample, of which at most a share is positive.

    Args:
        positive: Booleans ``(batch, n)``, ``n`` at least ``count``.
        negative: Likewise.
        noise: Random numbers in [0, 1) of this shape.
        count: How many are drawn.
        share: Of the positive ones, at most.

    Returns:
        Float32 ``(batch, n)``: at least 2 for positive ones that are drawn, 0 to 1 for negative ones, below 0 for the
        others.
    """
    noise = ops.cast(noise, "float32")
    own = ops.where(positive, noise, -1.0)
    best, _ = ops.top_k(own, max(1, int(count * share)))
    kept = ops.logical_and(positive, own >= best[:, -1:])
    return ops.where(kept, noise + 2.0, ops.where(negative, noise, -1.0))


@_register
class SampleProposals(keras.layers.Layer):
    """A random sample of proposals and true boxes, with what each is to learn (Ren et al. 2015, arXiv:1506.01497).

    A box that overlaps a true one by at least ``overlap`` learns it; the others learn that they are background.

    Args:
        count: Boxes of an image in the sample; an image must have as many proposals.
        background: The class output of what is no object.
        share: Of those that learn a box, at most.
        overlap: Intersection over union from which on one does.
        **kwargs: As ``keras.layers.Layer`` takes them.
    """

    def __init__(self, count: int, background: int = 0, share: float = 0.25, overlap: float = 0.5, **kwargs: Any):
        super().__init__(**{"dtype": "float32", "autocast": False, **kwargs})
        self.options: dict[str, Any] = {
            "count": count,
            "background": background,
            "share": share,
            "overlap": overlap,
        }

    def call(self, inputs: Any) -> Any:
        """Draws.

        Args:
            inputs: Proposals ``(batch, n, 4)``, xyxy in pixels, and 1 or 0 for each; true boxes ``(batch, most, 4)``,
                their class outputs, int32 ``(batch, most)`` with -1 for none, and random numbers in [0, 1) of shape
                ``(batch, n + most)``.

        Returns:
            Boxes ``(batch, count, 4)``, the true box of each, likewise, and its class output, int32 ``(batch, count)``:
            -1 for those that fill up and learn nothing.
        """
        proposals, there, true, kinds, noise = inputs
        own = self.options
        known = kinds >= 0
        boxes = ops.stop_gradient(ops.concatenate([proposals, true], axis=1))
        usable = ops.concatenate([there > 0, known], axis=1)
        overlap = box_rules.iou_matrix(boxes, true) * ops.cast(ops.expand_dims(known, 1), "float32")
        which = ops.cast(ops.argmax(overlap, axis=2), "int32")
        near = ops.max(overlap, axis=2) >= own["overlap"]
        keys = drawn(
            ops.logical_and(near, usable),
            ops.logical_and(ops.logical_not(near), usable),
            noise,
            own["count"],
            own["share"],
        )
        keys, chosen = ops.top_k(keys, own["count"])
        chosen = ops.cast(chosen, "int32")
        which = ops.take_along_axis(which, chosen, axis=1)
        found = ops.take_along_axis(kinds, which, axis=1)
        found = ops.where(keys >= 2.0, found, ops.where(keys >= 0.0, own["background"], -1))
        return [rows_of(boxes, chosen), rows_of(true, which), ops.cast(found, "int32")]

    def compute_output_spec(self, inputs: Any) -> list[Any]:
        """Returns what is to come."""
        batch, count = inputs[0].shape[0], self.options["count"]
        boxes = [keras.KerasTensor((batch, count, 4), "float32") for _ in range(2)]
        return [*boxes, keras.KerasTensor((batch, count), "int32")]

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {**super().get_config(), **self.options}


@_register
class ImageOfSize(keras.layers.Layer):
    """Stands for an image of which only height and width matter, where a network begins with maps.

    Args:
        height: In pixels.
        width: Likewise.
        **kwargs: As ``keras.layers.Layer`` takes them.
    """

    def __init__(self, height: int, width: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.height, self.width = height, width

    def call(self, inputs: Any) -> Any:
        """Returns zeros ``(1, height, width, 1)``, whatever comes in."""
        del inputs
        return ops.zeros((1, self.height, self.width, 1), dtype=self.compute_dtype)

    def compute_output_spec(self, inputs: Any) -> Any:
        """Returns what is to come."""
        return keras.KerasTensor((1, self.height, self.width, 1), self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {**super().get_config(), "height": self.height, "width": self.width}


@_register
class RoIAlign(keras.layers.Layer):
    """What the maps of a pyramid hold in boxes, interpolated (He et al. 2017, arXiv:1703.06870).

    Each box is taken from the level that suits its size.

    Args:
        levels: Levels of the maps: strides are powers of 2.
        size: Height and width of the result.
        samples: Points along each side of a cell of it, whose mean it is; 0 for as many as the cell is pixels of its
            map high and wide, rounded up (detectron2).
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
        cells = ops.convert_to_tensor(np.arange(size, dtype=np.float32)[None])

        def along(axis: int, shares: Any, limit: Any) -> tuple[Any, Any, tuple[Any, Any]]:
            """What lies around the points of each box along one side, one in each of its cells."""
            start, side = (ops.reshape(one[..., axis], (-1, 1)) for one in (low, sides))
            return _neighbours(start + side / size * (cells + shares), ops.reshape(limit, (-1, 1)))

        def added(found: Any, down: Any, across: Any, scaled: Any) -> Any:
            """One point of each cell more, ``scaled`` by one over their number."""
            top, bottom, y_share = along(1, down, rows)
            left, right, x_share = along(0, across, columns)
            for row, row_share in ((top, y_share[0]), (bottom, y_share[1])):
                line = first + ops.expand_dims(row * ops.reshape(columns, (-1, 1)), 2)
                for column, share in ((left, x_share[0]), (right, x_share[1])):
                    weight = ops.expand_dims(row_share, 2) * ops.expand_dims(share, 1) * scaled
                    values = ops.take(flat, line + ops.expand_dims(column, 1), axis=0)
                    found = found + values * ops.cast(ops.expand_dims(weight, -1), values.dtype)
            return found

        if samples:
            found: Any = 0.0
            for down, across in itertools.product(range(samples), repeat=2):
                found = added(found, (down + 0.5) / samples, (across + 0.5) / samples, 1.0 / samples**2)
            return found
        counts = ops.maximum(ops.ceil(ops.reshape(sides, (-1, 2)) / size), 1.0)
        most = ops.cast(ops.max(counts, axis=0), "int32")

        def more(number: Any, found: Any) -> tuple[Any, Any]:
            down, across = (ops.cast(one, "float32") for one in (number // most[0], number % most[0]))
            inside = ops.logical_and(down < counts[:, 1], across < counts[:, 0])
            scaled = ops.cast(inside, "float32") / (counts[:, 0] * counts[:, 1])
            rows_at, columns_at = (
                ops.reshape((one + 0.5) / counts[:, axis], (-1, 1)) for one, axis in ((down, 1), (across, 0))
            )
            return number + 1, added(found, rows_at, columns_at, ops.reshape(scaled, (-1, 1, 1)))

        start = ops.zeros((ops.shape(counts)[0], size, size, channels), dtype=flat.dtype)
        _, found = ops.while_loop(
            lambda number, found: number < most[0] * most[1], more, (ops.zeros((), dtype="int32"), start)
        )
        return found

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
