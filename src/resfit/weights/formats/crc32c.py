"""CRC-32C (Castagnoli), the checksum of TensorFlow's files, at the speed of numpy.

The checksum is linear over GF(2), so that parts of the data are summed side by side and put together afterwards.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

import numpy as np

_POLYNOMIAL = 0x82F63B78
_MASK_DELTA = 0xA282EAD8
_ALL = 0xFFFFFFFF

# Bytes that are summed at a time. A piece is copied, hence not the whole.
_PIECE = 1 << 22
# From this length on, numpy is faster than a loop.
_SHORT = 512
# How many sums run side by side, from which length on.
_LANES = ((1 << 20, 1 << 13), (1 << 14, 1 << 10), (0, 1 << 6))
_BITS = np.arange(32, dtype=np.uint32)
_LOW = 0 if sys.byteorder == "little" else 1


def crc32c(data: Any) -> int:
    """Returns the checksum of bytes.

    Args:
        data: Bytes, or anything with a buffer of them.
    """
    left = np.frombuffer(data, np.uint8)
    state = _ALL
    while left.size:
        piece, left = left[:_PIECE], left[_PIECE:]
        state = _advanced(state, piece.size) ^ _linear(piece)
    return state ^ _ALL


def masked(checksum: int) -> int:
    """Returns a checksum as TensorFlow stores it: rotated, and moved by a constant.

    Args:
        checksum: What :func:`crc32c` returned.
    """
    return ((checksum >> 15 | checksum << 17) + _MASK_DELTA) & _ALL


def _linear(data: np.ndarray) -> int:
    """The checksum from a state of zero, without the final inversion."""
    if data.size < _SHORT:
        table, state = _byte_table(), 0
        for byte in data.tobytes():
            state = state >> 8 ^ table[(state ^ byte) & 0xFF]
        return state
    lanes = next(count for size, count in _LANES if data.size >= size)
    steps = -(-data.size // (4 * lanes))
    padded = np.zeros(4 * lanes * steps, np.uint8)
    padded[padded.size - data.size :] = data  # leading zeros do not change a state of zero
    low, high = _wide_tables(lanes)
    # lane number n sums the words n, n + lanes, n + 2 * lanes, ...; a state moves over all lanes at each step
    states = np.zeros(lanes, np.uint32)
    halves = states.view(np.uint16).reshape(lanes, 2)
    index, moved, rest = np.empty(lanes, np.intp), np.empty(lanes, np.uint32), np.empty(lanes, np.uint32)
    for words in padded.view("<u4").reshape(steps, lanes):
        index[:] = halves[:, _LOW]
        np.take(low, index, out=moved, mode="clip")
        index[:] = halves[:, 1 - _LOW]
        np.take(high, index, out=rest, mode="clip")
        np.bitwise_xor(moved, rest, out=moved)
        np.bitwise_xor(moved, words, out=states)
    apart = 4
    while states.size > 1:
        states = _apply(_advance(apart), states[0::2]) ^ states[1::2]
        apart *= 2
    return _advanced(int(states[0]), 4)


def _advanced(state: int, count: int) -> int:
    """The state after so many zero bytes."""
    return int(_apply(_advance(count), np.array([state], np.uint32))[0])


@functools.lru_cache(maxsize=256)
def _advance(count: int) -> np.ndarray:
    """The step over so many zero bytes as an operator: what becomes of each of the 32 bits."""
    operator = np.uint32(1) << _BITS
    power = _step()
    while count:
        if count & 1:
            operator = _apply(power, operator)
        power = _apply(power, power)
        count >>= 1
    return operator


@functools.cache
def _step() -> np.ndarray:
    table = _byte_table()
    return np.array([(1 << bit) >> 8 ^ table[(1 << bit) & 0xFF] for bit in range(32)], np.uint32)


def _apply(operator: np.ndarray, states: np.ndarray) -> np.ndarray:
    return np.bitwise_xor.reduce((states[:, None] >> _BITS & np.uint32(1)) * operator, axis=1)


@functools.cache
def _byte_table() -> tuple[int, ...]:
    values = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        values = values >> np.uint32(1) ^ np.uint32(_POLYNOMIAL) * (values & np.uint32(1))
    return tuple(int(value) for value in values)


@functools.cache
def _wide_tables(lanes: int) -> tuple[np.ndarray, np.ndarray]:
    """What becomes of the lower and of the upper half of a state over the bytes of all lanes."""
    operator, halves = _advance(4 * lanes), np.arange(1 << 16, dtype=np.uint32)
    return _apply(operator, halves), _apply(operator, halves << np.uint32(16))
