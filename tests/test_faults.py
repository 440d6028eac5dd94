"""Whole runs on a real Azurite behind a proxy that does harm: what they survive, and how they end where they can't."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from azure.storage.blob import ContainerClient

from tests import fault_proxy as faults
from tests.azurite_server import WRONG_KEY, AzuriteServer
from tests.fault_proxy import FaultProxy
from tests.runs import Run, Workspace, wait_until
from tests.small_disk import SmallDisk
from tests.trees import write
from tools.compare import differences

LARGE_BYTES = 9 * 1024 * 1024  # two blocks
END_S = 10.0
UNREACHABLE_S = 45.0

CONTENT, SEGMENT, HEADER = "/web1_", "/segments/", "/snapshots/0000000001"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("faults") / "source"
    for number in range(12):
        write(top / str(number % 3) / f"small-{number:02}", f"content of {number} " * 50)
    write(top / "empty", b"")
    write(top / "large", os.urandom(LARGE_BYTES))
    return top


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree of two files, where it matters only whether there is one."""
    top = tmp_path_factory.mktemp("few") / "source"
    write(top / "sub" / "file", "content")
    return write(top / "file", "content").parent


@pytest.fixture
def workspace(tmp_path: Path, source: Path, proxy: FaultProxy, azure_container: tuple[str, str]) -> Workspace:
    text, name = azure_container
    return Workspace.on_azure(tmp_path / "work", source, proxy.rewire(text), name)


def check_stored(workspace: Workspace, container: ContainerClient) -> None:
    """There is one snapshot, and the content of the map, bit for bit, and nothing else."""
    stored = {blob.name: blob.size for blob in container.list_blobs()}
    assert sorted(name for name in stored if "/snapshots/" in name) == ["blobark/web1/snapshots/0000000001"]
    assert {name for name in stored if name.startswith("web1_")} == set(workspace.guids().values())
    for path, key in workspace.guids().items():
        assert container.download_blob(key).readall() == (workspace.source / path).read_bytes()


# Faults on the line


def test_a_save_survives_what_a_line_does(workspace: Workspace, proxy: FaultProxy, container: ContainerClient) -> None:
    workspace.run("index")
    proxy.add(
        faults.answer(503, "ServerBusy", retry_after_s=1, times=2, method="PUT", where=CONTENT),
        faults.answer(500, "InternalError", where="comp=list"),
        faults.lose_answer(method="PUT", where=CONTENT, times=2, skip=2),
        faults.cut_request(method="PUT", where=CONTENT, skip=3),
        faults.lose_answer(method="PUT", where="comp=blocklist"),
        faults.cut_request(method="PUT", where="comp=block&"),
        faults.lose_answer(method="PUT", where="comp=block&"),
        faults.lose_answer(method="PUT", where=SEGMENT),
        faults.cut_request(method="PUT", where=SEGMENT),
        faults.lose_answer(method="PUT", where=HEADER),
    )
    saved = workspace.run("save").result
    assert (saved["snapshot"], saved["complete"], saved["failed"]) == (1, True, [])
    check_stored(workspace, container)


def test_a_header_that_is_refused_again_and_again_is_published_once(
    workspace: Workspace, proxy: FaultProxy, container: ContainerClient
) -> None:
    workspace.run("index")
    proxy.add(
        faults.cut_request(method="PUT", where=HEADER),
        faults.answer(503, "ServerBusy", retry_after_s=0, method="PUT", where=HEADER, times=2),
        faults.lose_answer(method="PUT", where=HEADER),
    )
    assert workspace.run("save").result["snapshot"] == 1
    check_stored(workspace, container)


def test_a_restore_survives_what_a_line_does(workspace: Workspace, proxy: FaultProxy) -> None:
    workspace.backup()
    shutil.rmtree(workspace.state)
    guids = workspace.guids()
    proxy.add(
        faults.answer(503, "ServerBusy", retry_after_s=1, times=2, method="GET", where=CONTENT),
        faults.flip_answer(method="GET", where=guids["large"]),
        faults.flip_answer(method="GET", where=guids["2/small-05"]),
        faults.cut_answer(method="GET", where=CONTENT, times=2),
        faults.lose_answer(method="GET", where=CONTENT, times=2, skip=6),
        faults.cut_answer(method="GET", where=SEGMENT),
        faults.lose_answer(method="GET", where=HEADER),
        faults.cut_answer(where="comp=list"),
    )
    done = workspace.run("restore").result
    assert done["failed"] == []
    assert differences(str(workspace.source), str(workspace.restored)) == []


