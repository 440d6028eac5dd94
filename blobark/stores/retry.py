"""`Retrying`: a store that repeats the calls of another one which failed in passing. Nothing else retries.

    failed with Retryable -> wait uniform(0, min(cap, first * 2^n)), at least what the store asked for -> again
    Throttled             -> besides, every thread waits before its next call, until the time the store asked for;
                             and from then on fewer calls are made at a time, until they succeed (load.py)
    out of time or tries  -> StoreUnusable, with the last failure in one line

What a person allows, in bytes and in requests a second, is waited for here too: every try counts. A call that
succeeds at once costs two microseconds more than without. A store that has not answered yet gets
less time than one that did, so that a typing mistake in an address is told in seconds and a broken line is sat out.
What the calls promise stays as it is: a create-only `put` whose answer was lost ends as `BlobExists`.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Protocol, TypeVar

from blobark.errors import Interrupted, Retryable, StoreUnusable, Throttled
from blobark.holder import Holder
from blobark.model import Block, Data
from blobark.stores.base import PAGE_BLOBS, BlobInfo, Greeting, Hold, Priority, Store, Take, Upload
from blobark.stores.load import NO_LIMITS, Gate, Limit, Limits
from metrics.stages import HELD, REQUEST, Stages

T = TypeVar("T")

LEAST_HELD_NS = 100_000
"""Less than 0.1 ms before a call is not being held back."""


class Caller(Protocol):
    """Does some work, perhaps on another thread, and returns what it returns."""

    def __call__(self, work: Callable[[], T], /) -> T:
        """Return `work()`."""


def here(work: Callable[[], T], /) -> T:
    """Return `work()`."""
    return work()


class Retrying:
    """A `Store` around a `Store`.

    `deadline_s` and `attempts` bound one call from its first failure on; `first_deadline_s` takes the place of
    `deadline_s` while nothing has been answered yet. `first_wait_s` and `cap_wait_s` shape the waits. Calls, and
    pages of lists, are requests of `limits`. Setting `stop` ends every wait with `Interrupted`. `caller` makes each
    call of the other store. `stages` gets to know how long each try took, and how long calls were held back.
    """

    def __init__(  # noqa: PLR0913 - each has its default, and its place in one loop
        self,
        store: Store,
        *,
        attempts: int = 40,
        deadline_s: float = 300.0,
        first_deadline_s: float = 30.0,
        first_wait_s: float = 0.25,
        cap_wait_s: float = 20.0,
        limits: Limits = NO_LIMITS,
        stop: threading.Event | None = None,
        caller: Caller = here,
        stages: Stages | None = None,
    ) -> None:
        self._store = store
        self.keeps_meta = store.keeps_meta
        self.lists_md5 = store.lists_md5
        self.lock_s = store.lock_s
        self.name = store.name
        self._attempts = attempts
        self._deadline_s = deadline_s
        self._first_deadline_s = first_deadline_s
        self._first_wait_s = first_wait_s
        self._cap_wait_s = cap_wait_s
        self._stop = stop or threading.Event()
        self._caller = caller
        self._stages = stages or Stages(1)
        self._gate = Gate(self._stop)
        self._bytes = Limit(limits.max_bandwidth, self._stop) if limits.max_bandwidth else None
        self._requests = Limit(limits.max_requests_per_s, self._stop) if limits.max_requests_per_s else None
        self._lock = threading.Lock()
        self._reached = False
        self._quiet_until = 0.0
        self._retries = 0
        self._throttled = 0

    def counters(self) -> dict[str, int]:
        """Return how many calls were repeated so far, and how many of the failures were the store's brake."""
        with self._lock:
            return {"retries": self._retries, "throttled": self._throttled}

    def call(self, work: Callable[[], T], *, size_bytes: int = 0) -> T:
        """Return `work()`, repeated while it raises `Retryable`; each try moves `size_bytes`."""
        try:
            return self._once(work, size_bytes)
        except Retryable as error:
            return self._again(error, lambda: self._once(work, size_bytes))

    def greet(self) -> Greeting:
        """As `Store.greet`."""
        return self.call(self._store.greet)

    def stat(self, key: str) -> BlobInfo:
        """As `Store.stat`."""
        return self.call(lambda: self._store.stat(key))

    def read(self, key: str, offset: int = 0, size_bytes: int | None = None, *, version: str = "") -> Data:
        """As `Store.read`."""
        data = self.call(lambda: self._store.read(key, offset, size_bytes, version=version), size_bytes=size_bytes or 0)
        self._stages.moved(len(data))
        if size_bytes is None and self._bytes is not None:
            self._bytes.pay(len(data))  # its length was not known before
        return data

    def pour(self, key: str, offset: int, size_bytes: int, take: Take, *, version: str) -> None:
        """As `Store.pour`. After a failure it goes on where that was."""
        done = 0

        def taken(data: Data) -> None:
            nonlocal done
            since_ns = self._stages.now()
            take(data)
            self._stages.passed_on(since_ns)
            done += len(data)

        def rest() -> None:
            self._store.pour(key, offset + done, size_bytes - done, taken, version=version)

        self.call(rest, size_bytes=size_bytes)
        self._stages.moved(size_bytes)

    def put(self, key: str, data: Data, meta: Mapping[str, str], *, create_only: bool = True) -> None:
        """As `Store.put`."""
        self.call(lambda: self._store.put(key, data, meta, create_only=create_only), size_bytes=len(data))
        self._stages.moved(len(data))

    def replace(self, key: str, data: Data, meta: Mapping[str, str], *, version: str) -> None:
        """As `Store.replace`; one whose answer was lost ends as `BlobChanged`."""
        self.call(lambda: self._store.replace(key, data, meta, version=version), size_bytes=len(data))
        self._stages.moved(len(data))

    def begin(self, key: str, *, replacing: str = "") -> Upload:
        """As `Store.begin`."""
        upload = self.call(lambda: self._store.begin(key, replacing=replacing))
        return _RetryingUpload(self, upload, self._stages)

    def delete(self, key: str) -> None:
        """As `Store.delete`."""
        self.call(lambda: self._store.delete(key))

    def hold(self, key: str, holder: Holder) -> Hold:
        """As `Store.hold`. What holds it is not repeated, and waits at no gate: it has a deadline."""
        return self.call(lambda: self._store.hold(key, holder))

    def sync(self) -> None:
        """As `Store.sync`."""
        self.call(self._store.sync)

    def close(self) -> None:
        """As `Store.close`."""
        self._store.close()

    def list(self, prefix: str, *, meta: bool = False, times: bool = False) -> Iterator[BlobInfo]:
        """As `Store.list`. After a failure it starts again and passes over what was yielded."""
        return self._listing(lambda: self._store.list(prefix, meta=meta, times=times))

    def archived(self, prefix: str) -> Iterator[BlobInfo]:
        """As `Store.archived`; after a failure like `list`."""
        return self._listing(lambda: self._store.archived(prefix))

    def rehydrate(self, key: str, priority: Priority) -> None:
        """As `Store.rehydrate`."""
        self.call(lambda: self._store.rehydrate(key, priority))

    def _listing(self, start: Callable[[], Iterator[BlobInfo]]) -> Iterator[BlobInfo]:
        last = ""
        listing: Iterator[BlobInfo] | None = None

        def following() -> list[BlobInfo]:
            nonlocal listing
            if listing is None:
                listing = (blob for blob in start() if blob.key > last)
            page: list[BlobInfo] = []
            try:
                for blob in islice(listing, PAGE_BLOBS):
                    page.append(blob)  # noqa: PERF402 - what came before a failure stays
            except Retryable:
                listing = None
                if not page:  # else it has come nearer its end, and the next call begins anew
                    raise
            return page

        while page := self.call(following):
            last = page[-1].key
            yield from page

    def _once(self, work: Callable[[], T], size_bytes: int) -> T:
        """Try once, when the store, the gate and the limits let it."""
        since_ns = self._stages.now()
        if self._requests is not None:
            self._requests.pay(1)
        if self._bytes is not None and size_bytes:
            self._bytes.pay(size_bytes)
        entered_s = self._gate.enter()
        succeeded = False
        try:
            if self._quiet_until:
                self._keep_quiet()
            asked_ns = self._stages.now()
            if asked_ns - since_ns > LEAST_HELD_NS:
                self._stages.lap(HELD, since_ns)
            received_ns = self._stages.received_ns
            try:
                result = self._caller(work)
            finally:
                self._stages.lap(REQUEST, asked_ns + self._stages.received_ns - received_ns)
            self._reached = succeeded = True
        except Throttled:
            self._reached = True  # it has answered, if only that it is busy
            self._gate.cut(entered_s)
            raise
        finally:
            self._gate.leave(succeeded=succeeded)
        return result

    def _again(self, error: Retryable, work: Callable[[], T]) -> T:
        """Repeat `work` after `error` until it succeeds, fails otherwise, or time or tries are over."""
        begun = time.monotonic()
        for attempt in range(1, self._attempts):
            wait_s = self._wait_after(error, attempt)
            limit_s = self._deadline_s if self._reached else self._first_deadline_s
            if time.monotonic() + wait_s - begun > limit_s:
                break
            with self._stages.timed(HELD):
                if self._stop.wait(wait_s):
                    raise Interrupted()
            try:
                return work()
            except Retryable as again:
                error = again
        raise StoreUnusable(f"{self.name} keeps failing: {error.message}", error.hint)

    def _wait_after(self, error: Retryable, attempt: int) -> float:
        """Return how long this call waits, and make the others wait too when the store has put on the brake."""
        longest_s = min(self._cap_wait_s, self._first_wait_s * 2.0 ** min(attempt - 1, 30))
        wait_s = max(random.uniform(0.0, longest_s), error.retry_after_s)
        throttled = isinstance(error, Throttled)
        self._stages.repeated()
        with self._lock:
            self._retries += 1
            self._throttled += throttled
            if throttled and wait_s < self._deadline_s:
                self._quiet_until = max(self._quiet_until, time.monotonic() + wait_s)
        return wait_s

    def _keep_quiet(self) -> None:
        """Wait until the store may be asked again, and a little longer, lest all threads come at once."""
        left_s = self._quiet_until - time.monotonic()
        if left_s <= 0:
            self._quiet_until = 0.0
        elif self._stop.wait(left_s + random.uniform(0.0, left_s / 4)):
            raise Interrupted()


class _RetryingUpload:
    """An `Upload` whose calls are repeated like others."""

    def __init__(self, retrying: Retrying, upload: Upload, stages: Stages) -> None:
        self._retrying = retrying
        self._upload = upload
        self._stages = stages

    def stage(self, offset: int, digest: str, data: Data) -> bool:
        """As `Upload.stage`."""
        is_sent = self._retrying.call(lambda: self._upload.stage(offset, digest, data), size_bytes=len(data))
        self._stages.moved(len(data) if is_sent else 0)
        return is_sent

    def copy(self, digest: str, data: Data, source: str, source_offset: int) -> bool:
        """As `Upload.copy`."""
        return self._retrying.call(lambda: self._upload.copy(digest, data, source, source_offset))

    def commit(self, blocks: Sequence[Block], meta: Mapping[str, str]) -> None:
        """As `Upload.commit`."""
        self._retrying.call(lambda: self._upload.commit(blocks, meta))

    def abort(self) -> None:
        """As `Upload.abort`."""
        self._upload.abort()
