"""The errors that resfit raises. All derive from :class:`ResfitError`."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ResfitError(Exception):
    """Base of every error that resfit raises on purpose."""


class ArgumentError(ResfitError, ValueError):
    """An argument breaks a rule. Also a ``ValueError``, as the drop-ins raise."""


class UnknownNameError(ArgumentError):
    """A name that no table knows."""


class CheckpointError(ResfitError, ValueError):
    """A weights file is missing, damaged or does not fit the network."""


class DataError(ResfitError, ValueError):
    """A folder, table or set of images cannot be used as it is."""


class ImageError(DataError):
    """One image cannot be decoded. Its text is the reason alone, without the path."""


class ArtifactError(ResfitError, ValueError):
    """A saved classifier folder is incomplete, damaged or of another version."""


class ExportError(ResfitError, RuntimeError):
    """An export does not say what the network says, or its format cannot express the network."""


class MissingDependencyError(ResfitError, ImportError):
    """An optional package is not installed. The text names the extra that brings it."""


class DownloadError(ResfitError, OSError):
    """A file could not be fetched. The text names file, URL and where to put it."""


class ResfitWarning(UserWarning):
    """Base of every warning that resfit gives."""


class InputWarning(ResfitWarning):
    """Images were handed over in a form that needed an assumption; the text says which, and what avoids it."""


class ArtifactWarning(ResfitWarning):
    """A saved classifier could be read, but not all of it could be verified."""


def closest(name: str, candidates: Iterable[str]) -> str:
    """Returns `` Did you mean 'x'?`` for the nearest candidate, or an empty string.

    Args:
        name: What was received.
        candidates: The names that would have been accepted.
    """
    found = difflib.get_close_matches(str(name), list(candidates), n=1)
    return f" Did you mean {found[0]!r}?" if found else ""
