"""Finding the images: a folder of class folders, one with train, val and test below it, or a CSV file."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resfit.data import class_names, containers, folders, members, remote, tables
from resfit.data.folders import LAYOUTS, FolderSource, LayoutError, some
from resfit.data.medical import cohort, dicomdir
from resfit.data.medical.cohort import CohortEntry
from resfit.data.walk import SUFFIXES, TABLE, Skipped, Walk, files_of, has_images, is_image_name, unusable
from resfit.errors import ArgumentError, DataError
from resfit.preprocessing import Reading

__all__ = ["SUFFIXES", "TABLES", "ImageSet", "LayoutError", "Skipped", "check_trainable", "scan", "scan_images"]

#: Endings of files that are read as tables.
TABLES = (".csv", ".tsv", ".txt", ".lst", ".jsonl", ".ndjson")
_PLAIN = Reading()
_EXAMPLE = "such as "
_SEPARATORS = (";", "|", ",", "/", " + ", " & ", "\t", "\x1f")
_SERIES = 100  # files of a folder that are looked at to see whether it is a series of scans
_FEW = 3  # images of a label below which it is hardly learned or measured


@dataclasses.dataclass(frozen=True, eq=False)
class ImageSet:
    """Image files and what is known of them. Nothing is decoded yet.

    Attributes:
        root: The folder that was searched, or the folder of the CSV file.
        paths: The files, in a fixed order.
        labels: int64 array ``(n,)``: index into ``classes``, -1 where there is no label, and for all images where an
            image may have several.
        classes: Names of the classes, or of the single labels where an image may have several, sorted.
        splits: For each file ``"train"``, ``"val"``, ``"test"``, or None where the data does not say.
        groups: For each file the group that must stay together (a patient, a scene), or None.
        skipped: Files that were found but cannot be opened, with the reason.
        warnings: What looks odd but does not stop anything.
        fingerprint: SHA-256 over names, sizes, labels, splits and groups, in hexadecimal digits.
        columns: What else is known of each file, by name, such as ``site`` and ``sex``; empty where it is not.
        medical: Whether patients are behind the images: a scan is among them, or a column names patients. Groups are
            then numbers, and paths stay out of all that is written (:mod:`resfit.data.medical.privacy`).
        targets: Where an image may have several labels, bool array ``(n, classes)``; an image without any label is a
            negative. ``None`` for one class an image.
        separator: What stands between labels where several are written in one text; empty for one class an image.
        notes: What was assumed of the source, with the argument that changes it.
        ignored: Files below the source that were left out by a rule, with the rule in place of a reason.
        values: Where labels are numbers, float64 array ``(n, numbers)``, NaN where there is none. ``classes`` are then
            ranges of the first number with about as many images each, by which a split is balanced. ``None`` for
            classes.
        value_names: Names of the numbers.
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
    targets: np.ndarray | None = None
    separator: str = ""
    notes: tuple[str, ...] = ()
    ignored: tuple[Skipped, ...] = ()
    values: np.ndarray | None = None
    value_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Number of files."""
        return len(self.paths)

    @property
    def multilabel(self) -> bool:
        """Whether an image may have several labels."""
        return self.targets is not None

    @property
    def labelled(self) -> np.ndarray:
        """Which files have a label, bool ``(n,)``; where there may be several, having none is one as well."""
        return np.ones(len(self), bool) if self.targets is not None else self.labels >= 0

    def label_text(self, position: int) -> str:
        """Returns the class of a file, or its labels as one text; empty where there is none.

        Args:
            position: In ``paths``.
        """
        if self.values is not None:
            return ";".join(f"{value:.12g}" for value in self.values[position])
        if self.targets is not None:
            return self.separator.join(self.classes[index] for index in np.flatnonzero(self.targets[position]))
        label = int(self.labels[position])
        return self.classes[label] if label >= 0 else ""

    def ignored_counts(self) -> dict[str, int]:
        """Number of files that each rule left out, the most frequent rule first."""
        return dict(Counter(item.reason for item in self.ignored).most_common())

    def counts(self) -> dict[str, int]:
        """Number of files of each class, or with each label."""
        if self.targets is not None:
            return dict(zip(self.classes, self.targets.sum(axis=0).tolist(), strict=True))
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
            targets=None if self.targets is None else self.targets[chosen],
            values=None if self.values is None else self.values[chosen],
            skipped=(),
            ignored=(),
            fingerprint=fingerprint,
            columns={name: tuple(values[i] for i in chosen) for name, values in self.columns.items()},
        )


def scan(
    source: str | os.PathLike[str] | ImageSet | tables.Table,
    *,
    path_column: str | None = None,
    label_column: str | Sequence[str] | None = None,
    split_column: str | None = None,
    group_column: str | None = None,
    extra_columns: Sequence[str] = cohort.EXTRA_COLUMNS,
    reading: Reading = _PLAIN,
    image_root: str | os.PathLike[str] | None = None,
    label_separator: str | None = None,
    multilabel: bool | None = None,
    label_from: str | None = None,
    train: str | os.PathLike[str] | None = None,
    val: str | os.PathLike[str] | None = None,
    test: str | os.PathLike[str] | None = None,
    needs_labels: bool = True,
    numbers: bool = False,
) -> ImageSet:
    """Finds the labelled images of a source.

    Images are known by their ending or, without a usual one, by their content. Every other file below a folder is in
    ``skipped`` with the reason or in ``ignored`` with the rule. Links are followed, but for one class no folder is
    entered twice, and none that is above the class.

    Args:
        source: One folder for each class; or ``train``, ``val`` and ``test`` (any of them, under the usual names) with
            class folders or a table inside; or a CSV file whose relative paths start at its own folder. An
            :class:`ImageSet` is returned as it is.
        path_column: Column of a table with the path, or its number from 1 where there is no header; ``None`` finds the
            columns by what they hold, and says so in ``notes``.
        label_column: Column with the class or labels; ``None`` finds it, or takes columns of 0 and 1 as a label each.
            With ``numbers`` there may be several, as a list or with commas between them.
        split_column: Column with ``train``, ``val`` or ``test``; may be missing.
        group_column: Column with the group; may be missing. ``None`` takes ``group``, ``patient`` or ``patient_id``,
            the first that is there. Without one, the patient's ID in DICOM files is the group.
        extra_columns: Further columns that are kept in :attr:`ImageSet.columns`, where they are there.
        reading: Which frames of scans, and which files of their series, are images.
        image_root: Folder where the relative paths of a table start.
        label_separator: What stands between several labels in the label column, or in a folder's name, such as ``";"``.
        multilabel: Whether an image may have several labels; ``None`` is yes with ``label_separator``, and with columns
            of 0 and 1 of which not exactly one is 1 in each row.
        label_from: Pattern that finds the label in the name of a file, such as ``"{label}_{number}.*"``
            (:func:`resfit.data.folders.compile_pattern`).
        train: Folder or table of the training images, below the source or anywhere.
        val: The same for validation images.
        test: The same for test images. Without ``train``, all else below the source is for training.
        needs_labels: Whether a table without labels is refused.
        numbers: Whether labels are numbers (:attr:`ImageSet.values`), in a table's columns, in the names of folders or
            by ``label_from`` in the names of files.

    Raises:
        DataError: The source does not exist, has another layout, or contradicts itself.

    Example:
        >>> scan("photos/").counts()  # doctest: +SKIP
        {'cat': 120, 'dog': 98}
    """
    if isinstance(source, ImageSet):
        return source
    path = source.path if isinstance(source, tables.Table) else remote.local(source)
    if not isinstance(source, tables.Table) and not path.exists():
        raise DataError(f"source must be {LAYOUTS}. Received: {str(source)!r}, which does not exist.")
    if label_separator == "":
        raise ArgumentError("label_separator must not be empty. Received: ''.")
    if numbers and (label_separator or multilabel):
        raise ArgumentError("label_separator and multilabel are for classes. Received: one of them with numbers.")
    asked = tables.Asked(
        path_column,
        label_column if label_column is None or isinstance(label_column, str) else ",".join(label_column),
        split_column,
        group_column,
        image_root,
        label_separator,
        multilabel,
        needs_labels,
        numbers,
    )
    if isinstance(source, tables.Table):
        held = containers.OpenedSource(path.parent, source)
        found = _Collected(path.parent, asked, extra_columns, held)
        found.add_table(FolderSource(path))
        return found.finish(folders.Layout(()), reading, sweeps=False)
    given = _stated_parts(path, {"train": train, "val": val, "test": test})
    rule = None if label_from is None else folders.compile_pattern(label_from)
    shards = _shards(path, given)
    if not shards and not path.is_dir() and (path.suffix.lower() not in TABLES or not path.is_file()):
        raise DataError(f"source must be {LAYOUTS}. Received the file {str(source)!r}.")
    if shards:
        root = path if path.is_dir() else path.parent
        with containers.opened(root, shards, path_column, needs_labels=needs_labels) as held:
            found = _Collected(root, asked, extra_columns, held)
            if held.table is not None:
                if rule is not None:
                    raise ArgumentError("label_from is for images in folders and archives of them. Received: a table.")
                found.add_table(FolderSource(held.table.path))
                return found.finish(folders.Layout(()), reading, sweeps=False)
            assert held.folder is not None
            try:
                layout = folders.understand(held.folder, named=rule is not None)
            except DataError as error:
                text = str(error).replace(str(held.folder), str(path)).replace(held.folder.name, path.name)
                raise type(error)(text) from None
            return _read(found, layout, rule, label_from).finish(layout, reading, sweeps=True)
    if not path.is_dir():
        layout = folders.Layout((FolderSource(path, "train" if given else None),))
        if given:
            more = folders.stated(path.parent, {"train": path, **given}, named=rule is not None)
            layout = more
    elif given:
        layout = folders.stated(path, given, named=rule is not None)
    else:
        try:
            layout = folders.understand(path, named=rule is not None)
        except LayoutError:
            stated = folders.metadata_of(path)
            if stated is None:
                raise
            layout = folders.Layout((FolderSource(stated),), (f"labels are read from {stated.name}",))
    found = _Collected(path if path.is_dir() else path.parent, asked, extra_columns)
    return _read(found, layout, rule, label_from).finish(layout, reading, sweeps=path.is_dir())


def _read(found: _Collected, layout: folders.Layout, rule: object, label_from: str | None) -> _Collected:
    for item in layout.sources:
        if item.path.is_file():
            found.add_table(item)
        elif rule is not None:
            found.add_named(item, rule, label_from or "")
        else:
            found.add_folder(item)
    return found


def _shards(path: Path, given: Mapping[str, Path]) -> list[containers.Shard]:
    """Returns the files that hold the images of a source, each with its part; none where images are files."""
    stated = [
        dataclasses.replace(shard, split=name) for name, part in given.items() for shard in containers.shards(part)
    ]
    if given and not stated:
        return []
    if "train" in given and path.is_dir():
        return stated
    taken = {shard.path.resolve() for shard in stated}
    rest = [shard for shard in containers.shards(path) if shard.path.resolve() not in taken]
    return [*(dataclasses.replace(shard, split="train") if given else shard for shard in rest), *stated]


def _stated_parts(root: Path, given: Mapping[str, str | os.PathLike[str] | None]) -> dict[str, Path]:
    """Returns the parts that the user names, each below the source or, where it is not there, as it stands."""
    found: dict[str, Path] = {}
    for name, value in given.items():
        if value is None:
            continue
        below = root / value if root.is_dir() else root.parent / value
        place = below if below.exists() else remote.local(value)
        if not place.exists():
            raise DataError(f"{name} must be a folder or a table. Received: {str(value)!r}, which does not exist.")
        found[name] = place
    return found


class _Collected:
    """The images of a source, as they are found."""

    def __init__(
        self,
        root: Path,
        asked: tables.Asked,
        extra_columns: Sequence[str],
        held: containers.OpenedSource | None = None,
    ):
        self._root, self._asked, self._extra = root, asked, extra_columns
        self._held = held
        self._entries: list[CohortEntry] = []
        self._skipped: list[Skipped] = []
        self._warnings: list[str] = []
        self._notes: list[str] = []
        self._walk = Walk()
        self._patients = False
        self._multilabel: bool | None = True if asked.label_separator else asked.multilabel
        self._one_hot: set[str] = set()
        self._numbers: tuple[str, ...] | None = ("value",) if asked.numbers else None
        self._tables: list[Path] = []
        self._parents: set[Path] = set()

    def add_folder(self, source: FolderSource) -> None:
        """Adds the images of a class folder."""
        before = len(self._entries) + len(self._skipped)
        labels = self._labels_in(source.label or "")
        images = self._walk.images(source.path, source.above)
        _collect(images, source.label, source.split, self._entries, self._skipped, labels)
        self._parents.add(source.path.parent)
        if len(self._entries) + len(self._skipped) == before:
            self._warnings.append(f"the class folder {source.path.name!r} has no images")

    def add_named(self, source: FolderSource, rule: object, pattern: str) -> None:
        """Adds the images of a folder, whose names say the labels."""
        count = pattern.count("/")
        for path in self._walk.images(source.path):
            if isinstance(path, Skipped):
                self._skipped.append(path)
                continue
            match = folders.named_by(path, rule, count)  # type: ignore[arg-type]
            reason = unusable(path) or ("" if match else f"its name does not match label_from {pattern!r}")
            if match is None or reason:
                self._skipped.append(Skipped(path, reason))
                continue
            parts = match.groupdict()
            split = source.split
            if parts.get("split") is not None:
                split = folders.part_of(parts["split"])
                if split is None:
                    raise DataError(
                        f"{{split}} must be train, val or test. Received: {parts['split']!r} in {path.name!r}."
                    )
            label = parts["label"]
            self._entries.append(CohortEntry(path, label, split, parts.get("group"), labels=self._labels_in(label)))

    def add_table(self, source: FolderSource) -> None:
        """Adds the images of a table."""
        held, asked = self._held, self._asked
        table = None if held is None else held.table
        if held is not None and table is not None:
            label = asked.label or held.label or None
            asked = dataclasses.replace(asked, label=None if asked.numbers and not asked.label else label)
            if asked.path is not None and asked.path not in table.header:  # it named the images, which have addresses
                asked = dataclasses.replace(asked, path=None)
        read = tables.read(source.path, asked, self._extra, table)
        self._notes += [note for note in read.notes if note not in self._notes]
        self._tables.append(source.path)
        self._patients |= read.group in cohort.GROUP_COLUMNS[1:]
        if read.multilabel is not None and self._asked.multilabel is None:
            self._multilabel = True
        self._one_hot |= set(read.labels)
        self._numbers = read.numbers or self._numbers
        lines: dict[str, tuple[int, int]] = {}  # path -> position in rows, line
        rows: list[CohortEntry] = []
        repeated = 0
        is_open = self._asked.multilabel or self._asked.label_separator or read.multilabel
        for row in read.rows:
            split = source.split or row.split or self._part_above(source.path, row.path)
            entry = CohortEntry(row.path, None, split, row.group, row.extra, row.labels)
            key = os.path.normpath(row.path)
            if key not in lines:
                lines[key] = (len(rows), row.line)
                rows.append(entry)
                continue
            place, line = lines[key]
            merged = rows[place]
            if is_open:
                merged = dataclasses.replace(merged, labels=tuple(sorted({*merged.labels, *entry.labels})))
                entry = dataclasses.replace(entry, labels=merged.labels)
            if merged != entry:
                # no name: it may be a patient's
                raise DataError(
                    "an image must have one label, split and group. Received two for the image in line "
                    f"{line}, the second in line {row.line}. If an image may have several labels, pass multilabel=True "
                    "(--multilabel)."
                )
            rows[place] = merged
            repeated += 1
        before = len(self._entries), len(self._skipped)
        for entry in rows:
            self._add_row(entry)
        if repeated:
            ending = "s" if repeated == 1 else ""
            what = "name" if is_open else "repeat"
            than = "an image of an earlier row: their labels are merged" if is_open else "an earlier one"
            self._warnings.append(f"{_plural(repeated, 'row')} {what}{ending} {than}")
        lost = [item for item in self._skipped[before[1] :] if item.reason == "no such file"]
        if rows and len(lost) == len(rows) and len(self._entries) == before[0]:
            self._none_found(source.path, read, lost)

    def _part_above(self, table: Path, image: Path) -> str | None:
        """Returns the part of a split that a folder above an image means, as Hugging Face's imagefolder has them."""
        if table.stem.lower() != folders.METADATA or self._held is not None:
            return None
        try:
            above = image.relative_to(table.parent).parts[:-1]
        except ValueError:
            return None
        return next((part for name in above if (part := folders.part_of(name)) is not None), None)

    def _none_found(self, table: Path, read: tables.Read, lost: list[Skipped]) -> None:
        names = read.group in cohort.GROUP_COLUMNS[1:]  # names of files may be those of patients
        folder = table.parent if self._asked.image_root is None else Path(self._asked.image_root)
        example = "" if names else f", such as {str(lost[0].path)!r}"
        hint = tables.missing([item.path for item in lost], folder)
        raise DataError(
            f"{table.name} must name images that are there. Received: {len(lost)} of {len(lost)} files missing"
            f"{example}. {hint if not names else 'Pass image_root (--image-root), the folder where the paths start.'}"
        )

    def _add_row(self, entry: CohortEntry) -> None:
        image = entry.path
        if dicomdir.is_dicomdir(image) and os.path.isfile(image):
            self._warnings += _collect_listed(image, entry, self._entries, self._skipped)
            return
        # a row may name the folder of a series; no other folder is walked, for it may be the whole disk
        if os.path.isdir(image) and any(cohort.is_scan_file(found) for found in files_of(image)[:_SERIES]):
            series = [found for found in Walk().images(image) if isinstance(found, Path)]
            self._entries += [dataclasses.replace(entry, path=found) for found in series]
            return
        reason = unusable(image)
        if reason:
            self._skipped.append(Skipped(image, reason))
        else:
            self._entries.append(entry)

    def _labels_in(self, text: str) -> tuple[str, ...]:
        separator = self._asked.label_separator
        if not separator:
            return (text,) if text else ()
        return tuple(sorted({part.strip() for part in text.split(separator)} - {""}))

    def finish(self, layout: folders.Layout, reading: Reading, *, sweeps: bool) -> ImageSet:
        """Returns what was found as a set."""
        warnings = [*layout.warnings, *self._warnings]
        if sweeps:
            parents = sorted({self._root, *self._parents})
            loose = [
                path for parent in parents if has_images(parent) for path in files_of(parent) if is_image_name(path)
            ]
            named = {members.container(entry.path) for entry in self._entries}
            loose = [path for path in loose if path not in named]
            if loose and self._parents:
                warnings.append(f"{_plural(len(loose), 'image')} outside the class folders left out")
            self._walk.ignored.update(dict.fromkeys(self._tables, TABLE))
            folder = self._root if self._held is None else self._held.folder
            self._walk.sweep(folder or self._root, [*named, *(item.path for item in self._skipped)])
        multilabel = bool(self._multilabel)
        if not multilabel:
            self._entries = [self._single(entry) for entry in self._entries]
            if self._one_hot:
                self._notes.append(
                    "exactly one of these columns is 1 in each row: one class an image (--multilabel for several)"
                )
            elif self._tables and self._numbers is None:
                self._notes += _hints(self._entries)
        if self._held is not None:
            self._return_to_files(self._held)
        return _image_set(
            self._root,
            self._entries,
            self._skipped,
            warnings + _not_followed(self._walk.circles),
            reading,
            patients=self._patients,
            multilabel=multilabel,
            separator=self._asked.label_separator or "",
            stated=self._one_hot,
            numbers=self._numbers,
            notes=(*layout.notes, *self._notes),
            ignored=tuple(Skipped(path, rule) for path, rule in sorted(self._walk.ignored.items())),
        )

    def _return_to_files(self, held: containers.OpenedSource) -> None:
        """Puts the addresses of the images in the place of the names that the layout was understood by."""
        self._entries = [dataclasses.replace(entry, path=held.real(entry.path)) for entry in self._entries]
        self._skipped = [dataclasses.replace(item, path=held.real(item.path)) for item in self._skipped]
        self._skipped += held.skipped
        self._walk.ignored = {held.real(path): rule for path, rule in self._walk.ignored.items()}
        self._notes = [*held.notes, *self._notes]

    def _single(self, entry: CohortEntry) -> CohortEntry:
        """Returns an image with its one class."""
        if len(entry.labels) > 1 or (self._one_hot and not entry.labels):
            raise DataError(
                "with multilabel=False each image must have one label. Received: an image with "
                f"{len(entry.labels)}: {some(entry.labels)}."
            )
        if entry.label is not None or not entry.labels:
            return entry
        return dataclasses.replace(entry, label=entry.labels[0], labels=())


