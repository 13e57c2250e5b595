"""Networks whose blocks differ (pruned, or of two kinds), and those with EvoNorm, against timm's own modules.

Weights and moving statistics are random. The files are read without a configuration, so that tensors alone tell.
"""

from __future__ import annotations

import keras
import numpy as np
import pytest

import resfit
from resfit import engines
from resfit.errors import ArgumentError, CheckpointError
from resfit.networks import catalog
from resfit.networks.build import build
from resfit.networks.spec import ArchitectureSpec
from resfit.weights import load, write
from resfit.weights.conventions import pytorch
from resfit.weights.identify import identify
from tests.contract import synthetic
from tests.numeric import randomize, relative_error
from tests.specs import shortened
from tests.torchside import library

LIMIT = 1e-4
NAMES = ["test_resnet", "ecaresnet50d_pruned", "resnetv2_50d_evos", "ecaresnet101d_pruned"]
SMALL = "a small one of resnetv2_50d_evos' kind"
#: The last two are left to the slow run, as something like them is there already.
MODULES = [*NAMES[:2], SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES[2:])]


def module_of(name: str):
    """timm's network with random weights and statistics."""
    torch, timm = pytest.importorskip("torch"), library("timm")
    if name == SMALL:
        kind = {"norm_layer": timm.layers.EvoNorm2dS0, "conv_layer": timm.layers.create_conv2d}
        kind |= {"layers": [2, 1, 1, 2], "channels": (128, 256, 256, 384), "stem_type": "deep", "avg_down": True}
        module = timm.models.resnetv2.ResNetV2(**kind).eval()
    else:
        module = timm.create_model(name, pretrained=False).eval()
    generator = np.random.default_rng(0)
    with torch.no_grad():
        for key, tensor in module.state_dict().items():
            if not tensor.is_floating_point():
                continue
            if tensor.ndim > 1:
                fan_in = np.float32(np.prod(tensor.shape[1:]))
                value = generator.standard_normal(tensor.shape, np.float32) / np.sqrt(fan_in)
            elif key.endswith((".weight", "running_var", ".v")):
                value = generator.uniform(0.5, 1.5, tensor.shape)
            else:
                value = generator.normal(0, 0.1, tensor.shape)
            tensor.copy_(torch.from_numpy(np.asarray(value)))
    return module


@pytest.mark.parametrize("name", MODULES)
def test_numbers_are_timms_there_and_back(name, tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file, save_file

    module = module_of(name)
    save_file(module.state_dict(), tmp_path / "model.safetensors")
    source = load.read_source(tmp_path / "model.safetensors")
    assert source.name == ("resnet" if name == SMALL else name)
    model = load.load_source(source, preprocess=False, classifier_activation=None)

    images = np.random.default_rng(1).normal(size=(2, 64, 80, 3)).astype(np.float32)
    with torch.no_grad():
        tensor = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        feature_map = module.forward_features(tensor)
        pooled = module.forward_head(feature_map, pre_logits=True).numpy()
        logits = module(tensor).numpy()
    parts = keras.Model(model.inputs[0], [engines.cut(model, until).output for until in (None, "features", "stage5")])
    expected = (logits, pooled, feature_map.numpy().transpose(0, 2, 3, 1))
    for received, theirs in zip(parts(images, training=False), expected, strict=True):
        assert relative_error(received, theirs) < LIMIT

    file = write.write(model, tmp_path / "back.safetensors")
    written = load_file(file)
    assert set(written) == set(module.state_dict())
    assert all(torch.equal(written[key], tensor) for key, tensor in module.state_dict().items())
    assert write.timm_name(model.architecture) == (None if name == SMALL else name)


@pytest.mark.parametrize("name", NAMES)
def test_tensors_alone_tell_the_network(name):
    """Arrays of the published sizes that take no memory; a piece of any tensor would be seen."""
    spec = catalog.get(name).spec
    arrays = {
        f"{layer}/{variable}": np.broadcast_to(np.float32(0), shape)
        for layer, variables in synthetic.network(spec).items()
        for variable, shape in variables.items()
    }
    convention = "timm-v2" if spec.preactivation else "timm"
    facts = {} if spec.preactivation else {"shortcut": spec.shortcut}
    found = identify(arrays, convention=convention, facts=facts)
    assert found.spec.replace(input_size=spec.input_size) == spec
    assert not any("activation=" in text for text in found.assumptions) or spec.norm != "evo"


def synthetic_tensors(name: str) -> dict[str, np.ndarray]:
    spec = catalog.get(name).spec
    layout = "timm-v2" if spec.preactivation else "timm"
    shapes = synthetic.torch_names(layout, spec, synthetic.network(spec))
    return {key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items() if "tracked" not in key}


def read(tensors: dict[str, np.ndarray], folder) -> load.Source:
    from safetensors.numpy import save_file

    save_file({key: np.ascontiguousarray(tensor) for key, tensor in tensors.items()}, folder / "a.safetensors")
    return load.read_source(folder / "a.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer3.0.conv2.weight": None}, r"convolutions \[\(1, 2\), \(1, 3\)\]"),
        ({"layer3.0.conv3.weight": (96, 48, 1, 1)}, "layers of other sizes: .*conv4_block1_3_bn"),
        ({"layer2.0.conv3.weight": (192, 48, 1, 1)}, "layers without tensors: conv3_block1_3_bn"),
    ],
)
def test_a_mix_that_does_not_fit_is_refused(change, message, tmp_path):
    tensors = synthetic_tensors("test_resnet")
    for key, shape in change.items():
        if shape is None:
            del tensors[key]
        else:
            tensors[key] = np.zeros(shape, np.float32)
    with pytest.raises(CheckpointError, match=message):
        read(tensors, tmp_path)


