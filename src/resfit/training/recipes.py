"""Which settings suit which data: a pure function, and the estimate of what they cost on a machine.

In the manner of BiT's hyper-rule (Kolesnikov et al. 2020, arXiv:1912.11370): few numbers of the data decide everything,
by a rule that can be read, so that nobody has to search.
"""

from __future__ import annotations

import dataclasses
import math
import os
import time
from typing import TYPE_CHECKING, Any

from resfit import processors
from resfit.errors import ArgumentError
from resfit.training import loop as training
from resfit.training.settings import Tuning

if TYPE_CHECKING:
    from resfit.networks.spec import ArchitectureSpec

#: What ``strategy=`` accepts.
STRATEGIES = ("auto", "probe", "finetune", "full")

#: Training images up to which a class counts as few-shot: then nothing but a head is trained.
FEW = 8
#: Training images that count as a small and as a medium set. Of a small one the early stages stay frozen.
SMALL, MEDIUM = 500, 20_000
# optimiser steps that a set of each size gets, if the time allows
_STEPS = (300, 2_500, 10_000)
# shares of a matrix product's speed that the engine and a training step reach
_ENGINE, _TRAINING = 0.75, 0.55
# how much faster a step is in bfloat16 where the processor has matrix units for it: for small networks, at least
_NARROW = 1.5
# seconds that a fast engine and a training step take to start
_START = 4.0
_LEAST_EPOCHS, _LEAST_STEPS = 2, 150
#: Images a step.
BATCH = 32
# epochs from which a run of many images bears larger batches
_LONG = 12
# from how many epochs on crops are random, and the least share of the area that they keep; less cost accuracy
_CROPPED, _CROP = 5, 0.8
# share of the work that must be frozen for its outputs to be worth storing
_WORTH_STORING = 0.25
# share of the time that may go into storing more views than the plain one
_MOST_STORING = 0.3
# share of the time that may go into looking at each image once
_MOST_LOOKING = 0.8
# what one core is expected to do where nothing is measured: operations of a network, bytes of image files, files
_OPERATIONS, _BYTES, _FILES = 8e10, 2.5e7, 2e3
# images that are always looked at
_LEAST_IMAGES = 1000


