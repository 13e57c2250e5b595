"""Checkpoints of real size and no content, in the layouts of their publishers.

Names and shapes are written down here a second time, apart from the tables that read them; the files are sparse, or
as small as their format lets them be.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from resfit.networks.plan import BlockPlan, blocks
from resfit.networks.spec import ArchitectureSpec
from resfit.weights.registry import CheckpointInfo

Shape = tuple[int, ...]
#: Layers in the order of the forward pass: canonical name to the shapes of its variables in Keras' axes.
Layers = dict[str, dict[str, Shape]]


def network(spec: ArchitectureSpec, *, include_top: bool = True) -> Layers:
    """Names and shapes of a network's weights, read off its spec.

    Args:
        spec: The network.
        include_top: Whether the classifier is among them.
    """
    found: Layers = {}
    every_bias = spec.conv_bias == "all"

    def conv(name: str, kernel: int, entering: int, leaving: int, *, groups: int = 1, normalized: bool = True) -> None:
        found[f"{name}_conv"] = {"kernel": (kernel, kernel, entering // groups, leaving)}
        if every_bias or (spec.conv_bias == "unnormalized" and not normalized):
            found[f"{name}_conv"]["bias"] = (leaving,)

    def norm(name: str, width: int) -> None:
        suffix, *more = {"batch": ("bn", "moving_mean", "moving_variance"), "group": ("gn",), "evo": ("evo", "v")}[
            spec.norm
        ]
        found[f"{name}_{suffix}"] = dict.fromkeys(("gamma", "beta", *more), (width,))

    width = spec.in_channels
    for number, stem in enumerate(spec.stem, start=1):
        name = "conv1" if len(spec.stem) == 1 else f"conv1_{number}"
        last = spec.preactivation and number == len(spec.stem)
        conv(name, stem.kernel, width, stem.width, normalized=not last)
        if not last:
            norm(name, stem.width)
        width = stem.width
    if spec.stem_pool == "conv":
        conv("pool1", 3, width, width)
        norm("pool1", width)
    for plan in blocks(spec):
        _block(spec, plan, conv, norm, found)
    width = spec.widths[-1]
    if spec.preactivation:
        norm("post", width)
    if include_top:
        found["predictions"] = {"kernel": (width, spec.classes), "bias": (spec.classes,)}
    return found


def _block(spec: ArchitectureSpec, plan: BlockPlan, conv: Any, norm: Any, found: Layers) -> None:
    after = not spec.preactivation
    if spec.preactivation:
        norm(f"{plan.name}_preact", plan.in_width)
    if plan.changes_shape and spec.shortcut != "pad":
        conv(f"{plan.name}_0", spec.shortcut_kernel if plan.reduces else 1, plan.in_width, plan.width, normalized=after)
        if after:
            norm(f"{plan.name}_0", plan.width)
    sizes = [(3, plan.in_width, plan.inner_width, 1), (3, plan.inner_width, plan.width, 1)]
    if plan.kind == "bottleneck":
        sizes = [
            (1, plan.in_width, plan.reduce_width, 1),
            (3, plan.reduce_width, plan.inner_width, spec.groups),
            (1, plan.inner_width, plan.width, 1),
        ]
    for number, (kernel, entering, leaving, groups) in enumerate(sizes, start=1):
        normalized = after or number < len(sizes)
        conv(f"{plan.name}_{number}", kernel, entering, leaving, groups=groups, normalized=normalized)
        if normalized:
            norm(f"{plan.name}_{number}", leaving)
    if spec.attention_sizes is None:
        return
    size, name = spec.attention_sizes[plan.stage], f"{plan.name}_{spec.attention}"
    if spec.attention == "eca":
        found[f"{name}_conv"] = {"kernel": (size, 1, 1)}
        return
    found[f"{name}_reduce_conv"] = {"kernel": (1, 1, plan.width, size), "bias": (size,)}
    found[f"{name}_expand_conv"] = {"kernel": (1, 1, size, plan.width), "bias": (plan.width,)}


# Names of torch's libraries.

_VARIABLES = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
    "v": "v",
}


def torch_names(layout: str, spec: ArchitectureSpec, layers: Layers) -> dict[str, Shape]:
    """The same weights as a library of torch names and shapes them, with its counters.

    Args:
        layout: ``"timm"``, ``"timm-v2"``, ``"transformers"``, ``"cifar"``, ``"clip"`` or ``"sequential"``.
        spec: The network.
        layers: What :func:`network` returned.
    """
    named = {
        **{"timm": _timm, "cifar": _timm, "clip": _clip, "timm-v2": _timm_v2},
        **{"transformers": _transformers, "sequential": _sequential},
    }[layout]
    found: dict[str, Shape] = {}
    for layer, variables in layers.items():
        name = {"cifar": "linear"}.get(layout) if layer == "predictions" else None
        name = name or named(layer, spec)
        for variable, shape in variables.items():
            axes = {4: (3, 2, 0, 1), 3: (2, 1, 0), 2: (1, 0), 1: (0,)}[len(shape)]
            turned = tuple(shape[axis] for axis in axes)
            if layout == "timm-v2" and layer == "predictions" and len(turned) == 2:
                turned = (*turned, 1, 1)
            found[f"{name}.{_VARIABLES[variable]}"] = turned
        if "moving_mean" in variables:
            found[f"{name}.num_batches_tracked"] = ()
    return found


def _parts(layer: str) -> tuple[int, int, str]:
    stage, block, part = layer.removeprefix("conv").replace("_block", " ").replace("_", " ", 1).split(" ", 2)
    return int(stage), int(block), part


def _timm(layer: str, spec: ArchitectureSpec) -> str:
    deep = {"conv1_1_conv": "conv1.0", "conv1_1_bn": "conv1.1", "conv1_2_conv": "conv1.3", "conv1_2_bn": "conv1.4"}
    plain = {
        "conv1_conv": "conv1",
        "conv1_3_conv": "conv1.6",
        "pool1_conv": "maxpool.0",
        "pool1_bn": "maxpool.1",
        "predictions": "fc",
        **dict.fromkeys(("conv1_bn", "conv1_gn", "conv1_3_bn", "conv1_3_gn"), "bn1"),
        **deep,
    }
    if layer in plain:
        return plain[layer]
    stage, block, part = _parts(layer)
    first = 1 if spec.shortcut == "avgpool" else 0
    inside = {
        "0_conv": f"downsample.{first}",
        "0_bn": f"downsample.{first + 1}",
        "0_gn": f"downsample.{first + 1}",
        "se_reduce_conv": "se.fc1",
        "se_expand_conv": "se.fc2",
        "eca_conv": "se.conv",
    }
    number, _, kind = part.partition("_")
    return f"layer{stage - 1}.{block - 1}." + inside.get(part, f"{'conv' if kind == 'conv' else 'bn'}{number}")


def _sequential(layer: str, spec: ArchitectureSpec) -> str:
    name = _timm(layer, spec)
    stage, _, rest = name.removeprefix("layer").partition(".")
    return f"{int(stage) + 3}.{rest}" if rest else {"conv1": "0", "bn1": "1"}[name]


def _clip(layer: str, spec: ArchitectureSpec) -> str:
    stem = {"conv1_1_conv": "conv1", "conv1_1_bn": "bn1", "conv1_2_conv": "conv2", "conv1_2_bn": "bn2"}
    stem |= {"conv1_3_conv": "conv3", "conv1_3_bn": "bn3"}
    return stem.get(layer) or _timm(layer, spec).replace("downsample.1", "downsample.0").replace(
        "downsample.2", "downsample.1"
    )


def _timm_v2(layer: str, spec: ArchitectureSpec) -> str:
    if layer == "predictions":
        return "head.fc"
    base, _, kind = layer.rpartition("_")
    if base == "post":
        return "norm"
    if base.startswith("conv1"):
        number = base.removeprefix("conv1").removeprefix("_")
        return f"stem.{'conv' if kind == 'conv' else 'norm'}{number}"
    stage, block, part = _parts(layer)
    number = part.partition("_")[0]
    inside = {"0_conv": "downsample.conv", f"preact_{kind}": "norm1"}
    moved = f"norm{int(number) + 1}" if number.isdigit() else ""
    return f"stages.{stage - 2}.blocks.{block - 1}." + inside.get(part, f"conv{number}" if kind == "conv" else moved)


def _transformers(layer: str, spec: ArchitectureSpec) -> str:
    kind = "convolution" if layer.endswith("_conv") else "normalization"
    if layer == "predictions":
        return "classifier.1"
    if layer.startswith("conv1_"):
        return f"resnet.embedder.embedder.{kind}"
    stage, block, part = _parts(layer)
    number = int(part.partition("_")[0])
    inside = f"layer.{number - 1}" if number else "shortcut"
    return f"resnet.encoder.stages.{stage - 2}.layers.{block - 1}.{inside}.{kind}"


# Names of TensorFlow's programs.


def slim_names(spec: ArchitectureSpec, layers: Layers, name: str) -> dict[str, Shape]:
    """The same weights as TF-Slim names them; its classifier is a 1x1 convolution.

    Args:
        spec: The network.
        layers: What :func:`network` returned.
        name: The network's name, which all names begin with.
    """
    unit = "bottleneck_v2" if spec.preactivation else "bottleneck_v1"
    leaves = {"kernel": "weights", "bias": "biases"}
    found: dict[str, Shape] = {}
    for layer, variables in layers.items():
        base, _, kind = layer.rpartition("_")
        if layer == "predictions":
            scope = "logits"
        elif base == "post":
            scope = "postnorm"
        elif base == "conv1":
            scope = "conv1" if kind == "conv" else "conv1/BatchNorm"
        else:
            stage, block, part = _parts(layer)
            number = part.partition("_")[0]
            inside = {"0": "shortcut", "preact": "preact"}.get(number, f"conv{number}")
            scope = f"block{stage - 1}/unit_{block}/{unit}/{inside}"
            scope += "/BatchNorm" if kind == "bn" and number != "preact" else ""
        for variable, shape in variables.items():
            wide = (1, 1, *shape) if layer == "predictions" and variable == "kernel" else shape
            found[f"{name}/{scope}/{leaves.get(variable, variable)}"] = wide
    if not spec.preactivation:  # converted from Caffe, with the mean colour
        found[f"{name}/mean_rgb"] = (3,)
    return found


def bit_names(layers: Layers) -> dict[str, Shape]:
    """The same weights as BiT's ``.npz`` files name them.

    Args:
        layers: What :func:`network` returned.
    """
    found: dict[str, Shape] = {}
    for layer, variables in layers.items():
        base, _, kind = layer.rpartition("_")
        if layer == "predictions":
            scope = "head/conv2d"
        elif base == "post":
            scope = "group_norm"
        elif base == "conv1":
            scope = "root_block/standardized_conv2d"
        else:
            stage, block, part = _parts(layer)
            number = part.partition("_")[0]
            convolutions = {"0": "a/proj", "1": "a", "2": "b", "3": "c"}
            norms = {"preact": "a", "1": "b", "2": "c"}  # each before the convolution of its letter
            inside = f"{convolutions[number]}/standardized_conv2d" if kind == "conv" else f"{norms[number]}/group_norm"
            scope = f"block{stage - 1}/unit{block:02d}/{inside}"
        for variable, shape in variables.items():
            wide = (1, 1, *shape) if layer == "predictions" and variable == "kernel" else shape
            found[f"resnet/{scope}/{variable}"] = wide
    return found


def supcon_names(layers: Layers) -> dict[str, Shape]:
    """The same weights as SupCon's scopes name them in a module of TensorFlow Hub, with its heads.

    Args:
        layers: What :func:`network` returned.
    """
    root = "module/ContrastiveModel"
    found: dict[str, Shape] = {
        f"{root}/ProjectionHead/dense/kernel": (2048, 128),
        f"{root}/ClassificationHead/dense/kernel": (2048, 1000),
        f"{root}/ClassificationHead/dense/bias": (1000,),
    }
    for layer, variables in layers.items():
        base, _, kind = layer.rpartition("_")
        word, inside = ("Conv2DFixedPadding", "/conv2d") if kind == "conv" else ("batch_normalization", "")
        scope = f"{root}/Encoder/"
        number = 0
        if base != "conv1":
            stage, block, part = _parts(layer)
            number = int(part.partition("_")[0]) - (block > 1)
            scope += f"BlockGroup{stage - 2}/BottleneckBlock{f'_{block - 1}' if block > 1 else ''}/"
        name = f"{scope}{word}{f'_{number}' if number else ''}{inside}"
        found |= {f"{name}/{variable}": shape for variable, shape in variables.items()}
    return found


def simclr_ways(layers: Layers) -> dict[str, Shape]:
    """The ways to the same weights through the objects of SimCLR's second implementation.

    Args:
        layers: What :func:`network` returned.
    """
    found: dict[str, Shape] = {}
    for layer, variables in layers.items():
        base, _, kind = layer.rpartition("_")
        attribute = "conv2d" if kind == "conv" else "bn"
        if layer == "predictions":
            way = "supervised_head/linear_layer/dense"
        elif base == "conv1":
            way = f"resnet_model/initial_conv_relu_max_pool/{0 if kind == 'conv' else 2}/{attribute}"
        else:
            stage, block, part = _parts(layer)
            number = int(part.partition("_")[0])
            part = "conv_relu_dropblock_layers" if number else "projection_layers"
            place = 3 * max(number - 1, 0) + (kind != "conv")
            way = f"resnet_model/block_groups/{stage - 2}/layers/{block - 1}/{part}/{place}/{attribute}"
        found |= {f"model/{way}/{variable}": shape for variable, shape in variables.items()}
    return found


def bit_ways(layers: Layers) -> dict[str, Shape]:
    """The ways to the same weights through the objects of BiT's Keras model.

    Args:
        layers: What :func:`network` returned.
    """
    found: dict[str, Shape] = {}
    for layer, variables in layers.items():
        base, _, kind = layer.rpartition("_")
        if base in ("post", "conv1") or layer == "predictions":
            way = {"post": "_pre_head/0", "conv1": "_root/layer_with_weights-0"}.get(base, "_head")
        else:
            stage, block, part = _parts(layer)
            number = part.partition("_")[0]
            second = "/layer_with_weights-1"
            units = {"0": "_proj", "1": "_unit_a_conv", "2": f"_unit_b{second}", "3": f"_unit_c{second}"}
            norms = {"preact": "_unit_a", "1": "_unit_b", "2": "_unit_c"}
            unit = units[number] if kind == "conv" else f"{norms[number]}/layer_with_weights-0"
            way = f"_blocks/{stage - 2}/layer_with_weights-{block - 1}/{unit}"
        found |= {f"{way}/{variable}": shape for variable, shape in variables.items()}
    return found


def haiku_trees(layers: Layers, net: str) -> tuple[dict[str, dict[str, Shape]], dict[str, dict[str, Shape]]]:
    """The same weights as Haiku keeps them: parameters, and states.

    Args:
        layers: What :func:`network` returned.
        net: The name of the network's module.
    """
    params: dict[str, dict[str, Shape]] = {}
    state: dict[str, dict[str, Shape]] = {}
    for layer, variables in layers.items():
        base, _, kind = layer.rpartition("_")
        word = "conv" if kind == "conv" else "batchnorm"
        if layer == "predictions":
            params["classifier"] = {"w": variables["kernel"], "b": variables["bias"]}
            continue
        if base == "conv1":
            name = f"{net}/~/initial_{word}"
        else:
            stage, block, part = _parts(layer)
            number = int(part.partition("_")[0])
            own = f"{word}_{number - 1}" if number else f"shortcut_{word}"
            name = f"{net}/~/block_group_{stage - 2}/~/block_{block - 1}/~/{own}"
        if kind == "conv":
            params[name] = {"w": variables["kernel"]}
            continue
        wide = (1, 1, 1, *variables["gamma"])
        params[name] = {"scale": wide, "offset": wide}
        for statistic in ("mean", "var"):
            state[f"{name}/~/{statistic}_ema"] = {"counter": (), "hidden": wide, "average": wide}
    return params, state


def garden_names(layers: Layers) -> dict[str, Shape]:
    """The same weights as Model Garden's first ResNet names them.

    Args:
        layers: What :func:`network` returned.
    """
    found: dict[str, Shape] = {}
    for layer, variables in layers.items():
        kind = layer.rpartition("_")[2]
        if layer == "predictions":
            scope = "fc1000"
        elif layer.startswith("conv1"):
            scope = "conv1" if kind == "conv" else "bn_conv1"
        else:
            stage, block, part = _parts(layer)
            branch = {"0": "1", "1": "2a", "2": "2b", "3": "2c"}[part.partition("_")[0]]
            scope = f"{'res' if kind == 'conv' else 'bn'}{stage}{chr(ord('a') + block - 1)}_branch{branch}"
        found |= {f"{scope}/{variable}": shape for variable, shape in variables.items()}
    return found


#: What stands beside the network in checkpoints of each kind, by a part of their prefix.
BESIDE: dict[str, dict[str, Shape]] = {
    "encoder_q.": {
        "state_dict.module.encoder_q.fc.0.weight": (2048, 2048),
        "state_dict.module.encoder_q.fc.2.weight": (128, 2048),
        "state_dict.module.queue": (128, 64),
        "state_dict.module.queue_ptr": (1,),
    },
    "base_encoder.": {
        "state_dict.module.base_encoder.fc.0.weight": (4096, 2048),
        "state_dict.module.base_encoder.fc.1.running_mean": (4096,),
        "state_dict.module.predictor.0.weight": (4096, 256),
    },
    "module.encoder.": {
        "state_dict.module.encoder.fc.0.weight": (2048, 2048),
        "state_dict.module.encoder.fc.6.weight": (2048, 2048),
        "state_dict.module.predictor.0.weight": (512, 2048),
    },
    "visual.": {
        "visual.attnpool.positional_embedding": (50, 2048),
        "visual.attnpool.q_proj.weight": (2048, 2048),
        "transformer.resblocks.0.attn.in_proj_weight": (1536, 512),
        "token_embedding.weight": (494, 512),
        "positional_embedding": (77, 512),
        "logit_scale": (),
        "text_projection": (512, 1024),
    },
}


# Files.


def write_safetensors(path: Path, shapes: Mapping[str, Shape], dtype: str = "F32") -> None:
    """A sparse ``.safetensors`` file of zeros."""
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        kind, width = ("I64", 8) if name.endswith("num_batches_tracked") else (dtype, 2 if dtype == "F16" else 4)
        begin, end = end, end + width * math.prod(shape)
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def write_torch(path: Path, shapes: Mapping[str, Shape], *, half: bool = False) -> None:
    """A file of ``torch.save`` that leaves the room of its numbers empty."""
    import torch

    dtype = torch.float16 if half else torch.float32
    tensors: dict[str, Any] = {}
    for name, shape in shapes.items():
        counter = name.endswith("num_batches_tracked")
        tensors[name] = torch.empty(shape, dtype=torch.int64 if counter else dtype)
    outer = {}
    if all(name.startswith("state_dict.") for name in tensors):
        tensors = {name.removeprefix("state_dict."): tensor for name, tensor in tensors.items()}
        outer = {"epoch": 200}
    with torch.serialization.skip_data():
        torch.save({**outer, "state_dict": tensors} if outer else tensors, path)


def write_keras_h5(path: Path, spec: ArchitectureSpec, layers: Layers) -> None:
    """A sparse file of Keras' legacy format. Its ResNeXts have depthwise kernels in place of grouped ones."""
    allocated = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    allocated.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    allocated.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [name.encode() for name in layers]
        file.attrs["backend"] = b"tensorflow"
        for name, variables in layers.items():
            group = file.create_group(name)
            written = []
            for variable, shape in variables.items():
                if spec.groups > 1 and variable == "kernel" and name.endswith("_2_conv"):
                    variable, shape = "depthwise_kernel", (*shape[:2], shape[3], shape[2])
                written.append(f"{name}/{variable}:0")
                space = h5py.h5s.create_simple(shape)
                inner = group.require_group(name)
                h5py.h5d.create(inner.id, f"{variable}:0".encode(), h5py.h5t.IEEE_F32LE, space, allocated)
            group.attrs["weight_names"] = [name.encode() for name in written]


