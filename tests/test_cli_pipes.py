"""The command line before pipes that nobody reads, full disks and closed streams: the work is done all the same."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest

from tests.command_lines import COMMANDS, backed_up, run, three_files
from tests.runs import Workspace
from tools.compare import differences


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """Three files, nothing saved yet."""
    return three_files(tmp_path)


@pytest.fixture
def saved(tmp_path: Path) -> Workspace:
    """Three files that have been saved."""
    return backed_up(three_files(tmp_path))


def with_closed(stream: str, command: list[str], *, after_bytes: int = 0) -> tuple[int, bytes]:
    """Run a command one of whose streams loses its reader after some bytes; return its exit code and the other."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        closed, other = process.stdout, process.stderr
        if stream == "stderr":
            closed, other = other, closed
        if after_bytes:
            closed.read(after_bytes)
        closed.close()
        rest = other.read()
    return process.returncode, rest


@pytest.mark.parametrize("name", COMMANDS)
def test_a_reader_of_the_summary_may_leave(saved: Workspace, name: str) -> None:
    for options in ([], ["--json"], ["--help"]):
        code, stderr = with_closed("stdout", saved.command(name, *options))
        assert (code, stderr) == (0, b"")


def test_a_reader_of_the_progress_may_leave_without_stopping_the_work(tmp_path: Path) -> None:
    workspace = three_files(tmp_path, 3000)
    for name in COMMANDS:  # each has more to say than a pipe holds
        code, _ = with_closed("stderr", workspace.command(name, "-v"), after_bytes=10)
        assert code == 0
    assert workspace.header()["totals"]["files"] == 3003
    assert differences(str(workspace.source), str(workspace.restored)) == []


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A saved tree of which a blob is gone."""
    made = backed_up(three_files(tmp_path_factory.mktemp("damaged"), 500))
    next(path for path in made.store.glob("??/*") if path.stat().st_size).unlink()
    return made


WITH_FAILURES = [
    (name, options, wanted) for name, wanted in (("restore", 3), ("verify", 7)) for options in ([], ["--json"], ["-v"])
]


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_a_reader_who_leaves_hides_no_failure(damaged: Workspace, closed: str) -> None:
    for name, options, wanted in WITH_FAILURES:
        assert with_closed(closed, damaged.command(name, *options))[0] == wanted
    for options in (["--snapshot", "9"], ["--config", "/no/such/file"]):  # nobody reads the error either
        code, _ = with_closed(closed, damaged.command("restore", *options))
        assert code == (4 if "9" in options else 2)


def test_a_reader_of_both_who_leaves_hides_no_failure(damaged: Workspace, tmp_path: Path) -> None:
    for name, options, wanted in WITH_FAILURES:
        line = shlex.join(damaged.command(name, *options))
        run("sh", "-c", f"{{ {line} 2>&1; echo $? >{tmp_path}/code; }} | head -c 1")
        assert int((tmp_path / "code").read_text()) == wanted


def test_a_full_disk_for_the_result_is_told(saved: Workspace) -> None:
    with open("/dev/full", "w") as full:
        for options in ([], ["--json"]):
            command = saved.command("index", *options)
            done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False, text=True)
            assert done.returncode == 4
            assert len(done.stderr.splitlines()) == 1


def test_no_stream_has_to_be_open(workspace: Workspace) -> None:
    for name in COMMANDS:
        quoted = shlex.join(workspace.command(name, "-v"))
        assert run("sh", "-c", f"exec {quoted} <&- >&- 2>&-").returncode == 0
    assert differences(str(workspace.source), str(workspace.restored)) == []
