"""Patches: a segment that is nearly one of the newest snapshot's is stored as the difference.

A hundred changes that lie far apart touch a hundred segments, and each of them whole is thousands of entries. So a
new segment is compared with what the newest snapshot has in its place, and stored as a patch against that where the
patch is at most a sixteenth of it. What a patch rests on (its base) is always a whole segment: where the newest
snapshot has a patch already, the new one rests on the same base, and grows until the segment is stored whole again.

A base is kept in the store as long as a snapshot has a patch against it. The catalog keeps the newest snapshot's.
"""

from __future__ import annotations

from msgspec.structs import replace

from blobark.catalog import Catalog
from blobark.codec import patch
from blobark.errors import SnapshotError
from blobark.model import Header, SegmentRef, SortKey
from blobark.segments import ZSTD_LEVEL, compress, decode_entry, plain_of, read_segment
from blobark.snapshot import Manifest
from blobark.trash import Trash

FEATURE = "patches"
"""What a snapshot requires of its reader that has any."""

LEAST_BYTES = 8 * 1024
"""A whole segment below this is not worth a second request of whoever reads it."""

SHARE = 16
"""A patch is at most the whole segment's stored length divided by this."""


class Patches:
    """The newest snapshot's segments, as what a new one may share or rest on. Asked in ascending order."""

    def __init__(self, catalog: Catalog, parent: Header | None, trash: Trash | None) -> None:
        self._catalog = catalog
        self._trash = trash
        self._refs = parent.segments if parent else ()
        self._places = {ref.digest: number for number, ref in enumerate(self._refs)}
        self._at = 0
        """The place of the segment that the next new one is compared with, if none fits better."""
        self._ahead: tuple[int, bytes] = (-1, b"")

    def shared(self, digest: str) -> SegmentRef | None:
        """Return the newest snapshot's reference of a segment, if it has it and the catalog all that this needs."""
        place = self._places.get(digest)
        if place is None:
            return None
        self._at = max(self._at, place + 1)
        ref = self._refs[place]
        return ref if all(self._catalog.segment_bytes(name) >= 0 for name in ref.objects) else None

    def pack(self, ref: SegmentRef, stored: bytes) -> tuple[SegmentRef, bytes]:
        """Return how a new segment is to be stored; given is how it is whole."""
        if len(stored) < LEAST_BYTES or not self._refs:
            return ref, stored
        plain = plain_of(ref.digest, stored)
        theirs = self._in_place_of(plain)
        base = (theirs.base or theirs.digest) if theirs is not None else ""
        base_plain = self._catalog.plain_segment(base) if base and base != ref.digest else b""
        if not base_plain:
            return ref, stored
        made, packed = replace(ref, base=base), patch(plain, base_plain, ZSTD_LEVEL)
        is_listed = self._trash is not None and any(map(self._trash.has_segment, made.objects))
        return (ref, stored) if is_listed or len(packed) * SHARE > len(stored) else (made, packed)

    def _in_place_of(self, plain: bytes) -> SegmentRef | None:
        """Return the last of the newest snapshot's segments that does not begin after this one."""
        key = _first_key(plain)
        while self._at + 1 < len(self._refs):
            following = self._plain(self._at + 1)
            if not following or _first_key(following) > key:
                break
            self._at += 1
        return self._refs[self._at] if self._at < len(self._refs) else None

    def _plain(self, place: int) -> bytes:
        if self._ahead[0] != place:
            self._ahead = place, self._catalog.plain_segment(self._refs[place].digest)
        return self._ahead[1]


def adopt(catalog: Catalog, manifest: Manifest, ref: SegmentRef) -> None:
    """Bring a segment of the store, and what it rests on, into the catalog. Raises `SnapshotError`."""
    base = b""
    if ref.base:
        whole = manifest.stored(ref.base)
        base = plain_of(ref.base, whole)
        if not base:
            raise SnapshotError(f"segment {ref.base}, on which others rest, is damaged")
        catalog.put_segment(ref.base, whole)
    stored = manifest.stored(ref.name)
    read_segment(ref, stored, base)  # a damaged one must not get in: the draft may have one of that name
    catalog.put_segment(ref.name, stored)
    if base:
        catalog.put_segment(ref.digest, compress(plain_of(ref.digest, stored, base)))


def _first_key(plain: bytes) -> SortKey:
    return decode_entry(plain[: plain.index(b"\n")]).sort_key
