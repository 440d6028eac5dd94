"""The crew: whatever ends a member, its parent or their work, the run says what it is, and nothing is left behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import pytest

from blobark.engine import Engine
from blobark.errors import StoreFull
from blobark.fetch import RestoreJob
from blobark.forks import LENGTH_BYTES, length_of
from blobark.member import Makers, ParentGone, Report, Server, frame
from blobark.model import Entry, Outcome
from tests import fault_proxy as faults
from tests.azurite_server import AzuriteServer
from tests.fault_proxy import FaultProxy
from tests.runs import REPOSITORY, Workspace, wait_until
from tools.compare import differences

CONTENT = "/web1_"
END_S = 10.0
FILES = 40


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("crew") / "source"
    for number in range(FILES):
        file = top / str(number % 3) / f"file-{number:02}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"content of {number} " * 50)
    return top


@pytest.fixture
def workspace(tmp_path: Path, source: Path, proxy: FaultProxy, azure_container: tuple[str, str]) -> Workspace:
    text, name = azure_container
    workspace = Workspace.on_azure(tmp_path / "work", source, proxy.rewire(text), name)
    workspace.run("index")
    return workspace


def hanging(workspace: Workspace, proxy: FaultProxy, command: str) -> faults.Fault:
    """Let the first request for content hang; a restore has something to restore."""
    if command == "restore":
        workspace.run("save")
    fault = faults.hang(method="PUT" if command == "save" else "GET", where=CONTENT)
    proxy.add(fault)
    return fault


def members_of(process: subprocess.Popen[bytes], fault: faults.Fault) -> list[int]:
    """Wait until the fault has fired; return the process's children."""
    wait_until(lambda: fault.fired, process)
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def lives(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    return False


def check_whole(workspace: Workspace) -> None:
    """Running it again completes what was stopped."""
    saved = workspace.run("save").result
    assert (saved["complete"], saved["files"]) == (True, FILES)
    workspace.run("restore")
    assert differences(str(workspace.source), str(workspace.restored)) == []


@pytest.mark.parametrize("command", ["save", "restore"])
def test_a_member_that_is_killed(workspace: Workspace, proxy: FaultProxy, command: str) -> None:
    fault = hanging(workspace, proxy, command)
    with workspace.started(command) as process:
        members = members_of(process, fault)
        assert len(members) >= 2
        os.kill(members[0], signal.SIGKILL)
        output, errors = process.communicate(timeout=END_S)
    assert process.returncode == 4
    (line,) = errors.decode().splitlines()
    assert line.startswith("blobark: one of the run's own processes has ended before its time")
    assert "run it again" in line
    assert json.loads(output)["exit_code"] == 4
    assert not any(map(lives, members))
    check_whole(workspace)


@pytest.mark.parametrize("command", ["save", "restore"])
def test_a_parent_that_is_killed(workspace: Workspace, proxy: FaultProxy, command: str) -> None:
    fault = hanging(workspace, proxy, command)
    with workspace.started(command) as process:
        members = members_of(process, fault)
        assert members
        process.kill()
        until_s = time.monotonic() + END_S
        while any(map(lives, members)):
            assert time.monotonic() < until_s, "members outlive their parent"
            time.sleep(0.005)
    check_whole(workspace)  # and so the locks are free


@pytest.mark.parametrize("command", ["save", "restore"])
@pytest.mark.parametrize("how", ["SIGTERM to the run", "SIGINT to all of it"])
def test_a_run_that_is_told_to_stop(workspace: Workspace, proxy: FaultProxy, command: str, how: str) -> None:
    fault = hanging(workspace, proxy, command)
    with workspace.started(command) as process:
        members = members_of(process, fault)
        if how == "SIGTERM to the run":
            process.send_signal(signal.SIGTERM)
        else:
            os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=END_S)
    assert process.returncode == 130
    (line,) = errors.decode().splitlines()
    assert line.startswith(("blobark: interrupted", "blobark: stopped"))
    assert not any(map(lives, members))


def test_what_stops_a_member_stops_the_run_as_what_it_is(workspace: Workspace, proxy: FaultProxy) -> None:
    proxy.add(faults.answer(403, "AuthorizationPermissionMismatch", method="PUT", where=CONTENT))
    run = workspace.run("save", expect=4)
    (line,) = run.stderr.splitlines()
    assert "403" in line
    assert "a right is missing" in line
    check_whole(workspace)


def test_no_secret_is_in_the_list_of_processes(workspace: Workspace, proxy: FaultProxy, azurite: AzuriteServer) -> None:
    fault = hanging(workspace, proxy, "save")
    with workspace.started("save") as process:
        pids = [process.pid, *members_of(process, fault)]
        shown = b"".join(Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=END_S)
    assert b"save_blob.py" in shown
    assert azurite.key.encode() not in shown


# The crew alone, in a process that has one thread


