"""Accuracy of the embedded network on the 10,000 validation images of Tiny ImageNet.

    python benchmarks/tiny_imagenet.py tiny-imagenet-val.tar.gz

The network is loaded as users load it, in float32 from the float16 file in the package, and takes the images as bytes.
"""

from __future__ import annotations

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
from pathlib import Path

import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("validation", type=Path, help="folder of class folders, or a tar archive of one")
    arguments = parser.parse_args()

    import resfit
    from resfit.checkpoints.readers.safetensors import metadata_value, read_metadata
    from resfit.data.pixel_store import open_store

    weights = Path(resfit.__file__).parent / "weights" / "resnet10_tiny.safetensors"
    classes = metadata_value(read_metadata(weights)["classes"])
    store = open_store(arguments.validation, 64)
    labels = np.array([classes.index(store.classes[label]) for label in store.labels])
    model = resfit.load("resnet10_tiny")
    scores = model.predict(np.asarray(store.images), batch_size=250, verbose=0)
    rank = (scores > scores[np.arange(len(labels)), labels][:, None]).sum(axis=1)
    print(f"{len(labels)} images: top-1 {100 * (rank < 1).mean():.2f} %, top-5 {100 * (rank < 5).mean():.2f} %")
    print(f"weights: {weights.stat().st_size / 1e6:.2f} MB, {model.count_params():,} parameters")


if __name__ == "__main__":
    main()
