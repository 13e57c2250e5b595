"""Several cards of one machine, as processors of TensorFlow's that it keeps apart: what one card computes, divided."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

# one process for all, since TensorFlow divides its processor only before it has used it
PROGRAM = """
import dataclasses, json, sys, warnings
from pathlib import Path
import numpy as np
import tensorflow as tf
parts = [tf.config.LogicalDeviceConfiguration()] * 2
tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], parts)
from resfit import devices, engines
from tests.cards import AMPERE, VOLTA
found = AMPERE, dataclasses.replace(VOLTA, place="/CPU:1")
devices._cards = lambda: found
from resfit.features.extract import extract
from resfit.training.settings import Tuning
from tests.pictures import tiny_body, write_folder
from tests.training.networks import small_body
from tests.training.test_cards import Cramped
from tests.training.test_trainer import trainer_of
folder, parts = Path(sys.argv[1]), sys.argv[2:]
answer = {}


def trained(device, steps=5, room=None, resume=False, **changes):
    fields = dict(epochs=2, batch_size=15, trainable_from="stage3", optimizer="sgd", ema_decay=0.9, clip=1.0)
    with devices.using(device):
        trainer = trainer_of(small_body(), Tuning(**{**fields, **changes}))
        placed, loss = set(), trainer.objective.loss

        def seen(outputs, *others):
            placed.add(outputs.device[-5:])
            return loss(outputs, *others)

        trainer.objective.loss = seen
        cramped = Cramped(trainer, room) if room else None
        rows = trainer.train[:15]
        for step in range(steps):
            if resume and step == 2:
                trainer.save(folder)
                trainer = trainer_of(small_body(), trainer.tuning)
                trainer.restore(folder)
            trainer.learn(trainer.feed.plain(rows), trainer.targets[rows])
        norms = sum(getattr(layer, "synchronized", False) for layer in trainer.model.layers)
        return trainer, sorted(placed), norms


def apart(one, other):
    pairs = [(a.numpy(), b.numpy()) for name in ("state", "average", "sums", "scale")
             for a, b in zip(getattr(one, name), getattr(other, name), strict=True)]
    return max(float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-6)) for a, b in pairs)


CASES = {
    "frozen": {"batch_norm": "frozen"},
    "batch": {"batch_norm": "batch", "accumulate": 2},
    "float16": {"batch_norm": "frozen", "precision": "mixed_float16"},
}
for name in set(parts) & set(CASES):
    one, together = trained("gpu:0", **CASES[name]), trained("gpu:all", **CASES[name])
    answer[name] = {"apart": apart(together[0], one[0]), "placed": together[1], "norms": together[2]}
if "need" in parts:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        # a share of 15 on two cards is 7 or 8 images, of 7 it is 3 or 4
        whole, need = trained("gpu:0", batch_norm="frozen")[0], trained("gpu:all", batch_norm="frozen", room=4)[0]
    answer["need"] = {"parts": need.parts, "told": [str(one.message) for one in told], "apart": apart(need, whole)}
    again = trained("gpu:all", batch_norm="frozen", resume=True)[0]
    answer["need"]["resumed"] = apart(again, trained("gpu:all", batch_norm="frozen")[0])
if "rows" in parts:
    body, paths = tiny_body(), sorted(write_folder(folder / "images", each=25).rglob("*.png"))
    rows = {}
    for device in ("cpu", "gpu:0", "gpu:all"):
        with devices.using(device):
            for precision in ("float32", "bfloat16")[: 1 if device == "cpu" else 2]:
                able = dataclasses.replace(devices.current(), capability=(8, 0))
                resolved = engines.resolve("keras", precision, able)
                engine = engines.create(body, resolved)
                rows[device, precision] = extract(body, paths, engine=engine, cache=False, batch_size=4).rows
                if device == "gpu:all":
                    cards = engine._fast._engines
                    answer.setdefault("engines", []).append([len(one._calls) for one in cards])
                    answer.setdefault("places", []).append([one._program.weights[0].value.device[-5:] for one in cards])
    exact = rows["cpu", "float32"]
    answer["rows"] = {
        "apart": float(np.abs(rows["gpu:all", "float32"] - exact).max() / np.abs(exact).max()),
        "equal": [bool((rows["gpu:all", p] == rows["gpu:0", p]).all()) for p in ("float32", "bfloat16")],
        "differ": len(np.unique(exact, axis=0)),
    }
    images = np.random.default_rng(0).integers(0, 256, (70, 16, 16, 3), np.uint8)
    with devices.using("gpu:all"):
        engine = engines.create(body, "keras")
        answer["rows"]["run"] = float(np.abs(engine.run(images) - engines.create(body, engines.resolve(
            "keras", device=devices.cpu())).run(images)).max())
        answer["rows"]["server"] = engines.for_server(body, "keras").device.label
