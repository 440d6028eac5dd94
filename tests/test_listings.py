"""Looking into snapshots: snapshots, ls, find, diff, history, map. Compared with what was done to the source."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from blobark.scratch import Differences
from tests.manifests import read_header, read_manifest
from tests.runs import Workspace
from tests.trees import write

FILES = 3_200
"""More than fit in one segment, so that paths are looked for in several."""


def listed(workspace: Workspace, *command: str, expect: int = 0) -> list[dict[str, Any]]:
    return list(workspace.run(*command, expect=expect).result["items"])


def lines(workspace: Workspace, *command: str) -> list[str]:
    done = workspace.execute(*command)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode().splitlines()


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Four snapshots: a tree; a change, a new and a removed file; a renamed file and other metadata; nothing more."""
    folder = tmp_path_factory.mktemp("listings")
    source = folder / "source"
    for number in range(FILES):
        file = source / f"{number % 40:02}" / f"file-{number:05}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"%d" % number)
    (source / "report.odt").write_text("first")
    (source / "link").symlink_to("report.odt")
    workspace = Workspace(folder / "work", source, server="web1")
    workspace.backup()
    (source / "report.odt").write_text("second, longer")
    (source / "07" / "new").write_text("new")
    (source / "39" / "file-03199").unlink()
    workspace.backup()
    (source / "report.odt").rename(source / "05" / "renamed.odt")
    (source / "00" / "file-00000").chmod(0o600)
    workspace.backup()
    workspace.backup()
    return workspace


def test_snapshots(workspace: Workspace) -> None:
    rows = listed(workspace, "snapshots")
    assert [row["number"] for row in rows] == [1, 2, 3, 4]
    assert [row["files"] for row in rows] == [FILES + 1] * 4
    assert rows[1]["new_bytes"] == len("second, longer") + len("new")
    assert all(row["complete"] and not row["rescued"] for row in rows)
    text = lines(workspace, "snapshots")
    assert len(text) == 5
    assert text[0].split()[0] == "number"


def test_ls(workspace: Workspace) -> None:
    everything = listed(workspace, "ls", "1")
    assert len(everything) == len(read_manifest(workspace.store, 1))
    assert [row["path"] for row in everything][:2] == [str(workspace.source), f"{workspace.source}/00"]
    below = listed(workspace, "ls", "latest", f"{workspace.source}/05")
    assert len(below) == 1 + FILES // 40 + 1
    assert below[-1]["path"] == f"{workspace.source}/05/renamed.odt"
    assert listed(workspace, "ls", "latest", "05/renamed.odt")[0]["size"] == len("second, longer")
    assert listed(workspace, "ls", "3", "link")[0]["link"] == "report.odt"
    assert lines(workspace, "ls", "1", "link")[0].startswith("lrwx")
    assert listed(workspace, "ls", "1", "07/")[0]["kind"] == "dir"


@pytest.mark.parametrize("number", range(0, FILES, 430))
def test_every_path_is_found(workspace: Workspace, number: int) -> None:
    path = f"{workspace.source}/{number % 40:02}/file-{number:05}"
    assert [row["path"] for row in listed(workspace, "ls", "2", path)] == [path]


@pytest.mark.parametrize("path", ["/elsewhere", "07/nothing", "0", "zz", "report.odt/x"])
def test_a_path_that_is_not_there(workspace: Workspace, path: str) -> None:
    run = workspace.run("ls", "1", path, expect=4)
    assert "is not in snapshot 1" in run.stderr
    assert "items" not in run.result


def test_find(workspace: Workspace) -> None:
    rows = listed(workspace, "find", "*.odt")
    source = str(workspace.source)
    assert [(row["path"], row["snapshots"], row["size"]) for row in rows] == [
        (f"{source}/05/renamed.odt", "3-4", len("second, longer")),
        (f"{source}/report.odt", "1", len("first")),
        (f"{source}/report.odt", "2", len("second, longer")),
    ]
    assert [row["snapshots"] for row in listed(workspace, "find", "*/39/file-03199")] == ["1"]
    assert len(listed(workspace, "find", "file-0000?")) == 11  # one of them twice: before and after its chmod
    assert listed(workspace, "find", "nowhere") == []


