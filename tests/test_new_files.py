"""What a restore makes has the entry's metadata, whatever it would get without that."""

from __future__ import annotations

import contextlib
import os
import struct
import subprocess

import pytest

from blobark.fetch import tag_of
from blobark.partfile import temporary_name
from blobark.target import Target
from tests.forge import MTIME_NS, b64, described, digest, item, lines
from tests.scene import Scene, judged

MODES = (0o000, 0o400, 0o600, 0o640, 0o644, 0o755, 0o777, 0o1644, 0o2755, 0o4755)
_NO_ID = 0xFFFF_FFFF
_ACL = "system.posix_acl_default"
_OWN_ACL = "system.posix_acl_access"


def acl(*entries: tuple[int, int, int]) -> bytes:
    """Return an ACL as the kernel takes it, of (tag, permissions, id)."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


GENEROUS = acl((1, 7, _NO_ID), (2, 7, 4321), (4, 7, _NO_ID), (0x10, 7, _NO_ID), (0x20, 5, _NO_ID))
"""The owner, user 4321 and the group may do all, others read."""


@pytest.fixture
def files(scene: Scene) -> dict[str, int]:
    """A snapshot with a file of each mode in a new directory and in one below it, and a FIFO; modes by their names."""
    names = {f"dir/{mode:04o}": mode for mode in MODES} | {f"dir/sub/{mode:04o}": mode for mode in MODES}
    entries = [scene.forge.file(name, mode=mode) for name, mode in names.items()]
    entries += [
        item("dir", "dir", mode=0o2750),
        item("dir/sub", "dir", mode=0o1777),
        item("dir/fifo", "fifo", mode=0o660),
    ]
    scene.forge.snapshot(*sorted(entries, key=lambda entry: entry["path"].replace("/", "\0")))
    return {**names, "dir": 0o2750, "dir/sub": 0o1777, "dir/fifo": 0o660}


def restore(scene: Scene, umask: int, code: int = 0) -> str:
    command = [*scene.workspace.command("restore"), "--json"]
    return judged(subprocess.run(command, capture_output=True, umask=umask, check=False), code).stderr


def check(scene: Scene, files: dict[str, int], owner: tuple[int, int]) -> None:
    for name, mode in files.items():
        path = scene.restored / name
        status = path.stat()
        found = (status.st_mode & 0o7777, status.st_mtime_ns, (status.st_uid, status.st_gid))
        assert found == (mode, MTIME_NS, owner), name
        assert os.listxattr(path) == [], name


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
def test_a_umask_changes_no_mode(scene: Scene, files: dict[str, int], umask: int) -> None:
    if umask & 0o700 and os.geteuid() != 0:  # then what a user makes is closed to them
        assert "Permission denied" in restore(scene, umask, 4)
        return
    restore(scene, umask)
    check(scene, files, (os.geteuid(), os.getegid()))


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_an_acl_of_restore_root_is_not_inherited(scene: Scene, files: dict[str, int], umask: int) -> None:
    scene.restored.mkdir()
    os.setxattr(scene.restored, _ACL, GENEROUS)
    restore(scene, umask)
    check(scene, files, (os.geteuid(), os.getegid()))


def test_a_group_of_restore_root_is_not_inherited(scene: Scene, files: dict[str, int]) -> None:
    scene.restored.mkdir()
    if os.geteuid() == 0:
        os.chown(scene.restored, -1, 4321)
    scene.restored.chmod(0o2755)
    restore(scene, 0o022)
    check(scene, files, (os.geteuid(), os.getegid()))


def test_the_owners_are_the_entries(scene: Scene) -> None:
    """As root; for nobody else, who cannot give files away, they lose the bit that was meant for the owner."""
    owners = {f"dir/{number:02}": (1000 + number, 2000 + number) for number in range(20)}
    entries = [scene.forge.file(name, mode=0o4640, uid=uid, gid=gid) for name, (uid, gid) in owners.items()]
    scene.forge.snapshot(item("dir", "dir"), *entries)
    restore(scene, 0o022)
    for name, owner in owners.items():
        status = (scene.restored / name).stat()
        found = ((status.st_uid, status.st_gid), status.st_mode & 0o7777)
        assert found == ((owner, 0o4640) if os.geteuid() == 0 else ((os.geteuid(), os.getegid()), 0o640)), name


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
@pytest.mark.parametrize("default", [b"", GENEROUS], ids=["bare", "below a default ACL"])
def test_attributes_that_are_an_entrys_are_set_and_its_mode(scene: Scene, umask: int, default: bytes) -> None:
    """An ACL's mask is what a mode says of the group: one is set and leaves the other as it is."""
    wanted: dict[str, tuple[int, dict[str, bytes]]] = {}
    for mode in MODES:
        own = acl(
            (1, mode >> 6 & 7, _NO_ID),
            (2, 7, 4321),
            (4, 5, _NO_ID),
            (0x10, mode >> 3 & 7, _NO_ID),
            (0x20, mode & 7, _NO_ID),
        )
        wanted |= {f"dir/{mode:04o}-acl": (mode, {_OWN_ACL: own}), f"dir/{mode:04o}-note": (mode, {"user.note": b"\0"})}
    wanted["dir/bare"] = (0o644, {})
    scene.forge.snapshot(
        item("dir", "dir"),
        *[
            scene.forge.file(name, mode=mode, xattrs={key: b64(value) for key, value in xattrs.items()} or None)
            for name, (mode, xattrs) in sorted(wanted.items())
        ],
    )
    scene.restored.mkdir()
    if default:
        os.setxattr(scene.restored, _ACL, default)
    restore(scene, umask)
    for name, expected in wanted.items():
        path = scene.restored / name
        found = {key: os.getxattr(path, key) for key in os.listxattr(path)}
        assert (path.stat().st_mode & 0o7777, found) == expected, name


