"""Somebody who may write below restore_root and wants a restore, which runs meanwhile, to write elsewhere.

    python tests/racer.py directory PLACE OUTSIDE    swaps a directory for a symlink to OUTSIDE, and back, without end
    python tests/racer.py name PLACE OUTSIDE         makes whatever is called PLACE a symlink to OUTSIDE, without end

It says `ready` once it has begun, and goes on until it is killed.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path


@contextlib.contextmanager
def racing(how: str, place: Path, outside: Path) -> Iterator[None]:
    """Race as long as the block lasts, and a moment before it begins."""
    command = [sys.executable, str(Path(__file__).resolve()), how, str(place), str(outside)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as racer:
        try:
            assert racer.stdout
            assert racer.stdout.readline() == b"ready\n"
            yield
            assert racer.poll() is None, "the racer gave up"
        finally:
            racer.kill()


def swap_directory(place: str, outside: str) -> Iterator[None]:
    for number in count():
        aside = f"{place}.{number}"
        with contextlib.suppress(OSError):
            os.rename(place, aside)
        with contextlib.suppress(OSError):
            os.symlink(outside, place)
        yield
        with contextlib.suppress(OSError):
            os.unlink(place)
        with contextlib.suppress(OSError):
            os.rename(aside, place)
        yield


def take_name(place: str, outside: str) -> Iterator[None]:
    link = f"{place}.link"
    while True:
        with contextlib.suppress(OSError):
            os.symlink(outside, link)
        if os.path.lexists(place):
            with contextlib.suppress(OSError):
                os.rename(link, place)
        yield


if __name__ == "__main__":
    steps = {"directory": swap_directory, "name": take_name}[sys.argv[1]](sys.argv[2], sys.argv[3])
    next(steps)
    print("ready", flush=True)
    for _ in steps:
        pass
