"""A convolution whose gradient to the kernel is a matrix product where that is the faster way.

TensorFlow's own kernel for that gradient reaches a fraction of the processor's speed where maps are small and channels
many: on a processor with matrix units (AMX) 72 billion operations a second for a 1x1 convolution from 512 to 2048
channels on 7x7 maps in bfloat16, against 518 as a matrix product. In a training step of ResNet-50's last stage it took
two thirds of the time. ``benchmarks/step_study.py`` prints what is gained.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from resfit import devices

# positions of a map up to which a kernel larger than 1x1 is worth a copy of the map for each of its positions
_SMALL_MAP = 64


def convolve(inputs: Any, kernel: Any, bias: Any, *, strides: tuple[int, int], padding: str, relu: bool) -> Any:
    """Returns ``conv(inputs, kernel) + bias``, rectified if asked for, with gradients to all three.

    Args:
        inputs: Maps ``(batch, height, width, channels)``.
        kernel: ``(height, width, channels, filters)``, of the same dtype.
        bias: ``(filters,)``, of the same dtype.
        strides: Along height and width.
        padding: ``"valid"`` or ``"same"``.
        relu: Whether a ReLU follows.
    """
    if kernel.shape[:2] == (1, 1) and max(strides) > 1:  # what a stride leaves out has neither values nor gradients
        inputs, strides = inputs[:, :: strides[0], :: strides[1]], (1, 1)
    steps, place = [1, *strides, 1], padding.upper()
    as_product = _as_product(inputs, kernel, strides, padding)

    @tf.custom_gradient
    def run(inputs: Any, kernel: Any, bias: Any) -> Any:
        outputs = tf.nn.bias_add(tf.nn.conv2d(inputs, kernel, steps, place), bias)
        if relu:
            outputs = tf.nn.relu(outputs)

        def gradient(upstream: Any) -> tuple[Any, Any, Any]:
            if relu:
                upstream = tf.raw_ops.ReluGrad(gradients=upstream, features=outputs)
            to_inputs = tf.raw_ops.Conv2DBackpropInput(
                input_sizes=tf.shape(inputs), filter=kernel, out_backprop=upstream, strides=steps, padding=place
            )
            if as_product:
                to_kernel = _product(inputs, kernel.shape, upstream)
            else:
                to_kernel = tf.raw_ops.Conv2DBackpropFilter(
                    input=inputs, filter_sizes=kernel.shape, out_backprop=upstream, strides=steps, padding=place
                )
            # BiasAddGrad adds up in bfloat16: off by 6 % over 1,568 positions, where this is off by 0.2 %
            return to_inputs, to_kernel, tf.reduce_sum(upstream, axis=(0, 1, 2))

        return outputs, gradient

    return run(inputs, kernel, bias)


def _as_product(inputs: Any, kernel: Any, strides: tuple[int, int], padding: str) -> bool:
    """Whether the gradient to the kernel is faster as a matrix product."""
    if inputs.dtype != tf.bfloat16 or devices.current().kind == "gpu":
        return False  # float32 gains nothing, and a GPU has better kernels
    height, width = kernel.shape[:2]
    if (height, width) == (1, 1):
        return True
    area = inputs.shape[1:3].num_elements()
    odd = height % 2 == 1 and width % 2 == 1
    return bool(area and area <= _SMALL_MAP and odd and padding == "same" and tuple(strides) == (1, 1))


def _product(inputs: Any, shape: Any, upstream: Any) -> Any:
    """Returns the sum over all positions of input times gradient, for a convolution without strides."""
    height, width, channels, filters = shape
    if (height, width) != (1, 1):
        rows, columns = inputs.shape[1:3]
        around = tf.pad(inputs, [[0, 0], [height // 2] * 2, [width // 2] * 2, [0, 0]])
        windows = [around[:, y : y + rows, x : x + columns] for y in range(height) for x in range(width)]
        inputs = tf.concat(windows, axis=-1)
    flat = tf.reshape(inputs, (-1, height * width * channels))
    return tf.reshape(tf.matmul(flat, tf.reshape(upstream, (-1, filters)), transpose_a=True), shape)
