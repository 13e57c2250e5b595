"""Parameters, MACs, strides and receptive fields from the spec alone."""

from __future__ import annotations

import numpy as np
import pytest

from resfit.errors import ArgumentError
from resfit.networks import arithmetic, catalog
from resfit.networks.build import build
from resfit.networks.spec import ArchitectureSpec, StemConv


def test_stages_add_up_and_stand_at_the_right_strides():
    counted = arithmetic.count(catalog.get("resnet50v1.5").spec)
    assert [(s.name, s.blocks, s.shape, s.stride) for s in counted.stages] == [
        ("stage1", 0, (56, 56, 64), 4),
        ("stage2", 3, (56, 56, 256), 4),
        ("stage3", 4, (28, 28, 512), 8),
        ("stage4", 6, (14, 14, 1024), 16),
        ("stage5", 3, (7, 7, 2048), 32),
        ("head", 0, (1000,), 0),
    ]
    assert sum(stage.macs for stage in counted.stages) == counted.macs
    assert sum(stage.parameters for stage in counted.stages) == counted.parameters
    assert counted.taps == {"stage1": 2, "stage2": 4, "stage3": 8, "stage4": 16, "stage5": 32}


@pytest.mark.parametrize(
    ("name", "field"),
    # Araujo, Norris and Sim, "Computing Receptive Fields of Convolutional Neural Networks", Distill 2019
    [("resnet50v2", 483), ("resnet101v2", 1027), ("resnet152v2", 1507)],
)
def test_receptive_field_is_the_published_one(name, field):
    assert arithmetic.count(catalog.get(name).spec).receptive_field == field


def test_receptive_field_is_where_the_gradient_is():
    """One value of the last map depends on a square of exactly that side."""
    import tensorflow as tf

    spec = ArchitectureSpec(
        block="basic",
        depths=(1, 1),
        widths=(16, 32),
        inner_widths=(16, 32),
        stem=(StemConv(16, 3, 2),),
        stem_pool="none",
        stage_strides=(1, 2),
    )
    field = arithmetic.count(spec).receptive_field
    model = build(spec.replace(activation="linear"), include_top=False)
    model.trainable = False
    images = tf.Variable(np.random.default_rng(0).normal(size=(1, 64, 64, 3)).astype("float32"))
    with tf.GradientTape() as tape:
        value = tf.reduce_sum(model(images, training=False)[0, 8, 8])
    touched = np.flatnonzero(np.abs(tape.gradient(value, images).numpy()).sum(axis=(0, 2, 3)))
    assert touched[-1] - touched[0] + 1 == field


def test_output_stride_keeps_parameters_and_raises_macs():
    spec = catalog.get("resnet50v1.5").spec
    dense = spec.replace(output_stride=8)
    assert arithmetic.count(dense).parameters == arithmetic.count(spec).parameters
    assert arithmetic.count(dense).macs > 3 * arithmetic.count(spec).macs
    assert arithmetic.count(dense).taps["stage5"] == 8


def test_output_stride_below_the_stem_is_refused():
    # the stem of ResNet-RS alone reduces by four, so eight is the least that the choices allow and it works
    assert arithmetic.count(catalog.get("resnetrs50").spec.replace(output_stride=8)).taps["stage5"] == 8
    slow = ArchitectureSpec(
        depths=(1,),
        widths=(8,),
        inner_widths=(8,),
        stem=(StemConv(8, 3, 8),),
        stage_strides=(1,),
        output_stride=8,
    )
    with pytest.raises(ArgumentError, match="output_stride"):
        arithmetic.count(slow)
