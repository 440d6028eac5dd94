"""`FolderLock`: a lock as files of a folder, one after the other; who has made the last one has the lock.

    <key>/<ten digits>   says who made it (JSON); its time says when that one was heard of last; empty: released
    take      the last one is released, or its process is known to be gone, or it has been silent for `lock_s`:
              make the next one, create-only, so that of several takers one wins; then remove those before it
    renew     set the time of one's own; a later one means that the lock is lost
    release   empty one's own, which stays, so that no number is used twice by takers that looked at the same moment

A taker looks once more when it has made its file: a holder that was heard of just then keeps the lock, and so does who
has made a later one. Times are
compared with that of a file that is made for it, so the clocks of machines which share the folder do not matter.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from blobark.errors import BlobarkError, BlobExists, BlobNotFound, ContentError, Fatal, LockHeld
from blobark.holder import Holder, read_holder
from blobark.model import display
from blobark.stores.base import Store
from blobark.stores.newfile import NewFiles
from blobark.stores.paths import path_of

_MOST = 9_999_999_999
"""The last number that has ten digits."""
_WRITE = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC


class _Found(NamedTuple):
    """The last file of a lock: its number, what it says, and when it was heard of."""

    number: int
    holder: Holder
    is_released: bool
    mtime_ns: int


class FolderLock:
    """A `Hold` in a folder, once it has been taken."""

    def __init__(
        self, store: Store, folder_fd: int, files: NewFiles, key: str, translate: Callable[..., BlobarkError]
    ) -> None:
        self._store = store
        self._folder_fd = folder_fd
        self._files = files
        self._key = key
        self._translate = translate
        self._number = 0
        self._server = ""

    def take(self, holder: Holder) -> None:
        """Take the lock. Raises `LockHeld`; `Fatal` where something is in the way that was never a lock."""
        self._server = holder.server
        last = self._last()
        is_silent = False
        if last is not None and not (last.is_released or last.holder.is_gone or last.holder.id == holder.id):
            is_silent = abs(self._now_ns() - last.mtime_ns) > self._store.lock_s * 1e9
            if not is_silent:
                raise self._held(last.holder)
        self._number = last.number + 1 if last is not None else 1
        if self._number > _MOST:
            raise self._in_the_way(_MOST, "has the last number there is")
        try:
            self._store.put(self._key_of(self._number), msgspec.json.encode(holder), {})
        except BlobExists:
            self._check_is_file(self._number)
            raise self._held(Holder()) from None
        was_heard_of = is_silent and last is not None and self._mtime_ns(last.number) not in (last.mtime_ns, 0)
        if was_heard_of or max(self._numbers(), default=0) != self._number:
            self._store.delete(self._key_of(self._number))
            raise self._held(last.holder if was_heard_of and last is not None else Holder())
        for number in self._numbers():
            if number < self._number:
                self._store.delete(self._key_of(number))

    def renew(self) -> None:
        """As `Hold.renew`."""
        try:
            os.utime(path_of(self._key_of(self._number)), dir_fd=self._folder_fd, follow_symlinks=False)
        except FileNotFoundError:
            raise self._lost() from None
        except OSError as error:
            raise self._translate(error, self._key, writing=True) from error
        if max(self._numbers(), default=0) != self._number:
            raise self._lost()

    def release(self) -> None:
        """As `Hold.release`."""
        with contextlib.suppress(OSError):
            path = path_of(self._key_of(self._number))
            os.close(os.open(path, _WRITE | os.O_TRUNC, dir_fd=self._folder_fd))

    def _last(self) -> _Found | None:
        """Return the last file of the lock; None where there is none."""
        number = max(self._numbers(), default=0)
        if not number:
            return None
        try:
            text = bytes(self._store.read(self._key_of(number)))
        except (BlobNotFound, ContentError):
            text = b""  # it was released, or taken, at this moment: who makes the next one is decided by that
        return _Found(number, read_holder(text), not text, self._mtime_ns(number))

    def _numbers(self) -> list[int]:
        below = f"{self._key}/"
        names = (info.key.removeprefix(below) for info in self._store.list(below))
        return [int(name) for name in names if name.isascii() and name.isdigit() and len(name) == 10]

    def _mtime_ns(self, number: int) -> int:
        """Return when a file was heard of last, 0 where it is gone."""
        try:
            status = os.stat(path_of(self._key_of(number)), dir_fd=self._folder_fd, follow_symlinks=False)
        except OSError:
            return 0
        return status.st_mtime_ns

    def _check_is_file(self, number: int) -> None:
        """Raise `Fatal` where something else stands under a lock's name: a listing passes over it, and it stays."""
        with contextlib.suppress(FileNotFoundError):
            found = os.stat(path_of(self._key_of(number)), dir_fd=self._folder_fd, follow_symlinks=False)
            if not stat.S_ISREG(found.st_mode):
                raise self._in_the_way(number, "is no plain file")

    def _in_the_way(self, number: int, why: str) -> Fatal:
        where = display(os.path.join(os.fsencode(self._store.name), os.fsencode(path_of(self._key_of(number)))))
        hint = "it is not Blobark's: remove it when no run is writing there"
        return Fatal(f"{where} {why}, and keeps everybody from the lock of {self._server}", hint)

    def _now_ns(self) -> int:
        """Return what the file system's clock says."""
        try:
            file = self._files.start(path_of(self._key_of(0)), named=True)
            try:
                return os.fstat(file.fd).st_mtime_ns
            finally:
                file.discard()
        except OSError as error:
            raise self._translate(error, self._key, writing=True) from error

    def _key_of(self, number: int) -> str:
        return f"{self._key}/{number:010}"

    def _held(self, holder: Holder) -> LockHeld:
        who = holder.described or "another run"
        return LockHeld(f"{who} holds the lock of {self._server} in {self._store.name}")

    def _lost(self) -> LockHeld:
        last = self._last()
        return self._held(last.holder if last is not None and last.number != self._number else Holder())
