"""The tar headers of a pack's members: GNU's, byte for byte as Python's tarfile makes them, in a tenth of the time.

    form      what the members of one owner and mode have in common: made by tarfile, once
    header    the form with name, length, time and checksum; a name of more than 100 bytes goes before it, as a block
              of its own whose header tarfile makes once for each length

A length or a time that has no eleven octal digits is tarfile's to write.
"""

from __future__ import annotations

import tarfile
import zlib
from functools import lru_cache
from typing import NamedTuple

from blobark.model import Entry

TAR_BLOCK_BYTES = 512
_NAME_BYTES = 100
_NUMBERS_AT, _TYPE_AT = 124, 156
"""Where length, time and checksum stand, and where the rest begins."""
_NO_CHECKSUM = b" " * 8
"""What the checksum is counted as."""
_NUMBER_LIMIT = 8**11


_Owner = tuple[int, int, int, str, str]
"""Mode, numbers of owner and group, names of both."""


class _Form(NamedTuple):
    """A header without name, length, time and checksum; `total` is the sum of what is there."""

    owner: bytes
    rest: bytes
    total: int


def header_of(path: bytes, entry: Entry, size_bytes: int) -> bytes:
    """Return what comes before a member's data in a pack; `path` is absolute."""
    name, mtime_s = path.lstrip(b"/"), entry.mtime_ns // 1_000_000_000
    owner = entry.mode, entry.uid, entry.gid, entry.user, entry.group
    if not (0 <= size_bytes < _NUMBER_LIMIT and 0 <= mtime_s < _NUMBER_LIMIT):
        return _made(name, owner, size_bytes, mtime_s)
    form = _form(owner)
    numbers = b"%011o\0%011o\0" % (size_bytes, mtime_s)
    first = name[:_NAME_BYTES].ljust(_NAME_BYTES, b"\0")
    checksum = b"%06o\0 " % (form.total + _sum(first) + _sum(numbers))
    header = b"".join((first, form.owner, numbers, checksum, form.rest))
    return header if len(name) <= _NAME_BYTES else _long_name(len(name)) + padded(name + b"\0") + header


def header_bytes(path_bytes: int) -> int:
    """Return how long what comes before a member's data is, for an absolute path of this length."""
    name_bytes = path_bytes - 1
    if name_bytes <= _NAME_BYTES:
        return TAR_BLOCK_BYTES
    return 2 * TAR_BLOCK_BYTES + (name_bytes // TAR_BLOCK_BYTES + 1) * TAR_BLOCK_BYTES


def padded(data: bytes) -> bytes:
    """Return a member's data as a tar has it."""
    return data + bytes(-len(data) % TAR_BLOCK_BYTES)


@lru_cache(maxsize=1024)
def _form(owner: _Owner) -> _Form:
    made = _made(b"", owner, 0, 0)
    before, rest = made[_NAME_BYTES:_NUMBERS_AT], made[_TYPE_AT:]
    return _Form(before, rest, sum(before) + sum(_NO_CHECKSUM) + sum(rest))


@lru_cache(maxsize=1024)
def _long_name(length: int) -> bytes:
    return _made(b"x" * length, (0, 0, 0, "", ""), 0, 0)[:TAR_BLOCK_BYTES]


def _sum(data: bytes) -> int:
    """Return the sum of some bytes: of up to 256 Adler-32 has it in its lower half, and counts in C."""
    return (zlib.adler32(data) & 0xFFFF) - 1


def _made(name: bytes, owner: _Owner, size_bytes: int, mtime_s: int) -> bytes:
    info = tarfile.TarInfo(name.decode(errors="surrogateescape"))
    info.mode, info.uid, info.gid, info.uname, info.gname = owner
    info.size, info.mtime = size_bytes, mtime_s
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
