"""Random changes to images: what they are, by numbers, and that seeds decide them."""

from __future__ import annotations

import numpy as np
import pytest

from resfit.errors import ArgumentError
from resfit.training import augment
from tests.numeric import images

BATCH = images(64, 16, 20, 3, seed=1)
ONE_HOT = np.eye(4, dtype=np.float32)[np.arange(64) % 4]


@pytest.mark.parametrize(
    "change",
    [
        lambda x, s: augment.crop_and_flip(x, (16, 20), 0.4, s),
        lambda x, s: augment.colour(x, 0.4, s),
        lambda x, s: augment.rand_augment(x, 2, 7, s),
        lambda x, s: augment.random_erasing(x, 0.5, s),
        lambda x, s: augment.mixup(x, ONE_HOT, 0.4, s)[0],
        lambda x, s: augment.cutmix(x, ONE_HOT, 1.0, s)[0],
    ],
)
def test_seeds_decide(change):
    before = BATCH.copy()
    first, again, other = (np.asarray(change(BATCH, seed)) for seed in ((0, 1), (0, 1), (0, 2)))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).mean() > 1
    assert first.shape == BATCH.shape
    assert first.dtype == np.float32
    assert first.min() >= -1e-3
    assert first.max() <= 255 + 1e-3
    np.testing.assert_array_equal(BATCH, before)


def test_nothing_is_cropped_at_a_scale_of_one():
    values = np.asarray(augment.crop_and_flip(BATCH, (16, 20), 1.0, (0, 1), flip=False))
    np.testing.assert_allclose(values, BATCH, atol=1e-3)
    mirrored = np.asarray(augment.crop_and_flip(BATCH, (16, 20), 1.0, (0, 1)))
    same = np.isclose(mirrored, BATCH, atol=1e-3).all(axis=(1, 2, 3))
    turned = np.isclose(mirrored, BATCH[:, :, ::-1], atol=1e-3).all(axis=(1, 2, 3))
    assert (same ^ turned).all()
    assert 16 < turned.sum() < 48


def test_colour_of_no_strength_changes_nothing():
    np.testing.assert_allclose(augment.colour(BATCH, 0.0, (0, 1)), BATCH, atol=1e-3)
    grey = np.full((32, 8, 8, 3), 100, np.uint8)
    values = np.asarray(augment.colour(grey, 0.5, (0, 1)))
    np.testing.assert_allclose(values.std(axis=(1, 2, 3)), 0, atol=1e-3)  # grey stays grey, brighter or darker
    assert values.min() >= 49.9
    assert values.max() <= 150.1
    assert values[:, 0, 0, 0].std() > 10


