"""Packs and equal content where things go wrong: kill -9, moving files, damage, lost answers; and how much is asked."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import tarfile
from collections import Counter
from pathlib import Path
from random import Random

import pytest
from azure.storage.blob import ContainerClient

from tests import fault_proxy as faults
from tests.fault_proxy import FaultProxy
from tests.manifests import content_keys, read_manifest
from tests.runs import Workspace, wait_until
from tests.test_crash import killed_when
from tests.trees import write
from tools.compare import differences

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MIB = 1024 * 1024
CONTENT = "/web1_"
INDEX = ".blobark-pack.jsonl.zst"
SMALL = 300


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A tree of small files in a few folders; half of each gets smaller."""
    top = tmp_path / "source"
    dice = Random(3)
    for number in range(SMALL):
        write(top / str(number % 7) / f"file-{number:03}", dice.randbytes(2000) + b"text " * 400)
    return top


@pytest.fixture
def in_folder(tmp_path: Path, source: Path) -> Workspace:
    return Workspace(tmp_path / "work", source, server="web1", pack_below="64KiB")


@pytest.fixture
def workspace(tmp_path: Path, source: Path, proxy: FaultProxy, azure_container: tuple[str, str]) -> Workspace:
    """The tree, and a store behind the proxy."""
    text, name = azure_container
    return Workspace.on_azure(tmp_path / "work", source, proxy.rewire(text), name, pack_below="64KiB")


def check_restored(workspace: Workspace) -> None:
    assert differences(str(workspace.source), str(workspace.restored)) == []


def members(data: bytes) -> list[str]:
    """Return the names in a pack, without its index; of another blob, none."""
    plain = zstd.decompress(data) if data.startswith(b"\x28\xb5\x2f\xfd") else data
    if plain[257:262] != b"ustar":
        return []
    with tarfile.open(fileobj=io.BytesIO(plain)) as tar:
        return [name for name in tar.getnames() if name != INDEX]


def blobs(workspace: Workspace) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in workspace.store.glob("[0-9a-f][0-9a-f]/*")}


# How much is asked of the store


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_neighbours_take_one_request(workspace: Workspace, proxy: FaultProxy, compression: str) -> None:
    workspace.configure(compression=compression)
    workspace.run("index")
    plan = workspace.run("save", "--dry-run").result
    assert (plan["packed"], plan["packs"], plan["requests"]["put blob"]) == (SMALL, 1, 1)
    proxy.reset_counts()
    saved = workspace.run("save").result
    assert len(proxy.logged("PUT", CONTENT)) == 1
    assert (saved["packed"], saved["packs"], saved["blobs"], saved["audited"]) == (SMALL, 1, 1, 1)
    assert workspace.run("restore", "--dry-run").result["requests"]["get blob"] == 1
    proxy.reset_counts()
    workspace.run("restore")
    check_restored(workspace)
    assert len(proxy.logged("GET", CONTENT)) == 1

    for number in range(0, SMALL, 2):  # what lies between them is read with them
        (workspace.restored / str(number % 7) / f"file-{number:03}").unlink()
    (first, last) = workspace.restored / "0" / "file-000", workspace.restored / "6" / "file-293"
    proxy.reset_counts()
    assert workspace.run("restore").result["kept"] == SMALL // 2
    assert len(proxy.logged("GET", CONTENT)) == 1
    first.unlink()
    last.unlink()
    proxy.reset_counts()
    assert workspace.run("restore").result["kept"] == SMALL - 2
    requests = proxy.logged("GET", CONTENT)
    assert len(requests) == 2
    assert proxy.bytes_out["GET"] < 600_000  # one frame each, and the manifest


def test_an_unchanged_tree_asks_nothing_of_packs(workspace: Workspace, proxy: FaultProxy) -> None:
    workspace.backup()
    proxy.reset_counts()
    assert workspace.backup().result["sent"] == 0
    assert proxy.logged("PUT", CONTENT) == []
    assert proxy.logged("GET", CONTENT) == []


