"""JSON from untrusted files: read quickly, in bounded memory, or refused with the reason.

Python's own parser has no limits of size, takes ``NaN``, numbers of any length and lone surrogates, and ends deep
nesting with an error of its own.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from pathlib import Path
from typing import Any, NoReturn

#: Most bytes, lists and mappings, values, levels, and digits of a number.
MOST_BYTES, MOST_BRACKETS, MOST_VALUES, MOST_DEPTH, MOST_DIGITS = 1 << 26, 1_000_000, 8_000_000, 100, 40

_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\Z)', re.DOTALL)
_NO_BRACKET = bytes(set(range(256)) - set(b"[]{}"))
_STEPS = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}


def read_file(path: Path, *, most: int = MOST_BYTES) -> bytes:
    """Reads a regular file of bounded size; nothing else is opened, so that a pipe or device cannot block.

    Args:
        path: The file, or a link to it.
        most: Most bytes.

    Raises:
        FileNotFoundError: It is missing.
        OSError: It is no regular file, cannot be read, or is larger.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError("not a regular file")
        if status.st_size > most:
            raise OSError(f"{status.st_size} bytes, more than the {most} that are allowed")
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(f"more than the {most} bytes that are allowed")
    return data


def parse(data: bytes, *, allow_nan: bool = False) -> Any:
    """Returns the value of a document.

    Args:
        data: The document, UTF-8.
        allow_nan: Whether ``NaN`` and infinities, which Python's own writer makes, are read, as ``None``.

    Raises:
        ValueError: It is no JSON, or is out of the bounds of this module.
    """
    if len(data) > MOST_BYTES:
        raise ValueError(f"{len(data)} bytes of JSON, more than the {MOST_BYTES} that are allowed")
    bare = _STRING.sub(b'""', data) if b'"' in data else data
    brackets = bare.translate(None, _NO_BRACKET)
    if len(brackets) > 2 * MOST_BRACKETS or bare.count(b",") > MOST_VALUES:
        raise ValueError("more lists, mappings or values than are allowed")
    depth = 0
    for bracket in brackets:
        depth += _STEPS[bracket]
        if depth > MOST_DEPTH:
            raise ValueError(f"nested more than {MOST_DEPTH} levels deep")
    try:
        return json.loads(
            data.decode("utf-8"),
            parse_int=_whole,
            parse_float=_number,
            parse_constant=(lambda _: None) if allow_nan else _constant,
        )
    except RecursionError:
        raise ValueError(f"nested more than {MOST_DEPTH} levels deep") from None


def without_nan(value: Any) -> Any:
    """Returns a JSON-ready value in which numbers that are none are ``None``, which JSON can say.

    Args:
        value: Mappings, lists and tuples of plain values.
    """
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _whole(text: str) -> int:
    value = _check_digits(text)
    return int(value)


def _number(text: str) -> float:
    value = float(_check_digits(text))
    if not math.isfinite(value):
        raise ValueError(f"a number that is too large: {text[:40]}")
    return value


def _check_digits(text: str) -> str:
    if len(text) > MOST_DIGITS:
        raise ValueError(f"a number of {len(text)} characters")
    return text


def _constant(text: str) -> NoReturn:
    raise ValueError(f"{text}, which is no number")
