"""Programs around a module: the tutorial with one import changed, and transfer through the Hub's form."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

import resfit
from resfit import hub
from resfit.data import samples

SCRIPT = Path(__file__).with_name("tutorial.py")


@pytest.fixture(scope="module")
def fashion(tmp_path_factory):
    """The sample of Fashion-MNIST as RGB bytes of 32 pixels: images and labels for training and test."""
    folder = samples.unpack(tmp_path_factory.mktemp("fashion") / "sample")
    found = {}
    for part in ("train", "test"):
        names = sorted(path.name for path in (folder / part).iterdir())
        files = [(path, names.index(path.parent.name)) for path in sorted((folder / part).glob("*/*"))]
        images = [np.asarray(Image.open(path).convert("RGB").resize((32, 32))) for path, _ in files]
        found[part] = np.stack(images), np.array([label for _, label in files])
    return found


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    """The embedded network in the form of TensorFlow Hub, for values 0..1."""
    network = resfit.load("resnet10_tiny", include_top=False, pooling="avg")
    return network, hub.publish(network, tmp_path_factory.mktemp("module") / "m", value_range=(0.0, 1.0))


def test_tutorial_with_one_import_changed(module, fashion, tmp_path, monkeypatch):
    network, folder = module
    generator = np.random.default_rng(0)
    images, labels = fashion["train"]
    chosen = generator.permutation(len(images))[:128]
    width = network.output_shape[-1]
    head = [
        generator.normal(0, (2 / width) ** 0.5, (width, 1024)).astype("float32"),
        np.zeros(1024, "float32"),
        generator.normal(0, 0.05, (1024, 10)).astype("float32"),
        np.zeros(10, "float32"),
    ]
    np.savez(
        tmp_path / "data.npz",
        images=images[chosen],
        labels=labels[chosen],
        **{f"head_{number}": array for number, array in enumerate(head)},
    )
    arguments = [os.fspath(folder), os.fspath(tmp_path / "data.npz")]
    original = subprocess.run(
        [sys.executable, "-m", "tests.hub.original", "tutorial", *arguments, os.fspath(tmp_path / "original.npz")],
        cwd=SCRIPT.parents[2],
        env={**os.environ, "TF_USE_LEGACY_KERAS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert original.returncode == 0, original.stderr[-3000:]
    changed = SCRIPT.read_text().replace("import tensorflow_hub as hub", "from resfit import hub")
    assert changed != SCRIPT.read_text()
    (tmp_path / "changed.py").write_text(changed)
    monkeypatch.setattr(sys, "argv", ["changed.py", *arguments, os.fspath(tmp_path / "changed.npz")])
    runpy.run_path(os.fspath(tmp_path / "changed.py"), run_name="__main__")
    with np.load(tmp_path / "original.npz") as expected, np.load(tmp_path / "changed.npz") as found:
        assert found["losses"][2] < 0.7 * found["losses"][0]  # it learns
        for name, array in expected.items():
            np.testing.assert_allclose(found[name], array, rtol=2e-3, atol=2e-3, err_msg=name)


def test_transfer_gives_the_accuracy_of_the_native_network(module, fashion):
    network, folder = module
    scaled = keras.Sequential([keras.Input((32, 32, 3)), keras.layers.Rescaling(1 / 255), hub.KerasLayer(folder)])
    accuracies, features = [], {}
    for name, body in (("native", network), ("hub", scaled)):
        keras.utils.set_random_seed(0)
        found = {part: body.predict(images, batch_size=100, verbose=0) for part, (images, _) in fashion.items()}
        features[name] = found["test"]
        head = keras.Sequential([keras.Input((found["test"].shape[-1],)), keras.layers.Dense(10)])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        head.compile(keras.optimizers.Adam(0.01), loss, metrics=["accuracy"])
        head.fit(found["train"], fashion["train"][1], batch_size=100, epochs=20, verbose=0)
        accuracies.append(head.evaluate(found["test"], fashion["test"][1], verbose=0)[1])
    np.testing.assert_allclose(features["hub"], features["native"], rtol=1e-4, atol=1e-4)
    assert accuracies[0] > 0.7
    assert abs(accuracies[0] - accuracies[1]) <= 0.002
