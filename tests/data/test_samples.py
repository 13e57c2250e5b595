"""The images that ship: whole, balanced, licensed, and made again by the tool from the published files."""

from __future__ import annotations

import gzip
import importlib.resources
import importlib.util
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resfit.data import samples
from resfit.data.dataset import check_trainable, scan
from resfit.data.split import split
from resfit.errors import DataError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return samples.unpack(tmp_path_factory.mktemp("sample") / "fashion")


def test_the_sample_is_balanced_and_ready_to_fit(folder):
    images = scan(folder)
    check_trainable(images)
    assert len(images.classes) == 10
    assert set(images.counts().values()) == {200}
    parts = split(images, val=0, test=0.15)
    assert np.bincount(images.labels[parts.train]).tolist() == [170] * 10
    assert np.bincount(images.labels[parts.test]).tolist() == [30] * 10
    assert images.skipped == ()
    assert images.warnings == ()


def test_the_images_are_distinct_pictures(folder):
    pictures = {np.asarray(Image.open(path)).tobytes() for path in scan(folder).paths}
    assert len(pictures) == 2000
    assert {len(picture) for picture in pictures} == {28 * 28}
    assert np.mean([np.frombuffer(picture, np.uint8).mean() for picture in pictures]) == pytest.approx(73, abs=5)


def test_the_file_is_small_and_carries_its_licence(folder):
    source = importlib.resources.files("resfit") / "samples" / samples.NAME
    assert len(source.read_bytes()) <= 1_500_000
    notice = (folder / "NOTICE.txt").read_text()
    assert "MIT License" in notice
    assert "Copyright (c) 2017 Zalando SE" in notice


def test_unpacking_again_changes_nothing(tmp_path):
    folder = samples.unpack(tmp_path / "fashion")
    stamp = (folder / "NOTICE.txt").stat().st_mtime_ns
    assert samples.unpack(str(folder)) == folder
    assert (folder / "NOTICE.txt").stat().st_mtime_ns == stamp
    assert [path.name for path in tmp_path.iterdir()] == ["fashion"]


@pytest.mark.parametrize("name", ["letter.txt", "NOTICE.txt"])
def test_a_folder_of_other_files_is_left_alone(tmp_path, name):
    (tmp_path / name).write_text("keep me")
    with pytest.raises(DataError, match="other files"):
        samples.unpack(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "keep me"


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    def stop(self, path):
        (Path(path) / "train").mkdir(parents=True)
        raise OSError("disk full")

    monkeypatch.setattr(zipfile.ZipFile, "extractall", stop)
    with pytest.raises(OSError, match="disk full"):
        samples.unpack(tmp_path / "fashion")
    assert list(tmp_path.iterdir()) == []


def test_two_at_once_both_get_it(tmp_path):
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: samples.unpack(tmp_path / "fashion"), range(3)))
    assert found == [tmp_path / "fashion"] * 3
    assert len(scan(tmp_path / "fashion")) == 2000
    assert [path.name for path in tmp_path.iterdir()] == ["fashion"]


def test_the_tool_takes_the_published_pixels_and_repeats_itself(tmp_path, monkeypatch):
    path = Path(__file__).parents[2] / "tools" / "make_fashion_sample.py"
    spec = importlib.util.spec_from_file_location("make_fashion_sample", path)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    monkeypatch.setattr(tool, "PARTS", (("train", "train", 3), ("test", "t10k", 2)))
    random = np.random.default_rng(0)
    pixels = {}
    for part, stem, _ in tool.PARTS:
        images, labels = random.integers(0, 256, (60, 28, 28), np.uint8), np.arange(60, dtype=np.uint8) % 10
        pixels[part] = {label: {image.tobytes() for image in images[labels == label]} for label in range(10)}
        (tmp_path / f"{stem}-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(16) + images.tobytes()))
        (tmp_path / f"{stem}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(bytes(8) + labels.tobytes()))
    made = []
    for name in ("one.zip", "two.zip"):
        monkeypatch.setattr(tool, "TARGET", tmp_path / name)
        tool.main(tmp_path)
        made.append((tmp_path / name).read_bytes())
    assert made[0] == made[1]
    with zipfile.ZipFile(tmp_path / "one.zip") as archive:
        archive.extractall(tmp_path / "out")
    found = scan(tmp_path / "out")
    assert len(found) == 10 * (3 + 2)
    for path, part in zip(found.paths, found.splits, strict=True):
        assert np.asarray(Image.open(path)).tobytes() in pixels[part][tool.CLASSES.index(path.parent.name)]
