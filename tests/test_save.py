"""The save, through the scripts, of a tree that moves under it."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

from blobark.content import read_small
from blobark.errors import SourceError
from blobark.model import Entry
from blobark.source import data_ranges
from tests.manifests import content_keys, content_of, items, missing_content, read_header
from tests.powerless import Powerless
from tests.runs import Run, Workspace
from tests.trees import contents_of, small_tree, write
from tools.compare import differences

LARGE_BYTES = 9 * 1024 * 1024  # more than one block


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return small_tree(tmp_path / "source", "a", "b", "sub/c")


@pytest.fixture
def workspace(tmp_path: Path, source: Path) -> Workspace:
    return Workspace(tmp_path / "work", source, server="web1")


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
    assert path not in moved.save.failed(moved.workspace)


@pytest.mark.parametrize("how", LOST)
def test_a_file_that_is_lost_is_named_and_its_earlier_content_stays(moved: Moved, how: str) -> None:
    path = f"had/{how}"
    assert LOST[how] in moved.save.failed(moved.workspace)[path]
    assert f"{moved.workspace.source}/{path}" in moved.save.stderr
    entry = items(moved.workspace.store)[path]
    assert (entry["stale"], LOST[how] in entry["error"]) == (True, True)
    assert f"{read_header(moved.workspace.store)['server']}_{entry['guid']}" == moved.first[path]
    assert content_of(moved.workspace.store, moved.first[path]).decode() == f"first version of {how}"


@pytest.mark.parametrize("how", LOST)
def test_a_lost_file_without_earlier_content_is_named(moved: Moved, how: str) -> None:
    path = f"new/{how}"
    assert LOST[how] in moved.save.failed(moved.workspace)[path]
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
    assert path in moved.save.failed(moved.workspace)
    store = moved.workspace.store
    assert b"a secret of another" not in {content_of(store, key) for key in content_keys(store)}
    assert items(store)[path]["stale"] is True


def test_the_rest_is_saved(moved: Moved) -> None:
    for path in ("had/stays", "new/stays"):
        assert content_of(moved.workspace.store, moved.saved[path]) == b"stays"
    assert set(moved.save.failed(moved.workspace)) == {*(f"{k}/{how}" for k in ("had", "new") for how in LOST)} | {
        "through-link/inside"
    }
    assert read_header(moved.workspace.store)["complete"] is False
    assert read_header(moved.workspace.store)["totals"]["errors"] == 2 * len(LOST) + 1
    assert missing_content(moved.workspace.store) == []


def test_the_incomplete_snapshot_gives_what_it_has(moved: Moved) -> None:
    moved.workspace.run("restore", expect=3)
    files = contents_of(moved.workspace.restored)
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
    assert contents_of(workspace.restored).get("second") == b"linked" or "second" in run.failed(workspace)


def test_the_other_links_of_a_group_do_not_stay_behind_with_the_first(workspace: Workspace, source: Path) -> None:
    """Of the first there is what the snapshot before had; that is another version than theirs."""
    for name in ("second", "third"):
        os.link(source / "a", source / name)
    workspace.backup()
    write(source / "second", "changed, and longer")
    workspace.run("index")
    (source / "a").unlink()
    run = workspace.run("save", expect=3)
    assert list(run.failed(workspace)) == ["a"]
    run = workspace.run("restore", expect=3)
    assert [path for path, _ in run.result["failed"]] == ["a"]
    restored = contents_of(workspace.restored)
    assert (restored["a"], restored["second"], restored["third"]) == (b"content of a", *[b"changed, and longer"] * 2)
    assert (workspace.restored / "second").samefile(workspace.restored / "third")
    entries = items(workspace.store)
    assert ("hardlink_to" in entries["second"], entries["third"]["hardlink_to"]) == (False, "second")


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
    assert contents_of(workspace.restored).keys() == {"a", "b", "sub/c"}


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


@pytest.mark.parametrize("most", [1, 50, 200, 299, 300])
def test_of_very_many_ranges_the_smallest_holes_count_as_data(tmp_path: Path, most: int) -> None:
    dice, end = random.Random(1), 0
    with open(tmp_path / "file", "w+b", buffering=0) as file:
        for _ in range(300):
            start = end + 4096 * dice.choice((1, 1, 1, 2, 8, 64))
            end = start + os.pwrite(file.fileno(), b"x" * 4096, start)
        file.truncate(end + 10_000)
        every = data_ranges(file.fileno(), end + 10_000, 1000)
        ranges = data_ranges(file.fileno(), end + 10_000, most)
    assert every is not None
    assert ranges is not None
    assert (len(every), len(ranges) <= most, ranges == every) == (300, True, most == 300)
    assert all(any(first <= at and at + size <= first + run for first, run in ranges) for at, size in every)
    assert all(first + run < following for (first, run), (following, _) in pairwise(ranges))


def test_a_file_that_tells_no_status_while_it_is_open_fails_alone() -> None:
    """As one of a network's does that is gone there; a number that is no open file's stands for it."""
    with pytest.raises(SourceError, match="cannot be read"):
        read_small(Entry(path="empty"), -1)
