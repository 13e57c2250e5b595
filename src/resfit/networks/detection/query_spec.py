"""QuerySpec: what the specs of all detectors that decode queries have. No Keras here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from resfit.networks.detection.spec import fields_of, spec_of
from resfit.networks.spec import ArchitectureSpec


class QuerySpec:
    """A detector whose boxes are decoded from queries, without suppression: base of frozen dataclasses.

    Attributes:
        KIND: The value of ``"kind"`` in its fields.
    """

    KIND: ClassVar[str]
    backbone: ArchitectureSpec
    max_detections: int

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
