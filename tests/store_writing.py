"""What every store has to do with blobs that come, change and go: put, begin, replace, delete."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from blobark.clock import now_ns
from blobark.errors import BlobChanged, BlobExists, BlobNotFound, ConfigError, ContentError
from blobark.stores.base import BLOCK_SIZE_BYTES, Store
from tests.in_blocks import InBlocks
from tests.store_blobs import META, names


class Writing:
    # put

    @pytest.mark.parametrize("size_bytes", [0, 1, 4096, BLOCK_SIZE_BYTES])
    def test_put_and_read(self, store: Store, open_again: Callable[[], Store], size_bytes: int) -> None:
        data = os.urandom(size_bytes)
        store.put("some", data, {})
        assert store.read("some") == data
        assert open_again().read("some") == data

    @pytest.mark.parametrize("key", ["plain", "nested/key", "ends/in/slash/"])
    def test_create_only_leaves_what_is_there(self, store: Store, key: str) -> None:
        store.put(key, b"first", {})
        with pytest.raises(BlobExists):
            store.put(key, b"second", {})
        assert store.read(key) == b"first"

    @pytest.mark.parametrize("key", ["plain", "nested/key", "ends/in/slash/"])
    def test_put_replaces_when_told_so(self, store: Store, key: str) -> None:
        store.put(key, b"first, and longer", {}, create_only=False)
        store.put(key, b"second", {}, create_only=False)
        assert store.read(key) == b"second"

    @pytest.mark.parametrize("key", ["plain_0a", "nested/key"])
    def test_of_racing_writers_one_wins(self, open_again: Callable[[], Store], key: str) -> None:
        stores = [open_again() for _ in range(4)]
        for turn in range(5):
            start = threading.Barrier(8)

            def write(number: int, turn: int = turn, start: threading.Barrier = start) -> bytes | None:
                data = bytes([number]) * 5000
                start.wait()
                try:
                    stores[number % 4].put(f"{key}{turn}", data, {})
                except BlobExists:
                    return None
                return data

            with ThreadPoolExecutor(8) as pool:
                won = [data for data in pool.map(write, range(8)) if data is not None]
            assert len(won) == 1
            assert stores[0].read(f"{key}{turn}") == won[0]

    def test_no_reader_finds_a_part(self, store: Store, open_again: Callable[[], Store]) -> None:
        contents = [bytes([number]) * (400_000 + number) for number in range(3)]
        store.put("some", contents[0], {})
        done = threading.Event()

        def write() -> None:
            other = open_again()
            for turn in range(30):
                other.put("some", contents[turn % 3], {}, create_only=False)
            done.set()

        with ThreadPoolExecutor(1) as pool:
            writer = pool.submit(write)
            while not done.is_set() and not writer.done():
                assert store.read("some") in contents
            writer.result()

    def test_a_version_pins_the_blob(self, store: Store) -> None:
        store.put("some", b"0123456789", {})
        first = store.stat("some").version
        assert first
        assert store.stat("some").version == first
        assert store.read("some", 2, 3, version=first) == b"234"
        store.put("some", b"9876543210", {}, create_only=False)
        assert store.stat("some").version != first
        with pytest.raises(ContentError):
            store.read("some", 2, 3, version=first)
        assert store.read("some", 2, 3) == b"765"

    def test_what_is_no_metadata_is_refused(self, store: Store) -> None:
        wrong = [{"Upper": "x"}, {"hy-phen": "x"}, {"1st": "x"}, {"": "x"}, {"a": ""}, {"a": " x"}, {"a": "x "}]
        wrong += [{"a": "x\ny"}, {"a": "caf\u00e9"}, {"a": "\udcff"}, {"a": "x\0"}, {"sp ace": "x"}, {"a\n": "x"}]
        for meta in wrong:
            with pytest.raises(ConfigError):
                store.put("some", b"", meta)
            upload = InBlocks(store.begin("some"))
            with pytest.raises(ConfigError):
                upload.commit(meta)
            upload.abort()
        assert names(store.list("")) == []

    # begin

    def test_blocks_become_a_blob(self, store: Store) -> None:
        blocks = [b"one" * 1000, b"two" * 1000, b"one" * 1000, b"", b"3", b"one" * 1000]
        upload = InBlocks(store.begin("blocks"))
        for block in blocks:
            upload.add(block)
        with pytest.raises(BlobNotFound):
            store.stat("blocks")
        with pytest.raises(BlobNotFound):
            store.read("blocks")
        upload.commit(META)
        assert store.read("blocks") == b"".join(blocks)
        assert dict(store.stat("blocks").meta) == (META if store.keeps_meta else {})
        upload.abort()
        assert store.stat("blocks").size_bytes == sum(map(len, blocks))

    @pytest.mark.parametrize("key", ["plain", "nested/key", "ends/in/slash/"])
    def test_an_upload_under_any_key(self, store: Store, key: str) -> None:
        upload = InBlocks(store.begin(key))
        upload.add(b"x")
        upload.commit({})
        assert names(store.list("")) == [key]
        assert store.read(key) == b"x"

    def test_no_blocks_are_an_empty_blob(self, store: Store) -> None:
        InBlocks(store.begin("empty")).commit({})
        assert store.read("empty") == b""

    def test_a_greeting_tells_the_time_if_anything(self, store: Store) -> None:
        greeting = store.greet()
        assert greeting.clock_ns == 0 or abs(greeting.clock_ns - now_ns()) < 60 * 10**9
        assert (greeting.means, greeting.who) == ("", "")

    def test_aborted_blocks_leave_nothing(self, store: Store) -> None:
        upload = InBlocks(store.begin("aborted"))
        upload.add(b"x" * 1000)
        upload.abort()
        upload.abort()
        with pytest.raises(BlobNotFound):
            store.stat("aborted")
        again = InBlocks(store.begin("aborted"))
        again.add(b"new")
        again.commit({})
        assert store.read("aborted") == b"new"

    def test_commit_leaves_what_is_there(self, store: Store) -> None:
        store.put("some", b"first", {})
        upload = InBlocks(store.begin("some"))
        upload.add(b"late")
        with pytest.raises(BlobExists):
            upload.commit({})
        upload.abort()
        assert store.read("some") == b"first"

    def test_of_uploads_under_one_key_one_wins(self, store: Store, open_again: Callable[[], Store]) -> None:
        uploads = [InBlocks(store.begin("some")), InBlocks(open_again().begin("some")), InBlocks(store.begin("some"))]
        for number, upload in enumerate(uploads):
            upload.add(bytes([number]) * 2000)
        uploads[1].commit({})
        for loser in (uploads[0], uploads[2]):
            with pytest.raises(BlobExists):
                loser.commit({})
            loser.abort()
        assert store.read("some") == bytes([1]) * 2000

    # replace

    @pytest.mark.parametrize("key", ["plain", "nested/key", "ends/in/slash/"])
    def test_one_version_is_replaced(self, store: Store, key: str) -> None:
        store.put(key, b"damaged, and longer", {"old": "1"})
        store.replace(key, b"right", META, version=store.stat(key).version)
        assert store.read(key) == b"right"
        assert dict(store.stat(key).meta) == (META if store.keeps_meta else {})

    def test_another_version_stays(self, store: Store) -> None:
        store.put("some", b"damaged", {})
        version = store.stat("some").version
        store.put("some", b"written since", {}, create_only=False)
        with pytest.raises(BlobChanged):
            store.replace("some", b"right", {}, version=version)
        assert store.read("some") == b"written since"
        store.delete("some")
        with pytest.raises(BlobChanged):
            store.replace("some", b"right", {}, version=version)
        with pytest.raises(BlobNotFound):
            store.stat("some")

    def test_a_version_is_replaced_in_blocks(self, store: Store) -> None:
        store.put("some", b"damaged", {})
        version = store.stat("some").version
        uploads = [InBlocks(store.begin("some", replacing=version)) for _ in range(2)]
        for number, upload in enumerate(uploads):
            upload.add(b"one" * 1000)
            upload.add(bytes([number]) * 1000)
        assert store.read("some") == b"damaged"
        uploads[1].commit(META)
        with pytest.raises(BlobChanged):
            uploads[0].commit({})
        uploads[0].abort()
        assert store.read("some") == b"one" * 1000 + b"\1" * 1000
        assert dict(store.stat("some").meta) == (META if store.keeps_meta else {})

    def test_of_racing_replacements_one_wins(self, store: Store, open_again: Callable[[], Store]) -> None:
        stores = [open_again() for _ in range(4)]
        for turn in range(5):
            store.put(f"some{turn}", b"damaged", {})
            version = store.stat(f"some{turn}").version
            start = threading.Barrier(4)

            def write(
                number: int, turn: int = turn, version: str = version, start: threading.Barrier = start
            ) -> bytes | None:
                data = bytes([number]) * 5000
                start.wait()
                try:
                    stores[number].replace(f"some{turn}", data, {}, version=version)
                except BlobChanged:
                    return None
                return data

            with ThreadPoolExecutor(4) as pool:
                won = [data for data in pool.map(write, range(4)) if data is not None]
            assert len(won) == 1
            assert store.read(f"some{turn}") == won[0]

    # delete

    @pytest.mark.parametrize("key", ["plain", "nested/key", "ends/in/slash/"])
    def test_deleted_is_gone(self, store: Store, key: str) -> None:
        store.put(key, b"x", {})
        store.delete(key)
        with pytest.raises(BlobNotFound):
            store.stat(key)
        with pytest.raises(BlobNotFound):
            store.read(key)
        assert names(store.list("")) == []
        store.delete(key)
        store.put(key, b"again", {})
        assert store.read(key) == b"again"

    def test_delete_of_nothing_is_no_error(self, store: Store) -> None:
        store.delete("nothing")
        store.delete("nothing/at/all")

    def test_delete_takes_one_blob_only(self, store: Store) -> None:
        for key in ("a", "a/", "a/b", "ab"):
            store.put(key, b"", {})
        store.delete("a")
        store.delete("a/")
        assert names(store.list("")) == ["a/b", "ab"]
