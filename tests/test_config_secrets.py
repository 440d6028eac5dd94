"""The configuration's secrets: where they come from, that nothing shows them, and that they go over no plain http."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping
from pathlib import Path

import pytest

from blobark.config import Login, Secret, connection_fault
from tests.config_file import KEY, NO_ENVIRONMENT, given_text, mistakes

pytestmark = pytest.mark.usefixtures("here")


def login_of(text: str, environ: Mapping[str, str] = NO_ENVIRONMENT) -> Login:
    login = given_text(text, environ).login
    assert login is not None
    return login


# Secrets


def test_the_environments_connection_string_is_used_where_there_is_none() -> None:
    environ = {"AZURE_STORAGE_CONNECTION_STRING": "AccountName=env;AccountKey=a"}
    azure = "store: azure\ncontainer_name: abc\n"
    assert login_of(azure, environ).secret.reveal() == environ["AZURE_STORAGE_CONNECTION_STRING"]
    assert login_of(f"{azure}connection_string: ''", environ).secret.reveal().startswith("AccountName=env")
    assert login_of(f"{azure}connection_string: {KEY}", environ).secret.reveal() == KEY
    # one that is not used harms nobody
    assert given_text("server: a", {"AZURE_STORAGE_CONNECTION_STRING": "junk"}).server == "a"
    (line,) = mistakes("store: azure\ncontainer_name: abc", {"AZURE_STORAGE_CONNECTION_STRING": "junk"})
    assert line.startswith("config.yaml: connection_string: not a connection string, expected ")


def test_a_secret_is_never_seen() -> None:
    secret = Secret("hidden")
    config = given_text(f"connection_string: {KEY};Hidden=hidden")
    for shown in (repr(secret), str(secret), f"{secret}", f"{secret!s:>20}", repr(config), str(config)):
        assert "hidden" not in shown
        assert "c2VjcmV0" not in shown
    for copied in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError):
            copied(secret)
    with pytest.raises(TypeError):
        pickle.dumps(config)
    assert bool(secret) is True
    assert bool(Secret()) is False


@pytest.mark.parametrize(
    "value",
    [
        "hidden",
        "[hidden]",
        "{hidden: hidden}",
        "!hidden hidden",
        "DefaultEndpointsProtocol=http;AccountName=hidden;AccountKey=hidden",
        "BlobEndpoint=http://hidden;SharedAccessSignature=sig=hidden",
        "BlobEndpoint=https://hidden:hidden:hidden/;SharedAccessSignature=sig=hidden",
        "${NOT_SET:-hidden}",
        "${HIDDEN}",
        "'hidden\\q",
    ],
)
def test_no_mistake_shows_a_secret(value: str) -> None:
    for line in mistakes(f"connection_string: {value}\nmax_workers: x", {"HIDDEN": "hidden"}):
        assert "hidden" not in line


@pytest.mark.parametrize(
    ("value", "warned"),
    [
        (KEY, True),
        ("BlobEndpoint=https://a.b/;SharedAccessSignature=sv=1&sig=abc", True),
        ("${X:-AccountName=a;AccountKey=b}", True),
        ("AccountName=acc;AccountKey=${K}", False),
        ("${C}", False),
        ("BlobEndpoint=https://a.b/;SharedAccessSignature=${S}", False),
    ],
)
def test_a_secret_that_others_can_read_gives_a_warning(value: str, warned: bool) -> None:
    environ = {"K": "b", "C": KEY, "S": "sig=abc"}
    text = f'connection_string: "{value}"\n'
    file = Path("config.yaml")
    file.touch()
    for mode in (0o644, 0o640, 0o604):
        file.chmod(mode)
        warnings = given_text(text, environ).warnings
        assert [warning.startswith("config.yaml: others can read it, and") for warning in warnings] == [True] * warned
        assert "AccountKey" not in str(warnings)
    file.chmod(0o600)
    assert given_text(text, environ).warnings == ()


# Plain http


HTTPS = [
    "DefaultEndpointsProtocol=https;AccountName=a;AccountKey=b==;EndpointSuffix=core.windows.net",
    "AccountName=a;AccountKey=b",
    "BlobEndpoint=https://a.blob.core.windows.net/;SharedAccessSignature=sv=1&sig=x%3D",
    "UseDevelopmentStorage=true",
    "UseDevelopmentStorage=true;DevelopmentStorageProxyUri=http://127.0.0.1",
    "BlobEndpoint=https://a.b/;DefaultEndpointsProtocol=http;AccountName=a",
    *(f"DefaultEndpointsProtocol=http;AccountName=a;AccountKey=b;BlobEndpoint=http://{host}:10000/a;"
      for host in ("127.0.0.1", "localhost", "LOCALHOST", "127.9.8.7", "[::1]")),
]  # fmt: skip
PLAIN_HTTP = [
    "DefaultEndpointsProtocol=http;AccountName=a;AccountKey=b",
    "defaultendpointsprotocol = HTTP ;accountname=a",
    "DefaultEndpointsProtocol=http;AccountName=localhost;EndpointSuffix=localhost",
    "UseDevelopmentStorage=true;DevelopmentStorageProxyUri=http://10.0.0.1",
    "BlobEndpoint=http://10.0.0.1:10000/a",
    "BLOBENDPOINT=HTTP://a.blob.core.windows.net",
    "BlobEndpoint=https://a.b/;BlobSecondaryEndpoint=http://a.c/;AccountName=a",
    "BlobEndpoint=http://127.0.0.1.example.com/",
    "BlobEndpoint=http://localhost.example.com/",
    "BlobEndpoint=http://1270.0.1/",
    "BlobEndpoint=https://a.b/;BlobEndpoint=http://a.b/",
    "BlobEndpoint=http://a.b/;BlobEndpoint=https://a.b/",
    "BlobEndpoint=ftp://a.b/",
]
NO_URL = [
    "BlobEndpoint=a.blob.core.windows.net;SharedAccessSignature=sig=x",
    "BlobEndpoint=https://a.blob.core.windows.net?sig=x",
    "BlobEndpoint=https://a.blob.core.windows.net:port/",
    "BlobEndpoint=http://127.0.0.1@example.com/",
    "BlobEndpoint=http://example.com\\@127.0.0.1/",
    "BlobEndpoint=http://127.0.0.1\\.example.com/",
    "BlobEndpoint=http:///a",
    "BlobEndpoint=http://[::1/",
]
JUNK = ["junk", "https://a.blob.core.windows.net/?sig=x", "AccountKey=x"]


def test_plain_http_is_for_loopback_alone() -> None:
    assert [connection_fault(text) for text in HTTPS] == [""] * len(HTTPS)
    assert [text for text in PLAIN_HTTP if not connection_fault(text).startswith("plain http is refused")] == []
    assert [text for text in NO_URL if not connection_fault(text).startswith("its endpoint is not a URL")] == []
    assert [text for text in JUNK if not connection_fault(text).startswith("not a connection string")] == []


def test_plain_http_is_refused_wherever_it_comes_from() -> None:
    fault = "connection_string: plain http is refused, except to this machine itself: use https"
    assert mistakes(f"server: a\nconnection_string: {PLAIN_HTTP[0]}") == [f"config.yaml:2: {fault}"]
    environ = {"AZURE_STORAGE_CONNECTION_STRING": PLAIN_HTTP[0]}
    assert mistakes("store: azure\ncontainer_name: abc", environ) == [f"config.yaml: {fault}"]
