"""ONNX files as ONNX Runtime's optimiser and its converter to float16 write them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from resfit.errors import CheckpointError
from resfit.weights import load
from tests.numeric import relative_error

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
sources = pytest.importorskip("tests.weights.onnx_sources")


def run(path: Path, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: images})[0]


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    return sources.export_torch("basic", tmp_path_factory.mktemp("onnx") / "net.onnx", "kept")


def optimized(plain: Path, path: Path, level: str) -> Path:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
    options.optimized_model_filepath = str(path)
    onnxruntime.InferenceSession(plain, options, providers=["CPUExecutionProvider"])
    return path


def compare(path: Path, limit: float) -> None:
    source = load.read_source(path)
    shape = (1, source.spec.in_channels, *source.spec.input_size)
    images = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    model = load.load_source(source, preprocess=False, classifier_activation=None)
    assert relative_error(model(images.transpose(0, 2, 3, 1), training=False), run(path, images)) < limit


def test_fused_convolutions(plain, tmp_path):
    path = optimized(plain, tmp_path / "net.onnx", "EXTENDED")
    assert any(node.op_type == "FusedConv" for node in onnx.load(path).graph.node)
    compare(path, 1e-4)


def test_layouts_of_one_processor_are_refused_with_the_way_out(plain, tmp_path):
    with pytest.raises(CheckpointError, match=r"com\.microsoft\.nchwc\.Conv .* optimisation at EXTENDED"):
        load.read_source(optimized(plain, tmp_path / "net.onnx", "ALL"))


def test_a_sum_and_other_activations_inside_a_fused_convolution(plain, tmp_path):
    """What ONNX Runtime fuses on a GPU: the shortcut's sum as a fourth input."""
    model = onnx.load(optimized(plain, tmp_path / "fused.onnx", "EXTENDED"))
    nodes = {node.output[0]: node for node in model.graph.node}
    adds = [node for node in model.graph.node if node.op_type == "Add"]
    for add in adds:
        conv = next(nodes[name] for name in add.input if name in nodes and nodes[name].op_type == "Conv")
        relu = next(node for node in model.graph.node if node.input[0] == add.output[0] and node.op_type == "Relu")
        other = next(name for name in add.input if name != conv.output[0])
        conv.op_type, conv.domain = "FusedConv", "com.microsoft"
        conv.input.append(other)
        conv.attribute.append(onnx.helper.make_attribute("activation", "Relu"))
        conv.output[0] = relu.output[0]
        model.graph.node.remove(relu)
        model.graph.node.remove(add)
        nodes = {node.output[0]: node for node in model.graph.node}
    onnx.save(model, tmp_path / "sums.onnx")
    expected = load.read_source(plain).spec
    assert load.read_source(tmp_path / "sums.onnx").spec.depths == expected.depths
    source = load.read_source(tmp_path / "sums.onnx")
    images = np.random.default_rng(0).normal(size=(1, expected.in_channels, *expected.input_size)).astype(np.float32)
    network = load.load_source(source, preprocess=False, classifier_activation=None)
    assert relative_error(network(images.transpose(0, 2, 3, 1), training=False), run(plain, images)) < 1e-4


def test_float16_between_two_casts(plain, tmp_path):
    """Whose operations the converter does not put in order."""
    float16 = pytest.importorskip("onnxruntime.transformers.float16")
    onnx.save(float16.convert_float_to_float16(onnx.load(plain), keep_io_types=True), tmp_path / "half.onnx")
    compare(tmp_path / "half.onnx", 2e-2)  # the source computes in half precision
    source, whole = load.read_source(tmp_path / "half.onnx"), load.read_source(plain)
    assert source.spec == whole.spec
    for name, array in whole.arrays.items():
        assert relative_error(source.arrays[name].astype(np.float32), array) < 1e-3, name
