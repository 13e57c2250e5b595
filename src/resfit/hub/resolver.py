"""From a handle to the folder of a SavedModel: ``hub.resolve``.

The cache is that of ``tensorflow_hub``: ``$TFHUB_CACHE_DIR``, or ``tfhub_modules`` in the system's folder for temporary
files; in it a folder for each handle, named by the SHA-1 of the handle as it was written. What ``tensorflow_hub`` put
there is used as it is, unless files are missing from it: it is downloaded again then. Downloading, locks, time-outs and
offline mode are those of :mod:`resfit.checkpoints.download`.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import shutil
import socket
import tempfile
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode

from resfit import files
from resfit.checkpoints import archives, download
from resfit.errors import ArgumentError, CheckpointError, DownloadError, MissingDependencyError, ResfitError
from resfit.hub import scan
from resfit.hub.handles import KagglePlace, kaggle_place, moved_to, split

#: Environment variable that moves the cache.
CACHE = "TFHUB_CACHE_DIR"
#: Environment variable that, set to ``UNCOMPRESSED``, reads SavedModels where they lie on Google Cloud Storage.
LOAD_FORMAT = "TFHUB_MODEL_LOAD_FORMAT"

_CHINESE_MIRROR = "https://gcs.tensorflow.google.cn/tfhub-modules/{}.tar.gz"
_ARCHIVES = (".tar", ".tar.gz", ".tgz")

#: Bytes of an archive and of what it unpacks to; the largest BiT has 4 GB.
MOST_PACKED = MOST_UNPACKED = 20_000_000_000

_SECONDS = 60


class HandleError(DownloadError, ValueError):
    """A handle leads to no SavedModel. Also an ``OSError`` and a ``ValueError``, as the original raises."""


def resolve(handle: str) -> str:
    """Returns the folder of a SavedModel, downloading and unpacking it if need be.

    Args:
        handle: ``https://tfhub.dev/…``; ``https://www.kaggle.com/models/OWNER/MODEL/FRAMEWORK/VARIATION/VERSION`` (or
            with ``frameworks``, ``variations``, ``versions``); ``kaggle://OWNER/MODEL/FRAMEWORK/VARIATION/VERSION``;
            another URL of a ``.tar.gz``; ``gs://…``; ``file://…``; a folder; a local ``.tar.gz``.

    Returns:
        A path: of this machine, or ``gs://…``.

    Raises:
        ArgumentError: The handle is no string.
        HandleError: It leads to no SavedModel. Also an ``OSError``.
        DownloadError: It cannot be downloaded.
        MissingDependencyError: ``kaggle://`` without kagglehub.

    Example:
        >>> resolve("https://tfhub.dev/google/imagenet/resnet_v2_50/feature_vector/5")  # doctest: +SKIP
        '/tmp/tfhub_modules/…'
    """
    if not isinstance(handle, str):
        raise ArgumentError(f"handle must be a string. Received: {handle!r}.")
    scheme = split(handle).scheme
    if scheme in ("http", "https"):
        return _of_web(handle)
    if scheme == "kaggle":
        return _of_kaggle(handle, kaggle_place(handle))
    if scheme == "gs":
        return _of_storage(handle)
    if scheme not in ("", "file"):
        raise HandleError(
            f"handle must begin with https://, kaggle://, gs:// or file://, or be a path. Received: {handle!r}."
        )
    path = Path(unquote(split(handle).path) if scheme else handle).expanduser()
    if not path.exists():
        raise HandleError(f"{handle}: the folder of a SavedModel must exist. Received: no file or folder {path}.")
    if path.is_dir():
        return handle if not scheme and not handle.startswith("~") else os.fspath(path)
    if not path.name.endswith(_ARCHIVES):
        raise HandleError(
            f"{handle}: a handle must be a folder or an archive ({', '.join(_ARCHIVES)}). Received: a file. If it is "
            "the saved_model.pb, pass its folder."
        )
    stat = path.stat()
    return _cached(handle, f"{path.absolute()}?{stat.st_size}&{stat.st_mtime_ns}", lambda _: path)


def cache_folder() -> Path:
    """Returns the folder of the cache. It need not exist yet.

    Raises:
        HandleError: It is the shared one of the system and belongs to somebody else.
    """
    if named := os.environ.get(CACHE):
        return Path(named).expanduser()
    folder = Path(tempfile.gettempdir()) / "tfhub_modules"
    if hasattr(os, "getuid") and folder.exists() and folder.stat().st_uid not in (os.getuid(), 0):
        raise HandleError(
            f"the cache must be your own, as SavedModels are programs. Received: {folder}, which belongs to another "
            f"user. Set {CACHE} to a folder of yours."
        )
    return folder


def _of_web(handle: str) -> str:
    if os.environ.get(LOAD_FORMAT, "").upper() == "UNCOMPRESSED":
        return _of_storage(_storage_place(handle))
    place = kaggle_place(handle)
    if place and not place.version:
        return _of_kaggle(handle, place)
    return _cached(handle, handle, lambda archive: _download(handle, archive))


def _download(handle: str, archive: Path) -> Path:
    """Downloads the archive of a handle, from Kaggle directly where its place there is known."""
    parts = split(handle)
    urls = [_with_query(handle, "compressed")]
    if parts.hostname == "hub.tensorflow.google.cn":
        urls = [_CHINESE_MIRROR.format(parts.path.strip("/"))]
    elif moved := moved_to(handle):
        urls.insert(0, _with_query(moved.url, "compressed"))
    for url in urls[:-1]:
        try:
            return download.fetch(url, archive, what=handle, max_bytes=MOST_PACKED)
        except DownloadError:
            continue  # the table may be behind the times; the redirect is not
    return download.fetch(urls[-1], archive, what=handle, max_bytes=MOST_PACKED)


def _of_storage(handle: str) -> str:
    """Resolves ``gs://``: an archive through the cache, a folder as it is."""
    import tensorflow as tf

    if download.is_offline():
        raise HandleError(f"{handle} is on the network. Received: RESFIT_OFFLINE is set. Unset it, or pass a folder.")
    try:
        if handle.endswith(_ARCHIVES):

            def copy(archive: Path) -> Path:
                tf.io.gfile.copy(handle, os.fspath(archive), overwrite=True)
                return archive

            return _cached(handle, handle, copy)
        if tf.io.gfile.exists(handle):
            return handle
    except tf.errors.OpError as error:
        raise HandleError(f"{handle} must be readable. Received: {error.message}") from error
    raise HandleError(f"{handle}: the folder of a SavedModel must exist. Received: nothing there.")


