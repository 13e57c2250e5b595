"""Addresses of images that lie in other files: ``train.tar#bytes=1536+20480/cat/1.jpg`` is a member of ``train.tar``.

An address is a path. What stands behind the sign is all that reading takes, so that it can be kept, sent to another
process, and read in any order: ``bytes`` names a range of the file, or of what a compressed file unpacks to; ``zip``
one of a zip file, with method, size and checksum; ``row`` row group, row and column of a Parquet file. The name at the
end is for people.
"""

from __future__ import annotations

import atexit
import bz2
import functools
import gzip
import lzma
import os
import re
import shutil
import stat
import tempfile
import threading
import zipfile
import zlib
from pathlib import Path
from typing import IO, NamedTuple

from resfit.data import arriving, parquet_rows
from resfit.data.medical import frames
from resfit.errors import DataError, ImageError
from resfit.weights.archives import MOST_GROWTH

#: Largest image in bytes that is read.
MAX_BYTES = 512 * 2**20

_SIGN = re.compile(r"#(bytes|zip|row)=(\d{1,19}(?:\+\d{1,19}){1,4})/")
_ODD = re.compile(r"[\x00-\x1f\x7f\\]")
_PACKED = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
_GROWTH_FROM = 10**8
_ROOM = 10**9  # bytes that stay free on the disk
_CHUNK = 1 << 20
_LONGEST_NAME = 1000
_unpacking = threading.Lock()


class Member(NamedTuple):
    """An image inside another file.

    Attributes:
        container: The file.
        kind: How it lies there: ``"bytes"``, ``"zip"`` or ``"row"``.
        place: Offset and size; for ``"zip"`` offset, size there, size unpacked, CRC-32 and method; for ``"row"`` row
            group, row and column.
    """

    container: Path
    kind: str
    place: tuple[int, ...]


def address(container: Path, kind: str, place: tuple[int, ...], name: str) -> Path:
    """Returns the address of an image.

    Args:
        container: The file that it lies in.
        kind: As in :class:`Member`.
        place: As in :class:`Member`.
        name: What it is called there. Signs that no name should have become underscores.
    """
    parts = [part for part in _ODD.sub("_", name).split("/") if part not in ("", ".", "..")]
    plain = "/".join(parts)[-_LONGEST_NAME:].lstrip("/") or "image"
    return Path(f"{container}#{kind}={'+'.join(map(str, place))}/{plain}")


def member_of(path: str | os.PathLike[str]) -> Member | None:
    """Returns what an address says; ``None`` for a plain path. A file that is really called so is a file.

    Args:
        path: Any path, also of one frame of a scan.
    """
    text = os.fspath(path)
    if "#" not in text or not (found := _SIGN.search(text)) or os.path.lexists(text):
        return None
    return Member(Path(text[: found.start()]), found[1], tuple(map(int, found[2].split("+"))))


def unfolded(path: str | os.PathLike[str]) -> Path:
    """Returns where an image would lie if the file around it were a folder.

    Args:
        path: Any path.
    """
    text = os.fspath(path)
    found = _SIGN.search(text)
    return Path(text) if found is None or member_of(text) is None else Path(text[: found.start()], text[found.end() :])


def container(path: str | os.PathLike[str]) -> Path:
    """Returns the file on disk that holds an image: the path itself, or the file that its address leads into.

    Args:
        path: Any path.
    """
    found = member_of(path)
    return frames.parted(path)[0] if found is None else found.container


def size(path: str | os.PathLike[str]) -> int:
    """Returns the size in bytes of an image as it is stored; of a row that of its file.

    Args:
        path: Any path.

    Raises:
        OSError: There is no such file.
    """
    found = member_of(path)
    whole = arriving.size(frames.parted(path)[0] if found is None else found.container)
    if found is None or found.kind == "row":
        return whole
    return found.place[2 if found.kind == "zip" else 1]


def beginning(path: str | os.PathLike[str], count: int) -> bytes:
    """Returns the first bytes of an image, or of the file that a frame is of.

    Args:
        path: Any path.
        count: How many.

    Raises:
        OSError: It cannot be read.
    """
    found = member_of(path)
    if found is None:
        arriving.wait(file_path := frames.parted(path)[0])
        with open(file_path, "rb") as file:
            return file.read(count)
    if found.kind == "bytes":
        with open(unpacked(found.container), "rb") as file:
            file.seek(found.place[0])
            return file.read(min(count, found.place[1]))
    try:
        return read(found)[:count]
    except ImageError as error:
        raise OSError(str(error)) from error


