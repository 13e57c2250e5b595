"""The layers of dense detectors that Keras does not have. All are registered under the package name ``resfit``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from resfit.networks.detection import anchors as anchor_rules
from resfit.networks.detection import boxes as box_rules

_register = keras.saving.register_keras_serializable(package="resfit")


@_register
class CropToMatch(keras.layers.Layer):
    """Cuts a map at its lower and right edge to height and width of another one.

    A map that was doubled in size is one row or column too large where the finer one has an odd side; nearest
    interpolation to the finer one's size, as torchvision does it, takes the same values.

    Args:
        **kwargs: As ``keras.layers.Layer`` takes them.
    """

    def call(self, inputs: Any) -> Any:
        """Cuts the first of ``[(batch, H, W, channels), (batch, h, w, any)]``, ``H >= h`` and ``W >= w``."""
        large, model = inputs
        shape = ops.shape(model)
        return large[:, : shape[1], : shape[2], :]

    def compute_output_shape(self, input_shape: Any) -> tuple[Any, ...]:
        """Returns the shape after the cut."""
        large, model = input_shape
        return (large[0], model[1], model[2], large[3])


@_register
class LevelScale(keras.layers.Layer):
    """Multiplies by one learned number, which starts at 1.

    Args:
        **kwargs: As ``keras.layers.Layer`` takes them.
    """

    def build(self, input_shape: Any) -> None:
        """Makes the number."""
        self.scale = self.add_weight((), "ones", name="scale")

    def call(self, inputs: Any) -> Any:
        """Multiplies a tensor of any shape."""
        return inputs * ops.cast(self.scale, inputs.dtype)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Returns the shape unchanged."""
        return input_shape


@_register
class PositiveDistances(keras.layers.Layer):
    """Makes distances positive.

    Args:
        activation: ``"relu"`` or ``"exp"``.
        **kwargs: As ``keras.layers.Layer`` takes them.
    """

    def __init__(self, activation: str = "relu", **kwargs: Any):
        super().__init__(**kwargs)
        self.activation = activation

    def call(self, inputs: Any) -> Any:
        """Activates a tensor of any shape."""
        return box_rules.activate_distances(inputs, self.activation)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Returns the shape unchanged."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {**super().get_config(), "activation": self.activation}


