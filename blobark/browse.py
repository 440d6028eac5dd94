"""Looking into snapshots: which there are, what is in one, where a file is, what changed, how a file came to be.

Everything is read from the store and streams: a segment is read when its turn has come. Segments that two snapshots
share are read once, or not at all where only what differs is asked for. A path is found by halving, since the
segments of a manifest are in the order of their paths.
"""

from __future__ import annotations

import fnmatch
import heapq
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

from blobark import snapshot
from blobark.context import full_path
from blobark.errors import ConfigError, SnapshotError
from blobark.guids import blob_name
from blobark.model import Entry, Header, SegmentRef, SortKey, display, sort_key
from blobark.stores.base import Store


class Place(NamedTuple):
    """A path in a snapshot: the number of its root, and what comes below that."""

    root: int
    path: bytes


@dataclass(frozen=True, slots=True)
class Tree:
    """One snapshot to be read."""

    header: Header
    manifest: snapshot.Manifest
    _first_keys: dict[int, SortKey] = field(default_factory=dict, repr=False, compare=False)
    """Where the segments begin that were read while a path was looked for."""

    @classmethod
    def open(cls, store: Store, server: str, number: int = 0) -> Tree:
        """Open snapshot `number`, the newest for 0. Raises `SnapshotError`."""
        header = snapshot.load(store, server, number) if number else snapshot.latest(store, server)
        if header is None:
            raise SnapshotError(f"server {server} has no snapshot in {store.name}", "run save_blob.py first")
        return cls(header, snapshot.Manifest(store, server))

    @property
    def roots(self) -> list[bytes]:
        """The names of its roots, in the order of the manifest."""
        return [root.raw_name for root in self.header.roots]

    def path_of(self, entry: Entry) -> bytes:
        """Return an entry's absolute path."""
        return full_path(self.roots[entry.root], entry.raw_path)

    def place_of(self, path: bytes) -> Place | None:
        """Return where an absolute path is in this snapshot, None where no root is above it."""
        for number, name in sorted(enumerate(self.roots), key=lambda pair: -len(pair[1])):
            if path == name or path.startswith(name.rstrip(b"/") + b"/"):
                return Place(number, path[len(name) :].strip(b"/"))
        return None

    def entries(self, refs: Sequence[SegmentRef] | None = None) -> Iterator[Entry]:
        """Yield the entries of all segments, or of some, in order."""
        for ref in self.header.segments if refs is None else refs:
            yield from self._read(ref)

    def below(self, place: Place) -> Iterator[Entry]:
        """Yield the entry at a path and all that lie below it."""
        key = sort_key(*place)
        inside = place.path + b"/" if place.path else b""
        for entry in self.entries(self.header.segments[self._segment_at(key) :]):
            if entry.sort_key < key:
                continue
            path = entry.raw_path
            if entry.root != place.root or not (path == place.path or path.startswith(inside)):
                return
            yield entry

    def find(self, place: Place) -> Entry | None:
        """Return the entry at a path, None when there is none."""
        entry = next(self.below(place), None)
        return entry if entry is not None and entry.raw_path == place.path else None

    def refs_of(self, places: Iterable[Place]) -> list[SegmentRef]:
        """Return the segments that may have these paths, what lies below them, and the directories above them."""
        wanted: set[int] = set()
        for place in places:
            root, path = place
            above = path
            while above:
                above = above.rpartition(b"/")[0]
                wanted.add(self._segment_at(sort_key(root, above)))
            key = sort_key(*place)
            after = (root, key[1] + b"\1") if path else (root + 1, b"")
            last = self._segment_at(after)
            wanted.update(range(self._segment_at(key), last + 1))
        return [self.header.segments[number] for number in sorted(wanted)] if self.header.segments else []

    def _first_key(self, number: int) -> SortKey:
        if number not in self._first_keys:
            self._first_keys[number] = self._read(self.header.segments[number])[0].sort_key
        return self._first_keys[number]

    def _segment_at(self, key: SortKey) -> int:
        """Return the place of the last segment that does not begin after `key`."""
        low, high = 0, len(self.header.segments) - 1
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self._first_key(middle) <= key else (low, middle - 1)
        return max(low, 0)

    def _read(self, ref: SegmentRef) -> list[Entry]:
        entries = self.manifest.read(ref)
        try:
            keys = [entry.sort_key for entry in entries]
            for entry in entries:
                if entry.link_b64 or entry.hardlink_to_b64:
                    _ = entry.raw_link, entry.raw_hardlink_to
        except ValueError:
            raise SnapshotError(f"segment {ref.digest} is damaged: a path is no base64") from None
        if not entries or any(entry.root not in range(len(self.header.roots)) for entry in entries):
            raise SnapshotError(f"segment {ref.digest} is damaged: it has a root that is not there")
        if keys != sorted(keys):
            raise SnapshotError(f"segment {ref.digest} is damaged: it is out of order")
        return entries


