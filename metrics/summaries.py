"""What a report says of runs in words and numbers: rows with a cell for each run, for the terminal and the page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from metrics.log import Run
from metrics.series import CHARTS, mean
from metrics.verdict import Verdict, judge

Rows = list[tuple[str, list[str]]]

_LINES = {(chart.key, line.name): line for chart in CHARTS for line in chart.lines}
_MEANS = (
    ("CPU, all cores", "cpu", "all cores", "%"),
    ("CPU, this run", "cpu", "this run, of one core", "% of a core"),
    ("waiting for a disk", "cpu", "waiting for a disk", "%"),
    ("disk busy", "busy", "busy", "%"),
    ("disk written", "disk", "written", "MB/s"),
    ("network in", "bytes", "network in", "MB/s"),
    ("network out", "bytes", "network out", "MB/s"),
)


class Named(NamedTuple):
    """A run, by the name that tells it from the others beside it."""

    label: str
    run: Run
    verdict: Verdict


def named(runs: Sequence[tuple[str, Run]]) -> list[Named]:
    """Judge runs, and number those whose names are the same."""
    labels = [label for label, _ in runs]
    again = [f"{label} ({at + 1})" if labels.count(label) > 1 else label for at, label in enumerate(labels)]
    return [Named(label, run, judge(run)) for label, (_, run) in zip(again, runs, strict=True)]


def overview(runs: Sequence[Named]) -> Rows:
    """Return what the runs did, how fast, and what they used."""
    rows = [
        ("run", [f"{item.run.run.kind} of {item.run.run.server}" for item in runs]),
        ("started", [item.run.run.started for item in runs]),
        ("ended", ["yes" if item.run.summary else "no: killed, or still going on" for item in runs]),
        ("seconds", [f"{item.run.elapsed_s:,.1f}" for item in runs]),
        ("files", [_files(item.run) for item in runs]),
        ("rate", [_rate(item.run) for item in runs]),
        ("requests", [_requests(item.run) for item in runs]),
        ("peak memory", [_bytes(item.run.summary.peak_rss_bytes if item.run.summary else None) for item in runs]),
    ]
    for label, chart, line, unit in _MEANS:
        means = [mean(_LINES[chart, line], item.run) for item in runs]
        rows.append((f"{label} (mean)", ["-" if value is None else f"{value:,.1f} {unit}" for value in means]))
    rows.append(("failed", [f"{_failed(item.run):,}" for item in runs]))
    return rows


def stages(run: Run) -> list[tuple[str, float, int, list[float | None]]]:
    """Return for each stage its share of the threads' time, its count, and the seconds of p50, p95 and p99."""
    total_s = sum(run.stages_s.values()) or 1.0
    rows = []
    for name, seconds in run.stages_s.items():
        histogram = (run.stages or {}).get(name)
        percentiles = [histogram.percentile_s(share) if histogram else None for share in (0.5, 0.95, 0.99)]
        rows.append((name, seconds / total_s, histogram.count if histogram else 0, percentiles))
    return rows


def facts(runs: Sequence[Named]) -> Rows:
    """Return machine and settings."""
    rows = [
        ("Blobark", [item.run.run.version for item in runs]),
        ("store", [item.run.run.store for item in runs]),
        ("snapshot", [str(item.run.run.snapshot or "-") for item in runs]),
        ("host", [item.run.run.host for item in runs]),
        ("cores", [str(item.run.run.cores or "-") for item in runs]),
        ("memory", [_bytes(item.run.run.memory_bytes) for item in runs]),
        ("file system", [f"{item.run.run.file_system} on {item.run.run.device or '?'}" for item in runs]),
        ("kernel", [item.run.run.kernel for item in runs]),
        ("Python", [item.run.run.python for item in runs]),
        ("processes beside the first", [str(item.run.run.members) for item in runs]),
        ("seconds between samples", [f"{item.run.run.interval_s:g}" for item in runs]),
    ]
    names = dict.fromkeys(name for item in runs for name in item.run.run.settings)
    rows += [(name, [str(item.run.run.settings.get(name) or "none") for item in runs]) for name in names]
    return rows


def seconds(value: float | None) -> str:
    """Return a length of time in the unit that fits it."""
    if value is None:
        return "-"
    for unit, factor in (("us", 1e6), ("ms", 1e3)):
        if value * factor < 1000:
            return f"{value * factor:,.3g} {unit}"
    return f"{value:,.2f} s"


def _files(run: Run) -> str:
    if run.summary is None:
        return f"{run.samples[-1].counter('files') or 0:,.0f} so far"
    kept = f", {run.summary.kept:,} kept" if run.summary.kept else ""
    return f"{run.summary.moved:,} ({_bytes(run.summary.moved_bytes)}){kept}"


def _rate(run: Run) -> str:
    passed_s = max(run.elapsed_s, 1e-9)
    last = run.samples[-1]
    files, size = last.counter("files") or 0.0, last.counter("bytes") or 0.0
    if run.summary:
        files, size = run.summary.moved, run.summary.moved_bytes
    return f"{files / passed_s:,.0f} files/s, {size / passed_s / 1e6:,.1f} MB/s"


def _requests(run: Run) -> str:
    last, times = run.samples[-1], run.requests
    retries = f", {last.counter('retries'):,.0f} repeated" if last.counter("retries") else ""
    throttled = f", {last.counter('throttled'):,.0f} throttled" if last.counter("throttled") else ""
    half, most = times.percentile_s(0.5), times.percentile_s(0.95)
    taken = f", p50 {seconds(half)}, p95 {seconds(most)}" if times.count else ""
    return f"{last.requests or 0:,.0f}{taken}{retries}{throttled}"


def _failed(run: Run) -> float:
    return run.summary.failed if run.summary else run.samples[-1].counter("failed") or 0


def _bytes(count: float | None) -> str:
    if count is None:
        return "-"
    value, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{value:,.0f} B" if units[0] == "B" else f"{value:,.1f} {units[0]}"
