"""What the tests of large files have in common: a source with one, its blocks, and saves that are killed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from azure.storage.blob import ContainerClient

from blobark.blocks import Buffers, cut
from tests import fault_proxy as faults
from tests.fault_proxy import FaultProxy
from tests.runs import Workspace, wait_until
from tools.compare import differences

MIB = 1024 * 1024
SIZE = 40 * MIB
BLOCK = "comp=block&"


def with_large_file(folder: Path, content: bytes, **settings: Any) -> Workspace:
    """Return a workspace whose source is the file `large`, and whose store is a folder."""
    source = folder / "source"
    source.mkdir()
    (source / "large").write_bytes(content)
    return Workspace(folder / "work", source, server="web1", **settings)


def behind(proxy: FaultProxy, workspace: Workspace, azure_container: tuple[str, str]) -> Workspace:
    """Return a workspace whose store is a container of Azurite now, behind the proxy."""
    text, name = azure_container
    workspace.configure(store="azure", connection_string=proxy.rewire(text), container_name=name)
    return workspace


def check_restored(workspace: Workspace) -> None:
    assert differences(str(workspace.source), str(workspace.restored)) == []


def blocks_of(pieces: Iterable[bytes], bits: int) -> list[bytes]:
    """Return the blocks of a content; each buffer is used again at once, which must do no harm."""
    buffers = Buffers()
    blocks = []
    for block in cut(pieces, bits, buffers):
        blocks.append(bytes(block))
        buffers.give(block)
    return blocks


def blocks_in(restored: Path, content: bytes) -> int:
    """Return how many blocks the unfinished file has already."""
    parts = list(restored.glob(".blobark-*.part"))
    if not parts:
        return 0
    data = parts[0].read_bytes()
    offset = found = 0
    for block in blocks_of([content], 2):
        found += data[offset : offset + len(block)] == block
        offset += len(block)
    return found


def interrupt_save(workspace: Workspace, proxy: FaultProxy, container: ContainerClient, after: int) -> str:
    """Kill a save whose first `after` blocks are in the store; return the key."""
    workspace.configure(max_workers=1)  # one block at a time
    workspace.run("index")
    proxy.add(faults.hang(method="PUT", where=BLOCK, skip=after))
    key = workspace.guids()["large"]
    with workspace.started("save") as process:
        wait_until(lambda: len(proxy.logged("PUT", BLOCK)) > after, process)
        process.kill()
    assert len(staged(container, key)) == after
    return key


def staged(container: ContainerClient, key: str) -> list[str]:
    """Return the ids of the blocks that are in the store and part of no blob."""
    try:
        return [block.id for block in container.get_blob_client(key).get_block_list("uncommitted")[1]]
    except Exception:  # noqa: BLE001 - there is no such blob yet
        return []
