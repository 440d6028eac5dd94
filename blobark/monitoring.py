"""What monitoring is told of a run: that it starts, and how it ended. None of it ever fails a run."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

from blobark.config import Config
from blobark.context import Context
from blobark.errors import EXIT_DONE, EXIT_ITEMS_FAILED, exit_code_of
from blobark.model import display
from blobark.output import Listing
from blobark.steps import Step, step


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
    files, size, failures = _figures(run.command, run.result if run.error is None else None)
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


def _figures(command: str, result: Any) -> tuple[int, int, int]:
    """Return files (or blobs), their bytes, and failed items; zeros where there is no result."""
    result = result.closing if isinstance(result, Listing) else result
    match None if result is None else command:
        case "index":
            present = [result.tallies[name] for name in ("new", "changed", "renamed", "unchanged")]
            figures = sum(t.items for t in present), sum(t.bytes for t in present), len(result.errors)
        case "save":
            figures = result.sent, result.sent_bytes, len(result.failed)
        case "backup":
            figures = result.save.sent, result.save.sent_bytes, len(result.failed)
        case "restore":
            figures = result.written, result.written_bytes, len(result.failed)
        case "drill":
            figures = result.files, result.bytes, len(result.failed)
        case "verify":
            figures = result.blobs, result.blob_bytes, result.damaged + len(result.failed)
        case "repair":
            figures = result.mended, result.mended_bytes, result.left + len(result.verified.failed)
        case "prune":
            figures = result.deleting.blobs, result.deleting.bytes, 0
        case _:
            figures = 0, 0, 0
    return figures
