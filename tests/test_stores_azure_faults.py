"""Faults on the line to Azure, and errors that the service answers."""

from __future__ import annotations

import os
import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from azure.storage.blob import ContainerClient

from blobark.errors import (
    BlobarkError,
    BlobExists,
    BlobNotFound,
    BlocksLost,
    ContentError,
    Retryable,
    StoreDenied,
    StoreLocked,
    StoreMissing,
    StoreUnusable,
    Throttled,
)
from blobark.stores.azure import AzureStore
from blobark.stores.retry import Retrying
from tests import fault_proxy as faults
from tests.azure_calls import BLOCK, CALLS, calls_of, fill, open_through, retrying
from tests.azurite_server import WRONG_KEY, AzuriteServer
from tests.fault_proxy import Fault, FaultProxy, Message
from tests.in_blocks import InBlocks


class DroppingProxy(FaultProxy):
    """Leaves the length out of the head of each answer, as proxies do that compress."""

    def altered(self, request: Message, reply: Message) -> Message:
        reply.head = re.sub(rb"\r\nContent-Length:[^\r]*", b"", reply.head, flags=re.IGNORECASE)
        return reply


class TestFaultsOnTheLine:
    @pytest.fixture(autouse=True)
    def _filled(self, container: ContainerClient) -> None:
        fill(container)

    @pytest.mark.parametrize("name", CALLS)
    @pytest.mark.parametrize(
        ("status", "code", "expected"),
        [
            (500, "InternalError", Retryable),
            (500, "OperationTimedOut", Retryable),
            (500, "", Retryable),
            (502, "", Retryable),
            (503, "ServerBusy", Throttled),
            (503, "", Throttled),
            (429, "", Throttled),
            (408, "", Retryable),
        ],
    )
    def test_passing_failures(
        self, proxy: FaultProxy, store: AzureStore, name: str, status: int, code: str, expected: type[Retryable]
    ) -> None:
        proxy.add(faults.answer(status, code))
        with pytest.raises(expected) as caught:
            calls_of(store)[name]()
        assert type(caught.value) is expected
        assert str(status) in str(caught.value)
        assert sum(proxy.requests.values()) == 1, "the libraries must not retry"

    @pytest.mark.parametrize("name", CALLS)
    @pytest.mark.parametrize("fault", [faults.lose_answer(), faults.cut_request(), faults.hang()], ids=lambda f: f.kind)
    def test_broken_connections(
        self, proxy: FaultProxy, azure_container: tuple[str, str], name: str, fault: Fault
    ) -> None:
        store = open_through(proxy, azure_container, read_timeout_s=0.4)
        proxy.add(Fault(fault.kind))
        begun = time.monotonic()
        with pytest.raises(Retryable) as caught:
            calls_of(store)[name]()
        assert type(caught.value) is Retryable
        assert sum(proxy.requests.values()) == 1, "the libraries must not retry"
        assert time.monotonic() - begun < 6

    @pytest.mark.parametrize("name", ["list", "read", "read range", "read/"])
    def test_an_answer_that_breaks_off(self, proxy: FaultProxy, store: AzureStore, name: str) -> None:
        proxy.add(faults.cut_answer())
        with pytest.raises(Retryable):
            calls_of(store)[name]()

    def test_a_big_answer_that_breaks_off(
        self, proxy: FaultProxy, store: AzureStore, container: ContainerClient
    ) -> None:
        data = os.urandom(3_000_000)
        container.upload_blob("big", data)
        for where in ((0, None), (0, len(data)), (9, None)):
            proxy.reset_counts()
            proxy.add(faults.cut_answer())
            with pytest.raises(Retryable):
                store.read("big", *where)
            assert proxy.requests == {"GET": 1}, "the libraries must not retry"

    @pytest.mark.parametrize("name", CALLS)
    def test_retrying_gets_through(
        self, proxy: FaultProxy, store: AzureStore, container: ContainerClient, name: str
    ) -> None:
        script = [
            faults.answer(503, "ServerBusy", retry_after_s=0, times=2),
            faults.answer(429),
            faults.answer(500, "InternalError"),
            faults.cut_request(),
        ]
        proxy.add(*script)
        patient = retrying(store)
        calls_of(patient)[name]()
        assert patient.counters() == {"retries": 5, "throttled": 3}
        if name == "put":
            assert container.download_blob("new").readall() == b"x"
        if name == "delete":
            assert not container.get_blob_client("there").exists()

    def test_retry_after_is_read_where_the_library_tells(self, proxy: FaultProxy, store: AzureStore) -> None:
        proxy.add(faults.answer(503, "ServerBusy", retry_after_s=7))
        with pytest.raises(Throttled) as caught:
            next(store.list(""))
        assert caught.value.retry_after_s == 7

    def test_a_lost_answer_to_a_put(self, proxy: FaultProxy, store: AzureStore, container: ContainerClient) -> None:
        proxy.add(faults.lose_answer(method="PUT"))
        with pytest.raises(BlobExists):
            retrying(store).put("some", b"mine", {"a": "b"})
        assert container.download_blob("some").readall() == b"mine"
        assert proxy.requests["PUT"] == 2

    def test_a_lost_answer_to_a_put_that_replaces(self, proxy: FaultProxy, store: AzureStore) -> None:
        proxy.add(faults.lose_answer(method="PUT"))
        retrying(store).put("some", b"mine", {}, create_only=False)
        assert store.read("some") == b"mine"

    def test_a_lost_answer_to_a_commit(self, proxy: FaultProxy, store: AzureStore, container: ContainerClient) -> None:
        proxy.add(faults.lose_answer(method="PUT", where="comp=blocklist"), faults.lose_answer(where="comp=block&"))
        upload = InBlocks(retrying(store).begin("blocks"))
        upload.add(BLOCK)
        upload.add(b"end")
        with pytest.raises(BlobExists):
            upload.commit({})
        assert container.download_blob("blocks").readall() == BLOCK + b"end"

    def test_a_lost_answer_to_a_delete(self, proxy: FaultProxy, store: AzureStore) -> None:
        proxy.add(faults.lose_answer(method="DELETE"))
        retrying(store).delete("there")

    def test_half_a_body_is_no_blob(self, proxy: FaultProxy, store: AzureStore, container: ContainerClient) -> None:
        proxy.add(faults.cut_request(times=2))
        for size_bytes in (4096, 8 * 1024 * 1024):
            with pytest.raises(Retryable):
                store.put("half", os.urandom(size_bytes), {})
            assert not container.get_blob_client("half").exists()

    def test_a_block_that_changed_on_the_way_is_sent_again(
        self, proxy: FaultProxy, store: AzureStore, container: ContainerClient
    ) -> None:
        proxy.add(faults.flip_request(where="comp=block&", times=2))
        upload = InBlocks(store.begin("blocks"))
        with pytest.raises(Retryable, match="Crc64Mismatch"):
            upload.add(BLOCK)
        upload = InBlocks(retrying(store).begin("blocks"))
        upload.add(BLOCK)
        upload.commit({})
        assert container.download_blob("blocks").readall() == BLOCK

    def test_a_list_page_that_is_damaged(self, proxy: FaultProxy, store: AzureStore) -> None:
        proxy.add(faults.cut_answer(where="comp=list"))
        assert [blob.key for blob in retrying(store).list("")] == ["there", "there/"]

    def test_a_head_without_the_length(self, azurite: AzuriteServer, azure_container: tuple[str, str]) -> None:
        with DroppingProxy(azurite.port) as proxy:
            store = open_through(proxy, azure_container)
            with pytest.raises(Retryable, match="the answer is damaged"):
                store.stat("there")
            store.close()

    def test_a_slow_server_is_waited_for(self, proxy: FaultProxy, azure_container: tuple[str, str]) -> None:
        store = open_through(proxy, azure_container, read_timeout_s=2.0)
        proxy.add(faults.delay(0.5))
        assert store.read("there") == b"0123456789"

    def test_a_server_that_is_away(self, proxy: FaultProxy, store: AzureStore) -> None:
        patient = Retrying(store, first_wait_s=0.05, cap_wait_s=0.1, first_deadline_s=0.5, deadline_s=0.5)
        with proxy.refusing():
            for name, call in calls_of(store).items():
                with pytest.raises(Retryable, match="no connection"):
                    print(name, call())
            with pytest.raises(StoreUnusable, match="no connection"):
                patient.stat("there")
        assert patient.stat("there").size_bytes == 10

    def test_a_server_that_comes_back(self, proxy: FaultProxy, store: AzureStore) -> None:
        patient = retrying(store)
        patient.stat("there")
        with ThreadPoolExecutor(4) as pool:
            with proxy.refusing():
                reads = [pool.submit(patient.read, "there") for _ in range(4)]
                while patient.counters()["retries"] < 4:
                    time.sleep(0.01)
            assert [read.result() for read in reads] == [b"0123456789"] * 4

    def test_an_address_that_does_not_exist(self) -> None:
        store = AzureStore.from_connection_string(
            f"BlobEndpoint=https://nobody.invalid;AccountName=nobody;AccountKey={WRONG_KEY}", "backup"
        )
        for call in (lambda: store.put("a", b"", {}), lambda: next(store.list(""))):
            with pytest.raises(Retryable, match="network"):
                call()

    def test_a_server_that_takes_no_connection(self, azure_container: tuple[str, str]) -> None:
        with socket.create_server(("127.0.0.1", 0), backlog=1) as server:
            address = f"http://127.0.0.1:{server.getsockname()[1]}/x"
            store = AzureStore.from_connection_string(
                f"BlobEndpoint={address};AccountName=x;AccountKey={WRONG_KEY}",
                "backup",
                connect_timeout_s=0.3,
                read_timeout_s=0.3,
            )
            begun = time.monotonic()
            for call in (lambda: store.put("a", b"", {}), lambda: next(store.list(""))):
                with pytest.raises(Retryable):
                    call()
            assert time.monotonic() - begun < 5


