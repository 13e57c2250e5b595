"""torchvision's Faster R-CNN: names, architecture, both stages and detections."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import numpy as np
import pytest

from resfit import zoo
from resfit.errors import ArgumentError, CheckpointError
from resfit.networks import catalog as networks
from resfit.networks.detection import build, catalog, kinds
from resfit.tasks.detection import pretrained
from resfit.weights import canonical, describe
from resfit.weights import detectors as reading
from resfit.weights.conventions import faster_rcnn, torchvision_detection
from resfit.weights.conventions.base import find_convention
from resfit.weights.formats import safetensors
from resfit.weights.formats.base import Tensors
from tests.networks.detection import peers
from tests.weights.test_dense_detection import detectron_body
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
@pytest.mark.parametrize("size", [(320, 416), (600, 600), (640, 640), (800, 1333)])
@pytest.mark.parametrize("name", KINDS.values())
def test_published_networks_say_what_torchvisions_say(name, size):
    model = peers.published(name)
    translation = faster_rcnn.translate(peers.tensors(model))
    spec, _ = faster_rcnn.identify(translation)
    assert spec == catalog.get(name).spec
    compare(model, spec, translation.arrays, size)


def detectron() -> dict[str, np.ndarray]:
    """The tensors of the first form as detectron2 names them: the background last, and no boxes of it."""
    found: dict[str, np.ndarray] = {}
    for name, array in source("v1")[1].items():
        parts = name.split(".")
        if name.startswith("backbone.body."):
            renamed = f"backbone.bottom_up.{detectron_body(name.removeprefix('backbone.body.'))}"
        elif name.startswith("backbone.fpn."):
            own = {"inner_blocks": "fpn_lateral", "layer_blocks": "fpn_output"}[parts[2]]
            renamed = f"backbone.{own}{int(parts[3]) + 2}.{parts[-1]}"
        elif name.startswith("rpn."):
            own = {"conv": "conv", "cls_logits": "objectness_logits", "bbox_pred": "anchor_deltas"}[parts[2]]
            renamed = f"proposal_generator.rpn_head.{own}.{parts[-1]}"
        else:
            renamed = name.replace("fc6", "fc1").replace("fc7", "fc2")
        if parts[-2] == "cls_score":
            array = np.roll(array, -1, axis=0)
        elif parts[-2] == "bbox_pred" and parts[0] == "roi_heads":
            array = array[4:]
        found[renamed] = np.ascontiguousarray(array)
    found["pixel_mean"] = np.array([103.53, 116.28, 123.675], np.float32).reshape(3, 1, 1)
    found["pixel_std"] = np.ones((3, 1, 1), np.float32)
    found["proposal_generator.anchor_generator.cell_anchors.0"] = np.zeros((3, 4), np.float32)
    return {name: array for name, array in found.items() if not name.endswith("num_batches_tracked")}


def overlap(one: np.ndarray, others: np.ndarray) -> np.ndarray:
    sides = np.maximum(np.minimum(one[2:], others[:, 2:]) - np.maximum(one[:2], others[:, :2]), 0)
    shared = sides[:, 0] * sides[:, 1]
    areas = [(box[..., 2] - box[..., 0]) * (box[..., 3] - box[..., 1]) for box in (one, others)]
    return shared / np.maximum(areas[0] + areas[1] - shared, 1e-9)


def suppressed(boxes: np.ndarray, scores: np.ndarray, groups: np.ndarray, threshold: float) -> np.ndarray:
    """What a loop over boxes keeps, the best first."""
    order, kept = np.argsort(-scores, kind="stable").tolist(), []
    while order:
        best = order.pop(0)
        kept.append(best)
        rest = np.array(order, int)
        over = overlap(boxes[best], boxes[rest]) if len(rest) else np.zeros(0)
        order = rest[~((over > threshold) & (groups[rest] == groups[best]))].tolist()
    return np.array(kept, int)


def moved(codes: np.ndarray, boxes: np.ndarray, weights: tuple[float, ...]) -> np.ndarray:
    """Boxes of deltas, which detectron2 divides by weights, sizes cut at log(1000/16)."""
    codes = codes.astype(np.float64) / weights
    side = boxes[:, 2:] - boxes[:, :2]
    middle = boxes[:, :2] + 0.5 * side + codes[:, :2] * side
    size = side * np.exp(np.minimum(codes[:, 2:], math.log(1000 / 16)))
    return np.concatenate([middle - size / 2, middle + size / 2], axis=1)


def pooled(plane: np.ndarray, box: np.ndarray, stride: int) -> np.ndarray:
    """What lies in a box, 7x7: pixels are points in the middle of their cells, as many samples as a cell is high."""
    rows, columns, _ = plane.shape
    left, top, right, bottom = box / stride - 0.5
    found = np.zeros((7, 7, plane.shape[2]))
    for axis_counts in [(math.ceil((bottom - top) / 7), math.ceil((right - left) / 7))]:
        down, across = axis_counts
        for i, j in np.ndindex(7, 7):
            for k, m in np.ndindex(down, across):
                y = top + (bottom - top) / 7 * (i + (k + 0.5) / down)
                x = left + (right - left) / 7 * (j + (m + 0.5) / across)
                if not (-1 <= y <= rows and -1 <= x <= columns):
                    continue
                y, x = min(max(y, 0), rows - 1), min(max(x, 0), columns - 1)
                t, s = int(y), int(x)
                b, e = min(t + 1, rows - 1), min(s + 1, columns - 1)
                fy, fx = y - t, x - s
                upper = plane[t, s] * (1 - fx) + plane[t, e] * fx
                lower = plane[b, s] * (1 - fx) + plane[b, e] * fx
                found[i, j] += (upper * (1 - fy) + lower * fy) / (down * across)
    return found


def as_detectron2(x: np.ndarray, kept: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Detections and proposals by detectron2's rules, written out in numpy over the layers of torchvision's network."""
    import torch

    model, limits = source("v1")[0], [x.shape[2], x.shape[1]] * 2
    with torch.no_grad():
        maps = list(model.backbone(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).values())
        said = [[one[0].numpy() for one in pair] for pair in zip(*model.rpn.head(maps), strict=True)]
    boxes, scores, groups = [], [], []
    for level, (logits, codes) in enumerate(said):
        stride, size = 4 * 2**level, 32 * 2**level
        rows, columns = logits.shape[1:]
        sides = np.array([[size / math.sqrt(r), size * math.sqrt(r)] for r in (0.5, 1.0, 2.0)])
        y, x_ = (part.ravel() for part in np.mgrid[:rows, :columns])
        centres = np.repeat(np.stack([x_, y], 1) * stride, 3, axis=0)
        side = np.tile(sides, (rows * columns, 1))
        anchors = np.concatenate([centres - side / 2, centres + side / 2], axis=1)
        score = logits.transpose(1, 2, 0).reshape(-1)
        order = np.argsort(-score, kind="stable")[:1000]
        own = moved(codes.reshape(3, 4, rows, columns).transpose(2, 3, 0, 1).reshape(-1, 4), anchors, (1, 1, 1, 1))
        clipped = own[order].clip(0, limits)
        there = (clipped[:, 2:] > clipped[:, :2]).all(axis=1)  # what clipping leaves empty is gone
        boxes.append(clipped[there])
        scores.append(score[order][there])
        groups.append(np.full(there.sum(), level))
    boxes, scores, groups = (np.concatenate(one) for one in (boxes, scores, groups))
    proposals = boxes[suppressed(boxes, scores, groups, 0.7)[:kept]]
    area = np.sqrt(np.prod(proposals[:, 2:] - proposals[:, :2], axis=1))
    own = np.clip(np.floor(4 + np.log2(area / 224 + 1e-8)), 2, 5).astype(int)
    planes = [one[0].numpy().transpose(1, 2, 0).astype(np.float64) for one in maps]
    regions = [pooled(planes[level - 2], box, 2**level) for box, level in zip(proposals, own, strict=True)]
    with torch.no_grad():
        flat = torch.from_numpy(np.stack(regions).transpose(0, 3, 1, 2).astype(np.float32))
        logits, codes = (one.numpy() for one in model.roi_heads.box_predictor(model.roi_heads.box_head(flat)))
    logits, codes = np.roll(logits, -1, axis=1), codes[:, 4:]
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares = (shares / shares.sum(1, keepdims=True))[:, :-1]
    rows, labels = np.nonzero(shares > 0.05)
    chosen = moved(codes.reshape(len(codes), -1, 4)[rows, labels], proposals[rows], (10, 10, 5, 5)).clip(0, limits)
    final = suppressed(chosen, shares[rows, labels], labels, 0.5)[:100]
    detections = {"boxes": chosen[final], "scores": shares[rows, labels][final], "labels": labels[final]}
    return detections, proposals


