import itertools

import numpy as np
import pytest

from resfit.errors import ArgumentError, DataError
from resfit.evaluation import robustness
from resfit.evaluation.inference import judge
from resfit.evaluation.ood_evaluation import measure_foreign
from resfit.evaluation.subgroups import by_column
from resfit.tasks.classification import fit
from tests.pictures import COLOURS, tiny_body, write_folder, write_picture

NAMES = list(robustness.CORRUPTIONS)


def scene(size=48):
    """Edges, a slope, colours, and detail."""
    y, x = np.mgrid[:size, :size] / size
    image = np.stack([60 + 120 * x, 190 - 110 * y, 90 + 60 * (x > 0.5)], axis=2)
    image[size // 4 : size // 2, size // 4 : size // 2] = (30, 220, 40)
    image += np.random.default_rng(0).normal(0, 25, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [28, 96])
def test_every_corruption_harms_more_the_stronger_it_is(name, size):
    images = np.stack([scene(size)] * 2)
    before = images.copy()
    errors = []
    for strength in robustness.STRENGTHS:
        changed = robustness.corrupt(images, name, strength)
        assert (changed.shape, changed.dtype) == (images.shape, np.uint8)
        errors.append(float(((changed.astype(float) - images) ** 2).mean()))
        np.testing.assert_array_equal(changed, robustness.corrupt(images, name, strength))
    np.testing.assert_array_equal(images, before)
    assert errors[0] > 0.5
    if name != "saturation":  # less of it first, then more
        assert all(b > 0.98 * a for a, b in itertools.pairwise(errors)), errors
        assert errors[-1] > 1.15 * errors[0]
    assert np.sqrt(errors[-1]) < 160


def test_noise_is_another_for_each_image_and_seed():
    images = np.stack([scene()] * 2)
    one = robustness.corrupt(images, "gaussian noise", 3)
    assert np.abs(one[0].astype(int) - one[1]).mean() > 5
    assert np.abs(one.astype(int) - robustness.corrupt(images, "gaussian noise", 3, seed=1)).mean() > 5
    grey = np.full((1, 200, 200, 3), 128, np.uint8)
    assert robustness.corrupt(grey, "gaussian noise", 2).std() == pytest.approx(0.08 * 255, rel=0.02)
    drawn = robustness.corrupt(grey, "impulse noise", 4)
    assert (drawn == 0).mean() == pytest.approx(0.06, abs=0.005)
    assert (drawn == 255).mean() == pytest.approx(0.06, abs=0.005)
    shot = robustness.corrupt(grey, "shot noise", 1) / 255
    assert shot.var() == pytest.approx(0.502 / 60, rel=0.05)  # Poisson: the variance is the mean over the photons


@pytest.mark.parametrize("name", ["gaussian blur", "defocus blur", "motion blur", "zoom blur", "pixelate"])
def test_blur_keeps_what_is_even(name):
    even = np.full((1, 40, 56, 3), 77, np.uint8)
    np.testing.assert_allclose(robustness.corrupt(even, name, 5), even, atol=1)
    single = np.zeros((1, 41, 41, 1), np.uint8)
    single[0, 12, 30] = 255
    changed = robustness.corrupt(single, name, 3).astype(float)
    assert changed.max() < 255
    assert changed.shape == single.shape


def test_arguments_of_corruptions():
    with pytest.raises(ArgumentError, match="Did you mean 'gaussian noise'"):
        robustness.corrupt(np.zeros((1, 8, 8, 3), np.uint8), "gausian noise", 1)
    with pytest.raises(ArgumentError, match="strength"):
        robustness.corrupt(np.zeros((1, 8, 8, 3), np.uint8), "jpeg", 6)
    with pytest.raises(ArgumentError, match="uint8"):
        robustness.corrupt(np.zeros((1, 8, 8, 3)), "jpeg", 1)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("data") / "images", each=30)


