"""What a fit leaves in a classifier of its training images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from resfit import artifact
from resfit.cache import cache_root
from resfit.data.thumbnails import SIDE, thumbnails
from resfit.evaluation import references as kept_images
from resfit.evaluation.unlike import fit_unlike
from resfit.transfer.digests import digest_files
from resfit.transfer.store import BYTES, FeatureStore, StoreKey

# of the thumbnails that are kept on disk; raised whenever the same file gives another one
_FORMAT = 1
# Bytes for one of them with its length; the few that are larger are made anew each time.
_ROOM = 6144


def attachments(
    features: Callable[[np.ndarray], np.ndarray],
    targets: np.ndarray,
    paths: Sequence[Path],
    train: np.ndarray,
    *,
    held_out: np.ndarray | None,
    logits: np.ndarray | None,
    several: bool,
    references: bool,
    cache: bool | str | Path,
    seed: int,
) -> dict[str, bytes]:
    """Returns the files of a classifier that hold training images, and what tells images that are unlike them.

    Args:
        features: Computes what the head reads, of images by position.
        targets: Array ``(n, classes)`` of 0 and 1.
        paths: The ``n`` files.
        train: Positions of the training images.
        held_out: Positions of images that the network has not learned from; ``None`` where it learned from none.
        logits: Of images that the head has not learned from.
        several: Whether an image may have several labels.
        references: Whether images may be kept; statistics of their features always are.
        cache: As :func:`resfit.fit` takes it.
        seed: Of the choice.
    """
    from threadpoolctl import threadpool_limits

    numbers = np.full(len(targets), -1) if several else targets.argmax(axis=1)
    sample = features(train[:1])
    chosen = train[kept_images.choose(numbers[train], sample.shape[1], seed=seed)]
    files: dict[str, bytes] = {}
    rows, bank = features(chosen), None
    if references:
        root = None if cache is False else (cache_root() if cache is True else Path(cache))
        own = [paths[position] for position in chosen]
        digests = [entry.digest for entry in digest_files(own, None if root is None else root / "digests.sqlite")]
        images = list(thumbnails(own)) if root is None else _kept_thumbnails(own, digests, root)
        bank = kept_images.make(rows, numbers[chosen], images, [digest.hex() for digest in digests])
        files[artifact.REFERENCES] = bank.to_bytes()
    learned = chosen if held_out is not None else train
    spared = None if held_out is None else features(held_out[: kept_images.MAX_ROWS])
    rows = rows if held_out is not None else features(train)
    with threadpool_limits(1, user_api="blas"):  # threads that wait by spinning cost more than they bring here
        found = fit_unlike(
            rows,
            numbers[learned],
            targets.shape[1],
            references=bank,
            logits=logits,
            held_out=spared,
            several=several,
            seed=seed,
        )
    files[artifact.UNLIKE] = found.to_bytes()
    return files


def _kept_thumbnails(paths: Sequence[Path], digests: Sequence[bytes], root: Path) -> list[bytes]:
    """Returns thumbnails of images; those that were made before are not decoded again."""
    described = {"format": _FORMAT, "name": "thumbnails", "kind": "thumbnails", "side": SIDE}
    store = FeatureStore(root / "features", StoreKey.of(described), _ROOM, BYTES)
    readable = [digest for digest in digests if digest]
    store.drop_damaged(readable)
    known = {digest for digest, place in zip(readable, store.find(readable), strict=True) if place >= 0}
    missing = {digest: path for path, digest in zip(paths, digests, strict=True) if digest and digest not in known}
    made = dict(zip(missing, thumbnails(list(missing.values())), strict=True))
    fitting = [digest for digest, image in made.items() if image and len(image) <= _ROOM - 2]
    if fitting:
        rows = b"".join((len(made[one]).to_bytes(2, "little") + made[one]).ljust(_ROOM, b"\0") for one in fitting)
        store.append(fitting, np.frombuffer(rows, np.uint8).reshape(-1, _ROOM))
    there = [digest for digest in dict.fromkeys(readable) if digest in known]
    for digest, row in zip(there, store.rows(there), strict=True):
        data = row.tobytes()
        made[digest] = data[2 : 2 + int.from_bytes(data[:2], "little")]
    return [made.get(digest, b"") for digest in digests]
