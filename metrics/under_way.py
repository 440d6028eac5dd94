"""What the threads of a run have in hand, in all its processes: so that a live view can name what takes long.

Each thread has a row, in memory that forked processes share, and writes over it with each item that it begins: half a
microsecond, and nobody waits for anybody. Nothing of it is in a run log.
"""

from __future__ import annotations

import mmap
import struct
import time
from typing import Final, NamedTuple

_ROW: Final = struct.Struct("=qqqq96s")
_CELLS: Final = _ROW.size // 8
_NAME_BYTES: Final = 96
_BEGAN, _DONE = 0, 1

now = time.perf_counter_ns

_MOST_BYTES = (1 << 63) - 1
"""What a row can say; a damaged manifest may say more."""


class InHand(NamedTuple):
    """An item in work: since when, how much of it is done, of how much (0: not known), and its name.

    Of a long name only the end is known; then `is_cut`.
    """

    seconds: float
    done_bytes: int
    size_bytes: int
    name: bytes
    is_cut: bool


class UnderWay:
    """A row for each of so many threads."""

    def __init__(self, rows: int) -> None:
        self._memory = mmap.mmap(-1, rows * _ROW.size)
        self._cells = memoryview(self._memory).cast("q")

    def begin(self, row: int, name: bytes, size_bytes: int) -> None:
        """Note what a row's thread works on from now on."""
        length = len(name)
        if length > _NAME_BYTES:
            name = name[-_NAME_BYTES:]
        _ROW.pack_into(self._memory, row * _ROW.size, now(), 0, min(size_bytes, _MOST_BYTES), length, name)

    def add(self, row: int, size_bytes: int) -> None:
        """Note that so much more of a row's item is done."""
        self._cells[row * _CELLS + _DONE] += size_bytes

    def end(self, row: int) -> None:
        """Note that a row's thread has nothing in hand."""
        self._cells[row * _CELLS + _BEGAN] = self._cells[row * _CELLS + _DONE] = 0

    def done_bytes(self) -> int:
        """Return how much is done of all items that are in work."""
        return sum(self._cells[_DONE::_CELLS])

    def longest(self) -> InHand | None:
        """Return what has been in work for the longest time, None where nothing is."""
        began = list(self._cells[_BEGAN::_CELLS])
        first_ns = min(filter(None, began), default=0)
        if not first_ns:
            return None
        row = began.index(first_ns)
        _, done, size, length, name = _ROW.unpack_from(self._memory, row * _ROW.size)
        if self._cells[row * _CELLS + _BEGAN] != first_ns:  # it has just ended, and the rest may be another's
            return None
        is_cut = length > _NAME_BYTES
        # Cut within a character, a name begins with bytes that only go on.
        name = name.lstrip(bytes(range(0x80, 0xC0))) if is_cut else name[:length]
        return InHand((now() - first_ns) / 1e9, done, size, name, is_cut)