def test_an_acl_that_is_no_entrys_goes(scene: Scene) -> None:
    """Of a FIFO or socket that is there already; one that is right is let be, with an ACL and without."""
    ours, theirs = (
        acl((1, 6, _NO_ID), (2, 6, user), (4, 6, _NO_ID), (0x10, 6, _NO_ID), (0x20, 0, _NO_ID)) for user in (4321, 8)
    )
    kinds = ("fifo", "socket")
    scene.forge.snapshot(
        *[item(f"bare-{kind}", kind, mode=0o660) for kind in kinds],
        *[item(f"with-{kind}", kind, mode=0o660, xattrs={_OWN_ACL: b64(ours)}) for kind in kinds],
    )
    assert [scene.restore(0).result["kept"] for _ in range(2)] == [0, 4]
    for path in scene.restored.iterdir():
        os.setxattr(path, _OWN_ACL, theirs)
        status = path.stat()
        assert (status.st_mode & 0o7777, status.st_mtime_ns) == (0o660, MTIME_NS), "nothing else tells"
    assert scene.restore(0).result["kept"] == 0
    for kind in kinds:
        assert os.listxattr(scene.restored / f"bare-{kind}") == []
        assert os.getxattr(scene.restored / f"with-{kind}", _OWN_ACL) == ours


def test_a_directory_that_is_spelled_in_another_way_is_finished_too(scene: Scene) -> None:
    """Its line holds no `"dir"`, but JSON that says the same."""
    entries = [item("", "dir"), item("folder", "dir", mode=0o751), item('not a "dir"', "fifo")]
    plain = lines(entries).replace(b'"kind": "dir"', rb'"kind": "\u0064ir"')
    forge = scene.forge
    forge.publish(forge.header([{**described(digest(plain), plain, entries), **forge.segment(plain)}]))
    restore(scene, 0o022)
    status = (scene.restored / "folder").stat()
    assert (status.st_mode & 0o7777, status.st_mtime_ns) == (0o751, MTIME_NS)


@pytest.mark.parametrize("mode", MODES)
def test_a_file_in_the_making_is_seen_by_nobody_who_may_not(scene: Scene, mode: int) -> None:
    """Not even in a folder of another group and with an ACL: one that somebody has put in the place of a new one."""
    folder = scene.restored / "dir"
    folder.mkdir(parents=True)
    os.setxattr(folder, _ACL, GENEROUS)
    target = Target.open(scene.restored, create=True)
    with contextlib.closing(target), target.new_file(b"dir/file", tag_of(b"dir/file"), mode=mode & 0o777) as new:
        made = os.fstat(new.descriptor).st_mode
    assert (made >> 3 | made) & 0o7 & ~mode == 0


def test_a_leftover_that_others_have_open_is_not_gone_on_with(scene: Scene) -> None:
    """It was a small one for all, left by a restore that was killed; a large one for its owner alone is written now."""
    data = os.urandom(9 << 20)
    halves = [[len(half), digest(half)] for half in (data[: 4 << 20], data[4 << 20 :])]
    scene.forge.snapshot(scene.forge.file("file", data, mode=0o600, blocks=halves))
    scene.restored.mkdir()
    leftover = scene.restored / os.fsdecode(temporary_name(tag_of(b"file")))
    leftover.write_bytes(b"for all")
    leftover.chmod(0o644)
    with leftover.open("rb") as opened:
        scene.restore(0)
        assert opened.read() == b"for all"
