"""`restore --delete`: what the snapshot does not have goes, and nothing else ever."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.forge import item
from tests.runs import Workspace
from tests.scene import Scene, facts
from tests.small_disk import SmallDisk
from tests.trees import make_tree, small_tree
from tools.compare import differences


def left(top: Path) -> set[str]:
    return {str(path.relative_to(top)) for path in top.rglob("*")}


def plant(scene: Scene, *names: str) -> None:
    small_tree(scene.restored, *names)


@pytest.mark.parametrize("together", [False, True], ids=["plain", "together"])
def test_the_tree_becomes_what_the_snapshot_has(tmp_path: Path, together: bool) -> None:
    workspace = Workspace(tmp_path / "work", make_tree(tmp_path / "source"))
    if together:
        workspace.configure(pack_below="64KiB", dedupe=True, compression="zstd")
    workspace.backup()
    workspace.run("restore")
    restored = workspace.restored
    small_tree(restored, "extra", "order/extra/deep/file", "empty-dir/extra", "odd/extra", "deep/deep/extra/x")
    (restored / "order" / "out").symlink_to(workspace.source)
    os.mkfifo(restored / "extra pipe")
    (restored / "small").unlink()
    small_tree(restored / "small", "a directory/in its place")
    (restored / "hard" / "second").unlink()
    small_tree(restored / "hard" / "second", "file")
    before = facts(restored, set())
    plan = workspace.run("restore", "--delete", "--dry-run")
    assert facts(restored, set()) == before
    done = workspace.run("restore", "--delete").result
    assert differences(str(workspace.source), str(restored)) == []
    assert (plan.result["deleted"], plan.result["deleted_bytes"]) == (done["deleted"], done["deleted_bytes"])
    assert plan.result["deletions"] == done["deletions"]
    assert ["order/out", "the snapshot does not have it"] in done["deletions"]
    assert ["small", "the snapshot has something else there"] in done["deletions"]
    assert "would remove: extra: the snapshot does not have it" in plan.stderr.splitlines()
    assert json.loads(workspace.metrics.read_bytes())["summary"]["deleted"] == done["deleted"]
    assert workspace.run("restore", "--delete").result["deleted"] == 0


def test_nothing_outside_of_the_selection_goes(scene: Scene) -> None:
    forge = scene.forge
    forge.snapshot(
        *(item("a", "dir"), forge.file("a/file"), item("a/kept", "dir"), item("b", "dir")), forge.file("b/file")
    )
    extras = ("extra", "a/extra", "a/x.log", "a/new/x.log", "a/new/y", "a/kept/extra", "b/extra")
    plant(scene, *extras)
    scene.restore(0, "a", "--delete", "--exclude", "*.log", "--exclude", "kept/", settled=False)
    gone = {"a/extra", "a/new/y"}
    assert {name for name in extras if not (scene.restored / name).exists()} == gone


def test_a_directory_that_is_only_on_the_way_keeps_what_is_in_it(scene: Scene) -> None:
    forge = scene.forge
    forge.snapshot(item("a", "dir"), item("a/b", "dir"), forge.file("a/b/x.odt"), forge.file("a/y.odt"))
    plant(scene, "extra.odt", "a/extra.odt", "a/b/extra.odt")
    scene.restore(0, "--include", "*.odt", "--delete", settled=False)
    assert left(scene.restored) >= {"extra.odt", "a/extra.odt", "a/b/extra.odt"}
    scene.restore(0, "a/b/x.odt", "--delete", settled=False)
    assert (scene.restored / "a/b/extra.odt").exists()
    scene.restore(0, "--include", "/a/b/", "--delete", settled=False)
    assert left(scene.restored) == {"extra.odt", "a", "a/extra.odt", "a/b", "a/y.odt", "a/b/x.odt"}


def test_no_symlink_is_followed(scene: Scene) -> None:
    forge = scene.forge
    forge.snapshot(item("dir", "dir"), forge.file("dir/file"), forge.file("name"))
    plant(scene, "extra/file", "name/file")
    for link in ("link", "extra/link", "name/link"):
        (scene.restored / link).symlink_to(scene.outside)
    (scene.restored / "dir").symlink_to(scene.outside / "dir")
    assert scene.restore(0, "--delete").result["deleted"] == 4 + 3


def test_a_snapshot_that_is_not_complete_deletes_nothing(scene: Scene) -> None:
    forge = scene.forge
    plant(scene, "extra")
    forge.snapshot(forge.file("file"), complete=False)
    assert "needs a complete snapshot" in scene.restore(2, "--delete", settled=False).stderr
    forge.snapshot(forge.file("file"), complete=False, rescued=True)
    assert "needs a complete snapshot" in scene.restore(2, "--delete", settled=False).stderr
    assert left(scene.restored) == {"extra"}


def test_nothing_goes_when_anything_was_not_restored(scene: Scene) -> None:
    forge = scene.forge
    forge.snapshot(forge.file("a"), forge.file("b", guid=forge.blob(b"wrong")))
    plant(scene, "extra")
    done = scene.run("--delete")
    assert (done.returncode, json.loads(done.stdout)["deleted"]) == (3, 0)
    assert b"so nothing is deleted" in done.stderr
    assert left(scene.restored) == {"a", "extra"}


def test_what_a_backup_leaves_out_is_left_alone(tmp_path: Path) -> None:
    source = small_tree(tmp_path / "source", "file", "cache/x", "notes.tmp", "tree/target/o", "tree/src")
    workspace = Workspace(tmp_path / "work", source, exclude=["target/"], skip_files=["*.tmp"], skip_path=["cache"])
    workspace.backup()
    workspace.run("restore")
    kept = ("cache/mine", "new.tmp", "tree/target/o")
    small_tree(workspace.restored, *kept, "tree/extra", "cache2/x", "cache2/y.tmp")
    done = workspace.run("restore", "--delete").result
    assert [path for path, _ in done["deletions"]] == ["tree/extra", "cache2/x"]
    assert all((workspace.restored / name).exists() for name in (*kept, "cache2/y.tmp"))


def test_special_files_are_not_touched_with_no_special(scene: Scene) -> None:
    scene.forge.snapshot(scene.forge.file("file"), item("pipe", "fifo"))
    plant(scene, "extra")
    os.mkfifo(scene.restored / "pipe")
    os.mkfifo(scene.restored / "other pipe")
    scene.restore(0, "--no-special", "--delete")
    assert left(scene.restored) == {"file", "pipe", "other pipe"}


def test_blobarks_own_files_stay(tmp_path: Path) -> None:
    source = tmp_path / "source"
    small_tree(source, "data/file")
    workspace = Workspace(source / "blobark", source)
    workspace.configure(restore_root=str(tmp_path / "elsewhere"))
    workspace.backup()
    small_tree(source, "extra", "blobark/extra")
    done = workspace.run("restore", "--in-place", "--delete").result
    assert {path for path, _ in done["deletions"]} >= {f"{source}/extra"[1:], f"{source}/blobark/extra"[1:]}
    assert workspace.run("restore", "--in-place").result["kept"] == 2
    assert {path.name for path in (source / "blobark").iterdir()} >= {"store", "state", "map.json", "config.yaml"}


def test_priority_is_not_taken_for_an_extra(scene: Scene, tmp_path: Path) -> None:
    forge = scene.forge
    forge.snapshot(item("a", "dir"), forge.file("a/first"), forge.file("a/last"), forge.file("z"))
    plant(scene, "extra", "a/extra")
    first = tmp_path / "first"
    first.write_text("first\n")
    assert scene.restore(0, "--priority", str(first), "--delete").result["deleted"] == 2
    assert left(scene.restored) == {"a", "a/first", "a/last", "z"}


def test_mounted_file_systems_stay_and_are_named(tmp_path: Path) -> None:
    source = small_tree(tmp_path / "source", "file", "mounted/file")
    workspace = Workspace(tmp_path / "work", source)
    workspace.backup()
    workspace.run("restore")
    small_tree(workspace.restored, "extra/file", "extra/mount/x")
    bound = small_tree(tmp_path / "bound", "precious")
    with SmallDisk(workspace.restored / "mounted", "size=1m") as disk:
        for folder, name in (("mounted", "extra"), ("mounted/below", "x")):
            (disk.seen_from_here() / Path(folder).relative_to("mounted")).mkdir(exist_ok=True)
            (disk.seen_from_here() / Path(folder).relative_to("mounted") / name).write_text("on another disk")
        disk.bind(bound, workspace.restored / "extra/mount")
        command = disk.inside(workspace.command("restore", "--delete", "--json"))
        done = subprocess.run(command, capture_output=True, check=False)
        stderr = done.stderr.decode()
        assert done.returncode == 0, stderr
        assert [path for path, _ in json.loads(done.stdout)["deletions"]] == ["extra/file"]
        assert "mounted stays: another file system is mounted there" in stderr
        assert "extra/mount stays: another file system is mounted there" in stderr
        assert (disk.seen_from_here() / "extra").exists()
        assert (disk.seen_from_here() / "below" / "x").exists()
    assert left(bound) == {"precious"}


def test_a_deep_tree_is_removed(scene: Scene) -> None:
    scene.forge.snapshot(scene.forge.file("file"))
    scene.restored.mkdir()
    here = os.open(scene.restored, os.O_RDONLY)
    for _ in range(1200):  # deeper than a path can be long, and than functions may call each other
        os.mkdir("deep", dir_fd=here)
        below = os.open("deep", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    assert scene.restore(0, "--delete").result["deleted"] == 1200
