"""Publishing: from the draft to a snapshot that is whole.

    see to it that the store has what every container carries (handout.py)
    write the draft's entries as segments, each as new as it is known; one that the newest snapshot has is kept
    store the segments that are new, some as patches (patches.py)
    the others have to be in the store, and are mended where they are not (carried.py)
    look again: the newest snapshot must still be the one this run has seen, no new trash list have what it needs, and
    the store's lock be this run's
    write the header, create-only; then the snapshot's segments are the draft

A crash before the header leaves the snapshot before it the newest; a crash after it loses nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import msgspec

from blobark import __version__, audit, carried, handout, snapshot
from blobark.catalog import Catalog
from blobark.clock import now_ns, utc
from blobark.codec import ZSTD
from blobark.context import Context
from blobark.engine import meanwhile
from blobark.errors import Fatal
from blobark.identity import this_host
from blobark.index import remember_snapshot
from blobark.model import FORMAT, Entry, Header, Root, SegmentRef, Server, Totals
from blobark.patches import FEATURE, Patches
from blobark.save import Saver
from blobark.segments import SegmentWriter, respelled
from blobark.storelock import StoreLock
from blobark.stores.base import Store
from blobark.trash import Trash, names_of

LOOK_LASTS_NS = 300 * 10**9


def publish(context: Context, catalog: Catalog, store: Store, saver: Saver, lock: StoreLock, *, lost: int) -> Header:
    """Publish the draft as the next snapshot and return its header; `lost` items failed and are no entry of it."""
    result, parent = saver.result, saver.parent
    roots = tuple(msgspec.json.decode(catalog.get("roots"), type=list[Root]))
    if parent is None:
        _claim(context, store, result.server, roots)
    handout.leave(context, catalog, store)
    refs: list[SegmentRef] = []
    check = audit.is_wanted(context, store)
    patches = Patches(catalog, parent, saver.trash)

    def send(batch: list[tuple[str, bytes]]) -> list[bool]:
        return [snapshot.put_segment(store, result.server, name, stored, check=check) for name, stored in batch]

    sent: set[str] = set()
    with meanwhile(store.sync, "sync", context.engine.stop):  # most of what the header has to wait for
        new = _new_segments(catalog, saver, patches, refs)
        for (name, stored), _ in context.engine.run(new, send, cost=_stored_bytes):
            sent.add(name)
            result.segments_sent += 1
            result.segment_bytes += len(stored)
    needed = [name for ref in refs for name in ref.objects if name not in sent]
    before = [name for ref in (parent.segments if parent else ()) for name in ref.objects if name not in sent]
    carried.mend(context, catalog, store, result.server, needed, before)
    started_ns = int(catalog.get("walk_started_ns"))
    header = Header(
        format=FORMAT,
        server=result.server,
        number=saver.number,
        complete=not lost and not any(ref.errors for ref in refs),
        host=this_host(),
        roots=roots,
        started=utc(started_ns),
        started_ns=started_ns,
        ended=utc(now_ns()),
        totals=Totals(
            entries=sum(ref.entries for ref in refs),
            files=sum(ref.files for ref in refs),
            file_bytes=sum(ref.file_bytes for ref in refs),
            errors=sum(ref.errors for ref in refs),
            new_blobs=result.blobs,
            new_bytes=result.sent_bytes,
        ),
        segments=tuple(refs),
        tool=f"blobark {__version__}",
        parent=parent.number if parent else 0,
        requires=_features(refs),
    )
    _look_again(catalog, store, saver, [ref for ref in refs if ref.name in sent])
    lock.check()
    context.check_stop()
    snapshot.publish(store, header, check=check)
    remember_snapshot(catalog, header, store.name)
    result.snapshot, result.complete = header.number, header.complete
    result.entries, result.files, result.file_bytes = (
        header.totals.entries,
        header.totals.files,
        header.totals.file_bytes,
    )
    return header


def _features(refs: list[SegmentRef]) -> tuple[str, ...]:
    """Return what a snapshot of these segments requires of its reader."""
    has = {ZSTD: any(ref.encoded for ref in refs), FEATURE: any(ref.base for ref in refs)}
    return tuple(feature for feature, is_used in has.items() if is_used)


def _stored_bytes(segment: tuple[str, bytes]) -> int:
    return len(segment[1])


def _new_segments(
    catalog: Catalog, saver: Saver, patches: Patches, refs: list[SegmentRef]
) -> Iterator[tuple[str, bytes]]:
    """Yield what is not in the store yet, by name; `refs` gets every segment of the snapshot, in order."""
    finished: list[tuple[str, bytes]] = []

    def keep(ref: SegmentRef, whole: bytes) -> None:
        shared = patches.shared(ref.digest)
        if shared is not None:
            refs.append(shared)
            return
        while saver.trash and saver.trash.has_segment(ref.digest):
            ref, whole = respelled(ref, whole)
        catalog.put_segment(ref.digest, whole)
        ref, stored = patches.pack(ref, whole)
        refs.append(ref)
        catalog.put_segment(ref.name, stored)
        finished.append((ref.name, stored))

    writer = SegmentWriter(keep)
    for segment in catalog.draft():
        if writer.at_cut and not segment.overlaid and (shared := patches.shared(segment.ref.digest)) is not None:
            refs.append(shared)
            continue
        for entry, line in catalog.entries_with_lines(segment):
            if not (entry.rule and entry.kind == "file"):
                writer.add(_publishable(entry), entry.raw_path, line)
        yield from finished
        finished.clear()
    writer.finish()
    yield from finished


def _publishable(entry: Entry) -> Entry:
    if entry.is_pending:
        raise Fatal(f"{entry.path or entry.path_b64} was never stored", "this is a bug: run save again and report it")
    return entry


def _claim(context: Context, store: Store, server: str, roots: tuple[Root, ...]) -> None:
    known = snapshot.load_server(store, server)
    if known is None:
        names = tuple(Root(root.name, root.name_b64) for root in roots)
        snapshot.claim_server(store, Server(FORMAT, server, this_host(), names, utc(now_ns())))
    elif known.host.machine_id != this_host().machine_id and not context.config.server:
        hint = f"set `server: {server}` to take it over, or another name"
        raise Fatal(f"another machine ({known.host.name}) has the name {server}", hint)


def _look_again(catalog: Catalog, store: Store, saver: Saver, sent: list[SegmentRef]) -> None:
    """Make sure that what this run carries over is still named by the snapshot it has seen, and all else not listed.

    A look that has taken long is no longer good: a machine may have slept in the middle of it.
    """
    begun_ns = now_ns() - LOOK_LASTS_NS
    while now_ns() - begun_ns >= LOOK_LASTS_NS:
        begun_ns = now_ns()
        have = snapshot.numbers(store, saver.result.server)
        is_gone = saver.parent is not None and saver.parent.number not in have
        if is_gone or max(have, default=0) != saver.newest:
            raise Fatal("another run changed the snapshots meanwhile", "run save again: what this run stored is kept")
        if saver.trash is not None:
            _look_at_trash(catalog, store, saver, saver.trash, sent)


def _look_at_trash(catalog: Catalog, store: Store, saver: Saver, trash: Trash, sent: list[SegmentRef]) -> None:
    """Raise `Fatal` when a prune has listed what this run needs, or may have deleted it already."""
    server = saver.result.server
    if trash.refresh(store):
        for ref in sent:
            names = (name for entry in catalog.read(ref) for name in names_of(server, entry))
            listed = trash.listed_lately(itertools.chain([snapshot.segment_key(server, ref.name)], names))
            if listed:
                message = f"a prune has listed for deletion what this run needs ({listed})"
                raise Fatal(message, "run save again: what the prune has listed is sent once more")
    if trash.was_missed(store):
        message = "a prune has listed and deleted blobs while this run was under way"
        raise Fatal(message, "run save again: it looks for all that it needs, and sends what is gone")
