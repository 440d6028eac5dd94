"""`--delete`: what a selected directory of the target has and the snapshot does not have goes.

    stream the portion's entries; of each directory that is chosen itself, remember what the snapshot has in it
    when all below a directory has come by, list it: what is there beside that is an extra
    an extra that is a directory is emptied first, deepest first, and goes when nothing in it has to stay

What stays, whatever it is: what the selection would not take; what the configuration leaves out of backups, which no
snapshot can know; what is in a directory that a rule skipped; Blobark's own files; mount points.
A directory in the place of something else makes room for it as it comes by; all other extras go when everything is
restored. Symlinks are names like others: nothing is removed through one. All of it is done by `Target`.
"""

from __future__ import annotations

import enum
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from blobark.context import Context
from blobark.errors import TargetError
from blobark.model import Entry, display
from blobark.selection import Chosen
from blobark.target import Target

MOST_LISTED = 1000
"""So many removals are in a result by name; all are counted."""


class Why(enum.Enum):
    """Why something is removed, or stays although the snapshot does not have it."""

    EXTRA = "the snapshot does not have it"
    IN_THE_WAY = "the snapshot has something else there"
    OTHER_MOUNT = "another file system is mounted there"


class Removed(NamedTuple):
    """Something that is removed; in a dry run, that would be."""

    path: str
    reason: str


class _Open(NamedTuple):
    """A directory of the portion whose entries are coming by; `have` is what the snapshot has in it."""

    root: int
    path: bytes
    landing: bytes
    have: set[bytes] | None
    """None: it is not chosen itself, or the snapshot does not know what is in it."""
    mount: int


class _Emptying:
    """An extra directory on its way out."""

    def __init__(self, path: bytes, landing: bytes, names: list[bytes]) -> None:
        self.path = path
        self.landing = landing
        self.names = iter(names)
        self.stays = False


