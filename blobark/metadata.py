"""Metadata of what is restored: owner, extended attributes, mode, times; for `target`, and for nobody else.

Always in this order, in which each keeps the ones before: a change of owner takes away set-user-id bits, an ACL is
part of the mode, and everything but the times changes none of them. An owner or an attribute that cannot be set, as
in a container that does not know the owner, costs nothing else: the rest is set, then it is named.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import os
import stat

from blobark.errors import TargetError
from blobark.model import Entry

SPECIAL_KINDS = {"fifo": stat.S_IFIFO, "socket": stat.S_IFSOCK, "char": stat.S_IFCHR, "block": stat.S_IFBLK}

_PRIVILEGED = ("security.", "trusted.")
_INHERITED = ("user.", "system.posix_acl")
_ACL = "system.posix_acl_access"
_PATH = getattr(os, "O_PATH", 0)
_HAS_XATTRS = hasattr(os, "setxattr")


def apply(descriptor: int, entry: Entry, *, as_root: bool) -> None:
    """Make an open file or directory what the entry says, touching only what differs.

    Raises:
        TargetError: its owner or an attribute cannot be set; all else has been.
        OSError: something else cannot.
    """
    status, lost = os.fstat(descriptor), ""
    if as_root and (status.st_uid, status.st_gid) != (entry.uid, entry.gid):
        lost = _give(descriptor, entry)
        status = os.fstat(descriptor)
    problem = _apply_xattrs(descriptor, entry, as_root) or lost
    mode = mode_of(entry, status.st_uid, status.st_gid)
    if entry.xattrs or stat.S_IMODE(status.st_mode) != mode:
        os.chmod(descriptor, mode)
    if status.st_mtime_ns != entry.mtime_ns:
        os.utime(descriptor, ns=(entry.mtime_ns, entry.mtime_ns))
    if problem:
        raise TargetError(problem)


def apply_new(descriptor: int, entry: Entry, *, as_root: bool, is_bare: bool) -> None:
    """As `apply`, for a file that has just been made: its time differs for sure.

    `is_bare`: it has inherited no attributes, as `makes_bare` says of its directory.
    """
    status, lost = os.fstat(descriptor), ""
    if as_root and (status.st_uid, status.st_gid) != (entry.uid, entry.gid):
        lost = _give(descriptor, entry)
        status = os.fstat(descriptor)
    problem = lost if is_bare and not entry.xattrs else _apply_xattrs(descriptor, entry, as_root) or lost
    mode = mode_of(entry, status.st_uid, status.st_gid)
    if entry.xattrs or not is_bare or stat.S_IMODE(status.st_mode) != mode:
        os.fchmod(descriptor, mode)
    os.utime(descriptor, ns=(entry.mtime_ns, entry.mtime_ns))
    if problem:
        raise TargetError(problem)


def makes_bare(directory: int) -> bool:
    """Whether what is made in an open directory inherits no attributes from it: an ACL is all that is inherited."""
    if not _HAS_XATTRS:
        return True
    try:
        return "system.posix_acl_default" not in os.listxattr(directory)
    except OSError:
        return False


def apply_unopened(parent: int, name: bytes, entry: Entry, *, as_root: bool) -> None:
    """As `apply`, for what cannot be opened: a symlink, a FIFO, a socket, a device."""
    problem = _give(name, entry, parent) if as_root else ""
    place = _place(parent, name)
    if _HAS_XATTRS and entry.kind != "symlink" and not makes_bare(parent):
        with contextlib.suppress(OSError):  # it need not have inherited one
            os.removexattr(place, _ACL, follow_symlinks=False)
    for key, value in _wanted(entry, as_root).items():
        try:
            os.setxattr(place, key, value, follow_symlinks=False)
        except OSError as error:
            problem = _unset(key, error)
    if entry.kind != "symlink":
        status = os.stat(name, dir_fd=parent, follow_symlinks=False)
        change_mode(parent, name, mode_of(entry, status.st_uid, status.st_gid), SPECIAL_KINDS[entry.kind])
    os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=parent, follow_symlinks=False)
    if problem:
        raise TargetError(problem)


def is_applied(descriptor: int, entry: Entry, *, as_root: bool) -> bool:
    """Whether an open file has the entry's mode, time, owner (as root) and extended attributes."""
    status = os.fstat(descriptor)
    return (
        stat.S_IMODE(status.st_mode) == mode_of(entry, status.st_uid, status.st_gid)
        and status.st_mtime_ns == entry.mtime_ns
        and (not as_root or (status.st_uid, status.st_gid) == (entry.uid, entry.gid))
        and _xattrs(descriptor, as_root) == _wanted(entry, as_root)
    )


