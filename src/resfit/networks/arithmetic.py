"""Parameters, MACs, receptive field and shapes of a network from its spec alone. Pure Python, no Keras."""

from __future__ import annotations

import dataclasses
import math

from resfit.networks.plan import NORM_SUFFIXES, BlockPlan, stage_names
from resfit.networks.plan import blocks as planned_blocks
from resfit.networks.spec import ArchitectureSpec


@dataclasses.dataclass(frozen=True)
class LayerCount:
    """One layer that has weights or moves the receptive field.

    Attributes:
        name: Its name in the Keras model.
        stage: ``"stage1"`` (the stem) to ``"stage5"``, or ``"head"``.
        kind: ``"conv"``, ``"dense"``, ``"norm"`` or ``"pool"``.
        shape: Height, width and channels that leave it (``(classes,)`` of the classifier).
        parameters: All weights, moving statistics of a batch norm included.
        trainable: Weights that learn.
        macs: Multiply-accumulates of convolutions and the classifier, for one image.
        norm_operations: Operations of normalising values or kernels, for one image.
        kernel: Side of a convolution's kernel.
        stride: Of a convolution.
        dilation: Of a convolution.
        groups: Of a convolution.
    """

    name: str
    stage: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    trainable: int
    macs: int
    norm_operations: int = 0
    kernel: int = 1
    stride: int = 1
    dilation: int = 1
    groups: int = 1


@dataclasses.dataclass(frozen=True)
class StageCount:
    """One stage summed up.

    Attributes:
        name: ``"stage1"`` (the stem) to ``"stage5"``, or ``"head"``.
        blocks: Number of residual blocks.
        shape: Height, width and channels that leave it (``(classes,)`` of the head).
        stride: Of its output against the image; 0 for the head.
        parameters: All weights.
        macs: For one image.
    """

    name: str
    blocks: int
    shape: tuple[int, ...]
    stride: int
    parameters: int
    macs: int


@dataclasses.dataclass(frozen=True)
class Arithmetic:
    """What a network costs.

    Attributes:
        layers: Every counted layer, in the order of the forward pass.
        stages: The same by stage.
        taps: For each tap, the stride of its feature map.
        receptive_field: Side of the square of pixels that one value of the last feature map sees.
    """

    layers: tuple[LayerCount, ...]
    stages: tuple[StageCount, ...]
    taps: dict[str, int]
    receptive_field: int

    @property
    def parameters(self) -> int:
        """All weights, as ``model.count_params()`` counts them."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def trainable_parameters(self) -> int:
        """Weights that learn, as torch-side libraries count parameters (no moving statistics)."""
        return sum(layer.trainable for layer in self.layers)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of convolutions and the classifier for one image."""
        return sum(layer.macs for layer in self.layers)

    @property
    def norm_operations(self) -> int:
        """Operations of normalising, by the convention of timm's published GMACs, which include them.

        Two for each value of a batch norm in inference, five of a group norm, none of EvoNorm, and four for each weight
        of a standardised kernel.
        """
        return sum(layer.norm_operations for layer in self.layers)


def count(
    spec: ArchitectureSpec,
    *,
    input_size: tuple[int, int] | None = None,
    include_top: bool = True,
    classes: int | None = None,
) -> Arithmetic:
    """Counts a network.

    Args:
        spec: The network.
        input_size: Height and width of the image in pixels. Default: the spec's.
        include_top: Whether to count the classifier.
        classes: Outputs of the classifier. Default: the spec's.

    Example:
        >>> from resfit.networks import catalog
        >>> count(catalog.get("resnet50").spec).parameters
        25636712
    """
    counter = _Counter(spec, input_size or spec.input_size)
    counter.stem()
    for plan in planned_blocks(spec):
        counter.block(plan)
    counter.end(include_top, classes or spec.classes)
    return counter.result()


# Of each kind of norm: weights of a channel that learn, those that do not, and operations of a value.
_NORMS = {"batch": (2, 2, 2), "group": (2, 0, 5), "evo": (3, 0, 0)}


