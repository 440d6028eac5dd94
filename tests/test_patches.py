"""Segments that are stored as patches: what they save, and that whatever reads or keeps segments knows of them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from blobark.model import SegmentRef
from blobark.segments import compress, plain_of
from tests.damage import Machine as Damaged
from tests.damage import flipped, machine_at
from tests.manifests import read_header, read_manifest
from tests.pruned import Machine, age
from tests.runs import REPOSITORY
from tests.trees import small_tree, write
from tools.compare import differences

FILES = 1800
SCRIPT = REPOSITORY / "blobark" / "container" / "rescue.py"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Files for two segments: the name of number 1281 ends the first (docs/format.md)."""
    top = tmp_path / "source"
    for number in range(FILES):
        write(top / f"{number // 100:03}" / f"some-{number:05}", b"content %d" % number)
    return top


@pytest.fixture
def machine(tmp_path: Path, source: Path) -> Machine:
    return Machine(tmp_path / "machine", source)


def change(source: Path, word: str, step: int = 300) -> None:
    """Change a few files that lie far apart."""
    for number in range(7, FILES, step):
        write(source / f"{number // 100:03}" / f"some-{number:05}", f"{word} {number}".encode())


def refs(machine: Machine | Damaged, number: int | None = None) -> list[dict[str, str]]:
    return list(read_header(machine.store, number)["segments"])


def bases(machine: Machine | Damaged, number: int | None = None) -> set[str]:
    return {ref["base"] for ref in refs(machine, number) if "base" in ref}


def key(name: str) -> str:
    return f"blobark/web1/segments/{name}"


def check_restores(machine: Machine, *options: str) -> None:
    """Assert that a machine that knows nothing restores what the source is."""
    other = machine.elsewhere(machine.folder.parent / "elsewhere")
    other.run("restore", *options)
    assert differences(str(machine.source), str(other.restored)) == []
    shutil.rmtree(other.folder)


def test_changes_far_apart_send_little_of_the_manifest(machine: Machine, source: Path) -> None:
    first = machine.backup().result
    assert first["segments_sent"] == len(refs(machine)) > 1
    sent = []
    for word in ("second", "third", "fourth"):
        change(source, word)
        sent.append(machine.backup().result)
        read_manifest(machine.store)
        assert bases(machine) <= {ref["digest"] for ref in refs(machine, 1)}, "a patch rests on a whole segment"
    assert sent[0]["segments_sent"] == len(bases(machine, 2)) > 1
    assert all(run["segment_bytes"] * 16 < first["segment_bytes"] for run in sent)
    assert "patches" in read_header(machine.store)["requires"]
    assert "requires" not in read_header(machine.store, 1) or read_header(machine.store, 1)["requires"] == []
    check_restores(machine)


def test_a_segment_is_whole_again_when_much_of_it_has_changed(machine: Machine, source: Path) -> None:
    machine.backup()
    change(source, "a thirtieth", step=30)
    machine.backup()
    assert len(bases(machine)) == len(refs(machine)) - 1
    change(source, "a tenth", step=10)
    run = machine.backup().result
    assert bases(machine) == set()
    assert run["segments_sent"] == len(refs(machine)) - 1  # the root's own
    check_restores(machine)


def test_small_segments_are_whole(tmp_path: Path) -> None:
    source = small_tree(tmp_path / "source", *map(str, range(80)))
    machine = Machine(tmp_path / "machine", source)
    machine.backup()
    write(source / "7", b"another content")
    machine.backup()
    assert bases(machine) == set()


def test_a_patch_that_is_listed_for_deletion_is_not_taken(machine: Machine, source: Path) -> None:
    for skipped in ([], ["some-00007"], []):
        machine.configure(skip_files=skipped)
        machine.backup()
    (patch,) = (ref for ref in refs(machine, 2) if "base" in ref)
    machine.run("forget", "2", "--yes")
    machine.configure(skip_files=["some-00007"])
    machine.backup()
    assert [ref for ref in refs(machine) if ref["digest"] == patch["digest"]] == [
        {name: value for name, value in patch.items() if name != "base"}
    ]


def test_names_that_come_and_go_move_no_other_segment(machine: Machine, source: Path) -> None:
    machine.backup()
    for number in range(7, FILES, 300):
        (source / f"{number // 100:03}" / f"some-{number:05}").unlink()
        write(source / f"{number // 100:03}" / f"new-{number}", b"new")
    machine.backup()
    assert bases(machine) != set()
    read_manifest(machine.store)
    check_restores(machine)


def test_a_machine_that_has_lost_its_state_goes_on_with_the_patches(machine: Machine, source: Path) -> None:
    machine.backup()
    change(source, "second")
    machine.backup()
    before = bases(machine)
    shutil.rmtree(machine.state)
    assert machine.backup().result["segments_sent"] == 0
    assert bases(machine) == before
    change(source, "third")
    machine.backup()
    assert bases(machine) == before, "a patch is never made against a patch"
    check_restores(machine)


