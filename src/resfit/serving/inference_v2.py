"""The Open Inference Protocol, version 2, as Triton and KServe speak it over HTTP, with its binary data extension.

A model has one input, ``images``: numbers of the shape ``(n, height, width, channels)``, RGB 0..255, or ``BYTES`` of
the shape ``(n)``, encoded files. Its outputs are ``scores``, ``label`` (where an image may have several labels, all
that are decided on, with the separator that the metadata state between them) and, where it is asked for, ``features``.
There are no routes that load or unload a model.
"""

from __future__ import annotations

import dataclasses
import math
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response

from resfit.serving import wire
from resfit.serving.adapter import Served
from resfit.serving.context import (
    Context,
    first_problem,
    json_ok,
    json_request,
    json_response,
    not_found,
    note,
    responses,
    whole_number,
)
from resfit.serving.json_reader import Document, held
from resfit.serving.pipeline import Source
from resfit.serving.problems import Problem, malformed
from resfit.serving.repository import NotServed, Version
from resfit.serving.settings import ServerSettings

#: Numbers that an image may consist of, by the protocol's names.
DATATYPES: dict[str, str] = {
    "UINT8": "<u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "INT8": "<i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
}
#: Header with the length of the JSON in a body that goes on with binary data.
HEADER = "Inference-Header-Content-Length"
INPUT = "images"
#: Extensions of the protocol that are spoken here, by Triton's names.
EXTENSIONS = ("binary_tensor_data", "classification", "model_configuration")
_FEATURES = "features"
_SCHEMA = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {"type": "string"},
        "parameters": {"type": "object"},
        "inputs": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["name", "shape", "datatype"],
                "properties": {
                    "name": {"type": "string", "enum": [INPUT]},
                    "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
                    "datatype": {"type": "string", "enum": [*DATATYPES, "BYTES"]},
                    "parameters": {"type": "object"},
                    "data": {"type": "array", "items": {}},
                },
            },
        },
        "outputs": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name"],
                "properties": {"name": {"type": "string", "example": "scores"}, "parameters": {"type": "object"}},
            },
        },
    },
}
_EXAMPLE = {"inputs": [{"name": INPUT, "shape": [1], "datatype": "BYTES", "data": ["<base64 of a file>"]}]}


@dataclasses.dataclass(frozen=True)
class _Output:
    """An output that is asked for, and how it is to be written; with `classes`, as the greatest of its values."""

    name: str
    binary: bool
    classes: int = 0


def router(context: Context) -> APIRouter:
    """Returns the routes.

    Args:
        context: The server's parts.
    """
    routes = APIRouter(tags=["Open Inference Protocol v2"])

    async def server() -> Response:
        """Says what this server is."""
        import resfit

        return json_response({"name": "resfit", "version": resfit.__version__, "extensions": list(EXTENSIONS)})

    async def live() -> Response:
        """Says that the server runs."""
        return json_response({"live": True})

    async def ready() -> Response:
        """Says whether the models are loaded and warm, and the server is not about to end."""
        return json_response({"ready": context.is_ready}, 200 if context.is_ready else 503)

    plain: tuple[tuple[str, Callable[..., Any]], ...] = (
        ("/v2", server),
        ("/v2/health/live", live),
        ("/v2/health/ready", ready),
    )
    for path, handler in plain:
        routes.add_api_route(
            path,
            handler,
            methods=["GET"],
            responses={**json_ok({"type": "object"}, "The answer."), **responses()},
            operation_id=f"v2_{handler.__name__}",
        )
    for place, is_numbered in (("/v2/models/{model}", False), ("/v2/models/{model}/versions/{version}", True)):
        _add(routes, context, place, is_numbered)
    return routes


