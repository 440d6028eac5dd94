"""The command `restore`, from its options to the result: what is wanted, whether it can be, and then doing it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from blobark import fitness, identity, measured, snapshot, timings
from blobark.browse import Tree
from blobark.clock import utc
from blobark.context import Context
from blobark.engine import Engine
from blobark.errors import ConfigError, SnapshotError
from blobark.excerpt import Edits, choose, excerpt, places_in
from blobark.fetch import Fetcher, FetchTask, RestoreJob
from blobark.itemlog import Failures
from blobark.journals import journaled
from blobark.member import Makers
from blobark.model import Entry, Header, display, text_or_b64
from blobark.outset import catalog_to_read, hired
from blobark.plan import Overwrite
from blobark.rehydrate import Archive, common_prefix
from blobark.removal import Removal, items_of
from blobark.restore import Restorer, RestoreResult, jobs_of
from blobark.rules import Patterns
from blobark.sampling import Sample
from blobark.selection import NO_PATTERNS, Chosen, Selection
from blobark.snapshot import Manifest, PartialManifest, Portion
from blobark.stores.base import Priority, Store, listings
from blobark.target import Target
from blobark.walk import raise_descriptor_limit
from blobark.wording import counted

SUMMARY = (
    "files",
    "file_bytes",
    "written",
    "written_bytes",
    "kept",
    "dirs",
    "links",
    "specials",
    "deleted",
    "usable_s",
)
"""What of a result ends its run log, besides `workers`."""
IN_PLACE = Path("/")


@dataclasses.dataclass(frozen=True, slots=True)
class RestoreOptions:
    """What the command line adds to the configuration of a restore."""

    snapshot: int = 0
    at_ns: int = 0
    """Since 1970 UTC; 0: not given."""
    server: str = ""
    selection: Selection = dataclasses.field(default_factory=Selection)
    edits: Edits = dataclasses.field(default_factory=Edits)
    priority: Patterns = NO_PATTERNS
    in_place: bool = False
    delete: bool = False
    map_path: Path | None = None
    strip_prefix: str = ""
    overwrite: Overwrite = "if-changed"
    rehydrate: Priority | None = None
    share: float = 1.0
    """Restore a sample of the snapshot that is so large."""
    retry_failed: Path | None = None
    """The journal of the run whose failed items are to be restored, and no others."""
    dry_run: bool = False


class Wanted(NamedTuple):
    """What is to be restored: a portion of a snapshot, or (without one) a bare map; `jobs` may be called repeatedly."""

    server: str
    header: Header | None
    """The snapshot's own, whatever the portion."""
    portion: Portion | None
    chosen: Chosen
    missing: list[bytes]
    """Paths that were asked for and are not there."""
    jobs: Callable[[], Iterator[RestoreJob]]
    first: Portion | None = None
    """What has priority, and all but that."""
    rest: Portion | None = None

    def files(self) -> int:
        """Return how many files there are; the store has as many blobs at least."""
        if self.header:
            return self.header.totals.files
        return sum(job.entry.kind == "file" for job in self.jobs())


def run_restore(
    context: Context, options: RestoreOptions, *, check: Callable[[Header, Manifest], None] | None = None
) -> RestoreResult:
    """Restore a snapshot or a map, or what is chosen of it, sampling the machine while it runs.

    `check` sees what will be restored before anything is made, and may raise.
    """
    raise_descriptor_limit()
    root = IN_PLACE if options.in_place else context.config.restore_root
    if root is None:
        raise ConfigError("there is no restore_root", "set it in the configuration, or say --to DIR")
    with journaled(context, "restore", dry_run=options.dry_run) as (run, ending):
        result = _run(run, options, root, check)
        ending.failed = result.failed
        return result


