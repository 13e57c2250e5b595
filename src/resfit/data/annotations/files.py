"""The files below a folder, and annotation files read within bounds."""

from __future__ import annotations

import json
import os
import re
import stat
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote
from xml.parsers import expat

from resfit.data.dataset import SUFFIXES
from resfit.data.medical.cohort import is_scan_name
from resfit.errors import DataError

#: Most files that a folder may hold.
MOST_FILES = 5_000_000
#: Largest annotation file of one image, and of a whole set.
MOST_BYTES_ONE, MOST_BYTES_ALL = 16 * 2**20, 2 * 2**30
#: Deepest nesting of XML, and most elements that are held at once.
MOST_DEPTH, MOST_ELEMENTS = 64, 500_000

_SPLITS = {
    **{"train": "train", "training": "train", "trainval": "train"},
    **{"val": "val", "valid": "val", "validation": "val", "dev": "val"},
    **{"test": "test", "testing": "test"},
}


class UnreadableError(ValueError):
    """An annotation file cannot be read; the text is the reason."""


def split_of(name: str) -> str | None:
    """Returns the split that a file's or folder's name states, as ``train2017`` or ``test_labels`` do, or ``None``.

    Args:
        name: Without the folders above it.
    """
    found = {_SPLITS[word] for word in re.findall("[a-z]+", name.lower()) if word in _SPLITS}
    return found.pop() if len(found) == 1 else None


def split_of_path(path: PurePosixPath, *, with_name: bool = False) -> str | None:
    """Returns the split that the innermost folder that states one does.

    Args:
        path: A file, relative to the set's folder.
        with_name: Whether the file's own name counts too, as for a set's annotation file.
    """
    names = [*path.parts[:-1], *([path.stem] if with_name else [])]
    return next((split for split in map(split_of, reversed(names)) if split), None)


class FileList:
    """The files below a folder, hidden ones left out. Links to folders are followed once.

    Args:
        root: The folder.
        only: The annotation file that the user named; no other counts as one.

    Attributes:
        root: The folder.
        annotations: The folder of the annotation files, where it is another one.
        images: Image files, by their endings, sorted.
        others: The other files, sorted.

    Raises:
        DataError: The folder cannot be read, or holds too many files.
    """

    def __init__(self, root: Path, only: Path | None = None):
        self.root = root
        self.annotations = root
        self.only = only
        files = sorted(_walk(root))
        self.images = [path for path in files if _is_image(path)]
        self.others = [path for path in files if not _is_image(path)] if only is None else [only]
        self._known = set(self.images)
        self._by_name: dict[str, list[Path]] = defaultdict(list)
        self._by_stem: dict[str, list[Path]] = defaultdict(list)
        for path in self.images:
            self._by_name[path.name.lower()].append(path)
            self._by_stem[path.stem.lower()].append(path)
        self._claimed: dict[Path, str] = {}

    def with_suffix(self, *suffixes: str) -> list[Path]:
        """Returns the other files with some endings, such as ``.xml``."""
        return [path for path in self.others if path.suffix.lower() in suffixes]

    def relative(self, path: Path) -> PurePosixPath:
        """Returns a path below the folder of images or that of annotations; of a file elsewhere, its name alone."""
        for folder in (self.root, self.annotations):
            if path.is_relative_to(folder):
                return PurePosixPath(path.relative_to(folder).as_posix())
        return PurePosixPath(path.name)

    def split_of(self, image: Path | None, source: Path) -> str | None:
        """Returns the split that the folders of an image state, or those and the name of its annotation file."""
        found = None if image is None else split_of_path(self.relative(image))
        return found or split_of_path(self.relative(source), with_name=True)

    def find(self, name: str, near: Path, *, split: str | None = None) -> tuple[Path | None, str]:
        """Finds the image that an annotation names.

        Names are taken as paths below the annotation's own folder or the set's, and otherwise, since tools write the
        paths of the machine that they ran on, as the one image with that file name. Where several images have it, the
        one that shares most folders with the name, then with the annotation is taken; none where that does not decide.

        Args:
            name: As stated: a name or path, with any slashes.
            near: The annotation's folder.
            split: The split that the annotation states, if any.

        Returns:
            The image and ``""``, or ``None`` and why.
        """
        text = unquote(name) if name.startswith("file://") else name
        clean = text.replace("\\", "/").split("://")[-1].strip()
        if not clean or "\0" in clean:
            return None, "no name of an image"
        parts = [part for part in clean.split("/") if part not in ("", ".", "..")]
        for folder in (near, self.root):
            exact = folder.joinpath(*parts)
            if exact in self._known and ".." not in clean.split("/"):
                return self._claim(exact, clean)
        if not parts:
            return None, "no name of an image"
        candidates = self._by_name.get(parts[-1].lower()) or self._by_stem.get(
            PurePosixPath(parts[-1]).stem.lower(), []
        )
        if not candidates and PurePosixPath(parts[-1]).suffix.lower() not in SUFFIXES:
            candidates = self._by_stem.get(parts[-1].lower(), [])  # a name without ending, with a point in it
        wanted = split or split_of_path(PurePosixPath(*parts))
        return self._nearest(candidates, parts, near, wanted, clean)

    def counterpart(self, annotation: Path) -> tuple[Path | None, str]:
        """Finds the image with the same name as an annotation file, but for the ending."""
        return self._nearest(
            self._by_stem.get(annotation.stem.lower(), []), [annotation.stem], annotation.parent, None, annotation.stem
        )

    def _nearest(
        self, candidates: Sequence[Path], parts: Sequence[str], near: Path, split: str | None, name: str
    ) -> tuple[Path | None, str]:
        """The one of some images that shares most folders with a name and with a folder."""
        if not candidates:
            return None, "no such file"
        around = self.relative(near / "x").parts[:-1]
        ranked = []
        for path in candidates:
            folders = self.relative(path).parts[:-1]
            own = split_of_path(self.relative(path))
            if split and own and own != split:
                continue
            alike = 0
            for one, other in zip(reversed(parts[:-1]), reversed(folders), strict=False):
                if one.lower() != other.lower():
                    break
                alike += 1
            shared = len(set(around) & set(folders)) - abs(len(folders) - len(around)) / 100
            ranked.append((alike, path.parent == near, shared, path))
        if not ranked:
            return None, f"no such file in {split}"
        ranked.sort(key=lambda item: item[:3], reverse=True)
        if len(ranked) > 1 and ranked[0][:3] == ranked[1][:3]:
            return None, f"{len(ranked)} files have this name"
        return self._claim(ranked[0][3], name)

    def _claim(self, path: Path, name: str) -> tuple[Path | None, str]:
        """Gives a file to the name that asks for it; another name with other folders cannot mean the same file."""
        known = self._claimed.setdefault(path, name)
        if known != name and known.split("/")[:-1] != name.split("/")[:-1] and "/" in known and "/" in name:
            return None, f"only the file of {known!r} has this name"
        return path, ""


