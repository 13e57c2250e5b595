"""Encoded JPEG and PNG to a network's input, inside a TensorFlow graph.

The same steps as :mod:`resfit.data.decode`, which uses Pillow: the JPEG decoder works at a fraction of the size where
that is enough, the EXIF orientation is applied, transparent pixels are laid over white, and the image is resized
antialiased, first along its rows and then along its columns, rounded to eight bits after each. A PNG of 16 bits keeps
them all and is rounded nowhere. What is left is how the two resizers round, see :data:`TOLERANCE`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from resfit.preprocessing import InputSpec

#: Largest difference of a pixel, of 255, from resfit's own decoding of the same file.
TOLERANCE = 2.0

_KERNELS = {"bilinear": "triangle", "bicubic": "keyscubic", "lanczos": "lanczos3"}
_HEADER = 65_536  # bytes of a JPEG in which its orientation is looked for
_MARGIN = 32  # bytes that are read from one place on, at most
_MOST_TAGS = 256  # of an EXIF table that are looked at


def supports(spec: InputSpec) -> bool:
    """Says whether a contract can be met here: grey or RGB, and an interpolation that TensorFlow does as Pillow does.

    Args:
        spec: The contract.
    """
    return spec.channels in (1, 3) and (spec.resize_mode == "none" or spec.interpolation in _KERNELS)


def decode_batch(encoded: Any, spec: InputSpec) -> Any:
    """Decodes a batch.

    Args:
        encoded: String tensor ``(batch,)``, JPEG or PNG each.
        spec: A contract that is supported.

    Returns:
        float32 ``(batch, height, width, channels)``, RGB or grey, 0..255.
    """
    shape = (*spec.size, spec.channels)
    one = tf.TensorSpec(shape, tf.float32)
    images = tf.map_fn(lambda data: decode(data, spec), encoded, fn_output_signature=one, parallel_iterations=8)
    return tf.ensure_shape(images, (None, *shape))


def decode(encoded: Any, spec: InputSpec) -> Any:
    """Decodes one image.

    Args:
        encoded: String tensor of shape ``()``.
        spec: A contract that is supported.

    Returns:
        float32 ``(height, width, channels)``, 0..255; whole numbers but for a PNG of 16 bits.
    """
    is_deep = tf.equal(tf.strings.substr(encoded, 0, 4), b"\x89PNG") & tf.equal(_byte(encoded, 24), b"\x10")
    image = tf.cond(is_deep, lambda: _deep(encoded, spec), lambda: tf.cast(_shallow(encoded, spec), tf.float32))
    return tf.ensure_shape(image, (*spec.size, spec.channels))


def _byte(encoded: Any, place: int) -> Any:
    longer = tf.strings.join([encoded, bytes(place + 1)])  # of an image that ends before it, too
    return tf.strings.substr(longer, place, 1)


def _shallow(encoded: Any, spec: InputSpec) -> Any:
    is_jpeg = tf.equal(tf.strings.substr(encoded, 0, 2), b"\xff\xd8")
    image = tf.cond(is_jpeg, lambda: _jpeg(encoded, spec), lambda: _png(encoded))
    if spec.channels == 1:
        # the weights of Pillow's conversion, of 2**16
        weighted = tf.reduce_sum(tf.cast(image, tf.int32) * [19595, 38470, 7471], axis=-1, keepdims=True)
        image = tf.cast(tf.bitwise.right_shift(weighted + 0x8000, 16), tf.uint8)
    return _resized(image, spec, _eight_bits)


def _deep(encoded: Any, spec: InputSpec) -> Any:
    values = tf.cast(tf.io.decode_png(encoded, channels=4, dtype=tf.uint16), tf.float32)
    alpha = values[..., 3:] / 65535
    image = (values[..., :3] * alpha + 65535 * (1 - alpha)) / 257
    if spec.channels == 1:
        image = tf.reduce_sum(image * [0.299, 0.587, 0.114], axis=-1, keepdims=True)
    return tf.clip_by_value(_resized(image, spec, lambda values: values), 0, 255)


def _jpeg(encoded: Any, spec: InputSpec) -> Any:
    def at(ratio: int) -> Any:
        return lambda: tf.io.decode_jpeg(encoded, channels=3, ratio=ratio, dct_method="INTEGER_ACCURATE")

    if spec.resize_mode == "none":
        image = at(1)()
    else:
        shape = tf.io.extract_jpeg_shape(encoded)
        factor = tf.minimum(shape[0], shape[1]) // (2 * max(spec.resize_size))
        level = sum(tf.cast(factor >= ratio, tf.int32) for ratio in (2, 4, 8))
        image = tf.switch_case(level, [at(1), at(2), at(4), at(8)])
    return _turned(image, _orientation(encoded))


def _png(encoded: Any) -> Any:
    image = tf.cast(tf.io.decode_png(encoded, channels=4), tf.int32)
    colour, alpha = image[..., :3], image[..., 3:]
    return tf.cast((colour * alpha + 255 * (255 - alpha) + 127) // 255, tf.uint8)


def _orientation(encoded: Any) -> Any:
    """Returns the EXIF orientation of a JPEG, 1 to 8; 1 where it has none."""
    data = tf.cast(tf.io.decode_raw(tf.strings.substr(encoded, 0, _HEADER), tf.uint8), tf.int32)
    last = tf.size(data)
    data = tf.concat([data, tf.zeros(_MARGIN, tf.int32)], 0)  # what is read behind the end is zero

    def number(places: Any, count: int, little: Any) -> Any:
        # of several places at once; a number that does not fit becomes negative, which leads nowhere
        digits = tf.stack([tf.gather(data, places + position) for position in range(count)], -1)
        digits = tf.where(little, tf.reverse(digits, [-1]), digits)
        return tf.reduce_sum(digits * [256**power for power in range(count)][::-1], -1)

    def is_exif(place: Any) -> Any:
        name = tf.gather(data, place + 4 + tf.range(6))
        return tf.reduce_all(name == [0x45, 0x78, 0x69, 0x66, 0, 0]) & (data[place + 1] == 0xE1)

    def goes_on(place: Any) -> Any:
        # a segment of metadata that is not the one wanted; the image itself begins with 0xDA
        return (place < last) & (data[place] == 0xFF) & (data[place + 1] != 0xDA) & ~is_exif(place)

    def following(place: Any) -> tuple[Any]:
        return (tf.minimum(place + 2 + number(place + 2, 2, False), last),)

    (place,) = tf.while_loop(goes_on, following, (tf.constant(2),))
    start = tf.minimum(place, last) + 10
    little = data[start] == 0x49
    table = tf.clip_by_value(start + number(start + 4, 4, little), 0, last)
    count = tf.minimum(number(table, 2, little), _MOST_TAGS)
    rows = tf.minimum(table + 2 + 12 * tf.range(count), last)
    tags = number(rows, 2, little)
    found = tf.reduce_max(tf.where(tags == 0x0112, number(rows + 8, 2, little), 0))
    known = (place < last) & is_exif(tf.minimum(place, last)) & (found >= 1) & (found <= 8)
    return tf.where(known, found, 1)


def _turned(image: Any, orientation: Any) -> Any:
    def transposed() -> Any:
        return tf.transpose(image, (1, 0, 2))

    return tf.switch_case(
        orientation - 1,
        [
            lambda: image,
            lambda: image[:, ::-1],
            lambda: image[::-1, ::-1],
            lambda: image[::-1],
            transposed,
            lambda: transposed()[:, ::-1],
            lambda: transposed()[::-1, ::-1],
            lambda: transposed()[::-1],
        ],
    )


def _resized(image: Any, spec: InputSpec, rounded: Callable[[Any], Any]) -> Any:
    """Resizes and crops as :func:`resfit.data.decode.resize` does, and rounds after each of the two axes."""
    if spec.resize_mode == "none":
        return image
    source = tf.cast(tf.shape(image)[:2], tf.float64)
    target = tf.constant(spec.size, tf.float64)
    if spec.resize_mode == "squash":
        full, offset = target, tf.zeros(2, tf.float64)
    else:
        scale = tf.reduce_max(tf.constant(spec.resize_size, tf.float64) / source)
        full = tf.maximum(tf.round(source * scale), target)
        offset = tf.floor((full - target) / 2)
    kernel = _KERNELS[spec.interpolation]
    for axis in (1, 0):
        image = rounded(_along(image, axis, spec.size[axis], full[axis] / source[axis], -offset[axis], kernel))
    return image


def _along(image: Any, axis: int, size: int, scale: Any, shift: Any, kernel: str) -> Any:
    """Resizes along one axis, to float32."""
    one = tf.constant(1.0, tf.float64)
    none = tf.constant(0.0, tf.float64)
    sides = tf.shape(image)[:2]
    return tf.raw_ops.ScaleAndTranslate(
        images=tf.cast(image, tf.float32)[None],
        size=tf.stack([size, sides[1]] if axis == 0 else [sides[0], size]),
        scale=tf.cast(tf.stack([scale, one] if axis == 0 else [one, scale]), tf.float32),
        translation=tf.cast(tf.stack([shift, none] if axis == 0 else [none, shift]), tf.float32),
        kernel_type=kernel,
        antialias=True,
    )[0]


def _eight_bits(values: Any) -> Any:
    return tf.cast(tf.clip_by_value(tf.floor(values + 0.5), 0, 255), tf.uint8)
