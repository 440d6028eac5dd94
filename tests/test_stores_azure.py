"""What is Azure's own: what it costs, and tiers."""

from __future__ import annotations

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from azure.storage.blob import ContainerClient, StandardBlobTier
from blake3 import blake3

from blobark.errors import (
    BlobNotFound,
    ContentError,
    Retryable,
    StoreUnusable,
)
from blobark.stores import azure_rest
from blobark.stores.azure import AzureStore
from tests import fault_proxy as faults
from tests.azure_calls import BLOCK, calls_of, fill, retrying
from tests.fault_proxy import FaultProxy
from tests.in_blocks import InBlocks


class TestWhatItCosts:
    def test_requests(self, proxy: FaultProxy, store: AzureStore, container: ContainerClient) -> None:
        fill(container)
        expected = {
            "stat": {"HEAD": 1},
            "list": {"GET": 1},
            "read": {"GET": 1},
            "read range": {"GET": 1},
            "put": {"PUT": 1},
            "put big": {"PUT": 1},
            "add": {"GET": 1, "PUT": 1},
            "commit": {"GET": 1, "PUT": 1},
            "delete": {"DELETE": 1},
        }
        for name, requests in expected.items():
            proxy.reset_counts()
            calls_of(store)[name]()
            assert proxy.requests == requests, name
        proxy.reset_counts()
        assert store.read("nothing", 5, 0) == b""
        assert not proxy.requests

    def test_an_equal_block_is_sent_once(
        self, proxy: FaultProxy, store: AzureStore, container: ContainerClient
    ) -> None:
        upload = InBlocks(store.begin("blocks"))
        for block in (BLOCK, b"other", BLOCK, BLOCK, b""):
            upload.add(block)
        assert proxy.requests == {"GET": 1, "PUT": 2}
        upload.commit({})
        assert container.download_blob("blocks").readall() == BLOCK + b"other" + BLOCK + BLOCK
        committed, uncommitted = container.get_blob_client("blocks").get_block_list("all")
        assert [block.id for block in committed] == [
            blake3(block).hexdigest() for block in (BLOCK, b"other", BLOCK, BLOCK)
        ]
        assert uncommitted == []

    def test_a_list_out_of_order_is_refused(
        self, proxy: FaultProxy, store: AzureStore, container: ContainerClient
    ) -> None:
        for key in ("p", "q", "r"):
            container.upload_blob(key, b"")
        proxy.add(faults.change_answer(b"<Name>p</Name>", b"<Name>s</Name>", where="comp=list"))
        with pytest.raises(StoreUnusable, match="order"):
            list(store.list(""))

    def test_failed_calls_keep_no_data_in_memory(self, proxy: FaultProxy, store: AzureStore) -> None:
        proxy.add(faults.answer(500, times=20))
        freed = threading.Semaphore(0)

        class Data(bytes):
            def __del__(self) -> None:
                freed.release()

        for _ in range(20):
            with pytest.raises(Retryable):
                store.put("a", Data(1000), {})
        for _ in range(20):
            assert freed.acquire(timeout=1), "an error holds on to the data"

    def test_names_are_listed_by_the_page(
        self, proxy: FaultProxy, store: AzureStore, container: ContainerClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(azure_rest, "NAMES_IN_A_PAGE", 7)
        keys = [f"key{number:03}" for number in range(40)]
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(partial(container.upload_blob, data=b""), keys))
        proxy.add(faults.answer(503, "ServerBusy", where="comp=list", skip=3))
        assert [blob.key for blob in retrying(store).list("key")] == keys
        assert proxy.requests["GET"] > 6


# Tiers


def test_archived_blobs_are_listed_and_brought_back(
    azure_container: tuple[str, str], container: ContainerClient
) -> None:
    text, azure_name = azure_container
    with contextlib.closing(AzureStore.from_connection_string(text, azure_name, access_tier="archive")) as store:
        for number in range(5):
            store.put(f"x/{number}", b"%d" % number, {})
        upload = InBlocks(store.begin("y"))
        upload.add(b"block")
        upload.commit({})
        store.put("z/", b"", {"hdi_isfolder": "true"})
        store.put("blobark/x", b"near", {})
        keys = [*(f"x/{number}" for number in range(5)), "y", "z/"]
        assert [(blob.key, blob.is_archived, blob.rehydrating) for blob in store.archived("")] == [
            (key, True, False) for key in keys
        ]
        assert [blob.key for blob in store.archived("x/")] == keys[:5]
        assert store.read("blobark/x") == b"near"
        with pytest.raises(ContentError, match="in the archive tier"):
            store.read("y", 0, 5)
        store.rehydrate("y", "high")
        store.rehydrate("x/1", "standard")
        assert (store.read("y"), store.read("x/1")) == (b"block", b"1")
        assert container.get_blob_client("y").get_blob_properties().blob_tier == "Hot"
        assert "y" not in [blob.key for blob in store.archived("")]
        with pytest.raises(BlobNotFound):
            store.rehydrate("nothing", "standard")


def test_archived_blobs_are_found_on_every_page(
    azure_container: tuple[str, str], container: ContainerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(azure_rest, "NAMES_IN_A_PAGE", 3)
    text, azure_name = azure_container
    with contextlib.closing(AzureStore.from_connection_string(text, azure_name)) as store:
        for number in range(11):
            store.put(f"k{number:02}", b"x", {})
        assert list(store.archived("k")) == []
        for key in ("k04", "k10"):
            container.get_blob_client(key).set_standard_blob_tier(StandardBlobTier.ARCHIVE)
        assert [blob.key for blob in store.archived("k")] == ["k04", "k10"]
