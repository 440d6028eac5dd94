"""What a command of the command line is made of."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from datetime import datetime
from typing import Any, NamedTuple

from blobark.clock import utc
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
    """Comes first, for what needs no configuration and no store; None as its result means: `run` is to be called."""


def server_option(parser: argparse.ArgumentParser) -> None:
    """Let a command be told of which server it is to speak."""
    text = "whose snapshots, when several share the store"
    parser.add_argument("--server", default="", metavar="NAME", help=text)


def snapshot_number(text: str) -> int:
    """Return the number of a snapshot, for argparse."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not the number of a snapshot")
    return int(text)


def moment_ns(text: str) -> int:
    """Return a time as nanoseconds since 1970 UTC, for argparse; without an offset it is this machine's local time."""
    try:
        time_ns = int(datetime.fromisoformat(text.strip()).timestamp()) * 1_000_000_000
        utc(time_ns)  # near the ends of the calendar its offset may lead out of it
        return time_ns
    except (ValueError, OverflowError, OSError):
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 2026-11-01T12:00, or 2026-11-01") from None


def share(text: str) -> float:
    """Return a percentage, above 0 and up to 100, as a share of 1, for argparse."""
    match = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,6})?) ?%", text.strip())
    if match is None or not 0 < float(match[1]) <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share such as 5%")
    return float(match[1]) / 100
