"""What a plan lists of a source: one item an image, in a fixed order."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from resfit.data import decode, folders, members, remote, walk
from resfit.data.boxes import BoxSet
from resfit.data.dataset import ImageSet
from resfit.data.medical import frames, privacy
from resfit.errors import DataError, ImageError

#: Requests to an object store that are under way at once, in each worker.
REQUESTS = 16


class ChangedError(DataError):
    """An image is not what the plan listed any more. Its text says which, and what is different."""


class Item(NamedTuple):
    """An image of a plan.

    Attributes:
        id: What results call it: its path, or its pseudonym in a medical set.
        path: Where it is: an absolute path or address (:mod:`resfit.data.members`), or a handle.
        size: Bytes of the file that holds it.
        version: What changes when the file does.
        label: Its class, or its labels or numbers as one text; of a picture with boxes these, as JSON. Empty for none.
        split: The part of a split that the source states for it; empty for none.
        group: The group that must stay together; empty for none.
        reason: Why it cannot be used, where the listing has shown that; empty otherwise.
    """

    id: str
    path: str
    size: int
    version: str
    label: str = ""
    split: str = ""
    group: str = ""
    reason: str = ""


def text_of(path: str | os.PathLike[str]) -> str:
    """Returns a path as text; a name that is no UTF-8 keeps a readable form."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def of_images(images: ImageSet) -> Iterator[Item]:
    """Yields the images of a set that was found on a disk, and after them those that cannot be used.

    Args:
        images: The set.
    """
    for position, path in enumerate(images.paths):
        yield _local(
            images,
            path,
            label=images.label_text(position) if images.values is None else numbers_text(images, position),
            split=images.splits[position] or "",
            group=images.groups[position] or "",
        )
    for item in images.skipped:
        yield _local(images, item.path, reason=item.reason)


def of_boxes(boxes: BoxSet) -> Iterator[Item]:
    """Yields the pictures of a set with true boxes; the label of each is its boxes, as JSON.

    Args:
        boxes: The set.
    """
    for position, path in enumerate(boxes.paths):
        found, labels, crowd = boxes.boxes_of(position)
        true = {"boxes": found.tolist(), "labels": labels.tolist(), "crowd": crowd.astype(int).tolist()}
        known = {"split": boxes.splits[position] or "", "group": boxes.groups[position] or ""}
        yield _item(text_of(path), path, label=json.dumps(true), **known)


def numbers_text(images: ImageSet, position: int) -> str:
    """Returns the numbers of an image as one text that keeps every bit; empty where one is unknown.

    Args:
        images: A set with :attr:`ImageSet.values`.
        position: In ``paths``.
    """
    assert images.values is not None
    values = images.values[position].tolist()
    return "" if any(math.isnan(value) for value in values) else ";".join(map(repr, values))


def _local(images: ImageSet, path: Path, reason: str = "", **known: str) -> Item:
    return _item(text_of(privacy.shown(images, path)), path, reason, **known)


def _item(shown: str, path: Path, reason: str = "", **known: str) -> Item:
    try:
        size, version = _state(path)
    except OSError as error:
        size, version, reason = 0, "", reason or f"cannot be read: {error.strerror or error}"
    return Item(shown, os.path.abspath(path), size, version, reason=reason, **known)


def _state(path: str | os.PathLike[str]) -> tuple[int, str]:
    status = os.stat(members.container(path))
    return status.st_size, str(status.st_mtime_ns)


def of_store(handle: str) -> Iterator[Item]:
    """Yields the images below a place in an object store, folder by folder, as they are listed.

    The first folder below the place is the class; a folder that is named after a part of a split, with folders in it,
    is that part. Nothing is downloaded.

    Args:
        handle: Such as ``"s3://bucket/photos"``.

    Raises:
        DataError: No image is there.
    """
    system, root = remote.file_system(handle)
    scheme, found, others = handle.partition("://")[0], 0, ""
    system.invalidate_cache()
    for folder, _, files in system.walk(root, detail=True):
        inside = [part for part in str(folder).removeprefix(root).split("/") if part]
        split = folders.part_of(inside[0]) if inside else None
        label = next(iter(inside[1:] if split else inside), "")
        for name in sorted(files):
            if not walk.is_image_name(Path(name)) or name.startswith("."):
                others = others or name
                continue
            found += 1
            size, version = remote.version_of(files[name])
            path = f"{scheme}://{folder}/{name}" if scheme != "https" else str(files[name]["name"])
            yield Item(text_of(path), path, size, version, label, split or "")
        system.invalidate_cache(folder)  # a listing of all folders would not fit in memory
    if not found:
        raise DataError(
            f"{handle} must have images, one file each. Received: {f'files such as {others!r}' if others else 'none'}. "
            "Archives and tables are read from a disk: copy them there, and plan the copy."
        )


class Reader:
    """Reads items, each compared with what the plan listed. Several threads may use it."""

    def __init__(self) -> None:
        self._systems: dict[str, Any] = {}

    def read(self, item: Item) -> bytes:
        """Returns the bytes of an image.

        Args:
            item: One without a ``reason``.

        Raises:
            ChangedError: It is another file than the plan listed, or gone.
            ImageError: It cannot be read.
        """
        if remote.handle_of(item.path):
            return self._of_store(item)
        self.check(item)
        data = decode.read_file(item.path)
        if members.member_of(item.path) is None and len(frames.unmarked(data)[0]) != item.size:
            raise ChangedError(f"{item.id} changed while it was read")
        return data

    def check(self, item: Item) -> None:
        """Checks that a file has not changed since the plan was made.

        Raises:
            ChangedError: It is not.
        """
        try:
            size, version = _state(item.path)
        except OSError as error:
            raise ChangedError(f"{item.id} is not there any more ({error.strerror or error})") from error
        if (size, version) != (item.size, item.version):
            change = f"{item.size} bytes then, {size} now" if size != item.size else "its time of change is another"
            raise ChangedError(f"{item.id} changed since the plan: {change}")

    def _of_store(self, item: Item) -> bytes:
        handle = remote.handle_of(item.path)
        scheme = handle.partition("://")[0]
        if scheme not in self._systems:
            self._systems[scheme] = remote.file_system(handle)[0]
        system = self._systems[scheme]
        place = system._strip_protocol(handle)
        if item.size > decode.MAX_BYTES:
            raise ImageError(f"{item.size} bytes, more than the {decode.MAX_BYTES} that are allowed")
        try:
            if not hasattr(system, "call_s3"):
                if remote.version_of(system.info(place)) != (item.size, item.version):
                    raise ChangedError(f"{item.id} changed since the plan")
                return system.cat_file(place)
            bucket, key, _ = system.split_path(place)
            # one request: the store compares the version
            return _body(system, {"Bucket": bucket, "Key": key, "IfMatch": item.version})
        except FileNotFoundError as error:
            raise ChangedError(f"{item.id} is not there any more") from error
        except ChangedError:
            raise
        except OSError as error:
            if "PreconditionFailed" in f"{error!r} {error.__cause__!r}" or "412" in str(error):
                raise ChangedError(f"{item.id} changed since the plan") from error
            raise


def _body(system: Any, request: dict[str, str]) -> bytes:
    from fsspec import asyn

    async def fetch() -> bytes:
        answer = await system._call_s3("get_object", **request)
        async with answer["Body"] as stream:
            return await stream.read()

    return asyn.sync(system.loop, fetch)
