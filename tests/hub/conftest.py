"""SavedModels, made once a run, and the results of the original on them."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.hub import saved_models

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """One SavedModel of each kind, by name; and a tiny residual network in the reusable form."""
    import keras

    import resfit
    from resfit import hub

    root = tmp_path_factory.mktemp("saved-models")
    made = saved_models.all_of_them(root)
    network = resfit.load("resnet10_tiny", weights=None, include_top=False, pooling="avg", preprocess=False, seed=1)
    network.get_layer("conv1_conv").kernel.regularizer = keras.regularizers.L2(1e-3)
    made["resnet"] = os.fspath(hub.publish(network, root / "resnet"))
    return made


@pytest.fixture(scope="session")
def original(folders, tmp_path_factory) -> tuple[dict[str, np.ndarray], dict[str, list[str]], dict[str, str]]:
    """What ``tensorflow_hub`` under Keras 2 gives for every case, from a process of its own; and the folders of cases.

    Among these is one more, which that process makes.
    """
    for name in ("tensorflow_hub", "tf_keras"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    folder = tmp_path_factory.mktemp("original")
    folders = {**folders, "keras_2": os.fspath(folder / "keras_2")}
    (folder / "folders.json").write_text(json.dumps(folders))
    command = [sys.executable, "-m", "tests.hub.original", str(folder / "folders.json"), str(folder / "results")]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONWARNINGS": "ignore"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-5000:]
    with np.load(folder / "results.npz") as found:
        arrays = dict(found)
    return arrays, json.loads((folder / "results.json").read_text()), folders
