"""What a file or folder of weights holds, without building anything of it."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from resfit.errors import ResfitError
from resfit.networks import arithmetic
from resfit.networks.detection import kinds
from resfit.networks.detection.deformable_detr_spec import DeformableDETRSpec
from resfit.networks.detection.detr_spec import DETRSpec
from resfit.networks.detection.faster_rcnn_spec import FasterRCNNSpec
from resfit.networks.detection.rtdetr_spec import RTDETRSpec
from resfit.weights import load
from resfit.weights.detectors import DetectorSource
from resfit.weights.formats.base import find_format

_MOST_NAMES = 12
#: The first convolution of a residual block, as libraries call it; what stands before it is the network's prefix.
_ANCHORS = (
    r"layer1\.0\.conv1\.weight",
    r"stages\.0\.blocks\.0\.conv1\.weight",
    r"encoder\.stages\.0\.layers\.0\.layer\.0\.convolution\.weight",
    r"res2\.0\.conv1\.weight",
    r"conv2_block1_1_conv/kernel",
    r"res2a_branch2a/kernel",
    r"block1/unit_1/\w+/conv1/weights",
    r"block1/unit0*1/a/standardized_conv2d/kernel",
    r"stack0_block0_1_conv/kernel",
)
_PREFIX = re.compile(rf"(?P<prefix>(?:.*[./])?)(?:{'|'.join(_ANCHORS)})")


@dataclasses.dataclass(frozen=True)
class FileDescription:
    """What is known of a file or folder of weights.

    Attributes:
        path: The file or folder.
        format: What kind of source it is.
        bytes: Its size.
        arrays: How many arrays it holds.
        numbers: How many numbers these hold.
        prefixes: What stands before the names of the networks that are found by their names; ``""`` for nothing.
        network: The catalog's name of the network that is read, or of the family; ``""`` where none is.
        architecture: Its fields, or None.
        parameters: Of that network, with its classifier; 0 where none is read.
        head: What follows the body, in words.
        input_spec: The input contract as a mapping, or None.
        class_names: Labels of its classes, or None.
        assumptions: What had to be assumed, was left out or chosen, one sentence each.
        problem: Why no network is read, or ``""``.
    """

    path: str
    format: str
    bytes: int
    arrays: int
    numbers: int
    prefixes: tuple[str, ...]
    network: str
    architecture: dict[str, Any] | None
    parameters: int
    head: str
    input_spec: dict[str, Any] | None
    class_names: tuple[str, ...] | None
    assumptions: tuple[str, ...]
    problem: str

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON-ready values."""
        return dataclasses.asdict(self)


def describe(path: Path, **reading: Any) -> FileDescription:
    """Says what a file or folder holds.

    Args:
        path: Any source that :func:`resfit.weights.load.read_source` takes.
        **reading: Its other arguments.

    Raises:
        CheckpointError: There is none, or it is of no known kind.
    """
    kind = find_format(path)
    if kind is None:
        raise load.unknown(path)
    arrays: dict[str, Any] = {}
    problem = ""
    try:
        arrays = dict(kind.read(path).arrays)
    except ResfitError as error:
        problem = str(error)
    source: load.Source | DetectorSource | None = None
    if not problem:
        try:
            source = load.read_any(path, **reading)
        except ResfitError as error:
            problem = str(error)
    spec = source.spec if source else None
    return FileDescription(
        path=str(path),
        format=kind.name,
        bytes=sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        if path.is_dir()
        else path.stat().st_size,
        arrays=len(arrays) or (len(source.arrays) if source else 0),
        numbers=sum(int(array.size) for array in (arrays or (source.arrays if source else {})).values()),
        prefixes=tuple(sorted({match["prefix"] for match in map(_PREFIX.fullmatch, _plain(arrays)) if match})),
        network=source.name if source else "",
        architecture=spec.to_dict() if spec else None,
        parameters=_parameters(source) if source else 0,
        head=_head(source) if source else "",
        input_spec=source.input_spec.to_dict() if source else None,
        class_names=source.class_names if source else None,
        assumptions=source.assumptions if source else (),
        problem=problem,
    )


