"""The rules: what is left out of an index, and what is skipped by a save.

Pure: no disk, no clock. A path is bytes, relative to its root (b"" is the root itself); a root is known by its real,
absolute name. An answer is the name of the first rule that matched, as people wrote it (`skip_files: *.tmp`), or "".

- `skip_files`: globs on the whole name of what is not a directory; never on a part of it.
- `skip_path`: a path and what lies below it. An entry that starts with `/` is absolute, any other is relative to each
  root. Globs work inside components; `*` never crosses a `/`.
- `exclude`: gitignore patterns, as the library pathspec reads them, against the path relative to the root.

Globs are those of a shell: `*`, `?`, `[abc]`, `[!abc]`; they tell capitals apart and work on characters, where a byte
that is not UTF-8 counts as one. Only a path itself is asked about, since a walk never goes into what is skipped;
`skips_below` is for paths that no walk has led to.
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

from blake3 import blake3

from blobark.errors import ConfigError

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

_MAGIC: Final = re.compile(r"[*?\[]")
_ANCESTORS_KEPT: Final = 4096
_NO_NEWLINE: Final = "\x1e"
"""Stands for a newline in a name: pathspec's expressions stop at newlines."""

Match = Callable[[str], object]


class Rules:
    """The rules of one run. Cheap to ask, and safe to share between threads."""

    __slots__ = ("_below", "_digest", "_exclude", "_names", "_skip_path", "_tables")

    def __init__(
        self, *, skip_files: Sequence[str] = (), skip_path: Sequence[str] = (), exclude: Sequence[str] = ()
    ) -> None:
        self._names = _Names(skip_files) if skip_files else None
        self._skip_path = tuple(_Entry(entry) for entry in skip_path)
        self._tables: dict[bytes, _Table] = {}
        self._below: dict[tuple[bytes, bytes], str] = {}
        self._exclude = Patterns(exclude)
        written = json.dumps([list(skip_files), list(skip_path), list(exclude)])
        self._digest = blake3(written.encode()).hexdigest()[:16]

    def skips(self, root_name: bytes, path: bytes, is_dir: bool) -> str:
        """The skip rule that names this very path, or "". What lies above it is not asked."""
        if self._skip_path:
            table = self._tables.get(root_name) or self._table(root_name)
            rule = table.find(path)
            if rule:
                return rule
        if is_dir or self._names is None:
            return ""
        return self._names.find((path or root_name).rpartition(b"/")[2])

    def skips_below(self, root_name: bytes, path: bytes, is_dir: bool = False) -> str:
        """The skip rule that names this path or a directory above it, or ""."""
        if self._skip_path and path:
            parent = path.rpartition(b"/")[0]
            key = (root_name, parent)
            rule = self._below.get(key)
            if rule is None:
                rule = next(filter(None, (self.skips(root_name, above, True) for above in _upward(parent))), "")
                if len(self._below) >= _ANCESTORS_KEPT:
                    self._below.clear()
                self._below[key] = rule
            if rule:
                return rule
        return self.skips(root_name, path, is_dir)

    def excludes(self, path: bytes, is_dir: bool) -> str:
        """The exclude pattern that leaves this path out of the index, or ""."""
        pattern = self._exclude.find(path, is_dir)
        return f"exclude: {pattern}" if pattern else ""

    def digest(self) -> str:
        """16 hex digits that stay the same for the same rules in the same order."""
        return self._digest

    def _table(self, root_name: bytes) -> _Table:
        table = self._tables[root_name] = _Table(self._skip_path, root_name)
        return table


