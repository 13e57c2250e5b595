"""The errors that resfit raises. All derive from :class:`ResfitError`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence


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


class AssumptionWarning(ResfitWarning):
    """A source of weights leaves open what changes the numbers; the text says what is assumed and what changes it."""


class ArtifactWarning(ResfitWarning):
    """A saved classifier could be read, but not all of it could be verified."""


def closest(name: str, candidates: Iterable[str]) -> str:
    """Returns `` Did you mean 'x'?`` for the nearest candidate, or an empty string.

    Nearest is, in this order: what other libraries' word means here, what looks the same (``O`` and ``0``, upper and
    lower case, ``-`` and ``_``), and what is spelled alike.

    Args:
        name: What was received.
        candidates: The names that would have been accepted.
    """
    received, known = str(name), [str(candidate) for candidate in candidates]
    looks = _look(received)
    found = [
        *(meant for meant in _meant(received) if meant in known),
        *(candidate for candidate in known if _look(candidate) == looks),
        *_spelled_alike(received, known),
    ]
    if not found:  # the same words in another case
        lower = {candidate.lower(): candidate for candidate in known}
        found = [lower[near] for near in _spelled_alike(received.lower(), list(lower))]
    return f" Did you mean {found[0]!r}?" if found else ""


#: Words of torch, torchvision, timm, transformers, TensorFlow and scikit-learn, and what they are called here.
_ELSEWHERE = {
    "activation": ("classifier_activation",),
    "batch": ("batch_size",),
    "bs": ("batch_size",),
    "checkpoint_path": ("weights",),
    "epoch": ("epochs",),
    "features_only": ("taps",),
    "global_pool": ("pooling",),
    "img_size": ("input_shape", "size"),
    "image_size": ("input_shape", "size"),
    "in_chans": ("in_channels", "channels"),
    "input_channels": ("in_channels", "channels"),
    "lr": ("learning_rate",),
    "max_epochs": ("epochs",),
    "max_iter": ("epochs",),
    "n_classes": ("classes",),
    "n_epochs": ("epochs",),
    "nb_classes": ("classes",),
    "num_channels": ("in_channels", "channels"),
    "num_classes": ("classes",),
    "num_epochs": ("epochs",),
    "num_labels": ("classes",),
    "out_features": ("taps",),
    "out_indices": ("taps",),
    "output_dir": ("out",),
    "pretrained": ("weights",),
    "random_state": ("seed",),
    "return_nodes": ("taps",),
    "test_size": ("test_share",),
    "val_size": ("val_share",),
    "validation_split": ("val_share",),
}
#: Names of a network's stages, and what is added to their number here, where the stem is ``stage1``: torchvision's and
#: TF-Slim's stages of blocks count from 1; those of the papers, of Keras and of detectors from 2, as here.
_STAGES = (
    (re.compile(r"(?:backbone\.|body\.|encoder\.)*layer_?([1-4])"), 1),
    (re.compile(r"block_?([1-4])"), 1),
    (re.compile(r"(?:res|c|conv)_?([2-5])(?:_x|_out)?", re.IGNORECASE), 0),
)
_ALIKE = str.maketrans("oilsbz-. ", "011582___")


def _meant(name: str) -> tuple[str, ...]:
    """Returns what another library's word is called here."""
    for pattern, more in _STAGES:
        if found := pattern.fullmatch(name):
            return (f"stage{int(found[1]) + more}",)
    return _ELSEWHERE.get(name.lower().replace("-", "_"), ())


def _spelled_alike(name: str, known: Sequence[str]) -> list[str]:
    """Returns the nearest name; of those that are as near the one whose number is, then the first."""

    def distance(one: str) -> tuple[float, int]:
        return -difflib.SequenceMatcher(None, one, name).ratio(), abs(_number(one) - _number(name))

    return sorted(difflib.get_close_matches(name, known, n=8), key=lambda one: (*distance(one), known.index(one)))[:1]


def _number(name: str) -> int:
    """Returns the first number in a name; 0 for none."""
    found = re.search(r"[0-9]{1,9}", name)
    return int(found[0]) if found else 0


def _look(name: str) -> str:
    """Returns a name as somebody sees it who cannot tell O from 0."""
    return name.lower().translate(_ALIKE).replace("_", "")
