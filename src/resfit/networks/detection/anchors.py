"""Anchors and points of a dense detector, in numpy. :mod:`resfit.networks.detection.layers` has them in the graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from resfit.networks.detection.faster_rcnn_spec import FasterRCNNSpec
from resfit.networks.detection.spec import DetectorSpec
from resfit.networks.plan import stem_stride


def octave_sizes(base: Sequence[float], scales_per_octave: int = 3, *, truncated: bool = True) -> Any:
    """Returns the anchor sizes of levels: each base size times ``2 ** (k / scales_per_octave)``.

    Args:
        base: The smallest size of each level in pixels.
        scales_per_octave: Sizes of a level.
        truncated: Whether the sizes are cut to whole pixels, as torchvision does (32, 40, 50).
    """
    factors = [2 ** (k / scales_per_octave) for k in range(scales_per_octave)]
    # torchvision writes the exponent as 1.0 / 3 and 2.0 / 3, which are these numbers
    return tuple(tuple(int(size * f) if truncated else size * f for f in factors) for size in base)


def cell_anchors(sizes: Sequence[float], ratios: Sequence[float], *, rounding: bool = True) -> np.ndarray:
    """Returns the anchors of one place around the origin.

    Args:
        sizes: Sides of the square anchor in pixels.
        ratios: Height over width. The area stays that of the square.
        rounding: Whether corners are rounded to whole pixels, halves to even, as torchvision does.

    Returns:
        Float32 of shape ``(len(ratios) * len(sizes), 4)``, xyxy in pixels; the sizes of the first ratio come first.
    """
    heights = np.sqrt(np.asarray(ratios, np.float32))
    widths = np.float32(1) / heights
    sides = np.asarray(sizes, np.float32)
    w, h = (np.outer(factor, sides).astype(np.float32).reshape(-1) for factor in (widths, heights))
    corners = np.stack([-w, -h, w, h], axis=1) / np.float32(2)
    return np.round(corners) if rounding else corners


def strides(
    spec: DetectorSpec | FasterRCNNSpec, image_size: tuple[int, int], grids: Sequence[tuple[int, int]]
) -> list[tuple[int, int]]:
    """Returns the distance of anchors on each level, vertically and horizontally, in pixels.

    Args:
        spec: The detector.
        image_size: Height and width of the image in pixels.
        grids: Height and width of each level's map.
    """
    if spec.anchor_stride == "nominal":
        return [(2**level, 2**level) for level in spec.levels]
    return [(image_size[0] // rows, image_size[1] // columns) for rows, columns in grids]


def grid_sizes(spec: DetectorSpec | FasterRCNNSpec, image_size: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """Returns height and width of the map of each level.

    Args:
        spec: The detector.
        image_size: Height and width of the image in pixels.
    """
    rows, columns = (_map_sides(spec, side) for side in image_size)
    return tuple(zip(rows, columns, strict=True))


def _map_sides(spec: DetectorSpec | FasterRCNNSpec, side: int) -> list[int]:
    """One side of the maps of all levels. Every stride rounds up, but that of an average pooling in the stem."""
    backbone, stride = spec.backbone, 1
    if backbone.stem_pool == "avg":
        stride = 2 * stem_stride(backbone)
        side = -(-side // stem_stride(backbone)) // 2
    return [max(-(-side * stride // 2**level), 1) for level in spec.levels]


def anchors(spec: DetectorSpec | FasterRCNNSpec, image_size: tuple[int, int]) -> list[np.ndarray]:
    """Returns the anchors of every level for an image.

    Args:
        spec: The detector.
        image_size: Height and width in pixels.

    Returns:
        For each level, finest first, float32 of shape ``(rows * columns * anchors_per_cell, 4)``, xyxy in pixels, in
        the order of the model's outputs: row by row, at each place ratio by ratio, and within these size by size. They
        may reach beyond the image.
    """
    grids = grid_sizes(spec, image_size)
    found = []
    for number, ((rows, columns), (down, across)) in enumerate(
        zip(grids, strides(spec, image_size, grids), strict=True)
    ):
        cell = cell_anchors(spec.anchor_sizes[number], spec.anchor_ratios, rounding=spec.anchor_rounding)
        offset = np.float32(spec.anchor_offset)
        y = (np.arange(rows, dtype=np.float32) + offset) * np.float32(down)
        x = (np.arange(columns, dtype=np.float32) + offset) * np.float32(across)
        shifts = np.stack([*np.meshgrid(x, y)] * 2, axis=-1)
        found.append((shifts[:, :, None, :] + cell).reshape(-1, 4))
    return found
