"""The index over a tree that has changed, through the scripts: which file keeps its GUID, and which is read."""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from blobark.catalog import Catalog
from blobark.model import Entry
from tests.manifests import content_keys, content_of, items
from tests.opened import opened_below
from tests.runs import Run, Workspace
from tests.trees import small_tree, write
from tools.compare import differences

FRESH_S = 2.0
"""A file whose ctime is younger than this when it is indexed is read again by the next run."""


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
    return small_tree(tmp_path / "source", "a", "b", "sub/c", "sub/d", "sub/deep/e")


@pytest.fixture
def workspace(tmp_path: Path, source: Path) -> Workspace:
    return Workspace(tmp_path / "work", source)


def test_a_verbose_run_names_what_has_changed(workspace: Workspace, source: Path) -> None:
    first = workspace.run("index", "-v").stderr.splitlines()
    assert {line.partition(" -> ")[2] for line in first} == {f"{source}/{path}" for path in workspace.guids()}
    workspace.run("save")
    let_age(source)
    (source / "a").rename(source / "renamed")
    (source / "b").unlink()
    write(source / "new", "new")
    os.utime(source / "sub" / "c", ns=(7, 7))
    write(source / "sub" / "d", "longer than before")
    lines = workspace.run("backup", "-v").stderr.splitlines()
    for line in (
        f"gone: {source}/b",
        f"new: {source}/new",
        f"renamed: {source}/a -> {source}/renamed",
        f"mtime changed: {source}/sub/c",
        f"read, and its content is the same: {source}/sub/c",
        f"size changed: {source}/sub/d",
        f"{workspace.guids()['sub/deep/e']} -> {source}/sub/deep/e",
    ):
        assert line in lines
    assert not [line for line in lines if line.endswith("sub/deep/e") and line.startswith("new")]
    assert f"new: {source}/new" not in workspace.run("index").stderr


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
    counts = changed.index.tallied
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
    assert index.tallied.keys() == {"unchanged"}
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


def test_inode_numbers_of_64_bits_tell_what_was_renamed(tmp_path: Path) -> None:
    """Some file systems on other machines have them, overlays too."""
    with Catalog.open(tmp_path) as catalog:
        draft = catalog.new_draft()
        new, other = Entry("new", inode=2**64 - 1), Entry("other", inode=2**64 - 3)
        for entry in (new, other):
            draft.fresh(draft.add(entry, entry.raw_path), entry)
        gone = Entry("old", inode=2**64 - 1)
        draft.gone(gone)
        assert list(draft.renames()) == [(0, new, gone)]
