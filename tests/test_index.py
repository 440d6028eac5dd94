"""The index, through the scripts: which file keeps its GUID, what is refused, named, or left out."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.manifests import content_keys, content_of, items, missing_content, read_header, read_manifest
from tests.opened import opened_below
from tests.powerless import Powerless
from tests.runs import Run, Workspace
from tests.trees import ODD_NAMES, make_tree
from tools.compare import differences

FRESH_S = 2.0
"""A file whose ctime is younger than this when it is indexed is read again by the next run."""


def write(file: Path, content: bytes | str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def let_age(top: Path) -> None:
    """Wait until no ctime below `top` is fresh: the one thing about a file that cannot be set."""
    newest = max(os.lstat(os.path.join(folder, name)).st_ctime for folder, _, names in os.walk(top) for name in names)
    while (left_s := newest + FRESH_S + 0.1 - time.time()) > 0:
        time.sleep(left_s)


def rewrite_and_put_times_back(file: Path, content: str) -> None:
    """Write other content of the same size; size, mtime and inode stay what they were."""
    before = file.stat()
    assert len(content) == before.st_size
    file.write_text(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def twins(one: Path, other: Path) -> None:
    """Make two files that differ in nothing but inode and content."""
    while True:
        write(one, "one twin")
        write(other, "the othr")
        for file in (one, other):
            os.utime(file, ns=(7, 7))
        if one.stat().st_ctime_ns == other.stat().st_ctime_ns:  # one tick of the file system's clock
            return
        one.unlink()
        other.unlink()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A small source tree."""
    top = tmp_path / "source"
    for name in ("a", "b", "sub/c", "sub/d", "sub/deep/e"):
        write(top / name, f"content of {name}")
    return top


@pytest.fixture
def workspace(tmp_path: Path, source: Path) -> Workspace:
    return Workspace(tmp_path / "work", source)


def tallied(run: Run) -> dict[str, int]:
    return {name: tally["items"] for name, tally in run.result["tallies"].items() if tally["items"]}


def restored_files(workspace: Workspace) -> dict[str, bytes]:
    top = workspace.restored
    return {str(file.relative_to(top)): file.read_bytes() for file in top.rglob("*") if file.is_file()}


# One tree, one backup, very many changes, one more run: each test looks at one of the changes.


@dataclass
class Changed:
    """The maps (path -> key) before, right after the second index, and after its save; and what the runs said."""

    workspace: Workspace
    before: dict[str, str]
    indexed: dict[str, str]
    saved: dict[str, str]
    index: Run
    save: Run
    opened: set[str]
    new_keys: set[str]

    def kept(self, path: str, was: str = "") -> bool:
        return self.before[was or path] == self.indexed[path] == self.saved[path]

    def content(self, path: str) -> bytes:
        return content_of(self.workspace.store, self.saved[path])


def make_changes(top: Path) -> None:
    os.utime(top / "touched")
    os.chmod(top / "chmod", 0o600)
    write(top / "rewritten", "rewritteN")
    rewrite_and_put_times_back(top / "put-back", "puT-back")
    recreated = (top / "recreated").stat()
    (top / "recreated").unlink()
    write(top / "recreated", "RECREATED")
    os.utime(top / "recreated", ns=(recreated.st_atime_ns, recreated.st_mtime_ns))
    (top / "grows").write_text("grows and grows")
    (top / "old-name").rename(top / "new-name")
    (top / "old-top").rename(top / "new-top")
    (top / "moved").rename(top / "other-folder" / "moved")
    (top / "swap-1").rename(top / "swap")
    (top / "swap-2").rename(top / "swap-1")
    (top / "swap").rename(top / "swap-2")
    (top / "copied-over").unlink()
    shutil.copy2(top / "unchanged", top / "copied-over")
    (top / "hard-1" / "a").unlink()
    (top / "hard-2" / "a").rename(top / "hard-2" / "z")
    os.link(top / "hard-3" / "m", top / "hard-3" / "a")
    (top / "gone").unlink()
    write(top / "new", "new")
    (top / "file-to-dir").unlink()
    write(top / "file-to-dir" / "inside", "inside")
    (top / "file-to-link").unlink()
    (top / "file-to-link").symlink_to("unchanged")
    shutil.rmtree(top / "dir-to-file")
    write(top / "dir-to-file", "a file now")


