"""ONNX files as bytes: every way to lay out an array, and what damaged or hostile ones do."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resfit.errors import CheckpointError
from resfit.weights import load
from resfit.weights.formats import onnx as reader
from tests import fuzzing
from tests.weights import onnx_sources as sources

onnx = pytest.importorskip("onnx")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sources.caffe2(tmp_path_factory.mktemp("onnx") / "net.onnx")


def changed(source: Path, target: Path, change: Callable[[Any], None], **options: Any) -> Path:
    """A copy of a file whose model was changed."""
    model = onnx.load(source)
    change(model)
    onnx.save(model, target, **options)
    return target


def weight(model: Any, name: str = "gpu_0/conv1_w_0") -> Any:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


# --- the format ---------------------------------------------------------------------------------------------------


def test_every_field_is_read_as_the_library_of_onnx_reads_it(source):
    found, model = reader.read(source), onnx.load(source)
    assert len(found.graph.nodes) == len(model.graph.node)
    for node, expected in zip(found.graph.nodes, model.graph.node, strict=True):
        assert (node.op, node.inputs, node.outputs) == (
            expected.op_type,
            tuple(expected.input),
            tuple(expected.output),
        )
        told = {a.name: onnx.helper.get_attribute_value(a) for a in expected.attribute}
        assert {n: list(v) if isinstance(v, tuple) else v for n, v in node.attributes.items()} == told
    assert found.graph.inputs == {"gpu_0/data_0": (1, 3, 64, 64)}
    assert (found.graph.outputs, found.graph.opset) == (("gpu_0/softmax_1",), 8)
    assert found.arrays.keys() == {tensor.name for tensor in model.graph.initializer}
    for tensor in model.graph.initializer:
        np.testing.assert_array_equal(found.arrays[tensor.name], onnx.numpy_helper.to_array(tensor))


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize(
    "kind",
    ["FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE", "INT8", "UINT8", "INT16", "INT32", "INT64", "UINT32", "UINT64", "BOOL"],
)
def test_every_way_to_lay_out_an_array(kind, raw, tmp_path):
    values = np.array([0, 1, 1, 0, 100, 127]) if kind != "BOOL" else np.array([0, 1, 1, 0, 0, 1])
    if kind.startswith("INT") or "FLOAT" in kind or kind == "DOUBLE":
        values = values * np.array([1, -1, 1, 1, -1, 1])
    dtype = onnx.TensorProto.DataType.Value(kind)
    typed = values.astype(onnx.helper.tensor_dtype_to_np_dtype(dtype))
    tensor = onnx.helper.make_tensor("a", dtype, (2, 3), typed.tobytes() if raw else typed, raw=raw)
    graph = onnx.helper.make_graph([], "g", [], [], [tensor])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "a.onnx")
    found = reader.read(tmp_path / "a.onnx").arrays["a"]
    np.testing.assert_array_equal(found, values.reshape(2, 3))
    assert (found.dtype.kind == "f") == ("FLOAT" in kind or kind == "DOUBLE")


def test_a_folder_with_one_file(source, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "net.onnx").write_bytes(source.read_bytes())
    assert load.read_source(tmp_path).spec == load.read_source(source).spec


def test_half_precision_computes_the_same(source, tmp_path):
    def halve(model: Any) -> None:
        for tensor in model.graph.initializer:
            if tensor.data_type == onnx.TensorProto.FLOAT:
                array = onnx.numpy_helper.to_array(tensor).astype(np.float16)
                tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))

    halved = load.read_source(changed(source, tmp_path / "half.onnx", halve))
    whole = load.read_source(source)
    assert halved.spec == whole.spec
    np.testing.assert_array_equal(halved.arrays["conv1_conv/kernel"], whole.arrays["conv1_conv/kernel"].astype("f2"))


# --- what is no residual network ----------------------------------------------------------------------------------


def node(model: Any, op: str, place: int = 0) -> Any:
    return [one for one in model.graph.node if one.op_type == op][place]


def rename(op: str, to: str, place: int = 0) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        found = node(model, op, place)
        found.name, found.op_type = "changed", to
        if to == "custom.Relu":
            found.op_type, found.domain = "Relu", "custom"

    return change


def stride_two(model: Any) -> None:
    strides = next(a for a in node(model, "Conv", 2).attribute if a.name == "strides")
    strides.ints[:] = [2, 2]


def drop_shortcut(model: Any) -> None:
    node(model, "Sum", 1).input[1] = node(model, "Sum", 1).input[0]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (rename("Relu", "QuantizeLinear", 5), "QuantizeLinear 'changed': a quantised network is not read"),
        (rename("Relu", "custom.Relu", 5), "custom.Relu 'changed': no residual network has it"),
        (rename("Relu", "If", 1), "If 'changed': a residual network has no branches that depend on the images"),
        (rename("Relu", "Tanh", 5), "Tanh 'changed': activation 'tanh', where the first is 'relu'"),
        (rename("MaxPool", "LpPool"), "LpPool 'changed'"),
        (
            rename("Relu", "LSTM", 8),
            r"LSTM 'changed': .*2 residual blocks were found before it; the nearest architecture is 'resnet\w+', which",
        ),
        (stride_two, r"Sum 'gpu_0/res2_0_branch2c_bn_2': maps of \(8, 8\) and \(16, 16\)"),
        (drop_shortcut, "Conv 'gpu_0/res3_0_branch2a_1': between two blocks there is nothing but an activation"),
    ],
)
def test_the_first_operation_that_does_not_fit_is_named(source, tmp_path, change, told):
    path = changed(source, tmp_path / "other.onnx", change)
    with pytest.raises(CheckpointError, match=told) as raised:
        load.read_source(path)
    assert "The first operation that does not fit is" in str(raised.value)


def test_a_plain_network_is_refused(tmp_path):
    values = onnx.helper.make_tensor_value_info
    kernel = onnx.numpy_helper.from_array(np.ones((4, 3, 3, 3), np.float32), "w")
    nodes = [onnx.helper.make_node("Conv", ["x", "w"], ["y"]), onnx.helper.make_node("Relu", ["y"], ["z"], name="last")]
    graph = onnx.helper.make_graph(
        nodes, "plain", [values("x", 1, [1, 3, 8, 8])], [values("z", 1, [1, 4, 6, 6])], [kernel]
    )
    onnx.save(onnx.helper.make_model(graph), tmp_path / "plain.onnx")
    with pytest.raises(CheckpointError, match=r"Relu 'last': before it there must be a block.*No residual block"):
        load.read_source(tmp_path / "plain.onnx")


def test_constants_that_nothing_reads_are_named(source, tmp_path):
    def add(model: Any) -> None:
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((2, 5), np.float32), "aux.weight"))
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.int64(7), "bn1.num_batches_tracked"))

    path = changed(source, tmp_path / "more.onnx", add)
    with pytest.raises(CheckpointError, match=r"tensors left over: aux\.weight \(2, 5\)"):
        load.read_source(path)
    told = load.read_source(path, ignore=["aux.*"]).assumptions
    assert any("counters of batch norm" in sentence and "bn1.num_batches_tracked" in sentence for sentence in told)
    assert any("as asked" in sentence and "aux.weight" in sentence for sentence in told)


def test_a_batch_norm_of_training_is_refused(tmp_path):
    path = sources.caffe2(tmp_path / "net.onnx", opset=6)
    model = onnx.load(path)
    node(model, "BatchNormalization").attribute.remove(
        next(a for a in node(model, "BatchNormalization").attribute if a.name == "is_test")
    )
    onnx.save(model, path)
    with pytest.raises(CheckpointError, match=r"batch norm of training.*evaluation mode"):
        load.read_source(path)


# --- data outside the file ----------------------------------------------------------------------------------------


def outside(source: Path, folder: Path, **stated: str) -> Path:
    """The file with its arrays in another, and the place of one of them stated as told."""
    model = onnx.load(source)
    onnx.save(model, folder / "net.onnx", save_as_external_data=True, location="net.data", size_threshold=0)
    model = onnx.load(folder / "net.onnx", load_external_data=False)
    tensor = weight(model)
    entries = {entry.key: entry for entry in tensor.external_data}
    for key, value in stated.items():
        entries[key].value = value
    (folder / "net.onnx").write_bytes(model.SerializeToString())
    return folder / "net.onnx"


def test_data_in_the_folder_is_read(source, tmp_path):
    found = load.read_source(outside(source, tmp_path)).arrays
    for name, array in load.read_source(source).arrays.items():
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize(
    ("stated", "told"),
    [
        ({"location": "/etc/passwd"}, "must lie in its folder"),
        ({"location": "../net.data"}, "must lie in its folder"),
        ({"location": "a/../../net.data"}, "must lie in its folder"),
        ({"location": "C:\\net.data"}, "must lie in its folder"),
        ({"location": ""}, "must lie in its folder"),
        ({"location": "no.data"}, "must lie beside it"),
        ({"location": "link.data"}, "no link"),
        ({"location": "linked/net.data"}, "no link"),
        ({"location": "pipe"}, "plain file"),
        ({"offset": "999999999"}, "hold all that is declared"),
        ({"offset": "-4"}, "must be numbers"),
        ({"length": "12"}, "hold all that is declared"),
        ({"length": "9" * 30}, "must be numbers"),
    ],
)
def test_data_anywhere_else_is_refused(source, tmp_path, stated, told):
    folder = tmp_path / "model"
    folder.mkdir()
    path = outside(source, folder, **stated)
    (tmp_path / "net.data").write_bytes((folder / "net.data").read_bytes())
    (folder / "link.data").symlink_to(tmp_path / "net.data")
    (folder / "linked").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe")
    with pytest.raises(CheckpointError, match=told):
        reader.read(path)


# --- hostile files ------------------------------------------------------------------------------------------------


def test_declared_sizes_are_compared(source, tmp_path):
    for dims in ([1 << 40, 1 << 20], [16, 3, 7, 8], [1 << 62] * 4, [-16, -3, 7, 7]):

        def declare(model: Any, dims: list[int] = dims) -> None:
            weight(model).dims[:] = dims

        with pytest.raises(CheckpointError, match=r"hold all it declares|must be ONNX, and whole"):
            reader.read(changed(source, tmp_path / "bomb.onnx", declare))


@pytest.mark.parametrize("op", ["ConstantOfShape", "Expand", "Mul", "Concat", "Gather"])
def test_graphs_do_not_blow_constants_up(source, tmp_path, op):
    def blow(model: Any) -> None:
        make, array = onnx.helper.make_node, onnx.numpy_helper.from_array
        big = array(np.array([1 << 20, 1 << 20], np.int64), "big")
        line = array(np.ones((1 << 10, 1), np.float32), "line")
        places = array(np.zeros(1 << 14, np.int64), "places")
        nodes = {
            "ConstantOfShape": [make("ConstantOfShape", ["big"], ["blown"])],
            "Expand": [make("Expand", ["line", "wide"], ["blown"])],
            "Mul": [
                make("Reshape", ["line", "wide"], ["row"]),
                make("Mul", ["line", "row"], ["square"]),
                make("Reshape", ["square", "tall"], ["column"]),
                make("Mul", ["column", "row"], ["blown"]),
            ],
            "Concat": [
                make("Concat", [f"p{n}" if n else "line"] * 2, [f"p{n + 1}" if n < 59 else "blown"], axis=0)
                for n in range(60)
            ],
            "Gather": [
                make("Gather", ["line", "places"], ["more"]),
                make("Gather", ["more", "places"], ["most"]),
                make("Transpose", ["most"], ["turned"]),
                make("Gather", ["turned", "places"], ["blown"], axis=1),
            ],
        }[op]
        wide = array(np.array([1, 1 << 30 if op == "Expand" else 1 << 10], np.int64), "wide")
        tall = array(np.array([1 << 20, 1], np.int64), "tall")
        model.graph.initializer.extend([big, line, places, wide, tall])
        target = node(model, "Conv")
        for one in reversed(nodes):
            model.graph.node.insert(0, one)
        target.input[1] = "blown"

    path = changed(source, tmp_path / "blown.onnx", blow)
    with pytest.raises(CheckpointError, match="too many numbers"):
        load.read_source(path)


def test_a_file_of_empty_messages_is_refused_before_it_fills_the_memory(tmp_path):
    body = b"\x0a\x00" * 1_500_000
    length, size = [], len(body)
    while size:
        length.append((size & 127) | (128 if size > 127 else 0))
        size >>= 7
    (tmp_path / "many.onnx").write_bytes(b"\x3a" + bytes(length) + body)
    with pytest.raises(CheckpointError, match="more than 1000000 fields"):
        reader.read(tmp_path / "many.onnx")


def test_files_that_are_none(tmp_path):
    contents = {"empty": b"", "text": b"hello, world", "zeros": bytes(100), "cut": b"\x3a\xff\xff\xff\xff\x0f"}
    for name, content in contents.items():
        (tmp_path / f"{name}.onnx").write_bytes(content)
        with pytest.raises(CheckpointError, match="must be ONNX, and whole"):
            reader.read(tmp_path / f"{name}.onnx")
    with open(tmp_path / "huge.onnx", "wb") as file:
        file.truncate(3 << 30)
    with pytest.raises(CheckpointError, match="whole"):
        reader.read(tmp_path / "huge.onnx")
    with pytest.raises(CheckpointError, match="must exist"):
        reader.read(tmp_path / "missing.onnx")


def test_what_is_no_number_is_refused(source, tmp_path):
    def text(model: Any) -> None:
        model.graph.initializer.append(onnx.helper.make_tensor("labels", onnx.TensorProto.STRING, [1], [b"cat"]))

    def twice(model: Any) -> None:
        model.graph.initializer.append(weight(model))

    def function(model: Any) -> None:
        made = onnx.helper.make_node("Relu", ["a"], ["b"])
        model.functions.append(onnx.helper.make_function("own", "F", ["a"], ["b"], [made], model.opset_import))

    for change, told in (
        (text, "'labels' of type 8"),
        (twice, "must stand for one array"),
        (function, r"functions \['F'\].*inline_local_functions"),
    ):
        with pytest.raises(CheckpointError, match=told):
            reader.read(changed(source, tmp_path / "strange.onnx", change))


# --- fuzzing ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(source: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Small files: Caffe2's; and torch's, whose few weights leave the damage to the graph."""
    folder = tmp_path_factory.mktemp("fuzzed")
    found = [sources.caffe2(folder / "caffe2.onnx")]
    if sources.has_torch():
        found += [sources.export_torch(name, folder / f"{name}.onnx", way) for name, way in sources.TINY]
    return found


def test_damaged_files_are_refused_or_read(files, tmp_path):
    result = fuzzing.survive("resfit.weights.load:read_source", files, tmp_path, kilobytes=8)
    assert result["read"] + result["refused"] == fuzzing.FEW
    assert result["refused"] > fuzzing.FEW / 4


@pytest.mark.slow
def test_many_damaged_files(files, tmp_path):
    result = fuzzing.survive("resfit.weights.load:read_source", files, tmp_path, count=50_000, seed=1, kilobytes=8)
    print(result)
