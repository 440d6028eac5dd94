"""The save: what the draft names gets into the store, then a snapshot names it.

    wanted   = the draft's entries
    there    = what the newest snapshot, looked up in this run, names; and what a listing shows of claimed content
    round 1  store wanted - there, noting each entry in the catalog as it gets done
    round 2  what changed meanwhile, or whose GUID was taken: once more, under new GUIDs that are durable before use
    publish  (publish.py) the segments that are new, then the header, create-only

First run, resumed run and small change are the same path. A segment that the newest snapshot has too is not even read.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass, field

from msgspec.structs import replace

from blobark import content, snapshot, source
from blobark.catalog import Catalog
from blobark.clock import now_ns
from blobark.context import Context, full_path
from blobark.engine import Turn
from blobark.errors import ItemError, SnapshotError, SourceError
from blobark.guids import TAG_LENGTH, GuidSource, blob_name
from blobark.model import Entry, Header, Outcome, Root, SegmentRef, Status, display, printable
from blobark.source import SourceTree
from blobark.stores.base import BLOCK_SIZE_BYTES, Store

COMMIT_NS = 1_000_000_000
MAX_TAG_LISTINGS = 16
LAST_ROUND = 3


@dataclass(frozen=True, slots=True)
class Job:
    """A file or placeholder to store; `previous` is what the newest snapshot has under its path."""

    sequence: int
    entry: Entry
    previous: Entry | None
    any_version: bool = False
    """Whether the file may be another version than the entry says: its GUID has never been used."""


@dataclass(slots=True)
class SaveResult:
    """What a save did: counts of files, and bytes of content."""

    server: str = ""
    snapshot: int = 0
    complete: bool = False
    files: int = 0
    file_bytes: int = 0
    entries: int = 0
    sent: int = 0
    sent_bytes: int = 0
    kept: int = 0
    skipped: int = 0
    changed_while_read: list[str] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    segments_sent: int = 0
    requests: dict[str, int] = field(default_factory=dict)
    """With a dry run: how many requests of each kind a real one would make."""


class Saver:
    """One save: `plan` says what is to do, `store` does it. The caller publishes."""

    def __init__(self, context: Context, catalog: Catalog, store: Store | None, server: str, roots: list[Root]) -> None:
        self._context = context
        self._catalog = catalog
        self._store = store
        self._server = server
        self._root_names = [root.raw_name for root in roots]
        self._guids = GuidSource()
        self._again: list[Job] = []
        self._lost_groups: set[tuple[int, bytes]] = set()
        known = int(catalog.get("snapshot") or "0")
        self.parent: Header | None = snapshot.latest(store, server, known) if store else None
        self.known = frozenset(ref.digest for ref in self.parent.segments) if self.parent else frozenset()
        self.result = SaveResult(server=server)

    def plan(self) -> Iterator[Job]:
        """Yield what is to be stored; claims content that only the catalog thinks is in the store.

        Claimed content is looked for by `unfound`, after this has been exhausted.
        """
        segments = self._catalog.draft()
        dirty = [segment for segment in segments if segment.overlaid or segment.ref.digest not in self.known]
        before = self._parent_entries({segment.ref.digest for segment in segments if segment not in dirty})
        previous = next(before, None)
        claims: list[tuple[str, int, int]] = []
        for sequence, entry in self._catalog.entries(dirty):
            theirs = None
            if previous is not None:
                key = entry.sort_key
                while previous is not None and previous.sort_key < key:
                    previous = next(before, None)
                theirs = previous if previous is not None and previous.sort_key == key else None
            if entry.rule and entry.kind == "file":
                self.result.skipped += 1
                self._context.reporter.detail(f"skipped by {entry.rule}: {display(self.path_of(entry))}")
            elif entry.is_pending:
                yield Job(sequence, entry, theirs)
            elif entry.guid and (theirs is None or theirs.guid != entry.guid):
                claims.append((blob_name(self._server, entry.guid), entry.content_size, sequence))
                if len(claims) >= 1000:
                    self._catalog.claim(claims)
                    claims.clear()
        self._catalog.claim(claims)

    def unfound(self) -> Iterator[Job]:
        """Yield what was claimed and is not in the store: to be sent again."""
        prefixes = self._catalog.claimed_prefixes(len(self._server) + 1 + TAG_LENGTH)
        if len(prefixes) > MAX_TAG_LISTINGS:
            prefixes = [f"{self._server}_"]
        for prefix in prefixes:
            rows: list[tuple[str, int]] = []
            for info in self._store.list(prefix) if self._store else ():
                rows.append((info.key, info.size_bytes))
                if len(rows) >= 5000:
                    self._catalog.found(rows)
                    rows.clear()
            self._catalog.found(rows)
        missing = dict(self._catalog.unfound())
        if missing:
            for sequence, entry in self._catalog.entries():
                if sequence in missing:
                    yield Job(sequence, replace(entry, digest=""), None)

    def store(self) -> None:
        """Store everything that is to be stored; each entry's outcome is durable in the catalog."""
        segments = self._catalog.draft()
        items, size = sum(s.pending for s in segments), sum(s.pending_bytes for s in segments)
        self._context.reporter.begin("save", items, size)
        trees = [self._context.tree(name) for name in self._root_names]
        try:
            self._round(self.plan(), trees)
            self._round(self.unfound(), trees)
            for _ in range(LAST_ROUND - 1):
                jobs = [*self._renewed(self._again), *self._heirs()]
                self._again = []
                if jobs:
                    self._round(iter(jobs), trees)
            for job in self._again:
                self._take(_failed(job, "its GUID was taken each time"))
        finally:
            for tree in trees:
                if tree is not None:
                    tree.close()
        self._catalog.commit()

    def _readable(self, manifest: snapshot.Manifest, ref: SegmentRef) -> list[Entry]:
        """Return a segment's entries; none when it is damaged, so that what it names is looked for in the store."""
        try:
            return manifest.read(ref)
        except SnapshotError as error:
            self._context.reporter.warn(f"the snapshot before this one is damaged: {error.message}")
            return []

    def estimate(self) -> None:
        """Fill the result with what `store` and publishing would do, and in how many requests; does none of it."""
        result = self.result
        blobs = blocks = 0
        for job in itertools.chain(self.plan(), self.unfound()):
            size = job.entry.content_size
            result.sent += 1
            result.sent_bytes += size
            if size > BLOCK_SIZE_BYTES:
                blocks += -(-size // content.block_size(size)) + 1
            else:
                blobs += 1
        segments = sum(s.overlaid or s.ref.digest not in self.known for s in self._catalog.draft())
        result.requests = {"put blob": blobs, "put block and commit": blocks, "put segment": segments, "put header": 1}

    def path_of(self, entry: Entry) -> bytes:
        """Return an entry's absolute real path."""
        return full_path(self._root_names[entry.root], entry.raw_path)

    def _heirs(self) -> list[Job]:
        """Let the next path of each hard-link group whose first one failed take its place."""
        lost, self._lost_groups = self._lost_groups, set()
        heirs: dict[tuple[int, bytes], Entry] = {}
        jobs = []
        for sequence, entry in self._catalog.entries() if lost else ():
            first = (entry.root, entry.raw_hardlink_to)
            if not entry.hardlink_to_any or first not in lost:
                continue
            heir = heirs.get(first)
            if heir is None:
                entry = heirs[first] = replace(entry, hardlink_to="", hardlink_to_b64="", guid=self._guids.next())
                jobs.append(Job(sequence, entry, None, any_version=True))
            else:
                entry = replace(entry, hardlink_to=heir.path, hardlink_to_b64=heir.path_b64)
            self._catalog.overlay(sequence, entry)
        if jobs:
            self._catalog.set(map_outdated="1")
            self._catalog.commit()
        return jobs

    def _round(self, jobs: Iterator[Job], trees: list[SourceTree | None]) -> None:
        if self._store is None:
            raise TypeError("there is no store to save to")
        work = _Worker(self._store, self._server, self._root_names, trees, self._context.engine.turn)
        committed_ns = now_ns()
        for job, outcome in self._context.engine.run(jobs, work, cost=_cost):
            if outcome.status is Status.CHANGED:
                self._again.append(job)
            else:
                self._take(outcome)
            if now_ns() - committed_ns > COMMIT_NS:
                self._catalog.commit()
                committed_ns = now_ns()
        self._catalog.commit()

    def _take(self, outcome: Outcome) -> None:
        """Fold one outcome into the catalog and the result."""
        result, entry = self.result, outcome.entry
        self._catalog.overlay(outcome.sequence, entry)
        path = self.path_of(entry)
        self._context.reporter.outcome(outcome, path)
        if outcome.status is Status.FAILED:
            if entry.links > 1 and not entry.has_content:
                self._lost_groups.add((entry.root, entry.raw_path))
            result.failed.append((display(path), printable(outcome.reason)))
        elif outcome.status is Status.DONE:
            result.sent += 1
            result.sent_bytes += outcome.bytes
        else:
            result.kept += 1
        if entry.changed_while_read and outcome.status is not Status.FAILED:
            result.changed_while_read.append(display(path))
            self._context.reporter.warn(f"{display(path)}: changed while it was read, stored as last read")

    def _renewed(self, jobs: list[Job]) -> list[Job]:
        """Give each job a GUID that was never used, durable before it is."""
        renewed: list[Job] = []
        if not jobs:
            return renewed
        for job in jobs:
            entry = replace(job.entry, guid=self._guids.next(), digest="")
            self._catalog.overlay(job.sequence, entry)
            renewed.append(Job(job.sequence, entry, job.previous, any_version=True))
        self._catalog.set(map_outdated="1")
        self._catalog.commit()
        return renewed

    def _parent_entries(self, shared: set[str]) -> Iterator[Entry]:
        """Yield the newest snapshot's entries, but for segments that the draft shares, in order."""
        if self.parent is None or self._store is None:
            return
        manifest = snapshot.Manifest(self._store, self._server, self._catalog.segment)
        numbers = {root.raw_name: number for number, root in enumerate(self.parent.roots)}
        today = {numbers.get(name, -1): number for number, name in enumerate(self._root_names)}
        for ref in self.parent.segments:
            if ref.digest not in shared:
                for entry in self._readable(manifest, ref):
                    if entry.root in today:
                        yield entry if today[entry.root] == entry.root else replace(entry, root=today[entry.root])


class _Worker:
    """Stores batches of jobs; runs on the engine's threads."""

    def __init__(
        self, store: Store, server: str, root_names: list[bytes], trees: list[SourceTree | None], turn: Turn
    ) -> None:
        self._store = store
        self._server = server
        self._root_names = root_names
        self._trees = trees
        self._turn = turn

    def __call__(self, batch: list[Job]) -> list[tuple[Job, Outcome]]:
        with self._turn:
            read = [self._read_small(job.entry) for job in batch]
        return [(job, self._outcome(job, data)) for job, data in zip(batch, read, strict=True)]

    def _outcome(self, job: Job, read: tuple[Entry, bytes] | None) -> Outcome:
        try:
            if read is not None:
                root_name = self._root_names[job.entry.root]
                return _stored(job, content.put_small(self._store, self._server, root_name, *read))
            return self._store_one(job)
        except content.DifferentContent:
            return Outcome(job.sequence, job.entry, Status.CHANGED)
        except ItemError as error:
            return _failed(job, error.message)

    def _read_small(self, entry: Entry) -> tuple[Entry, bytes] | None:
        """Read a small file in one go, if it is what was indexed and holds still. None: it takes the longer way."""
        if entry.kind != "file" or entry.content_size > BLOCK_SIZE_BYTES:
            return None
        try:
            descriptor = self._open(entry)
            try:
                if source.same_version(entry, os.fstat(descriptor)):
                    return content.read_small(entry, descriptor)
            finally:
                os.close(descriptor)
        except SourceError:
            pass  # the longer way says why
        return None

    def _open(self, entry: Entry) -> int:
        tree = self._trees[entry.root]
        if tree is None:
            raise SourceError("its source_path has left the configuration: run build_index.py again")
        return tree.open(entry.raw_path)

    def _store_one(self, job: Job) -> Outcome:
        """Store a placeholder, a large file, or one that does not hold still."""
        entry, root_name = job.entry, self._root_names[job.entry.root]
        if entry.kind == "dir":
            return _stored(job, content.put_placeholder(self._store, self._server, root_name, entry))
        descriptor = self._open(entry)
        try:
            status = os.fstat(descriptor)
            source.check_regular(status)
            if not job.any_version and not source.same_version(entry, status):
                return Outcome(job.sequence, entry, Status.CHANGED)
            return _stored(job, content.put_file(self._store, self._server, root_name, entry, descriptor, status))
        finally:
            os.close(descriptor)


def _stored(job: Job, stored: content.Stored) -> Outcome:
    return Outcome(job.sequence, stored.entry, Status.DONE if stored.sent else Status.KEPT, stored.sent_bytes)


def _failed(job: Job, reason: str) -> Outcome:
    """Let the entry say why it failed, and name the content it had before, if it had any."""
    previous = job.previous
    if previous is not None and previous.has_content:
        entry = replace(previous, error=reason, stale=True)
    else:
        entry = replace(job.entry, guid="", digest="", error=reason)
    return Outcome(job.sequence, entry, Status.FAILED, reason=reason)


def _cost(job: Job) -> int:
    return content.memory_cost(job.entry)
