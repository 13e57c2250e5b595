"""A fitted model as a folder on disk: written whole or not at all, and checked when it is read.

What a folder holds depends on its kind (:class:`ArtifactKind`), one for each task. That of a classifier::

    model.keras            the network with its head: RGB 0..255 in, probabilities out
    classifier.json        classes, input contract, recipe, temperature and prediction sets, metrics, versions
    references.npz         some training images: features, classes, thumbnails, no names (`references=False`: none)
    unlike.npz             the out-of-distribution detector
    skipped.csv            images that were left out, with the reason
    test_predictions.csv   what it said about the test images
    training.csv           a row for each epoch, where the network was fine-tuned
    training.png           the same as curves
    tensorboard/           the same for TensorBoard
    learning_rates.png     the range test of the learning rate, where there was one
    SHA256SUMS             a checksum of every file above, as ``sha256sum -c SHA256SUMS`` reads it

Other kinds have ``model.json`` in place of ``classifier.json``, with what their task writes into it.

Checksums tell damage and changes by hand; they are no signature, and whoever changes a file on purpose can write new
ones. So every file is read as untrusted: sizes, types and ranges are checked before they are used.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import hashlib
import json
import os
import re
import shutil
import stat
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from resfit.errors import ArgumentError, ArtifactError, ArtifactWarning
from resfit.storage import bounded_json
from resfit.storage.atomic import full_disks_named, sync, umask, write_text

MODEL = "model.keras"
SKIPPED = "skipped.csv"
TEST_PREDICTIONS = "test_predictions.csv"
TRAINING = "training.csv"
CURVES = "training.png"
RATES = "learning_rates.png"
TENSORBOARD = "tensorboard"
REFERENCES = "references.npz"
UNLIKE = "unlike.npz"
FITTED_IMAGES = "fitted_images.bin"
CHECKSUMS = "SHA256SUMS"

# Further files that a fitted model may have, and the most bytes that are read of one and of all.
_ATTACHMENTS = (SKIPPED, TEST_PREDICTIONS, REFERENCES, UNLIKE, FITTED_IMAGES, TRAINING, CURVES, RATES)
_CLUTTER = frozenset({".ds_store", "thumbs.db", "desktop.ini"})
_MOST_ATTACHED = 1 << 30
_MOST_FILES = 10_000
_MOST_SUMS = 4_000_000
_SUM = re.compile(r"([0-9a-f]{64}) [ *]([^\x00-\x1f\x7f\\]{1,1000})")

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_MARK = ".resfit-partial-"
_ASIDE = "-old"
_KIND = re.compile(r"resfit [a-z][a-z -]{0,38}")


@dataclasses.dataclass(frozen=True)
class ArtifactKind:
    """What a task saves its fitted models as.

    Attributes:
        noun: What such a model is called in messages, such as ``"classifier"``.
        format: The newest format of the description that is written and read.
        description: Name of the file with the description; new kinds keep the default, by which a folder of any kind
            is found.
    """

    noun: str
    format: int = 1
    description: str = "model.json"

    @property
    def name(self) -> str:
        """What the description says it is, such as ``"resfit classifier"``."""
        return f"resfit {self.noun}"


CLASSIFIER = ArtifactKind("classifier", format=2, description="classifier.json")  # 1 had a checksum of the model alone
DESCRIPTION = CLASSIFIER.description
#: Files of which one describes a fitted model, whatever its kind.
DESCRIPTIONS = (DESCRIPTION, ArtifactKind("").description)


def kind_of(folder: Path) -> str:
    """Returns the name of the kind of fitted model that a folder holds, whole or damaged; empty where it holds none.

    Args:
        folder: A folder.
    """
    for description in DESCRIPTIONS:
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            found = bounded_json.parse(bounded_json.read_file(folder / description), allow_nan=True)["kind"]
            if _KIND.fullmatch(found) and (found == CLASSIFIER.name) == (description == DESCRIPTION):
                return str(found)
    return ""


def description_file(folder: Path) -> Path | None:
    """Returns the file that describes the fitted model in a folder, or is meant to; ``None`` where there is none.

    Args:
        folder: A folder.
    """
    return next((folder / name for name in DESCRIPTIONS if os.path.lexists(folder / name)), None)


def check_target(out: Path, *, force: bool = False) -> str:
    """Makes sure that a fitted model may be written here, before hours of work.

    Args:
        out: The folder.
        force: Whether files of others that lie in the folder of an earlier fitted model may be deleted with it.

    Returns:
        Which fitted model is replaced, as a sentence; empty where none is.

    Raises:
        ArgumentError: There is something else that must not be overwritten.
    """
    if not os.path.lexists(out) or (out.is_dir() and _holds_nothing_else(out)):
        return ""
    if out.is_dir() and (kind := kind_of(out)):
        noun, others = kind.removeprefix("resfit "), _others(out)
        if others and not force:
            some = ", ".join(others[:5]) + (", …" if len(others) > 5 else "")
            raise ArgumentError(
                f"an earlier {noun} is replaced with its folder, and nothing else is. "
                f"Received: {str(out)!r}, which also holds {some}. Move what is yours elsewhere, or delete it too with "
                "force=True (--force)."
            )
        also = f" and, as asked for, {len(others)} other files in its folder" if others else ""
        return f"{out} holds an earlier {noun}, which is replaced{also} when the new one is written"
    raise ArgumentError(
        "the output must be a new or empty folder, or an earlier model that resfit fitted. "
        f"Received: {str(out)!r}, which holds something else. Name another folder or remove it."
    )


def is_artifact(folder: Path) -> bool:
    """Says whether a folder holds a fitted model of any kind, whole or damaged."""
    return bool(kind_of(folder))


def write(
    out: Path,
    save_model: Callable[[Path], None],
    description: dict[str, Any],
    attachments: dict[str, bytes],
    *,
    kind: ArtifactKind = CLASSIFIER,
    force: bool = False,
) -> None:
    """Writes the folder of a fitted model. A kill at any moment leaves what was there before, or the new one.

    Args:
        out: The folder. An earlier fitted model is replaced.
        save_model: Writes the Keras model to a path.
        description: JSON-ready content of the description; kind, format and checksums are added.
        attachments: Further files, by name; a name may have one folder in it.
        kind: What is written.
        force: As :func:`check_target` takes it.

    Raises:
        ArgumentError: There is something else that must not be overwritten.
        OSError: The disk is full or cannot be written.
    """
    out = Path(os.path.abspath(out))
    check_target(out, force=force)
    with atomic_folder(out) as temporary:
        save_model(temporary / MODEL)
        for name, content in attachments.items():
            (temporary / name).parent.mkdir(exist_ok=True)
            (temporary / name).write_bytes(content)
        full = bounded_json.without_nan({"kind": kind.name, "format": kind.format, **description})
        write_text(temporary / kind.description, json.dumps(full, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
        names = sorted(path.relative_to(temporary).as_posix() for path in temporary.rglob("*") if path.is_file())
        write_text(temporary / CHECKSUMS, "".join(f"{_sha256(temporary / name)}  {name}\n" for name in names))


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


def read(folder: Path, kind: ArtifactKind = CLASSIFIER) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Reads and checks everything but the model.

    Args:
        folder: A folder that :func:`write` wrote.
        kind: What it must hold.

    Returns:
        The description and the attachments.

    Raises:
        ArtifactError: It is missing, incomplete, damaged, of another kind or of a newer format.
    """
    return read_with_sums(folder, kind)[:2]


