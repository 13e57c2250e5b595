"""Every export of a network: size, latency, agreement, and how much faster it is than the network in Keras.

    python benchmarks/exports.py flowers.resfit --images test/
    python benchmarks/exports.py resnet50 --random

Each is measured in its own runtime in this process, one image at a time, from an array of pixels to scores. Keras is
measured before and after; the slower of both is what the ratio is to.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np


def latency(run: Any, image: np.ndarray, seconds: float) -> float:
    """Returns the median time for one image in milliseconds, after a first run that does not count."""
    batch = image[None].astype(np.float32)
    run(batch)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < end:
        begin = time.perf_counter()
        run(batch)
        times.append(time.perf_counter() - begin)
    return 1000 * float(np.median(times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="a classifier that resfit fit wrote, or a network's name")
    parser.add_argument("--images", help="real images; default: those that the classifier was tested on")
    parser.add_argument("--random", action="store_true", help="random weights: sizes and latencies alone mean anything")
    parser.add_argument("--format", action="append", default=[], help="can be repeated; default: all")
    parser.add_argument("--out", type=Path, help="keep the exports here")
    arguments = parser.parse_args()

    import resfit
    from resfit import export
    from resfit.engines.keras import KerasEngine
    from resfit.export.export_model import subject_of

    source: Any = resfit.load(arguments.source, weights=None, seed=0) if arguments.random else arguments.source
    subject = subject_of(source)
    keras = KerasEngine(subject.scores)
    image = np.random.default_rng(0).integers(0, 256, (*subject.input_spec.size, subject.input_spec.channels), np.uint8)
    before = latency(keras.run, image, 1.0)
    with tempfile.TemporaryDirectory() as temporary:
        rows = export.export_all(
            source,
            arguments.out or Path(temporary) / "exports",
            formats=arguments.format,
            images=arguments.images,
            say=lambda text: print(text, flush=True),
        )
    plain = max(before, latency(keras.run, image, 1.0))
    print(
        f"\n{'format':<16}{'precision':<10}{'MB':>8}{'ms':>8}{'x Keras':>9}{'difference':>12}{'first':>8}{'right':>8}"
    )
    print(f"{'(Keras)':<16}{'float32':<10}{'':>8}{plain:>8.1f}{1:>9.2f}")
    for row in rows:
        found = row.verification
        if found is None:
            print(f"{row.format:<16}{row.precision:<10}  left out")
            continue
        right = "" if found.accuracy is None else f"{found.accuracy:.1%}"
        figures = f"{row.size / 1e6:>8.1f}{found.latency:>8.1f}{plain / found.latency:>9.2f}"
        verdict = "  disagrees" if row.failed else ""
        print(
            f"{row.format:<16}{row.precision:<10}{figures}{found.difference:>12.1e}"
            f"{found.agreement:>8.1%}{right:>8}{verdict}"
        )


if __name__ == "__main__":
    main()
