"""States of Haiku's residual networks, their forward pass in plain operations, and the pickles that BYOL keeps them in.

Names and padding: ``haiku/_src/nets/resnet.py`` of google-deepmind/dm-haiku; the state: ``byol/byol_experiment.py`` and
``byol/utils/checkpointing.py`` of google-deepmind/deepmind-research, which pickle by dill's protocol 2.
"""

from __future__ import annotations

import contextlib
import pickle
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

Tree = dict[str, dict[str, np.ndarray]]
NET = "res_net50"


class _Made:
    """Pickled as a call of a function by a name, with arguments and perhaps a state."""

    def __init__(self, name: str, *arguments: Any) -> None:
        self._parts = name, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        name, arguments = self._parts
        return _stand_in(name), arguments


class _Instance:
    """Pickled as an instance of a class of named tuples, which dill writes out, or which stands under a name."""

    def __init__(self, made_by: Any, *values: Any) -> None:
        self.made_by, self.values = made_by, values


_STAND_INS: dict[str, Any] = {}


def _stand_in(name: str) -> Any:
    module, _, own = name.rpartition(".")
    if name not in _STAND_INS:
        _STAND_INS[name] = type(own, (), {"__module__": module, "__qualname__": own})
    return _STAND_INS[name]


class _Pickler(pickle._Pickler):  # type: ignore[name-defined]
    def save(self, obj: Any, *more: Any) -> Any:
        if isinstance(obj, type) and obj in _STAND_INS.values():  # dill, where it was imported, goes another way
            self.write(pickle.GLOBAL + f"{obj.__module__}\n{obj.__qualname__}\n".encode())
            return None
        if not isinstance(obj, _Instance):
            return super().save(obj, *more)
        self.save(obj.made_by)
        super().save(obj.values)
        self.write(pickle.NEWOBJ)
        return None


@contextlib.contextmanager
def _modules() -> Iterator[None]:
    """The modules that the names are looked for in while they are pickled; real ones keep their place."""
    added = []
    for name, value in _STAND_INS.items():
        parts = name.split(".")[:-1]
        for end in range(1, len(parts) + 1):
            module = ".".join(parts[:end])
            if module not in sys.modules:
                sys.modules[module] = types.ModuleType(module)
                added.append(module)
        vars(sys.modules[".".join(parts)]).setdefault(name.rpartition(".")[2], value)
    try:
        yield
    finally:
        for module in added:
            del sys.modules[module]


def write(path: Path, content: Any, protocol: int = 2) -> Path:
    """Pickles stand-ins under the names that they stand for."""
    with open(path, "wb") as file:
        _describe(content)
        with _modules():
            _Pickler(file, protocol).dump(content)
    return path


def _describe(content: Any) -> None:
    """Makes the stand-ins of everything that is to be pickled, so that their modules are there."""
    if isinstance(content, _Made):
        _stand_in(content._parts[0])
        _describe(list(content._parts[1]))
    elif isinstance(content, _Instance):
        _describe([content.made_by, *content.values])
    elif isinstance(content, Mapping):
        _describe(list(content.values()))
    elif isinstance(content, (list, tuple)):
        for item in content:
            _describe(item)


def called(name: str, *arguments: Any) -> Any:
    """What pickles as a call of a name."""
    return _Made(name, *arguments)


def byol(params: Tree, state: Tree, *, by_name: bool = False) -> dict[str, Any]:
    """BYOL's checkpoint around parameters and states: its target, its optimiser and its heads beside the network.

    Args:
        params: Of the online network.
        state: Likewise.
        by_name: Whether the class of the state is pickled by its name, in place of dill's way to write it out.
    """
    fields = ("online_params", "target_params", "online_state", "target_state", "opt_state")
    module = "byol.byol_experiment"
    made = _stand_in(f"{module}._ByolExperimentState")
    if not by_name:
        made = _Made("dill._dill._create_namedtuple", "_ByolExperimentState", fields, module)
    slots = _Made("dill._dill._create_namedtuple", "ScaleByLarsState", ("mu",), "byol.utils.optimizers")
    beside = {"projector/linear": {"w": np.ones((4, 3), np.float32), "b": np.ones(3, np.float32)}}
    beside |= {"predictor/linear_1": {"w": np.ones((3, 2), np.float32)}}
    other = {layer: {leaf: array[..., :1] + 1 for leaf, array in leaves.items()} for layer, leaves in params.items()}
    others = {layer: {leaf: np.array(array) * 2 for leaf, array in leaves.items()} for layer, leaves in state.items()}
    values = (
        _flat_map(params | beside),
        _flat_map(other),
        _flat_map(state),
        _flat_map(others),
        (_Instance(slots, _flat_map(other)), None),
    )
    return {"experiment_state": _Instance(made, *values), "step": 300_000, "rng": np.array([0, 1], np.uint32)}


