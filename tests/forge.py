"""Forged snapshots: a writer of the stored format made from docs/format.md alone, into a folder store's layout.

It shares no code with Blobark, and whatever a test says goes into the store as it is: wrong, damaged or hostile.
"""

from __future__ import annotations

import base64
import json
import os
import sys
import uuid
from pathlib import Path
from typing import Any

from blake3 import blake3

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Fields = dict[str, Any]

SERVER = "web1"
MTIME_NS = 1_600_000_000_123_456_789


class Forge:
    """A folder store with one server's content, segments and headers."""

    def __init__(self, store: Path, server: str = SERVER) -> None:
        self.store = store
        self.server = server
        self.contents: dict[str, bytes] = {}
        """What each file that was made by `file` holds, by its path: nothing else may ever be restored there."""
        self.write(f"blobark/{server}/server.json", json.dumps(self._owner()).encode())

    def path(self, key: str) -> Path:
        """Return the file that holds a blob (of the keys that are used here)."""
        return self.store / (f"{key}.blob" if "/" in key else f"{key[-2:]}/{key}")

    def write(self, key: str, data: bytes) -> Path:
        """Put a blob there, over what was there."""
        path = self.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    def blob(self, data: bytes, server: str = "") -> str:
        """Store content and return its GUID."""
        guid = str(uuid.uuid4())
        self.write(f"{server or self.server}_{guid}", data)
        return guid

    def file(self, path: str, data: bytes | None = None, /, **fields: Any) -> Fields:
        """Return the entry of a regular file whose content is stored; `fields` have the last word."""
        data = path.encode() if data is None else data
        self.contents[path] = data
        guid = fields.get("guid") or self.blob(data)
        return {**item(path, "file"), "guid": guid, "size": len(data), "digest": digest(data), **fields}

    def sparse(self, path: str, size: int, ranges: list[list[int]], data: bytes) -> Fields:
        """Return the entry of a sparse file with `data` in these ranges, one after the other."""
        described = f"{size}\n" + "".join(f"{offset} {length}\n" for offset, length in ranges)
        entry = self.file(path, data, size=size, ranges=ranges, digest=digest(described.encode() + data))
        if 0 <= size < 1 << 20:
            whole, taken = bytearray(size), 0
            for offset, length in ranges:
                whole[offset : offset + length] = data[taken : taken + length]
                taken += length
            self.contents[path] = bytes(whole)
        return entry

    def segment(self, entries: list[Fields] | bytes, /, **changes: Any) -> Fields:
        """Store a segment of these entries (or of this plain text) and return what a header says of it."""
        plain = entries if isinstance(entries, bytes) else lines(entries)
        name = digest(plain)
        self.write(f"blobark/{self.server}/segments/{name}", compress(plain))
        return {**described(name, plain, [] if isinstance(entries, bytes) else entries), **changes}

    def header(self, segments: list[Fields], number: int = 1, /, **changes: Any) -> Fields:
        """Return the header of a snapshot with these segments."""
        entries = sum(ref["entries"] for ref in segments)
        files = sum(ref.get("files", 0) for ref in segments)
        size = sum(ref.get("file_bytes", 0) for ref in segments)
        counts = {"entries": entries, "files": files, "file_bytes": size, "errors": 0}
        return {
            "format": 1,
            "server": self.server,
            "number": number,
            "complete": True,
            "host": {"name": "web1.example", "machine_id": "0" * 32},
            "roots": [{"name": "/srv/data", "entries": entries}],
            "started": "2026-01-02T03:04:05Z",
            "started_ns": 1_767_323_045_000_000_000,
            "ended": "2026-01-02T03:04:06Z",
            "totals": {**counts, "new_blobs": files, "new_bytes": size},
            "segments": segments,
            "tool": "forge",
            "parent": number - 1,
            "requires": [],
            **changes,
        }

    def publish(self, header: Fields | bytes, number: int = 1) -> Path:
        """Write a header (or these bytes) under a number."""
        data = header if isinstance(header, bytes) else json.dumps(header).encode()
        return self.write(f"blobark/{self.server}/snapshots/{number:010d}", data)

    def snapshot(self, *entries: Fields, number: int = 1, **changes: Any) -> Path:
        """Publish these entries, in the order given and below the root's own, as one segment."""
        targets = {entry.get("hardlink_to") for entry in entries}
        for entry in entries:
            if entry.get("path") in targets:
                entry.setdefault("links", 2)
        return self.publish(self.header([self.segment([item("", "dir"), *entries])], number, **changes), number)

    def _owner(self) -> Fields:
        host = {"name": "web1.example", "machine_id": "0" * 32}
        roots = [{"name": "/srv/data"}]
        return {"format": 1, "name": self.server, "host": host, "roots": roots, "created": "2026-01-02T03:04:05Z"}


def item(path: str, kind: str, /, **fields: Any) -> Fields:
    """Return the entry of an item that belongs to whoever runs the tests."""
    mode = 0o755 if kind == "dir" else 0o644
    owner = {"uid": os.geteuid(), "gid": os.getegid()}
    return {"path": path, "kind": kind, "mode": mode, "mtime_ns": MTIME_NS, **owner, **fields}


def lines(entries: list[Fields]) -> bytes:
    """Return the plain text of a segment."""
    return b"".join(json.dumps(entry).encode() + b"\n" for entry in entries)


def described(name: str, plain: bytes, entries: list[Fields]) -> Fields:
    """Return the true description of a segment, counts of 0 left out."""
    links = [entry for entry in entries if entry.get("hardlink_to") or entry.get("hardlink_to_b64")]
    files = [entry for entry in entries if entry.get("kind", "file") == "file" and entry not in links]
    counts = {
        "files": len(files),
        "file_bytes": sum(entry.get("size", 0) for entry in files),
        "dirs": sum(entry.get("kind") == "dir" for entry in entries),
        "links": len(links),
        "errors": sum(bool(entry.get("error")) for entry in entries),
    }
    shown = {name: count for name, count in counts.items() if count}
    return {"digest": name, "entries": plain.count(b"\n"), "plain_bytes": len(plain), **shown}


def compress(plain: bytes) -> bytes:
    """Return one zstd frame."""
    return zstd.compress(plain)


def decompress(frame: bytes, max_bytes: int) -> bytes:
    """Return the beginning of what a zstd frame holds."""
    return zstd.ZstdDecompressor().decompress(frame, max_length=max_bytes)


def digest(data: bytes) -> str:
    """Return what `b3sum` prints."""
    return blake3(data).hexdigest()


def b64(raw: bytes) -> str:
    """Return what stands in a field `..._b64`."""
    return base64.b64encode(raw).decode()
