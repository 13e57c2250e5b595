"""What the folders of a data set mean: classes, parts of a split, or a wrapper around them.

What is clear is read, and said where it is not the plain layout; what may mean two things is refused with the option
that settles it.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path

from resfit.data import walk
from resfit.errors import DataError

LAYOUTS = (
    "one folder for each class (photos/cats/1.jpg), train/ val/ test/ with class folders inside, a CSV file with "
    "columns path,label[,split,group], or files that hold images: tar, zip, Parquet, Arrow, TFRecord"
)
#: Endings of tables.
TABLES = frozenset({".csv", ".tsv", ".jsonl", ".ndjson", ".parquet"})
_TEXT_TABLES = frozenset({".csv", ".tsv"})

#: What the tables of Hugging Face's imagefolder are called, without their ending.
METADATA = "metadata"

_WORDS = {
    **dict.fromkeys(("train", "training", "trainset", "traindata", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "devel", "valset", "validset", "devset"), "val"),
    **dict.fromkeys(("test", "testing", "testset", "testdata", "tst", "eval", "evaluation", "holdout"), "test"),
}
_FILLERS = frozenset({"set", "data", "dataset", "images", "image", "imgs", "img", "seg", "split", "part", "samples"})
# folders of data sets for other tasks, and of images without classes
_NO_CLASSES = frozenset(
    {"images", "image", "imgs", "img", "jpegimages", "pictures", "photos", "data", "masks", "mask", "labels", "label"}
    | {"annotations", "annotation", "segmentations", "segmentation", "segmentationclass", "segmentationobject", "gt"}
)
_FOLDS = frozenset({"fold", "folds", "kfold", "cv", "split"})
_MOST_WRAPPERS = 8
_LOOKED_INTO = 1000  # files without a known ending that are opened to see whether a folder has images
_EXAMPLES = 200  # file names that a pattern is suggested from


def metadata_of(folder: Path) -> Path | None:
    """Returns the table that Hugging Face's imagefolder has at its top, if it is there."""
    return next((path for path in _tables(folder) if path.stem.lower() == METADATA), None)


def part_of(name: str) -> str | None:
    """Returns ``"train"``, ``"val"`` or ``"test"`` if a name means that part of a split, such as ``seg_train``.

    Args:
        name: Of a folder, or a value of a column.

    Example:
        >>> [part_of(name) for name in ("Training", "test1", "hold-out", "train_station", "fold_0")]
        ['train', 'test', 'test', None, None]
    """
    words = _words(name.replace("hold_out", "holdout").replace("hold-out", "holdout"))
    parts = {_WORDS[word] for word in words if word in _WORDS}
    rest = [word for word in words if word not in _WORDS and word not in _FILLERS and not word.isdigit()]
    return parts.pop() if len(parts) == 1 and not rest else None


def is_fold(name: str) -> bool:
    """Says whether a name is that of a fold of a cross-validation, such as ``fold_0``."""
    words = _words(name)
    return any(word.isdigit() for word in words) and all(word.isdigit() or word in _FOLDS for word in words) and (
        any(word in _FOLDS for word in words)
    )  # fmt: skip


def _words(name: str) -> list[str]:
    """Returns the words of a name in small letters, digits apart."""
    return re.findall(r"[^\W\d_]+|\d+", name.lower())


@dataclasses.dataclass(frozen=True)
class FolderSource:
    """Where images of a set are.

    Attributes:
        path: A folder, or a table.
        split: The part of the split that they are for, if the layout says.
        label: Their class, if the folder is one of a class; ``None`` where a table or the file names say.
        above: Folders that a link below does not lead back to.
    """

    path: Path
    split: str | None = None
    label: str | None = None
    above: tuple[Path, ...] = ()


@dataclasses.dataclass(frozen=True)
class Layout:
    """What the folders of a data set mean.

    Attributes:
        sources: Where the images are.
        notes: What was understood that is not the plain layout.
        warnings: What is left out.
    """

    sources: tuple[FolderSource, ...]
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


class LayoutError(DataError):
    """Folders that may mean several things, or none."""