def test_a_width_that_its_neighbours_lack_is_refused(tmp_path):
    """Blocks may differ, but what leaves one convolution must enter the next."""
    tensors = synthetic_tensors("test_resnet")
    assert tensors["layer3.0.conv2.weight"].shape == (48, 48, 3, 3)
    tensors["layer3.0.conv1.weight"] = np.zeros((47, 48, 1, 1), np.float32)
    with pytest.raises(CheckpointError, match=r"layers of other sizes: .*conv4_block1_1_bn"):
        read(tensors, tmp_path)


def test_evo_norms_of_other_groups_are_another_network(tmp_path):
    """What tensors do not tell of them is said, and counts."""
    tensors = synthetic_tensors("resnetv2_50d_evos")
    arrays = pytorch.translate(tensors).arrays
    found = identify(arrays, convention="timm-v2")
    assert any(text.startswith("norm_groups=32 ") for text in found.assumptions)
    assert identify(arrays, convention="timm-v2", norm_groups=16).spec.norm_groups == 16
    with pytest.raises(CheckpointError, match=r"divide by norm_groups=24.*conv1_1_evo/gamma"):
        identify(arrays, convention="timm-v2", norm_groups=24)
    with pytest.raises(ArgumentError, match="norm and activation in one"):
        identify(arrays, convention="timm-v2", activation="relu")
    with pytest.raises(CheckpointError, match=r"layers of other sizes: conv2_block1_preact_evo"):
        load._check(pytorch.translate({k: v for k, v in tensors.items() if k != "stages.0.blocks.0.norm1.v"}), found)


def small(name: str, **options):
    """A network of the same kind with one or two blocks a stage, of few channels where norms are EvoNorm."""
    spec = shortened(catalog.get(name).spec, 1 if catalog.get(name).spec.block_widths is None else 2)
    if spec.norm == "evo":
        spec = spec.replace(widths=(32, 32, 64, 64), inner_widths=(32, 32, 32, 32))
    return randomize(build(spec.replace(classes=5), **options))


@pytest.mark.parametrize("target", ["a.keras", "a.weights.h5", "a.h5"])
def test_keras_and_own_files_of_evo_norms(target, tmp_path):
    model = small("resnetv2_50d_evos", classifier_activation=None if target.endswith(".h5") else "softmax")
    write.write(model, tmp_path / target)
    # weights for Keras do not say what their shapes do not tell
    told = {"shortcut": "avgpool", "classifier_activation": None} if target.endswith(".h5") else {}
    again = resfit.load(tmp_path / target, preprocess=False, **told)
    images = np.random.default_rng(0).normal(size=(2, 64, 48, 3)).astype(np.float32)
    assert relative_error(again(images, training=False), model(images, training=False)) < 1e-6


@pytest.mark.parametrize(
    "name", ["test_resnet", "resnetv2_50d_evos", pytest.param("ecaresnet50d_pruned", marks=pytest.mark.slow)]
)
def test_graphs_of_them_are_read_or_refused(name, tmp_path):
    """What the lowering makes of them for ONNX, batch norms folded."""
    onnx = pytest.importorskip("onnx")
    from resfit.engines import onnx_graph

    model = small(name, input_shape=(64, 48, 3), classifier_activation=None)
    onnx.save(onnx_graph.build(model), tmp_path / "a.onnx")
    if name == "resnetv2_50d_evos":
        with pytest.raises(CheckpointError, match="must be that of a residual network"):
            load.read_source(tmp_path / "a.onnx")
        return
    again = load.load_source(tmp_path / "a.onnx", preprocess=False, classifier_activation=None)
    for field in ("stage_blocks", "block_widths"):
        assert getattr(again.architecture, field) == getattr(model.architecture, field)
    images = np.random.default_rng(0).normal(size=(2, 64, 48, 3)).astype(np.float32)
    assert relative_error(again(images, training=False), model(images, training=False)) < 1e-5


def test_without_layers_of_resfit_evo_norms_are_the_same():
    """What exports for programs without resfit are made of."""
    from resfit.export import plain

    model = small("resnetv2_50d_evos", classifier_activation=None)
    images = np.random.default_rng(0).normal(size=(2, 64, 48, 3)).astype(np.float32)
    other = plain.plain(model, fold=True)
    assert not plain.own_layers(other)
    assert relative_error(other(images, training=False), model(images, training=False)) < 1e-5


def test_transformers_cannot_express_them(tmp_path):
    spec = ArchitectureSpec(depths=(2,), widths=(64,), inner_widths=(16,), stage_strides=(1,))
    changes = (
        ({"block_widths": ((16, 16), (12, 16))}, "block_widths"),
        ({"inner_widths": (32,)}, r"inner_widths \(32,\), there \(16,\)"),
    )
    write.write(build(spec), tmp_path / "net", naming="transformers")
    for change, message in changes:
        with pytest.raises(ArgumentError, match=f"transformers.*{message}"):
            write.write(build(spec.replace(**change)), tmp_path / "other", naming="transformers")
    assert not (tmp_path / "other").exists()
