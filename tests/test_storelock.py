"""The lock of a server in its store: one run writes at a time, on whatever machine, and none waits for a person."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from azure.storage.blob import BlobLeaseClient, ContainerClient

from blobark.cli import LOCAL_WORKERS
from blobark.crew import MOST_MEMBERS
from blobark.holder import Holder, this_process
from tests import fault_proxy as faults
from tests.fault_proxy import FaultProxy
from tests.manifests import missing_content
from tests.runs import Workspace, wait_until
from tests.short_lock import ShortLock
from tests.trees import small_tree, write

AT_ONCE_S = 10.0
LOCK = "blobark/web1/lock"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return small_tree(tmp_path / "source", *(f"{number % 7}/{number}" for number in range(500)))


@pytest.fixture
def machines(tmp_path: Path, source: Path) -> tuple[Workspace, Workspace]:
    """Two machines with one folder, by mistake or because one takes over."""
    return on_folder(Workspace, tmp_path, source)


@pytest.fixture
def hasty(tmp_path: Path, source: Path) -> tuple[Workspace, Workspace]:
    """The same with locks that are soon lost."""
    return on_folder(ShortLock, tmp_path, source)


def on_folder(kind: type[Workspace], folder: Path, source: Path) -> tuple[Workspace, Workspace]:
    one, other = (kind(folder / name, source, server="web1") for name in ("one", "other"))
    other.store = one.store
    other.configure(store=str(one.store))
    one.configure(max_requests_per_s=400)  # so that there is time to stop it
    return one, other


@pytest.fixture
def far(
    tmp_path: Path, source: Path, proxy: FaultProxy, azure_container: tuple[str, str]
) -> tuple[ShortLock, ShortLock]:
    """Two machines with one container, the first of them behind the proxy."""
    text, name = azure_container
    one = ShortLock.on_azure(tmp_path / "one", source, proxy.rewire(text), name)
    return one, ShortLock.on_azure(tmp_path / "other", source, text, name)


def snapshots(workspace: Workspace) -> int:
    return len(list(workspace.store.glob("blobark/*/snapshots/*")))


def published(container: ContainerClient) -> int:
    return len(list(container.list_blobs("blobark/web1/snapshots/")))


@contextlib.contextmanager
def stopped(workspace: Workspace) -> Iterator[subprocess.Popen[bytes]]:
    """A backup that has the lock and does not move; nothing is published yet."""
    with workspace.started("backup") as process:
        # A backup begins its journal when it has the lock; between making the lock's file and that it may yet lose it.
        wait_until(lambda: list(workspace.state.glob("journals/*")), process)
        os.killpg(process.pid, signal.SIGSTOP)
        assert snapshots(workspace) == 0, "it was too fast to be held"
        yield process


def end(process: subprocess.Popen[bytes], number: int = signal.SIGCONT) -> tuple[int, dict[str, Any], list[str]]:
    """Send a run a signal, and return how it ended: exit code, result, and the lines it said."""
    os.killpg(process.pid, number)
    output, errors = process.communicate(timeout=60)
    return process.returncode, json.loads(output) if output else {}, errors.decode().splitlines()


def test_a_second_machine_ends_at_once(machines: tuple[Workspace, Workspace]) -> None:
    one, other = machines
    other.run("index")
    with stopped(one) as process:
        begun_s = time.monotonic()
        for command in ("backup", "save"):
            (line,) = other.run(command, expect=5).stderr.splitlines()
            assert line.startswith("blobark: backup on ")
            assert f"(process {process.pid}) since 20" in line
            assert line.endswith(f"holds the lock of web1 in {one.store}: wait until it has finished")
        assert time.monotonic() - begun_s < AT_ONCE_S
        assert other.run("save", "--dry-run").result["sent"] == 500
        assert other.run("backup", "--dry-run").result["save"]["sent"] == 500
        assert end(process)[0] == 0
    assert other.run("backup").result["save"]["snapshot"] == 2
    assert [path.read_bytes() for path in one.store.glob(f"{LOCK}/*")] == [b""]


def test_a_second_machine_waits_if_told_to(machines: tuple[Workspace, Workspace]) -> None:
    one, other = machines
    with stopped(one) as process, other.started("backup", "--wait") as waiting:
        assert waiting.stderr
        assert waiting.stderr.readline() == b"another run holds the lock: waiting until it has finished\n"
        assert end(process)[0] == 0
        output, errors = waiting.communicate(timeout=60)
    assert (waiting.returncode, errors) == (0, b"no local state: rebuilding it from snapshot 1 of web1\n")
    assert json.loads(output)["save"]["snapshot"] == 2


def test_waiting_for_another_machine_ends_when_asked_to(machines: tuple[Workspace, Workspace]) -> None:
    one, other = machines
    with stopped(one), other.started("backup", "--wait") as waiting:
        assert waiting.stderr
        waiting.stderr.readline()
        assert end(waiting, signal.SIGTERM)[0] == 130


def test_all_processes_of_a_backup_are_there_before_it_asks_for_the_lock(machines: tuple[Workspace, Workspace]) -> None:
    one, other = machines
    with stopped(one), other.started("backup", "--wait") as waiting:
        assert waiting.stderr
        waiting.stderr.readline()
        children = Path(f"/proc/{waiting.pid}/task/{waiting.pid}/children").read_text().split()
        end(waiting, signal.SIGTERM)
    members = min(os.cpu_count() or 1, LOCAL_WORKERS, MOST_MEMBERS)
    assert len(children) == (members + 1 if members > 1 else 0)  # a crew and a scout; one processor has neither


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_that_was_ended_is_in_nobodys_way(machines: tuple[Workspace, Workspace], number: int) -> None:
    one, other = machines
    with stopped(one) as process:
        os.killpg(process.pid, number)
        end(process)
        assert other.run("backup").result["save"]["snapshot"] == 1


def test_a_holder_that_wakes_up_after_another_took_over_does_not_publish(hasty: tuple[ShortLock, ShortLock]) -> None:
    one, other = hasty
    with stopped(one) as process:
        assert other.run("backup", "--wait").result["save"]["snapshot"] == 1
        code, result, (*_, line) = end(process)
    assert code == 4
    assert result["error"].startswith(("this run has lost its lock: ", "another run changed the snapshots"))
    assert line.startswith("blobark: ")
    assert snapshots(one) == 1
    assert missing_content(one.store) == []
    assert one.run("backup").result["save"]["snapshot"] == 2


def test_a_holder_that_wakes_up_late_and_alone_goes_on(hasty: tuple[ShortLock, ShortLock]) -> None:
    one, _ = hasty
    with stopped(one) as process:
        (lock,) = one.store.glob(f"{LOCK}/*")
        os.utime(lock, (1, 1))
        time.sleep(one.lock_s)
        code, result, lines = end(process)
    assert (code, lines, result["save"]["complete"]) == (0, [], True)


def test_a_run_whose_lock_is_taken_stops_in_the_middle(hasty: tuple[ShortLock, ShortLock]) -> None:
    one, _ = hasty
    for number in range(40):
        write(one.source / "large" / str(number), os.urandom(1 << 20))
    one.configure(max_bandwidth="1MiB")
    with one.started("backup") as process:
        wait_until(lambda: list(one.store.glob("??/web1_*")), process)
        (one.store / LOCK / "0000000002.blob").write_bytes(b'{"id": "x", "host": "db1", "command": "prune", "pid": 7}')
        output, errors = process.communicate(timeout=AT_ONCE_S)
    (line,) = errors.decode().splitlines()
    lost = f"prune on db1 (process 7) since  holds the lock of web1 in {one.store}"
    assert line == f"blobark: this run has lost its lock: {lost}: run it again to go on where it stopped"
    assert (process.returncode, json.loads(output)["exit_code"]) == (4, 4)
    assert snapshots(one) == 0


def test_a_number_that_is_used_again_is_not_taken_for_the_holder() -> None:
    us = this_process("1", "web1", "save")
    assert us.boot
    assert us.started
    assert not us.is_gone
    for gone in ({"started": "1"}, {"pid": 2**22 + 1}):
        assert holder_like(us, **gone).is_gone
    for unknown in ({"boot": "another boot"}, {"boot": ""}):
        assert not holder_like(us, **{"pid": 2**22 + 1, **unknown}).is_gone


def holder_like(us: Holder, **changes: Any) -> Holder:
    return Holder(**{name: getattr(us, name) for name in us.__struct_fields__} | changes)


def test_a_process_that_has_ended_and_was_not_waited_for_is_gone() -> None:
    child = os.fork()
    if child == 0:
        signal.pause()
        os._exit(0)
    try:
        with open(f"/proc/{child}/stat", "rb") as file:
            started = file.read().rpartition(b")")[2].split()[19].decode()
        holder = holder_like(this_process("1", "web1", "save"), pid=child, started=started)
        assert not holder.is_gone
        os.kill(child, signal.SIGKILL)
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        assert holder.is_gone
    finally:
        os.waitpid(child, 0)


# Azure


def test_a_lease_costs_three_requests_and_is_given_back(
    far: tuple[ShortLock, ShortLock], proxy: FaultProxy, container: ContainerClient
) -> None:
    one, other = far
    one.run("backup")
    proxy.reset_counts()
    one.run("backup")
    about = [target.partition("?")[2].partition("&s")[0] for target in proxy.targets if f"/{LOCK}" in target]
    assert (len(about), about[0], about[-1]) == (3, "comp=lease", "comp=lease")
    assert other.run("backup").result["save"]["snapshot"] == 3
    holder = json.loads(container.download_blob(LOCK).readall())
    assert (holder["server"], holder["command"]) == ("web1", "backup")


def test_the_same_machine_need_not_wait_for_a_run_that_was_killed(
    far: tuple[ShortLock, ShortLock], proxy: FaultProxy
) -> None:
    one, _ = far
    hangs = faults.hang(method="PUT", where="/segments/")
    proxy.add(hangs)
    with one.started("backup") as process:
        wait_until(lambda: hangs.fired, process)
        process.kill()
        assert one.run("backup").result["save"]["snapshot"] == 1


def test_a_lease_is_held_by_one_machine_and_not_for_long_by_one_that_sleeps_and_then_does_not_publish(
    far: tuple[ShortLock, ShortLock], proxy: FaultProxy, container: ContainerClient
) -> None:
    """To the service a machine that is dead and one that sleeps are the same, until the latter wakes up."""
    one, other = far
    waits = faults.delay(0.5, method="PUT", where="/segments/")
    proxy.add(waits)
    with one.started("backup") as process:
        wait_until(lambda: waits.fired, process)
        os.killpg(process.pid, signal.SIGSTOP)
        begun_s = time.monotonic()
        (line,) = other.run("backup", expect=5).stderr.splitlines()
        assert f"backup on {os.uname().nodename} (process {process.pid}) since 20" in line
        assert line.endswith("wait until it has finished")
        assert other.run("backup", "--wait").result["save"]["snapshot"] == 1
        assert time.monotonic() - begun_s < one.lock_s + AT_ONCE_S
        code, result, (*_, line) = end(process)
    assert (code, published(container)) == (4, 1)
    assert result["error"].startswith(("this run has lost its lock: ", "another run changed the snapshots"))
    assert line.startswith("blobark: ")
    assert one.run("backup").result["save"]["snapshot"] == 2


def test_a_lease_that_is_taken_away_stops_the_run_before_it_publishes(
    far: tuple[ShortLock, ShortLock], proxy: FaultProxy, container: ContainerClient
) -> None:
    one, _ = far

    def steal() -> None:
        BlobLeaseClient(container.get_blob_client(LOCK)).break_lease(lease_break_period=0)
        container.get_blob_client(LOCK).acquire_lease(-1)

    hangs = faults.hang(method="PUT", where="/web1_")
    proxy.add(faults.meanwhile(steal, method="PUT", where="/web1_"), hangs)
    with one.started("backup") as process:
        wait_until(lambda: hangs.fired, process)
        _, errors = process.communicate(timeout=one.lock_s + AT_ONCE_S)
    (line,) = errors.decode().splitlines()
    assert line.startswith("blobark: this run has lost its lock: backup on ")
    assert line.endswith("run it again to go on where it stopped")
    assert (process.returncode, published(container)) == (4, 0)


def test_passing_failures_cost_no_lock(
    far: tuple[ShortLock, ShortLock], proxy: FaultProxy, container: ContainerClient
) -> None:
    one, _ = far
    proxy.add(
        faults.answer(503, "ServerBusy", method="PUT", where=f"{LOCK}?comp=lease"),
        faults.lose_answer(method="PUT", where=f"{LOCK}?comp=lease"),
        faults.delay(1.3 * one.lock_s, method="PUT", where="/snapshots/"),
        faults.answer(503, "ServerBusy", method="PUT", where=f"{LOCK}?comp=lease", skip=2, times=2),
        faults.lose_answer(method="PUT", where=f"{LOCK}?comp=lease", skip=1),
    )
    with one.started("backup") as process:
        wait_until(lambda: any("/snapshots/" in target for target in proxy.targets), process)
        time.sleep(1.05 * one.lock_s)
        with pytest.raises(Exception, match="LeaseAlreadyPresent"):
            container.get_blob_client(LOCK).acquire_lease(15)
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, b"")
    assert json.loads(output)["save"]["snapshot"] == 1


def test_a_release_that_hangs_keeps_nobody_from_ending(far: tuple[ShortLock, ShortLock], proxy: FaultProxy) -> None:
    one, _ = far
    one.run("backup")
    begun_s = time.monotonic()
    proxy.add(faults.hang(method="PUT", where=f"{LOCK}?comp=lease", skip=1))
    assert one.run("backup").code == 0
    assert time.monotonic() - begun_s < AT_ONCE_S
    assert one.run("backup").result["save"]["snapshot"] == 3


def test_a_rebuild_takes_the_lock_too(far: tuple[ShortLock, ShortLock], container: ContainerClient) -> None:
    one, other = far
    one.run("backup")
    for blob in container.list_blobs("blobark/web1/snapshots/"):
        container.delete_blob(blob.name)
    lease = container.get_blob_client(LOCK).acquire_lease(-1)
    assert other.run("rebuild", "--dry-run").code == 0
    (line,) = other.run("rebuild", "--server", "web1", expect=5).stderr.splitlines()
    assert "holds the lock of web1" in line
    lease.release()
    assert other.run("rebuild", "--server", "web1", expect=3).result["snapshot"] == 1


def link(path: Path) -> None:
    path.symlink_to("elsewhere")


IN_THE_WAY: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "a symlink": ("0000000001.blob", link, "is no plain file"),
    "a folder": ("0000000001.blob", Path.mkdir, "is no plain file"),
    "the last number": ("9999999999.blob", lambda path: path.write_text("?"), "has the last number there is"),
}


@pytest.mark.parametrize(("name", "make", "why"), IN_THE_WAY.values(), ids=IN_THE_WAY.keys())
def test_what_was_never_a_lock_is_named(tmp_path: Path, name: str, make: Callable[[Path], object], why: str) -> None:
    """Nobody holds it, so nobody would ever let go of it."""
    workspace = Workspace(tmp_path / "work", small_tree(tmp_path / "source", "a"), server="web1")
    file = workspace.store / LOCK / name
    file.parent.mkdir(parents=True)
    make(file)
    an_hour_ago = time.time() - 3600
    os.utime(file, (an_hour_ago, an_hour_ago), follow_symlinks=False)
    (line,) = workspace.run("backup", expect=4).stderr.splitlines()
    assert line.startswith(f"blobark: {file} {why}, and keeps everybody from the lock of web1: ")
    if file.is_dir() and not file.is_symlink():
        file.rmdir()
    else:
        file.unlink()
    workspace.run("backup")
