"""An export as it is used elsewhere: its checksums, and the code of its card in a process that cannot import resfit."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]

# timm needs a torchvision of the same torch; where that is another one, its two names are given to it as tests do
_HEAD = """
import os, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "resfit":
            raise ImportError("resfit is not here")

sys.meta_path.insert(0, Blocked())
sys.path.insert(0, os.getcwd())
"""
_TIMM = f"""
sys.path.append({str(ROOT)!r})
from tests import torchside
torchside.library("timm")
"""
_HUB = f"""
sys.path.append({str(ROOT)!r})
from tests.hub import original
original.imported()
"""


def contract_of(folder: Path) -> dict[str, Any]:
    """Returns what ``contract.json`` says, once every file of an export has the checksum that is listed for it."""
    lines = (folder / "SHA256SUMS").read_text("utf-8").splitlines()
    listed = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    files = [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    found = {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    assert {name: digest for name, digest in found.items() if name != "SHA256SUMS"} == listed
    return json.loads((folder / "contract.json").read_text("utf-8"))


def run_card(folder: Path, photo: bytes) -> np.ndarray:
    """Runs the code of an export's ``README.md`` in its folder, on ``photo.jpg``.

    Returns:
        The ``scores`` that it leaves behind.
    """
    text = (folder / "README.md").read_text("utf-8")
    code = text.partition("```python\n")[2].partition("```")[0]
    assert "resfit" not in code
    (folder / "photo.jpg").write_bytes(photo)
    head = _HEAD + (_TIMM if (folder / "load.py").exists() else _HUB if "tensorflow_hub" in code else "")
    tail = (
        "\nimport numpy\n"
        "found = answer['scores'][0] if 'answer' in globals() else scores\n"
        "numpy.save('scores.npy', numpy.asarray(found))\n"
        "assert not [name for name in sys.modules if name.partition('.')[0] == 'resfit']\n"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", head + code + tail], cwd=folder, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.strip()
        return np.load(folder / "scores.npy")
    finally:
        for name in ("photo.jpg", "scores.npy"):
            (folder / name).unlink(missing_ok=True)
