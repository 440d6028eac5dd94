"""Reading a run log back: as values with types, or one line that says why not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import msgspec

from blobark.errors import ConfigError
from metrics.runlog import FORMAT
from metrics.stages import REQUEST, STAGES

MOST = 1e100
"""No number of a log is near it, and with smaller ones nothing overflows."""

Number = float | None
Count = Annotated[int, msgspec.Meta(ge=0)]


class Facts(msgspec.Struct, frozen=True):
    """`run` of a log: docs/metrics.md says what each is."""

    kind: str = ""
    version: str = ""
    store: str = ""
    server: str = ""
    snapshot: int = 0
    members: int = 0
    settings: dict[str, Any] = {}
    started: str = ""
    host: str = ""
    cores: int | None = None
    usable_cores: int | None = None
    memory_bytes: int | None = None
    kernel: str = ""
    python: str = ""
    file_system: str = ""
    device: str = ""
    interval_s: float = 1.0


class Sample(msgspec.Struct, frozen=True):
    """One of `samples`: what could not be read is None."""

    t_s: float
    time: str = ""
    cpu_percent: Number = None
    cpu_percents: list[Number] | None = None
    iowait_percent: Number = None
    processes: Number = None
    process_cpu_percent: Number = None
    process_cpu_s: Number = None
    process_queued_s: Number = None
    memory_total_bytes: Number = None
    memory_used_bytes: Number = None
    memory_available_bytes: Number = None
    process_rss_bytes: Number = None
    process_threads: Number = None
    process_open_files: Number = None
    disk_read_bytes: Number = None
    disk_write_bytes: Number = None
    watched_disk_read_bytes: Number = None
    watched_disk_write_bytes: Number = None
    watched_disk_read_ops: Number = None
    watched_disk_write_ops: Number = None
    watched_disk_busy_s: Number = None
    network_in_bytes: Number = None
    network_out_bytes: Number = None
    loopback_bytes: Number = None
    requests: Number = None
    moved_bytes: Number = None
    stages_s: dict[str, Number] | None = None
    counters: dict[str, Number] | None = None

    def counter(self, name: str) -> Number:
        """Return one of the run's own numbers."""
        return (self.counters or {}).get(name)

    def stage_s(self, name: str) -> Number:
        """Return the seconds of a stage so far."""
        return (self.stages_s or {}).get(name)


class Histogram(msgspec.Struct, frozen=True):
    """One of `stages`; `buckets` are [up to so many seconds, count]."""

    count: int = 0
    seconds: float = 0.0
    buckets: list[tuple[float, Count]] = []

    def percentile_s(self, share: float) -> float | None:
        """Return the seconds that this share (0 to 1) took at most, right within a fifth; None of nothing."""
        left = share * sum(count for _, count in self.buckets)
        for upper_s, count in self.buckets:
            if count and left <= count:
                # A bucket is a fifth to a quarter as wide as it is far from 0.
                return upper_s * (0.8 + 0.2 * left / count)
            left -= count
        return None


class Summary(msgspec.Struct, frozen=True):
    """`summary` of a log; what a restore has written, a save has sent."""

    elapsed_s: float = 0.0
    files: int = 0
    file_bytes: int = 0
    written: int = 0
    written_bytes: int = 0
    sent: int = 0
    sent_bytes: int = 0
    kept: int = 0
    failed: int = 0
    workers: int = 0
    peak_rss_bytes: int = 0
    failures: list[tuple[str, str]] = []
    sizes: list[tuple[float, Count, float]] = []

    @property
    def moved(self) -> int:
        """Files that were written, or blobs that were sent."""
        return self.written or self.sent

    @property
    def moved_bytes(self) -> int:
        """Their bytes."""
        return self.written_bytes or self.sent_bytes


class Run(msgspec.Struct, frozen=True):
    """A run log. `stages` and `summary` are None when the run was killed, or is still going on."""

    run: Facts
    samples: list[Sample]
    stages: dict[str, Histogram] | None = None
    summary: Summary | None = None

    @property
    def elapsed_s(self) -> float:
        """How long the run took, or went on when it was sampled last."""
        return self.summary.elapsed_s if self.summary else self.samples[-1].t_s

    @property
    def stages_s(self) -> dict[str, float]:
        """Seconds of each stage, in all threads together."""
        last = self.samples[-1].stages_s or {}
        if self.stages:
            last = {name: stage.seconds for name, stage in self.stages.items()}
        return {name: last.get(name) or 0.0 for name in STAGES}

    @property
    def requests(self) -> Histogram:
        """The tries of calls of the store; empty when the run was killed."""
        return (self.stages or {}).get(STAGES[REQUEST], Histogram())


def read(path: Path) -> Run:
    """Return the run log at `path`. Raises `ConfigError`, with the path, when it is none that can be used."""
    document = _document(path)
    version = document.get("format") if isinstance(document, dict) else None
    if not isinstance(version, int) or "samples" not in document:
        raise ConfigError(f"{path}: not a run log")
    if version != FORMAT:
        age = "a newer" if version > FORMAT else "an older"
        raise ConfigError(f"{path}: written by {age} version of Blobark (format {version}; this one reads {FORMAT})")
    try:
        run = msgspec.convert(document, Run)
    except (msgspec.ValidationError, RecursionError, OverflowError) as error:
        raise ConfigError(f"{path}: a run log that is damaged ({error})") from None
    if not run.samples:
        raise ConfigError(f"{path}: a run log without samples")
    return run


def _document(path: Path, *, again: bool = True) -> Any:
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        return json.loads(text, parse_int=_whole, parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError):
        ours = text.startswith(b'{"format": ')
        if ours and again:  # a sample may have been written at that very moment
            return _document(path, again=False)
        raise ConfigError(
            f"{path}: {'a run log that was cut short, or damaged' if ours else 'not a run log'}"
        ) from None


def _whole(text: str) -> int:
    number = int(text)
    _check(number)
    return number


def _finite(text: str) -> float:
    number = float(text)
    _check(number)
    return number


def _check(number: float) -> None:
    if not abs(number) <= MOST:  # neither is NaN
        raise ValueError(number)