def test_content_that_stays_wrong_fails_its_file_alone(workspace: Workspace, proxy: FaultProxy) -> None:
    workspace.backup()
    guids = workspace.guids()
    bad = ("large", "1/small-04")
    for path in bad:  # the large one is fetched in two pieces
        proxy.add(faults.flip_answer(method="GET", where=guids[path], times=3 if path == "large" else 2))
    run = workspace.run("restore", expect=3)
    assert sorted(path for path, _ in run.result["failed"]) == sorted(bad)
    assert all("digest" in reason for _, reason in run.result["failed"])
    assert all(f"failed: {path}: " in run.stderr for path in bad)
    files = {str(file.relative_to(workspace.restored)) for file in workspace.restored.rglob("*") if file.is_file()}
    assert files == set(guids) - set(bad)
    again = workspace.run("restore").result  # the line is better now
    assert (again["written"], again["kept"]) == (2, len(guids) - 2)
    assert differences(str(workspace.source), str(workspace.restored)) == []


def test_a_blob_that_a_disk_cannot_read_fails_its_file_alone(tmp_path: Path, few: Path) -> None:
    workspace = Workspace(tmp_path / "work", few)
    workspace.backup()
    key = workspace.guids()["file"]
    (tmp_path / "aside").mkdir()
    with SmallDisk(tmp_path / "aside", "size=1m") as disk:
        disk.make_unreadable(workspace.store / key[-2:] / key)
        command = disk.inside([*workspace.command("restore"), "--json"])
        done = subprocess.run(command, capture_output=True, check=False)
        (line,) = done.stderr.decode().splitlines()
        assert (done.returncode, json.loads(done.stdout)["written"]) == (3, 1)
        assert line.startswith("failed: file: ")
        assert "cannot be read (Input/output error)" in line


@pytest.mark.parametrize("where", [SEGMENT, HEADER])
def test_a_snapshot_that_arrives_damaged_restores_nothing_wrong(
    workspace: Workspace, proxy: FaultProxy, where: str
) -> None:
    workspace.backup()
    shutil.rmtree(workspace.state)
    proxy.add(faults.flip_answer(method="GET", where=where))
    run = workspace.run("restore", expect=None)
    assert run.code in (0, 4)
    assert run.code == 0 or "damaged" in run.stderr
    for file in workspace.restored.rglob("*") if run.code else ():
        assert file.read_bytes() == (workspace.source / file.relative_to(workspace.restored)).read_bytes()


def test_a_store_that_goes_away_and_comes_back(
    workspace: Workspace, proxy: FaultProxy, container: ContainerClient
) -> None:
    workspace.run("index")
    with workspace.started("save") as process:
        wait_until(lambda: len(proxy.logged("PUT", CONTENT)) >= 3, process)
        with proxy.refusing():
            time.sleep(0.5)  # as long as it is away
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert json.loads(output)["snapshot"] == 1
    check_stored(workspace, container)


def test_a_killed_save_goes_on_where_it_was(
    workspace: Workspace, proxy: FaultProxy, container: ContainerClient
) -> None:
    workspace.run("index")
    with workspace.started("save") as process:
        wait_until(lambda: len(proxy.logged("PUT", CONTENT)) >= 6, process)
        process.kill()
        process.wait()
    there = sum(blob.name.startswith("web1_") for blob in container.list_blobs())
    sent = workspace.run("save").result["sent"]
    assert sent <= len(workspace.guids()) - there  # what was on its way may have arrived after that look
    check_stored(workspace, container)


@pytest.mark.parametrize("kind", ["hangs", "is busy"])
def test_a_save_ends_soon_when_asked_to_while_the_store(
    workspace: Workspace, few: Path, proxy: FaultProxy, kind: str
) -> None:
    workspace.configure(source_path=str(few))
    workspace.run("index")
    busy = faults.answer(503, "ServerBusy", retry_after_s=60, method="PUT", where=CONTENT)
    fault = busy if kind == "is busy" else faults.hang(method="PUT", where=CONTENT)
    proxy.add(fault)
    with workspace.started("save") as process:
        wait_until(lambda: fault.fired, process)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=END_S)
    assert process.returncode == 130
    (line,) = errors.decode().splitlines()
    assert line.startswith(("blobark: interrupted", "blobark: stopped"))
    workspace.run("save")


# Stores that cannot be used


def check_refused(run: Run, secret: str, *words: str) -> None:
    """One line for a person, which gives no secret away."""
    (line,) = run.stderr.splitlines()
    assert line.startswith("blobark: ")
    for word in words:
        assert word in line
    assert secret not in run.stderr + json.dumps(run.result)


def index_first(workspace: Workspace) -> None:
    """Index while the store is another one: without any state an index asks the store."""
    usual = dict(workspace.settings)
    workspace.configure(store=str(workspace.store), connection_string="")
    workspace.run("index")
    workspace.configure(**usual)


