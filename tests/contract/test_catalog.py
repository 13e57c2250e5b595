"""Every row of the catalog: it builds, costs what the arithmetic says, and its kind of network runs everywhere."""

from __future__ import annotations

import csv
import dataclasses
import importlib.resources
import io
import itertools
import math

import keras
import numpy as np
import pytest

from resfit.networks import arithmetic, catalog, plan
from resfit.networks.build import build
from resfit.networks.spec import ArchitectureSpec, StemConv
from resfit.weights.keras_models import shapes_alone
from tests.numeric import randomize, relative_error


def convolutions(name: str) -> int:
    return sum(block.convolutions for block in plan.blocks(catalog.get(name).spec))


def marked() -> list:
    """Every row; those that differ from a shallower one in depth and widths alone are for the slow run."""
    shallowest: dict[ArchitectureSpec, str] = {}
    for name in sorted(catalog.names(), key=convolutions):
        shallowest.setdefault(reduced(catalog.get(name).spec), name)
    first = set(shallowest.values())
    return [name if name in first else pytest.param(name, marks=pytest.mark.slow) for name in catalog.names()]


def test_there_are_enough_rows():
    assert len(catalog.rows()) >= 90


def published() -> list:
    text = (importlib.resources.files("resfit") / "weights" / "registry.csv").read_text("utf-8")
    rows = [
        row
        for row in csv.DictReader(io.StringIO(text))
        if row["architecture"] and row["params_m"] and row["source"] == "timm"
    ]
    assert len(rows) > 150
    return rows


# timm counts the parameters of these with a classifier of 1000 classes, though their own has 11,821 or 21,843 (or none)
COUNTED_WITH_1000 = ("in12k", "in21k", "bamboo")


@pytest.mark.parametrize("row", published(), ids=lambda row: row["name"])
def test_published_figures(row):
    """Parameters, and GMACs in the convention of timm's tables, which count norms too (see ``norm_operations``)."""
    spec = catalog.get(row["architecture"]).spec
    classes = int(row["classes"])
    if classes != 1000:
        assert any(tag in row["name"] for tag in COUNTED_WITH_1000), "explain this row"
    if not row["gmacs"]:
        counted = arithmetic.count(spec, classes=1000)
    else:
        size = int(row["size"]) if "size" in row else int(row["input_size"])
        counted = arithmetic.count(spec, input_size=(size, size), classes=1000)
        gmacs = (counted.macs + counted.norm_operations) / 1e9
        assert gmacs == pytest.approx(float(row["gmacs"]), rel=0.005, abs=0.005)
    learned = counted.trainable_parameters if row["source"] == "timm" else counted.parameters
    assert learned / 1e6 == pytest.approx(float(row["params_m"]), rel=0.005)


def reduced(spec: ArchitectureSpec) -> ArchitectureSpec:
    """The same kind of network, small: at most two blocks in the first two stages, one in the others, narrow."""
    groups = min(spec.groups, 4)
    stages = range(len(spec.depths))
    bottleneck = spec.block == "bottleneck"
    return spec.replace(
        depths=tuple(min(depth, 2 if stage < 2 else 1) for stage, depth in enumerate(spec.depths)),
        stage_blocks=None,
        block_widths=None,
        widths=tuple(32 * (stage + 1) for stage in stages),
        inner_widths=tuple((8 if bottleneck else 32) * (stage + 1) * (2 if groups > 1 else 1) for stage in stages),
        reduce_widths=tuple(8 * (stage + 1) for stage in stages)
        if spec.reduce_widths and not spec.block_widths
        else None,
        groups=groups,
        norm_groups=4,
        stem=tuple(StemConv(16, conv.kernel, conv.stride) for conv in spec.stem),
        attention_sizes=tuple(4 if spec.attention == "se" else 3 for _ in stages) if spec.attention else None,
        classes=5,
        input_size=(64, 64),
    )


def kinds() -> dict[str, ArchitectureSpec]:
    """One row for each kind of network that the catalog has."""
    found: dict[ArchitectureSpec, str] = {}
    for name in catalog.names():
        found.setdefault(reduced(catalog.get(name).spec), name)
    return {name: spec for spec, name in found.items()}


# networks of graphs into whose convolutions the norms were folded
FOLDED = {
    "folded": reduced(catalog.get("seresnet50").spec).replace(norm="none", conv_bias="all"),
    "folded v2": reduced(catalog.get("resnetv2_50d").spec).replace(folded=True),
    "folded keras v2": reduced(catalog.get("resnet50v2").spec).replace(folded=True, conv_bias="unnormalized"),
}
KINDS = kinds() | FOLDED

#: Fields that make no kind of layer of their own.
AMOUNTS = frozenset({"depths", "widths", "inner_widths", "norm_epsilon", "norm_momentum", "attention_sizes"})
#: Fields whose combinations decide which layers follow each other.
STRUCTURE = ("block", "preactivation", "shortcut", "attention", "antialias", "norm", "groups", "stem_pool")


