"""Detectors on the wire: boxes in pixels of the client's picture, in every protocol, drawn, and in the page."""

from __future__ import annotations

import base64
import dataclasses
import io
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.serving.conftest import serving

httpx = pytest.importorskip("httpx")


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """A detector with random weights, saved; and two pictures of other shapes than its letterbox."""
    from resfit.networks import catalog as networks
    from resfit.networks.detection import build, catalog
    from resfit.preprocessing import TORCH
    from resfit.tasks.detection import Detector
    from tests.networks.detection.test_build import randomize

    contract = dataclasses.replace(TORCH, size=(64, 96), resize_mode="fit", crop_fraction=1.0)
    spec = catalog.light(
        networks.get("resnet10_tiny").spec,
        **{"classes": 3, "pyramid_width": 16, "head_width": 16, "norm_groups": 4, "max_detections": 20},
    )
    model = randomize(build.build(spec, input_spec=contract, preprocess=True))
    model.class_names = ("cat", "dog", "<b>owl</b>")
    folder = tmp_path_factory.mktemp("detector")
    generator = np.random.default_rng(0)
    for name, shape in (("wide", (120, 200, 3)), ("high", (150, 90, 3))):
        small = generator.integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(small).resize(shape[1::-1]).save(folder / f"{name}.png")
    # so that some of its boxes are shown and others are not
    (found,) = Detector.of_model(model).predict(folder / "wide.png", threshold=0.0)
    threshold = float(np.sort(found.scores)[-4:-2].mean())
    Detector.of_model(model, threshold=threshold).save(folder / "pets.resfit")
    return folder


@pytest.fixture(scope="module")
def pictures(detector):
    return [detector / "wide.png", detector / "high.png"]


@pytest.fixture(scope="module")
def offline(detector, pictures):
    """What the detector itself finds, down to its lowest score."""
    from resfit.tasks.detection import Detector

    return Detector.load(detector / "pets.resfit").predict(pictures, threshold=0.0)


@pytest.fixture(scope="module")
def limit(detector):
    """The threshold of every class."""
    from resfit.tasks.detection import Detector

    (value,) = set(Detector.load(detector / "pets.resfit").thresholds.values())
    return value


@pytest.fixture(scope="module")
def server(detector, tmp_path_factory):
    with serving(detector / "pets.resfit", tmp_path_factory.mktemp("served"), "--engine", "keras") as running:
        yield running


def test_on_a_card_every_size_of_batch_is_made_ready(detector, pictures, offline, monkeypatch):
    """The engine is measured on the network of boxes, and warmed on it, as a classifier's is."""
    from resfit import engines
    from resfit.engines.keras import KerasEngine
    from resfit.serving.detection import ServedDetector
    from tests.cards import AMPERE, cards

    cards(monkeypatch, AMPERE)
    times, measured, launched = {"keras": 1.0, "openvino": 2.0}, [], []
    monkeypatch.setattr(
        engines.speed, "fastest_batch", lambda engine, images: measured.append(images.shape[1:3]) or times[engine.name]
    )
    real = KerasEngine._padded

    def padded(self, images):
        found = real(self, images)
        launched.append((self._model.name.rpartition("_")[2], self.device.kind, len(found)))
        return found

    monkeypatch.setattr(KerasEngine, "_padded", padded)
    served = ServedDetector.load(detector / "pets.resfit", "auto")
    assert (64, 96) in measured
    assert served.engine == "keras"
    served.warm_up(5)
    assert {count for name, kind, count in launched if (name, kind) == ("joined", "gpu")} == {1, 2, 4, 8}
    assert not served.is_calibrated
    served.fitted.recipe = dataclasses.replace(served.fitted.recipe, score_scale=2.0)  # as a fit does
    assert served.is_calibrated
    found = served.predict([served.decode(path.read_bytes(), 10**6) for path in pictures])
    for one, expected in zip(found, offline, strict=True):
        np.testing.assert_allclose(one.boxes, expected.boxes, atol=0.05)
        np.testing.assert_allclose(one.scores, expected.scores, atol=1e-4)
    times["openvino"] = 0.5
    assert ServedDetector.load(detector / "pets.resfit", "auto").engine == "openvino"


def post(server, path, **options):
    return httpx.post(f"{server.url}{path}", timeout=120, **options)


def test_files_give_the_boxes_of_the_detector_itself(server, pictures, offline, limit):
    files = [("file", (path.name, path.read_bytes())) for path in pictures]
    answer = post(server, "/predict?threshold=0", files=files).json()
    for entry, expected in zip(answer["predictions"], offline, strict=True):
        assert (entry["height"], entry["width"]) == expected.size
        assert [one["label"] for one in entry["boxes"]] == list(expected.labels)
        assert len(expected) > 5
        np.testing.assert_allclose([one["box"] for one in entry["boxes"]], expected.boxes, atol=0.01)
        np.testing.assert_allclose([one["score"] for one in entry["boxes"]], expected.scores, atol=1e-5)
    usual = post(server, "/predict", files=files).json()
    assert usual["calibrated"] is False  # it is as published
    for entry, expected in zip(usual["predictions"], offline, strict=True):
        assert len(entry["boxes"]) == len(expected.above(limit))
    assert 0 < len(usual["predictions"][0]["boxes"]) < len(offline[0])
    high = post(server, "/predict?threshold=1", files=files).json()
    assert [entry["boxes"] for entry in high["predictions"]] == [[], []]


