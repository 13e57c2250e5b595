"""Names of classes: which ones every file, table and terminal that they end up in can hold, and tell apart."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from resfit.errors import DataError, ResfitError

# Control characters, halves of a character, line and paragraph separators; and marks that turn the direction of text,
# behind which a name can look like another.
_REFUSED = frozenset({"Cc", "Cs", "Zl", "Zp"})
_TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f")
_SHOWN = 5


def check(
    names: Sequence[str], *, alike: bool = True, controls: bool = True, error: type[ResfitError] = DataError
) -> None:
    """Makes sure that names can be written, read back and told apart.

    Args:
        names: The names.
        alike: As :func:`check_distinct` takes it.
        controls: Whether names with control characters are refused; lone surrogates are in any case.
        error: What is raised.

    Raises:
        ResfitError: They cannot; the names are shown escaped.
    """
    is_bad = is_broken if controls else (lambda name: any(unicodedata.category(letter) == "Cs" for letter in name))
    broken = [name for name in names if is_bad(name)]
    if broken:
        raise error(
            "class names must be text without control characters, line breaks and lone surrogates. Received: "
            f"{_listed(broken)}. Rename these classes."
        )
    check_distinct(names, alike=alike, error=error)


def check_distinct(names: Sequence[str], *, alike: bool = True, error: type[ResfitError] = DataError) -> None:
    """Makes sure that a reader can tell names apart.

    Args:
        names: The names.
        alike: Whether names are refused that differ by case, spaces and the way in which Unicode writes them alone;
            otherwise equal ones are.
        error: What is raised.

    Raises:
        ResfitError: They cannot be told apart.
    """
    known: dict[str, str] = {}
    for name in names:
        key = " ".join(unicodedata.normalize("NFKC", name).casefold().split()) if alike else name
        if key in known:
            rule = "classes must differ by more than case and spaces" if alike else "classes must differ"
            raise error(f"{rule}. Received: {escaped(known[key])} and {escaped(name)}. Rename one.")
        known[key] = name


def is_broken(name: str) -> bool:
    """Says whether a name has characters that are no text: controls, line breaks, halves of a character."""
    return not name.strip() or any(unicodedata.category(letter) in _REFUSED or letter in _TURNING for letter in name)


def escaped(name: str) -> str:
    """Returns a name in quotes, with all that cannot be seen written as escapes.

    Args:
        name: Any text.
    """
    shown = repr(name)
    return shown if not is_broken(name) else ascii(name)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(escaped(name)[:100] for name in names[:_SHOWN]) + more
