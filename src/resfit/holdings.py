"""The kinds of things that resfit keeps on a machine: where, what they are, what can be wrong with them, who uses them.

Everything of resfit's own lies under one folder (:func:`resfit.cache.cache_root`), a subfolder a kind. Two more kinds
are shared with the libraries that resfit stands in for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import re
import sqlite3
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from resfit.cache import USERS, unused
from resfit.checkpoints import download, handles, registry, store, tfhub
from resfit.engines import compiled
from resfit.errors import CheckpointError, DownloadError
from resfit.transfer import store as features

_MOST_JSON = 10_000_000
_ENTRY = re.compile(r".+-[0-9a-f]{12}")
_MODULE = re.compile(r"[0-9a-f]{40}")


@dataclasses.dataclass(frozen=True)
class Item:
    """One thing that can be deleted and made or brought again.

    Attributes:
        kind: One of :data:`KINDS`.
        path: A folder or file.
        what: What it is, for people.
        source: Where it came from: a handle or address; ``""`` for what was computed here.
        bytes: What it takes on disk.
        used: When it was last used, in seconds since 1970.
        state: ``""``; ``"partial"``, a download that goes on when it is asked for again; ``"leftover"`` of something
            that was interrupted; or ``"link"``, which is not followed.
        about: What is noted beside it.
    """

    kind: str
    path: Path
    what: str
    source: str
    bytes: int
    used: float
    state: str = ""
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON-ready values."""
        return {**dataclasses.asdict(self), "path": os.fspath(self.path), "about": dict(self.about)}


# ---- who uses it


@contextlib.contextmanager
def _folder_unused(path: Path) -> Iterator[bool]:
    """Whether nobody uses a folder of the cache, or writes into it."""
    locks = [path / USERS, *(lock for lock in (path / "lock", path.with_suffix(".lock")) if lock.is_file())]
    with contextlib.ExitStack() as stack:
        yield all([stack.enter_context(unused(lock)) for lock in locks])


@contextlib.contextmanager
def _module_unused(path: Path) -> Iterator[bool]:
    """As :func:`_download_unused`, for the cache that ``tensorflow_hub`` writes to as well."""
    with _download_unused(path) as free:
        yield free and not path.with_name(f"{path.name}.lock").exists()  # tensorflow_hub's own, while it downloads


@contextlib.contextmanager
def _download_unused(path: Path) -> Iterator[bool]:
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(download.locked(path, timeout=0))
        except DownloadError:
            yield False
            return
        yield True


@contextlib.contextmanager
def _table_unused(path: Path) -> Iterator[bool]:
    with contextlib.closing(sqlite3.connect(path, timeout=0)) as table:
        try:
            table.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError:
            yield False
            return
        except sqlite3.DatabaseError:  # damaged: nobody can use it
            pass
        yield True


@contextlib.contextmanager
def _always_unused(_path: Path) -> Iterator[bool]:
    yield True


# ---- what is noted beside it


