"""`blobark forecast`: how long a restore of a snapshot will take, by what restores took."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from statistics import median

import msgspec

from blobark import timings
from blobark.browse import Tree
from blobark.config import Config
from blobark.context import Context
from blobark.errors import EXIT_DONE, EXIT_MISSED, ConfigError, Fatal
from blobark.listings import server_of
from blobark.model import Entry
from metrics.forecast import forecast, work_of

RECENT = 20
"""The forecasts whose errors are shown."""


class ForecastResult(msgspec.Struct):
    """How long it will take, and what that rests on. Seconds; shares are of 1."""

    server: str
    snapshot: int
    files: int
    file_bytes: int
    low_s: float
    expected_s: float
    high_s: float
    runs: int
    alike: int
    """How many of the runs were made with the same store and settings."""
    unreadable: int
    largest_files: int
    """Files and bytes of the largest of those runs: beyond it costs are carried on in a straight line."""
    largest_bytes: int
    forecasts: int
    """Restores of late that had been forecast, how many of them fell inside, and by how much they were off."""
    inside: int
    median_error: float | None
    rto_s: float | None
    exit_code: int


def run_forecast(context: Context, *, server: str, number: int, rto_s: float | None) -> ForecastResult:
    """Forecast the full restore of a snapshot (0: the newest) into an empty place.

    An objective counts as met when the upper end of the interval meets it, which nine of ten restores should keep.

    Raises:
        ConfigError: no restore that tells anything was measured yet.
    """
    known, unreadable = _read(context.config)
    store = context.open_store(False)
    now = timings.settings_of(context.config, store.name)
    runs = timings.measured(known, now)
    if not runs:
        hint = "run a restore or `blobark drill` first: how long that takes is kept, and forecasts rest on it"
        raise ConfigError(f"no restore has been measured yet ({context.config.state_dir / timings.FILE_NAME})", hint)
    tree = Tree.open(store, server_of(context, store, server), number)
    totals = tree.header.totals
    found = forecast(work_of(_sizes(context, tree), totals.file_bytes), runs)
    checked = [run for run in known if run.forecast_s is not None][-RECENT:]
    inside = [run for run in checked if run.forecast_s and run.forecast_s[0] <= run.seconds <= run.forecast_s[2]]
    errors = [abs(run.error) for run in checked if run.error is not None]
    telling = [run for run in known if run.is_telling]
    return ForecastResult(
        server=tree.header.server,
        snapshot=tree.header.number,
        files=totals.files,
        file_bytes=totals.file_bytes,
        low_s=round(found.low_s, 3),
        expected_s=round(found.expected_s, 3),
        high_s=round(found.high_s, 3),
        runs=len(runs),
        alike=sum(run.unlike == 0 for run in runs),
        unreadable=unreadable,
        largest_files=max(run.files for run in telling),
        largest_bytes=max(run.bytes for run in telling),
        forecasts=len(checked),
        inside=len(inside),
        median_error=round(median(errors), 4) if errors else None,
        rto_s=rto_s,
        exit_code=EXIT_DONE if rto_s is None or found.high_s <= rto_s else EXIT_MISSED,
    )


def _read(config: Config) -> tuple[list[timings.Timing], int]:
    path: Path = config.state_dir / timings.FILE_NAME
    try:
        return timings.read(config.state_dir)
    except OSError as error:
        raise Fatal(f"{path} cannot be read ({error.strerror})") from None


def _sizes(context: Context, tree: Tree) -> list[tuple[int, int]]:
    """Return [smaller than so many bytes, files] for each doubling of sizes in a snapshot."""
    counts: dict[int, int] = {}
    for size in _file_sizes(context, tree.entries()):
        upper = 1 << size.bit_length()
        counts[upper] = counts.get(upper, 0) + 1
    return sorted(counts.items())


def _file_sizes(context: Context, entries: Iterator[Entry]) -> Iterator[int]:
    for entry in entries:
        context.check_stop()
        if entry.has_content and not entry.hardlink_to_any:
            yield entry.size
