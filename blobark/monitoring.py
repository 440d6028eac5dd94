"""What monitoring is told of a run: that it starts, and how it ended. None of it ever fails a run."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from blobark.clock import now_ns
from blobark.config import Config
from blobark.errors import EXIT_DONE, EXIT_ITEMS_FAILED, exit_code_of
from blobark.model import display


class Monitoring:
    """Tells of the run in its block; `result` is to be set where there is one."""

    def __init__(self, config: Config, command: str, warn: Callable[[str], None]) -> None:
        self._config = config
        self._command = command
        self._warn = warn
        self._started_s = time.monotonic()
        self.result: Any = None

    def __enter__(self) -> Monitoring:
        self._ping("start")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        code = exit_code(self.result) if error is None else exit_code_of(error)
        self._write(code)
        self._ping("" if code == EXIT_DONE else "fail")

    def _ping(self, what: str) -> None:
        if not self._config.ping_url:
            return
        from metrics.export import ping

        if problem := ping(self._config.ping_url.reveal(), what):
            self._warn(f"warning: ping_url: {what or 'success'} could not be told ({problem})")

    def _write(self, code: int) -> None:
        path = self._config.metrics_textfile
        if path is None:
            return
        from metrics.export import write_textfile

        now_s = now_ns() / 1e9
        files, size, failures = _figures(self._command, self.result)
        values = {
            "blobark_last_run_timestamp_seconds": now_s,
            "blobark_last_run_duration_seconds": round(time.monotonic() - self._started_s, 3),
            "blobark_last_run_bytes": size,
            "blobark_last_run_files": files,
            "blobark_last_run_failures": failures,
            "blobark_last_run_exit_code": code,
        }
        if code == EXIT_DONE:
            values["blobark_last_success_timestamp_seconds"] = now_s
        labels = {"command": self._command, "config": os.path.abspath(self._config.file)}
        try:
            write_textfile(path, labels, values)
        except OSError as error:
            self._warn(f"warning: metrics_textfile: {display(os.fsencode(path))}: {error.strerror}")
        except ValueError as error:
            self._warn(f"warning: metrics_textfile: {display(os.fsencode(path))}: {error}")


def exit_code(result: object) -> int:
    """Return the exit code of a run that came to its end."""
    own = getattr(result, "exit_code", None)
    if own is not None:
        return int(own)
    failed = getattr(result, "failed", None) or getattr(result, "errors", [])
    return EXIT_ITEMS_FAILED if failed else EXIT_DONE


def _figures(command: str, result: Any) -> tuple[int, int, int]:
    """Return files, bytes and failed items of a command's result, None where it has none."""
    if result is None:
        return 0, 0, 0
    match command:
        case "index":
            present = [result.tallies[name] for name in ("new", "changed", "renamed", "unchanged")]
            return sum(t.items for t in present), sum(t.bytes for t in present), len(result.errors)
        case "backup":
            return result.save.sent, result.save.sent_bytes, len(result.failed)
        case "save":
            return result.sent, result.sent_bytes, len(result.failed)
        case "restore":
            return result.written, result.written_bytes, len(result.failed)
        case _:  # drill
            return result.files, result.bytes, len(result.failed)
