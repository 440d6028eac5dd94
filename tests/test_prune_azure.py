"""Prune against Azurite: its times, kill -9 at every request, a save on another machine, and write-once containers.

A proxy moves the service's clock, by the date in its answers.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from email.utils import format_datetime, parsedate_to_datetime
from pathlib import Path

import pytest
from azure.storage.blob import ContainerClient

from tests import fault_proxy as faults
from tests.azurite_server import AzuriteServer
from tests.fault_proxy import FaultProxy, Message
from tests.pruned import check_whole, numbers, path_of, unnamed
from tests.runs import OneProcess, wait_until
from tests.tier_proxy import WormProxy
from tests.trees import write
from tools.compare import Facts, facts_of

SETTINGS = {"keep": {"last": 1}, "pack_below": "1KiB", "dedupe": True, "max_workers": 2}


@dataclass
class ClockProxy(FaultProxy):
    """A service whose clock is so many days ahead of the times that it gives its blobs."""

    days: float = 0.0

    def altered(self, request: Message, reply: Message) -> Message:
        date = parsedate_to_datetime(reply.header("Date")) + timedelta(days=self.days)
        reply.head = re.sub(
            rb"\r\nDate:[^\r]*", b"\r\nDate: " + format_datetime(date, usegmt=True).encode(), reply.head
        )
        return reply


@pytest.fixture
def proxy(azurite: AzuriteServer) -> Iterator[ClockProxy]:
    made = ClockProxy(azurite.port)
    with made:
        yield made


class Pruned:
    """A machine behind the proxy whose tree was backed up three times, and one that is not."""

    def __init__(self, folder: Path, proxy: FaultProxy, azure: tuple[str, str], container: ContainerClient) -> None:
        text, name = azure
        self.folder = folder
        self.container = container
        self.trees: dict[int, dict[bytes, Facts]] = {}
        self.source = folder / "source"
        self.behind = OneProcess.on_azure(folder / "behind", self.source, proxy.rewire(text), name, **SETTINGS)
        self.direct = OneProcess.on_azure(folder / "direct", self.source, text, name, **SETTINGS)
        for number in (1, 2, 3):
            self.change(number)
            self.behind.run("backup")
            self.trees[number] = facts_of(str(self.source))

    def change(self, number: int) -> None:
        for file in range(5):
            write(self.source / f"file-{file}", f"version {number if file < 3 else 1} of {file} " * 30 * (1 + 3 * file))
        write(self.source / f"only-in-{number}", f"{number}" * 3000)
        (self.source / f"only-in-{number - 1}").unlink(missing_ok=True)

    def dumped(self) -> Path:
        """Return a folder store with what is in the container, brought there by other means."""
        store = self.folder / "dumped"
        shutil.rmtree(store, ignore_errors=True)
        for blob in self.container.list_blobs():
            data = self.container.download_blob(blob.name).readall()
            write(path_of(store, blob.name), data)
        return store

    def check(self) -> list[int]:
        """Whatever a snapshot names is there, and all of them restore; return their numbers."""
        store = self.dumped()
        check_whole(store)
        for number in numbers(store):
            self.direct.run("restore", "--snapshot", str(number))
            assert facts_of(str(self.direct.restored)) == self.trees[number]
            shutil.rmtree(self.direct.restored)
        return numbers(store)


@pytest.fixture
def pruned(tmp_path: Path, proxy: ClockProxy, azure_container: tuple[str, str], container: ContainerClient) -> Pruned:
    return Pruned(tmp_path, proxy, azure_container, container)


def names_in(container: ContainerClient) -> set[str]:
    return {blob.name for blob in container.list_blobs()}


def test_it_goes_by_the_services_clock(pruned: Pruned, proxy: ClockProxy, container: ContainerClient) -> None:
    pruned.behind.run("prune", "--yes")
    assert pruned.check() == [3]
    garbage = unnamed(pruned.dumped())
    assert len(garbage) > 4
    proxy.days = 0.9
    assert pruned.behind.run("prune", "--yes").result["deleting"]["blobs"] == 0
    assert unnamed(pruned.dumped()) == garbage
    proxy.days = 1.1
    assert pruned.behind.run("prune", "--yes").result["deleting"]["blobs"] == len(garbage)
    assert unnamed(pruned.dumped()) == set()
    assert not [name for name in names_in(container) if "/trash/" in name]
    assert pruned.check() == [3]


def test_a_prune_that_is_killed_at_any_request(pruned: Pruned, proxy: ClockProxy) -> None:
    """kill -9, while a request hangs: once while it lists, once while it deletes, and goes on each time."""
    killed = 0
    for days, skips in ((0.0, (9, 13, 14, 15)), (1.2, (9, 12, 14, 16)), (2.4, (12,))):
        proxy.days = days
        for skip in skips:
            hangs = faults.hang(skip=skip)
            proxy.add(hangs)
            with pruned.behind.started("prune", "--yes") as process:
                wait_until(lambda hangs=hangs, process=process: hangs.fired or process.poll() is not None, process)  # type: ignore[misc]
                killed += hangs.fired
                process.kill()
                process.wait()
            hangs.times = hangs.fired  # a run that was over before is no fault of the script
            pruned.check()
        pruned.behind.run("prune", "--yes")
        pruned.check()
    assert killed >= 6
    proxy.days = 9.5
    pruned.behind.run("prune", "--yes")
    proxy.days = 11
    pruned.behind.run("prune", "--yes")
    assert pruned.check() == [3]
    assert unnamed(pruned.dumped()) == set()


@pytest.mark.parametrize("skip", [2, 9, 12])
def test_a_prune_while_a_save_that_goes_on_is_under_way(pruned: Pruned, proxy: ClockProxy, skip: int) -> None:
    """What a killed save has sent is adopted by the next one, and is ten days old to the prune on another machine."""
    pruned.change(4)
    pruned.behind.run("index")
    kept = pruned.folder / "kept"
    shutil.copytree(pruned.behind.state, kept)
    of_index = pruned.behind.map.read_bytes()
    pruned.behind.run("save")
    pruned.container.delete_blob("blobark/web1/snapshots/0000000004")
    shutil.rmtree(pruned.behind.state)
    kept.rename(pruned.behind.state)
    pruned.behind.map.write_bytes(of_index)
    pruned.trees[4] = facts_of(str(pruned.source))
    text = pruned.behind.settings["connection_string"]
    pruned.direct.configure(connection_string=text)

    def prune_fully() -> None:
        for days in (10, 12):
            proxy.days = days
            pruned.direct.run("prune", "--yes")

    proxy.add(faults.meanwhile(prune_fully, skip=skip))
    saved = pruned.behind.run("save", expect=None)
    assert saved.code in (0, 4)
    if saved.code:
        assert "a prune has listed" in saved.stderr
        assert pruned.behind.run("save").result["snapshot"] == 4
    assert pruned.check()[-1] == 4
    for days in (20, 30, 40):
        proxy.days = days
        pruned.direct.run("prune", "--yes")
    assert pruned.check() == [4]
    assert unnamed(pruned.dumped()) == set()


@pytest.mark.parametrize("phase", ["remove", "delete"])
def test_a_write_once_container_refuses_in_one_line(
    tmp_path: Path, azurite: AzuriteServer, azure_container: tuple[str, str], container: ContainerClient, phase: str
) -> None:
    with WormProxy(azurite.port, container=container) as worm:
        pruned = Pruned(tmp_path, worm, azure_container, container)
        if phase == "delete":
            pruned.direct.run("prune", "--yes")
            with ClockProxy(azurite.port, days=1.5) as later, WormProxy(later.port, container=container) as both:
                pruned.behind.configure(connection_string=both.rewire(later.rewire(azure_container[0])))
                before = names_in(container)
                run = pruned.behind.run("prune", "--yes", expect=4)
        else:
            before = names_in(container)
            run = pruned.behind.run("prune", "--yes", expect=4)
        (line,) = run.stderr.splitlines()
        assert "409 BlobImmutableDueToPolicy: it is write-once and may not go yet" in line
        named = re.search(r"(web1_[0-9a-f-]{36}|blobark/web1/[a-z]+/[0-9a-f]+)", line)
        assert named is not None
        assert named[0] in before
        assert names_in(container) == before
        assert run.result["exit_code"] == 4
        assert pruned.check()[-1] == 3


def test_no_block_of_a_large_file_is_lost(
    tmp_path: Path, proxy: ClockProxy, azure_container: tuple[str, str], container: ContainerClient
) -> None:
    """delta: whole copies blocks out of the version before, which goes; delta: extents cites it, and it stays."""
    text, name = azure_container
    source = tmp_path / "source"
    content = bytearray(os.urandom(24 << 20))
    machine = OneProcess.on_azure(
        tmp_path / "work", source, proxy.rewire(text), name, keep={"last": 1}, delta="extents"
    )
    for number in range(4):
        content[number << 20] ^= 1
        write(source / "large", bytes(content))
        machine.run("backup")
        if number == 1:
            machine.configure(delta="whole")
    for days in (0, 1.1, 9, 10.1):
        proxy.days = days
        machine.run("prune", "--yes")
    machine.run("restore")
    assert (machine.restored / "large").read_bytes() == content
    assert len([blob for blob in names_in(container) if blob.startswith("web1_")]) == 1
