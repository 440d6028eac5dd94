"""Somebody who may write below restore_root and wants a restore, which runs meanwhile, to write elsewhere.

    python tests/racer.py directory PLACE OUTSIDE    swaps a directory for a symlink to OUTSIDE, and back, without end
    python tests/racer.py names FOLDER OUTSIDE       makes what has certain names in FOLDER symlinks to OUTSIDE,
                                                     one name after the other; each line that it reads is
                                                     a name, and another one whose appearance tells that the
                                                     first is not used any more

It says `ready` once it has begun, and goes on until it is killed.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path


@contextlib.contextmanager
def racing(how: str, place: Path, outside: Path, names: Iterable[tuple[str, str]] = ()) -> Iterator[None]:
    """Race as long as the block lasts, and a moment before it begins."""
    command = [sys.executable, str(Path(__file__).resolve()), how, str(place), str(outside)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as racer:
        try:
            assert racer.stdin
            assert racer.stdout
            racer.stdin.write("".join(f"{first} {then}\n" for first, then in names).encode())
            racer.stdin.close()
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


def take_names(place: str, outside: str) -> Iterator[None]:
    pairs = [line.split() for line in sys.stdin]
    os.chdir(place)
    for name, final in pairs:
        with contextlib.suppress(OSError):
            os.symlink(outside, "link")
        while not os.path.lexists(final):
            if os.path.lexists(name):
                with contextlib.suppress(OSError):
                    os.rename("link", name)
            yield
    while True:
        yield


if __name__ == "__main__":
    steps = {"directory": swap_directory, "names": take_names}[sys.argv[1]](sys.argv[2], sys.argv[3])
    next(steps)
    print("ready", flush=True)
    for _ in steps:
        pass
