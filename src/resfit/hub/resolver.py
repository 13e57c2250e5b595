"""From a handle to the folder of a SavedModel: ``hub.resolve``.

What is published as an archive lies in the cache of :mod:`resfit.weights.tfhub`, where ``resfit.load`` finds it
too; paths, local archives and Kaggle's own handles are resolved as everywhere in resfit.
"""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from resfit.errors import ArgumentError, CheckpointError, DownloadError
from resfit.weights import archives, download, tfhub
from resfit.weights import resolve as sources
from resfit.weights.formats import saved_model
from resfit.weights.tfhub import HandleError, kaggle_place, split

#: Environment variable that, set to ``UNCOMPRESSED``, reads SavedModels where they lie on Google Cloud Storage.
LOAD_FORMAT = "TFHUB_MODEL_LOAD_FORMAT"

_SECONDS = 60


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
    scheme, place = split(handle).scheme, kaggle_place(handle)
    if scheme == "gs":
        return _of_storage(handle)
    if scheme in ("http", "https") and os.environ.get(LOAD_FORMAT, "").upper() == "UNCOMPRESSED":
        return _of_storage(_storage_place(handle))
    if scheme in ("http", "https") and place is None:
        return os.fspath(tfhub.fetch(handle))
    if scheme not in ("http", "https", "kaggle", "file", ""):
        raise HandleError(
            f"handle must begin with https://, kaggle://, gs:// or file://, or be a path. Received: {handle!r}."
        )
    if place is None:
        path = Path(unquote(split(handle).path) if scheme else handle).expanduser()
        if path.is_dir():
            return handle if not scheme and not handle.startswith("~") else os.fspath(path)
        if path.is_file() and not path.name.endswith(archives.TAR_SUFFIXES):
            raise HandleError(
                f"{handle}: a handle must be a folder or an archive ({', '.join(archives.TAR_SUFFIXES)}). Received: a "
                "file. If it is the saved_model.pb, pass its folder."
            )
    try:
        found = sources.resolve(handle)
    except DownloadError:
        raise
    except (ArgumentError, CheckpointError) as error:
        raise HandleError(f"{handle}: a handle must lead to a SavedModel. {error}") from error
    if not saved_model.has_graph(found):
        raise HandleError(f"{handle}: a handle must lead to a folder with saved_model.pb. Received: {found}.")
    return os.fspath(found)


def _of_storage(handle: str) -> str:
    """Resolves ``gs://``: an archive through the cache, a folder as it is."""
    import tensorflow as tf

    def copy(archive: Path) -> Path:
        tf.io.gfile.copy(handle, os.fspath(archive), overwrite=True)
        return archive

    _need_network(handle)
    try:
        if handle.endswith(archives.TAR_SUFFIXES):
            return os.fspath(tfhub.cached(handle, copy))
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

    class Stay(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *_args: Any, **_kwargs: Any) -> None:
            return None

    _need_network(handle)
    opener = urllib.request.build_opener(Stay)
    try:
        with opener.open(tfhub.with_query(handle, "uncompressed"), timeout=_SECONDS) as response:
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


def _need_network(handle: str) -> None:
    if download.is_offline():
        raise HandleError(f"{handle} is on the network. Received: {download.OFFLINE} is set. Pass a folder.")
