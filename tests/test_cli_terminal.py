"""The command line on a terminal: tables, bars, names that would do harm there, and Ctrl-C."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.command_lines import COMMANDS, TIMEOUT_S, backed_up, many_files, run, three_files
from tests.runs import Workspace, wait_until

EVIL_NAMES = (
    b"escape \x1b[2J\x1b]0;title\x07",
    b"new\nline",
    b"return\rback\x08",
    "\u202e\u200b".encode(),
    b"\xff\x9b1m",
)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """Three files, nothing saved yet."""
    return three_files(tmp_path)


@pytest.fixture
def saved(tmp_path: Path) -> Workspace:
    """Three files that have been saved."""
    return backed_up(three_files(tmp_path))


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A saved tree that takes a moment to restore."""
    return many_files(tmp_path_factory.mktemp("many"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_so(many: Workspace, tmp_path: Path, number: signal.Signals) -> None:
    place = tmp_path / "restored"
    command = many.command("restore", "--json", "--to", str(place))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        wait_until(place.exists, process)
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130
    assert json.loads(stdout)["exit_code"] == 130
    assert len(stderr.splitlines()) == 1
    assert b"interrupted" in stderr
    assert many.run("restore", "--to", str(place)).result["files"] == 3003


# A terminal


def on_terminal(command: list[str], *, kill: signal.Signals | None = None, **environment: str) -> tuple[int, str]:
    """Run a command on a terminal of its own; return its exit code and what the terminal got.

    With `kill` the signal is sent once the terminal has got something.
    """
    ours, theirs = pty.openpty()
    settings = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30", **environment}
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=settings) as process:
        os.close(theirs)
        got = b""
        try:
            while data := os.read(ours, 65536):
                got += data
                if kill is not None:
                    process.send_signal(kill)
                    kill = None
        except OSError:
            pass  # how Linux says that nobody has the terminal open any more
        finally:
            os.close(ours)
    return process.returncode, got.decode(errors="surrogateescape")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_terminal_gets_a_table_and_its_cursor_back(saved: Workspace, name: str) -> None:
    code, got = on_terminal(saved.command(name))
    assert code == 0
    assert f"{name}: " in got
    assert "│" in got
    assert got.rfind("\x1b[?25h") >= got.rfind("\x1b[?25l")


def test_what_a_table_shows_is_no_markup_and_not_cut_short(saved: Workspace, tmp_path: Path) -> None:
    place = tmp_path / "[red]a[" / "b]" / ("long" * 30)
    code, got = on_terminal(saved.command("restore", "--to", str(place)), COLUMNS="80")
    assert code == 0, got
    assert str(place) in re.sub("\x1b\\[[0-9;?]*[A-Za-z]|[│\\s]", "", got)


def test_a_terminal_shows_a_bar_that_is_gone_at_the_end(saved: Workspace) -> None:
    _, got = on_terminal(saved.command("restore"))
    bar = re.search(r"restore.*━", got)
    assert bar
    assert "━" not in got[got.rfind("\x1b[2K") :].partition("restore: ")[0]


def test_an_interrupted_run_gives_the_cursor_back(many: Workspace, tmp_path: Path) -> None:
    code, got = on_terminal(many.command("restore", "--to", str(tmp_path / "restored")), kill=signal.SIGINT)
    assert code == 130
    assert "interrupted" in got
    assert got.rfind("\x1b[?25h") >= got.rfind("\x1b[?25l")


def test_a_dumb_terminal_gets_no_escapes(saved: Workspace) -> None:
    code, got = on_terminal(saved.command("restore"), TERM="dumb")
    assert code == 0
    assert "\x1b" not in got


def test_names_reach_no_terminal_raw(workspace: Workspace) -> None:
    for raw in EVIL_NAMES:
        (Path(os.fsdecode(os.fsencode(workspace.source) + b"/" + raw))).write_bytes(b"")
    gone = Path(os.fsdecode(os.fsencode(workspace.source) + b"/gone \x1b[2J\n"))
    gone.write_bytes(b"")
    said = [run(*workspace.command("index", "-v"))]
    gone.unlink()
    said += [run(*workspace.command(name, "-v")) for name in ("save", "restore")]
    assert [done.returncode for done in said] == [0, 3, 3]
    for done in said:
        assert all(line.isprintable() for line in (*done.stdout.splitlines(), *done.stderr.splitlines())), done
    shutil.rmtree(workspace.restored)
    for name in COMMANDS:
        _, shown = on_terminal(workspace.command(name, "-v"))
        assert not re.search("\x1b\\[2J|\x1b\\]|[\x07\x08\x9b\u202e\u200b\udc80-\udcff]", shown), shown


def test_paths_of_the_configuration_reach_no_terminal_raw(tmp_path: Path, workspace: Workspace) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/evil \x1b[2J\n\xff"))
    evil = Workspace(folder, workspace.source)
    evil.settings = {**workspace.settings, "store": "store", "state_dir": "state", "guid_mapping_file": "map"}
    evil.configure(restore_root="restored", metrics_log_file="metrics")
    for name in COMMANDS:
        done = run(*evil.command(name), PYTHONIOENCODING="utf-8:strict")
        assert done.returncode == 0, done.stderr
        assert all(line.isprintable() for line in (*done.stdout.splitlines(), *done.stderr.splitlines()))


@pytest.mark.long
def test_a_log_gets_a_line_now_and_then(many: Workspace, tmp_path: Path) -> None:
    place = tmp_path / "restored"
    with subprocess.Popen(many.command("restore", "--to", str(place)), stderr=subprocess.PIPE, text=True) as process:
        wait_until(lambda: place.exists() and any(place.iterdir()), process)
        process.send_signal(signal.SIGSTOP)
        time.sleep(10.5)  # the time after which a line is due
        process.send_signal(signal.SIGCONT)
        _, stderr = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0
    lines = stderr.splitlines()
    assert lines
    form = r"restore: \d+ % [\d,]+ items?(, [\d,]+ files/s)?(, [\d,.]+ MB/s)?, about [\d,]+ s left"
    assert all(re.fullmatch(form, line) for line in lines), lines