def understand(root: Path, *, named: bool = False) -> Layout:
    """Finds out what the folders in a folder mean.

    Args:
        root: The folder.
        named: Whether labels are in the names of the files, so that class folders need not be there.

    Raises:
        LayoutError: They may mean several things, or none.
        DataError: A folder cannot be read.
    """
    root, entered = _unwrapped(root)
    notes = [] if entered is None else [f"the images are in {entered}/: it is entered, and is no class"]
    within = {folder: _is_full(folder) for folder in walk.subfolders(root)}
    full, empty = ([folder for folder, has in within.items() if has is wanted] for wanted in (True, False))
    parts = {folder: part for folder in full if (part := part_of(folder.name)) is not None}
    others = [folder for folder in full if folder not in parts]
    found = _parts(root, parts, others, named)
    if found is not None:
        more = tuple(
            f"{folder.name}/ has no images and is left out" for folder in empty if part_of(folder.name) is not None
        )
        return dataclasses.replace(found, notes=(*notes, *found.notes), warnings=(*found.warnings, *more))
    if named:
        return Layout((FolderSource(root),), tuple(notes))
    if not full:
        return _flat(root, empty, notes)
    if all(is_fold(folder.name) for folder in full) and len(full) > 1:
        raise LayoutError(_folds(full))
    mixed = _parts_in_names(full)
    if mixed:
        raise LayoutError(mixed)
    inverted = _parts_below(root, full)
    if inverted is not None:
        return dataclasses.replace(inverted, notes=(*notes, *inverted.notes))
    same = _same_below(full)
    if same:
        raise LayoutError(same)
    if all(_is_no_class(folder) for folder in full):
        tables = _tables(root)
        if len(full) == len(tables) == 1:
            return Layout((FolderSource(tables[0]),), (*notes, f"labels are read from {tables[0].name}"))
        raise LayoutError(
            f"the folders {some([folder.name for folder in full])} are called like parts of a data set and not like "
            f"classes. {_ways_out(_telling(full), root)}"
        )
    sources = tuple(FolderSource(folder, label=folder.name, above=(root,)) for folder in sorted((*full, *empty)))
    return Layout(sources, tuple(notes))


def stated(root: Path, given: dict[str, Path], *, named: bool = False) -> Layout:
    """Returns the layout in which the user has named the parts.

    Args:
        root: The folder; what is in it beside the parts is for training where no part for training is named.
        given: The folder or table of each part.
        named: As :func:`understand` takes it.

    Raises:
        LayoutError: A folder has neither class folders nor a table.
    """
    found: list[Layout] = []
    if "train" not in given:
        taken = {path.resolve() for path in given.values()}
        rest = [folder for folder in walk.subfolders(root) if folder.resolve() not in taken and _is_full(folder)]
        if not rest:
            raise LayoutError(f"there must be images to train on beside {some([str(p) for p in given.values()])}.")
        if named or all(_classes_inside(folder) and not walk.has_images(folder) for folder in rest):
            found += [part(folder, "train", named=named) for folder in rest]
        else:
            found.append(Layout(tuple(FolderSource(folder, "train", folder.name, (root,)) for folder in rest)))
        found.append(Layout((), (f"read as the train part: {some([folder.name for folder in rest])}",)))
    for split, path in given.items():
        found.append(Layout((FolderSource(path, split),)) if path.is_file() else part(path, split, named=named))
    return Layout(
        tuple(source for one in found for source in one.sources), tuple(note for one in found for note in one.notes)
    )


def part(folder: Path, split: str, *, named: bool = False, known: Sequence[str] = ()) -> Layout:
    """Finds out what is in the folder of one part of a split.

    Args:
        folder: The folder.
        split: The part.
        named: As :func:`understand` takes it.
        known: Classes of the training images, where they are known.

    Raises:
        LayoutError: It has neither class folders nor a table.
    """
    if named:
        return Layout((FolderSource(folder, split),))
    inner, entered = _unwrapped(folder, known, is_part=True)
    notes = () if entered is None else (f"the images are in {folder.name}/{entered}/: it is entered, and is no class",)
    classes = [child for child in walk.subfolders(inner) if _is_full(child)]
    if classes:
        return Layout(
            tuple(FolderSource(child, split, child.name, (folder.parent, folder, inner)) for child in classes), notes
        )
    tables = _tables(inner)
    if len(tables) == 1:
        return Layout((FolderSource(tables[0], split),), notes)
    raise LayoutError(
        f"{folder.name}/ must have class folders inside, or one table with labels. Received: "
        f"{len(tables)} tables and images beside each other. {_ways_out(inner)}"
    )


