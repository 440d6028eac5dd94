"""The commands, from configuration to result: they put the parts together and hold what must be held.

Each returns a result value; errors that stop the run are raised as `BlobarkError`. Nothing here prints.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec

from blobark import identity, index, mapjobs, measured, snapshot, timings
from blobark.again import FailedManifest, renew_failed, restore_failures
from blobark.builder import IndexResult
from blobark.catalog import Catalog
from blobark.context import Context
from blobark.doctor import DoctorResult, examine
from blobark.drafts import check_roots, make_draft_current
from blobark.engine import Engine
from blobark.errors import BlobarkError, ConfigError, SnapshotError, StoreMissing
from blobark.fetch import Fetcher, FetchTask, RestoreJob
from blobark.filelock import state_lock
from blobark.itemlog import SAVING, read_failures
from blobark.journals import journaled
from blobark.manifest import places_of
from blobark.model import Header, Root, display, printable, text_or_b64
from blobark.plan import Overwrite
from blobark.publish import publish
from blobark.rehydrate import Archive, common_prefix
from blobark.restore import Restorer, RestoreResult, jobs_of
from blobark.sampling import Sample, SampledManifest
from blobark.save import Saver, SaveResult
from blobark.send import Job, Sender, SendTask
from blobark.storelock import StoreLock, store_lock
from blobark.stores.base import Priority, Store, listings
from blobark.target import Target
from blobark.walk import raise_descriptor_limit

SAVE_SUMMARY = ("snapshot", "complete", "files", "file_bytes", "sent", "sent_bytes", "kept", "skipped", "workers")
RESTORE_SUMMARY = ("files", "file_bytes", "written", "written_bytes", "kept", "dirs", "links", "specials", "workers")
"""What of a result ends its run log."""


@dataclass(frozen=True, slots=True)
class IndexOptions:
    """What the command line adds to the configuration of an index."""

    allow_empty: frozenset[str] = frozenset()
    allow_shrink: frozenset[str] = frozenset()
    adopt: str = ""
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class SaveOptions:
    """What the command line adds to the configuration of a save."""

    create_container: bool = False
    retry_failed: Path | None = None
    """The journal of the run whose failed items are to be stored, and no others."""
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class RestoreOptions:
    """What the command line adds to the configuration of a restore."""

    snapshot: int = 0
    server: str = ""
    map_path: Path | None = None
    strip_prefix: str = ""
    overwrite: Overwrite = "if-changed"
    rehydrate: Priority | None = None
    share: float = 1.0
    """Restore a sample of the snapshot that is so large."""
    retry_failed: Path | None = None
    """The journal of the run whose failed items are to be restored, and no others."""
    to_given: bool = False
    """Whether restore_root is for this time only."""
    dry_run: bool = False


def run_index(context: Context, options: IndexOptions) -> IndexResult:
    """Index the source tree: the catalog's draft, and the map."""
    raise_descriptor_limit()
    state_dir = context.config.state_dir
    with (
        journaled(context, "index", dry_run=options.dry_run) as (run, ending),
        state_lock(state_dir),
        Catalog.open(state_dir, keep=not options.dry_run) as catalog,
    ):
        result = make_draft(run, catalog, options)
        ending.failed = result.errors
        return result


def make_draft(context: Context, catalog: Catalog, options: IndexOptions) -> IndexResult:
    """Index the source tree into an open catalog, which keeps nothing in a dry run."""
    return index.build(
        context,
        catalog,
        allow_empty=options.allow_empty,
        allow_shrink=options.allow_shrink,
        adopt=options.adopt,
        dry_run=options.dry_run,
    )


