"""Verification: is all that the snapshots name in the store, and is it what was saved?

    headers    each is read; its segments are noted, each once however many snapshots have it
    segments   each is read and compared with its digest, those first that others are patches against; what the
               entries name is noted: blobs and their lengths
    lists      likewise, the objects with long lists of blocks
    listing    two sorted streams, what is named and what the store lists, are merged: what is missing or too short
    reading    (`read`) every stored byte that has a digest, once: small files, neighbours in packs together, blocks
    whom       only where damage was found: the segments again, for the files that lie in what is damaged

What is found wrong is looked at once more, by itself, before it counts; and what only a snapshot named that is gone by
then, because it was pruned meanwhile, is no damage. A store that does not answer, or refuses, ends the run: that says
nothing about the data. Nothing is written to the store. Memory does not grow: the inventory is a temporary file.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from blobark import blocklist, snapshot
from blobark.compare_stored import Comparer, cost_of, neighbourhoods
from blobark.context import Context, full_path
from blobark.errors import BlobNotFound, ContentError, SnapshotError, SnapshotNewer
from blobark.extents import blobs_of, of_entry
from blobark.inventory import SOUND, TO_THE_END, Damage, Inventory, Named, Part
from blobark.manifest import fault_of
from blobark.model import Block, Entry, SegmentRef, display
from blobark.named import Chosen, Found
from blobark.segments import MAX_PLAIN_BYTES, plain_of
from blobark.stores.base import BLOCK_SIZE_BYTES, Store

PROGRESS_EVERY = 1000
_WRONG = "holds other content than was saved"


@dataclass(slots=True)
class VerifyResult:
    """What a verification found. Bytes are stored ones; `blob_bytes` are those that the snapshots need."""

    server: str = ""
    snapshots: int = 0
    segments: int = 0
    blobs: int = 0
    blob_bytes: int = 0
    archived: int = 0
    """Blobs of the archive tier: they are there, and cannot be read."""
    read: str = ""
    """What was read: "" for nothing, "all", or which part of the blobs."""
    read_bytes: int = 0
    read_seconds: float = 0.0
    damaged: int = 0
    """Blobs and other objects that are missing or damaged."""
    hurt: int = 0
    """Paths that this hurts, in any snapshot."""
    failed: list[tuple[str, str]] = field(default_factory=list)
    """What could not be checked, and why."""


class Verification:
    """One verification of one server, step by step."""

    def __init__(self, context: Context, store: Store, server: str, inventory: Inventory, chosen: Chosen) -> None:
        self._context = context
        self._store = store
        self._server = server
        self._inventory = inventory
        self._chosen = chosen
        self._numbers: list[int] = []
        self._broken: set[str] = set()
        """The segments that are damaged, and that others rest on."""
        self._groups: dict[tuple[int, int, bytes, int, int], list[str]] = {}
        """The blobs that hurt the first file of a hard-link group, by its roots, root, path, inode and mtime."""
        self.roots: list[tuple[bytes, ...]] = []
        """The names of the roots that snapshots have, by the numbers that the inventory has of them."""
        self.result = VerifyResult(server=server)

    # What is named

    def gather(self, number: int) -> None:
        """Note what snapshot `number`, or (0) every snapshot, names."""
        numbers = snapshot.numbers(self._store, self._server)
        if number and number not in numbers:
            snapshot.load(self._store, self._server, number)
        self._numbers = [number] if number else numbers
        if not self._numbers:
            raise SnapshotError(
                f"server {self._server} has no snapshot in {self._store.name}", "run save_blob.py first"
            )
        self._context.reporter.begin("verify: snapshots", len(self._numbers), 0)
        self._look_at_owner()
        for each in self._numbers:
            self._context.check_stop()
            self._note_snapshot(each)
            self._context.reporter.advance(1, 0)
        self._read_bases()
        self._read_segments()
        self._read_lists()
        self.result.blobs, self.result.blob_bytes = self._inventory.named_bytes()

    def miss(self, number: int) -> None:
        """Note a snapshot that ought to be there, and is not: its header is to be made again."""
        self._object_damaged(snapshot.header_key(self._server, number), [number], "is missing")

    def _look_at_owner(self) -> None:
        key = snapshot.server_key(self._server)
        try:
            if snapshot.load_server(self._store, self._server) is None:
                self._object_damaged(key, self._numbers, "is missing")
        except SnapshotNewer as error:
            self._fail(key, error.message)
        except SnapshotError as error:
            self._object_damaged(key, self._numbers, error.message)

    def _note_snapshot(self, number: int) -> None:
        try:
            header = snapshot.find(self._store, self._server, number)
            names = tuple(root.raw_name for root in header.roots) if header is not None else ()
        except SnapshotNewer as error:
            self._fail(f"snapshot {number}", error.message)
            return
        except SnapshotError as error:
            what = f"{error.message}; what it names was not checked"
            self._object_damaged(snapshot.header_key(self._server, number), [number], what)
            return
        except ValueError:
            key = snapshot.header_key(self._server, number)
            self._object_damaged(key, [number], "is damaged: a root's name is no base64")
            return
        if header is None:  # it was pruned since it was listed
            return
        if names not in self.roots:
            self.roots.append(names)
        self._inventory.add_snapshot(number, self.roots.index(names), header.segments)
        self.result.snapshots += 1

    def _read_bases(self) -> None:
        manifest = snapshot.Manifest(self._store, self._server)

        def read(batch: list[str]) -> list[str]:
            return [_fault_of_base(manifest, name) for name in batch]

        for name, fault in self._context.engine.run(
            iter(self._inventory.bases()), read, cost=lambda _: MAX_PLAIN_BYTES
        ):
            if fault:
                self._broken.add(name)
                self._segment_damaged(name, f"{fault}; what rests on it was not checked")

    def _read_segments(self) -> None:
        self._context.reporter.begin("verify: segments", self._inventory.part_counts()[0], 0)
        manifest = snapshot.Manifest(self._store, self._server)

        def read(batch: list[Part]) -> list[Found | str]:
            return [self._found_in(manifest, part) for part in batch]

        sound = (part for part in self._inventory.segments() if part.ref.base not in self._broken)
        for part, found in self._context.engine.run(sound, read, cost=_segment_cost):
            self._context.reporter.advance(1, 0)
            self.result.segments += 1
            key = snapshot.segment_key(self._server, part.ref.name)
            if isinstance(found, str):
                if part.ref.name not in self._broken:
                    self._segment_damaged(part.ref.name, f"{found}; what it names was not checked")
                continue
            self._inventory.name_blobs(found.blobs)
            self._inventory.add_pieces(found.pieces)
            for entry in found.wholes:
                self._inventory.add_whole(blobs_of(self._server, entry)[0], entry)
            for digest, entry in found.lists.items():
                self._inventory.name_list(digest, entry)
            for entry, fault in found.faults:
                self._inventory.add_damage(Damage(key, 0, TO_THE_END, f"has an entry that cannot be: {fault}", ""))
                self._inventory.add_hurt(key, self._path_of(part.roots, entry), part.id, None)

    def _found_in(self, manifest: snapshot.Manifest, part: Part) -> Found | str:
        """Return what a segment's entries name, or why it cannot be read."""
        found = Found(self._server, self._chosen)
        try:
            entries = manifest.read(part.ref)
        except SnapshotError as error:
            return error.message
        for entry in entries:
            if fault := self._fault_of(part, entry):
                found.faults.append((entry, fault))
            elif _names_content(entry):
                found.add(entry)
        return found

    def _fault_of(self, part: Part, entry: Entry) -> str:
        try:
            return fault_of(entry) if 0 <= entry.root < len(self.roots[part.roots]) else "its root is not there"
        except ValueError:
            return "its path is no base64"

    def _read_lists(self) -> None:
        def read(batch: list[tuple[str, Entry]]) -> list[tuple[Block, ...] | str]:
            return [self._list(digest) for digest, _ in batch]

        for (digest, entry), blocks in self._context.engine.run(
            self._inventory.lists(), read, cost=lambda _: blocklist.MOST_PLAIN_BYTES
        ):
            found = Found(self._server, self._chosen)
            if isinstance(blocks, str):
                what = f"{blocks}; the files that it helps to compare are whole without it"
                self._inventory.add_damage(Damage(blocklist.key_of(self._server, digest), 0, TO_THE_END, what, ""))
                blocks = ()
            found.add_pieces(entry, blocks)
            self._inventory.add_pieces(found.pieces)
            for whole in found.wholes:
                self._inventory.add_whole(blobs_of(self._server, whole)[0], whole)

    def _list(self, digest: str) -> tuple[Block, ...] | str:
        try:
            return blocklist.read(self._store, self._server, digest)
        except ContentError as error:
            return error.message

    # What is there

    def compare(self) -> None:
        """Compare what is named with what the store lists."""
        self._context.reporter.begin("verify: blobs", self.result.blobs, self.result.blob_bytes)

        def look(batch: list[Named]) -> list[Damage | None]:
            return [self._looked_at(named) for named in batch]

        for _, damage in self._context.engine.run(self._suspects(), look):
            if damage is not None:
                self._inventory.add_damage(damage)

    def _suspects(self) -> Iterator[Named]:
        """Yield what is named and not listed, or not as long as it must be. Both streams are in order."""
        prefix = f"{self._server}_"
        listing = self._store.list(prefix)
        listed = next(listing, None)
        for number, named in enumerate(self._inventory.named(prefix)):
            if not number % PROGRESS_EVERY:
                self._context.check_stop()
            self._context.reporter.advance(1, named.length)
            while listed is not None and listed.key < named.key:
                listed = next(listing, None)
            if listed is None or listed.key != named.key:
                yield named
                continue
            if listed.is_archived:
                self._inventory.set_archived(named.key)
                self.result.archived += 1
            if _fault_of_length(named, listed.size_bytes):
                yield named
        yield from self._inventory.named_elsewhere(prefix)

    def _looked_at(self, named: Named) -> Damage | None:
        try:
            info = self._store.stat(named.key)
        except BlobNotFound:
            return Damage(named.key, 0, TO_THE_END, "is missing", "")
        except ContentError as error:
            return Damage(named.key, 0, TO_THE_END, error.message, "")
        what = _fault_of_length(named, info.size_bytes)
        start = 0 if info.size_bytes > named.length else info.size_bytes
        return Damage(named.key, start, TO_THE_END, what, info.version) if what else None

    # What is in it

    def read(self) -> None:
        """Read what was chosen, and compare it with its digests."""
        items, size = self._inventory.to_read()
        self._context.reporter.begin("verify: read", items, size)
        begun_s = time.monotonic()
        comparer = Comparer(self._store, self._server, self._context.engine.stages)
        near_each_other = neighbourhoods(self._inventory.pieces())
        for near, damages in self._context.engine.run(near_each_other, comparer.read_pieces, cost=cost_of):
            runs = {(piece.extent.stored_offset, piece.extent.stored_length) for piece in near}
            self._took(len(near), sum(length for _, length in runs), damages)
        wholes = (entry for entry in self._inventory.wholes() if self._is_sound(entry))
        for entry, damages in self._context.engine.run(
            wholes, comparer.read_wholes, cost=lambda _: 2 * BLOCK_SIZE_BYTES
        ):
            self._took(1, entry.content_size, damages)
        self.result.read_seconds = round(time.monotonic() - begun_s, 3)

    def _took(self, items: int, size: int, damages: Iterable[Damage]) -> None:
        self._context.reporter.advance(items, size)
        self.result.read_bytes += size
        for damage in damages:
            self._inventory.add_damage(damage)

    def _is_sound(self, entry: Entry) -> bool:
        return all(self._inventory.state_of(blob) == SOUND for blob in blobs_of(self._server, entry))

    # Whom it hurts

    def attribute(self) -> None:
        """Find what the damage hurts; nothing is read where there is none."""
        inventory = self._inventory
        if next(inventory.damaged(), None) is not None:
            there = set(snapshot.numbers(self._store, self._server))
            for number in self._numbers:
                if number not in there:
                    inventory.forget_snapshot(number)
            self._context.reporter.begin("verify: whom the damage hurts", inventory.part_counts()[1], 0)
            manifest = snapshot.Manifest(self._store, self._server)

            def read(batch: list[Part]) -> list[list[Entry]]:
                return [_readable(manifest, part) for part in batch]

            for part, entries in self._context.engine.run(inventory.parts(), read, cost=_segment_cost):
                self._context.reporter.advance(1, 0)
                for entry in entries:
                    self._attribute(part, entry)
            if self._groups:
                linked = (part for part in inventory.parts() if part.ref.links)
                for part, entries in self._context.engine.run(linked, read, cost=_segment_cost):
                    for entry in entries:
                        self._attribute_link(part, entry)
        inventory.settle()
        self.result.damaged, self.result.hurt = inventory.counts()

    def _attribute(self, part: Part, entry: Entry) -> None:
        if not _names_content(entry) or self._fault_of(part, entry):
            return
        hurt = self._inventory.is_hurt(of_entry(self._server, entry))
        if entry.blocks_at and self._inventory.damages(key := blocklist.key_of(self._server, entry.blocks_at)):
            hurt.append(key)
        for blob in hurt:
            self._inventory.add_hurt(blob, self._path_of(part.roots, entry), part.id, entry)
        if hurt and entry.links > 1:
            self._groups[part.roots, entry.root, entry.raw_path, entry.inode, entry.mtime_ns] = hurt

    def _attribute_link(self, part: Part, entry: Entry) -> None:
        if entry.hardlink_to_any and not self._fault_of(part, entry):
            group = part.roots, entry.root, entry.raw_hardlink_to, entry.inode, entry.mtime_ns
            for blob in self._groups.get(group, ()):
                self._inventory.add_hurt(blob, self._path_of(part.roots, entry), part.id, None)

    def _path_of(self, roots: int, entry: Entry) -> bytes:
        try:
            return full_path(self.roots[roots][entry.root], entry.raw_path)
        except (ValueError, IndexError):
            return display(entry.path.encode(errors="replace")).encode()

    def _object_damaged(self, key: str, numbers: list[int], what: str) -> None:
        self._inventory.add_damage(Damage(key, 0, TO_THE_END, what, ""))
        self._inventory.add_hurt(key, b"", self._inventory.add_object(key, numbers), None)

    def _segment_damaged(self, name: str, what: str) -> None:
        key = snapshot.segment_key(self._server, name)
        self._inventory.add_damage(Damage(key, 0, TO_THE_END, what, ""))
        for part in self._inventory.parts_of(name):
            self._inventory.add_hurt(key, b"", part.id, None)

    def _fail(self, item: str, reason: str) -> None:
        self.result.failed.append((item, reason))
        self._context.reporter.warn(f"failed: {item}: {reason}")


