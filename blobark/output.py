"""What a command gives that is printed as it comes: a listing, row by row, or a stream of bytes."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from blobark.errors import EXIT_DONE, EXIT_ITEMS_FAILED, EXIT_MISSED
from blobark.model import Data


class Row(Protocol):
    """One line of a listing: a struct, for JSON, that knows its line."""

    def line(self) -> str:
        """Return the line for a person."""


@dataclass(frozen=True, slots=True)
class Listing:
    """What a command lists, under a line that says what the columns are ("": it needs none)."""

    heading: str
    rows: Iterator[Row]
    failed: list[tuple[str, str]] = field(default_factory=list)
    """What could not be listed, and why; complete when the rows have come."""
    missed: list[str] = field(default_factory=list)
    """Which rows miss an objective; likewise."""

    is_judged: bool = False
    """Whether all rows are to come, though nobody reads them any more: they do work, or decide the exit code."""

    @property
    def closing(self) -> object | None:
        """What there is to say at the end, once the rows have come: a result like those of other commands."""
        return None

    @property
    def exit_code(self) -> int:
        """The exit code, once the rows have come."""
        return EXIT_MISSED if self.missed else EXIT_ITEMS_FAILED if self.failed else EXIT_DONE


@dataclass(frozen=True, slots=True)
class Stream:
    """Bytes for standard output, as they come."""

    pieces: Generator[Data, None, None]
    failed: list[tuple[str, str]] = field(default_factory=list)
    """What is not in it, or not right; complete when the pieces have come."""

    @property
    def exit_code(self) -> int:
        """The exit code, once the pieces have come."""
        return EXIT_ITEMS_FAILED if self.failed else EXIT_DONE
