"""ONNX files of random residual networks, as torch, tf2onnx and Caffe2 write them."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.torchside import library

#: Torch's export, by what becomes of its batch norms.
TORCH_WAYS = ("folded", "kept", "dynamo")

#: Height and width of the images that a network is exported with, where they are not 64 and 64.
SIZES = {"cifar": (32, 32), "basic": (97, 75), "v2": (65, 90)}

#: Networks whose files are small, and the way to export them.
TINY = (("eca", "folded"), ("v2d", "kept"), ("cifar", "folded"))


def has_torch() -> bool:
    """Whether torch's networks can be made here."""
    return all(importlib.util.find_spec(name) for name in ("torch", "timm"))


def torch_network(name: str) -> tuple[Any, int]:
    """Returns one of :data:`TORCH_NETWORKS` with random weights and statistics, and its input channels."""
    import torch

    make, channels = TORCH_NETWORKS[name]
    torch.manual_seed(sum(map(ord, name)))
    module = make().eval()
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
                layer.running_mean.normal_(0, 0.2)
                layer.running_var.uniform_(0.5, 1.5)
            if isinstance(layer, (torch.nn.modules.batchnorm._BatchNorm, torch.nn.GroupNorm)):
                layer.weight.uniform_(0.5, 1.5)
                layer.bias.normal_(0, 0.2)
    return module, channels


def export_torch(name: str, path: Path, way: str = "folded", *, dynamic: bool = False) -> Path:
    """Exports one of :data:`TORCH_NETWORKS`."""
    import torch

    module, channels = torch_network(name)
    options: dict[str, Any] = {"dynamo": way == "dynamo", "input_names": ["images"], "output_names": ["logits"]}
    if way == "dynamo":
        pytest.importorskip("onnxscript")
    if way == "kept":
        options |= {"training": torch.onnx.TrainingMode.PRESERVE, "do_constant_folding": False}
    if dynamic and way != "dynamo":
        options["dynamic_axes"] = {"images": {0: "batch", 2: "height", 3: "width"}}
    images = torch.zeros(1 if not dynamic else 2, channels, *SIZES.get(name, (64, 64)))
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (images,), str(path), **options)
    return path


def _timm(**options: Any) -> Callable[[], Any]:
    def make() -> Any:
        timm = library("timm")
        resnet = timm.models.resnet
        given = {"layers": [2, 1, 1, 2], "channels": (16, 24, 32, 40), "num_classes": 7, **options}
        given["block"] = resnet.Bottleneck if given.get("block") == "bottleneck" else resnet.BasicBlock
        if given.get("aa_layer") == "blur":
            given["aa_layer"] = timm.layers.BlurPool2d
        return resnet.ResNet(**given)

    return make


def _timm_v2(*, bit: bool = False, **options: Any) -> Callable[[], Any]:
    def make() -> Any:
        timm = library("timm")
        layers = timm.layers
        if bit:
            norm, conv = (
                functools.partial(layers.GroupNormAct, num_groups=8),
                functools.partial(layers.StdConv2d, eps=1e-8),
            )
        else:
            norm, conv = layers.BatchNormAct2d, layers.create_conv2d
        given: dict[str, Any] = {"layers": [2, 1, 1, 2], "channels": (32, 48, 64, 80), "num_classes": 7, "stem_chs": 32}
        return timm.models.resnetv2.ResNetV2(**{**given, "norm_layer": norm, "conv_layer": conv, **options})

    return make


def _cifar() -> Any:
    """Idelbayev's layout: a 3x3 stem, parameter-free shortcuts, an average over the whole of an 8x8 map."""
    from torch import nn
    from torch.nn import functional

    class Block(nn.Module):
        def __init__(self, entering: int, leaving: int, stride: int):
            super().__init__()
            self.conv1 = nn.Conv2d(entering, leaving, 3, stride, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(leaving)
            self.conv2 = nn.Conv2d(leaving, leaving, 3, 1, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(leaving)
            self.widens = leaving - entering

        def forward(self, x: Any) -> Any:
            y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
            if self.widens:
                side = self.widens // 2
                x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, side, side), "constant", 0)
            return functional.relu(x + y)

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(16)
            places = [(16, 16, 1), (16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1)]
            self.layers = nn.Sequential(*(Block(*place) for place in places))
            self.linear = nn.Linear(64, 10)

        def forward(self, x: Any) -> Any:
            x = self.layers(functional.relu(self.bn1(self.conv1(x))))
            x = functional.avg_pool2d(x, x.size()[3])
            return self.linear(x.view(x.size(0), -1))

    return Network()


