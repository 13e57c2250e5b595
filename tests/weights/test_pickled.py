"""Pickles are read as data: arrays equal what was written, networks compute the same, and nothing is ever run."""

from __future__ import annotations

import collections
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from resfit.errors import CheckpointError
from resfit.weights import load
from resfit.weights.formats import pickled
from tests import fuzzing
from tests.numeric import relative_error
from tests.weights import pickles
from tests.weights.test_saved_model import TOLERANCE, pixels


@pytest.mark.parametrize(
    ("size", "options", "by_name"),
    [
        ((64, 64), {}, False),
        ((57, 63), {"bottleneck": False}, True),
        ((64, 57), {"version": 2, "classes": 0}, False),
        ((64, 64), {"version": 2, "bottleneck": False, "depths": (2, 1), "channels": (16, 24)}, False),
    ],
)
def test_haikus_network_computes_the_same(size, options, by_name, tmp_path):
    params, state = pickles.haiku_state(**options)
    path = pickles.write(tmp_path / "pretrain.pkl", pickles.byol(params, state, by_name=by_name))
    images = pixels(*size)
    top = "classifier" in params
    read = {"classifier_activation": None} if top else {"include_top": False, "pooling": "avg"}
    model = load.load_source(path, preprocess=False, **read)
    expected = pickles.haiku_forward(images, params, state, version=options.get("version", 1))
    assert relative_error(model(images), expected) < TOLERANCE
    spec = model.architecture
    assert (spec.padding, spec.stem_pool_padding, spec.norm_epsilon) == ("same", "same", 1e-5)
    assert spec.preactivation == (options.get("version") == 2)
    told = model.assumptions
    for reason in ("slots of an optimiser", "the running average of the network", "a projection head"):
        assert any(text.startswith(f"left out {reason}: ") for text in told)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_arrays_are_those_that_were_written(protocol, tmp_path):
    random = np.random.default_rng(0)
    arrays = {
        "plain": random.normal(size=(3, 5, 2)).astype(np.float32),
        "columns": np.asfortranarray(random.normal(size=(30, 20))),
        "big": np.arange(6, dtype=">i2").reshape(2, 3),
        "flags": np.array([True, False]),
        "scalar": np.array(2.5, np.float16),
        "empty": np.zeros((0, 4), np.float32),
    }
    content = {"step": 3, "rate": 0.5, "none": None, "long": 1 << 70, "name": "é" * 300, "nested": [{"a": arrays}]}
    content["ordered"] = collections.OrderedDict(values=arrays["big"], number=np.float32(7), text=np.array(["a"]))
    path = tmp_path / "state.pkl"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    read = pickled.read(path).arrays
    assert sorted(read) == sorted([*(f"nested/0/a/{name}" for name in arrays), "ordered/values"])
    for name, array in arrays.items():
        received = read[f"nested/0/a/{name}"]
        assert received.dtype == array.dtype.newbyteorder("=")
        np.testing.assert_array_equal(received, array)


def test_arrays_of_jax_are_read(tmp_path):
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    make, arguments, state = array.__reduce__()
    for name in ("jax._src.array._reconstruct_array", "jax._src.device_array.reconstruct_device_array"):
        content = {"w": pickles.called(name, make, arguments, state, {"weak_type": False})}
        read = pickled.read(pickles.write(tmp_path / "jax.pkl", content)).arrays
        np.testing.assert_array_equal(read["w"], array)


class Harmful:
    """Would make a file if it were ever unpickled."""

    def __init__(self, place: Path, call=os.mkdir) -> None:
        self.place, self.call = place, call

    def __reduce__(self):
        return self.call, (str(self.place),)


@pytest.mark.parametrize(
    ("call", "name"), [(os.mkdir, "posix.mkdir"), (eval, "builtins.eval"), (os.system, "posix.system")]
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_no_name_is_looked_up_that_does_not_stand_in_the_table(call, name, protocol, tmp_path):
    made = tmp_path / "made"
    weights = {"w": np.zeros(3, np.float32), "x": Harmful(made, call)}
    (tmp_path / "harmful.pkl").write_bytes(pickle.dumps(weights, protocol=protocol))
    with pytest.raises(CheckpointError, match=f"no code is run.*'{name}'"):
        pickled.read(tmp_path / "harmful.pkl")
    (tmp_path / "named.pkl").write_bytes(pickle.dumps({"w": np.zeros(3, np.float32), "x": call}, protocol=protocol))
    with pytest.raises(CheckpointError, match=f"asks for '{name}'"):  # even where it is not called
        pickled.read(tmp_path / "named.pkl")
    assert not made.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x80\x02cnumpy\nndarray\n)R.", "arrays of numbers. Received: none, in a numpy.ndarray"),
        (b"\x80\x02cbyol.x\nY\n)\x81cnumpy\ndtype\n)\x81.", "a dtype without a name|missing 1 required"),
        (b"\x80\x02]q\x00h\x00a.", "nested at most 16 deep"),
        (b"\x80\x02" + b"](" * 3 + b"eee.", "must hold arrays of numbers"),
        (b"\x80\x02N", "exhausted before seeing STOP"),
        (b"\x80\x09N.", "unsupported pickle protocol: 9"),
        (b"", "exhausted before seeing STOP"),
    ],
)
def test_what_is_no_data_is_refused_by_name(content, message, tmp_path):
    path = tmp_path / "state.pkl"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        pickled.read(path)


def test_declared_sizes_must_be_those_of_the_file(tmp_path):
    path = tmp_path / "state.pkl"
    array = np.arange(4000, dtype=np.float32)
    path.write_bytes(pickle.dumps({"w": array}, protocol=4).replace(b"M\xa0\x0f", b"M\xa1\x0f"))  # 4001
    read = pickled.read(path).arrays
    with pytest.raises(CheckpointError, match=r"'w', shape \(4001,\) of float32 in 16000 bytes"):
        read["w"]
    state = array.__reduce__()
    one = [pickles.called("jax._src.array._reconstruct_array", *state)] * 20  # one text, twenty arrays
    with pytest.raises(CheckpointError, match=r"arrays of 3\d{5} bytes in a file of \d{5}"):
        pickled.read(pickles.write(path, {"w": [pickles.called(*one[0]._parts[:1], *state) for _ in one]}, 4))
    path.write_bytes(pickle.dumps({"w": np.array(["text"])}, protocol=4))
    with pytest.raises(CheckpointError, match=r"arrays of numbers\. Received: none, in a dict"):
        pickled.read(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pickles")
    params, state = pickles.haiku_state((1,), (16,), bottleneck=False, classes=0)
    params = {name: {leaf: array[..., :2] for leaf, array in leaves.items()} for name, leaves in params.items()}
    byol = pickles.write(folder / "byol.pkl", pickles.byol(params, state))
    plain = folder / "plain.pkl"
    plain.write_bytes(pickle.dumps({"params": params, "state": state}, protocol=5))
    return [byol, plain]


def test_damaged_pickles_are_refused_or_read(files, tmp_path):
    result = fuzzing.survive("tests.weights.reading:numbers", files, tmp_path, kilobytes=2)
    assert result["read"] + result["refused"] == fuzzing.FEW
    assert result["refused"] > fuzzing.FEW / 4


@pytest.mark.slow
def test_many_damaged_pickles(files, tmp_path):
    print(fuzzing.survive("tests.weights.reading:numbers", files, tmp_path, count=50_000, seed=1))
