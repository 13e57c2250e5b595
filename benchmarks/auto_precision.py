"""A fit with ``precision="auto"`` beside one in float32, from files to a measured classifier.

    python benchmarks/auto_precision.py [--images 50 500 5000] [--rounds 3] [--network resnet50] [--json FILE]

Both get the same JPEGs in ten class folders, a frozen network with random weights and an empty cache, so that nothing
is known of the machine or the network; they take turns in processes of their own. Imports are excluded, everything else
is in: decoding, calibration, checks, the head, measuring. Prints what was chosen, and for each number of images the
ratio of float32's time to auto's (least, median, most), both accuracies and times.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parent))

from peers import write_images

WAYS = ("float32", "auto")


def child(folder: Path, precision: str, network: str) -> dict[str, Any]:
    """Runs one fit: seconds, accuracy on the test images, and what is said of the precision."""
    import keras
    import openvino  # noqa: F401  # imports are no part of what is timed

    import resfit

    keras.utils.set_random_seed(0)
    body = resfit.load(network, weights=None, include_top=False, pooling="avg")
    said: list[str] = []
    options: dict[str, Any] = {"strategy": "probe", "allow_leakage": True}  # drawn images may be alike by chance
    with tempfile.TemporaryDirectory() as work:
        begin = time.perf_counter()
        found = resfit.fit(
            folder, model=body, precision=precision, cache=Path(work) / "cache", say=said.append, **options
        )
        seconds = time.perf_counter() - begin
    lines = [line for line in said if "int8" in line or "bfloat16" in line]
    return {"seconds": round(seconds, 2), "accuracy": round(float(found.run.test.accuracy), 3), "said": lines}


def main() -> None:
    """Runs both ways in turn and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[50, 500, 5000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--network", default="resnet50")
    parser.add_argument("--json", type=Path, help="Write all results to this file.")
    parser.add_argument("--child", nargs=2, metavar=("FOLDER", "PRECISION"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(Path(options.child[0]), options.child[1], options.network)))
        return
    results: dict[int, dict[str, list[dict[str, Any]]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for count in options.images:
            folder = write_images(Path(temporary) / str(count), count)
            found = results[count] = {way: [] for way in WAYS}
            for number in range(options.rounds):
                for way in WAYS:
                    command = [sys.executable, __file__, "--network", options.network, "--child", str(folder), way]
                    done = subprocess.run(command, capture_output=True, text=True)
                    if done.returncode:
                        raise SystemExit(done.stderr[-2000:])
                    found[way].append(one := json.loads(done.stdout.strip().splitlines()[-1]))
                    print(f"{count} images, round {number + 1}, {way}: {one}", flush=True)
            pairs = zip(found["float32"], found["auto"], strict=True)
            ratios = [plain["seconds"] / auto["seconds"] for plain, auto in pairs]
            seconds = {way: statistics.median(one["seconds"] for one in found[way]) for way in WAYS}
            accuracies = {way: statistics.median(one["accuracy"] for one in found[way]) for way in WAYS}
            least, middle, most = min(ratios), statistics.median(ratios), max(ratios)
            told = f"float32 to auto {least:.2f}, {middle:.2f}, {most:.2f}; seconds {seconds}; accuracy {accuracies}"
            print(f"{count} images: {told}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
