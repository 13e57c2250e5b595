"""What a fit leaves in a classifier of its training images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from resfit import artifact
from resfit.data.thumbnails import thumbnails
from resfit.evaluation import reference_images as kept_images
from resfit.evaluation.ood import fit_unlike
from resfit.features.digests import digest_files
from resfit.features.records import Thumbnails
from resfit.storage.locks import folder_of, is_writable


def attachments(
    features: Callable[[np.ndarray], np.ndarray],
    targets: np.ndarray,
    paths: Sequence[Path],
    train: np.ndarray,
    *,
    held_out: np.ndarray | None,
    logits: np.ndarray | None,
    multilabel: bool,
    references: bool,
    cache: bool | str | Path,
    sampling_order: np.ndarray,
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
        multilabel: Whether an image may have several labels.
        references: Whether images may be kept; statistics of their features always are.
        cache: As :func:`resfit.fit` takes it.
        sampling_order: When the turn of each image comes to be kept, ``n`` different numbers.
        seed: Of what is fitted.
    """
    from threadpoolctl import threadpool_limits

    numbers = np.full(len(targets), -1) if multilabel else targets.argmax(axis=1)
    sample = features(train[:1])
    chosen = train[kept_images.choose(numbers[train], sample.shape[1], sampling_order[train])]
    files: dict[str, bytes] = {}
    rows, bank = features(chosen), None
    if references:
        root = folder_of(cache)
        root = root if root is not None and is_writable(root) else None
        own = [paths[position] for position in chosen]
        digests = [entry.digest for entry in digest_files(own, root)]
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
            multilabel=multilabel,
            seed=seed,
        )
    files[artifact.UNLIKE] = found.to_bytes()
    return files


def _kept_thumbnails(paths: Sequence[Path], digests: Sequence[bytes], root: Path) -> list[bytes]:
    """Returns thumbnails of images; those that were made before are not decoded again."""
    store = Thumbnails(root)
    readable = list(dict.fromkeys(digest for digest in digests if digest))
    store.drop_damaged(readable)
    known = [digest for digest, there in zip(readable, store.present(readable), strict=True) if there]
    made = dict(zip(known, store.rows(known), strict=True))
    missing = {digest: path for path, digest in zip(paths, digests, strict=True) if digest and digest not in made}
    for digest, image in zip(missing, thumbnails(list(missing.values())), strict=True):
        made[digest] = image
        store.add(digest, image)
    store.flush()
    return [made.get(digest, b"") for digest in digests]
