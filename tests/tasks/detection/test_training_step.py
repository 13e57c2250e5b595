"""A training step in parts, where memory does not suffice for the whole batch, is the same step."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from resfit.errors import ResfitWarning
from resfit.networks import catalog
from resfit.networks.detection import catalog as detection_catalog
from resfit.networks.detection.rtdetr_spec import RTDETRSpec
from resfit.tasks.detection import set_loss
from resfit.tasks.detection.feeds import Batch
from resfit.tasks.detection.fit import fit
from resfit.tasks.detection.network import detector_spec
from resfit.tasks.detection.objectives import DenoisingObjective, DenseObjective, QueryObjective
from resfit.tasks.detection.phases import PhaseSettings
from resfit.tasks.detection.training_step import TrainingStep
from resfit.tasks.detection.two_stage import TwoStageObjective
from resfit.training import loop
from tests.tasks.detection.drawn import write_set
from tests.tasks.detection.test_fit import FAST

SIZE, CLASSES, WIDTH, BATCH, MOST = (64, 64), 3, 5, 7, 4


class Cramped(TrainingStep):
    """A step on a device that has room for so many pictures."""

    room = 99
    sizes: list[int]

    def _graph(self, name, function):
        import tensorflow as tf

        graph = super()._graph(name, function)

        def run(*arguments):
            if name != "flush":
                self.sizes.append(len(arguments[0]))
                if len(arguments[0]) > self.room:
                    raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")
            return graph(*arguments)

        return run


def boxes_of(random):
    low = random.uniform(0, 30, (BATCH, MOST, 2))
    return np.concatenate([low, low + random.uniform(12, 34, low.shape)], axis=2).astype(np.float32)


def variable(random, shape, name):
    import keras

    return keras.Variable(random.normal(0, 0.3, shape).astype(np.float32), name=name)


def dense(loss):
    """Places of a dense detector that are linear in their inputs, with many boxes in some pictures and none in one."""
    spec = detector_spec(
        catalog.get("resnet10_tiny").spec, CLASSES, SIZE, pyramid_width=16, head_width=16, norm_groups=4,
        quality="centerness" if loss == "focal" else None,
    )  # fmt: skip
    objective, random = DenseObjective(spec, SIZE), np.random.default_rng(0)
    n = len(objective.places.points)
    weights = [variable(random, (WIDTH, n * k), name) for k, name in ((CLASSES, "c"), (4, "b"), (1, "q"))]
    idle = variable(random, (3,), "idle")  # no loss depends on it

    def model(inputs):
        import tensorflow as tf

        logits, codes, quality = (
            tf.reshape(tf.matmul(inputs, weight.value), (-1, n, k))
            for weight, k in zip(weights, (CLASSES, 4, 1), strict=True)
        )
        found = {"class_logits": logits, "box_codes": tf.nn.relu(codes) + 0.1}
        return found if spec.quality is None else {**found, "quality": quality}

    boxes = boxes_of(random)
    nothing = np.zeros((0, 4), np.float32)
    rows = np.stack([objective.places.assign(boxes[i, : i % 4], nothing) for i in range(BATCH)])
    learned = [*(weights if spec.quality else weights[:2]), idle]
    return objective, model, learned, (rows, boxes)


def query(_):
    """Queries that are linear in their inputs, denoising queries that are so in their own codes."""
    spec = RTDETRSpec(catalog.get("resnet18").spec, classes=CLASSES, input_size=SIZE, queries=9)
    objective, random = DenoisingObjective(spec, SIZE), np.random.default_rng(0)
    logits, codes = variable(random, (WIDTH, 9 * CLASSES), "l"), variable(random, (WIDTH, 9 * 4), "b")
    known, named = variable(random, (4, CLASSES), "k"), variable(random, (4, 4), "n")

    def model(inputs, extra):
        import tensorflow as tf

        own = tf.reshape(tf.matmul(inputs, logits.value), (-1, 9, CLASSES))
        boxes = tf.sigmoid(tf.reshape(tf.matmul(inputs, codes.value), (-1, 9, 4)))
        noisy = (
            tf.einsum("bnc,cd->bnd", extra[1], known.value),
            tf.sigmoid(tf.einsum("bnc,cd->bnd", extra[1], named.value)),
        )
        return {
            "proposal_logits": own, "proposal_boxes": boxes, "logits_1": tf.concat([noisy[0], own], 1),
            "boxes_1": tf.concat([noisy[1], boxes], 1),
        }  # fmt: skip

    rows = np.array([[i % 4] for i in range(BATCH)], np.int16)
    return objective, model, [logits, codes, known, named], (rows, boxes_of(random))


def matched(_):
    """Queries without denoising, and a class output for no object, whose weight the loss is divided by."""
    spec = RTDETRSpec(catalog.get("resnet18").spec, classes=CLASSES, input_size=SIZE, queries=3)  # less than boxes
    objective, random = QueryObjective(spec, SIZE, set_loss.DETR), np.random.default_rng(0)
    logits, codes = variable(random, (WIDTH, 3 * (CLASSES + 1)), "l"), variable(random, (WIDTH, 3 * 4), "b")

    def model(inputs):
        import tensorflow as tf

        own = tf.reshape(tf.matmul(inputs, logits.value), (-1, 3, CLASSES + 1))
        return {"logits_1": own, "boxes_1": tf.sigmoid(tf.reshape(tf.matmul(inputs, codes.value), (-1, 3, 4)))}

    rows = np.array([[i % 5] for i in range(BATCH)], np.int16)
    return objective, model, [logits, codes], (rows, boxes_of(random))


def two_stages(_):
    """Anchors and proposals that are linear in their inputs; which proposals learn depends on what is given."""
    spec = detection_catalog.get("faster_rcnn_resnet50_v2").spec.replace(proposals=6)
    objective, random = TwoStageObjective(spec, SIZE), np.random.default_rng(0)
    n, outputs = objective.places.width - 1, spec.class_outputs
    shapes = ((WIDTH, n), (WIDTH, n * 4), (WIDTH, MOST * outputs), (WIDTH, MOST * outputs * 4))
    weights = [variable(random, shape, f"w{place}") for place, shape in enumerate(shapes)]

    def model(inputs, given):
        import tensorflow as tf

        boxes, classes, noise = given
        said = [tf.matmul(inputs, weight.value) for weight in weights]
        learn = (classes >= 0) & (noise[:, :MOST] < 0.7)
        return {
            "objectness": said[0][..., None], "proposal_codes": tf.reshape(said[1], (-1, n, 4)),
            "class_logits": tf.reshape(said[2], (-1, MOST, outputs)),
            "box_codes": tf.reshape(said[3], (-1, MOST, outputs * 4)),
            "proposals": tf.add(boxes, [1.0, 2.0, 3.0, 4.0]), "true": boxes, "true_class": tf.where(learn, classes, -1),
        }  # fmt: skip

    boxes = boxes_of(random)
    nothing = np.zeros((0, 4), np.float32)
    rows = np.stack([objective.places.assign(boxes[i, : i % 4], nothing) for i in range(BATCH)])
    return objective, model, weights, (rows, boxes)


@pytest.mark.parametrize(
    ("made", "loss"),
    [(dense, "quality_focal"), (dense, "focal"), (query, ""), (matched, ""), (two_stages, "")],
    ids=["quality", "focal", "denoising", "queries", "two stages"],
)
def test_memory_that_runs_out_takes_the_same_steps_in_parts(made, loss):
    import tensorflow as tf

    found, told, sizes = [], [], []
    for room in (99, 2):
        objective, model, learned, (rows, boxes) = made(loss)
        random = np.random.default_rng(1)
        settings = PhaseSettings("body", loss=loss, batch_size=BATCH, denoising=12, weight_decay=0.1)
        optimizer = loop.Optimizer(learned, "sgd", weight_decay=0.1)
        averages = [tf.Variable(v.value, trainable=False) for v in learned]
        step = Cramped(objective, model, lambda inputs: inputs, settings, learned, optimizer, averages)
        step.room, step.sizes = room, sizes
        values = []
        for number in range(3):
            inputs = random.normal(size=(BATCH, WIDTH)).astype(np.float32)
            labels = random.integers(0, CLASSES, (BATCH, MOST)).astype(np.int32)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                values.append(step(Batch(inputs, rows, boxes, labels), 0.05, number))
            told += [str(one.message) for one in caught if issubclass(one.category, ResfitWarning)]
        found.append((values, [v.numpy() for v in (*learned, *averages, *optimizer.slots)], step.parts))
    (losses, whole, parts), (in_parts, divided, more) = found
    np.testing.assert_allclose(in_parts, losses, rtol=1e-5)
    for one, other in zip(whole, divided, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=2e-6)
    assert np.abs(whole[0] - made(loss)[2][0].numpy()).max() > 1e-4  # it has learned
    assert (parts, more) == (1, 4)
    assert max(sizes[5:]) <= 2
    assert told == [
        f"cpu has not enough memory for {before} images a step at once: going on with {after}, whose gradients are "
        "added up to the same step."
        for before, after in ((7, 3), (3, 1))
    ]


def test_a_fit_goes_on_in_parts(tmp_path, monkeypatch):
    """Also where it was killed: it does not run out of memory again."""
    import tensorflow as tf

    folder = write_set(tmp_path / "set", {"train": 9, "val": 3, "test": 3})
    options = {**FAST, "cache": tmp_path / "cache", "tuning": {"epochs": 2}}
    whole = fit(folder, out=tmp_path / "whole", **options)
    tries = []

    def cramped(self, inputs, *others):
        tries.append(1)
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")

    monkeypatch.setattr(TrainingStep, "_whole", cramped)
    with (
        pytest.warns(ResfitWarning, match="for 4 images a step at once: going on with 2,"),
        pytest.raises(KeyboardInterrupt),
    ):
        fit(folder, out=tmp_path / "parts", stop=lambda step: step == 5, **options)
    assert len(tries) == 1
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        divided = fit(folder, out=tmp_path / "parts", stop=lambda step: False, **options)
    assert not [one for one in told if "memory" in str(one.message)]
    assert len(tries) == 1
    for one, other in zip(whole.model.get_weights(), divided.model.get_weights(), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-4)
