"""A settings file as text with places: what stands under which key in which line, variables filled in.

It knows YAML, `${NAME}`, `${NAME:-default}` and `$$`, and nothing of what a key means. Values stay text: what YAML
would take them for (`no`, `010`, `1e3`) does not matter. Variables are filled in after the YAML is parsed, so that no
value can be taken for YAML. Tags are refused and nothing is executed. Mistakes are collected, not raised, but for
those that leave nothing to go on with.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import yaml

from blobark.errors import ConfigError
from blobark.model import display

_FILE_LIMIT_BYTES: Final = 1 << 20
_VARIABLE: Final = re.compile(r"\$(?:(\$)|\{([A-Za-z_]\w*)(?::-([^}]*))?\}|(\{))", re.ASCII)
_PLAIN_KEY: Final = re.compile(r"[A-Za-z0-9_.-]{1,60}")
_CORE_TAG: Final = re.compile(r"tag:yaml\.org,2002:(str|int|float|bool|null|timestamp|value|seq|map)")


class Given(NamedTuple):
    """A value as it was given, and its line; line 0 is the command line or a default."""

    line: int
    value: str | list[Given] | dict[str, Given] | None
    written: str = ""
    """A text as it stands in the file, without what variables bring."""


def option_of(key: str) -> str:
    """Return the option of the command line that sets a key."""
    return "--to" if key == "restore_root" else f"--{key.replace('_', '-')}"


class Mistakes:
    """The mistakes found so far, one line each."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._found: list[tuple[int, str]] = []
        self._keys: set[str] = set()

    def place(self, line: int) -> str:
        """Return the name of a line; 0 is none in particular."""
        return f"{self._file}:{line}" if line else self._file

    def add(self, line: int, key: str, text: str) -> None:
        """Note what is wrong with the value of a key."""
        place = self.place(line)
        self._found.append((line, f"{place}: {key}: {text}" if key else f"{place}: {text}"))
        self._keys.add(key)

    def add_option(self, key: str, text: str) -> None:
        """Note what is wrong with a value of the command line."""
        self._found.append((0, f"{option_of(key)}: {text}"))
        self._keys.add(key)

    def about(self, key: str) -> bool:
        """Whether anything is wrong with this key."""
        return key in self._keys

    def raise_any(self) -> None:
        """Raise all mistakes as one ConfigError, in the order of the file, if there are any."""
        if self._found:
            self._found.sort(key=lambda found: found[0])
            raise ConfigError("\n".join(text for _, text in self._found))


