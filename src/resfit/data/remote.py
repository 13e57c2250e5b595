"""Images in clouds and on hubs: ``s3://``, ``gs://``, ``az://``, ``https://``, ``hf://datasets/…``, ``tfds://…``.

They are copied into the cache, many files at once, and read as a folder is. Pictures are copied in the background, in
the order of their names, while those that are here are decoded (:mod:`resfit.data.arriving`); everything else is here
before the folder is looked at. A large file of a bucket is copied in ranges, several at once. What is there and has not
changed, by size and version, is not copied again.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import json
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from resfit import dependencies
from resfit.data import arriving, decode
from resfit.errors import ArgumentError, CheckpointError, DataError, DownloadError, MissingDependencyError, ResfitError
from resfit.storage import locks
from resfit.storage.atomic import write_json
from resfit.weights.archives import parts
from resfit.weights.download import is_offline, locked

#: Files that are copied at once.
AT_ONCE = 16
#: Name of the kind of cache entries, and of the file in each that says what it is.
KIND, ABOUT, CONTENT = "sources", "source.json", "content"

_CLOUDS = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "https", "http")
# the command line's paths have lost one of the two slashes
_HANDLE = re.compile(rf"({'|'.join((*_CLOUDS, 'hf', 'tfds'))}):/{{1,2}}(?=[^/])(.*)", re.IGNORECASE | re.DOTALL)
#: Bytes of one request for a part of a large file, and from which size on files are copied so.
RANGE, LARGE = 16 * 2**20, 64 * 2**20
_RANGES = 8  # of one file at once
# endings of pictures, which no listing opens
_PICTURES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".dib", ".webp")
_ROOM = 10**9  # bytes that stay free on the disk
_MOST_FILES = 20_000_000


def handle_of(source: str | os.PathLike[str]) -> str:
    """Returns the handle that a text or path is, with both slashes; empty for a path.

    Args:
        source: Such as ``"s3://bucket/photos"``.
    """
    found = _HANDLE.fullmatch(os.fspath(source))
    return f"{found[1].lower()}://{found[2]}" if found is not None and not os.path.lexists(source) else ""


def local(source: str | os.PathLike[str]) -> Path:
    """Returns a path where a source can be read: itself, or the copy of what a handle names.

    Args:
        source: A path or a handle.

    Raises:
        DownloadError: It cannot be copied.
        MissingDependencyError: What reads it is not installed.
        DataError: There is no room for it, or a name that leads outside.
    """
    handle = handle_of(source)
    if not handle:
        return Path(source)
    scheme = handle.partition("://")[0]
    bring: Callable[[str], Path] = {"hf": _of_hugging_face, "tfds": _of_tfds}.get(scheme, _of_cloud)
    try:
        return bring(handle)
    except ResfitError:
        raise
    except Exception as error:  # each of them has errors of its own
        text = " ".join(str(error).split())[:200]
        raise DownloadError(
            f"{handle} could not be copied. Received: {type(error).__name__}: {text}. Credentials are those of the "
            "service's own tools. Or copy it by hand and pass its path."
        ) from error


def _of_hugging_face(handle: str) -> Path:
    """Copies a data set of the Hub into the Hub's own cache: ``hf://datasets/OWNER/NAME[@REVISION][/FOLDER]``."""
    found = re.fullmatch(r"hf://datasets/([\w.-]+/[\w.-]+)(?:@([^/]+))?(?:/(.+?))?/?", handle)
    if found is None:
        raise ArgumentError(f"a data set must be hf://datasets/OWNER/NAME[@REVISION][/FOLDER]. Received: {handle!r}.")
    dependencies.require(handle, "huggingface_hub")
    from huggingface_hub import snapshot_download

    repository, revision, inside = found.groups()
    below = "/".join(parts(inside)) if inside else ""
    patterns = [below, f"{below}/*"] if below else None
    folder = snapshot_download(
        repository, repo_type="dataset", revision=revision, allow_patterns=patterns, local_files_only=is_offline()
    )
    return Path(folder) / below


def _of_tfds(handle: str) -> Path:
    """Lets TensorFlow Datasets prepare a data set, and returns the folder of its files: ``tfds://NAME[:VERSION]``."""
    dependencies.require(handle, "tensorflow_datasets")
    import tensorflow_datasets as tfds

    builder = tfds.builder(handle.partition("://")[2].strip("/"))
    if is_offline() and not os.path.isdir(builder.data_path):
        raise DownloadError(f"{handle} is not prepared yet. Received: no network is allowed (RESFIT_OFFLINE).")
    builder.download_and_prepare()
    return Path(os.fspath(builder.data_path))


