import io

import numpy as np
import pytest
from benchmarks.planted import CHANGES
from PIL import Image, ImageFilter

from resfit.data import image_statistics
from resfit.data.decode import decode_renderings
from resfit.preprocessing import InputSpec

SPEC = InputSpec(size=(32, 32), crop_fraction=1.0)


def scene(seed, size=(64, 64)):
    """A smooth picture of its own with some edges."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (6, 6, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
    pixels = np.asarray(coarse, np.float32)
    top, left = random.integers(8, 40, 2)
    pixels = pixels.copy()
    pixels[top : top + 16, left : left + 12] = random.integers(0, 256, 3)
    return Image.fromarray(np.clip(pixels + random.normal(0, 3, pixels.shape), 0, 255).astype(np.uint8))


def record(image, form="PNG", **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    found = []
    arrays = decode_renderings(
        file.getvalue(), SPEC, [], look=lambda header, upright: found.append(image_statistics.measure(header, upright))
    )
    assert arrays == []
    return found[0], len(file.getvalue())


def records(images):
    return np.concatenate([record(image)[0] for image in images])


def test_a_record_says_what_the_file_and_the_picture_are():
    image = Image.fromarray(np.full((40, 20, 3), (200, 100, 50), np.uint8))
    exif = Image.Exif()
    exif[271], exif[274] = "Maker", 6  # a quarter turn
    row, size = record(image, "JPEG", quality=60, exif=exif)
    assert (row["width"][0], row["height"][0], row["bytes"][0]) == (20, 40, size)
    assert row["exif"][0] == len(exif.tobytes())
    assert row["camera"][0] > 0
    assert row["tables"][0] > record(image, "JPEG", quality=90)[0]["tables"][0] > 0
    np.testing.assert_allclose(row["thumbnail"][0].mean(axis=(0, 1)), (200, 100, 50), atol=2)
    plain, _ = record(image)
    assert (plain["tables"][0], plain["exif"][0], plain["camera"][0]) == (0, 0, 0)
    assert plain["kind"][0] != row["kind"][0]


def test_the_thumbnail_is_the_mean_of_its_cells():
    pixels = np.random.default_rng(0).integers(0, 256, (64, 32, 3), np.uint8)
    expected = pixels.reshape(16, 4, 16, 2, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(record(Image.fromarray(pixels))[0]["thumbnail"][0], expected, atol=2)
    grey = record(Image.fromarray(pixels[..., 0]))[0]["thumbnail"][0]
    np.testing.assert_allclose(grey[..., 2], expected[..., 0], atol=2)


def test_hashes_forget_what_does_not_matter():
    found = image_statistics.hashes(records([scene(seed) for seed in range(20)]))
    apart = np.bitwise_count(found[:, None] ^ found[None])[np.triu_indices(20, 1)]
    assert apart.min() > image_statistics.NEAR_BITS
    random = np.random.default_rng(0)
    for number, change in enumerate(CHANGES):
        changed = image_statistics.hashes(records([change(scene(seed), random) for seed in range(20)]))
        assert np.median(np.bitwise_count(found ^ changed)) <= 8, number


@pytest.mark.parametrize("room", [0, 10**9])
def test_rows_that_are_alike_are_found_by_a_bound(monkeypatch, room):
    monkeypatch.setattr(image_statistics, "_IN_MEMORY", room)
    random = np.random.default_rng(0)
    centres = random.normal(size=(30, 300)) * np.linspace(3, 0.1, 300)
    rows = centres[random.integers(0, 30, 400)] + random.normal(size=(400, 300)) * random.uniform(0.05, 0.6, (400, 1))
    rows = image_statistics.directions(rows, centre=False)
    pairs = np.stack(np.triu_indices(400, 1), axis=1)
    exact = np.einsum("nd,nd->n", rows[pairs[:, 0]].astype(float), rows[pairs[:, 1]].astype(float))
    found, cosines = image_statistics._alike(rows, pairs, 0.9)
    sure = np.abs(exact - 0.9) > 1e-5
    wanted = {tuple(pair) for pair in pairs[sure & (exact > 0.9)].tolist()}
    got = {tuple(pair) for pair in found.tolist()}
    assert 1000 < len(wanted) < 20_000
    assert wanted <= got
    assert not got & {tuple(pair) for pair in pairs[sure & (exact < 0.9)].tolist()}
    places = {tuple(pair): value for pair, value in zip(pairs.tolist(), exact, strict=True)}
    np.testing.assert_allclose(cosines, [places[tuple(pair)] for pair in found.tolist()], atol=2e-5)


def test_near_duplicates_are_found_and_nothing_else():
    random = np.random.default_rng(1)
    originals = [scene(seed) for seed in range(60)]
    copies = [CHANGES[seed % len(CHANGES)](originals[seed], random) for seed in range(20)]
    found = image_statistics.near_duplicates(records([*originals, *copies, originals[7]]))
    expected = {(seed, 60 + seed) for seed in range(20)} | {(7, 80)}
    assert len(expected & {tuple(pair) for pair in found.tolist()}) >= 19
    assert {tuple(pair) for pair in found.tolist()} - expected <= {(67, 80)}


def test_plain_images_are_no_duplicates_of_each_other():
    plain = [Image.new("RGB", (32, 32), (value, value, value)) for value in range(0, 250, 10)]
    assert len(image_statistics.near_duplicates(records(plain))) == 0
    assert len(image_statistics.near_duplicates(records(plain[:1]))) == 0


def test_pairs_are_those_of_all_hashes():
    random = np.random.default_rng(0)
    hashes = np.unique(random.integers(0, 2**63, 700).astype(np.uint64))
    hashes[300] = hashes[20] ^ np.uint64(0b1011)
    hashes[650] = hashes[600] ^ np.uint64((1 << image_statistics.NEAR_BITS) - 1)
    hashes[651] = hashes[601] ^ np.uint64((1 << (image_statistics.NEAR_BITS + 1)) - 1)
    bits = [int(value) for value in hashes]
    pairs = [(a, b) for a in range(700) for b in range(a + 1, 700) if (bits[a] ^ bits[b]).bit_count() <= 14]
    assert {(20, 300), (600, 650)} <= set(pairs)
    assert (601, 651) not in pairs
    assert sorted(map(tuple, image_statistics._close(hashes).tolist())) == pairs


def test_images_that_look_wrong():
    good = [scene(seed) for seed in range(30)]
    bad = [
        Image.new("RGB", (64, 64), (120, 120, 120)),
        good[0].point(lambda value: value // 12),
        good[1].point(lambda value: 238 + value // 15),
        good[2].filter(ImageFilter.GaussianBlur(6)),
        good[3].resize((640, 30)),
    ]
    found = image_statistics.image_issues(records([*good, *bad]))
    assert {name: at.tolist() for name, at in vars(found).items()} == {
        "blank": [30],
        "dark": [31],
        "bright": [32],
        "blurred": [33],
        "odd": [34],
    }


@pytest.mark.parametrize("strength", [1.0, 0.7])
def test_a_mark_on_one_class_is_found_with_its_images(strength):
    images = [np.asarray(scene(seed), np.float32) for seed in range(90)]
    labels = np.arange(90) % 3
    sign = np.zeros((14, 14, 3), np.float32)
    sign[:, 4:9] = 250
    for number in range(90):
        if labels[number] == 1 and number >= 9:  # not on the first three
            area = np.s_[48:62, 2:16]
            images[number][area] = (1 - strength) * images[number][area] + strength * sign
    table = records([Image.fromarray(image.astype(np.uint8)) for image in images])
    (mark,) = image_statistics.marks(table, labels, 3)
    assert mark.label == 1
    top, left, bottom, right = mark.box
    assert top >= 0.6
    assert bottom <= 1
    assert left <= 0.15
    assert right <= 0.4
    expected = {number for number in range(9, 90) if number % 3 == 1}
    found = set(mark.positions.tolist())
    assert len(found & expected) >= 0.9 * len(expected)
    assert len(found - expected) <= 1
    assert image_statistics.marks(records([scene(seed) for seed in range(90)]), labels, 3) == []
