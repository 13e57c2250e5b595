"""The formats of TensorFlow's checkpoints, and what damaged and hostile files of them do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from resfit.errors import CheckpointError
from resfit.weights.formats import saved_model, tf_bundle
from tests import fuzzing
from tests.weights import tf_sources

# Hostile and damaged files.


def test_texts_and_wide_numbers_are_read_as_tensorflow_reads_them(tmp_path):
    import tensorflow as tf

    values = {
        "half": tf.Variable(tf.constant([1.5, -2.0], tf.float16)),
        "brain": tf.Variable(tf.constant([[1.5, 3.140625]], tf.bfloat16)),
        "double": tf.Variable(tf.constant(2.5, tf.float64)),
        "count": tf.Variable(7, dtype=tf.int64),
        "empty": tf.Variable(tf.zeros((0, 3))),
        "words": tf.Variable(["a", "b"]),
        "word": tf.Variable("alone"),
    }
    tf.train.Checkpoint(**values).write(str(tmp_path / "all"))
    found = saved_model.read(tmp_path / "all")
    assert {name: path for name, path in found.graph.paths.items() if name != path} == {}
    for name in ("half", "brain", "double", "count", "empty"):
        assert np.array_equal(found.arrays[name], values[name].numpy().astype(found.arrays[name].dtype)), name
    assert found.arrays["half"].dtype == np.float16
    assert {name.partition("/")[0] for name in found.graph.other} == {"words", "word"}


def test_several_data_files_are_read(tmp_path):
    import tensorflow as tf

    arrays = tf_sources.slim_arrays(1, (1,), (8,))
    names = list(arrays)
    for part in (0, 1):
        own = names[part::2]
        tf.raw_ops.SaveV2(
            prefix=str(tmp_path / f"part{part}"),
            tensor_names=own,
            shape_and_slices=[""] * len(own),
            tensors=[arrays[name] for name in own],
        )
    parts = [str(tmp_path / "part0"), str(tmp_path / "part1")]
    tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=parts, destination_prefix=str(tmp_path / "whole"))
    assert len(list(tmp_path.glob("whole.data-*"))) == 2
    found = saved_model.read(tmp_path / "whole").arrays
    assert all(np.array_equal(found[name], array) for name, array in arrays.items())
    (tmp_path / "whole.data-00001-of-00002").unlink()
    with pytest.raises(CheckpointError, match=r"must all exist.*whole.data-00001-of-00002"):
        saved_model.read(tmp_path / "whole")


def test_slices_of_partitioned_variables_are_refused_by_name(tmp_path):
    import tensorflow as tf

    for write in (tf.raw_ops.SaveV2, tf.raw_ops.SaveSlices):
        path = tmp_path / write.__name__
        slices = ["4 2 0,2:0,2", "4 2 2,2:0,2"]
        if write is tf.raw_ops.SaveV2:
            write(prefix=str(path), tensor_names=["w", "w"], shape_and_slices=slices, tensors=[tf.zeros((2, 2))] * 2)
        else:
            write(filename=str(path), tensor_names=["w", "w"], shapes_and_slices=slices, data=[tf.zeros((2, 2))] * 2)
        with pytest.raises(CheckpointError, match=r"must be saved as one piece. Received: 'w' in slices"):
            saved_model.read(path)


def test_one_changed_byte_of_the_numbers_is_noticed(tmp_path):
    path = tf_sources.write_checkpoint(tmp_path / "model", tf_sources.slim_arrays(1, (1,), (8,)))
    data = tmp_path / "model.data-00000-of-00001"
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    with pytest.raises(CheckpointError, match="checksum"):
        saved_model.read(path)


def test_a_saved_model_of_constants_is_refused(tmp_path):
    (tmp_path / "saved_model.pb").write_bytes(b"")
    with pytest.raises(CheckpointError, match="must have variables"):
        saved_model.read(tmp_path)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The same small tensors as a checkpoint of either format, and a SavedModel."""
    folder = tmp_path_factory.mktemp("sources")
    arrays = {n: a.reshape(-1)[:12].copy() for n, a in tf_sources.slim_arrays(1, (1,), (8,)).items()}
    one = tf_sources.write_checkpoint(folder / "one" / "old.ckpt", arrays, first_format=True)
    tf_sources.write_checkpoint(folder / "two" / "model.ckpt", arrays)
    tf_sources.write_saved_model(
        folder / "saved",
        arrays,
        lambda x, weights: x * weights["resnet_v1_50/conv1/weights"][0],
        np.ones(3, np.float32),
    )
    return [one, folder / "two", folder / "saved", folder / "saved"]


