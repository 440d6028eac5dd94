"""What held a run up, by its log alone, with the evidence; "unclear" where the log does not tell.

    too short to tell, or next to no time noted      unclear
    the store put on its brake, and threads waited   throttling
    threads waited because of the configuration      network bandwidth (max_bandwidth), configured limit
    the run used up the processors it can use, or
    its threads were ready and had none, for long    CPU
    else the stage that took half of the time:
        decode                                       CPU
        write, or little else and a busy disk        disk writing
        read                                         disk reading
        metadata, compare                            metadata calls
        request, of a folder                         disk reading, disk writing
        request, much longer the more it moves       network bandwidth
        request, few threads by configuration        too few workers
        request                                      store latency
    nothing of all this                              unclear

Shares are of the time that threads were not held back; half of it is what names a stage.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

from metrics.log import Run
from metrics.series import CHARTS, Line, mean

Name = Literal[
    "network bandwidth",
    "store latency",
    "throttling",
    "CPU",
    "disk writing",
    "disk reading",
    "metadata calls",
    "too few workers",
    "configured limit",
    "unclear",
]

LEAST_S: Final = 0.5
LEAST_NOTED_S: Final = 0.1
HELD_SHARE: Final = 0.25
"""So much of the threads' time held back is what counts."""
THROTTLED_SHARE: Final = 0.05
"""Or so many answers that were the store's brake."""
SATURATED: Final = 0.85
MOST: Final = 0.5
BUSY_DISK_PERCENT: Final = 80
BULK_BYTES: Final = 64 * 1024
BULK_FACTOR: Final = 4
"""Requests of so many bytes that take so many times as long as the quickest are waiting for the line."""
MOST_WORKERS: Final = 512

_LINES: Final = {(chart.key, line.name): line for chart in CHARTS for line in chart.lines}


class Verdict(NamedTuple):
    """The bottleneck, and why: one line each."""

    name: Name
    evidence: tuple[str, ...]


def judge(run: Run) -> Verdict:
    """Name what held the run up."""
    known = _Known(run)
    if run.elapsed_s < LEAST_S or known.noted_s < LEAST_NOTED_S:
        return Verdict("unclear", (f"the run took {run.elapsed_s:.1f} s, which is too short to tell",))
    return known.brakes() or known.processors() or known.stages() or known.unclear()


