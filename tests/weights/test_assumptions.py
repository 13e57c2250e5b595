"""What a source leaves open is said with the argument that changes it, and that argument changes the numbers."""

from __future__ import annotations

import dataclasses
import inspect
import re
import warnings

import numpy as np
import pytest

from resfit import zoo
from resfit.errors import ArgumentError, AssumptionWarning
from resfit.networks.build import build
from resfit.networks.spec import ArchitectureSpec, StemConv
from resfit.preprocessing import TF, TORCH, changed
from resfit.weights import load
from resfit.weights.conventions import pytorch, torchvision_detection
from resfit.weights.formats import safetensors
from tests.numeric import randomize
from tests.weights import tf_sources
from tests.weights.test_identify import BASIC, BOTTLENECK, CIFAR, PREACTIVATED

NAMED = re.compile(
    r"\(.*; (?:(?P<names>[\w= ]+?) changes it|(?P<more>.*)arguments of these names change it)\)$", re.DOTALL
)
#: Another value of each field that can be assumed.
OTHERS = {
    "activation": lambda spec: "tanh",
    "norm_epsilon": lambda spec: 0.5,
    "norm_groups": lambda spec: spec.norm_groups // 2,
    "antialias": lambda spec: "avg" if spec.antialias is None else None,
    "stride_in_block": lambda spec: "first" if spec.stride_in_block == "spatial" else "spatial",
    "stride_in_stage": lambda spec: "first" if spec.stride_in_stage == "last" else "last",
    "stage_strides": lambda spec: (3 - spec.stage_strides[0], *spec.stage_strides[1:]),
    "stem": lambda spec: tuple((conv.width, conv.kernel, 3 - conv.stride) for conv in spec.stem),
    "stem_pool": lambda spec: "none" if spec.stem_pool == "max" else "max",
    "stem_pool_padding": lambda spec: "valid",
    "padding": lambda spec: "symmetric" if spec.padding == "same" else "same",
    "stem_padding": lambda spec: "same",
    "shortcut": lambda spec: "avgpool" if spec.shortcut == "projection" else "projection",
    "shortcut_pool": lambda spec: "strided",
    "weight_standardization": lambda spec: not spec.weight_standardization,
    "weight_standardization_epsilon": lambda spec: 0.5,
    "output_stride": lambda spec: 32,
    "input_spec": lambda spec: "caffe" if spec.in_channels == 3 else {"scale": 0.5},
    "classifier_activation": lambda spec: None,
    "include_top": lambda spec: False,
}  # fmt: skip


def written(folder, convention, spec, prefix=""):
    arrays = pytorch.to_torch(randomize(build(spec), seed=1), convention)
    safetensors.write_arrays(folder / "net.safetensors", {prefix + name: array for name, array in arrays.items()})
    return folder / "net.safetensors"


def torch_file(convention, spec):
    return lambda folder: written(folder, convention, spec)


def segmenter(folder):
    arrays = pytorch.to_torch(randomize(build(BASIC.replace(in_channels=3)), seed=1), "timm")
    arrays = {f"backbone.{name}": array for name, array in arrays.items() if not name.startswith("fc.")}
    arrays |= {"classifier.4.weight": np.ones((2, 3, 1, 1), np.float32)}
    safetensors.write_arrays(folder / "net.safetensors", arrays)
    return folder / "net.safetensors"


def checkpoint(make, **options):
    return lambda folder: tf_sources.write_checkpoint(folder / "net.ckpt", make(**options))


def archive(make, **options):
    def write(folder):
        np.savez(folder / "net.npz", **make(**options))
        return folder / "net.npz"

    return write


SMALL = {"depths": (2, 2), "inner": (8, 12)}
#: Arguments that were tried for a reason already.
_TRIED: set[tuple[str, str]] = set()
SOURCES = {
    "timm": torch_file("timm", BOTTLENECK),
    "cifar": torch_file("cifar", CIFAR),
    "bit": torch_file(
        "timm-v2",
        PREACTIVATED.replace(norm="group", widths=(32, 64, 64), inner_widths=(32, 32, 64), stem=(StemConv(32, 7, 2),)),
    ),
    "transformers": torch_file("transformers", BOTTLENECK),
    "monai": torch_file("timm", BASIC.replace(conv_bias="shortcut", project_first=True, in_channels=3)),
    "segmenter": segmenter,
    "slim v1": checkpoint(tf_sources.slim_arrays, version=1, **SMALL),
    "slim v2": checkpoint(tf_sources.slim_arrays, version=2, **SMALL),
    "bit npz": archive(tf_sources.bit_arrays, depths=(2, 2), filters=(32, 64)),
}


def arguments(sentence):
    """The arguments that a sentence names."""
    match = NAMED.search(sentence)
    if match is None:
        return []
    if match["names"]:
        return [name.strip(" =") for name in match["names"].split(" or ")]
    listed = re.findall(r"(?:^|, )(\w+)=", sentence)
    return [*listed, *re.findall(r"(\w+)= or $", match["more"])]


def is_argument(name):
    taken = {*inspect.signature(zoo.load).parameters, *inspect.signature(load.read_any).parameters}
    return name in taken or name in {field.name for field in dataclasses.fields(ArchitectureSpec)}


def answers(path, **options):
    options = {"include_top": None, **options}
    model = load.load_source(path, **options)
    channels = model.input_shape[-1]
    images = np.random.default_rng(0).uniform(0, 255, (1, 45, 51, channels)).astype(np.float32)
    return np.asarray(model(images, training=False)), model


