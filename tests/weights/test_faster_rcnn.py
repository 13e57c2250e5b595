"""torchvision's Faster R-CNN: names, architecture, both stages and detections."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
import pytest

from resfit import zoo
from resfit.errors import ArgumentError, CheckpointError
from resfit.networks import catalog as networks
from resfit.networks.detection import build, catalog, kinds
from resfit.tasks.detection import pretrained
from resfit.weights import canonical, describe
from resfit.weights.conventions import faster_rcnn, torchvision_detection
from resfit.weights.formats import safetensors
from tests.networks.detection import peers
from tests.weights.test_torchvision_detection import images, matched

KINDS = {"v1": "faster_rcnn_resnet50", "v2": "faster_rcnn_resnet50_v2"}


@functools.cache
def source(kind: str) -> tuple[Any, dict[str, np.ndarray]]:
    """A small detector of torchvision and its tensors."""
    model = peers.two_stage(kind)
    return model, peers.tensors(model)


def spec_of(kind: str) -> Any:
    """The small one as it runs: its norms count their batches, so that they are torch's own."""
    return faster_rcnn.identify(faster_rcnn.translate(source(kind)[1]))[0]


def compare(model: Any, own_spec: Any, arrays: Any, size: tuple[int, int], tolerance: float = 1e-4) -> None:
    """Compares raw outputs and detections with torchvision's."""
    x = images(*size)[:1]
    own = build.build(own_spec, outputs="raw")
    canonical.fill(own, arrays)
    received = {name: np.asarray(value) for name, value in own(x).items()}
    count = int(received["there"][0].sum())
    expected, detections = peers.two_stages(model, x, received["proposals"][:, :count].copy())
    for name in ("objectness", "proposal_codes", "class_logits", "box_codes"):
        assert np.abs(expected[name]).mean() > 0.1
        own_values = received[name][:, :count] if name in ("class_logits", "box_codes") else received[name]
        np.testing.assert_allclose(own_values, expected[name], rtol=0, atol=tolerance)
    assert count == len(expected["proposals"][0])
    distance = np.abs(received["proposals"][0, :count, None] - expected["proposals"][0][None]).max(axis=2)
    assert (distance.min(axis=1) < 1e-2).mean() >= 0.99
    whole = build.build(own_spec, outputs="detections")
    canonical.fill(whole, arrays)
    found = {name: np.asarray(value) for name, value in whole(x).items()}
    for row, each in enumerate(detections):
        assert len(each["boxes"]) > 20
        assert int(found["count"][row]) == len(each["boxes"])
        each["labels"] = each["labels"] - 1  # here the background is not reported
        one = {name: value[row] for name, value in found.items()}
        assert matched(one, each, int(found["count"][row])) >= 0.99


@pytest.mark.parametrize("kind", [pytest.param("v1", marks=pytest.mark.slow), "v2"])
def test_both_stages_and_detections_are_torchvisions(kind):
    model, tensors = source(kind)
    compare(model, spec_of(kind), faster_rcnn.translate(tensors).arrays, (97, 130))


@pytest.mark.slow
@pytest.mark.parametrize("size", [(320, 416), (600, 600), (800, 1333)])
@pytest.mark.parametrize("name", KINDS.values())
def test_published_networks_say_what_torchvisions_say(name, size):
    model = peers.published(name)
    translation = faster_rcnn.translate(peers.tensors(model))
    spec, _ = faster_rcnn.identify(translation)
    assert spec == catalog.get(name).spec
    compare(model, spec, translation.arrays, size)


