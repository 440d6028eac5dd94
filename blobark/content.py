"""Content between the file and the store: putting one file's bytes under its GUID, and getting them back.

    put     read the file as one consistent version, digest it, store it create-only with what is needed to rescue it
    pieces  read an entry's extents back, in pieces of at most a block

A blob's metadata hold its root's name and its entry (base64url of JSON), so that a container that has lost all its
snapshots can still be made a tree again; they are left out where they would be longer than 6 KiB.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import msgspec
from blake3 import blake3
from msgspec.structs import replace

from blobark import source
from blobark.clock import now_ns
from blobark.errors import BlobExists, BlobNotFound, ContentError, SourceError
from blobark.guids import blob_name
from blobark.model import Entry, Extent
from blobark.segments import decode_entry, encode_entry
from blobark.stores.base import BLOCK_SIZE_BYTES, BlobInfo, Store

EMPTY_DIGEST = blake3(b"").hexdigest()
MAX_META_BYTES = 6 * 1024
MAX_BLOCKS = 25_000
"""Half of the 50,000 blocks that an Azure block blob may have."""
READINGS = 3
_MIB = 1024 * 1024


class DifferentContent(BlobExists):
    """The GUID names other content in the store: this version needs another GUID."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A file's content is in the store: the entry as read, whether it was sent or there already, and the bytes sent."""

    entry: Entry
    sent: bool
    sent_bytes: int = 0


