"""`AzureStore`: a container of Azure Blob Storage.

Three ways to the service, by what a request costs. Everything that happens once a file goes through obstore, at a tenth
of the SDK's CPU: put, get, range get, the metadata of one blob. Blocks and the list of blobs, which obstore does not
have in full, are requests of our own (azure_rest.py). The rest goes through the SDK (azure_control.py): keys that end
in `/` (obstore drops the slash), delete, tiers, the container itself. The retries of all are off.

Each blob sent in one piece gets an MD5 from the service, which `list` returns; each block is sent with its own, and is
named by its content: its id is the BLAKE3 digest.

Secrets stay inside: not in `name`, in no error, in no log record of the libraries, and the store refuses to be pickled.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

import obstore
import obstore.exceptions
from obstore.store import AzureStore as Client

from blobark.errors import BlobarkError, BlobExists, BlobNotFound, ConfigError, ContentError, StoreDenied, StoreUnusable
from blobark.stores.azure_account import Account, Connections, check_container, parse_connection_string
from blobark.stores.azure_entra import trusted_roots
from blobark.stores.azure_errors import translate
from blobark.stores.base import BlobInfo, Greeting, Priority, Upload, check_key, check_meta

if TYPE_CHECKING:
    from obstore import Attributes, GetOptions, PutMode
    from obstore.store import AzureConfig, AzureCredentialProvider, ClientConfig

    from blobark.stores.azure_control import Control
    from blobark.stores.azure_rest import Rest

T = TypeVar("T")
Page = Callable[[str], tuple[list[BlobInfo], str]]
"""Returns the blobs of the page at a marker, and the next page's marker."""

QUICK_PUT_BYTES = 256 * 1024
"""A put up to this size has the read timeout; a longer one has `PATIENCE` times as long, whatever the line."""

PATIENCE = 10

OWN_PREFIX = "blobark/"

_NO_HIERARCHY = "use an account without a hierarchical namespace"