def test_diff(workspace: Workspace) -> None:
    source = str(workspace.source)
    rows = listed(workspace, "diff", "1", "2")
    assert [(row["change"], row["path"]) for row in rows if row["change"] != "U"] == [
        ("+", f"{source}/07/new"),
        ("-", f"{source}/39/file-03199"),
        ("M", f"{source}/report.odt"),
    ]
    found = workspace.run("diff", "2").result
    assert [(row["change"], row["path"], row["path_before"]) for row in found["items"]] == [
        ("U", f"{source}/00/file-00000", ""),
        ("R", f"{source}/05/renamed.odt", f"{source}/report.odt"),
    ]
    assert (found["renamed"], found["metadata"], found["new"], found["gone"], found["after"]) == (1, 1, 0, 0, 4)
    legend, *shown, title, numbers, changes = lines(workspace, "diff", "2", "3")
    assert legend.startswith("+ new   - gone   R renamed")
    assert shown == [f"U {source}/00/file-00000", f"R {source}/report.odt -> {source}/05/renamed.odt"]
    assert re.fullmatch(r"diff: [\d.]+ s", title)
    assert numbers.split() == ["snapshots", "2", "and", "3", "of", "web1"]
    assert changes.split(maxsplit=1) == ["changes", "1 renamed, 1 with other metadata"]
    assert lines(workspace, "diff", "3", "4")[-1].split() == ["changes", "none"]
    assert listed(workspace, "diff", "3", "4") == []
    assert [row["change"] for row in listed(workspace, "diff", "2", "1")] == ["-", "+", "M"]


def test_a_diff_reads_no_segment_that_both_have(workspace: Workspace, tmp_path: Path) -> None:
    """The others may even be gone."""
    copy = Workspace(tmp_path / "work", workspace.source, server="web1")
    shutil.copytree(workspace.store, copy.store)
    headers = [copy.header(number) for number in (2, 3)]
    ours, theirs = ({segment["digest"] for segment in header["segments"]} for header in headers)
    assert ours & theirs
    for digest in ours & theirs:
        (stored,) = (copy.store / "blobark" / "web1" / "segments").glob(f"{digest}*")
        stored.unlink()
    assert len(listed(copy, "diff", "2", "3")) == 2


def test_a_diff_pairs_each_name_once(tmp_path: Path) -> None:
    """Names of one content, of which some stay, go and come; the same bytes again; names that cross; no content."""
    source = tmp_path / "source"
    for name in ("a", "b"):
        write(source / name, "equal")
    write(source / "c", "third")
    write(source / "d", "fourth")
    (source / "gone").symlink_to("a")
    workspace = Workspace(tmp_path / "work", source, server="web1", dedupe=True)
    workspace.backup()
    (source / "gone").unlink()
    (source / "new").symlink_to("x")
    for old, new in (("a", "x"), ("c", "w2"), ("d", "w1")):
        (source / old).rename(source / new)
    write(source / "y", "equal")
    write(source / "z", "another")
    workspace.backup()
    rows = listed(workspace, "diff", "1", "2")
    marks = [(row["change"], row["path_before"], row["path"]) for row in rows if row["path"] != str(source)]
    renamed = [("R", f"{source}/{old}", f"{source}/{new}") for old, new in (("d", "w1"), ("c", "w2"), ("a", "x"))]
    assert marks[:2] == [("-", "", f"{source}/gone"), ("+", "", f"{source}/new")]
    assert marks[2:] == [*renamed, ("+", "", f"{source}/y"), ("+", "", f"{source}/z")]


def test_names_with_one_guid_are_paired_in_order() -> None:
    with Differences.open() as found:
        for mark, name in zip("--+++", (b"a", b"b", b"x", b"y", b"z"), strict=True):
            found.add(mark, "guid", "", name)
        assert list(found.paired()) == [(b"x", b"a"), (b"y", b"b"), (b"z", None)]


