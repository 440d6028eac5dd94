"""The merge at the heart of an index: the walk of now beside the entries of the run before, both sorted.

Each path is met once and decided by `plan`; the result is a draft. Memory does not grow with the number of entries,
but for hard-link groups whose paths have not all been met.
"""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from msgspec.structs import replace

from blobark import plan, source
from blobark.catalog import DraftWriter
from blobark.context import Context, full_path
from blobark.guids import GuidSource
from blobark.indexed import IndexResult
from blobark.model import Entry, Root, display, text_or_b64
from blobark.plan import Change, Reason
from blobark.reread import Reader, reading_cost
from blobark.source import Particulars, SourceTree, Status
from blobark.walk import Found, Walk, why_unreadable

PROGRESS_EVERY = 1000

FRESH_NS = 2_000_000_000
"""A ctime this close before a reading may hide a later change; file systems count in steps of up to two seconds."""


class _Group(NamedTuple):
    """A hard-link group: the path of its first entry, and how many of its paths are still to come."""

    first: bytes
    left: int


class DraftBuilder:
    """One index run's decisions. `previous` yields the entries of the run before, renumbered to today's roots."""

    def __init__(
        self,
        context: Context,
        draft: DraftWriter,
        result: IndexResult,
        previous: Iterable[Entry] | None,
        trusted_before_ns: int,
    ) -> None:
        self._context = context
        self._draft = draft
        self._result = result
        self._tallies = result.tallies
        self._guids = GuidSource()
        self._how = context.config.change_detection
        self._trusted_before_ns = trusted_before_ns
        self._has_previous = previous is not None
        self._entries = iter(previous or ())
        self._before = next(self._entries, None)
        self._before_key = self._before.sort_key if self._before else (0, b"")
        self._stale_below = b""
        self._stale_error = ""
        self._groups: dict[tuple[int, int], _Group] = {}
        self._gone_firsts: dict[bytes, Entry] = {}
        self._root = 0
        self._root_name = b""
        self._names = [source.name for source in context.sources()]
        self._added = 0

    def run(self) -> None:
        """Walk every root into the draft, then settle what only the whole walk could tell."""
        for number, configured in enumerate(self._context.sources()):
            self._root, self._root_name = number, configured.name
            self._groups.clear()
            self._gone_firsts.clear()
            self._stale_below = b""
            self._added = 0
            with contextlib.closing(SourceTree(configured.path)) as self._tree:
                self._merge(self._context.scout.walk(number, self._since_ns()))
            self._advance_to_end()
            self._result.roots.append(Root(*text_or_b64(configured.name), self._added))
        self._context.scout.call_back()
        self._draft.finish()
        if self._has_previous:
            self._settle_renames()
            self._settle_doubts()

    def _merge(self, items: Walk) -> None:
        """Take the items of a root, each beside the entry that the run before had of it."""
        with contextlib.closing(items):
            for found in items:
                self._take(found, self._advance(found.key))
                if not self._added % PROGRESS_EVERY:
                    self._context.check_stop()
                    self._context.reporter.advance(PROGRESS_EVERY, 0)

    # The stream of the run before

    def _since_ns(self) -> int:
        """Return the ctime from which on an item of this root is not expected to stand; 0: none is."""
        is_known = self._before is not None and self._before_key[0] == self._root
        return self._trusted_before_ns if is_known and self._how != "digest" else 0

    def _advance(self, key: bytes) -> Entry | None:
        """Pass over what was before `key`, and return the entry that was there, if one was."""
        wanted = (self._root, key)
        while self._before is not None and self._before_key < wanted:
            self._pass(self._before, self._before_key[1])
            self._next()
        if self._before is None or self._before_key != wanted:
            return None
        previous = self._before
        self._next()
        return previous

    def _advance_to_end(self) -> None:
        while self._before is not None and self._before_key[0] == self._root:
            self._pass(self._before, self._before_key[1])
            self._next()

    def _next(self) -> None:
        self._before = next(self._entries, None)
        if self._before is not None:
            self._before_key = self._before.sort_key

    def _pass(self, previous: Entry, key: bytes) -> None:
        """A path that was not met: gone, or unknown because a directory above it could not be read."""
        if self._stale_below and key.startswith(self._stale_below):
            if not previous.rule or previous.kind == "dir":
                entry = self._with_content(previous)
                self._add(replace(entry, stale=True, error=self._stale_error), previous.raw_path)
            return
        if previous.kind != "dir":
            self._tallies["gone"].add(previous.size)
            self._note(previous.root, previous.raw_path, "gone", kind=previous.kind)
        if previous.has_content and not previous.rule:
            self._draft.gone(previous)
            if previous.links > 1:
                self._gone_firsts[previous.raw_path] = previous

    def _with_content(self, link: Entry) -> Entry:
        """Return a hard link that could not be looked at; in place of its group's first path, if that is gone."""
        first = link.raw_hardlink_to
        heir = self._gone_firsts.get(first) if first else None
        if heir is None:
            return link
        if heir.raw_path != first:
            return replace(link, hardlink_to=heir.path, hardlink_to_b64=heir.path_b64)
        alone = self._gone_firsts[first] = carry(replace(link, hardlink_to="", hardlink_to_b64=""), heir)
        return alone

    # One item

    def _take(self, found: Found, previous: Entry | None) -> None:
        status = found.stat
        if found.error or status is None:
            self._unreadable(found, previous)
            return
        if previous is not None and not found.rule and self._stands(previous, status):
            if previous.kind != "dir":
                self._count("unchanged", previous, Reason.UNCHANGED)
            self._add(previous, found.path)
            return
        try:
            entry = source.describe(found.path, self._root, status, self._more(found, status))
        except FileNotFoundError:
            return
        except OSError as error:
            self._unreadable(replace(found, error=why_unreadable(error)), previous)
            return
        if found.rule:
            self._skipped(entry, found, previous)
        elif entry.kind == "file":
            self._file(entry, found, status, previous)
        else:
            if previous is None or previous.kind != entry.kind:
                self._count("new", entry, Reason.NEW if previous is None else Reason.KIND_CHANGED)
            else:
                same = previous.link == entry.link and previous.mode == entry.mode and previous.uid == entry.uid
                same = same and previous.mtime_ns == entry.mtime_ns
                self._count("unchanged" if same else "changed", entry, plan.why_sent(entry, previous))
            self._add(entry, found.path)

    def _more(self, found: Found, status: Status) -> Particulars:
        """Return what lstat has not told of an item. Raises `OSError` as `SourceTree.particulars` does."""
        return found.more or self._tree.particulars(found.path, status)

    def _stands(self, previous: Entry, status: Status) -> bool:
        """Whether the entry can stand as it is; links of a group are looked at anew, the group may have changed."""
        return (
            plan.same_item(previous, status, self._trusted_before_ns)
            and not previous.rule
            and (previous.kind != "file" or (previous.digest != "" and status.st_nlink == 1))
            and self._how != "digest"
        )

    def _file(self, entry: Entry, found: Found, status: Status, previous: Entry | None) -> None:
        """Decide the content of a regular file."""
        if status.st_nlink > 1:
            entry = replace(entry, links=status.st_nlink)
            first = self._first_of_group(found.path, status)
            if first is not None:
                text, b64 = text_or_b64(first)
                same = previous is not None and previous.raw_hardlink_to == first
                reason = Reason.NEW if previous is None else Reason.FURTHER_NAME
                self._count("unchanged" if same else "new" if previous is None else "changed", entry, reason)
                self._add(replace(entry, hardlink_to=text, hardlink_to_b64=b64), found.path)
                if previous is not None and previous.has_content:
                    self._draft.gone(previous)  # its content is its group's, which has another first path now
                return
        if source.may_be_sparse(status):
            entry = replace(entry, ranges=self._tree.ranges(found.path, entry.size))
        if previous is None or previous.rule or previous.hardlink_to_any:
            self._count("new", entry, Reason.NEW)
            entry = replace(entry, guid=self._guids.next())
            sequence = self._add(entry, found.path)
            if self._has_previous:
                self._draft.fresh(sequence, entry)
            return
        change, reason = plan.compare(previous, status, self._how, self._trusted_before_ns)
        if change is Change.KEEP:
            entry = carry(entry, previous)
            self._count("unchanged" if previous.digest else "new", entry, reason)
            self._add(entry, found.path)
            return
        self._count("changed", entry, reason)
        entry = replace(entry, guid=self._guids.next())
        sequence = self._add(entry, found.path)
        if change is Change.READ:
            self._draft.doubt(sequence, entry, previous)

    def _skipped(self, entry: Entry, found: Found, previous: Entry | None) -> None:
        """Leave out a file; let a placeholder stand for a directory."""
        self._tallies["skipped"].add(entry.size)
        self._note(entry.root, found.path, "skipped", kind=entry.kind, reason=found.rule)
        entry = replace(entry, rule=found.rule)
        if entry.kind == "dir":
            had = previous is not None and previous.rule and previous.guid
            placed = carry(entry, previous) if had and previous else replace(entry, guid=self._guids.next())
            self._add(placed, found.path)
        else:
            self._draft.add(replace(entry, kind="file"), found.path)

    def _unreadable(self, found: Found, previous: Entry | None) -> None:
        """Name what cannot be read; what was known of it, and of all below it, stays as stale."""
        path = full_path(self._root_name, found.path)
        self._result.errors.append((display(path), found.error))
        self._context.reporter.warn(f"{display(path)}: {found.error}")
        self._tallies["unreadable"].add(0)
        self._note(self._root, found.path, "unreadable", error=found.error)
        self._stale_below, self._stale_error = found.key + b"\0" if found.key else b"", found.error
        text, b64 = text_or_b64(found.path)
        entry = previous or Entry(path=text, path_b64=b64, root=self._root)
        if found.stat is not None and stat.S_ISDIR(found.stat.st_mode):
            try:
                entry = source.describe(found.path, self._root, found.stat, self._more(found, found.stat))
            except OSError:
                entry = previous or replace(entry, kind="dir")
        self._add(replace(entry, error=found.error, stale=previous is not None), found.path)

    def _first_of_group(self, path: bytes, status: Status) -> bytes | None:
        """Return the first path of a file's hard-link group, None when this is it."""
        identity = (status.st_dev, status.st_ino)
        group = self._groups.pop(identity, None)
        first, left = group or _Group(path, status.st_nlink)
        if left > 1:
            self._groups[identity] = _Group(first, left - 1)
        return None if group is None else first

    def _add(self, entry: Entry, path: bytes) -> int:
        self._added += 1
        if entry.kind == "dir":
            self._result.dirs += 1
        return self._draft.add(entry, path)

    def _count(self, tally: str, entry: Entry, reason: Reason) -> None:
        if entry.kind != "dir":
            self._tallies[tally].add(entry.size)
            if tally != "unchanged":
                self._note(entry.root, entry.raw_path, tally, kind=entry.kind, reason=reason.value)

    def _note(self, root: int, path: bytes, action: str, was: Entry | None = None, **facts: str) -> None:
        """Write a line into the journal, if there is one, and name the item with `-v`, and what it was called before.

        In a first run, in which all is new, the lines of the map do that.
        """
        items, reporter = self._context.items, self._context.reporter
        is_told = reporter.verbose and (action == "skipped" or (self._has_previous and action != "unreadable"))
        if not items.is_on and not is_told:
            return
        shown = full_path(self._names[root], path)
        if items.is_on:
            items.note(shown, action, **facts)
        if is_told:
            before = f"{display(full_path(self._names[was.root], was.raw_path))} -> " if was else ""
            reporter.detail(f"{action if was else facts.get('reason', action)}: {before}{display(shown)}")

    # What only the whole walk could tell

    def _settle_renames(self) -> None:
        """Give files under new paths the content of the gone path that has their inode."""
        settled = -1
        for sequence, entry, gone in self._draft.renames():
            if sequence == settled:
                continue
            change, _ = plan.compare_renamed(gone, entry, self._how)
            if change is Change.RENEW:
                continue
            settled = sequence
            self._tallies["gone"].add(gone.size, -1)
            self._tallies["new"].add(entry.size, -1)
            if change is Change.KEEP:
                self._tallies["renamed"].add(entry.size)
                self._note(entry.root, entry.raw_path, "renamed", gone, reason=Reason.RENAMED.value, guid=gone.guid)
                self._draft.overlay(sequence, carry(entry, gone))
            else:
                self._tallies["changed"].add(entry.size)
                self._draft.doubt(sequence, entry, gone)

    def _settle_doubts(self) -> None:
        """Read the doubtful files; where the digest is the same, so is the GUID."""
        trees = [SourceTree(source.path) for source in self._context.sources()]
        try:
            work = Reader(trees, self._context.engine.stages)
            for _, reading in self._context.engine.run(self._draft.doubts(), work, cost=reading_cost):
                entry, previous = reading.entry, reading.previous
                self._context.reporter.advance(0, entry.size)
                if reading.error:
                    path = full_path(self._context.sources()[entry.root].name, entry.raw_path)
                    self._result.errors.append((display(path), reading.error))
                    self._context.reporter.warn(f"{display(path)}: {reading.error}")
                    self._tallies["changed"].add(entry.size, -1)
                    self._tallies["unreadable"].add(entry.size)
                    self._note(entry.root, entry.raw_path, "unreadable", error=reading.error)
                    if entry.raw_path == previous.raw_path:
                        self._draft.overlay(reading.sequence, replace(previous, stale=True, error=reading.error))
                if reading.same:
                    moved = entry.raw_path != previous.raw_path
                    self._tallies["changed"].add(entry.size, -1)
                    found = "renamed" if moved else "unchanged"
                    self._tallies[found].add(entry.size)
                    facts = {"reason": Reason.SAME_CONTENT.value, "guid": previous.guid, "digest": previous.digest}
                    self._note(entry.root, entry.raw_path, found, previous if moved else None, **facts)
                    self._draft.overlay(reading.sequence, carry(entry, previous))
        finally:
            for tree in trees:
                tree.close()


def carry(entry: Entry, previous: Entry) -> Entry:
    """Return `entry` with the content of `previous`."""
    return replace(
        entry,
        guid=previous.guid,
        digest=previous.digest,
        ranges=previous.ranges,
        extents=previous.extents,
        blocks=previous.blocks,
        blocks_at=previous.blocks_at,
        block_bits=previous.block_bits,
        changed_while_read=previous.changed_while_read,
    )


def renumbered(entries: Iterable[tuple[int, Entry]], numbers: dict[int, int]) -> Iterator[Entry]:
    """Yield the entries of roots that are still configured, under today's root numbers."""
    for _, entry in entries:
        number = numbers.get(entry.root)
        if number is not None:
            yield entry if number == entry.root else replace(entry, root=number)
