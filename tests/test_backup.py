"""`blobark backup`: index and save in one run. Its lock, its dry run, its failures, and how it ends when asked to."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from blobark.errors import Fatal
from blobark.filelock import lock_named, state_lock
from tests import fault_proxy as faults
from tests.fault_proxy import FaultProxy
from tests.manifests import items, missing_content
from tests.powerless import Powerless
from tests.runs import Run, Workspace, wait_until
from tests.trees import contents_of, small_tree, write
from tools.compare import differences

END_S = 10.0


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return small_tree(tmp_path / "source", "a", "b", "sub/c", "sub/deep/d")


@pytest.fixture
def workspace(tmp_path: Path, source: Path) -> Workspace:
    return Workspace(tmp_path / "work", source)


@pytest.fixture
def remote(tmp_path: Path, source: Path, proxy: FaultProxy, azure_container: tuple[str, str]) -> Workspace:
    text, name = azure_container
    return Workspace.on_azure(tmp_path / "work", source, proxy.rewire(text), name)


def test_it_indexes_and_saves(workspace: Workspace, source: Path) -> None:
    first = workspace.run("backup").result
    assert first["index"]["tallies"]["new"]["items"] == 4
    assert (first["index"]["mapped"], len(workspace.guids())) == (4, 4)
    assert (first["save"]["snapshot"], first["save"]["complete"], first["save"]["sent"]) == (1, True, 4)
    write(source / "new", "new")
    second = workspace.run("backup").result
    assert (second["save"]["snapshot"], second["save"]["sent"], second["index"]["mapped"]) == (2, 1, 5)
    workspace.run("restore")
    assert differences(str(source), str(workspace.restored)) == []


def test_the_snapshot_is_tagged_once_it_is_there(workspace: Workspace) -> None:
    workspace.run("backup", "--tag", "one", "--tag", "one", "--tag", "before-upgrade")
    workspace.run("index")
    assert "2 of " in workspace.execute("save", "--tag", "two").stdout.decode()
    found = workspace.run("snapshots").result["items"]
    assert [item["tags"] for item in found] == [["before-upgrade", "one"], ["two"]]
    assert ", tagged three" in workspace.execute("backup", "--tag", "three").stdout.decode()
    assert "cannot be a tag" in workspace.run("backup", "--tag", "Not so", expect=2).stderr
    workspace.run("backup", "--tag", "four", "--dry-run")
    assert len(workspace.run("snapshots").result["items"]) == 3


def test_a_snapshot_that_cannot_be_tagged_is_there_all_the_same(remote: Workspace, proxy: FaultProxy) -> None:
    proxy.add(faults.answer(403, method="PUT", where="/tags/"))
    run = remote.run("backup", "--tag", "one", expect=4)
    assert "snapshot 1 is published, but could not be given its tags" in run.stderr
    assert "blobark tag 1 one" in run.stderr
    assert [item["tags"] for item in remote.run("snapshots").result["items"]] == [[]]


def test_it_counts_the_map_that_it_leaves(workspace: Workspace, source: Path) -> None:
    workspace.configure(pack_below="64KiB")
    (source / "linked").hardlink_to(source / "b")
    plan = workspace.execute("backup", "--dry-run").stdout.decode()
    assert "in the map" not in plan
    for _ in range(2):
        index, guids = workspace.run("backup").result["index"], workspace.guids()
        assert len(guids) < 4
        assert (index["mapped"], index["unmapped"]) == (len(guids), 5 - len(guids))


def test_it_leaves_what_the_two_commands_would(workspace: Workspace, tmp_path: Path, source: Path) -> None:
    one = Workspace(tmp_path / "one", source)
    for step in ("first", "second"):
        write(source / "sub" / step, step)
        (source / "b").rename(source / "renamed") if step == "second" else None
        workspace.backup()
        one.run("backup")

    def told(place: Workspace) -> dict[str, object]:
        entries = items(place.store, 2)
        return {path: {**entry, "guid": "guid" in entry} for path, entry in entries.items()}

    assert told(one) == told(workspace)
    assert missing_content(one.store, 2) == []
    assert one.guids().keys() == workspace.guids().keys()


def test_a_map_of_before_is_not_saved_when_the_state_was_lost_and_a_backup_failed(
    workspace: Workspace, source: Path
) -> None:
    workspace.run("backup")
    shutil.rmtree(workspace.state)
    write(source / "new", "new")
    (source / "link").symlink_to("new")
    segments = next(workspace.store.glob("blobark/*/segments"))
    segments.rename(workspace.folder / "aside")
    write(segments, "no folder")
    workspace.run("backup", expect=4)
    segments.unlink()
    (workspace.folder / "aside").rename(segments)
    assert workspace.run("save").result["complete"]
    workspace.run("restore")
    assert differences(str(source), str(workspace.restored)) == []


def test_a_dry_run_estimates_and_changes_nothing(workspace: Workspace, source: Path) -> None:
    plan = workspace.run("backup", "--dry-run").result
    assert plan["index"]["tallies"]["new"]["items"] == 4
    assert (plan["save"]["sent"], plan["save"]["requests"]["put blob"]) == (4, 4)
    assert not workspace.store.exists()
    assert not workspace.map.exists()
    workspace.run("backup")
    before = contents_of(workspace.store), workspace.map.read_bytes()
    write(source / "new", "new")
    for _ in range(2):
        plan = workspace.run("backup", "--dry-run").result
        assert (plan["index"]["tallies"]["new"]["items"], plan["save"]["sent_bytes"]) == (1, len("new"))
    assert (contents_of(workspace.store), workspace.map.read_bytes()) == before
    assert workspace.run("backup").result["save"]["sent"] == 1


def test_the_summary_has_both_halves(workspace: Workspace) -> None:
    done = workspace.execute("backup")
    assert (done.returncode, done.stderr) == (0, b"")
    rows = [line.split("  ")[1] for line in done.stdout.decode().splitlines()[1:]]
    assert {"server", "new", "in the map", "snapshot", "sent"} <= set(rows)
    assert len(rows) == len(set(rows))


def test_what_cannot_be_read_is_named_once(tmp_path: Path, source: Path) -> None:
    workspace = Powerless(tmp_path / "work", source)
    workspace.run("backup")
    (source / "sub").chmod(0)
    try:
        run = workspace.run("backup", expect=3)
        plan = workspace.run("backup", "--dry-run", expect=3)
    finally:
        (source / "sub").chmod(0o755)
    folder = f"{source}/sub"
    assert [path for path, _ in run.result["index"]["errors"]] == [folder]
    assert folder in dict(run.result["save"]["failed"])
    assert run.stderr.count(f"{folder}: ") == plan.stderr.count(f"{folder}: ") == 1
    assert run.result["save"]["complete"] is False
    assert items(workspace.store, 2)["sub/deep/d"]["stale"] is True
    assert workspace.run("backup").result["save"]["complete"] is True


# The lock


@contextlib.contextmanager
def held(workspace: Workspace) -> Iterator[None]:
    workspace.state.mkdir(exist_ok=True)
    with (workspace.state / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def test_a_second_run_ends_at_once(workspace: Workspace) -> None:
    with held(workspace):
        run = workspace.run("backup", expect=5)
    (line,) = run.stderr.splitlines()
    assert (
        line == f"blobark: another run holds the lock of {workspace.state}: wait until it has finished, or say --wait"
    )
    assert not workspace.store.exists()


def test_who_holds_the_lock_is_named(workspace: Workspace, tmp_path: Path) -> None:
    with state_lock(workspace.state, "prune"):
        (line,) = workspace.run("backup", expect=5).stderr.splitlines()
    assert re.search(rf"holds the lock of .* \(prune on \S+ \(process {os.getpid()}\) since 20\S+Z\): wait", line)
    workspace.run("backup")


def test_what_cannot_be_locked_is_named(tmp_path: Path) -> None:
    """A file system may have no locks, as a path that is not open for anything has none."""
    path = os.open(tmp_path, os.O_PATH)
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, path)
        stack.enter_context(
            pytest.raises(Fatal, match=r"state_dir /there cannot be locked \(Bad file .*: use a disk of")
        )
        lock_named(path, "state_dir /there")


def heard(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stderr
    return process.stderr.readline()


def test_a_second_run_waits_if_told_to(workspace: Workspace) -> None:
    with contextlib.ExitStack() as stack:
        lock = contextlib.ExitStack()
        lock.enter_context(held(workspace))
        process = stack.enter_context(workspace.started("backup", "--wait"))
        assert b"waiting" in heard(process)
        assert not workspace.store.exists()
        lock.close()
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, b"")
    assert json.loads(output)["save"]["snapshot"] == 1


def test_waiting_ends_when_asked_to(workspace: Workspace) -> None:
    with held(workspace), workspace.started("backup", "--wait") as process:
        assert b"waiting" in heard(process)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=END_S)
    assert process.returncode == 130


# Asked to stop while a request hangs

HANGS = {
    "the first listing": ("GET", "comp=list"),
    "content": ("PUT", "/web1_"),
    "a segment": ("PUT", "/segments/"),
    "a segment, read back": ("GET", "/segments/"),
    "the server's name": ("PUT", "/server.json"),
    "the header": ("PUT", "/snapshots/0000000001"),
}


@pytest.mark.parametrize("what", HANGS)
def test_it_ends_soon_when_asked_to_while_a_request_hangs(remote: Workspace, proxy: FaultProxy, what: str) -> None:
    method, where = HANGS[what]
    fault = faults.hang(method=method, where=where)
    proxy.add(fault)
    number = signal.SIGINT if list(HANGS).index(what) % 2 else signal.SIGTERM
    with remote.started("backup") as process:
        wait_until(lambda: fault.fired, process)
        process.send_signal(number)
        output, errors = process.communicate(timeout=END_S)
    assert process.returncode == 130
    (line,) = errors.decode().splitlines()
    assert line.startswith(("blobark: interrupted", "blobark: stopped"))
    assert json.loads(output)["exit_code"] == 130
    again: Run = remote.run("backup")
    assert (again.result["save"]["snapshot"], again.result["save"]["complete"]) == (1, True)


def test_one_that_is_stopped_once_the_snapshot_is_there_says_so(workspace: Workspace, source: Path) -> None:
    small_tree(source, *(f"many/{number:0100}" for number in range(1100)))  # it looks each 1,000 whether it is to stop
    with workspace.started("backup", "-v") as process:
        assert process.stderr
        assert any(b" -> " in line for line in process.stderr)  # a line of the map; a pipe takes some 400 more
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=END_S)
    assert process.returncode == 130
    assert errors.endswith(b"blobark: interrupted, but snapshot 1 is published: the next run writes the map\n")
    assert not workspace.map.exists()
    assert workspace.run("backup").result["save"]["sent"] == 0
    assert len(workspace.guids()) == 1104


def test_one_that_is_stopped_before_it_is_tagged_says_so(remote: Workspace, proxy: FaultProxy) -> None:
    fault = faults.hang(method="PUT", where="/tags/")
    proxy.add(fault)
    with remote.started("backup", "--tag", "one") as process:
        wait_until(lambda: fault.fired, process)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=END_S)
    assert process.returncode == 130
    (line,) = errors.decode().splitlines()
    assert line.startswith("blobark: snapshot 1 is published, but could not be given its tags: interrupted")
    assert line.endswith("blobark tag 1 one")


def test_a_map_that_cannot_be_written_is_told_beside_the_snapshot(workspace: Workspace) -> None:
    workspace.map.parent.mkdir(parents=True, exist_ok=True)
    workspace.map.symlink_to("/proc/no such place/map.json")
    run = workspace.run("backup", "--tag", "one", expect=4)
    assert "snapshot 1 is published, but " in run.stderr
    assert "the map cannot be written" in run.stderr
    (shown,) = workspace.run("snapshots").result["items"]
    assert (shown["number"], shown["tags"]) == (1, ["one"])
    workspace.map.unlink()
    assert workspace.run("backup").result["save"]["sent"] == 0
    assert len(workspace.guids()) == 4
