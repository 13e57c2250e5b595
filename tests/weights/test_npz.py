"""BiT's ``.npz`` files, and what damaged or hostile ones do."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from resfit.errors import CheckpointError
from resfit.networks import catalog
from resfit.weights import load
from resfit.weights.formats import npz
from tests import fuzzing
from tests.numeric import relative_error
from tests.weights import tf_sources
from tests.weights.test_saved_model import TOLERANCE, logits, pixels


@pytest.mark.parametrize("size", [(64, 64), (49, 63)])
def test_bit_computes_the_same(size, tmp_path):
    arrays, images = tf_sources.bit_arrays(), pixels(*size)
    np.savez(tmp_path / "BiT-S.npz", **arrays)
    received, model = logits(tmp_path / "BiT-S.npz", images)
    assert relative_error(received, tf_sources.bit_forward(images, arrays)) < TOLERANCE
    spec = model.architecture
    assert (spec.depths, spec.inner_widths, spec.norm) == ((2, 1, 1, 2), (64, 128, 256, 512), "group")
    assert (spec.weight_standardization, spec.weight_standardization_epsilon) == (True, 1e-10)
    assert (model.input_spec.scale, model.input_spec.mean) == (1 / 127.5, (1.0, 1.0, 1.0))


def test_bit_of_odd_sizes_without_a_classifier(tmp_path):
    arrays = tf_sources.bit_arrays((1, 3), filters=(32, 96), channels=1, classes=0)
    np.savez_compressed(tmp_path / "odd.npz", **arrays)
    images = pixels(channels=1)
    model = load.load_source(tmp_path / "odd.npz", preprocess=False, pooling="avg")
    assert relative_error(model(images), tf_sources.bit_forward(images, arrays)) < TOLERANCE


@pytest.mark.parametrize(("scope", "head"), [("", "head/dense"), ("keras_layer/resnet/", "head/conv2d")])
def test_bit_as_a_saved_model_computes_the_same(scope, head, tmp_path):
    arrays, images = tf_sources.bit_arrays((1, 1), filters=(32, 64), scope=scope, head=head), pixels()
    expected = tf_sources.write_saved_model(tmp_path / "bit", arrays, tf_sources.bit_forward, images)
    assert relative_error(logits(tmp_path / "bit", images)[0], expected) < TOLERANCE


@pytest.mark.slow
def test_bit_of_real_size(tmp_path):
    arrays, images = tf_sources.bit_arrays((3, 4, 6, 3), classes=21843), pixels(128, 128)
    np.savez(tmp_path / "BiT-M-R50x1.npz", **arrays)
    received, model = logits(tmp_path / "BiT-M-R50x1.npz", images)
    assert relative_error(received, tf_sources.bit_forward(images, arrays)) < TOLERANCE
    published = catalog.get("resnetv2_50x1_bit").spec
    assert model.architecture == published.replace(classes=21843, weight_standardization_epsilon=1e-10)


def test_a_head_of_zeros_is_said(tmp_path):
    arrays = tf_sources.bit_arrays((1,), filters=(32,))
    arrays["resnet/head/conv2d/kernel"][:] = 0
    np.savez_compressed(tmp_path / "zeros.npz", **arrays)
    assert any("all zeros" in remark for remark in load.read_source(tmp_path / "zeros.npz").assumptions)


def test_what_is_left_over_is_named(tmp_path):
    arrays = tf_sources.bit_arrays((1,), filters=(32,))
    np.savez(tmp_path / "more.npz", **arrays, **{"resnet/block1/unit01/d/kernel": np.zeros((2, 3), np.float32)})
    with pytest.raises(CheckpointError, match=r"tensors left over: resnet/block1/unit01/d/kernel \(2, 3\)"):
        load.read_source(tmp_path / "more.npz")


def test_every_way_of_numpy_to_lay_out_an_array_is_read(tmp_path):
    grid = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    arrays = {
        "plain": grid,
        "columns": np.asfortranarray(grid),
        "big_endian": grid.astype(">f4"),
        "half": grid.astype(np.float16),
        "scalar": np.float32(3),
        "empty": np.zeros((0, 4), np.float32),
    }
    np.savez(tmp_path / "all.npz", **arrays)
    found = npz.read(tmp_path / "all.npz").arrays
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert np.array_equal(found[name], array)
        assert found[name].shape == np.shape(array)
        assert found[name].dtype.isnative


# Hostile files.


def written(path: Path, *members: tuple[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def header(text: str) -> bytes:
    padded = text.ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded.encode()


def test_pickles_are_never_loaded(tmp_path):
    class Trap:
        def __reduce__(self) -> tuple:
            return (Path.write_text, (tmp_path / "sprung", "!"))

    np.savez(tmp_path / "trap.npz", weights=np.array([Trap()], object))
    with pytest.raises(CheckpointError, match="floating-point"):
        npz.read(tmp_path / "trap.npz")
    assert not (tmp_path / "sprung").exists()


def test_declared_sizes_are_compared(tmp_path):
    huge = header("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000), }")
    cases = {
        "shape": written(tmp_path / "shape.npz", ("a.npy", huge)),
        "short": written(
            tmp_path / "short.npz", ("a.npy", header("{'descr':'<f4','fortran_order':False,'shape':(9,)}"))
        ),
        "bomb": written(tmp_path / "bomb.npz", ("a.npy", bytes(600_000_000)), compression=zipfile.ZIP_DEFLATED),
    }
    for path in cases.values():
        with pytest.raises(CheckpointError, match="must hold all it declares"):
            npz.read(path)


def test_other_members_are_refused(tmp_path):
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3, np.complex64))
    whole = buffer.getvalue()
    for name, content, told in (
        ("readme.txt", b"hello", "every member must be an array"),
        ("a.npy", whole, "floating-point"),
        ("a.npy", b"no array", "whole"),
        ("a.npy", header("{'descr': " + "(" * 3000), "whole"),
    ):
        with pytest.raises(CheckpointError, match=told):
            npz.read(written(tmp_path / "other.npz", (name, content)))
    with pytest.warns(UserWarning, match="Duplicate"):
        written(tmp_path / "twice.npz", ("a.npy", whole), ("a.npy", whole))
    with pytest.raises(CheckpointError, match="each once"):
        npz.read(tmp_path / "twice.npz")
    with pytest.raises(CheckpointError, match="must exist"):
        npz.read(tmp_path / "missing.npz")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("npz")
    arrays = tf_sources.bit_arrays((1,), filters=(32,), classes=2)
    small = {name: array.reshape(-1)[:20].copy() for name, array in arrays.items()}
    np.savez(folder / "stored.npz", **small)
    np.savez_compressed(folder / "packed.npz", **small)
    return [folder / "stored.npz", folder / "packed.npz"]


def test_damaged_files_are_refused_or_read(files, tmp_path):
    result = fuzzing.survive("resfit.weights.formats.npz:read", files, tmp_path)
    assert result["refused"] > fuzzing.FEW / 2


@pytest.mark.slow
def test_many_damaged_files(files, tmp_path):
    print(fuzzing.survive("resfit.weights.formats.npz:read", files, tmp_path, count=50_000, seed=1))
