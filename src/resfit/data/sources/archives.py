"""Tar and zip archives: class folders inside, or a WebDataset, whose members share a key.

Nothing is unpacked but a tar that is compressed as a whole; members are read where they lie. Links, devices, names that
lead outside and names that occur twice are listed and not read.
"""

from __future__ import annotations

import dataclasses
import io
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from resfit.data import members
from resfit.data.sources.base import ImageRecords, Tree, Unreadable, register_source
from resfit.errors import CheckpointError, DataError
from resfit.storage import bounded_json
from resfit.weights.archives import DAMAGE, BoundedReader, parts

_TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
_PICTURES = (
    ".jpg",
    ".jpeg",
    ".png",
    ".gif",
    ".bmp",
    ".tif",
    ".tiff",
    ".webp",
    ".ppm",
    ".pgm",
    ".pbm",
    ".avif",
    ".heic",
)
_NUMBERS, _TEXTS = (
    ("cls", "label", "class", "target", "cls_id", "label_id", "index"),
    ("txt", "text", "cls.txt", "caption"),
)
_FIELDS = ("json",)
_LONGEST = 1 << 20  # bytes of a member that says something of an image
_MOST_CELL = 4096
_ENCRYPTED = 0x1
_LINK = "a link or device in an archive, which is not followed"
_TWICE = "a name that occurs twice in its archive; the first is read"


@dataclasses.dataclass(frozen=True)
class _Entry:
    name: str
    path: Path
    offset: int
    size: int


def _is_tar(path: Path) -> bool:
    return path.name.lower().endswith(_TARS)


@register_source("tar", _is_tar)
def read_tar(path: Path, _: str | None = None) -> ImageRecords | Tree:
    """Reads the table of contents of a tar.

    Args:
        path: The file; also compressed by gzip, bzip2 or xz.

    Raises:
        DataError: It is damaged at its beginning, or a key of a WebDataset comes back.
        OSError: It cannot be read.
    """
    plain = members.unpacked(path)
    skipped: list[Unreadable] = []
    entries = list(_tar_entries(path, plain, skipped))
    if _is_webdataset(entries):
        with open(plain, "rb") as file:
            return _webdataset(path, file, entries, skipped)
    return _tree(((entry.name, entry.path) for entry in entries), path, skipped)


def tree_of(path: Path) -> Tree | None:
    """Returns the folders and files of an archive, whatever its files mean; ``None`` for other files.

    Args:
        path: Any file.

    Raises:
        DataError: It is damaged at its beginning.
        OSError: It cannot be read.
    """
    if path.suffix.lower() == ".zip":
        return read_zip(path)
    if not _is_tar(path):
        return None
    skipped: list[Unreadable] = []
    entries = _tar_entries(path, members.unpacked(path), skipped)
    return _tree(((entry.name, entry.path) for entry in entries), path, skipped)


@register_source("zip", lambda path: path.suffix.lower() == ".zip")
def read_zip(path: Path, _: str | None = None) -> Tree:
    """Reads the table of contents of a zip.

    Args:
        path: The file.

    Raises:
        DataError: It is damaged.
        OSError: It cannot be read.
    """
    skipped: list[Unreadable] = []
    try:
        with BoundedReader(io.FileIO(path)) as file, zipfile.ZipFile(file) as archive:
            found = list(_zip_entries(path, file, archive, skipped))
    except DAMAGE as error:
        raise _damaged(path, "zip", error) from error
    return _tree(found, path, skipped)


def _damaged(path: Path, kind: str, error: BaseException) -> DataError:
    return DataError(f"{path.name} must be a whole {kind} file. Received: {type(error).__name__}: {str(error)[:200]}.")


def _tar_entries(path: Path, plain: Path, skipped: list[Unreadable]) -> Iterator[_Entry]:
    """Yields the regular files of a tar; where it is damaged they end, and that is listed."""
    count = 0
    total = plain.stat().st_size
    try:
        with BoundedReader(io.FileIO(plain)) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # it keeps all of them otherwise
                count += 1
                if member.isdir():
                    continue
                place = (member.offset_data, member.size)
                where = members.address(path, "bytes", place, member.name)
                if not member.isreg() or member.issparse():
                    skipped.append(Unreadable(where, _LINK))
                elif member.offset_data + member.size > total:
                    skipped.append(Unreadable(where, f"{path.name} ends before it"))
                else:
                    yield _Entry(member.name, where, *place)
    except DAMAGE as error:
        if not count:
            raise _damaged(path, "tar", error) from error
        skipped.append(
            Unreadable(path, f"damaged behind its member {count}; what follows is lost ({str(error)[:100]})")
        )


