"""What an index found: counts and bytes, and what could not be read."""

from __future__ import annotations

from dataclasses import dataclass, field

from blobark.model import Root

TALLIES = ("new", "changed", "renamed", "unchanged", "gone", "unreadable", "skipped")


@dataclass(slots=True)
class Tally:
    """How many items, and their bytes."""

    items: int = 0
    bytes: int = 0

    def add(self, size: int, items: int = 1) -> None:
        """Count one item, or (-1) take it back."""
        self.items += items
        self.bytes += size * items


@dataclass(slots=True)
class IndexResult:
    """What an index run found. Directories are counted in `dirs` and, unless unreadable, in no tally."""

    server: str = ""
    dirs: int = 0
    mapped: int = 0
    unmapped: int = 0
    """Regular files that are no line of the map: further hard links, sparse files, and what is no blob of its own.

    Of both as the map was written last; 0 in a dry run."""
    roots: list[Root] = field(default_factory=list)
    errors: list[tuple[str, str]] = field(default_factory=list)
    journal: str = ""
    tallies: dict[str, Tally] = field(default_factory=lambda: {name: Tally() for name in TALLIES})
