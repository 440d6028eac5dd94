"""`blobark backup`: index and save as one run, for a schedule.

Both work on one open catalog under one lock, so nothing can come between them: the save takes the index's draft as it
is, and reads no map.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from blobark.builder import IndexResult
from blobark.catalog import Catalog
from blobark.commands import IndexOptions, SaveOptions, hired, make_draft, save_draft
from blobark.context import Context
from blobark.filelock import state_lock
from blobark.save import SaveResult
from blobark.walk import raise_descriptor_limit


@dataclass(frozen=True, slots=True)
class BackupOptions:
    """What the command line adds to the configuration of a backup."""

    index: IndexOptions
    save: SaveOptions
    wait: bool = False
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class BackupResult:
    """What both halves did."""

    index: IndexResult
    save: SaveResult

    @property
    def failed(self) -> list[tuple[str, str]]:
        """What either of them could not do, each path once, and why."""
        return list({**dict(self.index.errors), **dict(self.save.failed)}.items())


def run_backup(context: Context, options: BackupOptions) -> BackupResult:
    """Index the source tree, store what is new, publish the snapshot; in a dry run, do all but change anything."""
    raise_descriptor_limit()
    state_dir = context.config.state_dir
    with (
        state_lock(state_dir, pause=_patience(context) if options.wait else None),
        hired(context, options.dry_run),
        Catalog.open(state_dir, keep=not options.dry_run) as catalog,
    ):
        indexed = make_draft(context, catalog, options.index)
        return BackupResult(indexed, save_draft(context, catalog, options.save, told=indexed.errors))


def _patience(context: Context) -> Callable[[], None]:
    """Return what to do each time the lock is held by another run: say so once, and hear a signal."""
    told = False

    def pause() -> None:
        nonlocal told
        context.check_stop()
        if not told:
            told = True
            context.reporter.warn("another run holds the lock: waiting until it has finished")

    return pause
