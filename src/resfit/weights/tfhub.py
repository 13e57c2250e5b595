"""TensorFlow Hub: how its modules are addressed, and the cache in which they lie.

The cache is that of ``tensorflow_hub``: ``$TFHUB_CACHE_DIR``, or ``tfhub_modules`` in the system's folder for temporary
files; in it a folder for each handle, named by the SHA-1 of the handle as it was written. What ``tensorflow_hub`` put
there is used as it is, unless files are missing from it: it is downloaded again then.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import hashlib
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit

from resfit.errors import CheckpointError, DownloadError
from resfit.storage import atomic
from resfit.weights import archives, download
from resfit.weights.formats import saved_model

#: Environment variable that moves the cache.
CACHE = "TFHUB_CACHE_DIR"

_TFHUB_HOSTS = ("tfhub.dev", "www.tfhub.dev", "hub.tensorflow.google.cn")
_KAGGLE_HOSTS = ("kaggle.com", "www.kaggle.com")
_CHINESE_MIRROR = "https://gcs.tensorflow.google.cn/tfhub-modules/{}.tar.gz"
_PART = r"[A-Za-z0-9][\w.\-]*"
_KAGGLE_PATH = re.compile(
    rf"/models/({_PART})/({_PART})/(?:frameworks/)?({_PART})/(?:variations/)?({_PART})(?:/(?:versions/)?(\d+))?/?",
    re.ASCII,
)


class HandleError(DownloadError, ValueError):
    """A handle leads to no SavedModel. Also an ``OSError`` and a ``ValueError``, as ``tensorflow_hub`` raises."""


@dataclasses.dataclass(frozen=True)
class KagglePlace:
    """A model at Kaggle.

    Attributes:
        owner: Who publishes it.
        model: Its name there.
        framework: Such as ``"tensorFlow2"``.
        variation: Such as ``"50-feature-vector"``.
        version: Its number, or ``""`` for the newest.
    """

    owner: str
    model: str
    framework: str
    variation: str
    version: str

    def __str__(self) -> str:
        return "/".join(part for part in dataclasses.astuple(self) if part)

    @property
    def url(self) -> str:
        """The page of the model."""
        return f"https://www.kaggle.com/models/{self}"


def split(handle: str) -> SplitResult:
    """Returns the parts of a URL; nothing but a path for what is none."""
    if "://" in handle:
        with contextlib.suppress(ValueError):  # such as an address with half a bracket
            return urlsplit(handle)
    return SplitResult("", "", handle, "", "")


def kaggle_place(handle: str) -> KagglePlace | None:
    """Reads a handle at Kaggle, in any of its forms; None for any other handle.

    Args:
        handle: ``kaggle://…``, or a model's page with or without ``frameworks``, ``variations``, ``versions``.
    """
    parts = split(handle)
    if parts.scheme == "kaggle":
        path = f"/models/{parts.netloc}{parts.path}"
    elif parts.scheme in ("http", "https") and parts.hostname in _KAGGLE_HOSTS:
        path = parts.path
    else:
        return None
    found = _KAGGLE_PATH.fullmatch(path)
    return KagglePlace(*(part or "" for part in found.groups())) if found else None


def tfhub_path(handle: str) -> str:
    """Returns the path of a handle at tfhub.dev without slashes around it; ``""`` for any other handle.

    Args:
        handle: A handle.
    """
    parts = split(handle)
    return parts.path.strip("/") if parts.scheme in ("http", "https") and parts.hostname in _TFHUB_HOSTS else ""


def moved_to(handle: str) -> KagglePlace | None:
    """Returns where at Kaggle a handle of tfhub.dev has gone, as far as that is confirmed.

    Args:
        handle: A handle.
    """
    place = _moves().get(tfhub_path(handle))
    return kaggle_place(f"kaggle://{place}") if place else None


@functools.cache
def _moves() -> dict[str, str]:
    """Returns the table of ``moved.csv``: paths at tfhub.dev and places at Kaggle; its third column is the source."""
    lines = resources.files(__package__).joinpath("moved.csv").read_text(encoding="utf-8").splitlines()[1:]
    return {line.split(",")[0]: line.split(",")[1] for line in lines if line}


def with_query(url: str, load_format: str) -> str:
    """Returns a URL that asks for a module, ``"compressed"`` or ``"uncompressed"``."""
    parts = split(url)
    return parts._replace(query=urlencode([*parse_qsl(parts.query), ("tf-hub-format", load_format)])).geturl()


# ---- the cache


def fetch(handle: str) -> Path:
    """Returns the folder of a SavedModel that is published as an archive, downloading it if need be.

    Args:
        handle: ``https://`` or ``http://``: at tfhub.dev, with a version at Kaggle, or the address of an archive.

    Raises:
        HandleError: It leads to no SavedModel.
        DownloadError: It cannot be downloaded.
    """
    urls = [with_query(handle, "compressed")]
    if split(handle).hostname == "hub.tensorflow.google.cn":
        urls = [_CHINESE_MIRROR.format(tfhub_path(handle))]
    elif moved := moved_to(handle):
        urls.insert(0, with_query(moved.url, "compressed"))

    def bring(archive: Path) -> Path:
        for url in urls[:-1]:
            with contextlib.suppress(DownloadError):  # the table may be behind the times; the redirect is not
                return download.fetch(url, archive, what=handle)
        return download.fetch(urls[-1], archive, what=handle)

    return cached(handle, bring)


def cached(handle: str, bring: Callable[[Path], Path]) -> Path:
    """Returns the folder of a handle in the cache, filled if need be.

    Args:
        handle: What its folder is named after.
        bring: Puts the archive at a path, and returns that.

    Raises:
        HandleError: The archive is no SavedModel, or is refused, or the cache cannot be used. Nothing is left behind.
    """
    folder = cache_folder() / hashlib.sha1(handle.encode(), usedforsecurity=False).hexdigest()

    def describe() -> None:
        if not saved_model.has_graph(module_in(folder)):
            found = sorted(path.name for path in folder.iterdir())[:10]
            shutil.rmtree(folder)
            raise HandleError(
                f"{handle}: the archive must hold saved_model.pb. Received: an archive of {found}. A model in another "
                "format (TF Lite, TF.js) is no SavedModel."
            )
        atomic.write_text(
            folder.with_name(f"{folder.name}.descriptor.txt"),
            f"Module: {handle}\nDownload Time: {datetime.datetime.now()}\n"
            f"Downloader Hostname: {socket.gethostname()} (PID:{os.getpid()})",
        )

    try:
        archives.unpack_once(
            folder,
            lambda: bring(folder.with_name(f"{folder.name}.tar.gz")),
            is_whole=lambda: not saved_model.lost(module_in(folder)),
            describe=describe,
        )
    except DownloadError:
        raise
    except CheckpointError as error:
        raise HandleError(f"{handle}: the archive must be a whole and honest SavedModel. {error}") from error
    except OSError as error:
        raise HandleError(f"the cache must be a folder that can be written. Received: {error}. Set {CACHE}.") from error
    with contextlib.suppress(OSError):
        os.utime(folder.with_name(f"{folder.name}.descriptor.txt"))  # says when it was used last
    return module_in(folder)


def cache_folder() -> Path:
    """Returns the folder of the cache. It need not exist yet.

    Raises:
        HandleError: It is on another machine, or the shared one of the system and belongs to somebody else.
    """
    if named := os.environ.get(CACHE):
        parts = split(named)
        if parts.scheme not in ("", "file"):
            raise HandleError(f"{CACHE} must be a folder of this machine. Received: {named!r}. Set it to another.")
        return Path(unquote(parts.path) if parts.scheme else named).expanduser()
    folder = Path(tempfile.gettempdir()) / "tfhub_modules"
    if hasattr(os, "getuid") and folder.exists() and folder.stat().st_uid not in (os.getuid(), 0):
        raise HandleError(
            f"the cache must be your own, as SavedModels are programs. Received: {folder}, which belongs to another "
            f"user. Set {CACHE} to a folder of yours."
        )
    return folder


def module_in(folder: Path) -> Path:
    """Returns the folder of the SavedModel in what was unpacked: that itself, or the only folder in it.

    Args:
        folder: Of the cache.
    """
    inner = [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    return inner[0] if len(inner) == 1 and saved_model.has_graph(inner[0]) else folder
