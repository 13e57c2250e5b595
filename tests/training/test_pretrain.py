"""Training from scratch: it learns, it resumes to the bit, and its arithmetic is the stated one."""

from __future__ import annotations

import csv
import dataclasses
import inspect
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from resfit.data.pixel_store import open_store
from resfit.errors import ArgumentError, DataError, ResfitError
from resfit.training import loop
from resfit.training import pretrain as module
from resfit.training.loop import decays
from resfit.training.pretrain import PretrainSettings, augment, parse_sizes, pretrain
from tests.training.networks import TWO_BLOCKS, two_blocks

COLOURS = {"blue": (40, 60, 220), "green": (60, 200, 60), "red": (220, 50, 40)}
SMALL = PretrainSettings(
    model=TWO_BLOCKS,
    size=32,
    sizes=((0.0, 16), (0.5, 32)),
    epochs=3,
    batch_size=16,
    learning_rate=0.05,
    ema_decay=0.5,
)


@pytest.fixture(autouse=True, scope="module")
def _two_blocks():
    with two_blocks():
        yield


def write_images(root, count=32, seed=0):
    generator = np.random.default_rng(seed)
    for name, colour in COLOURS.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            noise = generator.normal(0, 30, (40, 36, 3)) + colour
            Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(root / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def undisturbed(images, tmp_path_factory):
    output = tmp_path_factory.mktemp("undisturbed")
    return pretrain(images, output, validation=images, settings=SMALL, tensorboard=False)


@pytest.fixture(scope="module")
def stopped(images, tmp_path_factory):
    """A run that was stopped inside its second epoch."""
    output = tmp_path_factory.mktemp("stopped")
    stop = {"checkpoint_minutes": 0.0, "stop": lambda step: step >= 9}
    pretrain(images, output, validation=images, settings=SMALL, tensorboard=False, **stop)
    return output


def test_it_learns_what_is_there_to_learn(images, tmp_path):
    held_out = write_images(tmp_path / "held-out", count=20, seed=5)
    settings = PretrainSettings(size=32, epochs=6, batch_size=16, learning_rate=0.05, ema_decay=0.8)
    result = pretrain(images, tmp_path / "run", validation=held_out, settings=settings, tensorboard=False)
    assert result.top1 is not None
    assert result.top1 > 0.9
    assert result.top5 == 1.0
    assert result.steps == 6 * 6


def test_stopped_anywhere_it_ends_with_the_same_weights(images, undisturbed, tmp_path):
    for stop_at in (4, 9):  # inside an epoch, with a checkpoint only at its start
        part = pretrain(
            images,
            tmp_path,
            validation=images,
            settings=SMALL,
            tensorboard=False,
            checkpoint_minutes=0.0,
            stop=lambda step, end=stop_at: step >= end,
        )
        assert part.steps == stop_at
        assert not (tmp_path / "model.safetensors").exists()
    whole = pretrain(images, tmp_path, validation=images, settings=SMALL, tensorboard=False)
    assert whole.steps == undisturbed.steps == 18
    assert (whole.device["device"], whole.device["precision"]) == ("cpu", "float32")
    assert whole.loss == undisturbed.loss
    expected = load_file(undisturbed.output / "model.safetensors")
    received = load_file(tmp_path / "model.safetensors")
    assert received.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(received[name], array, err_msg=name)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "log.csv").read_text())))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert [row["size"] for row in rows] == ["16", "32", "32"]


EVERYTHING = dataclasses.replace(
    SMALL,
    epochs=2,
    colour=0.3,
    rand_augment=(1, 5.0),
    erasing=0.5,
    mixup=0.2,
    cutmix=1.0,
    repeats=2,
    distillation=0.5,
    teacher_views=3,
)


