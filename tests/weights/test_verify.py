"""``convert`` compares with the source as something else runs it, or says that nothing does."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest

from resfit.cli import main
from resfit.networks import catalog
from resfit.networks.build import build
from resfit.weights import load, verify
from resfit.weights.formats import safetensors
from tests.weights.keras_networks import small

layers = keras.layers


def _tags(x):
    return layers.Dense(3, activation="sigmoid")(layers.GlobalAveragePooling2D()(x))


def _hidden(x):
    x = layers.Dense(5, activation="relu")(layers.Flatten()(layers.MaxPooling2D(2)(x)))
    return [layers.Dense(3, activation="softmax")(x), x]


@pytest.fixture
def run(capsys):
    def call(*arguments):
        with pytest.raises(SystemExit) as stopped:
            main.run(["convert", *map(str, arguments)])
        output = capsys.readouterr()
        return stopped.value.code or 0, output.out, output.err

    return call


def test_a_keras_file_is_run_by_keras(run, tmp_path):
    small(keras, head=_tags, before=layers.Rescaling(1 / 255)).save(tmp_path / "net.h5")
    code, out, err = run(tmp_path / "net.h5", tmp_path / "out.keras", "--json")
    assert code == 0, err
    told = json.loads(out)["source_comparison"]
    assert (told["compared"], told["by"], told["images"]) == (True, "Keras", "images of 0..255")
    assert 0 <= told["difference"] < 1e-4


def test_several_outputs_and_a_network_that_is_another_one(tmp_path):
    small(keras, head=_hidden).save(tmp_path / "net.keras")
    source = load.read_source(tmp_path / "net.keras")
    model = load.load_source(source, preprocess=False)
    assert verify.compare(model, source, preprocess=False).difference < 1e-4
    kernel = model.layers[1].kernel
    kernel.assign(np.asarray(kernel) * 1.2)
    assert verify.compare(model, source, preprocess=False).difference > 1e-2


def test_weights_alone_are_not_compared(run, tmp_path):
    model = small(keras)
    model.save(tmp_path / "net.keras")
    code, _, err = run(tmp_path / "net.keras", tmp_path / "own.safetensors", "--naming", "resfit", "--no-check")
    assert code == 0, err
    assert len(safetensors.read_names(tmp_path / "own.safetensors")) > 10
    code, out, err = run(tmp_path / "own.safetensors", tmp_path / "again.keras")
    assert code == 0, err
    assert "Not compared with the source: it holds weights alone, which nothing runs." in out
    code, out, _ = run(tmp_path / "own.safetensors", tmp_path / "again.keras", "--json")
    assert json.loads(out)["source_comparison"]["difference"] is None


def test_layers_of_others_are_not_run(tmp_path):
    model = small(
        keras,
        head=lambda x: layers.Lambda(lambda y: y + 1, output_shape=(3,))(
            layers.Dense(3)(layers.GlobalAveragePooling2D()(x))
        ),
    )
    model.save(tmp_path / "net.h5")
    source = load.read_source(tmp_path / "net.h5")
    body = load.load_source(source, preprocess=False, include_top=False)
    told = verify.compare(body, source, preprocess=False)
    assert told.difference is None
    assert "code of others: 'lambda" in told.reason


def test_a_graph_of_onnx_is_run_by_onnxruntime(tmp_path):
    pytest.importorskip("onnxruntime")
    sources = pytest.importorskip("tests.weights.onnx_sources")
    path = sources.export_torch("basic", tmp_path / "net.onnx")
    source = load.read_source(path)
    told = verify.compare(load.load_source(source), source, preprocess=True)
    assert told.by == "onnxruntime"
    assert 0 <= told.difference < 1e-4


def test_a_saved_model_is_run_by_tensorflow_unless_it_reaches_out(tmp_path):
    few_blocks = catalog.get("resnet50").spec.replace(depths=(1, 1, 1, 1), classes=3)
    model = build(few_blocks, input_shape=(64, 64, 3))
    model.export(tmp_path / "module", verbose=False)
    source = load.read_source(tmp_path / "module")
    network = load.load_source(source, preprocess=False, input_shape=(64, 64, 3))
    told = verify.compare(network, source, preprocess=False)
    assert (told.by, told.difference < 1e-3) == ("TensorFlow", True)
    told = verify.compare(network, source, preprocess=False, unsafe=["ReadFile"])
    assert (told.difference, told.reason) == (None, "it holds operations that reach out of the process: ReadFile")
