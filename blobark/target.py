"""Writing below restore_root: the one place that does, and it cannot write anywhere else.

Every directory is opened one component at a time from a descriptor of restore_root, and never through a symlink;
everything inside is done relative to such a descriptor. So whatever a manifest says, and whatever somebody plants
in restore_root meanwhile, nothing outside it is touched. Files appear whole (`partfile`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from blobark import metadata
from blobark.directories import Directories
from blobark.errors import Fatal, LockHeld, TargetError
from blobark.filelock import lock_named
from blobark.model import Entry
from blobark.partfile import PRIVATE, PartFile, named, temporary_name

_TOP = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_TRIAL = temporary_name(f"{0:016}")
_NOT_THE_NAME = {errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT, errno.EROFS}
"""Why a file cannot be made, whatever its name."""


class Target:
    """The tree below restore_root. May be used from many threads; each holds one open directory."""

    def __init__(self, descriptor: int | None) -> None:
        """Take over the descriptor of restore_root; None is one that is not there, and looks empty."""
        self.is_root = os.geteuid() == 0
        self._top = descriptor
        self._directories = None if descriptor is None else Directories(descriptor)

    @classmethod
    def open(cls, root: Path, *, create: bool) -> Target:
        """Open restore_root, making it when missing, if `create`.

        Then it is also locked against other restores for as long as any copy of its descriptor is open.
        Raises `LockHeld`, `Fatal`.
        """
        try:
            if create:
                root.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(root, _TOP) if create or root.exists() else None
        except OSError as error:
            hint = "check who owns it, or name another with --to DIR"
            raise Fatal(f"restore_root {root} cannot be used ({error.strerror})", hint) from None
        if create and descriptor is not None and not lock_named(descriptor, f"restore_root {root}"):
            os.close(descriptor)
            raise LockHeld(f"another restore to {root} is running", "wait until it has finished")
        return cls(descriptor)

    def falls_short(self, entry: Entry) -> bool:
        """Whether what is made of an entry is not all of it, as only root can set the rest."""
        return not self.is_root and metadata.needs_root(entry)

    @property
    def exists(self) -> bool:
        """Whether there is a restore_root; only in a dry run there may be none."""
        return self._top is not None

    @property
    def descriptor(self) -> int:
        """The descriptor of restore_root."""
        if self._top is None:
            raise TargetError("restore_root does not exist")
        return self._top

    def close(self) -> None:
        """Close every descriptor; no thread uses the target any more."""
        if self._directories is not None and self._top is not None:
            self._directories.close()
            os.close(self._top)

    def directory(self, path: bytes) -> int:
        """Return a descriptor of an existing directory, good until this thread asks for another.

        Raises `TargetError` when something on the way is missing, a symlink, or no directory.
        """
        if self._directories is None:
            raise TargetError("restore_root does not exist")
        with _NAMED_ERRORS:
            return self._directories.open(path)

    def make_directory(self, path: bytes, *, replace: bool, mode: int = 0o700) -> bool:
        """Make a directory, or take one that is there; say whether it was made.

        Something else in its place is removed when `replace` and an error otherwise. While a restore runs, only its
        owner should enter it; `finish_directory` sets what the entry says.
        """
        if not path:
            return False
        parent, name = self._split(path)
        with _NAMED_ERRORS:
            try:
                os.mkdir(name, mode, dir_fd=parent)
                return True
            except FileExistsError:
                status = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                if status.st_mode & 0o700 != 0o700:
                    metadata.change_mode(parent, name, stat.S_IMODE(status.st_mode) | 0o700, stat.S_IFDIR)
                return False
            if not replace:
                raise TargetError("something that is not a directory is in its place")
            os.unlink(name, dir_fd=parent)
            os.mkdir(name, mode, dir_fd=parent)
        return True

    def look(self, path: bytes) -> os.stat_result | None:
        """Return the lstat of what is there, None for nothing."""
        parent, name = self._split(path)
        try:
            return os.stat(name, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise named(error) from None

    def open_existing(self, path: bytes) -> int:
        """Return a descriptor to read an existing regular file."""
        parent, name = self._split(path)
        with _NAMED_ERRORS:
            return os.open(name, _READ, dir_fd=parent)

    def read_link(self, path: bytes) -> bytes:
        """Return what the symlink at `path` points to."""
        parent, name = self._split(path)
        with _NAMED_ERRORS:
            return os.readlink(name, dir_fd=parent)

    def new_file(self, path: bytes, tag: str, *, go_on: bool = False, mode: int | None = None) -> PartFile:
        """Make a file under a temporary name made of `tag`, for `with`; it gets its own name by `keep`, or vanishes.

        With `go_on`, what an interrupted run has left is taken up as it is, and left again when interrupted now.
        With `mode`, in a directory that nobody else can enter yet, it has that from the start, which saves time: unless
        the mode says something else of its group than of others. Whose group that is only `keep` sees to, and after a
        kill, or in a folder that somebody has put in the place of ours, the wrong one could use it.
        """
        parent, name = self._split(path)
        temporary = temporary_name(tag)
        if mode is None or self._directories is None:
            return PartFile(parent, temporary, name, as_root=self.is_root, go_on=go_on)
        is_bare = self._directories.fact(metadata.makes_bare)
        mode = PRIVATE if (mode >> 3 ^ mode) & 0o7 else mode
        return PartFile(parent, temporary, name, as_root=self.is_root, go_on=go_on, mode=mode, is_bare=is_bare)

    def make_special(self, path: bytes, entry: Entry, tag: str) -> None:
        """Make a symlink, FIFO, socket or device with its metadata, in place of what is there."""
        parent, name = self._split(path)
        temporary = temporary_name(tag)
        with _NAMED_ERRORS:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=parent)
            if entry.kind == "symlink":
                os.symlink(entry.raw_link, temporary, dir_fd=parent)
            else:
                _make_node(parent, temporary, entry)
            problem = None
            try:
                try:
                    metadata.apply_unopened(parent, temporary, entry, as_root=self.is_root)
                except TargetError as error:
                    problem = error
                os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
            except BaseException:
                os.unlink(temporary, dir_fd=parent)
                raise
            if problem is not None:
                raise TargetError(f"restored, but {problem.message}")

    def make_link(self, path: bytes, first: bytes, tag: str) -> None:
        """Make `path` a further hard link of the file `first`, in place of what is there."""
        parent, name = self._split(first)
        temporary = temporary_name(tag)
        with _NAMED_ERRORS:
            source = os.dup(parent)
            try:
                parent, new_name = self._split(path)
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary, dir_fd=parent)
                os.link(name, temporary, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
                os.rename(temporary, new_name, src_dir_fd=parent, dst_dir_fd=parent)
                with contextlib.suppress(FileNotFoundError):  # rename does nothing between two links of one file
                    os.unlink(temporary, dir_fd=parent)
            finally:
                os.close(source)

    def finish_directory(self, path: bytes, entry: Entry) -> None:
        """Set a directory's own metadata, once nothing is written below it any more."""
        with _NAMED_ERRORS:
            self.set_metadata(self.directory(path), entry)

    def set_metadata(self, descriptor: int, entry: Entry) -> None:
        """Set the metadata of an existing file. Raises `TargetError`, `OSError`."""
        metadata.apply(descriptor, entry, as_root=self.is_root)

    def has_metadata(self, descriptor: int, entry: Entry) -> bool:
        """Whether an existing file has the entry's metadata, as far as this user could restore them."""
        return metadata.is_applied(descriptor, entry, as_root=self.is_root)

    def has_special_metadata(self, path: bytes, status: os.stat_result, entry: Entry) -> bool:
        """As `has_metadata`, for a symlink, FIFO, socket or device, whose lstat is `status`."""
        parent, name = self._split(path)
        return metadata.is_applied_unopened(parent, name, status, entry, as_root=self.is_root)

    def names(self, path: bytes) -> list[bytes]:
        """Return the names in an existing directory."""
        with _NAMED_ERRORS:
            return _listed(self.directory(path))

    def remove(self, path: bytes, *, is_dir: bool) -> None:
        """Remove an empty directory, or one name of anything else; what a symlink points to is left alone."""
        parent, name = self._split(path)
        with _NAMED_ERRORS:
            if is_dir:
                os.rmdir(name, dir_fd=parent)
            else:
                os.unlink(name, dir_fd=parent)

    def mount_of(self, path: bytes) -> int:
        """Return what is another number in each mounted file system: of an existing directory."""
        descriptor = self.directory(path)
        try:
            with open(f"/proc/self/fdinfo/{descriptor}", "rb") as file:
                found = dict(line.split(b":", 1) for line in file if b":" in line)
            return int(found[b"mnt_id"])
        except (OSError, KeyError, ValueError):
            return os.fstat(descriptor).st_dev

    @contextlib.contextmanager
    def trial_names(self, path: bytes) -> Iterator[TrialNames]:
        """Make an empty directory in an existing one, to try names in, and remove it with all that is in it."""
        with _NAMED_ERRORS:
            parent = os.dup(self.directory(path))
        try:
            with _NAMED_ERRORS:
                descriptor = _empty_directory(parent, _TRIAL)
            try:
                with _NAMED_ERRORS:
                    yield TrialNames(descriptor)
            finally:
                with _NAMED_ERRORS:
                    _clear(descriptor)
                    os.close(descriptor)
                    os.rmdir(_TRIAL, dir_fd=parent)
        finally:
            os.close(parent)

    def _split(self, path: bytes) -> tuple[int, bytes]:
        parent, _, name = path.rpartition(b"/")
        return self.directory(parent), name


