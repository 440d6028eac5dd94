"""What every store has to do with locks: hold."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from msgspec.structs import replace

from blobark.errors import LockHeld
from blobark.holder import Holder, this_process
from blobark.stores.azure import AzureStore
from blobark.stores.base import Store
from blobark.stores.folder import FolderStore
from tests.store_blobs import names

LOCK = "blobark/web1/lock"


def stranger(command: str) -> Holder:
    """A process on another machine, of which only the lock itself can tell whether it lives."""
    return replace(this_process(str(uuid.uuid4()), "web1", command), host="elsewhere", pid=7, boot="another")


class Locking:
    @pytest.fixture
    def short_locks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let the test's stores have locks that are soon lost: Azure's last 15 s at least."""
        monkeypatch.setattr(FolderStore, "lock_s", 1.0)
        monkeypatch.setattr(AzureStore, "lock_s", 15.0)

    # hold

    def test_a_lock_has_one_holder_who_is_named(self, store: Store, open_again: Callable[[], Store]) -> None:
        other = open_again()
        hold = store.hold(LOCK, stranger("save"))
        for taker in (other, store):
            with pytest.raises(LockHeld, match=r"^save on elsewhere \(process 7\) since .* holds the lock of web1 in "):
                taker.hold(LOCK, stranger("backup"))
        hold.renew()
        hold.release()
        again = other.hold(LOCK, stranger("backup"))
        with pytest.raises(LockHeld, match="backup on elsewhere"):
            hold.renew()
        again.renew()
        again.release()
        other.close()

    def test_a_lock_is_had_again_by_who_has_it(self, store: Store) -> None:
        holder = stranger("save")
        for _ in range(3):
            store.hold(LOCK, holder).renew()

    def test_of_many_takers_one_gets_the_lock(self, store: Store) -> None:
        def take(_: int) -> bool:
            barrier.wait()
            try:
                store.hold(LOCK, stranger("save"))
            except LockHeld:
                return False
            return True

        for winners in (1, 0):
            barrier = threading.Barrier(8)
            with ThreadPoolExecutor(8) as pool:
                assert sum(pool.map(take, range(8))) == winners

    def test_a_silent_holder_loses_the_lock_to_one_taker(self, short_locks: None, store: Store) -> None:
        silent, late = store.hold(LOCK, stranger("save")), store.hold("blobark/web2/lock", stranger("save"))
        taken: list[str] = []

        def take(number: int) -> None:
            while not taken:
                try:
                    store.hold(LOCK, stranger(f"taker {number}"))
                    taken.append(str(number))
                except LockHeld:
                    time.sleep(store.lock_s / 50)

        begun_s = time.monotonic()
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(take, range(4)))
        assert len(taken) == 1
        assert store.lock_s * 0.9 < time.monotonic() - begun_s < store.lock_s * 2 + 5
        with pytest.raises(LockHeld, match="taker"):
            silent.renew()
        late.renew()
        with pytest.raises(LockHeld):
            store.hold("blobark/web2/lock", stranger("save"))

    def test_a_lock_is_no_blob_that_is_in_the_way(self, store: Store) -> None:
        store.put("blobark/web1/locksmith", b"x", {})
        store.hold(LOCK, stranger("save")).release()
        own = [key for key in names(store.list("blobark/web1/")) if key == LOCK or key.startswith(f"{LOCK}/")]
        assert len(own) == 1
        assert names(store.list("")) == sorted([*own, "blobark/web1/locksmith"])