def _add(routes: APIRouter, context: Context, place: str, is_numbered: bool) -> None:
    def leased(request: Request) -> Any:
        values = request.path_params
        model, version = values["model"], whole_number(values["version"]) if is_numbered else None
        try:
            context.repository.number(model, version)
        except NotServed as error:
            numbered = "" if version is None else f" version {version}"
            raise not_found(error, f"Request for unknown model: '{model[:128]}'{numbered} is not found.") from None
        return context.version(request, model, version)

    async def metadata(request: Request) -> Response:
        """Says what a model takes and gives."""
        with leased(request) as version:
            return json_response(_metadata(context, version))

    async def config(request: Request) -> Response:
        """Says how a model is served, as Triton's model configuration does."""
        with leased(request) as version:
            return json_response(_configuration(context, version))

    async def ready(request: Request) -> Response:
        """Says whether a model can be asked."""
        with leased(request) as version:
            return json_response({"name": version.model, "ready": True})

    async def infer(request: Request) -> Response:
        """Answers for images, in JSON or with binary data."""
        with leased(request) as version:
            return await _infer(context, request, version)

    numbered = [{"name": "version", "in": "path", "required": True, "schema": {"type": "string"}}]
    named = [{"name": "model", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}]
    parameters = {"parameters": named + (numbered if is_numbered else [])}
    rows: tuple[tuple[str, Callable[..., Any], str, dict[str, Any]], ...] = (
        ("", metadata, "GET", {}),
        ("/config", config, "GET", {}),
        ("/ready", ready, "GET", {}),
        ("/infer", infer, "POST", json_request(_SCHEMA, _EXAMPLE)),
    )
    for ending, handler, method, more in rows:
        routes.add_api_route(
            place + ending,
            handler,
            methods=[method],
            responses={**json_ok({"type": "object"}, "The answer."), **responses()},
            openapi_extra={**parameters, **more},
            operation_id=f"v2_model_{handler.__name__}" + ("_version" if is_numbered else ""),
        )


def _metadata(context: Context, version: Version) -> dict[str, Any]:
    served = version.served
    return {
        "name": version.model,
        "versions": [str(number) for number in sorted(context.repository.models.get(version.model, {}))],
        "platform": f"resfit_{served.engine}",
        "inputs": [{"name": INPUT, "datatype": "FP32", "shape": [-1, *served.shape]}],
        "outputs": [
            *(
                {"name": name, "datatype": _datatype(served, name), "shape": [-1, *shape]}
                for name, shape in served.outputs.items()
            ),
            *({"name": name, "datatype": "BYTES", "shape": [-1], **_separated(served)} for name in served.text_outputs),
            {"name": "features", "datatype": "FP32", "shape": [-1, served.features]},
        ],
    }


def _datatype(served: Served, name: str) -> str:
    """Returns the protocol's name of the numbers of an output."""
    return "INT32" if name in served.integers else "FP32"


def _separated(served: Served) -> dict[str, Any]:
    """Returns what stands between labels in the output ``label``, where an image may have several."""
    return {"parameters": {"label_separator": served.label_separator}} if served.label_separator else {}


def _configuration(context: Context, version: Version) -> dict[str, Any]:
    served = version.served
    outputs = [
        *((name, f"TYPE_{_datatype(served, name)}", list(shape) or [1]) for name, shape in served.outputs.items()),
        *((name, "TYPE_STRING", [1]) for name in served.text_outputs),
    ]
    return {
        "name": version.model,
        "platform": f"resfit_{served.engine}",
        "backend": "resfit",
        "version_policy": {"latest": {"num_versions": context.settings.versions}},
        "max_batch_size": context.settings.max_files,
        "input": [{"name": INPUT, "data_type": "TYPE_FP32", "format": "FORMAT_NHWC", "dims": list(served.shape)}],
        "output": [
            *({"name": name, "data_type": kind, "dims": sides} for name, kind, sides in outputs),
            {"name": "features", "data_type": "TYPE_FP32", "dims": [served.features]},
        ],
        "dynamic_batching": {
            "preferred_batch_size": [context.settings.max_batch],
            "max_queue_delay_microseconds": round(1e6 * context.settings.max_delay),
        },
        "default_model_filename": "model.keras",
    }


@dataclasses.dataclass
class _Input:
    """What a request says of its input, and the data that stood in the JSON."""

    shape: tuple[int, ...] | None = None
    datatype: str = ""
    parameters: dict[str, Any] = dataclasses.field(default_factory=dict)
    data: np.ndarray | list[bytes] | None = None
    keys: set[str] = dataclasses.field(default_factory=set)


@dataclasses.dataclass
class _Request:
    """A request for inference."""

    identifier: str
    outputs: list[_Output]
    sources: list[Source]


