"""How `keep` is read from the configuration: a mapping of rules, each with its own kind of value."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NoReturn

from blobark.config_file import Given, expected_instead
from blobark.model import printable
from blobark.retention import Keep

TAG_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
COUNTS = ("last", "hourly", "daily", "weekly", "monthly", "yearly")
_UNITS_S = {"h": 3600, "d": 86_400, "w": 604_800}


def keep_text(_text: str, _base: Path) -> NoReturn:
    """Refuse whatever is no mapping."""
    raise ValueError("expected rules such as {last: 3, daily: 14, monthly: 12}")


def keep_rules(fields: dict[str, Given], _base: Path) -> Keep:
    """Read the rules. Raises ValueError with what is wrong."""
    names = (*COUNTS, "within", "tags")
    if not fields:
        raise ValueError(f"expected one or more of {', '.join(names)}")
    unknown = next((name for name in fields if name not in names), None)
    if unknown is not None:
        raise ValueError(f"{printable(unknown[:60])} is no rule, {expected_instead(unknown, names)}")
    counts = {name: _count(name, fields[name].value) for name in COUNTS if name in fields}
    within_s = _within_s(fields["within"].value) if "within" in fields else 0
    return Keep(**counts, within_s=within_s, tags=_tags(fields["tags"].value) if "tags" in fields else ())


def _count(name: str, value: object) -> int:
    if not isinstance(value, str) or not re.fullmatch("[1-9][0-9]{0,5}", value):
        raise ValueError(f"expected {name} to be a whole number of 1 or more")
    return int(value)


def _within_s(value: object) -> int:
    match = re.fullmatch(r"([1-9][0-9]{0,4}) ?([hdw])", value.strip().lower()) if isinstance(value, str) else None
    if match is None:
        raise ValueError("expected within to be a time such as 48h, 30d or 8w")
    return int(match[1]) * _UNITS_S[match[2]]


def _tags(value: object) -> tuple[str, ...]:
    items = [item.value for item in value] if isinstance(value, list) else [value]
    found = [item for item in items if isinstance(item, str) and TAG_NAME.fullmatch(item)]
    if not items or len(found) != len(items):
        raise ValueError("expected tags to be one or more names of a-z, 0-9, ., _ and -")
    return tuple(found)
