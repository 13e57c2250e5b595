"""The wire format of protocol buffers, as far as readers need it: numbered fields, without the library."""

from __future__ import annotations

from collections.abc import Iterator

Field = int | memoryview

_MOST_VARINT = 10


def varint(data: memoryview, at: int) -> tuple[int, int]:
    """Reads a number of variable length.

    Args:
        data: The bytes.
        at: Where it begins.

    Returns:
        The number, in [0, 2**64), and the place behind it.

    Raises:
        ValueError: The bytes end before it does, or it is too long.
    """
    value = 0
    for count in range(_MOST_VARINT):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << 7 * count
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at
    raise ValueError("a number of variable length that does not end")


def fields(message: memoryview) -> Iterator[tuple[int, Field]]:
    """Yields number and value of every field of a message, in the order of the bytes.

    Args:
        message: The bytes of one message.

    Yields:
        An int for numbers (of 32 and 64 bits too, as they lie there), a view of the bytes for everything else.

    Raises:
        ValueError: The bytes are no message.
    """
    at, end = 0, len(message)
    while at < end:
        tag, at = varint(message, at)
        number, kind = tag >> 3, tag & 7
        if number < 1:
            raise ValueError("a field without a number")
        if kind == 0:
            value, at = varint(message, at)
            yield number, value
            continue
        if kind == 2:
            length, at = varint(message, at)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError(f"a field of the unknown kind {kind}")
        if length > end - at:
            raise ValueError("a field that is longer than its message")
        piece = message[at : at + length]
        at += length
        yield number, int.from_bytes(piece, "little") if kind in (1, 5) else piece


def text(value: Field) -> str:
    """Returns a field that is a string.

    Raises:
        ValueError: It is none.
    """
    return str(view(value), "utf-8")


def view(value: Field) -> memoryview:
    """Returns a field that is a string, bytes or a message.

    Raises:
        ValueError: It is a number.
    """
    if isinstance(value, int):
        raise ValueError("a number where bytes belong")
    return value


def number(value: Field) -> int:
    """Returns a field that is a signed number.

    Raises:
        ValueError: It is bytes.
    """
    if not isinstance(value, int):
        raise ValueError("bytes where a number belongs")
    return value - (1 << 64) if value >= 1 << 63 else value