class AzureStore:
    """A `Store` in one container of an account.

    `workers` is the number of threads that will use it. `read_timeout_s` bounds the silence of the service.
    `access_tier` is that of the content it stores ("": the account's own), and what archived content comes back to.
    """

    keeps_meta = True
    lists_md5 = True

    def __init__(
        self,
        account: Account,
        container: str,
        *,
        workers: int = 16,
        connect_timeout_s: float = 20.0,
        read_timeout_s: float = 30.0,
        access_tier: str = "",
    ) -> None:
        """Nothing is asked of the service yet. Raises `ConfigError`."""
        self.name = f"{account.endpoint}/{check_container(container)}"
        self._tier = access_tier.capitalize()
        self._account = account
        self._container = container
        self._connections = Connections(workers, connect_timeout_s, read_timeout_s)
        self._quick = self._client({"read_timeout": timedelta(seconds=read_timeout_s), "timeout": timedelta(hours=12)})
        # obstore's read timeout runs while a body is being sent, so a long put has a timeout of another kind.
        self._patient = self._client({"timeout": timedelta(seconds=read_timeout_s * PATIENCE)})
        self._lock = threading.Lock()
        self._made_control: Control | None = None
        self._made_rest: Rest | None = None

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
        clock_ns = self._call("the service's clock", self._rest().service_time_ns)
        tokens = self._account.tokens
        return Greeting(clock_ns, tokens.means, tokens.who()) if tokens else Greeting(clock_ns)

    def stat(self, key: str) -> BlobInfo:
        """As `Store.stat`. Knows no MD5 but for keys that end in `/`; `list` does."""
        if check_key(key).endswith("/"):
            return self._stat_by_sdk(key)
        try:
            return self._info(key, {"head": True})
        except (BlobNotFound, StoreDenied, StoreUnusable):
            pass  # the answer to a HEAD has no body and so no code, which would say what is missing
        return self._info(key, {"range": (0, 1)})

    def read(self, key: str, offset: int = 0, size_bytes: int | None = None, *, version: str = "") -> bytes:
        """As `Store.read`."""
        check_key(key)
        if size_bytes == 0:
            return b""
        if key.endswith("/"):
            data = self._call(key, partial(self._download_by_sdk, key, offset, size_bytes))
        elif version and size_bytes is not None:
            data = self._call(key, partial(self._download_version, key, offset, size_bytes, version))
        elif size_bytes is not None:
            data = self._call(key, partial(self._download_range, key, offset, size_bytes))
        else:
            data = self._call(key, partial(self._download, key, offset))
        if (size_bytes is not None and len(data) != size_bytes) or (offset and not data):
            raise ContentError(f"{key} at {self.name} has {offset + len(data)} bytes, and more were asked for")
        return data

    def put(self, key: str, data: bytes, meta: Mapping[str, str], *, create_only: bool = True) -> None:
        """As `Store.put`."""
        check_key(key)
        check_meta(meta)
        work: Callable[[], object]
        if key.endswith("/"):
            work = partial(self._control().put, key, data, meta, self._tier_of(key), overwrite=not create_only)
        else:
            client = self._quick if len(data) <= QUICK_PUT_BYTES else self._patient
            mode: PutMode = "create" if create_only else "overwrite"
            # The names of metadata are no attributes that obstore knows, and so become metadata.
            tier = self._tier_of(key)
            attributes = cast("Attributes", {**meta, "Storage-Class": tier} if tier else meta)
            work = partial(obstore.put, client, key, data, attributes=attributes, mode=mode, use_multipart=False)
        self._call(key, work, creating=create_only)

    def begin(self, key: str) -> Upload:
        """As `Store.begin`. Blocks that are never committed vanish from the service after a week."""
        from blobark.stores.azure_upload import AzureUpload

        rest = self._rest()
        try:
            staged = self._call(key, partial(rest.uncommitted, check_key(key)))
        except StoreDenied:  # who may write and not read sends all of them
            staged = []
        return AzureUpload(key, self._tier_of(key), rest, self._call, staged)

    def delete(self, key: str) -> None:
        """As `Store.delete`."""
        try:
            self._call(key, partial(self._control().container.delete_blob, check_key(key)))
        except BlobNotFound:
            pass

    def list(self, prefix: str, *, meta: bool = False, times: bool = False) -> Iterator[BlobInfo]:
        """As `Store.list`, a page of names in memory at a time.

        Below `blobark/` lie only Blobark's own blobs, whose keys never end in a slash: there obstore will do.
        """
        if prefix.startswith(OWN_PREFIX) and prefix.endswith("/") and not meta and not times:
            return self._list_own(prefix)
        return self._list(lambda marker: self._rest().page(prefix, marker, meta=meta))

    def archived(self, prefix: str) -> Iterator[BlobInfo]:
        """As `Store.archived`."""
        return self._list(lambda marker: self._rest().archived(prefix, marker))

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

    def _list_own(self, prefix: str) -> Iterator[BlobInfo]:
        pages = obstore.list(self._quick, prefix, chunk_size=5000)
        while page := self._call("the list of blobs", lambda: next(pages, None)):
            yield from (BlobInfo(found["path"], found["size"]) for found in page)

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

    def sync(self) -> None:
        """As `Store.sync`: what the service has confirmed it keeps."""

    def close(self) -> None:
        """As `Store.close`."""
        with self._lock:
            if self._made_control is not None:
                self._made_control.close()
            if self._made_rest is not None:
                self._made_rest.close()
            if self._account.tokens is not None:
                self._account.tokens.close()

    def _call(self, what: str, work: Callable[[], T], *, creating: bool = False) -> T:
        """Return `work()`, or raise our error for what it raised, without a chain to that."""
        if self._account.tokens is not None:
            self._account.tokens.fresh()  # here, since what obstore asks for a token it cannot tell us how that failed
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

    def _info(self, key: str, options: GetOptions) -> BlobInfo:
        found = self._call(key, partial(obstore.get, self._quick, key, options=options))
        # The service's own attributes, such as Content-Type, have a hyphen; metadata cannot.
        meta = {name: value for name, value in found.attributes.items() if "-" not in name}
        return BlobInfo(key, found.meta["size"], "", cast("Mapping[str, str]", meta), found.meta["e_tag"] or "")

    def _stat_by_sdk(self, key: str) -> BlobInfo:
        found = self._call(key, self._control().blob(key).get_blob_properties)
        md5 = found.content_settings.content_md5
        return BlobInfo(key, found.size, bytes(md5).hex() if md5 else "", dict(found.metadata))

    def _download(self, key: str, offset: int) -> bytes:
        options: GetOptions | None = {"range": {"offset": offset}} if offset else None
        return bytes(obstore.get(self._quick, key, options=options).bytes())

    def _download_range(self, key: str, offset: int, size_bytes: int) -> bytes:
        return bytes(obstore.get_range(self._quick, key, start=offset, length=size_bytes))

    def _download_version(self, key: str, offset: int, size_bytes: int, version: str) -> bytes:
        options: GetOptions = {"range": (offset, offset + size_bytes), "if_match": version}
        try:
            return bytes(obstore.get(self._quick, key, options=options).bytes())
        except obstore.exceptions.PreconditionError:
            raise ContentError(f"{key} at {self.name} has been written again") from None

    def _download_by_sdk(self, key: str, offset: int, size_bytes: int | None) -> bytes:
        return self._control().container.download_blob(key, offset=offset, length=size_bytes).readall()

    def _client(self, options: ClientConfig) -> Client:
        """Return a client of obstore. What the environment could set in its place is set here."""
        account = self._account
        config: AzureConfig = {
            "account_name": account.name,
            "endpoint": account.endpoint,
            "credential_type": "auto" if account.tokens else "sas_token" if account.sas else "access_key",
            "skip_signature": False,
            "use_emulator": False,
            "use_fabric_endpoint": False,
        }
        if account.sas:
            config["sas_key"] = account.sas
        elif account.key:
            config["account_key"] = account.key
        options |= {
            "allow_http": account.is_plain_http,
            "connect_timeout": timedelta(seconds=self._connections.connect_timeout_s),
            "pool_max_idle_per_host": str(self._connections.workers),
        }
        if roots := trusted_roots():
            options["root_certificate"] = _read_roots(roots)
        tokens = account.tokens
        try:
            return Client(
                self._container,
                config=config,
                client_options=options,
                retry_config={"max_retries": 0},
                credential_provider=cast("AzureCredentialProvider", tokens.for_obstore) if tokens else None,
            )
        except obstore.exceptions.BaseError:
            raise ConfigError("the account, or what opens it, does not suit Azure Storage") from None

    def _control(self) -> Control:
        """Return what works through the SDK, made when first asked for."""
        with self._lock:
            if self._made_control is None:
                from blobark.stores.azure_control import Control

                self._made_control = Control(self._account, self._container, self._connections)
            return self._made_control

    def _rest(self) -> Rest:
        """Return what makes requests of our own, made when first asked for."""
        with self._lock:
            if self._made_rest is None:
                from blobark.stores.azure_rest import Rest

                self._made_rest = Rest(self._account, self._container, self._connections)
            return self._made_rest


def _read_roots(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise ConfigError(
            f"the certificates in {path} cannot be read ({error.strerror})", "see REQUESTS_CA_BUNDLE and SSL_CERT_FILE"
        ) from None
