"""Whether a map is right: does it point at the cue, and does the class go when the pixels go that it names?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from resfit.errors import ArgumentError


@dataclasses.dataclass(frozen=True, eq=False)
class Curves:
    """What becomes of a class' probability as pixels go or come, in the order of a map.

    Attributes:
        deletion: Probabilities as the pixels that the map names first are replaced; the lower, the better the map.
        insertion: Probabilities as they are put into the replaced image; the higher, the better the map.

    Source:
        Petsiuk et al. 2018, arXiv:1806.07421.
    """

    deletion: np.ndarray
    insertion: np.ndarray

    @property
    def deletion_area(self) -> float:
        """Mean of the deletion curve, 0..1."""
        return _area(self.deletion)

    @property
    def insertion_area(self) -> float:
        """Mean of the insertion curve, 0..1."""
        return _area(self.insertion)


def points_at(heat: np.ndarray, mask: np.ndarray) -> bool:
    """Says whether the highest value of a map lies on the cue (the pointing game, Zhang et al. 2016, arXiv:1608.00507).

    Args:
        heat: Map ``(height, width)``.
        mask: Booleans of that shape: where the cue is.
    """
    return bool(mask[np.unravel_index(int(np.argmax(heat)), heat.shape)])


def mass_on(heat: np.ndarray, mask: np.ndarray) -> float:
    """Returns the share of a map's sum that lies on the cue, 0..1; its share of the area for a map that is all 0."""
    total = float(heat.sum())
    return float(heat[mask].sum()) / total if total > 0 else float(mask.mean())


def curves(
    probability: Callable[[np.ndarray], np.ndarray],
    image: np.ndarray,
    heat: np.ndarray,
    replaced: np.ndarray,
    *,
    steps: int = 16,
) -> Curves:
    """Measures the deletion and the insertion curve of a map.

    Args:
        probability: Gives for images ``(n, height, width, channels)`` the probability of the class, ``(n,)``.
        image: The image.
        heat: Its map ``(height, width)``.
        replaced: The image with nothing in it, such as a strongly blurred copy.
        steps: In how many equal parts the pixels go.

    Raises:
        ArgumentError: The arrays do not fit together.
    """
    if heat.shape != image.shape[:2] or replaced.shape != image.shape or steps < 1:
        raise ArgumentError(
            f"image, map and replacement must be of one size. Received: {image.shape}, {heat.shape}, {replaced.shape}."
        )
    ranks = np.empty(heat.size, np.int64)
    ranks[np.argsort(-heat, axis=None, kind="stable")] = np.arange(heat.size)
    limits = np.linspace(0, heat.size, steps + 1)
    gone = (ranks.reshape(heat.shape)[None] < limits[:, None, None])[..., None]
    deleted = np.where(gone, replaced[None], image[None])
    inserted = np.where(gone, image[None], replaced[None])
    return Curves(probability(deleted), probability(inserted))


def _area(values: np.ndarray) -> float:
    return float(np.trapezoid(values, dx=1 / (len(values) - 1)))
