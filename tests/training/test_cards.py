"""Training as on a card: too little memory, gradients that overflow, losses that are read now and then."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import pytest

from resfit import devices, engines
from resfit.data.pixel_store import open_store
from resfit.engines import speed as engine_speed
from resfit.errors import ResfitWarning
from resfit.training import feeds, frozen, loop, pretrain, speed
from resfit.training import trainer as finetune
from resfit.training.settings import Tuning
from tests.cards import AMPERE, VOLTA, cards
from tests.pictures import write_folder
from tests.training.networks import TWO_BLOCKS, coloured, small_body, two_blocks, with_head
from tests.training.test_trainer import cached, class_trainer, one_hot, trainer_of

HALF = Tuning(epochs=2, batch_size=16, trainable_from="stage3", precision="mixed_float16", learning_rate=1e-3)


@pytest.fixture(scope="module")
def body():
    return small_body()


def trainer_in_half(body, tuning=HALF):
    from resfit.networks import model_graph

    pixels, labels = coloured(60)
    model, layers = with_head(model_graph.copy(body, dtype=tuning.policy))
    feed, parts = cached(model, layers, pixels, tuning)
    rows = np.arange(60)
    return class_trainer(model, layers, tuning, feed, one_hot(labels), rows[15:], rows[:15], parts=parts)


def values(trainer):
    return [np.array(variable.numpy()) for variable in (*trainer.state, *trainer.optimizer.slots)]


def test_infinite_gradients_move_nothing_and_halve_the_scale(body):
    """Also the statistics of norms stay what they were; a fixed scale would make all of it NaN."""
    trainer = trainer_in_half(body, Tuning(**{**HALF.to_dict(), "batch_norm": "batch", "batch_size": 32}))
    inputs, targets = trainer.feed.plain(trainer.train[:32]), trainer.targets[trainer.train[:32]]
    trainer.learn(inputs, targets)
    before = values(trainer)
    assert [float(v.numpy()) for v in trainer.scale] == [2.0**15, 1.0]
    assert trainer.take(inputs * 1e30, targets).numpy()[2] == 0.0  # skipped
    for one, other in zip(before, values(trainer), strict=True):
        np.testing.assert_array_equal(one, other)
    assert [float(v.numpy()) for v in trainer.scale] == [2.0**14, 0.0]
    loss, _ = trainer.learn(inputs, targets)
    assert np.isfinite(loss)
    assert any((one != other).any() for one, other in zip(before, values(trainer), strict=True))
    for _ in range(14):
        assert trainer.take(inputs * 1e30, targets).numpy()[2] == 0.0
    assert trainer.take(inputs * 1e30, targets).numpy()[2] == -1.0  # at a scale of 1 it is no matter of scale
    assert not trainer._unread
    assert np.isfinite(np.concatenate([v.ravel() for v in values(trainer)])).all()


def test_the_scale_grows_when_gradients_stay_finite(body, monkeypatch):
    monkeypatch.setattr(finetune, "_STEADY", 2.0)
    trainer = trainer_in_half(body)
    inputs, targets = trainer.feed.plain(trainer.train[:16]), trainer.targets[trainer.train[:16]]
    seen = []
    for _ in range(4):
        trainer.learn(inputs, targets)
        seen.append([float(v.numpy()) for v in trainer.scale])
    assert seen == [[2.0**15, 1.0], [2.0**16, 0.0], [2.0**16, 1.0], [2.0**17, 0.0]]


def test_a_run_in_float16_goes_on_to_the_last_bit(body, tmp_path):
    """The scale of the loss is part of the checkpoint."""

    def run(folder, stops):
        for stop in (*stops, None):
            trainer = trainer_in_half(body)
            log = loop.Log(folder, False, speak=False)
            trainer.scale[0].assign(2.0**9)  # not what a run begins with, so that a lost one shows
            if folder.joinpath("checkpoint.npz").exists():
                trainer.scale[0].assign(3.0)
            found = finetune.train(
                trainer, folder, log, checkpoint_seconds=0, say=lambda _: None,
                stop=None if stop is None else lambda step, stop=stop: step >= stop,
            )  # fmt: skip
        return trainer, found

    whole, _ = run(tmp_path / "whole", ())
    parts, found = run(tmp_path / "parts", (1, 3))
    assert found.ending == "epochs"
    for one, other in zip(values(whole), values(parts), strict=True):
        np.testing.assert_array_equal(one, other)
    assert float(parts.scale[0].numpy()) == float(whole.scale[0].numpy()) == 2.0**9


class Cramped:
    """A step on a card that has room for so many images."""

    def __init__(self, trainer, room):
        self._make, self.room, self.sizes = trainer._make_step, room, []
        trainer._make_step = self.make

    def make(self):
        step = self._make()

        def run(batch, *others):
            import tensorflow as tf

            count = max(len(share) for share in getattr(batch[0], "values", [batch[0]]))  # on each card
            self.sizes.append(count)
            if count > self.room:
                raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")
            return step(batch, *others)

        return run


@pytest.mark.parametrize("accumulate", [1, 2])
def test_memory_that_runs_out_takes_the_same_steps_in_parts(body, tmp_path, accumulate):
    tuning = Tuning(
        epochs=2, batch_size=15, trainable_from="stage3", optimizer="sgd", ema_decay=0.9, batch_norm="frozen",
        clip=1.0, accumulate=accumulate,
    )  # fmt: skip
    whole, cramped = trainer_of(body, tuning), trainer_of(body, tuning)
    room = Cramped(cramped, 4)
    rows = whole.train[:15]
    for number in range(4):
        expected = whole.learn(whole.feed.plain(rows), whole.targets[rows])
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            received = cramped.learn(cramped.feed.plain(rows), cramped.targets[rows])
        texts = [str(one.message) for one in told if issubclass(one.category, ResfitWarning)]
        assert texts == [
            f"cpu has not enough memory for {before} images a step at once: going on with {after}, whose gradients "
            "are added up to the same step."
            for before, after in (() if number else ((15, 7), (7, 3)))
        ]
        np.testing.assert_allclose(received, expected, rtol=1e-5)
    assert cramped.parts == 4
    assert room.sizes[:2] == [15, 7]
    assert max(room.sizes[2:]) <= 4
    for one, other in zip([*whole.state, *whole.average], [*cramped.state, *cramped.average], strict=True):
        np.testing.assert_allclose(other.numpy(), one.numpy(), rtol=1e-4, atol=1e-6)
    cramped.save(tmp_path)  # a run that goes on does not run out of memory again
    again = trainer_of(body, tuning)
    assert again.restore(tmp_path)
    assert again.parts == 4
    room.room = 0
    with pytest.warns(ResfitWarning, match="not enough memory"), pytest.raises(Exception, match="OOM"):
        cramped.learn(cramped.feed.plain(rows), cramped.targets[rows])


def test_networks_from_scratch_take_their_steps_in_parts(tmp_path, monkeypatch):
    """Several crops of an image, mixed with others, are divided with their targets."""
    real = pretrain.PretrainSettings.tuning.fget
    fixed = property(lambda self: dataclasses.replace(real(self), batch_norm="frozen"))
    monkeypatch.setattr(pretrain.PretrainSettings, "tuning", fixed)
    store = open_store(write_folder(tmp_path / "images", each=6), 32)
    settings = pretrain.PretrainSettings(
        model=TWO_BLOCKS, size=32, epochs=1, batch_size=6, repeats=2, mixup=0.3, warmup=0.0, learning_rate=0.05
    )
    found, told = [], []
    for room in (99, 2):
        with two_blocks():
            trainer = pretrain.trainer_of(settings, store)
        cramped = Cramped(trainer, room)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            figures = list(trainer.epoch_steps())
        told += [str(one.message) for one in caught if "memory" in str(one.message)]
        found.append((figures[-1], values(trainer)))
        assert max(cramped.sizes[2:]) <= room
    assert [text.partition(" for ")[2].partition(",")[0] for text in told] == [
        "6 images a step at once: going on with 3",
        "3 images a step at once: going on with 1",
    ]
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-5)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-5)
    trainer.save(tmp_path / "run")
    with two_blocks():
        again = pretrain.trainer_of(settings, store)
    assert again.restore(tmp_path / "run")
    assert again.parts == 4


def test_what_is_measured_in_halves_is_the_same(body):
    trainer = trainer_of(body, Tuning(epochs=1, batch_size=16, trainable_from="stage3"))
    expected = trainer.predict(trainer.val)
    forward = trainer._forward

    def cramped(inputs):
        import tensorflow as tf

        if len(inputs) > 4:
            raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")
        return forward(inputs)

    trainer._forward = cramped
    np.testing.assert_allclose(trainer.predict(trainer.val), expected, rtol=1e-5, atol=1e-6)


def test_losses_that_are_read_now_and_then_are_the_same(body, tmp_path):
    tuning = Tuning(epochs=3, batch_size=4, trainable_from="stage3", ema_decay=0.9)
    found = []
    for every in (1, 7):
        trainer = trainer_of(body, tuning)
        trainer.read_every = every
        folder = tmp_path / str(every)
        learned = finetune.train(trainer, folder, loop.Log(folder, False, speak=False), say=lambda _: None)
        found.append([{k: v for k, v in row.items() if k != "seconds"} for row in learned.history])
        last = values(trainer)
    assert found[0] == found[1]
    stopped = trainer_of(body, tuning)
    stopped.read_every = 7
    folder = tmp_path / "stopped"
    log = loop.Log(folder, False, speak=False)
    finetune.train(stopped, folder, log, checkpoint_seconds=0, say=lambda _: None, stop=lambda step: step >= 5)
    again = trainer_of(body, tuning)
    again.read_every = 7
    finetune.train(again, folder, log, say=lambda _: None)
    for one, other in zip(last, values(again), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_loss_that_is_no_number_ends_a_run_that_reads_it_late(body):
    trainer = trainer_of(body, Tuning(epochs=1, batch_size=4, trainable_from="stage3"))
    trainer.read_every = 5
    taken = trainer.take
    trainer.take = lambda inputs, targets, teacher: taken(inputs, targets * (np.nan if trainer.step == 2 else 1.0))
    assert len(list(trainer.epoch_steps())) < 8
    assert trainer.ending == "diverged"


def test_images_are_changed_on_the_host(monkeypatch):
    """What a card changed would come down and go up again in the step."""
    import tensorflow as tf

    cards(monkeypatch, AMPERE)
    seen = []
    real = tf.device
    monkeypatch.setattr(tf, "device", lambda place: seen.append(place) or real(place))
    tuning = Tuning(flip=True, mixup=0.2)
    images = np.zeros((2, 8, 8, 3), np.uint8)
    feed = feeds.PixelFeed(images, tuning)
    feed.batch(np.arange(2), one_hot(np.arange(2)), 0, 0, None)
    assert seen[:1] == ["/CPU:0"]
    assert set(seen) == {"/CPU:0"}
    assert len(seen) >= 2


# the machine, as a recipe sees it


def test_a_cards_speed_is_measured_once_and_kept(body, tmp_path, monkeypatch):
    cards(monkeypatch, AMPERE)
    monkeypatch.setattr(engine_speed, "_known", {})
    first = speed.hardware(body, cache=tmp_path)
    assert (first.device, first.gpu, first.policy) == ("gpu:0", True, "mixed_bfloat16")
    assert 0 < first.forward < first.training < 1
    assert len(list((tmp_path / "speed").glob("*.json"))) == 2
    monkeypatch.setattr(engine_speed, "_known", {})
    monkeypatch.setattr(engine_speed, "_seconds", lambda *_: pytest.fail("measured again"))
    monkeypatch.setattr(speed, "_measured", lambda *_: pytest.fail("measured again"))
    again = speed.hardware(body, cache=tmp_path)
    assert (again.forward, again.training) == (first.forward, first.training)
    damaged = next((tmp_path / "speed").glob("*.json"))
    damaged.write_text("{")
    monkeypatch.setattr(engine_speed, "_known", {})
    with pytest.raises(pytest.fail.Exception):
        speed.hardware(body, cache=tmp_path)


def test_a_processor_is_measured_by_a_product(body, tmp_path):
    found = speed.hardware(body, cache=tmp_path)
    assert (found.device, found.forward, found.training, found.training_precision) == ("cpu", 0.0, 0.0, "")
    assert not (tmp_path / "speed").exists()


def test_a_card_trains_in_what_it_has_units_for():
    policies = [speed.training_precision(card) for card in (AMPERE, VOLTA, devices.Device("gpu", capability=(6, 1)))]
    assert policies == ["mixed_bfloat16", "mixed_float16", "float32"]


@pytest.mark.parametrize(("seconds", "stored"), [(1e-2, True), (1e-9, False)])
def test_maps_are_stored_where_reading_is_faster_than_computing(body, monkeypatch, seconds, stored):
    cards(monkeypatch, AMPERE)
    monkeypatch.setattr(engine_speed, "forward", lambda *_: engine_speed.ForwardSpeed(seconds, 32, False))
    room = frozen.storage.Storage(100, 1000, "float16", True, "kept")
    running = frozen.RunOptions(folder=None)
    found = frozen._worth_reading(room, body, (14, 14, 1024), running)
    assert found.stored is stored
    assert ("computed in every epoch: gpu:0 takes" in found.reason) is not stored
    with devices.using("cpu"):
        assert frozen._worth_reading(room, body, (14, 14, 1024), running) is room


def test_a_whole_fit_on_a_card_says_so(body, tmp_path, monkeypatch):
    """The device, its driver and the precisions stand in the result, and the plan has what was measured."""
    import resfit

    cards(monkeypatch, AMPERE)
    source = write_folder(tmp_path / "images", each=12)
    found = resfit.fit(
        source, model=body, out=tmp_path / "out", strategy="finetune", budget="5m", tuning={"epochs": 1},
        cache=tmp_path / "cache", check=False, tensorboard=False,
    )  # fmt: skip
    assert found.metrics["machine"] == {
        "device": "gpu:0",
        "name": "Ampere",
        "driver": "550.54.15, CUDA 12.5.1, cuDNN 9",
        "precision": {"features": "float32", "training": "mixed_bfloat16"},
        "deterministic": False,
    }
    assert found.run.device["device"] == "gpu:0"
    assert found.metrics["plan"]["hardware"]["training"] > 0
    assert any("measured on gpu:0" in note for note in found.run.notes)
    on_processor = resfit.fit(source, model=body, cache=tmp_path / "cache", device="cpu", check=False)
    assert on_processor.metrics["machine"]["device"] == "cpu"
    assert on_processor.run.engine in ("keras", "openvino")
    assert devices.current() == AMPERE
    assert engines.resolve().device == AMPERE
