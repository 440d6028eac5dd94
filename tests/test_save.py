"""The save, through the scripts: a tree that moves under it, maps made elsewhere, stores and snapshots gone wrong."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from blobark.source import data_ranges
from tests.manifests import content_keys, content_of, items, missing_content, read_header
from tests.powerless import Powerless
from tests.runs import Run, Workspace
from tools.compare import differences

LARGE_BYTES = 9 * 1024 * 1024  # more than one block


def write(file: Path, content: bytes | str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


@pytest.fixture
def source(tmp_path: Path) -> Path:
    top = tmp_path / "source"
    for name in ("a", "b", "sub/c"):
        write(top / name, f"content of {name}")
    return top


@pytest.fixture
def workspace(tmp_path: Path, source: Path) -> Workspace:
    return Workspace(tmp_path / "work", source, server="web1")


def restored_files(workspace: Workspace) -> dict[str, bytes]:
    top = workspace.restored
    return {str(file.relative_to(top)): file.read_bytes() for file in top.rglob("*") if file.is_file()}


def failed(run: Run, workspace: Workspace) -> dict[str, str]:
    """Return the reasons of what failed, by path below the source."""
    return {path.removeprefix(f"{workspace.source}/"): reason for path, reason in run.result["failed"]}


# The tree moves between index and save: one run, and each test looks at one of the changes.


@dataclass
class Moved:
    """Every file was changed after a first snapshot (those in `had`) or made (`new`), indexed, and moved again."""

    workspace: Powerless
    first: dict[str, str]
    indexed: dict[str, str]
    saved: dict[str, str]
    save: Run


def move(file: Path, how: str) -> None:
    if how == "grows":
        file.write_text("the third version, longer")
    elif how == "large-grows":
        file.write_bytes(b"3" * (LARGE_BYTES + 5))
    elif how == "shrinks":
        file.write_text("third")
    elif how == "same-size":
        file.write_text("THE SECOND VERSION")
    elif how == "unreadable":
        file.chmod(0)
    else:
        file.unlink()
        if how == "to-link":
            file.symlink_to("grows")
        elif how == "to-dir":
            file.mkdir()
        elif how == "to-fifo":
            os.mkfifo(file)


STORED = ("grows", "large-grows", "shrinks", "same-size")
LOST = {
    "to-link": "is a symlink now",
    "to-dir": "is a dir now",
    "to-fifo": "is a fifo now",
    "vanishes": "vanished",
    "unreadable": "ermission denied",
}


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> Moved:
    folder = tmp_path_factory.mktemp("moved")
    top = folder / "source"
    write(folder / "outside" / "inside", "a secret of another")
    for how in (*STORED, *LOST):
        write(top / "had" / how, f"first version of {how}")
    write(top / "through-link" / "inside", "inside")
    workspace = Powerless(folder / "work", top)
    workspace.backup()
    first = workspace.guids()
    for kind in ("had", "new"):
        for how in (*STORED, *LOST):
            write(top / kind / how, "the second version")
        write(top / kind / "stays", "stays")
    write(top / "through-link" / "inside", "inside, changed")
    workspace.run("index")
    indexed = workspace.guids()
    for kind in ("had", "new"):
        for how in (*STORED, *LOST):
            move(top / kind / how, how)
    (top / "through-link").rename(folder / "aside")
    (top / "through-link").symlink_to(folder / "outside")
    save = workspace.run("save", expect=3)
    return Moved(workspace, first, indexed, workspace.guids(), save)


@pytest.mark.parametrize("kind", ["had", "new"])
@pytest.mark.parametrize("how", STORED)
def test_a_file_that_changed_after_the_index_is_stored_under_a_new_guid(moved: Moved, kind: str, how: str) -> None:
    path = f"{kind}/{how}"
    assert moved.saved[path] not in (moved.indexed[path], moved.first.get(path))
    content = (moved.workspace.source / path).read_bytes()
    assert content_of(moved.workspace.store, moved.saved[path]) == content
    entry = items(moved.workspace.store)[path]
    assert (entry["size"], entry["mtime_ns"]) == (len(content), (moved.workspace.source / path).stat().st_mtime_ns)
    assert path not in failed(moved.save, moved.workspace)


@pytest.mark.parametrize("how", LOST)
def test_a_file_that_is_lost_is_named_and_its_earlier_content_stays(moved: Moved, how: str) -> None:
    path = f"had/{how}"
    assert LOST[how] in failed(moved.save, moved.workspace)[path]
    assert f"{moved.workspace.source}/{path}" in moved.save.stderr
    entry = items(moved.workspace.store)[path]
    assert (entry["stale"], LOST[how] in entry["error"]) == (True, True)
    assert f"{read_header(moved.workspace.store)['server']}_{entry['guid']}" == moved.first[path]
    assert content_of(moved.workspace.store, moved.first[path]).decode() == f"first version of {how}"


@pytest.mark.parametrize("how", LOST)
def test_a_lost_file_without_earlier_content_is_named(moved: Moved, how: str) -> None:
    path = f"new/{how}"
    assert LOST[how] in failed(moved.save, moved.workspace)[path]
    entry = items(moved.workspace.store)[path]
    assert LOST[how] in entry["error"]
    assert {"guid", "digest", "stale"}.isdisjoint(entry)


def test_the_map_names_what_the_snapshot_has(moved: Moved) -> None:
    server = read_header(moved.workspace.store)["server"]
    entries = items(moved.workspace.store)
    assert moved.saved == {path: f"{server}_{entry['guid']}" for path, entry in entries.items() if "guid" in entry}
    assert set(moved.saved.values()) <= content_keys(moved.workspace.store)


def test_nothing_is_read_through_a_link_that_was_planted(moved: Moved) -> None:
    path = "through-link/inside"
    assert path in failed(moved.save, moved.workspace)
    store = moved.workspace.store
    assert b"a secret of another" not in {content_of(store, key) for key in content_keys(store)}
    assert items(store)[path]["stale"] is True


def test_the_rest_is_saved(moved: Moved) -> None:
    for path in ("had/stays", "new/stays"):
        assert content_of(moved.workspace.store, moved.saved[path]) == b"stays"
    assert set(failed(moved.save, moved.workspace)) == {*(f"{k}/{how}" for k in ("had", "new") for how in LOST)} | {
        "through-link/inside"
    }
    assert read_header(moved.workspace.store)["complete"] is False
    assert read_header(moved.workspace.store)["totals"]["errors"] == 2 * len(LOST) + 1
    assert missing_content(moved.workspace.store) == []


def test_the_incomplete_snapshot_gives_what_it_has(moved: Moved) -> None:
    moved.workspace.run("restore", expect=3)
    files = restored_files(moved.workspace)
    assert files["had/vanishes"] == b"first version of vanishes"
    assert files["new/grows"] == b"the third version, longer"
    assert "new/vanishes" not in files


def test_the_next_run_is_complete(moved: Moved) -> None:
    for kind in ("had", "new"):
        (moved.workspace.source / kind / "unreadable").chmod(0o644)
    assert moved.workspace.backup().result["complete"] is True
    shutil.rmtree(moved.workspace.restored, ignore_errors=True)
    moved.workspace.run("restore")
    assert differences(str(moved.workspace.source), str(moved.workspace.restored)) == []


def test_the_last_link_of_a_group_is_not_lost_with_the_first(workspace: Workspace, source: Path) -> None:
    write(source / "first", "linked")
    os.link(source / "first", source / "second")
    workspace.run("index")
    (source / "first").unlink()
    run = workspace.run("save", expect=None)
    workspace.run("restore", expect=run.code)
    assert restored_files(workspace).get("second") == b"linked" or "second" in failed(run, workspace)


def test_a_root_that_is_gone_stops_the_save(workspace: Workspace, source: Path) -> None:
    workspace.run("index")
    source.rename(source.with_name("elsewhere"))
    run = workspace.run("save", expect=4)
    assert str(source) in run.result["error"]


def two_roots(tmp_path: Path) -> tuple[Workspace, list[str]]:
    """A workspace whose two roots, both indexed, have a file of the same name and size."""
    roots = [str(write(tmp_path / name / "file", f"in {name}").parent) for name in ("one", "two")]
    return Workspace(tmp_path / "work", tmp_path / "one", source_path=roots), roots


def test_roots_in_another_order_after_the_index_are_not_mixed_up(tmp_path: Path) -> None:
    workspace, roots = two_roots(tmp_path)
    workspace.run("index")
    workspace.configure(source_path=roots[::-1])
    if workspace.run("save", expect=None).code:
        workspace.backup()
    paths = json.loads(workspace.map.read_bytes())
    for key, path in paths.items():
        assert content_of(workspace.store, key) == Path(path).read_bytes()


def test_a_root_that_left_the_configuration_after_the_index(tmp_path: Path) -> None:
    workspace, roots = two_roots(tmp_path)
    workspace.run("index")
    workspace.configure(source_path=roots[1:])
    run = workspace.run("save", expect=None)
    assert run.code in (0, 2, 4)
    workspace.backup()
    assert list(json.loads(workspace.map.read_bytes()).values()) == [f"{roots[1]}/file"]
    assert missing_content(workspace.store) == []


def test_another_name_for_the_server(workspace: Workspace) -> None:
    workspace.backup()
    workspace.configure(server="web2")
    saved = workspace.backup().result
    assert (saved["server"], saved["snapshot"], saved["sent"]) == ("web2", 1, 3)
    workspace.run("restore")
    assert restored_files(workspace).keys() == {"a", "b", "sub/c"}


# Files that change while they are read

WRITER = """
import os, sys
files = [os.open(name, os.O_WRONLY) for name in sys.argv[2:]]
size, number = int(sys.argv[1]), 0
print("writing", flush=True)
while True:
    number = number % 250 + 1
    for file in files:
        data = bytes([number]) * size
        for start in range(0, size, 1 << 20):
            os.pwrite(file, data[start : start + (1 << 20)], start)
