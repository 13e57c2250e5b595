"""Tables of images as people have them: any delimiter and encoding, columns known by what they hold.

What is guessed is returned as a note, with the argument that overrules it.
"""

from __future__ import annotations

import ast
import csv
import dataclasses
import io
import math
import os
import re
import urllib.parse
from collections.abc import Sequence
from pathlib import Path, PureWindowsPath

from resfit.data import csv_cells, members, walk
from resfit.data import records as record_files
from resfit.data.folders import part_of, some
from resfit.data.medical import cohort
from resfit.errors import DataError, closest

_PATHS = (
    *("path", "filepath", "filename", "file", "image", "imagepath", "imagefile", "imagename", "img", "imgpath"),
    *("imgname", "imageid", "imgid", "picture", "photo", "id", "uuid", "name", "key"),
)
_LABELS = (
    *("label", "labels", "class", "classes", "classname", "category", "categories", "target", "targets", "tag", "tags"),
    *("diagnosis", "dx", "species", "breed", "variety", "y", "labelname", "categoryname", "labelid", "classid"),
    *("categoryid", "kind"),
)
_SPLITS = ("split", "set", "subset", "partition", "phase", "part", "usage", "dataset")
_FLAGS = {"isvalid": "val", "isval": "val", "isvalidation": "val", "istest": "test"}
_UNUSED = re.compile(r"(unnamed:?.*|index|k?folds?|width|height|w|h|)$")
_TRUE, _FALSE = frozenset({"1", "1.0", "true", "yes"}), frozenset({"0", "0.0", "false", "no", ""})
_IMAGE_FOLDERS = frozenset({"images", "image", "imgs", "img", "jpegimages", "photos", "pictures", "data", "files"})
_COMMA = re.compile(r"[+-]?\d*,\d+$")  # a number as German, French or Spanish spreadsheets write it
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(?:,\d{3})+$")
_REMOTE = re.compile(r"(?:https?|s3|gs|az|hf|ftp)://", re.IGNORECASE)
#: What stands between numbers of one image in a text.
BETWEEN = "\x1f"
_LOOKED_AT = 200  # rows that a guess goes by
_SAMPLE = 50  # rows that a place is tried with
_MOST_FOLDERS = 2000
_MANY = 20  # different numbers from which on a column may be a quantity
_FEW = 4  # the same of numbers with fractions, most of which come once


@dataclasses.dataclass(frozen=True)
class Table:
    """A table as text.

    Attributes:
        path: The file.
        header: Names of the columns; numbers from 1 where the file has no header.
        rows: For each row the line that it ends in, and its cells.
        has_header: Whether the first line is one.
    """

    path: Path
    header: tuple[str, ...]
    rows: list[tuple[int, tuple[str, ...]]]
    has_header: bool

    def column(self, index: int) -> list[str]:
        """Returns the cells of a column, without spaces around them."""
        return [cells[index].strip() for _, cells in self.rows]


