"""What a run keeps on disk: the decision before it starts, and pixels that survive a kill."""

from __future__ import annotations

import collections
import hashlib

import numpy as np
import pytest
from PIL import Image

from resfit.data import decode, image_statistics
from resfit.data.decode import decode_image
from resfit.features import pixels
from resfit.features.records import DecodeStatistics
from resfit.preprocessing import InputSpec

CONTRACT = InputSpec(size=(12, 16), crop_fraction=1.0)


@pytest.fixture
def files(tmp_path):
    random = np.random.default_rng(0)
    paths = []
    for number in range(150):
        path = tmp_path / "images" / f"{number:03}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)
        paths.append(path)
    for number in (0, 70, 149):
        paths[number].write_bytes(b"nothing")
    return paths


def digests(files):
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]


def expected(files):
    return np.stack([decode_image(path, CONTRACT) for number, path in enumerate(files) if number not in (0, 70, 149)])


def test_pixels_are_the_decoded_images_and_failures_are_told(files, tmp_path):
    images, failures = pixels.pixels(files, digests(files), CONTRACT, tmp_path / "cache")
    np.testing.assert_array_equal(images, expected(files))
    assert failures == dict.fromkeys((0, 70, 149), "not an image of a known format")


@pytest.mark.parametrize("rows", [0, 1, 62.5, 63, 69, 70, 126, 146])
@pytest.mark.parametrize("notes", [0, 1, 2, 3])
def test_what_a_kill_left_is_taken_up(files, tmp_path, rows, notes):
    known = digests(files)
    pixels.pixels(files, known, CONTRACT, tmp_path / "cache")
    (place,) = (path.parent for path in (tmp_path / "cache").glob("*/rows.bin"))
    lines = (place / "failures.jsonl").read_text().splitlines(keepends=True)
    # failures are on disk before the rows behind them
    if notes < sum(number < rows + notes for number in (0, 70, 149)):
        pytest.skip("rows without the failures before them are never left")
    with open(place / "rows.bin", "r+b") as file:
        file.truncate(int(rows * 12 * 16 * 3))
    (place / "failures.jsonl").write_text("".join(lines[:notes]) + ("[14" if notes < 3 else ""))
    images, failures = pixels.pixels(files, known, CONTRACT, tmp_path / "cache")
    np.testing.assert_array_equal(images, expected(files))
    assert sorted(failures) == [0, 70, 149]


def test_the_second_time_nothing_is_decoded(files, tmp_path):
    known = digests(files)
    first, _ = pixels.pixels(files, known, CONTRACT, tmp_path / "cache")
    kept = np.array(first)
    for path in files:
        path.unlink()
    again, failures = pixels.pixels(files, known, CONTRACT, tmp_path / "cache")
    np.testing.assert_array_equal(again, kept)
    assert len(failures) == 3


@pytest.fixture
def decodings(monkeypatch):
    """Counts what is decoded, by its bytes."""
    counts = collections.Counter()
    original = decode.decode_renderings

    def counting(source, *arguments, **options):
        counts[source if isinstance(source, bytes) else source.read_bytes()] += 1
        return original(source, *arguments, **options)

    monkeypatch.setattr(decode, "decode_renderings", counting)
    return counts


@pytest.mark.parametrize("cache", [True, False])
def test_pixels_and_records_come_of_one_decoding(files, tmp_path, decodings, cache):
    (tmp_path / "images" / "copy.png").write_bytes(files[5].read_bytes())
    files.append(tmp_path / "images" / "copy.png")
    found = pixels.decoded(files, CONTRACT, tmp_path / "cache" if cache else False, records=True)
    assert sum(decodings.values()) == 151
    assert len(found.records) == len(found.images) == len(found.digests) == 148
    assert found.records[-1] == found.records[found.digests.index(found.digests[-1])] != found.records[0]
    expected_records = [one_record(files[position]) for position in found.indices]
    np.testing.assert_array_equal(found.records, np.concatenate(expected_records))


def test_pixels_of_an_earlier_run_get_records_too(files, tmp_path, decodings):
    plain = pixels.decoded(files, CONTRACT, tmp_path / "cache")
    assert len(plain.records) == 0
    decodings.clear()
    found = pixels.decoded(files, CONTRACT, tmp_path / "cache", records=True)
    assert sum(decodings.values()) == 147  # those that cannot be decoded are known
    decodings.clear()
    again = pixels.decoded(files, CONTRACT, tmp_path / "cache", records=True)
    assert not decodings
    np.testing.assert_array_equal(again.records, found.records)
    np.testing.assert_array_equal(found.images, plain.images)


def test_a_kill_between_records_and_pixels_costs_one_chunk(files, tmp_path, decodings):
    whole = pixels.decoded(files, CONTRACT, tmp_path / "whole", records=True)
    known = digests(files)
    kept = DecodeStatistics(tmp_path / "cache", records=True)

    def stop(what, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pixels.pixels(files, known, CONTRACT, tmp_path / "cache" / "pixels", progress=stop, sights=kept)
    decodings.clear()
    found = pixels.decoded(files, CONTRACT, tmp_path / "cache", records=True)
    assert sum(decodings.values()) == 150 - 64
    np.testing.assert_array_equal(found.records, whole.records)
    np.testing.assert_array_equal(found.images, whole.images)


def one_record(path):
    seen = []
    decode.decode_image(path, CONTRACT, look=lambda header, image: seen.append(image_statistics.measure(header, image)))
    return seen[0]


def test_the_oldest_make_room(tmp_path):
    import os

    for number in range(4):
        path = tmp_path / f"array {number}" / "rows.bin"
        path.parent.mkdir()
        path.write_bytes(bytes(100))
        os.utime(path, (1000 + number, 1000 + number))
    pixels.make_room(tmp_path, needed=150, limit=400)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["array 2", "array 3"]
    pixels.make_room(tmp_path / "none", 1, 1)


def test_storage_is_decided_before_anything_is_computed(tmp_path):
    shape = (14, 14, 1024)
    one = 14 * 14 * 1024 * 4
    room = pixels.plan(400, 2, shape, tmp_path, budget=10**10, free=10**12)
    assert (room.stored, room.dtype, room.bytes) == (True, "float32", 800 * one)
    tight = pixels.plan(400, 2, shape, tmp_path, budget=500 * one, free=10**12)
    assert (tight.stored, tight.dtype, tight.bytes) == (True, "float16", 400 * one)
    over = pixels.plan(400, 2, shape, tmp_path, budget=300 * one, free=10**12)
    assert not over.stored
    assert "runs in every epoch on the fast engine" in over.reason
    full = pixels.plan(400, 1, shape, tmp_path, budget=10**10, free=100 * one)
    assert not full.stored
    assert full.limit == 50 * one
    assert not pixels.plan(400, 0, shape, tmp_path).stored
    assert pixels.plan(1, 1, (2,), tmp_path / "not there yet").stored
