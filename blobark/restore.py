"""The restore: a snapshot, or a bare map, becomes a tree below restore_root.

    pass 1  in order: make each directory; hand files and special files to the engine, which fetches, verifies, writes
    pass 2  in order: further hard links, when every file they may point to is there
    then    with --delete, what the snapshot does not have goes (removal.py)
    pass 3  in reverse order, so deepest first: the directories' own metadata

What has priority goes through all passes before the rest.

What is right already is kept, so an interrupted restore goes on by running it again. `Target` is the only hand that
writes; entries come through `checked`, which refuses a manifest whose paths lead anywhere but down.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from blobark import plan
from blobark.context import Context
from blobark.crew import bundle_of
from blobark.errors import TargetError
from blobark.fetch import Fetcher, FetchTask, RestoreJob, is_there, saved_badly, tag_of
from blobark.manifest import checked, fault_of
from blobark.model import Entry, Outcome, Status, display, printable
from blobark.plan import Fate, Overwrite
from blobark.ranges import Neighbourhood, Requests, near
from blobark.rehydrate import Archive
from blobark.removal import Removal, items_of
from blobark.snapshot import Portion
from blobark.stores.base import BLOCK_SIZE_BYTES, Priority, Store
from blobark.target import Target
from blobark.upload import memory_cost
from metrics.stages import METADATA

PRIVATE = 0o700
"""Mode of a directory until everything below it is there."""
OPEN = 0o755
"""Mode of a directory above the roots that is not there, where they go to their own places."""


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
    archived: int = 0
    """How many items needed content of the archive tier, and their bytes."""
    archived_bytes: int = 0
    deleted: int = 0
    """What the snapshot did not have; with a dry run, what would be deleted. The bytes are those of files."""
    deleted_bytes: int = 0
    deletions: list[tuple[str, str]] = field(default_factory=list)
    """(path, reason) of the first of them."""
    target: str = ""
    """Below which folder; `/` for each item's own place."""
    at: str = ""
    """UTC; with --at, the moment that was asked for."""
    needs_root: bool = False
    """Whether something was another's, or had attributes that only root can set, and it is not root who restores."""
    usable_s: float | None = None
    """Seconds until all that has priority was there; None: not all is, or nothing has."""
    failed: list[tuple[str, str]] = field(default_factory=list)
    journal: str = ""
    """Where it is written down what became of each item; "" where it is not."""
    peak_rss_bytes: int = 0
    workers: int = 0
    """Transfers at a time, as they were in the end."""
    requests: dict[str, int] = field(default_factory=dict)
    """With a dry run: how many requests of each kind a real one would make."""
    forecast_s: tuple[float, float, float] | None = None
    """From, expected, to: what the runs before this one said of it."""
    seconds: float = 0.0
    """From the first look at the target to the end."""


