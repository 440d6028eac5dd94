"""What restores took: a line of JSON for each, in state_dir, for forecasts to rest on.

The newest KEPT lines stay. Nothing about it ever fails a restore: what cannot be written is a warning. A line that
cannot be read, or is of a newer version, is passed over and counted.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import msgspec

from blobark.clock import now_ns, utc
from blobark.config import Config
from blobark.context import Context
from blobark.model import printable
from blobark.restore import RestoreResult
from metrics.files import write_whole
from metrics.forecast import Forecast, Measured, Work, forecast, work_of

FORMAT = 1
KEPT = 500
USED = 100
"""More would take tenths of a second, and old ones tell less of today."""
FILE_NAME = "restores.jsonl"
SHORTEST_S = 0.001
_KEPT_SHARE = 0.02
"""A restore that found more than this share of its files right already tells nothing of one that finds none."""
_FAILED_SHARE = 0.05
_UNLIKE_KIND, _UNLIKE_STORE, _UNLIKE_LIMITS, _UNLIKE_AUTO, _UNLIKE_DOUBLING = 1.0, 0.4, 0.5, 0.3, 0.15


class Settings(msgspec.Struct, frozen=True):
    """What bears on the seconds, besides the work."""

    store: str
    store_kind: str
    max_workers: int = 0
    """0: auto."""
    max_bandwidth: int = 0
    max_requests_per_s: int = 0


class Timing(msgspec.Struct, frozen=True):
    """One restore. `files` and `bytes` are those that were written, `sizes` their histogram, as in a run log."""

    format: int
    ended: str
    server: str
    snapshot: int
    settings: Settings
    workers: int
    files: int
    bytes: Annotated[int, msgspec.Meta(ge=0)]
    sizes: list[tuple[int, int]]
    """[smaller than so many bytes, files] for each doubling that there was."""
    kept: int
    failed: int
    archived: int
    seconds: float
    forecast_s: tuple[float, float, float] | None = None
    """From, expected, to: what the runs before it said of this one's work; None where there were none."""

    @property
    def error(self) -> float | None:
        """How much longer it took than was expected, as a share of that."""
        expected_s = self.forecast_s[1] if self.forecast_s else 0.0
        return self.seconds / expected_s - 1 if expected_s > 0 else None

    @property
    def work(self) -> Work:
        """What it had to write."""
        return work_of(self.sizes, self.bytes)

    @property
    def is_telling(self) -> bool:
        """Whether it says anything of a full restore into an empty place."""
        few = self.kept <= _KEPT_SHARE * self.files and self.failed <= _FAILED_SHARE * self.files
        return self.files > 0 and self.seconds >= SHORTEST_S and few and not self.archived


def settings_of(config: Config, store_name: str) -> Settings:
    """Return the settings of the runs that this configuration makes."""
    return Settings(
        printable(store_name),
        "azure" if config.store == "azure" else "folder",
        config.max_workers or 0,
        config.max_bandwidth,
        config.max_requests_per_s,
    )


def unlike(run: Settings, now: Settings) -> float:
    """Return how much unlike a run was made, as the logarithm of the factor that may come of it."""
    total = _UNLIKE_KIND * (run.store_kind != now.store_kind) or _UNLIKE_STORE * (run.store != now.store)
    limits = (run.max_bandwidth, run.max_requests_per_s) != (now.max_bandwidth, now.max_requests_per_s)
    total += _UNLIKE_LIMITS * limits
    if run.max_workers and now.max_workers:
        return total + _UNLIKE_DOUBLING * abs(math.log2(run.max_workers / now.max_workers))
    return total + _UNLIKE_AUTO * (run.max_workers != now.max_workers)


def measured(runs: Iterable[Timing], now: Settings) -> list[Measured]:
    """Return the runs that a forecast under these settings can rest on, the newest USED of them."""
    telling = [run for run in runs if run.is_telling][-USED:]
    return [Measured(run.work, run.seconds, unlike(run.settings, now)) for run in telling]


def read(state_dir: Path) -> tuple[list[Timing], int]:
    """Return the restores that were noted, oldest first, and how many lines could not be read. Raises `OSError`."""
    try:
        lines = (state_dir / FILE_NAME).read_bytes().splitlines()
    except FileNotFoundError:
        return [], 0
    found: list[Timing] = []
    for line in lines:
        with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            timing = msgspec.json.decode(line, type=Timing)
            if timing.format == FORMAT:
                found.append(timing)
    return found, len(lines) - len(found)


def note(context: Context, store_name: str, result: RestoreResult) -> None:
    """Note a restore that has ended, and in its result what would have been forecast of it."""
    state_dir = context.config.state_dir
    settings = settings_of(context.config, store_name)
    sizes = [(int(upper), int(count)) for upper, count, _ in context.engine.stages.sizes()]
    try:
        before, _ = read(state_dir)
        result.forecast_s = _forecast(before, sizes, result, settings)
        timing = Timing(
            FORMAT,
            utc(now_ns()),
            result.server,
            result.snapshot,
            settings,
            result.workers,
            result.written,
            result.written_bytes,
            sizes,
            result.kept,
            len(result.failed),
            result.archived,
            result.seconds,
            result.forecast_s,
        )
        _append(state_dir, timing, len(before))
    except OSError as error:
        context.reporter.warn(f"warning: {state_dir / FILE_NAME} cannot be written ({error.strerror})")


def _forecast(
    before: Sequence[Timing], sizes: Sequence[tuple[int, int]], result: RestoreResult, settings: Settings
) -> tuple[float, float, float] | None:
    runs = measured(before, settings)
    if not runs or not result.written:
        return None
    found: Forecast = forecast(work_of(sizes, result.written_bytes), runs)
    return round(found.low_s, 3), round(found.expected_s, 3), round(found.high_s, 3)


def _append(state_dir: Path, timing: Timing, before: int) -> None:
    """Add a line in one write. Now and then the oldest are dropped; of two runs that end then one may be lost."""
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = state_dir / FILE_NAME
    if before >= 2 * KEPT:
        lines = path.read_bytes().splitlines()[-KEPT:]
        write_whole(path, "".join(f"{line.decode(errors='replace')}\n" for line in lines))
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, msgspec.json.encode(timing) + b"\n")
    finally:
        os.close(descriptor)
