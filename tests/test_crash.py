"""kill -9 and signals at many points of index, save and restore: nothing is lost, and the next run finishes the job.

Points are found by what a run has done so far (blobs in the store, files restored), and a few by chance.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.manifests import content_keys, items, missing_content, read_manifest, without_run
from tests.runs import PATIENCE_S, Workspace
from tools.compare import differences, facts_of

FOLDERS = 40
FILES_EACH = 75
LARGE_BYTES = 100 * 1000 * 1000
END_S = 10.0
"""A run that was asked to stop has ended by then."""


def first_version(top: Path) -> None:
    for number in range(50):
        file = top / f"{number % FOLDERS:02}" / f"old-{number:03}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"first version of {number}")
    (top / "link").symlink_to("00/old-000")


def second_version(top: Path) -> None:
    """Change every file, and add very many small ones and, in the end, a large one."""
    dice = random.Random(7)
    for number in range(50):
        (top / f"{number % FOLDERS:02}" / f"old-{number:03}").write_text(f"{number}: the second version, longer")
    for folder in range(FOLDERS):
        for number in range(FILES_EACH):
            (top / f"{folder:02}" / f"new-{number:03}").write_bytes(dice.randbytes(dice.randrange(3000)))
    os.link(top / "00" / "new-000", top / "linked")
    with open(top / "sparse", "wb") as file:
        file.seek(5 << 20)
        file.write(b"after a hole")
    (top / "zz-large").write_bytes(dice.randbytes(LARGE_BYTES))


@dataclass
class Prepared:
    """A tree at its second version; a workspace that saved it undisturbed, and one that knows only the first."""

    source: Path
    first: dict[bytes, dict[str, object]]
    undisturbed: Workspace
    template: Workspace
    index_s: float


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("crash")
    source = folder / "source"
    first_version(source)
    template = Workspace(folder / "template", source, server="web1")
    template.backup()
    first = facts_of(str(source))
    undisturbed = copied(template, folder / "undisturbed")
    second_version(source)
    begun_s = time.monotonic()
    undisturbed.run("index")
    index_s = time.monotonic() - begun_s
    undisturbed.run("save")
    return Prepared(source, first, undisturbed, template, index_s)


def copied(workspace: Workspace, folder: Path) -> Workspace:
    shutil.copytree(workspace.folder, folder)
    return Workspace(folder, workspace.source, server="web1")


@pytest.fixture
def victim(prepared: Prepared, tmp_path: Path) -> Workspace:
    """A workspace whose one snapshot is that of the tree's first version."""
    return copied(prepared.template, tmp_path / "victim")


def until(process: subprocess.Popen[bytes], condition: Callable[[], bool], look_every_s: float = 0.004) -> bool:
    """Wait until the condition holds; False when the process ended first."""
    limit_s = time.monotonic() + PATIENCE_S
    while not condition():
        if process.poll() is not None:
            return condition()
        assert time.monotonic() < limit_s
        time.sleep(look_every_s)
    return True


def killed_when(workspace: Workspace, command: str, condition: Callable[[], bool], look_every_s: float = 0.004) -> bool:
    """Start a run and kill it as soon as the condition holds; False when it ended before that."""
    with workspace.started(command) as process:
        reached = until(process, condition, look_every_s)
        process.kill()
        return reached and process.wait() == -signal.SIGKILL


def check_first_snapshot(prepared: Prepared, workspace: Workspace) -> None:
    shutil.rmtree(workspace.restored, ignore_errors=True)
    workspace.run("restore", "--snapshot", "1")
    assert facts_of(str(workspace.restored)) == prepared.first
    shutil.rmtree(workspace.restored)


def check_second_snapshot(prepared: Prepared, workspace: Workspace) -> None:
    """It is the one that an undisturbed run made, and nothing was stored for nothing."""
    theirs = prepared.undisturbed.store
    assert without_run(read_manifest(workspace.store, 2)) == without_run(read_manifest(theirs, 2))
    assert missing_content(workspace.store) == []
    assert len(content_keys(workspace.store)) == len(content_keys(theirs))


# kill -9


def test_an_index_that_is_killed(prepared: Prepared, victim: Workspace) -> None:
    dice = random.Random()
    before = victim.map.read_bytes()
    for _ in range(5):
        limit_s = time.monotonic() + dice.uniform(0.1, 0.9) * prepared.index_s
        killed_when(victim, "index", lambda limit_s=limit_s: time.monotonic() > limit_s)  # type: ignore[misc]
        assert victim.map.read_bytes() == before or len(victim.guids()) > FOLDERS * FILES_EACH
    victim.backup()
    check_second_snapshot(prepared, victim)
    check_first_snapshot(prepared, victim)


def test_an_index_that_is_killed_while_it_writes_the_map(prepared: Prepared, victim: Workspace) -> None:
    killed_when(victim, "index", lambda: any(victim.folder.glob(".map.json*")), 0.0)
    victim.backup()
    check_second_snapshot(prepared, victim)
    server_guids = {f"web1_{entry['guid']}" for entry in items(victim.store).values() if "guid" in entry}
    sparse = f"web1_{items(victim.store)['sparse']['guid']}"
    assert set(victim.guids().values()) == server_guids - {sparse}


