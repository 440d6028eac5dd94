"""What is Azure's own: connection strings, refusals, faults on the line, and secrets that stay inside."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from azure.storage.blob import ContainerClient, ContainerSasPermissions, StandardBlobTier, generate_container_sas
from blake3 import blake3

from blobark.clock import now_ns, utc
from blobark.errors import (
    BlobarkError,
    BlobExists,
    BlobNotFound,
    BlocksLost,
    ConfigError,
    ContentError,
    Retryable,
    StoreDenied,
    StoreMissing,
    StoreUnusable,
    Throttled,
)
from blobark.stores import azure_rest
from blobark.stores.azure import QUICK_PUT_BYTES, AzureStore
from blobark.stores.azure_account import parse_connection_string
from blobark.stores.base import Store
from blobark.stores.retry import Retrying
from tests import fault_proxy as faults
from tests.azurite_server import AzuriteServer
from tests.fault_proxy import Fault, FaultProxy
from tests.in_blocks import InBlocks

WRONG_KEY = "d3Jvbmcga2V5IHdyb25nIGtleQ=="
BLOCK = b"block of content " * 40_000


@pytest.fixture
def proxy(azurite: AzuriteServer) -> Iterator[FaultProxy]:
    with FaultProxy(azurite.port) as proxy:
        yield proxy


@pytest.fixture
def store(proxy: FaultProxy, azure_container: tuple[str, str]) -> Iterator[AzureStore]:
    """A store behind the proxy; the container is also there without it, in `direct`."""
    store = open_through(proxy, azure_container)
    yield store
    store.close()


@pytest.fixture
def direct(azure_container: tuple[str, str]) -> ContainerClient:
    """The container by another way than the code under test."""
    return ContainerClient.from_connection_string(*azure_container)


def open_through(proxy: FaultProxy, azure_container: tuple[str, str], **options: Any) -> AzureStore:
    text, container = azure_container
    return AzureStore.from_connection_string(proxy.rewire(text), container, workers=4, **options)


def retrying(store: AzureStore) -> Retrying:
    return Retrying(store, first_wait_s=0.01, cap_wait_s=0.05)


def sas_for(azurite: AzuriteServer, container: str, rights: str, *, hours: int = 1, from_hours: int = -1) -> str:
    return generate_container_sas(
        azurite.account,
        container,
        account_key=azurite.key,
        permission=ContainerSasPermissions.from_string(rights),
        start=utc(now_ns() + from_hours * 3600 * 10**9),
        expiry=utc(now_ns() + hours * 3600 * 10**9),
    )


def with_sas(azurite: AzuriteServer, container: str, rights: str, **times: int) -> AzureStore:
    sas = sas_for(azurite, container, rights, **times)
    return AzureStore.from_connection_string(f"BlobEndpoint={azurite.url};SharedAccessSignature={sas}", container)


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
        "put big": lambda: store.put("big", bytes(QUICK_PUT_BYTES + 1), {}),
        "put/": lambda: store.put("new/", b"x", {}),
        "add": lambda: InBlocks(store.begin("blocks")).add(b"x"),
        "commit": lambda: InBlocks(store.begin("blocks")).commit({}),
        "delete": lambda: store.delete("there"),
    }


CALLS = tuple(calls_of(None))  # type: ignore[arg-type]


def fill(direct: ContainerClient) -> None:
    direct.upload_blob("there", b"0123456789")
    direct.upload_blob("there/", b"0123456789")


class TestFaultsOnTheLine:
    @pytest.fixture(autouse=True)
    def _filled(self, direct: ContainerClient) -> None:
        fill(direct)

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
        proxy.add(faults.cut_answer(times=3 if name == "read/" else 1))  # the SDK's download asks 3 times
        with pytest.raises(Retryable):
            calls_of(store)[name]()

    def test_a_big_answer_that_breaks_off(self, proxy: FaultProxy, store: AzureStore, direct: ContainerClient) -> None:
        data = os.urandom(3_000_000)
        direct.upload_blob("big", data)
        for where in ((0, None), (0, len(data)), (9, None)):
            proxy.reset_counts()
            proxy.add(faults.cut_answer())
            with pytest.raises(Retryable):
                store.read("big", *where)
            assert proxy.requests == {"GET": 1}, "the libraries must not retry"

    @pytest.mark.parametrize("name", CALLS)
    def test_retrying_gets_through(
        self, proxy: FaultProxy, store: AzureStore, direct: ContainerClient, name: str
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
            assert direct.download_blob("new").readall() == b"x"
        if name == "delete":
            assert not direct.get_blob_client("there").exists()

    def test_retry_after_is_read_where_the_library_tells(self, proxy: FaultProxy, store: AzureStore) -> None:
        proxy.add(faults.answer(503, "ServerBusy", retry_after_s=7))
        with pytest.raises(Throttled) as caught:
            next(store.list(""))
        assert caught.value.retry_after_s == 7

    def test_a_lost_answer_to_a_put(self, proxy: FaultProxy, store: AzureStore, direct: ContainerClient) -> None:
        proxy.add(faults.lose_answer(method="PUT"))
        with pytest.raises(BlobExists):
            retrying(store).put("some", b"mine", {"a": "b"})
        assert direct.download_blob("some").readall() == b"mine"
        assert proxy.requests["PUT"] == 2

    def test_a_lost_answer_to_a_put_that_replaces(self, proxy: FaultProxy, store: AzureStore) -> None:
        proxy.add(faults.lose_answer(method="PUT"))
        retrying(store).put("some", b"mine", {}, create_only=False)
        assert store.read("some") == b"mine"

    def test_a_lost_answer_to_a_commit(self, proxy: FaultProxy, store: AzureStore, direct: ContainerClient) -> None:
        proxy.add(faults.lose_answer(method="PUT", where="comp=blocklist"), faults.lose_answer(where="comp=block&"))
        upload = InBlocks(retrying(store).begin("blocks"))
        upload.add(BLOCK)
        upload.add(b"end")
        with pytest.raises(BlobExists):
            upload.commit({})
        assert direct.download_blob("blocks").readall() == BLOCK + b"end"

    def test_a_lost_answer_to_a_delete(self, proxy: FaultProxy, store: AzureStore) -> None:
        proxy.add(faults.lose_answer(method="DELETE"))
        retrying(store).delete("there")

    def test_half_a_body_is_no_blob(self, proxy: FaultProxy, store: AzureStore, direct: ContainerClient) -> None:
        proxy.add(faults.cut_request(times=2))
        for size_bytes in (4096, 8 * 1024 * 1024):
            with pytest.raises(Retryable):
                store.put("half", os.urandom(size_bytes), {})
            assert not direct.get_blob_client("half").exists()

    def test_a_block_that_changed_on_the_way_is_sent_again(
        self, proxy: FaultProxy, store: AzureStore, direct: ContainerClient
    ) -> None:
        proxy.add(faults.flip_request(where="comp=block&", times=2))
        upload = InBlocks(store.begin("blocks"))
        with pytest.raises(Retryable, match="Md5Mismatch"):
            upload.add(BLOCK)
        upload = InBlocks(retrying(store).begin("blocks"))
        upload.add(BLOCK)
        upload.commit({})
        assert direct.download_blob("blocks").readall() == BLOCK

    def test_a_list_page_that_is_damaged(self, proxy: FaultProxy, store: AzureStore) -> None:
        proxy.add(faults.cut_answer(where="comp=list"))
        assert [blob.key for blob in retrying(store).list("")] == ["there", "there/"]

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
            (412, "LeaseIdMissing", StoreDenied, "lease"),
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


class TestRefusals:
    @pytest.mark.parametrize("name", CALLS)
    def test_a_wrong_key(self, azurite: AzuriteServer, azure_container: tuple[str, str], name: str) -> None:
        text, container = azure_container
        store = AzureStore.from_connection_string(text.replace(azurite.key, WRONG_KEY), container)
        with pytest.raises(StoreDenied, match="key"):
            calls_of(store)[name]()

    @pytest.mark.parametrize("name", CALLS)
    def test_an_expired_sas(self, azurite: AzuriteServer, azure_container: tuple[str, str], name: str) -> None:
        store = with_sas(azurite, azure_container[1], "racwdl", hours=-1, from_hours=-2)
        with pytest.raises(StoreDenied, match=r"the SAS expired at \d{4}-"):
            calls_of(store)[name]()

    def test_a_sas_for_later(self, azurite: AzuriteServer, azure_container: tuple[str, str]) -> None:
        store = with_sas(azurite, azure_container[1], "racwdl", hours=2, from_hours=1)
        with pytest.raises(StoreDenied, match="not valid before"):
            store.read("there")

    @pytest.mark.parametrize(
        ("name", "rights"),
        [("put", "r"), ("put big", "rl"), ("read", "w"), ("stat", "cl"), ("list", "rw"), ("delete", "rwcl")],
    )
    def test_a_sas_without_the_right(
        self, azurite: AzuriteServer, azure_container: tuple[str, str], direct: ContainerClient, name: str, rights: str
    ) -> None:
        fill(direct)
        store = with_sas(azurite, azure_container[1], rights)
        with pytest.raises(StoreDenied, match=r"a right is missing; the rights in the SAS are [a-z]+$"):
            calls_of(store)[name]()

    @pytest.mark.parametrize("name", CALLS)
    def test_a_missing_container(self, azurite: AzuriteServer, name: str) -> None:
        store = AzureStore.from_connection_string(azurite.connection_string, "nobody-made-this")
        with pytest.raises(StoreMissing, match="no such container"):
            calls_of(store)[name]()

    def test_create_container(self, azurite: AzuriteServer, azure_container: tuple[str, str]) -> None:
        container = azure_container[1]
        AzureStore.from_connection_string(azurite.connection_string, container).create_container()
        with_sas(azurite, container, "rl").create_container()
        with pytest.raises(StoreDenied):
            with_sas(azurite, container, "r").create_container()
        store = AzureStore.from_connection_string(azurite.connection_string, f"{container}-new")
        store.create_container()
        store.put("a", b"", {})


class TestConnectionStrings:
    KEY = f"AccountKey={WRONG_KEY}"
    SAS = "sv=2024-11-04&sp=rl&sig=c2lnbmF0dXJl%3D"

    @pytest.mark.parametrize(
        ("text", "name", "endpoint"),
        [
            (f"AccountName=acc1;{KEY}", "acc1", "https://acc1.blob.core.windows.net"),
            (
                f"DefaultEndpointsProtocol=https;AccountName=acc1;{KEY};EndpointSuffix=core.windows.net",
                "acc1",
                "https://acc1.blob.core.windows.net",
            ),
            (
                f"AccountName=acc1;{KEY};EndpointSuffix=core.chinacloudapi.cn",
                "acc1",
                "https://acc1.blob.core.chinacloudapi.cn",
            ),
            (f" 'accountname=acc1; {KEY.replace('AccountKey', 'ACCOUNTKEY')};' \n", "acc1", None),
            (f"BlobEndpoint=https://acc1.blob.core.windows.net/;SharedAccessSignature={SAS}", "acc1", None),
            (
                f"BlobEndpoint=https://acc1.z1.blob.storage.azure.net;QueueEndpoint=https://x;SharedAccessSignature=?{SAS}",
                "acc1",
                "https://acc1.z1.blob.storage.azure.net",
            ),
            (
                f"BlobEndpoint=http://127.0.0.1:10000/acc1;AccountName=acc1;{KEY}",
                "acc1",
                "http://127.0.0.1:10000/acc1",
            ),
            (f"BlobEndpoint=http://127.0.0.1:10000/acc1/;SharedAccessSignature={SAS}", "acc1", None),
            (f"BlobEndpoint=http://[::1]:10000/acc1;AccountName=acc1;{KEY}", "acc1", "http://[::1]:10000/acc1"),
            (f"BlobEndpoint=http://localhost:1/acc1;AccountName=acc1;{KEY}", "acc1", "http://localhost:1/acc1"),
            ("UseDevelopmentStorage=true", "devstoreaccount1", "http://127.0.0.1:10000/devstoreaccount1"),
        ],
    )
    def test_forms(self, text: str, name: str, endpoint: str | None) -> None:
        account = parse_connection_string(text)
        assert account.name == name
        assert bool(account.key) != bool(account.sas)
        assert account.sas in ("", self.SAS)
        if endpoint is not None:
            assert account.endpoint == endpoint
        assert not account.endpoint.endswith("/")

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "nonsense",
            "AccountName=acc1",
            KEY,
            f"AccountName=acc1;{KEY};SharedAccessSignature={SAS}",
            f"AccountName=acc1;{KEY[:-3]}",
            "AccountName=acc1;AccountKey=not base64!",
            f"AccountName=Not A Name;{KEY}",
            f"AccountName=acc1;{KEY};BlobEndpoint=acc1.blob.core.windows.net",
            f"AccountName=acc1;{KEY};BlobEndpoint=ftp://acc1.blob.core.windows.net",
            f"AccountName=acc1;{KEY};BlobEndpoint=https://acc1.blob.core.windows.net:port",
            f"AccountName=acc1;{KEY};BlobEndpoint=https://user:word@acc1.blob.core.windows.net",
            f"BlobEndpoint=https://acc1.blob.core.windows.net?{SAS}",
            "BlobEndpoint=https://acc1.blob.core.windows.net;SharedAccessSignature=sv=1",
            f"BlobEndpoint=https://acc1.blob.core.windows.net;SharedAccessSignature={SAS} and more",
            f"AccountName=acc1;{KEY};DefaultEndpointsProtocol=http",
            f"AccountName=acc1;{KEY};BlobEndpoint=http://acc1.blob.core.windows.net",
            f"AccountName=acc1;{KEY};BlobEndpoint=http://10.0.0.1:10000/acc1",
            f"AccountName=acc1;{KEY};BlobEndpoint=http://127.0.0.1.example.com/acc1",
            f"AccountName=acc1;{KEY};BlobEndpoint=http://localhost.example.com/acc1",
        ],
    )
    def test_what_is_refused(self, text: str) -> None:
        with pytest.raises(ConfigError) as caught:
            AzureStore.from_connection_string(text, "backup")
        for part in (WRONG_KEY, WRONG_KEY[:10], "c2lnbmF0", "word", "not base64!"):
            assert part not in str(caught.value)

    @pytest.mark.parametrize(
        "container", ["", "ab", "Upper", "a--b", "-ab", "ab-", "a_b", "a" * 64, "a/b", "a?b", "..."]
    )
    def test_no_name_of_a_container(self, container: str) -> None:
        with pytest.raises(ConfigError):
            AzureStore.from_connection_string(f"AccountName=acc1;{self.KEY}", container)

    def test_the_environment_changes_nothing(self, azure_container: tuple[str, str]) -> None:
        text, container = azure_container
        other = {
            "AZURE_CONTAINER_NAME": "other",
            "AZURE_CREDENTIAL_TYPE": "bearer_token",
            "AZURE_SKIP_SIGNATURE": "true",
            "AZURE_STORAGE_ACCOUNT_KEY": WRONG_KEY,
            "AZURE_STORAGE_ACCOUNT_NAME": "other",
            "AZURE_STORAGE_ENDPOINT": "http://127.0.0.1:9",
            "AZURE_STORAGE_SAS_TOKEN": "sv=1&sig=x",
            "AZURE_STORAGE_TOKEN": "token",
            "AZURE_STORAGE_USE_EMULATOR": "true",
            "AZURE_USE_FABRIC_ENDPOINT": "true",
        }
        program = (
            "import sys; from blobark.stores.azure import AzureStore"
            "; s = AzureStore.from_connection_string(*sys.argv[1:])"
            "; s.put('a', b'x', {}); print(s.read('a'), [b.key for b in s.list('')])"
        )
        command = [sys.executable, "-c", program, text, container]
        done = subprocess.run(command, env=os.environ | other, capture_output=True, text=True)
        assert done.stdout == "b'x' ['a']\n", done.stderr


class TestSecrets:
    def test_nothing_tells_a_secret(
        self,
        proxy: FaultProxy,
        azurite: AzuriteServer,
        azure_container: tuple[str, str],
        direct: ContainerClient,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        fill(direct)
        caplog.set_level(logging.DEBUG)
        container = azure_container[1]
        good, expired = sas_for(azurite, container, "racwdl"), sas_for(azurite, container, "r", hours=-1, from_hours=-9)
        signatures = [sas.partition("sig=")[2].partition("&")[0] for sas in (good, expired)]
        secrets = [azurite.key, WRONG_KEY, *signatures, *(signature.replace("%3D", "=") for signature in signatures)]
        url = f"{proxy.url}/{azurite.account}"
        texts = [
            f"BlobEndpoint={url};AccountName={azurite.account};AccountKey={azurite.key}",
            f"BlobEndpoint={url};AccountName={azurite.account};AccountKey={WRONG_KEY}",
            *(f"BlobEndpoint={url};SharedAccessSignature=?{sas}" for sas in (good, expired)),
        ]
        said = []
        for text in texts:
            for name in CALLS:
                for fault in (None, "lose_answer", "cut_request", "cut_answer"):
                    if fault:
                        proxy.add(Fault(fault, times=3 if name == "read/" and fault == "cut_answer" else 1))
                    store = AzureStore.from_connection_string(text, container)
                    said += [repr(store), str(store), store.name]
                    try:
                        calls_of(store)[name]()
                    except BlobarkError as error:
                        said += told_by(error)
                    store.close()
        with proxy.refusing():
            for text in texts:
                for call in calls_of(AzureStore.from_connection_string(text, container)).values():
                    with pytest.raises(Retryable) as caught:
                        call()
                    said += told_by(caught.value)
        said += [record.getMessage() for record in caplog.records] + [repr(record.args) for record in caplog.records]
        assert any("comp=list" in text for text in said), "the library's log was not seen"
        for secret in secrets:
            assert not [text for text in said if secret in text]

    def test_nothing_with_a_secret_is_pickled(self, azurite: AzuriteServer, azure_container: tuple[str, str]) -> None:
        store = AzureStore.from_connection_string(*azure_container)
        for thing in (store, Retrying(store), store.begin("a"), parse_connection_string(azure_container[0])):
            with pytest.raises((TypeError, AttributeError)) as caught:
                pickle.dumps(thing)
            assert azurite.key not in str(caught.value)
            assert azurite.key not in repr(thing)


def told_by(error: BaseException) -> list[str]:
    """Return all that an error can give away: itself, what it came from, and its traceback."""
    chain: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and following not in chain:
        chain.append(following)
        following = following.__cause__ or following.__context__
    texts = [f(each) for each in chain for f in (str, repr)]
    return [*texts, *traceback.format_exception(error), repr(pickle.dumps(error))]


class TestWhatItCosts:
    def test_requests(self, proxy: FaultProxy, store: AzureStore, direct: ContainerClient) -> None:
        fill(direct)
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

    def test_an_equal_block_is_sent_once(self, proxy: FaultProxy, store: AzureStore, direct: ContainerClient) -> None:
        upload = InBlocks(store.begin("blocks"))
        for block in (BLOCK, b"other", BLOCK, BLOCK, b""):
            upload.add(block)
        assert proxy.requests == {"GET": 1, "PUT": 2}
        upload.commit({})
        assert direct.download_blob("blocks").readall() == BLOCK + b"other" + BLOCK + BLOCK
        committed, uncommitted = direct.get_blob_client("blocks").get_block_list("all")
        assert [block.id for block in committed] == [
            blake3(block).hexdigest() for block in (BLOCK, b"other", BLOCK, BLOCK)
        ]
        assert uncommitted == []

    def test_a_list_out_of_order_is_refused(
        self, proxy: FaultProxy, store: AzureStore, direct: ContainerClient
    ) -> None:
        for key in ("p", "q", "r"):
            direct.upload_blob(key, b"")
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
        self, proxy: FaultProxy, store: AzureStore, direct: ContainerClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from blobark.stores import azure_rest

        monkeypatch.setattr(azure_rest, "NAMES_IN_A_PAGE", 7)
        keys = [f"key{number:03}" for number in range(40)]
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(partial(direct.upload_blob, data=b""), keys))
        proxy.add(faults.answer(503, "ServerBusy", where="comp=list", skip=3))
        assert [blob.key for blob in retrying(store).list("key")] == keys
        assert proxy.requests["GET"] > 6


# Tiers


def test_archived_blobs_are_listed_and_brought_back(azure_container: tuple[str, str], direct: ContainerClient) -> None:
    text, container = azure_container
    with contextlib.closing(AzureStore.from_connection_string(text, container, access_tier="archive")) as store:
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
        assert direct.get_blob_client("y").get_blob_properties().blob_tier == "Hot"
        assert "y" not in [blob.key for blob in store.archived("")]
        with pytest.raises(BlobNotFound):
            store.rehydrate("nothing", "standard")


def test_archived_blobs_are_found_on_every_page(
    azure_container: tuple[str, str], direct: ContainerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(azure_rest, "NAMES_IN_A_PAGE", 3)
    text, container = azure_container
    with contextlib.closing(AzureStore.from_connection_string(text, container)) as store:
        for number in range(11):
            store.put(f"k{number:02}", b"x", {})
        assert list(store.archived("k")) == []
        for key in ("k04", "k10"):
            direct.get_blob_client(key).set_standard_blob_tier(StandardBlobTier.ARCHIVE)
        assert [blob.key for blob in store.archived("k")] == ["k04", "k10"]
