"""The restore: a snapshot, or a bare map, becomes a tree below restore_root.

    pass 1  in order: make each directory; hand files and special files to the engine, which fetches, verifies, writes
    pass 2  in order: further hard links, when every file they may point to is there
    pass 3  in reverse order, so deepest first: the directories' own metadata

What is right already is kept, so an interrupted restore goes on by running it again. `Target` is the only hand that
writes; entries come through `checked`, which refuses a manifest whose paths lead anywhere but down.
"""

from __future__ import annotations

import hashlib
import os
import stat
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from blobark import content, plan, source
from blobark.context import Context
from blobark.errors import ContentError, ItemError, SnapshotError, SourceError, TargetError
from blobark.guids import blob_name
from blobark.model import Entry, Header, Outcome, Status, display
from blobark.plan import Fate, Overwrite
from blobark.snapshot import Manifest
from blobark.stores.base import BLOCK_SIZE_BYTES, Store
from blobark.target import NewFile, Target

FETCHES = 2
"""How often content whose digest is wrong is fetched before it is given up."""

PRIVATE = 0o700
"""Mode of a directory until everything below it is there."""

_LOCKS = 64


class RestoreJob(NamedTuple):
    """An item to restore at `path`, relative to restore_root."""

    path: bytes
    entry: Entry


@dataclass(slots=True)
class RestoreResult:
    """What a restore did. `files` counts regular files that are right now, written or kept."""

    server: str = ""
    snapshot: int = 0
    files: int = 0
    file_bytes: int = 0
    written: int = 0
    written_bytes: int = 0
    kept: int = 0
    left: int = 0
    dirs: int = 0
    links: int = 0
    specials: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    peak_rss_bytes: int = 0
    requests: dict[str, int] = field(default_factory=dict)
    """With a dry run: how many requests of each kind a real one would make."""


