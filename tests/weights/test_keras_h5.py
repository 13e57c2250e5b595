"""Keras' legacy format: what Keras writes is read, what is written Keras reads, hostile files are refused."""

from __future__ import annotations

import h5py
import keras
import numpy as np
import pytest
from keras.src.legacy.saving import legacy_h5_format

from resfit.errors import CheckpointError
from resfit.weights.formats import keras_h5
from resfit.weights.formats.keras_h5 import H5Layer
from tests.numeric import randomize


@pytest.fixture
def small():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Conv2D(4, 3, name="conv"),
            keras.layers.BatchNormalization(name="bn"),
            keras.layers.Flatten(name="flat"),
            keras.layers.Dense(2, name="dense"),
        ]
    )
    return randomize(model)


def check(layers, model):
    own = [layer for layer in model.layers if layer.weights]
    assert [layer.name for layer in layers] == [layer.name for layer in own]
    for found, layer in zip(layers, own, strict=True):
        for array, weight in zip(found.arrays, layer.get_weights(), strict=True):
            np.testing.assert_array_equal(array, weight)


def test_reads_a_whole_model(small, tmp_path):
    small.save(tmp_path / "model.h5")
    layers = keras_h5.read_layers(tmp_path / "model.h5")
    check(layers, small)
    assert [name.rsplit("/")[-1] for name in layers[1].weight_names] == [
        "gamma",
        "beta",
        "moving_mean",
        "moving_variance",
    ]


