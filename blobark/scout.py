"""A scout: a process that walks ahead, while this one decides what becomes of what it has found.

    the first items are looked at here: a small tree needs no second process
    then it is forked off in the middle of the walk, and goes on where that was
    it sends what it finds in batches, and waits while the pipe is full
    a batch is JSON, as in the catalog: a time may have more than 64 bits

Looking at an item takes the kernel as long as deciding takes Python; with two processors both go on at the same time.
The scout changes nothing, holds nothing that others wait for, and ends with this process, however that ends.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

import msgspec

from blobark.forks import Failure, death, framed, has_one_thread, take_frame
from blobark.orphans import end_with_parent
from blobark.walk import Found, Walk

FIRST_ITEMS = 2000
BATCH_ITEMS = 500
LOOK_UP_MS = 500
"""How long a wait lasts until it is looked whether the run was asked to stop."""
FAREWELL_S = 3.0
"""How long it is waited for one that was killed: the kernel may hold it in a file system that hangs."""
_READ_BYTES = 1 << 20


class _Report(msgspec.Struct, frozen=True, array_like=True):
    """What a scout sends: what it has found, whether that is all, and perhaps what stopped it."""

    found: list[Found]
    is_last: bool = False
    failure: Failure | None = None


def scouted(found: Walk, check_stop: Callable[[], None]) -> Walk:
    """Yield what a walk finds, which goes on in another process where there is much, and a processor for it.

    `check_stop` is called now and then, and raises when the run was asked to stop.

    Raises:
        BlobarkError: what the walk raises; a `Fatal` one when the scout was killed.
    """
    with contextlib.closing(found):
        yield from itertools.islice(found, FIRST_ITEMS)
        first = next(found, None)
        if first is None:
            return
        yield first
        sent_out = _send_out(found)
        if sent_out is None:
            yield from found
            return
    pid, end = sent_out
    try:
        yield from _reported(end, check_stop)
    finally:
        os.close(end)
        _end(pid)


def _send_out(walk: Walk) -> tuple[int, int] | None:
    """Let a fork go on with a walk; return its process number and the end to read from. None where it cannot be."""
    if (os.cpu_count() or 1) < 2 or not has_one_thread():
        return None
    try:
        ours, theirs = os.pipe()
    except OSError:  # the walk may hold as many as it may: this process goes on with it
        return None
    try:
        pid = os.fork()
    except OSError:  # likewise, of processes
        os.close(ours)
        os.close(theirs)
        return None
    if pid == 0:
        os.close(ours)
        _walk_on(walk, theirs)
    os.close(theirs)
    return pid, ours


def _walk_on(walk: Walk, end: int) -> NoReturn:
    """Be the scout: nothing of the parent's comes after this, whatever happens."""
    end_with_parent(signal.SIGKILL)
    gc.disable()  # it makes no cycles, and a collection would copy what it shares
    try:
        while batch := list(itertools.islice(walk, BATCH_ITEMS)):
            _send(end, _Report(batch))
        _send(end, _Report([], is_last=True))
    except BrokenPipeError:
        pass  # nobody wants to know any more
    except Exception as error:  # noqa: BLE001 - the parent raises it again
        with contextlib.suppress(OSError):
            _send(end, _Report([], failure=Failure.of(error)))
    finally:
        os._exit(0)


def _send(end: int, report: _Report) -> None:
    rest = memoryview(framed(msgspec.json.encode(report)))
    while rest:
        rest = rest[os.write(end, rest) :]


def _reported(end: int, check_stop: Callable[[], None]) -> Iterator[Found]:
    decoder = msgspec.json.Decoder(_Report)
    received = bytearray()
    readable = select.poll()
    readable.register(end, select.POLLIN)
    while True:
        while not readable.poll(LOOK_UP_MS):
            check_stop()
        data = os.read(end, _READ_BYTES)
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


def _end(pid: int) -> None:
    """Have the scout end, which has nothing to lose."""
    until_s = time.monotonic() + FAREWELL_S
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(pid, signal.SIGKILL)
        while os.waitpid(pid, os.WNOHANG)[0] == 0 and time.monotonic() < until_s:
            time.sleep(0.001)