class Removal:
    """The removals of one restore."""

    def __init__(
        self,
        context: Context,
        target: Target,
        top: Path,
        roots: list[bytes],
        chosen: Chosen,
        *,
        keep_special: bool,
        dry_run: bool,
    ) -> None:
        self._context = context
        self._target = target
        self._top = os.fsencode(os.path.realpath(top))
        self._roots = roots
        self._chosen = chosen
        self._keep_special = keep_special
        self._dry_run = dry_run
        self._own = {os.fsencode(os.path.realpath(path)) for path in context.config.own_paths()}
        self.key: Callable[[bytes], bytes] = bytes
        """What two names have in common that are one to the target."""
        self.count = self.bytes = 0
        self.listed: list[Removed] = []
        self.failed: list[tuple[str, str]] = []

    def make_room(self, entry: Entry, landing: bytes) -> bool:
        """Remove a directory that is in the place of an item that is none; say whether there was one and it is gone."""
        try:
            there = self._target.look(landing) if self._target.exists else None
            if there is None or not stat.S_ISDIR(there.st_mode):
                return False
            mount = self._target.mount_of(landing.rpartition(b"/")[0])
            return self._remove(entry.root, entry.raw_path, landing, mount, Why.IN_THE_WAY)
        except TargetError:
            return False  # who restores the item will say so

    def extras(self, items: Iterable[tuple[Entry, bytes]]) -> None:
        """Remove all extras; `items` are the portion's entries, in order, with the paths they land at."""
        if not self._target.exists:
            return
        above: list[_Open] = []
        for entry, landing in items:
            path = entry.raw_path
            parent = path.rpartition(b"/")[0]
            while above and ((above[-1].root, above[-1].path) != (entry.root, parent) or not path):
                self._sweep(above.pop())
            if above and above[-1].have is not None:
                above[-1].have.add(self.key(landing.rpartition(b"/")[2]))
            if entry.kind == "dir":
                above.append(self._opened(entry, path, landing, above[-1] if above else None))
        while above:
            self._sweep(above.pop())

    def _opened(self, entry: Entry, path: bytes, landing: bytes, parent: _Open | None) -> _Open:
        """Return a directory as one whose extras are to be found, if they are."""
        closed = _Open(entry.root, path, landing, None, -1)
        if entry.rule or not self._chosen.takes(entry.root, path, True) or not self._is_directory(landing):
            return closed
        try:
            mount = self._target.mount_of(landing)
        except TargetError as error:
            self._fail(landing, error.message)
            return closed
        if parent is not None and parent.have is None and parent.mount >= 0:
            return closed._replace(mount=parent.mount)  # below a mount point that was left
        if parent is not None and parent.have is not None and parent.mount != mount:
            self._stay(landing, Why.OTHER_MOUNT)
            return closed._replace(mount=parent.mount)
        return _Open(entry.root, path, landing, set(), mount)

    def _is_directory(self, landing: bytes) -> bool:
        if not landing:
            return True
        try:
            there = self._target.look(landing)
        except TargetError:
            return False
        return there is not None and stat.S_ISDIR(there.st_mode)

    def _sweep(self, directory: _Open) -> None:
        have = directory.have
        if have is None:
            return
        self._context.check_stop()
        try:
            names = self._target.names(directory.landing)
        except TargetError as error:
            self._fail(directory.landing, error.message)
            return
        for name in sorted(name for name in names if self.key(name) not in have):
            path, landing = _join(directory.path, name), _join(directory.landing, name)
            self._remove(directory.root, path, landing, directory.mount, Why.EXTRA)

    def _remove(self, root: int, path: bytes, landing: bytes, mount: int, why: Why) -> bool:
        """Remove an item with all that is in it, as far as it may go; say whether it is gone."""
        stack: list[_Emptying] = []
        gone = self._enter(root, path, landing, mount, why)
        while True:
            if isinstance(gone, _Emptying):
                stack.append(gone)
            elif not stack:
                return gone
            elif not gone:
                stack[-1].stays = True
            last = stack[-1]
            name = next(last.names, None)
            if name is not None:
                gone = self._enter(root, _join(last.path, name), _join(last.landing, name), mount, why)
            else:
                stack.pop()
                gone = not last.stays and self._take_away(last.landing, 0, why, is_dir=True)

    def _enter(self, root: int, path: bytes, landing: bytes, mount: int, why: Why) -> _Emptying | bool:
        """Look at an item: remove it and say whether it is gone, or return a directory that has to be emptied first."""
        try:
            there = self._target.look(landing)
            if there is None:
                return True
            is_dir = stat.S_ISDIR(there.st_mode)
            if self._is_protected(root, path, landing, there):
                return False
            if not is_dir:
                size = there.st_size if stat.S_ISREG(there.st_mode) and there.st_nlink == 1 else 0
                return self._take_away(landing, size, why, is_dir=False)
            if self._mount_of(landing) != mount:
                return self._stay(landing, Why.OTHER_MOUNT)
            return _Emptying(path, landing, sorted(self._target.names(landing)))
        except TargetError as error:
            return self._fail(landing, error.message)

    def _mount_of(self, landing: bytes) -> int:
        try:
            return self._target.mount_of(landing)
        except TargetError:
            if self._dry_run:
                raise
            self._target.make_directory(landing, replace=False)  # which opens it to its owner
            return self._target.mount_of(landing)

    def _is_protected(self, root: int, path: bytes, landing: bytes, there: os.stat_result) -> bool:
        is_dir, rules = stat.S_ISDIR(there.st_mode), self._context.rules
        is_special = not (is_dir or stat.S_ISREG(there.st_mode) or stat.S_ISLNK(there.st_mode))
        name = self._roots[root]
        return (
            not self._chosen.takes(root, path, is_dir)
            or (is_special and self._keep_special)
            or bool(rules.skips(name, path, is_dir) or rules.excludes(path, is_dir))
            or self._top.rstrip(b"/") + b"/" + landing in self._own
        )

    def _take_away(self, landing: bytes, size: int, why: Why, *, is_dir: bool) -> bool:
        shown = display(landing)
        if not self._dry_run:
            try:
                self._target.remove(landing, is_dir=is_dir)
            except TargetError as error:
                return self._fail(landing, error.message.replace("written", "removed"))
        self.count += 1
        self.bytes += size
        if len(self.listed) < MOST_LISTED:
            self.listed.append(Removed(shown, why.value))
        if not self._dry_run:
            kind = "dir" if is_dir else "file"
            self._context.items.note(landing, "deleted", kind=kind, reason=why.value, bytes=size)
        tell = self._context.reporter.tell if self._dry_run else self._context.reporter.detail
        tell(f"{'would remove' if self._dry_run else 'removed'}: {shown}: {why.value}")
        return True

    def _stay(self, landing: bytes, why: Why) -> bool:
        self._context.reporter.warn(f"warning: {display(landing)} stays: {why.value}")
        return False

    def _fail(self, landing: bytes, why: str) -> bool:
        self.failed.append((display(landing), why))
        self._context.items.note(landing, "failed", error=why)
        self._context.reporter.warn(f"failed: {display(landing)}: {why}")
        return False


def _join(path: bytes, name: bytes) -> bytes:
    return path + b"/" + name if path and name else path or name


def items_of(places: list[bytes], entries: Iterable[Entry]) -> Iterator[tuple[Entry, bytes]]:
    """Yield entries with the paths they land at."""
    for entry in entries:
        yield entry, _join(places[entry.root], entry.raw_path)