def test_reads_weights_alone(small, tmp_path):
    with h5py.File(tmp_path / "weights.h5", "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, small)
    check(keras_h5.read_layers(tmp_path / "weights.h5"), small)


@pytest.mark.parametrize("by_name", [False, True])
def test_keras_reads_what_is_written(small, tmp_path, by_name):
    layers = [
        H5Layer(layer.name, tuple(f"{layer.name}/{w.name}:0" for w in layer.weights), tuple(layer.get_weights()))
        for layer in small.layers
    ]
    expected = small.get_weights()
    keras_h5.write_layers(tmp_path / "weights.h5", layers)
    randomize(small, seed=1)
    small.load_weights(tmp_path / "weights.h5", **({"by_name": True} if by_name else {}))
    for weight, value in zip(small.get_weights(), expected, strict=True):
        np.testing.assert_array_equal(weight, value)


def test_long_lists_of_names_are_cut_into_pieces(tmp_path):
    layers = [
        H5Layer(f"layer_{number:05d}" + "x" * 60, ("w:0",), (np.full(1, number, np.float32),)) for number in range(2000)
    ]
    keras_h5.write_layers(tmp_path / "many.h5", layers)
    with h5py.File(tmp_path / "many.h5") as file:
        assert "layer_names0" in file.attrs
    found = keras_h5.read_layers(tmp_path / "many.h5")
    assert [int(layer.arrays[0][0]) for layer in found] == list(range(2000))


def test_is_legacy(small, tmp_path):
    small.save(tmp_path / "model.h5")
    small.save_weights(tmp_path / "new.weights.h5")
    (tmp_path / "text.h5").write_text("no HDF5")
    assert keras_h5.is_legacy(tmp_path / "model.h5")
    assert not keras_h5.is_legacy(tmp_path / "new.weights.h5")
    assert not keras_h5.is_legacy(tmp_path / "text.h5")


def hostile(path, make):
    """Writes a file of one layer whose kernel ``make(group)`` makes."""
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = np.asarray([b"conv"])
        group = file.create_group("conv")
        group.attrs["weight_names"] = np.asarray([b"kernel:0"])
        make(group)
    return path


def test_external_links_are_refused(tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["secret"] = np.ones(3, np.float32)
    path = hostile(
        tmp_path / "a.h5",
        lambda group: group.__setitem__("kernel:0", h5py.ExternalLink(str(tmp_path / "other.h5"), "secret")),
    )
    with pytest.raises(CheckpointError, match="a link at 'kernel:0'"):
        keras_h5.read_layers(path)


def test_soft_links_are_refused(tmp_path):
    link = h5py.SoftLink("/elsewhere")
    path = hostile(tmp_path / "a.h5", lambda group: group.__setitem__("kernel:0", link))
    with pytest.raises(CheckpointError, match="a link"):
        keras_h5.read_layers(path)


def test_external_storage_is_refused(tmp_path):
    (tmp_path / "secret").write_bytes(b"0123456789ab")
    path = hostile(
        tmp_path / "a.h5",
        lambda group: group.create_dataset("kernel:0", (3,), "f4", external=[(str(tmp_path / "secret"), 0, 12)]),
    )
    with pytest.raises(CheckpointError, match="in another file"):
        keras_h5.read_layers(path)


@pytest.mark.parametrize("options", [{}, {"chunks": (1024, 1024, 1)}], ids=["contiguous", "chunked"])
def test_a_declared_size_that_is_not_there_is_refused(tmp_path, options):
    """Four terabytes are declared, none are written: nothing may be allocated."""
    path = hostile(
        tmp_path / "a.h5", lambda group: group.create_dataset("kernel:0", (1 << 20, 1 << 20, 1), "f4", **options)
    )
    with pytest.raises(CheckpointError, match="must hold all it declares"):
        keras_h5.read_layers(path)


def test_a_compression_bomb_is_refused(tmp_path):
    def zeros(group):
        data = group.create_dataset("kernel:0", (1 << 24,), "f4", chunks=(1 << 22,), compression="gzip")
        data[...] = 0

    path = hostile(tmp_path / "a.h5", zeros)
    assert path.stat().st_size < (1 << 26) / 100
    with pytest.raises(CheckpointError, match="must hold all it declares"):
        keras_h5.read_layers(path)


@pytest.mark.parametrize("dtype", ["i4", "S5", h5py.string_dtype(), "bool"], ids=str)
def test_other_dtypes_are_refused(tmp_path, dtype):
    path = hostile(tmp_path / "a.h5", lambda group: group.create_dataset("kernel:0", (3,), dtype))
    with pytest.raises(CheckpointError, match="floating-point"):
        keras_h5.read_layers(path)


def test_a_cycle_of_groups_ends(tmp_path):
    def cycle(group):
        group["kernel:0"] = group

    with pytest.raises(CheckpointError, match="must be a dataset"):
        keras_h5.read_layers(hostile(tmp_path / "a.h5", cycle))


def test_missing_and_damaged_files(small, tmp_path):
    with pytest.raises(CheckpointError, match="must exist"):
        keras_h5.read_layers(tmp_path / "none.h5")
    (tmp_path / "text.h5").write_text("no HDF5")
    with pytest.raises(CheckpointError, match="must be HDF5"):
        keras_h5.read_layers(tmp_path / "text.h5")
    small.save(tmp_path / "model.h5")
    whole = (tmp_path / "model.h5").read_bytes()
    for share in (0.2, 0.5, 0.9):
        (tmp_path / "cut.h5").write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(CheckpointError):
            keras_h5.read_layers(tmp_path / "cut.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["data"] = np.ones(3)
    with pytest.raises(CheckpointError, match="layer_names"):
        keras_h5.read_layers(tmp_path / "other.h5")


def test_grouped_kernel_equals_the_published_graph():
    """keras.applications wrote a grouped convolution as a depthwise one and a sum over a group's inputs."""
    groups, width = 4, 3
    channels = groups * width
    depthwise = keras.layers.DepthwiseConv2D(3, depth_multiplier=width, use_bias=False)
    inputs = keras.Input((6, 5, channels))
    x = depthwise(inputs)
    x = keras.layers.Reshape((4, 3, groups, width, width))(x)
    shape = (4, 3, groups, width)
    x = keras.layers.Lambda(lambda t: sum(t[:, :, :, :, i] for i in range(width)), output_shape=shape)(x)
    published = keras.Model(inputs, keras.layers.Reshape((4, 3, channels))(x))
    randomize(published)

    grouped = keras.layers.Conv2D(channels, 3, groups=groups, use_bias=False)
    grouped.build((None, 6, 5, channels))
    grouped.kernel.assign(keras_h5.grouped_kernel(np.asarray(depthwise.get_weights()[0]), groups))
    images = np.random.default_rng(0).normal(size=(2, 6, 5, channels)).astype("float32")
    np.testing.assert_allclose(grouped(images), published(images), rtol=1e-4, atol=1e-5)


def test_grouped_kernel_of_another_shape():
    with pytest.raises(CheckpointError, match="4 groups"):
        keras_h5.grouped_kernel(np.zeros((3, 3, 12, 5), np.float32), 4)
