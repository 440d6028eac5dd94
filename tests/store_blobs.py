"""What every store has to do with blobs that are there: stat, list, read."""

from __future__ import annotations

import hashlib
import os
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from blobark.errors import BlobNotFound, ContentError
from blobark.stores.base import BLOCK_SIZE_BYTES, BlobInfo, Store
from tests.in_blocks import InBlocks

META = {"blobark_entry": "eyJhIjoxfQ==", "hdi_isfolder": "true", "_x9": "a b;c=d,e%20"}


def names(listing: Iterator[BlobInfo]) -> list[str]:
    return [blob.key for blob in listing]


class Looking:
    thousands = 5300
    """How many names are listed: more than fit into one answer of a service."""

    # stat

    def test_stat_of_nothing(self, store: Store) -> None:
        with pytest.raises(BlobNotFound):
            store.stat("nothing")

    @pytest.mark.parametrize("size_bytes", [0, 1, 4096, 300_000])
    def test_stat_tells_key_and_size(self, store: Store, size_bytes: int) -> None:
        store.put("some", os.urandom(size_bytes), {})
        found = store.stat("some")
        assert (found.key, found.size_bytes) == ("some", size_bytes)

    @pytest.mark.parametrize("key", ["plain", "nested/key", "ends/in/slash/"])
    def test_metadata_comes_back_where_it_is_kept(self, store: Store, key: str) -> None:
        store.put(key, b"x", META)
        assert dict(store.stat(key).meta) == (META if store.keeps_meta else {})

    def test_metadata_is_replaced_with_the_blob(self, store: Store) -> None:
        store.put("some", b"x", META)
        store.put("some", b"y", {"other": "1"}, create_only=False)
        assert dict(store.stat("some").meta) == ({"other": "1"} if store.keeps_meta else {})

    def test_md5_is_right_where_it_is_known(self, store: Store) -> None:
        store.put("some", b"content", {})
        right = hashlib.md5(b"content").hexdigest()
        assert store.stat("some").md5 in ("", right)
        assert next(store.list("some")).md5 in ("", right)

    def test_a_list_tells_the_md5_of_all_that_was_put_where_it_does(self, store: Store) -> None:
        contents = {f"some-{size}": os.urandom(size) for size in (0, 1, 4096, BLOCK_SIZE_BYTES)}
        for key, data in contents.items():
            store.put(key, data, META)
        right = {key: hashlib.md5(data).hexdigest() if store.lists_md5 else "" for key, data in contents.items()}
        assert {blob.key: blob.md5 for blob in store.list("some-")} == right

    # list

    def test_list_of_nothing(self, store: Store) -> None:
        assert names(store.list("")) == []
        assert names(store.list("a/")) == []

    def test_list_tells_sizes_and_no_metadata(self, store: Store) -> None:
        store.put("a", b"12345", META)
        store.put("b", b"", META)
        assert [(blob.key, blob.size_bytes, dict(blob.meta)) for blob in store.list("")] == [("a", 5, {}), ("b", 0, {})]

    def test_list_tells_metadata_when_asked(self, store: Store) -> None:
        store.put("a", b"12345", META)
        store.put("b", b"", {})
        store.put("blobark/c", b"", META)
        expected = META if store.keeps_meta else {}
        listed = [(blob.key, dict(blob.meta)) for blob in store.list("", meta=True)]
        assert listed == [("a", expected), ("b", {}), ("blobark/c", expected)]
        assert [dict(blob.meta) for blob in store.list("blobark/", meta=True)] == [expected]
        now_ns = time.time_ns()
        created = {blob.created_ns for blob in store.list("", meta=True)}
        assert all(made_ns == 0 or abs(now_ns - made_ns) < 60e9 for made_ns in created)

    def test_nothing_is_archived_that_was_not_sent_there(self, store: Store) -> None:
        store.put("a", b"12345", META)
        assert list(store.archived("")) == []
        assert not next(store.list("")).is_archived

    def test_prefix_may_end_inside_a_name(self, store: Store) -> None:
        keys = ["web1_0a-1", "web1_0a-2", "web1_0b-1", "web10_0a", "web1/x", "web1", "blobark/web1/lock", "blobark/web"]
        for key in keys:
            store.put(key, b"", {})
        for prefix in ["", "w", "web1", "web1_", "web1_0a", "web1_0a-2", "blob", "blobark/", "blobark/w", "web1/", "z"]:
            assert names(store.list(prefix)) == sorted(key for key in keys if key.startswith(prefix)), prefix

    def test_blobs_on_their_way_are_not_listed(self, store: Store) -> None:
        upload = InBlocks(store.begin("coming"))
        upload.add(b"x" * 1000)
        assert names(store.list("")) == []
        upload.abort()
        assert names(store.list("")) == []

    def test_list_of_thousands_is_in_order(self, store: Store) -> None:
        draw = random.Random(5)
        keys = {f"web{draw.randrange(12)}_{draw.getrandbits(128):032x}" for _ in range(self.thousands)}
        keys |= {f"blobark/web1/snapshots/{number:010}" for number in range(120)}
        shuffled = draw.sample(sorted(keys), len(keys))
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda key: store.put(key, b"", {}), shuffled))
        assert names(store.list("")) == sorted(keys)
        assert names(store.list("web1")) == sorted(key for key in keys if key.startswith("web1"))
        listing = store.list("web")
        assert next(listing).key == min(key for key in keys if key.startswith("web"))

    # read

    def test_read_of_nothing(self, store: Store) -> None:
        with pytest.raises(BlobNotFound):
            store.read("nothing")
        with pytest.raises(BlobNotFound):
            store.read("nothing", 3, 4)

    @pytest.mark.parametrize("key", ["plain", "ends/in/slash/"])
    def test_read_returns_exactly_what_was_asked_for(self, store: Store, key: str) -> None:
        data = os.urandom(10_000)
        store.put(key, data, {})
        assert store.read(key) == data
        assert type(store.read(key)) is bytes
        for offset, size_bytes in [(0, 10_000), (0, 1), (9_999, 1), (1, 9_998), (4_000, 123), (5, 0), (0, 0)]:
            assert store.read(key, offset, size_bytes) == data[offset : offset + size_bytes]
        assert store.read(key, 9_000) == data[9_000:]

    @pytest.mark.parametrize("key", ["plain", "ends/in/slash/"])
    def test_read_past_the_end(self, store: Store, key: str) -> None:
        store.put(key, b"0123456789", {})
        for offset, size_bytes in [(0, 11), (9, 2), (10, 1), (11, 1), (1000, 1000)]:
            with pytest.raises(ContentError):
                store.read(key, offset, size_bytes)
        for offset in (10, 11):
            with pytest.raises(ContentError):
                store.read(key, offset)

    def test_read_past_the_end_of_an_empty_blob(self, store: Store) -> None:
        store.put("empty", b"", {})
        assert store.read("empty") == b""
        for offset, size_bytes in [(0, 1), (1, 1)]:
            with pytest.raises(ContentError):
                store.read("empty", offset, size_bytes)

    def test_nothing_is_asked_for_no_bytes(self, store: Store) -> None:
        assert store.read("nothing", 7, 0) == b""
