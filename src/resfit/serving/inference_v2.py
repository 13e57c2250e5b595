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
from collections.abc import Callable, Sequence
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
from resfit.serving.pipeline import Source
from resfit.serving.problems import Problem, malformed
from resfit.serving.repository import NotServed, Version

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
_TASKS = {"scores": "predict", "label": "predict", "features": "embed"}
_DEFAULT = ("scores", "label")
_MOST_INPUTS = 16
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
                "properties": {"name": {"type": "string", "enum": list(_TASKS)}, "parameters": {"type": "object"}},
            },
        },
    },
}
_EXAMPLE = {"inputs": [{"name": INPUT, "shape": [1], "datatype": "BYTES", "data": ["<base64 of a file>"]}]}


@dataclasses.dataclass(frozen=True)
class _Output:
    """An output that is asked for, and how it is to be written."""

    name: str
    binary: bool


def router(context: Context) -> APIRouter:
    """Returns the routes.

    Args:
        context: The server's parts.
    """
    routes = APIRouter(tags=["Open Inference Protocol v2"])

    async def server() -> Response:
        """Says what this server is."""
        import resfit

        return json_response({"name": "resfit", "version": resfit.__version__, "extensions": ["binary_tensor_data"]})

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

    async def ready(request: Request) -> Response:
        """Says whether a model can be asked."""
        with leased(request) as version:
            return json_response({"name": version.model, "ready": True})

    async def infer(request: Request) -> Response:
        """Answers for images, in JSON or with binary data."""
        body = await request.body()
        given, binary = _split(body, request.headers.get(HEADER), context)
        with leased(request) as version:
            return await _infer(context, request, version, given, binary)

    numbered = [{"name": "version", "in": "path", "required": True, "schema": {"type": "string"}}]
    named = [{"name": "model", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}]
    parameters = {"parameters": named + (numbered if is_numbered else [])}
    rows: tuple[tuple[str, Callable[..., Any], str, dict[str, Any]], ...] = (
        ("", metadata, "GET", {}),
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
            {"name": "scores", "datatype": "FP32", "shape": [-1, len(served.classes)]},
            {"name": "label", "datatype": "BYTES", "shape": [-1], **_separated(served)},
            {"name": "features", "datatype": "FP32", "shape": [-1, served.features]},
        ],
    }


def _separated(served: Served) -> dict[str, Any]:
    """Returns what stands between labels in the output ``label``, where an image may have several."""
    recipe = served.classifier.recipe
    return {"parameters": {"label_separator": recipe.separator}} if recipe.several else {}


def _split(body: bytes, header: str | None, context: Context) -> tuple[dict[str, Any], memoryview]:
    """Returns the JSON of a body and the binary data behind it."""
    length = len(body)
    if header is not None:
        if not (header.isascii() and header.isdigit() and len(header) < 12 and int(header) <= length):
            raise malformed(f"{HEADER} must be the length of the JSON, at most that of the body.")
        length = int(header)
    return wire.parse_object(body[:length], context.settings), memoryview(body)[length:]


async def _infer(
    context: Context, request: Request, version: Version, given: dict[str, Any], binary: memoryview
) -> Response:
    identifier = given.get("id", "")
    parameters = given.get("parameters", {})
    if not isinstance(identifier, str) or len(identifier) > 256 or not isinstance(parameters, dict):
        raise malformed("'id' must be a string of at most 256 characters and 'parameters' an object.")
    outputs = _outputs(given.get("outputs"), bool(parameters.get("binary_data_output", False)))
    sources = _sources(context, version, given.get("inputs"), binary)
    note(request, images=len(sources))
    served = version.served
    columns: dict[str, Any] = {}
    for task in dict.fromkeys(_TASKS[output.name] for output in outputs):
        results = await context.pipeline.run(version, task, sources)
        first_problem(results)
        if task == "embed":
            columns["features"] = np.stack(results).astype("<f4")
        else:
            columns["scores"] = served.scores(results).astype("<f4")
            columns["label"] = [str(result.label) for result in results]
    described, tail = [], bytearray()
    for output in outputs:
        entry, data = _written(output, columns[output.name])
        described.append(entry)
        tail += data
    answer: dict[str, Any] = {"model_name": version.model, "model_version": str(version.number), "outputs": described}
    if identifier:
        answer["id"] = identifier
    head = wire.dump(answer)
    if not tail:
        return Response(head, media_type="application/json")
    return Response(head + bytes(tail), headers={HEADER: str(len(head))}, media_type="application/octet-stream")


def _written(output: _Output, values: Any) -> tuple[dict[str, Any], bytes]:
    """Returns the description of an output and its binary data; without that, the values stand in the description."""
    is_text = isinstance(values, list)
    entry: dict[str, Any] = {
        "name": output.name,
        "datatype": "BYTES" if is_text else "FP32",
        "shape": [len(values)] if is_text else list(values.shape),
    }
    if not output.binary:
        entry["data"] = values if is_text else values.ravel().tolist()
        return entry, b""
    encoded = [text.encode() for text in values] if is_text else []
    data = b"".join(struct.pack("<I", len(text)) + text for text in encoded) if is_text else values.tobytes()
    entry["parameters"] = {"binary_data_size": len(data)}
    return entry, data


