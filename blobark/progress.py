"""What a person sees while a run goes on: a live view on a terminal, a plain line now and then elsewhere.

Everything goes to stderr; stdout is for results. Names are shown printable, whatever bytes they hold.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from blobark.model import Outcome, Status, display, printable
from blobark.wording import counted
from metrics.under_way import UnderWay

if TYPE_CHECKING:
    from blobark.live import LiveView, State

FIRST_LINE_S = 10.0
MOST_BETWEEN_LINES_S = 600.0
"""A plain line comes after ten seconds, then after a quarter of the time that has passed, and every ten minutes."""


class Display:
    """The `Reporter` of a command line run; also the live counters that the metrics sample."""

    def __init__(self, *, quiet: bool, verbose: bool) -> None:
        self.quiet = quiet
        self.verbose = verbose
        self.items = 0
        self.bytes = 0
        self.failed = 0
        self.warnings: list[str] = []
        self.under_way: UnderWay | None = None
        """What the run's threads have in hand, once there are any."""
        self._recent: Callable[[], Sequence[Mapping[str, Any]]] | None = None
        self._what = ""
        self._total = 0
        self._total_bytes = 0
        self._started_s = time.monotonic()
        self._due_s = self._started_s + FIRST_LINE_S
        self._most_bytes = 0
        self._view: LiveView | None = None

    def begin(self, what: str, items: int, size_bytes: int) -> None:
        """Start the view, or the plain lines, of a stage."""
        self.end()
        self._what, self._total, self._total_bytes = what, items, size_bytes
        self.items = self.bytes = self._most_bytes = 0
        self._started_s = time.monotonic()
        self._due_s = self._started_s + FIRST_LINE_S
        is_terminal = sys.stderr.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown", "")
        if is_terminal and not self.quiet:
            self._start_view()

    def end(self) -> None:
        """Take the view away."""
        if self._view is not None:
            self._view.stop()
            self._view = None

    def watch(self, recent: Callable[[], Sequence[Mapping[str, Any]]] | None) -> None:
        """Show the samples of the last seconds, or none any more."""
        self._recent = recent

    def advance(self, items: int, size_bytes: int) -> None:
        """Count items and bytes, and show them when it is time to."""
        self.items += items
        self.bytes += size_bytes
        if self._view is not None or self.quiet:
            return
        now_s = time.monotonic()
        if now_s < self._due_s:
            return
        elapsed_s = now_s - self._started_s
        self._due_s = now_s + min(max(elapsed_s / 4, FIRST_LINE_S), MOST_BETWEEN_LINES_S)
        _say(self._plain(elapsed_s))

    def outcome(self, outcome: Outcome, path: bytes) -> None:
        """Count how an item ended; name it when it failed, or always with -v."""
        if outcome.status is Status.FAILED:
            self.failed += 1
            self.warn(f"failed: {display(path or b'.')}: {outcome.reason}")
        elif self.verbose:
            self.detail(f"{outcome.status.value}: {display(path)}")
        self.advance(1, outcome.entry.size)

    def detail(self, text: str) -> None:
        """Show a line with -v."""
        if self.verbose:
            self._line(printable(text))

    def tell(self, text: str) -> None:
        """Show a line, unless with -q."""
        if not self.quiet:
            self._line(printable(text))

    def warn(self, text: str) -> None:
        """Show a line always: what was lost must not be quiet."""
        text = printable(text)
        self.warnings.append(text)
        self._line(text)

    def _line(self, text: str) -> None:
        if self._view is not None:
            self._view.say(text)
        else:
            _say(text)

    def _plain(self, elapsed_s: float) -> str:
        share = f"{min(100 * self.items // self._total, 100)} % " if self._total else ""
        text = f"{self._what}: {share}{counted(self.items, 'item')}"
        items_per_s, mb_per_s = round(self.items / elapsed_s), round(self.bytes / elapsed_s / 1e6, 1)
        text += f", {items_per_s:,} files/s" if items_per_s else ""  # some take a minute each, and some have no bytes
        text += f", {mb_per_s:,.1f} MB/s" if mb_per_s else ""
        if self._total > self.items > 0:
            text += f", about {elapsed_s * (self._total - self.items) / self.items:,.0f} s left"
        return f"{text}, {self.failed:,} failed" if self.failed else text

    def _start_view(self) -> None:
        from blobark.live import LiveView, is_in_foreground  # late: rich takes a tenth of a second

        if not is_in_foreground(sys.stderr.fileno()):
            return  # whoever works at the terminal meanwhile gets plain lines
        view = LiveView(self._state, sys.stderr)
        with contextlib.suppress(RuntimeError):  # no more threads: plain lines then
            view.start()
            self._view = view

    def _state(self) -> State:
        from blobark.live import State

        under_way, recent = self.under_way, self._recent
        # A large file counts while it is under way. Between its end and its outcome that must not go back.
        self._most_bytes = max(self._most_bytes, self.bytes + (under_way.done_bytes() if under_way else 0))
        return State(
            what=self._what,
            items=self.items,
            all_items=self._total,
            bytes=self._most_bytes,
            all_bytes=self._total_bytes,
            failed=self.failed,
            seconds=time.monotonic() - self._started_s,
            samples=recent() if recent else (),
            longest=under_way.longest() if under_way else None,
        )


def _say(text: str) -> None:
    """Print a line, if anybody still reads: the work goes on when nobody does."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)
