"""Every row of the registry: a checkpoint of its layout, network and size is read and recognised for what it is.

The files hold no trained weights, and no network is built; rows of the same layout, network and surroundings share one
file. The largest, and networks that are really built and filled, are left to the slow run.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

from resfit.networks import arithmetic, catalog
from resfit.networks.spec import ArchitectureSpec
from resfit.weights import load, registry
from resfit.weights.formats import keras_h5
from resfit.weights.registry import CheckpointInfo
from tests.contract import synthetic
from tests.weights import pickles

HEAVY = 30_000_000  # parameters from which a row is read in the slow run alone
JAX = ("haiku",)
TENSORFLOW = ("bit", "bit-hub", "bit-keras", "tf-slim", "model-garden", "simclr", "supcon")
TORCH = ("timm", "timm-v2", "transformers", "cifar", "clip", "sequential")


def combinations(layouts: tuple[str, ...]) -> list:
    """One row for each combination of layout, network and surroundings; the smallest of each layout first."""
    found: dict[tuple, CheckpointInfo] = {}
    for info in registry.rows().values():
        if info.layout in layouts:
            found.setdefault((info.layout, info.format, info.architecture, info.classes, info.prefix), info)
    return [
        pytest.param(info, id=info.name, marks=pytest.mark.slow if parameters(info) > HEAVY else ())
        for info in found.values()
    ]


def spec_of(info: CheckpointInfo) -> ArchitectureSpec:
    spec = catalog.get(info.architecture).spec
    return spec.replace(classes=info.classes or spec.classes, in_channels=len(info.mean))


def parameters(info: CheckpointInfo) -> int:
    return arithmetic.count(spec_of(info), include_top=info.classes > 0).parameters


def layers_of(info: CheckpointInfo) -> synthetic.Layers:
    return synthetic.network(spec_of(info), include_top=info.classes > 0)


def test_the_shapes_written_here_are_those_of_the_arithmetic():
    for name, row in catalog.rows().items():
        written = synthetic.network(row.spec)
        counted = {layer.name: layer.parameters for layer in arithmetic.count(row.spec).layers}
        assert {
            layer: sum(math.prod(shape) for shape in variables.values()) for layer, variables in written.items()
        } == counted, name


def write(info: CheckpointInfo, folder: Path, *, half: bool) -> Path:
    """Writes a checkpoint as its publisher does, and returns what is to be read."""
    spec, layers = spec_of(info), layers_of(info)
    if info.layout == "keras":
        synthetic.write_keras_h5(folder / "weights.h5", spec, layers)
        return folder / "weights.h5"
    if info.layout == "bit":
        synthetic.write_npz(folder / Path(urlsplit(info.url).path).name, synthetic.bit_names(layers))
        return folder / Path(urlsplit(info.url).path).name
    if info.layout == "haiku":
        net = f"res_net{info.architecture.removeprefix('resnet').partition('_')[0].partition('w')[0]}"
        trees = synthetic.haiku_trees(layers, net)
        params, state = (
            {
                layer: {leaf: np.zeros(shape, np.float32) for leaf, shape in leaves.items()}
                for layer, leaves in tree.items()
            }
            for tree in trees
        )
        return pickles.write(folder / Path(urlsplit(info.url).path).name, pickles.byol(params, state))
    ways = {"bit-keras": synthetic.bit_ways, "simclr": synthetic.simclr_ways}.get(info.layout)
    if ways is not None:
        synthetic.write_objects(folder, ways(layers))
        return folder
    if info.format == "saved_model":
        names = {
            "tf-slim": lambda: synthetic.slim_names(spec, layers, info.architecture),
            "bit-hub": lambda: synthetic.bit_names(layers),
            "model-garden": lambda: synthetic.garden_names(layers),
            "supcon": lambda: synthetic.supcon_names(layers),
        }[info.layout]()
        synthetic.write_saved_model(folder, {name: shape for name, shape in names.items() if "mean_rgb" not in name})
        return folder
    if info.layout == "tf-slim":
        name = info.architecture
        synthetic.write_tf_checkpoint(folder / f"{name}.ckpt", synthetic.slim_names(spec, layers, name))
        return folder / f"{name}.ckpt"
    names = synthetic.torch_names(info.layout, spec, layers)
    shapes = {f"{info.prefix}{name}": shape for name, shape in names.items()}
    for part, beside in synthetic.BESIDE.items():
        if info.prefix.endswith(part):
            shapes |= beside
    if info.url.startswith("hf://"):
        config = synthetic.timm_config(info) if info.source == registry.TIMM else {}
        if info.layout == "transformers":
            config = {"model_type": "resnet", "hidden_act": "relu", "downsample_in_first_stage": False}
        if config:
            (folder / "config.json").write_text(json.dumps(config))
        if info.format == "safetensors":
            synthetic.write_safetensors(folder / "model.safetensors", shapes, "F16" if half else "F32")
        else:
            synthetic.write_torch(folder / "pytorch_model.bin", shapes, half=half)
        return folder
    path = folder / Path(urlsplit(info.url).path).name
    synthetic.write_torch(path, shapes, half=half)
    return path


def check(info: CheckpointInfo, read: load.Source) -> None:
    spec = spec_of(info)
    assert read.name == info.architecture
    assert load.is_like(read.spec, spec)
    assert read.has_top == (info.classes > 0)
    if info.classes:
        assert read.spec.classes == info.classes
    assert {name: array.shape for name, array in read.arrays.items()} == {
        f"{layer}/{variable}": shape
        for layer, variables in layers_of(info).items()
        for variable, shape in variables.items()
    }
    if info.source == registry.TIMM:
        assert read.input_spec == info.input_spec


@pytest.mark.parametrize("info", combinations(TORCH))
def test_torch_checkpoint_is_recognised(info, tmp_path):
    half = parameters(info) > 20_000_000
    check(info, load.read_source(write(info, tmp_path, half=half)))


@pytest.mark.parametrize("info", combinations((*TENSORFLOW, *JAX)))
def test_tensorflow_and_jax_checkpoint_is_recognised(info, tmp_path):
    check(info, load.read_source(write(info, tmp_path, half=False)))


@pytest.mark.parametrize("info", combinations(("keras",)))
def test_keras_checkpoint_has_the_layers_of_its_network(info, tmp_path):
    found = keras_h5.read_layers(write(info, tmp_path, half=False))
    assert {layer.name: sum(array.size for array in layer.arrays) for layer in found} == {
        layer.name: layer.parameters
        for layer in arithmetic.count(spec_of(info), include_top=info.classes > 0).layers
        if layer.parameters
    }


@pytest.mark.slow
@pytest.mark.usefixtures("forget_networks")
@pytest.mark.parametrize("info", combinations(TORCH))
def test_torch_checkpoint_becomes_a_model(info, tmp_path):
    model = load.load_source(write(info, tmp_path, half=True), preprocess=False)
    assert model.count_params() == parameters(info)
    assert all(not np.any(np.array(weight)) for weight in model.layers[1].weights)
    width = catalog.get(info.architecture).spec.feature_width
    assert model.output_shape[-1] == (info.classes or width)


@pytest.mark.slow
@pytest.mark.usefixtures("forget_networks")
@pytest.mark.parametrize("info", combinations(("keras",)))
def test_keras_checkpoint_becomes_a_model(info, tmp_path):
    import resfit

    weights = write(info, tmp_path, half=False)
    model = resfit.load(info.name, weights=weights, include_top=info.classes > 0, preprocess=False)
    assert model.count_params() == parameters(info)
    assert all(not np.any(np.array(weight)) for layer in model.layers for weight in layer.weights)


@pytest.mark.slow
@pytest.mark.parametrize("info", combinations(("timm", "timm-v2")))
def test_the_names_written_here_are_those_of_the_libraries(info):
    """timm's and torchvision's own modules, on a device that allocates nothing."""
    try:
        import timm
        import torch
        import torchvision
    except (ImportError, RuntimeError) as error:  # a torchvision that was built for another torch
        pytest.skip(f"timm and torchvision are not usable: {error}")
    name = info.name.partition(".")[0]
    with torch.device("meta"):
        if info.source == registry.TIMM:
            module = timm.create_model(name, num_classes=info.classes)
        elif info.source == "torchvision":
            module = getattr(torchvision.models, name)()
        else:
            pytest.skip("a network of neither library")
    mine = synthetic.torch_names(info.layout, spec_of(info), layers_of(info))
    assert mine == {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}


def test_every_row_is_covered():
    """Rows of the layouts that follow are written and read in the tests of their readers."""
    elsewhere = {"resfit", "kerashub"}
    layouts = {info.layout for info in registry.rows().values()}
    assert layouts == {*TORCH, *TENSORFLOW, *JAX, "keras"} | elsewhere