def read_with_sums(
    folder: Path, kind: ArtifactKind = CLASSIFIER
) -> tuple[dict[str, Any], dict[str, bytes], dict[str, str]]:
    """Reads and checks everything but the model, as :func:`read` does.

    Args:
        folder: As :func:`read` takes it.
        kind: As :func:`read` takes it.

    Returns:
        The description, the attachments, and the SHA-256 of each file that was compared with its content.

    Raises:
        ArtifactError: As :func:`read`.
    """
    if not folder.is_dir():
        raise ArtifactError(f"a {kind.noun} is a folder that `resfit fit` wrote. Received: {str(folder)!r}: no folder.")
    description = _described(folder, kind)
    unsigned = kind is CLASSIFIER and description["format"] == 1
    sums = _sums_of_before(folder, description) if unsigned else _sums(folder, kind)
    attached = [name for name in _attached(folder, sums, kind) if os.path.lexists(folder / name)]
    for name in attached:
        if name not in sums and not unsigned:
            raise ArtifactError(
                f"every part of a {kind.noun} must have its checksum in {CHECKSUMS}. Received: {str(folder)!r} with "
                f"{name!r}, which has none. Remove it, or fit the {kind.noun} again."
            )
    for name, expected in sums.items():
        path = folder / name
        try:
            found = _sha256(path)
        except OSError as error:
            raise ArtifactError(
                f"{path} cannot be read: {error.strerror or error}. Copy the folder again or fit the {kind.noun} again."
            ) from error
        if found != expected:
            raise ArtifactError(
                f"{path} is damaged or was changed: its SHA-256 must be {expected}. Received: {found}. "
                f"Copy the folder again or fit the {kind.noun} again."
            )
    return description, _contents(folder, attached), sums


def _described(folder: Path, kind: ArtifactKind = CLASSIFIER) -> dict[str, Any]:
    """Returns what the description says; whether it is as it was written, the checksums tell."""
    path, other = folder / kind.description, kind_of(folder)
    if other and other != kind.name:
        raise ArtifactError(f"{folder} must hold a {kind.noun}. Received: a {other.removeprefix('resfit ')}.")
    try:
        data = bounded_json.read_file(path)
        # Python's writer made NaN of what is undefined before; what is written now has none
        description = bounded_json.parse(data, allow_nan=kind is CLASSIFIER and b'"format": 1,' in data[:200])
    except FileNotFoundError:
        raise ArtifactError(
            f"a {kind.noun} is a folder with {kind.description} in it. Received: {str(folder)!r}, which has none."
        ) from None
    except (OSError, ValueError, MemoryError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}). Fit the {kind.noun} again.") from error
    if not isinstance(description, dict) or description.get("kind") != kind.name:
        raise ArtifactError(f"{path} does not describe a resfit {kind.noun}.")
    number = description.get("format")
    if type(number) is not int or not 1 <= number <= kind.format:
        versions = description.get("versions")
        writer = versions.get("resfit", "unknown") if isinstance(versions, dict) else "unknown"
        raise ArtifactError(
            f"this resfit reads {kind.noun}s of format 1 to {kind.format}. Received: format {number!r:.40}, "
            f"written by resfit {writer!s:.40}. Use that version."
        )
    return description