if "fit" in parts:
    import resfit
    from resfit.training.pretrain import PretrainSettings, pretrain
    source = write_folder(folder / "photos", each=12)
    found = resfit.fit(source, out=folder / "out", device="gpu:all", strategy="finetune", tuning={"epochs": 1},
                       cache=folder / "cache", check=False, tensorboard=False)
    loaded = resfit.Classifier.load(folder / "out")
    answer["fit"] = {"machine": found.metrics["machine"], "run": dict(loaded.metrics["machine"]),
                     "notes": list(found.run.notes)}
    result = {}
    for device in ("gpu:0", "gpu:all"):
        with devices.using(device):
            settings = PretrainSettings(epochs=2, batch_size=32, size=32, learning_rate=0.01)
            pretrain(source, folder / device, settings=settings, tensorboard=False)
        result[device] = np.load(folder / device / "checkpoint.npz")
    names = [name for name in result["gpu:0"].files if name.startswith("weight/")]
    answer["fit"]["pretrain"] = max(
        float(np.abs(result["gpu:all"][n] - result["gpu:0"][n]).max() / max(np.abs(result["gpu:0"][n]).max(), 1e-3))
        for n in names
    )
    answer["fit"]["weights"] = len(names)
print(json.dumps(answer))
"""


def told(folder, *parts):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, str(folder), *parts], capture_output=True, text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return told(tmp_path_factory.mktemp("cards"), "frozen", "rows")


@pytest.fixture(scope="module")
def more(tmp_path_factory):
    return told(tmp_path_factory.mktemp("cards"), "batch", "float16", "need", "fit")


def test_two_cards_take_the_steps_of_one(found):
    assert found["frozen"]["apart"] < 1e-6
    assert found["frozen"]["placed"] == ["CPU:0", "CPU:1"]


def test_rows_of_two_cards_are_those_of_one_in_order(found):
    rows = found["rows"]
    assert rows["apart"] < 1e-5
    assert rows["equal"] == [True, True]
    assert rows["differ"] > 40  # what came in another order would show
    assert found["engines"] == [[1, 1], [1, 1]]  # both have computed
    assert found["places"] == [["CPU:0", "CPU:1"]] * 2
    assert rows["run"] < 1e-5
    assert rows["server"] == "gpu:0"


@pytest.mark.slow
def test_norms_and_scales_see_the_whole_batch(more):
    assert more["batch"]["apart"] < 1e-5
    assert more["batch"]["norms"] == 0  # the network is saved as it was
    assert more["float16"]["apart"] < 1e-3


@pytest.mark.slow
def test_memory_that_runs_out_divides_what_the_cards_share(more):
    need = more["need"]
    assert need["parts"] == 2
    assert need["apart"] < 1e-6
    assert need["told"] == [
        "gpu:all has not enough memory for 15 images a step at once: going on with 7, whose gradients are added up to "
        "the same step."
    ]
    assert need["resumed"] == 0.0


@pytest.mark.slow
def test_whole_trainings_on_two_cards(more):
    fit = more["fit"]
    assert fit["machine"]["device"] == "gpu:all"
    assert fit["machine"]["count"] == 2
    assert fit["machine"]["name"] == "Ampere and Volta"
    assert fit["machine"]["precision"]["training"] == "mixed_float16"  # what both have units for
    assert fit["run"] == fit["machine"]
    assert fit["weights"] > 20
    assert fit["pretrain"] < 1e-4
