"""Accuracy of the embedded network on the 10,000 validation images of Tiny ImageNet.

    python benchmarks/tiny_imagenet.py tiny-imagenet-val.tar.gz
    python benchmarks/tiny_imagenet.py tiny-imagenet-val.tar.gz --model run/model.safetensors --sizes 64,80,96,128

The network is loaded as users load it, in float32 from the float16 file, and takes the images as bytes. At other sizes
than its own the images, of 64 pixels, are enlarged bicubically.
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
    parser.add_argument("--model", default="resnet10_tiny", help="another file of `resfit pretrain`")
    parser.add_argument("--sizes", default="64", help="heights and widths in pixels, with commas between them")
    arguments = parser.parse_args()

    import resfit
    from resfit.data.pixel_store import open_store
    from resfit.weights.formats.safetensors import metadata_value, read_metadata

    weights = Path(arguments.model)
    if arguments.model == "resnet10_tiny":
        weights = Path(resfit.__file__).parent / "weights" / "resnet10_tiny.safetensors"
    classes = metadata_value(read_metadata(weights)["classes"])
    model = resfit.load(weights)
    for size in map(int, arguments.sizes.split(",")):
        store = open_store(arguments.validation, size)
        labels = np.array([classes.index(store.classes[label]) for label in store.labels])
        scores = model.predict(np.asarray(store.images), batch_size=250, verbose=0)
        rank = (scores > scores[np.arange(len(labels)), labels][:, None]).sum(axis=1)
        top1, top5 = 100 * (rank < 1).mean(), 100 * (rank < 5).mean()
        print(f"{len(labels)} images of {size} pixels: top-1 {top1:.2f} %, top-5 {top5:.2f} %", flush=True)
    print(f"weights: {weights.stat().st_size / 1e6:.2f} MB, {model.count_params():,} parameters")


if __name__ == "__main__":
    main()
