"""What lies below `blobark/`, made again: segments, headers, lists of blocks, and who the server is.

    segment      from the catalog, while the draft or the newest snapshot has it
    header       from the catalog, if it is that of the snapshot that this machine made or adopted last
    list         from the content that it describes, where that is not compressed
    description  from the newest header that can be read

Each function returns the bytes to store, and raises `ContentError` with the reason where there is no way to them.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from blake3 import blake3

from blobark import blocks, content, snapshot
from blobark.catalog import Catalog
from blobark.errors import ContentError, SnapshotError
from blobark.model import FORMAT, Block, Entry, Header, Root, Server
from blobark.segments import compress, encode_blocks
from blobark.stores.base import Store

ELSEWHERE = "only the state_dir of the machine that made it could have it"
_LEAVE_SEGMENT = f"{ELSEWHERE}; the next backup goes on without it, then `blobark forget` the snapshots that it hurts"
_LEAVE_HEADER = f"{ELSEWHERE}; `blobark forget` it, if it is the newest after `blobark backup --skip-damaged`"


class Originals:
    """Makes what lies below `blobark/<server>/` again."""

    def __init__(self, catalog: Catalog, store: Store, server: str) -> None:
        self._catalog = catalog
        self._store = store
        self._server = server

    def make(self, key: str, lister: Entry | None) -> tuple[bytes, str]:
        """Return the bytes of an object, and what they were made of.

        `lister` is an entry that names a list of blocks. Raises `ContentError`.
        """
        prefix = snapshot.segment_key(self._server, "")
        if key.startswith(prefix):
            return self._segment(key.removeprefix(prefix)), "the state of this machine"
        if lister is not None:
            return self._list(lister), "the content"
        if key == snapshot.server_key(self._server):
            return self._description(), "the newest snapshot"
        return self._header(key), "the state of this machine"

    def _segment(self, name: str) -> bytes:
        stored = self._catalog.sound_segment(name)
        if stored is None:
            raise ContentError(_LEAVE_SEGMENT)
        return stored

    def _header(self, key: str) -> bytes:
        try:
            header = msgspec.json.decode(self._catalog.get("header"), type=Header)
        except msgspec.MsgspecError:
            raise ContentError(_LEAVE_HEADER) from None
        if snapshot.header_key(header.server, header.number) != key:
            raise ContentError(_LEAVE_HEADER)
        return snapshot.encode(header)

    def _list(self, entry: Entry) -> bytes:
        if entry.is_encoded:
            raise ContentError("its content is compressed; no restore needs it, and a later version gets a new one")
        cut = blocks.cut(self._pieces(entry), entry.block_bits, blocks.Buffers())
        plain = encode_blocks(tuple(Block(len(data), blocks.digest_of(data)) for data in cut))
        if blake3(plain).hexdigest() != entry.blocks_at:
            raise ContentError("its content is cut in another way now; no restore needs it")
        return compress(plain)

    def _pieces(self, entry: Entry) -> Iterator[bytes]:
        for piece in content.pieces(self._store, self._server, entry):
            for start in range(0, len(piece), blocks.READ_BYTES):
                yield bytes(piece[start : start + blocks.READ_BYTES])

    def _description(self) -> bytes:
        for number in reversed(snapshot.numbers(self._store, self._server)):
            try:
                header = snapshot.load(self._store, self._server, number)
            except SnapshotError:
                continue
            roots = tuple(Root(root.name, root.name_b64) for root in header.roots)
            return snapshot.encode(Server(FORMAT, self._server, header.host, roots, header.started))
        raise ContentError("no snapshot can be read")
