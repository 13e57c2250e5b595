"""What a fitted model says in another process, and what that process has imported."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np

PROGRAM = """
import json, sys
from pathlib import Path
from resfit.cli.main import build
from resfit.serving import detection
from resfit.serving.adapter import Served
from resfit.tasks import dispatch
folder, *paths = sys.argv[1:]
build(["predict"])(["predict", folder, paths[0], "--json"], standalone_mode=False)
told = lambda fitted, found: {name: values.tolist() for name, values in fitted.arrays(found).items()}
loaded = dispatch.load(folder)
everything = {"threshold": 0.0} if loaded.task == "detection" else {}
found = {"predicted": told(loaded, loaded.predict(paths, **everything))}
served = Served.load(Path(folder), "auto")
served.warm_up(2)
images = [served.decode(Path(path).read_bytes(), 10**6) for path in paths]
found["served"] = told(served, [served.predict([image])[0] for image in images])
found["features"] = [served.embed([image])[0].tolist() for image in images]
found["imported"] = sorted({"keras", "tensorflow", "scipy", "sklearn", "pandas", "matplotlib"} & set(sys.modules))
print(json.dumps(found))
"""


def said_apart(folder, paths):
    """Returns answers of ``predict``, of a server and of the network without its head, and what was imported."""
    command = [sys.executable, "-c", PROGRAM, str(folder), *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.rstrip().rpartition("\n")[2])
    numbers = ("predicted", "served")
    return found | {what: {name: np.array(values) for name, values in found[what].items()} for what in numbers}


def spoil(cache, record):
    """Changes a bit of a converted network's weights."""
    weights = cache / "engines" / record.network["folder"] / "network.bin"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 64
    weights.write_bytes(data)
