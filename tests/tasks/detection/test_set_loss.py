"""The set loss of RT-DETR against transformers', its matching and denoising queries, and one image fitted."""

from __future__ import annotations

import numpy as np
import pytest

from resfit.errors import ArgumentError
from resfit.tasks.detection import query_training, set_loss
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


def test_another_network_is_refused():
    with pytest.raises(ArgumentError, match="RT-DETR"):
        query_training.QueryTrainer(None)


def small():
    """An RT-DETR of one layer with fresh weights on the built-in network."""
    import keras

    from resfit.networks import catalog
    from resfit.networks.detection import build
    from resfit.networks.detection.rtdetr_spec import RTDETRSpec
    from resfit.weights import detectors

    keras.utils.set_random_seed(0)
    body = catalog.get("resnet10").spec.replace(widths=(16, 16, 24, 32), inner_widths=(16, 16, 24, 32))
    spec = RTDETRSpec(
        body,
        encoder_width=32,
        encoder_hidden=48,
        encoder_heads=4,
        fusion_width=32,
        fusion_blocks=1,
        decoder_width=32,
        decoder_depth=1,
        decoder_hidden=48,
        decoder_heads=4,
        queries=20,
        classes=3,
    )
    return build.build(spec, input_spec=detectors.RTDETR, preprocess=True)


@pytest.mark.slow
def test_one_image_is_learned_by_heart():
    model = small()
    image = np.random.default_rng(0).integers(0, 60, (1, 96, 96, 3)).astype(np.uint8)
    boxes = np.array([[8, 10, 40, 50], [50, 40, 90, 88]], np.float64)
    for number, (x1, y1, x2, y2) in enumerate(boxes.astype(int)):
        image[0, y1:y2, x1:x2, number] = 230
    told: list[float] = []
    fitted = query_training.fit_boxes(
        model,
        image,
        [np.array([0, 2])],
        [boxes],
        steps=400,
        learning_rate=2e-3,
        denoising=4,
        say=lambda number, parts: told.append(sum(parts.values())),
    )
    assert fitted is model
    assert np.mean(told[-20:]) < 0.1 * told[0]
    found = {name: np.asarray(value)[0] for name, value in model(image).items()}
    for box, label in zip(boxes, (0, 2), strict=True):
        best = found["scores"][:, label].argmax()
        overlap, _ = set_loss.overlaps(found["boxes"][best], box, np)
        assert overlap > 0.85
        assert found["scores"][best, label] > 0.6
