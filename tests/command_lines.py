"""Command lines as people and programs type them, started as they would, and the small trees that they are for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.runs import REPOSITORY, SCRIPTS, Workspace

BLOBARK = Path(sys.executable).with_name("blobark")
COMMANDS = tuple(SCRIPTS)
TIMEOUT_S = 60.0


def run(*command: object, cwd: Path = REPOSITORY, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command line that nobody watches."""
    return subprocess.run(
        list(map(str, command)),
        capture_output=True,
        cwd=cwd,
        env={**os.environ, **environment},
        timeout=TIMEOUT_S,
        check=False,
        text=True,
        errors="surrogateescape",
    )


def only_json(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """Return the object that is all of stdout."""
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    assert found["exit_code"] == done.returncode
    return found


def three_files(folder: Path, more: int = 0) -> Workspace:
    """Return the workspace of a tree of three small files, and so many more, of which nothing is saved yet."""
    source = folder / "source"
    source.mkdir()
    for number in range(3):
        (source / f"file {number}").write_bytes(b"%d" % number)
    for number in range(more):
        (source / f"{number:04}").write_bytes(b"%d" % number)
    return Workspace(folder / "work", source)


def backed_up(workspace: Workspace) -> Workspace:
    workspace.backup()
    return workspace


def many_files(folder: Path) -> Workspace:
    """Return the workspace of a saved tree that takes a moment to restore."""
    return backed_up(three_files(folder, 3000))
