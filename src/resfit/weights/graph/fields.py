"""The fields of an architecture that a graph tells: all of those that change what a network computes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from resfit.networks import arithmetic
from resfit.networks.spec import ArchitectureSpec, StemConv
from resfit.weights.assumption import sentence
from resfit.weights.graph.steps import Pads, Step, same_pads
from resfit.weights.graph.structure import Block, ConvUnit, Network, UnsupportedGraphError

_OPEN = "the graph leaves the size of images open, and maps of odd sides come out otherwise"


def stages(network: Network) -> list[list[Block]]:
    """Returns the blocks by stage: one begins where the width changes, or with a shortcut that is no identity.

    Args:
        network: A network.
    """
    found: list[list[Block]] = []
    pads = _pads(network)
    for block in network.blocks:
        shortcut = block.shortcut
        changes = shortcut.projection is not None or any(step.kind == "widen" for step in shortcut.shapes)
        if not found or changes or block.width != found[-1][-1].width or (shortcut.shapes and pads):
            found.append([])
        found[-1].append(block)
    return found


def named(network: Network) -> dict[str, ConvUnit]:
    """Returns every convolution with a kernel by its canonical name, without ``_conv``.

    Args:
        network: A network.
    """
    stem = network.stem[:-1] if _pools_by_convolution(network) else network.stem
    units = {"conv1" if len(stem) == 1 else f"conv1_{n}": unit for n, unit in enumerate(stem, start=1)}
    if len(stem) < len(network.stem):
        units["pool1"] = network.stem[-1]
    for name, block in blocks(network).items():
        if block.shortcut.projection:
            units[f"{name}_0"] = block.shortcut.projection
        units |= {f"{name}_{n}": unit for n, unit in enumerate(block.units, start=1)}
    return units


def blocks(network: Network) -> dict[str, Block]:
    """Returns every block by its canonical name.

    Args:
        network: A network.
    """
    return {
        f"conv{stage}_block{number}": block
        for stage, found in enumerate(stages(network), start=2)
        for number, block in enumerate(found, start=1)
    }


def read(network: Network, size: tuple[int | None, int | None], remarks: list[str]) -> dict[str, Any]:
    """Returns the fields of the architecture, but for those of norms and biases.

    Args:
        network: A network.
        size: Height and width of the images.
        remarks: To which is added what had to be assumed.

    Raises:
        Misfit: A step does what no architecture can express beside the others.
    """
    _check_groups(network)
    fields: dict[str, Any] = {
        **shape(network),
        **_activation(network),
        "stem": tuple(StemConv(unit.conv.channels, unit.kernel, unit.stride) for unit in _stem(network)),
        **_stem_pool(network, remarks),
        **_shortcuts(network, remarks),
        **_preactivation(network),
        **_strides(network),
        **_antialias(network, remarks),
        **_padding(network),
        **_attention(network),
    }
    if None not in size:
        fields["input_size"] = size
    return fields


def shape(network: Network) -> dict[str, Any]:
    """Returns depths and widths, of which every network with blocks has some.

    Args:
        network: A network, perhaps read in part.
    """
    first = [found[0] for found in stages(network)]
    kinds = tuple("bottleneck" if len(block.units) == 3 else "basic" for block in first)
    inner = tuple(block.units[-2].conv.channels for block in first)
    reduced = tuple(block.units[0].conv.channels for block in first)
    groups = max(block.units[1].conv.values["groups"] for block in first)
    return {
        "depths": tuple(map(len, stages(network))),
        "widths": tuple(block.width for block in first),
        "inner_widths": inner,
        "reduce_widths": reduced if reduced != inner else None,
        "block": kinds[0],
        "stage_blocks": kinds if len({*kinds}) > 1 else None,
        "preactivation": network.preactivated,
        "groups": groups if "bottleneck" in kinds else 1,
        "stem": tuple(StemConv(unit.conv.channels, unit.kernel, unit.stride) for unit in _stem(network)),
        "stage_strides": (1,) * len(first),
        "in_channels": network.stem[0].conv.values["kernel"].shape[2] * network.stem[0].conv.values["groups"],
    }


def compare(network: Network, spec: ArchitectureSpec) -> None:
    """Compares every convolution with the one of that name in the architecture.

    Args:
        network: A network.
        spec: Its architecture.

    Raises:
        Misfit: One has another kernel, stride, dilation or number of groups; the text says what.
    """
    units = named(network)
    counted = {layer.name: layer for layer in arithmetic.count(spec, include_top=False).layers if layer.kind == "conv"}
    for name, unit in units.items():
        layer, values = counted.get(f"{name}_conv"), unit.conv.values
        if layer is None:
            raise UnsupportedGraphError(unit.conv, "an architecture like the rest of this one has no convolution here")
        for key in ("kernel_shape", "strides", "dilations"):
            if values[key][0] != values[key][1]:
                raise UnsupportedGraphError(unit.conv, f"{key} must be alike in height and width; it has {values[key]}")
        expected = {"kernel": unit.kernel, "stride": unit.stride, "dilation": unit.dilation, "groups": values["groups"]}
        for key, received in expected.items():
            if getattr(layer, key) != received:
                raise UnsupportedGraphError(
                    unit.conv, f"{key} {received}, where the rest of the network asks for {getattr(layer, key)}"
                )


def _check_groups(network: Network) -> None:
    first = network.blocks[0].units[1].conv.values["groups"]
    for block in network.blocks:
        for number, unit in enumerate(block.units):
            groups, expected = unit.conv.values["groups"], first if number == 1 else 1
            if groups != expected:
                raise UnsupportedGraphError(unit.conv, f"{groups} groups, where the first block has {expected}")


def _stem(network: Network) -> list[ConvUnit]:
    return network.stem[:-1] if _pools_by_convolution(network) else network.stem


def _pools_by_convolution(network: Network) -> bool:
    """Whether the last convolution of the stem stands in place of its pooling."""
    last = network.stem[-1]
    before = network.stem[:-1]
    halves = (last.kernel, last.stride) == (3, 2) and bool(before) and last.conv.channels == before[-1].conv.channels
    return halves and not network.pools and not network.preactivated


def _pads(network: Network) -> bool:
    """Whether shortcuts are parameter-free (type A)."""
    return any(step.kind == "widen" for block in network.blocks for step in block.shortcut.shapes)


def _activation(network: Network) -> dict[str, Any]:
    names = [step.values["name"] for step in network.acts]
    slopes = [step.values.get("slope") for step in network.acts]
    for step, name, slope in zip(network.acts, names, slopes, strict=True):
        if name != names[0]:
            raise UnsupportedGraphError(step, f"activation {name!r}, where the first is {names[0]!r}")
        if slope != slopes[0]:
            raise UnsupportedGraphError(
                step, f"a slope of {slope or 0.2:.6g} below zero, where the first has {slopes[0] or 0.2:.6g}"
            )
    if any(unit.act is None for unit in network.stem[: -1 if network.preactivated else None]):
        raise UnsupportedGraphError(network.stem[0].conv, "an activation must follow every convolution of the stem")
    return {"activation": names[0], "activation_slope": slopes[0]}


def _preactivation(network: Network) -> dict[str, Any]:
    """What comes before the first block, and what projections read."""
    if not network.preactivated:
        return {}
    found = [block for block in network.blocks if block.preact_act is not None and not block.shortcut.is_identity]
    for block in found:
        if block.raw != found[0].raw:
            step = block.shortcut.projection.conv if block.shortcut.projection else block.add
            raise UnsupportedGraphError(
                step, "all shortcuts must read what comes before the blocks' norms, or all what comes behind"
            )
    return {
        "stem_activation": network.stem_activated,
        "first_preactivation": network.blocks[0].preact_act is not None,
        "shortcut_input": "raw" if found and found[0].raw else "preactivated",
    }


def _stem_pool(network: Network, remarks: list[str]) -> dict[str, Any]:
    if _pools_by_convolution(network):
        return {"stem_pool": "conv"}
    pools = network.pools
    if not pools:
        return {"stem_pool": "none"}
    kinds = [(step.kind, step.values.get("kernel_shape"), step.values["strides"]) for step in pools]
    blurred = kinds == [("max", (3, 3), (1, 1)), ("blur", None, (2, 2))]
    if blurred:
        return {"stem_pool": "blur", "stem_pool_padding": _max_padding(pools[0], remarks)}
    kind, window, strides = kinds[0]
    square = window is not None and window[0] == window[1] and 2 <= window[0] <= 7
    if len(kinds) > 1 or kind == "blur" or strides != (2, 2) or not square or window is None:
        raise UnsupportedGraphError(
            pools[-1],
            "the pooling of a stem must be one with a square window of 2 to 7 pixels and stride 2, or a 3x3 maximum "
            "and a blur",
        )
    side = window[0]
    if kind == "avg":
        return _average(pools[0], side, remarks)
    size = {} if side == 3 else {"stem_pool_size": side}
    return {"stem_pool": "max", "stem_pool_padding": _max_padding(pools[0], remarks), **size}


def _average(step: Step, side: int, remarks: list[str]) -> dict[str, Any]:
    """The fields of a stem that ends in an average."""
    values, size = step.values, step.inputs[0].size
    if side == 2 and not any(values["pads"] or (0,)) and (not values["same"] or None not in size):
        if values["up"] and any(length is None or length % 2 for length in size):
            _halves(step, remarks)
            return {"stem_pool": "avg", "stem_pool_size": 2, "stem_pool_padding": "same"}
        return {"stem_pool": "avg"}
    if values["same"] and not values["counts_border"]:
        return {"stem_pool": "avg", "stem_pool_size": side, "stem_pool_padding": "same"}
    if any(values["pads"] or (1,)) or values["up"]:
        raise UnsupportedGraphError(step, "the average pooling of a stem must not pad, or pad as TensorFlow does")
    return {"stem_pool": "avg", "stem_pool_size": side, "stem_pool_padding": "valid"}


def _max_padding(step: Step, remarks: list[str]) -> str:
    values, (height, width) = step.values, step.inputs[0].size
    pads, border, window = values["pads"], values.get("border", "lowest"), values["kernel_shape"]
    same = values["same"] or (border == "lowest" and pads == same_pads((height, width), window, values["strides"]))
    if pads == (window[0] // 2,) * 4 and not values["up"] and not values["same"]:
        return border
    if pads == (0, 0, 0, 0) and not values["up"] and not values["same"] and values["strides"] == (2, 2):
        return "valid"
    if values["up"] and pads == (0, 0, 0, 0) and values["strides"] == (2, 2):
        if height is None or width is None:
            remarks.append(sentence("stem_pool_padding='same'", _OPEN, "stem_pool_padding"))
        elif height % 2 or width % 2:
            raise UnsupportedGraphError(step, f"a pooling that rounds up over maps of {height}x{width}")
        return "same"
    if not same:
        raise UnsupportedGraphError(
            step, f"the pooling of a stem must pad by one pixel or as TensorFlow does; it pads by {pads}"
        )
    return "same"


def _halves(step: Step, remarks: list[str]) -> bool:
    """Whether an average pooling of 2x2 pads as TensorFlow's SAME does, without counting the border."""
    values, (height, width) = step.values, step.inputs[0].size
    stride = values["strides"][0]
    if values["kernel_shape"] != (2, 2) or values["strides"] != (stride, stride):
        return False
    if values["same"] or (values["up"] and values["pads"] == (0, 0, 0, 0) and stride == 2):
        return not values["counts_border"]
    if values["pads"] == same_pads((height, width), (2, 2), (stride, stride)):
        return not values["counts_border"] or values["pads"] == (0, 0, 0, 0)
    if None in (height, width) and stride == 2 and values["pads"] == (0, 0, 0, 0):
        remarks.append(sentence("height and width are even where an average halves them", _OPEN, "input_shape"))
        return True
    return False


