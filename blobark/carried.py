"""Segments that a new snapshot has from the one before it, or that its patches rest on: they are in the store before
it is published.

    list      the server's segments, a page a request: each must be there, as long as the catalog's copy
    look      at those that are not
    mend      what is missing or damaged, from the catalog, and read it back

Damage that leaves a segment its length is `verify`'s to find.
"""

from __future__ import annotations

from collections.abc import Iterator

from blobark import snapshot
from blobark.catalog import Catalog
from blobark.context import Context
from blobark.errors import Fatal
from blobark.stores.base import PAGE_BLOBS, Store


def mend(context: Context, catalog: Catalog, store: Store, server: str, names: list[str]) -> None:
    """Make sure that segments, which the catalog has, are in the store.

    Raises:
        Fatal: one cannot be mended.
    """

    def put(batch: list[tuple[str, bytes]]) -> list[bool]:
        return [snapshot.put_segment(store, server, name, stored, check=True) for name, stored in batch]

    suspects = _suspects(catalog, store, server, names) if names else []
    mended = 0
    for _, was_put in context.engine.run(_stored(catalog, suspects), put, cost=lambda job: len(job[1])):
        mended += was_put
    if mended:
        context.reporter.warn(f"segments that were damaged or missing in {store.name}, and were mended: {mended}")


def requests(segments: int) -> int:
    """Return how many listings `mend` costs at least for a snapshot of so many segments."""
    return -(-segments // PAGE_BLOBS)


def _suspects(catalog: Catalog, store: Store, server: str, names: list[str]) -> list[str]:
    """Return the segments that are not in the store with the catalog's length."""
    left = {snapshot.segment_key(server, name): name for name in names}
    for info in store.list(snapshot.segment_key(server, "")):
        name = left.get(info.key)
        if name is not None and info.size_bytes == catalog.segment_bytes(name):
            del left[info.key]
    return list(left.values())


def _stored(catalog: Catalog, names: list[str]) -> Iterator[tuple[str, bytes]]:
    for name in names:
        stored = catalog.sound_segment(name)  # what goes over a damaged one has to be right
        if stored is None:
            raise Fatal(f"the catalog has lost segment {name}", "delete state_dir: it is rebuilt from the store")
        yield name, stored
