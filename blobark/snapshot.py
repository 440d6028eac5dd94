"""Snapshots in the store: a header per snapshot, and the segments that headers name.

    blobark/<server>/server.json            who owns the blobs `<server>_*`
    blobark/<server>/snapshots/<number>     a header; numbers (10 digits, from 1) are taken create-only
    blobark/<server>/segments/<name>        segments, shared between snapshots

A snapshot is published by the one create-only write of its header, after everything that it names is in the store.
Of two writers who publish at once one is refused, so a number is never taken twice.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import msgspec

from blobark.clock import utc
from blobark.codec import decode_all
from blobark.errors import BlobExists, BlobNotFound, ContentError, Fatal, SnapshotError, SnapshotNewer, StoreUnusable
from blobark.headers import check_header
from blobark.model import FEATURES, FORMAT, Entry, Header, SegmentRef, Server, display
from blobark.segments import MAX_PLAIN_BYTES, plain_of, read_directories, read_segment
from blobark.stores.base import Store

PREFIX = "blobark/"
SERVER_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,62}")
MAX_HEADER_BYTES = 256 * 1024 * 1024
"""More than the header of a billion entries."""

MENDINGS = 2
"""How often what arrived changed is written again."""
GO_ON = "`blobark repair --yes` may mend it; `blobark backup --skip-damaged` goes on without it"
_EARLIER = "restore an earlier snapshot with --snapshot N"
_NOT_BY_IT = "`blobark verify` names the snapshots that need it: restore another one with --snapshot N"
_NUMBER_DIGITS = 10
_Document = TypeVar("_Document", Header, Server)


class _Version(msgspec.Struct):
    format: int = 0
    requires: tuple[str, ...] = ()


def _read(store: Store, key: str, limit_bytes: int) -> bytes:
    """Return a blob, unless it is longer than anything that was ever written there. Raises `SnapshotError`."""
    try:
        size = store.stat(key).size_bytes
        if size > limit_bytes:
            raise SnapshotError(f"{key} has {size} bytes: it is damaged")
        return bytes(store.read(key, 0, size))
    except ContentError as error:
        raise SnapshotError(f"{key} is damaged ({error.message})") from None


def servers(store: Store) -> Iterator[Server]:
    """Yield every server that owns blobs in the store."""
    for name in server_names(store):
        server = load_server(store, name)
        if server is not None:
            yield server


def server_names(store: Store) -> list[str]:
    """Return the names of the servers that own blobs in the store, sorted."""
    suffix = "/server.json"
    keys = (info.key for info in store.list(PREFIX))
    return sorted(key[len(PREFIX) : -len(suffix)] for key in keys if key.endswith(suffix))


def load_server(store: Store, name: str) -> Server | None:
    """Return who owns `name` in the store, None when nobody does."""
    try:
        data = _read(store, server_key(name), MAX_HEADER_BYTES)
    except BlobNotFound:
        return None
    server = decode(data, Server, f"blobark/{name}/server.json")
    if server.name != name or not SERVER_NAME.fullmatch(name):
        raise SnapshotError(f"blobark/{name}/server.json is not what its name says: it is damaged")
    return server


def claim_server(store: Store, server: Server) -> None:
    """Write who owns the name; raises `Fatal` when somebody else does already."""
    try:
        store.put(server_key(server.name), encode(server), {}, create_only=True)
    except BlobExists:
        owner = load_server(store, server.name)
        if owner is None or owner.host.machine_id != server.host.machine_id:
            raise Fatal(f"another machine has taken the name {server.name}", "set `server` to another name") from None


def numbers(store: Store, server: str) -> list[int]:
    """Return the numbers of the server's snapshots, ascending."""
    prefix = f"{PREFIX}{server}/snapshots/"
    names = (info.key[len(prefix) :] for info in store.list(prefix))
    return sorted(int(name) for name in names if len(name) == _NUMBER_DIGITS and name.isdigit())


def load(store: Store, server: str, number: int) -> Header:
    """Return a snapshot's header.

    Raises:
        SnapshotError: there is none of that number, it is damaged, or it needs a newer Blobark.
    """
    header = find(store, server, number)
    if header is None:
        have = numbers(store, server)
        hint = f"there are {have[0]} to {have[-1]}" if have else "it has none"
        raise SnapshotError(f"server {server} has no snapshot {number}", hint)
    return header


