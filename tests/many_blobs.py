"""A folder store with very many blobs, to see what a prune makes of it.

    python -m tests.many_blobs FOLDER COUNT     then `blobark prune --config FOLDER/config.yaml`, and --yes

A third is named by the snapshot that stays, a third by one that goes, a third by none; all of it is a month old.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.forge import Fields, Forge, digest, item
from tests.runs import Workspace

MONTH_NS = 31 * 86_400 * 10**9
SEGMENT_ENTRIES = 4000


def key_of(number: int) -> str:
    """Return the key of one of the blobs; a thousand have the beginning of one run."""
    return f"web1_{number // 1000:08x}-0000-8000-8000-{number % 1000:04x}{number * 2654435761 % 2**32:08x}"


def make_blobs(store: Path, count: int) -> None:
    """Make so many empty blobs."""
    for fan in range(256):
        (store / f"{fan:02x}").mkdir(parents=True, exist_ok=True)
    for number in range(count):
        key = key_of(number)
        file = store / key[-2:] / key
        os.mknod(file, 0o600)
        time_ns = file.stat().st_mtime_ns - MONTH_NS
        os.utime(file, ns=(time_ns, time_ns))


def segments(forge: Forge, numbers: range) -> Iterator[Fields]:
    """Store the manifest of a snapshot that names these blobs."""
    entries = [item("", "dir")]
    for number in numbers:
        name = f"file-{number:09}"
        entries.append({**item(name, "file"), "guid": key_of(number)[5:], "digest": digest(b"")})
        if len(entries) == SEGMENT_ENTRIES:
            yield forge.segment(entries)
            entries = []
    if entries:
        yield forge.segment(entries)


def make_store(folder: Path, count: int) -> Workspace:
    """Make a store with so many blobs, and a configuration for it."""
    workspace = Workspace(folder, folder / "source", server="web1", keep={"last": 1})
    third = count // 3
    make_blobs(workspace.store, count)
    forge = Forge(workspace.store)
    for number, numbers in ((1, range(third)), (2, range(third, 2 * third))):
        forge.publish(forge.header(list(segments(forge, numbers)), number), number)
    return workspace


if __name__ == "__main__":
    make_store(Path(sys.argv[1]).absolute(), int(sys.argv[2]))