class _Copy:
    """A copy that goes on in the background: this process holds its lock until all files are here."""

    def __init__(self, handle: str, folder: Path):
        self.handle, self.folder, self.content = handle, folder, folder / CONTENT
        self.single = ""
        self._arrivals: arriving.Arrivals | None = None
        self._listed = threading.Event()
        self._failure: list[BaseException] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def place(self) -> Path:
        """Returns the folder or file once it can be looked at.

        Raises:
            Exception: It cannot be copied.
        """
        self._listed.wait()
        if self._failure:
            raise self._failure[0]
        return self.content / self.single if self.single else self.content

    def goes_on(self) -> bool:
        """Says whether files are still to come; one that has all of them is over when this returns."""
        if self._thread.is_alive() and (self._arrivals is None or self._arrivals.missing):
            return True
        self._thread.join()
        return False

    def end(self) -> None:
        """Stops it where it goes on, and notes what is here."""
        if self._arrivals is not None:
            self._arrivals.stop()
            self._thread.join()

    def _run(self) -> None:
        try:
            with locked(self.content):
                self._copy()
        except BaseException as error:
            self._failure.append(error)
        self._listed.set()

    def _copy(self) -> None:
        system, place = _system(self.handle)
        files, self.single = _listed(system, place, self.handle)
        about = _about(self.folder)
        known = about.get("files", {})
        missing = {
            name: facts
            for name, facts in files.items()
            if known.get(name) != facts[1:] or not (self.content / name).is_file()
        }
        _check_room(self.handle, sum(facts[1] for facts in missing.values()), self.folder)
        for name in {*known, *about.get("coming", ())} - set(files):
            (self.content / name).unlink(missing_ok=True)
        later = {} if self.single else {name: f for name, f in missing.items() if name.lower().endswith(_PICTURES)}
        here = {name: facts[1:] for name, facts in files.items() if name not in missing}
        self._note(here, missing)
        now = [name for name in missing if name not in later]
        for _ in decode.in_order(functools.partial(_bring, system, files, self.content), now, workers=AT_ONCE):
            pass
        here |= {name: files[name][1:] for name in now}
        for name in later:
            (self.content / name).parent.mkdir(parents=True, exist_ok=True)
            (self.content / name).touch()
        names = {os.fspath(self.content / name): name for name in sorted(later)}
        self._arrivals = arriving.Arrivals(
            {path: files[name][1] for path, name in names.items()}.items(),
            lambda path: _bring(system, files, self.content, names[path]),
            workers=min(AT_ONCE, len(names)),
        )
        self._listed.set()
        self._arrivals.join()
        coming = {names[path] for path in self._arrivals.missing}
        self._note(here | {name: files[name][1:] for name in later if name not in coming}, coming)

    def _note(self, here: dict[str, list[Any]], coming: Iterable[str]) -> None:
        about = {"source": self.handle, "single": self.single, "files": here, "coming": sorted(coming)}
        write_json(self.folder / ABOUT, about)


_copies: dict[str, _Copy] = {}
_starting = threading.Lock()


@atexit.register
def _end_copies() -> None:
    for copy in list(_copies.values()):
        copy.end()


def _of_cloud(handle: str) -> Path:
    """Copies a file, or all files below a folder, by fsspec; pictures of a folder in the background."""
    with_name = hashlib.sha256(handle.encode()).hexdigest()[:24]
    root = locks.cache_root()
    folder = (root if locks.is_writable(root) else _temporary()) / KIND / with_name
    folder.mkdir(parents=True, exist_ok=True)
    folder = folder.resolve()  # readers wait for files by their names
    locks.keep(folder / locks.USERS)
    if is_offline():
        about = _about(folder)
        if not about:
            raise DownloadError(f"{handle} is not in the cache. Received: no network is allowed (RESFIT_OFFLINE).")
        if coming := about.get("coming"):
            raise DownloadError(
                f"the copy of {handle} in the cache must be whole. Received: {len(coming)} files are missing, and no "
                "network is allowed (RESFIT_OFFLINE)."
            )
        return folder / CONTENT / about["single"] if about.get("single") else folder / CONTENT
    key = os.fspath(folder)
    with _starting:
        copy = _copies.get(key)
        if copy is None or not copy.goes_on():
            copy = _copies[key] = _Copy(handle, folder)
    return copy.place()


def faults(folder: Path) -> list[str]:
    """Returns which files of a copy are missing or of another size.

    Args:
        folder: An entry of the cache.
    """
    found = []
    for name, facts in _about(folder).get("files", {}).items():
        path = folder / CONTENT / name
        if not path.is_file():
            found.append(f"{name} is not there")
        elif facts[0] and path.stat().st_size != facts[0]:
            found.append(f"{name} has {path.stat().st_size} bytes in place of {facts[0]}")
    return found


def _about(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / ABOUT).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and isinstance(found.get("files"), dict) else {}


