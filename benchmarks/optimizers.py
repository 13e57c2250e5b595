"""A step of resfit's optimisers against those of Keras, both in turn in one run; prints the ratio of the times.

    python benchmarks/optimizers.py [--model resnet18] [--rounds 20]

The same gradients for all variables of a network, inside one graph each. Above 1 resfit's step is faster. That both
take the same steps is a test (tests/training/test_trainer.py).
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

import resfit
from resfit.training import loop


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--rounds", type=int, default=20)
    given = parser.parse_args()
    network = resfit.load(given.model, weights=None)
    learned = network.trainable_variables
    random = np.random.default_rng(0)
    gradients = [tf.constant(random.standard_normal(v.shape, np.float32)) for v in learned]
    for name in ("adamw", "sgd"):
        own = loop.Optimizer(learned, name, weight_decay=0.05)
        other = {
            "adamw": lambda: keras.optimizers.AdamW(1e-4, weight_decay=0.05),
            "sgd": lambda: keras.optimizers.SGD(1e-4, momentum=0.9, nesterov=True, weight_decay=0.05),
        }[name]()
        other.build(learned)

        @tf.function(autograph=False)
        def step(own: loop.Optimizer = own) -> None:
            own.apply(gradients, 1e-4, 0)

        @tf.function(autograph=False)
        def keras_step(other: keras.optimizers.Optimizer = other) -> None:
            other.apply(gradients)

        steps = (step, keras_step)
        for work in steps:
            work()
        seconds: tuple[list[float], list[float]] = ([], [])
        for number in range(2 * given.rounds):
            for side in (0, 1) if number % 2 else (1, 0):
                begin = time.perf_counter()
                steps[side]()
                seconds[side].append(time.perf_counter() - begin)
        first, second = (1000 * min(values) for values in seconds)
        ratios = [b / a for a, b in zip(*seconds, strict=True)]
        print(f"{name}: resfit {first:.1f} ms, Keras {second:.1f} ms  {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
