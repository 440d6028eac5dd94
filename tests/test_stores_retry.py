"""`Retrying`, around a real folder store that fails by a script."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from blobark.errors import (
    BlobExists,
    BlobNotFound,
    ContentError,
    Interrupted,
    Retryable,
    StoreDenied,
    StoreUnusable,
    Throttled,
)
from blobark.holder import Holder
from blobark.model import Block, Data
from blobark.stores.base import POURED_BYTES, BlobInfo, Greeting, Hold, Priority, Store, Take, Upload
from blobark.stores.folder import FolderStore
from blobark.stores.retry import Retrying
from tests.in_blocks import InBlocks

SOON_S = 10.0
"""What takes a moment takes less, on however busy a machine."""


class Faulty:
    """A store that raises what is next in `script`, if anything, in place of every call or after it has worked."""

    keeps_meta = False
    lists_md5 = True
    lock_s = 60.0
    name = "faulty"

    def __init__(self, store: Store) -> None:
        self.store = store
        self.script: list[BaseException] = []
        self.after: list[BaseException] = []
        self.yields_before_failing = 0
        self.calls = 0

    def next_fault(self) -> None:
        self.calls += 1
        if self.script:
            raise self.script.pop(0)

    def fault_after(self) -> None:
        if self.after:
            raise self.after.pop(0)

    def greet(self) -> Greeting:
        self.next_fault()
        return self.store.greet()

    def hold(self, key: str, holder: Holder) -> Hold:
        self.next_fault()
        return self.store.hold(key, holder)

    def stat(self, key: str) -> BlobInfo:
        self.next_fault()
        return self.store.stat(key)

    def list(self, prefix: str, *, meta: bool = False, times: bool = False) -> Iterator[BlobInfo]:
        for number, blob in enumerate(self.store.list(prefix, meta=meta, times=times)):
            if number >= self.yields_before_failing:
                self.next_fault()
            yield blob
        self.next_fault()

    def archived(self, prefix: str) -> Iterator[BlobInfo]:
        return self.list(prefix)

    def rehydrate(self, key: str, priority: Priority) -> None:
        self.next_fault()

    def read(self, key: str, offset: int = 0, size_bytes: int | None = None, *, version: str = "") -> Data:
        self.next_fault()
        return self.store.read(key, offset, size_bytes, version=version)

    def pour(self, key: str, offset: int, size_bytes: int, take: Take, *, version: str) -> None:
        def fault_or_take(data: Data) -> None:
            self.next_fault()
            take(data)

        self.store.pour(key, offset, size_bytes, fault_or_take, version=version)
        self.fault_after()

    def put(self, key: str, data: Data, meta: Mapping[str, str], *, create_only: bool = True) -> None:
        self.next_fault()
        self.store.put(key, data, meta, create_only=create_only)
        self.fault_after()

    def replace(self, key: str, data: Data, meta: Mapping[str, str], *, version: str) -> None:
        self.next_fault()
        self.store.replace(key, data, meta, version=version)
        self.fault_after()

    def begin(self, key: str, *, replacing: str = "") -> Upload:
        self.next_fault()
        return FaultyUpload(self, self.store.begin(key, replacing=replacing))

    def delete(self, key: str) -> None:
        self.next_fault()
        self.store.delete(key)

    def sync(self) -> None:
        self.next_fault()

    def close(self) -> None:
        self.store.close()


class FaultyUpload:
    def __init__(self, faulty: Faulty, upload: Upload) -> None:
        self.faulty = faulty
        self.upload = upload

    def stage(self, offset: int, digest: str, data: Data) -> bool:
        self.faulty.next_fault()
        return self.upload.stage(offset, digest, data)

    def copy(self, digest: str, data: Data, source: str, source_offset: int) -> bool:
        self.faulty.next_fault()
        return self.upload.copy(digest, data, source, source_offset)

    def commit(self, blocks: Sequence[Block], meta: Mapping[str, str]) -> None:
        self.faulty.next_fault()
        self.upload.commit(blocks, meta)
        self.faulty.fault_after()

    def abort(self) -> None:
        self.upload.abort()


@pytest.fixture
def faulty(tmp_path: Path) -> Faulty:
    return Faulty(FolderStore(str(tmp_path / "store"), create=True))


@pytest.fixture
def store(faulty: Faulty) -> Retrying:
    return Retrying(faulty, first_wait_s=0.001, cap_wait_s=0.004)


def blips(count: int) -> list[BaseException]:
    return [Retryable(f"blip {number}") for number in range(count)]


def test_every_call_is_repeated(faulty: Faulty, store: Retrying) -> None:
    upload = InBlocks(store.begin("upload"))
    calls: list[Callable[[], object]] = [
        lambda: store.put("a", b"x", {}),
        lambda: store.read("a"),
        lambda: store.stat("a"),
        lambda: list(store.list("")),
        lambda: store.delete("a"),
        store.sync,
        lambda: InBlocks(store.begin("b")).abort(),
        lambda: upload.add(b"block"),
        lambda: upload.add(b"block"),
        lambda: upload.commit({}),
        lambda: store.call(lambda: faulty.stat("upload")),
        lambda: store.hold("lock", Holder("1", "web1")),
    ]
    for number, call in enumerate(calls, 1):
        faulty.script = blips(3)
        call()
        assert faulty.script == []
        assert store.counters() == {"retries": 3 * number, "throttled": 0}
    assert store.read("upload") == b"blockblock"


def test_results_and_arguments_pass(store: Retrying) -> None:
    store.put("a", b"0123456789", {})
    store.put("a", b"abcdefghij", {}, create_only=False)
    assert store.read("a", 2, 3) == b"cde"
    assert store.read("a", offset=8) == b"ij"
    assert (store.stat("a").key, store.stat("a").size_bytes) == ("a", 10)
    assert store.read("a", 2, 3, version=store.stat("a").version) == b"cde"
    assert store.counters() == {"retries": 0, "throttled": 0}


@pytest.mark.parametrize("error", [BlobNotFound("x"), BlobExists("x"), ContentError("x"), StoreDenied("x"), OSError()])
def test_other_errors_are_not_repeated(faulty: Faulty, store: Retrying, error: BaseException) -> None:
    faulty.script = [error]
    with pytest.raises(type(error)):
        store.sync()
    faulty.script = [Retryable("first"), error]
    with pytest.raises(type(error)):
        store.sync()
    assert faulty.calls == 3


def test_a_lost_answer_ends_as_exists(faulty: Faulty, store: Retrying) -> None:
    faulty.after = blips(1)
    with pytest.raises(BlobExists):
        store.put("a", b"x", {})
    assert store.read("a") == b"x"


def test_after_the_last_try_it_is_unusable(faulty: Faulty) -> None:
    store = Retrying(faulty, attempts=4, first_wait_s=0.001)
    faulty.script = blips(9)
    with pytest.raises(StoreUnusable, match="faulty keeps failing: blip 3"):
        store.sync()
    assert faulty.calls == 4
    assert len(str(StoreUnusable("x")).splitlines()) == 1


def test_time_is_bounded(faulty: Faulty) -> None:
    store = Retrying(faulty, attempts=10**6, deadline_s=0.3, first_wait_s=0.01, cap_wait_s=0.05)
    store.sync()
    faulty.script = blips(10**4)
    begun = time.monotonic()
    with pytest.raises(StoreUnusable):
        store.sync()
    assert 0.1 < time.monotonic() - begun < SOON_S


def test_a_store_that_never_answered_gets_less_time(faulty: Faulty) -> None:
    store = Retrying(faulty, deadline_s=3600.0, first_deadline_s=0.1, first_wait_s=0.02)
    faulty.script = blips(10**4)
    begun = time.monotonic()
    with pytest.raises(StoreUnusable):
        store.sync()
    assert time.monotonic() - begun < SOON_S


def test_it_waits_as_long_as_the_store_asks(faulty: Faulty, store: Retrying) -> None:
    faulty.script = [Retryable("later", retry_after_s=0.2)]
    begun = time.monotonic()
    store.sync()
    assert 0.2 <= time.monotonic() - begun < SOON_S


def test_a_wait_beyond_the_deadline_is_not_begun(faulty: Faulty, store: Retrying) -> None:
    faulty.script = [Throttled("later", retry_after_s=7200.0)]
    begun = time.monotonic()
    with pytest.raises(StoreUnusable):
        store.sync()
    store.sync()
    assert time.monotonic() - begun < SOON_S


def test_when_throttled_all_threads_slow_down(faulty: Faulty, store: Retrying) -> None:
    faulty.script = [Throttled("slow down", retry_after_s=1.0)]
    begun = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(store.sync)
        while store.counters()["throttled"] == 0:
            time.sleep(0.001)
        others = [pool.submit(store.stat, "nothing") for _ in range(3)]
        for other in others:
            with pytest.raises(BlobNotFound):
                other.result()
            assert time.monotonic() - begun >= 1.0
        first.result()
    assert store.counters() == {"retries": 1, "throttled": 1}
    begun = time.monotonic()
    store.sync()
    assert time.monotonic() - begun < 0.9


def test_stop_ends_a_wait_at_once(faulty: Faulty) -> None:
    stop = threading.Event()
    store = Retrying(faulty, stop=stop)
    faulty.script = [Retryable("later", retry_after_s=20.0), Throttled("slow down", retry_after_s=20.0)]
    threading.Timer(0.1, stop.set).start()
    begun = time.monotonic()
    with pytest.raises(Interrupted):
        store.sync()
    with pytest.raises(Interrupted):
        store.sync()
    with pytest.raises(Interrupted):
        store.sync()
    assert time.monotonic() - begun < SOON_S


def test_a_list_goes_on_where_it_was(faulty: Faulty, store: Retrying) -> None:
    keys = [f"key{number:03}" for number in range(30)]
    for key in keys:
        store.put(key, b"", {})
    for yields in range(31):
        faulty.yields_before_failing = yields
        faulty.script = blips(5)
        assert [blob.key for blob in store.list("key")] == keys
        assert faulty.script == []


def test_what_is_poured_goes_on_where_it_broke_off(faulty: Faulty, store: Retrying) -> None:
    data = os.urandom(3 * POURED_BYTES + 5)
    store.put("a", data, {})
    version, before = store.stat("a").version, faulty.calls
    taken: list[bytes] = []

    def take(piece: Data) -> None:
        taken.append(bytes(piece))
        faulty.script = blips(1) if len(taken) in (1, 3) else []

    faulty.script, faulty.after = blips(2), blips(1)
    store.pour("a", 0, len(data), take, version=version)
    assert b"".join(taken) == data
    assert len(taken) == 4
    assert (faulty.calls - before, store.counters()["retries"]) == (4 + 2 + 2, 2 + 2 + 1)


def test_a_list_that_keeps_failing_ends(faulty: Faulty) -> None:
    store = Retrying(faulty, attempts=3, first_wait_s=0.001)
    store.put("a", b"", {})
    store.put("b", b"", {})
    faulty.yields_before_failing = 1
    faulty.script = blips(9)
    listing = store.list("")
    assert next(listing).key == "a"
    with pytest.raises(StoreUnusable):
        next(listing)


def test_what_is_said_of_the_store_passes(faulty: Faulty, store: Retrying) -> None:
    assert (store.name, store.keeps_meta, store.lists_md5, store.lock_s) == (faulty.name, False, True, 60.0)
