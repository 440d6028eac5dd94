"""The script that every container carries: it rebuilds snapshots with nothing but Python's standard library."""

from __future__ import annotations

import ast
import importlib.util
import os
import random
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from azure.storage.blob import ContainerClient
from blake3 import blake3

from tests import fault_proxy as faults
from tests.azurite_server import AzuriteServer
from tests.fault_proxy import FaultProxy
from tests.forge import Fields, Forge, item, lines
from tests.runs import REPOSITORY, Workspace
from tests.small_disk import as_root_of_a_namespace
from tests.test_names import STRANGE
from tests.trees import contents_of, make_tree, small_tree, write
from tools.compare import differences

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

SCRIPT = REPOSITORY / "blobark" / "container" / "rescue.py"
PACKED = {"pack_below": "64KiB", "compression": "zstd", "dedupe": True}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The script as a module, for its decoder and its digest."""
    spec = importlib.util.spec_from_file_location("rescue_script", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rescue(*arguments: object, stdin: str = "", path: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the script as a machine would that has Python, and on its PATH only what is in `path`."""
    return subprocess.run(
        [sys.executable, "-I", "-S", SCRIPT, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        env={"PATH": path, **environment},
        timeout=110,
        check=False,
        text=True,
        errors="surrogateescape",
    )


def rescued(*arguments: object, expect: int = 0, **more: Any) -> subprocess.CompletedProcess[str]:
    done = rescue(*arguments, **more)
    assert done.returncode == expect, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    return done


# What it is made of


def test_it_needs_nothing_but_the_standard_library_of_an_old_python() -> None:
    tree = ast.parse(SCRIPT.read_bytes(), feature_version=(3, 8))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in imported} <= sys.stdlib_module_names


def texts(seed: int) -> Iterator[bytes]:
    """Yield what compresses in different ways: nothing, noise, runs, few letters, repeated words, real text."""
    chance = random.Random(seed)
    yield from (b"", b"a", b"abc" * 1000, chance.randbytes(200_000), bytes(400_000))
    for _ in range(12):
        letters = chance.randrange(1, 256)
        weights = [1 / (letter + 1) for letter in range(letters)]
        yield bytes(chance.choices(range(letters), weights, k=chance.choice([10, 1000, 50_000])))
        words = [chance.randbytes(chance.randrange(1, 30)) for _ in range(chance.randrange(2, 300))]
        yield b"".join(chance.choices(words, k=chance.randrange(1, 5000)))
    yield b"".join(file.read_bytes() for file in sorted((REPOSITORY / "blobark").glob("*.py")))


@pytest.mark.parametrize("level", [-50, -5, 1, 3, 6, 12, 19, 22])
def test_its_decoder_reads_what_zstd_writes(script: ModuleType, level: int) -> None:
    parameters = zstd.CompressionParameter
    for number, text in enumerate(texts(level)):
        options: dict[int, int] = {parameters.compression_level: level, parameters.checksum_flag: number % 2}
        options[parameters.content_size_flag] = number % 3 > 0
        stored = zstd.compress(text, options=options)
        pieces = [stored[start : start + 1009] for start in range(0, len(stored), 1009)]
        assert b"".join(script.own_zstd(pieces)) == text


def test_its_decoder_reads_frames_one_behind_the_other(script: ModuleType) -> None:
    parts = [b"one", b"", random.Random(1).randbytes(5000), b"two" * 100]
    skippable = b"\x50\x2a\x4d\x18" + (3).to_bytes(4, "little") + b"abc"
    stored = skippable.join(zstd.compress(part) for part in parts)
    for decode in (script.own_zstd, script.module_zstd(zstd)):
        assert b"".join(decode([stored])) == b"".join(parts)
        assert b"".join(decode(bytes([byte]) for byte in stored)) == b"".join(parts)


