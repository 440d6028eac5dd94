"""`blobark completion`: what makes a shell complete commands, options, their choices, and names of files.

The script is made of the grammar once (by shtab) and is the shell's own from then on: no key press starts Python.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import msgspec

from blobark.output import Listing

SHELLS = ("bash", "zsh")

FILES = ("FILE", "RUN")
FOLDERS = ("DIR", "ROOT")
"""Arguments that are shown so in the help are names on this machine."""


class Line(msgspec.Struct, frozen=True):
    """A line of the script."""

    text: str

    def line(self) -> str:
        """Return it."""
        return self.text


def list_script(shell: str, parser: argparse.ArgumentParser) -> Listing:
    """List the script for one of SHELLS, made of the parser of all commands."""
    import shtab

    for action in _actions(parser):
        kinds = {**dict.fromkeys(FILES, shtab.FILE), **dict.fromkeys(FOLDERS, shtab.DIRECTORY)}
        if action.metavar in kinds:
            action.complete = kinds[action.metavar]  # type: ignore[attr-defined]
    text = shtab.complete(parser, shell)
    return Listing("", (Line(line) for line in text.expandtabs(4).splitlines()))


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Yield the arguments of a parser and of those of its commands."""
    for action in parser._actions:  # noqa: SLF001  (argparse tells them in no other way)
        yield action
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            for below in action.choices.values():
                yield from _actions(below)
