"""What holds for every command, also for those to come: help with right examples, --json, exit codes, completion."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from blobark import arguments, errors
from tests.command_lines import BLOBARK, only_json, run
from tests.forked import Forking
from tests.runs import REPOSITORY, SCRIPTS, Workspace
from tests.trees import small_tree, write

COMMANDS = arguments.COMMANDS
DOCUMENTS = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
EXIT_CODES = {value for name, value in vars(errors).items() if name.startswith("EXIT_")}


def help_of(name: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        arguments.parse([name, "--help"], None)
    assert stop.value.code == 0
    return capsys.readouterr().out


def options_of(text: str) -> set[str]:
    """Return the long options that a help explains, each at the beginning of a line."""
    return set(re.findall(r"^  (?:-[a-z], )?(--[a-z][a-z-]*)", text.partition("\nexamples:\n")[0], re.MULTILINE))


# Help


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_examples_that_are_right(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    examples = help_of(name, capsys).partition("\nexamples:\n")[2].partition("\n\n")[0].splitlines()
    assert examples
    for line in examples:
        words = shlex.split(line.partition(" > ")[0])
        assert words[:2] == ["blobark", name]
        assert arguments.parse(words[1:], None).command == name


@pytest.mark.parametrize("name", COMMANDS)
def test_help_names_json_and_every_exit_code(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(name, capsys)
    assert "--json" in options_of(text)
    assert ("--dry-run" in options_of(text)) == COMMANDS[name].changes
    told = {int(code) for code in re.findall(r"(?:^|   ?)(\d+) [a-z]", text.partition("exit codes:")[2], re.MULTILINE)}
    assert told == EXIT_CODES


@pytest.mark.parametrize("name", ["README.md", "docs/design.md"])
def test_the_documents_name_every_exit_code(name: str) -> None:
    text = (REPOSITORY / name).read_text()
    text = text[text.index("0 done, 1 a bug") :].partition("130 interrupted")[0] + "130 interrupted"
    assert {int(code) for code in re.findall(r"(?:^|, )\s*(\d+) [a-z]", text, re.MULTILINE)} == EXIT_CODES


def test_the_documents_name_every_command() -> None:
    text = "".join(file.read_text() for file in DOCUMENTS)
    named = set(re.findall(r"\bblobark ([a-z]+)", text)) | {name for name, file in SCRIPTS.items() if file in text}
    # A row of a table may begin with several: `blobark snapshots`, `ls 12 PATH`, ...
    named |= set(re.findall(r"`([a-z]+) [^`]*`", text))
    assert COMMANDS.keys() - named == set()


# --json


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Two snapshots, and a restore."""
    folder = tmp_path_factory.mktemp("saved")
    workspace = Workspace(folder / "work", small_tree(folder / "source", "a", "b/c"))
    workspace.backup()
    write(workspace.source / "new", "new")
    workspace.backup()
    workspace.run("restore")
    return workspace


def needed(name: str, workspace: Workspace) -> list[str] | None:
    """Return what a command needs to come to a good end; None where this does not know the command."""
    folder, source = workspace.folder, workspace.source
    arguments_of: dict[str, list[str]] = {
        **{each: [] for each in "index save restore backup doctor snapshots ls status forecast verify repair".split()},
        "report": [str(workspace.metrics)],
        "completion": ["bash"],
        "find": ["*"],
        "diff": ["1"],
        "history": [f"{source}/a"],
        "map": ["--out", str(folder / "derived.json")],
        "schedule": ["--daily", "02:30"],
        "drill": ["--full"],
        "sweep": ["--workers", "1", "--repeat", "1", "--out", str(folder / "sweep.html")],
    }
    return arguments_of.get(name)


@pytest.mark.parametrize("name", COMMANDS)
def test_json_is_one_object_with_the_exit_code(saved: Workspace, forking: Forking, name: str) -> None:
    config = ["--config", str(saved.config)] if COMMANDS[name].run else []
    words = needed(name, saved)
    done = forking.run(name, *config, *(words or []), "--json")
    found = object_of(done)
    assert (found["command"], found["exit_code"]) == (name, done.returncode)
    assert done.returncode == 0 if words is not None else done.returncode in EXIT_CODES - {errors.EXIT_BUG}


@pytest.mark.parametrize("name", COMMANDS)
def test_json_is_one_object_for_a_mistake(forking: Forking, name: str) -> None:
    done = forking.run(name, "--json", "--nonsense")
    found = object_of(done)
    assert (found["command"], found["exit_code"], done.returncode) == (name, 2, 2)
    assert found["error"]


def object_of(done: subprocess.CompletedProcess[bytes]) -> dict[str, Any]:
    """Return the object that is all of standard output."""
    found = json.loads(done.stdout)
    assert isinstance(found, dict), done
    return found


# Completion


@pytest.fixture(scope="module")
def bash_script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    done = run(BLOBARK, "completion", "bash")
    assert (done.returncode, done.stderr) == (0, "")
    return write(tmp_path_factory.mktemp("completion") / "blobark", done.stdout)


def completed(script: Path, *words: str, cwd: Path = REPOSITORY) -> set[str]:
    """Return what bash itself offers for the last word of a line."""
    program = (
        'set -u; source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); '
        'function=$(complete -p blobark); function=${function#*-F }; "${function%% *}" blobark "${@: -1}"; '
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    line = ["bash", "--norc", "-c", program, "bash", str(script), "blobark", *words]
    done = subprocess.run(line, cwd=cwd, capture_output=True, timeout=30, check=False, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return {found.strip() for found in done.stdout.split("\n")} - {""}


def test_bash_completes_commands(bash_script: Path) -> None:
    assert completed(bash_script, "") >= COMMANDS.keys()
    assert completed(bash_script, "sna") == {"snapshots"}


@pytest.mark.parametrize("name", COMMANDS)
def test_bash_completes_every_option(bash_script: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert completed(bash_script, name, "--") == options_of(help_of(name, capsys))


def test_bash_completes_choices_and_names_of_files(bash_script: Path, tmp_path: Path) -> None:
    small_tree(tmp_path, "run one.json", "folder/x")
    assert completed(bash_script, "restore", "--overwrite", "") == {"always", "if-changed", "never"}
    assert completed(bash_script, "completion", "") >= {"bash", "zsh"}
    assert completed(bash_script, "restore", "--config", "ru", cwd=tmp_path) == {"run one.json"}
    assert completed(bash_script, "restore", "--to", "", cwd=tmp_path) == {"folder"}


def test_the_script_for_zsh_is_told_which_command_it_is_for() -> None:
    done = run(BLOBARK, "completion", "zsh")
    assert done.stdout.startswith("#compdef blobark\n")
    assert all(re.search(rf"^ *\"?{name}:|_{name}\b", done.stdout, re.MULTILINE) for name in COMMANDS)
    assert "fish" in only_json(run(BLOBARK, "completion", "fish", "--json"))["error"]
