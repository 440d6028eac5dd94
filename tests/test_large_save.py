"""Saving large files: how they are cut, what is sent, counted on the line; resume and delta."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from pathlib import Path
from random import Random
from urllib.parse import quote
from urllib.request import Request, urlopen

import pytest
from azure.storage.blob import ContainerClient

from blobark.blocks import bits_for, digest_of, least_bytes, most_bytes
from tests import fault_proxy as faults
from tests.azurite_server import AzuriteServer
from tests.fault_proxy import FaultProxy, Message
from tests.large_files import (
    BLOCK,
    MIB,
    SIZE,
    behind,
    blocks_of,
    check_restored,
    interrupt_save,
    staged,
    with_large_file,
)
from tests.runs import PATIENCE_S, Workspace

BLOCK_LIST = "comp=blocklist"


@pytest.fixture(scope="module")
def content() -> bytes:
    return Random(7).randbytes(SIZE)


@pytest.fixture
def in_folder(tmp_path: Path, content: bytes) -> Workspace:
    return with_large_file(tmp_path, content)


@pytest.fixture
def workspace(in_folder: Workspace, proxy: FaultProxy, azure_container: tuple[str, str]) -> Workspace:
    return behind(proxy, in_folder, azure_container)


def change(file: Path, content: bytes) -> None:
    """Write a new version in place, with another mtime."""
    file.write_bytes(content)


# Cutting


def test_blocks_are_the_same_however_the_content_comes(content: bytes) -> None:
    def pieces(size: int) -> Iterator[bytes]:
        return (content[start : start + size] for start in range(0, len(content), size))

    blocks = blocks_of(pieces(8 * MIB), 2)
    assert b"".join(blocks) == content
    for size in (SIZE, 3_333_333, 777_777):
        assert blocks_of(pieces(size), 2) == blocks
    assert all(least_bytes(2) <= len(block) <= most_bytes(2) for block in blocks[:-1])


def test_an_insertion_changes_the_blocks_around_it(content: bytes) -> None:
    known = {digest_of(block) for block in blocks_of([content], 2)}
    changed = content[: SIZE // 2] + os.urandom(MIB) + content[SIZE // 2 :]
    new = [block for block in blocks_of([changed], 2) if digest_of(block) not in known]
    assert sum(map(len, new)) <= MIB + 4 * most_bytes(2)
    assert len(new) <= 5


@pytest.mark.parametrize("block", [b"\0", b"ab", Random(1).randbytes(MIB // 4)])
def test_content_that_repeats_has_no_more_blocks_than_may_be(block: bytes) -> None:
    blocks = blocks_of([block * (64 * MIB // len(block))], 2)
    assert all(least_bytes(2) <= len(block) <= most_bytes(2) for block in blocks[:-1])


def test_bits_keep_below_the_limit_and_are_inherited() -> None:
    tera = 1 << 40
    assert bits_for(SIZE) == 2
    for size in (tera // 8, tera, 8 * tera, 190 * tera):
        assert size / least_bytes(bits_for(size)) < 50_000
    assert bits_for(SIZE, inherited=5) == 5
    assert bits_for(8 * tera, inherited=2) == bits_for(8 * tera)


# Memory


class CountingProxy(FaultProxy):
    """Knows the most blocks that were on their way to the store at a time."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.under_way = self.most = 0

    def answered(self, request: Message) -> bytes:
        if BLOCK in request.target:
            with self._lock:
                self.under_way += 1
                self.most = max(self.most, self.under_way)
        return b""

    def altered(self, request: Message, reply: Message) -> Message:
        if BLOCK in request.target:
            with self._lock:
                self.under_way -= 1
        return reply


@pytest.mark.parametrize(("max_memory", "most"), [("16MiB", 1), ("24MiB", 2)])
def test_blocks_on_their_way_stay_within_the_memory_there_is(
    in_folder: Workspace, azurite: AzuriteServer, azure_container: tuple[str, str], max_memory: str, most: int
) -> None:
    proxy = CountingProxy(azurite.port)
    with proxy:
        login = {"connection_string": proxy.rewire(azure_container[0]), "container_name": azure_container[1]}
        in_folder.configure(store="azure", max_memory=max_memory, max_workers=8, **login)
        in_folder.backup()
        assert 0 < proxy.most <= most
        in_folder.run("restore")
    check_restored(in_folder)


