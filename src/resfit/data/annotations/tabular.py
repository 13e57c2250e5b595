"""Tables with a box in each row: CSV files in the common forms, and pandas DataFrames."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resfit.data.annotations.files import FileList, UnreadableError, head_and_tail, number, read_bytes, split_of, whole
from resfit.data.annotations.table import AnnotationTable, ReadOptions, SkippedBox, StatedImage, annotation_format
from resfit.errors import DataError, closest

if TYPE_CHECKING:
    import pandas as pd

#: The names under which columns are found; case, spaces, ``_`` and ``-`` do not matter.
COLUMNS = {
    "path": (
        "path",
        "filename",
        "file",
        "filepath",
        "imagepath",
        "image",
        "imagename",
        "imagefile",
        "imageid",
        "imgpath",
    ),
    "label": ("label", "class", "classname", "category", "labelname", "name"),
    "xmin": ("xmin", "x1", "left", "xtl", "bboxxmin"),
    "ymin": ("ymin", "y1", "top", "ytl", "bboxymin"),
    "xmax": ("xmax", "x2", "right", "xbr", "bboxxmax"),
    "ymax": ("ymax", "y2", "bottom", "ybr", "bboxymax"),
    "x": ("x", "bboxx", "boxx"),
    "y": ("y", "bboxy", "boxy"),
    "xcenter": ("xcenter", "xcentre", "centerx", "centrex", "cx"),
    "ycenter": ("ycenter", "ycentre", "centery", "centrey", "cy"),
    "boxwidth": ("w", "boxwidth", "bboxwidth", "bboxw", "boxw"),
    "boxheight": ("h", "boxheight", "bboxheight", "bboxh", "boxh"),
    "width": ("width", "imagewidth", "imgwidth"),
    "height": ("height", "imageheight", "imgheight"),
    "split": ("split", "set", "subset"),
    "group": ("group", "patient", "patientid"),
    "crowd": ("iscrowd", "crowd", "isgroupof"),
}
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_FORMS = "path,label,xmin,ymin,xmax,ymax or filename,width,height,class,xmin,ymin,xmax,ymax"
#: The columns of a table without a header line, in the order of Keras RetinaNet.
_HEADERLESS = ("path", *_CORNERS, "label")
_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".dcm")


def find(files: FileList) -> list[Path]:
    """Returns the CSV files whose header names boxes, or whose first line without one is a box."""
    found = []
    for path in files.with_suffix(".csv", ".tsv"):
        fields = _first_line(path)
        if _lacks_header(fields) or states_boxes(fields):
            found.append(path)
    return found


def states_boxes(fields: Sequence[str]) -> bool:
    """Returns whether columns of these names state images, classes and boxes.

    Args:
        fields: Names of columns.
    """
    columns = _columns(fields, {})
    return "path" in columns and "label" in columns and _edges(columns) is not None


def columns_hint(path: Path) -> str:
    """Returns what a CSV file in which no boxes were found needs, as a sentence.

    Args:
        path: The file.
    """
    return f" A CSV file must have columns such as {_FORMS}. Received: {_first_line(path)[:30]}."


def _first_line(path: Path) -> list[str]:
    head = next(iter(_decoded(head_and_tail(path, 8192)).splitlines()), "")
    try:
        return next(csv.reader([head], delimiter=_delimiter(head)), [])
    except csv.Error:
        return []


def _lacks_header(fields: Sequence[str]) -> bool:
    """Whether the first line of a table is a box, or an image without boxes, in Keras RetinaNet's order."""
    if len(fields) != len(_HEADERLESS) or not fields[0].strip().lower().endswith(_ENDINGS):
        return False
    edges = [field.strip() for field in fields[1:5]]
    return not any((*edges, fields[5].strip())) or all(np.isfinite(number(edge)) for edge in edges)


def _edges(columns: Mapping[str, str]) -> tuple[str, ...] | None:
    """The four columns that state a box: its corners, or a corner or the centre and the size; ``None`` for none."""
    if all(role in columns for role in _CORNERS):
        return _CORNERS
    size = ("boxwidth", "boxheight") if "boxwidth" in columns else ("width", "height")
    for place in (("xmin", "ymin"), ("x", "y"), ("xcenter", "ycenter")):
        if all(role in columns for role in (*place, *size)):
            return (*place, *size)
    return None


