"""The index of roots that are missing, empty or several, and of what cannot be read."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.manifests import items, missing_content, read_manifest
from tests.powerless import Powerless
from tests.runs import Run, Workspace
from tests.trees import contents_of, small_tree, write
from tools.compare import differences

NAMES = ("a", "b", "sub/c", "sub/d", "sub/deep/e")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return small_tree(tmp_path / "source", *NAMES)


@pytest.fixture
def workspace(tmp_path: Path, source: Path) -> Workspace:
    return Workspace(tmp_path / "work", source)


# Roots


def test_a_missing_root_stops_the_run(workspace: Workspace, source: Path) -> None:
    workspace.backup()
    before = workspace.map.read_bytes()
    source.rename(source.with_name("elsewhere"))
    run = workspace.run("index", "--allow-empty", str(source), expect=4)
    assert str(source) in run.result["error"]
    assert workspace.map.read_bytes() == before


def test_an_empty_root_is_refused_until_it_is_meant_so(workspace: Workspace, source: Path) -> None:
    workspace.backup()
    before = workspace.map.read_bytes()
    shutil.rmtree(source)
    source.mkdir()
    run = workspace.run("index", expect=4)
    assert f"--allow-empty {source}" in run.stderr
    assert workspace.map.read_bytes() == before
    workspace.backup("--allow-empty", str(source))
    assert list(items(workspace.store, 2)) == [""]
    assert missing_content(workspace.store, 1) == []


def test_an_empty_root_is_refused_the_first_time_too(workspace: Workspace, source: Path) -> None:
    shutil.rmtree(source)
    source.mkdir()
    workspace.run("index", expect=4)
    assert not workspace.map.exists()


def test_each_halved_root_is_refused_by_name(tmp_path: Path) -> None:
    roots = [tmp_path / "one", tmp_path / "two"]
    for root in roots:
        for number in range(10):
            write(root / str(number), str(number))
    workspace = Workspace(tmp_path / "work", roots[0], source_path=[str(root) for root in roots])
    workspace.backup()
    for root in roots:
        for number in range(6):
            (root / str(number)).unlink()
    for asked, other in (roots, reversed(roots)):
        run = workspace.run("index", "--allow-shrink", str(asked), expect=4)
        assert f"--allow-shrink {other}" in run.stderr
    both = [option for root in roots for option in ("--allow-shrink", str(root))]
    assert workspace.backup(*both).result["entries"] == 10
    assert workspace.backup().result["entries"] == 10  # it is the size they have now


def test_the_last_complete_snapshot_is_what_counts(tmp_path: Path, source: Path) -> None:
    """A root that lost entries little by little, between incomplete snapshots, is told from one that shrank."""
    workspace = Powerless(tmp_path / "work", source)
    for number in range(12):
        write(source / "many" / str(number), str(number))
    workspace.backup()
    write(source / "unreadable", "unreadable").chmod(0)
    for number in range(6):
        (source / "many" / str(number)).unlink()
    workspace.backup(expect=3)
    for number in range(6, 12):
        (source / "many" / str(number)).unlink()
    run = workspace.run("index", expect=4)
    assert "its last complete snapshot had 21" in run.stderr


def test_several_roots_each_under_its_real_name(tmp_path: Path, source: Path) -> None:
    mounted = tmp_path / "mounted" / "snapshot-1"
    write(mounted / "x", "x of data")
    renamed = {"path": str(mounted), "as": "/data"}
    workspace = Workspace(tmp_path / "work", source, source_path=[str(source), renamed])
    workspace.backup()
    paths = set(json.loads(workspace.map.read_bytes()).values())
    assert {"/data/x", f"{source}/a"} <= paths
    workspace.run("restore")
    restored = contents_of(workspace.restored)
    assert restored["data/x"] == b"x of data"
    assert restored[f"{source}/a".lstrip("/")] == b"content of a"


def test_the_next_file_system_snapshot_is_the_same_root(tmp_path: Path) -> None:
    """Read at another path, with other inodes and ctimes: nothing is sent again, since the name stays."""
    first, second = tmp_path / "snapshot-1", tmp_path / "snapshot-2"
    write(first / "sub" / "x", "x of data")
    os.symlink("x", first / "sub" / "link")
    shutil.copytree(first, second, symlinks=True)
    workspace = Workspace(tmp_path / "work", first, source_path={"path": str(first), "as": "/data"})
    workspace.backup()
    before = workspace.map.read_bytes()
    workspace.configure(source_path={"path": str(second), "as": "/data"})
    assert workspace.backup().result["sent"] == 0
    assert workspace.map.read_bytes() == before


def test_a_root_that_is_added_sends_only_itself(tmp_path: Path, source: Path) -> None:
    other = tmp_path / "another"  # sorts, and so is numbered, before the first
    write(other / "x", "x")
    workspace = Workspace(tmp_path / "work", source)
    workspace.backup()
    workspace.configure(source_path=[str(other), str(source)])
    assert workspace.backup().result["sent"] == 1
    assert missing_content(workspace.store) == []


def test_roots_in_another_order_are_the_same_roots(tmp_path: Path, source: Path) -> None:
    other = write(tmp_path / "other" / "x", "x").parent
    workspace = Workspace(tmp_path / "work", source, source_path=[str(source), str(other)])
    workspace.backup()
    before = json.loads(workspace.map.read_bytes())
    workspace.configure(source_path=[str(other), str(source)])
    assert workspace.backup().result["sent"] == 0
    assert json.loads(workspace.map.read_bytes()) == before


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """A folder on a file system of its own: every Linux has one mounted below /dev."""
    assert os.stat("/dev/shm").st_dev != os.stat("/dev").st_dev
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="blobark-test-") as folder:
        yield Path(folder)


def test_one_file_system_stops_at_a_mount(tmp_path: Path, elsewhere: Path) -> None:
    write(elsewhere / "x", "x")
    only = ["/*", "!/shm", "/shm/*", f"!/shm/{elsewhere.name}"]
    workspace = Workspace(tmp_path, Path("/dev"), exclude=only)
    workspace.backup()
    assert set(workspace.guids()) == {f"shm/{elsewhere.name}/x"}
    workspace = Workspace(tmp_path / "one", Path("/dev"), exclude=only, one_file_system=True)
    workspace.backup()
    entries = items(workspace.store)
    assert set(entries) == {"", "shm"}
    assert entries["shm"]["kind"] == "dir"
    assert "error" not in entries["shm"]


# What cannot be read


@dataclass
class Locked:
    """Runs while the folder `sub` cannot be read (snapshots 2 and 3), and when it can be again (snapshot 4)."""

    workspace: Powerless
    before: dict[str, str]
    index: Run
    save: Run
    guids: dict[str, str]
    restore: Run
    restored: dict[str, bytes]
    open_again: Run


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Locked:
    folder = tmp_path_factory.mktemp("locked")
    top = folder / "source"
    for name in ("a", "b", "sub/c", "sub/d", "sub/deep/e"):
        write(top / name, f"content of {name}")
    workspace = Powerless(folder / "work", top)
    workspace.backup()
    before = workspace.guids()
    (top / "sub").chmod(0)
    write(top / "new", "new")
    index = workspace.run("index", expect=3)
    save = workspace.run("save", expect=3)
    guids = workspace.guids()
    restore = workspace.run("restore", expect=3)
    (workspace.restored / "sub").chmod(0o755)  # it came back as it was
    restored = contents_of(workspace.restored)
    workspace.backup(expect=3)
    (top / "sub").chmod(0o755)
    return Locked(workspace, before, index, save, guids, restore, restored, workspace.backup())


def test_an_unreadable_folder_is_named(locked: Locked) -> None:
    folder = f"{locked.workspace.source}/sub"
    assert [path for path, _ in locked.index.result["errors"]] == [folder]
    assert folder in locked.index.stderr
    assert folder in [path for path, _ in locked.save.result["failed"]]
    assert (locked.save.result["complete"], locked.save.result["sent"]) == (False, 1)


def test_what_lies_below_an_unreadable_folder_stays(locked: Locked) -> None:
    store = locked.workspace.store
    entries = items(store, 2)
    for path in ("sub/c", "sub/d", "sub/deep", "sub/deep/e"):
        assert entries[path]["stale"] is True
        assert "ermission" in entries[path]["error"]
    assert "stale" not in entries["a"]
    assert locked.guids.items() >= locked.before.items()
    assert missing_content(store, 2) == []


def test_what_an_incomplete_snapshot_has_can_be_restored(locked: Locked) -> None:
    assert "incomplete" in locked.restore.stderr
    assert locked.restored["sub/deep/e"] == b"content of sub/deep/e"
    assert locked.restored["new"] == b"new"


def test_two_incomplete_runs_lose_nothing(locked: Locked) -> None:
    assert items(locked.workspace.store, 3) == items(locked.workspace.store, 2)


def test_with_the_permission_back_the_next_snapshot_is_complete(locked: Locked) -> None:
    again = locked.open_again.result
    assert (again["complete"], again["sent"]) == (True, 0)
    workspace = locked.workspace
    assert workspace.guids().items() >= locked.before.items()
    shutil.rmtree(workspace.restored)
    workspace.run("restore")
    assert differences(str(workspace.source), str(workspace.restored)) == []


def test_a_folder_that_was_never_readable_is_named(tmp_path: Path, source: Path) -> None:
    workspace = Powerless(tmp_path / "work", source)
    (source / "sub" / "deep").chmod(0)
    workspace.backup(expect=3)
    (source / "sub" / "deep").chmod(0o755)
    entry = items(workspace.store)["sub/deep"]
    assert entry["kind"] == "dir"
    assert "ermission" in entry["error"]
    assert "stale" not in entry


def test_a_folder_that_can_be_listed_and_not_entered(tmp_path: Path, source: Path) -> None:
    workspace = Powerless(tmp_path / "work", source)
    workspace.backup()
    before = workspace.guids()
    (source / "sub").chmod(0o400)
    index = workspace.run("index", expect=3)
    workspace.run("save", expect=3)
    (source / "sub").chmod(0o755)
    assert {path for path, _ in index.result["errors"]} == {f"{source}/sub/{name}" for name in ("c", "d", "deep")}
    entries = items(workspace.store)
    assert {path for path, entry in entries.items() if entry.get("stale")} == {
        "sub/c",
        "sub/d",
        "sub/deep",
        "sub/deep/e",
    }
    assert workspace.guids() == before
    assert workspace.backup().result["sent"] == 0


def test_an_unreadable_root_stops_the_run(tmp_path: Path, source: Path) -> None:
    workspace = Powerless(tmp_path / "work", source)
    source.chmod(0)
    run = workspace.run("index", expect=4)
    source.chmod(0o755)
    assert "ermission" in run.result["error"]


def test_a_stale_hard_link_keeps_its_content(tmp_path: Path, source: Path) -> None:
    """Its group's first path, outside the unreadable folder, is gone."""
    os.link(source / "a", source / "sub" / "link")
    workspace = Powerless(tmp_path / "work", source)
    workspace.backup()
    (source / "a").unlink()
    (source / "sub").chmod(0)
    workspace.backup(expect=3)
    (source / "sub").chmod(0o755)
    workspace.run("restore", expect=3)
    (workspace.restored / "sub").chmod(0o755)
    assert contents_of(workspace.restored)["sub/link"] == b"content of a"


