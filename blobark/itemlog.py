"""The journal of a run: a line of JSON for what became of each item, for a person's grep and for `--retry-failed`.

    first line   what run this is
    an item      `Item`: path, action, reason, bytes, digest, milliseconds, repeated requests, error
    last line    how the run ended; missing where it was killed, and the line before may be cut then

Lines are written as the outcomes come, a second late at most. The journal never fails a run: what cannot be written is
told once, and the journal ends there. What its lines mean is docs/metrics.md.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from blobark import __version__
from blobark.clock import now_ns, utc
from blobark.errors import ConfigError
from blobark.model import Outcome, Status, display, text_or_b64

FORMAT = 1
FLUSH_BYTES = 128 * 1024
FLUSH_S = 1.0
ACTIONS = {Status.DONE: "sent", Status.KEPT: "kept", Status.FAILED: "failed", Status.SKIPPED: "left"}
"""What an outcome is called, unless the caller knows a better word."""
FAILED = frozenset({"failed", "unreadable"})
"""The actions of what `--retry-failed` repeats."""

SAVING = ("save", "backup", "index")
"""The commands whose failures a save can repeat."""

_NAME = re.compile(r"\d{8}T\d{6}Z-[a-z]+(?:-\d+)?\.jsonl")
_LONGEST_LINE = 1 << 20


class Run(msgspec.Struct, frozen=True, omit_defaults=True):
    """The first line: what run this is. `target` is where a restore writes, "" for other commands."""

    format: int
    command: str
    server: str
    started: str
    """UTC, RFC 3339."""
    host: str = ""
    tool: str = ""
    snapshot: int = 0
    """What a restore restores; 0: a bare map, or another command."""
    target: str = ""
    target_b64: str = ""


class Item(msgspec.Struct, omit_defaults=True, gc=False):
    """A line for an item. `path` is absolute; a restore's is relative to its target."""

    path: str = ""
    path_b64: str = ""
    """In place of `path` where that is not UTF-8."""
    kind: str = "file"
    action: str = ""
    reason: str = ""
    bytes: int = 0
    guid: str = ""
    digest: str = ""
    ms: float = 0.0
    retries: int = 0
    error: str = ""


class End(msgspec.Struct, frozen=True, omit_defaults=True):
    """The last line: how the run ended."""

    ended: str
    exit_code: int
    error: str = ""
    snapshot: int = 0
    """What a save has published."""
    failed: int = 0


