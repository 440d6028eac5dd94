"""The contract of a store: a flat set of blobs under string keys.

Each sentence of the docstrings below has a test in tests/store_suite.py, which runs on every store.
Implementations raise the errors of `blobark.errors` and no other: each has one `translate` that maps its
library's errors, and no class of that library leaves its file. None of them retries: `stores.retry` does.

A key is 1 to 1,024 characters of printable ASCII without backslash; it may hold `/` and may end in one. The parts
between slashes are never empty (but for the end), `.` or `..`. Every method refuses another key with `ConfigError`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from blobark.errors import ConfigError

BLOCK_SIZE_BYTES = 8 * 1024 * 1024
"""Content up to this size is one `put`; longer content goes through `begin`, in blocks of at least this size."""

MAX_KEY_LENGTH = 1024

_META_NAME = re.compile("[a-z_][a-z0-9_]*")
_META_VALUE = re.compile("[!-~](?:[ -~]*[!-~])?")


@dataclass(frozen=True, slots=True)
class BlobInfo:
    """What a store knows of a blob: stored size, the service's own MD5 (hex, "" where unknown), and its metadata.

    `meta` is filled by `stat` where the store keeps metadata at all (`Store.keeps_meta`), and empty from `list`.
    """

    key: str
    size_bytes: int
    md5: str = ""
    meta: Mapping[str, str] = field(default_factory=dict)


class Upload(Protocol):
    """A blob on its way, block by block; nothing is under its key until `commit` has returned."""

    def add(self, block: bytes) -> None:
        """Send the next block. It may be repeated after `Retryable` with the same block, and counts once."""

    def commit(self, meta: Mapping[str, str]) -> None:
        """Make the blocks added so far the blob, in their order; create-only.

        Raises:
            BlobExists: there is a blob under the key (perhaps this one: an answer may have been lost).
        """

    def abort(self) -> None:
        """Forget the blocks, as far as the store can. Never raises; does nothing after `commit`."""


class Store(Protocol):
    """A flat set of blobs. Every method may be called from many threads at once."""

    keeps_meta: bool
    """Whether `meta` given to `put` and `commit` comes back from `stat`."""

    name: str
    """Where this is, for a person: a folder, or account and container. Holds no secret."""

    def stat(self, key: str) -> BlobInfo:
        """Say what is known of one blob. Raises `BlobNotFound`."""

    def list(self, prefix: str) -> Iterator[BlobInfo]:
        """Yield every blob whose key starts with the string `prefix`, in ascending order of the key.

        The prefix may end inside a name. Blobs on their way are not listed. It streams: memory does not grow
        with the number of blobs.
        """

    def read(self, key: str, offset: int = 0, size_bytes: int | None = None) -> bytes:
        """Return exactly `size_bytes` bytes from `offset`, or everything from `offset` on when `size_bytes` is None.

        Nothing is asked of the store for 0 bytes, not even whether there is such a blob.

        Raises:
            BlobNotFound: there is no such blob.
            ContentError: the blob ends before the range does. Never fewer bytes, never silently.
        """

    def put(self, key: str, data: bytes, meta: Mapping[str, str], *, create_only: bool = True) -> None:
        """Store `data` under `key`, whole or not at all: no reader and no crash ever finds a part of it.

        `meta` is what `check_meta` lets pass; anything else is refused with `ConfigError`.

        Raises:
            BlobExists: `create_only`, and there is a blob under the key. Of two racing writers one gets this.
        """

    def begin(self, key: str) -> Upload:
        """Start a blob that is sent in blocks. Several may be on their way under one key: one commit wins."""

    def delete(self, key: str) -> None:
        """Remove a blob; removing one that is not there is no error."""

    def sync(self) -> None:
        """Return when everything put before the call would survive a loss of power."""

    def close(self) -> None:
        """Let go of connections. The store is not used afterwards."""


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
        if not (_META_NAME.fullmatch(name) and _META_VALUE.fullmatch(value)):
            raise ConfigError(f"{name!r} cannot be metadata of a blob with this name or this value")
