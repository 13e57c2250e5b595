"""Published networks as classifiers: names of classes, not numbers; and what is none."""

from __future__ import annotations

import json

import numpy as np
import pytest

import resfit
from resfit.errors import ArtifactError, CheckpointError
from resfit.networks.build import build
from resfit.networks.spec import ArchitectureSpec, StemConv
from resfit.tasks.classification import pretrained
from resfit.weights.conventions import pytorch
from resfit.weights.formats import safetensors
from resfit.weights.formats import torch as torch_reader
from tests.numeric import randomize
from tests.pictures import write_picture

SPEC = ArchitectureSpec(
    depths=(1, 1), widths=(8, 16), inner_widths=(8, 16), block="basic", stem=(StemConv(8, 7, 2),),
    stage_strides=(1, 2), classes=4, input_size=(32, 32),
)  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """As transformers and timm publish networks: tensors, and labels beside them, two of them alike."""
    hub = tmp_path / "hub"
    hub.mkdir()
    arrays = pytorch.to_torch(randomize(build(SPEC)))
    safetensors.write_arrays(hub / "model.safetensors", arrays)
    labels = ["crane", "heron", "crane", "stork"]
    (hub / "config.json").write_text(json.dumps({"label_names": labels, "architecture": "tiny"}))
    return hub


def test_classes_are_called_as_the_publisher_calls_them(folder, tmp_path):
    image = write_picture(tmp_path / "a.png", "red", 0)
    clf = pretrained.load(folder)
    assert clf.classes == ("crane (0)", "heron", "crane (2)", "stork")
    (found,) = clf.predict([image])
    model = resfit.load(folder)
    pixels = np.asarray(clf.predict_proba([image]))
    assert found.label == clf.classes[int(pixels[0].argmax())]
    assert list(found.probabilities) == [clf.classes[n] for n in np.argsort(-pixels[0], kind="stable")]
    assert model.class_names == ("crane", "heron", "crane", "stork")


def test_classes_without_names_have_numbers(folder):
    assert pretrained.load(folder / "model.safetensors").classes == ("class 0", "class 1", "class 2", "class 3")


def test_embedded_network_names_what_it_sees(tmp_path):
    clf = pretrained.load("resnet10_tiny")
    assert len(clf.classes) == 200
    assert clf.classes[0] == "goldfish, Carassius auratus"
    assert clf.input_spec == resfit.load("resnet10_tiny").input_spec


def test_what_is_none(folder, tmp_path):
    arrays = torch_reader.read(folder).arrays
    body = {name: array for name, array in arrays.items() if not name.startswith("fc.")}
    safetensors.write_arrays(tmp_path / "body.safetensors", body)
    with pytest.raises(CheckpointError, match="must hold the classifier"):
        pretrained.load(tmp_path / "body.safetensors")
    for nothing in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(ArtifactError, match="a classifier is a folder"):
            pretrained.load(nothing / "none")
