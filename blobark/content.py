"""Content between the file and the store: putting one file's bytes under its GUID, and getting them back.

    put     read the file as one consistent version, digest it, store it create-only with what is needed to rescue it
    pieces  read an entry's extents back, in pieces of at most a block

A blob's metadata hold its root's name and its entry (base64url of JSON), so that a container that has lost all its
snapshots can still be made a tree again; they are left out where they would be longer than 6 KiB.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import msgspec
from blake3 import blake3
from msgspec.structs import replace

from blobark import source
from blobark.clock import now_ns
from blobark.codec import ZSTD, decoded, encode, pays
from blobark.errors import BlobExists, BlobNotFound, ContentError
from blobark.extents import of_entry
from blobark.guids import blob_name
from blobark.model import Data, Entry, Extent, Sent
from blobark.segments import decode_entry, encode_entry
from blobark.stores.base import BLOCK_SIZE_BYTES, BlobInfo, Store, Take
from metrics.stages import Stages

EMPTY_DIGEST = blake3(b"").hexdigest()
MAX_META_BYTES = 6 * 1024


class DifferentContent(BlobExists):
    """The GUID names other content in the store: this version needs another GUID."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A file's content is in the store: the entry as read, whether it was sent or there already, and the bytes sent.

    `blob` is the blob that was made for it; None where all of it is somewhere else.
    """

    entry: Entry
    sent: bool
    sent_bytes: int
    blob: Sent | None


class Ready(NamedTuple):
    """A small file as it will be stored: its entry, the bytes, and their MD5 where that was asked for."""

    entry: Entry
    data: bytes
    md5: bytes


def put_placeholder(store: Store, server: str, root_name: bytes, entry: Entry, *, md5: bool) -> Stored:
    """Store the empty blob that stands for a skipped directory, as Azure's tools know it."""
    ready = Ready(replace(entry, digest=EMPTY_DIGEST), b"", md5_of(b"") if md5 else b"")
    meta = {"hdi_isfolder": "true", **blob_meta(store, root_name, ready.entry)}
    return _put(store, blob_name(server, entry.guid), ready, meta)


def _put(store: Store, key: str, ready: Ready, meta: Mapping[str, str]) -> Stored:
    """Store all of an entry's content as a blob in one piece. Raises `DifferentContent`."""
    entry, data, md5 = ready
    size = entry.content_size if entry.kind == "file" else 0
    blob = Sent(entry.guid, len(data), md5, size)
    try:
        store.put(key, data, meta)
    except BlobExists:
        check_same(store, key, entry, len(data))
        return Stored(entry, sent=False, sent_bytes=0, blob=blob)
    return Stored(entry, sent=True, sent_bytes=len(data), blob=blob)


def stands_for_directory(info: BlobInfo) -> bool:
    """Whether a blob, whose metadata are known, is a placeholder, whoever made it."""
    return not info.size_bytes and info.meta.get("hdi_isfolder", "").lower() == "true"


def read_small(entry: Entry, descriptor: int, *, last: bool = False) -> tuple[Entry, bytes] | None:
    """Return the entry with its digest, and the content, of a file of at most one block.

    None when the file changed meanwhile, unless this is the last reading: then the entry is flagged.
    """
    data = source.read_whole(descriptor, entry)
    entry = replace(entry, digest=source.digest_of(entry, data))
    if not source.same_version(entry, source.status_now(descriptor)):
        if not last:
            return None
        entry = replace(entry, changed_while_read=True)
    return entry, data


def make_ready(server: str, entry: Entry, data: bytes, *, md5: bool, level: int) -> Ready:
    """Make what `read_small` has read ready to be stored; `level`, if not 0, asks for a zstd frame where that pays."""
    if level and pays([data]):
        frame = encode(data, level)
        if len(frame) < len(data):
            key = blob_name(server, entry.guid)
            entry = replace(entry, extents=(Extent(key, 0, len(frame), len(data), ZSTD),))
            data = frame
    return Ready(entry, data, md5_of(data) if md5 else b"")


def put_small(store: Store, server: str, root_name: bytes, ready: Ready) -> Stored:
    """Store what has been made ready. Raises `DifferentContent`."""
    return _put(store, blob_name(server, ready.entry.guid), ready, blob_meta(store, root_name, ready.entry))


def pieces(store: Store, server: str, entry: Entry, stages: Stages | None = None) -> Iterator[Data]:
    """Yield the content of an entry, in order, in pieces of at most a block; decoding it is noted in `stages`.

    Raises `ContentError` where a blob is missing or short; the digest is the caller's to compare.
    """
    for extent in of_entry(server, entry):
        yield from read_extent(store, extent, stages=stages)


def read_extent(
    store: Store, extent: Extent, *, version: str = "", stages: Stages | None = None, most: int = BLOCK_SIZE_BYTES
) -> Iterator[Data]:
    """Yield what an extent names, as `pieces` does, with requests of at most `most` bytes.

    With `version` the blob must still be that one.
    """
    stored = _stored(store, extent, version, most)
    return decoded(stored, extent.skip, extent.plain_length, stages) if extent.codec else stored