class Restorer:
    """One restore into `target`. With `dry_run` nothing is written; the result says what would be."""

    def __init__(
        self, context: Context, store: Store, target: Target, server: str, overwrite: Overwrite, *, dry_run: bool
    ) -> None:
        self._context = context
        self._target = target
        self._overwrite: Overwrite = overwrite
        self._dry_run = dry_run
        self._store = store
        self._task = FetchTask(server, overwrite, context.config.part_bytes)
        self._final_directories = False
        self._archive: Archive | None = None
        self._priority: Priority = "standard"
        self._requests = Requests(server)
        self._promoted: frozenset[bytes] = frozenset()
        self._held = 0
        """How many items have been left for the archive to bring back."""
        self._failed_paths: set[bytes] = set()
        self._groups: set[bytes] = set()
        """Paths of restored files that further hard links may point to."""
        self._stale: set[bytes] = set()
        """Files of that kind that are there as the snapshot before had them, and count as failed."""
        self._left: dict[bytes, Entry] = {}
        """Files of that kind in whose place something was left as it is: perhaps it is the file."""
        self.removal: Removal | None = None
        """What removes the extras, if anything is to."""
        self.in_place = False
        """Whether roots go to their own places: what is above them there is nobody's to replace."""
        self.result = RestoreResult(server=server)

    @property
    def is_dry_run(self) -> bool:
        """Whether nothing is written."""
        return self._dry_run

    def wait_for(self, archive: Archive, priority: Priority) -> None:
        """Ask for what an archive holds back; it is restored when it is back."""
        self._archive, self._priority = archive, priority
        self.result.archived, self.result.archived_bytes = archive.needed
        if self._dry_run:
            self.result.requests["rehydrate"] = archive.blobs
        else:
            archive.ask(priority)

    def snapshot(self, portion: Portion, whole: Portion | None = None) -> None:
        """Restore every entry of a portion of a snapshot, the last one of `whole`; then remove what is to go."""
        header = portion.header
        self.result.snapshot = header.number
        if self._dry_run:
            self.result.requests |= {"get header and segments": 1 + len(header.segments)}
        self.items(jobs_of(portion))
        self._link_all(portion)
        if self.removal is not None:
            self._remove(self.removal, whole or portion)
        self._finish_directories(portion)

    def first(self, portion: Portion) -> bool:
        """Restore what has priority, to the last; say whether all of it is there, and nothing of it is archived."""
        held, failed, dirs = self._held, len(self.result.failed), self.result.dirs
        self._promoted = portion.promoted
        self._items(jobs_of(portion))
        self._promoted = frozenset()
        self._link_all(portion)
        self._finish_directories(portion)
        self.result.dirs = dirs  # they come again with the rest
        return (held, failed) == (self._held, len(self.result.failed))

    def _link_all(self, portion: Portion) -> None:
        places = portion.places
        for ref in portion.header.segments:
            for entry in portion.manifest.read(ref) if ref.links else ():
                if entry.hardlink_to_any:
                    self._link(RestoreJob(_join(places[entry.root], entry.raw_path), entry), places[entry.root])

    def _finish_directories(self, portion: Portion) -> None:
        if self._dry_run:
            return
        for ref in reversed(portion.header.segments):
            for entry in reversed(portion.manifest.directories(ref)):
                if not fault_of(entry):
                    path = _join(portion.places[entry.root], entry.raw_path)
                    if path not in portion.unknown:
                        self._finish_directory(path, entry)

    def _remove(self, removal: Removal, portion: Portion) -> None:
        """Remove the extras, unless something is not restored: then the next run does."""
        result = self.result
        if result.failed and not self._dry_run:
            self._context.reporter.warn("warning: something was not restored, so nothing is deleted: run it again")
        else:
            entries = (entry for ref in portion.header.segments for entry in portion.manifest.read(ref))
            removal.extras(items_of(portion.places, entries))
        result.deleted, result.deleted_bytes = removal.count, removal.bytes
        result.deletions = [(path, reason) for path, reason in removal.listed]
        result.failed += removal.failed

    def mapped(self, jobs: Iterable[RestoreJob]) -> None:
        """Restore the jobs of a bare map, whose directories have no metadata but the mode they are made with."""
        self._final_directories = True
        self.items(jobs)

    def items(self, jobs: Iterable[RestoreJob]) -> None:
        """Pass 1, over jobs in which a directory comes before what it holds; what is archived comes last."""
        self._items(jobs)
        if self._archive is not None and not self._dry_run:
            for ready in self._archive.waves(self._priority):
                self._items(ready)

    def _items(self, jobs: Iterable[RestoreJob]) -> None:
        context, task = self._context, self._task
        for job, outcome in (
            context.crew.run(task, bundled(self._prepare(jobs)), cost=_cost, descriptors=(self._target.descriptor,))
            if context.crew
            else context.engine.run(bundled(self._prepare(jobs)), self._fetcher(), cost=_cost, bundle=bundle_of)
        ):
            self._take(job, outcome)
        if self._dry_run:
            self.result.requests["get blob"] = self._requests.total()
        self.result.workers = context.workers

    def _fetcher(self) -> Fetcher:
        return Fetcher(self._store, self._target, self._task, self._context.engine, dry_run=self._dry_run)

    def _prepare(self, jobs: Iterable[RestoreJob]) -> Iterator[RestoreJob]:
        """Make the directories as they come by; yield the jobs that are left to the engine."""
        above: list[tuple[bytes, bool]] = []
        for job in jobs:
            path = job.path
            self.result.needs_root |= not job.is_mapped and self._target.falls_short(job.entry)
            parent = path.rpartition(b"/")[0]
            while above and above[-1][0] != parent:
                above.pop()
            if job.entry.kind == "dir":
                with self._context.engine.stages.timed(METADATA):
                    above.append((path, self._make_directory(job)))
            elif not job.entry.hardlink_to_any and not self._is_held(path):
                job.is_fresh = bool(above) and above[-1][1]
                job.is_cleared = not job.is_fresh and self._has_room_made(job)
                yield job

    def _is_held(self, path: bytes) -> bool:
        if self._archive is None or self._dry_run or not (path in self._promoted or self._archive.holds(path)):
            return False
        self._held += 1
        return True

    def _has_room_made(self, job: RestoreJob) -> bool:
        return self.removal is not None and self.removal.make_room(job.entry, job.path)

    def _make_directory(self, job: RestoreJob) -> bool:
        """Make a directory; say whether it was not there before, and so is empty."""
        entry = job.entry
        is_fresh = False
        fault = fault_of(entry)
        if fault:
            self._take(job, Outcome(0, entry, Status.FAILED, reason=f"its entry is damaged: {fault}"))
            return False
        try:
            if not self._dry_run:
                # A map may name a file, and another one below it: that must not cost the first.
                replace = self._overwrite != "never" and not self._final_directories
                is_root = not entry.path and not entry.path_b64
                if is_root and self.in_place:
                    replace = False
                parents = job.path.split(b"/")[:-1] if is_root else []
                for depth in range(1, len(parents) + 1):
                    above, mode = b"/".join(parents[:depth]), OPEN if self.in_place else PRIVATE
                    self._target.make_directory(above, replace=replace, mode=mode)
                mode = entry.mode if self._final_directories else PRIVATE
                is_fresh = self._target.make_directory(job.path, replace=replace, mode=mode)
        except TargetError as error:
            self._take(job, Outcome(0, entry, Status.FAILED, reason=error.message))
            return False
        self.result.dirs += is_fresh or not self._final_directories
        if entry.error:
            self._take(job, Outcome(0, entry, Status.FAILED, reason=saved_badly(entry)))
        return is_fresh

    def _link(self, job: RestoreJob, place: bytes) -> None:
        first = _join(place, job.entry.raw_hardlink_to)
        try:
            fault = fault_of(job.entry)
            if fault:
                raise TargetError(f"its entry is damaged: {fault}")
            self._has_room_made(job)
            with self._context.engine.stages.timed(METADATA):
                outcome = self._link_to(job, first)
            if first in self._stale:
                raise TargetError(f"is a hard link of {display(first)}, which could not be saved")
        except TargetError as error:
            outcome = Outcome(0, job.entry, Status.FAILED, reason=error.message)
        self._take(job, outcome)

    def _link_to(self, job: RestoreJob, first: bytes) -> Outcome:
        if self._dry_run:
            return Outcome(0, job.entry, Status.DONE)
        there = self._target.look(job.path)
        fate, reason = plan.restore_fate(job.entry, there, self._overwrite)
        if fate is Fate.LEAVE:
            return Outcome(0, job.entry, Status.SKIPPED, reason=reason)
        wanted = self._target.look(first)
        if wanted is None or not stat.S_ISREG(wanted.st_mode) or not self._has(first):
            why = "is another file there, which was left" if first in self._left else "was not restored"
            raise TargetError(f"the file it is a hard link of, {display(first)}, {why}")
        if there is not None and (there.st_dev, there.st_ino) == (wanted.st_dev, wanted.st_ino):
            return Outcome(0, job.entry, Status.KEPT)
        if fate is Fate.REFUSE:
            raise TargetError(reason)
        self._target.make_link(job.path, first, tag_of(job.path))
        return Outcome(0, job.entry, Status.DONE)

    def _has(self, first: bytes) -> bool:
        """Whether the file that a group's further names are to point to is there: restored, or what was left is it."""
        if first in self._stale:
            return True
        if first in self._left and is_there(self._target, first, self._left[first]):
            self._groups.add(first)
            del self._left[first]
        return first in self._groups

    def _finish_directory(self, path: bytes, entry: Entry) -> None:
        try:
            with self._context.engine.stages.timed(METADATA):
                self._target.finish_directory(path, entry)
        except TargetError as error:
            if path not in self._failed_paths:
                self._take(RestoreJob(path, entry), Outcome(0, entry, Status.FAILED, reason=error.message))

    def _take(self, job: RestoreJob, outcome: Outcome) -> None:
        """Fold one outcome into the result."""
        result, entry, status = self.result, job.entry, outcome.status
        self._context.reporter.outcome(outcome, job.path)
        self._context.items.outcome(outcome, job.path, _action(job.entry, status))
        if status is Status.FAILED:
            self._failed_paths.add(job.path)
            result.failed.append((display(job.path or b"."), printable(outcome.reason)))
            if entry.links > 1 and entry.has_content and outcome.reason == saved_badly(entry):
                self._stale.add(job.path)
            return
        if status is Status.SKIPPED:
            result.left += 1
            if entry.kind == "file" and entry.links > 1 and not entry.hardlink_to_any:
                self._left[job.path] = entry
            return
        if entry.hardlink_to_any:
            result.links += 1
        elif outcome.entry.kind == "dir":
            result.dirs += 1
        elif entry.kind == "file":
            if entry.links > 1:
                self._groups.add(job.path)
            size = outcome.entry.size
            result.files += 1
            result.file_bytes += size
            if status is Status.DONE:
                result.written += 1
                result.written_bytes += size
                if self._dry_run and outcome.entry.content_size:
                    self._requests.add(outcome.entry, job.bundle)
        else:
            result.specials += 1
        if status is Status.KEPT:
            result.kept += 1


