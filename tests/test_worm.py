"""Write-once: in a container with a retention policy index, save and restore work, also after a loss on the way."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from azure.storage.blob import BlobLeaseClient, ContainerClient

from blobark.errors import BlobExists, StoreDenied
from blobark.stores.azure import AzureStore
from tests import fault_proxy as faults
from tests.azurite_server import AzuriteServer
from tests.in_blocks import InBlocks
from tests.runs import Workspace, wait_until
from tests.tier_proxy import WormProxy
from tools.compare import differences

LARGE_BYTES = 9 * 1024 * 1024


@pytest.fixture
def proxy(azurite: AzuriteServer, container: ContainerClient) -> Iterator[WormProxy]:
    proxy = WormProxy(azurite.port, container=container)
    with proxy:
        yield proxy


@pytest.fixture
def workspace(tmp_path: Path, proxy: WormProxy, azure_container: tuple[str, str]) -> Workspace:
    text, name = azure_container
    source = tmp_path / "source"
    (source / "skipped").mkdir(parents=True)
    for number in range(8):
        (source / f"small-{number}").write_text(f"content of {number}")
    (source / "large").write_bytes(os.urandom(LARGE_BYTES))
    return Workspace.on_azure(tmp_path / "work", source, proxy.rewire(text), name, skip_path=["skipped"])


def refused(proxy: WormProxy) -> list[str]:
    """Return what was refused, but for the name in the lock: a lock without a name will do."""
    return [line for line in proxy.refused if line != "PUT blobark/web1/lock"]


def test_backups_and_restores_work(workspace: Workspace, proxy: WormProxy, container: ContainerClient) -> None:
    workspace.backup()
    (workspace.source / "small-0").write_text("another content")
    workspace.backup()
    workspace.run("restore")
    (workspace.source / "skipped").touch()
    assert refused(proxy) == []
    assert [line for line in differences(str(workspace.source), str(workspace.restored)) if "skipped" not in line] == []


def test_a_lost_answer_costs_nothing(workspace: Workspace, proxy: WormProxy, container: ContainerClient) -> None:
    proxy.add(
        faults.lose_answer(method="PUT", where="/web1_", skip=3),
        faults.lose_answer(method="PUT", where="comp=blocklist"),
        faults.lose_answer(method="PUT", where="/segments/"),
        faults.lose_answer(method="PUT", where="/snapshots/"),
    )
    saved = workspace.backup().result
    assert (saved["complete"], saved["failed"]) == (True, [])
    assert len(refused(proxy)) == 4
    assert {blob.name for blob in container.list_blobs("web1_")} == set(workspace.guids().values())


def test_a_save_that_was_killed_goes_on(workspace: Workspace, proxy: WormProxy, container: ContainerClient) -> None:
    workspace.run("index")
    hangs = faults.hang(method="PUT", where="/segments/")
    proxy.add(hangs)
    first = subprocess.Popen(workspace.command("save"), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    wait_until(lambda: hangs.fired, first)
    assert {blob.name for blob in container.list_blobs("web1_")} == set(workspace.guids().values())
    first.send_signal(signal.SIGKILL)
    first.wait()
    # What it had stored is all that is left: the draft is as the index made it, and its lock has run out.
    shutil.rmtree(workspace.state)
    BlobLeaseClient(container.get_blob_client("blobark/web1/lock")).break_lease(lease_break_period=0)
    proxy.refused.clear()
    saved = workspace.run("backup").result["save"]
    assert (saved["complete"], saved["failed"]) == (True, [])
    workspace.run("restore")
    for name in ("large", "small-3"):
        assert (workspace.restored / name).read_bytes() == (workspace.source / name).read_bytes()


def test_a_save_that_meets_its_own_blobs_keeps_them(
    workspace: Workspace, proxy: WormProxy, container: ContainerClient
) -> None:
    workspace.run("index")
    kept = workspace.folder / "kept"
    shutil.copytree(workspace.state, kept)
    workspace.run("save")
    for blob in container.list_blobs("blobark/"):
        container.delete_blob(blob.name)
    # The catalog of before the save, as after a loss of power, knows of no blob.
    shutil.rmtree(workspace.state)
    kept.rename(workspace.state)
    proxy.refused.clear()
    saved = workspace.run("save").result
    assert (saved["complete"], saved["failed"]) == (True, [])
    small = [line for line in proxy.refused if line.startswith("PUT web1_")]
    assert len(small) >= 9
    workspace.run("restore")
    assert (workspace.restored / "large").read_bytes() == (workspace.source / "large").read_bytes()


def test_what_would_overwrite_or_delete_is_refused_in_a_clear_line(
    proxy: WormProxy, azure_container: tuple[str, str]
) -> None:
    text, name = azure_container
    store = AzureStore.from_connection_string(proxy.rewire(text), name)
    store.put("some", b"content", {})
    told = "409 BlobImmutableDueToPolicy: it is write-once and may not go yet"
    with pytest.raises(StoreDenied, match=told):
        store.delete("some")
    with pytest.raises(StoreDenied, match=told):
        store.put("some", b"other", {}, create_only=False)
    with pytest.raises(BlobExists):
        store.put("some", b"other", {})
    with pytest.raises(BlobExists):
        InBlocks(store.begin("some")).add(b"x" * 100)
    assert store.read("some") == b"content"
    store.close()


def test_a_damaged_segment_that_may_not_be_mended_is_told(
    workspace: Workspace, container: ContainerClient, proxy: WormProxy
) -> None:
    workspace.backup()
    for blob in container.list_blobs("blobark/web1/segments/"):
        container.upload_blob(blob.name, b"damaged", overwrite=True)
    told = workspace.run("save", expect=4).stderr
    assert "it is write-once and may not go yet" in told
