"""The save: what the draft names gets into the store, then a snapshot names it.

    wanted   = the draft's entries
    there    = what the newest snapshot, looked up in this run, names; and what a listing shows of claimed content
    round 1  store wanted - there, noting each entry in the catalog as it gets done
    round 2  what changed meanwhile, or whose GUID was taken: once more, under new GUIDs that are durable before use
    audit    (audit.py) what is not in the store as it was read: likewise
    publish  (publish.py) the segments that are new, then the header, create-only

First run, resumed run and small change are the same path. A segment that the newest snapshot has too is not even read.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec
from msgspec.structs import replace

from blobark import audit, content, source
from blobark.blocks import average_bytes, bits_for
from blobark.catalog import Catalog
from blobark.clock import now_ns
from blobark.context import Context, full_path
from blobark.difference import Difference
from blobark.engine import Engine
from blobark.errors import ItemError, SourceError
from blobark.guids import TAG_LENGTH, GuidSource, blob_name
from blobark.model import Entry, Outcome, Root, Status, display, printable
from blobark.stores.base import BLOCK_SIZE_BYTES, Store
from blobark.upload import Uploader, memory_cost
from metrics.stages import READ

COMMIT_NS = 1_000_000_000
LAST_ROUND = 3
WRONG_AT_ONCE = 1000


class SendTask(msgspec.Struct, frozen=True):
    """What is the same for all jobs of a save."""

    server: str
    root_names: list[bytes]
    md5: bool
    """Whether outcomes are to have the MD5 of what was sent."""


class Job(msgspec.Struct, frozen=True, gc=False):
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
    audited: int = 0
    """Blobs that the store itself listed as they were read, before the snapshot was published."""
    sent_again: int = 0
    """Blobs that it did not, and that were sent again under another GUID. `sent` counts both."""
    kept: int = 0
    skipped: int = 0
    changed_while_read: list[str] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    segments_sent: int = 0
    """Parts of the manifest that the store did not have; 0 where nothing has changed."""
    workers: int = 0
    """Transfers at a time, as they were in the end."""
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
        self._task = SendTask(server, self._root_names, audit.is_wanted(context, store))
        self._audit = audit.Audit(context, catalog, server)
        self._guids = GuidSource()
        self._again: list[Job] = []
        self._listings = 0
        self._lost_groups: set[tuple[int, bytes]] = set()
        self._difference = Difference(context, catalog, store, server, self._root_names)
        self.parent, self.known = self._difference.parent, self._difference.known
        self.result = SaveResult(server=server)

    def plan(self) -> Iterator[Job]:
        """Yield what is to be stored; claims content that only the catalog thinks is in the store.

        Claimed content is looked for by `unfound`, after this has been exhausted.
        """
        claims: list[tuple[str, int, int]] = []
        for sequence, entry, theirs in self._difference.entries():
            if entry.rule and entry.kind == "file":
                self.result.skipped += 1
                self._context.reporter.detail(f"skipped by {entry.rule}: {display(self.path_of(entry))}")
            elif entry.is_pending:
                yield Job(sequence, entry, theirs)
            elif entry.guid and (theirs is None or theirs.guid != entry.guid):
                if entry.extents is not None:  # what it cites may be gone: it is read again
                    yield Job(sequence, entry.without_content(), theirs)
                    continue
                claims.append((blob_name(self._server, entry.guid), entry.content_size, sequence))
                if len(claims) >= 1000:
                    self._catalog.claim(claims)
                    claims.clear()
        self._catalog.claim(claims)

    def unfound(self) -> Iterator[Job]:
        """Yield what was claimed and is not in the store: to be sent again."""
        prefixes = audit.prefixes(self._server, self._catalog.claimed_prefixes(len(self._server) + 1 + TAG_LENGTH))
        for page in audit.pages(self._store, prefixes) if self._store else ():
            self._listings += 1
            self._catalog.found((info.key, info.size_bytes) for info in page)
        missing = dict(self._catalog.unfound())
        if missing:
            for sequence, entry, theirs in self._difference.entries():
                if sequence in missing:
                    yield Job(sequence, entry.without_content(), theirs)

    def store(self) -> None:
        """Store everything that is to be stored; each entry's outcome is durable in the catalog."""
        segments = self._catalog.draft()
        items, size = sum(s.pending for s in segments), sum(s.pending_bytes for s in segments)
        self._context.reporter.begin("save", items, size)
        self._round(self.plan())
        self._round(self.unfound())
        self._settle()
        if self._task.md5 and self._store is not None:
            self._check_sent(self._store)
        self._catalog.commit()
        self.result.workers = self._context.workers

    def _settle(self) -> None:
        """Store what changed meanwhile, or whose GUID was taken."""
        for _ in range(LAST_ROUND - 1):
            jobs = [*self._renewed(self._again), *self._heirs()]
            self._again = []
            if jobs:
                self._round(iter(jobs))
        for job in self._again:
            self._take(_failed(job, "its GUID was taken each time"))
        self._again = []

    def _check_sent(self, store: Store) -> None:
        """Audit what was sent, and then what the heirs of the hard-link groups that failed have sent."""
        self._audit_rounds(store)
        while self._lost_groups:
            self._settle()
            self._audit_rounds(store)

    def _audit_rounds(self, store: Store) -> None:
        """Audit what was sent. What is not in the store as it was read is sent again; in the end it fails."""
        for number in range(1, audit.AUDITS + 1):
            self.result.audited += self._audit.compare(store)
            if self._audit.is_empty:
                return
            changed = self._difference.entries()
            wrong = (Job(place, entry, theirs) for place, entry, theirs in changed if self._audit.is_faulty(entry))
            if number == audit.AUDITS:
                for job in wrong:
                    self._audit.forget(job.entry)
                    self._take(_failed(job, f"was sent {audit.AUDITS} times and arrived changed, or not at all"))
                return
            before = self.result.sent_again
            while jobs := self._renewed(list(itertools.islice(wrong, WRONG_AT_ONCE))):
                self.result.sent_again += len(jobs)
                self._round(iter(jobs))
            count = self.result.sent_again - before
            if not count:
                return
            self._context.reporter.warn(f"blobs that arrived changed, or not at all, and were sent again: {count}")
            self._settle()

    def estimate(self) -> None:
        """Fill the result with what `store` and publishing would do, and in how many requests; does none of it."""
        result = self.result
        blobs = blocks = 0
        for job in itertools.chain(self.plan(), self.unfound()):
            size = job.entry.content_size
            if self._task.md5:
                self._audit.note(job.entry, b"")
            result.sent += 1
            result.sent_bytes += size
            if size > BLOCK_SIZE_BYTES:
                blocks += -(-size // average_bytes(bits_for(size))) + 1
            else:
                blobs += 1
        segments = len(self._difference.segments())
        result.requests = {"put blob": blobs, "put block and commit": blocks, "put segment": segments, "put header": 1}
        if self._task.md5:
            self._listings += self._audit.requests(self.parent.totals.files if self.parent else 0)
            result.requests["read segment and header back"] = segments + 1
        result.requests["list blobs"] = self._listings

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

    def _round(self, jobs: Iterator[Job]) -> None:
        if self._store is None:
            raise TypeError("there is no store to save to")
        context = self._context
        committed_ns = now_ns()
        with contextlib.closing(Sender(context, self._store, self._task, context.engine)) as sender:
            for job, outcome in (
                context.crew.run(self._task, jobs, cost=_cost)
                if context.crew
                else context.engine.run(jobs, sender, cost=_cost)
            ):
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
        if entry.extents is not None:
            self._catalog.set(map_outdated="1")
        if self._task.md5 and outcome.status in (Status.DONE, Status.KEPT):
            self._audit.note(entry, outcome.md5)
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
            self._audit.forget(job.entry)
            entry = replace(job.entry.without_content(), guid=self._guids.next())
            self._catalog.overlay(job.sequence, entry)
            renewed.append(Job(job.sequence, entry, job.previous, any_version=True))
        self._catalog.set(map_outdated="1")
        self._catalog.commit()
        return renewed


class Sender:
    """Stores batches of jobs; called from many threads."""

    def __init__(self, context: Context, store: Store, task: SendTask, engine: Engine) -> None:
        self._store = store
        self._server = task.server
        self._root_names = task.root_names
        self._md5 = task.md5
        self._trees = [context.tree(name) for name in task.root_names]
        self._turn = engine.turn
        self._stages = engine.stages
        self._uploader = Uploader(store, task.server, engine, context.config.delta)

    def __call__(self, batch: list[Job]) -> list[Outcome]:
        """Store a batch; return the outcome of each job."""
        stages = self._stages
        with self._turn:
            read = [stages.took(READ, self._read_small, job.entry) for job in batch]
        done = [stages.took(None, self._outcome, job, data) for job, (data, _) in zip(batch, read, strict=True)]
        for job, (_, reading_ns), (_, sending_ns) in zip(batch, read, done, strict=True):
            stages.item(job.entry.size, reading_ns + sending_ns)
        return [outcome for outcome, _ in done]

    def close(self) -> None:
        """Close the trees."""
        for tree in self._trees:
            if tree is not None:
                tree.close()

    def _outcome(self, job: Job, read: tuple[Entry, bytes] | None) -> Outcome:
        try:
            if read is not None:
                root_name = self._root_names[job.entry.root]
                return _stored(job, content.put_small(self._store, self._server, root_name, *read, md5=self._md5))
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
            return _stored(job, content.put_placeholder(self._store, self._server, root_name, entry, md5=self._md5))
        descriptor = self._open(entry)
        try:
            status = os.fstat(descriptor)
            source.check_regular(status)
            if not job.any_version and not source.same_version(entry, status):
                return Outcome(job.sequence, entry, Status.CHANGED)
            stored = self._uploader.put_file(root_name, entry, descriptor, status, job.previous, md5=self._md5)
            return _stored(job, stored)
        finally:
            os.close(descriptor)


def _stored(job: Job, stored: content.Stored) -> Outcome:
    status = Status.DONE if stored.sent else Status.KEPT
    return Outcome(job.sequence, stored.entry, status, stored.sent_bytes, md5=stored.md5)


def _failed(job: Job, reason: str) -> Outcome:
    """Let the entry say why it failed, and name the content it had before, if it had any."""
    previous = job.previous
    if previous is not None and previous.has_content:
        entry = replace(previous, error=reason, stale=True)
    else:
        entry = replace(job.entry.without_content(), guid="", error=reason)
    return Outcome(job.sequence, entry, Status.FAILED, reason=reason)


def _cost(job: Job) -> int:
    return memory_cost(job.entry)
