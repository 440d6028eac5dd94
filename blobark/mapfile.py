r"""The map `guid_file_mapping.json`: `{ "<server>_<guid>": "/path", ... }`, streamed in both directions.

`write` makes it whole or not at all: a temporary file beside it, mode 0600, synced, then renamed. `MapReader` reads a
map of any size in little memory, whoever made it, and trusts nothing: each mistake is one `ConfigError` that names the
file, the line and, where there is one, the key. `check_unique` finds a GUID or a path that is there twice.

Names that are not UTF-8 are `\udcXX` escapes, as the standard library's json writes them. The fast JSON parsers refuse
or lose exactly those and keep one of two equal keys, so the reader is its own: a map is a flat object of strings, which
one regular expression cuts into pairs, and the few strings with escapes go through the standard library.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from blake3 import blake3

from blobark.errors import ConfigError, Fatal
from blobark.model import display
from blobark.repeats import Repeats

_CHUNK_BYTES: Final = 1 << 20
_PAIR_LIMIT_BYTES: Final = 1 << 20
_NAME_LIMIT_BYTES: Final = 255
_BATCH_PAIRS: Final = 4096
_MISTAKES_SHOWN: Final = 100
_SHOWN_BYTES: Final = 200

_GUID: Final = rb"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}"
_SERVER: Final = rb"[A-Za-z0-9][A-Za-z0-9._-]{0,199}"
_KEY: Final = re.compile(rb"(?:(" + _SERVER + rb")_)?(" + _GUID + rb")(/?)")
_STRING: Final = rb'"([^"\\\x00-\x1f]*+(?:\\.[^"\\\x00-\x1f]*+)*+)"'
_SPACE: Final = rb"[ \t\r\n]*+"
_PAIR: Final = re.compile(_SPACE + _STRING + _SPACE + b":" + _SPACE + _STRING + _SPACE + b"([,}])")
# the same for a pair in which nothing needs decoding and nothing is wrong: the only one that a good map needs.
# The path's own repetition is not possessive: before Python 3.11.4 such a group kept the slash that it gave back
_GOOD_PAIR: Final = re.compile(
    rb'%b"((?:%b_)?%b)(/?)"%b:%b"((?:/(?!\.{1,2}[/"])[^/"\\\x00-\x1f]{1,255}+)+)(/?)"%b([,}])'
    % (_SPACE, _SERVER, _GUID, _SPACE, _SPACE, _SPACE)
)
_ESCAPED: Final = re.compile(rb'["\\\x00-\x1f]')
_BLANK: Final = re.compile(_SPACE)
_START_OF_PAIR: Final = re.compile(
    _SPACE + b"(?:" + _STRING + _SPACE + b"(?:(:)" + _SPACE + b"(?:" + _STRING + _SPACE + b")?)?)?"
)
_START_OF_STRING: Final = re.compile(rb'"[^"\\\x00-\x1f]*+(?:\\.[^"\\\x00-\x1f]*+)*+')


class MapItem(NamedTuple):
    """One pair. `key` is the blob's name as written, `guid` is lower-case, `server` is "" where the key has none.

    `path` is absolute, without a trailing `/`; `placeholder` says that it stands for a directory that was skipped.
    """

    key: str
    server: str
    guid: str
    path: bytes
    placeholder: bool


class MapWritten(NamedTuple):
    """What `write` wrote: the BLAKE3 of the file in hex, and the number of pairs."""

    digest: str
    pairs: int


def digest_of(path: Path) -> str:
    """Return the BLAKE3 of a file in hex, as `b3sum` prints it.

    Raises:
        ConfigError: the file cannot be read.
    """
    hasher = blake3()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                hasher.update(chunk)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    return hasher.hexdigest()


def write(target: Path, pairs: Iterable[tuple[str, bytes]]) -> MapWritten:
    """Write a map, one pair a line, in the order given. An exception of `pairs` leaves the old map as it was.

    Raises:
        Fatal: the file cannot be written.
    """
    with _written(target):
        if target.exists() and not target.is_file() and not target.is_dir():
            raise OSError(errno.EINVAL, "it is no file, and would be replaced by one")
        target = Path(os.path.realpath(target))  # a link stays
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.tmp")  # one writer at a time: what a killed one left is reused
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(handle, "wb", buffering=0) as file:
            written = _write_pairs(target, file, pairs)
        with _written(target):
            os.replace(temporary, target)
            _sync_folder(target.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    return written


def _write_pairs(target: Path, file: BinaryIO, pairs: Iterable[tuple[str, bytes]]) -> MapWritten:
    hasher = blake3()
    count = 0

    def put(text: bytes) -> None:
        hasher.update(text)
        with _written(target):
            rest = memoryview(text)
            while rest:
                rest = rest[file.write(rest) :]

    lines = (_line(key, path) for key, path in pairs)
    before = b"{\n"
    while batch := list(islice(lines, _BATCH_PAIRS)):
        put(before + b",\n".join(batch))
        count += len(batch)
        before = b",\n"
    put(b"\n}\n" if count else b"{}\n")
    with _written(target):
        os.fsync(file.fileno())
    return MapWritten(hasher.hexdigest(), count)


def _line(key: str, path: bytes) -> bytes:
    try:
        text = path.decode()
    except UnicodeDecodeError:
        text = path.decode("utf-8", "surrogateescape")
        return f"  {json.dumps(key)}: {json.dumps(text)}".encode()
    if _ESCAPED.search(path) or not key.isascii():
        return f"  {json.dumps(key)}: {json.dumps(text, ensure_ascii=False)}".encode()
    return b'  "%b": "%b"' % (key.encode(), path)


@contextlib.contextmanager
def _written(target: Path) -> Iterator[None]:
    """Only what is done to the map's own file goes in here: errors of the pairs are the caller's."""
    try:
        yield
    except OSError as error:
        raise Fatal(f"{target}: the map cannot be written: {error.strerror}") from error


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class MapReader:
    """The pairs of a map, as often as it is iterated. Raises ConfigError at the first mistake.

    The file is read to its end before the iteration ends, so nothing final may be done before that: a map that is cut
    short, say, gives its good pairs first.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __iter__(self) -> Iterator[MapItem]:
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            raise ConfigError(f"{self.path}: no such map", "make it with build_index.py") from None
        except OSError as error:
            raise ConfigError(f"{self.path}: cannot be read: {error.strerror}") from error
        with file:
            yield from _Scanner(self.path, file).items()


