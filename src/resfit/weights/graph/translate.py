"""A residual network in a graph of ONNX, whoever wrote it, under canonical names.

The graph decides: no name of an array or operation means anything here. Norms that an exporter folded into
convolutions stay folded, and are said to be.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np

from resfit.errors import ArgumentError, CheckpointError
from resfit.networks.spec import ArchitectureSpec
from resfit.preprocessing import CAFFE, TF, InputSpec
from resfit.weights.assumption import sentence
from resfit.weights.conventions.base import Translation
from resfit.weights.conventions.pytorch import LEFT_OUT
from resfit.weights.formats.base import Tensors
from resfit.weights.formats.onnx import OnnxGraph
from resfit.weights.graph import fields, lift_onnx, simplify, structure
from resfit.weights.graph.onnx_constants import UnsupportedOperationError
from resfit.weights.graph.simplify import scaled_by
from resfit.weights.graph.steps import Step
from resfit.weights.graph.structure import ConvUnit, Network, UnsupportedGraphError
from resfit.weights.heads import End
from resfit.weights.identify import nearest

CONVENTION = "onnx"

_EPSILON = 1e-5


def translate(tensors: Tensors, *, prefix: str | None = None, ignore: Sequence[str] = ()) -> Translation:
    """Brings the constants of a file to canonical names, and says what its graph tells.

    Args:
        tensors: What :func:`resfit.weights.formats.onnx.read` returned.
        prefix: The input or output of the network that is wanted, where the graph has several.
        ignore: Patterns of names of constants that may stay unused, beside :data:`namings.LEFT_OUT`.

    Raises:
        CheckpointError: The graph is not that of a residual network. The text names the first operation that does not
            fit, and the nearest architecture.
    """
    graph: OnnxGraph = tensors.graph
    remarks: list[str] = []
    with told_plainly():
        lifted = lift_onnx.lift(graph, tensors.arrays, prefix)
    found = assemble(lifted, remarks)
    contract = found.contract or _habit(found.fields, graph, found.size, remarks)
    leftover, left_out = _unused(tensors, lifted.names, ignore)
    if prefix is not None:
        remarks.append(sentence(f"the network is that of {prefix!r}", "by the graph's names", "prefix"))
        left_out += [f"left out what belongs to other networks: {len(leftover)} arrays"] if leftover else []
        leftover = {}
    activation = None if found.head is None else found.activation
    if activation is None and found.head is not None:
        why = "the graph hands out what the classifier makes, without an activation; None does the same"
        remarks.append(sentence("classifier_activation='softmax'", why, "classifier_activation"))
    return Translation(
        CONVENTION,
        "",
        found.arrays,
        found.stated,
        leftover,
        (*graph.left_out, *left_out),
        tuple(dict.fromkeys(remarks)),
        contract,
        end=End(activation or "softmax", None, found.refused, found.takes),
    )


@dataclasses.dataclass(frozen=True)
class Assembled:
    """A network that was read off a graph.

    Attributes:
        network: Its steps.
        arrays: Its weights by canonical name.
        fields: What the graph tells of the architecture.
        contract: The input contract, where the graph begins with one.
        takes: What values images have that the graph takes: up to ``255`` or ``1``; None where it does not normalise
            them itself.
        refused: Why the head cannot be kept, ``""`` where it can.
    """

    network: Network
    arrays: dict[str, np.ndarray]
    fields: dict[str, Any]
    contract: InputSpec | None
    takes: int | None
    refused: str

    @property
    def stated(self) -> dict[str, Any]:
        """The fields that the weights do not tell as well."""
        return {
            name: value
            for name, value in self.fields.items()
            if name not in ("depths", "widths", "in_channels", "classes")
        }

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of images."""
        return self.fields.get("input_size", (224, 224))

    @property
    def head(self) -> Step | None:
        """The classifier."""
        return self.network.head

    @property
    def activation(self) -> str | None:
        """The activation behind the classifier, None where there is none."""
        return None if self.network.end is None else str(self.network.end.values["name"])


@contextlib.contextmanager
def told_plainly(network: Network | None = None) -> Iterator[None]:
    """Turns what does not fit into an error of a checkpoint.

    Args:
        network: What was read of it before.

    Raises:
        CheckpointError: Something did not fit. The text names the first step that does not, and the nearest
            architecture.
    """
    try:
        yield
    except UnsupportedOperationError as reason:
        raise CheckpointError(f"{reason}.") from None
    except UnsupportedGraphError as reason:
        nearest_one = _nearest(network) if network is not None else ""
        raise CheckpointError(
            f"the graph must be that of a residual network. The first operation that does not fit is {reason}. "
            f"{nearest_one}"
        ) from None
    except ArgumentError as reason:
        raise CheckpointError(f"the blocks of the graph must make one network. Received: {reason}") from None


