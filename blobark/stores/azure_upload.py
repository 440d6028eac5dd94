"""`AzureUpload`: a block blob on its way.

A block's id is its digest, so the service's own list of uncommitted blocks tells what an interrupted upload has
sent. Every block is sent with its CRC-64, which the service checks; one that is copied inside the service likewise.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from blobark.errors import BlobarkError, BlobChanged, BlobExists, BlobNotFound, Interrupted, Retryable
from blobark.model import Block, Data
from blobark.stores.azure_rest import Copy, Rest
from blobark.stores.base import check_meta

ID_LENGTH = 64


class AzureUpload:
    """An `Upload` as a list of blocks."""

    def __init__(
        self,
        key: str,
        tier: str,
        rest: Rest,
        call: Callable[..., object],
        staged: Sequence[str],
        *,
        replacing: str = "",
    ) -> None:
        """Take up what is staged already. Raises `BlobExists` when its ids are of another length than ours."""
        if any(len(block_id) != ID_LENGTH for block_id in staged):
            raise BlobExists(f"blocks of another kind are staged under {key}")
        self._key = key
        self._tier = tier
        self._rest = rest
        self._call = call
        self._lock = threading.Lock()
        self._staged = set(staged)
        self._replacing = replacing
        self._refused: set[str] = set()
        """Blobs that the service would not copy from."""

    def stage(self, _offset: int, digest: str, data: Data) -> bool:
        """As `Upload.stage`."""
        if self._is_staged(digest):
            return False
        self._call(self._key, partial(self._rest.stage, self._key, digest, data), creating=not self._replacing)
        self._add(digest)
        return True

    def copy(self, digest: str, data: Data, source: str, source_offset: int) -> bool:
        """As `Upload.copy`."""
        if self._is_staged(digest):
            return True
        if source in self._refused:
            return False
        run = Copy(source, source_offset, data)
        try:
            self._call(self._key, partial(self._rest.copy, self._key, digest, run))
        except (Retryable, Interrupted):
            raise
        except BlobarkError:  # archived, deleted, changed, not allowed: whatever it is, the blocks can be sent
            self._refused.add(source)
            return False
        self._add(digest)
        return True

    def commit(self, blocks: Sequence[Block], meta: Mapping[str, str]) -> None:
        """As `Upload.commit`."""
        check_meta(meta)
        ids = [block.digest for block in blocks]
        work = partial(self._rest.commit, self._key, ids, meta, self._tier, version=self._replacing)
        try:
            self._call(self._key, work, creating=not self._replacing)
        except (BlobExists, BlobNotFound) as error:
            raise BlobChanged(error.message) if self._replacing else error from None

    def abort(self) -> None:
        """As `Upload.abort`; the service drops the blocks after a week."""

    def _is_staged(self, digest: str) -> bool:
        with self._lock:
            return digest in self._staged

    def _add(self, digest: str) -> None:
        with self._lock:
            self._staged.add(digest)
