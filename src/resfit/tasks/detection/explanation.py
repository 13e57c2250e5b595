"""Which parts of a picture speak for one box: Grad-CAM of its score on the maps that the pyramid is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from resfit.data import decode, inputs
from resfit.errors import ArgumentError, ImageError
from resfit.explain.results import Explanation

if TYPE_CHECKING:
    from resfit.data.box_geometry import Letterbox
    from resfit.features.progress import Progress


def explain(
    detector: Any,
    images: Any,
    *,
    box: int = 0,
    target: str | None = None,
    stage: str | None = None,
    progress: Progress | None = None,
) -> list[Explanation]:
    """Explains one box of each picture.

    The score's slope against a tap's map, averaged over places, weighs its channels (Selvaraju et al. 2016,
    arXiv:1610.02391). The map that is returned is the mean of the taps' maps, each scaled to 1 at its highest, or that
    of one tap.

    Args:
        detector: A :class:`resfit.Detector`.
        images: As :meth:`resfit.Detector.predict` takes them.
        box: Which box, by falling score.
        target: A class, of whose boxes it is; ``None`` is any.
        stage: One of the taps, such as ``"stage4"``; ``None`` takes all.
        progress: Called as pictures get done.

    Returns:
        One explanation a picture; its image is the network's input, padding included. Where there is no such box, even
        with the lowest score, it has an ``error``.

    Raises:
        ArgumentError: There is no such class or tap.
    """
    if target is not None and target not in detector.classes:
        raise ArgumentError(f"target must be a class of {list(detector.classes)}. Received: {target!r}.")
    if box < 0:
        raise ArgumentError(f"box must be at least 0. Received: {box}.")
    taps = tuple(detector.spec.taps.values())
    if stage is not None and stage not in taps:
        raise ArgumentError(f"stage must be one of the taps {taps}. Received: {stage!r}.")
    model, chosen = _model(detector, (stage,) if stage is not None else taps)
    sources = inputs.listed(images, detector.input_spec)
    found = []
    for item, path in zip(sources.items, sources.paths, strict=True):
        found.append(_one(detector, model, chosen, item, path, box, target))
        if progress is not None:
            progress("network", len(found), len(sources))
    return found


def _model(detector: Any, taps: tuple[str, ...]) -> tuple[Any, tuple[str, ...]]:
    """From pictures to the maps of taps, boxes and scores."""
    import keras

    names = detector.stage_layers()
    tensors = [detector.model.get_layer(names[tap]).output for tap in taps]
    outputs = detector.model.output
    return keras.Model(detector.model.inputs[0], [*tensors, outputs["boxes"], outputs["scores"]]), taps


def _one(
    detector: Any, model: Any, taps: tuple[str, ...], item: Any, path: Any, number: int, target: str | None
) -> Explanation:
    import tensorflow as tf

    sizes: list[tuple[int, int]] = []
    try:
        image = decode.decode_image(
            item, detector.input_spec, look=lambda _, upright: sizes.append(decode.full_size(upright))
        )
    except ImageError as error:
        return _failed(path, str(error))
    batch = tf.constant(image[None], tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(batch)
        *maps, boxes, scores = model(batch, training=False)
        row = np.concatenate([boxes[0].numpy(), scores[0].numpy()], axis=-1)
        fitted: Letterbox = detector.letterbox_of(sizes[0] if sizes else detector.input_spec.size)
        found, values, labels, places = detector.placed(row, fitted)
        rows = (
            np.flatnonzero(labels == detector.classes.index(target)) if target is not None else np.arange(len(labels))
        )
        if len(rows) <= number:
            return _failed(path, f"there is no box number {number}" + (f" of class {target!r}" if target else ""))
        mine = int(rows[number])
        # the logit: where a score is close to 1, its own slope is close to 0
        score = tf.clip_by_value(scores[0, int(places[mine]), int(labels[mine])], 1e-7, 1 - 1e-7)
        logit = tf.math.log(score) - tf.math.log1p(-score)
    slopes = tape.gradient(logit, maps)
    heats, raws = [], []
    for values_of, slope in zip(maps, slopes, strict=True):
        if slope is None:
            continue
        weights = tf.reduce_mean(slope[0], axis=(0, 1))
        raw = tf.reduce_sum(values_of[0] * weights, axis=-1).numpy()
        raws.append(raw)
        positive = np.maximum(raw, 0.0)
        if positive.max(initial=0.0) > 0:
            heats.append(_enlarged(positive / positive.max(), detector.input_spec.size))
    heat = np.mean(heats, axis=0).astype(np.float32) if heats else np.zeros(detector.input_spec.size, np.float32)
    heat = heat / heat.max() if heat.max(initial=0.0) > 0 else heat
    edges = ", ".join(f"{value:.0f}" for value in found[mine])
    name = detector.classes[int(labels[mine])]
    return Explanation(
        path=path,
        label=name,
        target=name,
        probability=float(values[mine]),
        map=heat,
        raw=raws[0] if raws else np.zeros((0, 0), np.float32),
        image=np.asarray(image).round().astype(np.uint8),
        method="grad-cam",
        stage=", ".join(taps),
        empty=not heats,
        evidence="positive" if heats else "none",
        note=f"of the box at {edges} (left, top, right, bottom in pixels of the picture)",
        source=item,
    )


def _enlarged(heat: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    from PIL import Image

    image = Image.fromarray(heat.astype(np.float32))
    return np.clip(np.asarray(image.resize((size[1], size[0]), Image.Resampling.BILINEAR)), 0, 1)


def _failed(path: Any, error: str) -> Explanation:
    empty = np.zeros((0, 0), np.float32)
    return Explanation(
        path, None, None, 0.0, empty, empty, np.zeros((0, 0, 3), np.uint8), "grad-cam", "", error=error, evidence="none"
    )