def block_size(content_size: int) -> int:
    """Return the size in bytes of the blocks that content of this size is sent in: whole MiB, at most 25,000 blocks."""
    return max(BLOCK_SIZE_BYTES, -(-content_size // (MAX_BLOCKS * _MIB)) * _MIB)


def memory_cost(entry: Entry) -> int:
    """Return about how many bytes putting or getting this entry's content holds in memory."""
    size = entry.content_size
    return size if size <= BLOCK_SIZE_BYTES else 2 * block_size(size)


def put_file(
    store: Store, server: str, root_name: bytes, entry: Entry, descriptor: int, status: os.stat_result
) -> Stored:
    """Store the content of an open regular file, whose fstat is `status`, under the entry's GUID.

    The metadata in the result are the descriptor's. A file that changes under each of three readings is stored as
    last read and flagged `changed_while_read`.

    Raises:
        SourceError: it cannot be read.
        DifferentContent: the GUID is taken by other content.
    """
    for reading in range(1, READINGS + 1):
        now = entry if source.same_version(entry, status) else source.describe_open(descriptor, entry, status)
        last = reading == READINGS
        try:
            put = _put_small if now.content_size <= BLOCK_SIZE_BYTES else _put_large
            stored = put(store, server, root_name, now, descriptor, last)
        except SourceError:
            if last:
                raise
            stored = None
        if stored is not None:
            return stored
        status = os.fstat(descriptor)
    raise SourceError("changed each time it was read")


def put_placeholder(store: Store, server: str, root_name: bytes, entry: Entry) -> Stored:
    """Store the empty blob that stands for a skipped directory, as Azure's tools know it."""
    entry = replace(entry, digest=EMPTY_DIGEST)
    meta = {"hdi_isfolder": "true", **blob_meta(root_name, entry)}
    try:
        store.put(blob_name(server, entry.guid), b"", meta)
    except BlobExists:
        _check_same(store, blob_name(server, entry.guid), entry, 0)
        return Stored(entry, sent=False)
    return Stored(entry, sent=True)


def read_small(entry: Entry, descriptor: int, *, last: bool = False) -> tuple[Entry, bytes] | None:
    """Return the entry with its digest, and the content, of a file of at most one block.

    None when the file changed meanwhile, unless this is the last reading: then the entry is flagged.
    """
    data = b"".join(source.read_blocks(descriptor, entry, BLOCK_SIZE_BYTES))
    hasher = source.content_hasher(entry)
    hasher.update(data)
    entry = replace(entry, digest=hasher.hexdigest())
    if not source.same_version(entry, os.fstat(descriptor)):
        if not last:
            return None
        entry = replace(entry, changed_while_read=True)
    return entry, data


def put_small(store: Store, server: str, root_name: bytes, entry: Entry, data: bytes) -> Stored:
    """Store what `read_small` has read. Raises `DifferentContent`."""
    key = blob_name(server, entry.guid)
    try:
        store.put(key, data, blob_meta(root_name, entry))
    except BlobExists:
        _check_same(store, key, entry, len(data))
        return Stored(entry, sent=False)
    return Stored(entry, sent=True, sent_bytes=len(data))


def pieces(store: Store, server: str, entry: Entry) -> Iterator[bytes]:
    """Yield the content of an entry, in order, in pieces of at most a block.

    Raises `ContentError` where a blob is missing or short; the digest is the caller's to compare.
    """
    size = entry.content_size
    extents = entry.extents
    if extents is None:
        extents = (Extent(blob_name(server, entry.guid), 0, size, size),)
    for extent in extents:
        offset, end = extent.stored_offset, extent.stored_offset + extent.stored_length
        while offset < end:
            length = min(BLOCK_SIZE_BYTES, end - offset)
            try:
                yield store.read(extent.blob, offset, length)
            except BlobNotFound:
                raise ContentError(f"its blob {extent.blob} is missing from the store") from None
            offset += length


def blob_meta(root_name: bytes, entry: Entry) -> dict[str, str]:
    """Return the metadata of a plain blob; without its xattrs, or empty, where they would be too long."""
    meta = {"blobark_root": _to_b64(root_name), "blobark_entry": _to_b64(encode_entry(entry))}
    if sum(map(len, meta.values())) <= MAX_META_BYTES:
        return meta
    return blob_meta(root_name, replace(entry, xattrs=None)) if entry.xattrs else {}


def entry_of_blob(meta: Mapping[str, str]) -> Entry | None:
    """Return the entry that a blob's metadata hold, None where they hold none that can be read."""
    try:
        return decode_entry(base64.urlsafe_b64decode(meta["blobark_entry"]))
    except (KeyError, ValueError, binascii.Error, msgspec.MsgspecError):
        return None


@dataclass(frozen=True, slots=True)
class Described:
    """What the store itself tells of a blob that only a map names; `md5` is hex, "" where the store keeps none."""

    entry: Entry
    md5: str


def describe_blob(store: Store, key: str, entry: Entry) -> Described:
    """Return a map's entry with its content's size, and with the metadata and digest that the blob carries, if any.

    Raises `ContentError` when the blob is missing.
    """
    try:
        info = store.stat(key)
    except BlobNotFound:
        raise ContentError(f"its blob {key} is missing from the store") from None
    size = info.size_bytes
    extents = (Extent(key, 0, size, size),)
    theirs = entry_of_blob(info.meta)
    if theirs is not None and theirs.kind == "file" and theirs.digest and theirs.content_size == size:
        known = replace(theirs, path=entry.path, path_b64=entry.path_b64, root=0, extents=extents)
        return Described(known, info.md5)
    listed = next(store.list(key), None)  # only a listing tells the MD5
    md5 = listed.md5 if listed is not None and listed.key == key else ""
    return Described(replace(entry, size=size, extents=extents, mtime_ns=now_ns()), md5)


def _put_small(store: Store, server: str, root_name: bytes, entry: Entry, descriptor: int, last: bool) -> Stored | None:
    read = read_small(entry, descriptor, last=last)
    return None if read is None else put_small(store, server, root_name, *read)


def _put_large(store: Store, server: str, root_name: bytes, entry: Entry, descriptor: int, last: bool) -> Stored | None:
    """Send block by block while digesting; nothing is under the GUID before the whole file has been read."""
    key = blob_name(server, entry.guid)
    hasher = source.content_hasher(entry)
    upload = store.begin(key)
    try:
        for block in source.read_blocks(descriptor, entry, block_size(entry.content_size)):
            hasher.update(block)
            upload.add(block)
        entry = replace(entry, digest=hasher.hexdigest())
        if not source.same_version(entry, os.fstat(descriptor)):
            if not last:
                upload.abort()
                return None
            entry = replace(entry, changed_while_read=True)
        upload.commit(blob_meta(root_name, entry))
    except BlobExists:
        upload.abort()
        _check_same(store, key, entry, entry.content_size)
        return Stored(entry, sent=False)
    except BaseException:
        upload.abort()
        raise
    return Stored(entry, sent=True, sent_bytes=entry.content_size)


def _check_same(store: Store, key: str, entry: Entry, size_bytes: int) -> None:
    """Raise `DifferentContent` unless the blob holds the entry's content: its own metadata say so, or its bytes."""
    try:
        info = store.stat(key)
    except BlobNotFound:  # taken by blocks that another run has staged and not committed
        raise DifferentContent(f"{key} is not free") from None
    if info.size_bytes == size_bytes:
        theirs = entry_of_blob(info.meta)
        if theirs is not None and theirs.digest:
            same = theirs.digest == entry.digest
        else:
            same = _digest_of_blob(store, info, entry) == entry.digest
        if same:
            return
    raise DifferentContent(f"{key} holds other content")


def _digest_of_blob(store: Store, info: BlobInfo, entry: Entry) -> str:
    hasher = source.content_hasher(entry)
    for offset in range(0, info.size_bytes, BLOCK_SIZE_BYTES):
        hasher.update(store.read(info.key, offset, min(BLOCK_SIZE_BYTES, info.size_bytes - offset)))
    return hasher.hexdigest()


def _to_b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode()
