"""What threads have in hand: seen from another process, named by the end of the name, gone when they rest."""

from __future__ import annotations

import os
import threading

import pytest

from metrics.stages import Stages


def test_what_a_fork_has_in_hand_is_seen_until_it_rests() -> None:
    stages = Stages(2)
    assert stages.under_way.longest() is None
    (told, tell), (heard, hear) = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        stages.share(1, 2)
        stages.begin(b"dir/first", 1000)
        stages.progress(100)
        stages.progress(150)
        os.write(tell, b"x")
        os.read(heard, 1)
        stages.rest()
        os._exit(0)
    os.read(told, 1)
    stages.share(0, 2)
    stages.begin(b"dir/second", 10)
    stages.progress(3)
    longest = stages.under_way.longest()
    assert longest is not None
    assert (longest.name, longest.done_bytes, longest.size_bytes, longest.is_cut) == (b"dir/first", 250, 1000, False)
    assert longest.seconds > 0
    assert stages.under_way.done_bytes() == 253
    os.write(hear, b"x")
    assert os.waitpid(pid, 0)[1] == 0
    longest = stages.under_way.longest()
    assert longest is not None
    assert longest.name == b"dir/second"
    assert stages.under_way.done_bytes() == 3
    for end in (told, tell, heard, hear):
        os.close(end)


def test_the_next_item_begins_anew_and_a_batch_is_named_by_its_first() -> None:
    stages = Stages(1)
    stages.begin(b"one", 5)
    stages.progress(5)
    stages.begin(b"two", 0, 11)
    longest = stages.under_way.longest()
    assert longest is not None
    assert (longest.name, longest.done_bytes) == (b"two and 11 more", 0)
    stages.rest()
    assert stages.under_way.longest() is None


@pytest.mark.parametrize("name", ["a" * 95, "a" * 96, "é" * 48, "x" + "é" * 60, "x" * 300 + "目" * 31, "目" * 40 + "x"])
def test_of_a_long_name_the_end_is_known(name: str) -> None:
    stages = Stages(1)
    stages.begin(name.encode(), 0)
    longest = stages.under_way.longest()
    assert longest is not None
    assert longest.is_cut == (len(name.encode()) > 96)
    assert name.endswith(longest.name.decode())
    assert len(longest.name) > 92 or not longest.is_cut


def test_a_reader_never_sees_half_of_two_items() -> None:
    stages, done = Stages(1), threading.Event()
    names = [bytes([letter]) * 90 for letter in b"abc"]

    def work() -> None:
        while not done.is_set():
            for name in names:
                stages.begin(name, name[0])
        stages.rest()

    thread = threading.Thread(target=work)
    thread.start()
    for _ in range(20_000):
        longest = stages.under_way.longest()
        assert longest is None or (longest.name in names and longest.size_bytes == longest.name[0])
    done.set()
    thread.join()
