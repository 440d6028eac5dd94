"""`blobark backup`: index and save as one run, for a schedule.

Both work on one open catalog under one lock, so nothing can come between them: the save takes the index's draft as it
is, and reads no map. The store's lock is taken first too; by the first backup of all, which has to find out which
server this is, only when it begins to save. Around them, under the same lock of this machine:

    hook_before      a failing one stops the run
    index, save
    hook_after       whenever hook_before did not fail, however the run ended: it can undo what that did
    hook_on_failure  when the exit code is not 0, nor that of a lock which another run holds

and a line in log_file, also when another run holds the lock. A dry run has none of these.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

import msgspec

from blobark import index
from blobark.catalog import Catalog
from blobark.clock import now_ns, utc
from blobark.commands import (
    IndexOptions,
    SaveOptions,
    estimate_draft,
    make_draft,
    save_draft,
    sending,
    store_to_write,
)
from blobark.context import Context
from blobark.errors import (
    EXIT_BUG,
    EXIT_DONE,
    EXIT_ITEMS_FAILED,
    EXIT_LOCKED,
    BlobarkError,
    Fatal,
    exit_code_of,
)
from blobark.filelock import state_lock
from blobark.hooks import append_line, run_hook
from blobark.indexed import IndexResult
from blobark.journals import journaled
from blobark.model import display, printable
from blobark.outset import hired, scouted
from blobark.saved import SaveResult
from blobark.steps import step
from blobark.storelock import StoreLock, store_lock
from blobark.walk import raise_descriptor_limit

FAILURES_NAMED = 20
LOOK_S = 0.5
STORE_LOOK_S = 3.0
"""Between two looks at a lock that another run holds, on this machine and in the store."""


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


class Record(msgspec.Struct, kw_only=True):
    """A run as hooks and the log are told of it: counts of files and bytes, and the first failures. No secret."""

    command: str = "backup"
    started: str
    seconds: float
    exit_code: int
    error: str = ""
    server: str = ""
    snapshot: int = 0
    """0: none was published."""
    complete: bool = False
    files: int = 0
    file_bytes: int = 0
    sent: int = 0
    sent_bytes: int = 0
    failed: int = 0
    failures: list[tuple[str, str]] = msgspec.field(default_factory=list)
    warnings: list[str] = msgspec.field(default_factory=list)
    """What hooks did wrong, so far."""


def run_backup(context: Context, options: BackupOptions) -> BackupResult:
    """Index the source tree, store what is new, publish the snapshot; in a dry run, do all but change anything."""
    raise_descriptor_limit()
    lock = state_lock(
        context.config.state_dir,
        "backup",
        hint="wait until it has finished, or say --wait",
        pause=_patience(context, LOOK_S) if options.wait else None,
    )
    if options.dry_run:
        with lock, scouted(context), Catalog.open(context.config.state_dir, keep=False) as catalog:
            indexed = make_draft(context, catalog, options.index)
            return BackupResult(indexed, estimate_draft(context, catalog))
    with (
        _Logged(context) as run,
        lock as known_as,
        _Hooked(context, run),
        journaled(context, "backup", dry_run=False) as (written, ending),
    ):
        run.result = _index_and_save(written, options, known_as)
        ending.snapshot, ending.failed = run.result.save.snapshot, run.result.failed
    return run.result


def _index_and_save(context: Context, options: BackupOptions, known_as: str) -> BackupResult:
    with (
        hired(context, sending(context), dry_run=False),
        scouted(context),
        Catalog.open(context.config.state_dir) as catalog,
        contextlib.ExitStack() as stack,
    ):

        def lock(server: str) -> StoreLock:
            store = store_to_write(context, catalog, options.save)
            pause = _patience(context, STORE_LOOK_S) if options.wait else None
            return stack.enter_context(store_lock(context, store, server, "backup", known_as=known_as, pause=pause))

        server = "" if options.index.adopt else context.config.server or catalog.get("server")
        early = lock(server) if server else None
        with step(context.steps, "index") as indexing:
            indexing.result = indexed = make_draft(context, catalog, options.index, is_saved_next=True)
        held = early or lock(catalog.get("server"))
        store = context.open_store(False)
        with step(context.steps, "save") as saving:
            saving.result = saved = save_draft(
                context, catalog, store, held, told=indexed.errors, labels=options.save.tags
            )
        index.count_mapped(catalog, indexed)  # the save has packed some, and found others equal
        return BackupResult(indexed, saved)


class _Logged:
    """A run that leaves a line in the log, however it ends. `result` is to be set where there is one."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._started_ns = now_ns()
        self._started_s = time.monotonic()
        self._warnings: list[str] = []
        self.result: BackupResult | None = None

    def __enter__(self) -> _Logged:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        path = self._context.config.log_file
        if path is None:
            return
        try:
            append_line(path, msgspec.json.encode(self.record(error)))
        except OSError as failure:
            shown = display(os.fsencode(path))
            self._context.reporter.warn(f"warning: log_file: {shown} cannot be written ({failure.strerror})")

    @property
    def started(self) -> str:
        """When the run began, UTC."""
        return utc(self._started_ns)

    def warn(self, text: str) -> None:
        """Tell what did not go well, and is no failure of the run."""
        self._warnings.append(text)
        self._context.reporter.warn(f"warning: {text}")

    def record(self, error: BaseException | None) -> Record:
        """Return how the run has ended, with `error` or without."""
        result = self.result
        code = exit_code_of(error) if error else EXIT_ITEMS_FAILED if result and result.failed else EXIT_DONE
        seconds = round(time.monotonic() - self._started_s, 3)
        record = Record(started=self.started, seconds=seconds, exit_code=code, warnings=self._warnings)
        if isinstance(error, BlobarkError):
            record.error = printable(error.message)
        elif error is not None:
            record.error = "a bug" if code == EXIT_BUG else "interrupted"
        if result is not None:
            saved, failed = result.save, result.failed
            record.server, record.snapshot, record.complete = saved.server, saved.snapshot, saved.complete
            record.files, record.file_bytes = saved.files, saved.file_bytes
            record.sent, record.sent_bytes = saved.sent, saved.sent_bytes
            record.failed, record.failures = len(failed), failed[:FAILURES_NAMED]
        return record