class _Scanner:
    """One reading of a map.

    `buffer` holds a stretch of the file, `at` is how far it is used up, `line` is the line its first byte is on.
    """

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self.file = file
        self.buffer = b""
        self.at = 0
        self.line = 1

    def items(self) -> Iterator[MapItem]:
        self._more()
        if self.buffer.startswith(b"\xef\xbb\xbf"):
            self.at = 3
        self._open()
        if self._next_byte() == b"}":
            self.at += 1
            self._close()
            return
        end = b","
        while end != b"}":
            match = _GOOD_PAIR.match(self.buffer, self.at)
            if match is None or not (match[3].isascii() or _is_utf8(match[3])):
                item, end = self._any_pair()
                yield item
                continue
            self.at = match.end()
            raw_key, slash, path, path_slash, end = match.groups()
            key = raw_key.decode()
            yield MapItem(key + "/" if slash else key, key[:-37], key[-36:].lower(), path, bool(slash or path_slash))
        self._close()

    def _any_pair(self) -> tuple[MapItem, bytes]:
        """One pair, read slowly: at the buffer's edge, with escapes, or wrong."""
        while (match := _PAIR.match(self.buffer, self.at)) is None:
            if len(self.buffer) - self.at > _PAIR_LIMIT_BYTES or not self._more():
                raise self._malformed()
        key, path = (self._decoded(match, group) for group in (1, 2))
        item = self._item(match.start(1), key, path)
        self.at = match.end()
        return item, match[3]

    def _decoded(self, match: re.Match[bytes], group: int) -> bytes:
        raw = match[group]
        what = "the key" if group == 1 else "the path"
        if not _is_utf8(raw):
            raise self._mistake(match.start(group), f"{what} is not UTF-8")
        if b"\\" not in raw:
            return raw
        try:
            return str(json.loads(b'"' + raw + b'"')).encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            raise self._mistake(match.start(group), f"{what} holds half a surrogate pair") from None
        except ValueError:
            raise self._mistake(match.start(group), f"{what} holds an escape that JSON does not know") from None

    def _item(self, at: int, raw_key: bytes, path: bytes) -> MapItem:
        shown = _shown(raw_key)
        match = _KEY.fullmatch(raw_key)
        if match is None:
            raise self._mistake(at, f"{shown}: expected <guid> or <server>_<guid> as the key")
        bare = path[:-1] if path.endswith(b"/") else path
        fault = _path_fault(bare)
        if fault:
            raise self._mistake(at, f"{shown}: {fault}, got {_shown(path)}")
        server = (match[1] or b"").decode("ascii")
        placeholder = bool(match[3]) or bare != path
        return MapItem(raw_key.decode("ascii"), server, match[2].decode("ascii").lower(), bare, placeholder)

    def _open(self) -> None:
        first = self._next_byte()
        if not first:
            raise self._mistake(self.at, "the map is empty, expected a JSON object")
        if first != b"{":
            raise self._mistake(self.at, "expected a JSON object { ... }")
        self.at += 1

    def _close(self) -> None:
        if self._next_byte():
            raise self._mistake(self.at, "there is something after the closing }")

    def _next_byte(self) -> bytes:
        """The byte after the white space here, b"" at the end of the file."""
        while True:
            blank = _BLANK.match(self.buffer, self.at)
            self.at = blank.end() if blank else self.at
            if self.at < len(self.buffer) or not self._more():
                return self.buffer[self.at : self.at + 1]

    def _more(self) -> bool:
        """Read on, and let go of what is used up. False at the end of the file."""
        try:
            chunk = self.file.read(_CHUNK_BYTES)
        except OSError as error:
            raise ConfigError(f"{self.path}: cannot be read: {error.strerror}") from error
        if chunk:
            self.line += self.buffer.count(b"\n", 0, self.at)
            self.buffer = self.buffer[self.at :] + chunk
            self.at = 0
        return bool(chunk)

    def _mistake(self, at: int, text: str) -> ConfigError:
        line = self.line + self.buffer.count(b"\n", 0, at)
        return ConfigError(f"{self.path}:{line}: {text}")

    def _malformed(self) -> ConfigError:
        """Say what is wrong with the text at `at`, which is no pair and will not become one."""
        start = _START_OF_PAIR.match(self.buffer, self.at)
        key, colon, path = start.groups() if start else (None, None, None)
        at = start.end() if start else self.at
        if key is None:
            wanted, place = "a key in double quotes", "after the last { or comma"
        elif colon is None:
            wanted, place = "a colon", f"after the key {_shown(key)}"
        elif path is None:
            wanted, place = "a path in double quotes", f"for the key {_shown(key)}"
        else:
            wanted, place = "a comma or }", f"after the path of {_shown(key)}"
        if at >= len(self.buffer):
            return self._mistake(at, f"the map is cut short: expected {wanted} {place}")
        if self.buffer[at] != ord('"') or "quotes" not in wanted:
            return self._mistake(at, f"not JSON: expected {wanted} {place}")
        inside = _START_OF_STRING.match(self.buffer, at)
        stop = inside.end() if inside else at
        if len(self.buffer) - at > _PAIR_LIMIT_BYTES:
            fault = f"longer than {_PAIR_LIMIT_BYTES:,} bytes"
        elif stop >= len(self.buffer) or self.buffer[stop] == ord("\\"):
            fault = "cut short"
        else:
            fault = "broken by a control character"
        return self._mistake(at, f"{wanted.removesuffix(' in double quotes')} {place} is {fault}")


