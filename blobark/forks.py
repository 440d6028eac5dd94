"""What processes of our own have in common: when one may be forked, how they talk, and what stops one of them."""

from __future__ import annotations

import os
import struct
import threading
import traceback

import msgspec

from blobark import errors
from blobark.errors import BlobarkError, Fatal

_LENGTH = struct.Struct("<I")
LENGTH_BYTES = _LENGTH.size


class Bug(Exception):
    """One of them met an error that nobody foresaw; the text is its traceback."""


class Failure(msgspec.Struct, frozen=True):
    """What stopped a process: the name of an error of ours with its texts, or the traceback of a bug."""

    error: str
    message: str
    hint: str = ""

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """Return what is to be said of an error that is being handled."""
        if isinstance(error, BlobarkError):
            return cls(type(error).__name__, error.message, error.hint)
        return cls("", traceback.format_exc())

    def raised(self) -> Exception:
        """Return the error, to be raised in another process."""
        kind = getattr(errors, self.error, None) if self.error else None
        return Bug(self.message) if kind is None else kind(self.message, self.hint)


def death() -> Fatal:
    """Return what is to be raised where a process has ended without a word."""
    return Fatal(
        "one of the run's own processes has ended before its time",
        "see the system's log (out of memory?) and run it again to go on where it stopped",
    )


def has_one_thread() -> bool:
    """Whether this process may be forked: its other threads would be missing in the fork."""
    try:
        return len(os.listdir("/proc/self/task")) == 1
    except OSError:
        return threading.active_count() == 1


def framed(body: bytes) -> bytes:
    """Return a message as it goes over the line: its length, then what it says."""
    return _LENGTH.pack(len(body)) + body


def length_of(head: bytes) -> int:
    """Return the length of a message from its first `LENGTH_BYTES`."""
    return int(_LENGTH.unpack(head)[0])


def take_frame(received: bytearray) -> bytes | None:
    """Take one whole message from the front of what was received, None when there is none yet."""
    if len(received) < LENGTH_BYTES:
        return None
    end = LENGTH_BYTES + _LENGTH.unpack_from(received)[0]
    if len(received) < end:
        return None
    body = bytes(received[LENGTH_BYTES:end])
    del received[:end]
    return body
