"""Networks of the catalog, made shorter."""

from __future__ import annotations

from resfit.networks.spec import ArchitectureSpec


def shortened(spec: ArchitectureSpec, most: int = 2) -> ArchitectureSpec:
    """Returns the same network with at most so many blocks a stage, the first ones.

    Args:
        spec: The network.
        most: Blocks, at least 2 where the blocks of a stage differ.
    """
    pairs = None
    if spec.block_widths is not None:
        ends = [sum(spec.depths[: stage + 1]) for stage in range(len(spec.depths))]
        stages = [spec.block_widths[end - depth : end] for end, depth in zip(ends, spec.depths, strict=True)]
        pairs = tuple(pair for stage in stages for pair in stage[:most])
    return spec.replace(depths=tuple(min(depth, most) for depth in spec.depths), block_widths=pairs)
