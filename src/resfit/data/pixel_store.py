"""Images decoded once, to one memory-mapped array of bytes: what training from scratch reads in every epoch."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np

from resfit import processors
from resfit.data.decode import decode_image, read_file
from resfit.errors import DataError, ImageError
from resfit.preprocessing import InputSpec
from resfit.storage.locks import USERS, cache_root, keep, report_unusable, scratch

_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff"}
_LARGEST_FILE = 64 * 2**20
_MOST_PIXELS = 50_000_000

_PARTS = ("store.json", "images.npy", "labels.npy")


@dataclasses.dataclass(frozen=True)
class PixelStore:
    """Decoded images of one size.

    Attributes:
        images: uint8 array ``(n, size, size, 3)``, memory-mapped; float32 if one is of more than eight bits.
        labels: int64 array ``(n,)``, indices into ``classes``.
        classes: Names of the classes, sorted.
        skipped: Pairs of a name and the reason why it could not be read.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)


def open_store(source: str | os.PathLike[str], size: int, *, folder: Path | None = None) -> PixelStore:
    """Opens the decoded images of a source, and decodes them first if nobody has.

    Args:
        source: A folder of class folders, or a tar archive of one. The class of an image is the folder that holds
            it. An archive is read as a stream; nothing of it is written but pixels.
        size: Height and width of the stored images in pixels; others are resized to it, whatever their ratio.
        folder: Where stores are kept. Default: ``pixels`` in the cache.

    Returns:
        The store; memory-mapped, so that opening it costs nothing.

    Raises:
        DataError: The source does not exist, is no archive, or holds no readable image.
    """
    source = Path(source)
    if not source.exists():
        raise DataError(f"source must be a folder or a tar archive. Received: {str(source)!r}, which does not exist.")
    key = _key(source, size)
    root = (folder or cache_root() / "pixels") / key
    if not all((root / name).is_file() for name in _PARTS):
        try:
            _write(source, size, root)
        except OSError as error:
            if folder is not None:
                raise
            report_unusable(cache_root(), error)
            with scratch() as temporary:  # an open file stays readable when its name is gone
                _write(source, size, temporary / key)
                return _opened(temporary / key)
    keep(root / USERS)
    return _opened(root)


def _opened(root: Path) -> PixelStore:
    """Opens a store that is whole."""
    with contextlib.suppress(OSError):
        os.utime(root / "store.json")
    facts = json.loads((root / "store.json").read_text("utf-8"))
    return PixelStore(
        images=np.load(root / "images.npy", mmap_mode="r"),
        labels=np.load(root / "labels.npy"),
        classes=tuple(facts["classes"]),
        skipped=tuple((name, reason) for name, reason in facts["skipped"]),
    )


def _key(source: Path, size: int) -> str:
    digest = hashlib.sha256(f"pixels-2:{size}".encode())
    files = sorted(_files(source)) if source.is_dir() else [source]
    for path in files:
        stat = path.stat()
        name = path.relative_to(source).as_posix() if source.is_dir() else path.name
        digest.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:24]


def _files(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            if path.suffix.lower() in _SUFFIXES and path.is_file():
                yield path


def _encoded(source: Path) -> Iterator[tuple[str, str, bytes | ImageError]]:
    """Yields class, name and bytes of every image file in a class folder, or why it has none."""
    if source.is_dir():
        for path in sorted(_files(source)):
            if path.parent != source:
                yield path.parent.name, path.relative_to(source).as_posix(), _read(path)
        return
    try:
        with tarfile.open(source, "r|*") as archive:
            for member in archive:
                inner = PurePosixPath(member.name)
                if not member.isfile() or inner.suffix.lower() not in _SUFFIXES or inner.name.startswith("."):
                    continue
                if not inner.parent.name:
                    continue
                stream = archive.extractfile(member) if member.size <= _LARGEST_FILE else None
                data = stream.read() if stream else ImageError(f"{member.size} bytes are too many")
                yield inner.parent.name, member.name, data
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"{source.name} must be a complete tar archive. Received: {error}.") from error


def _read(path: Path) -> bytes | ImageError:
    try:
        return read_file(path)
    except ImageError as error:
        return error


def _decode(data: bytes | ImageError, contract: InputSpec) -> np.ndarray:
    if isinstance(data, ImageError):
        raise data
    return decode_image(data, contract, max_pixels=_MOST_PIXELS)


def _write(source: Path, size: int, root: Path) -> None:
    """Decodes everything beside the final place and moves it there when it is whole."""
    from numpy.lib.format import write_array_header_2_0

    root.parent.mkdir(parents=True, exist_ok=True)
    contract = InputSpec(size=(size, size), resize_mode="squash", interpolation="bicubic")
    names: list[str] = []
    skipped: list[tuple[str, str]] = []
    with tempfile.TemporaryDirectory(prefix=f".{root.name}.", dir=root.parent) as temporary:
        work = Path(temporary)
        with (
            open(work / "pixels", "w+b") as pixels,
            concurrent.futures.ThreadPoolExecutor(processors.available()) as pool,
        ):
            kind: np.dtype[Any] = np.dtype("u1")
            for window in _windows(_encoded(source), 64):
                futures = [pool.submit(_decode, data, contract) for _, _, data in window]
                for (label, name, _), future in zip(window, futures, strict=True):
                    try:
                        image = future.result()
                        if image.dtype.kind == "f" and kind.itemsize == 1:
                            kind = np.dtype("<f4")
                            _widen(pixels, work / "wider")
                        pixels.write(image.astype(kind, copy=False).tobytes())
                        names.append(label)
                    except ImageError as error:
                        skipped.append((name, str(error)))
        if not names:
            raise DataError(f"{source.name} must hold readable images in class folders. Received: none.")
        classes = sorted(set(names))
        index = {name: number for number, name in enumerate(classes)}
        done = work / "done"
        done.mkdir()
        with open(done / "images.npy", "wb") as target, open(work / "pixels", "rb") as pixels:
            shape = (len(names), size, size, 3)
            write_array_header_2_0(target, {"descr": kind.str, "fortran_order": False, "shape": shape})
            while chunk := pixels.read(2**24):
                target.write(chunk)
            target.flush()
            os.fsync(target.fileno())
        np.save(done / "labels.npy", np.array([index[name] for name in names], np.int64))
        facts = {"classes": classes, "skipped": skipped, "size": size}
        (done / "store.json").write_text(json.dumps(facts), "utf-8")
        if root.exists() and not all((root / name).is_file() for name in _PARTS):
            shutil.rmtree(root)  # somebody took a part away
        try:
            os.replace(done, root)
        except OSError:
            if not (root / "store.json").is_file():  # another process was first, or the place is not ours
                raise


def _widen(pixels: BinaryIO, scratch: Path) -> None:
    """Turns a file of bytes into one of float32: the first image of more than eight bits has come."""
    pixels.seek(0)
    with open(scratch, "w+b") as wider:
        while chunk := pixels.read(2**22):
            wider.write(np.frombuffer(chunk, np.uint8).astype("<f4").tobytes())
        wider.seek(0)
        pixels.seek(0)
        shutil.copyfileobj(wider, pixels)
    scratch.unlink()


def _windows(
    items: Iterator[tuple[str, str, bytes | ImageError]], length: int
) -> Iterator[list[tuple[str, str, bytes | ImageError]]]:
    window: list[tuple[str, str, bytes | ImageError]] = []
    for item in items:
        window.append(item)
        if len(window) == length:
            yield window
            window = []
    if window:
        yield window
