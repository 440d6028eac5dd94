"""How numbers are written for a person."""

from __future__ import annotations

_IRREGULAR = {"entry": "entries"}


def counted(count: int, noun: str) -> str:
    """Return a number with its noun, such as `1 file` or `2,000 files`."""
    return f"{count:,} {noun if count == 1 else _IRREGULAR.get(noun, f'{noun}s')}"


def percent(share: float) -> str:
    """Return a share of 1 as a percentage, such as `10 %`."""
    return f"{100 * share:.4g} %"


def times(forecast_s: tuple[float, float, float], seconds: float) -> str:
    """Return what was forecast of a run that took so many seconds."""
    low_s, expected_s, high_s = forecast_s
    return f"{duration(expected_s)} ({duration(low_s)} to {duration(high_s)}), took {duration(seconds)}"


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
