"""Packs: many small files in one blob, which is an ordinary tar file (with compression: a `.tar.zst`).

    member   a file: header, data, padding to 512 bytes. Its extent is its data
    frame    with compression: whole members, 256 KiB of them or more, as one zstd frame. A member's extent is the
             frame that it is in, and how far in it begins
    index    the last member, `.blobark-pack.jsonl.zst`: a line for the pack, then the entries of all the others

`PackWriter` holds a block and a frame in memory, whatever the length of the pack. A pack is one `put` while it is not
longer than a block; otherwise it goes in blocks, and is not there before the last of them.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec
from blake3 import blake3

from blobark.blocks import digest_of
from blobark.codec import ZSTD, decode_all, decode_stream, encode_where_it_pays
from blobark.content import md5_of, read_extent
from blobark.errors import BlobExists, BlobNotFound, ContentError, ItemError
from blobark.manifest import is_extent
from blobark.model import Block, Data, Entry, Extent, Root, Sent, text_or_b64
from blobark.segments import compress, decode_entry
from blobark.stores.base import BLOCK_SIZE_BYTES, BlobInfo, Store, Upload
from blobark.tarheader import TAR_BLOCK_BYTES, header_bytes, header_of
from metrics.stages import DECODE, Stages

PACK_BYTES = 32 * 1024 * 1024
PACK_FILES = 4000
FRAME_BYTES = 256 * 1024
INDEX_NAME = ".blobark-pack.jsonl.zst"
META_NAME = "blobark_pack"
"""In a pack's metadata: where its index lies, as the JSON of an extent."""

MOST_INDEX_BYTES = 64 * 1024 * 1024
_END = bytes(2 * TAR_BLOCK_BYTES)


class Taken(Exception):
    """There is another blob under the pack's key."""


class PackIndex(msgspec.Struct, frozen=True):
    """The first line of a pack's index: the roots that the entries' numbers mean."""

    format: int
    roots: tuple[Root, ...]


def room_for(size_bytes: int, path_bytes: int = 0) -> int:
    """Return how long a pack's tar gets by a file of this size; without the length of its absolute path about that."""
    return header_bytes(path_bytes) + size_bytes + -size_bytes % TAR_BLOCK_BYTES


class PackWriter:
    """One pack in the making, under `key`; for one thread. Nothing is sent before a block is full."""

    def __init__(self, store: Store, key: str, level: int, stages: Stages) -> None:
        """With a `level` of zstd it is compressed; 0 leaves it as it is. `stages` is where the time for that goes."""
        self._stages = stages
        self._store = store
        self._key = key
        self._level = level
        self._out: list[bytes] = []
        """What is to be sent, in pieces that are joined once."""
        self._out_bytes = 0
        self._sent_bytes = 0
        self._frame: list[bytes] = []
        self._frame_bytes = 0
        self._in_frame: list[tuple[int, int]] = []
        """Where in the frame each member's data begin, and how long they are."""
        self._upload: Upload | None = None
        self._blocks: list[Block] = []
        self._extents: list[Extent] = []

    def add(self, entry: Entry, path: bytes, data: bytes) -> None:
        """Append a file with its content; `path` is its absolute real path."""
        self._member(header_of(path, entry, len(data)), data)

    def extents(self) -> list[Extent]:
        """Return the extents of all files, in order; no more is added."""
        self._end_frame()
        return list(self._extents)

    def finish(self, root_names: Sequence[bytes], entries: Sequence[bytes], *, md5: bool) -> Sent:
        """Append the index, which has these entries' lines, and make it a blob; `md5` asks for its MD5.

        Raises:
            Taken: there is another blob under the key.
            BlocksLost: the store has lost a part of it.
        """
        self._end_frame()
        roots = tuple(Root(*text_or_b64(name)) for name in root_names)
        lines = [msgspec.json.encode(PackIndex(1, roots)), *entries]
        index = compress(b"\n".join(lines) + b"\n")
        self._member(header_of(INDEX_NAME.encode(), Entry(mode=0o600), len(index)), index)
        self._frame.append(_END)
        self._end_frame()
        return self._commit({META_NAME: msgspec.json.encode(self._extents[-1]).decode()}, md5=md5)

    def abort(self) -> None:
        """Forget what was sent."""
        if self._upload is not None:
            self._upload.abort()

    def _member(self, header: bytes, data: bytes) -> None:
        begin, size = self._frame_bytes + len(header), len(data)
        self._in_frame.append((begin, size))
        self._frame += (header, data)
        self._frame_bytes = begin + size
        if padding := -size % TAR_BLOCK_BYTES:
            self._frame.append(bytes(padding))
            self._frame_bytes += padding
        if self._frame_bytes >= FRAME_BYTES:
            self._end_frame()

    def _end_frame(self) -> None:
        if not self._frame:
            return
        offset = self._sent_bytes + self._out_bytes
        if self._level:
            with self._stages.timed(DECODE):
                stored = encode_where_it_pays(b"".join(self._frame), self._level)
            self._extents += [
                Extent(self._key, offset, len(stored), size, ZSTD, begin) for begin, size in self._in_frame
            ]
            self._out.append(stored)
            self._out_bytes += len(stored)
        else:
            self._extents += [Extent(self._key, offset + begin, size, size) for begin, size in self._in_frame]
            self._out += self._frame
            self._out_bytes += self._frame_bytes
        self._frame, self._frame_bytes, self._in_frame = [], 0, []
        if self._out_bytes >= BLOCK_SIZE_BYTES:
            self._stage()

    def _made(self) -> tuple[bytes, Block]:
        """Take what has been made so far, as one block."""
        data, self._out, self._out_bytes = b"".join(self._out), [], 0
        with self._stages.timed(DECODE):
            block = Block(len(data), digest_of(data))
        self._blocks.append(block)
        return data, block

    def _stage(self) -> None:
        """Send what has been made so far as a block."""
        data, block = self._made()
        try:
            if self._upload is None:
                self._upload = self._store.begin(self._key)
            self._upload.stage(self._sent_bytes, block.digest, data)
        except BlobExists:
            raise Taken from None
        self._sent_bytes += len(data)

    def _commit(self, meta: Mapping[str, str], *, md5: bool) -> Sent:
        plain_bytes = sum(extent.plain_length for extent in self._extents[:-1])
        digest = b""
        try:
            if self._upload is None:
                data, _ = self._made()
                self._sent_bytes = len(data)
                with self._stages.timed(DECODE):
                    digest = md5_of(data) if md5 else b""
                self._store.put(self._key, data, meta)
            else:
                if self._out:
                    self._stage()
                self._upload.commit(self._blocks, meta)
        except BlobExists:  # an answer was lost, perhaps
            self.abort()
            if not self._is_there():
                raise Taken from None
        return Sent(self._key.rpartition("_")[2], self._sent_bytes, digest, plain_bytes)

    def _is_there(self) -> bool:
        """Whether the blob under the key is this pack, block by block; one that cannot be read may be any."""
        offset = 0
        try:
            if self._store.stat(self._key).size_bytes != self._sent_bytes:
                return False
            for block in self._blocks:
                hasher = blake3()
                for piece in read_extent(self._store, Extent(self._key, offset, block.size, block.size)):
                    hasher.update(piece)
                if hasher.hexdigest() != block.digest:
                    return False
                offset += block.size
        except (BlobNotFound, ContentError):  # in the archive tier, say
            return False
        return True