def _flat_map(tree: Tree) -> Any:
    name = "haiku._src.data_structures.FlatMapping"
    return _Made(name, {layer: _Made(name, leaves) for layer, leaves in tree.items()})


def haiku_state(
    depths: Sequence[int] = (2, 1, 1, 2),
    channels: Sequence[int] = (32, 48, 64, 96),
    *,
    version: int = 1,
    bottleneck: bool = True,
    classes: int = 7,
    seed: int = 0,
) -> tuple[Tree, Tree]:
    """Parameters and states of Haiku's ``ResNet``, with numbers of their own."""
    random = np.random.default_rng(seed)
    params: Tree = {}
    state: Tree = {}

    def conv(name: str, kernel: int, before: int, after: int) -> None:
        scale = 1 / np.sqrt(kernel * kernel * before)
        params[name] = {"w": random.normal(0, scale, (kernel, kernel, before, after)).astype(np.float32)}

    def norm(name: str, width: int) -> None:
        shape = (1, 1, 1, width)
        scale, offset, mean, variance = (
            random.uniform(middle - spread, middle + spread, shape).astype(np.float32)
            for middle, spread in ((1, 0.4), (0, 0.2), (0, 0.2), (1, 0.4))
        )
        params[name] = {"scale": scale, "offset": offset}
        for kind, value in (("mean", mean), ("var", variance)):
            counter = np.array(12, np.int32)
            state[f"{name}/~/{kind}_ema"] = {"counter": counter, "hidden": value * 0.9, "average": value}

    root = f"{NET}/~/"
    conv(f"{root}initial_conv", 7, 3, 16)
    if version == 1:
        norm(f"{root}initial_batchnorm", 16)
    before = 16
    for stage, (depth, width) in enumerate(zip(depths, channels, strict=True)):
        for number in range(depth):
            block = f"{root}block_group_{stage}/~/block_{number}/~/"
            inner = width // 4 if bottleneck else width
            if number == 0:
                conv(f"{block}shortcut_conv", 1, before, width)
                if version == 1:
                    norm(f"{block}shortcut_batchnorm", width)
            plan = [(1, before, inner), (3, inner, inner), (1, inner, width)]
            for place, sizes in enumerate(plan if bottleneck else [(3, before, width), (3, width, width)]):
                conv(f"{block}conv_{place}", *sizes)
                norm(f"{block}batchnorm_{place}", sizes[2] if version == 1 else sizes[1])
            before = width
    if version == 2:
        norm(f"{root}final_batchnorm", before)
    if classes:
        head = {"w": random.normal(0, 0.2, (before, classes)), "b": random.normal(0, 0.2, classes)}
        params["classifier"] = {leaf: array.astype(np.float32) for leaf, array in head.items()}
    return params, state


def haiku_forward(images: Any, params: Tree, state: Tree, *, version: int = 1) -> np.ndarray:
    """Logits of shape ``(batch, classes)``, or features without a classifier: every padding is SAME."""

    def conv(x: Any, name: str, stride: int = 1) -> Any:
        return tf.nn.conv2d(x, params[name]["w"], stride, "SAME")

    def norm(x: Any, name: str) -> Any:
        mean, variance = (state[f"{name}/~/{kind}_ema"]["average"] for kind in ("mean", "var"))
        return (x - mean) * (params[name]["scale"] / np.sqrt(variance + 1e-5)) + params[name]["offset"]

    root = f"{NET}/~/"
    x = conv(images, f"{root}initial_conv", 2)
    if version == 1:
        x = tf.nn.relu(norm(x, f"{root}initial_batchnorm"))
    x = tf.nn.max_pool2d(x, 3, 2, "SAME")
    blocks = sorted({name.rpartition("/")[0] for name in params if "/block_" in name})
    for block in blocks:
        last = max(int(name[-1]) for name in params if name.startswith(f"{block}/conv_"))
        first = block.endswith("block_0/~")
        stride = 2 if first and "block_group_0" not in block else 1
        entering = x
        for place in range(last + 1):
            step = stride if place == (1 if last == 2 else 0) else 1
            if version == 1:
                x = norm(conv(x, f"{block}/conv_{place}", step), f"{block}/batchnorm_{place}")
                x = tf.nn.relu(x) if place < last else x
                continue
            x = tf.nn.relu(norm(x, f"{block}/batchnorm_{place}"))
            if place == 0 and first:
                entering = conv(x, f"{block}/shortcut_conv", stride)
            x = conv(x, f"{block}/conv_{place}", step)
        if version == 1 and first:
            entering = norm(conv(entering, f"{block}/shortcut_conv", stride), f"{block}/shortcut_batchnorm")
        x = x + entering if version == 2 else tf.nn.relu(x + entering)
    if version == 2:
        x = tf.nn.relu(norm(x, f"{root}final_batchnorm"))
    x = tf.reduce_mean(x, (1, 2))
    if "classifier" not in params:
        return np.asarray(x)
    return np.asarray(x @ params["classifier"]["w"] + params["classifier"]["b"])
