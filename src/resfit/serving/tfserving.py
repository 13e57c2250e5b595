"""TensorFlow Serving's REST API, version 1: the same requests, answers, errors and codes.

The signatures are those of the SavedModel that ``resfit export --format tf_saved_model`` writes, so that a client can
move between the two: ``serving_default`` (``images`` to ``scores`` and ``classes``), ``serving_bytes``
(``image_bytes``, encoded files, to the same) and ``features``. Images and ``{"b64": ...}`` are told apart by what they
are, whichever signature is named.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response

from resfit.serving import wire
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
from resfit.serving.json_reader import Document
from resfit.serving.pipeline import Source
from resfit.serving.problems import Problem, malformed
from resfit.serving.repository import NotServed, Version

_PREDICT, _CLASSIFY = "tensorflow/serving/predict", "tensorflow/serving/classify"
#: Signature -> name of its input, what it runs.
SIGNATURES: dict[str, tuple[str, str]] = {
    "serving_default": ("images", "predict"),
    "serving_bytes": ("image_bytes", "predict"),
    "features": ("images", "embed"),
}
_INPUTS = ("images", "image_bytes")
#: Features of an example that may hold an encoded image, in ``:classify``.
_EXAMPLE_IMAGES = ("image_bytes", "image/encoded")
_SCHEMA_PREDICT = {
    "type": "object",
    "properties": {
        "signature_name": {"type": "string", "enum": list(SIGNATURES)},
        "instances": {"type": "array", "minItems": 1, "items": {}},
        "inputs": {},
    },
}
_SCHEMA_CLASSIFY = {
    "type": "object",
    "required": ["examples"],
    "properties": {
        "signature_name": {"type": "string"},
        "context": {"type": "object"},
        "examples": {"type": "array", "minItems": 1, "items": {"type": "object"}},
    },
}
_EXAMPLE = {"instances": [{"b64": "..."}]}


def router(context: Context) -> APIRouter:
    """Returns the routes.

    Args:
        context: The server's parts.
    """
    routes = APIRouter(tags=["TensorFlow Serving"])
    for place, kind in (
        ("/v1/models/{model}", ""),
        ("/v1/models/{model}/versions/{version}", "version"),
        ("/v1/models/{model}/labels/{label}", "label"),
    ):
        _add(routes, context, place, kind)

    async def unknown(request: Request) -> Response:
        # the path is what the client sent: cut, and escaped as all JSON is
        raise malformed(f"Malformed request: {request.method} {request.url.path[:200]}")

    routes.add_api_route(
        "/v1/{rest:path}",
        unknown,
        methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
        include_in_schema=False,
    )
    return routes


def _add(routes: APIRouter, context: Context, place: str, kind: str) -> None:
    """Adds the routes of a model, or of one of its versions by number or label."""

    def asked(request: Request) -> dict[str, Any]:
        values = request.path_params
        return {
            "model": values["model"],
            "version": whole_number(values["version"]) if kind == "version" else None,
            "label": values["label"] if kind == "label" else None,
        }

    async def status(request: Request) -> Response:
        """Says which versions of a model are served."""
        return json_response(_status(context, **asked(request)))

    async def metadata(request: Request) -> Response:
        """Says what a model takes and gives."""
        with _leased(context, request, asked(request)) as version:
            return json_response(_metadata(version))

    async def predict(request: Request) -> Response:
        """Answers for images, as rows (`instances`) or as columns (`inputs`)."""
        with _leased(context, request, asked(request)) as version:
            return await _predict(context, request, version)

    async def classify(request: Request) -> Response:
        """Gives every class with its score for examples with an encoded image."""
        with _leased(context, request, asked(request)) as version:
            return await _classify(context, request, version)

    async def regress(request: Request) -> Response:
        """Is refused: a classifier has no regression signature."""
        with _leased(context, request, asked(request)):
            raise Problem(
                400,
                f"Expected regression signature method_name to be tensorflow/serving/regress. Was: {_PREDICT}",
            )

    names = [part for part in ("model", kind) if part]
    parameters = {
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
            for name in names
        ]
    }
    rows: tuple[tuple[str, Callable[..., Any], str, dict[str, Any]], ...] = (
        ("", status, "GET", {}),
        ("/metadata", metadata, "GET", {}),
        (":predict", predict, "POST", json_request(_SCHEMA_PREDICT, _EXAMPLE)),
        (
            ":classify",
            classify,
            "POST",
            json_request(_SCHEMA_CLASSIFY, {"examples": [{"image_bytes": {"b64": "..."}}]}),
        ),
        (":regress", regress, "POST", json_request(_SCHEMA_CLASSIFY, {"examples": [{}]})),
    )
    for ending, handler, method, more in reversed(rows):
        routes.add_api_route(
            place + ending,
            handler,
            methods=[method],
            responses={**json_ok({"type": "object"}, "The answer."), **responses()},
            openapi_extra={**parameters, **more},
            operation_id=f"v1_{handler.__name__}" + (f"_{kind}" if kind else ""),
        )


def _leased(context: Context, request: Request, asked: dict[str, Any]) -> Any:
    try:
        context.repository.number(**asked)
    except NotServed as error:
        raise not_found(error, f"Servable not found for request: {_spec(**asked)}") from None
    return context.version(request, **asked)


def _spec(model: str, version: int | None, label: str | None) -> str:
    name = model[:128]
    if label is not None:
        return f"Label({name}, {label[:128]})"
    return f"Latest({name})" if version is None else f"Specific({name}, {version})"


def _status(context: Context, model: str, version: int | None, label: str | None) -> dict[str, Any]:
    states = context.repository.states(model)
    if label is not None:
        try:
            version = context.repository.number(model, label=label)
        except NotServed:
            raise Problem(404, f"Could not find label {label[:128]} of model {model[:128]}") from None
    if version is not None:
        states = {number: state for number, state in states.items() if number == version}
    if not states:
        what = "any versions" if version is None else f"version {version}"
        raise Problem(404, f"Could not find {what} of model {model[:128]}")
    return {
        "model_version_status": [
            {
                "version": str(number),
                "state": state.state,
                "status": {"error_code": "UNKNOWN" if state.error else "OK", "error_message": state.error},
            }
            for number, state in states.items()
        ]
    }


def _metadata(version: Version) -> dict[str, Any]:
    served = version.served
    images = ("DT_FLOAT", (-1, *served.shape))
    scores: dict[str, tuple[str, tuple[int, ...]]] = {
        name: ("DT_INT32" if name in served.integers else "DT_FLOAT", (-1, *shape))
        for name, shape in served.outputs.items()
    }
    if "scores" in scores and len(scores) == 1:
        scores["classes"] = ("DT_STRING", (-1, len(served.classes)))
    tensors: dict[str, tuple[tuple[str, tuple[int, ...]], dict[str, Any]]] = {
        "serving_default": (images, scores),
        "serving_bytes": (("DT_STRING", (-1,)), scores),
        "features": (images, {"features": ("DT_FLOAT", (-1, served.features))}),
    }

    def info(signature: str, name: str, tensor: tuple[str, tuple[int, ...]]) -> dict[str, Any]:
        dtype, sides = tensor
        return {
            "dtype": dtype,
            "tensor_shape": {"dim": [{"size": str(side), "name": ""} for side in sides], "unknown_rank": False},
            "name": f"{signature}_{name}:0",
        }

    signatures = {
        signature: {
            "inputs": {SIGNATURES[signature][0]: info(signature, SIGNATURES[signature][0], given)},
            "outputs": {name: info(signature, name, tensor) for name, tensor in outputs.items()},
            "method_name": _PREDICT,
        }
        for signature, (given, outputs) in tensors.items()
    }
    return {
        "model_spec": {"name": version.model, "signature_name": "", "version": str(version.number)},
        "metadata": {"signature_def": {"signature_def": signatures}},
    }


@dataclasses.dataclass
class _Asked:
    """A request to predict or to classify, read."""

    signature: str
    is_rows: bool
    sources: list[Source]


def _read_predict(body: bytes | bytearray, context: Context, version: Version) -> _Asked:
    document = Document(body, context.settings)
    signature: Any = "serving_default"
    read: dict[str, list[Source | Problem] | Problem] = {}
    for key in document.members():
        if key in ("instances", "inputs"):
            if read:
                raise malformed("Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist ")
            reader = _Images(document, context, version)
            read[key] = reader.rows() if key == "instances" else reader.columns()
        else:
            value = document.value()
            signature = value if key == "signature_name" else signature
    document.finish()
    signature = _signature(signature)
    if not read:
        raise malformed("Missing 'inputs' or 'instances' key")
    ((key, found),) = read.items()
    if isinstance(found, Problem):
        raise found
    return _Asked(signature, key == "instances", _usable(found))


def _usable(found: list[Source | Problem]) -> list[Source]:
    sources: list[Source] = []
    for one in found:
        if isinstance(one, Problem):
            raise one
        sources.append(one)
    return sources


class _Images:
    """Reads the images of a request: lists of numbers, or ``{"b64": ...}``, alone or under their input's name.

    Args:
        document: The request, at the value that holds them.
        context: The server's parts.
        version: What they are for.
    """

    def __init__(self, document: Document, context: Context, version: Version):
        self._document, self._settings = document, context.settings
        self._channels = version.served.shape[-1]

    def rows(self) -> list[Source | Problem] | Problem:
        """Reads the row form: a list of images, or of objects with one under its input's name."""
        if self._document.peek() != "[":
            self._document.value()
            return malformed("Expecting 'instances' value to be an list/array")
        found = self._list(may_be_named=True)
        return found or malformed("'instances' value is an empty array")

    def columns(self) -> list[Source | Problem] | Problem:
        """Reads the column form: a list of images, alone or under their input's name."""
        refusal = malformed("'inputs' must be a list of images, or an object with one")
        if self._document.peek() == "[":
            return self._list(may_be_named=False) or refusal
        if self._document.peek() != "{":
            self._document.value()
            return refusal
        found: list[Source | Problem] | Problem | None = None
        for key in self._document.members():
            if found is not None or key not in ("b64", *_INPUTS):
                raise _unknown_input()
            if key == "b64":
                found = [self._document.base64("image 0")]
            elif self._document.peek() == "[":
                found = self._list(may_be_named=False) or refusal
            else:
                found = [self._image(0, may_be_named=False)]
        return found or refusal

    def _list(self, may_be_named: bool) -> list[Source | Problem]:
        found: list[Source | Problem] = []
        for position in self._document.elements():
            if position >= self._settings.max_files:
                raise Problem(
                    413, f"a request may have at most {self._settings.max_files} images. Received: more than that."
                )
            found.append(self._image(position, may_be_named))
        return found

    def _image(self, position: int, may_be_named: bool) -> Source | Problem:
        """Reads one image. What is neither a list nor an object is passed over, and is a problem in its place."""
        document, what = self._document, f"image {position}"
        sign = document.peek()
        if sign == "[":
            kind = np.dtype(np.float32)
            values, sides = document.numbers(kind, what, self._settings.max_pixels * self._channels)
            wire.check_sides(sides, self._channels, self._settings, what)
            return wire.check_image(values.reshape(sides), self._channels, self._settings, what)
        if sign != "{":
            document.value()
            return malformed(f"{what} must be nested lists of numbers, all of one length at each level.")
        found: Source | Problem | None = None
        for key in document.members():
            if found is not None or key not in ("b64", *(_INPUTS if may_be_named else ())):
                raise _unknown_input()
            found = document.base64(what) if key == "b64" else self._image(position, may_be_named=False)
        if found is None:
            raise _unknown_input()
        return found


