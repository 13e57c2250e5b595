"""Published detectors on one's own boxes: all is kept but the class layer, and the whole learns."""

from __future__ import annotations

import dataclasses

import keras
import numpy as np
import pytest
from keras import ops
from PIL import Image

import resfit
from resfit.data.box_geometry import overlap_matrix
from resfit.errors import ArgumentError
from resfit.networks import catalog as networks
from resfit.networks.detection import build, catalog, kinds
from resfit.networks.detection.deformable_detr_spec import DeformableDETRSpec
from resfit.networks.detection.detr_spec import DETRSpec
from resfit.networks.detection.roi_layers import drawn
from resfit.networks.detection.rtdetr_spec import RTDETRSpec
from resfit.tasks.detection import Detector, network, pretrained, two_stage
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


def transformers_of(kind):
    """A small DETR, or Deformable DETR of one stage or two, with fresh weights on the built-in network."""
    keras.utils.set_random_seed(0)
    body = networks.get("resnet10_tiny").spec
    common = {"width": 32, "encoder_depth": 1, "decoder_depth": 2, "hidden": 48, "heads": 4, "queries": 12}
    if kind == "detr":
        spec = DETRSpec(body, **common, classes=3, unreported=(0,))
    else:
        two = kind == "two_stage"
        spec = DeformableDETRSpec(
            body, levels=(3, 4), **common, norm_groups=8, classes=3, refines=two, proposes=two, extra_levels=1
        )
    made = build.build(spec, input_spec=dataclasses.replace(detectors.TORCHVISION, size=SIZE), preprocess=True)
    canonical.fill(
        made, {**canonical.arrays(made), **canonical.arrays(resfit.load("resnet10_tiny", include_top=False))}
    )
    return made


def two_stages(kind):
    """A small Faster R-CNN of the first form or the second, with fresh weights on the built-in network."""
    keras.utils.set_random_seed(0)
    second = kind == "faster_rcnn_v2"
    spec = catalog.get("faster_rcnn_resnet50_v2" if second else "faster_rcnn_resnet50").spec
    spec = spec.replace(
        backbone=networks.get("resnet10_tiny").spec,
        levels=(2, 3, 4, 5),
        anchor_sizes=((16,), (24,), (32,), (64,)),
        pyramid_width=32,
        box_convs=(32,) if second else (),
        box_width=64,
        proposals=48,
        proposal_candidates=100,
        candidates=100,
        classes=5,
    )
    made = build.build(spec, input_spec=dataclasses.replace(detectors.TORCHVISION, size=SIZE), preprocess=True)
    canonical.fill(
        made, {**canonical.arrays(made), **canonical.arrays(resfit.load("resnet10_tiny", include_top=False))}
    )
    return made


TWO_STAGES = ("faster_rcnn_v1", "faster_rcnn_v2")
TRANSFORMERS = ("detr", "deformable_detr", "two_stage")


def small(kind):
    """A small detector of any kind."""
    if kind in TRANSFORMERS:
        return transformers_of(kind)
    if kind in TWO_STAGES:
        return two_stages(kind)
    return queries() if kind == "rtdetr" else dense(kind)


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
LEFT |= {"detr": 0.1, "deformable_detr": 0.1, "two_stage": 0.1, "faster_rcnn_v1": 0.05, "faster_rcnn_v2": 0.05}


RATES = {
    "rtdetr": 2e-3,
    "detr": 2e-3,
    "deformable_detr": 2e-3,
    "two_stage": 2e-3,
    "faster_rcnn_v1": 2e-3,
    "faster_rcnn_v2": 2e-3,
}


