"""What a training run keeps on disk: whether the frozen part's outputs may be stored, and decoded pixels.

Pixels are filled in from the front, a chunk at a time, in a folder named after everything that decides them. A kill at
any moment costs one chunk; what is there already is not decoded again. The oldest ones make room for new ones.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resfit.data import decode, image_statistics
from resfit.data.dataset import Skipped
from resfit.features.digests import digest_files
from resfit.features.progress import Progress
from resfit.features.records import DecodeStatistics
from resfit.storage.atomic import write_json
from resfit.storage.locks import USERS, Opened, keep, locked, opened, report_unusable, scratch

if TYPE_CHECKING:
    from resfit.preprocessing import InputSpec

#: Bytes that stored outputs of frozen parts may take up, and the share of the free disk.
BUDGET = 20 * 2**30
FREE_SHARE = 0.5

_FORMAT = 2
_CHUNK = 64


@dataclasses.dataclass(frozen=True)
class Storage:
    """Whether the frozen part's outputs are stored, decided before anything is computed.

    Attributes:
        bytes: What they take up.
        limit: What they may take up: the budget, and no more than half of the free disk.
        dtype: ``"float32"``, or ``"float16"`` where float32 is over the limit.
        stored: Whether they are stored; otherwise the frozen part runs in every epoch, on the fast engine.
        reason: The same in one sentence.
    """

    bytes: int
    limit: int
    dtype: str
    stored: bool
    reason: str


def plan(
    images: int, views: int, shape: Sequence[int], folder: Path, *, budget: int | None = None, free: int | None = None
) -> Storage:
    """Estimates what storing the frozen part's outputs takes.

    Args:
        images: Number of images.
        views: Stored views of each; 0 asks for none.
        shape: Of one output.
        folder: Where they would be.
        budget: Bytes they may take up; ``None`` is :data:`BUDGET`.
        free: Bytes of free disk; ``None`` looks.
    """
    room = free if free is not None else _free(folder)
    limit = min(BUDGET if budget is None else budget, int(room * FREE_SHARE))
    values = images * max(views, 1) * int(np.prod(shape))
    if not views:
        return Storage(0, limit, "float32", False, "the frozen part runs in every epoch, on freshly changed images")
    for dtype, width in (("float32", 4), ("float16", 2)):
        if values * width <= limit:
            text = f"the frozen part's outputs take {_size(values * width)} as {dtype}, of {_size(limit)} allowed"
            return Storage(values * width, limit, dtype, True, text)
    text = (
        f"the frozen part's outputs would take {_size(values * 2)}, over the limit of {_size(limit)}: it runs in every "
        "epoch on the fast engine instead"
    )
    return Storage(values * 2, limit, "float16", False, text)


@dataclasses.dataclass(frozen=True, eq=False)
class DecodedPixels:
    """Images as arrays.

    Attributes:
        images: uint8 or float32 array ``(n, height, width, channels)``; of some of the images, a row at a time.
        indices: For each the position of its file among those that were asked for, ascending.
        skipped: Files that cannot be used, with the reason.
        digests: For each image the SHA-256 of its file, in hexadecimal digits.
        records: For each what was measured of it, of dtype :data:`resfit.data.image_statistics.RECORD`; empty where
            that was not
            asked for.
    """

    images: Any
    indices: np.ndarray
    skipped: tuple[Skipped, ...]
    digests: tuple[str, ...]
    records: np.ndarray

    def at(self, rows: np.ndarray) -> DecodedPixels:
        """Returns some of the images, as if only these had been asked for.

        Args:
            rows: Their positions in ``images``.
        """
        return DecodedPixels(
            images=_Some(self.images, rows),
            indices=np.arange(len(rows)),
            skipped=(),
            digests=tuple(self.digests[row] for row in rows.tolist()),
            records=self.records[rows] if len(self.records) else self.records,
        )


class _Some:
    """Rows of an array that is not copied."""

    def __init__(self, array: Any, rows: np.ndarray):
        self._array, self._rows = array, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: int) -> np.ndarray:
        return np.asarray(self._array[self._rows[place]])


def decoded(
    files: Sequence[Path],
    contract: InputSpec,
    cache: bool | str | Path,
    *,
    progress: Progress | None = None,
    records: bool = False,
    thumbnails: Collection[int] = (),
) -> DecodedPixels:
    """Decodes images once; they are kept for the epochs and runs to come.

    Args:
        files: Image files.
        contract: How they become the network's input.
        cache: ``True`` for resfit's own cache folder, ``False`` for memory, or a folder.
        progress: Called as images get done.
        records: Whether they are measured in the same pass.
        thumbnails: Positions of the images of which a thumbnail is kept in the same pass.
    """
    given = list(files)
    with opened(cache) as place:
        try:
            return _decoded(given, contract, place, progress, records, thumbnails)
        except OSError as error:
            if not place.kept:
                raise
            report_unusable(place.folder, error)
    with scratch() as folder:
        return _decoded(given, contract, Opened(folder, False), progress, records, thumbnails)


def _decoded(
    files: list[Path],
    contract: InputSpec,
    place: Opened,
    progress: Progress | None,
    records: bool,
    thumbnails: Collection[int],
) -> DecodedPixels:
    known = digest_files(files, place.folder if place.kept else None)
    reasons = {position: entry.reason for position, entry in enumerate(known) if entry.reason}
    readable = [position for position in range(len(files)) if position not in reasons]
    digests = [known[position].digest.hex() for position in readable]
    paths = [Path(files[position]) for position in readable]
    numbers = {position: number for number, position in enumerate(readable)}
    pictured = [numbers[position] for position in thumbnails if position in numbers]
    sights = DecodeStatistics(place.folder, records=records, thumbnails=pictured)
    images, failures = pixels(paths, digests, contract, place.folder / "pixels", progress=progress, sights=sights)
    reasons.update({readable[number]: reason for number, reason in failures.items()})
    used = [position for position in range(len(files)) if position not in reasons]
    found = [known[position].digest for position in used]
    return DecodedPixels(
        images=images if place.kept else np.array(images),
        indices=np.asarray(used, np.int64),
        skipped=tuple(Skipped(Path(files[position]), reasons[position]) for position in sorted(reasons)),
        digests=tuple(digest.hex() for digest in found),
        records=np.zeros(0, image_statistics.RECORD) if sights.records is None else sights.records.rows(found),
    )


def pixels(
    files: Sequence[Path],
    digests: Sequence[str],
    contract: InputSpec,
    folder: Path,
    *,
    progress: Progress | None = None,
    sights: DecodeStatistics | None = None,
) -> tuple[np.ndarray, dict[int, str]]:
    """Returns the decoded images, memory-mapped.

    Args:
        files: Image files.
        digests: SHA-256 of each, in hexadecimal digits.
        contract: How they are decoded.
        folder: Where the arrays are kept.
        progress: Called as images get done.
        sights: Looks at the images when they are decoded. Those that it must see and that were decoded earlier,
            without it, are decoded again.

    Returns:
        uint8 array ``(n, height, width, channels)``, or float32 where a file is of more than eight bits, read-only, of
        those that can be decoded; and the positions of the others, with the reason.
    """
    shape = (*contract.size, contract.channels)
    dtype = "float32" if any(decode.is_deep(file) for file in files) else "uint8"
    make_room(folder, len(files) * int(np.prod(shape)) * np.dtype(dtype).itemsize, BUDGET)
    with _array({"kind": "pixels", "input": contract.to_dict()}, digests, dtype, shape, folder) as array:
        failures = array.failures()
        start = _position(array.done, failures)
        with open(array.rows, "ab") as rows, open(array.notes, "a", encoding="utf-8") as notes:
            for batch in _shown(files, digests, range(start, len(files)), contract, sights):
                for index, reason in batch.failures:
                    failures[start + index] = reason
                    notes.write(json.dumps([start + index, reason]) + "\n")
                notes.flush()  # before the rows, so that what a kill leaves can be told
                rows.write(batch.images.astype(dtype, copy=False).tobytes())
                rows.flush()
                if progress is not None:
                    done = start + max([*batch.indices.tolist(), *(index for index, _ in batch.failures)]) + 1
                    progress("decoding", done, len(files))
            os.fsync(rows.fileno())
    if sights is not None:
        kept = [position for position in range(start) if position not in failures]
        unseen = sights.missing([bytes.fromhex(digests[position]) for position in kept])
        missing = [position for position, wanted in zip(kept, unseen, strict=True) if wanted]
        for _ in _shown(files, digests, missing, contract, sights):
            pass
    return array.read(len(files) - len(failures)), dict(sorted(failures.items()))


def _shown(
    files: Sequence[Path],
    digests: Sequence[str],
    positions: Sequence[int],
    contract: InputSpec,
    sights: DecodeStatistics | None,
) -> Iterator[decode.DecodedBatch]:
    """Decodes images and has them looked at; what is seen is on disk before a batch."""
    keys = [bytes.fromhex(digests[position]) for position in positions]
    if sights is not None:
        sights.drop_damaged(keys)

    def look_at(number: int) -> decode.Look | None:
        return None if sights is None else sights.look(positions[number], keys[number])

    some = [files[position] for position in positions]
    for batch in decode.decode_many(some, contract, batch_size=_CHUNK, looks=look_at):
        if sights is not None:
            sights.flush()
        yield batch


def make_room(folder: Path, needed: int, limit: int) -> None:
    """Removes the arrays that were used longest ago, until new ones fit.

    Args:
        folder: Where the arrays are kept.
        needed: Bytes of the new ones.
        limit: Bytes that all may take up.
    """
    found = []
    for path in folder.glob("*/rows.bin") if folder.is_dir() else ():
        with contextlib.suppress(OSError):
            status = path.stat()
            found.append(
                (status.st_atime if status.st_atime > status.st_mtime else status.st_mtime, path, status.st_size)
            )
    total = sum(size for *_, size in found) + needed
    for _, path, size in sorted(found):
        if total <= limit:
            return
        shutil.rmtree(path.parent, ignore_errors=True)
        total -= size


class _Array:
    """An array on disk that grows row by row."""

    def __init__(self, place: Path, dtype: str, shape: tuple[int, ...]):
        self.rows, self.notes = place / "rows.bin", place / "failures.jsonl"
        self._dtype, self._shape = dtype, shape
        self._row_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize

    @property
    def done(self) -> int:
        """Whole rows that are there."""
        return self.rows.stat().st_size // self._row_bytes

    def keep(self, count: int) -> int:
        """Cuts the array to so many rows."""
        os.truncate(self.rows, count * self._row_bytes)
        return count

    def failures(self) -> dict[int, str]:
        """Returns what could not be decoded; a line that a kill left half is passed over."""
        found = {}
        for line in self.notes.read_text("utf-8").splitlines() if self.notes.exists() else ():
            with contextlib.suppress(ValueError, TypeError):
                position, reason = json.loads(line)
                found[int(position)] = str(reason)
        return found

    def read(self, count: int) -> np.ndarray:
        """Returns the first rows, memory-mapped."""
        if not count:
            return np.zeros((0, *self._shape), self._dtype)
        return np.memmap(self.rows, self._dtype, mode="r", shape=(count, *self._shape))


@contextlib.contextmanager
def _array(
    description: dict[str, Any], digests: Sequence[str], dtype: str, shape: tuple[int, ...], folder: Path
) -> Iterator[_Array]:
    """Yields the array of this content, locked, cut to its last whole row."""
    described = {"format": _FORMAT, **description, "dtype": dtype, "shape": list(shape), "images": len(digests)}
    text = json.dumps(described, sort_keys=True) + "".join(digests)
    place = folder / hashlib.sha256(text.encode()).hexdigest()[:32]
    keep(place / USERS)
    with locked(place / "lock"):
        if not (place / "about.json").exists():
            write_json(place / "about.json", described)
        array = _Array(place, dtype, shape)
        array.rows.touch()
        array.keep(array.done)
        yield array
        os.utime(array.rows)


def _position(rows: int, failures: dict[int, str]) -> int:
    """Returns how many files are done, given the rows and the failures; later failures are forgotten."""
    position = rows
    for failed in sorted(failures):
        if failed <= position:
            position += 1
        else:
            del failures[failed]
    return position


def _free(folder: Path) -> int:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GB" if count >= 2**30 else f"{count / 2**20:.0f} MB"
