"""Retention: which snapshots stay, each with its reasons. Pure: nothing here reads a store, or the clock.

    last: n                     the n newest complete ones
    hourly, ..., yearly: n      the newest complete one of each of the n newest hours, days, weeks (ISO), months, years
                                that have any; the buckets are UTC's, so summer time moves nothing
    within: t                   complete ones not older than t before the newest complete one (before now, where it is
                                dated later)
    tags: [name]                those that have one of the tags

Incomplete snapshots satisfy no rule and use up no place of one; only a tag, which a person gave, holds one. Nor do
those that are dated more than a day later than now: a clock was wrong, and which of them are old cannot be told, so
they stay. Never removed, whatever the rules say: the newest snapshot, the newest complete one, and what came after
that: nothing shows yet that it can be spared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import NamedTuple

import msgspec

NEWEST = "the newest"
NEWEST_COMPLETE = "the newest complete one"
SINCE_COMPLETE = "newer than the newest complete one"
NO_RULES = "no keep is configured"
EXPIRED = "no rule keeps it"
INCOMPLETE = "incomplete, so no rule counts it"
FORGOTTEN = "to be forgotten"
FUTURE = "dated later than now, so no rule counts it"

GRACE_NS = 24 * 3600 * 10**9
"""Clocks may differ by so much."""


class Keep(msgspec.Struct, frozen=True, kw_only=True):
    """What the configuration's `keep` says: counts, 0 for a rule that is not there."""

    last: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0
    within_s: int = 0
    tags: tuple[str, ...] = ()


class Candidate(NamedTuple):
    """What retention knows of a snapshot."""

    number: int
    started_ns: int
    complete: bool
    tags: frozenset[str] = frozenset()


class Judgement(NamedTuple):
    """What becomes of a snapshot, and why: everything that keeps it, or the one reason that it goes for."""

    number: int
    keep: bool
    reasons: tuple[str, ...]


def _time(started_ns: int) -> datetime:
    return datetime.fromtimestamp(started_ns // 1_000_000_000, UTC)


_BUCKETS: dict[str, Callable[[int], object]] = {
    "hourly": lambda ns: _time(ns).strftime("%Y-%m-%d %H"),
    "daily": lambda ns: _time(ns).date(),
    "weekly": lambda ns: _time(ns).isocalendar()[:2],
    "monthly": lambda ns: (_time(ns).year, _time(ns).month),
    "yearly": lambda ns: _time(ns).year,
}


def judge(candidates: Iterable[Candidate], keep: Keep | None, now_ns: int) -> list[Judgement]:
    """Judge all snapshots of a server, by number, at `now_ns` since 1970 UTC; without `keep` all of them stay."""
    snapshots = sorted(candidates, key=lambda candidate: candidate.number)
    reasons: dict[int, list[str]] = {candidate.number: [] for candidate in snapshots}
    for number, why in _guarded(snapshots):
        reasons[number].append(why)
    if keep is None:
        return [Judgement(c.number, True, (*reasons[c.number], NO_RULES)) for c in snapshots]
    for candidate in snapshots:
        if is_future(candidate.started_ns, now_ns):
            reasons[candidate.number].append(FUTURE)
    for number, why in _by_rules(snapshots, keep, now_ns):
        reasons[number].append(why)
    return [
        Judgement(c.number, bool(why), tuple(why) or (EXPIRED if c.complete else INCOMPLETE,))
        for c in snapshots
        for why in [reasons[c.number]]
    ]


def judge_forgotten(candidates: Iterable[Candidate], numbers: frozenset[int]) -> list[Judgement]:
    """Judge when a person has named the ones that go, and no rule is asked. `unforgettable` has been."""
    return [
        Judgement(c.number, c.number not in numbers, (FORGOTTEN,) if c.number in numbers else ())
        for c in sorted(candidates, key=lambda candidate: candidate.number)
    ]


def is_future(started_ns: int, now_ns: int) -> bool:
    """Return whether a snapshot is dated so much later than now that a clock must have been wrong."""
    return started_ns > now_ns + GRACE_NS


def newest_complete(candidates: Iterable[Candidate]) -> int:
    """Return the number of the newest complete snapshot, 0 when there is none."""
    return max((candidate.number for candidate in candidates if candidate.complete), default=0)


def _guarded(snapshots: list[Candidate]) -> Iterable[tuple[int, str]]:
    """Yield (number, why) of what no rule can remove."""
    complete = newest_complete(snapshots)
    for candidate in snapshots:
        if candidate is snapshots[-1]:
            yield candidate.number, NEWEST
        if candidate.number == complete:
            yield candidate.number, NEWEST_COMPLETE
        elif candidate.number > complete and candidate is not snapshots[-1]:
            yield candidate.number, SINCE_COMPLETE


def _by_rules(snapshots: list[Candidate], keep: Keep, now_ns: int) -> Iterable[tuple[int, str]]:
    """Yield (number, why) of what the rules keep."""
    counted = [candidate for candidate in snapshots if not is_future(candidate.started_ns, now_ns)]
    complete = [candidate for candidate in reversed(counted) if candidate.complete]
    for candidate in complete[: keep.last]:
        yield candidate.number, "last"
    for rule, bucket in _BUCKETS.items():
        seen: set[object] = set()
        for candidate in complete:
            key = bucket(candidate.started_ns)
            if key not in seen and len(seen) < getattr(keep, rule):
                seen.add(key)
                yield candidate.number, rule
    for candidate in complete if keep.within_s else ():
        if candidate.started_ns >= min(complete[0].started_ns, now_ns) - keep.within_s * 1_000_000_000:
            yield candidate.number, "within"
    for candidate in snapshots:
        for tag in sorted(candidate.tags & set(keep.tags)):
            yield candidate.number, f"tag {tag}"
