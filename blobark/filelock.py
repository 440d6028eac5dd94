"""Locks of this machine: an exclusive flock, which the kernel lets go of when its last holder has ended."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from blobark.errors import Fatal, LockHeld
from blobark.holder import boot_id, read_holder, this_process

PATIENCE_S = 1.0
"""A run that was killed has processes of its own, which end a moment after it."""
_MOST_BYTES = 4096


def lock(descriptor: int, patience_s: float = PATIENCE_S) -> bool:
    """Lock an open file or directory for this process and its forks; say whether it could be had. Raises `OSError`."""
    until_s = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= until_s:
                return False
            time.sleep(0.01)


def lock_named(descriptor: int, name: str, patience_s: float = PATIENCE_S) -> bool:
    """As `lock`; its error says what could not be locked. Raises `Fatal`."""
    try:
        return lock(descriptor, patience_s)
    except OSError as error:
        hint = "use a disk of this machine, or, of NFS, mount it with locks or with `nolock`"
        raise Fatal(f"{name} cannot be locked ({error.strerror})", hint) from None


@contextlib.contextmanager
def state_lock(
    state_dir: Path, command: str, *, hint: str = "wait until it has finished", pause: Callable[[], None] | None = None
) -> Iterator[str]:
    """Hold the one writer's lock of a state folder, which is made (0700) when missing, for a command.

    Its file says who holds it, for the error of whoever finds it held; nothing else reads it. Where another run holds
    it, `pause` is called between one try and the next, until it raises or the lock is had; without it that is
    `LockHeld`. The kernel lets go of the lock when the process ends, however it ends. Yields what the holder is known
    as to other locks: a GUID that no other process has while this one lives, and that the next holder on this machine
    has too; "" where there is none.

    Raises:
        LockHeld: another run holds it; `hint` is what its error advises.
        Fatal: the folder cannot be used, or not be locked.
    """
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(state_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        advice = "check who owns it, or name another in the configuration"
        raise Fatal(f"state_dir {state_dir} cannot be used ({error.strerror})", advice) from None
    try:
        patience_s = PATIENCE_S
        while not lock_named(descriptor, f"state_dir {state_dir}", patience_s):
            if pause is None:
                who = read_holder(os.pread(descriptor, _MOST_BYTES, 0)).described
                told = f" ({who})" if who else ""
                raise LockHeld(f"another run holds the lock of {state_dir}{told}", hint)
            pause()
            patience_s = 0.0
        _write(descriptor, msgspec.json.encode(this_process("", "", command)))
        yield _known_as(os.fstat(descriptor))
        _write(descriptor, b"")  # whoever ends with an error, or is killed, may leave its name: nobody reads it then
    finally:
        os.close(descriptor)


def _write(descriptor: int, text: bytes) -> None:
    with contextlib.suppress(OSError):  # a full disk must not keep a restore or a prune from running
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text, 0)


def _known_as(status: os.stat_result) -> str:
    """Return a GUID for the holder of a lock's file: this file, on this machine, since it was started."""
    boot = boot_id()
    return str(uuid.uuid5(uuid.NAMESPACE_OID, f"{boot} {status.st_dev} {status.st_ino}")) if boot else ""
