"""Tiers: where content goes, and how a restore finds, waits for and restores what is in the archive."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from azure.storage.blob import ContainerClient, StandardBlobTier

from blobark.engine import Engine
from blobark.fetch import RestoreJob
from blobark.model import Entry, Outcome, Status
from blobark.progress import Display
from blobark.rehydrate import Archive
from blobark.stores.azure import AzureStore
from tests.azurite_server import AzuriteServer
from tests.runs import Workspace, wait_until
from tests.tier_proxy import ArchiveProxy
from tools.compare import differences

LARGE_BYTES = 9 * 1024 * 1024
FILES = 6


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("tiers") / "source"
    (top / "sub").mkdir(parents=True)
    for number in range(FILES):
        (top / "sub" / f"file-{number}").write_text(f"content of {number}")
    (top / "empty").write_bytes(b"")
    os.link(top / "sub" / "file-0", top / "sub" / "zz-link")
    (top / "skipped").mkdir()
    return top


@pytest.fixture
def proxy(azurite: AzuriteServer) -> Iterator[ArchiveProxy]:
    proxy = ArchiveProxy(azurite.port)
    with proxy:
        yield proxy


@pytest.fixture
def workspace(tmp_path: Path, source: Path, proxy: ArchiveProxy, azure_container: tuple[str, str]) -> Workspace:
    text, name = azure_container
    return Workspace.on_azure(tmp_path / "work", source, proxy.rewire(text), name, skip_path=["skipped"])


def tiers(container: ContainerClient) -> dict[str, str]:
    return {blob.name: str(blob.blob_tier) for blob in container.list_blobs()}


def archive(container: ContainerClient, *keys: str) -> None:
    for key in keys:
        container.get_blob_client(key).set_standard_blob_tier(StandardBlobTier.ARCHIVE)


@pytest.mark.parametrize("tier", ["cool", "archive"])
def test_content_goes_to_its_tier_and_nothing_else_does(
    workspace: Workspace, container: ContainerClient, tier: str, tmp_path: Path
) -> None:
    top = tmp_path / "large"
    top.mkdir()
    (top / "large").write_bytes(os.urandom(LARGE_BYTES))
    (top / "small").write_bytes(b"small")
    workspace.source = top
    workspace.configure(access_tier=tier, source_path=str(top))
    workspace.backup()
    found = tiers(container)
    keys = set(workspace.guids().values())
    assert len(keys) == 2
    assert {key: found[key] for key in keys} == dict.fromkeys(keys, tier.capitalize())
    assert {value for key, value in found.items() if key.startswith("blobark/")} == {"Hot"}
    # A save that knows nothing any more finds its content there, unread.
    workspace.run("index")
    assert workspace.run("save").result["sent"] == 0


def test_an_archived_blob_that_says_nothing_is_not_taken_for_the_file(
    workspace: Workspace, container: ContainerClient
) -> None:
    workspace.run("index")
    key = workspace.guids()["sub/file-1"]
    container.upload_blob(key, b"content of 1", standard_blob_tier=StandardBlobTier.ARCHIVE)
    saved = workspace.run("save").result
    assert (saved["complete"], saved["failed"], saved["kept"]) == (True, [], 0)
    assert workspace.guids()["sub/file-1"] != key
    assert workspace.run("restore").result["archived"] == 0


def test_a_folder_says_that_it_has_no_tiers(tmp_path: Path, source: Path) -> None:
    workspace = Workspace(tmp_path / "work", source, access_tier="cool")
    stderr = workspace.run("index").stderr
    assert stderr.strip() == f"warning: {workspace.config}: access_tier: a folder has no tiers, so it is ignored"
    workspace.configure(access_tier="icy")
    assert "access_tier: expected hot, cool, cold or archive" in workspace.run("index", expect=2).stderr


def test_a_restore_without_rehydrate_stops_before_it_writes(
    workspace: Workspace, container: ContainerClient, proxy: ArchiveProxy
) -> None:
    workspace.backup()
    guids = workspace.guids()
    archive(container, guids["sub/file-1"], guids["sub/file-3"], guids["empty"], guids["skipped/"])
    proxy.reset_counts()
    plan = workspace.run("restore", "--dry-run").result
    assert (plan["archived"], plan["requests"]["rehydrate"], plan["written"]) == (2, 2, FILES + 1)
    assert plan["requests"]["list blobs"] == len([target for target in proxy.targets if "prefix=web1_" in target]) == 1
    stopped = workspace.run("restore", expect=4)
    assert stopped.result["error"] == ("in the archive tier: 2 items to be restored (24 bytes); nothing was written")
    assert "--rehydrate standard" in stopped.result["hint"]
    assert not workspace.restored.exists()
    assert not workspace.metrics.exists()
    assert not proxy.asked


def test_what_is_right_already_needs_nothing(workspace: Workspace, container: ContainerClient) -> None:
    workspace.backup()
    workspace.run("restore")
    archive(container, *workspace.guids().values())
    assert workspace.run("restore").result["kept"] == FILES + 2
    (workspace.restored / "sub" / "file-2").unlink()
    assert workspace.run("restore", expect=4).result["error"].startswith("in the archive tier: 1 item to be restored")
    assert workspace.run("restore", "--rehydrate", "standard").result["written"] == 1


@pytest.mark.parametrize("local", [True, False])
def test_a_restore_brings_back_what_it_needs(
    workspace: Workspace, container: ContainerClient, proxy: ArchiveProxy, local: bool
) -> None:
    workspace.backup()
    guids = workspace.guids()
    wanted = [guids[f"sub/file-{number}"] for number in range(4)]
    archive(container, *wanted, guids["empty"])
    proxy.listings = 1
    proxy.at_once = 3
    options = () if local else ("--map", str(workspace.map))
    done = workspace.run("restore", "--rehydrate", "high", *options).result
    assert (done["archived"], done["failed"]) == (4, [])
    if local:
        assert differences(str(workspace.source), str(workspace.restored)) == []
    else:
        for name in ("file-0", "file-5"):
            assert (workspace.restored / "sub" / name).read_bytes() == (workspace.source / "sub" / name).read_bytes()
    # A map names the empty file too, and only its blob could tell that it is empty.
    assert set(proxy.asked) == {*wanted}
    assert set(proxy.asked.values()) == {1}
    assert proxy.priorities == {"High"}


def test_a_restore_that_was_stopped_asks_for_nothing_twice(
    workspace: Workspace, container: ContainerClient, proxy: ArchiveProxy
) -> None:
    workspace.backup()
    guids = workspace.guids()
    wanted = [guids[f"sub/file-{number}"] for number in range(FILES)]
    archive(container, *wanted)
    proxy.listings = 1_000_000
    first = subprocess.Popen(
        [*workspace.command("restore", "--rehydrate", "standard"), "--json"], stdout=subprocess.PIPE
    )
    wait_until(lambda: len(proxy.asked) >= FILES, first)
    first.send_signal(signal.SIGTERM)
    out, _ = first.communicate(timeout=30)
    assert (first.returncode, json.loads(out)["exit_code"]) == (130, 130)
    told = workspace.run("restore", expect=4).result["error"]
    assert f", {FILES} of them on their way back; nothing was written" in told
    proxy.come_back()
    assert workspace.run("restore", "--rehydrate", "standard").result["failed"] == []
    assert differences(str(workspace.source), str(workspace.restored)) == []
    assert set(proxy.asked.values()) == {1}


def test_waves_are_bounded_and_end_when_all_is_back(
    azure_container: tuple[str, str], container: ContainerClient, proxy: ArchiveProxy
) -> None:
    text, name = azure_container
    keys = [f"web1_{number:08x}-0000-8000-8000-000000000000" for number in range(25)]
    for key in keys:
        container.upload_blob(key, b"content", standard_blob_tier=StandardBlobTier.ARCHIVE)
    store = AzureStore.from_connection_string(proxy.rewire(text), name)
    jobs = [RestoreJob(key.encode(), Entry(path=key, guid=key[5:], size=7, digest="0" * 64)) for key in keys]
    proxy.listings = 0
    proxy.at_once = 5
    with Archive.open(Surroundings(), store, "web1") as found:  # type: ignore[arg-type]
        assert found.find("web1_")
        found.hold(iter(jobs), lambda batch: [Outcome(0, job.entry, Status.DONE) for job in batch])
        assert found.needed == (25, 175)
        restored = [[job.path.decode() for job in wave] for wave in found.waves("standard", most=10, first_wait_s=0.01)]
    assert sorted(itertools.chain(*restored)) == keys
    assert proxy.most_coming == 10
    assert set(proxy.asked) == set(keys)
    assert set(proxy.asked.values()) == {1}
    store.close()


class Surroundings:
    """As much of a run's surroundings as waiting needs: an engine and somebody to report to."""

    def __init__(self) -> None:
        self.engine = Engine(4, 1 << 20, threading.Event())
        self.reporter = Display(quiet=True, verbose=False)
