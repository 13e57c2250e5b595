"""JSON in and out, with bounds: how deep, how many lists, which numbers."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from resfit.serving.problems import Problem, malformed
from resfit.serving.settings import ServerSettings

_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\Z)', re.DOTALL)
_NO_BRACKET = bytes(set(range(256)) - set(b"[]{}"))
_PIECE = 1 << 20
_FEW = 1024  # values of an answer that are written at once


def check_nesting(body: bytes, settings: ServerSettings) -> None:
    """Makes sure that JSON may be parsed without using up the stack or the memory.

    Args:
        body: The document.
        settings: The bounds.

    Raises:
        Problem: It is nested too deep, or has too many lists and objects (400).
    """
    brackets = (_STRING.sub(b"", body) if b'"' in body else body).translate(None, _NO_BRACKET)
    depth = items = 0
    for start in range(0, len(brackets), _PIECE):
        piece = np.frombuffer(brackets[start : start + _PIECE], np.uint8)
        opens = (piece == ord("[")) | (piece == ord("{"))
        steps = np.where(opens, 1, -1)
        levels = depth + np.cumsum(steps)
        if levels.max(initial=0) > settings.max_json_depth:
            raise malformed(too_deep(settings))
        depth, items = int(levels[-1]), items + int(opens.sum())
    if items > settings.max_json_items:
        raise Problem(413, f"JSON may have at most {settings.max_json_items} lists and objects. Received: {items}.")


def too_deep(settings: ServerSettings) -> str:
    """Returns the error of JSON that is nested too deep."""
    return f"JSON may be nested at most {settings.max_json_depth} levels deep."


def parse(body: bytes, settings: ServerSettings) -> Any:
    """Parses JSON.

    Raises:
        Problem: It is no JSON, or is out of the bounds.
    """
    check_nesting(body, settings)
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        position = f" at offset: {error.pos}" if isinstance(error, json.JSONDecodeError) else ""
        raise malformed(f"JSON Parse error: Invalid value.{position}") from error


def dump(value: Any) -> bytes:
    """Returns a value as JSON in ASCII, made in pieces between which other threads go on."""
    return "".join(_pieces(value)).encode()


def _pieces(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        sign = "{"
        for key, one in value.items():
            yield f"{sign}{json.dumps(str(key))}:"
            yield from _pieces(one)
            sign = ","
        yield "}" if value else "{}"
    elif isinstance(value, list) and any(isinstance(one, dict | list) for one in value):
        sign = "["
        for one in value:
            yield sign
            yield from _pieces(one)
            sign = ","
        yield "]"
    elif isinstance(value, list) and len(value) > _FEW:
        for start in range(0, len(value), _FEW):
            yield ("," if start else "[") + _dumped(value[start : start + _FEW])[1:-1]
        yield "]"
    else:
        yield _dumped(value)


def _dumped(value: Any) -> str:
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def error(text: str) -> bytes:
    """Returns an error as all protocols here write it."""
    return dump({"error": text})


def check_image(image: np.ndarray, channels: int, settings: ServerSettings, what: str) -> np.ndarray:
    """Makes sure that an array is an image, and returns it as the network can take it: floats have 32 bits at most.

    Raises:
        Problem: It is not.
    """
    check_sides(image.shape, channels, settings, what)
    if image.dtype.kind == "f":
        if image.dtype.itemsize > 4:  # what is finite here may not be so there
            with np.errstate(over="ignore"):
                image = image.astype(np.float32)
        if not np.isfinite(image).all():
            raise malformed(f"{what} must have finite values.")
    return image


def check_sides(sides: Sequence[int], channels: int, settings: ServerSettings, what: str) -> None:
    """Makes sure that a shape is that of an image.

    Raises:
        Problem: It is not.
    """
    if len(sides) != 3 or sides[-1] != channels or 0 in sides:
        raise malformed(f"{what} must have the shape (height, width, {channels}). Received: {list(sides)}.")
    if sides[0] * sides[1] > settings.max_pixels:
        raise malformed(f"{what} may have at most {settings.max_pixels} pixels. Received: {sides[0]}x{sides[1]}.")


def shape(value: Any, most: int, what: str) -> tuple[int, ...]:
    """Returns the shape of a tensor.

    Args:
        value: What the request says.
        most: The most elements that it may have.
        what: How the tensor is called in an error.

    Raises:
        Problem: It is no shape, or too large a one.
    """
    if not isinstance(value, Sequence) or isinstance(value, str) or not 1 <= len(value) <= 8:
        raise malformed(f"the shape of {what} must be a list of 1 to 8 numbers.")
    if any(type(side) is not int or side < 0 for side in value):
        raise malformed(f"the shape of {what} must have whole numbers of at least 0. Received: {value!r:.100}.")
    if math.prod(value) > most:
        raise Problem(413, f"{what} is too large: at most {most} elements.")
    return tuple(value)
