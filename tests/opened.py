"""Tells which files somebody opens, by asking the kernel (inotify): the proof that a file was not read."""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from collections.abc import Iterator
from pathlib import Path

IN_OPEN = 0x20
IN_ISDIR = 0x40000000
_EVENT = struct.Struct("iIII")


@contextlib.contextmanager
def opened_below(top: Path) -> Iterator[set[str]]:
    """Yield a set that holds, once the block has ended, the paths of the files below `top` that were opened in it."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    assert descriptor >= 0, os.strerror(ctypes.get_errno())
    found: set[str] = set()
    try:
        folders = {}
        for folder, _, _ in os.walk(top):
            watch = libc.inotify_add_watch(descriptor, os.fsencode(folder), IN_OPEN)
            assert watch >= 0, os.strerror(ctypes.get_errno())
            folders[watch] = folder
        yield found
        with contextlib.suppress(BlockingIOError):
            while data := os.read(descriptor, 1 << 20):
                offset = 0
                while offset < len(data):
                    watch, mask, _, length = _EVENT.unpack_from(data, offset)
                    name = os.fsdecode(data[offset + _EVENT.size :][:length].rstrip(b"\0"))
                    if name and not mask & IN_ISDIR:
                        found.add(os.path.relpath(os.path.join(folders[watch], name), top))
                    offset += _EVENT.size + length
    finally:
        os.close(descriptor)
