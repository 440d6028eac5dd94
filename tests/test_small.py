"""Packs, equal content once, compression: each alone and together, on a folder and on Azurite, end to end."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from azure.storage.blob import ContainerClient

from tests.manifests import read_header, read_manifest
from tests.runs import Workspace
from tests.trees import make_tree, write
from tools.compare import differences, facts_of

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MIB = 1024 * 1024
INDEX = ".blobark-pack.jsonl.zst"
PACKS: dict[str, Any] = {"pack_below": "64KiB"}
ZSTD: dict[str, Any] = {"compression": "zstd"}
ONCE: dict[str, Any] = {"dedupe": True}
CHOICES: dict[str, dict[str, Any]] = {
    "plain": {},
    "packs": PACKS,
    "compression": ZSTD,
    "dedupe": ONCE,
    "packs and compression": PACKS | ZSTD,
    "all": PACKS | ZSTD | ONCE,
}


@functools.cache
def text_of(size: int, seed: int) -> bytes:
    """Return content that gets much smaller, and repeats nowhere."""
    dice = Random(seed)
    words = [f"{dice.randrange(10**9)} words of line {number}\n" for number in range(size // 24)]
    return "".join(words).encode()[:size]


def fill(top: Path) -> None:
    """Add what the choices are for: many small files, equal ones, and large ones that get smaller."""
    dice = Random(1)
    for number in range(200):
        data = dice.randbytes(dice.randrange(3000)) if number % 2 else text_of(dice.randrange(9000), number)
        write(top / "many" / str(number % 9) / f"file-{number:03}", data)
        write(top / "equal" / str(number % 5) / f"file-{number:03}", b"equal %d" % (number % 10) * 50)
    write(top / "text", text_of(21 * MIB, 7))
    write(top / "text-again", (top / "text").read_bytes())
    write(top / "medium", text_of(MIB, 8))


def change(top: Path) -> None:
    """Make the second version: little of it is new."""
    text = (top / "text").read_bytes()
    write(top / "text", text[: 9 * MIB] + os.urandom(50_000) + text[9 * MIB :])
    write(top / "many" / "0" / "file-000", b"the second version")
    os.utime(top / "many" / "1" / "file-001", ns=(1, 1))
    (top / "many" / "2").rename(top / "many" / "renamed")
    (top / "many" / "3" / "file-003").unlink()
    (top / "equal" / "0" / "file-000").unlink()
    write(top / "equal" / "new", b"equal 3" * 50)
    write(top / "new-empty", b"")


def stored(workspace: Workspace, container: ContainerClient | None) -> dict[str, bytes]:
    """Return all content in the store, by another way than the code under test."""
    if container is None:
        return {file.name: file.read_bytes() for file in workspace.store.glob("[0-9a-f][0-9a-f]/*")}
    names = [blob.name for blob in container.list_blobs() if not blob.name.startswith("blobark/")]
    return {name: container.download_blob(name).readall() for name in names}


@pytest.fixture
def place(request: pytest.FixtureRequest) -> Iterator[tuple[dict[str, Any], ContainerClient | None]]:
    if request.param == "folder":
        yield {}, None
    else:
        text, name = request.getfixturevalue("azure_container")
        with ContainerClient.from_connection_string(text, name) as client:
            yield {"store": "azure", "connection_string": text, "container_name": name}, client


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tmp_path / "source"


@pytest.fixture
def workspace(tmp_path: Path, source: Path) -> Workspace:
    source.mkdir()
    return Workspace(tmp_path / "work", source, server="web1")


# All choices on a folder; on Azurite none and all of them, as a pack or a frame is but a blob to any store.
@pytest.mark.parametrize(
    ("place", "choice"),
    [*(("folder", choice) for choice in CHOICES), ("azure", "plain"), ("azure", "all")],
    indirect=["place"],
)
def test_two_versions_come_back_as_they_were(
    choice: str, place: tuple[dict[str, Any], ContainerClient | None], tmp_path: Path, source: Path
) -> None:
    settings, container = place
    fill(make_tree(source))
    workspace = Workspace(tmp_path / "work", source, server="web1", **settings, **CHOICES[choice])
    first = facts_of(str(source))
    saved = workspace.backup().result
    check_saved(workspace, saved, choice)
    check_map(workspace, stored(workspace, container), choice)
    shutil.rmtree(workspace.state)
    workspace.run("restore")
    assert differences(str(source), str(workspace.restored)) == []
    change(source)
    again = workspace.backup().result
    assert again["sent"] + again["equal"] == 4, again
    assert again["equal"] == ("dedupe" in CHOICES[choice])
    assert again["sent_bytes"] < (24 if container is None else 16) * MIB  # a folder copies nothing by itself
    workspace.run("restore", "--to", str(tmp_path / "second"))
    assert differences(str(source), str(tmp_path / "second")) == []
    workspace.run("restore", "--snapshot", "1", "--to", str(tmp_path / "second"))
    workspace.run("restore", "--snapshot", "1", "--to", str(tmp_path / "first"))
    assert facts_of(str(tmp_path / "first")) == first
    third = workspace.backup().result
    assert (third["sent"], third["segments_sent"]) == (0, 0)


def check_saved(workspace: Workspace, saved: dict[str, Any], choice: str) -> None:
    """Assert that the result of a first save says what each choice did."""
    settings = CHOICES[choice]
    assert (saved["packed"] > 200) == (saved["packs"] > 0) == ("pack_below" in settings)
    assert saved["blobs"] == saved["sent"] - saved["packed"] + saved["packs"]
    assert saved["equal"] == (1 + 190 + duplicates(workspace) if "dedupe" in settings else 0)
    assert (saved["stored_bytes"] < 0.75 * saved["plain_bytes"]) == ("compression" in settings)
    assert saved["sent_bytes"] == saved["stored_bytes"]


def duplicates(workspace: Workspace) -> int:
    """Return how many files of the tree, beside those that `fill` made equal, have another one's content."""
    contents: Counter[bytes] = Counter()
    for path, facts in facts_of(str(workspace.source)).items():
        is_small = 0 < int(str(facts.get("size", 0))) < MIB and not facts["holes"]
        if is_small and not path.startswith(b"equal/") and "linked to" not in facts:
            contents[str(facts["sha256"]).encode()] += 1
    return sum(count - 1 for count in contents.values())


