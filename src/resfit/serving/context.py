"""What the routes share: the server's parts, how bodies are read and answers written, and what OpenAPI says of both."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi import Response
from starlette.requests import Request

from resfit.serving import wire
from resfit.serving.metrics import Metrics
from resfit.serving.pipeline import Pipeline
from resfit.serving.problems import Problem
from resfit.serving.repository import NotServed, Repository, Version
from resfit.serving.settings import ServerSettings

if TYPE_CHECKING:
    pass

#: What a problem is called in the logs' scope entry.
SCOPE = "resfit"
#: Where the body stands in the scope, read and bounded by ``limits``.
BODY = "resfit.body"
_T = TypeVar("_T")
_ERROR = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
_MEANINGS = {
    400: "The request does not follow the protocol.",
    401: "The token is missing or wrong.",
    403: "The request comes from a page of another site.",
    404: "There is no such model, version or label.",
    408: "The request did not arrive in time.",
    413: "The request is too large.",
    415: "The content type or encoding is not known here.",
    421: "The server is not known by this name.",
    422: "No image can be used.",
    429: "Too many images are waiting.",
    431: "The head of the request is too large.",
    501: "This classifier has no such thing.",
    503: "Not ready, or about to end.",
    504: "There was no answer in time.",
}


@dataclasses.dataclass(eq=False)
class Context:
    """The parts of one server.

    Attributes:
        settings: Its bounds.
        repository: Its models.
        pipeline: What answers.
        metrics: Its figures.
        is_draining: Whether it is about to end.
    """

    settings: ServerSettings
    repository: Repository
    pipeline: Pipeline
    metrics: Metrics
    is_draining: bool = False

    @property
    def is_ready(self) -> bool:
        """Whether new clients should come."""
        return self.repository.is_ready and not self.is_draining

    @contextlib.contextmanager
    def version(
        self, request: Request, model: str, version: int | None = None, label: str | None = None
    ) -> Iterator[Version]:
        """Yields a version of a model for the length of a request, and notes it in the log.

        Raises:
            NotServed: There is none.
        """
        with self.repository.lease(model, version, label) as found:
            note(request, model=found.model, version=found.number)
            yield found

    async def reading(self, request: Request, read: Callable[[bytes | bytearray], _T]) -> _T:
        """Returns what is read out of the body of a request; long bodies are read beside the event loop.

        Args:
            request: The request.
            read: Reads the body, in steps that are short.
        """
        body = request.scope[BODY]
        return await self.pipeline.aside(lambda: read(body), len(body))

    def default_model(self) -> str:
        """Returns the model that is meant where none is named: the only one.

        Raises:
            Problem: There are several (400), or none yet (503).
        """
        models = sorted(self.repository.models)
        if not models:
            raise Problem(503, "no model is loaded yet. Try again.", retry_after=1)
        if len(models) > 1:
            raise Problem(400, f"several models are served: {', '.join(models)}. Name one: ?model={models[0]}.")
        return models[0]


def note(request: Request, **facts: Any) -> None:
    """Adds facts to the log line of a request."""
    request.scope.setdefault(SCOPE, {}).update(facts)


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Returns a JSON answer."""
    return Response(wire.dump(value), status, headers, "application/json")


def problem_response(problem: Problem) -> Response:
    """Returns the answer to a request that is refused."""
    return Response(wire.error(str(problem)), problem.status, problem.headers, "application/json")


def whole_number(text: str) -> int:
    """Returns a version of a URL.

    Raises:
        Problem: It is none.
    """
    if not (text.isascii() and text.isdigit()):
        raise Problem(400, "a version must be a whole number.")
    if len(text) > 18:
        raise Problem(400, f"Failed to convert version: {text[:40]} to numeric.")
    return int(text)


def not_found(error: NotServed, text: str) -> Problem:
    """Returns what a client is told of a model that is not served."""
    if error.is_loading:
        return Problem(503, f"{text} It is being loaded.", retry_after=1)
    return Problem(404, text)


def first_problem(results: list[Any], what: str = "image") -> None:
    """Refuses a request one of whose images cannot be used, by protocols that know no answer for a part of one.

    Raises:
        Problem: With the position of the first such image (400).
    """
    for position, result in enumerate(results):
        if isinstance(result, Problem):
            status = 400 if result.status == 422 else result.status
            text = f"{what} {position}: {result}"
            raise Problem(status, text, retry_after=result.retry_after, reason=result.reason)


def described(prediction: Any, unlike: bool | None, top: int | None) -> dict[str, Any]:
    """Returns what was seen on one image, for people."""
    if not hasattr(prediction, "probabilities"):
        return {name: value for name, value in prediction.to_dict().items() if name not in ("path", "error")}
    listed = list(prediction.probabilities.items())[:top]
    found: dict[str, Any] = {
        "label": prediction.label,
        "probability": prediction.probability,
        "probabilities": dict(listed),
        "labels": list(prediction.labels),
    }
    if unlike is not None:
        found["unlike_training"] = unlike
    return found


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Returns OpenAPI's description of the errors of a route; those of every route are added."""
    every = (400, 401, 403, 404, 408, 413, 415, 421, 429, 431, 503, 504)
    content = {"application/json": {"schema": _ERROR}}
    return {status: {"description": _MEANINGS[status], "content": content} for status in sorted({*every, *statuses})}


def json_request(schema: dict[str, Any], example: Any) -> dict[str, Any]:
    """Returns OpenAPI's description of a JSON body."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema, "example": example}}}}


def json_ok(schema: dict[str, Any], description: str) -> dict[int | str, dict[str, Any]]:
    """Returns OpenAPI's description of a JSON answer."""
    return {200: {"description": description, "content": {"application/json": {"schema": schema}}}}