def expect_refused(workspace: Workspace, secret: str, *words: str) -> None:
    index_first(workspace)
    for command in ("save", "restore"):
        check_refused(workspace.run(command, expect=4), secret, *words)


def test_a_wrong_key(tmp_path: Path, few: Path, azurite: AzuriteServer, azure_container: tuple[str, str]) -> None:
    text = azurite.connection_string.replace(azurite.key, WRONG_KEY)
    expect_refused(Workspace.on_azure(tmp_path, few, text, azure_container[1]), WRONG_KEY, "403", "key")


def with_sas(azurite: AzuriteServer, container: str, rights: str, hours: int) -> tuple[str, str]:
    """Return a connection string with a SAS, and the SAS's signature."""
    sas = azurite.sas(container, rights, seconds=hours * 3600)
    return azurite.connection_with(sas), sas.rpartition("sig=")[2].partition("&")[0]


def test_an_expired_sas(tmp_path: Path, few: Path, azurite: AzuriteServer, azure_container: tuple[str, str]) -> None:
    text, signature = with_sas(azurite, azure_container[1], "rwl", -1)
    expect_refused(Workspace.on_azure(tmp_path, few, text, azure_container[1]), signature, "SAS expired at")


def test_a_sas_that_may_only_read(
    tmp_path: Path, few: Path, azurite: AzuriteServer, azure_container: tuple[str, str], workspace: Workspace
) -> None:
    text, signature = with_sas(azurite, azure_container[1], "rl", 1)
    reader = Workspace.on_azure(tmp_path / "reader", few, text, azure_container[1])
    reader.run("index")
    check_refused(reader.run("save", expect=4), signature, "rights in the SAS are rl")
    workspace.configure(source_path=str(few))
    workspace.backup()
    reader.run("restore")
    assert differences(str(few), str(reader.restored)) == []


def test_a_sas_that_may_not_delete_is_enough_to_save(
    tmp_path: Path, few: Path, azurite: AzuriteServer, azure_container: tuple[str, str]
) -> None:
    text, _ = with_sas(azurite, azure_container[1], "rwl", 1)
    workspace = Workspace.on_azure(tmp_path, few, text, azure_container[1])
    workspace.backup()
    assert workspace.backup().result["sent"] == 0


def test_a_missing_container_until_it_is_made(tmp_path: Path, few: Path, azurite: AzuriteServer) -> None:
    workspace = Workspace.on_azure(tmp_path, few, azurite.connection_string, tmp_path.name.replace("_", "-").lower())
    expect_refused(workspace, azurite.key, "no such container", "--create-container")
    for number in (1, 2):
        assert workspace.run("save", "--create-container").result["snapshot"] == number


def test_a_backup_makes_a_container_that_it_has_looked_for(tmp_path: Path, few: Path, azurite: AzuriteServer) -> None:
    workspace = Workspace.on_azure(tmp_path, few, azurite.connection_string, tmp_path.name.replace("_", "-").lower())
    workspace.configure(server=None)  # so that it has to look whether there is one already
    for number in (1, 2):
        assert workspace.run("backup", "--create-container").result["save"]["snapshot"] == number


@pytest.fixture(scope="module", autouse=True)
def unreachable(tmp_path_factory: pytest.TempPathFactory, few: Path) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """Runs whose store refuses connections, begun before everything else here: they take their time to give up."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        text = f"BlobEndpoint=http://127.0.0.1:{nobody.getsockname()[1]}/name;AccountName=name;AccountKey={WRONG_KEY}"
        space = Workspace.on_azure(tmp_path_factory.mktemp("unreachable"), few, text, "backups")
        index_first(space)
        unnamed = Workspace(tmp_path_factory.mktemp("unnamed"), few)
        settings = {name: space.settings[name] for name in ("store", "connection_string", "container_name")}
        unnamed.configure(**settings)  # has to ask the store who it is
        with contextlib.ExitStack() as stack:
            commands = {"save": space, "restore": space, "index": unnamed}
            yield {name: stack.enter_context(where.started(name)) for name, where in commands.items()}


@pytest.mark.parametrize("command", ["index", "save", "restore"])
def test_a_store_that_cannot_be_reached(unreachable: dict[str, subprocess.Popen[bytes]], command: str) -> None:
    process = unreachable[command]
    output, errors = process.communicate(timeout=UNREACHABLE_S)
    run = Run(process.returncode, json.loads(output), errors.decode())
    assert run.code == 4
    check_refused(run, WRONG_KEY, "127.0.0.1", "no connection", "network")