def test_a_renamed_folder_is_not_sent_again(workspace: Workspace) -> None:
    workspace.backup()
    (workspace.source / "3").rename(workspace.source / "renamed")
    assert workspace.backup().result["sent"] == 0
    workspace.run("restore")
    check_restored(workspace)


def test_a_pack_that_is_gone_before_a_rename_is_sent_again(workspace: Workspace, container: ContainerClient) -> None:
    workspace.backup()
    [key] = [blob.name for blob in container.list_blobs("web1_")]
    container.delete_blob(key)
    (workspace.source / "3").rename(workspace.source / "renamed")
    saved = workspace.backup().result
    assert saved["sent"] == len(list((workspace.source / "renamed").iterdir()))


# What happens on the way


def test_a_pack_that_arrives_changed_is_sent_again(workspace: Workspace, proxy: FaultProxy) -> None:
    workspace.run("index")
    proxy.add(faults.flip_request(method="PUT", where=CONTENT))
    saved = workspace.run("save").result
    assert (saved["complete"], saved["sent_again"], saved["packs"], saved["audited"]) == (True, SMALL, 2, 1)
    workspace.run("restore")
    check_restored(workspace)


def test_a_lost_answer_does_no_harm(workspace: Workspace, proxy: FaultProxy, container: ContainerClient) -> None:
    workspace.run("index")
    proxy.add(faults.lose_answer(method="PUT", where=CONTENT))
    saved = workspace.run("save").result
    assert (saved["complete"], saved["packs"]) == (True, 1)
    assert len([blob.name for blob in container.list_blobs("web1_")]) == 1
    workspace.run("restore")
    check_restored(workspace)


def test_a_lost_answer_for_a_pack_that_nobody_may_read_does_no_harm(workspace: Workspace, proxy: FaultProxy) -> None:
    workspace.configure(access_tier="archive")
    workspace.run("index")
    proxy.add(faults.lose_answer(method="PUT", where=CONTENT))
    saved = workspace.run("save").result
    assert (saved["complete"], saved["sent"]) == (True, SMALL)
    workspace.run("restore", "--rehydrate", "high")
    check_restored(workspace)


def test_what_moves_while_it_is_packed(in_folder: Workspace, source: Path) -> None:
    in_folder.run("index")
    write(source / "0" / "file-000", b"another version")
    (source / "1" / "file-001").unlink()
    (source / "2" / "file-002").unlink()
    (source / "2" / "file-002").mkdir()
    run = in_folder.run("save", expect=3)
    saved = run.result
    assert run.failed(in_folder).keys() == {"1/file-001", "2/file-002"}
    assert (saved["packed"], saved["blobs"]) == (SMALL - 3, 2)
    in_folder.run("restore", expect=3)
    assert (in_folder.restored / "0" / "file-000").read_bytes() == b"another version"
    assert (in_folder.restored / "0" / "file-007").read_bytes() == (source / "0" / "file-007").read_bytes()


def test_what_is_no_file_any_more_when_it_is_packed(in_folder: Workspace, source: Path) -> None:
    in_folder.run("index")
    fifo, folder, link, gone = (source / str(number) / f"file-{number:03}" for number in range(4))
    for path in (fifo, folder, link, gone):
        path.unlink()
    os.mkfifo(fifo)
    folder.mkdir()
    link.symlink_to("/dev/zero")
    run = in_folder.run("save", expect=3)
    assert run.result["packed"] == SMALL - 4
    assert run.failed(in_folder) == {
        "0/file-000": "is a fifo now",
        "1/file-001": "is a dir now",
        "2/file-002": "is a symlink now",
        "3/file-003": "vanished after it was indexed",
    }


def test_hard_links_and_attributes_of_packed_files(in_folder: Workspace, source: Path) -> None:
    os.link(source / "0" / "file-000", source / "another-name")
    os.setxattr(source / "0" / "file-007", "user.note", b"x\0y")
    in_folder.backup()
    in_folder.run("restore")
    check_restored(in_folder)


