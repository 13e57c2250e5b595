"""Names of classes: their number, their order, and that nothing is read before it is asked for."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from resfit.errors import UnknownNameError
from resfit.weights import labels

SIZES = {
    "imagenet-1k": 1000,
    "imagenet-1k-background": 1001,
    "imagenet-12k": 11_821,
    "imagenet-21k": 21_843,
    "tiny-imagenet": 200,
    "cifar-10": 10,
    "cifar-100": 100,
    "coco-91": 91,
    "coco-90": 90,
    "coco-80": 80,
}


def test_sizes():
    assert {name: len(labels.of(name)) for name in labels.NAMES} == SIZES
    assert all(word for name in labels.NAMES for word in labels.of(name))


@pytest.mark.parametrize(
    ("place", "identifier", "word"),
    [
        (0, "n01440764", "tench"),
        (134, "n02012849", "crane (bird)"),
        (207, "n02099601", "golden retriever"),
        (517, "n03126707", "crane"),
        (639, "n03710721", "maillot (tank suit)"),
        (999, "n15075141", "toilet tissue"),
    ],
)
def test_imagenet_is_in_the_order_of_keras_and_torch(place, identifier, word):
    assert labels.wordnet_ids("imagenet-1k")[place] == identifier
    assert labels.of("imagenet-1k")[place] == word
    assert labels.of("imagenet-1k-background")[place + 1] == word


def test_the_thousand_and_the_two_hundred_differ():
    for name in ("imagenet-1k", "tiny-imagenet", "cifar-10", "cifar-100"):
        assert len(set(labels.of(name))) == SIZES[name]
    for name in ("imagenet-1k", "imagenet-12k", "imagenet-21k", "tiny-imagenet"):
        assert len(set(labels.wordnet_ids(name))) == SIZES[name]
        assert list(labels.wordnet_ids(name)) == sorted(labels.wordnet_ids(name))


def test_cifar():
    assert labels.of("cifar-10")[3] == "cat"
    assert (labels.of("cifar-100")[0], labels.of("cifar-100")[99]) == ("apple", "worm")
    assert list(labels.of("cifar-100")) == sorted(labels.of("cifar-100"))


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("imagenet-1k", "imagenet_synsets.txt"),
        ("imagenet-12k", "imagenet12k_synsets.txt"),
        ("imagenet-21k", "imagenet21k_goog_synsets.txt"),
    ],
)
def test_they_are_in_timms_order(name, file):
    found = importlib.util.find_spec("timm")
    if found is None or found.origin is None:
        pytest.skip("timm is not installed")
    text = (Path(found.origin).parent / "data" / "_info" / file).read_text()
    assert tuple(text.split()) == labels.wordnet_ids(name)


def test_unknown_set():
    with pytest.raises(UnknownNameError, match="Did you mean 'imagenet-1k'"):
        labels.of("imagenet-1")
    with pytest.raises(UnknownNameError, match="imagenet-1k"):
        labels.wordnet_ids("cifar-10")


def test_the_package_stays_small():
    path = labels.resources.files("resfit.weights").joinpath("wordnet.tsv.gz")
    assert len(path.read_bytes()) < 1_000_000


def test_the_registry_reads_none_of_them():
    code = (
        "import sys; from resfit.weights import registry; registry.rows(); "
        "print('resfit.weights.labels' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "False"
