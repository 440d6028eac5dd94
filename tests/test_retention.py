"""Retention, compared with an independent model: for each rule, what a person would tick off on a calendar."""

from __future__ import annotations

import calendar
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blobark.retention import (
    EXPIRED,
    FUTURE,
    INCOMPLETE,
    NEWEST,
    NEWEST_COMPLETE,
    NO_RULES,
    SINCE_COMPLETE,
    Candidate,
    Keep,
    judge,
)

HOUR_NS = 3600 * 10**9
DAY_NS = 24 * HOUR_NS
START = datetime(2024, 1, 1, 2, 30, tzinfo=UTC)
NOW_NS = calendar.timegm((2100, 1, 1, 0, 0, 0)) * 10**9
"""Later than any snapshot here."""


def ns(moment: datetime) -> int:
    return calendar.timegm(moment.timetuple()) * 10**9


def daily(days: int, *, incomplete: frozenset[int] = frozenset()) -> list[Candidate]:
    """One snapshot a day, numbered from 1."""
    times = [ns(START + timedelta(days=day)) for day in range(days)]
    return [Candidate(number, time, number not in incomplete) for number, time in enumerate(times, 1)]


def kept(candidates: list[Candidate], **rules: Any) -> list[int]:
    return [judgement.number for judgement in judge(candidates, Keep(**rules), NOW_NS) if judgement.keep]


def why(candidates: list[Candidate], number: int, keep: Keep | None) -> tuple[str, ...]:
    return next(judgement.reasons for judgement in judge(candidates, keep, NOW_NS) if judgement.number == number)


# The model: written from the words of config.yaml, with strings for buckets and a full table for each rule

FORMATS = {"hourly": "%Y%m%d%H", "daily": "%Y%m%d", "weekly": "%G%V", "monthly": "%Y%m", "yearly": "%Y"}


def model(candidates: list[Candidate], keep: Keep) -> set[int]:
    by_number = {c.number: c for c in candidates}
    complete = sorted((c.number for c in candidates if c.complete), reverse=True)
    newest = max(by_number, default=0)
    stays = {number for number in by_number if number == newest or number >= (complete or [0])[0]}
    stays |= set(complete[: keep.last])
    for rule, form in FORMATS.items():
        newest_of: dict[str, int] = {}
        for number in sorted(complete):
            moment = datetime.fromtimestamp(by_number[number].started_ns / 1e9, UTC)
            newest_of[moment.strftime(form)] = number
        stays |= set(sorted(newest_of.values(), reverse=True)[: getattr(keep, rule)])
    if keep.within_s and complete:
        oldest = by_number[complete[0]].started_ns - keep.within_s * 10**9
        stays |= {number for number in complete if by_number[number].started_ns >= oldest}
    return stays | {c.number for c in candidates if c.tags & set(keep.tags)}


SNAPSHOTS = st.lists(
    st.tuples(
        st.integers(0, 900 * 24),  # hours since the snapshot before
        st.integers(0, 9).map(bool),
        st.frozensets(st.sampled_from(["a", "b", "c"]), max_size=2),
    ),
    max_size=40,
)
COUNT = st.integers(0, 5)
RULES = st.builds(
    Keep,
    last=COUNT,
    hourly=COUNT,
    daily=COUNT,
    weekly=COUNT,
    monthly=COUNT,
    yearly=COUNT,
    within_s=st.sampled_from([0, 3600, 90 * 86_400]),
    tags=st.sampled_from([(), ("a",), ("a", "c")]),
)


@given(SNAPSHOTS, RULES)
def test_it_keeps_what_the_model_keeps(rows: list[tuple[int, bool, frozenset[str]]], keep: Keep) -> None:
    time_ns = ns(START)
    candidates = []
    for number, (hours, complete, tags) in enumerate(rows, 1):
        time_ns += hours % 1000 * HOUR_NS
        candidates.append(Candidate(number, time_ns, complete, tags))
    judged = judge(reversed(candidates), keep, NOW_NS)
    assert [judgement.number for judgement in judged] == [c.number for c in candidates]
    assert {judgement.number for judgement in judged if judgement.keep} == model(candidates, keep)
    assert all(judgement.reasons for judgement in judged)


@pytest.mark.parametrize(
    ("rule", "days", "stay"),
    [
        ("monthly", [(2023, 1, 15), (2024, 1, 15), (2024, 2, 1)], [1, 2, 3]),
        ("monthly", [(2023, 1, 1), (2023, 1, 15), (2023, 2, 1)], [2, 3]),
        ("weekly", [(2023, 1, 15), (2024, 1, 10), (2024, 2, 1)], [1, 2, 3]),
        ("weekly", [(2024, 12, 30), (2025, 1, 2), (2025, 1, 8)], [2, 3]),
    ],
)
def test_months_and_weeks_are_those_of_a_year(rule: str, days: list[tuple[int, int, int]], stay: list[int]) -> None:
    """A month is its year's; a week is one, also where it begins in the year before (ISO)."""
    candidates = [Candidate(number, ns(datetime(*day, tzinfo=UTC)), True) for number, day in enumerate(days, 1)]
    assert kept(candidates, **{rule: 3}) == stay


def test_days_are_those_of_utc(monkeypatch: pytest.MonkeyPatch) -> None:
    times = [
        datetime(2024, 1, 1, 20, tzinfo=UTC),
        datetime(2024, 1, 2, 2, tzinfo=UTC),
        datetime(2024, 1, 3, tzinfo=UTC),
    ]
    candidates = [Candidate(number, ns(moment), True) for number, moment in enumerate(times, 1)]
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "JST-9")
        time.tzset()
        stay = kept(candidates, daily=3)
    time.tzset()
    assert stay == [1, 2, 3]


