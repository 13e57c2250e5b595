"""One training on two workers: the weights of one process on the same whole batch."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from resfit.errors import ArgumentError
from resfit.training.replicas import Replicas
from tests.pictures import write_folder

PROGRAM = """
import dataclasses, json, os, signal, sys
source, out, norms, death = sys.argv[1:]
from resfit.training.replicas import Replicas
replicas = Replicas() if "TF_CONFIG" in os.environ else None
from resfit.training import pretrain
settings = pretrain.PretrainSettings
real = settings.tuning.fget
settings.tuning = property(lambda self: dataclasses.replace(real(self), batch_norm=norms))
def stop(step):
    if str(step) == death and (replicas is None or replicas.rank == 1):
        os.kill(os.getpid(), signal.SIGKILL)
    return False
pretrain.pretrain(
    source, out, settings=settings(epochs=2, batch_size=9, size=32, learning_rate=0.02), tensorboard=False,
    replicas=replicas, checkpoint_minutes=0.0, stop=stop,
)
"""


def free_ports(count):
    with_ports = [socket.socket() for _ in range(count)]
    for one in with_ports:
        one.bind(("127.0.0.1", 0))
    found = [one.getsockname()[1] for one in with_ports]
    for one in with_ports:
        one.close()
    return found


def trained(source, out, norms, workers, death=""):
    """Trains, and returns the exit codes and the weights of the checkpoint."""
    ports = free_ports(workers)
    running = []
    for rank in range(workers):
        cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
        config = {"cluster": cluster, "task": {"type": "worker", "index": rank}}
        more = {"TF_CONFIG": json.dumps(config)} if workers > 1 else {}
        command = [sys.executable, "-c", PROGRAM, source, out, norms, death]
        running.append(subprocess.Popen(command, env={**os.environ, **more}, stderr=subprocess.PIPE))
    codes = []
    for one in running:
        _, text = one.communicate()
        codes.append(one.returncode)
        if one.returncode and not death:
            raise AssertionError(text.decode()[-3000:])
    saved = np.load(Path(out) / "checkpoint.npz")
    return codes, {name: saved[name] for name in saved.files if name.startswith("weight/")}


def apart(one, other):
    """Returns how far weights are from others, relative to their length."""
    assert one.keys() == other.keys()
    squares = sum(float(((one[name] - other[name]).astype(np.float64) ** 2).sum()) for name in one)
    return np.sqrt(squares / sum(float((other[name].astype(np.float64) ** 2).sum()) for name in one))


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("training") / "photos", 9)


@pytest.mark.slow
def test_two_workers_train_what_one_process_does(photos, tmp_path):
    _, alone = trained(photos, tmp_path / "1", "frozen", 1)
    _, together = trained(photos, tmp_path / "2", "frozen", 2)
    assert apart(together, alone) < 1e-6
    _, alone = trained(photos, tmp_path / "3", "batch", 1)
    _, together = trained(photos, tmp_path / "4", "batch", 2)
    assert apart(together, alone) < 5e-3
    codes, _ = trained(photos, tmp_path / "5", "batch", 2, death="4")
    assert codes[1] == -9
    assert codes[0] != 0  # it sees that the other has gone
    _, again = trained(photos, tmp_path / "5", "batch", 2)
    assert apart(again, together) < 1e-6
    files = {path.name for path in (tmp_path / "4").iterdir()}
    assert {"model.safetensors", "log.csv", "checkpoint.npz"} <= files


def test_a_share_is_a_part_of_the_whole_batch(monkeypatch):
    with pytest.raises(ArgumentError, match="TF_CONFIG must name the workers"):
        Replicas()
    batch = (np.arange(10), {"labels": np.arange(20).reshape(10, 2)}, np.ones((1, 1)))
    found = []
    for rank in range(3):
        one = object.__new__(Replicas)
        one.rank, one.count = rank, 3
        found.append(one.share(batch))
        assert one.size == 10
    np.testing.assert_array_equal(np.concatenate([part[0] for part in found]), batch[0])
    np.testing.assert_array_equal(np.concatenate([part[1]["labels"] for part in found]), batch[1]["labels"])
    assert [len(part[0]) for part in found] == [3, 4, 3]
    assert [np.asarray(part[2]).tolist() for part in found] == [[[1.0]]] * 3  # one row is for all
    with pytest.raises(ArgumentError, match=r"an image for each worker\. Received: 2 for 3 workers"):
        one.share((np.arange(2),))
