"""Fixtures that every test may use."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator

import pytest
from azure.core.exceptions import ResourceExistsError
from azure.storage.blob import BlobServiceClient
from hypothesis import settings

from tests.azurite_server import AzuriteServer

# A busy machine is no fault of the code; the time limit of a whole test is pytest-timeout's.
settings.register_profile("blobark", deadline=None)
settings.load_profile("blobark")


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
