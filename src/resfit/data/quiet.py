"""Keeps other readers of scans from telling what they read: their warnings and log lines quote values of the file."""

from __future__ import annotations

import contextlib
import functools
import logging
import re
import threading
import warnings
from collections.abc import Iterator

_LIBRARIES = ("pydicom", "pylibjpeg", "libjpeg", "openjpeg", "rle", "nibabel", "nibabel.global")
_MODULES = r"(pydicom|pylibjpeg|libjpeg|openjpeg|rle|nibabel|resfit\.data\.(dicom|display|nifti|scans))(\.|$)"

_PATTERN = re.compile(_MODULES)  # as the filter keeps it

_here = threading.local()


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """While it lasts, what these libraries say in this thread goes nowhere."""
    _listen()
    before = getattr(_here, "reads", False)
    _here.reads = True
    try:
        yield
    finally:
        _here.reads = before


def _passes(_: logging.LogRecord) -> bool:
    return not getattr(_here, "reads", False)


def _listen() -> None:
    # first of the filters for good: warnings.catch_warnings is no way, for its filters belong to all threads
    if not warnings.filters or warnings.filters[0][3] is not _PATTERN:
        warnings.filterwarnings("ignore", module=_MODULES)
    _listen_to_logs()


@functools.cache
def _listen_to_logs() -> None:
    for name in _LIBRARIES:
        logging.getLogger(name).addFilter(_passes)
