"""Which number format is expected to bring a run of many images to its end first, its checks included.

A processor without instructions for fewer bits, a GPU and a short run cost nothing here: they get float32. Rates are
measured once for each machine and network and kept; that of int8 is assumed until a network has been calibrated, and
measured then, before anything is computed by it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from resfit import dependencies, devices, engines, processors
from resfit.engines import speed
from resfit.errors import ArgumentError

if TYPE_CHECKING:
    import keras

#: What ``precision=`` calls the choice.
AUTO = "auto"
#: Largest share of a run that its check in float32 may take.
CHECK_SHARE = 0.05
#: Fewest images of that check.
LEAST_CHECKED = 32

# seconds that a run in float32 must be expected to take before anything is measured
_SHORT = 30.0
# multiply-accumulates a second of one core in float32, generously
_MACS = 9e10
# times as fast as float32 must be, so that a run is not slower where the rates are off
_MARGIN = 1.15
# seconds before the first image: what is compiled and compared, and for int8 also calibrated
_BEGINNING = {"bfloat16": 2.0, "int8": 10.0}
# times as fast int8 is taken to be until it has been measured
_INT8 = 2.0
_TIMED = 8  # images of a batch that is timed
_LEAST_NOTED = 64  # images of a run whose rate is kept


@dataclasses.dataclass(frozen=True)
class PrecisionChoice:
    """What was chosen, and why.

    Attributes:
        precision: ``"float32"``, ``"bfloat16"`` or ``"int8"``.
        reason: In words; empty where nothing had to be chosen.
        seconds: Expected seconds of the whole run by precision; empty where nothing was compared.
        most_checked: Most images that the check in float32 may look at.
        images: Number of images of the run; 0 for what an earlier version has noted.
    """

    precision: str = "float32"
    reason: str = ""
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    most_checked: int = 0
    images: int = 0

    @property
    def line(self) -> str:
        """The choice in one line, with the argument that changes it; empty for float32 without a comparison."""
        if not self.seconds:
            return ""
        other = "float32" if self.precision != "float32" else "bfloat16 or int8"
        return f"features in {self.precision}: {self.reason} (--precision {other} changes it)"

    def to_dict(self) -> dict[str, Any]:
        """Returns it JSON-ready; :meth:`from_dict` reads it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PrecisionChoice:
        """Returns what :meth:`to_dict` wrote.

        Args:
            values: The fields.
        """
        return cls(**values)


def candidates() -> tuple[str, ...]:
    """Returns the formats of fewer bits that this processor has instructions for and an installed engine computes."""
    if devices.current().kind != "cpu" or not engines.is_installed("openvino"):
        return ()
    has = processors.instructions()
    found = []
    if has & {"avx512_bf16", "amx_bf16", "bf16"} and engines.has_precision("openvino", "bfloat16"):
        found.append("bfloat16")
    if has & {"avx512_vnni", "avx_vnni", "amx_int8", "i8mm"} and dependencies.is_installed("nncf"):
        found.append("int8")
    return tuple(found)


def choose(
    model: keras.Model | engines.StoredNetwork,
    images: int,
    samples: Callable[[], np.ndarray],
    *,
    engine: Any = "auto",
    cache: bool | str | Path = True,
) -> PrecisionChoice:
    """Chooses the number format of a run.

    Args:
        model: The network.
        images: Number of images that are to go through it.
        samples: Returns some of them as the network takes them, to time it on; called only where that may pay.
        engine: As :func:`resfit.engines.create` takes it.
        cache: Where rates are kept: ``True`` for resfit's own cache, ``False`` for nowhere, or a folder.
    """
    if engine not in ("auto", "openvino"):
        return PrecisionChoice()
    macs = engines.macs_per_image(model)
    if macs is not None and images * macs / (_MACS * processors.available()) < _SHORT:
        return PrecisionChoice()
    formats = candidates()
    if not formats:
        return PrecisionChoice()
    exact = _rate(model, "float32", samples, cache)
    if exact is None or images * exact < _SHORT:
        return PrecisionChoice()
    rates = {name: _rate(model, name, samples, cache) for name in formats}
    if "int8" in rates and rates["int8"] is None:
        rates["int8"] = exact / _INT8
    return decide(images, exact, {name: rate for name, rate in rates.items() if rate is not None})