def assemble(lifted: lift_onnx.Lifted, remarks: list[str]) -> Assembled:
    """Finds the residual network in a graph of steps, and reads weights and architecture off it.

    Args:
        lifted: The steps.
        remarks: To which is added what had to be assumed.

    Raises:
        CheckpointError: The graph is not that of a residual network.
    """
    network = Network()
    with told_plainly(network):
        simplified = simplify.simplify(lifted.start, lifted.ends)
        structure.find(simplified, network)
        told = fields.read(network, lifted.start.size, remarks)
        arrays, norms = _arrays(network, remarks)
        told |= norms
        fields.compare(network, ArchitectureSpec(**told))
        contract, takes = _contract(network, told, remarks)
    refused = f"the head does not fit: {network.beyond}" if network.beyond else ""
    return Assembled(network, arrays, told, contract, takes, refused)


def _nearest(network: Network) -> str:
    if not network.blocks:
        return "No residual block was found before it."
    found = fields.shape(network)
    if any(width % found["groups"] for width in found["inner_widths"]):
        found["groups"] = 1
    spec = ArchitectureSpec(**found)
    name, differences = nearest(spec)
    told = f", which differs in {'; '.join(differences)}" if differences else ""
    return f"{len(network.blocks)} residual blocks were found before it; the nearest architecture is {name!r}{told}."


