"""Finds what was seen twice among very many things, by their hashes, in bounded memory.

A hash is 8 bytes in one of 256 buckets; two million of them wait in memory, then all go to the end of a file.
Equal hashes meet in the same bucket, and a bucket is small enough to be looked through as a set.
"""

from __future__ import annotations

import os
from array import array
from collections import Counter
from typing import BinaryIO, Final

_BUCKETS: Final = 256


class Repeats:
    """Takes 64-bit hashes, and tells those that came more than once. `spill` is an empty file of its own."""

    def __init__(self, spill: BinaryIO, *, in_memory: int = 2_000_000) -> None:
        self._file = spill
        self._buckets = [array("q") for _ in range(_BUCKETS)]
        self._pieces: list[list[tuple[int, int]]] = [[] for _ in range(_BUCKETS)]
        self._in_memory = self._room = in_memory

    def add(self, value: int) -> None:
        """Take one hash, such as `hash` gives."""
        self._buckets[value % _BUCKETS].append(value)
        self._room -= 1
        if not self._room:
            self._spill()

    def found(self, enough: int) -> frozenset[int]:
        """Return the hashes that came more than once; not all of them, once there are more than `enough`."""
        repeated: set[int] = set()
        for bucket, pieces in zip(self._buckets, self._pieces, strict=True):
            values = array("q", bucket)
            for start, size_bytes in pieces:
                self._file.seek(start)
                values.frombytes(self._file.read(size_bytes))
            if len(set(values)) < len(values):
                repeated.update(value for value, count in Counter(values).items() if count > 1)
            if len(repeated) > enough:
                break
        return frozenset(repeated)

    def _spill(self) -> None:
        for bucket, pieces in zip(self._buckets, self._pieces, strict=True):
            start = self._file.seek(0, os.SEEK_END)
            pieces.append((start, self._file.write(bucket.tobytes())))
            del bucket[:]
        self._room = self._in_memory
