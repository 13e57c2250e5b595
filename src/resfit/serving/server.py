"""How a server starts and ends: uvicorn, with time-outs for what a client has yet to send, and a drain without loss."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import threadpoolctl
import uvicorn

from resfit import engines
from resfit.errors import ArtifactError
from resfit.serving import logs
from resfit.serving.app import create_app
from resfit.serving.context import Context
from resfit.serving.folders import preflight
from resfit.serving.http_protocol import protocol
from resfit.serving.metrics import Metrics
from resfit.serving.pipeline import Pipeline
from resfit.serving.repository import Repository
from resfit.serving.settings import ServerSettings

_BACKLOG = 2048
_TICK = 0.1
_PATIENCE = 10.0  # seconds for the threads to end, once all requests are answered


def serve(root: Path, settings: ServerSettings, *, started: Callable[[str], None] | None = None) -> bool:
    """Serves a classifier, or a folder of them, until SIGTERM or SIGINT.

    Args:
        root: The folder.
        settings: How.
        started: Called with the server's URL once it listens.

    Returns:
        Whether all of its threads have ended. One that reads from a disk that does not answer cannot be stopped, and
        keeps a process from ending by itself: ``os._exit`` ends it.

    Raises:
        ArgumentError: The folder holds something else than classifiers.
        ArtifactError: None of the classifiers in it can be loaded.
        OSError: The address is taken.
    """
    engines.check_name(settings.engine)
    preflight(root)
    metrics = Metrics()
    repository = Repository(root, settings, metrics)
    context = Context(settings, repository, Pipeline(settings, metrics), metrics)
    # products of small matrices are no work for many threads, which only get into the way of the network's own
    with threadpoolctl.threadpool_limits(1, user_api="blas"), _listening(settings) as listener:
        url = _url(listener)
        server = Server(context, listener, started=lambda: started(url) if started is not None else None)
        repository.start()
        try:
            server.run(sockets=[listener])
        finally:
            end = time.monotonic() + _PATIENCE
            has_ended = context.pipeline.close(_PATIENCE)
            has_ended = repository.close(max(0.0, end - time.monotonic())) and has_ended
            if not has_ended:
                logs.event("threads are left behind", level=logging.WARNING, seconds=_PATIENCE)
    if repository.failure:
        raise ArtifactError(f"a server needs a model that can be loaded. Received: {repository.failure}")
    return has_ended


class Server(uvicorn.Server):
    """uvicorn's server, which goes on for a while after it was told to end.

    On SIGTERM it first says that it is not ready and closes connections as they are answered, while new ones are still
    taken; then it takes what the system has accepted in its name, stops listening, and answers everything.

    Args:
        context: The server's parts.
        listener: The socket.
        started: Called once it listens, and SIGTERM ends it in order.
    """

    def __init__(self, context: Context, listener: socket.socket, *, started: Callable[[], None]):
        settings = context.settings
        config = uvicorn.Config(
            create_app(context),
            http=protocol(settings, context),
            ws="none",
            loop="asyncio",
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,
            backlog=_BACKLOG,
            limit_concurrency=settings.max_connections,
            timeout_keep_alive=int(settings.keep_alive),
            timeout_graceful_shutdown=int(settings.timeout + settings.body_timeout) + 1,
            h11_max_incomplete_event_size=settings.max_header,
        )
        super().__init__(config)
        self._context, self._listener, self._started = context, listener, started
        self._signals = 0
        self._end = 0.0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begins the drain; a second signal ends at once."""
        # this runs between any two instructions: it only notes what `on_tick` then does
        self._signals += 1

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to answer."""
        await super().startup(sockets)
        self._started()

    async def on_tick(self, counter: int) -> bool:
        """Looks at what takes too long, what was signalled and whether there is a model, ten times a second."""
        self._context.pipeline.expire()
        if self._context.repository.failure:
            self.should_exit = True
        if self._signals and not self._context.is_draining:
            self._context.is_draining = True
            self._end = time.monotonic() + self._context.settings.drain
            logs.event("draining", seconds=self._context.settings.drain)
        if self._context.is_draining and (self._signals > 1 or time.monotonic() >= self._end):
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stops listening and answers what was accepted."""
        last = self._listener.dup()
        try:
            for server in self.servers:
                server.close()
            await self._take_accepted(last)
        finally:
            last.close()
        expiring = asyncio.create_task(self._expire())
        await super().shutdown(sockets)
        expiring.cancel()
        logs.event("ended")

    async def _take_accepted(self, listener: socket.socket) -> None:
        """Takes the connections that the system has accepted and nobody has taken yet."""
        listener.setblocking(False)
        loop = asyncio.get_running_loop()
        config = self.config
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connection.setblocking(False)
            await loop.connect_accepted_socket(
                lambda: config.http_protocol_class(  # type: ignore[call-arg]
                    config=config, server_state=self.server_state, app_state=self.lifespan.state
                ),
                connection,
            )

    async def _expire(self) -> None:
        while True:
            self._context.pipeline.expire()
            if self._signals > 1:
                self.force_exit = True
            await asyncio.sleep(_TICK)


@contextlib.contextmanager
def _listening(settings: ServerSettings) -> Any:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((settings.host.strip("[]"), settings.port))
        listener.listen(_BACKLOG)
        yield listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
