"""What a browser gets: the page, the description of the API, documents of a model; and the figures for machines."""

from __future__ import annotations

import hashlib
import hmac
import importlib.resources
import time
from typing import Any

from fastapi import APIRouter, Request, Response

from resfit.serving.context import Context, json_response
from resfit.serving.detection import ServedDetector
from resfit.serving.metrics import CONTENT_TYPE
from resfit.serving.problems import Problem

#: Files of the page: path, file, content type.
FILES = (
    ("/", "index.html", "text/html; charset=utf-8"),
    ("/page.css", "page.css", "text/css; charset=utf-8"),
    ("/page.js", "page.js", "text/javascript; charset=utf-8"),
    ("/docs", "docs.html", "text/html; charset=utf-8"),
    ("/docs.js", "docs.js", "text/javascript; charset=utf-8"),
    ("/icon.svg", "icon.svg", "image/svg+xml"),
)
#: What the page may do: its own files, and pictures that it was given or made.
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "frame-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
#: A report is a file from elsewhere: it may run what it brings, as a stranger to this server, and talk to nobody.
REPORT_POLICY = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data:; font-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)
_LINK_SECONDS = 300


def router(context: Context) -> APIRouter:
    """Returns the routes.

    Args:
        context: The server's parts.
    """
    routes = APIRouter(include_in_schema=False)
    folder = importlib.resources.files("resfit.serving") / "page"
    for path, name, kind in FILES:
        _add_file(routes, path, (folder / name).read_bytes(), kind)

    async def about(request: Request) -> Response:
        """Tells the page what is served."""
        return json_response(await context.pipeline.from_disk(lambda: _about(context)))

    async def report(request: Request) -> Response:
        """Shows the evaluation report of a model; a browser's frame sends no token, so the link is signed."""
        model = request.query_params.get("model", "")
        if context.settings.token and not _is_signed(context.settings.token, model, request.query_params):
            raise Problem(401, "this link has run out. Load the page again.")
        data = await _document(context, request, model, "report")
        policy = {"Content-Security-Policy": REPORT_POLICY, "X-Frame-Options": "SAMEORIGIN"}
        return Response(data, headers=policy, media_type="text/html; charset=utf-8")

    async def card(request: Request) -> Response:
        """Returns the model card as Markdown."""
        data = await _document(context, request, request.query_params.get("model", ""), "card")
        return Response(data, media_type="text/plain; charset=utf-8")

    async def metrics() -> Response:
        """Returns figures for Prometheus."""
        return Response(context.metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    for path, handler in (("/about", about), ("/report", report), ("/card", card), ("/metrics", metrics)):
        routes.add_api_route(path, handler, methods=["GET"])
    return routes


def _add_file(routes: APIRouter, path: str, data: bytes, kind: str) -> None:
    tag = f'"{hashlib.sha256(data).hexdigest()[:20]}"'
    headers = {"Content-Security-Policy": PAGE_POLICY, "Cache-Control": "no-cache", "ETag": tag, "Content-Type": kind}

    async def file(request: Request) -> Response:
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers={"ETag": tag})
        return Response(data, headers=headers)

    routes.add_api_route(path, file, methods=["GET"])


def _about(context: Context) -> dict[str, Any]:
    models = []
    for name, versions in sorted(context.repository.models.items()):
        newest = versions[max(versions)]
        served = newest.served
        signed = _signature(context.settings.token, name) if context.settings.token else {}
        models.append(
            {
                "name": name,
                "version": newest.number,
                "versions": sorted(versions),
                "classes": list(served.classes),
                "task": served.task,
                "network": served.network,
                "engine": served.engine,
                "size": list(served.shape[:2]),
                "calibrated": served.is_calibrated,
                **({"thresholds": served.thresholds} if isinstance(served, ServedDetector) else {}),
                "has_report": served.has_document("report"),
                "has_card": served.has_document("card"),
                "report_link": signed,
                "metrics": _figures(served.fitted.metrics),
            }
        )
    return {
        "ready": context.is_ready,
        "models": models,
        "max_files": context.settings.max_files,
        "max_body": context.settings.max_body,
    }


def _figures(metrics: dict[str, Any]) -> dict[str, Any]:
    """Returns the figures of the fit that the page shows where there is no report."""
    test = metrics.get("test") or {}
    wanted = (
        "accuracy",
        "exact_match_accuracy",
        "mean_average_precision",
        "balanced_accuracy",
        "f1_macro",
        "log_loss",
        "interval",
        "images",
    )
    return {
        "images": metrics.get("images", {}),
        "test": {key: test[key] for key in wanted if isinstance(test.get(key), int | float | list)},
    }


async def _document(context: Context, request: Request, model: str, name: str) -> bytes:
    with context.version(request, model or context.default_model()) as version:
        served = version.served
        data = await context.pipeline.from_disk(lambda: served.document(name))
    if data is None:
        raise Problem(404, f"this model has no {name}.")
    return data


def _signature(token: str, model: str, until: int | None = None) -> dict[str, str]:
    end = str(int(time.time()) + _LINK_SECONDS if until is None else until)
    signed = hmac.new(token.encode(), f"report\n{model}\n{end}".encode(), hashlib.sha256).hexdigest()
    return {"until": end, "signature": signed}


def _is_signed(token: str, model: str, query: Any) -> bool:
    until, received = query.get("until", ""), query.get("signature", "")
    if not (until.isascii() and until.isdigit() and len(until) < 12 and received.isascii()):
        return False
    expected = _signature(token, model, int(until))["signature"]
    return hmac.compare_digest(expected, received) and time.time() <= int(until)