def _facts(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(path.read_text("utf-8")) if path.stat().st_size <= _MOST_JSON else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _changed(path: Path) -> float:
    """Returns when a mark of use was set, or 0."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _item(kind: str, path: Path, what: object, source: object = "", used: float = 0.0, **more: Any) -> Item:
    return Item(kind, path, str(what or path.name), str(source or ""), 0, used, **more)


# ---- what is an entry of each kind, and what can be wrong with it


def _download_item(path: Path) -> Item | None:
    if not path.is_dir() or not (_ENTRY.fullmatch(path.name) or (path / handles.ORIGIN).is_file()):
        return None
    origin = path / handles.ORIGIN
    facts = _facts(origin)
    what = path.name.rpartition("-")[0]
    state = "" if origin.is_file() else "partial"
    return _item("weights", path, what, facts.get("source"), _changed(origin), state=state)


def _download_faults(item: Item) -> list[str]:
    noted = _facts(item.path / handles.ORIGIN).get("files")
    if not isinstance(noted, dict) or not noted:
        return [f"{handles.ORIGIN} must list the files"]
    found = []
    for name, facts in noted.items():
        path = item.path / name
        if ".." in Path(name).parts or Path(name).is_absolute() or path.is_symlink():
            found.append(f"{name} must be a file in the folder")
        elif fault := download.Expected(int(facts["size"]), {"sha256": facts["sha256"]}).fault(path):
            found.append(f"{name}: {fault}")
    return found


def _features_item(path: Path) -> Item | None:
    about = path / features.ABOUT
    if not about.is_file():
        return None
    facts = _facts(about)
    return _item("features", path, _of(facts, "name", "view", "precision", "dtype"), "", _changed(about), about=facts)


def _engine_item(path: Path) -> Item | None:
    about = path / compiled.ABOUT
    if not about.is_file():
        return None
    facts = _facts(about)
    return _item("engines", path, _of(facts, "name", "engine", "precision"), "", _changed(about), about=facts)


def _of(facts: Mapping[str, Any], *names: str) -> str:
    return " ".join(str(facts[name]) for name in names if isinstance(facts.get(name), str) and facts[name])


def _pixels_item(path: Path) -> Item | None:
    if (path / "store.json").is_file():
        return _item("pixels", path, "images for pre-training", "", _changed(path / "store.json"))
    if not (path / "rows.bin").is_file():
        return None
    facts = _facts(path / "about.json")
    shape = "x".join(str(side) for side in facts.get("shape", ()) if isinstance(side, int))
    return _item("pixels", path, f"images {shape}", "", _changed(path / "rows.bin"), about=facts)


def _pixels_faults(item: Item) -> list[str]:
    import numpy as np

    if (item.path / "store.json").is_file():
        images = np.load(item.path / "images.npy", mmap_mode="r", allow_pickle=False)  # refuses a file cut short
        labels = np.load(item.path / "labels.npy", allow_pickle=False)
        return [] if len(images) == len(labels) else [f"{len(images)} images and {len(labels)} labels"]
    facts = _facts(item.path / "about.json")
    row, size = math.prod(facts["shape"]) * np.dtype(facts["dtype"]).itemsize, (item.path / "rows.bin").stat().st_size
    return [f"rows.bin has {size} bytes, more than its images"] if size > row * facts["images"] else []


def _run_item(path: Path) -> Item | None:
    if not path.is_dir() or not re.fullmatch(r"[0-9a-f]{24}", path.name):
        return None
    return _item("runs", path, "an interrupted fine-tuning" if [*path.glob("*.npz")] else "a finished fine-tuning")


def _run_faults(item: Item) -> list[str]:
    found = []
    for path in sorted(item.path.glob("*.npz")):
        try:
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
        except zipfile.BadZipFile as error:
            damaged = str(error)
        if damaged:
            found.append(f"{path.name} is damaged ({damaged})")
    return found


def _latency_item(path: Path) -> Item | None:
    if path.suffix != ".json":
        return None
    facts = _facts(path)
    return _item("latency", path, _of(facts, "architecture", "engine"), about={"seconds": facts.get("seconds")})


def _latency_faults(item: Item) -> list[str]:
    seconds = item.about.get("seconds")
    return [] if isinstance(seconds, float) and seconds > 0 else ["it must state seconds"]


def _digests_item(path: Path) -> Item | None:
    return _item("digests", path, "digests of image files") if path.is_file() else None


def _digests_faults(item: Item) -> list[str]:
    try:
        with contextlib.closing(sqlite3.connect(f"{item.path.absolute().as_uri()}?mode=ro", uri=True)) as table:
            (said,) = table.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.Error as error:
        said = str(error)
    return [] if said == "ok" else [str(said)]


def _modules() -> Path:
    try:
        return tfhub.cache_folder()
    except tfhub.HandleError:  # on another machine, or somebody else's
        return Path(os.devnull)


def _descriptor(path: Path) -> Path:
    return path.with_name(f"{path.name}.descriptor.txt")


def _module_item(path: Path) -> Item | None:
    if not _MODULE.fullmatch(path.name) or not path.is_dir():
        return None
    try:
        text = _descriptor(path).read_text("utf-8", "replace")[:10_000]
    except OSError:
        text = ""
    source = re.search(r"^Module: (.+)$", text, re.MULTILINE)
    return _item("hub", path, "SavedModel", source[1].strip() if source else "", _changed(_descriptor(path)))


def _module_faults(item: Item) -> list[str]:
    from resfit.checkpoints.readers import saved_model, tf_bundle

    folder = tfhub.module_in(item.path)
    found = [f"{name} is not there, or cut short" for name in saved_model.lost(folder)]
    index = folder / "variables" / "variables.index"
    if not found and index.is_file():
        try:
            tf_bundle.read_bundle(index)  # compares checksums
        except CheckpointError as error:
            found.append(str(error))
    return found


def _keras_item(path: Path) -> Item | None:
    known = _keras_files().get(path.name)
    if known is None or not path.is_file():
        return None
    about = path.stat()
    # what Keras keeps is not marked when it is used
    return _item("keras", path, path.name, known[0], max(about.st_atime, about.st_mtime))


def _keras_faults(item: Item) -> list[str]:
    fault = download.Expected(hashes={"md5": _keras_files()[item.path.name][1]}).fault(item.path)
    return [fault] if fault else []


def _keras_files() -> dict[str, tuple[str, str]]:
    pairs = [
        pair
        for info in registry.rows().values()
        if info.source == registry.KERAS
        for pair in ((info.url, info.md5), (info.url_notop, info.md5_notop))
    ]
    return {url.rpartition("/")[2]: (url, md5) for url, md5 in pairs if url and md5}


# ---- the table


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of what is kept.

    Attributes:
        name: What it is called.
        folder: From the cache folder to where its entries lie, or to its one file.
        describe: From a path there to an item, or to None where it is none of ours.
        faults: What is wrong with an item.
        unused: Whether nobody uses a path, for the length of a ``with`` block.
        beside: Files that go with a path.
        shared: Whether other libraries use it too.
    """

    name: str
    folder: Callable[[Path], Path]
    describe: Callable[[Path], Item | None]
    faults: Callable[[Item], list[str]]
    unused: Callable[[Path], contextlib.AbstractContextManager[bool]] = _folder_unused
    beside: Callable[[Path], Sequence[Path]] = lambda path: ()
    shared: bool = False


#: Every kind by its name.
KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(
            name="weights",
            folder=lambda cache: cache / "weights",
            describe=_download_item,
            faults=_download_faults,
        ),
        Kind(
            name="features",
            folder=lambda cache: cache / "features",
            describe=_features_item,
            faults=lambda item: features.faults(item.path),
        ),
        Kind(
            name="engines",
            folder=compiled.root,
            describe=_engine_item,
            faults=lambda item: compiled.faults(item.path),
            beside=lambda path: [path.with_suffix(".lock")],
        ),
        Kind(
            name="pixels",
            folder=lambda cache: cache / "pixels",
            describe=_pixels_item,
            faults=_pixels_faults,
        ),
        Kind(
            name="runs",
            folder=lambda cache: cache / "runs",
            describe=_run_item,
            faults=_run_faults,
        ),
        Kind(
            name="latency",
            folder=lambda cache: cache / "latency",
            describe=_latency_item,
            faults=_latency_faults,
            unused=_always_unused,
        ),
        Kind(
            name="digests",
            folder=lambda cache: cache / "digests.sqlite",
            describe=_digests_item,
            faults=_digests_faults,
            unused=_table_unused,
            beside=lambda path: [path.with_name(f"{path.name}-journal")],
        ),
        Kind(
            name="hub",
            folder=lambda cache: _modules(),
            describe=_module_item,
            faults=_module_faults,
            unused=_module_unused,
            beside=lambda path: [_descriptor(path)],
            shared=True,
        ),
        Kind(
            name="keras",
            folder=lambda cache: store.keras_cache(),
            describe=_keras_item,
            faults=_keras_faults,
            unused=_download_unused,
            shared=True,
        ),
    )
}
