"""What test_scout.py tries, each in a process of its own: only one that has a single thread is ever forked.

python -m tests.scouting <the name of a function here> <its arguments>
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from blobark.errors import Fatal, Interrupted, RootRefused
from blobark.forks import Bug
from blobark.rules import Rules
from blobark.scout import BATCH_ITEMS, Scout, Walks
from blobark.source import Status
from blobark.walk import Found, Walk, WalkRoot, walk

ENOUGH = 24 * BATCH_ITEMS
"""More than the line holds: a scout of so many has not finished when the first of them are read."""


def walked(root: Path, since_ns: int = 0) -> Walk:
    rules = Rules(skip_files=[], skip_path=[str(root / "folder11/skipped")], exclude=["excluded/"])
    return walk(WalkRoot(root, os.fsencode(root)), rules, one_file_system=False, since_ns=since_ns)


def children() -> list[int]:
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


@contextlib.contextmanager
def sent_out(walks: Walks, *, scouts: int = 1, stop: threading.Event | None = None) -> Iterator[Scout]:
    """A scout for these walks, as a process of its own or, where `scouts` is 0, not; nothing of it is left behind."""
    before, scout = children(), Scout(walks, stop or threading.Event())
    scout.send_out()
    assert len(children()) == len(before) + scouts
    yield scout
    scout.call_back()
    assert children() == before


def finds_what_a_walk_finds(large: Path, since_ns: int) -> None:
    roots = [large, large / "folder03"]
    with sent_out(lambda number, since: walked(roots[number], since)) as scout:
        found, more = list(scout.walk(0, since_ns)), list(scout.walk(1, 0))
    assert found == list(walked(large, since_ns))
    assert more == list(walked(large / "folder03"))
    assert len(found) > ENOUGH
    odd = {item.path: item for item in found}
    assert odd[b"folder11/skipped"].rule
    assert b"folder11/skipped/below" not in odd
    assert b"folder11/excluded" not in odd
    assert (odd[b"folder11/000"].more is None) == (since_ns > 0)
    hard_link = odd[b"folder11/twice"]
    assert hard_link.more is not None  # of a group it is always known


def is_not_sent_out_by_threads(large: Path) -> None:
    stop = threading.Event()
    other = threading.Thread(target=stop.wait)
    other.start()
    try:
        with sent_out(lambda _, since: walked(large, since), scouts=0) as scout:
            assert len(list(scout.walk(0, 0))) > ENOUGH
    finally:
        stop.set()
        other.join()


def is_killed(large: Path) -> None:
    with sent_out(lambda _, since: walked(large, since)) as scout:
        found = scout.walk(0, 0)
        next(found)
        (pid,) = children()
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(Fatal, match="ended before its time"):
            list(found)
        assert children() == []


def is_killed_before(large: Path) -> None:
    with sent_out(lambda _, since: walked(large, since)) as scout:
        (pid,) = children()
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(Fatal, match="ended before its time"):
            list(scout.walk(0, 0))


def is_not_wanted_any_more(large: Path) -> None:
    with sent_out(lambda _, since: walked(large, since)) as scout:
        found = scout.walk(0, 0)
        next(found)
        assert len(children()) == 1
        found.close()
        assert children() == []
        assert list(scout.walk(0, 0)) == list(walked(large))


def outlives_nobody(large: Path) -> None:
    """Print the number of a scout that is in the midst of a walk, and be killed."""
    scout = Scout(lambda _, since: walked(large, since), threading.Event())
    scout.send_out()
    found = scout.walk(0, 0)
    next(found)
    print(*children(), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def tells_times_of_any_length() -> None:
    status = Status(*([1] * len(Status.__struct_fields__)))
    far = [Found(b"%d" % n, replace(status, st_mtime_ns=n * 10**17)) for n in range(-BATCH_ITEMS, BATCH_ITEMS + 7)]

    def aged(_number: int, _since_ns: int) -> Walk:
        yield from far

    with sent_out(aged) as scout:
        assert list(scout.walk(0, 0)) == far


def needs_no_descriptor(large: Path) -> None:
    before, taken = children(), []
    scout = Scout(lambda _, since: walked(large, since), threading.Event())
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    with contextlib.suppress(OSError):
        while True:
            taken.append(os.dup(0))
    os.close(taken.pop())  # a line has two ends
    scout.send_out()
    for descriptor in taken:
        os.close(descriptor)
    assert children() == before
    assert list(scout.walk(0, 0)) == list(walked(large))


def meets_an_error() -> None:
    error = RootRefused("source_path /x cannot be read (gone)", "is it mounted?")
    refused = raised_by_a_walk_with(error)
    assert isinstance(refused, RootRefused)
    assert (refused.message, refused.hint) == (error.message, error.hint)
    bug = raised_by_a_walk_with(ValueError("nobody foresaw this"))
    assert isinstance(bug, Bug)
    assert "nobody foresaw this" in str(bug)


def raised_by_a_walk_with(error: Exception) -> Exception:
    def broken(_number: int, _since_ns: int) -> Walk:
        for number in range(BATCH_ITEMS + 7):
            yield Found(b"%d" % number, None)
        raise error

    with sent_out(broken) as scout, pytest.raises((RootRefused, Bug)) as caught:
        list(scout.walk(0, 0))
    return caught.value


def hangs() -> None:
    never, end = os.pipe()

    def hanging(_number: int, _since_ns: int) -> Walk:
        yield Found(b"first", None)
        os.read(never, 1)

    stop = threading.Event()
    stop.set()
    with closing_both(never, end), sent_out(hanging, stop=stop) as scout, pytest.raises(Interrupted):
        list(scout.walk(0, 0))


@contextlib.contextmanager
def closing_both(*ends: int) -> Iterator[None]:
    """Close some descriptors in the end."""
    try:
        yield
    finally:
        for end in ends:
            os.close(end)


if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    globals()[name](*(int(text) if text.isdecimal() else Path(text) for text in arguments))
