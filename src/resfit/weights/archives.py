"""Unpacking untrusted archives: tar, tar.gz and zip.

Members are written as plain files and folders with this process's own rights; nothing else that an archive says is
believed. It is unpacked beside its place and renamed when it is whole, so that a refusal leaves nothing behind.
"""

from __future__ import annotations

import gzip
import io
import os
import re
import shutil
import stat
import struct
import tarfile
import tempfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, BinaryIO

from resfit.errors import ArgumentError, CheckpointError
from resfit.storage import atomic
from resfit.weights.download import locked

#: Bytes and members that an archive may unpack to where the caller names no limit.
MOST_BYTES = 20 * 10**9
MOST_MEMBERS = 10_000

#: Weights hardly shrink: what unpacks to more than so many times the archive's size, and to more than 100 MB, is none.
MOST_GROWTH = 100
_GROWTH_FROM = 10**8

#: Endings of archives.
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
SUFFIXES = (*TAR_SUFFIXES, ".zip")
# torch's files that are called so and are none
_NO_ARCHIVES = (".pth.tar", ".pt.tar")

_CHUNK = 1 << 20
_MOST_AT_ONCE = 1 << 24  # bytes of a header or table of contents, which the libraries read into memory
_LONGEST_NAME, _LONGEST_PART = 1000, 255
_ENCRYPTED = 0x1
_ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_BAD_NAME = re.compile(r"[\x00-\x1f\x7f\\]|^/|^[A-Za-z]:|(^|/)\.\.(/|$)")

#: What the libraries raise over a damaged archive.
DAMAGE = (
    *(tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, struct.error, EOFError),
    *(ValueError, LookupError, ArithmeticError, RuntimeError),
)


def is_archive(name: str) -> bool:
    """Whether a file is an archive, by its name.

    Args:
        name: The name.
    """
    return name.lower().endswith(SUFFIXES) and not name.lower().endswith(_NO_ARCHIVES)


def unpack(archive: Path, destination: Path, *, max_bytes: int = MOST_BYTES, max_members: int = MOST_MEMBERS) -> Path:
    """Unpacks an archive into a new folder.

    Args:
        archive: A tar, tar.gz or zip file; which of them, its content says.
        destination: The folder. It must not exist yet.
        max_bytes: Bytes that it may unpack to, by what its members declare and by what they hold.
        max_members: Files and folders that it may have.

    Returns:
        ``destination``.

    Raises:
        CheckpointError: The archive is damaged or larger than allowed, or has a member that is no plain file or
            folder, or whose name is absolute, leads outside or occurs twice. Nothing is left behind.
        ArgumentError: The destination exists.
        OSError: The archive cannot be read, or the destination not be written.
    """
    archive, destination = Path(archive), Path(destination)
    if os.path.lexists(destination):
        raise ArgumentError(f"the destination must not exist. Received: {destination}.")
    destination.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix=".unpacking-", dir=destination.parent) as temporary,
        BoundedReader(io.FileIO(archive)) as file,
    ):
        growth = max(MOST_GROWTH * os.fstat(file.fileno()).st_size, _GROWTH_FROM)
        writer = _Writer(Path(temporary) / "root", min(max_bytes, growth), max_members)
        try:
            if file.peek(4)[:4] in (b"PK\3\4", b"PK\5\6"):
                _unpack_zip(file, writer)
            else:
                _unpack_tar(file, writer)
        except CheckpointError as error:
            raise CheckpointError(f"{archive}: {error}") from error
        except DAMAGE as error:
            raise CheckpointError(
                f"{archive}: the archive must be a whole tar, tar.gz or zip file. "
                f"Received: {type(error).__name__}: {str(error)[:200]}."
            ) from error
        for folder, _, _ in os.walk(writer.root, topdown=False):
            atomic.sync(Path(folder))
        os.replace(writer.root, destination)
    atomic.sync(destination.parent)
    return destination


def unpack_once(
    folder: Path, bring: Callable[[], Path], *, is_whole: Callable[[], bool], describe: Callable[[], object]
) -> None:
    """Fills a folder of a cache with what an archive holds, unless it is whole; one process at a time.

    Args:
        folder: The folder. What a cleaning has left of it is replaced.
        bring: Returns the archive. One that was put beside the folder is removed at the end.
        is_whole: Says whether all is there.
        describe: Writes down what is there, once it is.

    Raises:
        CheckpointError: As :func:`unpack`.
        OSError: The folder cannot be written.
    """
    if is_whole():
        return
    with locked(folder):
        if is_whole():
            return
        archive = bring()
        shutil.rmtree(folder, ignore_errors=True)
        try:
            unpack(archive, folder)
        finally:
            if archive.parent == folder.parent:
                archive.unlink(missing_ok=True)
        describe()


def parts(name: str) -> list[str]:
    """Returns the parts of a relative path that somebody else wrote, none of which leads upwards.

    Args:
        name: With ``/`` between folders.

    Raises:
        CheckpointError: It is absolute, leads outside, or is no name for a file.
    """
    found = [part for part in name.split("/") if part not in ("", ".")]
    too_long = len(name) > _LONGEST_NAME or any(len(os.fsencode(part)) > _LONGEST_PART for part in found)
    if _BAD_NAME.search(name) or too_long:
        raise _refused(name[:_LONGEST_NAME], "a name that leads outside or is no name")
    return found


