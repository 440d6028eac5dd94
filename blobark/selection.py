"""What of a snapshot a restore is about: paths, patterns to include, patterns to exclude. Pure, cheap to ask.

An item is chosen when it lies at or below one of the paths (without paths: anywhere), an include pattern matches it
(without include patterns: anything), and no exclude pattern does. Patterns are those of `exclude` in the configuration
(gitignore's), against the path below its root; what matches a directory matches all that is in it. The same question
tells what `--delete` may remove: what would be chosen if the snapshot had it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from blobark.errors import ConfigError
from blobark.model import display
from blobark.names import meant
from blobark.rules import Patterns

NO_PATTERNS = Patterns(())


@dataclass(frozen=True, slots=True)
class Selection:
    """What the command line says. `paths` are as given: absolute, or below the only root."""

    paths: tuple[bytes, ...] = ()
    include: Patterns = NO_PATTERNS
    exclude: Patterns = NO_PATTERNS

    @classmethod
    def of(cls, paths: Iterable[str], include: Sequence[str], exclude: Sequence[str]) -> Selection:
        """Return the selection of a command line. Raises `ConfigError`."""
        chosen = tuple(dict.fromkeys(clean_path(meant(path)) for path in paths))
        return cls(chosen, patterns("--include", include), patterns("--exclude", exclude))

    def __bool__(self) -> bool:
        """Whether it leaves anything out, perhaps."""
        return bool(self.paths or self.include or self.exclude)


@dataclass(frozen=True, slots=True)
class Chosen:
    """A selection as it applies to one snapshot; `tops` are the paths below each root, None: all of every root."""

    tops: dict[int, frozenset[bytes]] | None = None
    includes: tuple[Patterns, ...] = ()
    """Each of them must match."""
    exclude: Patterns = NO_PATTERNS

    def takes(self, root: int, path: bytes, is_dir: bool) -> bool:
        """Whether an item is chosen, whether or not there is one."""
        if self.tops is not None and not self._is_below_top(root, path):
            return False
        if not all(include.find(path, is_dir) for include in self.includes):
            return False
        return not (self.exclude and self.exclude.find(path, is_dir))

    def _is_below_top(self, root: int, path: bytes) -> bool:
        tops = (self.tops or {}).get(root, frozenset())
        if b"" in tops or path in tops:
            return True
        at = path.find(b"/")
        while at >= 0:
            if path[:at] in tops:
                return True
            at = path.find(b"/", at + 1)
        return False


def clean_path(path: bytes) -> bytes:
    """Return a path of the command line without empty components and `.`. Raises `ConfigError` where it has `..`."""
    parts = [part for part in path.split(b"/") if part not in (b"", b".")]
    if b".." in parts or b"\0" in path:
        raise ConfigError(f"{display(path)}: a path of a snapshot has no ..", "write it as `blobark ls` shows it")
    absolute = b"/" if path.startswith(b"/") else b""
    if not parts and not absolute:
        raise ConfigError(f"{display(path)!r} is no path of a snapshot", "write it as `blobark ls` shows it")
    return absolute + b"/".join(parts)


def patterns(option: str, lines: Sequence[str]) -> Patterns:
    """Return gitignore patterns. Raises `ConfigError` for what is none."""
    for line in lines:
        if not line.strip() or "\n" in line or "\0" in line:
            raise ConfigError(f"{option}: expected one gitignore pattern, got {line[:80]!r}")
        try:
            Patterns([line])
        except ValueError as error:
            raise ConfigError(f"{option}: {error}") from None
    return Patterns(lines)


def read_patterns(option: str, file: Path) -> Patterns:
    """Return the gitignore patterns of a file, one a line; `#` begins a comment. Raises `ConfigError`."""
    try:
        text = file.read_bytes().decode(errors="surrogateescape")
    except OSError as error:
        raise ConfigError(f"{option}: {display(os.fsencode(file))} cannot be read ({error.strerror})") from None
    lines = [line for line in text.split("\n") if line.strip() and not line.startswith("#")]
    if not lines:
        raise ConfigError(f"{option}: {display(os.fsencode(file))} has no pattern")
    return patterns(option, [line.removesuffix("\r") for line in lines])