def test_stopped_with_everything_that_helps_it_ends_with_the_same_weights(images, undisturbed, tmp_path):
    teacher = undisturbed.output / "model.safetensors"
    run = {"validation": images, "settings": EVERYTHING, "tensorboard": False, "teacher": teacher}
    expected = pretrain(images, tmp_path / "whole", **run)
    for stop_at in (5, 17):
        pretrain(images, tmp_path / "parts", **run, checkpoint_minutes=0.0, stop=lambda step, end=stop_at: step >= end)
        assert (tmp_path / "parts" / "soft_targets.npy").exists()
    received = pretrain(images, tmp_path / "parts", **run)
    assert expected.steps == received.steps == 2 * (96 // 8)  # an epoch sees each image in two crops
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    for name, array in first.items():
        np.testing.assert_array_equal(second[name], array, err_msg=name)
    rows, again = (list(csv.DictReader(io.StringIO((tmp_path / name / "log.csv").read_text()))) for name in
                   ("whole", "parts"))  # fmt: skip
    assert [row["teacher_top1"] for row in rows] == [row["teacher_top1"] for row in again]
    assert float(rows[0]["teacher_top1"]) > 1 / 3
    assert not list(tmp_path.rglob("soft_targets.npy"))  # the run is over
    with pytest.raises(ResfitError, match=r"teacher: '[0-9a-f]{64}' there, '[0-9a-f]{64}' now"):
        pretrain(images, tmp_path / "parts", **{**run, "teacher": tmp_path / "whole" / "model.safetensors"})


def test_a_run_from_before_a_setting_existed_goes_on(images, undisturbed, stopped, tmp_path):
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    facts = json.loads((tmp_path / "config.json").read_text())
    for name in ("mixup", "cutmix", "repeats", "distillation"):
        del facts["settings"][name]
    del facts["teacher"]
    (tmp_path / "config.json").write_text(json.dumps(facts))
    whole = pretrain(images, tmp_path, validation=images, settings=SMALL, tensorboard=False)
    assert whole.loss == undisturbed.loss


def test_a_run_of_an_earlier_version_is_not_begun_afresh(images, stopped, tmp_path):
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    found = loop.load_checkpoint(tmp_path)
    loop.save_checkpoint(tmp_path, found.state, {"velocity/0": found.arrays["slot/0"], **found.arrays})
    with pytest.raises(ResfitError, match="one that an earlier version of resfit began"):
        pretrain(images, tmp_path, settings=SMALL, tensorboard=False)


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_same_weights(images, tmp_path):
    settings = dataclasses.replace(SMALL, model="resnet10_tiny")
    undisturbed = pretrain(images, tmp_path / "whole", validation=images, settings=settings, tensorboard=False)
    code = (
        "import sys; from resfit.training.pretrain import *;"
        "pretrain(sys.argv[1], sys.argv[2], validation=sys.argv[1], tensorboard=False, checkpoint_minutes=0.0,"
        f"settings={settings})"
    )
    output = tmp_path / "parts"
    generator = np.random.default_rng(0)
    for _ in range(5):
        process = subprocess.Popen([sys.executable, "-c", code, str(images), str(output)], stderr=subprocess.DEVNULL)
        time.sleep(generator.uniform(5, 15))
        process.send_signal(signal.SIGKILL)
        process.wait()
    pretrain(images, output, validation=images, settings=settings, tensorboard=False)
    expected, received = (load_file(folder / "model.safetensors") for folder in (undisturbed.output, output))
    for name, array in expected.items():
        np.testing.assert_array_equal(received[name], array, err_msg=name)


def test_a_damaged_checkpoint_is_passed_over(images, undisturbed, stopped, tmp_path):
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    newest = tmp_path / "checkpoint.npz"
    newest.write_bytes(newest.read_bytes()[:1000])
    whole = pretrain(images, tmp_path, validation=images, settings=SMALL, tensorboard=False)
    assert whole.loss == undisturbed.loss


def test_other_settings_in_the_same_folder_are_refused(images, undisturbed):
    with pytest.raises(ResfitError, match=r"epochs: 3 there, 4 now"):
        pretrain(
            images, undisturbed.output, settings=PretrainSettings(**{**vars(SMALL), "epochs": 4}), tensorboard=False
        )


def test_the_file_holds_the_average_and_the_facts(undisturbed):
    from safetensors import safe_open

    arrays = load_file(undisturbed.output / "model.safetensors")
    with np.load(undisturbed.output / "checkpoint.npz") as saved:
        averages = [saved[f"average/{i}"] for i in range(len(arrays))]
        weights = [saved[f"weight/{i}"] for i in range(len(arrays))]
    stored = sorted(array.tobytes() for array in arrays.values())
    assert stored == sorted(array.astype(np.float16).tobytes() for array in averages)
    assert stored != sorted(array.astype(np.float16).tobytes() for array in weights)
    with safe_open(undisturbed.output / "model.safetensors", "np") as file:
        facts = file.metadata()
    assert json.loads(facts["classes"]) == sorted(COLOURS)
    assert json.loads(facts["input_spec"])["size"] == [32, 32]
    assert json.loads(facts["architecture"])["classes"] == 3


def test_the_schedule():
    cosine = PretrainSettings(learning_rate=0.4, warmup=0.1, epochs=1)
    assert [cosine.rate(p) for p in (0, 0.05, 0.1, 0.55, 1)] == pytest.approx([0, 0.2, 0.4, 0.2, 0])
    cycle = PretrainSettings(learning_rate=0.4, schedule="one_cycle")
    assert [cycle.rate(p) for p in (0, 0.15, 0.3, 1)] == pytest.approx([0, 0.2, 0.4, 0.0004])
    sized = PretrainSettings(size=64, sizes=((0.25, 48), (0.0, 32)))
    assert [sized.image_size(p) for p in (0, 0.2, 0.25, 1)] == [32, 32, 48, 48]
    assert parse_sizes("0:32, 0.5:48") == ((0.0, 32), (0.5, 48))
    with pytest.raises(ArgumentError, match="0:32"):
        parse_sizes("32;48")


def steps_taken(images, count, **changes):
    """Weights before, after each step, velocities after each step, and the averages at the end."""
    # no warm-up: a rate of zero would move nothing and prove nothing
    fields = {
        "model": TWO_BLOCKS,
        "size": 32,
        "epochs": 9,
        "batch_size": 16,
        "learning_rate": 0.1,
        "warmup": 0.0,
        "ema_decay": 0.15,
    }
    settings = PretrainSettings(**{**fields, **changes})
    trainer = module.trainer_of(settings, open_store(images, 32))
    weights = [[v.numpy() for v in trainer.state]]
    velocities = []
    rates = []
    steps = trainer.epoch_steps()
    for _ in range(count):
        rates.append(settings.rate(trainer.progress))
        next(steps)
        weights.append([v.numpy() for v in trainer.state])
        velocities.append([v.numpy() for v in trainer.optimizer.slots])
    steps.close()
    return trainer, weights, velocities, rates


def test_steps_are_nesterov_and_the_average_follows(images):
    trainer, weights, velocities, rates = steps_taken(images, 2)
    learned = [i for i, v in enumerate(trainer.state) if v.trainable]
    moved = 0.0
    for slot, i in enumerate(learned):
        first, second = velocities[0][slot], velocities[1][slot]
        gradient = second - 0.9 * first
        np.testing.assert_allclose(weights[0][i] - weights[1][i], rates[0] * 1.9 * first, rtol=1e-3, atol=2e-6)
        step = rates[1] * (gradient + 0.9 * second)
        np.testing.assert_allclose(weights[1][i] - weights[2][i], step, rtol=1e-3, atol=2e-6)
        moved = max(moved, float(np.abs(step).max()))
    assert moved > 1e-3
    for i, average in enumerate(trainer.average):  # (1 + 0) / (10 + 0), then 0.15 < (1 + 1) / (10 + 1)
        expected = 0.15 * (0.1 * weights[0][i] + 0.9 * weights[1][i]) + 0.85 * weights[2][i]
        np.testing.assert_allclose(average.numpy(), expected, rtol=1e-4, atol=1e-6)


class _Uniform:
    """A teacher whose answer depends on the image alone, not on its label."""

    def __init__(self, shares):
        self.shares = np.array(shares, np.float32)

    def crops(self, rows, view):
        return np.random.default_rng([view]).random((5, 200), np.float32)[:, rows]

    def probabilities(self, rows, view):
        return np.tile(self.shares, (len(rows), 1))


def test_with_the_whole_loss_from_the_teacher_the_labels_have_no_part(images):
    def velocity(shares, distillation, labels):
        settings = PretrainSettings(
            model=TWO_BLOCKS, size=32, epochs=9, batch_size=16, distillation=distillation, weight_decay=0.0, warmup=0.0
        )
        store = open_store(images, 32)
        trainer = module.trainer_of(settings, dataclasses.replace(store, labels=labels(store.labels)), _Uniform(shares))
        steps = trainer.epoch_steps()
        next(steps)
        steps.close()
        return np.concatenate([v.numpy().ravel() for v in trainer.optimizer.slots])

    def same(labels):
        return labels

    def others(labels):
        return (labels + 1) % 3

    alone = velocity([0.7, 0.2, 0.1], 1.0, same)
    np.testing.assert_array_equal(alone, velocity([0.7, 0.2, 0.1], 1.0, others))
    assert np.abs(alone - velocity([0.1, 0.2, 0.7], 1.0, same)).max() > 1e-3
    labels = velocity([0.7, 0.2, 0.1], 1e-9, same)
    half = velocity([0.7, 0.2, 0.1], 0.5, same)  # gradients of the two parts add up
    np.testing.assert_allclose(half, (alone + labels) / 2, atol=1e-5)


def test_divergence_is_kullback_and_leiblers():
    targets = np.array([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]], np.float32)
    logits = np.log(np.array([[0.25, 0.25, 0.5], [0.2, 0.3, 0.5]], np.float32))
    np.testing.assert_allclose(module.divergence(targets, logits), [np.log(2), 0.0], atol=1e-6)