@pytest.mark.parametrize(("kind", "frozen"), [*((kind, False) for kind in KINDS), ("v1", True)])
def test_architectures_are_recovered_and_tensors_come_back(kind, frozen):
    _, tensors = source(kind)
    if frozen:  # as the published file is: its norms have no counters, and an epsilon of 0
        tensors = {name: array for name, array in tensors.items() if not name.endswith(".num_batches_tracked")}
    translation = faster_rcnn.translate({f"model.{name}": array for name, array in tensors.items()})
    assert not translation.leftover
    spec, assumptions = faster_rcnn.identify(translation)
    row = catalog.get(KINDS[kind]).spec
    body = networks.get("resnet10").spec.replace(norm_epsilon=0.0 if frozen else 1e-5)
    assert spec == row.replace(classes=4, backbone=body)
    assert any("anchor_sizes" in text for text in assumptions)
    again = faster_rcnn.to_torch(spec, translation.arrays)
    assert again.keys() == tensors.keys()
    for name, array in tensors.items():
        assert np.array_equal(again[name], array), name
    assert faster_rcnn.is_detector(tensors)
    assert not torchvision_detection.is_detector(tensors)


@pytest.mark.parametrize(
    ("name", "parameters", "gmacs"),
    [("faster_rcnn_resnet50", 41_755_286, 134.38), ("faster_rcnn_resnet50_v2", 43_712_278, 280.371)],
)
def test_costs_are_those_that_torchvision_states(name, parameters, gmacs):
    counted = kinds.count(catalog.get(name).spec)
    learned = counted.trainable_parameters if name.endswith("v2") else counted.parameters_with_frozen_norms
    assert learned == parameters
    assert counted.macs / 1e9 == pytest.approx(gmacs, abs=0.006)


def test_old_files_and_those_of_mask_rcnn_are_read():
    _, tensors = source("v1")
    old = {}
    for name, array in tensors.items():
        for part in ("inner_blocks", "layer_blocks"):
            for number in range(4):
                name = name.replace(f"{part}.{number}.0.", f"{part}.{number}.")
        old[name.replace("rpn.head.conv.0.0.", "rpn.head.conv.")] = array
    assert "rpn.head.conv.weight" in old
    masks = {**old, "roi_heads.mask_predictor.mask_fcn_logits.weight": np.zeros((5, 256, 1, 1), np.float32)}
    found, usual = faster_rcnn.translate(masks), faster_rcnn.translate(tensors)
    assert found.arrays.keys() == usual.arrays.keys()
    assert all(np.array_equal(found.arrays[name], usual.arrays[name]) for name in usual.arrays)
    assert "left out the branch of masks (1 tensors)" in found.left_out
    assert not found.leftover


def test_a_file_is_described_and_loaded(tmp_path):
    _, tensors = source("v2")
    path = tmp_path / "own.safetensors"
    safetensors.write_arrays(path, tensors, {"format": "pt"})
    about = describe.text(describe.describe(path))
    assert "a detector of 4 classes in two stages: levels 2 to 6 of 256 channels, 1000 proposals" in about
    found = zoo.read_any(path)
    assert (found.name, found.spec.unreported) == ("faster_rcnn", (0,))
    gaps = dataclasses.replace(found, class_names=("person", "N/A", "dog", "N/A"))
    assert pretrained.with_meaning(gaps).spec.unreported == (0, 2, 4)
    assert pretrained.with_meaning(gaps).class_names == ("person", "dog")


def test_refusals_name_the_cause():
    _, tensors = source("v1")
    fewer = {**tensors, "roi_heads.box_predictor.bbox_pred.weight": np.zeros((16, 1024), np.float32)}
    with pytest.raises(CheckpointError, match="four codes for each class output"):
        faster_rcnn.identify(faster_rcnn.translate(fewer))
    anchors = {**tensors, "rpn.head.cls_logits.weight": np.zeros((5, 256, 1, 1), np.float32)}
    with pytest.raises(CheckpointError, match="Pass anchor_sizes="):
        faster_rcnn.identify(faster_rcnn.translate(anchors))
    with pytest.raises(ArgumentError, match="unreported"):
        catalog.get("faster_rcnn_resnet50").spec.replace(unreported=())
