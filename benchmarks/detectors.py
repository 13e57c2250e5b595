"""How fast published detectors run here, and by the libraries that they are from, in turn in one run.

    python benchmarks/detectors.py [--images 8] [--rounds 3] [--batch 1] [--size 640] [--precisions float32]
        [--no-compile]

RT-DETRv2 with a ResNet-18 and RetinaNet of the second form, weights at random: resfit on its fast engine against
transformers and torchvision on torch, eager and compiled, in float32 and bfloat16. Every side runs the network on
images in memory, to boxes and scores (resfit) or raw outputs (the others), before any suppression. Rounds take turns,
and the best of each counts.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np

NAMES = ("rtdetrv2_r18vd", "retinanet_resnet50_v2")


def of_resfit(name: str, size: int, precision: str) -> Callable[[np.ndarray], object]:
    """The detector on the fast engine: uint8 RGB to boxes and scores."""
    import dataclasses

    import resfit
    from resfit import engines
    from resfit.weights import detectors

    source = detectors.named(name)
    contract = dataclasses.replace(source.input_spec, size=(size, size), resize_mode="squash")
    model = detectors.load(dataclasses.replace(source, input_spec=contract))
    engine = engines.create(resfit.Detector.of_model(model).joined, "openvino", precision=precision)
    return lambda images: engine.run(images.astype(np.float32))


def of_torch(name: str, precision: str, *, compiled: bool) -> Callable[[np.ndarray], object]:
    """The detector of its library on torch: uint8 RGB to raw outputs."""
    import torch
    from tests.networks.detection import peers, rtdetr_peers

    model = rtdetr_peers.published("r18vd") if name.startswith("rtdetr") else peers.published(name)
    dtype = getattr(torch, precision)
    network = model if name.startswith("rtdetr") else torch.nn.Sequential(model.backbone, _Head(model.head))
    network = network.to(dtype=dtype, memory_format=torch.channels_last)
    run = torch.compile(network) if compiled else network

    def forward(images: np.ndarray) -> object:
        with torch.inference_mode():
            pixels = torch.from_numpy(images).permute(0, 3, 1, 2).to(dtype) / 255
            return run(pixels)

    return forward


def _Head(head):  # a module of torch, made where torch is imported
    import torch

    class Head(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.head = head

        def forward(self, maps):
            return self.head(list(maps.values()))

    return Head()


def main() -> None:
    """Measures both detectors and prints images a second, and how many times resfit's is the best of the others."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--size", type=int, default=640)
    parser.add_argument("--precisions", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    parser.add_argument("--no-compile", action="store_true")
    options = parser.parse_args()
    images = np.random.default_rng(0).integers(0, 256, (options.images, options.size, options.size, 3), np.uint8)
    batches = [images[start : start + options.batch] for start in range(0, len(images), options.batch)]
    for name in NAMES:
        makers: dict[str, Callable[[], Callable[[np.ndarray], object]]] = {}
        for precision in options.precisions:
            makers[f"resfit, {precision}"] = functools.partial(of_resfit, name, options.size, precision)
            makers[f"torch eager, {precision}"] = functools.partial(of_torch, name, precision, compiled=False)
            if not options.no_compile:
                makers[f"torch compiled, {precision}"] = functools.partial(of_torch, name, precision, compiled=True)
        sides: dict[str, Callable[[np.ndarray], object]] = {}
        best: dict[str, float] = {}
        for label, make in makers.items():
            try:
                side = make()
                side(batches[0])  # compiles, and warms the caches
                sides[label] = side
            except Exception as error:  # a side that cannot run is said, and the others go on
                print(f"{name}: {label} does not run here: {type(error).__name__}: {str(error)[:120]}")
        for _ in range(options.rounds):
            for label, side in sides.items():
                began = time.perf_counter()
                for batch in batches:
                    side(batch)
                best[label] = max(best.get(label, 0.0), len(images) / (time.perf_counter() - began))
        print(f"{name}, {options.size} pixels, batches of {options.batch}:")
        for label, rate in best.items():
            print(f"  {label:24} {rate:7.2f} images/s")
        for precision in options.precisions:
            own = best.get(f"resfit, {precision}")
            others = [rate for label, rate in best.items() if label.startswith("torch") and label.endswith(precision)]
            if own and others:
                print(f"  {precision}: {own / max(others):.2f} times the best of torch", flush=True)


if __name__ == "__main__":
    main()