def _storage_place(handle: str) -> str:
    """Asks a server where on Google Cloud Storage a SavedModel lies unpacked.

    Raises:
        HandleError: It does not answer with such a place.
    """
    if download.is_offline():
        raise HandleError(f"{handle} is on the network. Received: RESFIT_OFFLINE is set. Unset it, or pass a folder.")

    class Stay(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *_args: Any, **_kwargs: Any) -> None:
            return None

    opener = urllib.request.build_opener(Stay)
    try:
        with opener.open(_with_query(handle, "uncompressed"), timeout=_SECONDS) as response:
            code, place = response.status, ""
    except urllib.error.HTTPError as error:
        code, place = error.code, error.read(4096).decode(errors="replace").strip() if error.code == 303 else ""
    except OSError as error:
        raise HandleError(f"{handle}: the server must answer. Received: {error}.") from error
    if code != 303 or not place.startswith("gs://"):
        raise HandleError(
            f"{handle}: with {LOAD_FORMAT}=UNCOMPRESSED the server must answer 303 and a gs:// path. "
            f"Received: {code} {place[:200]!r}. Unset {LOAD_FORMAT} to download the archive."
        )
    return place


def _of_kaggle(handle: str, place: KagglePlace | None) -> str:
    """Lets kagglehub bring a model, into its own cache."""
    if place is None:
        raise HandleError(
            f"a handle at Kaggle must be kaggle://OWNER/MODEL/FRAMEWORK/VARIATION/VERSION. Received: {handle!r}."
        )
    root = Path(os.environ.get("KAGGLEHUB_CACHE") or "~/.cache/kagglehub").expanduser()
    here = root / "models" / str(place)
    if place.version and (here.parent / f"{place.version}.complete").exists() and is_whole(here):
        return os.fspath(here)
    if download.is_offline():
        raise HandleError(f"{handle} must be in {root}, as RESFIT_OFFLINE is set. Received: no whole copy at {here}.")
    try:
        import kagglehub
    except ImportError as error:
        raise MissingDependencyError(
            f'{handle} is brought by kagglehub. Received: it is not installed. pip install "resfit[hub]"'
        ) from error
    try:
        return str(kagglehub.model_download(str(place), force_download=bool(place.version) and here.exists()))
    except Exception as error:  # kagglehub, its transport and its API client each have errors of their own
        raise HandleError(
            f"{handle} could not be brought by kagglehub. Received: {error}. Download it from {place.url} and pass "
            "the folder."
        ) from error


