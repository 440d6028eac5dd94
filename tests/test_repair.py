"""`blobark repair`: what is damaged comes back from the living source; what cannot is never inherited."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from pathlib import Path
from random import Random
from typing import Any

import pytest
from azure.storage.blob import ContainerClient

from tests import fault_proxy as faults
from tests.azurite_server import AzuriteServer
from tests.damage import Machine, few_files, flipped, hurt, machine_at, mixed_tree, write_huge
from tests.fault_proxy import FaultProxy
from tests.runs import Workspace
from tests.tier_proxy import WormProxy
from tests.trees import write
from tools.compare import differences

MIB = 1024 * 1024
INDEX = ".blobark-pack.jsonl.zst"
PACK_DAMAGE = ("missing", "short", "short in a header", "flipped")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return mixed_tree(tmp_path / "source")


def blobs(machine: Machine, prefix: str = "") -> dict[str, bytes]:
    return {key: machine.blob(key) for key in machine.keys(prefix)}


def mend(machine: Machine, *, read: bool = True, expect: int = 0) -> dict[str, Any]:
    """Verify, then repair what that found; return the result of the repair."""
    found = machine.folder / "found.json"
    found.write_bytes(machine.execute("verify", *(["--read"] if read else []), "--json").stdout)
    return machine.run("repair", str(found), "--yes", expect=expect).result


def check_restored(machine: Workspace, *options: str) -> None:
    shutil.rmtree(machine.restored, ignore_errors=True)
    machine.run("restore", *options)
    found = differences(str(machine.source), str(machine.restored))
    assert [line for line in found if "skipped" not in line] == []


# All of it in a folder; on Azurite each kind and each way of storing once.
@pytest.mark.parametrize(
    ("where", "compression", "kind"),
    [
        *(("folder", how, kind) for how in ("none", "zstd") for kind in ("missing", "short", "long", "flipped")),
        ("azure", "none", "missing"),
        ("azure", "zstd", "short"),
        ("azure", "zstd", "long"),
        ("azure", "none", "flipped"),
    ],
    indirect=["where"],
)
def test_whole_files_come_back_byte_for_byte(
    where: str, tmp_path: Path, source: Path, request: pytest.FixtureRequest, compression: str, kind: str
) -> None:
    machine = machine_at(where, tmp_path / "work", source, request, compression=compression)
    machine.backup()
    before = blobs(machine, "web1_")
    metas = {key: machine.meta(key) for key in before}
    for key, data in before.items():
        changed = {"missing": None, "short": data[: len(data) // 2], "long": data + b"x", "flipped": b""}[kind]
        if kind == "flipped" and data:
            changed = flipped(data, len(data) // 2)
        if changed != data:
            machine.damage(key, changed)
    count = len(before) if kind in ("missing", "long") else len([data for data in before.values() if data])
    if compression == "zstd" and kind == "long":
        count = len(before)
    plan = machine.run("verify", "--read", expect=7).result
    assert plan["damaged"] == count
    result = mend(machine)
    assert (result["damaged"], result["mended"], result["left"]) == (count, count, 0)
    assert blobs(machine, "web1_") == before
    assert {key: machine.meta(key) for key in before} == metas
    assert machine.run("verify", "--read").result["damaged"] == 0
    check_restored(machine)


def test_nothing_is_changed_without_yes(machine: Machine) -> None:
    machine.backup()
    machine.damage(machine.guids()["some/01"], None)
    machine.damage(machine.guids()["large"], machine.blob(machine.guids()["large"])[:-5])
    write(machine.source / "large", b"other")
    before = blobs(machine)
    run = machine.run("repair", expect=7)
    assert {(row["blob"], row["mended"]) for row in run.result["items"]} == {
        (machine.guids()["some/01"], True),
        (machine.guids()["large"], False),
    }
    assert (run.result["mended"], run.result["left"], run.result["done"]) == (1, 1, False)
    assert blobs(machine) == before
    assert machine.run("save").result["sent"] == 0


@pytest.fixture
def machine(where: str, tmp_path: Path, source: Path, request: pytest.FixtureRequest) -> Machine:
    return machine_at(where, tmp_path / "work", source, request)


@pytest.fixture
def few(where: str, tmp_path: Path, request: pytest.FixtureRequest) -> Machine:
    return machine_at(where, tmp_path / "work", few_files(tmp_path / "few"), request)


def test_what_was_found_is_read_and_nothing_else(few: Machine) -> None:
    few.backup()
    wrong = [few.guids()[name] for name in ("some/01", "some/02")]
    for key in wrong:
        few.damage(key, flipped(few.blob(key)))
    assert few.run("repair").result["damaged"] == 0
    found = few.folder / "found.json"
    found.write_text(json.dumps({"items": [{"blob": wrong[0]}]}))
    result = few.run("repair", str(found), "--yes").result
    assert (result["mended"], result["verified"]["read_bytes"]) == (1, len(few.blob(wrong[0])))
    assert hurt(few.run("verify", "--read", expect=7), few).keys() == {wrong[1]}
    found.write_text("nonsense")
    assert "is not what" in few.run("repair", str(found), expect=2).stderr


# All of it in a folder; on Azurite each kind and each way of storing once.
@pytest.mark.parametrize(
    ("where", "compression", "kind"),
    [
        *(("folder", how, kind) for how in ("none", "zstd") for kind in PACK_DAMAGE),
        ("azure", "none", "missing"),
        ("azure", "zstd", "short"),
        ("azure", "none", "short in a header"),
        ("azure", "zstd", "flipped"),
    ],
    indirect=["where"],
)
def test_packs(where: str, tmp_path: Path, request: pytest.FixtureRequest, compression: str, kind: str) -> None:
    source = tmp_path / "source"
    dice = Random(2)
    for number in range(300):
        write(source / f"{number:03}", dice.randbytes(2000) + b"text " * 400)
    machine = machine_at(where, tmp_path / "work", source, request, pack_below="64KiB", compression=compression)
    machine.backup()
    (pack,) = machine.keys("web1_")
    data, meta = machine.blob(pack), machine.meta(pack)
    place = len(data) // 2
    header = place - place % 512 + 10
    while compression == "none" and data[header + 247 : header + 252] != b"ustar":
        header += 512
    cut = {"missing": None, "short": data[:place], "short in a header": data[:header], "flipped": flipped(data, place)}
    machine.damage(pack, cut[kind])
    assert mend(machine)["mended"] == 1
    assert machine.run("verify", "--read").result["damaged"] == 0
    check_restored(machine)
    if kind == "flipped":
        assert (machine.blob(pack), machine.meta(pack)) == (data, meta)
    elif compression == "none":
        with tarfile.open(fileobj=io.BytesIO(machine.blob(pack))) as tar:
            assert len(tar.getnames()) == 300


def test_a_pack_of_which_a_file_is_gone_stays_and_is_left_behind(
    where: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    source = tmp_path / "source"
    for number in range(50):
        write(source / f"{number:02}", f"content {number}" * 20)
    machine = machine_at(where, tmp_path / "work", source, request, pack_below="64KiB", dedupe=True)
    machine.backup()
    (pack,) = machine.keys("web1_")
    (source / "07").unlink()
    machine.damage(pack, None)
    result = mend(machine, expect=7)
    assert (result["mended"], result["left"], result["renewed"]) == (0, 1, 50)
    assert f"{source}/07 (vanished" in result["items"][0]["reason"]
    machine.backup()
    assert machine.run("verify", "--read", "--snapshot", "2").result["damaged"] == 0
    assert machine.run("verify", expect=7).result["hurt"] == 50
    check_restored(machine)


@pytest.mark.parametrize(
    ("where", "settings"),
    [
        ("folder", {}),
        ("folder", {"delta": "extents"}),
        ("folder", {"delta": "extents", "compression": "zstd"}),
        ("azure", {}),
        ("azure", {"delta": "extents"}),
    ],
    indirect=["where"],
)
def test_blocks_in_what_cannot_be_mended_are_not_taken_over(
    where: str, tmp_path: Path, source: Path, request: pytest.FixtureRequest, settings: dict[str, Any]
) -> None:
    """A blob that a living file still needs a part of: the next save stores the file anew."""
    machine = machine_at(where, tmp_path / "work", source, request, **settings)
    machine.backup()
    first = next(key for key in machine.keys("web1_") if len(machine.blob(key)) == 12 * MIB)
    data = (source / "large").read_bytes()
    write(source / "large", data[: 9 * MIB] + b"changed" + data[9 * MIB :])
    machine.backup()
    machine.damage(first, flipped(flipped(machine.blob(first), MIB), 9 * MIB))
    result = mend(machine, expect=7)
    assert (result["left"], result["renewed"]) == (1, 1 if settings else 0)
    machine.backup()
    newest = machine.run("snapshots").result["items"][-1]["number"]
    assert machine.run("verify", "--read", "--snapshot", str(newest)).result["damaged"] == 0
    check_restored(machine)


def test_a_damaged_block_comes_back_from_a_later_version(
    where: str, tmp_path: Path, source: Path, request: pytest.FixtureRequest
) -> None:
    machine = machine_at(where, tmp_path / "work", source, request, delta="extents")
    machine.backup()
    first = machine.guids()["large"]
    whole = (source / "large").read_bytes()
    write(source / "large", whole[: 9 * MIB] + b"changed" + whole[9 * MIB :])
    machine.backup()
    machine.damage(first, flipped(whole, MIB))
    assert mend(machine)["mended"] == 1
    assert machine.blob(first) == whole


def test_equal_content_that_is_lost_is_sent_again(where: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    source = few_files(tmp_path / "source")
    machine = machine_at(where, tmp_path / "work", source, request, dedupe=True)
    machine.backup()
    machine.backup()  # knows the contents of the first snapshot, whose segments are the second's
    data = (source / "some" / "03").read_bytes()
    machine.damage(machine.guids()["some/03"], None)
    (source / "some" / "03").unlink()
    assert mend(machine, expect=7)["left"] == 1
    write(source / "back", data)
    machine.backup()
    assert machine.run("verify", "--read", "--snapshot", "3").result["damaged"] == 0
    check_restored(machine)


def test_segments_header_and_description_come_from_the_state(few: Machine) -> None:
    few.backup()
    before = {key: data for key, data in blobs(few, "blobark/web1/").items() if "/lock" not in key}
    for key, data in before.items():
        few.damage(key, data[: len(data) // 2])  # a flipped letter may be one of a path
    assert mend(few, expect=3)["mended"] == 2
    assert mend(few, expect=3)["mended"] == len(before) - 2  # what a header names, once that is mended
    assert mend(few)["damaged"] == 0
    after = {key: few.blob(key) for key in before}
    owner = "blobark/web1/server.json"
    assert {**after, owner: b""} == {**before, owner: b""}
    assert json.loads(after[owner])["host"] == json.loads(before[owner])["host"]
    assert few.run("verify").result["damaged"] == 0
    shutil.rmtree(few.state)
    key = few.keys("blobark/web1/segments/")[0]
    few.damage(key, None)
    assert "only the state_dir" in few.run("repair", "--yes", expect=7).result["items"][0]["reason"]


def test_a_list_of_blocks_comes_from_the_content(tmp_path: Path) -> None:
    write_huge(tmp_path / "source" / "huge")
    machine = Machine(tmp_path / "work", tmp_path / "source", server="web1")
    machine.backup()
    (key,) = machine.keys("blobark/web1/blocks/")
    data = machine.blob(key)
    machine.damage(key, None)
    assert mend(machine, read=False)["mended"] == 1
    assert machine.blob(key) == data


def test_a_file_that_has_been_renamed_and_given_away_is_found(few: Machine) -> None:
    few.backup()
    key = few.guids()["some/03"]
    data = few.blob(key)
    (few.source / "some" / "03").rename(few.source / "elsewhere")
    few.backup()
    few.damage(key, b"")
    result = mend(few)
    assert result["items"][0]["source"] == f"{few.source}/elsewhere"
    assert few.blob(key) == data


def test_a_changed_file_is_not_taken(few: Machine) -> None:
    few.backup()
    file = few.source / "some" / "03"
    status = file.stat()
    file.write_bytes(flipped(file.read_bytes()))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    key = few.guids()["some/03"]
    few.damage(key, b"short")
    result = mend(few, expect=7)
    assert (result["mended"], result["left"]) == (0, 1)
    assert "another version now" in result["items"][0]["reason"]
    assert few.blob(key) == b"short"


def test_another_run_holds_the_lock(few: Machine) -> None:
    few.backup()
    hook = f"{few.command('repair')[0]} -m blobark repair --config {few.config}; test $? = 5"
    few.configure(hook_before=hook)
    assert few.run("backup").code == 0


# Azure


@pytest.fixture
def behind_proxy(tmp_path: Path, source: Path, proxy: FaultProxy, azure_container: tuple[str, str]) -> Machine:
    text, name = azure_container
    machine = Machine.on_azure(tmp_path / "work", source, proxy.rewire(text), name)
    machine.container = None
    return machine


@pytest.mark.parametrize("name", ["some/01", "large"])
def test_what_was_written_meanwhile_stays(
    behind_proxy: Machine, proxy: FaultProxy, container: ContainerClient, name: str
) -> None:
    behind_proxy.backup()
    key = behind_proxy.guids()[name]
    container.upload_blob(key, b"damaged", overwrite=True)

    def write_meanwhile() -> None:
        container.upload_blob(key, b"somebody else's", overwrite=True)

    where = f"/{key}?comp=blocklist" if name == "large" else f"/{key}"
    proxy.add(faults.meanwhile(write_meanwhile, method="PUT", where=where))
    run = behind_proxy.run("repair", "--yes", expect=7)
    assert "somebody else has written it" in run.result["items"][0]["reason"]
    assert container.download_blob(key).readall() == b"somebody else's"


@pytest.mark.parametrize("name", ["some/01", "large"])
@pytest.mark.parametrize("damage", ["missing", "short"])
def test_a_lost_answer(
    behind_proxy: Machine, proxy: FaultProxy, container: ContainerClient, name: str, damage: str
) -> None:
    behind_proxy.backup()
    key = behind_proxy.guids()[name]
    if damage == "missing":
        container.delete_blob(key)
    else:
        container.upload_blob(key, b"damaged", overwrite=True)
    where = f"/{key}?comp=blocklist" if name == "large" else f"/{key}"
    proxy.add(faults.lose_answer(method="PUT", where=where))
    assert behind_proxy.run("repair", "--yes").result["mended"] == 1
    assert container.download_blob(key).readall() == (behind_proxy.source / name).read_bytes()


@pytest.mark.parametrize("name", ["some/01", "large"])
def test_what_arrives_changed_is_not_called_mended(
    behind_proxy: Machine, proxy: FaultProxy, container: ContainerClient, name: str
) -> None:
    behind_proxy.backup()
    key = behind_proxy.guids()[name]
    container.upload_blob(key, b"damaged", overwrite=True)
    proxy.add(faults.flip_answer(method="GET", where=f"/{key}", skip=1 if name == "large" else 0))
    run = behind_proxy.run("repair", "--yes", expect=7)
    assert "not there as it was sent" in run.result["items"][0]["reason"]


@pytest.mark.parametrize("name", ["some/01", "large"])
def test_write_once(
    azurite: AzuriteServer,
    tmp_path: Path,
    source: Path,
    container: ContainerClient,
    azure_container: tuple[str, str],
    name: str,
) -> None:
    with WormProxy(azurite.port, container=container) as proxy:
        text, container_name = azure_container
        machine = Machine.on_azure(tmp_path / "work", source, proxy.rewire(text), container_name)
        machine.backup()
        key = machine.guids()[name]
        container.upload_blob(key, b"damaged", overwrite=True)
        run = machine.run("repair", "--yes", expect=7)
        assert "it is write-once and may not go yet" in run.result["items"][0]["reason"]
        assert run.result["renewed"] == 1
        machine.backup()
        assert machine.guids()[name] != key
        assert machine.run("verify", "--read", "--snapshot", "2").result["damaged"] == 0
        check_restored(machine)


@pytest.mark.parametrize("what", ["endless", "deep", "no JSON"])
def test_a_file_that_is_no_verification_is_told_in_one_line(tmp_path: Path, source: Path, what: str) -> None:
    machine = Machine(tmp_path / "one", source, server="web1", skip_path=["skipped"])
    machine.run("backup")
    file = tmp_path / "found"
    file.write_bytes(b'{"items":' + b"[" * 100_000 if what == "deep" else b"\xff")
    if what == "endless":
        file = Path("/dev/zero")
    (line,) = machine.run("repair", str(file), expect=2).stderr.splitlines()
    assert line.startswith(f"blobark: {file} is longer than 64 MiB" if what == "endless" else f"blobark: {file} is not")
