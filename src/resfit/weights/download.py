"""One file from the web to this machine: streamed, resumed, verified, and by one process at a time.

What has come so far lies beside the destination as ``.NAME.part``, with a note of where it came from; it is renamed
when it is whole and verified. A kill at any moment therefore costs nothing: the next call goes on where the last one
stopped, if the server can tell that the file is still the same.
"""

from __future__ import annotations

import contextlib
import dataclasses
import email.utils
import hashlib
import http.client
import json
import os
import re
import shutil
import socket
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from resfit.errors import ArgumentError, DownloadError
from resfit.storage import atomic
from resfit.storage.locks import VARIABLE

#: Environment variable that, set to 1, forbids every download.
OFFLINE = "RESFIT_OFFLINE"

#: Bytes that a file may have where the caller names no limit; the largest published ResNets have 4 GB.
MOST_BYTES = 20 * 10**9

#: Seconds that a server may ask us to wait before the next attempt.
LONGEST_WAIT = 120.0

_CHUNK = 1 << 18
_ADVANCE = 1 << 20  # an attempt that brings so many more bytes has not failed
_PATIENCE = 2.0  # seconds before a progress bar appears
_TEMPORARY = (408, 425, 429, 500, 502, 503, 504)
_LENGTHS = {"md5": 32, "sha1": 40, "sha256": 64}
_SHORTEST_PREFIX = 8

_REASONS = {
    401: "it asks for credentials",
    403: "it denies access: credentials may be missing, or a licence has to be accepted on its site",
    404: "there is no such file",
    410: "the file is gone",
}

Report = Callable[[int, "int | None"], None]


class _TryAgainError(Exception):
    """An attempt failed in a way that another may not. ``wait``: the seconds that the server asks for."""

    def __init__(self, reason: str, wait: float | None = None):
        super().__init__(reason)
        self.wait = wait


def is_offline() -> bool:
    """Whether downloads are forbidden by ``$RESFIT_OFFLINE``."""
    return os.environ.get(OFFLINE, "").strip().lower() not in ("", "0", "false", "no")


@contextlib.contextmanager
def locked(path: Path, *, timeout: float | None = None) -> Iterator[None]:
    """Holds a lock between processes and threads for the length of a ``with`` block.

    The operating system lets go of it when the process ends, however it ends.

    Args:
        path: What is locked. It need not exist; the lock file lies beside it, as ``.NAME.lock``, while it is held.
        timeout: Seconds to wait for it; ``None`` waits for as long as others hold it.

    Raises:
        DownloadError: It was not to be had in this time.
        OSError: The folder cannot be written.
    """
    import filelock

    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path.with_name(f".{path.name}.lock"), timeout=-1 if timeout is None else timeout)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise DownloadError(
            f"timed out after {timeout} s: {path} is being made by another process. Try again later."
        ) from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.unlink(lock.lock_file)  # those who wait for it see that it is gone, and make it anew
        lock.release()


@dataclasses.dataclass(frozen=True)
class Expected:
    """What is known of a file before it is here.

    Attributes:
        size: In bytes; None where it is not known.
        hashes: ``"md5"``, ``"sha1"`` or ``"sha256"`` -> hexadecimal digits; with ``"-prefix"`` behind the name only
            the first digits, at least eight.

    Raises:
        ArgumentError: A hash is none.
    """

    size: int | None = None
    hashes: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, digits in self.hashes.items():
            length = _LENGTHS.get(name.removesuffix("-prefix"))
            shortest = _SHORTEST_PREFIX if name.endswith("-prefix") else length
            if length is None or not re.fullmatch(rf"[0-9a-fA-F]{{{shortest},{length}}}", digits):
                raise ArgumentError(
                    f"a hash must be the {'/'.join(_LENGTHS)} of a file in hexadecimal digits, or, as NAME-prefix, its "
                    f"first {_SHORTEST_PREFIX} or more. Received: {name}={digits!r}."
                )

    def fault(self, path: Path) -> str:
        """Returns what is wrong with a file, or ``""``.

        Args:
            path: The file. If it is there, it is read whole, once for each hash.
        """
        try:
            found = path.stat().st_size
            if self.size is not None and found != self.size:
                return f"a file of {found} bytes is there, not of {self.size}"
            for name, digits in self.hashes.items():
                algorithm = name.removesuffix("-prefix")
                got = digest(path, algorithm)
                if not got.startswith(digits.lower()):
                    return f"a file with another {algorithm} is there, {got[: max(len(digits), 8)]}"
        except OSError as error:
            return "it is not there" if isinstance(error, FileNotFoundError) else f"it cannot be read ({error})"
        return ""

    def __str__(self) -> str:
        known = [f"{self.size} bytes"] if self.size is not None else []
        return ", ".join([*known, *(f"{name} {digits}" for name, digits in self.hashes.items())])


