"""Comparing what is stored with its digests: pieces that lie near each other together, large ones as they stream.

What is wrong is read once more, of one version of its blob, before it counts as damage.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from blake3 import blake3

from blobark import content, source
from blobark.errors import BlobNotFound, ContentError
from blobark.extents import blobs_of, of_entry
from blobark.inventory import TO_THE_END, Damage, Piece
from blobark.model import Data, Entry
from blobark.ranges import MOST_BYTES, Neighbourhood, read_together
from blobark.stores.base import BLOCK_SIZE_BYTES, Store
from metrics.stages import Stages

_WRONG = "holds other content than was saved"


class Comparer:
    """Reads what one server has stored; called from many threads."""

    def __init__(self, store: Store, server: str, stages: Stages) -> None:
        self._store = store
        self._server = server
        self._stages = stages

    def read_pieces(self, batch: list[list[Piece]]) -> list[list[Damage]]:
        """Read neighbourhoods; return what is damaged in each."""
        return [self._read_near(near) for near in batch]

    def read_wholes(self, batch: list[Entry]) -> list[list[Damage]]:
        """Read contents that lie in several places; return the damage of each: if it is wrong, any of them may be."""
        return [self._read_whole(entry) for entry in batch]

    def _read_near(self, near: list[Piece]) -> list[Damage]:
        if len(near) == 1 and not _is_small(near[0]):
            wrong = [] if self._is_right(near[0], "") else near
        else:
            found = read_together(self._store, [piece.extent for piece in near], self._stages)
            wrong = [
                piece
                for piece, data in zip(near, found, strict=True)
                if isinstance(data, ContentError) or _digest(piece, [data]) != piece.digest
            ]
        return [damage for piece in wrong if (damage := self._read_again(piece)) is not None]

    def _is_right(self, piece: Piece, version: str) -> bool:
        try:
            return _digest(piece, content.read_extent(self._store, piece.extent, version=version)) == piece.digest
        except ContentError:
            return False

    def _read_again(self, piece: Piece) -> Damage | None:
        """Read a piece once more, of one version of its blob. None: it is right, or cannot be read as yet."""
        extent = piece.extent
        start, end = extent.stored_offset, extent.stored_offset + extent.stored_length
        version = self._version(extent.blob)
        if not version:
            return Damage(extent.blob, 0, TO_THE_END, "is missing", "")
        if self._is_right(piece, version) or self._is_archived(extent.blob):
            return None
        return Damage(extent.blob, start, end, _WRONG, version)

    def _read_whole(self, entry: Entry) -> list[Damage]:
        for _ in range(2):
            hasher = source.content_hasher(entry)
            try:
                for piece in content.pieces(self._store, self._server, entry):
                    hasher.update(piece)
            except ContentError:
                continue
            if hasher.hexdigest() == entry.digest:
                return []
        blobs = blobs_of(self._server, entry)
        if any(self._is_archived(blob) for blob in blobs):
            return []
        what = f"{_WRONG}, or another of these does: {', '.join(blobs)}"
        versions = {blob: self._version(blob) for blob in blobs}
        return [
            Damage(e.blob, e.stored_offset, e.stored_offset + e.stored_length, what, versions[e.blob])
            for e in of_entry(self._server, entry)
        ]

    def _version(self, blob: str) -> str:
        try:
            return self._store.stat(blob).version
        except BlobNotFound:
            return ""

    def _is_archived(self, key: str) -> bool:
        listed = next(self._store.archived(key), None)
        return listed is not None and listed.key == key


def neighbourhoods(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Yield the pieces, in order, together what is to be read together."""
    waiting: list[Piece] = []
    neighbourhood = Neighbourhood()
    for piece in pieces:
        if not _is_small(piece):
            yield [piece]
            continue
        if not neighbourhood.takes(piece.extent) and waiting:
            yield waiting
            waiting = []
        waiting.append(piece)
    if waiting:
        yield waiting


def cost_of(near: list[Piece]) -> int:
    """Return about how many bytes reading a neighbourhood holds in memory."""
    size = sum(piece.extent.stored_length + piece.extent.plain_length for piece in near)
    return min(size, 3 * BLOCK_SIZE_BYTES)


def _is_small(piece: Piece) -> bool:
    return max(piece.extent.stored_length, piece.extent.plain_length) <= MOST_BYTES


def _digest(piece: Piece, data: Iterable[Data]) -> str:
    hasher = blake3(piece.shape)
    for part in data:
        hasher.update(part)
    return hasher.hexdigest()
