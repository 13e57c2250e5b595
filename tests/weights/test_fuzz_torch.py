"""Damaged files of torch's world: a clear error or a result, never anything else."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest

from resfit.weights.formats import safetensors
from tests import fuzzing


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The same small tensors in every format, the folder with a config among them."""
    torch = pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("sources")
    random = np.random.default_rng(0)
    arrays = {
        f"layer{stage}.{block}.{name}": random.normal(size=shape).astype(np.float32)
        for stage in (1, 2)
        for block in (0, 1)
        for name, shape in (("conv1.weight", (8, 8, 3, 3)), ("bn1.weight", (8,)), ("bn1.running_var", (8,)))
    }
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    options = argparse.Namespace(arch="resnet18", sizes=[224, 96])
    torch.save({"state_dict": tensors, "epoch": 3, "args": options}, folder / "zipped.pth")
    torch.save(tensors, folder / "legacy.th", _use_new_zipfile_serialization=False)
    safetensors.write_arrays(folder / "plain.safetensors", arrays, {"format": "pt"})
    hub = folder / "hub"
    hub.mkdir()
    safetensors.write_arrays(hub / "model.safetensors", arrays)
    (hub / "config.json").write_text('{"architecture": "resnet18", "pretrained_cfg": {"mean": [0.5], "std": [0.2]}}')
    (hub / "preprocessor_config.json").write_text('{"image_mean": [0.5], "image_std": [0.5], "size": 32}')
    return [folder / "zipped.pth", folder / "legacy.th", folder / "plain.safetensors", hub]


def test_damaged_files_are_refused_or_read(files: list[Path], tmp_path: Path) -> None:
    result = fuzzing.survive("resfit.weights.formats.torch:read", files, tmp_path)
    assert result["read"] + result["refused"] == fuzzing.FEW
    assert result["refused"] > fuzzing.FEW / 4


@pytest.mark.slow
def test_many_damaged_files(files: list[Path], tmp_path: Path) -> None:
    print(fuzzing.survive("resfit.weights.formats.torch:read", files, tmp_path, count=50_000, seed=1))
