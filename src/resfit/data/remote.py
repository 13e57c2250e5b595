"""Images in clouds and on hubs: ``s3://``, ``gs://``, ``az://``, ``https://``, ``hf://datasets/…``, ``tfds://…``.

They are copied into the cache, many files at once, and then read as a folder is. What is there and has not changed, by
size and version, is not copied again.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from resfit import dependencies
from resfit.data import decode
from resfit.errors import ArgumentError, CheckpointError, DataError, DownloadError, MissingDependencyError, ResfitError
from resfit.storage import locks
from resfit.storage.atomic import write_json
from resfit.weights.archives import parts
from resfit.weights.download import is_offline, locked

#: Name of the kind of cache entries, and of the file in each that says what it is.
KIND, ABOUT, CONTENT = "sources", "source.json", "content"

_CLOUDS = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "https", "http")
# the command line's paths have lost one of the two slashes
_HANDLE = re.compile(rf"({'|'.join((*_CLOUDS, 'hf', 'tfds'))}):/{{1,2}}(?=[^/])(.*)", re.IGNORECASE | re.DOTALL)
_AT_ONCE = 16  # files that are copied at once
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


def _of_cloud(handle: str) -> Path:
    """Copies a file, or all files below a folder, by fsspec."""
    with_name = hashlib.sha256(handle.encode()).hexdigest()[:24]
    root = locks.cache_root()
    folder = (root if locks.is_writable(root) else _temporary()) / KIND / with_name
    folder.mkdir(parents=True, exist_ok=True)
    locks.keep(folder / locks.USERS)
    content = folder / CONTENT
    about = _about(folder)
    if is_offline():
        if not about:
            raise DownloadError(f"{handle} is not in the cache. Received: no network is allowed (RESFIT_OFFLINE).")
        return content / about["single"] if about.get("single") else content
    with locked(content):
        system, place = _system(handle)
        files, single = _listed(system, place, handle)
        known = about.get("files", {})
        missing = {
            name: facts
            for name, facts in files.items()
            if known.get(name) != facts[1:] or not (content / name).is_file()
        }
        _check_room(handle, sum(facts[1] for facts in missing.values()), folder)
        _copy(system, missing, content)
        for name in set(known) - set(files):
            (content / name).unlink(missing_ok=True)
        stated = {name: facts[1:] for name, facts in files.items()}
        write_json(folder / ABOUT, {"source": handle, "single": single, "files": stated})
    return content / single if single else content


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
    import atexit
    import tempfile

    folder = tempfile.mkdtemp(prefix="resfit-sources-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


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
    if system.isfile(place) and not handle.endswith("/"):
        name = "/".join(parts(place.rstrip("/").rpartition("/")[2].partition("?")[0]))
        return {name: [place, *_version(system.info(place))]}, name
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


def _copy(system: Any, files: dict[str, list[Any]], content: Path) -> None:
    content.mkdir(parents=True, exist_ok=True)

    def bring(name: str) -> None:
        target = content / name
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.part")
        system.get_file(files[name][0], os.fspath(partial))
        size = files[name][1]
        if size and partial.stat().st_size != size:
            raise DownloadError(f"{name} must have {size} bytes. Received: {partial.stat().st_size}. Try again.")
        os.replace(partial, target)

    for _ in decode.in_order(bring, files, workers=_AT_ONCE, ahead=4 * _AT_ONCE):
        pass
