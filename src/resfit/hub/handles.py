"""How SavedModels are addressed: at tfhub.dev, at Kaggle where tfhub.dev has gone, and by path."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
from importlib import resources
from typing import Any
from urllib.parse import SplitResult, urlsplit

#: Publishers at tfhub.dev and Kaggle whose SavedModels are loaded without a look at their operations.
PUBLISHERS = frozenset({"google", "tensorflow", "deepmind", "keras"})

_TFHUB_HOSTS = ("tfhub.dev", "www.tfhub.dev", "hub.tensorflow.google.cn")
_KAGGLE_HOSTS = ("kaggle.com", "www.kaggle.com")
_PART = r"[A-Za-z0-9][\w.\-]*"
_KAGGLE_PATHS = (
    re.compile(rf"/models/({_PART})/({_PART})/({_PART})/({_PART})(?:/(\d+))?/?", re.ASCII),
    re.compile(
        rf"/models/({_PART})/({_PART})/frameworks/({_PART})/variations/({_PART})(?:/versions/(\d+))?/?", re.ASCII
    ),
)


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


def kaggle_place(handle: str) -> KagglePlace | None:
    """Reads a handle at Kaggle, in any of its forms; None for any other handle.

    Args:
        handle: A handle.
    """
    parts = split(handle)
    if parts.scheme == "kaggle":
        path = f"/models/{parts.netloc}{parts.path}"
    elif parts.scheme in ("http", "https") and parts.hostname in _KAGGLE_HOSTS:
        path = parts.path
    else:
        return None
    matches = [found for pattern in _KAGGLE_PATHS if (found := pattern.fullmatch(path))]
    return KagglePlace(*(part or "" for part in matches[-1].groups())) if matches else None


def tfhub_path(handle: str) -> str:
    """Returns the path of a handle at tfhub.dev without slashes around it; ``""`` for any other handle.

    Args:
        handle: A handle.
    """
    parts = split(handle)
    return parts.path.strip("/") if parts.scheme in ("http", "https") and parts.hostname in _TFHUB_HOSTS else ""


def split(handle: str) -> SplitResult:
    """Returns the parts of a URL; nothing but a path for what is none."""
    if "://" in handle:
        with contextlib.suppress(ValueError):  # such as an address with half a bracket
            return urlsplit(handle)
    return SplitResult("", "", handle, "", "")


def canonical(handle: str) -> str:
    """Returns one form for all forms of a handle at tfhub.dev or Kaggle, and any other handle as it is."""
    if place := kaggle_place(handle):
        return f"kaggle://{place}".lower()
    path = tfhub_path(handle)
    return f"https://tfhub.dev/{path}" if path else handle


def publisher(handle: Any) -> str:
    """Returns who publishes a handle, or ``""`` where its address does not vouch for it.

    Args:
        handle: A handle; one over plain HTTP has no publisher.
    """
    if not isinstance(handle, str) or split(handle).scheme == "http":
        return ""
    if place := kaggle_place(handle):
        return place.owner
    parts = tfhub_path(handle).split("/")
    return "" if any("%" in part or part in ("", ".", "..") for part in parts) else parts[0]


def is_known(handle: Any) -> bool:
    """Whether a handle is by one of :data:`PUBLISHERS`."""
    return publisher(handle) in PUBLISHERS


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
    lines = resources.files("resfit.hub").joinpath("moved.csv").read_text(encoding="utf-8").splitlines()[1:]
    return {line.split(",")[0]: line.split(",")[1] for line in lines if line}