def jobs_of(portion: Portion) -> Iterator[RestoreJob]:
    """Yield the jobs that restore a portion, further hard links among them, in the order of its manifest."""
    header, manifest, places = portion.header, portion.manifest, portion.places
    entries = checked((entry for ref in header.segments for entry in manifest.read(ref)), len(places))
    for entry, path in entries:
        yield RestoreJob(_join(places[entry.root], path), entry)


def bundled(jobs: Iterable[RestoreJob]) -> Iterator[RestoreJob]:
    """Yield the jobs, those whose content lies near each other in one blob as bundles; the others are not held up."""
    waiting: list[RestoreJob] = []
    neighbourhood = Neighbourhood()
    for number, job in enumerate(jobs):
        extent = None if job.is_mapped else near(job.entry)
        if extent is None:
            yield job
            continue
        if not neighbourhood.takes(extent):
            yield from _bundle(waiting, number)
            waiting = []
        waiting.append(job)
    yield from _bundle(waiting, -1)


def _bundle(jobs: list[RestoreJob], number: int) -> Iterator[RestoreJob]:
    """Yield jobs as a bundle, which one alone is not."""
    for job in jobs:
        job.bundle = str(number) if len(jobs) > 1 else ""
        yield job


def _action(entry: Entry, status: Status) -> str:
    """Return what the journal calls an outcome, "" for its usual name."""
    if status is not Status.DONE:
        return ""
    return "linked" if entry.hardlink_to_any else "written"


def _join(place: bytes, path: bytes) -> bytes:
    return place + b"/" + path if place and path else place or path


def _cost(job: RestoreJob) -> int:
    if job.entry.kind != "file":
        return 0
    return 2 * BLOCK_SIZE_BYTES if job.is_mapped else memory_cost(job.entry)
