"""The rebuild: every snapshot is gone, and what the blobs say of themselves becomes a tree again."""

from __future__ import annotations

import base64
import json
import os
import shutil
from pathlib import Path
from random import Random

import pytest
from azure.storage.blob import ContainerClient, StandardBlobTier

from tests.runs import Workspace
from tests.trees import contents_of, make_tree, write
from tools.compare import facts_of

MIB = 1024 * 1024
GUID = "0a0b0c0d-0000-4000-8000-00000000000"


@pytest.fixture
def workspace(tmp_path: Path, azure_container: tuple[str, str]) -> Workspace:
    source = tmp_path / "source"
    source.mkdir()
    return Workspace.on_azure(tmp_path / "work", source, *azure_container)


def lose_snapshots(container: ContainerClient, *, server_too: bool = True) -> None:
    for blob in container.list_blobs("blobark/"):
        if server_too or "server.json" not in blob.name:
            container.delete_blob(blob.name)


def restored(workspace: Workspace, folder: str = "") -> dict[str, str]:
    """Return the text of every file below restore_root."""
    top = workspace.restored / folder
    return {str(path.relative_to(top)): path.read_text() for path in sorted(top.rglob("*")) if path.is_file()}


def test_a_tree_comes_back_without_what_no_blob_tells(
    tmp_path: Path, azure_container: tuple[str, str], container: ContainerClient
) -> None:
    source = make_tree(tmp_path / "source")
    skipped = source / "cache"
    write(skipped / "junk", "junk")
    workspace = Workspace.on_azure(tmp_path / "work", source, *azure_container, skip_path=["cache"])
    workspace.backup()
    lose_snapshots(container)
    plan = workspace.run("rebuild", "--dry-run").result
    assert (plan["snapshot"], plan["older"], plan["lost"], plan["failed"]) == (0, 0, 0, [])
    assert plan["requests"] == {"list blobs": 1, "read blobs that are no file": 0, "put header": 1}
    assert [blob.name for blob in container.list_blobs("blobark/")] == []
    done = workspace.run("rebuild", expect=3)
    assert (done.result["snapshot"], done.result["older"], done.result["lost"]) == (1, 0, 0)
    assert "symlinks" in done.stderr
    header = json.loads(container.download_blob("blobark/web1/snapshots/0000000001").readall())
    assert (header["rescued"], header["complete"]) == (True, False)
    shutil.rmtree(workspace.state)
    workspace.run("restore", expect=3)
    assert list((workspace.restored / "cache").iterdir()) == []
    theirs, ours = facts_of(str(source)), facts_of(str(workspace.restored))
    files = {path for path in theirs if (source / os.fsdecode(path)).is_file()}
    files -= {path for path in files if (source / os.fsdecode(path)).is_symlink()} | {b"cache/junk"}
    linked = {path for path in files if (source / os.fsdecode(path)).stat().st_nlink > 1}
    assert len(linked & ours.keys()) == 1
    for path in files - linked:
        assert ours[path] == theirs[path], path
    assert ours.keys() <= theirs.keys()


def test_the_newest_version_has_the_path_and_the_others_their_guid(
    workspace: Workspace, container: ContainerClient
) -> None:
    source = workspace.source
    write(source / "a", "a, first")
    write(source / "turned", "a file that became a directory")
    write(source / "same" / "x", "x")
    write(source / ("n" * 250), "long, first")
    workspace.backup()
    first = workspace.guids()
    write(source / "a", "a, second version")
    write(source / ("n" * 250), "long, second version")
    (source / "turned").unlink()
    write(source / "turned" / "below", "below")
    # As after an earlier rescue: a file that has the name which an older version would get.
    write(source / f"a.~{first['a'][5:]}", "a name that is taken")
    workspace.backup()
    lose_snapshots(container)
    done = workspace.run("rebuild", expect=3).result
    assert (done["older"], done["lost"]) == (3, 0)
    workspace.run("restore", expect=3)
    long_guid = first["n" * 250][5:]
    assert restored(workspace) == {
        "a": "a, second version",
        f"a.~{first['a'][5:]}": "a name that is taken",
        f"a.~{first['a'][5:]}1": "a, first",
        f"turned.~{first['turned'][5:]}": "a file that became a directory",
        "turned/below": "below",
        "same/x": "x",
        "n" * 250: "long, second version",
        "n" * 217 + f".~{long_guid}": "long, first",
    }


