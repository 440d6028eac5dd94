"""Tags, forget and prune on a folder: what the plan says, what goes when, and what must never go."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from blobark.clock import utc
from tests.manifests import content_keys, read_manifest
from tests.pruned import Machine, age, check_restores, check_whole, lists, named, numbers, path_of, unnamed
from tests.trees import write
from tools.compare import Facts, facts_of


class Years(Machine):
    """A machine that remembers what its tree was at each snapshot."""

    trees: dict[int, dict[bytes, Facts]]

    def next(self, **files: str) -> int:
        """Write some files and back up; return the snapshot's number."""
        for name, text in files.items():
            write(self.source / name, text)
        number = int(self.run("backup").result["save"]["snapshot"])
        self.trees[number] = facts_of(str(self.source))
        return number


@pytest.fixture
def machine(tmp_path: Path) -> Years:
    """Four snapshots: `same` never changes, `changing` always does; `once` is in the second one alone."""
    made = Years(tmp_path / "work", tmp_path / "source", keep={"last": 1})
    made.trees = {}
    made.next(same="it stays", changing="1")
    made.next(changing="two", once="only once")
    (made.source / "once").unlink()
    made.next(changing="three!")
    made.next(changing="four...")
    return made


def plan(machine: Machine, *options: str) -> dict[str, Any]:
    return machine.run("prune", *options).result


def going(result: dict[str, Any]) -> list[int]:
    return [item["number"] for item in result["snapshots"] if not item["keep"]]


def test_the_plan_says_why_and_how_much_and_changes_nothing(machine: Years) -> None:
    before = {file: file.stat().st_mtime_ns for file in machine.store.rglob("*")}
    result = plan(machine)
    assert going(result) == [1, 2, 3]
    assert [item["reasons"] for item in result["snapshots"]] == [
        *[["no rule keeps it"]] * 3,
        ["the newest", "the newest complete one", "last"],
    ]
    only = set.union(*(set(named(machine.store, number)) for number in (1, 2, 3))) - set(named(machine.store, 4))
    sizes = {key: path_of(machine.store, key).stat().st_size for key in only}
    assert result["freed"] == {"blobs": len(only), "bytes": sum(sizes.values())}
    alone = set(named(machine.store, 2)) - set(named(machine.store, 1)) - set(named(machine.store, 3))
    assert result["snapshots"][1]["freed_bytes"] == sum(sizes[key] for key in alone)
    assert result["done"] is False
    assert {file: file.stat().st_mtime_ns for file in machine.store.rglob("*")} == before
    text = machine.execute("prune").stdout.decode()
    assert "GOES" in text
    assert all(line == line.rstrip() for line in text.splitlines())
    assert "no rule keeps it" in text


def test_snapshots_go_first_and_their_blobs_a_day_later(machine: Years) -> None:
    blobs = content_keys(machine.store)
    assert going(plan(machine, "--yes")) == [1, 2, 3]
    assert numbers(machine.store) == [4]
    assert content_keys(machine.store) == blobs
    assert len(lists(machine.store)) == 1
    count = len(unnamed(machine.store))
    age(machine.store, 0.99)
    result = plan(machine, "--yes")
    assert (result["deleting"]["blobs"], result["freed"]["blobs"]) == (0, 0)
    assert result["waiting"]["blobs"] == count
    assert content_keys(machine.store) == blobs
    age(machine.store, 0.02)
    assert plan(machine)["deleting"]["blobs"] == count
    assert plan(machine, "--yes")["deleting"]["blobs"] == count
    assert lists(machine.store) == []
    assert unnamed(machine.store) == set()
    check_restores(machine, machine.trees)


def test_without_keep_everything_stays(machine: Years) -> None:
    settings = {key: value for key, value in machine.settings.items() if key != "keep"}
    machine.settings = settings
    machine.configure()
    age(machine.store, 100)
    result = plan(machine, "--yes")
    assert going(result) == []
    assert all("no keep is configured" in item["reasons"] for item in result["snapshots"])
    assert numbers(machine.store) == [1, 2, 3, 4]
    assert lists(machine.store) == []


