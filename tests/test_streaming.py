"""`restore --cat` and `--tar`: what goes to standard output is right, or is named."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.forge import b64, item
from tests.runs import REPOSITORY, Workspace
from tests.scene import Scene
from tests.trees import make_tree, small_tree
from tools.compare import differences

STORED: dict[str, dict[str, Any]] = {
    "plain": {},
    "together": {"pack_below": "64KiB", "dedupe": True, "compression": "zstd"},
    "azure": {},
}


@pytest.fixture(scope="module", params=STORED)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A tree with every kind of item, saved once in each way."""
    folder = tmp_path_factory.mktemp("saved")
    settings = STORED[request.param]
    if request.param == "azure":
        server = request.getfixturevalue("azurite")
        settings = {"store": "azure", "connection_string": server.connection_string, "container_name": folder.name}
    workspace = Workspace(folder / "work", make_tree(folder / "source"), **settings)
    workspace.run("index")
    workspace.run("save", *(["--create-container"] if request.param == "azure" else []))
    return workspace


def output(workspace: Workspace, *options: str, expect: int = 0) -> tuple[bytes, list[str]]:
    """Return what a restore writes to standard output, and what it says."""
    done = workspace.execute("restore", *options)
    stderr = done.stderr.decode(errors="surrogateescape")
    assert (done.returncode, "Traceback" in stderr) == (expect, False), stderr
    return done.stdout, stderr.splitlines()


