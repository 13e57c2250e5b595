"""Which published weights to take: the ones within given limits, and which of them nothing beats.

No weights are fetched for it. Only a measurement of latency imports Keras and builds networks.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from resfit import processors
from resfit.drawing import new_figure
from resfit.errors import ArgumentError, closest
from resfit.networks import arithmetic, catalog
from resfit.storage import atomic
from resfit.storage.locks import cache_root, report_unusable, scratch
from resfit.weights import registry
from resfit.weights.registry import CheckpointInfo

#: Told what is being done, how much of it is done, and how much there is.
Progress = Callable[[str, int, int], None]

_FORMAT = 1
_WARM_UPS, _RUNS = 2, 12


@dataclasses.dataclass(frozen=True)
class Suggestion:
    """Published weights and what they cost.

    Attributes:
        name: What ``resfit.load`` takes.
        architecture: The catalog's name of the network.
        source: Who publishes it.
        licence: SPDX name in lower case, or ``""`` where none is stated.
        training_data: What it was trained on.
        top1: Published top-1 accuracy in percent at ``size``.
        top5: Published top-5 accuracy in percent, or None.
        evaluated_on: The images that these were measured on.
        size: Side of the image in pixels that accuracy and cost are for.
        parameters: Of the whole network, moving statistics included.
        gmacs: Multiply-accumulates in billions for one image of ``size``.
        latency: Median seconds for one image of ``size`` on this machine, or None if it was not measured.
        pareto: Whether none of the others is at least as accurate and costs less, or more accurate and costs as much;
            cost is the latency if it was measured, else ``gmacs``.
        loadable: Whether ``resfit.load(name)`` brings the weights.
    """

    name: str
    architecture: str
    source: str
    licence: str
    training_data: str
    top1: float
    top5: float | None
    evaluated_on: str
    size: int
    parameters: int
    gmacs: float
    latency: float | None
    pareto: bool
    loadable: bool

    @property
    def cost(self) -> float:
        """What the front is drawn over: the latency in seconds if it was measured, else billions of MACs."""
        return self.gmacs if self.latency is None else self.latency

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON-ready values."""
        return dataclasses.asdict(self)


def suggest(
    *,
    max_params: float | None = None,
    max_gmacs: float | None = None,
    min_top1: float | None = None,
    licence: str | None = None,
    trained_on: str | None = None,
    source: str | None = None,
    evaluated_on: str = registry.IMAGENET,
    max_latency: float | None = None,
    measure: bool = False,
    loadable: bool = True,
    engine: str = "auto",
    progress: Progress | None = None,
) -> list[Suggestion]:
    """Suggests published weights within limits, and marks those that nothing else beats.

    Accuracies are compared on one benchmark only, and each with what the network costs at the size of image that it was
    measured at.

    Args:
        max_params: Most parameters, such as ``30e6``.
        max_gmacs: Most multiply-accumulates for one image, in billions.
        min_top1: Lowest published top-1 accuracy in percent.
        licence: ``"permissive"`` (Apache, MIT, BSD), or a shell pattern for the SPDX name such as ``"apache*"``.
        trained_on: Part of the training data's name, such as ``"imagenet-21k"``.
        source: Who publishes it, such as ``"timm"``.
        evaluated_on: The benchmark of the accuracies, such as ``"CIFAR-10"``.
        max_latency: Most seconds for one image on this machine. Every network within the other limits is measured,
            which takes some seconds each the first time; the results are kept in the cache.
        measure: Measure the latency without limiting it.
        loadable: Only those that ``resfit.load`` brings by name.
        engine: What runs the networks if they are measured, as :func:`resfit.engines.create` takes it, by its name.
        progress: Told of the measurements.

    Returns:
        The most accurate first.

    Raises:
        ArgumentError: A limit is not above zero, or a name is unknown.

    Example:
        >>> [found.name for found in suggest(max_params=12e6, min_top1=73, licence="permissive")][0]
        'resnetv2_18d.ra4_e3600_r224_in1k'
    """
    limits = {"max_params": max_params, "max_gmacs": max_gmacs, "min_top1": min_top1, "max_latency": max_latency}
    for name, limit in limits.items():
        if limit is not None and not limit > 0:
            raise ArgumentError(f"{name} must be above 0. Received: {limit!r}.")
    benchmarks = tuple(dict.fromkeys(info.evaluated_on for info in registry.rows().values() if info.evaluated_on))
    if evaluated_on not in benchmarks:
        raise ArgumentError(
            f"evaluated_on must be one of {benchmarks}. Received: {evaluated_on!r}.{closest(evaluated_on, benchmarks)}"
        )
    found = [
        _costed(info)
        for info in registry.find(licence=licence, trained_on=trained_on, source=source)
        if info.evaluated_on == evaluated_on
        and info.architecture
        and info.top1 is not None
        and info.top1 >= (min_top1 or 0)
        and (info.loadable or not loadable)
    ]
    found = [
        suggestion
        for suggestion in found
        if suggestion.parameters <= (max_params or float("inf")) and suggestion.gmacs <= (max_gmacs or float("inf"))
    ]
    if measure or max_latency is not None:
        found = _measured(found, engine, progress)
        found = [one for one in found if one.cost <= (max_latency or float("inf"))]
    front = pareto([(one.cost, one.top1) for one in found])
    found = [dataclasses.replace(one, pareto=on_it) for one, on_it in zip(found, front, strict=True)]
    return sorted(found, key=lambda one: (-one.top1, one.cost))


