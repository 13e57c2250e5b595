"""Mutated tensors of detectors of every naming but torchvision's dense ones: read or refused, never anything else."""

from __future__ import annotations

import functools
import random
from typing import Any

import numpy as np
import pytest

from resfit.errors import ResfitError
from resfit.networks.detection import kinds
from resfit.weights import completeness
from resfit.weights.conventions import deformable_detr, dense_detection, detr, faster_rcnn, rtdetr
from tests.networks.detection import rtdetr_peers
from tests.weights import test_deformable_detr, test_dense_detection, test_detr, test_faster_rcnn, test_rtdetr
from tests.weights.test_torchvision_detection import mutated

_OTHERS = ("retina", "conv", "atss", "gfl", "detectron2")


@functools.cache
def shapes(name: str) -> tuple[list[tuple[str, tuple[int, ...]]], ...]:
    """Names and shapes of the tensors of small detectors, in every spelling."""
    if name == "rtdetr":
        model, usual = test_rtdetr.source(2)
        found = [usual, rtdetr_peers.tensors(model, published=False), test_rtdetr.authors(usual, 2)]
    elif name == "detr":
        usual = test_detr.source()[1]
        found = [usual, test_detr.old(usual, timm=True), test_detr.authors(usual)]
    elif name == "deformable_detr":
        forms = [test_deformable_detr.source(form)[1] for form in test_deformable_detr.FORMS]
        found = [*forms, test_deformable_detr.old(forms[1]), test_deformable_detr.authors(forms[2])]
    elif name == "faster_rcnn":
        found = [*(test_faster_rcnn.source(kind)[1] for kind in test_faster_rcnn.KINDS), test_faster_rcnn.detectron()]
    else:
        found = [test_dense_detection.tensors(kind) for kind in _OTHERS]
    return tuple([(key, array.shape) for key, array in one.items()] for one in found)


MODULES: dict[str, Any] = {
    "rtdetr": rtdetr,
    "detr": detr,
    "deformable_detr": deformable_detr,
    "faster_rcnn": faster_rcnn,
    "dense": dense_detection,
}


def is_refused(name: str, tensors: dict[str, np.ndarray]) -> bool:
    """Recovers a detector from tensors. Any other error than resfit's own passes through."""
    try:
        MODULES[name].is_detector(tensors)
        translation = MODULES[name].translate(tensors)
        spec, _ = MODULES[name].identify(translation)
        layers = kinds.count(spec).layers
        return bool(completeness.problem(translation.arrays, translation.leftover, layers))
    except ResfitError:
        return True


def survive(name: str, count: int, seed: int) -> int:
    """Recovers detectors from mutated tensors; returns how many were refused."""
    generator = random.Random(seed)
    return sum(is_refused(name, mutated(list(generator.choice(shapes(name))), generator)) for _ in range(count))


@pytest.mark.parametrize("name", MODULES)
def test_mutated_tensors_are_refused_or_read(name):
    assert 0 < survive(name, 60, 0) <= 60


@pytest.mark.parametrize("shape", [(), (0,), (4, 0)])
def test_a_bias_of_anchors_without_values_is_refused(shape):
    tensors = {name: np.broadcast_to(np.float32(0), own) for name, own in shapes("dense")[-1]}
    name = next(name for name in tensors if name.endswith("cls_score.bias"))
    assert not is_refused("dense", tensors)
    assert is_refused("dense", {**tensors, name: np.zeros(shape, np.float32)})


def test_queries_of_a_single_number_are_refused():
    tensors = {name: np.broadcast_to(np.float32(0), own) for name, own in shapes("deformable_detr")[0]}
    (name,) = (name for name in tensors if name.endswith("query_position_embeddings.weight"))
    assert not is_refused("deformable_detr", tensors)
    assert is_refused("deformable_detr", {**tensors, name: np.zeros((), np.float32)})


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULES)
def test_many_mutated_tensors(name):
    assert survive(name, 50_000, 1) <= 50_000
