"""Bodies in gzip or deflate, unpacked within a bound."""

from __future__ import annotations

import zlib

from resfit.serving.problems import Problem, malformed

#: Content codings that are unpacked.
CODINGS = ("gzip", "deflate")
_PIECE = 1 << 16
_MOST_MEMBERS = 16
_GZIP, _ZLIB, _RAW = 31, 15, -15


def unpack(data: bytes | bytearray, coding: str, most: int) -> bytearray:
    """Returns what a body holds.

    Args:
        data: The body.
        coding: One of :data:`CODINGS`. ``deflate`` is zlib's format or, as some clients have it, that without its
            head.
        most: How many bytes may come out of it.

    Raises:
        Problem: More comes out (413); it is damaged, or something follows (400).
    """
    bits = _GZIP if coding == "gzip" else _ZLIB if _has_head(data) else _RAW
    unpacker = zlib.decompressobj(bits)
    members = 1
    out = bytearray()
    try:
        for start in range(0, len(data), _PIECE):
            packed = bytes(data[start : start + _PIECE])
            while packed:
                if unpacker.eof:
                    members += 1
                    if coding != "gzip" or members > _MOST_MEMBERS:
                        raise malformed(f"something follows the end of the {coding} body.")
                    unpacker = zlib.decompressobj(bits)
                out += unpacker.decompress(packed, _PIECE)
                if len(out) > most:
                    raise Problem(413, f"a request may have at most {most} bytes, unpacked too.")
                packed = unpacker.unused_data if unpacker.eof else unpacker.unconsumed_tail
        while not unpacker.eof:  # what is left inside
            piece = unpacker.decompress(b"", _PIECE)
            if not piece:
                raise malformed(f"the {coding} body ends in the middle.")
            out += piece
            if len(out) > most:
                raise Problem(413, f"a request may have at most {most} bytes, unpacked too.")
    except zlib.error:
        raise malformed(f"the body is not {coding}, or is damaged.") from None
    return out


def _has_head(data: bytes | bytearray) -> bool:
    """Whether data begin as zlib's format does."""
    return len(data) >= 2 and data[0] & 15 == zlib.DEFLATED and (data[0] << 8 | data[1]) % 31 == 0
