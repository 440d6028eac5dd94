"""What a person sees while a run goes on: the view on a terminal's screen, and the plain lines elsewhere."""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import time
from pathlib import Path

import pytest
from rich.cells import cell_len

from blobark.live import Rates, State, lines_of, time_left_s
from blobark.model import Entry, Outcome, Status
from blobark.progress import FIRST_LINE_S, Display
from metrics.under_way import InHand
from tests import fault_proxy as faults
from tests.fault_proxy import FaultProxy
from tests.runs import Workspace
from tests.terminal import Terminal

FILES = 60
EVIL = b"evil \x1b[2J\x07 name"
LARGE_BYTES = 12 << 20


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A few small files that have been saved, and that take seconds to restore."""
    source = tmp_path / "source"
    (source / "below").mkdir(parents=True)
    for number in range(FILES):
        (source / "below" / f"{number:02}").write_bytes(os.urandom(3000))
    made = Workspace(tmp_path / "work", source, server="web1", metrics_interval="0.1s")
    made.backup()
    made.configure(max_requests_per_s=40)
    return made


def is_drawn(terminal: Terminal) -> bool:
    return " passed" in terminal.text


def assert_gone(terminal: Terminal) -> None:
    """Nothing of the view is left, wherever one scrolls; the cursor is back."""
    assert [line for line in terminal.scrolled if " passed" in line or "━" in line or "CPU" in line] == []
    assert not terminal.screen.cursor.hidden


def test_the_screen_shows_bars_rates_time_left_and_the_machine(workspace: Workspace) -> None:
    with Terminal(workspace.command("restore")) as terminal:
        terminal.until(lambda: "CPU" in terminal.text and " left" in terminal.text)
        files, size, times, machine = terminal.lines[-4:]
        assert terminal.screen.cursor.hidden
        assert terminal.end() == 0
    assert re.fullmatch(r"restore  files [━─]{6,}  +\d+ of 60 +\d+/s", files)
    assert re.fullmatch(r" {9}bytes [━─]{6,}  +[\d.,]+ k?B of 180.0 kB +[\d.,]+ k?B/s", size)
    assert re.fullmatch(r" {9}0:0\d passed, about 0:\d\d left", times)
    assert re.match(r" {9}CPU +[▁-█]+ \d+ %  disk +[▁-█]+ [\d.,]+ [kM]?B/s", machine)
    assert_gone(terminal)
    assert "restored" in terminal.text


def test_failures_stand_above_the_view_and_are_counted_in_it(workspace: Workspace) -> None:
    (blob,) = workspace.store.rglob(workspace.guids()["below/07"])
    blob.write_bytes(b"x")
    with Terminal(workspace.command("restore"), columns=200) as terminal:
        terminal.until(lambda: "1 failed" in terminal.text)
        named = [number for number, line in enumerate(terminal.lines) if line.startswith("failed: below/07: ")]
        assert named == [0]
        assert terminal.lines[1].startswith("restore  files ")
        assert terminal.end() == 3
    assert_gone(terminal)
    assert terminal.lines[0].startswith("failed: below/07: ")


def test_every_line_of_a_wordy_run_stays_above_the_view(workspace: Workspace) -> None:
    workspace.configure(max_requests_per_s=100)
    with Terminal(workspace.command("restore", "-v"), rows=12) as terminal:
        terminal.until(lambda: is_drawn(terminal) and "done: " in terminal.text)
        assert terminal.end() == 0
    assert sorted(line for line in terminal.scrolled if line.startswith("done: ")) == [
        f"done: below/{number:02}" for number in range(FILES)
    ]
    assert_gone(terminal)


@pytest.fixture
def slow(tmp_path: Path) -> Workspace:
    """A large file with a name that a terminal must not get, which takes many seconds to restore."""
    source = tmp_path / "source"
    source.mkdir()
    Path(os.fsdecode(bytes(source) + b"/" + EVIL)).write_bytes(os.urandom(LARGE_BYTES))
    made = Workspace(tmp_path / "work", source)
    made.backup()
    made.configure(max_bandwidth="2MB")
    return made


def test_the_item_that_takes_long_is_named_and_ctrl_c_gives_the_cursor_back(slow: Workspace) -> None:
    with Terminal(slow.command("restore")) as terminal:
        terminal.until(lambda: re.search(r"in work for 0:0[1-9]: evil .* \(\d+ %\)", terminal.text))
        assert "evil \\x1b[2J\\x07 name" in terminal.text
        terminal.until(lambda: re.search(r"bytes ━+─+ +[1-9][\d.]+ MB of 12.6 MB", terminal.text))
        terminal.type(b"\x03")
        assert terminal.end() == 130
    assert b"\x1b[2J" not in terminal.got
    assert terminal.text.startswith("blobark: ")
    assert_gone(terminal)


def test_ctrl_z_gives_the_terminal_back_and_the_view_returns_with_the_run(workspace: Workspace) -> None:
    workspace.configure(max_requests_per_s=10)

    def restored() -> int:
        return len(list(workspace.restored.rglob("??")))

    def assert_without_view() -> None:
        assert not terminal.screen.cursor.hidden
        assert [line for line in terminal.lines if " passed" in line or "━" in line or "CPU" in line] == []

    with Terminal(["sh", "-i"], columns=300) as terminal:
        terminal.type(shlex.join(workspace.command("restore")).encode() + b"\n")
        terminal.until(lambda: is_drawn(terminal) and restored())
        assert terminal.screen.cursor.hidden
        terminal.type(b"\x1a")
        terminal.until(lambda: "Stopped" in terminal.text)
        assert_without_view()
        terminal.type(b"bg; echo $((6*7))\n")
        terminal.until(lambda: "42" in terminal.lines)
        before = restored()
        terminal.until(lambda: restored() > before + 8)
        assert_without_view()
        terminal.type(b"fg\n")
        terminal.until(lambda: is_drawn(terminal) and terminal.screen.cursor.hidden)
        assert len([line for line in terminal.lines if " passed" in line]) == 1
        terminal.until(lambda: "rate" in terminal.text)
        assert_without_view()
        assert restored() == FILES
        terminal.type(b"exit\n")
        assert terminal.end() == 0


def test_a_run_in_the_background_has_no_view(workspace: Workspace) -> None:
    with Terminal(["sh", "-i"], columns=300) as terminal:
        terminal.type(shlex.join(workspace.command("restore")).encode() + b" & wait; exit\n")
        assert terminal.end() == 0
    assert "restored" in terminal.text
    assert b"\x1b[?25l" not in terminal.got


def test_what_another_process_of_the_run_waits_for_is_named(
    tmp_path: Path, proxy: FaultProxy, azure_container: tuple[str, str]
) -> None:
    text, name = azure_container
    source = tmp_path / "source"
    source.mkdir()
    for number in range(20):
        (source / f"{number}").write_bytes(b"content %d" % number)
    made = Workspace.on_azure(tmp_path / "work", source, proxy.rewire(text), name, max_workers=4)
    made.backup()
    proxy.add(faults.hang(method="GET", where=made.guids()["7"]))
    with Terminal(made.command("restore")) as terminal:
        terminal.until(lambda: re.search(r"in work for 0:0[1-9]: 7$", terminal.text, re.MULTILINE))
        assert json.loads(made.metrics.read_bytes())["run"]["members"] == min(2, os.cpu_count() or 1)
        terminal.type(b"\x03")
        assert terminal.end() == 130
    assert_gone(terminal)


def test_a_save_names_what_it_reads_and_sends(slow: Workspace) -> None:
    slow.configure(store=str(slow.folder / "other"), state_dir=str(slow.folder / "other-state"), delta="off")
    slow.run("index")
    with Terminal(slow.command("save")) as terminal:
        terminal.until(lambda: re.search(r"in work for 0:0[1-9]: evil .* \(\d+ %\)", terminal.text))
        assert re.match(r"save  files ─+ +0 of 1 ", terminal.text)
        terminal.type(b"\x03")
        assert terminal.end() == 130
    assert_gone(terminal)


@pytest.mark.parametrize(("columns", "rows"), [(40, 10), (20, 3), (5, 2), (300, 4)])
def test_a_small_window_gets_what_there_is_room_for(workspace: Workspace, columns: int, rows: int) -> None:
    with Terminal(workspace.command("restore"), columns=columns, rows=rows) as terminal:
        terminal.until(lambda: "file" in terminal.text)
        seen = terminal.lines
        assert terminal.end() == 0
    assert seen[0].lstrip().startswith(("files", "restore", "file"))
    assert len(seen) < rows
    assert_gone(terminal)


def test_a_window_that_changes_its_size_has_one_view(workspace: Workspace) -> None:
    workspace.configure(max_requests_per_s=10)
    with Terminal(workspace.command("restore"), columns=120, rows=30) as terminal:
        terminal.until(lambda: is_drawn(terminal))
        for columns in (79, 50, 100):
            terminal.resize(columns, 30)
            width = min(columns - 1, 79)
            terminal.until(lambda width=width: len(terminal.lines[0]) in (width, width - 1))  # type: ignore[misc]
            assert len([line for line in terminal.lines if "files" in line]) == 1
        assert terminal.end() == 0
    assert_gone(terminal)


def test_no_colour_where_none_is_wanted(workspace: Workspace) -> None:
    colours = re.compile(rb"\x1b\[[0-9;]*(?:3[0-7]|38;5)[0-9;]*m")
    for environment, is_coloured in (({}, True), ({"NO_COLOR": "1"}, False)):
        to = str(workspace.folder / f"restored-{is_coloured}")
        with Terminal(workspace.command("restore", "--to", to), environment=environment) as terminal:
            terminal.until(lambda: is_drawn(terminal))
            assert terminal.end() == 0
        assert bool(colours.search(terminal.got)) is is_coloured


def test_a_terminal_that_knows_no_such_characters_gets_plain_ones(workspace: Workspace) -> None:
    with Terminal(workspace.command("restore"), environment={"PYTHONIOENCODING": "ascii"}) as terminal:
        terminal.until(lambda: "CPU" in terminal.text and re.search(r"files #+-+ ", terminal.text))
        terminal.type(b"\x03")
        assert terminal.end() == 130
    assert not terminal.screen.cursor.hidden


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"TERM": ""}])
def test_a_dumb_terminal_gets_no_view(workspace: Workspace, environment: dict[str, str]) -> None:
    with Terminal(workspace.command("restore"), environment=environment) as terminal:
        assert terminal.end() == 0
    assert " passed" not in terminal.text
    assert b"\x1b[?25l" not in terminal.got


def test_quiet_is_quiet_and_json_alone_on_standard_output(workspace: Workspace) -> None:
    with Terminal(workspace.command("restore", "--quiet")) as terminal:
        assert terminal.end() == 0
    assert terminal.got == b""
    with Terminal(workspace.command("restore", "--json", "--to", str(workspace.folder / "again")), piped=True) as shown:
        shown.until(lambda: is_drawn(shown))
        assert shown.end() == 0
    assert json.loads(shown.out)["files"] == FILES
    assert_gone(shown)
    assert shown.lines == []


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("backup",), "save  files"),
        (("drill", "--full"), "compare  items"),
        (("sweep", "--workers", "1", "--repeat", "1", "--out", "{folder}/sweep.html"), "sweep  items"),
    ],
)
def test_every_command_that_takes_time_has_a_view(workspace: Workspace, options: tuple[str, ...], named: str) -> None:
    workspace.configure(max_requests_per_s=200)
    (workspace.source / "new").write_bytes(b"new")
    name, *others = (option.format(folder=workspace.folder) for option in options)
    with Terminal(workspace.command(name, *others)) as terminal:
        assert terminal.end() in (0, 3), terminal.text
    assert named in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.got.decode())
    assert_gone(terminal)


def test_a_rebuild_has_a_view(tmp_path: Path, azure_container: tuple[str, str]) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_bytes(b"content")
    made = Workspace.on_azure(tmp_path / "work", source, *azure_container)
    made.backup()
    with Terminal(made.command("rebuild", "--force")) as terminal:
        assert terminal.end() == 3, terminal.text
    assert "rebuild  items" in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.got.decode())
    assert_gone(terminal)


# Where nobody looks


def test_plain_lines_come_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now_s = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    shown = Display(quiet=False, verbose=False)
    shown.begin("restore", 100_000, 0)
    said: list[float] = []
    for second in range(8 * 3600):
        now_s = 1000.0 + second
        shown.advance(1, 1_000_000)
        if text := capsys.readouterr().err:
            said.append(second)
            assert len(text.splitlines()) == 1
    assert said[:3] == [FIRST_LINE_S, 2 * FIRST_LINE_S, 3 * FIRST_LINE_S]
    assert max(later - earlier for earlier, later in itertools.pairwise(said)) == 600
    assert len(said) < 80
    now_s += 600
    shown.outcome(Outcome(0, Entry(path="x"), Status.FAILED, reason="lost"), b"x\x1b")
    said_last = capsys.readouterr().err.splitlines()
    assert said_last[0] == "failed: x\\x1b: lost"
    assert re.fullmatch(r"restore: 28 % 28,801 items, 1 files/s, 1.0 MB/s, about .* s left, 1 failed", said_last[1])


def test_plain_lines_tell_no_rate_of_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such as a sweep's, whose items are restores."""
    now_s = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    shown = Display(quiet=False, verbose=False)
    shown.begin("sweep", 4, 0)
    now_s += 90
    shown.advance(1, 0)
    shown.begin("save", 0, 0)
    now_s += 90
    shown.advance(1, 9_000_000_000)
    assert capsys.readouterr().err.splitlines() == [
        "sweep: 25 % 1 item, about 270 s left",
        "save: 1 item, 100.0 MB/s",
    ]


