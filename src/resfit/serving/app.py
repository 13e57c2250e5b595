"""The application: all routes of a server, in front of which stand its limits."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

import resfit
from resfit.serving import inference_v2, pages, rest_api, tfserving
from resfit.serving.context import Context, problem_response
from resfit.serving.limits import Application, Limits
from resfit.serving.problems import Problem
from resfit.serving.repository import NotServed

_ABOUT = """
Classifies images. The same network under three names: TensorFlow Serving's REST API, the Open Inference Protocol v2
with binary data, and a short API for files. `/metrics` is for Prometheus.
"""


def create_app(context: Context) -> Application:
    """Returns the ASGI application of a server.

    Args:
        context: The server's parts.
    """
    app = FastAPI(
        title="resfit",
        version=resfit.__version__,
        description=_ABOUT.strip(),
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
    )
    for module in (rest_api, tfserving, inference_v2, pages):
        app.include_router(module.router(context))

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, Problem)
        context.metrics.error(error.reason)
        return problem_response(error)

    async def gone(request: Request, error: Exception) -> Response:
        return await refused(request, Problem(404, "there is no such model or version."))

    async def unknown(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        response = await refused(request, Problem(error.status_code, str(error.detail)))
        response.headers.update(error.headers or {})
        return response

    async def unexpected(request: Request, error: Exception) -> Response:
        return await refused(request, Problem(500, "unexpected error; the log has more.", reason="unexpected"))

    app.add_exception_handler(Exception, unexpected)
    app.add_exception_handler(Problem, refused)
    app.add_exception_handler(NotServed, gone)
    app.add_exception_handler(HTTPException, unknown)
    if context.settings.token:
        _describe_token(app)
    limits = Limits(app, context)
    metrics, pipeline, repository = context.metrics, context.pipeline, context.repository
    metrics.watch("resfit_queue_images", "Images in the queues.", lambda: repository.waiting)
    metrics.watch("resfit_accepted_images", "Images accepted and not answered yet.", lambda: pipeline.slots.taken)
    metrics.watch("resfit_buffered_bytes", "Bytes of request bodies in memory.", lambda: limits.buffered)
    app.openapi()  # worked out once, and not while clients wait
    if not context.settings.origins:
        return limits
    return CORSMiddleware(
        limits,
        allow_origins=context.settings.origins,
        allow_methods=["GET", "POST"],
        allow_headers=["authorization", "content-type", "content-encoding", "x-request-id", inference_v2.HEADER],
        expose_headers=["x-request-id", "retry-after", inference_v2.HEADER],
    )


def _describe_token(app: FastAPI) -> None:
    """Adds the token to OpenAPI's description."""
    plain = app.openapi

    def described() -> dict[str, object]:
        schema = plain()
        components = schema.setdefault("components", {})
        components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        schema["security"] = [{"token": []}]
        return schema

    app.openapi = described  # type: ignore[method-assign]