def run_save(context: Context, options: SaveOptions) -> SaveResult:
    """Store what the map names, and publish the snapshot."""
    raise_descriptor_limit()
    map_path = context.config.guid_mapping_file
    failures = read_failures(options.retry_failed, *SAVING) if options.retry_failed else None
    if failures is None and not map_path.exists():
        raise ConfigError(f"there is no map {map_path}", "run build_index.py first")
    state_dir = context.config.state_dir
    with (
        journaled(context, "save", dry_run=options.dry_run) as (run, ending),
        state_lock(state_dir) as known_as,
        hired(context, options.dry_run),
        Catalog.open(state_dir, keep=not options.dry_run) as catalog,
    ):
        lost: list[tuple[str, str]] = []
        if failures is not None:
            renew_failed(context, catalog, failures)
        else:
            lost = make_draft_current(context, catalog)
        check_roots(context, msgspec.json.decode(catalog.get("roots"), type=list[Root]))
        if options.dry_run:
            return estimate_draft(context, catalog)
        store = store_to_write(context, options)
        with store_lock(context, store, catalog.get("server"), "save", known_as=known_as) as lock:
            result = save_draft(run, catalog, store, lock, lost=lost)
        ending.snapshot, ending.failed = result.snapshot, result.failed
        return result


def store_to_write(context: Context, options: SaveOptions) -> Store:
    """Open the store of a save; a folder is made, and a container if it is told so."""
    return context.open_store(options.create_container if context.config.store == "azure" else True)


def estimate_draft(context: Context, catalog: Catalog) -> SaveResult:
    """Say what saving the draft of an open catalog would do."""
    roots = msgspec.json.decode(catalog.get("roots"), type=list[Root])
    saver = Saver(context, catalog, _store_to_look_at(context), catalog.get("server"), roots)
    saver.estimate()
    return saver.result


def save_draft(
    context: Context,
    catalog: Catalog,
    store: Store,
    lock: StoreLock,
    *,
    lost: Sequence[tuple[str, str]] = (),
    told: Sequence[tuple[str, str]] = (),
) -> SaveResult:
    """Store what the draft of an open catalog names, and publish the snapshot, under the store's lock.

    `lost` is (path, reason) of what failed and is no entry of the draft; of what is `told` nobody is warned again.
    """
    roots = msgspec.json.decode(catalog.get("roots"), type=list[Root])
    saver = Saver(context, catalog, store, catalog.get("server"), roots)
    context.items.begin(server=catalog.get("server"), host=identity.this_host().name)
    saver.result.journal = context.items.file
    log, watched = context.config.save_metrics_log_file, context.sources()[0].path
    with measured.sampler(context, "save", log, watched, server=catalog.get("server")) as sampler:
        saver.store()
        header = publish(context, catalog, store, saver, lock, lost=len(lost))
        saver.result.failed.extend(lost)
        for path, reason in lost:
            context.items.note(os.fsencode(path), "failed", error=reason)
        _name_stale(context, catalog, saver, header, {path for path, _ in told})
        if catalog.get("map_outdated"):
            index.write_map(context, catalog)
            catalog.set(map_outdated="")
            catalog.commit()
        summary = {name: getattr(saver.result, name) for name in SAVE_SUMMARY}
        measured.finish(context, sampler, summary, saver.result.failed)
    return saver.result


@contextlib.contextmanager
def hired(context: Context, dry_run: bool) -> Iterator[None]:
    """Have a crew while this lasts, which must begin before the store is asked anything: that starts threads."""

    def sender(task: SendTask, _descriptors: list[int], engine: Engine) -> Sender:
        return Sender(context, context.open_store(False), task, engine)

    def fetcher(task: FetchTask, descriptors: list[int], engine: Engine) -> Fetcher:
        return Fetcher(context.open_store(False), Target(descriptors[0]), task, engine, dry_run=False)

    limited = context.config.max_bandwidth or context.config.max_requests_per_s
    if not dry_run and not limited:  # a limit is one process's: it needs no second one
        context.crew.hire({SendTask: (Job, sender), FetchTask: (RestoreJob, fetcher)}, context.store_counters)
    try:
        yield
    finally:
        context.crew.dismiss()


def _store_to_look_at(context: Context) -> Store | None:
    """Open the store for a dry run; None when it is not there yet, and so is empty."""
    try:
        return context.open_store(False)
    except StoreMissing:
        return None


