"""Every named architecture, one row each. No Keras here."""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import math
from typing import Any

from resfit.errors import UnknownNameError, closest
from resfit.networks import pruned
from resfit.networks.spec import ArchitectureSpec, StemConv

RESNET = "He et al. 2015, arXiv:1512.03385"
RESNET_V2 = "He et al. 2016, arXiv:1603.05027"
RESNET_D = "He et al. 2018, arXiv:1812.01187"
RESNEXT = "Xie et al. 2016, arXiv:1611.05431"
WIDE = "Zagoruyko and Komodakis 2016, arXiv:1605.07146"
SENET = "Hu et al. 2017, arXiv:1709.01507"
ECANET = "Wang et al. 2019, arXiv:1910.03151"
RESNET_RS = "Bello et al. 2021, arXiv:2103.07579"
RESNET_AA = "Lee et al. 2020, arXiv:2001.06268"
BLUR = "Zhang 2019, arXiv:1904.11486"
GROUP_NORM = "Wu and He 2018, arXiv:1803.08494"
BIT = "Kolesnikov et al. 2019, arXiv:1912.11370"
BYOL = "Grill et al. 2020, arXiv:2006.07733"
SIMCLR = "Chen et al. 2020, arXiv:2002.05709"
CLIP = "Radford et al. 2021, arXiv:2103.00020"
EVONORM = "Liu et al. 2020, arXiv:2004.02967"
PRUNED = "Aflalo et al. 2020, arXiv:2002.08258"


@dataclasses.dataclass(frozen=True)
class CatalogRow:
    """One named architecture.

    Attributes:
        name: The name that ``resfit.load`` takes.
        family: The kind of network, for listings.
        spec: The architecture.
        paper: Where it was published.
    """

    name: str
    family: str
    spec: ArchitectureSpec
    paper: str


# Depths of the stages by the number that the names carry.
_BASIC = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
_BOTTLENECK = {
    14: (1, 1, 1, 1),
    26: (2, 2, 2, 2),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
    269: (3, 30, 48, 8),
}
_PLANES = (64, 128, 256, 512)

# What a name's last letter means: the stem, and average pooling before the shortcut's projection.
_DEEP: dict[str, Any] = {"stem": (StemConv(32, 3, 2), StemConv(32, 3, 1), StemConv(64, 3, 1))}
_WIDE_DEEP: dict[str, Any] = {"stem": (StemConv(64, 3, 2), StemConv(64, 3, 1), StemConv(128, 3, 1))}
_TIERED: dict[str, Any] = {"stem": (StemConv(24, 3, 2), StemConv(32, 3, 1), StemConv(64, 3, 1))}
_VARIANT: dict[str, dict[str, Any]] = {
    "": {},
    "c": _DEEP,
    "s": _WIDE_DEEP,
    "d": {**_DEEP, "shortcut": "avgpool"},
    "t": {**_TIERED, "shortcut": "avgpool"},
}

# keras.applications' epsilon and Keras' default momentum; and TF-Slim's, whose stages stride in their last block.
_SLIM: dict[str, Any] = {
    "stride_in_stage": "last",
    "stage_strides": (2, 2, 2, 1),
    "stem_pool_padding": "same",
    "norm_momentum": 0.997,
}
_KERAS: dict[str, Any] = {"norm_epsilon": 1.001e-5, "norm_momentum": 0.99, "stem_pool_padding": "zero"}


def _basic(depths: tuple[int, ...], planes: tuple[int, ...] = _PLANES, **more: Any) -> ArchitectureSpec:
    return ArchitectureSpec(block="basic", depths=depths, widths=planes, inner_widths=planes, **more)