def _outputs(value: Any, binary: bool) -> list[_Output]:
    if value is None or value == []:
        return [_Output(name, binary) for name in _DEFAULT]
    if not isinstance(value, list) or len(value) > len(_TASKS):
        raise malformed(f"'outputs' must be a list of at most {len(_TASKS)} outputs.")
    found = []
    for entry in value:
        name = entry.get("name") if isinstance(entry, dict) else None
        if not isinstance(name, str) or name not in _TASKS:
            raise malformed(f"outputs are {', '.join(_TASKS)}. Received: {str(name)[:128]!r}.")
        parameters = entry.get("parameters", {})
        if not isinstance(parameters, dict):
            raise malformed("the 'parameters' of an output must be an object.")
        if parameters.get("classification"):
            raise malformed("the classification extension is not supported: ask for the output 'label' or 'scores'.")
        found.append(_Output(name, bool(parameters.get("binary_data", binary))))
    if len({output.name for output in found}) < len(found):
        raise malformed("each output may be asked for once.")
    return found


def _sources(context: Context, version: Version, inputs: Any, binary: memoryview) -> list[Source]:
    if not isinstance(inputs, list) or not inputs or len(inputs) > _MOST_INPUTS:
        raise malformed("'inputs' must be a list with one input.")
    if len(inputs) > 1 or not isinstance(inputs[0], dict) or inputs[0].get("name") != INPUT:
        raise malformed(f"this model has one input, '{INPUT}'.")
    (given,) = inputs
    settings = context.settings
    channels = version.served.shape[-1]
    sides = wire.shape(given.get("shape"), settings.max_body, f"input '{INPUT}'")
    if sides[0] > settings.max_files:
        raise Problem(413, f"a request may have at most {settings.max_files} images. Received: {sides[0]}.")
    datatype = given.get("datatype")
    if datatype != "BYTES" and (not isinstance(datatype, str) or datatype not in DATATYPES):
        raise malformed(
            f"the datatype must be BYTES or one of {', '.join(DATATYPES)}. Received: {str(datatype)[:40]!r}."
        )
    data = _data(given, binary)
    if datatype == "BYTES":
        files = _files(data, given.get("parameters") or {})
        if len(sides) > 2 or math.prod(sides) != len(files):
            raise malformed(f"the shape {list(sides)} says {math.prod(sides)} elements. Received: {len(files)}.")
        return list(files)
    if len(sides) != 4:
        raise malformed(f"numbers must have the shape (n, height, width, {channels}). Received: {list(sides)}.")
    images = _numbers(data, datatype, sides)
    return [wire.check_image(image, channels, settings, f"image {position}") for position, image in enumerate(images)]


def _data(given: dict[str, Any], binary: memoryview) -> memoryview | list[Any]:
    """Returns the data of an input: the binary part, or what stands in the JSON."""
    parameters = given.get("parameters", {})
    if not isinstance(parameters, dict):
        raise malformed("the 'parameters' of an input must be an object.")
    size = parameters.get("binary_data_size")
    if size is None:
        if len(binary):
            raise malformed("there is binary data, and no input says its 'binary_data_size'.")
        data = given.get("data")
        if not isinstance(data, list):
            raise malformed("an input must have 'data', a list, or 'binary_data_size'.")
        return data
    if "data" in given:
        raise malformed("an input has 'data' or 'binary_data_size', not both.")
    if type(size) is not int or size != len(binary):
        raise malformed(f"'binary_data_size' must be the length of the binary data, {len(binary)}.")
    return binary


def _numbers(data: memoryview | list[Any], datatype: str, sides: tuple[int, ...]) -> np.ndarray:
    kind = np.dtype(DATATYPES[datatype])
    if isinstance(data, memoryview):
        expected = math.prod(sides) * kind.itemsize
        if len(data) != expected:
            raise malformed(f"{datatype} of shape {list(sides)} are {expected} bytes. Received: {len(data)}.")
        return np.frombuffer(data, kind).reshape(sides)
    try:
        values = np.array(data)
        if values.dtype.kind not in "iuf":
            raise ValueError
        with np.errstate(over="ignore"):
            converted = values.astype(kind)
        if kind.kind != "f" and not np.array_equal(converted, values):
            raise ValueError
    except (ValueError, TypeError, OverflowError):
        raise malformed(f"'data' must be a list of numbers that {datatype} can hold, flat or nested evenly.") from None
    if values.size != math.prod(sides):
        raise malformed(f"the shape {list(sides)} says {math.prod(sides)} elements. Received: {values.size}.")
    return converted.reshape(sides)


def _files(data: memoryview | list[Any], parameters: dict[str, Any]) -> Sequence[bytes]:
    """Returns the elements of a BYTES tensor: length-prefixed in binary data, base64 in JSON."""
    if isinstance(data, list):
        while len(data) == 1 and isinstance(data[0], list):
            data = data[0]
        if not all(isinstance(element, str) for element in data):
            raise malformed("BYTES in JSON must be strings: the base64 of a file each.")
        if parameters.get("content_type", "base64") != "base64":
            raise malformed("BYTES in JSON must be base64.")
        return [wire.decode_base64(text, f"image {position}") for position, text in enumerate(data)]
    files, position = [], 0
    while position < len(data):
        if position + 4 > len(data):
            raise malformed("BYTES must be elements with their length before them, 4 bytes each.")
        (size,) = struct.unpack_from("<I", data, position)
        position += 4
        if position + size > len(data):
            raise malformed("an element of BYTES is longer than the binary data.")
        files.append(bytes(data[position : position + size]))
        position += size
    return files