def digest(path: Path, algorithm: str = "sha256") -> str:
    """Returns the digest of a file in hexadecimal digits.

    Args:
        path: The file.
        algorithm: ``"md5"``, ``"sha1"`` or ``"sha256"``.

    Raises:
        OSError: It cannot be read.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


def fetch(
    url: str,
    destination: Path,
    *,
    size: int | None = None,
    hashes: Mapping[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
    what: str = "file",
    max_bytes: int | None = None,
    retries: int = 4,
    timeout: float = 30.0,
    backoff: float = 1.0,
    progress: bool | None = None,
) -> Path:
    """Brings a file, unless it is there already.

    Args:
        url: ``https://`` or ``http://``. Redirects are followed, but never from https to http, and ``headers`` are
            not shown to another host.
        destination: Where it is put. A file that is there is taken if its size and hashes are right, and replaced if
            they are not.
        size: Its bytes, if they are known.
        hashes: Its hashes, if they are known, as :class:`Expected` takes them.
        headers: Sent with the request.
        what: What messages call it.
        max_bytes: Bytes that it may have. Default: :data:`MOST_BYTES`.
        retries: How many attempts in a row may bring nothing.
        timeout: Seconds in which a server must answer, and then send something.
        backoff: Seconds before the second attempt; they double with each. What a server asks for goes before.
        progress: Whether a bar is drawn on stderr. Default: if that is a terminal, after two seconds.

    Returns:
        ``destination``.

    Raises:
        DownloadError: It cannot be brought, or what came is not what was expected. The text names file, URL and
            where to put it by hand.
        ArgumentError: The address or a hash is none.

    Example:
        >>> fetch("https://example.org/net.h5", Path("net.h5"), hashes={"md5": "2cb95161…"})  # doctest: +SKIP
    """
    expected = Expected(size, dict(hashes or {}))
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise ArgumentError(f"an address must begin with https:// or http://. Received: {url!r}.")
    destination = Path(destination)
    fault = expected.fault(destination)
    if not fault:
        return destination
    known = f" ({expected})" if str(expected) else ""
    way_out = f"Put the file from {url}{known} at {destination}."
    if is_offline():
        raise DownloadError(
            f"{what} must be at {destination}, as {OFFLINE} is set. Received: {fault}. {way_out} Or unset {OFFLINE}."
        )
    limit = MOST_BYTES if max_bytes is None else max_bytes
    attempt = _Attempt(url, destination, expected, dict(headers or {}), limit, timeout)
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with locked(destination):
            if expected.fault(destination):
                with _bar(what, progress) as report:
                    _persist(attempt, retries, backoff, report)
    except _TryAgainError as error:
        raise DownloadError(f"{what} could not be downloaded from {url}. Received: {error}. {way_out}") from error
    except DownloadError as error:
        raise DownloadError(f"{what} could not be downloaded from {url}. Received: {error}. {way_out}") from error
    except OSError as error:
        raise DownloadError(f"{what} cannot be written at {destination}. Received: {error}. {way_out}") from error
    return destination


def _persist(attempt: _Attempt, retries: int, backoff: float, report: Report) -> None:
    """Makes attempts until one succeeds, or too many have brought nothing."""
    failures, furthest = 0, attempt.size()
    while True:
        try:
            return attempt.run(report)
        except _TryAgainError as error:
            reached = attempt.size()
            failures = 0 if reached > furthest + _ADVANCE else failures + 1
            furthest = max(furthest, reached)
            wait = backoff * 2 ** max(failures - 1, 0) if error.wait is None else error.wait
            if failures > retries or wait > LONGEST_WAIT:
                raise
            time.sleep(wait)


@dataclasses.dataclass(frozen=True)
class _Attempt:
    """One download; may be run several times, and goes on where the last run stopped."""

    url: str
    destination: Path
    expected: Expected
    headers: Mapping[str, str]
    limit: int
    timeout: float

    @property
    def part(self) -> Path:
        return self.destination.with_name(f".{self.destination.name}.part")

    @property
    def note(self) -> Path:
        return self.destination.with_name(f".{self.destination.name}.part.json")

    def size(self) -> int:
        """Returns how many bytes have come."""
        try:
            return self.part.stat().st_size
        except OSError:
            return 0

    def run(self, report: Report) -> None:
        """Brings what is missing, verifies all, and renames it.

        Raises:
            _TryAgainError: Another attempt may succeed.
            DownloadError: It would not.
            OSError: The file cannot be written.
        """
        origin = self._origin()
        start = self.size()
        if not start or start != (origin.get("total") or self.expected.size):
            start = self._stream(start, origin, report)
        if fault := self.expected.fault(self.part):
            self._discard()
            fault = fault.replace(" is there", " came")
            raise _TryAgainError(fault) if start else DownloadError(fault)
        atomic.sync(self.part)
        os.replace(self.part, self.destination)
        self.note.unlink(missing_ok=True)
        atomic.sync(self.destination.parent)

    def _stream(self, start: int, origin: Mapping[str, Any], report: Report) -> int:
        """Requests what is missing and appends it. Returns where it began."""
        with self._open(start, origin) as response:
            start, total = self._place(response, start, origin)
            with open(self.part, "ab" if start else "wb") as file:
                end = self._copy(response, file, start, total, report)
        if total is not None and end < total:
            raise _TryAgainError(f"the connection ended after {end} of {total} bytes")
        if self.expected.size is not None and end < self.expected.size:
            raise _TryAgainError(f"the connection ended after {end} of {self.expected.size} bytes")
        return start

    def _open(self, start: int, origin: Mapping[str, Any]) -> http.client.HTTPResponse:
        import resfit

        request = urllib.request.Request(self.url, headers={"User-Agent": f"resfit/{resfit.__version__}"})
        # a proxy or server that packs the file would spoil lengths and ranges
        request.add_header("Accept-Encoding", "identity")
        for name, value in self.headers.items():
            request.add_header(name, value)
        if start:
            request.add_header("Range", f"bytes={start}-")
            if validator := _validator(origin):
                request.add_header("If-Range", validator)
        opener = urllib.request.build_opener(_Redirects(self.headers))
        try:
            return opener.open(request, timeout=self.timeout)
        except DownloadError:
            raise
        except urllib.error.HTTPError as error:
            with error:
                raise self._denied(error) from error
        except urllib.error.URLError as error:
            lasting = isinstance(error.reason, ssl.SSLCertVerificationError) or (
                isinstance(error.reason, socket.gaierror) and error.reason.errno != socket.EAI_AGAIN
            )
            raise (DownloadError if lasting else _TryAgainError)(f"no connection ({error.reason})") from error
        except TimeoutError as error:
            raise _TryAgainError(f"no answer in {self.timeout:g} s") from error
        except (OSError, http.client.HTTPException) as error:
            raise _TryAgainError(f"no proper answer ({_said(error)})") from error
        except ValueError as error:  # such as a redirect to half an address
            raise DownloadError(f"no proper address ({error})") from error

    def _denied(self, error: urllib.error.HTTPError) -> Exception:
        if error.code == 416:  # what is here is longer than what is there
            self._discard()
            return _TryAgainError("the server has fewer bytes than are here already")
        reason = f"the server answers {error.code}, {_REASONS.get(error.code) or _said(error.reason)}"
        if error.code not in _TEMPORARY:
            return DownloadError(reason)
        wait = _seconds(error.headers.get("Retry-After"))
        if wait is not None and wait > LONGEST_WAIT:
            return DownloadError(f"{reason}, and asks to come back in {wait:.0f} s")
        return _TryAgainError(reason, wait)

    def _place(
        self, response: http.client.HTTPResponse, start: int, origin: Mapping[str, Any]
    ) -> tuple[int, int | None]:
        """Returns where the bytes of an answer begin, and how many the whole file has; writes the note."""
        described = {
            "url": self.url,
            "etag": response.headers.get("ETag"),
            "modified": response.headers.get("Last-Modified"),
        }
        length = _number(response.headers.get("Content-Length"))
        if response.status == 206:
            given = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", "").strip())
            total = _number(given[2]) if given else None
            changed = (origin.get("total") and total and total != origin["total"]) or any(
                described[key] and origin.get(key) and described[key] != origin[key] for key in ("etag", "modified")
            )
            if not given or int(given[1]) != start or changed:
                self._discard()
                raise _TryAgainError("the server's file has changed" if changed else "the server sends another part")
            total = total or (length + start if length is not None else origin.get("total"))
        elif response.status == 200:
            start, total = 0, length
        else:
            raise DownloadError(f"the server answers {response.status}, {_said(response.reason)}")
        if total is not None and self.expected.size not in (None, total):
            raise DownloadError(f"the server's file has {total} bytes, not {self.expected.size}")
        if total is not None and total > self.limit:
            raise DownloadError(f"the server's file has {total} bytes, over the limit of {self.limit}")
        free = shutil.disk_usage(self.part.parent).free
        if total is not None and total - start > free:
            raise DownloadError(
                f"the file needs {total - start} bytes in {self.part.parent}, of which {free} are free; make room, or "
                f"set {VARIABLE} (for Keras' weights KERAS_HOME) to a folder with more"
            )
        if not start:
            self.part.unlink(missing_ok=True)
            atomic.write_json(self.note, {**described, "total": total})
        return start, total

    def _copy(
        self, response: http.client.HTTPResponse, file: BinaryIO, start: int, total: int | None, report: Report
    ) -> int:
        """Appends the body of an answer. Returns how many bytes have come in all."""
        end = start
        most = min(size for size in (self.limit, total, self.expected.size) if size is not None)
        while True:
            try:
                # read1: what a server sends slowly is kept up to the moment at which it stalls
                chunk = response.read1(_CHUNK)
            except TimeoutError as error:
                raise _TryAgainError(f"nothing came for {self.timeout:g} s, after {end} bytes") from error
            except (OSError, http.client.HTTPException, ValueError) as error:
                raise _TryAgainError(f"the connection broke after {end} bytes ({_said(error)})") from error
            if not chunk:
                return end
            end += len(chunk)
            if end > most:
                raise DownloadError(f"the server sends more than {most} bytes")
            file.write(chunk)
            report(end, total or self.expected.size)

    def _origin(self) -> dict[str, Any]:
        """Returns the note of what has come so far; throws that away if it cannot be gone on with."""
        try:
            origin = json.loads(self.note.read_bytes())
            if origin["url"] == self.url and (_validator(origin) or self.expected.hashes):
                return dict(origin)
        except (OSError, ValueError, TypeError, KeyError):
            pass
        self._discard()
        return {}

    def _discard(self) -> None:
        self.part.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a few redirects; none to less safety, and shows the caller's headers to no other host."""

    max_redirections = 10
    max_repeats = 2

    def __init__(self, private: Mapping[str, str]):
        self._private = tuple(private)

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        old, new = urlsplit(req.full_url), urlsplit(newurl)
        if new.scheme not in ("http", "https") or (old.scheme == "https" and new.scheme == "http"):
            raise DownloadError(f"a redirect from {old.scheme} to {new.scheme}, which is not followed")
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None and (old.scheme, old.netloc) != (new.scheme, new.netloc):
            for name in self._private:
                request.remove_header(name.capitalize())
        return request


