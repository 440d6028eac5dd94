"""How many threads a run has, and how many small jobs each takes at once: found out while it runs.

A fixed number is just that. `auto` begins with a few and looks, window by window, at what was done; a window is a tenth
of a second at least, and a batch from each thread:

    rate = work that was done / seconds of the window; work = bytes, and 64 KiB for each job
    growing  the processors have time to spare: twice as many (four times, where it is all but idle), then look again
             more threads and not 20 % more work, in two windows: back to as many as before, and hold
    holding  try more again after 1 s, 2 s, 4 s ... 60 s

Near a fast store more than a few threads only fight for the interpreter's lock; far from it each of them waits for
most of its time, and hundreds are needed. A batch holds at most 16 jobs, and as many as take 0.4 s where threads are
not in each other's way: where each job takes long a hand-over costs nothing beside it, and a long batch would keep
jobs from threads that are free.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable

FIRST_WORKERS = 2
MOST_BATCH_JOBS = 16
BATCH_S = 0.4
JOB_BYTES = 64 * 1024
WINDOW_S = 0.1
LEAST_BATCHES = 4
PAYS = 1.2
"""How much more work twice the threads must do to be kept."""
BUSY_SHARE = 0.8
"""Seconds of processor a second above which more threads would not help."""
IDLE_SHARE = 0.2
WANTING_SHARE = 0.3
"""Above this, threads want as much again of the processor as there are more of them."""
FIRST_PROBE_S = 1.0
LAST_PROBE_S = 60.0

_TICKS = os.sysconf("SC_CLK_TCK")
_MANY = 1000
"""Idle processors, where their number is not known: then that is no reason to hold."""


def idle_s() -> float:
    """Return for how long the machine's processors were idle, all added up, in seconds; the time where nobody tells."""
    try:
        with open("/proc/stat", "rb") as file:
            fields = file.readline().split()
        return (int(fields[4]) + int(fields[5])) / _TICKS  # idle, and waiting for a disk
    except (OSError, IndexError, ValueError):
        return time.monotonic() * _MANY


class Pace:
    """The number of threads, `workers`, and the most jobs of a batch, `batch_jobs`. Used by one thread.

    `most` is the number itself, or with `auto`, which begins with `first`, its upper bound. `clock`, `processor` and
    `idle` tell seconds: the time, what this process has had of the processors, and for how long all of those of the
    machine were idle.
    """

    def __init__(
        self,
        most: int,
        *,
        auto: bool = False,
        first: int = FIRST_WORKERS,
        clock: Callable[[], float] = time.monotonic,
        processor: Callable[[], float] = time.process_time,
        idle: Callable[[], float] = idle_s,
    ) -> None:
        self.workers = min(first, most) if auto else most
        self.batch_jobs = 1
        self._most = most
        self._auto = auto
        self._clock = clock
        self._processor = processor
        self._idle = idle
        self._job_s = math.inf
        self._fewer = 0
        """As many as there were before the last step up, which has not been judged yet; 0 while holding."""
        self._fewer_rate = 0.0
        self._misses = 0
        self._probe_s = FIRST_PROBE_S
        self._hold_until_s = 0.0
        self.look()

    def took(self, jobs: int, cost_bytes: int, began_s: float, seconds: float) -> None:
        """Note that a batch of `jobs`, which began at `began_s` by the clock, took `seconds` and has ended."""
        self._jobs += jobs
        self._seconds += seconds
        self._work += cost_bytes + jobs * JOB_BYTES
        self._batches += began_s >= self._window_s  # when the others began, the threads may have been fewer
        now_s = self._clock()
        passed_s = now_s - self._window_s
        if passed_s < WINDOW_S or self._batches < max(self.workers, LEAST_BATCHES):
            return
        self._job_s = min(self._job_s, max(self._seconds / self._jobs, 1e-9))
        self.batch_jobs = max(1, min(MOST_BATCH_JOBS, int(BATCH_S / self._job_s)))
        if self._auto:
            busy_share = (self._processor() - self._window_cpu_s) / passed_s
            idle_share = (self._idle() - self._window_idle_s) / passed_s
            is_spare = busy_share <= WANTING_SHARE or idle_share >= busy_share / 2
            self._judge(self._work / passed_s, busy_share, now_s, is_spare=is_spare)
        self.look()

    def look(self) -> None:
        """Begin a window: what was done before tells nothing of what comes."""
        self._window_s = self._clock()
        self._window_cpu_s = self._processor()
        self._window_idle_s = self._idle() if self._auto else 0.0
        self._batches = self._jobs = self._work = 0
        self._seconds = 0.0

    def _judge(self, rate: float, busy_share: float, now_s: float, *, is_spare: bool) -> None:
        if self._fewer:
            if rate < PAYS * self._fewer_rate:
                self._misses += 1
                if self._misses < 2:
                    return
                self.workers = self._fewer
                self._hold(now_s)
                return
            self._probe_s = FIRST_PROBE_S
        elif now_s < self._hold_until_s:
            return
        if self.workers == self._most or busy_share > BUSY_SHARE or not is_spare:
            self._hold(now_s)
            return
        self._fewer, self._fewer_rate, self._misses = self.workers, rate, 0
        self.workers = min(self._most, self.workers * (4 if busy_share < IDLE_SHARE else 2))

    def _hold(self, now_s: float) -> None:
        self._fewer = 0
        self._hold_until_s = now_s + self._probe_s
        self._probe_s = min(2 * self._probe_s, LAST_PROBE_S)
