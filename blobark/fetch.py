"""Restoring items: what a thread of the engine does with a batch of them.

    each item   look at what is in its place; right already: keep it
                else fetch the content (of a bundle: all that is needed of it, together), digest it, compare
    the batch   in one turn: write the small files that were fetched
    large files are written as they arrive, into a file without their name

A content whose digest is wrong is fetched once more before it is given up. No wrong byte gets a final name.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import msgspec
from blake3 import blake3

from blobark import blocklist, content, plan, source, verified
from blobark.download import Downloader, OldFile
from blobark.engine import Engine
from blobark.errors import ContentError, ItemError, SourceError, TargetError
from blobark.extents import of_entry
from blobark.manifest import fault_of
from blobark.model import Block, Data, Entry, Outcome, Status
from blobark.partfile import PartFile
from blobark.plan import ABSENT, Fate, Overwrite
from blobark.ranges import near, read_together
from blobark.stores.base import BLOCK_SIZE_BYTES, Store
from blobark.target import Target
from blobark.verified import FETCHES, Check
from metrics.stages import COMPARE, DECODE, METADATA, WRITE

Told = TypeVar("Told")


class RestoreJob(msgspec.Struct, array_like=True, gc=False):
    """An item to restore at `path`, relative to restore_root."""

    path: bytes
    entry: Entry
    is_mapped: bool = False
    """Only a map names it, not a snapshot."""
    is_fresh: bool = False
    """This run has made the directory that it goes to, which nobody else enters yet: there is nothing in its place."""
    is_cleared: bool = False
    """What was in its place has been removed, or would be."""
    bundle: str = ""
    """What neighbours in a pack have in common."""


class FetchTask(msgspec.Struct, frozen=True):
    """What is the same for all jobs of a restore."""

    server: str
    overwrite: Overwrite
    part_bytes: int = BLOCK_SIZE_BYTES
    """How much of a large file one request asks for at most."""


class _Small(NamedTuple):
    """A small file that is to be fetched."""

    entry: Entry
    md5: str
    reason: str


class _Fetched(NamedTuple):
    """A small file's verified content, to be written."""

    entry: Entry
    data: bytes
    reason: str


