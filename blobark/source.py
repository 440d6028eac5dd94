"""Reading the source: what an item is, and its content as one consistent reading.

Nothing here follows a symlink, waits on a FIFO or changes an access time where the kernel lets it be kept.
"""

from __future__ import annotations

import base64
import errno
import grp
import os
import pwd
import stat
from collections.abc import Iterator
from functools import cache
from operator import attrgetter
from pathlib import Path

import msgspec
from blake3 import blake3

from blobark.directories import Directories
from blobark.errors import Fatal, RootRefused, SourceError
from blobark.model import Data, Entry, Kind, display, text_or_b64

KINDS: dict[int, Kind] = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "dir",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
}

_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_OPEN_UNSEEN = _OPEN | getattr(os, "O_NOATIME", 0)
_HAS_XATTRS = hasattr(os, "listxattr")
_OPEN_FILES = b"/proc/self/fd"

MOST_RANGES = 100_000
"""An image that was written to at random may have millions, and an entry is one line of a segment, of a few MiB."""


class Status(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What counts of an lstat, under the names that it has there."""

    st_mode: int
    st_ino: int
    st_dev: int
    st_nlink: int
    st_uid: int
    st_gid: int
    st_size: int
    st_blocks: int
    st_mtime_ns: int
    st_ctime_ns: int
    st_rdev: int


Stat = os.stat_result | Status
_fields = attrgetter(*Status.__struct_fields__)


class Particulars(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What lstat does not tell of an item: where a symlink leads, and extended attributes."""

    link: bytes = b""
    xattrs: dict[str, str] | None = None


_NONE = Particulars()


def status_of(found: os.stat_result) -> Status:
    """Return what counts of an lstat."""
    return Status(*_fields(found))


def same_version(entry: Entry, status: os.stat_result) -> bool:
    """Whether a file is still the version that the entry describes."""
    return (
        entry.size == status.st_size
        and entry.mtime_ns == status.st_mtime_ns
        and entry.ctime_ns == status.st_ctime_ns
        and entry.inode == status.st_ino
    )


def particulars(parent: int, name: bytes, status: Stat) -> Particulars:
    """Return what the lstat of an item did not tell; `parent` is a descriptor of its directory.

    Raises `OSError` when the item has vanished or changed its kind, `Fatal` when there is no /proc to ask.
    """
    kind = KINDS[stat.S_IFMT(status.st_mode)]
    link = os.readlink(name, dir_fd=parent) if kind == "symlink" else b""
    xattrs = _xattrs_by_name(parent, name, kind)
    return Particulars(link, xattrs) if link or xattrs else _NONE


def describe(path: bytes, root: int, status: Stat, more: Particulars) -> Entry:
    """Return the entry of an item, without content: everything that was found out, and the names of its owners."""
    text, b64 = text_or_b64(path)
    kind = KINDS[stat.S_IFMT(status.st_mode)]
    link, link_b64 = text_or_b64(more.link)
    return Entry(
        path=text,
        path_b64=b64,
        root=root,
        kind=kind,
        size=status.st_size if kind == "file" else 0,
        mtime_ns=status.st_mtime_ns,
        ctime_ns=status.st_ctime_ns,
        inode=status.st_ino,
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        user=_user(status.st_uid),
        group=_group(status.st_gid),
        link=link,
        link_b64=link_b64,
        rdev=(os.major(status.st_rdev), os.minor(status.st_rdev)) if kind in ("char", "block") else None,
        xattrs=more.xattrs,
    )


def _xattrs_by_name(parent: int, name: bytes, kind: Kind) -> dict[str, str] | None:
    try:
        return _xattrs(b"%b/%d/%b" % (_OPEN_FILES, parent, name), follow=False)
    except FileNotFoundError:
        if not os.path.isdir(_OPEN_FILES):  # else each file would look as if it had vanished
            raise Fatal(
                "/proc is not mounted: attributes of files cannot be read", "mount -t proc proc /proc"
            ) from None
        if kind == "dir":
            return None  # moved away meanwhile; what the walk still finds in it needs its entry
        raise


def may_be_sparse(status: Stat) -> bool:
    """Whether fewer blocks are allocated than the size needs."""
    return status.st_blocks * 512 < status.st_size


def data_ranges(descriptor: int, size: int, most: int = MOST_RANGES) -> tuple[tuple[int, int], ...] | None:
    """Return the (offset, length) runs of data of a file, None when it has no hole.

    Of more than `most` the smallest holes between them count as data, which they read as.
    """
    if not hasattr(os, "SEEK_DATA"):
        return None
    ranges: list[tuple[int, int]] = []
    end, least_hole = 0, 1
    while end < size:
        try:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
            end = min(os.lseek(descriptor, start, os.SEEK_HOLE), size)
        except OSError as error:
            if error.errno == errno.ENXIO:
                break
            return None
        if start < end:
            ranges.append((start, end - start))
        if len(ranges) > most:
            ranges = _joined(ranges, least_hole)
            while len(ranges) > max(most // 2, 1):
                least_hole *= 2
                ranges = _joined(ranges, least_hole)
    ranges = _joined(ranges, least_hole)
    return None if ranges == [(0, size)] or size == 0 else tuple(ranges)


def _joined(ranges: list[tuple[int, int]], least_hole: int) -> list[tuple[int, int]]:
    """Return the ranges without the holes that are smaller."""
    joined: list[tuple[int, int]] = []
    for start, length in ranges:
        if joined and start - sum(joined[-1]) < least_hole:
            first = joined.pop()[0]
            start, length = first, start + length - first
        joined.append((start, length))
    return joined


class SourceTree:
    """The files below a root, opened without ever following a symlink on the way. For many threads.

    Raises `RootRefused` when the root is not there.
    """

    def __init__(self, root: Path) -> None:
        try:
            self._top = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            hint = "is it mounted, and is the path right?"
            raise RootRefused(f"source_path {root} cannot be read ({error.strerror})", hint) from None
        self._directories = Directories(self._top)

    def close(self) -> None:
        """Close every descriptor; no thread uses the tree any more."""
        self._directories.close()
        os.close(self._top)

    def parent(self, path: bytes) -> tuple[int, bytes]:
        """Return a descriptor of the directory that `path` lies in, and its name there ("." for the root).

        The descriptor is good until this thread asks for another. Raises `OSError`.
        """
        directory, _, name = path.rpartition(b"/")
        return self._directories.open(directory), name or b"."

    def particulars(self, path: bytes, status: Stat) -> Particulars:
        """Return what the lstat of an item did not tell. Raises `OSError`, `FileNotFoundError` where it has vanished.

        A walk stays in a folder that is moved away. What it finds there needs the entries of the folders above it.
        """
        try:
            parent, name = self.parent(path)
        except FileNotFoundError:
            if stat.S_ISDIR(status.st_mode):
                return _NONE
            raise OSError(errno.ESTALE, "its folder has been moved meanwhile") from None
        return particulars(parent, name, status)

    def ranges(self, path: bytes, size: int) -> tuple[tuple[int, int], ...] | None:
        """Return the runs of data of a file, as `data_ranges`; None where it cannot be opened: the save says why."""
        try:
            descriptor = self.open(path)
        except SourceError:
            return None
        try:
            return data_ranges(descriptor, size)
        finally:
            os.close(descriptor)

    def open(self, path: bytes) -> int:
        """Return a descriptor of the regular file `path`, positioned at its start.

        Raises:
            SourceError: it is not there, may not be read, or is no regular file any more.
        """
        try:
            parent, name = self.parent(path)
            try:
                return os.open(name, _OPEN_UNSEEN, dir_fd=parent)
            except PermissionError:
                return os.open(name, _OPEN, dir_fd=parent)  # O_NOATIME is for owners and root only
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise SourceError("is a symlink now") from None
            raise SourceError(_why(error)) from None


def check_regular(status: os.stat_result) -> None:
    """Raise `SourceError` when this is not a regular file."""
    if not stat.S_ISREG(status.st_mode):
        kind = KINDS.get(stat.S_IFMT(status.st_mode), "something else")
        raise SourceError(f"is a {kind} now")


def describe_open(descriptor: int, entry: Entry, status: os.stat_result) -> Entry:
    """Return `entry` with the metadata of an open file in place of its own; path, link and GUID stay."""
    from msgspec.structs import replace

    return replace(
        entry,
        size=status.st_size,
        mtime_ns=status.st_mtime_ns,
        ctime_ns=status.st_ctime_ns,
        inode=status.st_ino,
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        user=_user(status.st_uid),
        group=_group(status.st_gid),
        xattrs=_xattrs(descriptor, follow=True),
        ranges=data_ranges(descriptor, status.st_size) if may_be_sparse(status) else None,
    )


def status_now(descriptor: int) -> os.stat_result:
    """Return the status of an open file. Raises `SourceError`: a network's file may be gone although it is open."""
    try:
        return os.fstat(descriptor)
    except OSError as error:
        raise SourceError(_why(error)) from None


def read_whole(descriptor: int, entry: Entry) -> bytes:
    """Return the content of an open file that is small. Raises `SourceError` when the file ends before its size."""
    if entry.ranges is None and entry.size:
        data = _pread(descriptor, entry.size, 0)
        if len(data) == entry.size:
            return data
    return b"".join(read_blocks(descriptor, entry, entry.size))


def read_blocks(descriptor: int, entry: Entry, block_size_bytes: int) -> Iterator[bytes]:
    """Yield the content of an open file (its ranges, or all of it) in blocks; only the last may be shorter.

    Raises `SourceError` when the file ends before its size.
    """
    ranges = entry.ranges if entry.ranges is not None else ((0, entry.size),)
    pieces: list[bytes] = []
    wanted = block_size_bytes
    for start, length in ranges:
        offset, left = start, length
        while left:
            piece = _pread(descriptor, min(left, wanted), offset)
            pieces.append(piece)
            offset += len(piece)
            left -= len(piece)
            wanted -= len(piece)
            if not wanted:
                yield pieces[0] if len(pieces) == 1 else b"".join(pieces)
                pieces, wanted = [], block_size_bytes
    if pieces:
        yield b"".join(pieces)


def read_at(descriptor: int, size_bytes: int, offset: int) -> bytes:
    """Return up to so many bytes of an open file, at least one. Raises `SourceError` when it ends before them."""
    return _pread(descriptor, size_bytes, offset)


def content_hasher(entry: Entry) -> blake3:
    """Return the hasher of a file's digest: BLAKE3 of its bytes; of a sparse file, of its range list, then its data."""
    hasher = blake3()
    if entry.ranges is not None:
        hasher.update(range_list(entry))
    return hasher


def digest_of(entry: Entry, data: Data) -> str:
    """Return the digest of a file whose content is `data`."""
    if entry.ranges is None:
        return blake3(data).hexdigest()
    hasher = content_hasher(entry)
    hasher.update(data)
    return hasher.hexdigest()


def range_list(entry: Entry) -> bytes:
    """Return what stands for a sparse file's shape in its digest: its size, and a line for each range."""
    lines = [f"{entry.size}\n", *(f"{start} {length}\n" for start, length in entry.ranges or ())]
    return "".join(lines).encode()


def _pread(descriptor: int, size: int, offset: int) -> bytes:
    try:
        piece = os.pread(descriptor, size, offset)
    except OSError as error:
        raise SourceError(_why(error)) from None
    if not piece:
        raise SourceError("was cut short while it was read")
    return piece


def _why(error: OSError) -> str:
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return "vanished after it was indexed"
    return f"cannot be read ({error.strerror})"


def _xattrs(target: bytes | int, *, follow: bool) -> dict[str, str] | None:
    """Return the extended attributes, None when there are none or the file system has no such thing."""
    if not _HAS_XATTRS:
        return None
    try:
        names = os.listxattr(target) if follow else os.listxattr(target, follow_symlinks=False)
    except OSError as error:
        if error.errno in (errno.ENOTSUP, errno.EPERM, errno.EACCES):
            return None
        raise
    found = {}
    for name in names:
        try:
            value = os.getxattr(target, name) if follow else os.getxattr(target, name, follow_symlinks=False)
        except OSError as error:
            if error.errno in (errno.ENODATA, errno.EPERM, errno.EACCES):
                continue
            raise
        found[display(os.fsencode(name))] = base64.b64encode(value).decode()
    return found or None


@cache
def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return ""


@cache
def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return ""
