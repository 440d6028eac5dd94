"""What a person sees while a run goes on: a bar on a terminal, a plain line now and then elsewhere.

Everything goes to stderr; stdout is for results. Names are shown printable, whatever bytes they hold.
"""

from __future__ import annotations

import contextlib
import sys
import time
from typing import TYPE_CHECKING

from blobark.model import Outcome, Status, display, printable

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

PLAIN_EVERY_S = 10.0
BAR_HZ = 4


class Display:
    """The `Reporter` of a command line run; also the live counters that the metrics sample."""

    def __init__(self, *, quiet: bool, verbose: bool) -> None:
        self.quiet = quiet
        self.verbose = verbose
        self.items = 0
        self.bytes = 0
        self.failed = 0
        self.warnings: list[str] = []
        self._what = ""
        self._total = 0
        self._total_bytes = 0
        self._started_s = self._shown_s = time.monotonic()
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def begin(self, what: str, items: int, size_bytes: int) -> None:
        """Start the bar, or the plain lines, of a stage."""
        self.end()
        self._what, self._total, self._total_bytes = what, items, size_bytes
        self.items = self.bytes = 0
        self._started_s = self._shown_s = time.monotonic()
        if not self.quiet and sys.stderr.isatty():
            self._start_bar()

    def end(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def advance(self, items: int, size_bytes: int) -> None:
        """Count items and bytes, and show them when it is time to."""
        self.items += items
        self.bytes += size_bytes
        now_s = time.monotonic()
        if now_s - self._shown_s < (1 / BAR_HZ if self._bar else PLAIN_EVERY_S):
            return
        self._shown_s = now_s
        if self._bar is not None and self._task is not None:
            done, total = (self.bytes, self._total_bytes) if self._total_bytes else (self.items, self._total)
            self._bar.update(self._task, completed=done, total=total or None, rates=self._rates())
        elif not self.quiet:
            share = f"{100 * self.items // self._total} % " if self._total else ""
            _say(f"{self._what}: {share}{self.items:,} items, {self._rates()}")

    def outcome(self, outcome: Outcome, path: bytes) -> None:
        """Count how an item ended; name it when it failed, or always with -v."""
        if outcome.status is Status.FAILED:
            self.failed += 1
            self.warn(f"failed: {display(path)}: {outcome.reason}")
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
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            _say(text)

    def _rates(self) -> str:
        elapsed_s = max(time.monotonic() - self._started_s, 1e-6)
        text = f"{self.items / elapsed_s:,.0f} files/s, {self.bytes / elapsed_s / 1e6:,.1f} MB/s"
        if self._bar is None and self._total and self.items:
            by_items = elapsed_s * (self._total - self.items) / self.items
            text += f", about {max(by_items, 0):,.0f} s left"
        return text

    def _start_bar(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[rates]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            refresh_per_second=BAR_HZ,
            transient=True,
        )
        self._task = self._bar.add_task(self._what, total=self._total_bytes or self._total or None, rates="")
        self._bar.start()


def _say(text: str) -> None:
    """Print a line, if anybody still reads: the work goes on when nobody does."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)
