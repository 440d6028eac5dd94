"""The live view of a run on a terminal: some lines at the bottom that are drawn again and again, and gone at the end.

    restore  files ━━━━━━━━━━━━━━━────────────────  23,456 of 50,000     2,345/s
             bytes ━━━━━━━━━━━────────────────────  1.2 GB of 3.4 GB  123.4 MB/s
             0:10 passed, about 0:18 left, 2 failed
             CPU ▂▄▆▇▇▆▇▇▇▇ 87 %  disk ▁▃▅▇▆▅▆▇▇▇ 98.7 MB/s  net ▁▂▅▇▇▇▆▇▇▇ 12.3 MB/s
             in work for 0:07: sub/folder/large.img (45 %)

The figures of machine and disk are those of the run log's own samples. Nothing is wider than MOST_COLUMNS, so that a
window that is made narrower, but not very narrow, never breaks a line. Where there is less room there is less to see.
Who stops the run with Ctrl-Z gets the terminal as it was; the view comes back with the run, in the foreground.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Any, NamedTuple, TextIO

from rich.cells import cell_len
from rich.console import Console, ConsoleRenderable, Group
from rich.live import Live
from rich.live_render import LiveRender
from rich.text import Text

from blobark.model import display
from blobark.wording import size
from metrics.under_way import InHand

DRAWN_PER_S = 4
MOST_COLUMNS = 79
MOST_LINES_WAITING = 500
"""Printed in one go, with the next drawing; so many of them are not waited for."""
WINDOW_S = 20.0
"""Rates, and the time left, are those of the last seconds."""
PATIENCE_S = 1.0
"""So long a stop waits for a drawing to end."""
LONG_S = 1.0
"""An item is named when it is in work for so long."""

_SPARKS = 10
_MARKS, _ASCII_MARKS = "▁▂▃▄▅▆▇█", "_.-=+*%#"
_LEAST_BAR = 6
_LONGEST_LABEL = 10
"""What is longer stands on a line of its own."""

Samples = Sequence[Mapping[str, Any]]


class State(NamedTuple):
    """How far a run is. What is done, and of how much (0: not known); `longest` is the item that takes long."""

    what: str
    items: int
    all_items: int
    bytes: int
    all_bytes: int
    failed: int
    seconds: float
    samples: Samples
    longest: InHand | None


class LiveView:
    """Draws what `state` says on a terminal, from a thread of its own, until `stop`."""

    def __init__(self, state: Callable[[], State], stream: TextIO) -> None:
        self._state = state
        self._waiting: deque[str] = deque()
        self._rates = Rates()
        terminal: Any = _Unbroken(stream)
        self._console = Console(file=terminal, force_terminal=True, force_interactive=True)
        self._live = _Live(self)
        self._has_handler = False

    def start(self) -> None:
        """Begin to draw. Raises `RuntimeError` where the system gives no more threads."""
        try:
            self._live.start()
        except RuntimeError:
            self._live.stop()
            raise
        in_main = threading.current_thread() is threading.main_thread()
        if in_main and signal.getsignal(signal.SIGTSTP) is signal.SIG_DFL:
            signal.signal(signal.SIGTSTP, self._suspend)
            self._has_handler = True

    def stop(self) -> None:
        """Take the view away, and give the cursor back."""
        if self._has_handler:
            signal.signal(signal.SIGTSTP, signal.SIG_DFL)
            self._has_handler = False
        self._live.refresh()
        self._live.stop()

    def _suspend(self, _number: int, _frame: FrameType | None) -> None:
        """Leave the terminal to the shell, and stop; returns when the run goes on."""
        with self._live.away():
            signal.signal(signal.SIGTSTP, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTSTP)
            signal.signal(signal.SIGTSTP, self._suspend)

    def say(self, text: str) -> None:
        """Print a line above the view, with the next drawing."""
        self._waiting.append(text)
        if len(self._waiting) >= MOST_LINES_WAITING:
            self._live.refresh()

    @property
    def console(self) -> Console:
        """The terminal."""
        return self._console

    def waiting(self) -> str:
        """Take the lines that are to be printed; "" for none."""
        lines = [self._waiting.popleft() for _ in range(len(self._waiting))]
        return "\n".join(lines)

    def draw(self) -> Group:
        """Return what is to be seen now."""
        state = self._state()
        self._rates.note(state.items, state.bytes)
        columns, rows = self._console.size
        is_ascii = not (self._console.encoding or "").startswith("utf")
        lines = lines_of(state, self._rates, min(columns - 1, MOST_COLUMNS), is_ascii=is_ascii)
        return Group(*lines[: max(rows - 1, 1)])


class _Live(Live):
    """Prints what waits to be printed whenever it draws."""

    def __init__(self, view: LiveView) -> None:
        super().__init__(
            console=view.console,
            refresh_per_second=DRAWN_PER_S,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            vertical_overflow="crop",
            get_renderable=view.draw,
        )
        self._view = view
        self._is_away = False

    @contextlib.contextmanager
    def away(self) -> Iterator[None]:
        """Take the view away and draw nothing in the block, nor after it before the run is in the foreground.

        A signal's handler may come in the midst of whatever its thread does. So this writes by itself, and waits
        only so long for a drawing that may need something which that thread holds.
        """
        is_held = self._lock.acquire(timeout=PATIENCE_S)
        try:
            with contextlib.suppress(OSError):
                os.write(self.console.file.fileno(), f"{self._live_render.position_cursor()}\x1b[?25h".encode())
            self._is_away = True
            yield
        finally:
            if is_held:
                self._lock.release()

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """Put the view below what is printed."""
        return renderables if self._is_away else super().process_renderables(renderables)

    def refresh(self) -> None:
        """Draw, below the lines that have come meanwhile."""
        with self._lock:
            if self._is_away and is_in_foreground(self.console.file.fileno()):
                self._is_away = False
                self._live_render = LiveRender(self.get_renderable(), vertical_overflow=self.vertical_overflow)
                self.console.show_cursor(False)
            if text := self._view.waiting():
                self._live_render.set_renderable(self.renderable)
                self.console.print(text, markup=False, highlight=False, soft_wrap=True)
            elif not self._is_away:
                super().refresh()


class _Unbroken:
    """A stream whose reader may leave: the work goes on when nobody looks."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.encoding = stream.encoding

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()


