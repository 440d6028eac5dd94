"""Logging in to Azure with what the configuration and the environment say, and SAS tokens as people paste them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import quote

import pytest
from azure.storage.blob import ContainerClient

from blobark.config import Login, Secret, load
from blobark.errors import ConfigError
from blobark.stores.azure_account import account_of
from blobark.stores.azure_sas import clean_sas
from blobark.stores.open import open_store
from tests.azurite_server import AzuriteServer

AZURE = "store: azure\ncontainer_name: abc\n"
TEXT = "AccountName=acc;AccountKey=c2VjcmV0"
SAS = "sv=2024-11-04&sp=rl&sig=hidden%3D"
ENVIRONMENT = {
    "AZURE_STORAGE_CONNECTION_STRING": "AccountName=envs;AccountKey=ZW52",
    "AZURE_STORAGE_KEY": "ZW52a2V5",
    "AZURE_STORAGE_SAS_TOKEN": "sig=ZW52c2Fz",
    "AZURE_STORAGE_ACCOUNT": "envs",
}


def only(*names: str) -> dict[str, str]:
    return {name: ENVIRONMENT[name] for name in ENVIRONMENT if name.removeprefix("AZURE_STORAGE_") in names}


def login_of(folder: Path, text: str, environ: Mapping[str, str]) -> Login:
    file = folder / "config.yaml"
    file.write_text(AZURE + text)
    file.chmod(0o600)
    login = load(file, environ=environ).login
    assert login is not None
    return login


@pytest.mark.parametrize(
    ("text", "names", "expected"),
    [
        (f"connection_string: {TEXT}", [], ("connection_string", TEXT, "", "")),
        (f"connection_string: {TEXT}", ["CONNECTION_STRING", "KEY"], ("connection_string", TEXT, "", "")),
        ("", ["CONNECTION_STRING"], ("connection_string", "AccountName=envs;AccountKey=ZW52", "", "")),
        ("", ["CONNECTION_STRING", "ACCOUNT"], ("connection_string", "AccountName=envs;AccountKey=ZW52", "", "")),
        ("account_name: mine\naccount_key: a2V5", ["KEY", "ACCOUNT"], ("key", "a2V5", "mine", "")),
        ("account_name: mine", ["KEY"], ("key", "ZW52a2V5", "mine", "")),
        ("", ["KEY", "ACCOUNT"], ("key", "ZW52a2V5", "envs", "")),
        (f"sas_token: '?{SAS}'", ["ACCOUNT"], ("sas", f"?{SAS}", "envs", "")),
        (f"sas_token: {SAS}\nendpoint: https://a.example/x/", [], ("sas", SAS, "", "https://a.example/x")),
        ("", ["SAS_TOKEN", "ACCOUNT"], ("sas", "sig=ZW52c2Fz", "envs", "")),
        ("auth: sas", ["SAS_TOKEN", "ACCOUNT", "KEY", "CONNECTION_STRING"], ("sas", "sig=ZW52c2Fz", "envs", "")),
        ("auth: key", ["SAS_TOKEN", "ACCOUNT", "KEY", "CONNECTION_STRING"], ("key", "ZW52a2V5", "envs", "")),
        ("account_name: mine", [], ("entra", "", "mine", "")),
        ("", ["ACCOUNT"], ("entra", "", "envs", "")),
        ("auth: entra", ["ACCOUNT", "KEY", "SAS_TOKEN"], ("entra", "", "envs", "")),
        ("endpoint: https://acc.blob.core.usgovcloudapi.net", [], ("entra", "", "", "https://acc.blob.core.usgovcloudapi.net")),
    ],
)  # fmt: skip
def test_what_is_used(tmp_path: Path, text: str, names: list[str], expected: tuple[str, str, str, str]) -> None:
    login = login_of(tmp_path, text, only(*names))
    assert (login.auth, login.secret.reveal(), login.account_name, login.endpoint) == expected
    assert "c2VjcmV0" not in repr(login)


def test_where_it_came_from(tmp_path: Path) -> None:
    login = login_of(tmp_path, "account_name: mine", only("KEY"))
    file = tmp_path / "config.yaml"
    expected = {"auth": "what else is set", "account_key": "AZURE_STORAGE_KEY", "account_name": f"{file}:3"}
    assert login.origins == expected
    login = login_of(tmp_path, "auth: sas\nendpoint: https://x.y", only("SAS_TOKEN"))
    expected = {"auth": f"{file}:3", "sas_token": "AZURE_STORAGE_SAS_TOKEN", "endpoint": f"{file}:4"}
    assert login.origins == expected


@pytest.mark.parametrize(
    ("text", "names", "fault"),
    [
        ("", [], ": connection_string: not set, and store: azure needs it"),
        ("", ["KEY"], ": account_name: not set, and auth: key needs it (or AZURE_STORAGE_ACCOUNT)"),
        ("endpoint: https://a.b", ["KEY"], ": account_name: not set, and auth: key needs it"),
        ("auth: entra", [], ": account_name: not set, and auth: entra needs it"),
        (
            "auth: sas\naccount_name: mine",
            ["KEY"],
            ": sas_token: not set, and auth: sas needs it (or AZURE_STORAGE_SAS",
        ),
        ("auth: key\naccount_name: mine", [], ": account_key: not set, and auth: key needs it (or AZURE_STORAGE_KEY)"),
        ("auth: connection_string", ["KEY"], ": connection_string: not set, and auth: connection_string needs it"),
        ("auth: password", ["ACCOUNT"], ":3: auth: expected connection_string, key, sas or entra, got 'password'"),
        (f"account_key: a2V5\nsas_token: {SAS}", ["ACCOUNT"], ":4: sas_token: set beside account_key, and only one"),
        (f"auth: key\nsas_token: {SAS}", ["ACCOUNT", "KEY"], ":4: sas_token: does not go with auth: key"),
        ("auth: entra\naccount_key: a2V5", ["ACCOUNT"], ":4: account_key: does not go with auth: entra"),
        ("", ["KEY", "SAS_TOKEN", "ACCOUNT"], ": auth: not set, and AZURE_STORAGE_KEY and AZURE_STORAGE_SAS_TOKEN are"),
        ("account_name: mine", ["CONNECTION_STRING"], ":3: account_name: does not go with a connection string"),
        (f"connection_string: {TEXT}\nendpoint: https://a.b", [], ":4: endpoint: does not go with a connection string"),
        ("account_name: My_Account", [], ":3: account_name: expected 3 to 24 of a-z and 0-9, got 'My_Account'"),
        ("endpoint: a.blob.core.windows.net", [], ":3: endpoint: expected https://<host>[:port][/path]: its"),
        ("endpoint: http://a.example/", [], ":3: endpoint: expected https://<host>[:port][/path]: plain http"),
        ("endpoint: https://hidden:hidden@a.example/", [], ":3: endpoint: expected https://<host>[:port][/path]: its"),
        ("endpoint: http://127.0.0.1/acc\nauth: entra", [], ":3: endpoint: expected https: with Entra ID a token"),
    ],
)
def test_each_mistake_has_its_line(tmp_path: Path, text: str, names: list[str], fault: str) -> None:
    with pytest.raises(ConfigError) as caught:
        login_of(tmp_path, text, only(*names))
    (line,) = caught.value.message.splitlines()
    assert line.startswith(f"{tmp_path / 'config.yaml'}{fault}")
    for secret in ("hidden", "a2V5", "c2VjcmV0", "ZW52"):
        assert secret not in line


def test_variables_for_two_accounts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is for the account envs, and AZURE_STORAGE_ACCOUNT another"):
        login_of(tmp_path, "", {**only("CONNECTION_STRING"), "AZURE_STORAGE_ACCOUNT": "others"})
    assert login_of(tmp_path, f"connection_string: {TEXT}", only("ACCOUNT")).auth == "connection_string"


@pytest.mark.parametrize(
    ("login", "expected"),
    [
        (Login(auth="entra", account_name="mine"), ("mine", "https://mine.blob.core.windows.net")),
        (Login(auth="entra", endpoint="https://mine.blob.core.chinacloudapi.cn"),
         ("mine", "https://mine.blob.core.chinacloudapi.cn")),
        (Login(auth="key", secret=Secret("'a2V5'\n"), account_name="mine", endpoint="https://10.0.0.4:8443/p"),
         ("mine", "https://10.0.0.4:8443/p")),
    ],
)  # fmt: skip
def test_where_an_account_is(login: Login, expected: tuple[str, str]) -> None:
    account = account_of(login)
    assert (account.name, account.endpoint) == expected
    assert account.key in ("", "a2V5")


# SAS tokens

WAYS: dict[str, Callable[[str], str]] = {
    "as it is": lambda sas: sas,
    "of an address": lambda sas: f"?{sas}",
    "quoted": lambda sas: f" \"?{sas}\"\n",
    "in single quotes": lambda sas: f"'{sas}'",
    "of a web page": lambda sas: sas.replace("&", "&amp;"),
    "of a JSON file": lambda sas: sas.replace("&", "\\u0026"),
    "of a shell": lambda sas: sas.replace("&", "\\&"),
    "escaped": lambda sas: quote(sas, safe=""),
    "with its values escaped twice": lambda sas: sas.replace("%", "%25"),
    "with a signature as it is": lambda sas: sas.replace("%2B", "+").replace("%2F", "/").replace("%3D", "="),
    "with pluses that became blanks": lambda sas: sas.replace("%2B", " "),
}  # fmt: skip


def has_every_escape(sas: str) -> bool:
    signature = sas.partition("sig=")[2]
    return "%2B" in signature and "%3D" in signature and re.search(r"/|%2F", signature) is not None


@pytest.mark.parametrize("way", WAYS)
def test_a_sas_as_it_is_pasted(
    azurite: AzuriteServer, azure_container: tuple[str, str], container: ContainerClient, way: str
) -> None:
    name = azure_container[1]
    sas = next(filter(has_every_escape, (azurite.sas(name, "rwl", seconds=60 * minutes) for minutes in range(60, 600))))
    login = Login(auth="sas", secret=Secret(WAYS[way](sas)), endpoint=azurite.url)
    store = open_store("azure", login=login, container=name, create=True)
    store.put("a", b"x", {})
    assert [blob.key for blob in store.list("")] == ["a"]
    assert store.read("a") == b"x"
    store.close()
    assert container.download_blob("a").readall() == b"x"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hidden",
        "sv=2024&sp=rl",
        "sv=2024&sig=",
        "sv=2024&sig=hidden!",
        "sig=hidden&sig=hidden",
        "sig=hidden&sp=",
        "sig=hidden&hidden",
        "https://acc.blob.core.windows.net/c?sv=1&sig=hidden",
        "sig=hidden%0A",
    ],
)
def test_what_is_no_sas(text: str) -> None:
    with pytest.raises(ConfigError, match="SAS token") as caught:
        clean_sas(text)
    assert "hidden" not in str(caught.value)
