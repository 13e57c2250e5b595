"""How many processors there are for this process, and how many of them a product of matrices should take."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import platform
from pathlib import Path
from typing import Any

# values of an array up to which one thread is as fast
_ONE_THREAD = 10_000_000


def available() -> int:
    """Returns the number of processors that this process may use: its affinity and its container's quota count."""
    affinity = getattr(os, "sched_getaffinity", None)
    counts = [len(affinity(0)) if affinity is not None else os.cpu_count() or 1]
    with contextlib.suppress(OSError, ValueError):  # of a container, in the second version of cgroups
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text("ascii").split()
        counts.append(math.ceil(int(quota) / int(period)))  # "max" is no number, and no limit
    with contextlib.suppress(OSError, ValueError):  # in the first
        quota, period = (
            Path(f"/sys/fs/cgroup/cpu/cpu.cfs_{name}_us").read_text("ascii") for name in ("quota", "period")
        )
        counts.append(math.ceil(int(quota) / int(period)) if int(quota) > 0 else counts[0])
    with contextlib.suppress(KeyError, ValueError):  # what joblib and scikit-learn are told
        counts.append(int(os.environ["LOKY_MAX_CPU_COUNT"]))
    return max(1, min(counts))


@functools.cache
def instructions() -> frozenset[str]:
    """Returns the sets of instructions that Linux lists for the processor, such as ``"avx512_vnni"``; else nothing."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("ascii", "replace").splitlines():
            name, _, values = line.partition(":")
            if name.strip() in ("flags", "Features"):
                return frozenset(values.split())
    return frozenset()


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
