"""The closing words of the commands that measure: forecast, drill, sweep; and how sizes and times are written."""

from __future__ import annotations

from blobark.errors import EXIT_DONE
from blobark.foresight import ForecastResult

Rows = list[tuple[str, str]]
MEASURING = (ForecastResult,)


def rows_of(result: ForecastResult) -> Rows:
    """Return what is said of a result, as names and values."""
    rows = [
        ("snapshot", f"{result.snapshot} of {result.server}: {result.files:,} files ({size(result.file_bytes)})"),
        ("a full restore takes", f"about {duration(result.expected_s)}"),
        ("eight times of ten", f"{duration(result.low_s)} to {duration(result.high_s)}"),
        ("rests on", f"{result.runs:,} measured restores, {result.alike:,} with this store and these settings"),
        ("the largest of them", f"{result.largest_files:,} files, {size(result.largest_bytes)}"),
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


def times(forecast_s: tuple[float, float, float], seconds: float) -> str:
    """Return what was forecast of a run that took so many seconds."""
    low_s, expected_s, high_s = forecast_s
    where = "inside" if low_s <= seconds <= high_s else "outside"
    interval = f"{duration(low_s)} to {duration(high_s)}"
    return f"{duration(expected_s)} ({interval}): off by {seconds / expected_s - 1:+.0%}, {where}"


def duration(seconds: float) -> str:
    """Return a time for a person."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def size(count: int) -> str:
    """Return a number of bytes for a person."""
    if count < 10_000:
        return f"{count:,} B"
    value = float(count)
    for unit in ("kB", "MB", "GB", "TB"):
        value /= 1000
        if value < 1000 or unit == "TB":
            break
    return f"{value:,.1f} {unit}"