def test_tags_are_shown_hold_snapshots_and_go_with_them(machine: Years) -> None:
    assert machine.run("tag", "2", "before-upgrade", "audit").result["tags"] == ["audit", "before-upgrade"]
    assert machine.run("tag", "2", "audit").result["tags"] == ["audit", "before-upgrade"]
    machine.run("tag", "1", "unheard-of")
    rows = machine.run("snapshots").result["items"]
    assert [row["tags"] for row in rows] == [["unheard-of"], ["audit", "before-upgrade"], [], []]
    machine.configure(keep={"last": 1, "tags": ["audit", "other"]})
    assert going(plan(machine)) == [1, 3]
    assert machine.run("tag", "2", "audit", "--remove").result["tags"] == ["before-upgrade"]
    assert going(plan(machine)) == [1, 2, 3]
    machine.run("tag", "2", "audit")
    plan(machine, "--yes")
    assert sorted(file.parent.name for file in machine.store.glob("blobark/web1/tags/*/*")) == ["0000000002"] * 2
    check_restores(machine, machine.trees)
    assert "cannot be a tag" in machine.run("tag", "2", "Not This", expect=2).stderr
    assert "has no snapshot 9" in machine.run("tag", "9", "x", expect=4).stderr


def test_only_a_tag_that_is_there_is_taken_away(machine: Years) -> None:
    machine.run("tag", "2", "audit")
    assert "--remove takes away the tags that are named" in machine.run("tag", "2", "--remove", expect=2).stderr
    run = machine.run("tag", "2", "audit", "other", "--remove", expect=2)
    assert "snapshot 2 of web1 has no tag other: it has audit" in run.stderr
    assert machine.run("tag", "2").result["tags"] == ["audit"]


def test_a_snapshot_of_a_clock_that_runs_ahead_costs_no_other(machine: Years) -> None:
    machine.configure(keep={"within": "30d"})
    header = path_of(machine.store, "blobark/web1/snapshots/0000000004")
    data = json.loads(header.read_bytes())
    ahead_ns = data["started_ns"] + 4000 * 86_400 * 10**9
    header.write_text(json.dumps({**data, "started": utc(ahead_ns), "started_ns": ahead_ns}))
    run = machine.run("prune", "--yes")
    assert going(run.result) == []
    assert numbers(machine.store) == [1, 2, 3, 4]
    (line,) = run.stderr.splitlines()
    assert line.startswith(f"warning: snapshot 4 is dated {utc(ahead_ns)}, and the store's clock says ")
    machine.next(changing="when the clock is right again")
    assert going(plan(machine)) == []
    machine.run("forget", "4", "--yes")
    assert numbers(machine.store) == [1, 2, 3, 5]


def test_forget_removes_what_is_named_and_nothing_else(machine: Years) -> None:
    write(machine.store / "00" / "web1_00000000-0000-8000-8000-000000000000", "an orphan")
    age(machine.store, 30)
    shown = machine.run("forget", "2").result
    assert (going(shown), shown["done"]) == ([2], False)
    assert numbers(machine.store) == [1, 2, 3, 4]
    done = machine.run("forget", "2", "--yes").result
    assert (going(done), done["done"], done["orphans"]["blobs"]) == ([2], True, 0)
    assert numbers(machine.store) == [1, 3, 4]
    check_restores(machine, machine.trees)
    assert "has no snapshot 2" in machine.run("forget", "2", "--yes", expect=4).stderr
    machine.configure(keep={"last": 9})
    age(machine.store, 1.1)
    only_two = {"changing": b"two", "once": b"only once"}
    contents = {path_of(machine.store, key).read_bytes() for key in content_keys(machine.store)}
    assert set(only_two.values()) <= contents
    plan(machine, "--yes")
    contents = {path_of(machine.store, key).read_bytes() for key in content_keys(machine.store)}
    assert not set(only_two.values()) & contents
    check_restores(machine, machine.trees)


def test_the_newest_and_the_newest_complete_snapshot_are_not_forgotten_by_accident(machine: Years) -> None:
    assert "snapshot 4 is the newest" in machine.run("forget", "3", "4", "--yes", "--last-complete", expect=2).stderr
    header = path_of(machine.store, "blobark/web1/snapshots/0000000004")
    data = json.loads(header.read_bytes())
    header.write_text(json.dumps({**data, "complete": False}))
    assert "snapshot 3 is the newest complete one" in machine.run("forget", "3", "--yes", expect=2).stderr
    assert numbers(machine.store) == [1, 2, 3, 4]
    assert going(machine.run("forget", "3", "--last-complete").result) == [3]
    machine.run("forget", "3", "--last-complete", "--yes")
    assert numbers(machine.store) == [1, 2, 4]
    check_whole(machine.store)


def damaged(machine: Years, what: str) -> None:
    segments = {number: set(named(machine.store, number)) for number in (1, 2, 3, 4)}
    own = next(key for key in segments[2] - segments[1] - segments[3] if "segments" in key)
    file = path_of(machine.store, own if "segment" in what else "blobark/web1/snapshots/0000000002")
    if "missing" in what:
        file.unlink()
    elif "newer" in what:
        file.write_text(json.dumps({**json.loads(file.read_bytes()), "requires": ["teleport"]}))
    elif "odd" in what:
        write(machine.store / "blobark/web1/snapshots/0000000002x.blob", "?")
    else:
        file.write_bytes(file.read_bytes()[:-3])


