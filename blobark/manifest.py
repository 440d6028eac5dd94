"""Trusting a manifest: its entries are checked as they come by, before anything is done with them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from blobark.errors import SnapshotError
from blobark.model import Entry, Header, display


def places_of(header: Header) -> list[bytes]:
    """Return where each root lands, relative to restore_root: one root there itself, several under their names."""
    if len(header.roots) == 1:
        return [b""]
    places = []
    for root in header.roots:
        place = root.raw_name.strip(b"/")
        check_path(place)
        places.append(place)
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
        path = entry.raw_path
        key = entry.sort_key
        if not 0 <= entry.root < roots or key <= last:
            raise SnapshotError(f"the manifest is damaged: {display(path)} is out of order")
        last = key
        if entry.root != root:
            if path:
                raise SnapshotError(f"the manifest is damaged: {display(path)} comes before its root")
            root, above = entry.root, [b""]
        else:
            check_path(path)
            parent = path.rpartition(b"/")[0]
            while above and above[-1] != parent:
                above.pop()
            if not above:
                raise SnapshotError(f"the manifest is damaged: {display(path)} lies below what is no directory")
            if entry.kind == "dir":
                above.append(path)
        if entry.hardlink_to_any:
            check_path(entry.raw_hardlink_to)
        yield entry, path


def check_path(path: bytes) -> None:
    """Raise `SnapshotError` unless a relative path leads down, component by component."""
    if b"\0" in path or any(part in (b"", b".", b"..") for part in path.split(b"/")):
        raise SnapshotError(f"the manifest is damaged: {display(path)!r} is not a path below its root")
