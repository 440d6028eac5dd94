"""The least rights that each command needs, as docs/operations.md has them: it works with them, and not with less.

And credentials that end while a run is under way.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from pathlib import Path

import pytest
from azure.storage.blob import ContainerClient

from blobark.doctor import NEEDS, USUAL
from blobark.stores.base import BLOCK_SIZE_BYTES
from tests import fault_proxy as faults
from tests.azurite_server import AzuriteServer
from tests.fault_proxy import FaultProxy
from tests.powerless import Powerless
from tests.runs import REPOSITORY, Run, Workspace
from tests.trees import small_tree, write
from tools.compare import differences

LETTERS = {
    "index": "rl",
    "save": "rwl",
    "backup": "rwl",
    "restore": "rl",
    "restore --rehydrate": "rwl",
    "status": "rl",
    "tag": "rcl",
    "prune": "rcld",
    "forget": "rcld",
    "verify": "rl",
    "repair": "rwl",
    "rebuild": "rwl",
    "drill": "rcl",
    "doctor": "rwl",
}
RIGHTS = {"r": "read", "l": "list", "w": "write", "d": "delete"}
ALL = "racwdl"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    (folder / "sub").mkdir()
    (folder / "small").write_bytes(b"small")
    (folder / "sub" / "big").write_bytes(b"more than one block " * (BLOCK_SIZE_BYTES // 20 + 1))
    return folder


def workspace_with(
    azurite: AzuriteServer, container: ContainerClient, folder: Path, source: Path, rights: str
) -> Workspace:
    """A machine that logs in with a SAS of these rights, in the environment."""
    workspace = Workspace(folder, source, store="azure", endpoint=azurite.url, container_name=container.container_name)
    allow(workspace, azurite, container, rights)
    return workspace


def allow(workspace: Workspace, azurite: AzuriteServer, container: ContainerClient, rights: str) -> None:
    workspace.environment["AZURE_STORAGE_SAS_TOKEN"] = azurite.sas(container.container_name, rights)


def names_in(container: ContainerClient) -> list[str]:
    return [blob.name for blob in container.list_blobs()]


def check_refused(run: Run) -> None:
    (line,) = run.stderr.splitlines()
    assert line.startswith("blobark: ")
    assert re.search(r": a right is missing; the rights in the SAS are [a-z]+$", line)
    assert "sig" not in line


@pytest.mark.parametrize("rights", ["rl", "r", "l"])
def test_index(azurite: AzuriteServer, container: ContainerClient, tmp_path: Path, source: Path, rights: str) -> None:
    workspace_with(azurite, container, tmp_path / "before", source, ALL).backup()
    stored = names_in(container)
    workspace = workspace_with(azurite, container, tmp_path / "new", source, rights)
    run = workspace.run("index", expect=0 if rights == LETTERS["index"] else 4)
    assert names_in(container) == stored
    assert workspace.map.exists() == (run.code == 0)
    if run.code:
        check_refused(run)


@pytest.mark.parametrize("rights", ["rwl", "wl", "rl", "rw", "rcl"])
def test_save(azurite: AzuriteServer, container: ContainerClient, tmp_path: Path, source: Path, rights: str) -> None:
    workspace = workspace_with(azurite, container, tmp_path, source, ALL)
    workspace.run("index")
    allow(workspace, azurite, container, rights)
    run = workspace.run("save", expect=0 if rights == LETTERS["save"] else 4)
    if run.code:
        check_refused(run)
        assert [name for name in names_in(container) if "/snapshots/" in name] == []
        allow(workspace, azurite, container, LETTERS["save"])
        assert workspace.run("save").result["snapshot"] == 1
    assert workspace.backup().result["sent"] == 0


@pytest.mark.parametrize("rights", ["rwl", "wl", "rl", "rw"])
def test_backup(azurite: AzuriteServer, container: ContainerClient, tmp_path: Path, source: Path, rights: str) -> None:
    workspace_with(azurite, container, tmp_path / "before", source, ALL).run("backup")
    shutil.copy(source / "small", source / "another")
    workspace = workspace_with(azurite, container, tmp_path / "before", source, rights)
    run = workspace.run("backup", expect=0 if rights == LETTERS["backup"] else 4)
    (source / "another").unlink()
    if run.code:
        check_refused(run)
    assert len([name for name in names_in(container) if "/snapshots/" in name]) == (1 if run.code else 2)


@pytest.mark.parametrize("rights", ["rl", "r", "l"])
def test_status(azurite: AzuriteServer, container: ContainerClient, tmp_path: Path, source: Path, rights: str) -> None:
    workspace_with(azurite, container, tmp_path / "before", source, ALL).run("backup")
    workspace = workspace_with(azurite, container, tmp_path / "new", source, rights)
    run = workspace.run("status", expect=0 if rights == LETTERS["status"] else 4)
    if run.code:
        check_refused(run)
    else:
        assert [item["snapshot"] for item in run.result["items"]] == [1]


@pytest.mark.parametrize("rights", ["rl", "r", "l"])
def test_restore(azurite: AzuriteServer, container: ContainerClient, tmp_path: Path, source: Path, rights: str) -> None:
    workspace_with(azurite, container, tmp_path / "before", source, ALL).backup()
    stored = names_in(container)
    workspace = workspace_with(azurite, container, tmp_path / "new", source, rights)
    run = workspace.run("restore", expect=0 if rights == LETTERS["restore"] else 4)
    assert names_in(container) == stored
    if run.code:
        check_refused(run)
        assert not workspace.restored.exists()
    else:
        assert differences(str(source), str(workspace.restored)) == []


@pytest.mark.parametrize("rights", ["rcld", "cld", "rld", "rcd", "rcl"])
@pytest.mark.parametrize("command", ["prune", "forget"])
def test_prune(
    azurite: AzuriteServer, container: ContainerClient, tmp_path: Path, source: Path, rights: str, command: str
) -> None:
    before = workspace_with(azurite, container, tmp_path / "before", source, ALL)
    for number in range(2):
        (source / "changing").write_bytes(b"x" * number)
        before.run("backup")
    (source / "changing").unlink()
    stored = names_in(container)
    workspace = workspace_with(azurite, container, tmp_path / "new", source, rights)
    workspace.configure(keep={"last": 1})
    options = ["--yes", *(["1"] if command == "forget" else [])]
    run = workspace.run(command, *options, expect=0 if rights == LETTERS[command] else 4)
    gone = set(stored) - set(names_in(container))
    assert {name.partition("/snapshots/")[2] for name in gone} == (
        {"0000000001"} if "d" in rights and "r" in rights and "l" in rights else set()
    )
    if run.code:
        check_refused(run)
    assert workspace_with(azurite, container, tmp_path / "look", source, "rl").run("prune").result["done"] is False
    assert before.run("backup").result["save"]["snapshot"] == 3


@pytest.mark.parametrize("rights", ["rcl", "cl", "rl", "rc"])
def test_tag(azurite: AzuriteServer, container: ContainerClient, tmp_path: Path, source: Path, rights: str) -> None:
    before = workspace_with(azurite, container, tmp_path / "before", source, ALL)
    before.run("backup")
    workspace = workspace_with(azurite, container, tmp_path / "new", source, rights)
    run = workspace.run("tag", "1", "important", expect=0 if rights == LETTERS["tag"] else 4)
    if run.code:
        check_refused(run)
    else:
        assert run.result["tags"] == ["important"]
        check_refused(workspace.run("tag", "1", "important", "--remove", expect=4))
    taken = before.run("tag", "1", "important", "--remove", expect=2 if run.code else 0)
    assert taken.result.get("tags", []) == []


@pytest.mark.parametrize("rights", ["rl", "r", "l"])
def test_verify(azurite: AzuriteServer, container: ContainerClient, tmp_path: Path, source: Path, rights: str) -> None:
    workspace_with(azurite, container, tmp_path / "before", source, ALL).run("backup")
    workspace = workspace_with(azurite, container, tmp_path / "new", source, rights)
    run = workspace.run("verify", "--read", expect=0 if rights == LETTERS["verify"] else 4)
    if run.code:
        check_refused(run)
    else:
        assert (run.result["snapshots"], run.result["damaged"]) == (1, 0)


@pytest.mark.parametrize("rights", ["rwl", "wl", "rl", "rw", "rcl"])
def test_repair(azurite: AzuriteServer, container: ContainerClient, tmp_path: Path, source: Path, rights: str) -> None:
    workspace = workspace_with(azurite, container, tmp_path, source, ALL)
    workspace.run("backup")
    keys = workspace.guids()
    container.upload_blob(keys["small"], b"damaged", overwrite=True)
    container.delete_blob(keys["sub/big"])
    allow(workspace, azurite, container, rights)
    run = workspace.run("repair", "--yes", expect=0 if rights == LETTERS["repair"] else 4)
    if run.code:
        check_refused(run)
    else:
        assert run.result["mended"] == 2


@pytest.mark.parametrize("rights", ["rwl", "rl", "rcl"])
def test_restore_from_the_archive(
    azurite: AzuriteServer, container: ContainerClient, tmp_path: Path, source: Path, rights: str
) -> None:
    before = workspace_with(azurite, container, tmp_path / "before", source, ALL)
    before.run("backup")
    container.get_blob_client(before.guids()["small"]).set_standard_blob_tier("Archive")
    workspace = workspace_with(azurite, container, tmp_path / "new", source, rights)
    command, *options = "restore --rehydrate".split()
    run = workspace.run(command, *options, "high", expect=0 if rights == LETTERS["restore --rehydrate"] else 4)
    if run.code:
        check_refused(run)
        assert list(workspace.restored.iterdir()) == []
    else:
        assert differences(str(source), str(workspace.restored)) == []


@pytest.mark.parametrize("rights", ["rwl", "wl", "rl", "rw", "rcl"])
def test_rebuild(azurite: AzuriteServer, container: ContainerClient, tmp_path: Path, source: Path, rights: str) -> None:
    workspace_with(azurite, container, tmp_path / "before", source, ALL).run("backup")
    (name,) = [name for name in names_in(container) if "/snapshots/" in name]
    container.delete_blob(name)
    workspace = workspace_with(azurite, container, tmp_path / "new", source, rights)
    run = workspace.run("rebuild", expect=3 if rights == LETTERS["rebuild"] else 4)
    assert (name in names_in(container)) == (run.code == 3)
    if run.code == 4:
        check_refused(run)


@pytest.mark.parametrize("rights", ["rcl", "rl", "cl", "rc"])
def test_drill(azurite: AzuriteServer, container: ContainerClient, tmp_path: Path, source: Path, rights: str) -> None:
    workspace_with(azurite, container, tmp_path / "before", source, ALL).run("backup")
    workspace = workspace_with(azurite, container, tmp_path / "new", source, rights)
    run = workspace.run("drill", "--full", expect=0 if {"r", "l"} <= set(rights) else 4)
    assert any("/drills/" in name for name in names_in(container)) == (rights == LETTERS["drill"])
    if run.code:
        check_refused(run)


@pytest.mark.parametrize("rights", ["rwl", "wl", "rl", "rw", "rcl"])
def test_doctor(azurite: AzuriteServer, container: ContainerClient, tmp_path: Path, source: Path, rights: str) -> None:
    workspace = workspace_with(azurite, container, tmp_path, source, rights)
    run = workspace.run("doctor", expect=0 if rights == LETTERS["doctor"] else 4)
    has = {name for letter, name in RIGHTS.items() if letter in rights}
    has |= {"create"} if set(rights) & set("cw") else set()
    assert run.result["missing"] == {name: [right for right in NEEDS[name] if right not in has] for name in USUAL}
    allowed = {check["what"] for check in run.result["checks"] if check["ok"]}
    assert allowed == has | {"reach"}
    assert bool(run.result["advice"]) == bool(run.code)
    sas = workspace.environment["AZURE_STORAGE_SAS_TOKEN"]
    assert sas.rpartition("sig=")[2].partition("&")[0] not in json.dumps(run.result) + run.stderr
    assert ["sas_token", "(secret)", "AZURE_STORAGE_SAS_TOKEN"] in run.result["used"]
    assert abs(run.result["clock_ahead_s"]) < 60
    before = names_in(container)
    again = workspace.run("doctor", "--for", "restore", expect=None)
    assert again.code == (0 if set(rights) >= set(LETTERS["restore"]) else 4)
    assert [check["what"] for check in again.result["checks"]] == ["reach", "list", "read"]
    assert names_in(container) == before


@pytest.mark.parametrize(("rights", "lacks"), [("rcld", []), ("rwld", []), ("rcl", ["delete"]), ("rld", ["create"])])
def test_the_doctor_knows_what_a_prune_needs(
    azurite: AzuriteServer,
    container: ContainerClient,
    tmp_path: Path,
    source: Path,
    rights: str,
    lacks: list[str],
) -> None:
    workspace = workspace_with(azurite, container, tmp_path, source, rights)
    run = workspace.run("doctor", "--for", "prune", expect=4 if lacks else 0)
    assert run.result["missing"] == {"prune": lacks}
    assert [text.startswith("prune cannot work: ") for text in run.result["advice"]] == [True] * len(lacks)


def test_the_doctor_tidies_up_where_it_may_and_is_in_nobodys_way(
    azurite: AzuriteServer, container: ContainerClient, tmp_path: Path, source: Path
) -> None:
    workspace = workspace_with(azurite, container, tmp_path, source, "rwl")
    for _ in range(2):
        workspace.run("doctor")
    assert [name.split("/", 2)[2] for name in names_in(container)] == ["doctor"]
    assert workspace.backup().result["snapshot"] == 1
    assert workspace.run("restore").result["failed"] == []
    allow(workspace, azurite, container, ALL)
    advice = workspace.run("doctor").result["advice"]
    assert [text for text in advice if "right to delete" in text] == advice != []
    assert [name for name in names_in(container) if name.endswith("/doctor")] == []
    assert workspace.run("doctor", "--dry-run").result["missing"] == {name: [] for name in USUAL}


def test_the_doctor_looks_at_folders_and_says_what_is_missing(tmp_path: Path, source: Path) -> None:
    workspace = Workspace(tmp_path, source)
    run = workspace.run("doctor", expect=4)
    assert run.result["checks"][0]["said"].startswith(f"{workspace.store} is not a folder")
    workspace.store.mkdir()
    run = workspace.run("doctor")
    assert run.result["missing"] == {name: [] for name in USUAL}
    assert [path for path in workspace.store.rglob("*") if path.is_file()] == []
    workspace.configure(store="azure")
    run = workspace.run("doctor", expect=2)
    assert "connection_string: not set" in run.stderr


def test_the_doctor_finds_a_snapshot_that_another_user_has_made(tmp_path: Path, source: Path) -> None:
    workspace = Powerless(tmp_path, source)
    workspace.backup()
    assert workspace.run("doctor").result["missing"]["restore"] == []
    (header,) = workspace.store.glob("blobark/*/snapshots/*")
    header.chmod(0)
    run = workspace.run("doctor", expect=4)
    assert run.result["missing"]["restore"] == ["read"]
    assert "check who owns the folder" in run.result["advice"][0]


def test_the_doctor_names_a_missing_container_and_a_wrong_key(
    azurite: AzuriteServer, container: ContainerClient, tmp_path: Path, source: Path
) -> None:
    settings = {"store": "azure", "endpoint": azurite.url, "account_name": azurite.account}
    workspace = Workspace(tmp_path, source, **settings, container_name="nobody-made-this")
    workspace.environment["AZURE_STORAGE_KEY"] = azurite.key
    run = workspace.run("doctor", expect=4)
    assert "--create-container" in run.result["advice"][0]
    workspace.configure(container_name=container.container_name)
    assert workspace.run("doctor").code == 0
    workspace.environment["AZURE_STORAGE_KEY"] = "d3Jvbmcga2V5"
    run = workspace.run("doctor", expect=4)
    assert run.result["missing"] == {name: list(NEEDS[name]) for name in USUAL}
    assert "the key or signature is wrong" in run.result["advice"][0]
    assert "d3Jvbmcga2V5" not in run.stderr + json.dumps(run.result)


@pytest.mark.parametrize("command", NEEDS)
def test_the_doctor_knows_each_command_of_the_table(
    azurite: AzuriteServer, container: ContainerClient, tmp_path: Path, source: Path, command: str
) -> None:
    workspace = workspace_with(azurite, container, tmp_path, source, LETTERS[command])
    assert workspace.run("doctor", "--for", command).result["missing"] == {command: []}
    for letter in LETTERS[command]:
        if "c" in LETTERS[command] or letter != "w":  # without it nothing can be made either
            allow(workspace, azurite, container, LETTERS[command].replace(letter, ""))
            for name in names_in(container):  # for Azurite, not Azure, `c` is too little where there is a blob
                container.delete_blob(name)
            lacks = "create" if letter == "c" else RIGHTS[letter]
            assert workspace.run("doctor", "--for", command, expect=4).result["missing"] == {command: [lacks]}


@pytest.mark.parametrize("command", [name for name in NEEDS if "c" in LETTERS[name] and "d" not in LETTERS[name]])
def test_the_doctor_comes_again_where_it_may_make_blobs_and_not_delete_them(
    azurite: AzuriteServer, proxy: FaultProxy, container: ContainerClient, tmp_path: Path, source: Path, command: str
) -> None:
    """Its blob is there still. Azure says then that only the overwriting is refused, which Azurite does not know."""
    workspace = workspace_with(azurite, container, tmp_path, source, LETTERS[command])
    through(proxy, workspace, azurite)
    assert workspace.run("doctor", "--for", command).result["missing"] == {command: []}
    assert names_in(container) == ["blobark/web1/doctor"]
    proxy.add(faults.answer(403, "UnauthorizedBlobOverwrite", method="PUT", where="/doctor"))
    assert workspace.run("doctor", "--for", command).result["missing"] == {command: []}


def test_the_table_in_the_documentation_is_this_one() -> None:
    assert {*NEEDS, "restore --rehydrate", "doctor"} == {*LETTERS}
    text = (REPOSITORY / "docs" / "operations.md").read_text()
    commands = "|".join(LETTERS)
    rows = re.findall(rf"^\| `({commands})` \|.*\| `([a-z]+)` \| ", text, re.MULTILINE)
    assert dict(rows) == LETTERS
    assert len(rows) == len(LETTERS)


# Credentials that end on the way

CONTENT = "web1_"


@pytest.fixture
def many(tmp_path: Path) -> Path:
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(60):
        (folder / f"{number:02}").write_bytes(b"x" * number)
    return folder


def through(proxy: FaultProxy, workspace: Workspace, azurite: AzuriteServer) -> None:
    workspace.configure(endpoint=f"{proxy.url}/{azurite.account}", server="web1", max_workers=2)


def test_a_sas_that_expires_while_a_save_runs(
    azurite: AzuriteServer, proxy: FaultProxy, container: ContainerClient, tmp_path: Path, many: Path
) -> None:
    workspace = workspace_with(azurite, container, tmp_path / "work", many, "rwl")
    through(proxy, workspace, azurite)
    workspace.run("index")
    proxy.add(faults.delay(5, method="PUT", where=CONTENT, skip=5))
    workspace.environment["AZURE_STORAGE_SAS_TOKEN"] = azurite.sas(container.container_name, "rwl", seconds=4)
    begun_s = time.monotonic()
    run = workspace.run("save", expect=4)
    assert time.monotonic() - begun_s < 5 + 5
    (line,) = run.stderr.splitlines()
    assert re.search(r"403 \w+: the SAS expired at \d{4}-\d\d-\d\d \d\d:\d\d UTC; make a new one$", line)
    stored = names_in(container)
    assert [name for name in stored if "/snapshots/" in name] == []
    assert len([name for name in stored if name.startswith(CONTENT)]) >= 5
    allow(workspace, azurite, container, "rwl")
    assert workspace.run("save").result["complete"] is True


@pytest.mark.parametrize("command", ["save", "restore"])
def test_a_key_that_is_revoked_while_a_run_is_under_way(
    azurite: AzuriteServer, proxy: FaultProxy, container: ContainerClient, tmp_path: Path, many: Path, command: str
) -> None:
    workspace = workspace_with(azurite, container, tmp_path / "work", many, ALL)
    workspace.environment = {"AZURE_STORAGE_KEY": azurite.key, "AZURE_STORAGE_ACCOUNT": azurite.account}
    workspace.run("index")
    if command == "restore":
        workspace.run("save")
    through(proxy, workspace, azurite)
    workspace.run("index")
    if command == "restore":
        workspace.run("save")
    method = "PUT" if command == "save" else "GET"
    proxy.add(faults.answer(403, "AuthenticationFailed", method=method, where=CONTENT, skip=20))
    begun_s = time.monotonic()
    run = workspace.run(command, expect=4)
    assert time.monotonic() - begun_s < 10
    (line,) = run.stderr.splitlines()
    assert "403 AuthenticationFailed: the key or signature is wrong, or" in line
    assert azurite.key not in line
    assert workspace.run(command).code == 0


@pytest.mark.parametrize("command", ["save", "restore"])
@pytest.mark.parametrize("kind", ["processes", "threads", "threads of one file"])
def test_a_key_that_is_revoked_while_other_requests_hang(
    azurite: AzuriteServer, proxy: FaultProxy, container: ContainerClient, tmp_path: Path, kind: str, command: str
) -> None:
    source = tmp_path / "source"
    if kind == "threads of one file":
        write(source / "large", os.urandom(40 << 20))
    else:
        small_tree(source, *(f"{number:02}" for number in range(60)))
    workspace = workspace_with(azurite, container, tmp_path / "work", source, ALL)
    through(proxy, workspace, azurite)
    workspace.configure(max_workers=8, max_memory="256MiB" if kind == "processes" else "100MiB")
    workspace.run("index")
    if command == "restore":
        workspace.run("save")
    method = "PUT" if command == "save" else "GET"
    after = 1 if kind == "threads of one file" else 20
    proxy.add(
        faults.hang(method=method, where=f"/{CONTENT}", times=2),
        faults.answer(403, "AuthenticationFailed", method=method, where=f"/{CONTENT}", skip=after),
    )
    begun_s = time.monotonic()
    run = workspace.run(command, expect=4)
    assert time.monotonic() - begun_s < 10
    (line,) = run.stderr.splitlines()
    assert "403 AuthenticationFailed: the key or signature is wrong, or" in line
    assert workspace.run(command).code == 0
