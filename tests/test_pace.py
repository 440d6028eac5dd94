"""`Pace`, fed by a store and a processor that are formulas: how many threads it finds, and how soon."""

from __future__ import annotations

import heapq
from collections.abc import Callable

import pytest

from blobark.pace import Pace

JOB_BYTES = 4096
PROCESSOR_S = 0.0002
"""What each job takes of the one processor that the interpreter's lock lets it use."""


class Simulated:
    """Threads that each wait for a store and then for the processor, on a clock of their own."""

    def __init__(self, latency_s: float, *, most: int = 256, most_a_second: float = 1e9, auto: bool = True) -> None:
        self.now_s = self.processor_s = 0.0
        self.latency_s = latency_s
        self.idle_cores = 8.0
        self.most_a_second = most_a_second
        self.jobs = 0
        self.pace = Pace(
            most,
            auto=auto,
            clock=lambda: self.now_s,
            processor=lambda: self.processor_s,
            idle=lambda: self.idle_cores * self.now_s,
        )
        self._lane_free_s = 0.0
        self._running: list[tuple[float, float, int]] = []

    def run(self, until_s: float, each: Callable[[], None] = lambda: None) -> float:
        """Work until then; return how many jobs a second were done in that time."""
        began_s, before = self.now_s, self.jobs
        while self.now_s < until_s:
            while len(self._running) < self.pace.workers:
                self._start()
            ended_s, started_s, jobs = heapq.heappop(self._running)
            self.now_s = max(self.now_s, ended_s)
            self.jobs += jobs
            self.pace.took(jobs, jobs * JOB_BYTES, started_s, ended_s - started_s)
            each()
        return (self.jobs - before) / (self.now_s - began_s)

    def _start(self) -> None:
        jobs = self.pace.batch_jobs
        busy_s = jobs * max(PROCESSOR_S, 1 / self.most_a_second)
        self.processor_s += jobs * PROCESSOR_S
        self._lane_free_s = max(self._lane_free_s, self.now_s) + busy_s
        ended_s = max(self.now_s + jobs * self.latency_s, self._lane_free_s)
        heapq.heappush(self._running, (ended_s, self.now_s, jobs))


@pytest.mark.parametrize("latency_ms", [0, 1, 5, 20, 100])
def test_it_soon_reaches_most_of_what_any_fixed_number_does(latency_ms: int) -> None:
    best = max(
        Simulated(latency_ms / 1000, most=most, auto=False).run(30) for most in (1, 2, 4, 8, 16, 32, 64, 128, 256)
    )
    auto = Simulated(latency_ms / 1000)
    auto.run(5)
    assert auto.run(30) >= 0.85 * best


def test_near_the_store_there_are_few_threads() -> None:
    simulated = Simulated(0.0001)
    simulated.run(30)
    assert simulated.pace.workers <= 4
    assert simulated.pace.batch_jobs == 16


def test_far_away_there_are_many_threads_with_few_jobs_each() -> None:
    simulated = Simulated(0.2)
    simulated.run(30)
    assert simulated.pace.workers == 256
    assert simulated.pace.batch_jobs <= 2


def test_more_threads_that_do_not_pay_are_taken_back() -> None:
    simulated = Simulated(0.02, most_a_second=400)  # eight threads do that, and the processor is idle
    seen = []
    simulated.run(60, lambda: seen.append(simulated.pace.workers))
    held = [workers for workers in seen if workers <= 32]
    assert len(held) > 0.5 * len(seen)
    assert max(seen) < 256


def test_it_looks_again_when_the_store_has_got_slower() -> None:
    simulated = Simulated(0.001)
    simulated.run(20)
    before = simulated.pace.workers
    simulated.latency_s = 0.05
    simulated.run(100)
    assert simulated.pace.workers >= 4 * before


def test_a_fixed_number_stays() -> None:
    simulated = Simulated(0.02, most=7, auto=False)
    seen = set()
    simulated.run(10, lambda: seen.add(simulated.pace.workers))
    assert seen == {7}


def test_one_thread_is_the_least() -> None:
    simulated = Simulated(0.02, most=1)
    simulated.run(5)
    assert simulated.pace.workers == 1


def test_where_no_processor_is_idle_no_more_threads_are_tried_for_work_that_needs_it() -> None:
    """Near a store on a machine that others use up, a thread that has half a processor waits for the other half."""
    for idle_cores in (0.0, 8.0):
        simulated = Simulated(0.0006)
        simulated.idle_cores = idle_cores
        simulated.run(20)
        assert (simulated.pace.workers > 2) == (idle_cores > 0)


def test_where_no_processor_is_idle_waiting_for_a_far_store_still_pays() -> None:
    simulated = Simulated(0.1)
    simulated.idle_cores = 0.0
    simulated.run(20)
    assert simulated.pace.workers >= 64