def _torchvision_v1() -> Any:
    """torchvision's bottleneck with the stride where He et al. had it."""
    import torch

    library("torchvision")
    from torchvision.models.resnet import Bottleneck, ResNet

    class First(Bottleneck):
        expansion = 2

        def __init__(self, inplanes: int, planes: int, stride: int = 1, *rest: Any, **more: Any):
            super().__init__(inplanes, planes, stride, *rest, **more)
            self.conv1.stride, self.conv2.stride = (stride, stride), (1, 1)

    network = ResNet(First, [1, 2, 1, 1], num_classes=5)
    assert isinstance(network, torch.nn.Module)
    return network


#: Small networks of every kind, and their input channels.
TORCH_NETWORKS: dict[str, tuple[Callable[[], Any], int]] = {
    "basic": (_timm(in_chans=1), 1),
    "bottleneck": (_timm(block="bottleneck"), 3),
    "resnext": (_timm(block="bottleneck", cardinality=4, base_width=8), 3),
    "wide": (_timm(block="bottleneck", base_width=128), 3),
    "se": (_timm(block_args={"attn_layer": "se"}), 3),
    "eca": (_timm(block="bottleneck", block_args={"attn_layer": "eca"}), 3),
    "d": (_timm(block="bottleneck", stem_type="deep", stem_width=16, avg_down=True), 3),
    "rs": (
        _timm(stem_type="deep_tiered", stem_width=16, replace_stem_pool=True, avg_down=True, act_layer="silu"),
        3,
    ),
    "blur": (_timm(block="bottleneck", aa_layer="blur"), 3),
    "dilated": (_timm(block="bottleneck", layers=[1, 2, 2, 2], output_stride=8), 3),
    "group": (_timm(block="bottleneck", norm_layer="groupnorm", channels=(32, 32, 64, 64)), 3),
    "v1": (_torchvision_v1, 3),
    "v2": (_timm_v2(), 3),
    "v2d": (_timm_v2(stem_type="deep", avg_down=True), 3),
    "v2 basic": (_timm_v2(basic=True, layers=[1, 2]), 3),
    "bit": (
        _timm_v2(bit=True, stem_type="fixed", layers=[1, 2]),
        3,
    ),
    "cifar": (_cifar, 3),
}


def export_tensorflow(forward: Callable[[Any], Any], shape: Sequence[int | None], path: Path, opset: int = 17) -> Path:
    """Exports a function of images by tf2onnx."""
    import tensorflow as tf
    import tf2onnx

    signature = [tf.TensorSpec(shape, tf.float32, name="images")]
    function = tf.function(forward, input_signature=signature)
    tf2onnx.convert.from_function(function, input_signature=signature, opset=opset, output_path=str(path))
    return path


def export_keras(model: Any, path: Path) -> Path:
    """Exports a Keras model by tf2onnx, with a batch that is left open."""
    return export_tensorflow(lambda images: model(images, training=False), model.input_shape, path)