@pytest.fixture(scope="module")
def aged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two trees whose files are not fresh, `changed` and `noticed`."""
    folder = tmp_path_factory.mktemp("aged")
    top = folder / "changed"
    names = "unchanged touched chmod rewritten put-back recreated grows old-name old-top/a old-top/below/b moved"
    for name in (names + " other-folder/x swap-1 swap-2 copied-over gone file-to-dir file-to-link").split():
        write(top / name, name)
    write(top / "dir-to-file" / "inside", "inside")
    for name, links in (("hard-1/a", ["b", "c"]), ("hard-2/a", ["b"]), ("hard-3/m", ["n"])):
        write(top / name, name)
        for link in links:
            os.link(top / name, (top / name).with_name(link))
    top = folder / "noticed"
    write(top / "put-back", "put-back")
    write(top / "same", "same")
    twins(top / "here" / "twin", top / "there" / "twin")
    let_age(folder)
    return folder


@pytest.fixture(scope="module")
def changed(aged: Path) -> Changed:
    top = aged / "changed"
    workspace = Workspace(aged / "changed-work", top)
    workspace.backup()
    before, keys = workspace.guids(), content_keys(workspace.store)
    make_changes(top)
    with opened_below(top) as opened:
        index = workspace.run("index")
    indexed = workspace.guids()
    save = workspace.run("save")
    new_keys = content_keys(workspace.store) - keys
    return Changed(workspace, before, indexed, workspace.guids(), index, save, opened, new_keys)


def test_an_unchanged_file_keeps_its_guid_unread(changed: Changed) -> None:
    assert changed.kept("unchanged")
    assert "unchanged" not in changed.opened


def test_a_touched_file_is_read_and_keeps_its_guid(changed: Changed) -> None:
    assert changed.kept("touched")
    assert "touched" in changed.opened


def test_a_new_mode_is_in_the_snapshot_without_new_content(changed: Changed) -> None:
    assert changed.kept("chmod")
    store = changed.workspace.store
    assert items(store, 2)["chmod"]["mode"] == 0o600 != items(store, 1)["chmod"]["mode"]


@pytest.mark.parametrize("name", ["rewritten", "put-back", "recreated", "grows"])
def test_other_content_has_a_new_guid_as_soon_as_it_is_indexed(changed: Changed, name: str) -> None:
    assert changed.indexed[name] == changed.saved[name] != changed.before[name]
    assert changed.content(name) == (changed.workspace.source / name).read_bytes()


@pytest.mark.parametrize(
    ("path", "was"),
    [
        ("new-name", "old-name"),
        ("other-folder/moved", "moved"),
        ("new-top/a", "old-top/a"),
        ("new-top/below/b", "old-top/below/b"),
    ],
)
def test_what_was_renamed_keeps_its_guid(changed: Changed, path: str, was: str) -> None:
    assert changed.kept(path, was)


def test_what_lies_below_a_renamed_folder_is_not_read(changed: Changed) -> None:
    assert not {"new-top/a", "new-top/below/b"} & changed.opened


def test_files_that_swapped_names_have_each_the_right_content(changed: Changed) -> None:
    assert changed.content("swap-1") == b"swap-2"
    assert changed.content("swap-2") == b"swap-1"


def test_a_hard_link_group_that_lost_its_first_path_keeps_its_guid(changed: Changed) -> None:
    assert changed.kept("hard-1/b", "hard-1/a")


def test_a_hard_link_group_whose_first_path_was_renamed_keeps_its_guid(changed: Changed) -> None:
    assert changed.kept("hard-2/b", "hard-2/a")


def test_a_hard_link_group_with_a_new_first_path_keeps_its_guid(changed: Changed) -> None:
    assert changed.kept("hard-3/a", "hard-3/m")


def test_hard_link_groups_are_in_the_snapshot_as_they_are(changed: Changed) -> None:
    entries = items(changed.workspace.store)
    links = {path: entry["hardlink_to"] for path, entry in entries.items() if "hardlink_to" in entry}
    assert links == {"hard-1/c": "hard-1/b", "hard-2/z": "hard-2/b", "hard-3/m": "hard-3/a", "hard-3/n": "hard-3/a"}


def test_a_file_that_became_something_else_leaves_the_map(changed: Changed) -> None:
    assert {"file-to-dir", "file-to-link", "dir-to-file/inside", "gone"}.isdisjoint(changed.saved)
    entries = items(changed.workspace.store)
    assert entries["file-to-dir"]["kind"] == "dir"
    assert entries["file-to-link"]["link"] == "unchanged"
    assert changed.content("file-to-dir/inside") == b"inside"
    assert changed.content("dir-to-file") == b"a file now"


def test_nothing_is_sent_but_new_content(changed: Changed) -> None:
    sent = {path for path, key in changed.saved.items() if key in changed.new_keys}
    expected = "rewritten put-back recreated grows copied-over new file-to-dir/inside dir-to-file swap-1 swap-2"
    assert sent == set(expected.split())
    assert changed.save.result["sent"] == len(sent)


def test_the_summary_counts_each_item_once(changed: Changed) -> None:
    counts = tallied(changed.index)
    entries = items(changed.workspace.store, 2).values()
    now = sum(entry.get("kind", "file") != "dir" for entry in entries)
    assert sum(counts[name] for name in ("new", "changed", "renamed", "unchanged")) == now
    assert counts["renamed"] >= 4


def test_the_changed_tree_comes_back(changed: Changed) -> None:
    changed.workspace.run("restore")
    assert differences(str(changed.workspace.source), str(changed.workspace.restored)) == []


def test_what_became_something_else_may_become_a_file_again(changed: Changed) -> None:
    top = changed.workspace.source
    shutil.rmtree(top / "file-to-dir")
    write(top / "file-to-dir", "file-to-dir")
    (top / "file-to-link").unlink()
    write(top / "file-to-link", "file-to-link")
    changed.workspace.backup()
    guids = changed.workspace.guids()
    for name in ("file-to-dir", "file-to-link"):
        assert content_of(changed.workspace.store, guids[name]) == name.encode()
        assert guids[name] != changed.before[name]


# How a change is noticed


@pytest.fixture(scope="module")
def noticed(aged: Path) -> dict[str, set[str]]:
    """Which files of one tree get a new GUID, by change_detection."""
    top = aged / "noticed"
    spaces = {how: Workspace(aged / how, top, change_detection=how) for how in MODES}
    for workspace in spaces.values():
        workspace.backup()
    before = {how: workspace.guids() for how, workspace in spaces.items()}
    rewrite_and_put_times_back(top / "put-back", "PUT-BACK")
    (top / "here").rename(top / "aside")
    (top / "there").rename(top / "here")
    for workspace in spaces.values():
        workspace.run("index")
    return {
        how: {path for path, key in workspace.guids().items() if before[how].get(path, key) != key}
        for how, workspace in spaces.items()
    }


MODES = ("strict", "no-inode", "mtime", "digest")


@pytest.mark.parametrize("how", MODES)
def test_only_mtime_misses_content_whose_mtime_was_put_back(noticed: dict[str, set[str]], how: str) -> None:
    assert ("put-back" in noticed[how]) is (how != "mtime")


@pytest.mark.parametrize("how", MODES)
def test_another_file_with_equal_times_is_told_by_inode_or_digest(noticed: dict[str, set[str]], how: str) -> None:
    assert ("here/twin" in noticed[how]) is (how in ("strict", "digest"))


@pytest.mark.parametrize("how", MODES)
def test_an_unchanged_file_keeps_its_guid_however_changes_are_noticed(noticed: dict[str, set[str]], how: str) -> None:
    assert "same" not in noticed[how]


def test_digest_reads_what_has_not_changed(tmp_path: Path) -> None:
    old = Path(json.__file__).parent  # a tree that nobody has touched for a while
    workspace = Workspace(tmp_path, old, change_detection="digest")
    workspace.backup()
    before = workspace.guids()
    with opened_below(old) as opened:
        index = workspace.run("index")
    assert "decoder.py" in opened
    assert tallied(index).keys() == {"unchanged"}
    assert workspace.guids() == before


def test_a_change_in_the_same_instant_is_not_missed(workspace: Workspace, source: Path) -> None:
    """Size, mtime and inode are as they were, and the ctime may be too: the clock of a file system has ticks."""
    workspace.backup()
    rewrite_and_put_times_back(source / "a", "CONTENT of a")
    workspace.backup()
    assert content_of(workspace.store, workspace.guids()["a"]) == b"CONTENT of a"


def test_guids_stay_before_anything_was_saved(workspace: Workspace) -> None:
    workspace.run("index")
    before = workspace.guids()
    workspace.run("index")
    assert workspace.guids() == before


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
    restored = restored_files(workspace)
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
    restored = restored_files(workspace)
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
    assert restored_files(workspace)["sub/link"] == b"content of a"


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


RENAMES_MEANWHILE = """
import os, sys
from blobark.cli import main