def decide(images: int, exact: float, rates: dict[str, float]) -> PrecisionChoice:
    """Chooses by the time of the whole run.

    Args:
        images: Number of images.
        exact: Seconds of an image in float32.
        rates: Seconds of an image by format of fewer bits.
    """
    seconds, checked = {"float32": images * exact}, {}
    for name, rate in rates.items():
        run = _BEGINNING[name] + images * rate
        checked[name] = max(LEAST_CHECKED, int(CHECK_SHARE * run / exact))
        seconds[name] = run + checked[name] * exact
    best = min(seconds, key=lambda name: seconds[name] * (1.0 if name == "float32" else _MARGIN))
    told = ", ".join(f"{name} {value:.0f} s" for name, value in sorted(seconds.items(), key=lambda item: item[1]))
    reason = f"{images:,} images are expected to take {told}"
    return PrecisionChoice(best, reason, seconds, checked.get(best, 0), images)


def worth(
    model: keras.Model | engines.StoredNetwork,
    choice: PrecisionChoice,
    say: Callable[[str], None],
    cache: bool | str | Path = True,
) -> Callable[[Any, Callable[[], np.ndarray]], bool]:
    """Returns what decides about int8 once it is calibrated, as :func:`resfit.features.extract.extract` asks.

    A few batches are timed, unless that has been done before, and the rate is kept. What is left of the run, its checks
    included, must be shorter than in float32.

    Args:
        model: The network.
        choice: By which int8 was taken.
        say: Gets a sentence where int8 is not worth it.
        cache: As :func:`choose` takes it.
    """
    exact = choice.seconds["float32"] / max(1, choice.images)

    def decided(running: Any, samples: Callable[[], np.ndarray]) -> bool:
        found = speed.kept("engine", model, _about("int8"), lambda: {"seconds": _timed(running, samples())}, cache)
        rate = float(found["seconds"])
        if not choice.images or choice.images * rate + choice.most_checked * exact < choice.images * exact:
            return True
        say(
            f"features in float32: int8 takes {1000 * rate:.1f} ms an image here, float32 {1000 * exact:.1f} "
            "(--precision int8 changes it)"
        )
        return False

    return decided


def note(
    model: keras.Model | engines.StoredNetwork,
    precision: str,
    seconds: float,
    images: int,
    cache: bool | str | Path = True,
) -> None:
    """Keeps the rate that a run has shown.

    Args:
        model: The network.
        precision: In which it ran, on OpenVINO.
        seconds: Of an image, while batches followed one another.
        images: That went through it; a short run says nothing.
        cache: As :func:`choose` takes it.
    """
    if images >= _LEAST_NOTED and seconds > 0:
        speed.keep("engine", model, _about(precision), {"seconds": seconds}, cache)


def _rate(
    model: keras.Model | engines.StoredNetwork,
    precision: str,
    samples: Callable[[], np.ndarray],
    cache: bool | str | Path,
) -> float | None:
    """Returns the seconds of an image; ``None`` for int8 that has not run yet, or what cannot be measured."""

    def measure() -> dict[str, Any]:
        if precision == "int8":
            raise ArgumentError("int8 is timed when it has been calibrated.")
        batch = np.asarray(samples())
        if not len(batch):
            raise ArgumentError("a network is timed on images. Received: none that can be read.")
        return {"seconds": _timed(engines.create(model, "openvino", precision=precision), batch)}

    try:
        return float(speed.kept("engine", model, _about(precision), measure, cache)["seconds"])
    except ArgumentError:
        return None


def _timed(running: Any, images: np.ndarray) -> float:
    """Returns the seconds of an image in the fastest of a few batches, all of one size."""
    batch = np.concatenate([images] * -(-_TIMED // len(images)))[:_TIMED]
    return speed.fastest_batch(running, batch) / len(batch)


def _about(precision: str) -> dict[str, Any]:
    return {"engine": "openvino", "precision": precision, "processor": devices.cpu().name}
