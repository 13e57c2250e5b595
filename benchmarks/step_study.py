"""What bounds a training step on this processor, and what was gained on the part of ResNet-50 behind a boundary.

    python benchmarks/step_study.py [--trainable-from 140] [--batch 32] [--rounds 5] [--variants NAME ...]

All variants take the same step in turn, in one process, several times; the best time of each counts, for on a shared
machine the others measure the neighbours. Beside each stands how many billions of operations a second that is, and the
share of the fastest matrix product of the machine. Prints one ratio: Keras' step on the part behind the boundary
against resfit's.

- keras whole: ``train_on_batch`` of the whole network, the layers before the boundary frozen.
- keras suffix: ``train_on_batch`` of the part behind the boundary, on stored feature maps.
- plain: a step of one's own on the same part, batch norms as Keras computes them.
- folded: batch norms with fixed statistics folded into their convolutions (what resfit does).
- matmul: folded, 1x1 convolutions as matrix products.
- xla: plain, compiled by XLA.
- bfloat16: folded, in bfloat16 with float32 weights, which a recipe chooses on a processor with matrix units; gradients
  of kernels are matrix products there (resfit.training.convolution).
- bfloat16 library: the same with TensorFlow's own gradients.
- forward: folded, without gradients.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np


def peak() -> float:
    """Billions of operations a second in the fastest matrix product."""
    import tensorflow as tf

    side = 2048
    left = tf.random.normal((side, side))
    product = tf.function(lambda x: tf.reduce_sum((x @ x)[0]), autograph=False)
    times = []
    for _ in range(10):
        begin = time.perf_counter()
        product(left).numpy()
        times.append(time.perf_counter() - begin)
    return 2 * side**3 / min(times) / 1e9


def operations(model: Any, learning: set[str], macs: dict[str, int]) -> tuple[float, float]:
    """Operations of one image forwards; and backwards, to the weights that learn and to the inputs behind them."""
    from resfit.training import boundary

    forward = backward = 0.0
    reached: set[str] = set()  # layers behind something that learns
    for name, parents in boundary.parents(model).items():
        behind = any(parent in reached for parent in parents)
        count = 2.0 * macs.get(name, 0)
        forward += count
        backward += count * (name in learning) + count * behind
        if behind or name in learning:
            reached.add(name)
    return forward, backward


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trainable-from", type=int, default=140)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--variants", nargs="*")
    arguments = parser.parse_args()

    import keras
    import tensorflow as tf

    import resfit
    from resfit.networks import arithmetic
    from resfit.training import bn_folding, boundary, convolution, loop

    body = resfit.load("resnet50", weights=None, include_top=False, pooling="avg", seed=0)
    images = np.random.default_rng(0).uniform(0, 255, (arguments.batch, 224, 224, 3)).astype(np.float32)
    labels = np.arange(arguments.batch) % 10

    def network(dtype: str | None = None) -> tuple[Any, Any, Any, set[str]]:
        """A fresh whole, its boundary, the part behind it, and the layers that learn."""
        twin = boundary.copy(body, dtype=dtype)
        head = keras.layers.Dense(10, name="predictions", dtype="float32")
        whole = keras.Model(twin.inputs[0], head(twin.outputs[0]))
        found = boundary.find(twin, arguments.trainable_from)
        boundary.set_trainable(whole, found)
        first, second = boundary.split(whole, found)
        return whole, first, second, {*found.learning, "predictions"}

    _, first, second, learning = network()
    maps = tf.constant(first(images, training=False) if first is not None else images)
    target = tf.constant(labels)
    counted = arithmetic.count(body.architecture, input_size=(224, 224), include_top=False)
    macs = {layer.name: layer.macs for layer in counted.layers}
    forward, backward = operations(second, learning, macs)
    all_forward = 2.0 * sum(macs.values())

    def own(program: Any, second: Any, *, jit: bool = False, gradients: bool = True) -> Callable[[], Any]:
        learned = second.trainable_variables
        optimizer = loop.Optimizer(learned, "adam")

        @tf.function(autograph=False, jit_compile=jit)
        def step(inputs: Any, labels: Any) -> Any:
            with tf.GradientTape() as tape:
                logits = program(inputs, training=False)
                loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
            if gradients:
                found = tape.gradient(loss, [v.value for v in learned])
                if jit:
                    for variable, gradient in zip(learned, found, strict=True):
                        variable.value.assign_sub(1e-4 * gradient)
                else:
                    optimizer.apply(found, 1e-4, 0)
            return loss

        return lambda: step(maps, target).numpy()

    def keras_step(model: Any, inputs: Any) -> Callable[[], Any]:
        model.compile(keras.optimizers.Adam(1e-4), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        return lambda: model.train_on_batch(inputs, labels)

    def matmul() -> Callable[[], Any]:
        _, _, second, _ = network()
        return own(as_products(bn_folding.fold(second, lambda _: True)), second)

    def folded(dtype: str | None = None, **options: Any) -> Callable[[], Any]:
        _, _, second, _ = network(dtype)
        return own(bn_folding.fold(second, lambda _: True), second, **options)

    def library() -> Callable[[], Any]:
        def convolve(inputs: Any, kernel: Any, bias: Any, *, strides: Any, padding: str, relu: bool) -> Any:
            outputs = tf.nn.bias_add(tf.nn.conv2d(inputs, kernel, strides, padding.upper()), bias)
            return tf.nn.relu(outputs) if relu else outputs

        own_gradient, convolution.convolve = convolution.convolve, convolve
        try:
            step = folded("mixed_bfloat16")
            step()  # traced with it
            return step
        finally:
            convolution.convolve = own_gradient

    makers: dict[str, tuple[Callable[[], Callable[[], Any]], float]] = {
        "keras whole": (lambda: keras_step(network()[0], images), all_forward + backward),
        "keras suffix": (lambda: keras_step(network()[2], maps), forward + backward),
        "plain": (lambda: own(second, second), forward + backward),
        "folded": (folded, forward + backward),
        "bfloat16 library": (library, forward + backward),
        "bfloat16": (lambda: folded("mixed_bfloat16"), forward + backward),
        "matmul": (matmul, forward + backward),
        "xla": (lambda: own(second, second, jit=True), forward + backward),
        "forward": (lambda: folded(gradients=False), forward),
    }
    chosen = arguments.variants or [name for name in makers if name != "xla"]
    steps = {}
    for name in chosen:
        steps[name] = makers[name][0]()
        steps[name]()
        steps[name]()
        print(f"ready: {name}", flush=True)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(arguments.rounds):
        for name, step in steps.items():
            begin = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - begin)
    most = peak()
    print(f"fastest matrix product: {most:.0f} GFLOP/s; part behind the boundary: {forward / 1e9:.2f} GFLOP an image "
          f"forwards, {backward / 1e9:.2f} backwards; whole forwards {all_forward / 1e9:.2f}")  # fmt: skip
    print(f"{'':16} {'seconds':>8} {'median':>8} {'images/s':>9} {'GFLOP/s':>8} {'of peak':>8}")
    for name in chosen:
        best = min(times[name])
        speed = arguments.batch * makers[name][1] / best / 1e9
        print(f"{name:16} {best:8.3f} {np.median(times[name]):8.3f} {arguments.batch / best:9.1f} {speed:8.0f} "
              f"{speed / most:8.0%}")  # fmt: skip
    for name in ("folded", "bfloat16"):
        if {"keras suffix", name} <= set(chosen):
            print(f"ratio, Keras' step on the part behind the boundary to {name}: "
                  f"{min(times['keras suffix']) / min(times[name]):.2f}")  # fmt: skip


def as_products(model: Any) -> Any:
    """Returns a folded model whose 1x1 convolutions are matrix products."""
    import keras
    import tensorflow as tf

    from resfit.training.bn_folding import FoldedConvolution

    class Product(keras.layers.Layer):
        def __init__(self, folded: Any):
            super().__init__(name=f"{folded.name}_product")
            self.folded = folded
            self.built = True

        def call(self, inputs: Any) -> Any:
            conv, norm = self.folded.convolution, self.folded.norm
            scale = tf.math.rsqrt(norm.moving_variance.value + norm.epsilon) * norm.gamma.value
            shift = (conv.bias.value - norm.moving_mean.value) * scale + norm.beta.value
            stride = conv.strides[0]
            x = inputs[:, ::stride, ::stride] if stride > 1 else inputs
            shape = tf.shape(x)
            kernel = conv.kernel.value[0, 0] * scale
            y = tf.nn.bias_add(tf.matmul(tf.reshape(x, (-1, x.shape[-1])), kernel), shift)
            y = tf.reshape(y, (shape[0], shape[1], shape[2], kernel.shape[-1]))
            return tf.nn.relu(y) if self.folded.relu else y

        def compute_output_shape(self, input_shape: Any) -> Any:
            return self.folded.compute_output_shape(input_shape)

    def call(operation: Any, *inputs: Any, **options: Any) -> Any:
        if isinstance(operation, FoldedConvolution) and operation.convolution.kernel_size == (1, 1):
            return Product(operation)(*inputs, **options)
        return operation(*inputs, **options)

    return keras.models.clone_model(model, clone_function=lambda layer: layer, call_function=call)


if __name__ == "__main__":
    main()