def _sums(folder: Path, kind: ArtifactKind = CLASSIFIER) -> dict[str, str]:
    """Returns the checksums of all files by name."""
    path = folder / CHECKSUMS
    again = f"Copy the folder again or fit the {kind.noun} again."
    try:
        text = bounded_json.read_file(path, most=_MOST_SUMS).decode("utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ArtifactError(f"{path} cannot be read: {reason}. {again}") from error
    found = [_SUM.fullmatch(line) for line in text.splitlines()]
    sums = {match[2]: match[1] for match in found if match}
    odd = [name for name in sums if ".." in name.split("/") or name.startswith("/") or ":" in name]
    if len(sums) != len(found) or odd or len(sums) > _MOST_FILES or not {MODEL, kind.description} <= set(sums):
        raise ArtifactError(
            f"{path} must have a line of SHA-256 and name for each file, {MODEL} and {kind.description} among them. "
            f"Received: another content. {again}"
        )
    return sums


def _sums_of_before(folder: Path, description: Mapping[str, Any]) -> dict[str, str]:
    """Returns the checksum of the model of a classifier of format 1, and says that nothing else has one."""
    files = description.get("files")
    if not isinstance(files, dict) or set(files) != {MODEL} or (folder / CHECKSUMS).exists():
        raise ArtifactError(
            f"{folder / DESCRIPTION} is damaged or was changed: 'files' must hold the SHA-256 of {MODEL}, "
            f"and {CHECKSUMS} belongs to newer classifiers. Copy the folder again or fit the classifier again."
        )
    warnings.warn(
        f"{folder} was written by an earlier resfit: its checksum covers {MODEL} only, so that a change of the other "
        "files would not be seen. Load it and save it again to cover them.",
        ArtifactWarning,
        stacklevel=5,
    )
    return {MODEL: str(files[MODEL])}


def _attached(folder: Path, sums: Iterable[str], kind: ArtifactKind) -> list[str]:
    """Returns the names of the further files that a fitted model may have, those with a checksum and those without."""
    try:
        logs = sorted(path.name for path in (folder / TENSORBOARD).iterdir())
    except OSError:
        logs = []
    if len(logs) > _MOST_FILES:
        raise ArtifactError(f"{folder / TENSORBOARD} must have at most {_MOST_FILES} files. Received: {len(logs)}.")
    known = [*_ATTACHMENTS, *(f"{TENSORBOARD}/{name}" for name in logs)]
    listed = () if kind is CLASSIFIER else sums
    return [*known, *(name for name in listed if name not in (*known, MODEL, kind.description))]


def _contents(folder: Path, names: Iterable[str]) -> dict[str, bytes]:
    """Reads further files, so many bytes of all together."""
    found: dict[str, bytes] = {}
    room = _MOST_ATTACHED
    for name in names:
        try:
            found[name] = bounded_json.read_file(folder / name, most=room)
        except OSError as error:
            reason = error.strerror or error
            raise ArtifactError(f"{folder / name} cannot be read: {reason}. Fit it again.") from error
        room -= len(found[name])
    return found


def _holds_nothing_else(folder: Path) -> bool:
    return {path.name for path in folder.iterdir()} <= {SKIPPED}


def _others(out: Path) -> list[str]:
    """Returns what lies in the folder of a fitted model and is none of its files."""
    own = {MODEL, *DESCRIPTIONS, CHECKSUMS, *_ATTACHMENTS}
    with contextlib.suppress(OSError, ValueError):
        lines = bounded_json.read_file(out / CHECKSUMS, most=_MOST_SUMS).decode("utf-8").splitlines()
        own |= {match[2] for line in lines if (match := _SUM.fullmatch(line)) and "/" not in match[2]}
    found = []
    for path in sorted(out.iterdir()):
        if path.name == TENSORBOARD and path.is_dir():
            found += [f"{TENSORBOARD}/{log.name}" for log in sorted(path.iterdir()) if "tfevents" not in log.name]
        elif path.name not in own and path.name.lower() not in _CLUTTER:
            found.append(path.name + ("/" if path.is_dir() else ""))
    return found


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


def is_model(folder: Path, expected: str) -> bool:
    """Says whether the model in a folder is still the one of a checksum.

    Args:
        folder: The folder.
        expected: The SHA-256 of its model.
    """
    try:
        return _sha256(folder / MODEL) == expected
    except OSError:
        return False


def _sha256(path: Path) -> str:
    """Returns the SHA-256 of a regular file; nothing else is opened."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError("not a regular file")
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
