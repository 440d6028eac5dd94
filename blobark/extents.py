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


def joined(extents: Iterable[Extent]) -> tuple[Extent, ...]:
    """Return the same content with neighbours that go on in the same blob made one."""
    found: list[Extent] = []
    for extent in extents:
        last = found[-1] if found else Extent("", 0, 0, 0)
        if (last.blob, last.stored_offset + last.stored_length) == (extent.blob, extent.stored_offset):
            length = last.stored_length + extent.stored_length
            found[-1] = Extent(last.blob, last.stored_offset, length, length)
        else:
            found.append(extent)
    return tuple(found)


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

    def parts(self, offset: int, length: int) -> Iterator[tuple[str, int, int]]:
        """Yield (blob, offset in it, length) of each run that this part of the content is made of, in order."""
        index = bisect_right(self._starts, offset) - 1
        while length > 0:
            extent = self.extents[index]
            inside = offset - self._starts[index]
            taken = min(extent.plain_length - inside, length)
            if taken > 0:
                yield extent.blob, extent.stored_offset + inside, taken
            offset += max(taken, 0)
            length -= max(taken, 0)
            index += 1


def sources(server: str, entry: Entry, blocks: Iterable[Block]) -> dict[str, tuple[str, int]]:
    """Return where an entry's blocks lie in one piece: digest -> (blob, offset in it)."""
    finder = Finder(of_entry(server, entry))
    found: dict[str, tuple[str, int]] = {}
    offset = 0
    for block in blocks:
        parts = list(finder.parts(offset, block.size))
        if len(parts) == 1:
            found[block.digest] = parts[0][:2]
        offset += block.size
    return found