def _validator(origin: Mapping[str, Any]) -> str | None:
    """Returns by what a server can tell that its file is still the same: a strong ETag, or the time of change."""
    etag = origin.get("etag") or ""
    return etag if etag and not etag.startswith("W/") else origin.get("modified")


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and re.fullmatch(r"\d{1,18}", text.strip()) else None


def _seconds(text: str | None) -> float | None:
    """Reads a Retry-After header: seconds, or a date."""
    if text is None or (number := _number(text)) is not None:
        return None if text is None else float(number or 0)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def _said(error: object) -> str:
    """Returns what a server or system said, in one line that a terminal can show."""
    text = str(error) or type(error).__name__
    return "".join(c if c.isprintable() else "?" for c in text)[:200]


@contextlib.contextmanager
def _bar(what: str, progress: bool | None) -> Iterator[Report]:
    """Yields what is told of progress, and draws it as a bar on stderr once it takes more than two seconds."""
    if not (sys.stderr is not None and sys.stderr.isatty() if progress is None else progress):
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    bar = Progress(
        *(TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn()),
        TimeRemainingColumn(),
        console=Console(stderr=True, force_terminal=progress),
        transient=True,
    )
    task = bar.add_task(_said(what), total=None)
    begin = time.monotonic()

    def report(done: int, total: int | None) -> None:
        if not bar.live.is_started and (progress or time.monotonic() - begin > _PATIENCE):
            bar.start()
        bar.update(task, completed=done, total=total)

    try:
        yield report
    finally:
        if bar.live.is_started:
            bar.stop()
