"""Which images a model was fitted on, by their content, so that a measurement on them says so."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from resfit import artifact
from resfit.errors import ArtifactError
from resfit.features.digests import digest_files
from resfit.storage.locks import folder_of
from resfit.wording import counted

_TYPE = np.dtype("<u8")


def listed(paths: Sequence[Path], tested: np.ndarray, cache: bool | str | Path) -> dict[str, bytes]:
    """Returns the file of a fitted model that says which images it was fitted on.

    Args:
        paths: All images.
        tested: Positions of the test images: the others have been learned from, or have chosen weights and settings.
        cache: Where digests of files are remembered, as :func:`resfit.fit` takes it.

    Returns:
        The file by its name: the first 8 bytes of each image's SHA-256, as ascending integers.
    """
    others = np.setdiff1d(np.arange(len(paths)), tested).tolist()
    return {artifact.FITTED_IMAGES: np.unique(_digests([paths[other] for other in others], cache)).tobytes()}


def count(content: bytes, paths: Sequence[Path], cache: bool | str | Path) -> int:
    """Returns how many images a model was fitted on, compared byte for byte; 0 where it does not state them.

    Args:
        content: The file of the model, as :func:`listed` made it; empty where it has none.
        paths: The images that it is measured on.
        cache: As :func:`listed` takes it.

    Raises:
        ArtifactError: The file is damaged.
    """
    if len(content) % _TYPE.itemsize:
        raise ArtifactError(f"{artifact.FITTED_IMAGES} is damaged. Fit the model again.")
    return int(np.isin(_digests(paths, cache), np.frombuffer(content, _TYPE)).sum()) if content else 0


def notes(content: bytes, paths: Sequence[Path], cache: bool | str | Path) -> tuple[str, ...]:
    """Says how many images a model was fitted on; nothing where it is none.

    Args:
        content: As :func:`count` takes it, like all that follow.
        paths: The images that it is measured on.
        cache: Where digests of files are remembered.

    Raises:
        ArtifactError: The file is damaged.
    """
    found = count(content, paths, cache)
    return (told(found, len(paths)),) if found else ()


def told(found: int, images: int) -> str:
    """Returns what is said of images that a model was fitted on.

    Args:
        found: How many they are, at least 1.
        images: How many it is measured on.
    """
    was = "was" if found == 1 else "were"
    return (
        f"{found} of {counted(images, 'image')} {was} used to fit the model (training or validation files with the "
        "same content): the figures overstate what to expect on new images"
    )


def _digests(paths: Sequence[Path], cache: bool | str | Path) -> np.ndarray:
    """The first bytes of the digests of the files that can be read."""
    found = [entry.digest[: _TYPE.itemsize] for entry in digest_files(list(paths), folder_of(cache)) if entry.digest]
    return np.frombuffer(b"".join(found), _TYPE)