@pytest.mark.parametrize(
    ("kind", "epochs"),
    [
        pytest.param("retinanet", 80, marks=pytest.mark.slow),
        pytest.param("fcos", 80, marks=pytest.mark.slow),
        pytest.param("gfl", 80, marks=pytest.mark.slow),
        pytest.param("rtdetr", 250, marks=pytest.mark.slow),
        pytest.param("detr", 300, marks=pytest.mark.slow),
        pytest.param("deformable_detr", 300, marks=pytest.mark.slow),
        pytest.param("two_stage", 300, marks=pytest.mark.slow),
        pytest.param("faster_rcnn_v1", 150, marks=pytest.mark.slow),
        pytest.param("faster_rcnn_v2", 250, marks=pytest.mark.slow),
    ],
)
def test_one_picture_is_learned_by_heart(kind, epochs, one_picture, tmp_path):
    model = small(kind)
    before = canonical.arrays(model)
    tuning = {"epochs": epochs, "learning_rate": RATES.get(kind, 5e-3), "denoising": 8}
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


# epochs, and the AP on validation pictures that is reached at least
RISES = [("detr", 250, 0.06), ("deformable_detr", 80, 0.2), ("two_stage", 80, 0.2)]
RISES += [("faster_rcnn_v1", 30, 0.2), ("faster_rcnn_v2", 30, 0.2)]

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
@pytest.mark.parametrize(("kind", "epochs", "least"), RISES)
def test_ap_rises_on_drawn_pictures(kind, epochs, least, tmp_path):
    folder = write_set(tmp_path / "set", {"train": 32, "val": 8, "test": 8})
    tuning = {"epochs": epochs, "learning_rate": 2e-3}
    found = resfit.fit(folder, model=small(kind), strategy="head", tuning=tuning, clock=lambda: 0.0, **FEW)
    history = found.run.history
    assert history[0]["val_ap"] < least / 2
    assert found.metrics["validation"]["ap"] > least
    assert history[-1]["train_loss"] < 0.5 * history[1]["train_loss"]
    pictures = sorted(folder.glob("test-*.png"))
    images = np.stack([np.asarray(Image.open(path)) for path in pictures[:2]])
    whole = {name: np.asarray(value) for name, value in found.suppressed()(images).items()}
    for row, one in enumerate(found.predict(pictures[:2], threshold=0.3)):
        assert int((whole["scores"][row] >= 0.3).sum()) == len(one)
        np.testing.assert_allclose(whole["boxes"][row, : len(one)], one.boxes, atol=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["detr"])
def test_the_last_stages_learn_too(kind, tmp_path):
    folder = write_set(tmp_path / "set", {"train": 4, "val": 2, "test": 2})
    tuning = {"head": {"epochs": 1}, "body": {"epochs": 2, "learning_rate": 1e-3}}
    model, states = small(kind), []
    found = resfit.fit(
        folder,
        model=model,
        strategy="last",
        tuning=tuning,
        clock=lambda: 0.0,
        callbacks=[_Kept(states)],
        **FEW,
    )
    assert [row["phase"] for row in found.run.history[1:]] == ["head", "body", "body"]
    before = {name: array for name, array in canonical.arrays(model).items() if name.startswith("conv")}
    moved = {name for name in before if not np.array_equal(before[name], states[-1][name])}
    assert any(name.startswith("conv5") or name.startswith("conv4") for name in moved)
    assert not any(name.startswith("conv1") for name in moved)
    assert all(np.isfinite(row["train_loss"]) for row in found.run.history)


class _Kept(keras.callbacks.Callback):
    """Keeps the weights of the body at the end of each epoch."""

    def __init__(self, states):
        super().__init__()
        self.states = states

    def on_epoch_end(self, epoch, logs=None):
        arrays = canonical.arrays(self.model)
        self.states.append({name: array.copy() for name, array in arrays.items() if name.startswith("conv")})


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