class TrialNames:
    """A directory to try names in."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def takes(self, name: bytes) -> bool:
        """Whether a file of this name can be made, and is listed under it; it stays. Other errors are raised."""
        try:
            os.close(os.open(name, _CREATE, 0o600, dir_fd=self.descriptor))
        except OSError as error:
            if error.errno in _NOT_THE_NAME:
                raise
            return False
        return name in _listed(self.descriptor)

    def has(self, name: bytes) -> bool:
        """Whether there is something under this name."""
        try:
            os.stat(name, dir_fd=self.descriptor, follow_symlinks=False)
        except OSError:
            return False
        return True


def _empty_directory(parent: int, name: bytes) -> int:
    """Return a descriptor of a new directory, or of one that a run has left which was killed."""
    try:
        os.mkdir(name, 0o700, dir_fd=parent)
    except FileExistsError:
        if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
            os.unlink(name, dir_fd=parent)
            os.mkdir(name, 0o700, dir_fd=parent)
    descriptor = os.open(name, _TOP | os.O_NOFOLLOW, dir_fd=parent)
    _clear(descriptor)
    return descriptor


def _clear(descriptor: int) -> None:
    for name in _listed(descriptor):
        os.unlink(name, dir_fd=descriptor)


def _listed(descriptor: int) -> list[bytes]:
    """Return the names in a directory, which is opened anew: btrfs lists through a descriptor what it held at first."""
    fresh = os.open(".", _TOP, dir_fd=descriptor)
    try:
        return [os.fsencode(name) for name in os.listdir(fresh)]
    finally:
        os.close(fresh)


def _make_node(parent: int, name: bytes, entry: Entry) -> None:
    device = os.makedev(*entry.rdev) if entry.rdev else 0
    try:
        os.mknod(name, metadata.SPECIAL_KINDS[entry.kind] | 0o600, device, dir_fd=parent)
    except OSError as error:
        if error.errno != errno.EPERM or entry.kind not in ("char", "block"):
            raise
        raise TargetError(
            "is a device, which takes root's rights to make (`restore --no-special` leaves it out)"
        ) from None


class _NamedErrors:
    """Turns the operating system's errors into `TargetFull` (the run cannot go on) or `TargetError` (this item)."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise named(error) from None


_NAMED_ERRORS = _NamedErrors()
