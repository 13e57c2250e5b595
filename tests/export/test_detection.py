"""Detectors for other runtimes: matched boxes, the card's code without resfit, the letterbox in the contract."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from resfit import export as exports
from resfit.errors import ArgumentError, ExportError
from resfit.export.detection import verification
from resfit.export.detection.export_detector import of_detector

SIZE = (64, 96)


@pytest.fixture(scope="module")
def detector():
    """A detector with random weights."""
    from resfit.networks import catalog as networks
    from resfit.networks.detection import build, catalog
    from resfit.preprocessing import TORCH
    from resfit.tasks.detection import Detector
    from tests.networks.detection.test_build import randomize

    contract = dataclasses.replace(TORCH, size=SIZE, resize_mode="letterbox", crop_fraction=1.0)
    options = {"classes": 3, "pyramid_width": 16, "head_width": 16, "norm_groups": 4, "max_detections": 10}
    spec = catalog.light(networks.get("resnet10_tiny").spec, **options, candidates=100)
    model = randomize(build.build(spec, input_spec=contract, preprocess=True))
    model.class_names = ("cat", "dog", "owl")
    return Detector.of_model(model, threshold=0.3)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for number in range(4):
        small = generator.integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(small).resize((150, 90 + 30 * number)).save(folder / f"{number}.jpg")
    return folder


@pytest.fixture(scope="module")
def made(detector, photos, tmp_path_factory):
    return detector.export(tmp_path_factory.mktemp("made") / "out", format="openvino", images=photos)


def check(made, *, raw: bool = False) -> None:
    """Every box is matched; the photo that the card's code decodes is the one that resfit decodes."""
    found = made.verification
    assert found.agreement == 1.0
    assert found.difference < 1e-2
    assert found.score_difference < 1e-4
    assert found.boxes >= 20
    assert [one.difference for one in found.checks][1] == 0.0
    assert found.checks[0].difference < 1.0
    assert isinstance(found.other_size, str)
    contract = json.loads((made.folder / "contract.json").read_text("utf-8"))
    names = [one["name"] for one in contract["outputs"]]
    assert names == (["boxes", "scores"] if raw else ["boxes", "classes", "count", "scores"])
    assert contract["suppression"]["applied"] is not raw


def test_the_contract_states_letterbox_thresholds_and_suppression(detector, made):
    check(made)
    contract = json.loads((made.folder / "contract.json").read_text("utf-8"))
    assert contract["task"] == "detection"
    assert contract["input"]["shape"] == [None, *SIZE, 3]
    assert contract["image"]["resize_mode"] == "letterbox"
    assert contract["image"]["fill"] == [124, 116, 104]
    assert "as large as fits into 96x64 pixels" in contract["image"]["rule"]
    assert contract["thresholds"] == {"cat": 0.3, "dog": 0.3, "owl": 0.3}
    assert contract["suppression"]["nms_threshold"] == detector.spec.nms_threshold
    assert contract["suppression"]["max_detections"] == 10
    card = (made.folder / "README.md").read_text("utf-8")
    assert "Object detector of 3 classes as openvino in float32" in card
    assert "boxes 100.00% have a match of the same class within 0.5 px and 0.001 of the score" in card
    stored = json.loads((made.folder / "verification.json").read_text("utf-8"))
    assert stored["limits"] == {"matched": 0.99, "pixels": 0.5, "score": 1e-3}


def test_boxes_before_suppression(detector, photos, tmp_path):
    made = detector.export(tmp_path / "out", format="openvino", images=photos, raw=True)
    check(made, raw=True)


def test_what_is_refused(detector, photos, tmp_path):
    with pytest.raises(ExportError, match="a detector is exported as tf_saved_model, onnx, openvino, litert, keras"):
        detector.export(tmp_path / "out", format="tf_hub", images=photos)
    from tests.export import networks

    with pytest.raises(ArgumentError, match="raw=True is for detectors"):
        exports.export(networks.network("cifar"), tmp_path / "out", raw=True)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ArgumentError, match="name of an export"):
        of_detector(detector, name="../up", raw=False)


def boxes(*rows):
    """Boxes, scores and classes of one image."""
    table = np.array(rows, np.float32).reshape(-1, 6)
    return table[:, :4], table[:, 4], table[:, 5].astype(np.int64)


def test_matching_by_hand():
    none = np.zeros(2, np.float32)
    one, other = (0, 0, 10, 10, 0.9, 0), (5, 5, 9, 9, 0.8, 1)
    assert verification.matched([boxes(one, other)], [boxes(other, one)], "float32", none) == (1.0, 0.0, 0.0, 2)
    moved, changed = (0.4, 0, 10, 10, 0.9, 0), (5, 5, 9, 9, 0.8005, 1)
    share, pixels, scores, _ = verification.matched([boxes(moved, changed)], [boxes(one, other)], "float32", none)
    assert (share, round(pixels, 3), round(scores, 5)) == (1.0, 0.4, 0.0005)
    for wrong in ((0.6, 0, 10, 10, 0.9, 0), (0, 0, 10, 10, 0.9, 1), (0, 0, 10, 10, 0.89, 0)):
        assert verification.matched([boxes(wrong, other)], [boxes(one, other)], "float32", none)[0] == 0.5
    # one box stands for one other alone, and what is found besides counts
    assert verification.matched([boxes(one, one)], [boxes(one)], "float32", none)[0] == pytest.approx(2 / 3)
    assert verification.matched([boxes()], [boxes()], "float32", none)[0] == 1.0
    broken = (np.nan, 0, 10, 10, 0.9, 0)
    assert verification.matched([boxes(broken)], [boxes(one)], "float32", none)[0] == 0.0
    # in eight bits: boxes over the threshold, by their overlap
    near = (1, 0, 10, 10, 0.7, 0)
    limits = np.array([0.5, 0.95], np.float32)
    assert verification.matched([boxes(near)], [boxes(one, other)], "int8", limits)[0] == 1.0
    assert verification.matched([boxes((5, 0, 15, 10, 0.9, 0))], [boxes(one)], "int8", limits)[0] == 0.0


def test_a_loss_of_precision_is_a_problem():
    found = verification.DetectionVerification(
        runtime="", precision="int8", images=1, source="", difference=0, agreement=1, accuracy=0.48, keras_accuracy=0.5,
        latency=0, boxes=3,
    )  # fmt: skip
    assert found.problems == ("the box AP is 0.480, Keras' is 0.500",)
    assert not dataclasses.replace(found, accuracy=0.495).problems
    assert dataclasses.replace(found, accuracy=None, agreement=0.8).problems
    exact = dataclasses.replace(found, precision="float32")
    assert not exact.problems
    assert "98.0% of the boxes" in dataclasses.replace(exact, agreement=0.98).problems[0]


@pytest.mark.slow
@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("format", ["tf_saved_model", "onnx", "litert", "keras"])
def test_other_formats(detector, photos, tmp_path, format, raw):
    check(detector.export(tmp_path / "out", format=format, images=photos, raw=raw), raw=raw)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "openvino", "litert"])
def test_int8(detector, photos, tmp_path, format):
    found = detector.export(tmp_path / "out", format=format, precision="int8", images=photos).verification
    assert found.agreement >= 0.9
