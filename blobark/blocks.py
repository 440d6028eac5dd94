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


def cut(pieces: Iterable[bytes], bits: int) -> Iterator[bytes]:
    """Yield the blocks of a content that comes in pieces of any length. Holds a piece and a block, and copies both."""
    least, most, mask = least_bytes(bits), most_bytes(bits), (1 << bits) - 1
    parts: list[memoryview] = []
    size = 0
    for chunk in _chunks(pieces):
        if parts and size + len(chunk) > most:
            yield b"".join(parts)
            parts, size = [], 0
        parts.append(chunk)
        size += len(chunk)
        if size >= least and not zlib.crc32(chunk[-_CHECKED_BYTES:]) & mask:
            yield b"".join(parts)
            parts, size = [], 0
    if parts:
        yield b"".join(parts)


def _chunks(pieces: Iterable[bytes]) -> Iterator[memoryview]:
    """Yield chunks. The last of a buffer may end only where the buffer does, so it is cut again with what follows."""
    from pyfastcdc import FastCDC  # late: only large files need it, and it takes 20 ms

    cutter = FastCDC(avg_size=CHUNK_BYTES, min_size=CHUNK_BYTES // 4, max_size=CHUNK_BYTES * 4)
    carry: bytes | memoryview = b""
    for piece in pieces:
        chunks = [chunk.data for chunk in cutter.cut_buf(b"".join((carry, piece)) if carry else piece)]
        carry = chunks.pop() if chunks else b""
        yield from chunks
    if carry:
        yield memoryview(carry)


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