def check_map(workspace: Workspace, blobs: dict[str, bytes], choice: str) -> None:
    """Assert that the map holds exactly the blobs that are files, bit for bit."""
    told = json.loads(workspace.map.read_bytes())
    plain = 0
    for key, path in told.items():
        if not path.endswith("/"):
            assert blobs[key] == Path(path).read_bytes(), path
            plain += 1
    assert plain >= 1
    small = [path for path in told.values() if "/many/" in path]
    if "pack_below" in CHOICES[choice]:
        assert small == []
    elif "compression" not in CHOICES[choice]:
        assert len(small) == 200
    else:
        assert 100 <= len(small) < 200


# What is stored is what standard tools read


def packs_of(workspace: Workspace) -> dict[str, bytes]:
    """Return the packs in a folder store, as tar files."""
    found = {}
    for file in workspace.store.glob("[0-9a-f][0-9a-f]/*"):
        data = file.read_bytes()
        plain = zstd.decompress(data) if data.startswith(b"\x28\xb5\x2f\xfd") else data
        if plain[257:262] == b"ustar":
            found[file.name] = plain
    return found


@pytest.mark.parametrize("choice", ["packs", "packs and compression"])
def test_tar_reads_a_pack(workspace: Workspace, source: Path, tmp_path: Path, choice: str) -> None:
    make_tree(source / "tree")
    (source / "tree" / "mode").chmod(0o640)
    workspace.configure(**CHOICES[choice])
    workspace.backup()
    [(key, plain)] = packs_of(workspace).items()
    is_compressed = (workspace.store / key[-2:] / key).read_bytes() != plain
    assert is_compressed == ("compression" in CHOICES[choice])
    pack = tmp_path / "pack.tar"
    pack.write_bytes(plain)
    listed = subprocess.run(["tar", "tf", str(pack)], capture_output=True, check=True)
    assert listed.stderr == b""
    assert len(listed.stdout.splitlines()) > 20
    (tmp_path / "out").mkdir()
    extracted = subprocess.run(["tar", "xf", str(pack), "-C", str(tmp_path / "out"), "-p"], capture_output=True)
    said = [line for line in extracted.stderr.splitlines() if b"implausibly old time stamp" not in line]
    assert (extracted.returncode, said) == (0, [])
    out = Path(f"{tmp_path}/out{source}")
    count = 0
    for folder, _, names in os.walk(os.fsencode(out)):
        for name in names:
            path = os.path.join(folder, name)
            ours = os.fsencode(source) + path[len(os.fsencode(out)) :]
            with open(path, "rb") as one, open(ours, "rb") as other:
                assert one.read() == other.read(), path
            there, wanted = os.lstat(path), os.lstat(ours)
            assert (there.st_mode, there.st_uid, there.st_gid) == (wanted.st_mode, wanted.st_uid, wanted.st_gid), path
            assert there.st_mtime == wanted.st_mtime_ns // 10**9
            count += 1
    assert (tmp_path / "out" / INDEX).exists()
    assert count == len(listed.stdout.splitlines()) - 1