def _unknown_input() -> Problem:
    return malformed(
        f"input tensor alias not found in signature. Inputs expected to be in the set {{{', '.join(_INPUTS)}}}"
    )


async def _predict(context: Context, request: Request, version: Version) -> Response:
    asked = await context.reading(request, lambda body: _read_predict(body, context, version))
    note(request, images=len(asked.sources))
    task = SIGNATURES[asked.signature][1]
    results = await context.pipeline.run(version, task, asked.sources)
    first_problem(results)

    def answer() -> Response:
        if task == "embed":
            columns: dict[str, list[Any]] = {"features": [row.tolist() for row in results]}
        else:
            columns = {name: values.tolist() for name, values in version.served.arrays(results).items()}
            if list(columns) == ["scores"]:  # of classes, which the client gets by name
                columns["classes"] = [list(version.served.classes)] * len(results)
        if not asked.is_rows:
            return json_response({"outputs": columns if len(columns) > 1 else next(iter(columns.values()))})
        if len(columns) == 1:
            return json_response({"predictions": next(iter(columns.values()))})
        rows = zip(*columns.values(), strict=True)
        return json_response({"predictions": [dict(zip(columns, row, strict=True)) for row in rows]})

    return await context.pipeline.aside(answer, _size(version, results))


def _size(version: Version, results: list[Any]) -> int:
    """Returns about how many bytes an answer has."""
    served = version.served
    return 32 * len(results) * max(*(math.prod(shape) for shape in served.outputs.values()), served.features)


