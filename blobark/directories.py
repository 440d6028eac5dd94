"""Directories below a descriptor, reached one component at a time and never through a symlink."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Directories:
    """Opens directories below `top`; each thread keeps the one it asked for last, since the next is often the same."""

    def __init__(self, top: int) -> None:
        self._top = top
        self._here = threading.local()
        self._opened: set[int] = set()
        self._lock = threading.Lock()

    def open(self, path: bytes) -> int:
        """Return a descriptor of the directory `path`, good until this thread asks for another. Raises `OSError`."""
        here = self._here
        if getattr(here, "path", None) == path:
            return int(here.descriptor)
        descriptor = os.dup(self._top)
        for component in path.split(b"/") if path else ():
            try:
                below = os.open(component, _DIRECTORY, dir_fd=descriptor)
            finally:
                os.close(descriptor)
            descriptor = below
        with self._lock:
            if hasattr(here, "descriptor"):
                self._opened.discard(here.descriptor)
                os.close(here.descriptor)
            self._opened.add(descriptor)
        here.path, here.descriptor, here.fact = path, descriptor, None
        return descriptor

    def fact(self, look: Callable[[int], bool]) -> bool:
        """Return what `look` finds out about the directory that this thread has open, which it does once."""
        here = self._here
        if here.fact is None:
            here.fact = look(here.descriptor)
        return bool(here.fact)

    def close(self) -> None:
        """Close all that is open; no thread uses it any more."""
        for descriptor in self._opened:
            with contextlib.suppress(OSError):
                os.close(descriptor)