@annotation_format("csv", "a CSV file", find, rank=5)
def read(files: FileList, sources: Sequence[Path], table: AnnotationTable, options: ReadOptions) -> None:
    """Reads CSV files: commas, semicolons or tabs."""
    import pandas as pd

    for source in sources:
        try:
            text = _decoded(read_bytes(source), strict=True)
        except UnreadableError as error:
            raise DataError(f"{source.name} must be a CSV file. Received: {error}.") from error
        header = next(iter(text[:65_536].splitlines()), "")
        headerless = _lacks_header(_first_line(source))
        if headerless:
            table.notes.append(f"{source.name} has no header line: its columns are taken as {', '.join(_HEADERLESS)}")
        try:
            frame = pd.read_csv(
                io.StringIO(text),
                sep=_delimiter(header),
                **({"header": None, "names": list(_HEADERLESS)} if headerless else {}),
                dtype=str,
                keep_default_na=False,
                index_col=False,
                skip_blank_lines=False,
            )
        except (ValueError, RecursionError) as error:  # pandas' parser errors are ValueErrors
            raise DataError(
                f"{source.name} must be a CSV file. Received: {' '.join(str(error).split())[:200]}."
            ) from error
        read_frame(files, frame, source, table, options, first_line=1 if headerless else 2)


def read_frame(
    files: FileList,
    frame: pd.DataFrame,
    source: Path,
    table: AnnotationTable,
    options: ReadOptions,
    *,
    first_line: int = 0,
) -> None:
    """Reads a table of boxes.

    Args:
        files: Where images are looked for.
        frame: The table.
        source: What it is called in the list of skipped boxes.
        table: Gets the images and boxes.
        options: Its ``columns`` and ``coordinates`` count here.
        first_line: Number of the first row.

    Raises:
        DataError: Columns are missing or contradict each other.
    """
    import pandas as pd

    columns = _columns([str(name) for name in frame.columns], options.columns)
    edges = _edges(columns)
    for name in ("path", "label", *_CORNERS):
        if name not in columns and (edges is None or name not in _CORNERS):
            given = [str(name) for name in frame.columns]
            raise DataError(
                f"{source.name} must have columns such as {_FORMS}. Received: none for {name!r} among "
                f"{given[:30]}.{closest(name, given)} columns={{{name!r}: 'NAME'}} names it."
            )
    assert edges is not None
    by_name = {str(name): name for name in frame.columns}
    series = {name: frame[by_name[column]] for name, column in columns.items()}
    texts = {
        name: series[name].astype(object).where(series[name].notna(), "").astype(str).str.strip()
        for name in ("path", "label")
    }
    corners = np.stack(
        [pd.to_numeric(series[name], errors="coerce").to_numpy(np.float64, na_value=np.nan) for name in edges],
        axis=1,
    )
    if edges != _CORNERS:
        centred = "xcenter" in edges
        corners[:, :2] -= corners[:, 2:] / 2 if centred else 0
        corners[:, 2:] += corners[:, :2]
        named = ", ".join(columns[role] for role in edges)
        what = "centre" if centred else "left, top"
        other = "xmin,ymin,xmax,ymax are corners" + ("" if centred else "; x_center,y_center are centres")
        table.notes.append(f"{named} of {source.name} are taken as {what}, width and height of boxes ({other})")
    empty = np.stack(
        [
            (series[name].isna() | (series[name].astype(object).astype(str).str.strip() == "")).to_numpy()
            for name in edges
        ],
        axis=1,
    )
    negative = empty.all(axis=1) & (texts["label"] == "").to_numpy()
    nameless = (texts["path"] == "").to_numpy()
    for row in np.flatnonzero(nameless)[:1000]:
        if not negative[row]:  # an empty line is nothing
            table.skip(SkippedBox("", "image missing", "no name of an image", source.name, int(row) + first_line))
    codes, names = pd.factorize(texts["path"], sort=False)
    splits, groups, widths, heights = (
        _by_image(name, {} if name in edges else series, codes, len(names), source)
        for name in ("split", "group", "width", "height")
    )
    fractions = _fractions(corners, options, table, source)
    images = np.full(len(names), -1)
    for code, name in enumerate(names):
        if not name:
            continue
        split = split_of(str(splits[code])) if splits[code] else None
        if splits[code] and split is None:
            raise DataError(
                f"split must be train, val or test. Received: {splits[code]!r} for {name!r} in {source.name}."
            )
        path, problem = _find(files, name, source.parent, split or split_of(source.stem))
        differing = "differs" in (widths[code], heights[code])
        images[code] = table.add_image(
            StatedImage(
                name=name,
                path=path,
                source=source,
                split=split or files.split_of(path, source),
                group=groups[code] or None,
                width=0 if differing else whole(widths[code]),
                height=0 if differing else whole(heights[code]),
                fractions=fractions,
                problem=problem or ("stated with two sizes" if differing else ""),
            )
        )
    label_codes, labels = pd.factorize(texts["label"], sort=False)
    rows = np.flatnonzero(~negative & ~nameless)
    known = np.full(len(labels), -1)
    for code in dict.fromkeys(label_codes[rows].tolist()):
        known[code] = table.class_number(labels[code])
    crowd = np.zeros(len(frame), bool)
    if "crowd" in series:
        crowd = (
            series["crowd"]
            .astype(object)
            .astype(str)
            .str.strip()
            .str.lower()
            .isin(("1", "1.0", "true", "yes"))
            .to_numpy()
        )
    table.add_boxes(images[codes[rows]], corners[rows], known[label_codes[rows]], crowd[rows], rows + first_line)


