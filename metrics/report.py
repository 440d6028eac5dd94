"""Reports of run logs: what a terminal shows, a JSON object, a CSV of the plain series, and the page."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from blobark.errors import ConfigError, Fatal
from metrics.files import write_whole
from metrics.log import read
from metrics.page import page
from metrics.series import CHARTS, values
from metrics.summaries import Named, Rows, named, overview, seconds, stages

COLUMNS = (
    ("cpu_percent", "cpu", "all cores"),
    ("iowait_percent", "cpu", "waiting for a disk"),
    ("process_cpu_percent", "cpu", "this run, of one core"),
    ("memory_used_mb", "memory", "used on the machine"),
    ("process_rss_mb", "memory", "this run"),
    ("disk_read_mb_per_s", "disk", "read"),
    ("disk_write_mb_per_s", "disk", "written"),
    ("disk_busy_percent", "busy", "busy"),
    ("network_in_mb_per_s", "bytes", "network in"),
    ("network_out_mb_per_s", "bytes", "network out"),
    ("files_per_s", "files", "files"),
    ("store_mb_per_s", "bytes", "to or from the store"),
)
"""Of the CSV, after `run`, `t_s` and `time`; MB are 1,000,000 bytes."""


class ReportResult(msgspec.Struct):
    """What was read and written: each run's own figures, and where the page is."""

    runs: list[dict[str, Any]]
    html: str
    rows: Rows
    """What a terminal shows: a name, and a cell for each run."""


def report(paths: Sequence[Path], *, html: Path | None = None, csv_file: Path | None = None) -> ReportResult:
    """Read run logs and write the page (by default beside the first log, as .html), and the CSV if one is named.

    Raises:
        ConfigError: a log cannot be used, or something would be written over one.
        Fatal: something cannot be written.
    """
    runs = named([(path.name, read(path)) for path in paths])
    target = html or paths[0].with_suffix(".html")
    for written in filter(None, (target, csv_file)):
        if any(_is_same(written, path) for path in paths):
            raise ConfigError(f"{written}: is a run log, and would be written over", "name another file")
    if csv_file and _is_same(target, csv_file):
        raise ConfigError(f"{target}: cannot be the page and the CSV", "name another file")
    _write(target, page(runs))
    if csv_file:
        _write(csv_file, _csv(runs))
    rows = [("", [item.label for item in runs]), *overview(runs), *_stage_rows(runs), *_verdict_rows(runs)]
    figures = [_figures(path, item) for path, item in zip(paths, runs, strict=True)]
    return ReportResult(figures, str(target), [*rows, ("page", [str(target)])])


def _figures(path: Path, item: Named) -> dict[str, Any]:
    run = item.run
    return {
        "file": str(path),
        "run": msgspec.to_builtins(run.run),
        "elapsed_s": run.elapsed_s,
        "ended": run.summary is not None,
        "summary": msgspec.to_builtins(run.summary),
        "stages": {
            name: {"share": share, "count": count, "p50_s": half, "p95_s": most, "p99_s": nearly_all}
            for name, share, count, (half, most, nearly_all) in stages(run)
        },
        "verdict": item.verdict.name,
        "evidence": list(item.verdict.evidence),
    }


def _stage_rows(runs: Sequence[Named]) -> Rows:
    """Return a row for each stage that took any time in one of the runs."""
    each = [stages(item.run) for item in runs]
    rows = []
    for same in zip(*each, strict=True):
        if any(share >= 0.001 for _, share, _, _ in same):
            cells = [
                f"{100 * share:.0f} %, p50 {seconds(times[0])}, p95 {seconds(times[1])}" for _, share, _, times in same
            ]
            rows.append((f"time: {same[0][0]}", cells))
    return rows


def _verdict_rows(runs: Sequence[Named]) -> Rows:
    most = max(len(item.verdict.evidence) for item in runs)
    evidence = [[*item.verdict.evidence, *[""] * most][:most] for item in runs]
    rows = [("held up by", [item.verdict.name for item in runs])]
    return rows + [("", list(cells)) for cells in zip(*evidence, strict=True)]


def _csv(runs: Sequence[Named]) -> str:
    lines = {(chart.key, line.name): line for chart in CHARTS for line in chart.lines}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", "t_s", "time", *(name for name, _, _ in COLUMNS)])
    for item in runs:
        samples = item.run.samples
        columns = [values(lines[chart, name], samples) for _, chart, name in COLUMNS]
        for sample, *row in zip(samples[1:], *columns, strict=True):
            cells = ["" if value is None else f"{value:.3f}" for value in row]
            writer.writerow([_printable(item.label), f"{sample.t_s:.3f}", sample.time, *cells])
    return text.getvalue()


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _write(path: Path, text: str) -> None:
    try:
        write_whole(path, text)
    except OSError as error:
        raise Fatal(f"{path} cannot be written ({error.strerror})") from None


def _is_same(one: Path, other: Path) -> bool:
    if one.exists() and other.exists():
        return one.is_file() and one.samefile(other)
    return one.absolute() == other.absolute()
