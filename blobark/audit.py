"""The audit: before a snapshot is published, the store's own account of what the run has sent is asked for.

Between the memory of this machine and the disk of the store lies more than TLS covers: a proxy that ends it, a service
that mishandles a body. A store that computes the MD5 of each blob it gets in one piece, and lists it, can be asked.

    note      with a sent entry's outcome: GUID, size and MD5 of what was read, durable together with it
    compare   list what begins like a noted GUID, 5,000 blobs a request; strike what is there as it was read
    faulty    what is left arrived changed, cut or longer, or is gone: the save sends it again under another GUID

What was noted and not struck lasts in the catalog until the next snapshot is published, so a run that goes on where
another was killed audits what that one sent. Content sent in blocks, each of which the store checks as it comes, has
no MD5 that says anything: only its size is compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

from blobark.catalog import Catalog
from blobark.context import Context
from blobark.guids import raw_guid
from blobark.model import Entry
from blobark.stores.base import PAGE_BLOBS, BlobInfo, Store, listings

AUDITS = 3
"""What is found wrong so many times, under as many GUIDs, fails."""

MAX_LISTINGS = 16
"""With more prefixes than these all blobs of the server are listed in one go."""


def is_wanted(context: Context, store: Store | None) -> bool:
    """Whether a save to this store is audited: it is asked for, and the store can tell."""
    return context.config.upload_check == "full" and store is not None and store.lists_md5


def prefixes(server: str, found: Iterable[str]) -> list[str]:
    """Return the prefixes to list; that of the whole server where `found` are too many."""
    chosen = list(found)
    return chosen if len(chosen) <= MAX_LISTINGS else [f"{server}_"]


def pages(store: Store, keys_begin: Iterable[str]) -> Iterator[list[BlobInfo]]:
    """Yield the blobs below each prefix in pages as large as a service's: each is a request, even if it is empty."""
    for prefix in keys_begin:
        listing = store.list(prefix)
        page = list(islice(listing, PAGE_BLOBS))
        yield page
        while len(page) == PAGE_BLOBS and (page := list(islice(listing, PAGE_BLOBS))):
            yield page


class Audit:
    """The audit of one save."""

    def __init__(self, context: Context, catalog: Catalog, server: str) -> None:
        self._context = context
        self._catalog = catalog
        self._server = server

    def note(self, entry: Entry, md5: bytes) -> None:
        """Note what was sent for an entry; b"" where its MD5 says nothing. Durable with the catalog's next commit."""
        if entry.extents is None:  # otherwise its content is not what the blob of its GUID holds
            self._catalog.note_sent(raw_guid(entry.guid), entry.content_size, md5)

    def compare(self, store: Store) -> int:
        """Strike what the store has as it was read; return how many blobs those were. The rest is `faulty`."""
        begin = len(self._server) + 1
        tags = self._catalog.sent_tags()
        if tags:
            self._context.reporter.begin("audit", sum(tags.values()), 0)
        right = 0
        for page in pages(store, prefixes(self._server, (f"{self._server}_{tag}" for tag in tags))):
            self._context.check_stop()
            self._context.reporter.advance(len(page), 0)
            right += self._catalog.strike_sent(
                (raw_guid(info.key[begin:]), info.size_bytes, bytes.fromhex(info.md5)) for info in page
            )
        self._catalog.commit()
        return right

    @property
    def is_empty(self) -> bool:
        """Whether nothing is noted, or everything has been struck."""
        return not self._catalog.sent_tags()

    def is_faulty(self, entry: Entry) -> bool:
        """Whether what was sent for this entry has not been struck."""
        return entry.guid != "" and self._catalog.is_sent(raw_guid(entry.guid))

    def forget(self, entry: Entry) -> None:
        """Note no longer what was sent for this entry: its GUID is given up."""
        self._catalog.forget_sent(raw_guid(entry.guid))

    def requests(self, others: int) -> int:
        """Return how many listings `compare` takes at least; the server has `others` blobs beside what was noted."""
        counts = self._catalog.sent_tags()
        if len(counts) > MAX_LISTINGS:
            counts = {"": sum(counts.values()) + others}
        return sum(map(listings, counts.values()))