def test_batches_are_mixed_in_turn_and_targets_by_the_same_share():
    values = np.zeros((8, 32, 32, 3), np.uint8)
    values[:4] = 200
    targets = np.eye(2, dtype=np.float32)[[0] * 4 + [1] * 4]
    settings = PretrainSettings(mixup=1.0, cutmix=1.0, crop_scale=1.0, seed=3)
    seen = set()
    for number in range(8):
        mixed, shares = (np.asarray(x) for x in module.change(values, targets, (32, 32), settings, number))
        np.testing.assert_allclose(mixed.mean(axis=(1, 2, 3)) / 200, shares[:, 0], atol=1e-5)
        np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-6)
        blended = [image for image in mixed if 1 < image.mean() < 199]
        kinds = {"cutmix" if image.std() > 1 else "mixup" for image in blended}
        assert kinds <= {"mixup" if number % 2 == 0 else "cutmix"}
        seen |= kinds
    assert seen == {"mixup", "cutmix"}


def test_a_batch_of_repeated_augmentation_has_two_crops_of_each_image(images):
    store = open_store(images, 32)
    trainer = module.trainer_of(dataclasses.replace(EVERYTHING, distillation=0.0), store, _Uniform([1, 0, 0]))
    assert (trainer.size, trainer.steps_per_epoch) == (8, 12)
    draw, probabilities = trainer.feed.taught(np.array([4, 8]), 3)
    assert probabilities.shape == (4, 3)
    np.testing.assert_array_equal(draw[:, :2], trainer.feed.soft.crops(np.array([4, 8]), 6))
    np.testing.assert_array_equal(draw[:, 2:], trainer.feed.soft.crops(np.array([4, 8]), 7))