def find(store: Store, server: str, number: int) -> Header | None:
    """Return a snapshot's header, None when there is none of that number. Raises `SnapshotError` like `load`."""
    try:
        data = _read(store, header_key(server, number), MAX_HEADER_BYTES)
    except BlobNotFound:
        return None
    header = decode(data, Header, f"snapshot {number} of {server}")
    if header.number != number or header.server != server:
        raise SnapshotError(f"snapshot {number} of {server} is not what its name says: it is damaged")
    check_header(header)
    return header


def latest(store: Store, server: str) -> Header | None:
    """Return the header of the newest snapshot, None when there is none."""
    have = numbers(store, server)
    return load(store, server, have[-1]) if have else None


def to_go_on_from(store: Store, server: str, *, skip_damaged: bool) -> Header | None:
    """Return the header that the next snapshot rests on, None when there is none.

    It is the newest one, with `skip_damaged` the newest that can be read. Raises `SnapshotError` when that is no use.
    """
    for number in reversed(numbers(store, server)):
        try:
            return load(store, server, number)
        except SnapshotNewer:
            raise
        except SnapshotError as error:
            if not skip_damaged:
                raise SnapshotError(error.message, GO_ON) from None
    return None


def last_complete(store: Store, server: str, at_ns: int) -> Header:
    """Return the header of the newest complete snapshot whose walk began at `at_ns` (since 1970 UTC) or before.

    Both count as they are shown, in whole seconds.

    Raises:
        SnapshotError: there is none, or one that might be it cannot be used.
    """
    at_s = at_ns // 1_000_000_000
    for number in reversed(numbers(store, server)):
        header = load(store, server, number)
        if header.complete and header.started_ns // 1_000_000_000 <= at_s:
            return header
    message = f"server {server} has no complete snapshot of {utc(at_ns)} or before"
    raise SnapshotError(message, "blobark snapshots shows which there are")


def publish(store: Store, header: Header, *, check: bool) -> None:
    """Write the header, and with it the snapshot: everything it names is in the store already.

    `check` is to read it back: one that arrived changed is mended, since this run alone can have written it.

    Raises:
        Fatal: the number is taken: another run of the same server published meanwhile.
    """
    key = header_key(header.server, header.number)
    data = encode(header)
    store.sync()
    try:
        store.put(key, data, {}, create_only=True)
    except BlobExists:
        if store.read(key) != data:
            message = f"another run published snapshot {header.number} of {header.server} meanwhile"
            raise Fatal(message, "run save again: what this run stored is kept") from None
    else:
        if check:
            _mend(store, key, data)
    store.sync()


def put_segment(store: Store, server: str, name: str, stored: bytes, *, check: bool) -> bool:
    """Store a segment, unless it is there, and say whether it had to be; one that is there is checked, since snapshots
    will rest on it.

    `check` is to read back one that was not there, too.
    """
    key = segment_key(server, name)
    try:
        store.put(key, stored, {}, create_only=True)
        if check:
            _mend(store, key, stored)
    except BlobExists:
        with contextlib.suppress(ContentError):  # one that cannot be read is mended, too
            there = bytes(store.read(key))
            if there == stored or _is_sound(store, server, name, there):
                return False
        _mend(store, key, stored)  # its name is its content's digest: nothing else can belong there
    return True


def _is_sound(store: Store, server: str, name: str, stored: bytes) -> bool:
    try:
        return plain_of(name, stored, Manifest(store, server).base(name)) != b""
    except SnapshotError:  # what it rests on cannot be read: whoever needs that mends it
        return False


def _mend(store: Store, key: str, data: bytes) -> None:
    """Read back what was put and write it again if it is not the same; raises `StoreUnusable` if that is in vain."""
    for _ in range(MENDINGS):
        if _is_there(store, key, data):
            return
        store.put(key, data, {}, create_only=False)
    if not _is_there(store, key, data):
        raise StoreUnusable(f"{key} arrives changed in {store.name} each time", "check what is on the way to it")


def _is_there(store: Store, key: str, data: bytes) -> bool:
    try:
        return store.read(key) == data
    except (BlobNotFound, ContentError):
        return False


