"""DETRSpec: everything there is to say about one DETR, as data. No Keras here."""

from __future__ import annotations

import dataclasses

from resfit.errors import ArgumentError
from resfit.networks.detection.query_spec import QuerySpec
from resfit.networks.plan import stage_names
from resfit.networks.spec import ArchitectureSpec

_COUNTS = ("width", "hidden", "heads", "decoder_depth", "queries", "classes", "max_detections")


@dataclasses.dataclass(frozen=True)
class DETRSpec(QuerySpec):
    """One DETR: a residual network, a transformer on its last map, and queries that are learned.

    Carion et al. 2020, arXiv:2005.12872; DC5 is a backbone with an output stride of 16. Of a query the best class
    counts alone, and there is no suppression.

    Attributes:
        backbone: The residual network.
        width: Channels of the transformer. Divides by 4, as positions are sines and cosines of two axes.
        encoder_depth: Layers of the encoder.
        decoder_depth: Layers of the decoder.
        hidden: Hidden units of their feed-forward parts.
        heads: Heads of their attention.
        queries: Boxes of an image.
        temperature: Of the sines of positions.
        norm_epsilon: Added to the variance in layer norms.
        activation: Keras name of the activation of the feed-forward parts.
        classes: Classes that are reported.
        unreported: Class outputs that stand for nothing and are not reported, ascending. The last output, for no
            object, is none of either.
        score_threshold: Detections must have more than this score.
        max_detections: Detections that are kept, for each image.
        input_size: Height and width in pixels for which costs are stated.
    """

    KIND = "detr"

    backbone: ArchitectureSpec
    width: int = 256
    encoder_depth: int = 6
    decoder_depth: int = 6
    hidden: int = 2048
    heads: int = 8
    queries: int = 100
    temperature: float = 10000.0
    norm_epsilon: float = 1e-5
    activation: str = "relu"
    classes: int = 91
    unreported: tuple[int, ...] = ()
    score_threshold: float = 0.0
    max_detections: int = 100
    input_size: tuple[int, int] = (800, 1066)

    def __post_init__(self) -> None:
        """Checks that the fields fit together.

        Raises:
            ArgumentError: A field is outside its choices, or two fields contradict each other.
        """
        self.check_ranges(_COUNTS)
        if not 0 <= self.encoder_depth <= 100 or self.decoder_depth > 100:
            raise ArgumentError("encoder_depth and decoder_depth must be at most 100.")
        if self.width % self.heads or self.width % 4:
            raise ArgumentError(f"width must divide by 4 and by heads={self.heads}. Received: {self.width}.")
        outputs = self.classes + len(self.unreported)
        if list(self.unreported) != sorted(set(self.unreported)) or not all(0 <= n < outputs for n in self.unreported):
            raise ArgumentError(
                f"unreported must be ascending outputs among the {outputs} of classes. Received: {self.unreported!r}."
            )

    @property
    def class_outputs(self) -> int:
        """Outputs of the class layer, the one for no object included."""
        return self.classes + len(self.unreported) + 1

    @property
    def reported(self) -> tuple[int, ...]:
        """Class outputs that are reported, ascending."""
        hidden = set(self.unreported)
        return tuple(number for number in range(self.class_outputs - 1) if number not in hidden)

    @property
    def taps(self) -> dict[int, str]:
        """The stage of the backbone that the transformer takes, by the logarithm of its stride."""
        return {self.backbone.output_stride.bit_length() - 1: stage_names(self.backbone)[-1]}