class SettingsFile:
    """A settings file, read once. Its keys come from `keys`."""

    def __init__(self, file: Path, environ: Mapping[str, str], mistakes: Mistakes) -> None:
        self._path = file
        self._file = display(os.fsencode(file))
        self._environ = environ
        self._mistakes = mistakes
        self.others_can_read = False

    def keys(self, known: frozenset[str]) -> dict[str, Given]:
        """Return what is given for each known key; a key without a value counts as not given.

        Raises:
            ConfigError: the file cannot be read, or is not a YAML mapping.
        """
        top = self._top(self._read())
        given: dict[str, Given] = {}
        lines: dict[str, int] = {}
        for key_node, node in top.value:
            line = key_node.start_mark.line + 1
            key = str(key_node.value)
            if key not in known:
                text = f"unknown key, {expected_instead(key, known)}"
                self._mistakes.add(line, key if _PLAIN_KEY.fullmatch(key) else "", text)
            elif key in lines:
                self._mistakes.add(line, key, f"given twice, first in line {lines[key]}")
            else:
                lines[key] = line
                value = self._value(key, node)
                if value is not None and value.value not in (None, ""):
                    given[key] = value
        return given

    def _read(self) -> str:
        try:
            with open(self._path, "rb") as file:
                status = os.fstat(file.fileno())
                raw = file.read(_FILE_LIMIT_BYTES + 1)
        except OSError as error:
            raise ConfigError(f"{self._file}: cannot be read ({error.strerror})") from None
        if len(raw) > _FILE_LIMIT_BYTES:
            raise ConfigError(f"{self._file}: longer than {_FILE_LIMIT_BYTES >> 20} MiB, this is no configuration")
        self.others_can_read = stat.S_ISREG(status.st_mode) and bool(status.st_mode & (stat.S_IRGRP | stat.S_IROTH))
        try:
            return raw.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = raw.count(b"\n", 0, error.start) + 1
            raise ConfigError(f"{self._file}:{line}: not UTF-8 (the byte 0x{raw[error.start]:02x})") from None

    def _top(self, text: str) -> yaml.MappingNode:
        # The C loader takes a tenth of the millisecond that this takes, and crashes on deep nesting.
        try:
            top = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = mark.line + 1 if mark else 1
            raise ConfigError(f"{self._file}:{line}: not YAML: {error.problem or error.context}") from None
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            raise ConfigError(f"{self._file}:{line}: not YAML: a control character") from None
        except RecursionError:
            raise ConfigError(f"{self._file}: not a configuration: nested too deeply") from None
        if top is None:
            raise ConfigError(f"{self._file}: is empty")
        if not isinstance(top, yaml.MappingNode):
            raise ConfigError(f"{self._file}:{top.start_mark.line + 1}: expected lines of the form `key: value`")
        return top

    def _value(self, key: str, node: yaml.Node, depth: int = 0) -> Given | None:
        """A scalar, a list of values, or a mapping of either; None, and a mistake noted, for whatever else."""
        line = node.start_mark.line + 1
        if not _CORE_TAG.fullmatch(node.tag):
            self._mistakes.add(line, key, "YAML tags are not taken here")
            return None
        if isinstance(node, yaml.ScalarNode):
            return Given(line, None) if node.tag.endswith(":null") else self._filled(line, key, node.value)
        if isinstance(node, yaml.SequenceNode) and depth in (0, 2):
            items = [self._value(key, item, depth + 1) for item in node.value]
            return Given(line, [item for item in items if item is not None])
        if isinstance(node, yaml.MappingNode) and depth < 2:
            fields = self._fields(key, node, depth)
            whole = {name: item for name, item in fields.items() if item is not None}
            return Given(line, whole) if len(whole) == len(fields) else None
        self._mistakes.add(line, key, "nested too deeply")
        return None

    def _fields(self, key: str, node: yaml.MappingNode, depth: int) -> dict[str, Given | None]:
        """The values of a mapping by their names; a mistake is noted for a name that comes again."""
        fields: dict[str, Given | None] = {}
        lines: dict[str, int] = {}
        for name_node, item in node.value:
            name, line = str(name_node.value), name_node.start_mark.line + 1
            if name in fields:
                shown = name if _PLAIN_KEY.fullmatch(name) else "a word"
                self._mistakes.add(line, key, f"{shown} is given twice, first in line {lines[name]}")
            else:
                lines[name], fields[name] = line, self._value(key, item, depth + 2)
        return fields

    def _filled(self, line: int, key: str, text: str) -> Given | None:
        missing = []

        def fill(match: re.Match[str]) -> str:
            dollar, name, default, broken = match.groups()
            if dollar:
                return "$"
            if broken:
                missing.append("expected ${NAME} or ${NAME:-default} ($$ is a plain $)")
                return ""
            value = self._environ.get(name, "")
            if default is not None:
                return value or str(default)
            if name not in self._environ:
                missing.append(f"the environment variable {name} is not set")
            return value

        filled = _VARIABLE.sub(fill, text)
        for fault in missing:
            self._mistakes.add(line, key, fault)
        return None if missing else Given(line, filled, _VARIABLE.sub(lambda match: match[3] or "", text))


def expected_instead(word: str, known: Iterable[str]) -> str:
    """Return what to write in place of a word that is not known: the nearest one, or any of them."""
    import difflib  # only for those who mistype

    words = sorted(known)
    near = difflib.get_close_matches(word, words, n=1)
    return f"did you mean {near[0]}?" if near else f"expected one of {', '.join(words)}"
