"""Files on their way into the store: one consistent reading of each, small ones in one piece, large ones in blocks.

A large file is read once, from front to back. Its blocks are cut and digested as they come, and go their way in
parallel, within a budget of memory:

    staged by an upload that was interrupted   nothing
    part of the version before                 copied inside the store (`whole`), cited (`extents`)
    else                                       sent

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
from blobark.config_keys import Delta
from blobark.content import DifferentContent, Stored, blob_meta, check_same, put_small, read_small
from blobark.engine import Engine
from blobark.errors import BlobExists, BlobNotFound, BlocksLost, ContentError, SourceError
from blobark.extents import cited, joined, sources
from blobark.guids import blob_name
from blobark.model import Block, Entry, Extent
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
    """A block to send: its place in the blob, as far as is known, and where the version before has it, if it has."""

    offset: int
    digest: str
    data: memoryview
    source: tuple[str, int] | None


@dataclass(slots=True)
class _Reading:
    """What one reading of a large file has found."""

    blocks: list[Block] = field(default_factory=list)
    extents: list[Extent] = field(default_factory=list)
    new: list[Block] = field(default_factory=list)
    sent_bytes: int = 0


class Uploader:
    """Puts files into the store. May be used from many threads at once."""

    def __init__(self, store: Store, server: str, engine: Engine, delta: Delta) -> None:
        self._store = store
        self._server = server
        self._engine = engine
        self._stages = engine.stages
        self._delta = delta
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
                    stored = None if read is None else put_small(self._store, self._server, root_name, *read, md5=md5)
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
            status = os.fstat(descriptor)
        raise SourceError("changed each time it was read")

    def _put_large(
        self, root_name: bytes, entry: Entry, descriptor: int, previous: Entry | None, *, last: bool
    ) -> Stored | None:
        old = self._old(previous)
        bits = blocks.bits_for(entry.content_size, previous.block_bits if previous is not None and old else 0)
        entry = replace(entry, block_bits=bits)
        cite = bool(old) and self._delta == "extents"
        key = blob_name(self._server, entry.guid)
        try:
            upload = self._store.begin(key)
        except BlobExists:
            raise DifferentContent(f"{key} is not free") from None
        try:
            reading, entry = self._read(upload, entry, descriptor, old, cite=cite)
            if not source.same_version(entry, os.fstat(descriptor)):
                if not last:
                    upload.abort()
                    return None
                entry = replace(entry, changed_while_read=True)
            if cite and not self._is_worth_citing(key, reading.extents):
                upload.abort()
                upload = self._store.begin(key)
                reading, again = self._read(upload, entry, descriptor, {}, cite=False)
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
                upload.commit(reading.new, blob_meta(root_name, entry))
            except BlobExists:
                upload.abort()
                check_same(self._store, key, entry, sum(block.size for block in reading.new))
                sent = False
        else:
            upload.abort()
        entry = blocklist.noted(self._store, self._server, entry, tuple(reading.blocks), entry.block_bits)
        return Stored(entry, sent=sent, sent_bytes=reading.sent_bytes)

    def _read(
        self, upload: Upload, entry: Entry, descriptor: int, old: dict[str, tuple[str, int]], *, cite: bool
    ) -> tuple[_Reading, Entry]:
        """Read the file once and stage what has to be; return what was found, and the entry with its digest."""
        reading = _Reading()
        hasher = source.content_hasher(entry)
        key = blob_name(self._server, entry.guid)

        def pieces() -> Iterator[_Piece]:
            offset = 0
            since_ns = self._stages.now()
            for data in blocks.cut(source.read_blocks(descriptor, entry, READ_BYTES), entry.block_bits, self._buffers):
                since_ns = self._stages.lap(READ, since_ns)
                hasher.update(data)
                block = Block(len(data), blocks.digest_of(data))
                since_ns = self._stages.lap(DECODE, since_ns)
                reading.blocks.append(block)
                there = old.get(block.digest)
                if cite and there is not None:
                    reading.extents.append(Extent(there[0], there[1], block.size, block.size))
                    self._buffers.give(data)
                    continue
                reading.extents.append(Extent(key, offset, block.size, block.size))
                reading.new.append(block)
                yield _Piece(offset, block.digest, data, there)
                offset += block.size
                since_ns = self._stages.now()

        def send(batch: list[_Piece]) -> list[int]:
            return [self._send(upload, piece) for piece in batch]

        buffer_bytes = blocks.most_bytes(entry.block_bits)
        inner = self._engine.within(memory_cost(entry) - buffer_bytes)  # one is being filled
        for _, sent_bytes in inner.run(pieces(), send, cost=lambda _: buffer_bytes):
            reading.sent_bytes += sent_bytes
        return reading, replace(entry, digest=hasher.hexdigest())

    def _send(self, upload: Upload, piece: _Piece) -> int:
        """Get a block into the store; return how many bytes had to be sent."""
        size, sent = len(piece.data), False
        if not (piece.source and self._delta == "whole" and upload.copy(piece.digest, piece.data, *piece.source)):
            sent = upload.stage(piece.offset, piece.digest, piece.data)
        self._buffers.give(piece.data)
        return size if sent else 0

    def _old(self, previous: Entry | None) -> dict[str, tuple[str, int]]:
        """Return where the version before has its blocks: digest -> (blob, offset)."""
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
