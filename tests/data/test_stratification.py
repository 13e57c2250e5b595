"""Parts of sets of several labels: every label as frequent as in the whole, groups whole, none without training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from resfit.data.dataset import ImageSet
from resfit.data.split import split
from resfit.data.stratification import folds, stratify


def tagged(count=1000, labels=20, mean=2.98, seed=0):
    random = np.random.default_rng(seed)
    shares = random.uniform(0.02, 0.3, labels)
    return random.random((count, labels)) < shares * mean / shares.sum()


def make(targets, groups=None, splits=None):
    count = len(targets)
    return ImageSet(
        root=Path("."),
        paths=tuple(Path(f"{n}.png") for n in range(count)),
        labels=np.full(count, -1),
        classes=tuple(f"c{n}" for n in range(targets.shape[1])),
        splits=tuple(splits or [None] * count),
        groups=tuple(groups or [None] * count),
        targets=targets,
        separator=";",
    )


@pytest.mark.parametrize("seed", range(4))
def test_a_thousand_images_of_twenty_tags(seed):
    """The test part is a fifth, and as rich in labels as the rest: neither is it the easy images."""
    targets = tagged(seed=seed)
    parts = split(make(targets), val=0.0, test=0.2, seed=seed)
    assert len(parts.test) == pytest.approx(200, abs=4)
    assert len(parts.train) + len(parts.test) == 1000
    spread = targets.sum(axis=1).std() / np.sqrt(200)
    assert targets[parts.test].sum(axis=1).mean() == pytest.approx(targets.sum(axis=1).mean(), abs=spread)
    assert np.abs(targets[parts.test].mean(axis=0) - targets.mean(axis=0)).max() < 0.015


def test_few_images_of_many_combinations_leave_some_to_measure():
    random = np.random.default_rng(1)
    targets = random.random((36, 7)) < 0.4  # nearly every image has labels that no other has together
    assert len(np.unique(targets, axis=0)) > 25
    parts = split(make(targets), val=0.0, test=0.2, seed=0)
    assert 6 <= len(parts.test) <= 9
    assert (targets[parts.test].sum(axis=0) >= 1).all()
    assert (targets[parts.train].sum(axis=0) >= 1).all()


def test_rare_labels_stay_for_training_and_are_not_all_kept_from_the_test():
    """Of 300 labels with two images each, about a fifth of the images is for testing, and never both of a label."""
    targets = np.repeat(np.eye(300, dtype=bool), 2, axis=0)
    parts = split(make(targets), val=0.0, test=0.2, seed=0)
    assert (targets[parts.train].sum(axis=0) >= 1).all()
    assert len(parts.test) == pytest.approx(120, abs=4)


def test_images_without_a_label_are_shared_out_as_well():
    targets = np.zeros((200, 2), bool)
    targets[:60, 0] = targets[:30, 1] = True
    parts = split(make(targets), val=0.1, test=0.2, seed=0)
    assert [(~targets[rows].any(axis=1)).sum() for rows in (parts.test, parts.val)] == [28, 14]


@pytest.mark.parametrize("seed", range(3))
def test_groups_are_whole(seed):
    targets = tagged(400, 8, 2.0, seed)
    groups = [f"g{n}" for n in np.random.default_rng(seed).integers(0, 80, 400)]
    parts = split(make(targets, groups), val=0.15, test=0.2, seed=seed)
    sides = [{groups[row] for row in rows} for rows in (parts.train, parts.val, parts.test)]
    assert not sides[0] & sides[1]
    assert not sides[0] & sides[2]
    assert not sides[1] & sides[2]
    assert len(parts.test) == pytest.approx(80, abs=12)
    assert np.abs(targets[parts.test].mean(axis=0) - targets.mean(axis=0)).max() < 0.08


def test_a_stated_split_is_kept_whatever_its_combinations():
    targets = np.array([[1, 0], [0, 1]] * 10 + [[1, 1]] * 4, bool)  # only the test part has both
    parts = split(make(targets, splits=["train"] * 20 + ["test"] * 4), val=0.0, test=0.3)
    assert parts.test.tolist() == [20, 21, 22, 23]
    assert len(parts.train) == 20


def test_folds_have_the_labels_in_proportion():
    targets = tagged(500, 10, 2.0)
    pairs = folds(targets, 5, 0)
    assert sorted(np.concatenate([test for _, test in pairs])) == list(range(500))
    for train, test in pairs:
        assert not set(train) & set(test)
        assert np.abs(targets[test].sum(axis=0) - targets.sum(axis=0) / 5).max() <= 4
    numbers = np.arange(500) // 5
    for train, test in folds(targets, 5, 0, groups=numbers):
        assert not set(numbers[train]) & set(numbers[test])


def test_seeds_decide():
    targets = tagged(200, 6, 2.0)
    one, same, other = (stratify(targets, (0.7, 0.3), np.random.default_rng(seed)).tolist() for seed in (1, 1, 2))
    assert one == same
    assert one != other
