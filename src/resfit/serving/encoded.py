"""Base64 in requests, in the forms that clients write it, decoded in pieces: no step is long, nothing is held twice."""

from __future__ import annotations

import binascii
import json
import re

from resfit.serving.problems import Problem, malformed

#: Bytes that are decoded at once: other threads go on between two pieces.
PIECE = 1 << 18
_LONGEST_ESCAPE = 6
_FOREIGN = re.compile(rb"[^A-Za-z0-9+/=]")
_URL_SAFE = bytes.maketrans(b"-_", b"+/")
_DATA_URL = re.compile(rb"data:([^,]{0,200}),", re.IGNORECASE)
_OTHER_URL = re.compile(rb"(?:[a-z][a-z0-9+.]{1,20}:(?:\\?/){2}|blob:|file:)", re.IGNORECASE)
_PRINTED = re.compile(rb"b(?:'|\\\")")


def decode(data: bytes | bytearray, start: int, end: int, what: str) -> bytes:
    """Returns the bytes that base64 in a JSON string stands for.

    The alphabet may be the usual one or the one for URLs, padded or not, with line breaks (``\\n``, ``\\r\\n``) and
    with JSON's escapes; a ``data:`` URL of base64 may stand before it.

    Args:
        data: The document.
        start: Where the string begins, behind its quotation mark.
        end: Where it ends.
        what: How it is called in an error.

    Raises:
        Problem: It is something else (400), with the cause.
    """
    start = _begin(data, start, end, what)
    parts: list[bytes] = []
    rest = b""
    alphabets = set()
    while start < end:
        stop = _cut(data, start, min(start + PIECE, end), end)
        text = _unescaped(bytes(data[start:stop]), what).translate(None, b"\r\n")
        start = stop
        if b"-" in text or b"_" in text:
            alphabets.add("url")
        if b"+" in text or b"/" in text:
            alphabets.add("usual")
        if len(alphabets) > 1:
            raise _refused(what, "it mixes the usual alphabet (+ and /) with that for URLs (- and _)")
        text = rest + text.translate(_URL_SAFE)
        whole = max(0, (len(text) - 1) // 4 * 4)  # the last four wait: they may be the padded end
        if b"=" in text[:whole]:
            raise _refused(what, "it goes on behind its padding '='")
        parts.append(_strict(text[:whole], what))
        rest = text[whole:]
    if len(rest.rstrip(b"=")) % 4 == 1:
        raise _refused(what, "its length is that of no base64: a character is missing, or there is one too many")
    parts.append(_strict(rest + b"=" * (-len(rest) % 4), what))
    return b"".join(parts)


def _begin(data: bytes | bytearray, start: int, end: int, what: str) -> int:
    """Returns where base64 begins in a string, behind the head of a data URL."""
    url = _DATA_URL.match(data, start, end)
    if url is not None:
        if not url[1].replace(b"\\/", b"/").lower().endswith(b";base64"):
            raise _refused(what, "a data: URL must say ';base64' before its comma")
        return url.end()
    if _OTHER_URL.match(data, start, end):
        raise _refused(what, "it is a URL, and a URL is never fetched: send the file's bytes")
    if _PRINTED.match(data, start, end):
        raise _refused(what, "it begins with b' as Python prints bytes: call .decode() on them")
    return start


def _cut(data: bytes | bytearray, start: int, stop: int, end: int) -> int:
    """Returns a place to cut a string at: near ``stop``, and not within an escape."""
    if stop == end:
        return stop
    escape = data.rfind(b"\\", max(start, stop - _LONGEST_ESCAPE), stop)
    return stop if escape <= start else escape


def _unescaped(text: bytes, what: str) -> bytes:
    if b"\\" not in text:
        return text
    try:
        return str(json.loads(b'"' + text + b'"')).encode("ascii")
    except ValueError:
        raise _refused(what, "it holds characters that are no ASCII, or no escapes of JSON") from None


def _strict(text: bytes, what: str) -> bytes:
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except binascii.Error:
        foreign = _FOREIGN.search(text)
        if foreign is not None:
            raise _refused(what, f"it holds the character {foreign[0].decode('latin-1')!r}") from None
        raise _refused(what, "its padding '=' is not where it ends") from None


def _refused(what: str, cause: str) -> Problem:
    return malformed(f"{what} must be base64: {cause}.")
