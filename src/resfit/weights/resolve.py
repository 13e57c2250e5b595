"""From a handle to files on this machine: ``hf://``, ``timm://``, ``kaggle://``, ``https://``, ``gs://``, a path.

The hubs' own libraries bring what lies there, into their own caches and with their own credentials, so that nothing is
stored twice. Everything else comes by :mod:`resfit.weights.download` into ``weights`` in resfit's cache: a folder
for each handle, with ``origin.json`` beside the files, which says where they are from and what they should be.
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import hashlib
import json
import logging
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from resfit.errors import ArgumentError, CheckpointError, DownloadError, MissingDependencyError, ResfitError, closest
from resfit.storage import atomic, locks
from resfit.storage.locks import USERS, cache_root, keep
from resfit.weights import archives, download, registry, tfhub
from resfit.weights.formats import base as formats
from resfit.weights.formats import saved_model

#: In an entry of the cache: where it is from, and its files with sizes and SHA-256.
ORIGIN = "origin.json"

_CONTENT = "content"
_MOST_FILES = 1000
_SECONDS = 10.0
_PART = r"[A-Za-z0-9][\w.\-]*"
_TORCH_HOST = "download.pytorch.org"
_TORCH_HASH = re.compile(r"-([0-9a-f]{8,64})\.")

#: Files that say what weights are.
_BESIDE = ("config.json", "preprocessor_config.json", "metadata.json", "preprocessor.json", "task.json")


def resolve(
    source: str | os.PathLike[str], *, size: int | None = None, hashes: Mapping[str, str] | None = None
) -> Path:
    """Returns the file or folder of a handle, bringing it if it is not here.

    Args:
        source: ``hf://ORG/NAME[@REVISION][/FILE]``; ``timm://TAG``;
            ``kaggle://OWNER/MODEL/FRAMEWORK/VARIATION[/VERSION][/FILE]``; ``https://…``, of a file, an archive, or a
            page of these hubs; ``gs://…`` and ``s3://…``, of a file or a folder; ``file://…``; or a path. Of a
            repository with several files, the weights are taken and what says what they are.
        size: Bytes of the file, if they are known.
        hashes: Its hashes, as :class:`resfit.weights.download.Expected` takes them. What has others is refused.

    Returns:
        A path that exists.

    Raises:
        DownloadError: It is not here and cannot be brought. The text says where to put it by hand.
        CheckpointError: There is no such path; or the place has no weights, or several and none is the obvious one; or
            an archive is refused.
        MissingDependencyError: The scheme needs a package that is not installed.
        ArgumentError: The handle is none.

    Example:
        >>> resolve("hf://timm/resnet18.a1_in1k")  # doctest: +SKIP
        PosixPath('/home/me/.cache/huggingface/hub/models--timm--resnet18.a1_in1k/snapshots/…')
    """
    text = os.fspath(source)
    expected = download.Expected(size, dict(hashes or {}))
    scheme, separator, place = text.partition("://")
    if not separator:
        return _of_path(Path(text).expanduser(), expected)
    if scheme.lower() not in _SCHEMES:
        known = ", ".join(f"{name}://" for name in _SCHEMES)
        raise ArgumentError(
            f"a handle must begin with {known}, or be a path. Received: {text!r}.{closest(scheme, _SCHEMES)}"
        )
    try:
        return _SCHEMES[scheme.lower()](f"{scheme.lower()}://{place}", expected)
    except ResfitError:
        raise
    except OSError as error:
        raise DownloadError(f"{text} must be kept in the cache. Received: {error}.") from error
    except ValueError as error:  # such as an address with half a bracket
        raise ArgumentError(f"a handle must be a proper address. Received: {text!r} ({error}).") from error


def weights_root() -> Path:
    """Returns where files from the web are kept. It need not exist yet."""
    return cache_root() / "weights"


def choose(names: Iterable[str], where: str) -> list[str]:
    """Chooses the files of a repository or folder that a network is read from.

    Args:
        names: All of its files, with ``/`` between folders.
        where: What messages call it.

    Returns:
        The weights in one format, safetensors before pickles, and the configuration beside them.

    Raises:
        CheckpointError: There are no weights, or several of which none is the obvious one.
    """
    present = sorted(names)
    beside = [name for name in present if name in _BESIDE]
    kinds = sorted(formats.all_formats(), key=lambda kind: kind.avoided)
    for kind in kinds:
        for leader, rest in kind.layouts:
            if leader in present:
                return [name for name in present if name == leader or re.fullmatch(rest, name) or name in beside]
    for suffix, select in ((suffix, kind.choose) for kind in kinds for suffix in kind.suffixes):
        found = [name for name in present if name.lower().endswith(suffix)]
        if found and select:
            return select(found, present)
        if len(found) == 1:
            return [*beside, *found]
        if found:
            raise CheckpointError(
                f"{where} must hold one network. Received: {', '.join(found[:8])}. Add the one you mean to the handle."
            )
    received = ", ".join(present[:8]) or "nothing"
    raise CheckpointError(f"{where} must hold weights in a format that is known here. Received: {received}.")


# ---- paths


def _of_path(path: Path, expected: download.Expected) -> Path:
    if not path.exists():
        names = registry.rows()
        raise CheckpointError(f"a path must exist. Received: {path}, which does not.{closest(str(path), names)}")
    if path.is_file():
        _check(path, str(path), expected)
        if archives.is_archive(path.name):
            state = path.stat()
            entry = _Entry(f"{path.absolute()}?{state.st_size}&{state.st_mtime_ns}", path.name)
            return _unpacked(entry, lambda: path)
    return path


def _of_file(handle: str, expected: download.Expected) -> Path:
    parts = urlsplit(handle)
    if parts.netloc not in ("", "localhost"):
        raise ArgumentError(f"file:// must lead to this machine, as file:///folder/file. Received: {handle!r}.")
    path = unquote(parts.path)
    return _of_path(Path(path[1:] if re.match(r"/[A-Za-z]:", path) else path), expected)


def _check(path: Path, what: str, expected: download.Expected) -> Path:
    if fault := expected.fault(path) if path.is_file() else "":
        raise DownloadError(f"{what} must be the published file ({expected}). Received: {fault}, at {path}.")
    return path


# ---- the cache


@dataclasses.dataclass(frozen=True)
class _Entry:
    """The place of a handle in resfit's cache."""

    source: str
    name: str

    @property
    def file(self) -> Path:
        """Where its one file is put; the suffix stays."""
        return self.folder / re.sub(r"[^A-Za-z0-9._+-]+", "_", self.name)[-100:]

    @property
    def folder(self) -> Path:
        digest = hashlib.sha256(self.source.encode("utf-8", "surrogateescape")).hexdigest()
        name = f"{re.sub(r'[^A-Za-z0-9.-]+', '_', self.name)[:60]}-{digest[:12]}"
        return weights_root() / name if download.is_offline() else locks.place(weights_root(), name)

    def whole(self, inner: str) -> bool:
        """Whether what the entry should hold is there, by the sizes that it notes."""
        try:
            noted = json.loads((self.folder / ORIGIN).read_bytes())["files"]
            return (self.folder / inner).exists() and all(
                (self.folder / name).stat().st_size == facts["size"] for name, facts in noted.items()
            )
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return False

    def use(self) -> None:
        """Keeps the entry from being pruned as long as this process lives, and notes when it was used."""
        if self.folder.is_dir() or not download.is_offline():
            keep(self.folder / USERS)
        with contextlib.suppress(OSError):
            os.utime(self.folder / ORIGIN)

    def describe(self, inner: str) -> None:
        """Writes where it is from, and the size and SHA-256 of what it holds."""
        root = self.folder / inner
        found = [root] if root.is_file() else sorted(path for path in root.rglob("*") if path.is_file())
        facts = {
            path.relative_to(self.folder).as_posix(): {"size": path.stat().st_size, "sha256": download.digest(path)}
            for path in found
        }
        atomic.write_json(self.folder / ORIGIN, {"source": self.source, "files": facts})


