"""The table of engines: what a runtime needs, how a network is converted for it, and the class that runs it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import numpy as np

from resfit.registries import Registry


class Unsupported(Exception):
    """The network has a layer that the lowering does not know."""


class Engine(Protocol):
    """A network that is ready to run."""

    @property
    def name(self) -> str:
        """Which runtime it is."""
        ...

    @property
    def precision(self) -> str:
        """Number format of its arithmetic, one of :data:`resfit.engines.PRECISIONS`."""
        ...

    def run(self, images: Any) -> np.ndarray:
        """Runs one batch.

        Args:
            images: Array of shape ``(batch, height, width, channels)``, RGB, values 0..255, any dtype. Not changed.

        Returns:
            A new float32 array of shape ``(batch, ...)``, as the network's output.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Runtime:
    """A runtime other than Keras.

    Attributes:
        name: What ``engine=`` calls it.
        engine: Makes a :class:`resfit.engines.Engine` of a folder with a converted network; takes ``precision`` and
            ``threads`` by keyword.
        convert: Writes a Keras model into an empty folder and returns a mapping of how. Without a ``quantize``, it
            takes images to calibrate int8 on as its third argument.
        quantize: Writes an int8 version of a converted network: source folder, empty folder, samples, and ``careful``
            by keyword.
        modules: What must be installed beside the base.
        packages: Distributions whose versions decide how a network comes out.
        quantizer: Those that decide how int8 comes out.
        precisions: What it can compute in.
    """

    name: str
    engine: Callable[..., Any]
    convert: Callable[..., dict[str, Any]]
    quantize: Callable[..., None] | None = None
    modules: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    quantizer: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ("float32",)


#: Every runtime by its name.
RUNTIMES: Registry[Runtime] = Registry("an engine")

_Engine = TypeVar("_Engine", bound=Callable[..., Any])


def register_engine(
    name: str, *, convert: Callable[..., dict[str, Any]], **options: Any
) -> Callable[[_Engine], _Engine]:
    """Registers the decorated class as the engine of a runtime.

    Args:
        name: What ``engine=`` calls it.
        convert: Writes a Keras model into an empty folder.
        **options: Other fields of :class:`Runtime`.

    Example:
        >>> @register_engine("mine", convert=save_for_mine, packages=("mine",))  # doctest: +SKIP
        ... class MyEngine:
        ...     def __init__(self, folder, *, precision, threads): ...
    """

    def register(engine: _Engine) -> _Engine:
        RUNTIMES.add(name, Runtime(name, engine, convert, **options))
        return engine

    return register
