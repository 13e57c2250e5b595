"""TensorFlow Lite's model metadata: what goes in, what comes out, and the labels, in the ``.tflite`` file itself.

The metadata is a FlatBuffer (identifier ``M001``) in a buffer of the model called ``TFLITE_METADATA``; files
such as the labels stand in a zip archive behind the model. Android's code generator and the task libraries read both.
See https://ai.google.dev/edge/litert/conversion/tensorflow/metadata.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from resfit.export.export_model import ExportModel
from resfit.export.folder import labels_text

NAME = b"TFLITE_METADATA"
#: The file of the labels in the archive.
LABELS = "labels.txt"

#: Name of the signature.
SIGNATURE = "serving_default"

_IDENTIFIER = b"M001"
_PARSER = "1.0.0"
_IMAGE, _FEATURE, _NORMALIZATION = 2, 1, 1  # members of the schema's unions
_RGB, _GREY = 1, 2
_AXIS_LABELS, _VALUE_LABELS = 2, 3
_CONVOLUTIONS = (schema.BuiltinOperator.CONV_2D, schema.BuiltinOperator.DEPTHWISE_CONV_2D)


class _Aligned(flatbuffers.Builder):
    """A builder whose arrays begin at multiples of 16 bytes, as kernels that read weights in place want it."""

    def CreateNumpyVector(self, x: np.ndarray) -> int:
        """Adds an array."""
        self.StartVector(x.itemsize, x.size, 16)
        data = np.ascontiguousarray(x).tobytes()
        self.head = self.Head() - len(data)
        self.Bytes[self.Head() : self.Head() + len(data)] = data
        return int(self.EndVector())


def added(model: bytes, subject: ExportModel, outputs: Mapping[str, str] | None = None) -> bytes:
    """Returns a LiteRT model with its metadata, labels and signature: ``images`` in, ``scores`` or other names out.

    Args:
        model: The model.
        subject: What it was made of.
        outputs: Its outputs in order, and what each is. Default: the scores of a classifier.
    """
    outputs = outputs or {
        "scores": f"Score of each label, 0 to 1; logits are divided by the temperature {subject.temperature:g} already."
    }
    parsed = _parsed(model)
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(_metadata(subject, outputs), np.uint8)
    parsed.buffers.append(buffer)
    entry = schema.MetadataT()
    entry.name, entry.buffer = NAME, len(parsed.buffers) - 1
    parsed.metadata = [*(parsed.metadata or []), entry]
    parsed.signatureDefs = [_signature(parsed.subgraphs[0], list(outputs))]
    builder = _Aligned(len(model) + 65_536)
    builder.Finish(parsed.Pack(builder), b"TFL3")
    file = io.BytesIO(bytes(builder.Output()))
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(zipfile.ZipInfo(LABELS), labels_text(list(subject.labels)))
    return file.getvalue()


def _signature(graph: Any, outputs: Sequence[str]) -> Any:
    """Returns names for what a graph takes and gives, which are not those of its tensors."""
    made = schema.SignatureDefT()
    made.signatureKey, made.subgraphIndex = SIGNATURE, 0
    made.inputs, made.outputs = [], []
    for names, tensors, maps in ((["images"], graph.inputs, made.inputs), (outputs, graph.outputs, made.outputs)):
        for name, tensor in zip(names, tensors, strict=True):
            entry = schema.TensorMapT()
            entry.name, entry.tensorIndex = name, int(tensor)
            maps.append(entry)
    return made


def foreign_operations(model: bytes) -> list[str]:
    """Returns the operations that LiteRT alone does not have, such as TensorFlow's own.

    Args:
        model: The model.
    """
    return sorted({code.customCode.decode() for code in _parsed(model).operatorCodes or [] if code.customCode})


def operations(model: bytes) -> list[tuple[str, bool]]:
    """Returns the name of each operation, and whether it is a convolution.

    Args:
        model: The model.

    Returns:
        In the order of their computation, but those that no convolution needs last: of a detector what makes boxes of
        one level stands before the convolutions of the next.
    """
    parsed = _parsed(model)
    graph = parsed.subgraphs[0]
    found, behind = [], []
    wanted: set[int] = set()
    for operation in reversed(graph.operators):
        convolves = parsed.operatorCodes[operation.opcodeIndex].builtinCode in _CONVOLUTIONS
        entry = graph.tensors[operation.outputs[0]].name.decode(), convolves
        if convolves or not wanted.isdisjoint(operation.outputs):
            wanted.update(operation.inputs)
            found.append(entry)
        else:
            behind.append(entry)
    return [*reversed(found), *reversed(behind)]


def _parsed(model: bytes) -> Any:
    return schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(model, 0))


def _metadata(subject: ExportModel, outputs: Mapping[str, str]) -> bytes:
    builder = flatbuffers.Builder(1024)
    spec = subject.input_spec
    size = _table(builder, 2, [("uint32", 0, spec.size[1]), ("uint32", 1, spec.size[0])])
    colours = _RGB if spec.channels == 3 else _GREY if spec.channels == 1 else 0
    image = _table(builder, 2, [("int8", 0, colours), ("offset", 1, size)])
    # the network normalises on its own, so that values 0..255 pass as they are
    same = _table(builder, 2, [("offset", 0, _floats(builder, [0.0])), ("offset", 1, _floats(builder, [1.0]))])
    unit = _table(builder, 2, [("uint8", 0, _NORMALIZATION), ("offset", 1, same)])
    taken = _tensor(
        builder,
        "images",
        f"{'Grey' if spec.channels == 1 else 'RGB'} image, values 0 to 255; the network normalises it itself.",
        _content(builder, _IMAGE, image),
        [("offset", 4, _offsets(builder, [unit])), ("offset", 5, _range(builder, 0.0, 255.0))],
    )
    # whose values or last axis the labels are of
    labelled = next((name for name in ("classes", "scores") if name in outputs), next(iter(outputs)))
    described = builder.CreateString(f"Labels of the {labelled}, one a line.")
    name = builder.CreateString(LABELS)
    kind = _VALUE_LABELS if labelled == "classes" else _AXIS_LABELS
    labels = _table(builder, 4, [("offset", 0, name), ("offset", 1, described), ("int8", 2, kind)])
    given = []
    for output, text in outputs.items():
        fields = [("offset", 5, _range(builder, 0.0, 1.0))] if output == "scores" else []
        fields += [("offset", 6, _offsets(builder, [labels]))] if output == labelled else []
        given.append(_tensor(builder, output, text, _content(builder, _FEATURE, _table(builder, 0, [])), fields))
    taken_all, given_all = _offsets(builder, [taken]), _offsets(builder, given)
    graph = _table(builder, 7, [("offset", 2, taken_all), ("offset", 3, given_all)])
    graphs = _offsets(builder, [graph])
    title = builder.CreateString(subject.name)
    text = builder.CreateString(f"{subject.kind} of {len(subject.labels)} classes, exported by resfit.")
    version, author, parser = (builder.CreateString(text) for text in ("1", "", _PARSER))
    fields = [("offset", 0, title), ("offset", 1, text), ("offset", 2, version), ("offset", 3, graphs)]
    root = _table(builder, 8, [*fields, ("offset", 4, author), ("offset", 7, parser)])
    builder.Finish(root, _IDENTIFIER)
    return bytes(builder.Output())


def _tensor(builder: Any, name: str, description: str, content: int, fields: Sequence[tuple[str, int, Any]]) -> int:
    first, second = builder.CreateString(name), builder.CreateString(description)
    return _table(builder, 7, [("offset", 0, first), ("offset", 1, second), ("offset", 3, content), *fields])


def _content(builder: Any, kind: int, properties: int) -> int:
    return _table(builder, 3, [("uint8", 0, kind), ("offset", 1, properties)])


def _range(builder: Any, low: float, high: float) -> int:
    return _table(builder, 2, [("offset", 0, _floats(builder, [high])), ("offset", 1, _floats(builder, [low]))])


def _table(builder: Any, slots: int, fields: Sequence[tuple[str, int, Any]]) -> int:
    """Writes a table; a field is its kind, its slot in the schema and its value, or where that stands."""
    builder.StartObject(slots)
    for kind, slot, value in fields:
        if kind == "offset":
            builder.PrependUOffsetTRelativeSlot(slot, value, 0)
        elif kind == "uint32":
            builder.PrependUint32Slot(slot, value, 0)
        elif kind == "uint8":
            builder.PrependUint8Slot(slot, value, 0)
        else:
            builder.PrependInt8Slot(slot, value, 0)
    return int(builder.EndObject())


def _offsets(builder: Any, items: Sequence[int]) -> int:
    builder.StartVector(4, len(items), 4)
    for item in reversed(items):
        builder.PrependUOffsetTRelative(item)
    return int(builder.EndVector())


def _floats(builder: Any, values: Sequence[float]) -> int:
    builder.StartVector(4, len(values), 4)
    for value in reversed(values):
        builder.PrependFloat32(value)
    return int(builder.EndVector())
