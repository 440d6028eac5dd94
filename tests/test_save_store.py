"""Saves to stores that are not what they were, and over snapshots that cannot be used."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.manifests import content_keys, items, missing_content, read_header
from tests.powerless import Powerless
from tests.runs import Workspace, wait_until
from tests.trees import contents_of, small_tree, write


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return small_tree(tmp_path / "source", "a", "b", "sub/c")


@pytest.fixture
def workspace(tmp_path: Path, source: Path) -> Workspace:
    return Workspace(tmp_path / "work", source, server="web1")


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
    assert set(contents_of(workspace.restored)) == {"a", "b", "z-link"}


@pytest.mark.parametrize("there", [False, True], ids=["no folder", "an empty folder"])
@pytest.mark.parametrize("command", ["save", "backup"])
def test_a_store_that_has_lost_its_snapshots_is_perhaps_not_mounted(
    workspace: Workspace, there: bool, command: str
) -> None:
    workspace.backup()
    workspace.store.rename(workspace.folder / "unmounted")
    if there:
        workspace.store.mkdir()
    run = workspace.run(command, expect=4)
    assert "mount" in run.result["error"] + run.result["hint"]
    assert list(workspace.store.glob("**/web1_*")) == []
    assert workspace.store.exists() == there
    result = workspace.run(command, "--new-store").result
    assert (result["save"] if command == "backup" else result)["snapshot"] == 1
    assert missing_content(workspace.store) == []


def test_a_store_that_another_takes_the_place_of_gets_all_that_its_snapshot_names(
    workspace: Workspace, source: Path
) -> None:
    """As when its disk is unmounted, with force, while the tree is walked: no process of the run looks for it anew."""
    workspace.backup()
    small_tree(source, *(f"new/{number:0200}" for number in range(500)))  # more than a pipe takes
    aside = workspace.folder / "aside"
    with workspace.started("backup", "-v") as process:
        assert process.stderr
        assert any(b"/new/" in line for line in process.stderr)  # it walks, and waits for us to read on
        workspace.store.rename(aside)
        workspace.store.mkdir()
        process.communicate(timeout=60)
    assert process.returncode == 0
    assert content_keys(workspace.store) == set()
    assert len(read_header(aside, 2)["segments"]) > 0
    assert missing_content(aside) == []


def test_a_state_from_another_store_and_a_file_that_is_gone(workspace: Workspace, source: Path) -> None:
    """Content that only the other store has is not named here."""
    workspace.backup()
    workspace.run("index")
    (source / "a").unlink()
    workspace.store = workspace.folder / "another"
    workspace.configure(store=str(workspace.store))
    run = workspace.run("save", expect=3)
    assert set(run.failed(workspace)) == {"a"}
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
    """One is held between its first blob and its snapshot, while the other runs: the last fence, without the lock."""
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
    one.configure(max_requests_per_s=300)  # so that there is time to hold it
    held = subprocess.Popen([*one.command("save"), "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        wait_until(lambda: len(content_keys(one.store)) > keys, held)
        held.send_signal(signal.SIGSTOP)
        assert len(list(one.store.glob("blobark/*/snapshots/*"))) == 1, "it was too fast to be held"
        shutil.rmtree(one.store / "blobark" / "web1" / "lock")
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
    assert set(codes) <= {0, 5}
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


def but_for_the_lock(store: Path) -> dict[str, bytes]:
    return {path: content for path, content in contents_of(store).items() if "/lock/" not in path}


def header_file(workspace: Workspace, number: int) -> Path:
    (file,) = workspace.store.glob(f"blobark/*/snapshots/{number:010}*")
    return file


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
    before = but_for_the_lock(two.store)
    for command in ("save", "restore") if bad in (newer, demanding) else ("restore",):
        run = two.run(command, expect=4)
        assert words in run.stderr
        assert run.stderr.count("\n") == 1
    assert but_for_the_lock(two.store) == before


def test_a_header_that_cannot_be_used_costs_nothing(two: Workspace) -> None:
    file = header_file(two, 2)
    good = file.read_bytes()
    file.write_bytes(newer(good))
    two.run("restore", "--snapshot", "1")
    assert contents_of(two.restored)["a"] == b"content of a"
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
    assert contents_of(two.restored) == {}
    two.run("restore", "--snapshot", "1")
    assert contents_of(two.restored)["a"] == b"content of a"


def test_a_damaged_segment_does_not_end_all_backups(two: Workspace) -> None:
    """The local state is lost as well: what the snapshot before it knows is enough to go on."""
    file = segment_only_in(two, 2)
    file.write_bytes(file.read_bytes()[:-3])
    shutil.rmtree(two.state)
    two.run("index", expect=None)
    assert two.run("save", expect=None).code == 0
    assert missing_content(two.store, 3) == []
    two.run("restore")
    assert contents_of(two.restored)["a"] == b"second content of a"


def test_a_damaged_segment_that_is_written_again_is_mended(two: Workspace) -> None:
    file = segment_only_in(two, 2)
    file.write_bytes(file.read_bytes()[:-3])
    header_file(two, 2).unlink()
    saved = two.run("save").result
    assert (saved["snapshot"], saved["sent"]) == (2, 0)
    assert missing_content(two.store) == []
