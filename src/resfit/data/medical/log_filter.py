"""Keeps other readers of scans from telling what they read: their warnings, log lines and errors quote the file."""

from __future__ import annotations

import contextlib
import functools
import logging
import re
import threading
import warnings
from collections.abc import Iterator

from resfit.errors import ImageError, MissingDependencyError

_LIBRARIES = ("pydicom", "pylibjpeg", "libjpeg", "openjpeg", "rle", "nibabel", "nibabel.global")
_MODULES = r"(pydicom|pylibjpeg|libjpeg|openjpeg|rle|nibabel|resfit\.data\.(dicom|display|nifti|scans))(\.|$)"

_PATTERN = re.compile(_MODULES)  # as the filter keeps it

_here = threading.local()


@contextlib.contextmanager
def reading(kind: str) -> Iterator[None]:
    """While it lasts, what these libraries say in this thread goes nowhere; what they raise quotes nothing of the file.

    Args:
        kind: What the file is called in the reason, such as ``"DICOM"``.

    Raises:
        ImageError: Something was raised that is no reason of resfit's own.
    """
    _listen()
    before = getattr(_here, "reads", False)
    _here.reads = True
    try:
        yield
    except (ImageError, MissingDependencyError, MemoryError):
        raise
    except Exception as error:
        raise ImageError(f"damaged or unusual {kind} file ({type(error).__name__})") from None
    except BaseException as error:
        if type(error).__name__ == "PanicException":  # of a decoder written in Rust
            raise ImageError(f"damaged {kind} file (its frame cannot be decoded)") from None
        raise
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
