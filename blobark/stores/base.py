"""The contract of a store: a flat set of blobs under string keys.

Each sentence of the docstrings below has a test in tests/store_suite.py, which runs on every store.
Implementations raise the errors of `blobark.errors` and no other: each has one `translate` that maps its
library's errors, and no class of that library leaves its file. None of them retries: `stores.retry` does.

A key is 1 to 1,024 characters of printable ASCII without backslash; it may hold `/` and may end in one. The parts
between slashes are never empty (but for the end), `.` or `..`. Every method refuses another key with `ConfigError`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import msgspec

from blobark.errors import ConfigError
from blobark.holder import Holder
from blobark.model import Block, Data

BLOCK_SIZE_BYTES = 8 * 1024 * 1024
"""Content up to this size is one `put`; longer content goes through `begin`, in blocks of at least this size."""
POURED_BYTES = 1024 * 1024
"""How much `pour` gives at once: little enough to be still near when it is digested and written."""
PAGE_BLOBS = 5000
"""How many blobs a service lists with one request."""

MAX_KEY_LENGTH = 1024

ARCHIVE = "archive"
"""The tier whose blobs cannot be read before they have been rehydrated, which takes hours."""

Priority = Literal["standard", "high"]
"""How fast a blob is rehydrated: within fifteen hours, or mostly within one and dearer."""

Take = Callable[[Data], None]
"""Takes the bytes that come next."""

_META_NAME = re.compile("[a-z_][a-z0-9_]*")


class BlobInfo(msgspec.Struct, frozen=True, gc=False):
    """What a store knows of a blob: stored size, the service's own MD5 (hex, "" where unknown), and its metadata.

    `meta` is filled by `stat` where the store keeps metadata at all (`Store.keeps_meta`). A `list` with `meta` fills it
    too, and `created_ns` (since 1970, by the store's clock, 0 where unknown). The tier is told by a listing alone.
    `version`, filled by `stat`, is another one whenever the blob has been written again. `modified_ns`, when that was
    the last time (since 1970, by the store's clock, Azure's to the second), is filled by a `list` with `times`.
    """

    key: str
    size_bytes: int
    md5: str = ""
    meta: Mapping[str, str] = {}
    version: str = ""
    created_ns: int = 0
    tier: str = ""
    """hot, cool, cold or archive; "" where the store has no tiers."""
    rehydrating: bool = False
    """Whether it is on its way out of the archive tier."""
    modified_ns: int = 0

    @property
    def is_archived(self) -> bool:
        """Whether it cannot be read, on its way or not."""
        return self.tier == ARCHIVE


@dataclass(frozen=True, slots=True)
class Greeting:
    """What a store says of itself and of who asks.

    `clock_ns` is the store's clock in nanoseconds since 1970, a service's to the second; 0 where it cannot be told, as
    in a folder that may not be written to. `means` and `who` are how this was logged in and as whom, "" where that is
    the secret of the configuration.
    """

    clock_ns: int = 0
    means: str = ""
    who: str = ""


class Upload(Protocol):
    """A blob on its way, block by block; nothing is under its key until `commit` has returned.

    Blocks may be staged from many threads at once, in any order; a block is known by its digest.
    """

    def stage(self, offset: int, digest: str, data: Data, /) -> bool:
        """Send a block that is to lie at `offset` of the blob, as far as is known yet; say whether it had to be sent.

        It had not when an earlier upload under this key, which was interrupted, has sent it already. May be repeated.

        Raises:
            BlobExists: a store may find out here already what `commit` would.
        """

    def copy(self, digest: str, data: Data, source: str, source_offset: int, /) -> bool:
        """Let the store itself take a block, which is `data`, out of another of its blobs; say whether it could.

        It could not when there is something else in that place, and when the blob is archived.
        """

    def commit(self, blocks: Sequence[Block], meta: Mapping[str, str]) -> None:
        """Make the blob of these blocks, all of which have been staged or copied, in this order.

        It is create-only, or takes the place of the one version that `begin` was told.

        Raises:
            BlobExists: there is a blob under the key (perhaps this one: an answer may have been lost).
            BlobChanged: that version is not there any more.
            BlocksLost: the store has dropped blocks that it had; the upload is to be begun anew.
        """

    def abort(self) -> None:
        """Forget the blocks, as far as the store can. Never raises; does nothing after `commit`."""


class Hold(Protocol):
    """A lock that this process has. For one thread; nothing here is repeated, since who holds it looks at the time."""

    def renew(self) -> None:
        """Have it for another `Store.lock_s`. It may also be late, as long as nobody else has taken the lock.

        Raises:
            LockHeld: somebody else has taken it, or it is gone: this process does not have it any more.
        """

    def release(self) -> None:
        """Let the next one have it at once."""


class Store(Protocol):
    """A flat set of blobs. Every method may be called from many threads at once."""

    lock_s: float
    """How long a lock outlives its last renewal, in seconds."""

    keeps_meta: bool
    """Whether `meta` given to `put` and `commit` comes back from `stat`."""

    lists_md5: bool
    """Whether `list` tells the MD5 of all that `put` has stored, of the bytes that arrived; not below `blobark/`."""

    name: str
    """Where this is, for a person: a folder, or account and container. Holds no secret."""

    def greet(self) -> Greeting:
        """Log in, and say what there is to say before any right is used."""

    def stat(self, key: str) -> BlobInfo:
        """Say what is known of one blob. Raises `BlobNotFound`."""

    def list(self, prefix: str, *, meta: bool = False, times: bool = False) -> Iterator[BlobInfo]:
        """Yield every blob whose key starts with the string `prefix`, in ascending order of the key.

        The prefix may end inside a name. Blobs on their way are not listed. It streams: memory does not grow
        with the number of blobs. With `meta` their metadata come with them, where the store keeps any; with `times`
        when each was written.
        """

    def archived(self, prefix: str, /) -> Iterator[BlobInfo]:
        """As `list`, but only the blobs of the archive tier; none where a store has no tiers.

        It costs a store no request more than `list` does, and where nothing is archived much less work here.
        """

    def rehydrate(self, key: str, priority: Priority, /) -> None:
        """Ask for a blob of the archive tier to be brought back; one on its way already may be asked for again.

        It can be read when `archived` does not list it any more, hours later.

        Raises:
            BlobNotFound: there is no such blob.
            ConfigError: the store has no tiers.
        """

    def read(self, key: str, offset: int = 0, size_bytes: int | None = None, *, version: str = "") -> Data:
        """Return exactly `size_bytes` bytes from `offset`, or everything from `offset` on when `size_bytes` is None.

        Nothing is asked of the store for 0 bytes, not even whether there is such a blob. With `version`, which comes
        from `stat`, the blob must still be that one. The bytes are the caller's own.

        Raises:
            BlobNotFound: there is no such blob.
            ContentError: the blob ends before the range does, or has been written again. Never fewer bytes,
                never silently.
        """

    def pour(self, key: str, offset: int, size_bytes: int, take: Take, *, version: str) -> None:
        """Give exactly `size_bytes` bytes from `offset`, of this `version`, to `take`, in order, as they come.

        What `take` gets is up to `POURED_BYTES`, and its own only until it returns; so they are still near when it
        works on them. What it raises comes through. Nothing is asked of the store for 0 bytes.

        Raises:
            BlobNotFound: there is no such blob; to some stores that is another version.
            ContentError: as `read`, perhaps after `take` has had some of the bytes.
        """

    def put(self, key: str, data: Data, meta: Mapping[str, str], *, create_only: bool = True) -> None:
        """Store `data` under `key`, whole or not at all: no reader and no crash ever finds a part of it.

        `meta` is what `check_meta` lets pass; anything else is refused with `ConfigError`.

        Raises:
            BlobExists: `create_only`, and there is a blob under the key. Of two racing writers one gets this.
        """

    def replace(self, key: str, data: Data, meta: Mapping[str, str], *, version: str) -> None:
        """Store `data` in place of the blob that has this `version`, which comes from `stat`; whole or not at all.

        Raises:
            BlobChanged: that version is not there any more. What is there instead stays.
            StoreLocked: the store lets nobody change this blob.
        """

    def begin(self, key: str, *, replacing: str = "") -> Upload:
        """Start a blob that is sent in blocks. Several may be on their way under one key: one commit wins.

        With `replacing`, which comes from `stat`, it takes the place of that version of the blob.

        Raises:
            BlobExists: blocks of another kind, which cannot be joined with ours, are on their way under the key.
        """

    def delete(self, key: str) -> None:
        """Remove a blob; removing one that is not there is no error."""

    def hold(self, key: str, holder: Holder, /) -> Hold:
        """Take the lock `key`, below which and under which no blob is put, and say who has it.

        Of several takers one gets it. It may be taken from who has not renewed it for `lock_s`, from a process that
        is known to have ended, and by the `Holder.id` that has it already: a repeated call, or who comes after a
        process that has ended.

        Raises:
            LockHeld: somebody else has it; the message says who, where that is known.
        """

    def sync(self) -> None:
        """Return when everything put before the call would survive a loss of power."""

    def close(self) -> None:
        """Let go of connections. The store is not used afterwards."""


def listings(blobs: int) -> int:
    """Return how many requests it takes a service to list so many blobs: one, even for none."""
    return max(1, -(-blobs // PAGE_BLOBS))


def check_key(key: str) -> str:
    """Return `key` when it is a valid one (see the module's text); raises `ConfigError`."""
    parts = key.removesuffix("/").split("/")
    printable = key.isascii() and key.isprintable() and "\\" not in key
    if not printable or len(key) > MAX_KEY_LENGTH or any(part in ("", ".", "..") for part in parts):
        raise ConfigError(f"{key!r} cannot be the name of a blob")
    return key


def check_meta(meta: Mapping[str, str]) -> None:
    """Let metadata pass that every store keeps as it is; raises `ConfigError`.

    Names are lower-case ASCII letters, digits and `_`, and don't begin with a digit. Values are printable ASCII,
    not empty, and have no space at either end.
    """
    for name, value in meta.items():
        is_printable = value.isascii() and value.isprintable() and value and value.strip(" ") == value
        if not (_META_NAME.fullmatch(name) and is_printable):
            raise ConfigError(f"{name!r} cannot be metadata of a blob with this name or this value")