class _Counter:
    """Walks the network as the builder does, with a shape in place of a tensor."""

    def __init__(self, spec: ArchitectureSpec, size: tuple[int, int]):
        self.spec = spec
        self.height, self.width = size
        self.channels = spec.in_channels
        self.layers: list[LayerCount] = []
        self.stage = "stage1"
        self.stride = 1
        self.field = 1
        self.taps: dict[str, int] = {}
        self.shapes: dict[str, tuple[tuple[int, ...], int]] = {}
        self.names = stage_names(spec)

    def stem(self) -> None:
        spec = self.spec
        last = len(spec.stem)
        for number, conv in enumerate(spec.stem, start=1):
            name = "conv1" if last == 1 else f"conv1_{number}"
            normalized = spec.normalizes_stem(number == last)
            self._conv(name, conv.width, conv.kernel, stride=conv.stride, normalized=normalized)
            if normalized:
                self._norm(name)
        self.taps[self.stage] = self.stride
        if spec.stem_pool == "conv":
            self._conv("pool1", self.channels, 3, stride=2)
            self._norm("pool1")
        elif spec.stem_pool == "avg":
            if spec.stem_pool_size is None or spec.stem_pool_padding != "same":
                self._shrink(spec.pool_size)
            self._move(spec.pool_size, 2)
        elif spec.stem_pool != "none":
            if spec.stem_pool_padding == "valid":
                self._shrink(spec.pool_size)
            self._move(spec.pool_size, 2)
            if spec.stem_pool == "blur":
                self.field += 2 * (self.stride // 2)
        self._close_stage()

    def block(self, plan: BlockPlan) -> None:
        spec = self.spec
        self.stage = self.names[plan.stage + 1]
        if plan.tapped:
            self.taps[self.stage] = self.stride
        if spec.preactivation and (spec.first_preactivation or not plan.is_first):
            self._norm(f"{plan.name}_preact", behind_convolution=False)
        entering = (self.height, self.width, self.channels, self.stride, self.field)
        if plan.changes_shape and spec.shortcut != "pad":
            self._shortcut(plan)
            self.height, self.width, self.channels, self.stride, self.field = entering
        for number in range(1, plan.convolutions + 1):
            self._branch(plan, number)
        self._attention(plan)
        if not plan.tapped:
            self.taps[self.stage] = self.stride
        self._close_stage()

    def _shortcut(self, plan: BlockPlan) -> None:
        spec, stride = self.spec, plan.stride
        if spec.shortcut == "avgpool" and (plan.reduces or spec.shortcut_pool == "always"):
            self._move(2, stride)
            stride = 1
        kernel = spec.shortcut_kernel if plan.reduces else 1
        normalized = spec.shortcut_norm and not spec.preactivation
        self._conv(f"{plan.name}_0", plan.width, kernel, stride=stride, normalized=normalized)
        if normalized:
            self._norm(f"{plan.name}_0")

    def _branch(self, plan: BlockPlan, number: int) -> None:
        spec, last = self.spec, plan.convolutions
        name = f"{plan.name}_{number}"
        normalized = number < last or not spec.preactivation
        pooled = plan.stride if spec.antialias else 1
        spatial = plan.stride // pooled
        if plan.kind == "basic":
            width = plan.inner_width if number == 1 else plan.width
            dilation = plan.first_dilation if number == 1 else plan.dilation
            stride = spatial if number == 1 else 1
            self._conv(name, width, 3, stride=stride, dilation=dilation, normalized=normalized)
        elif number == 1:
            early = spec.stride_in_block == "first"
            self._conv(name, plan.reduce_width, 1, stride=plan.stride if early else 1)
        elif number == 2:
            stride = 1 if spec.stride_in_block == "first" else spatial
            self._conv(name, plan.inner_width, 3, stride=stride, dilation=plan.first_dilation, groups=spec.groups)
        else:
            self._conv(name, plan.width, 1, normalized=normalized)
        if normalized:
            self._norm(name)
        if number == last - 1 and spec.antialias and plan.reduces:
            self._move(3 if spec.antialias == "blur" else 2, plan.stride)

    def _attention(self, plan: BlockPlan) -> None:
        spec = self.spec
        if spec.attention is None or spec.attention_sizes is None:
            return
        size, width, name = spec.attention_sizes[plan.stage], plan.width, f"{plan.name}_{spec.attention}"
        if spec.attention == "eca":
            self._add(f"{name}_conv", "conv", (width, 1), size, size, width * size)
            return
        macs = width * size
        self._add(f"{name}_reduce_conv", "conv", (1, 1, size), macs + size, macs + size, macs)
        self._add(f"{name}_expand_conv", "conv", (1, 1, width), macs + width, macs + width, macs)

    def end(self, include_top: bool, classes: int) -> None:
        self.taps[self.names[-1]] = self.stride if self.spec.preactivation else self.taps[self.names[-1]]
        self.stage = "head"
        if self.spec.preactivation:
            self._norm("post", behind_convolution=False)
        if include_top:
            weights = self.channels * classes
            parameters = weights + classes
            self._add("predictions", "dense", (classes,), parameters, parameters, weights)

    def result(self) -> Arithmetic:
        head = [layer for layer in self.layers if layer.stage == "head"]
        if head:
            self.shapes["head"] = (head[-1].shape, 0)
        depths = dict(zip(self.names[1:], self.spec.depths, strict=True))
        stages = []
        for name, (shape, stride) in self.shapes.items():
            own = [layer for layer in self.layers if layer.stage == name]
            parameters, macs = sum(item.parameters for item in own), sum(item.macs for item in own)
            stages.append(StageCount(name, depths.get(name, 0), shape, stride, parameters, macs))
        return Arithmetic(tuple(self.layers), tuple(stages), self.taps, self.field)

    def _conv(
        self,
        name: str,
        width: int,
        kernel: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        normalized: bool = True,
    ) -> None:
        spec = self.spec
        self._move((kernel - 1) * dilation + 1, stride)
        weights = kernel * kernel * (self.channels // groups) * width
        biased = spec.has_bias(normalized=normalized, is_shortcut=name.endswith("_0"))
        self.channels = width
        shape = (self.height, self.width, width)
        parameters = weights + width * biased
        macs, standardizing = weights * self.height * self.width, 4 * weights * spec.weight_standardization
        form = {"kernel": kernel, "stride": stride, "dilation": dilation, "groups": groups}
        self._add(f"{name}_conv", "conv", shape, parameters, parameters, macs, standardizing, **form)

    def _norm(self, name: str, *, behind_convolution: bool = True) -> None:
        if self.spec.norm == "none" or (self.spec.folded and behind_convolution):
            return
        learned, statistics, operations = _NORMS[self.spec.norm]
        shape = (self.height, self.width, self.channels)
        self._add(
            f"{name}_{NORM_SUFFIXES[self.spec.norm]}",
            "norm",
            shape,
            (learned + statistics) * self.channels,
            learned * self.channels,
            0,
            operations * math.prod(shape),
        )

    def _add(
        self,
        name: str,
        kind: str,
        shape: tuple[int, ...],
        parameters: int,
        trainable: int,
        macs: int,
        norm_operations: int = 0,
        **form: int,
    ) -> None:
        counts = (parameters, trainable, macs, norm_operations)
        self.layers.append(LayerCount(name, self.stage, kind, shape, *counts, **form))

    def _shrink(self, extent: int) -> None:
        """Takes off what a pooling of stride 2 that does not pad leaves out."""
        self.height, self.width = (max((side - extent) // 2 + 1, 0) * 2 for side in (self.height, self.width))

    def _move(self, extent: int, stride: int) -> None:
        self.field += (extent - 1) * self.stride
        self.stride *= stride
        self.height, self.width = -(-self.height // stride), -(-self.width // stride)

    def _close_stage(self) -> None:
        self.shapes[self.stage] = ((self.height, self.width, self.channels), self.stride)