def _unpack_tar(file: BinaryIO, writer: _Writer) -> None:
    packed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    stream: Any = _Forward(gzip.GzipFile(fileobj=file) if packed else file)
    with tarfile.open(fileobj=stream, mode="r:") as tar:
        while (member := tar.next()) is not None:
            if member.isdir():
                writer.folder(member.name)
            elif not member.isreg() or member.issparse():
                raise _refused(member.name, f"a tar member of type {member.type!r} (a link, device or the like)")
            elif (content := tar.extractfile(member)) is not None:
                with content:
                    writer.file(member.name, member.size, content)
    # what follows the last member must be whole too: the checksum of gzip stands at the very end
    rest = 0
    while chunk := stream.read(_CHUNK):
        rest += len(chunk)
        if rest > _MOST_AT_ONCE:
            raise CheckpointError(f"an archive must end after its last member. Received: more than {rest} bytes there.")


def _unpack_zip(file: BinaryIO, writer: _Writer) -> None:
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        writer.allow(sum(member.file_size for member in members), "all members together")
        for member in members:
            name, mode = member.orig_filename, member.external_attr >> 16
            if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _refused(name, f"a zip member of mode {mode:o} (a link, device or the like)")
            if member.flag_bits & _ENCRYPTED:
                raise _refused(name, "an encrypted one")
            if member.compress_type not in _ZIP_METHODS:
                raise _refused(name, f"compression method {member.compress_type}")
            if name.endswith("/"):
                writer.folder(name)
            else:
                with archive.open(member) as content:
                    writer.file(name, member.file_size, content)


class _Writer:
    """Writes members below a folder, and keeps count.

    Args:
        root: The folder; made here.
        max_bytes: Bytes of all files.
        max_members: Files and folders.
    """

    def __init__(self, root: Path, max_bytes: int, max_members: int):
        self.root = root
        self._max_bytes = max_bytes
        self._max_members = max_members
        self._bytes = 0
        self._taken: dict[tuple[str, ...], Path] = {(): root}
        root.mkdir()

    def folder(self, name: str) -> None:
        """Makes a folder and those around it."""
        pieces = parts(name)
        for end in range(1, len(pieces) + 1):
            path = self.root.joinpath(*pieces[:end])
            if self._taken.get(_key(pieces[:end])) != path or not path.is_dir():
                self._take(pieces[:end], name)
                path.mkdir()

    def file(self, name: str, size: int, content: IO[bytes]) -> None:
        """Writes a file.

        Args:
            name: As the archive names it.
            size: Bytes that the archive declares.
            content: What it holds.
        """
        pieces = parts(name)
        self.folder("/".join(pieces[:-1]))
        self._take(pieces, name)
        self.allow(size, repr(name))
        with open(self.root.joinpath(*pieces), "xb") as file:
            while chunk := content.read(_CHUNK):
                self._bytes += len(chunk)
                size -= len(chunk)
                self.allow(0, repr(name))
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        if size:
            raise _refused(name, "one that does not have the size it declares")

    def allow(self, more: int, what: str) -> None:
        """Makes sure that so many more bytes fit.

        Raises:
            CheckpointError: They do not.
        """
        if not 0 <= more <= self._max_bytes - self._bytes:
            raise CheckpointError(
                f"an archive of this size may unpack to {self._max_bytes} bytes. Received: {what} makes it more."
            )

    def _take(self, pieces: list[str], name: str) -> None:
        """Makes sure that a name is new, also where upper and lower case are the same."""
        key = _key(pieces)
        if key in self._taken:
            raise _refused(name, "a name that occurs twice")
        if len(self._taken) > self._max_members:
            raise CheckpointError(f"an archive may have {self._max_members} members. Received: more.")
        self._taken[key] = self.root.joinpath(*pieces)


def _refused(name: str, what: str) -> CheckpointError:
    """Returns the error that names a member and what is wrong with it."""
    return CheckpointError(f"a member must be a plain file or folder inside the archive. Received: {name!r}, {what}.")


def _key(pieces: list[str]) -> tuple[str, ...]:
    """Returns what two names share that some file systems take for one."""
    return tuple(unicodedata.normalize("NFC", piece).casefold() for piece in pieces)


class BoundedReader(io.BufferedReader):
    """A file that is never read into memory as a whole, whatever it says of itself."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Reads at most so many bytes.

        Raises:
            ValueError: It is asked for more than a header or table takes.
        """
        if size is not None and size > _MOST_AT_ONCE:
            raise ValueError(f"a header or table of {size} bytes")
        data = super().read(_MOST_AT_ONCE if size is None or size < 0 else size)
        if len(data) == _MOST_AT_ONCE:
            raise ValueError("a table of contents without end")
        return data


class _Forward:
    """A stream that tarfile can read a bounded part of at a time, and only forwards: it is never unpacked twice."""

    def __init__(self, stream: Any):
        self._stream = stream
        self._position = 0

    def tell(self) -> int:
        return self._position

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _MOST_AT_ONCE:
            raise ValueError(f"a header of {size} bytes")
        data: bytes = self._stream.read(size)
        self._position += len(data)
        return data

    def seek(self, position: int) -> int:
        if position < self._position:
            raise ValueError("a header that points back")
        while position > self._position and self.read(min(_CHUNK, position - self._position)):
            pass
        return self._position
