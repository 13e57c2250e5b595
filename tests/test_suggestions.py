"""Suggestions against the registry, the front against a definition, and a measured latency."""

from __future__ import annotations

import json
import random
import subprocess
import sys

import pytest

import resfit
from resfit import suggestions
from resfit.errors import ArgumentError
from resfit.networks import arithmetic, catalog
from resfit.storage.locks import cache_root
from resfit.weights import registry


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RESFIT_CACHE", str(tmp_path))
    return tmp_path


def test_limits_hold_and_nothing_within_them_is_missing():
    found = resfit.suggest(max_params=30e6, max_gmacs=5, min_top1=78, licence="permissive")
    assert found == sorted(found, key=lambda one: (-one.top1, one.gmacs))
    names = {one.name for one in found}
    for info in registry.rows().values():
        if info.evaluated_on != "ImageNet-1k" or not info.loadable or info.top1 is None:
            continue
        spec = catalog.get(info.architecture).spec
        counted = arithmetic.count(spec, input_size=(info.eval_size,) * 2, classes=info.classes)
        within = counted.parameters <= 30e6 and counted.macs <= 5e9 and info.top1 >= 78
        assert (info.name in names) == (within and info.licence in registry.PERMISSIVE), info.name
    assert len(found) > 30


def test_cost_and_accuracy_are_of_the_same_size():
    (found,) = [one for one in suggestions.suggest() if one.name == "resnet50.v2_torchvision"]
    assert (found.size, found.top1, found.parameters) == (224, 80.858, 25_610_152)
    assert found.gmacs == pytest.approx(4.089184256)
    assert found.latency is None
    slim = next(one for one in suggestions.suggest() if one.name == "resnet_v2_50.slim")
    assert slim.size == 299
    assert slim.gmacs > 1.7 * 3.4
    fixed = next(one for one in suggestions.suggest() if one.name == "resnet_vd_50_ssld_v2_fix_imagenet")
    assert registry.get(fixed.name).input_size == 224
    assert fixed.size == 320
    assert fixed.gmacs == pytest.approx(4.328824832 * (320 / 224) ** 2, rel=0.001)


def test_benchmarks_are_not_mixed():
    assert {one.evaluated_on for one in suggestions.suggest()} == {"ImageNet-1k"}
    cifar = suggestions.suggest(evaluated_on="CIFAR-10", max_params=0.3e6)
    assert [one.name for one in cifar] == ["resnet20b.chenyaofo_cifar10", "resnet20.idelbayev_cifar10"]
    probes = suggestions.suggest(evaluated_on="ImageNet-1k (linear probe)", licence="permissive")
    assert "resnet50.dino" in {one.name for one in probes}
    assert "resnet50.moco_v2_800ep" not in {one.name for one in probes}


def test_unloadable_ones_on_request():
    names = {one.name for one in suggestions.suggest(evaluated_on="RadImageNet", loadable=False)}
    assert names == {"resnet50.radimagenet"}
    assert suggestions.suggest(evaluated_on="RadImageNet") == []


def test_front_is_what_nothing_beats():
    generator = random.Random(0)
    points = [(generator.randint(0, 12), generator.randint(0, 12)) for _ in range(60)]
    for point, on_front in zip(points, suggestions.pareto(points), strict=True):
        beaten = any(cost <= point[0] and gain >= point[1] and (cost, gain) != point for cost, gain in points)
        assert on_front == (not beaten), point
    assert suggestions.pareto([]) == []


def test_front_of_the_registry():
    found = suggestions.suggest(licence="permissive")
    front = sorted((one for one in found if one.pareto), key=lambda one: one.gmacs)
    assert front[-1].top1 == max(one.top1 for one in found)
    assert front[0].gmacs == min(one.gmacs for one in found)
    assert [one.top1 for one in front] == sorted(one.top1 for one in front)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"max_params": 0}, r"max_params must be above 0\. Received: 0"),
        ({"max_gmacs": float("nan")}, "max_gmacs must be above 0"),
        ({"evaluated_on": "CIFAR10"}, "Did you mean 'CIFAR-10'"),
        ({"source": "tim"}, "Did you mean 'timm'"),
        ({"measure": True, "engine": "openvin", "max_gmacs": 1, "min_top1": 60}, "Did you mean 'openvino'"),
    ],
)
def test_wrong_arguments(arguments, match):
    with pytest.raises(ArgumentError, match=match):
        suggestions.suggest(**arguments)


def test_measured_latency_is_kept_and_limits(cache):
    told = []
    limits = {"evaluated_on": "CIFAR-10", "max_params": 0.3e6, "engine": "keras"}
    found = suggestions.suggest(measure=True, progress=lambda *what: told.append(what), **limits)
    assert all(0 < one.latency < 60 for one in found)
    assert found[0].cost == found[0].latency
    assert told == [("Measuring latency", done, 2) for done in range(3)]
    kept = sorted((cache_root() / "latency").iterdir())
    assert len(kept) == 2
    for path in kept:  # a slow machine
        path.write_text(json.dumps({**json.loads(path.read_text()), "seconds": 5.0}))
    assert [one.latency for one in suggestions.suggest(measure=True, **limits)] == [5.0, 5.0]
    assert suggestions.suggest(max_latency=4.9, **limits) == []
    kept[0].write_text("damaged")
    assert sorted(one.latency for one in suggestions.suggest(measure=True, **limits))[0] < 5.0


def test_a_measurement_leaves_no_network_behind(cache):
    assert 0 < suggestions.latency("resnet20", 32) < 60
    files = [path.relative_to(cache).as_posix() for path in cache.rglob("*") if path.is_file()]
    assert len(files) == 1
    assert files[0].startswith("latency/")


def test_plot(tmp_path):
    found = suggestions.suggest(max_gmacs=2)
    path = suggestions.plot(found, tmp_path / "choice.svg")
    text = path.read_text()
    assert text.count("<path") > len(found)
    assert "GMACs for one image" in text or "choice" in path.name
    with pytest.raises(ArgumentError, match=r"\.png"):
        suggestions.plot(found, tmp_path / "choice.txt")
    with pytest.raises(ArgumentError, match="at least one"):
        suggestions.plot([], tmp_path / "choice.png")


def test_the_function_is_reached_whatever_was_imported_before():
    code = (
        "import resfit.suggestions, resfit, sys; "
        "print(len(resfit.suggest(max_gmacs=1)), any(name in sys.modules for name in ('numpy', 'keras')))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert int(found[0]) > 0
    assert found[1] == "False"