def _hints(entries: Sequence[CohortEntry]) -> list[str]:
    """Returns a hint where classes look like several labels in one text."""
    classes = {entry.label for entry in entries if entry.label}
    for sign in (";", "|", ","):
        multilabel = [name for name in classes if sign in name]
        if len(multilabel) < 2:
            continue
        single = {part.strip() for name in multilabel for part in name.split(sign)}
        if len(single) <= len(multilabel) + 1 + len(single & classes):
            return [
                f"{len(multilabel)} of {len(classes)} classes have {sign!r} in their name, such as "
                f"{sorted(multilabel)[0]!r}: if these are several labels, pass label_separator={sign!r} "
                f"(--label-separator '{sign}')"
            ]
    return []


def scan_images(sources: Iterable[str | os.PathLike[str]], *, reading: Reading = _PLAIN) -> ImageSet:
    """Finds images without labels.

    Args:
        sources: Image files, taken whatever their ending; folders, searched for images at any depth; a DICOMDIR, for
            the files that it lists.
        reading: Which frames of scans, and which files of their series, are images.

    Raises:
        DataError: A source does not exist, or a folder has no images.
    """
    entries: list[CohortEntry] = []
    skipped: list[Skipped] = []
    walked = Walk()
    warnings: list[str] = []
    roots = [remote.local(source) for source in sources]
    for root in roots:
        if not os.path.lexists(members.container(root)):
            raise DataError(f"images must be files or folders. Received: {str(root)!r}, which does not exist.")
        if root.is_dir():
            before = len(entries) + len(skipped)
            _collect_held(root, containers.shards(root), entries, skipped)
            _collect(walked.images(root), None, None, entries, skipped)
            if len(entries) + len(skipped) == before:
                raise DataError(f"the folder {str(root)!r} has no image files. Received: an empty selection.")
        elif dicomdir.is_dicomdir(root):
            warnings += _collect_listed(root, CohortEntry(root, None), entries, skipped)
        elif shards := containers.shards(root):
            _collect_held(root.parent, shards, entries, skipped)
        else:
            _collect([root], None, None, entries, skipped)
    root = roots[0] if len(roots) == 1 and roots[0].is_dir() else Path(".")
    ignored = tuple(Skipped(path, rule) for path, rule in sorted(walked.ignored.items()))
    return _image_set(root, entries, skipped, warnings + _not_followed(walked.circles), reading, ignored=ignored)


