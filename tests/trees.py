"""Real trees for tests: one with every kind of item, made as root or not."""

from __future__ import annotations

import os
import socket
from pathlib import Path

ODD_NAMES = (
    b"new\nline",
    b"escape\x1b[31mred",
    b"not utf-8 \xff\xfe",
    b'tab\tquote"back\\slash',
    "grüße".encode(),
    b"n" * 255,
    b"-rf",
    b"...",
    b"%41",
)


def write(file: Path, content: bytes | str) -> Path:
    """Write a file, in folders that are made for it; return it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def small_tree(top: Path, *names: str) -> Path:
    """Make a tree of files, each with a content that tells its name."""
    for name in names:
        write(top / name, f"content of {name}")
    return top


def contents_of(top: Path) -> dict[str, bytes]:
    """Return the content of every file below a folder."""
    return {str(file.relative_to(top)): file.read_bytes() for file in top.rglob("*") if file.is_file()}


def make_tree(top: Path) -> Path:
    """Make a tree with every kind of item, odd names, holes, hard links, odd modes and times, and one large file."""
    top.mkdir(parents=True)
    _files(top)
    _links(top)
    _special(top)
    for number, name in enumerate(ODD_NAMES):
        path = os.path.join(os.fsencode(top), b"odd", name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(b"odd %d" % number)
    deep = top.joinpath(*["deep"] * 40)
    deep.mkdir(parents=True)
    (deep / "bottom").write_bytes(b"at the bottom")
    os.chmod(top / "dir-mode", 0o500)
    return top


def _files(top: Path) -> None:
    (top / "empty-file").write_bytes(b"")
    (top / "empty-dir").mkdir()
    (top / "small").write_bytes(b"small\n")
    (top / "large").write_bytes(os.urandom(19 * 1024 * 1024 + 5))
    (top / "one-block").write_bytes(b"\xa5" * (8 * 1024 * 1024))
    with open(top / "sparse", "wb") as file:
        file.write(b"start")
        file.seek(40 * 1024 * 1024)
        file.write(b"middle")
        file.truncate(90 * 1024 * 1024)
    with open(top / "only-hole", "wb") as file:
        file.truncate(1024 * 1024)
    (top / "mode").write_bytes(b"mode")
    os.chmod(top / "mode", 0o4751)
    (top / "read-only").write_bytes(b"read only")
    os.chmod(top / "read-only", 0o400)
    (top / "dir-mode").mkdir()
    (top / "dir-mode" / "inside").write_bytes(b"inside")
    (top / "old").write_bytes(b"old")
    os.utime(top / "old", ns=(1_000_000_007, 86_400_000_000_123))
    (top / "before-1970").write_bytes(b"before")
    os.utime(top / "before-1970", ns=(0, -5_000_000_001))
    for name in ("a", "a.b", "a-b", "a0"):  # sorted by components, not by whole paths
        (top / "order" / name).mkdir(parents=True)
        (top / "order" / name / "f").write_bytes(name.encode())
    os.setxattr(top / "small", "user.colour", b"blue\0green")
    os.setxattr(top / "empty-dir", "user.note", b"a directory's")


def _links(top: Path) -> None:
    os.symlink("small", top / "symlink")
    os.symlink("/nowhere/at all", top / "dangling")
    os.symlink(os.fsencode("to \udcff"), os.fsencode(top / "symlink-bytes"))
    os.utime(top / "symlink", ns=(5, 1_234_567_890_123_456_789), follow_symlinks=False)
    (top / "hard").mkdir()
    (top / "hard" / "first").write_bytes(b"hard linked")
    os.link(top / "hard" / "first", top / "hard" / "second")
    os.link(top / "hard" / "first", top / "a-link-that-sorts-before")


def _special(top: Path) -> None:
    os.mkfifo(top / "fifo", 0o640)
    listener = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    os.chdir(top)  # the path of a socket may have 107 bytes
    try:
        listener.bind("socket")
    finally:
        os.chdir(here)
        listener.close()
    if os.geteuid() == 0:
        os.mknod(top / "char", 0o20600, os.makedev(1, 3))
        os.mknod(top / "block", 0o60600, os.makedev(7, 200))
        os.chown(top / "small", 1234, 5678)
        os.chown(top / "symlink", 1234, 5678, follow_symlinks=False)