class Restorer:
    """One restore into `target`. With `dry_run` nothing is written; the result says what would be."""

    def __init__(
        self, context: Context, store: Store, target: Target, server: str, overwrite: Overwrite, *, dry_run: bool
    ) -> None:
        self._context = context
        self._target = target
        self._overwrite: Overwrite = overwrite
        self._dry_run = dry_run
        self._worker = _Worker(store, target, server, overwrite, dry_run=dry_run)
        self._final_directories = False
        self._failed_paths: set[bytes] = set()
        self.result = RestoreResult(server=server)

    def snapshot(self, header: Header, manifest: Manifest) -> None:
        """Restore every entry of a snapshot."""
        self.result.snapshot = header.number
        places = places_of(header)
        entries = checked((entry for ref in header.segments for entry in manifest.read(ref)), len(places))
        self.items(RestoreJob(_join(places[entry.root], path), entry) for entry, path in entries)
        for ref in header.segments:
            for entry in manifest.read(ref) if ref.links else ():
                if entry.hardlink_to_any:
                    self._link(RestoreJob(_join(places[entry.root], entry.raw_path), entry), places[entry.root])
        if not self._dry_run:
            for ref in reversed(header.segments):
                for entry in reversed(manifest.read(ref)) if ref.dirs else ():
                    if entry.kind == "dir":
                        self._finish_directory(_join(places[entry.root], entry.raw_path), entry)

    def mapped(self, jobs: Iterable[RestoreJob]) -> None:
        """Restore the jobs of a bare map, whose directories have no metadata but the mode they are made with."""
        self._final_directories = True
        self.items(jobs)

    def items(self, jobs: Iterable[RestoreJob]) -> None:
        """Pass 1, over jobs in which a directory comes before what it holds."""
        engine = self._context.engine
        for job, outcome in engine.run(self._prepare(jobs), self._worker, cost=_cost):
            self._take(job, outcome)

    def _prepare(self, jobs: Iterable[RestoreJob]) -> Iterator[RestoreJob]:
        """Make the directories as they come by; yield the jobs that are left to the engine."""
        for job in jobs:
            if job.entry.kind == "dir":
                self._make_directory(job)
            elif not job.entry.hardlink_to_any:
                yield job

    def _make_directory(self, job: RestoreJob) -> None:
        entry = job.entry
        try:
            if not self._dry_run:
                replace = self._overwrite != "never"
                parents = job.path.split(b"/")[:-1] if not entry.path and not entry.path_b64 else []
                for depth in range(1, len(parents) + 1):
                    self._target.make_directory(b"/".join(parents[:depth]), replace=replace)
                mode = entry.mode if self._final_directories else PRIVATE
                self._target.make_directory(job.path, replace=replace, mode=mode)
        except TargetError as error:
            self._take(job, Outcome(0, entry, Status.FAILED, reason=error.message))
            return
        self.result.dirs += 1
        if entry.error:
            self._take(job, Outcome(0, entry, Status.FAILED, reason=_saved_badly(entry)))

    def _link(self, job: RestoreJob, place: bytes) -> None:
        first = _join(place, job.entry.raw_hardlink_to)
        try:
            outcome = self._link_to(job, first)
        except TargetError as error:
            outcome = Outcome(0, job.entry, Status.FAILED, reason=error.message)
        self._take(job, outcome)

    def _link_to(self, job: RestoreJob, first: bytes) -> Outcome:
        if self._dry_run:
            return Outcome(0, job.entry, Status.DONE)
        there, wanted = self._target.look(job.path), self._target.look(first)
        if wanted is None or first in self._failed_paths or not stat.S_ISREG(wanted.st_mode):
            raise TargetError(f"the file it is a hard link of, {display(first)}, was not restored")
        if there is not None and (there.st_dev, there.st_ino) == (wanted.st_dev, wanted.st_ino):
            return Outcome(0, job.entry, Status.KEPT)
        fate, reason = plan.restore_fate(job.entry, there, self._overwrite)
        if fate is Fate.REFUSE:
            raise TargetError(reason)
        if fate is Fate.LEAVE:
            return Outcome(0, job.entry, Status.SKIPPED, reason=reason)
        self._target.make_link(job.path, first, "link")
        return Outcome(0, job.entry, Status.DONE)

    def _finish_directory(self, path: bytes, entry: Entry) -> None:
        try:
            self._target.finish_directory(path, entry)
        except TargetError as error:
            if path not in self._failed_paths:
                self._take(RestoreJob(path, entry), Outcome(0, entry, Status.FAILED, reason=error.message))

    def _take(self, job: RestoreJob, outcome: Outcome) -> None:
        """Fold one outcome into the result."""
        result, entry, status = self.result, job.entry, outcome.status
        self._context.reporter.outcome(outcome, job.path)
        if status is Status.FAILED:
            self._failed_paths.add(job.path)
            result.failed.append((display(job.path), outcome.reason))
            return
        if status is Status.SKIPPED:
            result.left += 1
            return
        if entry.hardlink_to_any:
            result.links += 1
        elif entry.kind == "file":
            size = outcome.entry.size
            result.files += 1
            result.file_bytes += size
            if status is Status.DONE:
                result.written += 1
                result.written_bytes += size
        else:
            result.specials += 1
        if status is Status.KEPT:
            result.kept += 1


