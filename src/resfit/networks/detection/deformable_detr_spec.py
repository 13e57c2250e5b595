"""DeformableDETRSpec: everything there is to say about one Deformable DETR, as data. No Keras here."""

from __future__ import annotations

import dataclasses

from resfit.errors import ArgumentError
from resfit.networks.detection.query_spec import LevelledQuerySpec
from resfit.networks.spec import ArchitectureSpec

_COUNTS = (
    *("width", "hidden", "heads", "encoder_points", "points", "decoder_depth", "queries", "norm_groups"),
    *("classes", "max_detections"),
)


@dataclasses.dataclass(frozen=True)
class DeformableDETRSpec(LevelledQuerySpec):
    """One Deformable DETR: a residual network, and a transformer that samples a few places of its maps.

    Zhu et al. 2020, arXiv:2010.04159. There is no suppression: of the pairs of a query and a class the best are the
    detections.

    Attributes:
        backbone: The residual network.
        levels: Levels of the maps of the backbone: level ``n`` has a stride of ``2 ** n`` pixels.
        extra_levels: Coarser maps, each made of the one before it by a convolution of stride 2.
        width: Channels of the transformer. Divides by 4, as positions are sines and cosines of two axes.
        encoder_depth: Layers of the encoder.
        decoder_depth: Layers of the decoder.
        hidden: Hidden units of their feed-forward parts.
        heads: Heads of their attention.
        encoder_points: Places that a head of the encoder samples from each level.
        points: Likewise of the decoder.
        queries: Boxes of an image.
        refines: Whether each layer of the decoder moves the boxes of the one before it.
        proposes: Whether queries are chosen among the places of the maps (two stages). Boxes are refined then.
        temperature: Of the sines of positions.
        norm_groups: Groups of the norms behind the convolutions to ``width`` channels.
        norm_epsilon: Added to the variance in norms of the transformer.
        activation: Keras name of the activation of the feed-forward parts.
        classes: Class outputs.
        score_threshold: Detections must have more than this score.
        max_detections: Detections that are kept, for each image.
        input_size: Height and width in pixels for which costs are stated.
    """

    KIND = "deformable_detr"

    backbone: ArchitectureSpec
    levels: tuple[int, ...] = (3, 4, 5)
    extra_levels: int = 1
    width: int = 256
    encoder_depth: int = 6
    decoder_depth: int = 6
    hidden: int = 1024
    heads: int = 8
    encoder_points: int = 4
    points: int = 4
    queries: int = 300
    refines: bool = False
    proposes: bool = False
    temperature: float = 10000.0
    norm_groups: int = 32
    norm_epsilon: float = 1e-5
    activation: str = "relu"
    classes: int = 91
    score_threshold: float = 0.0
    max_detections: int = 100
    input_size: tuple[int, int] = (800, 1066)

    def __post_init__(self) -> None:
        """Checks that the fields fit together.

        Raises:
            ArgumentError: A field is outside its choices, or two fields contradict each other.
        """
        self.check_ranges(_COUNTS)
        if not 0 <= self.encoder_depth <= 100 or self.decoder_depth > 100 or not 0 <= self.extra_levels <= 5:
            raise ArgumentError("encoder_depth and decoder_depth must be at most 100, extra_levels at most 5.")
        if self.width % self.heads or self.width % 4 or self.width % self.norm_groups:
            raise ArgumentError(
                f"width must divide by 4, by heads={self.heads} and by norm_groups={self.norm_groups}. "
                f"Received: {self.width}."
            )
        if self.proposes and not self.refines:
            raise ArgumentError("proposes=True needs refines=True. Received: refines=False.")
        self.check_levels(least=1)

    @property
    def all_levels(self) -> tuple[int, ...]:
        """Levels of all maps that are sampled."""
        return tuple(range(self.levels[0], self.levels[-1] + self.extra_levels + 1))
