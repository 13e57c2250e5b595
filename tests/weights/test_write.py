"""What is written for other libraries: read by these libraries themselves, with the same outputs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import keras
import numpy as np
import pytest

import resfit
from resfit.errors import ArgumentError
from resfit.networks import catalog
from resfit.networks.build import build
from resfit.preprocessing import CAFFE, TORCH, InputSpec
from resfit.weights import canonical, write
from resfit.weights.conventions import pytorch
from resfit.weights.formats import safetensors
from tests.numeric import relative_error
from tests.test_zoo import randomize
from tests.torchside import library

LIMIT = 1e-4


def network(name: str, **options):
    """A network of the catalog with random weights and moving statistics, taking what its contract makes."""
    spec = catalog.get(name).spec.replace(**{"classes": 7, **options})
    contract = InputSpec(size=(64, 64), scale=1 / 255, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    model = build(spec, input_shape=(None, None, spec.in_channels), classifier_activation=None, input_spec=contract)
    model.class_names = tuple(f"class {number}" for number in range(7))
    return randomize(model)


def pictures(channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(2, 64, 64, channels)).astype(np.float32)


def run_torch(module, x: np.ndarray) -> np.ndarray:
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        found = module.eval()(torch.from_numpy(x.transpose(0, 3, 1, 2).copy()))
    return getattr(found, "logits", found).numpy()


# --- Keras --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "theirs", "suffix"),
    [
        ("resnet50", "ResNet50", ".weights.h5"),
        ("resnet50v2", "ResNet50V2", ".h5"),
        pytest.param("resnet50", "ResNet50", ".h5", marks=pytest.mark.slow),
        pytest.param("resnet50v2", "ResNet50V2", ".weights.h5", marks=pytest.mark.slow),
    ],
)
def test_weights_are_those_of_keras_applications(tmp_path, name, theirs, suffix):
    model = network(name)
    write.write(model, tmp_path / f"a{suffix}")
    other = getattr(keras.applications, theirs)(weights=None, classes=7, classifier_activation=None)
    other.load_weights(tmp_path / f"a{suffix}")
    x = np.pad(pictures(), ((0, 0), (0, 160), (0, 160), (0, 0)))
    assert relative_error(model(x, training=False), other(x, training=False)) < 1e-6


def test_a_whole_network_for_keras(tmp_path):
    model = network("resnet18")
    write.write(model, tmp_path / "a.keras")
    again = keras.saving.load_model(tmp_path / "a.keras")
    np.testing.assert_array_equal(again(pictures()), model(pictures(), training=False))
    assert os.listdir(tmp_path) == ["a.keras"]


# --- PyTorch's libraries ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "resnext50_32x4d",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("resnet50v1.5", "wide_resnet50_2")),
    ],
)
def test_torchvision_reads_its_names(tmp_path, name):
    torchvision = library("torchvision")
    from safetensors.torch import load_file

    model = network(name)
    write.write(model, tmp_path / "a.safetensors", naming="torchvision")
    module = getattr(torchvision.models, name.removesuffix("v1.5"))(num_classes=7)
    module.load_state_dict(load_file(tmp_path / "a.safetensors"), strict=True)
    assert relative_error(run_torch(module, pictures()), model(pictures(), training=False)) < LIMIT


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18", {}),
        ("resnet50v1.5", {"in_channels": 1}),
        ("resnetblur50", {}),
        ("ecaresnet50t", {}),  # whose stem and shortcuts are resnet50d's
        ("resnetrs50", {}),  # and its attention seresnet50's
        ("resnetv2_50", {}),
        ("resnetv2_50d_gn", {}),
        *(
            pytest.param(name, {}, marks=pytest.mark.slow)
            for name in ("seresnet50", "resnet50d", "resnet50_gn", "resnetv2_50x1_bit")
        ),
    ],
)
def test_timm_loads_the_folder(tmp_path, name, options):
    timm = library("timm")
    model = network(name, **options)
    if model.architecture.in_channels == 1:
        model.input_spec = model.input_spec.with_channels(1)
    write.write(model, tmp_path / "net")
    config = json.loads((tmp_path / "net/config.json").read_text())
    module = timm.create_model(
        config["architecture"], num_classes=7, in_chans=model.architecture.in_channels, pretrained=False
    )
    timm.models.load_checkpoint(module, tmp_path / "net/model.safetensors", strict=True)
    x = pictures(model.architecture.in_channels)
    assert relative_error(run_torch(module, x), model(x, training=False)) < LIMIT
    again = resfit.load(tmp_path / "net", preprocess=False, classifier_activation=None)
    assert relative_error(again(x, training=False), model(x, training=False)) < 1e-6
    assert again.class_names == model.class_names
    for field in ("size", "mean", "std", "crop_fraction"):
        assert getattr(again.input_spec, field) == pytest.approx(getattr(model.input_spec, field)), field


@pytest.mark.parametrize("name", ["resnet18", pytest.param("resnet50v1.5", marks=pytest.mark.slow), "resnet50"])
def test_transformers_loads_the_folder(tmp_path, name):
    """Even keras.applications' v1, whose stride lies elsewhere and whose convolutions have biases."""
    transformers = library("transformers")
    model = network(name)
    write.write(model, tmp_path / "net", naming="transformers")
    module = transformers.ResNetForImageClassification.from_pretrained(tmp_path / "net")
    assert relative_error(run_torch(module, pictures()), model(pictures(), training=False)) < LIMIT
    assert module.config.id2label[3] == "class 3"
    again = resfit.load(tmp_path / "net", preprocess=False, classifier_activation=None)
    assert relative_error(again(pictures(), training=False), model(pictures(), training=False)) < 1e-5
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "net")
    picture = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    theirs = processor(picture, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    resized_all = abs(theirs - model.input_spec.normalize(picture)).max()
    assert theirs.shape == (64, 64, 3)
    assert resized_all < 6  # the processor resizes to 73 before it crops


def test_a_pickle_holds_the_same_tensors(tmp_path):
    torch = pytest.importorskip("torch")
    model = network("resnet18")
    write.write(model, tmp_path / "a.pth")
    state = torch.load(tmp_path / "a.pth", weights_only=True)
    expected = pytorch.to_torch(model)
    assert list(state) == list(expected)
    for key, array in expected.items():
        np.testing.assert_array_equal(state[key].numpy(), array)


def test_colours_in_the_other_order_are_turned(tmp_path):
    model = network("resnet18")
    model.input_spec = CAFFE
    write.write(model, tmp_path / "a.safetensors")
    again = resfit.load(tmp_path / "a.safetensors", preprocess=False, classifier_activation=None)
    assert again.input_spec.channel_order == "rgb"
    picture = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
    expected = model(CAFFE.normalize(picture), training=False)
    assert relative_error(again(again.input_spec.normalize(picture), training=False), expected) < 1e-5


# --- resfit's own -------------------------------------------------------------------------------------------------


def test_own_names_and_a_spec_beside_the_names_of_timm_lose_nothing(tmp_path):
    model = network("resnetblur50")
    for naming in ("resfit", "timm"):
        file = write.write(model, tmp_path / f"{naming}.safetensors", naming=naming)
        again = resfit.load(file, preprocess=False, classifier_activation=None)
        assert again.architecture == model.architecture
        assert (again.input_spec, again.class_names) == (model.input_spec, model.class_names)
        received = canonical.arrays(again)
        for key, array in canonical.arrays(model).items():
            np.testing.assert_array_equal(received[key], array)


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "naming", "text"),
    [
        ("resnet50", "torchvision", "stride_in_block 'first', there 'spatial'"),
        ("resnetblur50", "torchvision", "antialias"),
        ("resnet50v2", "timm-v2", "must have a name for every layer|stride_in_stage|conv_bias"),
        ("resnet50d", "transformers", "must have a name for every layer"),
        ("resnet18", "timn", "Did you mean 'timm'"),
    ],
)
def test_what_cannot_be_expressed_is_refused(tmp_path, name, naming, text):
    with pytest.raises(ArgumentError, match=text):
        write.write(network(name), tmp_path / "a.safetensors", naming=naming)
    assert not os.listdir(tmp_path)