class _Worker:
    """Restores one item; runs on the engine's threads."""

    def __init__(self, store: Store, target: Target, server: str, overwrite: Overwrite, *, dry_run: bool) -> None:
        self._store = store
        self._target = target
        self._server = server
        self._overwrite: Overwrite = overwrite
        self._dry_run = dry_run
        # Threads that make files in one directory fight for its lock in the kernel, at a high price: one at a time.
        self._locks = [threading.Lock() for _ in range(_LOCKS)]

    def __call__(self, job: RestoreJob) -> tuple[RestoreJob, Outcome]:
        entry = job.entry
        try:
            if entry.error and not entry.has_content:
                return job, Outcome(0, entry, Status.FAILED, reason=_saved_badly(entry))
            outcome = self._restore(job.path, entry)
            if entry.error:
                outcome = Outcome(0, entry, Status.FAILED, reason=_saved_badly(entry))
            return job, outcome
        except ItemError as error:
            return job, Outcome(0, entry, Status.FAILED, reason=error.message)

    def _restore(self, path: bytes, entry: Entry) -> Outcome:
        there = self._look(path)
        md5 = ""
        if entry.kind == "file" and not entry.digest:  # from a bare map: the blob itself has to tell
            described = content.describe_blob(self._store, blob_of(self._server, entry), entry)
            entry, md5 = described.entry, described.md5
        fate, reason = plan.restore_fate(entry, there, self._overwrite)
        if fate is Fate.REFUSE:
            raise TargetError(reason)
        if fate is Fate.LEAVE:
            return Outcome(0, entry, Status.SKIPPED, reason=reason)
        if fate is Fate.CHECK and there is not None and self._is_right(path, entry, there):
            return Outcome(0, entry, Status.KEPT, reason="right already")
        if not self._dry_run:
            if entry.kind == "file":
                self._write(path, entry, md5)
            else:
                self._target.make_special(path, entry, _tag(path, entry))
        return Outcome(0, entry, Status.DONE, bytes=entry.size, reason=reason)

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
        descriptor = self._target.open_existing(path)
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
        except SourceError:
            return False
        except OSError as error:
            raise TargetError(f"its metadata cannot be set ({error.strerror})") from None
        finally:
            os.close(descriptor)

    def _is_right_special(self, path: bytes, entry: Entry, there: os.stat_result) -> bool:
        same_owner = not self._target.is_root or (there.st_uid, there.st_gid) == (entry.uid, entry.gid)
        if not same_owner or there.st_mtime_ns != entry.mtime_ns or entry.xattrs:
            return False
        if entry.kind == "symlink":
            return self._target.read_link(path) == entry.raw_link
        device = (os.major(there.st_rdev), os.minor(there.st_rdev)) if entry.rdev else None
        return stat.S_IMODE(there.st_mode) == entry.mode and device == entry.rdev

    def _write(self, path: bytes, entry: Entry, md5: str) -> None:
        for fetch in range(1, FETCHES + 1):
            check = _Check(entry, md5)
            try:
                if entry.content_size <= BLOCK_SIZE_BYTES:
                    self._write_small(path, entry, check)
                else:
                    self._write_large(path, entry, check)
                return
            except ContentError:
                if fetch == FETCHES:
                    raise

    def _write_small(self, path: bytes, entry: Entry, check: _Check) -> None:
        data = b"".join(content.pieces(self._store, self._server, entry))
        check.update(data)
        check.verify()
        with (
            self._locks[hash(path.rpartition(b"/")[0]) % _LOCKS],
            self._target.new_file(path, _tag(path, entry)) as new,
        ):
            _Placer(new, entry).write(data)
            new.keep(entry)

    def _write_large(self, path: bytes, entry: Entry, check: _Check) -> None:
        with self._target.new_file(path, _tag(path, entry)) as new:
            placer = _Placer(new, entry)
            for piece in content.pieces(self._store, self._server, entry):
                check.update(piece)
                placer.write(piece)
            check.verify()
            new.keep(entry)


class _Check:
    """Compares content, as it arrives, with its digest; where only a map names it, with the store's MD5, if any."""

    def __init__(self, entry: Entry, md5: str) -> None:
        self._wanted = entry.digest or md5
        self._hasher = source.content_hasher(entry) if entry.digest or not md5 else hashlib.md5(usedforsecurity=False)

    def update(self, data: bytes) -> None:
        self._hasher.update(data)

    def verify(self) -> None:
        """Raise `ContentError` when the digest is another one."""
        if self._wanted and self._hasher.hexdigest() != self._wanted:
            raise ContentError("its content in the store is damaged: it has another digest than it was saved with")