def test_half_a_map_does_not_stay(victim: Workspace) -> None:
    killed_when(victim, "index", lambda: any(victim.folder.glob(".map.json*")), 0.0)
    victim.map.unlink()
    victim.run("index")
    assert list(victim.folder.glob(".map.json*")) == []


def test_a_save_that_is_killed_again_and_again(prepared: Prepared, victim: Workspace) -> None:
    victim.run("index")
    wanted = len(content_keys(prepared.undisturbed.store))
    kills = 0
    for share in (0.0, 0.1, 0.3, 0.6, 0.8, 0.99):
        there = len(content_keys(victim.store))
        more = max(there + 1, int(wanted * share))
        kills += killed_when(victim, "save", lambda more=more: len(content_keys(victim.store)) >= more)  # type: ignore[misc]
        if share == 0.3:
            check_first_snapshot(prepared, victim)
    assert kills >= 3
    there = len(content_keys(victim.store))
    saved = victim.run("save").result
    assert saved["sent"] == wanted - there
    check_second_snapshot(prepared, victim)
    check_first_snapshot(prepared, victim)


def test_a_save_that_is_killed_while_it_publishes(prepared: Prepared, victim: Workspace) -> None:
    victim.run("index")
    segments = victim.store / "blobark" / "web1" / "segments"
    before = len(list(segments.iterdir()))
    killed_when(victim, "save", lambda: len(list(segments.iterdir())) > before)
    keys = content_keys(victim.store)
    saved = victim.run("save").result
    assert saved["sent"] == 0
    assert content_keys(victim.store) == keys
    check_second_snapshot(prepared, victim)


def test_a_save_that_is_killed_and_has_lost_its_state(prepared: Prepared, victim: Workspace) -> None:
    """GUIDs are lost with it: content is stored again, and everything named is there."""
    victim.run("index")
    killed_when(victim, "save", lambda: len(content_keys(victim.store)) > 500)
    shutil.rmtree(victim.state)
    victim.backup()
    assert without_run(read_manifest(victim.store, 2)) == without_run(read_manifest(prepared.undisturbed.store, 2))
    assert missing_content(victim.store) == []


def restored_names(workspace: Workspace) -> list[str]:
    return [name for _, _, names in os.walk(workspace.restored) for name in names]


def test_a_restore_that_is_killed_again_and_again(prepared: Prepared, tmp_path: Path) -> None:
    workspace = prepared.undisturbed
    shutil.rmtree(workspace.restored, ignore_errors=True)
    wanted = FOLDERS * FILES_EACH
    kills = 0
    for more in (1, wanted // 4, wanted // 2, wanted * 9 // 10):
        kills += killed_when(workspace, "restore", lambda more=more: len(restored_names(workspace)) >= more)  # type: ignore[misc]
        partly = facts_of(str(workspace.restored))
        whole = facts_of(str(prepared.source))
        wrong = [p for p in partly if p in whole and partly[p].get("sha256") != whole[p].get("sha256")]
        assert wrong == []
    kills += killed_when(workspace, "restore", lambda: part_bytes(workspace) > 20_000_000)
    assert kills >= 3
    there = sum(name.startswith(("new-", "old-")) for name in restored_names(workspace))
    again = workspace.run("restore").result
    assert again["kept"] >= there
    assert differences(str(prepared.source), str(workspace.restored)) == []
    assert [name for name in restored_names(workspace) if name.startswith(".blobark-")] == []


def part_bytes(workspace: Workspace) -> int:
    """Return the size of the file that is on its way in the top folder."""
    sizes = [0]
    for file in workspace.restored.glob(".blobark-*.part"):
        with contextlib.suppress(FileNotFoundError):
            sizes.append(file.stat().st_size)
    return max(sizes)


# SIGTERM and SIGINT


def check_interrupted(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    process.send_signal(number)
    _, errors = process.communicate(timeout=END_S)
    assert process.returncode == 130, errors.decode()[-2000:]
    said = [line for line in errors.decode().splitlines() if line.startswith("blobark: ")]
    assert len(said) == 1
    assert "interrupted" in said[0]
    assert b"Traceback" not in errors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: str(number.name))
def test_an_index_that_is_asked_to_stop(victim: Workspace, number: signal.Signals) -> None:
    before = victim.map.read_bytes()
    with victim.started("index", "-v") as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith(b"new: ")  # it is walking
        check_interrupted(process, number)
    assert victim.map.read_bytes() == before


def test_a_save_that_is_asked_to_stop(prepared: Prepared, victim: Workspace) -> None:
    victim.run("index")
    with victim.started("save") as process:
        assert until(process, lambda: len(content_keys(victim.store)) > 300)
        check_interrupted(process, signal.SIGTERM)
    there = len(content_keys(victim.store))
    wanted = len(content_keys(prepared.undisturbed.store))
    assert victim.run("save").result["sent"] == wanted - there
    check_second_snapshot(prepared, victim)


def test_a_restore_that_is_asked_to_stop(prepared: Prepared) -> None:
    workspace = prepared.undisturbed
    shutil.rmtree(workspace.restored, ignore_errors=True)
    with workspace.started("restore") as process:
        assert until(process, lambda: len(restored_names(workspace)) > 300)
        there = sum(name.startswith(("new-", "old-")) for name in restored_names(workspace))
        check_interrupted(process, signal.SIGINT)
    assert workspace.run("restore").result["kept"] >= there
    assert [name for name in restored_names(workspace) if name.startswith(".blobark-")] == []
