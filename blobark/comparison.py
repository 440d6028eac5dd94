"""Comparing a tree with a manifest, by code that shares nothing with the restore but the manifest's own reading.

Each item is looked at with lstat and listxattr, each file is read and digested; every directory is listed, so that
what should not be there is found too. Where a restore without root's rights cannot set something (owners, set-id bits
for somebody else, privileged attributes) that is not compared. What its owner may not read is made readable for the
moment.
"""

from __future__ import annotations

import base64
import contextlib
import os
import stat
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from blake3 import blake3

from blobark.model import Entry, display

_READ_BYTES = 1 << 20
_KINDS = {
    "file": stat.S_IFREG,
    "dir": stat.S_IFDIR,
    "symlink": stat.S_IFLNK,
    "fifo": stat.S_IFIFO,
    "socket": stat.S_IFSOCK,
    "char": stat.S_IFCHR,
    "block": stat.S_IFBLK,
}
_SET_ID = stat.S_ISUID | stat.S_ISGID


def differences(top: bytes, places: list[bytes], entries: Iterable[Entry]) -> Iterator[tuple[str, str]]:
    """Yield (path below `top`, what is different) for a tree that should hold exactly these entries, in their order.

    `places` are the roots' paths below `top`. What the snapshot itself names as failed is not compared.
    """
    open_directories: list[_Directory] = []
    as_root = os.geteuid() == 0
    for entry in entries:
        place, path = places[entry.root], entry.raw_path
        full = b"/".join(part for part in (top, place, path) if part)
        parent, _, name = full.rpartition(b"/")
        while open_directories and not (path and full.startswith(open_directories[-1].path + b"/")):
            yield from open_directories.pop().unexpected(top)
        if open_directories and open_directories[-1].path == parent:
            open_directories[-1].names.discard(name)
        shown = _shown(top, full)
        try:
            status = os.lstat(full)
            with contextlib.ExitStack() as readable:
                readable.enter_context(_readable(full, status, as_root))
                for what in _of_item(full, entry, status, as_root) if not entry.error else ():
                    yield shown, what
                if entry.kind == "dir" and stat.S_ISDIR(status.st_mode):
                    open_directories.append(_Directory(full, set(os.listdir(full)), readable.pop_all()))
            if entry.hardlink_to_any and not entry.error:
                first = os.lstat(b"/".join(part for part in (top, place, entry.raw_hardlink_to) if part))
                if (first.st_dev, first.st_ino) != (status.st_dev, status.st_ino):
                    yield shown, "is not the hard link it was"
        except FileNotFoundError:
            if not entry.error:
                yield shown, "is missing"
        except OSError as error:
            yield shown, f"cannot be compared ({error.strerror})"
    while open_directories:
        yield from open_directories.pop().unexpected(top)


class _Directory(NamedTuple):
    """A directory whose items are compared: the names in it that no entry had yet, and what keeps it readable."""

    path: bytes
    names: set[bytes]
    readable: contextlib.ExitStack

    def unexpected(self, top: bytes) -> Iterator[tuple[str, str]]:
        """Yield what it should not have, when all its entries have come by."""
        self.readable.close()
        for name in sorted(self.names):
            yield _shown(top, self.path + b"/" + name), "is not in the snapshot"


@contextlib.contextmanager
def _readable(full: bytes, status: os.stat_result, as_root: bool) -> Iterator[None]:
    """Let the owner read a file or directory in the block, whatever its mode."""
    mode, needed = stat.S_IMODE(status.st_mode), {stat.S_IFREG: stat.S_IRUSR, stat.S_IFDIR: stat.S_IRWXU}
    more = needed.get(stat.S_IFMT(status.st_mode), 0) & ~mode
    if as_root or not more:
        yield
        return
    os.chmod(full, mode | more)
    try:
        yield
    finally:
        os.chmod(full, mode)


def _shown(top: bytes, full: bytes) -> str:
    return display(full[len(top) :].lstrip(b"/") or b".")


def _of_item(full: bytes, entry: Entry, status: os.stat_result, as_root: bool) -> Iterator[str]:
    if stat.S_IFMT(status.st_mode) != _KINDS[entry.kind]:
        yield f"is no {entry.kind}"
        return
    if not entry.hardlink_to_any:
        if entry.kind == "file" and status.st_size != entry.size:
            yield f"has {status.st_size} bytes instead of {entry.size}"
        elif entry.kind == "file" and (what := _of_content(full, entry)):
            yield what
    if entry.kind == "symlink" and os.readlink(full) != entry.raw_link:
        yield "points somewhere else"
    if entry.kind in ("char", "block") and (os.major(status.st_rdev), os.minor(status.st_rdev)) != entry.rdev:
        yield "is another device"
    is_owners = (status.st_uid, status.st_gid) == (entry.uid, entry.gid)
    mode = entry.mode if is_owners else entry.mode & ~_SET_ID
    if entry.kind != "symlink" and stat.S_IMODE(status.st_mode) != mode:
        yield f"has the mode {stat.S_IMODE(status.st_mode):04o} instead of {mode:04o}"
    if as_root and not is_owners:
        yield f"belongs to {status.st_uid}:{status.st_gid} instead of {entry.uid}:{entry.gid}"
    if status.st_mtime_ns != entry.mtime_ns:
        yield f"has another time ({status.st_mtime_ns} ns instead of {entry.mtime_ns})"
    wanted = {name: base64.b64decode(value) for name, value in (entry.xattrs or {}).items()}
    if _comparable(_attributes(full), as_root) != _comparable(wanted, as_root):
        yield "has other extended attributes"


def _of_content(full: bytes, entry: Entry) -> str:
    """Return what is wrong with a file's content, "" for nothing; see docs/format.md for a sparse file's digest."""
    hasher = blake3()
    ranges: tuple[tuple[int, int], ...] = ((0, entry.size),)
    if entry.ranges is not None:
        ranges = entry.ranges
        hasher.update("".join([f"{entry.size}\n", *(f"{start} {length}\n" for start, length in ranges)]).encode())
    with open(full, "rb", buffering=0) as file:
        end = 0
        for start, length in ranges:
            if not _is_hole(file.fileno(), end, start):
                return "has data where a hole should be"
            end = start + length
            while start < end:
                data = os.pread(file.fileno(), min(_READ_BYTES, end - start), start)
                if not data:
                    return "got shorter while it was compared"
                hasher.update(data)
                start += len(data)
        if not _is_hole(file.fileno(), end, entry.size):
            return "has data where a hole should be"
    return "" if hasher.hexdigest() == entry.digest else "has another content"


def _is_hole(descriptor: int, start: int, end: int) -> bool:
    """Whether nothing but zeros lies between; what the file system knows to be empty is not read."""
    while start < end:
        try:
            start = os.lseek(descriptor, start, os.SEEK_DATA)
        except OSError:
            return True  # no data from here on
        data = os.pread(descriptor, min(_READ_BYTES, max(end - start, 0)), start)
        if data.strip(b"\0"):
            return False
        start += max(len(data), 1)
    return True


def _attributes(full: bytes) -> dict[str, bytes]:
    if not hasattr(os, "listxattr"):
        return {}
    names = os.listxattr(full, follow_symlinks=False)
    return {name: os.getxattr(full, name, follow_symlinks=False) for name in names}


def _comparable(attributes: dict[str, bytes], as_root: bool) -> dict[str, bytes]:
    if not hasattr(os, "listxattr"):
        return {}
    own = {name: value for name, value in attributes.items() if not name.startswith(("security.", "trusted."))}
    return attributes if as_root else own