def test_an_unreadable_file_keeps_its_earlier_content(tmp_path: Path, source: Path) -> None:
    workspace = Powerless(tmp_path / "work", source)
    workspace.backup()
    before = workspace.guids()["a"]
    (source / "a").chmod(0)
    os.utime(source / "a")
    index = workspace.run("index", expect=3)
    assert [path for path, _ in index.result["errors"]] == [f"{source}/a"]
    saved = workspace.run("save", expect=3).result
    assert [path for path, _ in saved["failed"]] == [f"{source}/a"]
    entry = items(workspace.store)["a"]
    assert (entry["stale"], workspace.guids()["a"], missing_content(workspace.store)) == (True, before, [])
    (source / "a").chmod(0o644)
    assert workspace.backup().result["sent"] == 0
    assert workspace.guids()["a"] == before


def test_the_further_names_of_an_unreadable_file_come_back_with_its_earlier_content(
    tmp_path: Path, source: Path
) -> None:
    os.link(source / "a", source / "link")
    workspace = Powerless(tmp_path / "work", source)
    workspace.backup()
    (source / "a").chmod(0)
    workspace.backup(expect=3)
    (source / "a").chmod(0o644)
    run = workspace.run("restore", expect=3)
    assert [path for path, _ in run.result["failed"]] == ["a", "link"]
    assert (workspace.restored / "link").samefile(workspace.restored / "a")
    assert contents_of(workspace.restored)["link"] == b"content of a"