def _run(
    context: Context, options: RestoreOptions, root: Path, check: Callable[[Header, Manifest], None] | None
) -> RestoreResult:
    with contextlib.ExitStack() as stack:
        stack.enter_context(hired(context, _fetching(context), dry_run=options.dry_run))
        store = context.open_store(False)
        wanted = find_wanted(context, stack, store, options)
        if check is not None and wanted.portion is not None:
            check(wanted.portion.header, wanted.portion.manifest)
        started_s = time.monotonic()
        archive = stack.enter_context(Archive.open(context, store, wanted.server))
        if archive.find(f"{wanted.server}_" if wanted.header else common_prefix(wanted.server, wanted.jobs())):
            _hold_archived(context, archive, options, wanted, root)
        target = Target.open(root, create=not options.dry_run)
        stack.callback(target.close)
        names = _check_target(context, target, root, wanted, options)
        restorer = Restorer(context, store, target, wanted.server, options.overwrite, dry_run=options.dry_run)
        restorer.in_place = options.in_place
        if options.delete and wanted.portion is not None:
            restorer.removal = _removal(context, target, root, wanted, options, names)
        if options.dry_run and context.config.store == "azure":
            restorer.result.requests["list blobs"] = listings(wanted.files())
        if archive.is_needed:
            restorer.wait_for(archive, options.rehydrate or "standard")
        result = restorer.result
        result.target, result.at = str(root), utc(options.at_ns) if options.at_ns else ""
        if options.dry_run:
            _restore(context, restorer, wanted, options.share, started_s)
            return result
        facts = {"server": wanted.server, "snapshot": wanted.header.number if wanted.header else 0}
        text, b64 = text_or_b64(os.fsencode(root))
        context.items.begin(**facts, host=identity.this_host().name, target=text, target_b64=b64)
        restorer.result.journal = context.items.file
        log = context.config.metrics_log_file
        with measured.sampler(context, "restore", log, root, **facts, overwrite=options.overwrite) as sampler:
            _restore(context, restorer, wanted, options.share, started_s)
            summary = {name: getattr(result, name) for name in (*SUMMARY, "workers")}
            measured.finish(context, sampler, summary, result.failed)
        result.peak_rss_bytes = sampler.peak_rss_bytes
        result.seconds = round(time.monotonic() - started_s, 3)
        timings.note(context, store.name, result)
        return result


def _fetching(context: Context) -> Makers:
    """Return what makes the work of a restore in a member of the crew."""

    def fetcher(task: FetchTask, descriptors: list[int], engine: Engine) -> Fetcher:
        return Fetcher(context.open_store(False), Target(descriptors[0]), task, engine, dry_run=False)

    return {FetchTask: (RestoreJob, fetcher)}


def find_wanted(context: Context, stack: contextlib.ExitStack, store: Store, options: RestoreOptions) -> Wanted:
    """Find out what is to be restored; what that takes in temporary files lasts as long as `stack`.

    Raises:
        ConfigError: nothing is chosen.
        SnapshotError: there is no such snapshot.
    """
    config = context.config
    catalog = catalog_to_read(stack, config.state_dir)
    server = options.server or config.server or (catalog.get("server") if catalog else "")
    if options.map_path is not None:
        prefixes = [os.fsencode(options.strip_prefix)] if options.strip_prefix else [r.name for r in config.source_path]
        jobs, missing = _mapped(options.map_path, options.selection, server, prefixes)
        return Wanted(server, None, None, Chosen(), missing, jobs)
    failures = None
    if options.retry_failed:
        from blobark.again import restore_failures

        failures = restore_failures(options.retry_failed)
        server, options = failures.run.server, dataclasses.replace(options, snapshot=failures.run.snapshot)
    server = server or identity.server_to_restore(store)
    header = _header(context, store, server, options)
    if options.delete and not header.complete:
        hint = "choose another one with --snapshot N, or --at TIME"
        raise ConfigError(f"--delete needs a complete snapshot, and {header.number} is not", hint)
    manifest = Manifest(store, server, catalog.segment if catalog else None)
    if options.share < 1:
        manifest = PartialManifest(manifest, Sample.of(options.share, header, manifest).takes)
    places = places_in(header, in_place=options.in_place)
    wanted = _portioned(context, stack, Tree(header, manifest), options, places)
    return wanted if failures is None else _again(context, wanted, failures)


