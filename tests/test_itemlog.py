"""The journal of a run, and `--retry-failed`, which repeats what it says failed."""

from __future__ import annotations

import base64
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests import fault_proxy as faults
from tests.fault_proxy import FaultProxy
from tests.manifests import items, missing_content
from tests.powerless import Powerless
from tests.runs import Workspace, wait_until
from tests.trees import contents_of, small_tree, write
from tools.compare import differences

Line = dict[str, Any]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return small_tree(tmp_path / "source", "a", "b", "sub/c", "sub/d")


@pytest.fixture
def workspace(tmp_path: Path, source: Path) -> Powerless:
    return Powerless(tmp_path / "work", source, server="web1")


def journals(workspace: Workspace) -> list[Path]:
    return sorted((workspace.state / "journals").iterdir(), key=lambda file: file.stat().st_mtime_ns)


def newest(workspace: Workspace) -> tuple[Line, list[Line], Line]:
    """Return the first line, the items and the last line of the newest journal."""
    first, *middle, last = (json.loads(line) for line in journals(workspace)[-1].read_bytes().splitlines())
    return first, middle, last


def told(workspace: Workspace) -> dict[str, tuple[str, str]]:
    """Return action and reason of what the newest journal says of each path last."""
    root = f"{workspace.source}/"
    lines = newest(workspace)[1]
    return {line["path"].removeprefix(root): (line["action"], line.get("reason", "")) for line in lines}


