"""The headers of a pack's members, beside those that Python's tarfile makes."""

from __future__ import annotations

import os
import tarfile
from random import Random

import pytest

from blobark.model import Entry
from blobark.tarheader import header_bytes, header_of

SECOND_NS = 1_000_000_000
LIMITS_NS = (8**11 * SECOND_NS - 1, 8**11 * SECOND_NS)


def made_by_tarfile(path: bytes, entry: Entry, size_bytes: int) -> bytes:
    info = tarfile.TarInfo(os.fsdecode(path.lstrip(b"/")))
    info.size, info.mode, info.uid, info.gid = size_bytes, entry.mode, entry.uid, entry.gid
    info.uname, info.gname, info.mtime = entry.user, entry.group, entry.mtime_ns // SECOND_NS
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


def path_of(dice: Random) -> bytes:
    """Return a path of any length, of letters or of any bytes that a name can have."""
    length = dice.choice([1, 7, 40, 99, 100, 101, 102, 511, 512, 513, dice.randrange(1, 4096)])
    if dice.random() < 0.5:
        text = bytes(dice.choices(b"abcdefghijklmnopqrstuvwxyz0123456789-_. /", k=length))
    elif dice.random() < 0.5:
        text = "".join(dice.choices("aäß€中😀\u0301", k=length)).encode()[:length]
    else:
        text = bytes(dice.choices(range(1, 256), k=length))
    return b"/x" + text


def entry_of(dice: Random) -> Entry:
    return Entry(
        mode=dice.choice([0o644, 0o600, 0o4755, 0o7777, 0]),
        uid=dice.choice([0, 1000, 8**7 - 1, 8**7, 2**32 - 2]),
        gid=dice.choice([0, 1000, 8**7 - 1, 8**7, 2**32 - 2]),
        user=dice.choice(["", "root", "jörg", "u" * 31, "u" * 32, "u" * 40]),
        group=dice.choice(["", "root", "größe", "g" * 32, "g" * 33]),
        mtime_ns=dice.choice([0, SECOND_NS - 1, 1_763_760_000_123_456_789, *LIMITS_NS, -1, -5_000_000_000]),
    )


@pytest.mark.parametrize("seed", range(20))
def test_headers_are_those_of_tarfile(seed: int) -> None:
    dice = Random(seed)
    for _ in range(300):
        path, entry = path_of(dice), entry_of(dice)
        size = dice.choice([0, 1, 511, 512, 4096, dice.randrange(65536), 8**11 - 1, 8**11, 8**12])
        assert header_of(path, entry, size) == made_by_tarfile(path, entry, size), (path, entry, size)
        assert header_bytes(len(path)) == len(header_of(path, entry, size)), path
