"""ArchitectureSpec: everything there is to say about one residual network, as data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from resfit.errors import ArgumentError

_CHOICES: dict[str, tuple[Any, ...]] = {
    "block": ("basic", "bottleneck"),
    "stem_pool": ("max", "none", "conv", "avg", "blur"),
    "stem_pool_padding": ("zero", "lowest", "same", "valid"),
    "shortcut_input": ("preactivated", "raw"),
    "stride_in_stage": ("first", "last"),
    "stride_in_block": ("first", "spatial"),
    "shortcut": ("projection", "avgpool", "pad"),
    "norm": ("batch", "group", "evo", "none"),
    "conv_bias": ("none", "all", "unnormalized", "shortcut"),
    "padding": ("symmetric", "same"),
    "stem_padding": (None, "symmetric", "same"),
    "shortcut_pool": ("strided", "always"),
    "attention": (None, "se", "eca"),
    "antialias": (None, "blur", "avg"),
    "output_stride": (8, 16, 32),
}

# More than any network that was ever trained has; untrusted files may state anything.
_MOST_BLOCKS, _MOST_CHANNELS = 10_000, 10_000_000

# Fields that came later: at their defaults they are left out of the dict form, which is that of before.
_LATER: dict[str, Any] = {
    "stage_blocks": None,
    "block_widths": None,
    "stem_pool_size": None,
    "stem_activation": False,
    "first_preactivation": True,
    "shortcut_norm": True,
    "shortcut_input": "preactivated",
    "activation_slope": None,
}


@dataclasses.dataclass(frozen=True)
class StemConv:
    """One convolution of the stem.

    Attributes:
        width: Output channels.
        kernel: Side of the kernel in pixels.
        stride: Stride in pixels.
    """

    width: int
    kernel: int
    stride: int


@dataclasses.dataclass(frozen=True)
class ArchitectureSpec:
    """One residual network, whatever library it was first written in.

    All widths are written out stage by stage, so that a spec can be read off the shapes of a checkpoint.

    Attributes:
        depths: Number of blocks in each stage.
        widths: Output channels of each stage.
        inner_widths: Channels of the 3x3 convolutions inside the blocks of each stage.
        block: ``"basic"`` (two 3x3) or ``"bottleneck"`` (1x1, 3x3, 1x1).
        preactivation: Norm and activation come before the convolutions (v2), and once more at the end.
        reduce_widths: Channels of a block's first convolution where they are not ``inner_widths`` (SENet-154).
        stage_blocks: The kind of block of each stage, where they are not all ``block``, which is then the first's.
        block_widths: For each block of the network, the channels of its first and of its 3x3 convolution, where the
            blocks of a stage differ (pruned networks). Those of a stage's first block are ``reduce_widths`` and
            ``inner_widths``.
        groups: Groups of the 3x3 convolution in a bottleneck (cardinality).
        stem: The convolutions of the stem, in order.
        stem_pool: What follows them: max pooling (3x3, stride 2), nothing, a stride-2 3x3 convolution with norm
            (RS), average pooling (2x2), or max pooling of stride 1 with blur pooling.
        stem_pool_padding: Padding of the max pooling: zeros, the lowest value, TensorFlow's SAME, or none ("valid").
        stem_pool_size: Side of the pooling's window in pixels; its stride is 2. None for 3, of an average 2.
        stem_activation: With pre-activation: norm and activation follow the last convolution of the stem, too.
        first_preactivation: With pre-activation: the first block begins with norm and activation, as all others do.
        stage_strides: Stride of each stage.
        stride_in_stage: Block of the stage that carries the stride.
        stride_in_block: Convolution of a bottleneck that carries it: the first 1x1 (v1) or the 3x3 (v1.5).
        shortcut: Of a block that changes shape: a strided 1x1 projection; average pooling, then a 1x1 projection
            (D); or subsampling and zero channels without parameters (type A).
        shortcut_kernel: Side of the projection's kernel.
        shortcut_pool: Where the average pooling of ``"avgpool"`` stands: before the projections that stride, or before
            all of them (Model Garden's ResNet-RS).
        shortcut_norm: Without pre-activation: a norm follows the projections of shortcuts.
        shortcut_input: With pre-activation: whether projections read what norm and activation made of the block's
            input, or that input itself.
        project_first: The first block of each stage has a projection even where it changes no shape.
        norm: Normalisation after (v1) or before (v2) the convolutions. ``"none"`` where batch norm was folded away.
            ``"evo"`` is EvoNorm-S0, norm and activation in one, with which ``activation`` is ``"linear"`` (v2 only).
        folded: With pre-activation: the norms behind convolutions were folded into these, which have a bias in their
            place; those before the blocks are there. (Without pre-activation this is ``norm="none"``.)
        norm_groups: Groups of a group norm or EvoNorm.
        norm_epsilon: Added to the variance.
        norm_momentum: Momentum of the moving statistics, Keras' meaning (share of the old value kept).
        activation: Keras name of the activation.
        activation_slope: Of ``"leaky_relu"`` below zero. None for Keras' 0.2.
        conv_bias: Which convolutions have a bias: none, all, those that no norm follows, or those of shortcuts alone.
        padding: ``"symmetric"`` pads both sides alike, ``"same"`` as TensorFlow does.
        stem_padding: That of the stem's convolutions, where it is another (Model Garden's first ResNet).
        weight_standardization: Convolution kernels are standardised on the fly (BiT).
        weight_standardization_epsilon: Added to the variance of the kernel.
        attention: Channel attention at the end of a block's residual branch.
        attention_sizes: For each stage, the width of squeeze-excite's reduction or ECA's kernel size.
        antialias: Blur or average pooling that carries the stride in place of the 3x3 convolution.
        zero_init_last: The last gamma of each block starts at zero, so that a new network starts as identities.
        drop_path_rate: Stochastic depth at the last block; earlier blocks get a linear share of it.
        output_stride: Stride of the last feature map; under 32, dilation takes the place of strides.
        in_channels: Input channels.
        classes: Outputs of the classifier.
        input_size: Height and width in pixels that the network is meant for.
    """

    depths: tuple[int, ...]
    widths: tuple[int, ...]
    inner_widths: tuple[int, ...]
    block: Literal["basic", "bottleneck"] = "bottleneck"
    preactivation: bool = False
    reduce_widths: tuple[int, ...] | None = None
    stage_blocks: tuple[Literal["basic", "bottleneck"], ...] | None = None
    block_widths: tuple[tuple[int, int], ...] | None = None
    groups: int = 1
    stem: tuple[StemConv, ...] = (StemConv(64, 7, 2),)
    stem_pool: Literal["max", "none", "conv", "avg", "blur"] = "max"
    stem_pool_padding: Literal["zero", "lowest", "same", "valid"] = "lowest"
    stage_strides: tuple[int, ...] = (1, 2, 2, 2)
    stride_in_stage: Literal["first", "last"] = "first"
    stride_in_block: Literal["first", "spatial"] = "spatial"
    shortcut: Literal["projection", "avgpool", "pad"] = "projection"
    shortcut_kernel: int = 1
    shortcut_pool: Literal["strided", "always"] = "strided"
    project_first: bool = False
    norm: Literal["batch", "group", "evo", "none"] = "batch"
    folded: bool = False
    norm_groups: int = 32
    norm_epsilon: float = 1e-5
    norm_momentum: float = 0.9
    activation: str = "relu"
    conv_bias: Literal["none", "all", "unnormalized", "shortcut"] = "none"
    padding: Literal["symmetric", "same"] = "symmetric"
    stem_padding: Literal["symmetric", "same"] | None = None
    weight_standardization: bool = False
    weight_standardization_epsilon: float = 1e-8
    attention: Literal["se", "eca"] | None = None
    attention_sizes: tuple[int, ...] | None = None
    antialias: Literal["blur", "avg"] | None = None
    zero_init_last: bool = False
    drop_path_rate: float = 0.0
    output_stride: int = 32
    in_channels: int = 3
    classes: int = 1000
    input_size: tuple[int, int] = (224, 224)
    stem_pool_size: int | None = None
    stem_activation: bool = False
    first_preactivation: bool = True
    shortcut_norm: bool = True
    shortcut_input: Literal["preactivated", "raw"] = "preactivated"
    activation_slope: float | None = None

    def __post_init__(self) -> None:
        """Checks that the fields fit together.

        Raises:
            ArgumentError: A field is outside its choices, or two fields contradict each other.
        """
        for field, choices in _CHOICES.items():
            if getattr(self, field) not in choices:
                raise ArgumentError(f"{field} must be one of {choices}. Received: {getattr(self, field)!r}.")
        stages = len(self.depths)
        if stages < 1:
            raise ArgumentError("depths must name at least one stage. Received: ().")
        for field in ("widths", "inner_widths", "reduce_widths", "stage_blocks", "stage_strides", "attention_sizes"):
            values = getattr(self, field)
            if values is not None and len(values) != stages:
                raise ArgumentError(
                    f"{field} must have one value for each of the {stages} stages. Received: {values!r}."
                )
        counts = (*self.depths, *self.widths, *self.inner_widths, self.groups, self.in_channels, self.classes)
        if min(counts) < 1:
            raise ArgumentError(f"depths, widths, groups, channels and classes must be at least 1: {self!r}.")
        if sum(self.depths) > _MOST_BLOCKS or max(counts) > _MOST_CHANNELS:
            raise ArgumentError(
                f"a network must have at most {_MOST_BLOCKS} blocks and {_MOST_CHANNELS} channels. "
                f"Received: {sum(self.depths)} blocks, up to {max(*self.widths, *self.inner_widths)} channels."
            )
        if not self.stem:
            raise ArgumentError("stem must have at least one convolution. Received: ().")
        if (self.attention is None) != (self.attention_sizes is None):
            raise ArgumentError(
                f"attention and attention_sizes go together. Received: {self.attention!r} and {self.attention_sizes!r}."
            )
        for width in self.inner_widths:
            if width % self.groups:
                raise ArgumentError(f"inner_widths must divide by groups={self.groups}. Received: {width}.")
        if "bottleneck" not in self.kinds and self.groups != 1:
            raise ArgumentError(f"groups need block='bottleneck'. Received: groups={self.groups}.")
        self._check_blocks()
        if self.norm == "evo" and not (self.preactivation and self.activation == "linear"):
            raise ArgumentError(
                "norm='evo' is norm and activation in one: it needs preactivation=True and activation='linear'. "
                f"Received: preactivation={self.preactivation!r}, activation={self.activation!r}."
            )
        if self.folded and not (self.preactivation and self.norm == "batch"):
            raise ArgumentError(
                "folded needs batch norm and pre-activation; elsewhere nothing is left of the norms, which is "
                f"norm='none'. Received: norm={self.norm!r}, preactivation={self.preactivation!r}."
            )
        self._check_later()
        if not 0 <= self.drop_path_rate < 1:
            raise ArgumentError(f"drop_path_rate must lie in [0, 1). Received: {self.drop_path_rate!r}.")

    def _check_later(self) -> None:
        """Checks the fields that hold for some kinds of networks only."""
        if not self.preactivation and (
            self.stem_activation or not self.first_preactivation or self.shortcut_input == "raw"
        ):
            raise ArgumentError(
                "stem_activation, first_preactivation and shortcut_input belong to networks with preactivation=True. "
                f"Received: {self.stem_activation!r}, {self.first_preactivation!r} and {self.shortcut_input!r}."
            )
        if not self.shortcut_norm and (self.preactivation or self.norm == "none"):
            raise ArgumentError(
                "shortcut_norm=False needs norms and no pre-activation. Received: "
                f"norm={self.norm!r}, preactivation={self.preactivation!r}."
            )
        if self.activation_slope is not None and self.activation != "leaky_relu":
            raise ArgumentError(
                f"activation_slope belongs to activation='leaky_relu'. Received: {self.activation_slope!r} and "
                f"{self.activation!r}."
            )
        if self.stem_pool_size is not None and not 2 <= self.stem_pool_size <= 7:
            raise ArgumentError(f"stem_pool_size must lie in 2..7. Received: {self.stem_pool_size!r}.")
        if self.stem_pool_size is not None and self.stem_pool not in ("max", "avg"):
            raise ArgumentError(
                f"stem_pool_size needs stem_pool='max' or 'avg'. Received: stem_pool={self.stem_pool!r}."
            )

    def _check_blocks(self) -> None:
        """Checks what differs from stage to stage or from block to block; what does not must not be written so."""
        kinds, pairs = self.stage_blocks, self.block_widths
        choices = _CHOICES["block"]
        if kinds is not None and not (len({*kinds}) > 1 and {*kinds} <= {*choices} and kinds[0] == self.block):
            raise ArgumentError(
                f"stage_blocks must be of {choices}, not all alike, and begin with block={self.block!r}. "
                f"Received: {kinds!r}."
            )
        if pairs is None:
            return
        if len(pairs) != sum(self.depths) or any(len(pair) != 2 or min(pair) < 1 for pair in pairs):
            raise ArgumentError(
                f"block_widths must have two widths of at least 1 for each of the {sum(self.depths)} blocks. "
                f"Received: {pairs!r}."
            )
        starts = [sum(self.depths[:stage]) for stage in range(len(self.depths))]
        of_stages = tuple(zip(self.reduce_widths or self.inner_widths, self.inner_widths, strict=True))
        if tuple(pairs[start] for start in starts) != of_stages:
            raise ArgumentError(
                f"block_widths must have reduce_widths and inner_widths, {of_stages!r}, at the first blocks of stages. "
                f"Received: {pairs!r}."
            )
        uniform = (pair for pair, depth in zip(of_stages, self.depths, strict=True) for _ in range(depth))
        if pairs == tuple(uniform) or any(inner % self.groups for _, inner in pairs):
            raise ArgumentError(
                f"block_widths must differ within a stage, and divide by groups={self.groups}. Received: {pairs!r}."
            )

    @property
    def kinds(self) -> tuple[Literal["basic", "bottleneck"], ...]:
        """The kind of block of each stage."""
        return self.stage_blocks or (self.block,) * len(self.depths)

    @property
    def feature_width(self) -> int:
        """Channels of the last feature map, which is also the length of the pooled feature vector."""
        return self.widths[-1]

    def has_bias(self, *, normalized: bool, is_shortcut: bool = False) -> bool:
        """Whether a convolution has a bias.

        Args:
            normalized: Whether a norm follows it, or did before it was folded in.
            is_shortcut: Whether it is the projection of a shortcut.
        """
        if self.conv_bias == "shortcut":
            return is_shortcut
        return self.conv_bias == "all" or (self.folded if normalized else self.conv_bias == "unnormalized")

    def normalizes_stem(self, last: bool) -> bool:
        """Whether norm and activation follow a convolution of the stem.

        Args:
            last: Whether it is the last one.
        """
        return not (self.preactivation and last) or self.stem_activation

    @property
    def pool_size(self) -> int:
        """Side of the window of the stem's pooling."""
        return self.stem_pool_size or (2 if self.stem_pool == "avg" else 3)

    def replace(self, **changes: Any) -> ArchitectureSpec:
        """Returns a copy with some fields changed, checked again."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON-ready values."""
        fields = dataclasses.asdict(self)
        for field, usual in _LATER.items():
            if fields[field] == usual:
                del fields[field]
        return {key: _listed(value) for key, value in fields.items()}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> ArchitectureSpec:
        """Restores what :meth:`to_dict` returned.

        Raises:
            ArgumentError: A field is unknown or the fields contradict each other.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(fields) - known)
        if unknown:
            raise ArgumentError(f"architecture has unknown fields: {', '.join(unknown)}.")
        values: dict[str, Any] = {key: _tupled(value) for key, value in fields.items()}
        values["stem"] = tuple(StemConv(**conv) for conv in values["stem"])
        return cls(**values)


def _listed(value: Any) -> Any:
    return [_listed(item) for item in value] if isinstance(value, tuple) else value


def _tupled(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    return tuple(tuple(item) if isinstance(item, list) else item for item in value)