def covering(pairs: tuple[str, ...] = ()) -> list:
    """Kinds that together have each value of each field, and each two values of the fields in ``pairs``.

    The others are for the slow run.
    """
    seen: set[tuple] = set()
    found = []
    for name, spec in KINDS.items():
        values = {field.name: repr(getattr(spec, field.name)) for field in dataclasses.fields(spec)}
        own: set[tuple] = {(field, value) for field, value in values.items() if field not in AMOUNTS}
        own |= {((one, two), (values[one], values[two])) for one, two in itertools.combinations(pairs, 2)}
        found.append(pytest.param(name, marks=pytest.mark.slow if own <= seen else ()))
        seen |= own
    return found


@pytest.mark.usefixtures("forget_networks")
@pytest.mark.parametrize("name", [*marked(), "folded", "folded v2"])
def test_parameters_macs_and_shapes_are_those_of_the_keras_model(name):
    spec = FOLDED[name] if name in FOLDED else catalog.get(name).spec
    with shapes_alone():  # no weight is allocated
        model = build(spec, input_shape=(*spec.input_size, 3))
    counted = arithmetic.count(spec)
    by_name = {layer.name: layer for layer in counted.layers}
    weighted = {layer.name: layer for layer in model.layers if layer.weights}
    assert weighted.keys() == by_name.keys()
    for layer_name, layer in weighted.items():
        row = by_name[layer_name]
        assert layer.count_params() == row.parameters, layer_name
        shape = tuple(layer.output.shape[1:])
        assert shape == row.shape, layer_name
        if row.kind in ("conv", "dense"):
            positions = math.prod(shape[:-1])
            assert math.prod(layer.kernel.shape) * positions == row.macs, layer_name
    assert model.count_params() == counted.parameters


@pytest.mark.usefixtures("forget_networks")
@pytest.mark.parametrize("name", covering(STRUCTURE))
def test_each_kind_runs_saves_and_taps(name, tmp_path):
    spec = KINDS[name]
    stages = [f"stage{number}" for number in range(1, len(spec.depths) + 2)]
    model = randomize(build(spec, input_shape=(None, None, 3)))
    images = np.random.default_rng(0).normal(size=(2, 64, 96, 3)).astype("float32")
    expected = model(images, training=False).numpy()
    assert expected.shape == (2, 5)
    np.testing.assert_allclose(expected.sum(axis=1), 1, rtol=1e-5)
    assert np.ptp(expected, axis=0).max() > 1e-4  # the images make a difference

    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    np.testing.assert_allclose(loaded(images, training=False), expected, rtol=1e-5, atol=1e-7)

    tapped = build(spec, include_top=False, taps=stages)
    values = {weight.path: weight for weight in model.weights}
    for weight in tapped.weights:
        weight.assign(values[weight.path])
    maps = tapped(images, training=False)
    strides = arithmetic.count(spec).taps
    for stage in stages:
        stride = strides[stage]
        assert maps[stage].shape[1:3] == (64 // stride, 96 // stride), stage
        assert float(np.std(maps[stage])) > 0
    pooled = build(spec, include_top=False, pooling="avg")
    for weight in pooled.weights:
        weight.assign(values[weight.path])
    features = pooled(images, training=False).numpy()
    assert relative_error(np.mean(maps[stages[-1]], axis=(1, 2)), features) < 1e-5


@pytest.mark.usefixtures("forget_networks")
@pytest.mark.parametrize("name", covering())
def test_each_kind_runs_in_mixed_precision(name):
    spec = KINDS[name]
    model = randomize(build(spec, input_shape=(64, 48, 3), classifier_activation=None))
    images = np.random.default_rng(0).normal(size=(2, 64, 48, 3)).astype("float32")
    expected = model(images, training=False)
    before = keras.config.dtype_policy()
    policies = (("mixed_float16", 0.02), ("mixed_bfloat16", 0.15))
    first = list(KINDS).index(name) % 2  # one of the two for each kind
    for policy, most in policies[first : first + 1]:
        keras.config.set_dtype_policy(policy)
        try:
            mixed = build(spec, input_shape=(64, 48, 3), classifier_activation=None)
        finally:
            keras.config.set_dtype_policy(before)
        mixed.set_weights(model.get_weights())
        received = mixed(images, training=False)
        assert received.dtype == "float32"  # the head computes in float32, the body does not
        assert mixed.get_layer("avg_pool").input.dtype == policy.removeprefix("mixed_")
        assert relative_error(np.asarray(received, np.float32), expected) < most, policy


@pytest.mark.parametrize("output_stride", [8, 16])
def test_dilation_gives_the_strided_output_at_the_strided_positions(output_stride):
    spec = reduced(catalog.get("resnet50v1.5").spec)
    strided = randomize(build(spec, include_top=False))
    dense = build(spec.replace(output_stride=output_stride), include_top=False)
    dense.set_weights(strided.get_weights())
    images = np.random.default_rng(0).normal(size=(1, 128, 96, 3)).astype("float32")
    few, many = strided(images, training=False).numpy(), dense(images, training=False).numpy()
    step = 32 // output_stride
    assert many.shape[1:3] == (128 // output_stride, 96 // output_stride)
    # away from the border, where padding differs, every step-th position is the same
    np.testing.assert_allclose(many[:, ::step, ::step][:, 1:-1, 1:-1], few[:, 1:-1, 1:-1], rtol=1e-3, atol=1e-4)


def test_a_spec_survives_json():
    import json

    for name in catalog.names():
        spec = catalog.get(name).spec
        assert ArchitectureSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
