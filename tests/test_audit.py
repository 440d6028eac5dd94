"""What is sent is what arrives: a save asks the service what it got before it publishes, and says so where it fails.

A proxy between Blobark and a real Azurite changes bodies on their way; the service stores what it gets, and reports the
MD5 of that. Whether a save noticed is seen by restoring, and comparing trees.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import uuid
from pathlib import Path

import pytest
from azure.storage.blob import ContainerClient

from tests import fault_proxy as faults
from tests.azurite_server import AzuriteServer
from tests.fault_proxy import Fault, FaultProxy
from tests.runs import Workspace, wait_until
from tests.trees import write
from tools.compare import differences

CONTENT, AUDIT = "/web1_", "prefix=web1_"
LARGE_BYTES = 9 * 1024 * 1024  # two blocks
TIMES = 3
"""How often something is sent before it fails."""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A tree of 22 blobs: 20 small files, one of them empty, a large one and a placeholder."""
    top = tmp_path / "source"
    for number in range(19):
        write(top / str(number % 3) / f"small-{number:02}", f"content of {number:02} " * 50)
    write(top / "empty", b"")
    write(top / "large", os.urandom(LARGE_BYTES))
    (top / "skipped").mkdir()
    return top


@pytest.fixture
def workspace(
    tmp_path: Path, source: Path, azurite: AzuriteServer, proxy: FaultProxy, azure_container: tuple[str, str]
) -> Workspace:
    """A machine that reaches the store through the proxy, with a SAS, so that nothing on the line is signed."""
    text = proxy.rewire(azurite.connection_with(azurite.sas(azure_container[1], "rwl")))
    return Workspace.on_azure(tmp_path / "work", source, text, azure_container[1], skip_path=["skipped"])


def flips(*markers: str, times: int = 1) -> list[Fault]:
    """Faults that change a byte of each small file that holds one of these texts."""
    return [faults.flip_request(method="PUT", holds=marker.encode(), times=times) for marker in markers]


def check_restored(workspace: Workspace) -> None:
    workspace.run("restore")
    assert differences(str(workspace.source), str(workspace.restored)) == []


def audits(proxy: FaultProxy) -> list[str]:
    """The listings of what a run has sent, and those of a restore."""
    return [target for target in proxy.targets if AUDIT in target]


def test_what_arrives_changed_is_sent_again(
    workspace: Workspace, proxy: FaultProxy, container: ContainerClient
) -> None:
    workspace.run("index")
    before = workspace.guids()
    proxy.add(
        *flips("content of 03 ", "content of 17 "),
        faults.resize_request(b"short", method="PUT", holds=b"content of 05 "),
        faults.resize_request(b"content of 06 " * 99, method="PUT", holds=b"content of 06 "),
        faults.resize_request(b"no more empty", method="PUT", where=before["empty"]),
        faults.resize_request(b"no placeholder", method="PUT", where=before["skipped/"]),
    )
    run = workspace.run("save")
    saved, after = run.result, workspace.guids()
    assert (saved["complete"], saved["failed"], saved["sent_again"], saved["audited"]) == (True, [], 6, len(after))
    assert "blobs that arrived changed, or not at all, and were sent again: 6" in run.stderr
    wrong = {"0/small-03", "2/small-17", "2/small-05", "0/small-06", "empty", "skipped/"}
    assert {path for path in after if after[path] != before[path]} == wrong
    assert len(audits(proxy)) == 2  # once for the GUIDs of the index, once for those that took their place
    check_restored(workspace)
    assert workspace.backup().result["sent"] == 0
    assert len(audits(proxy)) == 3  # nothing was sent, and a restore looks for archived blobs


