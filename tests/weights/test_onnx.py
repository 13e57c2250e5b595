"""ONNX files of torch, tf2onnx and Caffe2: the graph alone says what network it is, and it computes the same here."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import resfit
from resfit.networks import catalog
from resfit.networks.build import build
from resfit.networks.spec import ArchitectureSpec, StemConv
from resfit.preprocessing import CAFFE, TF, TORCH
from resfit.weights import canonical, load, write
from tests.contract.test_catalog import reduced
from tests.numeric import randomize, relative_error
from tests.weights import onnx_sources as sources
from tests.weights import tf_sources

pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

TOLERANCE = 1e-4


def run(path: Path, images: np.ndarray, *, channels_last: bool = False) -> np.ndarray:
    """What ONNX Runtime makes of images (batch, height, width, channels)."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    fed = images if channels_last else images.transpose(0, 3, 1, 2)
    return session.run(None, {session.get_inputs()[0].name: np.ascontiguousarray(fed)})[0]


def compared(
    path: Path, size: tuple[int, int], *, batch: int = 1, channels_last: bool = False, activation: Any = None
) -> Any:
    """Loads a file and compares its outputs with ONNX Runtime's; returns the model."""
    model = resfit.load(path, preprocess=False, classifier_activation=activation)
    shape = (batch, *size, model.architecture.in_channels)
    images = np.random.default_rng(3).normal(size=shape).astype(np.float32)
    expected = run(path, images, channels_last=channels_last)
    received = np.asarray(model(images, training=False)).reshape(expected.shape)
    assert relative_error(received, expected) < TOLERANCE
    assert np.array_equal(received.argmax(-1), expected.argmax(-1))
    return model


# --- torch --------------------------------------------------------------------------------------------------------


EXPECTED = {
    "basic": {"in_channels": 1, "classes": 7, "depths": (2, 1, 1, 2), "widths": (16, 24, 32, 40), "block": "basic"},
    "resnext": {"groups": 4, "stride_in_block": "spatial", "inner_widths": (8, 12, 16, 20)},
    "wide": {"inner_widths": (32, 48, 64, 80)},
    "se": {"attention": "se", "attention_sizes": (8, 8, 8, 8)},
    "eca": {"attention": "eca"},
    "d": {"shortcut": "avgpool", "stem": (StemConv(16, 3, 2), StemConv(16, 3, 1), StemConv(32, 3, 1))},
    "rs": {"stem_pool": "conv", "activation": "silu", "shortcut": "avgpool"},
    "blur": {"antialias": "blur", "stem_pool": "blur"},
    "dilated": {"output_stride": 8, "stage_strides": (1, 2, 2, 2)},
    "v1": {"stride_in_block": "first", "classes": 5},
    "v2": {"preactivation": True, "shortcut": "projection", "project_first": True},
    "v2d": {"preactivation": True, "shortcut": "avgpool"},
    "bit": {"norm": "group", "norm_groups": 8, "weight_standardization": False, "stem_pool_padding": "zero"},
    "cifar": {"shortcut": "pad", "stem_pool": "none", "stem": (StemConv(16, 3, 1),), "stage_strides": (1, 2, 2)},
}

OFTEN = ("basic", "d", "v2")


@pytest.mark.parametrize(
    ("name", "way"),
    [
        *((name, "folded") for name in sources.TORCH_NETWORKS),
        *(
            pytest.param(name, "kept", marks=[] if name in OFTEN else pytest.mark.slow)
            for name in sources.TORCH_NETWORKS
        ),
    ],
)
def test_torch_computes_the_same(name, way, tmp_path):
    size = sources.SIZES.get(name, (64, 64))
    path = sources.export_torch(name, tmp_path / "net.onnx", way)
    model = compared(path, size)
    spec = model.architecture
    has_batch_norm = name not in ("bit", "group")
    assert spec.norm == ("group" if not has_batch_norm else "none" if way == "folded" and "v2" not in name else "batch")
    assert spec.folded == (way == "folded" and "v2" in name)
    said = any("batch norms behind convolutions are folded" in sentence for sentence in model.assumptions)
    assert said == (has_batch_norm and way == "folded")
    assert spec.input_size == size
    for field, value in EXPECTED.get(name, {}).items():
        assert getattr(spec, field) == value, field