def test_each_change_of_rand_augment_is_the_stated_one():
    import tensorflow as tf

    picture = (images(1, 96, 96, 3, seed=2)[0] // 2 + 40).astype(np.uint8)
    image = picture.astype(np.float32)
    at = dict(zip(augment.PHOTOMETRIC, augment._photometric(tf.constant(image), 0.5, 1.0), strict=True))
    found = {name: np.asarray(change()) for name, change in at.items()}
    np.testing.assert_array_equal(found["identity"], image)
    low, high = image.min((0, 1)), image.max((0, 1))
    np.testing.assert_allclose(found["autocontrast"], (image - low) * 255 / (high - low), rtol=1e-4, atol=1e-2)
    np.testing.assert_array_equal(found["solarize"], np.where(image >= 128, 255 - image, image))
    np.testing.assert_array_equal(found["posterize"], np.floor(image / 4) * 4)
    np.testing.assert_allclose(found["brightness"], np.clip(image * 1.45, 0, 255), rtol=1e-5)
    grey = (image @ np.array([0.299, 0.587, 0.114]))[..., None]
    np.testing.assert_allclose(found["colour"], np.clip(grey + 1.45 * (image - grey), 0, 255), rtol=1e-3, atol=1e-2)
    contrast = np.clip(grey.mean() + 1.45 * (image - grey.mean()), 0, 255)
    np.testing.assert_allclose(found["contrast"], contrast, rtol=1e-3, atol=1e-2)
    from PIL import Image, ImageOps

    reference = np.asarray(ImageOps.equalize(Image.fromarray(picture)), np.float32)
    assert np.abs(found["equalize"] - reference).mean() < 8  # of 255; Pillow rounds its steps


def test_geometry_moves_and_fills_with_grey():
    import tensorflow as tf

    white = np.full((5, 20, 20, 3), 255, np.float32)
    kinds = tf.constant([-1, 0, 1, 3, 4])  # none, rotate, shear_x, translate_x, translate_y
    values = np.asarray(augment._project(tf.constant(white), kinds, 1.0, tf.ones(5)))
    np.testing.assert_array_equal(values[0], white[0])
    for position in (1, 2, 3, 4):
        assert (values[position] == 127).any(), position
    moved = (values[3] == 127).all(axis=(0, 2))
    assert moved.sum() == 9  # 45 % of 20 columns
    assert (values[4] == 127).all(axis=(1, 2)).sum() == 9


def test_erased_share_and_area():
    white = np.full((400, 30, 30, 3), 1000, np.float32)  # no noise is so bright
    values = np.asarray(augment.random_erasing(white, 0.25, (0, 3)))
    erased = (values < 1000).any(axis=3).mean(axis=(1, 2))
    assert 0.17 < (erased > 0).mean() < 0.33
    assert erased[erased > 0].min() > 0.005
    assert erased.max() < 0.40
    np.testing.assert_array_equal(augment.random_erasing(BATCH, 0.0, (0, 3)), BATCH)


def test_mixup_blends_images_and_targets_alike():
    values, targets = (np.asarray(v) for v in augment.mixup(BATCH, ONE_HOT, 1.0, (0, 5)))
    np.testing.assert_allclose(targets.sum(axis=1), 1, atol=1e-6)
    share = np.median(targets.max(axis=1))
    share = max(share, 1 - share)
    # some order of the batch explains it
    matched = 0
    for i in range(64):
        for kept in (share, 1 - share):
            rest = (values[i] - kept * BATCH[i]) / (1 - kept)
            distances = np.abs(BATCH - rest).max(axis=(1, 2, 3))
            j = int(distances.argmin())
            if distances[j] < 0.5:
                np.testing.assert_allclose(targets[i], kept * ONE_HOT[i] + (1 - kept) * ONE_HOT[j], atol=1e-4)
                matched += 1
                break
    assert matched >= 60


def test_cutmix_targets_are_areas():
    values, targets = (np.asarray(v) for v in augment.cutmix(BATCH, ONE_HOT, 1.0, (0, 5)))
    kept = (values == BATCH).all(axis=3).mean(axis=(1, 2))
    own = (targets * ONE_HOT).sum(axis=1)
    partner_same = own > 0.999
    np.testing.assert_allclose(own[~partner_same], kept[~partner_same], atol=0.02)
    assert (~partner_same).sum() > 20
    assert 0.05 < kept[~partner_same].mean() < 0.95


def test_views_for_predictions():
    views = augment.prediction_views(BATCH, 10)
    assert len(views) == 10
    assert len(augment.prediction_views(BATCH, 3)) == 3
    np.testing.assert_array_equal(views[0], BATCH)
    np.testing.assert_array_equal(views[1], BATCH[:, :, ::-1])
    for view in views:
        assert view.shape == BATCH.shape
        assert view.dtype == np.uint8
    ramp = np.tile(np.arange(16, dtype=np.float32)[None, :, None, None] * 10, (1, 1, 20, 3))
    top, bottom = (augment.prediction_views(ramp, 10)[position] for position in (4, 8))
    assert top[0, 0, 0, 0] < 5 < bottom[0, 0, 0, 0]
    assert top[0, -1, 0, 0] < 140 < bottom[0, -1, 0, 0]
    with pytest.raises(ArgumentError, match=r"1\.\.10"):
        augment.prediction_views(BATCH, 11)


def test_rand_augment_refuses_what_is_out_of_range():
    with pytest.raises(ArgumentError, match="magnitude"):
        augment.rand_augment(BATCH, 2, 11, (0, 1))