"""


def is_one_moment(content: bytes) -> bool:
    """Whether a file that is written from front to back had this content at any one time."""
    values = [byte for number, byte in enumerate(content) if not number or content[number - 1] != byte]
    return len(values) == 1 or (len(values) == 2 and values[0] in (values[1] + 1, values[1] - 249))


@contextlib.contextmanager
def writing(size: int, files: list[Path]) -> Iterator[None]:
    """Keep writing to files: each version is one byte, over and over, so a mixture of two can be told."""
    for file in files:
        write(file, b"\0" * size)
    command = [sys.executable, "-c", WRITER, str(size), *map(str, files)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"writing\n"
        try:
            yield
        finally:
            writer.kill()


@pytest.mark.parametrize(("size", "count"), [(64 * 1024, 4), (LARGE_BYTES, 1)])
def test_a_file_that_changes_while_it_is_read_is_consistent_or_flagged(
    workspace: Workspace, source: Path, size: int, count: int
) -> None:
    files = [source / "busy" / str(number) for number in range(count)]
    with writing(size, files):
        workspace.run("index")
        saved = workspace.run("save").result
    entries, guids = items(workspace.store), workspace.guids()
    torn = set()
    for file in files:
        path = str(file.relative_to(source))
        content = content_of(workspace.store, guids[path])
        assert len(content) == entries[path]["size"]
        if not is_one_moment(content):
            torn.add(path)
    flagged = {path for path, entry in entries.items() if entry.get("changed_while_read")}
    assert torn <= flagged
    assert {path.removeprefix(f"{source}/") for path in saved["changed_while_read"]} == flagged
    workspace.run("restore")  # whatever was stored is what its digest says
    workspace.backup()
    workspace.run("restore")
    assert differences(str(source), str(workspace.restored)) == []


HOLES = """
import os, sys
file = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
print("writing", flush=True)
while True:
    os.ftruncate(file, 0)
    os.ftruncate(file, 64 << 20)
    for number in range(16):
        os.pwrite(file, b"data" * 1024, number << 20)