@pytest.mark.parametrize(
    "what", ["damaged header", "header of a newer version", "missing segment", "damaged segment", "odd key"]
)
def test_it_refuses_when_any_snapshot_cannot_be_read(machine: Years, what: str) -> None:
    plan(machine, "--yes")  # of a snapshot that was fine: its blobs are listed
    for number in (1, 2, 3):
        machine.trees.pop(number)
    shutil.rmtree(machine.store)
    machine.trees.clear()
    shutil.rmtree(machine.state)
    for text in ("1", "22", "333", "4444"):
        machine.next(changing=text)
    age(machine.store, 30)
    damaged(machine, what)
    before = sorted(file for file in machine.store.rglob("*"))
    for options in ([], ["--yes"]):
        run = machine.run("prune", *options, expect=4)
        (line,) = run.stderr.splitlines()
        assert "nothing is deleted" in line
    assert sorted(file for file in machine.store.rglob("*")) == before
    if "odd" in what:
        return
    machine.run("forget", "2", "--yes")
    machine.trees.pop(2)
    age(machine.store, 30)
    plan(machine, "--yes")
    age(machine.store, 1.1)
    plan(machine, "--yes")
    assert (numbers(machine.store), unnamed(machine.store)) == ([4], set())
    check_restores(machine, machine.trees)


def test_a_store_without_a_snapshot_is_left_alone(machine: Years) -> None:
    for file in machine.store.glob("blobark/web1/snapshots/*"):
        file.unlink()
    age(machine.store, 100)
    blobs = content_keys(machine.store)
    assert "no snapshot" in machine.run("prune", "--yes", expect=4).stderr
    assert content_keys(machine.store) == blobs


def test_a_damaged_or_foreign_trash_list_stops_prune_and_save(machine: Years) -> None:
    plan(machine, "--yes")
    (name,) = lists(machine.store)
    file = machine.store / "blobark/web1/trash" / name
    whole = file.read_bytes()
    file.write_bytes(whole[:-2])
    age(machine.store, 2)
    for command in (["prune", "--yes"], ["backup"]):
        run = machine.run(*command, expect=4)
        assert "the trash list blobark/web1/trash/" in run.stderr
    assert numbers(machine.store) == [4]
    file.unlink()  # as the message says
    age(machine.store, 30)
    plan(machine, "--yes")
    age(machine.store, 2)
    plan(machine, "--yes")
    assert unnamed(machine.store) == set()
    check_restores(machine, machine.trees)


# Orphans


def orphan(machine: Machine, guid: str, days: float) -> Path:
    file = path_of(machine.store, f"web1_{guid}")
    write(file, "nobody's")
    moment = file.stat().st_mtime - days * 86_400
    os.utime(file, (moment, moment))
    return file


def test_orphans_go_after_seven_days_and_one_more(machine: Years) -> None:
    young = orphan(machine, "aaaaaaaa-0000-8000-8000-000000000001", 6.9)
    old = orphan(machine, "bbbbbbbb-0000-8000-8000-000000000001", 7.1)
    still = [orphan(machine, f"cccccccc-0000-8000-8000-0000000000{days:02}", days) for days in (1, 30)]
    result = plan(machine, "--yes")
    assert (result["orphans"], result["left_alone"]) == ({"blobs": 1, "bytes": 8}, {"blobs": 3, "bytes": 24})
    age(machine.store, 1.1)
    plan(machine, "--yes")
    assert not old.exists()
    assert young.exists()  # it is listed now
    assert all(file.exists() for file in still)  # their run went on storing until yesterday
    age(machine.store, 6)
    plan(machine, "--yes")
    age(machine.store, 1.1)
    plan(machine, "--yes")
    assert not any(file.exists() for file in (young, *still))
    check_restores(machine, machine.trees)


def test_what_was_written_after_it_was_listed_is_another_blob(machine: Years) -> None:
    file = orphan(machine, "aaaaaaaa-0000-8000-8000-000000000001", 8)
    plan(machine, "--yes")
    age(machine.store, 1.1)
    file.unlink()
    orphan(machine, "aaaaaaaa-0000-8000-8000-000000000001", 1)
    plan(machine, "--yes")
    assert file.exists()


