"""Comparing a restored tree with its manifest: each thing that can differ is planted, and named."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from blobark.browse import Tree
from blobark.comparison import differences
from blobark.manifest import places_of
from blobark.stores.open import open_store
from tests.runs import Workspace

SPARSE_BYTES = 1 << 20


@pytest.fixture
def restored(tmp_path: Path) -> Callable[..., dict[str, str]]:
    """A restored tree, in `tmp_path / work / restored`; what it gives compares that with entries so changed."""
    source = tmp_path / "source"
    (source / "folder").mkdir(parents=True)
    (source / "file").write_bytes(b"content")
    (source / "folder" / "below").touch()
    (source / "empty").touch()
    (source / "first").write_bytes(b"linked")
    os.link(source / "first", source / "further")
    (source / "link").symlink_to("file")
    os.mkfifo(source / "fifo", 0o640)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(source / "socket"))
    with (source / "sparse").open("wb") as file:
        file.seek(SPARSE_BYTES)
        file.write(b"end")
    os.setxattr(source / "file", "user.colour", b"green")
    os.fsencode(source)
    (Path(os.fsdecode(os.fsencode(source) + b"/odd\xff"))).write_bytes(b"odd")
    workspace = Workspace(tmp_path / "work", source)
    workspace.backup()
    workspace.run("restore")

    def compare(**changes: int) -> dict[str, str]:
        store = open_store(str(workspace.store), create=False)
        tree = Tree.open(store, str(workspace.header()["server"]))
        entries = (replace(entry, **changes) for entry in tree.entries())
        return dict(differences(os.fsencode(workspace.restored), places_of(tree.header), entries))

    return compare


@pytest.fixture
def top(tmp_path: Path) -> Path:
    return tmp_path / "work" / "restored"


def change_content(path: Path) -> None:
    status = path.stat()
    with path.open("r+b") as file:
        file.write(b"C")
    os.utime(path, ns=(status.st_mtime_ns, status.st_mtime_ns))


def test_a_right_restore_has_no_differences(restored: Callable[..., dict[str, str]]) -> None:
    assert restored() == {}


def test_content_of_the_same_length_and_time(restored: Callable[..., dict[str, str]], top: Path) -> None:
    change_content(top / "file")
    assert restored() == {"file": "has another content"}


def test_content_in_a_hole(restored: Callable[..., dict[str, str]], top: Path) -> None:
    status = (top / "sparse").stat()
    with (top / "sparse").open("r+b") as file:
        file.seek(SPARSE_BYTES // 2)
        file.write(b"x")
    os.utime(top / "sparse", ns=(status.st_mtime_ns, status.st_mtime_ns))
    assert restored() == {"sparse": "has data where a hole should be"}


def test_length_mode_time_and_attributes(restored: Callable[..., dict[str, str]], top: Path) -> None:
    os.truncate(top / "empty", 1)
    os.utime(top / "first", ns=(1, 1))
    (top / "file").chmod(0o600 if (top / "file").stat().st_mode & 0o777 != 0o600 else 0o640)
    found = restored()
    assert set(found) == {"empty", "first", "further", "file"}
    assert found["first"].startswith("has another time (1 ns")
    assert found["file"].startswith("has the mode 0600 instead of")
    os.setxattr(top / "odd\udcff", "user.new", b"")
    os.removexattr(top / "file", "user.colour")
    found = restored()
    assert (found["odd\\udcff"], found["file"]) == ("has other extended attributes",) * 2


def test_missing_and_unexpected(restored: Callable[..., dict[str, str]], top: Path) -> None:
    (top / "fifo").unlink()
    (top / "folder" / "stranger").touch()
    found = restored()
    assert (found["fifo"], found["folder/stranger"]) == ("is missing", "is not in the snapshot")


def test_what_a_missing_folder_held_is_missing_and_nothing_else(
    restored: Callable[..., dict[str, str]], top: Path
) -> None:
    status = top.stat()
    shutil.rmtree(top / "folder")
    os.utime(top, ns=(status.st_mtime_ns, status.st_mtime_ns))
    assert restored() == {"folder": "is missing", "folder/below": "is missing"}


def test_another_kind_another_target_a_link_that_is_none(restored: Callable[..., dict[str, str]], top: Path) -> None:
    (top / "socket").unlink()
    (top / "socket").mkdir()
    (top / "link").unlink()
    (top / "link").symlink_to("elsewhere")
    (top / "further").unlink()
    (top / "further").write_bytes(b"linked")
    found = restored()
    assert found["socket"] == "is no socket"
    assert "link" in found
    assert found["further"] == "is not the hard link it was"


def test_owners_are_compared_where_they_can_be_set(restored: Callable[..., dict[str, str]], top: Path) -> None:
    """As root; what anybody else restores is theirs, whatever the entry says."""
    is_root = os.geteuid() == 0
    if is_root:
        os.chown(top / "empty", 4321, 4322)
        assert restored()["empty"].startswith("belongs to 4321:4322 instead of")
    found = restored(uid=1234, gid=1235)
    assert found.get("file") == ("belongs to 0:0 instead of 1234:1235" if is_root else None)
