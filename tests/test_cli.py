"""The command line as people and programs use it: help, options, mistakes, what is said, --json."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.command_lines import BLOBARK, COMMANDS, backed_up, only_json, run, three_files
from tests.forked import Forking
from tests.runs import REPOSITORY, SCRIPTS, Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """Three files, nothing saved yet."""
    return three_files(tmp_path)


@pytest.fixture
def saved(tmp_path: Path) -> Workspace:
    """Three files that have been saved."""
    return backed_up(three_files(tmp_path))


# Help


OPTIONS: dict[str, dict[str, list[str]]] = {
    "index": {
        "--allow-empty": ["{source}"],
        "--allow-shrink": ["{source}"],
        "--adopt": ["{server}"],
        "--skip-damaged": [],
    },
    "save": {"--create-container": [], "--new-store": [], "--skip-damaged": [], "--tag": ["monthly"]},
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
    if option == "--owner-map" and os.geteuid() != 0:
        option, values = "--tar", ["--owner-map", *values]  # only root gives files to others
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
    "restore --tar --owner-map alice:bob": "expected user:OLD:NEW",
    "restore --tar --owner-map user:alice:no-such-user": "there is no user",
    "restore --strip-prefix /x": "--strip-prefix is for --map",
    "index --create-container": "--create-container",
    "--json save --config": "",
    "restore --config /no/such/file": "/no/such/file",
}


@pytest.mark.parametrize(("line", "says"), MISTAKES.items())
def test_a_mistake_is_told_in_a_line(forking: Forking, line: str, says: str) -> None:
    done = forking.run("", *line.split())
    assert done.returncode == 2
    (told,) = done.stderr.decode().splitlines()
    assert says in told


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
