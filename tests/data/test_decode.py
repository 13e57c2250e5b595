"""Every kind of image file, by its pixel values; every kind of broken one, by its reason."""

from __future__ import annotations

import dataclasses
import io
import os
import struct
import sys
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from resfit.data import decode
from resfit.data.decode import decode_image, decode_many
from resfit.errors import ArgumentError, ImageError
from resfit.preprocessing import InputSpec

AS_IS = InputSpec(size=(8, 8), resize_mode="none")
SQUASH = InputSpec(size=(8, 8), resize_mode="squash")


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def quarters() -> np.ndarray:
    """8x8: red, green / blue, white."""
    image = np.zeros((8, 8, 3), np.uint8)
    image[:4, :4], image[:4, 4:] = (255, 0, 0), (0, 255, 0)
    image[4:, :4], image[4:, 4:] = (0, 0, 255), (255, 255, 255)
    return image


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_give_the_pixels(kind):
    np.testing.assert_array_equal(decode_image(encoded(Image.fromarray(quarters()), kind), AS_IS), quarters())


@pytest.mark.parametrize("kind", ["AVIF", "HEIF"])
def test_pictures_of_phones_are_read_upright_as_their_jpegs_are(kind):
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    big = Image.fromarray(np.kron(quarters(), np.ones((8, 8, 1), np.uint8)))
    found = []
    for one in (kind, "JPEG"):
        exif = Image.Exif()  # of each its own: writers change it
        exif[274] = 6
        options = {"exif": exif} if kind == "AVIF" else {}  # pillow-heif does not write a rotation
        found.append(decode_image(encoded(big, one, quality=95, **options), SQUASH).astype(int))
    seen, wanted = found
    assert wanted[1, 1].argmax() == (2 if kind == "AVIF" else 0)
    assert np.abs(seen - wanted)[[1, 1, 6, 6], [1, 6, 1, 6]].max() <= 12


def test_heif_without_its_reader_says_what_reads_it(monkeypatch):
    decode._heif_is_read.cache_clear()
    monkeypatch.setattr(decode.dependencies, "is_installed", lambda _: False)
    with pytest.raises(ImageError, match=r"pip install \"resfit\[heif\]\""):
        decode_image(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200), AS_IS)
    decode._heif_is_read.cache_clear()


def test_the_content_counts_and_not_the_ending(tmp_path):
    path = tmp_path / "really a png.jpg"
    path.write_bytes(encoded(Image.fromarray(quarters()), "PNG"))
    np.testing.assert_array_equal(decode_image(path, AS_IS), quarters())


def test_cmyk_jpeg_as_photoshop_writes_it():
    colour = Image.new("RGB", (16, 16), (200, 30, 60)).convert("CMYK")
    pixel = decode_image(encoded(colour, "JPEG", quality=100), AS_IS)[8, 8]
    assert np.abs(pixel.astype(int) - (200, 30, 60)).max() <= 3


def test_palette_and_its_transparency():
    image = Image.fromarray(quarters()).quantize(4)
    np.testing.assert_array_equal(decode_image(encoded(image, "PNG"), AS_IS), quarters())
    red = image.getpixel((0, 0))
    seen = decode_image(encoded(image, "PNG", transparency=red), AS_IS)
    assert seen[0, 0].tolist() == [255, 255, 255]
    assert seen[0, 7].tolist() == [0, 255, 0]


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("RGBA", (255, 0, 0, 0), [255, 255, 255]),
        ("RGBA", (255, 0, 0, 255), [255, 0, 0]),
        ("RGBA", (0, 0, 0, 128), [127, 127, 127]),
        ("LA", (0, 0), [255, 255, 255]),
        ("LA", (90, 255), [90, 90, 90]),
    ],
)
def test_transparency_lies_over_white(mode, colour, expected):
    pixel = decode_image(encoded(Image.new(mode, (4, 4), colour), "PNG"), AS_IS)[0, 0]
    assert pixel.tolist() == expected


def test_sixteen_bit_grey_keeps_its_range_and_its_depth():
    values = np.array([[0, 257, 32896, 65535], [1, 258, 32897, 65534]], np.uint16).repeat(4, 0)
    for kind in ("PNG", "TIFF"):
        seen = decode_image(encoded(Image.fromarray(values), kind), AS_IS)
        assert seen[0, :, 0].tolist() == [0, 1, 128, 255]
        np.testing.assert_allclose(seen, (values / 257)[..., None].repeat(3, 2), rtol=1e-7)


