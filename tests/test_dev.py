"""`dev.py` and the demo as an ordinary user runs them: what the README begins with."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs import REPOSITORY
from tests.trees import small_tree


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What the demo needs of this checkout, without its `.venv`."""
    copy = tmp_path / "checkout"
    for name in ("blobark", "metrics", "tools"):
        shutil.copytree(REPOSITORY / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for file in REPOSITORY.glob("*.*"):
        if file.is_file():
            shutil.copy(file, copy)
    return copy


def run(program: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """Run a program of a checkout, stopped by permissions even if root runs the tests."""
    command = [sys.executable, "-m", "tests.powerless", sys.executable, str(program), *args]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=100, check=False)


def test_a_demo_takes_the_place_of_the_one_before(checkout: Path, tmp_path: Path) -> None:
    tree = small_tree(tmp_path / "tree", "file", "read-only/file")
    (tree / "read-only").chmod(0o555)
    for _ in range(2):
        done = run(checkout / "tools" / "demo.py", str(tree))
        assert (done.returncode, done.stderr) == (0, ""), done
        assert "listxattr: no differences" in done.stdout
        assert ("all that is restored is yours" in done.stdout) == (os.geteuid() != 0)


@pytest.mark.parametrize("program", ["dev.py", "tools/demo.py"])
def test_a_checkout_of_somebody_else_is_named(checkout: Path, program: str) -> None:
    checkout.chmod(0o555)
    done = run(checkout / program, *(["demo"] if program == "dev.py" else []))
    checkout.chmod(0o755)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done
    assert "Permission denied" in done.stderr


def test_a_demo_of_what_may_not_be_read_says_what_to_do(checkout: Path, tmp_path: Path) -> None:
    tree = small_tree(tmp_path / "tree", "file", "closed")
    (tree / "closed").chmod(0)
    done = run(checkout / "tools" / "demo.py", str(tree))
    assert done.returncode == 3
    assert done.stderr.splitlines()[-1].endswith(
        "ended with exit code 3: take a tree that you may read and make all of"
    )
