"""Loading a large network: time against Keras' own loading of the same weights, and extra memory.

    python benchmarks/loading.py [--rounds 3] [--kind pth ...]

Writes ResNet-152 with random weights in every format, then loads each file in turn, each time in a process of its own.
Keras builds ``keras.applications.ResNet152`` and reads its legacy ``.h5``; for ``.weights.h5`` and ``.keras`` it reads
the same file as well. Imports are not counted. The extra memory is what the process had at its most, beyond what the
building of the network alone needs in a process with the same imports.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

_ROOT = Path(__file__).parents[1]

_CHILD = """
import json, os, resource, sys, time
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
kind, how, file = sys.argv[1:]
import h5py, keras, numpy, tensorflow
import resfit
from resfit import zoo
from resfit.weights import canonical, identify, load
from resfit.weights.conventions import keras as _, tensorflow as _
from resfit.weights.formats import keras_archive, npz, saved_model, torch as _
import safetensors.numpy
if kind in ("pth", "old.pth"):
    import torch

keras.Sequential([keras.layers.Input((8, 8, 3)), keras.layers.Conv2D(8, 3), keras.layers.Dense(2)])  # warm
before, begin = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
if how == "build":
    model = zoo.load("resnet152", weights=None)
elif how == "keras" and kind == "keras":
    model = keras.models.load_model(file, compile=False)
elif how == "keras":
    model = keras.applications.ResNet152(weights=None)
    model.load_weights(file)
elif kind == "h5":
    model = zoo.load("resnet152", weights=file)
else:
    model = zoo.load(file, name="any")
seconds, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_SELF)
cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
print(json.dumps({"seconds": seconds, "cpu": cpu, "peak": after.ru_maxrss * 1024}))
"""

_WRITE = """
import os, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
from pathlib import Path
import numpy as np, keras, tensorflow as tf, torch
from resfit import zoo
from resfit.weights import write
from tests.weights import tf_sources

folder = Path(sys.argv[1])
model = keras.applications.ResNet152(weights=None)
zoo_model = zoo.load("resnet152", weights=None, preprocess=False)
write.write(zoo_model, folder / "net.h5")
model.save_weights(folder / "net.weights.h5")
model.save(folder / "net.keras")
model.export(folder / "saved_model", verbose=False)
tf.train.Checkpoint(model=model).write(os.fspath(folder / "net.ckpt"))
other = zoo.load("resnet152v1.5", weights=None, preprocess=False)
write.write(other, folder / "net.safetensors")
write.write(other, folder / "net.pth")
state = torch.load(folder / "net.pth", weights_only=True)
torch.save(state, folder / "net.old.pth", _use_new_zipfile_serialization=False)
np.savez(folder / "net.npz", **tf_sources.bit_arrays((3, 8, 36, 3), filters=(64, 128, 256, 512), classes=1000))
"""

FILES = {
    "h5": "net.h5",
    "weights.h5": "net.weights.h5",
    "keras": "net.keras",
    "safetensors": "net.safetensors",
    "pth": "net.pth",
    "old.pth": "net.old.pth",
    "npz": "net.npz",
    "saved_model": "saved_model",
    "ckpt": "net.ckpt.index",
}


def run(code: str, *arguments: object) -> str:
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "MALLOC_TRIM_THRESHOLD_": "0"}
    environment["PYTHONPATH"] = os.pathsep.join([os.fspath(_ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", code, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if result.returncode:
        raise SystemExit(result.stderr)
    return result.stdout


def size_of(file: Path) -> int:
    files = [*file.rglob("*")] if file.is_dir() else [*file.parent.glob(f"{file.name.removesuffix('.index')}*")]
    return sum(one.stat().st_size for one in files if one.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kind", action="append", choices=FILES)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        run(_WRITE, name)
        print(f"ResNet-152; the best of {arguments.rounds} rounds, in turn")
        for kind in arguments.kind or FILES:
            file = Path(name, FILES[kind])
            same = kind if kind in ("weights.h5", "keras") else "h5"
            hows = {"build": file, "keras": Path(name, FILES[same]), "resfit": file}
            runs = [
                {how: json.loads(run(_CHILD, same if how == "keras" else kind, how, one)) for how, one in hows.items()}
                for _ in range(arguments.rounds)
            ]
            best = {(how, key): min(one[how][key] for one in runs) for how in hows for key in runs[0][how]}
            extra = best["resfit", "peak"] - best["build", "peak"]
            times = " ".join(
                f"{key} {best['resfit', key]:5.2f} s ({best['resfit', key] / best['keras', key]:4.2f} x Keras)"
                for key in ("seconds", "cpu")
            )
            print(
                f"{kind:12} {times}; memory +{extra / 1e6:4.0f} MB, {extra / size_of(file):+.2f} x the file", flush=True
            )


if __name__ == "__main__":
    main()