# Reading what a pack says of itself


class PackContent(NamedTuple):
    """A pack that has just been read: its length, to audit it with, and the entries whose content in it is right."""

    blob: Sent
    entries: list[Entry]


def index_extent(info: BlobInfo) -> Extent | None:
    """Return where a pack's index lies, by its metadata; None for a blob that is no pack."""
    try:
        extent = msgspec.json.decode(info.meta.get(META_NAME, ""), type=Extent)
    except msgspec.MsgspecError:
        return None
    is_small = max(extent.stored_length, extent.plain_length) <= MOST_INDEX_BYTES
    return extent if extent.blob == info.key and is_small and is_extent(extent) else None


def read_index(store: Store, extent: Extent) -> list[tuple[bytes, Entry]]:
    """Return the entries of a pack with the names of their roots. Raises `ContentError`."""
    return _entries_of(b"".join(read_extent(store, extent)))


def _entries_of(index: bytes) -> list[tuple[bytes, Entry]]:
    try:
        first, *lines = decode_all(index, MOST_INDEX_BYTES).splitlines()
        names = [root.raw_name for root in msgspec.json.decode(first, type=PackIndex).roots]
        entries = [decode_entry(line) for line in lines]
        return [(names[entry.root], entry) for entry in entries]
    except (ValueError, IndexError, msgspec.MsgspecError):
        raise ContentError("the index of its pack is damaged") from None


def read_pack(store: Store, key: str, size_bytes: int) -> PackContent | None:
    """Read a whole pack, and return what is right in it; None where it is damaged.

    Raises `BlobNotFound`.
    """
    stream = _Stream(store, key, size_bytes)
    digests: list[str] = []
    index = b""
    try:
        with tarfile.open(fileobj=stream, mode="r|", encoding="utf-8", errors="surrogateescape") as tar:
            for member in tar:
                file = tar.extractfile(member)
                data = file.read() if file is not None else b""
                digests.append(blake3(data).hexdigest())
                index = data
        entries = _entries_of(index)
    except (tarfile.TarError, ItemError):
        return None
    if len(entries) != len(digests) - 1:
        return None
    right = [entry for (_, entry), digest in zip(entries, digests, strict=False) if entry.digest == digest]
    plain_bytes = sum(entry.size for entry in right)
    return PackContent(Sent(key.rpartition("_")[2], size_bytes, b"", plain_bytes), right)


class _Stream(io.RawIOBase):
    """A pack's tar as a file that can be read once, whether it is compressed or not."""

    def __init__(self, store: Store, key: str, size_bytes: int) -> None:
        self._stored = read_extent(store, Extent(key, 0, size_bytes, size_bytes))
        self._pieces = self._plain()
        self._piece = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        if not self._piece:
            self._piece = memoryview(next(self._pieces, b""))
        size = min(len(buffer), len(self._piece))
        buffer[:size] = self._piece[:size]
        self._piece = self._piece[size:]
        return size

    def _plain(self) -> Iterator[Data]:
        first = next(self._stored, b"")
        if first[257:262] == b"ustar":
            yield first
            yield from self._stored
        else:
            yield from decode_stream(first, self._stored)
