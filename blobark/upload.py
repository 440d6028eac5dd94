"""Files on their way into the store: one consistent reading of each, small ones in one piece, large ones in blocks.

A large file is read once, from front to back. Its blocks are cut and digested as they come, and go their way in
parallel, within a budget of memory:

    staged by an upload that was interrupted   nothing
    part of the version before                 copied inside the store (`whole`), cited (`extents`)
    else                                       sent

With compression each block becomes a zstd frame of its own, so the blob is a `.zst` file and any block can be read by
itself. What is staged is always known by the digest of the very bytes that were sent: what another level, or another
version of zstd, has left there is never taken for ours.

Nothing is under the GUID before the whole file has been read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from msgspec.structs import replace

from blobark import blocklist, blocks, source
from blobark.blocks import READ_BYTES
from blobark.codec import SAMPLE_BYTES, ZSTD, encode_where_it_pays, pays
from blobark.config_keys import Delta
from blobark.content import DifferentContent, Stored, blob_meta, check_same, make_ready, put_small, read_small
from blobark.engine import Engine
from blobark.errors import BlobExists, BlobNotFound, BlocksLost, ContentError, SourceError
from blobark.extents import cited, joined, sources
from blobark.guids import blob_name
from blobark.model import Block, Entry, Extent, Sent
from blobark.stores.base import BLOCK_SIZE_BYTES, Store, Upload
from metrics.stages import DECODE, READ

READINGS = 3
MOST_CITED = 8
"""A file that would lie in more blobs than this is sent whole."""
LARGE_FILE_BYTES = 64 * 1024 * 1024
"""What a large file under way may hold in memory."""


def memory_cost(entry: Entry) -> int:
    """Return about how many bytes putting or getting this entry's content holds in memory."""
    size = entry.content_size
    if size <= BLOCK_SIZE_BYTES:
        return size
    return max(LARGE_FILE_BYTES, 4 * blocks.most_bytes(blocks.bits_for(size, entry.block_bits)))


class _Piece(NamedTuple):
    """A block to send, as it is stored, with its digest: its place in the blob, as far as is known.

    `source` is where the version before has it, if it has.
    """

    offset: int
    digest: str
    data: memoryview
    source: Extent | None


@dataclass(slots=True)
class _Reading:
    """What one reading of a large file has found. `new` are the blocks of its own blob, as they are stored."""

    blocks: list[Block] = field(default_factory=list)
    extents: list[Extent] = field(default_factory=list)
    new: list[Block] = field(default_factory=list)
    sent_bytes: int = 0

    @property
    def stored_bytes(self) -> int:
        """How long the file's own blob is."""
        return sum(block.size for block in self.new)


