"""Each registry takes an entry from outside, and the real way uses it."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

import resfit
from resfit.errors import CheckpointError
from resfit.weights import canonical, load, resolve
from resfit.weights.conventions import base as conventions
from resfit.weights.conventions import pytorch
from resfit.weights.formats import base as formats
from tests.numeric import relative_error


@pytest.fixture(scope="module")
def network():
    return resfit.load("resnet10_tiny", preprocess=False)


@pytest.fixture
def images():
    return np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype("float32")


def torch_names(network) -> dict[str, np.ndarray]:
    found = pytorch.to_torch(network.architecture, "timm", arrays=canonical.arrays(network))
    return {name: array for name, array in found.items() if array.dtype.kind == "f"}


def test_a_format_is_one_registered_reader(network, images, tmp_path):
    @formats.register_format("toy", suffixes=(".toy",), order=1)
    def read(path: Path) -> formats.Tensors:
        with zipfile.ZipFile(path) as archive:
            arrays = {name: np.load(archive.open(name)) for name in archive.namelist()}
        return formats.Tensors(path, arrays, {"resfit": network.architecture}, network.input_spec)

    try:
        with zipfile.ZipFile(tmp_path / "net.toy", "w") as archive:
            for name, array in torch_names(network).items():
                with archive.open(name, "w") as member:
                    np.save(member, array)
        loaded = resfit.load(str(tmp_path / "net.toy"), preprocess=False)
        assert relative_error(loaded(images), network(images)) < 1e-5
        named = resfit.load("resnet10_tiny", weights=tmp_path / "net.toy", preprocess=False)
        assert relative_error(named(images), network(images)) < 1e-5
        assert resolve.choose(["README.md", "net.toy", "old.pth"], "here") == ["net.toy"]
        with pytest.raises(CheckpointError, match=r"toy, .*KerasHub"):
            load.read_source(__file__)
    finally:
        formats.remove_format("toy")
    assert ".toy" not in formats.suffixes()


def test_a_convention_is_one_registered_translation(network, images, tmp_path):
    @conventions.register_convention("shouted", recognises=lambda read: all(map(str.isupper, read.arrays)), order=1)
    def translate(tensors, *, prefix=None, averaged=False, ignore=()):
        arrays = {name.lower(): array for name, array in tensors.arrays.items()}
        return conventions.Translation("shouted", "", arrays, {}, {}, (), ("it was loud",))

    try:
        np.savez(tmp_path / "net.npz", **{name.upper(): array for name, array in canonical.arrays(network).items()})
        loaded = resfit.load(tmp_path / "net.npz", architecture="resnet10_tiny", preprocess=False)
        assert relative_error(loaded(images), network(images)) < 1e-5
        assert "it was loud" in loaded.assumptions
    finally:
        conventions.remove_convention("shouted")
    with pytest.raises(CheckpointError):
        load.read_source(tmp_path / "net.npz")


def test_names_that_are_taken_are_refused():
    with pytest.raises(ValueError, match=r"a format named 'npz' is registered already"):
        formats.register_format("npz")(lambda path: None)


def test_every_ending_is_read_by_one_format_or_by_what_is_in_the_file():
    endings = [suffix for kind in formats.all_formats() for suffix in kind.suffixes]
    assert sorted(endings) == sorted(set(endings))
    assert {".pth", ".safetensors", ".onnx", ".npz", ".keras", ".h5", ".index", ".pkl"} <= set(endings)


def test_a_network_around_a_network_is_a_convention_too(network, tmp_path):
    """What detectors do: read whole by a convention of their own, and as a body where that alone is wanted."""

    @conventions.register_convention(
        "counted", recognises=lambda read: "extra.weight" in read.arrays, order=1, is_larger=True
    )
    def read(tensors, *, architecture=None, **reading):
        return len(tensors.arrays), architecture

    arrays = {f"backbone.{name}": array for name, array in torch_names(network).items()}
    np.savez(tmp_path / "net.npz", **{"extra.weight": np.zeros(3, "float32"), **arrays})
    try:
        assert load.read_source(tmp_path / "net.npz", architecture="x") == (1 + len(arrays), "x")
        body = load.read_source(tmp_path / "net.npz", architecture="resnet10_tiny", include_top=False)
    finally:
        conventions.remove_convention("counted")
    assert body.spec.depths == network.architecture.depths
    assert any("extra" in text for text in body.assumptions)
