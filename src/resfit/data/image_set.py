"""Finding the images: a folder of class folders, one with train, val and test below it, or a CSV file."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from resfit.data import class_names, cohort, csv_cells, dicomdir, frames
from resfit.data.cohort import Entry
from resfit.errors import DataError, closest
from resfit.preprocessing import Reading

#: File name endings that count as images when folders are searched.
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".webp"}
    | {".ppm", ".pgm", ".pbm", ".heic", ".heif", ".avif"}
)
_SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
_IGNORED = frozenset({"__macosx", "thumbs.db", "desktop.ini", "dicomdir"})
_LAYOUTS = (
    "one folder for each class (photos/cats/1.jpg), train/ val/ test/ with class folders inside, or a CSV file with "
    "columns path,label[,split,group]"
)
_PLAIN = Reading()
_EXAMPLE = "such as "


@dataclasses.dataclass(frozen=True)
class Skipped:
    """An image that cannot be used.

    Attributes:
        path: The file.
        reason: Why, in one line.
    """

    path: Path
    reason: str


@dataclasses.dataclass(frozen=True, eq=False)
class ImageSet:
    """Image files and what is known of them. Nothing is decoded yet.

    Attributes:
        root: The folder that was searched, or the folder of the CSV file.
        paths: The files, in a fixed order.
        labels: int64 array ``(n,)``: index into ``classes``, -1 where there is no label.
        classes: Names of the classes, sorted.
        splits: For each file ``"train"``, ``"val"``, ``"test"``, or None where the data does not say.
        groups: For each file the group that must stay together (a patient, a scene), or None.
        skipped: Files that were found but cannot be opened, with the reason.
        warnings: What looks odd but does not stop anything.
        fingerprint: SHA-256 over names, sizes, labels, splits and groups, in hexadecimal digits.
        columns: What else is known of each file, by name, such as ``site`` and ``sex``; empty where it is not.
        medical: Whether patients are behind the images: a scan is among them, or a column names patients. Groups are
            then numbers, and paths stay out of all that is written (:mod:`resfit.data.privacy`).
    """

    root: Path
    paths: tuple[Path, ...]
    labels: np.ndarray
    classes: tuple[str, ...]
    splits: tuple[str | None, ...]
    groups: tuple[str | None, ...]
    skipped: tuple[Skipped, ...] = ()
    warnings: tuple[str, ...] = ()
    fingerprint: str = ""
    columns: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    medical: bool = False

    def __len__(self) -> int:
        """Number of files."""
        return len(self.paths)

    def counts(self) -> dict[str, int]:
        """Number of files of each class."""
        found = Counter(self.labels.tolist())
        return {name: found.get(index, 0) for index, name in enumerate(self.classes)}

    def subset(self, indices: Sequence[int] | np.ndarray) -> ImageSet:
        """Returns some of the files, with the same classes.

        Args:
            indices: Positions in ``paths``.
        """
        chosen = [int(index) for index in indices]
        fingerprint = self.fingerprint
        if chosen != list(range(len(self))):
            fingerprint = hashlib.sha256(f"{self.fingerprint}{chosen}".encode()).hexdigest()
        return dataclasses.replace(
            self,
            paths=tuple(self.paths[i] for i in chosen),
            labels=self.labels[chosen],
            splits=tuple(self.splits[i] for i in chosen),
            groups=tuple(self.groups[i] for i in chosen),
            skipped=(),
            fingerprint=fingerprint,
            columns={name: tuple(values[i] for i in chosen) for name, values in self.columns.items()},
        )


def scan(
    source: str | os.PathLike[str] | ImageSet,
    *,
    path_column: str = "path",
    label_column: str = "label",
    split_column: str = "split",
    group_column: str | None = None,
    extra_columns: Sequence[str] = cohort.EXTRA_COLUMNS,
    reading: Reading = _PLAIN,
) -> ImageSet:
    """Finds the labelled images of a source.

    Hidden files, system files and files whose ending is no image's are passed over. Links are followed, but for one
    class no folder is entered twice, and none that is above the class. Files that are no regular files, and folders
    that cannot be read, are listed as skipped.

    Args:
        source: One folder for each class; or ``train``, ``val`` and ``test`` (any of them) with class folders inside;
            or a CSV file whose relative paths start at its own folder. An :class:`ImageSet` is returned as it is.
        path_column: Column of a CSV file with the path.
        label_column: Column with the class.
        split_column: Column with ``train``, ``val`` or ``test``; may be missing.
        group_column: Column with the group; may be missing. ``None`` takes ``group``, ``patient`` or ``patient_id``,
            the first that is there. Without one, the patient's ID in DICOM files is the group.
        extra_columns: Further columns that are kept in :attr:`ImageSet.columns`, where they are there.
        reading: Which frames of scans, and which files of their series, are images.

    Raises:
        DataError: The source does not exist, has another layout, or contradicts itself.

    Example:
        >>> scan("photos/").counts()  # doctest: +SKIP
        {'cat': 120, 'dog': 98}
    """
    if isinstance(source, ImageSet):
        return source
    path = Path(source)
    if not path.exists():
        raise DataError(f"source must be a folder or a CSV file. Received: {str(source)!r}, which does not exist.")
    if path.is_dir():
        entries, skipped, warnings = _scan_folder(path)
        return _image_set(path, entries, skipped, warnings, reading)
    if path.suffix.lower() not in (".csv", ".tsv", ".txt") or not path.is_file():
        raise DataError(f"source must be {_LAYOUTS}. Received the file {str(source)!r}.")
    columns = {"path": path_column, "label": label_column, "split": split_column}
    entries, skipped, warnings, group = _scan_table(path, columns, group_column, extra_columns)
    return _image_set(path.parent, entries, skipped, warnings, reading, patients=group in cohort.GROUP_COLUMNS[1:])


def scan_images(sources: Iterable[str | os.PathLike[str]], *, reading: Reading = _PLAIN) -> ImageSet:
    """Finds images without labels.

    Args:
        sources: Image files, taken whatever their ending; folders, searched for images at any depth; a DICOMDIR, for
            the files that it lists.
        reading: Which frames of scans, and which files of their series, are images.

    Raises:
        DataError: A source does not exist, or a folder has no images.
    """
    entries: list[Entry] = []
    skipped: list[Skipped] = []
    circles: list[Path] = []
    warnings: list[str] = []
    roots = [Path(source) for source in sources]
    for root in roots:
        if not os.path.lexists(frames.parted(root)[0]):
            raise DataError(f"images must be files or folders. Received: {str(root)!r}, which does not exist.")
        if root.is_dir():
            before = len(entries) + len(skipped)
            _collect(_walk(root, circles), None, None, entries, skipped)
            if len(entries) + len(skipped) == before:
                raise DataError(f"the folder {str(root)!r} has no image files. Received: an empty selection.")
        elif dicomdir.is_dicomdir(root):
            warnings += _collect_listed(root, Entry(root, None), entries, skipped)
        else:
            _collect([root], None, None, entries, skipped)
    root = roots[0] if len(roots) == 1 and roots[0].is_dir() else Path(".")
    return _image_set(root, entries, skipped, warnings + _not_followed(circles), reading)


def of_files(root: Path, paths: Sequence[Path], labels: Sequence[str], *, reading: Reading = _PLAIN) -> ImageSet:
    """Returns files with their labels as a set; which of them can be used is seen when they are decoded.

    Args:
        root: The folder that most of them stand in.
        paths: The files, no two the same.
        labels: For each its class.
        reading: Which frames of scans, and which files of their series, are images.

    Raises:
        DataError: Two labels are too much alike.
    """
    entries = [Entry(path, label) for path, label in zip(paths, labels, strict=True)]
    return _image_set(root, entries, [], [], reading)


def is_several(path: Path, reading: Reading) -> bool:
    """Says whether a file may stand for several images: a DICOMDIR, or a scan of which each frame is one."""
    return dicomdir.is_dicomdir(path) or reading.frame == "each"


def read_column(source: str | os.PathLike[str], column: str, *, path_column: str = "path") -> dict[str, str]:
    """Returns what a CSV file says of each image in one more column.

    Args:
        source: The CSV file.
        column: Its column.
        path_column: Its column with the path.

    Returns:
        The value by path, as ``os.path.normpath`` writes it.

    Raises:
        DataError: It is no CSV file, or has no such column.
    """
    path = Path(source)
    if not path.is_file():
        raise DataError(f"columns are those of a CSV file. Received: {str(source)!r} and column {column!r}.")
    rows = _read_table(path, {"path": path_column, "label": column})
    return {os.path.normpath(path.parent / row[path_column].strip()): row[column].strip() for _, row in rows}


def check_trainable(images: ImageSet, *, least: int = 3) -> None:
    """Checks that a classifier can be trained and measured on a set.

    Args:
        images: The set.
        least: Files that each class with any files must have at least.

    Raises:
        DataError: There are fewer than two classes with images, or a class has too few; the text names it. Or the
            data states a split without training images.
    """
    counts = {name: number for name, number in images.counts().items() if number}
    if not counts:
        raise DataError(f"source must hold labelled images: {_LAYOUTS}. Received: no image in {str(images.root)!r}.")
    if len(counts) == 1:
        raise DataError(f"at least two classes are needed. Received one: {next(iter(counts))!r}.")
    if not any(split in (None, "train") for split in images.splits):
        raise DataError(
            "training images are needed: train/ with class folders inside, or split 'train' in the CSV file. "
            f"Received: images of {' and '.join(sorted({split for split in images.splits if split}))} alone."
        )
    small = [f"{name} ({number})" for name, number in counts.items() if number < least]
    if small:
        raise DataError(
            f"each class needs at least {least} images, to train on and to measure with. Received fewer in: "
            f"{_some(small)}. Add images, or remove or merge these classes."
        )


def _scan_folder(root: Path) -> tuple[list[Entry], list[Skipped], list[str]]:
    entries: list[Entry] = []
    skipped: list[Skipped] = []
    warnings: list[str] = []
    circles: list[Path] = []
    folders = _subfolders(root)
    named = [folder for folder in folders if folder.name.lower() in _SPLITS]
    others = [folder for folder in folders if folder not in named]
    inside = {folder: _subfolders(folder) for folder in named}
    sources: list[tuple[str | None, Path]] = [(None, folder) for folder in folders]
    if _is_split(inside, others):
        if others:
            warnings.append(f"folders beside train/ val/ test/ are left out: {_some([path.name for path in others])}")
        flat = [folder.name for folder in named if not inside[folder]]
        if flat:
            warnings.append(f"folders without class folders inside are left out: {_some(flat)}")
        sources = [(_SPLITS[folder.name.lower()], child) for folder in named for child in inside[folder]]
    if not sources:
        loose = sum(1 for _ in _walk(root, []))
        raise DataError(
            f"source must be {_LAYOUTS}. Received: {str(root)!r} with no folder inside and {loose} loose images."
        )
    for split, folder in sources:
        before = len(entries) + len(skipped)
        above = (root,) if split is None else (root, folder.parent)
        _collect(_walk(folder, circles, above), folder.name, split, entries, skipped)
        if len(entries) + len(skipped) == before:
            warnings.append(f"the class folder {folder.name!r} has no images")
    parents = sorted({root, *(folder.parent for _, folder in sources)})
    loose_files = [path for parent in parents for path in _contents(parent)[0] if _is_image_name(path)]
    if loose_files:
        warnings.append(f"{len(loose_files)} images outside the class folders are left out")
    return entries, skipped, warnings + _not_followed(circles)


def _not_followed(links: list[Path]) -> list[str]:
    if not links:
        return []
    return [f"{len(links)} links to folders that are searched anyway are not followed, {_EXAMPLE}{str(links[0])!r}"]


def _is_split(inside: dict[Path, list[Path]], others: list[Path]) -> bool:
    """Returns whether folders are the parts of a split, and not classes that happen to be called so.

    Args:
        inside: Folders called train, val or test, with the folders inside each.
        others: The folders beside them.
    """
    parts = {_SPLITS[folder.name.lower()] for folder, below in inside.items() if below}
    if "train" not in parts:
        return bool(parts) and not others  # such as test/ alone, to measure on
    full = [other.name for other in others if any(True for _ in _walk(other, []))]
    if full and len(inside) == 1:
        raise DataError(
            f"source must be {_LAYOUTS}. Received: train/ with folders inside, which may be a part or a class, beside "
            f"{_some(full)}. Rename train/ if it is a class, or move the others away if it holds the classes."
        )
    return True


def _collect(
    paths: Iterable[Path | Skipped], label: str | None, split: str | None, entries: list[Entry], skipped: list[Skipped]
) -> None:
    for path in paths:
        if isinstance(path, Skipped):
            skipped.append(path)
            continue
        reason = _unusable(path)
        if reason:
            skipped.append(Skipped(path, reason))
        else:
            entries.append(Entry(path, label, split))


def _collect_listed(directory: Path, like: Entry, entries: list[Entry], skipped: list[Skipped]) -> list[str]:
    """Adds the files that a DICOMDIR lists, each with the label, split and group of an entry; returns warnings."""
    files, outside = dicomdir.listed(directory)
    for file in files:
        reason = _unusable(file)
        if reason:
            skipped.append(Skipped(file, reason))
        else:
            entries.append(dataclasses.replace(like, path=file))
    return [f"{outside} files that a DICOMDIR lists outside its own folder are left out"] if outside else []


def _is_image_name(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES or cohort.is_scan_file(path)


def _unusable(path: Path) -> str:
    """Returns why a file cannot be opened, or an empty string. Nothing is opened here."""
    path, _ = frames.parted(path)
    try:
        if path.is_file():
            return "" if os.access(path, os.R_OK) else "cannot be read: permission denied"
        return "not a regular file" if path.exists() else "no such file"
    except OSError as error:  # a link that leads to itself
        return f"cannot be read: {error.strerror or error}"


def _subfolders(folder: Path) -> list[Path]:
    try:
        return _contents(folder)[1]
    except OSError as error:
        raise DataError(f"the folder {str(folder)!r} cannot be read: {error.strerror or error}.") from error


def _contents(folder: Path) -> tuple[list[Path], list[Path]]:
    """Returns the files and the folders in a folder, sorted, without hidden and system files.

    Raises:
        OSError: The folder cannot be read.
    """
    files: list[Path] = []
    folders: list[Path] = []
    with os.scandir(folder) as found:
        for item in found:
            if item.name.startswith(".") or item.name.lower() in _IGNORED:
                continue
            (folders if os.path.isdir(item) else files).append(folder / item.name)
    return sorted(files), sorted(folders)


def _walk(folder: Path, circles: list[Path], above: Iterable[Path] = ()) -> Iterator[Path | Skipped]:
    """Yields image files at any depth in a fixed order, and folders that cannot be read.

    Each folder is entered once, by its own path before any link to it, so that links neither lead in circles nor
    bring an image in twice.

    Args:
        folder: Where to start.
        circles: Links that are not followed are added to it.
        above: Folders that are not entered.
    """
    entered = {_identity(path) for path in above}
    own, links = [folder], deque[Path]()
    while own or links:
        here = own.pop() if own else links.popleft()
        try:
            identity = _identity(here)
            if identity in entered:
                circles.append(here)
                continue
            entered.add(identity)
            files, folders = _contents(here)
        except OSError as error:
            yield Skipped(here, f"cannot be read: {error.strerror or error}")
            continue
        yield from (path for path in files if _is_image_name(path))
        for child in folders:
            if child.is_symlink():
                links.append(child)
            elif child.suffix.lower() in SUFFIXES:
                yield child  # a folder that is named like an image: listed as no regular file
        own.extend(child for child in reversed(folders) if not child.is_symlink())


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _scan_table(
    path: Path, columns: dict[str, str], group_column: str | None, extra_columns: Sequence[str]
) -> tuple[list[Entry], list[Skipped], list[str], str]:
    """Returns the images of a table, the files that cannot be opened, warnings, and the name of the group column."""
    rows, warnings = _read_table(path, columns), []
    entries: list[Entry] = []
    skipped: list[Skipped] = []
    seen: dict[str, Entry] = {}
    repeated = 0
    header = rows[0][1]
    group = group_column or next((name for name in cohort.GROUP_COLUMNS if name in header), "")
    kept = [name for name in extra_columns if name in header and name not in (*columns.values(), group)]
    for number, row in rows:
        name, label = row[columns["path"]].strip(), row[columns["label"]].strip()
        split = (row.get(columns["split"]) or "").strip().lower() or None
        if not name or not label:
            missing = columns["path"] if not name else columns["label"]
            raise DataError(f"each row must have a path and a label. Received: line {number} without {missing!r}.")
        if split is not None and split not in _SPLITS:
            raise DataError(f"split must be train, val or test. Received: {split!r} in line {number}.")
        image = path.parent / name
        extra = tuple((column, row[column].strip()) for column in kept)
        stays = (row.get(group) or "").strip() if group else ""
        entry = Entry(image, label, _SPLITS[split] if split else None, stays or None, extra)
        key = os.path.normpath(image)
        if key in seen:
            if seen[key] != entry:
                # no name: it may be a patient's
                raise DataError(
                    "an image must have one label, split and group. Received two for the image in line "
                    f"{_line_of(rows, columns, key, path.parent)}, the second in line {number}."
                )
            repeated += 1
            continue
        seen[key] = entry
        if dicomdir.is_dicomdir(image) and image.is_file():
            warnings += _collect_listed(image, entry, entries, skipped)
            continue
        series = [found for found in _walk(image, []) if isinstance(found, Path)] if image.is_dir() else []
        if any(cohort.is_scan_file(found) for found in series):
            entries += [dataclasses.replace(entry, path=found) for found in series]
            continue
        reason = _unusable(image)
        if reason:
            skipped.append(Skipped(image, reason))
        else:
            entries.append(entry)
    if repeated:
        warnings.append(f"{repeated} rows repeat an earlier one")
    return entries, skipped, warnings, group


def _line_of(rows: list[tuple[int, dict[str, str]]], columns: dict[str, str], key: str, folder: Path) -> int:
    return next(number for number, row in rows if os.path.normpath(folder / row[columns["path"]].strip()) == key)


def _read_table(path: Path, columns: dict[str, str]) -> list[tuple[int, dict[str, str]]]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path.name} must be a CSV file. Received: {error.strerror or error}.") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path.name} must be UTF-8 text. Received: byte {error.start} is not ({error.reason})."
        ) from error
    if "\0" in text:
        raise DataError(f"{path.name} must be UTF-8 text. Received: a file with zero bytes.")
    header = text.partition("\n")[0]
    delimiter = max(",;\t", key=header.count)
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        fields = [name.strip() for name in reader.fieldnames or []]
        reader.fieldnames = fields
        for needed in (columns["path"], columns["label"]):
            if needed not in fields:
                raise DataError(
                    f"{path.name} must have a column {needed!r}. Received: {fields}.{closest(needed, fields)}"
                )
        rows = []
        for row in reader:
            if None in row or any(value is None for value in row.values()):
                raise DataError(
                    f"each row must have as many fields as the header. "
                    f"Received: another number in line {reader.line_num}."
                )
            rows.append((reader.line_num, {name: csv_cells.unescaped(cell) for name, cell in row.items()}))
    except csv.Error as error:
        raise DataError(f"{path.name} must be a CSV file. Received: {error}.") from error
    if not rows:
        raise DataError(f"{path.name} must have rows below its header. Received: none.")
    return rows


def _image_set(
    root: Path,
    entries: list[Entry],
    skipped: list[Skipped],
    warnings: list[str],
    reading: Reading,
    *,
    patients: bool = False,
) -> ImageSet:
    found = cohort.described(entries, reading, patients=patients)
    entries = found.entries
    if found.medical:  # a file's name may be a patient's
        warnings = [text.partition(f", {_EXAMPLE}")[0] for text in warnings]
    classes = sorted({entry.label for entry in entries if entry.label is not None})
    class_names.check_distinct(classes)
    number = {name: index for index, name in enumerate(classes)}
    labels = np.array([-1 if entry.label is None else number[entry.label] for entry in entries], np.int64)
    # as split() does: where a split is stated for some, the rest is for training
    trained = {entry.label for entry in entries if entry.split in (None, "train")}
    if trained:
        foreign = sorted({entry.label for entry in entries if entry.label and entry.label not in trained})
        if foreign:
            raise DataError(f"each class must have training images. Received none for: {_some(foreign)}.")
    digest = hashlib.sha256()
    for entry in entries:
        name = os.path.relpath(entry.path, root)
        fields = (name, str(_size(entry.path)), entry.label or "", entry.split or "", entry.group or "")
        digest.update(("\0".join(fields) + "\n").encode("utf-8", "surrogateescape"))
    return ImageSet(
        root=root,
        paths=tuple(entry.path for entry in entries),
        labels=labels,
        classes=tuple(classes),
        splits=tuple(entry.split for entry in entries),
        groups=tuple(entry.group for entry in entries),
        skipped=tuple(skipped),
        warnings=(*warnings, *found.warnings),
        fingerprint=digest.hexdigest(),
        columns=found.columns,
        medical=found.medical,
    )


def _size(path: Path) -> int:
    try:
        return frames.parted(path)[0].stat().st_size
    except OSError:  # gone since it was found: decoding will say so
        return -1


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:8])
    return shown if len(names) <= 8 else f"{shown} and {len(names) - 8} more"
