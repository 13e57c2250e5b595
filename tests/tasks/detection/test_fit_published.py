"""Published detectors on one's own boxes: all is kept but the class layer, and the whole learns."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from keras import ops
from PIL import Image

import resfit
from resfit.errors import ArgumentError
from resfit.networks import catalog as networks
from resfit.networks.detection import build, catalog
from resfit.networks.detection.rtdetr_spec import RTDETRSpec
from resfit.tasks.detection import Detector, network, pretrained
from resfit.tasks.detection.fit import plan
from resfit.tasks.detection.objectives import objective_of
from resfit.tasks.detection.set_loss import no_queries
from resfit.tasks.detection.targets import BACKGROUND, IGNORED, Places
from resfit.weights import canonical, detectors, write
from tests import torchside
from tests.tasks.detection.drawn import write_set

BODY = networks.get("resnet10").spec.replace(widths=(16, 16, 24, 32), inner_widths=(16, 16, 24, 32))
SMALL = {"pyramid_width": 32, "head_width": 32, "head_depth": 1, "norm_groups": 8, "max_detections": 20}
SIZE = (96, 128)


def dense(kind):
    """A small dense detector of a published kind with fresh weights, as a file would bring it."""
    import keras

    keras.utils.set_random_seed(0)
    base = {
        "retinanet": catalog.get("retinanet_resnet50_v2").spec,
        "fcos": catalog.get("fcos_resnet50").spec,
        "gfl": catalog.light(BODY, box_coding="distribution", quality=None, distribution_bins=9),
    }[kind]
    spec = base.replace(backbone=networks.get("resnet10_tiny").spec, classes=5, **SMALL)
    made = build.build(spec, input_spec=dataclasses.replace(detectors.TORCHVISION, size=SIZE), preprocess=True)
    canonical.fill(
        made, {**canonical.arrays(made), **canonical.arrays(resfit.load("resnet10_tiny", include_top=False))}
    )
    return made


def queries(classes=3):
    """A small RT-DETR with fresh weights on the built-in network."""
    import keras

    keras.utils.set_random_seed(0)
    narrow = {
        f"{part}_{field}": size for part in ("encoder", "decoder") for field, size in (("width", 32), ("hidden", 48))
    }
    spec = RTDETRSpec(
        networks.get("resnet10_tiny").spec,
        **narrow,
        levels=(3, 4),
        encoder_heads=4,
        decoder_heads=4,
        fusion_width=32,
        fusion_blocks=1,
        decoder_depth=2,
        queries=20,
        classes=classes,
    )
    made = build.build(spec, input_spec=detectors.RTDETR, preprocess=True)
    canonical.fill(
        made, {**canonical.arrays(made), **canonical.arrays(resfit.load("resnet10_tiny", include_top=False))}
    )
    return made


@pytest.fixture(scope="module")
def one_picture(tmp_path_factory):
    """One training picture, and a validation picture that is nearly the same."""
    folder = write_set(tmp_path_factory.mktemp("one") / "set", {"train": 1, "val": 1, "test": 1}, seed=3)
    image = np.asarray(Image.open(folder / "train-0.png"))
    Image.fromarray(image).save(folder / "val-0.png")
    lines = (folder / "labels.csv").read_text().splitlines()
    own = [line for line in lines if line.startswith("train-0")]
    copies = [line.replace("train", "val") for line in own]
    rest = [line for line in lines if line.startswith("test")]
    (folder / "labels.csv").write_text("\n".join([lines[0], *own, *copies, *rest]) + "\n")
    return folder


def boxes_of(folder, name):
    rows = [line.split(",") for line in (folder / "labels.csv").read_text().splitlines() if line.startswith(name)]
    return [(row[1], np.array(row[2:6], float)) for row in rows]


# what is left of each loss: centre-ness has a cross-entropy of its own, denoising queries begin elsewhere each time
LEFT = {"retinanet": 0.02, "gfl": 0.1, "fcos": 0.8, "rtdetr": 5.0}


@pytest.mark.parametrize(
    ("kind", "epochs"),
    [
        pytest.param("retinanet", 80, marks=pytest.mark.slow),
        pytest.param("fcos", 80, marks=pytest.mark.slow),
        pytest.param("gfl", 80, marks=pytest.mark.slow),
        pytest.param("rtdetr", 250, marks=pytest.mark.slow),
    ],
)
def test_one_picture_is_learned_by_heart(kind, epochs, one_picture, tmp_path):
    model = queries() if kind == "rtdetr" else dense(kind)
    before = canonical.arrays(model)
    tuning = {"epochs": epochs, "learning_rate": 5e-3 if kind != "rtdetr" else 2e-3, "denoising": 8}
    found = resfit.fit(
        one_picture, model=model, size=SIZE, views=1, strategy="head", batch_size=1, tuning=tuning, cache=tmp_path
    )
    history = found.run.history
    assert history[-1]["train_loss"] < LEFT[kind]
    assert history[0]["val_ap"] < 0.1
    assert found.metrics["validation"]["ap"] > 0.9
    (seen,) = found.predict(one_picture / "train-0.png")
    for label, box in boxes_of(one_picture, "train-0"):
        near = np.abs(seen.boxes - box).max(axis=1) < 3
        assert any(near[i] and seen.labels[i] == label for i in range(len(seen)))
    after = canonical.arrays(model)
    assert all(np.array_equal(before[name], after[name]) for name in before)  # the caller's model stays as it is


FEW = {"size": SIZE, "views": 1, "batch_size": 4, "seed": 1}


@pytest.mark.slow
def test_a_small_rtdetr_learns_drawn_pictures_and_is_a_detector(tmp_path):
    folder = write_set(tmp_path / "set", {"train": 32, "val": 8, "test": 8})
    file = write.write(queries(), tmp_path / "small.safetensors", naming="resfit")
    said: list[str] = []
    tuning = {"head": {"epochs": 24, "learning_rate": 2e-3, "denoising": 20}, "body": {"epochs": 1}}
    still = {"clock": lambda: 0.0}  # every epoch is validated, however slow the machine
    found = resfit.fit(
        folder, model=str(file), strategy="last", tuning=tuning, say=said.append, out=tmp_path / "own", **still, **FEW
    )
    assert any("all is kept but the class layer, which is fresh for 2 classes" in line for line in said)
    history = found.run.history
    assert history[0]["val_ap"] < 0.05
    assert found.metrics["validation"]["ap"] > 0.2
    assert found.metrics["training"]["epoch"] > 0
    assert {row["phase"] for row in history} == {"head", "body"}
    head = [row["train_loss"] for row in history[1:] if row["phase"] == "head"]
    assert head[-1] < 0.5 * head[0]
    assert (found.recipe.trained, found.classes) == ("encoder and decoder and last stages", ("disc", "square"))
    again = Detector.load(tmp_path / "own")
    pictures = sorted(folder.glob("test-*.png"))
    for one, other in zip(found.predict(pictures), again.predict(pictures), strict=True):
        np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-3)
        assert one.labels == other.labels
    assert again.evaluate(folder, part="test").metrics["ap"] == pytest.approx(found.metrics["test"]["metrics"]["ap"])
    images = np.stack([np.asarray(Image.open(path)) for path in pictures[:2]])
    whole = {name: np.asarray(value) for name, value in found.suppressed()(images).items()}
    for row, one in enumerate(found.predict(pictures[:2], threshold=0.3)):
        assert int((whole["scores"][row] >= 0.3).sum()) == len(one)
        np.testing.assert_allclose(whole["boxes"][row, : len(one)], one.boxes, atol=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["retinanet", "rtdetr"])
def test_a_killed_fit_goes_on_to_the_same_weights(kind, tmp_path):
    folder = write_set(tmp_path / "set", {"train": 8, "val": 4, "test": 2})
    options = {**FEW, "strategy": "head", "tuning": {"epochs": 3, "denoising": 8}, "cache": tmp_path / "cache"}
    make = queries if kind == "rtdetr" else lambda: dense(kind)
    whole = resfit.fit(folder, model=make(), **options)
    with pytest.raises(KeyboardInterrupt):
        resfit.fit(folder, model=make(), out=tmp_path / "own", stop=lambda steps: steps == 3, **options)
    again = resfit.fit(folder, model=make(), out=tmp_path / "own", **options)
    for one, other in zip(whole.model.get_weights(), again.model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_detector_is_taken_apart_and_stays_what_it_is():
    model = queries(classes=4)
    model.class_names = ("a", "b", "c", "d")
    source = pretrained.source_of(model)
    own, other = (pretrained.with_classes(source, classes, None, 5) for classes in ("abcd", ("x", "y", "z", "w")))
    given, kept, fresh = (canonical.arrays(one) for one in (model, own, other))
    assert all(np.array_equal(given[name], kept[name]) for name in given)
    different = {name.partition("/")[0] for name in given if not np.array_equal(given[name], fresh[name])}
    assert different == {"decoder_1_class", "decoder_2_class", "decoder_proposal_class", "decoder_denoising"}
    made = network.of_detector(own, SIZE)
    image = np.random.default_rng(0).integers(0, 256, (2, *SIZE, 3)).astype(np.float32)
    raw = made.whole(image)
    maps = [made.body(image)[tap] for tap in made.spec.taps.values()]
    learning = network.called(network.learning_model(made, network.taps_of(made)))
    none = no_queries(2, 20)
    found = learning(maps, [ops.convert_to_tensor(one) for one in (none.classes, none.codes, none.mask)])
    np.testing.assert_allclose(found["logits_2"], raw["class_logits"], atol=1e-5)
    np.testing.assert_allclose(found["boxes_2"], raw["box_codes"], atol=1e-6)
    np.testing.assert_allclose(made.head(maps)["box_codes"], raw["box_codes"], atol=1e-6)
    boxes, scores = (np.asarray(one) for one in objective_of(made.spec, SIZE).decode(raw))
    published = made.detector()(image)
    np.testing.assert_allclose(boxes, published["boxes"], atol=1e-3)
    np.testing.assert_allclose(scores, published["scores"], atol=1e-6)
    assert made.detector().input_spec.resize_mode == "letterbox"


def test_what_a_fit_would_do_is_said_before_it(tmp_path):
    folder = write_set(tmp_path / "set", {"train": 4, "val": 2, "test": 2})
    found = plan(folder, model="rtdetrv2_r18vd", size=320, budget="30m")
    assert (found.published, found.learning_rate, found.head) == (True, 2e-4, {"score_threshold": 0.01})
    assert "encoder and decoder learn" in found.reasons[-1]
    body = plan(folder, model="rtdetrv2_r18vd", size=320, head={"pretrained": False})
    assert not body.published
    with pytest.raises(ArgumentError, match="as many places as there are queries"):
        plan(folder, model="rtdetrv2_r18vd", size=96)
    with pytest.raises(ArgumentError, match="Received: 'head_width'"):
        plan(folder, model="retinanet_resnet50_v2", head={"head_width": 64})
    with pytest.raises(ArgumentError, match="Received: detr_resnet50"):
        plan(folder, model="detr_resnet50")


def test_anchors_are_given_boxes_as_torchvision_does():
    torchside.library("torchvision")
    import torch
    from torchvision.models.detection._utils import Matcher
    from torchvision.ops import box_iou

    places = Places.of(catalog.get("retinanet_resnet50").spec, SIZE)
    assert places.by_overlap
    random = np.random.default_rng(0)
    low = np.array([[2, 3], [50, 8], [90, 10], [5, 60], [60, 62]])
    boxes = np.concatenate([low, low + random.uniform(8, 40, low.shape)], axis=1).astype(np.float32)
    overlaps = box_iou(torch.from_numpy(boxes), torch.from_numpy(places.anchors))
    expected = Matcher(0.5, 0.4, allow_low_quality_matches=True)(overlaps).numpy()
    none = np.zeros((0, 4), np.float32)
    np.testing.assert_array_equal(places.assign(boxes, none), expected)
    assert {BACKGROUND, IGNORED} < set(expected.tolist())
    assert (places.assign(none, none) == BACKGROUND).all()
    # of two equal boxes each is learned, and so is one without any extent to speak of
    twice = np.array([[10, 10, 60, 60], [10, 10, 60, 60], [3, 3, 3.01, 3.01]], np.float32)
    assert {0, 1, 2} <= set(places.assign(twice, none).tolist())
    inside = places.assign(none, np.array([[0, 0, 40, 40]], np.float32)) == IGNORED
    assert inside.sum() == (places.centres <= 40).all(axis=1).sum()