def test_blobs_that_say_nothing_come_back_below_lost_and_found(
    workspace: Workspace, container: ContainerClient
) -> None:
    write(workspace.source / "a", "a")
    workspace.backup()
    lose_snapshots(container)
    container.upload_blob(f"web1_{GUID}1", b"foreign")
    container.upload_blob("web1_no/guid", b"no GUID")
    container.upload_blob(f"web1_{GUID}2", b"", metadata={"hdi_isfolder": "true"})
    container.upload_blob(f"web1_{GUID}3", b"liar", metadata={"blobark_entry": "e30=", "blobark_root": "Lw=="})
    container.upload_blob(f"web1_{GUID}4", b"frozen", standard_blob_tier=StandardBlobTier.ARCHIVE)
    container.upload_blob(f"web10_{GUID}5", b"another server's")
    done = workspace.run("rebuild", expect=3).result
    assert (done["lost"], done["nameless"]) == (4, 1)
    assert [path for path, _ in done["failed"]] == [f"web1_{GUID}4", "snapshot 1"]
    assert "in the archive tier" in done["failed"][0][1]
    workspace.run("restore", expect=3)
    assert restored(workspace) == {
        "a": "a",
        f"lost+found/{GUID}1": "foreign",
        "lost+found/no/guid": "no GUID",
        f"lost+found/{GUID}3": "liar",
    }


@pytest.fixture
def versions(workspace: Workspace, container: ContainerClient) -> dict[str, bytes]:
    """Three versions of one large file, of which the later ones cite the earlier: the key of each's blob -> content."""
    workspace.configure(delta="extents")
    random = Random(5)
    content = random.randbytes(32 * MIB)
    found: dict[str, bytes] = {}
    for place in (0, 6 * MIB, 26 * MIB):
        content = content[:place] + random.randbytes(64) + content[place:]
        (workspace.source / "large").write_bytes(content)
        workspace.backup()
        [key] = {blob.name for blob in container.list_blobs("web1_")} - found.keys()
        found[key] = content
    sizes = {blob.name: blob.size for blob in container.list_blobs("web1_")}
    assert [sizes[key] < 16 * MIB for key in found] == [False, True, True], "the later ones hold what is new"
    lose_snapshots(container)
    return found


def of_large(workspace: Workspace) -> dict[str, bytes]:
    """Restore; return the content of what came back."""
    workspace.run("restore", expect=3)
    return contents_of(workspace.restored)


def test_versions_that_cite_earlier_blobs_come_back(workspace: Workspace, versions: dict[str, bytes]) -> None:
    plan = workspace.run("rebuild", "--dry-run").result
    done = workspace.run("rebuild", expect=3).result
    assert (done["older"], done["lost"], len(done["failed"])) == (2, 0, 1)
    assert [plan[name] for name in ("older", "files", "file_bytes")] == [2, 3, done["file_bytes"]]
    first, second, third = versions
    assert of_large(workspace) == {
        "large": versions[third],
        f"large.~{first[5:]}": versions[first],
        f"large.~{second[5:]}": versions[second],
    }
    shutil.rmtree(workspace.state)
    assert workspace.backup().result["sent"] == 0, "what was rescued is known, and goes on"
    assert workspace.run("restore").result["failed"] == []


@pytest.mark.parametrize("fault", ["gone", "short", "cites another server"])
def test_what_is_left_of_a_version_that_cites_what_is_not_there_is_named(
    workspace: Workspace, container: ContainerClient, versions: dict[str, bytes], fault: str
) -> None:
    first, second, third = versions
    left = container.download_blob(third).readall()
    lost = {f"lost+found/{third[5:]}": left}
    blob = container.get_blob_client(second)
    if fault == "gone":
        blob.delete_blob()
        said = f"{second}, which holds a part of it, is missing"
    elif fault == "short":
        blob.upload_blob(b"short", overwrite=True)
        lost[f"lost+found/{second[5:]}"] = b"short"
        said = f"{second}, which holds a part of it, has 5 bytes and not "
    else:
        own = container.get_blob_client(third)
        meta = own.get_blob_properties().metadata
        entry = base64.urlsafe_b64decode(meta["blobark_entry"]).replace(second.encode(), f"web2{second[4:]}".encode())
        own.set_blob_metadata({**meta, "blobark_entry": base64.urlsafe_b64encode(entry).decode()})
        container.upload_blob(f"web2{second[4:]}", blob.download_blob().readall())
        said = f"web2{second[4:]}, which holds a part of it, is missing"
    plan = workspace.run("rebuild", "--dry-run", expect=3).result
    done = workspace.run("rebuild", expect=3).result
    assert (plan["lost"], done["lost"], plan["failed"]) == (len(lost), len(lost), done["failed"][:1])
    [path, reason], [snapshot, _] = done["failed"]
    assert (path, snapshot) == (str(workspace.source / "large"), "snapshot 1")
    assert reason.startswith(said)
    assert reason.endswith(f"; what is left is lost+found/{third[5:]}")
    whole = {"large": versions[first]}
    if fault == "cites another server":
        whole = {"large": versions[second], f"large.~{first[5:]}": versions[first]}
    assert of_large(workspace) == whole | lost


