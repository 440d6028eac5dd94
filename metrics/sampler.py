"""The sampler: a thread that writes what machine and run are doing into a run log, once a second.

    with Sampler(path, run={"kind": "restore", ...}, counters=counters, stages=stages, watch_path=root) as sampler:
        ...
        warnings = sampler.finish({"files": 10, ...})

The first sample is taken on entering and the last one in `finish`, so the shortest run has two. What the fields mean
is in docs/metrics.md.

Measuring never harms a run: what cannot be read is null in that sample, and a log that cannot be written is one
warning. At one sample a second it costs some tenths of a percent of a core (`bench/run.py sampler` shows it).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from types import TracebackType

from metrics.readings import Readings
from metrics.runlog import RunLog
from metrics.stages import REQUEST, Stages

RECENT = 16
"""So many samples are kept in memory."""


class Sampler:
    """Samples from `__enter__` until `finish`, or until `__exit__` where an error ended the run.

    `run` is what the caller knows: kind, version, store, settings. It holds no secret. Host, cores, memory, kernel,
    file system, Python and time are added to it. `counters` gives the caller's numbers, and `members` the numbers of
    its other processes; both are called from the sampler's thread. `stages` is where the work's time is noted.
    `watch_path`, which need not exist yet, tells which disk is also looked at by itself.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        run: Mapping[str, object],
        counters: Callable[[], Mapping[str, float]],
        stages: Stages,
        interval_s: float = 1.0,
        watch_path: str | os.PathLike[str] | None = None,
        members: Callable[[], Iterable[int]] = lambda: (),
    ) -> None:
        if not interval_s > 0:
            raise ValueError(f"an interval of {interval_s} s between samples")
        self._path = path
        self._run = run
        self._counters = counters
        self._interval_s = interval_s
        self._stages = stages
        self._readings = Readings(watch_path, members)
        self._log: RunLog | None = None
        self._start_s = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample_until_stopped, name="blobark-sampler", daemon=True)
        self._is_running = False
        self._warnings: dict[str, None] = {}
        self._recent: tuple[Mapping[str, object], ...] = ()

    def __enter__(self) -> Sampler:
        self._start_s = time.monotonic()
        run = {**self._run, **self._readings.facts(), "started": _utc_now(), "interval_s": self._interval_s}
        try:
            self._log = RunLog(self._path, run, self._sample())
            self._thread.start()
            self._is_running = True
        except OSError as error:
            self._warn(error)
        except RuntimeError:  # the system gives us no more threads: two samples are better than none
            self._warn(OSError("no thread can be started"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        log = self._take_last()
        if log:
            log.close()

    def finish(self, summary: Mapping[str, object]) -> tuple[str, ...]:
        """Take the last sample, put `summary` into the log, and return the warnings there are.

        `elapsed_s`, `peak_rss_bytes` and `sizes` are added to the summary.
        """
        log = self._take_last()
        if log:
            measured = {"elapsed_s": self._elapsed_s(), "peak_rss_bytes": self.peak_rss_bytes}
            try:
                log.finish(self._stages.histograms(), {**summary, **measured, "sizes": self._stages.sizes()})
            except OSError as error:
                self._warn(error)
        return self.warnings

    @property
    def warnings(self) -> tuple[str, ...]:
        """What could not be written, and why; a cause that lasts stands there once."""
        return tuple(self._warnings)

    def recent(self) -> Sequence[Mapping[str, object]]:
        """Return the last RECENT samples, for whoever shows them while the run goes on."""
        return self._recent

    @property
    def peak_rss_bytes(self) -> int:
        """The most memory that the run's processes were seen to have in RAM."""
        return self._readings.peak_rss_bytes()

    def _sample_until_stopped(self) -> None:
        due_s = self._start_s
        while True:
            # After a pause (a laptop that slept) sampling goes on from now; it does not make up for what it missed.
            due_s = max(due_s + self._interval_s, time.monotonic())
            if self._stop.wait(due_s - time.monotonic()):
                return
            self._add_sample()

    def _take_last(self) -> RunLog | None:
        """End the thread and add the last sample; returns the log, once."""
        if self._log:
            self._stop.set()
            if self._is_running:
                self._thread.join()
            self._add_sample()
        log, self._log = self._log, None
        return log

    def _add_sample(self) -> None:
        try:
            if self._log:
                self._log.add(self._sample())
        except OSError as error:
            self._warn(error)

    def _sample(self) -> dict[str, object]:
        try:
            counters = dict(self._counters())
        except Exception:  # noqa: BLE001 - the caller's code, on this thread: a gap, as with any other reading
            counters = None
        clock = {"t_s": self._elapsed_s(), "time": _utc_now()}
        stages = self._stages
        times = {"stages_s": stages.seconds(), "requests": stages.count(REQUEST), "moved_bytes": stages.moved_bytes()}
        sample = {**clock, **self._readings.read(), **times, "counters": counters}
        self._recent = (*self._recent[1 - RECENT :], sample)
        return sample

    def _elapsed_s(self) -> float:
        return round(time.monotonic() - self._start_s, 3)

    def _warn(self, error: OSError) -> None:
        self._warnings[f"{os.fspath(self._path)} is incomplete: {error.strerror or error}"] = None


def _utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
