"""Largest relative difference between resfit's networks and keras.applications', on random weights and statistics.

    python benchmarks/parity.py

All weights are random, the moving statistics too. Each network is compared with and without its classifier, with both
poolings, on 224x224 and on 160x96.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import sys
from pathlib import Path

import keras
import numpy as np

from resfit import applications

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.numeric import randomize, relative_error

NAMES = ("ResNet50", "ResNet101", "ResNet152", "ResNet50V2", "ResNet101V2", "ResNet152V2")
CASES = (
    {"input_shape": (224, 224, 3)},
    {"include_top": False, "input_shape": (160, 96, 3)},
    {"include_top": False, "pooling": "avg", "input_shape": (160, 96, 3)},
    {"include_top": False, "pooling": "max", "input_shape": (224, 224, 3)},
)


def main() -> None:
    print(
        f"{'network':12} {'layers':>13} {'names':>6} "
        + " ".join(f"{name:>10}" for name in ("top", "map", "avg", "max"))
    )
    for name in NAMES:
        cells, layers, same = [], "", True
        for options in CASES:
            keras.utils.clear_session()
            theirs = getattr(keras.applications, name)(weights=None, **options)
            keras.utils.clear_session()
            ours = getattr(applications, name)(weights=None, **options)
            randomize(theirs)
            ours.set_weights(theirs.get_weights())
            images = np.random.default_rng(1).normal(0, 60, (2, *options["input_shape"])).astype("float32")
            error = relative_error(ours(images, training=False), theirs(images, training=False))
            cells.append(f"{error:10.1e}")
            layers = layers or f"{len(ours.layers)} = {len(theirs.layers)}"
            same &= [layer.name for layer in ours.layers] == [layer.name for layer in theirs.layers]
        print(f"{name:12} {layers:>13} {'same' if same else 'DIFFER':>6} " + " ".join(cells), flush=True)


if __name__ == "__main__":
    main()