def test_python_reads_a_pack_and_its_index(workspace: Workspace, source: Path) -> None:
    fill(source)
    workspace.configure(**PACKS)
    workspace.backup()
    [(key, plain)] = packs_of(workspace).items()
    entries = {path: entry for (_, path), entry in read_manifest(workspace.store).items() if entry.get("digest")}
    inside = 0
    with tarfile.open(fileobj=open_bytes(plain), encoding="utf-8", errors="surrogateescape") as tar:
        members = tar.getmembers()
        for member in members[:-1]:
            path = os.fsencode(member.name)[len(os.fsencode(source)) :]
            extents = [[key, member.offset_data, member.size, member.size]] if member.size else []
            assert entries[path]["extents"] == extents, path
            inside += 1
        assert members[-1].name == INDEX
        index = tar.extractfile(members[-1])
        assert index is not None
        first, *lines = [json.loads(line) for line in zstd.decompress(index.read()).splitlines()]
    assert first == {"format": 1, "roots": [{"name": str(source)}]}
    assert {line["path"].encode(): line for line in lines} == {
        path: entry
        for path, entry in entries.items()
        if entry.get("extents") == [] or key in json.dumps(entry.get("extents"))
    }
    assert inside == 400


def open_bytes(data: bytes) -> Any:
    import io

    return io.BytesIO(data)


def test_a_compressed_blob_is_a_zst_file(workspace: Workspace, source: Path) -> None:
    fill(source)
    workspace.configure(**ZSTD)
    workspace.backup()
    for (_, path), entry in read_manifest(workspace.store).items():
        if "extents" in entry:
            [[key, offset, length, size, codec]] = entry["extents"]
            data = (workspace.store / key[-2:] / key).read_bytes()
            assert (offset, length, codec) == (0, len(data), "zstd")
            content = (source / os.fsdecode(path)).read_bytes()
            assert zstd.decompress(data) == content
            assert len(content) == size
            if "blocks" in entry:
                assert sum(block[2] for block in entry["blocks"]) == len(data)
    assert read_header(workspace.store)["requires"] == ["zstd"]


def test_only_what_is_compressed_requires_it(workspace: Workspace, source: Path) -> None:
    for number in range(30):
        write(source / str(number), os.urandom(3000))
    workspace.configure(**PACKS, **ONCE)
    workspace.backup()
    assert read_header(workspace.store)["requires"] == []
    workspace.configure(pack_below=0, compression="zstd:19")
    write(source / "more", os.urandom(3000))
    saved = workspace.backup().result
    assert (saved["sent"], saved["plain_bytes"], saved["stored_bytes"]) == (1, 3000, 3000)
    assert read_header(workspace.store)["requires"] == []