RENAMES_MEANWHILE = """
import os, sys
from blobark.cli import main

def rename(event, arguments):
    if event in ("os.listdir", "os.scandir") and isinstance(arguments[0], int):
        path = os.readlink(f"/proc/self/fd/{arguments[0]}")
        if path.endswith("/" + listed):
            moves = path.removesuffix(listed) + "moves"
            os.rename(moves, moves + "-away")

listed = sys.argv[1]
sys.addaudithook(rename)
sys.exit(main(sys.argv[2:], command="index"))
"""


def test_a_folder_that_is_renamed_while_it_is_walked_does_not_spoil_the_snapshot(tmp_path: Path, source: Path) -> None:
    """Everything in a snapshot has its folder there too, or none of it could be restored."""
    write(source / "moves" / "file", "file")
    workspace = Workspace(tmp_path / "work", source)
    command = [sys.executable, "-c", RENAMES_MEANWHILE, "moves", "--config", str(workspace.config)]
    assert subprocess.run(command, capture_output=True).returncode in (0, 3)
    assert not (source / "moves").exists()
    workspace.run("save", expect=None)
    read_manifest(workspace.store)
    workspace.run("restore", expect=None)
    assert contents_of(workspace.restored)["a"] == b"content of a"


def test_what_an_old_folder_holds_that_is_renamed_while_it_is_walked_is_named(
    workspace: Workspace, source: Path
) -> None:
    """It may have come from elsewhere: then it is new, and all in it older than the last run."""
    workspace.backup()
    with contextlib.closing(sqlite3.connect(workspace.state / "catalog.sqlite")) as catalog:
        catalog.execute("UPDATE meta SET value = '4000000000000000000' WHERE key = 'walk_started_ns'")
        catalog.commit()
    write(source / "moves" / "deep" / "file", "file")
    write(source / "moves" / "deep" / "linked", "linked").with_name("twice").hardlink_to(
        source / "moves" / "deep" / "linked"
    )
    command = [sys.executable, "-c", RENAMES_MEANWHILE, "moves/deep", "--config", str(workspace.config), "--json"]
    run = subprocess.run(command, capture_output=True)
    assert run.returncode == 3, run
    (told,) = json.loads(run.stdout)["errors"]
    assert told == [f"{source}/moves/deep/file", "cannot be read (its folder has been moved meanwhile)"]
    saved = workspace.run("save", expect=3)
    assert saved.failed(workspace).keys() == {f"moves/deep/{name}" for name in ("file", "linked", "twice")}
    read_manifest(workspace.store)
    workspace.run("restore", expect=3)
    assert contents_of(workspace.restored) == {name: f"content of {name}".encode() for name in NAMES}
