"""How numbers stand in sentences."""

from __future__ import annotations


def counted(number: int, singular: str, plural: str = "") -> str:
    """Returns a number with its noun: ``counted(1, "pair")`` is ``"1 pair"``, ``counted(2, "pair")`` ``"2 pairs"``.

    Args:
        number: How many.
        singular: The noun, with what belongs to it.
        plural: The same for several; an s behind the noun by default.
    """
    return f"{number} {singular if number == 1 else plural or singular + 's'}"
