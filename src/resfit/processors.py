"""How many processors there are for this process, and how many of them a product of matrices should take."""

from __future__ import annotations

import contextlib
import os
import platform
from typing import Any

# values of an array up to which one thread is as fast
_ONE_THREAD = 10_000_000


def available() -> int:
    """Returns the number of processors that this process may use: its affinity and its container's quota count."""
    import joblib

    return int(joblib.cpu_count())


def use_onednn() -> None:
    """Lets TensorFlow take oneDNN's kernels, if it is imported later and the user has not decided it.

    By itself TensorFlow takes them only where the processor has AVX-512. With AVX2 a training step of the part of
    ResNet-50 behind a boundary takes 0.72 of the time with them, one of a detector's head 0.65. Numbers differ by
    rounding. ``TF_ENABLE_ONEDNN_OPTS=0`` in the environment switches them off.
    """
    if platform.machine().lower() in ("x86_64", "amd64"):
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")


def blas_threads(size: int, *, side_by_side: bool = False) -> contextlib.AbstractContextManager[Any]:
    """Keeps small products, and fits that run side by side, to one thread each.

    The threads of a product wait for each other by spinning, which on a busy machine takes a hundred times as long.

    Args:
        size: Values of the array.
        side_by_side: Whether several such fits run at once.
    """
    from threadpoolctl import threadpool_limits

    single = side_by_side or size < _ONE_THREAD
    return threadpool_limits(1, user_api="blas") if single else contextlib.nullcontext()
