"""The engine: the one place that owns threads.

`run(jobs, work)` calls `work` from a few threads for all jobs, in batches, and yields each with its result as they
come, in no order. Jobs are taken from their iterator only as threads get free and as the bytes they cost fit the
budget, so neither jobs nor content pile up. Batches, because for small files the hand-over would cost more than the
work.

    dispatch while a thread is free and the budget allows
    wait for a batch of results, yield them
    tell the pace how long it took; let there be as many threads as that says (pace.py)
    until there are no jobs and no batch is under way

`work` answers for its item's own errors; whatever it raises stops the run: no new batch starts, the
batches under way end, and the error is raised where `run` is iterated. After an error that ends the whole run, as
after an interruption, a thread that hangs is not waited for.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, NamedTuple, TypeVar

from blobark.errors import Fatal, Interrupted, ItemError, StoreError
from blobark.pace import FIRST_WORKERS, Pace
from metrics.stages import TURN, Stages

Job = TypeVar("Job")
Result = TypeVar("Result")
Work = Callable[[list[Job]], list[Result]]
Batch = tuple[list[Job], int]
"""Jobs, and what they cost together."""

BATCH_BYTES = 1024 * 1024
FAREWELL_S = 2.0
LOOK_UP_S = 0.5
"""How long a wait lasts until it is looked whether the run was asked to stop."""
AHEAD_BATCHES = 32
"""Batches that wait for a thread, at most, and no more than there are threads: so that none waits for a batch."""


class _Done(NamedTuple, Generic[Job, Result]):
    """A batch that has ended: its jobs, their results, what it cost, when it began and how long it took."""

    batch: list[Job]
    results: list[Result]
    cost: int
    error: BaseException | None
    """What it was stopped by."""
    began_s: float
    seconds: float


def _free(_job: object) -> int:
    return 0


def _alone(_job: object) -> str:
    return ""


def grouped(
    jobs: Iterable[Job],
    cost: Callable[[Job], int],
    most_jobs: Callable[[], int],
    bundle: Callable[[Job], str] = _alone,
) -> Iterator[tuple[list[Job], list[int]]]:
    """Yield groups of up to `most_jobs()` jobs that cost at most a MiB, or of one that costs more, with the costs.

    Jobs in a row that have the same `bundle`, which is not "", are a group of their own, however many they are.
    """
    group: list[Job] = []
    costs: list[int] = []
    total = 0
    name = ""
    for job in jobs:
        price, wanted = cost(job), bundle(job)
        is_full = not name and (len(group) >= most_jobs() or total + price > BATCH_BYTES)
        if group and (wanted != name or is_full):
            yield group, costs
            group, costs, total = [], [], 0
        name = wanted
        group.append(job)
        costs.append(price)
        total += price
    if group:
        yield group, costs


class Turn:
    """Lets one thread after the other do what is short and full of system calls, with `with`.

    The interpreter's lock is let go of at every system call, and taken again; when threads fight for it each of
    them waits and is woken many times a file. Where only one at a time does its calls, nobody is in its way. No
    thread waits longer than `patience_s`: where calls are slow (a cold disk, a network) it is better to go on together.
    """

    def __init__(self, stages: Stages, patience_s: float = 0.002) -> None:
        self._stages = stages
        self._patience_s = patience_s
        self._lock = threading.Lock()
        self._holder = 0

    def __enter__(self) -> None:
        since_ns = self._stages.now()
        if self._lock.acquire(timeout=self._patience_s):
            self._holder = threading.get_ident()
        self._stages.lap(TURN, since_ns)

    def __exit__(self, *_: object) -> None:
        if self._holder == threading.get_ident():
            self._holder = 0
            self._lock.release()


def beside(work: Callable[[], None], name: str) -> threading.Thread:
    """Start `work` in a thread of its own, which keeps no process from ending, and return it. Raises `Fatal`."""
    thread = threading.Thread(target=work, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError:  # the system gives us no more of them
        raise _no_thread() from None
    return thread


@contextlib.contextmanager
def meanwhile(work: Callable[[], None], name: str, stop: threading.Event) -> Iterator[None]:
    """Have `work` done in a thread while the block goes on; its end waits for it, and raises what it has raised.

    Where `stop` is set meanwhile, or the block fails, the thread is left behind.

    Raises:
        Interrupted: the run was asked to stop.
    """
    errors: list[BaseException] = []

    def noted() -> None:
        try:
            work()
        except BaseException as error:  # it is raised again at the end of the block
            errors.append(error)

    thread = beside(noted, name)
    yield
    while thread.is_alive():
        if stop.is_set():
            raise Interrupted()
        thread.join(LOOK_UP_S)
    for error in errors:
        raise error


class Engine:
    """Runs work on `workers` threads with at most `max_bytes` of content in flight.

    With `auto` there are as many threads as pay, `first` in the beginning and `workers` at most; `pace.workers` tells
    how many those are.
    `stop`, once set (by a signal's handler, say), makes `run` raise `Interrupted`.
    """

    def __init__(
        self,
        workers: int,
        max_bytes: int,
        stop: threading.Event,
        *,
        auto: bool = False,
        first: int = FIRST_WORKERS,
        stages: Stages | None = None,
    ) -> None:
        self.workers = workers
        self.auto = auto
        self.max_bytes = max_bytes
        self.stop = stop
        self.pace = Pace(workers, auto=auto, first=first)
        self._first = first
        self._inner: Engine | None = None
        self.stages = stages or Stages(workers)
        """Where the work notes what its time goes to."""
        self.turn = Turn(self.stages)
        self.queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        """Batches that wait for a thread."""
        self.in_flight = 0
        """Jobs that have been handed to a thread and whose results have not come back."""

    def within(self, max_bytes: int) -> Engine:
        """Return an engine for the pieces of one job of this one, which costs `max_bytes`.

        It begins with as many threads as the one before it has come to.
        """
        first = self._inner.pace.workers if self._inner is not None else self._first
        self._inner = Engine(self.workers, max_bytes, self.stop, auto=self.auto, first=first, stages=self.stages)
        return self._inner

    def apart(self, work: Callable[[], Result]) -> Result:
        """Return `work()`. The main thread has another one do it, and hears a signal while that hangs."""
        if threading.current_thread() is not threading.main_thread():
            return work()
        alone = Engine(1, 0, self.stop)
        ((_, result),) = alone.run([work], lambda batch: [one() for one in batch])
        return result

    def run(
        self,
        jobs: Iterable[Job],
        work: Work[Job, Result],
        *,
        cost: Callable[[Job], int] = _free,
        bundle: Callable[[Job], str] = _alone,
    ) -> Iterator[tuple[Job, Result]]:
        """Yield each job with its result; `cost(job)` is what it holds in memory, in bytes.

        Jobs of the same `bundle`, which follow each other, are one batch; "" is none.
        """
        for batch in self.run_batches(self.batched(jobs, cost, bundle), work):
            yield from batch

    def batched(
        self, jobs: Iterable[Job], cost: Callable[[Job], int], bundle: Callable[[Job], str]
    ) -> Iterator[Batch[Job]]:
        """Yield batches: a bundle; as many jobs as the pace says, which cost at most a MiB; one job that costs more."""
        for batch, costs in grouped(jobs, cost, lambda: self.pace.batch_jobs, bundle):
            yield batch, sum(costs)

    def run_batches(self, batches: Iterator[Batch[Job]], work: Work[Job, Result]) -> Iterator[list[tuple[Job, Result]]]:
        """Yield batches of jobs with the results that `work` has for them, one each, in its order.

        A batch that alone costs more than the budget runs by itself. Closing the iterator stops the threads.
        """
        run: _Run[Job, Result] = _Run(self, work)
        self.pace.look()
        in_haste = True
        try:
            yield from run.results(batches)
            in_haste = False
        except (ItemError, StoreError):  # fails one item, and its files are in use until its threads have ended
            in_haste = False
            raise
        finally:
            run.end(in_haste=in_haste)


class _Run(Generic[Job, Result]):
    """One call of `Engine.run`: its threads and what is under way."""

    def __init__(self, engine: Engine, work: Work[Job, Result]) -> None:
        self._engine = engine
        self._work = work
        self._cancelled = threading.Event()
        self._todo: queue.SimpleQueue[tuple[list[Job], int] | None] = queue.SimpleQueue()
        engine.queue = self._todo
        self._done: queue.SimpleQueue[_Done[Job, Result]] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._serving = 0
        """Threads that have not been told to end."""

    def results(self, batches: Iterator[Batch[Job]]) -> Iterator[list[tuple[Job, Result]]]:
        engine = self._engine
        under_way = bytes_under_way = 0
        waiting = next(batches, None)
        while waiting is not None or under_way:
            self._retire()
            while waiting is not None and under_way < self._wanted():
                batch, cost = waiting
                if under_way and bytes_under_way + cost > engine.max_bytes:
                    break
                self._start(batch, cost, under_way)
                under_way += 1
                bytes_under_way += cost
                engine.in_flight += len(batch)
                waiting = next(batches, None)
            done = self._wait()
            engine.pace.took(len(done.batch), done.cost, done.began_s, done.seconds)
            under_way -= 1
            bytes_under_way -= done.cost
            engine.in_flight -= len(done.batch)
            if done.error is not None:
                raise done.error
            yield list(zip(done.batch, done.results, strict=True))

    def end(self, *, in_haste: bool) -> None:
        """Stop the threads and wait for them: until they have ended, or, in haste or interrupted, for a while.

        A thread that hangs in a request is left behind then: it is a daemon, and what it does is not published.
        """
        self._cancelled.set()
        for _ in range(self._serving):
            self._todo.put(None)
        until_s = 0.0
        for thread in self._threads:
            while thread.is_alive():
                if not until_s and (in_haste or self._engine.stop.is_set()):
                    until_s = time.monotonic() + FAREWELL_S
                left_s = until_s - time.monotonic() if until_s else LOOK_UP_S
                if left_s <= 0:
                    break
                thread.join(min(left_s, LOOK_UP_S))
        self._engine.in_flight = 0

    def _wanted(self) -> int:
        """Return how many batches may be under way: one a thread, and some that wait for one."""
        workers = self._engine.pace.workers
        return workers + min(workers, AHEAD_BATCHES)

    def _start(self, batch: list[Job], cost: int, under_way: int) -> None:
        self._todo.put((batch, cost))
        if self._serving < min(self._engine.pace.workers, under_way + 1):
            new = threading.Thread(target=self._serve, name=f"worker-{len(self._threads)}", daemon=True)
            try:
                new.start()
            except RuntimeError:  # the system gives us no more of them
                if not self._serving:
                    raise _no_thread() from None
                return
            if len(self._threads) >= 2 * self._engine.workers:
                self._threads = [thread for thread in self._threads if thread.is_alive()]
            self._threads.append(new)
            self._serving += 1

    def _retire(self) -> None:
        """Tell threads that are too many to end; each does when it has nothing else to do."""
        while self._serving > self._engine.pace.workers:
            self._todo.put(None)
            self._serving -= 1

    def _wait(self) -> _Done[Job, Result]:
        """Return the next finished batch; looks up now and then, so that a signal can stop a run whose store hangs."""
        while True:
            if self._engine.stop.is_set():
                raise Interrupted()
            try:
                return self._done.get(timeout=LOOK_UP_S)
            except queue.Empty:
                continue

    def _serve(self) -> None:
        while (item := self._todo.get()) is not None:
            batch, cost = item
            results: list[Result] = []
            error: BaseException | None = None
            began_s = time.monotonic()
            try:
                if self._cancelled.is_set():
                    return
                results = self._work(batch)
            except BaseException as raised:  # it is raised again where the results are read
                error = raised
            self._done.put(_Done(batch, results, cost, error, began_s, time.monotonic() - began_s))


def _no_thread() -> Fatal:
    return Fatal("no thread can be started", "raise the limits for processes and memory")
