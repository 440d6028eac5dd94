"""The commands that look into snapshots: what each prints, a line an item, as it is found.

A row is what `--json` gives, and knows its line for a person. Rows come from a generator: a snapshot of millions of
entries is listed in the memory of a few segments.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from datetime import datetime
from functools import partial
from pathlib import Path

import msgspec

from blobark import browse, identity, mapfile, snapshot, tags
from blobark.browse import Tree
from blobark.catalog import Catalog
from blobark.clock import utc
from blobark.context import Context
from blobark.errors import BlobarkError, SnapshotError
from blobark.model import Entry, Header, display, printable
from blobark.output import Listing
from blobark.stores.base import Store

_KIND_LETTERS = {"file": "-", "dir": "d", "symlink": "l", "fifo": "p", "socket": "s", "char": "c", "block": "b"}


class SnapshotRow(msgspec.Struct, frozen=True):
    """A snapshot; bytes are those of the files, and of what the run sent. `seconds` is from walk to publishing."""

    number: int
    time: str
    host: str
    files: int
    file_bytes: int
    new_bytes: int
    seconds: int
    complete: bool
    rescued: bool
    errors: int
    tags: list[str]

    def line(self) -> str:
        """Return the line for a person."""
        state = "rescued" if self.rescued else "complete" if self.complete else f"incomplete ({self.errors:,} failed)"
        sizes = f"{self.files:>12,} {self.file_bytes:>18,} {self.new_bytes:>18,} {self.seconds:>8,}"
        return f"{self.number:>6} {self.time:<20} {sizes}  {state:<26} {self.host:<20}  {', '.join(self.tags)}".rstrip()


SNAPSHOTS_HEADING = (
    f"{'number':>6} {'time (UTC)':<20} {'files':>12} {'bytes':>18} {'new bytes':>18} {'seconds':>8}  "
    f"{'state':<26} {'host':<20}  tags"
)


class EntryRow(msgspec.Struct, frozen=True):
    """An item of a snapshot: path and link as printable text, size in bytes, times in ns since 1970."""

    path: str
    kind: str
    mode: int
    owner: str
    group: str
    size: int
    mtime_ns: int
    digest: str
    guid: str
    link: str
    error: str

    def line(self) -> str:
        """Return the line for a person, as `ls -l` has it."""
        mode = _KIND_LETTERS[self.kind] + stat.filemode(self.mode)[1:]
        arrow = f" -> {self.link}" if self.link else ""
        failed = f"  (failed: {self.error})" if self.error else ""
        owners = f"{self.owner:<8} {self.group:<8}"
        return f"{mode} {owners} {self.size:>14,} {_when(self.mtime_ns)} {self.path}{arrow}{failed}"


class VersionRow(msgspec.Struct, frozen=True):
    """A version of a file, and the snapshots that have it."""

    snapshots: str
    path: str
    size: int
    mtime_ns: int
    digest: str
    guid: str

    def line(self) -> str:
        """Return the line for a person."""
        return f"{self.size:>14,} {_when(self.mtime_ns)} {self.digest[:16]:<16} {self.path}  (in {self.snapshots})"


VERSIONS_HEADING = f"{'bytes':>14} {'changed (UTC)':<20} {'digest':<16} path"


class MapResult(msgspec.Struct, frozen=True):
    """A snapshot's map has been written."""

    server: str
    snapshot: int
    mapped: int
    file: str


def list_snapshots(context: Context, server: str) -> Listing:
    """List a server's snapshots, oldest first; one that cannot be read is named and passed over."""
    store = context.open_store(False)
    failed: list[tuple[str, str]] = []
    server = server_of(context, store, server)
    headers = _headers(context, store, server, failed)
    labels = tags.read(store, server)
    return Listing(SNAPSHOTS_HEADING, (_snapshot_row(header, labels) for header in headers), failed)


def list_entries(context: Context, server: str, number: int, path: bytes) -> Listing:
    """List what a snapshot (0: the newest) has at a path and below it (b"": everything).

    Raises `SnapshotError` when there is nothing at the path.
    """
    store = context.open_store(False)
    tree = Tree.open(store, server_of(context, store, server), number)
    return Listing("", map(partial(_entry_row, tree), _entries(tree, path)))


def list_matches(context: Context, server: str, pattern: str) -> Listing:
    """List each version of each path that matches a pattern in any snapshot."""
    failed: list[tuple[str, str]] = []
    trees = _trees(context, server, failed)
    found = browse.versions_matching(trees, pattern)
    return Listing(VERSIONS_HEADING, (_version_row(version) for version in found), failed)


