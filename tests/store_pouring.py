"""What every store does when content is poured: given as it comes, little at a time."""

from __future__ import annotations

import os

import pytest

from blobark.errors import BlobNotFound, ContentError
from blobark.stores.base import POURED_BYTES, Store


class Pouring:
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
