"""Azure's connection strings, its refusals, and secrets that stay inside."""

from __future__ import annotations

import logging
import os
import pickle
import subprocess
import sys
import traceback

import pytest
from azure.storage.blob import ContainerClient

from blobark.errors import (
    BlobarkError,
    ConfigError,
    Retryable,
    StoreDenied,
    StoreMissing,
)
from blobark.stores.azure import AzureStore
from blobark.stores.azure_account import parse_connection_string
from blobark.stores.retry import Retrying
from tests.azure_calls import CALLS, calls_of, fill
from tests.azurite_server import WRONG_KEY, AzuriteServer
from tests.fault_proxy import Fault, FaultProxy


def with_sas(azurite: AzuriteServer, name: str, rights: str, **times: float) -> AzureStore:
    return AzureStore.from_connection_string(azurite.connection_with(azurite.sas(name, rights, **times)), name)


class TestRefusals:
    @pytest.mark.parametrize("name", CALLS)
    def test_a_wrong_key(self, azurite: AzuriteServer, azure_container: tuple[str, str], name: str) -> None:
        text, azure_name = azure_container
        store = AzureStore.from_connection_string(text.replace(azurite.key, WRONG_KEY), azure_name)
        with pytest.raises(StoreDenied, match="key"):
            calls_of(store)[name]()

    @pytest.mark.parametrize("name", CALLS)
    def test_an_expired_sas(self, azurite: AzuriteServer, azure_container: tuple[str, str], name: str) -> None:
        store = with_sas(azurite, azure_container[1], "racwdl", seconds=-3600, from_seconds=-7200)
        with pytest.raises(StoreDenied, match=r"the SAS expired at \d{4}-"):
            calls_of(store)[name]()

    def test_a_sas_for_later(self, azurite: AzuriteServer, azure_container: tuple[str, str]) -> None:
        store = with_sas(azurite, azure_container[1], "racwdl", seconds=7200, from_seconds=3600)
        with pytest.raises(StoreDenied, match="not valid before"):
            store.read("there")

    @pytest.mark.parametrize(
        ("name", "rights"),
        [("put", "r"), ("put big", "rl"), ("read", "w"), ("stat", "cl"), ("list", "rw"), ("delete", "rwcl")],
    )
    def test_a_sas_without_the_right(
        self,
        azurite: AzuriteServer,
        azure_container: tuple[str, str],
        container: ContainerClient,
        name: str,
        rights: str,
    ) -> None:
        fill(container)
        store = with_sas(azurite, container.container_name, rights)
        with pytest.raises(StoreDenied, match=r"a right is missing; the rights in the SAS are [a-z]+$"):
            calls_of(store)[name]()

    @pytest.mark.parametrize("name", CALLS)
    def test_a_missing_container(self, azurite: AzuriteServer, name: str) -> None:
        store = AzureStore.from_connection_string(azurite.connection_string, "nobody-made-this")
        with pytest.raises(StoreMissing, match="no such container"):
            calls_of(store)[name]()

    def test_create_container(self, azurite: AzuriteServer, azure_container: tuple[str, str]) -> None:
        azure_name = azure_container[1]
        AzureStore.from_connection_string(azurite.connection_string, azure_name).create_container()
        with_sas(azurite, azure_name, "rl").create_container()
        with pytest.raises(StoreDenied):
            with_sas(azurite, azure_name, "r").create_container()
        store = AzureStore.from_connection_string(azurite.connection_string, f"{azure_name}-new")
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
        text, azure_name = azure_container
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
        command = [sys.executable, "-c", program, text, azure_name]
        done = subprocess.run(command, env=os.environ | other, capture_output=True, text=True)
        assert done.stdout == "b'x' ['a']\n", done.stderr


class TestSecrets:
    def test_nothing_tells_a_secret(
        self,
        proxy: FaultProxy,
        azurite: AzuriteServer,
        azure_container: tuple[str, str],
        container: ContainerClient,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        fill(container)
        caplog.set_level(logging.DEBUG)
        azure_name = azure_container[1]
        good, expired = azurite.sas(azure_name, "racwdl"), azurite.sas(azure_name, "r", seconds=-3600)
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
                        proxy.add(Fault(fault))
                    store = AzureStore.from_connection_string(text, azure_name)
                    said += [repr(store), str(store), store.name]
                    try:
                        calls_of(store)[name]()
                    except BlobarkError as error:
                        said += told_by(error)
                    store.close()
        with proxy.refusing():
            for text in texts:
                for call in calls_of(AzureStore.from_connection_string(text, azure_name)).values():
                    with pytest.raises(Retryable) as caught:
                        call()
                    said += told_by(caught.value)
        said += [record.getMessage() for record in caplog.records] + [repr(record.args) for record in caplog.records]
        assert any("comp=tier" in text for text in said), "the library's log was not seen"
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