def _name_stale(context: Context, catalog: Catalog, saver: Saver, header: Header, told: set[str]) -> None:
    """Add what the index could not read, and the snapshot therefore names as failed, to the result."""
    named = {path for path, _ in saver.result.failed}
    for segment in catalog.draft() if not header.complete else ():
        for _, entry in catalog.entries([segment]) if segment.ref.errors else ():
            path = display(saver.path_of(entry))
            if entry.error and path not in named:
                reason = printable(entry.error)
                saver.result.failed.append((path, reason))
                context.items.note(saver.path_of(entry), "failed", kind=entry.kind, error=reason)
                if path not in told:
                    context.reporter.warn(f"failed: {path}: {reason}")


def run_restore(
    context: Context, options: RestoreOptions, *, check: Callable[[Header, snapshot.Manifest], None] | None = None
) -> RestoreResult:
    """Restore a snapshot or a map below restore_root, sampling the machine while it runs.

    `check` sees what will be restored before anything is made, and may raise.
    """
    raise_descriptor_limit()
    root = context.config.restore_root
    if root is None:
        raise ConfigError("there is no restore_root", "set it in the configuration, or say --to DIR")
    with journaled(context, "restore", dry_run=options.dry_run) as (run, ending):
        result = _run_restore(run, options, root, check)
        ending.failed = result.failed
        return result


def _run_restore(
    context: Context,
    options: RestoreOptions,
    root: Path,
    check: Callable[[Header, snapshot.Manifest], None] | None,
) -> RestoreResult:
    with contextlib.ExitStack() as stack:
        stack.enter_context(hired(context, options.dry_run))
        store = context.open_store(False)
        wanted = _wanted(context, store, _catalog_to_read(stack, context.config.state_dir), options)
        if check is not None and wanted.header is not None:
            check(wanted.header, wanted.manifest)
        started_s = time.monotonic()
        archive = stack.enter_context(Archive.open(context, store, wanted.server))
        if archive.find(f"{wanted.server}_" if wanted.header else common_prefix(wanted.server, wanted.jobs())):
            _hold_archived(context, archive, options, wanted, root)
        target = Target.open(root, create=not options.dry_run)
        stack.callback(target.close)
        restorer = Restorer(context, store, target, wanted.server, options.overwrite, dry_run=options.dry_run)
        if options.dry_run and context.config.store == "azure":
            restorer.result.requests["list blobs"] = listings(wanted.files())
        if archive.is_needed:
            restorer.wait_for(archive, options.rehydrate or "standard")
        result = restorer.result
        if options.dry_run:
            _restore(context, restorer, wanted, options.share)
            return result
        facts = {"server": wanted.server, "snapshot": wanted.header.number if wanted.header else 0}
        text, b64 = text_or_b64(os.fsencode(root))
        context.items.begin(**facts, host=identity.this_host().name, target=text, target_b64=b64)
        result.journal = context.items.file
        log = context.config.metrics_log_file
        with measured.sampler(context, "restore", log, root, **facts, overwrite=options.overwrite) as sampler:
            _restore(context, restorer, wanted, options.share)
            summary = {name: getattr(result, name) for name in RESTORE_SUMMARY}
            measured.finish(context, sampler, summary, result.failed)
        result.peak_rss_bytes = sampler.peak_rss_bytes
        result.seconds = round(time.monotonic() - started_s, 3)
        timings.note(context, store.name, result)
        return result


def run_doctor(context: Context, commands: Sequence[str], *, dry_run: bool) -> DoctorResult:
    """Look at how this machine logs in to its store, and try what the commands need there."""
    with contextlib.ExitStack() as stack:
        catalog = _catalog_to_read(stack, context.config.state_dir)
        server = context.config.server or (catalog.get("server") if catalog else "")
    return examine(context, server or identity.name_for_host(identity.this_host().name), commands, dry_run=dry_run)


