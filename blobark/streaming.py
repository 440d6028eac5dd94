"""`restore --cat` and `--tar`: content to standard output, verified, in the order of the manifest.

    a window of jobs is fetched in parallel, small files whole; those that are wrong are left out, and named
    large files follow block by block, in order; each block is verified before it goes out where its list is known
    a large file that breaks off is filled up with zeros, and named: the tar stays readable

A reader has bytes of a large file before all of it is known to be right; so the exit code is what counts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable, Iterator

from blobark import blocklist, content, tarball, verified
from blobark.context import Context
from blobark.crew import bundle_of
from blobark.download import Downloader
from blobark.errors import ConfigError, ContentError
from blobark.fetch import RestoreJob, saved_badly
from blobark.manifest import fault_of
from blobark.model import Data, Entry, Outcome, Status, display, printable
from blobark.output import Stream
from blobark.ranges import near, read_together
from blobark.restore import bundled
from blobark.restoring import RestoreOptions, Wanted, find_wanted, lack_of
from blobark.stores.base import BLOCK_SIZE_BYTES, Store
from blobark.upload import memory_cost

WINDOW_JOBS = 2000
WINDOW_BYTES = 32 * 1024 * 1024
ZEROS = bytes(1024 * 1024)


def stream_tar(context: Context, options: RestoreOptions) -> Stream:
    """Return what is chosen of a snapshot as a tar."""
    failed: list[tuple[str, str]] = []
    return Stream(_tar(context, options, failed), failed)


def stream_file(context: Context, options: RestoreOptions) -> Stream:
    """Return the content of the one file that is chosen."""
    failed: list[tuple[str, str]] = []
    return Stream(_file(context, options, failed), failed)


def _tar(context: Context, options: RestoreOptions, failed: list[tuple[str, str]]) -> Generator[Data, None, None]:
    with contextlib.ExitStack() as stack:
        store = context.open_store(False)
        wanted = find_wanted(context, stack, store, options)
        writer = _Tar(context, _Reader(context, store, wanted.server), failed)
        for path in wanted.missing:
            writer.fail(path, "is not in the snapshot")
        if wanted.portion is not None:
            totals, unknown = wanted.portion.header.totals, wanted.portion.unknown
            context.reporter.begin("tar", totals.files, totals.file_bytes)
            yield from writer.run(job for job in wanted.jobs() if job.path not in unknown)
            if lack := lack_of(wanted.portion.header):
                writer.fail(f"snapshot {wanted.portion.header.number}".encode(), lack)


def _file(context: Context, options: RestoreOptions, failed: list[tuple[str, str]]) -> Generator[Data, None, None]:
    with contextlib.ExitStack() as stack:
        store = context.open_store(False)
        wanted = find_wanted(context, stack, store, options)
        job = _the_file(wanted)
        fault = _fault(job.entry)
        try:
            if fault:
                raise ContentError(fault)
            yield from _expanded(job.entry, _Reader(context, store, wanted.server).whole(job.entry))
            if job.entry.error:
                raise ContentError(saved_badly(job.entry))
        except ContentError as error:
            failed.append((display(job.path), printable(error.message)))
            context.reporter.warn(f"failed: {display(job.path)}: {error.message}")


def _the_file(wanted: Wanted) -> RestoreJob:
    tops = wanted.chosen.tops or {}
    jobs = [job for job in wanted.jobs() if job.entry.raw_path in tops.get(job.entry.root, ())]
    if len(jobs) != 1 or jobs[0].entry.kind != "file":
        raise ConfigError("--cat takes one regular file", "--tar takes anything")
    return jobs[0]


def _fault(entry: Entry) -> str:
    """Say why an item has nothing to give, "" where it has."""
    if entry.error and entry.kind == "file" and not entry.has_content and not entry.hardlink_to_any:
        return saved_badly(entry)
    fault = fault_of(entry)
    return f"its entry is damaged: {fault}" if fault else ""


class _Reader:
    """Gets verified content."""

    def __init__(self, context: Context, store: Store, server: str) -> None:
        self._context = context
        self._store = store
        self._server = server

    def small(self, jobs: Iterable[RestoreJob]) -> dict[bytes, bytes | ContentError]:
        """Return the content of small files, by path, or why it cannot be had."""
        found = self._context.engine.run(bundled(jobs), self._batch, cost=_cost, bundle=bundle_of)
        return {job.path: data for job, data in found}

    def _batch(self, batch: list[RestoreJob]) -> list[bytes | ContentError]:
        parts: list[bytes | ContentError | None] = [None] * len(batch)
        if batch[0].bundle:
            extents = [near(job.entry) for job in batch]
            wanted = [extent for extent in extents if extent is not None]
            together = iter(read_together(self._store, wanted, self._context.engine.stages))
            parts = [None if extent is None else next(together) for extent in extents]
        return [self._one(job.entry, part) for job, part in zip(batch, parts, strict=True)]

    def _one(self, entry: Entry, found: bytes | ContentError | None) -> bytes | ContentError:
        try:
            return verified.small(self._store, self._server, entry, self._context.engine.stages, found=found)
        except ContentError as error:
            return error

    def whole(self, entry: Entry) -> Iterator[Data]:
        """Yield the content of a file, in order. Raises `ContentError`, perhaps when much of it has come."""
        if entry.content_size <= BLOCK_SIZE_BYTES:
            yield verified.small(self._store, self._server, entry, self._context.engine.stages)
            return
        entry_blocks = blocklist.load(self._store, self._server, entry)
        if entry_blocks:
            yield from Downloader(self._store, self._server, self._context.engine, entry, entry_blocks).stream()
            return
        check = verified.Check(entry)
        for piece in content.pieces(self._store, self._server, entry, self._context.engine.stages):
            check.update(piece)
            yield piece
        if not check.is_right():
            raise verified.damaged()


class _Tar:
    """Writes a tar."""

    def __init__(self, context: Context, reader: _Reader, failed: list[tuple[str, str]]) -> None:
        self._context = context
        self._reader = reader
        self._failed = failed
        self._groups: set[bytes] = set()
        """Files in the tar that further hard links may point to."""
        self._written = 0

    def run(self, jobs: Iterable[RestoreJob]) -> Iterator[Data]:
        """Yield the tar of all jobs."""
        for piece in self._all(jobs):
            self._written += len(piece)
            yield piece
        yield tarball.end(self._written)

    def fail(self, path: bytes, why: str) -> None:
        """Name what is not in the tar, or not right."""
        self._failed.append((display(path), printable(why)))
        self._context.reporter.outcome(Outcome(0, Entry(), Status.FAILED, reason=why), path)

    def _all(self, jobs: Iterable[RestoreJob]) -> Iterator[Data]:
        for window in _windows(jobs):
            self._context.check_stop()
            small = self._reader.small(job for job in window if _is_small(job.entry) and not _fault(job.entry))
            for job in window:
                yield from self._item(job, small.get(job.path))

    def _item(self, job: RestoreJob, data: bytes | ContentError | None) -> Iterator[Data]:
        path, entry = job.path, job.entry
        fault = _fault(entry)
        if fault or isinstance(data, ContentError):
            self.fail(path, data.message if isinstance(data, ContentError) else fault)
            return
        if entry.kind == "socket":
            self._context.reporter.warn(f"warning: {display(path)} is a socket, which no tar can hold")
            return
        try:
            if entry.hardlink_to_any:
                yield self._link(job)
            elif entry.kind != "file":
                yield tarball.header(entry, path)
            elif data is not None:
                yield tarball.header(entry, path) + data + tarball.padding(len(data))
            else:
                yield from self._large(job)
        except ContentError as error:
            self.fail(path, error.message)
            return
        except ValueError:
            self.fail(path, "an attribute has a name that no tar can hold")
            return
        if entry.links > 1 and not entry.hardlink_to_any:
            self._groups.add(path)
        if entry.error:
            self.fail(path, saved_badly(entry))
        else:
            self._context.reporter.outcome(Outcome(0, entry, Status.DONE, entry.size), path)

    def _link(self, job: RestoreJob) -> bytes:
        first = job.path[: len(job.path) - len(job.entry.raw_path)] + job.entry.raw_hardlink_to
        if first not in self._groups:
            raise ContentError(f"the file it is a hard link of, {display(first)}, is not in the tar")
        return tarball.header(job.entry, job.path, first)

    def _large(self, job: RestoreJob) -> Iterator[Data]:
        """Yield a large file, from its header on once its beginning is there; raises `ContentError` when it is over."""
        left = job.entry.content_size
        begin = tarball.header(job.entry, job.path)
        try:
            for piece in self._reader.whole(job.entry):
                yield begin + piece if begin else piece
                begin = b""
                left -= len(piece)
        except ContentError:
            if not begin:
                yield from _zeros(left)
                yield tarball.padding(job.entry.content_size)
            raise
        yield tarball.padding(job.entry.content_size)


def _windows(jobs: Iterable[RestoreJob]) -> Iterator[list[RestoreJob]]:
    """Yield the jobs in groups whose small files are fetched together; a large file is by itself."""
    window: list[RestoreJob] = []
    size = 0
    for job in jobs:
        is_large = job.entry.kind == "file" and not job.entry.hardlink_to_any and not _is_small(job.entry)
        if window and (is_large or size > WINDOW_BYTES or len(window) >= WINDOW_JOBS):
            yield window
            window, size = [], 0
        window.append(job)
        size += WINDOW_BYTES + 1 if is_large else job.entry.content_size if job.entry.kind == "file" else 0
    if window:
        yield window


def _is_small(entry: Entry) -> bool:
    return entry.kind == "file" and not entry.hardlink_to_any and entry.content_size <= BLOCK_SIZE_BYTES


def _cost(job: RestoreJob) -> int:
    return memory_cost(job.entry)


def _expanded(entry: Entry, pieces: Iterator[Data]) -> Iterator[Data]:
    """Yield a file with its holes as zeros."""
    if entry.ranges is None:
        yield from pieces
        return
    at = 0
    data: Data = b""
    for offset, length in entry.ranges:
        yield from _zeros(offset - at)
        left = length
        while left:
            data = data or next(pieces)
            yield data[:left]
            taken = min(left, len(data))
            data, left = data[taken:], left - taken
        at = offset + length
    yield from _zeros(entry.size - at)
    for _ in pieces:  # what comes last is whether it was right
        pass


def _zeros(size: int) -> Iterator[bytes]:
    while size > 0:
        yield ZEROS[:size]
        size -= len(ZEROS)
