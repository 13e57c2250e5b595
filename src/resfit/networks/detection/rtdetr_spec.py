"""RTDETRSpec: everything there is to say about one RT-DETR, as data. No Keras here."""

from __future__ import annotations

import dataclasses
from typing import Literal

from resfit.errors import ArgumentError
from resfit.networks.detection.query_spec import LevelledQuerySpec
from resfit.networks.spec import ArchitectureSpec

_COUNTS = (
    *("encoder_width", "encoder_hidden", "encoder_heads", "fusion_width", "fusion_blocks", "decoder_width"),
    *("decoder_depth", "decoder_hidden", "decoder_heads", "points", "queries", "classes", "max_detections"),
)


@dataclasses.dataclass(frozen=True)
class RTDETRSpec(LevelledQuerySpec):
    """One RT-DETR: a residual network, a hybrid encoder, and a decoder that turns queries into boxes.

    By its fields this is RT-DETR (Zhao et al. 2023, arXiv:2304.08069) or RT-DETRv2 (Lv et al. 2024, arXiv:2407.17140).
    Both compute the same with bilinear sampling. There is no suppression: of the pairs of a query and a class the best
    are the detections.

    Attributes:
        backbone: The residual network.
        levels: Levels of the maps that the encoder takes: level ``n`` has a stride of ``2 ** n`` pixels.
        encoder_width: Channels of the encoder. Divides by 4, as positions are sines and cosines of two axes.
        encoder_depth: Attention layers on the coarsest map.
        encoder_hidden: Hidden units of their feed-forward part.
        encoder_heads: Heads of their attention.
        fusion_width: Channels inside the blocks that fuse two maps.
        fusion_blocks: RepVGG blocks in each of these.
        decoder_width: Channels of the decoder.
        decoder_depth: Its layers.
        decoder_hidden: Hidden units of their feed-forward part.
        decoder_heads: Heads of their attention.
        points: Places that a head samples from each level.
        sampling: Whether a place between pixels is interpolated or the nearest pixel is taken (RT-DETRv2's ``dsp``).
        offset_scale: What offsets are multiplied by, in sides of the box.
        queries: Boxes of an image.
        temperature: Of the encoder's sines of positions.
        norm_epsilon: Added to the variance in the norms of encoder and decoder.
        norm_momentum: Momentum of the moving statistics of batch norms there, Keras' meaning.
        activation: Keras name of the activation behind the encoder's convolutions.
        encoder_activation: In the feed-forward part of its attention layers.
        decoder_activation: In that of the decoder's.
        version: 1 or 2: which of the two. They compute the same; files of the second hold a constant more.
        classes: Class outputs.
        score_threshold: Detections must have more than this score.
        max_detections: Detections that are kept, for each image.
        input_size: Height and width in pixels for which costs are stated.
    """

    KIND = "rtdetr"

    backbone: ArchitectureSpec
    levels: tuple[int, ...] = (3, 4, 5)
    encoder_width: int = 256
    encoder_depth: int = 1
    encoder_hidden: int = 1024
    encoder_heads: int = 8
    fusion_width: int = 256
    fusion_blocks: int = 3
    decoder_width: int = 256
    decoder_depth: int = 6
    decoder_hidden: int = 1024
    decoder_heads: int = 8
    points: int = 4
    sampling: Literal["bilinear", "discrete"] = "bilinear"
    offset_scale: float = 0.5
    queries: int = 300
    temperature: float = 10000.0
    norm_epsilon: float = 1e-5
    norm_momentum: float = 0.9
    activation: str = "silu"
    encoder_activation: str = "gelu"
    decoder_activation: str = "relu"
    version: Literal[1, 2] = 2
    classes: int = 80
    score_threshold: float = 0.0
    max_detections: int = 300
    input_size: tuple[int, int] = (640, 640)

    def __post_init__(self) -> None:
        """Checks that the fields fit together.

        Raises:
            ArgumentError: A field is outside its choices, or two fields contradict each other.
        """
        if self.sampling not in ("bilinear", "discrete"):
            raise ArgumentError(f"sampling must be 'bilinear' or 'discrete'. Received: {self.sampling!r}.")
        if self.version not in (1, 2):
            raise ArgumentError(f"version must be 1 or 2. Received: {self.version!r}.")
        self.check_ranges(_COUNTS)
        if not 0 <= self.encoder_depth <= 100 or self.decoder_depth > 100 or self.fusion_blocks > 100:
            raise ArgumentError("encoder_depth, decoder_depth and fusion_blocks must be at most 100.")
        for part in ("encoder", "decoder"):
            width, heads = getattr(self, f"{part}_width"), getattr(self, f"{part}_heads")
            if width % heads:
                raise ArgumentError(f"{part}_width must divide by {part}_heads={heads}. Received: {width}.")
        if self.encoder_width % 4:
            raise ArgumentError(f"encoder_width must divide by 4. Received: {self.encoder_width}.")
        self.check_levels(least=2)
