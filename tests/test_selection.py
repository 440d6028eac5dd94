"""Restoring a part of a snapshot: paths, patterns, points in time, other places, other owners."""

from __future__ import annotations

import io
import json
import os
import shutil
import stat
import tarfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.forge import b64, item
from tests.runs import Workspace
from tests.scene import Scene
from tests.trees import contents_of, make_tree, small_tree
from tools.compare import differences

STORED: dict[str, dict[str, Any]] = {
    "plain": {},
    "together": {"pack_below": "64KiB", "dedupe": True, "compression": "zstd"},
}


@pytest.fixture(scope="module", params=STORED)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A tree with every kind of item, saved once in each way; tests restore from it and change nothing else."""
    folder = tmp_path_factory.mktemp("saved")
    workspace = Workspace(folder / "work", make_tree(folder / "source"), **STORED[request.param])
    workspace.backup()
    return workspace


@pytest.fixture
def to(tmp_path: Path) -> Path:
    return tmp_path / "to"


def left(top: Path) -> set[str]:
    """Return the paths of all that is below a folder."""
    return {os.fsdecode(os.path.relpath(path, top)) for path in top.rglob("*")}


# Paths


def test_a_path_comes_back_with_all_below_it_and_the_directories_above(saved: Workspace, to: Path) -> None:
    done = saved.run("restore", f"{saved.source}/order/a", f"{saved.source}/odd/", "--to", str(to)).result
    assert (done["failed"], done["files"]) == ([], 1 + 9)
    assert {name.name for name in to.iterdir()} == {"order", "odd"}
    assert left(to / "order") == {"a", "a/f"}
    assert differences(str(saved.source / "odd"), str(to / "odd")) == []
    for name in (".", "order", "order/a"):
        ours, theirs = (to / name).stat(), (saved.source / name).stat()
        assert (ours.st_mode, ours.st_mtime_ns) == (theirs.st_mode, theirs.st_mtime_ns), name


def test_a_relative_path_is_below_the_only_root_and_a_name_need_not_be_utf_8(saved: Workspace, to: Path) -> None:
    raw = os.fsdecode(b"odd/not utf-8 \xff\xfe")
    done = saved.run("restore", raw, "--to", str(to)).result
    assert done["files"] == 1
    assert os.listdir(os.fsencode(to / "odd")) == [b"not utf-8 \xff\xfe"]


def test_a_path_that_is_not_there_is_named_and_the_others_come(saved: Workspace, to: Path) -> None:
    done = saved.run("restore", "small", "nowhere", "--to", str(to), expect=3)
    assert done.result["failed"] == [[f"{saved.source}/nowhere", "is not in snapshot 1"]]
    assert left(to) == {"small"}


@pytest.mark.parametrize("wanted", [["nowhere", "/etc/passwd"], ["--include", "*.no"], ["small", "--exclude", "small"]])
def test_nothing_chosen_is_a_mistake_and_makes_nothing(saved: Workspace, to: Path, wanted: list[str]) -> None:
    assert saved.run("restore", *wanted, "--to", str(to), expect=2).result["error"]
    assert not to.exists()


def test_of_a_hard_link_group_the_first_chosen_name_gets_the_content(saved: Workspace, to: Path) -> None:
    done = saved.run("restore", "hard", "--to", str(to)).result
    assert (done["files"], done["links"]) == (1, 1)
    first, second = (to / "hard" / "first").stat(), (to / "hard" / "second").stat()
    assert (first.st_ino, first.st_nlink) == (second.st_ino, 2)
    assert (to / "hard" / "second").read_bytes() == b"hard linked"
    alone = saved.run("restore", "hard/second", "--to", f"{to}2").result
    assert (alone["files"], alone["links"], contents_of(Path(f"{to}2"))) == (1, 0, {"hard/second": b"hard linked"})


def test_segments_that_cannot_have_the_path_are_not_read(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for number in range(3_000):
        (source / f"{number // 1000:02}").mkdir(parents=True, exist_ok=True)
        (source / f"{number // 1000:02}" / f"file {number}").touch()
    workspace = Workspace(tmp_path / "work", source)
    workspace.backup()
    shutil.rmtree(workspace.state)
    segments = workspace.header()["segments"]
    assert len(segments) > 2
    # The first and the last are needed for neither the path nor the directories above it, if they are others.
    last = next(workspace.store.glob(f"blobark/*/segments/{segments[-1]['digest']}*"))
    last.unlink()
    done = workspace.run("restore", "00/file 5", "--to", str(tmp_path / "to")).result
    assert (done["files"], done["failed"]) == (1, [])


# Patterns


def test_patterns_choose_and_leave_out_as_git_does(saved: Workspace, to: Path) -> None:
    saved.run("restore", "--include", "order/", "--include", "*-link*", "--exclude", "a-b/", "--to", str(to))
    expected = {"order", "a-link-that-sorts-before"}
    expected |= {f"order/{name}{rest}" for name in ("a", "a.b", "a0") for rest in ("", "/f")}
    assert left(to) == expected


def test_a_pattern_applies_inside_of_the_paths_alone(saved: Workspace, to: Path) -> None:
    saved.run("restore", "order/a.b", "hard", "--include", "f", "--to", str(to))
    assert left(to) == {"order", "order/a.b", "order/a.b/f"}


def test_everything_but_a_folder_is_equal_to_the_rest(saved: Workspace, to: Path) -> None:
    saved.run("restore", "--exclude", "/odd", "--no-special", "--to", str(to))
    gone = {line.partition(":")[0] for line in differences(str(saved.source), str(to)) if ": only in " in line}
    assert gone > {"'odd'", "'fifo'", "'socket'"}
    assert {name for name in gone if not name.startswith("'odd")} <= {"'fifo'", "'socket'", "'char'", "'block'"}
    assert [line for line in differences(str(saved.source), str(to)) if ": only in " not in line] == []


def test_patterns_may_hold_anything(scene: Scene) -> None:
    forge = scene.forge
    forge.snapshot(item("a", "dir"), forge.file("a/file"), forge.file("b\nc"))
    for pattern in ("../*", "/../../etc", "a\xff", "**/../file"):
        scene.restore(2, "--include", pattern)
    assert scene.restore(0, "--exclude", "../../a/file", "--exclude", "\udcff").result["files"] == 2


# Points in time


def moved(workspace: Workspace, number: int, when: datetime, **changes: Any) -> None:
    """Give a snapshot another time, and whatever else."""
    (file,) = workspace.store.glob(f"blobark/*/snapshots/{number:010}*")
    header = json.loads(file.read_bytes())
    header |= {"started": when.strftime("%Y-%m-%dT%H:%M:%SZ"), "started_ns": int(when.timestamp()) * 10**9, **changes}
    file.chmod(0o600)
    file.write_text(json.dumps(header))


def test_at_takes_the_last_complete_snapshot_of_a_time_or_before(tmp_path: Path) -> None:
    source = small_tree(tmp_path / "source", "file")
    workspace = Workspace(tmp_path / "work", source)
    noon = datetime(2026, 11, 1, 12, tzinfo=UTC)
    for number in (1, 2, 3):
        (source / "file").write_text(f"version {number}")
        workspace.backup()
    moved(workspace, 1, noon - timedelta(hours=2))
    moved(workspace, 2, noon - timedelta(hours=1), complete=False)
    moved(workspace, 3, noon, started_ns=int(noon.timestamp()) * 10**9 + 999_999_999)  # it is shown as of noon

    def restored(at: str, zone: str = "UTC", expect: int = 0) -> tuple[int, str]:
        workspace.environment = {"TZ": zone}
        done = workspace.run("restore", "--at", at, expect=expect).result
        return done.get("snapshot", 0), done.get("at", "")

    assert restored("2026-11-01T12:00Z") == (3, "2026-11-01T12:00:00Z")
    assert restored("2026-11-01T11:59:59Z") == (1, "2026-11-01T11:59:59Z")
    assert (workspace.restored / "file").read_text() == "version 1"
    assert restored("2026-11-01 13:00", zone="Europe/Berlin") == (3, "2026-11-01T12:00:00Z")
    assert restored("2026-11-01T12:59", zone="Europe/Berlin") == (1, "2026-11-01T11:59:00Z")
    assert restored("2026-11-01", expect=4) == (0, "")
    said = workspace.run("restore", "--at", "2026-11-01T10:00Z").stderr
    assert "--at 2026-11-01T10:00:00Z: snapshot 1 of 2026-11-01T10:00:00Z" in said
    for out_of_the_calendar in ("9999-12-31T23:59:59-23:00", "0001-01-01T00:00:00+23:00"):
        said = workspace.run("restore", "--at", out_of_the_calendar, expect=2).stderr
        assert "is not a time such as" in said


# Places


def test_strip_takes_components_off(saved: Workspace, to: Path) -> None:
    saved.run("restore", "order/a.b", "--strip", "2", "--to", str(to))
    assert left(to) == {"f"}
    saved.run("restore", "order", "--exclude", "f", "--strip", "1", "--to", f"{to}2")
    assert left(Path(f"{to}2")) == {"a", "a.b", "a-b", "a0"}


def test_what_strip_would_make_one_is_named_and_nothing_is_written(saved: Workspace, to: Path) -> None:
    said = saved.run("restore", "order", "small", "--strip", "2", "--to", str(to), expect=2).stderr
    assert f"{saved.source}/order/a/f and {saved.source}/order/a-b/f would both become f" in said
    assert f"nothing of {saved.source}/small would be left" in said
    assert not to.exists()


def test_what_strip_leaves_nothing_of_is_named_up_to_twenty(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "work", small_tree(tmp_path / "source", *map(str, range(25))))
    workspace.backup()
    lines = workspace.run("restore", "--strip", "9", expect=2).stderr.splitlines()
    assert (len(lines), lines[-1]) == (21, "blobark: and 5 more: take off fewer, or choose less")


def test_strip_keeps_hard_links(saved: Workspace, to: Path) -> None:
    done = saved.run("restore", "hard", "--strip", "1", "--to", str(to)).result
    assert (done["files"], done["links"], done["failed"]) == (1, 1, [])
    assert (to / "first").stat().st_ino == (to / "second").stat().st_ino


def test_in_place_goes_to_the_real_names(tmp_path: Path) -> None:
    real = tmp_path / "real" / "data"
    source = small_tree(tmp_path / "mounted", "a/file", "b/file", "top")
    workspace = Workspace(tmp_path / "work", source, source_path=[{"path": str(source), "as": str(real)}])
    workspace.backup()
    small_tree(tmp_path / "real", "beside")
    done = workspace.run("restore", "a", "--in-place").result
    assert (done["files"], left(tmp_path / "real")) == (1, {"beside", "data", "data/a", "data/a/file"})
    assert not workspace.restored.exists()
    workspace.run("restore", "--in-place")
    assert differences(str(source), str(real)) == []


def test_in_place_replaces_no_symlink_above_the_tree(tmp_path: Path) -> None:
    real = tmp_path / "real" / "data"
    source = small_tree(tmp_path / "mounted", "file")
    workspace = Workspace(tmp_path / "work", source, source_path=[{"path": str(source), "as": str(real)}])
    workspace.backup()
    elsewhere = small_tree(tmp_path / "elsewhere", "kept")
    for link in (tmp_path / "real", real):
        link.symlink_to(elsewhere)
        workspace.run("restore", "--in-place", expect=3)
        assert (link.is_symlink(), left(elsewhere)) == (True, {"kept"})
        link.unlink()
        (tmp_path / "real").mkdir(exist_ok=True)


def test_several_roots_are_chosen_by_their_whole_paths(tmp_path: Path) -> None:
    roots = [small_tree(tmp_path / "srv" / name, "file", "other") for name in ("one", "two")]
    workspace = Workspace(tmp_path / "work", roots[0], source_path=[str(root) for root in roots])
    workspace.backup()
    place = workspace.restored / str(tmp_path).strip("/") / "srv"
    assert workspace.run("restore", f"{roots[1]}/file").result["files"] == 1
    assert left(place) == {"two", "two/file"}
    assert workspace.run("restore", str(tmp_path / "srv")).result["files"] == 4
    assert "could be below any of" in workspace.run("restore", "file", expect=2).stderr


# Owners


def owners(scene: Scene, rules: str) -> dict[str, tuple[int, int]]:
    """Return the owners that rules lead to, by name: as restored, or in a tar, which does not need root."""
    if os.geteuid() == 0:
        scene.restore(0, "--owner-map", rules)
        found = {path.name: (path.lstat().st_uid, path.lstat().st_gid) for path in scene.restored.rglob("*")}
        shutil.rmtree(scene.restored)
        return found
    config = str(scene.workspace.config)
    done = Workspace.forking.run("restore", "--tar", "--config", config, "--owner-map", rules)
    assert (done.returncode, done.stderr) == (0, b"")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        members = [member for member in archive if member.name != "."]
        return {os.path.basename(member.name): (member.uid, member.gid) for member in members}


def test_owners_are_mapped_by_name_and_by_number(scene: Scene, tmp_path: Path) -> None:
    forge = scene.forge
    forge.snapshot(
        item("dir", "dir", uid=1001, gid=2001, user="alice", group="staff"),
        forge.file("dir/a", uid=1001, gid=2001, user="alice", group="staff"),
        forge.file("dir/b", uid=1002, gid=2002),
        item("dir/link", "symlink", link="a", uid=1003, gid=2003),
        forge.file("other", uid=1004, gid=2004, mode=0o4755),
    )
    rules = tmp_path / "owners"
    rules.write_text("# who is who\nuser:alice:nobody\n\nuser:1002:5002\nuser:*:77\ngroup:2001:5001\n")
    for given in (str(rules), "user:alice:nobody,user:1002:5002,user:*:77,group:2001:5001"):
        nobody = 65534
        expected = {"dir": (nobody, 5001), "a": (nobody, 5001), "b": (5002, 2002), "link": (77, 2003)}
        assert owners(scene, given) == {**expected, "other": (77, 2004)}


def test_owners_are_not_mapped_where_they_cannot_be_set(nobodys: Scene) -> None:
    nobodys.forge.snapshot(nobodys.forge.file("file"))
    nobodys.hand_over()
    assert "run it as root, or with --tar" in nobodys.restore(2, "--owner-map", "user:*:0", nobody=True).stderr
    assert not nobodys.restored.exists()


def test_no_owner_makes_everything_ours_without_set_id_bits(scene: Scene) -> None:
    forge = scene.forge
    forge.snapshot(forge.file("file", uid=1001, gid=2001, mode=0o6755), forge.file("ours", mode=0o4755))
    scene.restore(0, "--no-owner")
    assert {path.lstat().st_uid for path in scene.restored.rglob("*")} == {os.geteuid()}
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in scene.restored.iterdir()}
    assert modes == {"file": 0o755, "ours": 0o4755}


def test_no_special_leaves_out_what_is_no_file(scene: Scene) -> None:
    forge = scene.forge
    forge.snapshot(forge.file("file"), item("pipe", "fifo"), item("socket", "socket"), item("z", "symlink", link="x"))
    scene.restore(0, "--no-special")
    assert left(scene.restored) == {"file", "z"}


# Once more what failed


def test_what_failed_is_restored_again_as_it_was_chosen(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "work", small_tree(tmp_path / "source", "a/b/one", "a/b/two", "z"))
    workspace.backup()
    key = workspace.guids()["a/b/two"]
    blob = workspace.store / key[-2:] / key
    blob.rename(tmp_path / "aside")
    told = ["a", "--strip", "2", "--no-owner"]
    assert workspace.run("restore", *told, expect=3).result["failed"][0][0] == "two"
    (journal,) = (workspace.state / "journals").glob("*-restore.jsonl")
    (tmp_path / "aside").rename(blob)
    (workspace.restored / "one").unlink()
    again = ["--retry-failed", str(journal)]
    assert "nothing that failed in that run is chosen" in workspace.run("restore", *again, "--dry-run").stderr
    assert workspace.run("restore", *told, *again).result["written"] == 1
    assert left(workspace.restored) == {"two"}
    assert "--retry-failed and --delete do not" in workspace.run("restore", *again, "--delete", expect=2).stderr


# Priority


def test_what_has_priority_is_there_first(saved: Workspace, to: Path, tmp_path: Path) -> None:
    first = tmp_path / "first"
    first.write_text("# the database\n/large\norder/\nhard/second\n")
    done = saved.run("restore", "--priority", str(first), "--to", str(to))
    assert differences(str(saved.source), str(to)) == []
    assert 0 < done.result["usable_s"] <= done.result["seconds"]
    assert json.loads(saved.metrics.read_bytes())["summary"]["usable_s"] == done.result["usable_s"]
    said = done.stderr.splitlines()
    assert said[0] == "priority: 6 files (19,922,969 bytes) first"
    assert said[1].startswith("usable: all that has priority is there after ")
    order = saved.run("restore", "--priority", str(first), "--to", f"{to}2", "-v").stderr.splitlines()
    usable = next(place for place, line in enumerate(order) if line.startswith("usable"))
    before = {line.partition(": ")[2] for line in order[:usable] if line.startswith("done")}
    assert before == {"large", "hard/second", *(f"order/{name}/f" for name in ("a", "a.b", "a-b", "a0"))}


def test_priority_that_fails_is_never_called_usable(scene: Scene, tmp_path: Path) -> None:
    forge = scene.forge
    forge.snapshot(forge.file("a"), forge.file("b", guid=forge.blob(b"wrong")))
    first = tmp_path / "first"
    first.write_text("b\n")
    done = scene.run("--priority", str(first))
    result = json.loads(done.stdout)
    assert (done.returncode, result["usable_s"], [path for path, _ in result["failed"]]) == (3, None, ["b"])
    assert (scene.restored / "a").read_bytes() == b"a"
    first.write_text("nothing like it\n")
    assert b"no pattern matches" in scene.run("--priority", str(first)).stderr


# Hostile manifests, and bare maps


def test_a_selection_is_no_way_round_the_checks_of_a_manifest(scene: Scene) -> None:
    forge = scene.forge
    for bad in ("../outside/file", "/etc/x", "a//b"):
        forge.snapshot(item("a", "dir"), forge.file("a/file"), forge.file(bad))
        scene.restore((2, 4), "--include", "*file*", "--include", "*", settled=False)
    forge.snapshot(item("a", "dir"), {**item("", "file"), "path_b64": "!"})
    scene.restore(4, "a", settled=False)


@pytest.mark.parametrize("first", ["nowhere", "../outside/file", "a", "dir"])
def test_a_link_to_what_cannot_be_is_named(scene: Scene, first: str) -> None:
    forge = scene.forge
    forge.snapshot(item("dir", "dir"), forge.file("dir/file"), item("dir/link", "file", hardlink_to=first, links=2))
    scene.restore((3, 4), "dir", settled=False)
    assert not (scene.restored / "dir" / "link").exists()


def test_names_that_are_not_utf_8_are_chosen_too(scene: Scene) -> None:
    forge = scene.forge
    entry = forge.file("odd", path="", path_b64=b64(b"odd \xff"))
    forge.snapshot(entry, forge.file("z"))
    scene.restore(0, os.fsdecode(b"/srv/data/odd \xff"), settled=False)
    assert os.listdir(os.fsencode(scene.restored)) == [b"odd \xff"]


@pytest.mark.parametrize("saved", ["plain"], indirect=True)
def test_a_bare_map_is_restored_in_part(saved: Workspace, to: Path) -> None:
    map_of = ["--map", str(saved.map), "--to", str(to)]
    done = saved.run("restore", *map_of, f"{saved.source}/order", f"{saved.source}/x", "--exclude", "a-b/", expect=3)
    assert done.result["failed"] == [[f"{saved.source}/x", "is not in the map"]]
    assert left(to) == {"order"} | {f"order/{name}{rest}" for name in ("a", "a.b", "a0") for rest in ("", "/f")}
    plan = saved.run("restore", "--map", str(saved.map), "--include", "sm*", "--to", f"{to}2", "--dry-run").result
    assert (plan["written"], Path(f"{to}2").exists()) == (1, False)
    assert "nothing of" in saved.run("restore", *map_of, "--include", "no", expect=2).stderr
