"""The walk: every item of a source tree, in the order of a manifest, without opening any of them.

Order: a directory, then what it holds, by name as bytes; so parents come before children and the stream is sorted
by path components. It follows no symlink, holds one descriptor and the names of one directory per level, and
never swallows an error: what could not be read is an item with an `error`.
"""

from __future__ import annotations

import os
import resource
import stat
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
from msgspec.structs import replace

from blobark.errors import RootRefused
from blobark.guids import TEMPORARY_NAME
from blobark.rules import Rules
from blobark.source import Particulars, Status, particulars, status_of

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Found(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One item of the walk.

    `stat` is None when it could not be had, and `more` where it was not looked for. `error` says why a directory's
    entries, or the item itself, could not be read. `rule` names the skip rule that kept the walk out of it.
    """

    path: bytes
    stat: Status | None
    more: Particulars | None = None
    rule: str = ""
    error: str = ""

    @property
    def key(self) -> bytes:
        """The path as it is sorted by."""
        return self.path.replace(b"/", b"\0")


Walk = Generator[Found, None, None]


@dataclass(frozen=True, slots=True)
class WalkRoot:
    """A root to walk: where it is read, its real name, and the paths below it (relative) that are Blobark's own."""

    path: Path
    name: bytes
    own_paths: frozenset[bytes] = frozenset()


@dataclass(slots=True)
class _Level:
    """A directory that is being read: `prefix` is its path with the slash that its children's paths need."""

    descriptor: int
    prefix: bytes
    names: Iterator[bytes]


def raise_descriptor_limit() -> None:
    """Raise the soft limit of open files to the hard one: a walk holds one descriptor a level."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def walk(root: WalkRoot, rules: Rules, *, one_file_system: bool, since_ns: int) -> Walk:
    """Yield every item below `root`, the root itself first.

    What changed its status at `since_ns` (since 1970 UTC) or later, and each name of a hard-link group, comes with all
    there is to know; of the others that is `more` than they are likely to need.

    A directory that a skip rule matches is yielded and not entered; so is one on another file system, when
    `one_file_system`. What `exclude` matches, and Blobark's own files, are not yielded at all.

    Raises:
        RootRefused: the root is missing, not a directory, or cannot be read.
    """
    try:
        top = os.open(root.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        hint = "is it mounted, and is the path right?"
        raise RootRefused(f"source_path {root.path} cannot be read ({error.strerror})", hint) from None
    levels: list[_Level] = []
    try:
        status = status_of(os.fstat(top))
        yield Found(b"", status, particulars(top, b".", status))
        levels.append(_Level(top, b"", _names(top)))
        while levels:
            level = levels[-1]
            name = next(level.names, None)
            if name is None:
                os.close(levels.pop().descriptor)
                continue
            found = _look(root, rules, level, name, since_ns)
            if found is None:
                continue
            entered = None
            if _is_entered(found, status.st_dev if one_file_system else None):
                entered, found = _enter(level, name, found)
            yield found
            if entered is not None:
                levels.append(entered)
    except OSError as error:
        raise RootRefused(f"source_path {root.path} cannot be read ({error.strerror})") from None
    finally:
        for level in levels:
            os.close(level.descriptor)


def _look(root: WalkRoot, rules: Rules, level: _Level, name: bytes, since_ns: int) -> Found | None:
    """Return the item `name` of a directory, None when it is excluded, Blobark's own, or gone since."""
    path = level.prefix + name
    if path in root.own_paths or (name.startswith(b".") and TEMPORARY_NAME.fullmatch(name)):
        return None
    status = more = None
    rule = error = ""
    try:
        status = status_of(os.stat(name, dir_fd=level.descriptor, follow_symlinks=False))
        is_dir = stat.S_ISDIR(status.st_mode)
        if rules.excludes(path, is_dir):
            return None
        rule = rules.skips(root.name, path, is_dir)
        if status.st_ctime_ns >= since_ns or (status.st_nlink > 1 and not is_dir):
            more = particulars(level.descriptor, name, status)
    except FileNotFoundError:
        return None
    except OSError as failure:
        error = why_unreadable(failure)
    return Found(path, status, more, rule, error)


def _is_entered(found: Found, device: int | None) -> bool:
    """Whether the walk goes into an item: a directory that no rule skips, on `device` where that matters."""
    status = found.stat
    if status is None or found.rule or not stat.S_ISDIR(status.st_mode):
        return False
    return device is None or status.st_dev == device


def _enter(level: _Level, name: bytes, found: Found) -> tuple[_Level | None, Found]:
    """Open a directory; return None and the item with its error where that fails."""
    descriptor = -1
    try:
        descriptor = os.open(name, _DIRECTORY, dir_fd=level.descriptor)
        return _Level(descriptor, found.path + b"/", _names(descriptor)), found
    except OSError as error:
        if descriptor >= 0:
            os.close(descriptor)
        return None, replace(found, error=why_unreadable(error))


def why_unreadable(error: OSError) -> str:
    """Return what is said of an item that could not be looked at."""
    return f"cannot be read ({error.strerror})"


def _names(descriptor: int) -> Iterator[bytes]:
    return iter(sorted(map(os.fsencode, os.listdir(descriptor))))
