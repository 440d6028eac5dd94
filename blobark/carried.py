"""Segments that a new snapshot has from the one before it, or that its patches rest on: they are in the store before
it is published.

    list      the server's segments, a page a request: each must be there, as long as the catalog's copy, and with its
              MD5 where the store lists that
    look      at those that are not
    mend      what is missing or damaged, from the catalog, and read it back

The same for those of the snapshot before it that it does not need: the catalog is about to forget them. In a folder,
damage that leaves a segment its length is `verify`'s to find.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from blobark import snapshot
from blobark.catalog import Catalog
from blobark.content import md5_of
from blobark.context import Context
from blobark.errors import Fatal, StoreDenied
from blobark.stores.base import PAGE_BLOBS, Store


def mend(context: Context, catalog: Catalog, store: Store, server: str, names: list[str], before: list[str]) -> None:
    """Make sure that segments, which the catalog has, are in the store.

    `before` are all of the snapshot before this one: those that are not needed any more are mended, too, since the
    catalog is about to forget them.

    Raises:
        Fatal: one that is needed cannot be mended.
    """

    def put(batch: list[tuple[str, bytes]]) -> list[bool]:
        return [snapshot.put_segment(store, server, name, stored, check=True) for name, stored in batch]

    needed, mended = set(names), 0
    suspects = _suspects(catalog, store, server, [*needed, *(name for name in before if name not in needed)])
    jobs = _stored(catalog, [name for name in suspects if name in needed])
    for _, was_put in context.engine.run(jobs, put, cost=lambda job: len(job[1])):
        mended += was_put
    for name in suspects:
        stored = catalog.sound_segment(name) if name not in needed else None
        if stored is not None:
            with contextlib.suppress(StoreDenied):  # which no run has to be able to do
                mended += snapshot.put_segment(store, server, name, stored, check=True)
    if mended:
        context.reporter.warn(f"segments that were damaged or missing in {store.name}, and were mended: {mended}")


def requests(segments: int) -> int:
    """Return how many listings `mend` costs at least for a snapshot of so many segments."""
    return -(-segments // PAGE_BLOBS)


def _suspects(catalog: Catalog, store: Store, server: str, names: list[str]) -> list[str]:
    """Return the segments that are not in the store as the catalog has them, as far as a listing tells."""
    left = {snapshot.segment_key(server, name): name for name in names}
    for info in store.list(snapshot.segment_key(server, "")) if left else ():
        name = left.get(info.key)
        is_as_long = name is not None and info.size_bytes == catalog.segment_bytes(name)
        if name is not None and is_as_long and info.md5 in ("", md5_of(catalog.segment(name) or b"").hex()):
            del left[info.key]
    return list(left.values())


def _stored(catalog: Catalog, names: list[str]) -> Iterator[tuple[str, bytes]]:
    for name in names:
        stored = catalog.sound_segment(name)  # what goes over a damaged one has to be right
        if stored is None:
            raise Fatal(f"the catalog has lost segment {name}", "delete state_dir: it is rebuilt from the store")
        yield name, stored