def write_npz(path: Path, shapes: Mapping[str, Shape]) -> None:
    """An ``.npz`` file of zeros, stored as it is."""
    np.savez(path, **{name: np.zeros(shape, np.float32) for name, shape in shapes.items()})


def write_tf_checkpoint(path: Path, shapes: Mapping[str, Shape]) -> None:
    """A checkpoint in TensorFlow's first format, one file, in which TF-Slim's are published."""
    import tensorflow as tf

    counter = {"global_step": tf.constant(0, tf.int64)}
    tensors = {**{name: tf.zeros(shape) for name, shape in shapes.items()}, **counter}
    tf.raw_ops.Save(filename=str(path), tensor_names=list(tensors), data=list(tensors.values()))


def write_saved_model(folder: Path, shapes: Mapping[str, Shape]) -> None:
    """The variables of a SavedModel under their names, beside a graph that nothing looks into."""
    import tensorflow as tf

    (folder / "variables").mkdir()
    (folder / "saved_model.pb").write_bytes(tf.compat.v1.GraphDef().SerializeToString())
    tensors = {name: tf.zeros(shape) for name, shape in shapes.items()}
    tf.raw_ops.SaveV2(
        prefix=str(folder / "variables/variables"),
        tensor_names=list(tensors),
        shape_and_slices=[""] * len(tensors),
        tensors=list(tensors.values()),
    )


