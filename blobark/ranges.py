"""Small files that lie near each other in a blob, read together: one request for a neighbourhood.

    neighbours     marks the jobs of a restore whose content lies in a row in one blob, so that they are done together
    runs           the requests that some extents take
    read_together  makes them; a frame that several files are in is decoded once

What is damaged costs only the files that it belongs to, and few requests more: of a blob that has lost its end the
rest is read, and a frame that is none is read once more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from blobark.codec import decoded
from blobark.content import missing
from blobark.errors import BlobNotFound, ContentError
from blobark.extents import of_entry
from blobark.model import Entry, Extent
from blobark.stores.base import BLOCK_SIZE_BYTES, Store
from metrics.stages import Stages

GAP_BYTES = 64 * 1024
"""What lies between two files is read with them when it is not longer than this."""
MOST_BYTES = 4 * 1024 * 1024
"""The longest range that is read at once, and the most content that comes of it."""
MOST_FILES = 2000
_DAMAGED = ContentError("its content in the store is damaged")


@dataclass(slots=True)
class Run:
    """A range of a blob, and which of the extents lie in it."""

    blob: str
    offset: int
    end: int
    members: list[int] = field(default_factory=list)


def near(entry: Entry) -> Extent | None:
    """Return the extent of a small file whose content may be read with its neighbours'; None for all else."""
    if entry.kind != "file" or entry.extents is None or len(entry.extents) != 1:
        return None
    extent = entry.extents[0]
    return extent if max(extent.stored_length, extent.plain_length) <= MOST_BYTES else None


class Neighbourhood:
    """Whether one extent after the other still belongs together."""

    def __init__(self) -> None:
        self._blob = ""
        self._start = self._end = self._plain = self._files = 0

    def takes(self, extent: Extent) -> bool:
        """Whether this one belongs to those before it; if not, it is the first of the next neighbourhood."""
        end = extent.stored_offset + extent.stored_length
        is_near = self._start <= extent.stored_offset <= self._end + GAP_BYTES and extent.blob == self._blob
        is_near = is_near and max(end, self._end) - self._start <= MOST_BYTES and self._files < MOST_FILES
        if is_near and self._plain + extent.plain_length <= MOST_BYTES:
            self._end = max(end, self._end)
            self._plain += extent.plain_length
            self._files += 1
            return True
        self._blob, self._start, self._end = extent.blob, extent.stored_offset, end
        self._plain, self._files = extent.plain_length, 1
        return False


def runs(extents: Sequence[Extent]) -> list[Run]:
    """Return the ranges to read for some extents."""
    found: list[Run] = []
    for place in sorted(range(len(extents)), key=lambda place: (extents[place].blob, extents[place].stored_offset)):
        extent = extents[place]
        end = extent.stored_offset + extent.stored_length
        last = found[-1] if found else None
        if (
            last is None
            or last.blob != extent.blob
            or extent.stored_offset > last.end + GAP_BYTES
            or end - last.offset > MOST_BYTES
        ):
            last = Run(extent.blob, extent.stored_offset, end)
            found.append(last)
        last.end = max(last.end, end)
        last.members.append(place)
    return found


def read_together(store: Store, extents: Sequence[Extent], stages: Stages) -> list[bytes | ContentError]:
    """Return what each extent names, or why it cannot be had; note the time that decoding takes."""
    found: dict[int, bytes | ContentError] = {}
    for run in runs(extents):
        found |= _read_run(store, extents, run, stages)
    return [found[place] for place in range(len(extents))]


def _read_run(store: Store, extents: Sequence[Extent], run: Run, stages: Stages) -> dict[int, bytes | ContentError]:
    try:
        data = memoryview(store.read(run.blob, run.offset, run.end - run.offset))
    except BlobNotFound:
        return dict.fromkeys(run.members, missing(run.blob))
    except ContentError as error:
        return dict.fromkeys(run.members, error) | _read_what_is_left(store, extents, run, stages)
    found: dict[int, bytes | ContentError] = {}
    frames: dict[tuple[int, int], list[int]] = {}
    for place in run.members:
        extent = extents[place]
        if extent.codec:
            frames.setdefault((extent.stored_offset, extent.stored_length), []).append(place)
        else:
            start = extent.stored_offset - run.offset
            found[place] = bytes(data[start : start + extent.stored_length])
    for (start, size), places in frames.items():
        wanted = [extents[place] for place in places]
        parts = _parts(data[start - run.offset : start - run.offset + size], wanted, stages)
        if None in parts:  # perhaps only on its way
            parts = _parts(_read_again(store, wanted[0]), wanted, stages)
        found |= {place: _DAMAGED if part is None else part for place, part in zip(places, parts, strict=True)}
    return found


def _read_what_is_left(
    store: Store, extents: Sequence[Extent], run: Run, stages: Stages
) -> dict[int, bytes | ContentError]:
    """Return what lies before the end of a blob that is shorter than it should be; nothing where that is not why."""
    try:
        size = store.stat(run.blob).size_bytes
    except BlobNotFound:
        return {}
    ends = {place: extents[place].stored_offset + extents[place].stored_length for place in run.members}
    left = [place for place, end in ends.items() if end <= size]
    if not left or len(left) == len(run.members):
        return {}
    return _read_run(store, extents, Run(run.blob, run.offset, max(ends[place] for place in left), left), stages)


def _read_again(store: Store, extent: Extent) -> memoryview:
    try:
        return memoryview(store.read(extent.blob, extent.stored_offset, extent.stored_length))
    except (BlobNotFound, ContentError):
        return memoryview(b"")


def _parts(stored: memoryview, extents: Sequence[Extent], stages: Stages) -> list[bytes | None]:
    """Return the parts of one frame; None for one that cannot be had of it."""
    most = max(extent.skip + extent.plain_length for extent in extents)
    try:
        plain = b"".join(decoded([stored], 0, most, stages)) if most else b""
    except ContentError:
        plain = b""
    parts = [plain[extent.skip : extent.skip + extent.plain_length] for extent in extents]
    return [part if len(part) == extent.plain_length else None for part, extent in zip(parts, extents, strict=True)]


class Requests:
    """Counts the requests that a restore makes for content: of each bundle's files together, of the others alone."""

    def __init__(self, server: str) -> None:
        self._server = server
        self._total = 0
        self._bundle = ""
        self._extents: list[Extent] = []

    def add(self, entry: Entry, bundle: str) -> None:
        """Count what is to be fetched for an entry. The files of a bundle come in a row."""
        if bundle != self._bundle:
            self._end()
            self._bundle = bundle
        if bundle:
            self._extents += entry.extents or ()
        else:
            lengths = (extent.stored_length for extent in of_entry(self._server, entry))
            self._total += sum(-(-length // BLOCK_SIZE_BYTES) for length in lengths)

    def total(self) -> int:
        """Return how many there are."""
        self._end()
        return self._total

    def _end(self) -> None:
        self._total += len(runs(self._extents))
        self._extents = []
