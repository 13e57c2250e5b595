"""Classes of one or two images: left out, put together or refused, and said."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from resfit.data import rare
from resfit.data.dataset import check_trainable, of_files
from resfit.errors import ArgumentError, DataError


def images(**counts):
    labels = [name for name, count in counts.items() for _ in range(count)]
    return of_files(Path("."), [Path(f"{number}.png") for number in range(len(labels))], labels)


def test_they_are_left_out_and_accounted_for():
    found, said = rare.settled(images(cat=5, dog=4, emu=1, yak=2))
    assert found.counts() == {"cat": 5, "dog": 4}
    assert found.labels.tolist() == [0] * 5 + [1] * 4
    assert [str(item.path) for item in found.ignored] == ["9.png", "10.png", "11.png"]
    assert said.startswith("2 classes of fewer than 3 images are left out: emu (1), yak (2). rare='other'")
    check_trainable(found)


def test_they_become_one_class_with_one_that_is_there():
    found, said = rare.settled(images(cat=5, emu=1, other=3, yak=2), "other")
    assert found.counts() == {"cat": 5, "other": 6}
    assert "put together as 'other'" in said
    found, said = rare.settled(images(cat=5, dog=4, emu=1), "other")  # still too few
    assert found.counts() == {"cat": 5, "dog": 4}


def test_they_are_refused_where_that_is_asked_for_or_nothing_else_is_left():
    for counts, choice in (({"cat": 5, "dog": 4, "emu": 1}, "error"), ({"cat": 5, "emu": 1}, "drop")):
        found, said = rare.settled(images(**counts), choice)
        assert said == ""
        with pytest.raises(DataError, match=r"at least 3 images.*emu \(1\)"):
            check_trainable(found)
    with pytest.raises(ArgumentError, match="Did you mean 'drop'"):
        rare.settled(images(cat=5), "dropp")


def test_unlabelled_images_and_several_labels_stay_as_they_are():
    known = images(cat=5, dog=4, emu=1)
    some = dataclasses.replace(known, labels=np.where(np.arange(10) == 2, -1, known.labels))
    assert rare.settled(some)[0].labels.tolist() == [0, 0, -1, 0, 0, 1, 1, 1, 1]
    several = dataclasses.replace(known, targets=np.ones((10, 3), bool))
    assert rare.settled(several) == (several, "")


def test_a_measurement_follows_the_fit():
    whole = images(cat=5, dog=4, emu=1, yak=2)
    assert rare.as_fitted(whole, None) == (whole, "")
    found, said = rare.as_fitted(whole, {"choice": "drop", "classes": ["emu", "yak"]})
    assert found.counts() == {"cat": 5, "dog": 4}
    assert said == "3 images of classes that were left out in training: emu, yak"
    found, said = rare.as_fitted(whole, {"choice": "other", "classes": ["emu", "yak"]})
    assert found.counts() == {"cat": 5, "dog": 4, "other": 3}
    assert found.labels.tolist() == [0] * 5 + [1] * 4 + [2] * 3
