"""Whether a target can hold what is to be restored: asked before anything is written, and told all at once.

    limits    the longest name and path, free bytes and inodes: the system tells
    names     which names it takes, and which it takes for one: tried in an empty directory that is removed again
    entries   looked at once; where none of the above is special, only at the length of their paths

A name is tried and not derived from a file system's name: that alone is certain. A dry run tries no names. Space is
refused only where it cannot be enough: what is there with the right size counts as right.
"""

from __future__ import annotations

import contextlib
import os
import stat
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from blobark.context import Context
from blobark.errors import Fatal, TargetError
from blobark.fetch import tag_of
from blobark.guids import TEMPORARY_PREFIX
from blobark.model import Entry, display
from blobark.plan import Overwrite
from blobark.snapshot import Portion
from blobark.stores.base import BLOCK_SIZE_BYTES
from blobark.target import Target, TrialNames

MOST_NAMED = 100
USUAL_NAME_BYTES = 255
"""What every name of the systems that Blobark runs on has room in; a target with as much needs no look at names."""
_MOST_CHARACTER_BYTES = 4
_ODD = b"".join(bytes([number]) for number in (*range(1, 32), 127)) + b'"*:<>?\\|'
_NO_FILE_BYTES = 1 << 60
"""A size that only a damaged entry has: it fails by itself, and is no reason to restore nothing."""
_BLOCK_UNIT_BYTES = 512
"""What `st_blocks` counts."""

Items = Iterator[tuple[Entry, bytes]]
"""Entries with the paths they land at, in the order of a manifest."""


@dataclass(frozen=True, slots=True)
class Names:
    """What a target does with names."""

    most_bytes: int = USUAL_NAME_BYTES
    most_path_bytes: int = 4096
    folds_case: bool = False
    folds_form: bool = False
    """Whether composed and decomposed letters are the same."""
    refused: bytes = b""
    """Characters that it does not take."""
    refuses_bytes: bool = False
    """Whether it takes only UTF-8."""
    refuses_ends: bool = False
    """Whether a name may not end in a dot or a space."""

    @property
    def is_usual(self) -> bool:
        """Whether it takes whatever the systems take that Blobark runs on."""
        odd = self.refused or self.refuses_bytes or self.refuses_ends or self.folds
        return not odd and self.most_bytes >= USUAL_NAME_BYTES

    @property
    def folds(self) -> bool:
        """Whether two names may be one to it."""
        return self.folds_case or self.folds_form

    def key(self, name: bytes) -> bytes:
        """Return what names have in common that are one to it."""
        if not self.folds:
            return name
        text = name.decode(errors="surrogateescape")
        if self.folds_case:
            text = unicodedata.normalize("NFD", text).casefold()
        return unicodedata.normalize("NFD", text).encode(errors="surrogateescape")

    def fault_of(self, name: bytes) -> str:
        """Say why it does not take a name, "" where it does."""
        if len(name) > self.most_bytes:
            return f"its name has {len(name)} bytes, and {self.most_bytes} are the most"
        if self.refused and (found := [character for character in self.refused if character in name]):
            return f"its name has {display(bytes(found[:1]))}, which is not taken there"
        if self.refuses_ends and name[-1:] in (b".", b" "):
            return "its name ends in a dot or a space, which is not taken there"
        if self.refuses_bytes:
            try:
                name.decode()
            except UnicodeDecodeError:
                return "its name is not UTF-8, which is not taken there"
        return ""


def names_of(target: Target, root: Path, place: bytes | None) -> Names:
    """Find out what a target does with names: they are tried at `place` below it; None: its limits alone are asked."""
    there = root / os.fsdecode(place or b"")
    while not there.exists() and there != there.parent:
        there = there.parent
    most_name, most_path = _limit(there, "PC_NAME_MAX", USUAL_NAME_BYTES), _limit(there, "PC_PATH_MAX", 4096)
    if place is None:
        return Names(most_name, most_path)
    try:
        with target.trial_names(_nearest(target, place)) as trial:
            return _tried(trial, most_name, most_path)
    except TargetError:  # nothing can be made at the top, so each item that goes there will say so
        return Names(most_name, most_path)


