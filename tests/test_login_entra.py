"""Logging in with Microsoft Entra ID: the real azure-identity, a stand-in for Entra ID, Azurite that takes tokens."""

from __future__ import annotations

import json
import os
import pickle
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from azure.storage.blob import BlobServiceClient

from blobark.config import Login
from blobark.errors import Retryable, StoreDenied
from blobark.stores.azure import AzureStore
from blobark.stores.azure_account import Account
from blobark.stores.azure_entra import Tokens
from blobark.stores.open import open_store
from tests import fault_proxy as faults
from tests.azurite_server import AzuriteServer
from tests.entra import CLIENT, CLIENT_SECRET, IDENTITY_HEADER, TENANT, WORKLOAD_TOKEN, Certificates, EntraServer
from tests.fault_proxy import FaultProxy
from tests.runs import Workspace
from tools.compare import differences

MEANS = {
    "service_principal": "EnvironmentCredential",
    "certificate": "EnvironmentCredential",
    "workload": "WorkloadIdentityCredential",
    "managed_identity": "ManagedIdentityCredential",
    "cli": "AzureCliCredential",
}

PROGRAM = """
import sys, logging, json
logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)
from blobark.config_azure import Login
from blobark.errors import BlobarkError
from blobark.stores.open import open_store
store = open_store("azure", login=Login(auth="entra", endpoint=sys.argv[1]), container=sys.argv[2], workers=2)
try:
    store.put("quick", b"x" * 1000, {"a": "b"})
    store.put("patient", b"x" * 300_000, {})
    from blobark.blocks import digest_of
    from blobark.model import Block
    upload = store.begin("blocks")
    upload.stage(0, digest_of(b"block"), b"block")
    upload.commit([Block(5, digest_of(b"block"))], {})
    store.put("slash/", b"", {})
    print(store.greet().means)
    print(json.dumps({blob.key: blob.size_bytes for blob in store.list("")}), store.read("quick", 990) == b"x" * 10)
    store.rehydrate("patient", "high")
    store.delete("quick")
except BlobarkError as error:
    print(type(error).__name__, error, repr(error.__cause__), repr(error.__context__))
store.close()
"""


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def https(certificates: Certificates) -> Iterator[AzuriteServer]:
    with AzuriteServer(certificates.server) as server:
        yield server


@pytest.fixture(scope="module")
def entra(certificates: Certificates) -> Iterator[EntraServer]:
    with EntraServer(certificates) as server:
        yield server


@pytest.fixture
def container(https: AzuriteServer, certificates: Certificates) -> str:
    name = f"test-{uuid.uuid4().hex}"
    with BlobServiceClient.from_connection_string(
        https.connection_string, connection_verify=str(certificates.roots)
    ) as service:
        service.create_container(name)
    return name


def environment_of(entra: EntraServer, means: str, folder: Path) -> dict[str, str]:
    found: dict[str, str] = getattr(entra, means)(*([folder] if means in ("workload", "cli") else []))
    return found


def run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("means", MEANS)
def test_every_means_serves_both_libraries(
    entra: EntraServer, https: AzuriteServer, container: str, tmp_path: Path, means: str
) -> None:
    given = len(entra.tokens)
    done = run(environment_of(entra, means, tmp_path), https.url, container)
    assert done.stdout == f'{MEANS[means]}\n{{"blocks": 5, "patient": 300000, "quick": 1000, "slash/": 0}} True\n', (
        done.stderr[-3000:]
    )
    assert len(entra.tokens) == given + 1, "one token for all"
    for secret in (*entra.tokens, CLIENT_SECRET, WORKLOAD_TOKEN, IDENTITY_HEADER):
        assert secret not in done.stderr
    assert "urllib3" in done.stderr, "the libraries' log was not seen"


