"""A detector from stored maps beside the usual ways, in the same time.

    python benchmarks/detection.py cards/ --minutes 1 3 10 --seeds 3
    python benchmarks/detection.py cards/ --minutes 0.5 --seeds 1 --ways stored body      # small enough for a session

``stored`` is ``resfit.fit``; ``body`` trains the same head with the frozen body in the loop, on freshly changed
pictures; ``scratch`` is torchvision's RetinaNet v2 with random weights in the same loop. Each prints AP and AP50 on the
test pictures, and the pictures that went through a training step. ``--processor-time`` counts processor seconds over
cores in place of the clock's, for a machine that others use too.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from resfit import processors
from resfit.data.boxes import scan_boxes
from resfit.tasks.detection.fit import fit

WAYS = ("stored", "body", "scratch")


def stored(boxes, minutes, seed, clock, cache):
    """resfit's own way."""
    found = fit(boxes, budget=minutes, seed=seed, clock=clock, cache=cache)
    return found.run.test.metrics, _passes(found)


def body(boxes, minutes, seed, clock, cache):
    """The same head, the frozen body in the loop: nothing is stored."""
    found = fit(boxes, budget=minutes, seed=seed, clock=clock, cache=cache, strategy="head", views=0, engine="keras")
    return found.run.test.metrics, _passes(found)


def _passes(found):
    return found.run.history[-1]["passes"]


def scratch(boxes, minutes, seed, clock, cache):
    """torchvision's RetinaNet v2 with random weights."""
    import torch
    from torchvision.models.detection import retinanet_resnet50_fpn_v2
    from torchvision.transforms.functional import to_tensor

    from resfit.data import decode
    from resfit.data import split as splits
    from resfit.preprocessing import InputSpec
    from resfit.tasks.detection.detections import Detections
    from resfit.tasks.detection.evaluation import matched

    torch.manual_seed(seed)
    parts = splits.split(boxes.image_set(), seed=seed)
    model = retinanet_resnet50_fpn_v2(
        weights=None, weights_backbone=None, num_classes=len(boxes.classes) + 1, min_size=320, max_size=426
    )
    whole = InputSpec(resize_mode="none")

    def picture(position):
        return to_tensor(decode.decode_image(boxes.paths[position], whole).copy())

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05)
    began, passes, epoch = clock(), 0, 0
    model.train()
    while clock() - began < 60 * minutes:
        for start in range(0, len(parts.train), 4):
            order = np.random.default_rng([seed, epoch]).permutation(parts.train)[start : start + 4]
            targets = [
                {
                    "boxes": torch.from_numpy(boxes.boxes_of(i)[0].copy()),
                    "labels": torch.from_numpy(boxes.boxes_of(i)[1] + 1),
                }
                for i in order
            ]
            loss = sum(model([picture(i) for i in order], targets).values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            passes += len(order)
            if clock() - began >= 60 * minutes:
                break
        epoch += 1
    model.eval()
    test = boxes.subset(parts.test)
    found = []
    with torch.no_grad():
        for position in range(len(test)):
            image = to_tensor(decode.decode_image(test.paths[position], whole).copy())
            (one,) = model([image])
            size = tuple(int(side) for side in test.sizes[position])
            arrays = (one["boxes"].numpy(), one["scores"].numpy(), one["labels"].numpy() - 1)
            found.append(Detections(test.paths[position], *arrays, test.classes, size))
    return matched(test, found).figures(), passes


def main():
    """Runs what is asked for and prints a line for each run and one for each time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("--minutes", type=float, nargs="+", default=[1, 3, 10])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--folds", type=int, default=0, help="Cross-validation in place of the data's own split.")
    parser.add_argument("--processor-time", action="store_true")
    options = parser.parse_args()
    cores = processors.available()
    clock: Callable[[], float] = (lambda: time.process_time() / cores) if options.processor_time else time.monotonic
    boxes = scan_boxes(options.source)
    runs: dict[tuple[float, str], list[tuple[float, float, int]]] = {}
    for minutes in options.minutes:
        for seed in range(options.folds or options.seeds):
            some = _fold(boxes, options.folds, seed) if options.folds else boxes
            for way in options.ways:
                with tempfile.TemporaryDirectory() as cache:
                    figures, passes = globals()[way](some, minutes, seed, clock, cache)
                runs.setdefault((minutes, way), []).append((figures["ap"], figures["ap50"], passes))
                print(
                    f"{minutes:g} min  seed {seed}  {way:8}  AP {figures['ap']:.3f}  AP50 {figures['ap50']:.3f}  "
                    f"passes {passes}",
                    flush=True,
                )
    for (minutes, way), found in runs.items():
        columns = list(zip(*found, strict=True))
        means = [statistics.fmean(column) for column in columns]
        spreads = [statistics.stdev(column) if len(column) > 1 else 0.0 for column in columns]
        print(
            f"{minutes:g} min  {way:8}  AP {means[0]:.3f} ± {spreads[0]:.3f}  AP50 {means[1]:.3f} ± {spreads[1]:.3f}  "
            f"passes {means[2]:.0f}"
        )
        if way == "stored" and (minutes, "body") in runs:
            others = [run[2] for run in runs[minutes, "body"]]
            print(f"{minutes:g} min  stored / body in passes: {means[2] / max(1.0, statistics.fmean(others)):.1f}")


def _fold(boxes, folds, number):
    """The same pictures with one part of them as the test set."""
    part = np.random.default_rng(0).permutation(len(boxes)) % folds == number
    return dataclasses.replace(boxes, splits=tuple("test" if here else None for here in part))


if __name__ == "__main__":
    main()
