"""What runs a network, on which device, in which number format: decided in one place, before anything is computed.

Keys, records, messages and figures use what was decided here, never what was asked for.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from resfit import dependencies, devices
from resfit.devices import Device
from resfit.engines.base import RUNTIMES, Engine
from resfit.errors import ArgumentError, closest

#: What ``precision=`` accepts. float32 is float32: TensorFloat-32 has a name of its own.
PRECISIONS = ("float32", "tf32", "bfloat16", "float16", "int8")

# bfloat16 and int8, in the order in which "auto" takes a runtime for them
_PREFERRED = ("openvino", "onnxruntime", "litert")


@dataclasses.dataclass(frozen=True)
class Resolved:
    """What runs a network, and how.

    Attributes:
        engine: Name of the engine; ``"auto"`` where, in float32 on the processor, the number of images still decides
            between OpenVINO and Keras, whose rows agree.
        device: What it runs on.
        precision: Number format of its arithmetic, one of :data:`PRECISIONS`.
        note: What is not as it was asked for, and why; empty if all is.
        chosen: Whether the engine was left open, so that another may take its place where it cannot run a network.
    """

    engine: str
    device: Device
    precision: str
    note: str = ""
    chosen: bool = False

    @property
    def key(self) -> str:
        """What of it decides the numbers, for the key of rows: in float32 on a processor all engines agree."""
        if self.precision == PRECISIONS[0] and self.device.kind == "cpu":
            return self.precision
        return f"{self.precision}:{self.engine}:{self.device.kind}"

    def in_float32(self, note: str = "") -> Resolved:
        """Returns the same in float32, for networks that lose too much in fewer bits.

        Args:
            note: Why.
        """
        return dataclasses.replace(self, precision=PRECISIONS[0], note=note)

    def to_dict(self) -> dict[str, Any]:
        """Returns what results and reports say of it, JSON-ready."""
        return {"engine": self.engine, "precision": self.precision, **self.device.to_dict()}


def resolve(engine: str | Engine = "auto", precision: str = "float32", device: Device | None = None) -> Resolved:
    """Decides on engine, device and precision.

    What is named is taken or refused. What is left open (``engine="auto"``) is chosen so that the precision is
    computed; where nothing on this machine computes it, it becomes float32, and the note says so.

    Args:
        engine: As :func:`resfit.engines.create` takes it.
        precision: One of :data:`PRECISIONS`.
        device: Where it shall run; ``None`` is :func:`resfit.devices.current`.

    Raises:
        ArgumentError: A name is unknown, or the engine does not compute in this precision on this machine.
    """
    check_name(engine)
    check_precision(precision)
    if not isinstance(engine, str):
        return Resolved(engine.name, getattr(engine, "device", None) or devices.cpu(), engine.precision)
    device = device or devices.current()
    if engine == "auto":
        return dataclasses.replace(_chosen(precision, device), chosen=True)
    if engine != "keras":  # the other runtimes compute on the processor
        device = devices.cpu()
    if not has_precision(engine, precision, device):
        others = [name for name in ("keras", *RUNTIMES) if has_precision(name, precision, device)]
        way = f"engine={' or '.join(map(repr, others))} has it. " if others else ""
        raise ArgumentError(
            f"{engine} does not compute in {precision} on {_told(device)}. {way}engine='auto' takes what has it, or "
            f"float32. Received: engine={engine!r}, precision={precision!r}."
        )
    return Resolved(engine, device, precision)


def _chosen(precision: str, device: Device) -> Resolved:
    """Resolves ``engine="auto"``."""
    if device.kind == "gpu":
        if has_precision("keras", precision, device):
            return Resolved("keras", device, precision)
        if precision == "int8" and (runtime := _runtime_for(precision)):
            note = f"int8 is computed by {runtime} on the processor, not on {_told(device)}: float16 is for the card"
            return Resolved(runtime, devices.cpu(), precision, note)
        note = f"{_told(device)} does not compute in {precision}. Going on in float32."
        return Resolved("keras", device, "float32", note)
    if precision == "float32":
        return Resolved("auto", device, precision)
    if runtime := _runtime_for(precision):
        return Resolved(runtime, device, precision)
    slowly = "; engine='keras' does, slowly" if device.computes(precision) else ""
    note = f"no fast engine computes in {precision} on {_told(device)}{slowly}. Going on in float32."
    return Resolved("auto", device, "float32", note)


def _runtime_for(precision: str) -> str:
    """Returns the runtime that "auto" takes for a precision on the processor; empty if none has it."""
    names = [name for name in _PREFERRED if name in RUNTIMES]
    return next((name for name in names if has_precision(name, precision, devices.cpu())), "")


def _told(device: Device) -> str:
    return f"{device.label} ({device.name})" if device.name else device.label


def check_name(engine: str | Engine) -> None:
    """Makes sure that :func:`resfit.engines.create` knows the engine, where it may not be needed or only later.

    Raises:
        ArgumentError: It does not.
    """
    known = ("auto", "keras", *RUNTIMES)
    if isinstance(engine, str) and engine not in known:
        raise ArgumentError(f"engine must be one of {known}. Received: {engine!r}.{closest(engine, known)}")


def check_installed(engine: str | Engine, precision: str = "float32") -> None:
    """Makes sure that the packages of an engine and a precision are installed, before any work is done.

    Args:
        engine: As :func:`resfit.engines.create` takes it.
        precision: As :func:`resfit.engines.create` takes it.

    Raises:
        MissingDependencyError: The runtime, or NNCF for int8, is not installed.
    """
    if isinstance(engine, str) and engine in RUNTIMES:
        dependencies.require(f'engine="{engine}"', *RUNTIMES[engine].modules)
    if precision == "int8" and engine in ("auto", "openvino", "onnxruntime"):  # LiteRT has its own converter
        from resfit.engines import int8

        int8.check_installed()


def check_precision(precision: str) -> None:
    """Makes sure that :func:`resfit.engines.create` knows the precision.

    Raises:
        ArgumentError: It does not.
    """
    if precision not in PRECISIONS:
        raise ArgumentError(
            f"precision must be one of {PRECISIONS}. Received: {precision!r}.{closest(precision, PRECISIONS)}"
        )


def has_precision(engine: str, precision: str, device: Device | None = None) -> bool:
    """Says whether an engine computes in a precision on this machine; for ``"auto"`` whether any does.

    Args:
        engine: ``"auto"``, ``"keras"`` or the name of a runtime.
        precision: One of :data:`PRECISIONS`.
        device: What Keras runs on; ``None`` is :func:`resfit.devices.current`.
    """
    if precision == PRECISIONS[0]:
        return True
    if engine in ("auto", "keras") and (device or devices.current()).computes(precision):
        return True
    names = RUNTIMES if engine == "auto" else [engine] if engine in RUNTIMES else []
    found = any(precision in RUNTIMES[name].precisions and is_installed(name) for name in names)
    return found and (precision != "bfloat16" or _openvino_has_bfloat16())


@functools.cache
def _openvino_has_bfloat16() -> bool:
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def is_installed(name: str) -> bool:
    """Says whether the packages of an engine are there.

    Args:
        name: An engine other than ``"auto"``.
    """
    return name not in RUNTIMES or dependencies.is_installed(*RUNTIMES[name].modules)
