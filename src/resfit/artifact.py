"""A classifier as a folder on disk: written whole or not at all, and checked when it is read.

::

    model.keras            the network with its head: RGB 0..255 in, probabilities out
    classifier.json        classes, input contract, recipe, temperature and prediction sets, metrics, versions, SHA-256
    references.npz         some training images: features, classes, thumbnails, no names (`references=False`: none)
    unlike.npz             what tells images that are unlike the training images
    skipped.csv            images that were left out, with the reason
    test_predictions.csv   what it said about the test images
    training.csv           a row for each epoch, where the network was fine-tuned
    training.png           the same as curves
    tensorboard/           the same for TensorBoard
    learning_rates.png     the range test of the learning rate, where there was one
"""

from __future__ import annotations

import contextlib
import csv
import ctypes
import hashlib
import io
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from resfit.errors import ArgumentError, ArtifactError
from resfit.files import full_disks_named, sync, umask, write_json

FORMAT = 1
KIND = "resfit classifier"
MODEL = "model.keras"
DESCRIPTION = "classifier.json"
SKIPPED = "skipped.csv"
TEST_PREDICTIONS = "test_predictions.csv"
TRAINING = "training.csv"
CURVES = "training.png"
RATES = "learning_rates.png"
TENSORBOARD = "tensorboard"
REFERENCES = "references.npz"
UNLIKE = "unlike.npz"

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_MARK = ".resfit-partial-"
_ASIDE = "-old"


def check_target(out: Path) -> None:
    """Makes sure that a classifier may be written here, before hours of work.

    Raises:
        ArgumentError: There is something else that must not be overwritten.
    """
    if not out.exists() and not out.is_symlink():
        return
    if out.is_dir() and (is_artifact(out) or _holds_nothing_else(out)):
        return
    raise ArgumentError(
        "the output must be a new or empty folder, or an earlier resfit classifier. "
        f"Received: {str(out)!r}, which holds something else. Name another folder or remove it."
    )


def is_artifact(folder: Path) -> bool:
    """Says whether a folder holds a classifier, whole or damaged."""
    try:
        return json.loads((folder / DESCRIPTION).read_text("utf-8")).get("kind") == KIND
    except (OSError, ValueError, AttributeError):
        return False


def write(
    out: Path,
    save_model: Callable[[Path], None],
    description: dict[str, Any],
    attachments: dict[str, bytes],
) -> None:
    """Writes a classifier folder. A kill at any moment leaves what was there before, or the new one.

    Args:
        out: The folder. An earlier classifier is replaced.
        save_model: Writes the Keras model to a path.
        description: JSON-ready content of ``classifier.json``; format and checksums are added.
        attachments: Further files, by name; a name may have one folder in it.

    Raises:
        ArgumentError: There is something else that must not be overwritten.
        OSError: The disk is full or cannot be written.
    """
    out = Path(os.path.abspath(out))
    check_target(out)
    with atomic_folder(out) as temporary:
        save_model(temporary / MODEL)
        for name, content in attachments.items():
            (temporary / name).parent.mkdir(exist_ok=True)
            (temporary / name).write_bytes(content)
        full = {"kind": KIND, "format": FORMAT, **description, "files": {MODEL: _sha256(temporary / MODEL)}}
        write_json(temporary / DESCRIPTION, full)


@contextlib.contextmanager
def atomic_folder(out: Path) -> Iterator[Path]:
    """Yields a folder beside ``out`` that takes its place on a clean exit, whole, and goes away otherwise.

    Args:
        out: The folder; what stands there is replaced.

    Raises:
        OSError: The disk is full or cannot be written.
    """
    out = Path(os.path.abspath(out))
    out.parent.mkdir(parents=True, exist_ok=True)
    _sweep(out)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name[:80]}{_MARK}{os.getpid()}-", dir=out.parent))
    try:
        with full_disks_named(out, temporary):
            yield temporary
        for path in temporary.rglob("*"):
            sync(path)
        sync(temporary)
        os.chmod(temporary, 0o777 & ~umask())
        _put_in_place(temporary, out)
        sync(out.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read(folder: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Reads and checks everything but the model.

    Args:
        folder: A folder that :func:`write` wrote.

    Returns:
        The description and the attachments.

    Raises:
        ArtifactError: It is missing, incomplete, damaged or of a newer format.
    """
    if not folder.is_dir():
        raise ArtifactError(f"a classifier is a folder that `resfit fit` wrote. Received: {str(folder)!r}: no folder.")
    try:
        description = json.loads((folder / DESCRIPTION).read_text("utf-8"))
    except FileNotFoundError:
        raise ArtifactError(
            f"a classifier is a folder with {DESCRIPTION} in it. Received: {str(folder)!r}, which has none."
        ) from None
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{folder / DESCRIPTION} cannot be read ({error}). Fit the classifier again.") from error
    if not isinstance(description, dict) or description.get("kind") != KIND:
        raise ArtifactError(f"{folder / DESCRIPTION} does not describe a resfit classifier.")
    if description.get("format") != FORMAT:
        raise ArtifactError(
            f"this resfit reads classifiers of format {FORMAT}. Received: format {description.get('format')!r}, "
            f"written by resfit {description.get('versions', {}).get('resfit', 'unknown')}. Use that version."
        )
    for name, expected in {MODEL: None, **description.get("files", {})}.items():
        path = folder / Path(name).name
        try:
            found = _sha256(path)
        except OSError as error:
            raise ArtifactError(
                f"{path} cannot be read: {error.strerror or error}. Fit the classifier again."
            ) from error
        if found != expected:
            raise ArtifactError(
                f"{path} is damaged or was changed: its SHA-256 must be {expected}. Received: {found}. "
                "Copy the folder again or fit the classifier again."
            )
    names = [SKIPPED, TEST_PREDICTIONS, REFERENCES, UNLIKE, TRAINING, CURVES, RATES]
    names += [f"{TENSORBOARD}/{path.name}" for path in sorted(folder.glob(f"{TENSORBOARD}/*"))]
    return description, {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}


def csv_bytes(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> bytes:
    """Returns a table as CSV in UTF-8. Names of files that are no UTF-8 keep their bytes."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue().encode("utf-8", "surrogateescape")


def _holds_nothing_else(folder: Path) -> bool:
    return {path.name for path in folder.iterdir()} <= {SKIPPED}


def _put_in_place(temporary: Path, out: Path) -> None:
    """Renames the new folder to its name; what stood there ends up under the temporary name."""
    if not out.exists():
        os.rename(temporary, out)
        return
    if out.is_symlink():
        out = out.resolve()
    if not _exchange(temporary, out):
        # no atomic exchange on this platform: for an instant there is neither
        aside = temporary.with_name(temporary.name + _ASIDE)
        os.rename(out, aside)
        os.rename(temporary, out)
        shutil.rmtree(aside, ignore_errors=True)


def _exchange(a: Path, b: Path) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    code = rename(
        _AT_FDCWD,
        ctypes.c_char_p(os.fsencode(a)),
        _AT_FDCWD,
        ctypes.c_char_p(os.fsencode(b)),
        _RENAME_EXCHANGE,
    )
    return code == 0


def _sweep(out: Path) -> None:
    """Removes what killed runs left beside the output, and puts back what one had moved aside."""
    start = f".{out.name[:80]}{_MARK}"
    for path in list(out.parent.iterdir()):
        if not path.name.startswith(start):
            continue
        process = path.name[len(start) :].split("-")[0]
        if not process.isdigit() or _is_running(int(process)):
            continue
        if path.name.endswith(_ASIDE) and not out.exists():
            os.rename(path, out)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
