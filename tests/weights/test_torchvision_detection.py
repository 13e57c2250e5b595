"""torchvision's RetinaNet and FCOS: names, architecture, raw outputs and detections."""

from __future__ import annotations

import functools
import random
import re
from typing import Any

import numpy as np
import pytest

from resfit.errors import ArgumentError, CheckpointError, ResfitError
from resfit.networks import catalog as networks
from resfit.networks.detection import anchors, arithmetic, build, catalog
from resfit.weights import canonical
from resfit.weights.conventions import torchvision_detection
from tests.networks.detection import peers

KINDS = {"v1": "retinanet_resnet50", "v2": "retinanet_resnet50_v2", "fcos": "fcos_resnet50"}


@functools.cache
def source(kind: str) -> tuple[Any, dict[str, np.ndarray]]:
    """A small detector of torchvision and its tensors."""
    model = peers.small(kind)
    return model, peers.tensors(model)


def expected_spec(kind: str) -> Any:
    """What the tensors of the small one should be found to be."""
    return catalog.get(KINDS[kind]).spec.replace(classes=5, backbone=networks.get("resnet10").spec)


def images(*size: int) -> np.ndarray:
    """Two images as they are after normalising."""
    return np.random.default_rng(0).normal(0, 1, (2, *size, 3)).astype(np.float32)


def matched(received: dict[str, Any], expected: dict[str, Any], count: int) -> float:
    """Share of the expected detections with a received one of their class, within 0.1 pixels and 1e-3 of the score."""
    found = 0
    for box, score, label in zip(expected["boxes"], expected["scores"], expected["labels"], strict=True):
        near = (
            (np.abs(received["boxes"][:count] - box).max(axis=1) < 0.1)
            & (np.abs(received["scores"][:count] - score) < 1e-3)
            & (received["classes"][:count] == label)
        )
        found += bool(near.any())
    return found / max(len(expected["boxes"]), 1)


@pytest.mark.parametrize("kind", KINDS)
def test_raw_outputs_are_torchvisions(kind):
    model, tensors = source(kind)
    translation = torchvision_detection.translate(tensors)
    assert not translation.leftover
    spec, _ = torchvision_detection.identify(translation)
    assert spec.backbone.norm_epsilon == 1e-5  # norms that count their batches are torch's own, also of the first kind
    own = build.build(spec, outputs="raw")
    canonical.fill(own, translation.arrays)
    x = images(97, 130)  # every level has an odd side
    expected = peers.raw(model, x)
    received = {key: np.asarray(value) for key, value in own(x).items()}
    assert np.array_equal(np.concatenate(anchors.anchors(spec, (97, 130))), expected.pop("anchors"))
    assert received.keys() == expected.keys()
    for key, value in expected.items():
        assert np.abs(value).mean() > 0.1
        np.testing.assert_allclose(received[key], value, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("kind", "frozen"), [*((kind, False) for kind in KINDS), ("v1", True)])
def test_architectures_are_recovered_and_tensors_come_back(kind, frozen):
    _, tensors = source(kind)
    if frozen:  # as the published file is: its norms have no counters, and an epsilon of 0
        tensors = {name: array for name, array in tensors.items() if not name.endswith(".num_batches_tracked")}
    translation = torchvision_detection.translate({f"model.{name}": array for name, array in tensors.items()})
    spec, assumptions = torchvision_detection.identify(translation)
    expected = expected_spec(kind)
    assert spec == expected.replace(backbone=expected.backbone.replace(norm_epsilon=0.0 if frozen else 1e-5))
    text = "\n".join(assumptions)
    assert "anchor_sizes" in text
    assert ("backbone: norm_epsilon=0 " in text) == frozen
    again = torchvision_detection.to_torch(spec, translation.arrays)
    assert again.keys() == tensors.keys()
    for name, array in tensors.items():
        assert np.array_equal(again[name], array), name


def test_files_from_before_the_head_had_norms_are_read():
    _, tensors = source("v1")
    old = {}
    for name, array in tensors.items():
        for part in ("inner_blocks", "layer_blocks"):
            for number in range(3):
                name = name.replace(f"{part}.{number}.0.", f"{part}.{number}.")
        for number in range(4):
            name = name.replace(f"head.conv.{number}.0.", f"head.conv.{2 * number}.")
        old[name] = array
    assert "head.classification_head.conv.6.weight" in old
    assert "backbone.fpn.inner_blocks.2.bias" in old
    found, usual = (torchvision_detection.translate(one) for one in (old, tensors))
    assert found.dialect == "retinanet-first"
    assert found.arrays.keys() == usual.arrays.keys()
    assert all(np.array_equal(found.arrays[name], usual.arrays[name]) for name in usual.arrays)


def test_what_no_rule_knows_is_left_over():
    _, tensors = source("fcos")
    more = {**tensors, "head.regression_head.iou.weight": np.zeros((1, 256, 3, 3)), "other.weight": np.zeros(3)}
    assert set(torchvision_detection.translate(more).leftover) == {"head.regression_head.iou.weight", "other.weight"}


