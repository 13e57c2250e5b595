"""RT-DETR, DETR and Deformable DETR for other runtimes: sampling as gathers, no suppression, boxes matched one by one,
images of RT-DETR stretched.
"""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

import resfit
from resfit.networks.detection import build
from resfit.weights import canonical, detectors
from resfit.weights.conventions import deformable_detr, detr, rtdetr
from tests.networks.detection import rtdetr_peers as peers
from tests.weights import test_deformable_detr, test_detr


@pytest.fixture(scope="module")
def detector():
    """A small RT-DETR with transformers' random weights."""
    translation = rtdetr.translate(peers.tensors(peers.small(2)))
    spec, _ = rtdetr.identify(translation, encoder_heads=4, queries=40, max_detections=30)
    small = dataclasses.replace(detectors.RTDETR, size=(64, 96))
    model = build.build(spec, input_spec=small, preprocess=True)
    canonical.fill(model, translation.arrays)
    model.class_names = tuple("abcde")
    return resfit.Detector.of_model(model, threshold=0.3)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for number in range(4):
        small = generator.integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(small).resize((150, 90 + 30 * number)).save(folder / f"{number}.jpg")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("format", ["openvino", "onnx", "litert", "tf_saved_model"])
@pytest.mark.parametrize("kind", ["detr", "two_stage"])
def test_boxes_of_the_others_are_matched(kind, photos, tmp_path, format):
    if kind == "detr":
        translation = detr.translate(test_detr.source()[1])
        spec, _ = detr.identify(translation, heads=4, max_detections=12)
    else:
        translation = deformable_detr.translate(test_deformable_detr.source("two_stage")[1])
        spec, _ = deformable_detr.identify(translation, heads=4, queries=12, max_detections=12)
    contract = dataclasses.replace(detectors.TORCHVISION, size=(64, 96), resize_mode="letterbox")
    model = build.build(spec, input_spec=contract, preprocess=True)
    canonical.fill(model, translation.arrays)
    model.class_names = tuple("abcdefgh")[: spec.classes]
    made = resfit.Detector.of_model(model, threshold=0.1).export(tmp_path / "out", format=format, images=photos)
    found = made.verification
    assert found.agreement == 1.0
    assert found.difference < 1e-2
    assert found.score_difference < 1e-4
    assert found.boxes >= 10
    assert [one.difference for one in found.checks][1] == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("format", ["openvino", "onnx", "litert", "tf_saved_model"])
def test_every_box_is_matched(detector, photos, tmp_path, format):
    made = detector.export(tmp_path / "out", format=format, images=photos)
    found = made.verification
    assert found.agreement == 1.0
    assert found.difference < 1e-2
    assert found.score_difference < 1e-4
    assert found.boxes >= 100
    assert [one.difference for one in found.checks][1] == 0.0  # the card's code decodes as resfit does
    contract = json.loads((made.folder / "contract.json").read_text("utf-8"))
    assert contract["suppression"]["kind"] == "none: the best pairs of a query and a class"
    assert "whatever the aspect ratio" in contract["image"]["rule"]
    card = (made.folder / "README.md").read_text("utf-8")
    assert "there is no suppression" in card
