"""The values of a rebuild: what a blob says of itself, judged, and the paths that versions get. Nothing is read here.

Paths are absolute, with a byte 0 for each slash, so that their order is that of a manifest.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace

from blobark import content
from blobark.errors import SnapshotError
from blobark.guids import GUID_PATTERN, blob_name
from blobark.manifest import check_path, fault_of
from blobark.model import Entry, text_or_b64
from blobark.stores.base import BlobInfo

DIRECTORY_MODE = 0o700
MAX_NAME_BYTES = 255


def described(server: str, info: BlobInfo) -> tuple[bytes, Entry] | None:
    """Return the root's name and the entry that a blob's metadata tell, None where they tell none that can be."""
    entry, root_name = content.entry_of_blob(info.meta), content.root_of_blob(info.meta)
    guid = info.key.removeprefix(f"{server}_")
    if entry is None or root_name is None or not GUID_PATTERN.fullmatch(guid):
        return None
    entry = replace(entry, guid=guid, root=0, hardlink_to="", hardlink_to_b64="", error="", stale=False)
    try:
        path = entry.raw_path
        check_path(path)
        if root_name != b"/":
            check_path(root_name.removeprefix(b"/"))
        is_right = root_name.startswith(b"/") and not fault_of(entry)
    except (SnapshotError, ValueError):
        return None
    if not is_right or entry.kind not in ("file", "dir") or _own_bytes(server, entry) != info.size_bytes:
        return None
    return root_name, entry


def fault_of_citing(server: str, entry: Entry, size_of: Callable[[str], int | None]) -> str:
    """Return which of the blobs that an entry's extents cite is not the server's, is missing or short, "" when none.

    `size_of` returns the size of one of the server's blobs in bytes, None where there is no such blob.
    """
    for blob, end in _ends(entry).items():
        size = size_of(blob) if blob.startswith(f"{server}_") else None
        if size is None:
            return f"{blob}, which holds a part of it, is missing"
        if size < end:
            return f"{blob}, which holds a part of it, has {size} bytes and not {end}"
    return ""


def joined(root_name: bytes, path: bytes) -> bytes:
    """Return an absolute path with a byte 0 for each slash; "/" itself is empty."""
    below = b"/" + path if path else b""
    return (root_name.rstrip(b"/") + below).replace(b"/", b"\0")


def renamed(path: bytes, guid: str, attempt: int) -> bytes:
    """Return the path with the GUID at its end; a name that would be too long loses some of its own end.

    Only a tree that was itself rescued, and backed up, can hold such a name: then there is another `attempt`.
    """
    above, slash, name = path.rpartition(b"\0")
    mark = f".~{guid.rpartition('/')[2][-36:]}{attempt or ''}".encode()
    return above + slash + name[: MAX_NAME_BYTES - len(mark)] + mark


def outermost(root_names: set[bytes]) -> list[bytes]:
    """Return the roots that lie inside no other one, in the order of a manifest."""
    keys = {joined(name, b"") for name in root_names}
    return [name for name in sorted(root_names) if not any(joined(name, b"").startswith(key + b"\0") for key in keys)]


def directory(root: int, path: bytes, mtime_ns: int) -> Entry:
    """Return the entry of a directory that no blob tells of."""
    text, b64 = text_or_b64(path)
    return Entry(path=text, path_b64=b64, root=root, kind="dir", mode=DIRECTORY_MODE, mtime_ns=mtime_ns)


def _own_bytes(server: str, entry: Entry) -> int:
    """Return how long the blob under an entry's own GUID has to be: of a version that cites others, what is new."""
    if entry.kind == "dir":
        return 0
    if entry.extents is None:
        return entry.content_size
    return _ends(entry).get(blob_name(server, entry.guid), 0)


def _ends(entry: Entry) -> dict[str, int]:
    """Return how many bytes each blob that an entry's extents name must have at least."""
    ends: dict[str, int] = {}
    for extent in entry.extents or ():
        ends[extent.blob] = max(ends.get(extent.blob, 0), extent.stored_offset + extent.stored_length)
    return ends