@dataclasses.dataclass(frozen=True)
class Asked:
    """What the user says of a table; ``None`` is found out.

    Attributes:
        path: Column with the path.
        label: Column with the class, or the labels.
        split: Column with the part of the split.
        group: Column with what stays together.
        image_root: Folder where relative paths start.
        label_separator: What stands between the labels of one cell.
        multilabel: Whether an image may have several labels.
        needs_labels: Whether a table without labels is refused.
        numbers: Whether labels are numbers, of one column or of several, whose names then have commas between them.
    """

    path: str | None = None
    label: str | None = None
    split: str | None = None
    group: str | None = None
    image_root: str | os.PathLike[str] | None = None
    label_separator: str | None = None
    multilabel: bool | None = None
    needs_labels: bool = True
    numbers: bool = False


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        line: Its line.
        path: The image, there or not.
        labels: Its labels, sorted; with one label an image, that one; numbers as one text with :data:`BETWEEN`.
        split: ``"train"``, ``"val"``, ``"test"`` or None.
        group: What must stay together, if the table says.
        extra: Further columns, by name.
    """

    line: int
    path: Path
    labels: tuple[str, ...]
    split: str | None
    group: str | None
    extra: tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True)
class Read:
    """What a table says.

    Attributes:
        rows: Its rows.
        multilabel: Whether an image may have several labels; ``None`` where nothing speaks for it or against it.
        labels: Names of the labels that the columns state, whether an image has them or not.
        group: Name of the group column, empty without one.
        numbers: Names of the columns with numbers, where labels are numbers.
        notes: What was guessed, with the argument that overrules it.
    """

    rows: list[Row]
    multilabel: bool | None
    labels: tuple[str, ...]
    group: str
    notes: tuple[str, ...]
    numbers: tuple[str, ...] = ()


def read(path: Path, asked: Asked, extra_columns: Sequence[str] = (), table: Table | None = None) -> Read:
    """Reads a table of images.

    Args:
        path: The file.
        asked: What the user says of it.
        extra_columns: Further columns that are kept, where they are there.
        table: The file's cells, where they have been read already.

    Raises:
        DataError: It is no table, its columns cannot be told, or a row contradicts the rest.
    """
    table = table or parse(path)
    folder = path.parent if asked.image_root is None else Path(asked.image_root)
    guess = _Guess(table, folder, asked)
    cells = [cells[guess.path].strip() for _, cells in table.rows]
    for (line, _), cell in zip(table.rows, cells, strict=True):
        if not cell:
            raise DataError(
                f"each row must have a path and a label. Received: line {line} without {table.header[guess.path]!r}."
            )
    remote = next((cell for cell in cells if _REMOTE.match(cell)), None)
    if remote is not None and all(_REMOTE.match(cell) for cell in cells):
        raise DataError(
            f"{path.name} must name files of this machine. Received: addresses, such as {remote[:80]!r}. Download the "
            "images and pass image_root (--image-root), or name another column with --path-column."
        )
    places, note = locate(cells, folder, path, search=asked.image_root is None)
    notes = [*guess.notes, *([note] if note else [])]
    labels = guess.labels_of_rows()
    taken = {guess.path, guess.label, guess.split, guess.group}
    kept = [
        (name, index) for index, name in enumerate(table.header) if name in extra_columns and index not in taken
    ]  # fmt: skip
    rows = []
    for (line, row), place, own in zip(table.rows, places, labels, strict=True):
        group = row[guess.group].strip() or None if guess.group is not None else None
        extra = tuple((name, row[index].strip()) for name, index in kept)
        rows.append(Row(line, place, own, guess.split_of(line, row), group, extra))
    name = table.header[guess.group] if guess.group is not None else ""
    numbers = tuple(table.header[index] for index in guess.numbers)
    return Read(rows, guess.multilabel, guess.label_names, name, tuple(notes), numbers)


def values(path: Path, column: str, asked: Asked) -> dict[str, str]:
    """Returns what a table says of each image in one more column, by ``os.path.normpath`` of its path.

    Args:
        path: The file.
        column: The column.
        asked: What the user says of the table.

    Raises:
        DataError: It is no table, or has no such column.
    """
    table = parse(path)
    index = _index(table, column)
    folder = path.parent if asked.image_root is None else Path(asked.image_root)
    guess = _Guess(table, folder, dataclasses.replace(asked, needs_labels=False))
    places, _ = locate(table.column(guess.path), folder, path, search=asked.image_root is None)
    return {os.path.normpath(place): cells[index].strip() for place, (_, cells) in zip(places, table.rows, strict=True)}


# ---- text


def parse(path: Path) -> Table:
    """Returns the cells of a table.

    Args:
        path: A file of UTF-8 or UTF-16 text; fields separated by commas, semicolons, tabs, bars or spaces. Or JSON
            lines or Parquet (:mod:`resfit.data.records`).

    Raises:
        DataError: It cannot be read as such.
    """
    if path.suffix.lower() in record_files.SUFFIXES:
        header, cells = record_files.read(path)
        return Table(path, header, list(enumerate(cells, 1)), True)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path.name} must be a CSV file. Received: {error.strerror or error}.") from error
    text = _decoded(path, data)
    stated = re.match(r"\s*\"?sep=(.)\"?\r?\n", text)
    skipped = 0
    if stated:
        text, skipped = text[stated.end() :], 1
    lines = [line for line in text[:65536].splitlines()[:20] if line.strip()]
    if not lines:
        raise DataError(f"{path.name} must have rows below its header. Received: an empty file.")
    delimiter = stated[1] if stated else max(",;\t|", key=lambda sign: (lines[0].count(sign), -",;\t|".index(sign)))
    records: list[tuple[int, tuple[str, ...]]]
    spaced = delimiter not in lines[0] and all(len(line.split()) > 1 for line in lines)
    if spaced:
        records = _spaced(text)
    else:
        try:
            records = _separated(text, delimiter, skipped)
        except csv.Error as error:
            raise DataError(f"{path.name} must be a CSV file. Received: {error}.") from error
    first = tuple(cell.strip() for cell in records[0][1])
    has_header = not _names_a_file(first, path.parent) and not (
        spaced and any(_number(cell) is not None for cell in first)
    )
    header = first if has_header else tuple(str(number + 1) for number in range(len(first)))
    rows = records[1:] if has_header else records
    for line, row in rows:
        if len(row) != len(header):
            raise DataError(
                f"each row must have as many fields as the {'header' if has_header else 'first'}. "
                f"Received: another number in line {line}."
            )
    if not rows:
        raise DataError(f"{path.name} must have rows below its header. Received: none.")
    return Table(path, header, rows, has_header)


def _separated(text: str, delimiter: str, skipped: int) -> list[tuple[int, tuple[str, ...]]]:
    """Returns lines with their cells; spaces between a separator and a quotation mark mean nothing."""

    def read(text: str) -> list[tuple[int, tuple[str, ...]]]:
        lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True)
        return [(lines.line_num + skipped, tuple(map(csv_cells.unescaped, row))) for row in lines if row]

    try:
        return read(text)
    except csv.Error:
        tidy = re.sub(rf'" +(?={re.escape(delimiter)}|\r|\n|\Z)', '"', text)
        if tidy == text:
            raise
        return read(tidy)


def _decoded(path: Path, data: bytes) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    else:
        encoding = _unmarked_utf16(data[:1000]) or "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path.name} must be UTF-8 or UTF-16 text. Received: byte {error.start} is not ({error.reason}). Save it "
            "as UTF-8."
        ) from error
    if "\0" in text:
        raise DataError(f"{path.name} must be UTF-8 text. Received: a file with zero bytes.")
    return text


def _unmarked_utf16(beginning: bytes) -> str:
    """Returns the encoding of UTF-16 text without a mark: nearly every second byte is zero; empty for others."""
    even, odd = beginning[::2], beginning[1::2]
    for encoding, high in (("utf-16-le", odd), ("utf-16-be", even)):
        low = even if high is odd else odd
        if len(high) > 3 and high.count(0) > 0.7 * len(high) and low.count(0) == 0:
            return encoding
    return ""


def _spaced(text: str) -> list[tuple[int, tuple[str, ...]]]:
    """Returns the cells of lines that have spaces between them; in ``path label`` the path may have some too."""
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    even = len({len(line.split()) for _, line in lines}) == 1
    return [(number, tuple(line.split() if even else line.rsplit(None, 1))) for number, line in lines]


def _names_a_file(cells: Sequence[str], folder: Path) -> bool:
    """Says whether a first row names an image, so that it is no header."""
    return any(
        walk.is_image_name(Path(cell.replace("\\", "/"))) or ("/" in cell and (folder / cell).is_file())
        for cell in cells
        if cell and len(cell) < 1000 and "\0" not in cell
    )


# ---- columns


def _plain(name: str) -> str:
    return re.sub(r"[\s_\-.]+", "", name).lower()


def _index(table: Table, name: str) -> int:
    """Returns the position of a column that the user names, whatever the case of its letters."""
    if name in table.header:
        return table.header.index(name)
    alike = [index for index, other in enumerate(table.header) if other.strip().lower() == name.strip().lower()]
    if len(alike) == 1:
        return alike[0]
    raise DataError(
        f"{table.path.name} must have a column {name!r}. Received: {list(table.header)}.{closest(name, table.header)}"
    )


class _Guess:
    """Which column is what: as the user says, otherwise by what the columns hold, then by their names.

    Attributes:
        path: Position of the paths.
        label: Position of the labels; ``None`` without such a column.
        one_hot: Positions of columns of 0 and 1, a label each.
        split: Position of the part of the split.
        group: Position of the group.
        multilabel: Whether an image may have several labels; ``None`` where nothing says so.
        label_names: Names of the labels that the columns state.
        numbers: Positions of the columns with numbers, where labels are numbers.
        notes: What was guessed.
    """

    def __init__(self, table: Table, folder: Path, asked: Asked):
        self._table, self._asked, self._folder = table, asked, folder
        self.notes: list[str] = []
        self._rows = table.rows[:_LOOKED_AT]
        self.split = self._split()
        self.group = self._group()
        self.path = self._path()
        self.one_hot: tuple[int, ...] = ()
        self.label_names: tuple[str, ...] = ()
        self.multilabel = True if asked.label_separator else asked.multilabel
        if asked.numbers:
            self._read_decimal_commas()
        self.numbers: tuple[int, ...] = self._numbers() if asked.numbers else ()
        self.label = None if asked.numbers else self._label()
        self._say()

    def labels_of_rows(self) -> list[tuple[str, ...]]:
        """Returns the labels of each row, sorted."""
        table, found = self._table, []
        if self.numbers:
            return [(BETWEEN.join(self._number_in(line, cells, index) for index in self.numbers),)
                    for line, cells in table.rows]  # fmt: skip
        if self.one_hot:
            names = [table.header[index] for index in self.one_hot]
            flags = [[cells[index].strip().lower() in _TRUE for index in self.one_hot] for _, cells in table.rows]
            rows = [tuple(sorted(name for name, flag in zip(names, row, strict=True) if flag)) for row in flags]
            if self.multilabel is None:
                self.multilabel = None if all(len(row) == 1 for row in rows) else True
            self.label_names = tuple(sorted(names))
            return rows
        if self.label is None:
            return [()] * len(table.rows)
        cells = table.column(self.label)
        if self._asked.label_separator is None and _is_list(cells):
            self.multilabel = True
            self.notes.append(f"the cells of column {table.header[self.label]!r} are lists: several labels an image")
            return [_listed(cell, line) for cell, (line, _) in zip(cells, table.rows, strict=True)]
        separator = self._asked.label_separator
        for (line, _), cell in zip(table.rows, cells, strict=True):
            if separator:
                found.append(tuple(sorted({part.strip() for part in cell.split(separator)} - {""})))
                continue
            if not cell and not self.multilabel and self._asked.needs_labels:
                raise DataError(
                    f"each row must have a path and a label. Received: line {line} without "
                    f"{table.header[self.label]!r}. Where images may have several labels or none, pass "
                    "label_separator (--label-separator)."
                )
            found.append((cell,) if cell else ())
        return found

    def split_of(self, line: int, cells: Sequence[str]) -> str | None:
        """Returns the part of the split that a row is for."""
        if self.split is None:
            return None
        value, name = cells[self.split].strip(), self._table.header[self.split]
        flag = _FLAGS.get(_plain(name))
        if flag is not None and value.lower() in (_TRUE | _FALSE):
            return flag if value.lower() in _TRUE else "train"
        if not value:
            return None
        part = part_of(value)
        if part is None:
            raise DataError(f"split must be train, val or test. Received: {value!r} in line {line}.")
        return part

    def _cells(self, index: int) -> list[str]:
        return [cell for _, cells in self._rows if (cell := cells[index].strip())]

    def _split(self) -> int | None:
        table = self._table
        asked = self._asked.split
        if asked is not None and (asked in table.header or asked != "split"):
            return _index(table, asked)
        for index, name in enumerate(table.header):
            if table.has_header and name.lower() == "split":
                return index
        for index, name in enumerate(table.header):
            cells = self._cells(index)
            if _plain(name) in _SPLITS and cells and all(part_of(cell) for cell in cells):
                self.notes.append(f"parts of the split from column {name!r} (--split-column)")
                return index
            if _plain(name) in _FLAGS and cells and all(cell.lower() in (_TRUE | _FALSE) for cell in cells):
                self.notes.append(f"column {name!r} says which images are for {_FLAGS[_plain(name)]} (--split-column)")
                return index
        return None

    def _group(self) -> int | None:
        table = self._table
        asked = self._asked.group
        if asked is None:
            return self._named(cohort.GROUP_COLUMNS)
        found = table.header.index(asked) if asked in table.header else self._named((asked.lower(),))
        if found is None:
            self.notes.append(f"there is no column {asked!r}, so nothing is kept together (--group-column)")
        return found

    def _named(self, names: Sequence[str]) -> int | None:
        lower = [name.lower() for name in self._table.header]
        return next((lower.index(name) for name in names if name in lower), None)

    def _path(self) -> int:
        table = self._table
        if self._asked.path is not None:
            return _index(table, self._asked.path)
        exact = self._named(("path",))
        if exact is not None and table.has_header:
            return exact
        free = [index for index in range(len(table.header)) if index not in (self.split, self.group)]
        shares = {index: self._file_share(index) for index in free}
        likely = [index for index in free if shares[index] >= 0.5]
        by_name = sorted(likely or free, key=lambda index: _rank(table.header[index], _PATHS))
        if likely:
            return by_name[0]
        ids = [index for index in by_name if _rank(table.header[index], _PATHS) < len(_PATHS)]
        if ids:
            return ids[0]
        found = [index for index in free if self._leads_somewhere(index)]
        if len(found) == 1:
            return found[0]
        raise DataError(
            f"{table.path.name} must have a column with the paths of the images. Received: {list(table.header)}, of "
            "which none holds file names. Name it: path_column (--path-column)."
        )

    def _file_share(self, index: int) -> float:
        cells = self._cells(index)
        if not cells:
            return 0.0
        named = sum(
            walk.is_image_name(Path(cell.replace("\\", "/").split("?")[0])) and not _REMOTE.match(cell)
            for cell in cells
        )
        if 2 * named >= len(cells):
            return named / len(cells)
        some_of_them = cells[:20]
        return sum(_exists(_at(self._folder, cell)) for cell in some_of_them) / len(some_of_them)

    def _leads_somewhere(self, index: int) -> bool:
        """Says whether the cells of a column are names of files around the table."""
        cells = self._cells(index)
        try:
            return bool(cells) and _start(cells, self._table.path.parent, self._table.path, _Shelves()) is not None
        except DataError:
            return True

    def _label(self) -> int | None:
        table = self._table
        if self._asked.label is not None:
            return self._checked(_index(table, self._asked.label), asked=True)
        taken = {self.path, self.split, self.group}
        free = [
            index
            for index, name in enumerate(table.header)
            if index not in taken and name not in cohort.EXTRA_COLUMNS and self._cells(index)
        ]
        exact = self._named(("label",))
        if exact is not None and exact not in taken:
            return self._checked(exact)
        useful = [index for index in free if not (table.has_header and _UNUSED.match(table.header[index].lower()))]
        named = [index for index in useful if _rank(table.header[index], _LABELS) < len(_LABELS)]
        named.sort(key=lambda index: _rank(table.header[index], _LABELS))
        flags = [index for index in useful if _is_flags(table.column(index)) and index not in named]
        if named:
            chosen = self._wordier(named)
            if len(named) > 1:
                others = some([repr(table.header[index]) for index in named if index != chosen])
                self.notes.append(f"column {table.header[chosen]!r} and not {others} is taken for the labels")
            return self._checked(chosen)
        if len(flags) >= 2:
            self.one_hot = tuple(flags)
            return None
        candidates = useful if len(useful) == 1 else [index for index in useful if self._repeats(index)]
        if len(candidates) == 1:
            return self._checked(candidates[0])
        if not self._asked.needs_labels:
            return None
        held = [f"{table.header[index]!r} ({len(set(table.column(index)))} different)" for index in free]
        raise DataError(
            f"{table.path.name} must have a column with the labels, such as 'label'. Received: "
            f"{some(held) or 'no other column than ' + repr(table.header[self.path])}. "
            "Name it: label_column (--label-column)."
        )

    def _read_decimal_commas(self) -> None:
        """Takes commas for decimal points in columns of such numbers, unless all of them may be thousands."""
        table = self._table
        columns = []
        for index in set(range(len(table.header))) - {self.path, self.split, self.group}:
            cells = [cell for cell in table.column(index) if cell]
            commas = [cell for cell in cells if _COMMA.match(cell)]
            if (
                commas
                and all(_COMMA.match(cell) or _number(cell) is not None for cell in cells)
                and not all(map(_THOUSANDS.match, commas))
            ):
                columns.append(index)
                self.notes.append(f"{table.path.name}: commas in column {table.header[index]!r} are decimal points")
        if columns:
            rows = [
                (line, tuple(cell.replace(",", ".") if index in columns else cell for index, cell in enumerate(cells)))
                for line, cells in table.rows
            ]
            self._table = dataclasses.replace(table, rows=rows)

    def _numbers(self) -> tuple[int, ...]:
        """Returns the columns with the numbers to predict: those that are named, or the only one that it can be."""
        table, asked = self._table, self._asked.label
        if asked is not None:
            return (_index(table, asked),) if asked in table.header else tuple(
                dict.fromkeys(_index(table, name.strip()) for name in asked.split(",") if name.strip())
            )  # fmt: skip
        taken = {self.path, self.split, self.group}
        found = [
            index
            for index, name in enumerate(table.header)
            if index not in taken
            and not (table.has_header and _UNUSED.match(name.lower()))
            and all(_number(cell) is not None for cell in table.column(index))
        ]
        found.sort(key=lambda index: _rank(table.header[index], _LABELS))
        if (len(found) > 1 and _rank(table.header[found[0]], _LABELS) == len(_LABELS)) or not found:
            held = some([repr(table.header[index]) for index in found]) or "none with numbers in every row"
            raise DataError(
                f"{table.path.name} must have a column with the numbers to predict. Received: {held}. Name it, or "
                "several with commas between them: label_column (--label-column)."
            )
        others = some([repr(table.header[index]) for index in found[1:]])
        self.notes.append(
            f"{table.path.name}: numbers from column {table.header[found[0]]!r}"
            + (f" and not {others}" if others else "")
            + " (--label-column)"
        )
        return (found[0],)

    def _number_in(self, line: int, cells: Sequence[str], index: int) -> str:
        """Returns the text of a number; an empty one where labels are not needed."""
        cell = cells[index].strip()
        value = _number(cell)
        if (value is None or not math.isfinite(value)) and (cell or self._asked.needs_labels):
            raise DataError(
                f"column {self._table.header[index]!r} must have a finite number in each row. Received: {cell!r:.60} "
                f"in line {line} of {self._table.path.name}. Write numbers with a decimal point and without "
                "separators of thousands."
            )
        return cell

    def _repeats(self, index: int) -> bool:
        cells = self._table.column(index)
        return 1 < len(set(cells)) <= max(2, len(cells) // 2) and not _is_quantity(cells)

    def _wordier(self, named: list[int]) -> int:
        """Returns the first column, or one with words where that has the numbers of the same classes."""
        first = named[0]
        cells = self._table.column(first)
        if all(_number(cell) is not None for cell in cells):
            for other in named[1:]:
                words = self._table.column(other)
                pairs = len(set(zip(cells, words, strict=True)))
                if pairs == len(set(cells)) == len(set(words)) and any(_number(word) is None for word in words):
                    return other
        return first

    def _checked(self, index: int, *, asked: bool = False) -> int:
        """Returns a label column; one of quantities is refused."""
        cells = [cell for cell in self._table.column(index) if cell]
        if self._asked.label_separator is None and self._asked.needs_labels and _is_quantity(cells, sure=asked):
            name = self._table.header[index]
            raise DataError(
                f"the labels must be classes. Received: column {name!r} of {self._table.path.name} with "
                f"{len(set(cells))} different numbers, which reads like a quantity. To predict the number, pass "
                "task='regression' (--task regression). If another column holds the classes, name it: label_column "
                f"(--label-column); if the numbers are classes, {'make them words' if asked else 'name this one'}."
            )
        return index

    def _say(self) -> None:
        table, parts = self._table, []
        path, plain = table.header[self.path], ("path", "label")
        if self._asked.path is None and path.lower() != plain[0]:
            parts.append(f"paths from column {path!r} (--path-column)")
        if self.one_hot:
            names = [table.header[index] for index in self.one_hot]
            parts.append(f"a label each from the columns of 0 and 1, {some(names)} (--label-column)")
            used = {self.path, self.split, self.group, *self.one_hot}
            rest = [name for index, name in enumerate(table.header) if index not in used and name]
            if rest:
                parts.append(f"not used: {some(rest)}")
        elif self.label is not None and self._asked.label is None and table.header[self.label].lower() != plain[1]:
            parts.append(f"labels from column {table.header[self.label]!r} (--label-column)")
        if parts:
            where = "" if table.has_header else " (no header)"
            self.notes.append(f"{table.path.name}{where}: {', '.join(parts)}")


def _rank(name: str, names: Sequence[str]) -> int:
    plain = _plain(name)
    return names.index(plain) if plain in names else len(names)


def _is_flags(cells: Sequence[str]) -> bool:
    found = {cell.lower() for cell in cells}
    return bool(found & (_TRUE | _FALSE - {""})) and found <= (_TRUE | _FALSE)


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _is_quantity(cells: Sequence[str], *, sure: bool = False) -> bool:
    """Says whether cells are many different numbers.

    Args:
        cells: Of a column.
        sure: Whether the user says that they are classes: whole numbers are then taken for such.
    """
    different = set(cells)
    numbers = [number for cell in different if (number := _number(cell)) is not None]
    if len(numbers) < len(different):
        return False
    if any(math.isfinite(number) and number != int(number) for number in numbers):  # nobody numbers classes so
        return len(different) > _MANY or (len(different) > _FEW and 2 * len(different) > len(cells))
    return not sure and len(different) > _MANY and 3 * len(different) > len(cells)


def _is_list(cells: Sequence[str]) -> bool:
    return any(cells) and all(cell.startswith("[") and cell.endswith("]") for cell in cells if cell)


def _listed(cell: str, line: int) -> tuple[str, ...]:
    try:
        found = ast.literal_eval(cell) if cell else []
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        found = None
    if not isinstance(found, list) or not all(isinstance(item, str | int) for item in found):
        raise DataError(f"a list of labels must be of the form ['a', 'b']. Received: {cell[:80]!r} in line {line}.")
    return tuple(sorted({str(item).strip() for item in found} - {""}))


# ---- places


def locate(cells: Sequence[str], folder: Path, table: Path, *, search: bool) -> tuple[list[Path], str]:
    """Finds the files that the cells of a table name.

    A cell is taken as it is, then with slashes for backslashes, and with the ending of the one file of that name. Where
    none of all is found so, folders around the table are tried as the place where the paths start, without the folders
    that all paths begin with.

    Args:
        cells: Paths, names or IDs.
        folder: Where relative paths start.
        table: The table, whose folder's neighbours are searched.
        search: Whether other folders are tried.

    Returns:
        A path for each cell, there or not, and what was assumed; empty where nothing was.

    Raises:
        DataError: The files are in several folders alike.
    """
    shelves = _Shelves()
    found = [shelves.at(folder, cell) for cell in cells]
    hits = [place for place in found if place is not None]
    places = [
        place if place is not None else _at(folder, cell) for place, cell in zip(found, cells, strict=True)
    ]  # fmt: skip
    if hits or not search:
        added = sum(1 for place, cell in zip(found, cells, strict=True) if place and _is_longer(place, cell))
        return places, f"{added} of {len(cells)} paths have no ending, and the files are found by their name" if (
            added
        ) else ""
    start = _start(cells, table.parent, table, shelves)
    if start is None:
        return places, ""
    roots, dropped = start
    again = []
    for cell, place in zip(cells, places, strict=True):
        short = _shortened(cell, dropped)
        there = [new for root in roots if (new := shelves.at(root, short)) is not None]
        if len(there) > 1:
            raise _ambiguous(table, roots)
        again.append(there[0] if there else place)
    shown = some([os.path.relpath(root, table.parent) for root in roots])
    beginning = "/".join(_parts(cells[0])[:dropped])
    said = f" once {beginning!r} is taken off their beginning" if dropped else ""
    pairs = zip(cells, again, places, strict=True)
    cell, new = next((cell, new) for cell, new, old in pairs if new is not old)
    example = os.path.relpath(new, table.parent)
    return again, f"paths start in {shown!r}{said}, such as {example!r} for {cell!r} (--image-root)"


def missing(places: Sequence[Path], folder: Path) -> str:
    """Says what is there in place of files that are all missing.

    Args:
        places: Where the files would be.
        folder: Where the paths start.
    """
    shelves = _Shelves()
    sample = places[:_SAMPLE]
    found = [place for place in map(shelves.other_ending, sample) if place is not None]
    if found:
        return (
            f"With the ending {found[0].suffix!r}, {len(found)} of {len(sample)} that were tried would be found: "
            "correct the table."
        )
    names = {place.name for place in places}
    around = _around(folder)
    for here in around:
        both = sorted(names & shelves.names(here))
        if both:
            return (
                f"A file called {both[0]!r} is in {os.path.relpath(here, folder)!r}: pass image_root (--image-root), "
                "the folder where the paths start."
            )
    there = next((path for here in around for path in walk.files_of(here) if walk.is_image_name(path)), None)
    what = "no image is there" if there is None else f"images are called like {os.path.relpath(there, folder)!r}"
    return f"Below {folder.name or str(folder)!r} {what}. Pass image_root (--image-root), where the paths start."


class _Shelves:
    """Names in folders, each folder read once."""

    def __init__(self) -> None:
        self._names: dict[Path, set[str]] = {}
        self._stems: dict[Path, dict[str, list[str]]] = {}
        self._lower: dict[Path, dict[str, list[str]]] = {}

    def at(self, folder: Path, cell: str) -> Path | None:
        """Returns the file that a cell names, or ``None``."""
        for name in _spellings(cell):
            place = folder / name
            if _exists(place):
                return place
        names = list(_spellings(cell))
        for name in names[-1:]:
            place = folder / name
            if not place.name:
                continue
            if not walk.is_image_name(place):
                alike = self._stem(place.parent).get(place.name, [])
                if len(alike) == 1:
                    return place.with_name(alike[0])
            self.names(place.parent)
            other_case = self._lower[place.parent].get(place.name.lower(), [])
            if len(other_case) == 1:
                return place.with_name(other_case[0])
        return None

    def names(self, folder: Path) -> set[str]:
        """Returns the names of the files in a folder; none where it cannot be read."""
        if folder not in self._names:
            found = [path.name for path in walk.files_of(folder)]
            self._names[folder] = set(found)
            self._lower[folder] = {}
            for name in found:
                self._lower[folder].setdefault(name.lower(), []).append(name)
        return self._names[folder]

    def other_ending(self, place: Path) -> Path | None:
        """Returns the one image of the same name with another ending."""
        alike = self._stem(place.parent).get(place.stem, [])
        return place.with_name(alike[0]) if len(alike) == 1 else None

    def _stem(self, folder: Path) -> dict[str, list[str]]:
        if folder not in self._stems:
            stems: dict[str, list[str]] = {}
            for name in sorted(self.names(folder)):
                path = folder / name
                if walk.is_image_name(path):
                    stem = name[: -len(".nii.gz")] if name.lower().endswith(".nii.gz") else path.stem
                    stems.setdefault(stem, []).append(name)
            self._stems[folder] = stems
        return self._stems[folder]


def _spellings(cell: str) -> Sequence[str]:
    """Returns the ways in which a cell may be meant as a path, as it is first."""
    if cell.lower().startswith("file:"):
        try:
            path = urllib.parse.unquote(urllib.parse.urlsplit(cell).path)
        except ValueError:  # no address after all
            path = cell
        cell = path[1:] if re.match(r"/[A-Za-z]:", path) else path
    if "\\" in cell:
        return cell, cell.replace("\\", "/")
    return (cell,)


def _at(folder: Path, cell: str) -> Path:
    return folder / _spellings(cell)[-1]


def _exists(path: Path) -> bool:
    try:
        return os.path.lexists(members.container(path))
    except (OSError, ValueError):
        return False


def _is_longer(place: Path, cell: str) -> bool:
    return place.name != PureWindowsPath(cell).name and place.name.lower() != PureWindowsPath(cell).name.lower()


def _parts(cell: str) -> list[str]:
    """Returns the folders and the name of a path, a drive or root being the first of them."""
    text = _spellings(cell)[-1]
    lead = ["/"] if text.startswith("/") else []
    return lead + [part for part in text.split("/") if part not in ("", ".")]


def _shortened(cell: str, dropped: int) -> str:
    parts = _parts(cell)[dropped:]
    return "".join(parts[:1]) + "/".join(parts[1:]) if parts[:1] == ["/"] else "/".join(parts)


def _start(cells: Sequence[str], folder: Path, table: Path, shelves: _Shelves) -> tuple[list[Path], int] | None:
    """Returns the folders where paths start, and how many folders at their beginning are to be taken off.

    One folder that has all files is preferred; several are taken where each file is in one of them alone.
    """
    step = max(1, len(cells) // _SAMPLE)
    sample = list(cells[::step])[:_SAMPLE]
    parts = [_parts(cell) for cell in sample]
    shared = _shared([part[:-1] for part in parts])
    around = _around(folder)
    for dropped in range(shared + 1):
        rest = [_shortened(cell, dropped) for cell in sample]
        if any(text.startswith("/") for text in rest):
            continue
        hits = {here: [shelves.at(here, text) is not None for text in rest] for here in around}
        hits = {here: row for here, row in hits.items() if any(row)}
        owners = [sum(column) for column in zip(*hits.values(), strict=True)]
        covered = sum(count > 0 for count in owners)
        if not hits or 2 * covered < len(sample):
            continue
        whole = [here for here, row in hits.items() if sum(row) == covered]
        wanted = part_of(table.stem)
        named = [here for here in whole if wanted and part_of(here.name) == wanted]
        if len(whole) == 1 or len(named) == 1:
            return (named if len(named) == 1 else whole), dropped
        if whole or max(owners) > 1:
            raise _ambiguous(table, whole or list(hits))
        return list(hits), dropped  # spread over folders, each file in one
    return None


def _ambiguous(table: Path, roots: Sequence[Path]) -> DataError:
    return DataError(
        f"the paths of {table.name} must lead to one file each. Received: files of these names in "
        f"{some([os.path.relpath(here, table.parent) for here in roots])}. Pass image_root (--image-root), the folder "
        "where the paths start."
    )


def _shared(rows: Sequence[Sequence[str]]) -> int:
    """Returns how many entries all rows begin with alike."""
    count = 0
    for entries in zip(*rows, strict=False):
        if len(set(entries)) > 1:
            break
        count += 1
    return count


def _around(folder: Path) -> list[Path]:
    """Returns a folder, those below it, the one above, and those beside it, nearest first, up to a number."""
    found: list[Path] = []
    pending = [folder]
    for here in pending:
        if len(found) >= _MOST_FOLDERS:
            break
        found.append(here)
        try:
            pending += [child for child in walk.contents(here)[1] if not child.is_symlink()]
        except OSError:
            continue
    # of the folders above and beside only those that are called like one of images: others may hold another set
    beside = []
    for above in list(folder.resolve().parents)[:2]:
        if above != above.parent:
            beside += [above, *filter(_is_of_images, _readable(above))]
    return found + [here for here in beside if here.resolve() != folder.resolve()][:_MOST_FOLDERS]


def _is_of_images(folder: Path) -> bool:
    return folder.name.lower() in _IMAGE_FOLDERS or part_of(folder.name) is not None


def _readable(folder: Path) -> list[Path]:
    try:
        return walk.contents(folder)[1]
    except OSError:
        return []
