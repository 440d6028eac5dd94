"""Lists of blocks: in the entry while they are short, else objects of their own beside the segments.

A list is a help, not a need: it lets a later save or restore move only the blocks that differ. Where it is missing or
damaged the content is still there, whole and with its own digest.
"""

from __future__ import annotations

import msgspec
from blake3 import blake3
from msgspec.structs import replace

from blobark.codec import decode_all
from blobark.errors import BlobExists, BlobNotFound, ContentError, ItemError
from blobark.extents import of_entry, split
from blobark.manifest import DIGEST
from blobark.model import Block, Entry
from blobark.segments import compress, encode_blocks
from blobark.stores.base import Store

MOST_INLINE = 64
MOST_PLAIN_BYTES = 8 * 1024 * 1024
"""More than the list of the most blocks that there can be."""

_DECODER = msgspec.json.Decoder(tuple[Block, ...])


def key_of(server: str, digest: str) -> str:
    """Return the key of the object with a list, which has the digest of its plain form as its name."""
    return f"blobark/{server}/blocks/{digest}"


def noted(store: Store, server: str, entry: Entry, blocks: tuple[Block, ...], bits: int) -> Entry:
    """Return the entry with its blocks noted, in itself or in an object that is stored for them."""
    if len(blocks) <= MOST_INLINE:
        return replace(entry, blocks=blocks, blocks_at="", block_bits=bits)
    plain = encode_blocks(blocks)
    digest = blake3(plain).hexdigest()
    try:
        store.put(key_of(server, digest), compress(plain), {})
    except BlobExists:
        pass
    return replace(entry, blocks=None, blocks_at=digest, block_bits=bits)


def load(store: Store, server: str, entry: Entry) -> tuple[Block, ...]:
    """Return an entry's blocks; none where it has none that can be read, or that are not those of its content."""
    blocks = entry.blocks or ()
    if entry.blocks_at:
        try:
            blocks = read(store, server, entry.blocks_at)
        except ItemError:
            return ()
    return usable(server, entry, blocks)


def read(store: Store, server: str, digest: str) -> tuple[Block, ...]:
    """Return the list that an object holds. Raises `ContentError` when it is missing or damaged."""
    try:
        plain = decode_all(bytes(store.read(key_of(server, digest))), MOST_PLAIN_BYTES)
        if blake3(plain).hexdigest() == digest:
            return _DECODER.decode(plain)
    except BlobNotFound:
        raise ContentError("is missing") from None
    except (ValueError, msgspec.MsgspecError):
        pass
    raise ContentError("is damaged")


def usable(server: str, entry: Entry, blocks: tuple[Block, ...]) -> tuple[Block, ...]:
    """Return blocks that are an entry's; none where they are not those of its content."""
    can_be = all(block.size > 0 and DIGEST.fullmatch(block.digest) for block in blocks)
    if not can_be or sum(block.size for block in blocks) != entry.content_size:
        return ()
    try:
        split(of_entry(server, entry), blocks)
    except ValueError:
        return ()
    return blocks
