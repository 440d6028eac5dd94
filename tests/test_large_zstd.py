"""Large files that are stored compressed: ranges, delta and resume, up and down, as with plain ones."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from random import Random

import pytest
from azure.storage.blob import ContainerClient

from tests import fault_proxy as faults
from tests.fault_proxy import FaultProxy
from tests.large_files import (
    BLOCK,
    MIB,
    SIZE,
    behind,
    blocks_in,
    blocks_of,
    check_restored,
    interrupt_save,
    staged,
    with_large_file,
)
from tests.manifests import content_keys, items
from tests.runs import Workspace, wait_until

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


def text_of(size: int, seed: int) -> bytes:
    """Return content that gets about two fifths smaller, and repeats nowhere."""
    return Random(seed).randbytes(size // 2).hex().encode()


@pytest.fixture(scope="module")
def content() -> bytes:
    return text_of(SIZE, 7)


@pytest.fixture
def in_folder(tmp_path: Path, content: bytes) -> Workspace:
    return with_large_file(tmp_path, content, compression="zstd")


@pytest.fixture
def workspace(in_folder: Workspace, proxy: FaultProxy, azure_container: tuple[str, str]) -> Workspace:
    return behind(proxy, in_folder, azure_container)


def the_blob(container: ContainerClient) -> bytes:
    [name] = [blob.name for blob in container.list_blobs("web1_")]
    return container.download_blob(name).readall()


@pytest.mark.parametrize("compression", ["zstd", "zstd:1", "none"])
def test_a_killed_save_goes_on_with_the_blocks_that_are_missing(
    workspace: Workspace, proxy: FaultProxy, container: ContainerClient, content: bytes, compression: str
) -> None:
    key = interrupt_save(workspace, proxy, container, 3)
    there = len(staged(container, key))
    workspace.configure(compression=compression)  # another level gives other bytes: nothing that is there is theirs
    proxy.reset_counts()
    saved = workspace.run("save").result
    assert (saved["complete"], saved["sent"]) == (True, 1)
    total = len(blocks_of([content], 2))
    assert len(proxy.logged("PUT", BLOCK)) == total - (there if compression == "zstd" else 0)
    blob = the_blob(container)
    assert (zstd.decompress(blob) if compression != "none" else blob) == content
    workspace.run("restore")
    check_restored(workspace)


def test_only_new_blocks_of_a_changed_file_are_sent(
    workspace: Workspace, azure_container: tuple[str, str], container: ContainerClient, content: bytes
) -> None:
    workspace.configure(connection_string=azure_container[0])  # the service copies only from its own address
    workspace.backup()
    first = {blob.name for blob in container.list_blobs("web1_")}
    changed = content[: SIZE // 2] + os.urandom(MIB) + content[SIZE // 2 :]
    (workspace.source / "large").write_bytes(changed)
    saved = workspace.backup().result
    assert 0 < saved["sent_bytes"] <= 18 * MIB
    [second] = {blob.name for blob in container.list_blobs("web1_")} - first
    assert zstd.decompress(container.download_blob(second).readall()) == changed
    workspace.run("restore")
    check_restored(workspace)


def test_versions_of_different_compression_cite_each_other(in_folder: Workspace, content: bytes) -> None:
    in_folder.configure(delta="extents")
    in_folder.backup()
    versions = [content]
    for number, compression in enumerate(("none", "zstd:1", "none")):
        place = (10 * number + 5) * MIB
        versions.append(versions[-1][:place] + text_of(MIB, number) + versions[-1][place:])
        (in_folder.source / "large").write_bytes(versions[-1])
        in_folder.configure(compression=compression)
        saved = in_folder.backup().result
        assert 0 < saved["sent_bytes"] < 20 * MIB
    codecs = [extent[4:] for extent in items(in_folder.store)["large"]["extents"]]
    assert ["zstd"] in codecs
    assert [] in codecs
    for number, version in enumerate(versions, 1):
        in_folder.run("restore", "--snapshot", str(number), "--to", str(in_folder.folder / f"to-{number}"))
        assert (in_folder.folder / f"to-{number}" / "large").read_bytes() == version


def test_a_restore_over_another_version_fetches_what_it_lacks(
    workspace: Workspace, proxy: FaultProxy, content: bytes
) -> None:
    workspace.backup()
    workspace.restored.mkdir()
    (workspace.restored / "large").write_bytes(content[: SIZE // 2] + os.urandom(MIB) + content[SIZE // 2 + 5 * MIB :])
    proxy.reset_counts()
    workspace.run("restore")
    check_restored(workspace)
    assert 0 < proxy.bytes_out["GET"] <= 16 * MIB
    assert len(proxy.logged("GET", "/web1_")) <= 6


def test_an_interrupted_restore_goes_on_with_its_part(workspace: Workspace, proxy: FaultProxy, content: bytes) -> None:
    workspace.backup()
    count = len(blocks_of([content], 2))
    proxy.reset_counts()
    proxy.add(faults.hang(method="GET", where="/web1_", skip=4))
    with workspace.started("restore") as process:
        wait_until(lambda: len(proxy.logged("GET", "/web1_")) >= 5, process)  # the one that hangs
        wait_until(lambda: blocks_in(workspace.restored, content) >= 3, process)
        process.kill()
    there = blocks_in(workspace.restored, content)
    proxy.reset_counts()
    workspace.run("restore")
    check_restored(workspace)
    assert len(proxy.logged("GET", "/web1_")) == count - there


def test_without_its_list_of_blocks_it_comes_back_as_a_stream(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "large").write_bytes(text_of(10 * MIB, 3) * 33)
    workspace = Workspace(tmp_path / "work", source, server="web1", compression="zstd:1")
    workspace.backup()
    [extent] = items(workspace.store)["large"]["extents"]
    assert extent[1] == 0
    workspace.run("restore")
    check_restored(workspace)
    shutil.rmtree(workspace.restored)
    [listed] = (workspace.store / "blobark" / "web1" / "blocks").iterdir()
    listed.unlink()
    workspace.run("restore")
    check_restored(workspace)


def test_a_damaged_block_fails_the_file(in_folder: Workspace) -> None:
    in_folder.backup()
    [key] = content_keys(in_folder.store)
    blob = in_folder.store / key[-2:] / key
    blob.chmod(0o600)
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 1
    blob.write_bytes(data)
    run = in_folder.run("restore", expect=3)
    assert "its content in the store is damaged" in run.result["failed"][0][1]
    assert list(in_folder.restored.iterdir()) == []


def test_what_does_not_get_smaller_is_stored_as_it_is(in_folder: Workspace) -> None:
    (in_folder.source / "large").write_bytes(os.urandom(20 * MIB))
    (in_folder.source / "small").write_bytes(os.urandom(3000))
    (in_folder.source / "tiny").write_bytes(b"aa")
    in_folder.backup()
    assert in_folder.guids().keys() == {"large", "small", "tiny"}


def test_a_sparse_file_is_compressed_without_its_holes(in_folder: Workspace) -> None:
    with (in_folder.source / "sparse").open("wb") as file:
        file.truncate(1 << 36)
        file.seek(1 << 35)
        file.write(text_of(12 * MIB, 1))
    assert in_folder.backup().result["stored_bytes"] < 40 * MIB
    in_folder.run("restore")
    restored = in_folder.restored / "sparse"
    assert restored.stat().st_size == 1 << 36
    with restored.open("rb") as file:
        file.seek(1 << 35)
        assert file.read(12 * MIB) == text_of(12 * MIB, 1)