# Resume of a save


def test_a_killed_save_goes_on_with_the_blocks_that_are_missing(
    workspace: Workspace, proxy: FaultProxy, container: ContainerClient, content: bytes
) -> None:
    blocks = [len(block) for block in blocks_of([content], 2)]
    key = interrupt_save(workspace, proxy, container, 3)
    there = staged(container, key)
    proxy.reset_counts()
    saved = workspace.run("save").result
    assert (saved["complete"], saved["sent"]) == (True, 1)
    assert len(proxy.logged("PUT", BLOCK)) == len(blocks) - len(there)
    assert sum(proxy.logged("PUT", BLOCK)) == saved["sent_bytes"] < SIZE
    assert workspace.guids()["large"] == key
    assert container.download_blob(key).readall() == content
    workspace.run("restore")
    check_restored(workspace)


@pytest.mark.parametrize("block_id", [b"short", b"\xff\xfe\xfd" * 4], ids=["short", "binary"])
def test_blocks_of_another_kind_under_the_guid_lead_to_another_guid(
    workspace: Workspace, azurite: AzuriteServer, container: ContainerClient, content: bytes, block_id: bytes
) -> None:
    workspace.run("index")
    key = workspace.guids()["large"]
    stage_strange(azurite, container, key, block_id)
    assert workspace.run("save").result["complete"]
    assert workspace.guids()["large"] != key
    assert container.download_blob(workspace.guids()["large"]).readall() == content


def stage_strange(azurite: AzuriteServer, container: ContainerClient, key: str, block_id: bytes) -> None:
    """Stage a block as other programs do: its id may be any bytes, which the SDK does not let be."""
    query = f"comp=block&blockid={quote(base64.b64encode(block_id))}&{azurite.sas(container.container_name, 'w')}"
    address = f"{azurite.url}/{container.container_name}/{key}?{query}"
    with urlopen(Request(address, b"strange", method="PUT"), timeout=PATIENCE_S) as answer:
        assert answer.status == 201


def test_blocks_that_are_gone_are_sent_again(
    workspace: Workspace, proxy: FaultProxy, container: ContainerClient, content: bytes
) -> None:
    key = interrupt_save(workspace, proxy, container, 3)
    container.upload_blob(key, b"", overwrite=True)  # a whole blob takes the blocks on their way with it
    container.delete_blob(key)
    left = staged(container, key)
    assert workspace.run("save").result["complete"]
    assert container.download_blob(workspace.guids()["large"]).readall() == content
    assert len(left) < len(blocks_of([content], 2))


def test_a_commit_that_is_refused_is_tried_with_fresh_blocks(
    workspace: Workspace, proxy: FaultProxy, container: ContainerClient, content: bytes
) -> None:
    workspace.run("index")
    proxy.add(faults.answer(400, "InvalidBlockList", method="PUT", where=BLOCK_LIST))
    assert workspace.run("save").result["complete"]
    assert container.download_blob(workspace.guids()["large"]).readall() == content


def test_a_commit_that_is_always_refused_fails_the_file_alone(workspace: Workspace, proxy: FaultProxy) -> None:
    (workspace.source / "small").write_bytes(b"small")
    workspace.run("index")
    proxy.add(faults.answer(400, "InvalidBlockList", method="PUT", where=BLOCK_LIST, times=3))
    run = workspace.run("save", expect=3)
    assert [path for path, _ in run.result["failed"]] == [str(workspace.source / "large")]
    assert not run.result["complete"]


def test_every_block_is_checked_by_the_service(
    workspace: Workspace, proxy: FaultProxy, container: ContainerClient
) -> None:
    workspace.run("index")
    proxy.add(faults.flip_request(method="PUT", where=BLOCK, skip=2, times=2))
    assert workspace.run("save").result["complete"]
    assert container.download_blob(workspace.guids()["large"]).readall() == (workspace.source / "large").read_bytes()


# Delta up


