"""How many processors there are for this process, and how many of them a product of matrices should take."""

from __future__ import annotations

import contextlib
from typing import Any

# values of an array up to which one thread is as fast
_ONE_THREAD = 10_000_000


def available() -> int:
    """Returns the number of processors that this process may use: its affinity and its container's quota count."""
    import joblib

    return int(joblib.cpu_count())


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
