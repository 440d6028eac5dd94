"""`Gate` and `Limit`, on a clock that the test moves; and in `Retrying`, around a real folder store."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from blobark.errors import Interrupted, Throttled
from blobark.stores.folder import FolderStore
from blobark.stores.load import Gate, Limit, Limits
from blobark.stores.retry import Retrying
from tests.in_blocks import InBlocks

MIB = 1 << 20


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def gate(clock: Clock) -> Gate:
    return Gate(threading.Event(), clock=clock)


def crowd(gate: Gate, count: int) -> list[float]:
    return [gate.enter() for _ in range(count)]


def test_a_brake_halves_what_runs_at_a_time(gate: Gate, clock: Clock) -> None:
    entered = crowd(gate, 64)
    clock.now_s += 1
    gate.cut(entered[0])
    assert gate.width == 32


def test_all_calls_that_began_before_a_brake_are_one_brake(gate: Gate, clock: Clock) -> None:
    entered = crowd(gate, 64)
    for late in entered:
        clock.now_s += 2
        gate.cut(late)
        gate.leave(succeeded=False)
    assert gate.width == 32


def test_a_second_brake_counts_a_second_later(gate: Gate, clock: Clock) -> None:
    gate.cut(crowd(gate, 64)[0])
    for _ in range(64):
        gate.leave(succeeded=False)
    clock.now_s += 0.5
    entered = crowd(gate, 20)
    gate.cut(entered[0])
    assert gate.width == 32
    clock.now_s += 0.6
    gate.cut(entered[1])
    assert gate.width == 10


def test_it_never_closes(gate: Gate, clock: Clock) -> None:
    for _ in range(8):
        clock.now_s += 5
        gate.cut(gate.enter())
        gate.leave(succeeded=False)
    assert gate.width == 1
    gate.enter()
    gate.leave(succeeded=True)


def test_successes_widen_it_by_one_a_round(gate: Gate, clock: Clock) -> None:
    gate.cut(crowd(gate, 16)[0])
    for _ in range(16):
        gate.leave(succeeded=False)
    for width in range(8, 12):
        assert gate.width == pytest.approx(width, abs=0.3)
        crowd(gate, width)
        for _ in range(width):
            gate.leave(succeeded=True)
            gate.enter()
        for _ in range(width):
            gate.leave(succeeded=False)


def test_a_gate_that_nobody_crowds_at_does_not_widen(gate: Gate) -> None:
    gate.cut(crowd(gate, 64)[0])
    for _ in range(64):
        gate.leave(succeeded=False)
    for _ in range(1000):
        gate.enter()
        gate.leave(succeeded=True)
    assert gate.width == 32


def test_who_comes_to_a_full_gate_waits(gate: Gate) -> None:
    gate.cut(crowd(gate, 4)[0])
    gate.leave(succeeded=False)
    gate.leave(succeeded=False)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(gate.enter)
        with pytest.raises(TimeoutError):
            waiting.result(0.05)
        gate.leave(succeeded=False)
        waiting.result(10)


def test_stop_ends_a_wait_at_a_gate() -> None:
    stop = threading.Event()
    gate = Gate(stop)
    gate.cut(crowd(gate, 2)[0])
    threading.Timer(0.05, stop.set).start()
    with pytest.raises(Interrupted):
        gate.enter()


def test_a_rate_is_exact_over_any_time(clock: Clock) -> None:
    limit = Limit(10 * MIB, threading.Event(), clock=clock)
    sizes = [4096, 8 * MIB, 100, 3 * MIB, 8 * MIB, 1] * 20
    for size in sizes:
        clock.now_s += max(0.0, limit.reserve(size))
    assert clock.now_s - 100.0 == pytest.approx(sum(sizes) / (10 * MIB), abs=0.26)


def test_a_rate_is_for_all_threads_together(clock: Clock) -> None:
    limit = Limit(5.0, threading.Event(), clock=clock)
    assert [round(limit.reserve(1), 6) for _ in range(10)] == pytest.approx([0.2 * n for n in range(1, 11)])


def test_idle_time_is_not_saved_up(clock: Clock) -> None:
    limit = Limit(100.0, threading.Event(), clock=clock)
    clock.now_s += 3600
    assert limit.reserve(200) == pytest.approx(1.75)


def test_what_is_larger_than_the_rate_waits_and_goes(tmp_path: Path) -> None:
    store = Retrying(FolderStore(str(tmp_path / "s"), create=True), limits=Limits(max_bandwidth=16 * MIB))
    begun = time.monotonic()
    upload = InBlocks(store.begin("a"))
    upload.add(bytes(8 * MIB))
    upload.add(bytes(4 * MIB))
    upload.commit({})
    assert len(store.read("a", 0, 2 * MIB)) == 2 * MIB
    store.put("b", bytes(MIB), {})
    assert len(store.read("b")) == MIB
    assert 0.7 < time.monotonic() - begun < 10


def test_requests_are_counted_and_a_list_is_one(tmp_path: Path) -> None:
    unlimited = FolderStore(str(tmp_path / "s"), create=True)
    for number in range(100):
        unlimited.put(f"key{number}", b"", {})
    store = Retrying(unlimited, limits=Limits(max_requests_per_s=10))
    begun = time.monotonic()
    assert len(list(store.list("key"))) == 100
    assert time.monotonic() - begun < 5  # and not 10
    begun = time.monotonic()
    for number in range(10):
        store.stat(f"key{number}")
    assert 0.5 < time.monotonic() - begun < 5


def test_stop_ends_the_wait_for_a_rate(tmp_path: Path) -> None:
    stop = threading.Event()
    store = Retrying(FolderStore(str(tmp_path), create=True), limits=Limits(max_bandwidth=1), stop=stop)
    threading.Timer(0.05, stop.set).start()
    with pytest.raises(Interrupted):
        store.put("a", bytes(MIB), {})
    assert list(tmp_path.rglob("a*")) == []


class Crowded(FolderStore):
    """A folder store that bears eight calls at a time, and says so to those that are too many."""

    busy = 0
    most = 0
    refused = 0
    lock = threading.Lock()

    def read(self, key: str, offset: int = 0, size_bytes: int | None = None, *, version: str = "") -> bytes:
        with self.lock:
            self.busy += 1
            self.most = max(self.most, self.busy)
            too_many = self.busy > 8
            self.refused += too_many
        try:
            time.sleep(0.002)  # what a call takes
            if too_many:
                raise Throttled("busy")
            return super().read(key, offset, size_bytes)
        finally:
            with self.lock:
                self.busy -= 1


def test_a_busy_store_gets_fewer_calls_at_a_time(tmp_path: Path) -> None:
    crowded = Crowded(str(tmp_path / "s"), create=True)
    store = Retrying(crowded, first_wait_s=0.001, cap_wait_s=0.01)
    store.put("a", b"content", {})
    with ThreadPoolExecutor(64) as pool:
        assert set(pool.map(lambda _: store.read("a"), range(1000))) == {b"content"}
        first = crowded.refused
        assert crowded.most > 8
        crowded.most = 0
        assert set(pool.map(lambda _: store.read("a"), range(500))) == {b"content"}
    assert crowded.most < 64
    assert first > 0
