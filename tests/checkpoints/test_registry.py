"""The table of checkpoints against the facts and the catalog."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from resfit.architecture import arithmetic, catalog
from resfit.checkpoints import registry
from resfit.errors import UnknownNameError
from resfit.preprocessing import CAFFE, TF, TORCH


def test_rows_by_source():
    sources = [info.source for info in registry.rows().values()]
    assert {source: sources.count(source) for source in set(sources)} == {
        registry.KERAS: 8,
        registry.TIMM: 174,
        registry.RESFIT: 1,
    }


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
    without = [info.name for info in registry.rows().values() if not info.architecture]
    assert [name.partition(".")[0] for name in without] == [
        "ecaresnet50d_pruned",
        "ecaresnet101d_pruned",
        "test_resnet",
        "resnetv2_50d_evos",
    ]
    for info in registry.rows().values():
        # the rows of other class counts state the figures of a thousand classes or of none
        if info.architecture and info.params_m is not None and info.classes == 1000:
            counted = arithmetic.count(catalog.get(info.architecture).spec).trainable_parameters
            assert counted / 1e6 == pytest.approx(info.params_m, rel=0.005), info.name


def test_md5s_are_digests_and_names_are_unique():
    text = registry.resources.files("resfit.checkpoints").joinpath("registry.csv").read_text()
    assert len(text.splitlines()) - 1 == len(registry.rows())
    for info in registry.rows().values():
        for digest in (info.md5, info.md5_notop):
            assert digest == "" or (len(digest) == 32 and set(digest) <= set("0123456789abcdef"))


def test_the_default_is_loadable_first_then_free_then_accurate():
    assert registry.default_for("resnet50").name == "resnet50"
    best = registry.default_for("resnext50_32x4d")
    free = [info for info in registry.of_architecture("resnext50_32x4d") if "-nc" not in info.licence]
    assert best.top1 == max(info.top1 for info in free)
    assert "-nc" not in best.licence
    assert registry.default_for("resnet56") is None


def test_unknown_name_suggests():
    with pytest.raises(UnknownNameError, match=r"Did you mean 'resnet50\.a1_in1k'"):
        registry.get("resnet50.a1_1k")


def test_rows_are_frozen_and_json_ready():
    info = registry.get("resnet50")
    with pytest.raises(dataclasses.FrozenInstanceError):
        info.top1 = 99.0
    assert info.to_dict()["mean"] == [103.939, 116.779, 123.68]


def test_nothing_heavy_is_imported():
    code = "import sys; from resfit.checkpoints import registry; registry.rows(); print(sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for heavy in ("'numpy'", "'pandas'", "'keras'", "'tensorflow'", "'h5py'"):
        assert heavy not in loaded