def is_in_foreground(descriptor: int) -> bool:
    """Whether the terminal is this run's, and not the shell's or another one's; true of one that has no such thing."""
    try:
        return os.tcgetpgrp(descriptor) == os.getpgrp()
    except OSError:
        return True


class Rates:
    """Items and bytes a second, of the last seconds."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int, int]] = deque(maxlen=round(WINDOW_S * DRAWN_PER_S))

    def note(self, items: int, size_bytes: int, now_s: float | None = None) -> None:
        """Note what is done by now."""
        self._seen.append((time.monotonic() if now_s is None else now_s, items, size_bytes))

    def per_s(self) -> tuple[float, float]:
        """Return items and bytes a second; 0 while nothing is known."""
        (then_s, then_items, then_bytes), (now_s, items, count) = self._seen[0], self._seen[-1]
        seconds = now_s - then_s
        return ((items - then_items) / seconds, max(count - then_bytes, 0) / seconds) if seconds > 0 else (0.0, 0.0)


def lines_of(state: State, rates: Rates, columns: int, *, is_ascii: bool = False) -> list[Text]:
    """Return the lines of the view, none of them wider than `columns`; the first ones say most."""
    is_short = len(state.what) <= _LONGEST_LABEL
    label = state.what if columns >= 60 and is_short else ""
    indent = len(label) + 2 if label else 0
    room = columns - indent
    bodies = [Text("" if is_short else state.what, "bold"), *_bars(state, rates, room, is_ascii), _times(state, rates)]
    bodies += [_sparks(state.samples, room, is_ascii), _longest(state.longest, room)]
    found = []
    for number, body in enumerate(body for body in bodies if body.plain):
        line = Text(no_wrap=True, overflow="crop").append((label if not number else "").ljust(indent), "bold")
        line.append_text(body)
        line.truncate(columns, overflow="crop")
        found.append(line)
    return found


def _bars(state: State, rates: Rates, room: int, is_ascii: bool) -> Iterator[Text]:
    items_s, bytes_s = rates.per_s()
    name = "files" if state.what in ("save", "restore") else "items"  # directories, blobs, or whole restores
    rows = [(name, state.items, state.all_items, f"{state.items:,}", f"{state.all_items:,}", f"{items_s:,.0f}/s")]
    if state.bytes or state.all_bytes:
        done, total = size(state.bytes), size(state.all_bytes)
        rows.append(("bytes", state.bytes, state.all_bytes, done, total, f"{size(round(bytes_s))}/s"))
    texts = [f"{done} of {total}" if wanted else done for _, _, wanted, done, total, _ in rows]
    width, rate_width = max(map(len, texts)), max(len(row[-1]) for row in rows)
    has_bar = any(row[2] for row in rows)
    for (name, count, wanted, _, _, rate), text in zip(rows, texts, strict=True):
        line = Text(f"{name} ")
        figures = f"{text:>{width}}  {rate:>{rate_width}}"
        bar = room - len(line) - len(figures) - 2
        if has_bar and bar >= _LEAST_BAR:
            line.append_text(_bar(min(count / wanted, 1.0) if wanted else 0.0, bar, is_ascii)).append("  ")
        yield line.append(figures)


def _bar(share: float, width: int, is_ascii: bool) -> Text:
    filled = int(share * width)
    done, left = "#-" if is_ascii else "━─"
    return Text(done * filled, "green").append(left * (width - filled), "dim")


def _times(state: State, rates: Rates) -> Text:
    line = Text(f"{_clock(state.seconds)} passed")
    left_s = time_left_s(state, *rates.per_s())
    if left_s is not None:
        line.append(f", about {_clock(left_s)} left")
    if state.failed:
        line.append(", ").append(f"{state.failed:,} failed", "bold red")
    return line


def time_left_s(state: State, items_s: float, bytes_s: float) -> float | None:
    """Return how long the rest takes at these rates: its files, or its bytes; None where that cannot be said."""
    rests = ((state.all_items - state.items, items_s), (state.all_bytes - state.bytes, bytes_s))
    known = [(left, rate) for left, rate in rests if left > 0]
    if not known or any(rate <= 0 for _, rate in known):
        return None
    return max(left / rate for left, rate in known)


def _clock(seconds: float) -> str:
    minutes, whole = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{whole:02}" if hours else f"{minutes}:{whole:02}"


def _sparks(samples: Samples, room: int, is_ascii: bool) -> Text:
    """Return CPU, disk and network of the last seconds; those that there is no room for are left out."""
    cpu = [sample.get("cpu_percent") for sample in samples][1:]
    disk = _rates(samples, "watched_disk_read_bytes", "watched_disk_write_bytes")
    if not _is_known(disk):
        disk = _rates(samples, "disk_read_bytes", "disk_write_bytes")
    network = _rates(samples, "network_in_bytes", "network_out_bytes")
    line = Text()
    for name, values, most in (("CPU", cpu, 100.0), ("disk", disk, 0.0), ("net", network, 0.0)):
        if not _is_known(values):
            continue
        last = values[-1]
        said = "?" if last is None else f"{last:.0f} %" if most else f"{size(round(last))}/s"
        part = Text(f"{'  ' if line.plain else ''}{name} ")
        part.append(_spark(values, most, is_ascii), "cyan").append(f" {said}")
        if len(line) + len(part) <= room:
            line.append_text(part)
    return line


def _rates(samples: Samples, *names: str) -> list[float | None]:
    """Return the rates a second of what some totals sum up to; None where one was not read."""
    totals = [_sum([sample.get(name) for name in names]) for sample in samples]
    found: list[float | None] = []
    for before, after, old, new in zip(samples, samples[1:], totals, totals[1:], strict=False):
        seconds = after["t_s"] - before["t_s"]
        found.append(None if old is None or new is None or seconds <= 0 else max(0.0, (new - old) / seconds))
    return found


def _sum(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _is_known(values: list[float | None]) -> bool:
    return any(value is not None for value in values)


def _spark(values: list[float | None], most: float, is_ascii: bool) -> str:
    marks = _ASCII_MARKS if is_ascii else _MARKS
    shown = values[-_SPARKS:]
    top = most or max((value for value in shown if value is not None), default=0.0) or 1.0
    places = (None if value is None else min(int(value / top * len(marks)), len(marks) - 1) for value in shown)
    return "".join(" " if place is None else marks[place] for place in places).rjust(_SPARKS)


def _longest(item: InHand | None, room: int) -> Text:
    if item is None or item.seconds < LONG_S:
        return Text()
    head = f"in work for {_clock(item.seconds)}: "
    tail = f" ({100 * item.done_bytes // item.size_bytes} %)" if item.size_bytes and item.done_bytes else ""
    name = display(item.name)
    left = room - len(head) - len(tail)
    if item.is_cut or cell_len(name) > left:
        while name and cell_len(name) > left - 3:
            name = name[1:]
        name = f"...{name}"
    return Text(f"{head}{name}{tail}")
