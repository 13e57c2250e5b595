"""The table of naming conventions, and what each of them makes of a source: arrays under canonical names."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np

from resfit.preprocessing import InputSpec
from resfit.registries import Registry
from resfit.weights.formats.base import Tensors
from resfit.weights.heads import End


@dataclasses.dataclass(frozen=True)
class Translation:
    """Tensors of a source under canonical names.

    Attributes:
        convention: How the source names them.
        prefix: What stood before the names.
        arrays: Arrays by canonical name, axes as Keras has them.
        facts: Fields of the architecture that the names tell, beside the shapes.
        leftover: Tensors that neither a rule nor the list of things left out knows, by the source's name.
        left_out: What was left out and why, one sentence each.
        remarks: Choices that were made, one sentence each.
        input_spec: The input contract of networks of this convention, where it has one of its own.
        attention: Weights of CLIP's attention pooling (:mod:`resfit.weights.attention`), where there is one.
        beside: Tensors that stand beside the network, in a larger one: those of ``leftover`` that can be no part of
            the network itself.
        habits: Fields of the architecture that networks in such a place usually have, and why; the tensors do not tell.
        end: What follows the body, where the source's graph says it.
        assumed: Those of ``facts`` that are not told by the source but done by the program that it is named after.
        program: What that program is called in sentences.
        counts_batches: Whether its batch norms have counters. torch's own do; frozen ones have none.
        identify: Says what network the arrays are, where it is more than a classifier:
            takes overrides by keyword and returns an :class:`resfit.weights.identify.Identified`.
    """

    convention: str
    prefix: str
    arrays: Mapping[str, np.ndarray]
    facts: Mapping[str, Any]
    leftover: Mapping[str, np.ndarray]
    left_out: tuple[str, ...]
    remarks: tuple[str, ...]
    input_spec: InputSpec | None = None
    attention: Mapping[str, np.ndarray] | None = None
    beside: tuple[str, ...] = ()
    habits: Mapping[str, tuple[Any, str]] = dataclasses.field(default_factory=dict)
    end: End | None = None
    assumed: tuple[str, ...] = ()
    program: str = ""
    counts_batches: bool = False
    identify: Callable[..., Any] | None = None


@dataclasses.dataclass(frozen=True)
class NamingConvention:
    """How a program names the weights of its networks, or how its graphs are read.

    Attributes:
        name: What it is called.
        translate: Brings the arrays of a source to canonical names. Takes the :class:`Tensors`, and by keyword
            ``prefix``, ``averaged`` and ``ignore`` as :func:`resfit.weights.load.read_source` does.
        recognises: Whether a source is of this kind, by its graph, its configuration or the names of its arrays.
        order: Conventions are asked in this order. Those of graphs come first, those that recognise names loosely last.
        is_larger: Whether it reads networks that are more than a body and a classifier, such as detectors. It is not
            asked where the body alone is wanted. Its function takes every argument of reading by keyword, and returns
            what :func:`resfit.weights.load.read_source` returns, in place of a translation.
    """

    name: str
    translate: Callable[..., Any]
    recognises: Callable[[Tensors], bool]
    order: int = 50
    is_larger: bool = False


_CONVENTIONS: Registry[NamingConvention] = Registry("a naming convention", __name__.rpartition(".")[0])
_Translate = TypeVar("_Translate", bound=Callable[..., Any])


def register_convention(
    name: str, *, recognises: Callable[[Tensors], bool], **options: Any
) -> Callable[[_Translate], _Translate]:
    """Registers the decorated function, which brings the arrays of a source to canonical names.

    Args:
        name: What it is called.
        recognises: Whether a source is of this kind.
        **options: Other fields of :class:`NamingConvention`.
    """

    def register(translate: _Translate) -> _Translate:
        _CONVENTIONS.add(name, NamingConvention(name, translate, recognises, **options))
        return translate

    return register


def all_conventions() -> tuple[NamingConvention, ...]:
    """Returns every convention, in the order in which they are asked."""
    return tuple(sorted(_CONVENTIONS.values(), key=lambda convention: (convention.order, convention.name)))


def find_convention(tensors: Tensors, *, body_only: bool = False) -> NamingConvention | None:
    """Returns the convention of a source, or None.

    Args:
        tensors: What a reader returned.
        body_only: Whether networks that are more than a body and a classifier are none.
    """
    asked = (convention for convention in all_conventions() if not (body_only and convention.is_larger))
    return next((convention for convention in asked if convention.recognises(tensors)), None)


def remove_convention(name: str) -> None:
    """Takes a convention out of the table again.

    Args:
        name: Its name.
    """
    _CONVENTIONS.remove(name)