def _shortcuts(network: Network, remarks: list[str]) -> dict[str, Any]:
    found = stages(network)
    projections = [stage[0].shortcut.projection for stage in found]
    pools = [block.shortcut.pool for block in network.blocks]
    for pool in pools:
        if pool is not None and not _halves(pool, remarks):
            raise UnsupportedGraphError(
                pool, "the average pooling of a shortcut must be 2x2 and pad as TensorFlow does"
            )
    fields: dict[str, Any] = {"shortcut": "projection"}
    if any(pools):
        always = all(b.shortcut.pool for b in network.blocks if b.shortcut.projection)
        alike = all(block.stride > 1 for block in network.blocks if block.shortcut.pool)
        fields |= {"shortcut": "avgpool", "shortcut_pool": "always" if always and not alike else "strided"}
    widened = [(block, step) for block in network.blocks for step in block.shortcut.shapes if step.kind == "widen"]
    for block, step in widened:
        if step.values["before"] != (block.width - step.inputs[0].channels) // 2:
            raise UnsupportedGraphError(step, "channels of zeros must be added on both sides alike")
    if widened or (_pads(network) and not any(projections)):
        fields["shortcut"] = "pad"
    strided = {unit.kernel for stage in found for b in stage if b.stride > 1 and (unit := b.shortcut.projection)}
    fields["shortcut_kernel"] = strided.pop() if len(strided) == 1 else 1
    entering = _stem(network)[-1].conv.channels
    fields["project_first"] = _projects_first(found, entering)
    return fields


