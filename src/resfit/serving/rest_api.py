"""The short API, for people and scripts: files in; classes, a picture or features out."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, TypeVar

from fastapi import APIRouter, Request, Response
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from resfit.serving import adapter
from resfit.serving.context import (
    BODY,
    Context,
    described,
    json_ok,
    json_response,
    not_found,
    note,
    responses,
    whole_number,
)
from resfit.serving.detection import ServedDetector
from resfit.serving.problems import Problem, malformed
from resfit.serving.repository import NotServed, Version

_FILE = {"type": "string", "format": "binary"}
_UPLOAD: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {"type": "object", "properties": {"file": {"type": "array", "items": _FILE}}}
            },
            "image/*": {"schema": _FILE},
        },
    },
}
_MODEL = [
    {
        "name": "model",
        "in": "query",
        "description": "Which model, where several are served.",
        "schema": {"type": "string"},
    },
    {
        "name": "version",
        "in": "query",
        "description": "Which of its versions; the newest otherwise.",
        "schema": {"type": "integer", "minimum": 1},
    },
]
_TOP = {
    "name": "top",
    "in": "query",
    "description": "How many classes are listed for each image.",
    "schema": {"type": "integer", "minimum": 1},
}
_METHOD = {
    "name": "method",
    "in": "query",
    "description": "How it is explained.",
    "schema": {"type": "string", "enum": list(adapter.METHODS)},
}
_FORMAT = {
    "name": "format",
    "in": "query",
    "description": "`png`: the overlay. `json`: image, map and nearest training images apart.",
    "schema": {"type": "string", "enum": ["png", "json"]},
}
_THRESHOLD = {
    "name": "threshold",
    "in": "query",
    "description": "Of detectors: lowest score of a box; that of its class otherwise.",
    "schema": {"type": "number", "minimum": 0, "maximum": 1},
}
_DRAWN = {
    "name": "format",
    "in": "query",
    "description": "Of detectors: `png` for the one picture with its boxes drawn.",
    "schema": {"type": "string", "enum": ["json", "png"]},
}
_LONGEST_NAME = 200
_PIECE = 1 << 16
_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class Upload:
    """A file of a request.

    Attributes:
        name: What the client calls it, without folders; empty if it does not.
        data: Its bytes.
    """

    name: str
    data: bytes


class _InMemory(MultiPartParser):
    spool_max_size = 2**40  # the body is in memory and bounded already: nothing goes to the disk


def router(context: Context) -> APIRouter:
    """Returns the routes.

    Args:
        context: The server's parts.
    """
    routes = APIRouter(tags=["Files"])

    async def predict(request: Request) -> Response:
        """Says what is on one image or several: uploaded as a form, or one alone as the body."""
        begin = time.monotonic()
        top, threshold = _whole(request, "top"), _share(request, "threshold")
        form = _choice(request, "format", ("json", "png"))
        files = await uploads(request, context)
        with _leased(context, request) as version:
            note(request, images=len(files))
            _check_detector(version, form, threshold)
            if form == "png":
                return await drawn(version, _one(files), threshold)
            results = await context.pipeline.run(version, "predict", [file.data for file in files])
            served = version.served
            answer: dict[str, Any] = {
                "model": version.model,
                "version": version.number,
                "calibrated": served.is_calibrated,
                "milliseconds": round(1000 * (time.monotonic() - begin), 3),
            }

        def entry(one: Any) -> dict[str, Any]:
            one = served.shown(one, threshold) if isinstance(served, ServedDetector) else one
            return described(one, served.unlike_training(one), top)

        return _answered("predictions", answer, files, results, entry)

    async def drawn(version: Version, file: Upload, threshold: float | None) -> Response:
        (found,) = await context.pipeline.run(version, "predict", [file.data])
        if isinstance(found, Problem):
            raise found
        assert isinstance(version.served, ServedDetector)
        picture = await context.pipeline.draw(version, file.data, version.served.shown(found, threshold))
        return Response(picture, media_type="image/png")

    async def explain(request: Request) -> Response:
        """Shows where on an image the most probable class was seen, as PNG or, with its parts, as JSON."""
        method = _choice(request, "method", adapter.METHODS)
        form = _choice(request, "format", ("png", "json"))
        file = _one(await uploads(request, context))
        with _leased(context, request) as version:
            note(request, images=1)
            found = await context.pipeline.explain(version, file.data, method)
            if form == "png":
                return Response(adapter.png(found.overlay), media_type="image/png")
            neighbours = await context.pipeline.nearest(version, file.data)
            return json_response(_explained(found, neighbours))

    async def nearest(request: Request) -> Response:
        """Lists the training images that look most like an image to the network."""
        file = _one(await uploads(request, context))
        with _leased(context, request) as version:
            note(request, images=1)
            neighbours = await context.pipeline.nearest(version, file.data)
            if neighbours is None:
                raise Problem(501, "this classifier keeps no training images to compare with. Fit it again.")
            return json_response({"nearest": [_neighbour(one) for one in neighbours]})

    async def embed(request: Request) -> Response:
        """Returns the features of images, as the head of the network reads them."""
        files = await uploads(request, context)
        with _leased(context, request) as version:
            note(request, images=len(files))
            results = await context.pipeline.run(version, "embed", [file.data for file in files])
            answer = {"model": version.model, "version": version.number}
        return _answered("embeddings", answer, files, results, lambda row: {"features": row.tolist()})

    json_answer = json_ok({"type": "object"}, "The answer.")
    picture: dict[int | str, dict[str, Any]] = {
        200: {"description": "The picture, or its parts.", "content": {"image/png": {}, "application/json": {}}}
    }
    for path, handler, parameters, ok, statuses in (
        ("/predict", predict, [*_MODEL, _TOP, _THRESHOLD, _DRAWN], picture, (422,)),
        ("/explain", explain, [*_MODEL, _METHOD, _FORMAT], picture, (422, 501)),
        ("/nearest", nearest, _MODEL, json_answer, (422, 501)),
        ("/embed", embed, _MODEL, json_answer, (422,)),
    ):
        routes.add_api_route(
            path,
            handler,
            methods=["POST"],
            responses={**ok, **responses(*statuses)},
            openapi_extra={"parameters": parameters, **_UPLOAD},
            operation_id=handler.__name__,
        )
    return routes


async def uploads(request: Request, context: Context) -> list[Upload]:
    """Returns the files of a request: those of a form, or the body itself.

    Raises:
        Problem: There is none, there are too many, or the form is damaged.
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await _form(request, context)
    if kind.startswith("image/") or kind in ("application/octet-stream", ""):
        body = bytes(request.scope[BODY])
        if not body:
            raise malformed("a request must have at least one image. Received: an empty body.")
        return [Upload("", body)]
    raise Problem(
        415,
        "images are sent as multipart/form-data, or one alone as image/jpeg, image/png and the like. "
        f"Received: {kind[:80]!r}. With curl: -F file=@photo.jpg",
    )


