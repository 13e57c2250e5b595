"""The blocks of a network, one by one: where strides, dilations and projections fall.

Both the Keras builder and the arithmetic walk this plan, so that the rules stand in one place.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from resfit.errors import ArgumentError
from resfit.networks.spec import ArchitectureSpec

#: What the names of norms end in, by their kind.
NORM_SUFFIXES = {"batch": "bn", "group": "gn", "evo": "evo"}


@dataclasses.dataclass(frozen=True)
class BlockPlan:
    """One residual block.

    Attributes:
        name: Prefix of its layers' names, as keras.applications gives them (``"conv4_block6"``).
        stage: Index of its stage, from 0.
        kind: ``"basic"`` or ``"bottleneck"``.
        stride: 1 or the stage's stride.
        reduces: Whether the stage's stride falls on this block, be it carried out or replaced by dilation.
        dilation: Of its spatial convolutions.
        first_dilation: Of its first spatial convolution, which comes before a stride that dilation replaced.
        in_width: Channels that enter.
        width: Channels that leave.
        inner_width: Channels of the spatial convolution.
        reduce_width: Channels of the first convolution.
        changes_shape: Whether the shortcut needs a projection (or, of type A, padding).
        subsamples: Whether the shortcut is a parameter-free subsampling (keras.applications' v2).
        drop_rate: Of stochastic depth.
        tapped: Whether the tensor that enters this block is the tap of its stage, since the block reduces it.
    """

    name: str
    stage: int
    kind: Literal["basic", "bottleneck"]
    stride: int
    reduces: bool
    dilation: int
    first_dilation: int
    in_width: int
    width: int
    inner_width: int
    reduce_width: int
    changes_shape: bool
    subsamples: bool
    drop_rate: float
    tapped: bool

    @property
    def is_first(self) -> bool:
        """Whether it is the network's first."""
        return self.name == "conv2_block1"

    @property
    def convolutions(self) -> int:
        """Convolutions on its residual branch."""
        return 2 if self.kind == "basic" else 3


def stage_names(spec: ArchitectureSpec) -> tuple[str, ...]:
    """Names of the taps: ``"stage1"`` is the stem before its pooling, ``"stage2"`` the first stage of blocks."""
    return tuple(f"stage{number}" for number in range(1, len(spec.depths) + 2))


def stem_stride(spec: ArchitectureSpec) -> int:
    """Stride of the stem's convolutions, without the pooling."""
    return math.prod(conv.stride for conv in spec.stem)


def blocks(spec: ArchitectureSpec) -> tuple[BlockPlan, ...]:
    """Returns every block of the network in order.

    Args:
        spec: The network.

    Raises:
        ArgumentError: The output stride cannot be reached, since the stem alone reduces further.
    """
    reduction = stem_stride(spec) * (1 if spec.stem_pool == "none" else 2)
    limit = spec.output_stride
    if reduction > limit:
        raise ArgumentError(f"output_stride must be at least the stem's {reduction}. Received: {limit}.")
    total = sum(spec.depths)
    width = spec.stem[-1].width
    dilation = 1
    planned: list[BlockPlan] = []
    for stage, (depth, kind) in enumerate(zip(spec.depths, spec.kinds, strict=True)):
        widths = ((spec.reduce_widths or spec.inner_widths)[stage], spec.inner_widths[stage])
        carrier = 0 if spec.stride_in_stage == "first" else depth - 1
        for index in range(depth):
            stride, before = 1, dilation
            reduces = index == carrier and spec.stage_strides[stage] > 1
            if index == carrier:
                stride = spec.stage_strides[stage]
                if stride > 1 and reduction >= limit:
                    dilation, stride = dilation * stride, 1
                reduction *= stride
            early_stride = kind == "bottleneck" and spec.stride_in_block == "first"
            # a stride that dilation replaced still needs the projection that its strided form has
            changes = index == 0 and (
                spec.project_first or width != spec.widths[stage] or (carrier == 0 and spec.stage_strides[stage] != 1)
            )
            reduce_width, inner_width = spec.block_widths[len(planned)] if spec.block_widths else widths
            planned.append(
                BlockPlan(
                    name=f"conv{stage + 2}_block{index + 1}",
                    stage=stage,
                    kind=kind,
                    stride=stride,
                    reduces=reduces,
                    dilation=dilation,
                    first_dilation=dilation if early_stride else before,
                    in_width=width,
                    width=spec.widths[stage],
                    inner_width=inner_width,
                    reduce_width=reduce_width,
                    changes_shape=changes,
                    subsamples=index > 0 and stride > 1,
                    drop_rate=spec.drop_path_rate * len(planned) / max(total - 1, 1),
                    tapped=spec.stride_in_stage == "last" and index == carrier and stride > 1 and index > 0,
                )
            )
            width = spec.widths[stage]
    return tuple(planned)