def test_detectron2s_detections_are_those_of_its_rules():
    read = Tensors(None, detectron(), {}, None, None, None)  # type: ignore[arg-type]
    convention = find_convention(read)
    assert convention is not None
    assert convention.is_larger
    spec = reading.read(read, faster_rcnn).spec
    x = images(96, 128)[:1]
    expected, proposals = as_detectron2(x, 60)
    arrays = faster_rcnn.translate(detectron()).arrays
    few = spec.replace(proposals=60)
    raw, whole = (build.build(few, outputs=one) for one in ("raw", "detections"))
    for model in (raw, whole):
        canonical.fill(model, arrays)
    own = np.asarray(raw(x)["proposals"])[0]
    assert (np.abs(own[:, None] - proposals[None]).max(axis=2).min(axis=1) < 1e-2).all()
    found = {name: np.asarray(value)[0] for name, value in whole(x).items()}
    assert len(expected["boxes"]) > 10
    assert int(found["count"]) == len(expected["boxes"])
    assert matched(found, expected, int(found["count"])) >= 0.99
    # with corners in place of middles, or a fixed number of samples, it is another detector
    for change in ({"aligned": False}, {"samples": 2}):
        other = build.build(few.replace(**change), outputs="raw")
        canonical.fill(other, arrays)
        assert np.abs(np.asarray(other(x)["class_logits"]) - np.asarray(raw(x)["class_logits"])).max() > 1e-2


