"""Restores into folders where somebody has planted things, and on machines that have no room or no rights."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from blobark.fetch import tag_of
from blobark.partfile import temporary_name
from tests.forge import MTIME_NS, b64, item
from tests.forked import NOBODY, NOBODYS_GROUP
from tests.racer import racing
from tests.scene import Scene, judged
from tests.small_disk import SmallDisk, as_root_of_a_namespace
from tests.trees import make_tree, small_tree
from tools.compare import differences

# What somebody has planted in restore_root


def test_planted_symlinks_are_replaced_and_never_followed(scene: Scene) -> None:
    forge, restored, outside = scene.forge, scene.restored, scene.outside
    entries = [item("dir", "dir"), item("dir/below", "dir"), forge.file("dir/below/file"), forge.file("file")]
    forge.snapshot(*entries, item("pipe", "fifo"), forge.file("to nothing"))
    restored.mkdir()
    (restored / "dir").symlink_to(outside / "dir")
    (restored / "file").symlink_to(outside / "file")
    (restored / "pipe").symlink_to(outside / "file")
    (restored / "to nothing").symlink_to(outside / "new")
    assert scene.restore(0).result["files"] == 3
    assert not any(path.is_symlink() for path in restored.rglob("*"))


@pytest.mark.parametrize("overwrite", ["never", "always"])
def test_a_directory_that_is_a_symlink_is_not_entered(scene: Scene, overwrite: str) -> None:
    scene.forge.snapshot(item("dir", "dir"), item("dir/below", "dir"), scene.forge.file("dir/below/file"))
    scene.restored.mkdir()
    (scene.restored / "dir").symlink_to(scene.outside / "dir")
    scene.restore(3 if overwrite == "never" else 0, "--overwrite", overwrite)
    assert (scene.restored / "dir").is_symlink() == (overwrite == "never")


def test_planted_special_files_do_not_hang_a_restore(scene: Scene) -> None:
    forge, restored = scene.forge, scene.restored
    forge.snapshot(item("dir", "dir"), forge.file("dir/file"), forge.file("file"), forge.file("holes", bytes(100)))
    restored.mkdir()
    os.mkfifo(restored / "dir")
    os.mkfifo(restored / "file", 0o600)
    os.mkfifo(restored / "holes", 0o600)
    assert scene.restore(0).result["written"] == 3
    os.unlink(restored / "file")
    os.mkfifo(restored / "file")
    assert scene.restore(0, "--overwrite", "never").result["left"] == 3
    assert (restored / "file").is_fifo()


@pytest.mark.parametrize("data", [b"outside", b"others!"], ids=["same content", "other content"])
def test_a_planted_hard_link_leaves_its_file_as_it_is(scene: Scene, data: bytes) -> None:
    scene.forge.snapshot(scene.forge.file("file", data, mode=0o4777))
    scene.restored.mkdir()
    os.link(scene.outside / "file", scene.restored / "file")
    before = (scene.outside / "file").stat()
    judged(scene.run(), 0)
    after = (scene.outside / "file").stat()
    assert (scene.outside / "file").read_bytes() == b"outside"
    assert (after.st_mode, after.st_mtime_ns, after.st_uid) == (before.st_mode, before.st_mtime_ns, before.st_uid)
    restored = (scene.restored / "file").stat()
    assert (restored.st_ino != after.st_ino, restored.st_mode & 0o7777) == (True, 0o4777)
    scene.check_content()


def test_no_link_is_made_to_what_the_snapshot_does_not_have(scene: Scene) -> None:
    scene.forge.snapshot(item("link", "file", hardlink_to="planted"))
    scene.restored.mkdir()
    os.link(scene.outside / "file", scene.restored / "planted")
    scene.restore((3, 4), settled=False)
    assert not os.path.lexists(scene.restored / "link")


def test_a_link_to_itself_is_no_file_that_is_right(scene: Scene) -> None:
    scene.forge.snapshot(item("link", "file", hardlink_to="link"))
    scene.restored.mkdir()
    (scene.restored / "link").write_bytes(b"anything")
    scene.restore((3, 4), settled=False)


def test_a_directory_stays_where_a_file_should_go(scene: Scene) -> None:
    scene.forge.snapshot(item("dir", "dir"), scene.forge.file("file"))
    (scene.restored / "file" / "of").mkdir(parents=True)
    (scene.restored / "file" / "of" / "somebody").write_bytes(b"")
    (scene.restored / "dir").write_bytes(b"a file where a directory goes")
    run = scene.restore(3, settled=False)
    assert run.result["failed"] == [["file", "a directory is in its place"]]
    assert (scene.restored / "file" / "of" / "somebody").exists()
    assert (scene.restored / "dir").is_dir()


def test_a_file_stays_where_a_directory_should_go_if_nothing_may_be_overwritten(scene: Scene) -> None:
    scene.forge.snapshot(item("dir", "dir"), scene.forge.file("dir/file"))
    scene.restored.mkdir()
    (scene.restored / "dir").write_bytes(b"mine")
    assert len(scene.restore(3, "--overwrite", "never", settled=False).result["failed"]) == 2
    assert (scene.restored / "dir").read_bytes() == b"mine"


@pytest.mark.parametrize("size", [10, 9 << 20], ids=["small", "large"])
def test_leftovers_under_temporary_names_do_no_harm(scene: Scene, size: int) -> None:
    forge, restored = scene.forge, scene.restored
    names = ("dir", "fifo", "file", "hardlink", "symlink")
    forge.snapshot(*[forge.file(name, name[:1].encode() * size) for name in names])
    restored.mkdir()
    place = {name: restored / f".blobark-{tag_of(name.encode())}.part" for name in names}
    place["dir"].mkdir()
    os.mkfifo(place["fifo"])
    place["file"].write_bytes(b"left")
    os.link(scene.outside / "file", place["hardlink"])
    place["symlink"].symlink_to(scene.outside / "file")
    before = (scene.outside / "file").stat()
    judged(scene.run(), (0, 3))
    after = (scene.outside / "file").stat()
    assert (scene.outside / "file").read_bytes() == b"outside"
    assert (after.st_mode, after.st_mtime_ns) == (before.st_mode, before.st_mtime_ns)
    for name in ("fifo", "file", "hardlink", "symlink"):
        assert (restored / name).read_bytes() == forge.contents[name]
        assert not (restored / name).is_symlink()


def test_a_killed_restore_leaves_nothing_behind_once_it_has_been_run_again(scene: Scene) -> None:
    scene.forge.snapshot(scene.forge.file("file", os.urandom(1 << 20) * 40))
    with subprocess.Popen(scene.workspace.command("restore"), stdout=subprocess.DEVNULL) as process:
        while process.poll() is None and not any(path.is_file() for path in scene.leftovers()):
            pass
        process.kill()
    assert (
        not (scene.restored / "file").exists() or scene.forge.contents["file"] == (scene.restored / "file").read_bytes()
    )
    scene.restore(0)


def test_a_folder_that_is_none_is_refused(scene: Scene) -> None:
    scene.forge.snapshot(scene.forge.file("a"))
    scene.restored.write_bytes(b"a file")
    run = scene.restore((2, 4), settled=False)
    assert "restore_root" in run.result["error"]


# Somebody who swaps things while a restore runs


def test_a_directory_that_is_swapped_for_a_symlink_leads_nowhere(scene: Scene) -> None:
    forge, outside = scene.forge, scene.outside / "dir"
    entries = [item("dir", "dir", mode=0o700)]
    for number in range(150):
        (outside / f"{number:03}").mkdir(mode=0o711)
        entries.append(item(f"dir/{number:03}", "dir", mode=0o4750))
        entries += [forge.file(f"dir/{number:03}/{name}") for name in "abcd"]
        entries += [item(f"dir/{number:03}/link", "file", hardlink_to=f"dir/{number:03}/a")]
        entries += [item(f"dir/{number:03}/pipe", "fifo", mode=0o666)]
    forge.snapshot(*entries)
    (scene.restored / "dir").mkdir(parents=True)
    before = scene.surroundings()
    with racing("directory", scene.restored / "dir", outside):
        done = scene.run()
    assert scene.surroundings() == before
    judged(done, (0, 3))


def test_a_special_file_that_is_swapped_for_a_symlink_leads_nowhere(scene: Scene) -> None:
    names = [f"pipe{number:04}" for number in range(2000)]
    scene.forge.snapshot(*[item(name, "fifo", mode=0o4777) for name in names])
    scene.workspace.configure(max_workers=1)  # so that they are made in this order
    scene.restored.mkdir()
    before = scene.surroundings()
    temporary = [os.fsdecode(temporary_name(tag_of(name.encode()))) for name in names]
    with racing("names", scene.restored, scene.outside / "file", zip(temporary, names, strict=True)):
        done = scene.run()
    assert scene.surroundings() == before
    judged(done, (0, 3))
    assert any(path.is_symlink() for path in scene.restored.glob("pipe*")), "not one was swapped in time"


# --overwrite


@pytest.fixture
def thrice(scene: Scene) -> Scene:
    """A restored tree of which one file is right, one has other metadata, and one other content."""
    names = ("content", "metadata", "right")
    scene.forge.snapshot(*[scene.forge.file(name, b"as it was") for name in names])
    scene.restore(0)
    (scene.restored / "content").write_bytes(b"as it is!")
    os.utime(scene.restored / "content", ns=(MTIME_NS, MTIME_NS))
    (scene.restored / "metadata").chmod(0o600)
    os.utime(scene.restored / "metadata", ns=(5, 5))
    return scene


def inodes(scene: Scene) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in scene.restored.iterdir()}


def test_only_what_differs_is_written(thrice: Scene) -> None:
    before = inodes(thrice)
    result = thrice.restore(0).result
    assert (result["written"], result["kept"], result["left"]) == (1, 2, 0)
    after = inodes(thrice)
    assert {name for name in before if after[name] == before[name]} == {"metadata", "right"}
    status = (thrice.restored / "metadata").stat()
    assert (status.st_mode & 0o7777, status.st_mtime_ns) == (0o644, MTIME_NS)


def test_everything_is_written_if_told_so(thrice: Scene) -> None:
    before = inodes(thrice)
    with contextlib.ExitStack() as stack:
        for name in before:  # while a file is open its inode is not given to another
            stack.enter_context((thrice.restored / name).open())
        assert thrice.restore(0, "--overwrite", "always").result["written"] == 3
    assert not set(before.values()) & set(inodes(thrice).values())


def test_nothing_is_overwritten_if_told_so(thrice: Scene) -> None:
    (thrice.restored / "right").unlink()
    before = inodes(thrice)
    result = thrice.restore(0, "--overwrite", "never", settled=False).result
    assert (result["written"], result["left"]) == (1, 2)
    assert (thrice.restored / "content").read_bytes() == b"as it is!"
    assert (thrice.restored / "metadata").stat().st_mode & 0o7777 == 0o600
    assert before.items() <= inodes(thrice).items()


def test_a_link_is_not_made_to_a_file_that_was_left_as_it_is(scene: Scene) -> None:
    scene.forge.snapshot(scene.forge.file("file", b"the snapshot's"), item("link", "file", hardlink_to="file"))
    scene.forge.contents["link"] = b"the snapshot's"
    scene.restored.mkdir()
    (scene.restored / "file").write_bytes(b"mine")
    scene.restore((0, 3), "--overwrite", "never", settled=False)
    link = scene.restored / "link"
    assert not link.exists() or link.read_bytes() == b"the snapshot's"


def test_further_names_are_made_of_a_file_that_was_right_and_left(scene: Scene) -> None:
    forge = scene.forge
    forge.snapshot(forge.file("file"), *(item(name, "file", hardlink_to="file") for name in ("here", "lost")))
    forge.contents["here"] = forge.contents["lost"] = forge.contents["file"]
    scene.restore(0)
    assert scene.restore(0, "--overwrite", "never").result["left"] == 3
    (scene.restored / "lost").unlink()
    assert scene.restore(0, "--overwrite", "never").result["links"] == 1
    assert inodes(scene)["lost"] == inodes(scene)["file"]
    (scene.restored / "lost").unlink()
    (scene.restored / "file").write_bytes(b"Mine")  # in place, so that its further name stays one
    run = scene.restore(3, "--overwrite", "never", settled=False)
    assert run.result["failed"] == [
        ["lost", "the file it is a hard link of, file, is another file there, which was left"]
    ]


def test_links_and_special_files_that_are_right_are_kept(scene: Scene) -> None:
    forge = scene.forge
    forge.snapshot(
        forge.file("file"),
        item("link", "file", hardlink_to="file"),
        item("pipe", "fifo"),
        item("sym", "symlink", link="file", mode=0o777),
    )
    forge.contents["link"] = forge.contents["file"]
    scene.restore(0)
    before = inodes(scene)
    assert scene.restore(0).result["kept"] == 4
    assert inodes(scene) == before


# A disk that is full, or may not be written


def test_a_full_disk_stops_a_restore_that_can_be_run_again(scene: Scene) -> None:
    forge = scene.forge
    forge.snapshot(
        item("dir", "dir"),
        *[forge.file(f"dir/{number:04}", bytes([number % 256])) for number in range(1500)],  # a page each: that is
        *[forge.file(f"dir/{number:04}", os.urandom(500_000)) for number in range(2000, 2010)],  # not seen beforehand
        forge.file("last"),
    )
    scene.restored.mkdir()
    with SmallDisk(scene.restored, "size=8m") as disk:
        command = disk.inside([*scene.workspace.command("restore"), "--json"])
        full = judged(subprocess.run(command, capture_output=True, check=False), 4)
        assert "No space left" in full.stderr
        scene.check_content(disk.seen_from_here())
        disk.remount("size=40m")
        judged(subprocess.run(command, capture_output=True, check=False), 0)
        scene.check_content(disk.seen_from_here())
        assert len(list(disk.seen_from_here().rglob("*"))) == 1512


@pytest.mark.parametrize(
    ("options", "advice"),
    [("size=8m,nr_inodes=5", "make room"), ("size=8m,ro", "mount it for writing")],
    ids=["no inodes", "read-only"],
)
def test_a_disk_without_room_for_names_stops_a_restore(scene: Scene, options: str, advice: str) -> None:
    scene.forge.snapshot(item("dir", "dir"), *[scene.forge.file(f"dir/{number}") for number in range(9)])
    scene.restored.mkdir()
    with SmallDisk(scene.restored, options) as disk:
        command = disk.inside([*scene.workspace.command("restore"), "--json"])
        run = judged(subprocess.run(command, capture_output=True, check=False), 4)
        assert f"): {advice} and run it again" in run.stderr
        scene.check_content(disk.seen_from_here())


def test_what_fails_at_the_top_has_a_name(scene: Scene) -> None:
    forge = scene.forge
    top = item("", "dir", xattrs={"nonsense.x": b64(b"no file system has it")})
    forge.publish(forge.header([forge.segment([top, forge.file("file")])]))
    assert [path for path, _ in scene.restore(3).result["failed"]] == ["."]


# Without root


def test_without_root_owners_are_not_restored_and_nothing_fails(nobodys: Scene) -> None:
    forge = nobodys.forge
    attributes = {"security.capability": "AQAAAgAgAAAAAAAAAAAAAAAAAAA=", "trusted.t": "AA==", "user.u": b64(b"kept")}
    forge.snapshot(
        item("dir", "dir", uid=0, gid=0, xattrs=attributes),
        forge.file("dir/file", uid=1234, gid=0, xattrs=attributes),
        item("link", "file", hardlink_to="dir/file"),
        item("pipe", "fifo", uid=0, gid=0),
        item("sym", "symlink", link="dir", mode=0o777, uid=0, gid=0),
    )
    forge.contents["link"] = forge.contents["dir/file"]
    nobodys.hand_over()
    nobodys.restore(0, nobody=True)
    assert os.getxattr(nobodys.restored / "dir" / "file", "user.u") == b"kept"
    assert (nobodys.restored / "dir" / "file").stat().st_uid == nobodys.folder.stat().st_uid
    again = nobodys.restore(0, nobody=True).result
    assert (again["kept"], again["written"], again["needs_root"]) == (4, 0, True)


def test_without_root_a_tree_comes_back_as_one_that_is_theirs(nobodys: Scene, tmp_path: Path) -> None:
    workspace, is_root = nobodys.workspace, os.geteuid() == 0
    shutil.rmtree(workspace.store)
    top = make_tree(tmp_path / "source")
    workspace.configure(source_path=str(top))
    if is_root:
        (top / "char").unlink()
        (top / "block").unlink()
        os.chown(top / "mode", 1234, 5678)
        (top / "mode").chmod(0o6755)
        os.setxattr(top / "small", "trusted.t", b"root's")
    workspace.backup()
    nobodys.hand_over()
    assert judged(nobodys.run(nobody=True), 0).result["needs_root"] == is_root
    owner = (NOBODY, NOBODY) if is_root else (os.geteuid(), os.getegid())
    assert differences(str(top), str(nobodys.restored), restored_by=owner) == []
    if is_root:
        assert len(differences(str(top), str(nobodys.restored))) > 20


def test_without_root_no_program_gets_the_wrong_owners_rights(nobodys: Scene) -> None:
    nobodys.forge.snapshot(nobodys.forge.file("program", mode=0o6755, uid=0, gid=0))
    nobodys.hand_over()
    nobodys.restore(0, nobody=True)
    assert (nobodys.restored / "program").stat().st_mode & 0o7777 == 0o755
    assert nobodys.restore(0, nobody=True).result["kept"] == 1


def test_without_root_no_program_gets_the_rights_of_a_folders_group(nobodys: Scene) -> None:
    """What is made in a set-group-id folder has the folder's group; who has one group has none but the meant one."""
    is_root = os.geteuid() == 0
    uid, gid = (NOBODY, NOBODY) if is_root else (os.geteuid(), os.getegid())
    group = NOBODYS_GROUP if is_root else next((other for other in os.getgroups() if other != gid), gid)
    nobodys.forge.snapshot(nobodys.forge.file("program", mode=0o2755, uid=uid, gid=gid))
    nobodys.hand_over()
    nobodys.restored.mkdir()
    os.chown(nobodys.restored, uid, group)
    nobodys.restored.chmod(0o2755)
    nobodys.restore(0, nobody=True)
    program = (nobodys.restored / "program").stat()
    assert (program.st_gid, program.st_mode & 0o7777) == (group, 0o2755 if group == gid else 0o755)


