"""Sources whose images lie in other files: found below a folder, read, and laid out as a table or as folders."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from resfit.data import members, walk
from resfit.data.folders import part_of, some
from resfit.data.sources import archives, base
from resfit.data.sources.base import ImageRecords, SourceFormat, Tree
from resfit.data.tables import Table
from resfit.errors import DataError

_DEPTH = 4  # folders below the source in which such files are looked for
_SHARDS = re.compile(r"([-_.]?\d+)?([-_]of[-_]\d+)?$")
#: Endings of tables, which are read from an archive.
TABLES = frozenset({".csv", ".tsv", ".txt", ".lst", ".jsonl", ".ndjson"})
_MOST_TABLE = 1 << 28
_BEGINNING = 1024
_MOST_FILES = 20_000_000


@dataclasses.dataclass(frozen=True)
class Shard:
    """A file that holds images.

    Attributes:
        path: The file.
        format: Its kind.
        split: ``"train"``, ``"val"``, ``"test"``, or ``None`` where nothing says so.
    """

    path: Path
    format: SourceFormat
    split: str | None


@dataclasses.dataclass(frozen=True)
class OpenedSource:
    """What files hold, in the form in which folders and tables are read.

    Attributes:
        root: The folder that they stand in.
        table: The images as a table, or ``None``.
        label: The column of the table that the files say holds the classes, or an empty string.
        folder: A temporary folder with a file of every name, or ``None``.
        places: For each file of that folder the address of the real one.
        skipped: What cannot be used.
        notes: What was assumed.
    """

    root: Path
    table: Table | None = None
    label: str = ""
    folder: Path | None = None
    places: Mapping[str, Path] = dataclasses.field(default_factory=dict)
    skipped: tuple[walk.Skipped, ...] = ()
    notes: tuple[str, ...] = ()

    def real(self, path: Path) -> Path:
        """Returns the address that a file of the temporary folder stands for."""
        if self.folder is None:
            return path
        try:
            name = path.relative_to(self.folder).as_posix()
        except ValueError:
            return path
        return self.places.get(name, self.root / name)


def shards(path: Path) -> list[Shard]:
    """Returns the files that hold images: the file itself, or those below a folder.

    A folder with images of its own in it, at whatever depth, is one of images; archives in it are none of its images.

    Args:
        path: A file or folder.
    """
    if path.is_file():
        kind = base.format_of(path)
        return [] if kind is None else [Shard(path, kind, _split_of(path, path.parent))]
    if not path.is_dir() or _has_images(path, _DEPTH):
        return []
    return [
        Shard(file, kind, _split_of(file, path))
        for file in _files(path, _DEPTH)
        if (kind := base.format_of(file)) is not None
    ]


def _files(folder: Path, depth: int) -> Iterator[Path]:
    try:
        files, folders, _ = walk.contents(folder)
    except OSError:
        return
    yield from files
    for child in folders if depth else ():
        if not child.is_symlink():
            yield from _files(child, depth - 1)


def _has_images(folder: Path, depth: int) -> bool:
    if walk.has_images(folder):
        return True
    try:
        children = walk.subfolders(folder) if depth else []
    except DataError:
        return False
    return any(_has_images(child, depth - 1) for child in children if not child.is_symlink())


def _split_of(file: Path, root: Path) -> str | None:
    """Returns the part of the split that the name of a file or of a folder above it means."""
    stem = file.name.partition(".")[0]
    names = [_SHARDS.sub("", stem), stem.rpartition("-")[2]]
    named = re.search(
        r"-(\w+)\.(?:tfrecords?|array_record|parquet|arrow)\b", file.name
    )  # cifar10-train.tfrecord-00000-…
    names += [named[1]] if named else []
    names += [part for part in reversed(file.relative_to(root).parts[:-1])]
    return next((part for name in names if (part := part_of(name)) is not None), None)


@contextlib.contextmanager
def opened(
    root: Path,
    files: Sequence[Shard],
    image: str | None,
    *,
    needs_labels: bool = True,
) -> Iterator[OpenedSource]:
    """Reads what files hold.

    Args:
        root: The folder that they stand in.
        files: The files, at least one.
        image: The column with the images; ``None`` finds it.
        needs_labels: Whether rows for which the file's own label is missing are left out; they are listed then.

    Raises:
        DataError: A file is damaged so that nothing of it can be read, or they are of kinds that do not go together.
    """
    read = [(shard, _read(shard, image)) for shard in files]
    skipped = tuple(walk.Skipped(item.path, item.reason) for _, found in read for item in found.skipped)
    tables = [(shard, found) for shard, found in read if isinstance(found, ImageRecords)]
    trees = [(shard, found) for shard, found in read if isinstance(found, Tree)]
    if tables and trees:
        raise DataError(
            f"the files of a source must be of one kind. Received: {tables[0][0].path.name}, a table of images, and "
            f"{trees[0][0].path.name}, an archive of folders. Name one of them."
        )
    if tables:
        table, label = _combined(root, tables)
        notes = tuple(dict.fromkeys(note for _, found in tables for note in found.notes))
        yield OpenedSource(root, table, label, skipped=skipped, notes=notes)
        return
    with _as_folder(root, [(shard.path, shard.split, tree) for shard, tree in trees], skipped, TABLES) as held:
        yield held


@contextlib.contextmanager
def unfolded(path: Path, copied: frozenset[str]) -> Iterator[OpenedSource | None]:
    """Gives an archive as a folder, whatever its files mean; ``None`` for other files, and where no file is copied.

    Args:
        path: Any file.
        copied: Endings of files that the temporary folder has whole; of others it has the beginning, images are empty.

    Raises:
        DataError: It is damaged at its beginning.
    """
    try:
        tree = archives.tree_of(path)
    except OSError as error:
        raise DataError(f"{path.name} cannot be read: {error.strerror or error}.") from error
    if tree is None or not any(Path(name).suffix.lower() in copied for name in tree.files):
        yield None
        return
    skipped = tuple(walk.Skipped(item.path, item.reason) for item in tree.skipped)
    with _as_folder(path.parent, [(path, None, tree)], skipped, copied) as held:
        yield held


@contextlib.contextmanager
def _as_folder(
    root: Path,
    trees: Sequence[tuple[Path, str | None, Tree]],
    skipped: tuple[walk.Skipped, ...],
    copied: frozenset[str],
) -> Iterator[OpenedSource]:
    """Makes a temporary folder with the names of archives, each with the part of the split that its name says."""
    with tempfile.TemporaryDirectory(prefix="resfit-names-") as folder:
        places: dict[str, Path] = {}
        for path, split, tree in trees:
            stem = path.name.partition(".")[0]
            prefix = "" if len(trees) == 1 and not split else f"{split or stem}/"
            for name, place in tree.files.items():
                whole = f"{prefix}{name}"
                if whole in places:  # of several archives for one part
                    above, _, last = whole.rpartition("/")
                    whole = f"{above}/{stem}-{last}".lstrip("/")
                places[whole] = place
        _lay_out(Path(folder), places, copied)
        packed = [path.name for path, _, _ in trees if members.is_packed(path)]
        said = f"{some(packed)}: compressed as a whole, and unpacked to a temporary file (TMPDIR) for this run"
        yield OpenedSource(root, folder=Path(folder), places=places, skipped=skipped, notes=(said,) if packed else ())


def _read(shard: Shard, image: str | None) -> ImageRecords | Tree:
    try:
        return shard.format.read(shard.path, image)
    except OSError as error:
        raise DataError(f"{shard.path.name} cannot be read: {error.strerror or error}.") from error


def _combined(root: Path, read: Sequence[tuple[Shard, ImageRecords]]) -> tuple[Table, str]:
    """Returns the rows of all files as one table, with the part of the split that a file's name says."""
    header = tuple(dict.fromkeys(name for _, found in read for name in found.header))
    split = any(shard.split for shard, _ in read) and not any(name.lower() == "split" for name in header)
    rows: list[tuple[int, tuple[str, ...]]] = []
    for shard, found in read:
        places = {name: index for index, name in enumerate(found.header)}
        paths = places.get(found.path) if found.path else None
        for row in found.rows:
            cells = [row[places[name]] if name in places else "" for name in header]
            if paths is not None:
                cells[header.index(found.path)] = os.path.relpath(_at(row[paths], shard.path.parent), root)
            rows.append((len(rows) + 1, (*cells, *([shard.split or ""] if split else []))))
    first = read[0][0].path
    if not rows:
        raise DataError(f"{first.name} must have rows with images. Received: none.")
    labels = {found.label for _, found in read}
    name = first if len(read) == 1 else root / f"{first.name} and {len(read) - 1} more"
    label = labels.pop() if len(labels) == 1 else ""
    return Table(name, (*header, *(["split"] if split else [])), rows, True), label


def _at(path: str, folder: Path) -> Path:
    return Path(path) if members.member_of(path) is not None else folder / path


def _lay_out(folder: Path, places: Mapping[str, Path], copied: frozenset[str]) -> None:
    """Makes a file of each name: empty, or with what tells its kind; tables with all that they hold."""
    if len(places) > _MOST_FILES:
        raise DataError(f"an archive may have {_MOST_FILES} files. Received: {len(places)}.")
    made: set[Path] = set()
    for name, place in places.items():
        target = folder / name
        try:
            if target.parent not in made:
                target.parent.mkdir(parents=True, exist_ok=True)
                made.add(target.parent)
            with open(target, "wb") as file:
                if not walk.is_image_name(target):
                    whole = target.suffix.lower() in copied and members.size(place) <= _MOST_TABLE
                    file.write(members.beginning(place, _MOST_TABLE if whole else _BEGINNING))
        except OSError as error:  # a name that is a file and a folder, or longer than the disk allows
            raise DataError(f"an archive must have names for files. Received: {name[:200]!r} ({error}).") from error
