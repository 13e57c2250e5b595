"""One training on two workers: the weights of one process on the same whole batch."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import resfit
from resfit import scale
from resfit.errors import ArgumentError
from resfit.scale import training as ray_training
from resfit.training.pretrain import PretrainSettings
from resfit.training.replicas import Replicas
from tests.pictures import write_folder
from tests.tasks.detection.drawn import write_set

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


#: What is fine-tuned in the same way by one process, by two, and under Ray.
OPTIONS = {
    "strategy": "finetune",
    "trainable_from": 0.8,
    "check": False,
    "references": False,
    "tuning": {"epochs": 3, "batch_size": 8, "batch_norm": "frozen", "learning_rate": 0.01, "patience": 3},
}
FIT = f"""
import os, sys
source, out, *_ = sys.argv[1:]
from resfit.training import replicas
if "TF_CONFIG" in os.environ:
    replicas.join()
import resfit
resfit.fit(source, out=out, **{OPTIONS!r})
"""


def free_ports(count):
    with_ports = [socket.socket() for _ in range(count)]
    for one in with_ports:
        one.bind(("127.0.0.1", 0))
    found = [one.getsockname()[1] for one in with_ports]
    for one in with_ports:
        one.close()
    return found


def run_workers(program, source, out, norms, workers, death=""):
    """Runs a program in one process or several, and returns the exit codes."""
    ports = free_ports(workers)
    running = []
    for rank in range(workers):
        cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
        config = {"cluster": cluster, "task": {"type": "worker", "index": rank}}
        more = {"TF_CONFIG": json.dumps(config)} if workers > 1 else {}
        command = [sys.executable, "-c", program, source, out, norms, death]
        running.append(subprocess.Popen(command, env={**os.environ, **more}, stderr=subprocess.PIPE))
    codes = []
    for one in running:
        _, text = one.communicate()
        codes.append(one.returncode)
        if one.returncode and not death:
            raise AssertionError(text.decode()[-3000:])
    return codes


def checkpointed(out):
    """Returns the weights of the checkpoint of a pre-training."""
    saved = np.load(Path(out) / "checkpoint.npz")
    return {name: saved[name] for name in saved.files if name.startswith("weight/")}


def trained(source, out, norms, workers, death=""):
    """Trains, and returns the exit codes and the weights of the checkpoint."""
    codes = run_workers(PROGRAM, source, out, norms, workers, death)
    return codes, checkpointed(out)


def fitted(out):
    """Returns the weights of a classifier."""
    model = resfit.Classifier.load(out).model
    return {variable.path: variable.numpy() for variable in model.variables}


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


@pytest.fixture(scope="module")
def shared_fit(photos, tmp_path_factory):
    """A classifier that one process fine-tuned, and one that two workers did."""
    place = tmp_path_factory.mktemp("fits")
    for workers in (1, 2):
        run_workers(FIT, photos, place / f"{workers}.resfit", "", workers)
    return place


@pytest.mark.slow
def test_two_workers_fine_tune_what_one_process_does(shared_fit):
    alone, together = (resfit.Classifier.load(shared_fit / f"{workers}.resfit") for workers in (1, 2))
    assert apart(fitted(shared_fit / "2.resfit"), fitted(shared_fit / "1.resfit")) < 1e-6
    assert alone.recipe.strategy == together.recipe.strategy == "finetune"
    assert alone.metrics["test"]["accuracy"] == together.metrics["test"]["accuracy"]
    assert alone.metrics["training"]["epoch"] == together.metrics["training"]["epoch"]
    assert not list(shared_fit.glob("*.run"))


@pytest.fixture
def cluster(monkeypatch):
    """Ray on this machine, with a processor for each of two workers and one for what starts them."""
    ray = pytest.importorskip("ray", reason='resfit[ray] brings Ray: pip install "resfit[ray]"')
    monkeypatch.setenv("RAY_worker_niceness", "0")
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield ray
    ray.shutdown()


def dying(worker, notes):
    """Returns a worker function whose second worker is killed behind its third step, once; all note their steps."""

    def work(given):
        import signal

        from resfit.training import replicas, trainer

        real = trainer.train

        def stop(step):
            rank = replicas.joined().rank
            with open(f"{notes}/steps-{rank}", "a") as file:
                file.write(f"{step}\n")
            if rank == 1 and step == 3 and not os.path.exists(f"{notes}/dead"):
                open(f"{notes}/dead", "w").close()
                os.kill(os.getpid(), signal.SIGKILL)
            return False

        trainer.train = lambda *some, **more: real(*some, **{**more, "checkpoint_seconds": 0.0, "stop": stop})
        worker(given)

    return work


def went_on(notes):
    """Says whether the first worker's steps, noted before and behind a death, are those of one run."""
    steps = [int(line) for line in (notes / "steps-0").read_text().split()]
    assert (notes / "dead").exists()
    return steps.count(1) == 1 and steps[-1] == max(steps) and set(steps) == set(range(1, max(steps) + 1))


@pytest.mark.slow
def test_a_fit_under_ray_begins_again_from_the_checkpoint(photos, shared_fit, tmp_path, cluster, monkeypatch):
    monkeypatch.setattr(ray_training, "_fit_worker", dying(ray_training._fit_worker, tmp_path))
    out = tmp_path / "out.resfit"
    found = scale.fit_on_ray(photos, out, workers=2, **OPTIONS)
    assert found.classes == ("blue", "green", "red")
    assert went_on(tmp_path)
    assert apart(fitted(out), fitted(shared_fit / "2.resfit")) < 1e-6
    assert not (tmp_path / "out.resfit.run").exists()


@pytest.mark.slow
def test_a_pre_training_under_ray_begins_again_from_the_checkpoint(photos, tmp_path, cluster, monkeypatch):
    _, undisturbed = trained(photos, tmp_path / "undisturbed", "batch", 2)
    monkeypatch.setattr(ray_training, "_pretrain_worker", dying(ray_training._pretrain_worker, tmp_path))
    settings = PretrainSettings(epochs=2, batch_size=9, size=32, learning_rate=0.02)
    found = scale.pretrain_on_ray(photos, tmp_path / "run", workers=2, settings=settings, tensorboard=False)
    assert (found.steps, found.epochs) == (6, 2)
    assert went_on(tmp_path)
    assert apart(checkpointed(tmp_path / "run"), undisturbed) < 1e-6


def test_what_workers_cannot_share_says_why(photos, tmp_path):
    for options, match in (
        ({}, r"a probe has none.*Pass strategy='finetune'"),
        ({"strategy": "finetune", "budget": "10m"}, r"take no budget: their clocks differ\. Received: '10m'"),
        ({"strategy": "full", "lr_find": True}, "take no lr_find"),
    ):
        with pytest.raises(ArgumentError, match=match):
            scale.fit_on_ray(photos, tmp_path / "out.resfit", workers=2, **options)
    boxes = write_set(tmp_path / "boxes", {"train": 4, "test": 2})
    with pytest.raises(ArgumentError, match="detectors are trained in one process"):
        scale.fit_on_ray(boxes, tmp_path / "out.resfit", workers=2, strategy="finetune")
    (tmp_path / "out.resfit").mkdir()
    (tmp_path / "out.resfit" / "thesis.txt").write_text("x")
    with pytest.raises(ArgumentError, match=r"out\.resfit"):
        scale.fit_on_ray(photos, tmp_path / "out.resfit", workers=2, strategy="finetune")


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