def test_without_root_extras_go_that_may_go_and_the_others_are_named(nobodys: Scene) -> None:
    restored = nobodys.restored
    nobodys.forge.snapshot(nobodys.forge.file("file"))
    small_tree(restored, "closed/file", "others/file", "other")
    (restored / "closed").chmod(0)
    (restored / "others").chmod(0o755)
    nobodys.hand_over()
    if os.geteuid() == 0:
        os.chown(restored / "others", 0, 0)
    done = nobodys.restore(3 if os.geteuid() == 0 else 0, "--delete", nobody=True, settled=False).result
    if os.geteuid() == 0:
        assert done["failed"] == [["others/file", "cannot be removed (Permission denied)"]]
    assert [path for path, _ in done["deletions"]][:3] == ["closed/file", "closed", "other"]


def test_without_root_what_may_not_be_read_is_restored_once_more(nobodys: Scene) -> None:
    forge = nobodys.forge
    forge.snapshot(
        item("closed", "dir", mode=0),
        forge.file("closed/file", mode=0),
        item("read-only", "dir", mode=0o555),
        forge.file("read-only/file", mode=0o444),
        forge.file("write-only", mode=0o200),
    )
    nobodys.hand_over()
    for _ in range(2):
        nobodys.restore(0, nobody=True)
        closed = nobodys.restored / "closed"
        assert stat.S_IMODE(closed.stat().st_mode) == 0
        closed.chmod(0o700)
        modes = {path: path.stat().st_mode & 0o7777 for path in nobodys.restored.rglob("*")}
        closed.chmod(0)
        assert sorted(modes.values()) == [0, 0o200, 0o444, 0o555, 0o700]


