"""The one place that reads the clock for decisions. Times are nanoseconds since 1970 UTC."""

from __future__ import annotations

import time
from datetime import UTC, datetime


def now_ns() -> int:
    """Return the time of now."""
    return time.time_ns()


def elapsed_s() -> float:
    """Return the seconds of a clock that is never set, and that goes on while the machine sleeps where it has such."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def utc(time_ns: int) -> str:
    """Return a time as RFC 3339 in UTC, to the second."""
    return datetime.fromtimestamp(time_ns // 1_000_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