@pytest.mark.parametrize("name", SOURCES)
def test_the_argument_that_an_assumption_names_changes_the_numbers(name, tmp_path):
    path = SOURCES[name](tmp_path)
    body = {"include_top": False} if name == "segmenter" else {}
    before, model = answers(path, **body)
    stated = [text for text in model.assumptions if not text.startswith("left out")]
    assert stated
    for text in stated:
        named = arguments(text)
        if "changes it" not in text and "change it" not in text:
            assert text.startswith(("class 0", "the classifier is all zeros")), text
            continue
        assert named, text
        for argument in named:
            assert is_argument(argument), text
            reason = (re.sub(r"timm|cifar|transformers|[\d.x]+", "", text.partition(" (")[2]), argument)
            if argument in ("architecture", "prefix", "ignore") or reason in _TRIED:
                continue  # the former have tests of their own
            _TRIED.add(reason)
            value = OTHERS[argument](model.architecture)
            more = {"shortcut_pool": "always"} if argument == "shortcut" else {}  # before those without a stride too
            after, changed_model = answers(path, **{**body, **more, argument: value})
            assert after.shape != before.shape or np.abs(after - before).max() > 1e-6 * np.abs(before).max(), argument
            again = [one for one in changed_model.assumptions if argument in arguments(one)]
            assert not again, (argument, again)


def test_the_architecture_that_an_assumption_names_changes_the_numbers(tmp_path):
    path = written(tmp_path, "timm", BASIC.replace(in_channels=3))
    before, _ = answers(path)
    after, model = answers(path, architecture="resnet18", antialias="avg")
    assert np.abs(after - before).max() > 1e-6
    (text,) = (text for text in model.assumptions if "as the architecture 'resnet18' has it" in text)
    assert arguments(text)[-1] == "architecture"
    assert "activation" in arguments(text)
    assert "antialias" not in arguments(text)


def test_the_prefix_that_an_assumption_names_chooses_another_network(tmp_path):
    two = {}
    for prefix, seed in (("a.", 1), ("b.", 2)):
        arrays = pytorch.to_torch(randomize(build(BASIC), seed=seed), "timm")
        two |= {prefix + key: array for key, array in arrays.items()}
    safetensors.write_arrays(tmp_path / "two.safetensors", two)
    one, other = (answers(tmp_path / "two.safetensors", prefix=prefix) for prefix in ("a", "b"))
    assert "the network is what stands under 'b.' (by its names; prefix= changes it)" in other[1].assumptions
    assert np.abs(one[0] - other[0]).max() > 1e-6


def test_input_contracts_are_changed_by_name_by_field_and_whole(tmp_path):
    path = written(tmp_path, "timm", BASIC.replace(in_channels=3))
    assert load.read_source(path).input_spec == TORCH
    assert load.read_source(path, input_spec="tf").input_spec == TF
    found = load.read_source(path, input_spec={"channel_order": "bgr", "mean": [0.1, 0.2, 0.3]})
    assert found.input_spec == changed(TORCH, {"channel_order": "bgr", "mean": (0.1, 0.2, 0.3)})
    assert (found.input_spec.channel_order, found.input_spec.std) == ("bgr", TORCH.std)
    assert not [text for text in found.assumptions if text.startswith("images ")]


@pytest.mark.parametrize("value", ["tensorflow", {"colour": 1}, {"scale": -1.0}])
def test_input_contracts_that_are_none_are_refused(value, tmp_path):
    with pytest.raises(ArgumentError, match=r"input|scale"):
        load.read_source(written(tmp_path, "timm", BASIC.replace(in_channels=3)), input_spec=value)


def test_detectors_name_the_fields_of_detector_and_backbone():
    from tests.weights.test_torchvision_detection import source

    translation = torchvision_detection.translate(source("v1")[1])
    _, told = torchvision_detection.identify(translation)
    assert all("changes it" in text or "arguments of these names change it" in text for text in told), told
    changed_spec, again = torchvision_detection.identify(
        translation, backbone={"norm_epsilon": 0.5, "activation": "tanh"}, score_threshold=0.5
    )
    assert (changed_spec.backbone.norm_epsilon, changed_spec.backbone.activation) == (0.5, "tanh")
    assert changed_spec.score_threshold == 0.5
    assert not [text for text in again if re.search(r"norm_epsilon|activation|score_threshold", text)]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({}, ["images of", "classifier_activation='softmax'"]),
        ({"include_top": False, "taps": ("stage4",)}, ["images of"]),
        ({"preprocess": False, "classifier_activation": None}, []),
        ({"input_spec": "torch", "classifier_activation": None}, []),
    ],
    ids=["all", "body", "no contract", "answered"],
)
def test_what_is_assumed_and_changes_the_numbers_is_a_warning(options, told, tmp_path):
    path = written(tmp_path, "timm", BASIC.replace(in_channels=3))
    others = {"activation": "relu", "antialias": None, "norm_epsilon": 1e-5, "output_stride": 32, "stem_pool": "max"}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        zoo.load(path, **others, **options)
    texts = [str(one.message) for one in caught if issubclass(one.category, AssumptionWarning)]
    assert [one.filename for one in caught if issubclass(one.category, AssumptionWarning)] == [__file__] * len(texts)
    assert len(texts) == bool(told), texts
    for what in told:
        assert f"{path}: assumed " in texts[0]
        assert what in texts[0]
    for what in {"images of", "classifier_activation='softmax'"} - set(told):
        assert what not in "".join(texts)
