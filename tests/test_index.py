"""The index, through the scripts: its rules, what is special, and how it is run."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import stat
import subprocess
from pathlib import Path

import pytest

from tests.manifests import content_keys, content_of, items, read_header, read_manifest
from tests.opened import opened_below
from tests.powerless import Powerless
from tests.runs import Workspace
from tests.small_disk import SmallDisk
from tests.trees import ODD_NAMES, contents_of, make_tree, small_tree, write
from tools.compare import differences


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return small_tree(tmp_path / "source", "a", "b", "sub/c", "sub/d", "sub/deep/e")


@pytest.fixture
def workspace(tmp_path: Path, source: Path) -> Workspace:
    return Workspace(tmp_path / "work", source)


# Rules


def rule_tree(top: Path) -> Path:
    for name in "keep x.tmp tmp cache/a cache/sub/b cache2/c sub/cache/d sub/x.tmp.txt node_modules/e f.pyc".split():
        write(top / name, name)
    return top


RULES = {"skip_files": ["*.tmp", "keep-not"], "skip_path": ["cache"], "exclude": ["*.pyc", "node_modules/"]}


def test_rules_from_index_to_restore(tmp_path: Path) -> None:
    top = rule_tree(tmp_path / "source")
    workspace = Workspace(tmp_path / "work", top, **RULES)
    workspace.backup()
    guids = workspace.guids()
    assert set(guids) == {"keep", "tmp", "cache/", "cache2/c", "sub/cache/d", "sub/x.tmp.txt"}
    assert content_of(workspace.store, guids["cache/"]) == b""
    entry = items(workspace.store)["cache"]
    assert (entry["kind"], entry["rule"]) == ("dir", "skip_path: cache")
    workspace.run("restore")
    assert set(contents_of(workspace.restored)) == set(guids) - {"cache/"}
    assert list((workspace.restored / "cache").iterdir()) == []
    again = workspace.backup().result
    assert (again["sent"], again["segments_sent"], workspace.guids()) == (0, 0, guids)


def test_the_verbose_index_names_guids_and_rules(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "work", rule_tree(tmp_path / "source"), **RULES)
    lines = workspace.run("index", "-v").stderr.splitlines()
    for path, key in workspace.guids().items():
        assert f"{key} -> {workspace.source}/{path}" in lines
    assert f"skip_files: *.tmp: {workspace.source}/x.tmp" in lines
    assert f"skip_path: cache: {workspace.source}/cache" in lines
    lines = workspace.run("save", "-v").stderr.splitlines()
    assert f"skipped by skip_files: *.tmp: {workspace.source}/x.tmp" in lines


def test_a_rule_that_goes_away_brings_the_files_back(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "work", rule_tree(tmp_path / "source"), **RULES)
    workspace.backup()
    workspace.configure(skip_files=[], skip_path=[], exclude=[])
    workspace.backup()
    workspace.run("restore")
    assert differences(str(workspace.source), str(workspace.restored)) == []


def test_rules_added_after_the_index_hold_for_the_save(tmp_path: Path) -> None:
    top = rule_tree(tmp_path / "source")
    os.symlink("keep", top / "link.tmp")
    os.link(top / "x.tmp", top / "z-other-name")
    workspace = Workspace(tmp_path / "work", top)
    workspace.run("index")
    workspace.configure(**RULES)
    workspace.run("save")
    guids = workspace.guids()
    assert set(guids) == {"keep", "tmp", "cache/", "cache2/c", "sub/cache/d", "sub/x.tmp.txt", "z-other-name"}
    assert {"link.tmp", "x.tmp", "f.pyc", "node_modules"}.isdisjoint(items(workspace.store))
    assert content_keys(workspace.store) == set(guids.values())
    workspace.run("restore")
    assert contents_of(workspace.restored)["z-other-name"] == b"x.tmp"
    assert list((workspace.restored / "cache").iterdir()) == []


def test_rules_removed_after_the_index_ask_for_another_one(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "work", rule_tree(tmp_path / "source"), **RULES)
    workspace.run("index")
    workspace.configure(skip_files=[], skip_path=[])
    saved = workspace.run("save")
    assert "build_index.py again" in saved.stderr
    assert "x.tmp" not in workspace.guids()
    workspace.backup()
    assert {"x.tmp", "cache/a", "cache/sub/b"} <= set(workspace.guids())


# What is special


def test_special_files_are_neither_read_nor_waited_for(tmp_path: Path) -> None:
    top = tmp_path / "source"
    write(top / "file", "file")
    os.mkfifo(top / "fifo")
    os.symlink("loop", top / "loop")
    os.symlink(".", top / "self")
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.getcwd()
        os.chdir(top)
        try:
            listener.bind("socket")
        finally:
            os.chdir(here)
    kinds = {"": "dir", "file": "file", "fifo": "fifo", "loop": "symlink", "self": "symlink", "socket": "socket"}
    if os.geteuid() == 0:
        os.mknod(top / "tape", 0o600 | stat.S_IFCHR, os.makedev(9, 0))
        os.mknod(top / "disk", 0o600 | stat.S_IFBLK, os.makedev(7, 255))
        kinds |= {"tape": "char", "disk": "block"}
    workspace = Workspace(tmp_path / "work", top)
    with opened_below(top) as opened:
        workspace.backup()
    assert opened == {"file"}
    assert {path: entry.get("kind", "file") for path, entry in items(workspace.store).items()} == kinds
    assert workspace.backup().result["segments_sent"] == 0


def test_its_own_files_are_left_out(tmp_path: Path, source: Path) -> None:
    workspace = Workspace(source / "own", source, restore_root=str(tmp_path / "restored"))
    for _ in range(2):
        workspace.backup()
        assert set(workspace.guids()) == {"a", "b", "sub/c", "sub/d", "sub/deep/e", "own/config.yaml"}
    assert {"own/store", "own/state", "own/map.json"}.isdisjoint(items(workspace.store))


def test_odd_names_in_the_map_and_in_what_is_said(tmp_path: Path) -> None:
    top = make_tree(tmp_path / "source")
    workspace = Powerless(tmp_path / "work", top)
    run = workspace.run("index", "-v")
    workspace.run("save", "-v")
    raw = workspace.map.read_bytes()
    raw.decode()
    paths = {os.fsencode(path) for path in json.loads(raw).values()}
    assert {os.path.join(os.fsencode(top), b"odd", name) for name in ODD_NAMES} <= paths
    assert all(line.isprintable() for line in run.stderr.splitlines())
    (top / "odd").chmod(0)
    run = workspace.run("index", expect=3)
    saved = workspace.run("save", expect=3)
    (top / "odd").chmod(0o755)
    for name in (os.path.join(b"odd", name) for name in ODD_NAMES):
        assert read_manifest(workspace.store)[0, name]["stale"] is True
    assert saved.result["failed"]
    assert all(line.isprintable() for line in (run.stderr + saved.stderr).splitlines())


# How it is run


def test_a_dry_run_changes_nothing(workspace: Workspace, source: Path) -> None:
    workspace.run("index", "--dry-run")
    assert not workspace.map.exists()
    assert not workspace.store.exists()
    workspace.backup()
    write(source / "new", "new")
    (source / "a").unlink()
    before = {**contents_of(workspace.store), **contents_of(workspace.folder)}
    assert workspace.run("index", "--dry-run").tallied == {"new": 1, "gone": 1, "unchanged": 4}
    assert {**contents_of(workspace.store), **contents_of(workspace.folder)}.items() >= before.items()
    assert workspace.run("index").tallied == {"new": 1, "gone": 1, "unchanged": 4}
    plan = workspace.run("save", "--dry-run").result
    saved = workspace.run("save").result
    assert (plan["sent"], plan["sent_bytes"]) == (saved["sent"], saved["sent_bytes"]) == (1, 3)
    assert plan["requests"]["put segment"] == saved["segments_sent"]


def test_a_dry_save_before_there_is_a_store(workspace: Workspace) -> None:
    workspace.run("index")
    assert workspace.run("save", "--dry-run").result["sent"] == 5
    assert not workspace.store.exists()


def test_a_dry_save_with_other_rules_changes_nothing(workspace: Workspace) -> None:
    workspace.backup()
    before = workspace.map.read_bytes()
    workspace.configure(skip_path=["sub"])
    assert workspace.run("save", "--dry-run").result["sent"] == 1
    workspace.configure(skip_path=[])
    saved = workspace.run("save").result
    assert (saved["sent"], saved["entries"]) == (0, 8)
    assert workspace.map.read_bytes() == before
    assert "sub/c" in items(workspace.store)


def test_a_dry_restore_changes_nothing(workspace: Workspace) -> None:
    workspace.backup()
    plan = workspace.run("restore", "--dry-run").result
    assert (plan["written"], workspace.restored.exists(), workspace.metrics.exists()) == (5, False, False)


def test_another_run_with_the_lock_ends_this_one(workspace: Workspace) -> None:
    workspace.run("index")
    with (workspace.state / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for command in ("index", "save"):
            run = workspace.run(command, expect=5)
            assert "another run holds the lock" in run.stderr
            assert run.result["exit_code"] == 5
    workspace.run("save")


def test_a_map_that_could_not_be_written_is_written_by_the_next_run(workspace: Workspace, source: Path) -> None:
    folder = workspace.folder / "maps"
    workspace.map = folder / "map.json"
    workspace.configure(guid_mapping_file=str(workspace.map), change_detection="mtime")  # else fresh files get in
    workspace.backup()
    write(source / "new", "new")
    folder.rename(workspace.folder / "aside")
    write(folder, "no folder")
    run = workspace.run("index", expect=4)
    assert "map.json" in run.result["error"]
    folder.unlink()
    (workspace.folder / "aside").rename(folder)
    workspace.backup()
    assert "new" in workspace.guids()


def test_a_map_that_was_lost_is_written_again(workspace: Workspace) -> None:
    workspace.backup()
    before = workspace.map.read_bytes()
    workspace.map.unlink()
    workspace.run("index")
    assert workspace.map.read_bytes() == before


def test_a_damaged_catalog_is_rebuilt_from_the_store(workspace: Workspace) -> None:
    workspace.backup()
    before = workspace.guids()
    for file in workspace.state.glob("catalog.sqlite*"):
        file.unlink()
    write(workspace.state / "catalog.sqlite", b"SQLite format 3\0 no more" + os.urandom(5000))
    again = workspace.backup().result
    assert (again["sent"], again["snapshot"], workspace.guids()) == (0, 2, before)


@pytest.mark.parametrize("command", ["index", "backup"])
def test_without_proc_no_file_is_taken_for_gone(workspace: Workspace, command: str) -> None:
    with SmallDisk(Path("/proc"), "size=1m") as empty:
        done = subprocess.run(empty.as_owner(workspace.command(command)), capture_output=True, text=True, timeout=60)
    assert (done.returncode, "/proc is not mounted" in done.stderr) == (4, True), done
    assert "Traceback" not in done.stderr
    assert not workspace.map.exists()
    assert not list(workspace.store.glob("blobark/*/snapshots/*"))


def test_private_files(workspace: Workspace) -> None:
    workspace.backup()
    for folder in (workspace.store, workspace.state):
        for path in (folder, *folder.rglob("*")):
            assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    assert stat.S_IMODE(workspace.map.stat().st_mode) == 0o600
    assert read_header(workspace.store)["complete"] is True
