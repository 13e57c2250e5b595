"""Small networks that are wide enough for TensorFlow's gradients of convolutions."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

#: A network that :func:`two_blocks` puts into the catalog.
TWO_BLOCKS = "two_blocks"


@contextlib.contextmanager
def two_blocks() -> Iterator[None]:
    """Puts a row into the catalog whose training steps have half as many layers as those of the smallest network."""
    from resfit.networks import catalog
    from resfit.networks.spec import ArchitectureSpec, StemConv

    spec = ArchitectureSpec(
        depths=(1, 1),
        widths=(16, 32),
        inner_widths=(16, 32),
        stage_strides=(1, 2),
        block="basic",
        stem=(StemConv(16, 3, 2),),
        stem_pool="none",
        input_size=(32, 32),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(catalog.rows(), TWO_BLOCKS, catalog.CatalogRow(TWO_BLOCKS, "tests", spec, "none"))
        yield


def small_body(seed: int = 0, *, block: str = "bottleneck", preactivation: bool = False, **changes: Any):
    """Returns a random network for 32x32 images, of three stages, with BatchNorm statistics of its own."""
    import keras

    from resfit.networks.build import build
    from resfit.networks.spec import ArchitectureSpec, StemConv
    from resfit.preprocessing import TORCH
    from tests.numeric import randomize

    keras.utils.set_random_seed(seed)
    spec = ArchitectureSpec(
        depths=(1, 2, 1),
        widths=(32, 32, 48),
        inner_widths=(16, 16, 24) if block == "bottleneck" else (32, 32, 48),
        stage_strides=(1, 2, 2),
        block=block,
        stem=(StemConv(16, 3, 2),),
        stem_pool="none",
        input_size=(32, 32),
        preactivation=preactivation,
        **changes,
    )
    contract = dataclasses.replace(TORCH, size=(32, 32), crop_fraction=1.0)
    body = build(spec, include_top=False, pooling="avg", input_spec=contract, preprocess=True, name="small")
    return randomize(body, seed)


def with_head(body: Any, classes: int = 3, seed: int = 0):
    """Returns a copy of a body with a linear head that gives logits, and the head's layers."""
    import keras

    from resfit.training import boundary

    twin = boundary.copy(body)
    dense = keras.layers.Dense(classes, name="predictions", dtype="float32")
    model = keras.Model(twin.inputs[0], dense(twin.outputs[0]))
    random = np.random.default_rng(seed)
    dense.set_weights([random.normal(0, 0.1, dense.kernel.shape), np.zeros(classes)])
    return model, [dense]


def coloured(count: int = 60, classes: int = 3, seed: int = 0, size: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Returns noisy uint8 pictures whose colour tells their class, and the classes."""
    random = np.random.default_rng(seed)
    colours = np.array([(200, 60, 50), (60, 180, 70), (50, 70, 210), (200, 200, 60)])[:classes]
    labels = np.arange(count) % classes
    noise = random.normal(0, 45, (count, size, size, 3))
    return np.clip(colours[labels][:, None, None] + noise, 0, 255).astype(np.uint8), labels