def _parts(root: Path, parts: dict[Path, str], others: list[Path], named: bool) -> Layout | None:
    """Returns the layout where folders are the parts of a split, and ``None`` where they are classes."""
    inside = {folder: _classes_inside(folder) for folder in parts}
    nested = [folder for folder in parts if inside[folder]]
    tabled = [folder for folder in parts if not inside[folder] and len(_tables(folder)) == 1]
    kinds = set(parts.values())
    if not parts:
        return None
    if not nested and not tabled:
        return _flat_parts(root, parts, others, named)
    if "train" not in {parts[folder] for folder in (*nested, *tabled)}:
        if others:
            return None
        if len(parts) > len(nested) + len(tabled) and "train" in kinds:
            raise LayoutError(_no_labels(root, [folder for folder in parts if parts[folder] == "train"]))
    elif others and len(parts) == 1:
        if named:
            return None
        raise LayoutError(
            f"source must be {LAYOUTS}. Received: {nested[0].name if nested else tabled[0].name}/ with folders inside, "
            f"which may be a part or a class, beside {some([path.name for path in others])}. Rename it if it is a "
            "class, name the parts (--train, --test) or move the others away if it holds the classes."
        )
    warnings = []
    if others:
        warnings.append(f"folders beside train/ val/ test/ are left out: {some([path.name for path in others])}")
    read = sorted((*nested, *tabled))
    if named:
        read = sorted(parts)
    flat = [folder.name for folder in parts if folder not in read]
    if flat:
        warnings.append(f"folders without class folders inside are left out: {some(flat)}")
    known: list[str] = []
    for folder in read:
        if parts[folder] == "train" and folder in nested:
            known = [child.name for child in _classes_inside(folder)]
    found = [part(folder, parts[folder], named=named, known=known) for folder in read]
    unusual = [folder for folder in read if folder.name.lower() not in ("train", "val", "valid", "validation", "test")]
    notes = [f"{folder.name}/ is read as the {parts[folder]} part (--train, --val, --test)" for folder in unusual]
    notes += [f"labels of {folder.name}/ are read from {_tables(folder)[0].name}" for folder in tabled if not named]
    notes += [note for one in found for note in one.notes]
    return Layout(tuple(source for one in found for source in one.sources), tuple(notes), tuple(warnings))


def _flat_parts(root: Path, parts: dict[Path, str], others: list[Path], named: bool) -> Layout | None:
    """Says what folders named like parts are that have images in them, and neither class folders nor tables."""
    if named:
        if others and len(parts) == 1:
            return None
        sources = tuple(FolderSource(folder, split) for folder, split in sorted(parts.items()))
        notes = [f"{folder.name}/ is read as the {split} part" for folder, split in sorted(parts.items())]
        left = [f"folders beside the parts are left out: {some([path.name for path in others])}"] if others else []
        return Layout(sources, tuple(notes), tuple(left))
    if len(parts) == 1 and others:
        return None  # a class that happens to be called so
    if others and len(set(parts.values())) == 1:
        return None  # such as test1 and test2 beside others
    raise LayoutError(_no_labels(root, sorted(parts)))


def _flat(root: Path, empty: list[Path], notes: list[str]) -> Layout:
    """Returns the layout of a folder without folders of images: a table in it may say the labels."""
    tables, images = _tables(root), [path for path in walk.files_of(root) if walk.image_or_reason(path) is not None]
    if images and len(tables) == 1:
        return Layout((FolderSource(tables[0]),), (*notes, f"labels are read from {tables[0].name}"))
    if empty and not images:
        return Layout(tuple(FolderSource(folder, label=folder.name, above=(root,)) for folder in empty), tuple(notes))
    hint = f" {_ways_out(root)}" if images else ""
    raise LayoutError(
        f"source must be {LAYOUTS}. Received: {str(root)!r} with no folder inside and {len(images)} loose images.{hint}"
    )


def _no_labels(root: Path, parts: Sequence[Path]) -> str:
    return (
        f"the folders {some([folder.name for folder in parts])} are parts of a split and no classes, and there are no "
        f"class folders inside. {_ways_out(_telling(parts), root)}"
    )


def _telling(parts: Sequence[Path]) -> Path:
    """Returns the folder whose file names seem to say labels, otherwise the first."""
    return next((folder for folder in parts if suggested(_example_names(folder))), parts[0])