def test_a_diff_tells_which_names_of_a_hard_link_group_were_renamed(tmp_path: Path) -> None:
    """A further name; all names of a group; the first name, so that another one is the first now; other content."""
    source = tmp_path / "source"
    groups = (("a1", "a2"), ("b1", "b2", "b3"), ("c1", "c2"), ("d1", "d2"))
    for first, *further in groups:
        write(source / first, first)
        for name in further:
            os.link(source / first, source / name)
    workspace = Workspace(tmp_path / "work", source, server="web1")
    workspace.backup()
    for old, new in (("a2", "a3"), ("b1", "y1"), ("b2", "y2"), ("b3", "y3"), ("c1", "c9"), ("d2", "d3")):
        (source / old).rename(source / new)
    write(source / "d3", "other content, since there is another time")
    workspace.backup()
    rows = [row for row in listed(workspace, "diff", "1", "2") if row["change"] in "R+-"]
    marks = {(row["change"], Path(row["path_before"]).name, Path(row["path"]).name) for row in rows}
    renamed = {("a2", "a3"), ("b1", "y1"), ("b2", "y2"), ("b3", "y3"), ("c1", "c9")}
    assert marks == {("R", *pair) for pair in renamed} | {("-", "", "d2"), ("+", "", "d3")}


def test_names_of_one_group_with_other_guids_are_not_paired() -> None:
    with Differences.open() as found:
        for mark, guid, name in (("-", "1", b"a"), ("-", "", b"b"), ("+", "2", b"x"), ("+", "", b"y")):
            found.add(mark, guid, "group", name)
        assert list(found.paired()) == [(b"a", None), (b"x", None), (b"y", b"b")]


def test_further_hard_links_have_the_content_of_the_first(tmp_path: Path) -> None:
    source = tmp_path / "source"
    write(source / "a", "one")
    for name in ("b", "c"):
        os.link(source / "a", source / name)
    workspace = Workspace(tmp_path / "work", source)
    workspace.backup()
    (source / "a").write_bytes(b"two")
    workspace.backup()
    status = (source / "a").stat()
    (source / "a").write_bytes(b"three")
    os.utime(source / "a", ns=(status.st_atime_ns, status.st_mtime_ns))
    workspace.backup()
    (source / "a").unlink()
    workspace.backup()
    rows = listed(workspace, "history", f"{source}/b")
    assert [(row["size"], row["snapshots"]) for row in rows] == [(5, "3-4"), (3, "2"), (3, "1")]
    digests = [blake3(text).hexdigest() for text in (b"three", b"two", b"one")]
    assert [(row["digest"], row["guid"] != "") for row in rows] == [(digest, True) for digest in digests]

    def changes(*numbers: str) -> dict[str, str]:
        return {Path(row["path"]).name: row["change"] for row in listed(workspace, "diff", *numbers)}

    for numbers in (("1", "2"), ("2", "3")):  # another time, and another size
        assert {"a": "M", "b": "M", "c": "M"}.items() <= changes(*numbers).items()
    assert {"b": "U", "c": "U"}.items() <= changes("3", "4").items()


def test_history_follows_a_rename(workspace: Workspace) -> None:
    rows = listed(workspace, "history", "05/renamed.odt")
    source = str(workspace.source)
    assert [(row["path"], row["snapshots"], row["size"]) for row in rows] == [
        (f"{source}/05/renamed.odt", "3-4", len("second, longer")),
        (f"{source}/report.odt", "2", len("second, longer")),
        (f"{source}/report.odt", "1", len("first")),
    ]
    assert [row["snapshots"] for row in listed(workspace, "history", f"{source}/report.odt")] == ["2", "1"]
    assert "is in no snapshot" in workspace.run("history", "nothing", expect=4).stderr


def test_history_follows_a_rename_of_a_further_hard_link(tmp_path: Path) -> None:
    source = tmp_path / "source"
    write(source / "a", "one")
    os.link(source / "a", source / "b")
    workspace = Workspace(tmp_path / "work", source)
    workspace.backup()
    (source / "b").rename(source / "c")
    (source / "a").rename(source / "z")
    workspace.backup()
    found = {name: listed(workspace, "history", name) for name in ("c", "z")}
    assert {name: [(Path(row["path"]).name, row["snapshots"]) for row in rows] for name, rows in found.items()} == {
        "c": [("c", "2"), ("a", "1")],
        "z": [("z", "2"), ("a", "1")],
    }


