"""The table of checkpoints against the facts and the catalog."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from resfit.errors import ArgumentError, UnknownNameError
from resfit.networks import arithmetic, catalog
from resfit.preprocessing import CAFFE, TF, TORCH
from resfit.weights import labels, registry


def test_rows_by_source():
    sources = [info.source for info in registry.rows().values()]
    assert {source: sources.count(source) for source in registry.SOURCES} == {
        "keras.applications": 8,
        "resfit": 1,
        "timm": 174,
        "torchvision": 17,
        "transformers": 6,
        "kerashub": 16,
        "tensorflow-hub": 98,
        "tf-slim": 6,
        "bit": 22,
        "radimagenet": 2,
        "self-supervised": 46,
        "cifar": 14,
    }
    assert len(sources) == 410


FORMATS = {"keras_h5", "safetensors", "torch", "saved_model", "tf_checkpoint", "kerashub", "npz", "pickle"}
SCHEMES = ("https://", "http://", "hf://", "kaggle://", "gs://", "weights/")


@pytest.mark.parametrize("info", registry.rows().values(), ids=lambda info: info.name)
def test_each_row_is_complete_and_consistent(info):
    assert info.architecture in catalog.rows()
    assert info.source in registry.SOURCES
    assert info.format in FORMATS
    assert info.layout
    assert info.url.startswith(SCHEMES)
    assert not info.mirror or info.mirror.startswith(SCHEMES)
    assert info.training_data
    assert info.labels in ("", *labels.NAMES)
    if info.labels:
        assert len(info.class_names) == info.classes
    spec = info.input_spec
    assert spec.channels == len(info.mean) == len(info.std)
    for digest, length in ((info.md5, 32), (info.md5_notop, 32), (info.sha256, 64)):
        assert len(digest) in (0, 8, length)
        assert set(digest) <= set("0123456789abcdef")
    # a figure has a source, what it was measured on, and a plausible size
    if info.top1 is not None or info.params_m is not None or info.gmacs is not None:
        assert info.figures
    assert (info.top1 is not None) == bool(info.evaluated_on) or info.source == registry.RESFIT
    if info.top1 is not None:
        assert 1 < info.top1 < 100
        assert info.top5 is None or info.top1 < info.top5 < 100
        assert "probe" not in info.evaluated_on or info.classes == 0
    if info.eval_size is not None:
        assert 32 <= info.eval_size <= 480


def test_what_cannot_be_loaded_says_why():
    rows = registry.rows().values()
    assert {info.name for info in rows if not info.loadable and info.source != registry.RESFIT} == {
        info.name for info in rows if info.obstacle
    }
    assert sum(info.loadable for info in rows) >= 220
    # a file behind a page that asks for a hand
    assert {info.name for info in rows if info.obstacle} == {"resnet50.radimagenet"}


def test_modules_that_are_no_networks_here_say_why():
    modules = registry.modules()
    assert len(modules) == 10
    assert not modules.keys() & registry.rows().keys()
    for info in modules.values():
        assert info.obstacle
        assert not info.loadable
        assert (info.source, info.format) == (registry.TENSORFLOW_HUB, "saved_model")


def test_torchvision_hashes_are_those_of_the_file_names():
    found = [info for info in registry.rows().values() if info.source == "torchvision"]
    assert all(info.url.endswith(f"-{info.sha256}.pth") for info in found)
    best = registry.get("resnet50.v2_torchvision")
    assert (best.sha256, best.top1, best.top5) == ("11ad3fa6", 80.858, 95.434)
    assert best.input_spec.crop_fraction == pytest.approx(224 / 232, abs=1e-6)


def test_figures_of_other_sources_are_those_of_the_networks():
    """As many digits as are published; KerasHub counts moving statistics, and bodies for all but its vd presets."""
    checked = 0
    for info in registry.rows().values():
        if info.source in ("timm", "keras.applications") or not info.architecture or info.params_m is None:
            continue
        bare = info.classes == 0 or (info.source == "kerashub" and "_vd_" not in info.name)
        spec = catalog.get(info.architecture).spec
        counted = arithmetic.count(spec, include_top=not bare, classes=info.classes or None)
        own = counted.parameters if info.source == "kerashub" else counted.trainable_parameters
        if info.source in ("torchvision", "kerashub"):
            assert own / 1e6 == pytest.approx(info.params_m, abs=1e-6), info.name
        else:
            assert own / 1e6 == pytest.approx(info.params_m, rel=0.03, abs=0.01), info.name
        if info.gmacs is not None:
            assert counted.macs / 1e9 == pytest.approx(info.gmacs, abs=6e-4), info.name
        checked += 1
    assert checked > 50


def test_tensorflow_hub_contracts():
    info = registry.get("resnet_v2_50.tfhub")
    assert (info.classes, info.class_names[0], info.class_names[1]) == (1001, "background", "tench")
    assert info.mirror == "kaggle://google/resnet-v2/tensorFlow2/50-classification/2"
    white = info.input_spec.normalize(np.full((2, 2, 3), 255, np.uint8))
    np.testing.assert_allclose(white, 1.0, rtol=1e-6)
    assert registry.modules()["remote_sensing_eurosat_ms_resnet50.tfhub_features"].input_spec.channels == 13


def test_resnet50_says_what_keras_publishes():
    info = registry.get("resnet50")
    assert info.md5 == "2cb95161c43110f7111970584f804107"
    assert info.md5_notop == "4d473c1dd8becc155b73f8504c6f6626"
    assert info.url.endswith("/resnet/resnet50_weights_tf_dim_ordering_tf_kernels.h5")
    assert info.url_notop.endswith("/resnet/resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5")
    assert (info.top1, info.top5, info.classes) == (74.9, 92.1, 1000)
    assert info.loadable


@pytest.mark.parametrize(
    ("name", "contract"), [("resnet101", CAFFE), ("resnet152v2", TF), ("resnext50", TORCH), ("resnext101", TORCH)]
)
def test_input_contracts_of_keras_are_the_presets(name, contract):
    assert registry.get(name).input_spec == contract


def test_input_contract_of_a_timm_row():
    spec = registry.get("resnetv2_50x1_bit.goog_in21k_ft_in1k").input_spec
    assert spec.size == (448, 448)
    assert spec.crop_fraction == 1.0
    white = spec.normalize(np.full((2, 2, 3), 255, np.uint8))
    np.testing.assert_allclose(white, 1.0, rtol=1e-6)


def test_timm_architectures_have_the_published_parameters():
    """timm's names mean v1.5 where the catalog's mean Keras' v1."""
    assert registry.get("resnet50.a1_in1k").architecture == "resnet50v1.5"
    timm = [info for info in registry.rows().values() if info.source == registry.TIMM]
    assert all(info.loadable for info in timm)
    for info in timm:
        # the rows of other class counts state the figures of a thousand classes or of none
        if info.params_m is not None and info.classes == 1000:
            counted = arithmetic.count(catalog.get(info.architecture).spec).trainable_parameters
            assert counted / 1e6 == pytest.approx(info.params_m, rel=0.005), info.name