def _again(context: Context, wanted: Wanted, failures: Failures) -> Wanted:
    """Return what of a portion failed in a run: that is known by the paths at which it lands."""
    from blobark.again import FailedManifest

    if wanted.portion is None:
        return wanted
    whole = wanted.portion
    failed = FailedManifest(whole.manifest, whole.header, whole.places, failures.paths)
    portion = whole._replace(manifest=failed)
    jobs = partial(jobs_of, portion)
    if all(job.path not in failures.paths for job in jobs()):
        context.reporter.warn("warning: nothing that failed in that run is chosen here: say again what it was told")
    return wanted._replace(portion=portion, jobs=jobs)


def _portioned(
    context: Context, stack: contextlib.ExitStack, tree: Tree, options: RestoreOptions, places: list[bytes]
) -> Wanted:
    """Return what is wanted of a snapshot. All of it, as it is, costs nothing here."""
    header, edits = tree.header, options.edits
    portion = Portion(header, tree.manifest, places)
    chosen, missing = choose(tree, options.selection)
    if options.selection or edits:
        portion = stack.enter_context(excerpt(tree, chosen, edits, places))
        if portion.header.totals.entries <= len(portion.unknown):
            raise ConfigError(f"nothing of snapshot {header.number} is chosen", "see --help for what patterns mean")
    first = rest = None
    if options.priority:
        before = dataclasses.replace(chosen, includes=(*chosen.includes, options.priority))
        first = stack.enter_context(excerpt(tree, before, edits, places))
        rest = stack.enter_context(excerpt(tree, chosen, edits, places, but_not=options.priority))
        totals = first.header.totals
        context.reporter.tell(f"priority: {counted(totals.files, 'file')} ({totals.file_bytes:,} bytes) first")
        if totals.entries <= len(first.unknown):
            context.reporter.warn("warning: --priority: no pattern matches anything that is chosen")
            first = rest = None
    return Wanted(header.server, header, portion, chosen, missing, partial(jobs_of, portion), first, rest)


def _mapped(
    map_path: Path, selection: Selection, server: str, prefixes: list[bytes]
) -> tuple[Callable[[], Iterator[RestoreJob]], list[bytes]]:
    """Return the jobs of a bare map that are chosen, and the paths that it does not have."""
    from blobark import mapjobs

    jobs = partial(mapjobs.restore_jobs, map_path, server, prefixes, selection)
    missing: list[bytes] = []
    if selection:
        missing = mapjobs.missing_paths(map_path, selection)
        if next(jobs(), None) is None:
            raise ConfigError(f"nothing of {map_path} is chosen", "see --help for what patterns mean")
    return jobs, missing


def _check_target(
    context: Context, target: Target, root: Path, wanted: Wanted, options: RestoreOptions
) -> fitness.Names:
    """Raise `Fatal` where the target cannot hold what is wanted; return what it does with names."""
    portion = wanted.portion
    place = portion.places[0] if portion is not None else b""
    names = fitness.names_of(target, root, None if options.dry_run else place)
    if portion is None:  # in no order, so that names which are one there cannot be told
        apart = dataclasses.replace(names, folds_case=False, folds_form=False)
        fitness.check(context, root, apart, lambda: ((job.entry, job.path) for job in wanted.jobs()), None)
        return names
    totals = portion.header.totals
    room = fitness.Room(target, options.overwrite) if target.exists else None
    if room is not None and not options.in_place and room.suffices(totals.file_bytes, totals.entries):
        room = None
    if not names.is_usual or room is not None or fitness.may_be_long(portion, names, root):
        fitness.check(context, root, names, lambda: items_of(portion.places, _entries(portion)), room)
    return names


def _entries(portion: Portion) -> Iterable[Entry]:
    return (entry for ref in portion.header.segments for entry in portion.manifest.read(ref))


