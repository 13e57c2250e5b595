"""Keras 3's ``.keras``: a zip of the model's configuration and its weights. The configuration is read as data: no layer
is made from it, and nothing in it is called."""

from __future__ import annotations

import json
import os
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from resfit.errors import ArgumentError, CheckpointError
from resfit.networks.detection import kinds
from resfit.networks.spec import ArchitectureSpec
from resfit.preprocessing import InputSpec
from resfit.storage import bounded_json
from resfit.weights import archives
from resfit.weights.formats import hdf5, keras_config, keras_weights
from resfit.weights.formats.base import Tensors, register_format

_CONFIG, _WEIGHTS, _METADATA = "config.json", "model.weights.h5", "metadata.json"
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_MOST_METADATA = 1_000_000
#: What resfit writes beside the model.
OWN_MEMBER = "resfit.json"
_MOST_JSON = 50_000_000
_MOST_MEMBERS = 100_000
_MOST_EXPANSION = 4
_FREE_BYTES = 200_000_000
_ENCRYPTED = 0x1


@register_format("Keras", suffixes=(".keras",), order=20, runner="keras", written=(".keras",))
def read(path: Path) -> Tensors:
    """Reads the weights and the configuration of a model.

    Args:
        path: The file.

    Returns:
        Arrays under the names of :func:`resfit.weights.formats.keras_weights.read`; ``config`` has the layers'
        configurations by name under ``"keras_layers"``, and ``graph`` is a
        :class:`resfit.weights.formats.keras_config.SavedModel`.

    Raises:
        CheckpointError: The file is missing, damaged, declares more than it holds, or refers to something outside
            itself.
    """
    path = Path(path)
    about = own_metadata(path)
    with hdf5.told(path), _opened(path) as archive:
        config = json.loads(_content(archive, _member(archive, _CONFIG), _MOST_JSON))
        places = keras_config.places(config)
        version = _version(archive)
        member = _member(archive, _WEIGHTS)
        if member.compress_type == zipfile.ZIP_STORED:  # as Keras writes it: read where it lies
            found = keras_weights.read_groups(path, _offset(path, member), member.file_size, places)
        else:
            with tempfile.TemporaryDirectory(prefix="resfit-") as folder:
                unpacked = Path(folder, _WEIGHTS)
                unpacked.write_bytes(_content(archive, member, _room(path)))
                found = keras_weights.read_groups(unpacked, None, None, places)
    arrays, other, groups = found
    layers = keras_config.config_layers(config)
    variables = {places[group]: names for group, names in groups.items() if group in places}
    graph = keras_config.SavedModel(config, variables, version, other, about is not None)
    stated: dict[str, Any] = {"keras_layers": layers} if layers else {}
    if about is None:
        return Tensors(path, arrays, stated, graph=graph)
    spec, input_spec, class_names = about
    return Tensors(path, arrays, {**stated, "resfit": spec}, input_spec, class_names, graph)


