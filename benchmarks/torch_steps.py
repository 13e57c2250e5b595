"""A training step of resfit beside torch's and Keras' own, on the same layers, in turn in one run.

    python benchmarks/torch_steps.py [--cases suffix resnet18 head] [--batch 32] [--rounds 5] [--compile] [--layers]

- suffix: what learns of a ResNet-50 behind layer 140 (the last norm of stage 4, and stage 5), on stored maps.
- resnet18: a ResNet-18 whole, on pictures of 224 pixels.
- head: pyramid and head of resfit's light detector (128 channels, levels 3 to 6), on stored maps of 320 pixels.

All have fixed batch-norm statistics, AdamW and float32. Torch's are plain modules in channels-last layout, with
``--compile`` by ``torch.compile`` too. The best time of each counts, for on a shared machine the others measure the
neighbours. Each case ends in the ratios of torch's steps and Keras' to resfit's.

``--layers`` prints a table of resfit's step instead: what oneDNN's log says of each kind of operation, its share of the
step's time, and what share of the machine's fastest matrix product it reaches.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import torch
from step_study import peak
from torch import nn

CASES = ("suffix", "resnet18", "head")
HEAD_SIZE = 320

Steps = dict[str, Callable[[], Any]]


class Bottleneck(nn.Module):
    """A block of ResNet-50, stride in its 3x3 convolution."""

    def __init__(self, width: int, inner: int, outer: int = 0, stride: int = 1):
        super().__init__()
        outer = outer or width
        sizes = ((width, inner, 1, 1), (inner, inner, 3, stride), (inner, outer, 1, 1))
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, k, s, k // 2, bias=False) for a, b, k, s in sizes)
        self.norms = nn.ModuleList(nn.BatchNorm2d(row[1]) for row in sizes)
        self.shortcut: nn.Module = nn.Identity()
        if outer != width or stride > 1:
            self.shortcut = nn.Sequential(nn.Conv2d(width, outer, 1, stride, bias=False), nn.BatchNorm2d(outer))

    def forward(self, x: Any) -> Any:
        y = x
        for number, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            y = norm(convolution(y))
            if number < 2:
                y = torch.relu(y)
        return torch.relu(y + self.shortcut(x))


class Basic(nn.Module):
    """A block of ResNet-18."""

    def __init__(self, width: int, outer: int, stride: int):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(width, outer, 3, stride, 1, bias=False), nn.BatchNorm2d(outer), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(outer, outer, 3, 1, 1, bias=False), nn.BatchNorm2d(outer))
        self.shortcut: nn.Module = nn.Identity()
        if outer != width or stride > 1:
            self.shortcut = nn.Sequential(nn.Conv2d(width, outer, 1, stride, bias=False), nn.BatchNorm2d(outer))

    def forward(self, x: Any) -> Any:
        return torch.relu(self.second(self.first(x)) + self.shortcut(x))


class Head(nn.Module):
    """Pyramid and head of the light detector; says the mean of squares of its outputs."""

    def __init__(self, widths: tuple[int, ...], classes: int):
        super().__init__()
        self.laterals = nn.ModuleList(nn.Conv2d(width, 128, 1) for width in widths)
        self.outputs = nn.ModuleList(nn.Conv2d(128, 128, 3, padding=1) for _ in widths)
        self.extra = nn.Conv2d(128, 128, 3, 2, 1)
        self.branches = nn.ModuleList(nn.Sequential(*self._layer(), *self._layer()) for _ in range(2))
        self.says = nn.ModuleList(nn.Conv2d(128, count, 3, padding=1) for count in (classes, 4, 1))

    @staticmethod
    def _layer() -> tuple[nn.Module, ...]:
        return nn.Conv2d(128, 128, 3, padding=1, bias=False), nn.GroupNorm(32, 128), nn.ReLU()

    def forward(self, *maps: Any) -> Any:
        lateral = [layer(x) for layer, x in zip(self.laterals, maps, strict=True)]
        for level in range(len(lateral) - 2, -1, -1):
            lateral[level] = lateral[level] + nn.functional.interpolate(lateral[level + 1], scale_factor=2)
        levels = [layer(x) for layer, x in zip(self.outputs, lateral, strict=True)]
        levels.append(self.extra(levels[-1]))
        total = 0.0
        for kind, layer in enumerate(self.says):
            branch = self.branches[min(kind, 1)]
            total = total + (torch.cat([layer(branch(x)).flatten(2) for x in levels], 2) ** 2).mean()
        return total


def suffix(batch: int, compiled: bool) -> Steps:
    """Steps of the part behind layer 140 of a ResNet-50, stride in the 3x3 convolutions as torch has it."""
    import keras

    import resfit
    from resfit.training import boundary

    body = resfit.load("resnet50v1.5", weights=None, include_top=False, pooling="avg", seed=0)

    def part() -> Any:
        twin = boundary.copy(body)
        whole = keras.Model(twin.inputs[0], keras.layers.Dense(10, dtype="float32")(twin.outputs[0]))
        found = boundary.find(twin, 140)
        boundary.set_trainable(whole, found)
        return boundary.split(whole, found)[1]

    blocks = [Bottleneck(1024, 256), Bottleneck(1024, 512, 2048, 2), Bottleneck(2048, 512), Bottleneck(2048, 512)]
    for name, parameter in blocks[0].named_parameters():
        parameter.requires_grad_(name.startswith("norms.2"))
    network = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 10))
    return classifiers(part, network, np.random.default_rng(0).uniform(0, 1, (batch, 14, 14, 1024)), compiled)


def resnet18(batch: int, compiled: bool) -> Steps:
    """Steps of a whole ResNet-18."""
    import keras

    import resfit
    from resfit.training import boundary

    body = resfit.load("resnet18", weights=None, include_top=False, pooling="avg", seed=0, preprocess=False)

    def part() -> Any:
        twin = boundary.copy(body)
        return keras.Model(twin.inputs[0], keras.layers.Dense(10, dtype="float32")(twin.outputs[0]))

    rows: list[Any] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    width = 64
    for wide in (64, 128, 256, 512):
        rows += [Basic(width, wide, 1 if wide == 64 else 2), Basic(wide, wide, 1)]
        width = wide
    network = nn.Sequential(*rows, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))
    return classifiers(part, network, np.random.default_rng(0).normal(0, 1, (batch, 224, 224, 3)), compiled)


def classifiers(part: Callable[[], Any], network: Any, inputs: np.ndarray, compiled: bool) -> Steps:
    """Steps of a network with ten classes."""
    import keras
    import tensorflow as tf

    from resfit.training import bn_folding

    inputs = inputs.astype(np.float32)
    labels = np.arange(len(inputs)) % 10
    own, other = part(), part()
    program = bn_folding.fold(own, lambda _: True)
    rows, target = tf.constant(inputs), tf.constant(labels)

    def loss() -> Any:
        logits = program(rows, training=False)
        return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(target, logits))

    for layer in other._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False
    other.compile(keras.optimizers.AdamW(1e-4), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    wanted = torch.from_numpy(labels)
    said = [torch.from_numpy(inputs).permute(0, 3, 1, 2)]
    return {
        "resfit": resfit_step(loss, own.trainable_variables),
        "keras": lambda: other.train_on_batch(inputs, labels),
        **torch_steps(network, said, lambda y: nn.functional.cross_entropy(y, wanted), compiled),
    }


def head(batch: int, compiled: bool) -> Steps:
    """Steps of a light detector's pyramid and head; the loss is the mean of squares of what they say."""
    import keras
    import tensorflow as tf

    import resfit
    from resfit.networks.detection import build, catalog

    backbone = resfit.load("resnet50v1.5", weights=None, include_top=False, seed=0).architecture
    spec = catalog.light(backbone, classes=6)
    widths, outputs = (512, 1024, 2048), ("class_logits", "box_codes", "quality")
    chance = np.random.default_rng(0)
    sides = [HEAD_SIZE // stride for stride in (8, 16, 32)]
    maps = {
        name: chance.uniform(0, 1, (batch, side, side, width)).astype(np.float32)
        for name, side, width in zip(spec.taps.values(), sides, widths, strict=True)
    }
    model, other = build.build_on_maps(spec), build.build_on_maps(spec)
    inputs = {name: tf.constant(rows) for name, rows in maps.items()}

    def loss() -> Any:
        raw = model(inputs, training=False)
        return tf.add_n([tf.reduce_mean(raw[name] ** 2) for name in outputs])

    class Squares(keras.layers.Layer):
        def call(self, raw: Any) -> Any:
            return sum(keras.ops.mean(raw[name] ** 2, axis=(1, 2)) for name in outputs)

    trained = keras.Model(other.inputs, Squares()(other(other.inputs)))
    trained.compile(keras.optimizers.AdamW(1e-4), lambda _, y: y)
    nothing = np.zeros(batch, np.float32)
    tensors = [torch.from_numpy(rows).permute(0, 3, 1, 2) for rows in maps.values()]
    return {
        "resfit": resfit_step(loss, model.trainable_variables),
        "keras": lambda: trained.train_on_batch(list(maps.values()), nothing),
        **torch_steps(Head(widths, 6), tensors, lambda y: y, compiled),
    }


def resfit_step(loss: Callable[[], Any], variables: Any) -> Callable[[], Any]:
    """A step as resfit's trainers take it."""
    import tensorflow as tf

    from resfit.training import loop

    optimizer = loop.Optimizer(variables, "adamw")

    @tf.function(autograph=False)
    def step() -> Any:
        with tf.GradientTape() as tape:
            total = loss()
        optimizer.apply(tape.gradient(total, [v.value for v in variables]), 1e-4, 0)
        return total

    return lambda: step().numpy()


def torch_steps(network: Any, inputs: list[Any], loss: Callable[[Any], Any], compiled: bool) -> Steps:
    """Steps in channels-last layout, norms' statistics fixed."""
    network = network.to(memory_format=torch.channels_last).eval()
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], 1e-4)

    def made(program: Any) -> Callable[[], Any]:
        def step() -> float:
            optimizer.zero_grad(set_to_none=True)
            total = loss(program(*inputs))
            total.backward()
            optimizer.step()
            return total.item()

        return step

    found = {"torch": made(network)}
    return {**found, "torch compiled": made(torch.compile(network))} if compiled else found


