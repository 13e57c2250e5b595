"""The convolution with a gradient of its own: the same numbers as TensorFlow's."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from resfit.training import convolution
from tests.numeric import relative_error

CASES = [
    (1, 7, 1, "valid"),
    (1, 9, 2, "valid"),
    (1, 8, 2, "same"),
    (3, 7, 1, "same"),
    (5, 6, 1, "same"),
    (3, 7, 1, "valid"),
    (3, 9, 2, "same"),
    (3, 12, 1, "same"),
]


def operands(size, side, seed=0):
    random = np.random.default_rng(seed)
    shapes = ((4, side, side, 16), (size, size, 16, 24), (24,))
    return [tf.constant(random.normal(size=shape), tf.float32) for shape in shapes]


def gradients(function, values, dtype):
    with tf.GradientTape() as tape:
        tape.watch(values)
        outputs = tf.cast(function(*(tf.cast(value, dtype) for value in values)), tf.float32)
        weights = tf.constant(np.random.default_rng(1).normal(size=outputs.shape), tf.float32)
        loss = tf.reduce_sum(outputs * weights)
    return outputs, *tape.gradient(loss, values)


@pytest.mark.parametrize(("size", "side", "stride", "padding"), CASES)
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_values_and_gradients_are_tensorflows(size, side, stride, padding, relu, dtype):
    def plain(inputs, kernel, bias):
        outputs = tf.nn.bias_add(tf.nn.conv2d(inputs, kernel, stride, padding.upper()), bias)
        return tf.nn.relu(outputs) if relu else outputs

    def ours(inputs, kernel, bias):
        return convolution.convolve(inputs, kernel, bias, strides=(stride, stride), padding=padding, relu=relu)

    values = operands(size, side)
    if dtype == "bfloat16":  # both sides round the same operands; what is left is the order of the sums
        values = [tf.cast(tf.cast(value, tf.bfloat16), tf.float32) for value in values]
    expected = tf.function(lambda: gradients(plain, values, dtype))()
    received = tf.function(lambda: gradients(ours, values, dtype))()
    exact = tf.function(lambda: gradients(plain, values, "float32"))()
    for name, one, two, three in zip(("outputs", "inputs", "kernel", "bias"), received, expected, exact, strict=True):
        if dtype == "float32":
            assert relative_error(one.numpy(), two.numpy()) < 1e-5, name
        elif name != "bias":  # TensorFlow's is far off there; see below
            # on processors without bfloat16 instructions TensorFlow itself sums in bfloat16, which is coarser
            theirs = relative_error(two.numpy(), three.numpy())
            assert relative_error(one.numpy(), three.numpy()) < max(1e-2, 1.2 * theirs), name


def test_the_gradient_of_the_bias_is_right_in_bfloat16():
    inputs, kernel, bias = (tf.cast(value, tf.bfloat16) for value in operands(1, 28))
    upstream = tf.cast(tf.random.stateless_normal((4, 28, 28, 24), (0, 1)), tf.bfloat16)
    with tf.GradientTape() as tape:
        tape.watch(bias)
        outputs = convolution.convolve(inputs, kernel, bias, strides=(1, 1), padding="valid", relu=False)
    received = tape.gradient(outputs, bias, output_gradients=upstream)
    exact = tf.cast(upstream, tf.float64).numpy().sum(axis=(0, 1, 2))
    assert relative_error(tf.cast(received, tf.float64).numpy(), exact) < 4e-3


@pytest.mark.parametrize("size", [1, 3, 5])
def test_the_product_is_the_kernels_gradient(size):
    inputs, kernel, _ = operands(size, 7)
    upstream = tf.constant(np.random.default_rng(2).normal(size=(4, 7, 7, 24)), tf.float32)
    expected = tf.raw_ops.Conv2DBackpropFilter(
        input=inputs, filter_sizes=kernel.shape, out_backprop=upstream, strides=[1, 1, 1, 1], padding="SAME"
    )
    received = convolution._product(inputs, kernel.shape, upstream)
    assert relative_error(received.numpy(), expected.numpy()) < 1e-5


def test_where_the_product_is_taken():
    def chosen(side, size, stride=1, padding="same", dtype=tf.bfloat16):
        maps, kernel = tf.zeros((1, side, side, 2), dtype), tf.zeros((size, size, 2, 2), dtype)
        return convolution._as_product(maps, kernel, (stride, stride), padding)

    assert chosen(56, 1)
    assert chosen(7, 3)
    assert not chosen(14, 3)
    assert not chosen(7, 3, stride=2)
    assert not chosen(7, 3, padding="valid")
    assert not chosen(7, 2)
    assert not chosen(7, 3, dtype=tf.float32)
