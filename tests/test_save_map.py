"""Saves of maps made elsewhere, right and wrong ones."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.manifests import content_keys, content_of, items, read_header
from tests.powerless import Powerless
from tests.runs import Workspace
from tests.trees import contents_of, small_tree, write
from tools.compare import differences


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return small_tree(tmp_path / "source", "a", "b", "sub/c")


@pytest.fixture
def workspace(tmp_path: Path, source: Path) -> Workspace:
    return Workspace(tmp_path / "work", source, server="web1")


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
    assert contents_of(workspace.restored) == {name: (source / name).read_bytes() for name in ("a", "b", "sub/c")}
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
    mine, stored = workspace.map.read_bytes(), contents_of(workspace.store)
    yield workspace
    assert contents_of(workspace.store) == stored
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
    assert {"gone", "no/such/folder", "b/below"} <= set(run.failed(workspace))
    workspace.run("restore", expect=3)
    assert contents_of(workspace.restored)["a"] == b"content of a"
    assert items(workspace.store)["a"]["size"] == 12


def test_a_foreign_map_does_not_lead_through_a_link(workspace: Workspace, source: Path, tmp_path: Path) -> None:
    write(tmp_path / "outside" / "x", "a secret of another")
    (source / "link").symlink_to(tmp_path / "outside")
    write_map(workspace, {guid(): source / "a", guid(): source / "link" / "x"})
    run = workspace.run("save", expect=3)
    assert "link/x" in run.failed(workspace)
    assert read_header(workspace.store)["complete"] is False
    workspace.run("restore", expect=None)
    assert contents_of(workspace.restored) == {"a": b"content of a"}


def test_a_placeholder_and_what_lies_below_it(workspace: Workspace, source: Path) -> None:
    write_map(workspace, {guid(): f"{source}/sub/", guid(): source / "sub" / "c", guid(): source / "a"})
    workspace.run("save")
    workspace.run("restore")
    assert contents_of(workspace.restored) == {"a": b"content of a", "sub/c": b"content of sub/c"}


def test_a_folder_that_a_map_names_like_a_file(workspace: Workspace, source: Path) -> None:
    write_map(workspace, {guid(): source / "sub", guid(): source / "a"})
    workspace.run("save", expect=None)
    workspace.run("restore", expect=None)
    assert contents_of(workspace.restored) == {"a": b"content of a"}


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
    assert set(contents_of(workspace.restored)) == {"a", "b", "sub/c"}


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
