"""Peak memory of a detector's fit, of few pictures and of many.

    python benchmarks/detection_memory.py --images 300 20000 [--size 256]

Each count runs in a process of its own, on drawn pictures: two views, one pass of the head on stored maps, validation
and test. What counts is the process's own memory; pages of mapped files belong to the system.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path


def child(count, folder, size):
    """Draws the pictures and fits; prints the peak in MB by step."""
    from resfit.data import drawn_boxes
    from resfit.data.boxes import scan_boxes
    from resfit.tasks.detection.fit import fit

    some = max(count // 10, 20)
    drawn_boxes.write_set(folder / "pictures", {"train": count - 2 * some, "val": some, "test": some})
    peak, ended = [0.0], threading.Event()

    def watch():
        while not ended.wait(0.05):
            lines = Path("/proc/self/status").read_text().splitlines()
            peak[0] = max(peak[0], next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024)

    threading.Thread(target=watch, daemon=True).start()
    began = time.monotonic()
    found = fit(
        scan_boxes(folder / "pictures"),
        strategy="head",
        views=2,
        size=size,
        tuning={"epochs": 1},
        cache=folder / "cache",
    )
    ended.set()
    print(json.dumps({"peak": peak[0], "seconds": time.monotonic() - began, "ap50": found.run.test.metrics["ap50"]}))


def main():
    """Runs the counts one after the other and prints a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[300, 3000])
    parser.add_argument("--folder", type=Path, help="Where the pictures and maps lie meanwhile; 20,000 take 20 GB.")
    parser.add_argument("--size", type=int, default=256, help="Height and width of the detector's input.")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.folder, options.size)
        return
    root = Path(__file__).parent.parent
    peaks = []
    for count in options.images:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            done = subprocess.run(
                [sys.executable, __file__, "--child", str(count), "--folder", folder, "--size", str(options.size)],
                env={**os.environ, "PYTHONPATH": str(root / "src"), "TF_CPP_MIN_LOG_LEVEL": "3"},
                capture_output=True,
                text=True,
                check=False,
            )
        if done.returncode:
            raise SystemExit(done.stderr[-2000:])
        found = json.loads(done.stdout.splitlines()[-1])
        peaks.append(found["peak"])
        print(
            f"{count:7,} pictures: peak {found['peak']:.0f} MB, {found['seconds']:.0f} s, AP50 {found['ap50']:.3f}",
            flush=True,
        )
    print(f"from the first to the last: {peaks[-1] - peaks[0]:+.0f} MB")


if __name__ == "__main__":
    main()