def test_a_backup_and_a_restore_by_processes_of_their_own(
    entra: EntraServer, https: AzuriteServer, container: str, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(200):
        (source / f"{number}").write_bytes(b"x" * number * 100)
    settings = {"store": "azure", "endpoint": https.url, "container_name": container, "max_workers": 4}
    workspace = Workspace(tmp_path / "work", source, **settings)
    workspace.environment = entra.managed_identity()
    assert workspace.backup().result["sent"] == 200
    workspace.run("restore")
    assert differences(str(source), str(workspace.restored)) == []
    result = workspace.run("doctor").result
    assert ["login", "entra", "what else is set"] in result["used"]
    assert ["logged in by", "ManagedIdentityCredential", ""] in result["used"]
    assert ["logged in as", f"application {CLIENT}, tenant {TENANT}", ""] in result["used"]
    shown = json.dumps(result)
    assert "IDENTITY_ENDPOINT" in shown
    for secret in (*entra.tokens, IDENTITY_HEADER):
        assert secret not in shown


def test_a_wrong_secret_ends_a_run_at_once(
    entra: EntraServer, https: AzuriteServer, container: str, tmp_path: Path
) -> None:
    settings = {"store": "azure", "endpoint": https.url, "container_name": container, "auth": "entra"}
    workspace = Workspace(tmp_path / "work", tmp_path / "source", **settings)
    workspace.environment = entra.service_principal("wrong-SECRET")
    begun_s = time.monotonic()
    run = workspace.run("restore", expect=4)
    assert time.monotonic() - begun_s < 10
    assert run.stderr == "blobark: Entra ID gives no token: AADSTS7000215: the client secret is wrong\n"
    run = workspace.run("doctor", expect=4)
    assert "AADSTS7000215" in run.result["advice"][0]
    assert "wrong-SECRET" not in json.dumps(run.result) + run.stderr


def test_no_error_tells_a_secret(entra: EntraServer, https: AzuriteServer, container: str) -> None:
    done = run(entra.service_principal("wrong-SECRET"), https.url, container)
    assert done.stdout.startswith("StoreDenied Entra ID gives no token: AADSTS7000215: "), done.stderr[-2000:]
    assert done.stdout.endswith(" None None\n")
    assert "wrong-SECRET" not in done.stdout + done.stderr


def test_a_token_is_renewed_before_it_ends(
    entra: EntraServer, https: AzuriteServer, container: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in entra.service_principal().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(entra, "life_s", 3)
    store = open_store("azure", login=Login(auth="entra", endpoint=https.url), container=container, workers=2)
    before, number = len(entra.tokens), 0
    while len(entra.tokens) < before + 4:  # each token is refused after 3 seconds
        store.put(f"{number}", b"x", {})
        assert next(store.list(f"{number}")).key == f"{number}"
        number += 1
    store.close()
    assert number > 4


@pytest.mark.parametrize("means", ["service_principal", "managed_identity"])
def test_a_token_serves_to_its_end_where_none_is_given_any_more(
    entra: EntraServer, monkeypatch: pytest.MonkeyPatch, means: str
) -> None:
    for name, value in getattr(entra, means)().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(entra, "life_s", 6)
    tokens = Tokens()
    token = tokens.fresh()
    monkeypatch.setattr(entra, "answer", lambda *_: (400, {"error": "temporarily_unavailable"}))
    while time.time() < token.expires_on - 1:
        assert tokens.fresh() == token
    with pytest.raises(StoreDenied, match=r"Entra ID gives no token|ManagedIdentityCredential gives no token any more"):
        all(iter(tokens.fresh, None))
    tokens.close()


class TestTokens:
    """What goes wrong, and what does not leave."""

    @pytest.fixture(autouse=True)
    def _environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in os.environ:
            if name.startswith(("AZURE_", "IDENTITY_", "MSI_")):
                monkeypatch.delenv(name)

    def test_nobody_to_log_in_with(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "EnvironmentCredential")
        with pytest.raises(StoreDenied, match=r"nothing to log in to Entra ID with: .*AZURE_TENANT_ID.*az login"):
            Tokens().fresh()

    def test_a_credential_that_nobody_knows(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "MyCredential")
        with pytest.raises(StoreDenied, match="Entra ID gives no token"):
            Tokens().fresh()

    def test_an_authority_that_cannot_be_reached(self, entra: EntraServer, monkeypatch: pytest.MonkeyPatch) -> None:
        with socket.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))
            authority = f"https://127.0.0.1:{nobody.getsockname()[1]}"
            for name, value in {**entra.service_principal(), "AZURE_AUTHORITY_HOST": authority}.items():
                monkeypatch.setenv(name, value)
            with pytest.raises(Retryable, match=r"Entra ID cannot be reached: .*AZURE_AUTHORITY_HOST"):
                Tokens().fresh()

    def test_a_role_that_is_missing(
        self, entra: EntraServer, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name, value in entra.service_principal().items():
            monkeypatch.setenv(name, value)
        proxy.add(faults.answer(403, "AuthorizationPermissionMismatch"))
        store = AzureStore(Account("x", f"{proxy.url}/x", tokens=Tokens()), "backup")
        with pytest.raises(StoreDenied, match="a role is missing, such as Storage Blob Data Contributor"):
            store.put("a", b"", {})

    def test_they_are_not_pickled_and_not_shown(self, entra: EntraServer, monkeypatch: pytest.MonkeyPatch) -> None:
        for name, value in entra.service_principal().items():
            monkeypatch.setenv(name, value)
        tokens = Tokens()
        account = Account("x", "https://x.example", tokens=tokens)
        tokens.fresh()
        for thing in (tokens, account, AzureStore(account, "backup")):
            with pytest.raises(TypeError):
                pickle.dumps(thing)
            assert entra.tokens[-1] not in repr(thing)

    def test_the_library_is_not_imported_for_a_key(self) -> None:
        program = (
            "import sys; from blobark.stores.open import open_store; from blobark.config import Login, Secret"
            "; open_store('azure', login=Login(auth='key', secret=Secret('a2V5'), account_name='acc'), container='abc')"
            "; print([name for name in sys.modules if name.startswith(('azure', 'msal', 'cryptography'))])"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert done.stdout == "[]\n", done.stderr