async def _form(request: Request, context: Context) -> list[Upload]:
    headers = Headers(raw=request.scope["headers"])
    return await context.reading(request, lambda body: _read_form(body, headers, context.settings.max_files))


def _read_form(body: bytes | bytearray, headers: Headers, most: int) -> list[Upload]:
    async def pieces() -> AsyncGenerator[bytes, None]:
        for start in range(0, len(body), _PIECE):
            yield bytes(body[start : start + _PIECE])

    parser = _InMemory(headers, pieces(), max_files=most, max_fields=16, max_part_size=4096)
    try:
        form = _finished(parser.parse())
    except MultiPartException as error:
        status = 413 if error.message.startswith("Too many files") else 400
        raise Problem(status, f"the form cannot be read: {error.message}") from None
    except Exception as error:  # what the parser raises on headers that are no text, and the like
        raise malformed(f"the form cannot be read ({type(error).__name__}).") from error
    files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
    if not files:
        raise malformed("a request must have at least one image. Received: a form without files.")
    uploads = []
    for file in files:
        uploads.append(Upload(_base_name(file.filename), file.file.read()))
        file.file.close()
    return uploads


def _finished(work: Coroutine[Any, Any, _T]) -> _T:
    """Returns what a coroutine returns that waits for nothing: all of its data are in memory."""
    try:
        work.send(None)
    except StopIteration as stop:
        result: _T = stop.value
        return result
    finally:
        work.close()
    raise AssertionError("the form waits for something")


