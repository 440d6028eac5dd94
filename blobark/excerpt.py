"""An excerpt of a snapshot: what a restore has chosen of it, as a manifest of its own in a temporary file.

    stream the entries, of the segments that can hold the given paths alone
    an item that is chosen comes with the directories above it, which are held back until then
    of a hard-link group whose first name is not chosen, the first chosen name gets its content
    owners are changed, special files left out, leading components of the paths taken off
    what is left is cut into segments again, as any manifest is

So whoever restores needs to know nothing of selections. The file has no name, lies in TMPDIR, and takes about a
hundred bytes an entry.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO

from msgspec.structs import replace

from blobark.browse import Place, Tree, parse_path
from blobark.errors import ConfigError, Fatal, SnapshotError
from blobark.manifest import check_path, places_of
from blobark.model import Entry, Header, SegmentRef, SortKey, Totals, display, sort_key, text_or_b64
from blobark.owners import Owners
from blobark.rules import Patterns
from blobark.scratch import Landing
from blobark.segments import SegmentWriter, decode_entry, encode_entry
from blobark.selection import NO_PATTERNS, Chosen, Selection
from blobark.snapshot import Manifest, Portion

SPECIAL = ("fifo", "socket", "char", "block")
MOST_NAMED = 20
"""So many collisions are named."""
_FEW_SEGMENTS = 4


@dataclass(frozen=True, slots=True)
class Edits:
    """What is done to the entries that are chosen."""

    owners: Owners = field(default_factory=Owners)
    no_special: bool = False
    strip: int = 0
    """So many leading components are taken off the path at which an item would land."""

    def __bool__(self) -> bool:
        """Whether anything is."""
        return bool(self.owners or self.no_special or self.strip)


class LocalManifest(Manifest):
    """A manifest in a temporary file."""

    def __init__(self) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile(prefix="blobark-")  # noqa: SIM115 - `close` does
        self._stored: dict[str, tuple[int, int]] = {}
        self.refs: list[SegmentRef] = []

    def add(self, ref: SegmentRef, stored: bytes) -> None:
        """Add a segment; the sink of a `SegmentWriter`."""
        self._stored[ref.digest] = self._file.tell(), len(stored)
        self.refs.append(ref)
        self._file.write(stored)

    def stored(self, name: str) -> bytes:
        """As `Manifest.stored`: here nothing is a patch."""
        offset, size = self._stored[name]
        self._file.seek(offset)
        return self._file.read(size)

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


def choose(tree: Tree, selection: Selection) -> tuple[Chosen, list[bytes]]:
    """Return what a selection means in a snapshot, and which of its paths the snapshot does not have.

    Raises:
        ConfigError: a relative path is given where there are several roots, or nothing is left of the paths.
    """
    includes = (selection.include,) if selection.include else ()
    if not selection.paths:
        return Chosen(None, includes, selection.exclude), []
    tops: dict[int, set[bytes]] = {}
    missing: list[bytes] = []
    for given in selection.paths:
        path = parse_path(given, [tree])
        inside = path.rstrip(b"/") + b"/"
        found = [Place(number, b"") for number, name in enumerate(tree.roots) if name.startswith(inside)]
        place = tree.place_of(path)
        if place is not None and tree.find(place) is not None:
            found.append(place)
        for root, below in found:
            tops.setdefault(root, set()).add(below)
        if not found:
            missing.append(path)
    if not tops:
        listed = ", ".join(display(path) for path in missing[:MOST_NAMED])
        message = f"snapshot {tree.header.number} has nothing at {listed}"
        raise ConfigError(message, "blobark find NAME looks for a name in all snapshots")
    return Chosen({root: frozenset(below) for root, below in tops.items()}, includes, selection.exclude), missing


@contextlib.contextmanager
def excerpt(
    tree: Tree, chosen: Chosen, edits: Edits, places: list[bytes], *, but_not: Patterns = NO_PATTERNS
) -> Iterator[Portion]:
    """Make the portion that is chosen of a snapshot; it lasts as long as the block.

    What matches `but_not`, and is no directory, another portion brings that is restored before this one.

    Raises:
        ConfigError: without their leading components two items land at one path, or nothing is left of one.
        Fatal: the temporary file cannot be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            manifest = LocalManifest()
            stack.callback(manifest.close)
            writer = SegmentWriter(manifest.add)
            source = _Excerpt(tree, chosen, edits, places, but_not)
            entries = iter(source)
            if edits.strip:
                landing = stack.enter_context(Landing.open())
                entries = _Stripping(landing, tree, places, edits.strip).run(entries)
            for entry in entries:
                writer.add(entry, entry.raw_path)
            writer.finish()
        except OSError as error:
            message = f"a temporary file cannot be written ({error.strerror})"
            raise Fatal(message, "make room in TMPDIR, or set it elsewhere") from None
        refs = tuple(manifest.refs)
        totals = Totals(
            entries=sum(ref.entries for ref in refs),
            files=sum(ref.files for ref in refs),
            file_bytes=sum(ref.file_bytes for ref in refs),
            errors=sum(ref.errors for ref in refs),
            new_blobs=0,
            new_bytes=0,
        )
        header = replace(tree.header, segments=refs, totals=totals)
        promoted = frozenset(source.promoted)
        if edits.strip:
            yield Portion(header, manifest, [b""], frozenset([b""]), promoted)
        else:
            yield Portion(header, manifest, places, frozenset(), promoted)


