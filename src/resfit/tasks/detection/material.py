"""The pictures of a fit: which can be used, how they are split, and the maps that a frozen body gives for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from resfit.data import split as splits
from resfit.data.box_views import BoxViews, plain_placement
from resfit.data.boxes import BoxSet
from resfit.data.dataset import Skipped
from resfit.errors import DataError
from resfit.features import extract as feature_store
from resfit.features.progress import Progress
from resfit.preprocessing import InputSpec
from resfit.quality import checking
from resfit.storage.locks import folder_of
from resfit.tasks.detection.feeds import LabelledPictures, ViewTargets
from resfit.tasks.detection.targets import Assigner


@dataclasses.dataclass(frozen=True, eq=False)
class Material:
    """What a fit learns from and is measured on.

    Attributes:
        boxes: The pictures that can be used.
        indices: For each its position among all pictures.
        parts: How they are split.
        digests: For each picture the SHA-256 of its file.
        rows: For each its maps in a row, on disk where there is room.
        same: Pictures that are there more than once.
        skipped: Pictures that could not be used, with the reason.
        computed: Pictures that went through the network now.
        reused: Pictures whose maps were there already.
        engine: What computed them.
    """

    boxes: BoxSet
    indices: np.ndarray
    parts: splits.Split
    digests: tuple[str, ...]
    rows: np.ndarray
    same: checking.Duplicates
    skipped: tuple[Skipped, ...]
    computed: int
    reused: int
    engine: str

    def pictures(self, positions: np.ndarray) -> LabelledPictures:
        """Returns some of the pictures as a training takes them.

        Args:
            positions: Of the pictures.
        """
        some = self.boxes.subset(positions)
        each = [some.boxes_of(image) for image in range(len(some))]
        return LabelledPictures(
            paths=some.paths,
            sizes=some.sizes,
            boxes=tuple(one[0] for one in each),
            labels=tuple(one[1] for one in each),
            crowd=tuple(one[2] for one in each),
            digests=tuple(bytes.fromhex(self.digests[position]) for position in positions.tolist()),
        )


def prepare(
    boxes: BoxSet,
    rows_of: Any,
    *,
    val: float,
    test: float,
    seed: int,
    engine: str,
    cache: bool | str | Path,
    progress: Progress | None,
    dtype: str,
) -> Material:
    """Runs the plain pictures through the frozen body, and splits them.

    Groups, and pictures that are nearly the same, stay together; splits that the data states are kept.

    Args:
        boxes: The pictures.
        rows_of: The frozen body with its maps in a row.
        val: Share of the pictures that choices are made on.
        test: Share that measures.
        seed: Of the split.
        engine: As :func:`resfit.engines.create` takes it.
        cache: Where maps are kept.
        progress: Called as pictures get done.
        dtype: How maps are kept.

    Raises:
        DataError: No picture can be used, or nothing is left to train on.
    """
    found = feature_store.extract(
        rows_of, boxes.image_set(), engine=engine, cache=cache, progress=progress, dtype=dtype, records=True
    )
    kept = boxes.subset(found.indices)
    if not len(kept):
        raise DataError(f"at least one picture must be readable. Received: {len(boxes)}, of which none is.")
    same = checking.duplicates(found.digests, found.records)
    images = checking.group_duplicates(kept.image_set(), same)
    parts = splits.split(images, val=val, test=test, seed=seed)
    if not len(parts.train) or not (np.diff(kept.offsets)[parts.train] > 0).any():
        raise DataError(
            f"training needs pictures with boxes. Received: {len(parts.train)} training pictures, none of them with a "
            "box. Add some, or lower val_share and test_share."
        )
    return Material(
        kept,
        found.indices,
        parts,
        found.digests,
        found.rows,
        same,
        found.skipped,
        found.computed,
        found.reused,
        found.engine,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class StoredViews:
    """The views of the training pictures that are stored, the plain one first.

    Attributes:
        maps: For each view an array ``(n, width)``.
        targets: For each view what its places learn.
    """

    maps: tuple[np.ndarray, ...]
    targets: tuple[ViewTargets, ...]


def stored_views(
    material: Material,
    rows_of: Any,
    contract: InputSpec,
    places: Assigner,
    views: BoxViews | None,
    *,
    engine: str,
    cache: bool | str | Path,
    progress: Progress | None,
    dtype: str,
) -> StoredViews:
    """Computes the maps and targets of the training pictures' views.

    Args:
        material: The pictures.
        rows_of: The frozen body with its maps in a row.
        contract: The input contract.
        places: What its outputs learn.
        views: Changed views; ``None`` for the plain one alone.
        engine: As :func:`resfit.engines.create` takes it.
        cache: Where maps are kept.
        progress: Called as pictures get done.
        dtype: How maps are kept.
    """
    train = material.parts.train
    pictures = material.pictures(train)
    if views is None:
        maps: tuple[np.ndarray, ...] = (_Rows(material.rows, train),)  # type: ignore[assignment]
    else:
        found = feature_store.extract(
            rows_of, pictures.paths, engine=engine, cache=cache, progress=progress, dtype=dtype, views=views
        )
        if len(found.indices) != len(pictures):
            raise DataError("pictures became unreadable while they were being used. Run it again.")
        maps = (found.rows, *found.views)
    targets = []
    for number in range(len(maps)):
        placement = _placing(pictures, contract, views, number)
        targets.append(ViewTargets.of(pictures, places, placement, pictures.most, folder=folder_of(cache)))
    return StoredViews(maps, tuple(targets))


def _placing(
    pictures: LabelledPictures, contract: InputSpec, views: BoxViews | None, number: int
) -> Callable[[int], Any]:
    """For the position of a picture where it is in a view; number 0 is the plain one."""
    size = contract.size
    if number == 0 or views is None:
        return lambda position: plain_placement(pictures.size(position), size)
    return lambda position: views.placement(number - 1, pictures.digests[position], pictures.size(position), size)


class _Rows:
    """Some rows of an array, each read when it is asked for."""

    def __init__(self, array: np.ndarray, rows: np.ndarray):
        self._array, self._rows = array, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: Any) -> np.ndarray:
        return np.asarray(self._array[self._rows[place]])
