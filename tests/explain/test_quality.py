"""On pictures whose cue is known: maps find it, forget it with the weights, and name the pixels that count."""

import numpy as np
import pytest

from resfit.explain import attribute, quality
from resfit.explain.methods import _blurred
from resfit.explain.overlays import enlarged
from tests.explain.cues import cue_pictures, fit_cues
from tests.numeric import images, randomize


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    found = fit_cues(tmp_path_factory.mktemp("cues"))
    assert found.run.test.accuracy > 0.9
    return found


@pytest.fixture(scope="module")
def pictures():
    return cue_pictures(60, seed=2)


@pytest.fixture(scope="module")
def maps(fitted, pictures):
    return [one.map for one in attribute(fitted.model, pictures[0], target=list(pictures[2]))]


def test_grad_cam_points_at_the_cue(maps, pictures):
    hits = [quality.points_at(heat, mask) for heat, mask in zip(maps, pictures[1], strict=True)]
    mass = [quality.mass_on(heat, mask) for heat, mask in zip(maps, pictures[1], strict=True)]
    assert np.mean(hits) >= 0.95
    assert np.mean(mass) > 5 * pictures[1].mean()  # five times the cue's share of the area


def test_random_weights_destroy_the_map(fitted, pictures):
    """Adebayo et al. 2018, arXiv:1810.03292: by rank, what is left has nothing in common with the map."""
    import keras
    from scipy.stats import spearmanr

    some, masks, kinds = (part[:24] for part in pictures)
    known = attribute(fitted.model, some, target=list(kinds))
    twin = keras.models.clone_model(fitted.model)
    ranks, mass = [], []
    for seed in range(4):
        found = attribute(randomize(twin, seed), some, target=list(kinds), stage=known[0].stage)
        ranks += [
            spearmanr(one.raw.ravel(), other.raw.ravel()).statistic for one, other in zip(known, found, strict=True)
        ]
        mass += [quality.mass_on(one.map, mask) for one, mask in zip(found, masks, strict=True)]
    assert abs(np.mean(ranks)) < 0.15
    before = np.mean([quality.mass_on(one.map, mask) for one, mask in zip(known, masks, strict=True)])
    assert np.mean(mass) < before / 2


def test_deletion_and_insertion_beat_a_random_order(fitted, pictures, maps):
    random = np.random.default_rng(0)
    better = []
    for picture, kind, heat in list(zip(pictures[0], pictures[2], maps, strict=True))[:9]:

        def probability(some, kind=kind):
            return np.asarray(fitted.model(some.astype("float32"), training=False))[:, kind]

        nothing = _blurred(picture.astype(np.float32))
        chance = enlarged(random.random((12, 12)), heat.shape)
        own = quality.curves(probability, picture, heat, nothing, steps=6)
        other = quality.curves(probability, picture, chance, nothing, steps=6)
        better.append((other.deletion_area - own.deletion_area, own.insertion_area - other.insertion_area))
    assert np.mean(better, axis=0).min() > 0.05
    assert (np.array(better)[:, 1] > 0).mean() > 0.8


# the measures themselves


def test_pointing_and_mass():
    heat = np.zeros((4, 4), np.float32)
    heat[1, 2], heat[3, 0] = 3, 1
    mask = np.zeros((4, 4), bool)
    mask[1, 2] = True
    assert quality.points_at(heat, mask)
    assert not quality.points_at(heat, ~mask)
    assert quality.mass_on(heat, mask) == 0.75
    assert quality.mass_on(np.zeros((4, 4)), mask) == 1 / 16


def test_curves_take_pixels_in_the_order_of_the_map():
    image = images(1, 4, 4, 3)[0].astype(np.float32) + 1
    heat = np.arange(16.0).reshape(4, 4)
    found = quality.curves(lambda some: (some > 0).all(axis=-1).mean(axis=(1, 2)), image, heat, 0 * image, steps=4)
    np.testing.assert_allclose(found.deletion, [1, 0.75, 0.5, 0.25, 0])
    np.testing.assert_allclose(found.insertion, [0, 0.25, 0.5, 0.75, 1])
    assert found.deletion_area == 0.5

    def last_quarter(some):
        return (some[:, 3] > 0).all(axis=(1, 2)).astype(float)

    best = quality.curves(last_quarter, image, heat, 0 * image, steps=4)
    np.testing.assert_allclose(best.deletion, [1, 0, 0, 0, 0])
    np.testing.assert_allclose(best.insertion, [0, 1, 1, 1, 1])
