"""Trash lists: what a prune means to delete, told to every save a day before it does.

    blobark/<server>/trash/<digest>    one zstd frame: a line that says what this is, then a key a line, as JSON strings

The first line may also name blobs to be left: most of what they hold is dead, and the next save is to store the rest of
it anew. They are not deleted for that.

A list is immutable and named by the BLAKE3 digest of its plain text, which holds a GUID: no two lists are ever the
same. When it was published is what the store says of the blob. A list too long is several, each good by itself.

    blobark/<server>/worked/<digest>   empty: that list has been worked through, and is gone

So a save that outlasts a list notices that there was one. These marks are kept for a hundred days.

What is on a list counts as gone for every save that begins while the list is there (`Trash`), unless the newest
snapshot names it. Nothing but content, segments and lists of blocks of this very server can be on a list.
"""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import msgspec
from blake3 import blake3

from blobark import blocklist
from blobark.clock import now_ns, utc
from blobark.codec import decode_all
from blobark.errors import BlobExists, BlobNotFound, ContentError, SnapshotError
from blobark.extents import blobs_of
from blobark.guids import GUID_PATTERN, GuidSource
from blobark.model import FORMAT, Entry
from blobark.scratch import Listed
from blobark.segments import compress
from blobark.snapshot import PREFIX
from blobark.stores.base import BlobInfo, Store

MOST_KEYS = 50_000
MARKS_LAST_NS = 100 * 86_400 * 10**9
MOST_PLAIN_BYTES = 64 * 1024 * 1024
"""More than a list of the most keys has."""

_SHARED = re.compile(r"blocks/[0-9a-f]{64}|segments/[0-9a-f]{64}(-[0-9a-f]{64})?")
_DAMAGED = "look at it; when it is beyond repair delete it yourself: what it lists is listed again"


class _Head(msgspec.Struct, frozen=True, omit_defaults=True):
    format: int
    server: str
    id: str
    created: str
    leave: tuple[str, ...] = ()


class TrashList(NamedTuple):
    """What a list says: keys to be deleted, and blobs whose content is to be stored anew."""

    keys: list[str]
    leave: tuple[str, ...]


def can_go(server: str, key: str) -> bool:
    """Whether a key is one of what a prune may delete: this server's content, segments and lists of blocks."""
    own, prefix = f"{PREFIX}{server}/", f"{server}_"
    if key.startswith(prefix):
        return GUID_PATTERN.fullmatch(key, len(prefix)) is not None
    return key.startswith(own) and _SHARED.fullmatch(key, len(own)) is not None


def contents_of(server: str, entry: Entry) -> list[str]:
    """Return the keys of the blobs that hold an entry's content."""
    return blobs_of(server, entry) if entry.guid else []


def names_of(server: str, entry: Entry) -> list[str]:
    """Return the keys of all blobs that an entry needs."""
    keys = contents_of(server, entry)
    if entry.blocks_at:
        keys.append(blocklist.key_of(server, entry.blocks_at))
    return keys


def lists(store: Store, server: str) -> list[BlobInfo]:
    """Return the server's trash lists, with the times at which they were published."""
    return list(store.list(_prefix(server), times=True))


def publish(store: Store, server: str, keys: Iterable[str], leave: Sequence[str] = ()) -> int:
    """Publish keys as new lists, the first of which names the blobs to be left; return how many lists that took."""
    waiting = iter(keys)
    guids = GuidSource()
    count = 0
    while (some := list(itertools.islice(waiting, MOST_KEYS))) or (leave and not count):
        head = _Head(FORMAT, server, guids.next(), utc(now_ns()), () if count else tuple(leave))
        plain = b"".join(msgspec.json.encode(item) + b"\n" for item in (head, *some))
        with contextlib.suppress(BlobExists):  # an answer was lost: nobody else has this GUID
            store.put(_prefix(server) + blake3(plain).hexdigest(), compress(plain), {}, create_only=True)
        count += 1
    store.sync()
    return count


def finish(store: Store, server: str, keys: Iterable[str], clock_ns: int) -> None:
    """Delete lists that have been worked through, and leave a mark for each; old marks go."""
    for key in keys:
        with contextlib.suppress(BlobExists):  # of a run that was killed just then
            store.put(_marks(server) + key.removeprefix(_prefix(server)), b"", {}, create_only=True)
        store.delete(key)
    for info in list(store.list(_marks(server), times=True)):
        if info.modified_ns < clock_ns - MARKS_LAST_NS:
            store.delete(info.key)


