"""The process that looks through HDF5 files before they are opened."""

from __future__ import annotations

import os
import signal
import time

import h5py
import numpy as np
import pytest

from resfit.errors import CheckpointError
from resfit.weights.formats import hdf5


@pytest.fixture
def file(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as written:
        written["a/b"] = np.arange(5.0)
        written.create_dataset("packed", data=np.ones((100, 100)), chunks=(10, 10), compression="gzip")
    return tmp_path / "a.h5"


def test_a_part_of_a_file(file, tmp_path):
    content = file.read_bytes()
    (tmp_path / "around").write_bytes(b"before " + content + b"after" * 1000)
    with hdf5.opened(tmp_path / "around", 7, len(content)) as part:
        np.testing.assert_array_equal(part["a/b"][()], np.arange(5.0))
        assert part["packed"][()].sum() == 10_000
    with pytest.raises(OSError, match="signature"), hdf5.opened(tmp_path / "around", 6, len(content)):
        pass


def test_a_file_that_takes_too_long(file, monkeypatch):
    with hdf5.opened(file):
        pass
    os.kill(hdf5._worker.pid, signal.SIGSTOP)  # as one that hangs
    monkeypatch.setattr(hdf5, "SECONDS", 0.2)
    os.utime(file, (2, 2))
    for _ in range(2):  # what was found once is known
        with pytest.raises(CheckpointError, match="does not get through"), hdf5.opened(file):
            pass
    assert hdf5._worker is None
    monkeypatch.undo()
    os.utime(file, (1, 1))  # another state of it
    with hdf5.opened(file) as opened:
        assert "packed" in opened


def test_a_file_that_takes_too_much_computing(tmp_path, monkeypatch):
    path = tmp_path / "long.h5"
    with h5py.File(path, "w") as written:
        for number in range(3000):
            written.create_dataset(f"{number}", data=np.ones(100), chunks=(10,), compression="gzip")
    monkeypatch.setattr(hdf5, "SECONDS", 0.05)
    monkeypatch.setattr(hdf5, "_BYTES_A_SECOND", 1e12)
    monkeypatch.setattr(hdf5, "_PATIENCE", 1e4)
    with pytest.raises(CheckpointError, match="does not get through"), hdf5.opened(path):
        pass
    assert hdf5._worker is None


def test_a_process_that_died_is_replaced(file):
    with hdf5.opened(file):
        pass
    worker = hdf5._worker
    os.kill(worker.pid, signal.SIGKILL)
    while worker.poll() is None:
        time.sleep(0.01)
    os.utime(file, (1, 1))
    with hdf5.opened(file) as opened:
        assert opened["a/b"].shape == (5,)
    assert hdf5._worker is not worker
    assert worker.stdin.closed
    assert worker.stdout.closed


def test_a_file_that_asks_for_much_memory(tmp_path):
    path = tmp_path / "bomb.h5"
    with h5py.File(path, "w") as written:
        written.create_dataset("a", (40_000, 40_000), "f4", chunks=(20_000, 20_000), compression="gzip")
        written["a"][:20_000, :20_000] = 0
    assert path.stat().st_size < 5_000_000
    with pytest.raises(OSError, match="more memory"), hdf5.opened(path):
        pass
