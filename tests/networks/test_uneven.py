"""EvoNorm against its definition, and specs of networks whose blocks differ."""

from __future__ import annotations

import numpy as np
import pytest

from resfit.errors import ArgumentError
from resfit.networks import catalog, plan
from resfit.networks.layers import EvoNormS0
from tests.numeric import randomize
from tests.torchside import library

RANDOM = np.random.default_rng(0)
BODY = catalog.get("resnet10_tiny").spec


@pytest.fixture(autouse=True)
def _forget_networks():
    """In place of the fixture for tests that build networks: none is built here."""


def evo_norm(x, groups, epsilon, gamma, beta, v):
    """The definition of EvoNorm-S0 in float64, one image and one group after the other."""
    x = np.asarray(x, np.float64)
    deviation = np.empty_like(x)
    for image, found in zip(x, deviation, strict=True):
        for channels in np.split(np.arange(x.shape[-1]), groups):
            found[..., channels] = np.sqrt(np.var(image[..., channels]) + epsilon)
    return x / (1 + np.exp(-x * v)) / deviation * gamma + beta


@pytest.mark.parametrize("groups", [1, 3, 6])
def test_evo_norm_is_its_definition(groups):
    images = RANDOM.normal(3, 2, size=(2, 5, 7, 6)).astype("float32")
    layer = EvoNormS0(groups, epsilon=0.1)
    layer.build(images.shape)
    layer.set_weights([RANDOM.normal(size=6) for _ in layer.weights])
    weights = {weight.name: weight.numpy() for weight in layer.weights}
    np.testing.assert_allclose(layer(images), evo_norm(images, groups, 0.1, **weights), rtol=1e-5, atol=1e-5)
    again = EvoNormS0.from_config(layer.get_config())
    again.build(images.shape)
    again.set_weights(layer.get_weights())
    np.testing.assert_array_equal(again(images), layer(images))


def test_evo_norm_loses_neither_large_values_nor_small_variances_in_half_precision():
    images = (60000 + 8000 * RANDOM.normal(size=(1, 6, 6, 8))).clip(0, 65504).astype("float16")
    images[..., 4:] = 1 + 0.01 * RANDOM.normal(size=(1, 6, 6, 4)).astype("float16")
    received = EvoNormS0(2, dtype="mixed_float16")(images)
    ones, zeros = np.ones(8), np.zeros(8)
    assert received.dtype == "float16"
    np.testing.assert_allclose(received, evo_norm(images, 2, 1e-5, ones, zeros, ones), rtol=2e-3)


def test_evo_norm_learns_as_timms_does():
    """The gradients of everything."""
    import tensorflow as tf

    torch, theirs = pytest.importorskip("torch"), library("timm").layers.EvoNorm2dS0(6, groups=3)
    images = RANDOM.normal(1, 2, size=(2, 5, 7, 6)).astype("float32")
    towards = RANDOM.normal(size=images.shape).astype("float32")
    layer = EvoNormS0(3)
    layer.build(images.shape)
    randomize(layer)
    for name, weight in (("weight", layer.gamma), ("bias", layer.beta), ("v", layer.v)):
        getattr(theirs, name).data = torch.from_numpy(weight.numpy())
    x, their_x = tf.Variable(images), torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).requires_grad_()
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(x) * towards)
    (theirs(their_x) * torch.from_numpy(towards.transpose(0, 3, 1, 2).copy())).sum().backward()
    found = tape.gradient(loss, [x, *(weight.value for weight in (layer.gamma, layer.beta, layer.v))])
    expected = [their_x.grad.numpy().transpose(0, 2, 3, 1), theirs.weight.grad, theirs.bias.grad, theirs.v.grad]
    for mine, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, np.asarray(other), rtol=1e-4, atol=1e-4)


def test_evo_norm_needs_groups_that_divide_the_channels():
    with pytest.raises(ArgumentError, match=r"groups=4\. Received: 6 channels"):
        EvoNormS0(4).build((None, None, None, 6))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm": "evo"}, "norm and activation in one"),
        ({"norm": "evo", "preactivation": True}, "Received: preactivation=True, activation='relu'"),
        ({"stage_blocks": ("basic", "bottleneck")}, "one value for each of the 4 stages"),
        ({"stage_blocks": ("basic",) * 4}, "not all alike"),
        ({"stage_blocks": ("bottleneck", "basic", "basic", "basic")}, "begin with block='basic'"),
        ({"stage_blocks": ("basic", "basic", "basic", "other")}, "stage_blocks must be of"),
        ({"block_widths": ((32, 32),)}, "for each of the 4 blocks"),
        ({"block_widths": ((32, 32), (64, 0), (160, 160), (320, 320))}, "two widths of at least 1"),
        ({"block_widths": ((32, 32), (64, 64), (160, 160), (320, 320))}, "must differ within a stage"),
        ({"block_widths": ((32, 32), (64, 64), (160, 160), (320, 321))}, "at the first blocks of stages"),
    ],
)
def test_specs_that_contradict_themselves(change, message):
    with pytest.raises(ArgumentError, match=message):
        BODY.replace(**change)


def test_widths_of_blocks_divide_by_groups():
    spec = catalog.get("resnext50_32x4d").spec.replace(
        depths=(2,), widths=(256,), inner_widths=(128,), stage_strides=(1,)
    )
    assert spec.replace(block_widths=((128, 128), (96, 64))).groups == 32
    with pytest.raises(ArgumentError, match="divide by groups=32"):
        spec.replace(block_widths=((128, 128), (96, 65)))


def test_the_dict_form_of_other_networks_is_that_of_before():
    """Digests and stored classifiers are made of it."""
    plain = BODY.to_dict()
    assert not {"stage_blocks", "block_widths"} & set(plain)
    assert BODY.from_dict(plain) == BODY
    told = catalog.get("ecaresnet50d_pruned").spec.to_dict()
    assert told["block_widths"][:2] == [[47, 18], [52, 22]]
    assert catalog.get("test_resnet").spec.to_dict()["stage_blocks"] == ["basic", "basic", "bottleneck", "basic"]


def test_the_plan_says_what_each_block_is():
    pruned = plan.blocks(catalog.get("ecaresnet101d_pruned").spec)
    assert (pruned[8].name, pruned[8].in_width, pruned[8].reduce_width, pruned[8].inner_width, pruned[8].width) == (
        "conv4_block2", 278, 239, 160, 278,
    )  # fmt: skip
    mixed = plan.blocks(catalog.get("test_resnet").spec)
    assert [(block.kind, block.convolutions) for block in mixed[1:3]] == [("basic", 2), ("bottleneck", 3)]
