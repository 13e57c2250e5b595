"""Sentences about what a source leaves open: what is assumed, why, and the argument that changes it."""

from __future__ import annotations


def sentence(what: str, why: str, *arguments: str) -> str:
    """Returns the sentence of one assumption.

    Args:
        what: What is assumed, such as ``"activation='relu'"``.
        why: Why.
        *arguments: Arguments of :func:`resfit.load` that change it. Those of several fields that ``what`` lists with
            their names are not repeated.
    """
    if len(arguments) > 2 and all(f"{name}=" in what for name in arguments[1:]):
        first = "" if f"{arguments[0]}=" in what else f"{arguments[0]}= or "
        return f"{what} ({why}; {first}arguments of these names change it)"
    named = " or ".join(name if "=" in name else f"{name}=" for name in arguments)
    return f"{what} ({why}; {named} changes it)"
