"""Sending: what a thread of the engine does with a batch of a save's jobs.

    small files   read in one turn, each as one consistent version, then stored one after the other
    large files   by `upload`, block after block
    a bundle      becomes a pack
    directories   placeholders

A file that is not what was indexed any more is left for another round, under a new GUID. With `dedupe` a content that
the store has is not sent, and one that somebody else is sending just now is left for another round.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from functools import partial

import msgspec
from msgspec.structs import replace

from blobark import content, source
from blobark.contents import Claim, Contents
from blobark.context import Context, full_path
from blobark.engine import Engine
from blobark.errors import BlocksLost, ItemError, SourceError
from blobark.guids import blob_name
from blobark.model import Entry, Outcome, Sent, Status
from blobark.packs import PackWriter, Taken
from blobark.segments import encode_entry
from blobark.stores.base import BLOCK_SIZE_BYTES, Store
from blobark.upload import Uploader, memory_cost
from metrics.stages import DECODE, READ

PACKED_ENTRY_BYTES = 2048
READ_AT_ONCE = 32
"""Files that are read for a pack in one turn."""


_Read = tuple[Entry, bytes]
"""A file that was read as one consistent version: its entry with the digest, and its content."""


class SendTask(msgspec.Struct, frozen=True):
    """What is the same for all jobs of a save."""

    server: str
    root_names: list[bytes]
    md5: bool
    """Whether outcomes are to have the MD5 of what was sent."""
    level: int
    """Of zstd; 0: nothing is compressed."""
    dedupe: bool


class Job(msgspec.Struct, frozen=True, gc=False):
    """A file or placeholder to store; `previous` is what the newest snapshot has under its path."""

    sequence: int
    entry: Entry
    previous: Entry | None
    any_version: bool = False
    """Whether the file may be another version than the entry says: its GUID has never been used."""
    bundle: str = ""
    """The GUID of the pack that it goes to."""


class Sender:
    """Stores batches of jobs; called from many threads."""

    def __init__(self, context: Context, store: Store, task: SendTask, engine: Engine) -> None:
        self._store = store
        self._server = task.server
        self._root_names = task.root_names
        self._md5 = task.md5
        self._level = task.level
        self._trees = [context.tree(name) for name in task.root_names]
        self._turn = engine.turn
        self._stages = engine.stages
        self._uploader = Uploader(store, task.server, engine, context.config.delta, task.level)
        self._contents = Contents(context.config.state_dir, task.server) if task.dedupe else None

    def __call__(self, batch: list[Job]) -> list[Outcome]:
        """Store a batch; return the outcome of each job."""
        stages = self._stages
        repeats = stages.repeats
        if batch[0].bundle:
            outcomes, took_ns = stages.took(None, self._pack, batch)
            for number, (job, outcome) in enumerate(zip(batch, outcomes, strict=True)):
                stages.item(job.entry.size, took_ns // len(batch))
                outcome.tell(took_ns // len(batch), 0 if number else stages.repeats - repeats)
            stages.rest()
            return outcomes
        with self._turn:
            read = [stages.took(READ, self._read_small, job.entry) for job in batch]
        known = iter(self._claim([found for found, _ in read if found is not None]))
        outcomes = []
        for job, (found, reading_ns) in zip(batch, read, strict=True):
            outcome, sending_ns = stages.took(None, self._outcome, job, found, next(known) if found else Claim.OURS)
            stages.item(job.entry.size, reading_ns + sending_ns)
            before, repeats = repeats, stages.repeats
            outcome.tell(reading_ns + sending_ns, repeats - before)
            outcomes.append(outcome)
        stages.rest()
        return outcomes

    def close(self) -> None:
        """Close the trees, and the table of contents."""
        for tree in self._trees:
            if tree is not None:
                tree.close()
        if self._contents is not None:
            self._contents.close()

    def _claim(self, read: list[_Read]) -> list[Entry | Claim]:
        """Say of each file that was read where its content lies already, or whether it is this one's to send."""
        if self._contents is None or not read:
            return [Claim.OURS] * len(read)
        claims = iter(self._contents.claim([entry for entry, data in read if data]))
        return [next(claims) if data else Claim.OURS for _, data in read]

    def _outcome(self, job: Job, read: _Read | None, known: Entry | Claim) -> Outcome:
        if isinstance(known, Entry):
            return _equal(job, known)
        if known is Claim.UNDER_WAY:
            return Outcome(job.sequence, job.entry, Status.EQUAL_UNDER_WAY)
        self._stages.begin(job.entry.raw_path, job.entry.size)
        try:
            return self._put_small(job, read) if read is not None else self._store_one(job)
        except content.DifferentContent:
            return Outcome(job.sequence, job.entry, Status.CHANGED)
        except ItemError as error:
            return failed(job, error.message)

    def _put_small(self, job: Job, read: _Read) -> Outcome:
        since_ns = self._stages.now()
        ready = content.make_ready(self._server, *read, md5=self._md5, level=self._level)
        self._stages.lap(DECODE, since_ns)
        put = partial(content.put_small, self._store, self._server, self._root_names[job.entry.root], ready)
        if self._contents is None:
            return _stored(job, put())
        with self._sending(read[0]) as done:
            stored = put()
            done.append(stored.entry)
        return _stored(job, stored)

    @contextlib.contextmanager
    def _sending(self, *claimed: Entry) -> Iterator[list[Entry]]:
        """Send what was claimed; the entries in the list that is yielded are those that are in the store then."""
        done: list[Entry] = []
        try:
            yield done
        finally:
            if self._contents is not None:
                self._contents.sent(done, claimed)

    def _pack(self, batch: list[Job]) -> list[Outcome]:
        """Store a batch as a pack. What is not what was indexed, or holds not still, is left out of it."""
        outcomes: dict[int, Outcome] = {}
        packed: list[tuple[int, Entry]] = []
        whole = batch[0].entry.raw_path, sum(job.entry.size for job in batch), len(batch) - 1
        pack = PackWriter(self._store, blob_name(self._server, batch[0].bundle), self._level, self._stages)
        try:
            for start in range(0, len(batch), READ_AT_ONCE):
                jobs = batch[start : start + READ_AT_ONCE]
                read = []
                with self._turn:
                    since_ns = self._stages.now()
                    for job in jobs:
                        read.append(self._read_for_pack(job))
                        since_ns = self._stages.lap(READ, since_ns)
                self._stages.begin(*whole)
                known = iter(self._claim([found for found in read if not isinstance(found, Outcome)]))
                for number, found in enumerate(read, start):
                    if isinstance(found, Outcome):
                        outcomes[number] = found
                    elif (claim := next(known)) is Claim.OURS:
                        packed.append((number, found[0]))
                        pack.add(found[0], full_path(self._root_names[found[0].root], found[0].raw_path), found[1])
                    else:
                        outcomes[number] = self._outcome(batch[number], found, claim)
            if packed:
                outcomes |= self._finish(pack, batch, packed)
        except (Taken, BlocksLost):
            pack.abort()
            left = (number for number in range(len(batch)) if number not in outcomes)
            outcomes |= {
                number: Outcome(batch[number].sequence, batch[number].entry, Status.CHANGED) for number in left
            }
            with self._sending(*(entry for _, entry in packed)):
                pass
        except BaseException:
            pack.abort()
            raise
        return [outcomes[number] for number in range(len(batch))]

    def _finish(self, pack: PackWriter, batch: list[Job], packed: list[tuple[int, Entry]]) -> dict[int, Outcome]:
        """Make a blob of a pack; return the outcomes of what is in it, the first of which has the blob."""
        entries = [
            replace(entry, extents=(extent,) if extent.plain_length else ())
            for (_, entry), extent in zip(packed, pack.extents(), strict=True)
        ]
        lines = [encode_entry(entry) for entry in entries]
        blob: Sent | None = pack.finish(self._root_names, lines, md5=self._md5)
        with self._sending() as done:
            done += entries
        outcomes = {}
        for (number, _), entry, line in zip(packed, entries, lines, strict=True):
            sent_bytes = blob.size_bytes if blob is not None else 0
            outcomes[number] = Outcome(batch[number].sequence, entry, Status.DONE, sent_bytes, sent=blob, line=line)
            blob = None
        return outcomes

    def _read_for_pack(self, job: Job) -> _Read | Outcome:
        try:
            descriptor = self._begun(job.entry)
        except SourceError as error:
            return failed(job, error.message)
        return _read(descriptor, job.entry) or Outcome(job.sequence, job.entry, Status.CHANGED)

    def _read_small(self, entry: Entry) -> _Read | None:
        """Read a small file in one go, if it is what was indexed and holds still. None: it takes the longer way."""
        if entry.kind != "file" or entry.content_size > BLOCK_SIZE_BYTES:
            return None
        try:
            return _read(self._begun(entry), entry)
        except SourceError:  # the longer way says why
            return None

    def _begun(self, entry: Entry) -> int:
        """Open a file that this thread begins with."""
        self._stages.begin(entry.raw_path, entry.size)
        return self._open(entry)

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
            status = source.status_now(descriptor)
            source.check_regular(status)
            if not job.any_version and not source.same_version(entry, status):
                return Outcome(job.sequence, entry, Status.CHANGED)
            if self._contents is not None and source.same_version(entry, status):
                return self._store_if_new(self._contents, job, descriptor, status)
            return self._put_file(job, descriptor, status)
        finally:
            os.close(descriptor)

    def _put_file(self, job: Job, descriptor: int, status: os.stat_result) -> Outcome:
        root_name = self._root_names[job.entry.root]
        with self._sending() as done:
            stored = self._uploader.put_file(root_name, job.entry, descriptor, status, job.previous, md5=self._md5)
            done.append(stored.entry)
        return _stored(job, stored)

    def _store_if_new(self, contents: Contents, job: Job, descriptor: int, status: os.stat_result) -> Outcome:
        """Store a large file, unless it is equal to a content. Only where one has its length is it read to know."""
        size = job.entry.content_size
        claim = contents.claim_size(size)
        if claim is Claim.UNDER_WAY:
            return Outcome(job.sequence, job.entry, Status.EQUAL_UNDER_WAY)
        if claim is Claim.OURS:
            try:
                return self._put_file(job, descriptor, status)
            finally:
                contents.release_size(size)
        hasher = source.content_hasher(job.entry)
        with self._stages.timed(READ):
            for piece in source.read_blocks(descriptor, job.entry, BLOCK_SIZE_BYTES):
                hasher.update(piece)
        entry = replace(job.entry, digest=hasher.hexdigest())
        if not source.same_version(entry, source.status_now(descriptor)):
            return self._put_file(job, descriptor, status)
        (known,) = contents.claim([entry])
        if isinstance(known, Entry):
            return _equal(job, known)
        if known is Claim.UNDER_WAY:
            return Outcome(job.sequence, job.entry, Status.EQUAL_UNDER_WAY)
        with self._sending(entry):
            return self._put_file(job, descriptor, status)