@_register
class QualityScores(keras.layers.Layer):
    """The scores of a detector from its classes and the quality of its boxes.

    Args:
        rule: ``"geometric_mean"`` for the root of the product, or ``"product"``.
        **kwargs: As ``keras.layers.Layer`` takes them.
    """

    def __init__(self, rule: str = "geometric_mean", **kwargs: Any):
        super().__init__(**{"dtype": "float32", **kwargs})
        self.rule = rule

    def call(self, inputs: Any) -> Any:
        """Joins logits ``[(batch, n, classes), (batch, n, 1)]`` to scores ``(batch, n, classes)`` in [0, 1]."""
        classes, quality = inputs
        product = ops.sigmoid(classes) * ops.sigmoid(quality)
        return ops.sqrt(product) if self.rule == "geometric_mean" else product

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Returns the shape of the classes."""
        return tuple(input_shape[0])

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {**super().get_config(), "rule": self.rule}


@_register
class DecodeBoxes(keras.layers.Layer):
    """The boxes that a detector's codes stand for, cut to the image. In float32 whatever the dtype policy.

    The arguments are fields of :class:`resfit.networks.detection.spec.DetectorSpec`.

    Args:
        levels: Levels of the pyramid.
        anchor_sizes: For each level, sides of the square anchors in pixels.
        anchor_ratios: Height over width.
        anchor_rounding: Whether anchors are rounded to whole pixels.
        anchor_stride: ``"grid"`` or ``"nominal"``.
        anchor_offset: Centre of an anchor in its cell, in strides.
        box_coding: ``"deltas"``, ``"distances"`` or ``"distribution"``.
        delta_stds: What deltas are multiplied by.
        distribution_bins: Distances of a distribution.
        **kwargs: As ``keras.layers.Layer`` takes them.
    """

    def __init__(
        self,
        levels: Sequence[int],
        anchor_sizes: Sequence[Sequence[float]],
        anchor_ratios: Sequence[float],
        anchor_rounding: bool,
        anchor_stride: str,
        anchor_offset: float,
        box_coding: str,
        delta_stds: Sequence[float],
        distribution_bins: int,
        **kwargs: Any,
    ):
        super().__init__(**{"dtype": "float32", "autocast": False, **kwargs})
        self.options: dict[str, Any] = {
            "levels": [int(level) for level in levels],
            "anchor_sizes": [[float(size) for size in sizes] for sizes in anchor_sizes],
            "anchor_ratios": [float(ratio) for ratio in anchor_ratios],
            "anchor_rounding": anchor_rounding,
            "anchor_stride": anchor_stride,
            "anchor_offset": anchor_offset,
            "box_coding": box_coding,
            "delta_stds": [float(std) for std in delta_stds],
            "distribution_bins": distribution_bins,
        }

    def call(self, inputs: Any) -> Any:
        """Decodes boxes.

        Args:
            inputs: Images ``(batch, height, width, channels)``, codes ``(batch, n, values)``, and for each level a map,
                of which only height and width matter.

        Returns:
            Float32 ``(batch, n, 4)``, xyxy in pixels.
        """
        images, codes, *maps = inputs
        codes = ops.cast(codes, "float32")
        height, width = ops.shape(images)[1], ops.shape(images)[2]
        anchors = ops.concatenate(
            [self.anchors_of_level(number, height, width, level) for number, level in enumerate(maps)], axis=0
        )
        anchors = ops.expand_dims(anchors, 0)
        own = self.options
        decoded = box_rules.decode(codes, anchors, own["box_coding"], own["delta_stds"], own["distribution_bins"])
        return box_rules.clip_boxes(decoded, height, width)

    def anchors_of_level(self, number: int, height: Any, width: Any, level: Any) -> Any:
        """Returns the anchors of one level, ``(rows * columns * anchors, 4)``, as ``anchors.anchors`` does.

        Args:
            number: Index of the level.
            height: Of the image in pixels.
            width: Likewise.
            level: Map of the level, of which only height and width matter.
        """
        options = self.options
        rows, columns = ops.shape(level)[1], ops.shape(level)[2]
        if options["anchor_stride"] == "nominal":
            down = across = 2 ** options["levels"][number]
        else:
            down, across = height // rows, width // columns
        cell = ops.convert_to_tensor(
            anchor_rules.cell_anchors(
                options["anchor_sizes"][number], options["anchor_ratios"], rounding=options["anchor_rounding"]
            )
        )
        y = self._centres(rows, down)
        x = self._centres(columns, across)
        # each of a box's edges is its own sum, so that nothing but additions shapes the result
        x, y = ops.reshape(x, (1, -1, 1)), ops.reshape(y, (-1, 1, 1))
        edges = [ops.expand_dims(centre + ops.zeros_like(other), -1) for centre, other in ((x, y), (y, x)) * 2]
        shifts = ops.concatenate(edges, axis=-1)
        return ops.reshape(shifts + ops.reshape(cell, (1, 1, -1, 4)), (-1, 4))

    def _centres(self, cells: Any, stride: Any) -> Any:
        """Places of anchors along one side, in pixels."""
        places = ops.cast(ops.arange(cells), "float32") + self.options["anchor_offset"]
        return places * ops.cast(stride, "float32")

    def compute_output_shape(self, input_shape: Any) -> tuple[Any, ...]:
        """Returns the shape of the boxes."""
        codes = input_shape[1]
        return (codes[0], codes[1], 4)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of the constructor."""
        return {**super().get_config(), **self.options}
