"""The lock of a server in its store: one run writes at a time, on whatever machine it is.

    with (
        state_lock(state_dir, "save") as known_as,
        store_lock(context, store, server, "save", known_as=known_as) as lock,
    ):
        ...
        lock.check()    # before each step that others must not be in the middle of: a snapshot's header, a deletion
        ...

    take      before anything is written. Another run has it: `LockHeld`, or wait for it
    renew     from a thread of its own, three times in the time that it lasts
    lost      another run has taken it over: the run is stopped, and ends with `LockLost`
    check     whoever may not have been heard of in time (stopped, suspended, without a network) renews it first: as
              long as nobody else has taken it nothing is lost, and a break in the line ends no run
    release   by that thread too, so that a request which hangs keeps nobody from ending

It is to be entered when the crew has been hired: it starts a thread. A process that is killed leaves a lock that lasts
for a minute or two (`Store.lock_s`); the next run that has the same state_dir's lock need not wait for that.
"""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Callable, Iterator

from blobark.clock import elapsed_s
from blobark.context import Context
from blobark.engine import beside
from blobark.errors import BlobarkError, Interrupted, LockHeld, LockLost
from blobark.holder import Holder, this_process
from blobark.stores.base import Hold, Store

BEATS = 3
"""Renewals in the time that a lock lasts."""
SURE_SHARE = 0.75
"""For such a part of that time after a renewal began nobody else can have it."""
HASTE_SHARE = 1 / 30
"""When a renewal has failed the next one is tried after such a part of it."""
CHECK_S = 60.0
"""How long a check goes on trying."""
AGAIN = "run it again to go on where it stopped"
FAREWELL_S = 2.0
LOOK_UP_S = 0.5


@contextlib.contextmanager
def store_lock(
    context: Context,
    store: Store,
    server: str,
    command: str,
    *,
    known_as: str = "",
    pause: Callable[[], None] | None = None,
) -> Iterator[StoreLock]:
    """Hold the lock of a server in a store while `command` runs.

    `known_as` is what the held `state_lock` says; without it whoever was killed has to be waited for. Where another run
    has the lock, `pause` is called between one try and the next, until it raises or the lock is had.

    Raises:
        LockHeld: another run has it, and there is no `pause`.
        LockLost: another run took it over before the block ended.
    """
    holder = this_process(known_as or str(uuid.uuid4()), server, command)
    hold, began_s = _taken(store, f"blobark/{server}/lock", holder, pause)
    lock = StoreLock(context, hold, store.lock_s, f"the lock of {server} in {store.name}", began_s)
    try:
        yield lock
    except Interrupted:
        lock.check_not_lost()
        raise
    finally:
        lock.end()


class StoreLock:
    """The lock, held. `check` is for one thread."""

    def __init__(self, context: Context, hold: Hold, lasts_s: float, name: str, began_s: float) -> None:
        self._context = context
        self._hold = hold
        self._lasts_s = lasts_s
        self._name = name
        self._sure_until_s = began_s + SURE_SHARE * lasts_s
        self._changed = threading.Condition()
        self._asked = False
        self._ending = False
        self._taken: LockHeld | None = None
        self._fault: BlobarkError | None = None
        """Why the last renewal failed."""
        self._thread = beside(self._keep, "lock")

    def check(self) -> None:
        """Return when nobody else can have the lock. Raises `LockLost`."""
        until_s = time.monotonic() + CHECK_S
        while True:
            self.check_not_lost()
            if elapsed_s() < self._sure_until_s:
                return
            self._context.check_stop()
            if time.monotonic() > until_s:
                why = self._fault.message if self._fault is not None else "there is no answer"
                raise LockLost(f"{self._name} could not be renewed: {why}", AGAIN)
            with self._changed:
                self._asked = True
                self._changed.notify_all()
                self._changed.wait(LOOK_UP_S)

    def check_not_lost(self) -> None:
        """Raise `LockLost` when it is known to be."""
        if self._taken is not None:
            raise LockLost(f"this run has lost its lock: {self._taken.message}", AGAIN)

    def end(self) -> None:
        """Let go of the lock; a request that hangs is waited for two seconds."""
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        self._thread.join(FAREWELL_S)

    def _keep(self) -> None:
        """Renew the lock until the end, then release it. A lost one stops the run."""
        pause_s = self._lasts_s / BEATS
        while self._taken is None:
            with self._changed:
                self._changed.wait_for(lambda: self._ending or self._asked, pause_s)
                self._asked = False
                if self._ending:
                    break
            began_s = elapsed_s()
            try:
                self._hold.renew()
                self._sure_until_s, self._fault = began_s + SURE_SHARE * self._lasts_s, None
                pause_s = self._lasts_s / BEATS
            except LockHeld as error:
                self._taken = error
                self._context.engine.stop.set()
            except BlobarkError as error:
                self._fault = error
                pause_s = self._lasts_s * HASTE_SHARE
            with self._changed:
                self._changed.notify_all()
        if self._taken is None:
            with contextlib.suppress(BlobarkError):
                self._hold.release()


def _taken(store: Store, key: str, holder: Holder, pause: Callable[[], None] | None) -> tuple[Hold, float]:
    """Take a lock, with `pause` as soon as that can be; return it, and the moment from which on it lasts."""
    while True:
        began_s = elapsed_s()
        try:
            return store.hold(key, holder), began_s
        except LockHeld as error:
            if pause is None:
                raise LockHeld(error.message, "wait until it has finished") from None
        pause()
