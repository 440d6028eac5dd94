"""Decisions, as values with a named reason. Pure: nothing here reads a file, a store, or the clock."""

from __future__ import annotations

import enum
import os
import stat
from typing import Literal, NamedTuple

from blobark.model import Entry
from blobark.source import KINDS, Stat

ChangeDetection = Literal["strict", "no-inode", "mtime", "digest"]


class Reason(enum.Enum):
    """Why an item is treated as it is; the words stand in journals and summaries."""

    NEW = "new"
    KIND_CHANGED = "kind changed"
    SIZE_CHANGED = "size changed"
    MTIME_CHANGED = "mtime changed"
    CTIME_CHANGED = "ctime changed"
    INODE_CHANGED = "inode changed"
    TOO_FRESH = "changed around the last run"
    ASKED_TO_READ = "change_detection is digest"
    NOT_STORED = "not stored yet"
    UNCHANGED = "unchanged"
    RENAMED = "renamed"
    MAYBE_RENAMED = "perhaps renamed"
    SAME_CONTENT = "read, and its content is the same"
    FURTHER_NAME = "a further name of a file"


class Change(enum.Enum):
    """What becomes of the content that a file had before."""

    KEEP = "keep"
    """It is the same content: its GUID is carried over, unread."""
    READ = "read"
    """It may be the same: an equal digest keeps its GUID."""
    RENEW = "renew"
    """It is other content: a new GUID."""


class Verdict(NamedTuple):
    """A decision and why it was made."""

    change: Change
    reason: Reason


UNCHANGED = Verdict(Change.KEEP, Reason.UNCHANGED)


def compare(previous: Entry, status: Stat, how: ChangeDetection, trusted_before_ns: int) -> Verdict:
    """Decide what becomes of a regular file's content, from its entry of the last run and its lstat of now.

    A ctime at or after `trusted_before_ns` (two seconds before the last walk began) may hide a change that was made
    in the same tick of the clock: such a file is read. Content that was never stored keeps its GUID only unread.
    """
    if previous.kind != "file" or not stat.S_ISREG(status.st_mode) or not previous.guid:
        return Verdict(Change.RENEW, Reason.KIND_CHANGED if previous.kind != "file" else Reason.NEW)
    if previous.size != status.st_size:
        return Verdict(Change.RENEW, Reason.SIZE_CHANGED)
    reason = _doubt(previous, status, how, trusted_before_ns)
    if not previous.digest:
        return Verdict(Change.RENEW, reason) if reason else Verdict(Change.KEEP, Reason.NOT_STORED)
    return Verdict(Change.READ, reason) if reason else UNCHANGED


def _doubt(previous: Entry, status: Stat, how: ChangeDetection, trusted_before_ns: int) -> Reason | None:
    """Return why metadata alone cannot tell that a file of unchanged size is unchanged, None when it can."""
    if how == "digest":
        return Reason.ASKED_TO_READ
    if previous.mtime_ns != status.st_mtime_ns:
        return Reason.MTIME_CHANGED
    if how == "mtime":
        return None
    if previous.ctime_ns != status.st_ctime_ns:
        return Reason.CTIME_CHANGED
    if how == "strict" and previous.inode != status.st_ino:
        return Reason.INODE_CHANGED
    return Reason.TOO_FRESH if status.st_ctime_ns >= trusted_before_ns and previous.digest else None


def why_sent(entry: Entry, previous: Entry | None) -> Reason:
    """Name what sets an entry whose content is to be stored apart from what the newest snapshot has at its path."""
    if previous is None:
        return Reason.NEW
    if previous.kind != entry.kind:
        return Reason.KIND_CHANGED
    if previous.size != entry.size:
        return Reason.SIZE_CHANGED
    if previous.mtime_ns != entry.mtime_ns:
        return Reason.MTIME_CHANGED
    if previous.ctime_ns != entry.ctime_ns:
        return Reason.CTIME_CHANGED
    return Reason.INODE_CHANGED if previous.inode != entry.inode else Reason.NOT_STORED


def compare_renamed(gone: Entry, found: Entry, how: ChangeDetection) -> Verdict:
    """Decide whether a file under a new path is the one, with the same inode number, that a gone path named."""
    same = gone.has_content and not gone.stale and gone.size == found.size and gone.mtime_ns == found.mtime_ns
    if not same or how in ("no-inode", "mtime"):
        return Verdict(Change.RENEW, Reason.NEW)
    if gone.ctime_ns != found.ctime_ns or how == "digest":
        return Verdict(Change.READ, Reason.MAYBE_RENAMED)
    return Verdict(Change.KEEP, Reason.RENAMED)


def same_item(previous: Entry, status: Stat, trusted_before_ns: int) -> bool:
    """Whether lstat says that nothing at all has changed, so that the entry can stand as it is."""
    return (
        previous.ctime_ns == status.st_ctime_ns < trusted_before_ns
        and previous.inode == status.st_ino
        and previous.mtime_ns == status.st_mtime_ns
        and (previous.size == status.st_size or previous.kind != "file")
        and previous.mode == stat.S_IMODE(status.st_mode)
        and previous.uid == status.st_uid
        and previous.gid == status.st_gid
        and previous.kind == KINDS[stat.S_IFMT(status.st_mode)]
        and not previous.error
        and not previous.stale
    )


ABSENT = "absent"
"""Why something is written where nothing was."""
Overwrite = Literal["always", "if-changed", "never"]


class Fate(enum.Enum):
    """What a restore does with an item."""

    WRITE = "write"
    CHECK = "check"
    """The file there may be right already: its digest tells."""
    LEAVE = "leave"
    REFUSE = "refuse"


def restore_fate(entry: Entry, there: os.stat_result | None, overwrite: Overwrite) -> tuple[Fate, str]:
    """Decide what a restore does with a file, link or special file, from the lstat of what is in its place."""
    if there is None:
        return Fate.WRITE, ABSENT
    if overwrite == "never":
        return Fate.LEAVE, "something is there, and --overwrite is never"
    if stat.S_ISDIR(there.st_mode):
        return Fate.REFUSE, "a directory is in its place"
    if overwrite == "always":
        return Fate.WRITE, "overwritten"
    if KINDS[stat.S_IFMT(there.st_mode)] != entry.kind:
        return Fate.WRITE, "another kind is there"
    if entry.kind == "file" and (there.st_size != entry.size or not entry.digest):
        return Fate.WRITE, "another file is there"
    return Fate.CHECK, "perhaps right already"
