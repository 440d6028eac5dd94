"""The commands, from configuration to result: they put the parts together and hold what must be held.

Each returns a result value; errors that stop the run are raised as `BlobarkError`. Nothing here prints.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from blobark import identity, index, measured, snapshot, tags
from blobark.again import renew_failed
from blobark.catalog import Catalog
from blobark.context import Context
from blobark.doctor import DoctorResult, examine
from blobark.drafts import check_roots, make_draft_current
from blobark.engine import Engine
from blobark.errors import BlobarkError, ConfigError, Fatal, Interrupted, StoreMissing
from blobark.filelock import state_lock
from blobark.indexed import IndexResult
from blobark.itemlog import SAVING, read_failures
from blobark.journals import journaled
from blobark.member import Makers
from blobark.model import Header, Root, display, printable
from blobark.outset import catalog_to_read, hired, scouted
from blobark.publish import publish
from blobark.save import Saver
from blobark.saved import SaveResult
from blobark.send import Job, Sender, SendTask
from blobark.storelock import StoreLock, store_lock
from blobark.stores.base import Store
from blobark.trash import Trash
from blobark.walk import raise_descriptor_limit

SAVE_SUMMARY = ("snapshot", "complete", "files", "file_bytes", "sent", "sent_bytes", "kept", "skipped", "workers")
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
    new_store: bool = False
    """The store may be another one, or empty, although there were snapshots in it."""
    retry_failed: Path | None = None
    """The journal of the run whose failed items are to be stored, and no others."""
    tags: tuple[str, ...] = ()
    """Names that the new snapshot gets, once it is published."""
    dry_run: bool = False


def run_index(context: Context, options: IndexOptions) -> IndexResult:
    """Index the source tree: the catalog's draft, and the map."""
    raise_descriptor_limit()
    state_dir = context.config.state_dir
    with (
        journaled(context, "index", dry_run=options.dry_run) as (run, ending),
        state_lock(state_dir, "index"),
        scouted(context),
        Catalog.open(state_dir, keep=not options.dry_run) as catalog,
    ):
        result = make_draft(run, catalog, options)
        ending.failed = result.errors
        return result


def make_draft(
    context: Context, catalog: Catalog, options: IndexOptions, *, is_saved_next: bool = False
) -> IndexResult:
    """Index the source tree into an open catalog, which keeps nothing in a dry run."""
    return index.build(
        context,
        catalog,
        allow_empty=options.allow_empty,
        allow_shrink=options.allow_shrink,
        adopt=options.adopt,
        dry_run=options.dry_run,
        is_saved_next=is_saved_next,
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
        state_lock(state_dir, "save") as known_as,
        hired(context, sending(context), dry_run=options.dry_run),
        Catalog.open(state_dir, keep=not options.dry_run) as catalog,
    ):
        lost: list[tuple[str, str]] = []
        if failures is None:
            lost = make_draft_current(context, catalog)
        elif not renew_failed(context, catalog, failures):
            return SaveResult(catalog.get("server"))
        check_roots(context, msgspec.json.decode(catalog.get("roots"), type=list[Root]))
        if options.dry_run:
            return estimate_draft(context, catalog)
        store = store_to_write(context, catalog, options)
        with store_lock(context, store, catalog.get("server"), "save", known_as=known_as) as lock:
            result = save_draft(run, catalog, store, lock, lost=lost, labels=options.tags)
        ending.snapshot, ending.failed = result.snapshot, result.failed
        return result


def store_to_write(context: Context, catalog: Catalog, options: SaveOptions) -> Store:
    """Open the store of a save; a folder that is new is made, and a container if it is told so.

    Raises:
        Fatal: there were snapshots in it, and there are none: it is not mounted, or another one.
    """
    of_server, _, known = catalog.get("stored_in").partition(" ")
    if options.new_store or of_server != catalog.get("server"):
        known = ""
    if context.config.store == "azure":
        create = options.create_container
    else:
        create = known != display(os.fsencode(os.path.abspath(context.config.store)))
    store, server = context.open_store(create), catalog.get("server")
    if known == display(os.fsencode(store.name)) and not snapshot.numbers(store, server):
        hint = "is it mounted, and the right one? --new-store begins anew, and sends everything"
        raise Fatal(
            f"{store.name} has no snapshot of {server} any more, where there were {catalog.get('snapshot')}", hint
        )
    return store


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
    labels: Sequence[str] = (),
) -> SaveResult:
    """Store what the draft of an open catalog names, and publish the snapshot, under the store's lock.

    `lost` is (path, reason) of what failed and is no entry of the draft; of what is `told` nobody is warned again.
    The snapshot gets the `labels` as its tags.
    """
    roots = msgspec.json.decode(catalog.get("roots"), type=list[Root])
    server = catalog.get("server")
    context.items.begin(server=server, host=identity.this_host().name)
    log, watched = context.config.save_metrics_log_file, context.sources()[0].path
    with (
        Trash.open(store, server) as trash,
        measured.sampler(context, "save", log, watched, server=server) as sampler,
    ):
        saver = Saver(context, catalog, store, server, roots, trash)
        saver.result.journal = context.items.file
        saver.store()
        header = publish(context, catalog, store, saver, lock, lost=len(lost))
        saver.result.failed.extend(lost)
        for path, reason in lost:
            context.items.note(os.fsencode(path), "failed", error=reason)
        _name_stale(context, catalog, saver, header, {path for path, _ in told})
        _tag(store, saver.result, labels)
        _write_map(context, catalog, header)
        summary = {name: getattr(saver.result, name) for name in SAVE_SUMMARY}
        measured.finish(context, sampler, summary, saver.result.failed)
    return saver.result


def _write_map(context: Context, catalog: Catalog, header: Header) -> None:
    """Write the map of what has been published, unless it stands."""
    if not catalog.get("map_outdated"):
        return
    try:
        index.write_map(context, catalog)
    except Fatal as error:
        raise Fatal(f"snapshot {header.number} is published, but {error.message}", error.hint) from None
    catalog.set(map_outdated="")
    catalog.commit()


def _tag(store: Store, result: SaveResult, labels: Sequence[str]) -> None:
    try:
        tags.add(store, result.server, result.snapshot, labels)
    except Interrupted:
        raise
    except BlobarkError as error:
        message = f"snapshot {result.snapshot} is published, but could not be given its tags: {error.message}"
        raise Fatal(message, f"blobark tag {result.snapshot} {' '.join(labels)}") from None
    result.tags = sorted(labels)


def sending(context: Context) -> Makers:
    """Return what makes the work of a save in a member of the crew."""

    def sender(task: SendTask, _descriptors: list[int], engine: Engine) -> Sender:
        return Sender(context, context.open_store(False), task, engine)

    return {SendTask: (Job, sender)}


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


def run_doctor(context: Context, commands: Sequence[str], *, dry_run: bool) -> DoctorResult:
    """Look at how this machine logs in to its store, and try what the commands need there."""
    with contextlib.ExitStack() as stack:
        catalog = catalog_to_read(stack, context.config.state_dir)
        server = context.config.server or (catalog.get("server") if catalog else "")
    return examine(context, server or identity.name_for_host(identity.this_host().name), commands, dry_run=dry_run)
