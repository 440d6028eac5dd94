"""Commands of a person's own around a run, and the log of runs: what the world outside is told.

A hook is run by /bin/sh with a JSON object on its standard input; what it prints goes to our stderr. It has a
session of its own, so that a signal meant for the run does not end it before the run says so.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from blobark.context import Context

POLL_S = 0.1
FAREWELL_S = 5.0
"""What a hook has to end by itself, after SIGTERM."""
LAST_WORDS_S = 30.0
"""How long a hook may take that begins after the run was asked to stop: nothing else would end it."""


def run_hook(context: Context, command: str, document: bytes) -> str:
    """Run a hook and wait for it; return "" or why it failed. It is ended when the run is asked to stop meanwhile."""
    stop = context.engine.stop
    was_stopped = stop.is_set()
    until_s = time.monotonic() + LAST_WORDS_S
    with tempfile.TemporaryFile() as standard_input:  # a hook need not read it
        standard_input.write(document)
        standard_input.seek(0)
        try:
            process = subprocess.Popen(
                ["/bin/sh", "-c", command],
                stdin=standard_input,
                stdout=sys.stderr,
                stderr=sys.stderr,
                start_new_session=True,
            )
        except OSError as error:
            return f"cannot be run ({error.strerror})"
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = process.wait(POLL_S)
            return "" if code == 0 else f"exit code {code}" if code > 0 else f"killed by signal {-code}"
        if was_stopped and time.monotonic() > until_s:
            _end(process)
            return f"took longer than the {LAST_WORDS_S:.0f} s that it has after an interruption"
        if stop.is_set() and not was_stopped:
            _end(process)
            return "interrupted"


def append_line(path: Path, line: bytes) -> None:
    """Append a line to a log that only its owner can read; the file and its folder are made. Raises `OSError`."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        data = line + b"\n"
        while data:
            data = data[os.write(descriptor, data) :]
    finally:
        os.close(descriptor)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a hook and what it has started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(FAREWELL_S)
            return
