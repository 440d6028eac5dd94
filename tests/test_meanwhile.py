"""Work that goes on in a thread beside a block: what it raises is raised, and nobody waits for it in vain."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from blobark.engine import meanwhile
from blobark.errors import Interrupted, StoreFull


def until(event: threading.Event) -> Callable[[], None]:
    """Return work that goes on until then."""

    def work() -> None:
        assert event.wait(60)

    return work


def test_the_block_ends_when_the_work_has_ended() -> None:
    done: list[str] = []
    may_end, stop = threading.Event(), threading.Event()

    def work() -> None:
        assert may_end.wait(60)
        done.append("work")

    with meanwhile(work, "test", stop):
        done.append("block")
        may_end.set()
    assert done == ["block", "work"]


def test_what_the_work_raises_is_raised() -> None:
    def work() -> None:
        raise StoreFull("the disk is full")

    with pytest.raises(StoreFull, match="full"), meanwhile(work, "test", threading.Event()):
        pass


def test_a_stop_waits_for_no_work_that_hangs() -> None:
    may_end, stop = threading.Event(), threading.Event()
    with pytest.raises(Interrupted), meanwhile(until(may_end), "test", stop):
        stop.set()
    may_end.set()


def test_what_the_block_raises_comes_first() -> None:
    may_end = threading.Event()
    with pytest.raises(ValueError, match="block"), meanwhile(until(may_end), "test", may_end):
        raise ValueError("block")
    may_end.set()