def _read(body: bytes | bytearray, header: str | None, context: Context, version: Version) -> _Request:
    """Reads a request: the JSON, and the binary data behind it."""
    length = len(body)
    if header is not None:
        if not (header.isascii() and header.isdigit() and len(header) < 12 and int(header) <= length):
            raise malformed(f"{HEADER} must be the length of the JSON, at most that of the body.")
        length = int(header)
    document = Document(body, context.settings, length)
    given: dict[str, Any] = {}
    found: _Input | None = None
    for key in document.members():
        if key == "inputs":
            found = _read_inputs(document, context, version)
        else:
            given[key] = document.value()
    document.finish()
    identifier, parameters = given.get("id", ""), given.get("parameters", {})
    if not isinstance(identifier, str) or len(identifier) > 256 or not isinstance(parameters, dict):
        raise malformed("'id' must be a string of at most 256 characters and 'parameters' an object.")
    outputs = _outputs(version.served, given.get("outputs"), bool(parameters.get("binary_data_output", False)))
    if found is None:
        raise malformed("'inputs' must be a list with one input.")
    return _Request(identifier, outputs, _sources(context, version, found, memoryview(body)[length:]))


def _read_inputs(document: Document, context: Context, version: Version) -> _Input:
    found = None
    if document.peek() == "[":
        for position in document.elements():
            if position or document.peek() != "{":
                raise malformed(f"this model has one input, '{INPUT}'.")
            found = _read_input(document, context, version)
    if found is None:
        raise malformed("'inputs' must be a list with one input.")
    return found


def _read_input(document: Document, context: Context, version: Version) -> _Input:
    found = _Input()
    for key in document.members():
        found.keys.add(key)
        if key == "data":
            found.data = _read_data(document, found, context, version)
            continue
        value = document.value()
        if key == "name" and value != INPUT:
            raise malformed(f"this model has one input, '{INPUT}'.")
        if key == "shape":
            found.shape = wire.shape(value, context.settings.max_body, f"input '{INPUT}'")
        elif key == "datatype":
            if not isinstance(value, str) or value not in (*DATATYPES, "BYTES"):
                raise malformed(
                    f"the datatype must be BYTES or one of {', '.join(DATATYPES)}. Received: {str(value)[:40]!r}."
                )
            found.datatype = value
        elif key == "parameters":
            if not isinstance(value, dict):
                raise malformed("the 'parameters' of an input must be an object.")
            found.parameters = value
    if "name" not in found.keys:
        raise malformed(f"this model has one input, '{INPUT}'.")
    return found


def _read_data(document: Document, given: _Input, context: Context, version: Version) -> Any:
    """Reads the data of an input that stand in the JSON, as far as they are what it says of them."""
    if document.peek() != "[":
        document.value()
        return None
    settings = context.settings
    if given.shape is not None and given.datatype:
        _check_shape(given, settings, version)
    is_text = document.holds_strings()
    if is_text and given.datatype not in ("BYTES", ""):
        raise malformed(f"'data' must be a list of numbers that {given.datatype} can hold. Received: a string.")
    if not is_text and given.datatype == "BYTES":
        if document.is_empty_list():
            document.value()
            return []
        raise malformed("BYTES in JSON must be strings: the base64 of a file each.")
    count = None if given.shape is None else math.prod(given.shape)
    if is_text:
        files: list[bytes] = []
        for position in document.leaves():
            if position >= settings.max_files or (count is not None and position >= count):
                raise _wrong_count(given, f"more than {position}", settings)
            if document.peek() != '"':
                raise malformed("BYTES in JSON must be strings: the base64 of a file each.")
            files.append(document.base64(f"image {position}"))
        return files
    kind = np.dtype(DATATYPES.get(given.datatype, "<f8"))
    if kind == np.float64 and given.datatype:
        kind = np.dtype("<f4")  # as wide as the network's numbers are
    most = settings.max_body if count is None else count
    try:
        return document.numbers(kind, "'data'", most)[0]
    except Problem as problem:
        if problem.status == 413 and count is not None:
            raise _wrong_count(given, f"more than {most}", settings) from None
        raise


