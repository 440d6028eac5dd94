"""README.txt and the rescue script: in every container, once, in nobody's way, and no reason for a save to fail."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest
from azure.storage.blob import ContainerClient

from tests import fault_proxy as faults
from tests.azurite_server import AzuriteServer
from tests.fault_proxy import FaultProxy
from tests.runs import REPOSITORY, Workspace
from tests.trees import small_tree, write

FOLDER = REPOSITORY / "blobark" / "container"
SCRIPT = (FOLDER / "rescue.py").read_bytes()
DIGEST = hashlib.sha256(SCRIPT).hexdigest()
KEYS = {"blobark/README.txt": (FOLDER / "README.txt").read_bytes(), f"blobark/rescue_{DIGEST[:16]}.py": SCRIPT}


@pytest.fixture
def workspace(tmp_path: Path, azurite: AzuriteServer, container: ContainerClient) -> Workspace:
    source = small_tree(tmp_path / "source", "a")
    return Workspace.on_azure(tmp_path / "work", source, azurite.connection_string, str(container.container_name))


def handouts(container: ContainerClient) -> dict[str, bytes]:
    """Return what lies directly below blobark/."""
    names = [name for name in container.list_blob_names(name_starts_with="blobark/") if name.count("/") == 1]
    return {name: container.download_blob(name).readall() for name in names}


def test_the_first_save_leaves_them_and_no_other_asks(workspace: Workspace, container: ContainerClient) -> None:
    workspace.run("backup", "--dry-run")
    assert handouts(container) == {}
    workspace.run("backup")
    assert handouts(container) == KEYS
    for name in KEYS:
        container.delete_blob(name)
    workspace.run("backup")
    assert handouts(container) == {}
    shutil.rmtree(workspace.state)
    workspace.run("backup")
    assert handouts(container) == KEYS


def test_those_of_another_version_stay(workspace: Workspace, container: ContainerClient) -> None:
    others = {"blobark/README.txt": b"another text", "blobark/rescue_0123456789abcdef.py": b"another script"}
    for name, data in others.items():
        container.upload_blob(name, data)
    workspace.run("backup")
    assert handouts(container) == {**KEYS, **others}
    assert [item["server"] for item in workspace.run("status").result["items"]] == ["web1"]
    assert workspace.run("restore").result["failed"] == []


def test_a_save_that_cannot_leave_them_warns_and_the_next_one_tries_again(
    workspace: Workspace, azurite: AzuriteServer, proxy: FaultProxy, container: ContainerClient
) -> None:
    workspace.configure(connection_string=proxy.rewire(azurite.connection_string))
    proxy.add(faults.answer(403, "AuthorizationFailure", method="PUT", where="README.txt"))
    run = workspace.run("backup")
    assert run.result["save"]["complete"] is True
    assert "README.txt and the rescue script could not be left" in run.stderr
    assert handouts(container) == {}
    assert "README.txt" not in workspace.run("backup").stderr
    assert handouts(container) == KEYS


def test_a_folder_store_has_them_too(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "work", small_tree(tmp_path / "source", "a"))
    workspace.backup()
    for name, data in KEYS.items():
        assert (workspace.store / f"{name}.blob").read_bytes() == data
    write(workspace.source / "b", "b")
    assert workspace.backup().result["snapshot"] == 2


@pytest.mark.parametrize("name", ["README.txt", f"rescue_{DIGEST[:16]}.py"])
def test_no_server_can_have_such_a_name(workspace: Workspace, name: str) -> None:
    workspace.configure(server=name)
    assert name in workspace.run("index", expect=2).stderr


def test_the_doctor_prints_the_hash(workspace: Workspace) -> None:
    assert workspace.run("doctor").result["rescue_script_sha256"] == DIGEST
    assert f"SHA-256 {DIGEST}" in workspace.execute("doctor").stdout.decode()
