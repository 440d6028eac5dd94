"""Copy a tree of small files with nothing but the system calls that this takes, in one process a processor.

    python bench/bare.py --blobs TREE FOLDER     each file under a number in one of 256 folders; synced in the end
    python bench/bare.py FOLDER TREE             a tree again, each file with its mode and time

No digest, no names that are kept, no metadata beyond that, nothing that would survive a crash in the middle: what a
program that makes a file for each file can come near to, and not below.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

FOLDERS = 256
_Copy = tuple[str, str]
"""From where to where."""


def main() -> int:
    """Copy; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blobs", action="store_true", help="make a store of it, and sync that")
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    args = parser.parse_args()
    copies = _as_blobs(args.source, args.target) if args.blobs else _as_tree(args.source, args.target)
    pids = []
    parts = os.cpu_count() or 1
    for part in range(parts):
        pid = os.fork()
        if pid == 0:
            _copy(copies[len(copies) * part // parts : len(copies) * (part + 1) // parts], keep=not args.blobs)
            os._exit(0)
        pids.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    if args.blobs:
        os.sync()
    return max(map(abs, codes))


def _as_blobs(source: Path, target: Path) -> list[_Copy]:
    for number in range(FOLDERS):
        (target / str(number)).mkdir(parents=True)
    names = (os.path.join(folder, name) for folder, _, names in os.walk(source) for name in names)
    return [(name, f"{target}/{number % FOLDERS}/{number}") for number, name in enumerate(names)]


def _as_tree(source: Path, target: Path) -> list[_Copy]:
    copies = []
    for folder, _, names in os.walk(source):
        there = target / os.path.relpath(folder, source)
        there.mkdir(parents=True, exist_ok=True)
        copies += [(f"{folder}/{name}", f"{there}/{name}") for name in names]
    return copies


def _copy(copies: list[_Copy], *, keep: bool) -> None:
    """Copy some files; `keep` their modes and times."""
    for source, target in copies:
        file = os.open(source, os.O_RDONLY)
        status = os.fstat(file)
        data = os.read(file, status.st_size + 1)
        os.close(file)
        file = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        os.write(file, data)
        if keep:
            os.fchmod(file, status.st_mode & 0o7777)
            os.utime(file, ns=(status.st_mtime_ns, status.st_mtime_ns))
        os.close(file)


if __name__ == "__main__":
    sys.exit(main())
