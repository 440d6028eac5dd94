"""Fixtures that every test may use."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from azure.core.exceptions import ResourceExistsError
from azure.storage.blob import BlobServiceClient, ContainerClient
from hypothesis import settings

from blobark.stores.azure import AzureStore
from tests.azure_calls import open_through
from tests.azurite_server import AzuriteServer
from tests.fault_proxy import FaultProxy
from tests.forked import Forking
from tests.runs import Workspace
from tests.scene import Scene

# A busy machine is no fault of the code; the time limit of a whole test is pytest-timeout's.
settings.register_profile("blobark", deadline=None)
settings.load_profile("blobark")

# What a shell starts with `&`, or through nohup, ignores these, and so would every command that a test sends them to.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session")
def azurite() -> Iterator[AzuriteServer]:
    """One Azurite for each process that runs tests. A test that stops or kills it starts its own instead."""
    with AzuriteServer() as server:
        yield server


@pytest.fixture
def azure_container(azurite: AzuriteServer) -> tuple[str, str]:
    """A connection string, and the name of a new, empty container."""
    name = f"test-{uuid.uuid4().hex}"
    service = BlobServiceClient.from_connection_string(azurite.connection_string)
    # The SDK repeats a request whose answer was lost; the name is new, so what exists is this test's.
    with service, contextlib.suppress(ResourceExistsError):
        service.create_container(name)
    return azurite.connection_string, name


@pytest.fixture
def container(azure_container: tuple[str, str]) -> Iterator[ContainerClient]:
    """The container of `azure_container`, by another way than the code under test."""
    with ContainerClient.from_connection_string(*azure_container) as client:
        yield client


@pytest.fixture
def proxy(azurite: AzuriteServer) -> Iterator[FaultProxy]:
    """A proxy before Azurite; `rewire` leads a connection string through it."""
    with FaultProxy(azurite.port) as proxy:
        yield proxy


@pytest.fixture(scope="session", autouse=True)
def forking() -> Iterator[Forking]:
    """One process that forks for the command lines of all tests of a process."""
    with Forking() as Workspace.forking:
        yield Workspace.forking


@pytest.fixture
def scene(tmp_path: Path, forking: Forking) -> Scene:
    """A restore of a forged snapshot, with a folder outside that must stay as it is."""
    return Scene(tmp_path, forking)


@pytest.fixture
def nobodys(forking: Forking) -> Iterator[Scene]:
    """A scene where nobody can get to."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o755)
        yield Scene(Path(folder), forking)


@pytest.fixture(params=["folder", "azure"])
def where(request: pytest.FixtureRequest) -> str:
    """Where the store of a test is that runs once with each."""
    return str(request.param)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the test's own, which is the current one."""
    folder = tmp_path.resolve() / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def store(proxy: FaultProxy, azure_container: tuple[str, str]) -> Iterator[AzureStore]:
    """A store behind the proxy; the container is also there without it, in `container`."""
    store = open_through(proxy, azure_container)
    yield store
    store.close()