class ItemLog:
    """Notes what becomes of items, from one thread. Does nothing before `begin`."""

    def __init__(
        self,
        folder: Path | None = None,
        command: str = "",
        keep: int = 0,
        warn: Callable[[str], None] | None = None,
    ) -> None:
        """Write to a new file in `folder`, where so many are kept; 0: nothing is written."""
        self._folder = folder
        self._command = command
        self._left = keep
        self._warn = warn
        self._fd = -1
        self.file = ""
        """Where it is written, "" before `begin`."""
        self._buffer = bytearray()
        self._flushed_s = 0.0
        encoder = msgspec.json.Encoder()
        self._encode, self._encode_into = encoder.encode, encoder.encode_into

    @property
    def is_on(self) -> bool:
        """Whether what is noted is written."""
        return self._fd >= 0

    def begin(self, **facts: Any) -> None:
        """Make the file, and say what is known of the run: fields of `Run`. The first call counts."""
        if self._folder is None or self._fd >= 0 or self._left < 1:
            return
        started = utc(now_ns())
        run = Run(FORMAT, self._command, started=started, tool=f"blobark {__version__}", **facts)
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._fd, self.file = _new_file(self._folder, f"{re.sub('[-:]', '', started)}-{self._command}")
            self._write(self._encode(run) + b"\n")
            for name in sorted(filter(_NAME.fullmatch, os.listdir(self._folder)))[: -self._left]:
                (self._folder / name).unlink(missing_ok=True)
        except OSError as error:
            self._give_up(error)
        self._flushed_s = time.monotonic()

    def note(self, path: bytes, action: str, *, kind: str = "file", reason: str = "", **facts: Any) -> None:
        """Note an item: `facts` are further fields of `Item`."""
        if self._fd < 0:
            return
        try:
            text, b64 = path.decode(), ""
        except UnicodeDecodeError:
            text, b64 = text_or_b64(path)
        self._line(Item(text, b64, kind, action, reason, **facts))

    def outcome(self, outcome: Outcome, path: bytes, action: str = "", reason: str = "") -> None:
        """Note how an item ended."""
        if self._fd < 0:
            return
        entry, status = outcome.entry, outcome.status
        try:
            text, b64 = path.decode(), ""
        except UnicodeDecodeError:
            text, b64 = text_or_b64(path)
        why, error = (reason, outcome.reason) if status is Status.FAILED else (outcome.reason or reason, "")
        self._line(
            Item(
                text,
                b64,
                entry.kind,
                action or ACTIONS[status],
                why,
                outcome.bytes,
                entry.guid,
                entry.digest,
                outcome.took_ns // 1000 / 1000,
                outcome.retries,
                error,
            )
        )

    def end(self, end: End) -> None:
        """Write the last line and close the file."""
        if self._fd >= 0:
            self._buffer += self._encode(end) + b"\n"
            self._flush()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _line(self, item: Item) -> None:
        self._encode_into(item, self._buffer, -1)
        self._buffer += b"\n"
        if len(self._buffer) > FLUSH_BYTES or time.monotonic() - self._flushed_s > FLUSH_S:
            self._flush()

    def _flush(self) -> None:
        data, self._buffer = bytes(self._buffer), bytearray()
        self._flushed_s = time.monotonic()
        try:
            self._write(data)
        except OSError as error:
            self._give_up(error)

    def _write(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._fd, data) :]

    def _give_up(self, error: OSError) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._folder, self.file = None, ""
        if self._warn is not None:
            self._warn(f"warning: the journal cannot be written ({error.strerror})")


def _new_file(folder: Path, stem: str) -> tuple[int, str]:
    for number in range(1, 1000):
        name = f"{stem}-{number}.jsonl" if number > 1 else f"{stem}.jsonl"
        with contextlib.suppress(FileExistsError):
            made = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            return made, str(folder / name)
    raise FileExistsError(0, "a thousand runs in one second")


class Failures(msgspec.Struct, frozen=True):
    """What a journal says failed: its run, and for each path the error that came last."""

    run: Run
    paths: Mapping[bytes, str]


def read_failures(file: Path, *commands: str) -> Failures:
    """Return what failed in a run of one of these commands; an item whose last line is no failure did not.

    Raises:
        ConfigError: there is no such file, or it is no journal, or one of another command or of a newer version.
    """
    shown = display(os.fsencode(file))
    try:
        with file.open("rb") as stream:
            run = _first(stream.readline(_LONGEST_LINE), shown)
            if run.command not in commands:
                raise ConfigError(f"{shown} is the journal of another command: {display(run.command.encode())}")
            paths: dict[bytes, str] = {}
            for number, line in enumerate(stream, 2):
                if not line.endswith(b"\n"):
                    break  # the run was killed
                item = _item(line)
                if item is None:
                    raise ConfigError(f"{shown}, line {number}: this is no line of a journal")
                if not item.action:
                    continue
                path = _path_of(item)
                if item.action in FAILED:
                    paths[path] = item.error
                else:
                    paths.pop(path, None)
    except OSError as error:
        raise ConfigError(f"the journal {shown} cannot be read ({error.strerror})") from None
    return Failures(run, paths)


def _first(line: bytes, shown: str) -> Run:
    try:
        version = msgspec.json.decode(line, type=dict[str, Any]).get("format")
        if isinstance(version, int) and version > FORMAT:
            raise ConfigError(f"{shown} was written by a newer version of blobark")
        return msgspec.json.decode(line, type=Run)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise ConfigError(f"{shown} is no journal of a run") from None


def _item(line: bytes) -> Item | None:
    try:
        return _ITEMS.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _path_of(item: Item) -> bytes:
    try:
        return base64.b64decode(item.path_b64, validate=True) if item.path_b64 else item.path.encode()
    except ValueError:
        return b""


_ITEMS = msgspec.json.Decoder(Item)
