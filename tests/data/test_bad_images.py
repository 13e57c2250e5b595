"""One folder with everything that goes wrong: what is found, what is used, and the reason for what is not."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from resfit.data.dataset import scan
from resfit.data.decode import decode_image, decode_many
from resfit.errors import ImageError
from resfit.preprocessing import InputSpec

# what Pillow says besides: of large images and of damaged metadata
pytestmark = pytest.mark.filterwarnings("ignore:Image size", "ignore:Corrupt EXIF")

SPEC = InputSpec(size=(16, 16), resize_mode="squash", interpolation="nearest")


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(width: int, height: int, bits: int, colour: int, body: bytes) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def whole_bomb() -> bytes:
    """A sound PNG of 20,000 x 20,000 black and white pixels in 50 kB."""
    return png(20_000, 20_000, 1, 0, zlib.compress(bytes(20_000 * (1 + 2500)), 9))


ORANGE = (250, 130, 10)
FLAT = Image.new("RGB", (16, 16), ORANGE)
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def halves() -> Image.Image:
    """Left orange, right black."""
    image = FLAT.copy()
    image.paste((0, 0, 0), (8, 0, 16, 16))
    return image


def see_through(mode: str) -> Image.Image:
    """Orange, or its grey, with a transparent black right half."""
    image = Image.new("RGBA", (16, 16), (*ORANGE, 255))
    image.paste((0, 0, 0, 0), (8, 0, 16, 16))
    return image.convert(mode)


# name: bytes, the colour expected at the left and at the right, the tolerance
GOOD = {
    "plain.png": (encoded(halves(), "PNG"), ORANGE, (0, 0, 0), 0),
    "really a png.jpg": (encoded(halves(), "PNG"), ORANGE, (0, 0, 0), 0),
    "really a jpeg.png": (encoded(FLAT, "JPEG", quality=100), ORANGE, ORANGE, 3),
    "really a tiff.gif": (encoded(halves(), "TIFF"), ORANGE, (0, 0, 0), 0),
    "cmyk.jpg": (encoded(FLAT.convert("CMYK"), "JPEG", quality=100), ORANGE, ORANGE, 3),
    "cmyk.tif": (encoded(halves().convert("CMYK"), "TIFF"), ORANGE, (0, 0, 0), 0),
    "palette.gif": (encoded(halves().quantize(2), "GIF"), ORANGE, (0, 0, 0), 0),
    "palette.bmp": (encoded(halves().quantize(2), "BMP"), ORANGE, (0, 0, 0), 0),
    "alpha.png": (encoded(see_through("RGBA"), "PNG"), ORANGE, (255, 255, 255), 0),
    "alpha.webp": (encoded(see_through("RGBA"), "WEBP", lossless=True), ORANGE, (255, 255, 255), 0),
    "alpha.tif": (encoded(see_through("RGBA"), "TIFF"), ORANGE, (255, 255, 255), 0),
    "grey alpha.png": (encoded(see_through("LA"), "PNG"), (152,) * 3, (255,) * 3, 0),
    "16 bit.png": (encoded(Image.fromarray(np.full((16, 16), 25700, np.uint16)), "PNG"), (100,) * 3, (100,) * 3, 0),
    "16 bit.tif": (encoded(Image.fromarray(np.full((16, 16), 65535, np.uint16)), "TIFF"), (255,) * 3, (255,) * 3, 0),
    "16 bit.pgm": (b"P5 1 1 65535\n" + struct.pack(">H", 51400), (200,) * 3, (200,) * 3, 0),
    "one bit.png": (
        encoded(halves().convert("L").point(lambda v: 255 * (v > 99), "1"), "PNG"),
        (255,) * 3,
        (0,) * 3,
        0,
    ),
    "animated.gif": (encoded(FLAT, "GIF", save_all=True, append_images=[NOISE.resize((16, 16))]), ORANGE, ORANGE, 0),
    "animated.webp": (
        encoded(FLAT, "WEBP", save_all=True, append_images=[NOISE.resize((16, 16))], lossless=True),
        ORANGE,
        ORANGE,
        0,
    ),
    "two pages.tif": (encoded(halves(), "TIFF", save_all=True, append_images=[NOISE]), ORANGE, (0, 0, 0), 0),
    "camera pair.mpo": (encoded(FLAT, "MPO", save_all=True, append_images=[FLAT], quality=100), ORANGE, ORANGE, 3),
    "one pixel.png": (encoded(Image.new("RGB", (1, 1), ORANGE), "PNG"), ORANGE, ORANGE, 0),
}

BAD = {
    "zero bytes.jpg": (b"", "empty file"),
    "cut.jpg": (encoded(NOISE, "JPEG")[:-200], "truncated"),
    "cut progressive.jpg": (encoded(NOISE, "JPEG", progressive=True)[:-200], "truncated"),
    "cut.png": (encoded(NOISE, "PNG")[:-200], "truncated"),
    "cut.gif": (encoded(NOISE.quantize(64), "GIF")[:-200], "truncated"),
    "cut.bmp": (encoded(NOISE, "BMP")[:-200], "truncated"),
    "cut.tif": (encoded(NOISE, "TIFF", compression="tiff_lzw")[:-200], "truncated"),
    "cut.webp": (encoded(NOISE, "WEBP")[:-200], "truncated"),
    "cut.ppm": (encoded(NOISE, "PPM")[:-200], "truncated"),
    "letter.jpg": (b"Dear customer,\nplease find attached ...\n" * 20, "not an image of a known format$"),
    "page.jpg": (b"<!DOCTYPE html><html><body>404 Not Found</body></html>", "a web page"),
    "paper.png": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "not an image .*PDF"),
    "phone.heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200), "HEI|cannot be decoded"),
    "phone.avif": (b"\0\0\0\x18ftypavif\0\0\0\0mif1avif" + bytes(200), "AVIF|damaged|cannot be decoded"),
    "slide.jp2": (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(200), "JPEG 2000; convert it"),
    "drawing.png": (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
    "icon.png": (encoded(FLAT.convert("RGBA"), "ICO"), "ICO"),
    "bomb.png": (whole_bomb(), "^400000000 pixels, more than the 100000000 that are allowed"),
    "bomb in the header.png": (png(20_000, 20_000, 8, 2, zlib.compress(b"")), "400000000 pixels"),
    "bomb below Pillow's limit.png": (png(11_000, 11_000, 8, 2, zlib.compress(b"")), "11000x11000 pixels"),
}


def test_every_file_is_used_or_has_its_reason(tmp_path):
    for name, (data, *_) in {**GOOD, **BAD}.items():
        path = tmp_path / "all" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    (tmp_path / "all" / "camera pair.mpo").rename(tmp_path / "all" / "camera pair.jpg")
    os.mkfifo(tmp_path / "all" / "pipe.jpg")
    (tmp_path / "all" / "folder.jpg").mkdir()
    (tmp_path / "all" / "loop.jpg").symlink_to("loop.jpg")
    for name in ("new\nline", "空 白", "Ελλάς", os.fsdecode(b"\xff\xfe")):
        (tmp_path / f"class {name}").mkdir()
        (tmp_path / f"class {name}" / f"{name}.png").write_bytes(GOOD["plain.png"][0])
    images = scan(tmp_path)
    assert {item.path.name: item.reason for item in images.skipped}.keys() == {"pipe.jpg", "folder.jpg", "loop.jpg"}
    assert len(images) == len(GOOD) + len(BAD) + 4
    assert len(images.classes) == 5

    used, reasons = {}, {}
    for batch in decode_many(images.paths, SPEC, batch_size=7, workers=3):
        used |= {images.paths[index].name: image for index, image in zip(batch.indices, batch.images, strict=True)}
        reasons |= {images.paths[index].name: reason for index, reason in batch.failures}
    assert reasons.keys() == BAD.keys()
    assert len(used) == len(GOOD) + 4
    for name, image in used.items():
        _, left, right, tolerance = GOOD.get(name.replace("pair.jpg", "pair.mpo"), GOOD["plain.png"])
        assert np.abs(image[:, :7].astype(int) - left).max() <= tolerance, name
        assert np.abs(image[:, 9:].astype(int) - right).max() <= tolerance, name
    assert all("\n" not in reason for reason in reasons.values())


@pytest.mark.parametrize("name", BAD)
def test_the_reason_of(name):
    data, reason = BAD[name]
    with pytest.raises(ImageError, match=reason):
        decode_image(data, SPEC)


def test_a_photo_held_upright_is_turned():
    """Orientation 6: the top of the scene is on the left of what is stored."""
    for kind, options in (("JPEG", {"quality": 100, "subsampling": 0}), ("PNG", {}), ("WEBP", {"lossless": True})):
        seen = decode_image(encoded(halves(), kind, exif=turned(), **options), SPEC).astype(int)
        assert np.abs(seen[:7] - ORANGE).max() <= 4
        assert seen[9:].max() <= 4


def test_a_turned_photo_is_scaled_by_its_upright_sides():
    wide = Image.new("RGB", (1200, 300), ORANGE)
    wide.paste((0, 0, 255), (600, 0, 1200, 300))
    spec = InputSpec(size=(40, 10), resize_mode="squash", interpolation="bilinear")
    seen = decode_image(encoded(wide, "JPEG", exif=turned(), quality=95, subsampling=0), spec).astype(int)
    assert np.abs(seen[:18] - ORANGE).max() <= 4
    assert np.abs(seen[22:] - (0, 0, 255)).max() <= 4


def test_damaged_exif_data_does_not_cost_the_image():
    exif = turned().tobytes()
    data = encoded(FLAT, "JPEG", quality=100, exif=exif[:-3] + b"\xff\xff\xff")
    assert np.abs(decode_image(data, SPEC).astype(int) - ORANGE).max() <= 3


@pytest.mark.parametrize("name", ["bomb.png", "bomb in the header.png", "bomb below Pillow's limit.png"])
def test_a_bomb_takes_no_memory(tmp_path, name):
    """In a process of its own, whose highest memory is nobody else's: decoded, the least of them takes 360 MB."""
    (tmp_path / "bomb.png").write_bytes(BAD[name][0])
    assert (tmp_path / "bomb.png").stat().st_size < 100_000
    script = (
        "import io, resource, sys\n"
        "from PIL import Image\n"
        "from resfit.data.decode import decode_image\n"
        "from resfit.errors import ImageError\n"
        "from resfit.preprocessing import InputSpec\n"
        "spec = InputSpec(size=(16, 16))\n"
        "small = io.BytesIO()\n"
        "Image.new('RGB', (20, 20)).save(small, 'PNG')\n"
        "decode_image(small.getvalue(), spec)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n"
        "    decode_image(sys.argv[1], spec)\n"
        "except ImageError as error:\n"
        "    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "bomb.png")], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 20_000  # kB


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes of another user")
def test_what_may_not_be_read_is_listed(tmp_path):
    """Root may read everything, so the check runs in a child that has given that up."""
    for name in ("a/1.png", "a/closed.png", "a/inner/2.png", "b/1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(GOOD["plain.png"][0])
    (tmp_path / "a" / "closed.png").chmod(0)
    (tmp_path / "a" / "inner").chmod(0)
    decode_image(tmp_path / "a" / "1.png", SPEC)  # everything is imported before the rights are gone

    def look() -> str:
        if os.getuid() == 0:
            tmp_path.chmod(0o755)
            os.chdir(tmp_path)  # the folders above it are closed to others
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            root = "."
        else:
            root = str(tmp_path)
        images = scan(root)
        lines = [f"{item.path.name}: {item.reason}" for item in images.skipped] + [str(len(images))]
        try:
            decode_image(os.path.join(root, "a", "closed.png"), SPEC)
        except ImageError as error:
            lines.append(str(error))
        return "\n".join(lines)

    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            answer = look()
        except BaseException as error:
            answer = repr(error)
        os.write(writing, answer.encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading) as pipe:
        seen = pipe.read().splitlines()
    (tmp_path / "a" / "inner").chmod(0o755)
    assert seen == [
        "closed.png: cannot be read: permission denied",
        "inner: cannot be read: Permission denied",
        "2",
        "cannot be read: Permission denied",
    ]