def test_without_root_what_belongs_to_others_is_named(nobodys: Scene) -> None:
    forge, restored = nobodys.forge, nobodys.restored
    forge.snapshot(
        item("device", "char", rdev=[1, 3]),
        item("dir", "dir"),
        forge.file("dir/file"),
        forge.file("other content"),
        forge.file("same content"),
        forge.file("z"),
    )
    (restored / "dir").mkdir(parents=True)
    (restored / "other content").write_bytes(b"OTHER CONTENT")
    (restored / "same content").write_bytes(b"same content")
    nobodys.hand_over()
    theirs = (restored / "dir", restored / "other content", restored / "same content")
    for path in theirs if os.geteuid() == 0 else ():
        os.chown(path, 0, 0)
    failed = dict(nobodys.restore(3, nobody=True).result["failed"])
    assert sorted(failed) == (["device", "dir", "dir/file"] if os.geteuid() == 0 else ["device"])
    assert "--no-special" in failed["device"]
    assert (restored / "z").exists()
    assert (restored / "same content").stat().st_mtime_ns == MTIME_NS


def test_owners_that_a_container_does_not_know_are_named_and_cost_nothing_else(scene: Scene) -> None:
    """Root in a user namespace may give files only to those whom the namespace has."""
    forge = scene.forge
    entries = [
        item("dir", "dir", mode=0o750, uid=1234),
        forge.file("dir/file", mode=0o6755, uid=1234, xattrs={"user.u": b64(b"kept")}),
        item("link", "symlink", link="dir", mode=0o777, gid=1234),
        forge.file("ours", mode=0o640, uid=0, gid=0),
    ]
    forge.publish(forge.header([forge.segment([item("", "dir", uid=1234), *entries])], 1), 1)
    command = as_root_of_a_namespace([*scene.workspace.command("restore"), "--json"])
    for _ in range(2):
        run = judged(subprocess.run(command, capture_output=True, check=False), 3)
        assert sorted(path for path, _ in run.result["failed"]) == [".", "dir", "dir/file", "link"]
        assert all("--no-owner` leaves owners out" in why for _, why in run.result["failed"])
        scene.check_content()
        file = scene.restored / "dir" / "file"
        assert (stat.S_IMODE(file.stat().st_mode), os.getxattr(file, "user.u")) == (0o755, b"kept")
        assert stat.S_IMODE((scene.restored / "dir").stat().st_mode) == 0o750
    judged(subprocess.run([*command, "--no-owner"], capture_output=True, check=False), 0)