def test_nothing_that_is_not_this_servers_content_is_touched(machine: Years, tmp_path: Path) -> None:
    others = [
        "00/web1_1_aaaaaaaa-0000-8000-8000-000000000000",
        "00/web_aaaaaaaa-0000-8000-8000-000000000000",
        "00/web10_aaaaaaaa-0000-8000-8000-000000000000",
        "00/WEB1_aaaaaaaa-0000-8000-8000-000000000000",
        "00/web1-aaaaaaaa-0000-8000-8000-000000000000",
        "00/web1_aaaaaaaa-0000-8000-8000-00000000000000",
        "00/web1_AAAAAAAA-0000-8000-8000-000000000000",
        "te/web1_note",
        "00/aaaaaaaa-0000-8000-8000-000000000000",
        "blobark/web1/drills/20260101T000000Z.blob",
        "blobark/web1/segments/readme.blob",
        "blobark/web1/else.blob",
        "blobark/web/segments/" + "a" * 64 + ".blob",
        "blobark/web1_1/segments/" + "a" * 64 + ".blob",
        "README.txt.blob",
        "README.txt",
    ]
    for name in others:
        write(machine.store / name, "not to be touched")
    names = {number: named(machine.store, number) for number in (1, 2, 3, 4)}
    second = Machine(tmp_path / "second", tmp_path / "other", server="web", store=str(machine.store))
    write(tmp_path / "other" / "file", "of another server")
    second.run("backup")
    before = {file for file in machine.store.rglob("*") if file.is_file()}
    age(machine.store, 40)
    plan(machine, "--yes")
    age(machine.store, 2)
    plan(machine, "--yes")
    meant = [key for number in (1, 2, 3) for key in names[number] if key not in names[4]]
    headers = [f"blobark/web1/snapshots/{number:010}" for number in (1, 2, 3)]
    assert {file for file in before if not file.exists()} == {path_of(machine.store, key) for key in (*meant, *headers)}
    assert all((machine.store / name).exists() for name in others)
    second.run("restore")
    assert (second.restored / "file").read_text() == "of another server"


# Saves


def test_a_save_does_not_name_what_is_listed(machine: Years) -> None:
    """A killed save's contents are orphans of ten days, listed, when it goes on."""
    write(machine.source / "new", "sent by a run that was killed")
    machine.run("index")
    kept = machine.folder / "kept"
    shutil.copytree(machine.state, kept)
    machine.run("save")
    path_of(machine.store, "blobark/web1/snapshots/0000000005").unlink()
    shutil.rmtree(machine.state)
    kept.rename(machine.state)
    (key,) = (key for key in unnamed(machine.store) if key.startswith("web1_"))
    assert path_of(machine.store, key).read_text() == "sent by a run that was killed"
    age(machine.store, 10)
    plan(machine, "--yes")
    saved = machine.run("save")
    assert saved.result["snapshot"] == 5
    assert "listed for deletion, sent again: 1" in saved.stderr
    machine.trees[5] = facts_of(str(machine.source))
    assert key not in named(machine.store, 5)
    age(machine.store, 2)
    plan(machine, "--yes")
    assert not path_of(machine.store, key).exists()
    check_restores(machine, machine.trees)


def test_a_segment_that_is_listed_comes_back_under_another_name(machine: Years) -> None:
    """The tree is as it was before, to the last attribute, by another snapshot of the file system."""
    first = {key for key in named(machine.store, 4) if "segments" in key}
    state = machine.folder / "kept"
    shutil.copytree(machine.state, state)
    machine.next(changing="another, for a while")
    machine.configure(keep={"last": 1})
    plan(machine, "--yes")
    assert numbers(machine.store) == [5]
    # An index that finds what snapshot 4 has: the catalog of that time, and its draft.
    shutil.rmtree(machine.state)
    state.rename(machine.state)
    saved = machine.run("save", expect=None)
    assert saved.code == 0, saved.stderr
    second = {key for key in named(machine.store, 6) if "segments" in key}
    listed = first - set(named(machine.store, 5))
    assert listed
    assert not listed & second
    assert len(read_manifest(machine.store, 6)) == 3
    age(machine.store, 2)
    plan(machine, "--yes")
    check_whole(machine.store)
    machine.run("restore", "--snapshot", "6")


def test_a_snapshot_number_is_never_given_twice(machine: Years) -> None:
    """Two machines save the same server; prune leaves gaps that the first one's memory does not know of."""
    other = machine.elsewhere(machine.folder.parent / "other")
    other.run("backup")
    write(machine.source / "changing", "by the other machine")
    other.run("backup")
    other.run("prune", "--yes")
    assert numbers(machine.store) == [6]
    write(machine.source / "changing", "and by the first one again")
    assert machine.run("backup").result["save"]["snapshot"] == 7
    check_whole(machine.store)


def test_it_takes_the_lock_of_a_save(machine: Years) -> None:
    import fcntl

    with open(machine.state / "lock", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "another run holds the lock" in machine.run("prune", "--yes", expect=5).stderr
        plan(machine)
