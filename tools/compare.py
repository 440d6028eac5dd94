"""Compare two trees by means that share nothing with Blobark: lstat, sha256, readlink, listxattr.

    python3 tools/compare.py LEFT RIGHT

Exits 0 when every item of one is in the other with the same kind, content, mode, owner, times (to the
nanosecond), link target, device numbers, extended attributes, holes and hard-link groups; names each difference and
exits 1 otherwise.
Standard library only. The times of the two top directories themselves are compared like any other.
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys

Facts = dict[str, object]

SET_ID = stat.S_ISUID | stat.S_ISGID
PRIVILEGED = ("security.", "trusted.")
"""Attributes that only root can set."""


def facts_of(top: str) -> dict[bytes, Facts]:
    """Return what each item below `top` (and `top` itself, as b"") is, by relative path."""
    found: dict[bytes, Facts] = {}
    first_paths: dict[tuple[int, int], bytes] = {}
    waiting = [b""]
    while waiting:
        path = waiting.pop()
        full = os.path.join(os.fsencode(top), path) if path else os.fsencode(top)
        status = os.lstat(full)
        found[path] = _facts(full, status)
        if stat.S_ISDIR(status.st_mode):
            waiting.extend(os.path.join(path, name) for name in os.listdir(full))
    for path in sorted(found):
        status = os.lstat(os.path.join(os.fsencode(top), path))
        if stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
            first = first_paths.setdefault((status.st_dev, status.st_ino), path)
            if first != path:  # links that lie outside the tree are not its business
                found[path]["linked to"] = first
    return found


def _facts(full: bytes, status: os.stat_result) -> Facts:
    kind = stat.S_IFMT(status.st_mode)
    facts: Facts = {
        "kind": kind,
        "mode": oct(stat.S_IMODE(status.st_mode)),
        "owner": (status.st_uid, status.st_gid),
        "mtime": status.st_mtime_ns,
        "xattrs": {
            name: os.getxattr(full, name, follow_symlinks=False) for name in os.listxattr(full, follow_symlinks=False)
        }
        if hasattr(os, "listxattr")
        else {},
    }
    if kind == stat.S_IFLNK:
        facts["target"] = os.readlink(full)
    elif kind in (stat.S_IFCHR, stat.S_IFBLK):
        facts["device"] = status.st_rdev
    elif kind == stat.S_IFREG:
        facts["size"] = status.st_size
        facts["sha256"] = _sha256(full)
        facts["holes"] = status.st_blocks * 512 < status.st_size
    return facts


def _sha256(full: bytes) -> str:
    digest = hashlib.sha256()
    with open(full, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def differences(left: str, right: str, *, restored_by: tuple[int, int] | None = None) -> list[str]:
    """Return one line for each item that is not the same on both sides.

    With the uid and gid of somebody who is not root, the right side is to be what they can restore of the left: it is
    all theirs, without set-id bits that were meant for others, and without attributes that only root can set.
    """
    a, b = facts_of(left), facts_of(right)
    if restored_by:
        a = {path: _owned(_settable(facts), restored_by) for path, facts in a.items()}
        b = {path: _settable(facts) for path, facts in b.items()}
    lines = []
    for path in sorted(a.keys() | b.keys()):
        name = ascii(os.fsdecode(path)) if path else "(the top)"
        if path not in b:
            lines.append(f"{name}: only in {left}")
        elif path not in a:
            lines.append(f"{name}: only in {right}")
        else:
            lines += [
                f"{name}: {fact}: {a[path].get(fact)!r} is now {b[path].get(fact)!r}"
                for fact in a[path].keys() | b[path].keys()
                if a[path].get(fact) != b[path].get(fact)
            ]
    return lines


def _settable(facts: Facts) -> Facts:
    xattrs = facts["xattrs"]
    assert isinstance(xattrs, dict)
    return {**facts, "xattrs": {name: value for name, value in xattrs.items() if not name.startswith(PRIVILEGED)}}


def _owned(facts: Facts, owner: tuple[int, int]) -> Facts:
    mode = int(str(facts["mode"]), 8)
    return {**facts, "owner": owner, "mode": oct(mode if facts["owner"] == owner else mode & ~SET_ID)}


if __name__ == "__main__":
    found = differences(sys.argv[1], sys.argv[2])
    print("\n".join(found) if found else f"{len(facts_of(sys.argv[1]))} items, no difference")
    sys.exit(1 if found else 0)
