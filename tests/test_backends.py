"""Keras on other backends: what needs TensorFlow says so, what does not gives the same numbers."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest

import resfit
from resfit.errors import ArgumentError
from resfit.explain import methods
from resfit.tasks.classification.heads import mlp
from resfit.training.pretrain import pretrain
from tests.pictures import write_folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("backends") / "photos", 6)


def test_what_needs_tensorflow_says_so_in_one_line(photos, tmp_path, monkeypatch):
    network = resfit.load("resnet10_tiny")
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    pixels = np.zeros((1, 64, 64, 3), np.uint8)
    rows = np.zeros((4, 3), np.float32)
    for what, call in {
        "strategy='full'": lambda: resfit.fit(photos, strategy="full", cache=False),
        "strategy='finetune'": lambda: resfit.fit(photos, strategy="finetune", cache=False),
        "pre-training": lambda: pretrain(photos, tmp_path / "run"),
        "head='mlp'": lambda: mlp.fit_mlp(rows, np.eye(4, 2, dtype=np.float32)),
        "explaining": lambda: methods.attribute(network, pixels),
        'format="tf_saved_model"': lambda: resfit.export.export(network, tmp_path / "out", format="tf_saved_model"),
        'format="litert"': lambda: resfit.export.export(network, tmp_path / "out", format="litert"),
    }.items():
        with pytest.raises(ArgumentError) as caught:
            call()
        assert str(caught.value).startswith(f"{what} needs Keras on TensorFlow. Received: KERAS_BACKEND=jax")
        assert "\n" not in str(caught.value)


PROGRAM = """
import sys
import numpy as np
import resfit
source, out = sys.argv[1:]
pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3)).astype(np.uint8)
found = {"tiny": np.asarray(resfit.load("resnet10_tiny")(pixels)), "embed": resfit.embed(source, cache=False).features}
for name in ("resnet18", "resnet50v1.5", "resnet50v2"):
    network = resfit.load(name, weights=None, preprocess=False)
    for weight in network.weights:
        shape = tuple(weight.shape)
        weight.assign(np.random.default_rng(len(weight.path)).uniform(0.2, 0.4, shape).astype(np.float32))
    found[name] = np.asarray(network(np.full((1, 64, 64, 3), 100, np.float32)))
fitted = resfit.fit(source, cache=False, check=False)
found["probe"] = fitted.predict_proba(source)
np.savez(out, **found)
import keras
print(keras.backend.backend())
"""


@pytest.mark.slow
def test_networks_and_the_probe_give_the_same_on_jax(photos, tmp_path):
    pytest.importorskip("jax", reason="jax is the other backend")
    found = {}
    for backend in ("tensorflow", "jax"):
        out = tmp_path / f"{backend}.npz"
        environment = {**os.environ, "KERAS_BACKEND": backend}
        command = [sys.executable, "-c", PROGRAM, photos, out]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.stdout.strip() == backend, done.stderr[-2000:]
        found[backend] = dict(np.load(out))
    for name, values in found["tensorflow"].items():
        np.testing.assert_allclose(found["jax"][name], values, rtol=2e-4, atol=2e-4, err_msg=name)
