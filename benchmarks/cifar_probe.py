"""Accuracy of a linear probe on the embedded network's features, on CIFAR-10 as JPEG.

    python benchmarks/cifar_probe.py cifar10-jpeg.tar.gz

The archive holds train/ and test/ with a folder a class. The probe sees the training images alone; its regularisation
is chosen by cross-validation on them. For comparison the same probe on raw pixels and on the features of a randomly
initialised ResNet-50 (--random).
"""

from __future__ import annotations

import argparse
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np


def probe(rows: np.ndarray, labels: np.ndarray, train: np.ndarray, test: np.ndarray) -> float:
    from resfit.tasks.classification.heads.linear import fit_linear

    head = fit_linear(rows[train], labels[train])
    return float((head.probabilities(rows[test]).argmax(axis=1) == labels[test]).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("archive", type=Path)
    parser.add_argument("--model", default="resnet10_tiny", help="another network, or a file of `resfit pretrain`")
    parser.add_argument("--random", action="store_true", help="also raw pixels and a random ResNet-50")
    arguments = parser.parse_args()

    import resfit
    from resfit.data.dataset import scan
    from resfit.data.decode import decode_many
    from resfit.features.extract import extract

    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(arguments.archive) as archive:
            archive.extractall(folder, filter="data")
        begin = time.perf_counter()
        fitted = resfit.fit(folder, model=arguments.model, strategy="probe", cache=False)
        seconds = time.perf_counter() - begin
        test = fitted.run.test
        low, high = test.interval
        print(f"{arguments.model}: {100 * test.accuracy:.2f} % (95 % interval {100 * low:.1f} to {100 * high:.1f}) "
              f"on {test.n} test images, {seconds:.0f} s from files to classifier")  # fmt: skip
        if not arguments.random:
            return
        images = scan(folder)
        parts = np.array(images.splits)
        sides = np.flatnonzero(parts == "train"), np.flatnonzero(parts == "test")
        body = resfit.load(arguments.model, include_top=False, pooling="avg")
        small = np.concatenate([batch.images[:, ::2, ::2] for batch in decode_many(images.paths, body.input_spec)])
        print(f"raw pixels:       {100 * probe(small.reshape(len(small), -1) / 255, images.labels, *sides):.2f} %")
        random = resfit.load("resnet50", weights=None, include_top=False, pooling="avg", seed=0)
        rows = extract(random, images, input_spec=body.input_spec, cache=False).rows
        print(f"random ResNet-50: {100 * probe(rows, images.labels, *sides):.2f} %")


if __name__ == "__main__":
    main()
