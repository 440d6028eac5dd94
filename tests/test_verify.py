"""`blobark verify`: real damage, in a folder and in Azurite; what it names, whom that hurts, and what is no damage."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest
from azure.storage.blob import ContainerClient, StandardBlobTier

from tests import fault_proxy as faults
from tests.damage import Machine, flipped, hurt, machine_at, mixed_tree, write_huge
from tests.fault_proxy import FaultProxy
from tests.forge import Forge, item
from tests.trees import make_tree, write

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MIB = 1024 * 1024


@pytest.fixture
def source(tmp_path: Path) -> Path:
    top = mixed_tree(tmp_path / "source")
    os.link(top / "some" / "00", top / "link")
    return top


@pytest.fixture
def machine(where: str, tmp_path: Path, source: Path, request: pytest.FixtureRequest) -> Machine:
    return machine_at(where, tmp_path / "work", source, request)


@pytest.mark.parametrize("settings", [{}, {"compression": "zstd"}, {"pack_below": "64KiB", "compression": "zstd"}])
def test_what_is_whole_is_found_whole(
    where: str, tmp_path: Path, source: Path, request: pytest.FixtureRequest, settings: dict[str, Any]
) -> None:
    machine = machine_at(where, tmp_path / "work", source, request, dedupe=True, **settings)
    write(source / "some" / "equal", (source / "some" / "03").read_bytes())
    machine.backup()
    write(source / "new", b"new")
    machine.backup()
    run = machine.run("verify")
    assert (run.result["snapshots"], run.result["items"], run.result["damaged"]) == (2, [], 0)
    assert run.result["blobs"] == len(machine.keys("web1_"))
    assert run.result["read_bytes"] == 0
    run = machine.run("verify", "--read")
    assert run.result["damaged"] == 0
    stored = sum(len(machine.blob(key)) for key in machine.keys("web1_"))
    assert 0.97 * stored < run.result["read_bytes"] <= stored  # headers and indexes of packs have no digest


def test_every_kind_of_file_is_read(tmp_path: Path) -> None:
    make_tree(tmp_path / "source")
    machine = Machine(tmp_path / "work", tmp_path / "source", server="web1")
    machine.backup()
    assert machine.run("verify", "--read").result["damaged"] == 0


def test_a_listing_sees_what_is_missing_or_has_another_length(machine: Machine) -> None:
    machine.backup()
    guids = machine.guids()
    machine.damage(guids["some/03"], None)
    machine.damage(guids["large"], machine.blob(guids["large"])[:-1])
    machine.damage(guids["some/05"], machine.blob(guids["some/05"]) + b"more")
    machine.damage(guids["skipped/"], None)
    machine.damage(guids["some/07"], flipped(machine.blob(guids["some/07"])))
    write(machine.source / "other", b"other")
    machine.backup()
    run = machine.run("verify", expect=7)
    assert hurt(run, machine) == {
        guids["some/03"]: {"some/03"},
        guids["large"]: {"large"},
        guids["some/05"]: {"some/05"},
        guids["skipped/"]: {"skipped"},
    }
    assert {row["snapshots"] for row in run.result["items"]} == {"1-2"}
    whats = {row["blob"]: row["what"] for row in run.result["items"]}
    assert whats[guids["some/03"]] == "is missing"
    assert whats[guids["large"]] == "is cut short: it has 12,582,911 bytes of 12,582,912"
    assert whats[guids["some/05"]] == "is not what was saved: it has 5,504 bytes in place of 5,500"
    assert (run.result["damaged"], run.result["hurt"], run.code) == (4, 4, 7)
    assert hurt(machine.run("verify", "--snapshot", "2", expect=7), machine) == hurt(run, machine)


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_reading_sees_a_flipped_bit(
    where: str, tmp_path: Path, source: Path, request: pytest.FixtureRequest, compression: str
) -> None:
    machine = machine_at(where, tmp_path / "work", source, request, compression=compression)
    machine.backup()
    wrong = {key for key in machine.keys("web1_") if machine.blob(key)}
    for key in wrong:
        data = machine.blob(key)
        machine.damage(key, flipped(data, len(data) // 2))
    assert machine.run("verify").result["damaged"] == 0
    run = machine.run("verify", "--read", expect=7)
    found = hurt(run, machine)
    assert found.keys() == wrong
    names = {f"some/{number:02}" for number in range(12)} | {"large", "text", "sparse", "link"}
    assert {path for paths in found.values() for path in paths} == names
    assert {row["what"] for row in run.result["items"]} == {"holds other content than was saved"}


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_of_a_pack_only_the_files_in_the_damage_are_named(
    where: str, tmp_path: Path, request: pytest.FixtureRequest, compression: str
) -> None:
    source = tmp_path / "source"
    dice = Random(2)
    for number in range(300):
        write(source / f"{number:03}", dice.randbytes(4000))
    machine = machine_at(where, tmp_path / "work", source, request, pack_below="64KiB", compression=compression)
    machine.backup()
    (pack,) = machine.keys("web1_")
    data = machine.blob(pack)
    begin = (source / "150").read_bytes()[:3000]
    place = data.find(begin)
    assert place > 0
    machine.damage(pack, flipped(data, place + 100))
    assert machine.run("verify").result["damaged"] == 0
    names = hurt(machine.run("verify", "--read", expect=7), machine)[pack]
    assert "150" in names
    assert len(names) == 1 if compression == "none" else 40 < len(names) < 80  # the frame of 256 KiB
    machine.damage(pack, data[:place])
    for options in ([], ["--read"]):
        names = hurt(machine.run("verify", *options, expect=7), machine)[pack]
        assert names >= {f"{number:03}" for number in range(150 if compression == "none" else 200, 300)}
        assert "010" not in names


def test_extents_that_lie_in_several_blobs(
    where: str, tmp_path: Path, source: Path, request: pytest.FixtureRequest
) -> None:
    machine = machine_at(where, tmp_path / "work", source, request, delta="extents", dedupe=True)
    machine.backup()
    first = machine.guids()["large"]
    data = (source / "large").read_bytes()
    write(source / "large", data[: 9 * MIB] + b"changed" + data[9 * MIB :])
    shutil.copy(source / "some" / "04", source / "equal")
    machine.backup()
    own = set(machine.keys("web1_")) - set(machine.guids().values())
    machine.damage(first, flipped(machine.blob(first), 1000))
    run = machine.run("verify", "--read", expect=7)
    assert [(row["blob"], row["snapshots"]) for row in run.result["items"]] == [(first, "1-2")]
    assert run.result["read_bytes"] < 35 * MIB  # what both versions name was read once
    assert first in own
    four = machine.guids()["some/04"]
    machine.damage(four, None)
    found = hurt(machine.run("verify", expect=7), machine)
    assert found == {four: {"some/04", "equal"}}


def test_segments_headers_and_who_the_server_is(machine: Machine) -> None:
    machine.backup()
    write(machine.source / "new", b"new")
    machine.backup()
    first = "blobark/web1/snapshots/0000000001"
    for key in (first, "blobark/web1/server.json"):
        machine.damage(key, b"{" + machine.blob(key))
    run = machine.run("verify", "--read", expect=7)
    told = {row["blob"]: (row["path"], row["snapshots"]) for row in run.result["items"]}
    assert told == {first: ("", "1"), "blobark/web1/server.json": ("", "1-2")}
    assert run.result["snapshots"] == 1
    refs = json.loads(machine.blob("blobark/web1/snapshots/0000000002"))["segments"]
    shared = f"blobark/web1/segments/{refs[0]['digest']}"
    machine.damage(shared, flipped(machine.blob(shared), 20))
    assert shared in hurt(machine.run("verify", expect=7), machine)
    machine.damage(shared, None)
    run = machine.run("verify", expect=7)
    assert next(row["what"] for row in run.result["items"] if row["blob"] == shared).endswith(
        "is missing from the store; what it names was not checked"
    )


def test_a_list_of_blocks(tmp_path: Path) -> None:
    source = tmp_path / "source"
    size = write_huge(source / "huge")
    machine = Machine(tmp_path / "work", source, server="web1")
    machine.backup()
    (key,) = machine.keys("blobark/web1/blocks/")
    assert machine.run("verify", "--read").result["read_bytes"] == size
    machine.damage(key, flipped(machine.blob(key), 30))
    run = machine.run("verify", expect=7)
    assert hurt(run, machine) == {key: {"huge"}}
    assert "is damaged; the files that it helps to compare are whole" in run.result["items"][0]["what"]
    machine.damage(key, None)
    run = machine.run("verify", "--read", expect=7)
    assert (run.result["read_bytes"], run.result["damaged"]) == (size, 1)


def test_an_entry_that_cannot_be_is_named(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "work", tmp_path / "source", server="web1")
    forge = Forge(machine.store)
    forge.snapshot(forge.file("a"), {**forge.file("b"), "digest": "none"}, item("link", "symlink", link="a"))
    run = machine.run("verify", "--read", expect=7)
    (row,) = run.result["items"]
    assert (row["path"], row["what"]) == ("/srv/data/b", "has an entry that cannot be: it has no digest")


def test_a_content_in_several_places_without_blocks(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "work", tmp_path / "source", server="web1")
    forge = Forge(machine.store)
    parts = [forge.blob(b"one"), forge.blob(b"two")]
    extents = [[f"web1_{guid}", 0, 3, 3] for guid in parts]
    forge.snapshot({**forge.file("joined", b"onetwo"), "extents": extents})
    assert machine.run("verify", "--read").result["read_bytes"] == 6
    forge.write(f"web1_{parts[1]}", b"TWO")
    assert hurt(machine.run("verify", "--read", expect=7), machine).keys() == {f"web1_{guid}" for guid in parts}


def test_two_servers_in_one_store_are_apart(machine: Machine, tmp_path: Path) -> None:
    other = Machine(tmp_path / "other", machine.source, **{**machine.settings, "server": "web10"})
    other.configure(state_dir=str(tmp_path / "other" / "state"), guid_mapping_file=str(tmp_path / "other" / "map.json"))
    machine.backup()
    other.backup()
    machine.damage(json.loads((tmp_path / "other" / "map.json").read_bytes()).popitem()[0], None)
    assert machine.run("verify", "--read").result["server"] == "web1"
    assert other.run("verify", expect=7).result["damaged"] == 1
    assert machine.run("verify", "--server", "web10", expect=7).result["damaged"] == 1


def test_samples_go_round(machine: Machine) -> None:
    machine.backup()
    stored = sum(len(machine.blob(key)) for key in machine.keys("web1_"))
    runs = [machine.run("verify", "--read", "--sample", "25%").result for _ in range(4)]
    assert sum(run["read_bytes"] for run in runs) == stored
    assert max(run["read_bytes"] for run in runs) < stored
    key = machine.guids()["some/06"]
    machine.damage(key, flipped(machine.blob(key)))
    codes = [machine.run("verify", "--read", "--sample", "25%", expect=None).code for _ in range(4)]
    assert sorted(codes) == [0, 0, 0, 7]
    machine.run("verify", "--sample", "5%", expect=2)


def test_a_person_sees_some_of_it_and_a_count(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for number in range(60):
        write(source / f"{number:02}", f"{number}")
    machine = Machine(tmp_path / "work", source, server="web1")
    machine.backup()
    for folder in machine.store.glob("[0-9a-f][0-9a-f]"):
        shutil.rmtree(folder)
    text = machine.execute("verify").stdout.decode()
    assert len(re.findall("^DAMAGED web1_", text, re.MULTILINE)) == 20
    assert "... and 40 more" in text
    assert re.search("DAMAGED +60 blobs, hurting 60 paths", text)
    text = machine.execute("verify", "-v").stdout.decode()
    assert len(re.findall("^DAMAGED web1_", text, re.MULTILINE)) == 60


# What is no damage


@pytest.fixture
def behind_proxy(tmp_path: Path, source: Path, proxy: FaultProxy, azure_container: tuple[str, str]) -> Machine:
    text, name = azure_container
    return Machine.on_azure(tmp_path / "work", source, proxy.rewire(text), name)


def test_a_store_that_is_busy_is_asked_again(behind_proxy: Machine, proxy: FaultProxy) -> None:
    behind_proxy.backup()
    proxy.add(
        faults.answer(503, "ServerBusy", where="/web1_", times=3),
        faults.answer(500, "InternalError", where="comp=list", times=2),
        faults.cut_answer(where="/segments/"),
        faults.flip_answer(where="/web1_", skip=4),
    )
    run = behind_proxy.run("verify", "--read")
    assert run.result["damaged"] == 0


def test_a_store_that_refuses_says_nothing_of_the_data(behind_proxy: Machine, proxy: FaultProxy) -> None:
    behind_proxy.backup()
    proxy.add(faults.answer(403, "AuthenticationFailed", where="/web1_", skip=3))
    run = behind_proxy.run("verify", "--read", expect=4)
    assert "AuthenticationFailed" in run.stderr


def test_a_snapshot_of_a_newer_version_cannot_be_checked(tmp_path: Path, source: Path) -> None:
    machine = Machine(tmp_path / "work", source, server="web1")
    machine.backup()
    machine.backup()
    (header,) = machine.store.glob("blobark/web1/snapshots/0000000001*")
    header.write_text(json.dumps({**json.loads(header.read_bytes()), "requires": ["encryption"]}))
    run = machine.run("verify", expect=3)
    assert run.result["damaged"] == 0
    assert run.result["failed"] == [
        ["snapshot 1", "snapshot 1 of web1 needs a newer Blobark: it is of format 1 with encryption"]
    ]


def test_archived_blobs_are_listed_and_not_read(
    tmp_path: Path, source: Path, azure_container: tuple[str, str], container: ContainerClient
) -> None:
    machine = Machine.on_azure(tmp_path / "work", source, *azure_container)
    machine.backup()
    names = ["some/01", "some/02", "large"]
    for name in names:
        container.get_blob_client(machine.guids()[name]).set_standard_blob_tier(StandardBlobTier.ARCHIVE)
    run = machine.run("verify", "--read")
    archived = sum((source / name).stat().st_size for name in names)
    assert (run.result["archived"], run.result["damaged"]) == (3, 0)
    assert run.result["read_bytes"] == run.result["blob_bytes"] - archived


def test_what_only_a_pruned_snapshot_named_is_no_damage(
    behind_proxy: Machine, proxy: FaultProxy, container: ContainerClient
) -> None:
    behind_proxy.backup()
    gone = behind_proxy.guids()["some/01"]
    write(behind_proxy.source / "some" / "01", b"another version")
    behind_proxy.backup()

    def prune() -> None:
        container.delete_blob("blobark/web1/snapshots/0000000001")
        container.delete_blob(gone)

    proxy.add(faults.meanwhile(prune, where="prefix=web1_"))
    run = behind_proxy.run("verify")
    assert run.result["damaged"] == 0


def test_only_snapshots_that_exist_are_said_to_be_hurt(tmp_path: Path) -> None:
    write(tmp_path / "source" / "file", "kept")
    machine = Machine(tmp_path / "work", tmp_path / "source", server="web1")
    for _ in range(4):
        machine.backup()
    machine.run("forget", "3", "--yes")
    machine.damage(machine.guids()["file"], None)
    (row,) = machine.run("verify", expect=7).result["items"]
    assert row["snapshots"] == "1-2, 4"


def test_nothing_is_written(machine: Machine) -> None:
    machine.backup()
    before = {key: machine.blob(key) for key in machine.keys("")}
    machine.run("verify", "--read")
    machine.damage(machine.guids()["some/01"], None)
    machine.run("verify", "--read", expect=7)
    machine.run("repair", expect=7)
    del before[machine.guids()["some/01"]]
    assert {key: machine.blob(key) for key in machine.keys("")} == before


def test_a_server_without_snapshots(tmp_path: Path, source: Path) -> None:
    machine = Machine(tmp_path / "work", source, server="web1")
    machine.store.mkdir(parents=True)
    assert "has no snapshot" in machine.run("verify", expect=4).stderr
    machine.backup()
    assert "has no snapshot 9" in machine.run("verify", "--snapshot", "9", expect=4).stderr


def test_zstd_frames_that_hold_more_than_they_should_are_told(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "work", tmp_path / "source", server="web1")
    forge = Forge(machine.store)
    frame = zstd.compress(b"content")
    guid = forge.blob(frame)
    extents = [[f"web1_{guid}", 0, len(frame), 7, "zstd"]]
    forge.snapshot({**forge.file("a", b"content", guid=guid), "extents": extents})
    machine.run("verify", "--read")
    forge.write(f"web1_{guid}", zstd.compress(b"CONTENT"))
    machine.run("verify", "--read", expect=7)