def test_one_bit_and_floating_point():
    bits = Image.fromarray(np.array([[True, False]] * 2))
    assert decode_image(encoded(bits, "PNG"), AS_IS)[0, :, 1].tolist() == [255, 0]
    narrow = Image.fromarray(np.array([[0.0, 100.4], [254.6, 255.0]], np.float32))
    assert (
        decode_image(encoded(narrow, "TIFF"), AS_IS)[..., 0].tolist() == np.float32([[0, 100.4], [254.6, 255]]).tolist()
    )
    unit = Image.fromarray(np.array([[0.0, 0.2], [0.6, 1.0]], np.float32))
    assert decode_image(encoded(unit, "TIFF"), AS_IS)[..., 0].tolist() == pytest.approx(np.array([[0, 51], [153, 255]]))
    odd = Image.fromarray(np.array([[np.nan, np.inf], [-np.inf, 0.0]], np.float32))
    assert decode_image(encoded(odd, "TIFF"), AS_IS)[..., 0].tolist() == [[127.5, 255], [0, 127.5]]
    wide = Image.fromarray(np.array([[-10.0, 0.0], [10.0, 30.0]], np.float32))
    assert decode_image(encoded(wide, "TIFF"), AS_IS)[..., 0].tolist() == [[0, 63.75], [127.5, 255]]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_first_frame_of_an_animation(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=50, **options)
    assert decode_image(data, AS_IS)[4, 4].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    ("orientation", "turned"),
    [
        (1, lambda a: a),
        (3, lambda a: a[::-1, ::-1]),
        (6, lambda a: np.rot90(a, -1)),
        (8, np.rot90),
        (2, lambda a: a[:, ::-1]),
    ],
)
def test_exif_orientation(orientation, turned):
    image = Image.fromarray(quarters())
    exif = image.getexif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(decode_image(encoded(image, "PNG", exif=exif), AS_IS), turned(quarters()))


def test_one_pixel_and_odd_shapes_reach_the_size():
    pixel = Image.new("RGB", (1, 1), (9, 8, 7))
    for mode in ("shorter", "squash"):
        seen = decode_image(encoded(pixel, "PNG"), InputSpec(size=(6, 4), resize_mode=mode))
        assert seen.shape == (6, 4, 3)
        assert np.unique(seen.reshape(-1, 3), axis=0).tolist() == [[9, 8, 7]]
    for size in ((1, 500), (500, 1), (7, 5)):
        for mode in ("shorter", "squash"):
            image = encoded(Image.new("RGB", size, (1, 2, 3)), "PNG")
            seen = decode_image(image, InputSpec(size=(6, 4), resize_mode=mode))
            assert seen.shape == (6, 4, 3)
            assert (seen == (1, 2, 3)).all()


def test_shorter_side_and_centre_crop_is_resize_then_crop():
    generator = np.random.default_rng(0)
    smooth = Image.fromarray(generator.integers(0, 255, (6, 9, 3), np.uint8)).resize(
        (300, 200), Image.Resampling.BICUBIC
    )
    spec = InputSpec(size=(112, 112), crop_fraction=0.875, interpolation="bicubic")
    full = np.asarray(smooth.resize((192, 128), Image.Resampling.BICUBIC))
    expected = full[8:120, 40:152]
    received = decode_image(encoded(smooth, "PNG"), spec)
    assert np.abs(received.astype(int) - expected).max() <= 2


def test_an_image_of_the_networks_size_is_cropped_as_any_other():
    ramp = np.arange(64, dtype=np.uint8)[None].repeat(64, 0) * 4
    spec = InputSpec(size=(64, 64), crop_fraction=0.5)
    seen = decode_image(encoded(Image.fromarray(ramp), "PNG"), spec)[:, :, 0]
    assert abs(int(seen[0, 0]) - 16 * 4) <= 4
    assert abs(int(seen[0, -1]) - 48 * 4) <= 4
    whole = decode_image(encoded(Image.fromarray(ramp), "PNG"), InputSpec(size=(64, 64), crop_fraction=1.0))
    np.testing.assert_array_equal(whole[:, :, 0], ramp)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos", "box"])
def test_interpolation_is_pillows_of_that_name(interpolation):
    image = Image.effect_noise((23, 17), 90).convert("RGB")
    spec = InputSpec(size=(9, 12), resize_mode="squash", interpolation=interpolation)
    expected = image.resize((12, 9), getattr(Image.Resampling, interpolation.upper()))
    np.testing.assert_array_equal(decode_image(encoded(image, "PNG"), spec), np.asarray(expected))


def test_grey_contract():
    seen = decode_image(encoded(Image.fromarray(quarters()), "PNG"), InputSpec(**GREY))
    assert seen.shape == (8, 8, 1)
    assert seen[0, 0, 0] == 76  # ITU-R 601 luma of red


GREY = {"size": (8, 8), "channels": 1, "mean": (0.0,), "std": (1.0,), "resize_mode": "none"}


@pytest.mark.parametrize("side", [300, 400, 1600])
def test_scaled_jpeg_decoding_stays_close(side):
    generator = np.random.default_rng(1)
    picture = Image.fromarray(generator.integers(0, 255, (20, 20, 3), np.uint8)).resize(
        (side, side), Image.Resampling.BICUBIC
    )
    data = encoded(picture, "JPEG", quality=95)
    spec = InputSpec(size=(64, 64), resize_mode="squash", interpolation="bicubic")
    full = np.asarray(Image.open(io.BytesIO(data)).convert("RGB").resize((64, 64), Image.Resampling.BICUBIC))
    assert np.abs(decode_image(data, spec).astype(int) - full).mean() < 1.0