@pytest.mark.parametrize("name", ["v2d", pytest.param("se", marks=pytest.mark.slow)])
def test_torchs_newer_exporter_with_data_outside(name, tmp_path):
    path = sources.export_torch(name, tmp_path / "net.onnx", "dynamo")
    assert (tmp_path / "net.onnx.data").stat().st_size > 100_000
    compared(path, (64, 64))


def test_images_of_any_size_and_number(tmp_path):
    path = sources.export_torch("bottleneck", tmp_path / "net.onnx", dynamic=True)
    model = compared(path, (70, 102), batch=3)
    assert model.architecture.input_size == (224, 224)


def test_kept_weights_are_those_of_torch_to_the_last_bit(tmp_path):
    """And the spec is that of timm's own checkpoint, but for the size of images."""
    torch = pytest.importorskip("torch")
    path = sources.export_torch("d", tmp_path / "net.onnx", "kept")
    torch.save(sources.torch_network("d")[0].state_dict(), tmp_path / "net.pth")
    found, expected = load.read_source(path), load.read_source(tmp_path / "net.pth")
    assert found.spec.replace(input_size=(224, 224)) == expected.spec
    assert found.arrays.keys() == expected.arrays.keys()
    for name, array in expected.arrays.items():
        np.testing.assert_array_equal(found.arrays[name], array)


def test_the_body_alone(tmp_path):
    """A graph without a classifier, and taps of one that has one."""
    import torch

    module, _ = sources.torch_network("bottleneck")
    body = torch.nn.Sequential(*list(module.children())[:-2])
    torch.onnx.export(body, (torch.zeros(1, 3, 64, 64),), str(tmp_path / "body.onnx"), dynamo=False)
    source = load.read_source(tmp_path / "body.onnx")
    assert not source.has_top
    images = np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype(np.float32)
    expected = run(tmp_path / "body.onnx", images).transpose(0, 2, 3, 1)
    assert relative_error(load.load_source(source, preprocess=False)(images, training=False), expected) < TOLERANCE
    whole = sources.export_torch("bottleneck", tmp_path / "whole.onnx")
    tapped = resfit.load(whole, include_top=False, taps=("stage5",), preprocess=False)
    assert relative_error(tapped(images, training=False)["stage5"], expected) < TOLERANCE


def test_normalisation_of_images_from_0_to_1(tmp_path):
    import torch

    class Normalised(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network, _ = sources.torch_network("se")
            self.mean, self.std = (torch.tensor(value).reshape(1, 3, 1, 1) for value in (TORCH.mean, TORCH.std))

        def forward(self, x: Any) -> Any:
            return self.network((x - self.mean) / self.std)

    torch.onnx.export(Normalised().eval(), (torch.zeros(1, 3, 64, 64),), str(tmp_path / "n.onnx"), dynamo=False)
    model = resfit.load(tmp_path / "n.onnx", classifier_activation=None)
    np.testing.assert_allclose(model.input_spec.mean, TORCH.mean, rtol=1e-5)
    np.testing.assert_allclose(model.input_spec.std, TORCH.std, rtol=1e-5)
    assert model.input_spec.scale == 1 / 255
    images = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3))
    expected = run(tmp_path / "n.onnx", (images / 255).astype(np.float32))
    assert relative_error(model(images, training=False), expected) < TOLERANCE


# --- tf2onnx ------------------------------------------------------------------------------------------------------