def _plain(arrays: dict[str, Any]) -> list[str]:
    return [name.removesuffix(":0") for name in arrays]


def _parameters(source: load.Source | DetectorSource) -> int:
    if isinstance(source, DetectorSource):
        return kinds.count(source.spec).parameters
    return arithmetic.count(source.spec, include_top=source.has_top).parameters


def _head(source: load.Source | DetectorSource) -> str:
    """What follows the body, in words."""
    if isinstance(source, DetectorSource):
        spec = source.spec
        if isinstance(spec, RTDETRSpec):
            return (
                f"a detector of {spec.classes} class outputs: an encoder of {spec.encoder_width} channels on levels "
                f"{spec.levels[0]} to {spec.levels[-1]}, a decoder of {spec.decoder_depth} layers, "
                f"{spec.queries} queries"
            )
        if isinstance(spec, DETRSpec | DeformableDETRSpec):
            return (
                f"a detector of {spec.classes} classes: an encoder of {spec.encoder_depth} layers and {spec.width} "
                f"channels, a decoder of {spec.decoder_depth} layers, {spec.queries} queries"
            )
        if isinstance(spec, FasterRCNNSpec):
            head = f"{len(spec.box_convs)} convolutions and {spec.box_dense} dense layers"
            return (
                f"a detector of {spec.classes} classes in two stages: levels {spec.levels[0]} to {spec.levels[-1]} of "
                f"{spec.pyramid_width} channels, {spec.proposals} proposals, {head} for each"
            )
        anchors = f"{spec.anchors_per_cell} anchors" if spec.box_coding == "deltas" else "points"
        quality = f", {spec.quality}" if spec.quality else ""
        return (
            f"a detector of {spec.classes} class outputs: levels {spec.levels[0]} to {spec.levels[-1]} of "
            f"{spec.pyramid_width} channels, {spec.head_depth} convolutions a branch, {anchors}{quality}"
        )
    end = source.end
    if end is not None and end.refused:
        return f"left out: {end.refused}"
    if end is not None and end.head is not None:
        return f"layers {end.head}"
    if not source.has_top:
        return "none"
    activation = end.activation if end is not None else "softmax"
    return f"a classifier of {source.spec.classes} classes on a global average, {activation}"


def text(found: FileDescription) -> str:
    """Returns a description for people to read.

    Args:
        found: The description.
    """
    spec, contract = found.architecture, found.input_spec
    lines = [
        found.path,
        f"format      {found.format}, {found.bytes:,} bytes, {found.arrays} arrays of {found.numbers:,} numbers",
    ]
    if found.prefixes:
        lines.append(
            "networks    " + ", ".join(f"under {prefix!r}" if prefix else "by plain names" for prefix in found.prefixes)
        )
    if spec is not None and contract is not None:
        body, fits = spec.get("backbone", spec), contract["resize_mode"] == "fit"
        size = (
            f"within {contract['size'][0]}x{contract['size'][1]}"
            if fits
            else f"at {'x'.join(map(str, contract['size']))}"
        )
        lines += [
            f"network     {found.network}: depths {body['depths']}, widths {body['widths']}, "
            f"{found.parameters:,} parameters",
            f"head        {found.head}",
            f"input       {contract['channel_order'].upper()} {size}, "
            f"(x * {contract['scale']:.6g} - {contract['mean']}) / {contract['std']}",
        ]
    if found.class_names:
        more = "" if len(found.class_names) <= _MOST_NAMES else f" and {len(found.class_names) - _MOST_NAMES} more"
        lines.append(f"classes     {', '.join(found.class_names[:_MOST_NAMES])}{more}")
    lines += [f"assumed     {sentence}" for sentence in found.assumptions]
    if found.problem:
        lines.append(f"no network  {found.problem}")
    return "\n".join(lines)
