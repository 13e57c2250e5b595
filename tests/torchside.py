"""PyTorch's libraries, imported so that a torchvision that was compiled for another torch still serves."""

from __future__ import annotations

import importlib
import sys
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