def test_its_decoder_reads_streams_longer_than_their_window(script: ModuleType) -> None:
    parameters = zstd.CompressionParameter
    text = random.Random(2).randbytes(3000) * 1500
    stored = zstd.compress(text, options={parameters.window_log: 17, parameters.checksum_flag: 1})
    assert b"".join(script.own_zstd([stored])) == text


def test_its_decoder_takes_no_damage_for_content(script: ModuleType) -> None:
    chance = random.Random(3)
    text = b"".join(chance.choices([b"a word ", b"another", b" one more", chance.randbytes(9)], k=3000))
    stored = zstd.compress(text, options={zstd.CompressionParameter.checksum_flag: 1})
    for _ in range(400):
        damaged = bytearray(stored)
        damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
        try:
            assert b"".join(script.own_zstd([bytes(damaged)])) == text  # a flag that nobody needs
        except script.Trouble:
            pass
    for length in range(1, len(stored)):
        with pytest.raises(script.Trouble):
            list(script.own_zstd([stored[:length]]))


@pytest.mark.parametrize("size", [0, 1, 64, 65, 1023, 1024, 1025, 2048, 2049, 7 * 1024, 40_000])
def test_its_digest_is_blake3(script: ModuleType, size: int) -> None:
    data = random.Random(size).randbytes(size)
    hasher = script.OwnBlake3()
    for start in range(0, size, 777):
        hasher.update(data[start : start + 777])
    assert hasher.hexdigest() == blake3(data).hexdigest()


