"""How numbers are written for a person."""

from __future__ import annotations

_IRREGULAR = {"entry": "entries"}


def counted(count: int, noun: str) -> str:
    """Return a number with its noun, such as `1 file` or `2,000 files`."""
    return f"{count:,} {noun if count == 1 else _IRREGULAR.get(noun, f'{noun}s')}"


def percent(share: float) -> str:
    """Return a share of 1 as a percentage, such as `10 %`."""
    return f"{100 * share:.4g} %"