def pareto(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Says which points no other beats.

    Args:
        points: Pairs of a cost (less is better) and a gain (more is better).

    Returns:
        For each point, whether no other costs no more and gains no less, and is better in one of the two.
    """
    best = float("-inf")  # gain of all that costs less
    front: dict[tuple[float, float], bool] = {}
    for point in sorted(set(points), key=lambda point: (point[0], -point[1])):
        front[point] = point[1] > best
        best = max(best, point[1])
    return [front[point] for point in points]


def latency(architecture: str, size: int, *, engine: str = "auto", seed: int = 0) -> float:
    """Measures how long a network takes for one image on this machine.

    The network gets random weights, which cost as much time as trained ones. The result is kept in resfit's cache, by
    machine, runtime and architecture.

    Args:
        architecture: A name of the catalog.
        size: Side of the image in pixels.
        engine: As :func:`resfit.engines.create` takes it, by its name.
        seed: Of the image.

    Returns:
        The median in seconds.

    Raises:
        ArgumentError: The engine is unknown.
        MissingDependencyError: The engine is not installed.
    """
    from resfit import engines

    engines.check_name(engine)
    spec = catalog.get(architecture).spec
    about = {
        "format": _FORMAT,
        "spec": spec.to_dict() | {"stem": [dataclasses.asdict(conv) for conv in spec.stem]},
        "size": size,
        "engine": engine,
        "versions": _versions(),
        "machine": [platform.machine(), _processor(), processors.available()],
    }
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]
    path = cache_root() / "latency" / f"{digest}.json"
    try:
        seconds = float(json.loads(path.read_text(encoding="utf-8"))["seconds"])
        if seconds > 0:
            return seconds
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not there, or damaged: measure again
    seconds = _measure(architecture, size, engine, seed)
    try:
        atomic.write_json(path, {"seconds": seconds, "architecture": architecture, **about})
    except OSError as error:
        report_unusable(cache_root(), error)
    return seconds


def cost(info: CheckpointInfo) -> tuple[int, float] | None:
    """Counts what a checkpoint's network costs.

    Args:
        info: The checkpoint.

    Returns:
        Parameters, moving statistics included, and billions of multiply-accumulates for one image of the size at which
        its accuracy was measured, else of its input size; or None where the catalog lacks its network.
    """
    if not info.architecture:
        return None
    size = info.eval_size or info.input_size
    parameters, macs = _count(info.architecture, size, info.classes, len(info.mean))
    return parameters, macs / 1e9


def plot(suggestions: Sequence[Suggestion], target: str | os.PathLike[str]) -> Path:
    """Draws accuracy over cost, with the front as a line.

    Args:
        suggestions: What :func:`suggest` returned, at least one.
        target: The picture, by its suffix a ``.png``, ``.svg`` or ``.pdf``.

    Returns:
        The path.

    Raises:
        ArgumentError: There is nothing to draw, or the suffix is none of these.
    """
    target = Path(target)
    if target.suffix not in (".png", ".svg", ".pdf"):
        raise ArgumentError(f"a plot must end in .png, .svg or .pdf. Received: {target}.")
    if not suggestions:
        raise ArgumentError("a plot needs at least one suggestion. Received: none.")
    measured = suggestions[0].latency is not None
    unit = 1000 if measured else 1
    figure = new_figure((9, 6))
    axes = figure.add_subplot()
    others = [one for one in suggestions if not one.pareto]
    front = sorted((one for one in suggestions if one.pareto), key=lambda one: one.cost)
    axes.scatter([unit * one.cost for one in others], [one.top1 for one in others], s=18, color="0.7")
    line = [unit * one.cost for one in front], [one.top1 for one in front]
    axes.plot(*line, "o-", drawstyle="steps-post", markersize=5, color="C0")
    told = []
    sign = "ms" if measured else "GMACs"
    for number, one in enumerate(front, start=1):
        told.append(f"{number:>2}  {one.name} at {one.size}: {one.top1:.1f} %, {unit * one.cost:.3g} {sign}")
        place = (unit * one.cost, one.top1)
        axes.annotate(str(number), place, xytext=(-4, 4), textcoords="offset points", ha="right", fontsize=9)
    box = {"facecolor": "white", "edgecolor": "0.8", "alpha": 0.9}
    corner: Any = {"transform": axes.transAxes, "ha": "right", "va": "bottom", "ma": "left", "fontsize": 7, "bbox": box}
    axes.text(0.985, 0.02, "\n".join(told), family="monospace", **corner)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("milliseconds for one image on this machine" if measured else "GMACs for one image")
    axes.set_ylabel(f"top-1 accuracy on {suggestions[0].evaluated_on} (%)")
    axes.grid(alpha=0.3)
    with atomic.atomic_path(target) as temporary:
        figure.savefig(temporary, dpi=120)
    return target


def _costed(info: CheckpointInfo) -> Suggestion:
    counted = cost(info)
    assert counted is not None
    assert info.top1 is not None
    parameters, gmacs = counted
    return Suggestion(
        name=info.name,
        architecture=info.architecture,
        source=info.source,
        licence=info.licence,
        training_data=info.training_data,
        top1=info.top1,
        top5=info.top5,
        evaluated_on=info.evaluated_on,
        size=info.eval_size or info.input_size,
        parameters=parameters,
        gmacs=gmacs,
        latency=None,
        pareto=False,
        loadable=info.loadable,
    )


@functools.cache
def _count(architecture: str, size: int, classes: int, channels: int) -> tuple[int, int]:
    spec = catalog.get(architecture).spec.replace(in_channels=channels)
    counted = arithmetic.count(spec, input_size=(size, size), include_top=classes > 0, classes=classes or None)
    return counted.parameters, counted.macs


def _measured(found: Sequence[Suggestion], engine: str, progress: Progress | None) -> list[Suggestion]:
    """Adds the latency to each, a network and size measured once, the cheapest first."""
    networks = list(dict.fromkeys((one.architecture, one.size) for one in sorted(found, key=lambda one: one.gmacs)))
    seconds: dict[tuple[str, int], float] = {}
    for done, (architecture, size) in enumerate(networks):
        if progress:
            progress("Measuring latency", done, len(networks))
        seconds[architecture, size] = latency(architecture, size, engine=engine)
    if progress:
        progress("Measuring latency", len(networks), len(networks))
    return [dataclasses.replace(one, latency=seconds[one.architecture, one.size]) for one in found]


def _measure(architecture: str, size: int, engine: str, seed: int) -> float:
    import numpy as np

    from resfit import engines
    from resfit.networks.build import build
    from resfit.preprocessing import TORCH

    spec = catalog.get(architecture).spec
    contract = dataclasses.replace(TORCH, size=(size, size)).with_channels(spec.in_channels)
    model = build(spec, input_shape=(size, size, spec.in_channels), input_spec=contract, preprocess=True)
    image = np.random.default_rng(seed).integers(0, 256, (1, size, size, spec.in_channels), dtype=np.uint8)
    # in a folder of its own, since a network of random weights is not worth keeping
    with scratch() as folder:
        ready = engines.create(model, engine, cache=folder)
        taken = []
        for _ in range(_WARM_UPS + _RUNS):
            begin = time.perf_counter()
            ready.run(image)
            taken.append(time.perf_counter() - begin)
        del ready  # it may hold files of the folder
    return statistics.median(taken[_WARM_UPS:])


def _versions() -> dict[str, str]:
    """Versions of what may run a network, as far as it is installed."""
    from importlib import metadata

    found = {}
    for name in ("keras", "tensorflow", "openvino", "onnxruntime", "ai-edge-litert"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


@functools.cache
def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()