def pour_extent(store: Store, extent: Extent, take: Take, *, version: str, most: int) -> None:
    """Give what an extent without a codec names to `take` as it comes, with requests of at most `most` bytes.

    Raises `ContentError` as `pieces`; what `take` raises comes through.
    """
    for done in range(0, extent.stored_length, most):
        length = min(most, extent.stored_length - done)
        try:
            store.pour(extent.blob, extent.stored_offset + done, length, take, version=version)
        except BlobNotFound:
            raise missing(extent.blob) from None


def _stored(store: Store, extent: Extent, version: str, most: int) -> Iterator[Data]:
    offset, end = extent.stored_offset, extent.stored_offset + extent.stored_length
    while offset < end:
        length = min(most, end - offset)
        try:
            yield store.read(extent.blob, offset, length, version=version)
        except BlobNotFound:
            raise missing(extent.blob) from None
        offset += length


def missing(blob: str) -> ContentError:
    """Return what to raise when a blob is not in the store."""
    return ContentError(f"its blob {blob} is missing from the store")


def blob_meta(store: Store, root_name: bytes, entry: Entry) -> dict[str, str]:
    """Return the metadata of a plain blob; without its xattrs, or empty, where they would be too long.

    A store that keeps none gets none.
    """
    if not store.keeps_meta:
        return {}
    if entry.blocks is not None or entry.blocks_at or entry.block_bits:
        entry = replace(entry, blocks=None, blocks_at="", block_bits=0)
    meta = {"blobark_root": _to_b64(root_name), "blobark_entry": _to_b64(encode_entry(entry))}
    if sum(map(len, meta.values())) <= MAX_META_BYTES:
        return meta
    return blob_meta(store, root_name, replace(entry, xattrs=None)) if entry.xattrs else {}


def entry_of_blob(meta: Mapping[str, str]) -> Entry | None:
    """Return the entry that a blob's metadata hold, None where they hold none that can be read."""
    try:
        return decode_entry(base64.urlsafe_b64decode(meta["blobark_entry"]))
    except (KeyError, ValueError, binascii.Error, msgspec.MsgspecError):
        return None


def root_of_blob(meta: Mapping[str, str]) -> bytes | None:
    """Return the name of the root that a blob's metadata hold, None where they hold none."""
    try:
        return base64.urlsafe_b64decode(meta["blobark_root"])
    except (KeyError, ValueError, binascii.Error):
        return None


@dataclass(frozen=True, slots=True)
class Described:
    """What the store itself tells of a blob that only a map names; `md5` is hex, "" where the store keeps none."""

    entry: Entry
    md5: str


def describe_blob(store: Store, key: str, entry: Entry) -> Described:
    """Return a map's entry with its content's size, and with the metadata and digest that the blob carries, if any.

    What stands for a directory, as Azure's tools know it, is one: an empty blob with `hdi_isfolder`.

    Raises `ContentError` when the blob is missing.
    """
    try:
        info = store.stat(key)
    except BlobNotFound:
        raise missing(key) from None
    size = info.size_bytes
    if stands_for_directory(info):
        return Described(replace(entry, kind="dir", mode=entry.mode | (entry.mode & 0o444) >> 2), "")
    extents = (Extent(key, 0, size, size),)
    theirs = entry_of_blob(info.meta)
    if theirs is not None and theirs.kind == "file" and theirs.digest and theirs.content_size == size:
        known = replace(theirs, path=entry.path, path_b64=entry.path_b64, root=0, extents=extents)
        return Described(known, info.md5)
    listed = next(store.list(key), None) if store.lists_md5 else None
    md5 = listed.md5 if listed is not None and listed.key == key else ""
    return Described(replace(entry, size=size, extents=extents, mtime_ns=now_ns()), md5)


def md5_of(data: bytes) -> bytes:
    """Return the MD5 as a store may keep it."""
    return hashlib.md5(data, usedforsecurity=False).digest()


def check_same(store: Store, key: str, entry: Entry, size_bytes: int) -> None:
    """Raise `DifferentContent` unless the blob holds the entry's content: its own metadata say so, or its bytes."""
    try:
        info = store.stat(key)
    except BlobNotFound:  # taken by blocks that another run has staged and not committed
        raise DifferentContent(f"{key} is not free") from None
    if info.size_bytes == size_bytes:
        theirs = entry_of_blob(info.meta)
        if theirs is not None and theirs.digest:
            same = (theirs.digest, theirs.extents) == (entry.digest, entry.extents)
        else:
            try:
                same = _digest_of(store, key, entry) == entry.digest
            except ContentError:  # archived, or damaged: nobody can tell
                same = False
        if same:
            return
    raise DifferentContent(f"{key} holds other content")


def _digest_of(store: Store, key: str, entry: Entry) -> str:
    """Return the digest of what the store has in place of an entry's content."""
    hasher = source.content_hasher(entry)
    size = entry.content_size
    for extent in (Extent(key, 0, size, size),) if entry.extents is None else entry.extents:
        for piece in read_extent(store, extent):
            hasher.update(piece)
    return hasher.hexdigest()


def _to_b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode()