@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_what_the_last_layer_learns_is_what_the_detector_says(kind):
    model = transformers_of(kind)
    model.class_names = ("a", "b", "c")
    source = pretrained.source_of(model)
    own, other = (pretrained.with_classes(source, classes, None, 5) for classes in ("abc", "xyz"))
    given, kept, fresh = (canonical.arrays(one) for one in (model, own, other))
    assert all(np.array_equal(given[name], kept[name]) for name in given)
    assert all("_class/" in name for name in given if not np.array_equal(given[name], fresh[name]))
    assert kinds.with_classes(model.architecture, 2).reported == (0, 1) if kind == "detr" else True
    made = network.of_detector(own, SIZE)
    image = np.random.default_rng(0).integers(0, 256, (2, *SIZE, 3)).astype(np.float32)
    raw, maps = made.whole(image), [made.body(image)[tap] for tap in made.spec.taps.values()]
    found = network.called(network.learning_model(made, network.taps_of(made)))(maps)
    np.testing.assert_allclose(found["logits_2"], raw["class_logits"], atol=1e-5)
    np.testing.assert_allclose(found["boxes_2"], raw["box_codes"], atol=1e-6)
    np.testing.assert_allclose(made.head(maps)["box_codes"], raw["box_codes"], atol=1e-6)
    assert ("proposal_logits" in found) == (kind == "two_stage")
    boxes, scores = (np.asarray(one) for one in objective_of(made.spec, SIZE).decode(raw))
    published = made.detector()(image)
    np.testing.assert_allclose(boxes, published["boxes"], atol=1e-3)
    np.testing.assert_allclose(scores, published["scores"], atol=1e-6)


@pytest.mark.parametrize("kind", TWO_STAGES)
def test_both_stages_are_taken_apart_and_learn_a_sample(kind):
    model = two_stages(kind)
    model.class_names = tuple("abcde")
    source = pretrained.source_of(model)
    own, other = (pretrained.with_classes(source, classes, None, 5) for classes in ("abcde", "xy"))
    given, kept, fresh = (canonical.arrays(one) for one in (model, own, other))
    assert all(np.array_equal(given[name], kept[name]) for name in given)
    different = {name for name in given if given[name].shape != fresh[name].shape}
    assert {name.partition("/")[0] for name in different} == {"class_logits_dense", "box_codes_dense"}
    assert fresh["class_logits_dense/bias"].shape == (3,)
    made = network.of_detector(own, SIZE)
    image = np.random.default_rng(0).integers(0, 256, (2, *SIZE, 3)).astype(np.float32)
    raw, maps = made.whole(image), [made.body(image)[tap] for tap in made.spec.taps.values()]
    boxes, scores = (np.asarray(one) for one in objective_of(made.spec, SIZE).decode(made.head(maps)))
    published = made.detector()(image)
    np.testing.assert_allclose(boxes, published["boxes"], atol=1e-3)
    np.testing.assert_allclose(scores, published["scores"], atol=1e-6)
    true = np.array([[[8, 8, 40, 40], [60, 20, 90, 70]], [[5, 50, 60, 90], [0, 0, 1, 1]]], np.float32)
    classes, noise = np.array([[3, 5], [1, -1]], np.int32), np.random.default_rng(1).random((2, 50), np.float32)
    learning = network.called(network.learning_model(made, network.taps_of(made)))
    found = {
        name: np.asarray(one)
        for name, one in learning(maps, [ops.convert_to_tensor(one) for one in (true, classes, noise)]).items()
    }
    np.testing.assert_allclose(found["objectness"], raw["objectness"], atol=1e-5)
    chosen = found["true_class"]
    assert chosen.shape == (2, 48)
    assert {3, 5} <= set(chosen[0].tolist()) <= {0, 3, 5}  # true boxes are proposals too
    assert {0, 1} == set(chosen[1].tolist()) - {-1}
    for row in range(2):
        overlaps = overlap_matrix(found["proposals"][row], true[row][classes[row] >= 0])
        learns = chosen[row] > 0
        assert 1 <= learns.sum() <= 12
        assert (overlaps[learns].max(axis=1) >= 0.5).all()
        assert (overlaps[chosen[row] == 0].max(axis=1) < 0.5).all()
        np.testing.assert_array_equal(found["true"][row][learns], true[row][overlaps[learns].argmax(axis=1)])


