"""QuerySpec: what the specs of all detectors that decode queries have. No Keras here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from resfit.errors import ArgumentError
from resfit.networks.detection.spec import fields_of, spec_of, taps_by_level
from resfit.networks.spec import ArchitectureSpec

_MOST = 100_000


class QuerySpec:
    """A detector whose boxes are decoded from queries, without suppression: base of frozen dataclasses.

    Attributes:
        KIND: The value of ``"kind"`` in its fields.
    """

    KIND: ClassVar[str]
    backbone: ArchitectureSpec
    norm_epsilon: float
    score_threshold: float
    max_detections: int
    input_size: tuple[int, int]

    def check_ranges(self, counts: Sequence[str]) -> None:
        """Makes sure that counts, thresholds and sizes are in their ranges.

        Args:
            counts: Names of the fields that must be at least 1.

        Raises:
            ArgumentError: One is not.
        """
        for field in counts:
            if not 1 <= getattr(self, field) <= _MOST:
                raise ArgumentError(f"{field} must lie in 1..{_MOST}. Received: {getattr(self, field)!r}.")
        if not 0 <= self.score_threshold <= 1:
            raise ArgumentError(f"score_threshold must lie in [0, 1]. Received: {self.score_threshold!r}.")
        if self.norm_epsilon < 0:
            raise ArgumentError(f"norm_epsilon must not be negative. Received: {self.norm_epsilon!r}.")
        if min(self.input_size) < 1:
            raise ArgumentError(f"input_size must be at least 1 pixel. Received: {self.input_size!r}.")

    @property
    def anchors_per_cell(self) -> int:
        """Boxes at each place: a query is one."""
        return 1

    @property
    def candidates(self) -> int:
        """Pairs of box and class that are looked at: as many as are kept."""
        return self.max_detections

    @property
    def nms_threshold(self) -> float:
        """The overlap above which a box would be dropped: none is."""
        return 1.0

    @property
    def in_channels(self) -> int:
        """Channels of an image."""
        return self.backbone.in_channels

    def replace(self, **changes: Any) -> Self:
        """Returns a copy with some fields changed, checked again."""
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON-ready values, with ``"kind"``."""
        return {"kind": self.KIND, **fields_of(self)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """Restores what :meth:`to_dict` returned.

        Raises:
            ArgumentError: A field is unknown, ``backbone`` is missing, or the fields contradict each other.
        """
        return spec_of(cls, {name: value for name, value in fields.items() if name != "kind"})


class LevelledQuerySpec(QuerySpec):
    """One whose transformer takes maps of several levels: level ``n`` has a stride of ``2 ** n`` pixels."""

    levels: tuple[int, ...]
    queries: int

    def check_levels(self, least: int) -> None:
        """Makes sure that the levels ascend by 1 and end with the backbone's last stride.

        Args:
            least: How many there must be.

        Raises:
            ArgumentError: They do not, or are too few.
        """
        own = taps_by_level(self.backbone)
        if (
            len(self.levels) < least
            or any(level not in own for level in self.levels)
            or max(self.levels, default=0) != max(own)
        ):
            raise ArgumentError(
                f"levels must be strides of the backbone and end with its last one ({sorted(own)}). "
                f"Received: {self.levels!r}."
            )
        if list(self.levels) != list(range(self.levels[0], self.levels[0] + len(self.levels))):
            raise ArgumentError(f"levels must ascend by 1, such as (3, 4, 5). Received: {self.levels!r}.")

    @property
    def taps(self) -> dict[int, str]:
        """The stages of the backbone that the maps are made of, by level."""
        own = taps_by_level(self.backbone)
        return {level: own[level] for level in self.levels}