def test_only_new_blocks_of_a_changed_file_are_sent(
    workspace: Workspace, azure_container: tuple[str, str], container: ContainerClient, content: bytes
) -> None:
    workspace.configure(connection_string=azure_container[0])  # the service copies only from its own address
    workspace.backup()
    first = workspace.guids()["large"]
    changed = content[: SIZE // 2] + os.urandom(MIB) + content[SIZE // 2 :]
    change(workspace.source / "large", changed)
    saved = workspace.backup().result
    assert 0 < saved["sent_bytes"] <= MIB + 4 * most_bytes(2)
    second = workspace.guids()["large"]
    assert second != first
    assert container.download_blob(second).readall() == changed
    assert container.download_blob(first).readall() == content
    workspace.run("restore")
    check_restored(workspace)


def test_nothing_is_copied_from_an_archived_blob(
    workspace: Workspace, azure_container: tuple[str, str], container: ContainerClient, content: bytes
) -> None:
    workspace.configure(connection_string=azure_container[0])
    workspace.backup()
    container.get_blob_client(workspace.guids()["large"]).set_standard_blob_tier("Archive")
    changed = os.urandom(MIB) + content
    change(workspace.source / "large", changed)
    assert workspace.backup().result["sent_bytes"] == len(changed)
    assert container.download_blob(workspace.guids()["large"]).readall() == changed


@pytest.mark.parametrize(("status", "code"), [(400, "Crc64Mismatch"), (500, "CannotVerifyCopySource")])
def test_what_cannot_be_copied_is_sent(
    workspace: Workspace, proxy: FaultProxy, content: bytes, status: int, code: str
) -> None:
    workspace.configure(max_workers=1)
    workspace.backup()
    change(workspace.source / "large", content + os.urandom(MIB))
    proxy.reset_counts()
    proxy.add(faults.answer(status, code, method="PUT", where=BLOCK))
    assert workspace.backup().result["sent_bytes"] == SIZE + MIB
    assert proxy.logged("PUT", BLOCK).count(0) == 1, "the service was asked again to copy"
    workspace.run("restore")
    check_restored(workspace)


def test_delta_off_sends_all(workspace: Workspace, proxy: FaultProxy, content: bytes) -> None:
    workspace.configure(delta="off")
    workspace.backup()
    change(workspace.source / "large", os.urandom(MIB) + content)
    proxy.reset_counts()
    assert workspace.backup().result["sent_bytes"] == SIZE + MIB
    assert sum(proxy.logged("PUT", BLOCK)) == SIZE + MIB


@pytest.mark.parametrize("place", ["azure", "folder"])
def test_a_new_version_cites_the_one_before(place: str, request: pytest.FixtureRequest, content: bytes) -> None:
    workspace: Workspace = request.getfixturevalue("workspace" if place == "azure" else "in_folder")
    workspace.configure(delta="extents")
    workspace.backup()
    changed = content[: SIZE // 2] + os.urandom(MIB) + content[SIZE // 2 :]
    change(workspace.source / "large", changed)
    saved = workspace.backup().result
    assert 0 < saved["sent_bytes"] <= MIB + 4 * most_bytes(2)
    assert "large" not in workspace.guids(), "it is no whole blob"
    change(workspace.source / "large", changed + b"tail" * 100)
    assert workspace.backup().result["sent_bytes"] <= 2 * most_bytes(2)
    assert workspace.backup().result["sent"] == 0
    workspace.run("restore")
    check_restored(workspace)
    workspace.run("restore", "--snapshot", "1", "--to", str(workspace.folder / "first"))
    assert (workspace.folder / "first" / "large").read_bytes() == content


def test_a_file_that_would_cite_too_little_is_written_whole(in_folder: Workspace, content: bytes) -> None:
    in_folder.configure(delta="extents")
    in_folder.backup()
    change(in_folder.source / "large", content[: SIZE // 3] + os.urandom(SIZE))
    saved = in_folder.backup().result
    assert saved["sent_bytes"] == SIZE // 3 + SIZE
    assert "large" in in_folder.guids()
    in_folder.run("restore")
    check_restored(in_folder)


def test_a_file_of_many_versions_is_written_whole_now_and_then(in_folder: Workspace, content: bytes) -> None:
    in_folder.configure(delta="extents")
    in_folder.backup()
    whole = 0
    current = content
    for number in range(10):
        place = (number * 4 + 2) * MIB
        current = current[:place] + os.urandom(64) + current[place + 64 :]
        change(in_folder.source / "large", current)
        whole += in_folder.backup().result["sent_bytes"] == SIZE
    assert 1 <= whole <= 2
    in_folder.run("restore")
    check_restored(in_folder)
