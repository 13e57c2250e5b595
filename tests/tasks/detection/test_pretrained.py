"""Published detectors as detectors of their own classes: gaps, thresholds, pictures of both orientations."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from resfit.data import inputs
from resfit.errors import ArgumentError, CheckpointError
from resfit.networks import catalog as networks
from resfit.networks.detection import build, catalog
from resfit.tasks import dispatch
from resfit.tasks.detection import Detector, orientation, pretrained
from resfit.weights import canonical, detectors, write
from tests.networks.detection.test_build import randomize

NAMES = ("__background__", "person", "N/A", "cat", "N/A")


@pytest.fixture(scope="module")
def model():
    """A small detector of five outputs, three of which stand for nothing; its anchors are those of RetinaNet."""
    anchored = catalog.get("retinanet_resnet50").spec
    spec = anchored.replace(
        backbone=networks.get("resnet10_tiny").spec,
        classes=len(NAMES),
        **{"pyramid_width": 8, "head_width": 8, "head_depth": 1, "max_detections": 20},
    )
    contract = dataclasses.replace(detectors.TORCHVISION, size=(64, 96))
    made = randomize(build.build(spec, input_spec=contract, preprocess=True))
    made.class_names = NAMES
    return made


@pytest.fixture(scope="module")
def file(model, tmp_path_factory):
    return write.write(model, tmp_path_factory.mktemp("file") / "small.safetensors", naming="resfit")


def test_outputs_that_stand_for_nothing_are_left_out(model, file):
    detector = Detector.pretrained(file, threshold=0.4)
    assert detector.classes == ("person", "cat")
    assert detector.thresholds == {"person": 0.4, "cat": 0.4}
    assert (detector.recipe.trained, detector.spec.classes) == ("published", 2)
    x = np.random.default_rng(0).integers(0, 256, (1, 64, 96, 3)).astype(np.float32)
    own, whole = detector.model(x), model(x)
    np.testing.assert_allclose(own["scores"], np.asarray(whole["scores"])[..., [1, 3]], atol=1e-6)
    np.testing.assert_allclose(own["boxes"], whole["boxes"], atol=1e-3)


def test_pictures_of_both_orientations_get_a_letterbox_of_their_own(model, file):
    detector = Detector.pretrained(file)
    generator = np.random.default_rng(1)
    sizes = [(60, 200), (200, 60), (80, 80), (50, 40)]
    arrays = [generator.integers(0, 256, (*size, 3), np.uint8) for size in sizes]
    together = detector.predict(arrays, threshold=0.0)
    assert [one.size for one in together] == sizes
    for one, array, size in zip(together, arrays, sizes, strict=True):
        portrait = size[0] > size[1]
        contract = orientation.letterbox_for(detector.input_spec, portrait=portrait)
        assert (contract.size, contract.resize_mode) == ((96, 64) if portrait else (64, 96), "letterbox")
        alone = Detector(**{**pretrained.of_model(model), "input_spec": contract}).predict(array, threshold=0.0)[0]
        kept = np.isin(alone.classes, (1, 3))
        assert len(one) >= kept.sum() > 0
        assert one.boxes[:, 2].max() <= size[1]
        assert one.boxes[:, 3].max() <= size[0]
        np.testing.assert_allclose(one.boxes[0], alone.boxes[kept][0], atol=1e-2)


def test_orientations_are_those_that_are_displayed(tmp_path):
    image = Image.new("RGB", (40, 20))
    exif = Image.Exif()
    exif[274] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    image.save(tmp_path / "wide.jpg")
    turned, wide = (tmp_path / f"{name}.jpg" for name in ("turned", "wide"))
    assert orientation.is_portrait(turned)
    assert not orientation.is_portrait(wide)
    assert orientation.is_portrait(turned.read_bytes())
    with Image.open(io.BytesIO(turned.read_bytes())) as opened:
        assert orientation.is_portrait(opened)
    contract = detectors.TORCHVISION
    (item,) = inputs.listed(np.zeros((30, 20, 3), np.uint8), contract).items
    assert orientation.is_portrait(item)
    assert not orientation.is_portrait(tmp_path / "missing.jpg")


def test_a_published_detector_is_saved_and_opened(file, tmp_path):
    detector = Detector.pretrained(file)
    detector.save(tmp_path / "own.resfit")
    again = Detector.load(tmp_path / "own.resfit")
    assert again.input_spec == detector.input_spec
    picture = np.random.default_rng(2).integers(0, 256, (90, 50, 3), np.uint8)
    one, other = (found.predict(picture, threshold=0.0)[0] for found in (detector, again))
    np.testing.assert_array_equal(one.boxes, other.boxes)
    assert isinstance(dispatch.load_or_pretrained(file), Detector)
    assert pretrained.recognises("fcos_resnet50")
    assert not pretrained.recognises("resnet50")


def test_what_is_no_detector_is_refused(model, tmp_path):
    with pytest.raises(CheckpointError, match="a classifier"):
        pretrained.load("resnet10_tiny")
    with pytest.raises(ArgumentError, match="'boxes' and 'scores'"):
        Detector.of_model(build.build(model.architecture, outputs="raw"))
    bare = build.build(model.architecture, input_spec=model.input_spec)
    with pytest.raises(ArgumentError, match="preprocess=False"):
        Detector.of_model(bare)
    assert canonical.arrays(bare).keys() == canonical.arrays(model).keys()