class _Wanted(NamedTuple):
    """What is to be restored: a snapshot, or (without a header) a bare map; `jobs` may be called more than once."""

    server: str
    header: Header | None
    manifest: snapshot.Manifest
    jobs: Callable[[], Iterator[RestoreJob]]

    def files(self) -> int:
        """Return how many files there are; the store has as many blobs at least."""
        if self.header:
            return self.header.totals.files
        return sum(job.entry.kind == "file" for job in self.jobs())


def _wanted(context: Context, store: Store, catalog: Catalog | None, options: RestoreOptions) -> _Wanted:
    config = context.config
    server = options.server or config.server or (catalog.get("server") if catalog else "")
    failures = None
    if options.retry_failed:
        if options.snapshot or options.server or options.map_path or options.share < 1:
            hint = "leave out --snapshot, --server, --map and --sample"
            raise ConfigError("--retry-failed restores what failed in a run, of that run's snapshot", hint)
        place = b"" if options.to_given else os.fsencode(config.restore_root or "")
        failures = restore_failures(options.retry_failed, place)
        server, options = failures.run.server, replace(options, snapshot=failures.run.snapshot)
    if options.map_path is not None:
        if options.share < 1:
            raise ConfigError("--sample is for snapshots: a map has none")
        prefixes = [os.fsencode(options.strip_prefix)] if options.strip_prefix else [r.name for r in config.source_path]
        jobs = partial(mapjobs.restore_jobs, options.map_path, server, prefixes)
        return _Wanted(server, None, snapshot.Manifest(store, server), jobs)
    server = server or identity.server_to_restore(store)
    known = int(catalog.get("snapshot") or "0") if catalog else 0
    header = _header(context, store, server, options.snapshot, known)
    manifest = snapshot.Manifest(store, server, catalog.segment if catalog else None)
    if options.share < 1:
        manifest = SampledManifest(manifest, Sample(options.share, header.number))
    if failures is not None:
        manifest = FailedManifest(manifest, header, places_of(header), failures.paths)
    return _Wanted(server, header, manifest, partial(jobs_of, header, manifest))


def _restore(context: Context, restorer: Restorer, wanted: _Wanted, share: float) -> None:
    header = wanted.header
    if header is None:
        context.reporter.begin("restore", 0, 0)
        restorer.mapped(wanted.jobs())
        return
    totals = header.totals
    context.reporter.begin("restore", round(share * totals.files), round(share * totals.file_bytes))
    restorer.snapshot(header, wanted.manifest)
    if not header.complete and not header.totals.errors:
        reason = "some items that its map named were not saved, and are not in it"
        if header.rescued:
            reason = "it was rescued from the blobs alone, and lacks links, empty directories and special files"
        restorer.result.failed.append((f"snapshot {header.number}", reason))
        context.reporter.warn(f"failed: snapshot {header.number}: {reason}")


def _hold_archived(context: Context, archive: Archive, options: RestoreOptions, wanted: _Wanted, root: Path) -> None:
    """Find what needs archived content; raises `Fatal`, with nothing written, when that is not to be brought back."""
    task = FetchTask(wanted.server, options.overwrite)
    with contextlib.closing(Target.open(root, create=False)) as target:
        look = Fetcher(context.open_store(False), target, task, context.engine, dry_run=True)
        archive.hold(wanted.jobs(), look)
    if archive.is_needed and not options.rehydrate and not options.dry_run:
        raise archive.refusal()


def _header(context: Context, store: Store, server: str, number: int, known: int) -> Header:
    header = snapshot.load(store, server, number) if number else snapshot.latest(store, server, known)
    if header is None:
        raise SnapshotError(f"server {server} has no snapshot in {store.name}", "run save_blob.py first")
    if header.totals.errors:
        context.reporter.warn(f"snapshot {header.number} is incomplete: {header.totals.errors} items were not saved")
    return header


def _catalog_to_read(stack: contextlib.ExitStack, state_dir: Path) -> Catalog | None:
    """Return the catalog if there is one that can be used: a restore needs none, it saves requests."""
    try:
        if not (state_dir / "catalog.sqlite").exists():
            return None
        return stack.enter_context(Catalog.open(state_dir, to_read=True))
    except (BlobarkError, OSError):
        return None