def _names_content(entry: Entry) -> bool:
    """Whether an entry is a file with content, or has the placeholder of a skipped directory."""
    return entry.digest != "" and (entry.kind == "file" or (entry.kind == "dir" and entry.guid != ""))


def _fault_of_length(named: Named, size_bytes: int) -> str:
    """Return what is wrong with a blob of this length, "" for nothing."""
    if size_bytes < named.length:
        return f"is cut short: it has {size_bytes:,} bytes of {named.length:,}"
    if named.exact and size_bytes > named.length:
        return f"is not what was saved: it has {size_bytes:,} bytes in place of {named.length:,}"
    return ""


def _fault_of_base(manifest: snapshot.Manifest, name: str) -> str:
    """Return what is wrong with a segment that others are patches against, "" for nothing."""
    try:
        return "" if plain_of(name, manifest.stored(name)) else f"segment {name} is damaged"
    except SnapshotError as error:
        return error.message


def _segment_cost(part: Part) -> int:
    ref: SegmentRef = part.ref
    return 4 * ref.plain_bytes


def _readable(manifest: snapshot.Manifest, part: Part) -> list[Entry]:
    """Return a segment's entries; none of one that is damaged, which has been told."""
    try:
        return manifest.read(part.ref)
    except SnapshotError:
        return []
