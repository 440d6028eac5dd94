"""What the time of a run's threads goes to: for each stage its seconds and a histogram, for each size of file as well.

Whoever does the work notes it:

    since = stages.now()
    data = ...
    since = stages.lap(REQUEST, since)
    check(data)
    since = stages.lap(DECODE, since)

A lap costs a third of a microsecond (`bench/run.py sampler` shows it). Each thread has a row of its own to count in, so
nobody waits for anybody; the rows lie in memory that forked processes share, so nothing has to be sent either.

A histogram's buckets are fixed: from 1 us to two hours, four to each doubling. Sizes have one bucket a doubling.
"""

from __future__ import annotations

import contextlib
import mmap
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

from metrics.under_way import UnderWay

STAGES: Final = ("held", "request", "decode", "read", "write", "metadata", "compare", "turn", "receive")
"""Held back by a limit, the store's brake or the pause before a repetition; one try of a call of the store, from
sending it to the first bytes of the answer; decoding and digesting; reading the source; writing content; directories,
owners, modes, times, names; comparing with what is in place; waiting for one's turn; receiving an answer's rest."""
HELD, REQUEST, DECODE, READ, WRITE, METADATA, COMPARE, TURN, RECEIVE = range(len(STAGES))

_SMALLEST_BITS: Final = 10
_OCTAVES: Final = 33
_BUCKETS: Final = 4 * _OCTAVES + 1
_SIZES: Final = 50
_MOVED: Final = len(STAGES)
_TOTALS: Final = len(STAGES) + 1
_HISTOGRAMS: Final = _BUCKETS * len(STAGES)
_CELLS: Final = _HISTOGRAMS + 2 * _SIZES
_BYTES: Final = 8

Result = TypeVar("Result")

now = time.perf_counter_ns


