"""A teacher's predictions for random crops: whose they are, when they are computed, and what survives a kill."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from resfit.errors import ArgumentError, DataError
from resfit.preprocessing import InputSpec
from resfit.training.augment import crop_at
from resfit.training.soft_targets import SoftTargets
from tests.numeric import images

CLASSES = ("a", "b", "c")
PIXELS = images(70, 1, 1, 3, seed=3) // 2 + images(70, 12, 12, 3, seed=4) // 2  # each has a colour of its own


class Teacher(keras.Model):
    """Logits are three linear functions of the mean colour; counts the images that it is asked for."""

    asked = 0

    def __init__(self, class_names=CLASSES, outputs=3):
        super().__init__()
        self.input_spec = InputSpec(size=(8, 8))
        self.class_names, self.outputs = class_names, outputs
        self.input_shape, self.output_shape = (None, 8, 8, 3), (None, outputs)
        self.matrix = keras.ops.convert_to_tensor(
            np.random.default_rng(0).normal(0, 0.02, (3, outputs)).astype(np.float32)
        )

    def call(self, x, training=False):
        import tensorflow as tf

        tf.py_function(self._count, [tf.shape(x)[0]], [])
        return keras.ops.matmul(keras.ops.mean(x, axis=(1, 2)), self.matrix)

    def _count(self, number):
        self.asked += int(number)


def targets(teacher, folder, *, labels=(), **changes):
    options = {"views": 2, "temperature": 2.0, "crop_scale": 0.5, "flip": True, "seed": 7, **changes}
    return SoftTargets(teacher, PIXELS, CLASSES, labels, folder, **options)


def expected(teacher, soft, rows, view):
    crops = np.asarray(crop_at(PIXELS[rows], (8, 8), 0.5, soft.crops(rows, view)))
    logits = crops.mean(axis=(1, 2)) @ np.asarray(teacher.matrix) / 2.0
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)


def test_they_are_the_teachers_for_the_same_crops_and_asked_for_once(tmp_path):
    teacher = Teacher()
    soft = targets(teacher, tmp_path)
    rows = np.arange(0, 70, 2)
    first = soft.probabilities(rows, 0)
    np.testing.assert_allclose(first, expected(teacher, soft, rows, 0), atol=1e-3)
    assert first.std(axis=0).min() > 0.02
    assert teacher.asked == 64  # one chunk
    np.testing.assert_array_equal(soft.probabilities(rows, 2), first)  # views wrap
    other = soft.probabilities(rows, 1)
    np.testing.assert_allclose(other, expected(teacher, soft, rows, 1), atol=1e-3)
    assert np.abs(other - first).max() > 0.01
    assert teacher.asked == 128
    again = targets(teacher, tmp_path)  # another process
    np.testing.assert_array_equal(again.probabilities(rows, 0), first)
    assert teacher.asked == 128


def test_a_row_does_not_depend_on_the_others(tmp_path):
    rows = np.arange(70)
    whole = targets(Teacher(), tmp_path).probabilities(rows, 0)
    (tmp_path / "parts").mkdir()
    parts = targets(Teacher(), tmp_path / "parts")
    shuffled = np.random.default_rng(1).permutation(rows)
    for start in range(0, 70, 9):
        part = shuffled[start : start + 9]
        np.testing.assert_array_equal(parts.probabilities(part, 0), whole[part])


@pytest.mark.parametrize("damage", ["no mark", "no values", "cut off", "another shape"])
def test_what_is_missing_is_computed_again(tmp_path, damage):
    first = targets(Teacher(), tmp_path)
    rows = np.arange(10)
    before = first.probabilities(rows, 0)
    file = first.path
    del first
    stored = np.load(file)
    assert stored.shape == (2, 70, 4)
    if damage == "no mark":
        stored[0, 3, -1] = 0
        stored[0, 3, 0] = 7
    elif damage == "no values":
        stored[0, 3, :-1] = 0
    elif damage == "another shape":
        stored = stored[:1]
    np.save(file, stored)
    if damage == "cut off":
        file.write_bytes(file.read_bytes()[:90])
    teacher = Teacher()
    np.testing.assert_array_equal(targets(teacher, tmp_path).probabilities(rows, 0), before)
    assert teacher.asked == 64


@pytest.mark.parametrize(
    ("names", "labels", "order"),
    [
        (CLASSES, (), [0, 1, 2]),
        (("c", "a", "b"), (), [1, 2, 0]),
        (("fish", "dog", "cat"), ("cat", "dog", "fish"), [2, 1, 0]),
        (("cat", "cat", "fish"), ("cat", "cat", "fish"), [0, 1, 2]),  # two classes of one name, in the same order
    ],
)
def test_the_teachers_classes_may_come_in_another_order(tmp_path, names, labels, order):
    teacher = Teacher(names)
    soft = targets(teacher, tmp_path, labels=labels)
    rows = np.arange(6)
    np.testing.assert_allclose(soft.probabilities(rows, 0), expected(teacher, soft, rows, 0)[:, order], atol=1e-3)
    assert soft.assumption is None


def test_what_is_assumed_is_said_and_what_cannot_fit_is_refused(tmp_path):
    assert "teacher_top1" in targets(Teacher(None), tmp_path).assumption
    with pytest.raises(DataError, match=r"Received: 'horse'"):
        targets(Teacher(("a", "b", "horse")), tmp_path)
    with pytest.raises(DataError, match=r"3 classes.*\(None, 4\)"):
        targets(Teacher(None, outputs=4), tmp_path)
    bare = Teacher()
    bare.input_spec = None
    with pytest.raises(ArgumentError, match="input contract None"):
        targets(bare, tmp_path)


def test_the_file_goes_with_the_run(tmp_path):
    soft = targets(Teacher(), tmp_path)
    soft.probabilities(np.arange(3), 0)
    assert soft.path.exists()
    soft.remove()
    assert not soft.path.exists()
