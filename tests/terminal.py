"""A terminal for the tests: a real pseudo-terminal, whose screen is what the emulator pyte makes of the output."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Self

import pyte

from tests.runs import PATIENCE_S

HISTORY = 20_000


class Terminal:
    """A command in the foreground of a terminal of its own; killed at the end of the block if it still runs.

    With `piped` its standard output is a pipe instead, and `out` has what came through it in the end.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        columns: int = 80,
        rows: int = 24,
        environment: Mapping[str, str] | None = None,
        piped: bool = False,
    ) -> None:
        self.ours, theirs = pty.openpty()
        self._theirs = theirs
        self.screen = pyte.HistoryScreen(columns, rows, history=HISTORY)
        self._stream = pyte.ByteStream(self.screen)
        self.got = b""
        self.out = ""
        self._resize(columns, rows)
        kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
        # What the first process of a session opens becomes its terminal, whose Ctrl-C it gets.
        self.process = subprocess.Popen(
            ["sh", "-c", 'exec "$@" <"$0"', os.ttyname(theirs), *command],
            stdout=subprocess.PIPE if piped else theirs,
            stderr=theirs,
            env={**kept, "TERM": "xterm-256color", **(environment or {})},
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
        os.close(self.ours)
        os.close(self._theirs)

    def until(self, condition: Callable[[], object]) -> None:
        """Let the command go on until the condition, which looks at the screen, holds."""
        limit_s = time.monotonic() + PATIENCE_S
        while not condition():
            assert self.process.poll() is None or self._take(0), self.text
            assert time.monotonic() < limit_s, self.text
            self._take(0.05)

    def end(self) -> int:
        """Let the command come to its end; return its exit code."""
        with contextlib.ExitStack() as stack:
            if self.process.stdout is not None:
                stack.callback(self._read_out)
            limit_s = time.monotonic() + PATIENCE_S
            while self.process.poll() is None:
                assert time.monotonic() < limit_s, self.text
                self._take(0.05)
            while self._take(0):
                pass
        return self.process.returncode

    def type(self, keys: bytes) -> None:
        """Type something."""
        os.write(self.ours, keys)

    def resize(self, columns: int, rows: int) -> None:
        """Give the window another size, as a person does with the mouse.

        The command is held meanwhile: what it had drawn for the old size, and the screen had not got, would wrap.
        """
        os.kill(self.process.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        while self._take(0):
            pass
        self.screen.resize(rows, columns)
        self._resize(columns, rows)
        os.kill(self.process.pid, signal.SIGCONT)

    @property
    def lines(self) -> list[str]:
        """What is on the screen, without blank lines."""
        return [line.rstrip() for line in self.screen.display if line.strip()]

    @property
    def text(self) -> str:
        """What is on the screen."""
        return "\n".join(self.lines)

    @property
    def scrolled(self) -> list[str]:
        """All that there is to see when somebody scrolls back, and the screen itself."""
        gone = ["".join(line[column].data for column in sorted(line)).rstrip() for line in self.screen.history.top]
        return [*gone, *self.lines]

    def _read_out(self) -> None:
        if self.process.stdout is not None:
            self.out = self.process.stdout.read().decode()

    def _take(self, patience_s: float) -> bool:
        """Take what the command has written; say whether there was anything."""
        if not select.select([self.ours], [], [], patience_s)[0]:
            return False
        data = os.read(self.ours, 65536)
        self.got += data
        self._stream.feed(data)
        return True

    def _resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