def _is_image(path: Path) -> bool:
    """Whether a file's ending is that of an image or scan."""
    return path.suffix.lower() in SUFFIXES or is_scan_name(path)


def _walk(root: Path) -> Iterator[Path]:
    """Files at any depth; each folder is entered once."""
    entered: set[tuple[int, int]] = set()
    folders, count = [root], 0
    while folders:
        folder = folders.pop()
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            items = list(os.scandir(folder))
        except OSError as error:
            if folder == root:
                raise DataError(f"the folder {str(root)!r} cannot be read: {error.strerror or error}.") from error
            continue
        for item in items:
            if item.name.startswith(".") or item.name == "__MACOSX":
                continue
            if item.is_dir():
                folders.append(folder / item.name)
            else:
                yield folder / item.name
                count += 1
                if count > MOST_FILES:
                    raise DataError(f"a folder may hold {MOST_FILES:,} files. Received: more in {str(root)!r}.")


def read_bytes(path: Path, most: int = MOST_BYTES_ALL) -> bytes:
    """Reads a regular file of bounded size.

    Raises:
        UnreadableError: It is none, or larger, or cannot be read.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise UnreadableError("not a regular file")
        if status.st_size > most:
            raise UnreadableError(f"{status.st_size} bytes, more than the {most} that are allowed")
        with open(path, "rb") as file:
            return file.read(most)
    except OSError as error:
        raise UnreadableError(f"cannot be read: {error.strerror or error}") from error


def read_text(path: Path, most: int = MOST_BYTES_ONE) -> str:
    """Reads a text file: UTF-8, or UTF-16 with a byte order mark.

    Raises:
        UnreadableError: As :func:`read_bytes`, or it is other text.
    """
    data = read_bytes(path, most)
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise UnreadableError(f"not {encoding[:6].upper()} text: byte {error.start} ({error.reason})") from error


def head_and_tail(path: Path, size: int = 65_536) -> bytes:
    """Returns the beginning and the end of a file, to tell what it is; empty where it cannot be read."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return b""
        with open(path, "rb") as file:
            begin = file.read(size)
            file.seek(max(size, os.fstat(file.fileno()).st_size - size))
            return begin + b"\n" + file.read(size)
    except OSError:
        return b""


