"""What every store has to do: one test for each sentence of `blobark.stores.base`.

A class of tests for one store derives from `StoreSuite` and says in the fixture `open_again` how it is opened.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from msgspec.structs import replace

from blobark.clock import now_ns
from blobark.errors import BlobChanged, BlobExists, BlobNotFound, ConfigError, ContentError, LockHeld
from blobark.holder import Holder, this_process
from blobark.stores.azure import AzureStore
from blobark.stores.base import BLOCK_SIZE_BYTES, MAX_KEY_LENGTH, POURED_BYTES, BlobInfo, Store
from blobark.stores.folder import FolderStore
from tests.in_blocks import InBlocks

META = {"blobark_entry": "eyJhIjoxfQ==", "hdi_isfolder": "true", "_x9": "a b;c=d,e%20"}

BAD_KEYS = [
    "",
    "/",
    "/a",
    "a//b",
    "a//",
    ".",
    "..",
    "a/../b",
    "./a",
    "a/.",
    "a/./b",
    "a/..",
    "a/../",
    "back\\slash",
    "new\nline",
    "nul\0",
    "caf\u00e9",
    "\udcff",
    "\x7f",
    "x" * (MAX_KEY_LENGTH + 1),
]

ODD_KEYS = [
    "a",
    "a/",
    "a/b",
    "a/b/",
    "a/b/c",
    "a-b",
    "a.b",
    "a0",
    "A",
    "ab/x",
    "ab/ab",
    "ab",
    ".hidden",
    ".hidden/.x",
    "..x",
    "...",
    "dot.",
    "dot./x.",
    ".tmp/x",
    "%25",
    "%",
    "b%",
    "a/b%",
    "a/%",
    "%long/x",
    "%61b/x",
    "x.blob",
    "x.blob/y",
    "x",
    "x/y",
    "x.blob/",
    "sp ace/ /x ",
    " lead",
    "trail ",
    '<>:"|?*',
    "!#$&'()+,;=@[]^`{}~",
    "0123456789/0123456789",
    "con/aux",
    "part" * 60,
    "part" * 60 + "/x",
    "." + "x." * 200,
    "x" * MAX_KEY_LENGTH,
    "d/" * 250,
    "<" * MAX_KEY_LENGTH,
]


def names(listing: Iterator[BlobInfo]) -> list[str]:
    return [blob.key for blob in listing]


LOCK = "blobark/web1/lock"


def stranger(command: str) -> Holder:
    """A process on another machine, of which only the lock itself can tell whether it lives."""
    return replace(this_process(str(uuid.uuid4()), "web1", command), host="elsewhere", pid=7, boot="another")


class StoreSuite:
    thousands = 5300
    """How many names are listed: more than fit into one answer of a service."""

    @pytest.fixture
    def open_again(self) -> Callable[[], Store]:
        """Open the test's place once more; every call gives a store of its own."""
        raise NotImplementedError

    @pytest.fixture
    def short_locks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let the test's stores have locks that are soon lost: Azure's last 15 s at least."""
        monkeypatch.setattr(FolderStore, "lock_s", 1.0)
        monkeypatch.setattr(AzureStore, "lock_s", 15.0)

    @pytest.fixture
    def store(self, open_again: Callable[[], Store]) -> Iterator[Store]:
        store = open_again()
        yield store
        store.close()

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

    # pour

    @pytest.mark.parametrize("size_bytes", [1, POURED_BYTES, POURED_BYTES + 1, 3 * POURED_BYTES])
    def test_what_is_poured_comes_in_order_and_little_at_a_time(self, store: Store, size_bytes: int) -> None:
        data = os.urandom(size_bytes + 20)
        store.put("some", data, {})
        pieces: list[bytes] = []
        store.pour("some", 7, size_bytes, lambda piece: pieces.append(bytes(piece)), version=store.stat("some").version)
        assert b"".join(pieces) == data[7 : 7 + size_bytes]
        assert all(0 < len(piece) <= POURED_BYTES for piece in pieces)

    def test_nothing_is_poured_of_what_is_not_there(self, store: Store) -> None:
        pieces: list[object] = []
        store.pour("nothing", 7, 0, pieces.append, version="x")
        with pytest.raises((BlobNotFound, ContentError)):
            store.pour("nothing", 7, 1, pieces.append, version="x")
        assert pieces == []

    def test_pouring_past_the_end(self, store: Store) -> None:
        store.put("some", b"0123456789", {})
        for offset, size_bytes in [(0, 11), (9, 2), (10, 1), (1000, 1000)]:
            with pytest.raises(ContentError):
                store.pour("some", offset, size_bytes, lambda _: None, version=store.stat("some").version)

    def test_what_is_poured_is_of_one_version(self, store: Store) -> None:
        store.put("some", b"0123456789", {})
        first = store.stat("some").version
        store.put("some", b"9876543210", {}, create_only=False)
        pieces: list[object] = []
        with pytest.raises(ContentError):
            store.pour("some", 2, 3, pieces.append, version=first)
        assert pieces == []

    @pytest.mark.parametrize("error", [OSError(28, "full"), ValueError("a mistake"), TimeoutError()])
    def test_the_error_of_who_takes_comes_through(self, store: Store, error: Exception) -> None:
        store.put("some", bytes(3 * POURED_BYTES), {})
        version = store.stat("some").version

        def refuse(_: object) -> None:
            raise error

        with pytest.raises(type(error)) as raised:
            store.pour("some", 0, 3 * POURED_BYTES, refuse, version=version)
        assert raised.value is error
        assert store.read("some", 0, 3) == bytes(3)

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

    # keys

    @pytest.mark.parametrize("key", BAD_KEYS)
    def test_a_bad_key_is_refused_by_every_method(self, store: Store, key: str) -> None:
        calls: list[Callable[[], object]] = [
            lambda: store.stat(key),
            lambda: store.read(key),
            lambda: store.read(key, 0, 0),
            lambda: store.put(key, b"", {}),
            lambda: store.put(key, b"", {}, create_only=False),
            lambda: store.replace(key, b"", {}, version="x"),
            lambda: store.begin(key),
            lambda: store.delete(key),
        ]
        for call in calls:
            with pytest.raises(ConfigError):
                call()
        assert names(store.list("")) == []

    def test_no_two_keys_are_one_blob(self, store: Store) -> None:
        for key in ODD_KEYS:
            store.put(key, key.encode(), {})
        assert names(store.list("")) == sorted(ODD_KEYS)
        for key in ODD_KEYS:
            assert store.read(key) == key.encode()
            assert store.stat(key).size_bytes == len(key)
        for prefix in ["a", "a/", "a/b", ".", "%", "x.", "part", "d/" * 100, "d/" * 100 + "d", "<", "x" * 500]:
            assert names(store.list(prefix)) == sorted(key for key in ODD_KEYS if key.startswith(prefix)), prefix
        for key in ODD_KEYS:
            store.delete(key)
        assert names(store.list("")) == []

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
