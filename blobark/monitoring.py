"""What monitoring is told of a run: that it starts, and how it ended. None of it ever fails a run."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

from blobark.backup import BackupResult
from blobark.config import Config
from blobark.context import Context
from blobark.drill import DrillResult
from blobark.errors import EXIT_DONE, EXIT_ITEMS_FAILED, exit_code_of
from blobark.indexed import IndexResult
from blobark.listings import Listing
from blobark.model import display
from blobark.prune import PruneResult
from blobark.repair import RepairResult
from blobark.restore import RestoreResult
from blobark.saved import SaveResult
from blobark.steps import Step, step
from blobark.verify import VerifyResult


@contextlib.contextmanager
def monitored(context: Context, command: str) -> Iterator[Step]:
    """Tell of the run in this block, and of the steps it consists of; its `result` is to be set where there is one."""
    config, warn = context.config, context.reporter.warn
    _ping(config, "start", warn)
    own: list[Step] = []
    try:
        with step(own, command) as run:
            yield run
    finally:
        for each in [*context.steps, *own]:
            _write(config, each, warn)
        _ping(config, "" if _exit_code_of_step(run) == EXIT_DONE else "fail", warn)


def _ping(config: Config, what: str, warn: Callable[[str], None]) -> None:
    if not config.ping_url:
        return
    from metrics.export import ping

    if problem := ping(config.ping_url.reveal(), what):
        warn(f"warning: ping_url: {what or 'success'} could not be told ({problem})")


def _write(config: Config, run: Step, warn: Callable[[str], None]) -> None:
    path = config.metrics_textfile
    if path is None:
        return
    from metrics.export import write_textfile

    code = _exit_code_of_step(run)
    files, size, failures = _figures(run.result if run.error is None else None)
    values = {
        "blobark_last_run_timestamp_seconds": run.ended_ns / 1e9,
        "blobark_last_run_duration_seconds": round(run.seconds, 3),
        "blobark_last_run_bytes": size,
        "blobark_last_run_files": files,
        "blobark_last_run_failures": failures,
        "blobark_last_run_exit_code": code,
    }
    if code == EXIT_DONE:
        values["blobark_last_success_timestamp_seconds"] = run.ended_ns / 1e9
    labels = {"command": run.command, "config": os.path.abspath(config.file)}
    try:
        write_textfile(path, labels, values)
    except OSError as error:
        warn(f"warning: metrics_textfile: {display(os.fsencode(path))}: {error.strerror}")
    except ValueError as error:
        warn(f"warning: metrics_textfile: {display(os.fsencode(path))}: {error}")


def _exit_code_of_step(run: Step) -> int:
    return exit_code(run.result) if run.error is None else exit_code_of(run.error)


def exit_code(result: object) -> int:
    """Return the exit code of a run that came to its end."""
    own = getattr(result, "exit_code", None)
    if own is not None:
        return int(own)
    failed = getattr(result, "failed", None) or getattr(result, "errors", [])
    return EXIT_ITEMS_FAILED if failed else EXIT_DONE


def _figures(result: object) -> tuple[int, int, int]:
    """Return files (or blobs), their bytes, and failed items."""
    match result.closing if isinstance(result, Listing) else result:
        case IndexResult(tallies=tallies, errors=errors):
            present = [tallies[name] for name in ("new", "changed", "renamed", "unchanged")]
            figures = sum(t.items for t in present), sum(t.bytes for t in present), len(errors)
        case SaveResult() as saved:
            figures = saved.sent, saved.sent_bytes, len(saved.failed)
        case BackupResult(save=saved) as both:
            figures = saved.sent, saved.sent_bytes, len(both.failed)
        case RestoreResult() as restored:
            figures = restored.written, restored.written_bytes, len(restored.failed)
        case DrillResult() as drilled:
            figures = drilled.files, drilled.bytes, len(drilled.failed)
        case VerifyResult() as checked:
            figures = checked.blobs, checked.blob_bytes, checked.damaged + len(checked.failed)
        case RepairResult() as mended:
            figures = mended.mended, mended.mended_bytes, mended.left + len(mended.verified.failed)
        case PruneResult(deleting=deleted):
            figures = deleted.blobs, deleted.bytes, 0
        case _:
            figures = 0, 0, 0
    return figures