def parse_path(text: bytes, trees: Sequence[Tree]) -> bytes:
    """Return the absolute path that a person means: as it is, or below the only root there is.

    Raises `ConfigError` for a relative one where there are several roots.
    """
    path = text.rstrip(b"/") or text[:1]
    if path.startswith(b"/"):
        return path
    roots = {root for tree in trees for root in tree.roots}
    if len(roots) != 1:
        names = ", ".join(display(root) for root in sorted(roots))
        raise ConfigError(f"{display(path)} could be below any of {names}", "write the whole path")
    return full_path(roots.pop(), path)


class Difference(NamedTuple):
    """What became of a path: +, -, M (content), T (kind) or U (only metadata), with what it was and is."""

    change: str
    path: bytes
    before: Entry | None
    after: Entry | None


def differences(before: Tree, after: Tree) -> Iterator[Difference]:
    """Yield how two snapshots differ, in the order of the paths. Segments that both have are not read."""
    left, right = before.header.segments, after.header.segments
    common = {ref.digest for ref in left} & {ref.digest for ref in right} if before.roots == after.roots else set()
    for ours, theirs in zip(_runs(left, common), _runs(right, common), strict=True):
        yield from _merged(before, ours, after, theirs)


def _runs(refs: Sequence[SegmentRef], common: set[str]) -> Iterator[list[SegmentRef]]:
    """Yield the segments before the first common one, those between it and the next, ..., those after the last."""
    run: list[SegmentRef] = []
    for ref in refs:
        if ref.digest in common:
            yield run
            run = []
        else:
            run.append(ref)
    yield run


def _merged(before: Tree, ours: list[SegmentRef], after: Tree, theirs: list[SegmentRef]) -> Iterator[Difference]:
    both = heapq.merge(_keyed(before, ours, 0), _keyed(after, theirs, 1), key=itemgetter(0, 1))
    for _, group in groupby(both, key=itemgetter(0)):
        found = {side: entry for _, side, entry in group}
        old, new = found.get(0), found.get(1)
        if old is None or new is None:
            path = after.path_of(new) if new is not None else before.path_of(found[0])
            yield Difference("+" if new is not None else "-", path, old, new)
        elif change := _change(old, new):
            yield Difference(change, after.path_of(new), old, new)


def _keyed(tree: Tree, refs: list[SegmentRef], side: int) -> Iterator[tuple[tuple[bytes, bytes], int, Entry]]:
    """Yield entries with keys that mean the same in every snapshot, which a root's number does not, and the side."""
    roots = tree.roots
    for entry in tree.entries(refs):
        yield (roots[entry.root], entry.sort_key[1]), side, entry


def _change(old: Entry, new: Entry) -> str:
    if old.kind != new.kind:
        return "T"
    if not _same_content(old, new) or (old.raw_link, old.rdev) != (new.raw_link, new.rdev):
        return "M"
    ours, theirs = _metadata(old), _metadata(new)
    return "U" if ours != theirs else ""


def _metadata(entry: Entry) -> tuple[object, ...]:
    mtime_ns = entry.mtime_ns if entry.kind != "dir" else 0  # it changes with what is in it, which is told anyway
    return (
        *(entry.mode, entry.uid, entry.gid, entry.xattrs, mtime_ns),
        *(entry.raw_hardlink_to, entry.rule, entry.error, entry.stale),
    )


class Version(NamedTuple):
    """A version of a file, the path it had, and the snapshots that have it so."""

    path: bytes
    entry: Entry
    numbers: list[int]