def test_damaged_files_are_refused_or_read(sources, tmp_path):
    result = fuzzing.survive("resfit.weights.formats.saved_model:read", sources, tmp_path)
    assert result["refused"] > fuzzing.FEW * 2 / 5


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["checkpoints", "saved_model"])
def test_many_damaged_files(kind, sources, tmp_path):
    chosen = sources[2:3] if kind == "saved_model" else sources[:2]
    print(fuzzing.survive("resfit.weights.formats.saved_model:read", chosen, tmp_path, count=50_000, seed=1))


# The formats, bit by bit.


def table(blocks: list[tuple[bytes, int]]) -> bytes:
    """A table of given blocks (their content as it is stored, and its compression)."""

    def varint(value: int) -> bytes:
        return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)

    content, index = b"", b""
    for number, (block, compression) in enumerate(blocks):
        place = varint(len(content)) + varint(len(block))
        stored = block + bytes([compression])
        content += stored + tf_bundle.masked_checksum(stored).to_bytes(4, "little")
        index += b"\0" + b"\1" + varint(len(place)) + bytes([255 - len(blocks) + number]) + place
    places = []
    for block in (bytes(8), index + bytes(4) + (1).to_bytes(4, "little")):
        places.append(varint(len(content)) + varint(len(block)))
        stored = block + b"\0"
        content += stored + tf_bundle.masked_checksum(stored).to_bytes(4, "little")
    return content + b"".join(places).ljust(40, b"\0") + (0xDB4775248B80FB57).to_bytes(8, "little")


def entries(*pairs: tuple[bytes, bytes]) -> bytes:
    return b"".join(bytes([0, len(key), len(value)]) + key + value for key, value in pairs) + bytes(4) + b"\1\0\0\0"


HEADER = (b"", b"\x08\x01")
W = (b"w", b"\x08\x01\x12\x04\x12\x02\x08\x02\x28\x08")  # float32, shape (2,), 8 bytes at 0


def test_compressed_tables_are_read(tmp_path):
    block = entries(HEADER, W)
    literal = bytes([(len(block) - 1) << 2]) + block
    zeros = block.index(bytes(4))  # the last three of them are the first one again: a copy from one byte back
    begin, rest = block[: zeros + 1], block[zeros + 4 :]
    copied = bytes([(len(begin) - 1) << 2]) + begin + b"\x0a\x01\x00" + bytes([(len(rest) - 1) << 2]) + rest
    (tmp_path / "w.data-00000-of-00001").write_bytes(np.array([1.5, -2.0], np.float32).tobytes())
    for packed in (literal, copied):
        (tmp_path / "w.index").write_bytes(table([(bytes([len(block)]) + packed, 1)]))
        assert saved_model.read(tmp_path / "w").arrays["w"].tolist() == [1.5, -2.0]


def test_tables_that_declare_too_much_are_refused(tmp_path):
    (tmp_path / "w.data-00000-of-00001").write_bytes(bytes(8))
    large = (b"w", b"\x08\x01\x12\x0a\x12\x08\x08\x80\x80\x80\x80\x80\x80\x01\x28\x08")
    twice = (b"x", W[1])
    cases = {
        "axis of length": entries(HEADER, large),
        "more than is there": entries(HEADER, W, twice),
        "out of order": entries(HEADER, twice, W),
        "no header": entries(W),
        "big-endian": entries((b"", b"\x08\x01\x10\x01"), W),
        "data files": entries((b"", b"\x08\x80\x80\x80\x80\x08"), W),
        "longer than its": b"\x00\x7f\x7f" + bytes(4) + b"\1\0\0\0",
    }
    for told, block in cases.items():
        (tmp_path / "w.index").write_bytes(table([(block, 0)]))
        with pytest.raises(CheckpointError, match=told):
            saved_model.read(tmp_path / "w")
    bombs = {
        "compressed block of": b"\xff\xff\xff\xff\x0f" + b"\x00a" + b"\xfe\x01\x00" * 100,
        "refer to what is not there": b"\x08\x00a\x0e\x09\x00",
        "compressed data that end": b"\x08\xf0\x40a",
        "bytes in a compressed block": b"\x02\x00a",
    }
    for told, block in bombs.items():
        (tmp_path / "w.index").write_bytes(table([(block, 1)]))
        with pytest.raises(CheckpointError, match=told):
            saved_model.read(tmp_path / "w")
