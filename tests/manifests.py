"""A reader of snapshots in a folder store, written from docs/format.md: it shares no line with the one under test."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path
from typing import Any

from blake3 import blake3

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Item = dict[str, Any]

RUN_FIELDS = frozenset({"guid", "extents"})
"""What two runs over the same tree give different values."""


def read_header(store: Path, number: int | None = None) -> dict[str, Any]:
    """Return the header of a snapshot of the one server in the store, the newest by default."""
    wanted = "*" if number is None else f"{number:010}*"
    return dict(json.loads(max(store.glob(f"blobark/*/snapshots/{wanted}")).read_bytes()))


def read_manifest(store: Path, number: int | None = None) -> dict[tuple[int, bytes], Item]:
    """Return a snapshot's entries by root and path; checks digests, counts and order on the way."""
    header = read_header(store, number)
    entries: dict[tuple[int, bytes], Item] = {}
    last = (-1, b"")
    for segment in header["segments"]:
        plain = _segment(store / "blobark" / header["server"] / "segments", segment["digest"], segment.get("base", ""))
        lines = plain.splitlines()
        assert (len(lines), len(plain)) == (segment["entries"], segment["plain_bytes"])
        for line in lines:
            entry = json.loads(line)
            path = base64.b64decode(entry["path_b64"]) if "path_b64" in entry else entry.get("path", "").encode()
            key = entry.get("root", 0), path
            assert last < (key[0], path.replace(b"/", b"\0")), f"{path!r} is out of order or there twice"
            last = key[0], path.replace(b"/", b"\0")
            parent = path.rpartition(b"/")[0]
            assert not path or entries[key[0], parent].get("kind") == "dir", f"{path!r} has no directory above it"
            entries[key] = entry
    assert len(entries) == header["totals"]["entries"]
    return entries


def _segment(folder: Path, digest: str, base: str) -> bytes:
    stored = (folder / f"{digest}-{base}.blob" if base else folder / f"{digest}.blob").read_bytes()
    prefix = zstd.ZstdDict(_segment(folder, base, ""), is_raw=True).as_prefix if base else None
    plain = zstd.decompress(stored, prefix)
    assert blake3(plain).hexdigest() == digest
    return plain


def items(store: Path, number: int | None = None) -> dict[str, Item]:
    """Return the entries of a snapshot of one root, by path."""
    return {path.decode(errors="surrogateescape"): entry for (_, path), entry in read_manifest(store, number).items()}


def without_run(entries: dict[tuple[int, bytes], Item]) -> dict[tuple[int, bytes], Item]:
    """Return entries without what may differ between two runs over the same tree."""
    return {
        key: {name: value for name, value in entry.items() if name not in RUN_FIELDS} for key, entry in entries.items()
    }


def content_keys(store: Path) -> set[str]:
    """Return the keys of the content in the store."""
    return {file.name for folder in store.glob("[0-9a-f][0-9a-f]") for file in folder.iterdir()}


def content_of(store: Path, key: str) -> bytes:
    """Return a plain blob's bytes."""
    return (store / key[-2:] / key).read_bytes()


def missing_content(store: Path, number: int | None = None) -> list[str]:
    """Return the paths whose blob is not in the store, or has not the length that the entry says."""
    server = read_header(store, number)["server"]
    found = []
    for (_, path), entry in read_manifest(store, number).items():
        if entry.get("digest"):
            runs = entry.get("ranges")
            size = sum(length for _, length in runs) if runs is not None else entry.get("size", 0)
            key = f"{server}_{entry['guid']}"
            blob = store / key[-2:] / key
            if not blob.exists() or blob.stat().st_size != size:
                found.append(path.decode(errors="replace"))
    return found
