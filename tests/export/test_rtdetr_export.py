"""RT-DETR for other runtimes: sampling as gathers, no suppression, boxes matched one by one, images stretched."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

import resfit
from resfit.networks.detection import build
from resfit.weights import canonical, detectors
from resfit.weights.conventions import rtdetr
from tests.networks.detection import rtdetr_peers as peers


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
