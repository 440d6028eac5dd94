"""Trees to measure with: the same for the same seed, with folders of very different sizes; and their comparison."""

from __future__ import annotations

import filecmp
import os
import random
from collections.abc import Iterator
from pathlib import Path

CONTENT_EVERY = 20
"""Of so many files one is compared by content; the others by name and size."""


PIECE_BYTES = 16 * 1024 * 1024


class Different(Exception):
    """A restored tree is not the one that was saved."""


def make(folder: Path, files: int, sizes: tuple[int, int], seed: int = 1) -> int:
    """Write `files` files of random bytes, their sizes from the range given, below `folder`; returns their bytes."""
    pick = random.Random(seed)
    folder.mkdir(parents=True)
    recent, left, total, number = [str(folder)], files, 0, 0
    while left:
        inside = min(left, 1 + int(pick.lognormvariate(3.5, 1.3)))
        parent = pick.choice(recent)
        name = f"{parent}/folder {number:05}" if pick.random() < 0.1 else f"{parent}/d{number:05}"
        os.mkdir(name)
        if name.count("/") - str(folder).count("/") < 6:
            recent = [str(folder), *recent[-30:], name]
        for index in range(inside):
            size = pick.randint(*sizes)
            total += size
            with open(f"{name}/file-{index:06}.dat", "wb", buffering=0) as file:
                file.writelines(pick.randbytes(min(PIECE_BYTES, size - start)) for start in range(0, size, PIECE_BYTES))
        left -= inside
        number += 1
    return total


def compare(original: Path, restored: Path) -> None:
    """Raise `Different` unless both have the same files of the same sizes, and a sample of them the same content."""
    left, right = _files(os.fspath(original)), _files(os.fspath(restored))
    count = 0
    while True:
        one, other = next(left, None), next(right, None)
        if one is None and other is None:
            return
        if one != other:
            raise Different(f"{restored}: {other} where {original} has {one}")
        assert one
        if count % CONTENT_EVERY == 0 and not filecmp.cmp(original / one[0], restored / one[0], shallow=False):
            raise Different(f"{restored / one[0]}: another content")
        count += 1


def _files(top: str, below: str = "") -> Iterator[tuple[str, int]]:
    """Yield the relative path and size of every file, in order."""
    with os.scandir(os.path.join(top, below)) as found:
        entries = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in found)
    for name, is_folder in entries:
        path = os.path.join(below, name)
        if is_folder:
            yield from _files(top, path)
        else:
            yield path, os.lstat(os.path.join(top, path)).st_size
