"""Who holds a lock in a store, as the lock itself says it, and whether that process is known to have ended.

A process is known by its number, the moment it started, the boot of the kernel and the namespace that counts it: a
number that is used again, another machine and another container are never taken for it.
"""

from __future__ import annotations

import contextlib
import os
import socket

import msgspec

from blobark.clock import now_ns, utc
from blobark.model import printable


class Holder(msgspec.Struct, frozen=True, omit_defaults=True):
    """A process that has a lock. `id` is a GUID that no other process has while this one lives."""

    id: str = ""
    server: str = ""
    host: str = ""
    pid: int = 0
    command: str = ""
    since: str = ""
    """UTC, RFC 3339."""
    boot: str = ""
    """The kernel's boot and the namespace of process numbers; "" where the system tells neither."""
    started: str = ""
    """When the process started, in the kernel's own count."""

    @property
    def described(self) -> str:
        """Who this is, for a person; "" where it says nothing."""
        if not self.host:
            return ""
        return printable(f"{self.command} on {self.host} (process {self.pid}) since {self.since}")

    @property
    def is_gone(self) -> bool:
        """Whether this process is known to have ended: it ran here, and runs no more."""
        return self.boot != "" and self.boot == _boot() and _started(self.pid) not in (None, self.started)


def this_process(holder_id: str, server: str, command: str) -> Holder:
    """Return who this process is, about to lock a server for a command."""
    pid = os.getpid()
    return Holder(
        id=holder_id,
        server=server,
        host=socket.gethostname(),
        pid=pid,
        command=command,
        since=utc(now_ns()),
        boot=_boot(),
        started=_started(pid) or "",
    )


def read_holder(text: bytes) -> Holder:
    """Return who a lock says has it; one who says nothing where it cannot be read."""
    try:
        return msgspec.json.decode(text, type=Holder)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return Holder()


def boot_id() -> str:
    """Return the id of the kernel's boot, "" where it has none."""
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()
    return ""


def _boot() -> str:
    boot = boot_id()
    with contextlib.suppress(OSError):
        return f"{boot} {os.readlink('/proc/self/ns/pid')}" if boot else ""
    return ""


def _started(pid: int) -> str | None:
    """Return when a process of this namespace started, "" when there is none, None when that cannot be told."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        return "" if fields[0] in (b"Z", b"X") else fields[19].decode()
    except (OSError, IndexError):
        pass
    try:
        os.kill(pid, 0)  # what belongs to others may be hidden
    except ProcessLookupError:
        return ""
    except OSError:
        return None
    return None