def list_history(context: Context, server: str, path: bytes) -> Listing:
    """List the versions of a path, newest first, also under the names it had before. Raises `SnapshotError`."""
    failed: list[tuple[str, str]] = []
    trees = _trees(context, server, failed)
    wanted = browse.parse_path(path, trees)
    versions = browse.history(trees, wanted)
    first = next(versions, None)
    if first is None:
        raise SnapshotError(f"{display(wanted)} is in no snapshot", "blobark find NAME looks for a name everywhere")
    rows = (_version_row(version) for some in ([first], versions) for version in some)
    return Listing(VERSIONS_HEADING, rows, failed)


def write_map(context: Context, server: str, number: int, file: Path) -> MapResult:
    """Write the map of a snapshot (0: the newest), atomically."""
    store = context.open_store(False)
    tree = Tree.open(store, server_of(context, store, server), number)
    count = 0

    def counted() -> Iterator[tuple[str, bytes]]:
        nonlocal count
        for count, pair in enumerate(browse.map_pairs(tree), 1):  # noqa: B007 - it is what is left in the end
            yield pair

    mapfile.write(file, counted())
    return MapResult(tree.header.server, tree.header.number, count, str(file))


def server_of(context: Context, store: Store, named: str) -> str:
    """Return whose snapshots are meant: the named server's, the configuration's, this machine's, the only one."""
    return named or context.config.server or _remembered(context) or identity.server_to_restore(store)


def _remembered(context: Context) -> str:
    state_dir = context.config.state_dir
    if not (state_dir / "catalog.sqlite").exists():
        return ""
    try:
        with Catalog.open(state_dir, to_read=True) as catalog:
            return catalog.get("server")
    except (BlobarkError, OSError):
        return ""


def _headers(context: Context, store: Store, server: str, failed: list[tuple[str, str]]) -> Iterator[Header]:
    for number in snapshot.numbers(store, server):
        context.check_stop()
        try:
            header = snapshot.find(store, server, number)
        except SnapshotError as error:
            context.reporter.warn(f"failed: {error.message}")
            failed.append((f"snapshot {number}", error.message))
            continue
        if header is not None:
            yield header


def _trees(context: Context, server: str, failed: list[tuple[str, str]]) -> list[Tree]:
    store = context.open_store(False)
    name = server_of(context, store, server)
    trees = [Tree(header, snapshot.Manifest(store, name)) for header in _headers(context, store, name, failed)]
    if not trees:
        raise SnapshotError(f"server {name} has no snapshot in {store.name}", "run save_blob.py first")
    return trees


def _entries(tree: Tree, path: bytes) -> Iterator[Entry]:
    if not path:
        yield from tree.entries()
        return
    wanted = browse.parse_path(path, [tree])
    place = tree.place_of(wanted)
    found = False
    for entry in tree.below(place) if place is not None else ():
        found = True
        yield entry
    if not found:
        raise SnapshotError(f"{display(wanted)} is not in snapshot {tree.header.number}")


def _snapshot_row(header: Header, labels: dict[int, frozenset[str]]) -> SnapshotRow:
    totals = header.totals
    seconds = datetime.fromisoformat(header.ended) - datetime.fromisoformat(header.started)
    return SnapshotRow(
        number=header.number,
        time=header.started,
        host=printable(header.host.name),
        files=totals.files,
        file_bytes=totals.file_bytes,
        new_bytes=totals.new_bytes,
        seconds=int(seconds.total_seconds()),
        complete=header.complete,
        rescued=header.rescued,
        errors=totals.errors,
        tags=sorted(labels.get(header.number, ())),
    )


def _entry_row(tree: Tree, entry: Entry) -> EntryRow:
    return EntryRow(
        path=display(tree.path_of(entry)),
        kind=entry.kind,
        mode=entry.mode,
        owner=entry.user or str(entry.uid),
        group=entry.group or str(entry.gid),
        size=entry.size,
        mtime_ns=entry.mtime_ns,
        digest=entry.digest,
        guid=entry.guid,
        link=display(entry.raw_link) or display(entry.raw_hardlink_to),
        error=entry.error,
    )


def _version_row(version: browse.Version) -> VersionRow:
    entry = version.entry
    return VersionRow(
        snapshots=browse.numbers_text(version.numbers),
        path=display(version.path),
        size=entry.size,
        mtime_ns=entry.mtime_ns,
        digest=entry.digest,
        guid=entry.guid,
    )


def _when(time_ns: int) -> str:
    try:
        return utc(time_ns)
    except (ValueError, OverflowError, OSError):
        return f"{'(no such time)':<20}"
