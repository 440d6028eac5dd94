"""What a run log shows over time: lines in charts, each a rate between samples or a level at them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, Literal, NamedTuple

from metrics.log import Run, Sample
from metrics.stages import STAGES

Number = float | None
MB: Final = 1e6
SHORTEST_S: Final = 0.001
"""The clock's steps: between samples that are nearer there is no rate."""


class Line(NamedTuple):
    """One line: `read` gives a total of which the rate is shown, or a level; divided by `scale`."""

    name: str
    kind: Literal["rate", "level"]
    read: Callable[[Sample], Number]
    scale: float = 1.0


class Chart(NamedTuple):
    """Lines of one unit. `stacked` lines are parts of a whole."""

    key: str
    title: str
    unit: str
    lines: tuple[Line, ...]
    stacked: bool = False


def _field(name: str) -> Callable[[Sample], Number]:
    return lambda sample: getattr(sample, name)


def _counter(name: str) -> Callable[[Sample], Number]:
    return lambda sample: sample.counter(name)


def _stage(name: str, sample: Sample) -> Number:
    return sample.stage_s(name)


def _busy_percent(sample: Sample) -> Number:
    return None if sample.watched_disk_busy_s is None else 100 * sample.watched_disk_busy_s


def _queued_percent(sample: Sample) -> Number:
    return None if sample.process_queued_s is None else 100 * sample.process_queued_s


def _core(number: int, sample: Sample) -> Number:
    cores = sample.cpu_percents or []
    return cores[number] if number < len(cores) else None


CHARTS: Final = (
    Chart(
        "bytes",
        "Throughput",
        "MB/s",
        (
            Line("to or from the store", "rate", _field("moved_bytes"), MB),
            Line("network in", "rate", _field("network_in_bytes"), MB),
            Line("network out", "rate", _field("network_out_bytes"), MB),
            Line("loopback", "rate", _field("loopback_bytes"), MB),
        ),
    ),
    Chart(
        "files",
        "Files and requests",
        "per second",
        (Line("files", "rate", _counter("files")), Line("requests", "rate", _field("requests"))),
    ),
    Chart(
        "stages",
        "What threads spend their time on",
        "threads",
        tuple(Line(name, "rate", partial(_stage, name)) for name in STAGES),
        stacked=True,
    ),
    Chart(
        "cpu",
        "CPU",
        "%",
        (
            Line("all cores", "level", _field("cpu_percent")),
            Line("waiting for a disk", "level", _field("iowait_percent")),
            Line("this run, of one core", "level", _field("process_cpu_percent")),
            Line("this run, waiting for a core", "rate", _queued_percent),
        ),
    ),
    Chart(
        "memory",
        "Memory",
        "MB",
        (
            Line("this run", "level", _field("process_rss_bytes"), MB),
            Line("used on the machine", "level", _field("memory_used_bytes"), MB),
        ),
    ),
    Chart(
        "disk",
        "Disk",
        "MB/s",
        (
            Line("read", "rate", _field("watched_disk_read_bytes"), MB),
            Line("written", "rate", _field("watched_disk_write_bytes"), MB),
            Line("read, all disks", "rate", _field("disk_read_bytes"), MB),
            Line("written, all disks", "rate", _field("disk_write_bytes"), MB),
        ),
    ),
    Chart(
        "operations",
        "Disk operations",
        "per second",
        (
            Line("reads", "rate", _field("watched_disk_read_ops")),
            Line("writes", "rate", _field("watched_disk_write_ops")),
        ),
    ),
    Chart("busy", "Disk busy", "%", (Line("busy", "rate", _busy_percent),)),
    Chart(
        "flight",
        "Under way",
        "",
        (
            Line("items in flight", "level", _counter("in_flight")),
            Line("transfer threads", "level", _counter("workers")),
            Line("batches waiting", "level", _counter("queued_batches")),
        ),
    ),
    Chart(
        "process",
        "Open files and threads of this run",
        "",
        (
            Line("open files", "level", _field("process_open_files")),
            Line("threads", "level", _field("process_threads")),
        ),
    ),
    Chart(
        "trouble",
        "Retries and failures",
        "per second",
        (
            Line("retries", "rate", _counter("retries")),
            Line("throttled", "rate", _counter("throttled")),
            Line("failed items", "rate", _counter("failed")),
        ),
    ),
)


def core_chart(cores: int) -> Chart:
    """Return the chart with a line for each core."""
    lines = tuple(Line(f"core {number}", "level", partial(_core, number)) for number in range(cores))
    return Chart("cores", "Each core", "%", lines)


def values(line: Line, samples: Sequence[Sample]) -> list[Number]:
    """Return the line's value for each interval that ends with a sample: one less than there are samples."""
    read = [line.read(sample) for sample in samples]
    found: list[Number] = []
    for before, after, old, new in zip(samples, samples[1:], read, read[1:], strict=False):
        if line.kind == "level":
            found.append(None if new is None else new / line.scale)
        elif old is None or new is None or after.t_s - before.t_s < SHORTEST_S:
            found.append(None)
        else:
            found.append(max(0.0, new - old) / (after.t_s - before.t_s) / line.scale)
    return found


def thinned(samples: Sequence[Sample], most: int) -> list[Sample]:
    """Return at most `most` + 1 of the samples, evenly: rates between those that stay are right all the same."""
    # The last interval may be so short that its rates say nothing: it is one with that before it.
    if len(samples) > 2 and samples[-1].t_s - samples[-2].t_s < (samples[-2].t_s - samples[-3].t_s) / 2:
        samples = [*samples[:-2], samples[-1]]
    last = len(samples) - 1
    if last <= most:
        return list(samples)
    return [samples[round(place * last / most)] for place in range(most + 1)]


def mean(line: Line, run: Run) -> Number:
    """Return the line's mean over the run, each interval by its length; None where nothing was read."""
    weights = [after.t_s - before.t_s for before, after in zip(run.samples, run.samples[1:], strict=False)]
    known = [pair for pair in zip(values(line, run.samples), weights, strict=True) if pair[0] is not None]
    total_s = sum(weight for _, weight in known)
    return sum(value * weight for value, weight in known if value is not None) / total_s if total_s > 0 else None
