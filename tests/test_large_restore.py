"""Restoring large files: what is fetched, counted on the line; delta, resume, and holes."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from random import Random

import pytest

from blobark.blocks import most_bytes
from blobark.fetch import tag_of
from blobark.partfile import temporary_name
from tests import fault_proxy as faults
from tests.fault_proxy import FaultProxy
from tests.large_files import MIB, SIZE, behind, blocks_in, blocks_of, check_restored, with_large_file
from tests.runs import PATIENCE_S, Workspace, wait_until
from tools.compare import differences

STAGED = "/web1_"
PART = os.fsdecode(temporary_name(tag_of(b"large")))


@pytest.fixture(scope="module")
def content() -> bytes:
    return Random(7).randbytes(SIZE)


@pytest.fixture
def in_folder(tmp_path: Path, content: bytes) -> Workspace:
    return with_large_file(tmp_path, content)


@pytest.fixture
def workspace(in_folder: Workspace, proxy: FaultProxy, azure_container: tuple[str, str]) -> Workspace:
    return behind(proxy, in_folder, azure_container)


# Delta down, and resume of a restore


def test_a_restore_over_another_version_fetches_what_it_lacks(
    workspace: Workspace, proxy: FaultProxy, content: bytes
) -> None:
    workspace.backup()
    key = workspace.guids()["large"]
    workspace.restored.mkdir()
    (workspace.restored / "large").write_bytes(content[: SIZE // 2] + os.urandom(MIB) + content[SIZE // 2 + 5 * MIB :])
    proxy.reset_counts()
    workspace.run("restore")
    check_restored(workspace)
    assert 0 < proxy.bytes_out["GET"] <= 5 * MIB + 4 * most_bytes(2)
    assert len(proxy.logged("GET", key)) <= 6


def test_neighbours_come_with_one_request_of_at_most_the_part_size(
    workspace: Workspace, proxy: FaultProxy, content: bytes
) -> None:
    workspace.backup()
    key = workspace.guids()["large"]
    asked = {}
    for part_size in ("1MiB", "8MiB", "64MiB"):
        shutil.rmtree(workspace.restored, ignore_errors=True)
        proxy.reset_counts()
        workspace.run("restore", "--part-size", part_size)
        check_restored(workspace)
        asked[part_size] = proxy.logged("GET", key)
    assert len(asked["1MiB"]) > len(asked["8MiB"]) > len(asked["64MiB"]) >= 1
    assert workspace.run("restore", "--part-size", "1KiB", expect=2).result["error"]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_an_interrupted_restore_goes_on_with_its_part(
    workspace: Workspace, proxy: FaultProxy, content: bytes, how: signal.Signals
) -> None:
    workspace.backup()
    key = workspace.guids()["large"]
    count = len(blocks_of([content], 2))
    proxy.reset_counts()
    proxy.add(faults.hang(method="GET", where=key, skip=4, times=2))
    with workspace.started("restore") as process:
        wait_until(lambda: len(proxy.logged("GET", key)) >= 5, process)  # the one that hangs
        wait_until(lambda: blocks_in(workspace.restored, content) >= 3, process)
        process.send_signal(how)
        process.communicate(timeout=PATIENCE_S)
    there = blocks_in(workspace.restored, content)
    assert not (workspace.restored / "large").exists()
    proxy.reset_counts()
    workspace.run("restore")
    check_restored(workspace)
    assert 0 < len(proxy.logged("GET", key)) <= count - there
    assert proxy.bytes_out["GET"] <= (count - there) * most_bytes(2) + MIB
    assert [path.name for path in workspace.restored.iterdir()] == ["large"]


@pytest.mark.parametrize("planted", ["wrong bytes", "hard link", "symlink", "fifo", "directory"])
def test_a_planted_part_does_no_harm(in_folder: Workspace, content: bytes, planted: str, tmp_path: Path) -> None:
    in_folder.backup()
    in_folder.run("restore")
    outside = tmp_path / "outside"
    outside.write_bytes(b"precious" * 1000)
    outside.chmod(0o600)
    (in_folder.restored / "large").unlink()
    part = in_folder.restored / PART
    if planted == "wrong bytes":
        part.touch(0o600)
        part.write_bytes(os.urandom(SIZE + 12345))
    elif planted == "hard link":
        part.hardlink_to(outside)
    elif planted == "symlink":
        part.symlink_to(outside)
    elif planted == "fifo":
        os.mkfifo(part)
    else:
        part.mkdir()
    in_folder.run("restore", expect=None)
    assert outside.read_bytes() == b"precious" * 1000
    if planted != "directory":
        check_restored(in_folder)


def test_a_block_that_is_damaged_in_the_store_fails_the_file(in_folder: Workspace) -> None:
    in_folder.backup()
    key = in_folder.guids()["large"]
    [blob] = in_folder.store.rglob(key)
    blob.chmod(0o600)
    with blob.open("r+b") as file:
        file.seek(SIZE // 2)
        byte = file.read(1)
        file.seek(SIZE // 2)
        file.write(bytes([byte[0] ^ 1]))
    run = in_folder.run("restore", expect=3)
    assert "digest" in run.result["failed"][0][1]
    assert list(in_folder.restored.iterdir()) == []


def test_a_lost_list_of_blocks_costs_nothing_but_the_delta(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "large").write_bytes(os.urandom(330 * MIB))
    workspace = Workspace(tmp_path / "work", source, server="web1")
    workspace.backup()
    [listed] = (workspace.store / "blobark" / "web1" / "blocks").iterdir()
    listed.chmod(0o600)
    listed.write_bytes(b"damaged")
    workspace.run("restore")
    check_restored(workspace)
    listed.unlink()
    workspace.run("restore", "--to", str(tmp_path / "again"))
    assert differences(str(source), str(tmp_path / "again")) == []


# Holes


def test_a_huge_sparse_file_costs_about_its_data(workspace: Workspace, proxy: FaultProxy) -> None:
    (workspace.source / "large").unlink()
    data = os.urandom(10 * MIB)
    with (workspace.source / "sparse").open("wb") as file:
        file.truncate(1 << 40)
        file.seek(1 << 39)
        file.write(data)
        file.seek((1 << 40) - MIB)
        file.write(data[:MIB])
    proxy.reset_counts()
    workspace.backup()
    assert sum(proxy.logged("PUT", STAGED)) <= 12 * MIB
    workspace.run("restore")
    restored = workspace.restored / "sparse"
    assert restored.stat().st_size == 1 << 40
    assert restored.stat().st_blocks * 512 <= 13 * MIB
    with restored.open("rb") as file:
        file.seek(1 << 39)
        assert file.read(len(data)) == data
        file.seek((1 << 40) - MIB)
        assert file.read() == data[:MIB]
    proxy.reset_counts()
    assert workspace.run("restore").result["kept"] == 1


def test_a_part_of_another_version_leaves_nothing_in_holes(in_folder: Workspace, content: bytes) -> None:
    with (in_folder.source / "large").open("wb") as file:
        file.write(content[: 12 * MIB])
        file.truncate(SIZE)
    in_folder.backup()
    in_folder.restored.mkdir()
    part = in_folder.restored / PART
    part.touch(0o600)
    part.write_bytes(content)
    in_folder.run("restore")
    check_restored(in_folder)
    assert (in_folder.restored / "large").stat().st_blocks * 512 <= 13 * MIB


def test_a_part_of_a_sparse_file_is_gone_on_with(workspace: Workspace, proxy: FaultProxy, content: bytes) -> None:
    with (workspace.source / "large").open("wb") as file:
        for start in (0, 100 * MIB):
            file.seek(start)
            file.write(content[: 12 * MIB])
        file.truncate(200 * MIB)
    workspace.backup()
    workspace.run("restore")
    part = (workspace.restored / "large").rename(workspace.restored / PART)
    part.chmod(0o600)
    proxy.reset_counts()
    workspace.run("restore")
    check_restored(workspace)
    assert proxy.bytes_out["GET"] < MIB