def _nearest(target: Target, place: bytes) -> bytes:
    """Return the directory at `place`, or the nearest above it that is there."""
    while place:
        with contextlib.suppress(TargetError):
            target.directory(place)
            return place
        place = place.rpartition(b"/")[0]
    return b""


def _tried(trial: TrialNames, most_name: int, most_path: int) -> Names:
    refused = b""
    if not trial.takes(b"odd" + _ODD):
        refused = bytes(character for character in _ODD if not trial.takes(b"odd%c" % character))
    trial.takes(b"CaSe")
    trial.takes("caf\u00e9".encode())
    return Names(
        most_name,
        most_path,
        folds_case=trial.has(b"cAsE"),
        folds_form=trial.has("cafe\u0301".encode()),
        refused=refused,
        refuses_bytes=not trial.takes(b"bytes\xff"),
        refuses_ends=not (trial.takes(b"dot.") and trial.takes(b"space ")),
    )


def _limit(place: Path, name: str, usual: int) -> int:
    try:
        return os.pathconf(place, name)
    except (OSError, ValueError):
        return usual


@dataclass(slots=True)
class _Found:
    """What speaks against a restore."""

    named: list[str] = field(default_factory=list)
    count: int = 0

    def add(self, landing: bytes, why: str) -> None:
        self.count += 1
        if len(self.named) < MOST_NAMED:
            self.named.append(f"{display(landing)}: {why}")


@dataclass(slots=True)
class _Disk:
    """A file system that is restored to: what is free on it, and what it needs at the very least."""

    free_bytes: int
    free_inodes: int | None
    """None: it does not count them."""
    needed_bytes: int = 0
    needed_inodes: int = 0

    @classmethod
    def of(cls, descriptor: int, *, is_root: bool) -> _Disk:
        there = os.fstatvfs(descriptor)
        free = there.f_bfree if is_root else there.f_bavail
        inodes = (there.f_ffree if is_root else there.f_favail) if there.f_files else None
        return cls(free * there.f_frsize, inodes)

    def lacks(self, size_bytes: int, inodes: int) -> bool:
        return size_bytes > self.free_bytes or (self.free_inodes is not None and inodes > self.free_inodes)


class Room:
    """What is free where a restore goes to, and what it needs of it. Entries come in the order of a manifest."""

    def __init__(self, target: Target, overwrite: Overwrite) -> None:
        self._target = target
        self._overwrite = overwrite
        top = os.fstat(target.descriptor).st_dev
        self._disks = {top: _Disk.of(target.descriptor, is_root=target.is_root)}
        self._above: list[tuple[bytes, int, bool]] = [(b"", top, True)]
        """The directories above: path, device (their own or the nearest that is there), and whether they are there."""

    def suffices(self, size_bytes: int, inodes: int) -> bool:
        """Whether so much fits into restore_root's own file system."""
        return not next(iter(self._disks.values())).lacks(size_bytes, inodes)

    def add(self, entry: Entry, landing: bytes) -> None:
        """Count what an item needs that is not there in its size."""
        while len(self._above) > 1 and not landing.startswith(self._above[-1][0] + b"/"):
            self._above.pop()
        _, device, is_there = self._above[-1]
        there = self._look(landing) if is_there else None
        if entry.kind == "dir" and landing:
            is_dir = there is not None and stat.S_ISDIR(there.st_mode)
            own = there.st_dev if there is not None and is_dir else device
            if own not in self._disks:
                self._disks[own] = _Disk.of(self._target.directory(landing), is_root=self._target.is_root)
            self._above.append((landing, own, is_dir))
        disk = self._disks[device]
        if there is None:
            disk.needed_inodes += not entry.hardlink_to_any
        if entry.kind == "file" and not entry.hardlink_to_any and entry.content_size < _NO_FILE_BYTES:
            disk.needed_bytes += self._bytes(entry, landing, there)

    def _bytes(self, entry: Entry, landing: bytes, there: os.stat_result | None) -> int:
        needed = entry.content_size
        if there is not None and stat.S_ISREG(there.st_mode):
            if self._overwrite == "never" or (there.st_size == entry.size and self._overwrite != "always"):
                return 0
            needed -= there.st_blocks * _BLOCK_UNIT_BYTES
        if entry.content_size > BLOCK_SIZE_BYTES and (part := self._look(_part_of(landing))) is not None:
            needed -= part.st_blocks * _BLOCK_UNIT_BYTES  # of a restore that was interrupted
        return needed

    def _look(self, landing: bytes) -> os.stat_result | None:
        try:
            return self._target.look(landing) if landing else os.fstat(self._target.descriptor)
        except TargetError:
            return None

    @property
    def lack(self) -> str:
        """Say what is missing, "" where nothing is."""
        for disk in self._disks.values():
            if disk.lacks(disk.needed_bytes, disk.needed_inodes):
                inodes = "" if disk.free_inodes is None else f", {disk.free_inodes:,} inodes"
                needed = f"{disk.needed_bytes:,} bytes and {disk.needed_inodes:,} inodes are needed at the least"
                return f"{needed}, and {disk.free_bytes:,} bytes{inodes} are free"
        return ""


