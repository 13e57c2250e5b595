"""JSON of requests, read from front to back: what a protocol expects becomes bytes and arrays, the rest nothing.

``json.loads`` makes an object of each value before anybody can look at it: a body of 32 MB takes gigabytes, and no
other thread runs meanwhile. Here whoever reads says what is to come. The first value of another kind ends the reading;
numbers go in pieces into an array, strings of base64 into bytes. What is made is at most ten times as large as the
document.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from resfit.serving import encoded, wire
from resfit.serving.problems import Problem, malformed
from resfit.serving.settings import ServerSettings

#: Bytes that are worked on at once: milliseconds, after which other threads go on.
PIECE = 1 << 15
#: Most bytes of values that are no images: names, shapes, parameters; each, and all together.
MOST_SMALL = 1 << 16
_MOST_KEYS = 64
_WHITE = re.compile(rb"[ \t\n\r]*+")
_OPENING = re.compile(rb"\[[ \t\n\r\[]*+")

# what a byte is in a list of numbers
_OTHER, _NUMBER, _BLANK, _OPEN, _CLOSE, _COMMA = range(6)
_KINDS = np.zeros(256, np.uint8)
for _kind, _bytes in (
    (_NUMBER, b"0123456789+-.eE"),
    (_BLANK, b" \t\n\r"),
    (_OPEN, b"["),
    (_CLOSE, b"]"),
    (_COMMA, b","),
):
    _KINDS[list(_bytes)] = _kind


class Document:
    """A JSON document in UTF-8 and a place in it.

    Args:
        body: The document.
        settings: The bounds.
        end: Where it ends, if not with ``body``.
    """

    def __init__(self, body: bytes | bytearray, settings: ServerSettings, end: int | None = None):
        self._body, self._settings = body, settings
        self._end = len(body) if end is None else end
        self._at = 0
        self._small = MOST_SMALL

    def peek(self) -> str:
        """Returns the first character of the next value or sign; empty at the end."""
        while self._at < self._end:
            limit = min(self._at + PIECE, self._end)
            found = _WHITE.match(self._body, self._at, limit)
            assert found is not None
            self._at = found.end()
            if self._at < limit:
                return chr(self._body[self._at])
        return ""

    def members(self, what: str = "the body") -> Iterator[str]:
        """Yields the keys of an object; whoever takes one reads its value before the next.

        Args:
            what: How the object is called in an error.

        Raises:
            Problem: It is no object, or has a key twice.
        """
        if self.peek() != "{":
            self.value()
            raise malformed(f"{what} must be a JSON object.")
        self._at += 1
        seen: set[str] = set()
        if self._next("}"):
            return
        while True:
            if self.peek() != '"':
                raise self._invalid()
            key = str(self.value())
            if key in seen:
                raise malformed(f"an object may have each key once. Received twice: {key[:80]!r}.")
            seen.add(key)
            if len(seen) > _MOST_KEYS:
                raise malformed(f"an object may have at most {_MOST_KEYS} keys.")
            self._expect(":")
            yield key
            if self._next("}"):
                return
            self._expect(",")

    def elements(self) -> Iterator[int]:
        """Yields the positions in a list; whoever takes one reads its value before the next."""
        self._expect("[")
        if self._next("]"):
            return
        position = 0
        while True:
            yield position
            position += 1
            if self._next("]"):
                return
            self._expect(",")

    def leaves(self) -> Iterator[int]:
        """Yields the positions of what stands in a list, or in the lists in it; whoever takes one reads its value."""
        depth = position = 0
        while True:
            while self._next("["):
                depth += 1
                if depth > self._settings.max_json_depth:
                    raise malformed(wire.too_deep(self._settings))
            yield position
            position += 1
            while self._next("]"):
                depth -= 1
                if not depth:
                    return
            self._expect(",")

    def holds_strings(self) -> bool:
        """Whether the first value in the next list, or in the lists in it, is a string."""
        return self._first_in_list() == ord('"')

    def is_empty_list(self) -> bool:
        """Whether the next value is a list of nothing, or of empty lists."""
        return self._first_in_list() == ord("]")

    def _first_in_list(self) -> int:
        self.peek()
        found = _OPENING.match(self._body, self._at, min(self._at + PIECE, self._end))
        return self._body[found.end()] if found is not None and found.end() < self._end else -1

    def value(self) -> Any:
        """Returns the next value, whatever it is, if it is small.

        Raises:
            Problem: It is large (413), nested too deep or no JSON (400).
        """
        self.peek()
        limit = min(self._at + MOST_SMALL, self._end)
        try:
            text = codecs.getincrementaldecoder("utf-8")().decode(self._body[self._at : limit], limit == self._end)
            value, length = json.JSONDecoder().raw_decode(text)
        except RecursionError:
            raise malformed(wire.too_deep(self._settings)) from None
        except ValueError as error:
            if limit < self._end and not isinstance(error, UnicodeError):
                raise self._too_large() from None
            self._at += error.pos if isinstance(error, json.JSONDecodeError) else 0
            raise self._invalid() from None
        size = len(text[:length].encode())
        wire.check_nesting(bytes(self._body[self._at : self._at + size]), self._settings)
        self._at += size
        self._small -= size
        if self._small < 0:
            raise self._too_large()
        return value

    def base64(self, what: str) -> bytes:
        """Returns the bytes that the next value stands for, a string of base64.

        Args:
            what: How it is called in an error.
        """
        if self.peek() != '"':
            raise malformed(f"{what} must be a string of base64.")
        start = self._at + 1
        end, position = -1, start
        while end < 0 and position < self._end:
            end = self._body.find(b'"', position, min(position + encoded.PIECE, self._end))
            position += encoded.PIECE
        if end < 0:
            raise self._invalid()
        if self._body[end - 1] == ord("\\"):
            raise malformed(f"{what} must be base64: it holds the character '\\\\' or '\"'.")
        self._at = end + 1
        return encoded.decode(self._body, start, end, what)

    def numbers(self, kind: np.dtype, what: str, most: int) -> tuple[np.ndarray, tuple[int, ...]]:
        """Returns the next value, nested lists of numbers that are of one length at each level.

        Args:
            kind: What holds each of them exactly, or rounded where it is a float.
            what: How they are called in an error.
            most: How many they may be.

        Returns:
            The numbers in a row, and the lengths of the lists, the outermost first.

        Raises:
            Problem: They are something else, or more.
        """
        self.peek()
        opening = _OPENING.match(self._body, self._at, min(self._at + PIECE, self._end))
        if opening is None:
            raise malformed(f"{what} must be nested lists of numbers, all of one length at each level.")
        levels = opening[0].count(b"[")
        if levels > self._settings.max_json_depth:
            raise malformed(wire.too_deep(self._settings))
        lists = _Lists(levels, what)
        parts: list[np.ndarray] = []
        count = 0
        while not lists.is_closed:
            limit = min(self._at + PIECE, self._end)
            piece = np.frombuffer(self._body, np.uint8, limit - self._at, self._at)
            size, text = lists.read(piece, is_last=limit == self._end)
            try:
                values = json.loads(b"[" + text + b"]")
            except ValueError:
                raise malformed(f"{what} must be nested lists of numbers: JSON Parse error.") from None
            if not values and not (lists.is_closed and not parts):
                raise malformed(f"{what} must be nested lists of numbers: one is missing.")
            count += len(values)
            if count > most:
                raise Problem(413, f"{what} has more than the {most} numbers that are possible here.")
            if values:
                parts.append(held(np.array(values), kind, what))
            self._at += size
        joined = np.concatenate(parts) if parts else np.zeros(0, kind)
        return joined, lists.shape if parts else (0,)

    def finish(self) -> None:
        """Makes sure that nothing follows."""
        if self.peek():
            raise self._invalid()

    def _next(self, sign: str) -> bool:
        """Passes a sign if it is next, and says whether it was."""
        is_next = self.peek() == sign
        self._at += is_next
        return is_next

    def _expect(self, sign: str) -> None:
        if not self._next(sign):
            raise self._invalid()

    def _invalid(self) -> Problem:
        return malformed(f"JSON Parse error: Invalid value. at offset: {self._at}")

    def _too_large(self) -> Problem:
        return Problem(413, f"what is no image may take at most {MOST_SMALL} bytes of JSON, all together.")


class _Lists:
    """How nested lists of numbers go on from piece to piece: at which level, and how long they are.

    Args:
        levels: How deep the first number lies; all the others lie as deep.
        what: How they are called in an error.
    """

    def __init__(self, levels: int, what: str):
        self._levels, self._what = levels, what
        self._depth = 0
        self._lengths = [0] * levels  # commas in a list of each level
        self._commas = [0] * levels  # those in the list that is open
        self._known = [False] * levels
        self.is_closed = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the lists, the outermost first."""
        return tuple(commas + 1 for commas in self._lengths)

    def read(self, piece: np.ndarray, is_last: bool) -> tuple[int, bytes]:
        """Goes through a piece up to its last comma, or to where the lists end.

        Returns:
            How many bytes that are, and the numbers in them with commas between.
        """
        kinds = _KINDS[piece]
        depths = self._depth + np.cumsum((kinds == _OPEN).astype(np.int32) - (kinds == _CLOSE))
        ends = np.flatnonzero(depths <= 0)
        other = np.flatnonzero(kinds == _OTHER)
        size = int(ends[0]) + 1 if ends.size else piece.size
        if other.size and other[0] < size:
            raise self._refused(chr(piece[other[0]]))
        if ends.size:
            self.is_closed = True
        else:
            commas = np.flatnonzero(kinds == _COMMA)
            if is_last or not commas.size:
                raise malformed(f"{self._what} must be nested lists of numbers: JSON Parse error: they do not end.")
            size = int(commas[-1]) + 1
        kinds, depths = kinds[:size], depths[:size]
        if depths.max() > self._levels or (depths[kinds == _NUMBER] != self._levels).any():
            raise self._uneven()
        self._count(kinds, depths)
        self._depth = int(depths[-1])
        text = np.where((kinds == _OPEN) | (kinds == _CLOSE), np.uint8(ord(" ")), piece[:size])
        return size, (text if self.is_closed else text[:-1]).tobytes()

    def _count(self, kinds: np.ndarray, depths: np.ndarray) -> None:
        """Compares the lengths of the lists that end here with those before."""
        signs = kinds >= _CLOSE
        is_comma, depths = kinds[signs] == _COMMA, depths[signs]
        for level in range(1, self._levels + 1):
            own = is_comma & (depths == level)
            counts = np.cumsum(own)
            closed = counts[~is_comma & (depths == level - 1)]
            before = self._commas[level - 1]
            if closed.size:
                lengths = np.diff(closed, prepend=-before)
                if not self._known[level - 1]:
                    self._lengths[level - 1], self._known[level - 1] = int(lengths[0]), True
                if (lengths != self._lengths[level - 1]).any():
                    raise self._uneven()
                self._commas[level - 1] = int(counts[-1] - closed[-1])
            elif counts.size:
                self._commas[level - 1] = before + int(counts[-1])

    def _refused(self, character: str) -> Problem:
        if character in "NI":
            return malformed(f"{self._what} must have finite values.")
        kind = {'"': "a string", "{": "an object", "t": "true", "f": "false", "n": "null"}.get(character, "no number")
        return malformed(
            f"{self._what} must be nested lists of numbers, all of one length at each level. Received: {kind} in them."
        )

    def _uneven(self) -> Problem:
        return malformed(f"{self._what} must be nested lists of numbers, all of one length at each level.")


def held(values: np.ndarray, kind: np.dtype, what: str) -> np.ndarray:
    """Returns numbers as another type that can hold them.

    Raises:
        Problem: It cannot hold one of them (400).
    """
    if values.dtype.kind in "iuf":
        if kind.kind == "f":
            with np.errstate(over="ignore"):
                return values.astype(kind)
        bounds = np.iinfo(kind)
        # as floats these are exact, or one above the greatest; the comparison of integers is exact too
        fits = (values >= bounds.min) & (values <= bounds.max)
        if values.dtype.kind == "f":
            fits = (values >= float(bounds.min)) & (values < float(bounds.max) + 1) & (values == np.rint(values))
        if fits.all():
            return values.astype(kind)
    raise malformed(f"{what} must be a list of numbers that {kind.name.upper()} can hold, flat or nested evenly.")
