"""What the transfer benchmarks share: images, random weights, and the usual Keras tutorial as the other side."""

from __future__ import annotations

import io
import os
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

CLASSES = 10


def write_images(archive: Path, folder: Path, count: int, seed: int = 0) -> Path:
    """Writes train/, val/ and test/ with ten class folders of JPEGs: crops of the samples under new names."""
    from PIL import Image

    if (folder / "done").exists():
        return folder
    with tarfile.open(archive) as tar:
        names = sorted(m.name for m in tar.getmembers() if m.isfile() and m.name.lower().endswith((".jpg", ".jpeg")))
        samples = [Image.open(io.BytesIO(tar.extractfile(name).read())).convert("RGB") for name in names]
    random = np.random.default_rng(seed)
    for part, number in (("train", count), ("val", CLASSES), ("test", CLASSES)):
        for index in range(number):
            image = samples[index % len(samples)]
            share = random.uniform(0.85, 1.0)
            width, height = (int(share * side) for side in image.size)
            left, top = random.integers(0, image.width - width + 1), random.integers(0, image.height - height + 1)
            path = folder / part / f"class {index % CLASSES}" / f"{index:05}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.crop((left, top, left + width, top + height)).save(path, quality=90)
    (folder / "done").touch()
    return folder


def random_weights() -> list[np.ndarray]:
    """Returns weights for ResNet-50's body that keep its activations in range."""
    import keras

    keras.utils.set_random_seed(0)
    body = keras.applications.ResNet50(weights=None, include_top=False)
    return body.get_weights()


def keras_side(folder: Path, weights: list[np.ndarray], *, epochs: int, trainable_from: int | None) -> dict[str, float]:
    """The tutorial: a data set from a folder, the base with training=False, pooling, Dense(1024), Dense(10), Adam."""
    import keras

    begin = time.perf_counter()
    data = keras.utils.image_dataset_from_directory(
        folder / "train", image_size=(224, 224), batch_size=32, label_mode="int", verbose=False
    )
    base = keras.applications.ResNet50(weights=None, include_top=False, input_shape=(224, 224, 3))
    base.set_weights(weights)
    if trainable_from is None:
        base.trainable = False
    else:
        for layer in base.layers[:trainable_from]:
            layer.trainable = False
    inputs = keras.Input((224, 224, 3))
    x = keras.applications.resnet50.preprocess_input(inputs)
    x = base(x, training=False)
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.Dense(1024, activation="relu")(x)
    model = keras.Model(inputs, keras.layers.Dense(CLASSES, activation="softmax")(x))
    rate = 1e-3 if trainable_from is None else 1e-4
    model.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy", metrics=["accuracy"])
    marks: list[float] = []
    watch = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: marks.append(time.perf_counter()))
    model.fit(data, epochs=epochs, verbose=0, callbacks=[watch])
    later = np.diff(marks)
    return {
        "seconds": time.perf_counter() - begin,
        "epoch": float(np.median(later)) if len(later) else marks[0] - begin,
    }


def in_turn(sides: dict[str, Callable[[], dict[str, Any]]], rounds: int) -> dict[str, list[dict[str, Any]]]:
    """Runs both sides one after the other, several times, and prints what each took."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for number in range(rounds):
        for name, side in sides.items():
            result = side()
            found[name].append(result)
            figures = ", ".join(f"{key} {value:.2f}" for key, value in result.items() if isinstance(value, float))
            print(f"round {number + 1}, {name}: {figures}", flush=True)
    return found
