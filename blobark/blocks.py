"""Blocks: how the content of a large file is cut, so that a change in it changes few of them.

    chunks   FastCDC: 256 KiB to 4 MiB, 1 MiB on average; where one ends depends on the bytes before its end alone
    blocks   chunks joined until the end of one has `bits` low zero bits in its checksum, 2**bits of them on average;
             no block is shorter than a quarter of that (but the last) or longer than twice of it

`bits` is 2 (about 4 MiB) until there would be more blocks than a blob of Azure may have; a later version of a file
keeps the bits of the one before, since every cut depends on them. Content is the file's bytes, or the joined ranges
of a sparse one; a block is known by its BLAKE3 digest.
"""

from __future__ import annotations

import zlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence

from blake3 import blake3

MIB = 1024 * 1024
CHUNK_BYTES = MIB
LEAST_BITS = 2
MOST_BLOCKS = 45_000
"""Azure's limit is 50,000 blocks in a blob."""
_CHECKED_BYTES = 64
MOST_CHUNK_BYTES = 4 * CHUNK_BYTES
READ_BYTES = 2 * MIB
"""What to read at a time of what is to be cut: little enough to be still near when it is copied and digested."""

WRITE_BYTES = MIB
"""What to write at a time: of 2 MiB and more Linux wants memory in pieces so large, and may have to make room first."""


def bits_for(content_size: int, inherited: int = 0) -> int:
    """Return the bits to cut content of this size with: those of its earlier version, or more where it needs them."""
    bits = max(inherited, LEAST_BITS)
    while content_size > MOST_BLOCKS * least_bytes(bits):
        bits += 1
    return bits


def average_bytes(bits: int) -> int:
    """Return about how long a block is."""
    return CHUNK_BYTES << bits


def least_bytes(bits: int) -> int:
    """Return the length of the shortest block but the last."""
    return (CHUNK_BYTES << bits) // 4


def most_bytes(bits: int) -> int:
    """Return the length of the longest block."""
    return CHUNK_BYTES << bits + 1


def digest_of(block: bytes | memoryview) -> str:
    """Return a block's name: 64 hex digits, which is the longest id that Azure takes."""
    return blake3(block).hexdigest()


def hasher() -> blake3:
    """Return what `digest_of` digests with, for a block that comes in pieces."""
    return blake3()


class Buffers:
    """Memory for blocks that is used again: to get it anew from the system takes longer than all that is done with it.

    May be used from many threads at once.
    """

    def __init__(self) -> None:
        self._free: list[bytearray] = []

    def take(self, size: int) -> bytearray:
        """Return a buffer of at least `size` bytes, whatever is in it."""
        try:
            buffer = self._free.pop()
        except IndexError:
            return bytearray(size)
        return buffer if len(buffer) >= size else bytearray(size)

    def give(self, block: memoryview) -> None:
        """Take back the buffer of a block, which is not used any more."""
        if isinstance(block.obj, bytearray):
            self._free.append(block.obj)


def cut(pieces: Iterable[bytes], bits: int, buffers: Buffers) -> Iterator[memoryview]:
    """Yield the blocks of a content that comes in pieces of any length.

    Each is in a buffer of its own, which the caller gives back.
    """
    least, most, mask = least_bytes(bits), most_bytes(bits), (1 << bits) - 1
    block, size = memoryview(buffers.take(most)), 0
    for chunk in _chunks(pieces):
        length = len(chunk)
        if size and size + length > most:
            yield block[:size]
            block, size = memoryview(buffers.take(most)), 0
        block[size : size + length] = chunk
        size += length
        if size >= least and not zlib.crc32(chunk[-_CHECKED_BYTES:]) & mask:
            yield block[:size]
            block, size = memoryview(buffers.take(most)), 0
    if size:
        yield block[:size]
    else:
        buffers.give(block)


def _chunks(pieces: Iterable[bytes]) -> Iterator[memoryview]:
    """Yield chunks, each until the next. The last of a window may end only where that does: it is cut again."""
    from pyfastcdc import FastCDC  # late: only large files need it, and it takes 20 ms

    cutter = FastCDC(avg_size=CHUNK_BYTES, min_size=CHUNK_BYTES // 4, max_size=MOST_CHUNK_BYTES)
    window, filled = bytearray(), 0
    for piece in pieces:
        end = filled + len(piece)
        if end > len(window):
            window = window[:filled] + bytearray(MOST_CHUNK_BYTES + len(piece) - filled)
        window[filled:end] = piece
        view = memoryview(window)[:end]
        chunks = [chunk.data for chunk in cutter.cut_buf(view)]
        filled = len(chunks.pop()) if chunks else 0
        yield from chunks
        view[:filled] = view[end - filled :]
    if filled:
        yield memoryview(window)[:filled]


class Layout:
    """Where the content of a file lies in it: all of it from 0 on, or the ranges of a sparse file."""

    def __init__(self, size: int, ranges: Sequence[tuple[int, int]] | None) -> None:
        self._ranges = ((0, size),) if ranges is None else tuple(ranges)
        self._starts = []
        start = 0
        for _, length in self._ranges:
            self._starts.append(start)
            start += length

    def places(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """Yield (offset in the file, length) of each run that this part of the content is made of, in order."""
        index = bisect_right(self._starts, offset) - 1
        while length > 0:
            begin, size = self._ranges[index]
            inside = offset - self._starts[index]
            taken = min(size - inside, length)
            if taken:
                yield begin + inside, taken
            offset += taken
            length -= taken
            index += 1
