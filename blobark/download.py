"""Large files on their way back: block by block, in parallel, each from the nearest place that has it.

    the `.part` of a restore that was interrupted   a block that is right already stays
    the file that is to be replaced                 a block that it has too is copied from there
    the store                                       the others, with range reads of neighbours together

A block is known by its digest, wherever it comes from, and is compared with it; so all of the file is right when all
its blocks are, and before that it has no name but that of its `.part`. One that lies in the store as it is, is digested
and written while it comes, a MiB at a time, so that no byte has to be fetched from memory again; a wrong one is fetched
once more and written over. All of a blob is read from one version of it.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

from blobark import blocks, source
from blobark.blocks import READ_BYTES, Layout
from blobark.content import missing, pour_extent, read_extent
from blobark.engine import Engine
from blobark.errors import BlobNotFound, ContentError
from blobark.extents import Finder, of_entry, split
from blobark.model import Block, Data, Entry
from blobark.partfile import PartFile
from blobark.stores.base import BLOCK_SIZE_BYTES, Store
from blobark.upload import memory_cost
from blobark.verified import FETCHES
from metrics.stages import COMPARE, DECODE, WRITE, Stages

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

    def restore(self, new: PartFile, old: OldFile | None) -> int:
        """Fill a new file; return how many bytes came from the store.

        Raises:
            ContentError: a block is missing from the store, or is not what was saved.
            OSError: it cannot be written.
        """
        new.allocate(self._entry, anew=new.was_there and not _has_its_holes(new.descriptor, self._entry))
        self._look_up()

        def place(batch: list[_Wanted]) -> list[int]:
            return self._place(new, old, batch)

        most_bytes = max(memory_cost(self._entry), 2 * self._part_bytes)
        inner = self._engine.within(min(most_bytes, self._engine.max_bytes))
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

    def _place(self, new: PartFile, old: OldFile | None, batch: list[_Wanted]) -> list[int]:
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
            self._bring(new, [batch[number] for number in run])
            for number in run:
                fetched[number] = batch[number].block.size
        return fetched

    def _bring(self, new: PartFile, run: list[_Wanted]) -> None:
        """Get blocks that follow each other from the store; those that lie there as they are, while they come."""
        parts = list(self._finder.parts(run[0].offset, sum(wanted.block.size for wanted in run)))
        if any(part.codec for part in parts):
            for wanted, data in zip(run, self._fetch(run), strict=True):
                self._write(new, wanted, data)
            return
        arrival = _Arrival(self._stages, run, partial(self._write_at, new))
        for part in parts:
            pour_extent(self._store, part, arrival.take, version=self._versions[part.blob], most=self._part_bytes)
        for wanted in arrival.wrong:
            self._write(new, wanted, self._fetch_again(wanted))

    def _is_there(self, new: PartFile, wanted: _Wanted) -> bool:
        if not new.was_there:
            return False
        with self._stages.timed(COMPARE):
            return _read(new.descriptor, self._layout, wanted.offset, wanted.block) is not None

    def _from_old(self, old: OldFile | None, wanted: _Wanted) -> bytes | None:
        if old is None:
            return None
        with self._stages.timed(COMPARE):
            return old.read(wanted.block)

    def _write(self, new: PartFile, wanted: _Wanted, data: Data) -> None:
        self._write_at(new, wanted.offset, data)

    def _write_at(self, new: PartFile, begin: int, data: Data) -> None:
        """Write a part of the content to where it belongs."""
        since_ns = self._stages.now()
        view = memoryview(data)
        for offset, length in self._layout.places(begin, len(view)):
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


class _Arrival:
    """Blocks that follow each other, on their way from the store: each piece is digested and written as it comes.

    `wrong` are, when all have come, those that have other digests than they should; their places hold anything.
    """

    def __init__(self, stages: Stages, run: list[_Wanted], write: Callable[[int, Data], None]) -> None:
        self.wrong: list[_Wanted] = []
        self._stages = stages
        self._write = write
        self._at = run[0].offset
        self._coming = iter(run)
        self._next()

    def take(self, data: Data) -> None:
        """Take the bytes that come next. Raises `OSError` where they cannot be written."""
        view = memoryview(data)
        while view:
            part = view[: self._end - self._at]
            since_ns = self._stages.now()
            self._hasher.update(part)
            self._stages.lap(DECODE, since_ns)
            self._write(self._at, part)
            self._at += len(part)
            view = view[len(part) :]
            if self._at == self._end:
                if self._hasher.hexdigest() != self._wanted.block.digest:
                    self.wrong.append(self._wanted)
                self._next()

    def _next(self) -> None:
        wanted = next(self._coming, None)
        if wanted is not None:
            self._wanted, self._hasher = wanted, blocks.hasher()
            self._end = wanted.offset + wanted.block.size


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


def _has_its_holes(descriptor: int, entry: Entry) -> bool:
    """Whether a file has nothing where the entry has holes: a `.part` may be of another version, and no block tells."""
    if entry.ranges is None:
        return True
    there = source.data_ranges(descriptor, entry.size)
    starts = [start for start, _ in entry.ranges]
    for start, length in ((0, entry.size),) if there is None else there:
        index = bisect_right(starts, start) - 1
        if index < 0 or start + length > sum(entry.ranges[index]):
            return False
    return True


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