def test_what_arrives_changed_each_time_fails(workspace: Workspace, proxy: FaultProxy) -> None:
    workspace.backup()
    old = (workspace.source / "1/small-04").read_bytes()
    write(workspace.source / "1/small-04", "the second version, ever changed " * 9)
    write(workspace.source / "new", "a new file, ever changed " * 9)
    write(workspace.source / "good", "a new file")
    workspace.run("index")
    proxy.add(*flips("ever changed ", times=2 * TIMES))
    run = workspace.run("save", expect=3)
    reason = f"was sent {TIMES} times and arrived changed, or not at all"
    failed = [str(workspace.source / "1/small-04"), str(workspace.source / "new")]
    assert sorted(run.result["failed"]) == [[path, reason] for path in failed]
    assert (run.result["complete"], run.result["sent_again"]) == (False, 2 * (TIMES - 1))
    assert all(f"failed: {path}: {reason}" in run.stderr for path in failed)
    workspace.run("restore", expect=3)
    assert (workspace.restored / "1/small-04").read_bytes() == old
    assert not (workspace.restored / "new").exists()
    assert workspace.backup().result["failed"] == []  # the line is better now
    check_restored(workspace)


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_the_next_path_of_a_hard_link_group_takes_the_place_of_one_that_fails(
    workspace: Workspace, proxy: FaultProxy, failing: int
) -> None:
    first = write(workspace.source / "group-a", "a file of three names, ever changed " * 9)
    paths = [first, *(first.with_name(f"group-{letter}") for letter in "bc")]
    for path in paths[1:]:
        path.hardlink_to(first)
    workspace.run("index")
    proxy.add(*flips("ever changed ", times=failing * TIMES))
    run = workspace.run("save", expect=3)
    reason = f"was sent {TIMES} times and arrived changed, or not at all"
    assert run.result["failed"] == [[str(path), reason] for path in paths[:failing]]
    assert run.result["sent_again"] == failing * (TIMES - 1)
    workspace.run("restore", expect=3)
    for path in paths:
        assert (workspace.restored / path.name).exists() == (path not in paths[:failing])
    inodes = {(workspace.restored / path.name).stat().st_ino for path in paths[failing:]}
    assert len(inodes) <= 1
    assert workspace.backup().result["failed"] == []  # the line is better now
    check_restored(workspace)


def test_a_manifest_that_arrives_changed_is_mended(workspace: Workspace, proxy: FaultProxy) -> None:
    workspace.run("index")
    proxy.add(
        faults.flip_request(method="PUT", where="/segments/", times=2),
        faults.resize_request(b"{", method="PUT", where="/snapshots/"),
    )
    assert workspace.run("save").result["complete"]
    shutil.rmtree(workspace.state)
    check_restored(workspace)


def test_a_manifest_that_arrives_changed_each_time_is_not_published(workspace: Workspace, proxy: FaultProxy) -> None:
    workspace.configure(max_workers=1)  # one segment after the other
    workspace.run("index")
    proxy.add(faults.flip_request(method="PUT", where="/segments/", times=TIMES))
    assert "arrives changed" in workspace.run("save", expect=4).stderr
    assert not [target for target in proxy.targets if "/snapshots/" in target]
    assert workspace.run("save").result["sent"] == 0
    check_restored(workspace)


def test_what_is_deleted_after_it_was_sent_is_sent_again(
    workspace: Workspace, proxy: FaultProxy, container: ContainerClient
) -> None:
    workspace.run("index")
    gone = [workspace.guids()[path] for path in ("large", "0/small-00", "skipped/")]
    proxy.add(faults.meanwhile(lambda: [container.delete_blob(key) for key in gone], where=AUDIT))
    assert workspace.run("save").result["sent_again"] == 3
    check_restored(workspace)