def extracted(tar: bytes, to: Path, *options: str) -> str:
    """Extract with the tar of this machine; return what it says."""
    to.mkdir()
    command = ["tar", "-C", str(to), "-xp", "--xattrs", "--xattrs-include=*", *options]
    done = subprocess.run(command, input=tar, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr.decode()


def test_gnu_tar_makes_the_tree_of_it(saved: Workspace, tmp_path: Path) -> None:
    tar, said = output(saved, "--tar")
    assert said == ["warning: socket is a socket, which no tar can hold"]
    assert len(tar) % 10_240 == 0
    extracted(tar, tmp_path / "to")
    saved.run("restore", "--to", str(tmp_path / "restored"))
    different = differences(str(tmp_path / "restored"), str(tmp_path / "to"))
    assert different == [f"'socket': only in {tmp_path / 'restored'}"]


def test_the_tarfile_of_python_reads_it_too(saved: Workspace) -> None:
    tar, _ = output(saved, "--tar")
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        members = {member.name: member for member in archive.getmembers()}
        large, sparse = archive.extractfile("large"), archive.extractfile("sparse")
        assert large
        assert large.read() == (saved.source / "large").read_bytes()
        assert sparse
        assert sparse.read() == (saved.source / "sparse").read_bytes()
    assert members["hard/second"].linkname == "hard/first" or members["hard/second"].islnk()
    assert float(members["old"].pax_headers["mtime"]) == 86_400.000000123
    assert members["symlink"].linkname == "small"


def test_a_part_goes_into_a_tar_with_stripped_names(saved: Workspace, tmp_path: Path) -> None:
    tar, _ = output(saved, "order", "--exclude", "a0/", "--strip", "1", "--no-owner", "--tar")
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        assert sorted(archive.getnames()) == ["a", "a-b", "a-b/f", "a.b", "a.b/f", "a/f"]
        assert {member.uid for member in archive.getmembers()} == {os.geteuid()}
    tar, said = output(saved, "small", "nowhere", "--tar", expect=3)
    assert said == [f"failed: {saved.source}/nowhere: is not in the snapshot"]
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        assert archive.getnames() == [".", "small"]


@pytest.mark.parametrize("name", ["small", "large", "sparse", "only-hole", "empty-file", "hard/second", "one-block"])
def test_cat_gives_the_content_of_one_file(saved: Workspace, name: str) -> None:
    content, said = output(saved, "--cat", f"{saved.source}/{name}")
    assert content == (saved.source / name).read_bytes()
    assert said == []


def test_cat_gives_a_file_whose_name_is_not_utf_8(saved: Workspace) -> None:
    assert output(saved, "--cat", os.fsdecode(b"odd/not utf-8 \xff\xfe"))[0] == b"odd 2"


@pytest.mark.parametrize("name", ["odd", "symlink", "fifo", "nowhere"])
def test_cat_takes_one_regular_file(saved: Workspace, name: str) -> None:
    content, said = output(saved, "--cat", name, expect=2)
    assert (content, len(said)) == (b"", 1)


@pytest.mark.parametrize("options", [["--tar"], ["--cat", "large"]], ids=["tar", "cat"])
def test_a_reader_who_leaves_is_no_failure(saved: Workspace, options: list[str]) -> None:
    process = subprocess.Popen(saved.command("restore", *options), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout
    assert process.stderr
    process.stdout.read(100)
    process.stdout.close()
    stderr = process.stderr.read()
    process.stderr.close()
    assert (process.wait(timeout=60), stderr) == (0, b"")


# Content that is damaged


def damaged(forge_path: Path, at: int) -> None:
    """Turn a byte of a stored blob."""
    forge_path.chmod(0o600)
    data = bytearray(forge_path.read_bytes())
    data[at] ^= 1
    forge_path.write_bytes(data)


def blob_of(workspace: Workspace, name: str) -> Path:
    """Return the file of a plain blob in a folder store."""
    key = workspace.guids()[name]
    return workspace.store / key[-2:] / key


def test_a_damaged_small_file_is_left_out_of_a_tar_and_named(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "work", small_tree(tmp_path / "source", "a", "b", "c"))
    os.link(tmp_path / "source" / "b", tmp_path / "source" / "link")
    workspace.backup()
    damaged(blob_of(workspace, "b"), 3)
    tar, said = output(workspace, "--tar", expect=3)
    assert [line.split(": ")[:2] for line in said] == [["failed", "b"], ["failed", "link"]]
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        assert archive.getnames() == [".", "a", "c"]
    content, said = output(workspace, "--cat", "b", expect=3)
    assert (content, len(said)) == (b"", 1)


@pytest.mark.parametrize("how", ["turned", "cut"])
def test_a_large_file_that_breaks_off_leaves_the_tar_readable(tmp_path: Path, how: str) -> None:
    source = small_tree(tmp_path / "source", "a", "z")
    content = os.urandom(70 << 20)
    (source / "large").write_bytes(content)
    workspace = Workspace(tmp_path / "work", source)
    workspace.backup()
    blob = blob_of(workspace, "large")
    if how == "turned":
        damaged(blob, 60 << 20)
    else:
        os.truncate(blob, 60 << 20)
    tar, said = output(workspace, "--tar", expect=3)
    assert [line.split(": ")[:2] for line in said] == [["failed", "large"]]
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        assert archive.getnames() == [".", "a", "large", "z"]
        large, last = archive.extractfile("large"), archive.extractfile("z")
        assert large
        assert last
        data = large.read()
        assert (len(data), last.read()) == (len(content), b"content of z")
    right = next(at for at in range(0, len(data), 1 << 20) if data[at : at + (1 << 20)] != content[at : at + (1 << 20)])
    assert 0 < right <= 60 << 20
    assert not any(data[right + (9 << 20) :])
    content_of, said = output(workspace, "--cat", "large", expect=3)
    assert content.startswith(content_of)
    assert len(said) == 1


def test_hostile_entries_make_no_hostile_tar(scene: Scene) -> None:
    forge = scene.forge
    forge.snapshot(forge.file("a"), forge.file("../b"))
    done = subprocess.run(scene.workspace.command("restore", "--tar"), capture_output=True, check=False)
    assert done.returncode == 4
    assert b"../b" not in done.stdout
    forge.snapshot(
        forge.file("attributes", xattrs={"user.a=b%": b64(b"\0\xff"), "user.\ud8ff": b64(b"x")}),
        forge.file("fine", xattrs={"user.a=b%": b64(b"\0\xff")}),
        item("link", "file", hardlink_to="nowhere"),
        item("mode", "dir", mode=-1),
    )
    done = subprocess.run(scene.workspace.command("restore", "--tar"), capture_output=True, check=False)
    assert done.returncode in (3, 4), done.stderr
    if done.returncode == 3:
        with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
            assert archive.getnames() == [".", "fine"]


def test_incomplete_snapshots_say_so_in_a_tar_too(scene: Scene) -> None:
    forge = scene.forge
    forge.snapshot(forge.file("a"), complete=False, rescued=True)
    done = subprocess.run(scene.workspace.command("restore", "--tar"), capture_output=True, check=False)
    assert (done.returncode, b"it was rescued" in done.stderr) == (3, True)


def test_memory_stays_small(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(2):
        (source / f"large {number}").write_bytes(os.urandom(1 << 20) * 150)
    workspace = Workspace(tmp_path / "work", source, max_memory="64MiB", compression="zstd")
    workspace.backup()
    command = ["-S", "tests/peak.py", *workspace.command("restore", "--tar")]
    with subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, cwd=REPOSITORY) as process:
        assert process.stdout
        tail = b""
        while piece := process.stdout.read(1 << 20):
            tail = (tail + piece)[-100:]
    assert b'"code": 0' in tail
    assert int(tail.rpartition(b": ")[2].rstrip(b"}\n")) < 220 << 20