def test_names_are_unique():
    text = registry.resources.files("resfit.weights").joinpath("registry.csv").read_text()
    assert len(text.splitlines()) - 1 == len(registry.rows())


@pytest.mark.parametrize("name", ["resnet50", "resnet101v2", "resnext50", "resnet10_tiny"])
def test_the_default_of_keras_networks_is_keras(name):
    assert registry.default_for(name).name == name


def test_the_default_of_others_is_the_best_free_one_of_timm():
    best = registry.default_for("resnext50_32x4d")
    free = [info for info in registry.of_architecture("resnext50_32x4d") if info.permissive and info.source == "timm"]
    assert best in free
    assert best.top1 == max(info.top1 for info in free)
    assert best.top1 < max(info.top1 for info in registry.of_architecture("resnext50_32x4d"))
    assert registry.default_for("resnet50v1.5").source == "timm"
    # a classifier before a body, ImageNet before other figures, what can be loaded before what cannot
    assert registry.default_for("resnetv2_50x1_bit").classes == 1000
    assert registry.default_for("resnet50w2").name == "resnet50w2.vicreg"
    assert registry.default_for("preact_resnet20") is None


def test_find():
    names = [info.name for info in registry.find("resnet50v1.5", source="torchvision")]
    assert names == ["resnet50.v1_torchvision", "resnet50.v2_torchvision"]
    assert {info.licence for info in registry.find(licence="permissive")} == set(registry.PERMISSIVE)
    assert {info.licence for info in registry.find(licence="CC-*")} == {"cc-by-nc-4.0"}
    in21k = registry.find(trained_on="imagenet 21K", source="bit")
    assert "BiT-M-R50x1" in {info.name for info in in21k}
    assert "BiT-S-R50x1" not in {info.name for info in in21k}
    assert registry.find("vgg*") == []
    with pytest.raises(ArgumentError, match="Did you mean 'torchvision'"):
        registry.find(source="torchvison")


def test_unknown_name_suggests():
    with pytest.raises(UnknownNameError, match=r"Did you mean 'resnet50\.a1_in1k'"):
        registry.get("resnet50.a1_1k")


def test_rows_are_frozen_and_json_ready():
    info = registry.get("resnet50")
    with pytest.raises(dataclasses.FrozenInstanceError):
        info.top1 = 99.0
    assert info.to_dict()["mean"] == [103.939, 116.779, 123.68]


def test_nothing_heavy_is_imported():
    code = "import sys; from resfit.weights import registry; registry.rows(); print(sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for heavy in ("'numpy'", "'pandas'", "'keras'", "'tensorflow'", "'h5py'"):
        assert heavy not in loaded