def test_what_a_patch_rests_on_is_kept_as_long_as_it_is_needed(machine: Machine, source: Path) -> None:
    machine.backup()
    change(source, "second")
    machine.backup()
    needed = bases(machine)
    machine.run("forget", "1", "--yes")
    for _ in range(2):
        machine.run("prune", "--yes")
        age(machine.store, 8)
    assert {name for name in needed if (machine.store / f"{key(name)}.blob").exists()} == needed
    check_restores(machine)
    change(source, "much", step=3)
    machine.backup()
    machine.run("forget", "2", "--yes")
    for _ in range(2):
        age(machine.store, 8)
        machine.run("prune", "--yes")
    left = {path.name.removesuffix(".blob") for path in (machine.store / "blobark/web1/segments").iterdir()}
    assert left == {ref["digest"] for ref in refs(machine)}, "neither patches nor bases are left"
    check_restores(machine)


@pytest.mark.parametrize(
    ("where", "what", "lost"),
    [("folder", "base", False), ("folder", "patch", True), ("azure", "base", True), ("azure", "patch", False)],
)
def test_damage_is_found_and_repaired(
    where: str, what: str, lost: bool, tmp_path: Path, source: Path, request: pytest.FixtureRequest
) -> None:
    machine = machine_at(where, tmp_path / "machine", source, request)
    machine.backup()
    change(source, "second")
    machine.backup()
    patch = next(name for name in machine.keys(key("")) if "-" in name)
    victim = patch if what == "patch" else key(patch.partition("-")[2])
    sound = machine.blob(victim)
    machine.damage(victim, None if lost else flipped(sound, len(sound) // 2))
    found = machine.run("verify", expect=7)
    assert found.result["damaged"] == 1
    assert {(row["blob"], row["snapshots"]) for row in found.result["items"]} == {
        (victim, "1-2" if what == "base" else "2")
    }
    machine.run("repair", "--yes", expect=None)
    assert machine.blob(victim) == sound
    machine.run("verify")


@pytest.mark.parametrize("what", ["base", "patch"])
def test_a_backup_mends_what_it_takes_over(what: str, machine: Machine, source: Path) -> None:
    machine.backup()
    change(source, "second")
    machine.backup()
    names = (
        bases(machine)
        if what == "base"
        else {f"{ref['digest']}-{ref['base']}" for ref in refs(machine) if "base" in ref}
    )
    assert len(names) == 2
    sound = {name: (machine.store / f"{key(name)}.blob").read_bytes() for name in names}
    for name in names:
        (machine.store / f"{key(name)}.blob").unlink()
    run = machine.backup()
    assert "were mended: 2" in run.stderr
    assert {name: (machine.store / f"{key(name)}.blob").read_bytes() for name in names} == sound
    check_restores(machine)


def test_a_damaged_base_fails_a_restore_with_its_name(machine: Machine, source: Path) -> None:
    machine.backup()
    change(source, "second")
    machine.backup()
    base = min(bases(machine))
    file = machine.store / f"{key(base)}.blob"
    file.write_bytes(flipped(file.read_bytes(), 3000))
    other = machine.elsewhere(machine.folder.parent / "elsewhere")
    run = other.run("restore", expect=4)
    assert base in run.stderr
    assert "restore another one with --snapshot N" in run.stderr


@pytest.mark.parametrize("decoder", ["of Python", "own"])
def test_the_rescue_script_reads_patches(decoder: str, machine: Machine, source: Path, tmp_path: Path) -> None:
    machine.backup()
    change(source, "second")
    machine.backup()
    isolated = ["-I", "-S"] if decoder == "own" else ["-I"]
    command = [sys.executable, *isolated, str(SCRIPT), str(machine.store), str(tmp_path / "rescued")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False, env={"PATH": ""})
    assert done.returncode == 0, done.stderr
    for path in sorted(source.rglob("*")):
        if path.is_file():
            assert (tmp_path / "rescued" / path.relative_to(source)).read_bytes() == path.read_bytes()


def test_a_name_says_what_a_segment_needs() -> None:
    whole = SegmentRef("a" * 64, 1, 10)
    patch = SegmentRef("b" * 64, 1, 10, base="a" * 64)
    assert (whole.name, whole.objects) == ("a" * 64, ("a" * 64,))
    assert (patch.name, patch.objects) == (f"{'b' * 64}-{'a' * 64}", (f"{'b' * 64}-{'a' * 64}", "a" * 64))
    assert plain_of(whole.name, compress(b"something else")) == b""


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_hundred_changes_in_a_million_files(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for folder in range(1000):
        below = source / f"{folder:03}"
        below.mkdir(parents=True)
        for number in range(1000):
            os.close(os.open(below / f"file-{number:03}", os.O_CREAT | os.O_WRONLY))
    machine = Machine(tmp_path / "machine", source)
    subprocess.run(machine.command("backup"), check=True)
    full = sum(file.stat().st_size for file in (machine.store / "blobark/web1/segments").iterdir())
    for day in range(1, 6):
        for folder in range(0, 1000, 10):
            write(source / f"{folder:03}" / f"file-{(folder * 7 + day * 31) % 1000:03}", b"day %d" % day)
        done = subprocess.run(machine.command("backup", "--json"), check=True, stdout=subprocess.PIPE)
        run = json.loads(done.stdout)["save"]
        header = next((machine.store / "blobark/web1/snapshots").glob(f"{day + 1:010}*")).stat().st_size
        assert run["segment_bytes"] + header < full / 50
        print(f"day {day}: {run['segment_bytes']:,} bytes of segments and {header:,} of header, of {full:,}")
