"""Shared fixtures: quiet TensorFlow, fixed seeds, a cache of its own for each run."""

from __future__ import annotations

import gc
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import pytest


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory):
    """Keeps the tests out of the user's caches, and the network out of the tests."""
    patch = pytest.MonkeyPatch()
    patch.setenv("RESFIT_CACHE", str(tmp_path_factory.mktemp("resfit-cache")))
    patch.setenv("KERAS_HOME", str(tmp_path_factory.mktemp("keras-home")))
    yield
    patch.undo()


def pytest_collection_finish() -> None:
    """Leaves the million objects of the imported libraries out of each collection of garbage that follows."""
    gc.collect()
    gc.freeze()
