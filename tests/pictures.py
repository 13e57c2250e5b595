"""Small image folders and a small network for the tests of the main job."""

from __future__ import annotations

from pathlib import Path

import numpy as np

COLOURS = {"blue": (40, 60, 220), "green": (50, 200, 70), "red": (220, 50, 40)}


def picture(colour: str, seed: int, size: tuple[int, int] = (24, 24)) -> np.ndarray:
    """Returns a noisy uint8 picture in which one colour is recognisable."""
    random = np.random.default_rng([seed, *COLOURS[colour]])
    noise = random.normal(0, 25, (*size, 3))
    return np.clip(np.asarray(COLOURS[colour]) + noise, 0, 255).astype(np.uint8)


def write_picture(path: Path, colour: str, seed: int) -> Path:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(colour, seed)).save(path)
    return path


def write_folder(folder: Path, each: int = 12, colours: tuple[str, ...] = tuple(COLOURS)) -> Path:
    """Writes PNGs in class folders, no two alike."""
    for colour in colours:
        for number in range(each):
            write_picture(folder / colour / f"{number:03}.png", colour, number)
    return folder


def tiny_body(seed: int = 0, size: int | None = None):
    """Returns a random network of some thousand parameters for 16x16 images, with BatchNorm statistics of its own."""
    import dataclasses

    import keras

    from resfit.networks.build import build
    from resfit.networks.spec import ArchitectureSpec, StemConv
    from resfit.preprocessing import TORCH

    keras.utils.set_random_seed(seed)
    spec = ArchitectureSpec(
        depths=(1, 1),
        widths=(8, 16),
        inner_widths=(8, 16),
        stage_strides=(1, 2),
        block="basic",
        stem=(StemConv(8, 3, 2),),
        stem_pool="none",
        input_size=(16, 16),
    )
    contract = dataclasses.replace(TORCH, size=(16, 16), crop_fraction=1.0)
    shape = (size, size, 3)
    body = build(
        spec, input_shape=shape, include_top=False, pooling="avg", input_spec=contract, preprocess=True, name="tiny"
    )
    random = np.random.default_rng(seed)
    for layer in body.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            gamma, beta, mean, variance = layer.get_weights()
            layer.set_weights(
                [
                    random.uniform(0.7, 1.3, gamma.shape),
                    random.normal(0, 0.1, beta.shape),
                    random.normal(0, 0.1, mean.shape),
                    random.uniform(0.7, 1.3, variance.shape),
                ]
            )
    return body


class CountingEngine:
    """Runs a network in Keras and counts the images."""

    name = "counting"
    precision = "float32"

    def __init__(self, model):
        from resfit.engines import create

        self.images = 0
        self.inner = create(model, "keras")

    def run(self, images):
        self.images += len(images)
        return self.inner.run(images)
