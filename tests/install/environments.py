"""Environments of users: resfit as a wheel, with the extras that are named and nothing else.

What an environment holds beside resfit is installed once and kept in ``build/environments`` under a digest of what the
wheel requires. resfit itself is installed to a folder of its own each time.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from filelock import FileLock

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "build" / "environments"

# pip's own words where there is no registry
_NO_REGISTRY = ("No matching distribution", "Could not find a version", "ConnectionError", "Temporary failure")


def wheel(folder: Path) -> Path:
    """Builds the wheel of this checkout."""
    pytest.importorskip("hatchling", reason="the wheel is built with hatchling")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, ROOT],
        check=True,
    )
    return next(folder.glob("resfit-*.whl"))


def environment(built: Path, extras: Sequence[str], base: Path | None = None) -> Path:
    """Returns the folder of an environment with what the wheel and its extras require, and without resfit.

    Args:
        built: The wheel.
        extras: Its extras.
        base: An environment to stand on: what it has is not installed again.
    """
    with zipfile.ZipFile(built) as archive:
        metadata = next(name for name in archive.namelist() if name.endswith("METADATA"))
        required = [line for line in archive.read(metadata).decode().splitlines() if line.startswith("Requires-Dist")]
    facts = [sys.version, *sorted(extras), str(base), *(line for line in required if "extra == 'test'" not in line)]
    digest = hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]
    folder = KEPT / f"{'-'.join(extras) or 'base'}-{digest}"
    KEPT.mkdir(parents=True, exist_ok=True)
    with FileLock(KEPT / f"{folder.name}.lock"):
        if (folder / "complete").exists():
            return folder
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        if base is not None:
            packages = next((base / "lib").glob("python*/site-packages"))
            own = next((folder / "lib").glob("python*/site-packages"))
            (own / "base.pth").write_text(f"{packages}\n")
        wanted = f"{built}[{','.join(extras)}]" if extras else str(built)
        done = _pip(folder, "install", "--quiet", wanted)
        if done.returncode:
            if any(words in done.stderr for words in _NO_REGISTRY):
                pytest.skip(f"the package registry cannot be reached: {done.stderr.strip().splitlines()[-1]}")
            raise RuntimeError(done.stderr)
        _pip(folder, "uninstall", "--quiet", "--yes", "resfit")
        (folder / "complete").touch()
    return folder


def toured(built: Path, kept: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs the tour in an environment, in a folder that is its home as well.

    Args:
        built: The wheel.
        kept: The environment.
        folder: With the pictures.
        *arguments: For the tour.
    """
    own = folder / "installed"
    done = _pip(kept, "install", "--quiet", "--no-deps", "--target", str(own), str(built))
    assert done.returncode == 0, done.stderr
    tour = Path(__file__).with_name("tour.py")
    return subprocess.run(
        [kept / "bin" / "python", tour, folder, *arguments],
        env=_variables({"PYTHONPATH": str(own), "HOME": str(folder / "home")}),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=3600,
    )


def _variables(more: Mapping[str, str]) -> dict[str, str]:
    """Returns a user's variables: no cache of the tests, no network."""
    own = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("RESFIT_", "KERAS_", "PYTHON", "XDG_", "MPLCONFIGDIR"))
    }
    offline = {
        "RESFIT_OFFLINE": "1",
        "HF_HUB_OFFLINE": "1",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "WANDB_MODE": "offline",
        "CUDA_VISIBLE_DEVICES": "",
    }
    return {**own, **offline, **more}


def _pip(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [folder / "bin" / "python", "-m", "pip", *arguments], capture_output=True, text=True, timeout=1800
    )