def test_the_map_of_a_snapshot(workspace: Workspace, tmp_path: Path) -> None:
    result = workspace.run("map", "--out", str(tmp_path / "map.json")).result
    assert (result["snapshot"], result["mapped"]) == (4, FILES + 1)
    assert json.loads((tmp_path / "map.json").read_bytes()) == json.loads(workspace.map.read_bytes())
    workspace.run("map", "1", "--out", str(tmp_path / "old.json"))
    old = json.loads((tmp_path / "old.json").read_bytes())
    assert f"{workspace.source}/39/file-03199" in old.values()
    assert "cannot be written" in workspace.run("map", "--out", "/proc/nothing/map", expect=4).stderr


def test_without_local_state_and_with_another_server(workspace: Workspace, tmp_path: Path) -> None:
    elsewhere = Workspace(tmp_path / "elsewhere", workspace.source, store=str(workspace.store))
    assert len(listed(elsewhere, "snapshots")) == 4
    assert not elsewhere.state.exists()
    assert listed(elsewhere, "snapshots", "--server", "nobody") == []
    assert "nobody has no snapshot" in elsewhere.run("find", "x", "--server", "nobody", expect=4).stderr


def test_only_snapshots_that_exist_are_said_to_have_a_file(workspace: Workspace, tmp_path: Path) -> None:
    copy = Workspace(tmp_path / "work", workspace.source, server="web1")
    shutil.copytree(workspace.store, copy.store)
    copy.run("forget", "2", "--yes")
    for command in (("find", "file-00001"), ("history", "01/file-00001")):
        assert [row["snapshots"] for row in listed(copy, *command)] == ["1, 3-4"]


def test_a_damaged_snapshot_is_named(workspace: Workspace, tmp_path: Path) -> None:
    copy = Workspace(tmp_path / "work", workspace.source, server="web1")
    shutil.copytree(workspace.store, copy.store)
    header = sorted(copy.store.glob("blobark/web1/snapshots/*"))[1]
    header.write_bytes(header.read_bytes()[:-20])
    run = copy.run("snapshots", expect=3)
    assert [row["number"] for row in run.result["items"]] == [1, 3, 4]
    assert run.result["failed"][0][0] == "snapshot 2"
    assert "snapshot 2 of web1 is damaged" in run.stderr
    assert [row["snapshots"] for row in listed(copy, "find", "report.odt", expect=3)] == ["1"]


def test_a_listing_that_breaks_off_is_json_all_the_same(workspace: Workspace, tmp_path: Path) -> None:
    copy = Workspace(tmp_path / "work", workspace.source, server="web1")
    shutil.copytree(workspace.store, copy.store)
    last = read_header(copy.store, 1)["segments"][-1]["digest"]
    copy.store.joinpath("blobark", "web1", "segments", f"{last}.blob").unlink()
    run = copy.run("ls", "1", expect=4)
    assert len(run.result["items"]) > FILES // 2
    assert f"segment {last} is missing" in run.result["error"]
    assert (run.result["command"], run.result["exit_code"]) == ("ls", 4)


def test_names_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in (b"new\nline", b"red\x1b[31m", b"not-utf-8-\xff"):
        Path(os.fsdecode(bytes(source) + b"/" + name)).write_bytes(b"")
    workspace = Workspace(tmp_path / "work", source, server="web1")
    workspace.backup()
    text = workspace.execute("ls").stdout
    assert text.count(b"\n") == 4
    assert b"\x1b" not in text
    assert b"not-utf-8-\\udcff" in text
    assert len(listed(workspace, "find", "*\n*")) == 1


def test_what_is_said_of_the_commands(workspace: Workspace) -> None:
    for command in ("snapshots", "ls", "find", "diff", "history", "map"):
        text = workspace.execute(command, "--help").stdout.decode()
        assert "examples:" in text
        assert "--dry-run" not in text
    for wrong in (("ls", "zero"), ("diff", "0"), ("map",), ("find",)):
        assert workspace.run(*wrong, expect=2).stderr.startswith("blobark: ")
    assert "no snapshot 9" in workspace.run("ls", "9", expect=4).stderr


def test_a_closed_pipe_ends_it_quietly(workspace: Workspace) -> None:
    command = " ".join(workspace.command("ls"))
    done = os.popen(f"{{ {command}; echo $? >&2; }} 2>&1 | head -1").read()
    assert len(done.splitlines()) == 1
