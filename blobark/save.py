"""The save: what the draft names gets into the store, then a snapshot names it.

    wanted   = the draft's entries
    there    = what the newest snapshot, looked up in this run, names; and what a listing shows of claimed content
    round 1  store wanted - there, noting each entry in the catalog as it gets done
    round 2  what changed meanwhile, or whose GUID was taken: once more, under new GUIDs that are durable before use
    audit    (audit.py) what is not in the store as it was read: likewise
    trash    (trash.py) what is on a trash list, and the newest snapshot does not name: likewise
    publish  (publish.py) the segments that are new, then the header, create-only

First run, resumed run and small change are the same path. A segment that the newest snapshot has too is not even read.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator

from msgspec.structs import replace

from blobark import audit, blocklist, carried
from blobark.blocks import average_bytes, bits_for
from blobark.catalog import Catalog
from blobark.claims import Claims, is_claim
from blobark.clock import now_ns
from blobark.contents import Contents
from blobark.context import Context, full_path
from blobark.crew import bundle_of
from blobark.difference import Difference
from blobark.guids import GuidSource
from blobark.model import Entry, Outcome, Root, Sent, Status, display, printable
from blobark.packing import Packing
from blobark.packs import room_for
from blobark.plan import why_sent
from blobark.saved import SaveResult
from blobark.send import Job, Sender, SendTask, cost_of, failed
from blobark.stores.base import BLOCK_SIZE_BYTES, Store
from blobark.trash import Trash

COMMIT_NS = 1_000_000_000
LAST_ROUND = 3
WRONG_AT_ONCE = 1000


class Saver:
    """One save: `plan` says what is to do, `store` does it. The caller publishes."""

    def __init__(
        self,
        context: Context,
        catalog: Catalog,
        store: Store | None,
        server: str,
        roots: list[Root],
        trash: Trash | None = None,
    ) -> None:
        self._context = context
        self._catalog = catalog
        self._store = store
        self.trash = trash
        self._server = server
        self._root_names = [root.raw_name for root in roots]
        config = context.config
        by_map = catalog.get("map_made_elsewhere") != ""  # what such a map names is to be a blob of its own
        dedupe, level = config.dedupe and not by_map, 0 if by_map else config.compression
        self._task = SendTask(server, self._root_names, audit.is_wanted(context, store), level, dedupe)
        self._contents: Contents | None = None
        self._equal_under_way = 0
        self._audit = audit.Audit(context, catalog, server)
        self._guids = GuidSource()
        self._packing = Packing(context, catalog, self._guids, 0 if by_map else config.pack_below_bytes)
        self._again: list[Job] = []
        self._adopted = False
        """Whether anything was found in packs of a run that was killed."""
        self._is_map_outdated = False
        """Whether the catalog knows that something in the map is no blob of its own any more."""
        self._lost_groups: set[tuple[int, bytes]] = set()
        self._difference = Difference(context, catalog, store, server, self._root_names)
        self._claims = Claims(catalog, store, server, self._difference)
        self.parent, self.known = self._difference.parent, self._difference.known
        self.newest, self.number = self._difference.newest, self._difference.number
        self.result = SaveResult(server=server)

    def plan(self) -> Iterator[Job]:
        """Yield what is to be stored; claims content that only the catalog thinks is in the store.

        Claimed content is looked for by `unfound`, after this has been exhausted.
        """
        for sequence, entry, theirs in self._difference.entries():
            if entry.rule and entry.kind == "file":
                self.result.skipped += 1
                self._context.reporter.detail(f"skipped by {entry.rule}: {display(self.path_of(entry))}")
            elif entry.is_pending:
                job = Job(sequence, entry, theirs)
                if not self._is_adopted(job):
                    yield job
            elif self._claims.missing is None and is_claim(entry, theirs):
                self._claims.add(sequence, entry)
                store = self._store
                if entry.blocks_at and store is not None and not blocklist.is_there(store, self._server, entry):
                    self._catalog.overlay(sequence, replace(entry, blocks_at="", block_bits=0))

    def unfound(self) -> Iterator[Job]:
        """Yield what was claimed and is not in the store: to be sent again."""
        missing = self._claims.look()
        for sequence, entry, theirs in self._difference.entries() if missing else ():
            if sequence in missing:
                entry = entry.without_content()
                self._catalog.overlay(sequence, entry)
                yield Job(sequence, entry, theirs)

    def store(self) -> None:
        """Store everything that is to be stored; each entry's outcome is durable in the catalog."""
        segments = self._catalog.draft()
        items, size = sum(s.pending for s in segments), sum(s.pending_bytes for s in segments)
        self._context.reporter.begin("save", items, size)
        with contextlib.ExitStack() as stack:
            if self._task.dedupe:
                self._contents = stack.enter_context(contextlib.closing(self._known_contents()))
            self._adopt()
            self._round(self._packing.cut(self.plan()))
            self._round(self._packing.cut(self.unfound()))
            self._leave_dead()
            self._settle()
            self._leave_trash()
            self._finish()

    def _known_contents(self) -> Contents:
        """Return the table of what the newest snapshot names, with what a killed run has sent and this one has seen."""
        contents = Contents(self._context.config.state_dir, self._server)
        contents.begin(*self._difference.parent_segments())
        contents.forget(list(self._difference.damaged()))
        for found, lost in self._claims.sorted():
            contents.sent(found)
            contents.forget(lost)
        return contents

    def _pending(self) -> Iterator[Job]:
        for sequence, entry, theirs in self._difference.entries():
            if entry.is_pending and not (entry.rule and entry.kind == "file"):
                yield Job(sequence, entry, theirs)

    def _finish(self) -> None:
        if self._task.md5 and self._store is not None:
            self._check_sent(self._store)
        self._catalog.commit()
        self.result.workers = self._context.workers

    def _adopt(self) -> None:
        """Find what a run that was killed has left in packs."""
        if self._store is None:
            return
        for pack in self._packing.adopt(self._store, self._server):
            self._adopted = True
            if self._contents is not None:
                self._contents.sent(pack.entries)
            if self._task.md5:
                self._audit.note(pack.blob)

    def _is_adopted(self, job: Job) -> bool:
        """Whether a file's content was found in a pack: then it is stored. Its GUID stands for this version of it."""
        entry = self._catalog.journal.adopted(job.entry.guid) if self._adopted else None
        if entry is None or entry.digest == "" or entry.size != job.entry.size:
            return False
        where = {"path": job.entry.path, "path_b64": job.entry.path_b64, "root": job.entry.root}
        self._take(Outcome(job.sequence, replace(entry, **where), Status.KEPT))
        return True

    def _settle(self) -> None:
        """Store what could not be stored in its round."""
        self._settle_changed()
        while self._equal_under_way:
            self._equal_under_way = 0
            self._round(self._packing.cut(self._pending()))
            self._settle_changed()

    def _settle_changed(self) -> None:
        """Store what changed meanwhile, or whose GUID was taken."""
        for _ in range(LAST_ROUND - 1):
            jobs = [*self._renewed(self._again), *self._heirs()]
            self._again = []
            if jobs:
                self._round(jobs)
        for job in self._again:
            self._take(failed(job, "its GUID was taken each time"))
        self._again = []

    def _leave_dead(self) -> None:
        """Store anew what lies in blobs that a prune has found mostly dead. What cannot be read stays where it is."""
        trash = self.trash
        if not trash or not trash.leave:
            return
        entries = self._catalog.entries()
        left = (Job(place, entry, entry) for place, entry in entries if trash.is_to_be_left(entry))
        while jobs := list(itertools.islice(left, WRONG_AT_ONCE)):
            if self._contents is not None:
                self._contents.forget([job.entry for job in jobs])
            self.result.rewritten += len(jobs)
            self._round(self._packing.cut(self._renewed(jobs)), may_stay=True)

    def _leave_trash(self) -> None:
        """Store once more, under new GUIDs, what may be deleted before this run has published that it needs it."""
        store, trash = self._store, self.trash
        if not trash or store is None:
            return
        changed = self._difference.entries()
        listed = (Job(place, entry, theirs) for place, entry, theirs in changed if trash.has_content(entry, theirs))
        count = 0
        while jobs := list(itertools.islice(listed, WRONG_AT_ONCE)):
            count += len(jobs)
            if self._contents is not None:
                self._contents.forget([job.entry for job in jobs])
            for job in (job for job in jobs if job.entry.error):
                self._take(failed(job, job.entry.error))
            self._round(self._packing.cut(self._renewed([job for job in jobs if not job.entry.error])))
        self._settle()
        for place, entry, theirs in self._difference.entries():
            if trash.has_blocks(entry, theirs):
                self._catalog.overlay(place, blocklist.taken_in(store, self._server, entry))
        if count:
            self._context.reporter.warn(f"items whose content a prune has listed for deletion, sent again: {count}")

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
                    self._take(failed(job, f"was sent {audit.AUDITS} times and arrived changed, or not at all"))
                self._audit.forget()
                return
            if self._contents is not None:
                self._contents.forget_run()
            before = self.result.sent_again
            while jobs := self._renewed(list(itertools.islice(wrong, WRONG_AT_ONCE))):
                self.result.sent_again += len(jobs)
                self._round(self._packing.cut(jobs))
            self._audit.forget()
            count = self.result.sent_again - before
            if not count:
                return
            self._context.reporter.warn(f"blobs that arrived changed, or not at all, and were sent again: {count}")
            self._settle()

    def estimate(self) -> None:
        """Fill the result with what `store` and publishing would do, and in how many requests; does none of it."""
        result = self.result
        blobs = blocks = 0
        packs: dict[str, int] = {}
        for job in self._packing.cut(itertools.chain(self.plan(), self.unfound())):
            size = job.entry.content_size
            if self._task.md5:
                self._audit.note(Sent(job.bundle or job.entry.guid, size, b"", size))
            result.sent += 1
            result.sent_bytes += size
            if job.bundle:
                packs[job.bundle] = packs.get(job.bundle, 0) + room_for(size)
                result.packed += 1
            elif size > BLOCK_SIZE_BYTES:
                blocks += -(-size // average_bytes(bits_for(size))) + 1
            else:
                blobs += 1
        segments, listings = len(self._difference.segments()), self._claims.listings
        result.packs = len(packs)
        for length in packs.values():
            if length > BLOCK_SIZE_BYTES:
                blocks += -(-length // BLOCK_SIZE_BYTES) + 1
            else:
                blobs += 1
        result.requests = {"put blob": blobs, "put block and commit": blocks, "put segment": segments, "put header": 1}
        if self._task.md5:
            listings += self._audit.requests(self.parent.totals.files if self.parent else 0)
            result.requests["read segment and header back"] = segments + 1
        result.requests["list blobs"] = listings + carried.requests(len(self.known))

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

    def _round(self, jobs: Iterable[Job], *, may_stay: bool = False) -> None:
        """Store the jobs; with `may_stay` one that fails keeps the entry that it had before."""
        if self._store is None:
            raise TypeError("there is no store to save to")
        context = self._context
        committed_ns = now_ns()
        with contextlib.closing(Sender(context, self._store, self._task, context.engine)) as sender:
            for job, outcome in (
                context.crew.run(self._task, jobs, cost=cost_of)
                if context.crew
                else context.engine.run(jobs, sender, cost=cost_of, bundle=bundle_of)
            ):
                if may_stay and outcome.status is Status.FAILED and job.previous is not None:
                    self.result.rewritten -= 1
                    outcome = Outcome(job.sequence, job.previous, Status.KEPT)
                if outcome.status is Status.CHANGED:
                    self._again.append(job)
                elif outcome.status is Status.EQUAL_UNDER_WAY:
                    self._equal_under_way += 1
                else:
                    self._take(outcome, why_sent(job.entry, job.previous).value)
                self._packing.took(job)
                if job.bundle and outcome.status is Status.DONE:
                    self.result.packed += 1
                    self.result.packs += outcome.sent is not None
                if now_ns() - committed_ns > COMMIT_NS:
                    self._catalog.commit()
                    committed_ns = now_ns()
        self._catalog.commit()

    def _take(self, outcome: Outcome, reason: str = "") -> None:
        """Fold one outcome into the catalog, the journal and the result."""
        result, entry = self.result, outcome.entry
        self._catalog.overlay(outcome.sequence, entry, outcome.line)
        if entry.extents is not None and not self._is_map_outdated:
            self._is_map_outdated = True
            self._catalog.set(map_outdated="1")
        if self._task.md5 and outcome.sent is not None:
            self._audit.note(outcome.sent)
        path = self.path_of(entry)
        self._context.reporter.outcome(outcome, path)
        self._context.items.outcome(outcome, path, "equal" if outcome.is_equal else "", reason)
        if outcome.status is Status.FAILED:
            if entry.links > 1:
                self._lost_groups.add((entry.root, entry.raw_path))
            result.failed.append((display(path), printable(outcome.reason)))
        elif outcome.status is Status.DONE:
            result.sent += 1
            result.sent_bytes += outcome.bytes
            if outcome.sent is not None:
                result.blobs += 1
                result.plain_bytes += outcome.sent.plain_bytes
                result.stored_bytes += outcome.sent.size_bytes
        elif outcome.is_equal:
            result.equal += 1
            result.equal_bytes += entry.content_size
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
            entry = replace(job.entry.without_content(), guid=self._guids.next())
            self._catalog.overlay(job.sequence, entry)
            renewed.append(Job(job.sequence, entry, job.previous, any_version=True))
        self._catalog.set(map_outdated="1")
        self._catalog.commit()
        return renewed
