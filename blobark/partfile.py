"""A file below restore_root in the making: under a temporary name until its content is verified and its metadata set.

So it appears whole or not at all. `target` makes them. No handler here costs anything where nothing goes wrong, which
a `with` does: this is what a restore of small files is made of.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from types import TracebackType

from blobark import metadata
from blobark.blocks import WRITE_BYTES
from blobark.errors import Fatal, Interrupted, TargetError, TargetFull
from blobark.guids import TEMPORARY_PREFIX
from blobark.model import Data, Entry

_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_GO_ON = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
PRIVATE = 0o600
"""The mode of what others could see before it is finished."""
_OTHERS = 0o077
"""What a mode allows to others than the owner."""
_CLOSED = -1
"""No descriptor: so a thread that was left behind cannot write to what has the number of its file next."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class PartFile:
    """A file that gets its name by `keep`, or vanishes at the end of the `with` it is made for.

    With `go_on`, what an interrupted run has left is taken up as it is, and left again when interrupted now.
    """

    __slots__ = ("_as_root", "_go_on", "_is_bare", "_name", "_parent", "_temporary", "descriptor", "kept", "was_there")

    def __init__(
        self,
        parent: int,
        temporary: bytes,
        name: bytes,
        *,
        as_root: bool,
        go_on: bool = False,
        mode: int = PRIVATE,
        is_bare: bool = False,
    ) -> None:
        """Make it in the directory `parent`; it is to be called `name`. Raises `TargetError`, `TargetFull`.

        `is_bare` is what `metadata.makes_bare` says of the directory.
        """
        self._as_root = as_root
        self._parent = parent
        self._temporary = temporary
        self._name = name
        self._go_on = go_on
        self._is_bare = is_bare
        self.kept = False
        self.was_there = False
        """Whether it holds what an interrupted run has written."""
        try:
            self.descriptor = os.open(temporary, _CREATE, mode, dir_fd=parent)
        except FileExistsError:  # left by a run that was killed
            self._take_up()
        except OSError as error:
            raise named(error) from None

    def _take_up(self) -> None:
        """Take up a regular file of our own with no other name, so that nothing else is written to; or begin anew.

        One that others might have open is not taken up: they would read what is written to it now.
        """
        parent, temporary = self._parent, self._temporary
        try:
            if self._go_on:
                with contextlib.suppress(OSError):
                    self.descriptor = os.open(temporary, _GO_ON, dir_fd=parent)
                    status = os.fstat(self.descriptor)
                    is_own = status.st_nlink == 1 and status.st_uid == os.geteuid()
                    if stat.S_ISREG(status.st_mode) and is_own and not status.st_mode & _OTHERS:
                        self.was_there = True
                        return
                    os.close(self.descriptor)
            os.unlink(temporary, dir_fd=parent)
            self.descriptor = os.open(temporary, _CREATE, PRIVATE, dir_fd=parent)
        except OSError as error:
            raise named(error) from None

    def __enter__(self) -> PartFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        descriptor, self.descriptor = self.descriptor, _CLOSED
        try:
            os.close(descriptor)
        except OSError as failed:  # a file system may tell only now what it could not write
            error = error or failed
        if not self.kept and not (self._go_on and isinstance(error, (Interrupted, Fatal))):
            with contextlib.suppress(OSError):
                os.unlink(self._temporary, dir_fd=self._parent)
        if isinstance(error, OSError):
            raise named(error) from None

    def allocate(self, entry: Entry, *, anew: bool = False) -> None:
        """Give the file its size, and room on the disk unless it is sparse; `anew` forgets what it holds."""
        if anew:
            os.ftruncate(self.descriptor, 0)
            self.was_there = False
        os.ftruncate(self.descriptor, entry.size)
        if entry.ranges is None:
            try:
                os.posix_fallocate(self.descriptor, 0, entry.size)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                    raise

    def write(self, data: Data, offset: int) -> None:
        """Write all of `data` at `offset`."""
        if len(data) <= WRITE_BYTES and os.pwrite(self.descriptor, data, offset) == len(data):
            return
        view = memoryview(data)
        while view:
            written = os.pwrite(self.descriptor, view[:WRITE_BYTES], offset)
            view = view[written:]
            offset += written

    def keep(self, entry: Entry) -> None:
        """Set the metadata and give the file its name, in place of what has it. The content has been verified."""
        problem = None
        try:
            metadata.apply_new(self.descriptor, entry, as_root=self._as_root, is_bare=self._is_bare)
        except TargetError as error:
            problem = error
        os.rename(self._temporary, self._name, src_dir_fd=self._parent, dst_dir_fd=self._parent)
        self.kept = True
        if problem is not None:
            raise TargetError(f"restored, but {problem.message}")


def temporary_name(tag: str) -> bytes:
    """Return the name of what is not finished; `tag` is 16 hex digits."""
    return f"{TEMPORARY_PREFIX}{tag}.part".encode()


def named(error: OSError) -> TargetError | TargetFull:
    """Return the operating system's error as one that stops the run (`TargetFull`) or fails this item."""
    if error.errno in _FULL:
        what = "mount it for writing" if error.errno == errno.EROFS else "make room"
        return TargetFull(f"restore_root cannot be written ({error.strerror})", f"{what} and run it again")
    if error.errno in (errno.ELOOP, errno.ENOTDIR):
        return TargetError("a symlink, or something that is not a directory, is on the way to it")
    return TargetError(f"cannot be written ({error.strerror})")
