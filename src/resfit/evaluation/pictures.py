"""Pictures of a measurement: what the classifier said about single images, and what it mixes up."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from resfit.drawing import new_figure
from resfit.storage.atomic import atomic_path

_RIGHT, _WRONG = "#1a7f37", "#c62828"


def contact_sheet(
    path: str | os.PathLike[str],
    *,
    images: Sequence[Path],
    labels: Sequence[int] | np.ndarray,
    probabilities: np.ndarray,
    classes: Sequence[str],
    title: str,
    each: int = 6,
    seed: int = 0,
) -> None:
    """Draws some images of every class with their predictions, and the confusion matrix beside them.

    The images are drawn at random, not chosen; a wrong prediction is red.

    Args:
        path: PNG file to write.
        images: Files, one for each row of ``probabilities``.
        labels: True classes, as indices.
        probabilities: Array ``(images, classes)``.
        classes: Names.
        title: Printed above.
        each: Images shown of each class.
        seed: Of the draw.

    Raises:
        ImageError: An image cannot be read.
    """
    from sklearn.metrics import confusion_matrix

    from resfit.data.decode import decode_image
    from resfit.data.high_bit_depth import eight_bits
    from resfit.preprocessing import InputSpec

    truth = np.asarray(labels)
    guesses = probabilities.argmax(axis=1)
    generator = np.random.default_rng(seed)
    rows = len(classes)
    figure = new_figure((1.15 * each + 8.2, max(1.25 * rows, 5.0)))
    figure.suptitle(title, fontsize=13)
    sheet, matrix = figure.subfigures(1, 2, width_ratios=(1.15 * each, 7.2))
    axes = sheet.subplots(rows, each, squeeze=False)
    contract = InputSpec(size=(96, 96), interpolation="nearest", crop_fraction=1.0)
    for row, name in enumerate(classes):
        own = np.flatnonzero(truth == row)
        chosen = generator.choice(own, min(each, len(own)), replace=False)
        for column, axis in enumerate(axes[row]):
            axis.set_xticks([])
            axis.set_yticks([])
            if column >= len(chosen):
                axis.set_axis_off()
                continue
            index = chosen[column]
            guess = guesses[index]
            colour = _RIGHT if guess == row else _WRONG
            axis.imshow(eight_bits(decode_image(images[index], contract)))
            axis.set_title(
                f"{classes[guess]} {100 * probabilities[index, guess]:.0f}%", fontsize=7, color=colour, pad=2
            )
            for edge in axis.spines.values():
                edge.set_color(colour)
            if column == 0:
                axis.set_ylabel(name, fontsize=8)
    _draw_matrix(matrix, confusion_matrix(truth, guesses, labels=range(rows)), classes)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def _draw_matrix(figure: Any, counts: np.ndarray, classes: Sequence[str]) -> None:
    axis = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axis.set_xticks(range(len(classes)), classes, rotation=45, ha="right", fontsize=8)
    axis.set_yticks(range(len(classes)), classes, fontsize=8)
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    if len(classes) <= 20:
        for row, column in np.ndindex(*counts.shape):
            if counts[row, column]:
                colour = "white" if shares[row, column] > 0.5 else "black"
                axis.text(column, row, counts[row, column], ha="center", va="center", fontsize=8, color=colour)