def read_json(path: Path, object_hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """Reads a JSON file.

    Args:
        path: The file.
        object_hook: Is given each object and returns what stands for it, so that a large file is not held as a whole.

    Raises:
        UnreadableError: It is not JSON, too deeply nested, or too large.
    """
    data = read_bytes(path)
    try:
        text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
        del data
        return json.loads(text, object_hook=object_hook)
    except RecursionError as error:
        raise UnreadableError("nested too deeply") from error
    except (ValueError, OverflowError) as error:
        raise UnreadableError(f"not JSON: {str(error)[:200]}") from error
    except MemoryError as error:
        raise UnreadableError("too large for the memory") from error


def read_yaml(path: Path) -> Any:
    """Reads a YAML file of at most 256 KiB as text, lists and mappings: nothing becomes a number, a date or an object.

    ``names: [yes, no]`` therefore stays what it says. References (``&a``, ``*a``) are refused, since a few lines of
    them can stand for gigabytes.

    Raises:
        UnreadableError: It is no such file.
    """
    import yaml

    class Loader(yaml.BaseLoader):  # plain text, lists and mappings only: safe_load less its dates and numbers
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.events.AliasEvent):
                raise UnreadableError("references (*name) are not allowed in it")
            self.depth = getattr(self, "depth", 0) + 1
            if self.depth > MOST_DEPTH:
                raise UnreadableError("nested too deeply")
            node = super().compose_node(parent, index)
            self.depth -= 1
            return node

    text = read_text(path, 256 * 2**10)
    try:
        return yaml.load(text, Loader)  # a loader of plain values
    except UnreadableError:
        raise
    except yaml.YAMLError as error:
        raise UnreadableError(f"not YAML: {' '.join(str(error).split())[:200]}") from error
    except (RecursionError, ValueError) as error:
        raise UnreadableError("nested too deeply") from error


class Element:
    """An XML element: its name, attributes, text and children."""

    __slots__ = ("attributes", "children", "name", "parts")

    def __init__(self, name: str, attributes: dict[str, str]):
        self.name = name
        self.attributes = attributes
        self.children: list[Element] = []
        self.parts: list[str] = []

    def child(self, name: str) -> Element | None:
        """Returns the first child of a name."""
        return next((child for child in self.children if child.name == name), None)

    def text(self, *names: str) -> str:
        """Returns the text of a child's child, such as ``text("size", "width")``; empty where there is none."""
        here: Element | None = self
        for name in names:
            here = here.child(name) if here is not None else None
        return "" if here is None else "".join(here.parts).strip()


def read_xml(
    path: Path, most: int = MOST_BYTES_ONE, on_element: Callable[[Element, int], bool] | None = None
) -> Element:
    """Reads an XML file. Document types, and with them entities, are refused.

    Args:
        path: The file.
        most: Largest size in bytes.
        on_element: Is given each element when it has ended, and its depth (0 for the outermost); where it returns True,
            the element is not kept.

    Returns:
        The outermost element.

    Raises:
        UnreadableError: It is not XML, has a document type, or is nested too deeply.
    """
    data = read_bytes(path, most)
    top = Element("", {})
    open_elements = [top]
    held = 0

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal held
        held += 1
        if len(open_elements) > MOST_DEPTH:
            raise UnreadableError("nested too deeply")
        if held > MOST_ELEMENTS:
            raise UnreadableError(f"more than {MOST_ELEMENTS} elements")
        element = Element(name, attributes)
        open_elements[-1].children.append(element)
        open_elements.append(element)

    def end(name: str) -> None:
        nonlocal held
        element = open_elements.pop()
        if on_element is not None and on_element(element, len(open_elements) - 1):
            open_elements[-1].children.pop()
            held = 0 if len(open_elements) == 2 else held

    def refuse(*_: Any) -> None:
        raise UnreadableError("it has a document type (<!DOCTYPE>), which is not allowed")

    parser = expat.ParserCreate()
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = lambda text: open_elements[-1].parts.append(text)
    parser.StartDoctypeDeclHandler = refuse
    parser.EntityDeclHandler = refuse
    parser.buffer_text = True
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise UnreadableError(f"not XML: {error}") from error
    except (ValueError, LookupError) as error:  # an encoding that is not known
        raise UnreadableError(str(error) if isinstance(error, UnreadableError) else f"not XML: {error}") from error
    if not top.children:
        raise UnreadableError("not XML: no element")
    return top.children[0]


def number(text: Any) -> float:
    """Returns a number of an annotation; NaN for what is none, so that the box is listed."""
    try:
        return float(text)
    except (TypeError, ValueError, OverflowError):
        return float("nan")


def whole(text: Any) -> int:
    """Returns a stated side of an image in pixels; 0, which means not stated, for what is no positive number."""
    value = number(text)
    return int(value) if 1 <= value < 2**31 else 0
