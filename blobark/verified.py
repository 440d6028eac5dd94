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


def damaged() -> ContentError:
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
    for _ in range(FETCHES):
        data = b"".join(content.pieces(store, server, entry, stages)) if found is None else found
        found = None
        since_ns = stages.now()
        is_right = _is_right(entry, data, md5)
        stages.lap(DECODE, since_ns)
        if is_right:
            return data
    raise damaged()


def _is_right(entry: Entry, data: bytes, md5: str) -> bool:
    """As `Check`, for what is there at once."""
    if entry.digest:
        return source.digest_of(entry, data) == entry.digest
    return not md5 or content.md5_of(data).hex() == md5