def _arrays(network: Network, remarks: list[str]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The weights, and the fields of norms and biases."""
    units = fields.named(network)
    found = fields.blocks(network)
    told: dict[str, Any] = {"norm": "none", "folded": False, "norm_epsilon": _EPSILON, "weight_standardization": False}
    bare = _without_norms(network)
    behind = {name: unit for name, unit in units.items() if id(unit) not in bare}
    if bare and not network.preactivated:
        told["shortcut_norm"] = False
    before: dict[str, Step | None] = {}
    if network.preactivated:
        before = {f"{name}_preact": block.preact for name, block in found.items() if block.preact_act is not None}
        before["post"] = network.post
    partly = [unit for unit in behind.values() if unit.norm is None or unit.norm.kind == "affine"]
    kinds = {_kind(step) for step in (*before.values(), *(unit.norm for unit in behind.values())) if step is not None}
    if len(kinds & {"batch", "group"}) > 1 or (partly and "group" in kinds):
        strange = next(step for step in (*before.values(), *(u.norm for u in behind.values())) if step is not None)
        raise UnsupportedGraphError(strange, "all norms must be of one kind, and all there or none")
    if partly:  # what is left is folded as well
        for unit in behind.values():
            unit.conv, unit.norm = _folded(unit), None
    norms: dict[str, Step | None] = {name: unit.norm for name, unit in behind.items() if unit.norm is not None}
    remains = any(step is not None for step in before.values())
    if norms or remains:
        told["norm"] = "group" if "group" in kinds else "batch"
        told["folded"] = bool(network.preactivated and not norms)
        norms |= before
    arrays, fields_of_norms = _of_norms(norms, units, found, told["norm"], remarks)
    told |= fields_of_norms
    arrays |= _of_convolutions(units, behind, told)
    arrays |= _of_attention(network)
    if partly:
        remarks.append(
            "batch norms behind convolutions are folded into these in the graph: they have a bias and no norm here"
        )
    if told["norm"] == "group" and network.preactivated:
        remarks.append("kernels are taken as the graph uses them; if they were standardised, they are so already")
    if network.head is not None:
        kernel, bias = network.head.values["kernel"], network.head.values["bias"]
        arrays["predictions/kernel"] = kernel
        arrays["predictions/bias"] = np.zeros(kernel.shape[1], np.float32) if bias is None else bias
        told["classes"] = kernel.shape[1]
    return arrays, told


def _without_norms(network: Network) -> set[int]:
    """The convolutions, by identity, behind which networks of this kind have no norm."""
    projections = [block.shortcut.projection for block in network.blocks if block.shortcut.projection]
    if not network.preactivated:
        alone = {id(unit) for unit in projections}
        others = [unit for unit in fields.named(network).values() if id(unit) not in alone]
        kept = all(unit.norm is not None and unit.norm.kind == "norm" for unit in others)
        return alone if kept and projections and not any(unit.norm for unit in projections) else set()
    ends = [*([] if network.stem_activated else [network.stem[-1]]), *(block.units[-1] for block in network.blocks)]
    return {id(unit) for unit in (*ends, *projections)}


def _kind(step: Step) -> str:
    return "affine" if step.kind == "affine" else "group" if "groups" in step.values else "batch"


def _folded(unit: ConvUnit) -> Step:
    if unit.norm is None:
        return unit.conv
    values = unit.norm.values
    if unit.norm.kind == "affine":
        return scaled_by(unit.conv, values["scale"], values["shift"])
    scale = values["gamma"] / np.sqrt(values["variance"].astype(np.float64) + values["epsilon"])
    return scaled_by(unit.conv, scale, values["beta"] - values["mean"] * scale)


def _of_norms(
    norms: dict[str, Step | None], units: Any, found: Any, kind: str, remarks: list[str]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Weights of norms, all with one epsilon, and the fields that say how they work."""
    if kind == "none":
        return {}, {}
    there = [step for step in norms.values() if step is not None and step.kind == "norm"]
    epsilon = Counter(step.values["epsilon"] for step in there).most_common(1)[0][0] if there else _EPSILON
    epsilon = float(f"{epsilon:.6g}")  # as it was before it became a number of 32 bits
    told: dict[str, Any] = {"norm_epsilon": epsilon}
    momenta = {float(f"{step.values['momentum']:.6g}") for step in there if "momentum" in step.values}
    if len(momenta) == 1 and 0 < min(momenta) < 1:
        told["norm_momentum"] = momenta.pop()
    groups = {step.values["groups"] for step in there} if kind == "group" else set()
    if kind == "group":
        if len(groups) != 1 or any(step is None or step.kind == "affine" for step in norms.values()):
            raise UnsupportedGraphError(
                there[0], f"all group norms must be there, with as many groups; they have {sorted(groups)}"
            )
        told["norm_groups"] = groups.pop()
    arrays: dict[str, np.ndarray] = {}
    for name, step in norms.items():
        weights = (
            _group_norm(step, epsilon) if kind == "group" else _batch_norm(step, _width(name, units, found), epsilon)
        )
        arrays |= {f"{name}_{'gn' if kind == 'group' else 'bn'}/{key}": array for key, array in weights.items()}
    if any(step is None or step.kind == "affine" for step in norms.values()):
        remarks.append(
            "batch norms before blocks are scales and shifts in the graph: here they have mean 0 and variance 1, and "
            "must stay frozen in training"
        )
    return arrays, told


def _width(name: str, units: dict[str, ConvUnit], found: dict[str, structure.Block]) -> int:
    """Channels that a norm normalises."""
    if name == "post":
        return list(found.values())[-1].width
    if name.endswith("_preact"):
        return int(units[f"{name.removesuffix('_preact')}_1"].conv.values["kernel"].shape[2])
    return units[name].conv.channels


def _batch_norm(step: Step | None, width: int, epsilon: float) -> dict[str, np.ndarray]:
    if step is not None and step.kind == "norm":
        values = step.values
        variance = values["variance"]
        if abs(values["epsilon"] - epsilon) > 1e-6 * epsilon:
            variance = (variance.astype(np.float64) + values["epsilon"] - epsilon).astype(np.float32)
        return {
            "gamma": values["gamma"],
            "beta": values["beta"],
            "moving_mean": values["mean"],
            "moving_variance": variance,
        }
    scale, shift = (np.ones(1), np.zeros(1)) if step is None else (step.values["scale"], step.values["shift"])
    return {
        "gamma": np.broadcast_to(scale * np.sqrt(1 + epsilon), (width,)).astype(np.float32),
        "beta": np.broadcast_to(shift, (width,)).astype(np.float32),
        "moving_mean": np.zeros(width, np.float32),
        "moving_variance": np.ones(width, np.float32),
    }


def _group_norm(step: Step | None, epsilon: float) -> dict[str, np.ndarray]:
    assert step is not None
    if abs(step.values["epsilon"] - epsilon) > 1e-6 * epsilon:
        raise UnsupportedGraphError(step, f"all group norms must have one epsilon, {epsilon}")
    return {"gamma": step.values["gamma"], "beta": step.values["beta"]}


def _of_convolutions(
    units: dict[str, ConvUnit], behind: dict[str, ConvUnit], told: dict[str, Any]
) -> dict[str, np.ndarray]:
    """Kernels, and biases where the architecture has them; ``conv_bias`` is added to the fields."""
    biased = {name for name, unit in units.items() if unit.conv.values["bias"] is not None}
    normalized = set() if told["folded"] else biased & set(behind)
    if not biased - set(behind) and not normalized:
        told["conv_bias"] = "none"
    else:
        told["conv_bias"] = "all" if normalized else "unnormalized"
    arrays = {}
    for name, unit in units.items():
        kernel, bias = unit.conv.values["kernel"], unit.conv.values["bias"]
        arrays[f"{name}_conv/kernel"] = kernel
        has = told["conv_bias"] == "all" or (told["folded"] if name in behind else told["conv_bias"] == "unnormalized")
        if has:
            arrays[f"{name}_conv/bias"] = np.zeros(kernel.shape[3], np.float32) if bias is None else bias
    return arrays


def _of_attention(network: Network) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    for name, block in fields.blocks(network).items():
        step = block.attention
        if step is not None and step.kind == "eca":
            arrays[f"{name}_eca_conv/kernel"] = step.values["kernel"]
        elif step is not None:
            for part in ("reduce", "expand"):
                kernel, bias = step.values[f"{part}_kernel"], step.values[f"{part}_bias"]
                arrays[f"{name}_se_{part}_conv/kernel"] = kernel[None, None]
                empty = np.zeros(kernel.shape[1], np.float32)
                arrays[f"{name}_se_{part}_conv/bias"] = empty if bias is None else bias
    return arrays


def _contract(network: Network, told: dict[str, Any], remarks: list[str]) -> tuple[InputSpec | None, int | None]:
    """The input contract, as far as the graph begins with one, and the largest value of the images that it takes."""
    channels, size = told["in_channels"], told.get("input_size", (224, 224))
    if not network.before:
        return None, None
    scale, shift, turned = np.ones(channels), np.zeros(channels), False
    for step in network.before:
        if step.kind == "flip":
            scale, shift, turned = scale[::-1], shift[::-1], not turned
        else:
            factor = step.values["scale"]
            scale, shift = scale * factor, shift * factor + step.values["shift"]
    if not np.all(np.isfinite([scale, shift])) or scale.min() <= 0:
        raise UnsupportedGraphError(network.before[0], "images must be scaled by positive numbers")
    by_255 = scale.max() < 0.2 or np.abs(shift / scale).max() > 2  # the mean that is taken off, in the images' unit
    remarks.append(
        sentence(
            f"images as the graph normalises them, from values of {'0..255' if by_255 else '0..1'}",
            "told from the size of its numbers",
            "input_spec",
        )
    )
    order: Literal["rgb", "bgr"] = "bgr" if turned else "rgb"
    contract = InputSpec(
        size=size,
        channels=channels,
        channel_order=order,
        scale=1.0 if by_255 else 1 / 255,
        mean=tuple(float(value) for value in -shift / scale),
        std=tuple(float(value) for value in 1 / scale),
    )
    return contract, 255 if by_255 else 1


def _habit(told: dict[str, Any], graph: OnnxGraph, size: tuple[int, int], remarks: list[str]) -> InputSpec | None:
    """What keras.applications does, for networks that TensorFlow exported and that stride as its own do."""
    if not graph.producer.startswith("tf2onnx") or told["in_channels"] != 3:
        return None
    if told["stride_in_stage"] == "last":
        found, how = TF, "scaled to -1..1"
    elif told["stride_in_block"] == "first":
        found, how = CAFFE, "BGR, less ImageNet's mean colour"
    else:
        return None
    why = "keras.applications' for networks that stride like this; the graph does not say so"
    remarks.append(sentence(f"images {how}", why, "input_spec"))
    return dataclasses.replace(found, size=size)


def _unused(tensors: Tensors, used: frozenset[str], ignore: Sequence[str]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Constants that nothing reads: those that are no weights, or are to be left out; the rest is left over."""
    leftover, left_out = {}, []
    for name, array in tensors.arrays.items():
        if name in used:
            continue
        patterns = {**LEFT_OUT, **dict.fromkeys(ignore, "as asked")}
        reason = next((why for pattern, why in patterns.items() if fnmatch.fnmatchcase(name, pattern)), None)
        if reason is None and array.dtype.kind != "f":
            reason = "whole numbers that nothing reads"
        if reason is None:
            leftover[name] = array
        else:
            left_out.append(f"left out {reason}: {name!r}")
    return leftover, left_out