def test_a_map_made_elsewhere_has_its_blobs(in_folder: Workspace, source: Path) -> None:
    guid = "0a0b0c0d-0000-4000-8000-00000000000"
    names = [f"{number % 7}/file-{number:03}" for number in range(5)]
    in_folder.map.write_text(json.dumps({f"web1_{guid}{n}": str(source / name) for n, name in enumerate(names)}))
    in_folder.configure(compression="zstd", dedupe=True)
    saved = in_folder.run("save").result
    assert (saved["sent"], saved["packed"]) == (5, 0)
    assert blobs(in_folder) == {f"web1_{guid}{n}": (source / name).read_bytes() for n, name in enumerate(names)}


# kill -9


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough files for four packs: two of many bytes, one of many files, and the rest."""
    top = tmp_path_factory.mktemp("many") / "source"
    dice = Random(5)
    for number in range(4500):
        write(top / "tiny" / str(number % 20) / f"file-{number:04}", b"tiny %d" % number)
    for number in range(1200):
        write(top / "bytes" / str(number % 20) / f"file-{number:04}", dice.randbytes(60_000))
    return top


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_a_save_that_is_killed_again_and_again(tmp_path: Path, many: Path, compression: str) -> None:
    workspace = Workspace(tmp_path / "work", many, server="web1", pack_below="64KiB", compression=compression)
    workspace.run("index")
    kills = 0
    for packs in (1, 2, 3):
        kills += killed_when(workspace, "save", lambda packs=packs: len(content_keys(workspace.store)) >= packs)  # type: ignore[misc]
    assert kills
    there = len(content_keys(workspace.store))
    saved = workspace.run("save").result
    assert saved["complete"]
    assert len(content_keys(workspace.store)) == there + saved["packs"]
    packed = Counter(name for data in blobs(workspace).values() for name in members(data))
    assert len(packed) == 4500 + 1200
    assert set(packed.values()) == {1}, "something was sent twice"
    assert workspace.run("verify", "--read").result["damaged"] == 0


def test_a_cut_pack_of_a_killed_run_is_not_adopted(tmp_path: Path, many: Path) -> None:
    workspace = Workspace(tmp_path / "work", many, server="web1", pack_below="64KiB")
    workspace.run("index")
    assert killed_when(workspace, "save", lambda: len(content_keys(workspace.store)) >= 1)
    for file in workspace.store.glob("[0-9a-f][0-9a-f]/*"):  # as a loss of power may leave it
        os.truncate(file, file.stat().st_size // 2)
    assert workspace.run("save").result["complete"]
    workspace.run("restore")
    check_restored(workspace)


def test_a_pack_of_a_killed_save_is_adopted(
    workspace: Workspace, proxy: FaultProxy, container: ContainerClient
) -> None:
    for number in range(4000):
        write(workspace.source / "tiny" / f"file-{number:04}", b"tiny %d" % number)
    workspace.configure(max_workers=1)
    workspace.run("index")
    second = faults.hang(method="PUT", where=CONTENT, holds=b"file-3999")  # not the first one, sent again
    proxy.add(second)
    with workspace.started("save") as process:
        wait_until(lambda: second.fired, process)
        process.kill()
    saved = workspace.run("save").result
    assert (saved["complete"], saved["packs"]) == (True, 1)
    found = [container.download_blob(blob.name).readall() for blob in container.list_blobs("web1_")]
    assert len(found) == 2
    packed = Counter(name for data in found for name in members(data))
    assert (len(packed), set(packed.values())) == (4000 + SMALL, {1})
    workspace.run("restore")
    check_restored(workspace)


# Damage


def damage(workspace: Workspace, path: str, *, where: int = 0) -> None:
    """Change a byte of the stored content of a file."""
    [[blob, offset, length, *_]] = read_manifest(workspace.store)[0, path.encode()]["extents"]
    file = workspace.store / blob[-2:] / blob
    file.chmod(0o600)
    data = bytearray(file.read_bytes())
    data[offset + (where or length // 2)] ^= 1
    file.write_bytes(data)


def pack(workspace: Workspace) -> Path:
    [file] = workspace.store.glob("[0-9a-f][0-9a-f]/*")
    file.chmod(0o600)
    return file


def test_a_damaged_range_fails_its_file(in_folder: Workspace) -> None:
    in_folder.backup()
    damage(in_folder, "3/file-003")
    run = in_folder.run("restore", expect=3)
    assert [path for path, _ in run.result["failed"]] == ["3/file-003"]
    assert run.result["written"] == SMALL - 1


def test_a_damaged_frame_fails_the_files_in_it(in_folder: Workspace) -> None:
    in_folder.configure(compression="zstd")
    in_folder.backup()
    damage(in_folder, "3/file-003")
    frames: Counter[int] = Counter()
    for entry in read_manifest(in_folder.store).values():
        if entry.get("extents"):
            frames[entry["extents"][0][1]] += 1
    hit = read_manifest(in_folder.store)[0, b"3/file-003"]["extents"][0][1]
    run = in_folder.run("restore", expect=3)
    assert "3/file-003" in [path for path, _ in run.result["failed"]]
    assert 0 < len(run.result["failed"]) <= frames[hit] < SMALL
    assert run.result["written"] == SMALL - len(run.result["failed"])


def test_a_truncated_pack_gives_what_is_left(in_folder: Workspace) -> None:
    in_folder.backup()
    cut = read_manifest(in_folder.store)[0, b"3/file-003"]["extents"][0][1]
    os.truncate(pack(in_folder), cut)
    run = in_folder.run("restore", expect=3)
    lost = {path for path, _ in run.result["failed"]}
    extents = {
        path.decode(): entry["extents"]
        for (_, path), entry in read_manifest(in_folder.store).items()
        if "extents" in entry
    }
    assert lost == {path for path, [[_, offset, length, _]] in extents.items() if offset + length > cut}


def test_a_missing_pack_is_named_with_each_of_its_files(in_folder: Workspace, source: Path) -> None:
    write(source / "large", os.urandom(100_000))
    in_folder.backup()
    [key] = {entry["extents"][0][0] for entry in read_manifest(in_folder.store).values() if "extents" in entry}
    (in_folder.store / key[-2:] / key).unlink()
    run = in_folder.run("restore", expect=3)
    assert len(run.result["failed"]) == SMALL
    assert all(reason == f"its blob {key} is missing from the store" for _, reason in run.result["failed"])
    assert (in_folder.restored / "large").read_bytes() == (source / "large").read_bytes()


def test_a_pack_below_the_archive_tier_is_asked_for_once(workspace: Workspace, container: ContainerClient) -> None:
    workspace.backup()
    [key] = [blob.name for blob in container.list_blobs("web1_")]
    container.get_blob_client(key).set_standard_blob_tier("Archive")
    plan = workspace.run("restore", "--dry-run").result
    assert (plan["archived"], plan["requests"]["rehydrate"]) == (SMALL, 1)


# Equal content once


@pytest.mark.parametrize("packs", ["0", "64KiB"])
def test_equal_content_is_sent_once(tmp_path: Path, packs: str) -> None:
    source = tmp_path / "source"
    large = os.urandom(10 * MIB)
    for number in range(900):
        write(source / str(number % 13) / f"file-{number:03}", b"content %d" % (number % 7) * 100)
    for number in range(4):
        write(source / f"large-{number}", large if number < 3 else os.urandom(10 * MIB))
    workspace = Workspace(tmp_path / "work", source, server="web1", pack_below=packs, dedupe=True)
    saved = workspace.backup().result
    assert (saved["sent"], saved["equal"]) == (7 + 2, 893 + 2)
    contents = Counter(name for data in blobs(workspace).values() for name in members(data))
    assert len(blobs(workspace)) + len(contents) - saved["packs"] == 9
    workspace.run("restore")
    check_restored(workspace)

    first = min(path for path in workspace.guids() if path.startswith("large"))
    (source / first).unlink()
    write(source / "large-again", large)
    write(source / "file-again", b"content 3" * 100)
    shutil.rmtree(workspace.state)
    again = workspace.backup().result
    assert (again["sent"], again["equal"]) == (0, 2)
    shutil.rmtree(workspace.restored)
    workspace.run("restore")
    check_restored(workspace)


def test_content_that_no_snapshot_names_any_more_is_sent_again(in_folder: Workspace, source: Path) -> None:
    in_folder.configure(dedupe=True)
    in_folder.backup()
    content = (source / "3" / "file-003").read_bytes()
    (source / "3" / "file-003").unlink()
    in_folder.backup()
    write(source / "again", content)
    assert in_folder.backup().result["sent"] == 1


def test_equal_content_after_a_kill_is_sent_once(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for number in range(3000):
        write(source / str(number % 13) / f"file-{number:04}", b"content %d" % (number % 600) * 100)
    workspace = Workspace(tmp_path / "work", source, server="web1", dedupe=True)
    workspace.run("index")
    killed_when(workspace, "save", lambda: len(content_keys(workspace.store)) > 100)
    saved = workspace.run("save").result
    assert saved["complete"]
    workspace.run("restore")
    check_restored(workspace)
    content = Counter(blobs(workspace).values())
    unnamed = len(content_keys(workspace.store)) - 600  # blobs whose outcome the killed run had not noted yet
    assert len(content) == 600
    assert 0 <= unnamed <= 100


def test_equal_content_that_is_gone_from_the_store_is_sent_again(in_folder: Workspace, source: Path) -> None:
    in_folder.configure(dedupe=True, pack_below=0)
    for name in ("x/one", "x/two", "x/three"):
        write(source / name, b"equal content " * 50)
    in_folder.backup()
    [lost] = [key for path, key in in_folder.guids().items() if path.startswith("x/")]
    (in_folder.store / lost[-2:] / lost).unlink()
    (source / "x").rename(source / "y")
    saved = in_folder.backup().result
    assert (saved["sent"], saved["equal"]) == (1, 2)
    in_folder.run("restore")
    check_restored(in_folder)


def test_a_damaged_table_of_contents_is_made_anew(in_folder: Workspace, source: Path) -> None:
    in_folder.configure(dedupe=True)
    in_folder.backup()
    (in_folder.state / "contents.sqlite").write_bytes(b"no database" * 1000)
    write(source / "again", (source / "3" / "file-003").read_bytes())
    saved = in_folder.backup().result
    assert (saved["sent"], saved["equal"]) == (0, 1)


def test_equal_content_that_arrives_changed_is_sent_again(workspace: Workspace, proxy: FaultProxy) -> None:
    workspace.configure(dedupe=True, pack_below=0)
    for number in range(5):
        write(workspace.source / f"equal-{number}", b"ever the same " * 40)
    workspace.run("index")
    proxy.add(faults.flip_request(method="PUT", where=CONTENT, holds=b"ever the same "))
    saved = workspace.run("save").result
    assert (saved["complete"], saved["sent_again"]) == (True, 5)
    workspace.run("restore")
    check_restored(workspace)


# The rebuild


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_packs_and_compressed_blobs_are_rescued(
    workspace: Workspace, container: ContainerClient, compression: str
) -> None:
    write(workspace.source / "text", b"some text, many times\n" * 20_000)
    os.setxattr(workspace.source / "0" / "file-000", "user.note", b"x")
    workspace.configure(compression=compression)
    workspace.backup()
    for blob in container.list_blobs("blobark/"):
        container.delete_blob(blob.name)
    done = workspace.run("rebuild", expect=3).result
    assert (done["files"], done["lost"], done["older"]) == (SMALL + 1, 0, 0)
    workspace.run("restore", expect=3)
    files = {path for path in workspace.source.rglob("*") if path.is_file()}
    for path in files:
        restored = workspace.restored / path.relative_to(workspace.source)
        assert restored.read_bytes() == path.read_bytes()
        assert restored.stat().st_mtime_ns == path.stat().st_mtime_ns
    assert os.getxattr(workspace.restored / "0" / "file-000", "user.note") == b"x"
