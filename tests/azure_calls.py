"""Every kind of request that the Azure store makes, and stores to make them with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from azure.storage.blob import ContainerClient

from blobark.stores.azure import AzureStore
from blobark.stores.base import Store
from blobark.stores.http import SMALL_BYTES
from blobark.stores.retry import Retrying
from tests.fault_proxy import FaultProxy
from tests.in_blocks import InBlocks

BLOCK = b"block of content " * 40_000


def open_through(proxy: FaultProxy, azure_container: tuple[str, str], **options: Any) -> AzureStore:
    text, azure_name = azure_container
    return AzureStore.from_connection_string(proxy.rewire(text), azure_name, workers=4, **options)


def retrying(store: AzureStore) -> Retrying:
    return Retrying(store, first_wait_s=0.01, cap_wait_s=0.05)


def calls_of(store: Store) -> dict[str, Callable[[], object]]:
    """Return every kind of request that a store makes, for a blob `there` of 10 bytes."""
    return {
        "stat": lambda: store.stat("there"),
        "stat/": lambda: store.stat("there/"),
        "list": lambda: list(store.list("")),
        "read": lambda: store.read("there"),
        "read range": lambda: store.read("there", 2, 5),
        "read/": lambda: store.read("there/"),
        "put": lambda: store.put("new", b"x", {}),
        "put big": lambda: store.put("big", bytes(SMALL_BYTES + 1), {}),
        "put/": lambda: store.put("new/", b"x", {}),
        "add": lambda: InBlocks(store.begin("blocks")).add(b"x"),
        "commit": lambda: InBlocks(store.begin("blocks")).commit({}),
        "delete": lambda: store.delete("there"),
        "rehydrate": lambda: store.rehydrate("there/", "high"),
    }


CALLS = tuple(calls_of(None))  # type: ignore[arg-type]


def fill(container: ContainerClient) -> None:
    container.upload_blob("there", b"0123456789")
    container.upload_blob("there/", b"0123456789")