@dataclasses.dataclass(frozen=True)
class Hardware:
    """The machine.

    Attributes:
        cores: Processor cores.
        gflops: Billions of float32 operations a second in a matrix product.
        memory: Bytes of main memory.
        gpu: Whether a GPU computes.
        bfloat16: Whether the processor multiplies faster in bfloat16 than in float32.
        device: What computes, as ``device=`` calls it.
        forward: Seconds that a GPU takes for an image through the whole network, measured; 0 where nothing was.
        training: The same of a training step, in ``training_precision``.
        training_precision: Dtype policy in which a GPU trains fastest; empty for a processor.
    """

    cores: int
    gflops: float
    memory: int
    gpu: bool = False
    bfloat16: bool = False
    device: str = "cpu"
    forward: float = 0.0
    training: float = 0.0
    training_precision: str = ""

    @property
    def policy(self) -> str:
        """Dtype policy of a training."""
        return self.training_precision or ("mixed_bfloat16" if self.bfloat16 else "float32")


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a recipe depends on, besides the machine and the time.

    Attributes:
        images: Training images.
        classes: Number of classes.
        size: Height and width in pixels that the network gets.
        imbalance: Images of the largest class for each of the smallest.
        stages: Multiply-accumulates of one image in each stage, ``"stage1"`` first.
        statistics: Whether the network's batch norms have seen images.
    """

    images: int
    classes: int
    size: tuple[int, int]
    imbalance: float = 1.0
    stages: tuple[tuple[str, int], ...] = ()
    statistics: bool = True

    def __post_init__(self) -> None:
        """Checks the ranges.

        Raises:
            ArgumentError: A number is outside its range.
        """
        if self.images < 1 or self.classes < 1 or min(self.size) < 1 or self.imbalance < 1:
            raise ArgumentError(f"images, classes, size and imbalance must be at least 1. Received: {self}.")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What is done, why, and how long it takes.

    Attributes:
        strategy: ``"probe"``, ``"finetune"`` or ``"full"``; with ``"auto"`` asked for, what follows the probe.
        tuning: Settings of the training; ``None`` for a probe alone.
        seconds: Estimates: ``"features"``, ``"head"``, ``"store"`` (outputs of the frozen part) and ``"training"``.
        reasons: One sentence for each choice.
    """

    strategy: str
    tuning: Tuning | None
    seconds: dict[str, float]
    reasons: tuple[str, ...]

    @property
    def total(self) -> float:
        """Seconds altogether."""
        return sum(self.seconds.values())

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON-ready values."""
        tuning = None if self.tuning is None else self.tuning.to_dict()
        return {"strategy": self.strategy, "tuning": tuning, "seconds": self.seconds, "reasons": list(self.reasons)}


def recipe(
    facts: Facts,
    hardware: Hardware,
    *,
    strategy: str = "auto",
    minutes: float | None = None,
    probed: bool = False,
    seed: int = 0,
) -> Recipe:
    """Chooses the settings. The same arguments always give the same recipe.

    Args:
        facts: The data and the network.
        hardware: The machine.
        strategy: One of :data:`STRATEGIES`. ``"auto"`` fine-tunes where data and time suffice.
        minutes: Time for everything; ``None`` is no limit, except that ``"auto"`` then stays with the probe.
        probed: Whether the probe is there already, so that ``minutes`` is for what follows.
        seed: Passed on.

    Raises:
        ArgumentError: ``strategy`` is unknown, or ``minutes`` is not positive.

    Example:
        >>> facts = Facts(400, 4, (224, 224), stages=(("stage1", 118_013_952), ("stage5", 811_073_536)))
        >>> recipe(facts, Hardware(2, 150, 16 << 30), strategy="probe").tuning is None
        True
    """
    training.check_choice("strategy", strategy, STRATEGIES)
    if minutes is not None and not minutes > 0:
        raise ArgumentError(f"minutes must be positive, or None. Received: {minutes!r}.")
    seconds = {"features": _engine_seconds(facts, facts.images, _macs(facts), hardware), "head": _head_seconds(facts)}
    alone = _probe_alone(facts, strategy, minutes)
    if alone:
        return Recipe("probe", None, seconds, (alone,))

    reasons: list[str] = []
    before = sum(seconds.values()) if strategy == "auto" and not probed else 0.0
    left = math.inf if minutes is None else 60 * minutes - before
    start, why = _boundary(facts, hardware, strategy, left)
    if not start:
        return Recipe("probe", None, seconds, (why,))
    reasons.append(why)
    views = _views(facts, start)
    while views > 1 and _store_seconds(facts, hardware, start, views) > _MOST_STORING * left:
        views -= 1
    epochs, why = _epochs(facts, hardware, start, left, views)
    reasons.append(why)
    if views > 1:
        reasons.append(f"{views} views of each image go through the frozen part once, which each epoch takes in turn")
    long = epochs >= _LONG
    crop = _CROP if epochs >= _CROPPED else 1.0
    tuning = Tuning(
        trainable_from=0.0 if start == "stage1" else start,
        epochs=epochs,
        batch_size=BATCH if not long or facts.images < MEDIUM else 4 * BATCH,
        optimizer="adamw",
        learning_rate=1e-3,
        weight_decay=0.05,
        warmup=0.1,
        schedule="cosine",
        clip=1.0,
        ema_decay=0.99,
        label_smoothing=0.1,
        crop_scale=crop,
        flip=True,
        views=views,
        batch_norm="frozen" if facts.statistics else "auto",
        precision=hardware.policy,
        seed=seed,
    )
    reasons.append(f"random crops of at least {crop:.0%} of the area" if crop < 1 else "no random crops: few epochs")
    if facts.statistics:
        reasons.append("batch norms keep their statistics: moving them costs half as much again, and brought nothing")
    else:
        reasons.append("the network's batch norms have seen no images: their statistics move")
    if facts.imbalance >= 10:
        reasons.append(
            f"the largest class has {facts.imbalance:.0f} times the images of the smallest: look at the recall of each "
            "class, and at balance=True if the rare ones matter as much"
        )
    if hardware.policy != "float32":
        what = hardware.device if hardware.gpu else "this machine"
        reasons.append(f"{hardware.policy.removeprefix('mixed_')}, which {what} multiplies faster")
    if hardware.training:
        reasons.append(
            f"measured on {hardware.device}: {1 / hardware.training:.0f} images a second in training"
            + (f", {1 / hardware.forward:.0f} through the frozen network" if hardware.forward else "")
        )
    store = _store_seconds(facts, hardware, start, views)
    loop = epochs * _epoch_seconds(facts, hardware, start, views) + _START
    return Recipe(
        strategy="full" if start == "stage1" else "finetune",
        tuning=tuning,
        seconds={
            **({} if strategy == "finetune" else seconds),
            "store": store,
            "training": min(loop, max(left - store, _START)),  # the clock ends it
        },
        reasons=tuple(reasons),
    )


def share_in_time(images: int, always: int, seconds: float, minutes: float) -> float:
    """Returns the share of the images that the time allows to look at, a power of one half.

    Args:
        images: Images of which some can be left out.
        always: Images of which none can.
        seconds: What one takes.
        minutes: Time for everything.

    Example:
        >>> share_in_time(60_000, 5_000, 0.002, 1.0)
        0.25
    """
    share, room = 1.0, _MOST_LOOKING * 60 * minutes
    while (share * images + always) * seconds > room and share * images / 2 >= _LEAST_IMAGES:
        share /= 2
    return share


def seconds_an_image(facts: Facts, size: float, cores: int, hardware: Hardware | None = None) -> float:
    """Returns about how long it takes to decode an image and run it through the network.

    A GPU computes while the processors decode, so that the slower of the two counts. On a processor both share the
    cores, and a typical machine is assumed, so that it is the same in each run.

    Args:
        facts: The data and the network.
        size: Bytes of the image file.
        cores: Processors.
        hardware: The machine, if a GPU's speed was measured.
    """
    decoding = decoding_seconds(size, cores)
    if hardware is not None and hardware.gpu and hardware.forward:
        return max(decoding, hardware.forward)
    return decoding + 2 * _macs(facts) / _OPERATIONS / cores


def decoding_seconds(size: float, cores: int) -> float:
    """Returns about how long it takes all processors together to decode an image.

    Args:
        size: Bytes of the image file.
        cores: Processors.
    """
    return (1 / _FILES + size / _BYTES) / cores


def facts_of(
    spec: ArchitectureSpec | None, images: int, classes: int, size: tuple[int, int], imbalance: float = 1.0
) -> Facts:
    """Returns the facts of a data set and a network.

    Args:
        spec: The network; ``None`` counts it as small.
        images: Training images.
        classes: Number of classes.
        size: Height and width in pixels that the network gets.
        imbalance: Images of the largest class for each of the smallest.
    """
    from resfit.networks import arithmetic

    stages: tuple[tuple[str, int], ...] = ()
    if spec is not None:
        counted = arithmetic.count(spec, input_size=size, include_top=False)
        stages = tuple((stage.name, stage.macs) for stage in counted.stages if stage.name != "head")
    return Facts(images, classes, size, imbalance, stages)


def parse_minutes(budget: str | float | None) -> float | None:
    """Reads a length of time.

    Args:
        budget: Such as ``"10m"``, ``"90s"``, ``"1.5h"``, or a number of minutes; ``None`` is no limit.

    Returns:
        Minutes.

    Raises:
        ArgumentError: It is written in another way, or not positive.

    Example:
        >>> parse_minutes("90s")
        1.5
    """
    if budget is None:
        return None
    text = str(budget).strip().lower()
    unit = {"s": 1 / 60, "m": 1.0, "h": 60.0}.get(text[-1:])
    try:
        minutes = float(text[:-1] if unit else text) * (unit or 1.0)
    except ValueError:
        minutes = math.nan
    if not 0 < minutes < math.inf:
        raise ArgumentError(f"budget must be a time such as 10m, 90s or 1.5h. Received: {budget!r}.")
    return minutes


def measure_hardware() -> Hardware:
    """Measures this machine, in a fraction of a second."""
    import numpy as np
    from threadpoolctl import threadpool_limits

    side, best, cores = 768, math.inf, processors.available()
    left = np.ones((side, side), np.float32)
    with threadpool_limits(1, user_api="blas"):  # threads that wait for a busy core would measure the neighbours
        for _ in range(8):
            begin = time.perf_counter()
            left @ left
            best = min(best, time.perf_counter() - begin)
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 8 << 30
    return Hardware(
        cores=cores,
        gflops=cores * 2 * side**3 / best / 1e9,
        memory=int(pages),
        bfloat16=_multiplies_bfloat16(),
    )


def _probe_alone(facts: Facts, strategy: str, minutes: float | None) -> str:
    """Returns why a probe is all that is done; empty if it is not."""
    if strategy == "probe":
        return "a head on the frozen network, as asked for"
    if strategy == "auto" and minutes is None:
        return "a head on the frozen network: without a budget of time nothing more is tried"
    if strategy == "auto" and facts.images < FEW * facts.classes:
        return f"a head on the frozen network: fewer than {FEW} training images a class"
    return ""


def _boundary(facts: Facts, hardware: Hardware, strategy: str, left: float) -> tuple[str, str]:
    """Returns the first stage that learns, and why."""
    names = [name for name, _ in facts.stages] or ["stage1"]
    if strategy == "full":
        return "stage1", "the whole network learns, as asked for"
    wanted = names[max(0, len(names) - 2)] if facts.images < SMALL else names[0]
    options = names[names.index(wanted) :]
    for start in options:
        views = min(1, _views(facts, start))
        needed = _store_seconds(facts, hardware, start, views) + _START
        needed += _least(facts) * _epoch_seconds(facts, hardware, start, views)
        if needed <= left:
            if start == wanted:
                return start, f"{start} and what follows learns: {facts.images} training images"
            return start, f"{start} and what follows learns: the time allows no more"
    if strategy == "auto":
        return "", "a head on the frozen network: the time is too short for fine-tuning"
    return options[-1], f"{options[-1]} and what follows learns: the time is short"


def _views(facts: Facts, start: str) -> int:
    """Returns how many views of each image are stored; none where storing them saves little."""
    if start == "stage1" or _macs(facts) - _macs(facts, start) < _WORTH_STORING * _macs(facts):
        return 0
    return 6


def _least(facts: Facts) -> float:
    """Returns the passes over the images under which fine-tuning is not worth beginning."""
    return min(_LEAST_EPOCHS, _LEAST_STEPS * BATCH / facts.images)


def _epochs(facts: Facts, hardware: Hardware, start: str, left: float, views: int) -> tuple[int, str]:
    steps = _STEPS[0] if facts.images < SMALL else _STEPS[1] if facts.images < MEDIUM else _STEPS[2]
    wanted = int(min(40, max(_LEAST_EPOCHS, math.ceil(steps / max(1, facts.images // BATCH)))))
    if left == math.inf:
        return wanted, f"{wanted} epochs of {max(1, facts.images // BATCH)} steps"
    room = left - _store_seconds(facts, hardware, start, views) - _START
    possible = math.ceil(room / max(_epoch_seconds(facts, hardware, start, views), 1e-9))
    if possible < wanted:
        return max(1, possible), f"{max(1, possible)} epochs, as far as the time allows"
    return wanted, f"{wanted} epochs of {max(1, facts.images // BATCH)} steps"


def _macs(facts: Facts, start: str | None = None) -> int:
    """Returns the multiply-accumulates of an image, from a stage on."""
    names = [name for name, _ in facts.stages]
    first = names.index(start) if start in names else 0
    return sum(macs for _, macs in facts.stages[first:])


def _engine_seconds(facts: Facts, images: int, macs: float, hardware: Hardware) -> float:
    """Returns what the frozen network takes, or a part of it; on a GPU as measured, and decoding beside it."""
    if hardware.forward:
        share = macs / max(1, _macs(facts))
        return images * max(hardware.forward * share, 1 / (_FILES * hardware.cores)) + _START
    return images * 2 * macs / (_ENGINE * hardware.gflops * 1e9) + (_START if macs * images > 5e10 else 1.0)


def _store_seconds(facts: Facts, hardware: Hardware, start: str, views: int) -> float:
    frozen = _macs(facts) - _macs(facts, start)
    return _engine_seconds(facts, views * facts.images, frozen, hardware) if frozen and views else 0.0


def _epoch_seconds(facts: Facts, hardware: Hardware, start: str, views: int) -> float:
    share = _macs(facts, start) / max(1, _macs(facts))
    # forwards, and backwards to the inputs and to the weights
    speed = _TRAINING * hardware.gflops * 1e9 * (_NARROW if hardware.bfloat16 else 1.0)
    seconds = facts.images * (hardware.training * share or 2 * 3 * _macs(facts, start) / speed)
    if not views:  # the frozen part runs in every epoch
        frozen = 2 * (_macs(facts) - _macs(facts, start)) / (_ENGINE * hardware.gflops * 1e9)
        seconds += facts.images * (hardware.forward * (1 - share) or frozen)
    return seconds


def _head_seconds(facts: Facts) -> float:
    return 1.0 + 2e-5 * facts.images * facts.classes


def _multiplies_bfloat16() -> bool:
    """Whether the processor has matrix units for bfloat16; the vector instructions alone bring nothing here."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            return "amx_bf16" in file.read()
    except OSError:
        return False