class Stages:
    """The counts of one run, in all its processes. `threads` is how many of them may count at a time.

    Threads beyond that share a row, and may lose a count when two of them write it at the very same moment.
    """

    def __init__(self, threads: int) -> None:
        self._rows = 2 * threads + 16
        memory = memoryview(mmap.mmap(-1, self._rows * (_TOTALS + _CELLS) * _BYTES)).cast("q")
        # The totals lie together, so that reading them every second touches few pages.
        self._totals, self._cells = memory[: self._rows * _TOTALS], memory[self._rows * _TOTALS :]
        self.under_way = UnderWay(self._rows)
        """What each thread has in hand."""
        self.share(0, 1)

    def share(self, number: int, of: int) -> None:
        """Count in the part with this `number` of so many; for a process that was just forked and has one thread."""
        self._free = list(range(number, self._rows, of))
        self._mine = _Row(self)

    def now(self) -> int:
        """Return a moment, in nanoseconds, to give to `lap`."""
        return now()

    def lap(self, stage: int, since_ns: int) -> int:
        """Count the time since then for a stage; return the moment that it ended."""
        ended_ns = now()
        took_ns = ended_ns - since_ns
        totals, cells = self._mine.row
        totals[stage] += took_ns
        # The bits of a number give its octave, the two below the highest one its quarter.
        bits = took_ns.bit_length()
        if bits <= _SMALLEST_BITS:
            cells[stage * _BUCKETS] += 1
        elif bits < _SMALLEST_BITS + _OCTAVES:
            cells[stage * _BUCKETS + 4 * (bits - _SMALLEST_BITS) - 7 + (took_ns >> (bits - 3))] += 1
        else:
            cells[stage * _BUCKETS + _BUCKETS - 1] += 1
        return ended_ns

    def took(self, stage: int | None, work: Callable[..., Result], *args: Any) -> tuple[Result, int]:
        """Return what `work(*args)` returns, and its nanoseconds; count them for a stage, unless that is None."""
        since_ns = now()
        result = work(*args)
        return result, (now() if stage is None else self.lap(stage, since_ns)) - since_ns

    def repeated(self) -> None:
        """Count a call of the store that this thread repeats."""
        self._mine.repeats += 1

    def received(self, since_ns: int) -> None:
        """Count the time since then for the rest of an answer, or a part of it; it is no part of the request's."""
        self._mine.received_ns += self.lap(RECEIVE, since_ns) - since_ns

    def passed_on(self, since_ns: int) -> None:
        """Take the time since then, in which somebody worked on a part of the answer, off the request's."""
        self._mine.received_ns += now() - since_ns

    @property
    def received_ns(self) -> int:
        """How long this thread has received such, and passed it on."""
        return self._mine.received_ns

    @property
    def repeats(self) -> int:
        """How many calls this thread has repeated."""
        return self._mine.repeats

    @contextlib.contextmanager
    def timed(self, stage: int) -> Iterator[None]:
        """Count the time of a block for a stage, however it ends."""
        since_ns = now()
        try:
            yield
        finally:
            self.lap(stage, since_ns)

    def moved(self, size_bytes: int) -> None:
        """Count bytes of content that a request has sent or brought."""
        self._mine.row[0][_MOVED] += size_bytes

    def item(self, size_bytes: int, took_ns: int) -> None:
        """Count a file of this size that took so long."""
        cells = self._mine.row[1]
        at = _HISTOGRAMS + 2 * min(size_bytes.bit_length(), _SIZES - 1)
        cells[at] += 1
        cells[at + 1] += took_ns

    def begin(self, name: bytes, size_bytes: int, others: int = 0) -> None:
        """Say what this thread works on from now on: an item, and so many others together with it."""
        name = b"%b and %d more" % (name, others) if others else name
        self.under_way.begin(self._mine.number, name, size_bytes)

    def progress(self, size_bytes: int) -> None:
        """Say that so much more of it is done; for what takes long."""
        self.under_way.add(self._mine.number, size_bytes)

    def rest(self) -> None:
        """Say that this thread has nothing in hand."""
        self.under_way.end(self._mine.number)

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each stage, in all threads together."""
        return {name: round(sum(self._totals[place::_TOTALS]) / 1e9, 6) for place, name in enumerate(STAGES)}

    def moved_bytes(self) -> int:
        """Return the bytes that requests have sent or brought."""
        return sum(self._totals[_MOVED::_TOTALS])

    def count(self, stage: int) -> int:
        """Return how often a stage was gone through."""
        return sum(self._sums(stage * _BUCKETS, _BUCKETS))

    def histograms(self) -> dict[str, dict[str, Any]]:
        """Return for each stage `count`, `seconds`, and `buckets`: [up to so many seconds, count], without empty ones.

        A bucket begins where the one before it ends, four of them to each doubling.
        """
        found: dict[str, dict[str, Any]] = {}
        for place, (name, seconds) in enumerate(self.seconds().items()):
            counts = self._sums(place * _BUCKETS, _BUCKETS)
            buckets = [[_upper_s(bucket), number] for bucket, number in enumerate(counts) if number]
            found[name] = {"count": sum(counts), "seconds": seconds, "buckets": buckets}
        return found

    def sizes(self) -> list[list[float]]:
        """Return [smaller than so many bytes, files, their seconds] for each doubling of sizes that there was."""
        sums = self._sums(_HISTOGRAMS, 2 * _SIZES)
        rows = enumerate(zip(sums[::2], sums[1::2], strict=True))
        return [[1 << bits, files, round(ns / 1e9, 6)] for bits, (files, ns) in rows if files]

    def _sums(self, first: int, length: int) -> list[int]:
        """Sum the cells over the rows, which are looked at only where somebody has counted in them."""
        used = [row for row in range(self._rows) if any(self._totals[row * _TOTALS : (row + 1) * _TOTALS])]
        parts = [self._cells[row * _CELLS + first :][:length] for row in used]
        return [sum(column) for column in zip([0] * length, *parts, strict=True)]

    def _lease(self) -> _Lease:
        try:
            return _Lease(self._free, self._free.pop())
        except IndexError:
            return _Lease([], 0)

    def _views(self, row: int) -> tuple[memoryview, memoryview]:
        totals = self._totals[row * _TOTALS : (row + 1) * _TOTALS]
        return totals, self._cells[row * _CELLS : (row + 1) * _CELLS]


class _Row(threading.local):
    """This thread's row."""

    def __init__(self, stages: Stages) -> None:
        self.lease = stages._lease()  # noqa: SLF001 - both are one thing in two scopes
        self.number = self.lease.row
        self.row = stages._views(self.number)  # noqa: SLF001
        self.repeats = 0
        self.received_ns = 0


class _Lease:
    """A row that somebody else may go on counting in when its thread has ended."""

    def __init__(self, free: list[int], row: int) -> None:
        self._free = free
        self.row = row

    def __del__(self) -> None:
        self._free.append(self.row)


def _upper_s(bucket: int) -> float:
    """Return where a bucket ends."""
    octave, quarter = divmod(bucket + 3, 4)
    return (1 << (octave + _SMALLEST_BITS - 1)) * (5 + quarter) / 4 / 1e9 if bucket else (1 << _SMALLEST_BITS) / 1e9
