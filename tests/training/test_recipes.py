"""The rule from data to settings, as a table."""

from __future__ import annotations

import dataclasses

import pytest

from resfit.errors import ArgumentError
from resfit.networks import catalog
from resfit.training import recipes
from resfit.training.recipes import Facts, Hardware, recipe

MACHINE = Hardware(cores=2, gflops=190.0, memory=16 << 30)
RESNET50 = catalog.get("resnet50").spec


def facts(images, classes=10, spec=RESNET50, size=(224, 224), **options):
    return recipes.facts_of(spec, images, classes, size, **options)


@pytest.mark.parametrize(
    ("images", "minutes", "strategy", "start"),
    [
        (400, None, "probe", None),  # no budget
        (60, 10, "probe", None),  # six images a class
        (400, 0.5, "probe", None),  # no time
        (400, 10, "finetune", "stage4"),
        (400, 1.7, "finetune", "stage5"),  # less time, fewer stages
        (50_000, 10, "probe", None),
        (50_000, 6000, "full", 0.0),
        (5_000, 15, "finetune", "stage5"),
    ],
)
def test_auto_takes_what_data_and_time_allow(images, minutes, strategy, start):
    found = recipe(facts(images), MACHINE, strategy="auto", minutes=minutes)
    assert found.strategy == strategy
    assert (found.tuning.trainable_from if found.tuning else None) == start
    assert found.reasons
    if minutes is not None and found.tuning:
        assert found.total <= 60 * minutes * 1.01


def test_it_is_a_function_of_its_arguments():
    asked = {"strategy": "finetune", "minutes": 30, "seed": 3}
    assert recipe(facts(900), MACHINE, **asked) == recipe(facts(900), MACHINE, **asked)
    assert recipe(facts(900), MACHINE, **asked).tuning.seed == 3


def test_what_is_asked_for_is_done():
    assert recipe(facts(30), MACHINE, strategy="finetune", minutes=0.1).tuning is not None
    whole = recipe(facts(400), MACHINE, strategy="full")
    assert (whole.strategy, whole.tuning.trainable_from) == ("full", 0.0)
    assert recipe(facts(30_000), MACHINE, strategy="probe", minutes=500).tuning is None


def test_more_time_means_more_epochs_up_to_what_the_data_bears():
    epochs = [recipe(facts(400), MACHINE, strategy="finetune", minutes=m).tuning.epochs for m in (5, 8, 60, 600)]
    assert epochs == sorted(epochs)
    assert epochs[0] < epochs[-1]
    assert epochs[-1] == recipe(facts(400), MACHINE, strategy="finetune").tuning.epochs


def test_a_faster_machine_is_faster():
    fast = dataclasses.replace(MACHINE, gflops=1900.0)
    slow, quick = (recipe(facts(400), machine, strategy="full").seconds for machine in (MACHINE, fast))
    assert slow["training"] > 5 * quick["training"]
    # 400 images of 3.9 GMACs at three quarters of 190 GFLOP/s: 22 s, and the start
    assert 20 < slow["features"] < 32


def test_frozen_statistics_under_32_images_a_batch():
    short = recipe(facts(5000), MACHINE, strategy="full", minutes=200).tuning
    long = recipe(facts(5000), MACHINE, strategy="full").tuning
    assert short.epochs < 12 <= long.epochs
    assert short.fixed_statistics
    assert short.fixed_statistics
    assert long.fixed_statistics
    few = recipe(facts(20_000), MACHINE, strategy="full", minutes=120).tuning
    assert few.epochs < 5 <= short.epochs
    assert short.crop_scale == long.crop_scale < few.crop_scale == 1.0
    assert recipes.Tuning(batch_size=31).fixed_statistics
    assert recipes.Tuning(batch_size=64, batch_norm="frozen").fixed_statistics


def test_imbalance_and_bfloat16_are_told():
    found = recipe(facts(4000, imbalance=40.0), dataclasses.replace(MACHINE, bfloat16=True), strategy="finetune")
    assert any("40 times" in reason for reason in found.reasons)
    assert found.tuning.precision == "mixed_bfloat16"


def test_what_is_done_already_takes_no_time():
    """Two minutes after the probe are those two minutes; before it, it takes its part of them."""
    known = facts(900)
    after, before = (recipe(known, MACHINE, minutes=20, probed=probed) for probed in (True, False))
    spent = (before.seconds["features"] + before.seconds["head"]) / 60
    assert recipe(known, MACHINE, minutes=20 + spent).tuning == after.tuning
    assert before.tuning.epochs < after.tuning.epochs


def test_bfloat16_has_room_for_more():
    narrow = dataclasses.replace(MACHINE, bfloat16=True)
    one, two = (recipe(facts(900), machine, strategy="full", minutes=60) for machine in (MACHINE, narrow))
    assert 1.4 < two.tuning.epochs / one.tuning.epochs < 1.6


