"""Stocktaking: what a server has in the store, what its snapshots name of it, and what is on its trash lists.

    list the trash lists, then the blobs, with their times     first: what comes later is not judged at all
    read every header, then every segment once                 what cannot be read ends it: nothing is judged by halves
    look again, as often as asked                              a snapshot that has come since is read too

Everything goes to a scratch file, so memory does not grow with the number of blobs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import islice

from blobark import snapshot, tags, trash
from blobark.context import Context
from blobark.errors import BlobNotFound, Fatal, SnapshotError
from blobark.holdings import KEPT, SEVERAL, Holdings
from blobark.model import Entry, Extent, Header, SegmentRef
from blobark.packs import room_for
from blobark.retention import Candidate
from blobark.segments import MAX_PLAIN_BYTES
from blobark.stores.base import Store

ROWS_AT_ONCE = 10_000
_NUMBER = re.compile("[0-9]{10}")
_UNREADABLE = (
    "nothing is deleted while a snapshot cannot be read; `blobark repair --yes` may mend it, `blobark forget` "
    "removes one for good, the newest after a backup (with --skip-damaged, if need be)"
)
_NUMBERS_NAMED = 5


class Stock:
    """A server's blobs, snapshots and trash lists, as they were when this was made.

    Snapshots in `needless` need not be readable: they are to go. Raises `SnapshotError` where any other one is not.
    """

    def __init__(self, context: Context, store: Store, server: str, needless: frozenset[int]) -> None:
        self._context = context
        self._store = store
        self.server = server
        self._needless = needless
        self.headers: dict[int, Header] = {}
        self.tags: dict[int, frozenset[str]] = {}
        self.numbers: list[int] = []
        """Of all snapshots, also of those that need not be readable and are not."""
        self.lists: dict[str, int] = {}
        """When each trash list was published, by its key."""
        self._read: set[str] = set()

    def take(self, holdings: Holdings) -> None:
        """Fill the holdings with what is there and what is listed, and find the snapshots. Names nothing yet."""
        context, store = self._context, self._store
        for info in trash.lists(store, self.server):
            self.lists[info.key] = _known(info.modified_ns, store)
            try:
                holdings.add_listed(trash.read(store, self.server, info.key).keys, info.modified_ns)
            except BlobNotFound:  # another prune has finished it
                del self.lists[info.key]
        context.reporter.begin("list the store", 0, 0)
        own = f"{snapshot.PREFIX}{self.server}/"
        for prefix in (f"{self.server}_", f"{own}blocks/", f"{own}segments/"):
            listing = store.list(prefix, times=True)
            while page := list(islice(listing, ROWS_AT_ONCE)):
                context.check_stop()
                context.reporter.advance(len(page), 0)
                rows = [(info.key, info.size_bytes, _known(info.modified_ns, store)) for info in page]
                holdings.add_blobs(row for row in rows if trash.can_go(self.server, row[0]))
        holdings.settle_runs()
        self.tags = tags.read(store, self.server)
        self._load(self._numbers())
        if self.numbers and not self.headers:
            hint = "`blobark backup --skip-damaged` makes one that can; then forget the others"
            raise SnapshotError(f"no snapshot of server {self.server} in {store.name} can be read", hint)
        if not self.headers:
            hint = "with no snapshot there is nothing to judge by"
            raise SnapshotError(f"server {self.server} has no snapshot in {store.name}", hint)

    def candidates(self) -> list[Candidate]:
        """Return the snapshots as retention sees them. One that cannot be read is of 1970, and incomplete."""
        found = []
        for number in self.numbers:
            header, names = self.headers.get(number), self.tags.get(number, frozenset())
            found.append(
                Candidate(number, header.started_ns, header.complete, names)
                if header is not None
                else Candidate(number, 0, False, names)
            )
        return found

    def name(self, holdings: Holdings, going: frozenset[int]) -> None:
        """Read the segments of all snapshots, and note what each names; `going` are those that are to be removed."""
        owners: dict[str, int] = {}
        refs: dict[str, SegmentRef] = {}
        for number, header in self.headers.items():
            who = number if number in going else KEPT
            for ref in header.segments:
                before = owners.get(ref.name, who)
                owners[ref.name] = who if before == who else KEPT if KEPT in (before, who) else SEVERAL
                refs[ref.name] = ref
        self._read |= {name for name, who in owners.items() if who == KEPT}
        self._name(holdings, refs.values(), owners)

    def look_again(self, holdings: Holdings) -> None:
        """Note what snapshots name that have come since."""
        new = [number for number in self._numbers() if number not in self.numbers]
        self._load(new)
        refs = {ref.name: ref for number in new for ref in self.headers[number].segments}
        refs = {name: ref for name, ref in refs.items() if name not in self._read}
        self._read |= refs.keys()
        self._name(holdings, refs.values(), dict.fromkeys(refs, KEPT))

    def check_lists(self, needed: Iterable[str]) -> None:
        """Raise `Fatal` unless these trash lists are still there: who removes them has deleted what was on them."""
        there = {info.key for info in trash.lists(self._store, self.server)}
        if not there >= set(needed):
            raise Fatal("another prune has been at work meanwhile", "run prune again")

    def check_tags(self, number: int) -> None:
        """Raise `Fatal` unless a snapshot has the tags that it had."""
        if tags.read(self._store, self.server).get(number) != self.tags.get(number):
            raise Fatal(f"the tags of snapshot {number} have been changed meanwhile", "run it again")

    def _numbers(self) -> list[int]:
        """Return the numbers of the snapshots; `Fatal` where a key there is none that this version knows."""
        prefix = f"{snapshot.PREFIX}{self.server}/snapshots/"
        names = [info.key[len(prefix) :] for info in self._store.list(prefix)]
        strange = next((name for name in names if not _NUMBER.fullmatch(name)), None)
        if strange is not None:
            hint = "nothing is deleted beside what is not known"
            raise SnapshotError(f"{prefix}{strange} is no snapshot's header", hint)
        return sorted(map(int, names))

    def _load(self, numbers: list[int]) -> None:
        for number in numbers:
            self._context.check_stop()
            try:
                header = snapshot.find(self._store, self.server, number)
            except SnapshotError as error:
                if number not in self._needless:
                    raise SnapshotError(error.message, _UNREADABLE) from None
                self._context.reporter.warn(f"{error.message}: it is to go anyway")
                header = None
                self.numbers.append(number)
            if header is not None:
                self.headers[number] = header
                self.numbers.append(number)
        self.numbers.sort()

    def _name(self, holdings: Holdings, refs: Iterable[SegmentRef], owners: dict[str, int]) -> None:
        refs = list(refs)
        manifest = snapshot.Manifest(self._store, self.server)
        self._context.reporter.begin("read the snapshots", sum(ref.entries for ref in refs), 0)

        root_bytes = max(len(root.raw_name) for header in self.headers.values() for root in header.roots)
        newest = {ref.name for ref in self.headers[max(self.headers)].segments}

        def read(batch: list[SegmentRef]) -> list[list[Entry]]:
            return [self._entries(manifest, ref, owners[ref.name]) for ref in batch]

        for ref, entries in self._context.engine.run(iter(refs), read, cost=_cost):
            who = owners[ref.name]
            holdings.add_names((snapshot.segment_key(self.server, name), who) for name in ref.objects)
            holdings.add_names((key, who) for entry in entries for key in trash.names_of(self.server, entry))
            if who == KEPT:
                holdings.add_cited(
                    (part.blob, part.stored_offset, part.stored_length, _room(part, path_bytes), ref.name in newest)
                    for entry in entries
                    for path_bytes in (root_bytes + 1 + len(entry.raw_path),)
                    for part in entry.extents or ()
                )
            self._context.reporter.advance(ref.entries, 0)

    def _entries(self, manifest: snapshot.Manifest, ref: SegmentRef, who: int) -> list[Entry]:
        try:
            return manifest.read(ref)
        except SnapshotError as error:
            if who == KEPT or not self._needless:
                raise SnapshotError(f"{error.message} ({self._named_by(ref)})", _UNREADABLE) from None
            return []

    def _named_by(self, ref: SegmentRef) -> str:
        """Return which snapshots have a segment, for a person."""
        found = [number for number, header in sorted(self.headers.items()) if ref in header.segments]
        named = ", ".join(map(str, found[:_NUMBERS_NAMED]))
        more = len(found) - _NUMBERS_NAMED
        return f"of snapshot {named}" + (f" and {more} more" if more > 0 else "")


def _cost(ref: SegmentRef) -> int:
    return 4 * min(ref.plain_bytes, MAX_PLAIN_BYTES)


def _room(part: Extent, path_bytes: int) -> int:
    """Return how many bytes a part takes in its blob at most: in a tar that is more than its own."""
    return part.stored_length if part.codec else room_for(part.stored_length, path_bytes)


def _known(modified_ns: int, store: Store) -> int:
    if modified_ns <= 0:
        raise Fatal(f"{store.name} does not say when its blobs were written", "without that nothing can be judged")
    return modified_ns
