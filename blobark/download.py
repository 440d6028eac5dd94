"""Large files on their way back: block by block, in parallel, each from the nearest place that has it.

    the `.part` of a restore that was interrupted   a block that is right already stays
    the file that is to be replaced                 a block that it has too is copied from there
    the store                                       the others, with range reads of neighbours together

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
from blobark.stores.base import BLOCK_SIZE_BYTES, Store
from blobark.target import NewFile
from blobark.upload import memory_cost
from blobark.verified import FETCHES
from metrics.stages import COMPARE, DECODE, WRITE

AHEAD_BYTES = 32 * 1024 * 1024
"""How much of a stream is fetched at once, at most, so that its blocks come in parallel."""


class _Wanted(NamedTuple):
    """A block that is to be at `offset` of the content; neighbours in the same `part` may come with one request."""

    offset: int
    block: Block
    part: str


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
        self,
        store: Store,
        server: str,
        engine: Engine,
        entry: Entry,
        entry_blocks: tuple[Block, ...],
        part_bytes: int = BLOCK_SIZE_BYTES,
    ) -> None:
        """One request asks for `part_bytes` at most, and for a quarter of the memory there is."""
        self._store = store
        self._engine = engine
        self._stages = engine.stages
        self._entry = entry
        self._blocks = entry_blocks
        self._layout = Layout(entry.size, entry.ranges)
        self._finder = Finder(split(of_entry(server, entry), entry_blocks))
        self._part_bytes = min(part_bytes, engine.max_bytes // 4)
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
            return self._place(new, old, batch)

        inner = self._engine.within(max(memory_cost(self._entry), 2 * self._part_bytes))
        total = 0
        jobs = inner.run(self._wanted(), place, cost=lambda one: one.block.size, bundle=lambda one: one.part)
        for wanted, fetched in jobs:
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
            return [self._fetch([wanted])[0] for wanted in batch]

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
        offset = begin = 0
        for block in self._blocks:
            if offset + block.size - begin > self._part_bytes:
                begin = offset
            yield _Wanted(offset, block, str(begin))
            offset += block.size

    def _place(self, new: NewFile, old: OldFile | None, batch: list[_Wanted]) -> list[int]:
        """Get neighbouring blocks into their places; return of each how many bytes came from the store."""
        fetched = [0] * len(batch)
        lacking: list[int] = []
        for number, wanted in enumerate(batch):
            if self._is_there(new, wanted):
                continue
            there = self._from_old(old, wanted)
            if there is None:
                lacking.append(number)
            else:
                self._write(new, wanted, there)
        for run in _runs(lacking):
            for number, data in zip(run, self._fetch([batch[number] for number in run]), strict=True):
                self._write(new, batch[number], data)
                fetched[number] = batch[number].block.size
        return fetched

    def _is_there(self, new: NewFile, wanted: _Wanted) -> bool:
        if not new.was_there:
            return False
        with self._stages.timed(COMPARE):
            return _read(new.descriptor, self._layout, wanted.offset, wanted.block) is not None

    def _from_old(self, old: OldFile | None, wanted: _Wanted) -> bytes | None:
        if old is None:
            return None
        with self._stages.timed(COMPARE):
            return old.read(wanted.block)

    def _write(self, new: NewFile, wanted: _Wanted, data: Data) -> None:
        since_ns = self._stages.now()
        view = memoryview(data)
        for offset, length in self._layout.places(wanted.offset, wanted.block.size):
            new.write(view[:length], offset)
            view = view[length:]
        self._stages.lap(WRITE, since_ns)

    def _fetch(self, run: list[_Wanted]) -> list[Data]:
        """Return blocks that follow each other, each verified; what is wrong is fetched once more, by itself."""
        pieces = list(self._pieces(run))
        data = memoryview(pieces[0] if len(pieces) == 1 else b"".join(pieces))  # most come whole, and need no copy
        found: list[Data] = []
        begin = run[0].offset
        for wanted in run:
            block: Data = data[wanted.offset - begin : wanted.offset - begin + wanted.block.size]
            found.append(block if self._is_right(wanted, block) else self._fetch_again(wanted))
        return found

    def _fetch_again(self, wanted: _Wanted) -> Data:
        for _ in range(FETCHES - 1):
            data = b"".join(self._pieces([wanted]))
            if self._is_right(wanted, data):
                return data
        raise ContentError("its content in the store is damaged: it has another digest than it was saved with")

    def _is_right(self, wanted: _Wanted, data: Data) -> bool:
        with self._stages.timed(DECODE):
            return blocks.digest_of(data) == wanted.block.digest

    def _pieces(self, run: list[_Wanted]) -> Iterator[Data]:
        size = sum(wanted.block.size for wanted in run)
        for part in self._finder.parts(run[0].offset, size):
            version = self._versions[part.blob]
            yield from read_extent(self._store, part, version=version, stages=self._stages, most=self._part_bytes)


def _runs(numbers: list[int]) -> Iterator[list[int]]:
    """Yield runs of numbers that follow each other."""
    run: list[int] = []
    for number in numbers:
        if run and number != run[-1] + 1:
            yield run
            run = []
        run.append(number)
    if run:
        yield run


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
