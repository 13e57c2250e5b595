"""Boxes of known pixels, drawn through the letterbox and every change of a picture."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image, ImageDraw

from resfit.data import decode
from resfit.data.box_views import BoxViews, plain_placement, random_placement
from resfit.preprocessing import TORCH, InputSpec
from resfit.tasks.detection.feeds import LabelledPictures, PictureChanges, PictureFeed
from resfit.tasks.detection.network import detector_spec
from resfit.tasks.detection.targets import Places

LETTERBOX = InputSpec(size=(96, 128), resize_mode="letterbox", interpolation="bilinear")


def picture(size, box, colour=(255, 0, 0)):
    image = Image.new("RGB", (size[1], size[0]), (90, 90, 90))
    ImageDraw.Draw(image).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=colour)
    return image


def red_box(array):
    """The edges of what is mostly red."""
    red = (array[..., 0].astype(int) - array[..., 1]) > 80
    rows, columns = np.flatnonzero(red.any(axis=1)), np.flatnonzero(red.any(axis=0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], float)


def test_letterbox_keeps_proportions_and_pads_with_the_mean_colour():
    spec = dataclasses.replace(LETTERBOX, mean=TORCH.mean, std=TORCH.std, scale=TORCH.scale)
    found = decode.decode_image(picture((50, 200), (20, 10, 120, 40)), spec)
    assert found.shape == (96, 128, 3)
    assert found[0, 0].tolist() == [124, 116, 104] == list(spec.fill)
    assert np.abs(spec.normalize(found[:1, :1])).max() < 0.01  # what the network sees as nothing
    assert np.abs(red_box(found) - plain_placement((50, 200), spec.size).to_input([[20, 10, 120, 40]])[0]).max() <= 1
    for order in ("rgb", "bgr"):  # the fill is RGB whatever the network's order
        assert InputSpec(channel_order=order, mean=(1.0, 2.0, 3.0)).fill == ((1, 2, 3) if order == "rgb" else (3, 2, 1))


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_letterbox_of_a_large_jpeg_that_is_decoded_at_a_fraction_and_turned(orientation):
    image = picture((1203, 1607), (201, 303, 801, 1003))
    exif = Image.Exif()
    exif[274] = orientation
    data = io.BytesIO()
    image.save(data, "JPEG", exif=exif, quality=95)
    sizes = []
    spec = dataclasses.replace(LETTERBOX, size=(128, 128))
    found = decode.decode_image(data.getvalue(), spec, look=lambda _, upright: sizes.append(decode.full_size(upright)))
    turned = orientation == 6
    assert sizes == [(1607, 1203) if turned else (1203, 1607)]
    boxes = {1: (201, 303, 801, 1003), 3: (806, 200, 1406, 900), 6: (200, 201, 900, 801)}
    assert np.abs(red_box(found) - plain_placement(sizes[0], spec.size).to_input([boxes[orientation]])[0]).max() <= 1


@pytest.mark.parametrize("number", range(12))
def test_a_view_moves_the_box_with_the_picture(number):
    views = BoxViews(12, seed=3, zoom=(0.5, 2.0), colour=0.2)
    digest, size, box = bytes(range(32)), (60, 90), (33, 22, 60, 40)
    spec = dataclasses.replace(LETTERBOX, mean=(90.0, 90.0, 90.0))
    drawn = views.rendering(number, digest, spec)(picture(size, box))
    placement = views.placement(number, digest, size, spec.size)
    cut, shown = placement.visible(np.array([box]))
    array = np.asarray(drawn)
    assert array.shape == (96, 128, 3)
    if shown[0] == 0:
        assert not ((array[..., 0].astype(int) - array[..., 1]) > 80).any()
    elif shown[0] == 1:
        assert np.abs(red_box(array) - cut[0]).max() <= 1.3
    down, across = placement.scale
    assert abs(down / across - 1) < 0.02  # nothing is stretched


def test_a_flip_mirrors_the_picture_and_not_the_padding():
    random = np.random.default_rng(0)
    placements = [random_placement((40, 40), (96, 128), random, (0.5, 0.5), True) for _ in range(40)]
    mirrored = next(one for one in placements if one.mirrored)
    spec = dataclasses.replace(LETTERBOX, mean=(0.0, 200.0, 0.0))
    drawn = np.asarray(mirrored.draw(picture((40, 40), (0, 0, 10, 40)), spec))
    left = round(mirrored.offset[1])
    assert (drawn[5, :left] == (0, 200, 0)).all()
    assert np.abs(red_box(drawn)[[0, 2]] - (left + np.array([30, 40]) * mirrored.scale[1])).max() <= 1


def test_of_a_box_that_is_cut_off_little_shows_and_nothing_is_learned():
    placement = dataclasses.replace(plain_placement((100, 100), (100, 100)), offset=(0.0, -50.0))
    boxes = np.array([[40, 0, 60, 20], [30, 0, 60, 20], [10, 10, 45, 20], [60, 5, 80, 25]], float)
    cut, shown = placement.visible(boxes)
    assert shown.tolist() == [1, 1, 0, 1]
    assert cut[0].tolist() == [0, 0, 10, 20]
    assert placement.visible(np.array([[0, 0, 60, 20]]))[1].tolist() == [-1]  # a sixth of it


def test_mosaic_brings_the_boxes_of_four_pictures(tmp_path):
    colours = [(255, 0, 0), (255, 20, 0), (255, 40, 0), (255, 60, 0)]
    boxes = np.array([[10, 10, 40, 30]], np.float32)
    for number, colour in enumerate(colours):
        picture((60, 80), boxes[0], colour).save(tmp_path / f"{number}.png")
    pictures = LabelledPictures(
        paths=tuple(tmp_path / f"{number}.png" for number in range(4)),
        sizes=np.array([[60, 80]] * 4),
        boxes=(boxes,) * 4,
        labels=tuple(np.array([number]) for number in range(4)),
        crowd=(np.zeros(1, bool),) * 4,
        digests=(b"",) * 4,
    )
    from resfit.networks import catalog

    places = Places.of(detector_spec(catalog.get("resnet10_tiny").spec, 4, LETTERBOX.size), LETTERBOX.size)
    changes = PictureChanges(zoom=(0.8, 1.0), flip=True, colour=0.0, mosaic=1.0)
    feed = PictureFeed(pictures, LETTERBOX, places, changes, 4, seed=1)
    batch = next(iter(feed.batches(np.array([[0, 1]]), 0)))
    assert batch.inputs.shape == (2, 96, 128, 3)
    for image, found, labels, rows in zip(batch.inputs, batch.boxes, batch.labels, batch.rows, strict=True):
        assert set(rows[rows >= 0].tolist()) == {0, 1, 2, 3}  # every box is learned somewhere
        for box, label in zip(found, labels, strict=True):
            x1, y1, x2, y2 = np.round(box).astype(int)
            inside = image[y1 + 2 : y2 - 2, x1 + 2 : x2 - 2].reshape(-1, 3)
            assert np.abs(inside.astype(int) - colours[label]).max() <= 12
            outside = image[max(y1 - 2, 0), max(x1 - 3, 0)]
            assert outside[0] < 120
    again = next(iter(feed.batches(np.array([[0, 1]]), 0)))
    assert np.array_equal(batch.inputs, again.inputs)
    other = next(iter(feed.batches(np.array([[0, 1]]), 1)))
    assert not np.array_equal(batch.inputs, other.inputs)
