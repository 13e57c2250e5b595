"""Fine-tuning: its mathematics is plain Keras', it learns, it resumes, and every option does what it says."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from resfit.errors import ArgumentError
from resfit.tasks.classification import objective
from resfit.tasks.classification.objective import ClassObjective
from resfit.training import boundary, loop
from resfit.training import trainer as finetune
from resfit.training.feeds import MapFeed, PixelFeed
from resfit.training.settings import Tuning
from resfit.training.trainer import Trainer
from tests.training.networks import coloured, small_body, with_head


@pytest.fixture(scope="module")
def body():
    return small_body()


def one_hot(labels, classes=3):
    return np.eye(classes, dtype=np.float32)[labels]


def cached(model, layers, pixels, tuning):
    """The part behind the cut, with the outputs of the part before it."""
    found = boundary.find(finetune.body_of(model, layers), tuning.trainable_from)
    first, second = boundary.split(model, found)
    maps = np.asarray(first(pixels.astype(np.float32), training=False)) if first is not None else pixels
    return MapFeed([maps], tuning), (found, second)


def class_trainer(model, layers, tuning, feed, targets, train, val, *, multilabel=False, teacher=None, **options):
    objective = ClassObjective(targets, train, tuning, multilabel=multilabel, teacher=teacher is not None)
    return Trainer(model, layers, tuning, feed, objective, targets, train, val, teacher=teacher, **options)


def trainer_of(body, tuning, count=60, val=15, **options):
    pixels, labels = coloured(count)
    model, layers = with_head(body)
    feed, parts = cached(model, layers, pixels, tuning)
    rows = np.arange(count)
    return class_trainer(model, layers, tuning, feed, one_hot(labels), rows[val:], rows[:val], parts=parts, **options)


@pytest.mark.parametrize(
    ("where", "optimizer", "statistics", "preactivation"),
    [
        ("conv3_block2_2_conv", "adam", "frozen", False),  # in the middle of a block
        ("conv3_block2_2_conv", "sgd", "batch", False),
        pytest.param("stage3", "adam", "batch", False, marks=pytest.mark.slow),
        pytest.param("stage3", "adam", "frozen", True, marks=pytest.mark.slow),
        pytest.param("conv3_block2_2_conv", "sgd", "batch", True, marks=pytest.mark.slow),
        pytest.param(0, "sgd", "batch", False, marks=pytest.mark.slow),
        pytest.param(0, "sgd", "frozen", True, marks=pytest.mark.slow),
    ],
)
def test_the_same_mathematics_as_keras(where, optimizer, statistics, preactivation):
    """40 steps of plain Keras training of the whole network with the same layers frozen, on the same batches."""
    import keras

    steps, size = 40, 16
    body = small_body(3, preactivation=preactivation)
    pixels, labels = coloured(96, seed=1)
    order = [np.random.default_rng(step).permutation(96)[:size] for step in range(steps)]
    learning_rate = 1e-4 if optimizer == "adam" else 1e-2  # Adam magnifies the rounding of small gradients

    plain, _ = with_head(body)
    index = boundary.resolve(body, where)
    counted = [layer for layer in plain.layers if layer.name != "normalization"]
    for position, layer in enumerate(counted[:-1]):
        layer.trainable = position >= index
    rule = {
        "adam": lambda: keras.optimizers.Adam(learning_rate),
        "sgd": lambda: keras.optimizers.SGD(learning_rate, momentum=0.9, nesterov=True),
    }[optimizer]()
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    class Still(keras.Model):  # a functional model would overrule training=False by its own
        def __init__(self):
            super().__init__()
            self.inner = plain

        def call(self, inputs):
            return self.inner(inputs, training=False)

    network = Still() if statistics == "frozen" else plain
    network.compile(rule, loss_of)
    before = {v.path: v.numpy() for v in plain.variables}
    expected = []
    for rows in order:
        network.reset_metrics()
        expected.append(float(network.train_on_batch(pixels[rows].astype(np.float32), labels[rows])))

    tuning = Tuning(
        trainable_from=where,
        optimizer=optimizer,
        learning_rate=learning_rate,
        schedule="constant",
        batch_size=size,
        batch_norm=statistics,
    )
    model, layers = with_head(body)
    feed, parts = cached(model, layers, pixels, tuning)
    rows = np.arange(96)
    trainer = class_trainer(model, layers, tuning, feed, one_hot(labels), rows, rows[:0], parts=parts)
    received = [trainer.learn(feed.plain(rows), one_hot(labels[rows]))[0] for rows in order]

    # losses begin near 1; in the end they are hundredths, and the roundings of 40 steps show in them
    most = 1e-2 if where == 0 and statistics == "batch" else 1e-3  # every norm of the network magnifies them there
    np.testing.assert_allclose(received, expected, rtol=most, atol=1e-4)
    assert np.mean(expected[-10:]) < 0.95 * np.mean(expected[:10])
    moved = 0
    for one, two in zip(model.layers, plain.layers, strict=True):
        for ours, theirs in zip(one.variables, two.variables, strict=True):
            difference = np.linalg.norm(ours.numpy() - theirs.numpy())
            assert difference <= most * np.linalg.norm(theirs.numpy()), ours.path
            same = np.array_equal(ours.numpy(), before[theirs.path])
            if not two.trainable or (statistics == "frozen" and "moving" in ours.path):
                assert same, f"{ours.path} moved"
            moved += not same
    assert moved >= 6


QUICK = Tuning(trainable_from="stage3", epochs=3, batch_size=15, learning_rate=3e-3, schedule="cosine", warmup=0.1)


def run(trainer, folder, **options):
    log = loop.Log(folder, tensorboard=False, name="training.csv", speak=False)
    return finetune.train(trainer, folder, log, say=lambda _: None, **options)


def weights_of(trainer):
    return [v.numpy() for v in trainer.state]


def changed(trainer, before):
    """Names of the layers whose weights have moved."""
    after = {v.path: v.numpy() for v in trainer.model.variables}
    return {path.split("/")[0] for path, value in after.items() if not np.array_equal(value, before[path])}


def snapshot(trainer):
    return {v.path: v.numpy() for v in trainer.model.variables}


def test_it_learns_and_keeps_the_best_epoch(body, tmp_path):
    trainer = trainer_of(body, QUICK.__class__(**{**vars(QUICK), "epochs": 6}))
    learned = run(trainer, tmp_path)
    assert learned.ending == "epochs"
    assert learned.steps == 6 * 3
    assert [row["epoch"] for row in learned.history] == [0, 1, 2, 3, 4, 5, 6]
    assert learned.history[0]["val_accuracy"] < 0.7
    assert learned.score == 1.0
    best = max(learned.history, key=lambda row: (row["val_accuracy"], -row["val_loss"], -row["epoch"]))
    assert learned.epoch == best["epoch"]
    loss, accuracy = objective.measure(trainer.predict(trainer.val), trainer.targets[trainer.val])
    assert accuracy == learned.score  # the network holds the weights of that epoch
    assert loss == pytest.approx(learned.loss, rel=1e-5)


@pytest.mark.parametrize(
    "changes", [{}, pytest.param({"ema_decay": 0.5, "accumulate": 2, "mixup": 0.4}, marks=pytest.mark.slow)]
)
def test_stopped_anywhere_it_ends_with_the_same_weights(body, tmp_path, changes):
    tuning = Tuning(**{**vars(QUICK), **changes})
    whole = trainer_of(body, tuning)
    expected = run(whole, tmp_path / "whole")
    for stop_at in (2, 4, 7):
        part = trainer_of(body, tuning)
        found = run(part, tmp_path / "parts", checkpoint_seconds=0.0, stop=lambda step, end=stop_at: step >= end)
        assert found.ending == "stopped"
    last = trainer_of(body, tuning)
    found = run(last, tmp_path / "parts", checkpoint_seconds=0.0)
    for one, two in zip(weights_of(last), weights_of(whole), strict=True):
        np.testing.assert_array_equal(one, two)
    assert (found.epoch, found.score, found.loss) == (expected.epoch, expected.score, expected.loss)
    keys = ("epoch", "step", "train_loss", "val_loss", "val_accuracy")
    assert [[row.get(k) for k in keys] for row in found.history] == [[r.get(k) for k in keys] for r in expected.history]


def test_a_finished_run_is_not_run_again(body, tmp_path):
    first = run(trainer_of(body, QUICK), tmp_path)
    again = trainer_of(body, QUICK)
    found = run(again, tmp_path)
    assert (found.steps, found.score) == (first.steps, first.score)
    assert found.seconds == first.seconds


@pytest.mark.parametrize("optimizer", ["sgd", pytest.param("adamw", marks=pytest.mark.slow)])
def test_it_never_loses_against_where_it_began(body, tmp_path, optimizer):
    good = trainer_of(body, Tuning(**{**vars(QUICK), "epochs": 6}))
    run(good, tmp_path / "good")
    values = weights_of(good)
    wild = trainer_of(body, Tuning(**{**vars(QUICK), "learning_rate": 1e4, "optimizer": optimizer, "warmup": 0.0}))
    for variable, value in zip(wild.state, values, strict=True):
        variable.assign(value)
    learned = run(wild, tmp_path / "wild")
    assert learned.epoch == 0
    assert learned.score == 1.0
    assert learned.ending in ("epochs", "diverged")
    for one, two in zip(weights_of(wild), values, strict=True):
        np.testing.assert_array_equal(one, two)


def test_patience_ends_a_run(body, tmp_path):
    tuning = Tuning(**{**vars(QUICK), "learning_rate": 1e-9, "epochs": 30, "patience": 2})
    learned = run(trainer_of(body, tuning), tmp_path)
    assert learned.ending == "patience"
    assert learned.history[-1]["epoch"] < 30


@pytest.mark.parametrize(("tick", "learns"), [(0.1, True), (10.0, False)])
def test_the_clock_ends_a_run(body, tmp_path, monkeypatch, tick, learns):
    clock = itertools.count()
    monkeypatch.setattr(finetune.time, "perf_counter", lambda: tick * next(clock))
    learned = run(trainer_of(body, Tuning(**{**vars(QUICK), "epochs": 10_000, "minutes": 0.02})), tmp_path)
    assert learned.ending == "time"
    assert (learned.history[-1]["epoch"] > 0) == learns
    if learns:
        assert learned.history[-1]["learning_rate"] < 1e-6  # the schedule ended with it


def test_time_is_kept_for_what_is_measured_afterwards(body, tmp_path):
    trainer = trainer_of(body, Tuning(**{**vars(QUICK), "epochs": 10_000, "minutes": 0.5}), closing=1000)
    trainer.seconds = 12.0
    assert trainer.progress == pytest.approx(12 / 30)
    trainer.pace = 0.012
    kept = 2 + 0.012 * (1000 + len(trainer.val))
    assert trainer.progress == pytest.approx(12 / (30 - kept))
    narrow = trainer_of(body, Tuning(**{**vars(trainer.tuning), "precision": "mixed_bfloat16"}), closing=500)
    narrow.seconds, narrow.pace = trainer.seconds, trainer.pace
    assert narrow.progress == trainer.progress  # what is measured afterwards is measured in float32
    trainer.pace = 1.0  # at least half of the time is for learning
    assert trainer.progress == pytest.approx(12 / 15)
    trainer.judge()
    assert 0 < trainer.pace < 1.0
    trainer.save(tmp_path)
    again = trainer_of(body, trainer.tuning, closing=1000)
    again.restore(tmp_path)
    assert again.progress == trainer.progress > 12 / 30


def test_what_is_frozen_does_not_move(body):
    for mode in ("batch", "frozen"):
        trainer = trainer_of(
            body, Tuning(**{**vars(QUICK), "batch_norm": mode, "trainable_from": "conv3_block2_2_conv", "warmup": 0.0})
        )
        before = snapshot(trainer)
        trainer.learn(trainer.feed.plain(trainer.train[:16]), trainer.targets[trainer.train[:16]])
        assert changed(trainer, before) == {*trainer.boundary.learning, "predictions"}


def test_statistics_move_only_in_batches_of_32(body):
    for size, moves in ((16, False), (32, True)):
        trainer = trainer_of(body, Tuning(trainable_from="stage4", batch_size=size))
        before = snapshot(trainer)
        trainer.learn(trainer.feed.plain(trainer.train[:32]), trainer.targets[trainer.train[:32]])
        after = snapshot(trainer)
        moved = {path for path in after if not np.array_equal(after[path], before[path])}
        assert any("moving" in path for path in moved) == moves


def one_step(body, **changes):
    """The change of each weight in one plain gradient step, by path."""
    fields = {"trainable_from": "stage2", "optimizer": "sgd", "momentum": 0.0, "schedule": "constant", "batch_size": 16}
    trainer = trainer_of(body, Tuning(**{**fields, "learning_rate": 1e-2, **changes}))
    before = snapshot(trainer)
    rows = trainer.train[:16]
    trainer.learn(trainer.feed.plain(rows), trainer.targets[rows])
    after = snapshot(trainer)
    return {path: after[path] - before[path] for path in after}, before


def test_the_rate_falls_from_block_to_block(body):
    plain, _ = one_step(body)
    scaled, _ = one_step(body, layer_decay=0.5)
    factors = {"predictions": 1, "conv4_block1_1_conv": 0.5, "conv3_block2_1_conv": 0.25, "conv3_block1_1_conv": 0.125}
    for layer, factor in factors.items():
        path = f"{layer}/kernel"
        assert np.abs(plain[path]).max() > 0
        np.testing.assert_allclose(scaled[path], factor * plain[path], rtol=2e-2, atol=1e-7)


def test_decay_pulls_on_kernels_alone(body):
    plain, before = one_step(body)
    pulled, _ = one_step(body, weight_decay=0.5)
    for path, change in plain.items():
        extra = pulled[path] - change
        kernel = path.endswith("kernel") and np.abs(change).max() > 0
        np.testing.assert_allclose(extra, -0.005 * before[path] if kernel else 0, rtol=2e-2, atol=2e-5)


def test_gradients_are_clipped_together(body):
    plain, _ = one_step(body)
    norm = np.sqrt(sum((change.astype(np.float64) ** 2).sum() for change in plain.values())) / 1e-2
    clipped, _ = one_step(body, clip=0.25 * norm)
    for path, change in plain.items():
        np.testing.assert_allclose(clipped[path], 0.25 * change, rtol=1e-2, atol=1e-6)


def test_accumulated_batches_are_one_large_batch(body):
    fields = {"trainable_from": "stage4", "optimizer": "adam", "schedule": "constant", "learning_rate": 1e-3}
    one = trainer_of(body, Tuning(**fields, batch_size=24, batch_norm="frozen"))
    two = trainer_of(body, Tuning(**fields, batch_size=8, batch_norm="frozen", accumulate=3))
    rows = one.train[:24]
    one.learn(one.feed.plain(rows), one.targets[rows])
    for part in np.split(rows, 3):
        two.learn(two.feed.plain(part), two.targets[part])
    for ours, theirs in zip(weights_of(two), weights_of(one), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5)
    assert max(np.abs(total.numpy()).max() for total in two.sums) == 0


def test_the_average_follows_and_is_what_is_kept(body):
    trainer = trainer_of(body, Tuning(**{**vars(QUICK), "ema_decay": 0.15, "schedule": "constant", "warmup": 0.0}))
    states = [weights_of(trainer)]
    for start in (0, 15):
        rows = trainer.train[start : start + 15]
        trainer.learn(trainer.feed.plain(rows), trainer.targets[rows])
        states.append(weights_of(trainer))
    trainer.judge()
    for index, average in enumerate(trainer.average):
        expected = 0.15 * (0.1 * states[0][index] + 0.9 * states[1][index]) + 0.85 * states[2][index]
        np.testing.assert_allclose(average.numpy(), expected, rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(trainer.best[index], average.numpy())
    for kept, now in zip(states[2], weights_of(trainer), strict=True):
        np.testing.assert_array_equal(kept, now)  # training goes on with its own weights


def test_layers_thaw_one_after_the_other(body):
    tuning = Tuning(
        trainable_from="stage3", epochs=4, batch_size=15, learning_rate=1e-3, schedule="constant",
        unfreeze=((0.25, "stage4"), (0.5, "stage3")),
    )  # fmt: skip
    trainer = trainer_of(body, tuning)
    moved = []
    for _ in range(4):
        before = snapshot(trainer)
        for _ in trainer.epoch_steps():
            pass
        trainer.close_epoch()
        moved.append({name.split("_")[0] for name in changed(trainer, before)})
    assert moved == [
        {"predictions"},
        {"predictions", "conv4"},
        {"predictions", "conv4", "conv3"},
        {"predictions", "conv4", "conv3"},
    ]


def log_softmax(values):
    shifted = values - values.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"label_smoothing": 0.2},
        {"focal": 2.0},
        {"balance": True},
        {"balance": True, "focal": 1.0, "label_smoothing": 0.1},
        {"distillation": 0.3, "temperature": 3.0},
    ],
)
def test_losses_by_hand(body, changes):
    random = np.random.default_rng(0)
    logits, teacher = random.normal(0, 2, (50, 3)), random.normal(0, 2, (60, 3)).astype(np.float32)
    trainer = trainer_of(body, Tuning(**changes), teacher=teacher)
    trainer.objective.weights = objective.class_weights(one_hot([0] * 6 + [1] * 3 + [2]), trainer.tuning.balance)
    labels = random.integers(0, 3, 50)
    received = np.asarray(trainer.objective.loss(logits.astype(np.float32), one_hot(labels), teacher[:50]))
    logs = log_softmax(logits)
    smooth, gamma = changes.get("label_smoothing", 0.0), changes.get("focal", 0.0)
    goal = one_hot(labels) * (1 - smooth) + smooth / 3
    weights = np.array([10 / 18, 10 / 9, 10 / 3]) if changes.get("balance") else np.ones(3)
    if gamma:
        expected = -(goal * (1 - np.exp(logs)) ** gamma * logs * weights).sum(axis=1)
    else:
        expected = -(goal * logs).sum(axis=1) * weights[labels]
    if changes.get("distillation"):
        taught = -(np.exp(log_softmax(teacher[:50] / 3)) * log_softmax(logits / 3)).sum(axis=1)
        expected = 0.7 * expected + 0.3 * 9 * taught
    np.testing.assert_allclose(received, expected, rtol=1e-4)


def test_several_labels_by_hand(body):
    random = np.random.default_rng(0)
    logits, goal = random.normal(0, 2, (20, 3)), random.integers(0, 2, (20, 3)).astype(np.float32)
    trainer = trainer_of(body, Tuning(focal=1.5), multilabel=True)
    shares = 1 / (1 + np.exp(-logits))
    each = -(goal * np.log(shares) + (1 - goal) * np.log(1 - shares)) * np.abs(goal - shares) ** 1.5
    np.testing.assert_allclose(
        trainer.objective.loss(logits.astype(np.float32), goal, None), each.sum(axis=1), rtol=1e-4
    )
    loss, accuracy = objective.measure(logits, goal, multilabel=True)
    assert accuracy == ((logits > 0) == goal).mean()
    assert loss == pytest.approx(-(goal * np.log(shares) + (1 - goal) * np.log(1 - shares)).sum(axis=1).mean())


def test_the_range_test_finds_a_rate_and_changes_nothing(body):
    trainer = trainer_of(body, Tuning(**{**vars(QUICK), "accumulate": 2, "ema_decay": 0.9}))
    before = snapshot(trainer)
    slots = [slot.numpy() for slot in trainer.optimizer.slots]
    curve = trainer.find_rate(low=1e-5, high=10.0, steps=40)
    assert 1e-4 < curve.suggestion < 3
    assert list(curve.rates) == sorted(curve.rates)
    assert min(curve.losses) < 0.9 * curve.losses[0]
    assert not changed(trainer, before)
    for one, two in zip(trainer.optimizer.slots, slots, strict=True):
        np.testing.assert_array_equal(one.numpy(), two)
    assert (trainer.step, trainer.tuning.learning_rate) == (0, 3e-3)


def test_pixels_through_the_frozen_part_are_the_stored_maps(body):
    from resfit.engines import create

    tuning = Tuning(**{**vars(QUICK), "views": 0})
    pixels, labels = coloured(40)
    model, layers = with_head(body)
    stored, _ = cached(model, layers, pixels, tuning)
    twin = boundary.copy(body)
    first, _ = boundary.split(twin, boundary.find(twin, "stage3"))
    feed = PixelFeed(pixels, tuning, create(first, "keras"))
    rows = np.array([3, 5, 8])
    np.testing.assert_allclose(feed.plain(rows), stored.plain(rows), atol=1e-5)
    targets = one_hot(labels[rows])
    np.testing.assert_allclose(
        feed.batch(rows, targets, 0, 0, None)[0], stored.batch(rows, targets, 0, 0, None)[0], atol=1e-5
    )
    changing = PixelFeed(pixels, Tuning(**{**vars(QUICK), "flip": True, "crop_scale": 0.3}), create(first, "keras"))
    one, two, again = (changing.batch(rows, targets, 0, step, None)[0] for step in (1, 2, 1))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - two).max() > 1e-2


def test_views_take_turns():
    maps = [np.full((6, 2), view, np.float32) for view in range(3)]
    feed = MapFeed(maps, Tuning())
    rows = np.arange(6)
    seen = [feed.batch(rows, one_hot(rows % 3), epoch, 0, None)[0][:, 0] for epoch in range(3)]
    np.testing.assert_array_equal(np.sort(np.stack(seen), axis=0), np.tile([[0], [1], [2]], (1, 6)))
    np.testing.assert_array_equal(feed.plain(rows), maps[0])


def test_images_grow(body, tmp_path):
    pixels, labels = coloured(60)
    model, layers = with_head(body)
    tuning = Tuning(trainable_from=0, epochs=2, batch_size=15, learning_rate=1e-3, sizes=((0.0, 16), (0.5, 32)))
    sizes = []

    class Watching(PixelFeed):
        def batch(self, *arguments):
            values, targets = super().batch(*arguments)
            sizes.append(values.shape[1])
            return values, targets

    feed = Watching(pixels, tuning)
    trainer = class_trainer(model, layers, tuning, feed, one_hot(labels), np.arange(15, 60), np.arange(15))
    run(trainer, tmp_path)
    assert sizes == [16] * 3 + [32] * 3


def test_bfloat16_learns_and_keeps_its_weights_in_float32(body):
    pixels, labels = coloured(48)
    import keras

    twin = boundary.copy(body, dtype="mixed_bfloat16")
    dense = keras.layers.Dense(3, dtype="float32", name="predictions")
    model = keras.Model(twin.inputs[0], dense(twin.outputs[0]))
    tuning = Tuning(trainable_from="stage3", batch_size=16, learning_rate=3e-3, precision="mixed_bfloat16")
    feed, parts = PixelFeed(pixels, tuning), (boundary.find(twin, "stage3"), model)
    trainer = class_trainer(model, [dense], tuning, feed, one_hot(labels), np.arange(48), np.arange(0), parts=parts)
    losses = [trainer.learn(pixels[:16], one_hot(labels[:16]))[0] for _ in range(8)]
    assert losses[-1] < 0.7 * losses[0]
    assert {v.dtype for v in trainer.state} == {"float32"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"optimizer": "lion"},
        {"schedule": "step"},
        {"batch_norm": "sync"},
        {"precision": "int8"},
        {"epochs": -1},
        {"learning_rate": 0},
        {"layer_decay": 0.0},
        {"ema_decay": 1.0},
        {"clip": 0.0},
        {"crop_scale": 1.1},
        {"erasing": 2},
        {"mixup": -1},
        {"sizes": ((2.0, 32),)},
        {"sizes": ((0.0, 0),)},
        {"unfreeze": ((-1, "stage4"),)},
    ],
)
def test_settings_out_of_range(wrong):
    with pytest.raises(ArgumentError, match="Received"):
        Tuning(**wrong)
