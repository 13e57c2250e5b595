"""Random changes to images in training, as TensorFlow graphs that are functions of a seed.

Images are float32 or uint8 tensors ``(batch, height, width, 3)``, RGB, values 0..255, before the input contract of the
network. Equal seeds give equal changes, in every run.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from resfit.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Callable

#: Photometric changes of RandAugment, in the order in which they are drawn, before the geometric ones.
PHOTOMETRIC = ("identity", "autocontrast", "equalize", "solarize", "colour", "posterize", "contrast", "brightness",
               "sharpness")  # fmt: skip
GEOMETRIC = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
_GREY = (0.299, 0.587, 0.114)


def crop_and_flip(images: Any, side: tuple[int, int], smallest: float, seed: Any, *, flip: bool = True) -> Any:
    """Cuts a random rectangle out of each image, flips half of them and resizes.

    The random-resized crop of Szegedy et al. 2014 (arXiv:1409.4842): area uniform in ``[smallest, 1]``, ratio of the
    sides log-uniform in [3/4, 4/3].

    Args:
        images: Tensor ``(batch, height, width, 3)``.
        side: Height and width of the crops in pixels.
        smallest: Least share of the area, in (0, 1]. With 1 nothing is cut.
        seed: Tensor of two integers.
        flip: Whether half of the images are mirrored left to right.

    Returns:
        float32 tensor ``(batch, *side, 3)``, values 0..255.
    """
    import tensorflow as tf

    draw = tf.random.stateless_uniform((5, tf.shape(images)[0]), seed)
    return crop_at(images, side, smallest, draw, flip=flip)


def crop_at(images: Any, side: tuple[int, int], smallest: float, draw: Any, *, flip: bool = True) -> Any:
    """Cuts the rectangles of :func:`crop_and_flip` at numbers that were drawn before.

    Args:
        images: Tensor ``(batch, height, width, 3)``.
        side: Height and width of the crops in pixels.
        smallest: Least share of the area, in (0, 1].
        draw: Float tensor ``(5, batch)``, uniform in [0, 1): area, ratio of the sides, vertical place, horizontal
            place, and the mirror image under one half.
        flip: Whether half of the images are mirrored left to right.

    Returns:
        float32 tensor ``(batch, *side, 3)``, values 0..255.
    """
    import tensorflow as tf

    area = smallest + (1 - smallest) * draw[0]
    ratio = tf.exp((2 * draw[1] - 1) * math.log(4 / 3))
    if smallest >= 1:
        ratio = tf.ones_like(ratio)
    height = tf.minimum(tf.sqrt(area / ratio), 1.0)
    width = tf.minimum(tf.sqrt(area * ratio), 1.0)
    top, left = draw[2] * (1 - height), draw[3] * (1 - width)
    right = left + width
    mirrored = tf.logical_and(draw[4] < 0.5, flip)
    start, end = tf.where(mirrored, right, left), tf.where(mirrored, left, right)
    boxes = tf.stack([top, start, top + height, end], axis=1)
    return tf.image.crop_and_resize(images, boxes, tf.range(tf.shape(images)[0]), side)


def colour(images: Any, strength: float, seed: Any) -> Any:
    """Changes brightness, contrast and saturation of each image at random.

    Args:
        images: Tensor ``(batch, height, width, 3)``.
        strength: Largest change; factors are uniform in ``[1 - strength, 1 + strength]``.
        seed: Tensor of two integers.
    """
    import tensorflow as tf

    values = tf.cast(images, tf.float32)
    factors = 1 + strength * (2 * tf.random.stateless_uniform((3, tf.shape(images)[0], 1, 1, 1), seed) - 1)
    values = values * factors[0]
    values = _blend(tf.reduce_mean(_grey(values), axis=(1, 2), keepdims=True), values, factors[1])
    values = _blend(_grey(values), values, factors[2])
    return tf.clip_by_value(values, 0.0, 255.0)


def rand_augment(images: Any, count: int, magnitude: float, seed: Any) -> Any:
    """Applies some of fourteen changes to each image, drawn at random, all of one strength.

    RandAugment (Cubuk et al. 2019, arXiv:1909.13719). Pixels that come in from outside are grey.

    Args:
        images: Tensor ``(batch, height, width, 3)``.
        count: Changes to each image, at least 1.
        magnitude: Strength of each, in [0, 10].
        seed: Tensor of two integers.
    """
    import tensorflow as tf

    check_rand_augment(count, magnitude)
    values = tf.cast(images, tf.float32)
    batch = tf.shape(images)[0]
    seeds = tf.random.split(seed, 3 * count)
    share = magnitude / 10
    for number in range(count):
        kinds = tf.random.stateless_uniform(
            (batch,), seeds[3 * number], 0, len(PHOTOMETRIC) + len(GEOMETRIC), dtype=tf.int32
        )
        signs = tf.where(tf.random.stateless_uniform((batch,), seeds[3 * number + 1]) < 0.5, -1.0, 1.0)
        values = tf.map_fn(
            lambda item: tf.switch_case(item[1], _photometric(item[0], share, item[2])),
            (values, tf.where(kinds < len(PHOTOMETRIC), kinds, 0), signs),
            fn_output_signature=tf.float32,
        )
        values = _project(values, kinds - len(PHOTOMETRIC), share, signs)
    return values


def check_rand_augment(count: int, magnitude: float) -> None:
    """Checks the parameters of :func:`rand_augment`.

    Raises:
        ArgumentError: One is out of its range.
    """
    if count < 1 or not 0 <= magnitude <= 10:
        raise ArgumentError(
            f"rand_augment needs a count of at least 1 and a magnitude in [0, 10]. Received: {count}, {magnitude}."
        )


def random_erasing(images: Any, probability: float, seed: Any) -> Any:
    """Paints a random rectangle of some images with noise.

    Random erasing (Zhong et al. 2017, arXiv:1708.04896): area uniform in [2 %, 33 %], ratio of the sides log-uniform in
    [0.3, 3.3].

    Args:
        images: Tensor ``(batch, height, width, 3)``.
        probability: Share of the images, in [0, 1].
        seed: Tensor of two integers.
    """
    import tensorflow as tf

    values = tf.cast(images, tf.float32)
    seeds = tf.random.split(seed, 2)
    draw = tf.random.stateless_uniform((5, tf.shape(images)[0], 1, 1), seeds[0])
    area, ratio = 0.02 + 0.31 * draw[0], tf.exp((2 * draw[1] - 1) * math.log(3.3))
    inside = _rectangle(tf.shape(images)[1:3], tf.sqrt(area / ratio), tf.sqrt(area * ratio), draw[2], draw[3])
    noise = tf.random.stateless_uniform(tf.shape(images), seeds[1], 0.0, 255.0)
    return tf.where(tf.logical_and(inside, draw[4] < probability)[..., None], noise, values)


def mixup(images: Any, targets: Any, alpha: float, seed: Any) -> tuple[Any, Any]:
    """Blends each image, and its target, with another one of the batch.

    mixup (Zhang et al. 2017, arXiv:1710.09412), one share for the whole batch.

    Args:
        images: Tensor ``(batch, ...)``; feature maps will do.
        targets: Tensor ``(batch, classes)``.
        alpha: Both parameters of the Beta distribution of the share, above 0.
        seed: Tensor of two integers.
    """
    import tensorflow as tf

    seeds = tf.random.split(seed, 2)
    share = _beta(alpha, seeds[0])
    order = _permutation(tf.shape(images)[0], seeds[1])
    values = tf.cast(images, tf.float32)
    blended = share * values + (1 - share) * tf.gather(values, order)
    return blended, share * targets + (1 - share) * tf.gather(targets, order)


def cutmix(images: Any, targets: Any, alpha: float, seed: Any) -> tuple[Any, Any]:
    """Puts a rectangle of another image of the batch into each, and blends the targets by area.

    CutMix (Yun et al. 2019, arXiv:1905.04899), one rectangle for the whole batch.

    Args:
        images: Tensor ``(batch, height, width, channels)``; feature maps will do.
        targets: Tensor ``(batch, classes)``.
        alpha: Both parameters of the Beta distribution of the area that is kept, above 0.
        seed: Tensor of two integers.
    """
    import tensorflow as tf

    seeds = tf.random.split(seed, 3)
    side = tf.sqrt(1 - _beta(alpha, seeds[0]))
    place = tf.random.stateless_uniform((2, 1, 1, 1), seeds[2])
    inside = _rectangle(tf.shape(images)[1:3], side[None, None, None], side[None, None, None], place[0], place[1])
    order = _permutation(tf.shape(images)[0], seeds[1])
    values = tf.cast(images, tf.float32)
    mixed = tf.where(inside[..., None], tf.gather(values, order), values)
    share = 1 - tf.reduce_mean(tf.cast(inside, tf.float32))
    return mixed, share * targets + (1 - share) * tf.gather(targets, order)


def mixup_or_cutmix(images: Any, targets: Any, alphas: tuple[float, float], number: Any, seed: Any) -> tuple[Any, Any]:
    """Applies mixup or CutMix to a batch inside a graph; with both, batches take turns.

    Args:
        images: Tensor ``(batch, height, width, channels)``.
        targets: Tensor ``(batch, classes)``.
        alphas: The parameters of mixup and of CutMix; one that is 0 is not applied.
        number: Number of the batch, an integer scalar.
        seed: Tensor of two integers.
    """
    import tensorflow as tf

    first, second = alphas
    if first > 0 and second > 0:
        return tf.cond(
            tf.equal(number % 2, 0),
            lambda: mixup(images, targets, first, seed),
            lambda: cutmix(images, targets, second, seed),
        )
    if first > 0:
        return mixup(images, targets, first, seed)
    return cutmix(images, targets, second, seed) if second > 0 else (images, targets)


def prediction_views(images: np.ndarray, count: int) -> list[np.ndarray]:
    """Returns views of images whose predictions are to be averaged.

    Args:
        images: Array ``(batch, height, width, channels)``. Not changed.
        count: 1 is the images themselves; 2 their mirror images too; up to 10 adds the middle and three corners at
            seven eighths of the size, each with its mirror image.

    Raises:
        ArgumentError: ``count`` is not in 1..10.
    """
    if not 1 <= count <= 10:
        raise ArgumentError(f"views must lie in 1..10. Received: {count}.")
    views = [images, images[:, :, ::-1]]
    height, width = images.shape[1:3]
    low, left = height - (7 * height) // 8, width - (7 * width) // 8
    for top, start in ((low // 2, left // 2), (0, 0), (0, left), (low, 0)):
        if len(views) >= count:
            break
        part = _enlarged(images, top, start, height - low, width - left)
        views += [part, part[:, :, ::-1]]
    return [np.ascontiguousarray(view) for view in views[:count]]


def _enlarged(images: np.ndarray, top: int, left: int, height: int, width: int) -> np.ndarray:
    """Returns a part of each image at the full size, bilinear, of the same dtype."""
    rows = _positions(images.shape[1], top, height)
    columns = _positions(images.shape[2], left, width)
    values = images.astype(np.float32)
    for axis, places in ((1, rows), (2, columns)):
        low = np.floor(places).astype(int)
        high = np.minimum(low + 1, images.shape[axis] - 1)
        shape = [1] * 4
        shape[axis] = -1
        weight = (places - low).reshape(shape).astype(np.float32)
        values = values.take(low, axis) * (1 - weight) + values.take(high, axis) * weight
    return np.rint(values).astype(images.dtype) if images.dtype.kind in "ui" else values.astype(images.dtype)


def _positions(full: int, start: int, length: int) -> np.ndarray:
    return np.clip(start + (np.arange(full) + 0.5) * length / full - 0.5, 0, full - 1)


def _photometric(image: Any, share: float, sign: Any) -> list[Callable[[], Any]]:
    """Returns the changes of one image ``(height, width, 3)`` in the order of ``PHOTOMETRIC``."""
    import tensorflow as tf

    def autocontrast() -> Any:
        low, high = tf.reduce_min(image, (0, 1)), tf.reduce_max(image, (0, 1))
        span = tf.where(high > low, high - low, 255.0)
        return tf.where(high > low, (image - low) * 255.0 / span, image)

    def equalize() -> Any:
        def channel(values: Any) -> Any:
            levels = tf.cast(tf.round(values), tf.int32)
            counts = tf.cumsum(tf.histogram_fixed_width(tf.cast(levels, tf.float32), (0.0, 256.0), 256))
            first = tf.reduce_min(tf.where(counts > 0, counts, counts[-1]))
            span = tf.maximum(counts[-1] - first, 1)
            table = tf.cast(tf.maximum(counts - first, 0), tf.float32) * 255.0 / tf.cast(span, tf.float32)
            return tf.where(counts[-1] > first, tf.gather(table, tf.clip_by_value(levels, 0, 255)), values)

        return tf.stack([channel(image[..., index]) for index in range(3)], axis=-1)

    bits = 2.0 ** round(4 * share)  # of the eight bits that many are lost
    factor = 1 + sign * 0.9 * share
    smooth = tf.constant([[1, 1, 1], [1, 5, 1], [1, 1, 1]], tf.float32)[:, :, None, None] / 13
    return [
        lambda: image,
        autocontrast,
        equalize,
        lambda: tf.where(image >= 256.0 * (1 - share), 255.0 - image, image),
        lambda: tf.clip_by_value(_blend(_grey(image), image, factor), 0.0, 255.0),
        lambda: tf.floor(image / bits) * bits,
        lambda: tf.clip_by_value(_blend(tf.reduce_mean(_grey(image)), image, factor), 0.0, 255.0),
        lambda: tf.clip_by_value(image * factor, 0.0, 255.0),
        lambda: tf.clip_by_value(
            _blend(
                tf.nn.depthwise_conv2d(image[None], tf.tile(smooth, (1, 1, 3, 1)), (1, 1, 1, 1), "SAME")[0],
                image,
                factor,
            ),
            0.0,
            255.0,
        ),
    ]


def _project(images: Any, kinds: Any, share: float, signs: Any) -> Any:
    """Turns, shears or shifts each image; ``kinds`` under zero leave it as it is."""
    import tensorflow as tf

    height, width = tf.cast(tf.shape(images)[1], tf.float32), tf.cast(tf.shape(images)[2], tf.float32)
    zero = tf.zeros_like(signs)

    def of(name: str, amount: float) -> Any:
        return tf.where(kinds == GEOMETRIC.index(name), signs * amount * share, zero)

    angle = of("rotate", math.radians(30))
    shear_x, shear_y = of("shear_x", 0.3), of("shear_y", 0.3)
    shift_x, shift_y = of("translate_x", 0.45) * width, of("translate_y", 0.45) * height
    a, b = tf.cos(angle), -tf.sin(angle) + shear_x
    c, d = tf.sin(angle) + shear_y, tf.cos(angle)
    centre_x, centre_y = (width - 1) / 2, (height - 1) / 2
    right = centre_x - a * centre_x - b * centre_y + shift_x
    down = centre_y - c * centre_x - d * centre_y + shift_y
    transforms = tf.stack([a, b, right, c, d, down, zero, zero], axis=1)
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=transforms,
        output_shape=tf.shape(images)[1:3],
        fill_value=127.0,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )


def _rectangle(size: Any, height: Any, width: Any, y: Any, x: Any) -> Any:
    """Returns where a rectangle lies, as booleans ``(batch, height, width)``; all arguments are shares."""
    import tensorflow as tf

    rows = (tf.cast(tf.range(size[0]), tf.float32)[None, :, None] + 0.5) / tf.cast(size[0], tf.float32)
    columns = (tf.cast(tf.range(size[1]), tf.float32)[None, None, :] + 0.5) / tf.cast(size[1], tf.float32)
    height, width = tf.minimum(height, 1.0), tf.minimum(width, 1.0)
    top, left = y * (1 - height), x * (1 - width)
    across = tf.logical_and(columns >= left, columns < left + width)
    return tf.logical_and(tf.logical_and(rows >= top, rows < top + height), across)


def _grey(values: Any) -> Any:
    import tensorflow as tf

    return tf.reduce_sum(values * tf.constant(_GREY), axis=-1, keepdims=True)


def _blend(first: Any, second: Any, share: Any) -> Any:
    """Returns ``second`` at a share of 1, ``first`` at 0, and beyond."""
    return first + share * (second - first)


def _beta(alpha: float, seed: Any) -> Any:
    import tensorflow as tf

    draws = tf.random.stateless_gamma((2,), seed, alpha=alpha)
    return draws[0] / tf.maximum(draws[0] + draws[1], 1e-12)


def _permutation(count: Any, seed: Any) -> Any:
    import tensorflow as tf

    return tf.argsort(tf.random.stateless_uniform((count,), seed))
