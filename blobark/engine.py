"""The engine: the one place that owns threads.

`run(jobs, work)` calls `work` from a few threads for all jobs, in batches, and yields the results as they come, in
no order. Jobs are taken from their iterator only as threads get free and as the bytes they cost fit the budget, so
neither jobs nor content pile up. Batches, because for small files the hand-over would cost more than the work.

    dispatch while a thread is free and the budget allows
    wait for a batch of results, yield them
    every tenth of a second: if the processor was idle, let there be twice as many threads, up to `workers`
    until there are no jobs and no batch is under way

Two threads to begin with, because where the store answers at once more of them only fight for the interpreter's
lock (58 waits for it a file with 16 threads, 6 with two); where it is far away all of them are waiting anyway.

`work` answers for its item's own errors; whatever it raises stops the run: no new batch starts, the
batches under way end, and the error is raised where `run` is iterated.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

from blobark.errors import Interrupted

Job = TypeVar("Job")
Result = TypeVar("Result")

BATCH_JOBS = 16
BATCH_BYTES = 1024 * 1024
FAREWELL_S = 5.0
FIRST_WORKERS = 2
PACE_S = 0.1
BUSY_SHARE = 0.8
"""Seconds of processor a second above which more threads would not help."""


def _free(_job: object) -> int:
    return 0


class Turn:
    """Lets one thread after the other do what is short and full of system calls, with `with`.

    The interpreter's lock is let go of at every system call, and taken again; when threads fight for it each of
    them waits and is woken many times a file. Where only one at a time does its calls, nobody is in its way. No
    thread waits longer than `patience_s`: where calls are slow (a cold disk, a network) it is better to go on together.
    """

    def __init__(self, patience_s: float = 0.002) -> None:
        self._patience_s = patience_s
        self._lock = threading.Lock()
        self._holder = 0

    def __enter__(self) -> None:
        if self._lock.acquire(timeout=self._patience_s):
            self._holder = threading.get_ident()

    def __exit__(self, *_: object) -> None:
        if self._holder == threading.get_ident():
            self._holder = 0
            self._lock.release()


class Engine:
    """Runs work on up to `workers` threads with at most `max_bytes` of content in flight.

    `stop`, once set (by a signal's handler, say), makes `run` raise `Interrupted`.
    """

    def __init__(self, workers: int, max_bytes: int, stop: threading.Event) -> None:
        self.workers = workers
        self.max_bytes = max_bytes
        self.stop = stop
        self.turn = Turn()
        self.in_flight = 0
        """Jobs that have been handed to a thread and whose results have not come back."""

    def run(
        self, jobs: Iterable[Job], work: Callable[[list[Job]], list[Result]], *, cost: Callable[[Job], int] = _free
    ) -> Iterator[Result]:
        """Yield the results of `work(batch)` for batches of all jobs; `cost(job)` is what it holds in memory, in bytes.

        A batch has up to 16 jobs, which together cost no more than a MiB, or one that costs more. A job that alone
        costs more than the budget runs by itself. Closing the iterator stops the threads.
        """
        run: _Run[Job, Result] = _Run(self, work)
        try:
            yield from run.results(_batches(jobs, cost))
        finally:
            run.end()


class _Run(Generic[Job, Result]):
    """One call of `Engine.run`: its threads and what is under way."""

    def __init__(self, engine: Engine, work: Callable[[list[Job]], list[Result]]) -> None:
        self._engine = engine
        self._work = work
        self._cancelled = threading.Event()
        self._todo: queue.SimpleQueue[tuple[list[Job], int] | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[tuple[list[Result], int, int, BaseException | None]] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._limit = min(FIRST_WORKERS, engine.workers)
        self._paced_s = time.monotonic()
        self._paced_cpu_s = time.process_time()

    def results(self, batches: Iterator[tuple[list[Job], int]]) -> Iterator[Result]:
        engine = self._engine
        under_way = bytes_under_way = 0
        waiting = next(batches, None)
        while waiting is not None or under_way:
            while waiting is not None and under_way < 2 * self._limit:
                batch, cost = waiting
                if under_way and bytes_under_way + cost > engine.max_bytes:
                    break
                self._start(batch, cost, under_way)
                under_way += 1
                bytes_under_way += cost
                engine.in_flight += len(batch)
                waiting = next(batches, None)
            results, jobs, cost, error = self._wait()
            self._pace()
            under_way -= 1
            bytes_under_way -= cost
            engine.in_flight -= jobs
            if error is not None:
                raise error
            yield from results

    def end(self) -> None:
        """Stop the threads and wait for them: for ever at the end of a run, for a while after an interruption.

        A thread that hangs in a request is left behind then: it is a daemon, and what it does is not published.
        """
        self._cancelled.set()
        for _ in self._threads:
            self._todo.put(None)
        until_s = time.monotonic() + FAREWELL_S
        for thread in self._threads:
            thread.join(max(until_s - time.monotonic(), 0.0) if self._engine.stop.is_set() else None)
        self._engine.in_flight = 0

    def _start(self, batch: list[Job], cost: int, under_way: int) -> None:
        self._todo.put((batch, cost))
        if len(self._threads) < min(self._limit, under_way + 1):
            thread = threading.Thread(target=self._serve, name=f"worker-{len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _pace(self) -> None:
        """Let there be more threads while the processor has time for them."""
        now_s = time.monotonic()
        passed_s = now_s - self._paced_s
        if passed_s < PACE_S or self._limit == self._engine.workers:
            return
        cpu_s = time.process_time()
        if cpu_s - self._paced_cpu_s < BUSY_SHARE * passed_s:
            self._limit = min(2 * self._limit, self._engine.workers)
        self._paced_s, self._paced_cpu_s = now_s, cpu_s

    def _wait(self) -> tuple[list[Result], int, int, BaseException | None]:
        """Return the next finished batch; looks up now and then, so that a signal can stop a run whose store hangs."""
        while True:
            if self._engine.stop.is_set():
                raise Interrupted("interrupted", "run it again to go on where it stopped")
            try:
                return self._done.get(timeout=0.5)
            except queue.Empty:
                continue

    def _serve(self) -> None:
        while (item := self._todo.get()) is not None:
            batch, cost = item
            results: list[Result] = []
            error: BaseException | None = None
            try:
                if self._cancelled.is_set():
                    return
                results = self._work(batch)
            except BaseException as raised:  # it is raised again where the results are read
                error = raised
            self._done.put((results, len(batch), cost, error))


def _batches(jobs: Iterable[Job], cost: Callable[[Job], int]) -> Iterator[tuple[list[Job], int]]:
    batch: list[Job] = []
    total = 0
    for job in jobs:
        price = cost(job)
        if batch and (len(batch) >= BATCH_JOBS or total + price > BATCH_BYTES):
            yield batch, total
            batch, total = [], 0
        batch.append(job)
        total += price
    if batch:
        yield batch, total
