"""What every store has to do: one test for each sentence of `blobark.stores.base`.

They are here and in store_blobs.py, store_writing.py, store_keys.py and store_locks.py. A class of tests for one store
derives from `StoreSuite` and says in the fixture `open_again` how it is opened.
"""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from blobark.errors import BlobExists, BlobNotFound, ContentError
from blobark.stores.base import Store
from tests.store_blobs import Looking, names
from tests.store_keys import Naming
from tests.store_locks import Locking
from tests.store_pouring import Pouring
from tests.store_writing import Writing


class StoreSuite(Looking, Pouring, Writing, Naming, Locking):
    @pytest.fixture
    def open_again(self) -> Callable[[], Store]:
        """Open the test's place once more; every call gives a store of its own."""
        raise NotImplementedError

    @pytest.fixture
    def store(self, open_again: Callable[[], Store]) -> Iterator[Store]:
        store = open_again()
        yield store
        store.close()

    # threads, the end, errors

    def test_many_threads_at_once(self, store: Store) -> None:
        def work(number: int) -> None:
            draw = random.Random(number)
            for turn in range(12):
                key = f"{draw.choice(['t', 'blobark/t', 'blobark/u/v'])}{number}_{turn}"
                data = draw.randbytes(draw.randrange(20_000))
                store.put(key, data, {})
                assert store.read(key) == data
                assert store.stat(key).size_bytes == len(data)
                assert key in names(store.list(key[:-1]))
                if turn % 3 == 0:
                    store.delete(key)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(8)))
        assert len(names(store.list(""))) == 8 * 8

    def test_sync_and_close(self, store: Store) -> None:
        store.put("some", b"x", {})
        store.sync()
        store.sync()
        store.close()
        store.close()

    def test_errors_survive_pickling(self, store: Store) -> None:
        store.put("some", b"x", {})
        calls: list[Callable[[], object]] = [
            lambda: store.stat("nothing"),
            lambda: store.put("some", b"", {}),
            lambda: store.read("some", 5),
        ]
        for call in calls:
            with pytest.raises((BlobNotFound, BlobExists, ContentError)) as caught:
                call()
            copy = pickle.loads(pickle.dumps(caught.value))
            assert (type(copy), str(copy)) == (type(caught.value), str(caught.value))
            assert "some" in str(copy) or "nothing" in str(copy)

    def test_the_name_is_for_people(self, store: Store) -> None:
        assert store.name
        assert "Key" not in store.name