@pytest.mark.parametrize("index_again", [False, True])
def test_what_a_killed_save_has_sent_is_audited(workspace: Workspace, proxy: FaultProxy, index_again: bool) -> None:
    """Killed when all is sent and known, right before the audit."""
    workspace.run("index")
    hang = faults.hang(where=AUDIT)
    proxy.add(*flips("content of 03 ", "content of 17 "), hang)
    kill_when_it_hangs(workspace, hang)
    if index_again:
        write(workspace.source / "new", "one file more")
        workspace.run("index")
    saved = workspace.run("save").result
    assert (saved["sent_again"], saved["sent"], saved["failed"]) == (2, 2 + index_again, [])
    assert saved["audited"] == len(workspace.guids())
    check_restored(workspace)


def test_what_a_killed_save_has_sent_and_forgotten_is_audited(workspace: Workspace, proxy: FaultProxy) -> None:
    """Killed within the second in which nothing of it is durable yet."""
    workspace.run("index")
    hang = faults.hang(method="PUT", where=CONTENT, skip=6, times=1)
    proxy.add(faults.flip_request(method="PUT", where=CONTENT, holds=b"content", times=4), hang)
    kill_when_it_hangs(workspace, hang)
    saved = workspace.run("save").result
    assert (saved["sent_again"], saved["failed"], saved["audited"]) == (4, [], len(workspace.guids()))
    check_restored(workspace)


def kill_when_it_hangs(workspace: Workspace, hang: Fault) -> None:
    process: subprocess.Popen[bytes]
    with workspace.started("save") as process, contextlib.suppress(ProcessLookupError):
        wait_until(lambda: hang.fired > 0, process)
        process.kill()


def test_an_audit_asks_page_by_page(workspace: Workspace, proxy: FaultProxy) -> None:
    """Six pages of four names in place of one of 5,000, of a save that works in one process."""
    workspace.configure(max_workers=1)
    workspace.run("index")
    proxy.add(faults.change_address(b"maxresults=5000", b"maxresults=4", where=AUDIT, times=6))
    saved = workspace.run("save").result
    assert (saved["audited"], saved["sent_again"]) == (22, 0)
    assert len(audits(proxy)) == 6
    assert all("maxresults=5000" in target for target in audits(proxy))


def test_guids_of_all_beginnings_are_audited_in_one_listing(workspace: Workspace, proxy: FaultProxy) -> None:
    names = sorted(path.name for path in workspace.source.glob("*/small-*"))
    files = {f"{uuid.uuid4()}": str(next(workspace.source.glob(f"*/{name}"))) for name in names}
    workspace.map.write_text(json.dumps(files))
    proxy.add(*flips("content of 03 "))
    saved = workspace.run("save").result
    assert (saved["sent_again"], saved["audited"], saved["failed"]) == (1, len(files), [])
    first, again = audits(proxy)
    assert "prefix=web1_&" in first
    assert "prefix=web1_&" not in again
    workspace.run("restore")
    restored = {path.name: path.read_bytes() for path in workspace.restored.rglob("small-*")}
    assert restored == {Path(path).name: Path(path).read_bytes() for path in files.values()}


def test_without_a_check_nothing_is_listed(workspace: Workspace, proxy: FaultProxy) -> None:
    workspace.configure(upload_check="none")
    workspace.run("index")
    proxy.add(*flips("content of 03 "))
    assert workspace.run("save", "--dry-run").result["requests"]["list blobs"] == 0
    saved = workspace.run("save").result
    assert (saved["complete"], saved["audited"], saved["sent_again"], audits(proxy)) == (True, 0, 0, [])
    workspace.run("restore", expect=3)  # the line is not what was trusted in


def test_a_dry_run_counts_the_listings(workspace: Workspace, tmp_path: Path, proxy: FaultProxy) -> None:
    for number in range(5001 - 22):
        (workspace.source / f"tiny-{number}").touch()
    workspace.run("index")
    assert workspace.run("save", "--dry-run").result["requests"]["list blobs"] == 2
    folder = Workspace(tmp_path / "folder", workspace.source / "0")
    folder.run("index")
    assert folder.run("save", "--dry-run").result["requests"]["list blobs"] == 0
    assert folder.run("save").result["audited"] == 0