def _read(descriptor: int, entry: Entry) -> _Read | None:
    """Read an open small file, and close it. None: it is not what was indexed, or did not hold still.

    One look at its status, after the reading, tells both; the longer way says more.
    """
    try:
        return content.read_small(entry, descriptor)
    except SourceError:
        return None
    finally:
        os.close(descriptor)


def _equal(job: Job, entry: Entry) -> Outcome:
    """A file whose content is in the store already, for another one."""
    return Outcome(job.sequence, entry, Status.KEPT, is_equal=True)


def _stored(job: Job, stored: content.Stored) -> Outcome:
    status = Status.DONE if stored.sent else Status.KEPT
    return Outcome(job.sequence, stored.entry, status, stored.sent_bytes, sent=stored.blob)


def failed(job: Job, reason: str) -> Outcome:
    """Let the entry say why it failed, and name the content it had before, if it had any."""
    previous = job.previous
    if previous is not None and previous.has_content:
        entry = replace(previous, error=reason, stale=True, links=job.entry.links)
    else:
        entry = replace(job.entry.without_content(), guid="", error=reason)
    return Outcome(job.sequence, entry, Status.FAILED, reason=reason)


def cost_of(job: Job) -> int:
    """Return about how many bytes a job holds in memory."""
    if job.bundle:  # of a pack that grows, what fills a block is sent and let go of
        return job.entry.content_size // 2 + PACKED_ENTRY_BYTES
    return memory_cost(job.entry)
