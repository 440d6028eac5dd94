"""Writing a small file as a whole: whoever reads it finds the old one or the new one, never a part."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path


def write_whole(path: Path, text: str, *, mode: int = 0o600) -> None:
    """Put `text` at `path`, in place of a file that is there. Raises `OSError`.

    What is there and is no regular file (/dev/null, /dev/stdout and other links, a FIFO) stays, and is written to.
    """
    if os.path.lexists(path) and not stat.S_ISREG(os.lstat(path).st_mode):
        path.write_text(text, encoding="utf-8", newline="")
        return
    new = path.with_name(f".{path.name}.{os.getpid()}.part")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            os.fchmod(descriptor, mode)
        os.rename(new, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(new)
        raise
