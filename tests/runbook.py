"""The runbook of docs/operations.md as commands: what stands indented below a heading, word by word."""

from __future__ import annotations

import re
import subprocess
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.runs import REPOSITORY

TITLE = "## When a machine is gone: the runbook\n"
TIMEOUT_S = 240.0

# Each simple command that fails is noted with its exit code, and the next one follows, as on a terminal.
TRAP = 'trap \'echo "$? $BASH_COMMAND" >> "$HOME/failed"\' ERR\n'


@dataclass(frozen=True)
class Done:
    """How the commands of a step went: what they said, and (exit code, command) of those that failed."""

    output: str
    failed: list[tuple[int, str]]


def steps() -> dict[str, str]:
    """Return the commands of each step by its number, and below "" the lines that set what must be known."""
    text = (REPOSITORY / "docs" / "operations.md").read_text()
    runbook = text.partition(TITLE)[2].partition("\n## ")[0]
    first, *others = re.split(r"^### (?=\d)", runbook, flags=re.MULTILINE)
    return {"": commands(first), **{part.partition(".")[0]: commands(part) for part in others}}


def commands(text: str) -> str:
    """Return the indented lines of a text, as they are typed."""
    return textwrap.dedent("".join(re.findall(r"^    .*\n", text, re.MULTILINE)))


def follow(script: str, home: Path, inputs: Mapping[str, str]) -> Done:
    """Type some commands on a machine that has a home and knows these variables, and nothing else."""
    noted = home / "failed"
    noted.unlink(missing_ok=True)
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-c", TRAP + script],
        cwd=home,
        env={"HOME": str(home), **inputs},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=TIMEOUT_S,
        check=False,
        text=True,
    )
    lines = noted.read_text().splitlines() if noted.exists() else []
    failed = [(int(line.partition(" ")[0]), line.partition(" ")[2]) for line in lines]
    return Done(done.stdout, failed)