def test_what_there_is_time_to_look_at():
    """A second for each image; four fifths of the time are for looking, and some images are always looked at."""
    assert recipes.share_in_time(3000, 600, 1.0, 75.1) == 1.0
    assert recipes.share_in_time(3000, 600, 1.0, 74.9) == 0.5
    assert recipes.share_in_time(3000, 600, 1.0, 0.1) == 0.5  # never under 1,000
    assert recipes.share_in_time(8000, 600, 1.0, 40.0) == 0.125
    one, two = (recipes.seconds_an_image(facts(900), 1e6, cores) for cores in (1, 2))
    assert one == 2 * two > 2 * sum(macs for _, macs in facts(900).stages) / 1e11


CARD = dataclasses.replace(
    MACHINE, cores=16, gpu=True, device="gpu:0", forward=1 / 3000, training=1 / 900, training_precision="mixed_bfloat16"
)


def test_a_cards_measured_speed_decides_what_there_is_time_for():
    """50,000 images in ten minutes: too many by a product on the processor, few enough by real batches."""
    assert recipe(facts(50_000), MACHINE, minutes=10).strategy == "probe"
    found = recipe(facts(50_000), CARD, minutes=10)
    assert (found.strategy, found.tuning.precision) == ("full", "mixed_bfloat16")
    assert found.total <= 601
    assert any("measured on gpu:0: 900 images a second in training, 3000 through" in text for text in found.reasons)
    # an epoch of the whole network takes what was measured, whatever the processor's product
    slow = dataclasses.replace(CARD, gflops=1.0)
    assert recipes._epoch_seconds(facts(9000), slow, "stage1", 0) == pytest.approx(10.0)
    later = recipes._epoch_seconds(facts(9000), slow, "stage5", 6)
    share = facts(1).stages[-1][1] / sum(macs for _, macs in facts(1).stages)
    assert later == pytest.approx(10.0 * share)
    through = recipes._epoch_seconds(facts(9000), slow, "stage5", 0)  # the frozen part runs in each epoch
    assert through == pytest.approx(later + 3.0 * (1 - share))


def test_what_a_card_leaves_time_to_look_at():
    """It computes while the processors decode: the slower of the two counts. 160,000 photos stay in ten minutes."""
    known = facts(160_000)
    decoding = recipes.seconds_an_image(known, 110e3, 16, dataclasses.replace(CARD, forward=1e-9))
    assert decoding == pytest.approx((1 / 2e3 + 110e3 / 2.5e7) / 16)
    assert recipes.seconds_an_image(known, 110e3, 16, CARD) == max(decoding, 1 / 3000)
    assert recipes.seconds_an_image(known, 110e3, 1, CARD) == pytest.approx(16 * decoding)
    slow = dataclasses.replace(CARD, forward=0.5)
    assert recipes.seconds_an_image(known, 110e3, 16, slow) == 0.5
    assert recipes.share_in_time(160_000, 0, recipes.seconds_an_image(known, 110e3, 16, CARD), 10) == 1.0
    assert recipes.share_in_time(160_000, 0, recipes.seconds_an_image(known, 110e3, 2), 10) < 0.5
    assert recipes.seconds_an_image(known, 110e3, 2, MACHINE) == recipes.seconds_an_image(known, 110e3, 2)


def test_json():
    import json

    found = json.loads(json.dumps(recipe(facts(900), MACHINE, strategy="finetune").to_dict()))
    assert found["tuning"]["optimizer"] == "adamw"


def test_this_machine_can_be_measured():
    machine = recipes.measure_hardware()
    assert machine.cores >= 1
    assert 0.5 < machine.gflops < 1e6
    assert machine.memory > 1 << 28


@pytest.mark.parametrize(("text", "minutes"), [("10m", 10), ("90s", 1.5), ("1.5h", 90), (3, 3), ("2", 2), (None, None)])
def test_lengths_of_time(text, minutes):
    assert recipes.parse_minutes(text) == minutes


@pytest.mark.parametrize("text", ["", "ten", "0m", "-3", "nan", "inf", "5d"])
def test_what_is_no_length_of_time(text):
    with pytest.raises(ArgumentError, match="budget must be"):
        recipes.parse_minutes(text)


def test_what_is_refused():
    with pytest.raises(ArgumentError, match="Did you mean 'finetune'"):
        recipe(facts(10), MACHINE, strategy="fine-tune")
    with pytest.raises(ArgumentError, match="minutes"):
        recipe(facts(10), MACHINE, minutes=0)
    with pytest.raises(ArgumentError, match="at least 1"):
        Facts(0, 2, (32, 32))
