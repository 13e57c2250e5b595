"""Maps over photos at their own size: the right place of the photo, whatever became of it before the network."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from PIL import Image

from resfit.data import decode
from resfit.explain import Explanation, overlays, photos
from resfit.preprocessing import InputSpec

CROP = InputSpec(size=(16, 16), resize_mode="shorter", crop_fraction=0.8)
SQUASH = dataclasses.replace(CROP, resize_mode="squash")


def marked(height, width, row, column):
    """A black picture with one white square, centred on a place."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[row - 12 : row + 12, column - 12 : column + 12] = 255
    return pixels


def explained(source, contract):
    """An explanation whose map is the brightness of what the network saw."""
    image = (
        decode.decode_image(source, contract)
        if not isinstance(source, np.ndarray)
        else np.asarray(decode.resize(Image.fromarray(source), contract))
    )
    heat = (image.mean(axis=-1) / 255).astype(np.float32)
    nothing = np.zeros((0, 0), np.float32)
    return Explanation(None, "a", "a", 1.0, heat, nothing, image, "grad-cam", "map", source=source, contract=contract)


@pytest.mark.parametrize("contract", [CROP, SQUASH], ids=["crop", "squash"])
@pytest.mark.parametrize(("size", "place"), [((200, 320), (80, 190)), ((320, 200), (150, 70)), ((200, 200), (90, 120))])
def test_the_map_lies_where_the_network_looked(tmp_path, contract, size, place):
    pixels = marked(*size, *place)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    for source in (tmp_path / "photo.png", pixels):
        one = explained(source, contract)
        drawn = one.overlay
        assert (drawn.shape, drawn.dtype) == ((*size, 3), np.uint8)
        heat = overlays.photo_layer(one.photo(), one.map)[..., 3].astype(float)
        rows, columns = np.indices(size)
        centre = (rows * heat).sum() / heat.sum(), (columns * heat).sum() / heat.sum()
        # a cell of the map is 12 to 20 pixels of the photo
        assert np.abs(np.subtract(centre, place)).max() < 6


def test_an_upright_photo_of_a_turned_file(tmp_path):
    exif = Image.Exif()
    exif[0x112] = 6  # a quarter turn
    Image.fromarray(marked(200, 320, 60, 100)).save(tmp_path / "photo.jpg", exif=exif, quality=95)
    one = explained(tmp_path / "photo.jpg", SQUASH)
    assert one.overlay.shape == (320, 200, 3)
    assert tuple(one.overlay[100, 139]) > tuple(one.overlay[60, 100])


def test_what_the_network_did_not_see_is_darker(tmp_path):
    Image.fromarray(np.full((100, 200, 3), 200, np.uint8)).save(tmp_path / "photo.png")
    one = dataclasses.replace(explained(tmp_path / "photo.png", CROP), map=np.zeros((16, 16), np.float32))
    assert one.photo().box == pytest.approx((60, 10, 140, 90))
    drawn = one.overlay
    assert (drawn[10:90, 60:140] == 200).all()
    assert (drawn[:10] == 100).all()
    assert (drawn[:, :60] == 100).all()
    assert (drawn[:, 140:] == 100).all()


def test_large_photos_are_bounded_and_others_are_not_enlarged(tmp_path):
    Image.fromarray(marked(300, 600, 150, 300)).save(tmp_path / "photo.jpg")
    one = explained(tmp_path / "photo.jpg", CROP)
    assert one.overlay.shape == (300, 600, 3)
    assert one.picture(longest=150).shape == (75, 150, 3)
    assert one.picture(longest=9000).shape == (300, 600, 3)
    assert one.photo(150).box == pytest.approx(np.array(one.photo().box) / 4, abs=0.5)


def test_grey_scans_of_many_bits(tmp_path):
    wide = (marked(90, 120, 40, 60)[..., 0].astype(np.uint16) * 257) // 2
    Image.fromarray(wide).save(tmp_path / "scan.png")
    photo = photos.read(tmp_path / "scan.png", dataclasses.replace(CROP, channels=1, mean=(0.0,), std=(1.0,)))
    assert (photo.pixels.shape, photo.pixels.dtype) == ((90, 120, 3), np.uint8)
    assert set(np.unique(photo.pixels)) == {0, 127} or set(np.unique(photo.pixels)) == {0, 128}


def test_a_photo_that_is_gone_is_drawn_as_the_network_saw_it(tmp_path):
    Image.fromarray(marked(60, 60, 30, 30)).save(tmp_path / "photo.png")
    one = explained(tmp_path / "photo.png", SQUASH)
    (tmp_path / "photo.png").unlink()
    assert one.overlay.shape == (16, 16, 3)
    np.testing.assert_array_equal(one.overlay, overlays.overlay(one.image, one.map))
