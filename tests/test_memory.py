"""Memory does not grow with the number of files: a million entries take hardly more than a hundred thousand."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

import pytest

from tests.peak import peak_rss_bytes
from tests.runs import Workspace

FILES_PER_DIRECTORY = 1000
MAX_GROWTH_BYTES = 100_000_000

STEPS = {
    "index": ["index"],
    "save": ["save"],
    "index, unchanged": ["index"],
    "save, unchanged": ["save"],
    "verify": ["verify"],
    "verify, read": ["verify", "--read"],
    "restore": ["restore"],
    "restore, all there": ["restore"],
    "restore, by the map": ["restore", "--map", "{map}", "--overwrite", "never"],
    "index, other times": ["index"],
    "save, a map from elsewhere": ["save"],
    "index, state lost": ["index"],
}


def make_tree(top: Path, entries: int) -> None:
    """Make so many entries: directories of empty files, and a few of one byte."""
    for number in range(entries // FILES_PER_DIRECTORY):
        folder = top / f"{number % 20:02}" / f"{number:05}"
        folder.mkdir(parents=True)
        descriptor = os.open(folder, os.O_RDONLY)
        for file in range(FILES_PER_DIRECTORY):
            os.mknod(f"file-{file:04}.txt", stat.S_IFREG | 0o644, dir_fd=descriptor)
        os.close(descriptor)
        (folder / "file-0000.txt").write_bytes(b"1")


def peaks(folder: Path, entries: int) -> dict[str, int]:
    """Return the most memory that each step over so many entries held."""
    make_tree(folder / "source", entries)
    workspace = Workspace(folder / "work", folder / "source")
    found = {}
    for step, (name, *options) in STEPS.items():
        if step == "index, other times":
            for path in (folder / "source").glob("*/*"):
                os.utime(path / "file-0000.txt")
        elif step == "save, a map from elsewhere":
            text = workspace.map.read_text()
            workspace.map.write_text(text.replace("{\n", "{\n\n", 1))
        elif step == "index, state lost":
            for path in workspace.state.glob("catalog*"):
                path.unlink()
        command = workspace.command(name, "-q", *[option.format(map=workspace.map) for option in options])
        found[step] = peak_rss_bytes(command)
    assert workspace.header()["totals"]["files"] == entries
    return found


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_memory_does_not_grow_with_the_number_of_files(tmp_path: Path) -> None:
    found = []
    for entries in (100_000, 1_000_000):
        with tempfile.TemporaryDirectory(dir=tmp_path) as folder:  # pytest would keep millions of files
            found.append(peaks(Path(folder), entries))
    small, large = found
    for step in STEPS:
        print(f"{step:<28}{small[step] / 1e6:8.0f} MB{large[step] / 1e6:8.0f} MB")
    growth = {step: large[step] - small[step] for step in STEPS}
    assert {step: size for step, size in growth.items() if size >= MAX_GROWTH_BYTES} == {}
