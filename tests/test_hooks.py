"""What surrounds a backup: hooks, which get JSON and may fail, and the log of runs."""

from __future__ import annotations

import contextlib
import fcntl
import json
import shlex
import shutil
import signal
import stat
from pathlib import Path
from typing import Any

import pytest

from blobark.holder import Holder
from blobark.stores.folder import FolderStore
from tests import fault_proxy as faults
from tests.fault_proxy import FaultProxy
from tests.powerless import Powerless
from tests.runs import Workspace, wait_until
from tests.trees import small_tree, write

END_S = 10.0
HOOKS = ("before", "after", "on_failure")


class Hooked:
    """A workspace each of whose hooks writes what it gets into a file of its own, and notes its turn."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.folder = workspace.folder / "told"
        self.folder.mkdir(parents=True)
        self.log = workspace.folder / "backup.log"
        self.set(**dict.fromkeys(HOOKS, "true"))
        workspace.configure(log_file=str(self.log))

    def set(self, **more: str) -> None:
        """Let hooks do something more."""
        commands = {}
        for name, command in more.items():
            file, turns = shlex.quote(str(self.folder / name)), shlex.quote(str(self.folder / "turns"))
            commands[f"hook_{name}"] = f"cat > {file}; echo {name} >> {turns}; {command}"
        self.workspace.configure(**commands)

    def told(self, name: str) -> dict[str, Any]:
        return dict(json.loads((self.folder / name).read_bytes()))

    def turns(self) -> list[str]:
        """Return which hooks ran since this was asked last, in order."""
        file = self.folder / "turns"
        names = file.read_text().split() if file.exists() else []
        file.unlink(missing_ok=True)
        return names

    def logged(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_bytes().splitlines()]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return small_tree(tmp_path / "source", "a", "sub/b")


@pytest.fixture
def hooked(tmp_path: Path, source: Path) -> Hooked:
    return Hooked(Workspace(tmp_path / "work", source, server="web1"))


def test_hooks_get_what_was_done(hooked: Hooked) -> None:
    result = hooked.workspace.run("backup").result
    assert hooked.turns() == ["before", "after"]
    begun, ended = hooked.told("before"), hooked.told("after")
    assert begun == {"command": "backup", "started": ended["started"]}
    assert (ended["exit_code"], ended["snapshot"], ended["complete"], ended["failed"]) == (0, 1, True, 0)
    assert (ended["files"], ended["sent"], ended["sent_bytes"]) == (2, 2, result["save"]["sent_bytes"])
    (line,) = hooked.logged()
    assert line["seconds"] >= ended["seconds"]
    assert {**line, "seconds": 0} == {**ended, "seconds": 0}


def test_a_dry_run_calls_nobody(hooked: Hooked) -> None:
    hooked.workspace.run("backup", "--dry-run")
    assert hooked.turns() == []
    assert not hooked.log.exists()


def test_before_stops_the_run_when_it_fails(hooked: Hooked) -> None:
    hooked.set(before="exit 7")
    run = hooked.workspace.run("backup", expect=4)
    assert run.stderr.startswith("blobark: hook_before failed (exit code 7)")
    assert hooked.turns() == ["before", "on_failure"]
    assert not hooked.workspace.store.exists()
    failed = hooked.told("on_failure")
    assert (failed["exit_code"], failed["error"]) == (4, "hook_before failed (exit code 7)")
    assert hooked.logged()[0]["exit_code"] == 4


def test_the_others_only_warn_when_they_fail(hooked: Hooked, source: Path) -> None:
    hooked.set(after="exit 1", on_failure="kill -9 $$$$")
    run = hooked.workspace.run("backup")
    assert run.stderr.splitlines() == ["warning: hook_after failed (exit code 1)"]
    assert hooked.logged()[0]["warnings"] == ["hook_after failed (exit code 1)"]
    shutil.rmtree(source)
    run = hooked.workspace.run("backup", expect=4)
    assert "warning: hook_on_failure failed (killed by signal 9)" in run.stderr


def test_a_run_that_cannot_go_on_is_a_failure(hooked: Hooked, source: Path) -> None:
    shutil.rmtree(source)
    run = hooked.workspace.run("backup", expect=4)
    assert hooked.turns() == ["before", "after", "on_failure"]
    failed = hooked.told("on_failure")
    assert (failed["exit_code"], failed["error"], failed["snapshot"]) == (4, run.result["error"], 0)
    assert failed == {**hooked.told("after"), "seconds": failed["seconds"]}


def test_items_that_failed_are_a_failure(tmp_path: Path, source: Path) -> None:
    hooked = Hooked(Powerless(tmp_path / "work", source))
    (source / "a").chmod(0)
    run = hooked.workspace.run("backup", expect=3)
    (source / "a").chmod(0o644)
    assert hooked.turns() == ["before", "after", "on_failure"]
    failed = hooked.told("on_failure")
    assert (failed["exit_code"], failed["failed"], failed["complete"]) == (3, 1, False)
    assert failed["failures"] == run.result["save"]["failed"]
    assert hooked.workspace.run("backup").result["exit_code"] == 0
    assert [line["exit_code"] for line in hooked.logged()] == [3, 0]


def test_a_run_that_finds_the_lock_held_is_only_logged(hooked: Hooked) -> None:
    hooked.workspace.run("backup")
    hooked.turns()
    with (hooked.workspace.state / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        hooked.workspace.run("backup", expect=5)
    assert hooked.turns() == []
    assert [line["exit_code"] for line in hooked.logged()] == [0, 5]


def test_a_run_that_finds_the_lock_in_the_store_held_is_no_failure(hooked: Hooked) -> None:
    """That one is looked at when hook_before has run, so hook_after undoes what that did."""
    hooked.workspace.run("backup")
    hooked.turns()
    with contextlib.closing(FolderStore(str(hooked.workspace.store))) as store:
        hold = store.hold("blobark/web1/lock", Holder("another machine's", "web1", command="save"))
        hooked.workspace.run("backup", expect=5)
        hold.release()
    assert hooked.turns() == ["before", "after"]
    assert hooked.told("after")["exit_code"] == 5
    assert [line["exit_code"] for line in hooked.logged()] == [0, 5]


def test_hooks_run_under_the_lock(hooked: Hooked) -> None:
    held = f"! flock --nonblock {shlex.quote(str(hooked.workspace.state / 'lock'))} true"
    hooked.set(before=held, after=held)
    assert hooked.workspace.run("backup").stderr == ""


def test_what_hooks_print_is_no_part_of_the_result(hooked: Hooked) -> None:
    hooked.set(before="echo from before", after="echo from after >&2")
    assert hooked.workspace.run("backup").stderr.splitlines() == ["from before", "from after"]


def test_a_hook_need_not_read(hooked: Hooked, source: Path) -> None:
    hooked.workspace.configure(hook_after="exec 0<&-; true")
    assert hooked.workspace.run("backup").stderr == ""


def test_a_hook_ends_when_the_run_is_asked_to(hooked: Hooked) -> None:
    hooked.set(before="exec sleep 1000")
    with hooked.workspace.started("backup") as process:
        wait_until((hooked.folder / "turns").exists, process)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=END_S)
    assert process.returncode == 130
    assert errors.startswith(b"blobark: interrupted")
    assert hooked.turns() == ["before", "on_failure"]
    assert hooked.told("on_failure")["exit_code"] == 130


def test_an_interrupted_run_calls_its_hooks(
    tmp_path: Path, source: Path, proxy: FaultProxy, azure_container: tuple[str, str]
) -> None:
    text, name = azure_container
    hooked = Hooked(Workspace.on_azure(tmp_path / "work", source, proxy.rewire(text), name))
    fault = faults.hang(method="PUT", where="/web1_")
    proxy.add(fault)
    with hooked.workspace.started("backup") as process:
        wait_until(lambda: fault.fired, process)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=END_S)
    assert process.returncode == 130
    assert hooked.turns() == ["before", "after", "on_failure"]
    assert hooked.told("on_failure")["exit_code"] == 130
    key = text.partition("AccountKey=")[2].partition(";")[0]
    told = b"".join((hooked.folder / name).read_bytes() for name in HOOKS) + hooked.log.read_bytes()
    assert key.encode() not in told


# The log


def test_the_log_is_its_owners_and_no_part_of_the_backup(hooked: Hooked, source: Path) -> None:
    log = source / "logs" / "backup.log"
    log.parent.mkdir()
    hooked.workspace.configure(log_file=str(log))
    for _ in range(2):
        hooked.workspace.run("backup")
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    assert [json.loads(line)["snapshot"] for line in log.read_text().splitlines()] == [1, 2]
    assert set(hooked.workspace.guids()) == {"a", "sub/b"}


def test_a_log_that_cannot_be_written_is_told(hooked: Hooked) -> None:
    write(hooked.log, "no folder")
    hooked.workspace.configure(log_file=str(hooked.log / "backup.log"))
    run = hooked.workspace.run("backup")
    assert "log_file" in run.stderr
    assert run.result["save"]["snapshot"] == 1
