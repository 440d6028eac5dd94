"""Prune: memory does not grow with the number of blobs. `python -m tests.many_blobs` makes a store with more."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.many_blobs import make_store
from tests.peak import peak_rss_bytes
from tests.runs import Workspace

SMALL, LARGE = 9_000, 180_000
GROWTH_BYTES_A_BLOB = 200
"""A folder holds up to a million names at a time, to sort them; nothing else may grow ..."""
CACHE_BYTES = 16 * 1024 * 1024
"""... but for the scratch file's cache, until it is full (blobark/scratch.py)."""


def peaks(workspace: Workspace, count: int) -> list[int]:
    """Return the most memory that each step of a prune held."""
    found = [peak_rss_bytes(workspace.command("prune", "-q", *options)) for options in ([], ["--yes"])]
    for file in workspace.store.glob("blobark/web1/trash/*"):
        time_ns = file.stat().st_mtime_ns - 2 * 86_400 * 10**9
        os.utime(file, ns=(time_ns, time_ns))
    shown = subprocess.run(workspace.command("prune", "--json"), capture_output=True, check=True)
    assert json.loads(shown.stdout)["deleting"]["blobs"] >= count // 3 * 2
    found.append(peak_rss_bytes(workspace.command("prune", "-q", "--yes")))
    left = sum(1 for _ in workspace.store.glob("[0-9a-f][0-9a-f]/*"))
    assert left == count // 3
    return found


@pytest.mark.long
@pytest.mark.timeout(600)
def test_memory_does_not_grow_with_the_number_of_blobs(tmp_path: Path) -> None:
    found = []
    for count in (SMALL, LARGE):
        with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
            found.append(peaks(make_store(Path(folder), count), count))
    print(found)
    for small, large in zip(*found, strict=True):
        assert large - small < (LARGE - SMALL) * GROWTH_BYTES_A_BLOB + CACHE_BYTES