def _example_names(folder: Path) -> list[str]:
    """Returns names of images from all over a folder."""
    names = [path.name for path in walk.files_of(folder) if walk.is_image_name(path)]
    return names[:: max(1, len(names) // _EXAMPLES)]


def _ways_out(folder: Path, root: Path | None = None) -> str:
    """Returns how labels can be given for images that lie beside each other."""
    ways = []
    tables = [*(_tables(root) if root is not None else []), *_tables(folder)]
    tables.sort(key=lambda path: (part_of(path.stem) != "train", "label" not in path.stem.lower()))
    if tables:
        ways.append(f"pass the table that holds the labels, such as {tables[0].name}")
    names = _example_names(folder)
    pattern = suggested(names)
    example = f" ({names[0]})" if names else ""
    ways.append(f"if the labels are in the file names{example}, pass --label-from '{pattern or '{label}_*'}'")
    ways.append("otherwise make a folder for each class")
    text = "; ".join(ways)
    return f"{text[0].upper()}{text[1:]}."


def suggested(names: Sequence[str]) -> str:
    """Returns the pattern that finds at least two labels, each several times, in file names; empty without one."""
    for pattern in ("{label}.{number}.*", "{label}_{number}.*", "{label}-{number}.*", "{label}{number}.*",
                    "{number}_{label}.*", "{label}_*", "{label}-*"):  # fmt: skip
        rule = compile_pattern(pattern)
        found = [match["label"] for name in names if (match := rule.fullmatch(name))]
        kinds = set(found)
        if len(found) >= 0.9 * len(names) and 2 <= len(kinds) <= max(2, len(names) // 2):
            return pattern
    return ""


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Returns the rule that finds labels in file names.

    Args:
        pattern: ``{label}``, and perhaps ``{split}`` and ``{group}``, where they stand in the name; ``{number}`` for
            digits; ``?`` for one character and ``*`` for any number, where ``*`` takes as many as it can and
            ``{label}`` as few. A pattern with ``/`` takes in as many folders above the file.

    Raises:
        DataError: It has no ``{label}``, or something else in braces.

    Example:
        >>> compile_pattern("{label}_{number}.jpg").fullmatch("great_dane_12.jpg")["label"]
        'great_dane'
    """
    pieces = {"{label}": r"(?P<label>[^/]+?)", "{split}": r"(?P<split>[^/]+?)", "{group}": r"(?P<group>[^/]+?)"}
    pieces |= {"{number}": r"\d+", "*": r"[^/]*", "?": r"[^/]"}
    parts = re.split(r"(\{[^}]*\}|\*|\?)", pattern)
    unknown = [part for part in parts if part.startswith("{") and part not in pieces]
    if pattern.count("{label}") != 1 or unknown or any(pattern.count(name) > 1 for name in ("{split}", "{group}")):
        raise DataError(
            "label_from must have {label} once, and may have {split}, {group}, {number}, * and ?, such as "
            f"'{{label}}_{{number}}.*'. Received: {pattern!r}."
        )
    return re.compile("".join(pieces.get(part, re.escape(part)) for part in parts), re.DOTALL)


def named_by(path: Path, rule: re.Pattern[str], folders: int) -> re.Match[str] | None:
    """Returns what a pattern finds in a file's name.

    Args:
        path: The file.
        rule: Of :func:`compile_pattern`.
        folders: How many folders above the file the pattern takes in.
    """
    return rule.fullmatch("/".join(path.parts[-folders - 1 :]))


def _folds(folders: Sequence[Path]) -> str:
    names = [folder.name for folder in folders]
    return (
        f"the folders {some(names)} are folds of a cross-validation and no classes. Say which of them is for "
        f"testing, such as --test {names[-1]}: the others are then for training."
    )


def _parts_in_names(folders: Sequence[Path]) -> str:
    """Returns why folders such as cat_train and cat_test are refused, or an empty string."""
    found = [{_WORDS[word] for word in _words(folder.name) if word in _WORDS} for folder in folders]
    if len(folders) < 2 or not all(len(parts) == 1 for parts in found) or len({min(parts) for parts in found}) < 2:
        return ""
    return (
        f"each of the folders {some([folder.name for folder in folders])} names a part of a split, so they may not be "
        "classes as they are. Move them to train/CLASS and test/CLASS, or say where class and part stand with "
        "--label-from, such as --label-from '{label}_{split}/*'."
    )


def _parts_below(root: Path, folders: Sequence[Path]) -> Layout | None:
    """Returns the layout of classes that have parts inside: cat/train, cat/test, dog/train, dog/test."""
    below = {folder: _classes_inside(folder, entering=False) for folder in folders}
    names = {child.name for children in below.values() for child in children}
    parts = {name: part_of(name) for name in names}
    if len(folders) < 2 or len(set(parts.values())) < 2 or None in parts.values() or not all(below.values()):
        return None
    sources = [
        FolderSource(child, parts[child.name], folder.name, (root, folder))
        for folder in folders
        for child in below[folder]
    ]
    note = f"each class folder has the parts {some(sorted(names))} inside: they are read as a split"
    return Layout(tuple(sources), (note,))


def _same_below(folders: Sequence[Path]) -> str:
    """Returns why folders that all have the same folders inside are refused, or an empty string."""
    below = [{child.name for child in _classes_inside(folder, entering=False)} for folder in folders]
    if len(folders) < 2 or not all(below) or any(walk.has_images(folder) for folder in folders):
        return ""
    everything = set().union(*below)
    shared = {name for name in everything if sum(name in names for names in below) > 1}
    if len(shared) < 2 or 2 * len(shared) < len(everything):
        return ""
    inner, outer = sorted(shared), [folder.name for folder in folders]
    if all(is_fold(name) for name in outer):
        return _folds(folders)
    return (
        f"each of the folders {some(outer)} has the same folders inside ({some(inner)}), so either may be the classes. "
        "Say which: --label-from '{label}/*' takes the inner ones, --label-from '{label}/*/*' the outer ones."
    )


def _unwrapped(root: Path, known: Sequence[str] = (), *, is_part: bool = False) -> tuple[Path, str | None]:
    """Returns the folder that a chain of single folders leads to, and its name below the first one.

    A single folder is entered where several folders with images are inside: it is a wrapper, and not a class or part.

    Args:
        root: Where the chain begins.
        known: Classes; a folder called so is one.
        is_part: Whether it is the folder of a part, in which another called so is a wrapper.
    """
    here, best = root, root
    for _ in range(_MOST_WRAPPERS):
        full = [folder for folder in _folders_in(here) if _is_full(folder)]
        if len(full) != 1 or walk.has_images(here) or full[0].name in known:
            break
        if not is_part and part_of(full[0].name) is not None:
            break  # one part alone, such as test/
        here = full[0]
        inner = [folder for folder in _folders_in(here) if _is_full(folder)]
        if len(inner) > 1 or (inner and part_of(inner[0].name) is not None):
            best = here
            if len(inner) > 1:
                break
        elif len(_tables(here)) == 1 and not inner:
            best = here
    return best, None if best == root else os.path.relpath(best, root)


def _classes_inside(folder: Path, *, entering: bool = True) -> list[Path]:
    """Returns the folders with images inside a folder, past wrappers."""
    inner = _unwrapped(folder, is_part=True)[0] if entering else folder
    found = [child for child in walk.subfolders(inner) if _is_full(child)]
    return [] if entering and found and all(_is_no_class(child) for child in found) else found


def _is_no_class(folder: Path) -> bool:
    """Says whether a folder with images in it is called like something else than a class: images, masks, test."""
    is_called_so = folder.name.lower() in _NO_CLASSES or part_of(folder.name) is not None
    return is_called_so and walk.has_images(folder)


def _folders_in(folder: Path) -> list[Path]:
    try:
        return walk.subfolders(folder)
    except DataError:
        return []


def _is_full(folder: Path) -> bool:
    """Says whether a folder, or link to one, holds images, or is one that cannot be read and must be listed."""
    return walk.has_images(folder) or any(True for _ in walk.Walk(looked_into=_LOOKED_INTO).images(folder))


def _tables(folder: Path) -> list[Path]:
    files = walk.files_of(folder)
    text = [path for path in files if path.suffix.lower() in _TEXT_TABLES]
    return text or [path for path in files if path.suffix.lower() in TABLES]


def some(names: Sequence[str]) -> str:
    """Returns up to eight names as a text."""
    shown = ", ".join(names[:8])
    return shown if len(names) <= 8 else f"{shown} and {len(names) - 8} more"