# Local state is a cache


def damage_segments(state: Path) -> None:
    with contextlib.closing(sqlite3.connect(state / "catalog.sqlite")) as catalog:
        catalog.execute("UPDATE segment SET stored = x'00'")
        catalog.commit()


def take_state_away(state: Path) -> None:
    for path in (*state.iterdir(), state):
        path.chmod(0)
        if os.geteuid() == 0:
            os.chown(path, 0, 0)


STATES: dict[str, Callable[[Path], object]] = {
    "not a database": lambda state: (state / "catalog.sqlite").write_bytes(os.urandom(10_000)),
    "cut short": lambda state: os.truncate(state / "catalog.sqlite", 6000),
    "a directory": lambda state: (state / "catalog.sqlite").rename(state / "aside").with_name("catalog.sqlite").mkdir(),
    "damaged segments": damage_segments,
    "read-only": lambda state: subprocess.run(["chmod", "-R", "a-w", state], check=True),
    "somebody else's": take_state_away,
}


@pytest.mark.parametrize("damage", STATES.values(), ids=STATES.keys())
def test_state_that_cannot_be_used_costs_nothing(nobodys: Scene, damage: Callable[[Path], object]) -> None:
    workspace = nobodys.workspace
    shutil.rmtree(workspace.store)
    workspace.source.mkdir()
    (workspace.source / "file").write_bytes(b"content")
    workspace.backup()
    nobodys.hand_over()
    damage(workspace.state)
    run = judged(nobodys.run(nobody=True), 0)
    assert run.result["files"] == 1
    assert (nobodys.restored / "file").read_bytes() == b"content"