KERAS = [
    pytest.param("resnet18", (64, 64), marks=pytest.mark.slow),
    ("seresnet50", None),
    ("resnet50v2", (64, 64)),
    pytest.param("resnet50v2", None, marks=pytest.mark.slow),
    pytest.param("resnet50d", None, marks=pytest.mark.slow),
    pytest.param("resnetrs50", None, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "size"), KERAS)
def test_tf2onnx_computes_the_same(name, size, tmp_path):
    network = randomize(build(reduced(catalog.get(name).spec), input_shape=(*(size or (None, None)), 3)), seed=4)
    path = sources.export_keras(network, tmp_path / "net.onnx")
    model = compared(path, size or (90, 62), channels_last=True, activation="softmax", batch=2)
    images = np.random.default_rng(1).normal(size=(1, *(size or (90, 62)), 3)).astype(np.float32)
    assert relative_error(model(images, training=False), network(images, training=False)) < TOLERANCE


@pytest.mark.parametrize("depths", [(1, 1, 1, 1), pytest.param((3, 4, 6, 3), marks=pytest.mark.slow)])
def test_keras_applications_resnet50(depths, tmp_path):
    """Few of its blocks show the same; tests/networks/test_keras_applications.py compares all of them."""
    published = catalog.get("resnet50").spec.replace(depths=depths)
    network = randomize(build(published.replace(classes=11), input_shape=(64, 64, 3)), seed=2)
    path = sources.export_keras(network, tmp_path / "resnet50.onnx")
    model = compared(path, (64, 64), channels_last=True, activation="softmax")
    unfolded = model.architecture.replace(norm="batch", classes=1000, input_size=(224, 224), norm_momentum=0.99)
    assert unfolded.replace(norm_epsilon=published.norm_epsilon) == published
    assert model.input_spec == dataclasses.replace(CAFFE, size=(64, 64))


@pytest.mark.slow
def test_keras_applications_resnet50v2(tmp_path):
    keras = pytest.importorskip("keras")
    network = randomize(keras.applications.ResNet50V2(weights=None, classes=11), seed=2)
    path = sources.export_keras(network, tmp_path / "resnet50v2.onnx")
    model = compared(path, (224, 224), channels_last=True, activation="softmax")
    assert model.architecture.folded
    assert model.architecture.stride_in_stage == "last"
    assert model.input_spec == TF


def test_same_padding_of_tensorflow(tmp_path):
    """Strides that pad on one side, as Model Garden's networks do; explicit where the size is known."""
    spec = ArchitectureSpec(
        depths=(1, 1),
        widths=(16, 32),
        inner_widths=(8, 16),
        stem=(StemConv(16, 7, 2),),
        stage_strides=(1, 2),
        padding="same",
        stem_pool_padding="same",
        classes=4,
    )
    for number, size in enumerate([(64, 64), (None, None)]):
        network = randomize(build(spec, input_shape=(*size, 3)))
        path = sources.export_keras(network, tmp_path / f"{number}.onnx")
        model = compared(path, (64, 64), channels_last=True, activation="softmax")
        assert (model.architecture.padding, model.architecture.stem_pool_padding) == ("same", "same")


@pytest.mark.parametrize(
    ("arrays", "forward", "told"),
    [
        (tf_sources.slim_arrays(1), tf_sources.slim_forward, {"norm": "none", "stride_in_stage": "last"}),
        (tf_sources.slim_arrays(2), tf_sources.slim_forward, {"folded": True, "stride_in_stage": "last"}),
        (
            tf_sources.legacy_arrays(garden=True),
            functools.partial(tf_sources.legacy_forward, garden=True),
            {"padding": "same", "stem_padding": "symmetric"},
        ),
    ],
    ids=["slim-v1", "slim-v2", "garden"],
)
def test_programs_of_tensorflow_compute_the_same(arrays, forward, told, tmp_path):
    path = sources.export_tensorflow(lambda images: forward(images, arrays), (None, 64, 64, 3), tmp_path / "net.onnx")
    spec = compared(path, (64, 64), channels_last=True, batch=2).architecture
    assert {field: getattr(spec, field) for field in told} == told