def _bottleneck(
    depths: tuple[int, ...],
    planes: tuple[int, ...] = _PLANES,
    *,
    cardinality: int = 1,
    base_width: int = 64,
    **more: Any,
) -> ArchitectureSpec:
    inner = tuple(plane * base_width // 64 * cardinality for plane in planes)
    widths = tuple(4 * plane for plane in planes)
    return ArchitectureSpec(depths=depths, widths=widths, inner_widths=inner, groups=cardinality, **more)


def _by_depth(depth: int, **more: Any) -> ArchitectureSpec:
    return _basic(_BASIC[depth], **more) if depth in _BASIC else _bottleneck(_BOTTLENECK[depth], **more)


def _preactivated(depth: int, **more: Any) -> ArchitectureSpec:
    return _by_depth(depth, preactivation=True, project_first=depth in _BOTTLENECK, **more)


def squeeze_sizes(widths: tuple[int, ...], ratio: float = 1 / 16) -> tuple[int, ...]:
    """Returns the reduced width of squeeze-excite for each stage: ``ratio`` of it, in multiples of 8.

    Args:
        widths: Output channels of each stage.
        ratio: Share of the channels that the reduction keeps.
    """
    return tuple(max(8, int(width * ratio + 4) // 8 * 8) for width in widths)


def eca_sizes(widths: tuple[int, ...]) -> tuple[int, ...]:
    """Returns ECA's kernel size for each stage: the odd number nearest above ``(log2(width) + 1) / 2``, from 3 on.

    Args:
        widths: Output channels of each stage.
    """
    sizes = (int((math.log2(width) + 1) / 2) for width in widths)
    return tuple(max(size if size % 2 else size + 1, 3) for size in sizes)


def _se(spec: ArchitectureSpec, ratio: float = 1 / 16) -> ArchitectureSpec:
    return spec.replace(attention="se", attention_sizes=squeeze_sizes(spec.widths, ratio))


def _eca(spec: ArchitectureSpec) -> ArchitectureSpec:
    return spec.replace(attention="eca", attention_sizes=eca_sizes(spec.widths))


def _pruned(depth: int) -> ArchitectureSpec:
    """ECA-ResNet of kind D with the channels that pruning left; the kernels of ECA stayed as they were."""
    whole = _eca(_by_depth(depth, **_VARIANT["d"]))
    pairs = pruned.BLOCK_WIDTHS[depth]
    starts = [pairs[sum(whole.depths[:stage])] for stage in range(len(whole.depths))]
    return whole.replace(
        widths=pruned.WIDTHS[depth],
        reduce_widths=tuple(reduced for reduced, _ in starts),
        inner_widths=tuple(inner for _, inner in starts),
        block_widths=pairs,
    )


def _plain_rows() -> list[CatalogRow]:
    rows = []
    for depth in (10, 18, 34):
        rows.append(CatalogRow(f"resnet{depth}", "v1", _by_depth(depth), RESNET))
    for depth in (14, 26, 50, 101, 152):
        keras_v1 = _by_depth(depth, stride_in_block="first", conv_bias="all", **_KERAS)
        rows.append(CatalogRow(f"resnet{depth}", "v1", keras_v1, RESNET))
        rows.append(CatalogRow(f"resnet{depth}v1.5", "v1.5", _by_depth(depth), RESNET))
    for letter, depths in {"c": (50, 101, 152), "s": (50, 101, 152), "t": (10, 14, 26, 50)}.items():
        for depth in depths:
            spec = _by_depth(depth, **_VARIANT[letter])
            rows.append(CatalogRow(f"resnet{depth}{letter}", f"v1.5-{letter}", spec, RESNET_D))
    for depth in (18, 26, 34, 50, 101, 152, 200):
        rows.append(CatalogRow(f"resnet{depth}d", "v1.5-d", _by_depth(depth, **_VARIANT["d"]), RESNET_D))
    rows.append(CatalogRow("resnet50_gn", "v1.5", _by_depth(50, norm="group"), GROUP_NORM))
    for depth in (50, 101, 152):
        rows.append(CatalogRow(f"resnet_v1_{depth}", "v1 (tf-slim)", _by_depth(depth, **_SLIM), RESNET))
    garden = _by_depth(50, padding="same", stem_padding="symmetric", stem_pool_padding="same")
    rows.append(CatalogRow("resnet_50", "v1.5 (model garden)", garden, RESNET))
    return rows


def _vd_rows() -> list[CatalogRow]:
    """PaddleClas' networks of kind D where they are not timm's: a projection in every stage, another depth of 200."""
    rows = []
    for depth in (18, 34):
        spec = _by_depth(depth, project_first=True, **_VARIANT["d"])
        rows.append(CatalogRow(f"resnet_vd_{depth}", "v1.5-d", spec, RESNET_D))
    rows.append(CatalogRow("resnet_vd_200", "v1.5-d", _bottleneck((3, 12, 48, 3), **_VARIANT["d"]), RESNET_D))
    return rows


def _preactivation_rows() -> list[CatalogRow]:
    rows = []
    for depth in (50, 101, 152):
        keras_v2 = _by_depth(
            depth,
            preactivation=True,
            project_first=True,
            stride_in_stage="last",
            stage_strides=(2, 2, 2, 1),
            conv_bias="unnormalized",
            **_KERAS,
        )
        rows.append(CatalogRow(f"resnet{depth}v2", "v2 (keras)", keras_v2, RESNET_V2))
    for depth in (50, 101, 152):
        slim = _preactivated(depth, conv_bias="unnormalized", **_SLIM)
        rows.append(CatalogRow(f"resnet_v2_{depth}", "v2 (tf-slim)", slim, RESNET_V2))
    for depth in (10, 14, 18, 26, 34, 50, 101, 152):
        rows.append(CatalogRow(f"resnetv2_{depth}", "v2", _preactivated(depth), RESNET_V2))
    for depth in (18, 34, 50, 101, 152):
        spec = _preactivated(depth, **_VARIANT["d"])
        rows.append(CatalogRow(f"resnetv2_{depth}d", "v2-d", spec, RESNET_V2))
    tiered = _preactivated(50, **_VARIANT["t"])
    rows.append(CatalogRow("resnetv2_50t", "v2-t", tiered, RESNET_V2))
    grouped = _preactivated(50, norm="group", **_VARIANT["d"])
    rows.append(CatalogRow("resnetv2_50d_gn", "v2-d", grouped, RESNET_V2))
    evolved = _preactivated(50, norm="evo", activation="linear", **_VARIANT["d"])
    rows.append(CatalogRow("resnetv2_50d_evos", "v2-d", evolved, EVONORM))
    for depth, factor in ((50, 1), (50, 3), (101, 1), (101, 3), (152, 2), (152, 4)):
        bit = _bottleneck(
            _BOTTLENECK[depth],
            tuple(factor * plane for plane in _PLANES),
            preactivation=True,
            project_first=True,
            stem=(StemConv(64 * factor, 7, 2),),
            stem_pool_padding="zero",
            norm="group",
            weight_standardization=True,
        )
        rows.append(CatalogRow(f"resnetv2_{depth}x{factor}_bit", "BiT", bit, BIT))
    return rows


def _wider_rows() -> list[CatalogRow]:
    rows = []
    for depth, cardinality, width in (
        (50, 32, 4),
        (101, 32, 4),
        (101, 32, 8),
        (101, 32, 16),
        (101, 32, 32),
        (101, 64, 4),
    ):
        spec = _by_depth(depth, cardinality=cardinality, base_width=width)
        rows.append(CatalogRow(f"resnext{depth}_{cardinality}x{width}d", "ResNeXt", spec, RESNEXT))
    for depth in (50, 101):
        spec = _by_depth(depth, cardinality=32, base_width=4, **_KERAS)
        rows.append(CatalogRow(f"resnext{depth}", "ResNeXt (keras)", spec, RESNEXT))
        wide = _by_depth(depth, base_width=128)
        rows.append(CatalogRow(f"wide_resnet{depth}_2", "Wide", wide, WIDE))
    spec = _by_depth(50, cardinality=32, base_width=4, **_VARIANT["d"])
    rows.append(CatalogRow("resnext50d_32x4d", "ResNeXt", spec, RESNEXT))
    for depth, factor in ((50, 2), (50, 4), (50, 5), (200, 2)):  # every width times a factor, the stem's too
        rows.append(CatalogRow(f"resnet{depth}w{factor}", "Wide", _widened(depth, factor), SIMCLR))
    return rows


def _widened(depth: int, factor: int, **more: Any) -> ArchitectureSpec:
    planes = tuple(factor * plane for plane in _PLANES)
    return _bottleneck(_BOTTLENECK[depth], planes, stem=(StemConv(64 * factor, 7, 2),), **more)


def _contrastive_rows() -> list[CatalogRow]:
    """Networks of self-supervised programs: SimCLR's and SupCon's in TensorFlow, and BYOL's in Haiku."""
    rows = []
    for depth, factor in ((50, 1), (101, 1), (200, 1), (50, 2), (50, 4)):
        name = f"resnet{depth}{f'w{factor}' if factor > 1 else ''}_simclr"
        spec = _widened(depth, factor, stem_pool_padding="same")
        rows.append(CatalogRow(name, "v1.5 (simclr)", spec, SIMCLR))
    for depth, factor in ((50, 1), (200, 2)):
        name = f"resnet{depth}{f'w{factor}' if factor > 1 else ''}_haiku"
        spec = _widened(depth, factor, padding="same", stem_pool_padding="same")
        rows.append(CatalogRow(name, "v1.5 (haiku)", spec, BYOL))
    return rows


def _clip_rows() -> list[CatalogRow]:
    """CLIP's larger visual towers; the bodies of its RN50 and RN101 are ``resnetaa50d`` and ``resnetaa101d``."""
    rows = []
    for name, depths, width, size in (
        ("resnet50x4_clip", (4, 6, 10, 6), 80, 288),
        ("resnet50x16_clip", (6, 8, 18, 8), 96, 384),
        ("resnet50x64_clip", (3, 15, 36, 10), 128, 448),
    ):
        spec = _bottleneck(
            depths,
            tuple(factor * width for factor in (1, 2, 4, 8)),
            stem=(StemConv(width // 2, 3, 2), StemConv(width // 2, 3, 1), StemConv(width, 3, 1)),
            stem_pool="avg",
            shortcut="avgpool",
            antialias="avg",
            input_size=(size, size),
        )
        rows.append(CatalogRow(name, "CLIP", spec, CLIP))
    return rows


def _attention_rows() -> list[CatalogRow]:
    rows = []
    for depth in (18, 34, 50, 101, 152):
        rows.append(CatalogRow(f"seresnet{depth}", "SE", _se(_by_depth(depth)), SENET))
    rows.append(CatalogRow("seresnet152d", "SE", _se(_by_depth(152, **_VARIANT["d"])), SENET))
    for depth, letter, cardinality, width in (
        (26, "d", 32, 4),
        (26, "t", 32, 4),
        (50, "", 32, 4),
        (101, "", 32, 4),
        (101, "", 32, 8),
        (101, "", 64, 4),
        (101, "d", 32, 8),
    ):
        spec = _se(_by_depth(depth, cardinality=cardinality, base_width=width, **_VARIANT[letter]))
        rows.append(CatalogRow(f"seresnext{depth}{letter}_{cardinality}x{width}d", "SE-ResNeXt", spec, SENET))
    resnextaa: dict[str, Any] = {"cardinality": 32, "base_width": 8, "shortcut": "avgpool"}
    resnextaa |= {"antialias": "avg", "stem_pool": "avg"}
    spec = _se(_by_depth(101, **_DEEP, **resnextaa))
    rows.append(CatalogRow("seresnextaa101d_32x8d", "SE-ResNeXt", spec, RESNET_AA))
    spec = _se(_bottleneck((3, 24, 36, 4), **_WIDE_DEEP, **resnextaa))
    rows.append(CatalogRow("seresnextaa201d_32x8d", "SE-ResNeXt", spec, RESNET_AA))
    senet154 = _bottleneck(
        _BOTTLENECK[152],
        cardinality=64,
        base_width=4,
        reduce_widths=(128, 256, 512, 1024),
        shortcut_kernel=3,
        **_WIDE_DEEP,
    )
    rows.append(CatalogRow("senet154", "SE-ResNeXt", _se(senet154), SENET))

    for depth, letter in ((14, "t"), (26, "t"), (50, "d"), (50, "t"), (101, "d"), (269, "d")):
        spec = _eca(_by_depth(depth, **_VARIANT[letter]))
        rows.append(CatalogRow(f"ecaresnet{depth}{letter}", "ECA", spec, ECANET))
    for depth in pruned.WIDTHS:
        rows.append(CatalogRow(f"ecaresnet{depth}d_pruned", "ECA", _pruned(depth), PRUNED))
    light = _eca(_bottleneck((1, 1, 11, 3), shortcut="avgpool"))
    rows.append(CatalogRow("ecaresnetlight", "ECA", light, ECANET))

    for depth, depths in {
        50: (3, 4, 6, 3),
        101: (3, 4, 23, 3),
        152: (3, 8, 36, 3),
        200: (3, 24, 36, 3),
        270: (4, 29, 53, 4),
        350: (4, 36, 72, 4),
        420: (4, 44, 87, 4),
    }.items():
        spec = _se(_bottleneck(depths, stem_pool="conv", **_VARIANT["d"]), ratio=1 / 4)
        rows.append(CatalogRow(f"resnetrs{depth}", "RS", spec, RESNET_RS))
    return rows


def _antialiased_rows() -> list[CatalogRow]:
    average: dict[str, Any] = {"antialias": "avg", "stem_pool": "avg"}
    blur: dict[str, Any] = {"antialias": "blur", "stem_pool": "blur"}
    rows = []
    for depth, letter in ((34, "d"), (50, ""), (50, "d"), (101, "d")):
        spec = _by_depth(depth, **_VARIANT[letter], **average)
        rows.append(CatalogRow(f"resnetaa{depth}{letter}", "anti-aliased", spec, RESNET_AA))
    for depth, letter in ((18, ""), (50, ""), (50, "d"), (101, "d")):
        spec = _by_depth(depth, **_VARIANT[letter], **blur)
        rows.append(CatalogRow(f"resnetblur{depth}{letter}", "anti-aliased", spec, BLUR))
    return rows


def _small_rows() -> list[CatalogRow]:
    """Networks for small images: CIFAR's 32x32 and the project's own for 64x64."""
    cifar: dict[str, Any] = {
        "stem": (StemConv(16, 3, 1),),
        "stem_pool": "none",
        "stage_strides": (1, 2, 2),
        "classes": 10,
        "input_size": (32, 32),
    }
    rows = []
    for depth in (20, 32, 44, 56, 110, 1202):
        spec = _basic(((depth - 2) // 6,) * 3, (16, 32, 64), shortcut="pad", **cifar)
        rows.append(CatalogRow(f"resnet{depth}", "CIFAR", spec, RESNET))
    for depth in (20, 32, 44, 56):  # with projections (type B), as most libraries write them
        spec = _basic(((depth - 2) // 6,) * 3, (16, 32, 64), **cifar)
        rows.append(CatalogRow(f"resnet{depth}b", "CIFAR", spec, RESNET))
    for depth in (20, 32, 56, 110):
        spec = _basic(((depth - 2) // 6,) * 3, (16, 32, 64), preactivation=True, **cifar)
        rows.append(CatalogRow(f"preact_resnet{depth}", "CIFAR v2", spec, RESNET_V2))
    for depth in (164, 1001):
        spec = _bottleneck(((depth - 2) // 9,) * 3, (16, 32, 64), preactivation=True, **cifar)
        rows.append(CatalogRow(f"preact_resnet{depth}", "CIFAR v2", spec, RESNET_V2))
    for depth, factor in ((16, 4), (16, 8), (28, 2), (28, 10), (40, 2)):
        widths = (16 * factor, 32 * factor, 64 * factor)
        spec = _basic(((depth - 4) // 6,) * 3, widths, preactivation=True, **cifar)
        rows.append(CatalogRow(f"wrn_{depth}_{factor}", "CIFAR wide", spec, WIDE))
    tiny = _basic(
        (1, 1, 1, 1),
        (32, 64, 160, 320),
        stem=(StemConv(32, 3, 2),),
        stem_pool="none",
        classes=200,
        input_size=(64, 64),
    )
    rows.append(CatalogRow("resnet10_tiny", "small images", tiny, RESNET))
    deeper = _eca(tiny.replace(depths=(1, 2, 2, 1), shortcut="avgpool"))
    rows.append(CatalogRow("ecaresnet14d_tiny", "small images", deeper, ECANET))
    mixed = ArchitectureSpec(
        depths=(1, 1, 1, 1),
        widths=(32, 48, 192, 96),
        inner_widths=(32, 48, 48, 96),
        block="basic",
        stage_blocks=("basic", "basic", "bottleneck", "basic"),
        stem=(StemConv(16, 3, 2), StemConv(16, 3, 1), StemConv(32, 3, 1)),
        shortcut="avgpool",
        input_size=(160, 160),
    )
    rows.append(CatalogRow("test_resnet", "small images", mixed, RESNET_D))
    return rows


@functools.cache
def rows() -> dict[str, CatalogRow]:
    """Returns every row by its name, in the order of the table."""
    table: dict[str, CatalogRow] = {}
    for group in (
        _plain_rows,
        _vd_rows,
        _preactivation_rows,
        _wider_rows,
        _contrastive_rows,
        _clip_rows,
        _attention_rows,
        _antialiased_rows,
        _small_rows,
    ):
        for row in group():
            assert row.name not in table, row.name
            table[row.name] = row
    return table


def get(name: str) -> CatalogRow:
    """Returns the row of a name.

    Args:
        name: A name of the catalog, such as ``"resnet50"``.

    Raises:
        UnknownNameError: No row has this name.
    """
    table = rows()
    if name not in table:
        raise UnknownNameError(
            f"architecture must be a name of the catalog. Received: {name!r}.{closest(name, table)} "
            "`resfit models` lists them all."
        )
    return table[name]


def names(pattern: str = "*") -> list[str]:
    """Returns the names that match a shell pattern, in the order of the table.

    Args:
        pattern: Shell pattern such as ``"resnet5*"``.
    """
    return [name for name in rows() if fnmatch.fnmatchcase(name, pattern)]