def _read_classify(body: bytes | bytearray, context: Context) -> list[Source]:
    document = Document(body, context.settings)
    signature: Any = "serving_default"
    shared: bytes | None = None
    examples: list[bytes | None] | None = None
    for key in document.members():
        if key == "context":
            shared = _read_example(document, "the context")
        elif key == "examples":
            if document.peek() != "[":
                raise malformed("Expecting 'examples' value to be an list/array")
            examples = []
            for position in document.elements():
                if position >= context.settings.max_files:
                    raise Problem(
                        413,
                        f"a request may have at most {context.settings.max_files} images. Received: more than that.",
                    )
                examples.append(_read_example(document, f"example {position}"))
        else:
            value = document.value()
            signature = value if key == "signature_name" else signature
    document.finish()
    _signature(signature, ("serving_default", "serving_bytes"))
    if examples is None:
        raise malformed("When method is classify, key 'examples' is expected and was not found")
    if not examples:
        raise malformed("'examples' value is an empty array")
    sources: list[Source] = []
    for position, example in enumerate(examples):
        found = shared if example is None else example
        if found is None:
            raise malformed(
                f"example {position} must have a feature '{_EXAMPLE_IMAGES[0]}' of the form {{\"b64\": ...}}"
            )
        sources.append(found)
    return sources


