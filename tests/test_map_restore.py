"""Containers that earlier scripts of this kind have filled come back with their map alone.

Their keys are `<server>_<guid>`, or bare GUIDs; the map has absolute paths; a skipped folder is an empty blob
`<server>_<guid>/`; nothing has metadata. A map that is wrong is refused before anything is written.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import pytest
from azure.storage.blob import BlobServiceClient, ContainerClient, ContentSettings

from blobark.content import describe_blob
from blobark.model import Entry
from blobark.stores.base import BlobInfo
from blobark.stores.folder import FolderStore
from tests.forge import Forge
from tests.runs import Run, Workspace

SOURCE = "/srv/application"
SERVER = "WEB_01"

FILES = {
    f"{SOURCE}/a": b"first",
    f"{SOURCE}/empty": b"",
    f"{SOURCE}/logs/old/b": b"second",
    f"{SOURCE}/logs/two\nlines \x1b[31m": b"third",
    f"{SOURCE}/z/large": os.urandom(9 << 20),
}


class Old(Protocol):
    """What the earlier scripts have filled."""

    def put(self, key: str, data: bytes) -> None: ...

    def settings(self) -> Mapping[str, Any]: ...


class OldFolder:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._forge = Forge(folder)

    def put(self, key: str, data: bytes) -> None:
        if key.endswith("/"):
            path = self._folder / key / "%.blob"  # how a folder store names the blob whose key ends in a slash
        elif key[-2:] == key[-2:].lower():
            path = self._forge.path(key)
        else:
            path = self._folder / f"{zlib.crc32(key.encode()) & 0xFF:02x}" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def settings(self) -> Mapping[str, Any]:
        return {"store": str(self._folder)}


class OldContainer:
    def __init__(self, connection_string: str, name: str) -> None:
        self._connection_string = connection_string
        self._name = name
        self.client: ContainerClient = BlobServiceClient.from_connection_string(connection_string).get_container_client(
            name
        )

    def put(self, key: str, data: bytes) -> None:
        self.client.upload_blob(key, data, metadata={"hdi_isfolder": "true"} if key.endswith("/") else None)

    def settings(self) -> Mapping[str, Any]:
        return {"store": "azure", "connection_string": self._connection_string, "container_name": self._name}


class OldServer:
    """A machine that had the earlier scripts, and their map."""

    def __init__(self, folder: Path, old: Old) -> None:
        self.old = old
        self.workspace = Workspace(folder / "work", Path(SOURCE), **old.settings())
        self.restored = self.workspace.restored
        self.map: dict[str, str] = {}

    def file(self, path: str, data: bytes, key: str = "") -> str:
        """Store a file; returns its key."""
        key = key or f"{SERVER}_{uuid.uuid4()}"
        self.old.put(key, data)
        self.map[key] = path
        return key

    def restore(self, code: int | None, *options: str, text: str | bytes | None = None) -> Run:
        """Restore with the map, or with this text for one."""
        raw = json.dumps(self.map) if text is None else text
        self.workspace.map.write_bytes(raw if isinstance(raw, bytes) else raw.encode())
        run = self.workspace.run("restore", "--map", str(self.workspace.map), *options, expect=code)
        assert all(line.isprintable() for line in run.stderr.splitlines()), run.stderr
        return run

    def tree(self) -> dict[str, bytes | None]:
        """Return what is below restore_root: the content of files, None for directories."""
        paths = sorted(self.restored.rglob("*"))
        return {str(path.relative_to(self.restored)): None if path.is_dir() else path.read_bytes() for path in paths}


@pytest.fixture
def in_folder(tmp_path: Path) -> OldServer:
    return OldServer(tmp_path, OldFolder(tmp_path / "old"))


@pytest.fixture
def in_azure(tmp_path: Path, azure_container: tuple[str, str]) -> OldServer:
    return OldServer(tmp_path, OldContainer(*azure_container))


@pytest.fixture(params=["folder", "azure"])
def server(request: pytest.FixtureRequest) -> OldServer:
    made: OldServer = request.getfixturevalue(f"in_{request.param}")
    return made


def expected(strip: str) -> dict[str, bytes | None]:
    """Return the tree that FILES and the skipped folders become below restore_root."""
    found: dict[str, bytes | None] = {}
    for path, data in {**FILES, f"{SOURCE}/cache/": None, f"{SOURCE}/logs/tmp/": None}.items():
        below = path.removeprefix(strip).strip("/")
        parts = below.split("/")
        found.update({"/".join(parts[:depth]): None for depth in range(1, len(parts))})
        found[below] = data
    return found


def fill(server: OldServer) -> None:
    for path, data in FILES.items():
        server.file(path, data)
    server.file(f"{SOURCE}/cache", b"", f"{SERVER}_{uuid.uuid4()}/")
    server.file(f"{SOURCE}/logs/tmp/", b"", f"{SERVER}_{uuid.uuid4()}/")


# Where things go


def test_the_tree_comes_back(server: OldServer) -> None:
    fill(server)
    result = server.restore(0).result
    assert server.tree() == expected(SOURCE)
    assert (result["files"], result["failed"]) == (5, [])
    assert result["file_bytes"] == sum(map(len, FILES.values()))


@pytest.mark.parametrize("strip", ["/srv", "/srv/", "/"])
def test_another_prefix_is_taken_off(in_folder: OldServer, strip: str) -> None:
    fill(in_folder)
    in_folder.restore(0, "--strip-prefix", strip)
    assert in_folder.tree() == expected(strip)


def test_with_several_source_paths_each_keeps_its_full_path(in_folder: OldServer) -> None:
    in_folder.workspace.configure(source_path=[SOURCE, "/srv/other"])
    fill(in_folder)
    in_folder.file("/srv/other/c", b"other")
    in_folder.restore(0)
    assert in_folder.tree() == {**expected("/"), "srv/other": None, "srv/other/c": b"other"}


def test_the_order_of_a_map_does_not_matter(in_folder: OldServer) -> None:
    fill(in_folder)
    backwards = dict(reversed(in_folder.map.items()))
    result = in_folder.restore(0, text=json.dumps(backwards)).result
    assert in_folder.tree() == expected(SOURCE)
    assert result["dirs"] == 5


@pytest.mark.parametrize("path", ["/srv/other/c", "/srv/application2/c", "/srv", SOURCE])
def test_a_path_outside_the_prefix_is_refused_by_name(in_folder: OldServer, path: str) -> None:
    fill(in_folder)
    in_folder.file(path, b"")
    error = in_folder.restore(2).result["error"]
    assert path in error
    assert SOURCE in error
    assert not in_folder.restored.exists()


def test_a_prefix_may_be_no_utf8(in_folder: OldServer) -> None:
    raw = os.fsdecode(b"/srv/not utf-8 \xff")
    in_folder.file(f"{raw}/\udcfe", b"odd")
    in_folder.restore(0, "--strip-prefix", raw)
    assert (in_folder.restored / "\udcfe").read_bytes() == b"odd"


def test_a_dry_run_writes_nothing(in_folder: OldServer) -> None:
    fill(in_folder)
    assert in_folder.restore(0, "--dry-run").result["written"] == 5
    assert not in_folder.restored.exists()


def test_a_map_of_nothing_is_done_at_once(in_folder: OldServer) -> None:
    assert in_folder.restore(0, text="{}").result["files"] == 0


# Which blob it is


@pytest.mark.parametrize("how", ["option", "configuration"])
def test_bare_guids_belong_to_the_server_that_is_named(in_folder: OldServer, how: str) -> None:
    guid = str(uuid.uuid4())
    in_folder.old.put(f"web1_{guid}", b"found")
    if how == "configuration":
        in_folder.workspace.configure(server="web1")
    options = ["--server", "web1"] if how == "option" else []
    in_folder.restore(0, *options, text=json.dumps({guid: f"{SOURCE}/a"}))
    assert in_folder.tree() == {"a": b"found"}


def test_bare_guids_without_a_server_are_the_keys(server: OldServer) -> None:
    server.file(f"{SOURCE}/a", b"found", str(uuid.uuid4()))
    server.restore(0)
    assert server.tree() == {"a": b"found"}


def test_a_key_in_capitals_is_taken_as_written(server: OldServer) -> None:
    server.file(f"{SOURCE}/a", b"found", f"{SERVER}_{str(uuid.uuid4()).upper()}")
    server.file(f"{SOURCE}/b", b"found, too", str(uuid.uuid4()).upper())
    server.restore(0)
    assert server.tree() == {"a": b"found", "b": b"found, too"}


def test_blobs_that_are_missing_are_named_and_the_others_restored(server: OldServer) -> None:
    fill(server)
    gone = [f"{SERVER}_{uuid.uuid4()}", f"OTHER_{uuid.uuid4()}"]
    server.map.update({gone[0]: f"{SOURCE}/gone", gone[1]: f"{SOURCE}/logs/also gone"})
    failed = dict(server.restore(3).result["failed"])
    assert failed.keys() == {"gone", "logs/also gone"}
    assert gone[0] in failed["gone"]
    assert server.tree() == expected(SOURCE)


@pytest.mark.parametrize("size", [100, 9 << 20], ids=["small", "large"])
def test_content_with_another_md5_than_the_stores_is_refused(in_azure: OldServer, size: int) -> None:
    assert isinstance(in_azure.old, OldContainer)
    data = os.urandom(size)
    for name, md5 in (("none", b""), ("right", hashlib.md5(data).digest()), ("wrong", hashlib.md5(b"").digest())):
        key = in_azure.file(f"{SOURCE}/{name}", data)
        in_azure.old.client.get_blob_client(key).set_http_headers(ContentSettings(content_md5=bytearray(md5) or None))
    failed = in_azure.restore(3).result["failed"]
    assert [path for path, _ in failed] == ["wrong"]
    assert in_azure.tree() == {"none": data, "right": data}


def test_what_blobs_carry_themselves_is_restored_too(tmp_path: Path, azure_container: tuple[str, str]) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").write_bytes(b"mine")
    (source / "file").chmod(0o640)
    os.utime(source / "file", ns=(1, 1_000_000_000_123_456_789))
    workspace = Workspace(tmp_path / "work", source, **OldContainer(*azure_container).settings())
    workspace.backup()
    container = OldContainer(*azure_container).client
    for name in [blob.name for blob in container.list_blobs("blobark/")]:
        container.delete_blob(name)
    workspace.run("restore", "--map", str(workspace.map))
    status = (workspace.restored / "file").stat()
    assert (status.st_mode & 0o7777, status.st_mtime_ns) == (0o640, 1_000_000_000_123_456_789)


# Maps that are refused before anything is written

GUIDS = [str(uuid.UUID(int=number, version=4)) for number in range(3)]


def pairs(*items: tuple[str, str]) -> str:
    """Return a JSON object of these pairs, whatever comes twice."""
    return "{" + ", ".join(f"{json.dumps(key)}: {json.dumps(path)}" for key, path in items) + "}"


MAPS: dict[str, str | bytes] = {
    "nothing": "",
    "no JSON": "guid,path\n",
    "an array": "[]",
    "cut short": pairs((GUIDS[0], f"{SOURCE}/a"), (GUIDS[1], f"{SOURCE}/b"))[:-20],
    "a comma too many": pairs((GUIDS[0], f"{SOURCE}/a"))[:-1] + ",}",
    "two maps": pairs((GUIDS[0], f"{SOURCE}/a")) * 2,
    "not UTF-8": pairs((GUIDS[0], f"{SOURCE}/X")).encode().replace(b"X", b"\xff"),
    "UTF-16": pairs((GUIDS[0], f"{SOURCE}/a")).encode("utf-16"),
    "a number": json.dumps({GUIDS[0]: 5}),
    "a map in the map": json.dumps({GUIDS[0]: {"path": f"{SOURCE}/a"}}),
    "a key twice": pairs((GUIDS[0], f"{SOURCE}/a"), (GUIDS[0], f"{SOURCE}/b")),
    "a key twice, once in capitals": pairs((GUIDS[1], f"{SOURCE}/a"), (GUIDS[1].upper(), f"{SOURCE}/b")),
    "a path twice": pairs((GUIDS[0], f"{SOURCE}/a"), (GUIDS[1], f"{SOURCE}/a")),
    "a path twice, once as a folder": pairs((GUIDS[0], f"{SOURCE}/a"), (GUIDS[1], f"{SOURCE}/a/")),
    "no GUID": pairs(("readme.txt", f"{SOURCE}/a")),
    "a GUID cut short": pairs((GUIDS[0][:-1], f"{SOURCE}/a")),
    "a GUID with a path": pairs((f"../{GUIDS[0]}", f"{SOURCE}/a")),
    "a path that goes up": pairs((GUIDS[0], f"{SOURCE}/../../etc/passwd")),
    "a path with dots in between": pairs((GUIDS[0], f"{SOURCE}/./a")),
    "a path with an empty part": pairs((GUIDS[0], f"{SOURCE}//a")),
    "a path with NUL": pairs((GUIDS[0], f"{SOURCE}/a\0b")),
    "a relative path": pairs((GUIDS[0], "srv/application/a")),
    "no path": pairs((GUIDS[0], "")),
    "a name of 256 bytes": pairs((GUIDS[0], f"{SOURCE}/{'n' * 256}")),
    "half a surrogate pair": json.dumps({GUIDS[0]: f"{SOURCE}/\ud800"}),
    "escapes": pairs((GUIDS[0], "/elsewhere/\x1b[2J\nblobark: all is well")),
}


@pytest.mark.parametrize("text", MAPS.values(), ids=MAPS.keys())
def test_a_map_that_is_wrong_is_refused(in_folder: OldServer, text: str | bytes) -> None:
    for guid in GUIDS:
        in_folder.old.put(guid, b"there")
    run = in_folder.restore(2, text=text)
    assert len(run.stderr.splitlines()) == 1
    assert str(in_folder.workspace.map) in run.result["error"]
    assert not in_folder.restored.exists()


@pytest.mark.parametrize(("first", "second"), [("a", "a/b"), ("a/b", "a")])
def test_a_file_below_a_file_is_told(in_folder: OldServer, first: str, second: str) -> None:
    in_folder.file(f"{SOURCE}/{first}", b"first")
    for number in range(50):
        in_folder.file(f"{SOURCE}/{number}", b"")
    in_folder.file(f"{SOURCE}/{second}", b"second")
    assert in_folder.restore(None).code in (2, 3)


def test_a_map_that_is_not_there_is_named(in_folder: OldServer) -> None:
    for options in (["--map", "/no/such/map"], ["--map", str(in_folder.workspace.folder)]):
        run = in_folder.workspace.run("restore", *options, expect=2)
        assert options[1] in run.result["error"]
        assert not in_folder.restored.exists()


def test_a_placeholder_of_another_tool_is_a_directory(tmp_path: Path, azure_container: tuple[str, str]) -> None:
    """Such a tool may name it without a slash; the blob itself says what it is."""
    text, name = azure_container
    old = OldContainer(text, name)
    guids = [str(uuid.uuid4()) for _ in range(3)]
    old.client.upload_blob(guids[0], b"", metadata={"Hdi_IsFolder": "True"})
    old.client.upload_blob(guids[1], b"", metadata={"hdi_isfolder": "false"})
    old.client.upload_blob(guids[2], b"text", metadata={"hdi_isfolder": "true"})
    places = ["folder", "empty", "text"]
    workspace = Workspace(tmp_path / "work", Path(SOURCE), **old.settings())
    saved = tmp_path / "saved.json"
    saved.write_text(json.dumps({guid: f"{SOURCE}/{place}" for guid, place in zip(guids, places, strict=True)}))
    done = workspace.run("restore", "--map", str(saved)).result
    assert (done["files"], done["dirs"]) == (2, 1)
    assert list((workspace.restored / "folder").iterdir()) == []
    assert (workspace.restored / "empty").read_bytes() == b""
    assert (workspace.restored / "text").read_bytes() == b"text"
    assert workspace.run("restore", "--map", str(saved)).result["failed"] == []


class CountedFolder(FolderStore):
    """A folder store that counts its listings."""

    listings = 0

    def list(self, prefix: str, *, meta: bool = False, times: bool = False) -> Iterator[BlobInfo]:
        self.listings += 1
        return super().list(prefix, meta=meta, times=times)


def test_a_folder_is_not_listed_for_each_file(tmp_path: Path) -> None:
    """It would be read from end to end for each, and tells no MD5."""
    store = CountedFolder(str(tmp_path), create=True)
    store.put("one", b"content", {})
    described = describe_blob(store, "one", Entry(path="file"))
    assert (described.entry.size, described.md5, store.listings) == (7, "", 0)