@functools.cache
def _temporary() -> Path:
    import tempfile

    folder = tempfile.mkdtemp(prefix="resfit-sources-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def file_system(handle: str) -> tuple[Any, str]:
    """Returns the file system of a handle, as fsspec has it, and the place in it.

    Args:
        handle: As :func:`handle_of` returns it.

    Raises:
        MissingDependencyError: fsspec or its storage back end is not installed.
    """
    return _system(handle)


def version_of(facts: dict[str, Any]) -> tuple[int, str]:
    """Returns size in bytes and version of a file, from what a file system lists of it.

    Args:
        facts: As fsspec's ``info`` returns them.
    """
    size, version = _version(facts)
    return size, version


def _system(handle: str) -> tuple[Any, str]:
    try:
        import fsspec

        system, place = fsspec.core.url_to_fs(handle)
    except (ImportError, ValueError) as error:
        raise MissingDependencyError(
            f"{handle} needs fsspec with its storage back end. Received: {' '.join(str(error).split())[:200]} Install "
            'them with: pip install "resfit[cloud]"'
        ) from error
    return system, str(place)


def _listed(system: Any, place: str, handle: str) -> tuple[dict[str, list[Any]], str]:
    """Returns for each name its place, size and version; and the name where it is a single file."""
    try:
        facts = {} if handle.endswith("/") else system.info(place)
    except FileNotFoundError:
        facts = {}
    if "http" in system.protocol and str(facts.get("mimetype", "")).startswith("text/html"):
        place = f"{place.rstrip('/')}/"  # a page of links, without the slash at its end that a path loses
    elif facts.get("type") == "file":
        name = "/".join(parts(place.rstrip("/").rpartition("/")[2].partition("?")[0]))
        return {name: [place, *_version(facts)]}, name
    found: dict[str, list[Any]] = {}
    for path, facts in system.find(place, detail=True).items():
        name = path.removeprefix(place).strip("/")
        if facts.get("type", "file") != "file" or not name:
            continue
        try:
            found["/".join(parts(name))] = [path, *_version(facts)]
        except CheckpointError as error:
            raise DataError(f"{handle} must have names for files. Received: {name[:200]!r}.") from error
        if len(found) > _MOST_FILES:
            raise DataError(f"{handle} may have {_MOST_FILES} files. Received: more.")
    if not found:
        raise DataError(f"{handle} must be a file or a folder with files. Received: nothing there.")
    unknown = [name for name, facts in found.items() if not facts[1] and not facts[2]]  # a page of links says neither
    places = [found[name][0] for name in unknown]
    for name, facts in zip(unknown, decode.in_order(system.info, places, workers=AT_ONCE), strict=True):
        found[name][1:] = _version(facts)
    return found, ""


def _version(facts: dict[str, Any]) -> list[Any]:
    version = next((facts[key] for key in ("ETag", "etag", "md5Hash", "LastModified", "mtime") if facts.get(key)), "")
    return [int(facts.get("size") or 0), str(version)]


def _check_room(handle: str, size: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free - _ROOM
    if size > free:
        raise DataError(
            f"the copy of {handle} must fit on the disk of {folder} (RESFIT_CACHE). Received: {size} bytes, and "
            f"{max(0, free)} are free. Pack the images smaller, or name a part of them."
        )


def _bring(system: Any, files: dict[str, list[Any]], content: Path, name: str) -> None:
    """Copies one file, whole or not at all."""
    place, size, _ = files[name]
    target = content / name
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.part")
    try:
        # a server of HTTP that knows no ranges would send all of the file each time
        if size >= LARGE and "http" not in system.protocol:
            _bring_ranges(system, place, size, partial)
        else:
            system.get_file(place, os.fspath(partial))
    except Exception as error:  # each back end has errors of its own
        partial.unlink(missing_ok=True)
        text = " ".join(str(error).split())[:200]
        raise DownloadError(
            f"{name} could not be copied. Received: {type(error).__name__}: {text}. Try again."
        ) from error
    if size and partial.stat().st_size != size:
        raise DownloadError(f"{name} must have {size} bytes. Received: {partial.stat().st_size}. Try again.")
    os.replace(partial, target)


def _bring_ranges(system: Any, place: str, size: int, partial: Path) -> None:
    """Copies a large file in parts, of which a few are in memory at once."""
    before = _version(system.info(place))

    def fetch(start: int) -> None:
        end = min(start + RANGE, size)
        data = system.cat_file(place, start=start, end=end)
        if len(data) != end - start:
            raise OSError(f"bytes {start} to {end} were {len(data)} bytes")
        os.pwrite(file.fileno(), data, start)

    with open(partial, "wb") as file:
        for _ in decode.in_order(fetch, range(0, size, RANGE), workers=_RANGES, ahead=_RANGES):
            pass
    system.invalidate_cache()
    if _version(system.info(place)) != before:
        raise OSError("it changed while it was copied")
