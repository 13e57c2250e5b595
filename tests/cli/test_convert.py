"""``resfit convert``: what it writes, what it says it assumed, how it fails."""

from __future__ import annotations

import json
import os

import keras
import numpy as np
import pytest
from safetensors.numpy import load_file

import resfit
from resfit.cli import main
from resfit.networks.build import build
from resfit.networks.spec import ArchitectureSpec, StemConv
from resfit.weights.conventions import pytorch
from resfit.weights.formats import safetensors
from tests.numeric import relative_error
from tests.test_zoo import randomize
from tests.weights import tf_sources

SPEC = ArchitectureSpec(
    depths=(1, 2),
    widths=(32, 64),
    inner_widths=(16, 16),
    stem=(StemConv(16, 7, 2),),
    stage_strides=(1, 2),
    classes=5,
    input_size=(64, 64),
)


@pytest.fixture(scope="module")
def model():
    return randomize(build(SPEC, input_shape=(None, None, 3), classifier_activation=None))


@pytest.fixture
def source(model, tmp_path):
    """A file as torchvision would write it, of a bottleneck network of odd size."""
    safetensors.write_arrays(tmp_path / "source.safetensors", pytorch.to_torch(model))
    return tmp_path / "source.safetensors"


@pytest.fixture
def run(capsys):
    def call(*arguments):
        with pytest.raises(SystemExit) as stopped:
            main.run(["convert", *map(str, arguments)])
        output = capsys.readouterr()
        return stopped.value.code or 0, output.out, output.err

    return call


@pytest.mark.parametrize("target", ["a.keras", "a.safetensors", "own.safetensors", "b.weights.h5"])
def test_the_written_network_is_the_one_that_was_read(run, model, source, tmp_path, target):
    naming = ("--naming", "resfit") if target.startswith("own") else ()
    code, out, err = run(source, tmp_path / target, *naming)
    assert code == 0, err
    assert "bottleneck blocks [1, 2], widths [32, 64], 5 classes" in out
    for assumed in ("activation='relu'", "stride_in_block='spatial'", "the source states no input contract"):
        assert f"Assumed: {assumed}" in err or assumed in err
    if target.endswith(".h5"):
        assert "Read back" not in out  # weights alone do not say which network
        again = build(SPEC, input_shape=(None, None, 3), classifier_activation=None)
        again.load_weights(tmp_path / target)
    else:
        assert "Read back, the outputs differ by 0.0e+00" in out
        again = resfit.load(tmp_path / target)
        assert again.architecture == SPEC.replace(input_size=(224, 224))
    x = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3)).astype("float32")
    contract = resfit.load(source).input_spec
    expected = model(contract.normalize(x), training=False)
    received = again(x if again.get_layer(index=1).name == "normalization" else contract.normalize(x), training=False)
    if target.endswith(".h5"):
        assert relative_error(received, expected) < 1e-6
    else:  # a loaded classifier gives probabilities
        powers = np.exp(expected - np.max(expected, -1, keepdims=True))
        assert relative_error(received, powers / powers.sum(-1, keepdims=True)) < 1e-5


def test_what_is_set_overrules_what_is_assumed(run, source, tmp_path):
    code, _out, err = run(source, tmp_path / "a.keras", "--set", "stride_in_block=first", "--set", "norm_epsilon=0.001")
    assert code == 0, err
    assert "stride_in_block" not in err
    spec = resfit.load(tmp_path / "a.keras").architecture
    assert (spec.stride_in_block, spec.norm_epsilon) == ("first", 0.001)


def test_a_keras_file_of_another_program_is_read_once(run, tmp_path, monkeypatch):
    """And not by Keras, which would build its network first."""
    theirs = randomize(tf_sources.keras_network(1, (1, 2)))
    theirs.save(tmp_path / "theirs.keras")
    monkeypatch.setattr(keras.models, "load_model", lambda *_, **__: pytest.fail("Keras was asked to load it"))
    code, out, err = run(tmp_path / "theirs.keras", tmp_path / "own.safetensors", "--naming", "resfit", "--no-check")
    assert code == 0, err
    assert "bottleneck blocks [1, 2]" in out
    written = safetensors.read_arrays(tmp_path / "own.safetensors")
    kernel = theirs.get_layer("conv2_block1_2_conv").kernel.numpy()
    np.testing.assert_array_equal(written["conv2_block1_2_conv/kernel"], kernel)


def test_json(run, source, tmp_path):
    code, out, _ = run(source, tmp_path / "a.keras", "--json")
    told = json.loads(out)
    assert code == 0
    assert told["architecture"]["depths"] == [1, 2]
    assert told["largest_relative_difference"] == 0
    assert len(told["assumptions"]) >= 4


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("none.pth", "a.keras"), 1, "must exist"),
        (("source.safetensors", "a.onnxx"), 2, "must end in"),
        (("source.safetensors", "a.safetensors", "--naming", "timn"), 2, "Did you mean 'timm'"),
        (("source.safetensors", "a.safetensors", "--naming", "timm-v2"), 2, "pre-activation"),
        (("source.safetensors", "a.keras", "--set", "stride_in_blok=first"), 2, "Did you mean 'stride_in_block'"),
        (("source.safetensors", "a.keras", "--set", "depths"), 2, "ARGUMENT=VALUE"),
        (("source.safetensors", "a.keras", "--architecture", "resnet19"), 2, "Did you mean"),
    ],
)
def test_failures_leave_nothing_behind(run, source, tmp_path, monkeypatch, arguments, code, text):
    monkeypatch.chdir(tmp_path)
    received, _out, err = run(*arguments)
    assert received == code, err
    assert text in err
    assert os.listdir(tmp_path) == ["source.safetensors"]


def test_the_body_of_a_larger_network_by_its_prefix(run, model, tmp_path):
    arrays = pytorch.to_torch(model)
    beside = {"decoder.up.weight": arrays["conv1.weight"]}
    both = {
        f"{place}.{name}": (array * scale).astype("float32")
        for place, scale in (("a", 1), ("b", 2))
        for name, array in arrays.items()
    }
    safetensors.write_arrays(tmp_path / "two.safetensors", both | beside)
    code, _, err = run(tmp_path / "two.safetensors", tmp_path / "a.safetensors", "--body")
    assert (code, "('a.', 'b.')" in err) == (1, True)
    code, _, err = run(tmp_path / "two.safetensors", tmp_path / "a.safetensors", "--prefix", "b")
    assert (code, "include_top=False" in err) == (1, True)
    code, _, err = run(
        tmp_path / "two.safetensors", tmp_path / "a.safetensors", "--prefix", "b", "--body", "--naming", "timm"
    )
    assert code == 0, err
    assert "left out what stands beside the network: decoder" in " ".join(err.split())
    written = load_file(tmp_path / "a.safetensors")
    np.testing.assert_array_equal(written["layer1.0.conv1.weight"], both["b.layer1.0.conv1.weight"])
    assert not any(name.startswith("fc.") for name in written)