class _Known:
    """The numbers that the verdict rests on."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._settings = run.run.settings
        self._stages_s = {name: seconds for name, seconds in run.stages_s.items() if name != "turn"}
        self.noted_s = sum(self._stages_s.values())
        self._held = self._share("held")
        self._worked_s = self.noted_s - self._stages_s["held"]
        last = run.samples[-1]
        self._requests = last.requests or 0
        self._moved_bytes = last.moved_bytes or 0
        self._queued_s = last.process_queued_s or 0.0
        self._throttled = last.counter("throttled") or 0
        self._machine_percent = self._mean("cpu", "all cores") or 0.0
        self._own_percent = self._mean("cpu", "this run, of one core") or 0.0
        self._usable = max(1, min(run.run.usable_cores or run.run.cores or 1, run.run.members or 1))
        """Cores that the run's processes can use: each of them holds an interpreter's lock."""
        self._disk_percent = self._mean("busy", "busy")

    def brakes(self) -> Verdict | None:
        """Say whether the store, or the configuration, let threads wait."""
        waited = f"threads were held back for {100 * self._held:.0f} % of their time"
        answers = self._throttled / max(1, self._requests)
        if self._throttled and (self._held >= HELD_SHARE or answers >= THROTTLED_SHARE):
            return Verdict(
                "throttling", (f"{self._throttled:,.0f} answers told to slow down ({100 * answers:.0f} %)", waited)
            )
        if self._held >= HELD_SHARE and (allowed := self._allowed("max_bandwidth")):
            rate = self._moved_bytes / self._run.elapsed_s / 1e6
            limit = f"max_bandwidth is {allowed / 1e6:,.1f} MB/s, and {rate:,.1f} MB/s were moved"
            return Verdict("network bandwidth", (limit, waited))
        if self._held >= HELD_SHARE and (allowed := self._allowed("max_requests_per_s")):
            return Verdict("configured limit", (f"max_requests_per_s is {allowed:,}", waited))
        return None

    def processors(self) -> Verdict | None:
        """Say whether the run has used up the processors."""
        used = self._own_percent / 100 / self._usable
        queued = self._queued_s / self._worked_s if self._worked_s > 0 else 0.0
        if used < SATURATED and queued < MOST:
            return None
        own = f"the run used {self._own_percent:.0f} % of a core; {self._usable} is what its processes can use"
        waited = (
            f"its threads were ready and had no core for {self._queued_s:,.1f} s, in {self._worked_s:,.1f} s of work"
        )
        return Verdict("CPU", (own, waited, f"the machine's cores were busy for {self._machine_percent:.0f} %"))

    def stages(self) -> Verdict | None:
        """Say which stage took most of the time that threads were not held back, if one did."""
        if self._worked_s <= 0:
            return None
        shares = {name: seconds / self._worked_s for name, seconds in self._stages_s.items() if name != "held"}
        evidence = (self._spent(shares), self._idle())
        disk = f"{self._run.run.device or 'the disk'} was busy for {self._disk_percent or 0:.0f} %"
        is_busy = (self._disk_percent or 0) >= BUSY_DISK_PERCENT
        if shares["decode"] >= MOST:
            return Verdict("CPU", evidence)
        if shares["write"] >= MOST or (is_busy and shares["write"] >= MOST / 2):
            return Verdict("disk writing", (*evidence, disk))
        if shares["read"] >= MOST:
            return Verdict("disk reading", (*evidence, disk))
        if shares["metadata"] + shares["compare"] >= MOST:
            return Verdict("metadata calls", evidence)
        if shares["request"] + shares["receive"] >= MOST:
            return self._request(evidence)
        return None

    def unclear(self) -> Verdict:
        """Say that no single thing took most of the time."""
        worked = self._worked_s or 1.0
        return Verdict("unclear", (self._spent({n: s / worked for n, s in self._stages_s.items() if n != "held"}),))

    def _request(self, evidence: tuple[str, ...]) -> Verdict:
        """Tell apart why requests take most of the time."""
        run, requests = self._run, self._run.requests
        if run.run.store == "folder":
            return Verdict("disk writing" if run.run.kind == "save" else "disk reading", evidence)
        mean_s = (self._stages_s["request"] + self._stages_s["receive"]) / max(1, self._requests)
        quickest_s = requests.buckets[0][0] if requests.buckets else mean_s
        each_bytes = self._moved_bytes / max(1, self._requests)
        median_s, most_s = requests.percentile_s(0.5) or mean_s, requests.percentile_s(0.95) or mean_s
        times = f"an answer began after {1000 * median_s:,.0f} ms (95 %: up to {1000 * most_s:,.0f} ms)"
        if each_bytes >= BULK_BYTES and mean_s >= BULK_FACTOR * quickest_s:
            rate = f"{self._moved_bytes / run.elapsed_s / 1e6:,.1f} MB/s, in requests of {each_bytes / 1e6:,.1f} MB"
            return Verdict("network bandwidth", (f"{times}, the quickest {1000 * quickest_s:,.0f} ms", rate, *evidence))
        workers = self._allowed("max_workers")
        useful = self._useful_workers(mean_s)
        if workers and workers < useful / 2:
            more = f"{workers} transfers at a time by max_workers; about {useful} would keep the processors busy"
            return Verdict("too few workers", (more, times, *evidence))
        return Verdict("store latency", (times, *evidence))

    def _allowed(self, setting: str) -> int:
        """Return a limit of the configuration, 0 where there is none: also for `auto`."""
        value = self._settings.get(setting)
        return value if isinstance(value, int) else 0

    def _useful_workers(self, mean_s: float) -> int:
        """Return how many threads would use up the processors, if each request took as long as it does now."""
        cpu_s = (self._run.samples[-1].process_cpu_s or 0.0) / max(1, self._requests)
        cores = self._run.run.cores or 1
        return min(MOST_WORKERS, max(1, round(cores * mean_s / cpu_s))) if cpu_s else MOST_WORKERS

    def _share(self, stage: str) -> float:
        return self._stages_s[stage] / self.noted_s if self.noted_s else 0.0

    def _mean(self, chart: str, name: str) -> float | None:
        line: Line = _LINES[chart, name]
        return mean(line, self._run)

    def _spent(self, shares: dict[str, float]) -> str:
        most = sorted(shares.items(), key=lambda pair: -pair[1])[:3]
        parts = ", ".join(f"{100 * share:.0f} % {name}" for name, share in most if share >= 0.01)
        return f"what threads spent their time on: {parts}"

    def _idle(self) -> str:
        own = f"this run used {self._own_percent:.0f} % of one"
        return f"the machine's cores were busy for {self._machine_percent:.0f} %, {own}"
