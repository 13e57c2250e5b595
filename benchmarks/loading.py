"""Loading a large network: time against Keras' own loading of the same weights, and extra memory.

    python benchmarks/loading.py [--model resnet152]

Writes one file of random weights for each side, then loads both in turn, each time in a process of its own: Keras
builds ``keras.applications``' network and reads its legacy ``.h5``; resfit loads the same ``.h5`` by name, and a
``.safetensors`` and a ``.pth`` under timm's names by path. Imports are not counted. The extra memory is what the
process had at its most, beyond what the built and filled network needs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

_CHILD = """
import json, os, resource, sys, time
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
kind, name, file = sys.argv[1:]
import keras, numpy, tensorflow
import resfit
from resfit import zoo
from resfit.checkpoints import convert
from resfit.checkpoints.readers import safetensors
import safetensors.numpy
if kind == "pth":
    import torch

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

keras.Sequential([keras.layers.Input((8, 8, 3)), keras.layers.Conv2D(8, 3), keras.layers.Dense(2)])  # warm
begin = time.perf_counter()
if kind == "build":
    model = zoo.load(name, weights=None)
elif kind == "keras":
    model = getattr(keras.applications, "ResNet152")(weights=None)
    model.load_weights(file)
elif kind == "h5":
    model = zoo.load(name, weights=file)
else:
    model = zoo.load(file)
seconds = time.perf_counter() - begin
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"seconds": seconds, "peak": peak, "resident": resident()}))
"""


def measure(kind: str, name: str, file: Path) -> dict[str, float]:
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "MALLOC_TRIM_THRESHOLD_": "0"}
    result = subprocess.run(
        [sys.executable, "-c", _CHILD, kind, name, str(file)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    if result.returncode:
        raise SystemExit(result.stderr)
    return json.loads(result.stdout.splitlines()[-1])


def write_files(folder: Path, name: str, timm_name: str) -> dict[str, Path]:
    """Random weights for every side, written by a process that ends, so that nothing of it is counted."""
    code = f"""
import os
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
from resfit import zoo
from resfit.checkpoints import write
model = zoo.load({name!r}, weights=None, preprocess=False)
write.write(model, {str(folder / "weights.h5")!r})
other = zoo.load({timm_name!r}, weights=None, preprocess=False)
write.write(other, {str(folder / "timm.safetensors")!r})
try:
    write.write(other, {str(folder / "timm.pth")!r})
except Exception as error:
    print(error)
"""
    subprocess.run([sys.executable, "-c", code], check=True, stderr=subprocess.DEVNULL)
    files = {
        "h5": folder / "weights.h5",
        "safetensors": folder / "timm.safetensors",
        "pth": folder / "timm.pth",
    }
    return {kind: file for kind, file in files.items() if file.is_file()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        files = write_files(Path(name), "resnet152", "resnet152v1.5")
        size = files["h5"].stat().st_size
        print(f"ResNet-152, {size / 1e6:.0f} MB; best of {arguments.rounds} rounds, in turn")
        runs: dict[str, list[dict[str, float]]] = {}
        for _ in range(arguments.rounds):
            for kind, file in {"build": files["h5"], "keras": files["h5"], **files}.items():
                runs.setdefault(kind, []).append(measure(kind, "resnet152", file))
    best = {kind: min(found, key=lambda run: run["seconds"]) for kind, found in runs.items()}
    peak = {kind: min(run["peak"] for run in found) for kind, found in runs.items()}
    for kind, run in best.items():
        extra = (peak[kind] - peak["build"]) / size
        print(
            f"{kind:12} {run['seconds']:6.2f} s, {run['seconds'] / best['keras']['seconds']:5.2f} x Keras; "
            f"peak {peak[kind] / 1e6:6.0f} MB, {extra:+.2f} x the file over building alone"
        )


if __name__ == "__main__":
    main()