class Fetcher:
    """Restores batches of files and special files; called from many threads."""

    def __init__(self, store: Store, target: Target, task: FetchTask, engine: Engine, *, dry_run: bool) -> None:
        self._store = store
        self._target = target
        self._server = task.server
        self._overwrite = task.overwrite
        self._part_bytes = task.part_bytes
        self._engine = engine
        self._turn = engine.turn
        self._stages = engine.stages
        self._dry_run = dry_run

    def __call__(self, batch: list[RestoreJob]) -> list[Outcome]:
        """Restore a batch; return the outcome of each job."""
        stages = self._stages
        begun = [self._told(self._begin, job) for job in batch]
        if batch[0].bundle:
            stages.begin(batch[0].path, sum(job.entry.size for job in batch), len(batch) - 1)
            bundle, bundle_ns, repeats = self._told(self._fetch_bundle, [step for step, _, _ in begun])
            fetched = [(step, bundle_ns // len(batch), 0 if place else repeats) for place, step in enumerate(bundle)]
        else:
            fetched = [self._told(self._fetch_alone, job, step) for job, (step, _, _) in zip(batch, begun, strict=True)]
        with self._turn:
            ended = [self._told(self._end, job, step) for job, (step, _, _) in zip(batch, fetched, strict=True)]
        for job, first, second, (outcome, ended_ns, _) in zip(batch, begun, fetched, ended, strict=True):
            took_ns = first[1] + second[1] + ended_ns
            if outcome.status is Status.DONE and job.entry.kind == "file":
                stages.item(job.entry.size, took_ns)
            outcome.tell(took_ns, first[2] + second[2])
        stages.rest()
        return [outcome for outcome, _, _ in ended]

    def _told(self, work: Callable[..., Told], *args: Any) -> tuple[Told, int, int]:
        """Return what `work(*args)` returns, its nanoseconds, and how many calls of the store it has repeated."""
        stages = self._stages
        since_ns, repeats = stages.now(), stages.repeats
        result = work(*args)
        return result, stages.now() - since_ns, stages.repeats - repeats

    def _begin(self, job: RestoreJob) -> _Small | Outcome:
        """Do everything but the fetching and writing of a small file."""
        entry = job.entry
        if not job.bundle:
            self._stages.begin(job.path, entry.size)
        try:
            if entry.error and not entry.has_content:
                return Outcome(0, entry, Status.FAILED, reason=saved_badly(entry))
            if not job.is_mapped and (fault := fault_of(entry)):
                return Outcome(0, entry, Status.FAILED, reason=f"its entry is damaged: {fault}")
            return self._prepared(job)
        except ItemError as error:
            return Outcome(0, entry, Status.FAILED, reason=error.message)

    def _fetch_bundle(self, begun: list[_Small | Outcome]) -> list[_Fetched | Outcome]:
        """Fetch the small files of a bundle together."""
        extents = [near(step.entry) if isinstance(step, _Small) else None for step in begun]
        found = iter(read_together(self._store, [extent for extent in extents if extent is not None], self._stages))
        return [
            self._fetch(step, next(found) if extent is not None else None)
            for step, extent in zip(begun, extents, strict=True)
        ]

    def _fetch_alone(self, job: RestoreJob, step: _Small | Outcome) -> _Fetched | Outcome:
        """Fetch a small file that is in no bundle."""
        self._stages.begin(job.path, job.entry.size)
        return self._fetch(step)

    def _fetch(self, step: _Small | Outcome, found: bytes | ContentError | None = None) -> _Fetched | Outcome:
        """Return a small file's content, verified; `found` is what has been fetched already."""
        if isinstance(step, Outcome):
            return step
        try:
            data = verified.small(self._store, self._server, step.entry, self._stages, md5=step.md5, found=found)
            return _Fetched(step.entry, data, step.reason)
        except ItemError as error:
            return Outcome(0, step.entry, Status.FAILED, reason=error.message)

    def _end(self, job: RestoreJob, step: _Fetched | Outcome) -> Outcome:
        if isinstance(step, Outcome):
            return step
        entry = step.entry
        try:
            since_ns = self._stages.now()
            mode = entry.mode & 0o777 if job.is_fresh and not (job.is_mapped or entry.xattrs) else None
            with self._target.new_file(job.path, tag_of(job.path), mode=mode) as new:
                if entry.ranges is None:
                    new.write(step.data, 0)
                else:
                    _Placer(new, entry).write(step.data)
                since_ns = self._stages.lap(WRITE, since_ns)
                new.keep(entry)
                self._stages.lap(METADATA, since_ns)
        except ItemError as error:
            return Outcome(0, entry, Status.FAILED, reason=error.message)
        return self._done(entry, Status.DONE, step.reason)

    def _prepared(self, job: RestoreJob) -> _Small | Outcome:
        path, entry = job.path, job.entry
        if job.is_fresh and not (self._dry_run or job.is_mapped) and _is_small(entry):
            return _Small(entry, "", ABSENT)
        since_ns = self._stages.now()
        there = None if job.is_fresh or job.is_cleared else self._look(path)
        md5 = ""
        if job.is_mapped:  # the blob itself has to tell
            described = content.describe_blob(self._store, of_entry(self._server, entry)[0].blob, entry)
            entry, md5 = described.entry, described.md5
            if entry.kind == "dir":
                if not self._dry_run:
                    self._target.make_directory(path, replace=False, mode=entry.mode)
                return Outcome(0, entry, Status.DONE, reason="a placeholder")
        fate, reason = plan.restore_fate(entry, there, self._overwrite)
        if fate is Fate.REFUSE:
            raise TargetError(reason)
        if fate is Fate.LEAVE:
            return Outcome(0, entry, Status.SKIPPED, reason=reason)
        is_right = fate is Fate.CHECK and there is not None and self._is_right(path, entry, there)
        if there is not None:
            self._stages.lap(COMPARE, since_ns)
        if is_right:
            return self._done(entry, Status.KEPT, "right already")
        if self._dry_run:
            return Outcome(0, entry, Status.DONE, reason=reason)
        if entry.kind != "file":
            with self._stages.timed(METADATA):
                self._target.make_special(path, entry, tag_of(path))
        elif entry.content_size <= BLOCK_SIZE_BYTES:
            return _Small(entry, md5, reason)
        else:
            self._write_large(path, entry, md5)
        return self._done(entry, Status.DONE, reason)

    def _done(self, entry: Entry, status: Status, reason: str) -> Outcome:
        """An item is as the snapshot has it, which is not always as the source was."""
        if entry.error:
            return Outcome(0, entry, Status.FAILED, reason=saved_badly(entry))
        return Outcome(0, entry, status, entry.size, reason)

    def _look(self, path: bytes) -> os.stat_result | None:
        try:
            return self._target.look(path)
        except TargetError:
            if self._dry_run:
                return None
            raise

    def _is_right(self, path: bytes, entry: Entry, there: os.stat_result) -> bool:
        """Whether what is there is the entry already; if only its metadata differ they are set.

        A file with further names is touched only if nothing needs to be: a name outside may be among them.
        """
        if entry.kind != "file":
            return self._is_right_special(path, entry, there)
        try:
            descriptor = self._target.open_existing(path)
        except TargetError:
            return False  # it cannot be read, but it may be replaced
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode) or not _same_content(descriptor, entry):
                return False
            if self._target.has_metadata(descriptor, entry):
                return True
            if there.st_nlink > 1:
                return False
            if not self._dry_run:
                self._target.set_metadata(descriptor, entry)
            return True
        except (SourceError, OSError):
            return False  # a new file in its place may fare better
        finally:
            os.close(descriptor)

    def _is_right_special(self, path: bytes, entry: Entry, there: os.stat_result) -> bool:
        if not self._target.has_special_metadata(path, there, entry):
            return False
        if entry.kind == "symlink":
            return self._target.read_link(path) == entry.raw_link
        return entry.rdev in (None, (os.major(there.st_rdev), os.minor(there.st_rdev)))

    def _write_large(self, path: bytes, entry: Entry, md5: str) -> None:
        entry_blocks = blocklist.load(self._store, self._server, entry)
        if entry_blocks:
            self._write_blocks(path, entry, entry_blocks)
        else:
            self._write_stream(path, entry, md5)

    def _write_blocks(self, path: bytes, entry: Entry, entry_blocks: tuple[Block, ...]) -> None:
        downloader = Downloader(self._store, self._server, self._engine, entry, entry_blocks, self._part_bytes)
        with contextlib.ExitStack() as stack:
            with self._stages.timed(COMPARE):
                old = self._old_file(stack, path, entry)
            new = stack.enter_context(self._target.new_file(path, tag_of(path), go_on=True))
            downloader.restore(new, old)
            with self._stages.timed(METADATA):
                new.keep(entry)

    def _old_file(self, stack: contextlib.ExitStack, path: bytes, entry: Entry) -> OldFile | None:
        """Return what is in the file's place, to take blocks from; None where it is of no use."""
        try:
            descriptor = self._target.open_existing(path)
            stack.callback(os.close, descriptor)
            status = os.fstat(descriptor)
            is_large = stat.S_ISREG(status.st_mode) and status.st_size > BLOCK_SIZE_BYTES
            return OldFile(descriptor, entry.block_bits) if is_large else None
        except (TargetError, SourceError, OSError):
            return None

    def _write_stream(self, path: bytes, entry: Entry, md5: str) -> None:
        for fetch in range(1, FETCHES + 1):
            check = Check(entry, md5)
            self._stages.begin(path, entry.size)
            with self._target.new_file(path, tag_of(path)) as new:
                placer = _Placer(new, entry)
                for piece in content.pieces(self._store, self._server, entry, self._stages):
                    since_ns = self._stages.now()
                    check.update(piece)
                    since_ns = self._stages.lap(DECODE, since_ns)
                    placer.write(piece)
                    self._stages.lap(WRITE, since_ns)
                    self._stages.progress(len(piece))
                if check.is_right():
                    with self._stages.timed(METADATA):
                        new.keep(entry)
                    return
            if fetch == FETCHES:
                raise verified.damaged()


def _is_small(entry: Entry) -> bool:
    return entry.kind == "file" and entry.content_size <= BLOCK_SIZE_BYTES


class _Placer:
    """Writes the stream of a content to where it belongs in the file: one run, or the ranges of a sparse one."""

    def __init__(self, new: PartFile, entry: Entry) -> None:
        self._new = new
        self._ranges = list(reversed(entry.ranges if entry.ranges is not None else ((0, entry.size),)))
        if entry.ranges is not None:
            os.ftruncate(new.descriptor, entry.size)

    def write(self, data: Data) -> None:
        view = memoryview(data)
        while view:
            offset, length = self._ranges.pop()
            part = view[:length]
            self._new.write(part, offset)
            if len(part) < length:
                self._ranges.append((offset + len(part), length - len(part)))
            view = view[len(part) :]


def _same_content(descriptor: int, entry: Entry) -> bool:
    """Whether an open file has the entry's holes and digest."""
    if entry.ranges is not None and source.data_ranges(descriptor, entry.size) != entry.ranges:
        return False
    hasher = source.content_hasher(entry)
    for block in source.read_blocks(descriptor, entry, BLOCK_SIZE_BYTES):
        hasher.update(block)
    return hasher.hexdigest() == entry.digest


def is_there(target: Target, path: bytes, entry: Entry) -> bool:
    """Whether the file at `path` has the entry's content, whatever its metadata. What cannot be read has not."""
    try:
        descriptor = target.open_existing(path)
    except TargetError:
        return False
    try:
        status = os.fstat(descriptor)
        return stat.S_ISREG(status.st_mode) and status.st_size == entry.size and _same_content(descriptor, entry)
    except (SourceError, OSError):
        return False
    finally:
        os.close(descriptor)


def saved_badly(entry: Entry) -> str:
    """Say why an entry is not what the source was when the snapshot was made."""
    if entry.stale:
        return f"could not be saved ({entry.error}); this is what the snapshot before it had"
    return f"was not saved: {entry.error}"


def tag_of(path: bytes) -> str:
    """Return what makes an item's temporary name its own, and the same in every run."""
    return blake3(path).hexdigest(8)