def png_header(width: int, height: int, body: bytes) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


BROKEN = {
    "empty": (b"", "empty file"),
    "text": (b"this is no image\n" * 100, "not an image"),
    "html": (b"<!doctype html><html></html>", "not an image"),
    "truncated png": (encoded(Image.effect_noise((64, 64), 80), "PNG")[:900], "truncated"),
    "truncated jpeg": (encoded(Image.effect_noise((64, 64), 80), "JPEG")[:900], "truncated"),
    "header alone": (b"\x89PNG\r\n\x1a\n", "not an image|truncated"),
    "lying header": (png_header(5000, 5000, zlib.compress(b"\0\0\0")), "truncated"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n", "not an image"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_have_a_reason(name):
    data, reason = BROKEN[name]
    with pytest.raises(ImageError, match=reason):
        decode_image(data, SQUASH)


def test_what_is_no_regular_file_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    for name in ("pipe.jpg", "folder.jpg"):
        with pytest.raises(ImageError, match="not a regular file"):
            decode_image(tmp_path / name, SQUASH)
    with pytest.raises(ImageError, match="no such file"):
        decode_image(tmp_path / "missing.jpg", SQUASH)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of metadata
def test_damage_anywhere_is_an_image_or_a_reason():
    generator = np.random.default_rng(2)
    sources = [
        encoded(Image.fromarray(quarters()).resize((40, 40)), kind)
        for kind in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP")
    ]
    refused = 0
    for number in range(600):
        data = bytearray(sources[number % len(sources)])
        for _ in range(generator.integers(1, 8)):
            data[generator.integers(len(data))] = generator.integers(256)
        try:
            seen = decode_image(bytes(data), SQUASH)
        except ImageError:
            refused += 1
        else:
            assert seen.shape == (8, 8, 3)
    assert 50 < refused < 600


def test_many_are_decoded_in_order_with_failures_named(tmp_path):
    paths = []
    for number in range(23):
        path = tmp_path / f"{number}.png"
        path.write_bytes(b"" if number in (5, 6, 22) else encoded(Image.new("RGB", (8, 8), (number, 0, 0)), "PNG"))
        paths.append(path)
    indices, reds, failures = [], [], []
    for batch in decode_many(paths, SQUASH, batch_size=4, workers=3):
        assert len(batch.indices) == len(batch.images)
        indices += batch.indices.tolist()
        reds += batch.images[:, 0, 0, 0].tolist()
        failures += batch.failures
    assert indices == reds == [n for n in range(23) if n not in (5, 6, 22)]
    assert failures == [(5, "empty file"), (6, "empty file"), (22, "empty file")]


def test_decoding_reads_only_a_few_batches_ahead():
    opened = []

    class Source(bytes):
        def __bool__(self) -> bool:
            opened.append(1)
            return super().__len__() > 0

    data = Source(encoded(Image.new("RGB", (8, 8)), "PNG"))
    stream = decode_many([data] * 1000, SQUASH, batch_size=10, workers=2)
    next(stream)
    stream.close()
    assert len(opened) <= 60


def test_many_leave_the_warnings_of_the_process_alone():
    """Filters belong to all threads: suppressing warnings around each image would leave them suppressed."""
    data = encoded(Image.effect_noise((300, 300), 50), "PNG")
    decode_image(data, SQUASH)  # the one filter that stays
    before, interval = list(warnings.filters), sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        assert sum(len(batch.images) for batch in decode_many([data] * 300, SQUASH, batch_size=16, workers=6)) == 300
    finally:
        sys.setswitchinterval(interval)
    assert list(warnings.filters) == before
    with pytest.warns(UserWarning, match="still heard"):
        warnings.warn("still heard", UserWarning, stacklevel=1)


def test_sizes_that_do_not_stack_are_failures():
    sources = [encoded(Image.new("RGB", size), "PNG") for size in ((8, 8), (9, 7), (8, 8))]
    (batch,) = decode_many(sources, AS_IS)
    assert batch.indices.tolist() == [0, 2]
    assert batch.failures == [(1, "9x7 pixels, and the network takes 8x8 without resizing")]


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"workers": 0}, {"batch_size": -4}])
def test_numbers_of_many_are_checked_at_once(wrong):
    with pytest.raises(ArgumentError, match=r"at least 1\. Received"):
        decode_many([], SQUASH, **wrong)


def test_contracts_of_other_channels_are_refused():
    five = dataclasses.replace(SQUASH, channels=5, mean=(0.0,) * 5, std=(1.0,) * 5)
    with pytest.raises(ImageError, match="5 input channels"):
        decode_image(encoded(Image.fromarray(quarters()), "PNG"), five)


def test_the_limit_on_pixels_holds_below_pillows_own():
    with pytest.raises(ImageError, match="8x8 pixels, more than the 63"):
        decode_image(encoded(Image.fromarray(quarters()), "PNG"), SQUASH, max_pixels=63)
