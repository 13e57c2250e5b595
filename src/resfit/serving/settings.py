"""What a server may be asked: addresses, sizes and times, each with a bound."""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import re
from pathlib import Path
from typing import Any

from resfit.errors import ArgumentError

#: The environment variable that may hold the bearer token.
TOKEN_VARIABLE = "RESFIT_TOKEN"
_SHORTEST_TOKEN = 16
_ORIGIN = re.compile(r"https?://(?:[a-z0-9._-]+|\[[0-9a-f:]+\])(?::[0-9]{1,5})?")


def _between(least: float, greatest: float, default: float) -> Any:
    """A number with its bounds and what it is where nothing is said."""
    return dataclasses.field(default=default, metadata={"range": (least, greatest)})


@dataclasses.dataclass(frozen=True)
class ServerSettings:
    """How a server behaves.

    Attributes:
        host: Address to listen on. The default is reachable from this machine alone.
        port: Port to listen on; 0 takes a free one.
        engine: As :func:`resfit.engines.create` takes it; ``"auto"`` expects many images.
        name: Name of the model where one classifier is served; empty for the name of its folder.
        token: What clients must send as ``Authorization: Bearer``; empty for no check.
        hosts: Names under which clients may address the server, in ``Host``; empty for those of this machine where
            it listens on a loopback address, and for any otherwise.
        origins: Sites whose pages may send requests, such as ``"https://lab.example"``; those of all others are
            refused.
        max_batch: Most images in one pass of the network.
        max_delay: Seconds that an image waits for others that are being decoded.
        workers: Threads that run batches, for each model.
        queue: Most images that are accepted and not answered yet; above it clients are sent away with 429.
        timeout: Seconds for one request from its last byte to its answer.
        decode_timeout: Seconds after which the decoding of an image is given up.
        header_timeout: Seconds for the head of a request to arrive.
        body_timeout: Seconds for the body of a request to arrive.
        keep_alive: Seconds that an idle connection stays open.
        drain: Seconds for which it goes on accepting after SIGTERM, while it says that it is not ready.
        max_body: Most bytes of a request's body.
        max_buffered: Most bytes of all bodies that are in memory at once.
        max_header: Most bytes of a request's head.
        max_files: Most images in one request.
        max_pixels: Most pixels of an image, before it is decoded.
        max_json_depth: Deepest nesting of JSON.
        max_json_items: Most lists and objects in the parts of a JSON document that are no images.
        max_connections: Most connections at once.
        versions: How many versions of a model are served, the newest first.
        poll: Seconds between two looks at the folder.
    """

    host: str = "127.0.0.1"
    port: int = _between(0, 65535, 8080)
    engine: str = "auto"
    name: str = ""
    token: str = dataclasses.field(default="", repr=False)
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    max_batch: int = _between(1, 1024, 32)
    max_delay: float = _between(0, 1, 0.002)
    workers: int = _between(1, 64, 2)
    queue: int = _between(1, 100_000, 512)
    timeout: float = _between(0.1, 3600, 30.0)
    decode_timeout: float = _between(0.01, 3600, 10.0)
    header_timeout: float = _between(0.1, 600, 10.0)
    body_timeout: float = _between(0.1, 3600, 60.0)
    keep_alive: float = _between(1, 3600, 30.0)
    drain: float = _between(0, 600, 1.0)
    max_body: int = _between(1024, 2**31, 32 * 2**20)
    max_buffered: int = _between(1024, 2**36, 256 * 2**20)
    max_header: int = _between(1024, 2**20, 32 * 2**10)
    max_files: int = _between(1, 10_000, 64)
    max_pixels: int = _between(1, 2**30, 50_000_000)
    max_json_depth: int = _between(4, 200, 16)
    max_json_items: int = _between(100, 2**26, 2_000_000)
    max_connections: int = _between(1, 65_536, 1024)
    versions: int = _between(1, 1000, 1)
    poll: float = _between(0.05, 3600, 2.0)

    def __post_init__(self) -> None:
        """Checks every number.

        Raises:
            ArgumentError: One is out of its range, or the token is too short to keep anybody out.
        """
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            least, greatest = field.metadata.get("range", (value, value))
            if not least <= value <= greatest:
                raise ArgumentError(f"{field.name} must lie in [{least:g}, {greatest:g}]. Received: {value!r}.")
        for origin in self.origins:
            if not _ORIGIN.fullmatch(origin):
                raise ArgumentError(
                    "an allowed origin is a scheme and a host in lower case, such as https://lab.example or "
                    f"http://localhost:3000. Received: {origin!r}."
                )
        if self.token and (
            len(self.token) < _SHORTEST_TOKEN or not self.token.isascii() or not self.token.isprintable()
        ):
            raise ArgumentError(
                f"the token must have at least {_SHORTEST_TOKEN} printable ASCII characters. "
                f"Received: {len(self.token)} characters."
            )

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Says whether an address or name stands for this machine.

    Args:
        host: Without a port; IPv6 with or without its brackets.
    """
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def read_token(file: Path | None) -> str:
    """Returns the bearer token from a file, or from the environment; empty if there is none.

    Args:
        file: A file with the token in it; ``None`` looks at ``RESFIT_TOKEN``.

    Raises:
        ArgumentError: The file or the variable holds nothing.
        OSError: The file cannot be read.
    """
    if file is None and TOKEN_VARIABLE not in os.environ:
        return ""
    source = f"the file {str(file)!r}" if file is not None else f"the variable {TOKEN_VARIABLE}"
    token = (file.read_text("utf-8") if file is not None else os.environ[TOKEN_VARIABLE]).strip()
    if not token:
        raise ArgumentError(f"a token was asked for, but {source} is empty.")
    return token
