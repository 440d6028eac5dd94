"""The model behind `blobark forecast`: what it makes of runs whose law is known."""

from __future__ import annotations

import math
import random

import pytest

from metrics.forecast import PRIOR, Measured, Work, forecast, work_of


def law(work: Work) -> float:
    """Seconds on a machine that the prior does not know: a slow start, quick files, a slow line."""
    return 2.0 + 0.0004 * work.files + work.small_bytes / 40e6 + work.large_bytes / 90e6


def some_work(pick: random.Random) -> Work:
    return Work(int(10 ** pick.uniform(1, 6)), 10 ** pick.uniform(4, 10), pick.choice((0, 10 ** pick.uniform(7, 11))))


def some_runs(pick: random.Random, count: int, noise: float) -> list[Measured]:
    works = [some_work(pick) for _ in range(count)]
    return [Measured(work, law(work) * math.exp(pick.gauss(0, noise))) for work in works]


def width(low: float, middle: float, high: float) -> float:
    return max(high / middle, middle / low) - 1


def test_it_finds_the_law_from_exact_runs() -> None:
    runs = some_runs(random.Random(1), 40, 0.0)
    pick = random.Random(2)
    for work in [some_work(pick) for _ in range(20)]:
        assert forecast(work, runs).expected_s == pytest.approx(law(work), rel=0.1)


def test_eight_of_ten_fall_inside_and_the_interval_is_narrow() -> None:
    inside, widths = 0, []
    for seed in range(100):
        pick = random.Random(seed)
        runs, work = some_runs(pick, 20, 0.1), some_work(pick)
        found = forecast(work, runs)
        inside += found.low_s <= law(work) * math.exp(pick.gauss(0, 0.1)) <= found.high_s
        widths.append(width(*found))
    assert 75 <= inside <= 96
    assert sorted(widths)[50] <= 0.3


def test_the_fewer_the_runs_the_wider() -> None:
    work = Work(50_000, 2e9, 5e9)
    widths = [width(*forecast(work, some_runs(random.Random(3), count, 0.05))) for count in (0, 1, 4, 30)]
    assert widths == sorted(widths, reverse=True)
    assert widths[0] > 2
    assert widths[-1] < 0.25


def test_a_kind_of_file_that_no_run_had_makes_it_wide() -> None:
    runs = [Measured(Work(n, n * 1e4, 0), law(Work(n, n * 1e4, 0))) for n in (100, 1000, 10_000, 100_000) * 3]
    assert width(*forecast(Work(10_000, 1e8, 0), runs)) < 0.3
    assert width(*forecast(Work(10_000, 1e8, 1e11), runs)) > 1


def test_runs_of_another_kind_say_less() -> None:
    work = Work(10_000, 1e8, 0)
    alike, unlike = [Measured(work, 20.0)] * 3, [Measured(work, 60.0, unlike=1.0)] * 3
    assert forecast(work, [*alike, *unlike]).expected_s == pytest.approx(20, rel=0.15)
    assert width(*forecast(work, alike)) < width(*forecast(work, unlike))


def test_one_run_off_by_far_does_not_take_over() -> None:
    runs = some_runs(random.Random(4), 20, 0.02)
    work = Work(20_000, 1e9, 0)
    broken = [*runs, Measured(work, 20 * law(work))]
    found = forecast(work, broken)
    assert found.low_s < law(work) < found.high_s


def test_the_prior_is_between_its_bounds() -> None:
    found = forecast(Work(0, 0, 0), [])
    assert found.expected_s == pytest.approx(PRIOR[0])
    assert found.low_s < found.expected_s < found.high_s


def test_a_histogram_becomes_files_and_bytes() -> None:
    work = work_of([(1024, 10), (1 << 23, 1), (1 << 30, 2)], 2_000_000_000)
    assert work.files == 13
    assert work.small_bytes + work.large_bytes == pytest.approx(2_000_000_000)
    assert work.large_bytes > 1.9e9
    assert work_of([], 0) == Work(0, 0, 0)
    assert work_of([(1, 5)], 0) == Work(5, 0, 0)
