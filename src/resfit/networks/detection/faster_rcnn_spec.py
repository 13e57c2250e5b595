"""FasterRCNNSpec: everything there is to say about one Faster R-CNN, as data. No Keras here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from resfit.errors import ArgumentError
from resfit.networks.detection.spec import fields_of, spec_of, taps_by_level
from resfit.networks.spec import ArchitectureSpec

_COUNTS = (
    *("pyramid_width", "proposal_depth", "proposal_candidates", "proposals", "pool_size", "box_width"),
    *("classes", "candidates", "max_detections"),
)
_MOST = 100_000


@dataclasses.dataclass(frozen=True)
class FasterRCNNSpec:
    """One Faster R-CNN: a residual network, a feature pyramid, a network that proposes boxes, and a head for each.

    Ren et al. 2015, arXiv:1506.01497, with the pyramid of Lin et al. 2016, arXiv:1612.03144; torchvision's first form
    and its second (Li et al. 2021, arXiv:2111.11429), and detectron2's.

    Attributes:
        backbone: The residual network.
        levels: Levels of the pyramid, finest first. The last is every second place of the one before it, and only
            proposals come of it.
        pyramid_width: Channels of the pyramid.
        pyramid_norm: Norm behind the pyramid's convolutions. With one, they have no bias.
        proposal_depth: Convolutions before the outputs that propose boxes.
        anchor_sizes: For each level, the sides in pixels of its square anchors.
        anchor_ratios: Height over width of the anchors.
        anchor_rounding: Whether the corners of the anchors at the origin are rounded to whole pixels.
        anchor_stride: As in :class:`resfit.networks.detection.spec.DetectorSpec`.
        anchor_offset: Likewise.
        proposal_candidates: Anchors of each level, the best, that enter the suppression of proposals.
        proposal_threshold: Of two proposals of a level that overlap by more than this, the better stays.
        proposals: Proposals of an image that the head looks at.
        pool_size: Height and width of what is taken from the pyramid for each.
        samples: Points along each side of a cell of it, whose mean it is; 0 for as many as the cell is pixels of its
            map high and wide, rounded up (detectron2).
        aligned: Whether pixels are taken for points in the middle of their cells (detectron2), or at their corners.
        box_convs: Widths of the head's convolutions.
        box_norm: Norm behind them. With one, they have no bias.
        box_dense: Dense layers behind them.
        box_width: Units of these.
        delta_stds: What the head's deltas are multiplied by before they are decoded.
        norm_epsilon: Added to the variance in norms of pyramid and head.
        norm_momentum: Momentum of the moving statistics of batch norms there, Keras' meaning.
        classes: Classes that are reported.
        unreported: Class outputs that are not, ascending: the background, and what stands for nothing.
        score_threshold: Detections must have more than this score.
        nms_threshold: Of two boxes of one class whose intersection over union is above this, the better stays.
        candidates: Pairs of proposal and class, the best, that enter the suppression.
        max_detections: Detections that are kept, for each image.
        input_size: Height and width in pixels for which costs are stated.
    """

    KIND: ClassVar[str] = "faster_rcnn"
    # what the pyramid asks of a detector
    extra_input: ClassVar[str] = "pool"
    box_coding: ClassVar[str] = "deltas"
    distribution_bins: ClassVar[int] = 1

    backbone: ArchitectureSpec
    levels: tuple[int, ...] = (2, 3, 4, 5, 6)
    pyramid_width: int = 256
    pyramid_norm: Literal["none", "batch"] = "none"
    proposal_depth: int = 1
    anchor_sizes: tuple[tuple[float, ...], ...] = ((32,), (64,), (128,), (256,), (512,))
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    anchor_rounding: bool = True
    anchor_stride: Literal["grid", "nominal"] = "grid"
    anchor_offset: float = 0.0
    proposal_candidates: int = 1000
    proposal_threshold: float = 0.7
    proposals: int = 1000
    pool_size: int = 7
    samples: int = 2
    aligned: bool = False
    box_convs: tuple[int, ...] = ()
    box_norm: Literal["none", "batch"] = "none"
    box_dense: int = 2
    box_width: int = 1024
    delta_stds: tuple[float, float, float, float] = (0.1, 0.1, 0.2, 0.2)
    norm_epsilon: float = 1e-5
    norm_momentum: float = 0.9
    classes: int = 90
    unreported: tuple[int, ...] = (0,)
    score_threshold: float = 0.05
    nms_threshold: float = 0.5
    candidates: int = 1000
    max_detections: int = 100
    input_size: tuple[int, int] = (800, 800)

    def __post_init__(self) -> None:
        """Checks that the fields fit together.

        Raises:
            ArgumentError: A field is outside its choices, or two fields contradict each other.
        """
        for field in ("pyramid_norm", "box_norm"):
            if getattr(self, field) not in ("none", "batch"):
                raise ArgumentError(f"{field} must be 'none' or 'batch'. Received: {getattr(self, field)!r}.")
        for field in _COUNTS:
            if not 1 <= getattr(self, field) <= _MOST:
                raise ArgumentError(f"{field} must lie in 1..{_MOST}. Received: {getattr(self, field)!r}.")
        if not 0 <= self.box_dense <= 100 or self.proposal_depth > 100 or len(self.box_convs) > 100:
            raise ArgumentError("box_dense, proposal_depth and box_convs must be at most 100.")
        if (
            self.pool_size > 100
            or not 0 <= self.samples <= 100
            or any(not 1 <= width <= _MOST for width in self.box_convs)
        ):
            raise ArgumentError(f"pool_size and samples must be at most 100, box_convs lie in 1..{_MOST}.")
        for field in ("score_threshold", "nms_threshold", "proposal_threshold"):
            if not 0 <= getattr(self, field) <= 1:
                raise ArgumentError(f"{field} must lie in [0, 1]. Received: {getattr(self, field)!r}.")
        if self.anchor_stride not in ("grid", "nominal") or not 0 <= self.anchor_offset <= 1:
            raise ArgumentError("anchor_stride must be 'grid' or 'nominal', and anchor_offset lie in [0, 1].")
        if self.norm_epsilon < 0:
            raise ArgumentError(f"norm_epsilon must not be negative. Received: {self.norm_epsilon!r}.")
        if min(self.input_size) < 1:
            raise ArgumentError(f"input_size must be at least 1 pixel. Received: {self.input_size!r}.")
        if len(self.delta_stds) != 4 or min(self.delta_stds) <= 0:
            raise ArgumentError(f"delta_stds must be four numbers above 0. Received: {self.delta_stds!r}.")
        self._check_levels()
        outputs = self.classes + len(self.unreported)
        if (
            not self.unreported
            or list(self.unreported) != sorted(set(self.unreported))
            or not all(0 <= number < outputs for number in self.unreported)
        ):
            raise ArgumentError(
                f"unreported must be ascending outputs among {outputs}, the background at least. "
                f"Received: {self.unreported!r}."
            )

    def _check_levels(self) -> None:
        levels, own = self.levels, taps_by_level(self.backbone)
        if len(levels) < 2 or list(levels) != list(range(levels[0], levels[0] + len(levels))):
            raise ArgumentError(f"levels must ascend by 1, such as (2, 3, 4, 5, 6). Received: {levels!r}.")
        if any(level not in own for level in levels[:-1]) or levels[-2] != max(own):
            raise ArgumentError(
                f"levels must be strides of the backbone ({sorted(own)}), to its last one, and one more. "
                f"Received: {levels!r}."
            )
        sizes = self.anchor_sizes
        if len(sizes) != len(levels) or len({len(one) for one in sizes}) != 1 or not sizes[0] or not self.anchor_ratios:
            raise ArgumentError(
                f"anchor_sizes must have as many sizes on each of the {len(levels)} levels, and there must be a ratio. "
                f"Received: {sizes!r} and {self.anchor_ratios!r}."
            )
        if min(*[min(one) for one in sizes], *self.anchor_ratios, 1) <= 0:
            raise ArgumentError(f"anchor_sizes and anchor_ratios must be above 0. Received: {sizes!r}.")

    @property
    def taps(self) -> dict[int, str]:
        """The stages of the backbone that levels are made of, by level."""
        own = taps_by_level(self.backbone)
        return {level: own[level] for level in self.levels[:-1]}

    @property
    def anchors_per_cell(self) -> int:
        """Anchors at each place of a map."""
        return len(self.anchor_sizes[0]) * len(self.anchor_ratios)

    @property
    def class_outputs(self) -> int:
        """Outputs of the class layer, those included that are not reported."""
        return self.classes + len(self.unreported)

    @property
    def reported(self) -> tuple[int, ...]:
        """Class outputs that are reported, ascending."""
        hidden = set(self.unreported)
        return tuple(number for number in range(self.class_outputs) if number not in hidden)

    @property
    def background(self) -> int:
        """The class output of what is no object: the first where that is not reported, else the last such one."""
        return 0 if self.unreported[0] == 0 else self.unreported[-1]

    @property
    def in_channels(self) -> int:
        """Channels of an image."""
        return self.backbone.in_channels

    def replace(self, **changes: Any) -> Self:
        """Returns a copy with some fields changed, checked again."""
        return dataclasses.replace(self, **changes)

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