def of_files(
    root: Path,
    paths: Sequence[Path],
    labels: Sequence[str],
    *,
    reading: Reading = _PLAIN,
    numbers: Sequence[str] | None = None,
    splits: Sequence[str | None] | None = None,
) -> ImageSet:
    """Returns files with their labels as a set; which of them can be used is seen when they are decoded.

    Args:
        root: The folder that most of them stand in.
        paths: The files, no two the same.
        labels: For each its class.
        reading: Which frames of scans, and which files of their series, are images.
        numbers: Where labels are numbers, of which a text has several with :data:`resfit.data.tables.BETWEEN` between
            them, the names of these.
        splits: For each the part of the split, or ``None``.

    Raises:
        DataError: Two labels are too much alike, or one is no number.
    """
    parts = splits or [None] * len(paths)
    entries = [CohortEntry(*known) for known in zip(paths, labels, parts, strict=True)]
    return _image_set(root, entries, [], [], reading, numbers=numbers)


def is_several(path: Path, reading: Reading) -> bool:
    """Says whether a file may stand for several images: a DICOMDIR, a scan of which each frame is one, an archive."""
    return dicomdir.is_dicomdir(path) or reading.frame == "each" or bool(containers.shards(path))


def read_column(source: str | os.PathLike[str], column: str, **options: Any) -> dict[str, str]:
    """Returns what a CSV file says of each image in one more column.

    Args:
        source: The CSV file.
        column: Its column.
        **options: What :func:`scan` was told of its columns: ``path_column`` and ``image_root``; others change nothing.

    Returns:
        The value by path, as ``os.path.normpath`` writes it.

    Raises:
        DataError: It is no CSV file, or has no such column.
    """
    path = Path(source)
    if not path.is_file():
        raise DataError(f"columns are those of a CSV file. Received: {str(source)!r} and column {column!r}.")
    asked = tables.Asked(options.get("path_column"), image_root=options.get("image_root"), needs_labels=False)
    return tables.values(path, column, asked)