@pytest.fixture(scope="module")
def fitted(data):
    return fit(data, model=tiny_body(), seed=1)


def test_robustness_table(fitted, data):
    found = judge(fitted, data)
    table = robustness.robustness(fitted, found, names=["gaussian noise", "saturation"], most=60)
    assert table.images == 60
    assert [(row.corruption, row.strength) for row in table.rows] == [("none", 0)] + [
        (name, strength) for name in ("gaussian noise", "saturation") for strength in range(1, 6)
    ]
    by_hand = {row.strength: row for row in table.rows if row.corruption == "saturation"}
    assert table.rows[0].accuracy > 0.95
    # without colour nothing tells these apart, with a little of it they are told
    assert by_hand[3].accuracy < 0.6 < by_hand[1].accuracy
    assert by_hand[3].low < by_hand[3].accuracy < by_hand[3].high
    assert table.mean_accuracy == pytest.approx(np.mean([row.accuracy for row in table.rows[1:]]))
    again = robustness.robustness(fitted, found, names=["gaussian noise"], strengths=[5], most=60)
    assert again.rows[1] == next(r for r in table.rows if (r.corruption, r.strength) == ("gaussian noise", 5))


def test_foreign_images_are_ranked(fitted, data, tmp_path):
    from PIL import Image

    random = np.random.default_rng(0)
    for number in range(20):
        Image.fromarray(random.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
    found = measure_foreign(fitted, judge(fitted, data), tmp_path)
    assert found.count == 20
    assert found.method == "knn"
    for method in ("knn", "mahalanobis"):
        assert found.areas[method].value > 0.99
        assert found.flagged[method] == 1
        assert found.false[method] < 0.1
    assert set(found.areas) == {"knn", "mahalanobis", "energy"}
    assert found.to_dict()["areas"]["knn"]["value"] > 0.99


def test_figures_by_site(fitted, tmp_path):
    """One site's labels are wrong: its table says so, the other's does not."""
    names = list(COLOURS)
    rows = ["path,label,site"]
    for number in range(48):
        site = ("north", "south")[number % 2]
        colour = names[number % 3]
        path = write_picture(tmp_path / f"{number}.png", colour, 500 + number)
        label = names[(number + 1) % 3] if site == "south" else colour
        rows.append(f"{path.name},{label},{site}")
    path = write_picture(tmp_path / "last.png", "red", 600)
    rows.append(f"{path.name},red,")
    table = tmp_path / "table.csv"
    table.write_text("\n".join(rows))
    judged = judge(fitted, table)
    nobody, north, south = by_column(judged, table, "site", resamples=50)
    assert (nobody.value, nobody.count, nobody.figures) == ("", 1, None)
    assert (north.value, north.count, north.figures.overall["accuracy"].value) == ("north", 24, 1.0)
    assert (south.value, south.figures.overall["accuracy"].value) == ("south", 0.0)
    with pytest.raises(DataError, match="must have a column 'sight'"):
        by_column(judged, table, "sight")
    plain = write_folder(tmp_path / "plain", each=2)
    with pytest.raises(DataError, match="CSV file"):
        by_column(judge(fitted, plain), plain, "site")


def test_one_part_of_a_split(fitted, tmp_path):
    write_folder(tmp_path / "d" / "train", each=4)
    write_folder(tmp_path / "d" / "test", each=2)
    assert fitted.evaluate(tmp_path / "d", intervals=False).n == 18
    found = fitted.evaluate(tmp_path / "d", part="test")
    assert found.n == 6
    assert found.figures.units == 6
    assert found.to_dict()["figures"]["overall"]["accuracy"]["value"] == found.accuracy
    with pytest.raises(DataError, match="Received parts: test, train"):
        fitted.evaluate(tmp_path / "d", part="val")
    with pytest.raises(ArgumentError, match="Did you mean 'test'"):
        fitted.evaluate(tmp_path / "d", part="tests")
