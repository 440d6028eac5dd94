"""The closing words of the commands that measure: forecast, drill, sweep."""

from __future__ import annotations

from blobark.drill import DrillResult
from blobark.errors import EXIT_DONE
from blobark.foresight import ForecastResult
from blobark.sweep import SweepResult
from blobark.trend import Month
from blobark.wording import counted, duration, percent, size
from metrics.sweep_page import TOO_SHORT

Rows = list[tuple[str, str]]
TREND = 6
"""So many earlier drills are shown."""


def rows_of(result: ForecastResult | DrillResult | SweepResult) -> Rows:
    """Return what is said of a result, as names and values."""
    if isinstance(result, ForecastResult):
        return _forecast(result)
    return _drill(result) if isinstance(result, DrillResult) else _sweep(result)


def _forecast(result: ForecastResult) -> Rows:
    rows = [
        (
            "snapshot",
            f"{result.snapshot} of {result.server}: {counted(result.files, 'file')} ({size(result.file_bytes)})",
        ),
        ("a full restore takes", f"about {duration(result.expected_s)}"),
        ("eight times of ten", f"{duration(result.low_s)} to {duration(result.high_s)}"),
        (
            "rests on",
            f"{counted(result.runs, 'measured restore')}, {result.alike:,} with this store and these settings",
        ),
        ("the largest of them", f"{counted(result.largest_files, 'file')}, {size(result.largest_bytes)}"),
    ]
    if result.largest_files < result.files / 10 or result.largest_bytes < result.file_bytes / 10:
        rows.append(("careful", "no measured restore was a tenth as large: restore or drill more of it to be surer"))
    if result.median_error is not None:
        said = f"{result.inside} of the last {result.forecasts} inside, off by {result.median_error:.0%} (median)"
        rows.append(("earlier forecasts", said))
    if result.unreadable:
        rows.append(("lines that cannot be read", f"{result.unreadable:,}"))
    if result.rto_s is not None:
        said = "kept" if result.exit_code == EXIT_DONE else "MISSED"
        rows.append(
            (f"objective {duration(result.rto_s)}", f"{said}: nine of ten are done in {duration(result.high_s)}")
        )
    return rows


def _drill(result: DrillResult) -> Rows:
    what = "all of it" if result.share == 1 else f"a sample of {percent(result.share)}"
    rows = [
        ("snapshot", f"{result.snapshot} of {result.server}, {what}"),
        ("restored", f"{counted(result.files, 'file')} ({size(result.bytes)}) in {duration(result.seconds)}"),
        ("compared", f"{counted(result.compared, 'item')} in {duration(result.compare_seconds)}"),
        ("result", f"DIFFERENT: {len(result.failed):,} (named above)" if result.failed else "the same as the snapshot"),
    ]
    same = [earlier for earlier in result.earlier if earlier.share == result.share][-TREND:]
    rows += [(e.time, f"{duration(e.seconds)}, {size(round(e.bytes_per_s))}/s, {e.result}") for e in same]
    if len(result.months) > 1:
        rows += [
            (m.month, f"{size(round(m.bytes_per_s))}/s, median of {m.drills:,}{_faults(m)}") for m in result.months
        ]
    rows.append(("this one", f"{duration(result.seconds)}, {size(round(result.bytes_per_s))}/s"))
    if result.slowdown is None:
        rows.append(("trend", "none yet: there are fewer than three earlier drills of this share"))
    else:
        rows.append(("trend", f"{result.slowdown:+.0%} of time, against the median of the earlier ones"))
    rows.append(("evidence", result.evidence))
    rows.append(("in the store", result.stored_as or "NO (see above)"))
    rows.append(("public key", result.public_key))
    return rows + ([("kept in", result.kept_in)] if result.kept_in else [])


def _faults(month: Month) -> str:
    return f", {month.different:,} different" if month.different else ""


def _sweep(result: SweepResult) -> Rows:
    rows = [("snapshot", f"{result.snapshot} of {result.server}, {counted(result.files, 'file')} each time")]
    for setting in result.settings:
        said = f"{setting.median_s:,.2f} s ({setting.least_s:,.2f} to {setting.most_s:,.2f})"
        rows.append((f"max_workers {setting.name}", said + ("  <- the knee" if setting.name == result.knee else "")))
    said = "dropped before each restore" if result.caches_dropped else "NOT dropped: only root may"
    lines = result.line.splitlines() or [f"nothing: {TOO_SHORT}"]
    rows += [("the kernel's caches", said), *zip(["for config.yaml", ""], lines, strict=False)]
    rows.append(("written", f"{result.html}, {result.csv}, {result.json}"))
    return rows
