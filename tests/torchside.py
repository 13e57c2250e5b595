"""PyTorch's libraries, imported so that a torchvision that was compiled for another torch still serves."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

_KEPT: list = []


def library(name: str) -> ModuleType:
    """Returns a module that needs torchvision; skips the test where it is not installed.

    Torchvision's compiled operators are not needed for its networks, but its import fails without their names.

    Args:
        name: Such as ``"timm"``.
    """
    torch = pytest.importorskip("torch")
    try:
        importlib.import_module("torchvision")
    except ImportError:
        pytest.skip("torchvision is not installed")
    except RuntimeError:  # "operator torchvision::nms does not exist"
        for module in [module for module in sys.modules if module.partition(".")[0] == "torchvision"]:
            del sys.modules[module]
        _KEPT.append(torch.library.Library("torchvision", "DEF"))
        for operator in ("nms", "qnms"):
            _KEPT[0].define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        importlib.import_module("torchvision")
    return pytest.importorskip(name)


_SHIM = """
import importlib, sys
import torch

sys.path.remove({folder!r})
del sys.modules["torchvision"]
try:
    importlib.import_module("torchvision")
except RuntimeError:  # it was compiled for another torch
    for module in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[module]
    kept = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        kept.define(f"{{operator}}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    importlib.import_module("torchvision").kept = kept
"""


def shim(folder: Path) -> str:
    """Writes a module by which other processes import torchvision as :func:`library` does.

    Args:
        folder: An empty folder.

    Returns:
        The folder, to be put first on the path.
    """
    (folder / "torchvision.py").write_text(_SHIM.format(folder=str(folder)), "utf-8")
    return str(folder)