@given(SNAPSHOTS, RULES)
def test_what_is_left_is_left_the_next_time_too(rows: list[tuple[int, bool, frozenset[str]]], keep: Keep) -> None:
    candidates = [
        Candidate(number, ns(START) + number * hours * HOUR_NS, complete, tags)
        for number, (hours, complete, tags) in enumerate(rows, 1)
    ]
    candidates.sort(key=lambda candidate: candidate.started_ns)
    candidates = [candidate._replace(number=number) for number, candidate in enumerate(candidates, 1)]
    stays = {judgement.number for judgement in judge(candidates, keep, NOW_NS) if judgement.keep}
    left = [candidate for candidate in candidates if candidate.number in stays]
    assert all(judgement.keep for judgement in judge(left, keep, NOW_NS))


def test_each_rule_by_hand() -> None:
    year = daily(366 + 59)  # from 2024-01-01 to 2025-02-28
    assert kept(year, last=3) == [423, 424, 425]
    assert kept(year, daily=2) == [424, 425]
    assert kept(year, monthly=3) == [366, 397, 425]  # the last days of December, January and February
    assert kept(year, yearly=9) == [366, 425]
    assert kept(year, weekly=2) == [420, 425]  # Sunday, 23 February 2025 is day 420
    assert kept(year, within_s=2 * 86_400) == [423, 424, 425]


def test_buckets_are_those_of_utc() -> None:
    """Half past midnight in Berlin is the day before in UTC, whatever TZ says, and summer time moves nothing."""
    evening = datetime(2026, 3, 28, 22, 30, tzinfo=UTC)
    times = [evening + timedelta(hours=hours) for hours in range(3)]
    candidates = [Candidate(number, ns(time), True) for number, time in enumerate(times, 1)]
    assert kept(candidates, daily=2) == [2, 3]
    assert kept(candidates, hourly=3) == [1, 2, 3]


def test_incomplete_ones_satisfy_no_rule() -> None:
    month = daily(30, incomplete=frozenset({28, 30}))
    assert kept(month, last=2) == [27, 29, 30]
    assert why(month, 28, Keep(last=3)) == (INCOMPLETE,)
    assert why(month, 30, Keep(last=3)) == (NEWEST,)
    assert why(month, 1, Keep(last=3)) == (EXPIRED,)


def test_nothing_newer_than_the_newest_complete_one_goes() -> None:
    month = daily(30, incomplete=frozenset(range(20, 31)))
    assert kept(month, last=1) == list(range(19, 31))
    assert why(month, 25, Keep(last=1)) == (SINCE_COMPLETE,)
    assert why(month, 19, Keep(last=1)) == (NEWEST_COMPLETE, "last")
    never = daily(5, incomplete=frozenset(range(1, 6)))
    assert kept(never, last=1) == [1, 2, 3, 4, 5]


def test_a_tag_holds_even_an_incomplete_one() -> None:
    month = daily(30, incomplete=frozenset({7}))
    month[6] = month[6]._replace(tags=frozenset({"audit", "other"}))
    assert kept(month, last=1, tags=("audit",)) == [7, 30]
    assert kept(month, last=1, tags=("another",)) == [30]
    assert why(month, 7, Keep(tags=("audit",))) == ("tag audit",)


def test_without_rules_everything_stays() -> None:
    month = daily(30)
    judged = judge(month, None, NOW_NS)
    assert all(judgement.keep and NO_RULES in judgement.reasons for judgement in judged)
    assert judge([], None, NOW_NS) == judge([], Keep(last=1), NOW_NS) == []


@pytest.mark.parametrize("ahead_days", [400, -400])
def test_a_clock_that_was_wrong_once_removes_nothing_more(ahead_days: int) -> None:
    month = daily(30)
    wrong = month[10]._replace(started_ns=month[10].started_ns + ahead_days * DAY_NS)
    month[10] = wrong
    assert set(kept(month, daily=7)) >= {25, 26, 27, 28, 29, 30}
    assert set(kept(month, within_s=5 * 86_400)) >= {25, 26, 27, 28, 29, 30}


def test_one_that_is_dated_in_the_future_costs_no_other() -> None:
    four = daily(4)
    now_ns = four[-1].started_ns + HOUR_NS
    ahead = Candidate(5, four[-1].started_ns + 4000 * DAY_NS, True)
    for keep in (Keep(within_s=30 * 86_400), Keep(last=4), Keep(daily=4), Keep(yearly=1, last=4)):
        judged = judge([*four, ahead], keep, now_ns)
        assert [judgement.keep for judgement in judged] == [True] * 5
        assert FUTURE in judged[-1].reasons
    # When a newer one with the right time is there it is kept still, and counted by nothing.
    after = ahead._replace(number=6, started_ns=now_ns)
    judged = judge([*four, ahead, after], Keep(last=2), now_ns)
    assert [judgement.number for judgement in judged if judgement.keep] == [4, 5, 6]


@pytest.mark.parametrize(("ahead_ns", "is_counted"), [(DAY_NS, True), (DAY_NS + 1, False)])
def test_a_day_of_grace(ahead_ns: int, is_counted: bool) -> None:
    """Within the day it is counted, and `within` goes back from now."""
    four = daily(4)
    now_ns = four[-1].started_ns
    ahead = Candidate(5, now_ns + ahead_ns, True)
    judged = {judgement.number: judgement for judgement in judge([*four, ahead], Keep(within_s=86_400), now_ns)}
    assert [number for number, judgement in judged.items() if judgement.keep] == [3, 4, 5]
    assert ("within" in judged[5].reasons, FUTURE in judged[5].reasons) == (is_counted, not is_counted)