def test_detectron2s_files_are_read_with_their_contract():
    found = reading.read(Tensors(None, detectron(), {}, None, None, None), faster_rcnn)  # type: ignore[arg-type]
    spec = found.spec
    assert (spec.classes, spec.unreported, spec.background, spec.reported) == (4, (4,), 4, (0, 1, 2, 3))
    assert (spec.aligned, spec.samples, spec.anchor_rounding, spec.anchor_stride) == (True, 0, False, "nominal")
    assert (found.input_spec.channel_order, found.input_spec.mean) == ("bgr", pytest.approx((103.53, 116.28, 123.675)))
    said = " ".join(found.assumptions)
    assert "CC BY-SA 3.0" in said
    assert "samples=0 (detectron2's Faster R-CNN" in said
    with pytest.raises(ArgumentError, match="background first"):
        faster_rcnn.to_torch(spec, found.arrays)
    masks = {**detectron(), "roi_heads.mask_head.predictor.weight": np.zeros((4, 256, 1, 1), np.float32)}
    assert any("branch of masks" in text for text in faster_rcnn.translate(masks).left_out)
    bare = {name: array for name, array in detectron().items() if "bbox_pred.bias" not in name}
    with pytest.raises(CheckpointError, match="four codes for each class output"):
        faster_rcnn.identify(faster_rcnn.translate(bare))


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
