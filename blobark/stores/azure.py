"""`AzureStore`: a container of Azure Blob Storage.

Two ways to the service. What happens once a file, a block or a page of a list is a request of our own (azure_rest.py),
at a hundredth of the SDK's CPU. What is rare goes through the SDK (azure_control.py): the container itself, and tiers.

Each blob sent in one piece gets an MD5 from the service, which `list` returns; each block is sent with its own, and is
named by its content: its id is the BLAKE3 digest.

Secrets stay inside: not in `name`, in no error, in no log record of the libraries, and the store refuses to be pickled.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from blobark.errors import (
    BlobarkError,
    BlobChanged,
    BlobExists,
    BlobNotFound,
    ContentError,
    StoreDenied,
    StoreUnusable,
)
from blobark.holder import Holder
from blobark.model import Data
from blobark.stores.azure_account import Account, Connections, check_container, parse_connection_string
from blobark.stores.azure_errors import translate
from blobark.stores.azure_rest import Rest
from blobark.stores.base import BlobInfo, Greeting, Hold, Priority, Take, Upload, check_key, check_meta
from blobark.stores.http import Poured
from metrics.stages import Stages

if TYPE_CHECKING:
    from blobark.stores.azure_control import Control

T = TypeVar("T")
Page = Callable[[str], tuple[list[BlobInfo], str]]
"""Returns the blobs of the page at a marker, and the next page's marker."""

OWN_PREFIX = "blobark/"

_NO_HIERARCHY = "use an account without a hierarchical namespace"