def test_quiet_without_a_terminal_shows_only_what_failed(capsys: pytest.CaptureFixture[str]) -> None:
    shown = Display(quiet=True, verbose=False)
    shown.begin("restore", 1, 1)
    shown.outcome(Outcome(0, Entry(path="x"), Status.FAILED, reason="lost"), b"x")
    assert capsys.readouterr().err == "failed: x: lost\n"


# The lines themselves


def state(**changes: object) -> State:
    gap = {"cpu_percent": None, "watched_disk_read_bytes": None, "watched_disk_write_bytes": None}
    samples = [
        {"t_s": float(second), **gap, "network_in_bytes": second**3, "network_out_bytes": 5} for second in range(9)
    ]
    samples += [{**samples[-1], "t_s": 9.0, "cpu_percent": 55.5, "network_in_bytes": None}]
    name = "目录/".encode() * 12 + b"\xff\n" + b"x" * 30
    values = State(
        "restore", 20_000, 50_000, 10**12, 4 * 10**12, 3, 4000.0, samples, InHand(75.0, 10, 40, name[-96:], True)
    )
    return values._replace(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("columns", range(1, 120))
def test_no_line_is_wider_than_the_window(columns: int) -> None:
    rates = Rates()
    rates.note(0, 0, 1.0)
    rates.note(20_000, 10**12, 11.0)
    for shown in (state(), state(all_items=0, all_bytes=0), state(bytes=0, all_bytes=0, samples=())):
        for line in lines_of(shown, rates, columns):
            assert cell_len(line.plain) <= columns
            assert line.plain.isprintable()


def test_what_is_not_known_is_not_shown() -> None:
    rates = Rates()
    rates.note(0, 0, 1.0)
    unknown = state(what="index", all_items=0, bytes=0, all_bytes=0, failed=0, samples=(), longest=None)
    assert [line.plain for line in lines_of(unknown, rates, 79)] == [
        "index  items 20,000  0/s",
        "       1:06:40 passed",
    ]
    titled = lines_of(unknown._replace(what="verify: whom it hurts", all_items=40_000), rates, 79)
    assert titled[0].plain == "verify: whom it hurts"
    assert re.fullmatch(r"items (━{25})(─{25})  20,000 of 40,000  0/s", titled[1].plain)
    with_gaps = "\n".join(line.plain for line in lines_of(state(), rates, 79))
    assert "disk" not in with_gaps
    assert re.search(r"CPU +▅ 56 %  net .*█  \?\n", with_gaps)


@pytest.mark.parametrize(
    ("rates", "wanted"), [((10.0, 1e9), 3000.0), ((1e6, 1e9), 3000.0), ((1.0, 1e12), 30_000.0), ((0.0, 1e9), None)]
)
def test_the_time_left_is_what_the_slower_of_files_and_bytes_takes(
    rates: tuple[float, float], wanted: float | None
) -> None:
    assert time_left_s(state(), *rates) == wanted
    assert time_left_s(state(items=50_000, bytes=4 * 10**12), *rates) is None


def test_the_rate_is_that_of_the_last_seconds() -> None:
    rates = Rates()
    for number in range(400):
        rates.note(min(300, number), number * 1000, number / 4)
    items_s, bytes_s = rates.per_s()
    assert items_s == 0
    assert round(bytes_s) == 4000