def test_a_sample_is_random_and_has_few_with_boxes():
    positive = np.arange(40)[None] < 12
    negative = (np.arange(40)[None] >= 12) & (np.arange(40)[None] < 36)
    seen = []
    for seed in range(40):
        noise = np.random.default_rng(seed).random((1, 40), np.float32)
        keys = np.asarray(drawn(positive, negative, noise, 16, 0.25))[0]
        chosen = np.argsort(-keys)[:16]
        assert (keys[chosen] >= 2).sum() == 4
        assert (keys[chosen] >= 0).all()
        assert (chosen < 36).all()
        seen += chosen.tolist()
    counts = np.bincount(seen, minlength=40)
    assert counts[:12].min() >= 4  # 160 of 12, and 480 of 24
    assert counts[12:36].min() >= 10
    few = np.asarray(drawn(positive & (np.arange(40) < 2), negative, noise, 16, 0.25))[0]
    assert (few >= 2).sum() == 2


def test_losses_of_both_stages_are_torchvisions():
    torchside.library("torchvision")
    import torch
    from torchvision.models.detection import roi_heads, rpn
    from torchvision.models.detection._utils import BoxCoder

    random = np.random.default_rng(0)

    def boxes(*shape):
        low = random.uniform(0, 50, (*shape, 2))
        return np.concatenate([low, low + random.uniform(5, 40, low.shape)], axis=-1).astype(np.float32)

    proposals, true = boxes(2, 20), boxes(2, 20)
    classes = random.integers(0, 4, (2, 20)).astype(np.int32)
    logits, codes = (random.normal(size=(2, 20, n)).astype(np.float32) for n in (4, 16))
    coder = BoxCoder((10.0, 10.0, 5.0, 5.0))
    targets = coder.encode([torch.from_numpy(one) for one in true], [torch.from_numpy(one) for one in proposals])
    flat = [torch.from_numpy(one.reshape(40, -1)) for one in (logits, codes)]
    labels = [torch.from_numpy(one.astype(np.int64)) for one in classes]
    expected = roi_heads.fastrcnn_loss(*flat, labels, targets)
    received = two_stage.head_loss(logits, codes, proposals, true, classes)
    assert [float(one) for one in received.values()] == pytest.approx([float(one) for one in expected], rel=1e-5)
    # background last, as detectron2 has it
    turned = two_stage.head_loss(
        np.roll(logits, -1, axis=2), np.roll(codes, -4, axis=2), proposals, true, (classes - 1) % 4, background=3
    )
    assert [float(one) for one in turned.values()] == pytest.approx([float(one) for one in expected], rel=1e-5)
    anchors, rows = boxes(20), random.integers(-2, 2, (2, 20)).astype(np.int32)
    own = boxes(2, 2)
    objectness, moved = (random.normal(size=(2, 20, n)).astype(np.float32) for n in (1, 4))
    matched = [torch.from_numpy(own[i][np.maximum(rows[i], 0)]) for i in range(2)]
    targets = BoxCoder((1.0, 1.0, 1.0, 1.0)).encode(matched, [torch.from_numpy(anchors)] * 2)
    stated = [torch.from_numpy(np.where(one >= 0, 1.0, one + 1.0).astype(np.float32)) for one in rows]

    class _Sampled:  # all that may learn do
        @staticmethod
        def fg_bg_sampler(labels):
            return [(one > 0).to(torch.uint8) for one in labels], [(one == 0).to(torch.uint8) for one in labels]

    values = [torch.from_numpy(one.reshape(40, -1)) for one in (objectness, moved)]
    expected = rpn.RegionProposalNetwork.compute_loss(_Sampled, *values, stated, list(targets))
    keys = two_stage.anchor_keys(rows, random.random((2, 20), np.float32))
    received = two_stage.proposal_loss(objectness, moved, anchors, rows, own, keys)
    assert (rows >= 0).sum(axis=1).max() <= 10
    assert [float(one) for one in received.values()] == pytest.approx([float(one) for one in expected], rel=1e-5)


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
    with pytest.raises(ArgumentError, match="as many places as there are queries"):
        plan(folder, model="deformable_detr_resnet50_two_stage", size=64)
    rates = {"detr_resnet50": 1e-4, "deformable_detr_resnet50": 2e-4, "faster_rcnn_resnet50_v2": 5e-4}
    assert {name: plan(folder, model=name, size=320).learning_rate for name in rates} == rates


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
