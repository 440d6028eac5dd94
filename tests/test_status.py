"""`blobark status`: how old each server's last complete snapshot is, compared with the headers in the store."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from blobark.clock import utc
from tests.runs import Workspace
from tests.trees import small_tree, write

HOUR_NS = 3600 * 10**9
ROW = "server snapshot time age_s files file_bytes growth_bytes incomplete_since late drilled drill".split()


@pytest.fixture(scope="module")
def saved_once(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Two complete snapshots of web1, one of web2 in the same store."""
    folder = tmp_path_factory.mktemp("status")
    source = small_tree(folder / "source", "a", "b")
    web1 = Workspace(folder / "work", source, server="web1")
    web1.run("backup")
    write(source / "c", b"c" * 1000)
    web1.run("backup")
    other = Workspace(folder / "other", source, server="web2", store=str(web1.store))
    other.run("backup")
    return web1


@pytest.fixture
def workspace(tmp_path: Path, saved_once: Workspace) -> Workspace:
    shutil.copytree(saved_once.folder, tmp_path / "work")
    return Workspace(tmp_path / "work", saved_once.source, server="web1", max_age="26h")


def path_of(workspace: Workspace, server: str, number: int) -> Path:
    (found,) = workspace.store.glob(f"blobark/{server}/snapshots/{number:010}*")
    return found


def change(workspace: Workspace, server: str, number: int, **values: Any) -> dict[str, Any]:
    """Change a header, as another day or another run would have written it."""
    file = path_of(workspace, server, number)
    header = {**json.loads(file.read_bytes()), **values}
    file.write_text(json.dumps(header))
    return dict(header)


def at(hours_ago: float) -> dict[str, Any]:
    started_ns = time.time_ns() - int(hours_ago * HOUR_NS)
    return {"started": utc(started_ns), "started_ns": started_ns}


def rows(workspace: Workspace, *options: str, expect: int = 0) -> dict[str, dict[str, Any]]:
    items = workspace.run("status", *options, expect=expect).result["items"]
    assert all(list(item) == ROW for item in items)
    return {item["server"]: item for item in items}


def test_every_server_is_shown(workspace: Workspace) -> None:
    first, last = (json.loads(path_of(workspace, "web1", number).read_bytes()) for number in (1, 2))
    found = rows(workspace)
    assert list(found) == ["web1", "web2"]
    web1, web2 = found.values()
    assert (web1["snapshot"], web1["time"], web1["files"]) == (2, last["started"], 3)
    assert web1["growth_bytes"] == last["totals"]["file_bytes"] - first["totals"]["file_bytes"] == 1000
    assert 0 <= web1["age_s"] < 3600
    assert (web2["snapshot"], web2["growth_bytes"], web2["late"]) == (1, None, False)
    assert list(rows(workspace, "--server", "web2")) == ["web2"]


def test_an_old_snapshot_is_late(workspace: Workspace) -> None:
    change(workspace, "web2", 1, **at(25.9))
    assert rows(workspace)["web2"]["late"] is False
    change(workspace, "web2", 1, **at(26.1))
    found = rows(workspace, expect=6)
    assert (found["web1"]["late"], found["web2"]["late"]) == (False, True)
    assert found["web2"]["age_s"] // 3600 == 26
    rows(workspace, "--server", "web1")
    done = workspace.execute("status")
    assert (done.returncode, done.stderr) == (6, b"")
    heading, web1, web2 = done.stdout.decode().splitlines()
    assert web1.startswith("web1 ")
    assert web1.endswith("  ok")
    assert "26 h" in web2
    assert web2.endswith("  LATE")
    assert heading.index("state") == web1.index("ok") == web2.index("LATE")


def test_without_a_limit_nothing_is_late(workspace: Workspace) -> None:
    del workspace.settings["max_age"]
    workspace.configure()
    change(workspace, "web2", 1, **at(10_000))
    assert rows(workspace)["web2"]["late"] is False


@pytest.mark.parametrize("max_age", ["26h", ""])
def test_one_that_is_dated_in_the_future_has_no_age(workspace: Workspace, max_age: str) -> None:
    workspace.configure(max_age=max_age)
    change(workspace, "web2", 1, **at(-4000 * 24))
    row = rows(workspace, expect=6)["web2"]
    assert (row["snapshot"], row["age_s"], row["late"]) == (1, None, True)
    done = workspace.execute("status")
    assert done.returncode == 6
    assert (
        done.stdout.decode().splitlines()[2].endswith("  AGE UNKNOWN: it is dated in the future, so a clock is wrong")
    )
    change(workspace, "web2", 1, **at(-0.2))
    assert rows(workspace)["web2"]["age_s"] == 0


def test_a_server_without_any_complete_snapshot_has_no_backup(workspace: Workspace) -> None:
    del workspace.settings["max_age"]
    workspace.configure()
    change(workspace, "web2", 1, complete=False)
    assert rows(workspace, expect=6)["web2"]["late"] is True
    done = workspace.execute("status")
    assert done.returncode == 6
    assert done.stdout.decode().splitlines()[2].endswith("  NONE: no complete snapshot, 1 incomplete since")


def test_an_incomplete_snapshot_is_no_backup(workspace: Workspace) -> None:
    change(workspace, "web1", 1, **at(50))
    change(workspace, "web1", 2, complete=False)
    web1 = rows(workspace, expect=6)["web1"]
    assert (web1["snapshot"], web1["incomplete_since"], web1["late"], web1["growth_bytes"]) == (1, 1, True, None)
    change(workspace, "web1", 1, complete=False)
    web1 = rows(workspace, expect=6)["web1"]
    assert (web1["snapshot"], web1["incomplete_since"], web1["age_s"], web1["late"]) == (0, 2, None, True)
    assert b"none" in workspace.execute("status").stdout


def test_growth_is_against_the_complete_one_before(workspace: Workspace) -> None:
    write(workspace.source / "d", b"d" * 50)
    workspace.run("backup")
    (workspace.source / "d").unlink()
    change(workspace, "web1", 2, complete=False)
    web1 = rows(workspace)["web1"]
    assert (web1["snapshot"], web1["growth_bytes"], web1["incomplete_since"]) == (3, 1050, 0)


def test_a_snapshot_that_cannot_be_read_is_named(workspace: Workspace) -> None:
    path_of(workspace, "web1", 2).write_bytes(b"{")
    run = workspace.run("status", expect=3)
    assert [name for name, _ in run.result["failed"]] == ["snapshot 2 of web1"]
    assert "snapshot 2 of web1 is damaged" in run.stderr
    assert [item["snapshot"] for item in run.result["items"]] == [1, 1]


def test_a_store_without_the_server(workspace: Workspace, tmp_path: Path) -> None:
    assert "web3" in workspace.run("status", "--server", "web3", expect=4).stderr
    (tmp_path / "empty").mkdir()
    workspace.configure(store=str(tmp_path / "empty"))
    assert "nothing has been saved" in workspace.run("status", expect=4).stderr


def test_the_last_drill_is_told(workspace: Workspace) -> None:
    workspace.backup()
    row = workspace.run("status").result["items"][0]
    assert (row["drilled"], row["drill"]) == ("", "")
    workspace.run("drill", "--full", "--server", row["server"])
    row = workspace.run("status").result["items"][0]
    assert row["drill"] == "same"
    assert row["drilled"] >= row["time"]
    assert f"drill of {row['drilled'][:10]}: same" in workspace.execute("status").stdout.decode()
