"""The set loss of RT-DETR against transformers', its matching, and its denoising queries."""

from __future__ import annotations

import numpy as np
import pytest

from resfit.tasks.detection import set_loss
from tests import torchside


def batch(seed: int = 0) -> tuple[set_loss.BoxTargets, dict[str, np.ndarray]]:
    """Three images with 2, 0 and 3 boxes, and what two layers and the choice of queries say of them."""
    generator = np.random.default_rng(seed)
    classes = [generator.integers(0, 4, count) for count in (2, 0, 3)]
    low = [generator.uniform(0, 50, (len(one), 2)) for one in classes]
    boxes = [np.concatenate([one, one + generator.uniform(5, 40, one.shape)], axis=1) for one in low]
    targets = set_loss.BoxTargets.of(classes, boxes, (96, 128))
    outputs = {}
    for logits, given in (("proposal_logits", "proposal_boxes"), ("logits_1", "boxes_1"), ("logits_2", "boxes_2")):
        outputs[logits] = generator.normal(-1, 2, (3, 9, 4)).astype(np.float32)
        outputs[given] = generator.uniform(0.1, 0.6, (3, 9, 4)).astype(np.float32)
    return targets, outputs


def test_the_loss_is_transformers():
    torchside.library("transformers")
    import torch
    from transformers import RTDetrConfig
    from transformers.loss.loss_rt_detr import RTDetrLoss

    targets, outputs = batch()
    config = RTDetrConfig(num_labels=4)
    labels = [
        {
            "class_labels": torch.from_numpy(own[own >= 0].astype(np.int64)),
            "boxes": torch.from_numpy(boxes[own >= 0]),
        }
        for own, boxes in zip(targets.classes, targets.boxes, strict=True)
    ]
    theirs = {name: torch.from_numpy(value) for name, value in outputs.items()}
    pairs = [{"logits": theirs[f"{n}logits{m}"], "pred_boxes": theirs[f"{n}boxes{m}"]} for n, m in _NAMES]
    expected = RTDetrLoss(config)({**pairs[0], "auxiliary_outputs": pairs[1:]}, labels)
    matches = {name: set_loss.match(*pair, targets) for name, pair in set_loss.layers(outputs).items()}
    received = set_loss.set_loss(outputs, targets, matches)
    for part, name in (("class", "loss_vfl"), ("box", "loss_bbox"), ("overlap", "loss_giou")):
        total = sum(float(value) for key, value in expected.items() if key.startswith(name))
        assert float(received[part]) == pytest.approx(total, rel=1e-5)
    assert float(received["denoising"]) == 0


_NAMES = (("", "_2"), ("", "_1"), ("proposal_", ""))


@pytest.mark.parametrize("kind", ["detr", "deformable_detr"])
def test_the_losses_of_detr_are_transformers(kind):
    torchside.library("transformers")
    import torch
    from transformers.loss import loss_deformable_detr, loss_for_object_detection

    targets, outputs = batch()
    settings = set_loss.DETR if kind == "detr" else set_loss.DEFORMABLE_DETR
    if kind == "detr":
        matcher = loss_for_object_detection.HungarianMatcher(1, 5, 2)
        theirs = loss_for_object_detection.ImageLoss(matcher, 3, 0.1, ["labels", "boxes"])
        targets = set_loss.BoxTargets(np.minimum(targets.classes, 2), targets.boxes)  # the last is for no object
    else:
        matcher = loss_deformable_detr.DeformableDetrHungarianMatcher(2, 5, 2)
        theirs = loss_deformable_detr.DeformableDetrImageLoss(matcher, 4, 0.25, ["labels", "boxes"])
    labels = [
        {"class_labels": torch.from_numpy(own[own >= 0].astype(np.int64)), "boxes": torch.from_numpy(boxes[own >= 0])}
        for own, boxes in zip(targets.classes, targets.boxes, strict=True)
    ]
    if kind == "detr":
        outputs = {name: value for name, value in outputs.items() if not name.startswith("proposal")}
    expected = dict.fromkeys(("class", "box", "overlap"), 0.0)
    for logits, boxes in (("", "_1"), ("", "_2"), ("proposal_", "")):
        names = [f"{logits}{part}{boxes}" for part in ("logits", "boxes")]
        if names[0] not in outputs:
            continue
        pair = dict(zip(("logits", "pred_boxes"), (torch.from_numpy(outputs[name]) for name in names), strict=True))
        # the choice of queries learns whether there is an object
        own = [{**one, "class_labels": one["class_labels"] * (0 if logits else 1)} for one in labels]
        for part, value in theirs(pair, own).items():
            weight = {"loss_ce": settings.class_weight, "loss_bbox": 5.0, "loss_giou": 2.0}[part]
            expected[{"loss_ce": "class", "loss_bbox": "box", "loss_giou": "overlap"}[part]] += weight * float(value)
    matches = {
        name: set_loss.match(*pair, set_loss.targets_of(name, targets, settings), settings)
        for name, pair in set_loss.layers(outputs).items()
    }
    received = set_loss.set_loss(outputs, targets, matches, settings=settings)
    for part, value in expected.items():
        assert float(received[part]) == pytest.approx(value, rel=1e-5)


def test_every_box_has_a_query_of_its_own():
    targets, outputs = batch(1)
    found = set_loss.match(outputs["logits_1"], outputs["boxes_1"], targets)
    assert (found >= 0).sum(axis=1).tolist() == [2, 0, 3]
    assert len(set(found[2].tolist())) == 3
    few = set_loss.match(outputs["logits_1"][:, :2], outputs["boxes_1"][:, :2], targets)
    assert sorted(few[2].tolist()) == [-1, 0, 1]  # one box finds none
    broken = outputs["boxes_1"].copy()
    broken[2, 0] = np.nan
    assert 0 not in set_loss.match(outputs["logits_1"], broken, targets)[2]


def test_denoising_queries_stand_at_their_boxes_and_keep_to_themselves():
    targets, _ = batch()
    noise = set_loss.denoising_queries(targets, 4, 9, np.random.default_rng(0), count=7, label_noise=0.0)
    most = targets.classes.shape[1]
    assert (noise.groups, noise.classes.shape) == (2, (3, 12))
    assert noise.classes[0].tolist() == [*targets.classes[0, :2].tolist(), 4] * 4
    boxes = 1 / (1 + np.exp(-noise.codes))
    overlap, _ = set_loss.overlaps(set_loss.corners(boxes[2, :most]), set_loss.corners(targets.boxes[2]), np)
    beside, _ = set_loss.overlaps(set_loss.corners(boxes[2, most : 2 * most]), set_loss.corners(targets.boxes[2]), np)
    assert overlap.mean() > beside.mean()
    seen = noise.mask == 0
    assert seen[:6, :6].all()
    assert seen[6:12, 6:12].all()
    assert not seen[:6, 6:12].any()
    assert not seen[12:, :12].any()
    assert seen[:, 12:].all()