class _Hooked:
    """Runs the hooks around its block, which gets to see none of their faults but that of `hook_before`."""

    def __init__(self, context: Context, run: _Logged) -> None:
        self._context = context
        self._run = run

    def __enter__(self) -> None:
        begun = {"command": "backup", "started": self._run.started}
        try:
            fault = self._tell(self._context.config.hook_before, begun)
            if fault:
                self._context.check_stop()
                raise Fatal(f"hook_before failed ({fault})", "nothing was read or stored")
        except BlobarkError as error:
            self._on_failure(error)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if fault := self._tell(self._context.config.hook_after, self._run.record(error)):
            self._run.warn(f"hook_after failed ({fault})")
        self._on_failure(error)

    def _on_failure(self, error: BaseException | None) -> None:
        record = self._run.record(error)
        if record.exit_code in (EXIT_DONE, EXIT_LOCKED):
            return
        if fault := self._tell(self._context.config.hook_on_failure, record):
            self._run.warn(f"hook_on_failure failed ({fault})")

    def _tell(self, command: str | None, document: object) -> str:
        return run_hook(self._context, command, msgspec.json.encode(document)) if command else ""


def _patience(context: Context, look_s: float) -> Callable[[], None]:
    """Return what to do each time the lock is held by another run: say so once, and hear a signal."""
    told = False

    def pause() -> None:
        nonlocal told
        if not told:
            told = True
            context.reporter.warn("another run holds the lock: waiting until it has finished")
        context.engine.stop.wait(look_s)
        context.check_stop()

    return pause
