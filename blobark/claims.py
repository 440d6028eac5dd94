"""Claims: content that the catalog says is in the store, and that the newest snapshot does not name.

It is what a run that was killed has sent, or what a file had under another path. A save names nothing that it has not
seen, so claims are looked for in a listing: a blob of its own with just its length, a pack or another's blob with at
least what is cited of it.
"""

from __future__ import annotations

from collections.abc import Iterator

from blobark import audit
from blobark.catalog import Catalog
from blobark.difference import Difference
from blobark.extents import ends, of_entry
from blobark.guids import TAG_LENGTH
from blobark.model import Entry
from blobark.stores.base import Store

_AT_ONCE = 1000


def is_claim(entry: Entry, theirs: Entry | None) -> bool:
    """Whether only the catalog says that an entry's content is in the store; `theirs` is the snapshot's entry."""
    has_content = entry.guid != "" and not entry.is_pending and not (entry.rule and entry.kind == "file")
    return has_content and (theirs is None or theirs.guid != entry.guid)


class Claims:
    """The claims of one save."""

    def __init__(self, catalog: Catalog, store: Store | None, server: str, difference: Difference) -> None:
        self._journal = catalog.journal
        self._store = store
        self._server = server
        self._difference = difference
        self._rows: list[tuple[str, int, int, bool]] = []
        self.listings = 0
        """How many listings it took to look for them."""
        self.missing: frozenset[int] | None = None
        """The sequences of those that are not in the store, once they have been looked for."""

    def add(self, sequence: int, entry: Entry) -> None:
        """Note a claim."""
        whole = entry.extents is None
        self._rows += ((blob, sequence, end, whole) for blob, end in ends(of_entry(self._server, entry)).items())
        if len(self._rows) >= _AT_ONCE:
            self._flush()

    def look(self) -> frozenset[int]:
        """Look for what was noted; return the sequences of what is not there."""
        if self.missing is None:
            self._flush()
            found = self._journal.claimed_prefixes(len(self._server) + 1 + TAG_LENGTH)
            for page in audit.pages(self._store, audit.prefixes(self._server, found)) if self._store else ():
                self.listings += 1
                self._journal.found((info.key, info.size_bytes) for info in page)
            self.missing = self._journal.unfound()
        return self.missing

    def sorted(self) -> Iterator[tuple[list[Entry], list[Entry]]]:
        """Note all claims, look for them, and yield those that are in the store and those that are not, some a time."""
        count = 0
        for sequence, entry, theirs in self._difference.entries():
            if is_claim(entry, theirs):
                self.add(sequence, entry)
                count += 1
        missing = self.look()
        found: list[Entry] = []
        lost: list[Entry] = []
        for sequence, entry, theirs in self._difference.entries() if count else ():
            if is_claim(entry, theirs):
                (lost if sequence in missing else found).append(entry)
            if len(found) + len(lost) >= _AT_ONCE:
                yield found, lost
                found, lost = [], []
        yield found, lost

    def _flush(self) -> None:
        rows, self._rows = self._rows, []
        self._journal.claim(rows)
