"""Files that appear whole below an open folder: written first, named last, and never over another unless told so.

A new file has no name at all until `publish` (O_TMPFILE), so that a killed process leaves nothing behind. Where
the system or the file system has no such files it is called `.tmp/<random>` meanwhile; `sweep` removes those that
nobody has written to for a day. Publishing is a hard link, or where there are none a rename that refuses to replace.
No symbolic link below the folder is followed. Raises `OSError`, and nothing else.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import secrets
import stat
from dataclasses import dataclass

from blobark.blocks import WRITE_BYTES

TEMPORARY = ".tmp"
STALE_AFTER_S = 24 * 3600

_WRITE = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_NAMELESS = getattr(os, "O_TMPFILE", 0)
_NO_NAMELESS_HERE = {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL}
_NO_LINKS_HERE = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS}
_RENAME_NOREPLACE = 1


@dataclass(slots=True)
class NewFile:
    """A file that is being written; `name` is empty while it has none."""

    folder_fd: int
    fd: int
    name: str

    def write(self, data: bytes | memoryview, offset: int) -> None:
        """Write all of `data` at `offset`."""
        view = memoryview(data)
        while view:
            written = os.pwrite(self.fd, view[:WRITE_BYTES], offset)
            view = view[written:]
            offset += written

    def publish(self, path: str, *, replace: bool) -> None:
        """Give the file the name `path`; raises `FileExistsError` when it is taken and not to be replaced.

        Replacing needs a file that was made as `named`.
        """
        if not self.name:
            os.link(f"/proc/self/fd/{self.fd}", path, dst_dir_fd=self.folder_fd, follow_symlinks=True)
            return
        self._close()  # what a network file system could not write it says here
        if replace:
            os.replace(self.name, path, src_dir_fd=self.folder_fd, dst_dir_fd=self.folder_fd)
            return
        try:
            os.link(self.name, path, src_dir_fd=self.folder_fd, dst_dir_fd=self.folder_fd, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _NO_LINKS_HERE:
                raise
            rename_to_free_name(self.folder_fd, self.name, path)

    def discard(self) -> None:
        """Let go of the file, and of its name for the meantime; what was published stays."""
        with contextlib.suppress(OSError):
            self._close()
        if self.name:
            with contextlib.suppress(OSError):
                os.unlink(self.name, dir_fd=self.folder_fd)
            self.name = ""

    def _close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


class NewFiles:
    """Makes new files below the folder `folder_fd`. May be used from many threads at once."""

    def __init__(self, folder_fd: int) -> None:
        self._folder_fd = folder_fd
        self._nameless = bool(_NAMELESS) and os.path.isdir("/proc/self/fd")
        self._seen: set[str] = set()

    def start(self, path: str, *, named: bool = False) -> NewFile:
        """Return a new, empty file that can become `path`; the folders on the way are made."""
        folder, _, _ = path.rpartition("/")
        if folder not in self._seen:
            self._make_folders(folder)
        try:
            return self._start_in(folder, named)
        except FileNotFoundError:
            self._make_folders(folder)
            return self._start_in(folder, named)

    def now_ns(self) -> int:
        """Return the clock of the file system, which gives files their times; 0 where no file can be made."""
        try:
            file = self._start_in(".", named=False)
        except OSError:
            return 0
        try:
            return os.fstat(file.fd).st_mtime_ns
        finally:
            file.discard()

    def sweep(self) -> None:
        """Remove what killed processes left, told by the clock of the file system. A file in use is never so old."""
        try:
            leftovers = os.open(TEMPORARY, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=self._folder_fd)
        except OSError:
            return
        try:
            new = self._start_named()
            now_s = os.fstat(new.fd).st_mtime
            new.discard()
            for name in os.listdir(leftovers):
                with contextlib.suppress(FileNotFoundError):
                    if os.stat(name, dir_fd=leftovers, follow_symlinks=False).st_mtime < now_s - STALE_AFTER_S:
                        os.unlink(name, dir_fd=leftovers)
        finally:
            os.close(leftovers)

    def _start_in(self, folder: str, named: bool) -> NewFile:
        if self._nameless and not named:
            try:
                fd = os.open(folder, _WRITE | _NAMELESS, 0o600, dir_fd=self._folder_fd)
                return NewFile(self._folder_fd, fd, "")
            except OSError as error:
                if error.errno not in _NO_NAMELESS_HERE:
                    raise
                self._nameless = False
        os.close(os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=self._folder_fd))
        return self._start_named()

    def _start_named(self) -> NewFile:
        name = f"{TEMPORARY}/{secrets.token_hex(12)}"
        self._make_folders(TEMPORARY)
        fd = os.open(name, _WRITE | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=self._folder_fd)
        return NewFile(self._folder_fd, fd, name)

    def _make_folders(self, folder: str) -> None:
        """Make a folder and those above it; raises `NotADirectoryError` where a link or a file is in the way."""
        end = 0
        while end < len(folder):
            end = (folder.find("/", end + 1) + 1 or len(folder) + 1) - 1
            try:
                os.mkdir(folder[:end], 0o700, dir_fd=self._folder_fd)
            except FileExistsError:
                mode = os.stat(folder[:end], dir_fd=self._folder_fd, follow_symlinks=False).st_mode
                if not stat.S_ISDIR(mode):
                    raise NotADirectoryError(errno.ENOTDIR, "a link or a file is where a folder belongs") from None
        self._seen.add(folder)


def rename_to_free_name(folder_fd: int, source: str, target: str) -> None:
    """Rename below `folder_fd`; raises `FileExistsError` when the name is taken.

    For file systems without hard links (exFAT, some network mounts). Python has no call for it.
    """
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        raise OSError(errno.ENOSYS, "this system can neither link nor rename without replacing")
    if rename(folder_fd, os.fsencode(source), folder_fd, os.fsencode(target), _RENAME_NOREPLACE) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), target)
