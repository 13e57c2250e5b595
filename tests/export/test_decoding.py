"""Encoded images in TensorFlow's graph: the same pixels as resfit's own decoding, within the stated tolerance."""

from __future__ import annotations

import functools
import io

import numpy as np
import pytest
from PIL import Image

from resfit.data import decode
from resfit.preprocessing import InputSpec

CONTRACTS = {
    "bilinear": InputSpec(),
    "bicubic": InputSpec(size=(64, 64), crop_fraction=1.0, interpolation="bicubic"),
    "squashed": InputSpec(size=(96, 64), resize_mode="squash", interpolation="lanczos"),
    "grey": InputSpec(size=(64, 64), channels=1, mean=(0.0,), std=(1.0,)),
}


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    """A picture with areas, edges and noise."""
    random = np.random.default_rng([seed, height, width])
    coarse = random.integers(0, 256, (max(2, height // 8), max(2, width // 8), 3), np.uint8)
    large = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), np.float64)
    return Image.fromarray(np.clip(large + random.normal(0, 12, large.shape), 0, 255).astype(np.uint8))


def encoded(image: Image.Image, format: str, **options) -> bytes:
    data = io.BytesIO()
    image.save(data, format, **options)
    return data.getvalue()


@functools.cache
def files() -> dict[str, bytes]:
    import tensorflow as tf

    found = {}
    for height, width in [(30, 40), (333, 517), (64, 64), (1200, 900), (224, 224), (50, 300)]:
        image = picture(height, width)
        found[f"png {height}x{width}"] = encoded(image, "PNG")
        found[f"jpeg {height}x{width}"] = encoded(image, "JPEG", quality=90)
    image = picture(90, 120)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        exif[0x010F] = "a maker whose name stands before it"
        found[f"exif {orientation}"] = encoded(image, "JPEG", exif=exif)
    transparent = np.dstack([np.asarray(image), np.random.default_rng(1).integers(0, 256, (90, 120), np.uint8)])
    found["transparent"] = encoded(Image.fromarray(transparent), "PNG")
    found["grey and transparent"] = encoded(Image.fromarray(transparent).convert("LA"), "PNG")
    found["grey png"] = encoded(image.convert("L"), "PNG")
    found["grey jpeg"] = encoded(image.convert("L"), "JPEG")
    found["palette"] = encoded(image.convert("P"), "PNG")
    found["palette with a transparent colour"] = encoded(image.convert("P"), "PNG", transparency=3)
    found["progressive"] = encoded(image, "JPEG", progressive=True, quality=80)
    deep = np.random.default_rng(2).integers(0, 65536, (60, 60)).astype(np.uint16)
    found["16 bits"] = encoded(Image.fromarray(deep), "PNG")
    colours = tf.constant(np.random.default_rng(3).integers(0, 65536, (50, 70, 3)).astype(np.uint16))
    found["16 bits a colour"] = tf.io.encode_png(colours).numpy()
    return found


@pytest.mark.parametrize("name", CONTRACTS)
def test_pixels_are_those_of_pillow(name):
    import tensorflow as tf

    from resfit.export import decoding

    spec = CONTRACTS[name]
    function = tf.function(
        lambda data: decoding.decode_batch(data, spec), input_signature=[tf.TensorSpec((None,), tf.string)]
    )
    assert decoding.supports(spec)
    received = np.asarray(function(tf.constant(list(files().values()))))
    assert received.shape == (len(files()), *spec.size, spec.channels)
    for (what, data), image in zip(files().items(), received, strict=True):
        expected = decode.decode_image(data, spec).astype(np.float32)
        assert expected.std() > 5
        away = np.abs(image - expected)
        assert away.max() <= decoding.TOLERANCE, what
        assert away.mean() <= (0.01 if "16 bits" in what else 0.35), what  # most pixels are the same


def test_damaged_exif_is_no_orientation():
    """Offsets that lead nowhere: the image is decoded as it stands."""
    import tensorflow as tf

    from resfit.export import decoding

    spec = InputSpec(size=(64, 64))
    function = tf.function(lambda data: decoding.decode(data, spec), input_signature=[tf.TensorSpec((), tf.string)])
    good = bytearray(files()["exif 6"])
    start = good.index(b"Exif\0\0") + 6
    upright = decode.decode_image(files()["exif 1"], spec).astype(int)
    for place in range(start, start + 30, 3):
        data = bytearray(good)
        data[place : place + 4] = b"\xff\xff\xff\xff"
        image = np.asarray(function(tf.constant(bytes(data))), int)
        turned = decode.decode_image(bytes(good), spec).astype(int)
        assert min(np.abs(image - upright).max(), np.abs(image - turned).max()) <= decoding.TOLERANCE
    cut = bytes(good[: start + 12])
    with pytest.raises(tf.errors.InvalidArgumentError):
        function(tf.constant(cut))


def test_what_is_not_supported_is_said():
    from resfit.export import decoding

    assert not decoding.supports(InputSpec(interpolation="box"))
    assert not decoding.supports(InputSpec(channels=4, mean=(0.0,) * 4, std=(1.0,) * 4))
    assert decoding.supports(InputSpec(interpolation="nearest", resize_mode="none"))
