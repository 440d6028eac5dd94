"""What the draft has that the newest snapshot has not: two sorted streams, merged, segment by segment.

A segment that both have is not even read. Of the others each entry comes with what the snapshot has under its path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from msgspec.structs import replace

from blobark import snapshot
from blobark.catalog import Catalog, DraftSegment
from blobark.context import Context
from blobark.errors import SnapshotError
from blobark.extents import blobs_of
from blobark.model import Entry, Header, SegmentRef
from blobark.stores.base import Store


class Difference:
    """The draft against the newest snapshot of the store, which is looked up once, when this is made."""

    def __init__(
        self, context: Context, catalog: Catalog, store: Store | None, server: str, root_names: list[bytes]
    ) -> None:
        self._context = context
        self._catalog = catalog
        self._store = store
        self._server = server
        self._root_names = root_names
        skip = context.skip_damaged
        self.newest = max(snapshot.numbers(store, server), default=0) if store else 0
        """The highest number that is taken, be it by a damaged snapshot."""
        self.parent: Header | None = snapshot.to_go_on_from(store, server, skip_damaged=skip) if store else None
        if skip and self.newest > (self.parent.number if self.parent else 0):
            hint = f"when this run has published, `blobark forget {self.newest}` removes it"
            context.reporter.warn(f"snapshot {self.newest} is damaged, and passed over: {hint}")
        known = catalog.last_known(server, store.name) if store and self.newest else 0
        self.number = max(self.newest, known) + 1
        """What the next snapshot is called: no number is given twice, but in a store that begins anew."""
        if known > self.newest and not skip:
            raise SnapshotError(f"snapshot {known} of {server}, which this machine has seen, is gone", snapshot.GO_ON)
        self._told: set[str] = set()
        """The segments of it that are known to be damaged or missing."""
        self.known = frozenset(ref.digest for ref in self.parent.segments) if self.parent else frozenset()
        """The digests of the newest snapshot's segments."""

    def parent_segments(self) -> tuple[tuple[SegmentRef, ...], Callable[[SegmentRef], list[Entry]]]:
        """Return the newest snapshot's segments, and what reads one: none of its entries where it is damaged."""
        if self.parent is None or self._store is None:
            return (), lambda _: []
        manifest = snapshot.Manifest(self._store, self._server, self._catalog.segment)
        return self.parent.segments, lambda ref: self._sound(self._readable(manifest, ref))

    def damaged(self) -> Iterator[Entry]:
        """Yield the newest snapshot's entries whose content a repair has found damaged, and could not mend."""
        if self.parent is not None and self._store is not None and self._catalog.journal.has_damaged():
            manifest = snapshot.Manifest(self._store, self._server, self._catalog.segment)
            for ref in self.parent.segments:
                yield from (entry for entry in self._readable(manifest, ref) if self._is_damaged(entry))

    def _sound(self, entries: list[Entry]) -> list[Entry]:
        """Return entries without those whose content is known to be damaged: nothing may be taken over from them."""
        if not self._catalog.journal.has_damaged():
            return entries
        return [entry for entry in entries if not self._is_damaged(entry)]

    def _is_damaged(self, entry: Entry) -> bool:
        return entry.digest != "" and self._catalog.journal.are_damaged(blobs_of(self._server, entry))

    def segments(self) -> list[DraftSegment]:
        """Return the draft's segments, as they are now, that are not the snapshot's."""
        return [segment for segment in self._catalog.draft() if self._is_changed(segment)]

    def entries(self) -> Iterator[tuple[int, Entry, Entry | None]]:
        """Yield (sequence, entry, the snapshot's entry of that path) of these segments, in order."""
        segments = self._catalog.draft()
        changed = [segment for segment in segments if self._is_changed(segment)]
        before = self._parent_entries({segment.ref.digest for segment in segments if not self._is_changed(segment)})
        previous = next(before, None)
        for sequence, entry in self._catalog.entries(changed):
            theirs = None
            if previous is not None:
                key = entry.sort_key
                while previous is not None and previous.sort_key < key:
                    previous = next(before, None)
                theirs = previous if previous is not None and previous.sort_key == key else None
            yield sequence, entry, theirs

    def _is_changed(self, segment: DraftSegment) -> bool:
        return segment.overlaid or segment.ref.digest not in self.known

    def _parent_entries(self, shared: set[str]) -> Iterator[Entry]:
        """Yield the newest snapshot's entries, but for segments that the draft shares, in order."""
        if self.parent is None or self._store is None:
            return
        manifest = snapshot.Manifest(self._store, self._server, self._catalog.segment)
        numbers = {root.raw_name: number for number, root in enumerate(self.parent.roots)}
        today = {numbers.get(name, -1): number for number, name in enumerate(self._root_names)}
        for ref in self.parent.segments:
            if ref.digest not in shared:
                for entry in self._sound(self._readable(manifest, ref)):
                    if entry.root in today:
                        yield entry if today[entry.root] == entry.root else replace(entry, root=today[entry.root])

    def _readable(self, manifest: snapshot.Manifest, ref: SegmentRef) -> list[Entry]:
        """Return a segment's entries; none when it is damaged, so that what it names is looked for in the store."""
        try:
            return manifest.read(ref)
        except SnapshotError as error:
            if ref.name not in self._told:
                self._context.reporter.warn(f"the snapshot before this one is damaged: {error.message}")
            self._told.add(ref.name)
            return []