class Uploader:
    """Puts files into the store, as frames of a zstd `level`, if not 0, where that pays. For many threads at once."""

    def __init__(self, store: Store, server: str, engine: Engine, delta: Delta, level: int) -> None:
        self._store = store
        self._server = server
        self._engine = engine
        self._stages = engine.stages
        self._delta = delta
        self._level = level
        self._buffers = blocks.Buffers()

    def put_file(
        self,
        root_name: bytes,
        entry: Entry,
        descriptor: int,
        status: os.stat_result,
        previous: Entry | None,
        *,
        md5: bool,
    ) -> Stored:
        """Store the content of an open regular file, whose fstat is `status`, under the entry's GUID.

        The metadata in the result are the descriptor's. A file that changes under each of three readings is stored as
        last read and flagged `changed_while_read`. `previous` is the version before, whose content the store has. With
        `md5` the result has that of a content that is sent in one piece.

        Raises:
            SourceError: it cannot be read.
            ContentError: the store loses its blocks again and again.
            DifferentContent: the GUID is taken by other content.
        """
        for reading in range(1, READINGS + 1):
            now = entry if source.same_version(entry, status) else source.describe_open(descriptor, entry, status)
            last = reading == READINGS
            try:
                if now.content_size <= BLOCK_SIZE_BYTES:
                    read = read_small(now, descriptor, last=last)
                    stored = None if read is None else self._put_small(root_name, *read, md5=md5)
                else:
                    stored = self._put_large(root_name, now, descriptor, previous, last=last)
            except SourceError:
                if last:
                    raise
                stored = None
            except BlocksLost as error:
                if last:
                    raise ContentError(error.message) from None
                stored = None
            if stored is not None:
                return stored
            status = source.status_now(descriptor)
        raise SourceError("changed each time it was read")

    def _put_small(self, root_name: bytes, entry: Entry, data: bytes, *, md5: bool) -> Stored:
        with self._stages.timed(DECODE):
            ready = make_ready(self._server, entry, data, md5=md5, level=self._level)
        return put_small(self._store, self._server, root_name, ready)

    def _put_large(
        self, root_name: bytes, entry: Entry, descriptor: int, previous: Entry | None, *, last: bool
    ) -> Stored | None:
        old = self._old(previous)
        bits = blocks.bits_for(entry.content_size, previous.block_bits if previous is not None and old else 0)
        entry = replace(entry, block_bits=bits)
        cite = bool(old) and self._delta == "extents"
        level = self._level if self._level and pays(_samples(descriptor, entry)) else 0
        key = blob_name(self._server, entry.guid)
        try:
            upload = self._store.begin(key)
        except BlobExists:
            raise DifferentContent(f"{key} is not free") from None
        try:
            reading, entry = self._read(upload, entry, descriptor, old, level, cite=cite)
            if not source.same_version(entry, source.status_now(descriptor)):
                if not last:
                    upload.abort()
                    return None
                entry = replace(entry, changed_while_read=True)
            if cite and not self._is_worth_citing(key, reading.extents):
                upload.abort()
                upload = self._store.begin(key)
                reading, again = self._read(upload, entry, descriptor, {}, level, cite=False)
                if again.digest != entry.digest:
                    upload.abort()
                    return None
            return self._commit(upload, root_name, entry, reading)
        except BlobExists:  # a store may say so before the commit, when the content's digest is not known yet
            upload.abort()
            raise DifferentContent(f"{key} is not free") from None
        except BaseException:
            upload.abort()
            raise

    def _commit(self, upload: Upload, root_name: bytes, entry: Entry, reading: _Reading) -> Stored:
        key = blob_name(self._server, entry.guid)
        sent = reading.sent_bytes > 0
        extents = joined(reading.extents)
        if extents != (Extent(key, 0, entry.content_size, entry.content_size),):
            entry = replace(entry, extents=extents)
        if reading.new:
            try:
                upload.commit(reading.new, blob_meta(self._store, root_name, entry))
            except BlobExists:
                upload.abort()
                check_same(self._store, key, entry, reading.stored_bytes)
                sent = False
        else:
            upload.abort()
        plain_bytes = sum(extent.plain_length for extent in reading.extents if extent.blob == key)
        blob = Sent(entry.guid, reading.stored_bytes, b"", plain_bytes) if reading.new else None
        entry = blocklist.noted(self._store, self._server, entry, tuple(reading.blocks), entry.block_bits)
        return Stored(entry, sent=sent, sent_bytes=reading.sent_bytes, blob=blob)

    def _read(
        self, upload: Upload, entry: Entry, descriptor: int, old: dict[str, Extent], level: int, *, cite: bool
    ) -> tuple[_Reading, Entry]:
        """Read the file once and stage what has to be; return what was found, and the entry with its digest."""
        reading = _Reading()
        hasher = source.content_hasher(entry)
        key = blob_name(self._server, entry.guid)
        self._stages.begin(entry.raw_path, entry.size)

        def pieces() -> Iterator[_Piece]:
            offset = 0
            since_ns = self._stages.now()
            for data in blocks.cut(source.read_blocks(descriptor, entry, READ_BYTES), entry.block_bits, self._buffers):
                since_ns = self._stages.lap(READ, since_ns)
                hasher.update(data)
                size, digest = len(data), blocks.digest_of(data)
                self._stages.progress(size)
                since_ns = self._stages.lap(DECODE, since_ns)
                there = old.get(digest)
                if cite and there is not None:
                    reading.extents.append(there)
                    reading.blocks.append(Block(size, digest, there.stored_length if there.codec else 0))
                    self._buffers.give(data)
                    continue
                stored = data
                if level:
                    stored = memoryview(encode_where_it_pays(data, level))
                    self._buffers.give(data)
                    self._stages.lap(DECODE, since_ns)
                reading.extents.append(Extent(key, offset, len(stored), size, ZSTD if level else ""))
                reading.blocks.append(Block(size, digest, len(stored) if level else 0))
                reading.new.append(Block(len(stored), blocks.digest_of(stored) if level else digest))
                yield _Piece(offset, reading.new[-1].digest, stored, there)
                offset += len(stored)
                since_ns = self._stages.now()

        def send(batch: list[_Piece]) -> list[int]:
            return [self._send(upload, piece) for piece in batch]

        buffer_bytes = blocks.most_bytes(entry.block_bits)
        most_bytes = min(memory_cost(entry), self._engine.max_bytes)
        inner = self._engine.within(most_bytes - buffer_bytes)  # one is being filled
        for _, sent_bytes in inner.run(pieces(), send, cost=lambda _: buffer_bytes):
            reading.sent_bytes += sent_bytes
        return reading, replace(entry, digest=hasher.hexdigest())

    def _send(self, upload: Upload, piece: _Piece) -> int:
        """Get a block into the store; return how many bytes had to be sent."""
        there, size, sent = piece.source, len(piece.data), False
        may_copy = there is not None and self._delta == "whole" and there.stored_length == size
        if not (there and may_copy and upload.copy(piece.digest, piece.data, there.blob, there.stored_offset)):
            sent = upload.stage(piece.offset, piece.digest, piece.data)
        self._buffers.give(piece.data)
        return size if sent else 0

    def _old(self, previous: Entry | None) -> dict[str, Extent]:
        """Return where the version before has its blocks, by their digests."""
        if previous is None or self._delta == "off" or not previous.has_content:
            return {}
        return sources(self._server, previous, blocklist.load(self._store, self._server, previous))

    def _is_worth_citing(self, own_key: str, extents: list[Extent]) -> bool:
        """Whether few blobs are cited, each at least for half of what it holds."""
        lengths = cited(extents)
        lengths.pop(own_key, None)
        if not lengths or len(lengths) + 1 > MOST_CITED:
            return False
        try:
            return all(2 * length >= self._store.stat(blob).size_bytes for blob, length in lengths.items())
        except BlobNotFound:
            return False


def _samples(descriptor: int, entry: Entry) -> Iterator[bytes]:
    """Yield parts of a large file's content: of its beginning, its middle and its end. Raises `SourceError`."""
    layout = blocks.Layout(entry.size, entry.ranges)
    for offset in (0, entry.content_size // 2, entry.content_size - SAMPLE_BYTES):
        for start, length in layout.places(offset, SAMPLE_BYTES):
            yield source.read_at(descriptor, length, start)
