"""The rebuild: a container that has lost its snapshots gets one made of what each blob says of itself.

    list     every blob of the server, with its metadata: path, owner, mode, times, digest, the map of its holes
             a pack has the entries of its files in an index of its own
    digest   the blobs that say nothing (made elsewhere, or their metadata were too long): they go below lost+found
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

from blobark import __version__, content, identity, snapshot
from blobark.clock import now_ns, utc
from blobark.codec import ZSTD
from blobark.context import Context
from blobark.errors import ConfigError, ContentError, ItemError, SnapshotError
from blobark.extents import ends, of_entry
from blobark.guids import GUID_PATTERN
from blobark.manifest import check_path, fault_of
from blobark.model import FORMAT, Entry, Extent, Header, Root, SegmentRef, Server, Totals, text_or_b64
from blobark.packs import index_extent, read_index
from blobark.scratch import Rescued
from blobark.segments import SegmentWriter, decode_entry, encode_entry
from blobark.stores.base import BLOCK_SIZE_BYTES, BlobInfo, Store

LOST = b"lost+found"
DIRECTORY_MODE = 0o700
FILE_MODE = 0o600
MAX_NAME_BYTES = 255
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
    """Blobs that say nothing of themselves: they are below lost+found."""
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
            rebuild.read_lost()
            rebuild.place()
            rebuild.publish(taken[-1] if taken else 0)
        else:
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
            described = self._described(info)
            if described:
                for root_name, entry in described:
                    self._root_names.add(root_name)
                    path = _joined(root_name, entry.raw_path)
                    self._rescued.add(path, entry.ctime_ns, info.created_ns, entry.guid, encode_entry(entry))
            elif content.stands_for_directory(info):
                result.nameless += 1
                context.reporter.detail(f"{info.key} stands for a directory and does not say which: left out")
            else:
                result.lost += 1
                self._rescued.add_lost(info.key, info.size_bytes, info.created_ns)
            result.files += max(len(described), 1)
            result.file_bytes += sum(entry.size for _, entry in described) if described else info.size_bytes
        if not result.files:
            raise SnapshotError(f"{self._store.name} holds no blob of {self._server}", "is it the right store?")

    def _described(self, info: BlobInfo) -> list[tuple[bytes, Entry]]:
        """Return the entries that a blob tells, with the names of their roots: those of a pack are in its index."""
        index = index_extent(info)
        if index is None:
            described = _described(self._server, info)
            return [described] if described is not None else []
        try:
            told = read_index(self._store, index)
        except ContentError as error:
            self._context.reporter.warn(f"{info.key}: {error.message}")
            return []
        return [(root_name, _alone(entry)) for root_name, entry in told if _can_be(root_name, entry, info)]

    def estimate(self) -> None:
        """Say what a real run would ask of the store after this."""
        self.result.requests = {"read blobs without metadata": self.result.lost, "put header": 1}

    def read_lost(self) -> None:
        """Digest the blobs that say nothing, and give each a place below lost+found of the first root."""
        root_name = min(self._root_names, default=b"/")
        self._root_names.add(root_name)
        for (key, _, created_ns), entry in self._context.engine.run(
            self._rescued.lost(), self._digested, cost=lambda row: min(row[1], BLOCK_SIZE_BYTES)
        ):
            if isinstance(entry, str):
                self.result.failed.append((key, entry))
                self._context.reporter.warn(f"failed: {key}: {entry}")
            else:
                path = _joined(root_name, entry.raw_path)
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
                entries.append(f"says nothing of itself, and cannot be read: {error.message}")
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
            names = (_renamed(path, guid, attempt) for attempt in itertools.count())
            next(name for name in names if rescued.place(name, line))
            self.result.older += 1

    def publish(self, before: int) -> None:
        """Publish what was placed as the snapshot after number `before`."""
        refs: list[SegmentRef] = []
        counts: list[int] = []

        def send(ref: SegmentRef, stored: bytes) -> None:
            self._context.check_stop()
            snapshot.put_segment(self._store, self._server, ref, stored, check=self._store.lists_md5)
            refs.append(ref)

        writer = SegmentWriter(send)
        names = _outermost(self._root_names)
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
        snapshot.publish(self._store, header, check=self._store.lists_md5)
        result = self.result
        result.snapshot, result.entries = header.number, totals.entries
        result.files, result.file_bytes = totals.files, totals.file_bytes
        reason = f"it is rescued, and lacks what no blob tells: {MISSING}"
        result.failed.append((f"snapshot {header.number}", reason))
        self._context.reporter.warn(f"failed: snapshot {header.number}: {reason}")

    def _entries(self, number: int, root_name: bytes) -> Iterator[tuple[Entry, bytes]]:
        """Yield the entries of one root with their paths, in order, with the directories on the way."""
        root = _joined(root_name, b"")
        made: list[bytes] = []
        yield _directory(number, b"", self._started_ns), b""
        for key, line in self._rescued.placed(root):
            parts = key[len(root) + 1 :].split(b"\0")
            above = [b"/".join(parts[:depth]) for depth in range(1, len(parts))]
            for directory in above:
                if directory not in made:
                    yield _directory(number, directory, self._started_ns), directory
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


def _described(server: str, info: BlobInfo) -> tuple[bytes, Entry] | None:
    """Return the root's name and the entry that a blob's metadata tell, None where they tell none that can be."""
    entry, root_name = content.entry_of_blob(info.meta), content.root_of_blob(info.meta)
    guid = info.key.removeprefix(f"{server}_")
    if entry is None or root_name is None or not GUID_PATTERN.fullmatch(guid):
        return None
    entry = _alone(replace(entry, guid=guid))
    size = 0 if entry.kind == "dir" else ends(of_entry(server, entry)).get(info.key, 0)
    return (root_name, entry) if size == info.size_bytes and _can_be(root_name, entry, info) else None


def _alone(entry: Entry) -> Entry:
    """Return an entry as that of an item that nothing else is known of."""
    return replace(entry, root=0, hardlink_to="", hardlink_to_b64="", error="", stale=False)


def _can_be(root_name: bytes, entry: Entry, info: BlobInfo) -> bool:
    """Whether what a blob tells can be right, and needs no other blob."""
    try:
        check_path(entry.raw_path)
        if root_name != b"/":
            check_path(root_name.removeprefix(b"/"))
        is_right = root_name.startswith(b"/") and not fault_of(_alone(entry))
    except (SnapshotError, ValueError):
        return False
    own = all(blob == info.key and end <= info.size_bytes for blob, end in ends(entry.extents or ()).items())
    return is_right and own and entry.kind in ("file", "dir")


def _joined(root_name: bytes, path: bytes) -> bytes:
    """Return an absolute path with a byte 0 for each slash; "/" itself is empty."""
    below = b"/" + path if path else b""
    return (root_name.rstrip(b"/") + below).replace(b"/", b"\0")


def _renamed(path: bytes, guid: str, attempt: int) -> bytes:
    """Return the path with the GUID at its end; a name that would be too long loses some of its own end.

    Only a tree that was itself rescued, and backed up, can hold such a name: then there is another `attempt`.
    """
    above, slash, name = path.rpartition(b"\0")
    mark = f".~{guid.rpartition('/')[2][-36:]}{attempt or ''}".encode()
    return above + slash + name[: MAX_NAME_BYTES - len(mark)] + mark


def _outermost(root_names: set[bytes]) -> list[bytes]:
    """Return the roots that lie inside no other one, in the order of a manifest."""
    keys = {_joined(name, b"") for name in root_names}
    return [name for name in sorted(root_names) if not any(_joined(name, b"").startswith(key + b"\0") for key in keys)]


def _directory(root: int, path: bytes, mtime_ns: int) -> Entry:
    text, b64 = text_or_b64(path)
    return Entry(path=text, path_b64=b64, root=root, kind="dir", mode=DIRECTORY_MODE, mtime_ns=mtime_ns)