def test_weight_decay_pulls_on_kernels_alone(images):
    trainer, weights, (plain,), _ = steps_taken(images, 1, weight_decay=0.0)
    _, _, (decayed,), _ = steps_taken(images, 1, weight_decay=0.5)
    kernels = 0
    learned = [i for i, v in enumerate(trainer.state) if v.trainable]
    for slot, i in enumerate(learned):
        old = weights[0][i]
        pull = 0.5 * old if old.ndim > 1 else np.zeros_like(old)
        np.testing.assert_allclose(decayed[slot] - plain[slot], pull, rtol=1e-3, atol=1e-5)
        assert decays(trainer.state[i]) == (old.ndim > 1)
        kernels += decays(trainer.state[i])
    assert kernels == 1 + 4 + 1 + 1
    assert any(weights[0][i].ndim == 1 and weights[0][i].any() for i in learned)  # gammas, which could have been pulled


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_a_network_that_says_nothing_is_never_right(images, value):
    store = open_store(images, 32)
    trainer = module.trainer_of(SMALL, store, held_out=store)
    trainer.step = 1
    for average in trainer.average:
        average.assign(np.full(average.shape, value, np.float32))
    assert trainer.figures()["val_top1"] == 0.0


def test_a_run_that_diverges_ends_with_the_reason(images, tmp_path):
    settings = PretrainSettings(model=TWO_BLOCKS, size=32, epochs=3, batch_size=16, learning_rate=1e30, warmup=0.0)
    with pytest.raises(ResfitError, match="loss must stay finite"):
        pretrain(images, tmp_path, settings=settings, tensorboard=False)
    assert not (tmp_path / "model.safetensors").exists()


