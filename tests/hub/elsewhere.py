"""Loads archives in a process of its own, with two logical CPUs. Usage: ``python -m tests.hub.elsewhere FOLDER``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf


def main(folder: Path) -> None:
    cpus = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], cpus)
    import resfit

    resfit.load(folder / "plain.keras")  # registers the layer, which the archive names
    found = {}
    for name, given in json.loads((folder / "inputs.json").read_text()).items():
        model = keras.saving.load_model(folder / f"{name}.keras")
        inputs = [tf.constant(x, tf.string if name.startswith("text") else tf.float32) for x in given]
        outputs = model(inputs if len(inputs) > 1 else inputs[0])
        found[name] = np.concatenate([np.ravel(array) for array in tf.nest.flatten(outputs)]).tolist()
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    x = np.linspace(-1, 1, 8, dtype="float32")[:, None]
    data = tf.data.Dataset.from_tensor_slices((x, np.hstack([x, -x]))).batch(4)
    with strategy.scope():
        model = keras.saving.load_model(folder / "plain.keras")
    model.fit(data, epochs=2, verbose=0)
    found["fitted"] = np.concatenate([np.ravel(weight) for weight in model.get_weights()]).tolist()
    with strategy.scope():
        layer = resfit.hub.KerasLayer(str(folder / "there" / "half_plus_one"), trainable=True)
        model = keras.Sequential([keras.Input((1,)), layer, keras.layers.Dense(2, kernel_initializer="ones")])
        model.compile(keras.optimizers.SGD(0.05), "mse")
    model.fit(data, epochs=2, verbose=0)
    found["mirrored"] = np.concatenate([np.ravel(weight) for weight in model.get_weights()]).tolist()
    (folder / "results.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
