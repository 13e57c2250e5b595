"""The cache is no condition: what is asked for is done without it, to the same numbers, and said in one line."""

import errno
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

import resfit
from resfit import engines
from resfit.features import pixels as storage
from resfit.features.extract import extract
from resfit.features.store import FeatureStore, StoreKey
from resfit.storage import atomic, locks
from resfit.tasks import classification
from tests.numeric import images
from tests.pictures import tiny_body, write_folder

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("photos"), each=8)


@pytest.fixture(scope="module")
def body():
    return tiny_body(size=16)


@pytest.fixture
def unwritable(tmp_path):
    """A folder that nobody can make, root neither: it is below a file."""
    (tmp_path / "file").write_text("")
    return tmp_path / "file" / "cache"


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {made.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def lines(caught):
    return [str(one.message) for one in caught if "RESFIT_CACHE" in str(one.message)]


def test_fit_predict_evaluate_check_and_embed_go_on_without_a_cache(photos, unwritable, tmp_path, monkeypatch):
    monkeypatch.setenv("RESFIT_CACHE", str(unwritable))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fitted = resfit.fit(photos, model=tiny_body(size=16), out=tmp_path / "out")
        evaluated = fitted.evaluate(photos)
        embedded = classification.embed(photos, model=tiny_body(size=16))
    (line,) = lines(caught)
    assert line.startswith(f"the cache {unwritable} cannot be written (Not a directory)")
    assert "--no-cache" in line
    plain = resfit.fit(photos, model=tiny_body(size=16), cache=False)
    assert plain.evaluate(photos, cache=False).accuracy == evaluated.accuracy
    expected = classification.embed(photos, model=tiny_body(size=16), cache=False).features
    np.testing.assert_allclose(embedded.features, expected, rtol=1e-6)


def test_fine_tuning_goes_on_without_a_cache(photos, unwritable, monkeypatch):
    monkeypatch.setenv("RESFIT_CACHE", str(unwritable))
    for trainable in ("stage3", 0):  # outputs of the frozen part; pixels
        tuning = {"epochs": 1, "views": 1}
        options = {"strategy": "finetune", "trainable_from": trainable, "tuning": tuning, "check": False}
        fitted = resfit.fit(photos, model=tiny_body(size=16), **options)
        assert fitted.metrics["training"]["epochs"] == 1


@pytest.mark.parametrize("name", [pytest.param("check", marks=pytest.mark.slow), "embed"])
def test_a_command_says_it_in_one_line(name, photos, unwritable, tmp_path):
    variables = {**os.environ, "RESFIT_CACHE": str(unwritable), "PYTHONPATH": str(ROOT / "src")}
    program = "import sys; from resfit.cli.main import run; run(sys.argv[1:])"
    arguments = [name, photos, *(["-o", tmp_path / "rows.npz"] if name == "embed" else [])]
    done = subprocess.run([sys.executable, "-c", program, *arguments], env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("RESFIT_CACHE") == 1
    assert "Traceback" not in done.stderr


def test_a_disk_that_gets_full_on_the_way(photos, body, small_disk):
    paths = sorted(photos.rglob("*.png"))
    expected = extract(body, paths, cache=False)
    with open(small_disk / "filler", "wb") as filler:  # room for the probe and little more
        filler.write(bytes(120 * 1024))
    wide = StoreKey.of({"of": "wide rows"})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        store = FeatureStore(small_disk / "features", wide, 4096)
        digests = [bytes([number]) * 32 for number in range(12)]
        rows = np.arange(12 * 4096, dtype=np.float32).reshape(12, 4096)
        for start in range(0, 12, 3):
            store.append(digests[start : start + 3], rows[start : start + 3])
        found = extract(body, paths, cache=small_disk)
        pixels = storage.decoded(paths, body.input_spec, small_disk)
    assert 0 < store._count < 12 == len(store)
    np.testing.assert_array_equal(store.rows(digests[::-1]), rows[::-1])
    np.testing.assert_array_equal(store.rows(digests), rows)
    assert store.drop_damaged(digests) == 0
    np.testing.assert_allclose(found.rows, expected.rows, rtol=1e-6)
    np.testing.assert_array_equal(pixels.images, storage.decoded(paths, body.input_spec, False).images)
    assert "No space left on device" in lines(caught)[0]
    again = FeatureStore(small_disk / "features", wide, 4096)  # what the disk took is whole
    np.testing.assert_array_equal(again.rows(digests[: len(again)]), rows[: len(again)])


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_engines_are_made_without_a_cache(body, unwritable, precision):
    if precision == "int8":
        pytest.importorskip("nncf")
    some = images(8, 16, 16, 3)
    with pytest.warns(UserWarning, match="RESFIT_CACHE"):
        made = engines.create(body, "openvino", precision=precision, samples=some, cache=unwritable)
    assert (made.name, made.precision) == ("openvino", precision)
    assert engines.agreement(made.run(some), engines.create(body, "keras").run(some)) > 0.98


def test_weights_are_kept_for_the_process_where_they_cannot_be_kept_longer(unwritable, tmp_path):
    with pytest.warns(UserWarning, match="RESFIT_CACHE"):
        place = locks.place(unwritable, "net.h5")
    place.write_text("weights")  # it can be written
    assert not place.is_relative_to(unwritable)
    assert locks.place(unwritable, "net.h5") == place
    (tmp_path / "there.h5").write_text("")
    assert locks.place(tmp_path, "there.h5") == tmp_path / "there.h5"


def test_a_latency_is_measured_where_it_cannot_be_kept(unwritable, monkeypatch):
    from resfit import suggestions

    monkeypatch.setenv("RESFIT_CACHE", str(unwritable))
    monkeypatch.setattr(suggestions, "_measure", lambda *_: 0.25)
    with pytest.warns(UserWarning, match="RESFIT_CACHE"):
        assert suggestions.latency("resnet10_tiny", size=64) == 0.25


def test_scratch_is_in_memory_where_the_disk_is_full(monkeypatch, tmp_path):
    if not Path("/dev/shm").is_dir():
        pytest.skip("there is no file system in memory")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))
    with locks.scratch() as folder:
        assert folder.is_relative_to("/dev/shm")
        (folder / "file").write_bytes(b"1")
    assert not folder.exists()


@pytest.mark.parametrize("what", ["a file", "a classifier"])
def test_a_full_disk_is_named_with_what_is_needed(what, small_disk, tmp_path):
    photos, body = write_folder(tmp_path / "photos", each=6), tiny_body()
    (small_disk / "filler").write_bytes(bytes(200 * 1024))
    write = {
        "a file": lambda: atomic.write_text(small_disk / "out", "x" * 2**20),
        "a classifier": lambda: resfit.fit(photos, model=body, out=small_disk / "out"),
    }[what]
    with pytest.raises(OSError, match="the disk is full: more than ") as caught:
        write()
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(small_disk / "out"))
    assert [path.name for path in small_disk.iterdir()] == ["filler"]  # nothing half is left
