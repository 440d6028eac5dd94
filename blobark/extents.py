"""Extents: where the parts of a content lie. Arithmetic on values; nothing is read here."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence

from blobark.guids import blob_name
from blobark.model import Block, Entry, Extent


def of_entry(server: str, entry: Entry) -> tuple[Extent, ...]:
    """Return an entry's extents; in the plain case the one that is the whole blob under its GUID."""
    size = entry.content_size
    return entry.extents if entry.extents is not None else (Extent(blob_name(server, entry.guid), 0, size, size),)


def blobs_of(server: str, entry: Entry) -> list[str]:
    """Return the keys of all blobs that an entry's content lies in."""
    if entry.extents is None:
        return [blob_name(server, entry.guid)]
    return list(dict.fromkeys(extent.blob for extent in entry.extents))


def ends(extents: Iterable[Extent]) -> dict[str, int]:
    """Return how long each blob must be at least to hold what these extents name."""
    found: dict[str, int] = {}
    for extent in extents:
        found[extent.blob] = max(found.get(extent.blob, 0), extent.stored_offset + extent.stored_length)
    return found


def joined(extents: Iterable[Extent]) -> tuple[Extent, ...]:
    """Return the same content with neighbours that go on in the same blob made one: whole runs, without `skip`."""
    found: list[Extent] = []
    for extent in extents:
        last = found[-1] if found else None
        if last is not None and (last.blob, last.codec, _end(last)) == (
            extent.blob,
            extent.codec,
            extent.stored_offset,
        ):
            stored, plain = last.stored_length + extent.stored_length, last.plain_length + extent.plain_length
            found[-1] = Extent(last.blob, last.stored_offset, stored, plain, last.codec)
        else:
            found.append(extent)
    return tuple(found)


def split(extents: Iterable[Extent], blocks: Iterable[Block]) -> list[Extent]:
    """Return the same content with each encoded run made one extent a block: every block can be read by itself.

    Raises `ValueError` where these are not the blocks of such a content.
    """
    found: list[Extent] = []
    queue = iter(blocks)
    ahead = 0
    for extent in extents:
        if not extent.codec:
            found.append(extent)
            ahead -= extent.plain_length
            while ahead < 0:
                ahead += _next(queue).size
            continue
        offset, plain = extent.stored_offset, 0
        while plain < extent.plain_length:
            block = _next(queue)
            found.append(Extent(extent.blob, offset, block.stored, block.size, extent.codec))
            offset += block.stored
            plain += block.size
        if ahead or extent.skip or (offset, plain) != (_end(extent), extent.plain_length):
            raise ValueError("the blocks are not those of the content")
    return found


def _next(queue: Iterator[Block]) -> Block:
    block = next(queue, None)
    if block is None or block.size <= 0 or block.stored < 0:
        raise ValueError("the blocks are not those of the content")
    return block


def _end(extent: Extent) -> int:
    return extent.stored_offset + extent.stored_length


def cited(extents: Iterable[Extent]) -> dict[str, int]:
    """Return how many bytes of each blob these extents name, each byte once however often it is named."""
    runs: dict[str, set[tuple[int, int]]] = {}
    for extent in extents:
        runs.setdefault(extent.blob, set()).add((extent.stored_offset, extent.stored_length))
    return {blob: sum(length for _, length in found) for blob, found in runs.items()}


class Finder:
    """Finds parts of a content in its extents."""

    def __init__(self, extents: Sequence[Extent]) -> None:
        self.extents = extents
        self._starts: list[int] = []
        start = 0
        for extent in extents:
            self._starts.append(start)
            start += extent.plain_length

    def parts(self, offset: int, length: int) -> Iterator[Extent]:
        """Yield the extents that this part of the content is made of, in order."""
        index = bisect_right(self._starts, offset) - 1
        while length > 0:
            extent = self.extents[index]
            inside = offset - self._starts[index]
            taken = min(extent.plain_length - inside, length)
            if taken > 0:
                yield _part(extent, inside, taken)
            offset += max(taken, 0)
            length -= max(taken, 0)
            index += 1


def _part(extent: Extent, inside: int, length: int) -> Extent:
    if not extent.codec:
        return Extent(extent.blob, extent.stored_offset + inside, length, length)
    return Extent(extent.blob, extent.stored_offset, extent.stored_length, length, extent.codec, extent.skip + inside)


def sources(server: str, entry: Entry, blocks: Sequence[Block]) -> dict[str, Extent]:
    """Return where an entry's blocks lie in one piece, by their digests; `ValueError` where they are not its blocks."""
    if not blocks:
        return {}
    finder = Finder(split(of_entry(server, entry), blocks))
    found: dict[str, Extent] = {}
    offset = 0
    for block in blocks:
        parts = list(finder.parts(offset, block.size))
        if len(parts) == 1 and not parts[0].skip:
            found[block.digest] = parts[0]
        offset += block.size
    return found
