"""Splits: stratified, whole groups, what the data states is kept."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from resfit.data.dataset import ImageSet
from resfit.data.split import split
from resfit.errors import ArgumentError, DataError


def make(labels, groups=None, splits=None):
    labels = np.asarray(labels)
    count = len(labels)
    return ImageSet(
        root=Path("."),
        paths=tuple(Path(f"{n}.png") for n in range(count)),
        labels=labels,
        classes=tuple(f"c{n}" for n in range(labels.max() + 1)),
        splits=tuple(splits or [None] * count),
        groups=tuple(groups or [None] * count),
    )


def parts(result):
    return {"train": result.train, "val": result.val, "test": result.test}


def test_shares_of_each_class_are_exact():
    images = make(np.repeat([0, 1, 2], [100, 40, 20]))
    result = split(images, val=0.1, test=0.2, seed=3)
    assert np.bincount(images.labels[result.test]).tolist() == [20, 8, 4]
    assert np.bincount(images.labels[result.val]).tolist() == [10, 4, 2]
    assert np.bincount(images.labels[result.train]).tolist() == [70, 28, 14]
    assert sorted(np.concatenate(list(parts(result).values()))) == list(range(160))


def test_seeds_decide():
    images = make(np.repeat([0, 1], 50))
    first, again, other = (split(images, seed=seed).test.tolist() for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_small_classes_are_on_every_side_they_can_be():
    images = make([0] * 30 + [1] * 3 + [2] * 2 + [3])
    result = split(images, val=0.15, test=0.15)
    labels = {name: set(images.labels[rows].tolist()) for name, rows in parts(result).items()}
    assert labels["train"] == {0, 1, 2, 3}
    assert labels["test"] == {0, 1, 2}
    assert labels["val"] == {0, 1}


@pytest.mark.parametrize("seed", range(8))
def test_groups_are_never_torn(seed):
    generator = np.random.default_rng(seed)
    count = int(generator.integers(60, 300))
    groups = [f"g{n}" for n in generator.integers(0, count // int(generator.integers(2, 9)), count)]
    labels = generator.integers(0, 3, count)
    images = make(labels, groups)
    result = split(images, seed=seed)
    sides = {name: {groups[row] for row in rows} for name, rows in parts(result).items()}
    assert not sides["train"] & sides["test"]
    assert not sides["train"] & sides["val"]
    assert not sides["val"] & sides["test"]
    assert sum(len(rows) for rows in parts(result).values()) == count
    assert set(labels[result.train]) == {0, 1, 2}
    assert 0.05 <= len(result.test) / count <= 0.30


def test_something_of_each_class_stays_to_train_on():
    images = make([0] * 40 + [1] * 2 + [2] * 3, [None] * 42 + ["p", "p", "q"])
    result = split(images, val=0, test=0.9)
    assert np.bincount(images.labels[result.test]).tolist()[:2] == [36, 1]
    assert np.bincount(images.labels[result.train], minlength=3).min() >= 1


def test_few_large_groups_still_give_a_test_part():
    images = make([0, 1] * 15, [f"p{n // 10}" for n in range(30)])
    result = split(images, val=0, test=0.15)
    assert len(result.test) == 10
    assert len(result.train) == 20


def test_stated_splits_are_kept_and_missing_ones_cut():
    images = make([0, 1] * 50, splits=["test"] * 20 + ["train"] * 80)
    result = split(images, val=0.1, test=0.5)
    assert result.test.tolist() == list(range(20))
    assert len(result.val) == 10
    assert set(result.val) <= set(range(20, 100))


def test_a_stated_split_through_a_group_is_refused():
    images = make([0, 1] * 4, groups=["p"] + ["q"] * 7, splits=["test", "test"] + ["train"] * 6)
    with pytest.raises(DataError, match="'q'"):
        split(images)


def test_unlabelled_images_are_left_out():
    images = make([0, 1] * 10 + [-1] * 5)
    assert max(np.concatenate(list(parts(split(images)).values()))) < 20


@pytest.mark.parametrize("shares", [(0.5, 0.5), (-0.1, 0.2), (0.2, 1.0)])
def test_shares_out_of_range(shares):
    with pytest.raises(ArgumentError, match="sum to less than 1"):
        split(make([0, 1]), val=shares[0], test=shares[1])


def test_memory_does_not_grow_with_images_times_classes():
    images = make(np.arange(20_000) % 1000)
    tracemalloc.start()
    result = split(images, val=0.1, test=0.2)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 60e6  # a dense table would take 160 MB
    assert np.bincount(images.labels[result.test]).tolist() == [4] * 1000
    assert np.bincount(images.labels[result.val]).tolist() == [2] * 1000