def read(member: Member) -> bytes:
    """Returns the bytes of an image inside another file.

    Args:
        member: Where it lies.

    Raises:
        ImageError: It cannot be read, or is larger than :data:`MAX_BYTES`; the text is the reason.
    """
    lengths = {"bytes": 2, "zip": 5, "row": 3}
    if len(member.place) != lengths[member.kind]:
        raise ImageError("not the address of an image")
    if member.kind == "row":
        group, row, column = member.place
        return parquet_rows.read(member.container, group, row, column, most=MAX_BYTES)
    offset, length = member.place[:2]
    whole = member.place[2] if member.kind == "zip" else length
    if max(whole, length) > MAX_BYTES:
        raise ImageError(f"{max(whole, length)} bytes, more than the {MAX_BYTES} that are allowed")
    try:
        with open(unpacked(member.container), "rb") as file:
            file.seek(offset)
            data = file.read(length)
    except FileNotFoundError as error:
        raise ImageError(f"{member.container.name} is not there") from error
    except (OSError, DataError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"{member.container.name} cannot be read: {reason}") from error
    if len(data) < length:
        raise ImageError(f"{member.container.name} ends before it")
    return data if member.kind == "bytes" else _unzipped(data, member)


def _unzipped(data: bytes, member: Member) -> bytes:
    """Returns the content of a member of a zip file, its size and checksum compared."""
    _, _, whole, checksum, method = member.place
    if method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ImageError(f"compressed in {member.container.name} by method {method}; 0 and 8 (deflate) are read")
    try:
        if method == zipfile.ZIP_DEFLATED:
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, whole + 1)
    except zlib.error as error:
        raise ImageError(f"damaged in {member.container.name} ({error})") from error
    if len(data) != whole or zlib.crc32(data) != checksum:
        raise ImageError(f"damaged in {member.container.name} (its size or checksum is another)")
    return data


def unpacked(path: Path) -> Path:
    """Returns a file that can be read at any place: itself, or a temporary copy of what it unpacks to.

    Args:
        path: A file; one that is compressed as a whole (gzip, bzip2, xz) is unpacked once a process.

    Raises:
        DataError: It is damaged, or larger than allowed or than the disk.
        OSError: It cannot be read.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(None, "not a regular file")
    return _unpacked(path, status.st_size, status.st_mtime_ns)


def is_packed(path: Path) -> bool:
    """Says whether a file is compressed as a whole, by how it begins.

    Raises:
        OSError: It cannot be read.
    """
    with open(path, "rb") as file:
        return _opener(file.read(6)) is not None


def _opener(begin: bytes):
    return next((opener for mark, opener in _PACKED.items() if begin.startswith(mark)), None)


@functools.lru_cache(maxsize=4096)
def _unpacked(path: Path, size: int, modified: int) -> Path:
    with open(path, "rb") as file:
        opener = _opener(file.read(6))
    if opener is None:
        return path
    with _unpacking:
        known = _copies().get((path, size, modified))
        if known is None:
            known = _copies()[path, size, modified] = _unpack(path, opener, max(MOST_GROWTH * size, _GROWTH_FROM))
        return known


@functools.cache
def _copies() -> dict[tuple[Path, int, int], Path]:
    return {}


@functools.cache
def _folder() -> Path:
    folder = tempfile.mkdtemp(prefix="resfit-unpacked-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _unpack(path: Path, opener, most: int) -> Path:
    """Writes what a compressed file unpacks to beside others of this process."""
    folder = _folder()
    target = folder / f"{len(_copies())}-{path.stem}"
    most = min(most, shutil.disk_usage(folder).free - _ROOM)
    written = 0
    try:
        source: IO[bytes]
        with opener(path, "rb") as source, open(target, "wb") as file:
            while chunk := source.read(_CHUNK):
                written += len(chunk)
                if written > most:
                    raise DataError(
                        f"{path.name} must unpack to at most {max(0, most)} bytes, which its size and the disk of "
                        f"{folder} allow (TMPDIR). Received: more."
                    )
                file.write(chunk)
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        target.unlink(missing_ok=True)
        raise DataError(f"{path.name} must be a whole compressed file. Received: {error}.") from error
    except (OSError, DataError):
        target.unlink(missing_ok=True)
        raise
    return target
