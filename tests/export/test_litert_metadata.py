"""What stands in a ``.tflite`` file beside the network."""

from __future__ import annotations

import json
import struct
import zipfile

import keras
import numpy as np
import pytest

from resfit import export as exports
from resfit.engines import int8, litert
from resfit.export import litert_metadata
from tests.export import networks

pytest.importorskip("ai_edge_litert")


class Table:
    """A FlatBuffer table, read by the slots of its schema with nothing but the format's rules."""

    def __init__(self, data: bytes, place: int):
        self.data, self.place = data, place

    @classmethod
    def root(cls, data: bytes) -> Table:
        return cls(data, struct.unpack_from("<I", data, 0)[0])

    def _field(self, slot: int) -> int | None:
        table = self.place - struct.unpack_from("<i", self.data, self.place)[0]
        if 4 + 2 * slot >= struct.unpack_from("<H", self.data, table)[0]:
            return None
        offset = struct.unpack_from("<H", self.data, table + 4 + 2 * slot)[0]
        return self.place + offset if offset else None

    def number(self, slot: int, kind: str = "<b") -> int:
        place = self._field(slot)
        return 0 if place is None else struct.unpack_from(kind, self.data, place)[0]

    def _target(self, slot: int) -> int:
        place = self._field(slot)
        assert place is not None
        return place + struct.unpack_from("<I", self.data, place)[0]

    def table(self, slot: int) -> Table:
        return Table(self.data, self._target(slot))

    def tables(self, slot: int) -> list[Table]:
        place = self._target(slot)
        starts = range(place + 4, place + 4 + 4 * struct.unpack_from("<I", self.data, place)[0], 4)
        return [Table(self.data, start + struct.unpack_from("<I", self.data, start)[0]) for start in starts]

    def text(self, slot: int) -> str:
        place = self._target(slot)
        length = struct.unpack_from("<I", self.data, place)[0]
        return self.data[place + 4 : place + 4 + length].decode()

    def floats(self, slot: int) -> list[float]:
        place = self._target(slot)
        count = struct.unpack_from("<I", self.data, place)[0]
        return list(struct.unpack_from(f"<{count}f", self.data, place + 4))


@pytest.fixture(scope="module")
def made(network, tmp_path_factory):
    out = tmp_path_factory.mktemp("litert") / "out"
    return exports.export(network("cifar"), out, format="litert", images=networks.shipped(32)[:24])


def test_metadata_says_what_goes_in_and_out(network, made):
    from ai_edge_litert import schema_py_generated as schema

    data = (made.folder / "model.tflite").read_bytes()
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(data, 0))
    (entry,) = [entry for entry in model.metadata if entry.name == b"TFLITE_METADATA"]
    content = bytes(model.buffers[entry.buffer].data)
    assert content[4:8] == b"M001"
    root = Table.root(content)
    assert root.text(0) == "tiny-cifar"
    assert root.text(7) == "1.0.0"
    (graph,) = root.tables(3)
    (image,), (scores,) = graph.tables(2), graph.tables(3)
    assert image.text(0) == "images"
    assert image.table(3).number(0, "<B") == 2  # image properties
    properties = image.table(3).table(1)
    assert properties.number(0) == 1  # RGB
    assert (properties.table(1).number(0, "<I"), properties.table(1).number(1, "<I")) == (32, 32)
    (unit,) = image.tables(4)
    assert (unit.table(1).floats(0), unit.table(1).floats(1)) == ([0.0], [1.0])
    assert (image.table(5).floats(0), image.table(5).floats(1)) == ([255.0], [0.0])
    (labels,) = scores.tables(6)
    assert (labels.text(0), labels.number(2)) == ("labels.txt", 2)


def test_labels_stand_in_the_file(network, made):
    with zipfile.ZipFile(made.folder / "model.tflite") as archive:
        assert archive.testzip() is None
        text = archive.read("labels.txt").decode("utf-8")
    assert text.splitlines() == list(network("cifar").class_names)


def test_weights_stay_aligned_and_of_one_size(made):
    from ai_edge_litert import schema_py_generated as schema

    data = (made.folder / "model.tflite").read_bytes()
    model = schema.Model.GetRootAsModel(data, 0)
    weights = [model.Buffers(number) for number in range(model.BuffersLength())]
    places = []
    for buffer in weights:
        if buffer.DataLength() > 64:
            offset = buffer._tab.Offset(4)
            places.append(buffer._tab.Vector(offset) % 16)
    assert places
    assert set(places) == {0}
    contract = json.loads((made.folder / "contract.json").read_text("utf-8"))
    assert contract["input"]["shape"] == [None, 32, 32, 3]
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(made.folder / "model.tflite"))
    (entry,) = interpreter.get_input_details()
    assert entry["shape"].tolist() == [1, 32, 32, 3]
    assert entry["dtype"] is np.float32


def test_operations_that_no_convolution_needs_come_last():
    """A detector's boxes of one level are made before the convolutions of the next: in int8 they stay in float32."""
    inputs = keras.Input((8, 8, 3))
    first = keras.layers.Conv2D(4, 3, name="a")(inputs)
    second = keras.layers.Conv2D(4, 3, name="b")(keras.ops.tanh(first))
    outputs = {"first": keras.ops.exp(keras.ops.sigmoid(first) * 2.0), "second": keras.ops.exp(second)}
    found = litert_metadata.operations(litert.converted(keras.Model(inputs, outputs)))
    names = [name.split("/")[1] if "/" in name else name for name, _ in found]
    assert [name.removesuffix("_1") for name in names] == ["a", "Tanh", "b", "Sigmoid", "Mul", "Identity", "Identity"]
    assert [convolves for _, convolves in found] == [True, False, True, *[False] * 4]
    assert int8.sensitive(found, 0.0) == ([name for name, _ in found[3:]], 0)
