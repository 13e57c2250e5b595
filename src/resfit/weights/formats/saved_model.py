"""Weights of TensorFlow: SavedModels (modules of TensorFlow Hub too), frozen graphs, and checkpoints of every age.

The variables are read here; the graph of a SavedModel is read as data by :mod:`resfit.weights.formats.graph_def`, where
it is needed. Nothing is run.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resfit.errors import CheckpointError
from resfit.weights.formats import graph_def, tf_bundle, wire
from resfit.weights.formats.base import Tensors, register_format

#: The file of a SavedModel that holds its graph, in one form or the other.
GRAPHS = ("saved_model.pb", "saved_model.pbtxt")
_VARIABLES = "variables/variables.index"
_STATE = "checkpoint"
_DATA = re.compile(r"(.+)\.data-\d{5}-of-\d{5}")
# Where an object's values stand among the names of an object-based checkpoint.
_ATTRIBUTE = re.compile(r"/\.ATTRIBUTES/[^/]+$")
_OBJECTS = "_CHECKPOINTABLE_OBJECT_GRAPH"
# Parts of a way that say nothing of the program: Keras' lists of all variables, and layers by their place, where they
# may have a name as well.
_SAYS_NOTHING = re.compile(r"(?:.*_)?variables(?:_list)?|keras_api|layer-\d{1,6}")
_DEEPEST_WAY = 32
_LONGEST_PART = 100
# ResNet-200 has some 10,000 with an optimiser's.
_MOST_OBJECTS = 200_000
#: The mark of a module in the TF1 Hub format, the only SavedModels with a graph without tags.
V1_MARK = "tfhub_module.pb"
# A node that is a variable, in a binary graph and in one of text.
_VARIABLE_NODES = re.compile(rb'\x12(\x0bVarHandleOp|\x0aVariableV2|\x08Variable)|op: "(VarHandleOp|Variable)')
_MOST_STATE = 1_000_000


@dataclasses.dataclass(frozen=True)
class Objects:
    """What is known of the variables beside their names; the ``graph`` of the tensors.

    Attributes:
        paths: For each name, the way to the variable through the objects of the program that saved it, such as
            ``"backbone/layer_with_weights-0/kernel"``. The name itself where the checkpoint is not object-based.
        is_saved_model: Whether they are those of a SavedModel.
        other: Names of what is no number, and was not read.
        program: The file with the graph, where there is one.
        children: Of each object of the checkpoint, what it calls others, and which these are.
        own: Of each of these objects, the names of its variables here.
    """

    paths: Mapping[str, str]
    is_saved_model: bool
    other: tuple[str, ...]
    program: Path | None = None
    children: tuple[Mapping[str, int], ...] = ()
    own: tuple[tuple[str, ...], ...] = ()


def recognises(path: Path) -> bool:
    """Whether a path is a SavedModel or a checkpoint: a folder, one of its files, or what their names begin with.

    Args:
        path: The path; the content of a file is not checked, but for its last bytes.
    """
    path = Path(path)
    if path.is_dir():
        return has_graph(path) or (path / _VARIABLES).is_file() or _stated(path) is not None or bool(_indices(path))
    if path.is_file():
        known = path.name in GRAPHS or bool(_DATA.fullmatch(path.name)) or tf_bundle.is_table(path)
        return known or _is_frozen(path)
    return path.name != "" and path.with_name(f"{path.name}.index").is_file()


def has_graph(folder: Path) -> bool:
    """Whether a folder has the file that makes it a SavedModel.

    Args:
        folder: The folder; it may be missing.
    """
    return any((folder / name).is_file() for name in GRAPHS)


def _newest(found: Sequence[str], present: Sequence[str]) -> list[str]:
    """The files of the latest of several checkpoints, by their names."""
    stem = max(found, key=lambda name: (len(name), name)).removesuffix(".index")
    return [name for name in present if name == f"{stem}.index" or name.startswith(f"{stem}.data-")]


@register_format(
    "TensorFlow",
    suffixes=(".index",),
    recognises=recognises,
    layouts=(("saved_model.pb", r"variables/.*|assets/.*"),),
    order=30,
    choose=_newest,
    runner="tensorflow",
)
def read(path: Path) -> Tensors:
    """Reads the variables of a SavedModel or a checkpoint.

    Args:
        path: The folder of a SavedModel or of checkpoints (the latest one is taken); or the ``.index`` file of a
            checkpoint, what its files' names begin with, or the one file of a checkpoint of the first format.

    Returns:
        Arrays under the names that the variables had in the program (``"resnet_v2_50/conv1/weights"``), or under the
        way to them where those names are missing or not unique. ``graph`` is an :class:`Objects`.

    Raises:
        CheckpointError: A file is missing or damaged, or there are no variables.
    """
    path = Path(path)
    if path.is_file() and _is_frozen(path):
        return Tensors(path, {}, graph=Objects({}, False, (), path))
    folder = path.parent if path.name in GRAPHS and path.is_file() else path
    if has_graph(folder) and not (folder / _VARIABLES).is_file() and _has_constants(folder / GRAPHS[0]):
        return Tensors(path, {}, graph=Objects({}, True, (), folder / GRAPHS[0]))  # its weights may be constants
    place, is_saved_model = _place(path)
    if place.suffix == ".index":
        found = tf_bundle.read_bundle(place)
    else:
        found = tf_bundle.read_single_file(place)
    try:
        full_names, ways, children, keys = _objects(found.texts.get(_OBJECTS, b""), found.arrays)
    except ValueError as error:
        raise CheckpointError(f"{place}: the graph of objects must be whole. Received: {error}.") from error
    arrays, paths, named = _named(found.arrays, full_names, ways)
    if not arrays:
        raise CheckpointError(f"{place}: a checkpoint must hold variables. Received: none.")
    texts = tuple(name for name in found.texts if name != _OBJECTS)
    program = place.parents[1] / GRAPHS[0] if is_saved_model else None
    graph = Objects(
        paths,
        is_saved_model,
        (*texts, *found.other),
        program if program is not None and program.is_file() else None,
        tuple(dict(one) for one in children),
        tuple(tuple(named[key] for key in own if key in named) for own in keys),
    )
    return Tensors(path, arrays, graph=graph)


def lost(folder: Path) -> list[str]:
    """Returns the files that a SavedModel speaks of and that are not there, or are cut short.

    Args:
        folder: The folder of ``saved_model.pb``. Of a graph in text, the assets are not looked for.
    """
    try:
        graph = next(folder / name for name in GRAPHS if (folder / name).is_file())
        data = graph.read_bytes()
        wanted, has_variables = set(), bool(_VARIABLE_NODES.search(data))
        if graph.suffix == ".pb":
            meta_graphs = [wire.view(value) for number, value in wire.fields(memoryview(data)) if number == 2]
            if not meta_graphs:
                return [graph.name]
            for meta_graph in meta_graphs:
                parts = [(number, wire.view(value)) for number, value in wire.fields(meta_graph)]
                has_variables |= any(number == 7 for number, _ in parts)  # of TensorFlow 2: objects are in the index
                tags = [tag for number, about in parts if number == 1 for key, tag in wire.fields(about) if key == 4]
                wanted |= set() if tags else {V1_MARK}
                assets = [name for number, part in parts if number == 6 for key, name in wire.fields(part) if key == 2]
                wanted |= {f"assets/{wire.text(name)}" for name in assets}
        missing = sorted(name for name in wanted if not (folder / name).is_file())
        if has_variables:
            missing += [f"variables/{name}" for name in tf_bundle.lost(folder / _VARIABLES)]
        return missing
    except (OSError, ValueError, StopIteration):
        return [GRAPHS[0]]


def _place(path: Path) -> tuple[Path, bool]:
    """Returns the file with the table of names, and whether it is that of a SavedModel."""
    if path.name in GRAPHS and path.is_file():
        path = path.parent
    if path.is_dir():
        if (path / _VARIABLES).is_file():
            return path / _VARIABLES, True
        if has_graph(path):
            raise CheckpointError(
                f"{path}: a SavedModel must have variables, or a graph whose weights are constants. Received: no "
                f"{_VARIABLES}."
            )
        return _latest(path), False
    if data := _DATA.fullmatch(path.name):
        path = path.with_name(data[1])
    beside = path.with_name(f"{path.name}.index") if path.name else path
    if not path.is_file() and beside.is_file():
        path = beside
    if not path.is_file():
        raise CheckpointError(f"a checkpoint's files must all exist. Received: no {beside}.")
    return path, path.parent.name == "variables" and path.name == "variables.index"


def _latest(folder: Path) -> Path:
    """The newest checkpoint of a folder, as the file ``checkpoint`` in it says; the only one where none says so."""
    stated = _stated(folder)
    if stated is not None:
        return stated
    indices = _indices(folder)
    if len(indices) != 1:
        names = ", ".join(sorted(index.name for index in indices)[:5]) or "none"
        raise CheckpointError(
            f"{folder}: a folder must hold one checkpoint, or a file 'checkpoint' that says which. Received: {names}. "
            "Pass one of them."
        )
    return indices[0]


def _stated(folder: Path) -> Path | None:
    """The checkpoint that the file ``checkpoint`` names, if it is in the folder, wherever it once stood."""
    try:
        with open(folder / _STATE, "rb") as file:
            text = file.read(_MOST_STATE).decode("utf-8", "replace")
    except OSError:
        return None
    stated = re.search(r'^model_checkpoint_path:\s*"([^"\n\0]{1,200})"', text, re.MULTILINE)
    name = re.split(r"[/\\]", stated[1])[-1] if stated else ""
    places = (folder / f"{name}.index", folder / name)
    return next((place for place in places if name not in ("", ".", "..") and tf_bundle.is_table(place)), None)


def _indices(folder: Path) -> list[Path]:
    try:
        return [entry for entry in folder.iterdir() if entry.suffix == ".index" and tf_bundle.is_table(entry)]
    except OSError:
        return []


def _has_constants(graph: Path) -> bool:
    """Whether a graph is there that reads no variables."""
    try:
        data = graph.read_bytes()
    except OSError:
        return False
    return bool(data) and not _VARIABLE_NODES.search(data)


def _is_frozen(path: Path) -> bool:
    return path.suffix.lower() == ".pb" and path.name not in (*GRAPHS, V1_MARK) and graph_def.is_frozen(path)


def _objects(
    graph: bytes, wanted: Container[str]
) -> tuple[dict[str, str], dict[str, str], list[list[tuple[str, int]]], list[list[str]]]:
    """Reads ``trackable_object_graph.proto``: the objects of a program, and what they call each other.

    Args:
        graph: Its bytes.
        wanted: The names of variables in the checkpoint.

    Returns:
        By the names of variables in the checkpoint: their names in the program; and the ways to them that say most.
        What each object calls others, and the names of its variables in the checkpoint.
    """
    full_names: dict[str, str] = {}
    children: list[list[tuple[str, int]]] = []
    keys: list[list[str]] = []
    for number, node in wire.fields(memoryview(graph)):
        if number != 1:
            continue
        if len(children) == _MOST_OBJECTS:
            raise ValueError(f"more than {_MOST_OBJECTS} objects")
        children.append([])
        keys.append([])
        for part, value in wire.fields(wire.view(node)):
            if part not in (1, 2):
                continue
            told = dict(wire.fields(wire.view(value)))
            if part == 1 and 2 in told:
                children[-1].append((wire.text(told[2]), wire.number(told.get(1, 0))))
            elif part == 2 and 3 in told:
                key = wire.text(told[3])
                if key not in wanted:
                    continue
                keys[-1].append(key)
                if 2 in told:
                    full_names[key] = wire.text(told[2]).removesuffix(":0")
    return full_names, _ways(children, keys), children, keys


def _ways(children: Sequence[Sequence[tuple[str, int]]], keys: Sequence[Sequence[str]]) -> dict[str, str]:
    """The shortest ways to variables, by their names in the checkpoint, without the parts that say nothing."""
    ways: dict[int, tuple[str, ...]] = {0: ()} if children else {}
    pending = collections.deque(ways)
    while pending:
        node = pending.popleft()
        if len(ways[node]) == _DEEPEST_WAY:
            continue
        for name, child in children[node]:
            known = 0 <= child < len(children) and len(name) <= _LONGEST_PART
            if known and child not in ways and not _SAYS_NOTHING.fullmatch(name):
                ways[child] = (*ways[node], name)
                pending.append(child)
    return {key: "/".join(way) for node, way in ways.items() for key in keys[node]}


def _named(
    arrays: Mapping[str, np.ndarray], full_names: Mapping[str, str], ways: Mapping[str, str]
) -> tuple[dict[str, np.ndarray], dict[str, str], dict[str, str]]:
    """Names arrays as the program did, and says which name each has. One that was saved twice is kept once."""
    groups: dict[str, list[str]] = {}
    for key in arrays:
        groups.setdefault(full_names.get(key) or _path(key), []).append(key)
    named: dict[str, np.ndarray] = {}
    paths: dict[str, str] = {}
    names: dict[str, str] = {}
    for name, keys in groups.items():
        alike = all(_equal(arrays[keys[0]], arrays[key]) for key in keys[1:])
        for key in keys[:1] if alike else keys:
            own = name if alike else _path(key)
            if own in named:
                raise CheckpointError(f"a name must stand for one variable. Received: {own!r} for several.")
            named[own] = arrays[key]
            paths[own] = _way(key, ways)
            names |= {one: own for one in (keys if alike else [key])}
    return named, paths, names


def _way(key: str, ways: Mapping[str, str]) -> str:
    """The way that the checkpoint's own name is; another one only where that says nothing."""
    path = _path(key)
    mute = any(_SAYS_NOTHING.fullmatch(part) for part in path.split("/"))
    return ways.get(key, path) if mute else path


def _path(key: str) -> str:
    return _ATTRIBUTE.sub("", key)


def _equal(one: Any, other: Any) -> bool:
    return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=True)