def may_be_long(portion: Portion, names: Names, root: Path) -> bool:
    """Whether any path may be too long where it lands. It never is: so this looks at the length of lines first."""
    most = names.most_path_bytes - len(os.fsencode(root)) - max(map(len, portion.places)) - 3
    for ref in portion.header.segments:
        if has_line_above(most, portion.manifest.lines(ref)):
            entries = portion.manifest.read(ref)
            if any(max(len(entry.path) * _MOST_CHARACTER_BYTES, len(entry.path_b64)) > most for entry in entries):
                return True
    return False


def has_line_above(most: int, text: bytes) -> bool:
    """Whether a line is longer than that; looks only at where it would have to end."""
    begin = 0
    while len(text) - begin > most:
        end = text.rfind(b"\n", begin, begin + most + 1)
        if end < 0:
            return True
        begin = end + 1
    return False


def check(
    context: Context,
    root: Path,
    names: Names,
    items: Callable[[], Items],
    room: Room | None,
) -> None:
    """Raise `Fatal` with all that a target cannot hold; `room` is given where there may be too little."""
    found = _Found()
    for number, (entry, landing) in enumerate(_collisions(names, items(), found) if names.folds else items()):
        if not number % 4096:
            context.check_stop()
        _check_path(names, root, landing, found)
        if room is not None:
            room.add(entry, landing)
    if room is not None and room.lack:
        found.add(os.fsencode(root), room.lack)
    if found.count:
        more = [f"and {found.count - MOST_NAMED:,} more"] if found.count > MOST_NAMED else []
        lines = [f"{display(os.fsencode(root))} cannot hold all of it:", *found.named, *more, "nothing was written"]
        message = "\n".join(lines) if found.count > 1 else f"{lines[1]}; nothing was written"
        raise Fatal(message, "say --exclude PATTERN to leave something out, or --to another place")


def _check_path(names: Names, root: Path, landing: bytes, found: _Found) -> None:
    most = names.most_path_bytes - len(os.fsencode(root)) - 2
    if len(landing) > most:
        found.add(landing, f"its path would have more than {names.most_path_bytes - 1} bytes")
    if not names.is_usual and (fault := names.fault_of(landing.rpartition(b"/")[2])):
        found.add(landing, fault)


def _collisions(names: Names, items: Items, found: _Found) -> Iterator[tuple[Entry, bytes]]:
    """Pass the items on; note those that are one to the target, which only what is in one directory can be."""
    above: list[tuple[bytes, dict[bytes, bytes]]] = []
    for entry, landing in items:
        parent, _, name = landing.rpartition(b"/")
        while above and above[-1][0] != parent:
            above.pop()
        if above and landing:
            other = above[-1][1].setdefault(names.key(name), name)
            if other != name:
                found.add(landing, f"{display(other)} is beside it, and these names are one there")
        if entry.kind == "dir":
            above.append((landing, {}))
        yield entry, landing


def _part_of(landing: bytes) -> bytes:
    parent, slash, _ = landing.rpartition(b"/")
    return parent + slash + f"{TEMPORARY_PREFIX}{tag_of(landing)}.part".encode()