def test_a_backup_writes_down_what_became_of_each_item_and_why(workspace: Powerless, source: Path) -> None:
    workspace.configure(skip_files=["*.tmp"])
    write(source / "x.tmp", "left out")
    workspace.run("backup")
    (file,) = journals(workspace)
    assert (file.stat().st_mode & 0o777, file.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert file.name.endswith("Z-backup.jsonl")
    first, lines, last = newest(workspace)
    assert (first["format"], first["command"], first["server"]) == (1, "backup", "web1")
    assert (last["exit_code"], last["snapshot"], last.get("failed", 0)) == (0, 1, 0)
    assert told(workspace) == {
        **dict.fromkeys(("a", "b", "sub/c", "sub/d"), ("sent", "new")),
        "x.tmp": ("skipped", "skip_files: *.tmp"),
    }
    entry = items(workspace.store)["a"]
    (sent,) = (line for line in lines if line["action"] == "sent" and line["path"] == f"{source}/a")
    assert (sent["bytes"], sent["guid"], sent["digest"]) == (entry["size"], entry["guid"], entry["digest"])
    assert 0 < sent["ms"] < 60_000


def test_what_changed_has_its_reason_and_what_did_not_has_no_line(workspace: Powerless, source: Path) -> None:
    workspace.configure(change_detection="mtime")
    workspace.run("backup")
    write(source / "a", "longer than before, by far")
    os.utime(source / "b", (1, 1))
    (source / "sub" / "c").unlink()
    write(source / "new", "new")
    workspace.run("backup")
    assert told(workspace) == {
        "a": ("sent", "size changed"),
        "b": ("unchanged", "read, and its content is the same"),
        "sub/c": ("gone", ""),
        "new": ("sent", "new"),
    }
    workspace.run("index")
    assert newest(workspace)[1] == []


def test_a_restore_writes_down_what_it_wrote_and_kept(workspace: Powerless, source: Path) -> None:
    os.link(source / "a", source / "link")
    os.symlink("a", source / "symlink")
    workspace.run("backup")
    workspace.run("restore")
    first, _, last = newest(workspace)
    assert (first["snapshot"], first["target"], last["exit_code"]) == (1, str(workspace.restored), 0)
    absent = dict.fromkeys(("a", "b", "sub/c", "sub/d", "symlink"), ("written", "absent"))
    assert told(workspace) == {**absent, "link": ("linked", "")}
    (workspace.restored / "b").write_bytes(b"other")
    workspace.run("restore")
    assert told(workspace)["b"] == ("written", "another file is there")
    assert told(workspace)["a"] == ("kept", "right already")


def test_names_that_are_no_text(workspace: Powerless, source: Path) -> None:
    name, found = b"\xff\n", []
    (source / os.fsdecode(name)).write_bytes(b"x")
    workspace.run("backup")
    for command, path in (("backup", os.fsencode(source) + b"/" + name), ("restore", name)):
        workspace.run(command)
        found = [base64.b64decode(line["path_b64"]) for line in newest(workspace)[1] if "path_b64" in line]
        assert set(found) <= {path}
    assert found == [name]


def test_as_many_as_are_wanted_are_kept(workspace: Powerless, source: Path) -> None:
    workspace.configure(journals=2)
    for _ in range(3):
        workspace.run("index")
    assert len(journals(workspace)) == 2
    workspace.run("index", "--dry-run")
    workspace.run("save", "--dry-run")
    workspace.run("backup", "--dry-run")
    assert len(journals(workspace)) == 2
    (workspace.state / "journals" / "notes.txt").write_text("mine")
    workspace.configure(journals=0)
    workspace.run("backup")
    workspace.run("restore", "--dry-run")
    assert len(journals(workspace)) == 3


def test_they_may_lie_elsewhere_and_are_never_backed_up(workspace: Powerless, source: Path) -> None:
    workspace.configure(journal_dir=str(source / "journals"))
    for _ in range(2):
        workspace.run("backup")
    assert len(list((source / "journals").iterdir())) == 2
    assert not any(path.startswith("journals") for path in items(workspace.store))
    workspace.configure(journal_dir=str(workspace.store / "journals"))
    assert "journal_dir: lies inside store" in workspace.run("backup", expect=2).stderr


def test_a_journal_that_cannot_be_written_fails_no_run(workspace: Powerless) -> None:
    write(workspace.folder / "file", "in the way")
    workspace.configure(journal_dir=str(workspace.folder / "file"))
    run = workspace.run("backup")
    assert "warning: the journal cannot be written (" in run.stderr
    assert run.stderr.count("journal") == 1


@pytest.mark.parametrize("max_memory", ["256MiB", "16MiB"])
def test_repeated_requests_are_counted_with_their_item(
    tmp_path: Path, source: Path, proxy: FaultProxy, azure_container: tuple[str, str], max_memory: str
) -> None:
    text, name = azure_container
    workspace = Workspace.on_azure(tmp_path / "work", source, proxy.rewire(text), name, max_memory=max_memory)
    proxy.add(faults.answer(500, "InternalError", method="PUT", where="/web1_", times=2))
    workspace.run("backup")
    lines = newest(workspace)[1]
    assert sum(line.get("retries", 0) for line in lines) == 2
    assert {line["action"] for line in lines if "retries" in line} == {"sent"}


def test_a_run_that_was_killed_leaves_what_it_did(workspace: Powerless, source: Path) -> None:
    for number in range(30):
        write(source / "large" / str(number), os.urandom(1 << 20))
    workspace.configure(max_bandwidth="2MiB")
    with workspace.started("backup") as process:
        wait_until(lambda: any(b'"sent"' in file.read_bytes() for file in workspace.state.glob("journals/*")), process)
        process.kill()
    (file,) = journals(workspace)
    lines = file.read_bytes().splitlines(keepends=True)
    sent = [json.loads(line) for line in lines if line.endswith(b"\n") and b'"sent"' in line]
    assert sent
    assert b"exit_code" not in lines[-1]
    file.write_bytes(file.read_bytes() + b'{"path":"/cut sh')
    workspace.configure(max_bandwidth="none")
    assert workspace.run("save", "--retry-failed", str(file)).result["complete"] is True


# What failed, once more


def save_badly(workspace: Powerless, source: Path) -> Path:
    """Save a tree two of whose files cannot be read; return the journal."""
    for name in ("a", "sub/c"):
        (source / name).chmod(0)
    run = workspace.run("backup", expect=3)
    assert set(run.result["save"]["failed"][0]) >= {f"{source}/a"}
    assert run.result["index"]["journal"] == run.result["save"]["journal"] == str(journals(workspace)[-1])
    _, lines, last = newest(workspace)
    failed = {line["path"]: line["error"] for line in lines if line["action"] == "failed"}
    assert set(failed) == {f"{source}/a", f"{source}/sub/c"}
    assert all("ermission" in error for error in failed.values())
    assert (last["exit_code"], last["failed"]) == (3, 2)
    return journals(workspace)[-1]


def test_a_save_repeats_what_failed_and_nothing_else(workspace: Powerless, source: Path) -> None:
    journal = save_badly(workspace, source)
    (source / "a").chmod(0o644)
    write(source / "b", "changed, and not what failed")
    plan = workspace.run("save", "--retry-failed", str(journal), "--dry-run")
    assert (plan.result["sent"], len(journals(workspace))) == (2, 1)
    again = workspace.run("save", "--retry-failed", str(journal), expect=3)
    assert (again.result["snapshot"], again.result["sent"], again.result["complete"]) == (2, 1, False)
    assert again.failed(workspace).keys() == {"sub/c"}
    (source / "sub" / "c").chmod(0o644)
    last = workspace.run("save", "--retry-failed", str(journals(workspace)[-1]))
    assert (last.result["snapshot"], last.result["sent"], last.result["complete"]) == (3, 1, True)
    assert missing_content(workspace.store) == []
    workspace.run("restore")
    assert contents_of(workspace.restored) | {"b": b""} == contents_of(source) | {"b": b""}
    for options in ([], ["--dry-run"], []):
        run = workspace.run("save", "--retry-failed", str(journal), *options)
        assert "nothing is done: nothing that failed in that run" in run.stderr
        assert run.result["snapshot"] == 0
    assert "none was made" in workspace.execute("save", "--retry-failed", str(journal)).stdout.decode()
    assert len(list(workspace.store.glob("blobark/web1/snapshots/*"))) == 3


def test_content_of_before_gives_way_to_what_is_read_again(workspace: Powerless, source: Path) -> None:
    workspace.run("backup")
    write(source / "a", "another content of a")
    journal = save_badly(workspace, source)
    assert items(workspace.store, 2)["a"]["stale"] is True
    for name in ("a", "sub/c"):
        (source / name).chmod(0o644)
    assert workspace.run("save", "--retry-failed", str(journal)).result["complete"] is True
    workspace.run("restore")
    assert differences(str(source), str(workspace.restored)) == []


def test_another_machine_repeats_what_failed(workspace: Powerless, tmp_path: Path, source: Path) -> None:
    journal = save_badly(workspace, source)
    for name in ("a", "sub/c"):
        (source / name).chmod(0o644)
    other = Workspace(tmp_path / "other", source, server="web1", store=str(workspace.store))
    copied = str(shutil.copy(journal, tmp_path / "copied"))
    result = other.run("save", "--retry-failed", copied).result
    assert (result["snapshot"], result["sent"], result["complete"]) == (2, 2, True)
    assert len(other.guids()) == 4
    stranger = Workspace(tmp_path / "stranger", source, server="db1", store=str(workspace.store))
    run = stranger.run("save", "--retry-failed", copied, expect=2)
    assert "that run saved the server web1, and this is db1" in run.stderr


def test_a_directory_is_left_to_the_next_index(workspace: Powerless, source: Path) -> None:
    workspace.run("backup")
    (source / "sub").chmod(0)
    workspace.run("backup", expect=3)
    (source / "sub").chmod(0o755)
    run = workspace.run("save", "--retry-failed", str(journals(workspace)[-1]), expect=3)
    assert f"{source}/sub: only an index can read a directory again" in run.stderr
    assert run.failed(workspace).keys() == {"sub"}
    assert workspace.run("backup").result["save"]["complete"] is True


def restore_badly(workspace: Powerless, source: Path) -> Path:
    """Restore a tree of which something is in the way twice; return the journal."""
    os.link(source / "sub" / "c", source / "sub" / "z-link")
    os.link(source / "a", source / "z-link")
    workspace.run("backup")
    for name in ("sub/c", "z-link"):
        (workspace.restored / name).mkdir(parents=True)
    run = workspace.run("restore", expect=3)
    assert run.result["journal"] == str(journals(workspace)[-1])
    assert {path for path, _ in run.result["failed"]} == {"sub/c", "sub/z-link", "z-link"}
    for name in ("sub/c", "z-link"):
        (workspace.restored / name).rmdir()
    return journals(workspace)[-1]


def test_a_restore_repeats_what_failed_and_nothing_else(workspace: Powerless, source: Path) -> None:
    journal = restore_badly(workspace, source)
    workspace.run("backup")
    (workspace.restored / "b").write_bytes(b"changed since")
    run = workspace.run("restore", "--retry-failed", str(journal))
    assert (run.result["snapshot"], run.result["written"], run.result["links"]) == (1, 1, 2)
    assert (workspace.restored / "b").read_bytes() == b"changed since"
    assert (workspace.restored / "sub" / "c").stat().st_ino == (workspace.restored / "sub" / "z-link").stat().st_ino
    assert (workspace.restored / "a").stat().st_ino == (workspace.restored / "z-link").stat().st_ino
    workspace.run("restore")
    assert differences(str(source), str(workspace.restored)) == []


def test_another_machine_restores_what_failed(workspace: Powerless, tmp_path: Path, source: Path) -> None:
    journal = restore_badly(workspace, source)
    other = Workspace(tmp_path / "other", source, store=str(workspace.store))
    run = other.run("restore", "--retry-failed", str(journal), "--in-place", expect=2)
    assert f"that run restored to {workspace.restored}, not in place" in run.stderr
    assert "leave out" in other.run("restore", "--retry-failed", str(journal), "--snapshot", "2", expect=2).stderr
    elsewhere = tmp_path / "elsewhere"
    run = other.run("restore", "--retry-failed", str(journal), "--to", str(elsewhere))
    assert (run.result["target"], run.result["written"], other.restored.exists()) == (str(elsewhere), 2, False)
    run = other.run("restore", "--retry-failed", str(journal))
    assert run.result["target"] == str(workspace.restored)
    assert not other.restored.exists()
    assert differences(str(source), str(workspace.restored)) == []


def test_a_restore_in_place_is_repeated_in_place_only_when_that_is_said(workspace: Powerless, source: Path) -> None:
    workspace.run("backup")
    (source / "a").unlink()
    (source / "a").mkdir()
    (source / "a" / "in the way").touch()
    workspace.run("restore", "--in-place", expect=3)
    journal = str(journals(workspace)[-1])
    (source / "a" / "in the way").unlink()
    (source / "a").rmdir()
    assert "say --in-place again" in workspace.run("restore", "--retry-failed", journal, expect=2).stderr
    assert workspace.run("restore", "--retry-failed", journal, "--in-place").result["written"] == 1
    assert (source / "a").is_file()


def test_a_forged_journal_leads_nowhere(workspace: Powerless, source: Path) -> None:
    journal = restore_badly(workspace, source)
    first, _, rest = journal.read_bytes().partition(b"\n")
    for target in ("", "relative", "/a\0b", str(workspace.store)):
        journal.write_bytes(json.dumps({**json.loads(first), "target": target}).encode() + b"\n" + rest)
        (line,) = workspace.run("restore", "--retry-failed", str(journal), expect=2).stderr.splitlines()
        assert "does not say to where" in line or "--to: lies inside store" in line


FIRST = b'{"format":1,"command":"save","server":"web1","started":"2026-11-21T02:30:00Z"}\n'


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read (No such file or directory)"),
        (b"", "is no journal of a run"),
        (b"\xff\xfe\n", "is no journal of a run"),
        (b"[]\n", "is no journal of a run"),
        (b'{"path":"/a"}\n', "is no journal of a run"),
        (b"x" * (3 << 20), "is no journal of a run"),
        (FIRST.replace(b'"format":1', b'"format":2'), "was written by a newer version of blobark"),
        (FIRST.replace(b'"save"', b'"restore"'), "is the journal of another command: restore"),
        (FIRST + b'{"path":"/a","action":"failed"}\nnot json\n', "line 3: this is no line of a journal"),
        (FIRST + b'{"path":1}\n', "line 2: this is no line of a journal"),
    ],
)
def test_what_is_no_journal_is_told_in_a_line(workspace: Powerless, content: bytes | None, said: str) -> None:
    file = workspace.folder / "run.jsonl"
    if content is not None:
        file.write_bytes(content)
    workspace.run("index")
    (line,) = workspace.run("save", "--retry-failed", str(file), expect=2).stderr.splitlines()
    assert said in line
    assert line.startswith("blobark: ")
    assert not workspace.store.exists()


def test_a_save_is_not_repeated_by_a_restore(workspace: Powerless, source: Path) -> None:
    journal = save_badly(workspace, source)
    (line,) = workspace.run("restore", "--retry-failed", str(journal), expect=2).stderr.splitlines()
    assert line.endswith("is the journal of another command: backup")
    for name in ("a", "sub/c"):
        (source / name).chmod(0o644)
