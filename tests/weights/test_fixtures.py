"""Networks that timm and transformers wrote, with random weights: the same numbers as those libraries computed.

The files are those of ``../shared/fixtures`` beside the checkout; without them the tests are skipped.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from resfit.weights.formats import torch as torch_reader
from resfit.weights.load import Source, load_source, read_source
from tests.numeric import relative_error

FIXTURES = Path(__file__).parents[3] / "shared" / "fixtures"
TIMM = (
    "ecaresnet50d",
    "resnet18",
    "resnet50",
    "resnet50_gn",
    "resnet50d",
    "resnetblur50",
    "resnetrs50",
    "resnetv2_50",
    "resnetv2_50x1_bit",
    "resnext50_32x4d",
    "seresnet18",
    "seresnet50",
    "wide_resnet50_2",
)
NAMES = [*(f"timm/{name}" for name in TIMM), "transformers/basic"]
# what blur pools leaves no trace in the tensors
NEEDS_CONFIG = {"timm/resnetblur50"}

pytestmark = pytest.mark.skipif(not FIXTURES.is_dir(), reason="the fixtures are not beside the checkout")


def check(source: Source, name: str, limit: float = 1e-4) -> None:
    expected = np.load(FIXTURES / name / "expected.npz")
    images = expected["input_nhwc"]
    options: list[tuple[str, dict]] = [
        ("logits", {"classifier_activation": None}),
        ("feature_map_nhwc", {"include_top": False}),
    ]
    if "pooled" in expected:
        options.append(("pooled", {"include_top": False, "pooling": "avg"}))
    for key, arguments in options:
        model = load_source(source, preprocess=False, **arguments)
        assert relative_error(model(images, training=False), expected[key].reshape(model(images).shape)) < limit, key


@pytest.mark.parametrize("name", NAMES)
def test_safetensors_with_config(name):
    check(read_source(FIXTURES / name), name)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in NEEDS_CONFIG])
def test_names_and_shapes_tell_the_network_without_config(name):
    told, alone = read_source(FIXTURES / name), read_source(FIXTURES / name / "model.safetensors")
    size = told.spec.input_size
    # what may differ has no bearing on the numbers
    assert alone.spec.replace(input_size=size, stage_strides=told.spec.stage_strides) == told.spec
    assert alone.arrays.keys() == told.arrays.keys()
    assert any("the tensors do not tell" in sentence for sentence in alone.assumptions)


def test_blur_pooling_needs_the_config_or_the_caller():
    file = FIXTURES / "timm/resnetblur50/model.safetensors"
    assert any("antialias=None" in sentence for sentence in read_source(file).assumptions)
    check(read_source(file, architecture="resnetblur50"), "timm/resnetblur50")
    named = read_source(file, antialias="blur", stem_pool="blur")
    assert not any("antialias" in sentence for sentence in named.assumptions)
    check(named, "timm/resnetblur50")


@pytest.mark.parametrize("name", ["timm/resnet18", "timm/resnetv2_50x1_bit", "timm/seresnet50", "transformers/basic"])
def test_pickled_by_torch(name, tmp_path):
    torch = pytest.importorskip("torch")
    arrays = torch_reader.read(FIXTURES / name).arrays
    file = tmp_path / "model.pth"
    state = {f"module.{key}": torch.from_numpy(value.copy()) for key, value in arrays.items()}
    torch.save({"epoch": 3, "state_dict": state, "arch": "x"}, file)
    source = read_source(file)
    assert "the network is what stands under 'state_dict.' (by its names; prefix= changes it)" in source.assumptions
    check(source, name)


@pytest.mark.parametrize("name", NAMES)
def test_pickle_and_safetensors_hold_the_same(name, tmp_path):
    torch = pytest.importorskip("torch")
    read = torch_reader.read(FIXTURES / name)
    torch.save({key: torch.from_numpy(value.copy()) for key, value in read.arrays.items()}, tmp_path / "a.pth")
    pickled, direct = read_source(tmp_path / "a.pth", config=read.config), read_source(FIXTURES / name)
    assert pickled.spec == direct.spec
    assert pickled.arrays.keys() == direct.arrays.keys()
    assert all(np.array_equal(array, direct.arrays[key]) for key, array in pickled.arrays.items())


def test_the_input_contract_is_the_sources():
    timm = read_source(FIXTURES / "timm/resnetrs50").input_spec
    assert timm.size == (160, 160)
    assert timm.mean == (0.485, 0.456, 0.406)
    assert timm.interpolation == "bicubic"
    assert (timm.crop_fraction, timm.resize_mode) == (0.91, "shorter")
    other = read_source(FIXTURES / "transformers/basic").input_spec
    assert (other.size, other.resize_mode, other.crop_fraction) == ((384, 384), "squash", 1.0)
    assert (other.scale, other.std, other.interpolation) == (1 / 255, (0.5, 0.5, 0.5), "bicubic")