def test_a_row_that_no_checkpoint_knows_is_not_written_twice(images, tmp_path):
    settings = PretrainSettings(**{**vars(SMALL), "epochs": 1})
    pretrain(images, tmp_path, validation=images, settings=settings, tensorboard=False)
    (tmp_path / "checkpoint.npz").unlink()  # killed between the first row and the first checkpoint
    pretrain(images, tmp_path, settings=settings, tensorboard=False)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "log.csv").read_text())))
    assert [row["epoch"] for row in rows] == ["1"]


def test_validation_may_be_left_out_of_a_resumed_run(images, stopped, tmp_path):
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    pretrain(images, tmp_path, settings=SMALL, tensorboard=False)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "log.csv").read_text())))
    assert [bool(row["val_top1"]) for row in rows] == [True, False, False]


def test_other_images_in_the_same_folder_are_refused(undisturbed, tmp_path):
    other = write_images(tmp_path / "other", count=20)
    with pytest.raises(ResfitError, match="images: 96 there, 60 now"):
        pretrain(other, undisturbed.output, settings=SMALL, tensorboard=False)


def test_a_run_by_the_clock_ends_when_the_time_is_up(images, tmp_path):
    settings = PretrainSettings(model=TWO_BLOCKS, size=32, minutes=1e-3, batch_size=16, epochs=1000)
    result = pretrain(images, tmp_path, settings=settings, tensorboard=False)
    assert result.seconds >= 0.06
    assert result.steps < 1000  # the first step, which compiles, takes longer than that
    assert (tmp_path / "model.safetensors").exists()


def test_crops_are_the_stated_rectangles():
    ramp = np.tile(np.arange(64, dtype=np.uint8)[None, None, :, None] * 4, (200, 64, 1, 3))
    crops = augment(ramp, 32, 0.35, [0, 1]).numpy()
    again = augment(ramp, 32, 0.35, [0, 1]).numpy()
    other = augment(ramp, 32, 0.35, [0, 2]).numpy()
    np.testing.assert_array_equal(crops, again)
    assert np.abs(crops - other).max() > 0.1
    from resfit.preprocessing import TORCH

    values = (crops - np.array(TORCH.offset)) / np.array(TORCH.multiplier)
    slopes = np.diff(values[:, 16, :, 0], axis=1)
    flipped = (slopes < 0).all(axis=1)
    assert ((slopes > 0).all(axis=1) | flipped).all()
    assert 0.35 < flipped.mean() < 0.65
    widths = np.abs(values[:, 16, -1, 0] - values[:, 16, 0, 0]) / 252
    assert np.sqrt(0.35 * 0.75) - 0.01 <= widths.min()
    assert widths.max() <= 1.0 + 1e-5
    whole = augment(ramp[:1], 64, 1.0, [0, 0]).numpy()
    assert whole.shape == (1, 64, 64, 3)


def test_validation_must_know_the_classes(images, tmp_path):
    write_images(tmp_path / "held-out", count=1)
    (tmp_path / "held-out" / "red").rename(tmp_path / "held-out" / "violet")
    with pytest.raises(DataError, match="violet"):
        pretrain(images, tmp_path / "run", validation=tmp_path / "held-out", settings=SMALL)