class _Excerpt:
    """Yields the entries that are chosen, and the directories above them, in the order of the manifest."""

    def __init__(self, tree: Tree, chosen: Chosen, edits: Edits, places: list[bytes], but_not: Patterns) -> None:
        self._tree = tree
        self._chosen = chosen
        self._edits = edits
        self._places = places
        self._but_not = but_not
        self._content_of: dict[SortKey, tuple[str, str]] = {}
        """For the first name of a group, if it is not chosen, the name that has its content instead."""
        self._recent: dict[str, list[Entry]] = {}
        self.promoted: list[bytes] = []
        """Where those names land that have the content of another name's group."""

    def __iter__(self) -> Iterator[Entry]:
        chosen, edits = self._chosen, self._edits
        waiting: list[tuple[int, bytes, Entry]] = []
        """The directories above, those that have been yielded taken off at the front."""
        above: list[tuple[int, bytes]] = []
        for entry in self._entries():
            root, path = entry.root, entry.raw_path
            parent = path.rpartition(b"/")[0]
            while above and (above[-1] != (root, parent) or not path):
                gone = above.pop()
                if waiting and waiting[-1][:2] == gone:
                    waiting.pop()
            is_dir = entry.kind == "dir"
            if is_dir:
                above.append((root, path))
                waiting.append((root, path, entry))
            if not chosen.takes(root, path, is_dir) or (edits.no_special and entry.kind in SPECIAL):
                continue
            if entry.hardlink_to_any:
                entry = self._linked(entry)
            for _, _, directory in waiting:
                yield edits.owners.apply(directory)
            waiting.clear()
            if not is_dir and not (self._but_not and self._is_elsewhere(entry, path)):
                yield edits.owners.apply(entry)

    def _entries(self) -> Iterator[Entry]:
        tops = self._chosen.tops
        if tops is None:
            return self._tree.entries()
        places = [Place(root, path) for root, paths in tops.items() for path in paths]
        return self._tree.entries(self._tree.refs_of(places))

    def _linked(self, entry: Entry) -> Entry:
        """Return a further hard link as it is restored: with the content itself where its first name is not chosen."""
        try:
            first = Place(entry.root, entry.raw_hardlink_to)
        except ValueError:
            raise SnapshotError("the manifest is damaged: a path is no base64") from None
        if self._comes(first):
            return entry
        key = sort_key(*first)
        if key in self._content_of:
            text, b64 = self._content_of[key]
            return replace(entry, hardlink_to=text, hardlink_to_b64=b64)
        found = self._find(first)
        if found is None or found.kind != "file" or found.hardlink_to_any:
            return entry  # it says of itself that what it is a link of was not restored
        self._content_of[key] = entry.path, entry.path_b64
        self.promoted.append(landing_of(self._places, entry.root, entry.raw_path, self._edits.strip))
        return replace(found, path=entry.path, path_b64=entry.path_b64)

    def _comes(self, first: Place) -> bool:
        """Whether the first name of a group is restored as well, by this part of the run or by one before."""
        if not self._chosen.takes(first.root, first.path, False):
            return False
        return bool(landing_of(self._places, first.root, first.path, self._edits.strip))

    def _is_elsewhere(self, entry: Entry, path: bytes) -> bool:
        """Whether another portion brings an item; a link to what only this one brings it cannot have."""
        found = bool(self._but_not.find(path, False))
        return found and (not entry.hardlink_to_any or bool(self._but_not.find(entry.raw_hardlink_to, False)))

    def _find(self, place: Place) -> Entry | None:
        """As `Tree.find`; the names of a group often lie near each other, so the last segments are kept."""
        ref = self._tree.refs_of([place])[-1]
        if ref.digest not in self._recent:
            if len(self._recent) >= _FEW_SEGMENTS:
                self._recent.pop(next(iter(self._recent)))
            self._recent[ref.digest] = list(self._tree.entries([ref]))
        key = sort_key(*place)
        return next((entry for entry in self._recent[ref.digest] if entry.sort_key == key), None)


