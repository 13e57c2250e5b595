"""Devices, with cards that are told of in TensorFlow's place: they compute on the processor."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings

import pytest

from resfit import devices
from resfit.devices import Device
from resfit.errors import ArgumentError, ResfitWarning
from tests.cards import AMPERE, VOLTA, cards


@pytest.fixture
def two(monkeypatch):
    return cards(monkeypatch, AMPERE, VOLTA)


def test_a_card_is_taken_where_there_is_one(two):
    assert devices.find("auto") == devices.find("gpu") == devices.find("gpu:0") == AMPERE
    assert devices.find("gpu:1") == VOLTA
    assert devices.find("cpu").label == "cpu"
    found = devices.find("gpu:all")
    assert (found.label, found.cards, found.place) == ("gpu:all", ("/CPU:0", "/CPU:0"), "/CPU:0")
    assert (found.name, found.capability) == ("Ampere and Volta", (7, 0))  # what both have units for
    assert [card.label for card in found.each] == ["gpu:0", "gpu:1"]
    assert devices.told(found.to_dict()) == "gpu:all (2 cards, Ampere and Volta, 550.54.15, CUDA 12.5.1, cuDNN 9)"
    assert AMPERE.each == (AMPERE,)
    with pytest.raises(ArgumentError, match=r"one of gpu:0, gpu:1\. Received: 'gpu:2'"):
        devices.find("gpu:2")


@pytest.mark.parametrize("name", ["GPU", "cuda", "gpu:", "gpu:x", "gpu:-1", "", "cpu:0", "gpu:1111"])
def test_what_is_no_device_is_refused_without_tensorflow(name):
    with pytest.raises(ArgumentError, match="device must be auto, cpu, gpu"):
        devices.check(name)


def test_within_using_the_device_is_the_one_that_is_named(two):
    assert devices.current() == AMPERE
    with devices.using("gpu:1") as chosen:
        assert devices.current() == chosen == VOLTA
        with devices.using("auto"):  # what is left open stays as it is
            assert devices.current() == VOLTA
        with devices.using("cpu"):
            assert devices.current().kind == "cpu"
    assert devices.current() == AMPERE


def test_variables_are_made_on_the_device(monkeypatch):
    cards(monkeypatch, Device("gpu", 0, "card", place="/CPU:0"))
    import tensorflow as tf

    seen = []
    real = tf.device
    monkeypatch.setattr(tf, "device", lambda place: seen.append(place) or real(place))
    with devices.using("gpu"):
        assert "CPU:0" in tf.Variable(1.0).device
    assert seen == ["/CPU:0"]


def test_an_error_says_why_there_is_no_card(monkeypatch):
    cards(monkeypatch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ArgumentError, match=r"CUDA_VISIBLE_DEVICES hides all of them\. Received: device='gpu'"):
        devices.find("gpu")
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    with pytest.raises(ArgumentError, match=r"Apple's plugin \(tensorflow-metal\) does not work with TensorFlow 2\."):
        devices.find("gpu:0")


def test_a_card_that_tensorflow_cannot_use_is_a_warning(monkeypatch, tmp_path):
    import tensorflow as tf

    sign = tmp_path / "nvidia0"
    sign.touch()
    cards(monkeypatch)
    monkeypatch.setattr(devices, "_SIGNS", (str(sign),))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr(tf.test, "is_built_with_cuda", lambda: False)
    with pytest.warns(ResfitWarning, match=r"nvidia0\), and TensorFlow cannot use it: .* without CUDA.*resfit\[gpu\]"):
        assert devices.find().label == "cpu"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        devices.find()  # once is enough
    cards(monkeypatch)
    monkeypatch.setattr(tf.test, "is_built_with_cuda", lambda: True)
    with pytest.warns(ResfitWarning, match="driver is too old, or libraries of CUDA are missing"):
        devices.first_use()
    for hidden in ({"CUDA_VISIBLE_DEVICES": "-1"}, {}):  # hidden by the user, or the processor asked for
        cards(monkeypatch)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden.get("CUDA_VISIBLE_DEVICES", "0"))
        monkeypatch.setattr(devices, "_default", "auto" if hidden else "cpu")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert devices.first_use() == ()


@pytest.mark.parametrize(
    ("capability", "formats"),
    [
        ((6, 1), ["float32"]),
        ((7, 5), ["float32", "float16"]),
        ((8, 0), ["float32", "tf32", "bfloat16", "float16"]),
        ((9, 0), ["float32", "tf32", "bfloat16", "float16"]),
    ],
)
def test_number_formats_follow_from_the_compute_capability(capability, formats):
    card = Device("gpu", capability=capability)
    assert [name for name in ("float32", "tf32", "bfloat16", "float16", "int8") if card.computes(name)] == formats


def test_batches_follow_from_memory_and_image_size():
    sizes = [Device("gpu", memory=gigabytes << 30).batch_size((224, 224)) for gigabytes in (4, 16, 24, 80)]
    assert sizes == [32, 64, 64, 256]
    assert Device("gpu", memory=80 << 30).batch_size((448, 448)) == 64
    assert [Device().batch_size(size) for size in ((224, 224), (448, 448), (32, 32))] == [32, 8, 128]


def test_what_is_told_of_a_device():
    card = Device("gpu", 1, "NVIDIA H200", "550.54.15, CUDA 12.5.1")
    assert card.to_dict() == {"device": "gpu:1", "name": "NVIDIA H200", "driver": "550.54.15, CUDA 12.5.1"}
    assert devices.told(card.to_dict()) == "gpu:1 (NVIDIA H200, 550.54.15, CUDA 12.5.1)"
    assert devices.told({}) == "cpu"


def test_lack_of_memory_is_known_in_all_words():
    import tensorflow as tf

    assert devices.is_out_of_memory(tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor"))
    assert devices.is_out_of_memory(tf.errors.InternalError(None, None, "RESOURCE_EXHAUSTED: Out of memory"))
    assert not devices.is_out_of_memory(tf.errors.InternalError(None, None, "cuDNN failed"))
    assert not devices.is_out_of_memory(ValueError("RESOURCE_EXHAUSTED"))


PROGRAM = """
import json, os, sys
import resfit
from resfit import devices
import tensorflow as tf
if len(sys.argv) > 1:
    devices.choose(sys.argv[1])
