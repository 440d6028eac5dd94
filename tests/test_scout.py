"""The walk in a process of its own: it finds the same, and neither of the two outlives or hangs on the other."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runs import REPOSITORY
from tests.scouting import ENOUGH


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree of many items, some of them odd."""
    root = tmp_path_factory.mktemp("large")
    for number in range(ENOUGH // 1000):
        folder = root / f"folder{number:02}"
        folder.mkdir()
        for name in range(1000):
            (folder / f"{name:03}").touch()
    last = os.fsencode(root / "folder11")
    os.symlink(b"to \xff", last + b"/link \xfe")
    os.link(last + b"/001", last + b"/twice")
    os.mkfifo(last + b"/\nfifo")
    os.setxattr(last + b"/002", "user.note", b"\0binary")
    os.truncate(last + b"/003", 1 << 30)
    os.makedirs(last + b"/skipped/below")
    os.makedirs(last + b"/excluded/below")
    return root


def scout(what: str, *arguments: object) -> None:
    """Try something in another process, and be told what was wrong."""
    command = [sys.executable, "-m", "tests.scouting", what, *map(str, arguments)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("since_ns", [0, 1 << 62])
def test_it_finds_what_a_walk_finds(large: Path, since_ns: int) -> None:
    scout("finds_what_a_walk_finds", large, since_ns)


def test_a_process_with_threads_is_not_forked(large: Path) -> None:
    scout("is_not_sent_out_by_threads", large)


def test_a_time_may_be_any() -> None:
    scout("tells_times_of_any_length")


def test_none_is_sent_out_without_a_descriptor_for_it(large: Path) -> None:
    scout("needs_no_descriptor", large)


def test_one_that_is_killed_is_no_end_of_the_walk(large: Path) -> None:
    scout("is_killed", large)


def test_one_that_was_killed_before_is_no_empty_walk(large: Path) -> None:
    scout("is_killed_before", large)


def test_it_ends_when_nobody_reads_on(large: Path) -> None:
    scout("is_not_wanted_any_more", large)


def test_it_ends_with_the_process_that_sent_it_out(large: Path) -> None:
    command = [sys.executable, "-m", "tests.scouting", "outlives_nobody", str(large)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    try:
        scout = os.pidfd_open(int(done.stdout))
    except ProcessLookupError:
        return
    try:
        assert select.select([scout], [], [], 60)[0]
    finally:
        os.close(scout)


def test_what_stops_a_walk_is_raised_here() -> None:
    scout("meets_an_error")


def test_a_run_that_is_asked_to_stop_does_not_wait_for_a_file_system_that_hangs() -> None:
    scout("hangs")
