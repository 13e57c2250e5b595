"""Bringing published files to this machine, verified: Keras' own cache first, the network after that."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from resfit.checkpoints import registry
from resfit.checkpoints.registry import CheckpointInfo
from resfit.errors import CheckpointError, DownloadError

#: Environment variable that, set to 1, forbids every download.
OFFLINE = "RESFIT_OFFLINE"


def keras_cache() -> Path:
    """Returns where Keras keeps published weights: ``models`` in ``$KERAS_HOME`` or ``~/.keras``."""
    return Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser() / "models"


def is_offline() -> bool:
    """Whether downloads are forbidden by ``$RESFIT_OFFLINE``."""
    return os.environ.get(OFFLINE, "").strip().lower() not in ("", "0", "false", "no")


def fetch(info: CheckpointInfo, *, include_top: bool = True) -> Path:
    """Returns the verified file of a checkpoint, downloading it if need be.

    Args:
        info: A row of the registry.
        include_top: Whether the classifier is needed. If it is not, the smaller published file without it is
            taken, unless the whole one is there already.

    Raises:
        DownloadError: The file is not here and cannot be brought. The text says where to put it by hand.
        CheckpointError: Embedded weights are missing, or the row's source is not one that can be fetched yet.
    """
    if info.source == registry.RESFIT:
        path = registry.embedded_path(info)
        if not path.is_file():
            raise CheckpointError(
                f"the weights of {info.name!r} ship inside the package, but {info.url} is not in this "
                "installation. "
                "Reinstall resfit, or pass weights=None or the path of a file."
            )
        return path
    if info.source not in registry.LOADABLE:
        raise CheckpointError(
            f"weights of source {info.source!r} cannot be fetched by name yet. Received: {info.name!r}. "
            f"Download them from {info.url} and pass the path, or pass weights=None."
        )
    if not include_top and info.url_notop and not is_good(keras_cache() / _file_name(info.url), info.md5):
        return fetch_file(info.url_notop, info.md5_notop)
    return fetch_file(info.url, info.md5)


def fetch_file(url: str, md5: str) -> Path:
    """Returns a file of Keras' cache whose digest is right, downloading it if need be.

    Args:
        url: Where it is published.
        md5: Its digest, as 32 hexadecimal digits.

    Raises:
        DownloadError: The file is not here and cannot be brought, or what came has another digest.
    """
    name, folder = _file_name(url), keras_cache()
    path = folder / name
    if is_good(path, md5):
        return path
    here = "a file with another md5 is there" if path.exists() else "it is not there"
    way_out = f"Put the file from {url} (md5 {md5}) at {path}, or pass weights=None or the path of a file."
    if is_offline():
        raise DownloadError(f"{name} must be in Keras' cache, as {OFFLINE} is set; {here}. {way_out}")
    import keras

    try:
        folder.mkdir(parents=True, exist_ok=True)
        # into a folder of its own first, so that a kill or a failure leaves what was there
        with tempfile.TemporaryDirectory(prefix=".resfit-", dir=folder) as private:
            with contextlib.redirect_stdout(sys.stderr):  # its progress bar is no result
                found = keras.utils.get_file(
                    name, url, file_hash=md5, hash_algorithm="md5", cache_dir=private, cache_subdir=""
                )
            os.replace(found, path)
    except Exception as error:  # Keras raises a bare Exception for a failed download
        raise DownloadError(f"{name} could not be downloaded from {url}: {error}. {way_out}") from error
    return path


def is_good(path: Path, md5: str) -> bool:
    """Whether a file is there and has this digest.

    Args:
        path: The file.
        md5: 32 hexadecimal digits.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest() == md5
    except OSError:
        return False


def _file_name(url: str) -> str:
    return Path(urlsplit(url).path).name
