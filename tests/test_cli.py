"""The command line as people and programs use it: help, mistakes, --json, terminals, pipes, and where it is run."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.runs import REPOSITORY, SCRIPTS, Workspace
from tools.compare import differences

BLOBARK = Path(sys.executable).with_name("blobark")
COMMANDS = tuple(SCRIPTS)
TIMEOUT_S = 60.0

EVIL_NAMES = (
    b"escape \x1b[2J\x1b]0;title\x07",
    b"new\nline",
    b"return\rback\x08",
    "\u202e\u200b".encode(),
    b"\xff\x9b1m",
)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A small tree, nothing saved yet."""
    return Workspace(tmp_path / "work", small_tree(tmp_path / "source"))


@pytest.fixture(scope="module")
def saved_once(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    folder = tmp_path_factory.mktemp("saved")
    made = Workspace(folder / "work", small_tree(folder / "source"))
    made.backup()
    return made


@pytest.fixture
def saved(tmp_path: Path, saved_once: Workspace) -> Workspace:
    """A small tree that has been saved: all but its source is the test's own."""
    shutil.copytree(saved_once.folder, tmp_path / "work")
    return Workspace(tmp_path / "work", saved_once.source)


def small_tree(top: Path) -> Path:
    top.mkdir()
    for number in range(3):
        (top / f"file {number}").write_bytes(b"%d" % number)
    return top


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


# Help


OPTIONS: dict[str, dict[str, list[str]]] = {
    "index": {
        "--allow-empty": ["{source}"],
        "--allow-shrink": ["{source}"],
        "--adopt": ["{server}"],
        "--skip-damaged": [],
    },
    "save": {"--create-container": [], "--new-store": [], "--skip-damaged": []},
    "restore": {
        "--snapshot": ["1"],
        "--server": ["{server}"],
        "--to": ["{folder}/elsewhere"],
        "--overwrite": ["always"],
        "--rehydrate": ["high"],
        "--map": ["{folder}/map.json"],
        "--strip-prefix": ["/"],
        "--sample": ["100%"],
        "--at": ["2099-01-01"],
        "--include": ["file*"],
        "--exclude": ["nothing"],
        "--no-special": [],
        "--strip": ["0"],
        "--in-place": [],
        "--cat": ["file 1"],
        "--tar": [],
        "--delete": [],
        "--priority": ["{folder}/first.txt"],
        "--owner-map": ["user:nobody:0"],
        "--no-owner": [],
        "--max-workers": ["1"],
        "--part-size": ["16MiB"],
        "--metrics-log-file": ["{folder}/run.json"],
    },
}
COMMON = {"--config", "--dry-run", "--help", "--json", "--quiet", "--verbose", "--version", "-h", "-q", "-v"}
"""Every other test uses these."""
JOURNALED = {"index": set[str](), "save": {"--retry-failed"}, "restore": {"--retry-failed"}}
"""What tests/test_itemlog.py tries."""


def options_in(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", text))


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_examples_and_each_option_that_is_tried_here(name: str) -> None:
    script = run(sys.executable, REPOSITORY / SCRIPTS[name], "--help")
    assert (script.returncode, script.stderr) == (0, "")
    usage, examples = script.stdout.split("\nexamples:\n")
    assert options_in(usage) == COMMON | OPTIONS[name].keys() | JOURNALED[name]
    lines = [line for line in examples.splitlines() if line.startswith(f"  {SCRIPTS[name]}")]
    assert len(lines) >= 3
    assert options_in(" ".join(lines)) <= options_in(usage)
    for command in ([BLOBARK, name], [sys.executable, "-m", "blobark", name]):
        assert options_in(run(*command, "--help").stdout) == options_in(script.stdout)


@pytest.mark.parametrize("option", [f"{name} {option}" for name in COMMANDS for option in OPTIONS[name]])
def test_each_option_works(saved: Workspace, option: str) -> None:
    name, option = option.split()
    server = saved.header()["server"]
    values = [text.format(source=saved.source, folder=saved.folder, server=server) for text in OPTIONS[name][option]]
    if option == "--strip-prefix":
        values += ["--map", str(saved.map)]
    if option == "--priority":
        Path(values[0]).write_text("file 1\n")
    if option in ("--cat", "--tar"):  # tests/test_streaming.py looks at what comes
        assert saved.execute(name, option, *values).returncode == 0
        return
    result = saved.run(name, option, *values).result
    assert result["exit_code"] == 0
    if option == "--to":
        assert (saved.folder / "elsewhere" / "file 1").exists()
    elif name == "restore":
        assert result["files"] == 3


@pytest.mark.parametrize("command", [[BLOBARK], [sys.executable, "-m", "blobark"]], ids=["blobark", "python -m"])
def test_blobark_itself_lists_its_commands(command: list[str]) -> None:
    done = run(*command, "--help")
    assert done.returncode == 0
    assert [line.split()[0] for line in done.stdout.split("commands:\n")[1].splitlines()[:3]] == list(COMMANDS)
    bare = run(*command)
    assert bare.returncode == 2
    assert "commands:" in bare.stdout + bare.stderr
    assert re.fullmatch(r"blobark \d+\.\d+\.\d+\S*\n", run(*command, "--version").stdout)


MISTAKES = {
    "sve": "did you mean save?",
    "restore --snapsot 3": "did you mean --snapshot?",
    "restore --snapshot 0": "'0'",
    "restore --snapshot latest": "'latest'",
    "restore --overwrite maybe": "if-changed",
    "restore --snapshot": "--snapshot",
    "restore -q -v": "-q",
    "restore --sample 0%": "is not a share such as 5%",
    "save somewhere": "somewhere",
    "restore --at yesterday": "2026-11-01T12:00",
    "restore --at 2026-11-01 --snapshot 2": "--at and --snapshot do not go together",
    "restore --map x --delete": "--map and --delete do not go together",
    "restore --in-place --to x": "--in-place and --to do not go together",
    "restore --in-place --strip 1": "--in-place and --strip do not go together",
    "restore --cat x --json": "--cat and --json do not go together",
    "restore --tar --dry-run": "--tar and --dry-run do not go together",
    "restore --sample 5% x": "--sample and PATH do not go together",
    "restore --include !": "--include: Invalid git pattern",
    "restore x/../y": "has no ..",
    "restore --priority /no/such/file": "--priority: /no/such/file cannot be read",
    "restore --owner-map alice:bob": "expected user:OLD:NEW",
    "restore --owner-map user:alice:no-such-user": "there is no user",
    "restore --strip-prefix /x": "--strip-prefix is for --map",
    "index --create-container": "--create-container",
    "--json save --config": "",
    "restore --config /no/such/file": "/no/such/file",
}


@pytest.mark.parametrize(("line", "says"), MISTAKES.items())
def test_a_mistake_is_told_in_a_line(line: str, says: str) -> None:
    done = run(BLOBARK, *line.split())
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert says in done.stderr


def test_what_is_typed_reaches_no_terminal_raw() -> None:
    evil = "--\x1b[2J\nx\u202e"
    for line in ([evil], ["restore", evil], ["restore", "--config", evil], ["restore", "--snapshot", evil]):
        done = run(BLOBARK, *line)
        assert done.returncode == 2
        assert all(said.isprintable() for said in done.stderr.splitlines()), done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_the_help_lines_up() -> None:
    listed = run(BLOBARK, "--help").stdout.partition("commands:\n")[2].partition("\n\n")[0].splitlines()
    starts = {re.match(r"  \S+ +", line).end() for line in listed if line}  # type: ignore[union-attr]
    assert len(listed) > 10
    assert len(starts) == 1


# What is said on success


@pytest.mark.parametrize("name", COMMANDS)
def test_quiet_says_nothing(saved: Workspace, name: str) -> None:
    for options in (["-q"], ["--quiet", "--dry-run"]):
        done = run(*saved.command(name, *options))
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_summary_is_plain_text_where_no_terminal_is(saved: Workspace, name: str) -> None:
    done = run(*saved.command(name), TERM="xterm-256color", FORCE_COLOR="")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{name}: ")
    assert all(line.isprintable() for line in done.stdout.splitlines())


def test_a_dry_run_says_what_it_would_take(workspace: Workspace) -> None:
    workspace.run("index")
    plan = workspace.run("save", "--dry-run").result
    assert (plan["sent"], plan["sent_bytes"]) == (3, 3)
    assert sum(plan["requests"].values()) >= 5  # three blobs, a segment, a header
    assert not workspace.store.exists()
    workspace.run("save")
    plan = workspace.run("restore", "--dry-run").result
    assert (plan["written"], plan["written_bytes"]) == (3, 3)
    assert sum(plan["requests"].values()) >= 3
    assert not workspace.restored.exists()


def test_verbose_names_every_item(workspace: Workspace) -> None:
    index, save, restore = (run(*workspace.command(name, "-v")).stderr for name in COMMANDS)
    assert all(f"{key} -> {workspace.source}/{path}" in index for path, key in workspace.guids().items())
    assert "file 1" in save
    assert all(f"file {number}" in restore for number in range(3))


# --json


def only_json(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """Return the object that is all of stdout."""
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    assert found["exit_code"] == done.returncode
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_json_is_one_object(saved: Workspace, name: str) -> None:
    for options in (["-v"], ["-q", "--dry-run"]):
        found = only_json(run(*saved.command(name, *options, "--json")))
        assert (found["command"], found["exit_code"]) == (name, 0)


@pytest.mark.parametrize("name", COMMANDS)
def test_json_is_one_object_when_a_command_fails(workspace: Workspace, name: str) -> None:
    config = run(sys.executable, REPOSITORY / SCRIPTS[name], "--json", "--config", "/no/such/file")
    found = only_json(config)
    assert (found["exit_code"], found["command"]) == (2, name)
    assert "/no/such/file" in found["error"]
    workspace.run("index")
    shutil.rmtree(workspace.source)
    workspace.store.write_bytes(b"not a folder")
    failed = only_json(run(*workspace.command(name, "--json")))
    assert failed["exit_code"] in (3, 4)


def test_json_is_one_object_for_a_mistake_on_the_command_line() -> None:
    found = only_json(run(sys.executable, REPOSITORY / SCRIPTS["save"], "--json", "--nonsense"))
    assert (found["exit_code"], found["command"]) == (2, "save")
    assert "--nonsense" in found["error"]


def test_json_names_what_failed(workspace: Workspace) -> None:
    workspace.run("index")
    (workspace.source / "file 1").unlink()
    found = only_json(run(*workspace.command("save", "--json")))
    assert found["exit_code"] == 3
    assert [path for path, _ in found["failed"]] == [f"{workspace.source}/file 1"]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A saved tree that takes a moment to restore."""
    folder = tmp_path_factory.mktemp("many")
    made = Workspace(folder / "work", small_tree(folder / "source"))
    for number in range(3000):
        (made.source / f"{number:04}").write_bytes(b"%d" % number)
    made.backup()
    return made


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_so(many: Workspace, tmp_path: Path, number: signal.Signals) -> None:
    place = tmp_path / "restored"
    command = many.command("restore", "--json", "--to", str(place))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        while process.poll() is None and not place.exists():
            pass
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
        while process.poll() is None and not (place.exists() and any(place.iterdir())):
            pass
        process.send_signal(signal.SIGSTOP)
        time.sleep(10.5)  # the time after which a line is due
        process.send_signal(signal.SIGCONT)
        _, stderr = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0
    lines = stderr.splitlines()
    assert lines
    assert all(re.fullmatch(r"restore: \d+ % [\d,]+ items, .*files/s, .*MB/s, about [\d,]+ s left", s) for s in lines)


# Pipes that nobody reads


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


def test_a_reader_of_the_progress_may_leave_without_stopping_the_work(many: Workspace, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "work", many.source)
    for name in COMMANDS:  # each has more to say than a pipe holds
        code, _ = with_closed("stderr", workspace.command(name, "-v"), after_bytes=10)
        assert code == 0
    assert workspace.header()["totals"]["files"] == 3003
    assert differences(str(workspace.source), str(workspace.restored)) == []


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_a_reader_who_leaves_hides_no_failure(many: Workspace, tmp_path: Path, closed: str) -> None:
    workspace = Workspace(tmp_path / "work", many.source)
    shutil.copytree(many.folder, workspace.folder, dirs_exist_ok=True)
    workspace.configure()
    blob = next(path for path in workspace.store.glob("??/*") if path.stat().st_size)
    blob.unlink()
    for name, wanted in (("restore", 3), ("verify", 7)):
        for options in ([], ["--json"], ["-v"]):
            assert with_closed(closed, workspace.command(name, *options))[0] == wanted
            line = shlex.join(workspace.command(name, *options))
            run("sh", "-c", f"{{ {line} 2>&1; echo $? >{tmp_path}/code; }} | head -c 1")
            assert int((tmp_path / "code").read_text()) == wanted
    for options in (["--snapshot", "9"], ["--config", "/no/such/file"]):  # nobody reads the error either
        code, _ = with_closed(closed, workspace.command("restore", *options))
        assert code == (4 if "9" in options else 2)


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


# Where it is run


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A fresh copy of this checkout."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=REPOSITORY, capture_output=True, check=True).stdout.split(b"\0")
    copy = tmp_path / "checkout"
    for name in map(os.fsdecode, filter(None, names)):
        if (REPOSITORY / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, copy / name)
    return copy


def test_the_configuration_as_shipped_works(checkout: Path) -> None:
    for name in COMMANDS:
        done = run(sys.executable, SCRIPTS[name], cwd=checkout, AZURE_STORAGE_CONNECTION_STRING="")
        assert (done.returncode, done.stderr) == (0, "")
    assert differences(str(checkout / "docs"), str(checkout / "blobark-data" / "restored")) == []
    listing = run("git", "-C", REPOSITORY, "check-ignore", "blobark-data", "guid_file_mapping.json").stdout
    assert len(listing.splitlines()) == 2, "what it writes beside itself is not ignored by git"


def test_a_script_that_is_run_from_elsewhere_finds_the_configuration_beside_it(checkout: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in COMMANDS:
        done = run(sys.executable, checkout / SCRIPTS[name], cwd=elsewhere)
        assert (done.returncode, done.stderr) == (0, "")
    assert differences(str(checkout / "docs"), str(checkout / "blobark-data" / "restored")) == []
    assert list(elsewhere.iterdir()) == []


def test_the_configuration_of_the_current_folder_comes_first(checkout: Path, workspace: Workspace) -> None:
    done = run(sys.executable, checkout / SCRIPTS["index"], "--json", cwd=workspace.folder)
    assert (done.returncode, only_json(done)["mapped"]) == (0, 3)
    assert workspace.map.exists()


def test_without_a_configuration_it_says_where_it_looked(tmp_path: Path) -> None:
    done = run(BLOBARK, "index", cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "config.yaml" in done.stderr
    assert "--config" in done.stderr


def test_relative_paths_of_the_command_line_start_where_one_is(saved: Workspace, tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    done = run(*saved.command("restore", "--to", "restored", "--map", "../work/map.json"), cwd=here)
    assert done.returncode == 0
    assert (here / "restored" / "file 1").exists()