DRIVER = """
import os, resource, sys, threading
import msgspec
from blobark.crew import Crew
from blobark.forks import Bug
from blobark.engine import Engine
from blobark.errors import TargetFull
from blobark.model import Entry, Outcome, Status

class Task(msgspec.Struct, frozen=True):
    name: str

class Job(msgspec.Struct, frozen=True):
    number: int
    entry: Entry
    bundle: str = ""

def maker(task, descriptors, engine):
    def work(batch):
        if batch[0].bundle:
            assert [job.bundle for job in batch] == [batch[0].bundle] * 700, batch
        for job in batch:
            if task.name == "bug" and job.number == 5:
                raise ZeroDivisionError("only a test")
            if task.name == "full" and job.number == 5:
                raise TargetFull("no space", "make some")
        return [Outcome(job.number, job.entry, Status.DONE, job.number) for job in batch]
    return work

def jobs(count, name):
    together = name.startswith("bundles")
    for number in range(count):
        bundle = str(number // 700) if together and number % 1400 < 700 else ""
        yield Job(number, Entry(path=str(number), root=0), bundle)

def descriptors():
    return sorted(os.listdir("/proc/self/fd"))

def main(name, count, cost):
    before = descriptors()
    if name == "no processes":
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
        if os.geteuid() == 0:
            os.setuid(65534)
    crew = Crew(Engine(8, 256 << 20, threading.Event()))
    crew.hire({Task: (Job, maker)}, dict)
    print("members", len(crew))
    try:
        for task in (Task(name), Task(name + " again")) if crew else ():
            seen = [outcome.sequence for _, outcome in crew.run(task, jobs(count, name), cost=lambda job: cost)]
            assert sorted(seen) == list(range(count)), seen
            print("done", len(seen), "in flight", crew.in_flight)
    except (Bug, TargetFull) as error:
        print(type(error).__name__, error, error.__cause__)
    finally:
        crew.dismiss()
    try:
        os.waitpid(-1, 0)
    except ChildProcessError:
        print("no child is left")
    assert descriptors() == before, (descriptors(), before)

main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
"""


def drive(name: str, count: int = 1000, cost: int = 100) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, name, str(count), str(cost)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_costs_above_all_limits_are_worked_off() -> None:
    lines = drive("large", 400, 16 << 20)
    assert lines[1:] == ["done 400 in flight 0"] * 2 + ["no child is left"]
    assert drive("larger than the memory", 20, 1 << 30)[1:] == ["done 20 in flight 0"] * 2 + ["no child is left"]


def test_many_small_jobs() -> None:
    assert drive("small", 30_000, 100)[1:] == ["done 30000 in flight 0"] * 2 + ["no child is left"]


def test_jobs_of_a_bundle_stay_together() -> None:
    assert drive("bundles", 14_000, 100_000)[1:] == ["done 14000 in flight 0"] * 2 + ["no child is left"]


def test_a_run_without_jobs() -> None:
    assert drive("none", 0)[1:] == ["done 0 in flight 0"] * 2 + ["no child is left"]


@pytest.mark.parametrize("count", [1000, 30_000])  # with many, jobs are still being sent to it when it has ended
def test_a_bug_in_a_member_comes_with_its_traceback(count: int) -> None:
    lines = drive("bug", count)
    assert lines[1].startswith("Bug Traceback")
    assert any("ZeroDivisionError: only a test" in line for line in lines)
    assert lines[-1] == "no child is left"


def test_an_error_in_a_member_keeps_its_kind_and_hint() -> None:
    assert drive("full")[1:] == ["TargetFull no space: make some None", "no child is left"]


def test_where_no_process_can_be_made_nobody_is_hired() -> None:
    assert drive("no processes") == ["members 0", "no child is left"]


class Errand(msgspec.Struct):
    """A task whose work finds the disk full."""


def full(_: list[RestoreJob]) -> list[Outcome]:
    raise StoreFull("no room")


def serve_until_gone(server: Server) -> None:
    with contextlib.suppress(ParentGone):
        server.serve()


def test_what_stops_a_member_is_told_while_it_waits_for_jobs() -> None:
    """The parent may give it none before it has answered for those that it has."""
    ours, theirs = socket.socketpair()
    makers: Makers = {Errand: (RestoreJob, lambda _task, _descriptors, _engine: full)}
    server = Server(theirs, Engine(1, 1 << 20, threading.Event()), makers, dict)
    threading.Thread(target=serve_until_gone, args=[server], daemon=True).start()
    with ours, theirs:
        ours.settimeout(END_S)
        ours.sendall(frame(["Errand", 0, Errand()]) + frame([(1, 0, RestoreJob(b"a", Entry(path="a")))]))
        body = b""
        while len(body) < LENGTH_BYTES or len(body) < LENGTH_BYTES + length_of(body[:LENGTH_BYTES]):
            body += ours.recv(1 << 16)
        failure = msgspec.json.decode(body[LENGTH_BYTES:][: length_of(body[:LENGTH_BYTES])], type=Report).failure
        assert failure is not None
        assert isinstance(failure.raised(), StoreFull)
        ours.shutdown(socket.SHUT_RDWR)
