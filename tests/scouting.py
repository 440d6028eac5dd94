"""What test_scout.py tries, each in a process of its own: only one that has a single thread is ever forked.

python -m tests.scouting <the name of a function here> <its arguments>
"""

from __future__ import annotations

import contextlib
import itertools
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
from blobark.scout import BATCH_ITEMS, FIRST_ITEMS, scouted
from blobark.source import Status
from blobark.walk import Found, Walk, WalkRoot, walk

ENOUGH = FIRST_ITEMS + 20 * BATCH_ITEMS
"""More than a pipe holds: a scout of so many has not finished when the first of them are read."""


def walked(root: Path, since_ns: int = 0) -> Walk:
    rules = Rules(skip_files=[], skip_path=[str(root / "folder11/skipped")], exclude=["excluded/"])
    return walk(WalkRoot(root, os.fsencode(root)), rules, one_file_system=False, since_ns=since_ns)


def go_on() -> None:
    """Nobody asks the run to stop."""


def children() -> list[int]:
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


def finds_what_a_walk_finds(large: Path, since_ns: int) -> None:
    before = children()
    found: list[Found] = []
    for item in scouted(walked(large, since_ns), go_on):
        found.append(item)
        if len(found) == FIRST_ITEMS + 2:
            assert len(children()) == len(before) + 1
    assert found == list(walked(large, since_ns))
    assert len(found) > ENOUGH
    assert children() == before
    odd = {item.path: item for item in found}
    assert odd[b"folder11/skipped"].rule
    assert b"folder11/skipped/below" not in odd
    assert b"folder11/excluded" not in odd
    assert (odd[b"folder11/000"].more is None) == (since_ns > 0)
    hard_link = odd[b"folder11/twice"]
    assert hard_link.more is not None  # of a group it is always known


def is_not_sent_out_in_a_small_tree(small: Path) -> None:
    before = children()
    for _ in scouted(walked(small), go_on):
        assert children() == before


def is_not_sent_out_by_threads(large: Path) -> None:
    before = children()
    stop = threading.Event()
    other = threading.Thread(target=stop.wait)
    other.start()
    try:
        count = sum(children() == before for _ in scouted(walked(large), go_on))
    finally:
        stop.set()
        other.join()
    assert count > ENOUGH


def is_killed(large: Path) -> None:
    before = children()
    found = scouted(walked(large), go_on)
    for _ in range(FIRST_ITEMS + 2):
        next(found)
    (scout,) = set(children()) - set(before)
    os.kill(scout, signal.SIGKILL)
    with pytest.raises(Fatal, match="ended before its time"):
        list(found)
    assert children() == before


def is_not_wanted_any_more(large: Path) -> None:
    before = children()
    found = scouted(walked(large), go_on)
    for _ in range(FIRST_ITEMS + 2):
        next(found)
    assert len(children()) == len(before) + 1
    found.close()
    assert children() == before


def tells_times_of_any_length() -> None:
    status = Status(*([1] * len(Status.__struct_fields__)))
    far = [Found(b"%d" % n, replace(status, st_mtime_ns=n * 10**17)) for n in (-FIRST_ITEMS, *range(FIRST_ITEMS + 7))]

    def aged() -> Walk:
        yield from far

    assert list(scouted(aged(), go_on)) == far


def needs_no_descriptor(large: Path) -> None:
    found = scouted(walked(large), go_on)
    before = children()
    items = [next(found) for _ in range(FIRST_ITEMS)]
    taken: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    with contextlib.suppress(OSError):
        while True:
            taken.append(os.dup(0))
    items += itertools.islice(found, 2)
    for descriptor in taken:
        os.close(descriptor)
    assert children() == before
    assert [*items, *found] == list(walked(large))


def meets_an_error() -> None:
    error = RootRefused("source_path /x cannot be read (gone)", "is it mounted?")
    refused = raised_by_a_walk_with(error)
    assert isinstance(refused, RootRefused)
    assert (refused.message, refused.hint) == (error.message, error.hint)
    bug = raised_by_a_walk_with(ValueError("nobody foresaw this"))
    assert isinstance(bug, Bug)
    assert "nobody foresaw this" in str(bug)


def raised_by_a_walk_with(error: Exception) -> Exception:
    def broken() -> Walk:
        for number in range(FIRST_ITEMS + BATCH_ITEMS + 7):
            yield Found(b"%d" % number, None)
        raise error

    before = children()
    with pytest.raises((RootRefused, Bug)) as caught:
        list(scouted(broken(), go_on))
    assert children() == before
    return caught.value


def hangs() -> None:
    never, end = os.pipe()

    def hanging() -> Walk:
        for number in range(FIRST_ITEMS + 1):
            yield Found(b"%d" % number, None)
        os.read(never, 1)

    def stop() -> None:
        raise Interrupted("interrupted")

    before = children()
    with closing_both(never, end), pytest.raises(Interrupted):
        list(scouted(hanging(), stop))
    assert children() == before


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
