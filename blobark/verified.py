"""Content that is compared with its digest: of small files before anybody gets it, of large streams when they end."""

from __future__ import annotations

import hashlib

from blobark import content, source
from blobark.errors import ContentError
from blobark.model import Data, Entry
from blobark.stores.base import Store
from metrics.stages import DECODE, Stages

FETCHES = 2
"""How often content whose digest is wrong is fetched before it is given up."""


class Check:
    """Compares content, as it arrives, with its digest; where only a map names it, with the store's MD5, if any."""

    def __init__(self, entry: Entry, md5: str = "") -> None:
        self._wanted = entry.digest or md5
        self._hasher = source.content_hasher(entry) if entry.digest or not md5 else hashlib.md5(usedforsecurity=False)

    def update(self, data: Data) -> None:
        """Take the next piece."""
        self._hasher.update(data)

    def is_right(self) -> bool:
        """Whether all that came has the digest that it should."""
        return not self._wanted or self._hasher.hexdigest() == self._wanted

    def error(self) -> ContentError:
        """Return what to raise when it has not."""
        return ContentError("its content in the store is damaged: it has another digest than it was saved with")


def small(
    store: Store, server: str, entry: Entry, stages: Stages, *, md5: str = "", found: bytes | ContentError | None = None
) -> bytes:
    """Return the content of a small file; `found` is what has been fetched already.

    Raises `ContentError` where it cannot be had, or is not what was saved.
    """
    if isinstance(found, ContentError):
        raise found
    for fetch in range(1, FETCHES + 1):
        check = Check(entry, md5)
        data = b"".join(content.pieces(store, server, entry, stages)) if found is None else found
        found = None
        since_ns = stages.now()
        check.update(data)
        is_right = check.is_right()
        stages.lap(DECODE, since_ns)
        if is_right:
            return data
        if fetch == FETCHES:
            raise check.error()
    raise AssertionError("FETCHES is positive")