def read(store: Store, server: str, key: str) -> TrashList:
    """Return what a list says.

    Raises:
        BlobNotFound: the list is gone.
        SnapshotError: it is damaged, or of a newer Blobark.
    """
    try:
        plain = decode_all(bytes(store.read(key)), MOST_PLAIN_BYTES)
    except ContentError as error:
        raise SnapshotError(f"the trash list {key} is damaged ({error.message})", _DAMAGED) from None
    if blake3(plain).hexdigest() != key.removeprefix(_prefix(server)):
        raise SnapshotError(f"the trash list {key} is damaged", _DAMAGED)
    first, *lines = plain.splitlines()
    try:
        head = msgspec.json.decode(first, type=_Head)
        keys = [msgspec.json.decode(line, type=str) for line in lines]
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise SnapshotError(f"the trash list {key} is none", _DAMAGED) from None
    if head.format > FORMAT:
        raise SnapshotError(f"the trash list {key} needs a newer Blobark", "install the current version")
    if head.server != server or not all(can_go(server, listed) for listed in (*keys, *head.leave)):
        raise SnapshotError(f"the trash list {key} lists what may not be deleted", _DAMAGED)
    return TrashList(keys, head.leave)


class Trash:
    """The trash lists as one save knows them."""

    def __init__(self, listed: Listed, server: str) -> None:
        self._listed = listed
        self._server = server
        self._read: set[str] = set()
        self._rounds = 0
        self._marks: set[str] = set()
        self.leave: set[str] = set()
        """Blobs whose content is to be stored anew; a prune names a thousand at most."""

    @classmethod
    @contextlib.contextmanager
    def open(cls, store: Store, server: str) -> Iterator[Trash]:
        """Read all lists that there are."""
        with Listed.open() as listed:
            trash = cls(listed, server)
            trash._marks = {info.key for info in store.list(_marks(server))}
            trash.refresh(store)
            yield trash

    def __bool__(self) -> bool:
        """Whether there is any list."""
        return bool(self._read)

    def refresh(self, store: Store) -> bool:
        """Read the lists that have come since the last time; say whether there are any."""
        self._rounds += 1
        found = False
        for info in store.list(_prefix(self._server)):
            if info.key not in self._read:
                with contextlib.suppress(BlobNotFound):  # all that was on it is gone
                    keys, leave = read(store, self._server, info.key)
                    self._listed.add(keys, self._rounds)
                    self.leave |= set(leave)
                    self._read.add(info.key)
                    found = True
        return found

    def was_missed(self, store: Store) -> bool:
        """Whether a list has come and gone that no `refresh` has seen. Ask after a `refresh`: marks come first."""
        seen = {_marks(self._server) + key.removeprefix(_prefix(self._server)) for key in self._read}
        return any(info.key not in self._marks | seen for info in store.list(_marks(self._server)))

    def has_segment(self, name: str) -> bool:
        """Whether a segment is on a list."""
        return self._listed.has(f"{PREFIX}{self._server}/segments/{name}", 0)

    def has_content(self, entry: Entry, theirs: Entry | None) -> bool:
        """Whether content that an entry needs, and the newest snapshot's entry does not, is on a list."""
        spared = contents_of(self._server, theirs) if theirs is not None else []
        return any(self._listed.has(key, 0) and key not in spared for key in contents_of(self._server, entry))

    def has_blocks(self, entry: Entry, theirs: Entry | None) -> bool:
        """Whether an entry's list of blocks, which the newest snapshot's entry has not, is on a trash list."""
        at = entry.blocks_at
        is_spared = not at or (theirs is not None and theirs.blocks_at == at)
        return not is_spared and self._listed.has(blocklist.key_of(self._server, at), 0)

    def is_to_be_left(self, entry: Entry) -> bool:
        """Whether an entry's content lies, at least in part, in a blob that is to be left."""
        is_sound = entry.has_content and not entry.error and not entry.stale
        return is_sound and any(extent.blob in self.leave for extent in entry.extents or ())

    def listed_lately(self, keys: Iterable[str]) -> str:
        """Return one of some keys that is on a list which the last `refresh` has found, "" for none."""
        return next((key for key in keys if self._listed.has(key, self._rounds)), "")


def _prefix(server: str) -> str:
    return f"{PREFIX}{server}/trash/"


def _marks(server: str) -> str:
    return f"{PREFIX}{server}/worked/"
