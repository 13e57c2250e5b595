"""TensorFlow's sources: what is read equals what the program that wrote it computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resfit.errors import CheckpointError
from resfit.networks import catalog
from resfit.weights import load
from resfit.weights.formats import saved_model
from tests.numeric import images as random_images
from tests.numeric import relative_error
from tests.weights import tf_sources

TOLERANCE = 1e-4


def pixels(height: int = 64, width: int = 64, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Values -1..1, as most of these networks take them."""
    return random_images(2, height, width, channels, seed=seed).astype(np.float32) / 127.5 - 1


def logits(source: Path, images: np.ndarray, **options: Any) -> tuple[np.ndarray, Any]:
    model = load.load_source(source, preprocess=False, classifier_activation=None, **options)
    return np.asarray(model(images)), model


# TF-Slim.


@pytest.mark.parametrize(("version", "size"), [(1, (64, 64)), (2, (63, 49))])
def test_slim_saved_model_computes_the_same(version, size, tmp_path):
    images = pixels(*size)
    arrays = tf_sources.slim_arrays(version)
    expected = tf_sources.write_saved_model(tmp_path / "module", arrays, tf_sources.slim_forward, images)
    received, model = logits(tmp_path / "module", images)
    assert relative_error(received, expected) < TOLERANCE
    spec = model.architecture
    assert (spec.depths, spec.widths, spec.inner_widths) == ((2, 1, 1, 2), (64, 96, 128, 192), (16, 24, 32, 48))
    assert (spec.stride_in_stage, spec.stage_strides, spec.stem_pool_padding) == ("last", (2, 2, 2, 1), "same")
    assert spec.conv_bias == ("none" if version == 1 else "unnormalized")
    assert model.output_shape == (None, 7)


@pytest.mark.parametrize(
    ("version", "size", "first_format"), [(1, (63, 49), True), (2, (64, 64), True), (1, (64, 57), False)]
)
def test_slim_checkpoint_computes_the_same(version, size, first_format, tmp_path):
    images = pixels(*size, 1)
    arrays = tf_sources.slim_arrays(version, (1, 2), (16, 24), stem=8, channels=1, classes=5)
    path = tf_sources.write_checkpoint(tmp_path / "model.ckpt", arrays, first_format=first_format)
    received, model = logits(path, images)
    assert relative_error(received, np.asarray(tf_sources.slim_forward(images, arrays))) < TOLERANCE
    assert any("a counter of training steps: global_step" in remark for remark in model.assumptions)


def test_module_of_tensorflow_1_computes_the_same(tmp_path):
    images = pixels()
    arrays = tf_sources.slim_arrays(2, classes=0)
    expected = tf_sources.write_v1_module(tmp_path / "module", arrays, tf_sources.slim_forward, images)
    model = load.load_source(tmp_path / "module", preprocess=False, include_top=False, pooling="avg")
    assert relative_error(model(images), expected) < TOLERANCE
    assert (
        "the network is what stands under 'module/resnet_v2_50/' (by its names; prefix= changes it)"
        in model.assumptions
    )


def test_a_hub_module_takes_0_to_1_where_this_takes_bytes(tmp_path):
    raw = random_images(2, 64, 64, 3)
    arrays = tf_sources.slim_arrays(1, classes=1001, inner=(8, 12, 16, 24))
    unit = raw.astype(np.float32) / 255
    expected = tf_sources.write_saved_model(tmp_path / "hub", arrays, tf_sources.slim_forward, unit, unit_range=True)
    model = load.load_source(tmp_path / "hub", classifier_activation=None)
    assert relative_error(model(raw), expected) < TOLERANCE
    assert model.output_shape == (None, 1001)
    assert any("class 0 of the 1001 is the background" in remark for remark in model.assumptions)
    assert any("from values of 0..1" in remark for remark in model.assumptions)


@pytest.mark.slow
@pytest.mark.parametrize("version", [1, 2])
def test_slim_resnet_50_of_real_size(version, tmp_path):
    images = pixels(224, 224)
    widths = {"depths": (3, 4, 6, 3), "inner": (64, 128, 256, 512), "stem": 64, "classes": 1001}
    arrays = tf_sources.slim_arrays(version, **widths)
    expected = tf_sources.write_saved_model(tmp_path / "module", arrays, tf_sources.slim_forward, images)
    received, model = logits(tmp_path / "module", images)
    assert relative_error(received, expected) < TOLERANCE
    assert model.name == f"resnet_v{version}_50"
    assert model.architecture == catalog.get(f"resnet_v{version}_50").spec.replace(classes=1001)


def test_the_mean_colour_of_a_slim_checkpoint_is_its_contract(tmp_path):
    arrays = tf_sources.slim_arrays(1, classes=1000)
    arrays["resnet_v1_50/mean_rgb"] = np.array([123.0, 117.0, 104.0], np.float32)
    source = load.read_source(tf_sources.write_checkpoint(tmp_path / "v1.ckpt", arrays))
    assert source.input_spec.mean == (123.0, 117.0, 104.0)
    assert (source.input_spec.scale, source.input_spec.channel_order) == (1.0, "rgb")


def test_contracts_of_slim_checkpoints_without_it(tmp_path):
    found = {}
    for version, classes in ((1, 1000), (1, 1001), (2, 1001)):
        arrays = tf_sources.slim_arrays(version, classes=classes)
        source = load.read_source(tf_sources.write_checkpoint(tmp_path / f"{version}-{classes}", arrays))
        found[version, classes] = (source.input_spec.mean[0], source.input_spec.size[0], source.spec.input_size[0])
        assert any("the weights do not say so" in remark for remark in source.assumptions)
    assert found == {(1, 1000): (123.68, 224, 224), (1, 1001): (1.0, 224, 224), (2, 1001): (1.0, 299, 299)}