"""


def test_looking_for_holes_survives_a_file_that_shrinks_meanwhile(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLES, str(tmp_path / "file")], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"writing\n"
        file = os.open(tmp_path / "file", os.O_RDONLY)
        try:
            until_s = time.monotonic() + 1.5  # some 30,000 times
            while time.monotonic() < until_s:
                data_ranges(file, os.fstat(file).st_size)
        finally:
            os.close(file)
            writer.kill()


# Maps made elsewhere


def guid() -> str:
    return str(uuid.uuid4())


def write_map(workspace: Workspace, pairs: dict[str, Path | str]) -> None:
    workspace.folder.mkdir(parents=True, exist_ok=True)
    workspace.map.write_text(json.dumps({key: str(path) for key, path in pairs.items()}))


def test_a_foreign_map_is_saved_and_restored(workspace: Workspace, source: Path) -> None:
    bare, named, upper, placed = guid(), guid(), guid(), guid()
    (source / "skipped").mkdir()
    write(source / "skipped" / "not-this", "not this")
    pairs = {bare: source / "a", f"web1_{named}": source / "sub/c", upper.upper(): source / "b"}
    write_map(workspace, {**pairs, f"web1_{placed}/": f"{source}/skipped/"})
    run = workspace.run("save")
    assert "made elsewhere" in run.stderr
    assert content_keys(workspace.store) == {f"web1_{name}" for name in (bare, named, upper, placed)}
    assert content_of(workspace.store, f"web1_{bare}") == b"content of a"
    workspace.run("restore")
    (source / "skipped" / "not-this").unlink()
    assert [line for line in differences(str(source), str(workspace.restored)) if "'skipped': mtime" not in line] == []
    shutil.rmtree(workspace.restored)
    workspace.run("restore", "--map", str(workspace.map))
    assert restored_files(workspace) == {name: (source / name).read_bytes() for name in ("a", "b", "sub/c")}
    assert (workspace.restored / "skipped").is_dir()


def test_a_foreign_map_that_was_saved_sends_nothing_again(workspace: Workspace, source: Path) -> None:
    write_map(workspace, {guid(): source / "a", guid(): source / "b"})
    workspace.run("save")
    before = workspace.map.read_bytes()
    again = workspace.run("save").result
    assert (again["sent"], again["segments_sent"], workspace.map.read_bytes()) == (0, 0, before)
    write_map(workspace, {**json.loads(before), guid(): source / "sub/c"})
    assert workspace.run("save").result["sent"] == 1


def test_without_a_name_of_its_own_the_map_tells_the_server(tmp_path: Path, source: Path) -> None:
    workspace = Workspace(tmp_path / "work", source)
    write_map(workspace, {f"db7_{guid()}": source / "a"})
    assert workspace.run("save").result["server"] == "db7"


def wrong_server(top: Path) -> str:
    return json.dumps({f"other_{guid()}": f"{top}/a"})


def outside(top: Path) -> str:
    return json.dumps({guid(): f"{top}-not/a"})


def the_root_itself(top: Path) -> str:
    return json.dumps({guid(): f"{top}/"})


def up_and_out(top: Path) -> str:
    return json.dumps({guid(): f"{top}/sub/../../a"})


def key_twice(top: Path) -> str:
    key = guid()
    return f'{{"{key}": "{top}/a", "{key}": "{top}/b"}}'


def path_twice(top: Path) -> str:
    return json.dumps({guid(): f"{top}/a", guid(): f"{top}/a"})


def cut_short(top: Path) -> str:
    return json.dumps({guid(): f"{top}/a", guid(): f"{top}/b"})[:-20]


def no_guid(top: Path) -> str:
    return json.dumps({"abc": f"{top}/a"})


BAD_MAPS = (wrong_server, outside, the_root_itself, up_and_out, key_twice, path_twice, cut_short, no_guid)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    """A workspace with one snapshot, which whatever a test does must not change."""
    folder = tmp_path_factory.mktemp("guarded")
    for name in ("a", "b", "sub/c"):
        write(folder / "source" / name, f"content of {name}")
    workspace = Workspace(folder / "work", folder / "source", server="web1")
    workspace.backup()
    mine, stored = workspace.map.read_bytes(), contents(workspace.store)
    yield workspace
    assert contents(workspace.store) == stored
    workspace.map.write_bytes(mine)
    again = workspace.run("save").result
    assert (again["sent"], again["entries"], again["snapshot"]) == (0, 5, 2)


@pytest.mark.parametrize("bad", BAD_MAPS, ids=lambda bad: str(bad.__name__))
def test_a_wrong_map_changes_nothing(guarded: Workspace, bad: Callable[[Path], str]) -> None:
    guarded.map.write_text(bad(guarded.source))
    run = guarded.run("save", expect=2)
    assert run.result["error"].count("\n") <= 1
    assert str(guarded.map) in run.result["error"]


def test_a_wrong_map_without_any_state(workspace: Workspace, source: Path) -> None:
    write_map(workspace, {f"other_{guid()}": source / "a"})
    run = workspace.run("save", expect=2)
    assert "other" in run.result["error"]
    assert "web1" in run.result["error"]
    assert content_keys(workspace.store) == set()


def test_no_map_at_all(workspace: Workspace) -> None:
    run = workspace.run("save", expect=2)
    assert "build_index.py" in run.result["hint"]


def test_a_map_that_names_nothing_replaces_no_good_snapshot(workspace: Workspace) -> None:
    workspace.backup()
    workspace.map.write_text("{}")
    assert workspace.run("save", expect=None).code in (2, 4)
    assert read_header(workspace.store)["number"] == 1


def test_a_foreign_map_with_files_that_are_not_there(workspace: Workspace, source: Path) -> None:
    gone, below_gone, below_file = source / "gone", source / "no" / "such" / "folder", source / "b" / "below"
    write_map(workspace, {guid(): source / "a", guid(): gone, guid(): below_gone, guid(): below_file})
    run = workspace.run("save", expect=3)
    assert {"gone", "no/such/folder", "b/below"} <= set(failed(run, workspace))
    workspace.run("restore", expect=3)
    assert restored_files(workspace)["a"] == b"content of a"
    assert items(workspace.store)["a"]["size"] == 12


def test_a_foreign_map_does_not_lead_through_a_link(workspace: Workspace, source: Path, tmp_path: Path) -> None:
    write(tmp_path / "outside" / "x", "a secret of another")
    (source / "link").symlink_to(tmp_path / "outside")
    write_map(workspace, {guid(): source / "a", guid(): source / "link" / "x"})
    run = workspace.run("save", expect=3)
    assert "link/x" in failed(run, workspace)
    assert read_header(workspace.store)["complete"] is False
    workspace.run("restore", expect=None)
    assert restored_files(workspace) == {"a": b"content of a"}


def test_a_placeholder_and_what_lies_below_it(workspace: Workspace, source: Path) -> None:
    write_map(workspace, {guid(): f"{source}/sub/", guid(): source / "sub" / "c", guid(): source / "a"})
    workspace.run("save")
    workspace.run("restore")
    assert restored_files(workspace) == {"a": b"content of a", "sub/c": b"content of sub/c"}


def test_a_folder_that_a_map_names_like_a_file(workspace: Workspace, source: Path) -> None:
    write_map(workspace, {guid(): source / "sub", guid(): source / "a"})
    workspace.run("save", expect=None)
    workspace.run("restore", expect=None)
    assert restored_files(workspace) == {"a": b"content of a"}


def test_a_guid_that_is_taken_by_other_content_is_replaced(workspace: Workspace, source: Path) -> None:
    workspace.backup()
    taken = workspace.guids()
    write_map(workspace, {taken["a"]: source / "b", taken["b"]: source / "a", guid(): source / "sub/c"})
    run = workspace.run("save")
    guids = workspace.guids()
    assert {guids["a"], guids["b"]}.isdisjoint(taken.values())
    for path in ("a", "b", "sub/c"):
        assert content_of(workspace.store, guids[path]) == f"content of {path}".encode()
    assert run.result["sent"] == 3
    for number in (1, 2):
        shutil.rmtree(workspace.restored, ignore_errors=True)
        workspace.run("restore", "--snapshot", str(number))
        assert differences(str(source), str(workspace.restored)) == []


def test_a_line_taken_out_of_its_own_map_by_a_person(workspace: Workspace) -> None:
    workspace.backup()
    pairs = json.loads(workspace.map.read_bytes())
    workspace.map.write_text(json.dumps({key: path for key, path in pairs.items() if not path.endswith("/b")}))
    run = workspace.run("save")
    assert "made elsewhere" in run.stderr
    assert run.result["sent"] == 0
    assert set(items(workspace.store)) == {"", "a", "sub", "sub/c"}
    workspace.backup()
    assert "b" in items(workspace.store)


def test_its_own_map_in_another_layout_is_a_job_like_any_other(workspace: Workspace, source: Path) -> None:
    workspace.run("index")
    pairs = json.loads(workspace.map.read_bytes())
    workspace.map.write_text(json.dumps(dict(reversed(pairs.items())), indent=4))
    workspace.run("save")
    assert set(workspace.guids().values()) == set(pairs) == content_keys(workspace.store)
    workspace.run("restore")
    assert set(restored_files(workspace)) == {"a", "b", "sub/c"}


def test_a_foreign_map_after_a_failed_save_is_still_foreign(tmp_path: Path, source: Path) -> None:
    workspace = Powerless(tmp_path / "work", source, server="web1")
    workspace.backup()
    write(source / "a", "changed")
    workspace.run("index")
    write(source / "a", "changed again")  # so the save needs another map
    segments = workspace.store / "blobark" / "web1" / "segments"
    segments.chmod(0o500)
    workspace.run("save", expect=4)
    segments.chmod(0o700)
    key = guid()
    write_map(workspace, {key: source / "b"})
    run = workspace.run("save")
    assert "made elsewhere" in run.stderr
    assert workspace.guids()["b"].endswith(key)
    assert set(workspace.guids()) == {"b"}


def test_a_dry_save_of_a_foreign_map_changes_nothing(workspace: Workspace, source: Path) -> None:
    os.symlink("a", source / "link")
    workspace.backup()
    mine = workspace.map.read_bytes()
    write_map(workspace, {guid(): source / "a"})
    workspace.run("save", "--dry-run")
    workspace.map.write_bytes(mine)
    run = workspace.run("save")
    assert "made elsewhere" not in run.stderr
    assert "link" in items(workspace.store)


# Stores that are not what they were


def test_a_state_from_another_store_sends_everything(workspace: Workspace, source: Path) -> None:
    os.link(source / "a", source / "z-link")
    workspace.configure(skip_path=["sub"])
    workspace.backup()
    first = workspace.store
    workspace.store = workspace.folder / "another"
    workspace.configure(store=str(workspace.store))
    assert workspace.backup().result["sent"] == 3
    assert content_keys(workspace.store) == content_keys(first)
    assert missing_content(workspace.store) == []
    shutil.rmtree(workspace.state)
    workspace.run("restore")
    assert set(restored_files(workspace)) == {"a", "b", "z-link"}


def test_a_state_from_another_store_and_a_file_that_is_gone(workspace: Workspace, source: Path) -> None:
    """Content that only the other store has is not named here."""
    workspace.backup()
    workspace.run("index")
    (source / "a").unlink()
    workspace.store = workspace.folder / "another"
    workspace.configure(store=str(workspace.store))
    run = workspace.run("save", expect=3)
    assert set(failed(run, workspace)) == {"a"}
    assert {"guid", "digest"}.isdisjoint(items(workspace.store)["a"])
    assert missing_content(workspace.store) == []


def test_the_plan_for_another_store_is_what_is_done(workspace: Workspace) -> None:
    workspace.backup()
    workspace.store = workspace.folder / "another"
    workspace.store.mkdir()
    workspace.configure(store=str(workspace.store))
    plan, saved = workspace.run("save", "--dry-run").result, workspace.run("save").result
    assert (plan["sent"], plan["sent_bytes"]) == (saved["sent"], saved["sent_bytes"])


@pytest.fixture
def unpublished(tmp_path: Path, source: Path) -> Powerless:
    """What is left of a save that stored all content and then could not publish."""
    workspace = Powerless(tmp_path / "work", source, server="web1")
    workspace.backup()
    for name in ("a", "new", "new-too"):
        write(source / name, f"new content of {name}")
    workspace.run("index")
    segments = workspace.store / "blobark" / "web1" / "segments"
    segments.chmod(0o500)
    run = workspace.run("save", expect=4)
    assert "ermission" in run.result["error"]
    segments.chmod(0o700)
    assert read_header(workspace.store)["number"] == 1
    return workspace


def test_what_was_stored_before_a_failure_is_not_sent_again(unpublished: Powerless) -> None:
    keys = content_keys(unpublished.store)
    assert unpublished.run("save").result["sent"] == 0
    assert content_keys(unpublished.store) == keys
    assert missing_content(unpublished.store) == []


def test_content_harmed_behind_its_back_is_sent_again(unpublished: Powerless) -> None:
    deleted, cut = (unpublished.guids()[name] for name in ("new", "new-too"))
    (unpublished.store / deleted[-2:] / deleted).unlink()
    (unpublished.store / cut[-2:] / cut).write_bytes(b"new")
    assert unpublished.run("save").result["sent"] == 2
    assert unpublished.guids()["new-too"] != cut
    assert missing_content(unpublished.store) == []


def test_of_two_saves_at_once_one_publishes(tmp_path: Path, source: Path) -> None:
    """One is held between its first blob and its snapshot, while the other runs."""
    for number in range(600):
        write(source / "many" / str(number), f"{number}")
    one, other = (Workspace(tmp_path / name, source, server="web1") for name in ("one", "other"))
    other.store = one.store
    other.configure(store=str(one.store))
    one.backup()
    for number in range(600):
        write(source / "many" / str(number), f"{number} again")
    keys = len(content_keys(one.store))
    one.run("index")
    held = subprocess.Popen([*one.command("save"), "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        while len(content_keys(one.store)) == keys:
            assert held.poll() is None, "it was too fast to be held"
        held.send_signal(signal.SIGSTOP)
        assert len(list(one.store.glob("blobark/*/snapshots/*"))) == 1, "it was too fast to be held"
        assert other.backup().result["snapshot"] == 2
    finally:
        held.send_signal(signal.SIGCONT)
        output, errors = held.communicate(timeout=60)
    assert held.returncode == 4, errors
    assert "another run" in json.loads(output)["error"]
    assert len(list(one.store.glob("blobark/*/snapshots/*"))) == 2
    again = one.run("save").result
    assert (again["sent"], again["snapshot"]) == (0, 3)
    for number in (1, 2, 3):
        assert missing_content(one.store, number) == []


def test_several_saves_at_once_leave_whole_snapshots(tmp_path: Path, source: Path) -> None:
    spaces = [Workspace(tmp_path / str(number), source, server="web1") for number in range(3)]
    for workspace in spaces:
        workspace.store = spaces[0].store
        workspace.configure(store=str(workspace.store))
        workspace.run("index")
    runs = [subprocess.Popen([*w.command("save"), "--json"], stdout=subprocess.DEVNULL) for w in spaces]
    codes = [run.wait(timeout=60) for run in runs]
    assert set(codes) <= {0, 4}
    published = len(list(spaces[0].store.glob("blobark/*/snapshots/*")))
    assert published == codes.count(0) >= 1
    for number in range(1, published + 1):
        assert missing_content(spaces[0].store, number) == []


# Snapshots that cannot be used


def newer(header: bytes) -> bytes:
    return json.dumps({**json.loads(header), "format": 99, "totals": "of another kind"}).encode()


def demanding(header: bytes) -> bytes:
    return json.dumps({**json.loads(header), "requires": ["packs"]}).encode()


def renumbered(header: bytes) -> bytes:
    return json.dumps({**json.loads(header), "number": 7}).encode()


def halved(header: bytes) -> bytes:
    return header[: len(header) // 2]


def nothing(header: bytes) -> bytes:
    return b""


@pytest.fixture(scope="module")
def two_made(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    folder = tmp_path_factory.mktemp("two")
    for name in ("a", "b", "sub/c"):
        write(folder / "source" / name, f"content of {name}")
    workspace = Workspace(folder / "work", folder / "source", server="web1")
    workspace.backup()
    write(folder / "source" / "a", "second content of a")
    workspace.backup()
    return workspace


@pytest.fixture
def two(two_made: Workspace, tmp_path: Path) -> Workspace:
    """A store with two snapshots, and the state that goes with it; `a` is not the same in them."""
    shutil.copytree(two_made.folder, tmp_path / "work")
    return Workspace(tmp_path / "work", two_made.source, server="web1")


def header_file(workspace: Workspace, number: int) -> Path:
    (file,) = workspace.store.glob(f"blobark/*/snapshots/{number:010}*")
    return file


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


BAD_HEADERS = (
    (newer, "newer Blobark"),
    (demanding, "with packs"),
    (renumbered, "not what its name says"),
    (halved, "damaged"),
    (nothing, "damaged"),
)


@pytest.mark.parametrize(("bad", "words"), BAD_HEADERS, ids=lambda bad: getattr(bad, "__name__", ""))
def test_a_header_that_cannot_be_used_stops_everything_that_needs_it(
    two: Workspace, bad: Callable[[bytes], bytes], words: str
) -> None:
    file = header_file(two, 2)
    file.write_bytes(bad(file.read_bytes()))
    before = contents(two.store)
    for command in ("save", "restore") if bad in (newer, demanding) else ("restore",):
        run = two.run(command, expect=4)
        assert words in run.stderr
        assert run.stderr.count("\n") == 1
    assert contents(two.store) == before


def test_a_header_that_cannot_be_used_costs_nothing(two: Workspace) -> None:
    file = header_file(two, 2)
    good = file.read_bytes()
    file.write_bytes(newer(good))
    two.run("restore", "--snapshot", "1")
    assert restored_files(two)["a"] == b"content of a"
    shutil.rmtree(two.state)
    two.run("index", expect=4)
    file.write_bytes(good)
    assert two.backup().result["sent"] == 0


def test_unknown_fields_are_no_reason_to_refuse(two: Workspace) -> None:
    file = header_file(two, 2)
    file.write_bytes(json.dumps({**json.loads(file.read_bytes()), "colour": "blue"}).encode())
    assert two.run("save").result["snapshot"] == 3
    two.run("restore", "--snapshot", "2")


def segment_only_in(workspace: Workspace, number: int) -> Path:
    """Return the file of a segment that no other snapshot has."""
    digests = {n: {ref["digest"] for ref in read_header(workspace.store, n)["segments"]} for n in (1, 2)}
    (digest,) = digests[number] - digests[3 - number]
    (file,) = workspace.store.glob(f"blobark/*/segments/{digest}*")
    return file


@pytest.mark.parametrize("harm", ["missing", "cut", "flipped"])
def test_a_segment_that_cannot_be_used_stops_a_restore(two: Workspace, harm: str) -> None:
    file = segment_only_in(two, 2)
    stored = file.read_bytes()
    if harm == "missing":
        file.unlink()
    else:
        file.write_bytes(stored[:-3] if harm == "cut" else stored[:-9] + bytes([stored[-9] ^ 1]) + stored[-8:])
    two.state.rename(two.folder / "aside")
    run = two.run("restore", expect=4)
    assert "missing" in run.stderr if harm == "missing" else "damaged" in run.stderr
    assert "--snapshot" in run.stderr
    assert restored_files(two) == {}
    two.run("restore", "--snapshot", "1")
    assert restored_files(two)["a"] == b"content of a"


def test_a_damaged_segment_does_not_end_all_backups(two: Workspace) -> None:
    """The local state is lost as well: what the snapshot before it knows is enough to go on."""
    file = segment_only_in(two, 2)
    file.write_bytes(file.read_bytes()[:-3])
    shutil.rmtree(two.state)
    two.run("index", expect=None)
    assert two.run("save", expect=None).code == 0
    assert missing_content(two.store, 3) == []
    two.run("restore")
    assert restored_files(two)["a"] == b"second content of a"


def test_a_damaged_segment_that_is_written_again_is_mended(two: Workspace) -> None:
    file = segment_only_in(two, 2)
    file.write_bytes(file.read_bytes()[:-3])
    header_file(two, 2).unlink()
    saved = two.run("save").result
    assert (saved["snapshot"], saved["sent"]) == (2, 0)
    assert missing_content(two.store) == []