# Trees


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree with every kind of item, and many small files."""
    top = make_tree(tmp_path_factory.mktemp("source") / "tree")
    for number in range(80):
        write(top / "many" / f"{number:03}", f"small file {number} " * (number % 40))
    write(top / "many" / "equal", b"equal" * 5000)
    write(top / "many" / "equal as well", b"equal" * 5000)
    return top


def download(container: ContainerClient, folder: Path) -> Path:
    """Download a container as any tool does: names with slashes are folders."""
    for blob in container.list_blobs():
        write(folder / blob.name, container.download_blob(blob.name).readall())
    return folder


def container_url(azurite: AzuriteServer, container: ContainerClient, rights: str = "rl") -> str:
    return f"{azurite.url}/{container.container_name}?{azurite.sas(container.container_name, rights)}"


@pytest.mark.parametrize("settings", [{}, PACKED], ids=["plain", "packed"])
def test_a_tree_comes_back_from_a_folder_store(tmp_path: Path, source: Path, settings: Fields) -> None:
    workspace = Workspace(tmp_path / "work", source, **settings)
    workspace.backup()
    done = rescued(workspace.store, tmp_path / "rescued")
    assert differences(str(source), str(tmp_path / "rescued")) == []
    assert "lengths were checked, digests were not (--check)" in done.stdout
    assert "own, slow decoder" in done.stdout
    again = rescued(workspace.store, tmp_path / "rescued")
    assert "0 failed" in again.stdout
    assert differences(str(source), str(tmp_path / "rescued")) == []


@pytest.mark.parametrize("settings", [{}, PACKED], ids=["plain", "packed"])
def test_a_tree_comes_back_over_an_address(
    tmp_path: Path, source: Path, azurite: AzuriteServer, container: ContainerClient, settings: Fields
) -> None:
    connection_string = azurite.connection_string
    workspace = Workspace.on_azure(
        tmp_path / "work", source, connection_string, str(container.container_name), **settings
    )
    workspace.backup()
    url = container_url(azurite, container)
    done = rescued("-", tmp_path / "rescued", RESCUE_URL=url)
    assert differences(str(source), str(tmp_path / "rescued")) == []
    done = rescued("-", "--list", stdin=f"{url}\n")
    assert done.stdout.splitlines()[1].split()[:2] == ["web1", "1"]
    rescued(download(container, tmp_path / "downloaded"), tmp_path / "second")
    assert differences(str(source), str(tmp_path / "second")) == []


def test_a_changed_large_file_comes_back_from_the_parts_of_earlier_ones(tmp_path: Path) -> None:
    source = tmp_path / "source"
    content = random.Random(4).randbytes(40 << 20)
    write(source / "large", content)
    workspace = Workspace(tmp_path / "work", source, delta="extents")
    workspace.backup()
    write(source / "large", content[: 20 << 20] + b"inserted" + content[20 << 20 :])
    saved = workspace.backup().result
    assert saved["sent_bytes"] < 20 << 20
    rescued(workspace.store, tmp_path / "rescued")
    assert differences(str(source), str(tmp_path / "rescued")) == []
    rescued(workspace.store, tmp_path / "before", "--snapshot", 1)
    assert contents_of(tmp_path / "before") == {"large": content}


def test_a_large_file_that_shrinks_to_next_to_nothing_comes_back(tmp_path: Path) -> None:
    source = tmp_path / "source"
    write(source / "large", b"the same again " * (5 << 20))
    workspace = Workspace(tmp_path / "work", source, compression="zstd")
    assert workspace.backup().result["stored_bytes"] < 1 << 20
    rescued(workspace.store, tmp_path / "rescued")
    assert differences(str(source), str(tmp_path / "rescued")) == []


def test_several_roots_come_back_under_their_names_and_several_servers_are_told_apart(tmp_path: Path) -> None:
    small_tree(tmp_path / "a", "x", "y/z")
    small_tree(tmp_path / "b", "x")
    workspace = Workspace(tmp_path / "work", tmp_path / "a", server="one.blob")
    workspace.configure(source_path=[str(tmp_path / "a"), str(tmp_path / "b")])
    workspace.backup()
    rescued(workspace.store, tmp_path / "rescued")
    below = tmp_path / "rescued" / str(tmp_path).lstrip("/")
    assert differences(str(tmp_path / "a"), str(below / "a")) == []
    assert differences(str(tmp_path / "b"), str(below / "b")) == []
    workspace.configure(server="two", state_dir=str(tmp_path / "other"))
    workspace.backup()
    assert "one.blob, two" in rescued(workspace.store, tmp_path / "again", expect=4).stderr
    rescued(workspace.store, tmp_path / "again", "--server", "one.blob", "--snapshot", 1)
    assert len(rescued(workspace.store, "--list").stdout.splitlines()) == 3


def python_command(folder: Path, name: str, program: str) -> str:
    """Make a command of a few lines of Python, with the libraries of the tests; return its folder, for a PATH."""
    command = write(folder / name, f"#!{sys.executable}\nimport sys\n{program}")
    command.chmod(0o755)
    return str(folder)


def test_the_commands_zstd_and_b3sum_are_used_where_they_are_there(tmp_path: Path, source: Path) -> None:
    workspace = Workspace(tmp_path / "work", source, **PACKED)
    workspace.backup()
    unpack = f"from {zstd.__name__} import decompress\nsys.stdout.buffer.write(decompress(sys.stdin.buffer.read()))"
    python_command(tmp_path / "bin", "zstd", unpack)
    digest = "from blake3 import blake3\nprint(blake3(sys.stdin.buffer.read()).hexdigest())"
    path = python_command(tmp_path / "bin", "b3sum", digest)
    few = Workspace(tmp_path / "few", small_tree(tmp_path / "small", "a", "b"), compression="zstd")
    few.backup()
    done = rescued(few.store, tmp_path / "rescued", path=path)
    assert "lengths and digests were checked; zstd was read by the command zstd" in done.stdout
    assert differences(str(tmp_path / "small"), str(tmp_path / "rescued")) == []


# What is wrong


@pytest.fixture
def forge(tmp_path: Path) -> Forge:
    return Forge(tmp_path / "store")


def test_what_is_there_is_never_overwritten(tmp_path: Path, forge: Forge) -> None:
    forge.snapshot(forge.file("a"), forge.file("b"), item("link", "symlink", link="a"))
    write(tmp_path / "target" / "a", "mine")
    write(tmp_path / "target" / "link", "mine")
    done = rescued(tmp_path / "store", tmp_path / "target", expect=3)
    assert sorted(done.stderr.splitlines()) == [
        "failed: a: something else is in its place",
        "failed: link: something else is in its place",
    ]
    assert contents_of(tmp_path / "target") == {"a": b"mine", "b": b"b", "link": b"mine"}


def test_an_owner_that_a_container_does_not_know_costs_nothing_else(tmp_path: Path, forge: Forge) -> None:
    ours = {"uid": 0, "gid": 0}
    entries = [item("", "dir", **ours), item("dir", "dir", uid=1234), forge.file("dir/file", mode=0o6755, uid=1234)]
    forge.publish(forge.header([forge.segment(lines([*entries, forge.file("ours", **ours)]))]))
    command = [sys.executable, "-I", "-S", str(SCRIPT), str(tmp_path / "store"), str(tmp_path / "target")]
    done = subprocess.run(as_root_of_a_namespace(command), capture_output=True, text=True, check=False)
    assert done.returncode == 3, done
    assert sorted(line.partition(" (")[0] for line in done.stderr.splitlines()) == [
        "failed: dir/file: its owner cannot be set",
        "failed: dir: its owner cannot be set",
    ]
    assert contents_of(tmp_path / "target") == {"dir/file": b"dir/file", "ours": b"ours"}
    assert (tmp_path / "target" / "dir" / "file").stat().st_mode & 0o7777 == 0o755


HOSTILE: dict[str, Callable[[Forge, Path], list[Fields]]] = {
    "up": lambda forge, out: [forge.file("../outside/planted")],
    "absolute": lambda forge, out: [forge.file("/tmp/planted")],
    "through a link": lambda forge, out: [item("a", "symlink", link=str(out)), forge.file("a/planted")],
    "through a directory that is a link": lambda forge, out: [
        item("a", "symlink", link=str(out)),
        item("a/b", "dir"),
        forge.file("a/b/planted"),
    ],
    "a hard link of what is outside": lambda forge, out: [
        item("a", "symlink", link=str(out)),
        item("b", "file", hardlink_to="a/victim"),
    ],
    "a hard link upwards": lambda forge, out: [item("b", "file", hardlink_to="../outside/victim")],
    "content of another file": lambda forge, out: [
        forge.file("a", b"secret", extents=[["../../../outside/victim", 0, 6, 6]])
    ],
    "a root of another place": lambda forge, out: [item("", "symlink", link=str(out))],
    "types": lambda forge, out: [
        forge.file("a", size="many"),
        forge.file("b", extents=7),
        forge.file("c", ranges=[[5]]),
        {"path": ["d"], "kind": {}},
        forge.file("e", guid=None),
        forge.file("f", mode="x"),
        item("g", "nothing of the kind"),
        forge.file("h", hardlink_to_b64="?"),
        {**forge.file("i"), "error": "\ud800"},
    ],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_outside_the_target_is_touched_whatever_the_manifest_says(
    tmp_path: Path, forge: Forge, name: str
) -> None:
    outside = tmp_path / "outside"
    write(outside / "victim", "secret")
    before = os.lstat(outside / "victim")
    entries = HOSTILE[name](forge, outside)
    counted = [entry for entry in entries if isinstance(entry.get("path"), str)]
    segment = forge.segment(lines([item("", "dir"), *entries, forge.file("z")]))
    forge.publish(forge.header([segment]))
    done = rescued(tmp_path / "store", tmp_path / "target", expect=3)
    assert contents_of(outside) == {"victim": b"secret"}
    after = os.lstat(outside / "victim")
    assert (after.st_nlink, after.st_ctime_ns) == (before.st_nlink, before.st_ctime_ns)
    assert (tmp_path / "target" / "z").read_bytes() == b"z"
    assert b"secret" not in b"".join(contents_of(tmp_path / "target").values())
    assert done.stderr.count("failed: ") >= len([entry for entry in counted if entry.get("kind") == "file"])


def test_damage_is_named_and_costs_no_more_than_it_must(tmp_path: Path, forge: Forge) -> None:
    gone, short, wrong = forge.file("gone"), forge.file("short"), forge.file("wrong", b"right")
    forge.path(f"web1_{gone['guid']}").unlink()
    forge.write(f"web1_{short['guid']}", b"sho")
    forge.write(f"web1_{wrong['guid']}", b"wrong")
    bad = {**item("unsaved", "file"), "error": "Permission denied"}
    lost = forge.segment([item("lost", "dir"), forge.file("lost/a")])
    forge.path(f"blobark/web1/segments/{lost['digest']}").write_bytes(b"no zstd")
    kept = forge.segment([item("m", "dir"), forge.file("m/a")])
    first = forge.segment([item("", "dir"), gone, short, bad, wrong])
    forge.publish(forge.header([first, lost, kept], complete=False))
    done = rescued(tmp_path / "store", tmp_path / "target", "--check", expect=3)
    for name in ("gone", "short", "wrong", "unsaved", f"segment {lost['digest']}"):
        assert f"failed: {name}: " in done.stderr
    assert contents_of(tmp_path / "target") == {"m/a": b"m/a"}
    done = rescued(tmp_path / "store", tmp_path / "unchecked", expect=3)
    assert contents_of(tmp_path / "unchecked") == {"m/a": b"m/a", "wrong": b"wrong"}


def test_it_shows_names_as_blobark_does(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for number, name in enumerate(STRANGE):
        write(source / os.fsdecode(name), b"content %d" % number)
    workspace = Workspace(tmp_path / "work", source)
    workspace.run("backup")
    for key in workspace.guids().values():
        (workspace.store / key[-2:] / key).unlink()
    done = rescued(workspace.store, tmp_path / "target", expect=3)
    named = sorted(line.split(": ")[1] for line in done.stderr.splitlines())
    rows = workspace.run("ls").result["items"]
    assert named == sorted(row["path"].removeprefix(f"{source}/") for row in rows if row["kind"] == "file")


def test_a_damaged_header_stops_it_and_an_earlier_one_helps(tmp_path: Path, forge: Forge) -> None:
    forge.snapshot(forge.file("a"))
    forge.publish(b"{", 2)
    forge.publish(forge.header([], 3, requires=["telepathy"]), 3)
    store, target = tmp_path / "store", tmp_path / "target"
    assert "telepathy" in rescued(store, target, expect=4).stderr
    assert "choose an earlier one" in rescued(store, target, "--snapshot", 2, expect=4).stderr
    assert not target.exists()
    rescued(store, target, "--snapshot", 1)
    listed = rescued(store, "--list", expect=3).stdout.splitlines()
    assert ["cannot be read" in line for line in listed] == [False, False, True, True]


def test_compare_writes_nothing_and_names_what_is_another(tmp_path: Path) -> None:
    source = small_tree(tmp_path / "source", "a", "b", "c", "d/e")
    os.symlink("a", source / "link")
    with (source / "sparse").open("wb") as file:
        file.truncate(5 << 20)
        file.seek(3 << 20)
        file.write(b"data")
    workspace = Workspace(tmp_path / "work", source)
    workspace.backup()
    workspace.run("restore")
    assert "0 failed" in rescued(workspace.store, workspace.restored, "--compare").stdout
    for name, offset in (("a", 0), ("sparse", 1 << 20)):
        status = os.stat(workspace.restored / name)
        with (workspace.restored / name).open("r+b") as file:
            file.seek(offset)
            file.write(b"C")
        os.utime(workspace.restored / name, ns=(status.st_atime_ns, status.st_mtime_ns))
    (workspace.restored / "b").unlink()
    (workspace.restored / "c").chmod(0o700)
    (workspace.restored / "d").chmod(0o700)
    done = rescued(workspace.store, workspace.restored, "--compare", expect=3)
    named = sorted(line.split(":")[1].strip() for line in done.stderr.splitlines())
    assert named == ["", "a", "b", "c", "d", "sparse"]  # "": removing a file changed the time of the root
    assert not (workspace.restored / "b").exists()


@pytest.mark.parametrize("rights", ["r", "l"])
def test_a_missing_right_is_told_without_the_signature(
    tmp_path: Path, azurite: AzuriteServer, container: ContainerClient, rights: str
) -> None:
    source = small_tree(tmp_path / "source", "a")
    Workspace.on_azure(tmp_path / "work", source, azurite.connection_string, str(container.container_name)).backup()
    url = container_url(azurite, container, rights)
    done = rescued("-", tmp_path / "target", RESCUE_URL=url, expect=4)
    assert "403 Authorization" in done.stderr
    assert url.partition("?")[2] not in done.stderr + done.stdout
    assert "sig=" not in done.stderr + done.stdout
    if rights == "r":
        rescued("-", tmp_path / "target", "--server", "web1", "--snapshot", 1, RESCUE_URL=url)
        assert differences(str(source), str(tmp_path / "target")) == []


def test_what_fails_in_passing_is_asked_for_again(
    tmp_path: Path, azurite: AzuriteServer, proxy: FaultProxy, container: ContainerClient
) -> None:
    source = small_tree(tmp_path / "source", "a", "b", "c")
    connection_string = azurite.connection_string
    Workspace.on_azure(tmp_path / "work", source, connection_string, str(container.container_name)).backup()
    proxy.add(
        faults.answer(503, "ServerBusy", method="GET", where="/snapshots/"),
        faults.lose_answer(method="GET", where="/segments/"),
        faults.cut_answer(method="GET", where="/web1_"),
    )
    rescued("-", tmp_path / "target", RESCUE_URL=proxy.rewire(container_url(azurite, container)))
    assert differences(str(source), str(tmp_path / "target")) == []


def test_a_listing_of_several_pages_is_read_to_its_end(
    tmp_path: Path, azurite: AzuriteServer, proxy: FaultProxy, container: ContainerClient
) -> None:
    source = small_tree(tmp_path / "source", "a")
    connection_string = azurite.connection_string
    Workspace.on_azure(tmp_path / "work", source, connection_string, str(container.container_name)).backup()
    write(source / "b", "b")
    Workspace.on_azure(tmp_path / "work", source, connection_string, str(container.container_name)).backup()
    proxy.add(faults.change_address(b"comp=list", b"comp=list&maxresults=1", where="comp=list", times=7))
    done = rescued("-", "--list", RESCUE_URL=proxy.rewire(container_url(azurite, container)))
    assert [line.split()[1] for line in done.stdout.splitlines()[1:]] == ["1", "2"]
    assert proxy.requests["GET"] == 3 + 2 * 2 + 2  # what is in blobark/, snapshots twice, headers


def test_mistakes_are_told_in_a_line(tmp_path: Path) -> None:
    assert rescued("--nonsense", expect=2).stderr
    assert "say TARGET, or --list" in rescued(tmp_path, expect=2).stderr
    (tmp_path / "empty").mkdir()
    for source, said in ((tmp_path / "empty", "no server's backup is here"), (tmp_path / "none", "neither a folder")):
        (line,) = rescued(source, tmp_path / "target", expect=4).stderr.splitlines()
        assert said in line
    assert not (tmp_path / "target").exists()


def test_a_killed_run_leaves_nothing_half(tmp_path: Path, forge: Forge) -> None:
    forge.snapshot(forge.file("a"))
    rescued(tmp_path / "store", tmp_path / "target")
    shutil.rmtree(tmp_path / "target")
    (tmp_path / "target").mkdir()
    half = tmp_path / "target" / f".blobark-{zlib.crc32(b'a'):016x}.part"
    half.write_bytes(b"half")
    rescued(tmp_path / "store", tmp_path / "target")
    assert contents_of(tmp_path / "target") == {"a": b"a"}
