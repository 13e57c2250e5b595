"""Which handles are the same, and whose they are."""

from __future__ import annotations

from typing import Any

from resfit.weights.tfhub import kaggle_place, split, tfhub_path

#: Publishers at tfhub.dev and Kaggle whose SavedModels are loaded without a look at their operations.
PUBLISHERS = frozenset({"google", "tensorflow", "deepmind", "keras"})


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
