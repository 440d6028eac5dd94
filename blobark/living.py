"""Stored bytes made again from living files: what a blob must hold so that all snapshots that name it can be restored.

    own      a blob that holds one file, whole: its bytes, its frame, the frames of its blocks, or what was new in it
    shared   packs, and blobs that other files cite: what is left of the blob, with the damaged runs put in their places

Nothing is made of a file whose content has another digest than was saved. Frames are compressed anew: they need not be
the same bytes, since zstd changes, but they must be as long as they were, or what snapshots say of the blob would no
longer hold. Of a pack that has lost its end or is gone, what nobody names is filled with nothing, and so is its index,
which no snapshot needs.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from blobark import blocklist, blocks, content, source
from blobark.codec import DEFAULT_LEVEL, encode, encode_where_it_pays
from blobark.context import Context, full_path
from blobark.errors import RootRefused, SourceError
from blobark.extents import Finder, of_entry, split
from blobark.guids import blob_name
from blobark.inventory import TO_THE_END, Damage
from blobark.model import Entry, Extent, display
from blobark.source import SourceTree
from blobark.stores.base import BLOCK_SIZE_BYTES, Store
from blobark.tarheader import header_of, padded

MOST_IMAGE_BYTES = 256 * 1024 * 1024
"""A shared blob that is longer is not mended: it would have to be held in memory."""
_SKIPPABLE = b"\x50\x2a\x4d\x18"
_END_OF_TAR = bytes(1024)


class Wounded(NamedTuple):
    """A damaged blob, and the entries that lie in the damage, each below the roots of its snapshot."""

    key: str
    needed: int
    """How long it must be, by all that name it."""
    damages: list[Damage]
    entries: list[tuple[tuple[bytes, ...], Entry]]

    @property
    def version(self) -> str:
        """The version that was found damaged, "" where there is none."""
        return self.damages[0].version

    def lies_in_damage(self, extent: Extent) -> bool:
        """Whether any of an extent is damaged."""
        start, end = extent.stored_offset, extent.stored_offset + extent.stored_length
        return extent.blob == self.key and any(start < damage.end and end > damage.start for damage in self.damages)


class Recipe(NamedTuple):
    """How the bytes of a blob are made: of which entry, if it is one file's own, and with which metadata."""

    root_name: bytes
    entry: Entry | None


