"""The suite on every store, and what is a folder's own."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blobark.config import Login, Secret
from blobark.errors import (
    BlobarkError,
    BlobNotFound,
    ConfigError,
    ContentError,
    StoreDenied,
    StoreFull,
    StoreMissing,
    StoreUnusable,
)
from blobark.stores.azure import AzureStore
from blobark.stores.base import Store, check_key
from blobark.stores.folder import FolderStore
from blobark.stores.open import open_store
from blobark.stores.paths import key_of, path_of
from blobark.stores.retry import Retrying
from tests.azurite_server import AzuriteServer
from tests.in_blocks import InBlocks
from tests.runs import REPOSITORY
from tests.store_blobs import names
from tests.store_keys import BAD_KEYS, ODD_KEYS
from tests.store_suite import StoreSuite

GUID = "0123abcd-0000-8000-8000-0000000000ef"


class TestFolder(StoreSuite):
    @pytest.fixture
    def open_again(self, tmp_path: Path) -> Callable[[], Store]:
        return lambda: FolderStore(str(tmp_path / "store"), create=True)


class TestFolderOnSimpleFileSystem(StoreSuite):
    """Without files that have no name yet, as on network mounts."""

    thousands = 200

    @pytest.fixture
    def open_again(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Store]:
        without_nameless_files(monkeypatch)
        return lambda: FolderStore(str(tmp_path / "store"), create=True)


class TestFolderOnSimplestFileSystem(StoreSuite):
    """Without those and without hard links, as on exFAT."""

    thousands = 200

    @pytest.fixture
    def open_again(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Store]:
        def link(*_: object, **__: object) -> None:
            raise PermissionError(errno.EPERM, "Operation not permitted")

        without_nameless_files(monkeypatch)
        monkeypatch.setattr(os, "link", link)
        return lambda: FolderStore(str(tmp_path / "store"), create=True)


class TestFolderThatHoldsFewNamesAtOnce(StoreSuite):
    thousands = 1300

    @pytest.fixture
    def open_again(self, tmp_path: Path) -> Callable[[], Store]:
        return lambda: FolderStore(str(tmp_path / "store"), create=True, names_at_once=300)


class TestRetryingFolder(StoreSuite):
    thousands = 200

    @pytest.fixture
    def open_again(self, tmp_path: Path) -> Callable[[], Store]:
        return lambda: open_store(str(tmp_path / "store"), create=True)


class TestAzure(StoreSuite):
    @pytest.fixture
    def open_again(self, azure_container: tuple[str, str]) -> Callable[[], Store]:
        return lambda: AzureStore.from_connection_string(*azure_container)

    # It waits for 15 s, the least that Azure allows; TestRetryingAzureWithSas does so in the usual suite.
    @pytest.mark.long
    def test_a_silent_holder_loses_the_lock_to_one_taker(self, short_locks: None, store: Store) -> None:
        super().test_a_silent_holder_loses_the_lock_to_one_taker(short_locks, store)


class TestRetryingAzureWithSas(StoreSuite):
    thousands = 200

    @pytest.fixture
    def open_again(self, azurite: AzuriteServer, azure_container: tuple[str, str]) -> Callable[[], Store]:
        container = azure_container[1]
        text = azurite.connection_with("?" + azurite.sas(container, "racwdl"))
        return lambda: open_store("azure", login=login_with(text), container=container, workers=4)


def login_with(connection_string: str) -> Login:
    return Login(auth="connection_string", secret=Secret(connection_string))


def without_nameless_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the file system answer as one that has no O_TMPFILE."""
    real = os.open

    def opened(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")
        return real(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", opened)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def folder(place: Path) -> Iterator[FolderStore]:
    store = FolderStore(str(place), create=True)
    yield store
    store.close()


def files_in(place: Path) -> list[str]:
    return sorted(str(path.relative_to(place)) for path in place.rglob("*") if not path.is_dir())


class TestLayout:
    def test_a_person_finds_the_file_of_a_guid(self, folder: FolderStore, place: Path) -> None:
        folder.put(f"web1_{GUID}", b"content", {})
        folder.put("blobark/web1/snapshots/0000000001", b"header", {})
        assert (place / "ef" / f"web1_{GUID}").read_bytes() == b"content"
        assert (place / "blobark/web1/snapshots/0000000001.blob").read_bytes() == b"header"

    def test_one_run_spreads_over_all_folders(self) -> None:
        used = {path_of(f"web1_0123abcd-0000-8000-8000-{number:012x}").split("/")[0] for number in range(1000)}
        assert len(used) == 256

    def test_nobody_else_may_read(self, folder: FolderStore, place: Path) -> None:
        folder.put("some", b"x", {})
        folder.put("some/nested", b"x", {}, create_only=False)
        upload = InBlocks(folder.begin("upload"))
        upload.add(b"x")
        upload.commit({})
        for path in [place, *place.rglob("*")]:
            assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path

    def test_paths_of_odd_keys(self) -> None:
        paths = {key: path_of(key) for key in ODD_KEYS}
        assert len(set(paths.values())) == len(paths)
        folders = {path.rsplit("/", count)[0] for path in paths.values() for count in range(1, path.count("/") + 1)}
        assert not folders & set(paths.values()), "a file would have to be a folder too"
        for key, path in paths.items():
            assert key_of(path) == key
            assert max(map(len, path.split("/"))) <= 255

    @given(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40))
    def test_a_key_has_one_path_and_back(self, key: str) -> None:
        try:
            check_key(key)
        except ConfigError:
            with pytest.raises(ConfigError):
                path_of(key)
        else:
            assert key_of(path_of(key)) == key
            assert not any(part in ("", ".", "..", ".tmp") for part in path_of(key).split("/"))

    @given(st.text("ab%2EF./ef", max_size=12))
    def test_a_path_has_one_key_or_none(self, path: str) -> None:
        key = key_of(path)
        assert key is None or path_of(key) == path

    @pytest.mark.parametrize("key", BAD_KEYS)
    def test_bad_keys_have_no_path(self, key: str) -> None:
        with pytest.raises(ConfigError):
            path_of(key)

    def test_other_files_are_nobodys(self, folder: FolderStore, place: Path) -> None:
        folder.put("web1_0a", b"", {})
        folder.put("blobark/x", b"", {})
        others = ["readme", "README.txt", "0a/.web1_1a.swp", "0a/web1_0b", "0a/sub/web1_0a", "blobark/notes"]
        for name in [
            *others,
            "blobark/%58.blob",
            "blobark/.y.blob",
            ".tmp/web1_1a",
            "%long/a.blob",
            "zz/caf\u00e9.blob",
        ]:
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(b"x")
        (place / "0a" / "link_0a").symlink_to(place / "0a" / "web1_0a")
        (place / "blobark" / "loop").symlink_to(place)
        os.mkfifo(place / "0a" / "pipe_0a")
        os.mkdir(place / "0a" / "folder_0a")
        assert names(folder.list("")) == ["blobark/x", "web1_0a"]

    def test_what_is_no_file_is_no_content(self, folder: FolderStore, place: Path) -> None:
        (place / "0a").mkdir()
        os.mkfifo(place / "0a" / "pipe_0a")
        (place / "0a" / "link_0a").symlink_to("/etc/hostname")
        (place / "0a" / "folder_0a").mkdir()
        for key in ("pipe_0a", "link_0a", "folder_0a"):
            with pytest.raises(ContentError):
                folder.read(key)
            with pytest.raises(ContentError):
                folder.stat(key)


class TestPlantedLinks:
    @pytest.fixture
    def outside(self, tmp_path: Path) -> Path:
        outside = tmp_path / "outside"
        outside.mkdir()
        return outside

    @pytest.mark.parametrize("create_only", [True, False])
    @pytest.mark.parametrize("simple", [True, False])
    @pytest.mark.parametrize("link", ["0a", "blobark", "blobark/web1", ".tmp"])
    def test_nothing_is_written_through_a_link(
        self, place: Path, outside: Path, monkeypatch: pytest.MonkeyPatch, link: str, simple: bool, create_only: bool
    ) -> None:
        (place / link).parent.mkdir(parents=True, exist_ok=True)
        (place / link).symlink_to(outside)
        if simple:
            without_nameless_files(monkeypatch)
        folder = FolderStore(str(place))
        for key in ("web1_0a", "blobark/web1/lock"):
            try:
                folder.put(key, b"x", {}, create_only=create_only)
            except StoreUnusable:
                pass
        assert list(outside.iterdir()) == []

    def test_a_link_in_place_of_the_file(self, folder: FolderStore, place: Path, outside: Path) -> None:
        (place / "0a").mkdir()
        (place / "0a" / "web1_0a").symlink_to(outside / "new")
        with pytest.raises(BlobarkError):
            folder.put("web1_0a", b"x", {})
        folder.put("web1_0a", b"x", {}, create_only=False)
        assert list(outside.iterdir()) == []
        assert folder.read("web1_0a") == b"x"

    def test_the_store_itself_may_be_a_link(self, tmp_path: Path, outside: Path) -> None:
        (tmp_path / "link").symlink_to(outside)
        FolderStore(str(tmp_path / "link"), create=True).put("web1_0a", b"x", {})
        assert files_in(outside) == ["0a/web1_0a"]


class TestFolderErrors:
    def test_a_missing_folder(self, place: Path) -> None:
        with pytest.raises(StoreMissing, match="mount"):
            FolderStore(str(place))

    def test_a_file_is_no_folder(self, place: Path) -> None:
        place.write_bytes(b"")
        for create in (True, False):
            with pytest.raises(StoreMissing):
                FolderStore(str(place), create=create)

    def test_a_folder_that_goes_away(self, folder: FolderStore, place: Path) -> None:
        place.rmdir()
        for call in (lambda: folder.put("a", b"", {}), lambda: folder.read("a"), lambda: folder.begin("a")):
            with pytest.raises(StoreMissing):
                call()

    def test_subfolders_may_go_away(self, folder: FolderStore, place: Path) -> None:
        folder.put("web1_0a", b"", {})
        folder.put("blobark/a", b"", {})
        for key, path in (("web1_0a", "0a"), ("blobark/a", "blobark")):
            folder.delete(key)
            (place / path).rmdir()
            folder.put(key, b"new", {})
            assert folder.read(key) == b"new"

    @pytest.mark.parametrize(
        ("number", "expected"),
        [
            (errno.ENOSPC, StoreFull),
            (errno.EDQUOT, StoreFull),
            (errno.EACCES, StoreDenied),
            (errno.EROFS, StoreDenied),
            (errno.EIO, StoreUnusable),
            (errno.EMFILE, StoreUnusable),
        ],
    )
    @pytest.mark.parametrize("simple", [True, False])
    def test_a_disk_that_fails(
        self,
        folder: FolderStore,
        place: Path,
        monkeypatch: pytest.MonkeyPatch,
        number: int,
        expected: type[BlobarkError],
        simple: bool,
    ) -> None:
        def fail(*_: object) -> int:
            raise OSError(number, os.strerror(number))

        if simple:
            without_nameless_files(monkeypatch)
        upload = InBlocks(folder.begin("upload"))
        monkeypatch.setattr(os, "pwrite", fail)
        calls: list[Callable[[], object]] = [lambda: folder.put("some_0a", b"x", {}), lambda: upload.add(b"x")]
        for call in calls:
            with pytest.raises(expected) as caught:
                call()
            assert os.strerror(number) in str(caught.value)
        monkeypatch.undo()
        upload.abort()
        assert files_in(place) == []
        assert open_files_below(place) == []

    def test_a_disk_that_cannot_read_one_blob(self, folder: FolderStore, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is no reason to give up all others."""
        folder.put("some_0a", b"x", {})

        def fail(*_: object) -> bytes:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(os, "pread", fail)
        with pytest.raises(ContentError, match="cannot be read"):
            folder.read("some_0a")

    def test_a_file_that_was_cut(self, folder: FolderStore, place: Path) -> None:
        folder.put("some_0a", b"0123456789", {})
        os.truncate(place / "0a" / "some_0a", 4)
        assert folder.stat("some_0a").size_bytes == 4
        with pytest.raises(ContentError):
            folder.read("some_0a", 0, 10)

    def test_no_file_stays_open(self, folder: FolderStore, place: Path) -> None:
        for number in range(20):
            folder.put(f"some_{number}", b"x", {})
            folder.read(f"some_{number}")
            upload = InBlocks(folder.begin(f"upload_{number}"))
            upload.add(b"x")
            if number % 2:
                upload.commit({})
            else:
                upload.abort()
        names(folder.list(""))
        assert open_files_below(place) == []


def open_files_below(place: Path) -> list[str]:
    """Return the files below a folder that this process has open."""
    if not os.path.isdir("/proc/self/fd"):
        return []
    opened = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue
        if target.startswith(f"{place}/"):
            opened.append(target)
    return opened


class TestLeftovers:
    def test_old_ones_go_and_new_ones_stay(self, folder: FolderStore, place: Path) -> None:
        (place / ".tmp").mkdir()
        for name, age_s in [("new", 0), ("hours", 20 * 3600), ("days", 25 * 3600)]:
            path = place / ".tmp" / name
            path.write_bytes(b"x")
            os.utime(path, (time.time() - age_s,) * 2)
        assert names(folder.list("")) == []
        folder.sync()
        assert files_in(place) == [".tmp/hours", ".tmp/new"]

    def test_nothing_is_made_by_opening_and_sync(self, folder: FolderStore, place: Path) -> None:
        folder.sync()
        assert list(place.iterdir()) == []

    WRITER = """
import hashlib, os, sys
from blobark.stores.folder import FolderStore
from tests.in_blocks import InBlocks
store = FolderStore(sys.argv[1])
print("ready", flush=True)
for number in range(10**9):
    data = os.urandom(3_000_000)
    key = hashlib.sha256(data).hexdigest()
    if number % 3:
        store.put(key, data, {}, create_only=number % 3 == 1)
    else:
        upload = InBlocks(store.begin(key))
        for start in range(0, len(data), 100_000):
            upload.add(data[start:start + 100_000])
        upload.commit({})
"""

    @pytest.mark.parametrize("turn", range(6))
    def test_a_killed_writer_leaves_whole_blobs_or_none(self, folder: FolderStore, place: Path, turn: int) -> None:
        command = [sys.executable, "-c", self.WRITER, str(place)]
        writer = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=REPOSITORY)
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
        while not files_in(place):
            assert writer.poll() is None, "it ended by itself"
            time.sleep(0.001)
        time.sleep(0.037 * turn)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        stored = names(folder.list(""))
        for key in stored:
            assert hashlib.sha256(folder.read(key)).hexdigest() == key
        leftovers = [path for path in files_in(place) if path.startswith(".tmp/")]
        assert len(files_in(place)) == len(stored) + len(leftovers)


class TestOpen:
    def test_a_folder(self, place: Path) -> None:
        with pytest.raises(StoreMissing):
            open_store(str(place))
        store = open_store(str(place), create=True)
        assert isinstance(store, Retrying)
        store.put("a", b"x", {})
        assert names(open_store(str(place)).list("")) == ["a"]

    def test_a_container_is_made_when_told_so(self, azurite: AzuriteServer) -> None:
        text = azurite.connection_string
        store = open_store("azure", login=login_with(text), container="not-there-yet")
        with pytest.raises(StoreMissing, match="create-container"):
            store.put("a", b"", {})
        for _ in range(2):
            open_store("azure", login=login_with(text), container="not-there-yet", create=True).put(
                "a", b"", {}, create_only=False
            )
        assert names(store.list("")) == ["a"]

    @pytest.mark.parametrize(
        ("location", "text", "container"),
        [("", "", ""), ("azure", "", "backup"), ("azure", "nonsense", "backup"), ("azure", "AccountName=x", "b")],
    )
    def test_what_is_no_store(self, location: str, text: str, container: str) -> None:
        with pytest.raises(ConfigError):
            open_store(location, login=login_with(text) if text else None, container=container)

    def test_missing_blob_is_told_from_missing_container(self, azure_container: tuple[str, str]) -> None:
        store = AzureStore.from_connection_string(*azure_container)
        with pytest.raises(BlobNotFound):
            store.stat("nothing")
