"""What the entries of a segment name, for a verification: blobs, with their lengths, and what of them is to be read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from blobark import blocklist, source
from blobark.extents import ends, of_entry, sources
from blobark.guids import blob_name
from blobark.inventory import Named, Piece
from blobark.model import Block, Entry

Chosen = Callable[[str], bool]
"""Whether a blob, by its key, is to be read."""


@dataclass(slots=True)
class Found:
    """What entries of a server name."""

    server: str
    chosen: Chosen
    blobs: list[Named] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)
    wholes: list[Entry] = field(default_factory=list)
    """Contents that have to be read as one."""
    lists: dict[str, Entry] = field(default_factory=dict)
    """Objects with long lists of blocks, by digest, each with an entry that names it."""
    faults: list[tuple[Entry, str]] = field(default_factory=list)
    """Entries that cannot be, and why."""

    def add(self, entry: Entry) -> None:
        """Note the content of an entry that has one."""
        own = blob_name(self.server, entry.guid)
        lengths = ends(of_entry(self.server, entry))
        self.blobs.extend(Named(key, length, key == own) for key, length in lengths.items())
        if entry.blocks_at:
            self.lists[entry.blocks_at] = entry
        elif entry.kind == "file" and entry.content_size:
            self.add_pieces(entry, entry.blocks or ())

    def add_pieces(self, entry: Entry, blocks: tuple[Block, ...]) -> None:
        """Note what is to be read of a content: its blocks, or all of it where it lies in one piece, or as one."""
        extents = of_entry(self.server, entry)
        if not any(self.chosen(extent.blob) for extent in extents):
            return
        usable = blocklist.usable(self.server, entry, blocks)
        places = sources(self.server, entry, usable)
        if places and all(block.digest in places for block in usable):
            pieces = [Piece(extent, digest) for digest, extent in places.items()]
        elif len(extents) == 1:
            pieces = [Piece(extents[0], entry.digest, source.range_list(entry) if entry.ranges is not None else b"")]
        else:
            self.wholes.extend([entry] if self.chosen(extents[0].blob) else [])
            return
        self.pieces.extend(piece for piece in pieces if self.chosen(piece.extent.blob))