def _unpacked(entry: _Entry, bring: Callable[[], Path]) -> Path:
    """Returns what an archive holds, unpacked into its entry. What is alone in it stands for all.

    Args:
        entry: The entry.
        bring: Returns the archive.
    """
    content = entry.folder / _CONTENT

    def fill() -> None:
        archives.unpack_once(
            content, bring, is_whole=lambda: entry.whole(_CONTENT), describe=lambda: entry.describe(_CONTENT)
        )

    fill()
    entry.use()
    fill()  # it may have been pruned before it was in use
    while len(inside := list(content.iterdir())) == 1:
        content = inside[0]
        if content.is_file():
            break
    return content


# ---- the web


def _of_web(handle: str, expected: download.Expected) -> Path:
    parts = urlsplit(handle)
    host, path = (parts.hostname or "").removeprefix("www."), unquote(parts.path)
    if host in ("huggingface.co", "hf.co") and (place := _hugging_face_place(path)):
        return _of_hugging_face(place, expected)
    if tfhub.tfhub_path(handle):
        return tfhub.fetch(handle)
    if model := tfhub.kaggle_place(handle):
        return _of_kaggle_page(handle, model, expected)
    name = Path(path).name or host
    if host == _TORCH_HOST and not expected.hashes and (digits := _TORCH_HASH.search(name)):
        expected = dataclasses.replace(expected, hashes={"sha256-prefix": digits[1]})  # as torch.hub does
    if expected.hashes and not expected.fault(torch_cache() / name):
        return torch_cache() / name
    # .pth.tar is no tar, and readers go by the suffix
    entry = _Entry(handle, re.sub(r"(\.pth|\.pt)\.tar$", r"\1", name))
    if archives.is_archive(name):
        return _unpacked(entry, lambda: _fetch(handle, entry.file, expected))
    entry.use()
    if (entry.folder / ORIGIN).is_file() and not entry.whole(entry.file.name):  # damaged since it came
        entry.file.unlink(missing_ok=True)
    _fetch(handle, entry.file, expected)
    if not entry.whole(entry.file.name):
        entry.describe(entry.file.name)
    return entry.file