class Living:
    """The files of the configured roots, as they are now. For many threads."""

    def __init__(self, context: Context, store: Store, server: str) -> None:
        self._store = store
        self._server = server
        self._levels = list(dict.fromkeys([context.config.compression or DEFAULT_LEVEL, DEFAULT_LEVEL]))
        self._trees: dict[bytes, SourceTree] = {}
        for configured in context.sources():
            with contextlib.suppress(RootRefused):  # its files are not there
                self._trees[configured.name] = SourceTree(configured.path)

    def close(self) -> None:
        """Close the roots."""
        for tree in self._trees.values():
            tree.close()

    def recipes(self, blob: Wounded) -> Iterator[Recipe]:
        """Yield the ways to make a blob that may work, the best first."""
        tried = set()
        for roots, entry in blob.entries:
            file = roots[entry.root], entry.raw_path, entry.digest
            if file not in tried and self._is_own(blob, entry):
                tried.add(file)
                yield Recipe(roots[entry.root], entry)
        if any(extent.blob == blob.key for _, entry in blob.entries for extent in entry.extents or ()):
            yield Recipe(b"", None)

    def pieces(self, blob: Wounded, recipe: Recipe) -> Iterator[bytes]:
        """Yield the bytes of a blob, made in this way.

        Raises:
            SourceError: that is not possible; it may show at the last byte only.
            ContentError: what is left of the blob cannot be read.
        """
        entry = recipe.entry
        if entry is None:
            return self._image(blob)
        if entry.kind == "dir":
            return iter(())
        if entry.extents is None or (not entry.is_encoded and len(entry.extents) == 1):
            return self._plain(recipe.root_name, entry)
        return self._encoded(blob.key, recipe.root_name, entry)

    def meta(self, blob: Wounded, recipe: Recipe) -> dict[str, str]:
        """Return the metadata of a blob that is made so; of a shared one those it has, unless its index is lost."""
        if recipe.entry is None:
            is_cut = any(damage.end == TO_THE_END for damage in blob.damages)
            return {} if is_cut else dict(self._store.stat(blob.key).meta)
        meta = content.blob_meta(self._store, recipe.root_name, recipe.entry)
        return {"hdi_isfolder": "true", **meta} if recipe.entry.kind == "dir" else meta

    def _is_own(self, blob: Wounded, entry: Entry) -> bool:
        """Whether an entry tells all that is in a blob: it was made for it, or for one with the same content."""
        if blob.key == blob_name(self._server, entry.guid):
            return True
        size = entry.content_size
        return size == blob.needed and entry.extents == (Extent(blob.key, 0, size, size),)

    # One file's own

    def _plain(self, root_name: bytes, entry: Entry) -> Iterator[bytes]:
        hasher = source.content_hasher(entry)
        at_once = max(BLOCK_SIZE_BYTES, -(-entry.content_size // blocks.MOST_BLOCKS))
        with self._opened(root_name, entry) as descriptor:
            for piece in source.read_blocks(descriptor, entry, at_once):
                hasher.update(piece)
                yield piece
        _check(entry, hasher.hexdigest())

    def _encoded(self, key: str, root_name: bytes, entry: Entry) -> Iterator[bytes]:
        position = 0
        with self._right(root_name, entry) as descriptor:
            for extent, offset in self._parts(key, entry):
                if extent.stored_offset != position:
                    raise SourceError("not all that was in it is known")
                yield self._stored(descriptor, entry, extent, offset)
                position += extent.stored_length

    def _parts(self, key: str, entry: Entry) -> Iterator[tuple[Extent, int]]:
        """Yield what of a content lies in a blob, block by block, with the offset of each in the content."""
        extents: Sequence[Extent] = of_entry(self._server, entry)
        known = blocklist.load(self._store, self._server, entry)
        if known:
            finder, starts = Finder(split(extents, known)), itertools.accumulate((b.size for b in known), initial=0)
            extents = [
                part for start, block in zip(starts, known, strict=False) for part in finder.parts(start, block.size)
            ]
        elif entry.is_encoded and len(extents) > 1:
            raise SourceError("its list of blocks is lost")
        offset = 0
        for extent in extents:
            if extent.blob == key:
                yield extent, offset
            offset += extent.plain_length

    def _stored(self, descriptor: int, entry: Entry, extent: Extent, offset: int) -> bytes:
        """Return the stored form of a part of a living content, which is right as a whole."""
        data = _read(descriptor, entry, offset, extent.plain_length)
        return self._frame(data, extent.stored_length) if extent.codec else data

    def _frame(self, data: bytes, length: int) -> bytes:
        for level in self._levels:
            for way in (encode_where_it_pays, encode):
                frame = way(data, level)
                if len(frame) == length:
                    return frame
        raise SourceError("compressed anew it has another length: another `compression`, or another version of zstd")

    # What several files share

    def _image(self, blob: Wounded) -> Iterator[bytes]:
        size = self._store.stat(blob.key).size_bytes if blob.version else 0
        if max(size, blob.needed) > MOST_IMAGE_BYTES:
            raise SourceError("it is shared by several files and too long to be put together here")
        image = bytearray(self._store.read(blob.key, 0, size, version=blob.version) if size else b"")
        members: list[tuple[Extent, bytes, Entry, bytes]] = []
        lost: list[str] = []
        for roots, entry in blob.entries:
            path = full_path(roots[entry.root], entry.raw_path)
            try:
                with self._right(roots[entry.root], entry) as descriptor:
                    for extent, offset in self._parts(blob.key, entry):
                        if blob.lies_in_damage(extent):
                            data = _read(descriptor, entry, offset, extent.plain_length)
                            members.append((extent, data, entry, path))
            except SourceError as error:
                lost.append(f"{display(path)} ({error.message})")
        found = {extent for extent, *_ in members}
        if any(not self._is_found(blob, entry, found) for _, entry in blob.entries):
            more = f" and {len(lost) - 3:,} more" if len(lost) > 3 else ""
            raise SourceError(f"not all that is damaged in it is in the source: {', '.join(lost[:3])}{more}")
        self._place(image, members)
        for start in range(0, len(image), BLOCK_SIZE_BYTES):
            yield bytes(image[start : start + BLOCK_SIZE_BYTES])

    def _is_found(self, blob: Wounded, entry: Entry, found: set[Extent]) -> bool:
        try:
            return all(extent in found for extent, _ in self._parts(blob.key, entry) if blob.lies_in_damage(extent))
        except SourceError:
            return False

    def _place(self, image: bytearray, members: list[tuple[Extent, bytes, Entry, bytes]]) -> None:
        """Put what was read where it belongs, with the tar headers before it where the blob had ended."""
        size = len(image)
        runs: dict[tuple[int, int], dict[Extent, tuple[bytes, Entry, bytes]]] = {}
        for extent, data, entry, path in members:
            runs.setdefault((extent.stored_offset, extent.stored_length), {}).setdefault(extent, (data, entry, path))
        for (offset, length), parts in sorted(runs.items()):
            extents = sorted(parts, key=lambda extent: extent.skip)
            in_order = [parts[extent] for extent in extents]
            if not extents[0].codec:
                stored, header = in_order[0][0], header_of(in_order[0][2], in_order[0][1], length)
            elif extents[0].skip == 0:
                stored, header = self._frame(in_order[0][0], length), b""
            else:
                stored, header = self._members_frame(extents, in_order, length), b""
            if offset > len(image):
                _fill(image, offset, header, coded=extents[0].codec != "")
            image[offset : offset + length] = stored
        if len(image) > size and not members[0][0].codec:
            image += bytes(-len(image) % len(_END_OF_TAR) // 2) + _END_OF_TAR

    def _members_frame(self, extents: list[Extent], members: list[tuple[bytes, Entry, bytes]], length: int) -> bytes:
        """Return the frame of a pack that has these members."""
        plain = bytearray()
        for extent, (data, entry, path) in zip(extents, members, strict=True):
            plain += header_of(path, entry, len(data))
            if len(plain) != extent.skip:
                raise SourceError("its frame held files that no snapshot names any more")
            plain += padded(data)
        return self._frame(bytes(plain), length)

    @contextlib.contextmanager
    def _opened(self, root_name: bytes, entry: Entry) -> Iterator[int]:
        """Open the file of an entry, if it is one that may still have its content. Raises `SourceError`."""
        tree = self._trees.get(root_name)
        if tree is None:
            raise SourceError("is below no source_path of this machine")
        descriptor = tree.open(entry.raw_path)
        try:
            status = os.fstat(descriptor)
            source.check_regular(status)
            if status.st_size != entry.size:
                raise SourceError("is another version now")
            yield descriptor
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def _right(self, root_name: bytes, entry: Entry) -> Iterator[int]:
        """Open the file of an entry that has its content, and still has when the block ends. Raises `SourceError`."""
        with self._opened(root_name, entry) as descriptor:
            before = os.fstat(descriptor)
            hasher = source.content_hasher(entry)
            for piece in source.read_blocks(descriptor, entry, BLOCK_SIZE_BYTES):
                hasher.update(piece)
            _check(entry, hasher.hexdigest())
            yield descriptor
            after = os.fstat(descriptor)
            if (before.st_mtime_ns, before.st_ctime_ns) != (after.st_mtime_ns, after.st_ctime_ns):
                raise SourceError("changed while it was read")


def _read(descriptor: int, entry: Entry, offset: int, length: int) -> bytes:
    layout = blocks.Layout(entry.size, entry.ranges)
    pieces = []
    for start, size in layout.places(offset, length):
        while size:
            pieces.append(source.read_at(descriptor, size, start))
            start += len(pieces[-1])
            size -= len(pieces[-1])
    return b"".join(pieces)


def _fill(image: bytearray, offset: int, header: bytes, *, coded: bool) -> None:
    """Lengthen a pack up to a member's data, whose header comes before it; what lay in between is not known."""
    start = offset - len(header)
    if image[start:] != header[: max(len(image) - start, 0)]:
        raise SourceError("its tar headers were others")
    del image[start:]  # of a header that is there in part
    gap = start - len(image)
    if coded and gap >= 8:
        image += _SKIPPABLE + (gap - 8).to_bytes(4, "little") + bytes(gap - 8)
    else:
        image += bytes(gap)
    image += header


def _check(entry: Entry, digest: str) -> None:
    if digest != entry.digest:
        raise SourceError("is another version now")
