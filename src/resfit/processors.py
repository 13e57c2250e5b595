"""How many processors there are for this process."""

from __future__ import annotations


def available() -> int:
    """Returns the number of processors that this process may use: its affinity and its container's quota count."""
    import joblib

    return int(joblib.cpu_count())