async def _infer(context: Context, request: Request, version: Version) -> Response:
    header = request.headers.get(HEADER)
    asked = await context.reading(request, lambda body: _read(body, header, context, version))
    identifier, outputs, sources = asked.identifier, asked.outputs, asked.sources
    note(request, images=len(sources))
    served = version.served
    columns: dict[str, Any] = {}
    for task in dict.fromkeys("embed" if output.name == _FEATURES else "predict" for output in outputs):
        results = await context.pipeline.run(version, task, sources)
        first_problem(results)
        if task == "embed":
            columns[_FEATURES] = np.stack(results).astype("<f4")
        else:
            columns |= {
                name: values.astype("<i4" if name in served.integers else "<f4")
                for name, values in served.arrays(results).items()
            }
            columns |= served.texts(results)

    def written() -> Response:
        described, tail = [], bytearray()
        for output in outputs:
            entry, data = _written(output, columns[output.name], version)
            described.append(entry)
            tail += data
        answer: dict[str, Any] = {
            "model_name": version.model,
            "model_version": str(version.number),
            "outputs": described,
        }
        if identifier:
            answer["id"] = identifier
        head = wire.dump(answer)
        if not tail:
            return Response(head, media_type="application/json")
        return Response(head + bytes(tail), headers={HEADER: str(len(head))}, media_type="application/octet-stream")

    return await context.pipeline.aside(written, 8 * sum(np.size(column) for column in columns.values()))


def _written(output: _Output, values: Any, version: Version) -> tuple[dict[str, Any], bytes]:
    """Returns the description of an output and its binary data; without that, the values stand in the description."""
    if output.classes:
        if np.ndim(values) != 2 or len(version.served.outputs) > 1:
            raise malformed(f"'classification' is for outputs of one row an image. Received: {output.name!r}.")
        values = _classified(values, output, version)
    is_text = isinstance(values, list)
    entry: dict[str, Any] = {
        "name": output.name,
        "datatype": "BYTES" if is_text else _datatype(version.served, output.name),
        "shape": [len(values)] if is_text else list(values.shape),
    }
    if output.classes:
        entry["shape"] = [len(values), len(values[0])]
        values = [text for row in values for text in row]
    if not output.binary:
        entry["data"] = values if is_text else values.ravel().tolist()
        return entry, b""
    encoded = [text.encode() for text in values] if is_text else []
    data = b"".join(struct.pack("<I", len(text)) + text for text in encoded) if is_text else values.tobytes()
    entry["parameters"] = {"binary_data_size": len(data)}
    return entry, data


def _classified(values: np.ndarray, output: _Output, version: Version) -> list[list[str]]:
    """Returns the greatest values of each row as Triton writes them: ``value:index``, and ``:label`` for scores."""
    names = [f":{name}" for name in version.served.classes] if output.name == "scores" else [""] * values.shape[1]
    best = np.argsort(-values, axis=1, kind="stable")[:, : output.classes]
    return [
        [f"{row[index]:.6f}:{index}{names[index]}" for index in order.tolist()]
        for row, order in zip(values, best, strict=True)
    ]


def _outputs(served: Served, value: Any, binary: bool) -> list[_Output]:
    known = (*served.outputs, *served.text_outputs, _FEATURES)
    if value is None or value == []:
        return [_Output(name, binary) for name in known[:-1]]
    if not isinstance(value, list) or len(value) > len(known):
        raise malformed(f"'outputs' must be a list of at most {len(known)} outputs.")
    found = []
    for entry in value:
        name = entry.get("name") if isinstance(entry, dict) else None
        if not isinstance(name, str) or name not in known:
            raise malformed(f"outputs are {', '.join(known)}. Received: {str(name)[:128]!r}.")
        parameters = entry.get("parameters", {})
        if not isinstance(parameters, dict):
            raise malformed("the 'parameters' of an output must be an object.")
        classes = parameters.get("classification", 0)
        if type(classes) is not int or classes < 0:
            raise malformed("'classification' must be the number of classes, at least 1.")
        if classes and name == "label":
            raise malformed("'classification' is for the outputs 'scores' and 'features': 'label' has no numbers.")
        found.append(_Output(name, bool(parameters.get("binary_data", binary)), classes))
    if len({output.name for output in found}) < len(found):
        raise malformed("each output may be asked for once.")
    return found