def check_trainable(images: ImageSet, *, least: int | None = None) -> None:
    """Checks that a classifier can be trained and measured on a set.

    Args:
        images: The set.
        least: Files that each class with any files must have at least; ``None`` is 3, and 1 where an image may have
            several labels.

    Raises:
        DataError: There are fewer than two classes with images, or a class has too few; the text names it. Or the
            data states a split without training images.
    """
    counts = {name: number for name, number in images.counts().items() if number}
    if not counts:
        raise DataError(f"source must hold labelled images: {LAYOUTS}. Received: {_what_is_there(images)}.")
    if images.targets is not None:
        if len(images.targets) > 1 and (images.targets == images.targets[0]).all():
            raise DataError("images must differ in their labels. Received: the same labels for all images.")
    elif len(counts) == 1:
        raise DataError(f"at least two classes are needed. Received one: {next(iter(counts))!r}.")
    if not any(split in (None, "train") for split in images.splits):
        raise DataError(
            "training images are needed: train/ with class folders inside, or split 'train' in the CSV file. "
            f"Received: images of {' and '.join(sorted({split for split in images.splits if split}))} alone."
        )
    least = (1 if images.multilabel else 3) if least is None else least
    small = [f"{name} ({number})" for name, number in counts.items() if number < least]
    if small:
        raise DataError(
            f"each class needs at least {least} images, to train on and to measure with. Received fewer in: "
            f"{some(small)}. Add images, or remove or merge these classes."
        )


