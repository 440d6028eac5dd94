"""Sending: what a thread of the engine does with a batch of a save's jobs.

    small files   read in one turn, each as one consistent version, then stored one after the other
    large files   by `upload`, block after block
    a bundle      becomes a pack
    directories   placeholders

A file that is not what was indexed any more is left for another round, under a new GUID.
"""

from __future__ import annotations

import os

import msgspec
from msgspec.structs import replace

from blobark import content, source
from blobark.context import Context, full_path
from blobark.engine import Engine
from blobark.errors import BlocksLost, ItemError, SourceError
from blobark.guids import blob_name
from blobark.model import Entry, Outcome, Sent, Status
from blobark.packs import PackWriter, Taken
from blobark.stores.base import BLOCK_SIZE_BYTES, Store
from blobark.upload import Uploader, memory_cost

PACKED_ENTRY_BYTES = 2048
READ_AT_ONCE = 32
"""Files that are read for a pack in one turn."""


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
    bundle: str = ""
    """The GUID of the pack that it goes to."""


class Sender:
    """Stores batches of jobs; called from many threads."""

    def __init__(self, context: Context, store: Store, task: SendTask, engine: Engine) -> None:
        self._store = store
        self._server = task.server
        self._root_names = task.root_names
        self._md5 = task.md5
        self._trees = [context.tree(name) for name in task.root_names]
        self._turn = engine.turn
        self._level = context.config.compression
        self._uploader = Uploader(store, task.server, engine, context.config.delta, self._level)

    def __call__(self, batch: list[Job]) -> list[Outcome]:
        """Store a batch; return the outcome of each job."""
        if batch[0].bundle:
            return self._pack(batch)
        with self._turn:
            read = [self._read_small(job.entry) for job in batch]
        return [self._outcome(job, data) for job, data in zip(batch, read, strict=True)]

    def close(self) -> None:
        """Close the trees."""
        for tree in self._trees:
            if tree is not None:
                tree.close()

    def _outcome(self, job: Job, read: tuple[Entry, bytes] | None) -> Outcome:
        try:
            if read is not None:
                root_name = self._root_names[job.entry.root]
                stored = content.put_small(
                    self._store, self._server, root_name, *read, md5=self._md5, level=self._level
                )
                return _stored(job, stored)
            return self._store_one(job)
        except content.DifferentContent:
            return Outcome(job.sequence, job.entry, Status.CHANGED)
        except ItemError as error:
            return failed(job, error.message)

    def _pack(self, batch: list[Job]) -> list[Outcome]:
        """Store a batch as a pack. What is not what was indexed, or holds not still, is left out of it."""
        outcomes: dict[int, Outcome] = {}
        packed: list[tuple[int, Entry]] = []
        pack = PackWriter(self._store, blob_name(self._server, batch[0].bundle), self._level)
        try:
            for start in range(0, len(batch), READ_AT_ONCE):
                with self._turn:
                    read = [self._read_for_pack(job) for job in batch[start : start + READ_AT_ONCE]]
                for number, found in enumerate(read, start):
                    if isinstance(found, Outcome):
                        outcomes[number] = found
                        continue
                    entry, data = found
                    pack.add(entry, full_path(self._root_names[entry.root], entry.raw_path), data)
                    packed.append((number, entry))
            if packed:
                outcomes |= self._finish(pack, batch, packed)
        except (Taken, BlocksLost):
            pack.abort()
            left = (number for number in range(len(batch)) if number not in outcomes)
            outcomes |= {
                number: Outcome(batch[number].sequence, batch[number].entry, Status.CHANGED) for number in left
            }
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
        blob: Sent | None = pack.finish(self._root_names, entries, md5=self._md5)
        outcomes = {}
        for (number, _), entry in zip(packed, entries, strict=True):
            sent_bytes = blob.size_bytes if blob is not None else 0
            outcomes[number] = Outcome(batch[number].sequence, entry, Status.DONE, sent_bytes, sent=blob)
            blob = None
        return outcomes

    def _read_for_pack(self, job: Job) -> tuple[Entry, bytes] | Outcome:
        try:
            descriptor = self._open(job.entry)
            try:
                status = os.fstat(descriptor)
                source.check_regular(status)
                is_same = source.same_version(job.entry, status)
                read = content.read_small(job.entry, descriptor) if is_same else None
            finally:
                os.close(descriptor)
        except ItemError as error:
            return failed(job, error.message)
        return read or Outcome(job.sequence, job.entry, Status.CHANGED)

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
    return Outcome(job.sequence, stored.entry, status, stored.sent_bytes, sent=stored.blob)


def failed(job: Job, reason: str) -> Outcome:
    """Let the entry say why it failed, and name the content it had before, if it had any."""
    previous = job.previous
    if previous is not None and previous.has_content:
        entry = replace(previous, error=reason, stale=True)
    else:
        entry = replace(job.entry.without_content(), guid="", error=reason)
    return Outcome(job.sequence, entry, Status.FAILED, reason=reason)


def cost_of(job: Job) -> int:
    """Return about how many bytes a job holds in memory."""
    if job.bundle:  # of a pack that grows, what fills a block is sent and let go of
        return job.entry.content_size // 2 + PACKED_ENTRY_BYTES
    return memory_cost(job.entry)
