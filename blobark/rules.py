"""The rules: what is left out of an index, and what is skipped by a save.

Pure: no disk, no clock. A path is bytes, relative to its root (b"" is the root itself); a root is known by its real,
absolute name. An answer is the name of the first rule that matched, as people wrote it (`skip_files: *.tmp`), or "".

- `skip_files`: globs on the whole name of what is not a directory; never on a part of it.
- `skip_path`: a path and what lies below it. An entry that starts with `/` is absolute, any other is relative to each
  root. Globs work inside components; `*` never crosses a `/`.
- `exclude`: gitignore patterns against the path relative to the root; the last one that matches decides.

Globs are those of a shell: `*`, `?`, `[abc]`, `[!abc]`; they tell capitals apart and work on characters, where a byte
that is not UTF-8 counts as one. Only a path itself is asked about, since a walk never goes into what is skipped;
`skips_below` is for paths that no walk has led to.
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from blake3 import blake3

from blobark.errors import ConfigError

if TYPE_CHECKING:
    import pathspec

_MAGIC: Final = re.compile(r"[*?\[]")
_TOKEN: Final = re.compile(r"(\*+)|(\?)|(\[!?\]?[^\]]*\])|(.)", re.DOTALL)
_ANCESTORS_KEPT: Final = 4096

_Named = tuple[re.Pattern[str], str]


class Rules:
    """The rules of one run. Cheap to ask, and safe to share between threads."""

    __slots__ = ("_below", "_digest", "_exclude", "_names", "_skip_path", "_spec", "_tables")

    def __init__(
        self, *, skip_files: Sequence[str] = (), skip_path: Sequence[str] = (), exclude: Sequence[str] = ()
    ) -> None:
        self._names = _Names(skip_files) if skip_files else None
        self._skip_path = tuple(_Entry(text) for text in skip_path)
        self._tables: dict[bytes, _Table] = {}
        self._below: dict[tuple[bytes, bytes], str] = {}
        self._exclude = tuple(exclude)
        self._spec = _gitignore(exclude) if exclude else None
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
        if self._spec is None or not path:
            return ""
        if b"\n" in path:  # the patterns are regular expressions, where a newline is special
            path = path.replace(b"\n", b"\xff")
        text = path.decode("utf-8", "replace")
        result = self._spec.check_file(text + "/" if is_dir else text)
        if not result.include:
            return ""
        return f"exclude: {self._exclude[result.index or 0]}"

    def digest(self) -> str:
        """16 hex digits that stay the same for the same rules in the same order."""
        return self._digest

    def _table(self, root_name: bytes) -> _Table:
        table = self._tables[root_name] = _Table(self._skip_path, root_name)
        return table


class _Names:
    """`skip_files`. Almost no name matches, so that answer is the fast one; which rule it was is found after."""

    __slots__ = ("_ends", "_exact", "_globs", "_named", "_starts")

    def __init__(self, globs: Sequence[str]) -> None:
        self._named: list[_Named] = [(re.compile(_regex(glob)), f"skip_files: {glob}") for glob in globs]
        shapes = [_shape(glob) for glob in globs]
        self._exact = frozenset(text for shape, text in shapes if shape == "exact")
        self._starts = tuple(text for shape, text in shapes if shape == "start")
        self._ends = tuple(text for shape, text in shapes if shape == "end")
        others = [_regex(glob) for glob, (shape, _) in zip(globs, shapes, strict=True) if shape == "glob"]
        self._globs = re.compile("|".join(others)).fullmatch if others else None

    def find(self, name: bytes) -> str:
        if (
            name in self._exact
            or name.endswith(self._ends)
            or name.startswith(self._starts)
            or (self._globs is not None and self._globs(name.decode("utf-8", "surrogateescape")))
        ):
            text = name.decode("utf-8", "surrogateescape")
            return next(rule for regex, rule in self._named if regex.fullmatch(text))
        return ""


class _Entry:
    """One entry of `skip_path`, cut into components."""

    __slots__ = ("absolute", "parts", "rule")

    def __init__(self, text: str) -> None:
        self.rule = f"skip_path: {text}"
        self.absolute = text.startswith("/")
        self.parts = tuple(part for part in text.split("/") if part not in ("", "."))
        if ".." in self.parts or "**" in self.parts or not (self.parts or self.absolute):
            raise ConfigError(f"{self.rule!r}: expected a path without .. and **")

    def below(self, root: Sequence[str]) -> tuple[str, ...] | None:
        """The components that are left below that root: () names the root itself, None nothing in it."""
        if not self.absolute:
            return self.parts
        if all(re.fullmatch(_regex(part), name) for part, name in zip(self.parts, root, strict=False)):
            return self.parts[len(root) :]
        return None


class _Table:
    """`skip_path` as it looks from one root: exact paths in a dictionary, the others in one regular expression."""

    __slots__ = ("_any", "_exact", "_globs")

    def __init__(self, entries: Sequence[_Entry], root_name: bytes) -> None:
        root = [part for part in _text(root_name).split("/") if part]
        self._exact: dict[bytes, tuple[int, str]] = {}
        self._globs: list[tuple[int, re.Pattern[str], str]] = []
        regexes: list[str] = []
        for rank, entry in enumerate(entries):
            parts = entry.below(root)
            if parts is None:
                continue
            path = "/".join(parts)
            if _MAGIC.search(path):
                regexes.append("/".join(_regex(part) for part in parts))
                self._globs.append((rank, re.compile(regexes[-1]), entry.rule))
            else:
                self._exact.setdefault(path.encode("utf-8", "surrogateescape"), (rank, entry.rule))
        self._any = re.compile("|".join(regexes)).fullmatch if regexes else None

    def find(self, path: bytes) -> str:
        rank, rule = self._exact.get(path, (-1, ""))
        if self._any is None:
            return rule
        text = path.decode("utf-8", "surrogateescape")
        if not self._any(text):
            return rule
        found = next(item for item in self._globs if item[1].fullmatch(text))
        return rule if rule and rank < found[0] else found[2]


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _upward(path: bytes) -> Iterator[bytes]:
    """The path and everything above it, down to b"" (the root)."""
    while path:
        yield path
        path = path.rpartition(b"/")[0]
    yield b""


def _shape(glob: str) -> tuple[str, bytes]:
    """How a glob can be tested without a regular expression: exact, start, end; or only as a glob."""
    for shape, text in (("exact", glob), ("end", glob[1:]), ("start", glob[:-1])):
        whole = {"exact": text, "end": "*" + text, "start": text + "*"}[shape]
        if whole == glob and not _MAGIC.search(text):
            return shape, text.encode("utf-8", "surrogateescape")
    return "glob", b""


def _regex(glob: str) -> str:
    """A glob of one component as a regular expression for `fullmatch`.

    Every `*` but the last takes as little as it can and then stands (an atomic group), which decides the same and
    never backtracks.
    """
    runs = [""]
    for star, one, some, char in _TOKEN.findall(glob):
        if star:
            runs.append("")
        elif one:
            runs[-1] += "[^/]"
        elif some:
            runs[-1] += "(?!/)" + fnmatch.translate(some)[len("(?s:") : -len(r")\Z")]
        else:
            runs[-1] += re.escape(char)
    if len(runs) == 1:
        return runs[0]
    middle = "".join(f"(?>[^/]*?{run})" for run in runs[1:-1])
    return f"{runs[0]}{middle}[^/]*{runs[-1]}"


def _gitignore(patterns: Sequence[str]) -> pathspec.GitIgnoreSpec:
    import pathspec  # 55 ms, and most configurations have no patterns

    lines = []
    for pattern in patterns:
        # git: `a/**` is what lies inside a, not a itself; pathspec would take a as well, and `!a/keep` would be lost
        body = pattern.rstrip("/")
        inside = body.endswith("/**") and body.strip("/") != "**"
        lines.append(body + "/*" + pattern[len(body) :] if inside else pattern)
    try:
        return pathspec.GitIgnoreSpec.from_lines(lines)
    except ValueError as error:
        raise ConfigError(f"exclude: {error}") from None