class AzureStore:
    """A `Store` in one container of an account.

    `workers` is the number of threads that will use it. `read_timeout_s` bounds the silence of the service.
    `access_tier` is that of the content it stores ("": the account's own), and what archived content comes back to.
    `stages` gets to know how long the answers take.
    """

    keeps_meta = True
    lists_md5 = True
    lock_s = 60.0

    def __init__(
        self,
        account: Account,
        container: str,
        *,
        workers: int = 16,
        connect_timeout_s: float = 20.0,
        read_timeout_s: float = 30.0,
        access_tier: str = "",
        stages: Stages | None = None,
    ) -> None:
        """Nothing is asked of the service yet. Raises `ConfigError`."""
        self.name = f"{account.endpoint}/{check_container(container)}"
        self._tier = access_tier.capitalize()
        self._account = account
        self._container = container
        self._connections = Connections(workers, connect_timeout_s, read_timeout_s, stages)
        self._rest = Rest(account, container, self._connections)
        self._lock = threading.Lock()
        self._made_control: Control | None = None

    @classmethod
    def from_connection_string(cls, connection_string: str, container: str, **options: Any) -> AzureStore:
        """Return the store that a connection string opens. Raises `ConfigError`."""
        return cls(parse_connection_string(connection_string), container, **options)

    def __reduce__(self) -> str | tuple[object, ...]:
        """Refuse to be pickled: the secret must not travel."""
        raise TypeError("an Azure store cannot be pickled; open it again where it is needed")

    def __repr__(self) -> str:
        return f"AzureStore({self.name!r})"

    def greet(self) -> Greeting:
        """As `Store.greet`. The clock comes with whatever the service answers to a request without credentials."""
        clock_ns = self._call("the service's clock", self._rest.service_time_ns)
        tokens = self._account.tokens
        if tokens is None:
            return Greeting(clock_ns)
        who = tokens.who()
        return Greeting(clock_ns, tokens.means, who)

    def stat(self, key: str) -> BlobInfo:
        """As `Store.stat`."""
        return self._call(key, partial(self._rest.stat, check_key(key)))

    def read(self, key: str, offset: int = 0, size_bytes: int | None = None, *, version: str = "") -> Data:
        """As `Store.read`."""
        check_key(key)
        if size_bytes == 0:
            return b""
        span = f"{offset}-" if offset else ""
        if size_bytes is not None:
            span = f"{offset}-{offset + size_bytes - 1}"
        try:
            data = self._call(key, partial(self._rest.get, key, span, version))
        except BlobExists:  # as the service says that what it has is not what was hoped for
            raise ContentError(f"{key} at {self.name} has been written again") from None
        if (size_bytes is not None and len(data) != size_bytes) or (offset and not data):
            raise ContentError(f"{key} at {self.name} has {offset + len(data)} bytes, and more were asked for")
        return data

    def pour(self, key: str, offset: int, size_bytes: int, take: Take, *, version: str) -> None:
        """As `Store.pour`."""
        check_key(key)
        if size_bytes == 0:
            return
        try:
            came = self._call(key, partial(self._rest.pour, key, offset, Poured(size_bytes, take), version))
        except BlobExists:  # as the service says that what it has is not what was hoped for
            raise ContentError(f"{key} at {self.name} has been written again") from None
        if came != size_bytes:
            raise ContentError(f"{key} at {self.name} has {offset + came} bytes, and more were asked for")

    def put(self, key: str, data: Data, meta: Mapping[str, str], *, create_only: bool = True) -> None:
        """As `Store.put`."""
        check_key(key)
        check_meta(meta)
        put = partial(self._rest.put, key, data, meta, self._tier_of(key), create_only=create_only)
        self._call(key, put, creating=create_only)

    def replace(self, key: str, data: Data, meta: Mapping[str, str], *, version: str) -> None:
        """As `Store.replace`."""
        check_key(key)
        check_meta(meta)
        put = partial(self._rest.put, key, data, meta, self._tier_of(key), create_only=False, version=version)
        try:
            self._call(key, put)
        except (BlobExists, BlobNotFound):
            raise BlobChanged(f"{key} at {self.name} has been written again, or is gone") from None

    def begin(self, key: str, *, replacing: str = "") -> Upload:
        """As `Store.begin`. Blocks that are never committed vanish from the service after a week."""
        from blobark.stores.azure_upload import AzureUpload

        try:
            staged = self._call(key, partial(self._rest.uncommitted, check_key(key)))
        except StoreDenied:  # who may write and not read sends all of them
            staged = []
        return AzureUpload(key, self._tier_of(key), self._rest, self._call, staged, replacing=replacing)

    def delete(self, key: str) -> None:
        """As `Store.delete`."""
        try:
            self._call(key, partial(self._rest.delete, check_key(key)))
        except BlobNotFound:
            pass

    def list(self, prefix: str, *, meta: bool = False, times: bool = False) -> Iterator[BlobInfo]:  # noqa: ARG002
        """As `Store.list`, a page of names in memory at a time. The service tells the times unasked."""
        return self._list(lambda marker: self._rest.page(prefix, marker, meta=meta))

    def archived(self, prefix: str) -> Iterator[BlobInfo]:
        """As `Store.archived`."""
        return self._list(lambda marker: self._rest.archived(prefix, marker))

    def rehydrate(self, key: str, priority: Priority) -> None:
        """As `Store.rehydrate`; the blob becomes one of the tier that content is stored in, or hot."""
        tier = self._tier if self._tier not in ("", "Archive") else "Hot"
        try:
            self._call(key, partial(self._control().set_tier, check_key(key), tier, priority))
        except ContentError:
            pass  # it is on its way, with another priority

    def _tier_of(self, key: str) -> str:
        """Return the tier that a blob is to be stored in: content's own, the account's ("") for what must stay near."""
        return "" if key.startswith(OWN_PREFIX) else self._tier

    def _list(self, page: Page) -> Iterator[BlobInfo]:
        last, marker, more = "", "", True
        while more:
            blobs, marker = self._call("the list of blobs", partial(page, marker))
            for blob in blobs:
                if blob.key <= last:
                    raise StoreUnusable(f"{self.name} lists its blobs in an order of its own", _NO_HIERARCHY)
                last = blob.key
                yield blob
            more = bool(marker)

    def create_container(self) -> None:
        """Make the container unless it is there. A SAS without the right to is enough when it is."""
        try:
            self._call("a new container", self._control().container.create_container)
        except BlobExists:
            pass
        except StoreDenied:
            try:
                next(self.list("blobark/"), None)
            except BlobarkError:
                pass
            else:
                return
            raise

    def hold(self, key: str, holder: Holder, /) -> Hold:
        """As `Store.hold`: a lease on a blob; see `stores.azure_lease`."""
        from blobark.stores.azure_lease import PATIENCE_SHARE, AzureLease

        timeout_s = min(self.lock_s * PATIENCE_SHARE, self._connections.read_timeout_s)
        rest = Rest(self._account, self._container, Connections(1, timeout_s, timeout_s))
        lease = AzureLease(self, rest, self._call, check_key(key), holder)
        lease.acquire()
        return lease

    def sync(self) -> None:
        """As `Store.sync`: what the service has confirmed it keeps."""

    def close(self) -> None:
        """As `Store.close`."""
        with self._lock:
            if self._made_control is not None:
                self._made_control.close()
        self._rest.close()
        if self._account.tokens is not None:
            self._account.tokens.close()

    def _call(self, what: str, work: Callable[[], T], *, creating: bool = False) -> T:
        """Return `work()`, or raise our error for what it raised, without a chain to that."""
        try:
            return work()
        except BaseException as error:
            ours = translate(error, what, self._account, self.name, creating=creating)
            if ours is None:
                raise
            failed = [ours]
            del ours
        # No variable refers to the error when it goes: error, frame and the data in it would be tied to a knot.
        raise failed.pop()

    def _control(self) -> Control:
        """Return what works through the SDK, made when first asked for."""
        with self._lock:
            if self._made_control is None:
                from blobark.stores.azure_control import Control

                self._made_control = Control(self._account, self._container, self._connections)
            return self._made_control
