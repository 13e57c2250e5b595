"""Two networks in one source that is read by its graph: ``prefix=`` chooses, and the error lists the choices."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from resfit.errors import CheckpointError
from resfit.weights import load
from tests.numeric import relative_error
from tests.torchside import library
from tests.weights import onnx_sources
from tests.weights.keras_networks import images, small

LIMIT = 1e-4
layers = keras.layers


def read(path, prefix, **options):
    return load.load_source(path, prefix=prefix, **{"preprocess": False, "include_top": None, **options})


def towers(kind="nested"):
    """Two networks of an image each, whose features are joined; flat, or as models inside one."""
    nets = {}
    for seed, name in enumerate(("rgb", "flow")):
        net = small(keras, head=lambda x: layers.GlobalAveragePooling2D()(x))
        for variable in net.variables:
            variable.assign(variable + 0.01 * seed)
        nets[name] = keras.Model(net.input, net.output, name=name)
    inputs = {name: keras.Input((16, 16, 3), name=f"{name}_images") for name in nets}
    if kind == "nested":
        features = [nets[name](inputs[name]) for name in nets]
        ends = layers.Dense(4)(layers.Concatenate()(features))
        return keras.Model(list(inputs.values()), ends), nets
    joined = layers.Dense(4)(layers.Concatenate()([nets[name].output for name in nets]))
    return keras.Model([nets[name].input for name in nets], joined), nets


@pytest.mark.parametrize("form", ["net.keras", "net.h5"])
def test_models_inside_a_keras_model(form, tmp_path):
    model, nets = towers()
    model.save(tmp_path / form)
    with pytest.raises(CheckpointError, match=r"Pass prefix= with one of \('flow', 'rgb', 'rgb_images'"):
        load.read_source(tmp_path / form)
    found = {name: read(tmp_path / form, name, include_top=False, pooling="avg") for name in nets}
    for name, net in nets.items():
        assert relative_error(found[name](images()), net(images())) < LIMIT
    assert relative_error(found["rgb"](images()), nets["flow"](images())) > 0.01
    assert any(
        "the network is that of 'rgb'" in text and "prefix= changes it" in text for text in found["rgb"].assumptions
    )
    with pytest.raises(CheckpointError, match=r"prefix must be one of \('flow', 'rgb'.*Received: 'rgbd'"):
        load.read_source(tmp_path / form, prefix="rgbd")


def test_inputs_of_a_keras_model(tmp_path):
    model, nets = towers("flat")
    model.save(tmp_path / "net.keras")
    for net in nets.values():
        name = net.layers[0].name
        found = read(tmp_path / "net.keras", name, include_top=False, pooling="avg")
        assert relative_error(found(images()), net(images())) < LIMIT


def test_outputs_of_a_keras_model_and_of_its_saved_model(tmp_path):
    def head(x):
        y = layers.GlobalAveragePooling2D()(x)
        return [layers.Dense(3, "softmax", name="what")(y), layers.Dense(2, "sigmoid", name="where")(y)]

    model = small(keras, head=head)
    model.save(tmp_path / "net.keras")
    for number, name in enumerate(("what", "where")):
        found = read(tmp_path / "net.keras", name)
        assert relative_error(found(images()), model(images())[number]) < LIMIT


def test_inputs_of_a_saved_model(tmp_path):
    model, nets = towers("flat")
    shape = tf.TensorSpec((None, 16, 16, 3), tf.float32)
    module = tf.Module()
    module.network = model
    module.call = tf.function(
        lambda rgb, flow: {"y": model([rgb, flow])}, input_signature=[shape, tf.TensorSpec(shape.shape, shape.dtype)]
    )
    tf.saved_model.save(module, str(tmp_path / "net"), signatures=module.call)
    with pytest.raises(
        CheckpointError, match=r"Pass prefix= with one of \('serving_default_\w+', 'serving_default_\w+'"
    ):
        load.read_source(tmp_path / "net")
    found = read(tmp_path / "net", "serving_default_flow", include_top=False, pooling="avg")
    assert relative_error(found(images()), nets["flow"](images())) < LIMIT


def test_inputs_and_outputs_of_onnx(tmp_path):
    library("timm")
    import torch

    one, _ = onnx_sources.torch_network("cifar")
    other, _ = onnx_sources.torch_network("cifar")
    with torch.no_grad():
        for value in other.parameters():
            value.mul_(1.1)

    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other = one, other

        def forward(self, rgb, flow):
            return self.one(rgb), self.other(flow)

    x = torch.randn(1, 3, 32, 32)
    torch.onnx.export(
        Two().eval(), (x, x), tmp_path / "two.onnx", dynamo=False, input_names=["rgb", "flow"], output_names=["a", "b"]
    )
    with pytest.raises(CheckpointError, match=r"Pass prefix= with one of \('rgb', 'flow', 'a', 'b'\)"):
        load.read_source(tmp_path / "two.onnx")
    channels_last = x.numpy().transpose(0, 2, 3, 1)
    for prefix, net in (("rgb", one), ("flow", other), ("a", one), ("b", other)):
        found = read(tmp_path / "two.onnx", prefix, classifier_activation=None)
        assert relative_error(found(channels_last), net(x).detach().numpy()) < LIMIT
        assert any("left out what belongs to other networks" in text for text in found.assumptions)
    assert np.abs(one(x).detach().numpy() - other(x).detach().numpy()).max() > 1e-3