def _sources(context: Context, version: Version, given: _Input, binary: memoryview) -> list[Source]:
    settings = context.settings
    if given.shape is None:
        raise malformed(f"the shape of input '{INPUT}' must be a list of 1 to 8 numbers.")
    if not given.datatype:
        raise malformed(f"the datatype must be BYTES or one of {', '.join(DATATYPES)}. Received: none.")
    _check_shape(given, settings, version)
    data = _data(given, binary)
    sides, count = given.shape, math.prod(given.shape)
    if given.datatype == "BYTES":
        if isinstance(data, np.ndarray):
            raise malformed("BYTES in JSON must be strings: the base64 of a file each.")
        files = _files(data, given, settings) if isinstance(data, memoryview) else data
        if len(files) != count:
            raise _wrong_count(given, str(len(files)), settings)
        if isinstance(data, list) and given.parameters.get("content_type", "base64") != "base64":
            raise malformed("BYTES in JSON must be base64.")
        return list(files)
    kind = np.dtype(DATATYPES[given.datatype])
    if isinstance(data, memoryview):
        if len(data) != count * kind.itemsize:
            raise malformed(
                f"{given.datatype} of shape {list(sides)} are {count * kind.itemsize} bytes. Received: {len(data)}."
            )
        values = np.frombuffer(data, kind)
    elif isinstance(data, list):
        raise malformed(f"'data' must be a list of numbers that {given.datatype} can hold. Received: a string.")
    else:
        values = data
        if values.size != count:
            raise _wrong_count(given, str(values.size), settings)
        if kind.kind != "f":
            values = held(values, kind, "'data'")
    channels = version.served.shape[-1]
    return [
        wire.check_image(image, channels, settings, f"image {position}")
        for position, image in enumerate(values.reshape(sides))
    ]


def _check_shape(given: _Input, settings: ServerSettings, version: Version) -> None:
    """Makes sure that a shape is that of images, before there are any."""
    sides, channels = given.shape or (), version.served.shape[-1]
    if sides[0] > settings.max_files:
        raise Problem(413, f"a request may have at most {settings.max_files} images. Received: {sides[0]}.")
    if given.datatype == "BYTES":
        if len(sides) > 2 or math.prod(sides) > settings.max_files:
            raise malformed(f"BYTES must have the shape (n) or (n, 1). Received: {list(sides)}.")
        return
    if len(sides) != 4:
        raise malformed(f"numbers must have the shape (n, height, width, {channels}). Received: {list(sides)}.")
    if sides[0]:
        wire.check_sides(sides[1:], channels, settings, "image 0")


def _wrong_count(given: _Input, received: str, settings: ServerSettings) -> Problem:
    if given.shape is None:
        return Problem(413, f"a request may have at most {settings.max_files} images. Received: {received}.")
    return malformed(f"the shape {list(given.shape)} says {math.prod(given.shape)} elements. Received: {received}.")


def _data(given: _Input, binary: memoryview) -> memoryview | list[bytes] | np.ndarray:
    """Returns the data of an input: the binary part, or what stood in the JSON."""
    size = given.parameters.get("binary_data_size")
    if size is None:
        if len(binary):
            raise malformed("there is binary data, and no input says its 'binary_data_size'.")
        if given.data is None:
            raise malformed("an input must have 'data', a list, or 'binary_data_size'.")
        return given.data
    if "data" in given.keys:
        raise malformed("an input has 'data' or 'binary_data_size', not both.")
    if type(size) is not int or size != len(binary):
        raise malformed(f"'binary_data_size' must be the length of the binary data, {len(binary)}.")
    return binary


def _files(data: memoryview, given: _Input, settings: ServerSettings) -> list[bytes]:
    """Returns the elements of a BYTES tensor in binary data, each with its length before it."""
    files: list[bytes] = []
    position = 0
    while position < len(data):
        if len(files) >= math.prod(given.shape or ()):
            raise _wrong_count(given, f"more than {len(files)}", settings)
        if position + 4 > len(data):
            raise malformed("BYTES must be elements with their length before them, 4 bytes each.")
        (size,) = struct.unpack_from("<I", data, position)
        position += 4
        if position + size > len(data):
            raise malformed("an element of BYTES is longer than the binary data.")
        files.append(bytes(data[position : position + size]))
        position += size
    return files
