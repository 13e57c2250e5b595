"""DetectorSpec: everything there is to say about one dense detector, as data. No Keras here."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from resfit.errors import ArgumentError
from resfit.networks import arithmetic
from resfit.networks.spec import ArchitectureSpec

_CHOICES: dict[str, tuple[Any, ...]] = {
    "pyramid_norm": ("none", "batch", "group"),
    "head_norm": ("none", "batch", "group"),
    "extra_input": ("p5", "c5"),
    "anchor_stride": ("grid", "nominal"),
    "box_coding": ("deltas", "distances", "distribution"),
    "distance_activation": ("relu", "exp"),
    "quality": (None, "centerness"),
    "quality_branch": ("box", "class"),
    "quality_rule": ("geometric_mean", "product"),
}
_Spec = TypeVar("_Spec")

_COUNTS = ("pyramid_width", "head_width", "norm_groups", "distribution_bins", "classes", "candidates", "max_detections")
_FRACTIONS = ("score_threshold", "nms_threshold")


@dataclasses.dataclass(frozen=True)
class DetectorSpec:
    """One dense detector: a residual network, a feature pyramid and a head that is shared by all of its levels.

    By its fields this is RetinaNet (Lin et al. 2017, arXiv:1708.02002; torchvision's first and second form), FCOS (Tian
    et al. 2019, arXiv:1904.01355), ATSS (Zhang et al. 2019, arXiv:1912.02424) or GFL (Li et al. 2020,
    arXiv:2006.04388).

    Level ``n`` has a stride of ``2 ** n`` pixels. Levels whose stride a stage of the backbone has are made of that
    stage; the coarser ones, one from another, by convolutions of stride 2.

    Attributes:
        backbone: The residual network. The epsilon of its batch norms is its own (torchvision's first RetinaNet: 0).
        levels: Levels of the pyramid, finest first, without gaps.
        pyramid_width: Channels of the pyramid.
        pyramid_norm: Norm behind the pyramid's convolutions, those of the extra levels apart. With one, they have no
            bias.
        extra_input: What the first extra level is made of: the pyramid's coarsest map of a stage (``"p5"``) or the
            backbone's last map (``"c5"``).
        extra_activation: Whether an extra level is made of the activated one before it.
        head_depth: Convolutions of each of the two branches of the head before its output.
        head_width: Their channels.
        head_norm: Norm behind them.
        head_bias: Whether they have a bias.
        norm_groups: Groups of a group norm.
        norm_epsilon: Added to the variance in the norms of pyramid and head.
        norm_momentum: Momentum of the moving statistics of batch norms in pyramid and head, Keras' meaning.
        activation: Keras name of the activation of the head and between extra levels.
        anchor_sizes: For each level, the sides in pixels of its square anchors. With distances this is the unit
            of the codes, usually one value, the level's stride.
        anchor_ratios: Height over width of the anchors; each occurs with each size.
        anchor_rounding: Whether the corners of the anchors at the origin are rounded to whole pixels, as torchvision
            does.
        anchor_stride: Distance of anchors: the image's side divided by the map's, rounded down (``"grid"``,
            torchvision), or the level's own stride.
        anchor_offset: Where the centre of an anchor lies in its cell, in strides: 0 is the cell's first corner
            (torchvision, mmdet's anchors), 0.5 its middle (FCOS as published).
        box_coding: What the head says of a box: shifts and logarithms of sizes against an anchor, distances of its
            four sides from a point, or a distribution over such distances (GFL).
        delta_stds: What deltas are multiplied by before they are decoded (x, y, width, height).
        distance_activation: What makes distances positive.
        distribution_bins: Distances of a distribution, 0 to this less one.
        level_scales: Whether the box output of each level has a learned factor.
        quality: A further output, whose sigmoid enters the score, or None.
        quality_branch: The branch that it is an output of: the boxes', or the classes' (FCOS as first published).
        quality_rule: How: the root of the product with the class's score, or the product.
        classes: Class outputs, those included that stand for nothing (torchvision: 91 for COCO's 80, background
            at 0).
        prior: Score of every class at the start; it sets the bias of the class output.
        score_threshold: Detections must have more than this score.
        nms_threshold: Of two boxes of one class whose intersection over union is above this, the better stays.
        candidates: Pairs of box and class that enter the suppression, the best of each level.
        max_detections: Detections that are kept, for each image.
        input_size: Height and width in pixels for which costs are stated.
    """

    backbone: ArchitectureSpec
    levels: tuple[int, ...] = (3, 4, 5, 6, 7)
    pyramid_width: int = 256
    pyramid_norm: Literal["none", "batch", "group"] = "none"
    extra_input: Literal["p5", "c5"] = "p5"
    extra_activation: bool = True
    head_depth: int = 4
    head_width: int = 256
    head_norm: Literal["none", "batch", "group"] = "none"
    head_bias: bool = True
    norm_groups: int = 32
    norm_epsilon: float = 1e-5
    norm_momentum: float = 0.9
    activation: str = "relu"
    anchor_sizes: tuple[tuple[float, ...], ...] = ((8,), (16,), (32,), (64,), (128,))
    anchor_ratios: tuple[float, ...] = (1.0,)
    anchor_rounding: bool = True
    anchor_stride: Literal["grid", "nominal"] = "grid"
    anchor_offset: float = 0.0
    box_coding: Literal["deltas", "distances", "distribution"] = "distances"
    delta_stds: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    distance_activation: Literal["relu", "exp"] = "relu"
    distribution_bins: int = 17
    level_scales: bool = False
    quality: Literal["centerness"] | None = None
    quality_branch: Literal["box", "class"] = "box"
    quality_rule: Literal["geometric_mean", "product"] = "geometric_mean"
    classes: int = 80
    prior: float = 0.01
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
        for field, choices in _CHOICES.items():
            if getattr(self, field) not in choices:
                raise ArgumentError(f"{field} must be one of {choices}. Received: {getattr(self, field)!r}.")
        for field in _COUNTS:
            if getattr(self, field) < 1:
                raise ArgumentError(f"{field} must be at least 1. Received: {getattr(self, field)!r}.")
        if self.head_depth < 0:
            raise ArgumentError(f"head_depth must not be negative. Received: {self.head_depth!r}.")
        for field in _FRACTIONS:
            if not 0 <= getattr(self, field) <= 1:
                raise ArgumentError(f"{field} must lie in [0, 1]. Received: {getattr(self, field)!r}.")
        if not 0 < self.prior < 1:
            raise ArgumentError(f"prior must lie between 0 and 1. Received: {self.prior!r}.")
        if min(self.input_size) < 1:
            raise ArgumentError(f"input_size must be at least 1 pixel. Received: {self.input_size!r}.")
        self._check_norms()
        self._check_levels()
        self._check_anchors()

    def _check_norms(self) -> None:
        for part in ("pyramid", "head"):
            width = getattr(self, f"{part}_width")
            if getattr(self, f"{part}_norm") == "group" and width % self.norm_groups:
                raise ArgumentError(
                    f"{part}_width must divide by norm_groups={self.norm_groups}. Received: {part}_width={width}."
                )
        if self.norm_epsilon < 0:
            raise ArgumentError(f"norm_epsilon must not be negative. Received: {self.norm_epsilon!r}.")

    def _check_levels(self) -> None:
        levels = self.levels
        if not levels or levels[0] < 1 or any(b - a != 1 for a, b in itertools.pairwise(levels)):
            raise ArgumentError(f"levels must ascend by 1, such as (3, 4, 5, 6, 7). Received: {levels!r}.")
        taps, strides = self.taps, sorted(set(arithmetic.count(self.backbone, include_top=False).taps.values()))
        # what lies behind the last tap would be no part of the model
        if levels[0] not in taps or 2 ** max(taps) != strides[-1]:
            raise ArgumentError(
                "levels must begin at a stride that the backbone has, and reach its last one. Received: "
                f"levels={levels!r} (strides {[2**level for level in levels]}) for a backbone of strides {strides}."
            )

    def _check_anchors(self) -> None:
        sizes = self.anchor_sizes
        if len(sizes) != len(self.levels) or len({len(one) for one in sizes}) != 1 or not sizes[0]:
            raise ArgumentError(
                f"anchor_sizes must have as many sizes on each of the {len(self.levels)} levels, and one at least. "
                f"Received: {sizes!r}."
            )
        if not self.anchor_ratios or min(*itertools.chain(*sizes), *self.anchor_ratios) <= 0:
            raise ArgumentError(
                "anchor_sizes and anchor_ratios must be above 0, and there must be one of each. "
                f"Received: {sizes!r} and {self.anchor_ratios!r}."
            )
        if len(self.delta_stds) != 4 or min(self.delta_stds) <= 0:
            raise ArgumentError(f"delta_stds must be four numbers above 0. Received: {self.delta_stds!r}.")
        if not 0 <= self.anchor_offset <= 1:
            raise ArgumentError(f"anchor_offset must lie in [0, 1]. Received: {self.anchor_offset!r}.")

    @property
    def taps(self) -> dict[int, str]:
        """The stages of the backbone that levels are made of, by level: the last stage of each stride."""
        return {level: tap for level, tap in taps_by_level(self.backbone).items() if level in self.levels}

    @property
    def anchors_per_cell(self) -> int:
        """Anchors (or points) at each place of a map."""
        return len(self.anchor_sizes[0]) * len(self.anchor_ratios)

    @property
    def box_values(self) -> int:
        """Values that the head says of one box."""
        return 4 * self.distribution_bins if self.box_coding == "distribution" else 4

    @property
    def in_channels(self) -> int:
        """Channels of an image."""
        return self.backbone.in_channels

    def replace(self, **changes: Any) -> DetectorSpec:
        """Returns a copy with some fields changed, checked again."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON-ready values."""
        return fields_of(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> DetectorSpec:
        """Restores what :meth:`to_dict` returned.

        Raises:
            ArgumentError: A field is unknown, ``backbone`` is missing, or the fields contradict each other.
        """
        return spec_of(cls, fields)


def is_of_detector(layer: str) -> bool:
    """Whether a layer belongs to what a detector has beside its backbone, by names that no layer of a backbone has.

    Args:
        layer: Its name, or that of one of its weights.
    """
    return re.match(r"p\d+_|class_|box_|quality_|encoder_|decoder_|rpn_|roi_", layer) is not None


@functools.lru_cache(maxsize=256)
def taps_by_level(backbone: ArchitectureSpec) -> dict[int, str]:
    """Returns the last stage of a network for each stride, by the logarithm of the stride to base 2.

    Args:
        backbone: The network.
    """
    found: dict[int, str] = {}
    for tap, stride in arithmetic.count(backbone, include_top=False).taps.items():
        if stride & (stride - 1) == 0:
            found[stride.bit_length() - 1] = tap
    return found


def fields_of(spec: Any) -> dict[str, Any]:
    """Returns the fields of a detector's spec as JSON-ready values.

    Args:
        spec: The spec, a dataclass with ``backbone``.
    """
    fields = {field.name: getattr(spec, field.name) for field in dataclasses.fields(spec)}
    fields["backbone"] = spec.backbone.to_dict()
    return {key: _listed(value) for key, value in fields.items()}


def spec_of(kind: type[_Spec], fields: Mapping[str, Any]) -> _Spec:
    """Returns a spec of what :func:`fields_of` returned.

    Args:
        kind: Its class.
        fields: The fields.

    Raises:
        ArgumentError: A field is unknown, ``backbone`` is missing, or the fields contradict each other.
    """
    known = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(fields) - known)
    if unknown:
        raise ArgumentError(f"detector has unknown fields: {', '.join(unknown)}.")
    if not isinstance(fields.get("backbone"), Mapping):
        raise ArgumentError(f"detector must have a backbone. Received: {fields.get('backbone')!r}.")
    values: dict[str, Any] = {key: _tupled(value) for key, value in fields.items() if key != "backbone"}
    return kind(backbone=ArchitectureSpec.from_dict(fields["backbone"]), **values)  # type: ignore[call-arg]


def _listed(value: Any) -> Any:
    return [_listed(item) for item in value] if isinstance(value, tuple) else value


def _tupled(value: Any) -> Any:
    return tuple(_tupled(item) for item in value) if isinstance(value, list) else value