def versions_matching(trees: Sequence[Tree], pattern: str) -> list[Version]:
    """Return each version of each path that matches in any of the snapshots, by path and age.

    A pattern without a slash is compared with the name, another one with the whole path; `*`, `?` and `[...]` mean
    what they do in a shell, but that `*` crosses slashes.
    """
    matches = re.compile(fnmatch.translate(pattern)).match
    owners: dict[str, list[Tree]] = {}
    for tree in trees:
        for ref in tree.header.segments:
            owners.setdefault(ref.digest, []).append(tree)
    found: dict[tuple[bytes, int, str, int], Version] = {}
    done: set[str] = set()
    for tree in trees:
        for ref in tree.header.segments:
            if ref.digest in done:
                continue
            done.add(ref.digest)
            for entry in tree.entries([ref]):
                for owner in owners[ref.digest]:  # the same segment may be of another root elsewhere
                    path = owner.path_of(entry)
                    text = path.decode(errors="surrogateescape")
                    if matches(text if "/" in pattern else text.rpartition("/")[2]):
                        key = path, entry.mtime_ns, entry.digest, entry.ctime_ns
                        found.setdefault(key, Version(path, entry, [])).numbers.append(owner.header.number)
    for version in found.values():
        version.numbers.sort()
    return sorted(found.values(), key=lambda version: (version.path, version.numbers))


def history(trees: Sequence[Tree], path: bytes) -> Iterator[Version]:
    """Yield the versions of a path, newest first; `trees` are in ascending order. A renamed file is followed back.

    A further hard link is what it is a link of: its entry says nothing of the content.
    """
    seen: Version | None = None
    after: Tree | None = None
    for tree in reversed(trees):
        place = tree.place_of(path)
        entry = tree.find(place) if place is not None else None
        if entry is not None and entry.hardlink_to_any:
            entry = tree.find(Place(entry.root, entry.raw_hardlink_to)) or entry
        if entry is None and seen is not None and after is not None and seen.entry.guid:
            entry = _renamed(tree, after, seen.entry.guid)
            path = tree.path_of(entry) if entry is not None else path
        if entry is None:
            if seen is not None:
                yield seen
            seen = None
        elif seen is not None and seen.path == path and _same_version(seen.entry, entry):
            seen.numbers.insert(0, tree.header.number)
        else:
            if seen is not None:
                yield seen
            seen = Version(path, entry, [tree.header.number])
        after = tree
    if seen is not None:
        yield seen


def _same_version(one: Entry, other: Entry) -> bool:
    if one.hardlink_to_any or other.hardlink_to_any:
        return one.kind == other.kind and _same_content(one, other)
    return (one.kind, one.guid, one.digest, one.raw_link) == (other.kind, other.guid, other.digest, other.raw_link)


def _same_content(one: Entry, other: Entry) -> bool:
    """Whether two entries have the same content. A further hard link has no digest: there size and time tell."""
    if one.kind == "file" and (one.hardlink_to_any or other.hardlink_to_any):
        return (one.size, one.mtime_ns) == (other.size, other.mtime_ns)
    return one.digest == other.digest


def _renamed(tree: Tree, after: Tree, guid: str) -> Entry | None:
    """Return the entry with a GUID that is in `tree` and, under this path, not in `after`."""
    known = {ref.digest for ref in after.header.segments} if tree.roots == after.roots else set()
    refs = [ref for ref in tree.header.segments if ref.digest not in known]
    return next((entry for entry in tree.entries(refs) if entry.guid == guid), None)


def map_pairs(tree: Tree) -> Iterator[tuple[str, bytes]]:
    """Yield the (blob key, absolute path) lines of a snapshot's map; the path of a placeholder ends in a slash."""
    for entry in tree.entries():
        if entry.is_mapped and entry.digest:
            path = tree.path_of(entry)
            yield blob_name(tree.header.server, entry.guid), path + b"/" if entry.kind == "dir" else path


def numbers_text(numbers: Sequence[int]) -> str:
    """Return ascending snapshot numbers as a person writes them: 3-7, 9. A range has every number between its ends."""
    runs = []
    for _, group in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
        run = [number for _, number in group]
        runs.append(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}")
    return ", ".join(runs)