def _projects_first(found: Sequence[Sequence[Block]], entering: int) -> bool:
    """Whether a projection stands where neither width nor stride ask for one."""
    for stage in found:
        block = stage[0]
        if block.shortcut.projection and block.stride == 1 and block.width == entering:
            return True
        entering = block.width
    return False


def _strides(network: Network) -> dict[str, Any]:
    found = stages(network)
    totals, places, early, dilation = [], set(), set(), 1
    for stage in found:
        total = 1
        for number, block in enumerate(stage):
            total *= block.stride
            if block.stride > 1:
                places.add("first" if number == 0 else "last")
                if len(block.units) == 3:
                    early.add(block.units[0].stride > 1)
                _check_stride(block)
        now = stage[-1].dilation
        if now % dilation:
            raise UnsupportedGraphError(stage[-1].units[1].conv, f"dilation {now} after {dilation}")
        totals.append(total * (now // dilation))
        dilation = now
    fields: dict[str, Any] = {
        "stage_strides": tuple(totals),
        "stride_in_stage": "last" if "last" in places else "first",
        "stride_in_block": "first" if early == {True} else "spatial",
    }
    if dilation > 1:
        reached = 1
        for unit in network.stem:
            reached *= unit.stride
        for step in network.pools:
            reached *= step.values["strides"][0]
        for block in network.blocks:
            reached *= block.stride
        if reached not in (8, 16, 32):
            dilated = next(unit.conv for block in network.blocks for unit in block.units if unit.dilation > 1)
            raise UnsupportedGraphError(
                dilated,
                f"dilation {dilated.values['dilations'][0]} in a network that ends at stride {reached}; it may take "
                "the place of a stride from 8 on",
            )
        fields["output_stride"] = reached
    return fields


def _check_stride(block: Block) -> None:
    branch = 1
    for unit in block.units:
        branch *= unit.stride * (unit.pool.values["strides"][0] if unit.pool else 1)
    if branch != block.stride:
        raise UnsupportedGraphError(block.add, f"the branch strides by {branch}, the shortcut by {block.stride}")


def _antialias(network: Network, remarks: list[str]) -> dict[str, Any]:
    pools = [(unit is b.units[-2], unit.pool) for b in network.blocks for unit in b.units if unit.pool]
    for in_place, pool in pools:
        alike = pool.kind == pools[0][1].kind and in_place
        if not alike or (pool.kind == "avg" and not _halves(pool, remarks)):
            raise UnsupportedGraphError(pool, "anti-aliasing must be alike in all blocks: a blur, or an average of 2x2")
    for block in network.blocks:
        if pools and block.stride > 1 and not block.units[-2].pool:
            raise UnsupportedGraphError(
                block.units[-2].conv, "a block that strides must have the anti-aliasing of the others"
            )
    return {"antialias": pools[0][1].kind if pools else None}


def _attention(network: Network) -> dict[str, Any]:
    found = [block.attention for block in network.blocks]
    for block in network.blocks:
        first = found[0]
        if (block.attention is None) != (first is None) or (first and block.attention.kind != first.kind):  # type: ignore[union-attr]
            raise UnsupportedGraphError(
                block.attention or block.units[-1].conv, "all blocks must have the same attention, or none"
            )
    if found[0] is None:
        return {"attention": None, "attention_sizes": None}
    key, axis = {"se": ("reduce_kernel", 1), "eca": ("kernel", 0)}[found[0].kind]
    sizes = tuple(int(stage[0].attention.values[key].shape[axis]) for stage in stages(network))  # type: ignore[union-attr]
    return {"attention": found[0].kind, "attention_sizes": sizes}


def _padding(network: Network) -> dict[str, Any]:
    """How convolutions pad: symmetrically where all may, else as TensorFlow does, else it is an error."""
    stem = {id(unit) for unit in _stem(network)}
    units = list(named(network).values())
    body, head = ([unit for unit in units if (id(unit) in stem) == inside] for inside in (False, True))
    # where both are the same for images of this size, it is what the graph says that holds for others, too
    strided = [unit.conv.values for unit in units if unit.conv.values["strides"] != (1, 1) and unit.kernel > 1]
    found = _pads_of(body, prefers="same" if any(values["same"] for values in strided) else "symmetric")
    of_stem = _pads_of(head, prefers=found)
    return {"padding": found, "stem_padding": None if of_stem == found else of_stem}


def _pads_of(units: Sequence[ConvUnit], prefers: str = "symmetric") -> str:
    choices = {"symmetric": _is_symmetric, "same": _is_same}
    for name in sorted(choices, key=lambda name: name != prefers):
        if all(choices[name](unit.conv) for unit in units):
            return name
    strange = next((u.conv for u in units if not _is_same(u.conv) and not _is_symmetric(u.conv)), None)
    strange = strange or next(unit.conv for unit in units if not _is_symmetric(unit.conv))
    pads = strange.values["pads"]
    raise UnsupportedGraphError(
        strange, f"convolutions must pad both sides alike, or all as TensorFlow does; it pads by {pads}"
    )


def _is_symmetric(step: Step) -> bool:
    values = step.values
    half = values["dilations"][0] * (values["kernel_shape"][0] - 1) // 2
    if values["kernel_shape"] == (1, 1) and values["same"]:
        return True  # however it strides
    if values["pads"] is None:
        return values["strides"] == (1, 1) and values["kernel_shape"][0] % 2 == 1
    return values["pads"] == (half, half, half, half)


def _is_same(step: Step) -> bool:
    values = step.values
    extents = [(side - 1) * by + 1 for side, by in zip(values["kernel_shape"], values["dilations"], strict=True)]
    expected: Pads | None = same_pads(step.inputs[0].size, extents, values["strides"])
    if values["same"] or extents == [1, 1]:
        return values["same"] or values["pads"] == (0, 0, 0, 0)
    if expected is None:
        return values["strides"] == (1, 1) and _is_symmetric(step)
    return values["pads"] == expected
