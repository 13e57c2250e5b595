"""A residual network in a TensorFlow source: read off its graph where there is one, else told by names.

The graph of a SavedModel states what the names of its variables do not, so that it decides; names mean nothing then. A
program that no residual network is (its norms are of a kind that is written out in many operations, say) is still told
by names, where these are of a program that is known; that is said.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from resfit.errors import CheckpointError
from resfit.weights.assumption import sentence
from resfit.weights.conventions import tensorflow
from resfit.weights.conventions.base import Translation
from resfit.weights.formats import graph_def
from resfit.weights.formats.base import Tensors
from resfit.weights.formats.graph_def import GraphProgram, GraphPrograms
from resfit.weights.formats.saved_model import Objects
from resfit.weights.graph import lift_tf
from resfit.weights.graph import translate as graphs
from resfit.weights.graph.lift_onnx import Lifted
from resfit.weights.graph.steps import in_order
from resfit.weights.heads import End

CONVENTION = "tensorflow-graph"

# Keras keeps the activation of a classifier in the graph; what other programs save ends in logits.
_OF_KERAS = ("keras", "keras-legacy")
# Fields that a graph does not state, though it is read as if it did: their values are worked into its numbers.
_WORKED_IN = ("weight_standardization", "weight_standardization_epsilon", "norm_momentum", "folded")


def translate(
    tensors: Tensors, *, prefix: str | None = None, averaged: bool = False, ignore: Sequence[str] = ()
) -> Translation:
    """Brings the variables of a TensorFlow source to canonical names.

    Args:
        tensors: What :func:`resfit.weights.formats.saved_model.read` returned, with a program.
        prefix: As for :func:`resfit.weights.conventions.tensorflow.translate`, which then tells the network by names;
            or an input or output of the graph.
        averaged: As there.
        ignore: As there.

    Raises:
        CheckpointError: No residual network is there.
    """
    named, problem = None, None
    if tensors.arrays:
        try:
            named = tensorflow.translate(tensors, prefix=prefix, averaged=averaged, ignore=ignore)
        except CheckpointError as error:
            problem = error
            if averaged:
                raise
    if named is not None and (prefix is not None or averaged):
        return named
    try:
        return _read(tensors, named, prefix)
    except CheckpointError as error:
        if named is None:
            raise CheckpointError(f"{error} {_by_names(problem)}".rstrip()) from error
        remark = f"the graph is not used, and the network is told by its names: {str(error).rstrip('.')}"
        return dataclasses.replace(named, remarks=(*named.remarks, remark))


def _by_names(problem: CheckpointError | None) -> str:
    return f"By the names of its variables: {problem}" if problem is not None else ""


def _read(tensors: Tensors, named: Translation | None, prefix: str | None) -> Translation:
    """Reads the first program of a file that is a residual network.

    Raises:
        CheckpointError: None is.
    """
    objects: Objects = tensors.graph
    assert objects.program is not None
    programs = graph_def.read(objects.program)
    owners = _owners(programs, objects)
    problem: CheckpointError | None = None
    for program in programs.programs:
        remarks: list[str] = []
        arrays = _variables(program, owners, tensors.arrays)
        try:
            with graphs.told_plainly():
                held = {value: tensors.arrays[name] for value, name in arrays.items()}
                lifted = lift_tf.lift(program.graph, held, prefix)
            lifted, unused = main_end(lifted)
            found = graphs.assemble(lifted, remarks)
        except CheckpointError as error:
            problem = problem or error
            continue
        remarks += unused
        if program.name not in ("", "serving_default") and len(programs.programs) > 1:
            remarks.append(f"of the ways through the graph, {program.name!r} is read")
        used = {name for value, name in arrays.items() if value in lifted.names}
        return _translation(found, remarks, named, sorted(set(tensors.arrays) - used))
    raise problem or CheckpointError("the graph must hand out what it makes of images. Received: no way through it.")


def _owners(programs: GraphPrograms, objects: Objects) -> dict[int, str]:
    """The names of variables by the objects of the program that they are.

    The program and the checkpoint describe the same objects, each with numbers of its own: both are walked through by
    what objects call each other.
    """
    if not programs.children or not objects.children:
        return {}
    found: dict[int, str] = {}
    pairs = [(0, 0)]
    seen = {0}
    while pairs:
        here, there = pairs.pop()
        if 0 <= there < len(objects.own) and len(objects.own[there]) == 1:
            found[here] = objects.own[there][0]
        known = objects.children[there] if 0 <= there < len(objects.children) else {}
        for name, child in programs.children[here].items():
            if name in known and child not in seen and 0 <= child < len(programs.children):
                seen.add(child)
                pairs.append((child, known[name]))
    return found


def _variables(program: GraphProgram, owners: Mapping[int, str], arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
    """The names of the variables that values of a program are."""
    found = {value: owners[place] for value, place in program.handles.items() if place in owners}
    for node in program.graph.nodes:
        if node.op in graph_def.VARIABLES and node.name not in found:
            for name in (str(node.attributes.get("shared_name") or ""), node.name):
                if name in arrays:
                    found[node.name] = name
                    break
    return found


def main_end(lifted: Lifted) -> tuple[Lifted, list[str]]:
    """Leaves out outputs on the way to others, such as pooled features beside logits.

    Args:
        lifted: A graph as steps.

    Returns:
        The graph with what is left, and a sentence that says so.
    """
    if len(lifted.ends) == 1:
        return lifted, []
    last = []
    for number, end in enumerate(lifted.ends):
        others = [one for place, one in enumerate(lifted.ends) if place != number and one is not end]
        if end not in [one for one in lifted.ends[:number]] and not any(end in in_order([one]) for one in others):
            last.append(end)
    if len(last) != 1 or len(lifted.ends) == 1:
        return lifted, []
    return dataclasses.replace(lifted, ends=tuple(last)), [
        f"of {len(lifted.ends)} outputs the last is read, {last[0].node}; the others are made on the way to it"
    ]


def _has_logits(arrays: Mapping[str, np.ndarray], end: End) -> bool:
    return "predictions/kernel" in arrays and end.activation == "linear"


def _translation(
    found: graphs.Assembled, remarks: list[str], named: Translation | None, unused: list[str]
) -> Translation:
    told = dict(found.stated)
    arrays = dict(found.arrays)
    contract = found.contract
    if contract is not None and len(set(contract.std)) == 1:  # as one number that all are divided by states it
        std = contract.std[0]
        means = tuple(mean / std for mean in contract.mean)
        contract = dataclasses.replace(contract, scale=contract.scale / std, mean=means, std=(1.0,) * len(means))
    end = End(found.activation or "linear", None, found.refused, found.takes)
    assumed: tuple[str, ...] = ()
    left_out: list[str] = []
    if named is not None:
        extra = {name: value for name, value in named.facts.items() if name not in told or name in _WORKED_IN}
        told |= {name: value for name, value in extra.items() if name not in ("weight_standardization", "folded")}
        told.setdefault("input_size", named.facts.get("input_size", told.get("input_size")))
        of_images = tuple(text for text in named.remarks if text.startswith("images "))
        if contract is None:
            contract = named.input_spec
        remarks += [text for text in named.remarks if contract is named.input_spec or text not in of_images]
        left_out += named.left_out
        if found.network.beyond is not None and "predictions/kernel" in named.arrays:
            arrays |= {name: array for name, array in named.arrays.items() if name.startswith("predictions/")}
            why = f"by its name; the graph goes on otherwise: {found.network.beyond}"
            remarks.append(sentence("the classifier is the source's", why, "include_top"))
            end = dataclasses.replace(end, refused="")
    elif unused:
        left_out.append(f"left out what the graph does not use: {tensorflow.few(unused)}")
    if named is not None and named.convention not in _OF_KERAS and _has_logits(arrays, end):
        why = "the graph hands out what the classifier makes, without an activation; None does the same"
        remarks.append(sentence("classifier_activation='softmax'", why, "classifier_activation"))
        end = dataclasses.replace(end, activation="softmax")
    told = {name: value for name, value in told.items() if value is not None or name not in ("input_size",)}
    return Translation(
        CONVENTION if named is None else named.convention,
        "" if named is None else named.prefix,
        arrays,
        told,
        {},
        tuple(dict.fromkeys(left_out)),
        tuple(dict.fromkeys(remarks)),
        contract,
        end=end,
        assumed=assumed,
    )
