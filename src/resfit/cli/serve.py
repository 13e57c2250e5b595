"""``resfit serve``: a classifier, or a folder of them, over HTTP."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from resfit.cli import console
from resfit.cli.options import Device, Engine
from resfit.serving.settings import ServerSettings, read_token

_MODULES = ("fastapi", "h11", "prometheus_client", "python_multipart", "starlette", "uvicorn")


def check_installed() -> None:
    """Makes sure that the server can start, before any work is done for it."""
    from resfit import dependencies

    dependencies.require("the server", *_MODULES)


def register(app: typer.Typer) -> None:
    """Adds the command to the application.

    Args:
        app: The application.
    """
    app.command("serve", epilog="Example: resfit serve photos.resfit --port 8080")(serve)


def serve(
    source: Annotated[
        Path, typer.Argument(metavar="OUT", help="A classifier, or a folder of them: MODEL/ or MODEL/VERSION/.")
    ],
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on; 0.0.0.0 lets other machines in.")
    ] = ServerSettings.host,
    port: Annotated[int, typer.Option("--port", help="Port to listen on; 0 takes a free one.")] = ServerSettings.port,
    engine: Engine = ServerSettings.engine,
    device: Device = "auto",
    name: Annotated[str, typer.Option("--name", help="Name of the model, where one is served.")] = ServerSettings.name,
    token_file: Annotated[
        Path | None,
        typer.Option("--token-file", help="File with a bearer token that clients must send; or set RESFIT_TOKEN."),
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option("--allow-host", help="Name that clients may call the server by; repeatable.")
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option("--allow-origin", help="Site whose pages may ask, such as https://lab.example; repeatable."),
    ] = None,
    max_batch: Annotated[
        int, typer.Option("--max-batch", help="Most images in one pass of the network.")
    ] = ServerSettings.max_batch,
    max_delay: Annotated[
        float, typer.Option("--max-delay", help="Milliseconds that an image waits for others on their way.")
    ] = 1000 * ServerSettings.max_delay,
    workers: Annotated[int, typer.Option("--workers", help="Threads that run batches.")] = ServerSettings.workers,
    queue: Annotated[
        int, typer.Option("--queue", help="Most images accepted at once; above it: 429.")
    ] = ServerSettings.queue,
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds for one answer.")] = ServerSettings.timeout,
    drain: Annotated[
        float, typer.Option("--drain", help="Seconds of accepting on after SIGTERM, while not ready.")
    ] = ServerSettings.drain,
    max_body: Annotated[int, typer.Option("--max-body", help="Most bytes of a request.")] = ServerSettings.max_body,
    max_files: Annotated[int, typer.Option("--max-files", help="Most images in a request.")] = ServerSettings.max_files,
    max_pixels: Annotated[
        int, typer.Option("--max-pixels", help="Most pixels of an image.")
    ] = ServerSettings.max_pixels,
    decode_timeout: Annotated[
        float, typer.Option("--decode-timeout", help="Seconds for decoding an image.")
    ] = ServerSettings.decode_timeout,
    header_timeout: Annotated[
        float, typer.Option("--header-timeout", help="Seconds for the head of a request.")
    ] = ServerSettings.header_timeout,
    body_timeout: Annotated[
        float, typer.Option("--body-timeout", help="Seconds for the body of a request.")
    ] = ServerSettings.body_timeout,
    versions: Annotated[
        int, typer.Option("--versions", help="How many versions of a model are served.")
    ] = ServerSettings.versions,
    poll: Annotated[
        float, typer.Option("--poll", help="Seconds between two looks at the folder.")
    ] = ServerSettings.poll,
    log_level: Annotated[str, typer.Option("--log-level", help="debug, info, warning or error.")] = "info",
    as_json: Annotated[bool, typer.Option("--json", help="Print where it listens as JSON.")] = False,
) -> None:
    """Serve a classifier: a web page, TensorFlow Serving's API and the Open Inference Protocol. Ends on Ctrl-C."""
    from resfit.errors import ArgumentError

    check_installed()
    from resfit.serving import logs

    settings = ServerSettings(
        host=host,
        port=port,
        engine=engine,
        name=name,
        token=read_token(token_file),
        hosts=tuple(known.lower() for known in allow_host or ()),
        origins=tuple(origin.lower().rstrip("/") for origin in allow_origin or ()),
        max_batch=max_batch,
        max_delay=max_delay / 1000,
        workers=workers,
        queue=queue,
        timeout=timeout,
        drain=drain,
        max_body=max_body,
        max_files=max_files,
        max_pixels=max_pixels,
        decode_timeout=decode_timeout,
        header_timeout=header_timeout,
        body_timeout=body_timeout,
        versions=versions,
        poll=poll,
    )
    levels = ("debug", "info", "warning", "error")
    if log_level not in levels:
        raise ArgumentError(f"log_level must be one of {levels}. Received: {log_level!r}.")
    console.load_tensorflow_for(source)
    from resfit.serving import server

    logs.set_up(log_level)
    if not settings.is_loopback and not settings.token:
        console.message("Warning: whoever reaches this machine can ask this server. Set a token: --token-file.")

    def started(url: str) -> None:
        if as_json:
            console.print_json({"url": url})
        console.message(f"Serving {source} at {url}  (API: {url}/docs)  Ctrl-C ends it.")

    if not server.serve(source, settings, started=started):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)  # a thread that waits for a disk would keep the process for ever
