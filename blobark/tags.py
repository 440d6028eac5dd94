"""Tags: names that a person gives to snapshots, so that retention can keep them.

    blobark/<server>/tags/<10-digit number>/<name>    an empty blob, create-only; a tag that is taken away is deleted

A header is never written twice, so a tag is a blob of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

from blobark.config_keep import TAG_NAME
from blobark.errors import BlobExists, ConfigError
from blobark.snapshot import PREFIX
from blobark.stores.base import Store


def read(store: Store, server: str) -> dict[int, frozenset[str]]:
    """Return the tags of each snapshot of a server that has any."""
    prefix = f"{PREFIX}{server}/tags/"
    found: dict[int, set[str]] = {}
    for info in store.list(prefix):
        number, _, name = info.key[len(prefix) :].partition("/")
        if len(number) == 10 and number.isdigit() and TAG_NAME.fullmatch(name):
            found.setdefault(int(number), set()).add(name)
    return {number: frozenset(names) for number, names in found.items()}


def check(name: str) -> str:
    """Return the name of a tag when it can be one; raises `ConfigError`."""
    if not TAG_NAME.fullmatch(name):
        raise ConfigError(f"{name!r} cannot be a tag", "1 to 63 of a-z, 0-9, ., _ and -, the first a letter or a digit")
    return name


def add(store: Store, server: str, number: int, names: Iterable[str]) -> None:
    """Give a snapshot tags; those that it has already stay."""
    for name in names:
        with contextlib.suppress(BlobExists):
            store.put(_key(server, number, name), b"", {}, create_only=True)
    store.sync()


def remove(store: Store, server: str, number: int, names: Iterable[str]) -> None:
    """Take tags away from a snapshot, those that it has."""
    for name in names:
        store.delete(_key(server, number, name))


def _key(server: str, number: int, name: str) -> str:
    return f"{PREFIX}{server}/tags/{number:010d}/{name}"
