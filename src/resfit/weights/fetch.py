"""The published files of a checkpoint, verified: whatever its source is."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from resfit.errors import CheckpointError, DownloadError, MissingDependencyError
from resfit.storage import locks
from resfit.weights import download, registry, resolve
from resfit.weights.download import OFFLINE, is_offline
from resfit.weights.registry import CheckpointInfo

__all__ = ["OFFLINE", "fetch", "fetch_file", "is_good", "is_offline", "keras_cache"]

#: Files that a person must fetch, by the checkpoint's name. One that lies among Keras' weights is taken as it is.
BY_HAND = {"resnet50.radimagenet": "RadImageNet-ResNet50_notop.h5"}
#: Hexadecimal digits of whole digests; a row with fewer has the first ones.
_DIGITS = {"md5": 32, "sha256": 64}


def keras_cache() -> Path:
    """Returns where Keras keeps published weights: ``models`` in ``$KERAS_HOME`` or ``~/.keras``."""
    return Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser() / "models"


def fetch(info: CheckpointInfo, *, include_top: bool = True) -> Path:
    """Returns the verified file or folder of a checkpoint, downloading it if need be.

    Args:
        info: A row of the registry.
        include_top: Whether the classifier is needed. If it is not, the smaller published file without it is
            taken, unless the whole one is there already.

    Raises:
        DownloadError: It is not here and cannot be brought. The text says where to put it by hand.
        CheckpointError: Embedded weights are missing, or the row cannot be loaded.
        MissingDependencyError: Its place needs a package that is not installed, and there is no other place.
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
    by_hand = keras_cache() / BY_HAND.get(info.name, "")
    if info.name in BY_HAND and by_hand.is_file():
        return by_hand
    if info.obstacle or info.source not in registry.LOADABLE:
        raise CheckpointError(
            f"the weights of {info.name!r} cannot be loaded by name: {info.obstacle or 'no reader knows them'}. "
            f"They are at {info.url}. Choose another name, or pass weights=None."
        )
    if info.source == registry.KERAS:
        if not include_top and info.url_notop and not is_good(keras_cache() / _file_name(info.url), info.md5):
            return fetch_file(info.url_notop, info.md5_notop)
        return fetch_file(info.url, info.md5)
    hashes = _hashes(md5=info.md5, sha256=info.sha256)
    try:
        return resolve.resolve(info.url, hashes=hashes)
    except (DownloadError, MissingDependencyError) as error:
        if not info.mirror:
            raise
        try:
            return resolve.resolve(info.mirror)
        except (DownloadError, MissingDependencyError) as other:
            raise DownloadError(f"{error} The same weights at {info.mirror}: {other}") from error


def fetch_file(url: str, md5: str) -> Path:
    """Returns a file of Keras' cache whose digest is right, downloading it if need be.

    Args:
        url: Where it is published.
        md5: Its digest, as 32 hexadecimal digits.

    Raises:
        DownloadError: The file is not here and cannot be brought, or what came has another digest.
    """
    name = _file_name(url)
    target = keras_cache() / name if is_offline() else locks.place(keras_cache(), name)
    return download.fetch(url, target, hashes={"md5": md5}, what=name)


def is_good(path: Path, md5: str) -> bool:
    """Whether a file is there and has this digest.

    Args:
        path: The file.
        md5: 32 hexadecimal digits.
    """
    return not download.Expected(hashes={"md5": md5}).fault(path)


def _hashes(**published: str) -> Mapping[str, str]:
    """Returns what a row tells of its file's digests, in the words of :class:`resfit.weights.download.Expected`."""
    whole = {name: digits for name, digits in published.items() if len(digits) == _DIGITS[name]}
    parts = {f"{name}-prefix": digits for name, digits in published.items() if 0 < len(digits) < _DIGITS[name]}
    return whole | parts


def _file_name(url: str) -> str:
    return Path(urlsplit(url).path).name