class _Stripping:
    """Takes leading components off the paths at which entries land, and sorts them anew."""

    def __init__(self, landing: Landing, tree: Tree, places: list[bytes], strip: int) -> None:
        self._landing = landing
        self._tree = tree
        self._places = places
        self._strip = strip
        self._refused: list[str] = []
        self._count = 0

    def run(self, entries: Iterator[Entry]) -> Iterator[Entry]:
        """Yield the entries of one tree."""
        yield Entry(kind="dir", mode=0o700)
        for entry in entries:
            self._place(entry)
        if self._count:
            more = f"\nand {self._count - MOST_NAMED:,} more" if self._count > MOST_NAMED else ""
            hint = "take off fewer, or choose less"
            raise ConfigError("\n".join(self._refused) + more, hint)
        for line in self._landing.placed():
            yield decode_entry(line)

    def _place(self, entry: Entry) -> None:
        path = landing_of(self._places, entry.root, entry.raw_path, self._strip)
        if not path:
            if entry.kind != "dir":
                self._refuse(f"nothing of {display(self._tree.path_of(entry))} would be left")
            return
        check_path(path)
        text, b64 = text_or_b64(path)
        changes: dict[str, object] = {"root": 0, "path": text, "path_b64": b64}
        if entry.hardlink_to_any:
            first = landing_of(self._places, entry.root, entry.raw_hardlink_to, self._strip)
            changes["hardlink_to"], changes["hardlink_to_b64"] = text_or_b64(first or path)
        origin = self._tree.path_of(entry)
        line = encode_entry(replace(entry, **changes))
        other = self._landing.place(path.replace(b"/", b"\0"), origin, line, is_dir=entry.kind == "dir")
        if other:
            self._refuse(f"{display(other)} and {display(origin)} would both become {display(path)}")

    def _refuse(self, why: str) -> None:
        self._count += 1
        if self._count <= MOST_NAMED:
            self._refused.append(f"--strip {self._strip}: {why}")


def landing_of(places: list[bytes], root: int, path: bytes, strip: int) -> bytes:
    """Return where an item lands, relative to the target; b"" for the target itself, or where `strip` takes it all."""
    parts = [part for part in (places[root], path) if part]
    whole = b"/".join(parts)
    return b"/".join(whole.split(b"/")[strip:]) if strip else whole


def places_in(header: Header, *, in_place: bool) -> list[bytes]:
    """Return where each root lands: below the target as ever, or at its own full path where that is `/`."""
    if not in_place:
        return places_of(header)
    places = [root.raw_name.strip(b"/") for root in header.roots]
    for place in filter(None, places):
        check_path(place)
    return places
