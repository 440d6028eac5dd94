"""Locks of this machine: an exclusive flock, which the kernel lets go of when its last holder has ended."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from blobark.errors import Fatal, LockHeld

PATIENCE_S = 1.0
"""A run that was killed has processes of its own, which end a moment after it."""


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


@contextlib.contextmanager
def state_lock(state_dir: Path) -> Iterator[None]:
    """Hold the one writer's lock of a state folder, which is made (0700) when missing.

    The kernel lets go of it when the process ends, however it ends. Raises `LockHeld`, `Fatal`.
    """
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(state_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Fatal(f"state_dir {state_dir} cannot be used ({error.strerror})") from None
    try:
        if not lock(descriptor):
            raise LockHeld(f"another run holds the lock of {state_dir}", "wait until it has finished")
        yield
    finally:
        os.close(descriptor)
