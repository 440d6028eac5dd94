"""The rebuild: a container that has lost its snapshots gets one made of what each blob says of itself.

    list     every blob of the server, with its metadata: path, owner, mode, times, digest, the map of its holes
             a pack has the entries of its files in an index of its own
    join     the versions that cite earlier blobs (`delta: extents`) with those; where one is gone, what is left of the
             version goes below lost+found
    digest   what goes there, and the blobs that say nothing (made elsewhere, or their metadata were too long)
    place    the newest version of each path gets it, the others become `<path>.~<guid>`; so does a file whose path
             is a directory's by now
    publish  with the directories on the way, as a snapshot that says `rescued` and is not complete; create-only

Nothing is deleted and nothing overwritten. Which version is newest is told by the file's ctime, then by the store's
clock: a container that was copied has its blobs in any order.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

from blake3 import blake3
from msgspec.structs import replace

from blobark import __version__, content, identity, rescue, snapshot
from blobark.clock import now_ns, utc
from blobark.codec import ZSTD
from blobark.context import Context
from blobark.errors import ConfigError, ItemError, SnapshotError
from blobark.guids import GUID_PATTERN, blob_name
from blobark.model import FORMAT, Entry, Extent, Header, Root, SegmentRef, Server, Totals, display, text_or_b64
from blobark.packs import index_extent, read_index
from blobark.scratch import Rescued
from blobark.segments import SegmentWriter, decode_entry, encode_entry
from blobark.storelock import StoreLock, store_lock
from blobark.stores.base import BLOCK_SIZE_BYTES, BlobInfo, Store, listings

LOST = b"lost+found"
FILE_MODE = 0o600
PROGRESS_EVERY = 5000

MISSING = (
    "symlinks and special files, further names of hard links, empty directories, owners and modes of directories, "
    "further files of content that was stored once, "
    "and what the blobs' metadata had no room for (over 6 KiB: extended attributes first). "
    "Files that were deleted or renamed before are there again"
)


@dataclass(frozen=True, slots=True)
class RebuildOptions:
    """What the command line adds to the configuration of a rebuild."""

    server: str = ""
    force: bool = False
    dry_run: bool = False


@dataclass(slots=True)
class RebuildResult:
    """What a rebuild did: counts of files, and bytes of content."""

    server: str = ""
    snapshot: int = 0
    files: int = 0
    file_bytes: int = 0
    entries: int = 0
    older: int = 0
    """Files that are no newest version, or whose path is a directory's: they have `.~<guid>` at the end."""
    lost: int = 0
    """Blobs that say nothing of themselves, or whose other parts are gone: they are below lost+found."""
    nameless: int = 0
    """Empty blobs that stand for a directory and do not say which: they are left out."""
    missing: str = MISSING
    """What cannot come back in this way."""
    failed: list[tuple[str, str]] = field(default_factory=list)
    requests: dict[str, int] = field(default_factory=dict)


def run_rebuild(context: Context, options: RebuildOptions) -> RebuildResult:
    """Publish a rescued snapshot of a server that has none that can be read.

    Raises:
        ConfigError: the store keeps no metadata, or several servers share it and none is named.
        SnapshotError: there is a snapshot that can be read (and not `force`), or there are no blobs.
    """
    store = context.open_store(False)
    if not store.keeps_meta:
        hint = "restore_blob.py --map brings files back by the map; without it the blobs are there, under their GUIDs"
        hint += "; `blobark backup --skip-damaged` goes on backing up"
        raise ConfigError(f"{store.name} is a folder, which keeps no paths with its blobs: none can be rebuilt", hint)
    server = options.server or context.config.server or _only_server(store)
    taken = snapshot.numbers(store, server)
    readable = next((number for number in reversed(taken) if _is_readable(context, store, server, number)), 0)
    if readable and not options.force:
        hint = f"restore_blob.py --snapshot {readable} restores it; --force publishes a rescued one all the same"
        raise SnapshotError(f"snapshot {readable} of {server} can be read", hint)
    with Rescued.open() as rescued:
        rebuild = _Rebuild(context, store, server, rescued)
        rebuild.find()
        if not options.dry_run:
            with store_lock(context, store, server, "rebuild") as lock:
                rebuild.read_lost()
                rebuild.place()
                rebuild.publish(taken[-1] if taken else 0, lock)
        else:
            rebuild.place()
            rebuild.estimate()
        return rebuild.result


def _only_server(store: Store) -> str:
    try:
        return identity.server_to_restore(store)
    except SnapshotError:
        for info in store.list(""):
            name, _, guid = info.key.rpartition("_")
            if GUID_PATTERN.fullmatch(guid) and snapshot.SERVER_NAME.fullmatch(name):
                raise ConfigError(f"{store.name} does not say whose it is", f"say --server {name}") from None
        raise


