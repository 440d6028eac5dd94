"""`blobark diff`: what became of each path from one snapshot to another, and what it comes to.

A file that is gone under one path and new under another one with the same GUID was renamed. A further hard link has no
GUID: there inode, size and time tell. All that can be told when all differences are known, so they wait in a temporary
file, and are listed then.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec

from blobark import browse
from blobark.browse import Difference, Tree
from blobark.context import Context
from blobark.listings import server_of
from blobark.model import Entry, display
from blobark.output import Listing, Row
from blobark.scratch import Differences

PROGRESS_EVERY = 1000
LEGEND = "+ new   - gone   R renamed   M other content   T another kind   U other metadata"
COUNTED = {"+": "new", "-": "gone", "R": "renamed", "M": "content", "T": "kind", "U": "metadata"}
"""How the marks are called in the result."""


class DifferenceRow(msgspec.Struct, frozen=True):
    """What became of a path, as LEGEND has it; `path_before` is what a renamed one was called."""

    change: str
    path: str
    bytes_before: int
    bytes_after: int
    path_before: str = ""

    def line(self) -> str:
        """Return the line for a person."""
        if self.path_before:
            return f"{self.change} {self.path_before} -> {self.path}"
        sizes = f"  ({self.bytes_before:,} -> {self.bytes_after:,} bytes)" if self.change == "M" else ""
        return f"{self.change} {self.path}{sizes}"


class DiffResult(msgspec.Struct):
    """What all of it comes to: numbers of paths."""

    server: str
    before: int
    after: int
    new: int = 0
    gone: int = 0
    renamed: int = 0
    content: int = 0
    kind: int = 0
    metadata: int = 0


@dataclass(frozen=True, slots=True)
class Changes(Listing):
    """What a diff lists."""

    result: DiffResult = field(default_factory=lambda: DiffResult("", 0, 0))

    @property
    def closing(self) -> DiffResult:
        """As `Listing.closing`."""
        return self.result


def list_differences(context: Context, server: str, before: int, after: int) -> Changes:
    """List what changed from one snapshot to another (0: the newest)."""
    store = context.open_store(False)
    server = server_of(context, store, server)
    trees = Tree.open(store, server, before), Tree.open(store, server, after)
    result = DiffResult(server, trees[0].header.number, trees[1].header.number)

    def rows() -> Iterator[Row]:
        with Differences.open() as found:
            context.reporter.begin("diff", 0, 0)
            for number, difference in enumerate(browse.differences(*trees)):
                found.add(difference.change, *_traits(difference), msgspec.json.encode(_row(difference)))
                if not number % PROGRESS_EVERY:
                    context.check_stop()
                context.reporter.advance(1, 0)
            for line, gone in found.paired():
                row = msgspec.json.decode(line, type=DifferenceRow)
                if gone is not None:
                    was = msgspec.json.decode(gone, type=DifferenceRow)
                    row = DifferenceRow("R", row.path, was.bytes_before, row.bytes_after, was.path)
                name = COUNTED[row.change]
                setattr(result, name, getattr(result, name) + 1)
                yield row

    return Changes(LEGEND, rows(), result=result)


def _traits(found: Difference) -> tuple[str, str]:
    """Return what a file that is gone or new has in common with what it was renamed to or from, "" for nothing.

    That is its GUID, and for each name of a hard-link group what tells the group.
    """
    entry: Entry | None = found.after if found.before is None else found.before if found.after is None else None
    if entry is None or entry.kind != "file":
        return "", ""
    is_linked = entry.inode and (entry.links > 1 or entry.hardlink_to_any)
    return entry.guid if entry.has_content else "", f"{entry.inode} {entry.size} {entry.mtime_ns}" if is_linked else ""


def _row(found: Difference) -> DifferenceRow:
    before, after = found.before, found.after
    sizes = before.size if before is not None else 0, after.size if after is not None else 0
    return DifferenceRow(found.change, display(found.path), *sizes)