def layers(case: str, batch: int) -> None:
    """Prints what each kind of operation takes of a step, from the log of oneDNN."""
    log = subprocess.run(
        [sys.executable, __file__, "--cases", case, "--batch", str(batch), "--logged"],
        env={**os.environ, "ONEDNN_VERBOSE": "1", "DNNL_VERBOSE": "1"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    best = float(re.search(r"^peak (\S+)$", log, re.M)[1])
    step = log.partition("begin step\n")[2].partition("end step ")
    whole = 1000 * float(step[2].split()[0])
    rows: dict[str, list[float]] = defaultdict(lambda: [0, 0.0, 0.0])
    for line in step[0].splitlines():
        cells = line.split(",")
        if "exec" not in cells or cells[0] != "onednn_verbose":
            continue
        at = cells.index("exec")
        kind, direction, problem, milliseconds = cells[at + 2], cells[at + 4], cells[-2], float(cells[-1])
        name = f"{kind} {direction.replace('_training', '')}"
        if kind == "convolution":
            sizes = {key: int(value) for key, value in re.findall(r"([a-z]+)(\d+)", problem)}
            name += f" {sizes['kh']}x{sizes['kw']}"
            count = sizes["mb"] * sizes["ic"] * sizes["oc"] * sizes["oh"] * sizes["ow"] * sizes["kh"] * sizes["kw"]
            rows[name][2] += 2.0 * count / sizes.get("g", 1)
        rows[name][0] += 1
        rows[name][1] += milliseconds
    together = sum(row[1] for row in rows.values())
    print(f"{case}: a step of {batch} images takes {whole:.0f} ms; fastest matrix product {best:.0f} GFLOP/s")
    print(f"{'operation':44} {'calls':>5} {'ms':>8} {'of step':>8} {'of peak':>8}")
    for name, (calls, milliseconds, count) in sorted(rows.items(), key=lambda row: -row[1][1]):
        share = f"{count / milliseconds / 1e6 / best:8.0%}" if count else ""
        print(f"{name:44} {calls:5.0f} {milliseconds:8.1f} {milliseconds / whole:8.0%} {share}")
    print(f"{'all; operations run beside one another':44} {'':5} {together:8.1f} {together / whole:8.0%}", flush=True)


def main() -> None:
    """Runs the cases one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--layers", action="store_true")
    parser.add_argument("--logged", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    for case in options.cases:
        if options.layers:
            layers(case, options.batch)
            continue
        steps = globals()[case](options.batch, options.compile)
        if options.logged:
            _logged(steps["resfit"])
            continue
        times: dict[str, list[float]] = {name: [] for name in steps}
        for step in steps.values():
            step()
            step()
        for _ in range(options.rounds):
            for name, step in steps.items():
                begin = time.perf_counter()
                step()
                times[name].append(time.perf_counter() - begin)
        for name, found in times.items():
            print(f"{case:9} {name:14} best {min(found):.3f} s, median {statistics.median(found):.3f}, "
                  f"worst {max(found):.3f}; {options.batch / min(found):.1f} images/s")  # fmt: skip
        for name in list(times)[1:]:
            print(
                f"{case:9} ratio, {name}'s step to resfit's: {min(times[name]) / min(times['resfit']):.2f}", flush=True
            )


def _logged(step: Callable[[], Any]) -> None:
    """One step between two marks in the log."""
    print(f"peak {peak()}", flush=True)
    for _ in range(3):
        step()
    print("begin step", flush=True)
    begin = time.perf_counter()
    step()
    print(f"\nend step {time.perf_counter() - begin}", flush=True)


if __name__ == "__main__":
    main()
