"""CRC-32C (Castagnoli) of a stream, fast enough in Python to hash a whole database.

The checksum is linear, so a block is cut into lanes whose checksums are computed side by side in numpy columns and then
folded together: moving a checksum over n zero bytes is a linear map, kept as two tables. Polynomial and reflection are
those of RFC 3720 (iSCSI), appendix B.4, which is what Go's ``crc32.Castagnoli`` computes.
"""

from __future__ import annotations

from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["Crc32c"]

_POLYNOMIAL: Final = 0x82F63B78
_LANES: Final = 1024
_LANE_WORDS: Final = 16
_BLOCK_BYTES: Final = _LANES * _LANE_WORDS * 4

_Column = NDArray[np.uint32]


def _byte_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (_POLYNOMIAL if value & 1 else 0)
        table.append(value)
    return table


_BYTE: Final = _byte_table()


def _zeros(crc: _Column, count: int) -> _Column:
    """Checksums after ``count`` zero bytes more, one byte at a time (only to make tables)."""
    table = np.array(_BYTE, dtype=np.uint32)
    for _ in range(count):
        crc = table[crc & 0xFF] ^ (crc >> np.uint32(8))
    return crc


@cache
def _after(count: int) -> tuple[_Column, _Column]:
    """Tables of "and then ``count`` (a power of two, at least 4) zero bytes", by low and high half of a checksum."""
    halves = np.arange(1 << 16, dtype=np.uint32)
    if count == 4:
        return _zeros(halves, 4), _zeros(halves << np.uint32(16), 4)
    low, high = _after(count // 2)
    return _move(low, count // 2), _move(high, count // 2)


def _move(crc: _Column, count: int) -> _Column:
    low, high = _after(count)
    moved: _Column = low[crc & 0xFFFF] ^ high[crc >> np.uint32(16)]
    return moved


def _block(data: bytes | bytearray) -> int:
    """Of a whole block, from a checksum of zero."""
    words = np.frombuffer(data, dtype="<u4").reshape(_LANES, _LANE_WORDS).T.astype(np.uint32)
    crc: _Column = np.zeros(_LANES, dtype=np.uint32)
    for column in words:
        crc = _move(crc ^ column, 4)
    length = _LANE_WORDS * 4
    while crc.size > 1:
        crc = _move(crc[0::2], length) ^ crc[1::2]
        length *= 2
    return int(crc[0])


class Crc32c:
    """The checksum of everything that :meth:`update` was given."""

    def __init__(self) -> None:
        self._state = 0xFFFFFFFF
        self._rest = bytearray()

    def update(self, data: bytes) -> None:
        """Append bytes. Costs about a millisecond of work per quarter megabyte."""
        rest = self._rest
        rest += data
        while len(rest) >= _BLOCK_BYTES:
            self._state = _whole(self._state, rest[:_BLOCK_BYTES])
            del rest[:_BLOCK_BYTES]

    @property
    def value(self) -> int:
        """The checksum so far."""
        return _whole(self._state, self._rest) ^ 0xFFFFFFFF


def _whole(state: int, data: bytearray) -> int:
    """Go on from ``state`` over at most one block."""
    if len(data) < 4:
        for byte in data:
            state = _BYTE[(state ^ byte) & 0xFF] ^ state >> 8
        return state
    # Going on from a state is starting from zero with the state folded into the first four bytes; and zeros in front
    # change nothing.
    head = (int.from_bytes(data[:4], "little") ^ state).to_bytes(4, "little")
    return _block(bytes(_BLOCK_BYTES - len(data)) + head + data[4:])
