"""`AzureLease`: a lock as a lease on a blob, which the service itself ends a minute after its last renewal.

    acquire   lease the blob; where there is none, make it (create-only, it says nothing) and lease it then
    tell      write who has it into the blob, which only who has the lease can
    renew     as long as nobody else has leased it, be it late
    release   the next one need not wait

Each needs the right to write and no other. A lease is no write: a write-once policy forbids only `tell`, and the lock
works there without a name. The lease's id is the holder's, so a call that is repeated, and who comes after
a process that has ended, get the lease that they have already.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol, TypeVar

import msgspec

from blobark.errors import BlobarkError, BlobExists, BlobNotFound, LockHeld, StoreDenied
from blobark.holder import Holder, read_holder
from blobark.model import Data
from blobark.stores.azure_rest import Refused, Rest
from blobark.stores.base import Store

T = TypeVar("T")

NOBODY = b"{}"
PATIENCE_SHARE = 0.25
"""The service may be silent for such a part of the time that a lease lasts: another try must fit in."""


class Call(Protocol):
    """`AzureStore`'s way to make requests: what they raise becomes an error of ours."""

    def __call__(self, what: str, work: Callable[[], T], /) -> T:
        """Return `work()`."""


class AzureLease:
    """A `Hold` in a container, once it has been acquired."""

    def __init__(self, store: Store, rest: Rest, call: Call, key: str, holder: Holder) -> None:
        """`rest` is the lease's own, whose requests wait for no others."""
        self._store = store
        self._rest = rest
        self._call = call
        self._key = key
        self._holder = holder

    def acquire(self) -> None:
        """Take the lease, and tell who has it. Raises `LockHeld`."""
        try:
            self._acquire()
        except BaseException:
            self._rest.close()
            raise

    def _acquire(self) -> None:
        try:
            self._lease("acquire")
        except BlobNotFound:
            try:
                self._store.put(self._key, NOBODY, {})
            except BlobExists:
                pass  # another run was faster, and may have the lease by now
            self._lease("acquire")
        try:
            told = partial(self._rest.put_leased, self._key, self._holder.id, msgspec.json.encode(self._holder))
            self._call(self._key, told)
        except StoreDenied:
            pass  # the container is write-once

    def renew(self) -> None:
        """As `Hold.renew`."""
        try:
            self._lease("renew")
        except BlobNotFound:
            raise LockHeld(f"the lock {self._key} is not in {self._store.name} any more") from None

    def release(self) -> None:
        """As `Hold.release`."""
        try:
            self._lease("release")
        finally:
            self._rest.close()

    def _lease(self, action: str) -> None:
        work = partial(self._rest.lease, self._key, action, self._holder.id, lasts_s=self._store.lock_s)
        if not self._call(self._key, partial(_is_granted, work)):
            raise LockHeld(f"{self._who()} holds the lock of {self._holder.server} in {self._store.name}")

    def _who(self) -> str:
        """Say who has the lease, as far as the blob tells."""
        try:
            text: Data = self._store.read(self._key)
        except BlobarkError:
            text = NOBODY
        return read_holder(bytes(text)).described or "another run"


def _is_granted(work: Callable[[], None]) -> bool:
    """Whether the service did it, and did not say that the lease is somebody else's."""
    try:
        work()
    except Refused as error:
        if error.status in (409, 412) and error.code.startswith("Lease"):
            return False
        raise
    return True