def _removal(
    context: Context, target: Target, root: Path, wanted: Wanted, options: RestoreOptions, names: fitness.Names
) -> Removal:
    roots = [root.raw_name for root in wanted.header.roots] if wanted.header else []
    removal = Removal(
        context,
        target,
        root,
        roots,
        wanted.chosen,
        keep_special=options.edits.no_special,
        dry_run=options.dry_run,
    )
    removal.key = names.key
    return removal


def _restore(context: Context, restorer: Restorer, wanted: Wanted, share: float, started_s: float) -> None:
    result = restorer.result
    for path in wanted.missing:
        where = "the map" if wanted.header is None else f"snapshot {wanted.header.number}"
        _fail(context, result, display(path), f"is not in {where}")
    header, portion = wanted.header, wanted.portion
    if header is None or portion is None:
        context.reporter.begin("restore", 0, 0)
        restorer.mapped(wanted.jobs())
        return
    totals = portion.header.totals
    context.reporter.begin("restore", round(share * totals.files), round(share * totals.file_bytes))
    if wanted.first is None or wanted.rest is None or restorer.is_dry_run:
        restorer.snapshot(portion)
    else:
        _restore_first(context, restorer, wanted.first, wanted.rest, portion, started_s)
    if lack := lack_of(header):
        _fail(context, result, f"snapshot {header.number}", lack)


def lack_of(header: Header) -> str:
    """Say what an incomplete snapshot lacks that none of its entries tells of, "" where each does."""
    if header.complete or header.totals.errors:
        return ""
    if header.rescued:
        return "it was rescued from the blobs alone, and lacks links, empty directories and special files"
    return "some items that its map named were not saved, and are not in it"


def _restore_first(
    context: Context, restorer: Restorer, first: Portion, rest: Portion, whole: Portion, started_s: float
) -> None:
    """Restore what has priority, say when that is usable, and restore the rest."""
    result = restorer.result
    failed = len(result.failed)
    is_there = restorer.first(first)
    is_waited_for = not is_there and len(result.failed) == failed

    def usable() -> None:
        result.usable_s = round(time.monotonic() - started_s, 3)
        context.reporter.tell(f"usable: all that has priority is there after {result.usable_s:,.1f} s")

    if is_there:
        usable()
    restorer.snapshot(rest, whole)
    if is_waited_for and len(result.failed) == failed:  # for the archive, and now all is there
        usable()


def _fail(context: Context, result: RestoreResult, what: str, why: str) -> None:
    result.failed.append((what, why))
    context.reporter.warn(f"failed: {what}: {why}")


def _hold_archived(context: Context, archive: Archive, options: RestoreOptions, wanted: Wanted, root: Path) -> None:
    """Find what needs archived content; raises `Fatal`, with nothing written, when that is not to be brought back."""
    task = FetchTask(wanted.server, options.overwrite)
    with contextlib.closing(Target.open(root, create=False)) as target:
        look = Fetcher(context.open_store(False), target, task, context.engine, dry_run=True)
        archive.hold(wanted.jobs(), look)
    if archive.is_needed and not options.rehydrate and not options.dry_run:
        raise archive.refusal()


def _header(context: Context, store: Store, server: str, options: RestoreOptions) -> Header:
    if options.at_ns:
        header = snapshot.last_complete(store, server, options.at_ns)
        at = f"--at {utc(options.at_ns)}: snapshot {header.number} of {header.started}"
        context.reporter.tell(at)
        return header
    found = snapshot.load(store, server, options.snapshot) if options.snapshot else None
    found = found or snapshot.latest(store, server)
    if found is None:
        raise SnapshotError(f"server {server} has no snapshot in {store.name}", "run save_blob.py first")
    if found.totals.errors:
        context.reporter.warn(
            f"snapshot {found.number} is incomplete: {counted(found.totals.errors, 'item')} not saved"
        )
    return found