def _with_query(url: str, load_format: str) -> str:
    parts = split(url)
    query = [*parse_qsl(parts.query), ("tf-hub-format", load_format)]
    return parts._replace(query=urlencode(query)).geturl()


# ---- the cache


def _cached(handle: str, key: str, bring: Callable[[Path], Path]) -> str:
    """Returns the folder of a handle in the cache, filled if need be.

    Args:
        handle: What messages and the descriptor call it.
        key: What its folder is named after.
        bring: Puts the archive at a path, or returns where it is already.
    """
    root = cache_folder()
    folder = root / hashlib.sha1(key.encode(), usedforsecurity=False).hexdigest()
    if is_whole(folder):
        return os.fspath(folder)
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HandleError(f"the cache must be a folder that can be written. Received: {error}. Set {CACHE}.") from error
    with download.locked(root / f"{folder.name}.resfit"):
        if not is_whole(folder):
            _fill(folder, handle, bring)
    return os.fspath(folder)


def _fill(folder: Path, handle: str, bring: Callable[[Path], Path]) -> None:
    archive = folder.with_name(f"{folder.name}.tar.gz")
    work = folder.with_name(f"{folder.name}.{uuid.uuid4().hex}.tmp")
    try:
        try:
            unpacked = archives.unpack(bring(archive), work / "unpacked", max_bytes=MOST_UNPACKED)
        except CheckpointError as error:
            raise HandleError(f"{handle}: the archive must be a whole and honest SavedModel. {error}") from error
        module = _module_in(unpacked, handle)
        files.write_json(_manifest(folder), _listing(module))
        files.write_text(
            folder.with_name(f"{folder.name}.descriptor.txt"),
            f"Module: {handle}\nDownload Time: {datetime.datetime.now()}\n"
            f"Downloader Hostname: {socket.gethostname()} (PID:{os.getpid()})",
        )
        if folder.exists():
            os.replace(folder, work / "stale")
        os.replace(module, folder)
    except ResfitError:
        raise
    except OSError as error:
        raise HandleError(f"{handle} must be unpacked into the cache. Received: {error}.") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
        archive.unlink(missing_ok=True)


def _module_in(folder: Path, handle: str) -> Path:
    """Returns the folder of the SavedModel in what was unpacked: that itself, or the only folder in it."""
    inner = [path for path in folder.iterdir() if path.is_dir()]
    for candidate in (folder, *(inner if len(inner) == 1 else ())):
        if any((candidate / name).is_file() for name in scan.FILES):
            return candidate
    found = sorted(path.name for path in folder.iterdir())[:10]
    raise HandleError(
        f"{handle}: the archive must hold {scan.FILES[0]}. Received: an archive of {found}. A model in another format "
        "(TF Lite, TF.js) is no SavedModel."
    )


def is_whole(folder: Path) -> bool:
    """Whether all files of a SavedModel are there: folders for temporary files are cleaned now and then.

    What was unpacked here is compared with a list of its files. What ``tensorflow_hub`` unpacked must have the files
    that its graph speaks of: variables, if it has any, and assets.

    Args:
        folder: The folder of a SavedModel.
    """
    if not any((folder / name).is_file() for name in scan.FILES):
        return False
    try:
        listed = json.loads(_manifest(folder).read_bytes())
        return {name: listed[name] for name in listed} == {
            name: size for name, size in _listing(folder).items() if name in listed
        }
    except (OSError, ValueError, TypeError, AttributeError):
        pass  # not unpacked here, or the list is damaged
    try:
        wanted = [folder / "assets" / name for name in scan.assets(os.fspath(folder))]
        if scan.has_variables(os.fspath(folder)):
            wanted.append(folder / "variables" / "variables.index")
    except CheckpointError:
        return False
    shards = list(folder.glob("variables/variables.data-?????-of-?????"))
    counted = {int(path.name[-5:]) for path in shards if path.name[-5:].isdigit()}
    if wanted[-1:] and wanted[-1].name == "variables.index" and counted != {len(shards)}:
        return False
    return all(path.is_file() for path in wanted)


def _manifest(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.files.json")


def _listing(folder: Path) -> dict[str, int]:
    """Returns the files under a folder and their sizes in bytes."""
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