def _what_is_there(images: ImageSet) -> str:
    """Says what was found in place of images that can be used."""
    where = f"no image in {str(images.root)!r}"
    if images.skipped:
        first = images.skipped[0]
        example = "" if images.medical else f", such as {str(first.path)!r}"
        where = f"{len(images.skipped)} of {len(images.skipped)} files unusable{example}: {first.reason}"
    ignored = ", ".join(f"{count} {rule}" for rule, count in images.ignored_counts().items())
    return f"{where} (left out: {ignored})" if ignored else where


def _not_followed(links: list[Path]) -> list[str]:
    if not links:
        return []
    return [f"{len(links)} links to folders that are searched anyway are not followed, {_EXAMPLE}{str(links[0])!r}"]


def _plural(count: int, what: str) -> str:
    """Returns a number of things."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def _collect(
    paths: Iterable[Path | Skipped],
    label: str | None,
    split: str | None,
    entries: list[CohortEntry],
    skipped: list[Skipped],
    labels: tuple[str, ...] = (),
) -> None:
    for path in paths:
        if isinstance(path, Skipped):
            skipped.append(path)
            continue
        reason = unusable(path)
        if reason:
            skipped.append(Skipped(path, reason))
        else:
            entries.append(CohortEntry(path, label, split, labels=labels))


def _collect_held(
    root: Path, shards: Sequence[containers.Shard], entries: list[CohortEntry], skipped: list[Skipped]
) -> None:
    """Adds the images that lie in other files, without their labels."""
    if not shards:
        return
    with containers.opened(root, shards, None) as held:
        found: list[Path | Skipped]
        if held.table is not None:
            asked = tables.Asked(needs_labels=False)
            found = [row.path for row in tables.read(held.table.path, asked, table=held.table).rows]
        else:
            assert held.folder is not None
            found = []
            for item in Walk().images(held.folder):
                if isinstance(item, Path):
                    found.append(held.real(item))
        _collect([*found, *held.skipped], None, None, entries, skipped)


def _collect_listed(
    directory: Path, like: CohortEntry, entries: list[CohortEntry], skipped: list[Skipped]
) -> list[str]:
    """Adds the files that a DICOMDIR lists, each with the label, split and group of an entry; returns warnings."""
    files, outside = dicomdir.listed(directory)
    for file in files:
        reason = unusable(file)
        if reason:
            skipped.append(Skipped(file, reason))
        else:
            entries.append(dataclasses.replace(like, path=file))
    return [f"{outside} files that a DICOMDIR lists outside its own folder are left out"] if outside else []


def _image_set(
    root: Path,
    entries: list[CohortEntry],
    skipped: list[Skipped],
    warnings: list[str],
    reading: Reading,
    *,
    patients: bool = False,
    multilabel: bool = False,
    separator: str = "",
    stated: Iterable[str] = (),
    numbers: Sequence[str] | None = None,
    notes: Sequence[str] = (),
    ignored: tuple[Skipped, ...] = (),
) -> ImageSet:
    found = cohort.described(entries, reading, patients=patients)
    entries = found.entries
    if found.medical:  # a file's name may be a patient's
        warnings = [text.partition(f", {_EXAMPLE}")[0] for text in warnings]
        notes = [text.partition(f", {_EXAMPLE}")[0] for text in notes]
    values = None if numbers is None else _values(entries, len(numbers))
    shown = [_labels_of(entry, multilabel) if values is None else () for entry in entries]
    classes = sorted({label for labels in shown for label in labels})
    class_names.check_distinct(classes)
    if multilabel:
        warnings = [*warnings, *_rare(shown, sorted({*stated} - {*classes}))]
        separator = separator or next(sign for sign in _SEPARATORS if not any(sign in name for name in classes))
    number = {name: index for index, name in enumerate(classes)}
    labels = np.full(len(entries), -1, np.int64)
    targets = np.zeros((len(entries), len(classes)), bool) if multilabel else None
    for row, own in enumerate(shown):
        if targets is not None:
            targets[row, [number[label] for label in own]] = True
        elif own:
            labels[row] = number[own[0]]
    if values is not None:
        labels, classes = _ranges(values[:, 0])
    # as split() does: where a split is stated for some, the rest is for training
    trained = [own for own, entry in zip(shown, entries, strict=True) if entry.split in (None, "train")]
    if trained and values is None:
        foreign = sorted(set(classes) - {label for own in trained for label in own})
        if foreign:
            raise DataError(
                f"each {'label' if multilabel else 'class'} must have training images. Received none for: "
                f"{some(foreign)}, with images for validation or testing alone. Move some of them to the training "
                "part, or leave them out."
            )
    digest = hashlib.sha256()
    for entry in entries:
        name = os.path.relpath(entry.path, root)
        label = "\x1f".join(entry.labels) if multilabel else entry.label or ""
        fields = (name, str(_size(entry.path)), label, entry.split or "", entry.group or "")
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
        targets=targets,
        separator=separator if multilabel else "",
        notes=tuple(notes),
        ignored=ignored,
        values=values,
        value_names=tuple(numbers or ()),
    )


def _values(entries: Sequence[CohortEntry], count: int) -> np.ndarray:
    """Returns the numbers of images, float64 ``(n, numbers)``; NaN for an image without."""
    found = np.full((len(entries), count), np.nan)
    for row, entry in enumerate(entries):
        cells = (entry.label or "").split(tables.BETWEEN)
        try:
            if any(cells):
                found[row] = [float(cell) if cell else np.nan for cell in cells]
        except ValueError:
            raise DataError(
                f"labels must be numbers for task='regression'. Received: {entry.label!r:.80}. Name the columns with "
                "the numbers: label_column (--label-column); or take task='classification' (--task classification)."
            ) from None
    return found


def _ranges(values: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Returns for each number its range and the names of the ranges, with about as many images in each; -1 for NaN."""
    known = np.isfinite(values)
    count = max(1, min(5, int(known.sum()) // 20))
    edges = np.unique(np.quantile(values[known], np.linspace(0, 1, count + 1))) if known.any() else np.zeros(1)
    labels = np.searchsorted(edges[1:-1], values, side="right")
    ends = edges if len(edges) > 1 else np.repeat(edges, 2)
    names = [f"{low:.6g} to {high:.6g}" for low, high in itertools.pairwise(ends)]
    return np.where(known, labels, -1).astype(np.int64), names


def _labels_of(entry: CohortEntry, multilabel: bool) -> tuple[str, ...]:
    if multilabel:
        return entry.labels
    return () if entry.label is None else (entry.label,)


def _rare(shown: Sequence[tuple[str, ...]], unseen: Sequence[str]) -> list[str]:
    """Returns warnings of labels that few images have, or none."""
    found = [f"no image has the label {some(list(unseen))}: left out"] if unseen else []
    counts = Counter(label for labels in shown for label in labels)
    few = sorted(f"{label} ({count})" for label, count in counts.items() if count < _FEW)
    if few:
        found.append(f"labels of fewer than {_FEW} images are hardly learned or measured: {some(few)}")
    return found


def _size(path: Path) -> int:
    try:
        return members.size(path)
    except OSError:  # gone since it was found: decoding will say so
        return -1