def test_targets_that_are_none(tmp_path):
    model = network("resnet18")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("keep")
    for target, naming in (("a.onnxx", None), ("mine", None), ("a.keras", "timm"), ("folder", "torchvision")):
        with pytest.raises(ArgumentError):
            write.write(model, tmp_path / target, naming=naming)
    assert (tmp_path / "mine/notes.txt").read_text() == "keep"
    assert os.listdir(tmp_path) == ["mine"]


def test_a_file_that_says_nonsense_of_itself_is_refused(tmp_path):
    model = network("resnet18")
    for about in ("1", "{}", '{"spec": {"depths": [1]}, "input_spec": null, "class_names": null}'):
        safetensors.write_arrays(tmp_path / "a.safetensors", pytorch.to_torch(model), {"resfit": about})
        with pytest.raises(resfit.errors.CheckpointError, match="what resfit writes"):
            resfit.load(tmp_path / "a.safetensors")


def test_the_contract_of_a_published_network_survives(tmp_path):
    model = network("resnet18")
    model.input_spec = TORCH
    config = json.loads((write.write(model, Path(tmp_path) / "net") / "config.json").read_text())
    assert config["pretrained_cfg"]["mean"] == [0.485, 0.456, 0.406]
    assert config["pretrained_cfg"]["std"] == [0.229, 0.224, 0.225]
