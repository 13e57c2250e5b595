"""Suppression against the loop over boxes that it stands for, and against torchvision's."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from resfit.errors import ArgumentError
from resfit.networks.detection.nms import NonMaxSuppression, best_pairs, keep_greedily
from resfit.numerics import float32_below
from tests.networks.detection import peers


def crowd(count: int, seed: int = 0) -> np.ndarray:
    """Boxes that overlap a great deal."""
    generator = np.random.default_rng(seed)
    corners = generator.uniform(0, 40, (count, 2))
    return np.concatenate([corners, corners + generator.uniform(5, 40, (count, 2))], axis=1).astype(np.float32)


def chain(count: int) -> np.ndarray:
    """Each box overlaps its neighbours by 2/3 and no others by more than 1/2: every second one stays."""
    left = np.arange(count, dtype=np.float32)
    return np.stack([2 * left, 0 * left, 2 * left + 10, 0 * left + 10], axis=1)


#: Names, boxes and thresholds that are hard for a wrong suppression.
CASES = {
    "crowd": (crowd(300), 0.5),
    "loose": (crowd(300, 1), 0.1),
    "tight": (crowd(300, 2), 0.9),
    "chain": (chain(120), 0.6),
    "exact": (np.array([[0, 0, 10, 10], [0, 5, 10, 15], [0, 0, 10, 5], [0, 0, 5, 10]], np.float32), 0.5),
    "exact third": (np.array([[0, 0, 10, 10], [0, 5, 10, 15], [20, 0, 30, 9], [20, 0, 30, 1]], np.float32), 1 / 3),
    "exact tenth": (np.array([[20, 0, 30, 10], [20, 0, 30, 1]], np.float32), 0.1),
    "exact seven tenths": (np.array([[20, 0, 30, 10], [20, 0, 30, 7]], np.float32), 0.7),
    "equal": (np.repeat(crowd(20), 3, axis=0), 0.5),
    "empty": (np.array([[0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 9], [1, 1, 1, 9], [0, 0, 9, 9]], np.float32), 0.5),
    "everything": (crowd(60), 0.0),
    "nothing": (crowd(60), 1.0),
}


@pytest.mark.parametrize("name", CASES)
def test_what_stays_is_what_the_loop_keeps(name):
    boxes, threshold = CASES[name]
    scores = -np.arange(len(boxes))
    kept = np.asarray(keep_greedily(boxes[None], np.zeros((1, len(boxes)), np.int32), threshold))[0]
    assert np.flatnonzero(kept).tolist() == sorted(peers.greedy(boxes, scores, threshold))


def test_the_loop_of_these_tests_and_both_of_torchvisions_agree():
    library = peers.torchvision()
    if hasattr(library, "_loop_of_tests"):
        pytest.skip("torchvision's compiled operators are not usable: it was built for another torch")
    import torch

    generator = np.random.default_rng(0)
    for name, (boxes, threshold) in CASES.items():
        scores, classes = generator.permutation(len(boxes)).astype(np.float32), generator.integers(0, 3, len(boxes))
        own = peers.greedy(boxes, scores, threshold)
        assert library.ops.nms(torch.tensor(boxes), torch.tensor(scores), threshold).tolist() == own, name
        order = np.argsort(-scores)
        kept = np.asarray(keep_greedily(boxes[order][None], classes[order][None], threshold))[0]
        their = library.ops.boxes._batched_nms_vanilla(*map(torch.tensor, (boxes, scores, classes)), threshold)
        assert order[np.flatnonzero(kept)].tolist() == their.tolist(), name


def test_a_chain_longer_than_the_unrolled_rounds_needs_the_loop():
    boxes, classes = chain(40)[None], np.zeros((1, 40), np.int32)
    exact = np.asarray(keep_greedily(boxes, classes, 0.6))[0]
    assert exact.tolist() == [1.0, 0.0] * 20
    assert np.array_equal(np.asarray(keep_greedily(boxes, classes, 0.6, rounds=40))[0], exact)
    assert not np.array_equal(np.asarray(keep_greedily(boxes, classes, 0.6, rounds=8))[0], exact)


def test_classes_and_images_are_apart():
    boxes = np.tile(crowd(1), (2, 4, 1))
    classes = np.array([[0, 1, 0, 2], [5, 5, 5, 5]], np.int32)
    assert np.asarray(keep_greedily(boxes, classes, 0.5)).tolist() == [[1, 1, 0, 1], [1, 0, 0, 0]]


def reference(
    boxes: np.ndarray, scores: np.ndarray, floor: float, threshold: float, most: int
) -> list[tuple[float, int, int]]:
    """Score, box and class of every detection of one image."""
    found = []
    for label in range(scores.shape[1]):
        own = np.flatnonzero(scores[:, label] > floor)
        kept = peers.greedy(boxes[own], scores[own, label], threshold) if len(own) else []
        found += [(float(scores[own[one], label]), int(own[one]), label) for one in kept]
    return sorted(found, key=lambda one: (-one[0], one[1], one[2]))[:most]


@pytest.mark.parametrize("block", [17, 1000])
def test_the_layer_is_the_loop_over_every_class(block):
    generator = np.random.default_rng(3)
    boxes = np.stack([crowd(90, seed) for seed in (4, 5)])
    scores = generator.uniform(0, 1, (2, 90, 3)).astype(np.float32)
    scores[1] *= 0.11  # few pass
    layer = NonMaxSuppression(0.1, 0.45, candidates=270, max_detections=50, block=block)
    found = {key: np.asarray(value) for key, value in layer({"boxes": boxes, "scores": scores}).items()}
    for image in range(2):
        expected = reference(boxes[image], scores[image], 0.1, 0.45, 50)
        count = found["count"][image]
        assert count == len(expected)
        assert found["scores"][image, :count].tolist() == [score for score, _, _ in expected]
        assert found["classes"][image, :count].tolist() == [label for _, _, label in expected]
        assert np.array_equal(found["boxes"][image, :count], boxes[image][[box for _, box, _ in expected]])
        assert not found["boxes"][image, count:].any()
        assert not found["scores"][image, count:].any()
        assert set(found["classes"][image, count:].tolist()) <= {-1}
    assert 0 < found["count"][1] < 50


def test_fewer_boxes_than_candidates_none_at_all_and_no_images():
    layer = NonMaxSuppression(0.5, 0.5, candidates=8, max_detections=4)
    boxes = np.array([[[0, 0, 4, 4], [9, 9, 12, 12]]], np.float32)
    found = layer({"boxes": boxes, "scores": np.array([[[0.6, 0.7], [0.9, 0.5]]], np.float32)})
    assert np.asarray(found["count"]).tolist() == [3]
    assert np.asarray(found["classes"]).tolist() == [[0, 1, 0, -1]]
    none = layer({"boxes": boxes, "scores": np.zeros((1, 2, 2), np.float32)})
    assert np.asarray(none["count"]).tolist() == [0]
    assert not np.asarray(none["boxes"]).any()
    empty = layer({"boxes": boxes[:0], "scores": np.zeros((0, 2, 2), np.float32)})
    assert np.asarray(empty["boxes"]).shape == (0, 4, 4)


def test_pairs_with_equal_scores_come_in_their_order():
    boxes = np.arange(40, dtype=np.float32).reshape(1, 10, 4)
    scores = np.full((1, 10, 3), 0.5, np.float32)
    scores[0, 7, 1] = 0.75
    chosen, best, classes = (np.asarray(one) for one in best_pairs(boxes, scores, 5))
    assert best.tolist() == [[0.75, 0.5, 0.5, 0.5, 0.5]]
    assert classes.tolist() == [[1, 0, 1, 2, 0]]
    assert chosen[0, :, 0].tolist() == [28, 0, 0, 0, 4]


def test_levels_give_their_own_candidates():
    boxes = np.arange(40, dtype=np.float32).reshape(1, 10, 4) * 100 + np.array([0, 0, 50, 50], np.float32)
    scores = np.linspace(1, 0.1, 10, dtype=np.float32).reshape(1, 10, 1)
    maps = [np.zeros((1, 2, 4, 1), np.float32), np.zeros((1, 1, 2, 1), np.float32)]
    layer = NonMaxSuppression(0.05, 0.5, candidates=2, max_detections=4)
    assert np.asarray(layer({"boxes": boxes, "scores": scores, "maps": maps})["scores"])[0] == pytest.approx(
        [1, 0.9, 0.2, 0.1]
    )


def test_a_threshold_is_met_as_exactly_as_in_double_precision():
    for threshold in (0.1, 0.3, 0.5, 0.6, 0.7, 1 / 3):
        below = np.float32(float32_below(threshold))
        assert float(below) <= threshold < float(np.nextafter(below, np.float32(2)))


def test_the_layer_refuses_what_makes_no_sense():
    with pytest.raises(ArgumentError, match="max_detections"):
        NonMaxSuppression(max_detections=0)


def exported() -> tuple[keras.Model, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """A model of nothing but the suppression, its input and its output."""
    inputs = {
        "boxes_in": keras.Input((None, 4), name="boxes_in"),
        "scores_in": keras.Input((None, 2), name="scores_in"),
    }
    layer = NonMaxSuppression(0.05, 0.6, candidates=100, max_detections=30, block=64)
    model = keras.Model(inputs, layer({"boxes": inputs["boxes_in"], "scores": inputs["scores_in"]}))
    boxes = np.concatenate([chain(60)[None], crowd(60)[None]])
    scores = np.random.default_rng(0).uniform(0.1, 0.9, (2, 60, 2)).astype(np.float32)
    scores[0, :, 0] = np.linspace(0.9, 0.2, 60)  # so that the whole chain counts
    given = {"boxes_in": boxes, "scores_in": scores}
    return model, given, {key: np.asarray(value) for key, value in model(given).items()}


def test_the_layer_survives_a_file(tmp_path):
    model, given, expected = exported()
    model.save(tmp_path / "nms.keras")
    again = keras.saving.load_model(tmp_path / "nms.keras")
    for key, value in again(given).items():
        assert np.array_equal(np.asarray(value), expected[key])


@pytest.mark.slow
def test_openvino_suppresses_alike(tmp_path):
    openvino = pytest.importorskip("openvino")
    model, given, expected = exported()
    model.export(tmp_path / "nms", format="tf_saved_model", verbose=False)
    read = openvino.Core().read_model(openvino_model(openvino, tmp_path / "nms"))
    compiled = openvino.Core().compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled(given)
    for key in expected:
        assert np.array_equal(found[key], expected[key]), key


def openvino_model(openvino, path):
    """The saved model as a file of OpenVINO."""
    target = path.parent / "nms.xml"
    openvino.save_model(openvino.convert_model(path), target, compress_to_fp16=False)
    return target


@pytest.mark.slow
def test_litert_suppresses_alike(tmp_path):
    tf = pytest.importorskip("tensorflow")
    model, given, expected = exported()
    model.export(tmp_path / "nms", format="tf_saved_model", verbose=False)
    bytes_ = tf.lite.TFLiteConverter.from_saved_model(str(tmp_path / "nms")).convert()
    runner = tf.lite.Interpreter(model_content=bytes_).get_signature_runner()
    found = runner(**given)
    for key in expected:
        assert np.array_equal(found[key], expected[key]), key
