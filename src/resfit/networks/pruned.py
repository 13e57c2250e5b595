"""What pruning left of the channels of ECA-ResNets: data of ``catalog.py``, by the depth in the networks' names.

Aflalo et al. 2020, arXiv:2002.08258; the networks are those that timm has under these names.
"""

from __future__ import annotations

#: Channels that leave each stage.
WIDTHS = {50: (19, 171, 818, 2022), 101: (26, 142, 278, 2042)}

# Channels of the blocks' first convolutions, and of their 3x3 convolutions, in order.
_REDUCED = {
    50: (
        47, 52, 64,
        85, 107, 120, 125,
        198, 255, 256, 253, 256, 256,
        492, 512, 512,
    ),
    101: (
        45, 53, 60,
        81, 93, 102, 122,
        101, 239, 234, 250, 253, 251, 230, 244, 244, 238, 244, 253,
        245, 255, 256, 253, 254, 256, 256, 255, 256, 256, 256,
        499, 512, 512,
    ),
}  # fmt: skip
_INNER = {
    50: (
        18, 22, 35,
        37, 80, 85, 87,
        126, 232, 233, 235, 225, 239,
        237, 500, 490,
    ),
    101: (
        25, 20, 27,
        24, 49, 54, 78,
        25, 160, 156, 176, 191, 175, 128, 154, 159, 97, 149, 181,
        119, 216, 201, 149, 141, 190, 217, 156, 155, 232, 214,
        289, 512, 502,
    ),
}  # fmt: skip

#: Channels of each block's first and 3x3 convolution.
BLOCK_WIDTHS = {depth: tuple(zip(_REDUCED[depth], _INNER[depth], strict=True)) for depth in WIDTHS}
