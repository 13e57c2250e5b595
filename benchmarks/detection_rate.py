"""A detector's predictions from files, beside what its engine does on pictures that are already decoded.

    python benchmarks/detection_rate.py [--images 200] [--size 320] [--model resnet10_tiny] [--megapixels 50]

The detector has learned for a moment: its boxes cost suppression what those of a fitted one do. Both
ways run in turn on the same drawn JPEG files of 640x480 pixels. Prints pictures a second of each, and their ratio: of
the clock, and of processor time, which tells what decoding and boxes cost where all cores are busy.

``--megapixels`` also times one picture of that many in tiles of ``--size``, and says how many tiles a second that is.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np


def main() -> None:
    """Fits for a moment, times both ways and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--model", default="resnet10_tiny")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--megapixels", type=float, default=0)
    options = parser.parse_args()

    from PIL import Image

    from resfit.data import decode, drawn_boxes
    from resfit.data.boxes import scan_boxes
    from resfit.tasks.detection.fit import fit

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        drawn_boxes.write_set(folder / "set", {"train": 24, "val": 12, "test": 12}, size=(480, 640))
        fields = {"strategy": "head", "views": 1, "size": options.size, "tuning": {"epochs": 2}}
        detector = fit(scan_boxes(folder / "set"), model=options.model, cache=folder / "cache", **fields)
        drawn_boxes.write_set(folder / "many", {"test": options.images}, seed=1, size=(480, 640))
        files = sorted((folder / "many").rglob("*.jpg"))
        batches = [part.images for part in decode.decode_many(files, detector.input_spec, batch_size=options.batch)]
        engine = detector._engine("openvino", len(files))

        def alone() -> None:
            for images in batches:
                engine.run(images)

        def from_files() -> None:
            detector.predict(files, engine="openvino", batch_size=options.batch)

        clock, processor = timed({"engine alone": alone, "from files": from_files}, options.rounds)
        for way in clock:
            print(
                f"{way:13} best {len(files) / min(clock[way]):.1f} pictures/s, "
                f"median {len(files) / statistics.median(clock[way]):.1f}; "
                f"{1000 * min(processor[way]) / len(files):.1f} ms of processor time a picture"
            )
        for what, found in (("clock", clock), ("processor time", processor)):
            print(f"ratio by {what}: {min(found['engine alone']) / min(found['from files']):.2f}")
        if options.megapixels:
            width = round((options.megapixels * 1e6 * 4 / 3) ** 0.5)
            noise = np.random.default_rng(0).integers(0, 256, (width * 3 // 40, width // 10, 3), np.uint8)
            Image.fromarray(noise).resize((width, width * 3 // 4)).save(folder / "large.jpg", quality=85)
            from resfit.tasks.detection import tiles

            cut = tiles.Tiling((options.size, options.size), tiles.OVERLAP)
            count = len(cut.of((width * 3 // 4, width)))
            begin = time.perf_counter()
            found = detector.predict(folder / "large.jpg", tiles=options.size, engine="openvino")
            seconds = time.perf_counter() - begin
            print(
                f"{width}x{width * 3 // 4} pixels in {count} tiles: {seconds:.1f} s, {count / seconds:.1f} tiles/s, "
                f"{len(found[0])} boxes"
            )


def timed(ways: dict[str, Callable[[], Any]], rounds: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds of each way in turn, by the clock and of the processor."""
    clock: dict[str, list[float]] = {way: [] for way in ways}
    processor: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds + 1):  # the first is not counted
        for way, run in ways.items():
            begin, used = time.perf_counter(), time.process_time()
            run()
            if number:
                clock[way].append(time.perf_counter() - begin)
                processor[way].append(time.process_time() - used)
    return clock, processor


if __name__ == "__main__":
    main()