@pytest.mark.parametrize(
    "wrong",
    [
        {"schedule": "step"},
        {"precision": "int8"},
        {"epochs": 0},
        {"crop_scale": 0.0},
        {"ema_decay": 1.0},
        {"warmup": 1.0},
        {"minutes": 0},
        {"weight_decay": -1e-4},
        {"momentum": 1.0},
        {"sizes": ((0.0, 0),)},
        {"mixup": -1.0},
        {"erasing": 1.5},
        {"rand_augment": (0, 5.0)},
        {"batch_size": 15, "repeats": 2},
        {"distillation": 1.5},
        {"temperature": 0.0},
        {"teacher_views": 0},
    ],
)
def test_settings_out_of_range(wrong):
    with pytest.raises(ArgumentError, match="Received"):
        PretrainSettings(**wrong)


def test_a_teacher_and_its_share_go_together(images, tmp_path):
    with pytest.raises(ArgumentError, match="distillation needs a teacher"):
        pretrain(images, tmp_path, settings=PretrainSettings(distillation=0.5))
    with pytest.raises(ArgumentError, match="distillation needs a teacher"):
        pretrain(images, tmp_path, settings=PretrainSettings(), teacher="resnet10_tiny")
    with pytest.raises(DataError, match=r"3 classes of the images.*200"):
        pretrain(images, tmp_path, settings=PretrainSettings(size=32, distillation=0.5), teacher="resnet10_tiny")


def test_parameters_of_rand_augment_as_text():
    assert module.parse_rand_augment("2, 9") == (2, 9.0)
    assert module.parse_rand_augment("") is None
    with pytest.raises(ArgumentError, match="2,9"):
        module.parse_rand_augment("2")


def test_the_command_has_every_setting_with_its_default():
    from resfit.cli.pretrain import pretrain_command

    options = {name: p.default for name, p in inspect.signature(pretrain_command).parameters.items()}
    settings = dataclasses.asdict(PretrainSettings())
    texts = {"sizes": "", "rand_augment": "", "distillation": None}  # 0.5 with a teacher, else 0
    assert {name: options.get(name, "none") for name in settings} == {
        **settings,
        **texts,
        **dict.fromkeys(("warmup", "momentum"), "none"),
    }


def test_archives_and_folders_give_the_same_store(images, tmp_path):
    archive = tmp_path / "images.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(images, "train")
        for name, data in (("train/red/empty.png", b""), ("train/red/text.jpg", b"no image")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        evil = tarfile.TarInfo("../../outside.png")
        evil.type, evil.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(evil)
    from_tar = open_store(archive, 16, folder=tmp_path / "stores")
    from_folder = open_store(images, 16, folder=tmp_path / "stores")
    assert from_tar.classes == from_folder.classes == tuple(sorted(COLOURS))
    assert [name for name, _ in from_tar.skipped] == ["train/red/empty.png", "train/red/text.jpg"]
    a, b = (
        sorted((int(label), image.tobytes()) for label, image in zip(s.labels, s.images, strict=True))
        for s in (from_tar, from_folder)
    )
    assert a == b


def test_a_store_is_made_once_and_follows_its_source(images, tmp_path):
    folder = tmp_path / "stores"
    first = open_store(images, 16, folder=folder)
    (made,) = folder.iterdir()
    stamp = os.stat(made / "images.npy").st_mtime_ns
    open_store(images, 16, folder=folder)
    assert os.stat(made / "images.npy").st_mtime_ns == stamp
    pixels = np.array(first.images)
    extra = images / "red" / "extra.png"
    Image.new("RGB", (8, 8), (1, 2, 3)).save(extra)
    try:
        assert len(open_store(images, 16, folder=folder)) == len(first) + 1
    finally:
        extra.unlink()
    # a store without its last file was interrupted: it is made again
    (made / "store.json").unlink()
    (made / "images.npy").write_bytes(b"half")
    assert np.array_equal(open_store(images, 16, folder=folder).images, pixels)


def test_sources_that_are_none(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        open_store(tmp_path / "missing", 16)
    (tmp_path / "broken.tar").write_bytes(b"x" * 600)
    with pytest.raises(DataError, match="tar archive"):
        open_store(tmp_path / "broken.tar", 16)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="readable images"):
        open_store(tmp_path / "empty", 16)