def test_an_override_wins_over_what_the_program_does(tmp_path):
    path = tf_sources.write_checkpoint(tmp_path / "v2", tf_sources.slim_arrays(2))
    assert load.read_source(path, stem_pool_padding="zero").spec.stem_pool_padding == "zero"


# The official models.


@pytest.mark.parametrize("bottleneck", [True, False])
@pytest.mark.parametrize("version", [1, 2])
def test_official_network_computes_the_same(version, bottleneck, tmp_path):
    images = pixels(57, 64)
    layers = tf_sources.Numbered()
    expected = tf_sources.official_forward(images, layers, version, bottleneck=bottleneck)
    path = tf_sources.write_checkpoint(tmp_path / "model.ckpt-90", layers.make.arrays)
    received, model = logits(path, images)
    assert relative_error(received, np.asarray(expected)) < TOLERANCE
    assert model.architecture.block == ("bottleneck" if bottleneck else "basic")
    assert model.input_spec.mean == (123.68, 116.779, 103.939)


@pytest.mark.parametrize("version", [1, 2])
def test_official_network_for_cifar_computes_the_same(version, tmp_path):
    images = pixels(32, 32)
    options = {"bottleneck": False, "depths": (2, 2, 2), "kernel": 3, "classes": 10}
    layers = tf_sources.Numbered()
    expected = tf_sources.official_forward(images, layers, version, **options)
    path = tf_sources.write_checkpoint(tmp_path / "model.ckpt-7", layers.make.arrays)
    received, model = logits(path, images)
    assert relative_error(received, np.asarray(expected)) < TOLERANCE
    assert (model.architecture.stem_pool, model.architecture.stage_strides) == ("none", (1, 2, 2))


# What a path may be.


def test_every_way_to_name_a_checkpoint(tmp_path):
    arrays = tf_sources.slim_arrays(1, (1,), (8,))
    prefix = tf_sources.write_checkpoint(tmp_path / "model.ckpt-12", arrays)
    one = tf_sources.write_checkpoint(tmp_path / "alone" / "old.ckpt", arrays, first_format=True)
    ways = (prefix, tmp_path / "model.ckpt-12.index", tmp_path / "model.ckpt-12.data-00000-of-00001", tmp_path, one)
    for way in (*ways, one.parent):
        assert saved_model.recognises(way), way
        found = saved_model.read(way).arrays
        assert found.keys() == {*arrays, "global_step"}
        assert all(np.array_equal(found[name], array) for name, array in arrays.items())
    assert load.find_format(one).name == "TensorFlow"  # though PyTorch has files of this ending too


def test_what_is_no_checkpoint_is_not_recognised(tmp_path):
    (tmp_path / "a.index").write_text("no table")
    (tmp_path / "b.ckpt").write_bytes(b"PK\3\4" + bytes(100))
    for path in (tmp_path, tmp_path / "a.index", tmp_path / "b.ckpt", tmp_path / "missing"):
        assert not saved_model.recognises(path)


def test_the_latest_checkpoint_of_a_folder_is_taken(tmp_path):
    for step in (1, 2):
        arrays = tf_sources.slim_arrays(1, (1,), (8,), seed=step)
        tf_sources.write_checkpoint(tmp_path / f"ckpt-{step}", arrays)
    assert np.array_equal(
        saved_model.read(tmp_path).arrays["resnet_v1_50/conv1/weights"], arrays["resnet_v1_50/conv1/weights"]
    )
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "/elsewhere/../ckpt-1"\n')
    assert not np.array_equal(
        saved_model.read(tmp_path).arrays["resnet_v1_50/conv1/weights"], arrays["resnet_v1_50/conv1/weights"]
    )
    (tmp_path / "checkpoint").unlink()
    with pytest.raises(CheckpointError, match=r"one checkpoint.*ckpt-1.index, ckpt-2.index"):
        saved_model.read(tmp_path)


def test_two_networks_in_one_source_are_refused(tmp_path):
    arrays = {}
    for scope in ("left/resnet_v1_50", "right/resnet_v1_50"):
        arrays |= tf_sources.slim_arrays(1, (1,), (8,), scope=scope)
    path = tf_sources.write_checkpoint(tmp_path / "two", arrays)
    with pytest.raises(CheckpointError, match=r"one network, or say which. Received: networks under .*left.*right"):
        load.read_source(path)
    assert load.read_source(path, ignore=["right/*"]).spec.depths == (1,)


def test_what_is_left_over_is_named(tmp_path):
    arrays = tf_sources.slim_arrays(2)
    arrays["resnet_v2_50/block1/unit_1/bottleneck_v2/conv4/weights"] = np.zeros((1, 1, 2, 3), np.float32)
    path = tf_sources.write_checkpoint(tmp_path / "more", arrays)
    with pytest.raises(CheckpointError, match=r"tensors left over: resnet_v2_50/.*/conv4/weights \(1, 1, 2, 3\)"):
        load.read_source(path)
    other = tf_sources.write_checkpoint(tmp_path / "other", {"dense/kernel": np.zeros((2, 2), np.float32)})
    with pytest.raises(CheckpointError, match="must be named as in TF-Slim"):
        load.read_source(other)
