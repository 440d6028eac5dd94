"""Running other programs and measuring them: wall time, CPU time and peak memory of whole processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

HOLES_BYTES = 1 << 40
PIECE_BYTES = 1024 * 1024


class Failed(Exception):
    """A program that was measured failed, so there is nothing to compare."""


@dataclass(frozen=True)
class Cost:
    """What some processes, one after the other, have used."""

    wall_s: float = 0.0
    cpu_s: float = 0.0
    peak_bytes: int = 0
    requests: int = 0
    """What the server counted meanwhile; 0 where it does not say."""

    def __add__(self, other: Cost) -> Cost:
        peak_bytes, requests = max(self.peak_bytes, other.peak_bytes), self.requests + other.requests
        return Cost(self.wall_s + other.wall_s, self.cpu_s + other.cpu_s, peak_bytes, requests)


@dataclass(frozen=True)
class Job:
    """One step of one tool: commands that are measured together, and the folder they run in."""

    commands: Sequence[Sequence[str | Path]]
    environment: Mapping[str, str] = field(default_factory=dict)
    folder: Path | None = None


class Filler:
    """Lets the cache take the memory that is free, as it has on a machine that has been in use for a while.

    A virtual machine's free pages may have gone back to its host: then writing to one takes ten times as long as to
    one that the cache gives up, and a run's time tells how much was free. A file of holes fills it at once.
    """

    def __init__(self, file: Path) -> None:
        self._fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.ftruncate(self._fd, HOLES_BYTES)
        self._offset = 0

    def fill(self) -> None:
        """Leave no memory free but what the kernel keeps free anyway."""
        end = min(self._offset + os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), HOLES_BYTES)
        while self._offset < end:
            self._offset += len(os.pread(self._fd, PIECE_BYTES, self._offset))

    def close(self) -> None:
        os.close(self._fd)


def do(job: Job, log: Path) -> Cost:
    """Do a job and return what its commands have cost."""
    os.sync()  # what the step before has written is not this step's work
    return sum((run(command, job.environment, log, job.folder) for command in job.commands), Cost())


def run(command: Sequence[str | Path], environment: Mapping[str, str], log: Path, folder: Path | None = None) -> Cost:
    """Run one program to its end, its output into `log`.

    The peak is what the kernel reports for the process. It is at least this program's own, since Linux counts what a
    process held before its exec: so nothing large is imported or kept here.
    """
    with open(log, "wb") as output:
        started = time.perf_counter()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=folder, env=environ(environment)
        )
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.send_signal(signal.SIGKILL)
            process.wait()
            raise
        wall_s = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        tail = log.read_text(errors="replace")[-2000:]
        raise Failed(f"{Path(command[0]).name} {command[1]} ended with {process.returncode}:\n{tail}")
    unit = 1 if sys.platform == "darwin" else 1024
    return Cost(wall_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit)


def environ(extra: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a measured program: this one's, but Python may keep what it has compiled."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, **extra}


def ask(command: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> str:
    """Return what a program prints; raises `Failed` if it does not run."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=120, env=environ(environment or {}), check=False
        )
    except OSError as error:
        raise Failed(str(error)) from None
    if done.returncode != 0:
        raise Failed((done.stderr or done.stdout).strip().splitlines()[-1] if done.stderr or done.stdout else "failed")
    return done.stdout.strip()


def say(text: str) -> None:
    """Tell how far things are, apart from the table on stdout."""
    print(text, file=sys.stderr, flush=True)
