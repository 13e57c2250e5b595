import dataclasses

import numpy as np
import pytest
from PIL import Image

from resfit.data.views import Views
from resfit.errors import ArgumentError
from resfit.preprocessing import TORCH, InputSpec

SPEC = dataclasses.replace(TORCH, size=(16, 20))
DIGEST = bytes(range(32))


@pytest.fixture
def picture():
    """Red grows from left to right, green from top to bottom."""
    down, right = np.mgrid[0:120, 0:160]
    return Image.fromarray(np.stack([right, down, np.full_like(down, 128)], axis=-1).astype(np.uint8))


def render(picture, number=0, digest=DIGEST, spec=SPEC, **options):
    return np.asarray(Views(**options).rendering(number, digest, spec)(picture)).astype(int)


def test_a_view_follows_from_seed_number_and_image_alone(picture):
    first = render(picture)
    assert first.shape == (16, 20, 3)
    np.testing.assert_array_equal(render(picture, count=9), first)
    assert not np.array_equal(render(picture, number=1), first)
    assert not np.array_equal(render(picture, seed=1), first)
    assert not np.array_equal(render(picture, digest=bytes(32)), first)


def test_half_are_mirrored_and_none_if_not_wanted(picture):
    def mirrored(number, **options):
        view = render(picture, number=number, colour=0.0, **options)
        return view[:, 0, 0].mean() > view[:, -1, 0].mean()

    assert 30 <= sum(mirrored(number) for number in range(100)) <= 70
    assert not any(mirrored(number, flip=False) for number in range(50))


def test_crops_keep_the_share_of_the_area(picture):
    for number in range(50):
        view = render(picture, number=number, area=(0.25, 0.5), flip=False, colour=0.0, aspect=(0.9, 1.1))
        # the values are coordinates, so that the range says how much of each side was kept
        width, height = (np.ptp(view[..., channel]) / (1 - 1 / side) for channel, side in ((0, 20), (1, 16)))
        assert 0.22 < width * height / (160 * 120) < 0.55


def test_colours_change_within_bounds():
    grey = Image.new("RGB", (40, 40), (100, 100, 100))
    means = [render(grey, number=number, colour=0.3).mean() for number in range(100)]
    assert 65 <= min(means) < 80
    assert 120 < max(means) <= 135
    assert {render(grey, number=number, colour=0.0).mean() for number in range(5)} == {100}


def test_grey_long_and_unresized_images():
    spec = InputSpec(size=(8, 8), channels=1, mean=(0.0,), std=(1.0,))
    assert render(Image.new("L", (30, 30), 50), spec=spec, colour=0.0).tolist() == [[50] * 8] * 8
    assert render(Image.new("RGB", (500, 3)), area=(0.9, 1.0)).shape == (16, 20, 3)
    assert render(Image.new("RGB", (30, 24)), spec=dataclasses.replace(SPEC, resize_mode="none")).shape == (24, 30, 3)


@pytest.mark.parametrize(
    "options", [{"count": 0}, {"area": (0, 1)}, {"area": (0.5, 0.4)}, {"aspect": (0, 1)}, {"colour": 1.0}]
)
def test_what_is_refused(options):
    with pytest.raises(ArgumentError, match=next(iter(options))):
        Views(**options)


def test_a_view_of_more_than_eight_bits_is_that_of_eight_but_for_the_rounding(picture):
    grey = picture.convert("L")
    deep = Image.fromarray(np.asarray(grey).astype(np.float32))
    for number in range(12):
        rendering = Views(colour=0.4).rendering(number, DIGEST, SPEC)
        coarse, fine = np.asarray(rendering(grey)).astype(np.float32), np.asarray(rendering(deep))
        assert fine.dtype == np.float32
        assert np.abs(fine - coarse).max() < 3
        np.testing.assert_array_equal(fine, np.asarray(rendering(deep)))  # every plane gets the same view
    assert np.any(fine != np.rint(fine))
