"""Faster R-CNN for other runtimes: proposals and pooling in the graph, boxes matched one by one."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

import resfit
from resfit.networks import catalog as networks
from resfit.networks.detection import build, catalog
from resfit.weights import detectors
from tests.networks.detection.test_build import randomize


def small(**changes):
    """A small Faster R-CNN of the second form with random weights, of which one class output means nothing."""
    spec = catalog.get("faster_rcnn_resnet50_v2").spec.replace(
        backbone=networks.get("resnet10_tiny").spec,
        levels=(2, 3, 4, 5),
        anchor_sizes=((16,), (32,), (48,), (64,)),
        pyramid_width=16,
        box_convs=(16,),
        box_width=32,
        classes=4,
        unreported=(0, 3),
        proposals=60,
        proposal_candidates=100,
        candidates=100,
        max_detections=30,
    )
    spec = spec.replace(**changes)
    contract = dataclasses.replace(detectors.TORCHVISION, size=(64, 96), resize_mode="letterbox")
    model = randomize(build.build(spec, input_spec=contract, preprocess=True))
    model.class_names = tuple("abcd")
    return resfit.Detector.of_model(model, threshold=0.3)


@pytest.fixture(scope="module")
def detector():
    return small()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for number in range(4):
        small = generator.integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(small).resize((150, 90 + 30 * number)).save(folder / f"{number}.jpg")
    return folder


def test_it_is_a_detector_like_any_other(detector, photos, tmp_path):
    pictures = sorted(photos.glob("*.jpg"))
    found = detector.predict(pictures, threshold=0.05)
    assert all(len(one) > 5 for one in found)
    detector.save(tmp_path / "own")
    again = resfit.Detector.load(tmp_path / "own").predict(pictures, threshold=0.05)
    for one, other in zip(found, again, strict=True):
        np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-3)
        assert one.labels == other.labels
    images = np.random.default_rng(1).integers(0, 256, (2, 64, 96, 3)).astype(np.float32)
    together = {name: np.asarray(value) for name, value in detector.suppressed()(images).items()}
    for row, image in enumerate(images):
        (alone,) = detector.predict(image.astype(np.uint8), threshold=0.0)
        count = int(together["count"][row])
        assert count == len(alone)
        np.testing.assert_allclose(together["boxes"][row, :count], alone.boxes, atol=1e-2)
    explained = detector.explain(pictures[0])[0]
    assert explained.map.max() == 1


@pytest.mark.slow
@pytest.mark.parametrize("format", ["openvino", "onnx", "litert", "tf_saved_model"])
def test_every_box_is_matched(detector, photos, tmp_path, format):
    made = detector.export(tmp_path / "out", format=format, images=photos)
    found = made.verification
    assert found.agreement == 1.0
    assert found.difference < 1e-2
    assert found.score_difference < 1e-4
    assert found.boxes >= 60
    contract = json.loads((made.folder / "contract.json").read_text("utf-8"))
    assert contract["suppression"]["kind"] == "greedy, for each class"


@pytest.mark.slow
@pytest.mark.parametrize("format", ["openvino", "onnx", "litert", "tf_saved_model"])
def test_pooling_as_detectron2_has_it_is_exported(photos, tmp_path, format):
    detector = small(aligned=True, samples=0, unreported=(3, 5), anchor_rounding=False, anchor_stride="nominal")
    found = detector.export(tmp_path / "out", format=format, images=photos).verification
    assert found.agreement == 1.0
    assert found.difference < 1e-2
    assert found.score_difference < 1e-4
    assert found.boxes >= 60