def check_unique(items: MapReader) -> Iterator[MapItem]:
    """Pass the items of a map on; a blob or a path that is there twice is told after the last one.

    Hashes, in bounded memory, only say what to look at again: then the map is read a second time, and names decide.

    Raises:
        ConfigError: the map is damaged, or something is there twice.
    """
    with tempfile.TemporaryFile() as spill:
        repeats = Repeats(spill)
        for item in items:
            repeats.add(hash((item.server, item.guid)))
            repeats.add(hash(item.path))
            yield item
        suspects = repeats.found(_MISTAKES_SHOWN)
    mistakes = list(islice(_twice(items, suspects), _MISTAKES_SHOWN)) if suspects else []
    if mistakes:
        raise ConfigError("\n".join(f"{items.path}: {mistake}" for mistake in mistakes))


def _twice(items: Iterable[MapItem], suspects: frozenset[int]) -> Iterator[str]:
    first: dict[tuple[str, str] | bytes, str] = {}
    for item in items:
        name: tuple[str, str] | bytes
        for name, shown in ((item.server, item.guid), "the key"), (item.path, _shown(item.path)):
            if hash(name) not in suspects:
                continue
            if name in first:
                yield f"{item.key}: {shown} is there twice, first for {first[name]}"
            first.setdefault(name, item.key)


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def _path_fault(path: bytes) -> str:
    """Return what is wrong with a path (given without its trailing slash), "" when it is fine."""
    names = path.split(b"/")
    if names[0] or len(names) == 1:
        return "expected an absolute path" if path else "expected a path below /"
    if b"\0" in path:
        return "expected a path without NUL"
    if any(name in (b"", b".", b"..") for name in names[1:]):
        return "expected a path without empty, . and .. components"
    if any(len(name) > _NAME_LIMIT_BYTES for name in names):
        return f"expected names of at most {_NAME_LIMIT_BYTES} bytes"
    return ""


def _shown(raw: bytes) -> str:
    """Return a key or a path in one line for people, cut to a length that can be read."""
    text = display(raw[:_SHOWN_BYTES])
    return f"'{text}...'" if len(raw) > _SHOWN_BYTES else f"'{text}'"
