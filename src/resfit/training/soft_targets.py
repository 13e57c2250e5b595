"""A teacher's predictions for random crops, computed when they are first needed and kept in a file.

Distillation with a fixed set of crops of each image (Shen and Xing 2021, arXiv:2112.01528): a student that passes over
the images a hundred times with eight crops of each asks the teacher eight times, not a hundred. The crops of a view are
a function of the seed, so that the file holds probabilities alone.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resfit import engines
from resfit.errors import ArgumentError, DataError
from resfit.training.augment import crop_at

if TYPE_CHECKING:
    import keras

#: Name of the file in the folder of a run.
FILE = "soft_targets.npy"
_CHUNK = 64


class SoftTargets:
    """Class probabilities of a teacher for ``views`` random crops of each image.

    The file is a float16 array ``(views, images, classes + 1)``; the last column is 1 where a row is there. It takes
    ``2 * views * images * (classes + 1)`` bytes when full.

    Args:
        teacher: Network from RGB images 0..255 to logits, with ``input_spec`` and ``class_names`` as
            :func:`resfit.load` sets them (``classifier_activation=None``).
        images: uint8 or float32 array ``(n, height, width, 3)``.
        classes: Names of the student's classes, in its order.
        labels: Their readable names, where the teacher may know them by those; empty for none.
        folder: Where the file is kept.
        views: Crops of each image, at least 1.
        temperature: By which the logits are divided before the softmax, above 0.
        crop_scale: Least share of the area that a crop keeps, in (0, 1].
        flip: Whether half of the crops are mirror images.
        seed: Of the crops.

    Attributes:
        assumption: What the teacher leaves open and was assumed, a sentence; None where nothing was.

    Raises:
        DataError: The teacher's classes are not the student's.
        ArgumentError: The teacher cannot be asked for class probabilities of RGB images.
    """

    def __init__(
        self,
        teacher: keras.Model,
        images: np.ndarray,
        classes: Sequence[str],
        labels: Sequence[str],
        folder: Path,
        *,
        views: int,
        temperature: float,
        crop_scale: float,
        flip: bool,
        seed: int,
    ):
        self._teacher, self._images, self._views = teacher, images, views
        self._temperature, self._crop_scale, self._flip, self._seed = temperature, crop_scale, flip, seed
        self._order, self.assumption = _class_order(teacher, classes, labels)
        contract = getattr(teacher, "input_spec", None)
        if contract is None or len(teacher.input_shape) != 4 or teacher.input_shape[-1] != 3:
            raise ArgumentError(
                "the teacher must take RGB images and have an input contract (resfit.load gives one). "
                f"Received: input shape {teacher.input_shape}, input contract {contract}."
            )
        self._side = tuple(contract.size)
        self.path = folder / FILE
        self._rows = _open(self.path, (views, len(images), len(classes) + 1))
        self._predict: Any = None
        self._numbers = functools.lru_cache(maxsize=4)(self._numbers_of_view)

    @property
    def fingerprint(self) -> str:
        """Digest of the teacher's architecture and weights."""
        return engines.fingerprint(self._teacher)

    def crops(self, rows: np.ndarray, view: int) -> np.ndarray:
        """Returns the numbers of the crops of a view, as :func:`resfit.training.augment.crop_at` takes them.

        Args:
            rows: Indices of images ``(n,)``.
            view: Number of the view, at least 0; it wraps at ``views``.

        Returns:
            float32 array ``(5, n)``.
        """
        return self._numbers(view % self._views)[:, rows]

    def probabilities(self, rows: np.ndarray, view: int) -> np.ndarray:
        """Returns the teacher's class probabilities for the crops of a view, and asks the teacher where it must.

        Args:
            rows: Indices of images ``(n,)``.
            view: Number of the view, at least 0; it wraps at ``views``.

        Returns:
            float32 array ``(n, classes)``, in the student's order of classes, rounded to float16.
        """
        stored = self._rows[view % self._views]
        found = np.asarray(stored[rows])
        # a file that a machine lost power over may have the mark without the values
        missing = np.flatnonzero((found[:, -1] != 1) | (found[:, :-1].sum(axis=1, dtype=np.float32) < 0.5))
        for start in range(0, len(missing), _CHUNK):
            part = missing[start : start + _CHUNK]
            found[part, :-1] = self._ask(rows[part], view)
            stored[rows[part], :-1] = found[part, :-1]
            stored[rows[part], -1] = 1  # after the values, so that a run that is killed leaves no half row
        return found[:, :-1].astype(np.float32)

    def remove(self) -> None:
        """Deletes the file; the object is of no use afterwards."""
        self._rows = None
        self.path.unlink(missing_ok=True)

    def _numbers_of_view(self, view: int) -> np.ndarray:
        return np.random.default_rng([self._seed, 1, view]).random((5, len(self._images)), np.float32)

    def _ask(self, rows: np.ndarray, view: int) -> np.ndarray:
        """Runs the teacher on one chunk, always of the same length, so that a row does not depend on the others."""
        import tensorflow as tf

        if self._predict is None:

            @tf.function(autograph=False, reduce_retracing=True)
            def predict(images: Any, draw: Any) -> Any:
                crops = crop_at(images, self._side, self._crop_scale, draw, flip=self._flip)
                logits = tf.cast(self._teacher(crops, training=False), tf.float32)
                return tf.nn.softmax(logits / self._temperature)

            self._predict = predict
        full = np.concatenate([rows, np.repeat(rows[:1], _CHUNK - len(rows))])
        answer = self._predict(tf.constant(self._images[full]), tf.constant(self.crops(full, view))).numpy()
        return answer[: len(rows), self._order].astype(np.float16)


def _open(path: Path, shape: tuple[int, ...]) -> Any:
    """Opens the file; one that is damaged or of another shape is begun anew."""
    try:
        found = np.lib.format.open_memmap(path, mode="r+")
        if found.shape == shape and found.dtype == np.float16:
            return found
    except (OSError, ValueError, EOFError):
        pass
    return np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)


def _class_order(teacher: Any, classes: Sequence[str], labels: Sequence[str]) -> tuple[np.ndarray, str | None]:
    """Returns for each of the student's classes the teacher's output, and what had to be assumed."""
    outputs, known = teacher.output_shape[-1], getattr(teacher, "class_names", None)
    names = list(known) if known is not None else None
    if len(teacher.output_shape) != 2 or outputs != len(classes):
        raise DataError(
            f"the teacher must predict the {len(classes)} classes of the images. Received: outputs of shape "
            f"{teacher.output_shape}. Train or fit the teacher on the same classes."
        )
    if names is None:
        return np.arange(outputs), (
            "the teacher does not name its classes; they are assumed to be in the alphabetical order of the class "
            "folders (the log's teacher_top1 shows whether that is so)"
        )
    for own in (list(classes), list(labels)):
        if names == own:
            return np.arange(outputs), None
        if len(set(names)) == len(names) == len(own) and set(names) == set(own):
            return np.array([names.index(name) for name in own]), None
    strangers = [name for name in names if name not in {*classes, *labels}]
    raise DataError(
        f"the teacher must have the classes of the images. Received: {', '.join(map(repr, (strangers or names)[:5]))}."
    )
