"""The trend of drills: the evidence of those before, of state_dir and of the store, and what it says of a new one."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

import msgspec

from blobark import evidence, identity, snapshot
from blobark.context import Context
from blobark.errors import BlobarkError, BlobNotFound, ConfigError
from blobark.stores.base import Store

LEAST_EARLIER = 3
"""So many drills before it make a trend."""
MOST_EARLIER = 20
"""So many of the newest are compared with; of the store's, twice as many are read."""
MOST_READ = 1000
"""Of state_dir's: years of daily ones."""


class Earlier(msgspec.Struct, frozen=True):
    """A drill before this one."""

    time: str
    share: float
    result: str
    seconds: float
    bytes_per_s: float


class Month(msgspec.Struct, frozen=True):
    """The drills of a month ("2026-11"): how many, how many of them found a difference, the median of their speeds."""

    month: str
    drills: int
    different: int
    bytes_per_s: float


def prefix(server: str) -> str:
    """Return what the keys of a server's evidence begin with."""
    return f"{snapshot.PREFIX}{server}/drills/"


def last(store: Store, server: str) -> tuple[str, str]:
    """Return when the last drill in the store began (UTC), and its result; "" and "" where there is none to be read."""
    key = max((info.key for info in store.list(prefix(server))), default="")
    if not key:
        return "", ""
    try:
        document = evidence.decode(bytes(store.read(key)), key)
    except (ConfigError, BlobNotFound):
        return "", ""
    return (str(document.get("started")), str(document.get("result"))) if evidence.is_signed(document) else ("", "")


def slowdown(before: Sequence[Earlier], share: float, speed: float) -> float | None:
    """Return how much more time a drill of this speed took than the median of those before it, of 1.

    None where there are too few of this share to tell.
    """
    speeds = _speeds(before, share)
    if len(speeds) < LEAST_EARLIER or speed <= 0:
        return None
    return round(median(speeds[-MOST_EARLIER:]) / speed - 1, 4)


def months(before: Sequence[Earlier], share: float) -> list[Month]:
    """Return what the drills of this share say, month by month."""
    by_month: dict[str, list[Earlier]] = {}
    for drill in before:
        if drill.share == share:
            by_month.setdefault(drill.time[:7], []).append(drill)
    return [
        Month(
            month,
            len(drills),
            sum(drill.result != "same" for drill in drills),
            round(median(_speeds(drills, share) or [0.0])),
        )
        for month, drills in sorted(by_month.items())
    ]


def _speeds(drills: Sequence[Earlier], share: float) -> list[float]:
    return [e.bytes_per_s for e in drills if e.share == share and e.result == "same" and e.bytes_per_s > 0]


def earlier(context: Context, store: Store, server: str) -> list[Earlier]:
    """Return the drills there were, oldest first: of state_dir and, of the store's, those of this host.

    How fast another machine restores says nothing of this one. Those not well signed are named and left out.
    """
    found: dict[str, dict[str, Any]] = {}
    for file in sorted((context.config.state_dir / "drills").glob("*.json"))[-MOST_READ:]:
        try:
            found[file.stem] = evidence.read(file)
        except ConfigError as error:
            context.reporter.warn(f"warning: {error.message}")
    own, host = set(found), identity.this_host().name
    try:
        keys = sorted(info.key for info in store.list(prefix(server)))[-2 * MOST_EARLIER :]
        for key in keys:
            name = key.removeprefix(prefix(server))
            if name not in found:
                data = bytes(store.read(key))
                try:
                    found[name] = evidence.decode(data, key)
                except ConfigError as error:
                    context.reporter.warn(f"warning: {error.message}")
    except BlobarkError as error:
        context.reporter.warn(f"warning: not all earlier drills could be read: {error.message}")
    rows = []
    for name, document in sorted(found.items()):
        if document.get("server") != server or (name not in own and document.get("host") != host):
            continue
        try:
            row = msgspec.convert({**document, "time": document.get("started")}, Earlier)
        except msgspec.ValidationError:
            row = None
        if row is None or not evidence.is_signed(document):
            context.reporter.warn(f"warning: the evidence {name} is not what was signed: it is left out")
        else:
            rows.append(row)
    return rows