def test_roots_come_back_under_their_names_and_one_inside_another_as_one(
    tmp_path: Path, azure_container: tuple[str, str], container: ContainerClient
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    write(one / "sub" / "x", "x")
    write(two / "y", "y")
    workspace = Workspace.on_azure(tmp_path / "work", one, *azure_container, source_path=[str(one / "sub"), str(two)])
    workspace.backup()
    write(one / "z", "z")
    workspace.configure(source_path=[str(one), str(two)])
    workspace.backup()
    lose_snapshots(container)
    workspace.run("rebuild", expect=3)
    workspace.run("restore", expect=3)
    found = restored(workspace, str(tmp_path)[1:])
    older = [name for name in found if ".~" in name]
    assert len(older) == 1
    assert {name: text for name, text in found.items() if name not in older} == {
        "one/sub/x": "x",
        "one/z": "z",
        "two/y": "y",
    }


def test_index_and_save_go_on_from_a_rescued_snapshot(workspace: Workspace, container: ContainerClient) -> None:
    for number in range(5):
        write(workspace.source / f"file-{number}", f"content {number}")
    workspace.backup()
    lose_snapshots(container)
    workspace.run("rebuild", expect=3)
    shutil.rmtree(workspace.state)
    write(workspace.source / "new", "new")
    saved = workspace.backup().result
    assert (saved["snapshot"], saved["complete"], saved["sent"]) == (2, True, 1)
    assert workspace.run("restore").result["files"] == 6


def test_a_save_whose_state_is_whole_needs_no_rebuild(workspace: Workspace, container: ContainerClient) -> None:
    write(workspace.source / "a", "a")
    workspace.backup()
    lose_snapshots(container)
    saved = workspace.run("save", "--new-store").result
    assert (saved["snapshot"], saved["complete"], saved["sent"]) == (1, True, 0)


def test_it_refuses_where_a_snapshot_can_be_read(workspace: Workspace, container: ContainerClient) -> None:
    write(workspace.source / "a", "a")
    workspace.backup()
    write(workspace.source / "b", "b")
    workspace.backup()
    refused = workspace.run("rebuild", expect=4)
    assert refused.result["error"] == "snapshot 2 of web1 can be read"
    container.upload_blob("blobark/web1/snapshots/0000000002", b"damaged", overwrite=True)
    assert workspace.run("rebuild", expect=4).result["error"] == "snapshot 1 of web1 can be read"
    before = {blob.name: blob.etag for blob in container.list_blobs() if not blob.name.endswith("/lock")}
    assert workspace.run("rebuild", "--force", expect=3).result["snapshot"] == 3
    after = {blob.name: blob.etag for blob in container.list_blobs()}
    assert before.items() <= after.items()
    assert workspace.run("rebuild", expect=4).result["error"] == "snapshot 3 of web1 can be read"


def test_it_says_what_it_cannot_do(
    tmp_path: Path, workspace: Workspace, azure_container: tuple[str, str], container: ContainerClient
) -> None:
    assert "holds no blob of web1" in workspace.run("rebuild", expect=4).stderr
    write(workspace.source / "a", "a")
    workspace.backup()
    lose_snapshots(container)
    del workspace.settings["server"]
    workspace.configure()
    told = workspace.run("rebuild", expect=2).stderr
    assert "does not say whose it is: say --server web1" in told
    folder = Workspace(tmp_path / "folder", workspace.source)
    folder.backup()
    assert "--map brings files back by the map" in folder.run("rebuild", expect=2).stderr