def _base_name(name: str | None) -> str:
    return (name or "").replace("\\", "/").rsplit("/", 1)[-1][:_LONGEST_NAME]


def _one(files: list[Upload]) -> Upload:
    if len(files) > 1:
        raise malformed(f"this takes one image at a time. Received: {len(files)}.")
    return files[0]


def _leased(context: Context, request: Request) -> Any:
    model = request.query_params.get("model") or context.default_model()
    number = request.query_params.get("version")
    version = None if number is None else whole_number(number)
    try:
        context.repository.number(model, version)
    except NotServed as error:
        numbered = "" if version is None else f" version {version}"
        raise not_found(error, f"there is no model {model[:128]!r}{numbered}.") from None
    return context.version(request, model, version)


def _whole(request: Request, name: str) -> int | None:
    value = request.query_params.get(name)
    if value is None:
        return None
    if not (value.isascii() and value.isdigit() and 0 < len(value) < 10 and int(value) > 0):
        raise malformed(f"{name} must be a whole number of at least 1.")
    return int(value)


def _share(request: Request, name: str) -> float | None:
    value = request.query_params.get(name)
    if value is None:
        return None
    try:
        number = float(value) if len(value) < 40 and value.isascii() else -1.0
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise malformed(f"{name} must be a number from 0 to 1.")
    return number


def _check_detector(version: Version, form: str, threshold: float | None) -> None:
    if not isinstance(version.served, ServedDetector) and (form == "png" or threshold is not None):
        raise malformed("format=png and threshold are for detectors. Received: a model without boxes.")


def _choice(request: Request, name: str, known: tuple[str, ...]) -> str:
    value = request.query_params.get(name, known[0])
    if value not in known:
        raise malformed(f"{name} must be one of {', '.join(known)}. Received: {value[:40]!r}.")
    return value


def _answered(
    what: str,
    answer: dict[str, Any],
    files: list[Upload],
    results: list[Any],
    describe: Callable[[Any], dict[str, Any]],
) -> Response:
    """Returns an entry a file: its result or its error. Only where no file can be used is the whole an error."""
    problems = [result for result in results if isinstance(result, Problem)]
    if len(problems) == len(results) == 1:
        raise problems[0]
    entries = [
        {"file": file.name, **({"error": str(one)} if isinstance(one, Problem) else describe(one))}
        for file, one in zip(files, results, strict=True)
    ]
    if len(problems) == len(results):
        return json_response({"error": "no image can be used", **answer, what: entries}, 422)
    return json_response({**answer, what: entries})


def _explained(found: adapter.ServedExplanation, neighbours: list[adapter.Neighbour] | None) -> dict[str, Any]:
    return {
        "label": found.label,
        "method": found.method,
        "evidence": found.evidence,
        "note": found.note,
        "is_empty": found.evidence != "positive",
        "image": adapter.data_url(adapter.png(found.image)),
        "heat": adapter.data_url(adapter.png(found.map)),
        "overlay": adapter.data_url(adapter.png(found.overlay)),
        "nearest": None if neighbours is None else [_neighbour(one) for one in neighbours],
    }


def _neighbour(one: adapter.Neighbour) -> dict[str, Any]:
    picture = {"thumbnail": adapter.data_url(one.thumbnail)} if one.thumbnail else {}
    return {"label": one.label, "similarity": one.similarity, **picture}