def _read_example(document: Document, what: str) -> bytes | None:
    """Reads the features of an example; ``None`` where no image is among them."""
    if document.peek() != "{":
        raise malformed("Example must be JSON object but got JSON something else")
    found: dict[str, bytes] = {}
    for name in document.members():
        if name not in _EXAMPLE_IMAGES:
            document.value()
            continue
        for position in document.leaves() if document.peek() == "[" else (0,):
            if position or document.peek() != "{":
                raise malformed(f"{what} must have a feature '{name}' of the form {{\"b64\": ...}}")
            for key in document.members():
                if key != "b64":
                    raise malformed(f"{what} must have a feature '{name}' of the form {{\"b64\": ...}}")
                found[name] = document.base64(what)
    return next((found[name] for name in _EXAMPLE_IMAGES if name in found), None)


async def _classify(context: Context, request: Request, version: Version) -> Response:
    if list(version.served.outputs) != ["scores"]:
        raise malformed(f"classify is for classes. Received: a model for {version.served.task}. Take predict.")
    sources = await context.reading(request, lambda body: _read_classify(body, context))
    note(request, images=len(sources))
    results = await context.pipeline.run(version, "predict", sources)
    first_problem(results, "example")

    def answer() -> Response:
        classes = version.served.classes
        rows = version.served.arrays(results)["scores"].tolist()
        return json_response({"results": [[list(pair) for pair in zip(classes, row, strict=True)] for row in rows]})

    return await context.pipeline.aside(answer, _size(version, results))


def _signature(name: Any, known: tuple[str, ...] = tuple(SIGNATURES)) -> str:
    if not isinstance(name, str):
        raise malformed("'signature_name' key must be a string value.")
    name = name or "serving_default"
    if name not in known:
        raise malformed(f'Serving signature name: "{name[:128]}" not found in signature def')
    return name