def own_metadata(
    path: Path,
) -> tuple[ArchitectureSpec | kinds.AnyDetectorSpec, InputSpec | None, tuple[str, ...] | None] | None:
    """Returns what resfit writes beside the model: architecture, input contract, class names; None in other files.

    Args:
        path: The file.

    Raises:
        CheckpointError: The file is missing or damaged, or this is not what resfit writes.
    """
    with hdf5.told(path), _opened(path) as archive:
        if OWN_MEMBER not in archive.namelist():
            return None
        try:
            about = json.loads(_content(archive, _member(archive, OWN_MEMBER), _MOST_JSON))
            contract, names = about["input_spec"], about["class_names"]
            return (
                (kinds if "backbone" in about["spec"] else ArchitectureSpec).from_dict(about["spec"]),
                InputSpec.from_dict(contract) if contract else None,
                tuple(map(str, names)) if isinstance(names, list) and names else None,
            )
        except (ArgumentError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{OWN_MEMBER} must be what resfit writes. Received: {error}.") from error


def version(path: Path) -> int:
    """Returns the version of Keras that wrote a file, 2 or 3; 3 where it does not say.

    Args:
        path: The file.

    Raises:
        CheckpointError: It is no archive.
    """
    with hdf5.told(path), _opened(path) as archive:
        return _version(archive)


def _version(archive: zipfile.ZipFile) -> int:
    """Returns the version of Keras that wrote an archive, 2 or 3."""
    try:
        about = json.loads(_content(archive, _member(archive, _METADATA), _MOST_JSON))
    except (CheckpointError, ValueError):
        return 3
    return 2 if isinstance(about, dict) and str(about.get("keras_version")).startswith("2.") else 3


def check(path: Path) -> tuple[Any, int]:
    """Makes sure that Keras can open a file in bounded time and memory, without making anything of it.

    Args:
        path: The file.

    Returns:
        The configuration of the model, and how many numbers the weights are.

    Raises:
        CheckpointError: It is missing, damaged, holds or unpacks to more than a network, or refers to something outside
            itself.
    """
    path = Path(path)
    with hdf5.told(path), _opened(path) as archive:
        room = _room(path)
        names = set()
        for member in archive.infolist():
            name = member.filename
            if member.flag_bits & _ENCRYPTED or member.compress_type not in _METHODS or name in names:
                raise CheckpointError(f"members must be plain, and each be there once. Received: {name!r:.100}.")
            archives.parts(name)
            names.add(name)
            room -= member.file_size
        if room < 0:
            raise CheckpointError(
                f"the archive must unpack to at most {_room(path)} bytes. Received: {_room(path) - room}."
            )
        for name, most in ((_METADATA, _MOST_METADATA), (_CONFIG, _MOST_JSON)):
            config = bounded_json.parse(_content(archive, _member(archive, name), most), allow_nan=True)
        member = _member(archive, _WEIGHTS)
        if member.compress_type == zipfile.ZIP_STORED:
            return config, hdf5.count_numbers(path, _offset(path, member), member.file_size)
        with tempfile.TemporaryDirectory(prefix="resfit-") as folder:
            unpacked = Path(folder, _WEIGHTS)
            unpacked.write_bytes(_content(archive, member, _room(path)))
            return config, hdf5.count_numbers(unpacked)


def _room(path: Path) -> int:
    """Returns the bytes that an archive may unpack to: weights hardly shrink."""
    size = path.stat().st_size
    return min(_MOST_EXPANSION * size + _FREE_BYTES, 1100 * size)


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            if len(archive.infolist()) > _MOST_MEMBERS:
                raise CheckpointError(f"an archive must have at most {_MOST_MEMBERS} members. Received: more.")
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise CheckpointError(f"the file must be .keras as Keras writes it, and whole. Received: {error}.") from error


def _member(archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
    found = [member for member in archive.infolist() if member.filename == name]
    if len(found) != 1 or found[0].flag_bits & _ENCRYPTED:
        raise CheckpointError(f"the archive must hold {name}, once and unencrypted. Received: {len(found)} of it.")
    return found[0]


def _offset(path: Path, member: zipfile.ZipInfo) -> int:
    """Returns where the bytes of a stored member begin: after a header of 30 bytes, its name and what else it has."""
    with path.open("rb") as file:
        file.seek(member.header_offset)
        header = file.read(30)
        if len(header) != 30 or header[:4] != b"PK\x03\x04":
            raise CheckpointError(f"the archive must hold {_WEIGHTS} where it says. Received: other bytes there.")
        offset = member.header_offset + 30 + sum(struct.unpack("<HH", header[26:]))
        if member.file_size != member.compress_size or offset + member.file_size > os.fstat(file.fileno()).st_size:
            raise CheckpointError(f"the archive must hold all it declares. Received: {_WEIGHTS} of other sizes.")
    return offset


def _content(archive: zipfile.ZipFile, member: zipfile.ZipInfo, limit: int) -> bytes:
    if member.file_size > limit:
        raise CheckpointError(
            f"{member.filename} must unpack to at most {limit} bytes. Received: {member.file_size} bytes in "
            f"{member.compress_size}."
        )
    with archive.open(member) as file:
        content: Any = file.read(limit + 1)
    if len(content) != member.file_size:
        raise CheckpointError(f"the archive must hold all it declares. Received: {member.filename} cut off.")
    return bytes(content)