def _zip_entries(
    path: Path, file: BoundedReader, archive: zipfile.ZipFile, skipped: list[Unreadable]
) -> Iterator[tuple[str, Path]]:
    for member in archive.infolist():
        name, mode = member.orig_filename, member.external_attr >> 16
        if name.endswith("/"):
            continue
        file.seek(member.header_offset)
        head = file.read(30)
        length = int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
        offset = member.header_offset + 30 + length
        place = (offset, member.compress_size, member.file_size, member.CRC, member.compress_type)
        where = members.address(path, "zip", place, name)
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
            skipped.append(Unreadable(where, _LINK))
        elif member.flag_bits & _ENCRYPTED:
            skipped.append(Unreadable(where, "encrypted"))
        elif not head.startswith(b"PK\3\4"):
            skipped.append(Unreadable(where, f"damaged in {path.name} (its header is not there)"))
        else:
            yield name, where


def _tree(entries: Iterator[tuple[str, Path]] | list[tuple[str, Path]], path: Path, skipped: list[Unreadable]) -> Tree:
    files: dict[str, Path] = {}
    for name, where in entries:
        try:
            plain = "/".join(parts(name))
        except CheckpointError:
            plain = ""
        if not plain:
            skipped.append(Unreadable(where, f"a name in {path.name} that leads outside or is no name"))
        elif plain in files:
            skipped.append(Unreadable(where, _TWICE))
        else:
            files[plain] = where
    return Tree(files, tuple(skipped))


# ---- WebDataset


def _key(name: str) -> tuple[str, str]:
    """Returns the key of a member and its field: what stands before and behind the first dot of its last part."""
    folder, slash, last = name.rpartition("/")
    key, _, field = last.partition(".")
    return f"{folder}{slash}{key}", field.lower()


def _is_picture(field: str) -> bool:
    return f".{field}".endswith(_PICTURES)


def _is_webdataset(entries: list[_Entry]) -> bool:
    """Says whether the images of a tar have members beside them that share their key and say what they are."""
    said = {_key(entry.name)[0] for entry in entries if _key(entry.name)[1] in (*_NUMBERS, *_TEXTS, *_FIELDS)}
    shown = {_key(entry.name)[0] for entry in entries if _is_picture(_key(entry.name)[1])}
    return bool(shown) and 2 * len(said & shown) > len(shown)


def _webdataset(path: Path, file: io.BufferedReader, entries: list[_Entry], skipped: list[Unreadable]) -> ImageRecords:
    samples: dict[str, dict[str, str]] = {}
    last = ""
    for entry in entries:
        key, field = _key(entry.name)
        if key != last and key in samples:
            raise DataError(
                f"the members of a key must stand together in a WebDataset. Received: {key[:200]!r} comes back in "
                f"{path.name}. Write the tar again with unique keys, the members of each one behind the other."
            )
        last = key
        sample = samples.setdefault(key, {})
        if _is_picture(field):
            if "path" in sample:
                skipped.append(Unreadable(entry.path, f"a second image under the key {key[:200]!r}"))
            else:
                sample["path"] = str(entry.path)
        elif field in (*_NUMBERS, *_TEXTS, *_FIELDS):
            if entry.size > _LONGEST:
                skipped.append(Unreadable(entry.path, f"{entry.size} bytes, more than the {_LONGEST} that are allowed"))
                continue
            file.seek(entry.offset)
            _describe(sample, field, file.read(entry.size), entry, skipped)
    header = list(dict.fromkeys(name for sample in samples.values() for name in sample))
    stated = [name for name in ("label", *_NUMBERS) if name in header]  # words of a .json before numbers of a .cls
    whole = [name for name in stated if all(sample.get(name) for sample in samples.values() if "path" in sample)]
    label = next(iter((*whole, *stated)), "")
    rows = []
    for key, sample in samples.items():
        where = members.address(path, "bytes", (0, 0), key)
        if "path" not in sample:
            skipped.append(Unreadable(where, "a key without an image"))
        elif label and not sample.get(label):
            skipped.append(Unreadable(Path(sample["path"]), f"no label ({label}) under its key"))
        else:
            rows.append(tuple(sample.get(name, "") for name in header))
    return ImageRecords(tuple(header), rows, "path", label, tuple(skipped))


def _describe(sample: dict[str, str], field: str, data: bytes, entry: _Entry, skipped: list[Unreadable]) -> None:
    """Adds what a member says of its image."""
    try:
        if field in _FIELDS:
            found = bounded_json.parse(data)
            fields = found if isinstance(found, dict) else {"label": found}
            for name, value in fields.items():
                if isinstance(value, str | int | float | bool) and name != "path" and len(str(value)) <= _MOST_CELL:
                    sample.setdefault(str(name), str(value))
        else:
            sample[field] = data.decode("utf-8-sig").strip()[:_MOST_CELL]
    except ValueError as error:
        skipped.append(Unreadable(entry.path, f"no text that can be read ({' '.join(str(error).split())[:100]})"))