def caffe2(path: Path, *, opset: int = 8, classes: int = 9) -> Path:
    """Writes a bottleneck network in the layout of Caffe2's model zoo: blobs, ``Sum``, spatial batch norm."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(5)
    nodes, weights = [], []
    last = opset < 7  # the batch norm of the oldest versions states that it does not train

    def blob(name: str, array: np.ndarray) -> str:
        weights.append(numpy_helper.from_array(array.astype(np.float32), name))
        return name

    def convolution(x: str, name: str, shape: tuple[int, int, int], stride: int = 1, relu: bool = True) -> str:
        leaving, entering, kernel = shape
        kernels = random.normal(0, (entering * kernel**2) ** -0.5, (leaving, entering, kernel, kernel))
        half = kernel // 2
        nodes.append(
            helper.make_node(
                "Conv",
                [x, blob(f"gpu_0/{name}_w_0", kernels)],
                [f"gpu_0/{name}_1"],
                kernel_shape=[kernel, kernel],
                pads=[half] * 4,
                strides=[stride, stride],
            )
        )
        given = {
            "s": random.uniform(0.5, 1.5, leaving),
            "b": random.normal(0, 0.2, leaving),
            "rm": random.normal(0, 0.2, leaving),
            "riv": random.uniform(0.5, 1.5, leaving),
        }
        inputs = [f"gpu_0/{name}_1", *(blob(f"gpu_0/{name}_bn_{key}_0", array) for key, array in given.items())]
        options: dict[str, Any] = {"epsilon": 1e-5, "momentum": 0.9}
        if last:
            options |= {"is_test": 1, "consumed_inputs": [0, 0, 0, 1, 1]}
        nodes.append(helper.make_node("BatchNormalization", inputs, [f"gpu_0/{name}_bn_1"], **options))
        if not relu:
            return f"gpu_0/{name}_bn_1"
        nodes.append(helper.make_node("Relu", [f"gpu_0/{name}_bn_1"], [f"gpu_0/{name}_bn_2"]))
        return f"gpu_0/{name}_bn_2"

    x = convolution("gpu_0/data_0", "conv1", (16, 3, 7), 2)
    nodes.append(helper.make_node("MaxPool", [x], ["gpu_0/pool1_1"], kernel_shape=[3, 3], pads=[1] * 4, strides=[2, 2]))
    x, entering = "gpu_0/pool1_1", 16
    for stage, (depth, width) in enumerate(((1, 16), (2, 32)), start=2):
        for index in range(depth):
            name, stride = f"res{stage}_{index}_branch2", 2 if index == 0 and stage > 2 else 1
            a = convolution(x, f"{name}a", (width // 2, entering, 1))
            b = convolution(a, f"{name}b", (width // 2, width // 2, 3), stride)
            c = convolution(b, f"{name}c", (width * 2, width // 2, 1), relu=False)
            short = x
            if index == 0:
                short = convolution(x, f"res{stage}_{index}_branch1", (width * 2, entering, 1), stride, relu=False)
            nodes.append(helper.make_node("Sum", [c, short], [f"gpu_0/{name}c_bn_2"]))
            nodes.append(helper.make_node("Relu", [f"gpu_0/{name}c_bn_2"], [f"gpu_0/{name}c_bn_3"]))
            x, entering = f"gpu_0/{name}c_bn_3", width * 2
    nodes.append(helper.make_node("AveragePool", [x], ["gpu_0/final_avg_1"], kernel_shape=[8, 8], strides=[1, 1]))
    weights.append(numpy_helper.from_array(np.array([1, entering], np.int64), "OC2_DUMMY_1"))
    nodes.append(helper.make_node("Reshape", ["gpu_0/final_avg_1", "OC2_DUMMY_1"], ["OC2_DUMMY_0"]))
    head = [
        blob("gpu_0/pred_w_0", random.normal(0, 0.2, (classes, entering))),
        blob("gpu_0/pred_b_0", random.normal(0, 0.2, classes)),
    ]
    nodes.append(
        helper.make_node("Gemm", ["OC2_DUMMY_0", *head], ["gpu_0/pred_1"], transB=1, broadcast=1)
        if last
        else helper.make_node("Gemm", ["OC2_DUMMY_0", *head], ["gpu_0/pred_1"], transB=1)
    )
    nodes.append(helper.make_node("Softmax", ["gpu_0/pred_1"], ["gpu_0/softmax_1"], axis=1))
    shapes = [helper.make_tensor_value_info(w.name, w.data_type, list(w.dims)) for w in weights]
    graph = helper.make_graph(
        nodes,
        "resnet",
        [helper.make_tensor_value_info("gpu_0/data_0", TensorProto.FLOAT, [1, 3, 64, 64]), *shapes],
        [helper.make_tensor_value_info("gpu_0/softmax_1", TensorProto.FLOAT, [1, classes])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=3)
    model.producer_name = "onnx-caffe2"
    onnx.save(model, path)
    return path