class Manifest:
    """Reads the segments of one server's snapshots, from a local cache where that has them."""

    _cached: Callable[[str], bytes | None] | None = None

    def __init__(self, store: Store, server: str, cached: Callable[[str], bytes | None] | None = None) -> None:
        self._store = store
        self._server = server
        self._cached = cached

    def stored(self, name: str) -> bytes:
        """Return what the store has under a segment's name. Raises `SnapshotError` when it is missing."""
        try:
            return _read(self._store, segment_key(self._server, name), MAX_PLAIN_BYTES)
        except BlobNotFound:
            raise SnapshotError(f"segment {name} is missing from the store", _EARLIER) from None

    def base(self, name: str) -> bytes:
        """Return the plain text that a segment of this name is a patch against, b"" where it is none.

        Raises:
            SnapshotError: that is damaged or missing.
        """
        base = name.partition("-")[2]
        if not base:
            return b""
        cached = self._cached(base) if self._cached else None
        plain = plain_of(base, cached) if cached is not None else b""
        plain = plain or plain_of(base, self.stored(base)) or plain_of(base, self.stored(base))
        if not plain:
            raise SnapshotError(f"segment {base}, on which others rest, is damaged", _NOT_BY_IT)
        return plain

    def lines(self, ref: SegmentRef) -> bytes:
        """Return a segment's plain text, unverified: enough to see how long its lines are. b"" where it is damaged."""
        cached = self._cached(ref.digest) if self._cached else None
        if cached is not None:
            return decode_all(cached, MAX_PLAIN_BYTES)
        return decode_all(self.stored(ref.name), MAX_PLAIN_BYTES, self.base(ref.name))

    def read(self, ref: SegmentRef) -> list[Entry]:
        """Return the entries of a segment. Raises `SnapshotError`."""
        return self._read(ref, read_segment)

    def directories(self, ref: SegmentRef) -> list[Entry]:
        """As `read`, but only the directories: a tenth of the time."""
        return self._read(ref, read_directories) if ref.dirs else []

    def _read(self, ref: SegmentRef, read: Callable[[SegmentRef, bytes, bytes], list[Entry]]) -> list[Entry]:
        cached = self._cached(ref.digest) if self._cached else None
        if cached is not None:
            with contextlib.suppress(SnapshotError):  # a damaged cache costs a request
                return read(ref, cached, b"")
        base = self.base(ref.name)
        try:
            return read(ref, self.stored(ref.name), base)
        except SnapshotError:  # perhaps only on its way
            return read(ref, self.stored(ref.name), base)


class PartialManifest(Manifest):
    """A manifest that has only the entries that `takes` says."""

    def __init__(self, whole: Manifest, takes: Callable[[Entry], bool]) -> None:
        self._whole = whole
        self._takes = takes

    def lines(self, ref: SegmentRef) -> bytes:
        """As `Manifest.lines`: the whole segment's."""
        return self._whole.lines(ref)

    def read(self, ref: SegmentRef) -> list[Entry]:
        """As `Manifest.read`, but only what it has."""
        return list(filter(self._takes, self._whole.read(ref)))

    def directories(self, ref: SegmentRef) -> list[Entry]:
        """As `Manifest.directories`, but only what it has."""
        return list(filter(self._takes, self._whole.directories(ref)))


class Portion(NamedTuple):
    """What of a snapshot is restored, and where: each root at its place, relative to the target."""

    header: Header
    """Its segments and totals are the portion's."""
    manifest: Manifest
    places: list[bytes]
    unknown: frozenset[bytes] = frozenset()
    """Directories of which the snapshot knows nothing: they are made, and otherwise left as they are."""
    promoted: frozenset[bytes] = frozenset()
    """Names that have the content of a hard-link group in place of its first name, where they land."""


def server_key(server: str) -> str:
    """Return the key of a server's description."""
    return f"{PREFIX}{server}/server.json"


def header_key(server: str, number: int) -> str:
    """Return the key of a snapshot's header."""
    return f"{PREFIX}{server}/snapshots/{number:0{_NUMBER_DIGITS}d}"


def segment_key(server: str, name: str) -> str:
    """Return the key of a segment; `name` is its digest or, of a patch, `<digest>-<digest of the base>`."""
    return f"{PREFIX}{server}/segments/{name}"


def encode(value: Header | Server) -> bytes:
    """Return a header, or a server's description, as it is stored."""
    return msgspec.json.format(msgspec.json.encode(value), indent=1)


def decode(data: bytes, kind: type[_Document], what: str) -> _Document:
    """Decode a header or a server's description; the version is looked at first, in whatever else has changed."""
    try:
        version = msgspec.json.decode(data, type=_Version)
        missing = sorted(set(version.requires) - FEATURES)
        if version.format > FORMAT or missing:
            features = display(", ".join(missing).encode(errors="surrogatepass"))
            needs = f"format {version.format}" + (f" with {features}" if missing else "")
            raise SnapshotNewer(f"{what} needs a newer Blobark: it is of {needs}", "install the current version")
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise SnapshotError(f"{what} is damaged", "restore an earlier one with --snapshot N") from None
