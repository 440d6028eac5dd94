"""The blobs in a store's folder in the order of their keys, in bounded memory.

    the 256 folders   hold the keys in no order: the first n keys are collected, yielded, then the next n, ...
    the other folders hold them in order: all keys below a folder begin with its name and a slash
    overlong keys     are few: collected and sorted
    all three         are merged

A file that no key leads to (`stores.paths`) is passed over, and so is whatever is a link. Raises `OSError`.
"""

from __future__ import annotations

import errno
import heapq
import os
from collections.abc import Iterator
from operator import itemgetter
from urllib.parse import unquote

from blobark.stores.newfile import TEMPORARY
from blobark.stores.paths import FANOUT, LONG, key_of, path_of

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_FOLDER = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}
_RESERVED = {*FANOUT, LONG, TEMPORARY}
_ABOVE_ALL_KEYS = "\x7f"


def blobs_below(folder_fd: int, prefix: str, *, names_at_once: int) -> Iterator[tuple[str, str]]:
    """Yield key and path of every blob whose key starts with `prefix`, in the order of the keys.

    At most twice `names_at_once` names are held.
    """
    listing = _Listing(folder_fd, prefix, names_at_once)
    streams = [listing.nested(), iter(sorted(listing.overlong(LONG)))]
    if "/" not in prefix:
        streams.append(listing.flat())
    return heapq.merge(*streams, key=itemgetter(0))


class _Listing:
    def __init__(self, folder_fd: int, prefix: str, names_at_once: int) -> None:
        self._folder_fd = folder_fd
        self._prefix = prefix
        self._names_at_once = names_at_once

    def flat(self) -> Iterator[tuple[str, str]]:
        """Yield key and path of the blobs in the 256 folders, in order."""
        keys = self._next_flat("")
        while keys:
            yield from ((key, path_of(key)) for key in map(bytes.decode, keys))
            if len(keys) < self._names_at_once:
                return
            after = keys[-1].decode()
            keys.clear()  # so that they are not held beside the next
            keys = self._next_flat(after)

    def _next_flat(self, after: str) -> list[bytes]:
        """Return the first `names_at_once` keys above `after`, in order; holds no more than twice as many.

        They are ASCII, and as bytes a sixth smaller.
        """
        keys: list[bytes] = []
        limit = _ABOVE_ALL_KEYS
        for fan in FANOUT:
            for name, _ in self._entries(fan):
                key = key_of(f"{fan}/{name}")
                if key is not None and after < key < limit and key.startswith(self._prefix):
                    keys.append(key.encode())
                    if len(keys) == 2 * self._names_at_once:
                        keys.sort()
                        del keys[self._names_at_once :]
                        limit = keys[-1].decode()
        keys.sort()
        del keys[self._names_at_once :]
        return keys

    def nested(self, folder: str = "", above: str = "") -> Iterator[tuple[str, str]]:
        """Yield key and path of the blobs with slashes, in order: all keys of a subfolder begin with its own."""
        found = []
        for name, is_folder in self._entries(folder or "."):
            path = f"{folder}/{name}" if folder else name
            if is_folder and path not in _RESERVED:
                key = f"{above}{unquote(name)}/"
                if key.startswith(self._prefix) or self._prefix.startswith(key):
                    found.append((key, path, True))
            elif not is_folder and (blob := key_of(path)) is not None and blob.startswith(self._prefix):
                found.append((blob, path, False))
        for key, path, is_folder in sorted(found):
            if is_folder:
                yield from self.nested(path, key)
            else:
                yield key, path

    def overlong(self, folder: str) -> Iterator[tuple[str, str]]:
        """Yield key and path of the blobs whose keys have overlong parts, in no order."""
        for name, is_folder in self._entries(folder):
            path = f"{folder}/{name}"
            if is_folder:
                yield from self.overlong(path)
            elif (key := key_of(path)) is not None and key.startswith(self._prefix):
                yield key, path

    def _entries(self, folder: str) -> Iterator[tuple[str, bool]]:
        """Yield the names in a folder, and whether each is a folder; nothing when it is not there, or a link."""
        try:
            fd = os.open(folder, _FOLDER, dir_fd=self._folder_fd)
        except OSError as error:
            if error.errno in _NO_FOLDER:
                return
            raise
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    yield entry.name, entry.is_dir(follow_symlinks=False)
        finally:
            os.close(fd)
