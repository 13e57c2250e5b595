"""TensorFlow Serving's REST API, version 1: the same requests, answers, errors and codes.

The signatures are those of the SavedModel that ``resfit export --format tf_saved_model`` writes, so that a client can
move between the two: ``serving_default`` (``images`` to ``scores`` and ``classes``), ``serving_bytes``
(``image_bytes``, encoded files, to the same) and ``features``. Images and ``{"b64": ...}`` are told apart by what they
are, whichever signature is named.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request, Response

from resfit.serving import wire
from resfit.serving.context import (
    Context,
    first_problem,
    json_body,
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
        body = await json_body(request, context.settings)
        with _leased(context, request, asked(request)) as version:
            return json_response(await _predict(context, request, version, body))

    async def classify(request: Request) -> Response:
        """Gives every class with its score for examples with an encoded image."""
        body = await json_body(request, context.settings)
        with _leased(context, request, asked(request)) as version:
            return json_response(await _classify(context, request, version, body))

    async def regress(request: Request) -> Response:
        """Is refused: a classifier has no regression signature."""
        await json_body(request, context.settings)
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
    scores = {"scores": ("DT_FLOAT", (-1, len(served.classes))), "classes": ("DT_STRING", (-1, len(served.classes)))}
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


async def _predict(context: Context, request: Request, version: Version, body: dict[str, Any]) -> dict[str, Any]:
    signature = _signature(body)
    has_rows, has_columns = "instances" in body, "inputs" in body
    if has_rows and has_columns:
        raise malformed("Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist ")
    if not has_rows and not has_columns:
        raise malformed("Missing 'inputs' or 'instances' key")
    values = _rows(body["instances"]) if has_rows else _columns(body["inputs"])
    sources = _sources(context, version, values)
    note(request, images=len(sources))
    task = SIGNATURES[signature][1]
    results = await context.pipeline.run(version, task, sources)
    first_problem(results)
    if task == "embed":
        columns: dict[str, list[Any]] = {"features": [row.tolist() for row in results]}
    else:
        classes = list(version.served.classes)
        columns = {"scores": version.served.scores(results).tolist(), "classes": [classes] * len(results)}
    if has_rows:
        if len(columns) == 1:
            return {"predictions": next(iter(columns.values()))}
        return {"predictions": [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]}
    return {"outputs": columns if len(columns) > 1 else next(iter(columns.values()))}


async def _classify(context: Context, request: Request, version: Version, body: dict[str, Any]) -> dict[str, Any]:
    _signature(body, ("serving_default", "serving_bytes"))
    examples = body.get("examples")
    if "examples" not in body:
        raise malformed("When method is classify, key 'examples' is expected and was not found")
    if not isinstance(examples, list):
        raise malformed("Expecting 'examples' value to be an list/array")
    if not examples:
        raise malformed("'examples' value is an empty array")
    shared = body.get("context", {})
    if not isinstance(shared, dict):
        raise malformed("Example must be JSON object but got JSON something else")
    sources: list[Source] = []
    for position, example in enumerate(examples):
        if not isinstance(example, dict):
            raise malformed("Example must be JSON object but got JSON something else")
        features = {**shared, **example}
        found = next((features[name] for name in _EXAMPLE_IMAGES if name in features), None)
        if isinstance(found, list) and len(found) == 1:
            found = found[0]
        if not isinstance(found, dict) or not wire.is_base64(found):
            raise malformed(
                f"example {position} must have a feature '{_EXAMPLE_IMAGES[0]}' of the form {{\"b64\": ...}}"
            )
        sources.append(wire.decode_base64(found["b64"], f"example {position}"))
    note(request, images=len(sources))
    results = await context.pipeline.run(version, "predict", sources)
    first_problem(results, "example")
    classes = version.served.classes
    return {
        "results": [
            [list(pair) for pair in zip(classes, row.tolist(), strict=True)] for row in _scores(version, results)
        ]
    }


def _scores(version: Version, results: list[Any]) -> Any:
    return version.served.scores(results)


def _signature(body: dict[str, Any], known: tuple[str, ...] = tuple(SIGNATURES)) -> str:
    name = body.get("signature_name", "serving_default")
    if not isinstance(name, str):
        raise malformed("'signature_name' key must be a string value.")
    name = name or "serving_default"
    if name not in known:
        raise malformed(f'Serving signature name: "{name[:128]}" not found in signature def')
    return name


def _rows(instances: Any) -> list[Any]:
    """Returns the images of the row form: a list of them, or of objects with one under its input's name."""
    if not isinstance(instances, list):
        raise malformed("Expecting 'instances' value to be an list/array")
    if not instances:
        raise malformed("'instances' value is an empty array")
    return [_named(instance) if isinstance(instance, dict) else instance for instance in instances]


def _columns(inputs: Any) -> list[Any]:
    """Returns the images of the column form: a list of them, alone or under their input's name."""
    values = _named(inputs) if isinstance(inputs, dict) else inputs
    if wire.is_base64(values):
        values = [values]
    if not isinstance(values, list) or not values:
        raise malformed("'inputs' must be a list of images, or an object with one")
    return values


def _named(value: dict[str, Any]) -> Any:
    if wire.is_base64(value):
        return value
    if len(value) != 1 or next(iter(value)) not in _INPUTS:
        raise malformed(
            f"input tensor alias not found in signature. Inputs expected to be in the set {{{', '.join(_INPUTS)}}}"
        )
    return next(iter(value.values()))


def _sources(context: Context, version: Version, values: list[Any]) -> list[Source]:
    settings = context.settings
    if len(values) > settings.max_files:
        raise Problem(413, f"a request may have at most {settings.max_files} images. Received: {len(values)}.")
    channels = version.served.shape[-1]
    return [
        wire.decode_base64(value["b64"], f"image {position}")
        if wire.is_base64(value)
        else wire.numbers(value, channels, settings, f"image {position}")
        for position, value in enumerate(values)
    ]