hidden = []
tf.config.list_physical_devices = lambda kind=None: ["one", "two"]
tf.config.set_visible_devices = lambda cards, kind: hidden.append(cards)
grown = []
tf.config.experimental.set_memory_growth = lambda card, on: grown.append((card, on))
tf.config.experimental.get_device_details = lambda card: {"device_name": card, "compute_capability": (8, 6)}
tf.config.experimental.enable_tensor_float_32_execution(True)
cards = devices.first_use()
print(json.dumps({
    "growth": os.environ["TF_FORCE_GPU_ALLOW_GROWTH"], "grown": grown, "hidden": hidden,
    "tf32": tf.config.experimental.tensor_float_32_execution_enabled(),
    "cards": [(card.label, card.name, card.place, card.capability) for card in cards],
    "found": devices.find().label,
}))
"""


@pytest.mark.parametrize("device", ["", pytest.param("gpu:1", marks=pytest.mark.slow), "cpu"])
def test_the_first_use_lets_memory_grow_and_switches_tensorfloat_off(device):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("TF_FORCE_GPU_ALLOW_GROWTH", None)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *filter(None, [device])], capture_output=True, text=True, env=environment
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["growth"], found["tf32"]) == ("true", False)
    one, two = ["gpu:0", "one", "/GPU:0", [8, 6]], ["gpu:1", "two", "/GPU:1", [8, 6]]
    if device == "":
        assert found["grown"] == [["one", True], ["two", True]]
        assert (found["cards"], found["found"], found["hidden"]) == ([one, two], "gpu:0", [])
    elif device == "cpu":
        assert (found["cards"], found["found"], found["hidden"], found["grown"]) == ([], "cpu", [[]], [])
    else:  # the only one that TensorFlow sees is its first
        assert (found["cards"], found["found"]) == ([["gpu:1", "two", "/GPU:0", [8, 6]]], "gpu:1")
        assert (found["hidden"], found["grown"]) == ([["two"]], [["two", True]])
