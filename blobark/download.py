"""Large files on their way back: block by block, in parallel, each from the nearest place that has it.

    the `.part` of a restore that was interrupted   a block that is right already stays
    the file that is to be replaced                 a block that it has too is copied from there
    the store                                       the others, with range reads

A block is known by its digest, wherever it comes from, and is compared with it before it is written; so all of the
file is right when all its blocks are. All of a blob is read from one version of it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

from blobark import blocks, source
from blobark.blocks import READ_BYTES, Layout
from blobark.content import missing, read_extent
from blobark.engine import Engine
from blobark.errors import BlobNotFound, ContentError
from blobark.extents import Finder, of_entry, split
from blobark.model import Block, Data, Entry
from blobark.stores.base import Store
from blobark.target import NewFile
from blobark.upload import memory_cost
from blobark.verified import FETCHES
from metrics.stages import COMPARE, DECODE, WRITE

AHEAD_BYTES = 32 * 1024 * 1024
"""How much of a stream is fetched at once, at most, so that its blocks come in parallel."""


class _Wanted(NamedTuple):
    """A block that is to be at `offset` of the content."""

    offset: int
    block: Block


class OldFile:
    """A file that is about to be replaced, as a place to take blocks from."""

    def __init__(self, descriptor: int, bits: int) -> None:
        """Cut it as the wanted file was cut. Raises `SourceError`, `OSError`."""
        size = os.fstat(descriptor).st_size
        shape = Entry(size=size, ranges=source.data_ranges(descriptor, size))
        self._descriptor = descriptor
        self._layout = Layout(size, shape.ranges)
        self._offsets: dict[str, int] = {}
        offset = 0
        buffers = blocks.Buffers()
        for data in blocks.cut(source.read_blocks(descriptor, shape, READ_BYTES), bits, buffers):
            self._offsets.setdefault(blocks.digest_of(data), offset)
            offset += len(data)
            buffers.give(data)

    def read(self, block: Block) -> bytes | None:
        """Return a block, None if the file does not have it (any more)."""
        offset = self._offsets.get(block.digest)
        return None if offset is None else _read(self._descriptor, self._layout, offset, block)


class Downloader:
    """Restores the content of one large file whose blocks are known."""

    def __init__(
        self, store: Store, server: str, engine: Engine, entry: Entry, entry_blocks: tuple[Block, ...]
    ) -> None:
        self._store = store
        self._engine = engine
        self._stages = engine.stages
        self._entry = entry
        self._blocks = entry_blocks
        self._layout = Layout(entry.size, entry.ranges)
        self._finder = Finder(split(of_entry(server, entry), entry_blocks))
        self._versions: dict[str, str] = {}

    def restore(self, new: NewFile, old: OldFile | None) -> int:
        """Fill a new file; return how many bytes came from the store.

        Raises:
            ContentError: a block is missing from the store, or is not what was saved.
            OSError: it cannot be written.
        """
        new.allocate(self._entry)
        self._look_up()

        def place(batch: list[_Wanted]) -> list[int]:
            return [self._place(new, old, wanted) for wanted in batch]

        inner = self._engine.within(memory_cost(self._entry))
        total = 0
        for wanted, fetched in inner.run(self._wanted(), place, cost=lambda wanted: wanted.block.size):
            self._stages.progress(wanted.block.size)
            total += fetched
        return total

    def stream(self) -> Iterator[Data]:
        """Yield the content, in order; a block comes when it is verified. Raises `ContentError`."""
        self._look_up()
        most = min(AHEAD_BYTES, self._engine.max_bytes // 2)
        ahead: list[_Wanted] = []
        size = 0
        for wanted in self._wanted():
            if ahead and size + wanted.block.size > most:
                yield from self._in_order(ahead)
                ahead, size = [], 0
            ahead.append(wanted)
            size += wanted.block.size
        yield from self._in_order(ahead)

    def _in_order(self, ahead: list[_Wanted]) -> Iterator[Data]:
        def fetch(batch: list[_Wanted]) -> list[Data]:
            return [self._fetch(wanted) for wanted in batch]

        inner = self._engine.within(self._engine.max_bytes)
        found = {wanted.offset: data for wanted, data in inner.run(ahead, fetch, cost=lambda one: one.block.size)}
        for wanted in ahead:
            yield found.pop(wanted.offset)

    def _look_up(self) -> None:
        for blob in sorted({extent.blob for extent in self._finder.extents}):
            self._versions[blob] = self._version(blob)

    def _version(self, blob: str) -> str:
        try:
            return self._store.stat(blob).version
        except BlobNotFound:
            raise missing(blob) from None

    def _wanted(self) -> Iterator[_Wanted]:
        offset = 0
        for block in self._blocks:
            yield _Wanted(offset, block)
            offset += block.size

    def _place(self, new: NewFile, old: OldFile | None, wanted: _Wanted) -> int:
        """Get one block into its place; return how many bytes came from the store."""
        block = wanted.block
        since_ns = self._stages.now()
        if new.was_there and _read(new.descriptor, self._layout, wanted.offset, block) is not None:
            self._stages.lap(COMPARE, since_ns)
            return 0
        data: Data | None = old.read(block) if old is not None else None
        if new.was_there or old is not None:
            self._stages.lap(COMPARE, since_ns)
        fetched = 0
        if data is None:
            data, fetched = self._fetch(wanted), block.size
        since_ns = self._stages.now()
        view = memoryview(data)
        for offset, length in self._layout.places(wanted.offset, block.size):
            new.write(view[:length], offset)
            view = view[length:]
        self._stages.lap(WRITE, since_ns)
        return fetched

    def _fetch(self, wanted: _Wanted) -> Data:
        for _ in range(FETCHES):
            pieces = list(self._pieces(wanted))
            data = pieces[0] if len(pieces) == 1 else b"".join(pieces)  # most blocks come whole, and need no copy
            with self._stages.timed(DECODE):
                digest = blocks.digest_of(data)
            if digest == wanted.block.digest:
                return data
        raise ContentError("its content in the store is damaged: it has another digest than it was saved with")

    def _pieces(self, wanted: _Wanted) -> Iterator[Data]:
        for part in self._finder.parts(wanted.offset, wanted.block.size):
            yield from read_extent(self._store, part, version=self._versions[part.blob], stages=self._stages)


def _read(descriptor: int, layout: Layout, offset: int, block: Block) -> bytes | None:
    """Return a block of a file, None where the file holds something else."""
    pieces = []
    for start, length in layout.places(offset, block.size):
        try:
            piece = os.pread(descriptor, length, start)
        except OSError:
            return None
        if len(piece) < length:
            return None
        pieces.append(piece)
    data = b"".join(pieces)
    return data if blocks.digest_of(data) == block.digest else None
