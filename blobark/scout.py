"""A scout: a process that walks, while this one decides what becomes of what it finds.

    send out    before this process has a second thread: fork; the scout waits, and costs nothing until there is a walk
    walk        it is told which root, and sends what it finds in batches; it waits while nobody reads them
    call back   it ends; whatever happens to this process, it ends with it

A batch is JSON, as in the catalog: a time may have more than 64 bits. Looking at an item takes the kernel as long as
deciding takes Python; with two processors both go on at the same time. The scout changes nothing, and holds nothing
that others wait for. Where none is out, `walk` walks here.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import msgspec

from blobark.errors import Interrupted
from blobark.forks import Failure, death, framed, has_one_thread, take_frame
from blobark.orphans import end_with_parent
from blobark.walk import Found, Walk

BATCH_ITEMS = 500
LOOK_UP_MS = 500
"""How long a wait lasts until it is looked whether the run was asked to stop."""
FAREWELL_S = 3.0
"""How long it is waited for one that was killed: the kernel may hold it in a file system that hangs."""
_READ_BYTES = 1 << 20

Walks = Callable[[int, int], Walk]
"""Begins the walk of the root with a number; what changed its status since then, in ns, comes with all there is."""


class _Order(msgspec.Struct, frozen=True, array_like=True):
    """What a scout is told: which root to walk, and since when changes count."""

    root: int
    since_ns: int


class _Report(msgspec.Struct, frozen=True, array_like=True):
    """What a scout sends: what it has found, whether that is all, and perhaps what stopped it."""

    found: list[Found]
    is_last: bool = False
    failure: Failure | None = None


class Scout:
    """Does the `walks` of this process, which `stop`, once set, was asked to end."""

    def __init__(self, walks: Walks, stop: threading.Event) -> None:
        self._walks = walks
        self._stop = stop
        self._out: tuple[int, socket.socket] | None = None
        """The process's number, and the end of the line to it."""

    def send_out(self) -> None:
        """Fork a process for the walks: where there is a processor for it, and where this one has a single thread."""
        if self._out is not None or (os.cpu_count() or 1) < 2 or not has_one_thread():
            return
        with contextlib.ExitStack() as stack:
            try:
                ends = socket.socketpair()
                for end in ends:
                    stack.enter_context(end)
                pid = os.fork()
            except OSError:  # there may be no more descriptors, or processes: this one walks itself
                return
            ours, theirs = ends
            if pid == 0:
                ours.close()
                _serve(self._walks, theirs)
            theirs.close()
            stack.pop_all()
        self._out = pid, ours

    def walk(self, root: int, since_ns: int) -> Walk:
        """Yield what the walk of a root finds. One that is not read to its end leaves no scout out.

        Raises:
            BlobarkError: what the walk raises; a `Fatal` one when the scout was killed.
            Interrupted: the run was asked to stop, and nothing comes.
        """
        if self._out is None:
            yield from self._walks(root, since_ns)
            return
        is_whole = False
        try:
            yield from self._reported(self._out[1], _Order(root, since_ns))
            is_whole = True
        finally:
            if not is_whole:
                self.call_back()

    def call_back(self) -> None:
        """Have the scout end, if one is out; it has nothing to lose."""
        if self._out is None:
            return
        (pid, end), self._out = self._out, None
        end.close()
        until_s = time.monotonic() + FAREWELL_S
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            while os.waitpid(pid, os.WNOHANG)[0] == 0 and time.monotonic() < until_s:
                time.sleep(0.001)

    def _reported(self, end: socket.socket, order: _Order) -> Iterator[Found]:
        decoder = msgspec.json.Decoder(_Report)
        received = bytearray()
        readable = select.poll()
        readable.register(end, select.POLLIN)
        try:
            _send(end, order)
        except OSError:
            raise death() from None
        while True:
            while not readable.poll(LOOK_UP_MS):
                if self._stop.is_set():
                    raise Interrupted()
            data = _received(end)
            if not data:
                raise death()
            received += data
            while (body := take_frame(received)) is not None:
                report = decoder.decode(body)
                yield from report.found
                if report.failure is not None:
                    raise report.failure.raised()
                if report.is_last:
                    return


def _serve(walks: Walks, end: socket.socket) -> NoReturn:
    """Be the scout: nothing of the parent's comes after this, whatever happens."""
    end_with_parent(signal.SIGKILL)
    gc.disable()  # it makes no cycles, and a collection would copy what it shares
    try:
        received = bytearray()
        while data := _received(end):
            received += data
            while (body := take_frame(received)) is not None:
                order = msgspec.json.decode(body, type=_Order)
                _report(end, walks(order.root, order.since_ns))
    except BrokenPipeError:
        pass  # nobody wants to know any more
    finally:
        os._exit(0)


def _report(end: socket.socket, walk: Walk) -> None:
    """Send what a walk finds. Raises `BrokenPipeError`."""
    try:
        while batch := list(itertools.islice(walk, BATCH_ITEMS)):
            _send(end, _Report(batch))
        _send(end, _Report([], is_last=True))
    except BrokenPipeError:
        raise
    except Exception as error:  # noqa: BLE001 - the parent raises it again
        _send(end, _Report([], failure=Failure.of(error)))


def _send(end: socket.socket, message: Any) -> None:
    end.sendall(framed(msgspec.json.encode(message)))


def _received(end: socket.socket) -> bytes:
    """Return what has come, b"" when the other end is closed."""
    try:
        return end.recv(_READ_BYTES)
    except ConnectionError:
        return b""