def _fetch(url: str, file: Path, expected: download.Expected) -> Path:
    return download.fetch(url, file, size=expected.size, hashes=expected.hashes, what=file.name)


def torch_cache() -> Path:
    """Returns where torch.hub keeps published weights: in ``$TORCH_HOME``, ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    home = os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "torch"
    return Path(home).expanduser() / "hub" / "checkpoints"


# ---- Hugging Face


def _hugging_face_place(path: str) -> str:
    """Returns the handle of a page of a model at Hugging Face, or ``""``."""
    page = re.fullmatch(rf"/({_PART}/{_PART})(?:/(?:resolve|blob|tree|raw)/([^/]+)(?:/(.+))?)?/?", path)
    if page is None or page[1].startswith(("datasets/", "spaces/", "api/")):
        return ""
    return f"hf://{page[1]}" + (f"@{page[2]}" if page[2] else "") + (f"/{page[3]}" if page[3] else "")


def _of_hugging_face(handle: str, expected: download.Expected) -> Path:
    match = re.fullmatch(rf"hf://({_PART}/{_PART})(?:@([^/]+))?(?:/(.+?))?/?", handle)
    if match is None:
        raise ArgumentError(f"a handle at Hugging Face must be hf://ORG/NAME[@REVISION][/FILE]. Received: {handle!r}.")
    repository, revision, file = match[1], unquote(match[2] or "") or None, match[3]
    try:
        import huggingface_hub as hub
        from huggingface_hub import constants
    except ImportError as error:
        raise MissingDependencyError(
            f'{handle} needs huggingface_hub, which is not installed. Install it with: pip install "resfit[hub]"'
        ) from error

    def bring(*, local: bool) -> Path:
        wanted = [file or "config.json"]  # of what was brought before, whatever else was needed came with it
        if not local:
            # asked first, as the library takes half a minute to see that there is no network
            about = hub.HfApi(library_name="resfit").model_info(repository, revision=revision, timeout=_SECONDS)
            names = [found.rfilename for found in about.siblings or ()]
            wanted = [file] if file else choose(names, handle)
        folder = Path(
            hub.snapshot_download(
                repository,
                revision=revision,
                allow_patterns=[glob.escape(name) for name in wanted],
                local_files_only=local,
                library_name="resfit",
            )
        )
        if file and not (folder / file).is_file():
            raise DownloadError(f"{handle} must be a file of {repository}. Received: no such file, at {page}.")
        if local and not file:
            choose(_names(folder), f"{handle} at {folder}")
        return folder / file if file else folder

    page = f"{constants.ENDPOINT}/{repository}" + (f"/resolve/{revision or 'main'}/{file}" if file else "")
    offline = download.is_offline() or constants.HF_HUB_OFFLINE
    problem: Exception | None = None
    if not offline:
        try:
            return _check(bring(local=False), handle, expected)
        except ResfitError:
            raise
        except Exception as error:  # the hub, its transport and the network have errors of their own
            problem = error
    try:
        return _check(bring(local=True), handle, expected)
    except Exception as error:
        if problem is None:
            raise _absent(handle, page, f"Hugging Face's cache, {constants.HF_HUB_CACHE}", error) from error
        raise DownloadError(
            f"{handle} could not be downloaded from {page}. Received: {_first_line(problem)} A private or gated "
            "repository needs a token: run `hf auth login` or set HF_TOKEN. Or download it by hand and pass its path."
        ) from problem


def _absent(what: str, url: str, place: str, reason: object) -> DownloadError:
    """Returns the error of what would have to be downloaded and must not be."""
    return DownloadError(
        f"{what} must be in {place}, as {download.OFFLINE} or the like is set. Received: {_first_line(reason)} "
        f"Bring it there on a machine that is online, or download it from {url} and pass its path."
    )


def _first_line(error: object) -> str:
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]
    return text if text.endswith(".") else f"{text}."


def _names(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


# ---- timm, Kaggle


def _of_timm(handle: str, expected: download.Expected) -> Path:
    tag = handle.removeprefix("timm://").strip("/")
    row = registry.rows().get(tag)
    known = row is not None and row.source == registry.TIMM
    return resolve(row.url if row is not None and known else f"hf://timm/{tag}", hashes=expected.hashes)


def kaggle_cache() -> Path:
    """Returns where kagglehub keeps models: in ``$KAGGLEHUB_CACHE`` or ``~/.cache/kagglehub``."""
    return Path(os.environ.get("KAGGLEHUB_CACHE") or "~/.cache/kagglehub").expanduser() / "models"


def _of_kaggle_page(handle: str, model: tfhub.KagglePlace, expected: download.Expected) -> Path:
    """Brings a model by its address: one of TensorFlow as the Hub does; others, or where that fails, by kagglehub."""
    by_kagglehub = f"kaggle://{model}"
    variation = str(dataclasses.replace(model, version=""))
    as_module = model.version and model.framework.lower().startswith("tensorflow")
    if not as_module or _kaggle_cached(variation, model.version, None):
        return _of_kaggle(by_kagglehub, expected)
    try:
        return tfhub.fetch(handle)
    except DownloadError as error:  # it is private, or no SavedModel
        with contextlib.suppress(DownloadError, MissingDependencyError):
            return _of_kaggle(by_kagglehub, expected)
        raise error


def _of_kaggle(handle: str, expected: download.Expected) -> Path:
    match = re.fullmatch(rf"kaggle://({_PART}(?:/{_PART}){{3}})(?:/(\d+))?(?:/({_PART}))?/?", handle)
    if match is None:
        raise ArgumentError(
            "a handle at Kaggle must be kaggle://OWNER/MODEL/FRAMEWORK/VARIATION[/VERSION][/FILE]. "
            f"Received: {handle!r}."
        )
    variation, version, file = match[1], match[2] or "", match[3]
    if version and (here := _kaggle_cached(variation, version, file)):
        return _check(here, handle, expected)
    owner, model, framework, name = variation.split("/")
    page = f"https://www.kaggle.com/models/{owner}/{model}/{framework}/{name}"
    if download.is_offline():
        brought = [path.stem for path in (kaggle_cache() / variation).glob("*.complete") if path.stem.isdigit()]
        newest = "" if version else max(brought, key=int, default="")
        if newest and (here := _kaggle_cached(variation, newest, file)):
            return _check(here, handle, expected)
        place = kaggle_cache() / variation / version
        raise _absent(handle, page, f"kagglehub's cache, {place}", "no whole copy there.")
    try:
        import kagglehub
    except ImportError as error:
        raise MissingDependencyError(
            f"{handle} needs kagglehub, which is not installed. Install it with: "
            f'pip install "resfit[hub]", or download it from {page} and pass its folder.'
        ) from error
    try:
        with _told_to_stderr("kagglehub"):
            found = kagglehub.model_download(f"{variation}/{version}".rstrip("/"), path=file)
            if _is_gutted(Path(found)):
                found = kagglehub.model_download(f"{variation}/{version}".rstrip("/"), path=file, force_download=True)
    except Exception as error:  # kagglehub, its transport and its API client each have errors of their own
        raise DownloadError(
            f"{handle} could not be downloaded from {page}. Received: {_first_line(error)} A private or gated model "
            "needs credentials: see kaggle.json in Kaggle's settings. Or download it by hand and pass its folder."
        ) from error
    return _check(Path(found), handle, expected)


@contextlib.contextmanager
def _told_to_stderr(package: str) -> Iterator[None]:
    """Keeps what a package prints and logs away from stdout, where results go."""
    loggers = logging.getLogger(package).handlers
    moved = [each for each in loggers if isinstance(each, logging.StreamHandler) and each.stream is sys.stdout]
    try:
        for handler in moved:
            handler.setStream(sys.stderr)
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        for handler in moved:
            handler.setStream(sys.stdout)


def _kaggle_cached(variation: str, version: str, file: str | None) -> Path | None:
    """Returns what kagglehub, or KerasHub through it, has brought whole."""
    folder = kaggle_cache() / variation
    here = folder / version / (file or "")
    if (folder / f"{version}.complete").exists() and here.exists() and not _is_gutted(here):
        return here
    # KerasHub brings its presets file by file
    needed = (file,) if file else ("config.json", "model.weights.h5", "task.json", "task.weights.h5")
    each = ((folder / version / name, folder / ".complete" / version / f"{name}.complete") for name in needed)
    return here if all(path.exists() and mark.exists() for path, mark in each) else None


def _is_gutted(folder: Path) -> bool:
    """Whether files were cleaned away from a folder that had been brought whole."""
    if not folder.is_dir():
        return False
    is_module = saved_model.has_graph(folder) or (folder / "variables").is_dir()
    return bool(saved_model.lost(folder)) if is_module else not any(folder.iterdir())


# ---- clouds


def _of_cloud(handle: str, expected: download.Expected) -> Path:
    """Brings a file, or the weights of a folder, by fsspec."""
    entry = _Entry(handle, handle.partition("://")[2].strip("/"))
    content = entry.folder / _CONTENT
    entry.use()
    if not entry.whole(_CONTENT):
        if download.is_offline():
            raise _absent(handle, handle, os.fspath(content), "it is not there.")
        with download.locked(content):
            if not entry.whole(_CONTENT):
                _copy_from_cloud(handle, content)
                entry.describe(_CONTENT)
    inside = list(content.iterdir())
    return _check(inside[0] if len(inside) == 1 and inside[0].is_file() else content, handle, expected)


def _copy_from_cloud(handle: str, content: Path) -> None:
    try:
        import fsspec

        system, root = fsspec.core.url_to_fs(handle)
    except (ImportError, ValueError) as error:
        raise MissingDependencyError(
            f"{handle} needs fsspec with its storage back end. Received: {_first_line(error)} Install them with: "
            'pip install "resfit[cloud]"'
        ) from error
    with tempfile.TemporaryDirectory(prefix=".bringing-", dir=content.parent) as temporary:
        work = Path(temporary) / _CONTENT
        try:
            for place, name, size in _files_in_cloud(system, root, handle):
                target = work.joinpath(*archives.parts(name))
                target.parent.mkdir(parents=True, exist_ok=True)
                system.get_file(place, os.fspath(target))
                if target.stat().st_size != size:
                    raise DownloadError(
                        f"{handle}: {name} must have {size} bytes. Received: {target.stat().st_size}. Try again."
                    )
        except ResfitError:
            raise
        except Exception as error:  # each cloud has errors of its own
            raise DownloadError(
                f"{handle} could not be downloaded. Received: {_first_line(error)} Credentials are those of the "
                "cloud's own tools. Or download it by hand and pass its path."
            ) from error
        shutil.rmtree(content, ignore_errors=True)
        os.replace(work, content)


def _files_in_cloud(system: Any, root: str, handle: str) -> list[tuple[str, str, int]]:
    """Returns the place, name and bytes of each file that is needed."""
    if system.isfile(root):
        found = {root.rsplit("/", 1)[-1]: (root, int(system.info(root)["size"]))}
        wanted = list(found)
    else:
        listed = system.find(root, detail=True)
        found = {path.removeprefix(root).strip("/"): (path, int(facts["size"])) for path, facts in listed.items()}
        wanted = choose(found, handle)
    total = sum(found[name][1] for name in wanted)
    if len(wanted) > _MOST_FILES or total > download.MOST_BYTES:
        raise DownloadError(
            f"{handle}: a network may have {_MOST_FILES} files and {download.MOST_BYTES} bytes. "
            f"Received: {len(wanted)} files and {total} bytes."
        )
    return [(found[name][0], name, found[name][1]) for name in wanted]


_SCHEMES: dict[str, Callable[[str, download.Expected], Path]] = {
    "hf": _of_hugging_face,
    "timm": _of_timm,
    "kaggle": _of_kaggle,
    "https": _of_web,
    "http": _of_web,
    "gs": _of_cloud,
    "s3": _of_cloud,
    "file": _of_file,
}
