"""Trusting a manifest: its entries are checked as they come by, before anything is done with them.

Paths that lead anywhere but down, and entries out of order, mean that this is no manifest: `checked` refuses it.
A value that cannot be (`fault_of`) costs the item that has it, and no other.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache

from blobark.codec import ZSTD
from blobark.errors import ConfigError, SnapshotError
from blobark.guids import GUID_PATTERN, TEMPORARY_NAME, TEMPORARY_PREFIX
from blobark.model import Entry, Extent, Header, display, sort_key
from blobark.stores.base import check_key

DIGEST = re.compile(r"[0-9a-f]{64}")
_MAX_BLOCK_BITS = 24
_MAX_SIZE = (1 << 63) - 1
_MAX_OWNER = (1 << 32) - 2
"""The id above this one means "leave it as it is" to the system."""

_NOWHERE = frozenset((b"", b".", b".."))
"""No component of a path below a root."""

_MAX_MODE = 0o7777
_MAX_MTIME_NS = 1 << 67
_MAX_DEVICE = (1 << 20) - 1
_MAX_SKIP_BYTES = 64 * 1024 * 1024
"""Frames that hold more than one file are much shorter."""


def places_of(header: Header) -> list[bytes]:
    """Return where each root lands, relative to restore_root: one root there itself, several under their names.

    Raises:
        SnapshotError: a root is `/` and not the only one, or its name leads anywhere but down.
    """
    if len(header.roots) == 1:
        return [b""]
    places = [root.raw_name.strip(b"/") for root in header.roots]
    for place in places:
        check_path(place)
    return places


def checked(entries: Iterable[Entry], roots: int) -> Iterator[tuple[Entry, bytes]]:
    """Yield (entry, raw path), having made sure that a manifest is one.

    Raises:
        SnapshotError: a path is absolute, has `..` or NUL, is out of order or there twice, or lies below something
            that is not a directory; a root's number is unknown.
    """
    above: list[bytes] = []
    root = -1
    last: tuple[int, bytes] = (-1, b"")
    for entry in entries:
        try:
            path = entry.raw_path
            first = entry.raw_hardlink_to if entry.hardlink_to_any else b""
        except ValueError:
            raise SnapshotError("the manifest is damaged: a path is no base64") from None
        key = sort_key(entry.root, path)
        if not 0 <= entry.root < roots or key <= last:
            raise SnapshotError(f"the manifest is damaged: {display(path)} is out of order")
        last = key
        if entry.root != root:
            if path:
                raise SnapshotError(f"the manifest is damaged: {display(path)} comes before its root")
            if entry.kind != "dir":
                raise SnapshotError("the manifest is damaged: a root is no directory")
            root, above = entry.root, [b""]
        else:
            parent, _, name = path.rpartition(b"/")
            if name in _NOWHERE or b"\0" in name or path.startswith(b"/"):
                check_path(path)
            while above and above[-1] != parent:  # which have been checked
                above.pop()
            if not above:
                raise SnapshotError(f"the manifest is damaged: {display(path)} lies below what is no directory")
            if entry.kind == "dir":
                above.append(path)
        if first:
            check_path(first)
        yield entry, path


def check_path(path: bytes) -> None:
    """Raise `SnapshotError` unless a relative path leads down, component by component."""
    if b"\0" in path or not _NOWHERE.isdisjoint(path.split(b"/")):
        raise SnapshotError(f"the manifest is damaged: {display(path)!r} is not a path below its root")


def fault_of(entry: Entry) -> str:
    """Return which value of an entry cannot be, "" when all can."""
    if _is_temporary(entry):
        return "its name is one that an unfinished restore gives"
    if entry.guid and not GUID_PATTERN.fullmatch(entry.guid):
        return "its GUID is none"
    if not (0 <= entry.mode <= _MAX_MODE and 0 <= entry.uid <= _MAX_OWNER and 0 <= entry.gid <= _MAX_OWNER):
        return "its mode or owner cannot be"
    if not (0 <= entry.size <= _MAX_SIZE and -_MAX_MTIME_NS <= entry.mtime_ns <= _MAX_MTIME_NS):
        return "its size or time cannot be"
    if entry.xattrs is not None and not all(map(_is_attribute, entry.xattrs.items())):
        return "its extended attributes cannot be"
    return _fault_of_kind(entry)


def _fault_of_kind(entry: Entry) -> str:
    """As `fault_of`, for what only some kinds of items have."""
    if entry.rdev is not None and not all(0 <= number <= _MAX_DEVICE for number in entry.rdev):
        return "its device number cannot be"
    if entry.kind == "symlink":
        return _fault_of_link(entry)
    if entry.kind == "file" and not entry.hardlink_to_any and not (entry.error and not entry.digest):
        return _fault_of_content(entry)
    return ""


def _is_temporary(entry: Entry) -> bool:
    if TEMPORARY_PREFIX not in entry.path and not entry.path_b64:
        return False
    return TEMPORARY_NAME.fullmatch(entry.raw_path.rpartition(b"/")[2]) is not None


def _fault_of_link(entry: Entry) -> str:
    try:
        target = entry.raw_link
    except ValueError:
        return "its target is no base64"
    return "" if target and b"\0" not in target else "its target cannot be"


def _fault_of_content(entry: Entry) -> str:
    if not DIGEST.fullmatch(entry.digest):
        return "it has no digest"
    if (entry.blocks_at and not DIGEST.fullmatch(entry.blocks_at)) or not 0 <= entry.block_bits <= _MAX_BLOCK_BITS:
        return "its list of blocks cannot be"
    end = 0
    for offset, length in entry.ranges or ():
        if offset < end or length <= 0:
            return "its ranges overlap, or are out of order"
        end = offset + length
    if end > entry.size:
        return "its ranges end after the file"
    if entry.extents is None:
        return "" if entry.guid else "it has no content"
    if not all(map(is_extent, entry.extents)):
        return "its extents cannot be"
    same = sum(extent.plain_length for extent in entry.extents) == entry.content_size
    return "" if same else "its extents are not as long as it is"


def is_extent(extent: Extent) -> bool:
    """Whether an extent can be."""
    if extent.stored_offset < 0 or extent.stored_length < 0 or extent.plain_length < 0 or extent.skip < 0:
        return False
    if extent.codec:
        fits = extent.codec == ZSTD and extent.skip <= _MAX_SKIP_BYTES
    else:
        fits = extent.stored_length == extent.plain_length and not extent.skip
    return fits and extent.stored_offset + extent.stored_length <= _MAX_SIZE and _is_key(extent.blob)


@lru_cache(maxsize=4)  # the files of a pack name the same one
def _is_key(key: str) -> bool:
    try:
        return check_key(key) == key
    except ConfigError:
        return False


def _is_attribute(item: tuple[str, str]) -> bool:
    name, value = item
    try:
        base64.b64decode(value, validate=True)
    except ValueError:
        return False
    return "\0" not in name