def _find(files: FileList, name: str, near: Path, split: str | None) -> tuple[Path | None, str]:
    """The image of a row: a table may also name files elsewhere by their whole path."""
    path = Path(name)
    if path.is_absolute() and "\0" not in name:
        try:
            if path.is_file():
                return path, ""
        except OSError:
            pass
    return files.find(name, near, split=split)


def _by_image(name: str, series: Mapping[str, Any], codes: np.ndarray, count: int, source: Path) -> list[Any]:
    """What a column says of each image; all of its rows must agree, or leave it empty."""
    if name not in series:
        return [None] * count
    import pandas as pd

    texts = series[name].astype(object).where(series[name].notna(), "").astype(str).str.strip()
    pairs = pd.DataFrame({"image": codes, "value": texts.to_numpy()})
    pairs = pairs[pairs["value"] != ""].drop_duplicates()
    found: list[Any] = [None] * count
    for image, value in zip(pairs["image"].tolist(), pairs["value"].tolist(), strict=True):
        if found[image] is None:
            found[image] = value
        elif name in ("width", "height"):
            found[image] = "differs"
        else:
            raise DataError(
                f"all rows of an image must have the same {name}. "
                f"Received: {found[image]!r} and {value!r} in {source.name}."
            )
    return found


def _fractions(corners: np.ndarray, options: ReadOptions, table: AnnotationTable, source: Path) -> bool:
    """Whether coordinates are fractions of the image's size: boxes in pixels would all be of one pixel."""
    if options.coordinates != "auto":
        return options.coordinates == "fractions"
    finite = corners[np.isfinite(corners).all(axis=1)]
    fractions = bool(len(finite)) and bool(((finite >= 0) & (finite <= 1)).all()) and bool((finite % 1 != 0).any())
    if fractions:
        table.notes.append(
            f"coordinates of {source.name} lie between 0 and 1 and are taken as fractions of the image's size "
            "(coordinates='pixels' takes them as pixels)"
        )
    return fractions


def _columns(fields: Sequence[str], stated: Mapping[str, str]) -> dict[str, str]:
    """By role the column that has it: the stated one, or the first that is called so."""
    found = {}
    plain = {name: "".join(name.lower().replace("_", " ").replace("-", " ").split()) for name in map(str, fields)}
    for role, names in COLUMNS.items():
        if role in stated:
            if stated[role] not in fields:
                raise DataError(
                    f"columns must name columns of the table. Received: {stated[role]!r}; it has {list(fields)}."
                )
            found[role] = stated[role]
            continue
        for name in names:
            match = next((field for field, text in plain.items() if text == name), None)
            if match is not None:
                found[role] = match
                break
    return found


def _delimiter(header: str) -> str:
    return max(",;\t", key=header.count)


def _decoded(data: bytes, *, strict: bool = False) -> str:
    """Text of UTF-8 or UTF-16."""
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = data.decode(encoding, "strict" if strict else "replace")
    except UnicodeDecodeError as error:
        raise UnreadableError(f"not {encoding[:6].upper()} text: byte {error.start} ({error.reason})") from error
    if strict and "\0" in text:
        raise UnreadableError("text with zero bytes")
    return text
