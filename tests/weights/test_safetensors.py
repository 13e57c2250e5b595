"""The safetensors format: arrays and text, and damaged files."""

from __future__ import annotations

import json

import numpy as np
import pytest

from resfit.errors import CheckpointError
from resfit.weights.formats import safetensors


def test_round_trip(tmp_path):
    arrays = {"a/kernel": np.arange(6, dtype=np.float16).reshape(2, 3), "b": np.ones(3, np.float32)[::2]}
    safetensors.write_arrays(tmp_path / "a.safetensors", arrays, {"classes": json.dumps(["x", "ß"])})
    found = safetensors.read_arrays(tmp_path / "a.safetensors")
    assert set(found) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype
    metadata = safetensors.read_metadata(tmp_path / "a.safetensors")
    assert safetensors.metadata_value(metadata["classes"]) == ["x", "ß"]
    assert safetensors.metadata_value("resnet18") == "resnet18"


def test_integers_are_no_weights(tmp_path):
    safetensors.write_arrays(tmp_path / "a.safetensors", {"steps": np.ones(3, np.int64)})
    with pytest.raises(CheckpointError, match="'steps' of int64"):
        safetensors.read_arrays(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"short",
        (1 << 60).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (9).to_bytes(8, "little") + b"not json!",
        (200_000).to_bytes(8, "little") + b"[" * 200_000,
    ],
    ids=["empty", "short", "huge", "list", "text", "deep"],
)
def test_damaged_headers(tmp_path, content):
    (tmp_path / "a.safetensors").write_bytes(content)
    for read in (safetensors.read_metadata, safetensors.read_arrays):
        with pytest.raises(CheckpointError):
            read(tmp_path / "a.safetensors")


def test_declared_sizes_beyond_the_file(tmp_path):
    header = json.dumps({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}).encode()
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 16)
    with pytest.raises(CheckpointError, match="must be safetensors"):
        safetensors.read_arrays(tmp_path / "a.safetensors")


def test_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match="must exist"):
        safetensors.read_arrays(tmp_path / "none.safetensors")
