"""JSON in and out, with bounds: how deep, how many lists, which numbers."""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from resfit.serving.problems import Problem, malformed
from resfit.serving.settings import Settings

_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\Z)', re.DOTALL)
_NO_BRACKET = bytes(set(range(256)) - set(b"[]{}"))
_PIECE = 1 << 20


def check_nesting(body: bytes, settings: Settings) -> None:
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
            raise malformed(f"JSON may be nested at most {settings.max_json_depth} levels deep.")
        depth, items = int(levels[-1]), items + int(opens.sum())
    if items > settings.max_json_items:
        raise Problem(413, f"JSON may have at most {settings.max_json_items} lists and objects. Received: {items}.")


def parse(body: bytes, settings: Settings) -> Any:
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


def parse_object(body: bytes, settings: Settings) -> dict[str, Any]:
    """Parses a JSON object.

    Raises:
        Problem: It is something else.
    """
    value = parse(body, settings)
    if not isinstance(value, dict):
        raise malformed("the body must be a JSON object.")
    return value


def dump(value: Any) -> bytes:
    """Returns a value as JSON in ASCII."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()


def error(text: str) -> bytes:
    """Returns an error as all protocols here write it."""
    return dump({"error": text})


def numbers(value: Any, channels: int, settings: Settings, what: str) -> np.ndarray:
    """Returns nested lists of numbers as an image.

    Args:
        value: ``height`` lists of ``width`` lists of ``channels`` numbers.
        channels: How many channels the network takes.
        settings: The bounds.
        what: How the image is called in an error.

    Returns:
        float32 array ``(height, width, channels)``.

    Raises:
        Problem: It is something else.
    """
    try:
        array = np.array(value)
        if array.dtype.kind not in "iuf":
            raise ValueError
        with np.errstate(over="ignore"):
            image = array.astype(np.float32)
    except (ValueError, TypeError, OverflowError):
        raise malformed(f"{what} must be nested lists of numbers, all of one length at each level.") from None
    return check_image(image, channels, settings, what)


def check_image(image: np.ndarray, channels: int, settings: Settings, what: str) -> np.ndarray:
    """Makes sure that an array is an image.

    Raises:
        Problem: It is not.
    """
    if image.ndim != 3 or image.shape[-1] != channels or 0 in image.shape:
        raise malformed(f"{what} must have the shape (height, width, {channels}). Received: {list(image.shape)}.")
    if image.shape[0] * image.shape[1] > settings.max_pixels:
        raise malformed(
            f"{what} may have at most {settings.max_pixels} pixels. Received: {image.shape[0]}x{image.shape[1]}."
        )
    if image.dtype.kind == "f" and not np.isfinite(image).all():
        raise malformed(f"{what} must have finite values.")
    return image


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


def is_base64(value: Any) -> bool:
    """Says whether a JSON value stands for bytes: ``{"b64": "..."}``."""
    return isinstance(value, dict) and value.keys() == {"b64"} and isinstance(value["b64"], str)


def decode_base64(text: str, what: str) -> bytes:
    """Returns the bytes of base64, padded or not.

    Raises:
        Problem: It is no base64.
    """
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise malformed(f"{what} must be base64.") from None
