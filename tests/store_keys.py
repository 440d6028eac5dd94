"""What every store has to do with the names of blobs: refuse the bad ones, and keep the odd ones apart."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from blobark.errors import ConfigError
from blobark.stores.base import MAX_KEY_LENGTH, Store
from tests.store_blobs import names

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


class Naming:
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
