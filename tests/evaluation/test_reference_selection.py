"""Thumbnails of training images, which a second fit finds on disk."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from resfit.data.thumbnails import thumbnails
from resfit.evaluation import reference_selection
from resfit.features import records
from resfit.features.digests import digest_files


@pytest.fixture
def files(tmp_path):
    """Small images, a copy of one, a broken file, and one whose thumbnail is too large to be kept."""
    random = np.random.default_rng(0)
    folder = tmp_path / "images"
    folder.mkdir()
    paths = [folder / f"{number}.png" for number in range(5)]
    for path in paths:
        Image.fromarray(random.integers(0, 256, (20, 30, 3), np.uint8)).save(path)
    (folder / "copy.png").write_bytes(paths[1].read_bytes())
    (folder / "broken.png").write_bytes(b"nothing")
    Image.fromarray(random.integers(0, 256, (96, 96, 3), np.uint8)).save(folder / "noise.png")
    return [*paths, folder / "copy.png", folder / "broken.png", folder / "noise.png"]


def test_thumbnails_are_made_once(files, tmp_path, monkeypatch):
    expected = list(thumbnails(files))
    assert len(expected[-1]) > records.ROOM > max(map(len, expected[:-1]))
    digests = [entry.digest for entry in digest_files(files, None)]
    made = []

    def counting(paths):
        made.extend(path.name for path in paths)
        return thumbnails(paths)

    monkeypatch.setattr(reference_selection, "thumbnails", counting)
    assert reference_selection._kept_thumbnails(files, digests, tmp_path / "cache") == expected
    assert len(made) == 7  # the copy is the same image
    made.clear()
    backwards = reference_selection._kept_thumbnails(files[::-1], digests[::-1], tmp_path / "cache")
    assert backwards == expected[::-1]
    assert sorted(made) == ["broken.png", "noise.png"]


def test_damaged_thumbnails_are_made_again(files, tmp_path):
    digests = [entry.digest for entry in digest_files(files, None)]
    expected = reference_selection._kept_thumbnails(files, digests, tmp_path)
    (rows,) = (path for path in tmp_path.glob("features/*/*") if path.stat().st_size == 5 * records.ROOM)
    data = bytearray(rows.read_bytes())
    data[2 * records.ROOM + 9] ^= 255
    rows.write_bytes(data)
    assert reference_selection._kept_thumbnails(files, digests, tmp_path) == expected
    # a file that cannot be read has neither a digest nor a picture
    assert reference_selection._kept_thumbnails([tmp_path / "gone.png"], [b""], tmp_path) == [b""]
