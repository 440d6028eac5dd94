"""The processes of a run, summed: CPU time, memory, threads, open files. The first is this one.

What a process has used still counts when it has ended. Memory that forked processes share counts in each of them.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

import psutil

PROCESS_FIELDS: Final = (
    "processes",
    "process_cpu_percent",
    "process_cpu_s",
    "process_queued_s",
    "process_rss_bytes",
    "process_peak_rss_bytes",
    "process_threads",
    "process_open_files",
)


class Processes:
    """Reads this process and the `members` that there are at the moment."""

    def __init__(self, members: Callable[[], Iterable[int]]) -> None:
        self._members = members
        self._known: dict[int, psutil.Process] = {}
        self._cpu_s: dict[int, float] = {}
        self._queued_ns: dict[tuple[int, str], int] = {}
        self._first_queued_ns: int | None = None
        self._first_s = time.process_time()
        self._before: tuple[float, float] | None = None
        self._peak_bytes = 0

    def read(self) -> dict[str, Any]:
        """Return the sums of this moment, and the share of the processors since the reading before."""
        rss_bytes = threads = files = alive = 0
        for process in self._processes():
            try:
                with process.oneshot():
                    times = process.cpu_times()
                    self._cpu_s[process.pid] = times.user + times.system
                    rss_bytes += process.memory_info().rss
                    threads += process.num_threads()
                    files += process.num_fds()
                alive += 1
            except psutil.NoSuchProcess:
                continue
        # The kernel counts this process's time in smaller units than /proc shows.
        self._cpu_s[os.getpid()] = time.process_time() - self._first_s
        self._peak_bytes = max(self._peak_bytes, rss_bytes)
        cpu_s = sum(self._cpu_s.values())
        now = (time.monotonic(), cpu_s)
        before, self._before = self._before, now
        return {
            "processes": alive,
            "process_cpu_percent": percent(now[1] - before[1], now[0] - before[0]) if before else None,
            "process_cpu_s": round(cpu_s, 3),
            "process_queued_s": self._queued_s(),
            "process_rss_bytes": rss_bytes,
            "process_peak_rss_bytes": self.peak_bytes(),
            "process_threads": threads,
            "process_open_files": files,
        }

    def peak_bytes(self) -> int:
        """Return the most memory in RAM that was seen: this process's own peak, or the sum of a sample if more."""
        self._peak_bytes = max(self._peak_bytes, _kernels_peak_bytes())
        return self._peak_bytes

    def _queued_s(self) -> float | None:
        """Return how long threads have been ready to run and had no processor; None where the kernel does not tell."""
        for pid in self._known:
            try:
                threads = os.listdir(f"/proc/{pid}/task")
            except OSError:
                continue
            for thread in threads:
                try:
                    with open(f"/proc/{pid}/task/{thread}/schedstat", "rb", buffering=0) as file:
                        self._queued_ns[pid, thread] = int(file.read().split()[1])
                except (OSError, IndexError, ValueError):
                    continue
        if not self._queued_ns:
            return None
        total_ns = sum(self._queued_ns.values())
        if self._first_queued_ns is None:
            self._first_queued_ns = total_ns
        return round((total_ns - self._first_queued_ns) / 1e9, 3)

    def _processes(self) -> Iterable[psutil.Process]:
        pids = (os.getpid(), *self._members())
        for pid in pids:
            if pid not in self._known:
                try:
                    self._known[pid] = psutil.Process(pid)
                except psutil.NoSuchProcess:
                    continue
            yield self._known[pid]


def percent(part: float, whole: float) -> float | None:
    """Return a share in percent, not below 0; None of nothing."""
    return round(max(0.0, 100 * part / whole), 1) if whole > 0 else None


def _kernels_peak_bytes() -> int:
    # The kernel's own peak is a little off now and then, and may even fall.
    try:
        # Not ru_maxrss, which begins with the size of the process that started this one.
        with open("/proc/self/status", "rb") as status:
            for line in status:
                if line.startswith(b"VmHWM:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