def test_the_open_inference_protocol(server, pictures, offline):
    about = httpx.get(f"{server.url}/v2/models/pets", timeout=60).json()
    assert {one["name"]: (one["datatype"], one["shape"]) for one in about["outputs"][:4]} == {
        "boxes": ("FP32", [-1, 20, 4]),
        "scores": ("FP32", [-1, 20]),
        "classes": ("INT32", [-1, 20]),
        "count": ("INT32", [-1]),
    }
    encoded = [base64.b64encode(path.read_bytes()).decode() for path in pictures]
    asked = {"inputs": [{"name": "images", "shape": [2], "datatype": "BYTES", "data": encoded}]}
    answer = post(server, "/v2/models/pets/infer", json=asked).json()
    found = {one["name"]: np.reshape(one["data"], one["shape"]) for one in answer["outputs"]}
    for row, expected in enumerate(offline):
        count = found["count"][row]
        assert count == len(expected)
        np.testing.assert_allclose(found["boxes"][row, :count], expected.boxes, atol=0.01)
        assert found["classes"][row, :count].tolist() == expected.classes.tolist()
    # numbers, and what makes no sense for boxes
    pixels = np.asarray(Image.open(pictures[0]))
    asked = {"inputs": [{"name": "images", "shape": [1, *pixels.shape], "datatype": "UINT8", "data": pixels.tolist()}]}
    answer = post(server, "/v2/models/pets/infer", json=asked).json()
    found = {one["name"]: np.reshape(one["data"], one["shape"]) for one in answer["outputs"]}
    np.testing.assert_allclose(found["boxes"][0, : len(offline[0])], offline[0].boxes, atol=0.01)
    classified = {**asked, "outputs": [{"name": "scores", "parameters": {"classification": 2}}]}
    assert post(server, "/v2/models/pets/infer", json=classified).status_code == 400


def test_tensorflow_serving(server, pictures, offline):
    rows = [{"b64": base64.b64encode(path.read_bytes()).decode()} for path in pictures]
    answer = post(server, "/v1/models/pets:predict", json={"instances": rows}).json()
    for entry, expected in zip(answer["predictions"], offline, strict=True):
        assert entry["count"] == len(expected)
        np.testing.assert_allclose(entry["boxes"][: len(expected)], expected.boxes, atol=0.01)
    assert post(server, "/v1/models/pets:classify", json={"examples": [{"image_bytes": rows[0]}]}).status_code == 400


def test_the_drawn_picture(server, pictures, offline):
    answer = post(server, "/predict?format=png&threshold=0", files={"file": pictures[0].read_bytes()})
    assert answer.headers["content-type"] == "image/png"
    drawn, plain = (np.asarray(Image.open(one)).astype(int) for one in (io.BytesIO(answer.content), pictures[0]))
    assert drawn.shape == plain.shape
    x1, y1, x2, _ = offline[0].boxes[0].round().astype(int)
    assert np.abs(drawn - plain)[y1, x1 + 2 : x2 - 2].max() > 30  # an edge of the best box
    several = [("file", path.read_bytes()) for path in pictures]
    assert post(server, "/predict?format=png", files=several).status_code == 400


@pytest.mark.parametrize("value", ["2", "-0.1", "nan", "x", "1e999", ""])
def test_a_threshold_is_a_share(server, pictures, value):
    answer = post(server, f"/predict?threshold={value}", files={"file": pictures[0].read_bytes()})
    assert (answer.status_code, "threshold" in answer.json()["error"]) == (400, True)


def test_explanations_are_for_classifiers(server, pictures):
    assert post(server, "/explain", files={"file": pictures[0].read_bytes()}).status_code == 501


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_the_page_draws_boxes_and_the_slider_hides_them(server, pictures, offline, limit):
    api = pytest.importorskip("playwright.sync_api")
    from tests.serving.test_page import CHROMIUM, FLAGS, Watched, articles, scan

    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        watched = Watched(browser, server.url)
        page = watched.page
        api.expect(page.locator("#summary")).to_contain_text("finds 3 classes", timeout=60_000)
        page.set_input_files("#files", pictures[0])
        (article,) = articles(page, 1).all()
        usual = offline[0].above(limit)
        frames = article.locator(".boxes rect")
        api.expect(frames).to_have_count(len(usual))
        last = [float(frames.last.get_attribute(name)) for name in ("x", "y", "width", "height")]
        x1, y1, x2, y2 = usual.boxes[0].tolist()  # the best is drawn last
        assert last == pytest.approx([x1, y1, x2 - x1, y2 - y1], abs=0.01)
        assert article.locator(".classes li").first.inner_text() == f"{usual.labels[0]} {usual.scores[0]:.2f}"
        assert page.inner_text("#status") == f"{len(usual)} boxes."
        slider = article.locator(".threshold input")
        for value in ("0", str(round(100 * limit))):
            slider.evaluate("(one, value) => { one.value = value; one.dispatchEvent(new Event('input')); }", value)
            api.expect(frames).to_have_count(len(offline[0].above(int(value) / 100)))
        assert article.locator(".explain").is_hidden()
        watched.check()
        assert scan(page) == []
        browser.close()
