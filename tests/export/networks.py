"""Small networks of every family, with a classifier and weights that are all different from their initial values."""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
import io
import zipfile
from typing import Any

import numpy as np

CLASSES = 5

_FOUR: dict[str, Any] = {
    "depths": (1, 1, 1, 1),
    "widths": (64, 64, 96, 128),
    "inner_widths": (16, 16, 24, 32),
    "input_size": (64, 64),
}
_CIFAR: dict[str, Any] = {
    "depths": (1, 1, 1),
    "widths": (16, 32, 64),
    "inner_widths": (16, 32, 64),
    "stage_strides": (1, 2, 2),
    "block": "basic",
    "stem_pool": "none",
    "shortcut": "pad",
    "input_size": (32, 32),
}


def families() -> dict[str, tuple[dict[str, Any], Any]]:
    """Returns for each family the fields of its spec and its input contract."""
    from resfit.networks.spec import StemConv
    from resfit.preprocessing import CAFFE, TF, TORCH

    stem = (StemConv(64, 7, 2),)
    return {
        "v1": (
            {
                **_FOUR,
                "stem": stem,
                "stride_in_block": "first",
                "conv_bias": "all",
                "norm_epsilon": 1.001e-5,
                "stem_pool_padding": "zero",
            },
            CAFFE,
        ),
        "v1.5": ({**_FOUR, "stem": stem}, TORCH),
        "v2": (
            {
                **_FOUR,
                "stem": stem,
                "preactivation": True,
                "stride_in_stage": "last",
                "conv_bias": "unnormalized",
                "stem_pool_padding": "zero",
            },
            TF,
        ),
        "resnext": ({**_FOUR, "stem": stem, "inner_widths": (32, 32, 48, 64), "groups": 4}, TORCH),
        "se": ({**_FOUR, "stem": stem, "attention": "se", "attention_sizes": (8, 8, 8, 8)}, TORCH),
        "bit": (
            {
                **_FOUR,
                "widths": (128, 128, 128, 256),
                "inner_widths": (32, 32, 32, 64),
                "stem": (StemConv(32, 7, 2),),
                "preactivation": True,
                "project_first": True,
                "norm": "group",
                "weight_standardization": True,
                "stem_pool_padding": "zero",
            },
            dataclasses.replace(TORCH, mean=(0.5,) * 3, std=(0.5,) * 3),
        ),
        "evo": (
            {
                **_FOUR,
                "widths": (128, 128, 128, 256),
                "inner_widths": (32, 32, 32, 64),
                "stem": stem,
                "preactivation": True,
                "project_first": True,
                "norm": "evo",
                "activation": "linear",
            },
            TORCH,
        ),
        "mixed": (
            {
                **_FOUR,
                "stem": stem,
                "inner_widths": (16, 64, 24, 128),
                "stage_blocks": ("bottleneck", "basic", "bottleneck", "basic"),
            },
            TORCH,
        ),
        "cifar": ({**_CIFAR, "stem": (StemConv(16, 3, 1),)}, TORCH),
    }


def network(family: str, seed: int = 0) -> Any:
    """Returns a network of a family whose scores differ from image to image."""
    import keras

    from resfit.networks.build import build
    from resfit.networks.spec import ArchitectureSpec
    from tests.numeric import randomize

    fields, contract = families()[family]
    spec = ArchitectureSpec(**{**fields, "classes": CLASSES})
    contract = dataclasses.replace(contract, size=spec.input_size)
    keras.utils.set_random_seed(seed)
    name = f"tiny-{family}".replace(".", "")
    model = randomize(build(spec, input_spec=contract, preprocess=True, name=name), seed)
    spread(model)
    model.class_names = tuple(f"Klasse {letter}" for letter in "äbcde")
    return model


@functools.cache
def shipped(size: int, count: int = 100) -> np.ndarray:
    """Returns some of the real images that ship with resfit, uint8 ``(n, size, size, 3)``."""
    from PIL import Image

    from resfit.data import samples

    archive = importlib.resources.files("resfit") / "samples" / samples.NAME
    with archive.open("rb") as file, zipfile.ZipFile(file) as images:
        names = sorted(name for name in images.namelist() if name.endswith((".png", ".jpg")))[:: 2000 // count]
        opened = [Image.open(io.BytesIO(images.read(name))).convert("RGB").resize((size, size)) for name in names]
    return np.stack([np.asarray(image) for image in opened])


def spread(model: Any) -> None:
    """Scales the classifier so that every class is some image's first: agreement then means something."""
    import keras

    last = model.layers[-1]
    size = model.input_spec.size[0]
    features = keras.Model(model.inputs[0], last.input)
    rows = np.asarray(features(shipped(size).astype(np.float32), training=False), np.float64)
    kernel = np.random.default_rng(0).normal(0, 1, last.kernel.shape)
    logits = rows @ kernel
    kernel *= 1.5 / logits.std(axis=0)
    last.set_weights([kernel, -rows.mean(axis=0) @ kernel])