class Patterns:
    """gitignore patterns, the last that matches decides. What lies below a directory that matches does so, too."""

    __slots__ = ("_ignore", "_patterns")

    def __init__(self, patterns: Sequence[str]) -> None:
        """Raises `ValueError` for what is no pattern."""
        self._patterns = tuple(patterns)
        self._ignore = _gitignore(patterns) if patterns else None

    def __bool__(self) -> bool:
        """Whether there are any."""
        return self._ignore is not None

    def find(self, path: bytes, is_dir: bool) -> str:
        """The pattern that matches a path relative to the root, as it was written, or ""."""
        if self._ignore is None or not path:
            return ""
        text = _text(path + b"/" if is_dir else path).replace("\n", _NO_NEWLINE)
        found = self._ignore.check_file(text)
        return self._patterns[found.index] if found.include and found.index is not None else ""


class _Names:
    """`skip_files`. Almost no name matches, so that answer is the fast one; which rule it was is found after."""

    __slots__ = ("_any", "_rules")

    def __init__(self, globs: Sequence[str]) -> None:
        self._any = re.compile("|".join(map(fnmatch.translate, globs))).match
        self._rules = [(_glob(glob), f"skip_files: {glob}") for glob in globs]

    def find(self, name: bytes) -> str:
        text = _text(name)
        if not self._any(text):
            return ""
        return next(rule for match, rule in self._rules if match(text))


class _Entry:
    """One entry of `skip_path`, cut into components."""

    __slots__ = ("absolute", "parts", "rule")

    def __init__(self, entry: str) -> None:
        self.rule = f"skip_path: {entry}"
        self.absolute = entry.startswith("/")
        self.parts = tuple(part for part in entry.split("/") if part not in ("", "."))
        if ".." in self.parts or "**" in self.parts or not self.parts:
            raise ConfigError(f"{self.rule}: expected a path below /, without .. and **")

    def below(self, root: Sequence[str]) -> tuple[str, ...] | None:
        """The components that are left below that root: () names the root itself, None nothing in it."""
        if not self.absolute:
            return self.parts
        if all(fnmatch.fnmatchcase(name, part) for part, name in zip(self.parts, root, strict=False)):
            return self.parts[len(root) :]
        return None


class _Table:
    """`skip_path` as it looks from one root: exact paths in a dictionary; globs by their number of components."""

    __slots__ = ("_exact", "_globs")

    def __init__(self, entries: Sequence[_Entry], root_name: bytes) -> None:
        root = [part for part in _text(root_name).split("/") if part]
        self._exact: dict[bytes, tuple[int, str]] = {}
        self._globs: dict[int, list[tuple[int, list[Match], str]]] = {}
        for rank, entry in enumerate(entries):
            parts = entry.below(root)
            if parts is None:
                continue
            path = "/".join(parts)
            if _MAGIC.search(path):
                self._globs.setdefault(len(parts), []).append((rank, [_glob(part) for part in parts], entry.rule))
            else:
                self._exact.setdefault(path.encode("utf-8", "surrogateescape"), (rank, entry.rule))

    def find(self, path: bytes) -> str:
        rank, rule = self._exact.get(path, (-1, ""))
        globs = self._globs.get(path.count(b"/") + 1)
        if globs:
            names = _text(path).split("/")
            for other, matches, glob_rule in globs:
                if rule and rank < other:
                    break
                if all(match(name) for match, name in zip(matches, names, strict=True)):
                    return glob_rule
        return rule


def _glob(glob: str) -> Match:
    return re.compile(fnmatch.translate(glob)).match


def _text(raw: bytes) -> str:
    """A name in characters, where a byte that is not UTF-8 counts as one."""
    return raw.decode("utf-8", "surrogateescape")


def _gitignore(patterns: Sequence[str]) -> GitIgnoreSpec:
    from pathspec import GitIgnoreSpec  # late: 58 ms that only those pay who use it

    return GitIgnoreSpec.from_lines(patterns, backend="simple")  # its re2 backend refuses names that are not UTF-8


def _upward(path: bytes) -> Iterator[bytes]:
    """The path and everything above it, down to b"" (the root)."""
    while path:
        yield path
        path = path.rpartition(b"/")[0]
    yield b""
