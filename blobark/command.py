"""What a command of the command line is made of."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

from blobark.context import Context


class Command(NamedTuple):
    """A command: its script, what it says of itself, its own options, and the function that runs it."""

    script: str
    about: str
    examples: str
    add_options: Callable[[argparse.ArgumentParser], None]
    run: Callable[[Context, argparse.Namespace], Any] | None
    changes: bool = True
    """Whether it changes anything, and so has --dry-run."""
    by_itself: Callable[[argparse.Namespace], Any] | None = None
    """In place of `run` for a command that needs no configuration and no store."""


def snapshot_number(text: str) -> int:
    """Return the number of a snapshot, for argparse."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not the number of a snapshot")
    return int(text)