class _Placer:
    """Writes the stream of a content to where it belongs in the file: one run, or the ranges of a sparse one."""

    def __init__(self, new: NewFile, entry: Entry) -> None:
        self._new = new
        self._ranges = list(reversed(entry.ranges if entry.ranges is not None else ((0, entry.size),)))
        if entry.ranges is not None:
            os.ftruncate(new.descriptor, entry.size)

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            offset, length = self._ranges.pop()
            part = view[:length]
            self._new.write(part, offset)
            if len(part) < length:
                self._ranges.append((offset + len(part), length - len(part)))
            view = view[len(part) :]


def places_of(header: Header) -> list[bytes]:
    """Return where each root lands, relative to restore_root: one root there itself, several under their names."""
    if len(header.roots) == 1:
        return [b""]
    places = []
    for root in header.roots:
        place = root.raw_name.strip(b"/")
        check_path(place)
        places.append(place)
    return places


def checked(entries: Iterable[Entry], roots: int) -> Iterator[tuple[Entry, bytes]]:
    """Yield (entry, raw path), having made sure that a manifest is one.

    Raises:
        SnapshotError: a path is absolute, has `..` or NUL, is out of order or there twice, or lies below something
            that is not a directory; a root's number is unknown.
    """
    above: list[bytes] = []
    root = -1
    last: tuple[int, bytes] = (-1, b"")
    for entry in entries:
        path = entry.raw_path
        key = entry.sort_key
        if not 0 <= entry.root < roots or key <= last:
            raise SnapshotError(f"the manifest is damaged: {display(path)} is out of order")
        last = key
        if entry.root != root:
            if path:
                raise SnapshotError(f"the manifest is damaged: {display(path)} comes before its root")
            root, above = entry.root, [b""]
        else:
            check_path(path)
            parent = path.rpartition(b"/")[0]
            while above and above[-1] != parent:
                above.pop()
            if not above:
                raise SnapshotError(f"the manifest is damaged: {display(path)} lies below what is no directory")
            if entry.kind == "dir":
                above.append(path)
        if entry.hardlink_to_any:
            check_path(entry.raw_hardlink_to)
        yield entry, path


def check_path(path: bytes) -> None:
    """Raise `SnapshotError` unless a relative path leads down, component by component."""
    if b"\0" in path or any(part in (b"", b".", b"..") for part in path.split(b"/")):
        raise SnapshotError(f"the manifest is damaged: {display(path)!r} is not a path below its root")


def blob_of(server: str, entry: Entry) -> str:
    """Return the key of the blob that an entry's content begins in."""
    return entry.extents[0].blob if entry.extents else blob_name(server, entry.guid)


def _same_content(descriptor: int, entry: Entry) -> bool:
    """Whether an open file has the entry's holes and digest."""
    if entry.ranges is not None and source.data_ranges(descriptor, entry.size) != entry.ranges:
        return False
    hasher = source.content_hasher(entry)
    for block in source.read_blocks(descriptor, entry, BLOCK_SIZE_BYTES):
        hasher.update(block)
    return hasher.hexdigest() == entry.digest


def _saved_badly(entry: Entry) -> str:
    if entry.stale:
        return f"could not be saved ({entry.error}); this is what the snapshot before it had"
    return f"was not saved: {entry.error}"


def _tag(path: bytes, entry: Entry) -> str:
    return entry.guid or f"{hash(path) & 0xFFFFFFFFFFFFFFFF:016x}"


def _join(place: bytes, path: bytes) -> bytes:
    return place + b"/" + path if place and path else place or path


def _cost(job: RestoreJob) -> int:
    if job.entry.kind != "file":
        return 0
    return content.memory_cost(job.entry) if job.entry.digest else 2 * BLOCK_SIZE_BYTES