def _is_readable(context: Context, store: Store, server: str, number: int) -> bool:
    """Whether a snapshot's header and all its segments can be read."""
    try:
        header = snapshot.load(store, server, number)
        manifest = snapshot.Manifest(store, server)
        for ref in header.segments:
            context.check_stop()
            manifest.read(ref)
    except SnapshotError as error:
        context.reporter.warn(f"snapshot {number}: {error.message}")
        return False
    return True


class _Rebuild:
    """One rebuild of one server, step by step."""

    def __init__(self, context: Context, store: Store, server: str, rescued: Rescued) -> None:
        self._context = context
        self._store = store
        self._server = server
        self._rescued = rescued
        self._root_names: set[bytes] = set()
        self._started_ns = now_ns()
        self.result = RebuildResult(server=server)

    def find(self) -> None:
        """Note every blob of the server."""
        context, result = self._context, self.result
        context.reporter.begin("rebuild", 0, 0)
        for info in self._store.list(f"{self._server}_", meta=True):
            context.check_stop()
            context.reporter.advance(1, info.size_bytes)
            self._rescued.add_blob(info.key, info.size_bytes)
            index = index_extent(info)
            if index is None:
                self._note(info)
                result.files += 1
            else:
                self._note_packed(info, index)
        if not result.files:
            raise SnapshotError(f"{self._store.name} holds no blob of {self._server}", "is it the right store?")
        self._join()

    def _note(self, info: BlobInfo) -> None:
        result = self.result
        described = rescue.described(self._server, info)
        if described is not None:
            root_name, entry = described
            self._root_names.add(root_name)
            result.file_bytes += entry.size
            path = rescue.joined(root_name, entry.raw_path)
            add = self._rescued.add if entry.extents is None else self._rescued.add_citing
            add(path, entry.ctime_ns, info.created_ns, entry.guid, encode_entry(entry))
        elif content.stands_for_directory(info):
            result.nameless += 1
            self._context.reporter.detail(f"{info.key} stands for a directory and does not say which: left out")
        else:
            result.lost += 1
            result.file_bytes += info.size_bytes
            self._rescued.add_lost(info.key, info.size_bytes, info.created_ns)

    def _note_packed(self, info: BlobInfo, index: Extent) -> None:
        """Note what a pack's index tells of the files in it."""
        try:
            told = read_index(self._store, index)
        except ItemError as error:
            self._fail(info.key, error.message)
            return
        for root_name, told_entry in told:
            entry = rescue.judged(root_name, told_entry)
            if entry is None or rescue.fault_of_citing(self._server, entry, {info.key: info.size_bytes}.get):
                self._fail(info.key, "its index tells of a file that cannot be")
                continue
            self._root_names.add(root_name)
            path = rescue.joined(root_name, entry.raw_path)
            self._rescued.add(path, entry.ctime_ns, info.created_ns, entry.guid, encode_entry(entry))
            self.result.files += 1
            self.result.file_bytes += entry.size

    def _join(self) -> None:
        """Take the versions that cite other blobs, now that all blobs are known; name those that are not whole."""
        for path, ctime_ns, created_ns, guid, line in self._rescued.citing():
            entry = decode_entry(line)
            fault = rescue.fault_of_citing(self._server, entry, self._rescued.size_of)
            if not fault:
                self._rescued.add(path, ctime_ns, created_ns, guid, line)
                continue
            key = blob_name(self._server, guid)
            self.result.lost += 1
            self._rescued.add_lost(key, self._rescued.size_of(key) or 0, created_ns)
            self._fail(display(path.replace(b"\0", b"/")), f"{fault}; what is left is {display(LOST)}/{guid}")

    def _fail(self, item: str, reason: str) -> None:
        self.result.failed.append((item, reason))
        self._context.reporter.warn(f"failed: {item}: {reason}")

    def estimate(self) -> None:
        """Say what a real run would ask of the store; it puts some segments, too."""
        listed, lost = listings(self.result.files), self.result.lost
        self.result.requests = {"list blobs": listed, "read blobs that are no file": lost, "put header": 1}

    def read_lost(self) -> None:
        """Digest the blobs that are no file by themselves, and give each a place below lost+found of the first root."""
        root_name = min(self._root_names, default=b"/")
        self._root_names.add(root_name)
        for (key, _, created_ns), entry in self._context.engine.run(
            self._rescued.lost(), self._digested, cost=lambda row: min(row[1], BLOCK_SIZE_BYTES)
        ):
            if isinstance(entry, str):
                self._fail(key, entry)
            else:
                path = rescue.joined(root_name, entry.raw_path)
                self._rescued.add(path, 0, created_ns, entry.guid or key, encode_entry(entry))

    def _digested(self, rows: list[tuple[str, int, int]]) -> list[Entry | str]:
        """Return the entry of each blob, or why there is none."""
        entries: list[Entry | str] = []
        for key, size, created_ns in rows:
            name = key.removeprefix(f"{self._server}_")
            path, path_b64 = text_or_b64(LOST + b"/" + name.rstrip("/").encode())
            entry = Entry(path=path, path_b64=path_b64, size=size, mtime_ns=created_ns, mode=FILE_MODE)
            entry = replace(entry, extents=(Extent(key, 0, size, size),))
            hasher = blake3()
            try:
                for piece in content.pieces(self._store, self._server, entry):
                    hasher.update(piece)
            except ItemError as error:
                entries.append(f"is not known as a file, and cannot be read: {error.message}")
                continue
            if GUID_PATTERN.fullmatch(name):
                entry = replace(entry, guid=name, extents=None)
            entries.append(replace(entry, digest=hasher.hexdigest()))
        return entries

    def place(self) -> None:
        """Give every version a path of its own."""
        rescued = self._rescued
        last = None
        below = False
        for path, guid, line in rescued.versions():
            entry = decode_entry(line)
            is_newest, last = path != last, path
            if is_newest:
                below = rescued.has_found_below(path)
                if entry.kind == "dir" and below:
                    rescued.place_directory(path, encode_entry(replace(entry, rule="", guid="", digest="")))
                elif not below:
                    rescued.place(path, line)
            if entry.kind != "dir" and (below or not is_newest):
                rescued.put_off(path, guid, line)
        for path, guid, line in rescued.older():
            names = (rescue.renamed(path, guid, attempt) for attempt in itertools.count())
            next(name for name in names if rescued.place(name, line))
            self.result.older += 1

    def publish(self, before: int, lock: StoreLock) -> None:
        """Publish what was placed as the snapshot after number `before`."""
        refs: list[SegmentRef] = []
        counts: list[int] = []

        def send(ref: SegmentRef, stored: bytes) -> None:
            self._context.check_stop()
            snapshot.put_segment(self._store, self._server, ref.digest, stored, check=self._store.lists_md5)
            refs.append(ref)

        writer = SegmentWriter(send)
        names = rescue.outermost(self._root_names)
        for number, name in enumerate(names):
            counts.append(0)
            for entry, path in self._entries(number, name):
                writer.add(entry, path)
                counts[-1] += 1
        writer.finish()
        roots = tuple(Root(*text_or_b64(name), count) for name, count in zip(names, counts, strict=True))
        self._claim(roots)
        totals = Totals(
            entries=sum(ref.entries for ref in refs),
            files=sum(ref.files for ref in refs),
            file_bytes=sum(ref.file_bytes for ref in refs),
            errors=0,
            new_blobs=0,
            new_bytes=0,
        )
        header = Header(
            format=FORMAT,
            server=self._server,
            number=before + 1,
            complete=False,
            host=identity.this_host(),
            roots=roots,
            started=utc(self._started_ns),
            started_ns=self._started_ns,
            ended=utc(now_ns()),
            totals=totals,
            segments=tuple(refs),
            tool=f"blobark {__version__}",
            parent=before,
            requires=(ZSTD,) if any(ref.encoded for ref in refs) else (),
            rescued=True,
        )
        lock.check()
        snapshot.publish(self._store, header, check=self._store.lists_md5)
        result = self.result
        result.snapshot, result.entries = header.number, totals.entries
        result.files, result.file_bytes = totals.files, totals.file_bytes
        reason = f"it is rescued, and lacks what no blob tells: {MISSING}"
        self._fail(f"snapshot {header.number}", reason)

    def _entries(self, number: int, root_name: bytes) -> Iterator[tuple[Entry, bytes]]:
        """Yield the entries of one root with their paths, in order, with the directories on the way."""
        root = rescue.joined(root_name, b"")
        made: list[bytes] = []
        yield rescue.directory(number, b"", self._started_ns), b""
        for key, line in self._rescued.placed(root):
            parts = key[len(root) + 1 :].split(b"\0")
            above = [b"/".join(parts[:depth]) for depth in range(1, len(parts))]
            for directory in above:
                if directory not in made:
                    yield rescue.directory(number, directory, self._started_ns), directory
            entry = decode_entry(line)
            path = b"/".join(parts)
            made = [*above, path] if entry.kind == "dir" else above
            text, b64 = text_or_b64(path)
            yield replace(entry, path=text, path_b64=b64, root=number), path

    def _claim(self, roots: tuple[Root, ...]) -> None:
        try:
            if snapshot.load_server(self._store, self._server) is None:
                names = tuple(Root(root.name, root.name_b64) for root in roots)
                owner = Server(FORMAT, self._server, identity.this_host(), names, utc(now_ns()))
                snapshot.claim_server(self._store, owner)
        except SnapshotError as error:
            self._context.reporter.warn(f"{error.message}: say --server {self._server} to restore")
