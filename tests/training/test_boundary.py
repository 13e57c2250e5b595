"""Where networks are cut: keras.applications' numbers, blocks, both kinds of networks, and the sum of the parts."""

from __future__ import annotations

import numpy as np
import pytest

from resfit.errors import ArgumentError
from resfit.training import boundary
from tests.numeric import images, randomize
from tests.training.networks import small_body


@pytest.fixture(scope="module")
def resnet50():
    import resfit

    return resfit.load("resnet50", weights=None, include_top=False, pooling="avg", seed=0)


def test_an_index_means_what_it_means_in_keras_applications(resnet50):
    import keras

    theirs = keras.applications.ResNet50(weights=None, include_top=False, pooling="avg")
    for index in (0, 7, 81, 140, 143, 170):
        found = boundary.find(resnet50, index)
        assert found.first == (theirs.layers[index].name if index else resnet50.layers[0].name)
        expected = [layer.name for layer in theirs.layers[index:] if layer.weights]
        assert list(found.learning) == expected
        assert boundary.resolve(resnet50, str(index)) == index
    assert boundary.resolve(resnet50, -10) == len(theirs.layers) - 10


@pytest.mark.parametrize(
    ("where", "index", "cut", "between"),
    [
        (140, 140, "conv4_block5_out", ("conv4_block6_1_conv", "conv4_block6_1_bn", "conv4_block6_2_conv",
                                        "conv4_block6_2_bn", "conv4_block6_3_conv")),
        ("stage5", 143, "conv4_block6_out", ()),
        ("stage4", 81, "conv3_block4_out", ()),
        ("stage2", 7, "pool1_pool", ()),
        ("conv5_block1_0_bn", 151, "conv4_block6_out", ("conv5_block1_1_conv", "conv5_block1_1_bn",
                                                        "conv5_block1_2_conv", "conv5_block1_2_bn",
                                                        "conv5_block1_0_conv", "conv5_block1_3_conv")),
        (1.0, 176, "avg_pool", ()),
        (0.0, 0, "", ()),
        ("stage1", 1, "", ()),
    ],
)  # fmt: skip
def test_the_cut_is_where_all_paths_cross(resnet50, where, index, cut, between):
    found = boundary.find(resnet50, where)
    assert (found.index, found.cut, found.between) == (index, cut, between)
    assert not set(found.learning) & set(found.frozen)
    assert len(found.learning) + len(found.frozen) == sum(1 for layer in resnet50.layers if layer.weights)


def test_a_preactivation_network_is_cut_before_the_block():
    import resfit

    body = resfit.load("resnet50v2", weights=None, include_top=False, pooling="avg")
    assert boundary.find(body, "stage5").cut == "conv4_block6_out"
    assert boundary.find(body, "conv4_block3_2_conv").cut == "conv4_block2_out"


PLAIN, V2 = {}, {"preactivation": True}
EVO = {"preactivation": True, "norm": "evo", "norm_groups": 8, "activation": "linear"}
MIXED = {
    "stage_blocks": ("bottleneck", "basic", "bottleneck"),
    "block_widths": ((16, 16), (16, 16), (20, 20), (24, 24)),
}
CUTS = ["stage2", "stage4", "conv3_block1_2_conv", "conv3_block2_1_conv", 0.6]


@pytest.mark.parametrize(
    ("options", "where"),
    [(options, where) for where in CUTS for options in (PLAIN, V2)]
    + [(EVO, "conv3_block2_1_conv"), (MIXED, "conv3_block2_1_conv")],
)
def test_the_parts_are_the_whole(options, where):
    body = boundary.copy(small_body(1, **options))
    found = boundary.find(body, where)
    first, second = boundary.split(body, found)
    pixels = images(3, 32, 32, 3).astype(np.float32)
    expected = np.asarray(body(pixels, training=False))
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(second(first(pixels, training=False), training=False), expected, atol=1e-6)
    before = {layer.name for layer in first.layers if layer.weights}
    behind = {layer.name for layer in second.layers if layer.weights}
    assert not before & behind
    assert before | set(found.between) == set(found.frozen)
    assert behind == set(found.learning) | set(found.between)
    # what is learned in the second part is learned in the whole
    randomize(second, seed=5)
    changed = np.asarray(body(pixels, training=False))
    assert np.abs(changed - expected).max() > 1e-2
    np.testing.assert_allclose(second(first(pixels, training=False), training=False), changed, atol=1e-6)


def test_a_copy_shares_nothing():
    body = small_body(2)
    before = [w.copy() for w in body.get_weights()]
    twin = boundary.copy(body, size=(32, 32))
    assert twin.input_shape == (None, 32, 32, 3)
    assert twin.architecture is body.architecture
    pixels = images(2, 32, 32, 3).astype(np.float32)
    np.testing.assert_allclose(twin(pixels), body(pixels), atol=1e-6)
    randomize(twin, 9)
    for one, two in zip(body.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, two)
    half = boundary.copy(body, dtype="mixed_bfloat16")
    assert half.get_layer("conv2_block1_1_conv").compute_dtype == "bfloat16"
    assert half.get_layer("conv2_block1_1_conv").kernel.dtype == "float32"


def test_blue_comes_first_where_the_contract_says_so(resnet50):
    """A contract with a flip of the channels, which is an operation and no layer."""
    twin = boundary.copy(resnet50)
    first, second = boundary.split(twin, boundary.find(twin, "stage3"))
    pixels = images(1, 64, 64, 3).astype(np.float32)
    np.testing.assert_allclose(second(first(pixels)), resnet50(pixels), rtol=1e-4, atol=1e-5)


def test_depth_is_counted_in_blocks():
    names = ["conv1_conv", "conv1_bn", "conv2_block1_0_conv", "conv2_block1_1_conv", "conv3_block1_1_bn", "predictions"]
    assert boundary.groups(names) == [3, 3, 2, 2, 1, 0]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("stage6", r"stage1, stage2.*Received: 'stage6'. Did you mean 'stage5'"),
        ("conv5_block1_out_", "Did you mean 'conv5_block1_out'"),
        (1.5, r"share must lie in \[0, 1\]. Received: 1.5"),
        (177, "index must lie in -176..176"),
        (None, "Received: None"),
        (True, "Received: True"),
    ],
)
def test_what_is_no_boundary(resnet50, where, message):
    with pytest.raises(ArgumentError, match=message):
        boundary.find(resnet50, where)


def test_a_layer_that_is_called_twice_cannot_be_cut():
    import keras

    inputs = keras.Input((4,))
    shared = keras.layers.Dense(4, name="shared")
    model = keras.Model(inputs, shared(shared(inputs)))
    with pytest.raises(ArgumentError, match="'shared', called 2 times"):
        boundary.find(model, 1)
