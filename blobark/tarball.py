"""A tar of entries, in the POSIX format (pax), as GNU tar, bsdtar and Python's tarfile read it.

Names and attributes are bytes (`hdrcharset=BINARY` where they are not UTF-8), times have nanoseconds, extended
attributes are `SCHILY.xattr.*`, sparse files are GNU's sparse format 1.0. A tar holds no sockets.
"""

from __future__ import annotations

import base64
import tarfile

from blobark.model import Entry

BLOCK_BYTES = 512
RECORD_BYTES = 10_240
_TYPES = {
    "file": tarfile.REGTYPE,
    "dir": tarfile.DIRTYPE,
    "symlink": tarfile.SYMTYPE,
    "fifo": tarfile.FIFOTYPE,
    "char": tarfile.CHRTYPE,
    "block": tarfile.BLKTYPE,
}


def header(entry: Entry, path: bytes, first: bytes = b"") -> bytes:
    """Return what comes before the content of an item under this path; `first` is what it is a further hard link of.

    Raises `ValueError` for a name of an attribute that no tar can hold.
    """
    info = tarfile.TarInfo(_text(path or b"."))
    info.type = tarfile.LNKTYPE if first else _TYPES[entry.kind]
    info.mode, info.uid, info.gid = entry.mode, entry.uid, entry.gid
    info.uname, info.gname = entry.user, entry.group
    info.mtime = entry.mtime_ns // 1_000_000_000
    info.pax_headers = _records(entry)
    if first:
        info.linkname = _text(first)
    elif entry.kind == "symlink":
        info.linkname = _text(entry.raw_link)
    elif entry.rdev is not None:
        info.devmajor, info.devminor = entry.rdev
    if entry.kind != "file" or first:
        return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
    info.size = entry.size
    if entry.ranges is None:
        return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
    sparse = _sparse_map(entry)
    info.size = len(sparse) + entry.content_size
    above, _, name = path.rpartition(b"/")
    info.name = _text(b"/".join(part for part in (above, b"GNUSparseFile.0", name) if part))
    info.pax_headers |= {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": _text(path),
        "GNU.sparse.realsize": str(entry.size),
    }
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape") + sparse


def padding(size_bytes: int) -> bytes:
    """Return what comes after content of this length; a sparse map is a whole number of blocks."""
    return bytes(-size_bytes % BLOCK_BYTES)


def end(written_bytes: int) -> bytes:
    """Return what ends a tar that has so many bytes so far."""
    return bytes(2 * BLOCK_BYTES + -(written_bytes + 2 * BLOCK_BYTES) % RECORD_BYTES)


def _records(entry: Entry) -> dict[str, str]:
    records = {}
    if entry.mtime_ns % 1_000_000_000 or entry.mtime_ns < 0:
        seconds, rest = divmod(abs(entry.mtime_ns), 1_000_000_000)
        records["mtime"] = f"{'-' if entry.mtime_ns < 0 else ''}{seconds}.{rest:09}"
    for name, value in (entry.xattrs or {}).items():
        name.encode()
        keyword = name.replace("%", "%25").replace("=", "%3D")
        records[f"SCHILY.xattr.{keyword}"] = _text(base64.b64decode(value))
    return records


def _sparse_map(entry: Entry) -> bytes:
    ranges = list(entry.ranges or ())
    if not ranges or sum(ranges[-1]) < entry.size:
        ranges.append((entry.size, 0))
    text = b"%d\n" % len(ranges) + b"".join(b"%d\n%d\n" % pair for pair in ranges)
    return text + padding(len(text))


def _text(raw: bytes) -> str:
    return raw.decode(errors="surrogateescape")