def write_objects(folder: Path, ways: Mapping[str, Shape]) -> None:
    """A SavedModel whose variables are named by their place in a list, with the objects that tell what they are."""
    import tensorflow as tf
    from tensorflow.core.protobuf.trackable_object_graph_pb2 import TrackableObjectGraph

    graph = TrackableObjectGraph()
    graph.nodes.add()
    places: dict[str, int] = {"": 0}

    def child(parent: str, name: str, known: int | None = None) -> str:
        way = f"{parent}/{name}".lstrip("/")
        if way not in places:
            places[way] = len(graph.nodes) if known is None else known
            if known is None:
                graph.nodes.add()
            graph.nodes[places[parent]].children.add(node_id=places[way], local_name=name)
        return way

    names = []
    for number, way in enumerate(ways):
        at = ""
        for part in way.split("/"):
            at = child(at, part)
        child(child("", "variables"), str(number), places[at])
        names.append(f"variables/{number}/.ATTRIBUTES/VARIABLE_VALUE")
        graph.nodes[places[at]].attributes.add(name="VARIABLE_VALUE", checkpoint_key=names[-1])
    (folder / "variables").mkdir()
    (folder / "saved_model.pb").write_bytes(tf.compat.v1.GraphDef().SerializeToString())
    tensors = [tf.zeros(shape) for shape in ways.values()] + [tf.constant(graph.SerializeToString())]
    tf.raw_ops.SaveV2(
        prefix=str(folder / "variables/variables"),
        tensor_names=[*names, "_CHECKPOINTABLE_OBJECT_GRAPH"],
        shape_and_slices=[""] * len(tensors),
        tensors=tensors,
    )


def timm_config(info: CheckpointInfo) -> dict[str, Any]:
    """The ``config.json`` that timm puts beside its weights."""
    return {
        "architecture": info.name.partition(".")[0],
        "num_classes": info.classes,
        "pretrained_cfg": {
            "tag": info.name.partition(".")[2],
            "input_size": [3, info.input_size, info.input_size],
            "interpolation": info.interpolation,
            "crop_pct": info.crop_fraction,
            "crop_mode": "center",
            "mean": list(info.mean),
            "std": list(info.std),
            "num_classes": info.classes,
        },
    }
