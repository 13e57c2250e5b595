"""The kinds of things that resfit keeps on a machine: where, what they are, what can be wrong with them, who uses them.

Everything of resfit's own lies under one folder (:func:`resfit.storage.locks.cache_root`), a subfolder a kind. Two more
kinds
are shared with the libraries that resfit stands in for.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import time
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from resfit.data import remote
from resfit.engines import compiled, speed
from resfit.errors import CheckpointError, DownloadError
from resfit.features import store as features
from resfit.storage.cache import KINDS, CacheEntry, CacheKind, faults, find, prune, register
from resfit.weights import download, fetch, registry, resolve, tfhub

__all__ = ["KINDS", "faults", "find", "prune"]

_MOST_JSON = 10_000_000
_ENTRY = re.compile(r".+-[0-9a-f]{12}")
#: In the cache of TensorFlow Hub's modules: name (of the module, in a group) -> what it is, and its state.
_MODULES = (
    (re.compile(r"([0-9a-f]{40})"), "SavedModel", ""),
    (re.compile(r"\.([0-9a-f]{40})\.tar\.gz\.part"), "a download", "partial"),
    (re.compile(r"([0-9a-f]{40})\.\w+\.tmp"), "what an interrupted download left", "leftover"),  # of tensorflow_hub
)
#: Seconds after which nobody who downloads with tensorflow_hub can still be at it: it gives up on others after 600.
_LONGEST_SILENCE = 86400


# ---- who uses it


@contextlib.contextmanager
def _module_unused(path: Path) -> Iterator[bool]:
    """As :func:`_download_unused`, for the cache that ``tensorflow_hub`` writes to as well."""
    folder = _module(path)
    with _download_unused(folder) as free:
        # tensorflow_hub's own lock is a file that stays where its process was killed
        yield free and _changed(folder.with_name(f"{folder.name}.lock")) < time.time() - _LONGEST_SILENCE


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


def _item(kind: str, path: Path, what: object, source: object = "", used: float = 0.0, **more: Any) -> CacheEntry:
    return CacheEntry(kind, path, str(what or path.name), str(source or ""), 0, used, **more)


# ---- what is an entry of each kind, and what can be wrong with it


def _download_item(path: Path) -> CacheEntry | None:
    if not path.is_dir() or not (_ENTRY.fullmatch(path.name) or (path / resolve.ORIGIN).is_file()):
        return None
    origin = path / resolve.ORIGIN
    facts = _facts(origin)
    what = path.name.rpartition("-")[0]
    state = "" if origin.is_file() else "partial"
    return _item("weights", path, what, facts.get("source"), _changed(origin), state=state)


def _download_faults(item: CacheEntry) -> list[str]:
    noted = _facts(item.path / resolve.ORIGIN).get("files")
    if not isinstance(noted, dict) or not noted:
        return [f"{resolve.ORIGIN} must list the files"]
    found = []
    for name, facts in noted.items():
        path = item.path / name
        if ".." in Path(name).parts or Path(name).is_absolute() or path.is_symlink():
            found.append(f"{name} must be a file in the folder")
        elif fault := download.Expected(int(facts["size"]), {"sha256": facts["sha256"]}).fault(path):
            found.append(f"{name}: {fault}")
    return found


def _noted_item(kind: str, path: Path, note: str, *names: str) -> CacheEntry | None:
    """An entry with a file in it that says, under these names, what it is, and whose date when it was used."""
    about = path / note
    if not about.is_file():
        return None
    facts = _facts(about)
    return _item(kind, path, _of(facts, *names), "", _changed(about), about=facts)


def _of(facts: Mapping[str, Any], *names: str) -> str:
    return " ".join(str(facts[name]) for name in names if isinstance(facts.get(name), str) and facts[name])


def _pixels_item(path: Path) -> CacheEntry | None:
    if (path / "store.json").is_file():
        return _item("pixels", path, "images for pre-training", "", _changed(path / "store.json"))
    if not (path / "rows.bin").is_file():
        return None
    facts = _facts(path / "about.json")
    shape = "x".join(str(side) for side in facts.get("shape", ()) if isinstance(side, int))
    return _item("pixels", path, f"images {shape}", "", _changed(path / "rows.bin"), about=facts)


def _pixels_faults(item: CacheEntry) -> list[str]:
    import numpy as np

    if (item.path / "store.json").is_file():
        images = np.load(item.path / "images.npy", mmap_mode="r", allow_pickle=False)  # refuses a file cut short
        labels = np.load(item.path / "labels.npy", allow_pickle=False)
        return [] if len(images) == len(labels) else [f"{len(images)} images and {len(labels)} labels"]
    facts = _facts(item.path / "about.json")
    row, size = math.prod(facts["shape"]) * np.dtype(facts["dtype"]).itemsize, (item.path / "rows.bin").stat().st_size
    return [f"rows.bin has {size} bytes, more than its images"] if size > row * facts["images"] else []


def _run_item(path: Path) -> CacheEntry | None:
    if not path.is_dir() or not re.fullmatch(r"[0-9a-f]{24}", path.name):
        return None
    return _item("runs", path, "an interrupted fine-tuning" if [*path.glob("*.npz")] else "a finished fine-tuning")


def _run_faults(item: CacheEntry) -> list[str]:
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


def _timing_item(kind: str, path: Path, *names: str) -> CacheEntry | None:
    if path.suffix != ".json":
        return None
    facts = _facts(path)
    return _item(kind, path, _of(facts, *names), about={"seconds": facts.get("seconds")})


def _timing_faults(item: CacheEntry) -> list[str]:
    seconds = item.about.get("seconds")
    return [] if isinstance(seconds, float) and seconds > 0 else ["it must state seconds"]


def _modules() -> Path:
    try:
        return tfhub.cache_folder()
    except tfhub.HandleError:  # on another machine, or somebody else's
        return Path(os.devnull)


def _module(path: Path) -> Path:
    """Returns the folder of the module that a path in the cache of modules belongs to."""
    found = next((match for pattern, _, _ in _MODULES if (match := pattern.fullmatch(path.name))), None)
    return path.with_name(found[1]) if found else path


def _descriptor(path: Path) -> Path:
    return path.with_name(f"{path.name}.descriptor.txt")


def _module_item(path: Path) -> CacheEntry | None:
    found = next(((what, state) for pattern, what, state in _MODULES if pattern.fullmatch(path.name)), None)
    if found is None or path.is_dir() == (found[1] == "partial"):
        return None
    what, state = found
    if state:
        return _item("hub", path, what, state=state)
    try:
        text = _descriptor(path).read_text("utf-8", "replace")[:10_000]
    except OSError:
        text = ""
    source = re.search(r"^Module: (.+)$", text, re.MULTILINE)
    return _item("hub", path, what, source[1].strip() if source else "", _changed(_descriptor(path)))


def _module_beside(path: Path) -> list[Path]:
    if path == _module(path):
        return [_descriptor(path), path.with_name(f"{path.name}.lock")]
    return [path.with_name(f"{path.name}.json")]  # of a download: where it comes from


def _module_faults(item: CacheEntry) -> list[str]:
    from resfit.weights.formats import saved_model, tf_bundle

    folder = tfhub.module_in(item.path)
    found = [f"{name} is not there, or cut short" for name in saved_model.lost(folder)]
    index = folder / "variables" / "variables.index"
    if not found and index.is_file():
        try:
            tf_bundle.read_bundle(index)  # compares checksums
        except CheckpointError as error:
            found.append(str(error))
    return found


def _keras_item(path: Path) -> CacheEntry | None:
    known = _keras_files().get(path.name)
    if known is None or not path.is_file():
        return None
    about = path.stat()
    # what Keras keeps is not marked when it is used
    return _item("keras", path, path.name, known[0], max(about.st_atime, about.st_mtime))


def _keras_faults(item: CacheEntry) -> list[str]:
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


for _kind in (
    CacheKind("weights", _download_item, _download_faults),
    CacheKind(
        "features",
        lambda path: _noted_item("features", path, features.ABOUT, "name", "view", "precision", "dtype"),
        lambda item: features.faults(item.path),
    ),
    CacheKind(
        "engines",
        lambda path: _noted_item("engines", path, compiled.ABOUT, "name", "engine", "precision"),
        lambda item: compiled.faults(item.path),
        beside=lambda path: [path.with_suffix(".lock")],
        elsewhere=compiled.root,
    ),
    CacheKind("pixels", _pixels_item, _pixels_faults),
    CacheKind(
        remote.KIND,
        lambda path: _noted_item(remote.KIND, path, remote.ABOUT, "source"),
        lambda item: remote.faults(item.path),
    ),
    CacheKind("runs", _run_item, _run_faults),
    CacheKind(
        "latency",
        lambda path: _timing_item("latency", path, "architecture", "engine"),
        _timing_faults,
        _always_unused,
    ),
    CacheKind(
        speed.FOLDER,
        lambda path: _timing_item(speed.FOLDER, path, "name", "what", "device", "precision"),
        _timing_faults,
        _always_unused,
    ),
    CacheKind(
        "digests",
        lambda path: _noted_item("digests", path, features.ABOUT, "name"),
        lambda item: features.faults(item.path),
    ),
    CacheKind(
        "hub",
        _module_item,
        _module_faults,
        _module_unused,
        beside=_module_beside,
        elsewhere=lambda cache: _modules(),
        shared=True,
    ),
    CacheKind(
        "keras",
        _keras_item,
        _keras_faults,
        _download_unused,
        elsewhere=lambda cache: fetch.keras_cache(),
        shared=True,
    ),
):
    register(_kind)
