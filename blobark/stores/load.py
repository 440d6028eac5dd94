"""What is asked of a store at a time: as much as it bears (`Gate`), and as little as a person wants (`Limit`).

    Gate    a call that the store answers with its brake halves the number of calls at a time, once a second at most
            and only if it began after the last halving; each that succeeds gives back its share of one
    Limit   a call pays for what it moves before it begins: it waits until what was paid for before has had its time

Setting `stop` ends the waits: at once, or at a gate within half a second.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from blobark.errors import Interrupted

CUT_EVERY_S = 1.0
CREDIT_S = 0.25
LOOK_UP_S = 0.5


@dataclass(frozen=True, slots=True)
class Limits:
    """What a person allows a run: bytes a second, both directions together, and requests a second; 0 is no limit.

    `timeout_s` is how long a request to Azure may move no byte.
    """

    max_bandwidth: int = 0
    max_requests_per_s: int = 0
    timeout_s: float = 30.0


NO_LIMITS = Limits()


class Gate:
    """How many calls there may be at a time: any number, until the store puts on its brake."""

    def __init__(self, stop: threading.Event, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._stop = stop
        self._clock = clock
        self._lock = threading.Lock()
        self._free = threading.Condition(self._lock)
        self._width = math.inf
        self._inside = 0
        self._waiting = 0
        self._cut_s = -math.inf

    @property
    def width(self) -> float:
        """How many calls there may be at a time; infinite while the store has never complained."""
        return self._width

    def enter(self) -> float:
        """Wait for a place; return when this was, for `leave` and `cut`. Raises `Interrupted`."""
        with self._lock:
            while self._inside >= max(1.0, self._width):
                if self._stop.is_set():
                    raise Interrupted()
                self._waiting += 1
                self._free.wait(LOOK_UP_S)
                self._waiting -= 1
            self._inside += 1
        return self._clock()

    def leave(self, *, succeeded: bool) -> None:
        """Give the place back. A success widens a gate that is in use."""
        with self._lock:
            if succeeded and self._inside >= self._width / 2:
                self._width += 1 / max(1.0, self._width)
            self._inside -= 1
            if self._waiting:
                self._free.notify()

    def cut(self, entered_s: float) -> None:
        """The store has put on its brake for a call that entered then, and is still inside."""
        now_s = self._clock()
        with self._lock:
            if entered_s > self._cut_s and now_s - self._cut_s >= CUT_EVERY_S:
                self._width = max(1.0, min(self._width, self._inside) / 2)
                self._cut_s = now_s


class Limit:
    """So many units a second, of bytes or of calls, for all threads together.

    Amounts are paid in the order they come, however large: a block of 8 MiB at 1 MiB/s waits for eight seconds, and
    then goes at the line's speed. What was left unused in the last quarter of a second may be used.
    """

    def __init__(
        self, per_second: float, stop: threading.Event, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._per_second = per_second
        self._stop = stop
        self._clock = clock
        self._lock = threading.Lock()
        self._paid_until_s = clock()

    def pay(self, amount: float) -> None:
        """Wait until `amount` has had its time. Raises `Interrupted`."""
        wait_s = self.reserve(amount)
        if wait_s > 0 and self._stop.wait(wait_s):
            raise Interrupted()

    def reserve(self, amount: float) -> float:
        """Take `amount` out of the rate, and return how many seconds from now it has had its time."""
        now_s = self._clock()
        with self._lock:
            self._paid_until_s = max(self._paid_until_s, now_s - CREDIT_S) + amount / self._per_second
            return self._paid_until_s - now_s
