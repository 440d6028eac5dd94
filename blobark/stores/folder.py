"""`FolderStore`: blobs as plain files in a folder, on any disk.

    <server>_<guid>  ->  <hh>/<server>_<guid>       hh: the last two hex digits of the name
    blobark/s/lock   ->  blobark/s/lock.blob        all the rules are in `stores.paths`

Spreading over 256 folders is what makes small blobs fast: creating files in a single folder from several threads
makes them fight for it. The last digits, because the GUIDs of one run share the first ones.

A blob appears whole (`stores.newfile`): of two writers one wins, and a killed writer leaves nothing under the key.
Nothing is flushed blob by blob: `sync` does it once for all. After a loss of power a blob that was put since the last
`sync` may be short or empty; no snapshot names it yet, and a create-only `put` under its key says `BlobExists`.

Metadata is not kept: a folder has nowhere cheap to keep it. Files are 0600, folders 0700. The store's folder may be
reached through a link; a link planted below it is never followed.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence

from blobark.errors import (
    BlobarkError,
    BlobChanged,
    BlobExists,
    BlobNotFound,
    ConfigError,
    ContentError,
    Retryable,
    StoreDenied,
    StoreFull,
    StoreMissing,
    StoreUnusable,
)
from blobark.holder import Holder
from blobark.model import Block, Data
from blobark.stores.base import POURED_BYTES, BlobInfo, Greeting, Hold, Priority, Take, Upload, check_meta
from blobark.stores.folder_lock import FolderLock
from blobark.stores.listing import blobs_below
from blobark.stores.newfile import NewFile, NewFiles
from blobark.stores.paths import path_of

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_NO_ENTRY = {errno.ENOENT, errno.ENOTDIR}
_FULL = {errno.ENOSPC, errno.EDQUOT}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
_UNREADABLE = {errno.EIO, errno.EBADMSG, getattr(errno, "EUCLEAN", errno.EIO)}
_PASSING = {errno.EAGAIN, errno.EBUSY, errno.ETIMEDOUT}


class FolderStore:
    """A `Store` in the folder `path`, which is made if `create` says so.

    `names_at_once` bounds the memory of `list`: so many names are held at a time, and a folder with more of them is
    read several times.

    Raises:
        StoreMissing: there is no such folder.
        StoreDenied: it may not be read, or not be made.
    """

    keeps_meta = False
    lists_md5 = False
    lock_s = 120.0

    def __init__(self, path: str, *, create: bool = False, names_at_once: int = 1_000_000) -> None:
        self.name = os.path.abspath(path)
        self._names_at_once = names_at_once
        self._swept = False
        try:
            if create:
                os.makedirs(self.name, 0o700, exist_ok=True)
            self._fd = os.open(self.name, _FOLDER)
        except (FileNotFoundError, NotADirectoryError, FileExistsError):
            raise StoreMissing(f"{self.name} is not a folder", "make it, or mount the disk it is on") from None
        except OSError as error:
            raise self._translate(error, self.name) from error
        self._files = NewFiles(self._fd)

    def greet(self) -> Greeting:
        """As `Store.greet`."""
        return Greeting(clock_ns=self._files.now_ns())

    def stat(self, key: str) -> BlobInfo:
        """As `Store.stat`; knows no MD5 and no metadata."""
        try:
            found = os.stat(path_of(key), dir_fd=self._fd, follow_symlinks=False)
        except OSError as error:
            raise self._translate(error, key) from error
        return BlobInfo(key, self._size(found, key), version=_version(found))

    def read(self, key: str, offset: int = 0, size_bytes: int | None = None, *, version: str = "") -> bytes:
        """As `Store.read`."""
        path = path_of(key)
        if size_bytes == 0:
            return b""
        try:
            fd = os.open(path, _READ, dir_fd=self._fd)
            try:
                status = os.fstat(fd)
                there = self._size(status, key)
                if version and version != _version(status):
                    raise ContentError(f"{key} in {self.name} has been written again")
                wanted = there - offset if size_bytes is None else size_bytes
                data = os.pread(fd, wanted, offset) if wanted > 0 else b""
                while 0 < len(data) < wanted and (more := os.pread(fd, wanted - len(data), offset + len(data))):
                    data += more
            finally:
                os.close(fd)
        except OSError as error:
            if error.errno in _UNREADABLE:  # the disk has lost this one: others may well be whole
                raise ContentError(f"{key} in {self.name} cannot be read ({error.strerror})") from error
            raise self._translate(error, key) from error
        if len(data) != wanted or (offset and not data):
            raise ContentError(f"{key} in {self.name} has {there} bytes, and more were asked for")
        return data

    def pour(self, key: str, offset: int, size_bytes: int, take: Take, *, version: str) -> None:
        """As `Store.pour`."""
        for done in range(0, size_bytes, POURED_BYTES):
            take(self.read(key, offset + done, min(POURED_BYTES, size_bytes - done), version=version))

    def put(self, key: str, data: Data, meta: Mapping[str, str], *, create_only: bool = True) -> None:
        """As `Store.put`."""
        path = path_of(key)
        check_meta(meta)
        try:
            file = self._files.start(path, named=not create_only)
            try:
                file.write(data, 0)
                file.publish(path, replace=not create_only)
            finally:
                file.discard()
        except OSError as error:
            raise self._translate(error, key, writing=True) from error

    def replace(self, key: str, data: Data, meta: Mapping[str, str], *, version: str) -> None:
        """As `Store.replace`. Of all who replace something in this folder one at a time looks and renames."""
        path = path_of(key)
        check_meta(meta)
        try:
            file = self._files.start(path, named=True)
            try:
                file.write(data, 0)
                self._put_in_place(key, file, version)
            finally:
                file.discard()
        except OSError as error:
            raise self._translate(error, key, writing=True) from error

    def _put_in_place(self, key: str, file: NewFile, version: str) -> None:
        path = path_of(key)
        with _locked(self._fd):
            try:
                found = _version(os.stat(path, dir_fd=self._fd, follow_symlinks=False))
            except FileNotFoundError:
                found = ""
            if found != version:
                raise BlobChanged(f"{key} in {self.name} has been written again, or is gone")
            file.publish(path, replace=True)

    def begin(self, key: str, *, replacing: str = "") -> Upload:
        """As `Store.begin`. The blocks go to a file that has no name yet."""
        path = path_of(key)

        def publish(file: NewFile) -> None:
            if replacing:
                self._put_in_place(key, file, replacing)
            else:
                file.publish(path, replace=False)

        try:
            return _FolderUpload(key, publish, self._files.start(path, named=bool(replacing)), self._translate)
        except OSError as error:
            raise self._translate(error, key, writing=True) from error

    def delete(self, key: str) -> None:
        """As `Store.delete`."""
        try:
            os.unlink(path_of(key), dir_fd=self._fd)
        except OSError as error:
            if error.errno not in _NO_ENTRY:
                raise self._translate(error, key) from error

    def hold(self, key: str, holder: Holder, /) -> Hold:
        """As `Store.hold`; see `stores.folder_lock`."""
        lock = FolderLock(self, self._fd, self._files, key, self._translate)
        lock.take(holder)
        return lock

    def sync(self) -> None:
        """As `Store.sync`: one flush of the whole file system. The first one also removes old leftovers."""
        try:
            flush_file_system(self._fd)
            if not self._swept:
                self._swept = True
                self._files.sweep()
        except OSError as error:
            raise self._translate(error, self.name, writing=True) from error

    def close(self) -> None:
        """As `Store.close`."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def archived(self, _prefix: str, /) -> Iterator[BlobInfo]:
        """As `Store.archived`: none, a folder has no tiers."""
        return iter(())

    def rehydrate(self, key: str, _priority: Priority, /) -> None:
        """As `Store.rehydrate`."""
        raise ConfigError(f"{self.name} is a folder, and has no archive tier to bring {key} back from")

    def list(self, prefix: str, *, meta: bool = False, times: bool = False) -> Iterator[BlobInfo]:  # noqa: ARG002
        """As `Store.list`. Its files have times whether they are asked for or not, and no metadata."""
        try:
            for key, path in blobs_below(self._fd, prefix, names_at_once=self._names_at_once):
                try:
                    found = os.stat(path, dir_fd=self._fd, follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if stat.S_ISREG(found.st_mode):
                    yield BlobInfo(key, found.st_size, modified_ns=found.st_mtime_ns)
        except OSError as error:
            raise self._translate(error, self.name) from error

    def _size(self, found: os.stat_result, key: str) -> int:
        if not stat.S_ISREG(found.st_mode):
            raise ContentError(f"{key} in {self.name} is not a plain file")
        return found.st_size

    def _translate(self, error: OSError, what: str, *, writing: bool = False) -> BlobarkError:
        """Return the error of ours for one of the file system's, about the key or folder `what`."""
        number = error.errno
        message = f"{what} in {self.name}: {error.strerror}" if what != self.name else f"{what}: {error.strerror}"
        if number in _NO_ENTRY and self._is_gone():
            return StoreMissing(f"{self.name} is gone", "make it, or mount the disk it is on")
        if number in _NO_ENTRY and not writing:
            return BlobNotFound(f"{what} is not in {self.name}")
        if number == errno.EEXIST:
            return BlobExists(f"{what} is already in {self.name}")
        if number == errno.ELOOP and not writing:
            return ContentError(f"{what} in {self.name} is not a plain file")
        if number in _FULL:
            return StoreFull(message, "make room, or raise the quota")
        if number in _DENIED:
            return StoreDenied(message, "check who owns the folder, and whether the disk is mounted read-only")
        if number in _PASSING:
            return Retryable(message)
        return StoreUnusable(message, "check the disk and the system's log")

    def _is_gone(self) -> bool:
        """Whether the store's folder has been removed since it was opened."""
        try:
            return os.fstat(self._fd).st_nlink == 0
        except OSError:
            return False


def _version(status: os.stat_result) -> str:
    return f"{status.st_ino}-{status.st_mtime_ns}-{status.st_ctime_ns}-{status.st_size}"


class _FolderUpload:
    """An `Upload` into a file that has no name yet. Nothing of an upload that was interrupted is left to go on with."""

    def __init__(
        self, key: str, publish: Callable[[NewFile], None], file: NewFile, translate: Callable[..., BlobarkError]
    ) -> None:
        self._key = key
        self._publish = publish
        self._file = file
        self._translate = translate

    def stage(self, offset: int, _digest: str, data: Data) -> bool:
        """As `Upload.stage`."""
        try:
            self._file.write(data, offset)
        except OSError as error:
            raise self._translate(error, self._key, writing=True) from error
        return True

    def copy(self, _digest: str, _data: Data, _source: str, _source_offset: int) -> bool:
        """As `Upload.copy`: what is on this machine is as well sent."""
        return False

    def commit(self, blocks: Sequence[Block], meta: Mapping[str, str]) -> None:
        """As `Upload.commit`."""
        check_meta(meta)
        try:
            os.truncate(self._file.fd, sum(block.size for block in blocks))
            self._publish(self._file)
        except OSError as error:
            raise self._translate(error, self._key, writing=True) from error
        self._file.discard()

    def abort(self) -> None:
        """As `Upload.abort`."""
        self._file.discard()


@contextlib.contextmanager
def _locked(folder_fd: int) -> Iterator[None]:
    """Hold the lock of an open folder, which keeps out all threads and processes that ask for it."""
    descriptor = os.open(".", _FOLDER, dir_fd=folder_fd)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def flush_file_system(fd: int) -> None:
    """Return when all that was written to the file system of `fd` is on the disk."""
    syncfs = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
    if syncfs is None:
        os.sync()
    elif syncfs(fd) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