def is_applied_unopened(parent: int, name: bytes, status: os.stat_result, entry: Entry, *, as_root: bool) -> bool:
    """As `is_applied`, for what cannot be opened and has this lstat; of more attributes only inheritable ones count."""
    if (
        status.st_mtime_ns != entry.mtime_ns
        or (as_root and (status.st_uid, status.st_gid) != (entry.uid, entry.gid))
        or (entry.kind != "symlink" and stat.S_IMODE(status.st_mode) != mode_of(entry, status.st_uid, status.st_gid))
    ):
        return False
    wanted = _wanted(entry, as_root)
    if entry.kind == "symlink" and not wanted:
        return True  # it has no mode and no ACL
    have = _xattrs(_place(parent, name), as_root, follow=False)
    return {key: value for key, value in have.items() if key in wanted or key.startswith(_INHERITED)} == wanted


def mode_of(entry: Entry, uid: int, gid: int) -> int:
    """Return the mode for what these now own: without the set-id bits where those were meant for another."""
    if (entry.uid, entry.gid) == (uid, gid):
        return entry.mode
    return entry.mode & ~(stat.S_ISUID | stat.S_ISGID)


def needs_root(entry: Entry) -> bool:
    """Whether who restores, and is not root, cannot set all of it: an owner that is another, or an attribute."""
    is_mine = (entry.uid, entry.gid) == (os.geteuid(), os.getegid())
    return not is_mine or any(name.startswith(_PRIVILEGED) for name in entry.xattrs or ())


def change_mode(parent: int, name: bytes, mode: int, kind: int) -> None:
    """Set the mode of something of this kind (S_IFMT) that need not be readable; of nothing that took its place."""
    if not _PATH:
        os.chmod(name, mode, dir_fd=parent, follow_symlinks=False)
        return
    descriptor = os.open(name, _PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        if stat.S_IFMT(os.fstat(descriptor).st_mode) != kind:
            raise TargetError("something else has taken its place")
        os.chmod(f"/proc/self/fd/{descriptor}", mode)
    finally:
        os.close(descriptor)


def _give(place: int | bytes, entry: Entry, parent: int | None = None) -> str:
    """Give a descriptor, or a name in `parent`, to its owner; return why that is not for us to do, "" when it is."""
    try:
        os.chown(place, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=parent is None)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EINVAL):
            raise
        owner = f"{entry.uid}:{entry.gid}"
        return f"its owner {owner} cannot be set ({error.strerror}; `restore --no-owner` leaves owners out)"
    return ""


def _apply_xattrs(descriptor: int, entry: Entry, as_root: bool) -> str:
    """Set the attributes; return what could not be set, "" when all could. A new file may have inherited an ACL."""
    if not _HAS_XATTRS:
        return ""
    problem = ""
    wanted, have = _wanted(entry, as_root), _xattrs(descriptor, as_root)
    if wanted == have:
        return problem
    for name in have.keys() - wanted.keys():
        if name.startswith(_INHERITED):
            os.removexattr(descriptor, name)
    for name, value in wanted.items():
        if have.get(name) != value:
            try:
                os.setxattr(descriptor, name, value)
            except OSError as error:
                problem = _unset(name, error)
    return problem


def _unset(name: str, error: OSError) -> str:
    return f"its attribute {name} cannot be set ({error.strerror})"


def _wanted(entry: Entry, as_root: bool) -> dict[str, bytes]:
    if not entry.xattrs:
        return {}
    xattrs = entry.xattrs.items()
    return {name: base64.b64decode(value) for name, value in xattrs if as_root or not name.startswith(_PRIVILEGED)}


def _xattrs(place: int | bytes, as_root: bool, *, follow: bool = True) -> dict[str, bytes]:
    """Return the attributes of an open file or, with `follow` False, of what is at a path."""
    if not _HAS_XATTRS:
        return {}
    try:
        names = os.listxattr(place, follow_symlinks=follow)
        names = [name for name in names if as_root or not name.startswith(_PRIVILEGED)]
        return {name: os.getxattr(place, name, follow_symlinks=follow) for name in names}
    except OSError:
        return {}


def _place(parent: int, name: bytes) -> bytes:
    """Return a path of what lies in an open directory, for the calls that take no descriptor of one."""
    return b"/proc/self/fd/%d/%b" % (parent, name)