def test_normalisation_in_the_graph_becomes_the_input_contract(tmp_path):
    network = build(reduced(catalog.get("resnet18").spec), input_shape=(64, 64, 3), input_spec=TORCH, preprocess=True)
    path = sources.export_keras(randomize(network), tmp_path / "net.onnx")
    model = resfit.load(path)
    np.testing.assert_allclose(model.input_spec.mean, np.array(TORCH.mean) * 255, rtol=1e-5)
    np.testing.assert_allclose(model.input_spec.std, np.array(TORCH.std) * 255, rtol=1e-5)
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3)).astype(np.float32)
    assert relative_error(model(images, training=False), run(path, images, channels_last=True)) < TOLERANCE


@pytest.mark.parametrize("name", ["resnet50", "resnetv2_50d_gn", "resnetblur50"])
def test_what_resfit_exports_is_read_back(name, tmp_path):
    """With BGR and its mean colour, dynamic, channels last, batch norm folded."""
    import onnx

    from resfit.engines import onnx_graph

    network = build(reduced(catalog.get(name).spec), input_spec=CAFFE, preprocess=True)
    onnx.save(onnx_graph.build(randomize(network)), tmp_path / "own.onnx")
    model = resfit.load(tmp_path / "own.onnx")
    assert model.input_spec.channel_order == "bgr"
    np.testing.assert_allclose(model.input_spec.mean, CAFFE.mean, rtol=1e-5)
    images = np.random.default_rng(0).integers(0, 256, (2, 66, 97, 3)).astype(np.float32)
    assert relative_error(model(images, training=False), network(images, training=False)) < TOLERANCE


# --- Caffe2 -------------------------------------------------------------------------------------------------------


def test_caffe2_computes_the_same(tmp_path):
    path = sources.caffe2(tmp_path / "net.onnx")
    model = compared(path, (64, 64), activation="softmax")
    spec = model.architecture
    assert (spec.norm, spec.depths, spec.classes, spec.stride_in_block) == ("batch", (1, 2), 9, "spatial")
    oldest = load.read_source(sources.caffe2(tmp_path / "old.onnx", opset=6))  # which no runtime of today runs
    assert oldest.spec == spec
    for name, array in canonical.arrays(model).items():
        np.testing.assert_array_equal(oldest.arrays[name], array)


# --- on the way out -----------------------------------------------------------------------------------------------


def test_convert(tmp_path, capsys):
    from resfit.cli.main import run as cli

    path = sources.export_torch("v2", tmp_path / "net.onnx")
    with pytest.raises(SystemExit) as ended:
        cli(["convert", str(path), str(tmp_path / "net.keras"), "--json"])
    out, err = capsys.readouterr()
    assert ended.value.code == 0, err
    assert json.loads(out)["largest_relative_difference"] < 1e-6
    assert "Assumed: batch norms behind convolutions are folded" in err.replace("\n", " ")
    images = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3)).astype(np.float32)
    again = resfit.load(tmp_path / "net.keras")
    assert again.architecture.folded
    assert relative_error(again(images), resfit.load(path)(images)) < 1e-6


@pytest.mark.parametrize("name", ["d", "v2"])
def test_folded_networks_are_written_for_timm(name, tmp_path):
    """Each bias becomes that of a batch norm that does nothing else, and timm's own network loads them."""
    import torch
    from safetensors.torch import load_file

    path = sources.export_torch(name, tmp_path / "net.onnx")
    model = resfit.load(path, preprocess=False, classifier_activation=None)
    write.write(model, tmp_path / "net.safetensors")
    module, _ = sources.torch_network(name)
    module.load_state_dict(load_file(tmp_path / "net.safetensors"), strict=True)
    images = np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype(np.float32)
    with torch.no_grad():
        received = module(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    assert relative_error(received, run(path, images) if name == "d" else model(images, training=False)) < TOLERANCE