def test_refusals_name_the_cause():
    _, tensors = source("fcos")
    assert torchvision_detection.is_detector(tensors)
    body = {name.removeprefix("backbone.body."): array for name, array in tensors.items()}
    assert not torchvision_detection.is_detector(body)
    with pytest.raises(CheckpointError, match="one detector"):
        torchvision_detection.translate(body)
    with pytest.raises(CheckpointError, match="two stages"):
        torchvision_detection.translate({**tensors, "rpn.head.conv.0.0.weight": np.zeros(1)})
    headless = {name: array for name, array in tensors.items() if "cls_logits" not in name}
    with pytest.raises(CheckpointError, match="cls_logits"):
        torchvision_detection.translate(headless)
    wide = {**tensors, "head.regression_head.bbox_reg.weight": np.zeros((8, 256, 3, 3), np.float32)}
    with pytest.raises(CheckpointError, match="anchors"):
        torchvision_detection.identify(torchvision_detection.translate(wide))
    with pytest.raises(ArgumentError, match="nms_threshold"):
        torchvision_detection.identify(torchvision_detection.translate(tensors), nms_treshold=0.5)
    light = catalog.get("fcos_light_resnet18").spec
    with pytest.raises(ArgumentError, match="p3_scale"):
        torchvision_detection.to_torch(light, {"p3_scale/scale": np.zeros(())})


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_detections_are_torchvisions(kind):
    model, tensors = source(kind)
    translation = torchvision_detection.translate(tensors)
    spec, _ = torchvision_detection.identify(translation)
    own = build.build(spec, outputs="detections")
    canonical.fill(own, translation.arrays)
    x = images(97, 130)
    received = own.predict_on_batch(x)
    for image, expected in enumerate(peers.detections(model, x)):
        assert received["count"][image] == len(expected["boxes"]) > 90
        count, one = int(received["count"][image]), {key: value[image] for key, value in received.items()}
        assert matched(one, expected, count) >= 0.99
        assert np.abs(one["scores"][:count] - expected["scores"]).max() < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS.values())
def test_published_networks_are_torchvisions(name):
    row = catalog.get(name)
    model = peers.published(name)
    tensors = peers.tensors(model)
    assert len(tensors) == {"retinanet_resnet50": 301, "retinanet_resnet50_v2": 362, "fcos_resnet50": 372}[name]
    translation = torchvision_detection.translate(tensors)
    spec, _ = torchvision_detection.identify(translation)
    assert spec == row.spec
    own = build.build(spec, outputs="raw")
    assert own.count_params() == arithmetic.count(spec).parameters
    canonical.fill(own, translation.arrays)
    whole = build.build(spec, outputs="detections")
    canonical.fill(whole, translation.arrays)
    for size in ((320, 416), (600, 600)):
        x = images(*size)[:1]
        expected = peers.raw(model, x)
        received = own.predict_on_batch(x)
        assert np.array_equal(np.concatenate(anchors.anchors(spec, size)), expected.pop("anchors"))
        for key, value in expected.items():
            np.testing.assert_allclose(received[key], value, rtol=0, atol=1e-4)
    one = {key: value[0] for key, value in whole.predict_on_batch(x).items()}
    expected = peers.detections(model, x)[0]
    count = int(one["count"])
    assert abs(count - len(expected["boxes"])) <= 1
    assert matched(one, expected, count) >= 0.99


def mutated(names: list[tuple[str, tuple[int, ...]]], generator: random.Random) -> dict[str, np.ndarray]:
    """Tensors with some of their names and shapes changed; they take no memory, however large they say they are."""
    changed = list(names)
    for _ in range(generator.randint(1, 4)):
        place = generator.randrange(len(changed))
        name, shape = changed[place]
        kind = generator.randrange(5)
        if kind == 0:
            del changed[place]
            continue
        if kind == 1:
            digits = re.sub(r"\d+", lambda _: str(generator.choice((0, 1, 7, 99, 999, 10**6))), name, count=1)
            changed[place] = (generator.choice((digits, name.replace(".", "", 1), f"x.{name}", name[:-1])), shape)
        elif kind == 2 and shape:
            side = generator.randrange(len(shape))
            value = generator.choice((0, 1, 2, 3, 35, 37, 257, 10**6))
            changed[place] = (name, (*shape[:side], value, *shape[side + 1 :]))
        elif kind == 3:
            changed[place] = (name, generator.choice(((), (1,), shape[:-1], (*shape, 1), (4, 4, 4, 4))))
        else:
            other = generator.randrange(len(changed))
            changed[place] = (name, changed[other][1])
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in changed}


def survive(count: int, seed: int) -> int:
    """Recovers detectors from mutated tensors; returns how many were refused. Any other error passes through."""
    generator = random.Random(seed)
    sources = [[(name, array.shape) for name, array in source(kind)[1].items()] for kind in KINDS]
    refused = 0
    for _ in range(count):
        try:
            translation = torchvision_detection.translate(mutated(generator.choice(sources), generator))
            torchvision_detection.identify(translation)
        except ResfitError:
            refused += 1
    return refused


def test_mutated_tensors_are_refused_or_read():
    assert 10 < survive(100, 0) < 100


@pytest.mark.slow
def test_many_mutated_tensors():
    assert survive(50_000, 1) < 50_000