def rename(event, arguments):
    if event in ("os.listdir", "os.scandir") and isinstance(arguments[0], int):
        path = os.readlink(f"/proc/self/fd/{arguments[0]}")
        if path.endswith("/moves"):
            os.rename(path, path + "-away")

sys.addaudithook(rename)
sys.exit(main(sys.argv[1:], command="index"))
"""


def test_a_folder_that_is_renamed_while_it_is_walked_does_not_spoil_the_snapshot(tmp_path: Path, source: Path) -> None:
    """Everything in a snapshot has its folder there too, or none of it could be restored."""
    write(source / "moves" / "file", "file")
    workspace = Workspace(tmp_path / "work", source)
    command = [sys.executable, "-c", RENAMES_MEANWHILE, "--config", str(workspace.config)]
    assert subprocess.run(command, capture_output=True).returncode in (0, 3)
    assert not (source / "moves").exists()
    workspace.run("save", expect=None)
    read_manifest(workspace.store)
    workspace.run("restore", expect=None)
    assert restored_files(workspace)["a"] == b"content of a"


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
    assert set(restored_files(workspace)) == set(guids) - {"cache/"}
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
    assert restored_files(workspace)["z-other-name"] == b"x.tmp"
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


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_dry_run_changes_nothing(workspace: Workspace, source: Path) -> None:
    workspace.run("index", "--dry-run")
    assert not workspace.map.exists()
    assert not workspace.store.exists()
    workspace.backup()
    write(source / "new", "new")
    (source / "a").unlink()
    before = {**contents(workspace.store), **contents(workspace.folder)}
    assert tallied(workspace.run("index", "--dry-run")) == {"new": 1, "gone": 1, "unchanged": 4}
    assert {**contents(workspace.store), **contents(workspace.folder)}.items() >= before.items()
    assert tallied(workspace.run("index")) == {"new": 1, "gone": 1, "unchanged": 4}
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


def test_private_files(workspace: Workspace) -> None:
    workspace.backup()
    for folder in (workspace.store, workspace.state):
        for path in (folder, *folder.rglob("*")):
            assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
    assert stat.S_IMODE(workspace.map.stat().st_mode) == 0o600
    assert read_header(workspace.store)["complete"] is True