class TestAnswers:
    """Errors that the emulator never gives, by the codes that the service documents."""

    @pytest.mark.parametrize(
        ("status", "code", "expected", "words"),
        [
            (400, "InvalidHeaderValue", StoreUnusable, "InvalidHeaderValue"),
            (400, "InvalidBlockList", BlocksLost, "gone"),
            (400, "InvalidAuthenticationInfo", StoreDenied, "malformed"),
            (401, "NoAuthenticationInformation", StoreDenied, "no credentials"),
            (403, "AccountIsDisabled", StoreDenied, "disabled"),
            (403, "AuthorizationSourceIPMismatch", StoreDenied, "address"),
            (403, "UnauthorizedBlobOverwrite", BlobExists, "already"),
            (403, "SomethingNew", StoreDenied, "SomethingNew"),
            (409, "BlobImmutableDueToPolicy", BlobExists, "already"),
            (409, "InvalidBlobType", ContentError, "block blob"),
            (409, "BlobAlreadyExists", BlobExists, "already"),
            (409, "ContainerBeingDeleted", Retryable, "ContainerBeingDeleted"),
            (412, "ConditionNotMet", BlobExists, "already"),
            (412, "LeaseIdMissing", StoreLocked, "lease"),
            (413, "RequestBodyTooLarge", StoreUnusable, "RequestBodyTooLarge"),
            (404, "ContainerNotFound", StoreMissing, "create-container"),
        ],
    )
    @pytest.mark.parametrize("name", ["put", "commit"])
    def test_when_creating(
        self,
        proxy: FaultProxy,
        store: AzureStore,
        name: str,
        status: int,
        code: str,
        expected: type[BlobarkError],
        words: str,
    ) -> None:
        proxy.add(faults.answer(status, code, method="PUT"))
        with pytest.raises(expected, match=words) as caught:
            calls_of(store)[name]()
        assert type(caught.value) is expected

    @pytest.mark.parametrize(
        ("name", "status", "code", "expected"),
        [
            ("read", 409, "BlobArchived", ContentError),
            ("read", 409, "BlobBeingRehydrated", ContentError),
            ("read range", 416, "InvalidRange", ContentError),
            ("read", 404, "BlobNotFound", BlobNotFound),
            ("read", 409, "ContainerBeingDeleted", Retryable),
            ("list", 409, "ContainerBeingDeleted", Retryable),
            ("delete", 409, "ContainerBeingDeleted", Retryable),
            ("delete", 409, "BlobImmutableDueToPolicy", StoreDenied),
            ("delete", 412, "LeaseIdMissing", StoreDenied),
            ("delete", 409, "SnapshotsPresent", StoreDenied),
            ("list", 403, "AuthorizationPermissionMismatch", StoreDenied),
            ("list", 404, "ContainerNotFound", StoreMissing),
        ],
    )
    def test_when_not_creating(
        self, proxy: FaultProxy, store: AzureStore, name: str, status: int, code: str, expected: type[BlobarkError]
    ) -> None:
        proxy.add(faults.answer(status, code))
        with pytest.raises(expected):
            calls_of(store)[name]()

    def test_no_key_can_fake_an_answer(self, store: AzureStore) -> None:
        for key in ("<Code>ContainerNotFound<", "status code: 403", "source: InvalidRangeRequest", "<Code>x</Code>"):
            with pytest.raises(BlobNotFound):
                store.read(key)
